//! What a store does in the background: flush memtables, keep the manifest. (Merges: compact.rs.)
//!
//! Every change of the set of live tables is an [`Edit`], installed by writing a new manifest; one
//! at a time. The state in memory changes only after the manifest is durable, and then at once. A
//! clear is the exception: it takes the tables out of memory first, and the manifest follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::levels::{Filters, Levels};
use super::manifest::Manifest;
use super::merge::{Bound, Item};
use super::reckon::{self, Reckoner};
use super::record::{KeyRef, Meta, Record};
use super::sstable::{Table, TableId, TableInfo, TableWriter};
use super::vlog::{Garbage, SegmentKey};
use super::wal::format::Stream;
use super::wal::{Admission, Segment};
use super::{Layer, Store};
use crate::error::{Error, Result};
use crate::rt::{self, Bug};
use crate::types::Lsn;

/// After a refused write the disk is asked again so often.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// So long a flush waits for other cores to note transactions. If one of them cannot, the table is
/// installed without, and the log keeps its part.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// So many keys of a memtable tell whether most of them are in tables.
const SAMPLE_RECORDS: usize = 256;
/// Records copied out of a memtable at a time.
const CHUNK_RECORDS: usize = 64;

/// A change of the set of live tables.
pub(super) struct Edit {
    /// These tables go, or come again on another level.
    remove: Vec<TableId>,
    /// These come, as `compaction::apply` says.
    add: Vec<Rc<Table>>,
    /// This memtable is in `add`.
    flushed: Option<Layer>,
    /// Values that are given up with it.
    garbage: Garbage,
    /// Segments of the value log that go: nothing that will be live points there.
    gone: Vec<SegmentKey>,
}

