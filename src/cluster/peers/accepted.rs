//! A connection that a core of another node has made to this one: its requests are done, and
//! answered in any order.
//!
//! Requests on it are numbered upwards, so none is done twice. Nothing is read while too much waits
//! to be sent: who does not take his answers is not served. A connection of a core that has another
//! one already takes that one's place: the old one's machine may have gone without a word.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::queue::Turn;
use super::wire::{Broken, Outside, Talk};
use super::{Asked, NO_NODE, Peers, Serve};
use crate::cluster::map::{Holder, NodeId};
use crate::protocol::peer::handshake::Peer;
use crate::protocol::peer::{self, Answer, Frame, Message, Request};
use crate::rt::{self, Bug};

/// Larger answers are replaced by `Busy` while too much waits; smaller ones, one for each request
/// under way, are not.
const SMALL_BYTES_MAX: usize = 1024;

/// One such connection.
pub(super) struct Accepted {
    pub peer: Peer,
    pub outside: Outside,
    /// Requests that are under way.
    under_way: Cell<usize>,
    id_last: Cell<u64>,
    waiting_bytes_max: usize,
}

impl Accepted {
    pub fn new(peer: Peer, waiting_bytes_max: usize) -> Rc<Accepted> {
        Rc::new(Accepted {
            peer,
            outside: Outside::default(),
            under_way: Cell::new(0),
            id_last: Cell::new(0),
            waiting_bytes_max,
        })
    }

    /// The core at the other end.
    pub fn from(&self) -> Holder {
        Holder {
            node: NodeId(self.peer.side.node),
            core: self.peer.side.core,
        }
    }

    fn push(&self, id: u64, answer: &Answer<'_>) {
        let mut queue = self.outside.queue.borrow_mut();
        queue.push(id, &Message::Answer(*answer), self.peer.version, None);
        drop(queue);
        self.outside.ring();
    }

    fn is_full(&self) -> bool {
        self.outside.waiting_bytes() >= self.waiting_bytes_max
    }
}

/// Where the answer to one request goes. If it is dropped, there will be none.
pub struct Answering {
    to: Rc<Accepted>,
    id: u64,
}

impl Answering {
    /// Answers. An answer that is too large while many wait to be sent becomes `Busy`: only what
    /// has changed nothing has large answers.
    pub fn give(self, answer: &Answer<'_>) {
        let length = match answer {
            Answer::Holds(held) => held.value.map_or(0, <[u8]>::len),
            Answer::Map { map, .. } => map.len(),
            Answer::Walked(page) => page.keys.len(),
            _ => 0,
        };
        match length > SMALL_BYTES_MAX && self.to.is_full() {
            true => self.to.push(self.id, &Answer::Busy),
            false => self.to.push(self.id, answer),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let under_way = &self.to.under_way;
        under_way.set(under_way.get() - 1);
    }
}

/// What a node that is in no cluster may ask.
pub(super) fn may_ask_stranger(request: &Request<'_>) -> bool {
    match request {
        Request::Join(_) | Request::Map { .. } | Request::Ping => true,
        Request::Register { .. }
        | Request::Write(_)
        | Request::Read { .. }
        | Request::Walk(_)
        | Request::Clock
        | Request::Hint { .. }
        | Request::TakeMap(_)
        | Request::Gossip(_) => false,
    }
}

/// What a node may ask that our map does not know: it may be in a newer one, which we are to hear
/// of.
fn may_ask_unknown(request: &Request<'_>) -> bool {
    match request {
        Request::Gossip(_) | Request::Register { .. } | Request::TakeMap(_) => true,
        other => may_ask_stranger(other),
    }
}

/// The accepting side of the conversation.
pub(super) struct Answerer<'p> {
    pub accepted: Rc<Accepted>,
    pub peers: &'p Peers,
    pub served: Rc<dyn Serve>,
}

impl Talk for Answerer<'_> {
    fn outside(&self) -> &Outside {
        &self.accepted.outside
    }

    fn take(&self, frame: &Frame<'_>, since_handshake: Duration) -> Result<(), Broken> {
        let Message::Request(request) = frame.message else {
            return Err(Broken::OutOfPlace("an answer where requests are expected"));
        };
        let accepted = &self.accepted;
        if frame.id <= accepted.id_last.get() {
            return Err(Broken::OutOfPlace("a request twice"));
        }
        accepted.id_last.set(frame.id);
        let from = accepted.from();
        self.peers.hear_epoch(from.node, frame.epoch);
        let left_ms = match rt::planted(Bug::DeadlineIgnored) {
            true => 1000,
            false => peer::deadline_in(frame.deadline_ms, since_handshake),
        };
        if left_ms == 0 {
            return Ok(()); // nobody waits for it any more
        }
        let is_known = from.node == NO_NODE || self.peers.is_member(from.node);
        let may_ask = match from.node {
            NO_NODE => may_ask_stranger(&request),
            _ => is_known || may_ask_unknown(&request),
        };
        if !may_ask {
            accepted.push(frame.id, &Answer::NotMine);
            return Ok(());
        }
        if accepted.under_way.get() >= self.peers.limits.served_max {
            accepted.push(frame.id, &Answer::Busy);
            return Ok(());
        }
        accepted.under_way.set(accepted.under_way.get() + 1);
        let answering = Answering {
            to: Rc::clone(accepted),
            id: frame.id,
        };
        let asked = Asked {
            from,
            epoch: frame.epoch,
            deadline: rt::now() + Duration::from_millis(u64::from(left_ms)),
            request,
        };
        Rc::clone(&self.served).serve(asked, answering);
        Ok(())
    }

    fn judge(&self, _: u64, _: Duration) -> Turn {
        Turn::Leaves
    }

    fn epoch(&self) -> u64 {
        self.peers.epoch.get()
    }

    fn is_reading(&self) -> bool {
        !self.accepted.is_full() || rt::planted(Bug::AnswersPileUp)
    }
}
