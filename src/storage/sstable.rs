//! Table files: many sorted records, written once, read by one device access each.
//!
//! file       := block* | partition* | top | properties | zeros | footer    (a multiple of 4 KiB)
//! partition  := (see sstable/partition.rs) | crc u32
//! top        := (see sstable/partition.rs) | crc u32
//! properties := (see sstable/info.rs) | crc u32
//! footer     := (see sstable/footer.rs)
//!
//! Blocks (see block.rs), packed or not, follow each other from offset 0. A partition is the index
//! and the filter of a run of consecutive blocks; the top says which partition knows of a key. Each
//! crc32c covers the table's id, its part's offset and the part: a byte that was changed, misplaced
//! or left over from another file is noticed. The footer is found from the file's length.
//!
//! The top of an open table is in memory. Its partitions are all there too ([`Table::load`]), and
//! then a lookup costs one device read at most; or they are read by need, through the block cache:
//! one read more where that does not have them. Which tables are loaded, others decide
//! (resident.rs).
//!
//! Invariants: keys ascend strictly by (position, key); damage is [`Error::Corrupt`], never
//! "not found"; a writer that fails leaves no file.

mod cursor;
mod footer;
mod info;
mod partition;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
mod writer;

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::path::Path;
use std::rc::Rc;

pub use cursor::TableCursor;
pub use info::{KeyBuf, TableId, TableInfo};
pub use partition::Partition;
pub use writer::TableWriter;

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::storage::block::{Block, Damage, Identity};
use crate::storage::cache::Blocks;
use crate::storage::codec::Reader;
use crate::storage::record::{KeyRef, Record};
use footer::{FOOTER_BYTES, Footer};
use partition::Top;

const CRC_BYTES: usize = 4;
/// Many partitions are read in pieces of about this size.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// The end of the file that is read at first: nearly always the top begins in it.
const TAIL_BYTES: u64 = 16 * 1024;
/// Longer blocks, unpacked, are not kept in memory: one large value each.
const CACHED_BLOCK_BYTES_MAX: usize = 32 * 1024;
/// After this many bytes of records others get their turn.
const TURN_BYTES: usize = 32 * 1024;
const _: () = assert!(TAIL_BYTES >= FOOTER_BYTES as u64);

/// An open table.
pub struct Table {
    info: TableInfo,
    parts: Rc<Parts>,
}

/// What stays the same when a table moves to another level.
struct Parts {
    file: File,
    top: Top,
    /// All partitions, if they are in memory.
    loaded: RefCell<Option<Rc<Vec<Partition>>>>,
    /// What they take there; an estimate before they were loaded for the first time.
    loaded_bytes: Cell<u64>,
    /// They are to be in memory.
    is_resident: Cell<bool>,
}

/// A partition that stays in memory as long as this does.
#[derive(Clone)]
enum Held {
    /// One of a loaded table.
    Loaded(Rc<Vec<Partition>>, usize),
    /// One that was read by need.
    Alone(Rc<Partition>),
}

impl Deref for Held {
    type Target = Partition;
    fn deref(&self) -> &Partition {
        match self {
            Held::Loaded(all, at) => &all[*at],
            Held::Alone(partition) => partition,
        }
    }
}

/// The partition of a table that was used last, for those who ask it for keys in their order.
#[derive(Default)]
pub struct LastUsed(Option<(TableId, usize, Held)>);

/// Where a block is: its offset and its length.
type Place = (u64, usize);

impl Table {
    /// Opens the table that the manifest calls `info`, and checks all of it but blocks and
    /// partitions.
    pub async fn open(dir: &Path, info: &TableInfo) -> Result<Table> {
        let file = File::open(&info.path(dir)).await?;
        match Table::read_top(&file, info).await {
            Ok(top) => Ok(Table {
                info: info.clone(),
                parts: Rc::new(Parts {
                    file,
                    loaded: RefCell::new(None),
                    loaded_bytes: Cell::new(top.partitions_bytes()),
                    is_resident: Cell::new(false),
                    top,
                }),
            }),
            Err(failure) => {
                file.close().await;
                Err(failure)
            }
        }
    }

