//! The manifest: what it gives back, what it refuses, and what a crash leaves of it.

use super::*;
use crate::rt::sim::{NodeId, Options, World};
use crate::storage::sstable::KeyBuf;
use crate::types::Position;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const NODE: NodeId = NodeId(1);

fn dir() -> PathBuf {
    PathBuf::from("/data/core-0")
}

fn world(seed: u64, planted: &[Bug]) -> World {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    world.run_on(NODE, async {
        rt::create_dir_all(&dir()).await.expect("a sound disk")
    });
    world
}

fn table(id: u64) -> TableInfo {
    let key = |key: u8| KeyBuf {
        position: Position(u32::from(key)),
        key: vec![key; 3],
    };
    TableInfo {
        id: TableId(id),
        run: TableId(id),
        level: 0,
        bytes: 8192,
        records: 10,
        tombstones: 3,
        first_key: key(1),
        last_key: key(200),
        version_max: Version {
            clock: id,
            coordinator: 1,
        },
        half_expired_at: 0,
        pointed: id,
    }
}

/// The manifest after `tables` flushes.
fn manifest(tables: u64) -> Manifest {
    let mut manifest = Manifest::new(CoreId(0), 4);
    for _ in 0..tables {
        let id = manifest.take_id();
        manifest.push(table(id.0));
    }
    manifest
}

