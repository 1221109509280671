//! A table's data block: a few KiB of records, found by binary search and a short walk.
//!
//! block   := content | kind u8 | crc u32                                      (little endian)
//! content := entry* | restart u32 * count | count u32
//! entry   := shared varint | rest length varint | value length varint | position u32
//!            | head (a record's bytes before its key length) | rest of the key | value
//!
//! A key is the first `shared` bytes of the key before it and then its rest. Every
//! [`RESTART_INTERVAL`]th entry shares nothing; `restart` is where it begins. `kind` says how the
//! content is stored: 0, as it is; 1, packed (compress.rs); others belong to newer programs and are
//! refused. The crc32c covers table id, offset of the block in its file, and all bytes before it,
//! as stored, so that a block that was written or read at a wrong place is told from the right one.
//!
//! Invariants: a block has at least one entry; entries ascend strictly by (position, key); a
//! block's payload exceeds [`PAYLOAD_BYTES_TARGET`] only if it is one record; content of more than
//! [`PACKED_CONTENT_BYTES_MAX`] is never packed.

use std::borrow::Cow;

use crate::config::Compression;
use crate::storage::compress::{self, Packer};
use crate::storage::merge::{Bound, Item};
use crate::storage::record::{KeyRef, RECORD_HEADER_BYTES, Record, View};
use crate::types::Position;

/// A block is cut before the record that would take it beyond this.
pub const PAYLOAD_BYTES_TARGET: usize = 4096;

/// Longer content, which is one record, is stored as it is: to pack it would hold up its core for
/// more than a few milliseconds, and to unpack it would, too.
pub const PACKED_CONTENT_BYTES_MAX: usize = 1 << 20;

const RESTART_INTERVAL: usize = 16;
const KEY_LENGTH_BYTES: usize = 4;
const HEAD_BYTES: usize = RECORD_HEADER_BYTES - KEY_LENGTH_BYTES;
const TRAILER_BYTES: usize = 1 + CRC_BYTES;
const CRC_BYTES: usize = 4;
const KIND_PLAIN: u8 = 0;
const KIND_PACKED: u8 = 1;
const VARINT_BYTES_MAX: usize = 5;
/// The most that an entry takes besides key and value.
const ENTRY_BYTES_MAX: usize = 3 * VARINT_BYTES_MAX + 4 + HEAD_BYTES;
const _: () = assert!(HEAD_BYTES == 21);
const _: () = assert!(PAYLOAD_BYTES_TARGET > ENTRY_BYTES_MAX);

/// Where bytes belong: their checksum covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The table's id.
    pub table: u64,
    /// Offset in its file.
    pub offset: u64,
}

impl Identity {
    /// The checksum of `bytes` at this place.
    pub fn checksum(self, bytes: &[u8]) -> u32 {
        let table = crc32c::crc32c(&self.table.to_le_bytes());
        let place = crc32c::crc32c_append(table, &self.offset.to_le_bytes());
        crc32c::crc32c_append(place, bytes)
    }
}

/// What is wrong with bytes that were read; the reader knows the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage(pub &'static str);

