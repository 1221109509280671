//! QUORUM reads and writes of one key over its replicas, simulated from a seed: replicas and
//! coordinators that crash between any two steps, messages that are late, lost, repeated or cut
//! off, clocks that are a day wrong, syncs that come to nothing. Every history must be
//! linearizable, nothing that FAILED may be seen, and when the faults are over all replicas come to
//! hold the same.
//!
//! Each run is a function of a seed. `SEED=n` runs that one, `QUOIT_SEEDS=n` that many; a failure
//! prints the line that repeats it. The mistakes that one can make here are planted in turn, and
//! must be found.

#[path = "replicas/coordinator.rs"]
mod coordinator;
#[path = "linear/mod.rs"]
mod linear;
#[path = "common/quorums.rs"]
mod quorums;
#[path = "common/seeds.rs"]
mod seeds;
#[path = "replicas/world.rs"]
mod world;

use quorums::{Planted, finds, for_seeds, strong, weak};
use seeds::Test;
use world::World;

/// What must have happened.
const ALL: &[&str] = &[
    "barriers",
    "crashes",
    "cuts",
    "done",
    "events",
    "failed",
    "hedged",
    "hints",
    "hints brought home",
    "lost",
    "refused",
    "repairs",
    "repeated",
    "unknown",
    "unsynced lost",
    "values fetched",
    "write backs",
];

fn test(name: &'static str) -> Test {
    Test {
        program: "replicas",
        name,
        seeds: 400,
        twice_every: 50,
    }
}

/// Else a QUORUM read could miss an acknowledged write, or go back to an older one.
#[test]
fn quorum_histories_are_linearizable_whatever_fails() {
    let test = test("quorum_histories_are_linearizable_whatever_fails");
    for_seeds(test, ALL, |seed| strong::<World>(seed, None));
}

/// Else a write at ONE that FAILED could be seen, or replicas could stay different for ever.
#[test]
fn at_every_level_what_failed_is_never_seen_and_replicas_converge() {
    let test = test("at_every_level_what_failed_is_never_seen_and_replicas_converge");
    for_seeds(test, ALL, weak::<World>);
}

#[test]
fn a_read_that_does_not_write_back_is_found() {
    finds::<World>(Planted::NoWriteBack);
}

#[test]
fn a_write_that_hears_no_clocks_is_found() {
    finds::<World>(Planted::NoBarrier);
}

#[test]
fn a_hint_that_counts_towards_a_quorum_is_found() {
    finds::<World>(Planted::HintCounts);
}

#[test]
fn a_majority_that_is_one_too_small_is_found() {
    finds::<World>(Planted::SmallMajority);
}

#[test]
fn a_write_that_is_sent_again_under_a_new_version_is_found() {
    finds::<World>(Planted::Restamp);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    finds::<World>(Planted::AckBeforeSync);
}

#[test]
fn a_timeout_that_is_called_a_failure_is_found() {
    finds::<World>(Planted::TimeoutIsFailure);
}

/// A coordinator that restarts with a late clock would choose a version again that it gave to
/// another write.
#[test]
fn a_version_that_is_chosen_twice_is_found() {
    finds::<World>(Planted::SameGeneration);
}
