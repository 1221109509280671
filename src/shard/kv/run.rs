//! An operation carried out: on the core that owns the key, under the key's latch unless one look
//! at memory is enough, and answered when what it wrote or saw is acknowledged.
//!
//! Where a key has several replicas, this is where they are asked: whoever calls [`Shard::kv`] or
//! [`Shard::begin_kv`] learns from the outcome alone how many took part.

use std::rc::Rc;

use super::{Decision, Held, Operation, Outcome, Part, Written, decide};
use crate::error::{Error, Result};
use crate::rt::{self, Bug};
use crate::shard::Shard;
use crate::shard::latches::Wants;
use crate::shard::siblings::{Job, Said};
use crate::storage::record::{KeyRef, Meta, Record};
use crate::storage::wal::Admission;
use crate::storage::{Batch, Found, Lookup, Peek, Want};
use crate::types::{Lsn, UnixMillis};

/// Where no other node holds the key.
const REPLICAS: u8 = 1;

/// An operation that has taken its place among those on its key.
pub enum Begun {
    /// It is done. The outcome may be told once the record with this number is acknowledged.
    Done(Outcome, Lsn),
    /// It was refused, and certainly changed nothing.
    Refused(Error),
    /// It waits for its turn, for the disk or for the log. The outcome may be told when it comes.
    Later(rt::Task<Result<Outcome>>),
}

/// What became of an attempt to do it at once.
enum Attempt {
    Done(Outcome, Lsn),
    Refused(Error),
    /// The answer is on disk.
    Cold(Lookup),
    /// It has to wait; nothing was done.
    Wait,
}

impl Shard {
    /// Carries out `operation` on whichever core owns its key. Its sizes were checked.
    pub async fn kv(self: &Rc<Self>, operation: Operation) -> Result<Outcome> {
        if self.is_clustered() {
            return self.kv_replicated(operation).await;
        }
        let core = self.map.core_of(KeyRef::of(&operation.key).position);
        if core == self.id {
            return self.kv_here(operation).await;
        }
        self.counters.borrow_mut().crossed += 1;
        let is_write = operation.is_write();
        let job = Job::Kv(Box::new(operation));
        match self.siblings.ask(core, job).wait().await {
            Some(Said::Kv(outcome)) => outcome,
            // That core has ended: the node is stopping.
            _ if is_write => Err(Error::Uncertain),
            _ => Err(Error::Busy),
        }
    }

    /// `Job::Kv`: the key is this core's.
    pub async fn kv_here(self: &Rc<Self>, operation: Operation) -> Result<Outcome> {
        if self.is_clustered() {
            return self.kv_replicated(operation).await; // the core that sent it has not heard of the others yet
        }
        match self.begin_kv(operation) {
            Begun::Refused(error) => Err(error),
            Begun::Later(task) => task.await,
            Begun::Done(outcome, lsn) => {
                if !rt::planted(Bug::AnsweredUnsynced) {
                    self.store.wait_acknowledged(lsn).await?;
                }
                Ok(outcome)
            }
        }
    }

    /// Begins `operation`, whose key is this core's. Operations on one key are done in the order of
    /// these calls.
    pub fn begin_kv(self: &Rc<Self>, operation: Operation) -> Begun {
        let key = KeyRef::of(&operation.key);
        let hash = key.hash;
        if self.latches.is_free(hash) {
            match self.attempt(&key, &operation, rt::wall_ms()) {
                Attempt::Done(outcome, lsn) => return Begun::Done(outcome, lsn),
                Attempt::Refused(error) => return Begun::Refused(error),
                Attempt::Cold(lookup) => return Begun::Later(self.read_kv(lookup, operation)),
                Attempt::Wait => {}
            }
        }
        let latched = self.latches.request(Wants::key(hash));
        let shard = Rc::clone(self);
        Begun::Later(rt::spawn(async move {
            if !rt::planted(Bug::ConditionUnlatched) {
                latched.granted().await;
            }
            let done = shard.do_kv(&operation).await;
            drop(latched);
            let (outcome, lsn) = done?;
            shard.store.wait_acknowledged(lsn).await?;
            Ok(outcome)
        }))
    }

