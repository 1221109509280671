//! A node's place in its cluster: forming one, joining one, keeping the map with others, and
//! knowing who is alive.
//!
//! Core 0 does all of it and tells the other cores what comes of it, a [`View`]. `begin` finds out
//! who the node is before it opens its data; then [`Membership`] lives as long as the node. The map
//! is a register kept by up to five of its nodes (`keeper`: this node's part of it; `proposing`:
//! how it is changed), or it is kept in `etcd`; `gossiping` is who is alive, and that there is a
//! newer map; `elsewhere` is how nodes find each other that are not where the map says. What is
//! decided is decided in pure code: `wish`, `cluster/gossip`, `cluster/claim`,
//! `replication/register`.
//!
//! Invariants: what this node has promised or accepted as a keeper is on disk before it says so
//! (`record`); only maps that were decided are ever shown; nobody joins a cluster that holds data,
//! and no data is written before that is decided.

mod begin;
mod ceiling;
mod elsewhere;
pub mod etcd;
pub mod gossiping;
mod keeper;
pub mod knock;
mod proposing;
pub mod record;
#[cfg(test)]
pub(crate) mod tests;
mod turn;
pub mod wish;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;

use crate::cluster::gossip::{GENERATION_CHANCES, Gossip};
use crate::cluster::map::{ClusterMap, Node, NodeId};
use crate::cluster::member::{Standing, Timing};
use crate::replication::register::Ballot;
use crate::rt::sync::Signal;
use crate::rt::{self, Bug};
use elsewhere::Elsewhere;
use etcd::Etcd;
use record::{Keeping, Place, Record};
use turn::Turns;

pub use begin::{Begun, Founding, Knocking, Unheard, begin, found, read_map, uuid_of_cluster};
pub use ceiling::{AHEAD_MIN, Ceiling, read_ceiling};
pub use proposing::Outcome;

/// What is asked of another node's core 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To take note of who is alive.
    Gossip(Vec<u8>),
    /// To do its part as a keeper of the map.
    Register(Vec<u8>),
    /// To send its map, if that is of this epoch or a later one.
    Map(u64),
    /// To let the sender in, who is no node yet.
    Join(Vec<u8>),
    /// To go by this map, if it is newer.
    TakeMap(Bytes),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Who it knows to be alive; nothing, if it was only told something.
    Gossip(Vec<u8>),
    /// As a keeper.
    Register(Vec<u8>),
    /// Its map.
    Map(Bytes),
    /// It has done it.
    Done,
    /// It could not do it now; nothing was done.
    Busy,
    /// It will not do it, and says why.
    Refused(String),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// None came in time: it may have been done or not.
    Silent,
    /// This side had no room to ask, which says nothing of the other.
    Unasked,
}

/// A future in a box.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The way to other nodes.
pub trait Reach {
    /// Asks core 0 of `node`, and waits for an answer no longer than `patience`.
    fn ask(&self, node: &Node, ask: Ask, patience: Duration) -> Boxed<'_, Result<Said, Unreached>>;
}

/// No way to anybody: of a node that speaks to no others.
pub struct Nowhere;

impl Reach for Nowhere {
    fn ask(&self, _: &Node, _: Ask, _: Duration) -> Boxed<'_, Result<Said, Unreached>> {
        Box::pin(std::future::ready(Err(Unreached::Silent)))
    }
}

/// Who is in the cluster and how they stand, as this node sees it. Immutable; all cores have one.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// This node.
    pub own: NodeId,
    /// The newest map that it knows.
    pub map: Arc<ClusterMap>,
    /// How all others stand.
    pub standings: BTreeMap<NodeId, Standing>,
}

impl View {
    /// True if requests may be sent to `node`: it is this one, or nothing speaks against it.
    pub fn may_be_asked(&self, node: NodeId) -> bool {
        let standing = self.standings.get(&node);
        node == self.own || standing.is_some_and(|standing| standing.may_be_asked())
    }
}

/// Is told every new view.
pub type Tell = Box<dyn Fn(&Arc<View>)>;

/// What a node brings with it.
pub struct Setup {
    /// Its data directory.
    pub dir: PathBuf,
    /// Itself, as others are to know it; with the number that it has.
    pub node: Node,
    /// Of gossip.
    pub timing: Timing,
    /// Where the map is kept, if not by the cluster's nodes.
    pub etcd: Option<Etcd>,
    /// The way to the others.
    pub reach: Rc<dyn Reach>,
    /// Where others may be that are not where the map says.
    pub join: Vec<SocketAddr>,
    /// The way to who is there.
    pub door: Rc<dyn Knocking>,
    /// Is told every new view.
    pub tell: Tell,
}

