//! The cluster's map kept in etcd: the other side of the seam of which `proposing` is the one. A
//! change is a compare-and-set on the revision of one key.
//!
//! `exchange` is one request over one connection, `gateway` what is said in it, [`Etcd`] the value
//! that has come of it whichever member of etcd has answered; `begin` is how a node comes into the
//! cluster, `keeping` how a member has the map changed.
//!
//! A change has three outcomes. After [`Swapped::Unknown`] it may have been done, or may be yet: so
//! the same change is never sent to another member, which would refuse it because of itself; who
//! made it reads again, and knows it by what it has made.

mod begin;
mod exchange;
pub mod gateway;
mod keeping;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::wish;
use crate::cluster::map::ClusterMap;
use crate::config::{Config, Metadata, etcd_endpoint};
use crate::rt;
use exchange::{Answer, Post, Unanswered};
use gateway::{Held, Revision};

pub use begin::begin_in_etcd;
pub use exchange::Endpoint;

/// One member of etcd may take so long for one answer; then another one is asked.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// While etcd cannot be used, the log has a line with a new reason so often.
const TROUBLE_EVERY: Duration = Duration::from_secs(30);
/// The status of what was done.
const OK: u16 = 200;
/// The status of a request with a token that etcd does not know any more.
const UNAUTHENTICATED: u16 = 401;
const NOT_UNDERSTOOD: &str = "its answer is not understood";

/// An etcd, and the key under which it has the map.
pub struct Etcd {
    endpoints: Vec<Endpoint>,
    key: String,
    /// A name and its password.
    user: Option<(String, String)>,
    token: RefCell<Option<Rc<str>>>,
    /// Which endpoint is asked first: the last one that has answered.
    first: Cell<usize>,
    /// Of the newest map that was read or put.
    seen: Cell<Revision>,
    /// By what was asked.
    troubles: RefCell<BTreeMap<&'static str, Trouble>>,
}

/// Why etcd cannot be asked for something, as the log has it.
struct Trouble {
    why: String,
    told: Duration,
}

/// The map that etcd has.
pub struct Kept {
    /// Of its last change.
    pub revision: Revision,
    /// The map.
    pub map: ClusterMap,
}

/// What has come of looking for a map that is newer than the last one.
pub enum Newer {
    /// It is this one.
    Kept(Box<Kept>),
    /// There is none.
    Nothing,
    /// There is no map at all any more, or etcd has gone back behind what it had.
    Forgotten,
}

/// What has come of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is done.
    Done,
    /// It is not, and will not be: somebody else has changed the map.
    Refused,
    /// It may have been done, or may be yet.
    Unknown,
}

/// Why nothing is known of the map that etcd has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It does not answer, or not as it should; it may be tried again.
    Away,
    /// It answers, and what it has is no map.
    NoMap(String),
}

impl Etcd {
    /// At these endpoints, under this key.
    pub fn new(endpoints: Vec<Endpoint>, key: &str, user: Option<(String, String)>) -> Etcd {
        assert!(!endpoints.is_empty() && !key.is_empty());
        Etcd {
            endpoints,
            key: key.to_owned(),
            user,
            token: RefCell::default(),
            first: Cell::new(0),
            seen: Cell::new(0),
            troubles: RefCell::default(),
        }
    }

    /// As the configuration says; `None`: the cluster keeps its map itself.
    pub fn of(config: &Config) -> Option<Etcd> {
        let cluster = &config.cluster;
        if cluster.metadata == Metadata::Register {
            return None;
        }
        let endpoints = cluster.etcd.iter().filter_map(|text| etcd_endpoint(text));
        let endpoints = endpoints.map(|(host, port)| Endpoint {
            host: host.to_owned(),
            port,
        });
        let user = (cluster.etcd_user.clone(), cluster.etcd_password.clone());
        let user = (!user.0.is_empty()).then_some(user);
        Some(Etcd::new(endpoints.collect(), &cluster.etcd_key(), user))
    }

    /// The key under which it has the map.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The newest map, of all that were decided before this was called; `None`: there is none.
    pub async fn read(&self, deadline: Duration) -> Result<Option<Kept>, Unknown> {
        let found = self.range(0, deadline).await?;
        found.held.map(|held| self.kept(&held)).transpose()
    }

    /// The newest map, if it is newer than the last one that was read or put here.
    pub async fn read_newer(&self, deadline: Duration) -> Result<Newer, Unknown> {
        let seen = self.seen.get();
        let found = self.range(seen, deadline).await?;
        if !found.exists || found.revision < seen {
            return Ok(Newer::Forgotten);
        }
        Ok(match found.held {
            Some(held) => Newer::Kept(Box::new(self.kept(&held)?)),
            None => Newer::Nothing,
        })
    }

    async fn range(&self, known: Revision, deadline: Duration) -> Result<gateway::Found, Unknown> {
        let body = gateway::range(&self.key, known);
        let mut troubles = Vec::new();
        for (place, endpoint) in self.in_turn() {
            let answered = self
                .ask_one(endpoint, gateway::RANGE, &body, deadline)
                .await;
            match answered.map(|answer| (answer.status, answer.body)) {
                Ok((OK, body)) => match gateway::read_range(&body, &self.key) {
                    Some(found) => {
                        self.works(gateway::RANGE, place);
                        return Ok(found);
                    }
                    None => troubles.push(format!("{endpoint}: {NOT_UNDERSTOOD}")),
                },
                Ok((status, body)) => troubles.push(refusal(endpoint, status, &body)),
                Err(Unanswered::NotSent(why) | Unanswered::InDoubt(why)) => troubles.push(why),
            }
        }
        self.note_trouble(gateway::RANGE, &troubles.join("; "));
        Err(Unknown::Away)
    }

