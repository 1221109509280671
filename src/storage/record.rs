//! One versioned record in memory and on disk: a value or a tombstone.
//!
//! record := flags u8 | coordinator u32 | clock u64 | expiry u64 | key length u32 | key | value
//! flags  := 1 tombstone | 2 pointer | 4 packed | 8 counted
//! value of a pointer := stream u8 | segment u64 | offset u32 | length u32 | crc u32 | value length u32
//!
//! Little endian. `expiry` is Unix milliseconds, 0 for none. The value is what is left of the
//! record: whoever stores records stores their total length and a checksum over all of it.
//! A tombstone has no value. Log, memtable and tables all hold these very bytes.
//!
//! A pointer stands for the record of the same key, version and expiry whose bytes lie in a segment
//! of the value log: `length` bytes from `offset` on, of which `crc` is the crc32c. What is read
//! there must be that very record: a read that went astray is damage, not a value. `value length`
//! is that of the value itself, so that who asks only for it need not read it.
//!
//! A packed record is one whose value, of at most [`PACKED_VALUE_BYTES_MAX`], stands there packed
//! (compress.rs). Only the value log has such records, and only who reads them there, or moves them
//! within it, sees them: `length` and `crc` of a pointer are those of the packed record.
//!
//! Counted is said in tables only, and changes nothing of what a record means: the value that the
//! next older record of its key points to is counted as garbage already (`reckon`).

use std::cmp::Ordering;
use std::rc::Rc;

use crate::storage::block::Damage;
use crate::storage::compress::{self, Packer};
use crate::storage::wal::format::{SegmentId, Stream};
use crate::types::{KeyHash, Position, Slot, UnixMillis, Version};

pub use crate::types::Meta;

/// Bytes of a record besides key and value.
pub const RECORD_HEADER_BYTES: usize = 25;
const _: () = assert!(RECORD_HEADER_BYTES == 1 + 4 + 8 + 8 + 4);

const TOMBSTONE: u8 = 1;
const POINTER: u8 = 2;
const PACKED: u8 = 4;
const COUNTED: u8 = 8;
const KNOWN_FLAGS: u8 = TOMBSTONE | POINTER | PACKED | COUNTED;

/// Bytes of a pointer.
pub const POINTER_BYTES: usize = 25;
const _: () = assert!(POINTER_BYTES == 1 + 8 + 4 + 4 + 4 + 4);

/// A longer value is stored as it is: to pack it would hold up its core for more than a few
/// milliseconds. More is not believed of what is read, so a greater number is another format.
pub const PACKED_VALUE_BYTES_MAX: usize = 4 << 20;

/// Where a record lies in the value log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Which of its two streams.
    pub stream: Stream,
    /// The segment.
    pub segment: SegmentId,
    /// The record's first byte in the segment's file.
    pub offset: u32,
    /// The record's bytes as they lie there: header, key and value, which may be packed.
    pub length: u32,
    /// Their crc32c.
    pub crc: u32,
    /// Bytes of the value, unpacked.
    pub value_length: u32,
}

impl Pointer {
    fn encode(self) -> [u8; POINTER_BYTES] {
        let mut bytes = [0; POINTER_BYTES];
        bytes[0] = self.stream.number();
        bytes[1..9].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.offset.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.length.to_le_bytes());
        bytes[17..21].copy_from_slice(&self.crc.to_le_bytes());
        bytes[21..25].copy_from_slice(&self.value_length.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Pointer> {
        if bytes.len() != POINTER_BYTES {
            return None;
        }
        Some(Pointer {
            stream: Stream::from_number(bytes[0]).filter(|stream| *stream != Stream::Records)?,
            segment: SegmentId(u64_at(bytes, 1)),
            offset: u32_at(bytes, 9),
            length: u32_at(bytes, 13),
            crc: u32_at(bytes, 17),
            value_length: u32_at(bytes, 21),
        })
    }
}

/// An immutable record, shared by reference count within its core.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Rc<[u8]>);

impl Record {
    /// Makes a record. A tombstone's `value` must be empty.
    pub fn new(meta: Meta, key: &[u8], value: &[u8]) -> Record {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + key.len() + value.len());
        encode(meta, key, value, &mut bytes);
        Record(Rc::from(bytes))
    }