/// Core 0's part of the cluster.
pub struct Membership {
    setup: Setup,
    /// What CLUSTER says; it is changed by whoever has the turn to write.
    record: RefCell<Record>,
    writing: Turns,
    /// It is not known what CLUSTER says: nothing is promised any more.
    is_broken: Cell<bool>,
    /// The newest map; CLUSTER may be a little behind.
    map: RefCell<Arc<ClusterMap>>,
    gossip: RefCell<Gossip>,
    /// Who is not where the map says.
    elsewhere: RefCell<Elsewhere>,
    proposing: Turns,
    /// The last ballot of this node as a proposer.
    last: Cell<Ballot>,
    /// Somebody sees to it that this node keeps the map.
    is_asking_to_keep: Cell<bool>,
    /// Somebody sees to it that the map says again where this node is.
    is_contradicting: Cell<bool>,
    /// A newer map is on its way, of which a link has told.
    is_fetching: Cell<bool>,
    /// Another process runs as this node.
    is_fenced: Cell<bool>,
    /// The map, somebody's standing, or whether this node is to go on, has changed.
    changed: Signal,
}

impl Membership {
    /// Goes on from what CLUSTER says.
    pub fn new(setup: Setup, record: Record) -> Rc<Membership> {
        let Some(Place { node, map }) = record.place.clone() else {
            panic!("who was not let in has not begun");
        };
        assert_eq!(setup.node.id, node, "the number that it has");
        let is_in_etcd = matches!(record.keeping, Keeping::Etcd(_));
        assert_eq!(
            setup.etcd.is_some(),
            is_in_etcd,
            "the map stays where it is"
        );
        let generation = (record.generation + 1).max(rt::wall_ms());
        let generation = generation + rt::random() % GENERATION_CHANCES;
        let gossip = Gossip::new(node, generation, setup.timing, &map, rt::now());
        let membership = Rc::new(Membership {
            setup,
            record: RefCell::new(Record {
                generation,
                ..record
            }),
            writing: Turns::default(),
            is_broken: Cell::new(false),
            map: RefCell::new(map),
            gossip: RefCell::new(gossip),
            elsewhere: RefCell::default(),
            proposing: Turns::default(),
            last: Cell::new(Ballot {
                round: 0,
                proposer: u32::from(node.0),
            }),
            is_asking_to_keep: Cell::new(false),
            is_contradicting: Cell::new(false),
            is_fetching: Cell::new(false),
            is_fenced: Cell::new(false),
            changed: Signal::default(),
        });
        membership.tell();
        membership
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.setup.node.id
    }

