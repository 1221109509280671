//! What was measured: latencies of each kind, and what went wrong. Pure; merges.
//!
//! Latencies are in nanoseconds, with three digits. A request that failed has none: it counts as
//! one that missed every target.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::gaps::Longest;
use crate::ledger::{Outcome, Verdict};
use crate::workload::{KINDS, Kind};

/// The longest latency that is told from longer ones: an hour.
const NANOS_MAX: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;
/// Kinds of failures that are told apart.
const FAILURES_MAX: usize = 32;
const FAILURE_OTHER: &str = "other";

/// An empty histogram of latencies.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(NANOS_MAX, DIGITS).expect("these bounds are sound")
}

/// A kind of failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

/// Adds failures of the class `class`, of which `example` is one.
fn add_failures(failures: &mut BTreeMap<String, Failure>, class: &str, example: &str, count: u64) {
    let is_new = !failures.contains_key(class);
    let class = match is_new && failures.len() >= FAILURES_MAX {
        true => FAILURE_OTHER,
        false => class,
    };
    let failure = failures.entry(class.to_owned()).or_default();
    if failure.count == 0 {
        failure.example = example.to_owned();
    }
    failure.count += count;
}

/// What became of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Writes {
    pub acknowledged: u64,
    /// Certainly not done.
    pub refused: u64,
    pub unknown: u64,
}

impl Writes {
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Done => &mut self.acknowledged,
            Outcome::Refused => &mut self.refused,
            Outcome::Unknown => &mut self.unknown,
        } += 1;
    }

    fn merge(&mut self, other: Writes) {
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }
}

/// Answers that were read and judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    pub sound: u64,
    pub lost: u64,
    pub stale: u64,
    pub corrupt: u64,
}

impl Verdicts {
    pub fn add(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Sound => &mut self.sound,
            Verdict::Lost => &mut self.lost,
            Verdict::Stale => &mut self.stale,
            Verdict::Corrupt => &mut self.corrupt,
        } += 1;
    }

    pub fn merge(&mut self, other: Verdicts) {
        self.sound += other.sound;
        self.lost += other.lost;
        self.stale += other.stale;
        self.corrupt += other.corrupt;
    }

    pub fn wrong(&self) -> u64 {
        self.lost + self.stale + self.corrupt
    }
}

/// One kind of operation.
#[derive(Clone)]
pub struct PerKind {
    /// From when it was due (closed loop: sent) to its answer.
    pub latency: Histogram<u64>,
    pub failures: u64,
    /// Reads that found nothing, locks that others held.
    pub misses: u64,
}

/// What happened in some time.
#[derive(Clone)]
pub struct Tally {
    kinds: Vec<Option<PerKind>>,
    /// From when a request was due to when it was handed to the socket: what the load generator, or
    /// the bound on requests in flight, added. Open loop only.
    pub lag: Histogram<u64>,
    /// From there to its answer: what a generator would have told that does not see what it left
    /// out.
    pub service: Histogram<u64>,
    pub failures: BTreeMap<String, Failure>,
    /// Of requests whose first try failed, whatever became of them.
    pub failures_at_first: BTreeMap<String, Failure>,
    pub verdicts: Verdicts,
    pub writes: Writes,
    pub longest: Longest,
    pub redirects: u64,
    pub reconnects: u64,
    /// Requests that were sent to another server.
    pub tried_again: u64,
}

impl Tally {
    /// For operations of these kinds.
    pub fn new(kinds: impl Iterator<Item = Kind>) -> Tally {
        let mut tally = Tally {
            kinds: KINDS.iter().map(|_| None).collect(),
            lag: histogram(),
            service: histogram(),
            failures: BTreeMap::new(),
            failures_at_first: BTreeMap::new(),
            verdicts: Verdicts::default(),
            writes: Writes::default(),
            longest: Longest::default(),
            redirects: 0,
            reconnects: 0,
            tried_again: 0,
        };
        for kind in kinds {
            tally.kinds[kind as usize] = Some(PerKind {
                latency: histogram(),
                failures: 0,
                misses: 0,
            });
        }
        tally
    }

    pub fn kinds(&self) -> impl Iterator<Item = (Kind, &PerKind)> {
        let specs = KINDS.iter().zip(&self.kinds);
        specs.filter_map(|(spec, of)| Some((spec.kind, of.as_ref()?)))
    }

    fn of(&mut self, kind: Kind) -> &mut PerKind {
        self.kinds[kind as usize]
            .as_mut()
            .expect("the kind is of the mix")
    }

    pub fn answered(&mut self, kind: Kind, nanos: u64) {
        self.of(kind).latency.saturating_record(nanos);
    }

