//! One core's store against a sorted map, in a simulated world: whatever is done to it, and however
//! it goes down, it holds what a map would hold.
//!
//! A run is a function of its seed. Memtables and segments are tiny, so that a few hundred steps
//! flush, merge, clear and recycle many times. Every life ends in one of the ways that a core ends:
//! an orderly stop, `kill -9`, or a power cut, at any moment. `SEED=n` runs one seed,
//! `QUOIT_SEEDS=n` that many.
//!
//! What must be there afterwards: the state after some step that is not before the last step known
//! to be durable. Steps are written in order, and so they are lost from the end only.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use quoit::config::{Compression, Durability};
use quoit::error::Error;
use quoit::rt::sim::{NodeId, Options, World};
use quoit::rt::{self, Bug};
use quoit::storage::compaction::{Shape, Style};
use quoit::storage::record::{KeyRef, Meta, Record};
use quoit::storage::wal::WalLimits;
use quoit::storage::{Batch, Opened, Store, StoreOptions, Want};
use quoit::types::{CoreId, Lsn, Position, Version};

const NODE: NodeId = NodeId(1);
const PERIODIC: Durability = Durability::Periodic(Duration::from_millis(20));
const WHOLE: (Position, Position) = (Position(0), Position(u32::MAX));

/// What a key holds: its value and when it expires.
type Held = (Vec<u8>, u64);
type State = BTreeMap<Vec<u8>, Held>;

/// One change, as the store got it.
#[derive(Clone, Debug)]
struct Step {
    lsn: Lsn,
    clears: bool,
    /// `None`: deleted.
    writes: Vec<(Vec<u8>, Option<Held>)>,
}

impl Step {
    fn apply(&self, state: &mut State) {
        if self.clears {
            state.clear();
        }
        for (key, held) in &self.writes {
            match held {
                Some(held) => state.insert(key.clone(), held.clone()),
                None => state.remove(key),
            };
        }
    }
}

/// What the test knows of the store, over all of its lives.
#[derive(Default)]
struct Model {
    /// What a new life begins with.
    base: RefCell<State>,
    /// What has been done in this life.
    steps: RefCell<Vec<Step>>,
    /// So many of them are known to be durable.
    durable: Cell<usize>,
    /// Rises with every write, over all lives.
    clock: Cell<u64>,
    flushes: Cell<u64>,
    compactions: Cell<u64>,
    collections: Cell<u64>,
    lost: Cell<u64>,
    /// Bytes that were saved by packing values.
    saved: Cell<u64>,
}

impl Model {
    fn version(&self) -> Version {
        self.clock.set(self.clock.get() + 1);
        Version {
            clock: self.clock.get(),
            coordinator: 1,
        }
    }

    /// The state now, as a reader sees it at once.
    fn state(&self) -> State {
        let mut state = self.base.borrow().clone();
        self.steps
            .borrow()
            .iter()
            .for_each(|step| step.apply(&mut state));
        state
    }

    /// Everything up to the step with this number in the log is durable.
    fn note_durable(&self, lsn: Lsn) {
        let steps = self.steps.borrow();
        let count = steps.iter().take_while(|step| step.lsn <= lsn).count();
        self.durable.set(self.durable.get().max(count));
    }

    /// Begins a life with what was found: it must be the state after one of the steps.
    fn begin(&self, found: &State, now: u64) -> Result<(), String> {
        let steps = std::mem::take(&mut *self.steps.borrow_mut());
        let mut state = self.base.borrow().clone();
        let durable = self.durable.replace(0);
        let mut matching = Vec::new();
        for count in 0..=steps.len() {
            if count > 0 {
                steps[count - 1].apply(&mut state);
            }
            if count >= durable && is_same(&live(&state, now), found, now) {
                matching.push((count, state.clone()));
            }
        }
        let Some((count, state)) = matching.pop() else {
            return Err(format!(
                "of {} steps, {durable} of them durable, none leads to what is there\n{}",
                steps.len(),
                difference(&live(&state, now), found)
            ));
        };
        self.lost
            .set(self.lost.get() + (steps.len() - count) as u64);
        *self.base.borrow_mut() = state;
        Ok(())
    }
}