/// A memtable as a table, synced.
struct Written {
    /// None: nothing in it was worth keeping.
    info: Option<TableInfo>,
    /// Values that it gave up.
    garbage: Garbage,
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
                    self.note_flush_refused(&error);
                    break;
                }
                Err(error) => {
                    log::warn!("a memtable cannot be flushed, trying again: {error}");
                    self.note_flush_refused(&error);
                    self.changed.wake_all();
                    rt::sleep(RETRY).await;
                }
            }
            self.changed.wake_all();
        }
        self.state.borrow_mut().flusher_ended = true;
        self.changed.wake_all();
    }

    fn note_flush_refused(&self, error: &Error) {
        self.state.borrow_mut().flush_refused = Some(Admission::after(error));
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
        // Nobody but the table to come knows of the values that move now: they are not to be taken
        // for garbage.
        let from = self.moved.segment_now();
        self.state.borrow_mut().moving_from = Some(from);
        let flushed = self.flush_layer(layer).await;
        self.state.borrow_mut().moving_from = None;
        flushed
    }

    async fn flush_layer(&self, layer: &Layer) -> Result<()> {
        // From here on all its large values that were written alone are pointers.
        self.values.wait_written(layer.last).await?;
        self.take_in_placed();
        let id = self.take_table_id();
        let mut copies = Garbage::default();
        let flushed = self.write_and_install(layer, id, &mut copies).await;
        let mut state = self.state.borrow_mut();
        if !state.has_all(&[id]) {
            // It failed, or a clear was faster: nothing points to what has moved.
            state.values.note_all(&copies);
        }
        let info = flushed?;
        state.stats.flushes += 1;
        state.stats.table_bytes_written += info.map_or(0, |info| info.bytes);
        Ok(())
    }

    /// Flushes `layer`; what moves to the value log meanwhile is added to `copies`.
    async fn write_and_install(
        &self,
        layer: &Layer,
        id: TableId,
        copies: &mut Garbage,
    ) -> Result<Option<TableInfo>> {
        let Written { info, garbage } = self.write_table(layer, id, copies).await?;
        let settled = self.wait_settled(layer);
        future::or(settled, rt::sleep(SETTLE_PATIENCE)).await;
        let edit = Edit {
            flushed: Some(layer.clone()),
            garbage,
            ..Edit::nothing()
        };
        self.install_written(info.as_slice(), edit).await?;
        Ok(info)
    }

    /// Makes tables that were written and synced part of the store; they go if that fails.
    pub(super) async fn install_written(&self, infos: &[TableInfo], edit: Edit) -> Result<()> {
        let mut tables = Vec::with_capacity(infos.len());
        let opened = self.open_written(infos, &mut tables).await;
        let add = tables.clone();
        let installed = match opened {
            Ok(()) => self.install(Edit { add, ..edit }).await,
            Err(error) => Err(error),
        };
        self.has_come(&tables);
        if installed.is_err() && !self.state.borrow().install_failed {
            for info in infos {
                // The next attempt writes tables of its own; the next start removes what stays.
                let _ = rt::remove_file(&info.path(&self.dir)).await;
            }
        }
        installed
    }

    async fn open_written(&self, infos: &[TableInfo], tables: &mut Vec<Rc<Table>>) -> Result<()> {
        if !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        for info in infos {
            let table = Rc::new(Table::open(&self.dir, info).await?);
            tables.push(Rc::clone(&table));
            self.load_coming(&table).await?;
        }
        Ok(())
    }

    pub(super) fn take_table_id(&self) -> TableId {
        self.state.borrow_mut().manifest.take_id()
    }

    /// Writes what is worth keeping of a memtable.
    async fn write_table(
        &self,
        layer: &Layer,
        id: TableId,
        copies: &mut Garbage,
    ) -> Result<Written> {
        let writer = TableWriter::create(&self.dir, id, id, self.options.compression).await?;
        let mut writer = writer.caching(&self.caches);
        let mut garbage = Garbage::default();
        let mut reckoner = self.reckoner(layer);
        // Nobody else flushes: what will be below the table is among what is there now.
        let mut below = Filters::of(self.state.borrow().tables.clone());
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
            let mut kept = Vec::with_capacity(chunk.len());
            for item in &chunk {
                kept.extend(self.worth_keeping(item, &mut below, &mut garbage).await);
            }
            records += kept.len();
            let kept = match self.with_pointers(kept, copies).await {
                Ok(kept) => kept,
                Err(error) => {
                    writer.abandon().await;
                    return Err(error);
                }
            };
            for item in kept {
                let record = match &mut reckoner {
                    Some(reckoner) => reckoner.count(&item, &mut garbage).await,
                    None => item.record,
                };
                // After an error its file is gone.
                writer.add(&record, item.position).await?;
            }
            rt::yield_if_needed().await;
        }
        if records == 0 {
            writer.abandon().await;
            return Ok(Written {
                info: None,
                garbage,
            });
        }
        let info = Some(writer.finish().await?);
        Ok(Written { info, garbage })
    }

    /// What counts the values that a flush of `layer` hides, if it may hide any.
    fn reckoner(&self, layer: &Layer) -> Option<Reckoner> {
        let state = self.state.borrow();
        let (mut bytes, mut records) = (0, 0);
        for table in state.tables.iter() {
            bytes += table.info().bytes;
            records += table.info().records;
        }
        let sizes = state.values.sizes();
        let hiding = layer.hiding.get();
        let may_walk = reckon::is_worth_a_walk(hiding, bytes, records, sizes.live);
        let may_hide = hiding > 0 && records > 0 && sizes.live > 0;
        may_hide.then(|| {
            let memtable = layer.memtable.borrow();
            let entries = memtable.iter_from(Bound::START).take(SAMPLE_RECORDS);
            let keys = entries.map(|entry| KeyRef::of(entry.record.key()));
            let count = memtable.len() as u64;
            Reckoner::new(&state.tables, &self.caches, count, keys, may_walk)
        })
    }

    /// Records as a table gets them: large values that are still with them move to the value log.
    async fn with_pointers(&self, mut items: Vec<Item>, copies: &mut Garbage) -> Result<Vec<Item>> {
        let is_large = |item: &&mut Item| {
            item.record.pointer().is_none()
                && item.record.view().value().len() >= self.options.value_bytes_min
        };
        let large: Vec<&mut Item> = items.iter_mut().filter(is_large).collect();
        let mut stored = Vec::with_capacity(large.len());
        for item in &large {
            let packed = self.packed(&item.record);
            let record = packed.unwrap_or_else(|| item.record.clone());
            let position = item.position;
            stored.push(Item { position, record });
            rt::yield_if_needed().await;
        }
        let pointers = self.move_records(&stored).await?;
        for (item, pointer) in large.into_iter().zip(pointers) {
            pointer
                .pointer()
                .into_iter()
                .for_each(|copy| copies.add(copy));
            item.record = pointer;
        }
        Ok(items)
    }

    /// A record as the table gets it: what is dead goes, unless it hides something older.
    async fn worth_keeping(
        &self,
        item: &Item,
        below: &mut Filters,
        garbage: &mut Garbage,
    ) -> Option<Item> {
        let meta = item.record.meta();
        let expired = !meta.tombstone && !item.record.view().is_live(rt::wall_ms());
        if !meta.tombstone && !expired {
            return Some(item.clone());
        }
        if let Some(place) = item.record.pointer() {
            garbage.add(place);
        }
        let key = KeyRef {
            position: item.position,
            ..KeyRef::of(item.record.key())
        };
        if !self.keeps_deleted.get() && !below.may_contain(&key).await {
            self.forget(meta.version);
            return None;
        }
        let tombstone = Meta {
            tombstone: true,
            expiry: 0,
            ..meta
        };
        Some(Item {
            record: Record::new(tombstone, item.record.key(), b""),
            position: item.position,
        })
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

    /// Waits until the values that tables, old or to come, point to are on disk: with "none",
    /// nobody else does.
    async fn wait_values(&self, flushed: Option<&Layer>) -> Result<()> {
        if let Some(layer) = flushed {
            self.values.wait_durable(layer.last).await?;
        }
        self.moved.wait_durable(self.moved_last.get()).await
    }

    async fn install_alone(&self, edit: Edit) -> Result<()> {
        if !rt::planted(Bug::TableBeforeValues) {
            self.wait_values(edit.flushed.as_ref()).await?;
            // Last: a clear that comes while something else is awaited would be taken for logged.
            self.wait_logged(edit.flushed.as_ref()).await?;
        }
        if rt::planted(Bug::SegmentBeforeManifest) {
            self.remove_segments(&edit.gone).await;
        }
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
        self.set_floors(&mut manifest, flushed);
        let durable = |stream| match stream {
            Stream::Moved => self.moved.durable(),
            _ => self.values.durable(),
        };
        manifest.segments = {
            let values = &mut self.state.borrow_mut().values;
            values.list(&edit.gone, &edit.garbage, durable)
        };
        match manifest.store(&self.dir).await {
            Ok(()) => {}
            Err(Error::Uncertain) => {
                self.state.borrow_mut().install_failed = true;
                return Err(Error::Uncertain);
            }
            Err(error) => return Err(error),
        }
        self.release(&manifest);
        self.take_effect(&edit, manifest, adds);
        let values = |key: &SegmentKey| (*key, self.state.borrow_mut().values.remove(*key));
        let gone_values: Vec<_> = edit.gone.iter().map(values).collect();
        self.share_memory();
        // What was only moved is among both, and stays whether it was or not.
        let is_new = |info: &TableInfo| !edit.remove.contains(&info.id);
        let is_moved = |id: &TableId| infos.iter().any(|info| info.id == *id);
        let unused = infos.iter().filter(|info| !adds && is_new(info));
        let gone = edit.remove.iter().filter(|id| adds && !is_moved(id));
        let gone = gone.map(|id| self.dir.join(id.file_name()));
        let dead = dead.iter().chain(unused).map(|info| info.path(&self.dir));
        for path in gone.chain(dead).collect::<Vec<_>>() {
            self.remove_file(&path).await;
        }
        self.give_back(gone_values).await;
        Ok(())
    }

    /// Segments that the manifest, which is durable, does not list any more: the value log writes
    /// them anew, unless somebody reads them or they have another name; the others are removed.
    async fn give_back(&self, gone: Vec<(SegmentKey, Option<Rc<Segment>>)>) {
        let is_reused = |segment: Rc<Segment>| {
            Rc::try_unwrap(segment).is_ok_and(|segment| self.values.reuse(&segment))
        };
        let left = gone.into_iter().filter_map(|(key, segment)| {
            let is_reused = segment.is_some_and(is_reused);
            (!is_reused).then_some(key)
        });
        self.remove_segments(&left.collect::<Vec<_>>()).await;
    }

    /// What an edit changes in memory, now that `manifest` is durable.
    fn take_effect(&self, edit: &Edit, mut manifest: Manifest, adds: bool) {
        let mut state = self.state.borrow_mut();
        let cleared = manifest.cleared;
        manifest.next_id = manifest.next_id.max(state.manifest.next_id);
        state.manifest = manifest;
        state.epoch += 1;
        state.values.note_all(&edit.garbage);
        state.emptied.retain(|(key, _)| !edit.gone.contains(key));
        // A clear may have come meanwhile; then none of the tables lives.
        if state.cleared == cleared && adds {
            state.take_in(edit);
        }
        let Some(layer) = &edit.flushed else { return };
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

    /// Gives up the segments of the logs that replay does not need any more.
    fn release(&self, manifest: &Manifest) {
        if let Some(wal) = &self.wal {
            wal.release(manifest.floor);
        }
        self.values.release(manifest.values_floor);
        // Nothing is replayed of it: who reads a segment holds it open, and nobody else is to.
        self.moved.release(self.moved.floor(self.moved.durable()));
    }

    async fn remove_segments(&self, gone: &[SegmentKey]) {
        for (stream, id) in gone {
            self.remove_file(&self.dir.join(id.file_name(*stream)))
                .await;
        }
    }

    async fn remove_file(&self, path: &Path) {
        if let Err(error) = rt::remove_file(path).await
            && !error.is_not_found()
        {
            log::warn!("{error}; the next start removes it");
        }
    }

    fn is_oldest(&self, layer: &Layer) -> bool {
        let state = self.state.borrow();
        state
            .frozen
            .front()
            .is_some_and(|other| Rc::ptr_eq(&other.memtable, &layer.memtable))
    }

    /// Says where replay must begin once `flushed` is in a table.
    fn set_floors(&self, manifest: &mut Manifest, flushed: Option<&Layer>) {
        let state = self.state.borrow();
        let safe = state.safe_after(flushed);
        assert!(safe >= manifest.flushed, "what is in tables stays there");
        manifest.moved_floor = self.moved.floor(Lsn(u64::MAX));
        match &self.wal {
            Some(wal) => manifest.floor = wal.floor(safe),
            None if state.leftover.is_empty() => {
                manifest.floor = state.floor_without_log;
                manifest.logless = true;
            }
            // The log of an earlier life is still needed, and all that goes with it.
            None => return,
        }
        manifest.flushed = safe;
        manifest.values_floor = self.values.floor(safe);
        manifest.voids.retain(|void| void.1 > safe);
    }

    /// Like [`Store::stop`], and fails unless tables have all that was written: the logs hold
    /// nothing that counts then. No file changes any more when this returns.
    pub(super) async fn stop_in_tables(&self) -> Result<()> {
        self.stop().await?;
        for log in self.wal.iter().chain([&self.values, &self.moved]) {
            log.wait_ended().await;
        }
        let state = self.state.borrow();
        let is_whole = state.active.memtable.borrow().is_empty() && state.frozen.is_empty();
        let is_durable = state.manifest.cleared == state.cleared && !self.has_failed();
        match state.flush_refused {
            _ if is_whole && is_durable => Ok(()),
            refused => Err(refused
                .and_then(Admission::refusal)
                .unwrap_or(Error::LogFailed)),
        }
    }

    /// Flushes everything and ends the background work. Nothing may be written any more.
    /// An error: something that was written is not on disk.
    pub async fn stop(&self) -> Result<()> {
        self.state.borrow_mut().stopping = true;
        if !self.state.borrow().active.memtable.borrow().is_empty() && !self.has_failed() {
            self.freeze();
        }
        self.changed.wake_all();
        self.changed
            .wait_for(|| {
                // A merge under way is finished: no file changes when this store is gone.
                let state = self.state.borrow();
                (state.flusher_ended && state.workers == 0).then_some(())
            })
            .await;
        let flushed = self.state.borrow().frozen.is_empty();
        let mut stopped = match (&self.wal, flushed) {
            (Some(wal), _) => wal.stop().await,
            (None, true) => Ok(()),
            (None, false) => Err(Error::DiskFull),
        };
        for log in [&self.values, &self.moved] {
            stopped = stopped.and(log.stop().await);
        }
        stopped
    }
}

impl Edit {
    /// These segments of the value log go.
    pub(super) fn without(gone: Vec<SegmentKey>) -> Edit {
        Edit {
            gone,
            ..Edit::nothing()
        }
    }

    pub(super) fn nothing() -> Edit {
        Edit::replace(Vec::new(), Vec::new())
    }

    /// What a merge made of `remove` comes in their place; it has given up `garbage`.
    pub(super) fn merged(remove: Vec<TableId>, garbage: Garbage) -> Edit {
        Edit {
            garbage,
            ..Edit::replace(remove, Vec::new())
        }
    }

    /// `add` in the place of `remove`.
    pub(super) fn replace(remove: Vec<TableId>, add: Vec<Rc<Table>>) -> Edit {
        Edit {
            remove,
            add,
            flushed: None,
            garbage: Garbage::default(),
            gone: Vec::new(),
        }
    }
}

impl super::State {
    /// True if readers see all of these tables: a clear hides them before the manifest follows.
    fn has_all(&self, ids: &[TableId]) -> bool {
        let live: BTreeSet<TableId> = self.tables.iter().map(|table| table.info().id).collect();
        ids.iter().all(|id| live.contains(id))
    }

    /// Up to which write all is in tables, or needed no more, once `flushed` is in one.
    fn safe_after(&self, flushed: Option<&Layer>) -> Lsn {
        // What was written together with the clear bears its number, and lives.
        let mut safe = self.flushed.max(Lsn(self.cleared_at.0.saturating_sub(1)));
        if let Some(layer) = flushed {
            safe = safe.max(layer.last);
        }
        let gone = flushed
            .map(|layer| layer.transactions.borrow().clone())
            .unwrap_or_default();
        let held = self
            .held
            .iter()
            .filter(|(transaction, held)| !(held.settled && gone.contains(transaction)))
            // The manifest has let go of what was settled, though a clear may have kept it here.
            .filter(|(_, held)| held.lsn > self.manifest.flushed);
        let first_held = held.map(|(_, held)| held.lsn).min();
        first_held.map_or(safe, |lsn| safe.min(Lsn(lsn.0 - 1)))
    }

    /// Shows the tables of an installed edit to readers, in the order of the manifest.
    fn take_in(&mut self, edit: &Edit) {
        let mut open: BTreeMap<TableId, Rc<Table>> = BTreeMap::new();
        for table in self.tables.iter().chain(&edit.add) {
            open.insert(table.info().id, Rc::clone(table)); // one that was moved comes twice
        }
        let table = |info: &TableInfo| {
            let table = open.remove(&info.id);
            assert!(table.as_ref().is_none_or(|table| table.info() == info));
            table
        };
        self.tables = Levels::new(self.manifest.tables.iter().filter_map(table).collect());
        // Readers may still have them open, and read on by need.
        open.values().for_each(|gone| gone.set_resident(false));
        if let Some(layer) = &edit.flushed {
            self.flushed = layer.last;
        }
    }
}
