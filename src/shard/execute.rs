//! One command on keys of this core, at once: without waiting for the disk or for anybody.
//!
//! That is possible if no key is latched, memory knows what its newest record is (or the command
//! does not ask), and the log takes the write. Otherwise nothing is done, and the command becomes a
//! transaction of its own (`transaction`), which may wait.

use super::Shard;
use super::evaluate::{Current, Effect, evaluate};
use super::refusal::reply_refusal;
use crate::protocol::command::{KeyCommand, KeyOp, KeysCommand};
use crate::protocol::reply::{Protocol, Reply};
use crate::storage::record::{KeyRef, Meta, Record};
use crate::storage::wal::Admission;
use crate::storage::{Batch, Found, Lookup, Peek, Want};
use crate::types::{Lsn, UnixMillis};

/// What became of an attempt.
pub enum Ran {
    /// The reply is written. It may be sent once the record with this number is acknowledged.
    Done(Lsn),
    /// The answer is on disk.
    Cold(Lookup),
    /// It has to wait for its turn; nothing was done.
    Wait,
}

impl Shard {
    /// Runs `op` on `key`, which is this core's, if it can be done at once.
    pub fn run_key(&self, key: &KeyRef<'_>, op: &KeyOp<'_>, to: &mut Replying<'_>) -> Ran {
        if !self.latches.is_free(key.hash) {
            return Ran::Wait;
        }
        let current = if op.needs_current() {
            match self.store.peek(key, want_of(op)) {
                Peek::Known(found) => found,
                Peek::OnDisk(lookup) if !op.is_write() => return Ran::Cold(lookup),
                Peek::OnDisk(_) => return Ran::Wait,
            }
        } else {
            None
        };
        let start = to.out.len();
        let read = self.depends_on(current.as_ref());
        let effect = self.evaluate(op, current.as_ref(), to);
        let Some((meta, value)) = self.as_record(&effect, to.now) else {
            return Ran::Done(read);
        };
        let admission = self.store.admit(key.key.len(), value.len());
        if admission == Admission::Ready {
            let record = Record::new(meta, key.key, value);
            return Ran::Done(self.store.write(key.position, record));
        }
        to.out.truncate(start);
        let Some(refusal) = admission.refusal() else {
            return Ran::Wait;
        };
        reply_refusal(&refusal, &mut Reply::new(to.out, to.protocol));
        Ran::Done(read)
    }

    /// Runs a command on several keys, all of them this core's, in one go.
    pub fn run_keys(&self, command: &KeysCommand<'_>, to: &mut Replying<'_>) -> Ran {
        let mut replies = Vec::new();
        let mut ends = Vec::with_capacity(command.len());
        let mut batch = Batch::default();
        let mut read = Lsn(0);
        let mut seen: Vec<&[u8]> = Vec::new();
        for part in command.parts() {
            let key = KeyRef::of(part.key);
            if !self.latches.is_free(key.hash) || (command.is_write() && seen.contains(&part.key)) {
                return Ran::Wait; // a key that is named twice is rare: the patient way knows how
            }
            if command.is_write() && command.len() <= SEEN_MAX {
                seen.push(part.key);
            } else if command.is_write() {
                return Ran::Wait;
            }
            let current = match part
                .op
                .needs_current()
                .then(|| self.store.peek(&key, want_of(&part.op)))
            {
                Some(Peek::OnDisk(_)) => return Ran::Wait,
                Some(Peek::Known(found)) => found,
                None => None,
            };
            read = read.max(self.depends_on(current.as_ref()));
            let mut part_to = Replying {
                out: &mut replies,
                protocol: to.protocol,
                now: to.now,
            };
            let effect = self.evaluate(&part.op, current.as_ref(), &mut part_to);
            if let Some((meta, value)) = self.as_record(&effect, to.now) {
                batch
                    .records
                    .push((key.position, Record::new(meta, key.key, value)));
            }
            ends.push(replies.len());
            if replies.len() as u64 > self.config.limits.reply_max.0 {
                return Ran::Wait;
            }
        }
        if !batch.is_empty() {
            if self.store.admit_batch(&batch) != Admission::Ready {
                return Ran::Wait;
            }
            read = self.store.write_batch(batch);
        }
        let start = |index: usize| index.checked_sub(1).map_or(0, |before: usize| ends[before]);
        let parts = (0..ends.len()).map(|index| &replies[start(index)..ends[index]]);
        command.merge().join(parts, to.protocol, to.out);
        Ran::Done(read)
    }

    /// Evaluates `op` on what was found, writing the reply.
    pub fn evaluate<'a>(
        &self,
        op: &KeyOp<'a>,
        found: Option<&'a Found>,
        to: &mut Replying<'_>,
    ) -> Effect<'a> {
        let view = found
            .map(|found| found.record.view())
            .filter(|view| view.is_live(to.now));
        let current = view.map(|view| Current {
            value: match view.pointer() {
                Some(_) => {
                    assert!(!op.needs_value(), "who needs a value asks for it");
                    &[]
                }
                None => view.value(),
            },
            length: view.value_length(),
            expiry: view.meta().expiry,
        });
        let value_max = self.config.limits.value_max.0 as usize;
        evaluate(
            op,
            current,
            to.now,
            value_max,
            &mut Reply::new(to.out, to.protocol),
        )
    }

    /// The record that `effect` asks for, as its description and value.
    pub fn as_record<'e>(
        &self,
        effect: &'e Effect<'_>,
        now: UnixMillis,
    ) -> Option<(Meta, &'e [u8])> {
        let (value, expiry, tombstone) = match effect {
            Effect::None => return None,
            Effect::Put { value, expiry } => (&value[..], *expiry, false),
            Effect::Delete => (&[][..], 0, true),
        };
        Some((
            Meta {
                version: self.next_version(now),
                expiry,
                tombstone,
            },
            value,
        ))
    }

    /// What must be acknowledged before a reply may tell of `found`: of nothing, too.
    pub fn depends_on(&self, found: Option<&Found>) -> Lsn {
        found.map_or_else(|| self.store.lsn_cleared(), |found| found.lsn)
    }

    /// True if `command` may be run on its key at all: keys have a size limit.
    pub fn key_fits(&self, command: &KeyCommand<'_>) -> bool {
        command.key.len() as u64 <= self.config.limits.key_max.0
    }
}

/// What `op` needs to know of its key.
pub fn want_of(op: &KeyOp<'_>) -> Want {
    match op.needs_value() {
        true => Want::Value,
        false => Want::Meta,
    }
}

/// More keys than this take the patient way, so that looking for doubles stays cheap.
const SEEN_MAX: usize = 64;

/// Where a reply goes, in what protocol, as of when.
pub struct Replying<'a> {
    /// The bytes of the reply are appended here.
    pub out: &'a mut Vec<u8>,
    /// The client's protocol.
    pub protocol: Protocol,
    /// The moment that decides about expiry.
    pub now: UnixMillis,
}
