//! Table files: many sorted records, written once, read by one device access each.
//!
//! file       := block* | filter | index | properties | zeros | footer    (a multiple of 4 KiB)
//! filter     := (see bloom.rs) | crc u32
//! index      := count u32 | (length u32 | position u32 | key length + 1 u32 | key)* | crc u32
//! properties := (see sstable/info.rs) | crc u32
//! footer     := magic 8 bytes | format u32 | crc u32 | table u64 | file bytes u64
//!               | offset u64 of filter, index, properties, zeros         (little endian)
//!
//! Blocks (see block.rs), packed or not, follow each other from offset 0. The index has one entry for each: its
//! length and its separator, at or above its last key and below the next block's first. Nearly
//! always the position alone separates, and the key length is 0; else the last key does.
//! Each crc32c covers the table's id, its part's offset and the part: a byte that was changed,
//! misplaced or left over from another file is noticed. The footer is found from the file's length.
//!
//! Invariants: keys ascend strictly by (position, key); damage is [`Error::Corrupt`], never
//! "not found"; a writer that fails leaves no file.

mod info;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

pub use info::{KeyBuf, TableId, TableInfo};
pub use writer::TableWriter;

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::storage::block::{Block, Damage, Identity};
use crate::storage::bloom::Filter;
use crate::storage::cache::Blocks;
use crate::storage::codec::Reader;
use crate::storage::merge::{Bound, Item};
use crate::storage::record::{KeyRef, Record};
use crate::types::Position;

/// The format that this program writes, and the only one that it reads.
const FORMAT: u32 = 4;
const MAGIC: [u8; 8] = *b"QUOITTAB";
const FOOTER_BYTES: usize = 64;
const FOOTER_CRC_AT: usize = 12;
const CRC_BYTES: usize = 4;
/// Index and filter are read in pieces of at most this size.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Longer blocks, unpacked, are not kept in memory: one large value each.
const CACHED_BLOCK_BYTES_MAX: usize = 32 * 1024;
/// After this many bytes of records others get their turn.
const TURN_BYTES: usize = 32 * 1024;
const _: () = assert!(FOOTER_BYTES == 8 + 4 + 4 + 6 * 8);
const _: () = assert!(FOOTER_BYTES < BLOCK_BYTES);

/// An open table: its filter and index are in memory.
pub struct Table {
    info: TableInfo,
    parts: Rc<Parts>,
}

/// What stays the same when a table moves to another level.
struct Parts {
    file: File,
    filter: Filter,
    index: Index,
}

impl Table {
    /// Opens the table that the manifest calls `info`, and checks all of it but the blocks.
    pub async fn open(dir: &Path, info: &TableInfo) -> Result<Table> {
        let file = File::open(&info.path(dir)).await?;
        match Table::load(&file, info).await {
            Ok((filter, index)) => Ok(Table {
                info: info.clone(),
                parts: Rc::new(Parts {
                    file,
                    filter,
                    index,
                }),
            }),
            Err(failure) => {
                file.close().await;
                Err(failure)
            }
        }
    }

