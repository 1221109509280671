//! Merges against a map that does the same naively, and without space, and over damage.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::config::Compression;
use crate::error::Error;
use crate::storage::cache::Caches;
use crate::storage::compaction::job::{Job, Merged, Rules, run};
use crate::storage::levels::Levels;
use crate::storage::merge::{Bound, Item, supersedes};
use crate::storage::record::{Meta, Pointer, Record};
use crate::storage::sstable::tests::{
    MODES, NODE, dir, item, meta, noise, on, open, read_all, sorted, world, write,
};
use crate::storage::sstable::{Table, TableId, TableInfo};
use crate::storage::vlog::Garbage;
use crate::storage::wal::format::{SegmentId, Stream};
use crate::types::{Position, UnixMillis, Version};

const NOW: UnixMillis = 1_000_000;

/// Tables from the oldest to the newest, as a store would write them: versions rise with age, but
/// for a few records that are there twice, as a log that is replayed makes them.
fn random_tables(random: &mut fastrand::Rng) -> Vec<Vec<Item>> {
    let mut clock = 0;
    let mut written: Vec<Item> = Vec::new();
    let count = random.usize(1..7);
    let table = |_| {
        let mut newest: BTreeMap<Vec<u8>, Item> = BTreeMap::new();
        for _ in 0..random.usize(1..300) {
            clock += 1;
            let key = format!("key {}", random.u32(0..400)).into_bytes();
            let tombstone = random.u8(0..4) == 0;
            let expiry = if random.bool() {
                0
            } else {
                random.u64(1..2 * NOW)
            };
            let value = vec![random.u8(..); if tombstone { 0 } else { random.usize(0..300) }];
            let fresh = item(
                &key,
                &value,
                Meta {
                    tombstone,
                    expiry,
                    ..meta(clock)
                },
            );
            newest.insert(key, fresh.clone());
            written.push(fresh);
        }
        if random.u8(0..4) == 0 {
            let again = written[random.usize(0..written.len())].clone();
            newest.entry(again.record.key().to_vec()).or_insert(again);
        }
        sorted(newest.into_values().collect())
    };
    (0..count).map(table).collect()
}

/// The newest record of each key.
fn newest_of(tables: &[Vec<Item>]) -> BTreeMap<(Position, Vec<u8>), Item> {
    let mut newest: BTreeMap<(Position, Vec<u8>), Item> = BTreeMap::new();
    for item in tables.iter().flatten() {
        let order = (item.position, item.record.key().to_vec());
        let old = newest.get(&order);
        if old.is_none_or(|old| supersedes(&item.record, &old.record)) {
            newest.insert(order, item.clone());
        }
    }
    newest
}

/// What a merge of `tables` above `below` must write, said as plainly as possible.
fn naive(tables: &[Vec<Item>], below: &[Vec<Item>], rules: &Rules) -> Vec<Item> {
    let mut out = Vec::new();
    let hidden = newest_of(below);
    for item in newest_of(tables).into_values() {
        let order = (item.position, item.record.key().to_vec());
        let hides = hidden.contains_key(&order);
        let meta = item.record.meta();
        let expired = !meta.tombstone && meta.expiry != 0 && meta.expiry <= rules.now;
        if meta.version <= rules.cleared || (!hides && (meta.tombstone || expired)) {
            continue;
        }
        if expired {
            let grave = Meta {
                tombstone: true,
                expiry: 0,
                version: meta.version,
            };
            let record = Record::new(grave, item.record.key(), b"");
            out.push(Item {
                position: item.position,
                record,
            });
        } else {
            out.push(item);
        }
    }
    out
}

/// What clients can see, and with which version.
fn visible(tables: &[Vec<Item>], cleared: Version) -> Vec<Item> {
    let mut newest: Vec<Item> = newest_of(tables).into_values().collect();
    newest.retain(|item| item.record.meta().version > cleared && item.record.view().is_live(NOW));
    newest
}

