//! Compaction: tables are merged, so that reads ask few of them and what is dead gives its space
//! back.
//!
//! [`plan`] decides (pure), `job` merges, `pace` says how fast (pure). Tables stand in one list,
//! the oldest first: the deepest level, up to level 1, then level 0. A level from 1 on is one
//! sorted run of disjoint tables; level 0 holds runs (what one flush or one merge wrote: disjoint
//! tables) from the oldest to the newest. Of the records of one key the one that stands last is the
//! newest, and every plan keeps it so ([`keeps_order`]). The styles:
//!
//! - `leveled` (see compaction/leveled.rs): level 0 is merged into level 1 and so on, each level ten
//!   times as large as the one above it.
//! - `tiered` (see compaction/tiered.rs): neighbouring runs of similar size become one.
//!
//! Either understands what the other has left. With both, tables of which half the bytes have
//! expired are rewritten where they stand.

pub mod job;
mod leveled;
pub mod pace;
mod tiered;

use std::cmp::Reverse;

use crate::storage::sstable::{KeyBuf, TableId, TableInfo};
use crate::types::UnixMillis;

/// The deepest level.
pub const LEVEL_MAX: u8 = 7;
/// At rest a merge is worth it for one record that may hide another in so many.
const HIDING_SHARE: u64 = 50;
/// More runs of level 0 are not merged at once.
const MERGE_RUNS_MAX: usize = 16;

/// Which tables are merged with which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Levels of growing size.
    Leveled,
    /// Runs of similar size.
    SizeTiered,
}

/// What plans are made by.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Which tables are merged with which.
    pub style: Style,
    /// An output is ended when it is this long, and another one begun.
    pub table_bytes: u64,
    /// Level 1 may have so many bytes.
    pub base_bytes: u64,
    /// Each further level may have so many times as many.
    pub ratio: u64,
}

impl Shape {
    /// How many bytes `level` may have before some of it goes on to the next.
    fn level_bytes(&self, level: u8) -> u64 {
        assert!((1..=LEVEL_MAX).contains(&level));
        self.base_bytes
            .saturating_mul(self.ratio.saturating_pow(u32::from(level) - 1))
    }

    /// The first level that may have so many bytes, or the deepest.
    pub fn level_for(&self, bytes: u64) -> u8 {
        let mut levels = 1..LEVEL_MAX;
        levels
            .find(|level| bytes <= self.level_bytes(*level))
            .unwrap_or(LEVEL_MAX)
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Idle,
    /// Say that these tables, disjoint and in order, belong to `level`. They are not rewritten.
    Move {
        /// Which.
        tables: Vec<TableId>,
        /// Where to.
        level: u8,
    },
    /// Merge these tables into a run of `level`.
    Merge {
        /// Which, in the order of the list.
        inputs: Vec<TableId>,
        /// Where the outputs belong.
        level: u8,
    },
}

/// Decides what to do with `tables`, which stand in order.
pub fn plan(tables: &[TableInfo], shape: &Shape, now: UnixMillis) -> Plan {
    let planned = match shape.style {
        Style::Leveled => leveled::plan(tables, shape),
        Style::SizeTiered => tiered::plan(tables),
    };
    let plan = planned.or_else(|| half_expired(tables, now));
    plan.unwrap_or(Plan::Idle)
}

/// Decides what to do while nobody writes and [`plan`] has nothing to do: what deletes and
/// overwrites hide in deeper tables is merged with them, so that its space comes back. Only where
/// they are many enough (one of [`HIDING_SHARE`]) to be worth it. Carried out again and again, this
/// comes to an end.
pub fn plan_at_rest(tables: &[TableInfo], shape: &Shape) -> Plan {
    let planned = match shape.style {
        Style::Leveled => leveled::plan_at_rest(tables, shape),
        Style::SizeTiered => tiered::plan_at_rest(tables),
    };
    planned.unwrap_or(Plan::Idle)
}

/// True if `hiding` records, which may hide older ones, are many beside `records`.
pub fn is_worth_merging(hiding: u64, records: u64) -> bool {
    hiding > 0 && hiding.saturating_mul(HIDING_SHARE) >= records
}

fn tombstones_of<'a>(tables: impl IntoIterator<Item = &'a TableInfo>) -> u64 {
    tables.into_iter().map(|table| table.tombstones).sum()
}

fn records_of<'a>(tables: impl IntoIterator<Item = &'a TableInfo>) -> u64 {
    tables.into_iter().map(|table| table.records).sum()
}

/// A level from 1 on, or a run of level 0.
#[derive(Clone, Copy)]
struct Run<'a> {
    tables: &'a [TableInfo],
    bytes: u64,
}

impl Run<'_> {
    fn level(&self) -> u8 {
        self.tables[0].level
    }
}

/// True if two neighbours in the list belong to one run.
pub fn is_one_run(one: &TableInfo, two: &TableInfo) -> bool {
    one.level == two.level && (one.level > 0 || one.run == two.run)
}

/// The oldest first.
fn runs_of(tables: &[TableInfo]) -> Vec<Run<'_>> {
    let run = |tables| Run {
        tables,
        bytes: bytes_of(tables),
    };
    tables.chunk_by(is_one_run).map(run).collect()
}

