//! What is kept in memory of what tables hold: whole records by key, where large values lie by key,
//! and blocks and partitions of indexes that were verified.
//!
//! All caches have a budget in bytes and keep what is asked for again (S3-FIFO, by `quick_cache`).
//! Lookups of single keys fill them; walks and merges go past them. But while there is room, blocks
//! that are written come here, too, in the place of those that a merge has replaced: else a small
//! tree would be read anew after each merge.
//!
//! Neither a block nor a partition ever changes, and no table's number is used twice: what is
//! cached of them is never wrong. A row may become so. Invariant: a row is the newest record of its
//! key, whole, be that in a table or in a memtable as a pointer to the value log. Readers ask
//! memtables first; a write takes its key's row out before any reader sees the write, and a clear
//! takes out all. A lookup that began before a write may end after it, with the old record in hand:
//! a [`Ticket`], taken where the lookup began, tells whether anything was written since to a key of
//! the same mark. The same holds for a key's pointer, which the collector takes out when it moves
//! the value. Only what merges drop of expired records leaves a pointer here whose segment may go:
//! whoever finds one asks whether the segment lives.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::block::Block;
use super::record::{KeyRef, Record};
use super::sstable::{Partition, TableId};
use crate::rt::{self, Bug};
use crate::types::KeyHash;

/// What an entry takes besides its bytes: its slots, and what the allocator takes.
const ENTRY_BYTES: u64 = 96;
/// Pointers get this part of the budget, rows half of it, blocks the rest.
const POINTERS_SHARE: u64 = 8;
/// No entry takes more than this part of its cache.
const ENTRY_SHARE: u64 = 8;
/// The budget is made for entries of this size on average; others only cost some memory more or
/// less.
const ENTRY_BYTES_EXPECTED: u64 = 2048;
/// Keys are told apart by marks up to this number, when writes and lookups pass each other.
const MARKS: usize = 1024;

/// A block whose checksum was verified, unpacked.
pub type CachedBlock = Rc<Block<'static>>;

/// A core's caches.
pub struct Caches {
    /// Whole records, and pointers to large ones.
    pub rows: Rows,
    /// Blocks of tables, and partitions that are read by need.
    pub blocks: Blocks,
}

/// What was asked of partitions that are read by need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionStats {
    /// Lookups that found one in the cache.
    pub hits: u64,
    /// Lookups that had to read one.
    pub reads: u64,
}

impl PartitionStats {
    /// Adds another core's.
    pub fn add(&mut self, other: &PartitionStats) {
        self.hits += other.hits;
        self.reads += other.reads;
    }
}

/// What a cache holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Lookups that it answered.
    pub hits: u64,
    /// Lookups that it did not.
    pub misses: u64,
    /// Bytes that it holds.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub budget: u64,
}

impl CacheStats {
    /// Adds another core's.
    pub fn add(&mut self, other: &CacheStats) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.bytes += other.bytes;
        self.budget += other.budget;
    }
}

impl Caches {
    /// Caches that may hold `budget` bytes together.
    pub fn new(budget: u64) -> Caches {
        let caches = Caches {
            rows: Rows {
                cache: Bounded::new(),
                pointers: Bounded::new(),
                marks: std::array::from_fn(|_| Cell::new(0)),
            },
            blocks: Blocks {
                cache: Bounded::new(),
                partitions: Cell::default(),
            },
        };
        caches.set_budget(budget);
        caches
    }

    /// Changes how many bytes they may hold together; gives up what is too much.
    pub fn set_budget(&self, budget: u64) {
        let (rows, pointers) = (budget / 2, budget / POINTERS_SHARE);
        self.rows.cache.set_budget(rows);
        self.rows.pointers.set_budget(pointers);
        self.blocks.cache.set_budget(budget - rows - pointers);
    }
}

/// By key: the newest records that are whole, and the newest that tables hold as pointers.
pub struct Rows {
    cache: Bounded<u64, Record>,
    pointers: Bounded<u64, Record>,
    /// Rise when a key of theirs is written.
    marks: [Cell<u64>; MARKS],
}

