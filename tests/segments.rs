//! The files of the value log, in a simulated world: when a segment that was emptied is written
//! anew, when it is only removed, when its space comes back, and whom that makes wait.
//!
//! Values are overwritten in rounds, so that the collector always has something to do. Nothing here
//! looks at time but to give the store some: what is awaited comes in a number of rounds, or the
//! test fails.

#[path = "common/store.rs"]
mod store;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use quoit::rt::sim::{Disk, Handle, NodeId, Options, World};
use quoit::rt::{self, BLOCK_BYTES};
use quoit::storage::merge::Item;
use quoit::storage::record::{KeyRef, Meta, Record};

use quoit::storage::wal::Admission;
use quoit::storage::wal::format::{Life, decode_batch_header, decode_life};
use quoit::storage::{Batch, Lookup, Peek, Store, StoreOptions, Want};
use quoit::types::{Position, Version};

const NODE: NodeId = NodeId(1);
const DIR: &str = "/data/core-000";
const KEYS: u64 = 60;
const VALUE_BYTES: usize = 3_000;
/// What is awaited comes in so many rounds.
const ROUNDS_MAX: u64 = 300;

fn options() -> StoreOptions {
    StoreOptions {
        memory_bytes: 0, // no value comes from memory
        value_replay_bytes_max: 128 << 10,
        ..store::small()
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key:{number}").into_bytes()
}

/// What key `number` holds after round `round`, if that round wrote it.
fn value(number: u64, round: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(round * KEYS + number);
    (0..VALUE_BYTES).map(|_| random.u8(..)).collect()
}

/// A store, and what has been done to it.
struct Scene {
    store: Rc<Store>,
    disk: Disk,
    round: Cell<u64>,
    clock: Cell<u64>,
}

impl Scene {
    async fn open(world: &Handle, options: StoreOptions) -> Scene {
        let opened = Store::open(Path::new(DIR), options).await;
        Scene {
            store: opened.expect("no damage").store,
            disk: world.disk(NODE),
            round: Cell::new(0),
            clock: Cell::new(rt::wall_ms() << 16), // above all earlier lives
        }
    }

    /// Writes the next value of each of `keys`.
    async fn write(&self, keys: impl Iterator<Item = u64>) {
        self.round.set(self.round.get() + 1);
        for number in keys {
            self.clock.set(self.clock.get() + 1);
            let meta = Meta {
                version: Version {
                    clock: self.clock.get(),
                    coordinator: 1,
                },
                expiry: 0,
                tombstone: false,
            };
            let record = Record::new(meta, &key(number), &value(number, self.round.get()));
            let batch = Batch {
                clear: None,
                records: vec![(KeyRef::of(&key(number)).position, record)],
            };
            self.store.wait_admitted(&batch).await.expect("it is sound");
            let lsn = self.store.write_batch(batch);
            self.store
                .wait_acknowledged(lsn)
                .await
                .expect("it is sound");
        }
        rt::sleep(Duration::from_millis(20)).await;
    }

    /// Overwrites everything, round after round, until `done`.
    async fn churn(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..ROUNDS_MAX {
            if done() {
                return;
            }
            self.write(0..KEYS).await;
        }
        panic!("{what}: not within {ROUNDS_MAX} rounds");
    }

    /// The files of the value log's segments.
    fn segments(&self) -> BTreeSet<PathBuf> {
        let is_segment = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.starts_with(DIR) && (name.starts_with("values-") || name.starts_with("moved-"))
        };
        self.disk.files().into_iter().filter(is_segment).collect()
    }

    fn has_any(&self, paths: &BTreeSet<PathBuf>) -> bool {
        !self.segments().is_disjoint(paths)
    }

    /// True if a segment lies where another one was before.
    fn has_reused(&self) -> bool {
        self.segments().iter().any(|path| {
            let life = decode_life(&self.disk.read(path).unwrap_or_default());
            let lives = batches(&self.disk, path);
            lives.iter().any(|of_batch| Some(*of_batch) != life)
        })
    }
}

/// The lives of all batches that lie in a segment.
fn batches(disk: &Disk, path: &Path) -> Vec<Life> {
    let bytes = disk.read(path).unwrap_or_default();
    let blocks = bytes.chunks_exact(BLOCK_BYTES).skip(1);
    let headers = blocks.filter_map(|block| decode_batch_header(block, None));
    headers.map(|header| header.life).collect()
}

