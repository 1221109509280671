//! Hints in a simulated world: what was said to be kept is there, whatever happens to the node and
//! its disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::rt::sim::{NodeId, Options, World};
use crate::rt::{self, BLOCK_BYTES, Bug};
use crate::storage::check::{self, Told};
use crate::types::{Meta, Version};

const NODE: NodeId = NodeId(1);
const DIR: &str = "/data";
const HOUR_MS: u64 = 3_600_000;

fn limits() -> HintLimits {
    HintLimits {
        bytes_max: 4 << 20,
        age_max_ms: HOUR_MS,
        file_bytes: 32 << 10,
        batch_bytes_max: 8 << 10,
        waiting_bytes_max: 64 << 10,
    }
}

fn record(number: u64, length: usize) -> Record {
    let meta = Meta {
        version: Version {
            clock: number,
            coordinator: 1,
        },
        expiry: 0,
        tombstone: length == 0,
    };
    Record::new(
        meta,
        format!("key {}", number % 7).as_bytes(),
        &vec![5; length],
    )
}

fn number_of(record: &Record) -> u64 {
    record.meta().version.clock
}

async fn open(core: u16, cores: u16, limits: HintLimits) -> Rc<Hints> {
    let opened = Hints::open(Path::new(DIR), (CoreId(core), cores), limits).await;
    opened.expect("a sound disk")
}

/// Takes all hints for `node` in their order, and says of each that it was handed on.
async fn take_all(hints: &Hints, node: u16) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(portion) = hints.next(node).await.expect("a sound disk") {
        numbers.extend(portion.records.iter().map(number_of));
        hints.done(&portion);
    }
    numbers
}

fn world(seed: u64, planted: &[Bug]) -> World {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    World::new(options)
}

/// What one seed has come to: by number, the node of every hint that was said to be kept and was
/// not handed on since.
type Owed = Rc<RefCell<BTreeMap<u64, u16>>>;

/// Keeps hints, hands some of them on, and ends at any moment; whatever is owed must be there in
/// the end.
fn keep_and_crash(seed: u64, planted: &[Bug]) -> Result<u64, String> {
    let world = world(seed, planted);
    let mut chance = fastrand::Rng::with_seed(seed);
    let owed: Owed = Rc::default();
    let next = Rc::new(Cell::new(1));
    let kept = Rc::new(Cell::new(0));
    for _ in 0..6 {
        let shared = (Rc::clone(&owed), Rc::clone(&next), Rc::clone(&kept));
        let seed = chance.u64(..);
        let main = move |_: rt::Core<()>| {
            let (owed, next, kept) = shared.clone();
            async move {
                let hints = open(0, 1, limits()).await;
                for writer in 0..4 {
                    let mut chance = fastrand::Rng::with_seed(seed ^ writer);
                    let (hints, owed) = (Rc::clone(&hints), Rc::clone(&owed));
                    let (next, kept) = (Rc::clone(&next), Rc::clone(&kept));
                    rt::spawn(async move {
                        loop {
                            let number = next.replace(next.get() + 1);
                            let node = chance.u16(2..5);
                            let length = [0, 10, 500, 9_000][chance.usize(..4)];
                            if hints.keep(node, record(number, length)).await == Kept::Synced {
                                owed.borrow_mut().insert(number, node);
                                kept.set(kept.get() + 1);
                            }
                            rt::sleep(Duration::from_micros(chance.u64(1..3_000))).await;
                        }
                    });
                }
                loop {
                    for node in hints.nodes().into_iter().take(1) {
                        let portion = hints.next(node).await.expect("a sound disk");
                        let Some(portion) = portion else { continue };
                        // Here a replica would sync them.
                        let numbers = portion.records.iter().map(number_of);
                        numbers.for_each(|number| _ = owed.borrow_mut().remove(&number));
                        hints.done(&portion);
                    }
                    rt::sleep(Duration::from_micros(7_000)).await;
                }
            }
        };
        let _mains = world.start_node(NODE, 1, main);
        world.run_for(Duration::from_micros(chance.u64(..150_000)));
        match chance.bool() {
            true => world.kill_node(NODE),
            false => world.crash_node(NODE),
        }
    }
    let (found, damaged) = world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        let mut found = BTreeSet::new();
        for node in 2..5 {
            let numbers = take_all(&hints, node).await;
            found.extend(numbers.into_iter().map(|number| (number, node)));
        }
        assert_eq!(hints.backlog(), BTreeMap::new(), "all was handed on");
        (found, hints.stats().damaged)
    });
    if damaged > 0 {
        return Err("a crash is taken for damage".to_owned());
    }
    let owed = owed.borrow();
    match owed
        .iter()
        .find(|(number, node)| !found.contains(&(**number, **node)))
    {
        None => Ok(kept.get()),
        Some((number, node)) => Err(format!("hint {number} for node {node} is lost")),
    }
}

