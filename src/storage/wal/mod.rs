//! A log of one core: a write is acknowledged once its batch here is synced.
//!
//! A core has three of them ([`Stream`]): every write goes to exactly one of the first two, and all
//! of them fail together ([`Fate`]).
//!
//! Group commit: writers append to the pending batch and wait; the committer writes it (with one
//! aligned write, or a few if it is large), syncs it once, and wakes them; meanwhile the next batch
//! forms, and those who were woken may still join it (`gather`). A batch is never written with
//! other bytes, so a torn write can only hurt what nobody was told of (`format`, `replay`).
//!
//! Segments have their space before their first use (those of the write-ahead log are also filled
//! with zeros, and recycled afterwards, so that a sync waits for no file-system metadata), so that
//! a full disk is met by the preparer, which can wait, and not by a write that was admitted.
//! Invariant: the pending batch fits into the current segment or into the spare one; [`Wal::admit`]
//! sees to it, so appending cannot fail.
//!
//! A failed write or sync poisons the log: nothing is known of that batch, what came after it
//! is not written, and every later write is refused until the node opens its data anew.

mod commit;
pub mod format;
mod gather;
mod pending;
pub mod replay;
mod segment;
pub mod verify;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use crate::config::Durability;
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, BLOCK_BYTES, WriteBuffer};
use crate::storage::record::{Pointer, Record};
use crate::types::{CoreId, Lsn, Position, Version};
use format::{BATCH_HEADER_BYTES, ENTRY_HEADER_BYTES, Sink, Stream, padded};
use pending::Value;
use replay::Floor;
use segment::Supply;

pub use segment::Segment;

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
    /// No: there is no file descriptor for what must be written before.
    TooManyFiles,
    /// No: the disk fails what must be written before.
    DiskFails,
    /// No: the log failed.
    Failed,
}

impl Admission {
    /// What follows for writers from an error of the disk, which is asked again.
    pub fn after(error: &Error) -> Admission {
        match error {
            error if error.is_disk_full() => Admission::DiskFull,
            error if error.is_too_many_files() => Admission::TooManyFiles,
            _ => Admission::DiskFails,
        }
    }

    /// What a writer is told, if this is a no.
    pub fn refusal(self) -> Option<Error> {
        match self {
            Admission::Ready | Admission::Wait => None,
            Admission::DiskFull => Some(Error::DiskFull),
            Admission::TooManyFiles => Some(Error::TooManyFiles),
            Admission::DiskFails => Some(Error::DiskFails),
            Admission::Failed => Some(Error::LogFailed),
        }
    }
}

/// What the logs of a core have in common: when one fails, all have failed.
#[derive(Default)]
pub struct Fate {
    failed: Cell<bool>,
    /// The last write that was appended to any of them.
    last: Cell<Lsn>,
    /// The first write of each that is not durable.
    undurable: [Cell<Option<Lsn>>; 2],
    /// Durability advanced, room came, or the logs failed.
    progress: Signal,
}

impl Fate {
    /// True once a write or a sync of one of the logs has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Every write up to this one is durable, in whichever log it is.
    fn durable(&self) -> Lsn {
        let undurable = self.undurable.iter().filter_map(Cell::get).min();
        undurable.map_or(self.last.get(), |first| Lsn(first.0 - 1))
    }

    /// What `stream` has not yet on disk begins at `first`. (The numbers of `moved` are its own.)
    fn note_undurable(&self, stream: Stream, first: Option<Lsn>) {
        match stream {
            Stream::Records => self.undurable[0].set(first),
            Stream::Values => self.undurable[1].set(first),
            Stream::Moved => {}
        }
    }

    /// Returns the first `Some` of `check`, which is called whenever a log has come further.
    pub async fn wait_for<T>(&self, check: impl FnMut() -> Option<T>) -> T {
        self.progress.wait_for(check).await
    }
}

