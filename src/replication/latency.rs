//! How long operations have taken lately: exact to one part in sixteen, and forgotten after a
//! minute or two. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What is told of is between one and two of these old at most.
const WINDOW: Duration = Duration::from_secs(60);
/// What takes longer counts as this, in microseconds.
const LONGEST_US: u64 = 60_000_000;
/// A histogram that is exact to so many digits takes 1.5 KiB.
const DIGITS: u8 = 1;

/// How long some operations took, of one core or of several.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u32>);

impl Default for Latencies {
    fn default() -> Latencies {
        let empty = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Latencies(empty.expect("the bounds are apart, and the digits few"))
    }
}

impl Latencies {
    /// One more has taken `took`.
    fn note(&mut self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(took_us);
    }

    /// Counts those of `other`, too.
    pub fn add(&mut self, other: &Latencies) {
        let added = self.0.add(&other.0);
        added.expect("all histograms have the same bounds");
    }

    /// What `share` of them, such as 0.99, have not exceeded; `None` if there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let us = self.0.value_at_quantile(share);
        (!self.0.is_empty()).then(|| Duration::from_micros(us))
    }
}

/// Of reads and of writes.
#[derive(Clone, Debug, Default)]
pub struct Both {
    /// Of those that only look.
    pub reads: Latencies,
    /// Of those that wait for a sync.
    pub writes: Latencies,
}

impl Both {
    /// Counts those of `other`, too.
    pub fn add(&mut self, other: &Both) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
    }
}

/// Of reads and of writes within the last minute or two.
#[derive(Debug, Default)]
pub struct BothRecent {
    /// Of those that only look.
    pub reads: Recent,
    /// Of those that wait for a sync.
    pub writes: Recent,
}

impl BothRecent {
    /// Those that ended within a minute or two before `at`.
    pub fn told(&mut self, at: Duration) -> Both {
        Both {
            reads: self.reads.told(at),
            writes: self.writes.told(at),
        }
    }
}

/// How long operations took within the last minute or two.
#[derive(Debug, Default)]
pub struct Recent {
    /// When `now` began, as a time since the start.
    begun: Duration,
    now: Latencies,
    before: Latencies,
}

impl Recent {
    /// One has ended at `at`, a time since the start, and has taken `took`.
    pub fn note(&mut self, took: Duration, at: Duration) {
        self.go_on_to(at);
        self.now.note(took);
    }

    /// Those that ended within a minute or two before `at`.
    pub fn told(&mut self, at: Duration) -> Latencies {
        self.go_on_to(at);
        let mut told = self.before.clone();
        told.add(&self.now);
        told
    }

    fn go_on_to(&mut self, at: Duration) {
        let passed = at.saturating_sub(self.begun);
        if passed < WINDOW {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.0.reset();
        if passed < 2 * WINDOW {
            self.begun += WINDOW;
        } else {
            self.before.0.reset();
            self.begun = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Else an operator would see yesterday's trouble, or none of what there was a moment ago.
    #[test]
    fn what_is_told_is_of_the_last_minute_or_two() {
        let mut recent = Recent::default();
        assert_eq!(recent.told(at(0)).quantile(0.5), None);
        for second in 0..300 {
            recent.note(Duration::from_millis(second + 1), at(second));
            let told = recent.told(at(second));
            let oldest = told.quantile(0.0).expect("there is one").as_millis() as u64;
            let age = second + 1 - oldest.min(second + 1);
            assert!(age <= 2 * WINDOW.as_secs() + 3, "{age} s old, at {second}");
            assert!(
                second < 60 || age >= 58,
                "only {age} s are told, at {second}"
            );
        }
        assert_eq!(recent.told(at(500)).quantile(0.5), None, "all is old");
        // Also where nobody looks for long.
        recent.note(at(1), at(600));
        assert!(recent.told(at(659)).quantile(0.5).is_some());
        assert_eq!(recent.told(at(721)).quantile(0.5), None, "it is old");
    }

    #[test]
    fn histograms_of_cores_add_up() {
        let (mut one, mut other) = (Recent::default(), Recent::default());
        (0..990).for_each(|_| one.note(Duration::from_micros(200), at(1)));
        (0..10).for_each(|_| other.note(Duration::MAX, at(1)));
        let mut told = one.told(at(2));
        told.add(&other.told(at(2)));
        let of = |share| told.quantile(share).expect("there are some").as_micros();
        assert!((190..=212).contains(&of(0.5)), "{}", of(0.5));
        assert!((190..=212).contains(&of(0.99)), "{}", of(0.99));
        assert!(of(0.999) >= 56_000_000, "{}", of(0.999));
    }
}
