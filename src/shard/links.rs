//! This core's links to other nodes: what they may ask of it, what it asks of them for membership,
//! what it hears of them.
//!
//! Every core listens at a peer port of its own. What others ask about keys is the core's as a
//! replica; what they ask about the cluster is core 0's. By a request with an older map nothing is
//! done: who made it may ask the wrong cores.

use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::Shard;
use super::siblings::Message;
use crate::cluster::map::{Holder, Node};
use crate::cluster::peers::{
    Answering, Asked, Event, Identity, PeerAddress, PeerLimits, Peers, Serve, Unanswered,
};
use crate::config::{Config, PEER_REQUESTS_MAX, PEER_WAITING_BYTES_MAX};
use crate::membership::{Ask, Boxed, Reach, Said, Unreached};
use crate::protocol::peer::{Answer, Certainty, Request, Subject};
use crate::rt::{self, Bug};
use crate::storage::record::KeyRef;
use crate::types::CoreId;

/// Connections to one core that have not proved themselves yet.
const GREETING_MAX: usize = 64;
/// How long it may take to connect, and to prove oneself.
const GREETING_TIME_MAX: Duration = Duration::from_secs(3);
/// Pauses between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A link that owes an answer and has been silent for so long is made anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What one core's links may take.
pub(super) fn limits(config: &Config) -> PeerLimits {
    PeerLimits {
        key_bytes_max: config.limits.key_max.0 as usize,
        value_bytes_max: config.limits.value_max.0 as usize,
        requests_max: PEER_REQUESTS_MAX,
        waiting_bytes_max: PEER_WAITING_BYTES_MAX,
        served_max: PEER_REQUESTS_MAX,
        greeting_max: GREETING_MAX,
        greeting_time_max: GREETING_TIME_MAX,
        pause_min: PAUSES.0,
        pause_max: PAUSES.1,
        silence_max: SILENCE_MAX,
    }
}

impl Shard {
    /// Makes this core's links, for who this node is.
    pub(super) fn make_links(self: &Rc<Self>) -> Rc<Peers> {
        let shard = Rc::downgrade(self);
        let told = move |event| {
            if let Some(shard) = shard.upgrade() {
                shard.hear_of(event);
            }
        };
        let key = &self.facts.cluster_key;
        let peers = Peers::new(self.id, key, limits(&self.config), told);
        peers.set_identity(Identity {
            cluster: self.place.cluster.0.to_be_bytes(),
            node: self.place.node,
        });
        peers
    }

    /// What is heard of other nodes is for core 0.
    fn hear_of(self: &Rc<Self>, event: Event) {
        match self.id {
            CoreId(0) => self.hear_of_here(event),
            _ => self.siblings.tell(CoreId(0), Message::Heard(event)),
        }
    }

    /// `Message::Heard`, on core 0.
    pub(super) fn hear_of_here(&self, event: Event) {
        let Some(membership) = self.place.membership() else {
            return; // not yet
        };
        match event {
            Event::Up(node) => membership.note_link(node, true),
            Event::Down(node) => membership.note_link(node, false),
            Event::Met(node) => membership.note_met(node),
            Event::Newer(node, epoch) => membership.note_epoch(node, epoch),
        }
    }

    fn serve_cluster(self: Rc<Self>, ask: Ask, answering: Answering) {
        rt::spawn(async move {
            match self.serve_member(ask).await {
                Said::Gossip(bytes) => answering.give(&Answer::Gossip(&bytes)),
                Said::Register(bytes) => answering.give(&Answer::Register(&bytes)),
                Said::Map(map) => {
                    let epoch = self.view().map_or(0, |view| view.map.epoch());
                    answering.give(&Answer::Map { epoch, map: &map });
                }
                Said::Done => answering.give(&Answer::Done),
                Said::Busy => answering.give(&Answer::Busy),
                Said::Refused(why) => {
                    answering.give(&Answer::failed(Certainty::NotDone, &why));
                }
            }
        });
    }

