//! One operation over the replicas of its key, carried out: asks them, waits, and does what the
//! verdicts of [`quorum`](super::quorum) say.
//!
//! A [`Coordinator`] is a core's; what lies between it and the replicas is behind [`Replicas`].
//! Every operation has a deadline, a moment of [`rt::now`], and is told by then what may be said of
//! it. What it has sent goes on by itself: a write that is acknowledged at its level still reaches
//! the other replicas, and a read that is answered still repairs what it found to be behind.
//!
//! Nothing is kept here of an operation once it has its answer but what is on its way: how much
//! that is, the links to the replicas bound, which refuse at once what they have no room for.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;
use smallvec::SmallVec;

use super::latency::Both;
use super::quorum::read::Want;
use super::quorum::write::Ack;
use super::quorum::{Ranking, Reach, Replica, Rules, Unavailable};
use crate::cluster::map::{Holder, NodeId};
use crate::error::Result;
use crate::rt;
use crate::rt::sync::Signal;
use crate::types::{Meta, UnixMillis, Version};

mod barrier;
mod read;
mod usual;
mod write;

use barrier::Gatherings;
use usual::Answers;

/// As many replicas as this are kept without an allocation.
const REPLICAS_USUAL: usize = 5;

/// What a coordinator asks of the replicas, wherever they are. Each answers when it has, or when it
/// is known that it will not; whoever asks does not wait beyond the deadline.
pub trait Replicas: 'static {
    /// Has `to` store `mutation`.
    fn write(
        self: Rc<Self>,
        to: Holder,
        mutation: Rc<Mutation>,
        deadline: Duration,
    ) -> impl Future<Output = Ack>;

    /// What `to` holds; `None` if it does not say.
    fn read(
        self: Rc<Self>,
        to: Holder,
        question: Rc<Question>,
        want: Want,
        deadline: Duration,
    ) -> impl Future<Output = Option<Held>>;

    /// The clock of `to`, read after this was asked; `None` if it does not say.
    fn clock(
        self: Rc<Self>,
        to: Holder,
        deadline: Duration,
    ) -> impl Future<Output = Option<Version>>;

    /// Has some stand-in keep `mutation` for `home`.
    fn hint(
        self: Rc<Self>,
        home: Holder,
        mutation: Rc<Mutation>,
        deadline: Duration,
    ) -> impl Future<Output = Ack>;

    /// A version that nobody has or will have, above `heard` and above all that this core has seen.
    fn version(self: Rc<Self>, heard: Version) -> impl Future<Output = Result<Version>>;
}

/// One versioned record on its way to replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Version, expiry, kind.
    pub meta: Meta,
    /// Its key.
    pub key: Vec<u8>,
    /// Empty for a tombstone.
    pub value: Vec<u8>,
}

/// What is asked of the replicas by a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Of which key.
    pub key: Vec<u8>,
    /// The moment at which what has expired has no value: one for all of them.
    pub now: UnixMillis,
}

/// What a replica holds of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// [`Meta::ABSENT`] if it has no record.
    pub meta: Meta,
    /// The value, if it was wanted and the record is live at the moment of the question.
    pub value: Option<Vec<u8>>,
}

/// What a key is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: Vec<u8>,
    /// `None`: nothing.
    pub value: Option<Vec<u8>>,
    /// Until when; 0: for ever.
    pub expiry: UnixMillis,
}

/// A write that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its version.
    pub version: Version,
    /// How many replicas had synced it when this was told.
    pub replicas: u8,
}

/// The holders of a key, and how far each is from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    holders: SmallVec<[Holder; REPLICAS_USUAL]>,
    reach: SmallVec<[Reach; REPLICAS_USUAL]>,
}

impl Placement {
    /// Who holds the key at place `replica`.
    fn holder(&self, replica: Replica) -> Holder {
        self.holders[usize::from(replica.0)]
    }

    /// Those that are there.
    fn there(&self) -> impl Iterator<Item = (Holder, Reach)> {
        let all = self.holders.iter().copied().zip(self.reach.iter().copied());
        all.filter(|(_, reach)| *reach != Reach::Absent)
    }
}

impl FromIterator<(Holder, Reach)> for Placement {
    fn from_iter<I: IntoIterator<Item = (Holder, Reach)>>(holders: I) -> Placement {
        let mut placement = Placement::default();
        for (holder, reach) in holders {
            placement.holders.push(holder);
            placement.reach.push(reach);
        }
        placement
    }
}

