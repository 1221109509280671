//! The live tables of a core, in the order in which readers ask them.
//!
//! A [`Run`] is a level from 1 on, or a run of level 0: disjoint tables in order, of which at most
//! one may have a key, found by binary search. [`Levels`] holds the runs from the newest to the
//! oldest: the first record of a key that is found in that order is its newest.

use std::rc::Rc;

use super::compaction::is_one_run;
use super::merge::{Bound, Item};
use super::record::KeyRef;
use super::sstable::{LastUsed, Table, TableCursor, TableId};
use crate::error::Result;
use crate::types::Position;

/// Disjoint tables in the order of their keys; at least one.
pub struct Run {
    tables: Vec<Rc<Table>>,
    bytes: u64,
}

impl Run {
    fn new(tables: Vec<Rc<Table>>) -> Run {
        let keys = |table: &Rc<Table>| {
            let info = table.info();
            (info.first_key.clone(), info.last_key.clone())
        };
        let is_disjoint = |two: &[Rc<Table>]| keys(&two[0]).1 < keys(&two[1]).0;
        assert!(!tables.is_empty() && tables.windows(2).all(is_disjoint));
        let bytes = tables.iter().map(|table| table.info().bytes).sum();
        Run { tables, bytes }
    }

    /// Its tables, in order.
    pub fn tables(&self) -> &[Rc<Table>] {
        &self.tables
    }

    /// The only table that may have this key, by its range.
    fn table_for(&self, key: &KeyRef<'_>) -> Option<&Rc<Table>> {
        let before = |table: &Rc<Table>| table.info().ends_before(key.position, key.key);
        self.tables.get(self.tables.partition_point(before))
    }

    /// The table that has this key, if the run may have it.
    fn candidate(&self, key: &KeyRef<'_>) -> Option<&Rc<Table>> {
        self.table_for(key).filter(|table| table.may_contain(key))
    }

    /// True if it may hold keys from `first` to `last`, both included.
    pub fn overlaps(&self, first: Position, last: Position) -> bool {
        self.tables
            .iter()
            .any(|table| table.info().overlaps(first, last))
    }
}

/// All live tables.
#[derive(Clone, Default)]
pub struct Levels {
    /// The newest first.
    runs: Vec<Rc<Run>>,
}

impl Levels {
    /// Of tables in the order of the manifest: the oldest first.
    pub fn new(tables: Vec<Rc<Table>>) -> Levels {
        let chunks = tables.chunk_by(|one, two| is_one_run(one.info(), two.info()));
        let runs = chunks.rev().map(|run| Rc::new(Run::new(run.to_vec())));
        Levels {
            runs: runs.collect(),
        }
    }

    /// The tables that may have `key`, as far as memory knows, the newest first.
    pub fn candidates(&self, key: &KeyRef<'_>) -> Vec<Rc<Table>> {
        self.runs
            .iter()
            .filter_map(|run| run.candidate(key))
            .cloned()
            .collect()
    }

    /// The runs, the newest first.
    pub fn runs(&self) -> &[Rc<Run>] {
        &self.runs
    }

    /// The tables, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Rc<Table>> {
        self.runs.iter().rev().flat_map(|run| &run.tables)
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The tables named, in order; fewer if some are not here.
    pub fn only(&self, ids: &[TableId]) -> Levels {
        let named = |table: &&Rc<Table>| ids.contains(&table.info().id);
        Levels::new(self.iter().filter(named).cloned().collect())
    }

    /// Takes out tables that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&Table) -> bool) {
        let kept = self.iter().filter(|table| keep(table)).cloned().collect();
        *self = Levels::new(kept);
    }

    /// What is older than all of these tables, which make a run of `level` together, and is none of
    /// them: what stands below that run.
    pub fn below(&self, ids: &[TableId], level: u8) -> Levels {
        let first = |table: &Rc<Table>| table.info().level == 0 && ids.contains(&table.info().id);
        let young = self.iter().position(first).unwrap_or(usize::MAX);
        let is_below = |(at, table): &(usize, &Rc<Table>)| {
            let info = table.info();
            let is_older = info.level > level || (level == 0 && *at < young);
            is_older && !ids.contains(&info.id)
        };
        let below = self.iter().enumerate().filter(is_below);
        Levels::new(below.map(|(_, table)| Rc::clone(table)).collect())
    }

    /// Runs of level 0 of at most `bytes`: those that were flushed and not merged yet.
    pub fn young_runs(&self, bytes: u64) -> usize {
        let is_young = |run: &&Rc<Run>| run.tables[0].info().level == 0 && run.bytes <= bytes;
        self.runs.iter().filter(is_young).count()
    }

    /// Memory that filters and indexes take.
    pub fn memory_bytes(&self) -> u64 {
        self.iter().map(|table| table.memory_bytes()).sum()
    }

    /// The deepest level that has a table.
    pub fn depth(&self) -> u8 {
        self.runs
            .last()
            .map_or(0, |oldest| oldest.tables[0].info().level)
    }
}

/// Asks tables for many keys, in their order: what has to be read for that is read once, and past
/// the cache.
pub struct Filters {
    levels: Levels,
    /// One for each run.
    last: Vec<LastUsed>,
}

impl Filters {
    /// Those of `levels`.
    pub fn of(levels: Levels) -> Filters {
        let last = levels.runs.iter().map(|_| LastUsed::default()).collect();
        Filters { levels, last }
    }

    /// False: no table has the key, neither as a value nor as a tombstone. What cannot be read may
    /// have it.
    pub async fn may_contain(&mut self, key: &KeyRef<'_>) -> bool {
        for (run, last) in self.levels.runs.iter().zip(&mut self.last) {
            if let Some(table) = run.candidate(key)
                && table.ask(key, last).await.unwrap_or(true)
            {
                return true;
            }
        }
        false
    }
}

/// A walk over a run in order. It keeps its tables open.
pub struct RunCursor {
    run: Rc<Run>,
    /// Behind the table that `open` walks over.
    next: usize,
    open: Option<TableCursor>,
    ahead_bytes: usize,
}

impl RunCursor {
    /// A walk from `bound` that reads about `ahead_bytes` at a time, and at least a block.
    pub fn new(run: Rc<Run>, bound: Bound<'_>, ahead_bytes: usize) -> RunCursor {
        let key = match bound {
            Bound::From(_) => &[][..],
            Bound::After(_, key) => key,
        };
        let before = |table: &Rc<Table>| table.info().ends_before(bound.position(), key);
        let at = run.tables.partition_point(before);
        let first = run.tables.get(at);
        let open = first.map(|table| TableCursor::new(Rc::clone(table), bound, ahead_bytes));
        RunCursor {
            run,
            next: at + 1,
            open,
            ahead_bytes,
        }
    }

    /// The records that come next; none at the end. After an error, or if it is dropped before it
    /// is done, the walk is over: a chunk may be missing.
    pub async fn next_chunk(&mut self) -> Result<Vec<Item>> {
        while let Some(open) = &mut self.open {
            let chunk = open.next_chunk().await?;
            if !chunk.is_empty() {
                return Ok(chunk);
            }
            let next = self.run.tables.get(self.next);
            let ahead = self.ahead_bytes;
            self.open = next.map(|table| TableCursor::new(Rc::clone(table), Bound::START, ahead));
            self.next += 1;
        }
        Ok(Vec::new())
    }
}