/// What has not expired.
fn live(state: &State, now: u64) -> State {
    let is_live = |(_, (_, expiry)): &(&Vec<u8>, &Held)| *expiry == 0 || now < *expiry;
    state
        .iter()
        .filter(is_live)
        .map(|(key, held)| (key.clone(), held.clone()))
        .collect()
}

/// True if a walk that began at `now` may have shown `found` of `expected`.
fn is_same(expected: &State, found: &State, now: u64) -> bool {
    let is_there = |(key, held): (&Vec<u8>, &Held)| match found.get(key) {
        Some(other) => held == other,
        None => may_have_expired(Some(held), now),
    };
    expected.iter().all(is_there) && found.keys().all(|key| expected.contains_key(key))
}

/// True if this was to be seen at `now`, but may have gone since.
fn may_have_expired(held: Option<&Held>, now: u64) -> bool {
    held.is_some_and(|held| (now + 1..=rt::wall_ms()).contains(&held.1))
}

/// Where a state differs from the last one that was written.
fn difference(expected: &State, found: &State) -> String {
    let name = |held: Option<&Held>| match held {
        Some((value, expiry)) => format!("{} bytes of {:?}, {expiry}", value.len(), value.first()),
        None => "nothing".to_owned(),
    };
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    keys.into_iter()
        .filter(|key| expected.get(*key) != found.get(*key))
        .take(10)
        .map(|key| {
            let key_text = String::from_utf8_lossy(key);
            let (last, there) = (name(expected.get(key)), name(found.get(key)));
            format!("  {key_text}: last written {last}; there is {there}\n")
        })
        .collect()
}

fn options(seed: u64, durability: Durability) -> StoreOptions {
    let mut chance = fastrand::Rng::with_seed(seed);
    let segment_bytes = 4096 * chance.u64(4..16);
    StoreOptions {
        core: CoreId(0),
        cores: 1,
        durability,
        memtable_bytes: [2_000, 8_000, 30_000][chance.usize(..3)],
        wal_bytes_max: segment_bytes * chance.u64(2..5),
        wal: WalLimits {
            segment_bytes,
            batch_bytes_max: 4096 * chance.usize(1..6),
        },
        memory_bytes: [0, 10_000, 1 << 20][chance.usize(..3)],
        // All by need, some, or none.
        index_bytes_max: [0, 2_000, 1 << 20][chance.usize(..3)],
        compaction: shape(&mut chance),
        value_bytes_min: [30, 100, 1_000, 1_000_000][chance.usize(..4)],
        value_segment_bytes: 4096 * chance.u64(4..24),
        value_replay_bytes_max: 4096 * chance.u64(8..80),
        value_garbage_percent_max: chance.u64(5..40),
        compression: [Compression::Lz4, Compression::None][chance.usize(..2)],
        value_compression: [Compression::Lz4, Compression::None][chance.usize(..2)],
    }
}

/// Small sizes, so that a short run fills several levels.
fn shape(chance: &mut fastrand::Rng) -> Shape {
    Shape {
        style: [Style::Leveled, Style::SizeTiered][chance.usize(..2)],
        table_bytes: [5_000, 20_000, 200_000][chance.usize(..3)],
        base_bytes: [10_000, 40_000, 200_000][chance.usize(..3)],
        ratio: chance.u64(2..5),
    }
}

async fn open(options: StoreOptions) -> Rc<Store> {
    let dir = PathBuf::from("/data/core-000");
    let Opened {
        store, undecided, ..
    } = Store::open(&dir, options)
        .await
        .expect("no crash is damage");
    assert!(undecided.is_empty(), "there are no other cores");
    store.leave_log().await.expect("a sound disk");
    store.drop_log().await.expect("a sound disk");
    store
}

