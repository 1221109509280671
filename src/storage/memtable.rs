//! The newest records of one core, sorted in memory until they are flushed to a table.
//!
//! A sorted sequence cut into chunks of at most [`CHUNK_ENTRIES_MAX`] entries. One array holds the
//! position of each chunk's first key and each chunk holds its positions apart from its entries, so
//! a search compares dense 32-bit integers and follows a record's pointer only where positions tie.
//! With 600,000 random keys an insert takes 140 ns and a lookup 240 ns, half of what a `BTreeSet`
//! of the same entries takes, at the same 52 bytes a slot; half as many or twice as many entries a
//! chunk differ little.
//!
//! Invariants: no chunk is empty; entries ascend strictly by (position, key) within and across
//! chunks; `bytes` is the sum of `entry_bytes` over all entries; of two records of one key the one
//! with the higher version is kept.

use std::cmp::Ordering;

use crate::storage::merge::{Bound, supersedes};
use crate::storage::record::{KeyRef, Record};
use crate::types::{Lsn, Position, Version};

const CHUNK_ENTRIES_MAX: usize = 128;
const CACHE_LINE_BYTES: usize = 64;

/// What an entry costs besides its record's bytes: its slot in a chunk that is seven tenths full
/// on average, and what the allocator and the reference count take.
const ENTRY_OVERHEAD_BYTES: usize = 80;
const _: () = assert!(size_of::<Entry>() == 32);

/// Positions that [`Memtable::warm`] looks at together.
pub const WARM_MAX: usize = 16;

/// A record in the memtable.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The position of its key.
    pub position: Position,
    /// Its place in the log.
    pub lsn: Lsn,
}

/// What became of an inserted record.
#[derive(Debug)]
pub enum Inserted {
    /// The key was not there.
    Added,
    /// It took the place of this older one.
    Replaced(Entry),
    /// One that is as new or newer is there: nothing was changed.
    Stale,
}

/// Sorted records with one owner.
#[derive(Default)]
pub struct Memtable {
    /// The position of each chunk's first entry.
    firsts: Vec<Position>,
    chunks: Vec<Chunk>,
    len: usize,
    bytes: usize,
    version_max: Version,
}

struct Chunk {
    positions: Vec<Position>,
    entries: Vec<Entry>,
}

impl Memtable {
    /// An empty one.
    pub fn new() -> Memtable {
        Memtable::default()
    }

    /// Keeps `record`, whose key is at `position`, unless one of the same key that is as new is
    /// there.
    pub fn insert(&mut self, record: Record, position: Position, lsn: Lsn) -> Inserted {
        self.version_max = self.version_max.max(record.meta().version);
        let chunk_index = self.chunk_of(position, record.key());
        let added = entry_bytes(&record);
        let entry = Entry {
            record,
            position,
            lsn,
        };
        let Some(chunk) = self.chunks.get_mut(chunk_index) else {
            assert!(self.is_empty(), "only an empty memtable has no chunk");
            self.firsts.push(position);
            self.chunks.push(Chunk::with_room());
            self.chunks[0].insert_at(0, entry);
            return self.count_added(added);
        };
        match chunk.search(position, entry.record.key()) {
            Ok(at) => {
                let old = &mut chunk.entries[at];
                if !supersedes(&entry.record, &old.record) {
                    return Inserted::Stale;
                }
                let old = std::mem::replace(old, entry);
                self.bytes = self.bytes + added - entry_bytes(&old.record);
                Inserted::Replaced(old)
            }
            Err(at) => {
                chunk.insert_at(at, entry);
                self.firsts[chunk_index] = chunk.positions[0];
                if chunk.entries.len() == CHUNK_ENTRIES_MAX {
                    self.split(chunk_index);
                }
                self.count_added(added)
            }
        }
    }

