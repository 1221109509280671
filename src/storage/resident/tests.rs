//! The choice by itself, and a store whose filters and indexes do not fit.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{Compression, Durability};
use crate::rt::sim::{NodeId, Options, World};
use crate::storage::compaction::{Shape, Style};
use crate::storage::record::{KeyRef, Meta, Record};
use crate::storage::wal::WalLimits;
use crate::storage::{Batch, StoreOptions, Want};
use crate::types::{CoreId, Version};

fn random_candidates(random: &mut fastrand::Rng) -> Vec<Candidate> {
    let count = random.usize(..60);
    let candidate = |_| Candidate {
        newer_runs: random.usize(..5),
        is_resident: random.bool(),
        bytes: random.u64(1..1000),
    };
    (0..count).map(candidate).collect()
}

#[test]
fn what_is_chosen_fits_and_nobody_is_left_out_for_less() {
    for seed in 0..2000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let tables = random_candidates(&mut random);
        let memory = random.u64(..30_000);
        let chosen = choose(&tables, memory);
        let taken = |is_in: &dyn Fn(usize) -> bool| {
            let bytes = (0..tables.len()).filter(|&at| is_in(at));
            bytes.map(|at| tables[at].bytes).sum::<u64>()
        };
        let all = taken(&|at| chosen[at]);
        assert!(all <= memory, "seed {seed}: too much");
        for out in (0..tables.len()).filter(|&at| !chosen[at]) {
            assert!(
                all + tables[out].bytes > memory,
                "seed {seed}: room is left"
            );
            // Those before it in turn leave no room for it.
            let turn = |at: usize| {
                (
                    tables[at].newer_runs,
                    !tables[at].is_resident,
                    tables[at].bytes,
                )
            };
            let before = taken(&|at| chosen[at] && turn(at) <= turn(out));
            let larger = before + tables[out].bytes;
            assert!(
                larger > memory,
                "seed {seed}: {:?} had its turn",
                tables[out]
            );
        }
    }
}

#[test]
fn young_runs_come_first_and_a_choice_that_was_made_rests() {
    let table = |newer_runs, is_resident, bytes| Candidate {
        newer_runs,
        is_resident,
        bytes,
    };
    let tables = [
        table(2, true, 40),
        table(2, true, 30),
        table(2, false, 10),
        table(1, false, 50),
        table(0, false, 20),
    ];
    assert_eq!(choose(&tables, 150), [true; 5]);
    assert_eq!(choose(&tables, 149), [true, true, false, true, true]);
    assert_eq!(choose(&tables, 110), [false, true, true, true, true]);
    assert_eq!(choose(&tables, 60), [false, true, true, false, true]);
    assert_eq!(choose(&tables, 0), [false; 5]);
    // Chosen once, nothing is changed any more.
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tables = random_candidates(&mut random);
        let memory = random.u64(..30_000);
        let chosen = choose(&tables, memory);
        let resident = tables.iter_mut().zip(&chosen);
        resident.for_each(|(table, chosen)| table.is_resident = *chosen);
        assert_eq!(
            choose(&tables, memory),
            chosen,
            "seed {seed}: it does not rest"
        );
    }
}

const KEYS: u64 = 100_000;
const INDEX_BYTES_MAX: u64 = 48 << 10;

fn options(style: Style) -> StoreOptions {
    StoreOptions {
        core: CoreId(0),
        cores: 1,
        durability: Durability::None,
        memtable_bytes: 256 << 10,
        wal_bytes_max: 1 << 30,
        wal: WalLimits {
            segment_bytes: 1 << 20,
            batch_bytes_max: 1 << 20,
        },
        memory_bytes: 2 << 20,
        index_bytes_max: INDEX_BYTES_MAX,
        compaction: Shape {
            style,
            table_bytes: 400 << 10,
            base_bytes: 800 << 10,
            ratio: 4,
        },
        compression: Compression::None,
        value_bytes_min: usize::MAX,
        value_compression: Compression::None,
        value_segment_bytes: 1 << 20,
        value_replay_bytes_max: 1 << 30,
        value_garbage_percent_max: 25,
    }
}

async fn open(options: StoreOptions) -> Rc<Store> {
    let opened = Store::open(Path::new("/data/core-000"), options).await;
    opened.expect("a sound disk").store
}

