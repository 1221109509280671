//! The collector of the value log: moves what is alive out of the segment where that pays most, so
//! that its file can go.
//!
//! A segment goes in steps, each of which may be the last before a crash: its live records are
//! copied to `moved` and their new places noted in the memtable, each only if the key's newest
//! record is still the very one that was copied; then, when that memtable is in a table and the
//! copies are synced, a manifest is installed that does not list the segment; then its file is
//! removed. Until that manifest is durable the old places are good, and the copies are only
//! garbage.
//!
//! A record that is packed moves as it is: nothing is unpacked here.
//!
//! The collector looks for what is stored past the row cache, which knows no places.
//!
//! Invariants: only segments that replay does not read are emptied; a segment whose records cannot
//! all be read is never given up; what has expired becomes a tombstone, as in a merge.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::{SegmentKey, bytes_of};
use crate::error::{Error, Result};
use crate::rt::{self, Bug};
use crate::storage::Store;
use crate::storage::lookup::{Found, Want};
use crate::storage::maintain::Edit;
use crate::storage::manifest::SegmentInfo;
use crate::storage::memtable::Inserted;
use crate::storage::merge::Item;
use crate::storage::record::{KeyRef, Meta, Pointer, Record};
use crate::storage::wal::format::{Entry, Stream};
use crate::storage::wal::replay::{Read, SegmentReader};
use crate::types::{KeyHash, Lsn};

/// After a failure the disk is asked again so often.
const RETRY: Duration = Duration::from_millis(500);
/// So many emptied segments wait for a memtable to be flushed before it is flushed for them, at
/// least...
const EMPTIED_MIN: usize = 4;
/// ...and one in so many of all: a flush for few of them writes small tables, which cost many
/// merges.
const EMPTIED_SHARE: usize = 100;
/// The collector rests so many times as long as it has worked...
const REST_RATIO: u32 = 1;
/// ...but no longer than this at a time.
const REST_MAX: Duration = Duration::from_millis(20);
/// Collecting begins when garbage is so close to its bound, in thousandths of the value log...
const EARLY_PERMILLE: u64 = 15;
/// ...and does not rest when it is so close: writers are slowed from the bound on.
const URGENT_PERMILLE: u64 = 10;

/// Bytes of records that are looked at before what is alive of them moves: each move ends in a
/// sync, and in the padding of a batch. A core takes this part of its memory, within these bounds.
const MOVE_SHARE: u64 = 128;
const MOVE_BYTES_MIN: u64 = 256 << 10;
const MOVE_BYTES_MAX: u64 = 4 << 20;
/// Moves that are under way at the same time: while one waits for its sync, the next one looks up.
const MOVES_MAX: usize = 2;
/// Records that one of them looks up at the same time.
const LOOKUPS_MAX: usize = 64;

/// What was found of a record that lies where it was looked for: it is its key's newest.
#[derive(Clone, Copy)]
struct Current {
    lsn: Lsn,
    /// When that was so.
    epoch: u64,
}

/// What the collector does next.
enum Step {
    /// Move what is alive out of this segment.
    Empty(SegmentKey),
    /// These may go.
    Remove(Vec<SegmentKey>),
    Stop,
}

/// What a merge would leave of a record that has expired.
fn as_tombstone(item: Item) -> Item {
    let tombstone = Meta {
        tombstone: true,
        expiry: 0,
        ..item.record.meta()
    };
    Item {
        record: Record::new(tombstone, item.record.key(), b""),
        ..item
    }
}

/// Bytes of a segment that collecting it would give back, as far as is known.
fn waste(info: &SegmentInfo) -> u64 {
    let live = info.written - info.garbage;
    // What `values` loses to padding the mover packs. A segment of `moved` is packed as well as it
    // may be (were it taken for wasteful, it would be moved again and again), unless a start has
    // cut it short.
    match info.stream == Stream::Values || live < info.bytes / 4 {
        true => info.bytes.saturating_sub(live),
        false => info.garbage,
    }
}

/// How well it pays to collect a segment of this age: what that gives back for what it moves, and,
/// less, the age, as what is left of an old segment will stay, and what is left of a young one may
/// soon be garbage by itself. (Cost and benefit of M. Rosenblum and J. Ousterhout, "The Design and
/// Implementation of a Log-Structured File System", 1992; with the age's root it moves less,
/// uniform or skewed.)
fn benefit(info: &SegmentInfo, age: u64) -> f64 {
    let wasted = waste(info);
    let live = info.bytes.saturating_sub(wasted).max(1);
    (age as f64).sqrt() * wasted as f64 / live as f64
}

