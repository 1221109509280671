//! A world with one node in it, whose lives begin and end; and the seeds that tests run.

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use quoit::cluster::ring::Map;
use quoit::config::{CompactionName, Config};
use quoit::rt::sim::{Options, Task, World};
use quoit::storage::check::{self, Told};

use crate::cluster::{Client, End, NODE, Node, Verdict, config};

/// Seeds whose run is repeated: one in so many.
const REPEAT_ONE_IN: u64 = 8;
/// Virtual time that clients work for at most before something must have come to pass.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Virtual time for clients to notice that their node is gone.
const LEAVE_MAX: Duration = Duration::from_secs(3600);

/// What a run was, to be compared and reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of all that happened.
    pub trace: u64,
    /// Requests, or transactions, that were carried out.
    pub done: u64,
    /// Those that were refused.
    pub refused: u64,
}

/// Runs `simulate` for each of the seeds, and reports.
pub fn for_seeds(test: &str, default: u64, simulate: impl Fn(u64) -> Verdict<Outcome>) -> Outcome {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUOIT_SEEDS").unwrap_or(default),
    };
    let _ = env_logger::builder().is_test(false).try_init();
    let began = Instant::now();
    let mut total = Outcome::default();
    for seed in seeds.clone() {
        let repeat = format!("repeat with: SEED={seed} cargo test --test sim {test}");
        let run = || match survive(|| simulate(seed)) {
            Ok(outcome) => outcome,
            Err(why) => panic!("seed {seed}: {why}\n{repeat}"),
        };
        let outcome = run();
        if seed % REPEAT_ONE_IN == 0 || seeds.end - seeds.start == 1 {
            assert_eq!(
                outcome,
                run(),
                "seed {seed} is not the same twice\n{repeat}"
            );
        }
        total.done += outcome.done;
        total.refused += outcome.refused;
    }
    println!(
        "{test}: {} seeds, {} done, {} refused, in {:.1} s",
        seeds.end - seeds.start,
        total.done,
        total.refused,
        began.elapsed().as_secs_f64()
    );
    total
}

/// Takes a panic for the failure that it is.
pub fn survive<T>(run: impl FnOnce() -> Verdict<T>) -> Verdict<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(verdict) => verdict,
        Err(said) => Err(match said.downcast_ref::<String>() {
            Some(text) => format!("panic: {text}"),
            None => "a panic".to_owned(),
        }),
    }
}

/// A world with one node in it.
pub struct Scene {
    /// The world.
    pub world: World,
    /// How the node is set up, in all of its lives.
    pub config: Config,
    /// Decides what the test leaves to chance.
    pub chance: fastrand::Rng,
    /// True if clients may send further requests before they have read what came back. They write
    /// all before they read, so that the network must hold it all.
    pub may_pipeline: bool,
}

impl Scene {
    /// A world as `options` say, for a node with so many cores.
    pub fn new(mut options: Options, cores: Range<u16>) -> Scene {
        let may_pipeline = options.net.window_bytes >= 64 << 10;
        if may_pipeline {
            options.net.window_bytes = 16 << 20;
        }
        let mut chance = fastrand::Rng::with_seed(options.seed ^ 0xC075);
        let config = config(chance.u16(cores), &mut chance);
        Scene {
            world: World::new(options),
            config,
            chance,
            may_pipeline,
        }
    }

