//! Which keys a part of a table surely does not hold: a Bloom filter in blocks of one cache line.
//!
//! filter := line*, at least one          line := eight u64, little endian
//!
//! The hash's high bits choose a line, seven groups of nine bits of its remix choose the bits to
//! set there. One lookup touches one cache line. Checksum and identity are the table's business.

use crate::types::KeyHash;

/// Bits for each key: about one stranger in a hundred passes.
pub const BITS_PER_KEY: usize = 10;

const LINE_BYTES: usize = 64;
const LINE_BITS: usize = LINE_BYTES * 8;
const PROBES: u32 = 7;
const PROBE_BITS: u32 = 9;
const _: () = assert!(1 << PROBE_BITS == LINE_BITS);
const _: () = assert!(PROBES * PROBE_BITS <= u64::BITS);
const _: () = assert!(size_of::<Line>() == LINE_BYTES);

/// An odd constant without pattern (2^64 divided by the golden ratio).
const REMIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line([u64; LINE_BYTES / 8]);

/// Collects the hashes of keys: eight bytes each until it is finished.
#[derive(Default)]
pub struct FilterBuilder {
    hashes: Vec<u64>,
}

impl FilterBuilder {
    /// Without keys.
    pub fn new() -> FilterBuilder {
        FilterBuilder::default()
    }

    /// Adds a key.
    pub fn add(&mut self, hash: KeyHash) {
        self.hashes.push(hash.0);
    }

    /// How long the filter would be.
    pub fn bytes(&self) -> usize {
        let bits = self.hashes.len() * BITS_PER_KEY;
        bits.div_ceil(LINE_BITS).max(1) * LINE_BYTES
    }

    /// The filter's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut lines = vec![Line([0; 8]); self.bytes() / LINE_BYTES];
        for hash in self.hashes {
            let at = line_of(hash, lines.len());
            probes(hash).for_each(|(word, bit)| lines[at].0[word] |= bit);
        }
        let words = lines.iter().flat_map(|line| line.0);
        words.flat_map(u64::to_le_bytes).collect()
    }
}

/// A finished filter.
pub struct Filter {
    lines: Vec<Line>,
}

impl Filter {
    /// Takes over the bytes of [`FilterBuilder::finish`]. `None` if they cannot be that.
    pub fn decode(bytes: &[u8]) -> Option<Filter> {
        let (lines, rest) = bytes.as_chunks::<LINE_BYTES>();
        let sane = !lines.is_empty() && rest.is_empty();
        let lines = lines.iter().map(|line| {
            let (words, _) = line.as_chunks::<8>();
            Line(std::array::from_fn(|word| u64::from_le_bytes(words[word])))
        });
        sane.then(|| Filter {
            lines: lines.collect(),
        })
    }

    /// False: no key with this hash was added. True: one probably was.
    pub fn may_contain(&self, hash: KeyHash) -> bool {
        let line = &self.lines[line_of(hash.0, self.lines.len())];
        probes(hash.0).all(|(word, bit)| line.0[word] & bit != 0)
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }
}

/// Scales the hash to 0..lines by its high bits.
fn line_of(hash: u64, lines: usize) -> usize {
    ((u128::from(hash) * lines as u128) >> 64) as usize
}

/// Word and bit of each probe in its line.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(REMIX);
    (0..PROBES).map(move |probe| {
        let bit = (mixed >> (1 + probe * PROBE_BITS)) as usize % LINE_BITS;
        (bit / 64, 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter_of(keys: std::ops::Range<u64>) -> Filter {
        let mut builder = FilterBuilder::new();
        keys.for_each(|key| builder.add(KeyHash::of(&key.to_le_bytes())));
        Filter::decode(&builder.finish()).expect("own bytes are a filter")
    }

    #[test]
    fn a_key_that_was_added_always_passes() {
        for count in [1, 2, 51, 52, 1000, 100_000] {
            let filter = filter_of(0..count);
            for key in 0..count {
                assert!(
                    filter.may_contain(KeyHash::of(&key.to_le_bytes())),
                    "{key} of {count}"
                );
            }
        }
    }

    #[test]
    fn about_one_stranger_in_a_hundred_passes() {
        for count in [1000, 100_000, 1_000_000] {
            let filter = filter_of(0..count);
            assert!(filter.bytes() <= count as usize * BITS_PER_KEY / 8 + LINE_BYTES);
            let strangers = 1_000_000..1_500_000u64;
            let passed = strangers
                .filter(|key| filter.may_contain(KeyHash::of(&key.to_le_bytes())))
                .count();
            let share = passed as f64 / 500_000.0;
            println!("{count} keys: {:.3}% of strangers pass", share * 100.0);
            assert!(share <= 0.012, "{count} keys: {share}");
        }
    }

    #[test]
    fn bytes_that_are_no_whole_lines_are_no_filter() {
        assert!(Filter::decode(&[]).is_none());
        assert!(Filter::decode(&[0; 63]).is_none());
        assert!(Filter::decode(&[0; 65]).is_none());
        let empty = Filter::decode(&FilterBuilder::new().finish()).expect("one empty line");
        assert!(
            !empty.may_contain(KeyHash(7)),
            "an empty filter lets nothing pass"
        );
    }
}
