//! The clients, and the coordinators that they ask: what drives the code under test.

use std::collections::BTreeMap;

use quoit::replication::quorum::barrier::BarrierVerdict;
use quoit::replication::quorum::read::{Ask, Found, ReadVerdict, Want};
use quoit::replication::quorum::write::{Ack, WriteVerdict};
use quoit::replication::quorum::{
    Barrier, Level, Ranking, Reach, ReadQuorum, Replica, ReplicaSet, Unavailable, WriteQuorum,
};
use quoit::types::{Meta, Version};

use crate::linear::{Action, Moment, Operation, Outcome};
use crate::quorums::{Planted, choose_action};
use crate::world::{AGAIN, DEADLINE, Event, Message, Record, SLOW, World};

/// Names an operation of a client, or what is done in the background; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// An operation of a client at its coordinator.
pub struct Op {
    client: Option<usize>,
    action: Action,
    asked: Moment,
    level: Level,
    work: Work,
    /// False once the client has its answer.
    is_open: bool,
}

enum Work {
    Barrier(Barrier),
    Write {
        write: WriteQuorum,
        record: Record,
        unanswered: ReplicaSet,
    },
    Read {
        read: Box<ReadQuorum>,
        /// The values that came, by version.
        values: BTreeMap<Version, Option<u64>>,
        unwritten: Option<(Record, ReplicaSet)>,
    },
}

impl World {
    /// A client that is at rest asks for something.
    pub fn client(&mut self, client: usize) {
        if !self.is_storm {
            return;
        }
        let node = match self.chance.f64() < self.favourite {
            true => self.nodes.len() - 1,
            false => self.chance.usize(..self.nodes.len()),
        };
        if !self.nodes[node].is_up {
            let pause = self.chance.u64(1..4_000);
            return self.after(pause, Event::Client(client));
        }
        self.next_value += 1;
        let action = choose_action(self.next_value, &mut self.chance);
        let level = self.levels.choose(&mut self.chance);
        self.begin(node, Some(client), action, level);
    }

    /// Reads from all replicas.
    pub fn read_all(&mut self) {
        self.begin(0, None, Action::Read(None), Level::All);
    }

    fn begin(&mut self, node: usize, client: Option<usize>, action: Action, level: Level) {
        self.next_op += 1;
        self.moment += 1;
        let (id, asked) = (OpId(self.next_op), self.moment);
        let ranking = self.ranking(node);
        let started = match action {
            Action::Read(_) => self.start_read(node, id, level, ranking),
            _ if level == Level::One || self.planted == Some(Planted::NoBarrier) => {
                self.start_write(node, id, action, level)
            }
            _ => self.start_barrier(node, id, &ranking),
        };
        let op = |work| Op {
            client,
            action,
            asked,
            level,
            work,
            is_open: true,
        };
        match started {
            Ok(work) => {
                self.nodes[node].ops.insert(id, op(work));
                self.after(SLOW, Event::Slow(id));
                self.after(AGAIN, Event::Again(id));
                self.after(DEADLINE, Event::Deadline(id));
            }
            Err(Unavailable { .. }) => {
                let outcome = Outcome::Failed;
                self.note(client, action, asked, outcome);
            }
        }
    }

    fn ranking(&mut self, node: usize) -> Ranking {
        let mut reach = Vec::new();
        for replica in 0..self.replicas {
            reach.push(match () {
                () if replica == node => Reach::Own,
                () if self.is_suspect(node, replica) => Reach::Absent,
                () => Reach::Live {
                    latency_us: self.chance.u32(..1_000),
                },
            });
        }
        Ranking::new(&reach)
    }

    fn start_barrier(
        &mut self,
        node: usize,
        id: OpId,
        ranking: &Ranking,
    ) -> Result<Work, Unavailable> {
        let (barrier, asked) = Barrier::start(ranking, self.rules)?;
        self.tally.note("barriers");
        self.tell(node, asked, id, Message::AskClock);
        Ok(Work::Barrier(barrier))
    }