/// Else a write at ONE that only a stand-in had would be lost with the power.
#[test]
fn what_was_said_to_be_kept_survives_a_crash_at_any_moment() {
    let mut kept = 0;
    for seed in 0..150 {
        kept += keep_and_crash(seed, &[]).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(kept > 10_000, "{kept} hints are too few to say anything");
    for bug in [Bug::HintUnsynced, Bug::NoDirectorySync] {
        let found = (0..150).find(|seed| keep_and_crash(*seed, &[bug]).is_err());
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}

/// Else an outage would fill the disk, or healthy hints would be refused for ever after.
#[test]
fn hints_are_bounded_in_bytes_and_room_comes_back() {
    let world = world(1, &[]);
    world.run_on(NODE, async {
        let limits = HintLimits {
            bytes_max: 128 << 10,
            file_bytes: 16 << 10,
            ..limits()
        };
        let hints = open(0, 1, limits).await;
        let mut kept = Vec::new();
        for number in 1..100 {
            match hints.keep(2, record(number, 3_000)).await {
                Kept::Synced => kept.push(number),
                Kept::Refused => break,
                Kept::Uncertain => panic!("the disk is sound"),
            }
        }
        let left = hints.backlog()[&2];
        assert!(
            left.bytes <= limits.bytes_max && kept.len() > 15,
            "{left:?}"
        );
        assert_eq!((left.hints, hints.stats().refused), (kept.len() as u64, 1));
        assert_eq!(hints.keep(3, record(200, 100)).await, Kept::Refused);
        assert_eq!(take_all(&hints, 2).await, kept, "in their order");
        assert_eq!(hints.backlog(), BTreeMap::new());
        assert_eq!(hints.keep(3, record(201, 100)).await, Kept::Synced);
        assert_eq!(take_all(&hints, 3).await, [201]);
        let none = HintLimits {
            bytes_max: 0,
            ..limits
        };
        let hints = open(0, 1, none).await;
        assert_eq!(hints.keep(2, record(1, 1)).await, Kept::Refused);
    });
    let left = world.disk(NODE).files();
    let left = left.iter().filter(|path| path.starts_with("/data/hints"));
    assert_eq!(left.count(), 0, "files of hints are left");
}

/// Else more hints than there is memory for could wait for a slow disk.
#[test]
fn hints_that_wait_are_bounded_and_one_that_is_large_is_kept_all_the_same() {
    let world = world(2, &[]);
    world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        let large = hints.keep(2, record(1, 100_000)).await;
        assert_eq!(large, Kept::Synced, "though it is larger than a batch");
        let tasks: Vec<_> = (2..100)
            .map(|number| {
                let hints = Rc::clone(&hints);
                rt::spawn(async move { hints.keep(2, record(number, 2_000)).await })
            })
            .collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.push(task.await);
        }
        let of = |wanted| outcomes.iter().filter(|kept| **kept == wanted).count();
        assert!(
            of(Kept::Synced) > 20 && of(Kept::Refused) > 20,
            "{outcomes:?}"
        );
        let all = 1 + of(Kept::Synced);
        assert_eq!(take_all(&hints, 2).await.len(), all);
    });
}

