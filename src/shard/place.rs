//! This core's part of the node's place in its cluster: who the node is, the newest view, and the
//! versions that it may make for all replicas.
//!
//! Core 0 lives through all of it (`membership`); the others are told.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use super::siblings::{Job, Message, Said};
use super::{NodeFacts, Shard, Stage, directory};
use crate::cluster::map::{ClusterMap, Node, NodeId, State, Uuid};
use crate::cluster::member::Timing;
use crate::cluster::ring::Vnodes;
use crate::config::{Config, Metadata};
use crate::error::{Error, Result};
use crate::membership::etcd::{Etcd, begin_in_etcd};
use crate::membership::knock::Door;
use crate::membership::{
    self, AHEAD_MIN, Ask, Begun, Ceiling, Founding, Membership, Reach, Said as Answered, Setup,
    View,
};
use crate::rt;
use crate::rt::sync::Signal;
use crate::storage::identity::Identity;
use crate::types::{CoreId, UnixMillis, Version};

/// Below the ceiling's last moments the next one is asked for.
const CEILING_SOON_MS: u64 = AHEAD_MIN.as_millis() as u64;

/// What every core is told before it opens its part of the data.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// Whose data it is, and how it lies.
    pub identity: Identity,
    /// The node's cluster.
    pub cluster: Uuid,
    /// All versions of this start are above it.
    pub ceiling: UnixMillis,
}

/// How a core begins.
pub struct Claim {
    /// On core 0: keeps others out of the data directory.
    pub lock: Option<rt::DirLock>,
    /// What all are told.
    pub beginning: Beginning,
    /// On core 0: how the node comes to its cluster.
    pub begun: Option<Begun>,
}

/// A core's part.
pub struct Place {
    /// The node's number.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: Uuid,
    view: RefCell<Option<Arc<View>>>,
    came: Signal,
    /// On core 0.
    membership: OnceCell<Rc<Membership>>,
    /// On core 0.
    raising: Option<Ceiling>,
    /// This core may make versions below it.
    ceiling: Cell<UnixMillis>,
    is_raising: Cell<bool>,
    /// It could not be raised when that was tried last.
    is_raise_refused: Cell<bool>,
}

impl Place {
    /// What a core knows at first.
    pub fn new(core: CoreId, config: &Config, beginning: Beginning) -> Place {
        let is_first = core == CoreId(0);
        let Beginning {
            identity,
            cluster,
            ceiling,
        } = beginning;
        Place {
            node: NodeId(identity.node),
            cluster,
            view: RefCell::new(None),
            came: Signal::default(),
            membership: OnceCell::new(),
            raising: is_first.then(|| Ceiling::new(config.dir.clone(), ceiling)),
            ceiling: Cell::new(ceiling),
            is_raising: Cell::new(false),
            is_raise_refused: Cell::new(false),
        }
    }

    /// The newest view; `None` only before the core takes clients.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    /// On core 0, once the node has its place.
    pub fn membership(&self) -> Option<&Rc<Membership>> {
        self.membership.get()
    }
}

/// Core 0: makes the data directory this node's, and finds out who the node is, however long it
/// takes to be let into a cluster. `None`: the node was asked to stop before that was done.
pub async fn begin(config: &Config, facts: &NodeFacts, cores: u16) -> Result<Option<Claim>> {
    let lock = directory::lock(config).await?;
    let node = describe(config, facts, cores);
    let door = Door {
        key: facts.cluster_key.clone(),
    };
    let begun = match Etcd::of(config) {
        None => membership::begin(&config.dir, &facts.join, &node, &door).await?,
        Some(etcd) => {
            let how = founding(config, false);
            begin_in_etcd(&config.dir, &etcd, how, &node, &door).await?
        }
    };
    let Some(begun) = begun else {
        return Ok(None);
    };
    let (number, cluster) = match &begun {
        Begun::Founder(uuid) => (config.node_id, membership::uuid_of_cluster(*uuid)),
        Begun::Member(record) => {
            let Some(place) = &record.place else {
                unreachable!("a member has a place");
            };
            refuse_other_node(config, place.node)?;
            let known = place.map.node(place.node);
            if let Some(known) = known.filter(|known| known.cores != cores)
                && place.map.nodes().len() > 1
            {
                return Err(Error::Setup(format!(
                    "its cluster knows this node with {} cores, not {cores}: another number is for a node that is \
                     alone, as yet",
                    known.cores
                )));
            }
            (place.node.0, place.map.cluster())
        }
    };
    let Some(identity) = directory::claim(config, cores, number).await? else {
        return Ok(None);
    };
    let beginning = Beginning {
        identity,
        cluster,
        ceiling: membership::read_ceiling(&config.dir).await?,
    };
    Ok(Some(Claim {
        lock: Some(lock),
        beginning,
        begun: Some(begun),
    }))
}

