//! Which record is written or read next, and when: the same for every engine. Pure.
//!
//! Zipf's law by Gray, Sundaresan, Englert, Baclawski, Weinberger, "Quickly Generating
//! Billion-Record Synthetic Databases" (1994), as YCSB does; ranks are spread over all records, so
//! that what is hot does not lie together.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::content::mix;

/// What happens to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its next generation is written.
    Put,
    /// It is read.
    Get,
}

/// How records are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Choice {
    /// Each once, in the order of their numbers, from the first to before the last of them.
    InTurn { from: u64, to: u64 },
    /// Each once, in an order that looks random, from the first turn to before the last one.
    OnceEach { from: u64, to: u64 },
    /// Those that were never written, each once.
    Missing,
    /// Any, all alike.
    Uniform,
    /// By Zipf's law with this exponent, below 1.
    Zipf { theta: f64 },
}

/// Random numbers of one worker.
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(mix(seed))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The time to the next of events that come with `rate` a second, each whenever it likes.
    pub fn gap(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.unit()).ln() / rate)
    }
}

/// Zipf's law over `count` ranks.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    count: u64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    /// With exponent `theta`, between 0 and 1.
    pub fn new(count: u64, theta: f64) -> Zipf {
        assert!(count > 2 && theta > 0.0 && theta < 1.0);
        let zeta_of = |count: u64| {
            let terms = 1..=count;
            terms.map(|rank| (rank as f64).powf(-theta)).sum::<f64>()
        };
        let zeta = zeta_of(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta_of(2) / zeta);
        Zipf {
            count,
            theta,
            alpha: 1.0 / (1.0 - theta),
            zeta,
            eta,
        }
    }

    /// A rank from 0, the most frequent one.
    pub fn rank(&self, chance: &mut Chance) -> u64 {
        let unit = chance.unit();
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let rank = self.count as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count - 1)
    }
}

/// A bijection of the numbers below `count` that spreads neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    count: u64,
    factor: u64,
}

impl Spread {
    /// Of the numbers below `count`.
    pub fn new(count: u64) -> Spread {
        assert!(count > 0);
        // Near the golden section of `count`, and without a divisor in common with it.
        let mut factor = ((count as f64 * 0.618_033_988_7) as u64).max(1);
        while greatest_common_divisor(factor, count) != 1 {
            factor += 1;
        }
        Spread { count, factor }
    }

    /// Where `number` goes.
    pub fn of(&self, number: u64) -> u64 {
        (u128::from(number) * u128::from(self.factor) % u128::from(self.count)) as u64
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_gives_each_rank_its_share() {
        let zipf = Zipf::new(1000, 0.99);
        let mut chance = Chance::new(1);
        let draws = 1_000_000;
        let mut counts = vec![0_u64; 1000];
        for _ in 0..draws {
            counts[zipf.rank(&mut chance) as usize] += 1;
        }
        for rank in [0_usize, 1, 9, 99] {
            let expected = ((rank + 1) as f64).powf(-0.99) / zipf.zeta;
            let share = counts[rank] as f64 / draws as f64;
            let error = (share / expected - 1.0).abs();
            assert!(error < 0.15, "rank {rank}: {share} instead of {expected}");
        }
    }

    #[test]
    fn a_spread_takes_every_number_to_another_one() {
        for count in [1, 2, 3, 1000, 65_536, 99_991] {
            let spread = Spread::new(count);
            let mut seen = vec![false; count as usize];
            for number in 0..count {
                let place = &mut seen[spread.of(number) as usize];
                assert!(!*place, "{count}: two numbers go to one place");
                *place = true;
            }
        }
    }

    #[test]
    fn gaps_have_the_rate_that_was_asked_for() {
        let mut chance = Chance::new(3);
        let total: Duration = (0..100_000).map(|_| chance.gap(1000.0)).sum();
        assert!((total.as_secs_f64() - 100.0).abs() < 2.0, "{total:?}");
    }
}
