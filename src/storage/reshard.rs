//! Re-sharding: the same data, laid out for another number of cores, before any core serves.
//!
//! The steps, each of which may be the last before a crash:
//! 1. The old cores' stores open as ever, together: what was prepared of transactions over several
//!    cores is decided by all of their logs. What the logs hold comes to tables; the stores stop.
//! 2. The new cores' folders are made beside the old ones ([`identity`]): tables are merged and split by
//!    position into one run for each new core, and the segments of the value log that its pointers lead
//!    to are linked into its folder, not copied. Its logs begin anew.
//! 3. NODE is written anew ([`identity::write`]): from that moment the new folders count.
//! 4. The old folders go.
//!
//! A crash before 3 leaves the old folders whole, and after it the new ones; a start, with whatever
//! number of cores, begins by removing the others. A failure before 3 removes what it has made.
//!
//! Invariants: nothing is written to a segment that is linked, for only the logs of its own folder
//! are written to, and those begin behind all segments of their names that there are ([`Numbers`]).
//! A segment that several new cores need is in each of their folders, where what the others need
//! counts as garbage; its file goes when the last of them has collected it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::compaction::job::Outputs;
use super::identity::{self, Identity};
use super::levels::RunCursor;
use super::manifest::{Manifest, SegmentInfo};
use super::merge::{Bound, Item, Merge, Step};
use super::record::Pointer;
use super::scan::Snapshot;
use super::vlog::{SegmentKey, bytes_of};
use super::wal::format::{SegmentId, Stream};
use super::wal::replay::{Floor, segments_of};
use super::{Opened, Store, StoreOptions};
use crate::error::{Error, Result};
use crate::rt::{self, Bug};
use crate::types::{CoreId, Position, Version};

/// Each run of tables is read in pieces of this size.
const READ_BYTES: usize = 256 * 1024;
/// After so many records others get their turn.
const TURN_RECORDS: u64 = 256;
/// Where tables stand until it is known how large they are together.
const LEVEL: u8 = 1;

/// The positions from `first` to `last`, both included, and the core that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The core.
    pub core: CoreId,
    /// The first position.
    pub first: Position,
    /// The last position.
    pub last: Position,
}

/// What is to be done.
pub struct Reshard<'a> {
    /// The data directory.
    pub dir: &'a Path,
    /// What is in force.
    pub from: Identity,
    /// What is to be; of the next generation.
    pub to: Identity,
    /// Who has which positions: all of them, in order.
    pub shares_from: Vec<Share>,
    /// Who will have which.
    pub shares_to: Vec<Share>,
    /// How the store of a core of so many is to be.
    pub options: &'a dyn Fn(CoreId, u16) -> StoreOptions,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Records in the new tables.
    pub records: u64,
    /// Bytes of the new tables.
    pub table_bytes: u64,
    /// Segments of the value log in the new folders.
    pub segments: u64,
}

/// Positions that go from one core to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    from: CoreId,
    to: CoreId,
    first: Position,
    last: Position,
}

/// All moves, in the order of positions.
fn moves(from: &[Share], to: &[Share]) -> Vec<Move> {
    let mut moves = Vec::new();
    let (mut from, mut to) = (from.iter().peekable(), to.iter().peekable());
    while let (Some(old), Some(new)) = (from.peek(), to.peek()) {
        let (first, last) = (old.first.max(new.first), old.last.min(new.last));
        assert!(first <= last, "both cover every position, in order");
        moves.push(Move {
            from: old.core,
            to: new.core,
            first,
            last,
        });
        let is_at_end = |share: &&Share| share.last == last;
        let (old_ends, new_ends) = (is_at_end(old), is_at_end(new));
        if old_ends {
            from.next();
        }
        if new_ends {
            to.next();
        }
    }
    assert!(from.peek().is_none() && to.peek().is_none());
    moves
}

/// An old core that has stopped: all of its data is in these tables and segments.
struct Old {
    dir: PathBuf,
    snapshot: Snapshot,
    segments: BTreeMap<SegmentKey, SegmentInfo>,
    version_max: Version,
}

/// A segment that a new core needs.
struct Needed {
    /// A name that it has.
    path: PathBuf,
    info: SegmentInfo,
    /// Bytes of its records that the new core points to.
    live: u64,
}

/// How far the work is, in hundredths; told when that changes.
struct Progress<F> {
    done: u64,
    total: u64,
    told: u64,
    tell: F,
}

