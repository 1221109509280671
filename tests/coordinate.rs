//! The coordinator, as it runs on a node, over simulated replicas: it and they crash between any
//! two steps, messages are late, lost or cut off, clocks are a day wrong, syncs come to nothing.
//! QUORUM histories must be linearizable, nothing that FAILED may be seen, and when the faults are
//! over one reading brings all replicas to the same.
//!
//! Each run is a function of a seed. `SEED=n` runs that one, `QUOIT_SEEDS=n` that many; a failure
//! prints the line that repeats it. The mistakes that one can make here are planted in turn, and
//! must be found.

#[path = "coordinate/hung.rs"]
mod hung;
#[path = "linear/mod.rs"]
mod linear;
#[path = "common/quorums.rs"]
mod quorums;
#[path = "common/seeds.rs"]
mod seeds;
#[path = "coordinate/world.rs"]
mod world;

use quorums::{Planted, finds, for_seeds, strong, weak};
use seeds::Test;
use world::Stage;

/// What must have happened.
const ALL: &[&str] = &[
    "clocks asked",
    "crashes",
    "digests",
    "done",
    "failed",
    "hints",
    "hints brought home",
    "lost",
    "unknown",
    "values",
    "writes",
];

fn test(name: &'static str) -> Test {
    Test {
        program: "coordinate",
        name,
        seeds: 150,
        twice_every: 50,
    }
}

/// Else a QUORUM read could miss an acknowledged write, or go back to an older one.
#[test]
fn quorum_histories_are_linearizable_whatever_fails() {
    let test = test("quorum_histories_are_linearizable_whatever_fails");
    for_seeds(test, ALL, |seed| strong::<Stage>(seed, None));
}

/// Else a write at ONE that FAILED could be seen, or replicas could stay different for ever.
#[test]
fn at_every_level_what_failed_is_never_seen_and_replicas_converge() {
    let test = test("at_every_level_what_failed_is_never_seen_and_replicas_converge");
    for_seeds(test, ALL, weak::<Stage>);
}

#[test]
fn a_read_that_does_not_write_back_is_found() {
    finds::<Stage>(Planted::NoWriteBack);
}

#[test]
fn a_write_that_hears_no_clocks_is_found() {
    finds::<Stage>(Planted::NoBarrier);
}

#[test]
fn a_hint_that_counts_towards_a_quorum_is_found() {
    finds::<Stage>(Planted::HintCounts);
}

#[test]
fn a_majority_that_is_one_too_small_is_found() {
    finds::<Stage>(Planted::SmallMajority);
}

#[test]
fn a_write_that_is_sent_again_under_a_new_version_is_found() {
    finds::<Stage>(Planted::Restamp);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    finds::<Stage>(Planted::AckBeforeSync);
}
