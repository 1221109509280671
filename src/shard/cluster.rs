//! The cluster as this core sees it, and its way to the replicas of a key: itself, a sibling, or
//! another node's core.
//!
//! Core 0 tells every core each new [`View`]. While it names no other node nothing here is asked at
//! all: the keys are this node's, and a command costs one look at a flag.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use super::replica::CLOCK_MAX;
use super::siblings::{Job, Said};
use super::whole::Told;
use crate::cluster::map::{Holder, NodeId};
use crate::cluster::peers::{PeerAddress, Peers};
use crate::cluster::ring::Vnode;
use crate::config::{OWN_REQUESTS_MAX, READ_REPAIR_ONE_IN, READ_REPAIRS_MAX};
use crate::error::{Error, Result};
use crate::membership::View;
use crate::protocol::peer::{Answer, Certainty, OwnedRequest, Request, Walk, message};
use crate::replication::coordinate::{
    Coordinator, Failure, Held, Mutation, Placement, Question, Replicas,
};
use crate::replication::latency::{Both, BothRecent};
use crate::replication::quorum::read::Want;
use crate::replication::quorum::write::Ack;
use crate::replication::quorum::{Mistake, Reach, Rules, StandIns};
use crate::rt::sync::{Counted, answer_slot};
use crate::rt::{self, Bug, Queue};
use crate::types::{Position, Version};

/// Who was refused for an old map asks again after this.
const STALE_PAUSE: Duration = Duration::from_millis(10);

/// What a core knows of its cluster.
#[derive(Default)]
pub struct Cluster {
    /// There are other nodes.
    is_wide: Cell<bool>,
    view: RefCell<Option<Arc<View>>>,
    coordinator: OnceCell<Rc<Coordinator<Way>>>,
    peers: OnceCell<Rc<Peers>>,
    /// Counts reads at ONE, up to the next that is followed by a repair.
    reads_at_one: Cell<u32>,
    /// Repairs after reads at ONE that are under way.
    repairs: Cell<u32>,
    /// What this core asks its own node as a replica, and has not heard of yet.
    own_requests: Cell<usize>,
    /// How long operations over replicas took.
    pub(super) latencies: RefCell<BothRecent>,
}

impl Shard {
    /// Goes by `view` from now on.
    pub fn learn_view(&self, view: Arc<View>) {
        let is_wide = view.map.nodes().len() > 1;
        self.cluster.is_wide.set(is_wide);
        let keeps_deleted = is_wide && !rt::planted(Bug::TombstoneForgotten);
        self.store.keep_deleted(keeps_deleted);
        if let Some(peers) = self.links() {
            peers.set_epoch(view.map.epoch());
            let map = Arc::clone(&view.map);
            peers.keep_only(move |node| map.node(node).is_some());
            self.expect_who_is_back(&view, peers);
        }
        self.cluster.view.replace(Some(view));
    }

    /// Who may be asked again is tried at once, however often that failed before.
    fn expect_who_is_back(&self, view: &View, peers: &Peers) {
        let before = self.cluster.view.borrow();
        let Some(before) = before
            .as_ref()
            .filter(|_| !rt::planted(Bug::ReturnUnnoticed))
        else {
            return;
        };
        let nodes = view.map.nodes().iter().map(|node| node.id);
        let is_back = |node: &NodeId| view.may_be_asked(*node) && !before.may_be_asked(*node);
        nodes.filter(is_back).for_each(|node| peers.expect(node));
    }

    /// From now on these are the links to other nodes.
    pub fn use_links(&self, peers: Rc<Peers>) {
        let is_first = self.cluster.peers.set(peers).is_ok();
        assert!(is_first, "a core has its links once");
    }

    /// The links to other nodes; `None` before the core has opened its data.
    pub fn links(&self) -> Option<&Rc<Peers>> {
        self.cluster.peers.get()
    }

    /// True if keys may have replicas on other nodes.
    pub fn is_clustered(&self) -> bool {
        self.cluster.is_wide.get()
    }

