//! The value log: which segments there are, what in them is alive, and how a value is read.
//!
//! Large records are written once, to the stream `values`, which is their own write-ahead log; the
//! memtable and the tables hold pointers ([`Pointer`]). What the collector (`vlog/collect`) moves,
//! and large records of a batch when their memtable is flushed, go to the stream `moved`, so that
//! what lives long and what does not part. A value may be packed (`value-log.compression`):
//! [`read`] gives it back as it was, and nobody else in a store looks into one.
//!
//! Invariants:
//! - A pointer in a live table leads to a segment that the manifest lists, and the record there was
//!   durable before the table was installed. A segment that is listed and not there is damage.
//! - Of `values` only what comes behind the manifest's floor is replayed; `moved` never is: a record's
//!   old place is given up only when a table, with the manifest that names it, has the new one.
//! - One version of a key may be at several places. The newest layer (memtable, then tables from new
//!   to old) has the one that counts; the others may be gone. So merges take the newest on a tie.
//! - `garbage` is an estimate, never above `written`: a crash may make it count some records twice.
//!   No record is given up by it: the collector asks for each whether it is alive.

pub mod collect;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use super::manifest::SegmentInfo;
use super::record::{Pointer, Record, View};
use super::wal::format::{ENTRY_HEADER_BYTES, SegmentId, Stream};
use super::wal::{Placed, Segment, Wal};
use crate::error::{Error, Result};
use crate::types::{Lsn, Version};

/// Names a segment of the value log within its core.
pub type SegmentKey = (Stream, SegmentId);

/// Open segments. Who holds this can read them, whatever becomes of their files.
pub type Segments = Rc<BTreeMap<SegmentKey, Rc<Segment>>>;

/// Bytes of the value log that a record takes.
pub(super) fn bytes_of(place: Pointer) -> u64 {
    ENTRY_HEADER_BYTES as u64 + u64::from(place.length)
}

fn key_of(place: Pointer) -> SegmentKey {
    (place.stream, place.segment)
}

/// What is given up, by segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage(BTreeMap<SegmentKey, u64>);

impl Garbage {
    /// Counts the record at `place`.
    pub fn add(&mut self, place: Pointer) {
        *self.0.entry(key_of(place)).or_default() += bytes_of(place);
    }

    /// Counts `bytes` in `key`.
    pub fn add_bytes(&mut self, key: SegmentKey, bytes: u64) {
        *self.0.entry(key).or_default() += bytes;
    }

    /// Bytes in `key`.
    fn of(&self, key: SegmentKey) -> u64 {
        self.0.get(&key).copied().unwrap_or(0)
    }
}

/// Sizes of the value log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueSizes {
    /// Segments.
    pub segments: u64,
    /// Those of them of which nothing is needed any more, but for the flush of a memtable.
    pub emptied: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes of records that are needed, as far as is known.
    pub live: u64,
    /// Bytes of records that are not.
    pub garbage: u64,
}

impl ValueSizes {
    /// Adds those of another core.
    pub fn add(&mut self, other: &ValueSizes) {
        self.segments += other.segments;
        self.emptied += other.emptied;
        self.bytes += other.bytes;
        self.live += other.live;
        self.garbage += other.garbage;
    }
}

/// The live segments of one core.
#[derive(Default)]
pub struct Values {
    open: Segments,
    infos: BTreeMap<SegmentKey, SegmentInfo>,
    /// What was written to a log and may not be durable, in order. A write that was durable once is
    /// so for ever, so it goes as soon as the next one comes behind it, or a manifest is written.
    /// That leaves, with "sync", nothing; with "periodic" the writes of about an interval; with
    /// "none" those since the last flush, which comes after `value-log.replay-max` bytes at the
    /// latest. Each record stands for itself: of a segment in which only some are durable, just
    /// those count.
    undurable: BTreeMap<Stream, VecDeque<Undurable>>,
}

/// A record that may not be durable.
struct Undurable {
    /// Which write of its log it was.
    lsn: Lsn,
    segment: SegmentId,
    /// What it takes there.
    bytes: u64,
}

impl Values {
    /// Takes in a segment that the manifest lists, or that was found.
    pub fn insert(&mut self, segment: Rc<Segment>, info: SegmentInfo) {
        let key = (info.stream, info.id);
        assert!(segment.id == info.id);
        Rc::make_mut(&mut self.open).insert(key, segment);
        self.infos.insert(key, info);
    }

