//! Opening a store: manifest, tables, log; what was half done is undone or finished.
//!
//! Order: the manifest says which tables and segments of the value log live and where the logs
//! begin; the logs are replayed into a memtable; what never was is noted; then files that the
//! manifest does not name, leftovers of a crash, go. Nothing is skipped that cannot be read: the
//! core then does not open.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::cache::Caches;
use super::compact::Pace;
use super::compaction::Shape;
use super::levels::Levels;
use super::maintain::Edit;
use super::manifest::Manifest;
use super::memtable::Inserted;
use super::opening::Opening;
use super::recover::{self, Heard, Recovered, without_cleared};
use super::resident::{Residence, load_first};
use super::sstable::{Table, TableId};
use super::vlog::Values;
use super::wal::format::{
    Life, SegmentHeader, SegmentId, Stream, decode_life, decode_segment_bytes,
    decode_segment_header,
};
use super::wal::replay::{self, Floor, Found};
use super::wal::{Admission, Fate, LogOptions, Segment, Wal, WalLimits};
use super::{Batch, Held, Layer, NO_DOUBT, RECOVERED, State, Stats, Store};
use crate::config::{Compression, Durability};
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, BLOCK_BYTES, File, Queue};
use crate::types::{CoreId, KeyHash, Lsn, Version};

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
    /// Memory for memtables, filters, indexes and caches.
    pub memory_bytes: u64,
    /// How much of it filters and indexes may take; what does not fit is read by need.
    pub index_bytes_max: u64,
    /// How tables are merged.
    pub compaction: Shape,
    /// How blocks of tables are compressed.
    pub compression: Compression,
    /// A record with a value of this size goes to the value log.
    pub value_bytes_min: usize,
    /// How values are compressed there.
    pub value_compression: Compression,
    /// Bytes of a segment of the value log.
    pub value_segment_bytes: u64,
    /// A memtable is flushed too when a replay would read so much of the value log.
    pub value_replay_bytes_max: u64,
    /// The value log is collected when more of it is garbage, in hundredths.
    pub value_garbage_percent_max: u64,
}

/// A store that was opened, and what others must know or say about it. When all that is undecided
/// is recovered or aborted, call [`Store::leave_log`] and [`Store::drop_log`].
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
    /// Where the log has it.
    pub lsn: Lsn,
    /// What it writes here.
    pub batch: Batch,
}

/// The logs, as they were found.
struct Logs {
    wal: Found,
    values: Found,
    moved: Found,
}

impl Store {
    /// Opens the store in `dir`, or makes one there, and starts its background work.
    pub async fn open(dir: &Path, options: StoreOptions) -> Result<Opened> {
        let opened = Store::open_to_flush(dir, options).await?;
        let store = &opened.store;
        store.in_background(Rc::clone(store).load_tables());
        store.in_background(Rc::clone(store).merge_tables());
        store.in_background(Rc::clone(store).collect_values());
        Ok(opened)
    }

    /// Runs `work`, which ends when the store stops.
    fn in_background(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        self.state.borrow_mut().workers += 1;
        let store = Rc::clone(self);
        rt::spawn_in(Queue::Background, async move {
            work.await;
            store.state.borrow_mut().workers -= 1;
            store.changed.wake_all();
        });
    }

    /// Like [`Store::open`], for a store that only takes in what it has to recover and then stops:
    /// it merges and collects nothing.
    pub(super) async fn open_to_flush(dir: &Path, options: StoreOptions) -> Result<Opened> {
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
        let mut tables = Vec::with_capacity(manifest.tables.len());
        for info in &manifest.tables {
            tables.push(Rc::new(Table::open(dir, info).await?));
        }
        let mut heard = Heard::new(manifest.flushed);
        check_listed(dir, &manifest, &names)?;
        let logs = hear(dir, &manifest, &names, &mut heard).await?;
        let places = std::mem::take(&mut heard.places);
        let recovered = heard.finish(manifest.cleared, &manifest.voids);
        recover::check_gap(recovered.gap, [&logs.wal, &logs.values])?;
        let mut must_store = false;
        if let Some(void) = recovered.void {
            log::info!(
                "writes {void:?} were under way at the crash and not in order: they never were"
            );
            manifest.voids.retain(|known| known.1 < void.0);
            manifest.voids.push(void);
            must_store = true;
        }
        if manifest.logless && options.durability != Durability::None {
            manifest.logless = false;
            manifest.values_floor = Floor {
                segment: logs.values.segment_next,
                sequence: logs.values.sequence_next,
            };
            must_store = true;
        }
        let values = open_values(dir, &mut manifest, &logs, places).await?;
        make_durable(&manifest, dir, must_store).await?;
        remove_orphans(dir, &mut manifest, &names).await?;
        tables.retain(|table| table.info().version_max > recovered.cleared);
        let tables = Levels::new(tables);
        load_first(&tables, options.index_bytes_max).await?;
        let start = Start {
            dir,
            options,
            manifest,
            tables,
            values,
            recovered,
        };
        start.start(logs).await
    }
}