    async fn read_top(file: &File, info: &TableInfo) -> Result<Top> {
        let path = file.path();
        let length = file.len().await?;
        if length != info.bytes || length < BLOCK_BYTES as u64 {
            let why = format!("it is {length} bytes long and should be {}", info.bytes);
            return Err(corrupt(path, length.min(info.bytes), why));
        }
        let footer_at = length - FOOTER_BYTES as u64;
        let tail_at = length - length.min(TAIL_BYTES);
        let tail = read_exactly(file, tail_at, (length - tail_at) as usize).await?;
        let footer = &tail[(footer_at - tail_at) as usize..];
        let footer = Footer::decode(path, footer, info.id, info.bytes)?;
        let [partitions_at, top_at, properties_at, zeros_at] = footer.offsets;
        let mut end = match top_at < tail_at {
            true => read_range(file, top_at, tail_at).await?,
            false => Vec::new(),
        };
        end.extend_from_slice(&tail[top_at.saturating_sub(tail_at) as usize..]);
        let part = |from: u64, to: u64| &end[(from - top_at) as usize..(to - top_at) as usize];
        let section = |from: u64, to: u64| {
            let content = content(part(from, to), info.id, from);
            content.ok_or_else(|| corrupt(path, from, "a section's checksum does not match"))
        };
        let top = Top::decode(section(top_at, properties_at)?, partitions_at, top_at);
        let top = top.ok_or_else(|| corrupt(path, top_at, "a section is malformed"))?;
        let mut properties = Reader::new(section(properties_at, zeros_at)?);
        let own = TableInfo::decode(&mut properties).filter(|_| properties.is_empty());
        // A table may be moved to another level without being written again.
        let own = own.map(|own| TableInfo {
            level: info.level,
            ..own
        });
        if own.as_ref() != Some(info) {
            let why = "this is not the table of the manifest";
            return Err(corrupt(path, properties_at, why));
        }
        if part(zeros_at, footer_at).iter().any(|&byte| byte != 0) {
            return Err(corrupt(path, zeros_at, "the padding is not zero"));
        }
        Ok(top)
    }

    /// The same table on another level.
    pub fn at_level(&self, level: u8) -> Table {
        Table {
            info: TableInfo {
                level,
                ..self.info.clone()
            },
            parts: Rc::clone(&self.parts),
        }
    }

    /// What is known of it.
    pub fn info(&self) -> &TableInfo {
        &self.info
    }

    /// Memory that its top takes, and its partitions if they are loaded.
    pub fn memory_bytes(&self) -> u64 {
        let partitions = match self.is_loaded() {
            true => self.parts.loaded_bytes.get(),
            false => 0,
        };
        self.top_bytes() + partitions
    }

    /// Memory that its top takes.
    pub fn top_bytes(&self) -> u64 {
        self.parts.top.bytes() as u64
    }

    /// Memory that its partitions take when they are loaded. An estimate if they never were.
    pub fn loaded_bytes(&self) -> u64 {
        self.parts.loaded_bytes.get()
    }

    /// True if its partitions are in memory.
    pub fn is_loaded(&self) -> bool {
        self.parts.loaded.borrow().is_some()
    }

    /// True if its partitions are to be in memory.
    pub fn is_resident(&self) -> bool {
        self.parts.is_resident.get()
    }

    /// Says whether its partitions are to be in memory. If not, they leave it; else the caller is
    /// to [`Table::load`] them.
    pub fn set_resident(&self, is_resident: bool) {
        self.parts.is_resident.set(is_resident);
        if !is_resident {
            self.parts.loaded.take();
        }
    }

    /// Nobody asks for its blocks any more. Those of a table that is not loaded go in time.
    pub fn forget_blocks(&self, blocks: &Blocks) {
        let loaded = self.parts.loaded.borrow();
        for partition in loaded.iter().flat_map(|all| all.iter()) {
            let offsets = (0..partition.blocks()).map(|block| partition.offset(block));
            offsets.for_each(|offset| blocks.forget(self.info.id, offset));
        }
    }

