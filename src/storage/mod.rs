//! One core's store: a log, memtables, tables. Point reads, scans, atomic batches, recovery.
//!
//! A write is appended to the log and put into the active memtable at once; it may be acknowledged,
//! and shown to readers, when the log says so ([`Store::is_acknowledged`]). A full memtable is
//! frozen and flushed to a table; then the manifest names the table and the log's new floor.
//!
//! Invariants: of the records of one key, the one found first in the order active memtable, frozen
//! memtables from newest to oldest, tables from newest to oldest is the newest; records with a version
//! at or below `cleared` are dead wherever they are; the log keeps every record, and every part of a
//! transaction over several cores, until what it says is in a table that the manifest names.
//!
//! Values live in the log and in tables for now. The value log, the caches and leveled compaction
//! have their place between [`Store::get`] and the tables.

pub mod block;
pub mod bloom;
pub mod check;
mod codec;
pub mod compaction;
pub mod identity;
mod maintain;
pub mod manifest;
pub mod memtable;
pub mod merge;
mod open;
pub mod record;
pub mod scan;
pub mod sstable;
pub mod wal;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use futures_lite::future;

use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::types::{CoreId, Lsn, Position, Version};
use manifest::Manifest;
use memtable::{Inserted, Memtable};
use record::{KeyRef, Record};
use sstable::Table;
use wal::{Admission, Wal, format};

pub use open::{Opened, StoreOptions, Undecided};
pub use scan::Snapshot;

/// The place in the log of all that was recovered at start: it is durable.
const RECOVERED: Lsn = Lsn(1);
/// Memtables that wait to be flushed before writers have to wait too.
const FROZEN_MAX: usize = 2;
/// Transactions that are settled with the other cores at a time.
const UNSETTLED_MAX: usize = 1024;

/// A record that was found, and its place in the log: it may not be acknowledged yet.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record: a value, possibly expired, or a tombstone.
    pub record: Record,
    /// Its place in the log.
    pub lsn: Lsn,
}

/// What memory knows of a key.
pub enum Peek {
    /// This is its newest record, or it has none.
    Known(Option<Found>),
    /// A table may have it.
    OnDisk(Lookup),
}

/// The tables that may have a key, at the moment of the question.
pub struct Lookup {
    /// Newest first.
    tables: Vec<Rc<Table>>,
    cleared: Version,
}

impl Lookup {
    /// Reads them in turn, one device read each, until one has it.
    pub async fn read(self, key: &KeyRef<'_>) -> Result<Option<Found>> {
        for table in self.tables {
            if let Some(record) = table.get(key).await? {
                let alive = record.meta().version > self.cleared;
                return Ok(alive.then_some(Found {
                    record,
                    lsn: RECOVERED,
                }));
            }
        }
        Ok(None)
    }
}

/// Writes that survive a crash all together or not at all, of one core.
#[derive(Clone, Default)]
pub struct Batch {
    /// Every record at or below this version dies, before the others are written.
    pub clear: Option<Version>,
    /// Records, at most one for each key.
    pub records: Vec<(Position, Record)>,
}

impl Batch {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.clear.is_none() && self.records.is_empty()
    }

    /// How many entries of the log it takes.
    fn entries(&self) -> usize {
        self.records.len() + usize::from(self.clear.is_some())
    }

    /// Its entries, as the log holds them.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(version) = self.clear {
            format::put_clear(version, &mut bytes);
        }
        for (_, record) in &self.records {
            format::put_record(record.bytes(), &mut bytes);
        }
        bytes
    }

    /// Bytes of the log that it takes besides entry headers, with room for what wraps it up: the
    /// names of a transaction's cores, and a marker.
    fn log_bytes(&self, cores: u16) -> usize {
        let records: usize = self
            .records
            .iter()
            .map(|(_, record)| record.bytes().len())
            .sum();
        let wrapping = format::ENTRY_HEADER_BYTES + format::prepare_bytes(usize::from(cores), 0);
        records + wrapping + 2 * format::MARKER_BYTES
    }
}