    /// Write `lsn` of its stream, a record of `version`, has come to `place` in `segment`. (0: it
    /// is durable.)
    pub fn note_written(
        &mut self,
        segment: &Rc<Segment>,
        place: Pointer,
        version: Version,
        lsn: Lsn,
    ) {
        let key = key_of(place);
        assert!(segment.id == place.segment);
        if !self.infos.contains_key(&key) {
            let info = SegmentInfo {
                stream: place.stream,
                id: place.segment,
                bytes: segment.bytes,
                written: 0,
                garbage: 0,
                version_max: Version::ZERO,
            };
            self.insert(Rc::clone(segment), info);
        }
        self.count_written(place, version, lsn);
    }

    /// See [`Values::note_written`].
    fn count_written(&mut self, place: Pointer, version: Version, lsn: Lsn) {
        let info = self.infos.get_mut(&key_of(place));
        let info = info.expect("its segment is one of these");
        info.written += bytes_of(place);
        info.version_max = info.version_max.max(version);
        if lsn > Lsn(0) {
            let waiting = self.undurable.entry(place.stream).or_default();
            assert!(waiting.back().is_none_or(|last| last.lsn < lsn));
            waiting.push_back(Undurable {
                lsn,
                segment: place.segment,
                bytes: bytes_of(place),
            });
        }
    }

    /// All that was written to `stream` up to `durable` is on disk.
    fn note_durable(&mut self, stream: Stream, durable: Lsn) {
        let Some(waiting) = self.undurable.get_mut(&stream) else {
            return;
        };
        while waiting.front().is_some_and(|first| first.lsn <= durable) {
            waiting.pop_front();
        }
    }

    /// A manifest has counted `written` bytes of records in `key`, however many are found there.
    /// (The collector keeps a segment of which it finds less.)
    pub fn note_least(&mut self, key: SegmentKey, written: u64) {
        if let Some(info) = self.infos.get_mut(&key) {
            info.written = info.written.max(written);
        }
    }

    /// A record has come to its place in `log`.
    pub fn note_placed(&mut self, placed: &Placed, log: &Wal) {
        let durable = log.durable();
        self.note_durable(placed.pointer.stream, durable);
        // With "sync" all that has its place is durable: nothing is kept of it.
        let lsn = match placed.lsn <= durable {
            true => Lsn(0),
            false => placed.lsn,
        };
        let version = placed.record.meta().version;
        self.note_written(&placed.segment, placed.pointer, version, lsn);
    }

    /// The record at `place` is not needed any more.
    pub fn note_garbage(&mut self, place: Pointer) {
        if let Some(info) = self.infos.get_mut(&key_of(place)) {
            info.garbage = info.written.min(info.garbage + bytes_of(place));
        }
    }

    /// All of `garbage` is not needed any more. Segments that are gone do not matter.
    pub fn note_all(&mut self, garbage: &Garbage) {
        for (key, bytes) in &garbage.0 {
            if let Some(info) = self.infos.get_mut(key) {
                info.garbage = info.written.min(info.garbage + bytes);
            }
        }
    }

    /// Nothing that has its place by now is needed any more.
    pub fn note_cleared(&mut self) {
        for info in self.infos.values_mut() {
            info.garbage = info.written;
        }
    }

    /// The segments without `gone`, as a manifest lists them, once `garbage` is given up: what of
    /// each stream comes at or before `durable` is on disk, and nothing else counts. A segment that
    /// a crash could leave empty is not listed: nothing durable points there.
    pub fn list(
        &mut self,
        gone: &[SegmentKey],
        garbage: &Garbage,
        durable: impl Fn(Stream) -> Lsn,
    ) -> Vec<SegmentInfo> {
        let mut missing: BTreeMap<SegmentKey, u64> = BTreeMap::new();
        for stream in [Stream::Values, Stream::Moved] {
            self.note_durable(stream, durable(stream));
            for record in self.undurable.get(&stream).into_iter().flatten() {
                *missing.entry((stream, record.segment)).or_default() += record.bytes;
            }
        }
        let kept = self.infos.iter().filter(|(key, _)| !gone.contains(key));
        let listed = kept.filter_map(|(key, info)| {
            let written = info.written - missing.get(key).copied().unwrap_or(0);
            (written > 0).then(|| SegmentInfo {
                written,
                garbage: written.min(info.garbage + garbage.of(*key)),
                ..*info
            })
        });
        listed.collect()
    }

