//! When a batch is to be sealed: at once, or a moment later, with more in it. Pure.
//!
//! Clients that wait for their replies write in bursts: those of one batch are answered together,
//! and come back together. Were the next batch sealed at the very moment at which the last one is
//! synced, it would hold only those who came meanwhile, the others would wait for a whole sync
//! more, and for ever there would be two groups in turn. So the committer looks again and again, at
//! short intervals, as long as that pays: what comes in an interval is spared one sync's time, and
//! what is there waits for the interval. Whoever writes at a steady rate, and does not come back
//! because of an answer, fills a batch no faster than the last one was filled, and is never waited
//! for longer than one interval.

use std::time::Duration;

/// A batch takes so many times the interval of looking...
const LOOKS: u32 = 32;
/// ...and is waited for during this part of its time at most.
const WAIT_SHARE: u32 = 2;
/// What a timer can tell apart.
const LOOK_MIN: Duration = Duration::from_micros(40);
/// What comes must be worth so many times what waits for it, in halves.
const WORTH_HALVES: u128 = 3;

/// What is known of the batches of a log.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    /// How long one takes from its sealing to its sync, lately.
    took: Duration,
    /// When the last one was synced.
    ended: Duration,
    /// So many entries are pending soon if everybody comes back: those that were pending then, and
    /// those of the last batch.
    expected: usize,
    /// When was last looked, and what was pending then.
    looked: Option<(Duration, usize)>,
}

impl Gather {
    /// A batch of `entries`, which took so long, is synced; so many are `pending`.
    pub fn ended(&mut self, now: Duration, took: Duration, entries: usize, pending: usize) {
        self.took = match self.took {
            Duration::ZERO => took,
            before => (before * 3 + took) / 4,
        };
        self.ended = now;
        self.expected = entries + pending;
        self.looked = None;
    }

    /// How long to wait before looking again; `None`: the `pending` entries are to be sealed now.
    pub fn pause(&mut self, now: Duration, pending: usize) -> Option<Duration> {
        let interval = self.took / LOOKS;
        let is_late = now.saturating_sub(self.ended) >= self.took / WAIT_SHARE;
        if interval < LOOK_MIN || is_late || pending >= self.expected {
            return None;
        }
        if let Some((at, before)) = self.looked {
            let came = pending.saturating_sub(before) as u128;
            let spared = came * self.took.as_nanos() * 2;
            let waited = pending as u128 * now.saturating_sub(at).as_nanos() * WORTH_HALVES;
            if spared < waited {
                return None;
            }
        }
        self.looked = Some((now, pending));
        Some(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(3);

    fn at(micros: u64) -> Duration {
        Duration::from_secs(1) + Duration::from_micros(micros)
    }

    /// After a batch of `entries` ended at moment 0, with `pending` others there.
    fn after(entries: usize, pending: usize) -> Gather {
        let mut gather = Gather::default();
        gather.ended(at(0), TOOK, entries, pending);
        gather
    }

    #[test]
    fn who_was_answered_and_comes_back_is_waited_for() {
        let mut gather = after(25, 25);
        let interval = Some(TOOK / LOOKS);
        assert_eq!(gather.pause(at(0), 25), interval);
        assert_eq!(gather.pause(at(95), 35), interval);
        assert_eq!(gather.pause(at(190), 45), interval);
        assert_eq!(gather.pause(at(285), 50), None, "everybody is there");
    }

    #[test]
    fn nobody_is_waited_for_who_does_not_come() {
        let mut gather = after(25, 25);
        assert!(gather.pause(at(0), 25).is_some());
        assert_eq!(gather.pause(at(95), 25), None);
        // As many come in each moment as came while the batch was under way.
        let mut gather = after(32, 32);
        assert!(gather.pause(at(0), 32).is_some());
        assert_eq!(gather.pause(at(95), 33), None);
    }

    #[test]
    fn one_client_alone_waits_for_nobody() {
        assert_eq!(after(1, 0).pause(at(50), 1), None);
    }

    #[test]
    fn a_wait_ends_with_half_of_what_a_batch_takes() {
        let mut gather = after(1000, 1);
        let (mut now, mut pending) = (at(0), 1);
        while let Some(pause) = gather.pause(now, pending) {
            now += pause;
            pending += 20;
        }
        let waited = now - at(0);
        assert!(waited >= TOOK / 2 && waited < TOOK, "{waited:?}");
        // And is not begun later than that.
        assert_eq!(after(1000, 1).pause(at(1500), 1), None);
    }

    #[test]
    fn where_batches_are_fast_nothing_is_waited_for() {
        let mut gather = Gather::default();
        gather.ended(at(0), Duration::from_micros(400), 25, 25);
        assert_eq!(gather.pause(at(0), 25), None);
    }
}
