//! When each request is due. Pure; times are nanoseconds since the run began.
//!
//! Open loop: requests are due at times that do not depend on the answers, as users come whether or
//! not the server has answered others. A request's latency counts from when it was due, so a server
//! that stalls has the waiting of all that came meanwhile counted (what leaves it out is known as
//! coordinated omission; Gil Tene, "How NOT to Measure Latency"). Nothing is queued for that: what
//! could not be sent yet is a time of the schedule that lies in the past, so an overloaded server
//! costs no memory here.
//!
//! Closed loop: each client sends when it has its answers; then latency counts from the sending.

use crate::chance::Chance;

pub const NANOS_PER_SECOND: f64 = 1e9;

/// How requests of one load thread arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Closed,
    /// So many a second, with equal gaps.
    Constant {
        rate: f64,
    },
    /// So many a second on average, each independent of the others.
    Poisson {
        rate: f64,
    },
}

impl Pace {
    /// The same for one of `threads`.
    pub fn share(self, threads: usize) -> Pace {
        let threads = threads as f64;
        match self {
            Pace::Closed => Pace::Closed,
            Pace::Constant { rate } => Pace::Constant {
                rate: rate / threads,
            },
            Pace::Poisson { rate } => Pace::Poisson {
                rate: rate / threads,
            },
        }
    }

    pub fn rate(self) -> Option<f64> {
        match self {
            Pace::Closed => None,
            Pace::Constant { rate } | Pace::Poisson { rate } => Some(rate),
        }
    }
}

/// The times at which one load thread's requests are due.
pub struct Schedule {
    pace: Pace,
    chance: Chance,
    next: f64,
}

impl Schedule {
    pub fn new(pace: Pace, seed: u64) -> Schedule {
        assert!(pace.rate().is_none_or(|rate| rate > 0.0));
        let mut schedule = Schedule {
            pace,
            chance: Chance::new(seed),
            next: 0.0,
        };
        // Threads with equal gaps do not all begin at once.
        schedule.next = match pace {
            Pace::Closed => 0.0,
            Pace::Constant { rate } => schedule.chance.unit() * NANOS_PER_SECOND / rate,
            Pace::Poisson { .. } => schedule.gap(),
        };
        schedule
    }

    /// When the next request is due; `None` in a closed loop, where it always is.
    pub fn next_due(&self) -> Option<u64> {
        (self.pace != Pace::Closed).then_some(self.next as u64)
    }

    /// Takes a request that is due at `now`: when it was due, and in a closed loop, `now`.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        match self.next_due() {
            None => Some(now),
            Some(due) if due > now => None,
            Some(due) => {
                self.next += self.gap();
                Some(due)
            }
        }
    }

    fn gap(&mut self) -> f64 {
        match self.pace {
            Pace::Closed => 0.0,
            Pace::Constant { rate } => NANOS_PER_SECOND / rate,
            Pace::Poisson { rate } => self.chance.exponential() * NANOS_PER_SECOND / rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn due_within(schedule: &mut Schedule, until: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(until)).collect()
    }

    #[test]
    fn both_arrivals_keep_the_rate_without_drift() {
        let constant = due_within(
            &mut Schedule::new(Pace::Constant { rate: 30_000.0 }, 1),
            10 * SECOND,
        );
        assert!(
            (299_999..=300_000).contains(&constant.len()),
            "{}",
            constant.len()
        );
        let poisson = due_within(
            &mut Schedule::new(Pace::Poisson { rate: 30_000.0 }, 1),
            10 * SECOND,
        );
        assert!(
            (298_000..302_000).contains(&poisson.len()),
            "{}",
            poisson.len()
        );
        let gaps = poisson.windows(2).map(|pair| pair[1] - pair[0]);
        let short = gaps.filter(|gap| *gap < SECOND / 30_000).count() as f64 / poisson.len() as f64;
        assert!(
            (short - 0.632).abs() < 0.01,
            "{short} of the gaps are shorter than the mean"
        );
    }

    /// The point of an open loop: what a stall kept waiting is due when it was due, not when it
    /// could go.
    #[test]
    fn what_was_due_during_a_stall_keeps_its_time() {
        let mut schedule = Schedule::new(Pace::Constant { rate: 1000.0 }, 1);
        let before = due_within(&mut schedule, SECOND);
        let after = due_within(&mut schedule, 2 * SECOND); // nothing was taken for a second
        assert!((999..=1001).contains(&before.len()) && (999..=1001).contains(&after.len()));
        let waits: Vec<u64> = after.iter().map(|due| 2 * SECOND - due).collect();
        assert!(
            waits[0] > SECOND - 2_000_000,
            "the first waited {} ns",
            waits[0]
        );
        let mean = waits.iter().sum::<u64>() / waits.len() as u64;
        assert!(
            (490_000_000..510_000_000).contains(&mean),
            "they waited {mean} ns on average"
        );
    }

    #[test]
    fn a_closed_loop_is_always_due_now() {
        let mut schedule = Schedule::new(Pace::Closed, 1);
        assert_eq!(
            (schedule.take(5), schedule.take(7), schedule.next_due()),
            (Some(5), Some(7), None)
        );
    }

    #[test]
    fn threads_share_a_rate() {
        assert_eq!(Pace::Poisson { rate: 10.0 }.share(4).rate(), Some(2.5));
    }
}