/// All that a store begins with.
struct Start<'a> {
    dir: &'a Path,
    options: StoreOptions,
    manifest: Manifest,
    tables: Levels,
    values: Values,
    recovered: Recovered,
}

impl Start<'_> {
    async fn start(mut self, logs: Logs) -> Result<Opened> {
        let version_max = self
            .recovered
            .version_max
            .max(self.manifest.version_max)
            .max(self.recovered.cleared);
        let prepared: BTreeSet<Version> = self.recovered.prepared.keys().copied().collect();
        self.values.note_all(&self.recovered.garbage);
        let logless = self.options.durability == Durability::None;
        let leftover = if logless {
            logs.wal.paths()
        } else {
            Vec::new()
        };
        let floor_without_log = Floor {
            segment: logs.wal.segment_next,
            sequence: logs.wal.sequence_next,
        };
        let fate = Rc::new(Fate::default());
        let wal = match logless {
            true => None,
            false => Some(self.log(Stream::Records, &fate, logs.wal).await),
        };
        let values = self.log(Stream::Values, &fate, logs.values).await;
        let moved = self.log(Stream::Moved, &fate, logs.moved).await;
        let parts = std::mem::take(&mut self.recovered.prepared);
        let committed = std::mem::take(&mut self.recovered.committed);
        let replayed = self.recovered.entries;
        let store = Rc::new(Store {
            dir: self.dir.to_owned(),
            options: self.options,
            wal,
            values,
            moved,
            moved_last: Cell::new(Lsn(0)),
            moving: Cell::new(false),
            keeps_deleted: Cell::new(false),
            fate,
            doubtful: Cell::new(NO_DOUBT),
            state: RefCell::new(self.state(floor_without_log, leftover)),
            changed: Signal::default(),
            installing: Cell::new(false),
            pace: Pace::default(),
            opening: Opening::default(),
            caches: Rc::new(Caches::new(0)),
            residence: Residence::default(),
            packer: RefCell::default(),
        });
        store.share_memory();
        let undecided = store.take_prepared(parts, &committed);
        rt::spawn(Rc::clone(&store).take_in_values());
        rt::spawn_in(Queue::Background, Rc::clone(&store).flush_memtables());
        Ok(Opened {
            store,
            undecided,
            prepared,
            version_max,
            replayed,
        })
    }

    async fn log(&self, stream: Stream, fate: &Rc<Fate>, found: Found) -> Wal {
        let limits = match stream {
            Stream::Records => self.options.wal,
            Stream::Values | Stream::Moved => WalLimits {
                segment_bytes: self.options.value_segment_bytes,
                ..self.options.wal
            },
        };
        let options = LogOptions {
            dir: self.dir.to_owned(),
            stream,
            durability: self.options.durability,
            limits,
            fate: Rc::clone(fate),
        };
        Wal::start(options, found).await
    }

    fn state(self, floor_without_log: Floor, leftover: Vec<PathBuf>) -> State {
        State {
            active: Layer {
                memtable: Rc::new(RefCell::new(self.recovered.memtable)),
                ..Layer::default()
            },
            frozen: VecDeque::new(),
            tables: self.tables,
            values: self.values,
            emptied: Vec::new(),
            damaged: BTreeSet::new(),
            moving_from: None,
            epoch: 0,
            cleared: self.recovered.cleared,
            forgotten: Version::ZERO,
            cleared_at: Lsn(0),
            flushed: self.manifest.flushed,
            manifest: self.manifest,
            floor_without_log,
            leftover,
            lsn_last: self.recovered.last.max(RECOVERED),
            held: BTreeMap::new(),
            undecided: BTreeSet::new(),
            flush_refused: None,
            install_failed: false,
            stopping: false,
            flusher_ended: false,
            workers: 0,
            stats: Stats::default(),
        }
    }
}