    /// The one moment at which a write gets its version.
    fn start_write(
        &mut self,
        node: usize,
        id: OpId,
        action: Action,
        level: Level,
    ) -> Result<Work, Unavailable> {
        let ranking = self.ranking(node);
        let (mut write, sent) = WriteQuorum::start(level, &ranking, self.rules)?;
        let Action::Write(value) = action else {
            unreachable!("nothing else is written");
        };
        let record = self.stamp(node, value);
        self.tell(node, sent, id, Message::Write(record));
        self.keep_hints(node, id, &mut write, record);
        Ok(Work::Write {
            write,
            record,
            unanswered: sent,
        })
    }

    fn stamp(&mut self, node: usize, value: Option<u64>) -> Record {
        let now = self.wall_ms(node);
        let meta = Meta {
            version: self.nodes[node].clock.next(now),
            expiry: 0,
            tombstone: value.is_none(),
        };
        Record { meta, value }
    }

    fn start_read(
        &mut self,
        node: usize,
        id: OpId,
        level: Level,
        ranking: Ranking,
    ) -> Result<Work, Unavailable> {
        let now = self.wall_ms(node);
        let (read, asks) = ReadQuorum::start(level, ranking, now, self.rules)?;
        for ask in asks {
            self.ask(node, id, ask);
        }
        Ok(Work::Read {
            read: Box::new(read),
            values: BTreeMap::new(),
            unwritten: None,
        })
    }

    fn ask(&mut self, node: usize, id: OpId, ask: Ask) {
        self.send(
            node,
            usize::from(ask.replica.0),
            id,
            Message::Read(ask.want),
        );
    }

    fn tell(&mut self, node: usize, replicas: ReplicaSet, id: OpId, message: Message) {
        for replica in replicas.iter() {
            self.send(node, usize::from(replica.0), id, message);
        }
    }

    fn keep_hints(&mut self, node: usize, id: OpId, write: &mut WriteQuorum, record: Record) {
        for replica in write.hints().iter() {
            let stand_in = match self.chance.bool() {
                true => node,
                false => self.chance.usize(..self.nodes.len()),
            };
            self.send(node, stand_in, id, Message::Hint(replica, record));
        }
    }

    /// Takes an operation out, lets `step` see it, and puts it back unless it is at its end.
    fn with_op(&mut self, id: OpId, step: impl FnOnce(&mut World, usize, &mut Op)) {
        let holds = |node: &crate::world::Node| node.ops.contains_key(&id);
        let Some(node) = self.nodes.iter().position(holds) else {
            return;
        };
        let mut op = self.nodes[node].ops.remove(&id).expect("it was just seen");
        step(self, node, &mut op);
        self.nodes[node].ops.insert(id, op);
    }

    /// An answer has come to the node that coordinates `id`, if it still does.
    pub fn answered(&mut self, from: usize, to: usize, id: OpId, message: Message) {
        if !self.nodes[to].ops.contains_key(&id) {
            return;
        }
        let replica = Replica(from as u8);
        self.with_op(id, |world, node, op| match message {
            Message::Clock(clock) => {
                if let Work::Barrier(barrier) = &mut op.work {
                    let verdict = barrier.on_clock(replica, clock);
                    world.on_barrier(node, id, op, verdict);
                }
            }
            Message::Wrote(ack) => world.wrote(node, id, op, (replica, ack)),
            Message::Hinted(home, ack) => {
                if let Work::Write { write, .. } = &mut op.work {
                    let verdict = write.on_hint(home, ack);
                    world.on_write(node, id, op, verdict);
                }
            }
            Message::Holds(record, want) => {
                if let Work::Read { read, values, .. } = &mut op.work {
                    if want == Want::Value {
                        values.insert(record.meta.version, record.value);
                    }
                    let verdict = read.on_answer(replica, record.meta, want);
                    world.on_read(node, id, op, verdict);
                }
            }
            _ => unreachable!("no answer"),
        });
    }

