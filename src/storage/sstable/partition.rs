//! The index and the filter of a table, in partitions: each for a run of consecutive blocks. Pure.
//!
//! partition := filter length u32 | filter (see bloom.rs) | (block length u32 | separator)*
//! top       := count u32 | (partition length u32 | bytes of its blocks u32 | separator)*
//! separator := position u32 | key length + 1 u32 | key                           (little endian)
//!
//! A block's separator is at or above its last key and below the next block's first; a partition's
//! is that of its last block. Nearly always the position alone separates, and the key length is 0;
//! else the last key does. The length of a partition counts its checksum, which is the table's
//! business.
//!
//! Invariants: separators ascend strictly; partitions follow each other, and so do their blocks,
//! from offset 0; a partition is ended with the block that takes it to [`PARTITION_BYTES_TARGET`].

use std::collections::BTreeMap;

use super::CRC_BYTES;
use crate::storage::bloom::{Filter, FilterBuilder};
use crate::storage::codec::Reader;
use crate::types::{KeyHash, Position};

/// A partition is ended when it is this long: what a lookup reads of a table whose partitions are
/// not in memory. Some 5,000 small records have one.
pub const PARTITION_BYTES_TARGET: usize = 8 * 1024;
/// It is ended too when its blocks take so much: their offsets are counted in 32 bits.
const BLOCKS_BYTES_TARGET: u64 = 1 << 30;
/// What a key in memory takes besides its bytes: its share of a map's node, and what the allocator
/// takes.
const KEY_BYTES: usize = 64;
/// What the parts of a partition take of the allocator.
const ALLOCATED_BYTES: usize = 48;

/// The upper ends of parts that follow each other.
#[derive(Default)]
struct Separators {
    /// The highest position that each may hold.
    positions: Vec<Position>,
    /// Of the few that end within a position: their last key.
    keys: BTreeMap<usize, Box<[u8]>>,
}

impl Separators {
    /// Takes one more off `reader`. `None` if it is not above all before it.
    fn take(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let position = Position(reader.u32()?);
        let key_length = reader.u32()? as usize;
        let key: Option<Box<[u8]>> = match key_length {
            0 => None,
            _ => Some(reader.take(key_length - 1)?.into()),
        };
        let ascends = self.last().is_none_or(|(last, end)| {
            let is_within = last == position && end.is_some();
            let is_above = key.is_none() || key.as_deref() > end;
            last < position || (is_within && is_above)
        });
        if let Some(key) = key {
            self.keys.insert(self.positions.len(), key);
        }
        self.positions.push(position);
        ascends.then_some(())
    }

    fn last(&self) -> Option<(Position, Option<&[u8]>)> {
        let at = self.positions.len().checked_sub(1)?;
        Some(self.get(at))
    }

    fn get(&self, at: usize) -> (Position, Option<&[u8]>) {
        (self.positions[at], self.keys.get(&at).map(|key| &key[..]))
    }

    /// The part that holds this key, if any does; one past the last if it is above them all.
    fn find(&self, position: Position, key: &[u8]) -> usize {
        let mut at = self.positions.partition_point(|&other| other < position);
        while self.positions.get(at) == Some(&position) {
            match self.keys.get(&at) {
                Some(last) if &last[..] < key => at += 1,
                _ => break,
            }
        }
        at
    }

    fn shrink(&mut self) {
        self.positions.shrink_to_fit();
    }

    fn bytes(&self) -> usize {
        let keys = self.keys.values().map(|key| key.len() + KEY_BYTES);
        self.positions.len() * size_of::<Position>() + keys.sum::<usize>()
    }
}

fn put_separator(position: Position, key: Option<&[u8]>, out: &mut Vec<u8>) {
    let key_length = key.map_or(0, |key| key.len() as u32 + 1);
    out.extend_from_slice(&position.0.to_le_bytes());
    out.extend_from_slice(&key_length.to_le_bytes());
    out.extend_from_slice(key.unwrap_or_default());
}

/// A run of blocks: which keys they surely do not hold, and in which of them a key is.
pub struct Partition {
    filter: Filter,
    separators: Separators,
    /// Where in the file the first block begins.
    start: u64,
    /// Where each block ends, counted from `start`.
    ends: Vec<u32>,
}

impl Partition {
    /// How many blocks it has; at least one.
    pub fn blocks(&self) -> usize {
        self.ends.len()
    }