    /// The newest map.
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.map.borrow())
    }

    /// How things are.
    pub fn view(&self) -> Arc<View> {
        let gossip = self.gossip.borrow();
        let standings = gossip.members().all();
        Arc::new(View {
            own: self.own(),
            map: self.map(),
            standings: standings
                .map(|(node, standing, ..)| (node, standing))
                .collect(),
        })
    }

    fn tell(&self) {
        (self.setup.tell)(&self.view());
        self.changed.wake_all();
    }

    /// Runs for as long as the node does, from the moment when all its cores can be reached: it
    /// tells all others that it is there. A node that is alone does nothing.
    pub async fn run(self: Rc<Self>) {
        let map = self.map();
        self.say_what_is_kept(&map);
        let is_laid_out_anew = map
            .node(self.own())
            .is_some_and(|known| known.cores != self.setup.node.cores);
        // Where a node is that is alone concerns nobody; the first that joins is told. But by etcd
        // others find it.
        if map.nodes().len() > 1 || is_laid_out_anew || self.setup.etcd.is_some() {
            self.come_back();
        }
        self.ask_to_keep();
        match &self.setup.etcd {
            None => {
                let kept = future::or(
                    self.look_where_others_join(),
                    self.settle_what_was_accepted(),
                );
                future::or(self.gossip(), kept).await;
            }
            Some(etcd) => future::or(self.gossip(), self.follow_etcd(etcd)).await,
        }
    }

    /// What the configuration asks for and the map does not follow, while data cannot be moved.
    fn say_what_is_kept(&self, map: &ClusterMap) {
        let node = &self.setup.node;
        let known = map.node(node.id).filter(|_| map.is_open());
        let Some(known) = known.filter(|_| map.nodes().len() > 1) else {
            return;
        };
        if known.rack != node.rack || known.weight != node.weight {
            log::warn!(
                "the configuration says rack {:?} and weight {}; the cluster's map keeps rack {:?} and weight {} for this node \
                 until data can be moved",
                node.rack,
                node.weight,
                known.rack,
                known.weight
            );
        }
    }

    /// `map` was decided, somewhere: goes by it from now on, if it is newer.
    fn learn(self: &Rc<Self>, map: ClusterMap) {
        let known = self.map();
        if map.cluster() != known.cluster() {
            log::warn!("a map of another cluster, {}, is ignored", map.cluster());
            return;
        }
        let is_older = map.epoch() < known.epoch() && !rt::planted(Bug::OlderMapTaken);
        if is_older || map.epoch() == known.epoch() {
            return;
        }
        log::info!("{}", describe(&known, &map, self.own()));
        let map = Arc::new(map);
        self.map.replace(Arc::clone(&map));
        self.gossip.borrow_mut().map_changed(&map);
        self.tell();
        self.follow_moved(&known, &map);
        self.ask_to_keep();
        drop(rt::spawn(Rc::clone(self).keep_known_map()));
    }

    /// Answers what another node, or a newcomer, asks.
    pub async fn serve(self: &Rc<Self>, ask: Ask) -> Said {
        match ask {
            Ask::Gossip(bytes) => self.on_gossip(&bytes),
            Ask::Register(bytes) => match self.on_register(&bytes).await {
                Some(answer) => Said::Register(answer),
                None => Said::Busy,
            },
            Ask::Map(at_least) => {
                let map = self.map();
                match map.epoch() >= at_least {
                    true => Said::Map(map.to_json().into()),
                    false => Said::Busy,
                }
            }
            Ask::Join(bytes) => self.on_join(&bytes).await,
            Ask::TakeMap(bytes) => match wish::read(&bytes) {
                Some(map) => {
                    self.learn(map);
                    Said::Done
                }
                None => Said::Refused("what it hands over is no map".to_owned()),
            },
        }
    }
}

/// What has changed between two maps, for the log.
fn describe(old: &ClusterMap, new: &ClusterMap, own: NodeId) -> String {
    let mut text = format!("the cluster's map is that of epoch {}", new.epoch());
    for node in new.nodes() {
        match old.node(node.id) {
            Some(known) if known == node => {}
            Some(known) => {
                text += &format!("; node {} {}", node.id.0, what_is_new(known, node));
            }
            None => {
                let (host, port) = (&node.host, node.peer_port);
                text += &format!("; node {} joins at {host}:{port}", node.id.0);
            }
        }
    }
    for node in old
        .nodes()
        .iter()
        .filter(|node| new.node(node.id).is_none())
    {
        text += &format!("; node {} was removed", node.id.0);
    }
    if new.is_open() != old.is_open() {
        text += "; the cluster holds data from now on, and no more nodes can join";
    }
    if new.keepers() != old.keepers() {
        let keepers: Vec<String> = new
            .keepers()
            .nodes
            .iter()
            .map(|id| id.0.to_string())
            .collect();
        text += &format!("; it is kept by the nodes {}", keepers.join(", "));
    }
    if new.copies() != old.copies() {
        text += &format!(
            "; each key has {} of {} replicas",
            new.copies(),
            new.replicas()
        );
    }
    if new.node(own).is_none() {
        text += "; this node is not in it";
    }
    text
}

/// What has changed of a node.
fn what_is_new(old: &Node, new: &Node) -> String {
    let mut changes = Vec::new();
    if !elsewhere::is_at(old, new) {
        let [old, new] = [old, new].map(|node| format!("{}:{}", node.host, node.peer_port));
        changes.push(format!("is now at {new} (it was at {old})"));
    }
    let numbers = [
        ("port", [old.port, new.port].map(u32::from)),
        ("core-port", [old.core_port, new.core_port].map(u32::from)),
        ("http-port", [old.http_port, new.http_port].map(u32::from)),
        ("weight", [old.weight, new.weight]),
        ("cores", [old.cores, new.cores].map(u32::from)),
    ];
    for (name, [old, new]) in numbers {
        if old != new {
            changes.push(format!("has {name} {new} (it had {old})"));
        }
    }
    if old.rack != new.rack {
        changes.push(format!(
            "is in rack {:?} (it was in {:?})",
            new.rack, old.rack
        ));
    }
    if old.state != new.state {
        changes.push(format!("is {:?} (it was {:?})", new.state, old.state));
    }
    changes.join(", ")
}
