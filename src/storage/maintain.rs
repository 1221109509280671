//! What a store does in the background: flush memtables, merge tables, keep the manifest.
//!
//! Every change of the set of live tables is an [`Edit`], installed by writing a new manifest; one at
//! a time. The state in memory changes only after the manifest is durable, and then at once. A clear
//! is the exception: it takes the tables out of memory first, and the manifest follows.

use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::compaction::{self, Job, Plan, Rules};
use super::manifest::Manifest;
use super::merge::{Bound, Item};
use super::record::{KeyRef, Meta, Record};
use super::sstable::{Table, TableId, TableInfo, TableWriter};
use super::wal::Admission;
use super::{Layer, Store};
use crate::error::{Error, Result};
use crate::rt::{self, Bug};
use crate::types::{Lsn, Version};

/// After a refused write the disk is asked again so often.
const RETRY: Duration = Duration::from_millis(500);
/// What has expired in tables is looked for at least so often.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);
/// So long a flush waits for other cores to note transactions. If one of them cannot, the table is
/// installed without, and the log keeps its part.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// Records copied out of a memtable at a time.
const CHUNK_RECORDS: usize = 64;

/// A change of the set of live tables.
pub(super) struct Edit {
    /// These tables go. They are neighbours.
    remove: Vec<TableId>,
    /// These come, in their place, or at the newest end.
    add: Vec<Rc<Table>>,
    /// This memtable is in `add`.
    flushed: Option<Layer>,
}

/// What the flusher is to do.
enum Chore {
    Flush(Layer),
    /// Write the manifest after a clear.
    Manifest,
    Stop,
}

impl Store {
    /// Flushes frozen memtables, one after the other, until the store stops.
    pub(super) async fn flush_memtables(self: Rc<Self>) {
        loop {
            let chore = self.changed.wait_for(|| self.next_chore()).await;
            let done = match &chore {
                Chore::Flush(layer) => self.flush(layer).await,
                Chore::Manifest => self.install(Edit::nothing()).await,
                Chore::Stop => break,
            };
            let stopping = self.state.borrow().stopping;
            match done {
                Ok(()) => self.state.borrow_mut().flush_refused = None,
                Err(error) if stopping => {
                    let kept = match self.wal {
                        Some(_) => "its records are in the log",
                        None => "there is no log: its records are lost",
                    };
                    log::warn!("a memtable cannot be flushed at the stop ({error}); {kept}");
                    break;
                }
                Err(error) => {
                    log::warn!("a memtable cannot be flushed, trying again: {error}");
                    let refusal = match error.is_disk_full() {
                        true => Admission::DiskFull,
                        false => Admission::DiskFails,
                    };
                    self.state.borrow_mut().flush_refused = Some(refusal);
                    self.changed.wake_all();
                    rt::sleep(RETRY).await;
                }
            }
            self.changed.wake_all();
        }
        self.state.borrow_mut().flusher_ended = true;
        self.changed.wake_all();
    }

    fn next_chore(&self) -> Option<Chore> {
        let failed = self.has_failed();
        let state = self.state.borrow();
        if failed {
            // What the log may have lost must not become durable by way of a table.
            return state.stopping.then_some(Chore::Stop);
        }
        if let Some(layer) = state.frozen.front() {
            return Some(Chore::Flush(layer.clone()));
        }
        if state.cleared > state.manifest.cleared {
            return Some(Chore::Manifest);
        }
        state.stopping.then_some(Chore::Stop)
    }

    async fn flush(&self, layer: &Layer) -> Result<()> {
        let id = self.take_table_id();
        let info = self.write_table(layer, id).await?;
        let flushed = Some(layer.clone());
        let settled = self.wait_settled(layer);
        future::or(settled, rt::sleep(SETTLE_PATIENCE)).await;
        let installed = self
            .install_written(Vec::new(), info.as_slice(), flushed)
            .await;
        let mut state = self.state.borrow_mut();
        state.stats.flushes += u64::from(installed.is_ok());
        state.stats.table_bytes_written += info.map_or(0, |info| info.bytes);
        installed
    }