    /// False: none of its blocks has a key with this hash.
    pub fn may_contain(&self, hash: KeyHash) -> bool {
        self.filter.may_contain(hash)
    }

    /// The block that holds this key, if any does; one past the last if it is above them all.
    pub fn find(&self, position: Position, key: &[u8]) -> usize {
        self.separators.find(position, key)
    }

    /// Where `block` begins in the file.
    pub fn offset(&self, block: usize) -> u64 {
        let before = block.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.start + u64::from(before)
    }

    /// Where `block` ends in the file.
    pub fn end(&self, block: usize) -> u64 {
        self.start + u64::from(self.ends[block])
    }

    /// Bytes of `block`, as stored.
    pub fn length(&self, block: usize) -> usize {
        (self.end(block) - self.offset(block)) as usize
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        let ends = self.ends.len() * size_of::<u32>();
        let own = size_of::<Partition>() + ALLOCATED_BYTES;
        own + self.filter.bytes() + self.separators.bytes() + ends
    }
}

/// Where the partitions of a table are, and for which keys.
pub struct Top {
    separators: Separators,
    /// Where in the file each partition begins, and where the last one ends.
    offsets: Vec<u64>,
    /// Where its blocks begin, and where the last ones end.
    starts: Vec<u64>,
}

impl Top {
    /// Takes over the bytes of [`Builder::finish`], of partitions that begin at `from` and end at
    /// `to`. `None` if they cannot be that.
    pub fn decode(bytes: &[u8], from: u64, to: u64) -> Option<Top> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32()?;
        let mut top = Top {
            separators: Separators::default(),
            offsets: vec![from],
            starts: vec![0],
        };
        let (mut offset, mut start) = (from, 0u64);
        for _ in 0..count {
            let length = reader.u32()?;
            let blocks = reader.u32()?;
            top.separators.take(&mut reader)?;
            offset = offset.checked_add(u64::from(length))?;
            start = start.checked_add(u64::from(blocks))?;
            let sane = length as usize > CRC_BYTES && blocks > 0 && offset <= to;
            sane.then_some(())?;
            top.offsets.push(offset);
            top.starts.push(start);
        }
        top.separators.shrink();
        top.offsets.shrink_to_fit();
        top.starts.shrink_to_fit();
        let sane = count > 0 && reader.is_empty() && offset == to && start == from;
        sane.then_some(top)
    }

    /// How many partitions there are; at least one.
    pub fn partitions(&self) -> usize {
        self.separators.positions.len()
    }

    /// The partition that knows of this key, if any does; one past the last if it is above them
    /// all.
    pub fn find(&self, position: Position, key: &[u8]) -> usize {
        self.separators.find(position, key)
    }

    /// Where partition `at` begins in the file.
    pub fn offset(&self, at: usize) -> u64 {
        self.offsets[at]
    }

    /// Where partition `at` ends in the file.
    pub fn end(&self, at: usize) -> u64 {
        self.offsets[at + 1]
    }

    /// Bytes of partition `at`, with its checksum.
    pub fn length(&self, at: usize) -> usize {
        (self.end(at) - self.offset(at)) as usize
    }

    /// Takes over the content of partition `at`. `None` if it cannot be that, or is not what is
    /// said of it here.
    pub fn decode_partition(&self, at: usize, content: &[u8]) -> Option<Partition> {
        let mut reader = Reader::new(content);
        let filter_length = reader.u32()? as usize;
        let filter = Filter::decode(reader.take(filter_length)?)?;
        let (mut separators, mut ends) = (Separators::default(), Vec::new());
        let mut end = 0u32;
        while !reader.is_empty() {
            let length = reader.u32()?;
            end = end.checked_add(length)?;
            (length > 0).then_some(())?;
            ends.push(end);
            separators.take(&mut reader)?;
        }
        separators.shrink();
        ends.shrink_to_fit();
        let blocks = self.starts[at + 1] - self.starts[at];
        let is_same = separators.last() == Some(self.separators.get(at));
        let sane = is_same && u64::from(end) == blocks;
        sane.then_some(Partition {
            filter,
            separators,
            start: self.starts[at],
            ends,
        })
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        let words = self.offsets.len() + self.starts.len();
        size_of::<Top>() + ALLOCATED_BYTES + words * size_of::<u64>() + self.separators.bytes()
    }

    /// About what all partitions take in memory.
    pub fn partitions_bytes(&self) -> u64 {
        let stored = self.end(self.partitions() - 1) - self.offset(0);
        let own = size_of::<Partition>() + ALLOCATED_BYTES;
        stored + (self.partitions() * own) as u64
    }
}

