//! Tables in the simulated world: what was added is found, damage is said, failures leave nothing.

mod by_need;

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;

use super::footer::{FOOTER_CRC_AT, FORMAT, MAGIC};
use super::writer::Expiries;
use super::*;
use crate::config::Compression;
use crate::rt::Bug;
use crate::rt::sim::{Handle, NodeId, Options, World};
use crate::storage::cache::Caches;
use crate::storage::merge::{Bound, Item};
use crate::storage::record::Meta;
use crate::types::{Position, UnixMillis, Version};

pub(crate) const NODE: NodeId = NodeId(1);

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data/core-0")
}

/// A calm world whose node has the directory.
pub(crate) fn world(seed: u64, planted: &[Bug]) -> World {
    let mut options = Options::calm(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    on(&world, async {
        rt::create_dir_all(&dir()).await.expect("a sound disk")
    });
    world
}

pub(crate) fn on<T: 'static>(world: &World, main: impl Future<Output = T> + 'static) -> T {
    world.run_on(NODE, main)
}

pub(crate) fn item(key: &[u8], value: &[u8], meta: Meta) -> Item {
    Item {
        position: KeyRef::of(key).position,
        record: Record::new(meta, key, value),
    }
}

pub(crate) fn meta(clock: u64) -> Meta {
    Meta {
        version: Version {
            clock,
            coordinator: 1,
        },
        expiry: 0,
        tombstone: false,
    }
}

pub(crate) fn sorted(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|one, two| one.order().cmp(&two.order()));
    items.dedup_by(|one, two| one.order() == two.order());
    items
}

pub(crate) fn key_ref(item: &Item) -> KeyRef<'_> {
    KeyRef::of(item.record.key())
}

/// Bytes that no compression makes fewer.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Caches that keep nothing.
fn uncached() -> Blocks {
    Caches::new(0).blocks
}

pub(crate) async fn write(id: u64, items: &[Item]) -> Result<TableInfo> {
    // Every other table's blocks are packed.
    let compression = [Compression::None, Compression::Lz4][id as usize % 2];
    let id = TableId(id);
    let mut writer = TableWriter::create(&dir(), id, id, compression).await?;
    for item in items {
        writer.add(&item.record, item.position).await?;
    }
    writer.finish().await
}

/// Where the partitions of an open table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In memory.
    Loaded,
    /// On disk.
    ByNeed,
}

pub(crate) const MODES: [Mode; 2] = [Mode::Loaded, Mode::ByNeed];

pub(crate) async fn open(info: &TableInfo, mode: Mode) -> Result<Table> {
    let table = Table::open(&dir(), info).await?;
    table.set_resident(mode == Mode::Loaded);
    table.load().await?;
    assert_eq!(table.is_loaded(), mode == Mode::Loaded);
    Ok(table)
}

pub(crate) async fn read_all(table: Rc<Table>, bound: Bound<'_>) -> Result<Vec<Item>> {
    let mut cursor = TableCursor::new(table, bound, 64 * 1024);
    let mut all = Vec::new();
    loop {
        let chunk = cursor.next_chunk().await?;
        if chunk.is_empty() {
            return Ok(all);
        }
        all.extend(chunk);
    }
}

/// Records of all shapes. Some keys are in few slots, and a few share their position.
fn random_items(random: &mut fastrand::Rng, count: usize) -> Vec<Item> {
    let items = (0..count).map(|_| {
        let mut key = match random.u8(0..4) {
            0 => format!("{{tag}}{}", random.u32(..)),
            1 => format!("user:{}:name", random.u32(0..10_000)),
            _ => format!("{:x}", random.u64(..)),
        };
        if random.u16(0..400) == 0 {
            key = "k".repeat(random.usize(60_000..65_537));
        }
        let length = match random.u16(0..600) {
            0 => random.usize(100_000..1 << 20),
            1..20 => random.usize(2_000..20_000),
            20..100 => 0,
            _ => random.usize(1..200),
        };
        let tombstone = random.u8(0..5) == 0;
        let length = if tombstone { 0 } else { length };
        let value = match random.bool() {
            true => vec![random.u8(..); length],
            false => noise(random.u64(..), length),
        };
        let version = Version {
            clock: random.u64(1..1 << 50),
            coordinator: random.u32(..),
        };
        let expiry = if random.bool() { 0 } else { random.u64(..) };
        let mut item = item(
            key.as_bytes(),
            &value,
            Meta {
                version,
                expiry,
                tombstone,
            },
        );
        if random.u8(0..8) == 0 {
            item.position = Position(7);
        }
        item
    });
    sorted(items.collect())
}