/// Has all of `pinned` emptied and given up, and so much written then that each file that is free
/// for it is written anew.
async fn outlive(scene: &Scene, pinned: &BTreeSet<PathBuf>) {
    assert!(
        pinned.len() > 2,
        "what is pinned is more than the pool takes"
    );
    scene
        .churn("segments are collected", || !scene.has_any(pinned))
        .await;
    scene
        .churn("a file is used again", || scene.has_reused())
        .await;
    let round = scene.round.get() + 3;
    scene.churn("rounds", || scene.round.get() >= round).await;
}

/// Else a slow reader would be told that the data is damaged, while all of it is whole.
#[test]
fn a_segment_that_a_reader_holds_is_not_written_anew() {
    let world = World::new(Options::calm(1));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let scene = Scene::open(&handle, options()).await;
        scene.write(0..KEYS).await;
        let lookup = |number| match scene.store.peek(&KeyRef::of(&key(number)), Want::Value) {
            Peek::OnDisk(lookup) => lookup,
            Peek::Known(_) => panic!("a value that is in memory pins nothing"),
        };
        let lookups: Vec<Lookup> = (0..KEYS).map(lookup).collect();
        outlive(&scene, &scene.segments()).await;
        for (number, lookup) in (0..).zip(lookups) {
            let found = lookup.read(&KeyRef::of(&key(number))).await;
            let found = found.expect("its segment was written anew");
            let found = found.expect("it was there").record;
            assert!(found.view().value() == value(number, 1), "key {number}");
        }
    });
}

/// Else a walk that takes its time would end in an error, or never show what it was to show.
#[test]
fn a_segment_that_a_snapshot_holds_is_not_written_anew() {
    let world = World::new(Options::calm(2));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let scene = Scene::open(&handle, options()).await;
        scene.write(0..KEYS).await;
        let (snapshot, mut records) = (scene.store.snapshot(), Vec::new());
        let visit = |item: &Item| {
            records.push(item.record.clone());
            ControlFlow::Continue(())
        };
        let walked = snapshot.walk(Position(0), Position(u32::MAX), visit).await;
        walked.expect("no damage");
        assert_eq!(records.len() as u64, KEYS);
        assert!(records.iter().all(|record| record.pointer().is_some()));
        outlive(&scene, &scene.segments()).await;
        for record in records {
            let found = scene.store.resolve(&snapshot, &record).await;
            let found = found.expect("its segment was written anew");
            let found = found.expect("it was there");
            let of_this_key = |number: &u64| key(*number) == found.key();
            let number = (0..KEYS).find(of_this_key).expect("one of the keys");
            assert!(found.view().value() == value(number, 1), "key {number}");
        }
    });
}

/// Else a core would destroy what another one needs: after a re-sharding several have a segment,
/// each by a name of its own; and so may a backup.
#[test]
fn a_segment_that_has_another_name_is_not_written_anew() {
    let world = World::new(Options::calm(3));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let scene = Scene::open(&handle, options()).await;
        scene.write(0..KEYS).await;
        scene.store.stop().await.expect("it is sound");
        // Nobody writes any more to what a start finds.
        let scene = Scene::open(&handle, options()).await;
        let other = Path::new("/data/core-001");
        rt::create_dir_all(other).await.expect("it is sound");
        let mut linked = Vec::new();
        let is_filled = |path: &PathBuf| !batches(&scene.disk, path).is_empty();
        let named = scene.segments();
        let named: BTreeSet<PathBuf> = named.into_iter().filter(is_filled).collect();
        for path in &named {
            let name = other.join(path.file_name().expect("a file has a name"));
            rt::link(path, &name).await.expect("it is sound");
            linked.push((name.clone(), scene.disk.read(&name).expect("it is there")));
        }
        outlive(&scene, &named).await;
        for (name, before) in linked {
            let now = scene.disk.read(&name).expect("it has its other name");
            assert!(now == before, "{} was written to", name.display());
        }
    });
}

