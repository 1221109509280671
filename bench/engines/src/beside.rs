//! `engines beside`: Quoit, RocksDB and fjall in turn, on the same streams, memory and file system.
//!
//! Each engine's turn is a child of its own in a control group that holds the budget and a
//! constant, page cache included, and begins in an empty directory. A phase ends after a time, so
//! that slow engines do not take all day; what they have not filled by then is loaded without
//! syncs, unmeasured.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use clap::Args;

use crate::child::Step;
use crate::engine::EngineName;
use crate::failure::Outcome;
use crate::machine::{self, ControlGroup};
use crate::parent::{Common, Parent, Sizes};
use crate::phase::{Rate, Spec};
use crate::report::{self, Bar, Report, median};
use crate::result::PhaseResult;
use crate::stream::Choice;

const SIZES: Sizes = Sizes {
    memory: 512 << 20,
    data: 4 << 30,
    value_bytes: 10_000,
};
/// The disk must have so many times the data.
const SPACE_FACTOR: u64 = 4;
/// What Quoit must reach of RocksDB's rate of durable fill, and of any rate of all others.
const FILL_RATIO_MIN: f64 = 2.5;
const RATIO_MIN: f64 = 1.0;

const FILL_32: &str = "fill, 32 writers";
const FILL_64: &str = "fill, 64 writers";
const LOAD: &str = "load the rest";
const OVERWRITE: &str = "overwrite, 32 writers";
const COLD: &str = "cold reads, depth 32";
const MIXED: &str = "10 reads : 1 write, 32 workers";
const MEASURED: &[&str] = &[FILL_32, FILL_64, OVERWRITE, COLD, MIXED];

/// Quoit, RocksDB and fjall in turn on durable fill, overwrite, cold reads and a mix (needs the
/// feature peers).
#[derive(Args, Clone, Debug)]
pub struct Beside {
    #[command(flatten)]
    common: Common,
    /// Turns of each engine.
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Which engines.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "quoit,rocksdb,fjall,fjall-separated"
    )]
    engines: Vec<EngineName>,
    /// Seconds of each phase, at most.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// An engine gets at most so many seconds to settle after writes.
    #[arg(long, default_value_t = 60.0)]
    settle: f64,
    /// Records a second of what is loaded unmeasured: an engine that is given more takes more
    /// memory than it has.
    #[arg(long, default_value_t = 5000.0)]
    load_rate: f64,
    /// What a control group holds beside the memory budget.
    #[arg(long, default_value = "256MiB")]
    beside_budget: ByteSize,
    /// Do without control groups: then nothing bounds the page cache.
    #[arg(long)]
    no_cgroup: bool,
}

/// A number that is compared.
type Ratio = fn(&Turns, EngineName) -> f64;
/// The turns of each engine.
type Turns = BTreeMap<EngineName, Vec<Vec<PhaseResult>>>;

impl Beside {
    /// Runs it. False if a bar is missed.
    pub fn run(&self) -> Outcome<bool> {
        let sizes = self.common.sizes(SIZES);
        let parent = Parent::new(&self.common, sizes.data * SPACE_FACTOR)?;
        let limit = match self.no_cgroup {
            true => "none".to_owned(),
            false => ByteSize(sizes.memory + self.beside_budget.0).to_string(),
        };
        let more = [
            ("turns", self.turns.to_string()),
            ("seconds of a phase", format!("at most {}", self.seconds)),
            ("settling", format!("at most {} s", self.settle)),
            ("control group", limit),
            (
                "peers",
                "rocksdb and fjall as Cargo.lock has them; settings in README.md".to_owned(),
            ),
        ];
        let mut report = Report::new("beside", &self.common, sizes, &more);
        let mut turns = Turns::new();
        for turn in 1..=self.turns {
            for engine in &self.engines {
                eprintln!("turn {turn} of {}: {}", self.turns, engine.name());
                match self.turn(&parent, *engine, sizes) {
                    Ok(results) => {
                        results.iter().for_each(|result| report.note_others(result));
                        turns.entry(*engine).or_default().push(results);
                    }
                    Err(failure) if *engine == EngineName::Quoit => return Err(failure),
                    // One that does not keep within its memory, say, is no reason to stop.
                    Err(failure) => println!("Turn {turn} of {} failed: {failure}", engine.name()),
                }
            }
        }
        for (engine, turns) in &turns {
            println!("\n# {}, last turn", engine.name());
            if let Some(last) = turns.last() {
                report::phases(last);
                last.last().inspect(|result| report::facts(result));
            }
        }
        self.compare(&mut report, &turns);
        report.add("turns", &turns)?;
        report.finish(self.common.json.as_deref())
    }

