//! Follows the pointers of tables into the value log, to see whether what was meant is there.
//!
//! A pointer need not lead anywhere if a newer table has its key: the collector asks only whether a
//! record is its key's newest. So where one leads to nothing, the newer tables are asked. If one of
//! them that may have the key is damaged, then a read ends there, and that damage is named already.
//!
//! A value is read piece by piece. Of files only some are open at a time; tables that were asked
//! stay open, with a part of their filters and indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::rt::File;
use crate::storage::manifest::Manifest;
use crate::storage::record::{
    KeyRef, PACKED_VALUE_BYTES_MAX, Pointer, RECORD_HEADER_BYTES, Record, View,
};
use crate::storage::sstable::verify::Probe;
use crate::storage::sstable::{TableId, TableInfo};
use crate::storage::vlog::SegmentKey;
use crate::types::Version;

/// Bytes that are read at a time: any key is in the first of them.
const READ_BYTES: usize = 1 << 20;
/// Segments that are open at a time.
const OPEN_MAX: usize = 64;

/// A place where something is missing that a table points to.
pub struct Hole {
    /// The file of the value log.
    pub file: PathBuf,
    /// Where in it the record should be.
    pub offset: u64,
    /// Who points there, and what is the matter.
    pub what: String,
}

/// Where the pointers of one core lead.
pub struct Follower {
    dir: PathBuf,
    listed: BTreeSet<SegmentKey>,
    /// What is not newer than this is dead.
    cleared: Version,
    /// The oldest first.
    tables: Vec<TableInfo>,
    /// The table that is looked at.
    from: usize,
    open: BTreeMap<SegmentKey, File>,
    probes: BTreeMap<TableId, Option<Probe>>,
}