    /// Forgets a segment. Who pinned it before can still read it.
    pub fn remove(&mut self, key: SegmentKey) -> Option<Rc<Segment>> {
        self.infos.remove(&key);
        Rc::make_mut(&mut self.open).remove(&key)
    }

    /// The segments of this moment.
    pub fn segments(&self) -> Segments {
        Rc::clone(&self.open)
    }

    /// What is known of each segment.
    pub fn infos(&self) -> impl Iterator<Item = &SegmentInfo> {
        self.infos.values()
    }

    /// Sizes at this moment.
    pub fn sizes(&self) -> ValueSizes {
        let mut sizes = ValueSizes::default();
        for info in self.infos.values() {
            sizes.segments += 1;
            sizes.bytes += info.bytes;
            sizes.live += info.written - info.garbage;
            sizes.garbage += info.garbage;
        }
        sizes
    }
}

/// True if what `pointing` stands for is in one of `segments`.
pub fn has(segments: &Segments, pointing: &Record) -> bool {
    let place = pointing.pointer();
    place.is_some_and(|place| segments.contains_key(&key_of(place)))
}

/// Reads the record that `pointing` stands for, and unpacks its value. Nothing but that very record
/// is ever returned.
pub async fn read(segments: &Segments, pointing: &Record) -> Result<Record> {
    let place = pointing.pointer().expect("only pointers are followed");
    let Some(segment) = segments.get(&key_of(place)) else {
        let file = PathBuf::from(place.segment.file_name(place.stream));
        let why = "a record points to it, but it is not one of the live segments";
        return Err(damaged(file, place, why));
    };
    let length = place.length as usize;
    let bytes = segment
        .file
        .read_at(u64::from(place.offset), length)
        .await?;
    let file = || segment.file.path().to_owned();
    if bytes.len() != length || crc32c::crc32c(&bytes) != place.crc {
        return Err(damaged(
            file(),
            place,
            "the value's checksum does not match",
        ));
    }
    match View::decode(&bytes).filter(|it| is_meant(*it, place, pointing)) {
        Some(record) => record
            .unpacked()
            .map_err(|damage| damaged(file(), place, damage.0)),
        None => Err(damaged(file(), place, "another record is there")),
    }
}

fn is_meant(record: View<'_>, place: Pointer, pointing: &Record) -> bool {
    record.pointer().is_none()
        && record.key() == pointing.key()
        && record.meta() == pointing.meta()
        && record.value_length() == place.value_length
}

