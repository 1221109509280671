//! Nodes, the network between them, and everything that goes wrong; the replicas, which apply by version.

use std::collections::{BTreeMap, BTreeSet};

use quoit::replication::clock::Clock;
use quoit::replication::quorum::read::Want;
use quoit::replication::quorum::write::Ack;
use quoit::replication::quorum::{Mistake, Replica, Rules, StandIns};
use quoit::types::{Meta, Version};

use crate::coordinator::{Op, OpId};
use crate::linear::{Moment, Operation};

/// Virtual microseconds.
pub type Micros = u64;

const DAY_MS: i64 = 86_400_000;
const EPOCH_MS: i64 = 1_800_000_000_000;
/// How long the faults last.
const STORM: Micros = 400_000;
/// How long everything that is still under way may take then.
const CALM: Micros = 2_000_000;
/// A client that has heard nothing gives up; the coordinator has by then.
pub const DEADLINE: Micros = 20_000;
/// When what was not answered is sent again, and when a read asks another replica.
pub const AGAIN: Micros = 8_000;
pub const SLOW: Micros = 3_000;
const HINTS_EVERY: Micros = 15_000;

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    NoWriteBack,
    NoBarrier,
    HintCounts,
    SmallMajority,
    Restamp,
    AckBeforeSync,
    TimeoutIsFailure,
    SameGeneration,
}

/// What happened, to see that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub events: u64,
    pub done: u64,
    pub failed: u64,
    pub unknown: u64,
    pub barriers: u64,
    pub write_backs: u64,
    pub repairs: u64,
    pub hedged: u64,
    pub values_fetched: u64,
    pub hints: u64,
    pub replayed: u64,
    pub refused: u64,
    pub crashes: u64,
    pub unsynced_lost: u64,
    pub cuts: u64,
    pub lost: u64,
    pub repeated: u64,
}

impl Tally {
    fn counts(&mut self) -> [&mut u64; 17] {
        [
            &mut self.events,
            &mut self.done,
            &mut self.failed,
            &mut self.unknown,
            &mut self.barriers,
            &mut self.write_backs,
            &mut self.repairs,
            &mut self.hedged,
            &mut self.values_fetched,
            &mut self.hints,
            &mut self.replayed,
            &mut self.refused,
            &mut self.crashes,
            &mut self.unsynced_lost,
            &mut self.cuts,
            &mut self.lost,
            &mut self.repeated,
        ]
    }

    pub fn add(&mut self, other: &Tally) {
        let mut other = *other;
        for (sum, count) in self.counts().into_iter().zip(other.counts()) {
            *sum += *count;
        }
    }

    /// Else a run would prove less than it seems to.
    pub fn assert_everything_happened(&mut self) {
        let text = format!("{self:?}");
        assert!(self.counts().iter().all(|count| **count > 10), "{text}");
    }
}

/// A version of the key. The value is unique to the write that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub meta: Meta,
    pub value: Option<u64>,
}

pub const NOTHING: Record = Record {
    meta: Meta::ABSENT,
    value: None,
};

/// What nodes say to each other about an operation.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    AskClock,
    Clock(Version),
    Write(Record),
    Wrote(Ack),
    Read(Want),
    /// Without its value if only the digest was asked for.
    Holds(Record, Want),
    /// Keep this for another replica.
    Hint(Replica, Record),
    Hinted(Replica, Ack),
    /// A hint comes home; then it can be forgotten.
    Replay(u64, Record),
    Replayed(u64),
}

pub enum Event {
    Deliver {
        from: usize,
        to: usize,
        op: OpId,
        message: Message,
    },
    /// The network tells the sender that a message did not arrive, as a refused connection does.
    Undelivered {
        from: usize,
        to: usize,
        op: OpId,
        message: Message,
    },
    /// What a node has written is synced, if it still lives the same life.
    Synced {
        node: usize,
        life: u16,
        asked_by: usize,
        op: OpId,
        message: Message,
    },
    Slow(OpId),
    Again(OpId),
    Deadline(OpId),
    Client(usize),
    Fault,
    Restart(usize),
    ReplayHints(usize),
}

pub struct Node {
    pub is_up: bool,
    /// Counts restarts; part of every version, so that no two lives make the same.
    pub life: u16,
    pub clock: Clock,
    /// How wrong the wall clock is.
    pub offset_ms: i64,
    /// What readers see, and what a crash leaves.
    pub visible: Record,
    durable: Record,
    /// What this node keeps for others.
    hints: BTreeMap<u64, (Replica, Record)>,
    pub ops: BTreeMap<OpId, Op>,
}