    async fn load(file: &File, info: &TableInfo) -> Result<(Filter, Index)> {
        let path = file.path();
        let length = file.len().await?;
        if length != info.bytes || length < BLOCK_BYTES as u64 {
            let why = format!("it is {length} bytes long and should be {}", info.bytes);
            return Err(corrupt(path, length.min(info.bytes), why));
        }
        let footer_at = length - FOOTER_BYTES as u64;
        let footer = read_exactly(file, footer_at, FOOTER_BYTES).await?;
        let footer = Footer::decode(path, &footer, info.id, info.bytes)?;
        let [filter_at, index_at, properties_at, zeros_at] = footer.offsets;
        let tail = read_range(file, filter_at, footer_at).await?;
        let section = |from: u64, to: u64| {
            let bytes = &tail[(from - filter_at) as usize..(to - filter_at) as usize];
            let content = bytes.split_last_chunk().and_then(|(content, crc)| {
                let at = Identity {
                    table: info.id.0,
                    offset: from,
                };
                (u32::from_le_bytes(*crc) == at.checksum(content)).then_some(content)
            });
            content.ok_or_else(|| corrupt(path, from, "a section's checksum does not match"))
        };
        let malformed = |at: u64| corrupt(path, at, "a section is malformed");
        let filter = Filter::decode(section(filter_at, index_at)?);
        let filter = filter.ok_or_else(|| malformed(filter_at))?;
        let index = Index::decode(section(index_at, properties_at)?);
        let index = index.filter(|index| index.offsets.last() == Some(&filter_at));
        let index = index.ok_or_else(|| malformed(index_at))?;
        let mut properties = Reader::new(section(properties_at, zeros_at)?);
        let own = TableInfo::decode(&mut properties).filter(|_| properties.is_empty());
        // A table may be moved to another level without being written again.
        let own = own.map(|own| TableInfo {
            level: info.level,
            ..own
        });
        if own.as_ref() != Some(info) {
            return Err(corrupt(
                path,
                properties_at,
                "this is not the table of the manifest",
            ));
        }
        if tail[(zeros_at - filter_at) as usize..]
            .iter()
            .any(|&byte| byte != 0)
        {
            return Err(corrupt(path, zeros_at, "the padding is not zero"));
        }
        Ok((filter, index))
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

    /// Memory that its filter and index take.
    pub fn memory_bytes(&self) -> usize {
        let Parts { filter, index, .. } = &*self.parts;
        filter.bytes() + index.blocks() * (size_of::<Position>() + size_of::<u64>())
    }

    /// False: the key is not in it, neither as a value nor as a tombstone.
    pub fn may_contain(&self, key: &KeyRef<'_>) -> bool {
        self.info.covers(key.position, key.key) && self.parts.filter.may_contain(key.hash)
    }

    /// The record of `key`, tombstones too, by one device read at most. Ask [`Table::may_contain`] first.
    pub async fn get(&self, key: &KeyRef<'_>, blocks: &Blocks) -> Result<Option<Record>> {
        let Parts { file, index, .. } = &*self.parts;
        let block = index.find(key.position, key.key);
        if block == index.blocks() {
            return Ok(None);
        }
        let (offset, length) = (index.offsets[block], index.length(block));
        let damaged = |damage| self.corrupt(offset, damage);
        if let Some(block) = blocks.get(self.info.id, offset) {
            return block.get(key).map_err(damaged);
        }
        let bytes = read_exactly(file, offset, length).await?;
        let at = Identity {
            table: self.info.id.0,
            offset,
        };
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

    /// Closes its file, if nobody else has it.
    pub async fn close(self) {
        if let Ok(parts) = Rc::try_unwrap(self.parts) {
            parts.file.close().await;
        }
    }

    /// Appends the records of a block, from `start` on, to `items`; gives the bytes that it has unpacked.
    fn unpack(
        &self,
        block: usize,
        bytes: &[u8],
        start: Option<&KeyStart>,
        items: &mut Vec<Item>,
    ) -> Result<usize> {
        let offset = self.parts.index.offsets[block];
        let at = Identity {
            table: self.info.id.0,
            offset,
        };
        let bound = match start {
            None => Bound::START,
            Some(KeyStart {
                position,
                after: None,
            }) => Bound::From(*position),
            Some(KeyStart {
                position,
                after: Some(key),
            }) => Bound::After(*position, key),
        };
        let block = Block::decode(bytes, at).map_err(|damage| self.corrupt(offset, damage))?;
        for item in block.iter_from(bound) {
            items.push(item.map_err(|damage| self.corrupt(offset, damage))?);
        }
        Ok(block.bytes())
    }

    fn corrupt(&self, offset: u64, damage: Damage) -> Error {
        corrupt(self.parts.file.path(), offset, damage.0)
    }
}

/// A walk over a table in order. It keeps the table open.
pub struct TableCursor {
    table: Rc<Table>,
    block: usize,
    /// Where to start in the first block; `None` behind it.
    start: Option<KeyStart>,
    ahead_bytes: usize,
    /// What was read and has not all been unpacked.
    ahead: Option<Ahead>,
}

/// Blocks that were read together.
struct Ahead {
    bytes: rt::ReadBuffer,
    /// Where in the file the first of them begins.
    offset: u64,
    /// The first block behind them.
    end: usize,
}

struct KeyStart {
    position: Position,
    /// Start after this key; `None`: at the position's first.
    after: Option<Vec<u8>>,
}

impl TableCursor {
    /// A walk from `bound` that reads and unpacks about `ahead_bytes` at a time, and at least a block.
    pub fn new(table: Rc<Table>, bound: Bound<'_>, ahead_bytes: usize) -> TableCursor {
        let (key, after) = match bound {
            Bound::From(_) => (&[][..], None),
            Bound::After(_, key) => (key, Some(key.to_vec())),
        };
        let block = table.parts.index.find(bound.position(), key);
        let start = Some(KeyStart {
            position: bound.position(),
            after,
        });
        TableCursor {
            table,
            block,
            start,
            ahead_bytes,
            ahead: None,
        }
    }

    /// The records that come next; none at the end. After an error, or if it is dropped before it
    /// is done, the walk is over: a chunk may be missing.
    pub async fn next_chunk(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        while items.is_empty() && self.block < self.table.parts.index.blocks() {
            let ahead = match self.ahead.take() {
                Some(ahead) => ahead,
                None => self.read_ahead().await?,
            };
            let (mut chunk_bytes, mut turn_bytes) = (0, 0);
            while self.block < ahead.end && chunk_bytes < self.ahead_bytes.max(1) {
                let index = &self.table.parts.index;
                let from = (index.offsets[self.block] - ahead.offset) as usize;
                let bytes = &ahead.bytes[from..from + index.length(self.block)];
                let start = self.start.take();
                let unpacked = self
                    .table
                    .unpack(self.block, bytes, start.as_ref(), &mut items)?;
                self.block += 1;
                chunk_bytes += unpacked;
                turn_bytes += unpacked;
                if turn_bytes >= TURN_BYTES {
                    turn_bytes = 0;
                    rt::yield_if_needed().await;
                }
            }
            self.ahead = (self.block < ahead.end).then_some(ahead);
        }
        Ok(items)
    }

    async fn read_ahead(&self) -> Result<Ahead> {
        let Parts { file, index, .. } = &*self.table.parts;
        let offset = index.offsets[self.block];
        let reach = offset.saturating_add(self.ahead_bytes as u64);
        let mut end = self.block + 1;
        while end < index.blocks() && index.offsets[end + 1] <= reach {
            end += 1;
        }
        let length = (index.offsets[end] - offset) as usize;
        let bytes = read_exactly(file, offset, length).await?;
        Ok(Ahead { bytes, offset, end })
    }
}

/// The last bytes of the file: where everything is.
struct Footer {
    table: u64,
    file_bytes: u64,
    /// Of filter, index, properties, and of the zeros behind them.
    offsets: [u64; 4],
}

impl Footer {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        bytes.extend_from_slice(&self.table.to_le_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_le_bytes());
        self.offsets
            .iter()
            .for_each(|offset| bytes.extend_from_slice(&offset.to_le_bytes()));
        let crc = self.checksum(&bytes);
        bytes[FOOTER_CRC_AT..][..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes.len(), FOOTER_BYTES);
        bytes
    }

    /// The checksum of a footer in which it is not yet set.
    fn checksum(&self, bytes: &[u8]) -> u32 {
        let offset = self.file_bytes - FOOTER_BYTES as u64;
        Identity {
            table: self.table,
            offset,
        }
        .checksum(bytes)
    }

    /// Checks the footer of the file `path`, which should be table `id` and so long.
    fn decode(path: &Path, bytes: &[u8], id: TableId, length: u64) -> Result<Footer> {
        let at = length - FOOTER_BYTES as u64;
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len()) != Some(&MAGIC) {
            return Err(corrupt(path, at, "this is not the end of a table"));
        }
        let format = reader.u32().unwrap_or(0);
        if format > FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has table format {format}; this version of quoit reads up to {FORMAT}"
            )));
        }
        // Older formats had the same footer: its checksum tells an old table from a flipped bit.
        let mut parse = || {
            let crc = reader.u32()?;
            let (table, file_bytes) = (reader.u64()?, reader.u64()?);
            let offsets = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
            Some((
                crc,
                Footer {
                    table,
                    file_bytes,
                    offsets,
                },
            ))
        };
        let (crc, footer) = parse().ok_or_else(|| corrupt(path, at, "the footer is cut short"))?;
        if (footer.table, footer.file_bytes) != (id.0, length) {
            return Err(corrupt(path, at, "the footer is not this table's"));
        }
        let mut blank = bytes.to_vec();
        blank[FOOTER_CRC_AT..][..CRC_BYTES].fill(0);
        if crc != footer.checksum(&blank) {
            return Err(corrupt(path, at, "the footer's checksum does not match"));
        }
        if format != FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has table format {format}, of an older version of quoit; this one reads {FORMAT}"
            )));
        }
        let ends = [&footer.offsets[..], &[at]].concat();
        if !ends.is_sorted() {
            return Err(corrupt(path, at, "the footer's offsets are out of order"));
        }
        Ok(footer)
    }
}

