//! Keys and values that can be checked: both follow from a record's number and generation. Pure.
//!
//! key   := "user" | 16 hexadecimal digits of the number, scrambled (so keys arrive in no order)
//! value := number u64 | generation u64 | bytes of a random pool, from where both point to
//!
//! Little endian. The pool does not compress, and two values seldom share bytes within a window of
//! a usual compressor. [`Ledger`] knows which generations a reader may see.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a key.
pub const KEY_BYTES: usize = 20;
/// Bytes of the numbers that a value begins with.
pub const VALUE_HEADER_BYTES: usize = 16;
/// Bytes of the pool; values are at most half as long.
const POOL_BYTES: usize = 8 << 20;

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const ISSUED_SHIFT: u32 = 0;
const FLOOR_SHIFT: u32 = COUNT_BITS;
const RUNNING_SHIFT: u32 = 2 * COUNT_BITS;

/// A bijection of 64-bit numbers that looks random (the finisher of splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The key of record `number`.
pub fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"user0000000000000000";
    let mut rest = mix(number);
    for digit in key[4..].iter_mut() {
        *digit = b"0123456789abcdef"[(rest >> 60) as usize];
        rest <<= 4;
    }
    key
}

/// Makes values of one size, and tells whether bytes are one.
pub struct Content {
    pool: Vec<u8>,
    value_bytes: usize,
}

impl Content {
    /// Values of `value_bytes` each.
    pub fn new(value_bytes: usize) -> Content {
        assert!(value_bytes > VALUE_HEADER_BYTES && value_bytes <= POOL_BYTES / 2);
        let words = (0..POOL_BYTES as u64 / 8).map(|index| mix(mix(index)));
        Content {
            pool: words.flat_map(u64::to_le_bytes).collect(),
            value_bytes,
        }
    }

    /// Bytes of a value.
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Puts generation `generation` of record `number` into `value`.
    pub fn write(&self, number: u64, generation: u64, value: &mut Vec<u8>) {
        value.clear();
        value.extend_from_slice(&number.to_le_bytes());
        value.extend_from_slice(&generation.to_le_bytes());
        value.extend_from_slice(self.body(number, generation));
    }

    /// The generation of record `number` that `value` is, if it is one, to its last byte.
    pub fn generation_of(&self, number: u64, value: &[u8]) -> Option<u64> {
        let (header, body) = value.split_at_checked(VALUE_HEADER_BYTES)?;
        let (told, generation) = header.split_at(8);
        let generation = u64::from_le_bytes(generation.try_into().ok()?);
        let is_sound = told == number.to_le_bytes() && body == self.body(number, generation);
        is_sound.then_some(generation)
    }

    fn body(&self, number: u64, generation: u64) -> &[u8] {
        let length = self.value_bytes - VALUE_HEADER_BYTES;
        let start = mix(number ^ mix(generation)) as usize % (POOL_BYTES - length);
        &self.pool[start..start + length]
    }
}

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// Which generation it writes.
    pub generation: u64,
    alone: bool,
}

/// What readers of each record may see: the generations from the floor to the last that was issued.
///
/// A cell is issued | floor << 24 | running << 48. The floor rises when it is certain that nothing older
/// can be seen any more: where an engine orders the writes of a key as they began, with each that
/// is acknowledged, otherwise with one that ran alone.
pub struct Ledger {
    /// None: each record is written once, and its generation is 1.
    cells: Option<Vec<AtomicU64>>,
}

impl Ledger {
    /// A ledger of `records` records that may be overwritten.
    pub fn new(records: u64) -> Ledger {
        Ledger {
            cells: Some((0..records).map(|_| AtomicU64::new(0)).collect()),
        }
    }

    /// A ledger of records that are each written once, and were when they are read.
    pub fn write_once() -> Ledger {
        Ledger { cells: None }
    }

    /// A ledger of records that may have been written in the generations up to `last`.
    pub fn filled(records: u64, last: u64) -> Ledger {
        let cell = last << ISSUED_SHIFT;
        Ledger {
            cells: Some((0..records).map(|_| AtomicU64::new(cell)).collect()),
        }
    }

