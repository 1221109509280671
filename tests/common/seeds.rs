//! Tests that are functions of a seed: which seeds they are run for, how a failure is repeated,
//! what a planted bug takes.
//!
//! `SEED=n` runs that seed; `QUOIT_SEEDS=n` so many of them, from `QUOIT_FROM` on, so that several
//! processes can share a long run. Whatever fails prints the line that repeats it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fmt::Debug;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A long run says so often how far it is.
const TOLD_EVERY: u64 = 1_000;
/// So much is told of what a planted bug has done.
const TOLD_CHARS_MAX: usize = 200;

/// A number of the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Has what nodes log shown, if RUST_LOG says so, with the time by the clock of whoever says it.
pub fn show_log() {
    let line = |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        let (now, level) = (quoit::rt::now(), record.level());
        writeln!(out, "{:.6} {level} {}", now.as_secs_f64(), record.args())
    };
    let mut builder = env_logger::builder();
    builder
        .filter_level(log::LevelFilter::Off)
        .parse_default_env();
    // Another test of this program may have been first.
    let _ = builder.format(line).try_init();
}

/// A test of a test program.
#[derive(Clone, Copy)]
pub struct Test {
    /// The program.
    pub program: &'static str,
    /// The test in it.
    pub name: &'static str,
    /// Seeds of its short form.
    pub seeds: u64,
    /// One in so many is run twice, and must come to the same.
    pub twice_every: u64,
}

/// Says how a run is repeated if it panics.
struct Repeat(String);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: {}", self.0);
        }
    }
}

impl Test {
    /// Runs `simulate` for each seed; what each came to, and in how many seconds all did.
    pub fn run<T: PartialEq + Debug>(
        self,
        simulate: impl Fn(u64) -> Result<T, String>,
    ) -> (Vec<T>, f64) {
        let seeds = match number("SEED") {
            Some(seed) => seed..seed + 1,
            None => {
                let from = number("QUOIT_FROM").unwrap_or(0);
                from..from + number("QUOIT_SEEDS").unwrap_or(self.seeds)
            }
        };
        let (began, mut ran) = (Instant::now(), Vec::new());
        for seed in seeds {
            let (program, name) = (self.program, self.name);
            let repeat = Repeat(format!("SEED={seed} cargo test --test {program} {name}"));
            let once = simulate(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            if seed % self.twice_every == 0 {
                let again = simulate(seed);
                assert_eq!(Ok(&once), again.as_ref(), "seed {seed}: not the same twice");
            }
            drop(repeat);
            ran.push(once);
            if (ran.len() as u64).is_multiple_of(TOLD_EVERY) {
                let seconds = began.elapsed().as_secs();
                println!("{name}: {} seeds in {seconds} s", ran.len());
            }
        }
        (ran, began.elapsed().as_secs_f64())
    }

    /// True if so many seeds were run that all that may happen should have.
    pub fn is_whole(self, runs: usize) -> bool {
        runs as u64 >= self.seeds
    }
}

/// Plants `bug`, and sees that one of `seeds` finds it: by what `simulate` says, or by a panic.
pub fn finds<T>(
    bug: impl Debug,
    seeds: impl IntoIterator<Item = u64>,
    simulate: impl Fn(u64) -> Result<T, String>,
) {
    let found = seeds.into_iter().find_map(|seed| {
        match catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
            Ok(Ok(_)) => None,
            Ok(Err(why)) => Some((seed, why)),
            Err(_) => Some((seed, "a panic".to_owned())),
        }
    });
    let (seed, why) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    let first = why.lines().next().unwrap_or_default();
    let what: String = first.chars().take(TOLD_CHARS_MAX).collect();
    println!("{bug:?} is found by seed {seed}: {what}");
}
