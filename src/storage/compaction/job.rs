//! Carrying out a merge: sorted inputs in, sorted outputs of bounded size out.
//!
//! Of one key only the newest record lives on. Records at or below the version of the last FLUSHALL
//! go. An expired record becomes a tombstone of the same version, for it may hide older records;
//! tombstones go where they hide nothing: where no table below the outputs may have the key, by its
//! range and filter, and no replica may have it either. The values in the value log of what goes
//! are garbage. What is below stays the same while a merge runs, but for what a FLUSHALL takes out:
//! merges run one at a time, and a flush comes on top.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::config::Compression;
use crate::error::Result;
use crate::rt::{self, Bug};
use crate::storage::cache::Caches;
use crate::storage::levels::{Filters, Levels, RunCursor};
use crate::storage::merge::{Bound, Item, Merge, Step};
use crate::storage::record::{KeyRef, Meta, Record};
use crate::storage::sstable::{TableId, TableInfo, TableWriter};
use crate::storage::vlog::Garbage;
use crate::types::{UnixMillis, Version};

/// Each input is read in pieces of this size.
const READ_BYTES: usize = 256 * 1024;
/// After this many bytes of input others get their turn.
const TURN_BYTES: usize = 64 * 1024;

/// What a merge may leave out.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Records at or below it are dead.
    pub cleared: Version,
    /// Records that have expired by then are dead.
    pub now: UnixMillis,
    /// Tombstones stay, and what has expired becomes one: a replica may not have heard of it.
    pub keeps_deleted: bool,
}

/// A merge to be run.
pub struct Job {
    /// Where tables live.
    pub dir: PathBuf,
    /// The planned inputs.
    pub inputs: Levels,
    /// What is older than all of them and stays: it may hold what a tombstone hides.
    pub below: Levels,
    /// Where the outputs belong.
    pub level: u8,
    /// What may be left out.
    pub rules: Rules,
    /// An output is ended when it is this long, and another one begun.
    pub table_bytes_max: u64,
    /// How its blocks are compressed.
    pub compression: Compression,
    /// Where its blocks are kept as well, as far as there is room.
    pub caches: Rc<Caches>,
}

/// What a merge has made.
#[derive(Debug, Default)]
pub struct Merged {
    /// In order; none if nothing lives on.
    pub tables: Vec<TableInfo>,
    /// The highest version of a tombstone, or of a record that had expired, that left no trace.
    pub forgotten: Version,
    /// Values that are pointed to by what was merged, and not by what came of it.
    pub garbage: Garbage,
}

/// What a merge leaves out.
#[derive(Default)]
struct Gone {
    forgotten: Version,
    garbage: Garbage,
}

impl Job {
    /// What lives on of the newest record of a key.
    async fn survivor(&self, item: Item, below: &mut Filters, gone: &mut Gone) -> Option<Item> {
        let place = item.record.pointer();
        let survivor = match self.is_live(&item) {
            true => Some(item),
            false => self.what_hides(item, below, &mut gone.forgotten).await,
        };
        let kept = survivor.as_ref().and_then(|item| item.record.pointer());
        if let Some(place) = place.filter(|_| kept.is_none()) {
            gone.garbage.add(place);
        }
        survivor
    }

    fn is_live(&self, item: &Item) -> bool {
        let is_cleared = item.record.meta().version <= self.rules.cleared;
        !is_cleared && item.record.view().is_live(self.rules.now)
    }

    /// What is left of a dead record: a tombstone, if something below may have its key.
    async fn what_hides(
        &self,
        item: Item,
        below: &mut Filters,
        forgotten: &mut Version,
    ) -> Option<Item> {
        let meta = item.record.meta();
        if meta.version <= self.rules.cleared {
            return None;
        }
        let key = KeyRef {
            position: item.position,
            ..KeyRef::of(item.record.key())
        };
        let is_needed = self.rules.keeps_deleted || below.may_contain(&key).await;
        if !is_needed || rt::planted(Bug::TombstoneTooEarly) {
            *forgotten = meta.version.max(*forgotten);
            return None;
        }
        if meta.tombstone {
            return Some(item);
        }
        let tombstone = Meta {
            tombstone: true,
            expiry: 0,
            ..meta
        };
        let record = Record::new(tombstone, item.record.key(), b"");
        let record = record.counted(item.record.is_counted());
        Some(Item { record, ..item })
    }
}