    /// Makes tables that were written and synced part of the store; they go if that fails.
    async fn install_written(
        &self,
        remove: Vec<TableId>,
        infos: &[TableInfo],
        flushed: Option<Layer>,
    ) -> Result<()> {
        let installed = match self.open_written(infos).await {
            Ok(add) => {
                self.install(Edit {
                    remove,
                    add,
                    flushed,
                })
                .await
            }
            Err(error) => Err(error),
        };
        if installed.is_err() && !self.state.borrow().install_failed {
            for info in infos {
                // The next attempt writes tables of its own; the next start removes what stays.
                let _ = rt::remove_file(&info.path(&self.dir)).await;
            }
        }
        installed
    }

    async fn open_written(&self, infos: &[TableInfo]) -> Result<Vec<Rc<Table>>> {
        if !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        let mut tables = Vec::with_capacity(infos.len());
        for info in infos {
            tables.push(Rc::new(Table::open(&self.dir, info).await?));
        }
        Ok(tables)
    }

    fn take_table_id(&self) -> TableId {
        self.state.borrow_mut().manifest.take_id()
    }

    /// Writes what is worth keeping of a memtable; `None` if nothing is.
    async fn write_table(&self, layer: &Layer, id: TableId) -> Result<Option<TableInfo>> {
        let mut writer = TableWriter::create(&self.dir, id, id).await?;
        let mut records = 0;
        let mut last: Option<Item> = None;
        loop {
            let chunk: Vec<Item> = {
                let memtable = layer.memtable.borrow();
                let bound = last.as_ref().map_or(Bound::START, Item::after);
                let entries = memtable.iter_from(bound).take(CHUNK_RECORDS);
                let item = |entry: &super::memtable::Entry| Item {
                    position: entry.position,
                    record: entry.record.clone(),
                };
                entries.map(item).collect()
            };
            let Some(end) = chunk.last() else { break };
            last = Some(end.clone());
            for item in chunk {
                let Some(record) = self.worth_keeping(&item) else {
                    continue;
                };
                if let Err(error) = writer.add(&record, item.position).await {
                    writer.abandon().await;
                    return Err(error);
                }
                records += 1;
            }
            rt::yield_if_needed().await;
        }
        if records == 0 {
            writer.abandon().await;
            return Ok(None);
        }
        writer.finish().await.map(Some)
    }

    /// A record as the table gets it: what is dead goes, unless it hides something older.
    fn worth_keeping(&self, item: &Item) -> Option<Record> {
        let meta = item.record.meta();
        let expired = !meta.tombstone && !item.record.view().is_live(rt::wall_ms());
        if !meta.tombstone && !expired {
            return Some(item.record.clone());
        }
        let key = KeyRef {
            position: item.position,
            ..KeyRef::of(item.record.key())
        };
        let hides = self
            .state
            .borrow()
            .tables
            .iter()
            .any(|table| table.may_contain(&key));
        if !hides {
            self.forget(meta.version);
            return None;
        }
        let tombstone = Meta {
            tombstone: true,
            expiry: 0,
            ..meta
        };
        Some(Record::new(tombstone, item.record.key(), b""))
    }

    /// Waits until the other cores know of the transactions in `layer`, or it is no longer needed.
    async fn wait_settled(&self, layer: &Layer) {
        self.changed
            .wait_for(|| {
                let state = self.state.borrow();
                let open = |transaction| {
                    state
                        .held
                        .get(transaction)
                        .is_some_and(|held| !held.settled)
                };
                let settled = !layer.transactions.borrow().iter().any(open);
                (settled || state.stopping).then_some(())
            })
            .await;
    }

    /// Makes `edit` durable, then true.
    pub(super) async fn install(&self, edit: Edit) -> Result<()> {
        self.changed
            .wait_for(|| (!self.installing.replace(true)).then_some(()))
            .await;
        let installed = self.install_alone(edit).await;
        self.installing.set(false);
        self.changed.wake_all();
        installed
    }

    /// Waits until the log has on disk what the manifest is about to say. Else a table could hold
    /// what comes after something that a crash takes from the log, and a clear could come true
    /// without what was written together with it.
    async fn wait_logged(&self, flushed: Option<&Layer>) -> Result<()> {
        if let Some(layer) = flushed {
            self.wait_durable(layer.last).await?;
        }
        loop {
            let cleared_at = self.lsn_cleared();
            self.wait_durable(cleared_at).await?;
            if cleared_at == self.lsn_cleared() {
                return Ok(());
            }
        }
    }