    /// A record that stands for `record`, which lies at `pointer`.
    pub fn pointing(record: View<'_>, pointer: Pointer) -> Record {
        assert!(record.pointer().is_none() && !record.meta().tombstone);
        assert!(pointer.length as usize <= record.bytes().len());
        assert!(pointer.value_length == record.value_length());
        let mut bytes =
            Vec::with_capacity(RECORD_HEADER_BYTES + record.key().len() + POINTER_BYTES);
        encode(record.meta(), record.key(), &pointer.encode(), &mut bytes);
        bytes[0] |= POINTER;
        Record(Rc::from(bytes))
    }

    /// The same record with its value packed; `None` if that saves too little, or would take too
    /// long.
    pub fn packed(&self, packer: &mut Packer) -> Option<Record> {
        let view = self.view();
        assert!(view.pointer().is_none() && !view.is_packed() && !view.meta().tombstone);
        if view.value().len() > PACKED_VALUE_BYTES_MAX {
            return None;
        }
        let mut bytes = Vec::new();
        encode(view.meta(), view.key(), b"", &mut bytes);
        bytes[0] |= PACKED;
        let is_packed = packer.pack(view.value(), &mut bytes);
        is_packed.then(|| Record(Rc::from(bytes)))
    }

    /// Where the record lies that this one stands for, if it is a pointer.
    pub fn pointer(&self) -> Option<Pointer> {
        self.view().pointer()
    }

    /// True if the value that the next older record of its key points to is counted as garbage, or
    /// if there is none.
    pub fn is_counted(&self) -> bool {
        self.0[0] & COUNTED != 0
    }

    /// The same record, which says that of itself or does not.
    pub fn counted(&self, is_counted: bool) -> Record {
        if self.is_counted() == is_counted {
            return self.clone();
        }
        let mut bytes = self.0.to_vec();
        bytes[0] ^= COUNTED;
        Record(Rc::from(bytes))
    }

    /// Takes over bytes that a log or table held. `None` unless they are a well-formed record.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        View::decode(bytes).map(|view| Record(Rc::from(view.bytes)))
    }

    /// Its parts.
    pub fn view(&self) -> View<'_> {
        View { bytes: &self.0 }
    }

    /// Its bytes, as stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        View { bytes: &self.0 }.key()
    }

    /// Version, expiry, kind.
    pub fn meta(&self) -> Meta {
        self.view().meta()
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = String::from_utf8_lossy(self.key());
        write!(
            f,
            "{key:?} {:?} ({} bytes)",
            self.meta(),
            self.view().value().len()
        )
    }
}

/// A record's bytes, borrowed and known to be well-formed.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the form of `bytes`; their checksum is the caller's to check.
    pub fn decode(bytes: &'a [u8]) -> Option<View<'a>> {
        let header = bytes.get(..RECORD_HEADER_BYTES)?;
        let key_length = u32::from_le_bytes(header[21..25].try_into().ok()?) as usize;
        let value_length = (bytes.len() - RECORD_HEADER_BYTES).checked_sub(key_length)?;
        let tombstone = header[0] & TOMBSTONE != 0;
        let sane = header[0] & !KNOWN_FLAGS == 0 && (!tombstone || value_length == 0);
        let view = View { bytes };
        let is_pointer = header[0] & POINTER != 0;
        let points = !is_pointer || (!tombstone && view.pointer().is_some());
        let is_alone = !tombstone && !is_pointer;
        let packs = !view.is_packed() || (is_alone && view.raw_length().is_some());
        (sane && points && packs).then_some(view)
    }

    /// True if its value is packed.
    pub fn is_packed(self) -> bool {
        self.bytes[0] & PACKED != 0
    }

    fn raw_length(self) -> Option<usize> {
        compress::raw_length(self.value(), PACKED_VALUE_BYTES_MAX)
    }

    /// Bytes of the value, wherever and however that is stored; 0 for a tombstone.
    pub fn value_length(self) -> u32 {
        let length = match self.pointer() {
            Some(pointer) => return pointer.value_length,
            None if self.is_packed() => self.raw_length().unwrap_or(0), // checked by `decode`
            None => self.value().len(),
        };
        u32::try_from(length).expect("values are limited to 512 MiB where they enter")
    }

    /// The record by itself, its value unpacked.
    pub fn unpacked(self) -> Result<Record, Damage> {
        if !self.is_packed() {
            return Ok(Record(Rc::from(self.bytes)));
        }
        let value = compress::unpack(self.value(), PACKED_VALUE_BYTES_MAX)?;
        Ok(Record::new(self.meta(), self.key(), &value))
    }

    /// Where the record lies that this one stands for, if it is a pointer.
    pub fn pointer(self) -> Option<Pointer> {
        if self.bytes[0] & POINTER == 0 {
            return None;
        }
        Pointer::decode(self.value())
    }

    /// Version, expiry, kind.
    pub fn meta(self) -> Meta {
        Meta {
            tombstone: self.bytes[0] & TOMBSTONE != 0,
            version: Version {
                coordinator: u32_at(self.bytes, 1),
                clock: u64_at(self.bytes, 5),
            },
            expiry: u64_at(self.bytes, 13),
        }
    }

    /// The key.
    pub fn key(self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER_BYTES..][..u32_at(self.bytes, 21) as usize]
    }

    /// The value as it is stored: empty for a tombstone, and of no meaning for a pointer or if
    /// packed.
    pub fn value(self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER_BYTES + u32_at(self.bytes, 21) as usize..]
    }

    /// The whole record.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// True if a reader at `now` sees a value here: no tombstone, and not expired.
    pub fn is_live(self, now: UnixMillis) -> bool {
        self.meta().is_live(now)
    }
}