/// One core's store. Shared within the core by `Rc`.
pub struct Store {
    dir: PathBuf,
    options: StoreOptions,
    /// None with `durability = "none"`.
    wal: Option<Wal>,
    state: RefCell<State>,
    /// A memtable was frozen or flushed, a table came or went, room came back, or all is to stop.
    changed: Signal,
    /// Held while a manifest is written: one at a time.
    installing: Cell<bool>,
}

struct State {
    active: Layer,
    /// Oldest first.
    frozen: VecDeque<Layer>,
    /// Oldest first, as in the manifest.
    tables: Vec<Rc<Table>>,
    manifest: Manifest,
    cleared: Version,
    /// The highest version of a record, or of a clear, that may have left no trace of its keys.
    forgotten: Version,
    /// Where the log stood at the last clear: what came before need not be kept.
    cleared_at: Lsn,
    /// The last record of the last memtable that was flushed.
    flushed: Option<Lsn>,
    /// With `durability = "none"`: behind all that a log ever held here.
    floor_without_log: wal::replay::Floor,
    /// With `durability = "none"`: the files of an earlier log, while they are still needed.
    leftover: Vec<PathBuf>,
    lsn_last: Lsn,
    /// Parts of transactions over several cores that the log must keep, by transaction.
    held: BTreeMap<Version, Held>,
    /// The last flush could not be written: what writers are told meanwhile.
    flush_refused: Option<Admission>,
    /// The manifest on disk may not be the one we think it is: nothing more is installed.
    install_failed: bool,
    stopping: bool,
    flusher_ended: bool,
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
    /// Compactions.
    pub compactions: u64,
    /// Bytes written to tables.
    pub table_bytes_written: u64,
    /// Expired records that were taken out of the memtable.
    pub expired: u64,
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
    /// Bytes of the log.
    pub wal_bytes: u64,
}

impl Store {
    /// What memory knows of `key`: everything if no table may have it.
    pub fn peek(&self, key: &KeyRef) -> Peek {
        let state = self.state.borrow();
        if let Some(found) = state.in_memory(key) {
            return Peek::Known(Some(found));
        }
        let may = |table: &&Rc<Table>| table.may_contain(key);
        let tables: Vec<_> = state.tables.iter().rev().filter(may).cloned().collect();
        if tables.is_empty() {
            return Peek::Known(None);
        }
        Peek::OnDisk(Lookup {
            tables,
            cleared: state.cleared,
        })
    }

    /// Makes the next lookups of keys at `positions` cheaper, if there are several of them.
    pub fn warm(&self, positions: &[Position]) {
        self.state.borrow().active.memtable.borrow().warm(positions);
    }

    /// The newest record of `key` at this moment.
    pub async fn get(&self, key: &KeyRef<'_>) -> Result<Option<Found>> {
        match self.peek(key) {
            Peek::Known(found) => Ok(found),
            Peek::OnDisk(lookup) => lookup.read(key).await,
        }
    }

