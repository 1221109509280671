//! The hybrid logical clock of one core: versions that rise whatever the wall clock does.
//!
//! Source: Kulkarni, Demirbas, Madeppa, Avva, Leone, "Logical Physical Clocks" (2014). A reading
//! is Unix milliseconds in the top 48 bits and a counter in the low 16; when a millisecond's
//! counter is used up, the clock runs ahead of the wall into the next one.

use crate::types::{UnixMillis, Version};

const COUNTER_BITS: u32 = 16;

/// Makes the versions of one core.
#[derive(Debug)]
pub struct Clock {
    last: u64,
    coordinator: u32,
}

impl Clock {
    /// The clock of core `core` of node `node`, ahead of every version up to `seen`.
    pub fn new(node: u16, core: u16, seen: Version) -> Clock {
        Clock {
            last: seen.clock,
            coordinator: u32::from(node) << 16 | u32::from(core),
        }
    }

    /// The highest version that it made or saw.
    pub fn last(&self) -> Version {
        Version {
            clock: self.last,
            coordinator: self.coordinator,
        }
    }

    /// Somebody has made `version`: all that follow here are above it.
    pub fn observe(&mut self, version: Version) {
        self.last = self.last.max(version.clock);
    }

    /// A version above all that this clock made or saw.
    pub fn next(&mut self, now: UnixMillis) -> Version {
        self.last = (self.last + 1).max(now << COUNTER_BITS);
        Version {
            clock: self.last,
            coordinator: self.coordinator,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise_though_the_wall_clock_goes_back() {
        let mut clock = Clock::new(1, 2, Version::ZERO);
        let mut last = Version::ZERO;
        for now in [1000, 1000, 1001, 5, 0, 1002, 900] {
            let next = clock.next(now);
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        assert_eq!(last.coordinator, 1 << 16 | 2);
    }

    #[test]
    fn a_restarted_clock_is_ahead_of_what_was_stored() {
        let mut before = Clock::new(1, 0, Version::ZERO);
        let stored = before.next(5_000_000);
        let mut after = Clock::new(1, 0, stored);
        assert!(
            after.next(10) > stored,
            "the wall clock was set back meanwhile"
        );
    }

    #[test]
    fn a_clock_is_ahead_of_what_it_has_observed() {
        let mut ahead = Clock::new(1, 0, Version::ZERO);
        let seen = ahead.next(9_000);
        let mut behind = Clock::new(1, 1, Version::ZERO);
        behind.observe(seen);
        assert!(behind.next(10) > seen, "its wall clock is late");
        behind.observe(Version::ZERO);
        assert!(behind.last() > seen, "observing never sets it back");
    }

    #[test]
    fn a_busy_millisecond_runs_ahead_instead_of_repeating() {
        let mut clock = Clock::new(0, 0, Version::ZERO);
        let first = clock.next(7);
        let last = (0..100_000)
            .map(|_| clock.next(7))
            .last()
            .expect("there are some");
        assert_eq!(last.clock - first.clock, 100_000);
    }
}