/// Collects records for a block. Used again after each [`BlockBuilder::finish`].
pub struct BlockBuilder {
    packer: Option<Packer>,
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    entries: usize,
    last_position: u32,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    /// Without records.
    pub fn new(compression: Compression) -> BlockBuilder {
        BlockBuilder {
            packer: (compression == Compression::Lz4).then(Packer::default),
            bytes: Vec::new(),
            restarts: Vec::new(),
            entries: 0,
            last_position: 0,
            last_key: Vec::new(),
        }
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of its entries so far.
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// True if `record` may still be added. An empty block takes any record.
    pub fn has_room_for(&self, record: View<'_>) -> bool {
        let entry = ENTRY_BYTES_MAX + record.key().len() + record.value().len();
        self.is_empty() || self.bytes.len() + entry <= PAYLOAD_BYTES_TARGET
    }

    /// Adds the next record in order.
    pub fn add(&mut self, position: Position, record: View<'_>) {
        assert!(self.has_room_for(record));
        let key = record.key();
        let shared = if self.entries.is_multiple_of(RESTART_INTERVAL) {
            let at =
                u32::try_from(self.bytes.len()).expect("only an empty block takes a huge record");
            self.restarts.push(at);
            0
        } else {
            shared_prefix(&self.last_key, key)
        };
        if !self.is_empty() {
            let before = (self.last_position, &self.last_key[..]);
            assert!(before < (position.0, key), "records are added in order");
        }
        put_varint(shared, &mut self.bytes);
        put_varint(key.len() - shared, &mut self.bytes);
        put_varint(record.value().len(), &mut self.bytes);
        self.bytes.extend_from_slice(&position.0.to_le_bytes());
        self.bytes.extend_from_slice(&record.bytes()[..HEAD_BYTES]);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(record.value());
        self.last_position = position.0;
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.entries += 1;
    }

    /// Appends the block, which is to stand at `at`, to `out`, and starts anew.
    pub fn finish(&mut self, at: Identity, out: &mut Vec<u8>) {
        assert!(!self.is_empty(), "a block has at least one entry");
        let start = out.len();
        let restarts = self.restarts.iter().copied();
        let count = u32::try_from(self.restarts.len()).expect("counts a few KiB");
        restarts
            .chain([count])
            .for_each(|word| self.bytes.extend_from_slice(&word.to_le_bytes()));
        let content = &self.bytes[..];
        let may_pack = content.len() <= PACKED_CONTENT_BYTES_MAX;
        let packer = self.packer.as_mut().filter(|_| may_pack);
        let kind = match packer.is_some_and(|packer| packer.pack(content, out)) {
            true => KIND_PACKED,
            false => {
                out.extend_from_slice(content);
                KIND_PLAIN
            }
        };
        out.push(kind);
        let crc = at.checksum(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        self.bytes.clear();
        self.restarts.clear();
        self.last_key.clear();
        self.entries = 0;
    }
}

/// A block that was read: its checksum holds, and it is unpacked.
pub struct Block<'a> {
    content: Cow<'a, [u8]>,
    entries_end: usize,
    restarts: usize,
}

/// An entry in place: its key is known only together with the keys before it.
struct Entry<'a> {
    shared: usize,
    position: Position,
    head: &'a [u8],
    rest: &'a [u8],
    value: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Block<'a> {
    /// The length of its content, unpacked.
    pub fn bytes(&self) -> usize {
        self.content.len()
    }

    /// Checks the bytes of the block that stands at `at`, and unpacks them if need be.
    pub fn decode(bytes: &'a [u8], at: Identity) -> Result<Block<'a>, Damage> {
        let Some(kind_at) = bytes.len().checked_sub(TRAILER_BYTES) else {
            return Err(Damage("a block is shorter than its trailer"));
        };
        let stored = u32_at(bytes, kind_at + 1);
        if stored != Some(at.checksum(&bytes[..kind_at + 1])) {
            return Err(Damage("a block's checksum does not match"));
        }
        let content = &bytes[..kind_at];
        let content = match bytes[kind_at] {
            KIND_PLAIN => Cow::Borrowed(content),
            KIND_PACKED => Cow::Owned(compress::unpack(content, PACKED_CONTENT_BYTES_MAX)?),
            _ => {
                return Err(Damage(
                    "a block is compressed in a way that this version does not know",
                ));
            }
        };
        let shape = || {
            let count_at = content.len().checked_sub(4)?;
            let restarts = u32_at(&content, count_at)? as usize;
            let entries_end = count_at.checked_sub(restarts.checked_mul(4)?)?;
            (restarts > 0 && entries_end > 0).then_some((entries_end, restarts))
        };
        let (entries_end, restarts) = shape().ok_or(Damage("a block has no entries"))?;
        Ok(Block {
            content,
            entries_end,
            restarts,
        })
    }

    /// The same block, which needs nobody else's bytes.
    pub fn into_owned(self) -> Block<'static> {
        Block {
            content: Cow::Owned(self.content.into_owned()),
            ..self
        }
    }

    /// The record of `key`. (A copy: in the block its key is cut short.)
    pub fn get(&self, key: &KeyRef) -> Result<Option<Record>, Damage> {
        let mut walk = self.walk_from(key.position, key.key)?;
        while let Some(entry) = walk.advance()? {
            if (entry.position, &walk.key[..]) >= (key.position, key.key) {
                let found = entry.position == key.position && walk.key == key.key;
                return if found {
                    record_of(&walk.key, &entry).map(Some)
                } else {
                    Ok(None)
                };
            }
        }
        Ok(None)
    }