impl<F: FnMut(u64)> Progress<F> {
    fn add(&mut self, records: usize) {
        // What lies where two moves meet is read twice.
        self.done = (self.done + records as u64).min(self.total);
        let percent = (self.done * 100).checked_div(self.total).unwrap_or(100);
        if percent > self.told {
            self.told = percent;
            (self.tell)(percent);
        }
    }
}

impl Reshard<'_> {
    /// Does it. `tell` is told how much is done, in hundredths.
    ///
    /// After an error the old folders count and are whole, unless it is [`Error::Uncertain`]: then
    /// the next start tells which count, and all are whole.
    pub async fn run(&self, tell: impl FnMut(u64)) -> Result<Done> {
        assert!(self.from.generation.checked_add(1) == Some(self.to.generation));
        let olds = self.stop_old().await?;
        let done = match self.build(&olds, tell).await {
            Ok(done) => done,
            Err(error) => {
                self.remove_new().await;
                return Err(error);
            }
        };
        if !rt::planted(Bug::SwitchTooEarly) {
            self.switch().await?;
        }
        Ok(done)
    }

    async fn switch(&self) -> Result<()> {
        identity::write(self.dir, self.to).await.map_err(|error| {
            log::error!("{error}; which number of cores is in force shows at the next start");
            Error::Uncertain
        })
    }

    /// Opens all old stores, has tables take in what their logs hold, and stops them.
    async fn stop_old(&self) -> Result<Vec<Old>> {
        let cores = self.from.cores;
        let mut opened = Vec::with_capacity(usize::from(cores));
        for core in (0..cores).map(CoreId) {
            let dir = self.dir.join(self.from.folder(core).name());
            let options = (self.options)(core, cores);
            opened.push(Store::open_to_flush(&dir, options).await?);
        }
        decide(&mut opened);
        let mut olds = Vec::with_capacity(opened.len());
        for opened in opened {
            opened.store.stop_in_tables().await?;
            olds.push(Old::of(&opened));
        }
        Ok(olds)
    }

    /// Makes the new folders, durably.
    async fn build(&self, olds: &[Old], tell: impl FnMut(u64)) -> Result<Done> {
        let tables = olds.iter().flat_map(|old| old.snapshot.tables());
        let mut progress = Progress {
            done: 0,
            total: tables.map(|table| table.info().records).sum(),
            told: 0,
            tell,
        };
        let numbers = self.numbers(olds).await?;
        let version_max = olds.iter().map(|old| old.version_max).max();
        let cleared = olds.iter().map(|old| old.snapshot.cleared).min();
        let moves = moves(&self.shares_from, &self.shares_to);
        let mut done = Done::default();
        for core in (0..self.to.cores).map(CoreId) {
            let mut manifest = Manifest::new(core, self.to.cores);
            manifest.version_max = version_max.expect("there is an old core");
            manifest.cleared = cleared.expect("there is an old core");
            if !rt::planted(Bug::NumbersAgain) {
                manifest.floor = numbers.floor(core, Stream::Records);
                manifest.values_floor = numbers.floor(core, Stream::Values);
                manifest.moved_floor = numbers.floor(core, Stream::Moved);
            }
            let mut new = New {
                dir: self.dir.join(self.to.folder(core).name()),
                options: (self.options)(core, self.to.cores),
                manifest,
                needed: BTreeMap::new(),
            };
            rt::create_dir_all(&new.dir).await?;
            for part in moves.iter().filter(|part| part.to == core) {
                let old = &olds[usize::from(part.from.0)];
                new.take(old, part, &mut progress).await?;
            }
            if rt::planted(Bug::SwitchTooEarly) {
                self.switch().await?;
            }
            new.finish().await?;
            done.add(&new);
        }
        Ok(done)
    }

    /// Which numbers segments have, and may have had.
    async fn numbers(&self, olds: &[Old]) -> Result<Numbers> {
        let mut numbers = Numbers::default();
        for old in olds {
            let names = rt::list_dir(&old.dir).await?;
            for stream in [Stream::Records, Stream::Values, Stream::Moved] {
                numbers.note(stream, segments_of(stream, &names));
            }
            if let Some(manifest) = Manifest::read(&old.dir).await? {
                numbers.note(Stream::Records, [manifest.floor.segment]);
                numbers.note(Stream::Values, [manifest.values_floor.segment]);
                numbers.note(Stream::Moved, [manifest.moved_floor.segment]);
            }
        }
        Ok(numbers)
    }

    /// Removes the new folders, which do not count yet, to give their space back. What cannot be
    /// removed now the next start removes.
    async fn remove_new(&self) {
        if rt::planted(Bug::SwitchTooEarly) {
            return; // they may count
        }
        for core in (0..self.to.cores).map(CoreId) {
            let folder = self.dir.join(self.to.folder(core).name());
            if let Err(error) = identity::remove(&folder).await {
                log::warn!("{error}; the next start removes it");
            }
        }
    }
}