    /// Puts `pointer` in the place of the record that it stands for, which was written as `lsn`.
    /// False if that one is not here any more.
    pub fn point(&mut self, pointer: Record, position: Position, lsn: Lsn) -> bool {
        let index = self.chunk_of(position, pointer.key());
        let Some(chunk) = self.chunks.get_mut(index) else {
            return false;
        };
        let Ok(at) = chunk.search(position, pointer.key()) else {
            return false;
        };
        let entry = &mut chunk.entries[at];
        if entry.lsn != lsn || entry.record.meta() != pointer.meta() {
            return false;
        }
        self.bytes = self.bytes + entry_bytes(&pointer) - entry_bytes(&entry.record);
        entry.record = pointer;
        true
    }

    /// Takes the record of `key` out, if there is one.
    pub fn remove(&mut self, key: &KeyRef) -> Option<Entry> {
        let index = self.chunk_of(key.position, key.key);
        let chunk = self.chunks.get_mut(index)?;
        let at = chunk.search(key.position, key.key).ok()?;
        chunk.positions.remove(at);
        let entry = chunk.entries.remove(at);
        match chunk.positions.first() {
            Some(&first) => self.firsts[index] = first,
            None => {
                self.chunks.remove(index);
                self.firsts.remove(index);
            }
        }
        self.len -= 1;
        self.bytes -= entry_bytes(&entry.record);
        Some(entry)
    }

    /// The newest record of `key`, if it is here.
    pub fn get(&self, key: &KeyRef) -> Option<&Entry> {
        let chunk = self.chunks.get(self.chunk_of(key.position, key.key))?;
        let at = chunk.search(key.position, key.key).ok()?;
        Some(&chunk.entries[at])
    }

    /// Has the processor fetch what lookups at `positions` will need, for all of them at the same
    /// time: no load in here waits for one that is made for another position.
    pub fn warm(&self, positions: &[Position]) {
        assert!(positions.len() <= WARM_MAX);
        let mut slots = [None; WARM_MAX];
        for (slot, position) in slots.iter_mut().zip(positions) {
            let after = self.firsts.partition_point(|first| first <= position);
            if let Some(chunk) = self.chunks.get(after.saturating_sub(1)) {
                let at = chunk.positions.partition_point(|other| other < position);
                *slot = chunk.entries.get(at);
            }
        }
        let mut touched = 0;
        for entry in slots.iter().flatten() {
            touched += entry.record.bytes().len();
        }
        for entry in slots.iter().flatten() {
            let bytes = entry.record.bytes();
            for at in [0, CACHE_LINE_BYTES, 2 * CACHE_LINE_BYTES] {
                touched += usize::from(bytes[at.min(bytes.len() - 1)]);
            }
        }
        std::hint::black_box(touched);
    }

    /// All entries that `bound` admits, in order.
    pub fn iter_from(&self, bound: Bound<'_>) -> impl Iterator<Item = &Entry> {
        let key = match bound {
            Bound::From(_) => &[][..],
            Bound::After(_, key) => key,
        };
        let first = self.chunk_of(bound.position(), key);
        let at = match self.chunks.get(first) {
            None => 0,
            Some(chunk) => match (chunk.search(bound.position(), key), bound) {
                (Ok(at), Bound::After(..)) => at + 1,
                (Ok(at) | Err(at), _) => at,
            },
        };
        let chunks = self.chunks.get(first..).unwrap_or_default();
        chunks.iter().flat_map(|chunk| &chunk.entries).skip(at)
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.iter_from(Bound::START)
    }

    /// Memory that it takes: records and what holds them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys are here.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is here.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The highest version that was ever inserted; [`Version::ZERO`] if none was.
    pub fn version_max(&self) -> Version {
        self.version_max
    }

    fn count_added(&mut self, bytes: usize) -> Inserted {
        self.len += 1;
        self.bytes += bytes;
        Inserted::Added
    }

    /// The chunk that holds this key or would: the last one that starts at or before it, else the
    /// first.
    fn chunk_of(&self, position: Position, key: &[u8]) -> usize {
        let mut after = self.firsts.partition_point(|&first| first < position);
        if self.firsts.get(after) == Some(&position) {
            // Rare: a chunk begins within this position, so keys decide.
            let ties = self.firsts[after..].partition_point(|&first| first == position);
            let tied = &self.chunks[after..after + ties];
            after += tied.partition_point(|chunk| chunk.entries[0].record.key() <= key);
        }
        after.saturating_sub(1)
    }

