//! The committer of a log: batches are written one after the other, synced as durability asks, and
//! then whoever waits for them is told.

use std::rc::Rc;
use std::time::Duration;

use super::format::{self, BATCH_HEADER_BYTES, BatchHeader, Stream, padded};
use super::gather::Gather;
use super::pending::Value;
use super::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, Full, Pending, Placed, Segment, WRITES_MAX, Wal};
use crate::config::Durability;
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, WriteBuffer};
use crate::storage::record::Pointer;

/// A larger batch waits for nobody: what it takes on the disk is not much more than its bytes take.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// A batch on its way to the disk.
pub(super) struct Batch {
    pending: Pending,
    sequence: u64,
    synced: u64,
}

impl Wal {
    /// The committer: one batch after the other, as long as there are any.
    pub(super) async fn commit_batches(self) {
        let mut gather = Gather::default();
        loop {
            self.gather(&mut gather).await;
            let batch = self.0.work.wait_for(|| self.next_batch()).await;
            let Some((mut batch, segment, position)) = batch else {
                break;
            };
            let began = rt::now();
            let entries = batch.pending.entries as usize;
            let (last, sequence) = (batch.pending.last, batch.sequence);
            let placed = placed_of(
                &mut batch.pending,
                self.0.options.stream,
                &segment,
                position,
            );
            let first = batch.pending.first;
            if let Err(error) = self.write_batch(batch, &segment, position).await {
                self.fail(&error);
                break;
            }
            if self.has_failed() {
                break; // another log has, and what is written now may rest on what it lost
            }
            let mut state = self.0.state.borrow_mut();
            state.written = last;
            state.sequence_written = sequence;
            state.in_flight = None;
            state.placed.extend(placed);
            if self.0.options.durability == Durability::Sync {
                state.sequence_synced = sequence;
            } else {
                state.unsynced = state.unsynced.or(Some(first));
            }
            self.0.tell_undurable(&state);
            let pending = state.pending_entries();
            drop(state);
            self.0.options.fate.progress.wake_all();
            let now = rt::now();
            gather.ended(now, now.saturating_sub(began), entries, pending);
        }
        self.0.state.borrow_mut().stopped = true;
        self.0.options.fate.progress.wake_all();
    }

    /// Waits until there is a batch, and for what may soon come into it. Nobody waits for what the
    /// collector moves, nor, unless each batch is synced, for anything else.
    async fn gather(&self, gather: &mut Gather) {
        let is_waited_for = self.0.options.stream != Stream::Moved;
        if !is_waited_for || self.0.options.durability != Durability::Sync {
            return;
        }
        let is_over = || self.has_failed() || self.0.state.borrow().stopping;
        let begun = || is_over() || self.0.state.borrow().pending.is_some();
        self.0.work.wait_for(|| begun().then_some(())).await;
        while !is_over() && !self.is_pending_large() {
            let pending = self.0.state.borrow().pending_entries();
            match gather.pause(rt::now(), pending) {
                Some(pause) => rt::sleep(pause).await,
                None => return,
            }
        }
    }

    /// True if more in the pending batch is no gain, or writers may soon find no room in it.
    fn is_pending_large(&self) -> bool {
        let state = self.0.state.borrow();
        let filled = state.pending.as_ref().map_or(0, |pending| pending.filled);
        filled >= GATHERED_BYTES_MAX.min(self.0.options.limits.batch_bytes_max / 2)
    }

    /// Takes the pending batch and a place for it. `Some(None)`: stop.
    fn next_batch(&self) -> Option<Option<(Batch, Rc<Segment>, u64)>> {
        let mut state = self.0.state.borrow_mut();
        if self.has_failed() {
            return Some(None); // what is pending stays, as something that never became durable
        }
        let Some(pending) = state.pending.take() else {
            return state.stopping.then_some(None);
        };
        state.in_flight = Some(pending.first);
        let bytes = padded(pending.filled) as u64;
        state.buffer_bytes = padded(pending.filled).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        let left = state
            .current
            .as_ref()
            .map_or(0, |segment| segment.bytes - state.used);
        if bytes > left {
            let spare = self
                .0
                .supply
                .take_spare()
                .expect("admitted batches fit, by `admit`");
            assert!(bytes <= spare.bytes - BLOCK_BYTES as u64);
            let (first, last) = (state.current_first, state.written);
            if let Some(segment) = state.current.replace(Rc::new(spare)) {
                state.full.push_back(Full {
                    segment,
                    first,
                    last,
                });
            }
            state.current_first = state.sequence_next;
            state.used = BLOCK_BYTES as u64;
        }
        let segment = Rc::clone(
            state
                .current
                .as_ref()
                .expect("there is one since the first batch"),
        );
        let position = state.used;
        state.used += bytes;
        let sequence = state.sequence_next;
        state.sequence_next += 1;
        let batch = Batch {
            pending,
            sequence,
            synced: state.sequence_synced,
        };
        Some(Some((batch, segment, position)))
    }