/// Where a lookup began.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    hash: KeyHash,
    mark: u64,
}

impl Rows {
    /// The record of `key`, if it is here. Ask memtables first: a record of them that is whole has
    /// no row.
    pub fn get(&self, key: &KeyRef<'_>) -> Option<Record> {
        // Two keys may have one hash.
        self.cache.get(&key.hash.0, |row| row.key() == key.key)
    }

    /// The pointer that tables hold as the newest record of `key`, if it is here. Ask memtables
    /// first.
    pub fn pointer(&self, key: &KeyRef<'_>) -> Option<Record> {
        let pointers = &self.pointers;
        pointers.get(&key.hash.0, |pointing| pointing.key() == key.key)
    }

    /// To be taken with the tables, or the pointer, that a lookup will read.
    pub fn ticket(&self, hash: KeyHash) -> Ticket {
        let mark = self.mark(hash).get();
        Ticket { hash, mark }
    }

    /// A lookup on disk, of the key that `ticket` was taken for, found `record`.
    pub fn fill(&self, ticket: Ticket, record: &Record) {
        assert!(record.pointer().is_none(), "a row is whole");
        if self.mark(ticket.hash).get() == ticket.mark {
            self.cache.insert(ticket.hash.0, record.clone());
        }
    }

    /// A lookup in tables, of the key that `ticket` was taken for, found the pointer `pointing`.
    pub fn fill_pointer(&self, ticket: Ticket, pointing: &Record) {
        assert!(pointing.pointer().is_some(), "a row of its own");
        if self.mark(ticket.hash).get() == ticket.mark {
            self.pointers.insert(ticket.hash.0, pointing.clone());
        }
    }

    /// `record` is the newest of its key at this moment, and its memtable keeps only a pointer to
    /// it.
    pub fn keep(&self, hash: KeyHash, record: &Record) {
        assert!(record.pointer().is_none(), "a row is whole");
        self.cache.insert(hash.0, record.clone());
    }

    /// A key is written, or its record goes.
    pub fn forget(&self, hash: KeyHash) {
        if rt::planted(Bug::StaleRow) {
            return;
        }
        let mark = self.mark(hash);
        mark.set(mark.get() + 1);
        self.cache.remove(&hash.0);
        self.pointers.remove(&hash.0);
    }

    /// All that there is dies.
    pub fn clear(&self) {
        self.marks.iter().for_each(|mark| mark.set(mark.get() + 1));
        self.cache.clear();
        self.pointers.clear();
    }

    /// What it holds of whole records, and has done.
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// What it holds of pointers, and has done.
    pub fn pointer_stats(&self) -> CacheStats {
        self.pointers.stats()
    }

    fn mark(&self, hash: KeyHash) -> &Cell<u64> {
        &self.marks[hash.0 as usize % MARKS]
    }
}

/// Blocks and partitions of tables, by table and offset.
pub struct Blocks {
    cache: Bounded<(TableId, u64), Cached>,
    partitions: Cell<PartitionStats>,
}

/// What a table has at some offset.
#[derive(Clone)]
enum Cached {
    Block(CachedBlock),
    Partition(Rc<Partition>),
}

impl Blocks {
    /// The block of `table` at `offset`, if it is here.
    pub fn get(&self, table: TableId, offset: u64) -> Option<CachedBlock> {
        match self.cache.get(&(table, offset), |_| true)? {
            Cached::Block(block) => Some(block),
            Cached::Partition(_) => None,
        }
    }

    /// A lookup has read and verified this block.
    pub fn fill(&self, table: TableId, offset: u64, block: CachedBlock) {
        self.cache.insert((table, offset), Cached::Block(block));
    }

    /// True if `bytes` more can be kept without giving anything up.
    pub fn has_room(&self, bytes: usize) -> bool {
        let CacheStats {
            bytes: kept,
            budget,
            ..
        } = self.cache.stats();
        kept + bytes as u64 + ENTRY_BYTES <= budget
    }

    /// Nobody asks for the block of `table` at `offset` any more.
    pub fn forget(&self, table: TableId, offset: u64) {
        self.cache.remove(&(table, offset));
    }