    fn turn(&self, parent: &Parent, engine: EngineName, sizes: Sizes) -> Outcome<Vec<PhaseResult>> {
        let mut job = parent.job(engine, engine.name(), sizes);
        let name = format!("engines-{}-{}", std::process::id(), engine.name());
        let limit = sizes.memory + self.beside_budget.0;
        let group = (!self.no_cgroup).then(|| ControlGroup::create(&name, limit));
        let group = group.transpose()?;
        job.control_group = group.as_ref().map(|group| group.dir().to_owned());
        job.steps = self.steps(sizes.records());
        machine::drop_page_cache()?;
        let results = parent.results(&job);
        if let Some(group) = &group {
            eprintln!(
                "  its control group held up to {}",
                ByteSize(group.peak_bytes())
            );
        }
        parent.remove(engine.name())?;
        results
    }

    fn steps(&self, records: u64) -> Vec<Step> {
        let half = records / 2;
        let fill = |name: &str, workers, from, to| Spec {
            name: name.to_owned(),
            choice: Choice::InTurn { from, to },
            of: 1,
            puts: 1,
            workers,
            operations_max: u64::MAX,
            seconds_max: self.seconds,
            rate: None,
            measured: true,
            settle_seconds: 0.0,
        };
        let load = Spec {
            choice: Choice::Missing,
            seconds_max: f64::MAX,
            rate: Some(Rate::Fixed(self.load_rate)),
            measured: false,
            settle_seconds: self.settle,
            ..fill(LOAD, 8, 0, records)
        };
        let overwrite = Spec {
            choice: Choice::Uniform,
            operations_max: records,
            settle_seconds: self.settle,
            ..fill(OVERWRITE, 32, 0, records)
        };
        let cold = Spec {
            choice: Choice::OnceEach {
                from: 0,
                to: records,
            },
            puts: 0,
            ..fill(COLD, 32, 0, records)
        };
        let mixed = Spec {
            choice: Choice::Uniform,
            of: 11,
            ..fill(MIXED, 32, 0, records)
        };
        vec![
            Step::Load(fill(FILL_32, 32, 0, half)),
            Step::Load(fill(FILL_64, 64, half, records)),
            Step::Load(load),
            Step::Load(overwrite),
            Step::Reopen,
            Step::Load(cold),
            Step::Load(mixed),
        ]
    }