/// The share of garbage in `segments`, which come with their ages, in thousandths, and the one that
/// it pays most to collect.
fn worst<'a>(segments: impl Iterator<Item = (&'a SegmentInfo, u64)>) -> Option<(u64, SegmentKey)> {
    let (mut bytes, mut wasted) = (0, 0);
    let mut worst: Option<(f64, SegmentKey)> = None;
    for (info, age) in segments {
        bytes += info.bytes;
        wasted += waste(info);
        let benefit = benefit(info, age);
        if worst.is_none_or(|(most, _)| benefit > most) {
            worst = Some((benefit, (info.stream, info.id)));
        }
    }
    let (benefit, key) = worst?;
    (benefit > 0.0).then_some((wasted * 1000 / bytes.max(1), key))
}

/// Reads records of segment `key` with their places: all of the next batches up to `bytes_max` or
/// the end.
async fn read_some(
    reader: &mut SegmentReader,
    key: SegmentKey,
    bytes_max: u64,
) -> Result<Vec<(Pointer, Record)>> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_max {
        let from = records.len();
        let mut take = |read: Read<'_>| {
            if let Entry::Record(view) = read.entry {
                let place = Pointer {
                    stream: key.0,
                    segment: key.1,
                    offset: read.offset as u32,
                    length: view.bytes().len() as u32,
                    crc: crc32c::crc32c(view.bytes()),
                    value_length: view.value_length(),
                };
                records.extend(Record::decode(view.bytes()).map(|record| (place, record)));
            }
            Ok(())
        };
        if !reader.next_batch(&mut take).await? {
            break;
        }
        let new = records[from..].iter();
        bytes += new.map(|(place, _)| u64::from(place.length)).sum::<u64>();
    }
    Ok(records)
}

impl Store {
    /// Collects segments until the store stops.
    pub(in crate::storage) async fn collect_values(self: Rc<Self>) {
        loop {
            let done = match self.changed.wait_for(|| self.next_step()).await {
                Step::Stop => return,
                Step::Remove(gone) => {
                    let count = gone.len() as u64;
                    let installed = self.install(Edit::without(gone)).await;
                    if installed.is_ok() {
                        self.state.borrow_mut().stats.collections += count;
                    }
                    installed
                }
                Step::Empty(key) => self.empty(key).await,
            };
            self.pace.is_collector_helpless.set(done.is_err());
            if let Err(error) = done {
                self.weigh();
                self.changed.wake_all();
                log::warn!("the value log cannot be collected, trying again: {error}");
                let stopping = self
                    .changed
                    .wait_for(|| self.state.borrow().stopping.then_some(()));
                future::or(rt::sleep(RETRY), stopping).await;
            }
        }
    }

    fn next_step(&self) -> Option<Step> {
        let worst = self.weigh();
        let state = self.state.borrow();
        if state.stopping || state.flusher_ended {
            return Some(Step::Stop);
        }
        if self.may_not_collect(&state) {
            return None;
        }
        let ready = |barrier: u64| state.is_flushed(barrier);
        let emptied = state.emptied.iter();
        let gone: Vec<SegmentKey> = emptied
            .filter(|(_, barrier)| ready(*barrier))
            .map(|(key, _)| *key)
            .collect();
        if !gone.is_empty() {
            return Some(Step::Remove(gone));
        }
        let (permille, key) = worst?;
        let is_due = permille + EARLY_PERMILLE > self.garbage_permille_max();
        is_due.then_some(Step::Empty(key))
    }

    /// True while nothing may be moved or given up.
    fn may_not_collect(&self, state: &crate::storage::State) -> bool {
        self.has_failed() || !state.undecided.is_empty()
    }

    /// The share of garbage in the segments that may be collected, in thousandths, and the one that
    /// it pays most to collect. Writers of large values are slowed by that share, but not while
    /// they would wait for nothing.
    fn weigh(&self) -> Option<(u64, SegmentKey)> {
        let state = self.state.borrow();
        let worst = self.worst(&state);
        let is_helpless = self.pace.is_collector_helpless.get() || self.may_not_collect(&state);
        let slowing = worst.filter(|_| !is_helpless);
        self.pace
            .garbage
            .set(slowing.map_or(0, |(permille, _)| permille));
        worst
    }

    /// The share of garbage that there may be, in thousandths.
    pub(in crate::storage) fn garbage_permille_max(&self) -> u64 {
        self.options.value_garbage_percent_max * 10
    }

