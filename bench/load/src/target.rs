//! Whether latencies are as short as was asked for, and the search for the highest rate at which
//! they are. Pure.
//!
//! Each kind of operation has to meet a target by itself, and a request that failed counts as one
//! that took for ever: a server cannot meet a target by refusing.

use std::time::Duration;

use serde::Serialize;

use crate::tally::{PerKind, Tally};

/// The longest latency that a share of the requests may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub quantile: f64,
    pub limit: Duration,
}

/// How one kind of operation stands to a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    pub operation: &'static str,
    pub quantile: f64,
    pub limit_ms: f64,
    /// None where so many failed that there is none.
    pub seen_ms: Option<f64>,
    pub is_met: bool,
}

/// The latency that the share `quantile` of all requests, those that failed included, did not
/// exceed.
pub fn latency_at(of: &PerKind, quantile: f64) -> Option<u64> {
    let all = of.latency.len() + of.failures;
    let rank = (quantile * all as f64).ceil().max(1.0);
    let is_there = rank <= of.latency.len() as f64;
    is_there.then(|| of.latency.value_at_quantile(rank / of.latency.len() as f64))
}

/// Judges each kind that was asked for at all.
pub fn judge(targets: &[Target], tally: &Tally) -> Vec<Judgement> {
    let used = tally
        .kinds()
        .filter(|(_, of)| of.latency.len() + of.failures > 0);
    let all = used.flat_map(|(kind, of)| targets.iter().map(move |target| (kind, of, target)));
    let judged = all.map(|(kind, of, target)| {
        let seen = latency_at(of, target.quantile);
        Judgement {
            operation: kind.name(),
            quantile: target.quantile,
            limit_ms: millis(target.limit.as_nanos() as u64),
            seen_ms: seen.map(millis),
            is_met: seen.is_some_and(|seen| u128::from(seen) <= target.limit.as_nanos()),
        }
    });
    judged.collect()
}

pub fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// A rate counts as kept when so much of what was due was answered.
pub const KEPT_MIN: f64 = 0.98;
/// How often a rate is tried that is not kept: a neighbour of the machine may have been in the way.
const TRIES: u32 = 2;

/// Finds the highest rate that is kept: doubles until one is not, then halves the gap, in
/// proportion.
pub struct Ramp {
    from: f64,
    to: f64,
    /// How far apart, in proportion, the highest that is kept and the lowest that is not may end.
    precision: f64,
    kept: Option<f64>,
    missed: Option<f64>,
    tries: u32,
}

impl Ramp {
    pub fn new(from: f64, to: f64, precision: f64) -> Ramp {
        assert!(from > 0.0 && to >= from && precision > 0.0);
        Ramp {
            from,
            to,
            precision,
            kept: None,
            missed: None,
            tries: 0,
        }
    }

    /// The rate to try next; `None` when the search is over.
    pub fn next(&self) -> Option<f64> {
        match (self.kept, self.missed) {
            (None, None) => Some(self.from),
            (Some(kept), None) if kept >= self.to => None,
            (Some(kept), None) => Some((kept * 2.0).min(self.to)),
            (None, Some(missed)) if missed < 2.0 => None,
            (None, Some(missed)) => Some(missed / 4.0),
            (Some(kept), Some(missed)) if missed / kept - 1.0 <= self.precision => None,
            (Some(kept), Some(missed)) => Some((kept * missed).sqrt()),
        }
    }

    /// Whether the rate that `next` gave was kept.
    pub fn tried(&mut self, is_kept: bool) {
        let rate = self.next().expect("the search goes on");
        if is_kept {
            self.kept = Some(rate);
            self.tries = 0;
            return;
        }
        self.tries += 1;
        if self.tries == TRIES {
            self.missed = Some(rate);
            self.tries = 0;
        }
    }

    /// The highest rate that was kept.
    pub fn best(&self) -> Option<f64> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Kind;

    const MILLI: u64 = 1_000_000;

    fn p99(limit_ms: u64) -> [Target; 1] {
        [Target {
            quantile: 0.99,
            limit: Duration::from_millis(limit_ms),
        }]
    }

    fn tally(fast: u64, slow: u64, failed: u64) -> Tally {
        let mut tally = Tally::new([Kind::Get, Kind::Set].into_iter());
        (0..fast).for_each(|_| tally.answered(Kind::Get, MILLI));
        (0..slow).for_each(|_| tally.answered(Kind::Get, 50 * MILLI));
        (0..failed).for_each(|_| tally.failed(Kind::Get, "OOM", "OOM"));
        tally
    }

    /// Exit codes and ramps rest on this: one in a hundred may be slow, and no more.
    #[test]
    fn a_target_is_missed_when_more_than_its_share_is_slow_or_failed() {
        for (fast, slow, failed, is_met) in [
            (990, 10, 0, true),
            (989, 11, 0, false),
            (990, 0, 10, true),
            (989, 0, 11, false),
            (989, 5, 6, false),
        ] {
            let judged = judge(&p99(10), &tally(fast, slow, failed));
            assert_eq!(
                judged.len(),
                1,
                "a kind that was not asked for has no verdict"
            );
            assert_eq!(
                judged[0].is_met, is_met,
                "{fast} fast, {slow} slow, {failed} failed: {judged:?}"
            );
        }
        assert_eq!(judge(&p99(10), &tally(0, 0, 5))[0].seen_ms, None);
    }

    #[test]
    fn each_kind_has_to_meet_the_target_by_itself() {
        let mut tally = tally(100_000, 0, 0);
        (0..100).for_each(|_| tally.answered(Kind::Set, 20 * MILLI));
        let met: Vec<_> = judge(&p99(10), &tally)
            .iter()
            .map(|one| (one.operation, one.is_met))
            .collect();
        assert_eq!(met, [("get", true), ("set", false)]);
    }

    fn search(from: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut ramp = Ramp::new(from, 1e6, 0.03);
        let mut steps = 0;
        while let Some(rate) = ramp.next() {
            ramp.tried(rate <= capacity);
            steps += 1;
            assert!(steps < 100, "the search does not end");
        }
        (ramp.best(), steps)
    }

    #[test]
    fn the_search_ends_just_below_what_can_be_kept() {
        for (from, capacity) in [
            (1000.0, 123_456.0),
            (50_000.0, 700.0),
            (1000.0, 1000.0),
            (10.0, 999_999.0),
        ] {
            let (best, steps) = search(from, capacity);
            let best = best.expect("some rate is kept");
            assert!(
                best <= capacity && best > capacity / 1.031,
                "{best} of {capacity}"
            );
            assert!(steps < 45, "{steps} steps");
        }
        assert_eq!(search(1000.0, 1e9).0, Some(1e6), "no further than it may");
        assert_eq!(search(1000.0, 0.0).0, None);
    }

    /// One bad second of the machine must not halve the answer.
    #[test]
    fn a_rate_that_is_missed_once_is_tried_again() {
        let mut ramp = Ramp::new(100.0, 1000.0, 0.03);
        ramp.tried(true);
        assert_eq!(ramp.next(), Some(200.0));
        ramp.tried(false);
        assert_eq!(ramp.next(), Some(200.0));
        ramp.tried(true);
        assert_eq!(ramp.next(), Some(400.0));
    }
}