/// Finds out which transactions hold that the old cores had prepared when they went down: those
/// that all of their cores had.
fn decide(opened: &mut [Opened]) {
    let prepared: Vec<BTreeSet<Version>> = opened
        .iter()
        .map(|opened| opened.prepared.clone())
        .collect();
    for Opened {
        store, undecided, ..
    } in opened
    {
        for part in undecided.drain(..) {
            let has = |core: &CoreId| {
                let prepared = prepared.get(usize::from(core.0));
                prepared.is_some_and(|prepared| prepared.contains(&part.transaction))
            };
            match part.cores.iter().all(has) && !rt::planted(Bug::UndecidedDropped) {
                true => store.recover(part),
                false => store.abort(part.transaction),
            }
        }
    }
}

impl Old {
    /// What a store that has stopped, with all in tables, was left with.
    fn of(opened: &Opened) -> Old {
        let state = opened.store.state.borrow();
        let segments = state.values.infos();
        Old {
            dir: opened.store.dir.clone(),
            snapshot: opened.store.snapshot(),
            segments: segments
                .map(|info| ((info.stream, info.id), *info))
                .collect(),
            version_max: opened.version_max.max(state.manifest.version_max),
        }
    }

    /// What is known of the segment that `place` is in.
    fn segment_of(&self, place: Pointer) -> Result<&SegmentInfo> {
        let info = self.segments.get(&(place.stream, place.segment));
        info.ok_or_else(|| Error::Corrupt {
            file: self.dir.join(place.segment.file_name(place.stream)),
            offset: u64::from(place.offset),
            why: "a record points to it, but it is not one of the live segments".to_owned(),
        })
    }
}

/// The highest numbers of segments in all logs of all old folders. A new core's logs go on behind
/// them: they must not make a file of a name that another file has, now or when both come to one
/// folder.
#[derive(Default)]
struct Numbers(BTreeMap<Stream, BTreeSet<SegmentId>>);

impl Numbers {
    fn note(&mut self, stream: Stream, ids: impl IntoIterator<Item = SegmentId>) {
        self.0.entry(stream).or_default().extend(ids);
    }

    /// Where a new log begins.
    fn floor(&self, core: CoreId, stream: Stream) -> Floor {
        let mut floor = Floor::start(core, stream);
        let ids = self.0.get(&stream).into_iter().flatten();
        let last = ids.filter(|id| floor.covers(**id)).max();
        if let Some(last) = last {
            floor.segment = SegmentId(last.0 + 1);
        }
        floor
    }
}

/// A new core's folder while it is made.
struct New {
    dir: PathBuf,
    options: StoreOptions,
    manifest: Manifest,
    needed: BTreeMap<SegmentKey, Needed>,
}

impl New {
    /// Writes what lives of `part` to tables.
    async fn take(
        &mut self,
        old: &Old,
        part: &Move,
        progress: &mut Progress<impl FnMut(u64)>,
    ) -> Result<()> {
        let (cleared, now) = (old.snapshot.cleared, rt::wall_ms());
        let table_bytes = self.options.compaction.table_bytes;
        let manifest = &mut self.manifest;
        let compression = self.options.compression;
        let next_id = || manifest.take_id();
        let mut outputs = Outputs::new(&self.dir, LEVEL, table_bytes, compression, next_id);
        // They stand from the newest to the oldest.
        let runs = old.snapshot.runs.iter();
        let runs = runs.filter(|run| run.overlaps(part.first, part.last));
        let cursor = |run| RunCursor::new(Rc::clone(run), Bound::From(part.first), READ_BYTES);
        let mut cursors: Vec<RunCursor> = runs.map(cursor).collect();
        let mut merge = Merge::new(cursors.len());
        let mut turn = 0;
        loop {
            match merge.step() {
                Step::Fetch(source) => {
                    let chunk = cursors[source].next_chunk().await?;
                    progress.add(chunk.len());
                    merge.feed(source, chunk);
                }
                Step::Emit(item) if item.position > part.last => break,
                Step::Emit(item) => {
                    merge.take_dropped(); // the old folder goes with all that it has
                    let meta = item.record.meta();
                    // Nothing is below these tables, so that no tombstone hides anything.
                    if meta.version > cleared && item.record.view().is_live(now) {
                        note_needed(&mut self.needed, old, &item)?;
                        outputs.add(&item).await?;
                    }
                    turn += 1;
                    if turn % TURN_RECORDS == 0 {
                        rt::yield_if_needed().await;
                    }
                }
                Step::End => break,
            }
        }
        outputs.end_table().await?;
        let done = outputs.done;
        self.manifest.tables.extend(done);
        Ok(())
    }