    /// Says that record `number` has at least this generation.
    pub fn note_floor(&self, number: u64, generation: u64) {
        if let Some(cell) = self.cell(number) {
            raise_floor(cell, generation, 0);
        }
    }

    fn cell(&self, number: u64) -> Option<&AtomicU64> {
        self.cells.as_ref().map(|cells| &cells[number as usize])
    }

    /// A write of record `number` begins.
    pub fn begin(&self, number: u64) -> Ticket {
        let Some(cell) = self.cell(number) else {
            return Ticket {
                generation: 1,
                alone: true,
            };
        };
        let before = cell.fetch_add(1 << ISSUED_SHIFT | 1 << RUNNING_SHIFT, Ordering::SeqCst);
        let generation = (before >> ISSUED_SHIFT & COUNT_MASK) + 1;
        assert!(generation < COUNT_MASK, "more generations than fit a cell");
        Ticket {
            generation,
            alone: before >> RUNNING_SHIFT == 0,
        }
    }

    /// It is acknowledged. `is_ordered`: this engine keeps the order in which writes began.
    pub fn acknowledged(&self, number: u64, ticket: Ticket, is_ordered: bool) {
        let Some(cell) = self.cell(number) else {
            return;
        };
        let now = cell.load(Ordering::SeqCst);
        let is_last = now >> ISSUED_SHIFT & COUNT_MASK == ticket.generation;
        let is_certain = is_ordered || (ticket.alone && is_last);
        let floor = if is_certain { ticket.generation } else { 0 };
        raise_floor(cell, floor, 1);
    }

    /// The lowest generation that a read which begins now may see; 0: there may be none.
    pub fn floor(&self, number: u64) -> u64 {
        let cell = self.cell(number);
        cell.map_or(1, |cell| {
            cell.load(Ordering::SeqCst) >> FLOOR_SHIFT & COUNT_MASK
        })
    }

    /// The highest that a read which ends now may have seen.
    pub fn issued(&self, number: u64) -> u64 {
        let cell = self.cell(number);
        cell.map_or(1, |cell| {
            cell.load(Ordering::SeqCst) >> ISSUED_SHIFT & COUNT_MASK
        })
    }
}

/// Raises the floor of `cell` to `floor`, and ends `ended` of its writes.
fn raise_floor(cell: &AtomicU64, floor: u64, ended: u64) {
    let raise = |now: u64| {
        let before = now >> FLOOR_SHIFT & COUNT_MASK;
        let raised = floor.max(before) - before;
        Some(now + (raised << FLOOR_SHIFT) - (ended << RUNNING_SHIFT))
    };
    // The closure always gives a value.
    let _ = cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_from_every_other() {
        let content = Content::new(10_000);
        let mut value = Vec::new();
        content.write(7, 3, &mut value);
        assert_eq!(value.len(), 10_000);
        assert_eq!(content.generation_of(7, &value), Some(3));
        assert_eq!(content.generation_of(8, &value), None, "another record's");
        assert_eq!(content.generation_of(7, &value[..9_999]), None, "cut");
        value[9_999] ^= 1;
        assert_eq!(content.generation_of(7, &value), None, "a flipped bit");
    }

    #[test]
    fn a_floor_rises_only_with_what_is_certain() {
        let ledger = Ledger::new(1);
        let first = ledger.begin(0);
        assert_eq!((ledger.floor(0), ledger.issued(0)), (0, 1));
        ledger.acknowledged(0, first, false);
        assert_eq!(ledger.floor(0), 1, "it ran alone");
        let (second, third) = (ledger.begin(0), ledger.begin(0));
        ledger.acknowledged(0, third, false);
        ledger.acknowledged(0, second, false);
        assert_eq!(ledger.floor(0), 1, "either may have come last");
        let (fourth, fifth) = (ledger.begin(0), ledger.begin(0));
        ledger.acknowledged(0, fifth, true);
        ledger.acknowledged(0, fourth, true);
        assert_eq!((ledger.floor(0), ledger.issued(0)), (5, 5));
    }

    #[test]
    fn keys_are_all_different_and_of_one_size() {
        let keys: std::collections::BTreeSet<_> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
    }
}