    async fn install_alone(&self, edit: Edit) -> Result<()> {
        self.wait_logged(edit.flushed.as_ref()).await?;
        let mut manifest = self.state.borrow().manifest.clone();
        // It may have died while it was being made.
        let flushed = edit.flushed.as_ref().filter(|layer| self.is_oldest(layer));
        let merged = edit.flushed.is_none()
            && manifest.has_all(&edit.remove)
            && self.state.borrow().has_all(&edit.remove);
        let adds = flushed.is_some() || (merged && !edit.remove.is_empty());
        let infos: Vec<TableInfo> = edit.add.iter().map(|table| table.info().clone()).collect();
        if merged && !edit.remove.is_empty() {
            manifest.replace(&edit.remove, infos.clone());
        } else if flushed.is_some() {
            infos.iter().for_each(|info| manifest.push(info.clone()));
        }
        let cleared = self.state.borrow().cleared;
        manifest.cleared = cleared;
        manifest.version_max = manifest.version_max.max(cleared);
        let dead = manifest.take_cleared();
        manifest.floor = self.floor_after(flushed);
        match manifest.store(&self.dir).await {
            Ok(()) => {}
            Err(Error::Uncertain) => {
                self.state.borrow_mut().install_failed = true;
                return Err(Error::Uncertain);
            }
            Err(error) => return Err(error),
        }
        let floor = manifest.floor;
        {
            let mut state = self.state.borrow_mut();
            manifest.next_id = manifest.next_id.max(state.manifest.next_id);
            state.manifest = manifest;
            // A clear may have come meanwhile; then none of the tables lives.
            if state.cleared == cleared && adds {
                state.take_in(&edit);
            }
            if let Some(layer) = &edit.flushed {
                state
                    .frozen
                    .retain(|other| !Rc::ptr_eq(&other.memtable, &layer.memtable));
                // What the others may still ask about stays in the log, and is settled another time.
                for transaction in layer.transactions.take() {
                    match state.held.get(&transaction) {
                        Some(held) if held.settled => drop(state.held.remove(&transaction)),
                        Some(_) => state.active.transactions.borrow_mut().push(transaction),
                        None => {}
                    }
                }
            }
        }
        if let Some(wal) = &self.wal {
            wal.release(floor);
        }
        let unused = if adds { Vec::new() } else { infos };
        let gone = edit
            .remove
            .iter()
            .filter(|_| adds)
            .map(|id| self.dir.join(id.file_name()));
        let dead = dead.iter().chain(&unused).map(|info| info.path(&self.dir));
        for path in gone.chain(dead).collect::<Vec<_>>() {
            if let Err(error) = rt::remove_file(&path).await
                && !error.is_not_found()
            {
                log::warn!("{error}; the next start removes it");
            }
        }
        Ok(())
    }

    fn is_oldest(&self, layer: &Layer) -> bool {
        let state = self.state.borrow();
        state
            .frozen
            .front()
            .is_some_and(|other| Rc::ptr_eq(&other.memtable, &layer.memtable))
    }

    /// Where replay must begin once `flushed` is in a table.
    fn floor_after(&self, flushed: Option<&Layer>) -> super::wal::replay::Floor {
        let state = self.state.borrow();
        let Some(wal) = &self.wal else {
            return match state.leftover.is_empty() {
                true => state.floor_without_log,
                false => state.manifest.floor,
            };
        };
        // What was written together with the clear bears its number, and lives.
        let mut safe = Lsn(state.cleared_at.0.saturating_sub(1));
        if let Some(layer) = flushed {
            safe = safe.max(layer.last);
        } else if let Some(before) = state.flushed {
            safe = safe.max(before);
        }
        let gone = flushed
            .map(|layer| layer.transactions.borrow().clone())
            .unwrap_or_default();
        let held = state
            .held
            .iter()
            .filter(|(transaction, held)| !(held.settled && gone.contains(transaction)));
        let first_held = held.map(|(_, held)| held.lsn).min();
        wal.floor(first_held.map_or(safe, |lsn| safe.min(Lsn(lsn.0 - 1))))
    }

