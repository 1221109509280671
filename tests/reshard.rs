//! A directory that is started with another number of cores: every moment of that at which the
//! power may be cut, disks that are full or fail, and what is written for it.
//!
//! The directory is made by a whole node in the simulated world and holds a bit of everything.
//! Whatever happens on the way, a start afterwards, with the old number, the new one or a third,
//! must find all of it and nothing else, and leave no folder behind. (`sim` does the same with
//! clients at work.)
//!
//! `QUOIT_LONG=1` tries many more states.

#[path = "flips/author.rs"]
mod author;
#[path = "sim/cluster.rs"]
mod cluster;
mod common;
/// What the author needs of a layout.
mod layout {
    /// A key.
    pub type Key = Vec<u8>;
}
#[allow(dead_code, reason = "the simulator's tests use more of it")]
#[path = "sim/scene.rs"]
mod scene;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use author::{Author, State, must, write_all};
use bytesize::ByteSize;
use cluster::{Client, End, NODE, Node, Reply, Verdict, request};
use quoit::config::{Compression, Config};
use quoit::rt::Bug;
use quoit::rt::sim::{CrashPoint, Decisions, Options, World};
use xxhash_rust::xxh3::Xxh3;

/// A value that goes to the value log.
const LARGE_BYTES: usize = 700;

/// Keys of the real program's data: so many that a re-sharding takes a while.
const STORED: usize = 120_000;
/// An orderly end in the middle of a re-sharding takes no longer.
const END_MAX: Duration = Duration::from_secs(5);

type Files = Vec<(PathBuf, Vec<u8>)>;

/// A data directory, and what is in it.
struct Fixture {
    config: Config,
    files: Files,
    truth: State,
}

fn config(cores: u16) -> Config {
    let mut config = cluster::config(cores, &mut fastrand::Rng::with_seed(7));
    config.memory = ByteSize::mib(40);
    config.storage.memtable = ByteSize::kib(64);
    config.storage.wal_segment = ByteSize::kib(64);
    config.storage.wal_max = ByteSize::kib(192);
    config.value_log.threshold = ByteSize(LARGE_BYTES as u64);
    config.value_log.segment = ByteSize::kib(64);
    config.value_log.replay_max = ByteSize::kib(256);
    config.value_log.garbage_max_percent = 30;
    config.storage.index_share_percent = [40, 0][usize::from(cores) % 2];
    config.storage.compression = Compression::Lz4;
    config.value_log.compression = Compression::Lz4;
    config
}

fn with_cores(config: &Config, cores: u16) -> Config {
    Config {
        cores,
        ..config.clone()
    }
}

/// A directory of so many cores, of which the process was killed.
fn fixture(cores: u16, seed: u64) -> Fixture {
    fixture_with(cores, seed, 0)
}

/// The same with so many small values more.
fn fixture_with(cores: u16, seed: u64, bulk: usize) -> Fixture {
    let world = World::new(Options::calm(seed));
    let mut config = config(cores);
    if bulk > 0 {
        config.storage.compression = Compression::None; // it is to take room
    }
    let node = Node::start(&world, &config).expect("an empty disk");
    let author = Author {
        chance: fastrand::Rng::with_seed(seed),
        truth: State::new(),
        history: BTreeMap::new(),
    };
    let mut second = Client::new(&node.life);
    let write = |client| async move {
        let mut author = write_all(client, author, 12, Duration::ZERO).await?;
        for number in 0..bulk {
            let key = format!("bulk:{number}").into_bytes();
            let value = vec![number as u8; LARGE_BYTES - 100];
            must(&mut second, &[request([&b"SET"[..], &key, &value])]).await?;
            author.truth.insert(key, Some(value));
        }
        // What several cores have prepared is in their logs only.
        for _ in 0..15 {
            must(&mut second, &[author.any()]).await?;
        }
        Ok(author)
    };
    let mut author = node.ask(&world, write).expect("a sound node");
    node.end(&world, End::Kill).expect("a sound node");
    for number in 0..20 {
        author
            .truth
            .insert(format!("never:{number}").into_bytes(), None);
    }
    Fixture {
        config,
        files: files_of(&world),
        truth: author.truth,
    }
}

