//! Compaction: tables are merged, so that reads ask few of them and what is dead gives its space back.
//!
//! [`plan`] decides and [`run`] does. Tables stand in the order of their age, in runs (what one
//! merge wrote, disjoint tables). Only neighbours are merged: then every table outside of a merge
//! is wholly older or wholly newer, and a tombstone may go when nothing older is left outside.
//!
//! - Size-tiered: four or more neighbouring runs of similar size, the newest such, become one. A
//!   run that is not more than twice as big as the biggest newer one beside it counts as similar,
//!   so at most three runs stand between one size and its double, and runs stay few.
//! - A run of which half the bytes have expired is rewritten alone.
//!
//! In a merge, of one key only the newest record lives on. Records at or below the version of the
//! last FLUSHALL go. An expired record becomes a tombstone of the same version, for it may hide
//! older records; tombstones go where they hide nothing.

use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use crate::error::Result;
use crate::rt;
use crate::storage::merge::{Bound, Item, Merge, Step};
use crate::storage::record::{Meta, Record};
use crate::storage::sstable::{Table, TableCursor, TableId, TableInfo, TableWriter};
use crate::storage::vlog::Garbage;
use crate::types::{UnixMillis, Version};

/// Fewer neighbouring runs of similar size are left alone.
const MERGE_RUNS_MIN: usize = 4;
/// More are not merged at once.
const MERGE_RUNS_MAX: usize = 16;
/// A run is similar to newer ones if it is at most so many times as big as the biggest of them.
const SIMILAR_RATIO: u64 = 2;
/// Each input is read in pieces of this size.
const READ_BYTES: usize = 256 * 1024;
/// After this many bytes of input others get their turn.
const TURN_BYTES: usize = 64 * 1024;
const _: () = assert!(MERGE_RUNS_MIN <= MERGE_RUNS_MAX);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Idle,
    /// Merge these neighbours into one run that takes their place.
    Merge {
        /// Which of the tables that the plan was made for.
        inputs: Range<usize>,
        /// True: nothing older is outside, so tombstones need not be kept.
        drop_tombstones: bool,
    },
}

/// Decides what to merge of `tables`, which stand from the oldest to the newest.
pub fn plan(tables: &[TableInfo], now: UnixMillis) -> Plan {
    let runs = runs_of(tables);
    let inputs = similar_neighbours(&runs).or_else(|| half_expired(tables, &runs, now));
    match inputs {
        None => Plan::Idle,
        Some(inputs) => {
            assert!(!inputs.is_empty());
            let drop_tombstones = inputs.start == 0;
            Plan::Merge {
                inputs,
                drop_tombstones,
            }
        }
    }
}

/// Tables that were written together.
struct Run {
    tables: Range<usize>,
    bytes: u64,
}

fn runs_of(tables: &[TableInfo]) -> Vec<Run> {
    let mut start = 0;
    let chunks = tables.chunk_by(|one, two| one.run == two.run);
    let run = |chunk: &[TableInfo]| {
        let tables = start..start + chunk.len();
        start = tables.end;
        Run {
            tables,
            bytes: chunk.iter().map(|table| table.bytes).sum(),
        }
    };
    chunks.map(run).collect()
}

/// The tables of the newest group of neighbouring runs that are many and similar enough.
fn similar_neighbours(runs: &[Run]) -> Option<Range<usize>> {
    for newest in (0..runs.len()).rev() {
        let mut biggest = runs[newest].bytes;
        let mut oldest = newest;
        while oldest > 0
            && newest - oldest + 1 < MERGE_RUNS_MAX
            && runs[oldest - 1].bytes <= biggest.saturating_mul(SIMILAR_RATIO)
        {
            oldest -= 1;
            biggest = biggest.max(runs[oldest].bytes);
        }
        if newest - oldest + 1 >= MERGE_RUNS_MIN {
            return Some(runs[oldest].tables.start..runs[newest].tables.end);
        }
    }
    None
}

/// The tables of the oldest run half of whose bytes are in tables that are half expired.
fn half_expired(tables: &[TableInfo], runs: &[Run], now: UnixMillis) -> Option<Range<usize>> {
    let is_due = |table: &&TableInfo| table.half_expired_at != 0 && table.half_expired_at <= now;
    let due = runs.iter().find(|run| {
        let due = tables[run.tables.clone()].iter().filter(is_due);
        due.map(|table| table.bytes).sum::<u64>() * 2 >= run.bytes
    });
    due.map(|run| run.tables.clone())
}

