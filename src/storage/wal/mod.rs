//! The write-ahead log of one core: a write is acknowledged once its batch here is synced.
//!
//! Group commit: writers append to the pending batch and wait; the committer writes it (with one
//! aligned write, or a few if it is large), syncs it once, and wakes them; meanwhile the next batch
//! forms. A batch is never written with other bytes, so a torn write can only hurt what nobody was
//! told of (`format`, `replay`).
//!
//! Segments are filled with zeros before their first use and recycled afterwards, so that a sync
//! waits for no file-system metadata, and so that a full disk is met by the preparer, which can
//! wait, and not by a write that was admitted. Invariant: the pending batch fits into the
//! current segment or into the spare one; [`Wal::admit`] sees to it, so appending cannot fail.
//!
//! A failed write or sync poisons the log: nothing is known of that batch, what came after it
//! is not written, and every later write is refused until the node opens its data anew.

pub mod format;
pub mod replay;
mod segment;
pub mod verify;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::config::Durability;
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, BLOCK_BYTES, Bug, WriteBuffer};
use crate::types::{CoreId, Lsn, Version};
use format::{BATCH_HEADER_BYTES, BatchHeader, ENTRY_HEADER_BYTES, Sink, padded};
use replay::Floor;
use segment::{Segment, Supply};

/// A batch that is larger lies in several buffers, each of which is one request to the device.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// A batch's first buffer is as large as the last batch, but no smaller than this.
const BUFFER_BYTES_MIN: usize = 16 << 10;
/// Buffers of one batch that are written at the same time.
const WRITES_MAX: usize = 4;
const _: () = assert!(BUFFER_BYTES_MAX.is_multiple_of(BLOCK_BYTES));

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct WalLimits {
    /// Bytes of a segment; a record that does not fit gets a larger one of its own.
    pub segment_bytes: u64,
    /// A batch takes no further record beyond this many bytes.
    pub batch_bytes_max: usize,
}

/// May this write be appended?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes, now.
    Ready,
    /// Not yet: room is on its way.
    Wait,
    /// No: the disk is full.
    DiskFull,
    /// No: the disk fails what must be written before.
    DiskFails,
    /// No: the log failed.
    Failed,
}

/// A core's log. Clones are the same log.
#[derive(Clone)]
pub struct Wal(Rc<Inner>);

struct Inner {
    durability: Durability,
    limits: WalLimits,
    state: RefCell<State>,
    supply: Supply,
    /// Something was appended, or the log is to stop.
    work: Signal,
    /// Durability advanced, room came, or the log failed.
    progress: Signal,
}

struct State {
    pending: Option<Pending>,
    /// Bytes of the next batch's first buffer.
    buffer_bytes: usize,
    current: Option<Rc<Segment>>,
    /// Bytes of `current` that are taken, by batches written or in flight.
    used: u64,
    /// The number of its first batch.
    current_first: u64,
    /// Earlier segments, oldest first.
    full: VecDeque<Full>,
    sequence_next: u64,
    sequence_synced: u64,
    /// The last batch whose write has ended.
    sequence_written: u64,
    written: Lsn,
    durable: Lsn,
    failed: bool,
    stopping: bool,
    stopped: bool,
}

/// A segment that takes no more batches.
struct Full {
    segment: Rc<Segment>,
    /// The number of its first batch.
    first: u64,
    /// The last record in it.
    last: Lsn,
}

/// A batch that is being put together.
struct Pending {
    /// Bytes of the batch that lie behind each other. All are full but the last; all but the only
    /// one have [`BUFFER_BYTES_MAX`].
    buffers: Vec<WriteBuffer>,
    filled: usize,
    entries: u32,
    last: Lsn,
}