/// What a cluster is to be that this node founds.
fn founding(config: &Config, is_open: bool) -> Founding {
    Founding {
        vnodes: Vnodes::new(config.vnodes).unwrap_or(Vnodes::DEFAULT),
        replicas: config.replicas,
        is_open,
    }
}

/// The directory is that of `node`. Whoever says nothing of the number means that of the directory.
fn refuse_other_node(config: &Config, NodeId(node): NodeId) -> Result<()> {
    let says_nothing = config.node_id == Config::default().node_id;
    let is_given = !config.join.is_empty() || config.cluster.metadata == Metadata::Etcd;
    match says_nothing || config.node_id == node || is_given {
        true => Ok(()),
        false => Err(Error::Setup(format!(
            "cannot use the data directory {}: it belongs to node {node}, this is node {}",
            config.dir.display(),
            config.node_id
        ))),
    }
}

/// The node as others are to know it; its host is empty if it does not know that itself.
fn describe(config: &Config, facts: &NodeFacts, cores: u16) -> Node {
    let bound = facts.address.ip();
    let host = match (config.announce_host.as_str(), bound.is_unspecified()) {
        ("", true) => String::new(),
        ("", false) => bound.to_string(),
        (host, _) => host.to_owned(),
    };
    Node {
        id: NodeId(config.node_id),
        uuid: Uuid(0),
        host,
        port: facts.address.port(),
        core_port: match config.announce_core_port {
            0 => facts.core_ports[0],
            port => port,
        },
        peer_port: facts.peer_ports[0],
        http_port: facts.http.port(),
        rack: config.rack.clone(),
        weight: config.weight,
        cores,
        state: State::Alive,
    }
}

impl Shard {
    /// Core 0: takes the node's place in its cluster, when all cores have opened their data.
    pub(super) async fn take_place(
        self: &Rc<Self>,
        begun: Begun,
        reach: Rc<dyn Reach>,
    ) -> Result<()> {
        let mut node = Node {
            id: self.place.node,
            ..describe(&self.config, &self.facts, self.map.cores())
        };
        let record = match begun {
            Begun::Member(record) => *record,
            Begun::Founder(uuid) => {
                node.uuid = uuid;
                let founder = with_some_host(node.clone());
                let how = founding(&self.config, self.has_data().await);
                membership::found(&self.config.dir, uuid, founder, how).await?
            }
        };
        node.uuid = record.uuid;
        let known = record.place.as_ref().map(|place| &place.map);
        if let Some(map) = known {
            say_replicas(self.config.replicas, map);
        }
        if let Some(map) = known.filter(|map| node.host.is_empty() && map.nodes().len() > 1)
            && let Some(known) = map.node(node.id)
        {
            node.host.clone_from(&known.host);
        }
        let shard = Rc::downgrade(self);
        let setup = Setup {
            dir: self.config.dir.clone(),
            node,
            timing: timing(&self.config),
            etcd: Etcd::of(&self.config),
            reach,
            join: self.facts.join.clone(),
            door: Rc::new(Door {
                key: self.facts.cluster_key.clone(),
            }),
            tell: Box::new(move |view| tell_all(&shard, view)),
        };
        let membership = Membership::new(setup, record);
        let is_first = self.place.membership.set(Rc::clone(&membership)).is_ok();
        assert!(is_first, "a node takes its place once");
        let shard = Rc::clone(self);
        rt::spawn(async move {
            // Others try to reach it as soon as they hear of it.
            shard.reached(Stage::Listening).await;
            if shard.all_listen().await {
                future::or(membership.run(), shard.reached(Stage::Stopping)).await;
            }
        });
        Ok(())
    }

    /// On core 0: returns when this node must not go on, and why.
    pub(super) async fn fenced(&self) -> Error {
        match self.place.membership() {
            Some(membership) => membership.fenced().await,
            None => std::future::pending().await,
        }
    }

    /// True if some core has a record: also one of a node that had no cluster yet.
    async fn has_data(self: &Rc<Self>) -> bool {
        let mut records = 0;
        for core in (0..self.map.cores()).map(CoreId) {
            if let Some(Said::Report(report)) = self.do_on(core, Job::Report).await {
                records += report.sizes.records;
            }
        }
        records > 0
    }

    /// Returns when this core knows its place.
    pub(super) async fn has_place(&self) {
        let is_known = || self.place.view.borrow().is_some();
        self.place.came.wait_for(|| is_known().then_some(())).await;
    }