    /// Does it if nothing has to be waited for. Nobody holds or wants the key's latch.
    fn attempt(&self, key: &KeyRef<'_>, operation: &Operation, now: UnixMillis) -> Attempt {
        let found = match operation.needs_current() {
            false => None,
            true => match self.store.peek(key, want_of(operation)) {
                Peek::Known(found) => found,
                Peek::OnDisk(lookup) if !operation.is_write() => return Attempt::Cold(lookup),
                Peek::OnDisk(_) => return Attempt::Wait,
            },
        };
        let (meta, value) = match self.decide_kv(operation, found.as_ref(), now) {
            Ok(write) => write,
            Err(outcome) => return Attempt::Done(outcome, self.depends_on(found.as_ref())),
        };
        let admission = self.store.admit(key.key.len(), value.len());
        match admission.refusal() {
            Some(refusal) => Attempt::Refused(refusal),
            None if admission == Admission::Ready => {
                let record = Record::new(meta, key.key, value);
                Attempt::Done(written(meta), self.store.write(key.position, record))
            }
            None => Attempt::Wait,
        }
    }

    /// Does it under the key's latch, waiting for what must be waited for; but not for the log.
    async fn do_kv(&self, operation: &Operation) -> Result<(Outcome, Lsn)> {
        let key = KeyRef::of(&operation.key);
        let found = match operation.needs_current() {
            false => None,
            true => self.store.get(&key, want_of(operation)).await?,
        };
        let (meta, value) = match self.decide_kv(operation, found.as_ref(), rt::wall_ms()) {
            Ok(write) => write,
            Err(outcome) => return Ok((outcome, self.depends_on(found.as_ref()))),
        };
        let record = Record::new(meta, key.key, value);
        let batch = Batch {
            clear: None,
            records: vec![(key.position, record)],
        };
        self.store.wait_admitted(&batch).await?;
        self.refuse_if_widened()?;
        Ok((written(meta), self.store.write_batch(batch)))
    }

    /// Reads a value that is on disk while nobody is writing to its key.
    fn read_kv(self: &Rc<Self>, lookup: Lookup, operation: Operation) -> rt::Task<Result<Outcome>> {
        let shard = Rc::clone(self);
        let now = rt::wall_ms();
        rt::spawn(async move {
            let found = lookup.read(&KeyRef::of(&operation.key)).await?;
            // It may be the value of a write that others are still waiting for.
            let lsn = shard.depends_on(found.as_ref());
            shard.store.wait_acknowledged(lsn).await?;
            match shard.decide_kv(&operation, found.as_ref(), now) {
                Err(outcome) => Ok(outcome),
                Ok(_) => unreachable!("only reads are done without a latch"),
            }
        })
    }

    /// The record that is to be written; or, if none is, the outcome.
    fn decide_kv<'o>(
        &self,
        operation: &'o Operation,
        found: Option<&Found>,
        now: UnixMillis,
    ) -> Result<(Meta, &'o [u8]), Outcome> {
        let view = found.map(|found| found.record.view());
        let held = view.filter(|view| view.is_live(now)).map(|view| Held {
            version: view.meta().version,
            expiry: view.meta().expiry,
            length: u64::from(view.value_length()),
            value: match view.pointer() {
                Some(_) => {
                    assert!(
                        want_of(operation) == Want::Meta,
                        "who needs a value asks for it"
                    );
                    &[]
                }
                None => view.value(),
            },
        });
        let (value, expiry, tombstone) = match decide(&operation.deed, held, now) {
            Decision::Tell(outcome) => return Err(outcome),
            Decision::Put(value, expiry) => (value, expiry, false),
            Decision::Delete => (&[][..], 0, true),
        };
        let version = self.next_version(now);
        let meta = Meta {
            version,
            expiry,
            tombstone,
        };
        Ok((meta, value))
    }
}

fn written(meta: Meta) -> Outcome {
    let written = Written {
        version: meta.version,
        expiry: meta.expiry,
        replicas: REPLICAS,
    };
    match meta.tombstone {
        true => Outcome::Deleted(written),
        false => Outcome::Stored(written),
    }
}

fn want_of(operation: &Operation) -> Want {
    match operation.deed {
        super::Deed::Get(Part::Value) => Want::Value,
        _ => Want::Meta,
    }
}
