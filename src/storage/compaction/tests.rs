//! Plans by their effect on a growing store; merges against a map that does the same naively.

use std::collections::BTreeMap;

use super::*;
use crate::error::Error;
use crate::storage::merge::supersedes;
use crate::storage::sstable::KeyBuf;
use crate::storage::sstable::tests::{NODE, dir, item, meta, on, read_all, sorted, world, write};
use crate::types::Position;

fn info(id: u64, bytes: u64) -> TableInfo {
    let key = |key: u32| KeyBuf {
        position: Position(key),
        key: Vec::new(),
    };
    TableInfo {
        id: TableId(id),
        run: TableId(id),
        level: 0,
        bytes,
        records: 1,
        tombstones: 0,
        first_key: key(0),
        last_key: key(u32::MAX),
        version_max: Version::ZERO,
        half_expired_at: 0,
    }
}

fn tables(sizes: &[u64]) -> Vec<TableInfo> {
    sizes
        .iter()
        .zip(1..)
        .map(|(&bytes, id)| info(id, bytes))
        .collect()
}

fn merge_of(inputs: Range<usize>, drop_tombstones: bool) -> Plan {
    Plan::Merge {
        inputs,
        drop_tombstones,
    }
}

#[test]
fn similar_neighbours_are_merged_once_they_are_many() {
    let plan = |sizes: &[u64]| plan(&tables(sizes), 0);
    assert_eq!(plan(&[]), Plan::Idle);
    assert_eq!(plan(&[9]), Plan::Idle);
    assert_eq!(plan(&[10, 10, 10]), Plan::Idle, "too few");
    assert_eq!(
        plan(&[10, 11, 9, 10]),
        merge_of(0..4, true),
        "all of them: tombstones may go"
    );
    assert_eq!(
        plan(&[99, 10, 11, 9, 10]),
        merge_of(1..5, false),
        "an older one may hold the key"
    );
    assert_eq!(
        plan(&[10, 11, 9, 10, 99]),
        merge_of(0..5, true),
        "small ones behind a big one"
    );
    assert_eq!(
        plan(&[800, 400, 100, 40, 10, 1]),
        Plan::Idle,
        "each at least twice the next"
    );
    assert_eq!(
        plan(&[90, 90, 90, 90, 20, 20]),
        merge_of(0..4, true),
        "not only the newest"
    );
}

#[test]
fn tables_of_one_run_count_as_one_and_are_merged_together() {
    let mut tables = tables(&[50, 50, 50, 50, 10, 10, 10]);
    tables[..4]
        .iter_mut()
        .for_each(|table| table.run = TableId(1));
    assert_eq!(
        plan(&tables, 0),
        Plan::Idle,
        "a run of four tables is merged again and again"
    );
    tables.push(info(8, 150));
    assert_eq!(
        plan(&tables, 0),
        merge_of(0..8, true),
        "a run is taken whole"
    );
}

#[test]
fn a_run_is_rewritten_when_half_of_it_has_expired() {
    let mut tables = tables(&[800, 100, 10]);
    tables[1].half_expired_at = 1000;
    assert_eq!(plan(&tables, 999), Plan::Idle, "too early");
    assert_eq!(plan(&tables, 1000), merge_of(1..2, false));
    tables[0].half_expired_at = 500;
    assert_eq!(
        plan(&tables, 1000),
        merge_of(0..1, true),
        "the oldest first"
    );
}

#[test]
fn runs_stay_few_and_bytes_are_written_a_few_times_only() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut live, mut next) = (Vec::<TableInfo>::new(), 1);
        let (mut flushed, mut merged) = (0u64, 0u64);
        for _ in 0..2000 {
            let bytes = if seed == 0 { 64 } else { random.u64(1..200) };
            live.push(info(next, bytes));
            (flushed, next) = (flushed + bytes, next + 1);
            while let Plan::Merge {
                inputs,
                drop_tombstones,
            } = plan(&live, 0)
            {
                assert_eq!(drop_tombstones, inputs.start == 0);
                // Overwritten records go: anything from a tenth to all of it lives on.
                let total: u64 = live[inputs.clone()].iter().map(|table| table.bytes).sum();
                let kept = if seed < 10 {
                    total
                } else {
                    (total * random.u64(1..=10) / 10).max(1)
                };
                merged += kept;
                live.splice(inputs, [info(next, kept)]);
                next += 1;
            }
            let total: u64 = live.iter().map(|table| table.bytes).sum();
            let runs_max = 3 * (total.ilog2() as usize + 2);
            assert!(
                live.len() <= runs_max,
                "seed {seed}: {} runs of {total}",
                live.len()
            );
        }
        let amplification = merged as f64 / flushed as f64;
        assert!(
            amplification < 8.0,
            "seed {seed}: written {amplification} times"
        );
    }
}

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