/// How a log is to be.
pub struct LogOptions {
    /// Where its segments are.
    pub dir: PathBuf,
    /// Which of the core's logs it is.
    pub stream: Stream,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Sizes.
    pub limits: WalLimits,
    /// What it shares with the other logs of its core.
    pub fate: Rc<Fate>,
}

/// A record that has its place in the value log, as durably as durability asks.
pub struct Placed {
    /// The record.
    pub record: Record,
    /// The position of its key.
    pub position: Position,
    /// Which write it was.
    pub lsn: Lsn,
    /// Its segment.
    pub segment: Rc<Segment>,
    /// Its place.
    pub pointer: Pointer,
}

/// A core's log. Clones are the same log.
#[derive(Clone)]
pub struct Wal(Rc<Inner>);

struct Inner {
    options: LogOptions,
    state: RefCell<State>,
    supply: Supply,
    /// Something was appended, or the log is to stop.
    work: Signal,
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
    /// The first record of the batch that is on its way.
    in_flight: Option<Lsn>,
    /// The first record that was written and not synced since.
    unsynced: Option<Lsn>,
    /// The first record that the sync under way is for.
    syncing: Option<Lsn>,
    is_syncing: bool,
    /// Records that have come to their places.
    placed: Vec<Placed>,
    stopping: bool,
    stopped: bool,
    /// No segment is made or removed any more.
    are_segments_made: bool,
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
    first: Lsn,
    last: Lsn,
    /// Its records whose places are wanted.
    values: Vec<Value>,
}

impl From<replay::FoundSegment> for Full {
    fn from(found: replay::FoundSegment) -> Full {
        Full {
            segment: found.segment,
            first: found.first,
            last: found.last,
        }
    }
}

impl State {
    /// Entries of the batch that is being put together.
    fn pending_entries(&self) -> usize {
        let pending = self.pending.as_ref();
        pending.map_or(0, |pending| pending.entries as usize)
    }

    /// The first record that is not written yet.
    fn first_unwritten(&self) -> Option<Lsn> {
        let pending = self.pending.as_ref().map(|pending| pending.first);
        self.in_flight.or(pending)
    }

