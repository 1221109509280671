//! Which record an operation is about, and the key that it has. Pure.
//!
//! Zipf's law is drawn by rejection-inversion: W. Hörmann and G. Derflinger, "Rejection-inversion
//! to generate variates from monotone discrete distributions", ACM TOMACS 6(3), 1996. It is exact,
//! takes any exponent above 0 (also 1 and more, where the approximation of Gray et al. that YCSB
//! uses does not work), and needs no table: its three constants are recomputed when records are
//! inserted.
//!
//! Each load thread owns the records whose number leaves its own remainder, so that threads share
//! nothing. With several threads the hottest rank is therefore that many records, one of each.

use std::str::FromStr;

use crate::chance::Chance;

/// YCSB's exponent.
pub const THETA_DEFAULT: f64 = 0.99;
const THETA_MAX: f64 = 10.0;

/// How records are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Any, all alike.
    Uniform,
    /// By Zipf's law; ranks are spread over all records, so that what is hot does not lie together.
    Zipf { theta: f64 },
    /// By Zipf's law, the newest record first.
    Latest { theta: f64 },
    /// `requests` of all requests go to the first `records` of the records (shares of 1).
    Hotspot { records: f64, requests: f64 },
    /// One after the other, and around again.
    Sequential,
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let numbers: Vec<f64> = parts
            .map(|part| {
                part.parse()
                    .map_err(|_| format!("`{part}` is not a number"))
            })
            .collect::<Result<_, _>>()?;
        let theta = numbers.first().copied().unwrap_or(THETA_DEFAULT);
        let is_theta = theta > 0.0 && theta <= THETA_MAX && numbers.len() <= 1;
        let is_share = |share: &f64| *share > 0.0 && *share <= 1.0;
        match (name, numbers.as_slice()) {
            ("uniform", []) => Ok(Distribution::Uniform),
            ("sequential", []) => Ok(Distribution::Sequential),
            ("zipf", _) if is_theta => Ok(Distribution::Zipf { theta }),
            ("latest", _) if is_theta => Ok(Distribution::Latest { theta }),
            ("hotspot", []) => Ok(Distribution::Hotspot {
                records: 0.2,
                requests: 0.8,
            }),
            ("hotspot", [records, requests]) if is_share(records) && is_share(requests) => {
                Ok(Distribution::Hotspot {
                    records: *records,
                    requests: *requests,
                })
            }
            _ => Err(
                "uniform, zipf[:THETA], latest[:THETA], hotspot[:RECORDS:REQUESTS] or sequential"
                    .into(),
            ),
        }
    }
}

/// Zipf's law over the ranks 0 to `count` - 1.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    count: u64,
    theta: f64,
    /// Where the area under the curve begins and ends, and up to where no rejection is needed.
    area_first: f64,
    area_last: f64,
    shortcut: f64,
}

impl Zipf {
    pub fn new(count: u64, theta: f64) -> Zipf {
        assert!(count > 0 && theta > 0.0);
        let shortcut = 2.0 - inverse_area(area(2.5, theta) - 2.0_f64.powf(-theta), theta);
        Zipf {
            count,
            theta,
            area_first: area(1.5, theta) - 1.0,
            area_last: area(count as f64 + 0.5, theta),
            shortcut,
        }
    }

    /// A rank, 0 the most frequent.
    pub fn rank(&self, chance: &mut Chance) -> u64 {
        loop {
            let at = self.area_last + chance.unit() * (self.area_first - self.area_last);
            let x = inverse_area(at, self.theta);
            let rank = x.round().clamp(1.0, self.count as f64);
            let is_below = at >= area(rank + 0.5, self.theta) - rank.powf(-self.theta);
            if rank - x <= self.shortcut || is_below {
                return rank as u64 - 1;
            }
        }
    }
}

/// The integral of x^-theta from 1. Written with exp_m1, it is as good near theta = 1, where it is
/// ln.
fn area(x: f64, theta: f64) -> f64 {
    let log = x.ln();
    let power = (1.0 - theta) * log;
    let stretch = if power.abs() > 1e-8 {
        power.exp_m1() / power
    } else {
        1.0 + power / 2.0
    };
    stretch * log
}

fn inverse_area(area: f64, theta: f64) -> f64 {
    let power = (area * (1.0 - theta)).max(-1.0);
    let stretch = if power.abs() > 1e-8 {
        power.ln_1p() / power
    } else {
        1.0 - power / 2.0
    };
    (stretch * area).exp()
}