    /// See [`Store::weigh`].
    fn worst(&self, state: &crate::storage::State) -> Option<(u64, SegmentKey)> {
        let now = self.moved.segment_now();
        let moved_now = state.moving_from.map_or(now, |from| from.min(now));
        let may = |info: &&SegmentInfo| {
            let is_quiet = match info.stream {
                Stream::Values => !state.manifest.values_floor.covers(info.id),
                // What another core began, before a re-sharding, nobody goes on with.
                _ => info.id < moved_now || !state.manifest.moved_floor.is_own(info.id),
            };
            let key = (info.stream, info.id);
            let is_open = !state.damaged.contains(&key);
            is_quiet && is_open && !state.emptied.iter().any(|(emptied, _)| *emptied == key)
        };
        let values_now = self.values.segment_now();
        let age_max = state.values.segments().len().max(1) as u64;
        // In segments that the log began since, and no more than there are. Those of other cores
        // are old.
        let age = |info: &SegmentInfo| {
            let SegmentInfo { stream, id, .. } = *info;
            let (floor, now) = match stream {
                Stream::Values => (&state.manifest.values_floor, values_now),
                _ => (&state.manifest.moved_floor, now),
            };
            let began = now.0.saturating_sub(id.0);
            let age = if floor.is_own(id) { began } else { age_max };
            age.clamp(1, age_max)
        };
        let aged = state
            .values
            .infos()
            .filter(may)
            .map(|info| (info, age(info)));
        worst(aged)
    }

    /// Moves all that is alive out of a segment.
    async fn empty(self: &Rc<Self>, key: SegmentKey) -> Result<()> {
        let (segment, info) = {
            let state = self.state.borrow();
            let segment = state.values.segments().get(&key).map(Rc::clone);
            let info = state
                .values
                .infos()
                .find(|info| (info.stream, info.id) == key);
            let Some((segment, info)) = segment.zip(info.copied()) else {
                return Ok(());
            };
            (segment, info)
        };
        if info.version_max > self.state.borrow().manifest.cleared {
            let mut reader = SegmentReader::of(key.0, segment).await?;
            let mut moves = VecDeque::new();
            let read = self.move_all(&mut reader, key, &mut moves).await;
            // None is left behind: they write.
            let mut moved = Ok(());
            for other in moves {
                moved = moved.and(other.await);
            }
            let seen = read?;
            moved?;
            if self.state.borrow().stopping {
                return Ok(());
            }
            if seen < info.written {
                self.state.borrow_mut().damaged.insert(key);
                let why = "records in it cannot be read; it is not collected";
                let error = reader.damaged(0, why);
                log::error!("{error}");
                return Ok(());
            }
        }
        self.note_emptied(key);
        Ok(())
    }

    /// Moves what is alive of a segment; the last `moves` are under way when this returns. Bytes of
    /// the records that were read.
    async fn move_all(
        self: &Rc<Self>,
        reader: &mut SegmentReader,
        key: SegmentKey,
        moves: &mut VecDeque<rt::Task<Result<()>>>,
    ) -> Result<u64> {
        let share = self.options.memory_bytes / MOVE_SHARE;
        let bytes_max = share.clamp(MOVE_BYTES_MIN, MOVE_BYTES_MAX);
        let mut seen = 0;
        while !self.state.borrow().stopping {
            let began = rt::now();
            let records = read_some(reader, key, bytes_max).await?;
            if records.is_empty() {
                break;
            }
            let bytes = records.iter().map(|(place, _)| bytes_of(*place));
            seen += bytes.sum::<u64>();
            if moves.len() >= MOVES_MAX
                && let Some(oldest) = moves.pop_front()
            {
                oldest.await?;
            }
            // What moves goes through memtables and tables, like what is written.
            self.wait_for_room().await;
            let store = Rc::clone(self);
            moves.push_back(rt::spawn_in(rt::Queue::Background, async move {
                store.move_live(records).await?;
                // At a stop nobody flushes any more, and the old places stay good.
                if !store.state.borrow().stopping {
                    store.freeze_if_full();
                }
                Ok(())
            }));
            self.rest(rt::now().saturating_sub(began)).await;
        }
        Ok(seen)
    }

    fn note_emptied(&self, key: SegmentKey) {
        let must_flush = {
            let mut state = self.state.borrow_mut();
            let barrier = state.active.number;
            state.emptied.push((key, barrier));
            let many = (state.values.segments().len() / EMPTIED_SHARE).max(EMPTIED_MIN);
            let is_due = state.emptied.len() >= many || self.values.is_refused();
            is_due && state.frozen.is_empty() && !state.active.memtable.borrow().is_empty()
        };
        if must_flush {
            self.freeze();
        }
    }

