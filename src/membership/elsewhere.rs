//! Nodes that are not where the map says, and how they and the others find each other again.
//!
//! A node that has moved reaches the others where they were, and has the map say where it is
//! (`proposing`). Who goes by an older map is handed the newer one, as it cannot ask for it
//! (`gossiping`). If so many have moved that too few keepers of the map are where it says, a node
//! knocks at the addresses in `join`, as a newcomer would: who is there notes where it is, uses
//! that until the map says better, and has the map say it. So all may move at once, if each names
//! one that all reach.
//!
//! Who answers there may belong to another cluster. That is said, and it is asked nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::begin::{PAUSE, Unheard};
use super::proposing::{LATER, WISH_MAX, by_chance};
use super::wish::{self, Verdict, Wish};
use super::{Boxed, Membership, Outcome, Said};
use crate::cluster::map::{ClusterMap, Node, NodeId, Uuid};
use crate::cluster::member::Standing;
use crate::rt::{self, Bug};

/// A node is looked for where it has said that it is for so long, unless it says so again.
const NOTED_MAX: Duration = Duration::from_secs(30);
/// The pause between two knocks doubles up to this, while all that is to be known is who is there.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where nodes have said that they are, against the map.
#[derive(Default)]
pub(super) struct Elsewhere(BTreeMap<NodeId, Noted>);

struct Noted {
    host: String,
    peer_port: u16,
    until: Duration,
}

impl Elsewhere {
    /// A node of the map as it is to be looked for.
    pub fn place_of(&self, known: &Node, now: Duration) -> Node {
        let mut node = known.clone();
        if let Some(noted) = self.0.get(&known.id).filter(|noted| now < noted.until) {
            node.host.clone_from(&noted.host);
            node.peer_port = noted.peer_port;
        }
        node
    }

    fn note(&mut self, node: &Node, now: Duration) {
        let noted = Noted {
            host: node.host.clone(),
            peer_port: node.peer_port,
            until: now + NOTED_MAX,
        };
        self.0.insert(node.id, noted);
    }
}

/// True if other nodes look for both at one address.
pub(super) fn is_at(one: &Node, other: &Node) -> bool {
    (&one.host, one.peer_port) == (&other.host, other.peer_port)
}

impl Membership {
    /// Some nodes may be somewhere else by a newer map: these are spoken to at once, so that they
    /// count as there.
    pub(super) fn follow_moved(self: &Rc<Self>, old: &ClusterMap, new: &ClusterMap) {
        for node in new.nodes() {
            let known = old.node(node.id);
            if known.is_none_or(|known| is_at(known, node)) {
                continue;
            }
            self.elsewhere.borrow_mut().0.remove(&node.id);
            if node.id != self.own() {
                self.greet(node.id);
            }
        }
        self.contradict(new);
    }

    /// Somebody has had `map` say that this node is where it is not: as it had been once, perhaps.
    /// It has it say the truth again.
    fn contradict(self: &Rc<Self>, map: &ClusterMap) {
        let own = &self.setup.node;
        let is_wrong = map.node(own.id).is_some_and(|known| !is_at(known, own));
        let is_found = own.host.is_empty() || map.nodes().len() == 1;
        if !is_wrong || is_found || self.is_contradicting.replace(true) {
            return;
        }
        let membership = Rc::clone(self);
        drop(rt::spawn(async move {
            // If there are two such nodes, they do not contradict each other all the time.
            rt::sleep(LATER + by_chance(LATER / 2)).await;
            let wish = Wish::Move(Box::new(membership.setup.node.clone()));
            membership.insist_on(wish).await;
            membership.is_contradicting.set(false);
        }));
    }

