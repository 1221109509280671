//! `engines long`: fill, overwrite, read and mix, with far more data than memory.

use clap::Args;

use crate::child::Step;
use crate::engine::EngineName;
use crate::failure::Outcome;
use crate::parent::{Common, Parent, Sizes};
use crate::phase::{Rate, Spec};
use crate::report::{self, Bar, Report};
use crate::result::PhaseResult;
use crate::stream::Choice;

/// As large as the issue that this answers asks for.
const SIZES: Sizes = Sizes {
    memory: 2 << 30,
    data: 16 << 30,
    value_bytes: 10_000,
};
/// Zipf's exponent.
const THETA: f64 = 0.99;
/// The disk must have so many times the data.
const SPACE_FACTOR: f64 = 2.0;
/// Memory that an engine may take beside its budget, for each core: what config.toml says.
const BESIDE_BUDGET: u64 = 50 << 20;

const FILL: &str = "fill";
const OVERWRITE: &str = "overwrite uniformly";
const OVERWRITE_ZIPF: &str = "overwrite by zipf";
const READ: &str = "read uniformly";
const READ_ZIPF: &str = "read by zipf";
const MIXED: &str = "10 reads : 1 write";

/// Fill, overwrite, read and mix, with far more data than memory.
#[derive(Args, Clone, Debug)]
pub struct Long {
    #[command(flatten)]
    common: Common,
    /// The engine (others than quoit need the feature peers).
    #[arg(long, value_enum, default_value = "quoit")]
    engine: EngineName,
    /// Writers of the fill and of the overwrites.
    #[arg(long, default_value_t = 64)]
    writers: usize,
    /// Readers.
    #[arg(long, default_value_t = 32)]
    readers: usize,
    /// Seconds of each phase of reads.
    #[arg(long, default_value_t = 60.0)]
    read_seconds: f64,
    /// Seconds of the mixed phase.
    #[arg(long, default_value_t = 120.0)]
    mixed_seconds: f64,
    /// Each overwrite writes so many times as many records as there are.
    #[arg(long, default_value_t = 1.0)]
    overwrites: f64,
    /// Operations a second of the mixed phase, each begun when it is due. 0: half of what the
    /// uniform reads reached.
    #[arg(long, default_value_t = 5000.0)]
    rate: f64,
    /// Operations that may be under way at once in the mixed phase.
    #[arg(long, default_value_t = 256)]
    mixed_workers: usize,
    /// No phase of writes takes longer than this.
    #[arg(long, default_value_t = 3600.0)]
    write_seconds_max: f64,
    /// An engine gets at most so many seconds to settle after writes.
    #[arg(long, default_value_t = 120.0)]
    settle: f64,
}

impl Long {
    fn spec(&self, name: &str, choice: Choice) -> Spec {
        Spec {
            name: name.to_owned(),
            choice,
            of: 1,
            puts: 0,
            workers: self.readers,
            operations_max: u64::MAX,
            seconds_max: self.read_seconds,
            rate: None,
            measured: true,
            settle_seconds: 0.0,
        }
    }

    fn writes(&self, name: &str, choice: Choice, records: u64) -> Spec {
        Spec {
            puts: 1,
            workers: self.writers,
            operations_max: records,
            seconds_max: self.write_seconds_max,
            settle_seconds: self.settle,
            ..self.spec(name, choice)
        }
    }

    fn mixed(&self) -> Spec {
        let rate = match self.rate {
            0.0 => Rate::ShareOf {
                phase: READ.to_owned(),
                share: 0.5,
            },
            rate => Rate::Fixed(rate),
        };
        Spec {
            of: 11,
            puts: 1,
            workers: self.mixed_workers,
            seconds_max: self.mixed_seconds,
            rate: Some(rate),
            settle_seconds: self.settle,
            ..self.spec(MIXED, Choice::Uniform)
        }
    }