impl Pending {
    /// Makes room for `bytes` in all, in buffers that `buffer` makes.
    fn make_room(&mut self, bytes: usize, buffer: impl Fn(usize) -> WriteBuffer) {
        let first = self.buffers[0].len();
        if first < bytes.min(BUFFER_BYTES_MAX) {
            let mut larger = buffer(padded(bytes.max(2 * first)).min(BUFFER_BYTES_MAX));
            larger[..self.filled].copy_from_slice(&self.buffers[0][..self.filled]);
            self.buffers[0] = larger;
        }
        while bytes > self.buffers.len() * BUFFER_BYTES_MAX {
            self.buffers.push(buffer(BUFFER_BYTES_MAX));
        }
    }

    /// Gives up room that is not needed.
    fn trim(&mut self) {
        let bytes = padded(self.filled);
        self.buffers.truncate(bytes.div_ceil(BUFFER_BYTES_MAX));
        let before = (self.buffers.len() - 1) * BUFFER_BYTES_MAX;
        let last = self.buffers.last_mut().expect("there is a header");
        last.truncate(bytes - before);
    }
}

impl Sink for Pending {
    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let buffer = &mut self.buffers[self.filled / BUFFER_BYTES_MAX];
            let free = &mut buffer[self.filled % BUFFER_BYTES_MAX..];
            let (now, later) = rest.split_at(rest.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            rest = later;
        }
    }
}

impl Wal {
    /// Starts a log in `dir` behind what `replay` found there, and its tasks. The first segment is
    /// ready, or refused by the disk, when this returns.
    pub async fn start(
        dir: PathBuf,
        durability: Durability,
        limits: WalLimits,
        found: replay::Found,
    ) -> Wal {
        assert!(limits.segment_bytes.is_multiple_of(BLOCK_BYTES as u64));
        assert!(limits.segment_bytes > 2 * BLOCK_BYTES as u64);
        let last = super::RECOVERED;
        let full = |(segment, first)| Full {
            segment: Rc::new(segment),
            first,
            last,
        };
        let full = found.segments.into_iter().map(full).collect();
        let state = State {
            pending: None,
            buffer_bytes: BUFFER_BYTES_MIN,
            current: None,
            used: 0,
            current_first: found.sequence_next,
            full,
            sequence_next: found.sequence_next,
            sequence_synced: found.sequence_next - 1,
            sequence_written: found.sequence_next - 1,
            written: last,
            durable: last,
            failed: false,
            stopping: false,
            stopped: false,
        };
        let supply = Supply::new(dir, limits.segment_bytes, found.segment_next, found.blank);
        let wal = Wal(Rc::new(Inner {
            durability,
            limits,
            state: RefCell::new(state),
            supply,
            work: Signal::default(),
            progress: Signal::default(),
        }));
        rt::spawn_in(rt::Queue::Background, wal.clone().prepare_segments());
        rt::spawn(wal.clone().commit_batches());
        if let Durability::Periodic(interval) = durability {
            rt::spawn(wal.clone().sync_now_and_then(interval));
        }
        wal.wait_for(|| wal.0.supply.is_decided().then_some(()))
            .await;
        wal
    }

    /// Says whether entries whose bodies have `bytes` in all, `entries` of them, may be appended.
    pub fn admit(&self, bytes: usize, entries: usize) -> Admission {
        let state = self.0.state.borrow();
        if state.failed || state.stopping {
            return Admission::Failed;
        }
        let need = bytes + entries * ENTRY_HEADER_BYTES;
        let before = state
            .pending
            .as_ref()
            .map_or(BATCH_HEADER_BYTES, |pending| pending.filled);
        let batch = padded(before + need) as u64;
        if state.pending.is_some() && batch > self.0.limits.batch_bytes_max as u64 {
            return Admission::Wait;
        }
        let left = state
            .current
            .as_ref()
            .map_or(0, |segment| segment.bytes - state.used);
        if batch <= left || batch <= self.0.supply.spare_room() {
            return Admission::Ready;
        }
        let alone = padded(BATCH_HEADER_BYTES + need) as u64;
        if self.0.supply.refuses(alone) {
            return Admission::DiskFull;
        }
        self.0.supply.ask_for(alone);
        Admission::Wait
    }