fn bytes_of<'a>(tables: impl IntoIterator<Item = &'a TableInfo>) -> u64 {
    tables.into_iter().map(|table| table.bytes).sum()
}

/// Bytes of the large values that these tables point to.
fn pointed_by<'a>(tables: impl IntoIterator<Item = &'a TableInfo>) -> u64 {
    tables.into_iter().map(|table| table.pointed).sum()
}

fn ids_of<'a>(tables: impl IntoIterator<Item = &'a TableInfo>) -> Vec<TableId> {
    tables.into_iter().map(|table| table.id).collect()
}

/// Keys from the first to the last that any of some tables may hold.
#[derive(Clone, Copy)]
struct Span<'a> {
    first: &'a KeyBuf,
    last: &'a KeyBuf,
}

impl<'a> Span<'a> {
    /// `None` for no tables.
    fn of(tables: impl IntoIterator<Item = &'a TableInfo>) -> Option<Span<'a>> {
        let one = |table: &'a TableInfo| Span {
            first: &table.first_key,
            last: &table.last_key,
        };
        let both = |a: Span<'a>, b: Span<'a>| Span {
            first: a.first.min(b.first),
            last: a.last.max(b.last),
        };
        tables.into_iter().map(one).reduce(both)
    }

    fn overlaps(&self, table: &TableInfo) -> bool {
        table.first_key <= *self.last && *self.first <= table.last_key
    }
}

/// Rewrites, where it stands, the oldest table (of level 0: run) of which half has expired.
fn half_expired(tables: &[TableInfo], now: UnixMillis) -> Option<Plan> {
    let is_due = |table: &&TableInfo| table.half_expired_at != 0 && table.half_expired_at <= now;
    let rewrite = |tables: &[TableInfo]| Plan::Merge {
        inputs: ids_of(tables),
        level: tables[0].level,
    };
    runs_of(tables).iter().find_map(|run| {
        let mut due = run.tables.iter().filter(is_due);
        if run.level() > 0 {
            return due.next().map(|table| rewrite(std::slice::from_ref(table)));
        }
        (bytes_of(due) * 2 >= run.bytes).then(|| rewrite(run.tables))
    })
}

/// True if the tables that are left stand in the right order once `plan` is carried out: none that
/// shares keys with what is merged is older than some of it and newer than some.
pub fn keeps_order(tables: &[TableInfo], plan: &Plan) -> bool {
    let (ids, level) = match plan {
        Plan::Idle => return true,
        Plan::Move { tables, level } => (tables, *level),
        Plan::Merge { inputs, level } => (inputs, *level),
    };
    let place = |id: &TableId| tables.iter().position(|table| table.id == *id);
    let places: Option<Vec<usize>> = ids.iter().map(place).collect();
    let Some(places) = places.filter(|places| places.is_sorted()) else {
        return false;
    };
    let Some(span) = Span::of(places.iter().map(|&at| &tables[at])) else {
        return false;
    };
    let newest = *places.last().expect("there is a span, so there are tables");
    let others = (0..tables.len()).filter(|at| !places.contains(at) && span.overlaps(&tables[*at]));
    others.into_iter().all(|at| {
        let other = &tables[at];
        let shares = |input: &&usize| {
            Span::of([&tables[**input]]).is_some_and(|input| input.overlaps(other))
        };
        let is_below = match level {
            0 => other.level > 0 || at < newest,
            _ => other.level > level,
        };
        let is_beside = level > 0 && other.level == level;
        let is_right = |input: &usize| (at < *input) == is_below;
        !is_beside && places.iter().filter(shares).all(is_right)
    })
}

/// Changes the list: `remove` go, and `add`, which came out of them or is a flush, takes its place.
pub fn apply(tables: &mut Vec<TableInfo>, remove: &[TableId], add: Vec<TableInfo>) {
    let is_removed = |table: &TableInfo| remove.contains(&table.id);
    let newest = tables.iter().rposition(is_removed);
    let at = newest.map_or(tables.len(), |newest| {
        tables[..newest].iter().filter(|t| !is_removed(t)).count()
    });
    tables.retain(|table| !is_removed(table));
    let Some(level) = add.first().map(|table| table.level) else {
        return;
    };
    assert!(add.iter().all(|table| table.level == level));
    if level == 0 {
        tables.splice(at..at, add);
        return;
    }
    for table in add {
        let place = |table: &TableInfo| (Reverse(table.level), table.first_key.clone());
        let at = tables.partition_point(|other| {
            other.level > level || (other.level == level && place(other) < place(&table))
        });
        tables.insert(at, table);
    }
}

/// True if `tables` stand as this module's header says.
pub fn is_in_order(tables: &[TableInfo]) -> bool {
    let levels = tables.iter().map(|table| Reverse(table.level));
    let runs = runs_of(tables);
    let is_disjoint = |run: &Run<'_>| {
        run.tables
            .windows(2)
            .all(|two| two[0].last_key < two[1].first_key)
    };
    let mut young: Vec<TableId> = runs
        .iter()
        .filter(|run| run.level() == 0)
        .map(|run| run.tables[0].run)
        .collect();
    let count = young.len();
    young.sort();
    young.dedup();
    levels.is_sorted()
        && tables.iter().all(|table| table.level <= LEVEL_MAX)
        && young.len() == count
        && runs.iter().all(is_disjoint)
}

#[cfg(test)]
mod tests;