async fn check_contents(items: &[Item], table: Table, random: &mut fastrand::Rng) {
    let table = Rc::new(table);
    for item in items {
        let key = KeyRef {
            position: item.position,
            ..key_ref(item)
        };
        assert!(
            table.may_contain(&key),
            "a key is hidden by its filter or range"
        );
        let found = table.get(&key, &uncached()).await.expect("undamaged");
        assert_eq!(found.as_ref(), Some(&item.record));
    }
    for stranger in random_items(random, 30) {
        let known = items.iter().find(|item| item.order() == stranger.order());
        let key = KeyRef {
            position: stranger.position,
            ..key_ref(&stranger)
        };
        let found = table.get(&key, &uncached()).await.expect("undamaged");
        assert_eq!(found.as_ref(), known.map(|item| &item.record));
        for bound in [stranger.after(), Bound::From(stranger.position)] {
            let admitted = items
                .iter()
                .filter(|item| bound.admits(item.position, item.record.key()));
            let walked = read_all(Rc::clone(&table), bound).await.expect("undamaged");
            assert!(
                walked.iter().eq(admitted),
                "a walk from {bound:?} goes wrong"
            );
        }
    }
    assert_eq!(
        read_all(Rc::clone(&table), Bound::START)
            .await
            .expect("undamaged"),
        items
    );
    Rc::try_unwrap(table)
        .ok()
        .expect("no cursor is left")
        .close()
        .await;
}

#[test]
fn a_table_gives_back_what_was_added_even_after_a_power_cut() {
    for seed in 0..60 {
        let world = world(seed, &[]);
        let mut random = fastrand::Rng::with_seed(seed);
        let count = [1, 3, 40, 400, 3000][seed as usize % 5];
        let items = random_items(&mut random, count);
        let to_write = items.clone();
        let info = on(&world, async move {
            let info = write(9, &to_write).await.expect("a sound disk");
            rt::sync_dir(&dir()).await.expect("a sound disk");
            info
        });
        world.crash_node(NODE);
        let tombstones = items.iter().filter(|item| item.record.meta().tombstone);
        assert_eq!(info.tombstones, tombstones.count() as u64, "seed {seed}");
        assert_eq!(info.records, items.len() as u64, "seed {seed}");
        let newest = items.iter().map(|item| item.record.meta().version).max();
        assert_eq!(Some(info.version_max), newest, "seed {seed}");
        on(&world, async move {
            for mode in MODES {
                let table = open(&info, mode).await.expect("undamaged");
                check_contents(&items, table, &mut random).await;
            }
        });
    }
}

#[test]
fn a_get_from_a_loaded_table_is_one_device_read() {
    let mut options = Options::calm(1);
    options.disk.latency_us = (1000, 1000);
    let world = World::new(options);
    on(&world, async {
        rt::create_dir_all(&dir()).await.expect("a sound disk");
        let keys = (0..5000u32).map(|key| item(&key.to_le_bytes(), &[1; 100], meta(1)));
        let items = sorted(keys.collect());
        let info = write(1, &items).await.expect("a sound disk");
        let table = open(&info, Mode::Loaded).await.expect("undamaged");
        for item in items.iter().step_by(97) {
            let before = rt::now();
            assert!(
                table
                    .get(&key_ref(item), &uncached())
                    .await
                    .expect("undamaged")
                    .is_some()
            );
            let reads = (rt::now() - before).as_micros() / 1000;
            assert_eq!(reads, 1, "each read takes a millisecond");
        }
    });
}