/// Collects the index and the filter of a table while its blocks are written.
#[derive(Default)]
pub struct Builder {
    filter: FilterBuilder,
    /// Of the blocks of the partition under way, as stored.
    entries: Vec<u8>,
    /// Where in them the last separator begins.
    separator_at: usize,
    blocks_bytes: u64,
    /// What is complete: no partition has its place yet, and so none has its checksum.
    partitions: Vec<Vec<u8>>,
    /// As stored, but for the count.
    top: Vec<u8>,
}

impl Builder {
    /// A key comes into the block under way.
    pub fn add(&mut self, hash: KeyHash) {
        self.filter.add(hash);
    }

    /// The block under way is ended: `length` bytes, whose separator this is. All keys so far are
    /// in it, or in blocks before it.
    pub fn end_block(&mut self, length: u32, position: Position, key: Option<&[u8]>) {
        assert!(length > 0, "a block has at least one entry");
        self.entries.extend_from_slice(&length.to_le_bytes());
        self.separator_at = self.entries.len();
        put_separator(position, key, &mut self.entries);
        self.blocks_bytes += u64::from(length);
        let bytes = self.filter.bytes() + self.entries.len();
        if bytes >= PARTITION_BYTES_TARGET || self.blocks_bytes >= BLOCKS_BYTES_TARGET {
            self.end_partition();
        }
    }

    /// Gives the partitions, each to have its checksum behind it, and the top. All blocks were
    /// ended.
    pub fn finish(mut self) -> (Vec<Vec<u8>>, Vec<u8>) {
        if !self.entries.is_empty() {
            self.end_partition();
        }
        let count = u32::try_from(self.partitions.len()).expect("each has some KiB");
        let mut top = count.to_le_bytes().to_vec();
        top.append(&mut self.top);
        (self.partitions, top)
    }