/// Merges the inputs into new tables, numbered by `next_id`, which are synced when this returns;
/// their names are the caller's to sync, and the manifest is the caller's to change. `pause` says
/// how long to wait after so many bytes of input. After an error no output is left. Run it in
/// `Queue::Background`.
pub async fn run(
    job: &Job,
    next_id: impl FnMut() -> TableId,
    pause: impl Fn(usize) -> Duration,
) -> Result<Merged> {
    let mut outputs = Outputs::new(
        &job.dir,
        job.level,
        job.table_bytes_max,
        job.compression,
        next_id,
    )
    .caching(&job.caches);
    let merged = merge(job, &mut outputs, pause).await;
    let finished = match merged {
        Ok(gone) => outputs.end_table().await.map(|()| gone),
        Err(failure) => Err(failure),
    };
    match finished {
        Ok(Gone { forgotten, garbage }) => Ok(Merged {
            tables: outputs.done,
            forgotten,
            garbage,
        }),
        Err(failure) => {
            outputs.remove_all().await;
            Err(failure)
        }
    }
}

async fn merge(
    job: &Job,
    outputs: &mut Outputs<'_, impl FnMut() -> TableId>,
    pause: impl Fn(usize) -> Duration,
) -> Result<Gone> {
    // The runs stand from the newest to the oldest: of two places of one version the newer counts.
    let cursor = |run| RunCursor::new(Rc::clone(run), Bound::START, READ_BYTES);
    let mut cursors: Vec<RunCursor> = job.inputs.runs().iter().map(cursor).collect();
    let mut merge = Merge::new(cursors.len());
    let mut below = Filters::of(job.below.clone());
    let mut gone = Gone::default();
    let mut turn_bytes = 0;
    loop {
        match merge.step() {
            Step::Fetch(source) => merge.feed(source, cursors[source].next_chunk().await?),
            Step::Emit(item) => {
                turn_bytes += item.record.bytes().len();
                let older = merge.take_dropped().into_iter();
                older.for_each(|place| gone.garbage.add(place));
                if let Some(item) = job.survivor(item, &mut below, &mut gone).await {
                    outputs.add(&item).await?;
                }
                if turn_bytes >= TURN_BYTES {
                    match pause(turn_bytes) {
                        Duration::ZERO => rt::yield_if_needed().await,
                        pause => rt::sleep(pause).await,
                    }
                    turn_bytes = 0;
                }
            }
            Step::End => return Ok(gone),
        }
    }
}

/// Tables that are written one after the other, in the order of their keys: one run.
pub(in crate::storage) struct Outputs<'a, F> {
    dir: &'a Path,
    level: u8,
    table_bytes_max: u64,
    compression: Compression,
    caches: Option<Rc<Caches>>,
    next_id: F,
    open: Option<TableWriter>,
    /// Those that are written and synced; their names are not.
    pub(in crate::storage) done: Vec<TableInfo>,
}

impl<'a, F: FnMut() -> TableId> Outputs<'a, F> {
    /// None yet. They come to `dir`, numbered by `next_id`, each of about `table_bytes_max`, in
    /// blocks that are packed as `compression` says.
    pub(in crate::storage) fn new(
        dir: &'a Path,
        level: u8,
        table_bytes_max: u64,
        compression: Compression,
        next_id: F,
    ) -> Outputs<'a, F> {
        Outputs {
            dir,
            level,
            table_bytes_max,
            compression,
            caches: None,
            next_id,
            open: None,
            done: Vec::new(),
        }
    }

    /// Their blocks are kept in `caches` as well, as far as there is room.
    fn caching(self, caches: &Rc<Caches>) -> Outputs<'a, F> {
        let caches = Some(Rc::clone(caches));
        Outputs { caches, ..self }
    }

    /// Adds the next record.
    pub(in crate::storage) async fn add(&mut self, item: &Item) -> Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|table| table.bytes() >= self.table_bytes_max)
        {
            self.end_table().await?;
        }
        let mut table = match self.open.take() {
            Some(table) => table,
            None => {
                let id = (self.next_id)();
                let run = self.done.first().map_or(id, |first| first.run);
                let table = TableWriter::create(self.dir, id, run, self.compression).await?;
                let table = table.at_level(self.level);
                match &self.caches {
                    Some(caches) => table.caching(caches),
                    None => table,
                }
            }
        };
        table.add(&item.record, item.position).await?;
        self.open = Some(table);
        Ok(())
    }

    /// Completes the table that is under way: before the end, or the next record begins another
    /// one.
    pub(in crate::storage) async fn end_table(&mut self) -> Result<()> {
        if let Some(table) = self.open.take() {
            let info = table.finish().await?;
            self.done.push(info);
        }
        Ok(())
    }

    async fn remove_all(mut self) {
        if let Some(table) = self.open.take() {
            table.abandon().await;
        }
        for table in self.done {
            if let Err(failure) = rt::remove_file(&table.path(self.dir)).await {
                // It stays as an orphan, which the next start removes.
                log::warn!("{failure}");
            }
        }
    }
}
