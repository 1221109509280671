//! Clusters of real processes under real faults: `bench/scenarios` in a short form, or, with
//! QUOIT_LONG, in its own.
//!
//! It needs python3, and builds the load generator; root and `ip` for the faults of links. What is
//! missing is said, and skipped.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{QUOIT, is_long};

/// Seconds after which a run is given up.
const SHORT_SECONDS_MAX: &str = "240";
const LONG_SECONDS_MAX: &str = "3600";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The load generator, built beside the tests; `None`, with the reason printed, if that does not
/// work.
fn load_generator() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--bin", "quoit-bench"])
        .arg("--manifest-path")
        .arg(root().join("bench/load/Cargo.toml"))
        .env("CARGO_TARGET_DIR", target)
        .output();
    match built {
        Ok(output) if output.status.success() => Some(target.join("debug/quoit-bench")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("skipped: the load generator cannot be built: {said}");
            None
        }
        Err(error) => {
            println!("skipped: there is no cargo: {error}");
            None
        }
    }
}

/// Runs the script; its exit code says whether anything was lost, or told wrong.
fn play(seconds_max: &str, words: &[&str]) {
    let python = Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !python.is_ok_and(|status| status.success()) {
        println!("skipped: there is no python3 on the PATH");
        return;
    }
    let Some(load) = load_generator() else { return };
    let output = Command::new("timeout")
        .args(["-k", "10", seconds_max, "python3", "-B"])
        .arg(root().join("bench/scenarios"))
        .args(["--quoit", QUOIT, "--load"])
        .arg(load)
        .args(["--dir", env!("CARGO_TARGET_TMPDIR")])
        .args(words)
        .output()
        .expect("it can be run");
    let told = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{said}");
    print!("{told}");
}

/// Else what the simulator proves of the protocol would not hold for the program: with real
/// sockets, files, signals and clocks.
#[test]
fn a_cluster_under_faults_loses_nothing_and_tells_nothing_wrong() {
    if is_long() {
        return play(LONG_SECONDS_MAX, &["--timeout", "1000", "--rate", "300"]);
    }
    // A build for tests on a machine that is busy: few requests, and clients that are patient.
    let words = "--levels quorum --scenarios crash pause halves --hold 2 --rate 150 --history-rate 150 \
                 --clients 12 --records 40 --timeout 1000";
    let words: Vec<&str> = words.split_whitespace().collect();
    play(SHORT_SECONDS_MAX, &words);
}