    /// For a write that began when this node was alone, and was admitted: an error if other nodes
    /// have joined while it waited, before the cluster held data. It would be on this node only.
    pub fn refuse_if_widened(&self) -> Result<()> {
        match self.is_clustered() {
            true => Err(Error::Unopened),
            false => Ok(()),
        }
    }

    /// The newest view; `None` if this node is in no cluster.
    pub fn view(&self) -> Option<Arc<View>> {
        self.cluster.view.borrow().clone()
    }

    /// True if this very core is a replica of what is at `position`.
    pub fn holds(&self, position: Position) -> bool {
        self.holds_all(position, position)
    }

    /// This core, as one of the cluster's; `None` if this node is in no cluster.
    pub fn holder(&self) -> Option<Holder> {
        let view = self.cluster.view.borrow();
        view.as_ref().map(|view| Holder {
            node: view.own,
            core: self.id,
        })
    }

    /// True if this very core is a replica of all that is from `first` to `last`.
    pub fn holds_all(&self, first: Position, last: Position) -> bool {
        let (view, own) = (self.cluster.view.borrow(), self.holder());
        view.as_ref().zip(own).is_some_and(|(view, own)| {
            let vnodes = view.map.vnodes();
            let mut all = vnodes.of(first).0..=vnodes.of(last).0;
            all.all(|vnode| view.map.holders(Vnode(vnode)).contains(&own))
        })
    }

    /// Who holds what is at `position`, and how far each is from here.
    pub fn placement(&self, position: Position) -> Placement {
        let view = self.cluster.view.borrow();
        let view = view.as_ref().expect("only a cluster's keys have replicas");
        let reach = |holder: &Holder| match () {
            () if holder.node == view.own => Reach::Own,
            // How long it takes the coordinator has measured.
            () if view.may_be_asked(holder.node) => Reach::Live { latency_us: 0 },
            () => Reach::Absent,
        };
        let holders = view.map.holders_of(position).iter();
        holders.map(|holder| (*holder, reach(holder))).collect()
    }

    /// Who asks the replicas.
    pub fn coordinator(self: &Rc<Self>) -> &Rc<Coordinator<Way>> {
        self.cluster
            .coordinator
            .get_or_init(|| Coordinator::new(Way::of(self), rules()))
    }

    /// How long nodes take to answer this core.
    pub fn node_latencies(&self) -> BTreeMap<NodeId, Both> {
        let coordinator = self.cluster.coordinator.get();
        coordinator.map_or_else(BTreeMap::new, |coordinator| coordinator.latencies())
    }

    /// True if what is at `position` has the holders that it had by `before`.
    pub fn is_placed_as_by(&self, before: &View, position: Position) -> bool {
        let view = self.cluster.view.borrow();
        view.as_ref().is_some_and(|view| {
            view.map.epoch() == before.map.epoch()
                || view.map.holders_of(position) == before.map.holders_of(position)
        })
    }

    /// `key` is read at ONE: now and then all of its replicas are brought to the same, behind the
    /// answer.
    pub fn repair_now_and_then(self: &Rc<Self>, key: &[u8]) {
        let reads = self.cluster.reads_at_one.get() + 1;
        self.cluster.reads_at_one.set(reads % READ_REPAIR_ONE_IN);
        let open = self.cluster.repairs.get();
        if reads < READ_REPAIR_ONE_IN || open >= READ_REPAIRS_MAX {
            return;
        }
        self.cluster.repairs.set(open + 1);
        let (shard, key) = (Rc::clone(self), key.to_vec());
        rt::spawn_in(Queue::Background, async move {
            let placement = shard.placement(Position::of(&key));
            let deadline = shard.replica_deadline();
            let coordinator = Rc::clone(shard.coordinator());
            let now = rt::wall_ms();
            coordinator.repair(placement, key, now, deadline).await;
            shard.cluster.repairs.set(shard.cluster.repairs.get() - 1);
        });
    }