    async fn rest(&self, worked: Duration) {
        let permille = self.weigh().map_or(0, |(permille, _)| permille);
        let is_urgent = permille + URGENT_PERMILLE > self.garbage_permille_max();
        if !is_urgent && !self.values.is_refused() {
            rt::sleep((worked * REST_RATIO).min(REST_MAX)).await;
        }
    }

    /// Moves those of `records`, which were read at their places, that are alive.
    async fn move_live(self: &Rc<Self>, records: Vec<(Pointer, Record)>) -> Result<()> {
        let mut live = Vec::new();
        let mut seen = Vec::new();
        for chunk in records.chunks(LOOKUPS_MAX) {
            let ask = |(place, record): &(Pointer, Record)| {
                let (store, place, record) = (Rc::clone(self), *place, record.clone());
                rt::spawn_in(rt::Queue::Background, async move {
                    store.current(&KeyRef::of(record.key()), place).await
                })
            };
            let asked: Vec<_> = chunk.iter().map(ask).collect();
            for (answer, (place, record)) in asked.into_iter().zip(chunk) {
                let Some(current) = answer.await? else {
                    continue;
                };
                let item = Item {
                    position: KeyRef::of(record.key()).position,
                    record: record.clone(),
                };
                if record.view().is_live(rt::wall_ms()) {
                    live.push(item);
                    seen.push((*place, current));
                } else {
                    self.put_if_current(*place, current, as_tombstone(item))
                        .await?;
                }
            }
        }
        let moved = self.move_records(&live).await?;
        for ((item, (place, current)), record) in live.into_iter().zip(seen).zip(moved) {
            self.put_if_current(place, current, Item { record, ..item })
                .await?;
        }
        Ok(())
    }

    /// The newest record of `key`, if it is the pointer to `place`, with the moment of that answer.
    async fn current(&self, key: &KeyRef<'_>, place: Pointer) -> Result<Option<Current>> {
        loop {
            let epoch = self.state.borrow().epoch;
            let found = self.get(key, Want::Stored).await?;
            if epoch == self.state.borrow().epoch {
                let is_it = |found: &Found| found.record.pointer() == Some(place);
                let lsn = found.filter(is_it).map(|found| found.lsn);
                return Ok(lsn.map(|lsn| Current { lsn, epoch }));
            }
        }
    }

    /// Puts `item`, the same version of the same key, in the place of the pointer to `place`, if
    /// that is still the newest record of its key, as it was at the moment of `current`.
    async fn put_if_current(&self, place: Pointer, current: Current, item: Item) -> Result<()> {
        let bytes = item.record.key().to_vec();
        let key = KeyRef::of(&bytes);
        let mut current = Some(current);
        let lsn = loop {
            let Some(Current { lsn, epoch }) = current else {
                if let Some(copy) = item.record.pointer() {
                    self.state.borrow_mut().values.note_garbage(copy);
                }
                return Ok(());
            };
            if self.is_still_current(&key, place, epoch) || rt::planted(Bug::MoveUnchecked) {
                break lsn;
            }
            current = self.current(&key, place).await?;
        };
        self.put_moved(item, lsn);
        self.state.borrow_mut().values.note_garbage(place);
        Ok(())
    }

    /// True if the pointer to `place`, which was the newest record of `key` at `epoch`, is so now.
    /// If it is in no memtable then it is in a table, of which there are none that are newer.
    fn is_still_current(&self, key: &KeyRef<'_>, place: Pointer, epoch: u64) -> bool {
        let state = self.state.borrow();
        let in_memory = state.in_memory(key);
        state.epoch == epoch && in_memory.is_none_or(|found| found.record.pointer() == Some(place))
    }

    fn put_moved(&self, item: Item, lsn: Lsn) {
        self.caches.rows.forget(KeyHash::of(item.record.key()));
        let state = self.state.borrow();
        let mut memtable = state.active.memtable.borrow_mut();
        let is_tombstone = item.record.meta().tombstone;
        if !is_tombstone && memtable.point(item.record.clone(), item.position, lsn) {
            return;
        }
        // A tombstone of one version hides the record of that version.
        let inserted = memtable.insert(item.record, item.position, lsn);
        assert!(
            !matches!(inserted, Inserted::Stale) || rt::planted(Bug::MoveUnchecked),
            "nothing newer is there"
        );
    }

