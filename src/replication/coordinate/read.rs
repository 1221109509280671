//! A read, carried out: the value from the nearest, what the others hold, the newest value if they
//! differ, and what is written back before the answer or repaired after it.
//!
//! A record that has expired at the moment of the read is brought to those that are behind as a
//! deletion of the same version: the replicas that have it send no value for it, and a replica with
//! an empty value in its place would show that to a reader whose clock is late.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Coordinator, Failure, Held, Inbox, Mutation, Placement, Question, Replicas, alarm_at};
use crate::replication::quorum::read::{Ask, Found, ReadVerdict, Repair, Want};
use crate::replication::quorum::write::Ack;
use crate::replication::quorum::{Level, ReadQuorum, Replica, ReplicaSet};
use crate::rt::{self, Queue};
use crate::types::{Meta, UnixMillis};

/// What has come of a request.
enum Came {
    /// `None`: no answer.
    Answer(Ask, Option<Held>),
    WrittenBack(Replica, Ack),
}

struct Run<R> {
    coordinator: Rc<Coordinator<R>>,
    placement: Placement,
    question: Rc<Question>,
    deadline: Duration,
    quorum: ReadQuorum,
    inbox: Rc<Inbox<Came>>,
    /// Values that came, each with the record that it is of.
    values: SmallVec<[(Meta, Vec<u8>); 1]>,
    /// Requests that nothing has come of yet.
    open: usize,
    /// After so long another replica is put into the race.
    patience: Duration,
}

impl<R: Replicas> Coordinator<R> {
    /// What the key holds by `level`, as of `now`. The value is there if a reader at `now` sees
    /// one.
    pub async fn read(
        self: &Rc<Self>,
        placement: Placement,
        level: Level,
        key: Vec<u8>,
        now: UnixMillis,
        deadline: Duration,
    ) -> Result<Held, Failure> {
        let ranking = self.ranking(&placement);
        let (quorum, asks) = ReadQuorum::start(level, ranking, now, self.rules)?;
        let mut run = Run {
            coordinator: Rc::clone(self),
            placement,
            question: Rc::new(Question { key, now }),
            deadline,
            quorum,
            inbox: Inbox::new(),
            values: SmallVec::new(),
            open: 0,
            patience: Duration::ZERO,
        };
        asks.into_iter().for_each(|ask| run.ask(ask));
        let Some(found) = run.found().await else {
            return Err(Failure::Failed);
        };
        let repair = run.quorum.repair();
        let held = run.held(found, repair.is_some());
        if run.open > 0 || repair.is_some() {
            run.go_on(repair);
        }
        Ok(held)
    }

    /// Brings all replicas that are there to the newest that any of them holds, as far as that is
    /// possible.
    pub async fn repair(
        self: &Rc<Self>,
        placement: Placement,
        key: Vec<u8>,
        now: UnixMillis,
        deadline: Duration,
    ) {
        let there: Placement = placement.there().collect();
        if there.holders.len() > 1 {
            // Who is not there cannot be asked; of the others every one is.
            let _ = self.read(there, Level::All, key, now, deadline).await;
        }
    }
}

impl<R: Replicas> Run<R> {
    fn ask(&mut self, ask: Ask) {
        let to = self.placement.holder(ask.replica);
        let patience = self.coordinator.patience_with_read(to.node);
        self.patience = self.patience.max(patience);
        let (coordinator, inbox) = (Rc::clone(&self.coordinator), Rc::clone(&self.inbox));
        let (question, deadline) = (Rc::clone(&self.question), self.deadline);
        self.open += 1;
        rt::spawn(async move {
            let asked = rt::now();
            let replicas = Rc::clone(&coordinator.replicas);
            let held = replicas.read(to, question, ask.want, deadline).await;
            if held.is_some() {
                coordinator.note_read(to.node, asked);
            }
            inbox.put(Came::Answer(ask, held));
        });
    }

    /// Follows the verdicts up to the last one.
    async fn found(&mut self) -> Option<Found> {
        let inbox = Rc::clone(&self.inbox);
        let mut alarm = std::pin::pin!(alarm_at(self.late()));
        loop {
            let came = inbox.next(alarm.as_mut()).await;
            let is_late = came.is_none();
            let verdict = match came {
                Some(came) => self.note(came),
                None if rt::now() >= self.deadline => self.quorum.on_deadline(),
                None => self.quorum.on_slow(),
            };
            match verdict {
                ReadVerdict::Met(found) => return Some(found),
                ReadVerdict::Failed => return None,
                // Nobody is left to be put into the race.
                ReadVerdict::Wait if is_late => alarm.set(alarm_at(self.deadline)),
                ReadVerdict::Wait => {}
                ReadVerdict::Ask(ask) => {
                    self.ask(ask);
                    alarm.set(alarm_at(self.late()));
                }
                ReadVerdict::WriteBack { found, to } => {
                    self.write_back(found.meta, to);
                    alarm.set(alarm_at(self.late()));
                }
            }
        }
    }

