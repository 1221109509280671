//! `engines reads-beside-fio`: cold reads by Quoit and by `fio`, in turn, on the same file system.
//!
//! `fio` (Debian's package of this name) reads from the very files that the values are in, at
//! random, with io_uring and direct I/O: what the device gives at this size and depth. (A file of
//! its own might be in a cache below this machine, or not, unlike them.) Quoit reads each record
//! once, after having read others until its index is in memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Args;
use serde_json::Value;

use crate::child::{Known, Step};
use crate::engine::EngineName;
use crate::failure::{Failure, Outcome};
use crate::machine;
use crate::parent::{Common, Parent, Sizes};
use crate::phase::Spec;
use crate::report::{self, Bar, Report};
use crate::result::PhaseResult;
use crate::stream::Choice;

const SIZES: Sizes = Sizes {
    memory: 1 << 30,
    data: 8 << 30,
    value_bytes: 10_000,
};
/// Quoit's part of what fio reaches.
const SHARE_MIN: f64 = 0.85;
/// Of so many parts of the records, one is read before, to warm the index.
const WARM_PART: u64 = 10;
/// The disk must have so many times the data.
const SPACE_FACTOR: u64 = 2;

const WARM: &str = "warm the index";
const READ: &str = "cold reads";

/// Random cold reads by Quoit and by fio in turn, and their ratio.
#[derive(Args, Clone, Debug)]
pub struct BesideFio {
    #[command(flatten)]
    common: Common,
    /// Turns of each.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Reads that are under way at once.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// What fio reads at once.
    #[arg(long, default_value = "10k")]
    block: String,
}

/// What fio said of a turn.
struct FioTurn {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
}

impl BesideFio {
    /// Runs it. False if the bar is missed.
    pub fn run(&self) -> Outcome<bool> {
        let sizes = self.common.sizes(SIZES);
        let parent = Parent::new(&self.common, sizes.data * SPACE_FACTOR)?;
        let more = [
            ("depth, turns", format!("{}, {}", self.depth, self.turns)),
            ("fio", self.describe()?),
        ];
        let mut report = Report::new("reads-beside-fio", &self.common, sizes, &more);
        let mut fill = parent.job(EngineName::Quoit, "quoit", sizes);
        fill.steps = vec![Step::Load(self.fill(sizes.records()))];
        parent.results(&fill)?;
        let links = parent.dir().join("links");
        fs::create_dir(&links)?;
        link_values(&parent.dir().join("quoit"), &links)?;
        let mut turns = Vec::new();
        for turn in 1..=self.turns {
            eprintln!("turn {turn} of {}", self.turns);
            machine::drop_page_cache()?;
            let result = self.quoit_turn(&parent, sizes)?;
            let fio = self.fio_turn(&links)?;
            report.note_others(&result);
            turns.push((result, fio));
        }
        self.show(&mut report, &turns)?;
        report.finish(self.common.json.as_deref())
    }

    fn fill(&self, records: u64) -> Spec {
        Spec {
            name: "fill".to_owned(),
            choice: Choice::InTurn {
                from: 0,
                to: records,
            },
            of: 1,
            puts: 1,
            workers: 64,
            operations_max: u64::MAX,
            seconds_max: f64::MAX,
            rate: None,
            measured: false,
            settle_seconds: 30.0,
        }
    }

    fn quoit_turn(&self, parent: &Parent, sizes: Sizes) -> Outcome<PhaseResult> {
        let records = sizes.records();
        let warm = Spec {
            name: WARM.to_owned(),
            choice: Choice::OnceEach {
                from: 0,
                to: records / WARM_PART,
            },
            puts: 0,
            workers: self.depth,
            seconds_max: self.seconds,
            settle_seconds: 0.0,
            ..self.fill(records)
        };
        let read = Spec {
            name: READ.to_owned(),
            choice: Choice::OnceEach {
                from: records / WARM_PART,
                to: records,
            },
            measured: true,
            ..warm.clone()
        };
        let mut job = parent.job(EngineName::Quoit, "quoit", sizes);
        job.known = Known::Filled {
            floors: vec![(records, 1)],
            last: 1,
        };
        job.steps = vec![Step::Load(warm), Step::Load(read)];
        let results = parent.results(&job)?;
        let read = results.into_iter().find(|result| result.name == READ);
        read.ok_or_else(|| Failure::new("there was no phase of reads"))
    }