    /// Copies `items`, records that may be packed, to `moved`; gives the pointers to the copies, in
    /// order. They are written, and as durable as durability asks.
    pub(in crate::storage) async fn move_records(&self, items: &[Item]) -> Result<Vec<Record>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.changed
            .wait_for(|| (!self.moving.replace(true)).then_some(()))
            .await;
        let appended = self.append_moved(items).await;
        let written = self.moved.wait_written(self.moved_last.get()).await;
        let mut pointers = Vec::with_capacity(items.len());
        {
            let mut state = self.state.borrow_mut();
            for placed in self.moved.take_placed() {
                state.values.note_placed(&placed, &self.moved);
                state.stats.value_bytes_moved += bytes_of(placed.pointer);
                pointers.push(Record::pointing(placed.record.view(), placed.pointer));
            }
        }
        self.moving.set(false);
        self.changed.wake_all();
        if let Err(error) = appended.and(written) {
            let mut state = self.state.borrow_mut();
            let copies = pointers.iter().filter_map(Record::pointer);
            copies.for_each(|copy| state.values.note_garbage(copy));
            return Err(error);
        }
        assert!(pointers.len() == items.len(), "each copy has its place");
        Ok(pointers)
    }

    async fn append_moved(&self, items: &[Item]) -> Result<(), Error> {
        for item in items {
            self.moved
                .wait_admitted(item.record.bytes().len(), 1)
                .await?;
            let lsn = Lsn(self.moved_last.get().0 + 1);
            self.moved_last.set(lsn);
            let stored = item.record.bytes();
            self.moved
                .append_value(lsn, item.position, &item.record, stored);
            rt::yield_if_needed().await;
        }
        Ok(())
    }
}

impl crate::storage::State {
    /// True if the layer with this number, and all before it, are in tables, or died with a clear.
    fn is_flushed(&self, number: u64) -> bool {
        let is_empty = self.active.memtable.borrow().is_empty();
        let oldest = match self.frozen.front() {
            Some(layer) => layer.number,
            None if is_empty => self.active.number + 1,
            None => self.active.number,
        };
        oldest > number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::wal::format::SegmentId;
    use crate::types::Version;

    fn info(stream: Stream, id: u64, written: u64, garbage: u64) -> SegmentInfo {
        SegmentInfo {
            stream,
            id: SegmentId(id),
            bytes: 1000,
            written,
            garbage,
            version_max: Version::ZERO,
        }
    }

    #[test]
    fn of_two_of_an_age_the_one_with_most_garbage_is_collected_first() {
        let segments = [
            info(Stream::Values, 1, 1000, 100),
            info(Stream::Moved, 2, 1000, 700),
            info(Stream::Values, 3, 1000, 400),
        ];
        let worst = worst(segments.iter().map(|info| (info, 5)));
        assert_eq!(worst, Some((400, (Stream::Moved, SegmentId(2)))));
    }

    #[test]
    fn of_two_with_as_much_garbage_the_older_one_is_collected_first() {
        let segments = [(1, 2), (2, 9), (3, 4)];
        let infos = segments.map(|(id, age)| (info(Stream::Values, id, 1000, 400), age));
        let worst = worst(infos.iter().map(|(info, age)| (info, *age)));
        assert_eq!(worst, Some((400, (Stream::Values, SegmentId(2)))));
        // Age alone is nothing.
        let (old, young) = (
            info(Stream::Values, 1, 1000, 20),
            info(Stream::Values, 2, 1000, 800),
        );
        assert!(benefit(&young, 1) > benefit(&old, 1000));
        assert!(benefit(&old, 1000) > 0.0);
    }

    #[test]
    fn what_nothing_can_be_gained_from_is_left_alone() {
        let worst = |info: SegmentInfo| super::worst([(&info, 1)].into_iter());
        assert_eq!(super::worst([].into_iter()), None);
        assert_eq!(worst(info(Stream::Values, 1, 1000, 0)), None);
        // A full segment of `moved` is as it would be written again; and so is one that is not so
        // full, or it would be moved for ever.
        for written in [600, 300] {
            assert_eq!(worst(info(Stream::Moved, 1, written, 0)), None);
        }
        let cut_short = worst(info(Stream::Moved, 1, 200, 0));
        assert_eq!(cut_short.map(|(permille, _)| permille), Some(800));
        let padded = worst(info(Stream::Values, 1, 600, 0));
        assert_eq!(padded.map(|(permille, _)| permille), Some(400));
    }
}
