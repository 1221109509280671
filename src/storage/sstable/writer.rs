//! Writing a table, in the order of its format: see `sstable.rs`.
//!
//! Invariants: records come in ascending order; `written` bytes are in the file and `out` follows
//! them; after a failed write the file is removed and the writer is of no more use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::footer::{FOOTER_BYTES, Footer};
use super::partition::Builder;
use super::{CACHED_BLOCK_BYTES_MAX, CRC_BYTES, KeyBuf, TURN_BYTES, TableId, TableInfo};
use crate::config::Compression;
use crate::error::Result;
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::storage::block::{Block, BlockBuilder, Identity};
use crate::storage::cache::Caches;
use crate::storage::merge::Item;
use crate::storage::record::Record;
use crate::types::{KeyHash, Position, UnixMillis, Version};

/// Writes go out in pieces of this size.
const WRITE_BYTES: usize = 512 * 1024;
const _: () = assert!(WRITE_BYTES.is_multiple_of(BLOCK_BYTES));

/// Writes one table. Ends in [`TableWriter::finish`] or [`TableWriter::abandon`].
pub struct TableWriter {
    /// `None` after a failure.
    file: Option<File>,
    path: PathBuf,
    id: TableId,
    run: TableId,
    level: u8,
    /// What comes after the first `written` bytes of the file.
    out: Vec<u8>,
    written: u64,
    turn_bytes: usize,
    block: BlockBuilder,
    /// Index and filter.
    partitions: Builder,
    first: Option<Item>,
    last: Option<Item>,
    records: u64,
    tombstones: u64,
    version_max: Version,
    expiries: Expiries,
    pointed: u64,
    /// Where blocks are kept as well.
    caches: Option<Rc<Caches>>,
}

impl TableWriter {
    /// Starts table `id` of run `run` in `dir`.
    pub async fn create(
        dir: &Path,
        id: TableId,
        run: TableId,
        compression: Compression,
    ) -> Result<TableWriter> {
        assert!(run <= id, "a run is named after its first table");
        let path = dir.join(id.file_name());
        Ok(TableWriter {
            file: Some(File::create(&path).await?),
            path,
            id,
            run,
            level: 0,
            out: Vec::with_capacity(WRITE_BYTES + BLOCK_BYTES),
            written: 0,
            turn_bytes: 0,
            block: BlockBuilder::new(compression),
            partitions: Builder::default(),
            first: None,
            last: None,
            records: 0,
            tombstones: 0,
            version_max: Version::ZERO,
            expiries: Expiries::default(),
            pointed: 0,
            caches: None,
        })
    }

    /// Blocks are kept in `caches` as well, as far as there is room.
    pub fn caching(self, caches: &Rc<Caches>) -> TableWriter {
        let caches = Some(Rc::clone(caches));
        TableWriter { caches, ..self }
    }

    /// The table is to stand on this level.
    pub fn at_level(self, level: u8) -> TableWriter {
        TableWriter { level, ..self }
    }

    /// Adds the next record in order. After an error the file is gone and the writer of no more
    /// use.
    pub async fn add(&mut self, record: &Record, position: Position) -> Result<()> {
        assert!(self.file.is_some(), "the writer has failed");
        let item = Item {
            position,
            record: record.clone(),
        };
        if let Some(last) = &self.last {
            assert!(last.order() < item.order(), "records are added in order");
        }
        if !self.block.has_room_for(record.view()) {
            self.cut_block(position);
        }
        self.block.add(position, record.view());
        self.partitions.add(KeyHash::of(record.key()));
        let meta = record.meta();
        self.records += 1;
        let place = record.pointer().filter(|_| !record.is_counted());
        self.pointed += place.map_or(0, |place| u64::from(place.length));
        self.tombstones += u64::from(meta.tombstone);
        self.version_max = self.version_max.max(meta.version);
        let expiry = if meta.tombstone { 0 } else { meta.expiry };
        self.expiries.add(expiry, record.bytes().len() as u64);
        self.first.get_or_insert_with(|| item.clone());
        self.last = Some(item);
        self.turn_bytes += record.bytes().len();
        if self.turn_bytes >= TURN_BYTES {
            self.turn_bytes = 0;
            rt::yield_if_needed().await;
        }
        if self.out.len() >= WRITE_BYTES {
            let whole = self.out.len() / WRITE_BYTES * WRITE_BYTES;
            return self.write_out(whole).await;
        }
        Ok(())
    }

    /// Bytes of records so far, as stored.
    pub fn bytes(&self) -> u64 {
        self.written + (self.out.len() + self.block.payload_bytes()) as u64
    }

    /// Completes the table and syncs it; its name is the caller's to sync. There must be a record.
    /// After an error the file is gone.
    pub async fn finish(mut self) -> Result<TableInfo> {
        assert!(self.file.is_some(), "the writer has failed");
        let info = self.complete();
        self.write_out(self.out.len()).await?;
        assert_eq!(self.written, info.bytes);
        if !rt::planted(Bug::ManifestBeforeTable) {
            let file = self
                .file
                .as_ref()
                .expect("checked above, and writing went well");
            if let Err(failure) = file.sync().await {
                self.discard().await;
                return Err(failure);
            }
        }
        if let Some(file) = self.file.take() {
            file.close().await;
        }
        Ok(info)
    }

    /// Gives up: removes the file.
    pub async fn abandon(mut self) {
        self.discard().await;
    }

    /// Ends the block before a record at `next`.
    fn cut_block(&mut self, next: Position) {
        let last = self
            .last
            .as_ref()
            .expect("a block that is full has a last record");
        let start = self.out.len();
        let at = Identity {
            table: self.id.0,
            offset: self.written + start as u64,
        };
        self.block.finish(at, &mut self.out);
        self.keep_block(at, start);
        let length = u32::try_from(self.out.len() - start).expect("values are limited to 64 MiB");
        let key = (last.position == next).then(|| last.record.key());
        self.partitions.end_block(length, last.position, key);
    }