    fn split(&mut self, index: usize) {
        let chunk = &mut self.chunks[index];
        let half = chunk.entries.len() / 2;
        let mut upper = Chunk::with_room();
        upper.positions.extend(chunk.positions.drain(half..));
        upper.entries.extend(chunk.entries.drain(half..));
        assert!(!chunk.entries.is_empty());
        assert!(!upper.entries.is_empty());
        self.firsts.insert(index + 1, upper.positions[0]);
        self.chunks.insert(index + 1, upper);
        assert_eq!(self.firsts.len(), self.chunks.len());
    }
}

impl Chunk {
    fn with_room() -> Chunk {
        Chunk {
            positions: Vec::with_capacity(CHUNK_ENTRIES_MAX),
            entries: Vec::with_capacity(CHUNK_ENTRIES_MAX),
        }
    }

    fn insert_at(&mut self, at: usize, entry: Entry) {
        assert!(self.entries.len() < CHUNK_ENTRIES_MAX);
        self.positions.insert(at, entry.position);
        self.entries.insert(at, entry);
    }

    /// Where this key is, or else where it belongs.
    fn search(&self, position: Position, key: &[u8]) -> Result<usize, usize> {
        let mut at = self.positions.partition_point(|&other| other < position);
        while self.positions.get(at) == Some(&position) {
            match self.entries[at].record.key().cmp(key) {
                Ordering::Less => at += 1,
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
            }
        }
        Err(at)
    }
}

