//! Every state that a power cut may leave of a short piece of work of one store: the store opens on
//! each and holds what it must. And again for a power cut while it opens on such a state.
//!
//! The work writes small and large values, clears, flushes, merges, recycles and collects. Before
//! each sync of a file or directory the simulated disk shows what is not durable yet: the states
//! that a cut may leave then include all since the sync before. They are enumerated where they are
//! few (each change lost, kept, or torn at each sector), and drawn by seed where they are many;
//! equal ones are tried once.
//!
//! What must be there: the state after some step, not before the last one that was acknowledged.
//! After a recovery that has shown a state: that state, and what was acknowledged since.
//!
//! `QUOIT_LONG=1` tries many more.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use quoit::config::{Compression, Durability};
use quoit::rt::sim::{CrashPoint, Decisions, NodeId, Options, World};
use quoit::rt::{self, Bug};
use quoit::storage::compaction::{Shape, Style};
use quoit::storage::record::{KeyRef, Meta, Record};
use quoit::storage::wal::WalLimits;
use quoit::storage::{Batch, Store, StoreOptions, Want};
use quoit::types::{CoreId, Lsn, Position, Version};
use xxhash_rust::xxh3::Xxh3;

const NODE: NodeId = NodeId(1);
const STEPS: usize = 45;
/// Larger values go to the value log.
const VALUE_BYTES_MIN: usize = 400;
/// Above all versions of the work: a write after recovery.
const AGAIN_CLOCK: u64 = 1_000_000;
const AGAIN: &[u8] = b"again";

type State = BTreeMap<Vec<u8>, Vec<u8>>;
type Files = Vec<(PathBuf, Vec<u8>)>;

/// How much is tried.
#[derive(Clone, Copy)]
struct Budget {
    workloads: u64,
    /// States of one moment.
    states: usize,
    /// One recovery in so many is cut, too.
    again_one_in: usize,
    /// States of one moment of such a recovery.
    states_again: usize,
}

/// One step of the work: what it clears and writes.
#[derive(Clone)]
struct Step {
    lsn: Lsn,
    clears: bool,
    /// `None`: deleted.
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A moment before a sync.
struct Moment {
    point: CrashPoint,
    /// So many steps are acknowledged.
    acknowledged: usize,
}

#[derive(Default)]
struct Model {
    steps: RefCell<Vec<Step>>,
    acknowledged: Cell<usize>,
    clock: Cell<u64>,
    flushes: Cell<u64>,
    compactions: Cell<u64>,
    collections: Cell<u64>,
}

impl Model {
    fn version(&self) -> Version {
        self.clock.set(self.clock.get() + 1);
        Version {
            clock: self.clock.get(),
            coordinator: 1,
        }
    }

    fn note(&self, lsn: Lsn) {
        let steps = self.steps.borrow();
        let count = steps.iter().take_while(|step| step.lsn <= lsn).count();
        self.acknowledged.set(count.max(self.acknowledged.get()));
    }