    /// Starts the node; a client checks what is there.
    pub fn start<F: Future<Output = Verdict> + 'static>(
        &self,
        check: impl FnOnce(Client) -> F,
    ) -> Verdict<Node> {
        let node = Node::start(&self.world, &self.config)?;
        node.ask(&self.world, check)?;
        Ok(node)
    }

    /// Starts the node with some other number of cores. At times it goes down before it is ready,
    /// and is then started with yet another number.
    pub fn start_with_other_cores<F: Future<Output = Verdict> + 'static>(
        &mut self,
        check: impl FnOnce(Client) -> F,
    ) -> Verdict<Node> {
        loop {
            self.config.cores = self.chance.u16(1..=5);
            let memory = u64::from(self.config.cores) * [1, 2, 8][self.chance.usize(..3)];
            self.config.memory = ByteSize::mib(memory);
            if self.chance.u8(..5) < 2 {
                return self.start(check);
            }
            let most = [2_000, 30_000, 200_000, 2_000_000][self.chance.usize(..4)];
            let moment = Duration::from_micros(self.chance.u64(..most));
            let end = [End::PowerCut, End::PowerCut, End::Kill][self.chance.usize(..3)];
            Node::start_in_vain(&self.world, &self.config, moment, end)?;
        }
    }

    /// The node is down: see [`check_directory`].
    pub fn check_directory(&self) -> Verdict {
        check_directory(&self.world, self.config.cores)
    }

    /// Starts clients of this life.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &mut self,
        node: &Node,
        clients: usize,
        work: impl Fn(usize, Client, fastrand::Rng) -> F,
    ) -> Vec<Task<()>> {
        let spawn = |number| {
            let client = Client::new(&node.life);
            let work = work(number, client, self.chance.fork());
            self.world.spawn_client(work)
        };
        (0..clients).map(spawn).collect()
    }

    /// Lets clients work until there is enough.
    pub fn run_until(&self, node: &Node, mut enough: impl FnMut() -> bool) -> Verdict {
        let done = || enough() || node.life.is_wrong();
        let came = self.world.run_until(done, PATIENCE);
        node.life.verdict()?;
        match came {
            true => Ok(()),
            false => Err("what was waited for does not come".to_owned()),
        }
    }

    /// Ends a life, in most cases by a power cut.
    pub fn end(&mut self, node: Node, tasks: &[Task<()>]) -> Verdict {
        let end = match self.chance.u8(..10) {
            0 => End::Stop,
            1 | 2 => End::Kill,
            _ => End::PowerCut,
        };
        self.end_so(node, tasks, end)
    }

    /// Ends the life of a node that cannot stop well any more.
    pub fn end_badly(&mut self, node: Node, tasks: &[Task<()>]) -> Verdict {
        let end = match self.chance.bool() {
            true => End::Kill,
            false => End::PowerCut,
        };
        self.end_so(node, tasks, end)
    }

    /// Ends a life a little later, waits until the clients have left, and changes the clock.
    fn end_so(&mut self, node: Node, tasks: &[Task<()>], end: End) -> Verdict {
        let world = &self.world;
        world.run_for(Duration::from_micros(self.chance.u64(..3_000)));
        let life = node.life.clone();
        node.end(world, end)?;
        if !world.run_until(|| tasks.iter().all(Task::is_done), LEAVE_MAX) {
            return Err("clients stay though their node is gone".to_owned());
        }
        if self.chance.u8(..4) == 0 {
            world.jump_clock(NODE, self.chance.i64(-600_000..600_000));
        }
        if self.chance.u8(..4) == 0 {
            // The next life merges in another style what this one leaves.
            self.config.storage.compaction = match self.config.storage.compaction {
                CompactionName::Leveled => CompactionName::SizeTiered,
                CompactionName::SizeTiered => CompactionName::Leveled,
            };
        }
        life.verdict()
    }
}

/// The node of so many cores is down: its directory is sound, and has nothing of another number.
pub fn check_directory(world: &World, cores: u16) -> Verdict {
    let directories = world.disk(NODE).directories();
    let is_folder = |path: &&PathBuf| path.parent() == Some(Path::new("/data"));
    let folders: Vec<&PathBuf> = directories.iter().filter(is_folder).collect();
    if folders.len() != usize::from(cores) {
        return Err(format!("{cores} cores have the folders {folders:?}"));
    }
    world.run_on(NODE, async {
        let mut damaged = Vec::new();
        let ring = |cores: u16| -> check::Owner {
            let map = Map::one_node(cores);
            Box::new(move |position| map.core_of(position))
        };
        let mut tell = |told| match told {
            Told::Damage(place) | Told::Unchecked(place) => damaged.push(place),
            Told::Note(_) | Told::Progress { .. } => {}
        };
        let checked = check::check(Path::new("/data"), &ring, &mut tell).await;
        match (checked, damaged.is_empty()) {
            (Ok(_), true) => Ok(()),
            (checked, _) => Err(format!("it is not sound: {checked:?}, {damaged:?}")),
        }
    })
}
