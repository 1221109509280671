//! Walking over everything that is stored, in the order of (position, key), each key once.
//!
//! A [`Snapshot`] pins the memtables and tables of one moment. The active memtable may still grow
//! under a walk: a key that is there throughout is seen once, one that comes or goes meanwhile may
//! or may not be seen.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::levels::{Run, RunCursor};
use super::memtable::Memtable;
use super::merge::{Bound, Item, Merge, Step};
use super::sstable::Table;
use super::vlog::Segments;
use crate::error::Result;
use crate::rt;
use crate::types::{Position, Version};

/// Records fetched from a memtable at a time.
const CHUNK_RECORDS: usize = 128;
/// Bytes fetched from a table at a time.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// What is stored at one moment. Newest first.
pub struct Snapshot {
    pub(super) memtables: Vec<Rc<RefCell<Memtable>>>,
    pub(super) runs: Vec<Rc<Run>>,
    pub(super) segments: Segments,
    pub(super) cleared: Version,
}

/// One sorted source of a walk.
enum Source {
    Memtable {
        memtable: Rc<RefCell<Memtable>>,
        after: Option<Item>,
        first: Position,
    },
    Run(RunCursor),
}

impl Snapshot {
    /// Its tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Rc<Table>> {
        self.runs.iter().flat_map(|run| run.tables())
    }

    /// Puts `memtable` on top: what a transaction has written and not committed.
    pub fn with_overlay(mut self, memtable: Rc<RefCell<Memtable>>) -> Snapshot {
        self.memtables.insert(0, memtable);
        self
    }

    /// Only `memtable`, nothing below it: what a transaction sees after it has cleared all.
    pub fn only(memtable: Rc<RefCell<Memtable>>) -> Snapshot {
        Snapshot {
            memtables: vec![memtable],
            runs: Vec::new(),
            segments: Segments::default(),
            cleared: Version::ZERO,
        }
    }

    /// Calls `visit` with the newest record of every key from `first` to `last` (both included),
    /// tombstones and expired records too, until it breaks.
    pub async fn walk(
        &self,
        first: Position,
        last: Position,
        mut visit: impl FnMut(&Item) -> ControlFlow<()>,
    ) -> Result<()> {
        let memtables = self.memtables.iter().map(|memtable| Source::Memtable {
            memtable: Rc::clone(memtable),
            after: None,
            first,
        });
        let runs = self.runs.iter().filter(|run| run.overlaps(first, last));
        let cursor = |run| RunCursor::new(Rc::clone(run), Bound::From(first), READ_AHEAD_BYTES);
        let runs = runs.map(|run| Source::Run(cursor(run)));
        let mut sources: Vec<Source> = memtables.chain(runs).collect();
        let mut merge = Merge::new(sources.len());
        loop {
            match merge.step() {
                Step::Fetch(source) => {
                    let chunk = sources[source].fetch().await?;
                    merge.feed(source, chunk);
                    rt::yield_if_needed().await;
                }
                Step::Emit(item) if item.position > last => return Ok(()),
                Step::Emit(item) => {
                    if item.record.meta().version > self.cleared && visit(&item).is_break() {
                        return Ok(());
                    }
                }
                Step::End => return Ok(()),
            }
        }
    }
}

impl Source {
    async fn fetch(&mut self) -> Result<Vec<Item>> {
        match self {
            Source::Run(cursor) => cursor.next_chunk().await,
            Source::Memtable {
                memtable,
                after,
                first,
            } => {
                let chunk: Vec<Item> = {
                    let memtable = memtable.borrow();
                    let bound = after.as_ref().map_or(Bound::From(*first), Item::after);
                    let entries = memtable.iter_from(bound).take(CHUNK_RECORDS);
                    let item = |entry: &super::memtable::Entry| Item {
                        position: entry.position,
                        record: entry.record.clone(),
                    };
                    entries.map(item).collect()
                };
                *after = chunk.last().cloned();
                Ok(chunk)
            }
        }
    }
}
