//! Bytes that are stored smaller: LZ4, where it saves enough. Pure.
//!
//! packed := raw length u32 | LZ4 block                                  (little endian)
//!
//! Packed bytes bear no checksum: whoever stores them has one over them, and checks it first.
//!
//! Invariants: what is packed takes an eighth less than it did, at least; no memory is taken for a
//! raw length before that is held against what the caller allows, and against the most that LZ4 can
//! make of so many bytes.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::block::Damage;

const LENGTH_BYTES: usize = 4;
/// What one byte of LZ4 stands for at most: a byte that makes a match or a run longer.
const RATIO_MAX: usize = 255;
/// Bytes stay as they are unless this part of them is saved.
const SAVED_SHARE: usize = 8;

/// Packs bytes, again and again with the same memory.
#[derive(Default)]
pub struct Packer {
    table: CompressTable,
}

impl Packer {
    /// Appends `raw`, packed, to `out`; false, and nothing is appended, if that saves too little.
    pub fn pack(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let Ok(raw_length) = u32::try_from(raw.len()) else {
            return false;
        };
        let start = out.len();
        out.extend_from_slice(&raw_length.to_le_bytes());
        let content = out.len();
        out.resize(content + get_maximum_output_size(raw.len()), 0);
        let packed = compress_into_with_table(raw, &mut out[content..], &mut self.table);
        let packed = packed.expect("there is room for the worst case");
        let is_worth_it = saves_enough(LENGTH_BYTES + packed, raw.len());
        out.truncate(if is_worth_it { content + packed } else { start });
        is_worth_it
    }
}

/// The length of what `packed` says that it was made of; `None` if that cannot be, or if it
/// is more than `raw_bytes_max`. (Of `packed` the beginning may be enough: see [`unpack`].)
pub fn raw_length(packed: &[u8], raw_bytes_max: usize) -> Option<usize> {
    let (length, _) = packed.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let sane = saves_enough(packed.len(), length) && length <= raw_bytes_max;
    sane.then_some(length)
}

/// Gives back what `packed` was made of, which has no more than `raw_bytes_max` bytes.
pub fn unpack(packed: &[u8], raw_bytes_max: usize) -> Result<Vec<u8>, Damage> {
    const WRONG: Damage = Damage("what is compressed has a length that cannot be");
    let length = raw_length(packed, raw_bytes_max).ok_or(WRONG)?;
    let content = &packed[LENGTH_BYTES..];
    if length > content.len().saturating_mul(RATIO_MAX) {
        return Err(WRONG);
    }
    let mut raw = vec![0; length];
    match decompress_into(content, &mut raw) {
        Ok(written) if written == length => Ok(raw),
        _ => Err(Damage("what is compressed cannot be unpacked")),
    }
}

fn saves_enough(packed: usize, raw: usize) -> bool {
    packed <= raw - raw / SAVED_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(raw: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let is_packed = Packer::default().pack(raw, &mut out);
        assert_eq!(&out[..6], b"before");
        assert_eq!(is_packed, out.len() > 6, "what does not pay is left behind");
        is_packed.then(|| out.split_off(6))
    }

    #[test]
    fn what_is_packed_comes_back_and_one_packer_serves_all_sizes() {
        let mut packer = Packer::default();
        let mut count = 0;
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let magnitude = random.usize(1..20);
            let length = random.usize(..1 << magnitude);
            let letters = [1, 2, 4, 9, 20, 255][seed as usize % 6];
            let raw: Vec<u8> = (0..length).map(|_| random.u8(..letters)).collect();
            let mut out = Vec::new();
            if packer.pack(&raw, &mut out) {
                count += 1;
                assert!(
                    out.len() <= length - length / 8,
                    "seed {seed}: saves too little"
                );
                assert_eq!(raw_length(&out, length), Some(length), "seed {seed}");
                assert_eq!(unpack(&out, length), Ok(raw), "seed {seed}");
                assert!(
                    unpack(&out, length - 1).is_err(),
                    "seed {seed}: a bound is passed"
                );
            }
        }
        assert!(
            (60..250).contains(&count),
            "only one sort was tried: {count}"
        );
    }

    #[test]
    fn what_lz4_cannot_shorten_stays_as_it_is() {
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..5000).map(|_| random.u8(..)).collect();
        for length in [0, 1, 4, 5, 100, 5000] {
            assert_eq!(packed(&noise[..length]), None, "{length} bytes of noise");
        }
        // A tenth of zeros saves a little, and that is too little.
        let mut mixed = noise;
        mixed[..500].fill(0);
        assert_eq!(packed(&mixed), None);
    }

    #[test]
    fn the_greatest_ratio_is_that_of_zeros_and_no_more_is_believed() {
        let raw = vec![0; 1 << 20];
        let good = packed(&raw).expect("zeros pack well");
        assert!(
            raw.len() > (good.len() - LENGTH_BYTES) * (RATIO_MAX - 5),
            "the bound is loose"
        );
        assert_eq!(unpack(&good, raw.len()), Ok(raw));
        // Each of these would take gigabytes before anything else was noticed.
        for content in [&good[LENGTH_BYTES..], &[][..], &[0x1f, 0, 1, 0][..]] {
            for length in [u32::MAX, 1 << 31, 2 << 20] {
                let bad = [&length.to_le_bytes()[..], content].concat();
                assert!(
                    unpack(&bad, usize::MAX).is_err(),
                    "{length} of {}",
                    content.len()
                );
            }
        }
        assert!(unpack(&[1, 0, 0], usize::MAX).is_err(), "no length at all");
    }

    #[test]
    fn with_any_byte_damaged_or_any_end_missing_a_length_that_is_given_back_is_the_one_that_was_told()
     {
        for (seed, length) in [(1, 150), (2, 400), (3, 5_000)] {
            let mut random = fastrand::Rng::with_seed(seed);
            let raw: Vec<u8> = (0..length).map(|_| random.u8(..3)).collect();
            let good = packed(&raw).expect("three letters pack well");
            for at in 0..good.len() {
                assert!(unpack(&good[..at], length).is_err(), "cut at {at}");
                for change in [1, 0x80, 0xFF, random.u8(1..)] {
                    let mut bad = good.clone();
                    bad[at] ^= change;
                    let Ok(found) = unpack(&bad, length) else {
                        continue;
                    };
                    // Other letters are the checksum's to notice; another length is not.
                    assert!(at >= LENGTH_BYTES && found.len() == length, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_unpacked_or_refused_and_never_trusted() {
        let good = packed(&b"one and two and ".repeat(60)).expect("it repeats itself");
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bad = good.clone();
            for _ in 0..random.usize(1..5) {
                bad[random.usize(..good.len())] = random.u8(..);
            }
            bad.truncate(random.usize(..=good.len()));
            if let Ok(raw) = unpack(&bad, 1 << 16) {
                assert!(
                    raw.len() <= 1 << 16 && raw.len() <= bad.len() * RATIO_MAX,
                    "seed {seed}"
                );
            }
        }
    }
}
