//! `engines small`: many small records, and what filters and indexes take of memory for each.

use clap::Args;

use crate::child::{Known, Step};
use crate::engine::EngineName;
use crate::failure::Outcome;
use crate::parent::{Common, Parent, Sizes};
use crate::phase::Spec;
use crate::report::{self, Report};
use crate::result::PhaseResult;
use crate::stream::Choice;

const VALUE_BYTES: usize = 100;
const MEMORY: u64 = 512 << 20;
/// The disk must have so many times the data: logs, and a merge beside them.
const SPACE_FACTOR: u64 = 4;

const FILL: &str = "fill";
const COLD: &str = "cold reads";

/// Millions of records of 100 B: rates, write amplification, memory for each key; then cold reads.
#[derive(Args, Clone, Debug)]
pub struct Small {
    #[command(flatten)]
    common: Common,
    /// The engine (others than quoit need the feature peers).
    #[arg(long, value_enum, default_value = "quoit")]
    engine: EngineName,
    /// Records (in the place of --data).
    #[arg(long, default_value_t = 20_000_000)]
    records: u64,
    /// Writers.
    #[arg(long, default_value_t = 256)]
    writers: usize,
    /// Readers.
    #[arg(long, default_value_t = 32)]
    readers: usize,
    /// Seconds of reads.
    #[arg(long, default_value_t = 60.0)]
    read_seconds: f64,
    /// The fill takes no longer than this; else the run fails.
    #[arg(long, default_value_t = 3600.0)]
    write_seconds_max: f64,
    /// An engine gets at most so many seconds to settle after the fill.
    #[arg(long, default_value_t = 300.0)]
    settle: f64,
}

impl Small {
    /// Runs it. False if a bar is missed; it has none.
    pub fn run(&self) -> Outcome<bool> {
        let value_bytes = self.common.value_bytes.unwrap_or(VALUE_BYTES);
        let data = self.records * (crate::content::KEY_BYTES + value_bytes) as u64;
        let sizes = Sizes {
            data,
            ..self.common.sizes(Sizes {
                memory: MEMORY,
                data,
                value_bytes,
            })
        };
        let parent = Parent::new(&self.common, data * SPACE_FACTOR)?;
        let mut job = parent.job(self.engine, "data", sizes);
        job.known = Known::WriteOnce;
        let all = Choice::InTurn {
            from: 0,
            to: self.records,
        };
        let fill = Spec {
            name: FILL.to_owned(),
            choice: all,
            of: 1,
            puts: 1,
            workers: self.writers,
            operations_max: u64::MAX,
            seconds_max: self.write_seconds_max,
            rate: None,
            measured: true,
            settle_seconds: self.settle,
        };
        let cold = Spec {
            name: COLD.to_owned(),
            choice: Choice::OnceEach {
                from: 0,
                to: self.records,
            },
            puts: 0,
            workers: self.readers,
            seconds_max: self.read_seconds,
            settle_seconds: 0.0,
            ..fill.clone()
        };
        job.steps = vec![Step::Load(fill), Step::Reopen, Step::Load(cold)];
        let more = [
            ("engine", self.engine.name().to_owned()),
            (
                "writers, readers",
                format!("{}, {}", self.writers, self.readers),
            ),
        ];
        let mut report = Report::new("small", &self.common, sizes, &more);
        let results = parent.results(&job)?;
        for result in &results {
            report::windows(result);
            report::facts(result);
            report.note_others(result);
        }
        report::phases(&results);
        if let Some(cold) = results.iter().find(|result| result.name == COLD) {
            per_key(cold);
        }
        report.add("phases", &results)?;
        report.finish(self.common.json.as_deref())
    }
}

/// What each key takes of memory and disk, if the engine tells.
fn per_key(cold: &PhaseResult) {
    let fact = |name: &str| cold.facts.get(name).copied().unwrap_or(0) as f64;
    let records = fact("records_estimate");
    if records > 0.0 {
        println!(
            "\nFilters and indexes take {:.2} B of memory for each of {records:.0} records in tables ({:.0} MiB), \
             tables {:.1} B of disk; all files {:.1} B.",
            fact("filter_and_index_bytes") / records,
            fact("filter_and_index_bytes") / f64::from(1 << 20),
            fact("table_bytes") / records,
            cold.space_settled as f64 / records
        );
    }
}
