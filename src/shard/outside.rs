//! What a face of the node that is not RESP needs to know of its core.

use std::rc::Rc;

use super::connection::Buffer;
use super::place::Place;
use super::siblings::{Job, Said};
use super::{NodeFacts, Shard, Stage, session};
use crate::cluster::map::NodeId;
use crate::config::Config;
use crate::rt;
use crate::types::CoreId;

impl Shard {
    /// The node's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the node knows of itself.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// Which core this is.
    pub fn id(&self) -> CoreId {
        self.id
    }

    /// The node's number.
    pub fn node(&self) -> NodeId {
        self.place.node
    }

    /// The node's place in its cluster.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How many cores the node has.
    pub fn cores(&self) -> u16 {
        self.map.cores()
    }

    /// Seconds since the core has started.
    pub fn uptime_s(&self) -> u64 {
        rt::now().saturating_sub(self.started).as_secs()
    }

    /// True if this user may log in with this password.
    pub fn admits_user(&self, user: &[u8], password: &[u8]) -> bool {
        session::admits(&self.config, Some(user), password)
    }

    /// Gives a lent buffer back while nothing is read into it.
    pub fn put_aside(&self, buffer: &mut Buffer) {
        self.clients.put_aside(buffer);
    }

    /// Counts a request over HTTP that was answered with this status.
    pub fn count_http(&self, status: u16) {
        let mut counters = self.counters.borrow_mut();
        counters.http_requests += 1;
        counters.http_errors += u64::from(status >= 400);
    }

    /// True while no more clients are taken.
    pub fn is_closing(&self) -> bool {
        self.is_stopping()
    }

    /// True if clients find this core at work, and its log takes writes.
    pub fn is_ready_here(&self) -> bool {
        self.stage.get() == Stage::Listening && !self.store.has_failed()
    }

    /// True if all cores of the node are ready.
    pub async fn is_ready(self: &Rc<Self>) -> bool {
        let asked: Vec<_> = self
            .other_cores()
            .map(|core| self.siblings.ask(core, Job::Ready))
            .collect();
        let mut all = self.is_ready_here();
        for answer in asked {
            all &= matches!(answer.wait().await, Some(Said::Done(true)));
        }
        all
    }
}
