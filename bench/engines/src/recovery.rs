//! `engines recovery`: how long a start takes after kill -9, and after a clean stop; and that
//! nothing that was acknowledged is missing then.
//!
//! The child that is killed says again and again up to which record it has overwritten all, so that
//! its parent knows what the next child must find. It begins with empty memtables (it was just
//! opened after a clean stop), and is killed shortly before they would be flushed: a start has most
//! to replay then.

use clap::Args;
use quoit::config::{Config, MEMTABLE_SHARE};

use crate::child::{Job, Known, Step, Told};
use crate::content::KEY_BYTES;
use crate::engine::EngineName;
use crate::failure::{Failure, Outcome};
use crate::machine;
use crate::parent::{Common, Parent, Sizes, Then};
use crate::phase::Spec;
use crate::report::{self, Report};
use crate::stream::Choice;

const SIZES: Sizes = Sizes {
    memory: 2 << 30,
    data: 20 << 30,
    value_bytes: 10_000,
};
/// The disk must have so many times the data.
const SPACE_FACTOR: f64 = 2.0;
/// Memtables are this full when the kill comes, in hundredths.
const FULL_PERCENT: u64 = 90;
/// What a memtable needs for a record besides key and value: its header, and what holds it. As in
/// quoit's memtable.rs and record.rs.
const MEMTABLE_OVERHEAD: u64 = 25 + 80;
/// What it needs for the place of a large value.
const POINTER_BYTES: u64 = 21;
/// What a log needs for a record besides key and value, at most.
const LOG_OVERHEAD: u64 = 64;

/// Time to serving after kill -9 with full memtables, and after a clean stop.
#[derive(Args, Clone, Debug)]
pub struct Recovery {
    #[command(flatten)]
    common: Common,
    /// Starts after a clean stop, and after a kill, of each size.
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Data of the run with records of 100 B.
    #[arg(long, default_value = "1GiB")]
    small_data: bytesize::ByteSize,
    /// Writers.
    #[arg(long, default_value_t = 64)]
    writers: usize,
}

/// One start.
#[derive(Clone, Debug, serde::Serialize)]
struct Start {
    value_bytes: usize,
    after: &'static str,
    /// From the start of the process, by its parent's clock, until the engine is open.
    process_seconds: f64,
    /// The opening alone.
    open_seconds: f64,
    entries_replayed: u64,
    /// Bytes of keys and values that were acknowledged since the last flush.
    replay_bytes: u64,
    checked: u64,
}

impl Recovery {
    /// Runs it. It has no bars but that nothing is lost.
    pub fn run(&self) -> Outcome<bool> {
        let large = self.common.sizes(SIZES);
        let small = Sizes {
            data: self.small_data.0,
            value_bytes: 100,
            ..large
        };
        let space = (large.data.max(small.data) as f64 * SPACE_FACTOR) as u64;
        let parent = Parent::new(&self.common, space)?;
        let more = [
            ("turns", self.turns.to_string()),
            ("data of 100 B records", self.small_data.to_string()),
        ];
        let mut report = Report::new("recovery", &self.common, large, &more);
        let mut starts = Vec::new();
        for sizes in [large, small] {
            starts.extend(self.starts(&parent, sizes)?);
            parent.remove("data")?;
        }
        let rows = starts.iter().map(|start| {
            vec![
                format!("{} B, after {}", start.value_bytes, start.after),
                format!("{:.3}", start.process_seconds),
                format!("{:.3}", start.open_seconds),
                start.entries_replayed.to_string(),
                report::mib(start.replay_bytes),
                start.checked.to_string(),
            ]
        });
        println!(
            "\nTime to serving; the page cache was dropped before. Each record was checked afterwards.\n"
        );
        let heads = [
            "values",
            "process s",
            "open s",
            "entries replayed",
            "written since flush MiB",
            "records checked",
        ];
        report::table(&heads, &rows.collect::<Vec<_>>());
        report.add("starts", &starts)?;
        report.finish(self.common.json.as_deref())
    }

