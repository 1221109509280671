//! Taking expired records out of memory before their memtable is flushed.
//!
//! A record may go only where nothing older of its key could then be seen. Whether tables have
//! something may have to be read: what is to go is chosen before, and looked at once more after.

use super::Store;
use super::levels::Filters;
use super::merge::Bound;
use super::record::{KeyRef, Record};
use crate::types::{KeyHash, Position, UnixMillis, Version};

impl Store {
    /// Says whether there are replicas elsewhere that may not have heard of what was deleted or has
    /// expired here. While there are, tombstones are not dropped, though they hide nothing here: a
    /// replica that comes back with the older value would bring it back.
    pub fn keep_deleted(&self, keeps: bool) {
        self.keeps_deleted.set(keeps);
    }

    /// Takes expired records out of the active memtable where nothing older could then be seen:
    /// looks at up to `entries_max` from `from` on, and says where to go on.
    pub async fn sweep_expired(
        &self,
        from: Position,
        now: UnixMillis,
        entries_max: usize,
    ) -> Position {
        if self.keeps_deleted.get() {
            return Position(0);
        }
        let (mut expired, next) = self.find_expired(from, now, entries_max);
        let (mut filters, epoch) = {
            let state = self.state.borrow();
            (Filters::of(state.tables.clone()), state.epoch)
        };
        let mut alone = Vec::new();
        for record in expired.drain(..) {
            if !filters.may_contain(&KeyRef::of(record.key())).await {
                alone.push(record);
            }
        }
        // What was flushed meanwhile nobody has asked.
        if epoch == self.state.borrow().epoch {
            self.remove_expired(&alone);
        }
        next
    }

    fn find_expired(
        &self,
        from: Position,
        now: UnixMillis,
        entries_max: usize,
    ) -> (Vec<Record>, Position) {
        let state = self.state.borrow();
        let memtable = state.active.memtable.borrow();
        let mut seen = 0;
        let mut next = Position(0);
        let mut expired = Vec::new();
        for entry in memtable.iter_from(Bound::From(from)) {
            seen += 1;
            if seen > entries_max && entry.position > next {
                next = entry.position;
                break;
            }
            next = entry.position;
            let meta = entry.record.meta();
            if !meta.tombstone
                && !entry.record.view().is_live(now)
                && self.is_acknowledged(entry.lsn)
            {
                expired.push(entry.record.clone());
            }
        }
        let came_to_end = seen <= entries_max;
        (expired, if came_to_end { Position(0) } else { next })
    }

    /// Removes those of `records`, which no table has a record of, that are still what the active
    /// memtable has, and hide nothing in the others.
    fn remove_expired(&self, records: &[Record]) {
        let state = self.state.borrow();
        let mut memtable = state.active.memtable.borrow_mut();
        let mut removed = Vec::new();
        let mut forgotten = Version::ZERO;
        for record in records {
            let key = KeyRef::of(record.key());
            // As a pointer it is another record, of the same version.
            let held = memtable.get(&key).map(|entry| entry.record.clone());
            let held = held.filter(|held| held.meta() == record.meta());
            let is_below = |layer: &super::Layer| layer.memtable.borrow().get(&key).is_some();
            if let Some(held) = held
                && !state.frozen.iter().any(is_below)
            {
                forgotten = forgotten.max(held.meta().version);
                memtable.remove(&key);
                removed.push(held);
            }
        }
        drop(memtable);
        drop(state);
        for record in &removed {
            self.caches.rows.forget(KeyHash::of(record.key()));
            self.note_garbage(record);
        }
        self.forget(forgotten);
        self.state.borrow_mut().stats.expired += removed.len() as u64;
    }
}