    /// The states after each number of steps.
    fn states(&self) -> Vec<State> {
        let mut state = State::new();
        let mut states = vec![state.clone()];
        for step in self.steps.borrow().iter() {
            if step.clears {
                state.clear();
            }
            for (key, value) in &step.writes {
                match value {
                    Some(value) => state.insert(key.clone(), value.clone()),
                    None => state.remove(key),
                };
            }
            states.push(state.clone());
        }
        states
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        core: CoreId(0),
        cores: 1,
        durability: Durability::Sync,
        memtable_bytes: 2_500,
        wal_bytes_max: 32 << 10,
        wal: WalLimits {
            segment_bytes: 16 << 10,
            batch_bytes_max: 8 << 10,
        },
        memory_bytes: 1 << 20,
        index_bytes_max: 1 << 19,
        compaction: Shape {
            style: Style::Leveled,
            table_bytes: 8_000,
            base_bytes: 10_000,
            ratio: 3,
        },
        compression: Compression::Lz4,
        value_bytes_min: VALUE_BYTES_MIN,
        value_compression: Compression::Lz4,
        value_segment_bytes: 16 << 10,
        value_replay_bytes_max: 32 << 10,
        value_garbage_percent_max: 15,
    }
}

fn world(seed: u64, planted: &[Bug]) -> World {
    World::new(Options {
        planted: planted.to_vec(),
        ..Options::calm(seed)
    })
}

async fn open() -> Result<Rc<Store>, String> {
    // The partitions of its tables are in memory, or on disk.
    let index_bytes_max = [0, 1 << 19][rt::random() as usize % 2];
    let options = StoreOptions {
        index_bytes_max,
        ..options()
    };
    let opened = Store::open(Path::new("/data/core-000"), options).await;
    opened
        .map(|opened| opened.store)
        .map_err(|error| format!("it does not open: {error}"))
}

/// All that is there, by a walk; and by lookups the same.
async fn read(store: &Store) -> Result<State, String> {
    let mut records = Vec::new();
    let snapshot = store.snapshot();
    let walked = snapshot.walk(Position(0), Position(u32::MAX), |item| {
        if item.record.view().is_live(0) {
            records.push(item.record.clone());
        }
        ControlFlow::Continue(())
    });
    let walked = walked.await;
    walked.map_err(|error| format!("a walk fails: {error}"))?;
    let mut found = State::new();
    for record in records {
        let key = record.key().to_vec();
        let whole = store.resolve(&snapshot, &record).await;
        let whole = whole.map_err(|error| format!("a value is not there: {error}"))?;
        let whole = whole.ok_or("a walk shows what is not there")?;
        let got = store.get(&KeyRef::of(&key), Want::Value).await;
        let got = got.map_err(|error| format!("a lookup fails: {error}"))?;
        // What a record says of older ones is no part of what it is.
        let is_same = |got: Record| got.counted(false).bytes() == whole.counted(false).bytes();
        if !got.is_some_and(|got| is_same(got.record)) {
            return Err("a lookup does not find what a walk shows".to_owned());
        }
        found.insert(key, whole.view().value().to_vec());
    }
    Ok(found)
}

fn record(version: Version, key: &[u8], value: Option<&[u8]>) -> (Position, Record) {
    let meta = Meta {
        version,
        expiry: 0,
        tombstone: value.is_none(),
    };
    (
        KeyRef::of(key).position,
        Record::new(meta, key, value.unwrap_or_default()),
    )
}

/// Writes `batch` and sees to it that its acknowledgement is noted.
async fn write(store: &Rc<Store>, batch: Batch) -> Result<Lsn, String> {
    let admitted = store.wait_admitted(&batch).await;
    admitted.map_err(|error| format!("a write is refused: {error}"))?;
    Ok(store.write_batch(batch))
}

/// The work of one seed.
async fn work(model: Rc<Model>, seed: u64) -> Result<(), String> {
    let store = open().await?;
    let mut chance = fastrand::Rng::with_seed(seed);
    for _ in 0..STEPS {
        let clears = chance.u8(..25) == 0;
        let mut batch = Batch {
            clear: clears.then(|| model.version()),
            records: Vec::new(),
        };
        let mut writes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for _ in 0..chance.usize(1..4) {
            let length = match chance.u8(..10) {
                0 => chance.usize(4_000..6_000),
                _ => chance.usize(20..500),
            };
            // Half of them can be compressed, more or less.
            let mut value = vec![chance.u8(..); length];
            let noise = match chance.bool() {
                true => length,
                false => chance.usize(..=length),
            };
            value[..noise].fill_with(|| chance.u8(..));
            let value = (chance.u8(..5) > 0).then_some(value);
            writes.insert(format!("key {}", chance.u8(..9)).into_bytes(), value);
        }
        for (key, value) in &writes {
            batch
                .records
                .push(record(model.version(), key, value.as_deref()));
        }
        let lsn = write(&store, batch).await?;
        let writes = writes.into_iter().collect();
        model.steps.borrow_mut().push(Step {
            lsn,
            clears,
            writes,
        });
        let (waiting, noting) = (Rc::clone(&store), Rc::clone(&model));
        let acknowledged = rt::spawn(async move {
            if waiting.wait_acknowledged(lsn).await.is_ok() {
                noting.note(lsn);
            }
        });
        match chance.u8(..3) {
            0 => acknowledged.await,
            1 => rt::sleep(Duration::from_micros(chance.u64(..3_000))).await,
            _ => {}
        }
    }
    rt::sleep(Duration::from_secs(2)).await;
    let stats = store.stats();
    model.flushes.set(stats.flushes);
    model.compactions.set(stats.compactions);
    model.collections.set(stats.collections);
    Ok(())
}

/// Does the work and gives all moments of it.
fn moments_of(seed: u64, planted: &[Bug]) -> Result<(Rc<Model>, Vec<Moment>), String> {
    let world = world(seed, planted);
    let model = Rc::new(Model::default());
    let moments = Rc::new(RefCell::new(Vec::new()));
    let (seen, noted) = (Rc::clone(&moments), Rc::clone(&model));
    world.disk(NODE).watch(move |point| {
        seen.borrow_mut().push(Moment {
            point,
            acknowledged: noted.acknowledged.get(),
        });
    });
    let (working, disk) = (Rc::clone(&model), world.disk(NODE));
    let last = Rc::clone(&moments);
    world.run_on(NODE, async move {
        work(Rc::clone(&working), seed).await?;
        last.borrow_mut().push(Moment {
            point: disk.crash_point(),
            acknowledged: working.acknowledged.get(),
        });
        Ok::<(), String>(())
    })?;
    Ok((model, moments.take()))
}

/// The states that a cut at `point` may leave: all, or `most` of them.
fn states_of(point: &CrashPoint, most: usize, seed: u64, mut each: impl FnMut(Files, bool)) {
    let mut decisions = Decisions::all();
    let kept = point.image(&mut decisions);
    let is_all = decisions.count() <= most as f64;
    each(kept, is_all);
    if is_all {
        while decisions.advance() {
            each(point.image(&mut decisions), true);
        }
        return;
    }
    each(point.image(&mut Decisions::all_lost()), false);
    let mut decisions = Decisions::random(seed);
    for _ in 2..most {
        each(point.image(&mut decisions), false);
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

/// A moment of a recovery, and of a write after it.
struct MomentAgain {
    point: CrashPoint,
    shown: bool,
    again: Again,
}

/// How far the write after a recovery is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    Begun,
    Acknowledged,
}

/// Opens a store on `files`: what it shows. Then writes, and gives the moments of all that.
fn recover(
    files: &Files,
    planted: &[Bug],
    watches: bool,
) -> Result<(State, Vec<MomentAgain>), String> {
    let world = world(11, planted);
    let disk = world.disk(NODE);
    files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
    let moments = Rc::new(RefCell::new(Vec::new()));
    let stage = Rc::new(Cell::new((false, Again::No)));
    if watches {
        let (seen, stage) = (Rc::clone(&moments), Rc::clone(&stage));
        disk.watch(move |point| {
            let (shown, again) = stage.get();
            seen.borrow_mut().push(MomentAgain {
                point,
                shown,
                again,
            });
        });
    }
    let state = world.run_on(NODE, async move {
        let store = open().await?;
        let state = read(&store).await?;
        if watches {
            stage.set((true, Again::Begun));
            let version = Version {
                clock: AGAIN_CLOCK,
                coordinator: 1,
            };
            let batch = Batch {
                clear: None,
                records: vec![record(version, AGAIN, Some(AGAIN))],
            };
            let lsn = write(&store, batch).await?;
            let acknowledged = store.wait_acknowledged(lsn).await;
            acknowledged.map_err(|error| format!("a write fails: {error}"))?;
            stage.set((true, Again::Acknowledged));
            rt::sleep(Duration::from_secs(1)).await;
        }
        Ok::<State, String>(state)
    })?;
    Ok((state, moments.take()))
}

/// What was tried.
#[derive(Default)]
struct Tried {
    moments: u64,
    flushes: u64,
    compactions: u64,
    collections: u64,
    /// Moments of which every state was tried.
    exhausted: u64,
    states: u64,
    equal: u64,
    moments_again: u64,
    states_again: u64,
    seen: HashSet<(u64, u64, usize)>,
}

struct Hunt<'a> {
    seed: u64,
    planted: &'a [Bug],
    budget: Budget,
    states: Vec<State>,
    tried: Tried,
}

impl Hunt<'_> {
    fn run(&mut self, moments: &[Moment]) -> Result<(), String> {
        for (number, moment) in moments.iter().enumerate() {
            let mut failure = None;
            let mut is_exhausted = true;
            let seed = self.seed << 32 | number as u64;
            states_of(&moment.point, self.budget.states, seed, |files, is_all| {
                is_exhausted &= is_all;
                if failure.is_none()
                    && let Err(why) = self.try_state(&files, moment.acknowledged)
                {
                    let pending = moment.point.pending();
                    failure = Some(format!(
                        "workload {}, before sync {number} ({pending} changes not durable): {why}",
                        self.seed
                    ));
                }
            });
            if let Some(why) = failure {
                return Err(why);
            }
            self.tried.moments += 1;
            self.tried.exhausted += u64::from(is_exhausted);
        }
        Ok(())
    }