    /// The records that `bound` admits, in order. Ends after the first error.
    pub fn iter_from(&self, bound: Bound<'_>) -> impl Iterator<Item = Result<Item, Damage>> {
        let key = match bound {
            Bound::From(_) => &[][..],
            Bound::After(_, key) => key,
        };
        let mut walk = self.walk_from(bound.position(), key);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let next = match &mut walk {
                Err(damage) => Err(*damage),
                Ok(walk) => walk.next_admitted(bound),
            };
            failed = next.is_err();
            next.transpose()
        })
    }

    /// A walk that starts at the last restart whose key is at or before this one.
    fn walk_from(&self, position: Position, key: &[u8]) -> Result<Walk<'_>, Damage> {
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let entry = self.entry_at(self.restart(middle)?)?;
            if (entry.position, entry.rest) <= (position, key) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(Walk {
            bytes: &self.content[..self.entries_end],
            at: self.restart(low)?,
            position: Position(0),
            key: Vec::new(),
            started: false,
        })
    }

    fn restart(&self, index: usize) -> Result<usize, Damage> {
        assert!(index < self.restarts);
        let at = u32_at(&self.content, self.entries_end + index * 4).map(|at| at as usize);
        at.filter(|&at| at < self.entries_end)
            .ok_or(Damage("a restart is out of bounds"))
    }

    fn entry_at(&self, at: usize) -> Result<Entry<'_>, Damage> {
        parse_entry(&self.content[..self.entries_end], at)
            .ok_or(Damage("an entry does not fit its block"))
    }
}

/// A walk over entries that puts their keys together.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    position: Position,
    key: Vec<u8>,
    started: bool,
}

impl<'a> Walk<'a> {
    /// The next entry, whose key is then `self.key`.
    fn advance(&mut self) -> Result<Option<Entry<'a>>, Damage> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let entry = parse_entry(self.bytes, self.at);
        let entry = entry.ok_or(Damage("an entry does not fit its block"))?;
        if entry.shared > self.key.len() {
            return Err(Damage("an entry shares more than there is"));
        }
        let rising = entry.position > self.position
            || (entry.position == self.position && entry.rest > &self.key[entry.shared..]);
        if self.started && !rising {
            return Err(Damage("entries are out of order"));
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(entry.rest);
        self.position = entry.position;
        self.at = entry.end;
        self.started = true;
        Ok(Some(entry))
    }

    fn next_admitted(&mut self, bound: Bound<'_>) -> Result<Option<Item>, Damage> {
        while let Some(entry) = self.advance()? {
            if bound.admits(entry.position, &self.key) {
                let record = record_of(&self.key, &entry)?;
                return Ok(Some(Item {
                    position: entry.position,
                    record,
                }));
            }
        }
        Ok(None)
    }
}

fn parse_entry(bytes: &[u8], mut at: usize) -> Option<Entry<'_>> {
    let shared = take_varint(bytes, &mut at)?;
    let rest_length = take_varint(bytes, &mut at)?;
    let value_length = take_varint(bytes, &mut at)?;
    let position = Position(u32_at(bytes, at)?);
    at += 4;
    let mut take = |length: usize| {
        let end = at.checked_add(length)?;
        let taken = bytes.get(at..end)?;
        at = end;
        Some(taken)
    };
    let head = take(HEAD_BYTES)?;
    let rest = take(rest_length)?;
    let value = take(value_length)?;
    Some(Entry {
        shared,
        position,
        head,
        rest,
        value,
        end: at,
    })
}

/// The record whose key is `key` and whose other parts are in `entry`.
fn record_of(key: &[u8], entry: &Entry<'_>) -> Result<Record, Damage> {
    let length = u32::try_from(key.len()).map_err(|_| Damage("a key is too long"))?;
    let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + key.len() + entry.value.len());
    bytes.extend_from_slice(entry.head);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(entry.value);
    let record = Record::decode(&bytes).filter(|record| !record.view().is_packed());
    record.ok_or(Damage("an entry is no record"))
}

fn shared_prefix(one: &[u8], two: &[u8]) -> usize {
    one.iter().zip(two).take_while(|(a, b)| a == b).count()
}