    /// What is stored at this moment, to be walked in order.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.borrow();
        let frozen = state.frozen.iter().rev();
        let layers = [&state.active].into_iter().chain(frozen);
        Snapshot {
            memtables: layers.map(|layer| Rc::clone(&layer.memtable)).collect(),
            tables: state.tables.iter().rev().cloned().collect(),
            cleared: state.cleared,
        }
    }

    /// May a record of `bytes` be written now?
    pub fn admit(&self, bytes: usize) -> Admission {
        self.admit_entries(bytes, 1)
    }

    /// May `batch` be written now?
    pub fn admit_batch(&self, batch: &Batch) -> Admission {
        self.admit_entries(batch.log_bytes(self.options.cores), batch.entries())
    }

    fn admit_entries(&self, bytes: usize, entries: usize) -> Admission {
        let state = self.state.borrow();
        // Once the last flush has begun, nothing would take a write to disk any more.
        if self.has_failed() || state.stopping {
            return Admission::Failed;
        }
        if state.frozen.len() >= FROZEN_MAX {
            return state.flush_refused.unwrap_or(Admission::Wait);
        }
        match &self.wal {
            Some(wal) => wal.admit(bytes, entries),
            None => Admission::Ready,
        }
    }

    /// Waits until `batch` may be written. Whoever waited asks again: others may have been faster.
    pub async fn wait_admitted(&self, batch: &Batch) -> Result<()> {
        loop {
            let decided = self.changed.wait_for(|| {
                let state = self.state.borrow();
                let full = state.frozen.len() >= FROZEN_MAX && state.flush_refused.is_none();
                (!full || state.stopping || self.has_failed()).then_some(())
            });
            match &self.wal {
                Some(wal) => {
                    future::or(decided, wal.failure()).await;
                    let bytes = batch.log_bytes(self.options.cores);
                    wal.wait_admitted(bytes, batch.entries()).await?;
                }
                None => decided.await,
            }
            match self.admit_batch(batch) {
                Admission::Ready => return Ok(()),
                Admission::Wait => {}
                Admission::DiskFull => return Err(Error::DiskFull),
                Admission::DiskFails => return Err(Error::DiskFails),
                Admission::Failed => return Err(Error::LogFailed),
            }
        }
    }

    /// Writes one record, which was admitted. Its version is above all of its key's.
    pub fn write(&self, position: Position, record: Record) -> Lsn {
        let lsn = self.next_lsn();
        if let Some(wal) = &self.wal {
            wal.append_record(lsn, record.bytes());
        }
        self.insert(position, record, lsn);
        self.freeze_if_full();
        lsn
    }

    /// Writes `batch`, which was admitted and is not empty.
    pub fn write_batch(&self, batch: Batch) -> Lsn {
        assert!(!batch.is_empty());
        let lsn = self.next_lsn();
        if let Some(wal) = &self.wal {
            wal.append_entries(lsn, batch.entries() as u32, &batch.encode());
        }
        self.apply(batch, lsn);
        lsn
    }

    /// Logs `batch`, which was admitted, as this core's part of a transaction over `cores`. It is not
    /// seen yet. Must be followed by [`Store::commit`] or [`Store::abort`].
    pub fn prepare(&self, transaction: Version, cores: &[CoreId], batch: &Batch) -> Lsn {
        let lsn = self.next_lsn();
        if let Some(wal) = &self.wal {
            wal.append_prepare(lsn, transaction, cores, &batch.encode());
            let held = Held {
                lsn,
                cores: cores.to_vec(),
                settled: false,
            };
            self.state.borrow_mut().held.insert(transaction, held);
        }
        lsn
    }

    /// Every core of `transaction` has durably prepared, this one at `lsn`: from here on it is seen.
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
    }

    /// Some core of `transaction` may have prepared it, but its log failed: it never was, and must
    /// not come to be after a crash, when later writes here have not seen it. Returns once the log
    /// says so before all that it will ever say, or once it says nothing any more.
    pub async fn revoke(&self, transaction: Version) {
        if let Some(wal) = &self.wal {
            match wal.wait_admitted(format::MARKER_BYTES, 1).await {
                Ok(()) => wal.append_abort(self.next_lsn(), transaction),
                Err(error) => wal.fail(&error),
            }
        }
        self.abort(transaction);
    }

    fn apply(&self, batch: Batch, lsn: Lsn) {
        if let Some(version) = batch.clear {
            self.clear(version, lsn);
        }
        for (position, record) in batch.records {
            self.insert(position, record, lsn);
        }
        self.freeze_if_full();
    }

    fn insert(&self, position: Position, record: Record, lsn: Lsn) {
        let active = Rc::clone(&self.state.borrow().active.memtable);
        let inserted = active.borrow_mut().insert(record, position, lsn);
        assert!(
            !matches!(inserted, Inserted::Stale),
            "later writes have higher versions"
        );
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
            ..Layer::default()
        };
        state.frozen.clear();
        state.tables.clear();
        drop(state);
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
        };
        if full {
            self.freeze();
        }
    }

    /// Begins a new memtable; the old one is flushed in the background.
    fn freeze(&self) {
        let mut state = self.state.borrow_mut();
        let last = state.lsn_last;
        let active = std::mem::take(&mut state.active);
        state.frozen.push_back(Layer { last, ..active });
        drop(state);
        self.changed.wake_all();
    }

    /// True if the record `lsn` may be acknowledged or shown to a reader.
    pub fn is_acknowledged(&self, lsn: Lsn) -> bool {
        lsn <= RECOVERED || self.wal.as_ref().is_none_or(|wal| wal.is_acknowledged(lsn))
    }

    /// Waits until the record `lsn` may be acknowledged.
    pub async fn wait_acknowledged(&self, lsn: Lsn) -> Result<()> {
        match &self.wal {
            Some(wal) if !self.is_acknowledged(lsn) => wal.wait_acknowledged(lsn).await,
            _ => Ok(()),
        }
    }

    /// Waits until the record `lsn` is on disk, whatever the durability setting.
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        match &self.wal {
            Some(wal) if lsn > RECOVERED => wal.wait_durable(lsn).await,
            _ => Ok(()),
        }
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

    /// Takes expired records out of the active memtable where nothing older could then be seen:
    /// looks at up to `entries_max` from `from` on, and says where to go on.
    pub fn sweep_expired(&self, from: Position, now: u64, entries_max: usize) -> Position {
        let state = self.state.borrow();
        let mut memtable = state.active.memtable.borrow_mut();
        let bound = merge::Bound::From(from);
        let mut seen = 0;
        let mut next = Position(0);
        let mut expired = Vec::new();
        for entry in memtable.iter_from(bound) {
            seen += 1;
            if seen > entries_max && entry.position > next {
                next = entry.position;
                break;
            }
            next = entry.position;
            let meta = entry.record.meta();
            if !meta.tombstone
                && !entry.record.view().is_live(now)
                && self.is_acknowledged(entry.lsn)
            {
                expired.push(entry.record.clone());
            }
        }
        let came_to_end = seen <= entries_max;
        let mut removed = 0;
        let mut forgotten = Version::ZERO;
        for record in expired {
            let key = KeyRef::of(record.key());
            let below = state
                .frozen
                .iter()
                .any(|layer| layer.memtable.borrow().get(&key).is_some())
                || state.tables.iter().any(|table| table.may_contain(&key));
            if !below {
                forgotten = forgotten.max(record.meta().version);
                memtable.remove(&key);
                removed += 1;
            }
        }
        drop(memtable);
        drop(state);
        self.forget(forgotten);
        self.state.borrow_mut().stats.expired += removed;
        if came_to_end { Position(0) } else { next }
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
        self.state.borrow().install_failed || self.wal.as_ref().is_some_and(Wal::has_failed)
    }

    /// True while a full disk keeps writes out.
    pub fn is_disk_full(&self) -> bool {
        self.state.borrow().flush_refused == Some(Admission::DiskFull)
            || self.wal.as_ref().is_some_and(Wal::is_refused)
    }

    /// What maintenance has done.
    pub fn stats(&self) -> Stats {
        self.state.borrow().stats
    }

    /// Sizes at this moment.
    pub fn sizes(&self) -> Sizes {
        let state = self.state.borrow();
        let mut sizes = Sizes {
            tables: state.tables.len() as u64,
            wal_bytes: self.wal.as_ref().map_or(0, Wal::bytes),
            ..Sizes::default()
        };
        for layer in state.frozen.iter().chain([&state.active]) {
            let memtable = layer.memtable.borrow();
            sizes.memtable_bytes += memtable.bytes() as u64;
            sizes.records += memtable.len() as u64;
        }
        for table in &state.tables {
            sizes.table_bytes += table.info().bytes;
            sizes.records += table.info().records;
        }
        sizes
    }
}

impl State {
    fn in_memory(&self, key: &KeyRef) -> Option<Found> {
        let frozen = self.frozen.iter().rev();
        [&self.active].into_iter().chain(frozen).find_map(|layer| {
            let memtable = layer.memtable.borrow();
            let entry = memtable.get(key)?;
            Some(Found {
                record: entry.record.clone(),
                lsn: entry.lsn,
            })
        })
    }
}
