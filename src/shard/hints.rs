//! Hints on this core: keeping for a replica what it has missed, here or on another node, and
//! handing it on when the replica is back.
//!
//! What a replica has not stored is kept by the core that coordinates the write; where that core
//! cannot, by a core of another node. Core by core and node by node, the oldest hints are handed on
//! as soon as the node may be asked, some at a time and at a pace that leaves room for clients; a
//! hint is dropped when the replica has said that it, or something newer, is synced there. It goes
//! to whichever core of the node holds the key by now; and if the node does not hold it any more,
//! to all who do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::cluster::Way;
use super::replica::before;
use super::{Shard, Stage};
use crate::cluster::map::{Holder, NodeId};
use crate::config::{
    Config, HINT_BATCH_BYTES_MAX, HINT_BYTES_PER_S, HINT_FILE_BYTES, HINT_WAITING_BYTES_MAX,
    HINTS_AT_ONCE,
};
use crate::error::Result;
use crate::membership::View;
use crate::protocol::peer::{self, Answer, Certainty};
use crate::replication::coordinate::{Mutation, Replicas};
use crate::replication::quorum::write::Ack;
use crate::rt::{self, Bug, Queue};
use crate::storage::hints::{Backlog, HintLimits, HintStats, Kept, Portion};
use crate::storage::record::Record;
use crate::types::{CoreId, KeyHash, Position, Version};

/// How many other nodes are asked to keep what this one cannot.
const STAND_INS_MAX: usize = 2;
/// It is looked so often whether hints can be handed on.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Pauses after hints were not taken.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A hint takes this much of the pace at least.
const HINT_COST_MIN: usize = 1 << 10;

/// What one core's hints may take.
pub(super) fn limits(config: &Config, cores: u16) -> HintLimits {
    let bytes_max = config.hint_max_bytes.0 / u64::from(cores);
    HintLimits {
        bytes_max,
        age_max_ms: config.hint_max_age_s * 1000,
        file_bytes: HINT_FILE_BYTES.min(bytes_max / 8),
        batch_bytes_max: HINT_BATCH_BYTES_MAX,
        waiting_bytes_max: HINT_WAITING_BYTES_MAX,
    }
}

/// What a core tells about its hints.
#[derive(Clone, Debug, Default)]
pub struct HintReport {
    /// What it keeps, by the node that it is for.
    pub backlog: BTreeMap<NodeId, Backlog>,
    /// What it has done since the start.
    pub stats: HintStats,
}

impl HintReport {
    /// What all of `reports` tell together.
    pub fn total<'r>(reports: impl Iterator<Item = &'r HintReport>) -> HintReport {
        let mut total = HintReport::default();
        for report in reports {
            for (node, left) in &report.backlog {
                let sum = total.backlog.entry(*node).or_default();
                sum.hints += left.hints;
                sum.bytes += left.bytes;
            }
            total.stats.add(&report.stats);
        }
        total
    }

    /// What is kept for all nodes together.
    pub fn left(&self) -> Backlog {
        Backlog {
            hints: self.backlog.values().map(|left| left.hints).sum(),
            bytes: self.backlog.values().map(|left| left.bytes).sum(),
        }
    }
}

/// By node: how far this core is with handing on what it keeps.
#[derive(Default)]
pub(super) struct HandOffs(RefCell<BTreeMap<NodeId, HandOff>>);

#[derive(Default)]
struct HandOff {
    /// Somebody does it.
    is_running: bool,
    /// The log says that it has begun: so many were handed on since.
    begun: Option<u64>,
    /// Not before this.
    again_at: Duration,
    pause: Duration,
}

/// How handing on came to its end.
enum End {
    /// Nothing is left.
    Done,
    /// A replica has not taken something, or a file cannot be read.
    Refused,
    /// The node is away, or this one stops.
    Interrupted,
}

impl Shard {
    /// Has `mutation` kept for `home`: here if it can be, else on another node.
    pub(super) async fn keep_hint(
        self: &Rc<Self>,
        home: Holder,
        mutation: &Mutation,
        deadline: Duration,
    ) -> Ack {
        if self.config.hint_max_bytes.0 == 0 {
            return Ack::Refused;
        }
        // What is sent in vain until its deadline is to be kept all the same.
        let deadline = deadline.max(self.replica_deadline());
        let record = Record::new(mutation.meta, &mutation.key, &mutation.value);
        let mut is_in_doubt = false;
        match self.keep_here(home.node, record, deadline).await {
            Kept::Synced => return Ack::Stored,
            Kept::Uncertain => is_in_doubt = true,
            Kept::Refused => {}
        }
        let hash = KeyHash::of(&mutation.key);
        for stand_in in self.stand_ins(home.node, hash) {
            let way = Way::of(self);
            match way.hint_at(stand_in, home, mutation, deadline).await {
                Ack::Stored => return Ack::Stored,
                Ack::Lost => is_in_doubt = true,
                Ack::Refused => {}
            }
        }
        match is_in_doubt {
            true => Ack::Lost,
            false => Ack::Refused,
        }
    }