#[test]
fn a_manifest_gives_back_what_was_stored() {
    for tables in [0, 1, 5, 300] {
        let world = world(tables, &[]);
        let stored = manifest(tables);
        let expected = stored.clone();
        world.run_on(NODE, async move {
            assert_eq!(Manifest::load(&dir()).await.expect("a sound disk"), None);
            stored.store(&dir()).await.expect("a sound disk");
        });
        world.crash_node(NODE);
        let found = world.run_on(NODE, async { Manifest::load(&dir()).await });
        assert_eq!(found.expect("a sound disk"), Some(expected));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_manifest_is_noticed() {
    let good = manifest(3).encode();
    let path = dir().join(MANIFEST);
    assert_eq!(
        Manifest::decode(&good, &path).expect("undamaged"),
        manifest(3)
    );
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match Manifest::decode(&bad, &path) {
            Err(Error::Corrupt { file, .. }) => assert_eq!(file, path),
            Err(Error::Setup(why)) => assert!(why.contains("format"), "bit {bit}: {why}"),
            other => panic!("bit {bit}: {other:?}"),
        }
    }
    let content = good
        .iter()
        .rposition(|&byte| byte != 0)
        .expect("not all zeros");
    for length in 0..=content {
        let cut = Manifest::decode(&good[..length], &path);
        assert!(matches!(cut, Err(Error::Corrupt { .. })), "cut at {length}");
    }
    let longer = [&good[..], &[0; 4096]].concat();
    assert!(
        Manifest::decode(&longer, &path).is_err(),
        "a manifest and something else"
    );
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut bytes = manifest(1).encode();
    bytes[MAGIC.len()] = FORMAT as u8 + 1;
    match Manifest::decode(&bytes, &dir()) {
        Err(Error::Setup(why)) => assert!(why.contains("format 3"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_right_checksum_over_a_wrong_body_is_an_error_not_a_crash() {
    let good = manifest(4).encode();
    let length = u32::from_le_bytes(good[12..16].try_into().expect("four bytes")) as usize;
    let end = HEADER_BYTES + length;
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bad = good.clone();
        bad[random.usize(HEADER_BYTES..end)] ^= 1 << random.u8(0..8);
        let crc = crc32c::crc32c(&bad[..end]);
        bad[end..end + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        if let Ok(manifest) = Manifest::decode(&bad, &dir()) {
            manifest.check();
        }
    }
}

/// Above the ids in use.
const FIRST_ID: u64 = 10;

/// The manifests of a run are told apart by their next id.
#[derive(Default)]
struct Progress {
    tried: Cell<u64>,
    stored: Cell<u64>,
}

/// Reopens, and stores one manifest after the other until the end comes from outside. Returns
/// only if it finds another manifest than it may.
async fn store_on(progress: Rc<Progress>) {
    let found = Manifest::load(&dir()).await.expect("never damaged");
    let count = found.map_or(0, |manifest| manifest.next_id - FIRST_ID);
    if count < progress.stored.get() || count > progress.tried.get() {
        return;
    }
    // What was read is what stays, whatever happens next.
    progress.stored.set(count);
    for count in count + 1.. {
        progress.tried.set(count);
        let next = Manifest {
            next_id: FIRST_ID + count,
            ..manifest(2)
        };
        next.store(&dir()).await.expect("no errors, only crashes");
        progress.stored.set(count);
    }
}

/// Four lives, each ended by a power cut or `kill -9` at a random moment, while reopening too.
/// How many manifests were stored; `None` if one of them was lost.
fn survive(seed: u64, planted: &[Bug]) -> Option<u64> {
    let world = world(seed, planted);
    let mut random = fastrand::Rng::with_seed(seed);
    let progress = Rc::new(Progress::default());
    for _ in 0..4 {
        let main = |_: rt::Core<()>| store_on(Rc::clone(&progress));
        let _mains = world.start_node(NODE, 1, main);
        let micros = if random.bool() { 1_000 } else { 30_000 };
        world.run_for(Duration::from_micros(random.u64(0..micros)));
        if world.node_ended(NODE) {
            return None;
        }
        if random.bool() {
            world.crash_node(NODE);
        } else {
            world.kill_node(NODE);
        }
    }
    Some(progress.stored.get())
}

#[test]
fn a_crash_at_any_moment_leaves_the_old_manifest_or_the_new_one() {
    let mut stored = 0;
    for seed in 0..600 {
        let survived = survive(seed, &[]);
        stored += survived.unwrap_or_else(|| panic!("seed {seed}: a stored manifest was lost"));
    }
    assert!(stored > 600, "the lives are too short to store anything");
}

#[test]
fn without_directory_syncs_some_crash_loses_a_manifest() {
    // If this fails, the test above proves nothing.
    let lost = (0..200).filter(|&seed| survive(seed, &[Bug::NoDirectorySync]).is_none());
    assert!(lost.count() > 0);
}

#[test]
fn a_full_disk_leaves_the_old_manifest_in_force_and_can_be_tried_again() {
    let world = world(1, &[]);
    let handle = world.handle();
    world.run_on(NODE, async move {
        let disk = handle.disk(NODE);
        manifest(1).store(&dir()).await.expect("a sound disk");
        disk.leave_free(0);
        let failure = manifest(2).store(&dir()).await.expect_err("no room");
        assert!(failure.is_disk_full(), "{failure}");
        assert_eq!(
            disk.files(),
            [dir().join(MANIFEST)],
            "a part was left behind"
        );
        assert_eq!(
            Manifest::load(&dir()).await.expect("sound"),
            Some(manifest(1))
        );
        disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
        manifest(2)
            .store(&dir())
            .await
            .expect("there is room again");
        assert_eq!(
            Manifest::load(&dir()).await.expect("sound"),
            Some(manifest(2))
        );
    });
}

#[test]
fn errors_say_truly_whether_the_old_manifest_is_in_force() {
    for seed in 0..300 {
        let world = world(seed, &[]);
        let handle = world.handle();
        let outcome = world.run_on(NODE, async move {
            manifest(1).store(&dir()).await.expect("a sound disk");
            handle.disk(NODE).change_faults(|faults| {
                (faults.eio_write, faults.eio_sync) = (0.15, 0.15);
            });
            let outcome = manifest(2).store(&dir()).await;
            handle.disk(NODE).change_faults(|faults| {
                (faults.eio_write, faults.eio_sync) = (0.0, 0.0);
            });
            outcome
        });
        world.crash_node(NODE);
        let found = world.run_on(NODE, async { Manifest::load(&dir()).await });
        let found = found.expect("whole").expect("one of the two").tables.len();
        match outcome {
            Ok(()) => assert_eq!(found, 2, "seed {seed}"),
            Err(Error::Uncertain) => assert!(found == 1 || found == 2, "seed {seed}"),
            Err(_) => assert_eq!(found, 1, "seed {seed}: said to be unchanged"),
        }
    }
}

#[test]
fn orphans_are_the_tables_that_no_manifest_names() {
    let mut manifest = manifest(2);
    let names = [
        "000000000001.table",
        "000000000009.table",
        "MANIFEST",
        "5.table",
        "x",
    ];
    let orphans = manifest.take_orphans(&names.map(str::to_owned));
    assert_eq!(
        orphans,
        ["000000000009.table"],
        "live tables and strangers stay"
    );
    assert_eq!(
        manifest.take_id(),
        TableId(10),
        "a number is not used twice"
    );
}

#[test]
fn a_merge_takes_the_place_of_its_inputs_in_the_order_of_age() {
    let mut manifest = manifest(4);
    let id = manifest.take_id();
    let merged = TableInfo {
        version_max: Version {
            clock: 3,
            coordinator: 1,
        },
        ..table(id.0)
    };
    manifest.replace(&[TableId(2), TableId(3)], vec![merged]);
    let ids: Vec<u64> = manifest.tables.iter().map(|table| table.id.0).collect();
    assert_eq!(ids, [1, 5, 4], "a merged table changed its age");
    manifest.replace(&[TableId(1)], Vec::new());
    assert_eq!(manifest.tables.len(), 2);
    manifest.cleared = Version {
        clock: 3,
        coordinator: 9,
    };
    let dead: Vec<TableId> = manifest
        .take_cleared()
        .iter()
        .map(|table| table.id)
        .collect();
    assert_eq!(
        dead,
        [TableId(5)],
        "a table with a record above the clearing was given up"
    );
}

#[test]
#[should_panic(expected = "inputs are live")]
fn a_merge_of_a_table_that_is_gone_is_a_bug_that_stops_it() {
    manifest(4).replace(&[TableId(1), TableId(9)], Vec::new());
}
