//! The whole node under power cuts, full and failing disks, and many clients, in a simulated world.
//!
//! Each test is a function of a seed. `SEED=n` runs that one, `QUOIT_SEEDS=n` that many; a failure
//! prints the line that repeats it. Some seeds are run twice and must do exactly the same.

#[path = "sim/checkers.rs"]
mod checkers;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/workload.rs"]
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cluster::{Client, End, NODE, Node, Verdict, config};
use quoit::rt::Bug;
use quoit::rt::sim::{Options, World};
use workload::Ledger;

/// Seeds whose run is repeated: one in so many.
const REPEAT_ONE_IN: u64 = 8;
/// Virtual time for clients to notice that their node is gone.
const LEAVE_MAX: Duration = Duration::from_secs(3600);

/// What a run was, to be compared and reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    answered: u64,
    lives: u64,
}

/// Runs `simulate` for each of the seeds.
fn for_seeds(test: &str, default: u64, simulate: impl Fn(u64) -> Verdict<Outcome>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUOIT_SEEDS").unwrap_or(default),
    };
    let began = Instant::now();
    let mut total = Outcome::default();
    for seed in seeds.clone() {
        let repeat = format!("repeat with: SEED={seed} cargo test --test sim {test}");
        let run = || {
            let ran = catch_unwind(AssertUnwindSafe(|| simulate(seed)));
            match ran {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(why)) => panic!("seed {seed}: {why}\n{repeat}"),
                Err(_) => panic!("seed {seed}: it panicked\n{repeat}"),
            }
        };
        let outcome = run();
        if seed % REPEAT_ONE_IN == 0 || seeds.end - seeds.start == 1 {
            assert_eq!(
                outcome,
                run(),
                "seed {seed} is not the same twice\n{repeat}"
            );
        }
        total.answered += outcome.answered;
        total.lives += outcome.lives;
    }
    println!(
        "{test}: {} seeds, {} lives, {} answers in {:.1} s",
        seeds.end - seeds.start,
        total.lives,
        total.answered,
        began.elapsed().as_secs_f64()
    );
}

/// Several lives of a node, most of them ended by a power cut.
fn power_cuts(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0xC075);
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    let clients = chance.usize(2..6);
    let ledger = Ledger::new(clients);
    let config = config(chance.u16(1..4), &mut chance);
    let lives = chance.u64(3..7);
    for _ in 0..lives {
        let node = Node::start(&world, &config)?;
        node.ask(&world, |client| workload::verify(ledger.clone(), client))?;
        let tasks: Vec<_> = (0..clients)
            .map(|number| {
                let chance = chance.fork();
                let client = Client::new(&node.life);
                world.spawn_client(workload::work(ledger.clone(), client, number, chance))
            })
            .collect();
        let target = ledger.borrow().answered + chance.u64(..150);
        let enough = || ledger.borrow().answered >= target || node.life.is_wrong();
        world.run_until(enough, Duration::from_secs(600));
        world.run_for(Duration::from_micros(chance.u64(..3_000)));
        let end = match chance.u8(..10) {
            0 => End::Stop,
            1 | 2 => End::Kill,
            _ => End::PowerCut,
        };
        let life = node.life.clone();
        node.end(&world, end)?;
        let gone = || tasks.iter().all(|task| task.is_done());
        if !world.run_until(gone, LEAVE_MAX) {
            return Err("clients stay though their node is gone".to_owned());
        }
        life.verdict()?;
        if chance.u8(..4) == 0 {
            world.jump_clock(NODE, chance.i64(-600_000..600_000));
        }
    }
    let node = Node::start(&world, &config)?;
    node.ask(&world, |client| workload::verify(ledger.clone(), client))?;
    Ok(Outcome {
        trace: world.trace_hash(),
        answered: ledger.borrow().answered,
        lives,
    })
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    for_seeds("acknowledged_writes_survive_power_cuts", 200, |seed| {
        power_cuts(seed, &[])
    });
}

/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 300;

/// Plants `bug` and says after how many seeds the same test finds it.
fn finds(bug: Bug) {
    let fails = |seed: &u64| {
        let ran = catch_unwind(AssertUnwindSafe(|| power_cuts(*seed, &[bug])));
        !matches!(ran, Ok(Ok(_)))
    };
    let found: Vec<u64> = (0..FINDING_SEEDS).filter(fails).take(3).collect();
    assert!(
        !found.is_empty(),
        "{bug:?} is planted, and {FINDING_SEEDS} seeds do not find it"
    );
    println!("{bug:?} is found by seeds {found:?}");
}

#[test]
fn a_log_that_never_syncs_is_found() {
    finds(Bug::NoSync);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    finds(Bug::AcknowledgeBeforeSync);
}

#[test]
fn a_replay_that_goes_on_behind_a_torn_tail_is_found() {
    finds(Bug::ReplayPastTornTail);
}

#[test]
fn a_manifest_that_names_an_unsynced_table_is_found() {
    finds(Bug::ManifestBeforeTable);
}

#[test]
fn a_directory_that_is_not_synced_is_found() {
    finds(Bug::NoDirectorySync);
}