async fn open_all(tables: &[Vec<Item>]) -> Vec<Rc<Table>> {
    let mut all = Vec::new();
    for (table, id) in tables.iter().zip(1..) {
        let info = write(id, table).await.expect("a sound disk");
        // Every other two have their partitions on disk.
        let mode = MODES[id as usize / 2 % 2];
        all.push(Rc::new(open(&info, mode).await.expect("undamaged")));
    }
    all
}

fn at_once(_: usize) -> Duration {
    Duration::ZERO
}

async fn merge_and_read(job: Job) -> (Vec<TableInfo>, Vec<Item>) {
    let mut id = 100;
    let next_id = || {
        id += 1;
        TableId(id)
    };
    let merged = run(&job, next_id, at_once).await.expect("a sound disk");
    let Merged {
        tables: outputs, ..
    } = merged;
    let mut all = Vec::new();
    for info in &outputs {
        let table = Table::open(&job.dir, info).await.expect("undamaged");
        all.extend(
            read_all(Rc::new(table), Bound::START)
                .await
                .expect("undamaged"),
        );
    }
    (outputs, all)
}

#[test]
fn a_merge_writes_what_a_naive_one_would_and_clients_see_no_difference() {
    for seed in 0..150 {
        let world = world(seed, &[]);
        on(&world, async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut tables = random_tables(&mut random);
            let start = random.usize(0..tables.len());
            let end = random.usize(start + 1..=tables.len());
            let cleared = if random.bool() { 0 } else { random.u64(0..300) };
            let cleared = Version {
                clock: cleared,
                coordinator: 5,
            };
            let rules = Rules {
                cleared,
                now: NOW,
                keeps_deleted: false,
            };
            let table_bytes_max = [1, 5_000, u64::MAX][random.usize(0..3)];
            let before = visible(&tables, cleared);
            let open = open_all(&tables).await;
            let expected = naive(&tables[start..end], &tables[..start], &rules);
            let job = Job {
                dir: dir(),
                inputs: Levels::new(open[start..end].to_vec()),
                below: Levels::new(open[..start].to_vec()),
                level: random.u8(0..4),
                rules,
                table_bytes_max,
                compression: Compression::Lz4,
                caches: Rc::new(Caches::new(0)),
            };
            let level = job.level;
            let (outputs, merged) = merge_and_read(job).await;
            // A filter may take a stranger for one of its own: then a tombstone stays for once.
            let strange = |item: &Item| item.record.meta().tombstone && !expected.contains(item);
            let strangers = merged.iter().filter(|item| strange(item)).count();
            assert!(
                strangers <= 3 + merged.len() / 20,
                "seed {seed}: {strangers} tombstones stay"
            );
            let expected_too: Vec<Item> = merged
                .iter()
                .filter(|item| !strange(item))
                .cloned()
                .collect();
            assert_eq!(expected_too, expected, "seed {seed}");
            for (index, output) in outputs.iter().enumerate() {
                assert_eq!(output.run, outputs[0].id, "seed {seed}: not one run");
                assert_eq!(output.level, level, "seed {seed}: not where it was planned");
                let later = outputs.get(index + 1);
                assert!(
                    later.is_none_or(|later| output.last_key < later.first_key),
                    "{seed}"
                );
            }
            assert!(
                table_bytes_max > 1 || outputs.len() >= merged.len().min(2),
                "seed {seed}"
            );
            tables.splice(start..end, [merged]);
            assert_eq!(
                visible(&tables, cleared),
                before,
                "seed {seed}: something came back"
            );
        });
    }
}

/// The record of `table`, as one that lies in the value log: each at a place of its own.
fn pointing(item: &Item, place: &mut u32) -> Item {
    if item.record.meta().tombstone {
        return item.clone();
    }
    *place += 1;
    let pointer = Pointer {
        stream: Stream::Values,
        segment: SegmentId(u64::from(*place)),
        offset: 4096,
        length: item.record.bytes().len() as u32,
        crc: 0,
        value_length: item.record.view().value_length(),
    };
    Item {
        record: Record::pointing(item.record.view(), pointer),
        ..item.clone()
    }
}

