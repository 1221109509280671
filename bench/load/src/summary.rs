//! The result of a run, as it goes into the table, the JSON and the page. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::Phase;
use crate::gaps::Gap;
use crate::history::{Linear, judge as judge_history};
use crate::run::Measured;
use crate::series::Point;
use crate::tally::{Failure, Verdicts, Writes};
use crate::target::{Judgement, Target, judge, latency_at, millis};

/// Of one kind of operation.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    pub name: &'static str,
    pub answers: u64,
    pub failures: u64,
    /// Reads that found nothing, locks that others held.
    pub misses: u64,
    pub rate: f64,
    pub mean_ms: f64,
    /// Quantiles of all requests, those that failed counted as endless; `null` where that is the
    /// quantile.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub p9999_ms: Option<f64>,
    pub max_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct FailureLine {
    pub count: u64,
    pub example: String,
}

/// What verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    pub during: Judged,
    pub read_back: Judged,
    /// Acknowledged writes that could not be read back.
    pub unread: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Judged {
    pub sound: u64,
    pub lost: u64,
    pub stale: u64,
    pub corrupt: u64,
}

impl From<Verdicts> for Judged {
    fn from(verdicts: Verdicts) -> Judged {
        let Verdicts {
            sound,
            lost,
            stale,
            corrupt,
        } = verdicts;
        Judged {
            sound,
            lost,
            stale,
            corrupt,
        }
    }
}

impl Judged {
    pub fn wrong(&self) -> u64 {
        self.lost + self.stale + self.corrupt
    }
}

/// The longest time in which a record, or anything, was asked for without a success.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GapLine {
    pub ms: f64,
    /// Since the beginning of the warm-up.
    pub from_seconds: f64,
}

impl From<Gap> for GapLine {
    fn from(gap: Gap) -> GapLine {
        GapLine {
            ms: millis(gap.nanos),
            from_seconds: gap.from as f64 / 1e9,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gaps {
    /// Of any record.
    pub reads: GapLine,
    pub writes: GapLine,
    /// Of all records of a thread together.
    pub all: GapLine,
}

/// See the head of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub version: &'static str,
    pub command: String,
    pub workload: String,
    /// Requests a second that were offered; `null` in a closed loop.
    pub offered_rate: Option<f64>,
    pub rate: f64,
    pub answers: u64,
    pub failures: u64,
    pub seconds: f64,
    pub interrupted: bool,
    pub operations: Vec<Operation>,
    pub targets: Vec<Judgement>,
    pub failure_kinds: BTreeMap<String, FailureLine>,
    /// Requests whose first try failed, whatever became of them then.
    pub failed_at_first: u64,
    pub kinds_at_first: BTreeMap<String, FailureLine>,
    pub tried_again: u64,
    pub writes: Writes,
    pub gaps: Option<Gaps>,
    pub verification: Option<Verification>,
    pub linear: Option<Linear>,
    pub redirects: u64,
    pub reconnects: u64,
    /// What the load generator itself added: from when a request was due to when it was sent.
    pub lag_p50_ms: f64,
    pub lag_p99_ms: f64,
    /// Latency from the sending: what would be told if stalls were left out.
    pub service_p99_ms: f64,
    /// The share of a CPU that each load thread used.
    pub threads_busy: Vec<f64>,
    pub points: Vec<Point>,
}

/// What a summary says of the run itself.
pub struct Facts {
    pub command: String,
    pub workload: String,
    pub offered_rate: Option<f64>,
    pub targets: Vec<Target>,
    pub is_verified: bool,
    pub has_gaps: bool,
    pub is_linear: bool,
    pub is_interrupted: bool,
}

impl Summary {
    /// Of the phases that were measured.
    pub fn new(facts: Facts, measured: &[Measured]) -> Summary {
        let of = |phase| measured.iter().find(|measured| measured.phase == phase);
        let work = of(Phase::Work).expect("each run has this phase");
        let tally = &work.tally;
        let seconds = work.seconds.max(1e-9);
        let used = tally
            .kinds()
            .filter(|(_, of)| of.latency.len() + of.failures > 0);
        let operations = used.map(|(kind, of)| {
            let at = |quantile| latency_at(of, quantile).map(millis);
            Operation {
                name: kind.name(),
                answers: of.latency.len(),
                failures: of.failures,
                misses: of.misses,
                rate: of.latency.len() as f64 / seconds,
                mean_ms: of.latency.mean() / 1e6,
                p50_ms: at(0.5),
                p90_ms: at(0.9),
                p99_ms: at(0.99),
                p999_ms: at(0.999),
                p9999_ms: at(0.9999),
                max_ms: millis(of.latency.max()),
            }
        });
        let longest = tally.longest;
        let gaps = facts.has_gaps.then(|| Gaps {
            reads: longest.reads.into(),
            writes: longest.writes.into(),
            all: longest.all.into(),
        });
        let history = measured.iter().flat_map(|measured| &measured.history);
        let read_back = of(Phase::ReadBack);
        let verification = facts.is_verified.then(|| Verification {
            during: tally.verdicts.into(),
            read_back: read_back
                .map(|of| of.tally.verdicts.into())
                .unwrap_or_default(),
            unread: read_back.map_or(0, |of| of.tally.failures()),
        });
        Summary {
            version: env!("CARGO_PKG_VERSION"),
            command: facts.command,
            workload: facts.workload,
            offered_rate: facts.offered_rate,
            rate: tally.answers() as f64 / seconds,
            answers: tally.answers(),
            failures: tally.failures(),
            seconds: work.seconds,
            interrupted: facts.is_interrupted,
            operations: operations.collect(),
            targets: judge(&facts.targets, tally),
            failure_kinds: lines(&tally.failures),
            failed_at_first: count(&tally.failures_at_first),
            kinds_at_first: lines(&tally.failures_at_first),
            tried_again: tally.tried_again,
            writes: tally.writes,
            gaps,
            verification,
            linear: facts.is_linear.then(|| judge_history(history)),
            redirects: tally.redirects,
            reconnects: tally.reconnects,
            lag_p50_ms: millis(tally.lag.value_at_quantile(0.5)),
            lag_p99_ms: millis(tally.lag.value_at_quantile(0.99)),
            service_p99_ms: millis(tally.service.value_at_quantile(0.99)),
            threads_busy: work.busy.clone(),
            points: work.points.clone(),
        }
    }

    /// Whether every target was met. Where nothing was answered, none was.
    pub fn is_met(&self) -> bool {
        self.answers > 0 && self.targets.iter().all(|target| target.is_met)
    }

    /// Whether an answer was wrong, or nothing was answered, or not all could be verified.
    pub fn is_broken(&self) -> bool {
        let wrong = |of: &Verification| of.during.wrong() + of.read_back.wrong() + of.unread;
        let is_disproved = self.linear.as_ref().is_some_and(|of| of.wrong > 0);
        let is_wrong = self.verification.as_ref().is_some_and(|of| wrong(of) > 0);
        self.answers == 0 || is_wrong || is_disproved
    }
}

fn lines(failures: &BTreeMap<String, Failure>) -> BTreeMap<String, FailureLine> {
    let line = |(class, failure): (&String, &Failure)| {
        let line = FailureLine {
            count: failure.count,
            example: failure.example.clone(),
        };
        (class.clone(), line)
    };
    failures.iter().map(line).collect()
}

fn count(failures: &BTreeMap<String, Failure>) -> u64 {
    failures.values().map(|failure| failure.count).sum()
}
