//! The whole node under power cuts, full and failing disks, and many clients, in a simulated world.
//!
//! Each test is a function of a seed. `SEED=n` runs that one, `QUOIT_SEEDS=n` that many; a failure
//! prints the line that repeats it. Some seeds are run twice and must do exactly the same.

#[path = "sim/checkers.rs"]
mod checkers;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/transactions.rs"]
mod transactions;
#[path = "sim/workload.rs"]
mod workload;

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cluster::{Client, End, NODE, Node, Verdict, config};
use quoit::config::Config;
use quoit::rt::Bug;
use quoit::rt::sim::{Options, Task, World};
use transactions::Book;
use workload::Ledger;

/// Seeds whose run is repeated: one in so many.
const REPEAT_ONE_IN: u64 = 8;
/// Virtual time that a life lasts at most.
const LIFE_MAX: Duration = Duration::from_secs(600);
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

/// A world with one node in it.
struct Scene {
    world: World,
    config: Config,
    chance: fastrand::Rng,
}

impl Scene {
    fn new(options: Options, cores: Range<u16>) -> Scene {
        let mut chance = fastrand::Rng::with_seed(options.seed ^ 0xC075);
        let config = config(chance.u16(cores), &mut chance);
        Scene {
            world: World::new(options),
            config,
            chance,
        }
    }

    fn start(&self) -> Verdict<Node> {
        Node::start(&self.world, &self.config)
    }

    /// Starts a client of this life.
    fn spawn<F: Future<Output = ()> + 'static>(
        &mut self,
        node: &Node,
        work: impl FnOnce(Client, fastrand::Rng) -> F,
    ) -> Task<()> {
        let client = Client::new(&node.life);
        self.world.spawn_client(work(client, self.chance.fork()))
    }

    /// Lets clients work until there is enough, ends the node, and waits until they have left.
    fn end(&mut self, node: Node, tasks: &[Task<()>], mut enough: impl FnMut() -> bool) -> Verdict {
        let world = &self.world;
        world.run_until(|| enough() || node.life.is_wrong(), LIFE_MAX);
        world.run_for(Duration::from_micros(self.chance.u64(..3_000)));
        let end = match self.chance.u8(..10) {
            0 => End::Stop,
            1 | 2 => End::Kill,
            _ => End::PowerCut,
        };
        let life = node.life.clone();
        node.end(world, end)?;
        if !world.run_until(|| tasks.iter().all(Task::is_done), LEAVE_MAX) {
            return Err("clients stay though their node is gone".to_owned());
        }
        if self.chance.u8(..4) == 0 {
            world.jump_clock(NODE, self.chance.i64(-600_000..600_000));
        }
        life.verdict()
    }
}

/// Several lives of a node, most of them ended by a power cut.
fn power_cuts(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 1..4);
    let clients = scene.chance.usize(2..6);
    let ledger = Ledger::new(clients);
    let lives = scene.chance.u64(3..7);
    for _ in 0..lives {
        let node = scene.start()?;
        node.ask(&scene.world, |client| {
            workload::verify(ledger.clone(), client)
        })?;
        let work = |number| {
            let ledger = ledger.clone();
            scene.spawn(&node, move |client, chance| {
                workload::work(ledger, client, number, chance)
            })
        };
        let tasks: Vec<_> = (0..clients).map(work).collect();
        let target = ledger.borrow().answered + scene.chance.u64(..150);
        scene.end(node, &tasks, || ledger.borrow().answered >= target)?;
    }
    let node = scene.start()?;
    node.ask(&scene.world, |client| {
        workload::verify(ledger.clone(), client)
    })?;
    let answered = ledger.borrow().answered;
    Ok(Outcome {
        trace: scene.world.trace_hash(),
        answered,
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

/// Clients with transactions on a node that stays up: all of them come to their end.
fn transactions_in_peace(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 2..5);
    let book = transactions::Shared::default();
    let node = scene.start()?;
    node.ask(&scene.world, transactions::open_accounts)?;
    let turns = scene.chance.u64(5..40);
    let work = |_| {
        let book = book.clone();
        scene.spawn(&node, move |client, chance| {
            transactions::work(book, client, turns, chance)
        })
    };
    let tasks: Vec<_> = (0..6).map(work).collect();
    if !scene
        .world
        .run_until(|| tasks.iter().all(Task::is_done), LEAVE_MAX)
    {
        return Err("transactions wait for each other for ever".to_owned());
    }
    node.life.verdict()?;
    node.ask(&scene.world, |client| {
        transactions::verify(book.clone(), client)
    })?;
    scene.end(node, &[], || true)?;
    let node = scene.start()?;
    node.ask(&scene.world, |client| {
        transactions::verify(book.clone(), client)
    })?;
    Ok(scene.outcome(&book, 1))
}

/// Clients with transactions on a node that goes down again and again.
fn transactions_and_power_cuts(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 2..5);
    let book = transactions::Shared::default();
    let lives = scene.chance.u64(2..6);
    for life in 0..lives {
        let node = scene.start()?;
        if life == 0 {
            node.ask(&scene.world, transactions::open_accounts)?;
        }
        node.ask(&scene.world, |client| {
            transactions::verify(book.clone(), client)
        })?;
        let work = |_| {
            let book = book.clone();
            scene.spawn(&node, move |client, chance| {
                transactions::work(book, client, u64::MAX, chance)
            })
        };
        let tasks: Vec<_> = (0..5).map(work).collect();
        let target = book.borrow().done + scene.chance.u64(..80);
        scene.end(node, &tasks, || book.borrow().done >= target)?;
    }
    let node = scene.start()?;
    node.ask(&scene.world, |client| {
        transactions::verify(book.clone(), client)
    })?;
    Ok(scene.outcome(&book, lives))
}

impl Scene {
    fn outcome(&self, book: &transactions::Shared, lives: u64) -> Outcome {
        let book: &Book = &book.borrow();
        Outcome {
            trace: self.world.trace_hash(),
            answered: book.done,
            lives,
        }
    }
}

#[test]
fn transactions_have_an_order_and_an_end() {
    for_seeds(
        "transactions_have_an_order_and_an_end",
        200,
        transactions_in_peace,
    );
}

#[test]
fn transactions_survive_power_cuts_whole_or_not_at_all() {
    for_seeds(
        "transactions_survive_power_cuts_whole_or_not_at_all",
        200,
        transactions_and_power_cuts,
    );
}
