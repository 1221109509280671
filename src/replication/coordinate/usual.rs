//! How long a node usually takes to answer: its median, and the time that one answer in a hundred
//! exceeds. Pure.
//!
//! Each estimate goes up by a step when an answer took longer and down by one when it took less, in
//! the proportion that leaves it where the share of longer answers is the wanted one; a step is a
//! part of the estimate itself, so that it follows a change of any size within some hundred
//! answers. It takes two numbers and no history.

use std::time::Duration;

use crate::config::{HEDGE_AFTER_MAX, HEDGE_AFTER_MIN};
use crate::replication::latency::BothRecent;

/// What is supposed of a node that was never heard.
const MEDIAN_AT_FIRST_US: f32 = 500.0;
const P99_AT_FIRST_US: f32 = 10_000.0;
/// A step, as a part of the estimate.
const STEP: f32 = 0.05;
/// No estimate falls below this, or a step would move it no more.
const LEAST_US: f32 = 1.0;

/// How long one node takes to answer.
#[derive(Debug, Default)]
pub struct Answers {
    /// To say what it holds, or its clock: after that a read is late. A write waits for a sync, and
    /// says little of it.
    pub reads: Usual,
    /// To store something.
    pub writes: Usual,
    /// To do either. Every replica is asked to write, and so none is taken for a slow one for ever
    /// because it was once, and is not asked to read any more.
    pub all: Usual,
    /// For people.
    pub recent: BothRecent,
}

impl Answers {
    /// At `now` it has said what it holds, after so long.
    pub fn note_read(&mut self, took: Duration, now: Duration) {
        self.reads.note(took);
        self.all.note(took);
        self.recent.reads.note(took, now);
    }

    /// At `now` it has stored something, after so long.
    pub fn note_write(&mut self, took: Duration, now: Duration) {
        self.writes.note(took);
        self.all.note(took);
        self.recent.writes.note(took, now);
    }
}

/// How long one kind of answer takes.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    median_us: f32,
    p99_us: f32,
}

impl Default for Usual {
    fn default() -> Usual {
        Usual {
            median_us: MEDIAN_AT_FIRST_US,
            p99_us: P99_AT_FIRST_US,
        }
    }
}

impl Usual {
    /// An answer has taken so long.
    pub fn note(&mut self, took: Duration) {
        let took_us = took.as_secs_f32() * 1e6;
        step(&mut self.median_us, took_us, 0.5);
        step(&mut self.p99_us, took_us, 0.01);
    }

    /// Half of the answers take longer.
    pub fn median_us(self) -> u32 {
        self.median_us as u32
    }

    /// An answer that takes longer is late: another replica is asked.
    pub fn patience(self) -> Duration {
        let p99 = Duration::from_micros(self.p99_us as u64);
        p99.clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX)
    }
}

/// Moves `estimate` towards what the share `longer` of all answers exceeds.
fn step(estimate: &mut f32, took_us: f32, longer: f32) {
    let up = took_us > *estimate;
    let by = match up {
        true => STEP * (1.0 - longer),
        false => -STEP * longer,
    };
    *estimate = (*estimate * (1.0 + by)).clamp(LEAST_US, 1e9);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a healthy replica would be raced all the time, or a slow one never.
    #[test]
    fn estimates_come_near_the_median_and_the_99th_hundredth() {
        let mut chance = fastrand::Rng::with_seed(7);
        let mut usual = Usual::default();
        for _ in 0..100_000 {
            // 100 to 200 us; three in a hundred take 5 ms.
            let took_us = match chance.u32(..100) {
                0..3 => 5_000,
                _ => chance.u64(100..200),
            };
            usual.note(Duration::from_micros(took_us));
        }
        assert!((130..170).contains(&usual.median_us()), "{usual:?}");
        assert!((4_000.0..6_500.0).contains(&usual.p99_us), "{usual:?}");
    }

    #[test]
    fn a_node_that_becomes_slow_is_known_to_be_soon() {
        let mut usual = Usual::default();
        (0..10_000).for_each(|_| usual.note(Duration::from_micros(100)));
        (0..500).for_each(|_| usual.note(Duration::from_millis(50)));
        assert!(usual.median_us() > 20_000, "{usual:?}");
        assert!(usual.patience() <= HEDGE_AFTER_MAX);
        let extremes = [Duration::ZERO, Duration::MAX];
        (0..10_000).for_each(|at| usual.note(extremes[at % 2]));
        assert!(usual.patience() >= HEDGE_AFTER_MIN, "{usual:?}");
    }
}
