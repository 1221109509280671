//! What values are made of, and whether bytes are such a value. Pure.
//!
//! value := record u64 | run u32 | seq u32 | length u32 | crc u32 | body      (little endian)
//!
//! The crc (crc32c) is over all the rest, the length is that of the whole value. The body is cut
//! out of a pool of random bytes, of which a share may be made compressible; where, follows from
//! record and seq. A value that is not to be checked is all body. Checking takes the value in
//! pieces as they come from the socket and keeps none of them, whatever length a server claims.

use crate::chance::mix;

/// Bytes of the numbers that a value begins with.
pub const HEADER_BYTES: usize = 24;
const CRC_AT: usize = 20;
const _: () = assert!(CRC_AT + size_of::<u32>() == HEADER_BYTES);

const POOL_BYTES: usize = 4 << 20;
/// The pieces that are partly random and partly the same letter.
const STRIPE_BYTES: usize = 64;

/// What a value says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub record: u64,
    /// Which run of the load generator wrote it.
    pub run: u32,
    /// The record's writes in that run, counted from 1.
    pub seq: u32,
}

/// Makes values.
pub struct Content {
    pool: Vec<u8>,
}

impl Content {
    /// Of which the share `compressible`, from 0 to 1, says nothing.
    pub fn new(compressible: f64) -> Content {
        assert!((0.0..=1.0).contains(&compressible));
        let words = (0..POOL_BYTES as u64 / 8).map(|index| mix(mix(index)));
        let mut pool: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let random = ((1.0 - compressible) * STRIPE_BYTES as f64).round() as usize;
        for stripe in pool.chunks_exact_mut(STRIPE_BYTES) {
            stripe[random..].fill(b'x');
        }
        Content { pool }
    }

    /// Puts a value of `length` bytes that can be checked behind what `out` holds.
    pub fn write_checked(&self, stamp: Stamp, length: usize, out: &mut Vec<u8>) {
        assert!(length >= HEADER_BYTES && u32::try_from(length).is_ok());
        let start = out.len();
        out.extend_from_slice(&stamp.record.to_le_bytes());
        out.extend_from_slice(&stamp.run.to_le_bytes());
        out.extend_from_slice(&stamp.seq.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        self.write_body(stamp, length - HEADER_BYTES, out);
        let crc = crc32c::crc32c(&out[start..start + CRC_AT]);
        let crc = crc32c::crc32c_append(crc, &out[start + HEADER_BYTES..]);
        out[start + CRC_AT..start + HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// The same without its header.
    pub fn write_body(&self, stamp: Stamp, length: usize, out: &mut Vec<u8>) {
        let mut at = mix(stamp.record ^ mix(u64::from(stamp.seq))) as usize % (POOL_BYTES / 2);
        let mut left = length;
        while left > 0 {
            let piece = left.min(POOL_BYTES - at);
            out.extend_from_slice(&self.pool[at..at + piece]);
            left -= piece;
            at = 0;
        }
    }
}

/// Looks at a value while it comes in.
#[derive(Clone, Default)]
pub struct Check {
    header: [u8; HEADER_BYTES],
    length: u64,
    crc: u32,
}

impl Check {
    /// Takes the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) {
        if self.length < HEADER_BYTES as u64 {
            let at = self.length as usize;
            let taken = piece.len().min(HEADER_BYTES - at);
            self.header[at..at + taken].copy_from_slice(&piece[..taken]);
            self.length += taken as u64;
            piece = &piece[taken..];
            if self.length == HEADER_BYTES as u64 {
                self.crc = crc32c::crc32c(&self.header[..CRC_AT]);
            }
        }
        if !piece.is_empty() {
            self.crc = crc32c::crc32c_append(self.crc, piece);
            self.length += piece.len() as u64;
        }
    }

    /// What the value says, if it is whole. Ready for the next one then.
    pub fn finish(&mut self) -> Option<Stamp> {
        let done = std::mem::take(self);
        let number = |at: usize| {
            let bytes = done.header[at..at + 4].try_into();
            u32::from_le_bytes(bytes.expect("four bytes"))
        };
        let is_sound = done.length >= HEADER_BYTES as u64
            && u64::from(number(16)) == done.length
            && number(CRC_AT) == done.crc;
        is_sound.then(|| Stamp {
            record: u64::from(number(0)) | u64::from(number(4)) << 32,
            run: number(8),
            seq: number(12),
        })
    }

    /// The value as a decimal number, as counters are. Ready for the next one then.
    pub fn finish_number(&mut self) -> Option<i64> {
        let done = std::mem::take(self);
        let digits = done.header.get(..usize::try_from(done.length).ok()?)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        record: 0x0123_4567_89AB_CDEF,
        run: 77,
        seq: 42,
    };

    fn check(value: &[u8], piece: usize) -> Option<Stamp> {
        let mut check = Check::default();
        value.chunks(piece).for_each(|piece| check.feed(piece));
        check.finish()
    }

    /// However the network cuts it, a sound value must be found sound.
    #[test]
    fn a_value_is_sound_in_whatever_pieces_it_comes() {
        let content = Content::new(0.0);
        for length in [HEADER_BYTES, HEADER_BYTES + 1, 100, 10_240, POOL_BYTES + 5] {
            let mut value = b"before".to_vec();
            content.write_checked(STAMP, length, &mut value);
            let value = &value[6..];
            assert_eq!(value.len(), length);
            for piece in [1, 7, 23, 24, 25, 4096, usize::MAX] {
                assert_eq!(
                    check(value, piece),
                    Some(STAMP),
                    "length {length}, pieces of {piece}"
                );
            }
        }
    }

    /// Each damage that passes here would be served by a server unseen.
    #[test]
    fn every_flipped_bit_and_every_other_length_is_found() {
        let mut value = Vec::new();
        Content::new(0.5).write_checked(STAMP, 100, &mut value);
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&value, 64), None, "bit {bit}");
            value[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..value.len() {
            assert_eq!(check(&value[..length], 64), None, "cut to {length}");
        }
        value.push(b'x');
        assert_eq!(check(&value, 64), None, "longer by one");
    }

    /// A server that compresses must find just as much to compress as was asked for.
    #[test]
    fn the_share_that_says_nothing_is_the_one_asked_for() {
        for (share, expected) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)] {
            let mut body = Vec::new();
            Content::new(share).write_body(STAMP, 1 << 20, &mut body);
            let filler =
                body.iter().filter(|byte| **byte == b'x').count() as f64 / body.len() as f64;
            assert!(
                (filler - expected).abs() < 0.01,
                "{filler} instead of {expected}"
            );
        }
    }

    #[test]
    fn counters_are_read_as_numbers_and_nothing_else_is() {
        for (text, number) in [("17", Some(17)), ("-3", Some(-3)), ("", None), ("1x", None)] {
            let mut check = Check::default();
            check.feed(text.as_bytes());
            assert_eq!(check.finish_number(), number, "{text}");
        }
        let mut long = Check::default();
        long.feed(&[b'1'; 100]);
        assert_eq!(long.finish_number(), None);
    }
}