    /// When what is asked for now is late.
    fn late(&self) -> Duration {
        self.deadline.min(rt::now() + self.patience)
    }

    fn note(&mut self, came: Came) -> ReadVerdict {
        self.open -= 1;
        match came {
            Came::Answer(ask, Some(held)) if self.is_whole(ask, &held) => {
                if let Some(value) = held.value {
                    self.keep_value(held.meta, value);
                }
                self.quorum.on_answer(ask.replica, held.meta, ask.want)
            }
            Came::WrittenBack(replica, Ack::Stored) => self.quorum.on_written(replica),
            Came::Answer(Ask { replica, .. }, _)
            | Came::WrittenBack(replica, Ack::Refused | Ack::Lost) => {
                self.quorum.on_failure(replica)
            }
        }
    }

    /// True if there is a value where one was asked for, and nowhere else.
    fn is_whole(&self, ask: Ask, held: &Held) -> bool {
        let is_due = ask.want == Want::Value && held.meta.is_live(self.question.now);
        held.value.is_some() == is_due
    }

    fn keep_value(&mut self, meta: Meta, value: Vec<u8>) {
        if !self.values.iter().any(|(of, _)| *of == meta) {
            self.values.push((meta, value));
        }
    }

    fn held(&mut self, found: Found, is_needed_again: bool) -> Held {
        let is_it = |(meta, _): &(Meta, Vec<u8>)| *meta == found.meta;
        let value = match self.values.iter().position(is_it) {
            Some(at) if is_needed_again || self.open > 0 => Some(self.values[at].1.clone()),
            Some(at) => Some(self.values.swap_remove(at).1),
            None => None,
        };
        assert!(
            value.is_some() == found.meta.is_live(self.question.now),
            "a live record is found with its value, and no other has one"
        );
        Held {
            meta: found.meta,
            value,
        }
    }

    /// The record `meta` as it is brought to a replica; `None` if its value is not here.
    fn mutation(&self, meta: Meta) -> Option<Mutation> {
        let key = self.question.key.clone();
        if !meta.is_live(self.question.now) {
            let meta = Meta {
                expiry: 0,
                tombstone: true,
                ..meta
            };
            let value = Vec::new();
            return Some(Mutation { meta, key, value });
        }
        let value = self.values.iter().find(|(of, _)| *of == meta)?.1.clone();
        Some(Mutation { meta, key, value })
    }

    fn write_back(&mut self, meta: Meta, to: ReplicaSet) {
        let mutation = self.mutation(meta);
        let mutation = Rc::new(mutation.expect("what is written back was found with its value"));
        for replica in to.iter() {
            let (coordinator, inbox) = (Rc::clone(&self.coordinator), Rc::clone(&self.inbox));
            let (to, mutation) = (self.placement.holder(replica), Rc::clone(&mutation));
            let patience = self.coordinator.patience_with_write(to.node);
            self.patience = self.patience.max(patience);
            let deadline = self.deadline;
            self.open += 1;
            rt::spawn(async move {
                let ack = coordinator.store_at(to, mutation, deadline).await;
                inbox.put(Came::WrittenBack(replica, ack));
            });
        }
    }

    /// What is left to do after the answer: those that turn out to be behind are brought up.
    fn go_on(mut self, repair: Option<Repair>) {
        rt::spawn_in(Queue::Background, async move {
            if let Some(repair) = repair {
                self.repair(repair).await;
            }
            let inbox = Rc::clone(&self.inbox);
            let mut alarm = std::pin::pin!(alarm_at(self.deadline));
            while self.open > 0 {
                let Some(came) = inbox.next(alarm.as_mut()).await else {
                    break;
                };
                self.note(came);
                if let Some(repair) = self.quorum.repair() {
                    self.repair(repair).await;
                }
            }
        });
    }

    async fn repair(&mut self, repair: Repair) {
        if self.mutation(repair.meta).is_none() {
            let from = self.placement.holder(repair.from);
            let question = Rc::clone(&self.question);
            let replicas = Rc::clone(&self.coordinator.replicas);
            let held = replicas.read(from, question, Want::Value, self.deadline);
            if let Some(Held {
                meta,
                value: Some(value),
            }) = held.await
                && meta.is_live(self.question.now)
            {
                self.keep_value(meta, value);
            }
        }
        if let Some(mutation) = self.mutation(repair.meta) {
            let mutation = Rc::new(mutation);
            for replica in repair.to.iter() {
                let to = self.placement.holder(replica);
                let coordinator = Rc::clone(&self.coordinator);
                rt::spawn(coordinator.store_at(to, Rc::clone(&mutation), self.deadline));
            }
        }
    }
}
