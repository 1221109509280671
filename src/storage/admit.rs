//! May a write be made now, and in which log?
//!
//! What is written to must have room: the log, and the memtables. Beyond that writers go at the
//! pace that merges allow (compaction/pace.rs), measured in what the tree gets of a write: of a
//! large value that is a pointer. A batch is written to one log, whole, so that it survives whole.

use futures_lite::future;

use super::record::{POINTER_BYTES, RECORD_HEADER_BYTES, Record};
use super::wal::{Admission, Wal};
use super::{Batch, FROZEN_MAX, Store};
use crate::error::Result;

impl Store {
    /// May a record with a key and a value of so many bytes be written now?
    pub fn admit(&self, key_bytes: usize, value_bytes: usize) -> Admission {
        let bytes = RECORD_HEADER_BYTES + key_bytes + value_bytes;
        let admission = self.admit_to(self.log_for(value_bytes), bytes, 1);
        let large = self.large_bytes(value_bytes);
        self.in_turn(admission, self.tree_bytes(key_bytes, value_bytes), large)
    }

    /// May `batch` be written now?
    pub fn admit_batch(&self, batch: &Batch) -> Admission {
        let admission = self.admit_whole(self.log_of(batch), batch);
        let large = self.batch_large_bytes(batch);
        self.in_turn(admission, self.batch_tree_bytes(batch), large)
    }

    /// Writers are slowed, and at last stopped, while merges are behind; those of large values also
    /// while the collector is.
    fn in_turn(&self, admission: Admission, tree_bytes: usize, large_bytes: usize) -> Admission {
        match admission {
            Admission::Ready if !self.pass_gate(tree_bytes, large_bytes) => Admission::Wait,
            admission => admission,
        }
    }

    fn admit_whole(&self, log: Option<&Wal>, batch: &Batch) -> Admission {
        self.admit_to(log, batch.log_bytes(self.options.cores), batch.entries())
    }

    fn admit_to(&self, log: Option<&Wal>, bytes: usize, entries: usize) -> Admission {
        let state = self.state.borrow();
        // Once the last flush has begun, nothing would take a write to disk any more.
        if self.has_failed() || state.stopping {
            return Admission::Failed;
        }
        if self.is_closed_for_writes() {
            return Admission::Wait;
        }
        if state.frozen.len() >= FROZEN_MAX {
            return state.flush_refused.unwrap_or(Admission::Wait);
        }
        drop(state);
        if self.is_stopped_by_merges() {
            return Admission::Wait;
        }
        match log {
            Some(log) => log.admit(bytes, entries),
            None => Admission::Ready,
        }
    }

    /// The log that a record alone, with a value of so many bytes, is written to.
    fn log_for(&self, value_bytes: usize) -> Option<&Wal> {
        match value_bytes >= self.options.value_bytes_min {
            true => Some(&self.values),
            false => self.wal.as_ref(),
        }
    }

    /// The log that `batch` is written to.
    fn log_of(&self, batch: &Batch) -> Option<&Wal> {
        match (&batch.records[..], batch.clear) {
            ([(_, record)], None) => self.log_for(record.view().value().len()),
            _ => self.wal.as_ref(),
        }
    }

    /// What a record with a key and a value of so many bytes takes in tables.
    fn tree_bytes(&self, key_bytes: usize, value_bytes: usize) -> usize {
        let kept = match value_bytes >= self.options.value_bytes_min {
            true => POINTER_BYTES,
            false => value_bytes,
        };
        RECORD_HEADER_BYTES + key_bytes + kept
    }

    /// What `record` takes in tables.
    pub(super) fn record_tree_bytes(&self, record: &Record) -> usize {
        self.tree_bytes(record.key().len(), record.view().value().len())
    }

    fn batch_tree_bytes(&self, batch: &Batch) -> usize {
        let records = batch.records.iter();
        records
            .map(|(_, record)| self.record_tree_bytes(record))
            .sum()
    }

    /// Bytes of a value, if that is a large one.
    fn large_bytes(&self, value_bytes: usize) -> usize {
        match value_bytes >= self.options.value_bytes_min {
            true => value_bytes,
            false => 0,
        }
    }

    fn batch_large_bytes(&self, batch: &Batch) -> usize {
        let values = batch.records.iter();
        values
            .map(|(_, record)| self.large_bytes(record.view().value().len()))
            .sum()
    }

    /// Waits until `batch` may be written. Whoever waited asks again: others may have been faster.
    pub async fn wait_admitted(&self, batch: &Batch) -> Result<()> {
        self.wait_admitted_to(self.log_of(batch), batch).await
    }

    /// Waits until `batch` may be prepared as a part of a transaction over several cores.
    pub async fn wait_part_admitted(&self, batch: &Batch) -> Result<()> {
        self.wait_admitted_to(self.wal.as_ref(), batch).await
    }

    async fn wait_admitted_to(&self, log: Option<&Wal>, batch: &Batch) -> Result<()> {
        self.wait_open().await?;
        self.wait_at_gate(self.batch_tree_bytes(batch), self.batch_large_bytes(batch))
            .await;
        loop {
            let room = self.wait_for_room();
            match log {
                Some(log) => {
                    future::or(room, log.failure()).await;
                    let bytes = batch.log_bytes(self.options.cores);
                    log.wait_admitted(bytes, batch.entries()).await?;
                }
                None => room.await,
            }
            let admission = self.admit_whole(log, batch);
            if admission == Admission::Ready {
                return Ok(());
            }
            if let Some(refusal) = admission.refusal() {
                return Err(refusal);
            }
        }
    }

    /// Waits until memtables and merges let somebody write, or until that is not to be expected.
    pub(super) async fn wait_for_room(&self) {
        self.changed
            .wait_for(|| {
                let state = self.state.borrow();
                let full = state.frozen.len() >= FROZEN_MAX && state.flush_refused.is_none();
                let over = state.stopping || self.has_failed();
                drop(state);
                (over || !(full || self.is_stopped_by_merges())).then_some(())
            })
            .await;
    }
}
