//! The manifest: which tables and segments of the value log are live, and what else a core must
//! know before it replays its logs.
//!
//! file := magic 8 bytes | format u32 | body length u32 | body | crc u32 | zeros to 4 KiB
//! body := core u16 | cores u16 | next id u64 | log floor (segment u64, sequence u64) | cleared (clock u64, coordinator u32)
//!         | version max (likewise) | values floor, moved floor (likewise) | flushed u64 | logless u8
//!         | count u32 | void* | count u32 | segment* | count u32 | table*            (little endian)
//! void    := first u64 | last u64
//! segment := stream u8 | id u64 | bytes u64 | written u64 | garbage u64 | version max
//!
//! A table is what `TableInfo::encode` writes. The crc32c covers all bytes before it.
//!
//! It is small and always written whole: to `MANIFEST.tmp`, synced, renamed to `MANIFEST`, and the
//! directory synced. A crash leaves the old one or the new one. Invariants: tables stand in the
//! order that compaction.rs describes, the oldest first; every id is below `next_id`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, Directory, File};
use crate::storage::codec::Reader;
use crate::storage::compaction;
use crate::storage::sstable::{TableId, TableInfo};
use crate::storage::wal::format::{SegmentId, Stream};
use crate::storage::wal::replay::Floor;
use crate::types::{CoreId, Lsn, Version};

/// The name of the manifest in its core's directory.
pub const MANIFEST: &str = "MANIFEST";
/// The name of the manifest that is being written.
pub const MANIFEST_TMP: &str = "MANIFEST.tmp";

/// The newest format that this program reads, and the one it writes.
const FORMAT: u32 = 2;
const MAGIC: [u8; 8] = *b"QUOITMAN";
const HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
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
    /// Where replay of the value log begins.
    pub values_floor: Floor,
    /// `moved` is never read as a log; it goes on here, or behind what is there.
    pub moved_floor: Floor,
    /// All that was written up to here is in tables, or needed no more: replay leaves it out.
    pub flushed: Lsn,
    /// The logs hold nothing that counts: `durability = "none"`.
    pub logless: bool,
    /// Numbers of writes that a recovery found behind a gap: they never were. In order.
    pub voids: Vec<(Lsn, Lsn)>,
    /// The live segments of the value log, in order of stream and number.
    pub segments: Vec<SegmentInfo>,
    /// Every record at or below this version is dead (FLUSHALL).
    pub cleared: Version,
    /// No version in the tables is above this: the clock starts higher.
    pub version_max: Version,
    /// The live tables, the oldest first.
    pub tables: Vec<TableInfo>,
}

/// A segment of the value log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its stream.
    pub stream: Stream,
    /// Its number.
    pub id: SegmentId,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes of all records that were written to it.
    pub written: u64,
    /// Bytes of those that nobody needs.
    pub garbage: u64,
    /// No record in it has a higher version.
    pub version_max: Version,
}

impl SegmentInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.stream.number());
        for word in [self.id.0, self.bytes, self.written, self.garbage] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        put_version(self.version_max, out);
    }

    fn decode(reader: &mut Reader<'_>) -> Option<SegmentInfo> {
        Some(SegmentInfo {
            stream: Stream::from_number(reader.u8()?)?,
            id: SegmentId(reader.u64()?),
            bytes: reader.u64()?,
            written: reader.u64()?,
            garbage: reader.u64()?,
            version_max: take_version(reader)?,
        })
    }
}

fn put_version(version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&version.clock.to_le_bytes());
    out.extend_from_slice(&version.coordinator.to_le_bytes());
}

fn take_version(reader: &mut Reader<'_>) -> Option<Version> {
    Some(Version {
        clock: reader.u64()?,
        coordinator: reader.u32()?,
    })
}

fn put_floor(floor: Floor, out: &mut Vec<u8>) {
    out.extend_from_slice(&floor.segment.0.to_le_bytes());
    out.extend_from_slice(&floor.sequence.to_le_bytes());
}

fn take_floor(reader: &mut Reader<'_>) -> Option<Floor> {
    Some(Floor {
        segment: SegmentId(reader.u64()?),
        sequence: reader.u64()?,
    })
}