/// Appends a record's bytes to `out`.
pub fn encode(meta: Meta, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    assert!(
        !meta.tombstone || value.is_empty(),
        "a tombstone has no value"
    );
    let key_length = u32::try_from(key.len()).expect("keys are limited to 64 KiB where they enter");
    out.push(if meta.tombstone { TOMBSTONE } else { 0 });
    out.extend_from_slice(&meta.version.coordinator.to_le_bytes());
    out.extend_from_slice(&meta.version.clock.to_le_bytes());
    out.extend_from_slice(&meta.expiry.to_le_bytes());
    out.extend_from_slice(&key_length.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A key with all that is computed from it, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRef<'a> {
    /// Its place on the ring.
    pub position: Position,
    /// Its hash.
    pub hash: KeyHash,
    /// The key itself.
    pub key: &'a [u8],
}

impl<'a> KeyRef<'a> {
    /// Computes position and hash of `key`.
    pub fn of(key: &'a [u8]) -> KeyRef<'a> {
        let hash = KeyHash::of(key);
        KeyRef {
            position: Position::from_parts(Slot::of(key), hash),
            hash,
            key,
        }
    }
}

/// The order of all stored keys: by position, then by bytes.
impl Ord for KeyRef<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.position
            .cmp(&other.position)
            .then_with(|| self.key.cmp(other.key))
    }
}

