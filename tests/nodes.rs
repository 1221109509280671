//! Nodes of a cluster in a simulated world, under crashes, partitions and whatever else goes wrong,
//! and clients that speak RESP to them: three nodes in long runs of few faults, five nodes of two
//! cores in short runs of all faults.
//!
//! What clients are told at QUORUM must be explained by one order of all operations on a key
//! (`linear`); nothing that FAILED may be seen at any level; and when the faults are over all nodes
//! come to tell the same, and all replicas to hold the same, byte by byte. `SEED=n` runs that seed,
//! `QUOIT_SEEDS=n` so many; a failure prints the line that repeats it. The long form is in the
//! README.

#[path = "sim/cluster.rs"]
mod cluster;
#[path = "nodes/dialogue.rs"]
mod dialogue;
#[path = "membership/etcd.rs"]
mod etcd;
#[path = "nodes/forming.rs"]
mod forming;
#[path = "nodes/hints.rs"]
mod hints;
#[path = "nodes/holders.rs"]
mod holders;
#[path = "linear/mod.rs"]
mod linear;
#[path = "nodes/order.rs"]
mod order;
#[path = "sim/peer.rs"]
mod peer;
#[path = "nodes/returns.rs"]
mod returns;
#[path = "nodes/scene.rs"]
mod scene;
#[path = "common/seeds.rs"]
mod seeds;
#[path = "nodes/storm.rs"]
mod storm;
#[path = "nodes/whole.rs"]
mod whole;
#[path = "nodes/workload.rs"]
mod workload;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cluster::Verdict;
use linear::Outcome;
use quoit::rt::Bug;
use quoit::types::Level;
use scene::{FIVE, Scene, Shape, THREE, Tally};
use seeds::Test;
use workload::Ledger;

/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 1_000;

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ran {
    trace: u64,
    done: u64,
    failed: u64,
    unknown: u64,
    tally: Tally,
    /// Virtual time.
    took: Duration,
}

impl Ran {
    fn of(scene: &Scene, ledger: &RefCell<Ledger>) -> Ran {
        let ledger = ledger.borrow();
        Ran {
            trace: scene.world.trace_hash(),
            done: ledger.count(Outcome::Done),
            failed: ledger.count(Outcome::Failed),
            unknown: ledger.count(Outcome::Unknown),
            tally: scene.tally,
            took: scene.world.elapsed(),
        }
    }
}

/// A storm, then calm; all histories, those of the readings in the end included.
fn simulate(
    shape: Shape,
    seed: u64,
    level: Level,
    planted: &[Bug],
) -> Verdict<(Ran, Rc<RefCell<Ledger>>)> {
    let mut scene = Scene::formed(shape, seed, planted)?;
    let ledger = Ledger::of(shape, level);
    scene.spawn_clients(&ledger);
    scene.storm()?;
    scene.calm()?;
    scene.settle(&ledger)?;
    scene.converge(&ledger)?;
    Ok((Ran::of(&scene, &ledger), ledger))
}

fn strong(shape: Shape, seed: u64, planted: &[Bug]) -> Verdict<Ran> {
    let (ran, ledger) = simulate(shape, seed, Level::Quorum, planted)?;
    linear::check_keys(&ledger.borrow().histories)?;
    Ok(ran)
}

fn weak(shape: Shape, seed: u64) -> Verdict<Ran> {
    let (ran, ledger) = simulate(shape, seed, Level::One, &[])?;
    for (key, history) in &ledger.borrow().histories {
        linear::check_origins(history).map_err(|why| format!("key {key}: {why}"))?;
    }
    Ok(ran)
}

fn while_forming(seed: u64, planted: &[Bug]) -> Verdict<Ran> {
    let (scene, ledger) = forming::run(seed, planted)?;
    linear::check_keys(&ledger.borrow().histories)?;
    Ok(Ran::of(&scene, &ledger))
}

/// Runs `simulate` for all seeds, and says what they came to.
fn report(name: &'static str, seeds: u64, simulate: impl Fn(u64) -> Verdict<Ran>) -> Ran {
    let test = Test {
        program: "nodes",
        name,
        seeds,
        twice_every: 10,
    };
    let (ran, seconds) = test.run(simulate);
    let mut total = Ran::default();
    for one in &ran {
        total.done += one.done;
        total.failed += one.failed;
        total.unknown += one.unknown;
        total.took += one.took;
        total.tally.add(one.tally);
    }
    let runs = ran.len() as u64;
    println!(
        "{name}: {runs} seeds, {} operations done, {} failed, {} unknown; {:?}; {:.0} virtual s in {seconds:.0} s: {:.0} \
         to one",
        total.done,
        total.failed,
        total.unknown,
        total.tally,
        total.took.as_secs_f64(),
        total.took.as_secs_f64() / seconds
    );
    assert!(total.done > 20 * runs, "next to nothing was done");
    if test.is_whole(ran.len()) && seeds > 1 {
        assert!(total.tally.crashes > 0 || name.contains("forms"));
        assert!(total.failed + total.unknown > 0);
    }
    total
}

/// Else a QUORUM read could miss an acknowledged write, or go back to an older one.
#[test]
fn quorum_histories_of_three_nodes_are_linearizable() {
    let name = "quorum_histories_of_three_nodes_are_linearizable";
    report(name, 12, |seed| strong(THREE, seed, &[]));
}

