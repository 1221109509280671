//! The manifest: which tables are live, and what else a core must know before it replays its log.
//!
//! file := magic 8 bytes | format u32 | body length u32 | body | crc u32 | zeros to 4 KiB
//! body := core u16 | cores u16 | next id u64 | log floor (segment u64, sequence u64) | cleared (clock u64, coordinator u32)
//!         | version max (likewise) | count u32 | table*            (little endian)
//!
//! A table is what `TableInfo::encode` writes. The crc32c covers all bytes before it.
//!
//! It is small and always written whole: to `MANIFEST.tmp`, synced, renamed to `MANIFEST`, and the
//! directory synced. A crash leaves the old one or the new one. Invariants: tables stand from the
//! oldest to the newest; tables of one run are adjacent; every id is below `next_id`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::storage::codec::Reader;
use crate::storage::sstable::{TableId, TableInfo};
use crate::storage::wal::format::SegmentId;
use crate::storage::wal::replay::Floor;
use crate::types::{CoreId, Version};

/// The name of the manifest in its core's directory.
pub const MANIFEST: &str = "MANIFEST";
/// The name of the manifest that is being written.
pub const MANIFEST_TMP: &str = "MANIFEST.tmp";

/// The newest format that this program reads, and the one it writes.
const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"QUOITMAN";
const HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
/// A log's segments are numbered from the core's number on, shifted by this: 2^48 will do for each.
const CORE_SHIFT: u32 = 48;
const _: () = assert!(HEADER_BYTES == MAGIC.len() + 4 + 4);

/// A core's live tables and the facts that go with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Which core's data this is. Another one's is the caller's to refuse.
    pub core: CoreId,
    /// How many cores the node had. Another count is the caller's to refuse.
    pub cores: u16,
    /// The next file gets this number.
    pub next_id: u64,
    /// Where replay of the log begins.
    pub floor: Floor,
    /// Every record at or below this version is dead (FLUSHALL).
    pub cleared: Version,
    /// No version in the tables is above this: the clock starts higher.
    pub version_max: Version,
    /// The live tables, the oldest first.
    pub tables: Vec<TableInfo>,
}

impl Manifest {
    /// The manifest of a core without data.
    pub fn new(core: CoreId, cores: u16) -> Manifest {
        assert!(core.0 < cores);
        Manifest {
            core,
            cores,
            next_id: 1,
            // No two cores have a segment of the same number, so that neither a file nor a batch
            // that strays from one core's log into another's is taken for its own.
            floor: Floor {
                segment: SegmentId(u64::from(core.0) << CORE_SHIFT | 1),
                sequence: 1,
            },
            cleared: Version::ZERO,
            version_max: Version::ZERO,
            tables: Vec::new(),
        }
    }

    /// Takes the next free number. It is spent even if its file never becomes live.
    pub fn take_id(&mut self) -> TableId {
        self.next_id += 1;
        TableId(self.next_id - 1)
    }

    /// Adds a table that was flushed: the newest.
    pub fn push(&mut self, table: TableInfo) {
        self.version_max = self.version_max.max(table.version_max);
        self.tables.push(table);
        self.check();
    }

    /// Puts what a merge wrote in the place of what it read. The inputs must be live and adjacent.
    pub fn replace(&mut self, inputs: &[TableId], outputs: Vec<TableInfo>) {
        let range = self.range_of(inputs);
        let version_max = outputs.iter().map(|table| table.version_max).max();
        assert!(
            version_max <= Some(self.version_max),
            "a merge makes no versions"
        );
        self.tables.splice(range, outputs);
        self.check();
    }

    /// Takes out the tables in which every record is dead by `cleared`; their files may be removed
    /// once this manifest is stored.
    pub fn take_cleared(&mut self) -> Vec<TableInfo> {
        let cleared = self.cleared;
        self.tables
            .extract_if(.., |table| table.version_max <= cleared)
            .collect()
    }

    /// Of `names` in the core's directory, the table files that are not live: left by a crash
    /// between writing a table and storing the manifest, or between that and removing the inputs.
    /// Their numbers are not given out again, so remove them before or after, as you like.
    pub fn take_orphans(&mut self, names: &[String]) -> Vec<String> {
        let live: BTreeSet<TableId> = self.tables.iter().map(|table| table.id).collect();
        let mut orphans = Vec::new();
        for name in names {
            let Some(id) = TableId::parse(name) else {
                continue;
            };
            if !live.contains(&id) {
                orphans.push(name.clone());
                self.next_id = self.next_id.max(id.0.saturating_add(1));
            }
        }
        orphans
    }