    fn starts(&self, parent: &Parent, sizes: Sizes) -> Outcome<Vec<Start>> {
        let mut fill = parent.job(EngineName::Quoit, "data", sizes);
        let all = Choice::InTurn {
            from: 0,
            to: sizes.records(),
        };
        fill.steps = vec![Step::Load(self.spec("fill", 1, all))];
        parent.results(&fill)?;
        let mut starts = Vec::new();
        let mut floors = vec![(sizes.records(), 1)];
        for turn in 1..=self.turns as u64 {
            eprintln!("{} B: turn {turn} of {}", sizes.value_bytes, self.turns);
            let mut job = parent.job(EngineName::Quoit, "data", sizes);
            job.known = Known::Filled {
                floors: floors.clone(),
                last: turn,
            };
            let target = records_until_flush(&job, sizes)?;
            job.steps = vec![Step::LoadUntilKilled(self.spec(
                "overwrite until killed",
                1,
                all,
            ))];
            let (clean, reached) = start_and_kill(parent, &job, target)?;
            starts.push(clean);
            floors.push((reached, turn + 1));
            let mut job = parent.job(EngineName::Quoit, "data", sizes);
            job.known = Known::Filled {
                floors: floors.clone(),
                last: turn + 1,
            };
            job.steps = vec![Step::Load(self.spec("check all", 0, all))];
            let mut start = start_and_check(parent, &job)?;
            start.replay_bytes = reached * (KEY_BYTES + sizes.value_bytes) as u64;
            starts.push(start);
        }
        Ok(starts)
    }

    fn spec(&self, name: &str, puts: u32, choice: Choice) -> Spec {
        Spec {
            name: name.to_owned(),
            choice,
            of: 1,
            puts,
            workers: self.writers,
            operations_max: u64::MAX,
            seconds_max: f64::MAX,
            rate: None,
            measured: false,
            settle_seconds: 0.0,
        }
    }
}

/// Starts after a clean stop, overwrites until that of `target` records is acknowledged, kills. The
/// start, and of how many records it was.
fn start_and_kill(parent: &Parent, job: &Job, target: u64) -> Outcome<(Start, u64)> {
    machine::drop_page_cache()?;
    let mut start = None;
    let mut reached = 0;
    parent.run(job, |seconds, told| {
        if let Told::Acknowledged { below } = told {
            reached = below;
            return if below >= target {
                Then::Kill
            } else {
                Then::Listen
            };
        }
        start = start
            .take()
            .or(started(job, "a clean stop", seconds, &told));
        Then::Listen
    })?;
    let start = start.ok_or_else(|| Failure::new("it was never open"))?;
    Ok((start, reached))
}

/// Starts after a kill, reads all records and checks them, stops.
fn start_and_check(parent: &Parent, job: &Job) -> Outcome<Start> {
    machine::drop_page_cache()?;
    let mut start = None;
    let mut checked = 0;
    parent.run(job, |seconds, told| {
        if let Told::Done(result) = &told {
            checked = result.gets.count;
        }
        start = start.take().or(started(job, "kill -9", seconds, &told));
        Then::Listen
    })?;
    let start = start.ok_or_else(|| Failure::new("it was never open"))?;
    Ok(Start { checked, ..start })
}

/// What `told` says of a start, if it does.
fn started(job: &Job, after: &'static str, seconds: f64, told: &Told) -> Option<Start> {
    let Told::Opened {
        open_seconds,
        facts,
        ..
    } = told
    else {
        return None;
    };
    Some(Start {
        value_bytes: job.value_bytes,
        after,
        process_seconds: seconds,
        open_seconds: *open_seconds,
        entries_replayed: facts.get("entries_replayed").copied().unwrap_or(0),
        replay_bytes: 0,
        checked: 0,
    })
}

/// So many records fill the memtables, or the logs that bound them, nearly.
fn records_until_flush(job: &Job, sizes: Sizes) -> Outcome<u64> {
    let config = Config::parse(job.setup.quoit_config.as_deref().unwrap_or(""))?;
    let cores = u64::from(job.setup.cores);
    let memtable = config
        .storage
        .memtable
        .0
        .min(sizes.memory / cores / MEMTABLE_SHARE);
    let value = sizes.value_bytes as u64;
    let is_large = value >= config.value_log.threshold.0;
    let kept = if is_large { POINTER_BYTES } else { value };
    let log = if is_large {
        config.value_log.replay_max.0
    } else {
        config.storage.wal_max.0
    };
    let by_memtable = memtable / (KEY_BYTES as u64 + kept + MEMTABLE_OVERHEAD);
    let by_log = log / (KEY_BYTES as u64 + value + LOG_OVERHEAD);
    let full = by_memtable.min(by_log).min(sizes.records() / cores);
    Ok(full * cores * FULL_PERCENT / 100)
}