/// Else a node that moves values would run out of space, and of descriptors, until it is started
/// anew.
#[test]
fn segments_of_moved_values_give_their_space_back_while_the_store_runs() {
    const GONE_MIN: usize = 10;
    let world = World::new(Options::calm(4));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let scene = Scene::open(&handle, options()).await;
        let is_moved = |path: &PathBuf| path.to_string_lossy().contains("/moved-");
        let (mut seen, mut gone) = (BTreeSet::new(), 0);
        let mut chance = fastrand::Rng::with_seed(4);
        for _ in 0..ROUNDS_MAX {
            // Half of the values are moved before they die.
            let keys: Vec<u64> = (0..KEYS).filter(|_| chance.bool()).collect();
            scene.write(keys.into_iter()).await;
            let there = scene.segments();
            seen.extend(there.iter().filter(|path| is_moved(path)).cloned());
            gone = seen.difference(&there).count();
            if gone >= GONE_MIN {
                break;
            }
        }
        assert!(gone >= GONE_MIN, "{gone} segments of moved values are gone");
        let named = || {
            let blocks = |path: &PathBuf| {
                let bytes = scene.disk.read(path).expect("it was listed");
                bytes.len().next_multiple_of(BLOCK_BYTES) as u64
            };
            scene.disk.files().iter().map(blocks).sum::<u64>()
        };
        // Merges may still be about to let go of tables.
        for _ in 0..ROUNDS_MAX {
            if scene.disk.used_bytes() == named() {
                return;
            }
            rt::sleep(Duration::from_millis(100)).await;
        }
        let (used, named) = (scene.disk.used_bytes(), named());
        panic!("{used} bytes are taken and {named} have a name, after {gone} segments have gone");
    });
}

/// Else a disk that fails the collector would make clients crawl for the sake of what nobody
/// collects.
#[test]
fn writers_are_slowed_for_a_collector_that_works_and_not_for_one_that_fails() {
    const LARGE_BYTES: usize = 20_000;
    let world = World::new(Options::calm(5));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let idle = StoreOptions {
            value_garbage_percent_max: 1_000,
            ..options()
        };
        let scene = Scene::open(&handle, idle).await;
        for _ in 0..10 {
            scene.write(0..KEYS).await;
        }
        scene.store.stop().await.expect("it is sound");
        let scene = Scene::open(&handle, options()).await;
        let sizes = scene.store.sizes().values;
        assert!(sizes.garbage > sizes.live, "nothing is to be collected");
        let (store, disk) = (&scene.store, &scene.disk);
        // Nothing is written, so there is room; who is slowed has no second turn at the same
        // moment.
        let is_slowed = || {
            let turns = [(); 2].map(|()| store.admit(9, LARGE_BYTES));
            turns != [Admission::Ready; 2]
        };
        disk.change_faults(|faults| faults.eio_read = 1.0);
        let mut calm = 0;
        for _ in 0..ROUNDS_MAX {
            rt::sleep(Duration::from_millis(10)).await;
            calm += u64::from(!is_slowed());
        }
        assert!(disk.losses().errors > 0, "nobody has read anything");
        assert_eq!(store.stats().collections, 0, "how?");
        // The first attempt was yet to fail.
        assert!(calm + 1 >= ROUNDS_MAX, "slowed though nobody collects");
        disk.change_faults(|faults| faults.eio_read = 0.0);
        let mut slowed = false;
        for _ in 0..ROUNDS_MAX * 10 {
            rt::sleep(Duration::from_millis(1)).await;
            slowed |= is_slowed();
        }
        assert!(slowed, "writers may outrun a collector that works");
        assert!(store.stats().collections > 0, "it does not go on");
        assert!(!is_slowed(), "slowed though all is collected");
    });
}

/// Else up to four segments of each core would be kept for nothing until somebody writes again.
#[test]
fn segments_that_were_emptied_go_when_nobody_writes() {
    const REST_ROUNDS: u32 = 60;
    let world = World::new(Options::calm(6));
    let handle = world.handle();
    world.run_on(NODE, async move {
        let scene = Scene::open(&handle, options()).await;
        let emptied = || scene.store.sizes().values.emptied;
        let mut chance = fastrand::Rng::with_seed(6);
        let mut waited = 0;
        for time in 0..20 {
            for _ in 0..5 {
                let keys: Vec<u64> = (0..KEYS).filter(|_| chance.bool()).collect();
                scene.write(keys.into_iter()).await;
            }
            // Its memtable may be flushed for other reasons.
            rt::sleep(Duration::from_secs(1)).await;
            waited += u32::from(emptied() > 0);
            for _ in 0..REST_ROUNDS {
                if emptied() == 0 {
                    break;
                }
                rt::sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(emptied(), 0, "after rest {time}");
        }
        assert!(waited > 3, "only {waited} times there was one to wait for");
    });
}