/// All that a walk over the store shows as living.
async fn walk(store: &Store, now: u64) -> State {
    let mut found = State::new();
    let mut last: Option<(Position, Vec<u8>)> = None;
    let mut records = Vec::new();
    let snapshot = store.snapshot();
    snapshot
        .walk(WHOLE.0, WHOLE.1, |item| {
            let order = (item.position, item.record.key().to_vec());
            assert!(
                last.as_ref() < Some(&order),
                "a walk goes back, or stands still"
            );
            last = Some(order);
            if item.record.view().is_live(now) {
                records.push(item.record.clone());
            }
            ControlFlow::Continue(())
        })
        .await
        .expect("sound tables");
    for record in records {
        let resolved = store.resolve(&snapshot, &record).await;
        let whole = resolved.expect("a sound value log");
        let Some(view) = whole
            .as_ref()
            .map(Record::view)
            .filter(|view| view.is_live(now))
        else {
            continue; // it has expired and been taken away since
        };
        let held = (view.value().to_vec(), view.meta().expiry);
        found.insert(view.key().to_vec(), held);
    }
    found
}

/// What a reader gets for one key.
async fn get(store: &Store, key: &[u8], now: u64) -> Option<Held> {
    let found = store
        .get(&KeyRef::of(key), Want::Value)
        .await
        .expect("sound tables")?;
    let view = found.record.view();
    view.is_live(now)
        .then(|| (view.value().to_vec(), view.meta().expiry))
}

/// One life of the store: random steps, checked against the model as they are done.
struct Life {
    model: Rc<Model>,
    chance: fastrand::Rng,
    keys: u32,
    clear_one_in: u32,
}

impl Life {
    fn key(&mut self) -> Vec<u8> {
        // Some keys share a slot, and so nearly a position.
        let number = self.chance.u32(..self.keys);
        match number % 3 {
            0 => format!("{{tag}}{number}").into_bytes(),
            _ => format!("key {number}").into_bytes(),
        }
    }

    fn held(&mut self) -> Held {
        let length = match self.chance.u8(..40) {
            0 => self.chance.usize(20_000..90_000), // larger than a segment, often
            1..5 => self.chance.usize(..5_000),
            _ => self.chance.usize(..120),
        };
        let expiry = match self.chance.u8(..6) {
            0 => rt::wall_ms() + self.chance.u64(1..400),
            _ => 0,
        };
        // Half of them can be compressed.
        let value = match self.chance.bool() {
            true => vec![self.chance.u8(..); length],
            false => (0..length).map(|_| self.chance.u8(..)).collect(),
        };
        (value, expiry)
    }

    fn record(&self, key: &[u8], held: Option<&Held>) -> (Position, Record) {
        let meta = Meta {
            version: self.model.version(),
            expiry: held.map_or(0, |held| held.1),
            tombstone: held.is_none(),
        };
        let value = held.map_or(&[][..], |held| &held.0);
        (KeyRef::of(key).position, Record::new(meta, key, value))
    }

    /// One to six writes of different keys, with a clear before them at times.
    async fn write(&mut self, store: &Store) {
        let count = if self.chance.bool() {
            1
        } else {
            self.chance.usize(1..7)
        };
        let mut writes: BTreeMap<Vec<u8>, Option<Held>> = BTreeMap::new();
        for _ in 0..count {
            let held = (self.chance.u8(..4) > 0).then(|| self.held());
            writes.insert(self.key(), held);
        }
        let clears = self.chance.u32(..self.clear_one_in) == 0;
        let mut batch = Batch {
            clear: clears.then(|| self.model.version()),
            records: Vec::new(),
        };
        for (key, held) in &writes {
            batch.records.push(self.record(key, held.as_ref()));
        }
        store.wait_admitted(&batch).await.expect("a sound disk");
        let lsn = match (batch.records.len(), clears) {
            (1, false) => {
                let (position, record) = batch.records.remove(0);
                store.write(position, record)
            }
            _ => store.write_batch(batch),
        };
        let writes = writes.into_iter().collect();
        let step = Step {
            lsn,
            clears,
            writes,
        };
        self.model.steps.borrow_mut().push(step);
    }