/// A few records in one or two blocks: small enough to flip every bit of it.
fn few_items() -> Vec<Item> {
    let mut items = vec![
        item(b"alpha", b"one", meta(1)),
        item(b"beta", b"", meta(2)),
        item(
            b"gamma",
            b"",
            Meta {
                tombstone: true,
                ..meta(3)
            },
        ),
        item(
            b"delta",
            b"a longer value that is not like the others",
            meta(4),
        ),
    ];
    items.extend((0..4u8).map(|key| item(&[key; 3], &[key; 900], meta(9))));
    sorted(items)
}

/// Reads everything there is to read, with partitions in memory and without. The first error, if
/// any, and then of both; a wrong answer is a panic.
async fn first_error(info: &TableInfo, items: &[Item]) -> Result<()> {
    let loaded = first_error_in(info, items, Mode::Loaded).await;
    let by_need = first_error_in(info, items, Mode::ByNeed).await;
    assert_eq!(loaded.is_ok(), by_need.is_ok(), "{loaded:?}, {by_need:?}");
    loaded.and(by_need)
}

async fn first_error_in(info: &TableInfo, items: &[Item], mode: Mode) -> Result<()> {
    let table = Rc::new(open(info, mode).await?);
    let mut failure = None;
    for item in items {
        assert!(
            table.may_contain(&key_ref(item)),
            "a damaged filter or index hides a key"
        );
        match table.get(&key_ref(item), &uncached()).await {
            Ok(found) => assert_eq!(found.as_ref(), Some(&item.record), "a wrong answer"),
            Err(error) => failure = Some(error),
        }
    }
    match read_all(Rc::clone(&table), Bound::START).await {
        Ok(walked) => assert_eq!(walked, items, "a wrong walk"),
        Err(error) => failure = Some(error),
    }
    failure.map_or(Ok(()), Err)
}

#[test]
fn every_flipped_bit_of_a_table_is_noticed() {
    let world = world(1, &[]);
    let handle: Handle = world.handle();
    on(&world, async move {
        let items = few_items();
        let info = write(3, &items).await.expect("a sound disk");
        let (path, disk) = (info.path(&dir()), handle.disk(NODE));
        first_error(&info, &items).await.expect("undamaged");
        for bit in 0..info.bytes * 8 {
            assert!(disk.flip_bit(&path, bit / 8, (bit % 8) as u8));
            match first_error(&info, &items).await.expect_err("a flipped bit") {
                Error::Corrupt { file, offset, .. } => {
                    assert!(file == path && offset < info.bytes, "bit {bit}");
                }
                Error::Setup(why) => assert!(why.contains("format"), "bit {bit}: {why}"),
                other => panic!("bit {bit}: {other}"),
            }
            assert!(disk.flip_bit(&path, bit / 8, (bit % 8) as u8));
        }
        first_error(&info, &items)
            .await
            .expect("all bits are as they were");
    });
}

#[test]
fn a_file_of_another_length_or_another_table_is_refused() {
    let world = world(2, &[]);
    let handle = world.handle();
    on(&world, async move {
        let items = few_items();
        let info = write(3, &items).await.expect("a sound disk");
        let twin = write(4, &items).await.expect("a sound disk");
        let disk = handle.disk(NODE);
        let good = disk.read(&info.path(&dir())).expect("it was written");
        let swapped = disk.read(&twin.path(&dir())).expect("it was written");
        let longer = [&good[..], &[0; 4096]].concat();
        for bad in [
            &good[..good.len() - 4096],
            &good[..good.len() - 1],
            &longer,
            &swapped,
            b"",
        ] {
            disk.put(&info.path(&dir()), bad);
            let refused = first_error(&info, &items).await;
            assert!(
                matches!(refused, Err(Error::Corrupt { .. })),
                "{} bytes",
                bad.len()
            );
        }
        disk.put(&info.path(&dir()), &good);
        let other = TableInfo {
            records: info.records + 1,
            ..info.clone()
        };
        let refused = Table::open(&dir(), &other).await.err();
        assert!(
            matches!(refused, Some(Error::Corrupt { .. })),
            "not the manifest's table"
        );
        let moved = TableInfo { level: 3, ..info };
        first_error(&moved, &items)
            .await
            .expect("a table may change its level");
    });
}