    /// Merges tables, as [`compaction::plan`] says, until the store stops.
    pub(super) async fn merge_tables(self: Rc<Self>) {
        while !self.state.borrow().stopping {
            let infos: Vec<TableInfo> = self
                .state
                .borrow()
                .tables
                .iter()
                .map(|table| table.info().clone())
                .collect();
            let pause = match compaction::plan(&infos, rt::wall_ms()) {
                Plan::Idle => EXPIRY_CHECK,
                Plan::Merge {
                    inputs,
                    drop_tombstones,
                } => {
                    let Err(error) = self.merge(&infos[inputs], drop_tombstones).await else {
                        rt::yield_if_needed().await;
                        continue;
                    };
                    log::warn!("tables cannot be merged, trying again: {error}");
                    RETRY
                }
            };
            let changed = self.changed.wait_for(|| {
                let state = self.state.borrow();
                let now = state.tables.iter().map(|table| table.info().id);
                let same = now.eq(infos.iter().map(|info| info.id));
                (state.stopping || !same).then_some(())
            });
            future::or(changed, rt::sleep(pause)).await;
        }
    }

    async fn merge(&self, inputs: &[TableInfo], drop_tombstones: bool) -> Result<()> {
        let ids: Vec<TableId> = inputs.iter().map(|info| info.id).collect();
        let job = {
            let state = self.state.borrow();
            let wanted = |table: &&Rc<Table>| ids.contains(&table.info().id);
            Job {
                dir: self.dir.clone(),
                inputs: state.tables.iter().filter(wanted).cloned().collect(),
                rules: Rules {
                    drop_tombstones,
                    cleared: state.cleared,
                    now: rt::wall_ms(),
                },
                table_bytes_max: self.options.table_bytes_max,
            }
        };
        if job.inputs.len() < ids.len() {
            return Ok(()); // a clear was faster
        }
        if drop_tombstones {
            let newest = inputs.iter().map(|info| info.version_max).max();
            self.forget(newest.unwrap_or(Version::ZERO));
        }
        let infos = compaction::run(&job, || self.take_table_id()).await?;
        self.install_written(ids, &infos, None).await?;
        let mut state = self.state.borrow_mut();
        state.stats.compactions += 1;
        state.stats.table_bytes_written += infos.iter().map(|info| info.bytes).sum::<u64>();
        Ok(())
    }

    /// Flushes everything and ends the background work. Nothing may be written any more.
    /// An error: something that was written is not on disk.
    pub async fn stop(&self) -> Result<()> {
        if !self.state.borrow().active.memtable.borrow().is_empty() && !self.has_failed() {
            self.freeze();
        }
        self.state.borrow_mut().stopping = true;
        self.changed.wake_all();
        self.changed
            .wait_for(|| self.state.borrow().flusher_ended.then_some(()))
            .await;
        let flushed = self.state.borrow().frozen.is_empty();
        match &self.wal {
            Some(wal) => wal.stop().await,
            None if flushed => Ok(()),
            None => Err(Error::DiskFull),
        }
    }
}

impl Edit {
    pub(super) fn nothing() -> Edit {
        Edit {
            remove: Vec::new(),
            add: Vec::new(),
            flushed: None,
        }
    }
}

impl super::State {
    /// True if readers see all of these tables: a clear hides them before the manifest follows.
    fn has_all(&self, ids: &[TableId]) -> bool {
        ids.iter()
            .all(|id| self.tables.iter().any(|table| table.info().id == *id))
    }

    /// Shows the tables of an installed edit to readers.
    fn take_in(&mut self, edit: &Edit) {
        let at = |id: &TableId| self.tables.iter().position(|table| table.info().id == *id);
        let start = edit
            .remove
            .first()
            .and_then(at)
            .unwrap_or(self.tables.len());
        let end = start + edit.remove.len();
        self.tables.splice(start..end, edit.add.iter().cloned());
        if let Some(layer) = &edit.flushed {
            self.flushed = Some(layer.last);
        }
    }
}

impl Manifest {
    /// True if all of these tables are live.
    fn has_all(&self, ids: &[TableId]) -> bool {
        ids.iter()
            .all(|id| self.tables.iter().any(|table| table.id == *id))
    }
}