    /// The partition of `table` at `offset`, if it is here. If not, the caller reads it.
    pub fn partition(&self, table: TableId, offset: u64) -> Option<Rc<Partition>> {
        let mut stats = self.partitions.get();
        let found = match self.cache.find(&(table, offset)) {
            Some(Cached::Partition(partition)) => Some(partition),
            _ => None,
        };
        match found {
            Some(_) => stats.hits += 1,
            None => stats.reads += 1,
        }
        self.partitions.set(stats);
        found
    }

    /// A lookup has read and verified this partition.
    pub fn fill_partition(&self, table: TableId, offset: u64, partition: Rc<Partition>) {
        let partition = Cached::Partition(partition);
        self.cache.insert((table, offset), partition);
    }

    /// What it holds, partitions too, and what it has done for blocks.
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// What it has done for partitions.
    pub fn partition_stats(&self) -> PartitionStats {
        self.partitions.get()
    }
}

/// What a cached thing takes.
trait Weigh {
    fn bytes(&self) -> u64;
}

impl Weigh for Record {
    fn bytes(&self) -> u64 {
        self.bytes().len() as u64
    }
}

impl Weigh for Cached {
    fn bytes(&self) -> u64 {
        match self {
            Cached::Block(block) => block.bytes() as u64,
            Cached::Partition(partition) => partition.bytes() as u64,
        }
    }
}

#[derive(Clone)]
struct Weights;

impl<K, V: Weigh> Weighter<K, V> for Weights {
    fn weight(&self, _: &K, value: &V) -> u64 {
        value.bytes() + ENTRY_BYTES
    }
}

/// A cache with a budget that may change, and counters.
struct Bounded<K, V: Weigh> {
    cache: RefCell<Unsync<K, V>>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

/// The hash is the same in each run: a simulated one must be repeatable.
type Unsync<K, V> = Cache<K, V, Weights, BuildHasherDefault<Mixer>, DefaultLifecycle<K, V>>;

impl<K: Eq + std::hash::Hash + Clone, V: Weigh + Clone> Bounded<K, V> {
    fn new() -> Bounded<K, V> {
        Bounded {
            cache: RefCell::new(empty(0)),
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    fn set_budget(&self, budget: u64) {
        let mut cache = self.cache.borrow_mut();
        if cache.is_empty() {
            *cache = empty(budget); // the number of entries to expect is another one, too
        } else {
            cache.set_capacity(budget);
        }
    }

    fn get(&self, key: &K, is_right: impl Fn(&V) -> bool) -> Option<V> {
        let cache = self.cache.borrow();
        let found = cache.get(key).filter(|value| is_right(value)).cloned();
        let count = match found {
            Some(_) => &self.hits,
            None => &self.misses,
        };
        count.set(count.get() + 1);
        found
    }

    /// The same without counting it.
    fn find(&self, key: &K) -> Option<V> {
        self.cache.borrow().get(key).cloned()
    }

    fn insert(&self, key: K, value: V) {
        let mut cache = self.cache.borrow_mut();
        if value.bytes() + ENTRY_BYTES <= cache.capacity() / ENTRY_SHARE {
            cache.insert(key, value);
        } else {
            cache.remove(&key);
        }
    }

    fn remove(&self, key: &K) {
        let mut cache = self.cache.borrow_mut();
        if !cache.is_empty() {
            cache.remove(key);
        }
    }

    fn clear(&self) {
        self.cache.borrow_mut().clear();
    }

    fn stats(&self) -> CacheStats {
        let cache = self.cache.borrow();
        CacheStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            bytes: cache.weight(),
            budget: cache.capacity(),
        }
    }
}

fn empty<K: Eq + std::hash::Hash, V: Weigh>(budget: u64) -> Unsync<K, V> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity((budget / ENTRY_BYTES_EXPECTED).max(1) as usize)
        .weight_capacity(budget)
        .build()
        .expect("both are given");
    Cache::with_options(
        options,
        Weights,
        BuildHasherDefault::default(),
        DefaultLifecycle::default(),
    )
}

/// Mixes numbers; a key's hash is one already.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // An odd constant without pattern (2^64 divided by the golden ratio).
        let mixed = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Compression;
    use crate::storage::block::{BlockBuilder, Identity};
    use crate::storage::record::{Meta, Pointer};
    use crate::storage::wal::format::{SegmentId, Stream};
    use crate::types::{Position, Version};
    use std::collections::BTreeMap;