    /// Compares keys, or a walk, with the model. Nothing is awaited between write and look, and
    /// only this task writes, so both show the same moment.
    async fn look(&mut self, store: &Store) {
        let now = rt::wall_ms();
        let state = self.model.state();
        if self.chance.u8(..8) == 0 {
            let found = walk(store, now).await;
            let mut expected = live(&state, now);
            expected
                .retain(|key, held| !may_have_expired(Some(held), now) || found.contains_key(key));
            assert_eq!(difference(&expected, &found), "", "a walk");
            return;
        }
        let key = self.key();
        let expected = live(&state, now).remove(&key);
        let found = get(store, &key, now).await;
        assert!(
            found == expected || (found.is_none() && may_have_expired(expected.as_ref(), now)),
            "{}: {:?} instead of {:?}",
            String::from_utf8_lossy(&key),
            found.map(|held| held.0.len()),
            expected.map(|held| held.0.len())
        );
    }

    /// Waits for an acknowledgement, or for the disk, as durability has it.
    async fn wait(&mut self, store: &Store, durability: Durability) {
        let Some(lsn) = self.model.steps.borrow().last().map(|step| step.lsn) else {
            return;
        };
        match durability {
            Durability::Sync => store.wait_acknowledged(lsn).await.expect("a sound disk"),
            _ => {
                assert!(
                    store.is_acknowledged(lsn),
                    "nobody waits with {durability:?}"
                );
                store.wait_durable(lsn).await.expect("a sound disk");
            }
        }
        if durability != Durability::None {
            self.model.note_durable(lsn);
        }
    }