    /// Keeps `record` for `node` on this core. A hint, too, may be the first that the cluster holds
    /// of data.
    async fn keep_here(self: &Rc<Self>, node: NodeId, record: Record, deadline: Duration) -> Kept {
        match before(deadline, self.store.wait_open()).await {
            Some(Ok(())) => self.hints.keep(node.0, record).await,
            _ => Kept::Refused,
        }
    }

    /// Who else may keep something for `home`.
    fn stand_ins(&self, home: NodeId, hash: KeyHash) -> Vec<Holder> {
        let Some(view) = self.view() else {
            return Vec::new();
        };
        let others =
            view.map.nodes().iter().filter(|node| {
                node.id != home && node.id != view.own && view.may_be_asked(node.id)
            });
        let mut others: Vec<Holder> = others
            .map(|node| Holder {
                node: node.id,
                core: CoreId((hash.0 % u64::from(node.cores)) as u16),
            })
            .collect();
        if !others.is_empty() {
            let first = (hash.0 % others.len() as u64) as usize;
            others.rotate_left(first);
        }
        others.truncate(STAND_INS_MAX);
        others
    }

    /// `Request::Hint`: keeps `mutation` for `home`, which is on another node.
    pub(super) fn serve_hint(
        self: &Rc<Self>,
        home: NodeId,
        mutation: peer::Mutation<'_>,
        deadline: Duration,
        give: impl FnOnce(&Answer<'_>) + 'static,
    ) {
        let view = self.view();
        let is_known = view.is_some_and(|view| view.own != home && view.map.node(home).is_some());
        if !is_known {
            return give(&Answer::NotMine);
        }
        if let Some(why) = self.cannot_be(&mutation) {
            return give(&Answer::failed(Certainty::NotDone, why));
        }
        let record = Record::new(mutation.meta, mutation.key, mutation.value);
        let shard = Rc::clone(self);
        rt::spawn(async move {
            match shard.keep_here(home, record, deadline).await {
                Kept::Synced => give(&Answer::Done),
                Kept::Refused => give(&Answer::Busy),
                Kept::Uncertain => {
                    let why = "the disk failed with the hint";
                    give(&Answer::failed(Certainty::Unknown, why));
                }
            }
        });
    }

    /// What this core tells about its hints.
    pub(super) fn hint_report(&self) -> HintReport {
        let backlog = self.hints.backlog().into_iter();
        HintReport {
            backlog: backlog.map(|(node, left)| (NodeId(node), left)).collect(),
            stats: self.hints.stats(),
        }
    }

    /// Hands on what is kept whenever its node is there, until the node stops.
    pub(super) async fn hand_off(self: Rc<Self>) {
        while !self.is_stopping() {
            future::or(self.hints.some(), self.reached(Stage::Stopping)).await;
            for node in self.hints.nodes().into_iter().map(NodeId) {
                self.look_after(node).await;
            }
            future::or(rt::sleep(LOOK_EVERY), self.reached(Stage::Stopping)).await;
        }
    }

    /// Sees to what is kept for `node`.
    async fn look_after(self: &Rc<Self>, node: NodeId) {
        let is_running = |hand_off: &HandOff| hand_off.is_running;
        if self.hand_offs.0.borrow().get(&node).is_some_and(is_running) {
            return;
        }
        self.hints.expire(node.0, rt::wall_ms()).await;
        if !self.may_hand_to(node) || self.is_stopping() {
            return;
        }
        {
            let mut hand_offs = self.hand_offs.0.borrow_mut();
            let hand_off = hand_offs.entry(node).or_default();
            if rt::now() < hand_off.again_at {
                return;
            }
            hand_off.is_running = true;
        }
        let shard = Rc::clone(self);
        rt::spawn_in(Queue::Background, async move {
            let end = shard.hand_all_to(node).await;
            shard.note_end(node, &end);
        });
    }

    /// True if `node` may be asked, or is no node of the cluster any more: then others have what
    /// was its.
    fn may_hand_to(&self, node: NodeId) -> bool {
        let may = |view: &View| view.may_be_asked(node) || view.map.node(node).is_none();
        self.view().is_some_and(|view| may(&view))
    }

    async fn hand_all_to(self: &Rc<Self>, node: NodeId) -> End {
        loop {
            if self.is_stopping() || !self.may_hand_to(node) {
                return End::Interrupted;
            }
            let portion = match self.hints.next(node.0).await {
                Ok(Some(portion)) => portion,
                Ok(None) if self.is_stopping() => return End::Interrupted,
                Ok(None) => return End::Done,
                Err(error) => {
                    log::warn!("{error}: hints for node {} wait", node.0);
                    return End::Refused;
                }
            };
            let is_forgotten = rt::planted(Bug::HintForgotten);
            if is_forgotten {
                self.hints.done(&portion);
            }
            if !self.hand(node, &portion).await && !is_forgotten {
                return End::Refused;
            }
            if !is_forgotten {
                self.hints.done(&portion);
            }
            self.note_handed(node, portion.records.len() as u64);
        }
    }

    /// Hands on `portion`; true if all of it is where it belongs.
    async fn hand(self: &Rc<Self>, node: NodeId, portion: &Portion) -> bool {
        for together in portion.records.chunks(HINTS_AT_ONCE) {
            let began = rt::now();
            let tasks: Vec<_> = together
                .iter()
                .map(|record| {
                    let (shard, record) = (Rc::clone(self), record.clone());
                    rt::spawn_in(Queue::Background, async move {
                        shard.hand_one(node, &record).await.is_ok()
                    })
                })
                .collect();
            let mut all = true;
            for task in tasks {
                all &= task.await;
            }
            if !all {
                return false;
            }
            let costs = together
                .iter()
                .map(|it| it.bytes().len().max(HINT_COST_MIN));
            let cost = costs.sum::<usize>() as f64 / HINT_BYTES_PER_S as f64;
            let took = rt::now().saturating_sub(began);
            rt::sleep(Duration::from_secs_f64(cost).saturating_sub(took)).await;
        }
        true
    }

    /// Has those store `record` who are to have it: `node`, or if it does not hold the key any
    /// more, all who do. An error: somebody has not.
    async fn hand_one(self: &Rc<Self>, node: NodeId, record: &Record) -> Result<(), ()> {
        let view = self.view().ok_or(())?;
        let holders = view.map.holders_of(Position::of(record.key()));
        let own = holders.iter().filter(|holder| holder.node == node);
        let mut to: Vec<Holder> = own.copied().collect();
        if to.is_empty() {
            to = holders.to_vec();
        }
        let mut meta = record.meta();
        if rt::planted(Bug::HintRestamped) {
            let version = Way::of(self).version(Version::ZERO).await;
            meta.version = version.map_err(|_| ())?;
        }
        let mutation = Rc::new(Mutation {
            meta,
            key: record.key().to_vec(),
            value: record.view().value().to_vec(),
        });
        for holder in to {
            let deadline = self.replica_deadline();
            let way = Way::of(self);
            match way.write(holder, Rc::clone(&mutation), deadline).await {
                Ack::Stored => {}
                Ack::Refused | Ack::Lost => return Err(()),
            }
        }
        Ok(())
    }

    /// So many hints were handed on to `node`.
    fn note_handed(&self, node: NodeId, count: u64) {
        let left = self.hints.backlog().get(&node.0).copied();
        let left = left.unwrap_or_default().hints;
        let mut hand_offs = self.hand_offs.0.borrow_mut();
        let hand_off = hand_offs.entry(node).or_default();
        hand_off.pause = Duration::ZERO;
        if hand_off.begun.is_none() {
            let NodeId(number) = node;
            let all = count + left;
            log::info!(
                "node {number} is back: {all} hints that core {} keeps for it are handed on",
                self.id.0
            );
        }
        hand_off.begun = Some(hand_off.begun.unwrap_or(0) + count);
    }

    fn note_end(&self, node: NodeId, end: &End) {
        let mut hand_offs = self.hand_offs.0.borrow_mut();
        let Some(hand_off) = hand_offs.get_mut(&node) else {
            return;
        };
        let (NodeId(number), CoreId(core)) = (node, self.id);
        hand_off.is_running = false;
        match end {
            End::Done => {
                if let Some(handed) = hand_off.begun {
                    log::info!("node {number} has all {handed} hints that core {core} kept for it");
                }
                hand_offs.remove(&node);
            }
            End::Interrupted => {
                if let Some(handed) = hand_off.begun.take() {
                    log::info!(
                        "handing hints on to node {number} is interrupted: it has {handed} of those of core {core}"
                    );
                }
            }
            End::Refused => {
                let before = hand_off.pause;
                hand_off.pause = (before * 2).clamp(PAUSES.0, PAUSES.1);
                if before < PAUSES.1 && hand_off.pause == PAUSES.1 {
                    log::warn!(
                        "node {number} may be asked and takes no hints of core {core}: they wait, and \
                         it is asked again every {:?}, until they are too old",
                        PAUSES.1
                    );
                }
                hand_off.again_at = rt::now() + hand_off.pause;
            }
        }
    }
}
