//! Nodes, the network between them, and everything that goes wrong; the replicas, which apply by
//! version.

use std::collections::{BTreeMap, BTreeSet};

use quoit::replication::clock::Clock;
use quoit::replication::quorum::read::Want;
use quoit::replication::quorum::write::Ack;
use quoit::replication::quorum::{Replica, Rules};
use quoit::types::{Meta, Version};

use crate::coordinator::{Op, OpId};
use crate::linear::{Moment, Operation};
use crate::quorums::{
    self, DAY_MS, Faults, Levels, Planted, Simulation, Tally, Verdict, are_equal, choose_size,
    choose_skew_ms, partition, suspicion,
};

/// Virtual microseconds.
pub type Micros = u64;

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

impl Simulation for World {
    fn make(seed: u64, levels: Levels, planted: Option<Planted>) -> World {
        World::new(seed, levels, planted)
    }

    /// In the calm everything that is under way comes to its end.
    fn run(&mut self) -> Verdict<Vec<Operation>> {
        self.run_until(STORM);
        self.is_storm = false;
        self.faults = Faults::none();
        self.cut.clear();
        (0..self.nodes.len()).for_each(|node| self.restart(node));
        self.run_until(STORM + CALM);
        let is_busy = |node: &&Node| !node.ops.is_empty();
        match self.nodes.iter().filter(is_busy).count() {
            0 => Ok(self.history.clone()),
            busy => Err(format!("{busy} nodes still have operations under way")),
        }
    }

    /// One read of all replicas makes them equal, now that all are there, and no hint is left.
    fn converge(&mut self) -> Verdict {
        self.read_all();
        self.run_until(self.now + CALM);
        let last = self.history.last().expect("a reading was just made");
        if last.outcome != crate::linear::Outcome::Done {
            return Err(format!("without a fault a reading at ALL failed: {last:?}"));
        }
        let replicas = self.nodes[..self.replicas].iter();
        let held: Vec<Record> = replicas.map(|node| node.durable).collect();
        are_equal(&held, self.nodes.iter().map(|node| node.hints.len()).sum())
    }

    /// The number of events stands for the trace.
    fn tally(&self) -> (Tally, u64) {
        (self.tally.clone(), self.events)
    }
}

impl World {
    fn new(seed: u64, levels: Levels, planted: Option<Planted>) -> World {
        let mut chance = fastrand::Rng::with_seed(seed);
        let (replicas, nodes) = choose_size(&mut chance);
        let faults = Faults::choose(&mut chance);
        let mut world = World {
            planted,
            levels,
            rules: quorums::rules(planted),
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
        let skew_ms = choose_skew_ms(&mut world.chance);
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

    fn run_until(&mut self, end: Micros) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.tally.note("events");
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
        match copies {
            0 => self.tally.note("lost"),
            2 => self.tally.note("repeated"),
            _ => {}
        }
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
                self.tally.note("refused");
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
                if self.nodes[to].hints.remove(&hint).is_some() {
                    self.tally.note("hints brought home");
                }
            }
            Message::Clock(_) | Message::Wrote(_) | Message::Holds(..) | Message::Hinted(..) => {
                self.answered(from, to, op, message);
            }
        }
    }

    fn does_refuse(&self, op: OpId, node: usize) -> bool {
        self.faults.refuses(op.0 << 8 | node as u64)
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
            self.tally.note("unsynced lost");
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
                self.tally.note("hints");
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
        self.chance.f64() < suspicion(is_away, self.is_storm)
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
            5 => {
                self.tally.note("cuts");
                self.cut = partition(self.nodes.len(), &mut self.chance);
            }
            6..8 => self.cut.clear(),
            8 => {
                let other = self.chance.usize(..self.nodes.len());
                self.cut.insert((node, other));
            }
            _ => self.nodes[node].offset_ms = self.chance.i64(-DAY_MS..=DAY_MS),
        }
        let pause = self.chance.u64(1..2 * self.faults.every_us);
        self.after(pause, Event::Fault);
    }

    fn crash(&mut self, number: usize) {
        if !self.nodes[number].is_up {
            return;
        }
        self.tally.note("crashes");
        let node = &mut self.nodes[number];
        node.is_up = false;
        node.visible = node.durable;
        let ops = std::mem::take(&mut node.ops);
        ops.into_values().for_each(|op| self.forget(op));
        let pause = self.chance.u64(1..2 * self.faults.away_us);
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