#[test]
fn what_a_merge_gives_up_of_the_value_log_is_what_it_reads_and_does_not_write() {
    for seed in 0..60 {
        let world = world(seed, &[]);
        on(&world, async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut place = 0;
            let mut tables = random_tables(&mut random);
            for item in tables.iter_mut().flatten() {
                *item = pointing(item, &mut place);
            }
            let cleared = Version {
                clock: random.u64(0..300),
                coordinator: 5,
            };
            let start = random.usize(0..tables.len());
            let open = open_all(&tables).await;
            let job = Job {
                dir: dir(),
                inputs: Levels::new(open[start..].to_vec()),
                below: Levels::new(open[..start].to_vec()),
                level: 1,
                rules: Rules {
                    cleared,
                    now: NOW,
                    keeps_deleted: false,
                },
                table_bytes_max: 5_000,
                compression: Compression::Lz4,
                caches: Rc::new(Caches::new(0)),
            };
            let mut id = 100;
            let next_id = || {
                id += 1;
                TableId(id)
            };
            let merged = run(&job, next_id, at_once).await.expect("a sound disk");
            let mut expected = Garbage::default();
            let mut kept = Vec::new();
            for info in &merged.tables {
                let table = Table::open(&job.dir, info).await.expect("undamaged");
                kept.extend(read_all(Rc::new(table), Bound::START).await.expect("whole"));
            }
            let kept: Vec<Pointer> = kept.iter().filter_map(|it| it.record.pointer()).collect();
            for item in tables[start..].iter().flatten() {
                match item.record.pointer() {
                    Some(place) if !kept.contains(&place) => expected.add(place),
                    _ => {}
                }
            }
            assert_eq!(merged.garbage, expected, "seed {seed}");
        });
    }
}

#[test]
fn of_one_version_at_two_places_a_merge_keeps_the_newer_one() {
    let world = world(4, &[]);
    on(&world, async move {
        let mut place = 0;
        let whole = item(b"k", b"value", meta(5));
        let (old, moved) = (pointing(&whole, &mut place), pointing(&whole, &mut place));
        let open = open_all(&[vec![old.clone()], vec![moved.clone()]]).await;
        let rules = Rules {
            cleared: Version::ZERO,
            now: NOW,
            keeps_deleted: false,
        };
        let job = Job {
            dir: dir(),
            inputs: Levels::new(open),
            below: Levels::default(),
            level: 1,
            rules,
            table_bytes_max: u64::MAX,
            compression: Compression::Lz4,
            caches: Rc::new(Caches::new(0)),
        };
        let merged = run(&job, || TableId(9), at_once).await.expect("a disk");
        let mut garbage = Garbage::default();
        garbage.add(old.record.pointer().expect("a pointer"));
        assert_eq!(merged.garbage, garbage, "the wrong place was given up");
        let (_, all) = merge_and_read(job).await;
        assert_eq!(all, [moved], "a collected value was pointed to again");
    });
}

#[test]
fn a_merge_of_what_is_dead_writes_nothing() {
    let world = world(1, &[]);
    let handle = world.handle();
    on(&world, async move {
        let tables = [
            vec![item(b"k", b"v", meta(5))],
            vec![item(b"k", b"w", meta(6))],
        ];
        let inputs = open_all(&tables).await;
        let cleared = Version {
            clock: 7,
            coordinator: 0,
        };
        let rules = Rules {
            cleared,
            now: NOW,
            keeps_deleted: false,
        };
        let job = Job {
            dir: dir(),
            inputs: Levels::new(inputs),
            below: Levels::default(),
            level: 0,
            rules,
            table_bytes_max: u64::MAX,
            compression: Compression::Lz4,
            caches: Rc::new(Caches::new(0)),
        };
        assert_eq!(merge_and_read(job).await, (Vec::new(), Vec::new()));
        assert_eq!(
            handle.disk(NODE).files().len(),
            2,
            "only the inputs are there"
        );
    });
}