/// What lives on of the newest record of a key.
fn survivor(item: Item, rules: &Rules) -> Option<Item> {
    let meta = item.record.meta();
    if meta.version <= rules.cleared {
        return None;
    }
    if item.record.view().is_live(rules.now) {
        return Some(item);
    }
    if rules.drop_tombstones {
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
    Some(Item { record, ..item })
}

/// What a merge may leave out.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// As planned.
    pub drop_tombstones: bool,
    /// Records at or below it are dead.
    pub cleared: Version,
    /// Records that have expired by then are dead.
    pub now: UnixMillis,
}

/// A merge to be run.
pub struct Job {
    /// Where tables live.
    pub dir: PathBuf,
    /// The planned inputs, the oldest first.
    pub inputs: Vec<Rc<Table>>,
    /// What may be left out.
    pub rules: Rules,
    /// An output is ended when it is this long, and another one begun.
    pub table_bytes_max: u64,
}

/// Merges the inputs into new tables, numbered by `next_id`, which are synced when this returns;
/// their names are the caller's to sync, and the manifest is the caller's to change. There may be
/// none, if nothing lives on. After an error no output is left. Run it in `Queue::Background`.
///
/// What it gives up of the value log is added to `garbage`.
pub async fn run(
    job: &Job,
    next_id: impl FnMut() -> TableId,
    garbage: &mut Garbage,
) -> Result<Vec<TableInfo>> {
    let mut outputs = Outputs {
        job,
        next_id,
        open: None,
        done: Vec::new(),
    };
    let merged = merge(job, &mut outputs, garbage).await;
    let finished = match merged {
        Ok(()) => outputs.end_table().await,
        Err(failure) => Err(failure),
    };
    match finished {
        Ok(()) => Ok(outputs.done),
        Err(failure) => {
            outputs.remove_all().await;
            Err(failure)
        }
    }
}

async fn merge(
    job: &Job,
    outputs: &mut Outputs<'_, impl FnMut() -> TableId>,
    garbage: &mut Garbage,
) -> Result<()> {
    let cursor = |table: &Rc<Table>| TableCursor::new(Rc::clone(table), Bound::START, READ_BYTES);
    // The newest first: of two places of one version the newer one counts.
    let mut cursors: Vec<TableCursor> = job.inputs.iter().rev().map(cursor).collect();
    let mut merge = Merge::new(cursors.len());
    let mut turn_bytes = 0;
    loop {
        match merge.step() {
            Step::Fetch(source) => merge.feed(source, cursors[source].next_chunk().await?),
            Step::Emit(item) => {
                turn_bytes += item.record.bytes().len();
                let place = item.record.pointer();
                let survivor = survivor(item, &job.rules);
                let kept = survivor.as_ref().and_then(|item| item.record.pointer());
                let given_up = place.filter(|_| kept.is_none());
                let dropped = merge.take_dropped().into_iter().chain(given_up);
                dropped.for_each(|place| garbage.add(place));
                if let Some(item) = survivor {
                    outputs.add(&item).await?;
                }
                if turn_bytes >= TURN_BYTES {
                    turn_bytes = 0;
                    rt::yield_if_needed().await;
                }
            }
            Step::End => return Ok(()),
        }
    }
}

/// The tables that a merge writes.
struct Outputs<'a, F> {
    job: &'a Job,
    next_id: F,
    open: Option<TableWriter>,
    done: Vec<TableInfo>,
}

impl<F: FnMut() -> TableId> Outputs<'_, F> {
    async fn add(&mut self, item: &Item) -> Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|table| table.bytes() >= self.job.table_bytes_max)
        {
            self.end_table().await?;
        }
        let mut table = match self.open.take() {
            Some(table) => table,
            None => {
                let id = (self.next_id)();
                let run = self.done.first().map_or(id, |first| first.run);
                TableWriter::create(&self.job.dir, id, run).await?
            }
        };
        table.add(&item.record, item.position).await?;
        self.open = Some(table);
        Ok(())
    }

    async fn end_table(&mut self) -> Result<()> {
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
            if let Err(failure) = rt::remove_file(&table.path(&self.job.dir)).await {
                // It stays as an orphan, which the next start removes.
                log::warn!("{failure}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
