//! Which tables have their filters and indexes in memory: as many as fit into their part of it.
//!
//! The tops of all tables are there anyway; the rest of that part goes to whole tables. The
//! youngest runs come first, for every lookup asks them; within a run those that are in memory
//! already, so that nothing is read in vain, and then the small ones. With levels, that leaves the
//! deepest one to be read by need.
//!
//! Invariant: what is in memory, or on its way there, was chosen, and all that is chosen fits. A
//! choice is made whenever tables come or go. What is chosen and not there yet is loaded in the
//! background; lookups read by need until then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::levels::Levels;
use super::sstable::{Table, TableId};
use super::{CACHES_SHARE_MIN, MEMTABLES_MAX, Store};
use crate::error::Result;
use crate::rt;

/// A table, as far as it matters for the choice.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// The runs that are newer than its own.
    newer_runs: usize,
    /// It is in memory, or was chosen to be.
    is_resident: bool,
    /// What it would take.
    bytes: u64,
}

/// Which of `tables` are to be in `memory_bytes`.
fn choose(tables: &[Candidate], memory_bytes: u64) -> Vec<bool> {
    let all: u64 = tables.iter().map(|table| table.bytes).sum();
    if all <= memory_bytes {
        return vec![true; tables.len()];
    }
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|&at| {
        let table = &tables[at];
        (table.newer_runs, !table.is_resident, table.bytes)
    });
    let mut left = memory_bytes;
    let mut chosen = vec![false; tables.len()];
    for at in order {
        if let Some(rest) = left.checked_sub(tables[at].bytes) {
            left = rest;
            chosen[at] = true;
        }
    }
    chosen
}

/// Chooses among `levels`, beside what takes `others_bytes`, and has those that are not chosen
/// leave memory.
fn choose_among(levels: &Levels, memory_bytes: u64, others_bytes: u64) {
    let tables: Vec<(usize, &Rc<Table>)> = levels
        .runs()
        .iter()
        .enumerate()
        .flat_map(|(newer_runs, run)| run.tables().iter().map(move |table| (newer_runs, table)))
        .collect();
    let tops: u64 = tables.iter().map(|(_, table)| table.top_bytes()).sum();
    let candidate = |(newer_runs, table): &(usize, &Rc<Table>)| Candidate {
        newer_runs: *newer_runs,
        is_resident: table.is_resident(),
        bytes: table.loaded_bytes(),
    };
    let candidates: Vec<Candidate> = tables.iter().map(candidate).collect();
    let chosen = choose(
        &candidates,
        memory_bytes.saturating_sub(tops + others_bytes),
    );
    for ((_, table), is_resident) in tables.iter().zip(chosen) {
        table.set_resident(is_resident);
    }
}

/// What a table takes, or will when it is loaded.
fn bytes_of(table: &Table) -> u64 {
    let partitions = match table.is_resident() {
        true => table.loaded_bytes(),
        false => 0,
    };
    table.top_bytes() + partitions
}

/// Loads all that is chosen of a store that opens. An error: a table is damaged, or cannot be read.
pub(super) async fn load_first(levels: &Levels, memory_bytes: u64) -> Result<()> {
    choose_among(levels, memory_bytes, 0);
    let mut taken: u64 = levels.iter().map(|table| table.top_bytes()).sum();
    // The youngest first: an estimate that was too low leaves no room for others.
    for table in levels.iter().rev().filter(|table| table.is_resident()) {
        table.load().await?;
        match taken + table.loaded_bytes() {
            with if with <= memory_bytes => taken = with,
            _ => table.set_resident(false),
        }
    }
    Ok(())
}

/// What is under way with the choice.
#[derive(Default)]
pub(super) struct Residence {
    /// Something may be chosen and not loaded.
    is_due: Cell<bool>,
    /// Tables that are loaded, and will be live.
    coming: RefCell<Vec<Rc<Table>>>,
}

impl Store {
    /// Chooses which tables are in memory, and gives the caches what memtables, filters and indexes
    /// leave of this core's memory.
    pub(super) fn share_memory(&self) {
        let taken = {
            let state = self.state.borrow();
            let coming = self.coming_bytes();
            choose_among(&state.tables, self.options.index_bytes_max, coming);
            let tables: u64 = state.tables.iter().map(|table| bytes_of(table)).sum();
            tables + coming
        };
        let fixed = MEMTABLES_MAX * self.options.memtable_bytes;
        let all = self.options.memory_bytes;
        let left = all.saturating_sub(fixed + taken);
        self.caches.set_budget(left.max(all / CACHES_SHARE_MIN));
        self.residence.is_due.set(true);
        self.changed.wake_all();
    }

    /// What tables take that are not live yet.
    fn coming_bytes(&self) -> u64 {
        let coming = self.residence.coming.borrow();
        if coming.is_empty() {
            return 0;
        }
        let state = self.state.borrow();
        let is_live = |id: TableId| state.tables.iter().any(|table| table.info().id == id);
        let coming = coming.iter().filter(|table| !is_live(table.info().id));
        coming.map(|table| bytes_of(table)).sum()
    }

    /// Loads `table`, which is to be live soon, if there is room for it now: then no lookup has to
    /// read anything of it. [`Store::has_come`] must follow.
    pub(super) async fn load_coming(&self, table: &Rc<Table>) -> Result<()> {
        let taken: u64 = {
            let state = self.state.borrow();
            state.tables.iter().map(|table| bytes_of(table)).sum()
        };
        let bytes = table.top_bytes() + table.loaded_bytes();
        let has_room = taken + self.coming_bytes() + bytes <= self.options.index_bytes_max;
        table.set_resident(has_room);
        self.residence.coming.borrow_mut().push(Rc::clone(table));
        self.share_memory();
        table.load().await
    }

    /// Tables that were coming are live now, or never will be.
    pub(super) fn has_come(&self, tables: &[Rc<Table>]) {
        let mut coming = self.residence.coming.borrow_mut();
        coming.retain(|other| !tables.iter().any(|table| Rc::ptr_eq(table, other)));
    }

    /// Loads what is chosen and not loaded, until the store stops.
    pub(super) async fn load_tables(self: Rc<Self>) {
        loop {
            let tables = self.changed.wait_for(|| self.next_loads()).await;
            let Some(tables) = tables else { return };
            for table in tables {
                if self.state.borrow().stopping {
                    return;
                }
                if let Err(error) = table.load().await {
                    // Whoever needs of it what cannot be read will say so, too.
                    log::warn!("a table's index is read by need: {error}");
                }
                rt::yield_if_needed().await;
            }
            // What was loaded is known by its true size now.
            if self.state.borrow().tables.memory_bytes() > self.options.index_bytes_max {
                self.share_memory();
            }
        }
    }

    /// What is to be loaded, the youngest first; `Some(None)`: the store stops.
    fn next_loads(&self) -> Option<Option<Vec<Rc<Table>>>> {
        let state = self.state.borrow();
        if state.stopping {
            return Some(None);
        }
        if !self.residence.is_due.replace(false) {
            return None;
        }
        let is_missing = |table: &&Rc<Table>| table.is_resident() && !table.is_loaded();
        let missing: Vec<_> = state
            .tables
            .iter()
            .rev()
            .filter(is_missing)
            .cloned()
            .collect();
        (!missing.is_empty()).then_some(Some(missing))
    }
}

#[cfg(test)]
mod tests;