    /// The first record that is not durable yet.
    fn first_undurable(&self) -> Option<Lsn> {
        [self.syncing, self.unsynced, self.first_unwritten()]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Inner {
    /// Tells the other logs what of this one is not on disk.
    fn tell_undurable(&self, state: &State) {
        let first = state.first_undurable();
        self.options.fate.note_undurable(self.options.stream, first);
    }
}

impl Wal {
    /// Starts a log behind what `replay` found, and its tasks. The first segment is ready, or
    /// refused by the disk, when this returns.
    pub async fn start(options: LogOptions, found: replay::Found) -> Wal {
        let segment_bytes = options.limits.segment_bytes;
        assert!(segment_bytes.is_multiple_of(BLOCK_BYTES as u64));
        assert!(segment_bytes > 2 * BLOCK_BYTES as u64);
        let supply = Supply::new(options.dir.clone(), options.stream, segment_bytes, &found);
        let state = State {
            pending: None,
            buffer_bytes: BUFFER_BYTES_MIN,
            current: None,
            used: 0,
            current_first: found.sequence_next,
            sequence_next: found.sequence_next,
            sequence_synced: found.sequence_next - 1,
            sequence_written: found.sequence_next - 1,
            written: found.last(),
            full: found.segments.into_iter().map(Full::from).collect(),
            in_flight: None,
            unsynced: None,
            syncing: None,
            is_syncing: false,
            placed: Vec::new(),
            stopping: false,
            stopped: false,
            are_segments_made: false,
        };
        let (durability, stream) = (options.durability, options.stream);
        let wal = Wal(Rc::new(Inner {
            options,
            state: RefCell::new(state),
            supply,
            work: Signal::default(),
        }));
        let queue = match stream {
            Stream::Records | Stream::Values => rt::Queue::Foreground,
            Stream::Moved => rt::Queue::Background,
        };
        rt::spawn_in(rt::Queue::Background, wal.clone().prepare_segments());
        rt::spawn_in(queue, wal.clone().commit_batches());
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
        if self.has_failed() || state.stopping {
            return Admission::Failed;
        }
        let need = bytes + entries * ENTRY_HEADER_BYTES;
        let before = state
            .pending
            .as_ref()
            .map_or(BATCH_HEADER_BYTES, |pending| pending.filled);
        let batch = padded(before + need) as u64;
        if state.pending.is_some() && batch > self.0.options.limits.batch_bytes_max as u64 {
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
        if let Some(refusal) = self.0.supply.refusal(alone) {
            return refusal;
        }
        self.0.supply.ask_for(alone);
        Admission::Wait
    }

    /// Waits until [`Wal::admit`] says something else than `Wait`, and fails if that is a refusal.
    pub async fn wait_admitted(&self, bytes: usize, entries: usize) -> Result<()> {
        self.wait_for(|| match self.admit(bytes, entries) {
            Admission::Ready => Some(Ok(())),
            admission => admission.refusal().map(Err),
        })
        .await
    }

    /// Appends a record. It was admitted, with nothing awaited in between.
    pub fn append_record(&self, lsn: Lsn, record: &[u8]) {
        self.append(lsn, record.len(), |out| format::put_record(record, out));
    }

    /// Appends a record whose place is wanted: see [`Wal::take_placed`]. What is written is
    /// `stored`: that record, or the same one packed.
    pub fn append_value(&self, lsn: Lsn, position: Position, record: &Record, stored: &[u8]) {
        assert!(self.0.options.stream != Stream::Records);
        assert!(record.pointer().is_none(), "a pointer points to no pointer");
        assert!(stored.len() <= record.bytes().len());
        self.append(lsn, stored.len(), |out| {
            format::put_record(stored, out);
            out.note_value(record, stored, position, lsn);
        });
    }

    /// The records that have come to their places since this was called last.
    pub fn take_placed(&self) -> Vec<Placed> {
        std::mem::take(&mut self.0.state.borrow_mut().placed)
    }

    /// True if [`Wal::take_placed`] has something to give.
    pub fn has_placed(&self) -> bool {
        !self.0.state.borrow().placed.is_empty()
    }

    /// Appends `count` record and clear entries of `bytes` in all, which `put` puts, in one batch:
    /// all or none survive.
    pub fn append_entries(
        &self,
        lsn: Lsn,
        count: u32,
        bytes: usize,
        put: impl FnOnce(&mut dyn Sink),
    ) {
        assert!(count > 0);
        self.append(lsn, bytes, |out| put(out));
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
        assert!(!self.has_failed(), "a failed log admits nothing");
        let fresh = state.pending.is_none();
        let mut pending = state
            .pending
            .take()
            .unwrap_or_else(|| Pending::new(lsn, self.buffer(&state, state.buffer_bytes)));
        assert!(
            fresh || lsn > pending.last,
            "records are numbered in the order of the log"
        );
        let need = pending.filled + ENTRY_HEADER_BYTES + bytes;
        pending.make_room(need, |bytes| self.buffer(&state, bytes));
        pending.last = lsn;
        put(&mut pending);
        assert!(pending.filled <= need, "more was put than was said");
        pending.entries += 1;
        state.pending = Some(pending);
        if self.0.options.stream != Stream::Moved {
            self.0.options.fate.last.set(lsn);
        }
        self.0.tell_undurable(&state);
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

    /// True if this log keeps no record up to `lsn` from being acknowledged, or shown to a reader.
    pub fn is_acknowledged(&self, lsn: Lsn) -> bool {
        let waits = self.0.options.durability == Durability::Sync;
        (!waits && !self.has_failed()) || self.is_durable(lsn)
    }

    /// All records of this log up to this one are durable.
    pub fn durable(&self) -> Lsn {
        let first = self.0.state.borrow().first_undurable();
        first.map_or(Lsn(u64::MAX), |first| Lsn(first.0 - 1))
    }

    /// True if all records of this log up to `lsn` are durable.
    pub fn is_durable(&self, lsn: Lsn) -> bool {
        let first = self.0.state.borrow().first_undurable();
        first.is_none_or(|first| first > lsn)
    }

    /// Waits until the records up to `lsn` may be acknowledged. `Uncertain` if the log failed
    /// before.
    pub async fn wait_acknowledged(&self, lsn: Lsn) -> Result<()> {
        self.wait_for(|| {
            if self.is_acknowledged(lsn) {
                return Some(Ok(()));
            }
            self.has_failed().then_some(Err(Error::Uncertain))
        })
        .await
    }

    /// Waits until the records of this log up to `lsn` have come to the disk, durably or not.
    pub async fn wait_written(&self, lsn: Lsn) -> Result<()> {
        self.wait_for(|| {
            if self.has_failed() {
                return Some(Err(Error::Uncertain));
            }
            let first = self.0.state.borrow().first_unwritten();
            first.is_none_or(|first| first > lsn).then_some(Ok(()))
        })
        .await
    }

    /// Waits until all records of this log up to `lsn` are durable, whatever the durability setting
    /// says.
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        if self.is_durable(lsn) {
            return Ok(());
        }
        if self.0.options.durability != Durability::Sync {
            self.wait_written(lsn).await?;
            self.sync_written().await;
        }
        self.wait_for(|| {
            if self.is_durable(lsn) {
                return Some(Ok(()));
            }
            self.has_failed().then_some(Err(Error::Uncertain))
        })
        .await
    }

    /// Returns once a write or a sync of a log has failed.
    pub async fn failure(&self) {
        self.wait_for(|| self.has_failed().then_some(())).await;
    }

    /// True once a write or a sync of a log has failed.
    pub fn has_failed(&self) -> bool {
        self.0.options.fate.has_failed()
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

    /// Takes the file of a segment of the value log, which nobody needs or reads any more, to write
    /// it anew: where blocks have been written before, a sync waits for no metadata. False: it is
    /// not wanted, or has another name by which somebody may need it.
    pub fn reuse(&self, segment: &Segment) -> bool {
        self.0.supply.keep(segment)
    }

    /// Writes and syncs what is pending and ends the log's tasks. Nothing may be appended any more.
    pub async fn stop(&self) -> Result<()> {
        self.0.state.borrow_mut().stopping = true;
        self.0.supply.stop();
        self.0.work.wake_all();
        self.0.options.fate.progress.wake_all();
        self.wait_for(|| self.0.state.borrow().stopped.then_some(()))
            .await;
        self.sync_written().await;
        match self.has_failed() {
            true => Err(Error::Uncertain),
            false => Ok(()),
        }
    }

    /// Waits until nothing of this log, which was stopped, changes any file any more. (A stop does
    /// not wait for a spare segment that is being made.)
    pub async fn wait_ended(&self) {
        self.wait_for(|| self.0.state.borrow().are_segments_made.then_some(()))
            .await;
    }

    /// The number of the segment that is being written, or else of the next one.
    pub fn segment_now(&self) -> format::SegmentId {
        let state = self.0.state.borrow();
        let current = state.current.as_ref().map(|segment| segment.id);
        current.unwrap_or_else(|| self.0.supply.id_next())
    }

    async fn wait_for<T>(&self, check: impl FnMut() -> Option<T>) -> T {
        self.0.options.fate.wait_for(check).await
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
                    self.0.options.fate.progress.wake_all();
                    self.0.supply.pause().await;
                }
            }
            self.0.options.fate.progress.wake_all();
        }
        self.0.state.borrow_mut().are_segments_made = true;
        self.0.options.fate.progress.wake_all();
    }

    /// Nothing more is written or acknowledged: after a failed write or sync, or because something
    /// could not be logged that later records would need before them.
    pub fn fail(&self, error: &Error) {
        if !self.has_failed() {
            log::error!("the log failed, writes are refused until a restart: {error}");
        }
        self.0.options.fate.failed.set(true);
        self.0.options.fate.progress.wake_all();
    }
}

#[cfg(test)]
mod tests;