    /// There is a newer view.
    pub(super) fn take_view(&self, view: Arc<View>) {
        if view.map.is_open() {
            self.store.open_for_writes();
        }
        self.learn_view(Arc::clone(&view));
        self.place.view.replace(Some(view));
        self.place.came.wake_all();
    }

    /// Has the cluster know that it holds data as soon as somebody wants to write for the first
    /// time.
    pub(super) async fn open_when_wanted(self: Rc<Self>) {
        while !self.is_stopping() {
            let wanted = async {
                self.store.is_wanted().await;
                self.ask_to_open().await
            };
            let stopping = async {
                self.reached(Stage::Stopping).await;
                false
            };
            match future::or(wanted, stopping).await {
                true => return self.store.open_for_writes(),
                false => self.store.turn_writers_away(),
            }
        }
        self.store.give_up_opening();
    }

    async fn ask_to_open(self: &Rc<Self>) -> bool {
        let said = self.do_on(CoreId(0), Job::OpenCluster).await;
        matches!(said, Some(Said::Done(true)))
    }

    /// `Job::OpenCluster`, on core 0.
    pub(super) async fn open_cluster(&self) -> bool {
        match self.place.membership() {
            Some(membership) => membership.open().await,
            None => false,
        }
    }

    /// A version for a write that goes to replicas: above all that this core has made or seen, and
    /// never made twice, whatever becomes of this node. An error: none can be made now, and nothing
    /// was done.
    pub async fn replicated_version(self: &Rc<Self>) -> Result<Version> {
        loop {
            let next = self.next_version(rt::wall_ms());
            let (needed, ceiling) = (next.millis(), self.place.ceiling.get());
            if needed + CEILING_SOON_MS >= ceiling && !self.place.is_raising.replace(true) {
                let shard = Rc::clone(self);
                drop(rt::spawn(async move {
                    let is_raised = shard.raise_ceiling(needed).await;
                    shard.place.is_raise_refused.set(!is_raised);
                    shard.place.is_raising.set(false);
                    shard.place.came.wake_all();
                }));
            }
            if needed < ceiling {
                return Ok(next);
            }
            let is_over = || !self.place.is_raising.get();
            self.place.came.wait_for(|| is_over().then_some(())).await;
            // What another write has asked for may be less than this one needs.
            if self.place.is_raise_refused.get() && self.place.ceiling.get() <= needed {
                return Err(Error::DiskFails);
            }
        }
    }

    /// False: it cannot be raised now.
    async fn raise_ceiling(self: &Rc<Self>, needed: UnixMillis) -> bool {
        let Some(Said::Ceiling(Some(ceiling))) =
            self.do_on(CoreId(0), Job::RaiseCeiling(needed)).await
        else {
            return false;
        };
        let raised = ceiling.max(self.place.ceiling.get());
        self.place.ceiling.set(raised);
        true
    }

    /// `Job::RaiseCeiling`, on core 0.
    pub(super) async fn raise_ceiling_here(&self, needed: UnixMillis) -> Option<UnixMillis> {
        match self.place.raising.as_ref()?.raise(needed).await {
            Ok(ceiling) => Some(ceiling),
            Err(error) => {
                log::warn!("{error}: no versions are made for replicated writes");
                None
            }
        }
    }

    /// Answers what another node, or a newcomer, asks of the node as a member of its cluster.
    pub async fn serve_member(&self, ask: Ask) -> Answered {
        match self.place.membership() {
            Some(membership) => membership.serve(ask).await,
            None => Answered::Busy, // not yet, or not this core
        }
    }
}

/// The founder's configuration says how many replicas there are.
fn say_replicas(wanted: u8, map: &ClusterMap) {
    if map.replicas() != wanted {
        log::warn!(
            "the configuration says {wanted} replicas of each key; this cluster was founded with {}, and keeps that",
            map.replicas()
        );
    }
}

/// A founder that does not know its address yet is known by one that nobody else uses.
fn with_some_host(mut node: Node) -> Node {
    if node.host.is_empty() {
        node.host = "localhost".to_owned();
    }
    node
}

fn timing(config: &Config) -> Timing {
    let of = Duration::from_millis;
    Timing {
        interval: of(config.gossip_interval_ms),
        suspect: of(config.suspect_after_ms),
        dead: of(config.dead_after_ms),
    }
}

fn tell_all(shard: &Weak<Shard>, view: &Arc<View>) {
    let Some(shard) = shard.upgrade() else {
        return; // the node has ended
    };
    for core in shard.other_cores() {
        shard.siblings.tell(core, Message::View(Arc::clone(view)));
    }
    shard.take_view(Arc::clone(view));
}