/// A bijection of the numbers below `count` that spreads neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    count: u64,
    factor: u64,
}

impl Spread {
    pub fn new(count: u64) -> Spread {
        assert!(count > 0);
        // Near the golden section, and without a divisor in common.
        let mut factor = ((count as f64 * 0.618_033_988_749_895) as u64).max(1);
        while divisor(factor, count) != 1 {
            factor += 1;
        }
        Spread { count, factor }
    }

    pub fn of(&self, number: u64) -> u64 {
        assert!(number < self.count);
        (u128::from(number) * u128::from(self.factor) % u128::from(self.count)) as u64
    }
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// Chooses among the records of one load thread, which it counts from 0 without gaps.
pub struct Chooser {
    distribution: Distribution,
    /// How many there are at the beginning, and how many more may be inserted.
    records: u64,
    inserts_max: u64,
    inserted: u64,
    next: u64,
    zipf: Option<Zipf>,
    spread: Spread,
}

impl Chooser {
    pub fn new(distribution: Distribution, records: u64, inserts_max: u64) -> Chooser {
        assert!(records > 0);
        let zipf = match distribution {
            Distribution::Zipf { theta } | Distribution::Latest { theta } => {
                Some(Zipf::new(records, theta))
            }
            _ => None,
        };
        Chooser {
            distribution,
            records,
            inserts_max,
            inserted: 0,
            next: 0,
            zipf,
            spread: Spread::new(records),
        }
    }

    /// One of those that are there.
    pub fn choose(&mut self, chance: &mut Chance) -> u64 {
        match self.distribution {
            Distribution::Uniform => chance.below(self.live()),
            Distribution::Zipf { .. } => self.spread.of(self.rank(chance)),
            Distribution::Latest { .. } => {
                let rank = self.rank(chance);
                let age_max = self.inserted.min(self.inserts_max);
                if rank < age_max {
                    self.records + (self.inserted - 1 - rank) % self.inserts_max
                } else {
                    self.records - 1 - (rank - age_max)
                }
            }
            Distribution::Hotspot { records, requests } => {
                let live = self.live();
                let hot = ((live as f64 * records) as u64).clamp(1, live);
                if hot == live || chance.unit() < requests {
                    chance.below(hot)
                } else {
                    hot + chance.below(live - hot)
                }
            }
            Distribution::Sequential => {
                let next = self.next;
                self.next = (next + 1) % self.live();
                next
            }
        }
    }

    /// A new record; once `inserts_max` are there, the oldest of them again.
    pub fn insert(&mut self) -> u64 {
        if self.inserts_max == 0 {
            let next = self.next;
            self.next = (next + 1) % self.records;
            return next;
        }
        let number = self.records + self.inserted % self.inserts_max;
        self.inserted += 1;
        if let Distribution::Latest { theta } = self.distribution {
            self.zipf = Some(Zipf::new(self.live(), theta));
        }
        number
    }

    fn live(&self) -> u64 {
        self.records + self.inserted.min(self.inserts_max)
    }

    fn rank(&self, chance: &mut Chance) -> u64 {
        self.zipf
            .as_ref()
            .expect("made with the distribution")
            .rank(chance)
    }
}

/// Digits of a record's number in its key.
const KEY_DIGITS: usize = 12;
/// Bytes of the shortest key: `key:` and the digits, as redis-benchmark has them.
pub const KEY_BYTES_MIN: usize = 16;
pub const KEY_BYTES_MAX: usize = 1024;

/// Makes keys: a prefix, padded to the wanted length, and the record's number in decimal digits.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    /// Keys of `key_bytes`, or longer where `prefix` is.
    pub fn new(prefix: &str, key_bytes: usize) -> Keys {
        assert!(key_bytes <= KEY_BYTES_MAX);
        let mut prefix = prefix.as_bytes().to_vec();
        while prefix.len() + KEY_DIGITS < key_bytes {
            prefix.push(b'-');
        }
        Keys { prefix }
    }

    pub fn key_bytes(&self) -> usize {
        self.prefix.len() + KEY_DIGITS
    }

    /// Puts the key of record `number` behind what `out` holds.
    pub fn write(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        let mut digits = [b'0'; KEY_DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        assert!(rest == 0, "a record's number has more digits than its key");
        out.extend_from_slice(&digits);
    }
}

/// Numbers that fit into a key.
pub const RECORDS_MAX: u64 = 10_u64.pow(KEY_DIGITS as u32);

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(chooser: &mut Chooser, draws: u64, records: usize) -> Vec<u64> {
        let mut chance = Chance::new(7);
        let mut counts = vec![0; records];
        for _ in 0..draws {
            counts[chooser.choose(&mut chance) as usize] += 1;
        }
        counts
    }

