//! Walking over a table in order, past the cache.
//!
//! A walk goes from partition to partition, which it reads one at a time if they are not loaded,
//! and over the blocks of each, several of which are read together.

use std::rc::Rc;

use super::{Held, TURN_BYTES, Table, read_exactly};
use crate::error::Result;
use crate::rt;
use crate::storage::block::Block;
use crate::storage::merge::{Bound, Item};
use crate::types::Position;

/// A walk over a table in order. It keeps the table open.
pub struct TableCursor {
    table: Rc<Table>,
    /// The number of the partition that is walked over.
    at: usize,
    /// It, once it was needed.
    partition: Option<Held>,
    /// The block in it that comes next.
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
    /// The first block behind them, or the end of their partition.
    end: usize,
}

struct KeyStart {
    position: Position,
    /// Start after this key; `None`: at the position's first.
    after: Option<Vec<u8>>,
}

impl KeyStart {
    fn bound(&self) -> Bound<'_> {
        match &self.after {
            None => Bound::From(self.position),
            Some(key) => Bound::After(self.position, key),
        }
    }

    /// What stands at or before all that is wanted.
    fn key(&self) -> &[u8] {
        self.after.as_deref().unwrap_or_default()
    }
}

impl TableCursor {
    /// A walk from `bound` that reads and unpacks about `ahead_bytes` at a time, and at least a
    /// block.
    pub fn new(table: Rc<Table>, bound: Bound<'_>, ahead_bytes: usize) -> TableCursor {
        let after = match bound {
            Bound::From(_) => None,
            Bound::After(_, key) => Some(key.to_vec()),
        };
        let start = KeyStart {
            position: bound.position(),
            after,
        };
        let at = table.parts.top.find(start.position, start.key());
        TableCursor {
            table,
            at,
            partition: None,
            block: 0,
            start: Some(start),
            ahead_bytes,
            ahead: None,
        }
    }

    /// The records that come next; none at the end. After an error, or if it is dropped before it
    /// is done, the walk is over: a chunk may be missing.
    pub async fn next_chunk(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        while items.is_empty() {
            let Some(partition) = self.enter_partition().await? else {
                break;
            };
            let ahead = match self.ahead.take() {
                Some(ahead) => ahead,
                None => self.read_ahead(&partition).await?,
            };
            let (mut chunk_bytes, mut turn_bytes) = (0, 0);
            while self.block < ahead.end && chunk_bytes < self.ahead_bytes.max(1) {
                let offset = partition.offset(self.block);
                let from = (offset - ahead.offset) as usize;
                let bytes = &ahead.bytes[from..from + partition.length(self.block)];
                let unpacked = self.unpack(offset, bytes, &mut items)?;
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

    /// The partition that has the next block, if there is one.
    async fn enter_partition(&mut self) -> Result<Option<Held>> {
        if let Some(partition) = self.partition.take_if(|it| self.block == it.blocks()) {
            drop(partition);
            self.at += 1;
            self.block = 0;
        }
        if self.partition.is_none() && self.at < self.table.parts.top.partitions() {
            let partition = self.table.hold(self.at).await?;
            if let Some(start) = &self.start {
                self.block = partition.find(start.position, start.key());
                // Else the top would have led to another one.
                assert!(
                    self.block < partition.blocks(),
                    "a partition's end is above what it is asked for"
                );
            }
            self.partition = Some(partition);
        }
        Ok(self.partition.clone())
    }

    async fn read_ahead(&self, partition: &Held) -> Result<Ahead> {
        let offset = partition.offset(self.block);
        let reach = offset.saturating_add(self.ahead_bytes as u64);
        let mut end = self.block + 1;
        while end < partition.blocks() && partition.end(end) <= reach {
            end += 1;
        }
        let length = (partition.end(end - 1) - offset) as usize;
        let bytes = read_exactly(&self.table.parts.file, offset, length).await?;
        Ok(Ahead { bytes, offset, end })
    }

    /// Appends the records of the block at `offset` to `items`, those of the first one from where
    /// the walk starts; gives the bytes that it has unpacked.
    fn unpack(&mut self, offset: u64, bytes: &[u8], items: &mut Vec<Item>) -> Result<usize> {
        let start = self.start.take();
        let bound = start.as_ref().map_or(Bound::START, KeyStart::bound);
        let damaged = |damage| self.table.corrupt(offset, damage);
        let block = Block::decode(bytes, self.table.identity(offset)).map_err(damaged)?;
        for item in block.iter_from(bound) {
            items.push(item.map_err(damaged)?);
        }
        Ok(block.bytes())
    }
}