    fn end_partition(&mut self) {
        let filter = std::mem::take(&mut self.filter).finish();
        let filter_length = u32::try_from(filter.len()).expect("it is cut at some KiB");
        let mut partition = Vec::with_capacity(4 + filter.len() + self.entries.len());
        partition.extend_from_slice(&filter_length.to_le_bytes());
        partition.extend_from_slice(&filter);
        partition.extend_from_slice(&self.entries);
        let length = u32::try_from(partition.len() + CRC_BYTES).expect("it is cut at some KiB");
        let blocks = u32::try_from(std::mem::take(&mut self.blocks_bytes));
        let blocks = blocks.expect("it is cut at a GiB, and a block is shorter than three");
        self.top.extend_from_slice(&length.to_le_bytes());
        self.top.extend_from_slice(&blocks.to_le_bytes());
        self.top
            .extend_from_slice(&self.entries[self.separator_at..]);
        self.entries.clear();
        self.partitions.push(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partitions and top of a table with these blocks, each with so many keys.
    fn table(blocks: &[(u32, Position, Option<Vec<u8>>)], keys: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut builder = Builder::default();
        let mut number = 0u64;
        for (length, position, key) in blocks {
            for _ in 0..keys {
                builder.add(KeyHash::of(&number.to_le_bytes()));
                number += 1;
            }
            builder.end_block(*length, *position, key.as_deref());
        }
        builder.finish()
    }

    fn decode(partitions: &[Vec<u8>], top: &[u8], from: u64) -> Option<(Top, Vec<Partition>)> {
        let bytes: usize = partitions.iter().map(|it| it.len() + CRC_BYTES).sum();
        let top = Top::decode(top, from, from + bytes as u64)?;
        let decoded = partitions.iter().enumerate();
        let decoded = decoded.map(|(at, content)| top.decode_partition(at, content));
        let decoded: Option<Vec<Partition>> = decoded.collect();
        decoded.map(|decoded| (top, decoded))
    }

    /// Separators that rise, some of them within a position.
    fn random_blocks(random: &mut fastrand::Rng) -> Vec<(u32, Position, Option<Vec<u8>>)> {
        let (mut position, mut key) = (0u32, Vec::new());
        let mut blocks = Vec::new();
        for _ in 0..random.usize(1..3000) {
            let is_within = random.u8(..4) == 0;
            if is_within {
                key.push(random.u8(..));
            }
            let end = is_within.then(|| key.clone());
            blocks.push((random.u32(1..9000), Position(position), end));
            if !is_within {
                position += random.u32(1..1000);
                key.clear();
            }
        }
        blocks
    }

    #[test]
    fn top_and_partitions_find_the_block_that_a_plain_list_would() {
        let mut most = 0;
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let blocks = random_blocks(&mut random);
            let from: u64 = blocks.iter().map(|(length, ..)| u64::from(*length)).sum();
            let (partitions, top) = table(&blocks, random.u64(1..60));
            let (top, partitions) = decode(&partitions, &top, from).expect("own bytes");
            most = most.max(partitions.len());
            let places: Vec<(u64, usize)> = partitions
                .iter()
                .flat_map(|it| (0..it.blocks()).map(|block| (it.offset(block), it.length(block))))
                .collect();
            assert_eq!(places.len(), blocks.len(), "seed {seed}");
            for _ in 0..2000 {
                let (_, near, key) = &blocks[random.usize(..blocks.len())];
                let position = Position(near.0.saturating_add(random.u32(..3)).saturating_sub(1));
                let mut key = key.clone().unwrap_or_default();
                match random.u8(..4) {
                    0 => key.push(0),
                    1 => drop(key.pop()),
                    _ => {}
                }
                let is_above = |(_, last, end): &(u32, Position, Option<Vec<u8>>)| {
                    *last < position
                        || (*last == position && end.as_ref().is_some_and(|end| *end < key))
                };
                let expected = blocks.partition_point(is_above);
                let at = top.find(position, &key);
                let found = partitions.get(at).map(|partition| {
                    let block = partition.find(position, &key);
                    (partition.offset(block), partition.length(block))
                });
                assert_eq!(
                    found,
                    places.get(expected).copied(),
                    "seed {seed}: {position:?} {key:?}"
                );
            }
        }
        assert!(most > 10, "there were hardly any partitions: {most}");
    }

    #[test]
    fn a_partition_knows_its_own_keys_and_takes_what_it_says() {
        let blocks: Vec<_> = (0..2000).map(|at| (4000, Position(at * 7), None)).collect();
        let (stored, top) = table(&blocks, 37);
        let (top, partitions) = decode(&stored, &top, 8_000_000).expect("own bytes");
        let mut number = 0u64;
        for (partition, stored) in partitions.iter().zip(&stored) {
            for _ in 0..partition.blocks() as u64 * 37 {
                assert!(
                    partition.may_contain(KeyHash::of(&number.to_le_bytes())),
                    "{number}"
                );
                number += 1;
            }
            assert!(
                stored.len() < PARTITION_BYTES_TARGET + 200,
                "{} bytes",
                stored.len()
            );
        }
        assert_eq!(number, 2000 * 37);
        let bytes: usize = partitions.iter().map(Partition::bytes).sum();
        assert!(
            bytes as u64 <= top.partitions_bytes(),
            "more than was expected"
        );
        assert!(
            top.bytes() * 100 < bytes,
            "the top is {} of {bytes} bytes",
            top.bytes()
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let blocks: Vec<_> = (0..900).map(|at| (4000, Position(at * 7), None)).collect();
        let (partitions, top) = table(&blocks, 37);
        let from = 900 * 4000;
        assert!(partitions.len() > 2 && decode(&partitions, &top, from).is_some());
        let swapped: Vec<_> = partitions.iter().rev().cloned().collect();
        assert!(
            decode(&swapped, &top, from).is_none(),
            "partitions in each other's place"
        );
        assert!(
            decode(&partitions, &top, from + 1).is_none(),
            "more blocks than there are"
        );
        assert!(
            decode(&partitions[1..], &top, from).is_none(),
            "a partition is missing"
        );
        for length in 0..top.len() {
            assert!(
                decode(&partitions, &top[..length], from).is_none(),
                "{length}"
            );
        }
        let longer = [&top[..], &[0]].concat();
        assert!(decode(&partitions, &longer, from).is_none());
        for length in 0..partitions[0].len() {
            let (top, _) = decode(&partitions, &top, from).expect("own bytes");
            let cut = top.decode_partition(0, &partitions[0][..length]);
            assert!(cut.is_none(), "a partition of {length} bytes");
        }
        let mut huge = partitions.clone();
        huge[0][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(
            decode(&huge, &top, from).is_none(),
            "a filter longer than all"
        );
        let descending = [(4000, Position(9), None), (4000, Position(8), None)];
        let (partitions, top) = table(&descending, 1);
        assert!(
            decode(&partitions, &top, 8000).is_none(),
            "separators descend"
        );
    }
}
