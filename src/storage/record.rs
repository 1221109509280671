//! One versioned record in memory and on disk: a value or a tombstone.
//!
//! record := flags u8 | coordinator u32 | clock u64 | expiry u64 | key length u32 | key | value
//!
//! Little endian. `expiry` is Unix milliseconds, 0 for none. The value is what is left of the
//! record: whoever stores records stores their total length and a checksum over all of it.
//! A tombstone has no value. Log, memtable and tables all hold these very bytes.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::types::{KeyHash, Position, Slot, UnixMillis, Version};

/// Bytes of a record besides key and value.
pub const RECORD_HEADER_BYTES: usize = 25;
const _: () = assert!(RECORD_HEADER_BYTES == 1 + 4 + 8 + 8 + 4);

const TOMBSTONE: u8 = 1;
const KNOWN_FLAGS: u8 = TOMBSTONE;

/// What a record says of its key, besides the value's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Which write this was.
    pub version: Version,
    /// When it ceases to exist, in Unix milliseconds; 0: never.
    pub expiry: UnixMillis,
    /// True: the key was deleted.
    pub tombstone: bool,
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
        sane.then_some(View { bytes })
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

    /// The value; empty for a tombstone.
    pub fn value(self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER_BYTES + u32_at(self.bytes, 21) as usize..]
    }

    /// The whole record.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// True if a reader at `now` sees a value here: no tombstone, and not expired.
    pub fn is_live(self, now: UnixMillis) -> bool {
        let meta = self.meta();
        !meta.tombstone && (meta.expiry == 0 || now < meta.expiry)
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