/// What went wrong, by what is known of the operation.
#[derive(Debug)]
pub enum Failure {
    /// FAILED: too few replicas are there. Nothing was sent.
    Unavailable(Unavailable),
    /// FAILED: too few answered, and no replica has the write or will.
    Failed,
    /// UNKNOWN: the write may or may not appear. Once seen it stays.
    Unknown,
    /// FAILED: this node itself cannot write at the moment.
    Here(crate::error::Error),
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Failure {
        Failure::Unavailable(unavailable)
    }
}

/// A core's coordinator.
pub struct Coordinator<R> {
    replicas: Rc<R>,
    rules: Rules,
    /// Who is about to be asked for its clock.
    gatherings: Gatherings,
    /// How long nodes take to answer.
    answers: RefCell<BTreeMap<NodeId, Answers>>,
}

impl<R: Replicas> Coordinator<R> {
    /// One that has heard of nobody yet.
    pub fn new(replicas: Rc<R>, rules: Rules) -> Rc<Coordinator<R>> {
        Rc::new(Coordinator {
            replicas,
            rules,
            gatherings: Gatherings::default(),
            answers: RefCell::default(),
        })
    }

    fn ranking(&self, placement: &Placement) -> Ranking {
        let answers = self.answers.borrow();
        let measured = |(holder, reach): (&Holder, &Reach)| match reach {
            Reach::Live { .. } => {
                let known = answers.get(&holder.node).map(|answers| answers.all);
                Reach::Live {
                    latency_us: known.unwrap_or_default().median_us(),
                }
            }
            other => *other,
        };
        let reach: SmallVec<[Reach; REPLICAS_USUAL]> = placement
            .holders
            .iter()
            .zip(&placement.reach)
            .map(measured)
            .collect();
        Ranking::new(&reach)
    }

    /// How long nodes took to answer within the last minute or two.
    pub fn latencies(&self) -> BTreeMap<NodeId, Both> {
        let mut answers = self.answers.borrow_mut();
        let told = answers.iter_mut();
        told.map(|(node, answers)| (*node, answers.recent.told(rt::now())))
            .collect()
    }

    /// `node` has said what it holds, which was asked at `asked`.
    fn note_read(&self, node: NodeId, asked: Duration) {
        let now = rt::now();
        let mut answers = self.answers.borrow_mut();
        let of_node = answers.entry(node).or_default();
        of_node.note_read(now.saturating_sub(asked), now);
    }

    /// `node` has stored what it was given at `asked`.
    fn note_write(&self, node: NodeId, asked: Duration) {
        let now = rt::now();
        let mut answers = self.answers.borrow_mut();
        let of_node = answers.entry(node).or_default();
        of_node.note_write(now.saturating_sub(asked), now);
    }

    /// After so long an answer of `node` to a read is late.
    fn patience_with_read(&self, node: NodeId) -> Duration {
        let answers = self.answers.borrow();
        let usual = answers.get(&node).map(|answers| answers.reads);
        usual.unwrap_or_default().patience()
    }

    /// After so long an answer of `node` to a write is late.
    fn patience_with_write(&self, node: NodeId) -> Duration {
        let answers = self.answers.borrow();
        let usual = answers.get(&node).map(|answers| answers.writes);
        usual.unwrap_or_default().patience()
    }
}

/// What comes of requests under way, in the order of its coming.
struct Inbox<T> {
    arrived: RefCell<VecDeque<T>>,
    signal: Signal,
}

impl<T> Inbox<T> {
    fn new() -> Rc<Inbox<T>> {
        Rc::new(Inbox {
            arrived: RefCell::default(),
            signal: Signal::default(),
        })
    }

    fn put(&self, what: T) {
        self.arrived.borrow_mut().push_back(what);
        self.signal.wake_all();
    }

    /// The next that comes; `None` if `alarm` goes off before.
    async fn next(&self, alarm: Pin<&mut impl Future<Output = ()>>) -> Option<T> {
        let arrived = self
            .signal
            .wait_for(|| self.arrived.borrow_mut().pop_front());
        let late = async {
            alarm.await;
            None
        };
        future::or(async { Some(arrived.await) }, late).await
    }
}

/// Goes off at `moment` of [`rt::now`].
async fn alarm_at(moment: Duration) {
    rt::sleep(moment.saturating_sub(rt::now())).await;
}