/// Which block a key is in, for all blocks of a table.
struct Index {
    /// Each block's separator: the highest position it may hold.
    positions: Vec<Position>,
    /// Of the few blocks that end within a position: their last key.
    keys: BTreeMap<usize, Box<[u8]>>,
    /// Where each block begins, and where the last one ends.
    offsets: Vec<u64>,
}

impl Index {
    fn decode(bytes: &[u8]) -> Option<Index> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32()? as usize;
        let mut index = Index {
            positions: Vec::new(),
            keys: BTreeMap::new(),
            offsets: vec![0],
        };
        let mut end = 0u64;
        for block in 0..count {
            end = end.checked_add(u64::from(reader.u32()?))?;
            index.offsets.push(end);
            index.positions.push(Position(reader.u32()?));
            let key_length = reader.u32()? as usize;
            if key_length > 0 {
                index
                    .keys
                    .insert(block, reader.take(key_length - 1)?.into());
            }
        }
        let sane = count > 0 && reader.is_empty() && index.positions.is_sorted();
        sane.then_some(index)
    }

    fn blocks(&self) -> usize {
        self.positions.len()
    }

    /// The block that holds this key, if any does; one past the last if it is above them all.
    fn find(&self, position: Position, key: &[u8]) -> usize {
        let mut block = self.positions.partition_point(|&other| other < position);
        while self.positions.get(block) == Some(&position) {
            match self.keys.get(&block) {
                Some(last) if &last[..] < key => block += 1,
                _ => break,
            }
        }
        block
    }

    fn length(&self, block: usize) -> usize {
        (self.offsets[block + 1] - self.offsets[block]) as usize
    }
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