impl Follower {
    /// For the core whose manifest, in `dir`, this is.
    pub fn new(dir: &Path, manifest: &Manifest) -> Follower {
        let segments = manifest.segments.iter();
        Follower {
            dir: dir.to_owned(),
            listed: segments.map(|info| (info.stream, info.id)).collect(),
            cleared: manifest.cleared,
            tables: manifest.tables.clone(),
            from: 0,
            open: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    /// The pointers that come now are those of table `id`, a live one.
    pub fn enter(&mut self, id: TableId) {
        let at = self.tables.iter().position(|info| info.id == id);
        self.from = at.expect("live tables are in the manifest");
    }

    /// Follows `pointing`, a pointer.
    pub async fn follow(&mut self, pointing: &Record) -> Result<Option<Hole>> {
        let place = pointing.pointer().expect("only pointers are followed");
        let key = (place.stream, place.segment);
        let is_listed = self.listed.contains(&key);
        let why = match is_listed && self.open(key).await? {
            true => self.judge(&self.open[&key], place, pointing).await?,
            false => Some("that is no live segment of the value log, or there is no such file"),
        };
        let Some(why) = why else {
            return Ok(None);
        };
        if pointing.meta().version <= self.cleared || self.is_replaced(pointing).await? {
            return Ok(None);
        }
        let table = self.tables[self.from].id.file_name();
        Ok(Some(Hole {
            file: self.dir.join(place.segment.file_name(place.stream)),
            offset: u64::from(place.offset),
            what: format!("{table} points to a record here: {why}"),
        }))
    }

    /// Opens the file of a segment; false if it is not there.
    async fn open(&mut self, key: SegmentKey) -> Result<bool> {
        if self.open.contains_key(&key) {
            return Ok(true);
        }
        if self.open.len() == OPEN_MAX
            && let Some((_, file)) = self.open.pop_first()
        {
            file.close().await;
        }
        let path = self.dir.join(key.1.file_name(key.0));
        match File::open_to_read(&path).await {
            Ok(file) => {
                self.open.insert(key, file);
                Ok(true)
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is wrong with the record at `place`, if it is not the one that `pointing` stands for.
    async fn judge(
        &self,
        file: &File,
        place: Pointer,
        pointing: &Record,
    ) -> Result<Option<&'static str>> {
        let length = place.length as usize;
        let (mut done, mut crc, mut is_meant) = (0, 0, false);
        let mut packed: Option<Vec<u8>> = None;
        while done < length {
            let wanted = READ_BYTES.min(length - done);
            let bytes = file
                .read_at(u64::from(place.offset) + done as u64, wanted)
                .await?;
            if bytes.len() != wanted {
                return Ok(Some("the file ends within it"));
            }
            if done == 0 {
                // A piece of the value is as good as the whole for the form of a record.
                let view = View::decode(&bytes).filter(|view| view.pointer().is_none());
                is_meant = view
                    .is_some_and(|it| it.key() == pointing.key() && it.meta() == pointing.meta());
                let is_packed = view.is_some_and(View::is_packed);
                let besides = RECORD_HEADER_BYTES + pointing.key().len();
                is_meant &= match is_packed {
                    true => length <= besides + PACKED_VALUE_BYTES_MAX,
                    false => length == besides + place.value_length as usize,
                };
                packed = (is_packed && is_meant).then(Vec::new);
            }
            if let Some(packed) = &mut packed {
                packed.extend_from_slice(&bytes);
            }
            crc = crc32c::crc32c_append(crc, &bytes);
            done += wanted;
        }
        Ok(match (crc == place.crc, is_meant) {
            (true, true) => packed.and_then(|bytes| why_not(&bytes, place)),
            (true, false) => Some("another record is there"),
            (false, _) => Some("the checksum of the value does not match"),
        })
    }

    /// True if a newer table has the key of `pointing`, or may have had it before it was damaged.
    async fn is_replaced(&mut self, pointing: &Record) -> Result<bool> {
        let key = KeyRef::of(pointing.key());
        for info in &self.tables[self.from + 1..] {
            if !info.covers(key.position, key.key) {
                continue;
            }
            if !self.probes.contains_key(&info.id) {
                let probe = Probe::open(&self.dir, info).await?;
                self.probes.insert(info.id, probe);
            }
            let Some(Some(probe)) = self.probes.get_mut(&info.id) else {
                return Ok(true);
            };
            if probe.has(&key).await? != Some(false) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What is wrong with a packed record at `place`, whose checksum holds.
fn why_not(bytes: &[u8], place: Pointer) -> Option<&'static str> {
    let unpacked = View::decode(bytes).map(View::unpacked);
    match unpacked {
        Some(Ok(record)) if record.view().value_length() == place.value_length => None,
        Some(Err(damage)) => Some(damage.0),
        _ => Some("another record is there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Compression;
    use crate::rt;
    use crate::rt::sim::{NodeId, Options, World};
    use crate::storage::manifest::SegmentInfo;
    use crate::storage::record::Meta;
    use crate::storage::sstable::TableWriter;
    use crate::storage::wal::format::{SegmentId, Stream};
    use crate::types::CoreId;

    const DIR: &str = "/data/core-000";

    fn record(key: &[u8], clock: u64, value: Option<&[u8]>) -> Record {
        let version = Version {
            clock,
            coordinator: 1,
        };
        let meta = Meta {
            version,
            expiry: 0,
            tombstone: value.is_none(),
        };
        Record::new(meta, key, value.unwrap_or_default())
    }

    fn pointing(segment: u64, offset: u32, record: &Record) -> Record {
        let place = Pointer {
            stream: Stream::Moved,
            segment: SegmentId(segment),
            offset,
            length: record.bytes().len() as u32,
            crc: crc32c::crc32c(record.bytes()),
            value_length: record.view().value_length(),
        };
        Record::pointing(record.view(), place)
    }

    async fn table(id: u64, record: &Record) -> TableInfo {
        let writer =
            TableWriter::create(Path::new(DIR), TableId(id), TableId(id), Compression::Lz4).await;
        let mut writer = writer.expect("a sound disk");
        let position = KeyRef::of(record.key()).position;
        let added = writer.add(record, position).await;
        added.expect("a sound disk");
        writer.finish().await.expect("a sound disk")
    }

    /// A core with segment 1, in which `held` lies from byte 5000 on, and with these tables.
    async fn core(held: &Record, tables: &[&Record]) -> Manifest {
        let made = rt::create_dir_all(Path::new(DIR)).await;
        made.expect("a sound disk");
        let path = Path::new(DIR).join(SegmentId(1).file_name(Stream::Moved));
        let file = File::create(&path).await.expect("a sound disk");
        let mut bytes = file.buffer(4 << 20);
        bytes.fill(0);
        bytes[5000..][..held.bytes().len()].copy_from_slice(held.bytes());
        file.write_at(bytes, 0).await.expect("a sound disk");
        let mut manifest = Manifest::new(CoreId(0), 1);
        for record in tables {
            let id = manifest.take_id();
            manifest.push(table(id.0, record).await);
        }
        manifest.segments.push(SegmentInfo {
            stream: Stream::Moved,
            id: SegmentId(1),
            bytes: 4 << 20,
            written: 0,
            garbage: 0,
            version_max: Version::ZERO,
        });
        manifest
    }

    async fn follow(manifest: &Manifest, pointing: &Record) -> Option<String> {
        let mut follower = Follower::new(Path::new(DIR), manifest);
        follower.enter(manifest.tables[0].id);
        let hole = follower.follow(pointing).await.expect("a sound disk");
        hole.map(|hole| format!("{} at {}: {}", hole.file.display(), hole.offset, hole.what))
    }

    fn on(main: impl Future<Output = ()> + 'static) {
        World::new(Options::calm(1)).run_on(NodeId(1), main);
    }

    /// Else what a read meets would come as a surprise after a check that found nothing.
    #[test]
    fn a_pointer_leads_to_the_very_record_or_to_a_hole() {
        on(async {
            // Longer than what is read at a time.
            let held = record(b"key", 7, Some(&vec![3; 3 << 20]));
            let good = pointing(1, 5000, &held);
            let manifest = core(&held, &[&good]).await;
            assert_eq!(follow(&manifest, &good).await, None);
            let other = record(b"yek", 7, Some(&vec![3; 3 << 20]));
            let mut place = pointing(1, 5000, &other).pointer().expect("it is one");
            place.crc = crc32c::crc32c(held.bytes());
            for (what, wrong) in [
                ("another record", Record::pointing(other.view(), place)),
                ("checksum", pointing(1, 5001, &held)),
                ("ends within", pointing(1, 3 << 20, &held)),
                ("no live segment", pointing(2, 5000, &held)),
            ] {
                let hole = follow(&manifest, &wrong).await.expect(what);
                assert!(hole.contains(what), "{hole}");
                assert!(hole.contains("000000000001.table"), "{hole}");
            }
        });
    }

    /// Else a packed value would be taken for good that no read can unpack.
    #[test]
    fn a_pointer_to_a_packed_value_is_followed_to_its_end() {
        let mut random = fastrand::Rng::with_seed(1);
        let words: Vec<[u8; 64]> = (0..40).map(|_| [(); 64].map(|()| random.u8(..))).collect();
        let mut value: Vec<u8> = (0..30_000)
            .flat_map(|_| words[random.usize(..words.len())])
            .collect();
        // More than is read at a time, packed too.
        value.extend((0..3 << 19).map(|_| random.u8(..)));
        let plain = record(b"key", 7, Some(&value));
        let mut packer = crate::storage::compress::Packer::default();
        let held = plain.packed(&mut packer).expect("words repeat");
        assert!(held.bytes().len() > READ_BYTES);
        let mut bytes = held.bytes().to_vec();
        let length_at = bytes.len() - held.view().value().len();
        bytes[length_at] ^= 1;
        on(async move {
            let good = pointing(1, 5000, &held);
            let manifest = core(&held, &[&good]).await;
            assert_eq!(follow(&manifest, &good).await, None);
        });
        // One that no program has written: its checksum holds, and it cannot be unpacked.
        on(async move {
            let bad = Record::decode(&bytes).expect("the form is that of a record");
            let wrong = pointing(1, 5000, &bad);
            let manifest = core(&bad, &[&wrong]).await;
            let hole = follow(&manifest, &wrong).await.expect("it is damaged");
            assert!(hole.contains("compressed"), "{hole}");
        });
    }

    /// Else a sound directory would be called damaged: the collector leaves such pointers behind.
    #[test]
    fn a_pointer_that_nobody_follows_may_lead_to_nothing() {
        on(async {
            let held = record(b"key", 7, Some(&[3; 999]));
            let lost = pointing(2, 5000, &held);
            let (gone, elsewhere) = (record(b"key", 8, None), record(b"another", 8, Some(b"x")));
            let mut manifest = core(&held, &[&lost, &elsewhere, &gone]).await;
            assert_eq!(follow(&manifest, &lost).await, None, "a newer table has it");
            manifest.tables.pop();
            let hole = follow(&manifest, &lost).await;
            assert!(hole.is_some(), "no newer table has that key");
            manifest.cleared = held.meta().version;
            assert_eq!(follow(&manifest, &lost).await, None, "it was cleared");
        });
    }
}