fn files_of(world: &World) -> Files {
    let disk = world.disk(NODE);
    let read = |path: PathBuf| {
        let bytes = disk.read(&path).expect("it is listed");
        (path, bytes)
    };
    disk.files().into_iter().map(read).collect()
}

fn world_with(files: &Files, planted: &[Bug]) -> World {
    let world = World::new(Options {
        planted: planted.to_vec(),
        ..Options::calm(5)
    });
    let disk = world.disk(NODE);
    files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
    world
}

/// Fails unless the node has what `truth` says, and nothing else.
async fn verify(mut client: Client, truth: State) -> Verdict {
    let keys: Vec<_> = truth.keys().collect();
    for some in keys.chunks(50) {
        let requests: Vec<_> = some.iter().map(|key| request([&b"GET"[..], key])).collect();
        for (key, reply) in some.iter().zip(client.must(&requests).await?) {
            let name = String::from_utf8_lossy(key);
            let (found, wanted) = (reply.value()?, &truth[*key]);
            if found != *wanted {
                let length = |value: &Option<Vec<u8>>| value.as_ref().map(Vec::len);
                let (found, wanted) = (length(&found), length(wanted));
                return Err(format!("{name} has {found:?} bytes and not {wanted:?}"));
            }
        }
    }
    let replies = client.must(&[request(["DBSIZE"])]).await?;
    let wanted = truth.values().filter(|value| value.is_some()).count();
    match &replies[0] {
        Reply::Integer(count) if *count == wanted as i64 => Ok(()),
        other => Err(format!("{other:?} keys, and not {wanted}")),
    }
}

impl Fixture {
    /// Starts a node with so many cores on what is in `world`: it must have all and leave nothing.
    fn must_serve(&self, world: &World, cores: u16) -> Verdict {
        let served = self.serve(world, cores, End::Kill);
        served.map_err(|why| format!("with {cores} cores: {why}"))
    }

    fn serve(&self, world: &World, cores: u16, end: End) -> Verdict {
        let config = with_cores(&self.config, cores);
        let node = Node::start(world, &config)?;
        let truth = self.truth.clone();
        node.ask(world, |client| verify(client, truth))?;
        node.end(world, end)?;
        scene::check_directory(world, cores)
    }
}

/// The states that a cut at `point` may leave: all, or `most` of them.
fn states_of(point: &CrashPoint, most: usize, seed: u64, mut each: impl FnMut(Files)) {
    let mut decisions = Decisions::all();
    each(point.image(&mut decisions));
    if decisions.count() <= most as f64 {
        while decisions.advance() {
            each(point.image(&mut decisions));
        }
        return;
    }
    each(point.image(&mut Decisions::all_lost()));
    let mut decisions = Decisions::random(seed);
    for _ in 2..most {
        each(point.image(&mut decisions));
        decisions.advance();
    }
}

fn hash(files: &Files) -> u64 {
    let mut hash = Xxh3::new();
    for (path, bytes) in files {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.digest()
}

/// How much is tried.
#[derive(Clone, Copy)]
struct Budget {
    /// States of one moment.
    states: usize,
    /// One start in so many is cut, too.
    again_one_in: u64,
    /// States of one moment of such a start.
    states_again: usize,
}

#[derive(Debug, Default)]
struct Tried {
    moments: u64,
    states: u64,
    states_again: u64,
}

struct Hunt<'a> {
    fixture: &'a Fixture,
    planted: &'a [Bug],
    /// The numbers of cores that are tried after a cut.
    counts: [u16; 3],
    budget: Budget,
    seen: HashSet<u64>,
    tried: Tried,
}