/// Else a replica that comes back after a year would be told things that repair may have forgotten.
#[test]
fn hints_that_are_too_old_are_dropped_and_counted() {
    let world = world(3, &[]);
    world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        for number in 1..=3 {
            assert_eq!(hints.keep(2, record(number, 100)).await, Kept::Synced);
        }
        hints.expire(2, rt::wall_ms() + HOUR_MS / 2).await;
        assert_eq!(hints.backlog()[&2].hints, 3, "they may still be handed on");
        rt::sleep(Duration::from_millis(HOUR_MS / 2)).await;
        assert_eq!(hints.keep(2, record(4, 100)).await, Kept::Synced);
        rt::sleep(Duration::from_millis(HOUR_MS / 2)).await;
        // The first three are too old, the fourth is not.
        assert_eq!(take_all(&hints, 2).await, [4]);
        assert_eq!(hints.stats().expired, 3);
        assert_eq!(hints.keep(3, record(5, 100)).await, Kept::Synced);
        rt::sleep(Duration::from_millis(HOUR_MS)).await;
        hints.expire(3, rt::wall_ms()).await;
        assert_eq!(hints.stats().expired, 4);
        assert_eq!(hints.backlog(), BTreeMap::new());
    });
}

/// Else what a failed disk left behind would keep all hints behind it for as long as their node is
/// away, and the room that they take.
#[test]
fn an_empty_file_keeps_no_hints_from_growing_too_old() {
    let world = world(4, &[]);
    let handle = world.handle();
    world.run_on(NODE, async move {
        let hints = open(0, 1, limits()).await;
        let disk = handle.disk(NODE);
        disk.change_faults(|faults| faults.eio_write = 1.0);
        assert_ne!(hints.keep(2, record(1, 100)).await, Kept::Synced);
        disk.change_faults(|faults| faults.eio_write = 0.0);
        assert_eq!(hints.keep(2, record(2, 100)).await, Kept::Synced);
        rt::sleep(Duration::from_millis(HOUR_MS)).await;
        hints.expire(2, rt::wall_ms()).await;
        assert_eq!(hints.stats().expired, 1);
        assert_eq!(hints.backlog(), BTreeMap::new());
    });
}

/// Else a full disk, or one that fails, would turn into acknowledged hints that are nowhere.
#[test]
fn a_disk_that_is_full_or_fails_refuses_hints_and_loses_none() {
    for seed in 0..40 {
        let world = world(seed, &[]);
        let disk = world.disk(NODE);
        let handle = world.handle();
        let owed = world.run_on(NODE, async move {
            let hints = open(0, 1, limits()).await;
            let mut chance = fastrand::Rng::with_seed(seed);
            let (mut owed, mut uncertain) = (Vec::new(), 0);
            for number in 1..60 {
                let disk = handle.disk(NODE);
                match chance.u8(..10) {
                    0 => disk.leave_free(chance.u64(..50_000)),
                    1 => disk.change_faults(|faults| faults.capacity_bytes = u64::MAX),
                    2 => disk
                        .change_faults(|faults| (faults.eio_write, faults.eio_sync) = (0.3, 0.3)),
                    3 => disk
                        .change_faults(|faults| (faults.eio_write, faults.eio_sync) = (0.0, 0.0)),
                    _ => {}
                }
                match hints.keep(2, record(number, chance.usize(..5_000))).await {
                    Kept::Synced => owed.push(number),
                    Kept::Uncertain => uncertain += 1,
                    Kept::Refused => {}
                }
            }
            assert!(!owed.is_empty() && hints.stats().kept == owed.len() as u64);
            (owed, uncertain)
        });
        disk.change_faults(|faults| {
            (faults.eio_write, faults.eio_sync) = (0.0, 0.0);
            faults.capacity_bytes = u64::MAX;
        });
        let (owed, uncertain) = owed;
        let found = world.run_on(NODE, async {
            let hints = open(0, 1, limits()).await;
            assert_eq!(hints.keep(2, record(1_000, 10)).await, Kept::Synced);
            take_all(&hints, 2).await
        });
        let is_found = |number: &u64| found.contains(number);
        assert!(owed.iter().all(is_found), "seed {seed}: one is lost");
        assert!(
            found.len() <= owed.len() + uncertain + 1,
            "seed {seed}: one that was refused has come back"
        );
    }
}