fn key(number: u64) -> [u8; 8] {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn meta(clock: u64) -> Meta {
    Meta {
        version: Version {
            clock,
            coordinator: 1,
        },
        expiry: 0,
        tombstone: false,
    }
}

async fn write(store: &Store, clock: u64, key: &[u8], meta: Meta) {
    let value: &[u8] = if meta.tombstone { b"" } else { &[7; 30] };
    let record = Record::new(meta, key, value);
    let batch = Batch {
        clear: None,
        records: vec![(KeyRef::of(key).position, record)],
    };
    store.wait_admitted(&batch).await.expect("a sound disk");
    store.write_batch(batch);
    let sizes = store.sizes();
    let index = sizes.index_bytes;
    assert!(
        index <= INDEX_BYTES_MAX,
        "write {clock}: {index} bytes of indexes"
    );
}

/// Asks for every key of some, and sees what each costs; gives the reads of all.
async fn find(store: &Store, numbers: impl Iterator<Item = u64>, is_there: bool) -> (u64, u64) {
    let (mut asked, mut all) = (0, 0);
    for number in numbers {
        let key = key(number);
        let (before, at) = (store.sizes(), rt::now());
        let found = store.get(&KeyRef::of(&key), Want::Stored).await;
        let found = found.expect("a sound disk");
        assert_eq!(found.is_some(), is_there, "key {number}");
        let reads = (rt::now() - at).as_micros() as u64 / 1000;
        let after = store.sizes().partitions;
        let partitions =
            after.reads + after.hits - before.partitions.reads - before.partitions.hits;
        let by_need = before.tables_by_need.min(before.table_runs);
        assert!(
            partitions <= by_need,
            "key {number}: {partitions} partitions of {by_need} tables"
        );
        let fetched = after.reads - before.partitions.reads;
        assert!(reads >= fetched, "reads are not counted");
        asked += 1;
        all += reads - fetched;
    }
    (asked, all)
}

fn check_store(style: Style) {
    let mut world = Options::calm(1);
    world.disk.latency_us = (1000, 1000);
    World::new(world).run_on(NodeId(1), async move {
        let store = open(options(style)).await;
        for number in 0..KEYS {
            write(&store, number, &key(number), meta(number + 1)).await;
        }
        rt::sleep(Duration::from_secs(30)).await;
        let sizes = store.sizes();
        println!(
            "{style:?}: {} of {} tables by need; {} bytes of indexes, {} may be; caches have {}",
            sizes.tables_by_need,
            sizes.tables,
            sizes.index_bytes,
            INDEX_BYTES_MAX,
            sizes.blocks.budget + sizes.rows.budget + sizes.pointers.budget
        );
        assert!(sizes.tables_by_need > 0, "all fits: nothing is tested");
        assert!(sizes.index_bytes * 2 > INDEX_BYTES_MAX, "much room is left");
        let caches = sizes.blocks.budget + sizes.rows.budget + sizes.pointers.budget;
        let memtables = MEMTABLES_MAX * (256 << 10);
        assert!(
            caches + sizes.index_bytes + memtables <= 2 << 20,
            "over the budget"
        );
        let (asked, blocks) = find(&store, (0..KEYS).step_by(37), true).await;
        assert!(
            blocks <= asked * 105 / 100,
            "{blocks} blocks for {asked} keys"
        );
        let (asked, blocks) = find(&store, KEYS..KEYS + 3000, false).await;
        assert!(
            blocks <= asked * sizes.table_runs * 2 / 100,
            "{blocks} for {asked} strangers"
        );
        store.stop().await.expect("a sound disk");
        let store = open(options(style)).await;
        let again = store.sizes();
        assert!(again.index_bytes <= INDEX_BYTES_MAX && again.tables_by_need > 0);
        assert!(
            again.index_bytes * 2 > INDEX_BYTES_MAX,
            "much room is left at a start"
        );
        find(&store, (0..KEYS).step_by(997), true).await;
        let batch = Batch {
            clear: Some(Version {
                clock: KEYS + 1,
                coordinator: 1,
            }),
            records: Vec::new(),
        };
        store.wait_admitted(&batch).await.expect("a sound disk");
        store.write_batch(batch);
        assert_eq!(store.sizes().index_bytes, 0, "what was cleared is kept");
        find(&store, (0..KEYS).step_by(997), false).await;
        store.stop().await.expect("a sound disk");
    });
}

#[test]
fn indexes_stay_within_their_share_and_a_lookup_costs_one_read_more_for_each_table() {
    check_store(Style::Leveled);
}

#[test]
fn runs_of_one_level_are_chosen_by_their_age() {
    check_store(Style::SizeTiered);
}

#[test]
fn deletes_of_keys_that_no_table_has_leave_nothing_though_filters_are_on_disk() {
    World::new(Options::calm(2)).run_on(NodeId(1), async {
        let none = StoreOptions {
            index_bytes_max: 0,
            ..options(Style::Leveled)
        };
        let store = open(none).await;
        let tombstone = |clock| Meta {
            tombstone: true,
            ..meta(clock)
        };
        let put = async |number: u64, meta: Meta| {
            let record = Record::new(
                meta,
                &key(number),
                if meta.tombstone { b"" } else { b"value" },
            );
            let batch = Batch {
                clear: None,
                records: vec![(KeyRef::of(record.key()).position, record)],
            };
            store.wait_admitted(&batch).await.expect("a sound disk");
            store.write_batch(batch);
        };
        for number in 0..10_000 {
            put(number, meta(number + 1)).await;
        }
        rt::sleep(Duration::from_secs(30)).await;
        let before = store.sizes();
        assert!(before.tables_by_need == before.tables && before.tables > 0);
        for number in 10_000..20_000 {
            put(number, tombstone(number + 1)).await;
        }
        // Expired from the start: the sweep takes them.
        for number in 20_000..21_000 {
            let expired = Meta {
                expiry: 1,
                ..meta(number + 1)
            };
            put(number, expired).await;
        }
        let (mut from, mut rounds) = (crate::types::Position(0), 0);
        while rounds == 0 || from != crate::types::Position(0) {
            from = store.sweep_expired(from, rt::wall_ms(), 500).await;
            rounds += 1;
        }
        let swept = store.stats().expired;
        store.stop().await.expect("a sound disk");
        let records = store.sizes().records;
        println!("{swept} of 1000 swept; {records} records of 10000");
        // Others were in a memtable that was flushed before.
        assert!(swept > 300, "{swept} of 1000 were swept");
        assert!(
            records < 10_500,
            "{records} records: tombstones that hide nothing"
        );
    });
}
