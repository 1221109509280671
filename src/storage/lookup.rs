//! Point reads: what memory knows of a key, which tables may have it, where its value lies.
//!
//! A [`Lookup`] pins the tables and the segments of the value log of its moment, so that what it
//! finds stays readable whatever is merged or collected meanwhile. It leaves the whole record,
//! never a pointer, in the row cache, and a pointer from a table in the key cache, unless the key
//! was written to since.

use std::rc::Rc;

use super::cache::{Caches, Ticket};
use super::record::{KeyRef, Record};
use super::scan::Snapshot;
use super::sstable::Table;
use super::vlog::{self, Segments};
use super::{RECOVERED, State, Store};
use crate::error::Result;
use crate::types::{Lsn, Position, Version};

/// A record that was found, and its place in the log: it may not be acknowledged yet.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record: a value, possibly expired, or a tombstone.
    pub record: Record,
    /// Its place in the log.
    pub lsn: Lsn,
}

/// What a reader wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All of the record.
    Value,
    /// Version, expiry and the value's length: what is found may be a pointer, and no value is
    /// read.
    Meta,
    /// What memtables or tables have: the row cache is not asked, and gets nothing.
    Stored,
}

/// What memory knows of a key.
pub enum Peek {
    /// This is its newest record, or it has none.
    Known(Option<Found>),
    /// The disk has to be asked.
    OnDisk(Lookup),
}

/// Where a key's record may be, at the moment of the question.
pub struct Lookup {
    /// What memory has: only the value is missing.
    found: Option<Found>,
    /// Newest first.
    tables: Vec<Rc<Table>>,
    segments: Segments,
    cleared: Version,
    want: Want,
    ticket: Ticket,
    caches: Rc<Caches>,
}

impl Lookup {
    /// Reads the tables in turn, one device read each, until one has it, and then its value.
    pub async fn read(mut self, key: &KeyRef<'_>) -> Result<Option<Found>> {
        let found = match self.found.take() {
            Some(found) => found,
            None => {
                let Some(found) = self.find(key).await? else {
                    return Ok(None);
                };
                if self.want != Want::Stored && found.record.pointer().is_some() {
                    self.caches.rows.fill_pointer(self.ticket, &found.record);
                }
                found
            }
        };
        let is_whole = found.record.pointer().is_none();
        if self.want != Want::Value && !is_whole {
            return Ok(Some(found));
        }
        let record = match is_whole {
            true => found.record,
            false => vlog::read(&self.segments, &found.record).await?,
        };
        if self.want != Want::Stored {
            self.caches.rows.fill(self.ticket, &record);
        }
        Ok(Some(Found { record, ..found }))
    }

    async fn find(&self, key: &KeyRef<'_>) -> Result<Option<Found>> {
        for table in &self.tables {
            if let Some(record) = table.get(key, &self.caches.blocks).await? {
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

impl Store {
    /// What memory knows of `key`: everything if neither a table nor the value log must be asked.
    pub fn peek(&self, key: &KeyRef, want: Want) -> Peek {
        let state = self.state.borrow();
        let lookup = |found: Option<Found>, tables: Vec<Rc<Table>>| {
            Peek::OnDisk(Lookup {
                found,
                tables,
                segments: state.values.segments(),
                cleared: state.cleared,
                want,
                ticket: self.caches.rows.ticket(key.hash),
                caches: Rc::clone(&self.caches),
            })
        };
        if want != Want::Stored {
            self.pace.count(0);
        }
        if let Some(found) = state.in_memory(key) {
            if want != Want::Value || found.record.pointer().is_none() {
                return Peek::Known(Some(found));
            }
            return match self.row(key, &found.record) {
                Some(record) => Peek::Known(Some(Found { record, ..found })),
                None => lookup(Some(found), Vec::new()),
            };
        }
        if state.tables.is_empty() {
            return Peek::Known(None);
        }
        if want != Want::Stored
            && let Some(record) = self.caches.rows.get(key)
        {
            let lsn = RECOVERED;
            return Peek::Known(Some(Found { record, lsn }));
        }
        if want != Want::Stored
            && let Some(record) = self.caches.rows.pointer(key)
            && vlog::has(&state.values.segments(), &record)
        {
            let lsn = RECOVERED;
            let found = Some(Found { record, lsn });
            return match want {
                Want::Value => lookup(found, Vec::new()),
                _ => Peek::Known(found),
            };
        }
        let tables = state.tables.candidates(key);
        match tables.is_empty() {
            true => Peek::Known(None),
            false => lookup(None, tables),
        }
    }

    /// The whole record that `pointing` stands for, if the row cache has it.
    fn row(&self, key: &KeyRef, pointing: &Record) -> Option<Record> {
        let row = self.caches.rows.get(key);
        row.filter(|row| row.meta() == pointing.meta())
    }

    /// Makes the next lookups of keys at `positions` cheaper, if there are several of them.
    pub fn warm(&self, positions: &[Position]) {
        self.state.borrow().active.memtable.borrow().warm(positions);
    }

    /// The newest record of `key` at this moment.
    pub async fn get(&self, key: &KeyRef<'_>, want: Want) -> Result<Option<Found>> {
        match self.peek(key, want) {
            Peek::Known(found) => Ok(found),
            Peek::OnDisk(lookup) => lookup.read(key).await,
        }
    }

    /// The whole of a record that a walk over `snapshot` has shown, which may be a pointer; or, if
    /// that came later than the snapshot, the newest record of its key.
    pub async fn resolve(&self, snapshot: &Snapshot, record: &Record) -> Result<Option<Record>> {
        if record.pointer().is_none() {
            return Ok(Some(record.clone()));
        }
        if vlog::has(&snapshot.segments, record) {
            return vlog::read(&snapshot.segments, record).await.map(Some);
        }
        let found = self.get(&KeyRef::of(record.key()), Want::Value).await?;
        Ok(found.map(|found| found.record))
    }

    /// What is stored at this moment, to be walked in order.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.borrow();
        let frozen = state.frozen.iter().rev();
        let layers = [&state.active].into_iter().chain(frozen);
        Snapshot {
            memtables: layers.map(|layer| Rc::clone(&layer.memtable)).collect(),
            runs: state.tables.runs().to_vec(),
            segments: state.values.segments(),
            cleared: state.cleared,
        }
    }
}

impl State {
    /// The newest record of `key` in the memtables.
    pub(super) fn in_memory(&self, key: &KeyRef) -> Option<Found> {
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