/// The same of five, two of which may be away, with all that can go wrong.
#[test]
fn quorum_histories_of_five_nodes_are_linearizable() {
    let name = "quorum_histories_of_five_nodes_are_linearizable";
    report(name, 12, |seed| strong(FIVE, seed, &[]));
}

/// Else a write at ONE that FAILED could be seen, or nodes could tell different things for ever.
#[test]
fn at_one_nothing_is_read_that_nobody_wrote_and_nodes_converge() {
    let name = "at_one_nothing_is_read_that_nobody_wrote_and_nodes_converge";
    report(name, 12, |seed| weak(THREE, seed));
}

/// The same of five.
#[test]
fn at_one_five_nodes_tell_nothing_that_nobody_wrote_and_converge() {
    let name = "at_one_five_nodes_tell_nothing_that_nobody_wrote_and_converge";
    report(name, 6, |seed| weak(FIVE, seed));
}

/// Else what is written while a cluster forms could be on nodes that do not hold it a moment later,
/// and be lost.
#[test]
fn what_is_written_while_a_cluster_forms_is_linearizable() {
    let name = "what_is_written_while_a_cluster_forms_is_linearizable";
    report(name, 12, |seed| while_forming(seed, &[]));
}

/// Else a coordinator that has not heard of the newest map could write to who holds nothing, or
/// never hear of it.
#[test]
fn who_coordinates_by_an_old_map_is_refused_and_fetches_the_newer() {
    for seed in 0..4 {
        let written = forming::write_by_an_old_map(seed);
        written.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// Else a node that gets another address, or all that get new ones, would need a hand to be a
/// cluster again.
#[test]
fn nodes_that_come_back_elsewhere_find_each_other() {
    for seed in 0..3 {
        let scene = Scene::new(seed, &[]).expect("a cluster");
        let found = forming::come_back_elsewhere(scene);
        found.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let scene = Scene::in_etcd(seed).expect("a cluster");
        let found = forming::come_back_elsewhere(scene);
        found.unwrap_or_else(|why| panic!("seed {seed}, by etcd: {why}"));
    }
    let scene = Scene::new(0, &[Bug::NobodyKnocks]).expect("a cluster");
    let found = forming::come_back_elsewhere(scene);
    assert!(found.is_err(), "that nobody knocks does no harm");
}

/// The map is in etcd, which goes away: the first write is refused and done later, and from then on
/// nobody needs etcd, not even to come back.
fn without_etcd(seed: u64) -> Verdict<Ran> {
    let mut scene = Scene::in_etcd(seed)?;
    scene.end_etcd();
    scene.talk(dialogue::first_write_is_refused)?;
    scene.start_etcd();
    scene.talk(dialogue::write_at_last)?;
    scene.end_etcd();
    for number in scene.all() {
        scene.crash(number);
        scene.start_missing()?;
    }
    let ledger = Ledger::of(THREE, Level::Quorum);
    scene.spawn_clients(&ledger);
    scene.storm()?;
    scene.calm()?;
    scene.settle(&ledger)?;
    linear::check_keys(&ledger.borrow().histories)?;
    Ok(Ran::of(&scene, &ledger))
}

/// Else a cluster would stop with the etcd that keeps its map, or not come up again without it.
#[test]
fn nodes_whose_map_is_in_etcd_serve_on_without_it() {
    report(
        "nodes_whose_map_is_in_etcd_serve_on_without_it",
        2,
        without_etcd,
    );
}

/// Else a command would do by halves what it cannot do, or forget the order of those before it.
#[test]
fn commands_on_replicated_keys_answer_as_they_should() {
    for seed in 0..3 {
        let mut scene = Scene::new(seed, &[]).expect("a cluster");
        scene
            .talk(dialogue::hold)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// The seeds in which a planted bug is looked for, at first that by which it was found before.
fn seeds_from(before: u64) -> impl Iterator<Item = u64> {
    std::iter::once(before).chain(0..FINDING_SEEDS)
}

/// Looks for `bug` among the nodes of `shape`.
fn finds(shape: Shape, bug: Bug, before: u64) {
    seeds::finds(bug, seeds_from(before), |seed| strong(shape, seed, &[bug]));
}

#[test]
fn a_tombstone_that_is_dropped_too_soon_is_found_among_three_nodes() {
    finds(THREE, Bug::TombstoneForgotten, 45);
}

#[test]
fn a_write_without_a_barrier_is_found_among_three_nodes() {
    finds(THREE, Bug::NoBarrier, 0);
}

#[test]
fn a_read_that_does_not_write_back_is_found_among_five_nodes() {
    finds(FIVE, Bug::NoWriteBack, 75);
}

#[test]
fn a_write_without_a_barrier_is_found_among_five_nodes() {
    finds(FIVE, Bug::NoBarrier, 0);
}

#[test]
fn a_majority_that_is_one_too_small_is_found_among_five_nodes() {
    finds(FIVE, Bug::HalfOfReplicas, 0);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found_among_five_nodes() {
    finds(FIVE, Bug::ReplicaUnsynced, 39);
}

#[test]
fn an_old_map_that_is_taken_is_found_while_a_cluster_forms() {
    let bug = Bug::StaleMapTaken;
    seeds::finds(bug, seeds_from(187), |seed| while_forming(seed, &[bug]));
}