    /// What `to` tells of `walk`.
    pub(super) async fn ask_walk(
        self: &Rc<Self>,
        to: Holder,
        walk: Walk<'_>,
        deadline: Duration,
    ) -> Came {
        let way = Way(Rc::downgrade(self));
        let asked = way.ask(to, Request::Walk(walk), deadline, came);
        asked.await.unwrap_or(Came::Lost)
    }

    /// When a request that begins now is given up.
    pub fn replica_deadline(&self) -> Duration {
        rt::now() + Duration::from_millis(self.config.replica_timeout_ms)
    }
}

/// What came of asking for a page of keys.
pub(super) enum Came {
    Told(Told),
    /// Nothing, but it may be asked again.
    Again,
    /// Nothing, and another holder is to be asked.
    Lost,
}

fn came(answer: &Answer<'_>) -> Came {
    match answer {
        Answer::Walked(page) => Came::Told(Told::of(page)),
        Answer::Busy | Answer::StaleEpoch { .. } | Answer::NotMine => Came::Again,
        _ => Came::Lost,
    }
}

/// The rules of this node's operations: no others but where a test has planted a mistake.
fn rules() -> Rules {
    let mistake = match () {
        () if rt::planted(Bug::NoWriteBack) => Some(Mistake::NoWriteBack),
        () if rt::planted(Bug::HalfOfReplicas) => Some(Mistake::SmallMajority),
        () => None,
    };
    let stand_ins = match rt::planted(Bug::HintCounted) {
        true => StandIns::Always,
        false => StandIns::AtOne,
    };
    Rules { stand_ins, mistake }
}

/// The way to the replicas.
pub struct Way(Weak<Shard>);

impl Way {
    /// That of `shard`.
    pub(super) fn of(shard: &Rc<Shard>) -> Rc<Way> {
        Rc::new(Way(Rc::downgrade(shard)))
    }

    /// Has `stand_in` keep `mutation` for `home`.
    pub(super) async fn hint_at(
        &self,
        stand_in: Holder,
        home: Holder,
        mutation: &Mutation,
        deadline: Duration,
    ) -> Ack {
        let request = Request::Hint {
            node: home.node.0,
            core: home.core,
            mutation: peer_mutation(mutation),
        };
        ack_of(self.ask(stand_in, request, deadline, ack).await)
    }

    /// Asks `to`, and takes what `read` makes of the answer.
    async fn ask<T: 'static>(
        &self,
        to: Holder,
        request: Request<'_>,
        deadline: Duration,
        read: fn(&Answer<'_>) -> T,
    ) -> Result<T, Certainty> {
        let shard = self.0.upgrade().ok_or(Certainty::NotDone)?;
        let view = shard.view().ok_or(Certainty::NotDone)?;
        if to.node != view.own {
            return ask_elsewhere(&shard, to, request, deadline, read).await;
        }
        // A disk that hangs must not gather what others have answered meanwhile.
        let under_way = &shard.cluster.own_requests;
        if under_way.get() >= OWN_REQUESTS_MAX {
            return Err(Certainty::NotDone);
        }
        let _one_more = Counted::new(under_way);
        if to.core != shard.id {
            let job = Job::Replica(OwnedRequest::new(&request), deadline);
            let said = shard.siblings.ask(to.core, job).wait().await;
            return match said {
                Some(Said::Replica(answer)) => Ok(read(&answer.view())),
                _ => Err(Certainty::Unknown), // that core has ended
            };
        }
        let (answerer, answer) = answer_slot();
        shard.serve_replica(&request, deadline, move |said| answerer.give(read(said)));
        answer.wait().await.ok_or(Certainty::Unknown)
    }
}