/// What this record adds to [`Memtable::bytes`].
fn entry_bytes(record: &Record) -> usize {
    record.bytes().len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::Meta;
    use crate::types::KeyHash;
    use std::collections::BTreeMap;

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

    type Model = BTreeMap<(Position, Vec<u8>), Record>;

    fn check_equal(table: &Memtable, model: &Model, seed: u64) {
        let held = table.iter().map(|entry| &entry.record);
        assert!(held.eq(model.values()), "seed {seed}: contents differ");
        let bytes: usize = model.values().map(entry_bytes).sum();
        assert_eq!(table.bytes(), bytes, "seed {seed}: bytes are not exact");
        assert_eq!(table.len(), model.len(), "seed {seed}");
        assert_eq!(table.is_empty(), model.is_empty(), "seed {seed}");
    }

    #[test]
    fn warming_positions_that_hold_nothing_or_lie_at_the_ends_is_harmless() {
        let ends = [Position(0), Position(5), Position(6), Position(u32::MAX)];
        let mut table = Memtable::new();
        table.warm(&ends);
        for number in 0..3 * CHUNK_ENTRIES_MAX as u32 {
            let key = number.to_le_bytes();
            table.insert(record(&key, 1, b""), Position(5 + number % 2), Lsn(1));
        }
        table.warm(&ends);
        table.warm(&[]);
        assert_eq!(table.len(), 3 * CHUNK_ENTRIES_MAX);
    }

    /// Versions are never equal, but a peer may send what it likes: replicas and tables must then
    /// agree on which of two records wins, or a core would end over what it has admitted.
    #[test]
    fn of_equal_versions_the_one_of_higher_rank_wins() {
        let version = Version {
            clock: 7,
            coordinator: 1,
        };
        let of = |expiry, tombstone| {
            let meta = Meta {
                version,
                expiry,
                tombstone,
            };
            Record::new(meta, b"key", b"")
        };
        let rising = [of(0, false), of(5, false), of(9, false), of(0, true)];
        let position = Position::of(b"key");
        for (at, record) in rising.iter().enumerate() {
            for (other_at, other) in rising.iter().enumerate() {
                let mut table = Memtable::new();
                table.insert(other.clone(), position, Lsn(1));
                let inserted = table.insert(record.clone(), position, Lsn(2));
                let is_replaced = matches!(inserted, Inserted::Replaced(_));
                assert_eq!(is_replaced, at > other_at, "{at} after {other_at}");
            }
        }
    }

    /// Positions are drawn from `positions`: few of them make many keys tie.
    fn run_against_model(seed: u64, steps: usize, positions: u32) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut table, mut model) = (Memtable::new(), Model::new());
        let mut newest = Version::ZERO;
        for lsn in 0..steps {
            let key = random.u32(0..steps as u32).to_le_bytes();
            let position = Position(KeyHash::of(&key).0 as u32 % positions);
            let record = record(&key, random.u64(1..100), &vec![7; random.usize(0..30)]);
            let version = record.meta().version;
            newest = newest.max(version);
            let order = (position, key.to_vec());
            let old = model.get(&order).cloned();
            match table.insert(record.clone(), position, Lsn(lsn as u64)) {
                Inserted::Added => assert!(old.is_none(), "seed {seed}"),
                Inserted::Replaced(entry) => {
                    assert_eq!(Some(&entry.record), old.as_ref(), "seed {seed}");
                    assert!(entry.record.meta().version < version, "seed {seed}");
                }
                Inserted::Stale => {
                    let old = old.expect("stale only beside another");
                    assert!(
                        old.meta().version >= version,
                        "seed {seed}: a newer write was lost"
                    );
                    continue;
                }
            }
            model.insert(order, record);
        }
        check_equal(&table, &model, seed);
        assert_eq!(table.version_max(), newest, "seed {seed}");
        for ((position, key), record) in &model {
            let hash = KeyHash::of(key);
            let key = KeyRef {
                position: *position,
                hash,
                key,
            };
            let entry = table.get(&key).expect("what the model has");
            assert_eq!(&entry.record, record, "seed {seed}");
        }
        check_walks(&table, &model, &mut random, positions);
    }

    fn check_walks(table: &Memtable, model: &Model, random: &mut fastrand::Rng, positions: u32) {
        for _ in 0..50 {
            let key = random.u32(0..2000).to_le_bytes();
            let position = Position(random.u32(0..positions));
            let known = model
                .keys()
                .nth(random.usize(0..model.len()))
                .expect("in range");
            for bound in [
                Bound::From(position),
                Bound::After(position, &key),
                Bound::After(known.0, &known.1),
            ] {
                let expected = model.iter().filter(|((at, key), _)| bound.admits(*at, key));
                let walked = table.iter_from(bound).map(|entry| &entry.record);
                assert!(walked.eq(expected.map(|(_, record)| record)), "{bound:?}");
            }
        }
    }

    #[test]
    fn a_memtable_is_a_sorted_map_that_keeps_the_newest() {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let steps = random.usize(1..3000);
            run_against_model(seed, steps, u32::MAX);
            run_against_model(seed, steps, 3);
        }
    }

    #[test]
    fn a_pointer_takes_only_the_place_of_the_write_that_it_stands_for() {
        use crate::storage::record::Pointer;
        use crate::storage::wal::format::{SegmentId, Stream};
        let old = record(b"key", 1, &[7; 5000]);
        let pointer = Record::pointing(
            old.view(),
            Pointer {
                stream: Stream::Values,
                segment: SegmentId(1),
                offset: 4096,
                length: old.bytes().len() as u32,
                crc: 0,
                value_length: 5000,
            },
        );
        let mut table = Memtable::new();
        assert!(!table.point(pointer.clone(), Position(1), Lsn(5)));
        table.insert(old, Position(1), Lsn(5));
        let whole = table.bytes();
        assert!(!table.point(pointer.clone(), Position(1), Lsn(6)));
        assert!(table.point(pointer.clone(), Position(1), Lsn(5)));
        assert!(
            table.bytes() < whole - 4000,
            "the value's bytes are still counted"
        );
        table.insert(record(b"key", 2, b"new"), Position(1), Lsn(5));
        assert!(
            !table.point(pointer, Position(1), Lsn(5)),
            "a pointer took the place of a newer record"
        );
    }

    #[test]
    fn an_empty_memtable_has_nothing_anywhere() {
        let table = Memtable::new();
        assert!(table.get(&KeyRef::of(b"key")).is_none());
        assert_eq!(table.iter_from(Bound::After(Position(9), b"x")).count(), 0);
        assert_eq!((table.bytes(), table.len()), (0, 0));
        assert_eq!(table.version_max(), Version::ZERO);
    }
}