    /// Why nothing is done as a replica for somebody who goes by a map of this epoch.
    fn refusal_of(&self, request: &Request<'_>, epoch: u64) -> Option<Answer<'static>> {
        let key = match request {
            Request::Write(mutation) => Some(mutation.key),
            Request::Read { key, .. } => Some(*key),
            // Of a walk each part is looked at. Whoever asks for clocks by an old map may ask none
            // of those who have stored the newest write. Hints are kept for the keys of others.
            Request::Walk(_) | Request::Clock | Request::Hint { .. } => None,
            _ => return None,
        };
        let own = self.view().map_or(0, |view| view.map.epoch());
        match key {
            _ if rt::planted(Bug::StaleMapTaken) => None,
            _ if epoch < own => Some(Answer::StaleEpoch { epoch: own }),
            Some(key) if !self.holds(KeyRef::of(key).position) => Some(Answer::NotMine),
            _ => None,
        }
    }
}

/// What other nodes ask of this core.
impl Serve for Shard {
    fn serve(self: Rc<Self>, asked: Asked<'_>, answering: Answering) {
        if let Some(refusal) = self.refusal_of(&asked.request, asked.epoch) {
            return answering.give(&refusal);
        }
        let ask = match asked.request {
            Request::Gossip(bytes) => Ask::Gossip(bytes.to_vec()),
            Request::Map { at_least } => Ask::Map(at_least),
            Request::Join(bytes) => Ask::Join(bytes.to_vec()),
            Request::TakeMap(map) => Ask::TakeMap(Bytes::copy_from_slice(map)),
            Request::Register {
                subject: Subject::Map,
                request,
            } => Ask::Register(request.to_vec()),
            request => {
                let give = move |answer: &Answer<'_>| answering.give(answer);
                return self.serve_replica(&request, asked.deadline, give);
            }
        };
        self.serve_cluster(ask, answering);
    }
}

/// The way of membership, on core 0, to core 0 of other nodes.
pub(super) struct Way {
    pub peers: Weak<Peers>,
}

impl Reach for Way {
    fn ask(&self, node: &Node, ask: Ask, patience: Duration) -> Boxed<'_, Result<Said, Unreached>> {
        let to = Holder {
            node: node.id,
            core: CoreId(0),
        };
        let deadline = rt::now() + patience;
        let request = match &ask {
            Ask::Gossip(bytes) => Request::Gossip(bytes),
            Ask::Map(at_least) => Request::Map {
                at_least: *at_least,
            },
            Ask::Join(bytes) => Request::Join(bytes),
            Ask::TakeMap(map) => Request::TakeMap(map),
            Ask::Register(request) => Request::Register {
                subject: Subject::Map,
                request,
            },
        };
        let address = PeerAddress::of(node, to.core);
        let peers = self.peers.upgrade();
        if let (Some(peers), Ask::Gossip(_)) = (&peers, &ask)
            && !rt::planted(Bug::ReturnUnnoticed)
        {
            peers.expect(node.id); // gossip has pauses of its own, and reasons to ask just now
        }
        let asking = peers.map(|peers| peers.begin(to, address, &request, deadline));
        Box::pin(async move {
            let answered = match asking {
                Some(Ok(asking)) => asking.wait().await.map_err(|_| Unreached::Silent)?,
                Some(Err(Unanswered::Busy)) => return Err(Unreached::Unasked),
                Some(Err(_)) | None => return Err(Unreached::Silent),
            };
            match answered.answer.view() {
                Answer::Gossip(bytes) => Ok(Said::Gossip(bytes.to_vec())),
                Answer::Register(bytes) => Ok(Said::Register(bytes.to_vec())),
                Answer::Map { map, .. } => Ok(Said::Map(Bytes::copy_from_slice(map))),
                Answer::Done => Ok(Said::Done),
                Answer::Busy => Ok(Said::Busy),
                Answer::Failed { text, .. } => Ok(Said::Refused(text.to_owned())),
                _ => Err(Unreached::Silent),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::node;
    use crate::rt::sim::{Options, World};

    /// Else a node with much to send would take those to whom it sends for gone.
    #[test]
    fn what_there_is_no_room_for_is_not_taken_for_unanswered() {
        let world = World::new(Options::calm(1));
        let said = world.block_on(async {
            let no_room = PeerLimits {
                requests_max: 0,
                ..limits(&Config::default())
            };
            let peers = Peers::new(CoreId(0), b"", no_room, |_| {});
            let way = Way {
                peers: Rc::downgrade(&peers),
            };
            let asked = way.ask(&node(2), Ask::Gossip(Vec::new()), SILENCE_MAX);
            asked.await
        });
        assert_eq!(said, Err(Unreached::Unasked));
    }
}