    /// Reads the manifest of `dir`; `None` if there is none. A half-written one is removed. What it
    /// says is durable when this returns, whatever cut the last [`Manifest::store`] short, so that
    /// the files it does not name may go.
    pub async fn load(dir: &Path) -> Result<Option<Manifest>> {
        remove_if_there(&dir.join(MANIFEST_TMP)).await?;
        sync_dir(dir).await?;
        Manifest::read(dir).await
    }

    /// Reads the manifest of `dir`, and changes nothing; `None` if there is none.
    pub async fn read(dir: &Path) -> Result<Option<Manifest>> {
        let file = match File::open_to_read(&dir.join(MANIFEST)).await {
            Ok(file) => file,
            Err(failure) if failure.is_not_found() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let bytes = read_whole(&file).await;
        file.close().await;
        Manifest::decode(&bytes?, &dir.join(MANIFEST)).map(Some)
    }

    /// Makes this the manifest of `dir`. The tables it names must be synced, and their names too.
    ///
    /// After an error other than [`Error::Uncertain`] the old manifest is in force and nothing has
    /// changed: go on with the old state, and call this again when there is space. After
    /// [`Error::Uncertain`] a crash may leave the old one or the new one, and only reopening tells:
    /// remove no file that either of them names, and store no other manifest.
    pub async fn store(&self, dir: &Path) -> Result<()> {
        self.check();
        let (tmp, name) = (dir.join(MANIFEST_TMP), dir.join(MANIFEST));
        remove_if_there(&tmp).await?;
        if let Err(failure) = write_new(&tmp, &self.encode()).await {
            // If it cannot be removed now, the next call or the next start does it.
            let _ = remove_if_there(&tmp).await;
            return Err(failure);
        }
        let installed = match rt::rename(&tmp, &name).await {
            Ok(()) => sync_dir(dir).await,
            Err(failure) => Err(failure),
        };
        installed.map_err(|failure| {
            log::error!("{failure}; which manifest is in force shows at the next start");
            Error::Uncertain
        })
    }

    /// Its bytes, in whole 4 KiB blocks.
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.core.0.to_le_bytes());
        body.extend_from_slice(&self.cores.to_le_bytes());
        body.extend_from_slice(&self.next_id.to_le_bytes());
        body.extend_from_slice(&self.floor.segment.0.to_le_bytes());
        body.extend_from_slice(&self.floor.sequence.to_le_bytes());
        for version in [self.cleared, self.version_max] {
            body.extend_from_slice(&version.clock.to_le_bytes());
            body.extend_from_slice(&version.coordinator.to_le_bytes());
        }
        let count = u32::try_from(self.tables.len()).expect("tables are merged long before");
        body.extend_from_slice(&count.to_le_bytes());
        self.tables.iter().for_each(|table| table.encode(&mut body));
        let length = u32::try_from(body.len()).expect("a manifest is a few KiB");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        assert_eq!(bytes.len(), HEADER_BYTES);
        bytes.append(&mut body);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    /// Checks and reads the bytes of the file `path`.
    fn decode(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let corrupt = |offset: usize, why: &str| Error::Corrupt {
            file: path.to_owned(),
            offset: offset as u64,
            why: why.to_owned(),
        };
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len()) != Some(&MAGIC) {
            return Err(corrupt(0, "this is not a manifest"));
        }
        let format = reader.u32().unwrap_or(0);
        if format > FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has manifest format {format}; this version of quoit reads up to {FORMAT}"
            )));
        }
        let length = reader.u32().map_or(usize::MAX, |length| length as usize);
        let parts = reader.take(length).zip(reader.u32());
        let Some((body, crc)) = parts else {
            return Err(corrupt(bytes.len(), "it is cut short"));
        };
        let end = HEADER_BYTES + length;
        if crc != crc32c::crc32c(&bytes[..end]) || format != FORMAT {
            return Err(corrupt(end, "the checksum does not match"));
        }
        let padding = &bytes[end + CRC_BYTES..];
        let is_whole = bytes.len().is_multiple_of(BLOCK_BYTES) && padding.len() < BLOCK_BYTES;
        if !is_whole || padding.iter().any(|&byte| byte != 0) {
            return Err(corrupt(
                end + CRC_BYTES,
                "there is more than a manifest, or less",
            ));
        }
        Manifest::decode_body(body).ok_or_else(|| corrupt(HEADER_BYTES, "the body is malformed"))
    }

    fn decode_body(body: &[u8]) -> Option<Manifest> {
        let mut reader = Reader::new(body);
        let version = |reader: &mut Reader<'_>| {
            Some(Version {
                clock: reader.u64()?,
                coordinator: reader.u32()?,
            })
        };
        let mut manifest = Manifest {
            core: CoreId(reader.u16()?),
            cores: reader.u16()?,
            next_id: reader.u64()?,
            floor: Floor {
                segment: SegmentId(reader.u64()?),
                sequence: reader.u64()?,
            },
            cleared: version(&mut reader)?,
            version_max: version(&mut reader)?,
            tables: Vec::new(),
        };
        for _ in 0..reader.u32()? {
            manifest.tables.push(TableInfo::decode(&mut reader)?);
        }
        (reader.is_empty() && manifest.is_sane()).then_some(manifest)
    }

    /// What `store` asserts and `load` checks.
    fn is_sane(&self) -> bool {
        let ids: BTreeSet<TableId> = self.tables.iter().map(|table| table.id).collect();
        let runs = self.tables.chunk_by(|one, two| one.run == two.run);
        let run_ids: BTreeSet<TableId> = runs.clone().map(|run| run[0].run).collect();
        let disjoint =
            |run: &[TableInfo]| run.windows(2).all(|two| two[0].last_key < two[1].first_key);
        self.core.0 < self.cores
            && ids.len() == self.tables.len()
            && ids.last().is_none_or(|last| last.0 < self.next_id)
            && self
                .tables
                .iter()
                .all(|table| table.version_max <= self.version_max)
            && run_ids.len() == runs.clone().count()
            && runs.clone().all(disjoint)
    }

    fn check(&self) {
        assert!(
            self.is_sane(),
            "the live tables contradict each other: {self:?}"
        );
    }

    fn range_of(&self, inputs: &[TableId]) -> Range<usize> {
        let first = inputs.first().expect("a merge has inputs");
        let start = self.tables.iter().position(|table| table.id == *first);
        let start = start.expect("inputs are live");
        let range = start..start + inputs.len();
        let found = self.tables.get(range.clone()).unwrap_or_default();
        assert!(
            found.iter().map(|table| &table.id).eq(inputs),
            "inputs are live and adjacent"
        );
        range
    }
}

