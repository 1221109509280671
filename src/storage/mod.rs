//! One core's store: a log, memtables, tables. Point reads, scans, atomic batches, recovery.
//!
//! A write is appended to one of two logs, and put into the active memtable at once: a record with
//! a large value to the value log (`vlog`), all else to the log. It may be acknowledged, and shown
//! to readers, when neither log has anything as old or older on its way
//! ([`Store::is_acknowledged`]); then the memtable keeps only a pointer to a large value. A full
//! memtable is frozen and flushed to a table; then the manifest names the table and the logs' new
//! floors.
//!
//! Invariants: of the records of one key, the one found first in the order active memtable, frozen
//! memtables from newest to oldest, tables from newest to oldest (levels.rs) is the newest; records
//! with a version at or below `cleared` are dead wherever they are; the log keeps every record, and
//! every part of a transaction over several cores, until what it says is in a table that the
//! manifest names; the writes of all logs have one order without gaps, of which a crash takes the
//! end (`recover`).
//!
//! A record that is in no memtable, or only as a pointer, may come from the row cache (cache.rs).

mod admit;
mod batch;
pub mod block;
pub mod bloom;
pub mod cache;
pub mod check;
mod codec;
mod compact;
pub mod compaction;
mod compress;
pub mod hints;
pub mod identity;
pub mod levels;
mod lookup;
mod maintain;
pub mod manifest;
pub mod memtable;
pub mod merge;
mod open;
mod opening;
mod reckon;
pub mod record;
mod recover;
pub mod reshard;
mod resident;
pub mod scan;
pub mod sealed;
pub mod sstable;
mod sweep;
pub mod vlog;
pub mod wal;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use futures_lite::future;

use crate::config::Compression;
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, Bug};
use crate::types::{CoreId, KeyHash, Lsn, Position, Version};
use cache::{CacheStats, Caches, PartitionStats};
use compact::Pace;
use compress::Packer;
use levels::Levels;
use manifest::Manifest;
use memtable::{Inserted, Memtable};
use opening::Opening;
use record::{KeyRef, Record};
use resident::Residence;
use vlog::{ValueSizes, Values};
use wal::{Admission, Fate, Wal, format};

pub use batch::Batch;
pub use lookup::{Found, Lookup, Peek, Want};
pub use open::{Opened, StoreOptions, Undecided};
pub use scan::Snapshot;

/// The place in the log of all that was recovered at start: it is durable.
const RECOVERED: Lsn = Lsn(1);
/// Above all places in the log.
const NO_DOUBT: Lsn = Lsn(u64::MAX);
/// Memtables that wait to be flushed before writers have to wait too.
const FROZEN_MAX: usize = 2;
/// Memtables that there may be at once: one is written to while others wait.
const MEMTABLES_MAX: u64 = FROZEN_MAX as u64 + 1;
/// The caches get at least this part of a core's memory, however much the rest takes.
const CACHES_SHARE_MIN: u64 = 16;
/// Transactions that are settled with the other cores at a time.
const UNSETTLED_MAX: usize = 1024;

/// One core's store. Shared within the core by `Rc`.
pub struct Store {
    dir: PathBuf,
    options: StoreOptions,
    /// None with `durability = "none"`.
    wal: Option<Wal>,
    /// Large records, as they are written.
    values: Wal,
    /// Large records that were moved there.
    moved: Wal,
    /// What has been appended to `moved`.
    moved_last: Cell<Lsn>,
    /// Held by whoever appends to `moved` and waits for what has its place.
    moving: Cell<bool>,
    /// There are replicas that may not have heard of what was deleted here.
    keeps_deleted: Cell<bool>,
    fate: Rc<Fate>,
    /// From here on there are parts of transactions of which only a restart can tell whether they
    /// hold; [`NO_DOUBT`] while there are none.
    doubtful: Cell<Lsn>,
    state: RefCell<State>,
    /// A memtable was frozen or flushed, a table came or went, room came back, or all is to stop.
    changed: Signal,
    /// Held while a manifest is written: one at a time.
    installing: Cell<bool>,
    pace: Pace,
    opening: Opening,
    caches: Rc<Caches>,
    residence: Residence,
    /// For large values.
    packer: RefCell<Packer>,
}