    /// A wrong Zipf makes caches look better or worse than they are. Compared with the law itself.
    #[test]
    fn zipf_draws_each_rank_as_often_as_the_law_says() {
        for theta in [0.5, 0.99, 1.0, 1.2] {
            let (zipf, mut chance) = (Zipf::new(1000, theta), Chance::new(3));
            let mut counts = [0_u64; 1000];
            let draws = 1_000_000;
            for _ in 0..draws {
                counts[zipf.rank(&mut chance) as usize] += 1;
            }
            let sum: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-theta)).sum();
            for rank in [0_usize, 1, 2, 10, 100, 999] {
                let expected = draws as f64 * ((rank + 1) as f64).powf(-theta) / sum;
                let off = (counts[rank] as f64 - expected).abs();
                assert!(
                    off < 5.0 * expected.sqrt() + 1.0,
                    "theta {theta}, rank {rank}: {} drawn, {expected:.0} expected",
                    counts[rank]
                );
            }
        }
    }

    #[test]
    fn zipf_over_one_record_always_gives_it() {
        let zipf = Zipf::new(1, 0.99);
        let mut chance = Chance::new(1);
        assert!((0..1000).all(|_| zipf.rank(&mut chance) == 0));
    }

    /// Would it not be a bijection, a fill would leave records out.
    #[test]
    fn spreading_hits_every_number_once() {
        for count in [1, 2, 3, 10, 97, 1000, 4096] {
            let spread = Spread::new(count);
            let mut hit = vec![false; count as usize];
            for number in 0..count {
                assert!(!std::mem::replace(
                    &mut hit[spread.of(number) as usize],
                    true
                ));
            }
        }
    }

    #[test]
    fn hotspot_gives_its_share_to_the_hot_records() {
        let distribution = "hotspot:0.1:0.9".parse().unwrap();
        let counts = counts(&mut Chooser::new(distribution, 1000, 0), 100_000, 1000);
        let hot: u64 = counts[..100].iter().sum();
        assert!((89_000..91_000).contains(&hot), "{hot} of 100000");
    }

    /// "Latest" that does not follow the inserts measures a cold set instead of the hot one.
    #[test]
    fn latest_prefers_what_was_inserted_last() {
        let mut chooser = Chooser::new("latest".parse().unwrap(), 100, 50);
        assert_eq!((0..30).map(|_| chooser.insert()).last(), Some(129));
        let drawn = counts(&mut chooser, 100_000, 150);
        assert_eq!(drawn.iter().max(), Some(&drawn[129]));
        assert!(
            drawn[130..].iter().all(|count| *count == 0),
            "what is not there was chosen"
        );
        assert!(drawn[0] > 0 && drawn[129] > 10 * drawn[60]);
        // Inserts wrap around, and "latest" with them.
        assert_eq!((0..25).map(|_| chooser.insert()).last(), Some(104));
        let drawn = counts(&mut chooser, 100_000, 150);
        assert_eq!(drawn.iter().max(), Some(&drawn[104]));
        assert!(drawn.iter().all(|count| *count > 0));
    }

    #[test]
    fn sequential_goes_around_in_order() {
        let mut chooser = Chooser::new(Distribution::Sequential, 3, 0);
        let mut chance = Chance::new(1);
        let seen: Vec<u64> = (0..7).map(|_| chooser.choose(&mut chance)).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn distributions_are_read_from_words_and_nonsense_is_refused() {
        assert_eq!("zipf".parse(), Ok(Distribution::Zipf { theta: 0.99 }));
        assert_eq!("zipf:1.2".parse(), Ok(Distribution::Zipf { theta: 1.2 }));
        for wrong in [
            "",
            "zipf:0",
            "zipf:x",
            "zipf:-1",
            "zipf:1:2",
            "hotspot:0.1",
            "hotspot:2:0.5",
            "uniform:1",
        ] {
            assert!(wrong.parse::<Distribution>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_have_their_length_and_all_digits() {
        let mut key = Vec::new();
        Keys::new("key:", 16).write(42, &mut key);
        assert_eq!(key, b"key:000000000042");
        key.clear();
        let keys = Keys::new("k", 20);
        keys.write(RECORDS_MAX - 1, &mut key);
        assert_eq!(key, b"k-------999999999999");
        assert_eq!(key.len(), keys.key_bytes());
    }
}