/// Seven bits a byte, low ones first; the top bit says that more follow.
fn put_varint(number: usize, out: &mut Vec<u8>) {
    let mut left =
        u32::try_from(number).expect("lengths of keys and values are limited where they enter");
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut number = 0u64;
    for shift in 0..VARINT_BYTES_MAX {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok().map(|number| number as usize);
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::Meta;
    use crate::types::{KeyHash, Version};

    const HERE: Identity = Identity {
        table: 7,
        offset: 40960,
    };

    fn random_items(random: &mut fastrand::Rng, count: usize) -> Vec<Item> {
        let mut items: Vec<Item> = (0..count)
            .map(|_| {
                let tombstone = random.u8(0..4) == 0;
                let key = format!("user:{}", random.u32(0..100_000));
                let value = vec![random.u8(..); random.usize(0..60)];
                let value = if tombstone { &[][..] } else { &value[..] };
                let version = Version {
                    clock: random.u64(..),
                    coordinator: random.u32(..),
                };
                let meta = Meta {
                    version,
                    expiry: random.u64(..),
                    tombstone,
                };
                let record = Record::new(meta, key.as_bytes(), value);
                // Few positions, so that keys decide as well.
                Item {
                    position: Position(random.u32(0..10)),
                    record,
                }
            })
            .collect();
        items.sort_by(|one, two| one.order().cmp(&two.order()));
        items.dedup_by(|one, two| one.order() == two.order());
        items
    }

    fn block_of(items: &[Item]) -> Vec<u8> {
        stored(items, Compression::None)
    }

    fn stored(items: &[Item], compression: Compression) -> Vec<u8> {
        let mut builder = BlockBuilder::new(compression);
        for item in items {
            builder.add(item.position, item.record.view());
        }
        let mut bytes = Vec::new();
        builder.finish(HERE, &mut bytes);
        assert!(builder.is_empty());
        bytes
    }

    fn key_ref(item: &Item) -> KeyRef<'_> {
        let key = item.record.key();
        KeyRef {
            position: item.position,
            hash: KeyHash::of(key),
            key,
        }
    }

    fn block(bytes: &[u8]) -> Block<'_> {
        Block::decode(bytes, HERE).expect("own bytes are a block")
    }

    #[test]
    fn a_block_gives_back_what_was_added_and_nothing_else() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let count = random.usize(1..50);
            let all = random_items(&mut random, count);
            // Every other one is left out, to look for what is not there.
            let items: Vec<Item> = all.iter().step_by(2).cloned().collect();
            let compression = [Compression::Lz4, Compression::None][seed as usize % 2];
            let bytes = stored(&items, compression);
            let block = block(&bytes).into_owned();
            for (index, item) in all.iter().enumerate() {
                let found = block.get(&key_ref(item)).expect("undamaged");
                let expected = (index % 2 == 0).then(|| item.record.clone());
                assert_eq!(found, expected, "seed {seed}");
                for bound in [item.after(), Bound::From(item.position)] {
                    let walked: Vec<Item> = block
                        .iter_from(bound)
                        .map(|item| item.expect("undamaged"))
                        .collect();
                    let admitted = items.iter().filter(|item| {
                        let (position, key) = item.order();
                        bound.admits(position, key)
                    });
                    assert!(walked.iter().eq(admitted), "seed {seed} {bound:?}");
                }
            }
        }
    }

    #[test]
    fn a_record_of_any_size_has_a_block_to_itself() {
        let meta = Meta {
            version: Version::ZERO,
            expiry: 0,
            tombstone: false,
        };
        let mut builder = BlockBuilder::new(Compression::None);
        let small = Record::new(meta, b"a", b"1");
        let huge = Record::new(meta, &[b'k'; 65536], &vec![9; 1 << 20]);
        builder.add(Position(1), small.view());
        assert!(
            !builder.has_room_for(huge.view()),
            "a huge record joined a block"
        );
        let mut bytes = Vec::new();
        builder.finish(HERE, &mut bytes);
        assert!(
            builder.has_room_for(huge.view()),
            "a huge record found no block at all"
        );
        builder.add(Position(2), huge.view());
        assert!(!builder.has_room_for(small.view()));
        let start = bytes.len();
        builder.finish(HERE, &mut bytes);
        let key = KeyRef {
            position: Position(2),
            hash: KeyHash(0),
            key: huge.key(),
        };
        assert_eq!(block(&bytes[start..]).get(&key), Ok(Some(huge)));
    }

    #[test]
    fn any_flipped_bit_and_any_other_place_is_noticed() {
        let items = random_items(&mut fastrand::Rng::with_seed(3), 20);
        let plain = block_of(&items);
        let packed = stored(&items, Compression::Lz4);
        assert!(packed.len() < plain.len(), "nothing was packed");
        notices_all(&plain);
        notices_all(&packed);
    }

    fn notices_all(good: &[u8]) {
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::decode(&bad[..], HERE).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(
                Block::decode(&good[..length], HERE).is_err(),
                "cut at {length}"
            );
        }
        let elsewhere = Identity {
            offset: HERE.offset + 4096,
            ..HERE
        };
        assert!(
            Block::decode(good, elsewhere).is_err(),
            "read at a wrong offset"
        );
        let other_table = Identity {
            table: HERE.table + 1,
            ..HERE
        };
        assert!(
            Block::decode(good, other_table).is_err(),
            "read from a wrong table"
        );
    }

    #[test]
    fn bytes_with_a_right_checksum_but_wrong_form_are_an_error_not_a_crash() {
        let items = random_items(&mut fastrand::Rng::with_seed(4), 20);
        let blocks = [Compression::None, Compression::Lz4].map(|it| stored(&items, it));
        for seed in 0..10_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bad = blocks[seed as usize % 2].clone();
            let content = bad.len() - CRC_BYTES;
            for _ in 0..random.usize(1..4) {
                bad[random.usize(0..content)] = random.u8(..);
            }
            let crc = HERE.checksum(&bad[..content]);
            bad[content..].copy_from_slice(&crc.to_le_bytes());
            let Ok(block) = Block::decode(&bad[..], HERE) else {
                continue;
            };
            let walked = block.iter_from(Bound::START).count();
            let entries_max = block.bytes() / (3 + 4 + HEAD_BYTES);
            assert!(
                walked <= entries_max,
                "seed {seed}: a walk that does not end"
            );
            for item in &items {
                let _ = block.get(&key_ref(item));
            }
        }
    }

    #[test]
    fn a_block_of_a_newer_kind_is_refused() {
        let items = random_items(&mut fastrand::Rng::with_seed(5), 3);
        let mut bytes = block_of(&items);
        let content = bytes.len() - CRC_BYTES;
        bytes[content - 1] = 2;
        let crc = HERE.checksum(&bytes[..content]);
        bytes[content..].copy_from_slice(&crc.to_le_bytes());
        let refused = Block::decode(&bytes[..], HERE).err();
        assert!(refused.is_some_and(|damage| damage.0.contains("compressed")));
    }

    #[test]
    fn only_what_grows_smaller_is_packed_and_only_if_asked() {
        let meta = Meta {
            version: Version::ZERO,
            expiry: 0,
            tombstone: false,
        };
        let mut random = fastrand::Rng::with_seed(6);
        let noise: Vec<u8> = (0..2 << 20).map(|_| random.u8(..)).collect();
        let kind_of = |value: &[u8], compression| {
            let record = Record::new(meta, b"key", value);
            let position = Position(1);
            let item = Item { position, record };
            let bytes = stored(std::slice::from_ref(&item), compression);
            let found = block(&bytes).get(&key_ref(&item));
            assert_eq!(found, Ok(Some(item.record.clone())));
            bytes[bytes.len() - TRAILER_BYTES]
        };
        assert_eq!(kind_of(&noise[..3000], Compression::Lz4), KIND_PLAIN);
        assert_eq!(kind_of(&[7; 3000], Compression::Lz4), KIND_PACKED);
        assert_eq!(kind_of(&[7; 3000], Compression::None), KIND_PLAIN);
        let most = PACKED_CONTENT_BYTES_MAX - ENTRY_BYTES_MAX - 100;
        assert_eq!(kind_of(&vec![7; most], Compression::Lz4), KIND_PACKED);
        let more = PACKED_CONTENT_BYTES_MAX;
        assert_eq!(kind_of(&vec![7; more], Compression::Lz4), KIND_PLAIN);
    }

    #[test]
    fn a_packed_block_that_claims_too_much_is_refused_before_it_takes_memory() {
        let items = random_items(&mut fastrand::Rng::with_seed(7), 20);
        let good = stored(&items, Compression::Lz4);
        let content = good.len() - CRC_BYTES;
        for length in [u32::MAX, PACKED_CONTENT_BYTES_MAX as u32 + 1, 1 << 20, 0] {
            let mut bad = good.clone();
            bad[..4].copy_from_slice(&length.to_le_bytes());
            let crc = HERE.checksum(&bad[..content]);
            bad[content..].copy_from_slice(&crc.to_le_bytes());
            let refused = Block::decode(&bad, HERE).err();
            let is_length = refused.is_some_and(|damage| damage.0.contains("length"));
            assert!(is_length, "{length}: {refused:?}");
        }
    }
}