struct State {
    active: Layer,
    /// Oldest first.
    frozen: VecDeque<Layer>,
    tables: Levels,
    manifest: Manifest,
    cleared: Version,
    /// The highest version of a record, or of a clear, that may have left no trace of its keys.
    forgotten: Version,
    /// Where the log stood at the last clear: what came before need not be kept.
    cleared_at: Lsn,
    values: Values,
    /// Segments of which everything alive has moved: they may go when the layers up to this one are
    /// in tables.
    emptied: Vec<(vlog::SegmentKey, u64)>,
    /// Segments that hold something that cannot be read.
    damaged: BTreeSet<vlog::SegmentKey>,
    /// While a memtable is flushed, its large values move to this segment of `moved` or a later
    /// one.
    moving_from: Option<format::SegmentId>,
    /// Rises with every change of what is in tables and what in memory.
    epoch: u64,
    /// The last record of the last memtable that was flushed.
    flushed: Lsn,
    /// With `durability = "none"`: behind all that the log ever held here.
    floor_without_log: wal::replay::Floor,
    /// With `durability = "none"`: the files of an earlier log, while they are still needed.
    leftover: Vec<PathBuf>,
    lsn_last: Lsn,
    /// Parts of transactions over several cores that the log must keep, by transaction.
    held: BTreeMap<Version, Held>,
    /// Those of them that a start found and that may yet be recovered: no memtable is frozen
    /// before, for what it has may be newer, and must stay in front of them.
    undecided: BTreeSet<Version>,
    /// The last flush could not be written: what writers are told meanwhile.
    flush_refused: Option<Admission>,
    /// The manifest on disk may not be the one we think it is: nothing more is installed.
    install_failed: bool,
    stopping: bool,
    flusher_ended: bool,
    /// Tasks that merge and collect.
    workers: usize,
    stats: Stats,
}

/// A memtable in its turn.
#[derive(Clone, Default)]
struct Layer {
    memtable: Rc<RefCell<Memtable>>,
    /// Transactions over several cores whose records are in it.
    transactions: Rc<RefCell<Vec<Version>>>,
    /// The last record in it, once it is frozen.
    last: Lsn,
    /// Rises from layer to layer.
    number: u64,
    /// How many deletes and large values were written to it: each may hide a large value in tables.
    hiding: Cell<u64>,
}

/// This core's part of a transaction over several cores.
struct Held {
    /// Where the log has it.
    lsn: Lsn,
    cores: Vec<CoreId>,
    /// True once every other core has durably noted that the transaction holds.
    settled: bool,
}

/// What maintenance has done since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Memtables flushed.
    pub flushes: u64,
    /// Merges of tables.
    pub compactions: u64,
    /// Tables that went to another level without being rewritten.
    pub tables_moved: u64,
    /// Bytes of tables that were merged.
    pub table_bytes_read: u64,
    /// Bytes written to tables.
    pub table_bytes_written: u64,
    /// Expired records that were taken out of the memtable.
    pub expired: u64,
    /// Segments of the value log that were collected.
    pub collections: u64,
    /// Bytes of values that came to the value log, as they were given.
    pub value_bytes_given: u64,
    /// Bytes that they take there, packed where that pays.
    pub value_bytes_stored: u64,
    /// Bytes of records that were moved within the value log, or into it from the log.
    pub value_bytes_moved: u64,
}