    fn compare(&self, report: &mut Report, turns: &Turns) {
        println!("\n# Side by side\n");
        println!(
            "Medians of {} turns: operations a second (lowest to highest turn); p50 / p99 in ms, of writes if",
            self.turns
        );
        println!("there are any, of the turn in the middle.\n");
        let mut heads = vec!["phase"];
        heads.extend(turns.keys().map(|engine| engine.name()));
        let rows = MEASURED.iter().map(|phase| {
            let cells = turns.values().map(|turns| cell(turns, phase));
            [(*phase).to_owned()].into_iter().chain(cells).collect()
        });
        let mut rows: Vec<Vec<String>> = rows.collect();
        let ratios: &[(&str, Ratio)] = &[
            (
                "bytes written per byte, fill to settled",
                |turns, engine| over_turns(turns, engine, fill_amplification),
            ),
            (
                "bytes written per byte, overwrite to settled",
                |turns, engine| {
                    over_turns(turns, engine, |turn| {
                        of(turn, OVERWRITE, PhaseResult::write_amplification)
                    })
                },
            ),
            (
                "space per live byte, filled and settled",
                |turns, engine| {
                    over_turns(turns, engine, |turn| {
                        of(turn, LOAD, PhaseResult::space_amplification)
                    })
                },
            ),
            ("the same, overwritten", |turns, engine| {
                over_turns(turns, engine, |turn| {
                    of(turn, OVERWRITE, PhaseResult::space_amplification)
                })
            }),
            ("at its peak", |turns, engine| {
                over_turns(turns, engine, |turn| {
                    of(turn, OVERWRITE, PhaseResult::space_amplification_peak)
                })
            }),
            ("device reads per cold GET", |turns, engine| {
                over_turns(turns, engine, |turn| {
                    of(turn, COLD, PhaseResult::reads_per_get)
                })
            }),
        ];
        for (name, ratio) in ratios {
            let cells = turns
                .keys()
                .map(|engine| format!("{:.2}", ratio(turns, *engine)));
            rows.push([(*name).to_owned()].into_iter().chain(cells).collect());
        }
        report::table(&heads, &rows);
        for phase in MEASURED {
            for other in turns.keys().filter(|engine| **engine != EngineName::Quoit) {
                let quoit = rate(turns, EngineName::Quoit, phase);
                let ratio = quoit / rate(turns, *other, phase).max(0.001);
                let is_fill = [FILL_32, FILL_64].contains(phase) && *other == EngineName::Rocksdb;
                let least = if is_fill { FILL_RATIO_MIN } else { RATIO_MIN };
                let what = format!("{phase}: Quoit's rate to that of {}", other.name());
                report.bar(Bar::at_least(what, ratio, least));
            }
        }
    }
}

fn find<'r>(turn: &'r [PhaseResult], phase: &str) -> Option<&'r PhaseResult> {
    turn.iter().find(|result| result.name == phase)
}

fn of(turn: &[PhaseResult], phase: &str, what: fn(&PhaseResult) -> f64) -> f64 {
    find(turn, phase).map_or(0.0, what)
}

/// Bytes written for each byte, of all phases that fill, until the engine had settled.
fn fill_amplification(turn: &[PhaseResult]) -> f64 {
    let phases = [FILL_32, FILL_64, LOAD];
    let phases: Vec<_> = phases
        .iter()
        .filter_map(|phase| find(turn, phase))
        .collect();
    let written: u64 = phases.iter().map(|result| result.settled.written).sum();
    let user: u64 = phases.iter().map(|result| result.user_bytes).sum();
    written as f64 / user.max(1) as f64
}

fn over_turns(turns: &Turns, engine: EngineName, what: impl Fn(&[PhaseResult]) -> f64) -> f64 {
    let turns = turns.get(&engine).into_iter().flatten();
    median(&turns.map(|turn| what(turn)).collect::<Vec<_>>())
}

fn rate(turns: &Turns, engine: EngineName, phase: &str) -> f64 {
    over_turns(turns, engine, |turn| {
        of(turn, phase, |result| result.operations_per_second)
    })
}

fn cell(turns: &[Vec<PhaseResult>], phase: &str) -> String {
    let results = turns.iter().filter_map(|turn| find(turn, phase));
    let mut results: Vec<_> = results.collect();
    results.sort_by(|one, other| {
        one.operations_per_second
            .total_cmp(&other.operations_per_second)
    });
    let (Some(first), Some(last)) = (results.first(), results.last()) else {
        return "-".to_owned();
    };
    let middle = results[results.len() / 2];
    let latencies = match middle.puts.count {
        0 => &middle.gets,
        _ => &middle.puts,
    };
    format!(
        "{:.0} ({:.0}-{:.0}); {} / {}",
        middle.operations_per_second,
        first.operations_per_second,
        last.operations_per_second,
        report::ms(latencies.p50_us),
        report::ms(latencies.p99_us)
    )
}