async fn remove_if_there(path: &Path) -> Result<()> {
    match rt::remove_file(path).await {
        Err(failure) if !failure.is_not_found() => Err(failure),
        _ => Ok(()),
    }
}

async fn sync_dir(dir: &Path) -> Result<()> {
    if rt::planted(Bug::NoDirectorySync) {
        return Ok(());
    }
    rt::sync_dir(dir).await
}

async fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = File::create(path).await?;
    let mut buffer = file.buffer(bytes.len());
    buffer.copy_from_slice(bytes);
    let mut written = file.write_at(buffer, 0).await;
    if written.is_ok() {
        written = file.sync().await;
    }
    file.close().await;
    written
}

async fn read_whole(file: &File) -> Result<Vec<u8>> {
    let length = file.len().await?;
    let mut bytes = Vec::new();
    // In pieces, so that a length that is damaged asks for no absurd buffer.
    while (bytes.len() as u64) < length {
        let piece = file.read_at(bytes.len() as u64, 256 * 1024).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::sim::{NodeId, Options, World};
    use crate::storage::sstable::KeyBuf;
    use crate::types::Position;
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::rc::Rc;
    use std::time::Duration;

    const NODE: NodeId = NodeId(1);

    fn dir() -> PathBuf {
        PathBuf::from("/data/core-0")
    }

    fn world(seed: u64, planted: &[Bug]) -> World {
        let mut options = Options::random(seed);
        options.planted = planted.to_vec();
        let world = World::new(options);
        world.run_on(NODE, async {
            rt::create_dir_all(&dir()).await.expect("a sound disk")
        });
        world
    }

    fn table(id: u64) -> TableInfo {
        let key = |key: u8| KeyBuf {
            position: Position(u32::from(key)),
            key: vec![key; 3],
        };
        TableInfo {
            id: TableId(id),
            run: TableId(id),
            level: 0,
            bytes: 8192,
            records: 10,
            tombstones: 3,
            first_key: key(1),
            last_key: key(200),
            version_max: Version {
                clock: id,
                coordinator: 1,
            },
            half_expired_at: 0,
        }
    }

    /// The manifest after `tables` flushes.
    fn manifest(tables: u64) -> Manifest {
        let mut manifest = Manifest::new(CoreId(0), 4);
        for _ in 0..tables {
            let id = manifest.take_id();
            manifest.push(table(id.0));
        }
        manifest
    }

    #[test]
    fn a_manifest_gives_back_what_was_stored() {
        for tables in [0, 1, 5, 300] {
            let world = world(tables, &[]);
            let stored = manifest(tables);
            let expected = stored.clone();
            world.run_on(NODE, async move {
                assert_eq!(Manifest::load(&dir()).await.expect("a sound disk"), None);
                stored.store(&dir()).await.expect("a sound disk");
            });
            world.crash_node(NODE);
            let found = world.run_on(NODE, async { Manifest::load(&dir()).await });
            assert_eq!(found.expect("a sound disk"), Some(expected));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_manifest_is_noticed() {
        let good = manifest(3).encode();
        let path = dir().join(MANIFEST);
        assert_eq!(
            Manifest::decode(&good, &path).expect("undamaged"),
            manifest(3)
        );
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match Manifest::decode(&bad, &path) {
                Err(Error::Corrupt { file, .. }) => assert_eq!(file, path),
                Err(Error::Setup(why)) => assert!(why.contains("format"), "bit {bit}: {why}"),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
        let content = good
            .iter()
            .rposition(|&byte| byte != 0)
            .expect("not all zeros");
        for length in 0..=content {
            let cut = Manifest::decode(&good[..length], &path);
            assert!(matches!(cut, Err(Error::Corrupt { .. })), "cut at {length}");
        }
        let longer = [&good[..], &[0; 4096]].concat();
        assert!(
            Manifest::decode(&longer, &path).is_err(),
            "a manifest and something else"
        );
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = manifest(1).encode();
        bytes[MAGIC.len()] = FORMAT as u8 + 1;
        match Manifest::decode(&bytes, &dir()) {
            Err(Error::Setup(why)) => assert!(why.contains("format 2"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_right_checksum_over_a_wrong_body_is_an_error_not_a_crash() {
        let good = manifest(4).encode();
        let length = u32::from_le_bytes(good[12..16].try_into().expect("four bytes")) as usize;
        let end = HEADER_BYTES + length;
        for seed in 0..3000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bad = good.clone();
            bad[random.usize(HEADER_BYTES..end)] ^= 1 << random.u8(0..8);
            let crc = crc32c::crc32c(&bad[..end]);
            bad[end..end + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
            if let Ok(manifest) = Manifest::decode(&bad, &dir()) {
                manifest.check();
            }
        }
    }

    /// Above the ids in use.
    const FIRST_ID: u64 = 10;

    /// The manifests of a run are told apart by their next id.
    #[derive(Default)]
    struct Progress {
        tried: Cell<u64>,
        stored: Cell<u64>,
    }

    /// Reopens, and stores one manifest after the other until the end comes from outside. Returns
    /// only if it finds another manifest than it may.
    async fn store_on(progress: Rc<Progress>) {
        let found = Manifest::load(&dir()).await.expect("never damaged");
        let count = found.map_or(0, |manifest| manifest.next_id - FIRST_ID);
        if count < progress.stored.get() || count > progress.tried.get() {
            return;
        }
        // What was read is what stays, whatever happens next.
        progress.stored.set(count);
        for count in count + 1.. {
            progress.tried.set(count);
            let next = Manifest {
                next_id: FIRST_ID + count,
                ..manifest(2)
            };
            next.store(&dir()).await.expect("no errors, only crashes");
            progress.stored.set(count);
        }
    }

    /// Four lives, each ended by a power cut or `kill -9` at a random moment, while reopening too.
    /// How many manifests were stored; `None` if one of them was lost.
    fn survive(seed: u64, planted: &[Bug]) -> Option<u64> {
        let world = world(seed, planted);
        let mut random = fastrand::Rng::with_seed(seed);
        let progress = Rc::new(Progress::default());
        for _ in 0..4 {
            let main = |_: rt::Core<()>| store_on(Rc::clone(&progress));
            let _mains = world.start_node(NODE, 1, main);
            let micros = if random.bool() { 1_000 } else { 30_000 };
            world.run_for(Duration::from_micros(random.u64(0..micros)));
            if world.node_ended(NODE) {
                return None;
            }
            if random.bool() {
                world.crash_node(NODE);
            } else {
                world.kill_node(NODE);
            }
        }
        Some(progress.stored.get())
    }

    #[test]
    fn a_crash_at_any_moment_leaves_the_old_manifest_or_the_new_one() {
        let mut stored = 0;
        for seed in 0..600 {
            let survived = survive(seed, &[]);
            stored += survived.unwrap_or_else(|| panic!("seed {seed}: a stored manifest was lost"));
        }
        assert!(stored > 600, "the lives are too short to store anything");
    }

    #[test]
    fn without_directory_syncs_some_crash_loses_a_manifest() {
        // If this fails, the test above proves nothing.
        let lost = (0..200).filter(|&seed| survive(seed, &[Bug::NoDirectorySync]).is_none());
        assert!(lost.count() > 0);
    }

    #[test]
    fn a_full_disk_leaves_the_old_manifest_in_force_and_can_be_tried_again() {
        let world = world(1, &[]);
        let handle = world.handle();
        world.run_on(NODE, async move {
            let disk = handle.disk(NODE);
            manifest(1).store(&dir()).await.expect("a sound disk");
            disk.leave_free(0);
            let failure = manifest(2).store(&dir()).await.expect_err("no room");
            assert!(failure.is_disk_full(), "{failure}");
            assert_eq!(
                disk.files(),
                [dir().join(MANIFEST)],
                "a part was left behind"
            );
            assert_eq!(
                Manifest::load(&dir()).await.expect("sound"),
                Some(manifest(1))
            );
            disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
            manifest(2)
                .store(&dir())
                .await
                .expect("there is room again");
            assert_eq!(
                Manifest::load(&dir()).await.expect("sound"),
                Some(manifest(2))
            );
        });
    }

    #[test]
    fn errors_say_truly_whether_the_old_manifest_is_in_force() {
        for seed in 0..300 {
            let world = world(seed, &[]);
            let handle = world.handle();
            let outcome = world.run_on(NODE, async move {
                manifest(1).store(&dir()).await.expect("a sound disk");
                handle.disk(NODE).change_faults(|faults| {
                    (faults.eio_write, faults.eio_sync) = (0.15, 0.15);
                });
                let outcome = manifest(2).store(&dir()).await;
                handle.disk(NODE).change_faults(|faults| {
                    (faults.eio_write, faults.eio_sync) = (0.0, 0.0);
                });
                outcome
            });
            world.crash_node(NODE);
            let found = world.run_on(NODE, async { Manifest::load(&dir()).await });
            let found = found.expect("whole").expect("one of the two").tables.len();
            match outcome {
                Ok(()) => assert_eq!(found, 2, "seed {seed}"),
                Err(Error::Uncertain) => assert!(found == 1 || found == 2, "seed {seed}"),
                Err(_) => assert_eq!(found, 1, "seed {seed}: said to be unchanged"),
            }
        }
    }

    #[test]
    fn orphans_are_the_tables_that_no_manifest_names() {
        let mut manifest = manifest(2);
        let names = [
            "000000000001.table",
            "000000000009.table",
            "MANIFEST",
            "5.table",
            "x",
        ];
        let orphans = manifest.take_orphans(&names.map(str::to_owned));
        assert_eq!(
            orphans,
            ["000000000009.table"],
            "live tables and strangers stay"
        );
        assert_eq!(
            manifest.take_id(),
            TableId(10),
            "a number is not used twice"
        );
    }

    #[test]
    fn a_merge_takes_the_place_of_its_inputs_in_the_order_of_age() {
        let mut manifest = manifest(4);
        let id = manifest.take_id();
        let merged = TableInfo {
            version_max: Version {
                clock: 3,
                coordinator: 1,
            },
            ..table(id.0)
        };
        manifest.replace(&[TableId(2), TableId(3)], vec![merged]);
        let ids: Vec<u64> = manifest.tables.iter().map(|table| table.id.0).collect();
        assert_eq!(ids, [1, 5, 4], "a merged table changed its age");
        manifest.replace(&[TableId(1)], Vec::new());
        assert_eq!(manifest.tables.len(), 2);
        manifest.cleared = Version {
            clock: 3,
            coordinator: 9,
        };
        let dead: Vec<TableId> = manifest
            .take_cleared()
            .iter()
            .map(|table| table.id)
            .collect();
        assert_eq!(
            dead,
            [TableId(5)],
            "a table with a record above the clearing was given up"
        );
    }

    #[test]
    #[should_panic(expected = "inputs are live and adjacent")]
    fn a_merge_of_tables_that_are_no_neighbours_is_a_bug_that_stops_it() {
        manifest(4).replace(&[TableId(1), TableId(3)], Vec::new());
    }
}
