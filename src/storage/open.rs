//! Opening a store: manifest, tables, log; what was half done is undone or finished.
//!
//! Order: the manifest says which tables live and where the log begins; tables that it does not name
//! are leftovers of a crash and go; the log is replayed into a memtable. Nothing is skipped that
//! cannot be read: the core then does not open.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;

use super::maintain::Edit;
use super::manifest::Manifest;
use super::memtable::Memtable;
use super::record::{KeyRef, Record};
use super::sstable::{Table, TableId};
use super::wal::format::{Entry, take_entry};
use super::wal::{Admission, Wal, WalLimits, replay};
use super::{Batch, Held, Layer, RECOVERED, State, Stats, Store};
use crate::config::Durability;
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, Queue};
use crate::types::{CoreId, Lsn, Version};

/// How a store is to be.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Which core this is.
    pub core: CoreId,
    /// How many cores the node has.
    pub cores: u16,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// A memtable of this size is flushed.
    pub memtable_bytes: u64,
    /// A memtable is flushed too when the log has this size.
    pub wal_bytes_max: u64,
    /// Sizes of the log.
    pub wal: WalLimits,
    /// A table of this size is long enough.
    pub table_bytes_max: u64,
}

/// A store that was opened, and what others must know or say about it. When all that is undecided is
/// recovered or aborted, call [`Store::leave_log`] and [`Store::drop_log`].
pub struct Opened {
    /// The store.
    pub store: Rc<Store>,
    /// Its part of transactions over several cores of which it does not know whether they hold.
    pub undecided: Vec<Undecided>,
    /// All transactions that it had prepared, decided or not.
    pub prepared: BTreeSet<Version>,
    /// No version that is stored here is higher.
    pub version_max: Version,
    /// Entries of the log that were replayed.
    pub replayed: u64,
}

/// This core's part of a transaction that holds if all of its cores had prepared it.
pub struct Undecided {
    /// Names it.
    pub transaction: Version,
    /// Who takes part.
    pub cores: Vec<CoreId>,
    /// What it writes here.
    pub batch: Batch,
}

/// What the log said.
#[derive(Default)]
struct Replayed {
    memtable: Memtable,
    cleared: Version,
    version_max: Version,
    prepared: BTreeMap<Version, (Vec<CoreId>, Batch)>,
    committed: BTreeSet<Version>,
    entries: u64,
}

impl Store {
    /// Opens the store in `dir`, or makes one there, and starts its background work.
    pub async fn open(dir: &Path, options: StoreOptions) -> Result<Opened> {
        rt::create_dir_all(dir).await?;
        let names = rt::list_dir(dir).await?;
        let mut manifest = match Manifest::load(dir).await? {
            Some(manifest) => manifest,
            None if names.iter().any(|name| is_data(name)) => {
                return Err(Error::Corrupt {
                    file: dir.join(super::manifest::MANIFEST),
                    offset: 0,
                    why: "it is missing, but there is data beside it".to_owned(),
                });
            }
            None => {
                let manifest = Manifest::new(options.core, options.cores);
                manifest.store(dir).await?;
                manifest
            }
        };
        check_owner(&manifest, dir, &options)?;
        make_durable(&manifest, dir).await?;
        for name in manifest.take_orphans(&names) {
            rt::remove_file(&dir.join(name)).await?;
        }
        let mut tables = Vec::with_capacity(manifest.tables.len());
        for info in &manifest.tables {
            tables.push(Rc::new(Table::open(dir, info).await?));
        }
        let mut replayed = Replayed {
            cleared: manifest.cleared,
            ..Replayed::default()
        };
        let found = replay::replay(dir, manifest.floor, |entry| replayed.take(entry)).await?;
        tables.retain(|table| table.info().version_max > replayed.cleared);
        Store::start(dir, options, manifest, tables, replayed, found).await
    }