/// Asks a core of another node. One that has a newer map refuses what is asked by an older one:
/// that map is on its way here, and if the holder still is one, the question is as good then.
/// (Whether the other holders are the same too is for whoever takes the outcome to see.)
async fn ask_elsewhere<T>(
    shard: &Shard,
    to: Holder,
    request: Request<'_>,
    deadline: Duration,
    read: fn(&Answer<'_>) -> T,
) -> Result<T, Certainty> {
    let peers = shard.cluster.peers.get().ok_or(Certainty::NotDone)?;
    loop {
        let view = shard.view().ok_or(Certainty::NotDone)?;
        let node = view.map.node(to.node).ok_or(Certainty::NotDone)?;
        let address = PeerAddress::of(node, to.core);
        let asked = peers.ask(to, address, &request, deadline).await;
        let answered = asked.map_err(|unanswered| unanswered.certainty())?;
        match answered.answer.view() {
            Answer::StaleEpoch { .. } if rt::now() + STALE_PAUSE < deadline => {
                rt::sleep(STALE_PAUSE).await;
            }
            answer => return Ok(read(&answer)),
        }
    }
}

fn peer_mutation(mutation: &Mutation) -> message::Mutation<'_> {
    message::Mutation {
        meta: mutation.meta,
        key: &mutation.key,
        value: &mutation.value,
    }
}

/// What a replica's answer says of a write.
fn ack(answer: &Answer<'_>) -> Ack {
    match answer {
        Answer::Done => Ack::Stored,
        Answer::Busy | Answer::StaleEpoch { .. } | Answer::NotMine => Ack::Refused,
        Answer::Failed {
            certainty: Certainty::NotDone,
            ..
        } => Ack::Refused,
        _ => Ack::Lost,
    }
}

fn ack_of(asked: Result<Ack, Certainty>) -> Ack {
    asked.unwrap_or_else(|certainty| match certainty {
        Certainty::NotDone => Ack::Refused,
        Certainty::Unknown => Ack::Lost,
    })
}

fn held(answer: &Answer<'_>) -> Option<Held> {
    match answer {
        Answer::Holds(held) => Some(Held {
            meta: held.meta,
            value: held.value.map(<[u8]>::to_vec),
        }),
        _ => None,
    }
}

fn clock(answer: &Answer<'_>) -> Option<Version> {
    match answer {
        Answer::Clock(version) if version.clock < CLOCK_MAX => Some(*version),
        _ => None,
    }
}

impl Replicas for Way {
    async fn write(self: Rc<Self>, to: Holder, mutation: Rc<Mutation>, deadline: Duration) -> Ack {
        let request = Request::Write(peer_mutation(&mutation));
        ack_of(self.ask(to, request, deadline, ack).await)
    }

    async fn read(
        self: Rc<Self>,
        to: Holder,
        question: Rc<Question>,
        want: Want,
        deadline: Duration,
    ) -> Option<Held> {
        let request = Request::Read {
            key: &question.key,
            want: match want {
                Want::Value => message::Want::Value,
                Want::Digest => message::Want::Digest,
            },
            now: question.now,
        };
        self.ask(to, request, deadline, held).await.ok().flatten()
    }

    async fn clock(self: Rc<Self>, to: Holder, deadline: Duration) -> Option<Version> {
        let asked = self.ask(to, Request::Clock, deadline, clock).await;
        asked.ok().flatten()
    }

    async fn hint(self: Rc<Self>, home: Holder, mutation: Rc<Mutation>, deadline: Duration) -> Ack {
        match self.0.upgrade() {
            Some(shard) => shard.keep_hint(home, &mutation, deadline).await,
            None => Ack::Refused,
        }
    }

    async fn version(self: Rc<Self>, heard: Version) -> Result<Version> {
        let shard = self.0.upgrade().ok_or(Error::Busy)?;
        shard.clock.borrow_mut().observe(heard);
        shard.replicated_version().await
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Unavailable(why) => Error::Unavailable {
                need: why.need,
                live: why.live,
            },
            Failure::Failed => Error::Unanswered,
            Failure::Unknown => Error::InDoubt,
            Failure::Here(error) => error,
        }
    }
}
