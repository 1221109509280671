//! The result of a run, as it goes into the table, the JSON and the page. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::Phase;
use crate::run::Measured;
use crate::series::Point;
use crate::tally::Verdicts;
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
    /// Quantiles of all requests, those that failed counted as endless; `null` where that is the quantile.
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
    pub verification: Option<Verification>,
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
        let failure_kinds = tally.failures.iter().map(|(class, failure)| {
            let line = FailureLine {
                count: failure.count,
                example: failure.example.clone(),
            };
            (class.clone(), line)
        });
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
            failure_kinds: failure_kinds.collect(),
            verification,
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
        self.answers == 0 || self.verification.as_ref().is_some_and(|of| wrong(of) > 0)
    }
}