    async fn start(
        dir: &Path,
        options: StoreOptions,
        manifest: Manifest,
        tables: Vec<Rc<Table>>,
        mut replayed: Replayed,
        found: replay::Found,
    ) -> Result<Opened> {
        let version_max = replayed
            .version_max
            .max(manifest.version_max)
            .max(replayed.cleared);
        let prepared: BTreeSet<Version> = replayed.prepared.keys().copied().collect();
        let floor_without_log = replay::Floor {
            segment: found.segment_next,
            sequence: found.sequence_next,
        };
        let logless = options.durability == Durability::None;
        let leftover = if logless { found.paths() } else { Vec::new() };
        let wal = match logless {
            true => None,
            false => {
                let dir = dir.to_owned();
                Some(Wal::start(dir, options.durability, options.wal, found).await)
            }
        };
        let state = State {
            active: Layer {
                memtable: Rc::new(RefCell::new(std::mem::take(&mut replayed.memtable))),
                ..Layer::default()
            },
            frozen: VecDeque::new(),
            tables,
            manifest,
            cleared: replayed.cleared,
            forgotten: Version::ZERO,
            cleared_at: Lsn(0),
            flushed: None,
            floor_without_log,
            leftover,
            lsn_last: RECOVERED,
            held: BTreeMap::new(),
            flush_refused: None,
            install_failed: false,
            stopping: false,
            flusher_ended: false,
            stats: Stats::default(),
        };
        let store = Rc::new(Store {
            dir: dir.to_owned(),
            options,
            wal,
            state: RefCell::new(state),
            changed: Signal::default(),
            installing: Cell::new(false),
        });
        let undecided = store.take_prepared(replayed.prepared, &replayed.committed);
        rt::spawn_in(Queue::Background, Rc::clone(&store).flush_memtables());
        rt::spawn_in(Queue::Background, Rc::clone(&store).merge_tables());
        Ok(Opened {
            store,
            undecided,
            prepared,
            version_max,
            replayed: replayed.entries,
        })
    }

    /// Takes in the prepared parts that are known to hold, and gives back the others.
    fn take_prepared(
        &self,
        prepared: BTreeMap<Version, (Vec<CoreId>, Batch)>,
        committed: &BTreeSet<Version>,
    ) -> Vec<Undecided> {
        let mut undecided = Vec::new();
        for (transaction, (cores, batch)) in prepared {
            let part = Undecided {
                transaction,
                cores,
                batch,
            };
            if committed.contains(&transaction) {
                self.recover(part);
            } else {
                self.hold(&part);
                undecided.push(part);
            }
        }
        undecided
    }

    /// The log keeps `part` until it is settled, or known never to have been.
    fn hold(&self, part: &Undecided) {
        let held = Held {
            lsn: RECOVERED,
            cores: part.cores.clone(),
            settled: false,
        };
        self.state.borrow_mut().held.insert(part.transaction, held);
    }

    /// Takes in this core's part of a transaction that holds: all of its cores had prepared it.
    /// [`Store::abort`] is the other way.
    pub fn recover(&self, part: Undecided) {
        self.hold(&part);
        if let Some(version) = part.batch.clear {
            self.clear_recovered(version);
        }
        let state = self.state.borrow_mut();
        let cleared = state.cleared;
        for (position, record) in part.batch.records {
            if record.meta().version > cleared {
                // Unlike a new write it may be older than what the log brought back.
                let _ = state
                    .active
                    .memtable
                    .borrow_mut()
                    .insert(record, position, RECOVERED);
            }
        }
        state
            .active
            .transactions
            .borrow_mut()
            .push(part.transaction);
    }

    fn clear_recovered(&self, version: Version) {
        let mut state = self.state.borrow_mut();
        state.cleared = state.cleared.max(version);
        let cleared = state.cleared;
        state
            .tables
            .retain(|table| table.info().version_max > cleared);
        let active = &state.active;
        let memtable = without_cleared(&active.memtable.borrow(), cleared);
        *active.memtable.borrow_mut() = memtable;
    }

    /// With `durability = "none"`: puts what an earlier log held into a table. Call it when nothing is
    /// undecided any more, and [`Store::drop_log`] when all cores have done so: until then another
    /// one may ask what this log says.
    pub async fn leave_log(&self) -> Result<()> {
        {
            let state = self.state.borrow();
            if state.leftover.is_empty() || state.active.memtable.borrow().is_empty() {
                return Ok(());
            }
        }
        self.freeze();
        let flushed = || {
            let state = self.state.borrow();
            match state.flush_refused {
                Some(Admission::DiskFull) => Some(Err(Error::DiskFull)),
                Some(_) => Some(Err(Error::DiskFails)),
                None => state.frozen.is_empty().then_some(Ok(())),
            }
        };
        self.changed.wait_for(flushed).await
    }