/// At which levels clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// QUORUM and ALL: linearizable together.
    Strong,
    /// ONE, too: of what is read nothing is promised but that somebody wrote it.
    Any,
}

pub struct World {
    pub planted: Option<Planted>,
    pub levels: Levels,
    pub rules: Rules,
    pub chance: fastrand::Rng,
    pub now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    events: u64,
    pub nodes: Vec<Node>,
    /// Nodes 0.. are the replicas; the others coordinate and stand in.
    pub replicas: usize,
    clients: usize,
    /// How often clients ask the last node, rather than any.
    pub favourite: f64,
    cut: BTreeSet<(usize, usize)>,
    faults: Faults,
    pub is_storm: bool,
    pub history: Vec<Operation>,
    pub moment: Moment,
    pub next_op: u64,
    pub next_value: u64,
    pub tally: Tally,
}

struct Faults {
    loss: f64,
    repeat: f64,
    late: f64,
    refuse: f64,
    /// Between two of them, and how long a node is away after a crash; at most twice that.
    every: Micros,
    away: Micros,
}

impl World {
    pub fn new(seed: u64, levels: Levels, planted: Option<Planted>) -> World {
        let mut chance = fastrand::Rng::with_seed(seed);
        let replicas = [3, 3, 5][chance.usize(..3)];
        let nodes = replicas + chance.usize(..3);
        let mistake = match planted {
            Some(Planted::NoWriteBack) => Some(Mistake::NoWriteBack),
            Some(Planted::SmallMajority) => Some(Mistake::SmallMajority),
            _ => None,
        };
        let stand_ins = match planted {
            Some(Planted::HintCounts) => StandIns::Always,
            _ => StandIns::AtOne,
        };
        let faults = Faults {
            loss: [0.0, 0.02, 0.1][chance.usize(..3)],
            repeat: [0.0, 0.1][chance.usize(..2)],
            late: [0.0, 0.05, 0.2][chance.usize(..3)],
            refuse: [0.0, 0.02, 0.2][chance.usize(..3)],
            every: [4_000, 20_000, 80_000][chance.usize(..3)],
            away: [3_000, 20_000, 80_000][chance.usize(..3)],
        };
        let mut world = World {
            planted,
            levels,
            rules: Rules { stand_ins, mistake },
            now: 0,
            queue: BTreeMap::new(),
            events: 0,
            nodes: Vec::new(),
            replicas,
            clients: chance.usize(1..6),
            favourite: [1.0, 0.5, 0.0][chance.usize(..3)],
            cut: BTreeSet::new(),
            faults,
            is_storm: true,
            history: Vec::new(),
            moment: 0,
            next_op: 0,
            next_value: 0,
            tally: Tally::default(),
            chance,
        };
        let skew_ms = [0, 600_000, DAY_MS][world.chance.usize(..3)];
        for number in 0..nodes {
            world.nodes.push(Node {
                is_up: true,
                life: 0,
                clock: Clock::new(number as u16, 0, Version::ZERO),
                offset_ms: world.chance.i64(-skew_ms..=skew_ms),
                visible: NOTHING,
                durable: NOTHING,
                hints: BTreeMap::new(),
                ops: BTreeMap::new(),
            });
            world.after(HINTS_EVERY, Event::ReplayHints(number));
        }
        (0..world.clients).for_each(|client| world.after(1, Event::Client(client)));
        world.after(1, Event::Fault);
        world
    }