    fn record(key: &[u8], clock: u64, bytes: usize) -> Record {
        let version = Version {
            clock,
            coordinator: 1,
        };
        let meta = Meta {
            version,
            expiry: 0,
            tombstone: false,
        };
        Record::new(meta, key, &vec![7; bytes])
    }

    /// Reads `key` as a lookup does that nothing passes.
    fn read(rows: &Rows, tables: &BTreeMap<Vec<u8>, Record>, key: &[u8]) -> Option<Record> {
        let key = KeyRef::of(key);
        rows.get(&key).or_else(|| {
            let ticket = rows.ticket(key.hash);
            let found = tables.get(key.key)?;
            rows.fill(ticket, found);
            Some(found.clone())
        })
    }

    #[test]
    fn a_row_is_what_the_tables_have_whatever_passes_whatever() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let caches = Caches::new(random.u64(0..30_000));
            let rows = &caches.rows;
            let mut tables: BTreeMap<Vec<u8>, Record> = BTreeMap::new();
            let mut memory = tables.clone();
            // Lookups under way: what they will find was decided when they began.
            let mut lookups: Vec<(Ticket, Option<Record>)> = Vec::new();
            for clock in 0..600 {
                let key = format!("key {}", random.u8(..20)).into_bytes();
                match random.u8(..10) {
                    0..3 => {
                        rows.forget(KeyHash::of(&key));
                        let bytes = random.usize(..300);
                        memory.insert(key.clone(), record(&key, clock, bytes));
                    }
                    3 => tables.append(&mut memory),
                    4 if random.u8(..10) == 0 => {
                        rows.clear();
                        (memory, tables) = (BTreeMap::new(), BTreeMap::new());
                    }
                    4 | 5 => {
                        if !memory.contains_key(&key) {
                            let ticket = rows.ticket(KeyHash::of(&key));
                            lookups.push((ticket, tables.get(&key).cloned()));
                        }
                    }
                    6 if !lookups.is_empty() => {
                        let (ticket, found) = lookups.swap_remove(random.usize(..lookups.len()));
                        if let Some(found) = found {
                            rows.fill(ticket, &found);
                        }
                    }
                    _ => {
                        let expected = memory.get(&key).or(tables.get(&key)).cloned();
                        let found = match memory.get(&key) {
                            Some(record) => Some(record.clone()),
                            None => read(rows, &tables, &key),
                        };
                        assert_eq!(found, expected, "seed {seed}: a stale row was served");
                    }
                }
            }
        }
    }

    #[test]
    fn caches_keep_their_budget_and_what_is_asked_for_again() {
        let caches = Caches::new(200_000);
        let rows = &caches.rows;
        let mut random = fastrand::Rng::with_seed(1);
        let tables: BTreeMap<Vec<u8>, Record> = (0..10_000u32)
            .map(|key| {
                (
                    key.to_le_bytes().to_vec(),
                    record(&key.to_le_bytes(), 1, 200),
                )
            })
            .collect();
        for round in 0..20_000u32 {
            // A hundred keys are hot; the others come once each, as a scan by GETs has them.
            let hot = random.u32(..100);
            read(rows, &tables, &hot.to_le_bytes()).expect("it is in the tables");
            read(rows, &tables, &(round % 10_000).to_le_bytes()).expect("it is, too");
            assert!(rows.stats().bytes <= 100_000, "round {round}: over budget");
        }
        let before = rows.stats();
        for hot in 0..100u32 {
            read(rows, &tables, &hot.to_le_bytes()).expect("it is in the tables");
        }
        let hits = rows.stats().hits - before.hits;
        assert!(
            hits >= 95,
            "a scan has driven out what is hot: {hits} of 100 left"
        );
        caches.set_budget(20_000);
        assert!(rows.stats().bytes <= 10_000, "a smaller budget is not kept");
        caches.set_budget(0);
        assert_eq!(rows.stats().bytes, 0);
        read(rows, &tables, &5u32.to_le_bytes()).expect("it is in the tables");
        assert_eq!(
            rows.stats().bytes,
            0,
            "nothing may be kept, and something is"
        );
    }

    #[test]
    fn one_large_value_does_not_drive_out_all_others() {
        let caches = Caches::new(200_000);
        let small = record(b"small", 1, 100);
        let large = record(b"large", 1, 50_000);
        for record in [&small, &large] {
            let hash = KeyHash::of(record.key());
            caches.rows.fill(caches.rows.ticket(hash), record);
        }
        assert_eq!(caches.rows.get(&KeyRef::of(b"small")), Some(small));
        assert_eq!(caches.rows.get(&KeyRef::of(b"large")), None);
    }

    #[test]
    fn a_pointer_that_was_found_before_its_value_moved_is_not_kept() {
        let caches = Caches::new(200_000);
        let rows = &caches.rows;
        let whole = record(b"key", 1, 5_000);
        let key = KeyRef::of(b"key");
        let place = |offset: u32| {
            let place = Pointer {
                stream: Stream::Values,
                segment: SegmentId(1),
                offset,
                length: whole.bytes().len() as u32,
                crc: 0,
                value_length: 5_000,
            };
            Record::pointing(whole.view(), place)
        };
        let (before, after) = (rows.ticket(key.hash), place(0));
        rows.forget(key.hash);
        rows.fill_pointer(before, &after);
        assert_eq!(rows.pointer(&key), None, "a stale pointer is kept");
        rows.fill_pointer(rows.ticket(key.hash), &after);
        assert_eq!(rows.pointer(&key), Some(after.clone()));
        assert_eq!(rows.get(&key), None, "a pointer is no row");
        rows.forget(key.hash);
        assert_eq!(rows.pointer(&key), None, "a write leaves the old pointer");
        rows.fill_pointer(rows.ticket(key.hash), &after);
        rows.clear();
        assert_eq!(rows.pointer(&key), None, "a clear leaves the old pointer");
        assert_eq!(rows.pointer_stats().hits, 1);
    }

    #[test]
    fn two_keys_with_one_hash_are_not_taken_for_each_other() {
        let caches = Caches::new(200_000);
        let one = record(b"one", 1, 10);
        let hash = KeyHash::of(b"one");
        caches.rows.fill(caches.rows.ticket(hash), &one);
        let two = KeyRef {
            hash,
            ..KeyRef::of(b"two")
        };
        assert_eq!(
            caches.rows.get(&two),
            None,
            "another key's value was served"
        );
        assert_eq!(caches.rows.get(&KeyRef::of(b"one")), Some(one));
    }

    #[test]
    fn a_block_is_found_by_its_table_and_offset() {
        let caches = Caches::new(1 << 20);
        let block = |table: u64, offset: u64| {
            let mut builder = BlockBuilder::new(Compression::Lz4);
            let key = format!("{table} {offset}");
            builder.add(Position(1), record(key.as_bytes(), 1, 10).view());
            let (at, mut bytes) = (Identity { table, offset }, Vec::new());
            builder.finish(at, &mut bytes);
            Rc::new(Block::decode(&bytes, at).expect("undamaged").into_owned())
        };
        let places = [(1, 0), (1, 4096), (2, 0), (4096, 1)];
        for (table, offset) in places {
            let fresh = block(table, offset);
            caches.blocks.fill(TableId(table), offset, fresh);
        }
        for (table, offset) in places {
            let found = caches.blocks.get(TableId(table), offset).expect("it fits");
            let key = format!("{table} {offset}");
            let key = KeyRef {
                position: Position(1),
                ..KeyRef::of(key.as_bytes())
            };
            assert!(
                found.get(&key).expect("undamaged").is_some(),
                "another block"
            );
        }
        assert!(caches.blocks.get(TableId(1), 1).is_none());
        assert_eq!(caches.blocks.stats().hits, 4);
        assert_eq!(caches.blocks.stats().misses, 1);
    }
}