/// Else a start with another number of cores would lose hints, or hand each on twice.
#[test]
fn with_another_number_of_cores_each_hint_is_some_cores() {
    let world = world(5, &[]);
    for cores in [2, 1, 3, 7] {
        world.run_on(NODE, async {
            for core in 0..5 {
                let hints = open(core, 5, limits()).await;
                let number = u64::from(core) + 1;
                assert_eq!(hints.keep(2, record(number, 10)).await, Kept::Synced);
            }
        });
        let mut found = world.run_on(NODE, async move {
            let mut found = Vec::new();
            for core in 0..cores {
                let hints = open(core, cores, limits()).await;
                found.extend(take_all(&hints, 2).await);
            }
            found
        });
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4, 5], "with {cores} cores");
    }
}

/// Else a bit that flips would lose all hints behind it, or nobody would know.
#[test]
fn damage_is_told_and_costs_no_more_than_its_batch() {
    let world = world(6, &[]);
    world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        for number in 1..=3 {
            assert_eq!(hints.keep(2, record(number, 5_000)).await, Kept::Synced);
        }
    });
    let disk = world.disk(NODE);
    let files = disk.files();
    let mut files = files.iter().filter(|path| path.starts_with("/data/hints"));
    let path = files.next().expect("there is one file");
    let check = || {
        world.run_on(NODE, async {
            // Something that makes the directory a node's.
            rt::create_dir_all(Path::new("/data/core-000"))
                .await
                .expect("a sound disk");
            let mut told = Vec::new();
            let ring = |_: u16| -> check::Owner { Box::new(|_| CoreId(0)) };
            let mut tell = |what| {
                if let Told::Damage(place) = what
                    && place.file.starts_with("/data/hints")
                {
                    told.push(place.offset);
                }
            };
            let summary = check::check(Path::new(DIR), &ring, &mut tell).await;
            (summary.expect("it can be checked").hints, told)
        })
    };
    assert_eq!(check(), (3, vec![]));
    let second = format::FIRST_BATCH + 2 * BLOCK_BYTES as u64;
    assert!(disk.flip_bit(path, second + 4_500, 3));
    assert_eq!(check(), (2, vec![second]));
    let (found, stats) = world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        let found = take_all(&hints, 2).await;
        (found, hints.stats())
    });
    assert_eq!((found, stats.damaged), (vec![1, 3], 1));
}

/// Else a file that was damaged in its head would be taken for one that was never begun, and vanish
/// with its hints.
#[test]
fn a_damaged_header_is_told_and_an_unwritten_one_is_none() {
    let world = world(7, &[]);
    world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        assert_eq!(hints.keep(2, record(1, 50)).await, Kept::Synced);
    });
    let disk = world.disk(NODE);
    let files = disk.files();
    let mut files = files.iter().filter(|path| path.starts_with("/data/hints"));
    let path = files.next().expect("there is one file");
    assert!(disk.flip_bit(path, 20, 1));
    let unwritten = Path::new("/data/hints/node-00003.core-000.00000077");
    disk.put(unwritten, &[0; 2 * BLOCK_BYTES]);
    let stats = world.run_on(NODE, async {
        let hints = open(0, 1, limits()).await;
        for node in [2, 3] {
            assert_eq!(take_all(&hints, node).await, [0_u64; 0]);
        }
        // A file that comes now does not take an old one's name.
        assert_eq!(hints.keep(2, record(2, 50)).await, Kept::Synced);
        hints.stats()
    });
    assert_eq!(stats.damaged, 1);
    assert!(disk.files().contains(path), "it is left to be looked at");
    assert!(!disk.files().iter().any(|path| path == unwritten));
}