/// What a merge must write, said as plainly as possible.
fn naive(tables: &[Vec<Item>], rules: &Rules) -> Vec<Item> {
    let mut out = Vec::new();
    for item in newest_of(tables).into_values() {
        let meta = item.record.meta();
        let expired = !meta.tombstone && meta.expiry != 0 && meta.expiry <= rules.now;
        if meta.version <= rules.cleared || (rules.drop_tombstones && (meta.tombstone || expired)) {
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
    let mut open = Vec::new();
    for (table, id) in tables.iter().zip(1..) {
        let info = write(id, table).await.expect("a sound disk");
        open.push(Rc::new(
            Table::open(&dir(), &info).await.expect("undamaged"),
        ));
    }
    open
}

async fn merge_and_read(job: Job) -> (Vec<TableInfo>, Vec<Item>) {
    let mut id = 100;
    let next_id = || {
        id += 1;
        TableId(id)
    };
    let outputs = run(&job, next_id, &mut Garbage::default())
        .await
        .expect("a sound disk");
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
                drop_tombstones: start == 0,
                cleared,
                now: NOW,
            };
            let table_bytes_max = [1, 5_000, u64::MAX][random.usize(0..3)];
            let before = visible(&tables, cleared);
            let inputs = open_all(&tables).await[start..end].to_vec();
            let expected = naive(&tables[start..end], &rules);
            let job = Job {
                dir: dir(),
                inputs,
                rules,
                table_bytes_max,
            };
            let (outputs, merged) = merge_and_read(job).await;
            assert_eq!(merged, expected, "seed {seed}");
            for (index, output) in outputs.iter().enumerate() {
                assert_eq!(output.run, outputs[0].id, "seed {seed}: not one run");
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
            drop_tombstones: false,
            cleared,
            now: NOW,
        };
        let job = Job {
            dir: dir(),
            inputs,
            rules,
            table_bytes_max: u64::MAX,
        };
        assert_eq!(merge_and_read(job).await, (Vec::new(), Vec::new()));
        assert_eq!(
            handle.disk(NODE).files().len(),
            2,
            "only the inputs are there"
        );
    });
}

/// Inputs of a few MB with keys in turn, so that a merge reads and writes for a while.
async fn big_job() -> Job {
    let table = |first: u32| {
        let keys = (first..600).step_by(2);
        sorted(
            keys.map(|key| item(&key.to_le_bytes(), &[7; 4000], meta(1)))
                .collect(),
        )
    };
    let inputs = open_all(&[table(0), table(1)]).await;
    let rules = Rules {
        drop_tombstones: true,
        cleared: Version::ZERO,
        now: NOW,
    };
    Job {
        dir: dir(),
        inputs,
        rules,
        table_bytes_max: 300_000,
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
            let failure = run(&job, &mut next_id, &mut Garbage::default())
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
        let path = job.inputs[1].info().path(&dir());
        for byte in [0, 100_000, 1_100_000] {
            assert!(disk.flip_bit(&path, byte, 3));
            let mut garbage = Garbage::default();
            let mut id = 50;
            let failure = run(
                &job,
                || {
                    id += 1;
                    TableId(id)
                },
                &mut garbage,
            );
            match failure.await.expect_err("a flipped bit") {
                Error::Corrupt { file, .. } => assert_eq!(file, path),
                other => panic!("{other}"),
            }
            assert_eq!(disk.files().len(), 2, "an output was left behind");
            assert!(disk.flip_bit(&path, byte, 3));
        }
    });
}