    pub fn missed(&mut self, kind: Kind) {
        self.of(kind).misses += 1;
    }

    /// A failure of the class `class` with the message `message`.
    pub fn failed(&mut self, kind: Kind, class: &str, message: &str) {
        self.of(kind).failures += 1;
        self.note(class, message, 1);
    }

    /// Counts failures of no particular kind of operation, too.
    pub fn note(&mut self, class: &str, message: &str, count: u64) {
        add_failures(&mut self.failures, class, message, count);
    }

    /// The first try of a request has failed.
    pub fn failed_at_first(&mut self, class: &str, message: &str) {
        add_failures(&mut self.failures_at_first, class, message, 1);
    }

    /// Adds what `other`, of the same kinds, has.
    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                mine.latency += &theirs.latency;
                mine.failures += theirs.failures;
                mine.misses += theirs.misses;
            }
        }
        self.lag += &other.lag;
        self.service += &other.service;
        for (class, failure) in &other.failures {
            self.note(class, &failure.example, failure.count);
        }
        for (class, failure) in &other.failures_at_first {
            let (example, count) = (&failure.example, failure.count);
            add_failures(&mut self.failures_at_first, class, example, count);
        }
        self.verdicts.merge(other.verdicts);
        self.writes.merge(other.writes);
        self.longest.merge(other.longest);
        self.redirects += other.redirects;
        self.reconnects += other.reconnects;
        self.tried_again += other.tried_again;
    }

    /// Ready to be used again, without giving memory back.
    pub fn clear(&mut self) {
        for of in self.kinds.iter_mut().flatten() {
            of.latency.reset();
            of.failures = 0;
            of.misses = 0;
        }
        self.lag.reset();
        self.service.reset();
        self.failures.clear();
        self.failures_at_first.clear();
        self.verdicts = Verdicts::default();
        self.writes = Writes::default();
        self.longest = Longest::default();
        self.redirects = 0;
        self.reconnects = 0;
        self.tried_again = 0;
    }

    /// Latencies of all kinds together.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for (_, of) in self.kinds() {
            all += &of.latency;
        }
        all
    }

    pub fn answers(&self) -> u64 {
        self.kinds().map(|(_, of)| of.latency.len()).sum()
    }

    pub fn failures(&self) -> u64 {
        self.kinds().map(|(_, of)| of.failures).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        Tally::new([Kind::Get, Kind::Set].into_iter())
    }

    /// Threads and seconds are measured apart: merged, nothing may be missing.
    #[test]
    fn merging_adds_everything_up() {
        let (mut a, mut b) = (tally(), tally());
        a.answered(Kind::Get, 1_000);
        b.answered(Kind::Get, 3_000_000);
        b.answered(Kind::Set, 2_000);
        b.failed(Kind::Set, "OOM", "OOM command not allowed");
        b.missed(Kind::Get);
        b.verdicts.add(Verdict::Stale);
        b.lag.saturating_record(5);
        b.writes.add(Outcome::Unknown);
        b.failed_at_first("timeout", "no answer in time");
        b.longest.reads.nanos = 7;
        a.merge(&b);
        assert_eq!((a.writes.unknown, a.writes.acknowledged), (1, 0));
        assert_eq!(a.failures_at_first["timeout"].count, 1);
        assert_eq!(a.longest.reads.nanos, 7);
        assert_eq!(
            (a.answers(), a.failures(), a.verdicts.wrong(), a.lag.len()),
            (3, 1, 1, 1)
        );
        assert_eq!(a.failures["OOM"].example, "OOM command not allowed");
        let gets = a
            .kinds()
            .next()
            .map(|(_, of)| (of.latency.len(), of.misses));
        assert_eq!(gets, Some((2, 1)));
        b.clear();
        assert_eq!(
            (b.answers(), b.failures(), b.verdicts),
            (0, 0, Verdicts::default())
        );
        assert_eq!((b.writes, b.longest), Default::default());
        assert!(b.failures_at_first.is_empty());
    }

    #[test]
    fn a_server_with_ever_new_errors_costs_no_memory() {
        let mut tally = tally();
        for number in 0..1000 {
            tally.failed(Kind::Get, &format!("E{number}"), "x");
        }
        assert!(tally.failures.len() <= FAILURES_MAX + 1);
        assert_eq!(
            tally
                .failures
                .values()
                .map(|failure| failure.count)
                .sum::<u64>(),
            1000
        );
    }

    #[test]
    fn latencies_beyond_the_longest_are_counted_as_that() {
        let mut tally = tally();
        tally.answered(Kind::Get, u64::MAX);
        assert!(tally.latency().max() >= NANOS_MAX);
    }
}