    async fn write_batch(
        &self,
        mut batch: Batch,
        segment: &Rc<Segment>,
        position: u64,
    ) -> Result<()> {
        let starts_segment = position == BLOCK_BYTES as u64;
        let mut synced = batch.synced;
        if starts_segment && self.0.options.durability != Durability::Sync {
            // Replay takes a later segment as proof that the earlier ones were whole.
            self.sync_written().await;
            if self.has_failed() {
                return Err(Error::LogFailed);
            }
            synced = self.0.state.borrow().sequence_synced;
            assert!(synced + 1 == batch.sequence, "rotating syncs all before it");
        }
        let pending = &mut batch.pending;
        let header = BatchHeader {
            life: segment.life,
            sequence: batch.sequence,
            synced,
            durable: self.0.options.fate.durable(),
            first: pending.first,
            length: (pending.filled - BATCH_HEADER_BYTES) as u32,
            entries: pending.entries,
        };
        pending.trim();
        format::seal_batch(header, &mut pending.buffers);
        write_buffers(batch.pending.buffers, segment, position).await?;
        let is_moved = self.0.options.stream == Stream::Moved;
        let is_skipped = rt::planted(Bug::NoSync) || (is_moved && rt::planted(Bug::MovedUnsynced));
        if self.0.options.durability == Durability::Sync && !is_skipped {
            if rt::planted(Bug::AcknowledgeBeforeSync) && !is_moved {
                self.0.state.borrow_mut().in_flight = None;
                self.0.options.fate.progress.wake_all();
            }
            segment.file.sync().await?;
        }
        Ok(())
    }

    /// Syncs what has been written, in the durabilities that do not do so by themselves.
    pub(super) async fn sync_written(&self) {
        self.wait_for(|| (!self.0.state.borrow().is_syncing).then_some(()))
            .await;
        let (segments, sequence) = {
            let mut state = self.0.state.borrow_mut();
            if self.has_failed() || state.sequence_synced == state.sequence_written {
                return;
            }
            state.is_syncing = true;
            state.syncing = state.unsynced.take();
            // A batch may have moved on to a new segment; what was written before it lies in the
            // last full one, and rotating synced everything older.
            let full = state.full.back().map(|full| &full.segment);
            let current = state.current.as_ref();
            let segments: Vec<_> = full.into_iter().chain(current).map(Rc::clone).collect();
            (segments, state.sequence_written)
        };
        let mut synced = Ok(());
        for segment in segments {
            synced = synced.and(segment.file.sync().await);
        }
        if let Err(error) = &synced {
            self.fail(error);
        }
        let mut state = self.0.state.borrow_mut();
        state.is_syncing = false;
        // If a sync failed meanwhile, then what this one covered may be lost with it.
        if !self.has_failed() {
            state.syncing = None;
            state.sequence_synced = state.sequence_synced.max(sequence);
        }
        self.0.tell_undurable(&state);
        drop(state);
        self.0.options.fate.progress.wake_all();
    }

    /// `durability = "periodic"`: everything written is synced once in `interval`.
    pub(super) async fn sync_now_and_then(self, interval: Duration) {
        while !self.0.state.borrow().stopping && !self.has_failed() {
            rt::sleep(interval).await;
            self.sync_written().await;
        }
    }
}

/// The places of a batch's records, when it lies at `position`.
fn placed_of(
    pending: &mut Pending,
    stream: Stream,
    segment: &Rc<Segment>,
    position: u64,
) -> Vec<Placed> {
    let values = std::mem::take(&mut pending.values).into_iter();
    let placed = |value: Value| Placed {
        pointer: Pointer {
            stream,
            segment: segment.id,
            offset: u32::try_from(position + value.offset as u64)
                .expect("segments are smaller than 4 GiB"),
            length: value.length,
            crc: value.crc,
            value_length: value.record.view().value_length(),
        },
        record: value.record,
        position: value.position,
        lsn: value.lsn,
        segment: Rc::clone(segment),
    };
    values.map(placed).collect()
}

/// Writes all of `buffers`, which lie behind each other from `position` on.
async fn write_buffers(
    buffers: Vec<WriteBuffer>,
    segment: &Rc<Segment>,
    mut position: u64,
) -> Result<()> {
    let mut buffers = buffers.into_iter();
    while let Some(first) = buffers.next() {
        let first_at = position;
        position += first.len() as u64;
        let mut others = Vec::new();
        for buffer in buffers.by_ref().take(WRITES_MAX - 1) {
            let (segment, at) = (Rc::clone(segment), position);
            position += buffer.len() as u64;
            others.push(rt::spawn(
                async move { segment.file.write_at(buffer, at).await },
            ));
        }
        let mut written = segment.file.write_at(first, first_at).await;
        for other in others {
            written = written.and(other.await);
        }
        written?;
    }
    Ok(())
}