    pub fn history(&self) -> &[Operation] {
        &self.history
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The storm, and the calm after it, in which everything that is under way comes to its end.
    pub fn run(&mut self) -> Result<(), String> {
        self.run_until(STORM);
        self.is_storm = false;
        self.faults = Faults {
            loss: 0.0,
            repeat: 0.0,
            late: 0.0,
            refuse: 0.0,
            every: STORM,
            away: 1,
        };
        self.cut.clear();
        (0..self.nodes.len()).for_each(|node| self.restart(node));
        self.run_until(STORM + CALM);
        let busy = self
            .nodes
            .iter()
            .filter(|node| !node.ops.is_empty())
            .count();
        match busy {
            0 => Ok(()),
            _ => Err(format!("{busy} nodes still have operations under way")),
        }
    }

    /// One read of all replicas makes them equal, now that all are there, and no hint is left.
    pub fn converge(&mut self) -> Result<(), String> {
        self.read_all();
        self.run_until(self.now + CALM);
        let last = self.history.last().expect("a reading was just made");
        if last.outcome != crate::linear::Outcome::Done {
            return Err(format!("without a fault a reading at ALL failed: {last:?}"));
        }
        let held: Vec<Record> = self.nodes[..self.replicas]
            .iter()
            .map(|node| node.durable)
            .collect();
        if held.iter().any(|record| *record != held[0]) {
            return Err(format!("replicas differ in the end: {held:?}"));
        }
        let hints: usize = self.nodes.iter().map(|node| node.hints.len()).sum();
        match hints {
            0 => Ok(()),
            _ => Err(format!("{hints} hints were never brought home")),
        }
    }

    fn run_until(&mut self, end: Micros) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.tally.events += 1;
            self.handle(event);
        }
        self.now = end;
    }

    pub fn after(&mut self, delay: Micros, event: Event) {
        self.events += 1;
        self.queue.insert((self.now + delay, self.events), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver {
                from,
                to,
                op,
                message,
            } => self.deliver(from, to, op, message),
            Event::Undelivered {
                from,
                to,
                op,
                message,
            } => self.undelivered(from, to, op, message),
            Event::Synced {
                node,
                life,
                asked_by,
                op,
                message,
            } => self.synced((node, life), asked_by, op, message),
            Event::Slow(op) => self.slow(op),
            Event::Again(op) => self.again(op),
            Event::Deadline(op) => self.deadline(op),
            Event::Client(client) => self.client(client),
            Event::Fault => self.fault(),
            Event::Restart(node) => self.restart(node),
            Event::ReplayHints(node) => self.replay_hints(node),
        }
    }

    pub fn send(&mut self, from: usize, to: usize, op: OpId, message: Message) {
        let copies = match self.chance.f64() {
            random if random < self.faults.loss => 0,
            random if random < self.faults.loss + self.faults.repeat => 2,
            _ => 1,
        };
        self.tally.lost += u64::from(copies == 0);
        self.tally.repeated += u64::from(copies == 2);
        for _ in 0..copies {
            let is_late = self.chance.f64() < self.faults.late;
            let delay = match from == to {
                true => self.chance.u64(1..50),
                false if is_late => self.chance.u64(1_000..60_000),
                false => self.chance.u64(100..2_000),
            };
            let event = Event::Deliver {
                from,
                to,
                op,
                message,
            };
            self.after(delay, event);
        }
    }

    fn deliver(&mut self, from: usize, to: usize, op: OpId, message: Message) {
        if !self.nodes[to].is_up || self.cut.contains(&(from, to)) {
            if self.chance.bool() {
                let event = Event::Undelivered {
                    from,
                    to,
                    op,
                    message,
                };
                self.after(100, event);
            }
            return;
        }
        match message {
            Message::AskClock => {
                let clock = self.nodes[to].clock.last();
                self.send(to, from, op, Message::Clock(clock));
            }
            Message::Read(want) => {
                let mut record = self.nodes[to].visible;
                if want == Want::Digest {
                    record.value = None;
                }
                self.send(to, from, op, Message::Holds(record, want));
            }
            Message::Write(_) if self.does_refuse(op, to) => {
                self.tally.refused += 1;
                self.send(to, from, op, Message::Wrote(Ack::Refused));
            }
            Message::Write(record) | Message::Replay(_, record) => {
                if self.planted == Some(Planted::AckBeforeSync) {
                    self.show(to, record);
                    self.answer_write(to, from, op, message);
                }
                self.sync(to, from, op, message);
            }
            Message::Hint(..) => self.sync(to, from, op, message),
            Message::Replayed(hint) => {
                self.tally.replayed += u64::from(self.nodes[to].hints.remove(&hint).is_some());
            }
            Message::Clock(_) | Message::Wrote(_) | Message::Holds(..) | Message::Hinted(..) => {
                self.answered(from, to, op, message);
            }
        }
    }

    /// Decided once for an operation and a replica: no copy of what was refused may be applied.
    fn does_refuse(&self, op: OpId, node: usize) -> bool {
        let mut chance = fastrand::Rng::with_seed(op.0 << 8 | node as u64);
        chance.f64() < self.faults.refuse
    }

    fn sync(&mut self, node: usize, asked_by: usize, op: OpId, message: Message) {
        let is_long = self.chance.f64() < self.faults.late;
        let delay = match is_long {
            true => self.chance.u64(1_000..30_000),
            false => self.chance.u64(50..500),
        };
        let life = self.nodes[node].life;
        let event = Event::Synced {
            node,
            life,
            asked_by,
            op,
            message,
        };
        self.after(delay, event);
    }

    fn synced(&mut self, (node, life): (usize, u16), asked_by: usize, op: OpId, message: Message) {
        if !self.nodes[node].is_up || self.nodes[node].life != life {
            self.tally.unsynced_lost += 1;
            return;
        }
        match message {
            Message::Write(record) | Message::Replay(_, record) => {
                self.show(node, record);
                let durable = &mut self.nodes[node].durable;
                if record.meta.rank() > durable.meta.rank() {
                    *durable = record;
                }
                if self.planted != Some(Planted::AckBeforeSync) {
                    self.answer_write(node, asked_by, op, message);
                }
            }
            Message::Hint(replica, record) => {
                self.events += 1;
                self.nodes[node]
                    .hints
                    .insert(self.events, (replica, record));
                self.tally.hints += 1;
                self.send(node, asked_by, op, Message::Hinted(replica, Ack::Stored));
            }
            _ => unreachable!("nothing else is written"),
        }
    }

    fn show(&mut self, node: usize, record: Record) {
        let node = &mut self.nodes[node];
        if record.meta.rank() > node.visible.meta.rank() {
            node.visible = record;
        }
        node.clock.observe(record.meta.version);
    }

    fn answer_write(&mut self, node: usize, asked_by: usize, op: OpId, message: Message) {
        let answer = match message {
            Message::Replay(hint, _) => Message::Replayed(hint),
            _ => Message::Wrote(Ack::Stored),
        };
        self.send(node, asked_by, op, answer);
    }

    fn replay_hints(&mut self, node: usize) {
        self.after(HINTS_EVERY, Event::ReplayHints(node));
        if !self.nodes[node].is_up {
            return;
        }
        for (hint, (replica, record)) in self.nodes[node].hints.clone() {
            let home = usize::from(replica.0);
            self.send(node, home, OpId(0), Message::Replay(hint, record));
        }
    }

    /// True if `from` has reason to think that it cannot reach `to`; now and then without one.
    pub fn is_suspect(&mut self, from: usize, to: usize) -> bool {
        let is_cut = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        let is_away = is_cut || !self.nodes[to].is_up;
        let share = match (is_away, self.is_storm) {
            (true, _) => 0.7,
            (false, true) => 0.02,
            (false, false) => 0.0,
        };
        self.chance.f64() < share
    }

    pub fn wall_ms(&self, node: usize) -> u64 {
        let now_ms = (self.now / 1_000) as i64;
        (EPOCH_MS + now_ms + self.nodes[node].offset_ms) as u64
    }

    fn fault(&mut self) {
        if !self.is_storm {
            return;
        }
        let node = self.chance.usize(..self.nodes.len());
        match self.chance.u8(..10) {
            0..4 => self.crash(node),
            4 => {
                // A power cut takes several at once.
                let others = self.chance.usize(1..=self.nodes.len());
                (0..others).for_each(|other| self.crash(other));
            }
            5 => self.partition(),
            6..8 => self.cut.clear(),
            8 => {
                let other = self.chance.usize(..self.nodes.len());
                self.cut.insert((node, other));
            }
            _ => self.nodes[node].offset_ms = self.chance.i64(-DAY_MS..=DAY_MS),
        }
        let pause = self.chance.u64(1..2 * self.faults.every);
        self.after(pause, Event::Fault);
    }

    /// Two sides that do not hear each other; a one-way cut now and then.
    fn partition(&mut self) {
        self.cut.clear();
        self.tally.cuts += 1;
        let sides: Vec<bool> = self.nodes.iter().map(|_| self.chance.bool()).collect();
        let is_one_way = self.chance.u8(..4) == 0;
        for from in 0..sides.len() {
            for to in 0..sides.len() {
                let is_across = sides[from] != sides[to];
                if is_across && (!is_one_way || sides[from]) {
                    self.cut.insert((from, to));
                }
            }
        }
    }

    fn crash(&mut self, number: usize) {
        if !self.nodes[number].is_up {
            return;
        }
        self.tally.crashes += 1;
        let node = &mut self.nodes[number];
        node.is_up = false;
        node.visible = node.durable;
        let ops = std::mem::take(&mut node.ops);
        ops.into_values().for_each(|op| self.forget(op));
        let pause = self.chance.u64(1..2 * self.faults.away);
        self.after(pause, Event::Restart(number));
    }

    fn restart(&mut self, number: usize) {
        let is_forgetful = self.planted == Some(Planted::SameGeneration);
        let node = &mut self.nodes[number];
        if node.is_up {
            return;
        }
        node.is_up = true;
        node.life += 1;
        let generation = if is_forgetful { 0 } else { node.life };
        node.clock = Clock::new(number as u16, generation, node.durable.meta.version);
    }
}
