//! `quoit-bench`: reads the command line, runs, and says with its exit code whether the targets
//! were met.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use quoit_bench::console::Console;
use quoit_bench::core::Phase;
use quoit_bench::options::{Options, Prepared};
use quoit_bench::report;
use quoit_bench::run::{Measured, run};
use quoit_bench::summary::{Facts, Summary};
use quoit_bench::target::{KEPT_MIN, Ramp};

/// A target was missed.
const EXIT_MISSED: u8 = 1;
/// It could not be measured, or an answer was wrong.
const EXIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    match start(Options::parse()) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("quoit-bench: {why}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn start(options: Options) -> Result<ExitCode, String> {
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupt))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupt)))
            .map_err(|why| why.to_string())?;
    }
    let mut prepared = options.prepare()?;
    // Enough of the work, but not of what comes after it.
    signal_hook::flag::register(
        signal_hook::consts::SIGUSR1,
        Arc::clone(&prepared.setup.enough),
    )
    .map_err(|why| why.to_string())?;
    if let Some(warning) = prepared.warning() {
        eprintln!("quoit-bench: {warning}");
    }
    match prepared.options.ramp {
        true => ramp(&mut prepared, &interrupt),
        false => {
            let rate = prepared.rate();
            let (summary, measured) = run_once(&prepared, rate, &interrupt)?;
            publish(&prepared, &summary, &measured)?;
            Ok(exit_code(&summary))
        }
    }
}

/// The highest rate that keeps the targets; the report is of the last run at it.
fn ramp(prepared: &mut Prepared, interrupt: &AtomicBool) -> Result<ExitCode, String> {
    let options = &prepared.options;
    let mut search = Ramp::new(
        options.ramp_from,
        options.ramp_to,
        options.ramp_precision / 100.0,
    );
    let mut best = None;
    while let Some(rate) = search.next() {
        let (summary, measured) = run_once(prepared, Some(rate), interrupt)?;
        if interrupt.load(Ordering::Relaxed) {
            return Err("interrupted before the search was over".into());
        }
        if summary.is_broken() && summary.verification.is_some() {
            publish(prepared, &summary, &measured)?;
            return Ok(ExitCode::from(EXIT_FAILED));
        }
        let due = summary.answers + summary.failures;
        let is_kept = summary.is_met() && summary.answers as f64 >= KEPT_MIN * due as f64;
        eprintln!(
            "{:>12}/s offered: {}",
            report::thousands(rate),
            step(&summary, is_kept)
        );
        search.tried(is_kept);
        if is_kept {
            best = Some((summary, measured));
        }
        prepared.setup.fills = false; // once is enough
    }
    match best {
        Some((summary, measured)) => {
            publish(prepared, &summary, &measured)?;
            let rate = search.best().expect("a rate was kept");
            // Where standard output holds JSON, the rate stands in it.
            eprintln!(
                "highest rate that keeps the targets: {}/s",
                report::thousands(rate)
            );
            Ok(ExitCode::SUCCESS)
        }
        None => {
            eprintln!("no rate keeps the targets");
            Ok(ExitCode::from(EXIT_MISSED))
        }
    }
}

/// One line for a step of the search.
fn step(summary: &Summary, is_kept: bool) -> String {
    let seen = summary.targets.iter().map(|target| {
        let seen = target
            .seen_ms
            .map_or("never".to_owned(), |seen| format!("{seen:.3} ms"));
        format!("{} p{} {seen}", target.operation, target.quantile * 100.0)
    });
    let seen = seen.collect::<Vec<_>>().join(", ");
    let verdict = if is_kept { "kept" } else { "missed" };
    format!(
        "{}/s answered, {seen}, {} failures: {verdict}",
        report::thousands(summary.rate),
        summary.failures
    )
}

fn run_once(
    prepared: &Prepared,
    rate: Option<f64>,
    interrupt: &AtomicBool,
) -> Result<(Summary, Vec<Measured>), String> {
    let mut console = Console::new(prepared.options.quiet || prepared.options.ramp);
    let plan = prepared.plan(rate, run_number());
    let measured = run(plan, &prepared.setup, interrupt, &mut console)?;
    console.finish();
    let fill = measured
        .iter()
        .find(|measured| measured.phase == Phase::Fill);
    if let Some(failures) = fill
        .map(|fill| fill.tally.failures())
        .filter(|failures| *failures > 0)
    {
        eprintln!("quoit-bench: {failures} records could not be written before");
    }
    let facts = Facts {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        workload: prepared.options.workload.clone(),
        offered_rate: rate,
        targets: prepared.options.targets(),
        is_verified: prepared.options.verify,
        has_gaps: prepared.options.gaps,
        is_linear: prepared.options.linear,
        is_interrupted: interrupt.load(Ordering::Relaxed),
    };
    Ok((Summary::new(facts, &measured), measured))
}

/// Tells the values of this run from those that another left on the server.
fn run_number() -> u32 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (since.as_millis() as u32) ^ std::process::id()
}

fn publish(prepared: &Prepared, summary: &Summary, measured: &[Measured]) -> Result<(), String> {
    let options = &prepared.options;
    match &options.json {
        Some(path) if path == Path::new("-") => println!("{}", report::json(summary)?),
        Some(path) => {
            std::fs::write(path, report::json(summary)?)
                .map_err(|why| format!("{}: {why}", path.display()))?;
            print!("{}", report::text(summary));
        }
        None => print!("{}", report::text(summary)),
    }
    let work = measured
        .iter()
        .find(|measured| measured.phase == Phase::Work);
    match (&options.report, work) {
        (Some(directory), Some(work)) => report::write_all(directory, summary, work),
        _ => Ok(()),
    }
}

fn exit_code(summary: &Summary) -> ExitCode {
    match (summary.is_broken(), summary.is_met()) {
        (true, _) => ExitCode::from(EXIT_FAILED),
        (false, false) => ExitCode::from(EXIT_MISSED),
        (false, true) => ExitCode::SUCCESS,
    }
}