    /// Waits until [`Wal::admit`] says something else than `Wait`, and fails if that is a refusal.
    pub async fn wait_admitted(&self, bytes: usize, entries: usize) -> Result<()> {
        self.wait_for(|| match self.admit(bytes, entries) {
            Admission::Ready => Some(Ok(())),
            Admission::Wait => None,
            Admission::DiskFull => Some(Err(Error::DiskFull)),
            Admission::DiskFails => Some(Err(Error::DiskFails)),
            Admission::Failed => Some(Err(Error::LogFailed)),
        })
        .await
    }

    /// Appends a record. It was admitted, with nothing awaited in between.
    pub fn append_record(&self, lsn: Lsn, record: &[u8]) {
        self.append(lsn, record.len(), |out| format::put_record(record, out));
    }

    /// Appends already encoded record and clear entries, all in one batch: all or none survive.
    pub fn append_entries(&self, lsn: Lsn, count: u32, entries: &[u8]) {
        assert!(count > 0);
        self.append(lsn, entries.len(), |out| out.put(entries));
        if let Some(pending) = &mut self.0.state.borrow_mut().pending {
            pending.entries += count - 1;
        }
    }

    /// Appends this core's part of a transaction over several cores.
    pub fn append_prepare(&self, lsn: Lsn, transaction: Version, cores: &[CoreId], parts: &[u8]) {
        self.append(
            lsn,
            format::prepare_bytes(cores.len(), parts.len()),
            |out| {
                format::put_prepare(transaction, cores, parts, out);
            },
        );
    }

    /// Appends the word that all cores of `transaction` have prepared.
    pub fn append_commit(&self, lsn: Lsn, transaction: Version) {
        self.append(lsn, format::MARKER_BYTES, |out| {
            format::put_commit(transaction, out)
        });
    }

    /// Appends the word that what was prepared of `transaction` must never hold.
    pub fn append_abort(&self, lsn: Lsn, transaction: Version) {
        self.append(lsn, format::MARKER_BYTES, |out| {
            format::put_abort(transaction, out)
        });
    }

    fn append(&self, lsn: Lsn, bytes: usize, put: impl FnOnce(&mut Pending)) {
        let mut state = self.0.state.borrow_mut();
        assert!(!state.failed, "a failed log admits nothing");
        let fresh = state.pending.is_none();
        let mut pending = state.pending.take().unwrap_or_else(|| Pending {
            buffers: vec![self.buffer(&state, state.buffer_bytes)],
            filled: BATCH_HEADER_BYTES,
            entries: 0,
            last: lsn,
        });
        assert!(
            fresh || lsn > pending.last,
            "records are numbered in the order of the log"
        );
        let need = pending.filled + ENTRY_HEADER_BYTES + bytes;
        pending.make_room(need, |bytes| self.buffer(&state, bytes));
        put(&mut pending);
        pending.entries += 1;
        pending.last = lsn;
        state.pending = Some(pending);
        drop(state);
        if fresh {
            self.0.work.wake_all();
        }
    }

    fn buffer(&self, state: &State, bytes: usize) -> WriteBuffer {
        match &state.current {
            Some(segment) => segment.file.buffer(bytes),
            None => self.0.supply.buffer(bytes),
        }
    }

    /// True if the record `lsn` may be acknowledged, or shown to a reader.
    pub fn is_acknowledged(&self, lsn: Lsn) -> bool {
        let state = self.0.state.borrow();
        lsn <= state.durable || (self.0.durability != Durability::Sync && !state.failed)
    }

    /// Waits until the record `lsn` may be acknowledged. `Uncertain` if the log failed before.
    pub async fn wait_acknowledged(&self, lsn: Lsn) -> Result<()> {
        self.wait_for(|| {
            if self.is_acknowledged(lsn) {
                return Some(Ok(()));
            }
            self.0
                .state
                .borrow()
                .failed
                .then_some(Err(Error::Uncertain))
        })
        .await
    }

