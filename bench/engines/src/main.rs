//! `engines`: Quoit's storage measured, alone, beside `fio`, and beside RocksDB and fjall.
//!
//! Read on in `long` (an experiment), `child` and `phase` (what runs it), `quoit_engine` and
//! `peers` (what is driven), `content` and `stream` (with what), `result`, `machine` and `report`
//! (what comes out).

mod beside;
mod child;
mod content;
mod engine;
mod failure;
mod fio;
mod long;
mod machine;
mod parent;
#[cfg(feature = "peers")]
mod peers;
mod phase;
mod quoit_engine;
mod recovery;
mod report;
mod result;
mod small;
mod stream;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Outcome;

/// A bar was missed.
const EXIT_MISSED: u8 = 1;
/// It could not be measured, or the engine was wrong.
const EXIT_FAILED: u8 = 2;

/// Measures Quoit's storage, without sockets and protocol. Exit code 0: all bars are met; 1: one is
/// missed; 2: it could not be measured, or an answer was wrong.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Subcommand)]
enum Experiment {
    Long(long::Long),
    ReadsBesideFio(fio::BesideFio),
    Beside(beside::Beside),
    Small(small::Small),
    Recovery(recovery::Recovery),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,glommio=off"))
        .init();
    let done = match std::env::args().nth(1).as_deref() {
        Some(parent::CHILD) => child::main().map(|()| true),
        _ => run(Cli::parse()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_MISSED),
        Err(failure) => {
            eprintln!("engines: {failure}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run(cli: Cli) -> Outcome<bool> {
    match cli.experiment {
        Experiment::Long(long) => long.run(),
        Experiment::ReadsBesideFio(beside) => beside.run(),
        Experiment::Beside(beside) => beside.run(),
        Experiment::Small(small) => small.run(),
        Experiment::Recovery(recovery) => recovery.run(),
    }
}