    fn wrote(&mut self, node: usize, id: OpId, op: &mut Op, (replica, ack): (Replica, Ack)) {
        match &mut op.work {
            Work::Write {
                write, unanswered, ..
            } => {
                unanswered.remove(replica);
                let verdict = write.on_ack(replica, ack);
                self.on_write(node, id, op, verdict);
            }
            Work::Read {
                read, unwritten, ..
            } => {
                if let Some((_, replicas)) = unwritten {
                    replicas.remove(replica);
                }
                let verdict = match ack {
                    Ack::Stored => read.on_written(replica),
                    Ack::Refused | Ack::Lost => read.on_failure(replica),
                };
                self.on_read(node, id, op, verdict);
            }
            Work::Barrier(_) => {}
        }
    }

    /// A request was not delivered, and its sender was told so.
    pub fn undelivered(&mut self, from: usize, to: usize, id: OpId, message: Message) {
        if !self.nodes[from].ops.contains_key(&id) {
            return;
        }
        let replica = Replica(to as u8);
        self.with_op(id, |world, node, op| match (&mut op.work, message) {
            (Work::Barrier(barrier), Message::AskClock) => {
                let verdict = barrier.on_failure(replica);
                world.on_barrier(node, id, op, verdict);
            }
            (Work::Write { .. }, Message::Write(_)) => {
                world.wrote(node, id, op, (replica, Ack::Lost));
            }
            (Work::Write { write, .. }, Message::Hint(home, _)) => {
                let verdict = write.on_hint(home, Ack::Lost);
                world.on_write(node, id, op, verdict);
            }
            (Work::Read { read, .. }, Message::Read(_) | Message::Write(_)) => {
                let verdict = read.on_failure(replica);
                world.on_read(node, id, op, verdict);
            }
            _ => {}
        });
    }

    pub fn slow(&mut self, id: OpId) {
        self.with_op(id, |world, node, op| {
            if let Work::Read { read, .. } = &mut op.work {
                let verdict = read.on_slow();
                if verdict != ReadVerdict::Wait {
                    world.tally.note("hedged");
                }
                world.on_read(node, id, op, verdict);
            }
        });
    }

    /// What was not answered is sent again, under the version that it has.
    pub fn again(&mut self, id: OpId) {
        self.with_op(id, |world, node, op| match &mut op.work {
            Work::Write {
                record, unanswered, ..
            } if op.is_open => {
                if world.planted == Some(Planted::Restamp) {
                    *record = world.stamp(node, record.value);
                }
                world.tell(node, *unanswered, id, Message::Write(*record));
            }
            Work::Read {
                unwritten: Some((record, replicas)),
                ..
            } if op.is_open => world.tell(node, *replicas, id, Message::Write(*record)),
            _ => {}
        });
    }

    pub fn deadline(&mut self, id: OpId) {
        self.with_op(id, |world, node, op| match &mut op.work {
            Work::Barrier(barrier) => {
                let verdict = barrier.on_deadline();
                world.on_barrier(node, id, op, verdict);
            }
            Work::Write { write, .. } => {
                let verdict = write.on_deadline();
                world.on_write(node, id, op, verdict);
            }
            Work::Read { read, .. } => {
                let verdict = read.on_deadline();
                world.on_read(node, id, op, verdict);
            }
        });
        self.nodes.iter_mut().for_each(|node| {
            node.ops.remove(&id);
        });
    }

    fn on_barrier(&mut self, node: usize, id: OpId, op: &mut Op, verdict: BarrierVerdict) {
        match verdict {
            BarrierVerdict::Wait => {}
            BarrierVerdict::Failed => self.close(op, Outcome::Failed, op.action),
            BarrierVerdict::Met { highest } => {
                self.nodes[node].clock.observe(highest);
                match self.start_write(node, id, op.action, op.level) {
                    Ok(work) => op.work = work,
                    Err(Unavailable { .. }) => self.close(op, Outcome::Failed, op.action),
                }
            }
        }
    }