    /// Keeps the block that was put at `start` of `out`.
    fn keep_block(&self, at: Identity, start: usize) {
        let Some(caches) = &self.caches else { return };
        let bytes = &self.out[start..];
        if bytes.len() > CACHED_BLOCK_BYTES_MAX || !caches.blocks.has_room(CACHED_BLOCK_BYTES_MAX) {
            return;
        }
        let block = Block::decode(bytes, at).expect("it was made just now");
        if block.bytes() <= CACHED_BLOCK_BYTES_MAX {
            let block = Rc::new(block.into_owned());
            caches.blocks.fill(self.id, at.offset, block);
        }
    }

    /// Appends all that follows the last record.
    fn complete(&mut self) -> TableInfo {
        let ends = self.first.as_ref().zip(self.last.as_ref());
        let (first, last) = ends.expect("a table has at least one record");
        let mut info = TableInfo {
            id: self.id,
            run: self.run,
            level: self.level,
            bytes: BLOCK_BYTES as u64,
            records: self.records,
            tombstones: self.tombstones,
            first_key: KeyBuf::of(first),
            last_key: KeyBuf::of(last),
            version_max: self.version_max,
            half_expired_at: self.expiries.half_expired_at(),
            pointed: self.pointed,
        };
        // Nothing follows, so that the position separates; 2^32-1 alone has no successor.
        let next = Position(last.position.0.saturating_add(1));
        self.cut_block(next);
        let mut footer = Footer {
            table: self.id.0,
            file_bytes: 0,
            offsets: [0; 4],
        };
        footer.offsets[0] = self.written + self.out.len() as u64;
        let (partitions, top) = std::mem::take(&mut self.partitions).finish();
        for partition in partitions {
            self.put_section(partition);
        }
        footer.offsets[1] = self.put_section(top);
        let mut properties = Vec::new();
        info.encode(&mut properties);
        // The properties name the file's length, and their own length does not depend on it.
        let end = self.written + (self.out.len() + properties.len() + CRC_BYTES) as u64;
        info.bytes = (end + FOOTER_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64);
        properties.clear();
        info.encode(&mut properties);
        footer.offsets[2] = self.put_section(properties);
        footer.offsets[3] = end;
        footer.file_bytes = info.bytes;
        assert_eq!(end, self.written + self.out.len() as u64);
        let zeros_end = (info.bytes - self.written) as usize - FOOTER_BYTES;
        self.out.resize(zeros_end, 0);
        self.out.extend_from_slice(&footer.encode());
        info
    }

    /// Appends `content` and its checksum; gives its offset.
    fn put_section(&mut self, content: Vec<u8>) -> u64 {
        let offset = self.written + self.out.len() as u64;
        let crc = Identity {
            table: self.id.0,
            offset,
        }
        .checksum(&content);
        self.out.extend_from_slice(&content);
        self.out.extend_from_slice(&crc.to_le_bytes());
        offset
    }

    /// Writes the first `length` bytes of `out`, a multiple of 4 KiB.
    async fn write_out(&mut self, length: usize) -> Result<()> {
        let written = self.write_pieces(length).await;
        if written.is_err() {
            self.discard().await;
        }
        written
    }

    async fn write_pieces(&mut self, length: usize) -> Result<()> {
        assert!(length.is_multiple_of(BLOCK_BYTES));
        let file = self
            .file
            .as_ref()
            .expect("callers check that the writer has not failed");
        for piece in self.out[..length].chunks(WRITE_BYTES) {
            let mut buffer = file.buffer(piece.len());
            buffer.copy_from_slice(piece);
            file.write_at(buffer, self.written).await?;
            self.written += piece.len() as u64;
        }
        self.out.drain(..length);
        Ok(())
    }

    async fn discard(&mut self) {
        let Some(file) = self.file.take() else { return };
        file.close().await;
        if let Err(failure) = rt::remove_file(&self.path).await {
            // It stays as an orphan, which the next start removes.
            log::warn!("{failure}");
        }
    }
}

/// How many bytes expire when. Coarse: the buckets grow wider when there are too many of them.
pub(super) struct Expiries {
    width_ms: u64,
    bytes: BTreeMap<u64, u64>,
    bytes_total: u64,
}

const EXPIRY_BUCKETS_MAX: usize = 256;

impl Default for Expiries {
    fn default() -> Expiries {
        Expiries {
            width_ms: 1,
            bytes: BTreeMap::new(),
            bytes_total: 0,
        }
    }
}

impl Expiries {
    pub(super) fn add(&mut self, expiry: UnixMillis, bytes: u64) {
        self.bytes_total += bytes;
        if expiry == 0 {
            return;
        }
        *self.bytes.entry(expiry / self.width_ms).or_default() += bytes;
        while self.bytes.len() > EXPIRY_BUCKETS_MAX {
            self.width_ms *= 2;
            for (bucket, bytes) in std::mem::take(&mut self.bytes) {
                *self.bytes.entry(bucket / 2).or_default() += bytes;
            }
        }
    }

    /// The last moment of the bucket that takes the expired bytes to half of all; 0 if none does.
    pub(super) fn half_expired_at(&self) -> UnixMillis {
        let mut expired = 0;
        for (&bucket, bytes) in &self.bytes {
            expired += bytes;
            if expired * 2 >= self.bytes_total {
                return bucket
                    .saturating_mul(self.width_ms)
                    .saturating_add(self.width_ms - 1);
            }
        }
        0
    }
}