    fn try_state(&mut self, files: &Files, acknowledged: usize) -> Result<(), String> {
        let hash = hash(files);
        if !self.tried.seen.insert((self.seed, hash, acknowledged)) {
            self.tried.equal += 1;
            return Ok(());
        }
        self.tried.states += 1;
        let watches = hash.is_multiple_of(self.budget.again_one_in as u64);
        let (state, moments) = recover(files, self.planted, watches)?;
        self.must_be(&state, acknowledged)?;
        for (number, moment) in moments.iter().enumerate() {
            self.tried.moments_again += 1;
            let mut failure = None;
            let seed = hash ^ number as u64;
            states_of(&moment.point, self.budget.states_again, seed, |files, _| {
                self.tried.states_again += 1;
                let again = recover(&files, self.planted, false)
                    .and_then(|(found, _)| self.must_be_again(found, &state, moment, acknowledged));
                if let Err(why) = again {
                    failure.get_or_insert(why);
                }
            });
            if let Some(why) = failure {
                return Err(format!("then before sync {number} of the recovery: {why}"));
            }
        }
        Ok(())
    }

    fn must_be(&self, found: &State, acknowledged: usize) -> Result<(), String> {
        match self.states[acknowledged..].contains(found) {
            true => Ok(()),
            false => Err(format!(
                "{acknowledged} of {} steps were acknowledged; found is {}",
                self.states.len() - 1,
                match self.states.iter().position(|state| state == found) {
                    Some(step) => format!("the state after step {step}"),
                    None => "no state that ever was".to_owned(),
                }
            )),
        }
    }