/// Sizes at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Bytes of all memtables.
    pub memtable_bytes: u64,
    /// Records in all memtables and tables, superseded ones included.
    pub records: u64,
    /// Tables.
    pub tables: u64,
    /// Bytes of all tables.
    pub table_bytes: u64,
    /// Levels, and runs of level 0: the tables that one lookup asks at most.
    pub table_runs: u64,
    /// Bytes of the log.
    pub wal_bytes: u64,
    /// The value log.
    pub values: ValueSizes,
    /// Memory that filters and indexes take, but for what the block cache has of them.
    pub index_bytes: u64,
    /// Tables whose filters and indexes are read by need.
    pub tables_by_need: u64,
    /// The row cache.
    pub rows: CacheStats,
    /// The key cache: where large values lie.
    pub pointers: CacheStats,
    /// The block cache.
    pub blocks: CacheStats,
    /// Partitions of filters and indexes, as they were needed.
    pub partitions: PartitionStats,
}

impl Store {
    /// Writes one record, which was admitted. Its version is above all of its key's.
    pub fn write(&self, position: Position, record: Record) -> Lsn {
        let lsn = self.next_lsn();
        if record.view().value().len() >= self.options.value_bytes_min {
            let packed = self.packed(&record);
            let stored = packed.as_ref().unwrap_or(&record);
            self.values
                .append_value(lsn, position, &record, stored.bytes());
        } else if let Some(wal) = &self.wal {
            wal.append_record(lsn, record.bytes());
        }
        self.insert(position, record, lsn);
        self.freeze_if_full();
        lsn
    }

    /// `record`, a large one, packed for the value log; `None`: it goes there as it is.
    fn packed(&self, record: &Record) -> Option<Record> {
        let packed = match self.options.value_compression {
            Compression::None => None,
            Compression::Lz4 => record.packed(&mut self.packer.borrow_mut()),
        };
        let stored = packed.as_ref().unwrap_or(record);
        let stats = &mut self.state.borrow_mut().stats;
        stats.value_bytes_given += record.view().value().len() as u64;
        stats.value_bytes_stored += stored.view().value().len() as u64;
        packed
    }

    /// Writes `batch`, which was admitted and is not empty.
    pub fn write_batch(&self, mut batch: Batch) -> Lsn {
        assert!(!batch.is_empty());
        if batch.clear.is_none()
            && batch.records.len() == 1
            && let Some((position, record)) = batch.records.pop()
        {
            return self.write(position, record);
        }
        let lsn = self.next_lsn();
        if let Some(wal) = &self.wal {
            let (count, bytes) = (batch.entries() as u32, batch.encoded_bytes());
            wal.append_entries(lsn, count, bytes, |out| batch.encode(out));
        }
        self.apply(batch, lsn);
        lsn
    }

    /// Logs `batch`, which was admitted, as this core's part of a transaction over `cores`. It is
    /// not seen yet. Must be followed by [`Store::commit`] or [`Store::abort`].
    pub fn prepare(&self, transaction: Version, cores: &[CoreId], batch: &Batch) -> Lsn {
        let lsn = self.next_lsn();
        if let Some(wal) = &self.wal {
            let mut parts = Vec::with_capacity(batch.encoded_bytes());
            batch.encode(&mut parts);
            wal.append_prepare(lsn, transaction, cores, &parts);
            let held = Held {
                lsn,
                cores: cores.to_vec(),
                settled: false,
            };
            self.state.borrow_mut().held.insert(transaction, held);
        }
        lsn
    }

    /// Every core of `transaction` has durably prepared, this one at `lsn`: from here on it is
    /// seen.
    pub fn commit(&self, transaction: Version, lsn: Lsn, batch: Batch) {
        if let Some(wal) = &self.wal {
            // The marker only spares the others a question after a crash: it may be missing.
            if wal.admit(format::MARKER_BYTES, 1) == Admission::Ready {
                wal.append_commit(self.next_lsn(), transaction);
            }
            self.state
                .borrow()
                .active
                .transactions
                .borrow_mut()
                .push(transaction);
        }
        self.apply(batch, lsn);
    }

    /// Some core of `transaction` could not prepare: it never was.
    pub fn abort(&self, transaction: Version) {
        self.state.borrow_mut().held.remove(&transaction);
        self.note_decided(transaction);
    }

