//! How long values are: one length, any between two, or as a file says. Pure.
//!
//! A histogram file has a line `BYTES WEIGHT` for each length (`10KiB 3`); `#` begins a comment.

use std::str::FromStr;

use bytesize::ByteSize;

use crate::chance::scale;

/// What servers take by default, and what is read back in one piece.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Lines of a histogram file.
const HISTOGRAM_LINES_MAX: usize = 100_000;

/// The lengths of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    Fixed(u32),
    Uniform {
        from: u32,
        to: u32,
    },
    /// Lengths with the sum of the weights up to theirs.
    Weighted(Vec<(u64, u32)>),
}

impl Sizes {
    /// From the text of a histogram file.
    pub fn from_histogram(text: &str) -> Result<Sizes, String> {
        let mut sum = 0_u64;
        let mut weighted = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = || format!("line {}: not `BYTES WEIGHT`", index + 1);
            let (bytes, weight) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
            let weight: u32 = weight.trim().parse().map_err(|_| wrong())?;
            let bytes = bytes_of(bytes).map_err(|why| format!("line {}: {why}", index + 1))?;
            sum += u64::from(weight);
            weighted.push((sum, bytes));
            if weighted.len() > HISTOGRAM_LINES_MAX {
                return Err(format!("more than {HISTOGRAM_LINES_MAX} lengths"));
            }
        }
        if sum == 0 {
            return Err("no length has a weight".into());
        }
        Ok(Sizes::Weighted(weighted))
    }

    /// The length that `random`, any 64 bits, stands for.
    pub fn pick(&self, random: u64) -> u32 {
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Uniform { from, to } => from + scale(random, u64::from(to - from) + 1) as u32,
            Sizes::Weighted(weighted) => {
                let sum = weighted.last().map_or(0, |(sum, _)| *sum);
                let at = scale(random, sum);
                weighted[weighted.partition_point(|(sum, _)| *sum <= at)].1
            }
        }
    }

    pub fn smallest(&self) -> u32 {
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Uniform { from, .. } => *from,
            Sizes::Weighted(weighted) => {
                weighted.iter().map(|(_, bytes)| *bytes).min().unwrap_or(0)
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// `100`, `10KiB` or `uniform:1KiB:64KiB`. (Files are opened by who reads the command line.)
    fn from_str(text: &str) -> Result<Sizes, String> {
        let Some(range) = text.strip_prefix("uniform:") else {
            return bytes_of(text).map(Sizes::Fixed);
        };
        let (from, to) = range.split_once(':').ok_or("uniform:FROM:TO")?;
        let (from, to) = (bytes_of(from)?, bytes_of(to)?);
        if from > to {
            return Err(format!("{from} is more than {to}"));
        }
        Ok(Sizes::Uniform { from, to })
    }
}

fn bytes_of(text: &str) -> Result<u32, String> {
    let bytes = text
        .parse::<ByteSize>()
        .map_err(|_| format!("`{text}` is no length"))?
        .as_u64();
    if bytes > VALUE_BYTES_MAX {
        return Err(format!("values have at most {VALUE_BYTES_MAX} bytes"));
    }
    Ok(bytes as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    /// Wrong shares of lengths would make another load than the one that was asked for.
    #[test]
    fn lengths_come_as_often_as_their_weights_say() {
        let sizes =
            Sizes::from_histogram("# of our caches\n100 1\n1KiB 0\n10KiB 3 # most\n").unwrap();
        let mut chance = Chance::new(2);
        let mut large = 0;
        for _ in 0..40_000 {
            match sizes.pick(chance.draw()) {
                100 => {}
                10_240 => large += 1,
                other => panic!("{other} has no weight"),
            }
        }
        assert!(
            (29_500..30_500).contains(&large),
            "{large} of 40000, 30000 expected"
        );
        assert_eq!(sizes.smallest(), 100);
    }

    #[test]
    fn uniform_lengths_reach_both_ends() {
        let sizes: Sizes = "uniform:3:5".parse().unwrap();
        let mut chance = Chance::new(2);
        let mut seen = [0; 6];
        (0..3000).for_each(|_| seen[sizes.pick(chance.draw()) as usize] += 1);
        assert!(seen[..3].iter().all(|count| *count == 0));
        assert!(
            seen[3..].iter().all(|count| (850..1150).contains(count)),
            "{seen:?}"
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for wrong in ["", "1TiB", "uniform:1", "uniform:5:3", "-1", "x"] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
        assert!(Sizes::from_histogram("100 0").is_err());
        assert!(
            Sizes::from_histogram("100 1\nx 1")
                .unwrap_err()
                .starts_with("line 2")
        );
        assert!(
            Sizes::from_histogram("100")
                .unwrap_err()
                .starts_with("line 1")
        );
    }
}