    /// `known` says that it is where `told` is.
    pub(super) async fn on_knock_of_member(self: &Rc<Self>, known: &Node, told: Node) -> Said {
        let moved = Node {
            host: told.host,
            peer_port: told.peer_port,
            ..known.clone()
        };
        let NodeId(number) = known.id;
        let own = &self.setup.node;
        if is_at(&moved, known) || (known.id == own.id && is_at(&moved, own)) {
            return Said::Map(self.map().to_json().into());
        }
        if known.id == own.id {
            return Said::Refused(format!(
                "node {number} is this one, at {}:{}: there are two of it",
                own.host, own.peer_port
            ));
        }
        let wish = Wish::Move(Box::new(moved.clone()));
        if let Verdict::Refused(why) = wish.judge(&self.map()) {
            return Said::Refused(why);
        }
        let (host, port) = (&moved.host, moved.peer_port);
        log::info!("node {number} says that it is at {host}:{port} now");
        self.elsewhere.borrow_mut().note(&moved, rt::now());
        match self.change(wish, WISH_MAX).await {
            Outcome::Granted(map) => Said::Map(map.to_json().into()),
            Outcome::Refused(why) => Said::Refused(why),
            Outcome::TooFew => Said::Busy,
        }
    }

    /// Asks who is where `join` says, until each has said it; and again for as long as too few
    /// keepers of the map are reached.
    pub(super) async fn look_where_others_join(self: &Rc<Self>) {
        let mut all: Boxed<'_, ()> = Box::pin(future::pending());
        let no_one = rt::planted(Bug::NobodyKnocks);
        for address in self.setup.join.iter().filter(|_| !no_one) {
            all = Box::pin(future::or(all, self.look_at(*address)));
        }
        all.await;
    }

    async fn look_at(self: &Rc<Self>, address: SocketAddr) {
        let mut told = String::new();
        let mut pause = PAUSE;
        loop {
            let is_known = match self.knock_at(address).await {
                Ok(()) => true,
                Err(None) => false,
                Err(Some(why)) => {
                    if why != told {
                        log::warn!("{why}");
                        told = why;
                    }
                    true
                }
            };
            if is_known {
                let is_in_need = || self.reaches_too_few().then_some(());
                self.changed.wait_for(is_in_need).await;
            }
            pause = match self.reaches_too_few() {
                true => PAUSE,
                false => (pause * 2).min(PAUSE_MAX),
            };
            rt::sleep(pause + by_chance(pause / 2)).await;
        }
    }

    /// Says there where this node is, and takes the map of who is there. An error: nobody has
    /// answered, or somebody who will not help.
    async fn knock_at(self: &Rc<Self>, address: SocketAddr) -> Result<(), Option<String>> {
        let (own, cluster) = (self.setup.node.clone(), self.map().cluster());
        match self.setup.door.knock(address, own, Some(cluster)).await {
            Ok(Said::Map(bytes)) => {
                if let Some(map) = wish::read(&bytes) {
                    self.learn(map);
                }
                Ok(())
            }
            Ok(Said::Refused(why)) | Err(Unheard::Hopeless(why)) => Err(Some(format!(
                "{address}, which `join` names, does not take this node for one of its cluster: {why}"
            ))),
            Ok(_) => Ok(()),
            Err(Unheard::Elsewhere(other)) => Err(Some(format!(
                "the node at {address}, which `join` names, belongs to another cluster ({}...) than this one ({}...): they will \
                 never meet. To have this node join that cluster, start it with an empty data directory",
                beginning(other),
                beginning(cluster)
            ))),
            Err(Unheard::Unreached(_)) => Err(None),
        }
    }

    /// True if so few keepers of the map are alive, as far as this node sees, that it cannot be
    /// changed.
    fn reaches_too_few(&self) -> bool {
        let (map, gossip) = (self.map(), self.gossip.borrow());
        let keepers = &map.keepers().nodes;
        let is_reached = |node: &&NodeId| {
            **node == self.own() || gossip.standing(**node) == Some(Standing::Alive)
        };
        let reached = keepers.iter().filter(is_reached).count();
        !keepers.is_empty() && 2 * reached <= keepers.len()
    }
}

/// What a cluster is told apart by, for people.
fn beginning(Uuid(cluster): Uuid) -> String {
    format!("{:08x}", cluster >> 96)
}