    /// Waits until the record `lsn` is durable, whatever the durability setting says.
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        if self.0.state.borrow().durable >= lsn {
            return Ok(());
        }
        if self.0.durability != Durability::Sync {
            self.wait_for(|| {
                let state = self.0.state.borrow();
                (state.written >= lsn || state.failed).then_some(())
            })
            .await;
            self.sync_written().await;
        }
        self.wait_for(|| {
            let state = self.0.state.borrow();
            if state.durable >= lsn {
                return Some(Ok(()));
            }
            state.failed.then_some(Err(Error::Uncertain))
        })
        .await
    }

    /// Returns once a write or a sync of the log has failed.
    pub async fn failure(&self) {
        self.wait_for(|| self.has_failed().then_some(())).await;
    }

    /// True once a write or a sync of the log has failed.
    pub fn has_failed(&self) -> bool {
        self.0.state.borrow().failed
    }

    /// True while the disk refuses a new segment.
    pub fn is_refused(&self) -> bool {
        self.0.supply.is_refused()
    }

    /// Bytes of all segments that hold something.
    pub fn bytes(&self) -> u64 {
        let state = self.0.state.borrow();
        state
            .full
            .iter()
            .map(|full| full.segment.bytes)
            .sum::<u64>()
            + state.used
    }

    /// Where replay must begin once every record up to `flushed` is in a table.
    pub fn floor(&self, flushed: Lsn) -> Floor {
        let state = self.0.state.borrow();
        let kept = state.full.iter().find(|full| full.last > flushed);
        match (kept, &state.current) {
            (Some(full), _) => Floor {
                segment: full.segment.id,
                sequence: full.first,
            },
            (None, Some(current)) => Floor {
                segment: current.id,
                sequence: state.current_first,
            },
            (None, None) => Floor {
                segment: self.0.supply.id_next(),
                sequence: state.sequence_next,
            },
        }
    }

    /// Gives up the segments below `floor`, which the manifest no longer asks for.
    pub fn release(&self, floor: Floor) {
        let mut state = self.0.state.borrow_mut();
        while state
            .full
            .front()
            .is_some_and(|full| full.segment.id < floor.segment)
        {
            let full = state.full.pop_front().expect("there is a first one");
            self.0.supply.recycle(full.segment);
        }
    }

    /// Writes and syncs what is pending and ends the log's tasks. Nothing may be appended any more.
    pub async fn stop(&self) -> Result<()> {
        self.0.state.borrow_mut().stopping = true;
        self.0.supply.stop();
        self.0.work.wake_all();
        self.0.progress.wake_all();
        self.wait_for(|| self.0.state.borrow().stopped.then_some(()))
            .await;
        self.sync_written().await;
        let state = self.0.state.borrow();
        if state.failed {
            Err(Error::Uncertain)
        } else {
            Ok(())
        }
    }

    async fn wait_for<T>(&self, check: impl FnMut() -> Option<T>) -> T {
        self.0.progress.wait_for(check).await
    }

    /// The committer: one batch after the other, as long as there are any.
    async fn commit_batches(self) {
        loop {
            let batch = self.0.work.wait_for(|| self.next_batch()).await;
            let Some((batch, segment, position)) = batch else {
                break;
            };
            let (last, sequence) = (batch.last, batch.sequence);
            if let Err(error) = self.write_batch(batch, &segment, position).await {
                self.fail(&error);
                break;
            }
            let mut state = self.0.state.borrow_mut();
            state.written = last;
            state.sequence_written = sequence;
            if self.0.durability == Durability::Sync {
                state.durable = last;
                state.sequence_synced = sequence;
            }
            drop(state);
            self.0.progress.wake_all();
        }
        self.0.state.borrow_mut().stopped = true;
        self.0.progress.wake_all();
    }

    /// Takes the pending batch and a place for it. `Some(None)`: stop.
    fn next_batch(&self) -> Option<Option<(Batch, Rc<Segment>, u64)>> {
        let mut state = self.0.state.borrow_mut();
        let Some(pending) = state.pending.take() else {
            return (state.stopping || state.failed).then_some(None);
        };
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
        let (synced, last) = (state.sequence_synced, pending.last);
        Some(Some((
            Batch {
                pending,
                sequence,
                synced,
                last,
            },
            segment,
            position,
        )))
    }

    async fn write_batch(
        &self,
        mut batch: Batch,
        segment: &Rc<Segment>,
        position: u64,
    ) -> Result<()> {
        let starts_segment = position == BLOCK_BYTES as u64;
        let mut synced = batch.synced;
        if starts_segment && self.0.durability != Durability::Sync {
            // Replay takes a later segment as proof that the earlier ones were whole.
            self.sync_written().await;
            let state = self.0.state.borrow();
            if state.failed {
                return Err(Error::LogFailed);
            }
            synced = state.sequence_synced;
            assert!(synced + 1 == batch.sequence, "rotating syncs all before it");
        }
        let pending = &mut batch.pending;
        let header = BatchHeader {
            life: segment.life,
            sequence: batch.sequence,
            synced,
            length: (pending.filled - BATCH_HEADER_BYTES) as u32,
            entries: pending.entries,
        };
        pending.trim();
        format::seal_batch(header, &mut pending.buffers);
        write_buffers(batch.pending.buffers, segment, position).await?;
        if self.0.durability == Durability::Sync && !rt::planted(Bug::NoSync) {
            if rt::planted(Bug::AcknowledgeBeforeSync) {
                self.0.state.borrow_mut().durable = batch.last;
                self.0.progress.wake_all();
            }
            segment.file.sync().await?;
        }
        Ok(())
    }

    /// Syncs what has been written, in the durabilities that do not do so by themselves.
    async fn sync_written(&self) {
        let (segments, written, sequence) = {
            let state = self.0.state.borrow();
            if state.failed || state.sequence_synced == state.sequence_written {
                return;
            }
            // A batch may have moved on to a new segment; what was written before it lies in the
            // last full one, and rotating synced everything older.
            let full = state.full.back().map(|full| &full.segment);
            let current = state.current.as_ref();
            let segments: Vec<_> = full.into_iter().chain(current).map(Rc::clone).collect();
            (segments, state.written, state.sequence_written)
        };
        for segment in segments {
            if let Err(error) = segment.file.sync().await {
                self.fail(&error);
                return;
            }
        }
        let mut state = self.0.state.borrow_mut();
        if state.failed {
            return; // another sync failed meanwhile: what this one covered may be lost with it
        }
        state.durable = state.durable.max(written);
        state.sequence_synced = state.sequence_synced.max(sequence);
        drop(state);
        self.0.progress.wake_all();
    }

    /// `durability = "periodic"`: everything written is synced once in `interval`.
    async fn sync_now_and_then(self, interval: Duration) {
        while !self.0.state.borrow().stopping && !self.has_failed() {
            rt::sleep(interval).await;
            self.sync_written().await;
        }
    }

    /// Keeps a spare segment ready.
    async fn prepare_segments(self) {
        let mut told = false;
        while self.0.supply.wanted().await {
            match self.0.supply.prepare().await {
                Ok(()) if told => {
                    log::info!("there is a new log segment again");
                    told = false;
                }
                Ok(()) => {}
                Err(error) => {
                    if !told {
                        log::warn!("no new log segment, writes are refused meanwhile: {error}");
                    }
                    told = true;
                    self.0.progress.wake_all();
                    self.0.supply.pause().await;
                }
            }
            self.0.progress.wake_all();
        }
    }

    /// Nothing more is written or acknowledged: after a failed write or sync, or because something
    /// could not be logged that later records would need before them.
    pub fn fail(&self, error: &Error) {
        let mut state = self.0.state.borrow_mut();
        if !state.failed {
            log::error!("the log failed, writes are refused until a restart: {error}");
        }
        state.failed = true;
        state.pending = None;
        drop(state);
        self.0.progress.wake_all();
        self.0.work.wake_all();
    }
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

/// A batch on its way to the disk.
struct Batch {
    pending: Pending,
    sequence: u64,
    synced: u64,
    last: Lsn,
}

#[cfg(test)]
mod tests;