    /// Links the segments and writes the manifest: the folder is whole then, and durable.
    async fn finish(&mut self) -> Result<()> {
        let bytes = self.table_bytes();
        let level = self.options.compaction.level_for(bytes);
        for table in &mut self.manifest.tables {
            table.level = level;
        }
        for Needed { path, info, live } in self.needed.values() {
            let name = info.id.file_name(info.stream);
            rt::link(path, &self.dir.join(name)).await?;
            let written = info.written.max(*live);
            self.manifest.segments.push(SegmentInfo {
                written,
                garbage: written - live,
                ..*info
            });
        }
        if !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        self.manifest.store(&self.dir).await.map_err(|error| {
            let manifest = self.dir.join(super::manifest::MANIFEST);
            match error {
                // Whichever is there, it does not count.
                Error::Uncertain => {
                    Error::Setup(format!("{} could not be written", manifest.display()))
                }
                other => other,
            }
        })
    }

    fn table_bytes(&self) -> u64 {
        self.manifest.tables.iter().map(|info| info.bytes).sum()
    }
}

/// Notes the segment that `item` points to, if it does.
fn note_needed(needed: &mut BTreeMap<SegmentKey, Needed>, old: &Old, item: &Item) -> Result<()> {
    let Some(place) = item.record.pointer() else {
        return Ok(());
    };
    let info = old.segment_of(place)?;
    let name = info.id.file_name(info.stream);
    let needed = needed
        .entry((info.stream, info.id))
        .or_insert_with(|| Needed {
            path: old.dir.join(name),
            info: *info,
            live: 0,
        });
    // Two old cores may have it, of an earlier re-sharding: it is one file.
    needed.info.written = needed.info.written.max(info.written);
    needed.live += bytes_of(place);
    Ok(())
}

impl Done {
    fn add(&mut self, new: &New) {
        let tables = new.manifest.tables.iter();
        self.records += tables.map(|info| info.records).sum::<u64>();
        self.table_bytes += new.table_bytes();
        self.segments += new.manifest.segments.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(core: u16, first: u32, last: u32) -> Share {
        Share {
            core: CoreId(core),
            first: Position(first),
            last: Position(last),
        }
    }

    #[test]
    fn every_position_moves_once_from_who_has_it_to_who_gets_it() {
        let end = u32::MAX;
        let layouts = [
            vec![share(0, 0, end)],
            vec![share(0, 0, 99), share(1, 100, end)],
            vec![share(0, 0, 49), share(1, 50, 99), share(2, 100, end)],
            // A core may have several shares.
            vec![share(1, 0, 9), share(0, 10, 500), share(1, 501, end)],
        ];
        for (from, to) in layouts
            .iter()
            .flat_map(|from| layouts.iter().map(move |to| (from, to)))
        {
            let moves = moves(from, to);
            let mut next = 0;
            for part in &moves {
                assert_eq!(u64::from(part.first.0), next, "a gap or an overlap");
                next = u64::from(part.last.0) + 1;
                let is_in = |shares: &[Share], core: CoreId| {
                    let mut shares = shares.iter().filter(|share| share.core == core);
                    shares.any(|share| share.first <= part.first && part.last <= share.last)
                };
                assert!(is_in(from, part.from) && is_in(to, part.to), "{part:?}");
            }
            assert_eq!(next, 1 << 32, "positions are left out");
        }
    }

    #[test]
    fn a_new_log_begins_behind_all_segments_of_its_name() {
        let first = |core, stream| Floor::start(CoreId(core), stream).segment.0;
        let mut numbers = Numbers::default();
        let zero = first(0, Stream::Values);
        let two = first(2, Stream::Values);
        numbers.note(Stream::Values, [zero + 4, zero, two + 9].map(SegmentId));
        let floor = |core, stream| numbers.floor(CoreId(core), stream).segment.0;
        assert_eq!(floor(0, Stream::Values), zero + 5);
        assert_eq!(floor(1, Stream::Values), first(1, Stream::Values));
        assert_eq!(
            floor(2, Stream::Values),
            two + 10,
            "of a core that may come again"
        );
        assert_eq!(floor(0, Stream::Moved), first(0, Stream::Moved));
    }
}