    async fn live(mut self, options: StoreOptions, steps: usize, stops: bool) {
        let store = open(options).await;
        let now = rt::wall_ms();
        let found = walk(&store, now).await;
        // A look at every key says the same as the walk: no stale record lies before a newer one.
        for number in 0..self.keys {
            for key in [format!("{{tag}}{number}"), format!("key {number}")] {
                let there = get(&store, key.as_bytes(), now).await;
                let walked = found.get(key.as_bytes());
                let size = |held: &Held| (held.0.len(), held.1);
                assert!(
                    there.as_ref() == walked || (there.is_none() && may_have_expired(walked, now)),
                    "{key}: a get finds {:?}, a walk {:?}",
                    there.as_ref().map(size),
                    walked.map(size)
                );
            }
        }
        self.model
            .begin(&found, now)
            .unwrap_or_else(|why| panic!("{why}"));
        let mut swept = Position(0);
        for _ in 0..steps {
            match self.chance.u8(..20) {
                0..10 => self.write(&store).await,
                10..15 => self.look(&store).await,
                15..17 => self.wait(&store, options.durability).await,
                17 => swept = store.sweep_expired(swept, rt::wall_ms(), 50).await,
                _ => rt::sleep(Duration::from_micros(self.chance.u64(..20_000))).await,
            }
        }
        if stops {
            store.stop().await.expect("a sound disk");
            self.model.durable.set(self.model.steps.borrow().len());
        }
        let stats = store.stats();
        self.model
            .flushes
            .set(self.model.flushes.get() + stats.flushes);
        let compactions = self.model.compactions.get() + stats.compactions;
        self.model.compactions.set(compactions);
        let collections = self.model.collections.get() + stats.collections;
        self.model.collections.set(collections);
        let saved = stats.value_bytes_given - stats.value_bytes_stored;
        self.model.saved.set(self.model.saved.get() + saved);
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    Kill,
    PowerCut,
}

/// Several lives of one store. `durability` says for each of them how it is opened.
fn simulate(seed: u64, durability: impl Fn(usize) -> Durability) -> (Rc<Model>, u64) {
    simulate_with(seed, &[], durability)
}

fn simulate_with(
    seed: u64,
    planted: &[Bug],
    durability: impl Fn(usize) -> Durability,
) -> (Rc<Model>, u64) {
    let mut world = Options::random(seed);
    world.planted = planted.to_vec();
    let world = World::new(world);
    let model = Rc::new(Model::default());
    let mut chance = fastrand::Rng::with_seed(seed);
    let keys = [5, 40, 400][chance.usize(..3)];
    let clear_one_in = [8, 40, 1000][chance.usize(..3)];
    for life in 0..4 {
        let durability = durability(life);
        // Without a log a crash may lose what it likes of what was written since, so nothing is;
        // what an earlier log held must outlive even a crash while it is left.
        let idles = durability == Durability::None && chance.bool();
        let end = match chance.u8(..3) {
            _ if idles => End::PowerCut,
            _ if durability == Durability::None => End::Stop,
            0 => End::Stop,
            1 => End::Kill,
            _ => End::PowerCut,
        };
        let options = options(chance.u64(..), durability);
        let steps = if idles { 0 } else { chance.usize(20..400) };
        let (shared, life_seed) = (Rc::clone(&model), chance.u64(..));
        world.start_node(NODE, 1, move |_: rt::Core<()>| {
            let life = Life {
                model: Rc::clone(&shared),
                chance: fastrand::Rng::with_seed(life_seed),
                keys,
                clear_one_in,
            };
            life.live(options, steps, matches!(end, End::Stop))
        });
        let patience = Duration::from_secs(3600);
        let ended = world.run_until(
            || world.node_ended(NODE),
            match end {
                End::Stop => patience,
                // At any moment: often in the middle of it, sometimes before it has opened.
                _ if idles => Duration::from_micros(chance.u64(..100_000)),
                _ => Duration::from_micros(chance.u64(..3_000_000)),
            },
        );
        match end {
            End::Stop => assert!(ended, "seed {seed}, life {life}: it never stops"),
            // With "periodic", a crash of the process loses what was not written out yet.
            End::Kill => world.kill_node(NODE),
            End::PowerCut => {
                world.crash_node(NODE);
            }
        }
        if matches!(end, End::Stop) && chance.bool() {
            world.crash_node(NODE); // an orderly stop leaves nothing to lose
        }
    }
    let last = Life {
        model: Rc::clone(&model),
        chance: fastrand::Rng::with_seed(seed),
        keys,
        clear_one_in,
    };
    world.run_on(NODE, last.live(options(seed, Durability::Sync), 10, true));
    (model, world.trace_hash())
}

fn for_seeds(default: u64, run: impl FnMut(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SEED") {
        Some(seed) => (seed..seed + 1).for_each(run),
        None => (0..number("QUOIT_SEEDS").unwrap_or(default)).for_each(run),
    }
}

#[test]
fn with_sync_every_acknowledged_step_is_there_after_any_end() {
    let (mut flushes, mut compactions, mut collections, mut lost) = (0, 0, 0, 0);
    let mut packed = 0;
    for_seeds(300, |seed| {
        let (model, _) = simulate(seed, |_| Durability::Sync);
        flushes += model.flushes.get();
        compactions += model.compactions.get();
        collections += model.collections.get();
        lost += model.lost.get();
        packed += u64::from(model.saved.get() > 0);
    });
    println!(
        "{flushes} flushes, {compactions} compactions, {collections} collections, {lost} steps lost"
    );
    if std::env::var_os("SEED").is_none() {
        assert!(
            flushes > 1000 && compactions > 200,
            "{flushes} {compactions}"
        );
        assert!(collections > 200, "{collections} collections");
        assert!(packed > 50, "values were packed with {packed} seeds only");
        assert!(lost > 100, "no crash lost anything: nothing was tested");
    }
}

/// Plants `bug` and says after how many seeds it is found.
fn finds(bug: Bug, durability: Durability) {
    const FINDING_SEEDS: u64 = 300;
    let run = |seed| simulate_with(seed, &[bug], |_| durability);
    let is_found = |seed: &u64| catch_unwind(|| run(*seed)).is_err();
    let Some(seed) = (0..FINDING_SEEDS).find(is_found) else {
        panic!("{bug:?} is planted, and {FINDING_SEEDS} seeds do not find it");
    };
    println!("{bug:?} is found after {} seeds", seed + 1);
}

#[test]
fn a_tombstone_that_goes_while_it_hides_something_is_found() {
    finds(Bug::TombstoneTooEarly, Durability::Sync);
}

#[test]
fn a_stale_row_of_the_cache_is_found() {
    finds(Bug::StaleRow, Durability::Sync);
}

#[test]
fn a_table_that_points_to_values_that_are_not_synced_is_found() {
    finds(Bug::TableBeforeValues, PERIODIC);
}

#[test]
fn with_periodic_only_the_end_is_lost_and_never_a_part_of_a_batch() {
    let mut lost = 0;
    for_seeds(300, |seed| {
        let (model, _) = simulate(seed, |_| PERIODIC);
        lost += model.lost.get();
    });
    if std::env::var_os("SEED").is_none() {
        assert!(lost > 500, "no crash lost anything: nothing was tested");
    }
}

#[test]
fn durability_may_be_changed_from_one_life_to_the_next() {
    for_seeds(300, |seed| {
        let mut chance = fastrand::Rng::with_seed(!seed);
        let order: Vec<Durability> = (0..4)
            .map(|_| [Durability::Sync, PERIODIC, Durability::None][chance.usize(..3)])
            .collect();
        simulate(seed, |life| order[life]);
    });
}

#[test]
fn a_moved_value_that_hides_a_newer_one_is_found() {
    finds(Bug::MoveUnchecked, Durability::Sync);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for_seeds(10, |seed| {
        let (_, first) = simulate(seed, |_| Durability::Sync);
        let (_, second) = simulate(seed, |_| Durability::Sync);
        assert_eq!(first, second, "seed {seed}");
    });
}

/// A store of one of `cores`, with tiny sizes, in a world of its own.
fn small(cores: u16) -> StoreOptions {
    StoreOptions {
        cores,
        memtable_bytes: 2_000,
        wal: WalLimits {
            segment_bytes: 16 * 4096,
            batch_bytes_max: 4096,
        },
        value_bytes_min: 1_000_000,
        ..options(1, Durability::Sync)
    }
}

fn record_of(clock: u64, key: &str, bytes: usize) -> (Position, Record) {
    let version = Version {
        clock,
        coordinator: 1,
    };
    let meta = Meta {
        version,
        expiry: 0,
        tombstone: false,
    };
    let record = Record::new(meta, key.as_bytes(), &vec![7; bytes]);
    (KeyRef::of(key.as_bytes()).position, record)
}

#[test]
fn a_part_of_a_transaction_over_many_cores_fits_where_it_was_admitted() {
    let world = World::new(Options::calm(1));
    world.run_on(NODE, async {
        let store = open(small(1024)).await;
        let cores: Vec<CoreId> = (0..1024).map(CoreId).collect();
        for clock in 1..400 {
            // Sizes about that of a segment, so that every byte counts.
            let bytes = 15 * 4096 - 2500 + clock as usize * 8 % 2600;
            let batch = Batch {
                clear: None,
                records: vec![record_of(clock, "key", bytes)],
            };
            store
                .wait_part_admitted(&batch)
                .await
                .expect("a sound disk");
            let transaction = Version {
                clock,
                coordinator: 2,
            };
            let lsn = store.prepare(transaction, &cores, &batch);
            store.wait_durable(lsn).await.expect("a sound disk");
            store.abort(transaction);
        }
    });
}

#[test]
fn what_is_undecided_outlives_a_start_that_could_not_decide_it() {
    let world = World::new(Options::calm(2));
    let transaction = Version {
        clock: 5,
        coordinator: 2,
    };
    world.run_on(NODE, async move {
        let store = open(small(2)).await;
        let batch = Batch {
            clear: None,
            records: vec![record_of(4, "in doubt", 10)],
        };
        let lsn = store.prepare(transaction, &[CoreId(0), CoreId(1)], &batch);
        store.wait_durable(lsn).await.expect("a sound disk");
        let (position, record) = record_of(6, "other", 10);
        let lsn = store.write(position, record);
        store.wait_acknowledged(lsn).await.expect("a sound disk");
    });
    world.crash_node(NODE);
    for durability in [Durability::Sync, Durability::None, Durability::Sync] {
        let options = StoreOptions {
            durability,
            ..small(2)
        };
        let names = world.run_on(NODE, async move {
            let dir = PathBuf::from("/data/core-000");
            let opened = Store::open(&dir, options).await.expect("no damage");
            // The other core could not start, so the node ends as it does in good order.
            opened.store.stop().await.expect("a sound disk");
            let name = |part: &quoit::storage::Undecided| part.transaction;
            opened.undecided.iter().map(name).collect::<Vec<_>>()
        });
        assert_eq!(
            names,
            [transaction],
            "{durability:?}: half of a transaction is gone"
        );
        world.crash_node(NODE);
    }
    let found = world.run_on(NODE, async move {
        let dir = PathBuf::from("/data/core-000");
        let opened = Store::open(&dir, small(2)).await.expect("no damage");
        for part in opened.undecided {
            opened.store.recover(part);
        }
        get(&opened.store, b"in doubt", rt::wall_ms()).await
    });
    assert_eq!(found.map(|(value, _)| value.len()), Some(10));
}

#[test]
fn a_failed_log_refuses_those_who_wait_for_a_memtable_too() {
    let world = World::new(Options::calm(3));
    let disk = world.disk(NODE);
    world.run_on(NODE, async move {
        let store = open(small(2)).await;
        // The other core never notes this transaction, so the first flush is long under way.
        let transaction = Version {
            clock: 1,
            coordinator: 2,
        };
        let batch = Batch {
            clear: None,
            records: vec![record_of(1, "part", 3000)],
        };
        let lsn = store.prepare(transaction, &[CoreId(0), CoreId(1)], &batch);
        store.wait_durable(lsn).await.expect("sound so far");
        store.commit(transaction, lsn, batch);
        let write = |store: Rc<Store>, clock: u64| async move {
            let batch = Batch {
                clear: None,
                records: vec![record_of(clock, &clock.to_string(), 3000)],
            };
            store.wait_admitted(&batch).await?;
            let lsn = store.write_batch(batch);
            store.wait_acknowledged(lsn).await
        };
        write(Rc::clone(&store), 2).await.expect("sound so far");
        let waiting = rt::spawn(write(Rc::clone(&store), 3));
        rt::sleep(Duration::from_millis(100)).await;
        assert!(
            store.stats().flushes == 0,
            "the first flush was to take long"
        );
        disk.change_faults(|faults| faults.eio_sync = 1.0);
        let noted = store.note_commits(&[transaction]).await;
        assert!(matches!(noted, Err(Error::Uncertain)), "{noted:?}");
        let began = rt::now();
        let refused = waiting.await;
        assert!(matches!(refused, Err(Error::LogFailed)), "{refused:?}");
        let took = rt::now() - began;
        assert!(
            took < Duration::from_millis(100),
            "told after {took:?} only"
        );
    });
}

#[test]
fn nothing_is_told_of_a_clear_before_it_is_acknowledged() {
    let world = World::new(Options::calm(4));
    world.run_on(NODE, async {
        let store = open(small(1)).await;
        let (position, record) = record_of(1, "key", 10);
        let lsn = store.write(position, record);
        store.wait_acknowledged(lsn).await.expect("a sound disk");
        let batch = Batch {
            clear: Some(Version {
                clock: 2,
                coordinator: 1,
            }),
            records: Vec::new(),
        };
        store.wait_admitted(&batch).await.expect("a sound disk");
        let lsn = store.write_batch(batch);
        assert!(get(&store, b"key", 0).await.is_none());
        assert_eq!(
            store.lsn_cleared(),
            lsn,
            "who finds nothing depends on the clear"
        );
        assert!(!store.is_acknowledged(store.lsn_cleared()));
        store.wait_acknowledged(lsn).await.expect("a sound disk");
    });
}

/// Writes or deletes keys `from` to `to` of a fresh store, and leaves all of it in tables.
async fn in_tables(options: StoreOptions, clock: u64, keys: std::ops::Range<u64>, delete: bool) {
    let store = open(options).await;
    for key in keys {
        let (position, record) = record_of(clock, &format!("{key:03}"), 2_000);
        let record = match delete {
            false => record,
            true => {
                let meta = Meta {
                    tombstone: true,
                    ..record.meta()
                };
                Record::new(meta, record.key(), b"")
            }
        };
        let batch = Batch {
            clear: None,
            records: vec![(position, record)],
        };
        store.wait_admitted(&batch).await.expect("a sound disk");
        let lsn = store.write_batch(batch);
        store.wait_acknowledged(lsn).await.expect("a sound disk");
    }
    store.stop().await.expect("a sound disk");
}

#[test]
fn what_writes_hide_is_garbage_once_they_are_flushed_and_once_only() {
    let world = World::new(Options::calm(5));
    world.run_on(NODE, async {
        let options = StoreOptions {
            memtable_bytes: 100_000,
            wal_bytes_max: 1 << 30,
            memory_bytes: 1 << 20,
            value_bytes_min: 1_000,
            value_segment_bytes: 64 * 4096,
            value_replay_bytes_max: 1 << 30,
            value_garbage_percent_max: 1_000, // nothing is collected
            compression: Compression::None,
            value_compression: Compression::None,
            compaction: Shape {
                style: Style::Leveled,
                table_bytes: 1 << 20,
                base_bytes: 1 << 20,
                ratio: 10,
            },
            ..options(1, Durability::Sync)
        };
        in_tables(options, 1, 0..200, false).await;
        let before = open(options).await;
        let each = before.sizes().values.live / 200;
        assert_eq!(before.sizes().values.garbage, 0);
        before.stop().await.expect("a sound disk");
        let mut expected = 0;
        let steps = [
            (2, 0..60, false),
            (3, 100..160, true),
            (4, 0..60, false),
            (5, 50..150, true),
        ];
        // Keys 0 to 59 hide 60 values, twice; 100 to 159 hide as many, and 50 to 149 the fifty that
        // are left.
        for ((clock, keys, delete), hidden) in steps.into_iter().zip([60, 60, 60, 50]) {
            in_tables(options, clock, keys, delete).await;
            expected += hidden * each;
            let store = open(options).await;
            assert_eq!(
                store.sizes().values.garbage,
                expected,
                "not counted by flush {clock}"
            );
            store.stop().await.expect("a sound disk");
        }
        let store = open(options).await;
        rt::sleep(Duration::from_secs(60)).await;
        assert!(store.sizes().table_runs == 1, "not merged at rest");
        assert_eq!(
            store.sizes().values.garbage,
            expected,
            "a merge has counted again"
        );
        assert_eq!(store.stats().collections, 0);
        store.stop().await.expect("a sound disk");
    });
}