impl Store {
    /// Takes in the prepared parts that are known to hold, and gives back the others.
    fn take_prepared(
        &self,
        prepared: BTreeMap<Version, Undecided>,
        committed: &BTreeSet<Version>,
    ) -> Vec<Undecided> {
        let mut undecided = Vec::new();
        for (transaction, part) in prepared {
            if committed.contains(&transaction) {
                self.recover(part);
            } else {
                self.hold(&part);
                self.state.borrow_mut().undecided.insert(transaction);
                undecided.push(part);
            }
        }
        undecided
    }

    /// The log keeps `part` until it is settled, or known never to have been.
    fn hold(&self, part: &Undecided) {
        let held = Held {
            lsn: part.lsn,
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
        let mut state = self.state.borrow_mut();
        let cleared = state.cleared;
        for (position, record) in part.batch.records {
            self.caches.rows.forget(KeyHash::of(record.key()));
            if record.meta().version > cleared {
                // Unlike a new write it may be older than what the log brought back.
                let active = Rc::clone(&state.active.memtable);
                let inserted = active.borrow_mut().insert(record, position, RECOVERED);
                if let Inserted::Replaced(old) = inserted
                    && let Some(place) = old.record.pointer()
                {
                    state.values.note_garbage(place);
                }
            }
        }
        state
            .active
            .transactions
            .borrow_mut()
            .push(part.transaction);
        drop(state);
        self.note_decided(part.transaction);
    }

    /// What a start found of `transaction` is recovered, or never was.
    pub(super) fn note_decided(&self, transaction: Version) {
        let was_undecided = self.state.borrow_mut().undecided.remove(&transaction);
        if was_undecided {
            self.changed.wake_all();
        }
    }

    fn clear_recovered(&self, version: Version) {
        let mut state = self.state.borrow_mut();
        state.cleared = state.cleared.max(version);
        self.caches.rows.clear();
        let cleared = state.cleared;
        state
            .tables
            .retain(|table| table.info().version_max > cleared);
        let active = &state.active;
        let memtable = without_cleared(&active.memtable.borrow(), cleared);
        *active.memtable.borrow_mut() = memtable;
    }

    /// With `durability = "none"`: puts what an earlier log held into a table. Call it when nothing
    /// is undecided any more, and [`Store::drop_log`] when all cores have done so: until then
    /// another one may ask what this log says.
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
            match state.flush_refused.and_then(Admission::refusal) {
                Some(refusal) => Some(Err(refusal)),
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

/// A segment of the value log that the manifest lists and that is not there is damage.
fn check_listed(dir: &Path, manifest: &Manifest, names: &[String]) -> Result<()> {
    for info in &manifest.segments {
        let name = info.id.file_name(info.stream);
        if !names.contains(&name) {
            return Err(Error::Corrupt {
                file: dir.join(name),
                offset: 0,
                why: "the manifest lists it, and it is missing".to_owned(),
            });
        }
    }
    Ok(())
}

/// Reads what the logs say.
async fn hear(
    dir: &Path,
    manifest: &Manifest,
    names: &[String],
    heard: &mut Heard,
) -> Result<Logs> {
    let ids = |stream| replay::segments_of(stream, names).into_iter();
    let wal = replay::replay(dir, Stream::Records, manifest.floor, |read| {
        heard.take(Stream::Records, read)
    });
    let wal = wal.await?;
    let values = match manifest.logless {
        true => Found::nothing(manifest.values_floor, ids(Stream::Values)),
        false => {
            let each = |read: replay::Read<'_>| heard.take(Stream::Values, read);
            replay::replay(dir, Stream::Values, manifest.values_floor, each).await?
        }
    };
    let moved = Found::nothing(manifest.moved_floor, ids(Stream::Moved));
    Ok(Logs { wal, values, moved })
}

/// Opens the segments of the value log that the manifest lists, and takes in those that were
/// replayed, where `places` of records were found. A listed one that is not there is damage.
async fn open_values(
    dir: &Path,
    manifest: &mut Manifest,
    logs: &Logs,
    places: Vec<(super::record::Pointer, Version)>,
) -> Result<Values> {
    let mut values = Values::default();
    let replayed = &logs.values.segments;
    let find = |id: SegmentId| replayed.iter().find(|found| found.segment.id == id);
    for info in &manifest.segments {
        let name = info.id.file_name(info.stream);
        match find(info.id).filter(|_| info.stream == Stream::Values) {
            // How much of it there is was found anew.
            Some(found) => {
                let info = super::manifest::SegmentInfo {
                    written: 0,
                    garbage: 0,
                    ..*info
                };
                values.insert(Rc::clone(&found.segment), info);
            }
            // Only what holds something durable is listed.
            None if logs.values.blank.contains(&dir.join(&name)) => {
                return Err(Error::Corrupt {
                    file: dir.join(name),
                    offset: BLOCK_BYTES as u64,
                    why: "the manifest counts records in it, and there are none".to_owned(),
                });
            }
            None => {
                let segment = open_segment(&dir.join(name), info.stream, info.id).await?;
                values.insert(segment, *info);
            }
        }
    }
    for (place, version) in places {
        let found = find(place.segment).expect("places are in what was replayed");
        values.note_written(&found.segment, place, version, Lsn(0));
    }
    let mut known = super::vlog::Garbage::default();
    for info in manifest
        .segments
        .iter()
        .filter(|info| info.stream == Stream::Values && find(info.id).is_some())
    {
        known.add_bytes((info.stream, info.id), info.garbage);
        // Of what was durable some cannot be found: it may be pointed to all the same.
        values.note_least((info.stream, info.id), info.written);
    }
    values.note_all(&known);
    manifest.segments = values.list(&[], &super::vlog::Garbage::default(), |_| Lsn(0));
    Ok(values)
}

async fn open_segment(path: &Path, stream: Stream, id: SegmentId) -> Result<Rc<Segment>> {
    let file = File::open(path).await?;
    let bytes = file.len().await?;
    let block = file.read_at(0, BLOCK_BYTES).await?;
    if decode_segment_header(&block) != SegmentHeader::Valid(stream, id) {
        return Err(Error::Corrupt {
            file: path.to_owned(),
            offset: 0,
            why: "its header is broken, but it is in use".to_owned(),
        });
    }
    let wanted = decode_segment_bytes(&block).unwrap_or(u64::MAX);
    if bytes < wanted {
        return Err(Error::Corrupt {
            file: path.to_owned(),
            offset: bytes,
            why: format!("it is {bytes} bytes long and should be {wanted}"),
        });
    }
    Ok(Rc::new(Segment {
        id,
        life: decode_life(&block).unwrap_or(Life(0)),
        file,
        bytes,
    }))
}

/// Removes what the manifest, which is durable, does not name: tables, and segments of the value
/// log that are not replayed either.
async fn remove_orphans(dir: &Path, manifest: &mut Manifest, names: &[String]) -> Result<()> {
    let mut orphans = manifest.take_orphans(names);
    for stream in [Stream::Values, Stream::Moved] {
        let is_replayed = |id: SegmentId| {
            stream == Stream::Values && !manifest.logless && manifest.values_floor.covers(id)
        };
        let is_listed = |id: SegmentId| {
            let mut segments = manifest.segments.iter();
            segments.any(|info| (info.stream, info.id) == (stream, id))
        };
        let ids = replay::segments_of(stream, names).into_iter();
        let gone = ids.filter(|id| !is_replayed(*id) && !is_listed(*id));
        orphans.extend(gone.map(|id| id.file_name(stream)));
    }
    for name in orphans {
        rt::remove_file(&dir.join(name)).await?;
    }
    Ok(())
}

/// Writes a manifest once more before files go that an older one may name: had a sync failed in the
/// life before, then what was read need not be what is on the disk.
async fn make_durable(manifest: &Manifest, dir: &Path, must: bool) -> Result<()> {
    match manifest.store(dir).await {
        Err(error) if error.is_disk_full() && !must => {
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