#[test]
fn a_block_that_was_written_at_a_wrong_place_is_noticed() {
    let world = world(3, &[]);
    let handle = world.handle();
    on(&world, async move {
        // Two blocks of the same length: one record each.
        let items = sorted(
            (0..2u8)
                .map(|key| item(&[key; 8], &noise(u64::from(key), 5000), meta(1)))
                .collect(),
        );
        let info = write(5, &items).await.expect("a sound disk");
        let (path, disk) = (info.path(&dir()), handle.disk(NODE));
        let mut bytes = disk.read(&path).expect("it was written");
        let table = open(&info, Mode::Loaded).await.expect("undamaged");
        let partition = table.hold(0).await.expect("it is in memory");
        let length = partition.length(0);
        assert_eq!((partition.blocks(), length), (2, partition.length(1)));
        let (first, second) = bytes[..2 * length].split_at_mut(length);
        first.swap_with_slice(second);
        disk.put(&path, &bytes);
        let failure = first_error(&info, &items)
            .await
            .expect_err("blocks in each other's place");
        assert!(matches!(failure, Error::Corrupt { .. }));
    });
}

#[test]
fn another_format_is_refused_by_name_not_called_damage() {
    let world = world(4, &[]);
    let handle = world.handle();
    on(&world, async move {
        let info = write(3, &few_items()).await.expect("a sound disk");
        let (path, disk) = (info.path(&dir()), handle.disk(NODE));
        let good = disk.read(&path).expect("it was written");
        for format in [FORMAT + 1, FORMAT - 1] {
            let footer_at = good.len() - FOOTER_BYTES;
            let mut bytes = good.clone();
            bytes[footer_at + MAGIC.len()..][..4].copy_from_slice(&format.to_le_bytes());
            disk.put(&path, &bytes);
            let torn = Table::open(&dir(), &info).await.err();
            if format < FORMAT {
                let is_damage = matches!(torn, Some(Error::Corrupt { .. }));
                assert!(
                    is_damage,
                    "a flipped bit is taken for an old table: {torn:?}"
                );
            }
            // What a program of that format would have written: its checksum holds.
            let blank = FOOTER_CRC_AT..FOOTER_CRC_AT + CRC_BYTES;
            bytes[footer_at..][blank.clone()].fill(0);
            let at = Identity {
                table: 3,
                offset: footer_at as u64,
            };
            let crc = at.checksum(&bytes[footer_at..]);
            bytes[footer_at..][blank].copy_from_slice(&crc.to_le_bytes());
            disk.put(&path, &bytes);
            match Table::open(&dir(), &info).await.err() {
                Some(Error::Setup(why)) => {
                    assert!(why.contains(&format!("format {format}")), "{why}");
                }
                other => panic!("format {format}: {other:?}"),
            }
            assert_eq!(disk.read(&path), Some(bytes), "it was changed");
        }
    });
}

#[test]
fn a_full_disk_leaves_no_part_of_a_table() {
    let items: Vec<Item> = (0..60u8)
        .map(|key| item(&[key; 4], &noise(u64::from(key), 60_000), meta(1)))
        .collect();
    let items = sorted(items);
    for free in [0, 4096, 1 << 19, 1 << 20, 3 << 20] {
        let world = world(free, &[]);
        let handle = world.handle();
        let items = items.clone();
        on(&world, async move {
            let disk = handle.disk(NODE);
            disk.leave_free(free);
            let failure = write(1, &items).await.expect_err("no room for 3.6 MB");
            assert!(failure.is_disk_full(), "{failure}");
            assert_eq!(
                disk.files(),
                Vec::<PathBuf>::new(),
                "a part was left behind"
            );
            disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
            let info = write(1, &items).await.expect("there is room again");
            first_error(&info, &items).await.expect("undamaged");
        });
    }
}