    /// With `durability = "none"`: removes an earlier log. Before that, nothing new may be written.
    pub async fn drop_log(&self) -> Result<()> {
        let files = std::mem::take(&mut self.state.borrow_mut().leftover);
        if files.is_empty() {
            return Ok(());
        }
        // First the manifest's word that the log begins behind them: they may go one by one.
        self.install(Edit::nothing()).await?;
        for path in files {
            rt::remove_file(&path).await?;
        }
        Ok(())
    }
}

/// Writes a manifest once more before files go that an older one may name: had a sync failed in the
/// life before, then what was read need not be what is on the disk.
async fn make_durable(manifest: &Manifest, dir: &Path) -> Result<()> {
    match manifest.store(dir).await {
        Err(error) if error.is_disk_full() => {
            log::warn!("starting with a full disk: {error}");
            Ok(())
        }
        stored => stored,
    }
}

fn is_data(name: &str) -> bool {
    name.ends_with(".log") || TableId::parse(name).is_some()
}

fn check_owner(manifest: &Manifest, dir: &Path, options: &StoreOptions) -> Result<()> {
    if (manifest.core, manifest.cores) == (options.core, options.cores) {
        return Ok(());
    }
    let why = format!(
        "it is core {} of {}, not core {} of {}",
        manifest.core.0, manifest.cores, options.core.0, options.cores
    );
    let path = dir.join(super::manifest::MANIFEST);
    Err(Error::Setup(format!(
        "cannot use {}: {why}",
        path.display()
    )))
}

fn without_cleared(memtable: &Memtable, cleared: Version) -> Memtable {
    let mut kept = Memtable::new();
    for entry in memtable
        .iter()
        .filter(|entry| entry.record.meta().version > cleared)
    {
        let _ = kept.insert(entry.record.clone(), entry.position, entry.lsn);
    }
    kept
}

impl Replayed {
    fn take(&mut self, entry: Entry<'_>) -> Result<()> {
        self.entries += 1;
        match entry {
            Entry::Record(view) => {
                let record = Record::decode(view.bytes()).expect("a view is a record");
                self.insert(record);
            }
            Entry::Clear(version) => {
                self.cleared = self.cleared.max(version);
                self.version_max = self.version_max.max(version);
                self.memtable = without_cleared(&self.memtable, self.cleared);
            }
            Entry::Prepare {
                transaction,
                cores,
                mut parts,
            } => {
                let mut batch = Batch::default();
                while !parts.is_empty() {
                    match take_entry(&mut parts) {
                        Some(Entry::Record(view)) => {
                            let record = Record::decode(view.bytes()).expect("a view is a record");
                            self.version_max = self.version_max.max(record.meta().version);
                            batch
                                .records
                                .push((KeyRef::of(record.key()).position, record));
                        }
                        Some(Entry::Clear(version)) => {
                            self.version_max = self.version_max.max(version);
                            batch.clear = Some(version);
                        }
                        // Under an intact checksum: a program error, not the disk's.
                        _ => return Err(Error::Setup("a prepared part is malformed".to_owned())),
                    }
                }
                self.version_max = self.version_max.max(transaction);
                self.prepared.insert(transaction, (cores, batch));
            }
            Entry::Commit(transaction) => {
                self.committed.insert(transaction);
            }
            Entry::Abort(transaction) => {
                self.prepared.remove(&transaction);
            }
        }
        Ok(())
    }

    fn insert(&mut self, record: Record) {
        let version = record.meta().version;
        self.version_max = self.version_max.max(version);
        if version > self.cleared {
            let position = KeyRef::of(record.key()).position;
            // An old one may come late: a recovery has cut the log before it.
            let _ = self.memtable.insert(record, position, RECOVERED);
        }
    }
}