    /// Reads and checks all partitions, and keeps them, if they are to be in memory and are not
    /// yet.
    pub async fn load(&self) -> Result<()> {
        let Parts { file, top, .. } = &*self.parts;
        let mut all = Vec::with_capacity(top.partitions());
        while all.len() < top.partitions() {
            if self.is_loaded() || !self.is_resident() {
                return Ok(());
            }
            let (first, mut last) = (all.len(), all.len());
            let offset = top.offset(first);
            let reach = offset + READ_BYTES_MAX as u64;
            while last + 1 < top.partitions() && top.end(last + 1) <= reach {
                last += 1;
            }
            let length = (top.end(last) - offset) as usize;
            let bytes = read_exactly(file, offset, length).await?;
            for at in first..=last {
                let from = (top.offset(at) - offset) as usize;
                all.push(self.decode_partition(at, &bytes[from..from + top.length(at)])?);
                rt::yield_if_needed().await;
            }
        }
        let bytes: usize = all.iter().map(Partition::bytes).sum();
        self.parts.loaded_bytes.set(bytes as u64);
        if self.is_resident() {
            self.parts.loaded.replace(Some(Rc::new(all)));
        }
        Ok(())
    }

    fn decode_partition(&self, at: usize, bytes: &[u8]) -> Result<Partition> {
        let Parts { file, top, .. } = &*self.parts;
        let offset = top.offset(at);
        let Some(content) = content(bytes, self.info.id, offset) else {
            let why = "a partition's checksum does not match";
            return Err(corrupt(file.path(), offset, why));
        };
        let decoded = top.decode_partition(at, content);
        decoded.ok_or_else(|| corrupt(file.path(), offset, "a partition is malformed"))
    }

    /// Reads partition `at`, past the cache.
    async fn read_partition(&self, at: usize) -> Result<Rc<Partition>> {
        let Parts { file, top, .. } = &*self.parts;
        let bytes = read_exactly(file, top.offset(at), top.length(at)).await?;
        self.decode_partition(at, &bytes).map(Rc::new)
    }

    /// Partition `at` for a walk, which leaves the cache as it is.
    async fn hold(&self, at: usize) -> Result<Held> {
        if let Some(all) = &*self.parts.loaded.borrow() {
            return Ok(Held::Loaded(Rc::clone(all), at));
        }
        Ok(Held::Alone(self.read_partition(at).await?))
    }

    /// False: the key is not in it, neither as a value nor as a tombstone. True: it may be, as far
    /// as is known without the disk.
    pub fn may_contain(&self, key: &KeyRef<'_>) -> bool {
        if !self.info.covers(key.position, key.key) {
            return false;
        }
        match &*self.parts.loaded.borrow() {
            Some(all) => {
                let partition = all.get(self.parts.top.find(key.position, key.key));
                partition.is_some_and(|partition| partition.may_contain(key.hash))
            }
            None => true,
        }
    }

    /// The same, and asks the disk if it has to. For those who ask for many keys in their order: a
    /// partition is read once, and not kept for others.
    pub async fn ask(&self, key: &KeyRef<'_>, last: &mut LastUsed) -> Result<bool> {
        if !self.may_contain(key) || self.is_loaded() {
            return Ok(self.may_contain(key));
        }
        let at = self.parts.top.find(key.position, key.key);
        if at == self.parts.top.partitions() {
            return Ok(false);
        }
        let place = (self.info.id, at);
        if let LastUsed(Some((table, number, partition))) = last
            && (*table, *number) == place
        {
            return Ok(partition.may_contain(key.hash));
        }
        let partition = self.hold(at).await?;
        let may = partition.may_contain(key.hash);
        *last = LastUsed(Some((place.0, place.1, partition)));
        Ok(may)
    }