impl PartialOrd for KeyRef<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(tombstone: bool) -> Meta {
        Meta {
            version: Version {
                clock: 77,
                coordinator: 3,
            },
            expiry: 1000,
            tombstone,
        }
    }

    #[test]
    fn a_record_gives_back_what_it_was_made_of() {
        let record = Record::new(meta(false), b"key", b"value");
        let copy = Record::decode(record.bytes()).expect("own bytes are well-formed");
        assert_eq!(
            (copy.key(), copy.view().value()),
            (&b"key"[..], &b"value"[..])
        );
        assert_eq!(copy.meta(), meta(false));
        assert!(
            copy.view().is_live(999) && !copy.view().is_live(1000),
            "expiry is exact"
        );
        assert!(!Record::new(meta(true), b"key", b"").view().is_live(1));
    }

    #[test]
    fn a_pointer_says_all_of_a_record_but_its_value_and_where_that_is() {
        let record = Record::new(meta(false), b"key", &[7; 5000]);
        let pointer = Pointer {
            stream: Stream::Moved,
            segment: SegmentId(1 << 40),
            offset: 123_456,
            length: record.bytes().len() as u32,
            crc: 0xDEAD_BEEF,
            value_length: 5000,
        };
        let pointing = Record::pointing(record.view(), pointer);
        let copy = Record::decode(pointing.bytes()).expect("own bytes are well-formed");
        assert_eq!((copy.key(), copy.meta()), (&b"key"[..], meta(false)));
        assert_eq!(copy.pointer(), Some(pointer));
        assert_eq!(copy.view().value_length(), 5000);
        assert!(record.pointer().is_none(), "a value is no pointer");
        for change in [0x03, 0x04, 0x80] {
            let mut bad = pointing.bytes().to_vec();
            bad[0] |= change;
            assert!(View::decode(&bad).is_none(), "flags {change:#x}");
        }
        let longer = [pointing.bytes(), b"x"].concat();
        assert!(View::decode(&longer).is_none(), "a pointer of another size");
    }

    #[test]
    fn a_packed_record_is_the_same_record_and_any_other_length_is_refused() {
        let value = b"one and two and ".repeat(300);
        let record = Record::new(meta(false), b"key", &value);
        let packed = record.packed(&mut Packer::default()).expect("it repeats");
        assert!(packed.bytes().len() < 300 && packed.view().is_packed());
        assert_eq!((packed.key(), packed.meta()), (&b"key"[..], meta(false)));
        assert_eq!(packed.view().value_length(), 4800);
        let copy = View::decode(packed.bytes()).expect("own bytes are well-formed");
        assert_eq!(copy.unpacked(), Ok(record));
        for length in [0, 4799, 4801, PACKED_VALUE_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut bad = packed.bytes().to_vec();
            bad[RECORD_HEADER_BYTES + 3..][..4].copy_from_slice(&length.to_le_bytes());
            let refused = View::decode(&bad).is_none_or(|view| view.unpacked().is_err());
            assert!(refused, "{length} bytes instead of 4800");
        }
        for flag in [TOMBSTONE, POINTER] {
            let mut bad = packed.bytes().to_vec();
            bad[0] |= flag;
            assert!(
                View::decode(&bad).is_none(),
                "flag {flag} of a packed record"
            );
        }
    }

    #[test]
    fn records_of_all_sizes_come_back_and_what_does_not_pay_or_takes_long_is_not_packed() {
        let mut packer = Packer::default();
        let mut count = 0;
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let magnitude = random.usize(1..18);
            let length = random.usize(..1 << magnitude);
            let letters = [1, 3, 30, 255][seed as usize % 4];
            let value: Vec<u8> = (0..length).map(|_| random.u8(..letters)).collect();
            let key = vec![b'k'; random.usize(..300)];
            let record = Record::new(meta(false), &key, &value);
            let Some(packed) = record.packed(&mut packer) else {
                continue;
            };
            count += 1;
            let stored = packed.view().value().len();
            assert!(stored <= length - length / 8, "seed {seed}: {stored}");
            assert_eq!(packed.view().value_length() as usize, length);
            let copy = Record::decode(packed.bytes()).expect("own bytes are well-formed");
            assert_eq!(copy.view().unpacked(), Ok(record), "seed {seed}");
        }
        assert!((50..150).contains(&count), "only one sort: {count}");
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..5000).map(|_| random.u8(..)).collect();
        let noise = Record::new(meta(false), b"key", &noise);
        assert_eq!(noise.packed(&mut packer), None);
        for (length, is_packed) in [
            (PACKED_VALUE_BYTES_MAX, true),
            (PACKED_VALUE_BYTES_MAX + 1, false),
        ] {
            let zeros = Record::new(meta(false), b"key", &vec![0; length]);
            assert_eq!(zeros.packed(&mut packer).is_some(), is_packed, "{length}");
        }
    }

    #[test]
    fn malformed_bytes_are_no_record() {
        let good = Record::new(meta(false), b"key", b"").bytes().to_vec();
        assert!(View::decode(&good).is_some());
        for length in 0..good.len() {
            assert!(View::decode(&good[..length]).is_none(), "cut at {length}");
        }
        let mut unknown_flag = good.clone();
        unknown_flag[0] |= 0x80;
        assert!(
            View::decode(&unknown_flag).is_none(),
            "a flag of a newer format"
        );
        let mut long_key = good;
        long_key[21..25].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(
            View::decode(&long_key).is_none(),
            "a key longer than the record"
        );
        let fat_tombstone = [Record::new(meta(true), b"k", b"").bytes(), b"x"].concat();
        assert!(
            View::decode(&fat_tombstone).is_none(),
            "a tombstone with a value"
        );
    }
}