    /// Some core of `transaction` may have prepared it, but its log failed: it never was, and must
    /// not come to be after a crash, when readers or later writes here have not seen it. Returns
    /// once the log durably says so; or once that failed: then a restart may bring it back, and
    /// until then `batch`, this core's part of it, is in doubt.
    pub async fn revoke(&self, transaction: Version, batch: Batch) {
        match self.log_abort(transaction).await {
            Err(_) if !rt::planted(Bug::DoubtForgotten) => self.doubt(batch),
            _ => self.abort(transaction),
        }
    }

    async fn log_abort(&self, transaction: Version) -> Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let admitted = wal.wait_admitted(format::MARKER_BYTES, 1).await;
        admitted.inspect_err(|error| wal.fail(error))?;
        let lsn = self.next_lsn();
        wal.append_abort(lsn, transaction);
        self.wait_durable(lsn).await // all before it too, or a crash takes it with what is missing
    }

    /// Shows `batch` to readers as a write that is never acknowledged, so that they are told that
    /// nobody knows. It needs no more memory than the transactions took that were prepared when the
    /// log failed: a failed log admits no others, and nothing is flushed any more.
    fn doubt(&self, batch: Batch) {
        assert!(self.fate.has_failed(), "a log that works can say what was");
        let lsn = self.next_lsn();
        self.doubtful.set(self.doubtful.get().min(lsn));
        self.take_in_batch(batch, lsn);
    }

    fn apply(&self, batch: Batch, lsn: Lsn) {
        self.take_in_batch(batch, lsn);
        self.freeze_if_full();
    }

    fn take_in_batch(&self, batch: Batch, lsn: Lsn) {
        if let Some(version) = batch.clear {
            self.clear(version, lsn);
        }
        for (position, record) in batch.records {
            self.insert(position, record, lsn);
        }
    }

    fn insert(&self, position: Position, record: Record, lsn: Lsn) {
        self.pace.count(self.record_tree_bytes(&record));
        self.caches.rows.forget(KeyHash::of(record.key()));
        let active = {
            let active = &self.state.borrow().active;
            if record.meta().tombstone
                || record.view().value().len() >= self.options.value_bytes_min
            {
                active.hiding.set(active.hiding.get() + 1);
            }
            Rc::clone(&active.memtable)
        };
        let inserted = active.borrow_mut().insert(record, position, lsn);
        match inserted {
            Inserted::Added => {}
            // A value that has no place yet is given up when it comes there.
            Inserted::Replaced(old) => self.note_garbage(&old.record),
            Inserted::Stale => panic!("later writes have higher versions"),
        }
    }

    fn note_garbage(&self, record: &Record) {
        if let Some(place) = record.pointer() {
            self.state.borrow_mut().values.note_garbage(place);
        }
    }

    /// Has the memtables point to those large values that have come to their places.
    fn take_in_placed(&self) {
        for placed in self.values.take_placed() {
            let mut state = self.state.borrow_mut();
            let pointer = Record::pointing(placed.record.view(), placed.pointer);
            state.values.note_placed(&placed, &self.values);
            let frozen = state.frozen.iter().rev();
            let found = [&state.active].into_iter().chain(frozen).any(|layer| {
                let mut memtable = layer.memtable.borrow_mut();
                memtable.point(pointer.clone(), placed.position, placed.lsn)
            });
            if !found {
                state.values.note_garbage(placed.pointer);
            }
            let key = KeyRef::of(placed.record.key());
            let newest = state.in_memory(&key).and_then(|it| it.record.pointer());
            if newest == Some(placed.pointer) {
                self.caches.rows.keep(key.hash, &placed.record);
            }
        }
    }

    /// Takes in what has come to its place, until the store has stopped.
    async fn take_in_values(self: Rc<Self>) {
        loop {
            let is_over = self
                .fate
                .wait_for(|| {
                    let is_over = self.state.borrow().flusher_ended;
                    (is_over || self.values.has_placed()).then_some(is_over)
                })
                .await;
            self.take_in_placed();
            if is_over {
                return;
            }
        }
    }

    /// Everything up to `version` is dead from here on.
    fn clear(&self, version: Version, lsn: Lsn) {
        let mut state = self.state.borrow_mut();
        assert!(version >= state.cleared);
        state.cleared = version;
        state.forgotten = state.forgotten.max(version);
        state.cleared_at = lsn;
        // Transactions whose records die here need not be kept, but this core's word for the
        // others is: they go on in the new memtable.
        let frozen = state.frozen.iter().map(|layer| &layer.transactions);
        let layers = frozen.chain([&state.active.transactions]);
        let transactions: Vec<_> = layers.flat_map(|list| list.take()).collect();
        state.active = Layer {
            transactions: Rc::new(RefCell::new(transactions)),
            number: state.active.number + 1,
            ..Layer::default()
        };
        state.epoch += 1;
        state.frozen.clear();
        let dead = std::mem::take(&mut state.tables);
        dead.iter().for_each(|table| table.set_resident(false));
        state.values.note_cleared();
        drop(state);
        self.caches.rows.clear();
        self.share_memory();
        self.changed.wake_all();
    }

    fn next_lsn(&self) -> Lsn {
        let mut state = self.state.borrow_mut();
        state.lsn_last = Lsn(state.lsn_last.0 + 1);
        state.lsn_last
    }

    fn freeze_if_full(&self) {
        let full = {
            let bytes = self.state.borrow().active.memtable.borrow().bytes() as u64;
            let log_bytes = self.wal.as_ref().map_or(0, Wal::bytes);
            let room = self.state.borrow().frozen.is_empty();
            bytes >= self.options.memtable_bytes
                || (log_bytes >= self.options.wal_bytes_max && room && bytes > 0)
                || (self.values.bytes() >= self.options.value_replay_bytes_max && room && bytes > 0)
        };
        if full {
            self.freeze();
        }
    }

    /// Begins a new memtable; the old one is flushed in the background.
    fn freeze(&self) {
        let mut state = self.state.borrow_mut();
        assert!(
            state.undecided.is_empty() || state.stopping,
            "what is undecided comes behind what is newer"
        );
        let last = state.lsn_last;
        let next = Layer {
            number: state.active.number + 1,
            ..Layer::default()
        };
        let active = std::mem::replace(&mut state.active, next);
        state.frozen.push_back(Layer { last, ..active });
        drop(state);
        self.changed.wake_all();
    }

    /// True if the record `lsn` may be acknowledged or shown to a reader: it and all before it are
    /// where durability wants them.
    pub fn is_acknowledged(&self, lsn: Lsn) -> bool {
        let is_acknowledged = |log: &Wal| log.is_acknowledged(lsn);
        let is_known = lsn < self.doubtful.get();
        lsn <= RECOVERED
            || is_known
                && self.wal.as_ref().is_none_or(is_acknowledged)
                && is_acknowledged(&self.values)
    }

    /// Waits until the record `lsn` may be acknowledged.
    pub async fn wait_acknowledged(&self, lsn: Lsn) -> Result<()> {
        if self.is_acknowledged(lsn) {
            return Ok(());
        }
        self.fate
            .wait_for(|| {
                if self.is_acknowledged(lsn) {
                    return Some(Ok(()));
                }
                self.fate.has_failed().then_some(Err(Error::Uncertain))
            })
            .await
    }

    /// Waits until the record `lsn`, and all before it, is on disk, whatever the durability
    /// setting. (With "none" nothing ever is before it is in a table.)
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        let Some(wal) = &self.wal else {
            return Ok(());
        };
        if lsn <= RECOVERED {
            return Ok(());
        }
        let (one, other) = future::zip(wal.wait_durable(lsn), self.values.wait_durable(lsn)).await;
        one.and(other)
    }

    /// What a reader depends on who was told that a key has no record: the last clear.
    pub fn lsn_cleared(&self) -> Lsn {
        self.state.borrow().cleared_at
    }

    /// The last record that was written.
    pub fn lsn_last(&self) -> Lsn {
        self.state.borrow().lsn_last
    }

    /// Transactions that other cores must durably note before the log may forget them, each with
    /// all of its cores, not too many at a time. Waits for some; `None`: the store has stopped.
    pub async fn unsettled(&self) -> Option<Vec<(Version, Vec<CoreId>)>> {
        self.changed
            .wait_for(|| {
                let state = self.state.borrow();
                if state.flusher_ended {
                    return Some(None);
                }
                let oldest = state.frozen.front()?;
                let waiting: Vec<_> = oldest
                    .transactions
                    .borrow()
                    .iter()
                    .filter_map(|transaction| {
                        let held = state.held.get(transaction)?;
                        (!held.settled).then(|| (*transaction, held.cores.clone()))
                    })
                    .take(UNSETTLED_MAX)
                    .collect();
                (!waiting.is_empty()).then_some(Some(waiting))
            })
            .await
    }

    /// All other cores have durably noted that these transactions hold.
    pub fn settled(&self, transactions: &[Version]) {
        let mut state = self.state.borrow_mut();
        for transaction in transactions {
            if let Some(held) = state.held.get_mut(transaction) {
                held.settled = true;
            }
        }
        drop(state);
        self.changed.wake_all();
    }

    /// Durably notes, for another core, that these transactions hold.
    pub async fn note_commits(&self, transactions: &[Version]) -> Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let bytes = transactions.len() * format::MARKER_BYTES;
        wal.wait_admitted(bytes, transactions.len()).await?;
        let mut last = self.lsn_last();
        for transaction in transactions {
            last = self.next_lsn();
            wal.append_commit(last, *transaction);
        }
        wal.wait_durable(last).await
    }

    /// The highest version of which there may be no trace: what happened above it can be seen.
    pub fn forgotten(&self) -> Version {
        self.state.borrow().forgotten
    }

    /// A record of this version goes, and nothing tells that it was there.
    fn forget(&self, version: Version) {
        let mut state = self.state.borrow_mut();
        state.forgotten = state.forgotten.max(version);
    }

    /// True once the log, or an installation of a manifest, has failed: writes are refused.
    pub fn has_failed(&self) -> bool {
        self.state.borrow().install_failed || self.fate.has_failed()
    }

    /// True while a full disk keeps writes out.
    pub fn is_disk_full(&self) -> bool {
        self.state.borrow().flush_refused == Some(Admission::DiskFull)
            || self.wal.as_ref().is_some_and(Wal::is_refused)
            || self.values.is_refused()
    }

    /// What maintenance has done.
    pub fn stats(&self) -> Stats {
        self.state.borrow().stats
    }

    /// Sizes at this moment.
    pub fn sizes(&self) -> Sizes {
        let state = self.state.borrow();
        let mut sizes = Sizes {
            tables: state.tables.iter().count() as u64,
            wal_bytes: self.wal.as_ref().map_or(0, Wal::bytes),
            values: ValueSizes {
                emptied: state.emptied.len() as u64,
                ..state.values.sizes()
            },
            table_runs: state.tables.runs().len() as u64,
            index_bytes: state.tables.memory_bytes(),
            rows: self.caches.rows.stats(),
            pointers: self.caches.rows.pointer_stats(),
            blocks: self.caches.blocks.stats(),
            partitions: self.caches.blocks.partition_stats(),
            ..Sizes::default()
        };
        for layer in state.frozen.iter().chain([&state.active]) {
            let memtable = layer.memtable.borrow();
            sizes.memtable_bytes += memtable.bytes() as u64;
            sizes.records += memtable.len() as u64;
        }
        for table in state.tables.iter() {
            sizes.table_bytes += table.info().bytes;
            sizes.tables_by_need += u64::from(!table.is_loaded());
            sizes.records += table.info().records;
        }
        sizes
    }
}