#[test]
fn a_failed_write_or_sync_is_an_error_and_a_failed_read_is_not_a_miss() {
    let world = world(5, &[]);
    let handle = world.handle();
    on(&world, async move {
        let (items, disk) = (few_items(), handle.disk(NODE));
        disk.change_faults(|faults| faults.eio_sync = 1.0);
        write(1, &items)
            .await
            .expect_err("a table that is not durable");
        disk.change_faults(|faults| faults.eio_sync = 0.0);
        assert_eq!(
            disk.files(),
            Vec::<PathBuf>::new(),
            "a table that failed was left behind"
        );
        let info = write(2, &items).await.expect("a sound disk");
        for mode in MODES {
            let table = Rc::new(open(&info, mode).await.expect("undamaged"));
            disk.change_faults(|faults| faults.eio_read = 1.0);
            let failure = table
                .get(&key_ref(&items[0]), &uncached())
                .await
                .expect_err("EIO");
            assert!(
                matches!(failure, Error::Io { action: "read", .. }),
                "{failure}"
            );
            read_all(table, Bound::START).await.expect_err("EIO");
            disk.change_faults(|faults| faults.eio_read = 0.0);
        }
    });
}

#[test]
fn a_table_that_was_given_up_is_gone() {
    let world = world(6, &[]);
    let handle = world.handle();
    on(&world, async move {
        let items = few_items();
        let mut writer = TableWriter::create(&dir(), TableId(1), TableId(1), Compression::Lz4)
            .await
            .expect("sound");
        writer
            .add(&items[0].record, items[0].position)
            .await
            .expect("a sound disk");
        assert!(writer.bytes() > 0);
        writer.abandon().await;
        assert_eq!(handle.disk(NODE).files(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_table_that_is_not_synced_is_lost_by_some_power_cut() {
    // If this fails, the planted bug plants nothing, and the durability tests prove nothing.
    let lost = (0..20).filter(|&seed| {
        let world = world(seed, &[Bug::ManifestBeforeTable]);
        let info = on(&world, async {
            let info = write(1, &few_items()).await.expect("a sound disk");
            rt::sync_dir(&dir()).await.expect("a sound disk");
            info
        });
        world.crash_node(NODE);
        on(&world, async move {
            first_error(&info, &few_items()).await.is_err()
        })
    });
    assert!(lost.count() > 0);
}

#[test]
fn half_expired_is_when_half_the_bytes_are_expired() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let span = 1u64 << random.u32(1..50);
        let records: Vec<(UnixMillis, u64)> = (0..random.usize(1..2000))
            .map(|_| {
                let expires = random.u8(0..3) > 0;
                (
                    if expires { random.u64(1..=span) } else { 0 },
                    random.u64(1..2000),
                )
            })
            .collect();
        let mut expiries = Expiries::default();
        records
            .iter()
            .for_each(|&(expiry, bytes)| expiries.add(expiry, bytes));
        let expired_at = |now: UnixMillis| {
            let expired = records
                .iter()
                .filter(|(expiry, _)| *expiry != 0 && *expiry <= now);
            expired.map(|(_, bytes)| bytes).sum::<u64>() * 2
        };
        let total = records.iter().map(|(_, bytes)| bytes).sum::<u64>();
        match expiries.half_expired_at() {
            0 => assert!(expired_at(u64::MAX) < total, "seed {seed}: never rewritten"),
            at => {
                assert!(expired_at(at) >= total, "seed {seed}: rewritten in vain");
                let earlier = at.saturating_sub(span / 64 + 1);
                assert!(expired_at(earlier) < total, "seed {seed}: {at} is late");
            }
        }
    }
    let mut expiries = Expiries::default();
    expiries.add(u64::MAX, 5);
    assert_eq!(
        expiries.half_expired_at(),
        u64::MAX,
        "the last moment there is"
    );
}

#[test]
fn a_file_name_is_a_table_only_if_it_is_exactly_one() {
    for id in [0, 1, 999_999_999_999, 1_000_000_000_000, u64::MAX] {
        assert_eq!(TableId::parse(&TableId(id).file_name()), Some(TableId(id)));
    }
    for name in [
        "",
        ".table",
        "1.table",
        "000000000001.tabl",
        "+00000000001.table",
        "MANIFEST",
    ] {
        assert_eq!(TableId::parse(name), None, "{name}");
    }
}

#[test]
#[should_panic(expected = "records are added in order")]
fn a_record_out_of_order_is_a_bug_that_stops_the_writer() {
    let world = world(7, &[]);
    on(&world, async {
        let mut items = few_items();
        items.swap(0, 1);
        let _ = write(1, &items).await;
    });
}