impl Manifest {
    /// The manifest of a core without data.
    pub fn new(core: CoreId, cores: u16) -> Manifest {
        assert!(core.0 < cores);
        Manifest {
            core,
            cores,
            next_id: 1,
            floor: Floor::start(core, Stream::Records),
            values_floor: Floor::start(core, Stream::Values),
            moved_floor: Floor::start(core, Stream::Moved),
            flushed: crate::storage::RECOVERED,
            logless: false,
            voids: Vec::new(),
            segments: Vec::new(),
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

    /// Puts what a merge wrote, or tables on their new level, in the place of what was there. The
    /// inputs must be live.
    pub fn replace(&mut self, inputs: &[TableId], outputs: Vec<TableInfo>) {
        assert!(
            !inputs.is_empty() && self.has_all(inputs),
            "inputs are live"
        );
        let version_max = outputs.iter().map(|table| table.version_max).max();
        assert!(
            version_max <= Some(self.version_max),
            "a merge makes no versions"
        );
        compaction::apply(&mut self.tables, inputs, outputs);
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
        // Before anything changes: for want of a file descriptor the new name could not be made
        // durable.
        let directory = Directory::open(dir).await?;
        let stored = replace(&directory, &tmp, &name, &self.encode()).await;
        directory.close().await;
        stored
    }

    /// Its bytes, in whole 4 KiB blocks.
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.core.0.to_le_bytes());
        body.extend_from_slice(&self.cores.to_le_bytes());
        body.extend_from_slice(&self.next_id.to_le_bytes());
        put_floor(self.floor, &mut body);
        put_version(self.cleared, &mut body);
        put_version(self.version_max, &mut body);
        put_floor(self.values_floor, &mut body);
        put_floor(self.moved_floor, &mut body);
        body.extend_from_slice(&self.flushed.0.to_le_bytes());
        body.push(u8::from(self.logless));
        let put_count = |count: usize, body: &mut Vec<u8>| {
            let count = u32::try_from(count).expect("files are bounded by the disk");
            body.extend_from_slice(&count.to_le_bytes());
        };
        put_count(self.voids.len(), &mut body);
        for (first, last) in &self.voids {
            body.extend_from_slice(&first.0.to_le_bytes());
            body.extend_from_slice(&last.0.to_le_bytes());
        }
        put_count(self.segments.len(), &mut body);
        self.segments
            .iter()
            .for_each(|segment| segment.encode(&mut body));
        put_count(self.tables.len(), &mut body);
        self.tables.iter().for_each(|table| table.encode(&mut body));
        let length = u32::try_from(body.len()).expect("a manifest is small");
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
        if crc != crc32c::crc32c(&bytes[..end]) || format == 0 {
            return Err(corrupt(end, "the checksum does not match"));
        }
        if format != FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has manifest format {format}, of an older version of quoit; this one reads \
                 {FORMAT}"
            )));
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
        let mut manifest = Manifest {
            core: CoreId(reader.u16()?),
            cores: reader.u16()?,
            next_id: reader.u64()?,
            floor: take_floor(&mut reader)?,
            cleared: take_version(&mut reader)?,
            version_max: take_version(&mut reader)?,
            values_floor: take_floor(&mut reader)?,
            moved_floor: take_floor(&mut reader)?,
            flushed: Lsn(reader.u64()?),
            logless: match reader.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            voids: Vec::new(),
            segments: Vec::new(),
            tables: Vec::new(),
        };
        for _ in 0..reader.u32()? {
            let void = (Lsn(reader.u64()?), Lsn(reader.u64()?));
            manifest.voids.push(void);
        }
        for _ in 0..reader.u32()? {
            manifest.segments.push(SegmentInfo::decode(&mut reader)?);
        }
        for _ in 0..reader.u32()? {
            manifest.tables.push(TableInfo::decode(&mut reader)?);
        }
        (reader.is_empty() && manifest.is_sane()).then_some(manifest)
    }

    /// What `store` asserts and `load` checks.
    fn is_sane(&self) -> bool {
        let ids: BTreeSet<TableId> = self.tables.iter().map(|table| table.id).collect();
        let in_order =
            |two: &[SegmentInfo]| (two[0].stream, two[0].id) < (two[1].stream, two[1].id);
        let fits = |segment: &SegmentInfo| {
            segment.stream != Stream::Records && segment.garbage <= segment.written
        };
        self.segments.windows(2).all(in_order)
            && self.segments.iter().all(fits)
            && self.voids.iter().all(|(first, last)| first <= last)
            && self.voids.windows(2).all(|two| two[0].1 < two[1].0)
            && self.core.0 < self.cores
            && ids.len() == self.tables.len()
            && ids.last().is_none_or(|last| last.0 < self.next_id)
            && self
                .tables
                .iter()
                .all(|table| table.version_max <= self.version_max)
            && compaction::is_in_order(&self.tables)
    }

    fn check(&self) {
        assert!(
            self.is_sane(),
            "the live tables contradict each other: {self:?}"
        );
    }

    /// True if all of these tables are live.
    pub fn has_all(&self, ids: &[TableId]) -> bool {
        let live: BTreeSet<TableId> = self.tables.iter().map(|table| table.id).collect();
        ids.iter().all(|id| live.contains(id))
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

/// Writes a file and gives it the name of the manifest.
async fn replace(directory: &Directory, tmp: &Path, name: &Path, bytes: &[u8]) -> Result<()> {
    if let Err(failure) = write_new(tmp, bytes).await {
        // If it cannot be removed now, the next call or the next start does it.
        let _ = remove_if_there(tmp).await;
        return Err(failure);
    }
    let installed = match rt::rename(tmp, name).await {
        Ok(()) if rt::planted(Bug::NoDirectorySync) => Ok(()),
        Ok(()) => directory.sync().await,
        Err(failure) => Err(failure),
    };
    installed.map_err(|failure| {
        log::error!("{failure}; which manifest is in force shows at the next start");
        Error::Uncertain
    })
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
mod tests;