    fn on_write(&mut self, node: usize, id: OpId, op: &mut Op, verdict: WriteVerdict) {
        let outcome = match verdict {
            WriteVerdict::Wait => None,
            WriteVerdict::Met => Some(Outcome::Done),
            WriteVerdict::Failed => Some(Outcome::Failed),
            WriteVerdict::Unknown => match self.planted {
                Some(Planted::TimeoutIsFailure) => Some(Outcome::Failed),
                _ => Some(Outcome::Unknown),
            },
        };
        if let Some(outcome) = outcome {
            self.close(op, outcome, op.action);
        }
        if let Work::Write { write, record, .. } = &mut op.work {
            let record = *record;
            self.keep_hints(node, id, write, record);
        }
    }

    fn on_read(&mut self, node: usize, id: OpId, op: &mut Op, verdict: ReadVerdict) {
        let Work::Read {
            read,
            values,
            unwritten,
        } = &mut op.work
        else {
            return;
        };
        let record = |found: Found| Record {
            meta: found.meta,
            value: found.value_of.and_then(|_| values[&found.meta.version]),
        };
        match verdict {
            ReadVerdict::Wait => {}
            ReadVerdict::Ask(ask) => {
                if ask.want == Want::Value {
                    self.tally.note("values fetched");
                }
                self.ask(node, id, ask);
            }
            ReadVerdict::WriteBack { found, to } => {
                self.tally.note("write backs");
                let record = record(found);
                let before = unwritten.map_or(ReplicaSet::NONE, |(_, replicas)| replicas);
                *unwritten = Some((record, before.and(to)));
                self.tell(node, to, id, Message::Write(record));
            }
            ReadVerdict::Met(found) => {
                let value = record(found).value;
                self.close(op, Outcome::Done, Action::Read(value));
                return self.repair(node, op);
            }
            ReadVerdict::Failed => return self.close(op, Outcome::Failed, op.action),
        }
        if read.repair().is_some() {
            self.tally.note("repairs");
        }
    }

    fn repair(&mut self, node: usize, op: &mut Op) {
        let Work::Read { read, values, .. } = &mut op.work else {
            return;
        };
        let Some(repair) = read.repair() else {
            return;
        };
        self.tally.note("repairs");
        let value = match repair.meta.tombstone {
            true => None,
            false => values.get(&repair.meta.version).copied().flatten(),
        };
        if value.is_some() || repair.meta.tombstone {
            let meta = repair.meta;
            self.tell(
                node,
                repair.to,
                OpId(0),
                Message::Write(Record { meta, value }),
            );
        }
    }

    /// Tells the client, once.
    fn close(&mut self, op: &mut Op, outcome: Outcome, action: Action) {
        if std::mem::take(&mut op.is_open) {
            self.note(op.client, action, op.asked, outcome);
        }
    }

    /// The coordinator is gone: its client has lost the connection.
    pub fn forget(&mut self, mut op: Op) {
        let outcome = match (op.action, &op.work) {
            (Action::Read(_), _) | (_, Work::Barrier(_)) => Outcome::Failed,
            _ => Outcome::Unknown,
        };
        let action = op.action;
        self.close(&mut op, outcome, action);
    }

    fn note(&mut self, client: Option<usize>, action: Action, asked: Moment, outcome: Outcome) {
        self.moment += 1;
        self.tally.note_outcome(outcome);
        self.history.push(Operation {
            action,
            asked,
            answered: self.moment,
            outcome,
        });
        if let Some(client) = client {
            let pause = self.chance.u64(1..4_000);
            self.after(pause, Event::Client(client));
        }
    }
}