    fn describe(&self) -> Outcome<String> {
        let version = run_fio(&["--version"])?;
        Ok(format!(
            "{}, randread of {} with io_uring and direct I/O",
            version.trim(),
            self.block
        ))
    }

    /// fio reads from all files in `folder`.
    fn fio_turn(&self, folder: &Path) -> Outcome<FioTurn> {
        let arguments = [
            "--name=reads".to_owned(),
            format!("--opendir={}", folder.display()),
            "--readonly".to_owned(),
            "--file_service_type=random".to_owned(),
            "--rw=randread".to_owned(),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--norandommap".to_owned(),
            "--randrepeat=0".to_owned(),
            "--time_based".to_owned(),
            format!("--runtime={}", self.seconds),
            "--output-format=json".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = run_fio(&arguments)?;
        // It may say other things before.
        let start = text.find('{').unwrap_or(0);
        let json: Value = serde_json::from_str(&text[start..])?;
        let read = &json["jobs"][0]["read"];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let percentile = |name: &str| number(&read["clat_ns"]["percentile"][name]) / 1000.0;
        let rate = number(&read["iops"]);
        match rate > 0.0 {
            true => Ok(FioTurn {
                rate,
                p50_us: percentile("50.000000"),
                p99_us: percentile("99.000000"),
            }),
            false => Err(Failure::new("fio says of no reads")),
        }
    }

    fn show(&self, report: &mut Report, turns: &[(PhaseResult, FioTurn)]) -> Outcome<()> {
        let rows = turns.iter().enumerate().map(|(index, (quoit, fio))| {
            vec![
                (index + 1).to_string(),
                format!("{:.0}", quoit.operations_per_second),
                format!("{:.0}", fio.rate),
                format!("{:.2}", quoit.operations_per_second / fio.rate),
                format!(
                    "{} / {}",
                    report::ms(quoit.gets.p50_us),
                    report::ms(quoit.gets.p99_us)
                ),
                format!("{:.2} / {:.2}", fio.p50_us / 1000.0, fio.p99_us / 1000.0),
                format!("{:.2}", quoit.reads_per_cold_get()),
                format!("{:.1}", quoit.bytes_per_get() / 1024.0),
            ]
        });
        let heads = [
            "turn",
            "Quoit reads/s",
            "fio reads/s",
            "ratio",
            "Quoit p50 / p99 ms",
            "fio p50 / p99 ms",
            "device reads per GET",
            "KiB per GET",
        ];
        println!();
        report::table(&heads, &rows.collect::<Vec<_>>());
        let quoit: Vec<f64> = turns
            .iter()
            .map(|turn| turn.0.operations_per_second)
            .collect();
        let fio: Vec<f64> = turns.iter().map(|turn| turn.1.rate).collect();
        let (quoit, fio) = (report::median(&quoit), report::median(&fio));
        println!("\nMedians: Quoit {quoit:.0}, fio {fio:.0} reads/s.");
        report.bar(Bar::at_least(
            "Quoit's cold reads, as a part of fio's",
            quoit / fio,
            SHARE_MIN,
        ));
        report.add(
            "quoit",
            turns.iter().map(|turn| &turn.0).collect::<Vec<_>>(),
        )?;
        report.add(
            "fio_reads_per_second",
            turns.iter().map(|turn| turn.1.rate).collect::<Vec<_>>(),
        )
    }
}

/// Links all segments of the value log below `from` into `to`, by numbers: they stay, whatever the
/// collector does.
fn link_values(from: &Path, to: &Path) -> Outcome<()> {
    let mut number = 0;
    for core in fs::read_dir(from)? {
        let core = core?.path();
        if !core.is_dir() {
            continue;
        }
        for file in fs::read_dir(&core)? {
            let file = file?;
            if file.file_name().as_encoded_bytes().starts_with(b"values-") {
                fs::hard_link(file.path(), to.join(number.to_string()))?;
                number += 1;
            }
        }
    }
    match number > 0 {
        true => Ok(()),
        false => Err(Failure::new("there is no value log to read from")),
    }
}

fn run_fio(arguments: &[&str]) -> Outcome<String> {
    let output = Command::new("fio").args(arguments).output();
    let output = output
        .map_err(|error| Failure::new(format!("cannot run fio (apt-get install fio): {error}")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::new(format!(
            "fio failed: {}",
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}