    /// Runs it. False if a bar is missed.
    pub fn run(&self) -> Outcome<bool> {
        let sizes = self.common.sizes(SIZES);
        let parent = Parent::new(&self.common, (sizes.data as f64 * SPACE_FACTOR) as u64)?;
        let records = sizes.records();
        let overwrites = (records as f64 * self.overwrites) as u64;
        let specs = [
            self.writes(
                FILL,
                Choice::InTurn {
                    from: 0,
                    to: records,
                },
                records,
            ),
            self.writes(OVERWRITE, Choice::Uniform, overwrites),
            self.writes(OVERWRITE_ZIPF, Choice::Zipf { theta: THETA }, overwrites),
            self.spec(READ, Choice::Uniform),
            self.spec(READ_ZIPF, Choice::Zipf { theta: THETA }),
            self.mixed(),
        ];
        let mut job = parent.job(self.engine, "data", sizes);
        job.steps = specs.iter().cloned().map(Step::Load).collect();
        let more = [
            ("engine", self.engine.name().to_owned()),
            (
                "writers, readers",
                format!("{}, {}", self.writers, self.readers),
            ),
            ("overwrites", format!("{} times the data", self.overwrites)),
            ("settling", format!("at most {} s", self.settle)),
        ];
        let mut report = Report::new("long", &self.common, sizes, &more);
        let results = parent.results(&job)?;
        for result in &results {
            report::windows(result);
            report::facts(result);
            report.note_others(result);
        }
        report::phases(&results);
        self.judge(&mut report, &results, sizes);
        report.add("phases", &results)?;
        report.finish(self.common.json.as_deref())
    }

    fn judge(&self, report: &mut Report, results: &[PhaseResult], sizes: Sizes) {
        let find = |name: &str| results.iter().find(|result| result.name == name);
        let (Some(fill), Some(uniform), Some(zipf), Some(read), Some(mixed)) = (
            find(FILL),
            find(OVERWRITE),
            find(OVERWRITE_ZIPF),
            find(READ),
            find(MIXED),
        ) else {
            return; // the run has failed, and says why
        };
        if let Some(rate) = mixed.rate {
            println!(
                "\nThe mixed phase was to begin {rate:.0} operations/s and ended {:.0}/s.",
                mixed.operations_per_second
            );
        }
        let written = |what: &str, result: &PhaseResult, most: f64| {
            Bar::at_most(
                format!("bytes written per byte, {what}"),
                result.write_amplification(),
                most,
            )
        };
        report.bar(written("fill", fill, 1.1));
        report.bar(written("uniform overwrite", uniform, 2.2));
        report.bar(Bar::at_most(
            "space per live byte at the peak of the uniform overwrite",
            uniform.space_amplification_peak(),
            1.4,
        ));
        report.bar(written(
            "zipf overwrite (what the uniform one takes)",
            zipf,
            (uniform.write_amplification() * 1000.0).round() / 1000.0,
        ));
        report.bar(Bar::at_most(
            "device reads per cold GET, uniform",
            read.reads_per_cold_get(),
            1.1,
        ));
        for result in results {
            let stall = result.stall_us as f64 / 1000.0;
            report.bar(Bar::at_most(
                format!("longest stall in ms, {}", result.name),
                stall,
                100.0,
            ));
        }
        let p99 = mixed.gets.p99_us.max(mixed.puts.p99_us) as f64 / 1000.0;
        report.bar(Bar::at_most("p99 of the mixed phase in ms", p99, 10.0));
        let resident = results
            .iter()
            .map(|result| result.resident_peak - result.resident_before);
        let allowed = sizes.memory + BESIDE_BUDGET * u64::from(self.common.core_count());
        report.bar(Bar::at_most(
            "MiB resident (beside the benchmark's own), budget and 50 MiB for each core",
            (resident.max().unwrap_or(0) >> 20) as f64,
            (allowed >> 20) as f64,
        ));
    }
}