    /// The record of `key`, tombstones too. Ask [`Table::may_contain`] first. One device read at
    /// most, and one more if its partitions are not loaded; that one asks the filter, too.
    pub async fn get(&self, key: &KeyRef<'_>, blocks: &Blocks) -> Result<Option<Record>> {
        let place = match self.place_of(key) {
            Some(place) => place,
            // On the heap: the future of all those lookups that need no partition stays small.
            None => Box::pin(self.fetch_place_of(key, blocks)).await?,
        };
        let Some((offset, length)) = place else {
            return Ok(None);
        };
        let damaged = |damage| self.corrupt(offset, damage);
        if let Some(block) = blocks.get(self.info.id, offset) {
            return block.get(key).map_err(damaged);
        }
        let bytes = read_exactly(&self.parts.file, offset, length).await?;
        let at = self.identity(offset);
        let found = Block::decode(&bytes, at).and_then(|block| {
            let found = block.get(key);
            if block.bytes() <= CACHED_BLOCK_BYTES_MAX {
                blocks.fill(self.info.id, offset, Rc::new(block.into_owned()));
            }
            found
        });
        match found {
            Err(_) if rt::planted(Bug::DamageIsAbsence) => Ok(None),
            found => found.map_err(damaged),
        }
    }

    /// The block that may have `key`, if one does; `None` if its partition is not loaded.
    fn place_of(&self, key: &KeyRef<'_>) -> Option<Option<Place>> {
        let loaded = self.parts.loaded.borrow();
        let at = self.parts.top.find(key.position, key.key);
        let partition = loaded.as_ref()?.get(at);
        Some(partition.and_then(|partition| place_in(partition, key)))
    }

    /// The same, by way of the cache and the disk.
    async fn fetch_place_of(&self, key: &KeyRef<'_>, blocks: &Blocks) -> Result<Option<Place>> {
        let top = &self.parts.top;
        let at = top.find(key.position, key.key);
        if at == top.partitions() {
            return Ok(None);
        }
        let (table, offset) = (self.info.id, top.offset(at));
        let partition = match blocks.partition(table, offset) {
            Some(partition) => partition,
            None => {
                let partition = self.read_partition(at).await?;
                blocks.fill_partition(table, offset, Rc::clone(&partition));
                partition
            }
        };
        let may = partition.may_contain(key.hash);
        Ok(place_in(&partition, key).filter(|_| may))
    }

    /// Closes its file, if nobody else has it.
    pub async fn close(self) {
        if let Ok(parts) = Rc::try_unwrap(self.parts) {
            parts.file.close().await;
        }
    }

    fn identity(&self, offset: u64) -> Identity {
        Identity {
            table: self.info.id.0,
            offset,
        }
    }

    fn corrupt(&self, offset: u64, damage: Damage) -> Error {
        corrupt(self.parts.file.path(), offset, damage.0)
    }
}

fn place_in(partition: &Partition, key: &KeyRef<'_>) -> Option<Place> {
    let block = partition.find(key.position, key.key);
    (block < partition.blocks()).then(|| (partition.offset(block), partition.length(block)))
}

/// A section without its checksum, if that holds.
fn content(section: &[u8], table: TableId, offset: u64) -> Option<&[u8]> {
    let (content, crc) = section.split_last_chunk::<CRC_BYTES>()?;
    let at = Identity {
        table: table.0,
        offset,
    };
    (u32::from_le_bytes(*crc) == at.checksum(content)).then_some(content)
}

async fn read_exactly(file: &File, offset: u64, length: usize) -> Result<rt::ReadBuffer> {
    let bytes = file.read_at(offset, length).await?;
    if bytes.len() != length {
        return Err(corrupt(
            file.path(),
            offset + bytes.len() as u64,
            "the file ends too early",
        ));
    }
    Ok(bytes)
}

async fn read_range(file: &File, from: u64, to: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity((to - from) as usize);
    while from + (bytes.len() as u64) < to {
        let at = from + bytes.len() as u64;
        let length = (to - at).min(READ_BYTES_MAX as u64) as usize;
        bytes.extend_from_slice(&read_exactly(file, at, length).await?);
    }
    Ok(bytes)
}

fn corrupt(path: &Path, offset: u64, why: impl Into<String>) -> Error {
    Error::Corrupt {
        file: path.to_owned(),
        offset,
        why: why.into(),
    }
}