    fn kept(&self, held: &Held) -> Result<Kept, Unknown> {
        let Some(map) = wish::read(&held.value) else {
            let why = format!(
                "what etcd has under {} is no map that this program reads",
                self.key
            );
            self.note_trouble(gateway::RANGE, &why);
            return Err(Unknown::NoMap(why));
        };
        self.seen.set(held.revision.max(self.seen.get()));
        Ok(Kept {
            revision: held.revision,
            map,
        })
    }

    /// Makes `map` what etcd has if its last change was that of `known`; 0: if it has none.
    pub async fn swap(&self, known: Revision, map: &ClusterMap, deadline: Duration) -> Swapped {
        let body = gateway::put_if(&self.key, known, map.to_json().as_bytes());
        let mut troubles = Vec::new();
        for (place, endpoint) in self.in_turn() {
            let answered = self.ask_one(endpoint, gateway::TXN, &body, deadline).await;
            let why = match answered.map(|answer| (answer.status, answer.body)) {
                Ok((OK, body)) => match gateway::read_put(&body) {
                    Some(put) => {
                        self.works(gateway::TXN, place);
                        if !put.is_done {
                            return Swapped::Refused;
                        }
                        self.seen.set(put.revision.max(self.seen.get()));
                        return Swapped::Done;
                    }
                    None => format!("{endpoint}: {NOT_UNDERSTOOD}"),
                },
                Ok((status, body)) => refusal(endpoint, status, &body),
                Err(Unanswered::InDoubt(why)) => why,
                Err(Unanswered::NotSent(why)) => {
                    troubles.push(why);
                    continue;
                }
            };
            troubles.push(why);
            self.first.set(place + 1); // whoever reads what has become of it had better ask another one
            break;
        }
        self.note_trouble(gateway::TXN, &troubles.join("; "));
        Swapped::Unknown
    }

    /// Asks as the user that etcd knows.
    async fn ask_one(
        &self,
        endpoint: &Endpoint,
        path: &'static str,
        body: &[u8],
        deadline: Duration,
    ) -> Result<Answer, Unanswered> {
        let until = deadline.min(rt::now() + ANSWER_MAX);
        let known = self.token.borrow().clone();
        let token = match known.clone() {
            Some(token) => Some(token),
            None => self.authenticate(endpoint, until).await?,
        };
        let post = |token| Post { path, token, body };
        let answer = endpoint.post(&post(token.as_deref()), until).await?;
        if answer.status == OK || token.is_none() {
            return Ok(answer);
        }
        // The token may be what is wrong. If etcd says so, it has done nothing.
        self.token.take();
        if answer.status != UNAUTHENTICATED || known.is_none() {
            return Ok(answer);
        }
        let token = self.authenticate(endpoint, until).await?;
        endpoint.post(&post(token.as_deref()), until).await
    }

    /// Gets a token, if there is a user. Nothing is done by that, whatever becomes of it.
    async fn authenticate(
        &self,
        endpoint: &Endpoint,
        until: Duration,
    ) -> Result<Option<Rc<str>>, Unanswered> {
        let Some((name, password)) = &self.user else {
            return Ok(None);
        };
        let post = Post {
            path: gateway::AUTHENTICATE,
            token: None,
            body: &gateway::authenticate(name, password),
        };
        let answer = match endpoint.post(&post, until).await {
            Ok(answer) => answer,
            Err(Unanswered::NotSent(why) | Unanswered::InDoubt(why)) => {
                return Err(Unanswered::NotSent(why));
            }
        };
        match gateway::read_token(&answer.body) {
            Some(token) => {
                let token: Rc<str> = token.into();
                self.token.replace(Some(Rc::clone(&token)));
                Ok(Some(token))
            }
            None => {
                let why = refusal(endpoint, answer.status, &answer.body);
                Err(Unanswered::NotSent(format!(
                    "the user {name} is not let in: {why}"
                )))
            }
        }
    }

    /// All endpoints, with their places, from the one on that is to be asked first.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let (first, count) = (self.first.get(), self.endpoints.len());
        let places = (first..first + count).map(move |place| place % count);
        places.map(move |place| (place, &self.endpoints[place]))
    }

    /// How long it may take until all of them were asked.
    fn patience(&self) -> Duration {
        ANSWER_MAX * self.endpoints.len() as u32
    }

    fn works(&self, what: &str, place: usize) {
        self.first.set(place);
        if self.troubles.borrow_mut().remove(what).is_some() {
            log::info!("etcd, which has the cluster's map, can be used again ({what})");
        }
    }

    /// Etcd does not do what it is asked: the log has it once, and again if that is for another
    /// reason.
    fn note_trouble(&self, what: &'static str, why: &str) {
        let now = rt::now();
        let mut troubles = self.troubles.borrow_mut();
        let is_told = troubles
            .get(what)
            .is_some_and(|trouble| trouble.why == why || now < trouble.told + TROUBLE_EVERY);
        if is_told {
            return;
        }
        log::warn!(
            "etcd, which has the cluster's map, cannot be used ({what}): {why}. The map cannot be changed meanwhile; all else goes on"
        );
        let why = why.to_owned();
        troubles.insert(what, Trouble { why, told: now });
    }
}

fn refusal(endpoint: &Endpoint, status: u16, body: &[u8]) -> String {
    let why = gateway::read_refusal(body);
    format!("{endpoint} says {why:?} (status {status})")
}

#[cfg(test)]
mod tests;