/// Else a replica that was away and comes back would bring back what was deleted or has expired.
#[test]
fn what_is_deleted_stays_a_tombstone_while_a_replica_may_not_know() {
    for keeps_deleted in [true, false] {
        on(&world(1, &[]), async move {
            let deleted = Meta {
                tombstone: true,
                ..meta(5)
            };
            let expired = Meta {
                expiry: NOW,
                ..meta(6)
            };
            let tables = [
                vec![item(b"k", b"", deleted)],
                vec![item(b"l", b"v", expired)],
            ];
            let job = Job {
                dir: dir(),
                inputs: Levels::new(open_all(&tables).await),
                below: Levels::default(),
                level: 0,
                rules: Rules {
                    cleared: Version::ZERO,
                    now: NOW,
                    keeps_deleted,
                },
                table_bytes_max: u64::MAX,
                compression: Compression::Lz4,
                caches: Rc::new(Caches::new(0)),
            };
            let (_, all) = merge_and_read(job).await;
            let metas: Vec<Meta> = all.iter().map(|item| item.record.meta()).collect();
            let kept = [5, 6].map(|clock| Meta {
                tombstone: true,
                ..meta(clock)
            });
            let wanted = if keeps_deleted { &kept[..] } else { &[] };
            // The order is that of the keys' positions.
            assert!(metas.len() == wanted.len() && wanted.iter().all(|one| metas.contains(one)));
        });
    }
}

/// Inputs of a few MB with keys in turn, so that a merge reads and writes for a while.
async fn big_job() -> Job {
    let table = |first: u32| {
        let keys = (first..600).step_by(2);
        sorted(
            keys.map(|key| item(&key.to_le_bytes(), &noise(u64::from(key), 4000), meta(1)))
                .collect(),
        )
    };
    let inputs = open_all(&[table(0), table(1)]).await;
    let rules = Rules {
        cleared: Version::ZERO,
        now: NOW,
        keeps_deleted: false,
    };
    Job {
        dir: dir(),
        inputs: Levels::new(inputs),
        below: Levels::default(),
        level: 0,
        rules,
        table_bytes_max: 300_000,
        compression: Compression::Lz4,
        caches: Rc::new(Caches::new(0)),
    }
}

#[test]
fn a_merge_that_finds_no_space_leaves_nothing_and_can_be_run_again() {
    let world = world(2, &[]);
    let handle = world.handle();
    on(&world, async move {
        let job = big_job().await;
        let disk = handle.disk(NODE);
        let mut id = 50;
        let mut next_id = || {
            id += 1;
            TableId(id)
        };
        for free in [0, 100_000, 1_000_000, 2_000_000] {
            disk.leave_free(free);
            let failure = run(&job, &mut next_id, at_once)
                .await
                .expect_err("no room for 2.4 MB");
            assert!(failure.is_disk_full(), "{failure}");
            assert_eq!(disk.files().len(), 2, "an output was left behind");
        }
        disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
        let (outputs, merged) = merge_and_read(job).await;
        assert!(outputs.len() > 5, "an output was not ended at its size");
        assert_eq!(merged.len(), 600);
    });
}

#[test]
fn a_merge_never_skips_damage() {
    let world = world(3, &[]);
    let handle = world.handle();
    on(&world, async move {
        let job = big_job().await;
        let disk = handle.disk(NODE);
        let damaged = job.inputs.iter().nth(1).expect("two inputs");
        let path = damaged.info().path(&dir());
        for byte in [0, 100_000, 1_100_000] {
            assert!(disk.flip_bit(&path, byte, 3));
            let mut id = 50;
            let next_id = || {
                id += 1;
                TableId(id)
            };
            let failure = run(&job, next_id, at_once);
            match failure.await.expect_err("a flipped bit") {
                Error::Corrupt { file, .. } => assert_eq!(file, path),
                other => panic!("{other}"),
            }
            assert_eq!(disk.files().len(), 2, "an output was left behind");
            assert!(disk.flip_bit(&path, byte, 3));
        }
    });
}