    fn must_be_again(
        &self,
        mut found: State,
        shown: &State,
        moment: &MomentAgain,
        acknowledged: usize,
    ) -> Result<(), String> {
        let again = found.remove(AGAIN).is_some();
        if again && moment.again == Again::No {
            return Err("what was never written is there".to_owned());
        }
        if !again && moment.again == Again::Acknowledged {
            return Err("what was written after the recovery is lost".to_owned());
        }
        match moment.shown {
            true if found == *shown => Ok(()),
            true => Err("what was shown after the recovery is not there any more".to_owned()),
            false => self.must_be(&found, acknowledged),
        }
    }
}

/// Tries all of `budget`; what is wrong, if anything is.
fn hunt(budget: Budget, planted: &[Bug]) -> (Tried, Result<(), String>) {
    let mut tried = Tried::default();
    for seed in 0..budget.workloads {
        let hunted = catch_unwind(AssertUnwindSafe(|| {
            let (model, moments) = match moments_of(seed, planted) {
                Ok(done) => done,
                Err(why) => return (Tried::default(), Err(why)),
            };
            let mut hunt = Hunt {
                seed,
                planted,
                budget,
                states: model.states(),
                tried: Tried {
                    flushes: model.flushes.get(),
                    compactions: model.compactions.get(),
                    collections: model.collections.get(),
                    ..Tried::default()
                },
            };
            let verdict = hunt.run(&moments);
            (hunt.tried, verdict)
        }));
        let (more, verdict) = hunted.unwrap_or_else(|said| {
            let text = said.downcast_ref::<String>().map_or("a panic", |text| text);
            (
                Tried::default(),
                Err(format!("workload {seed}: panic: {text}")),
            )
        });
        tried.moments += more.moments;
        tried.flushes += more.flushes;
        tried.compactions += more.compactions;
        tried.collections += more.collections;
        tried.exhausted += more.exhausted;
        tried.states += more.states;
        tried.equal += more.equal;
        tried.moments_again += more.moments_again;
        tried.states_again += more.states_again;
        if verdict.is_err() {
            return (tried, verdict);
        }
    }
    (tried, Ok(()))
}

/// A store that opens on most of what a crash leaves is lost in the rest of the cases.
#[test]
fn whatever_a_power_cut_leaves_the_store_opens_and_holds_what_it_must() {
    let budget = match std::env::var_os("QUOIT_LONG") {
        Some(_) => Budget {
            workloads: 12,
            states: 700,
            again_one_in: 40,
            states_again: 12,
        },
        None => Budget {
            workloads: 3,
            states: 40,
            again_one_in: 60,
            states_again: 4,
        },
    };
    let begun = Instant::now();
    let (tried, verdict) = hunt(budget, &[]);
    println!(
        "{} workloads, {} flushes, {} merges, {} collections: {} moments, all states of {} of them; {} states tried, {} equal ones not; \
         {} moments of recoveries, {} states; at most {} of a moment and {} of a recovery's; {:.1?}",
        budget.workloads,
        tried.flushes,
        tried.compactions,
        tried.collections,
        tried.moments,
        tried.exhausted,
        tried.states,
        tried.equal,
        tried.moments_again,
        tried.states_again,
        budget.states,
        budget.states_again,
        begun.elapsed()
    );
    if let Err(why) = verdict {
        panic!("{why}");
    }
    assert!(
        tried.exhausted > 20 && tried.states > 1_000 && tried.collections > 0,
        "hardly anything was tried"
    );
}

/// A test that sees no planted bug would see no other either.
#[test]
fn planted_bugs_leave_states_that_are_seen_to_be_wrong() {
    let budget = Budget {
        workloads: 3,
        states: 60,
        again_one_in: 50,
        states_again: 4,
    };
    for bug in [
        Bug::NoSync,
        Bug::AcknowledgeBeforeSync,
        Bug::ReplayPastTornTail,
        Bug::ManifestBeforeTable,
        Bug::NoDirectorySync,
    ] {
        let (tried, verdict) = hunt(budget, &[bug]);
        let why = verdict.expect_err(&format!("{bug:?} is not seen"));
        println!(
            "{bug:?}: after {} states: {why}",
            tried.states + tried.states_again
        );
    }
}