fn damaged(file: PathBuf, place: Pointer, why: &str) -> Error {
    Error::Corrupt {
        file,
        offset: u64::from(place.offset),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Durability;
    use crate::rt::sim::{NodeId, Options, World};
    use crate::rt::{self, BLOCK_BYTES, File};
    use crate::storage::record::{KeyRef, Meta};
    use crate::storage::wal::format::Life;
    use crate::storage::wal::replay::{Floor, Found};
    use crate::storage::wal::{LogOptions, WalLimits};
    use crate::types::CoreId;

    fn record(key: &[u8], clock: u64, value: &[u8]) -> Record {
        let version = Version {
            clock,
            coordinator: 1,
        };
        let meta = Meta {
            version,
            expiry: 0,
            tombstone: false,
        };
        Record::new(meta, key, value)
    }

    fn place(offset: u32, record: &Record) -> Pointer {
        Pointer {
            stream: Stream::Values,
            segment: SegmentId(1),
            offset,
            length: record.bytes().len() as u32,
            crc: crc32c::crc32c(record.bytes()),
            value_length: record.view().value_length(),
        }
    }

    #[test]
    fn a_value_is_served_only_from_the_very_record_that_was_meant() {
        let world = World::new(Options::calm(1));
        world.run_on(NodeId(1), async {
            let path = std::path::Path::new("/data/segment");
            rt::create_dir_all(path.parent().expect("it has one"))
                .await
                .expect("a sound disk");
            let file = File::create(path).await.expect("a sound disk");
            let (first, second) = (record(b"one", 5, &[1; 3000]), record(b"two", 5, &[1; 3000]));
            let newer = record(b"one", 6, &[1; 3000]);
            let mut bytes = file.buffer(4 * BLOCK_BYTES);
            bytes.fill(0);
            for (at, record) in [(100, &first), (4100, &second), (8300, &newer)] {
                bytes[at..at + record.bytes().len()].copy_from_slice(record.bytes());
            }
            file.write_at(bytes, 0).await.expect("a sound disk");
            let segment = Segment {
                id: SegmentId(1),
                life: Life(1),
                file,
                bytes: 4 * BLOCK_BYTES as u64,
            };
            let mut values = Values::default();
            values.note_written(&Rc::new(segment), place(100, &first), Version::ZERO, Lsn(1));
            let segments = values.segments();
            let good = Record::pointing(first.view(), place(100, &first));
            let found = read(&segments, &good).await.expect("it is there");
            assert_eq!(found.bytes(), first.bytes());
            let elsewhere = Pointer {
                segment: SegmentId(2),
                ..place(100, &first)
            };
            // Each with a checksum that holds: only the record itself tells that it is another one.
            for (what, wrong) in [
                ("another key", place(4100, &second)),
                ("another version", place(8300, &newer)),
                ("a shifted place", place(101, &first)),
                (
                    "the end of the file",
                    place(4 * BLOCK_BYTES as u32 - 10, &first),
                ),
                ("no segment", elsewhere),
            ] {
                let wrong = Record::pointing(first.view(), wrong);
                let refused = read(&segments, &wrong).await;
                assert!(matches!(refused, Err(Error::Corrupt { .. })), "{what}");
            }
        });
    }

    #[test]
    fn a_packed_value_comes_back_whole_and_any_flipped_bit_is_noticed() {
        let world = World::new(Options::calm(2));
        let handle = world.handle();
        world.run_on(NodeId(1), async move {
            let path = std::path::Path::new("/data/segment");
            rt::create_dir_all(path.parent().expect("it has one"))
                .await
                .expect("a sound disk");
            let file = File::create(path).await.expect("a sound disk");
            let plain = record(b"key", 5, &b"one and two and ".repeat(200));
            let mut packer = crate::storage::compress::Packer::default();
            let packed = plain.packed(&mut packer).expect("it repeats itself");
            let mut bytes = file.buffer(BLOCK_BYTES);
            bytes.fill(0);
            bytes[100..][..packed.bytes().len()].copy_from_slice(packed.bytes());
            file.write_at(bytes, 0).await.expect("a sound disk");
            let segment = Segment {
                id: SegmentId(1),
                life: Life(1),
                file,
                bytes: BLOCK_BYTES as u64,
            };
            let at = place(100, &packed);
            let mut values = Values::default();
            values.note_written(&Rc::new(segment), at, Version::ZERO, Lsn(1));
            let segments = values.segments();
            let pointing = Record::pointing(plain.view(), at);
            let found = read(&segments, &pointing).await.expect("it is there");
            assert_eq!(found, plain);
            for bit in 0..packed.bytes().len() as u64 * 8 {
                let (byte, bit) = (100 + bit / 8, (bit % 8) as u8);
                assert!(handle.disk(NodeId(1)).flip_bit(path, byte, bit));
                let refused = read(&segments, &pointing).await;
                let is_damage = matches!(refused, Err(Error::Corrupt { .. }));
                assert!(is_damage, "byte {byte}, bit {bit}: {refused:?}");
                assert!(handle.disk(NodeId(1)).flip_bit(path, byte, bit));
            }
            // Who was told a length by the pointer must not be given a value of another one.
            let other = at.value_length + 1;
            let longer = record(b"key", 5, &vec![0; other as usize]);
            let wrong = Pointer {
                value_length: other,
                ..at
            };
            let refused = read(&segments, &Record::pointing(longer.view(), wrong)).await;
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
            // Checksums that hold, and a length that the packed value does not have.
            let mut bad = packed.bytes().to_vec();
            let length_at = bad.len() - packed.view().value().len();
            bad[length_at..][..4].copy_from_slice(&(3u32 << 20).to_le_bytes());
            let view = View::decode(&bad).expect("the form is that of a record");
            let refused = view.unpacked().expect_err("no byte stands for so many");
            assert!(refused.0.contains("length"), "{refused:?}");
        });
    }

    /// Else each large value would take memory until the next flush; or a segment would be listed
    /// of which a power cut may leave nothing, and the next start would take that for damage.
    #[test]
    fn what_may_not_be_durable_is_known_record_by_record_and_no_longer_than_that() {
        let one = record(b"one", 1, &[1; 2000]);
        let each = bytes_of(place(4096, &one));
        let mut values = Values::default();
        for stream in [Stream::Values, Stream::Moved] {
            let info = SegmentInfo {
                stream,
                id: SegmentId(1),
                bytes: 65_536,
                written: 0,
                garbage: 0,
                version_max: Version::ZERO,
            };
            values.infos.insert((stream, info.id), info);
        }
        let write = |values: &mut Values, stream, lsn| {
            let place = Pointer {
                stream,
                ..place(4096, &one)
            };
            values.count_written(place, Version::ZERO, Lsn(lsn));
        };
        (10..14).for_each(|lsn| write(&mut values, Stream::Values, lsn));
        (1..3).for_each(|lsn| write(&mut values, Stream::Moved, lsn));
        let kept = |values: &Values| values.undurable.values().map(VecDeque::len).sum::<usize>();
        assert_eq!(kept(&values), 6);
        // The numbers of the two logs have nothing to do with each other.
        values.note_durable(Stream::Values, Lsn(11));
        assert_eq!(kept(&values), 4);
        let listed = |values: &mut Values, durable: [u64; 2]| {
            let durable = |stream| match stream {
                Stream::Moved => Lsn(durable[1]),
                _ => Lsn(durable[0]),
            };
            let listed = values.list(&[], &Garbage::default(), durable);
            let written = listed.iter().map(|info| (info.stream, info.written / each));
            written.collect::<Vec<_>>()
        };
        assert_eq!(listed(&mut values, [11, 0]), [(Stream::Values, 2)]);
        assert_eq!(
            listed(&mut values, [12, 1]),
            [(Stream::Values, 3), (Stream::Moved, 1)]
        );
        assert_eq!(kept(&values), 2);
        values.note_durable(Stream::Values, Lsn(u64::MAX));
        values.note_durable(Stream::Moved, Lsn(u64::MAX));
        assert_eq!(kept(&values), 0, "kept though it is durable");
    }

    /// The same, at the log: a manifest may be long in coming.
    #[test]
    fn what_was_synced_is_forgotten_with_the_next_write() {
        let world = World::new(Options::calm(3));
        world.run_on(NodeId(1), async {
            let dir = PathBuf::from("/data");
            rt::create_dir_all(&dir).await.expect("a sound disk");
            let options = LogOptions {
                dir,
                stream: Stream::Values,
                durability: Durability::Periodic(Duration::from_secs(3600)),
                limits: WalLimits {
                    segment_bytes: 64 * BLOCK_BYTES as u64,
                    batch_bytes_max: 4 * BLOCK_BYTES,
                },
                fate: Rc::default(),
            };
            let floor = Floor::start(CoreId(0), Stream::Values);
            let log = Wal::start(options, Found::nothing(floor, std::iter::empty())).await;
            let mut values = Values::default();
            let mut kept = Vec::new();
            for lsn in 1..=20 {
                let one = record(b"one", lsn, &[1; 2000]);
                let position = KeyRef::of(b"one").position;
                let admitted = log.wait_admitted(one.bytes().len(), 1).await;
                admitted.expect("a sound disk");
                log.append_value(Lsn(lsn), position, &one, one.bytes());
                log.wait_written(Lsn(lsn)).await.expect("a sound disk");
                for placed in log.take_placed() {
                    values.note_placed(&placed, &log);
                }
                kept.push(values.undurable[&Stream::Values].len());
                if lsn == 19 {
                    log.wait_durable(Lsn(lsn)).await.expect("a sound disk");
                }
            }
            assert_eq!(kept[17..], [18, 19, 1]);
        });
    }

    #[test]
    fn garbage_is_never_more_than_what_was_written() {
        let one = record(b"one", 1, &[1; 2000]);
        let mut garbage = Garbage::default();
        (0..3).for_each(|_| garbage.add(place(4096, &one)));
        let info = SegmentInfo {
            stream: Stream::Values,
            id: SegmentId(1),
            bytes: 65_536,
            written: 3000,
            garbage: 0,
            version_max: Version::ZERO,
        };
        let mut values = Values::default();
        values.infos.insert((info.stream, info.id), info);
        let listed = values.list(&[], &garbage, |_| Lsn(0));
        assert_eq!(listed[0].garbage, 3000, "counted twice");
        assert_eq!(values.sizes().garbage, 0, "a list changes nothing");
        values.note_all(&garbage);
        assert_eq!((values.sizes().live, values.sizes().garbage), (0, 3000));
        assert!(
            values
                .list(&[(info.stream, info.id)], &garbage, |_| Lsn(0))
                .is_empty()
        );
    }
}