impl Hunt<'_> {
    /// The moments of a start with so many cores, up to the one when it serves.
    fn moments(&self, files: &Files, cores: u16) -> Verdict<Vec<CrashPoint>> {
        let world = world_with(files, self.planted);
        let disk = world.disk(NODE);
        let points = Rc::new(RefCell::new(Vec::new()));
        let is_over = Rc::new(Cell::new(false));
        let (seen, over) = (Rc::clone(&points), Rc::clone(&is_over));
        disk.watch(move |point| {
            if !over.get() {
                seen.borrow_mut().push(point);
            }
        });
        let node = Node::start(&world, &with_cores(&self.fixture.config, cores))?;
        is_over.set(true);
        points.borrow_mut().push(disk.crash_point());
        node.end(&world, End::Kill)?;
        Ok(points.take())
    }

    fn run(&mut self, cores: u16) -> Verdict {
        let moments = self.moments(&self.fixture.files, cores)?;
        for (number, moment) in moments.iter().enumerate() {
            self.tried.moments += 1;
            let mut failure = None;
            states_of(moment, self.budget.states, number as u64, |files| {
                if failure.is_none()
                    && let Err(why) = self.try_state(&files)
                {
                    let pending = moment.pending();
                    failure = Some(format!(
                        "before sync {number} ({pending} changes not durable): {why}"
                    ));
                }
            });
            failure.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    fn try_state(&mut self, files: &Files) -> Verdict {
        let hash = hash(files);
        if !self.seen.insert(hash) {
            return Ok(());
        }
        self.tried.states += 1;
        let cores = self.counts[self.tried.states as usize % 3];
        let world = world_with(files, self.planted);
        self.fixture.must_serve(&world, cores)?;
        if !self.tried.states.is_multiple_of(self.budget.again_one_in) {
            return Ok(());
        }
        for (number, moment) in self.moments(files, cores)?.iter().enumerate() {
            let mut failure = None;
            states_of(moment, self.budget.states_again, hash, |files| {
                self.tried.states_again += 1;
                let cores = self.counts[self.tried.states_again as usize % 3];
                let world = world_with(&files, self.planted);
                if let Err(why) = self.fixture.must_serve(&world, cores) {
                    failure.get_or_insert(why);
                }
            });
            if let Some(why) = failure {
                return Err(format!(
                    "then before sync {number} of the next start: {why}"
                ));
            }
        }
        Ok(())
    }
}

fn hunt(from: u16, to: u16, budget: Budget, planted: &[Bug]) -> (Tried, Verdict) {
    let fixture = fixture(from, u64::from(from));
    let mut hunt = Hunt {
        fixture: &fixture,
        planted,
        counts: [from, to, from.max(to) + 1],
        budget,
        seen: HashSet::new(),
        tried: Tried::default(),
    };
    let hunted = catch_unwind(AssertUnwindSafe(|| hunt.run(to)));
    let verdict = hunted.unwrap_or_else(|said| {
        let text = said.downcast_ref::<String>().map_or("a panic", |text| text);
        Err(format!("panic: {text}"))
    });
    (hunt.tried, verdict)
}

fn budget() -> Budget {
    match std::env::var_os("QUOIT_LONG") {
        Some(_) => Budget {
            states: 60,
            again_one_in: 25,
            states_again: 4,
        },
        None => Budget {
            states: 10,
            again_one_in: 40,
            states_again: 2,
        },
    }
}

/// A directory that neither number opens is lost.
#[test]
fn whatever_a_power_cut_leaves_every_number_of_cores_opens_it_and_finds_all() {
    for (from, to) in [(2, 1), (1, 3), (3, 2)] {
        let (tried, verdict) = hunt(from, to, budget(), &[]);
        println!("from {from} to {to} cores: {tried:?}");
        if let Err(why) = verdict {
            panic!("from {from} to {to} cores: {why}");
        }
        assert!(
            tried.moments > 20 && tried.states > 50,
            "hardly anything was tried"
        );
    }
}

/// A test that sees no planted bug would see no other either.
#[test]
fn planted_bugs_leave_states_that_are_seen_to_be_wrong() {
    for bug in [Bug::SwitchTooEarly, Bug::OldFoldersFirst] {
        let (tried, verdict) = hunt(2, 3, budget(), &[bug]);
        let why = verdict.expect_err(&format!("{bug:?} is not seen"));
        println!(
            "{bug:?}: after {} states: {why}",
            tried.states + tried.states_again
        );
    }
}

/// Else a re-sharding of a terabyte would write a terabyte, and need the room for it.
#[test]
fn large_values_are_linked_and_not_copied() {
    const COUNT: u64 = 60;
    const BYTES: usize = 50_000;
    let world = World::new(Options::calm(3));
    let mut config = config(2);
    config.value_log.garbage_max_percent = 90; // nothing is collected meanwhile
    config.value_log.compression = Compression::None; // the values are to take room
    let mut truth = State::new();
    for number in 0..COUNT {
        let value = vec![number as u8; BYTES];
        truth.insert(format!("large:{number}").into_bytes(), Some(value));
    }
    let node = Node::start(&world, &config).expect("an empty disk");
    let written = truth.clone();
    let write = |mut client: Client| async move {
        for (key, value) in &written {
            let value = value.as_ref().expect("each has one");
            must(&mut client, &[request([&b"SET"[..], key, value])]).await?;
        }
        Ok(())
    };
    node.ask(&world, write).expect("a sound node");
    node.end(&world, End::Stop).expect("a sound node");
    let disk = world.disk(NODE);
    for cores in [3, 1, 4, 2] {
        let (before, used) = (disk.written_bytes(), disk.used_bytes());
        let node = Node::start(&world, &with_cores(&config, cores)).expect("a sound disk");
        let written = disk.written_bytes() - before;
        println!("to {cores} cores: {written} bytes were written, {used} are used");
        assert!(
            written < COUNT * BYTES as u64 / 3,
            "{written} bytes were written for {cores} cores"
        );
        let truth = truth.clone();
        let verified = node.ask(&world, |client| verify(client, truth));
        assert_eq!(verified, Ok(()), "{cores} cores");
        node.end(&world, End::Stop).expect("a sound node");
        assert_eq!(scene::check_directory(&world, cores), Ok(()));
    }
}

/// An operator who runs out of disk in the middle must be able to go back.
#[test]
fn a_full_disk_stops_a_re_sharding_and_the_old_number_still_opens() {
    let fixture = fixture_with(2, 2, 2_500);
    let (mut refused, mut done) = (0, 0);
    for room in (0..40).map(|step| step * step * 1_500) {
        let world = world_with(&fixture.files, &[]);
        let disk = world.disk(NODE);
        disk.leave_free(room);
        match Node::start(&world, &with_cores(&fixture.config, 3)) {
            Ok(node) => {
                done += 1;
                disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
                node.end(&world, End::Kill).expect("nothing is asked of it");
            }
            Err(why) => {
                refused += 1;
                let is_clear = why.contains("opens with --cores 2");
                assert!(is_clear && why.contains("space"), "room for {room}: {why}");
                let served = fixture.serve(&world, 2, End::Kill);
                assert_eq!(served, Ok(()), "with a disk that is full, room for {room}");
                disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
            }
        }
        assert_eq!(fixture.must_serve(&world, 3), Ok(()), "room for {room}");
    }
    println!("{refused} times there was no room, {done} times there was");
    assert!(refused > 3 && done > 3, "{refused} and {done}");
}

/// A disk that fails for a while must cost a start, and no data.
#[test]
fn a_disk_that_fails_stops_a_re_sharding_and_nothing_is_lost() {
    let fixture = fixture(3, 3);
    let (mut refused, mut done) = (0, 0);
    for seed in 0..40 {
        let world = World::new(Options::calm(seed));
        let disk = world.disk(NODE);
        let files = &fixture.files;
        files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        let often = [0.002, 0.01, 0.05][seed as usize % 3];
        disk.change_faults(|faults| match seed % 2 {
            0 => faults.eio_sync = often * 4.0,
            _ => faults.eio_write = often,
        });
        match Node::start(&world, &with_cores(&fixture.config, 2)) {
            Ok(node) => {
                done += 1;
                disk.change_faults(|faults| (faults.eio_sync, faults.eio_write) = (0.0, 0.0));
                node.end(&world, End::PowerCut)
                    .expect("nothing is asked of it");
            }
            Err(_) => {
                refused += 1;
                disk.change_faults(|faults| (faults.eio_sync, faults.eio_write) = (0.0, 0.0));
                // The machine may go down, too, before the next start.
                if seed % 4 < 2 && world.node_ended(NODE) {
                    let moment = Duration::from_micros(seed * 700);
                    let config = with_cores(&fixture.config, 3);
                    let ended = Node::start_in_vain(&world, &config, moment, End::PowerCut);
                    assert_eq!(ended, Ok(()), "seed {seed}");
                }
            }
        }
        let cores = [3, 2, 5][seed as usize % 3];
        assert_eq!(fixture.must_serve(&world, cores), Ok(()), "seed {seed}");
    }
    println!("{refused} times it failed, {done} times it did not");
    assert!(refused > 3 && done > 3, "{refused} and {done}");
}

/// Asks for all keys, or stores them, a few hundred at a time.
fn each_stored(node: &common::Node, ask: impl Fn(usize) -> (Vec<u8>, common::Value)) {
    let mut client = node.client();
    for first in (0..STORED).step_by(500) {
        let asked: Vec<_> = (first..STORED.min(first + 500)).map(&ask).collect();
        let requests: Vec<u8> = asked.iter().flat_map(|one| one.0.clone()).collect();
        client.send(&requests);
        for (number, (_, expected)) in asked.iter().enumerate() {
            assert_eq!(client.read(), *expected, "key {}", first + number);
        }
    }
}

fn stored(number: usize) -> [String; 2] {
    [format!("stored:{number}"), format!("{number:0400}")]
}

/// Else a node that is asked to stop while it lays out its data anew would be killed in the end, or
/// would leave something half done that a start takes for the whole.
#[test]
fn a_node_that_is_asked_to_stop_while_it_reshards_ends_well_and_loses_nothing() {
    let dir = common::scratch();
    let launch = |cores: u16| {
        let launch = common::Launch::new(dir.path()).with("--cores", cores);
        let launch = launch.with("--durability", "periodic");
        launch.with("--memory", "64MiB")
    };
    let set = |number| {
        let [key, value] = stored(number);
        let bytes = common::request(&[&b"SET"[..], key.as_bytes(), value.as_bytes()]);
        (bytes, common::Value::ok())
    };
    let get = |number| {
        let [key, value] = stored(number);
        let bytes = common::request(&[&b"GET"[..], key.as_bytes()]);
        (bytes, common::Value::bulk(&value))
    };
    let node = launch(2).start();
    each_stored(&node, set);
    assert_eq!(node.stop("TERM"), Some(0));
    let (mut cut_short, mut laid_out) = (0, 2);
    for (millis, next) in [(0, 2), (100, 3), (250, 2), (20, 3)] {
        let cores = if laid_out == 2 { 3 } else { 2 };
        let said = format!("re-sharding it for {cores}");
        let delay = Duration::from_millis(millis);
        let (code, took, said) = launch(cores).interrupt(&said, delay);
        assert_eq!(code, Some(0), "{said}");
        assert!(took < END_MAX, "it took {took:?}: {said}");
        println!("after {millis} ms: ended within {took:.1?}");
        cut_short += usize::from(said.contains("stopped before the data was laid out"));
        laid_out = next;
        let node = launch(next).start();
        each_stored(&node, get);
        assert_eq!(node.stop("TERM"), Some(0));
    }
    assert!(cut_short > 0, "each was too fast to be cut short");
}
