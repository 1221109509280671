//! The value log with compression, in a simulated world: what is packed, what is not, and that
//! nobody who writes, crashes, collects or changes the setting in between can tell.

#[path = "common/store.rs"]
mod store;

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use quoit::config::Compression;
use quoit::rt;
use quoit::rt::sim::{NodeId, Options, World};
use quoit::storage::record::{KeyRef, Meta, PACKED_VALUE_BYTES_MAX, Record};
use quoit::storage::{Batch, Store, StoreOptions, Want};
use quoit::types::{Position, Version};

const NODE: NodeId = NodeId(1);

fn options(value_compression: Compression) -> StoreOptions {
    StoreOptions {
        value_compression,
        ..store::small()
    }
}

async fn open(compression: Compression) -> Rc<Store> {
    let opened = Store::open(Path::new("/data/core-000"), options(compression)).await;
    opened.expect("no damage").store
}

fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Half of it can be packed away.
fn text(number: u64, length: usize) -> Vec<u8> {
    let mut value = noise(number, length / 2);
    value.resize(length, b't');
    value
}

fn record(clock: u64, key: &str, value: &[u8]) -> (Position, Record) {
    let meta = Meta {
        version: Version {
            clock,
            coordinator: 1,
        },
        expiry: 0,
        tombstone: false,
    };
    let record = Record::new(meta, key.as_bytes(), value);
    (KeyRef::of(key.as_bytes()).position, record)
}

/// Writes all of `records`, which have large values, each alone or all in one batch.
async fn write(store: &Store, records: Vec<(Position, Record)>, together: bool) {
    let chunk = if together { records.len() } else { 1 };
    for records in records.chunks(chunk) {
        let batch = Batch {
            clear: None,
            records: records.to_vec(),
        };
        store.wait_admitted(&batch).await.expect("a sound disk");
        let lsn = store.write_batch(batch);
        store.wait_acknowledged(lsn).await.expect("a sound disk");
    }
}

async fn get(store: &Store, key: &str) -> Option<Vec<u8>> {
    let found = store.get(&KeyRef::of(key.as_bytes()), Want::Value).await;
    let found = found.expect("no damage")?;
    assert!(found.record.pointer().is_none() && !found.record.view().is_packed());
    Some(found.record.view().value().to_vec())
}

/// Else images and archives would take more than they are, or a large value would hold up a core.
#[test]
fn what_cannot_be_packed_or_would_take_too_long_is_stored_as_it_is() {
    for (name, value, is_packed) in [
        ("noise", noise(1, 50_000), false),
        ("text", text(1, 50_000), true),
        ("longest", text(2, PACKED_VALUE_BYTES_MAX), true),
        ("too long", text(3, PACKED_VALUE_BYTES_MAX + 1), false),
    ] {
        for together in [false, true] {
            let world = World::new(Options::calm(1));
            let value = value.clone();
            world.run_on(NODE, async move {
                let store = open(Compression::Lz4).await;
                // Two of them are a batch: they come to the value log when their memtable is
                // flushed.
                let keys = ["one", "two"];
                let records = keys
                    .iter()
                    .zip(1..)
                    .map(|(key, clock)| record(clock, key, &value));
                write(&store, records.collect(), together).await;
                store.stop().await.expect("a sound disk");
                let (stats, sizes) = (store.stats(), store.sizes());
                let (given, stored) = (stats.value_bytes_given, stats.value_bytes_stored);
                let what = format!("{name}, together {together}: {given} as {stored}");
                assert_eq!(given, 2 * value.len() as u64, "{what}");
                match is_packed {
                    true => assert!(stored < given * 6 / 10, "{what}"),
                    false => assert_eq!(stored, given, "{what}"),
                }
                let besides = sizes.values.live - stored;
                assert!(besides < 200, "{what}: {} live", sizes.values.live);
                let store = open(Compression::None).await;
                for key in keys {
                    assert!(get(&store, key).await == Some(value.clone()), "{what}");
                }
            });
        }
    }
}

/// Else a setting could not be taken back, a crash would lose what was packed, or the collector
/// would spend the disk that was saved.
#[test]
fn packed_values_outlive_crashes_and_the_setting_and_move_as_they_are() {
    const COUNT: u64 = 60;
    const BYTES: usize = 20_000;
    let name = |number: u64| format!("key:{number}");
    let world = World::new(Options::calm(2));
    world.run_on(NODE, async move {
        let store = open(Compression::Lz4).await;
        let all = (0..COUNT).map(|number| record(number + 1, &name(number), &text(number, BYTES)));
        write(&store, all.collect(), false).await;
        let stats = store.stats();
        assert!(stats.value_bytes_stored < stats.value_bytes_given * 6 / 10);
    });
    world.crash_node(NODE);
    world.run_on(NODE, async move {
        let store = open(Compression::None).await;
        // Two of three are overwritten: the segments of the others are worth collecting.
        let is_new = |number: &u64| !number.is_multiple_of(3);
        let new = (0..COUNT).filter(is_new);
        let new = new.map(|number| record(number + 100, &name(number), &noise(number, 2_000)));
        write(&store, new.collect(), false).await;
        let began = rt::now();
        while store.stats().collections < 5 {
            assert!(
                rt::now() - began < Duration::from_secs(60),
                "nothing is collected"
            );
            rt::sleep(Duration::from_millis(100)).await;
        }
        store.stop().await.expect("a sound disk");
        let stats = store.stats();
        assert!(
            stats.value_bytes_moved > 5 * BYTES as u64 / 2,
            "nothing has moved"
        );
        assert_eq!(stats.value_bytes_given, stats.value_bytes_stored);
        let (old, new) = (COUNT / 3, COUNT * 2 / 3);
        let unpacked = old * BYTES as u64 + new * 2_000;
        let live = store.sizes().values.live;
        assert!(
            live < unpacked * 7 / 10,
            "{live} bytes of {unpacked}: some were unpacked"
        );
    });
    world.crash_node(NODE);
    world.run_on(NODE, async move {
        let store = open(Compression::Lz4).await;
        for number in 0..COUNT {
            let expected = match number % 3 {
                0 => text(number, BYTES),
                _ => noise(number, 2_000),
            };
            assert!(
                get(&store, &name(number)).await == Some(expected),
                "{number}"
            );
        }
    });
}
