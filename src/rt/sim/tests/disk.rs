//! Files: what a power cut may take, and what it may not.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::super::{NodeId, Options, World};
use super::{block, calm};
use crate::error::Error;
use crate::rt::{self, BLOCK_BYTES, File};

const NODE: NodeId = NodeId(1);
const BLOCK: u64 = BLOCK_BYTES as u64;

fn dir() -> &'static Path {
    Path::new("data")
}

fn path() -> &'static Path {
    Path::new("data/file")
}

async fn create(path: &Path) -> File {
    rt::create_dir_all(path.parent().expect("it has one"))
        .await
        .expect("a directory");
    File::create(path).await.expect("a new file")
}

async fn write(file: &File, index: u64, byte: u8) -> Result<(), Error> {
    let mut buffer = file.buffer(BLOCK_BYTES);
    buffer.fill(byte);
    file.write_at(buffer, index * BLOCK).await
}

/// The error number of the operating system in `error`.
fn kind(error: Error) -> ErrorKind {
    match error {
        Error::Io { source, .. } => source.kind(),
        other => panic!("not an I/O error: {other}"),
    }
}

/// A file with blocks of 1 and 2, synced; then 3 over the first and 4 behind them, not synced.
/// Returns what a power cut leaves of it.
fn crash_image(seed: u64, is_torn: bool) -> Vec<u8> {
    let mut options = Options::calm(seed);
    options.disk.torn = is_torn;
    let world = World::new(options);
    world.run_on(NODE, async {
        let file = create(path()).await;
        write(&file, 0, 1).await.unwrap();
        write(&file, 1, 2).await.unwrap();
        file.sync().await.unwrap();
        rt::sync_dir(dir()).await.unwrap();
        write(&file, 0, 3).await.unwrap();
        write(&file, 2, 4).await.unwrap();
        let seen = file.read_at(0, 3 * BLOCK_BYTES).await.unwrap();
        assert_eq!(
            *seen,
            [block(3), block(2), block(4)].concat(),
            "writes are seen at once"
        );
    });
    world.crash_node(NODE);
    world.disk(NODE).read(path()).expect("its name was synced")
}

#[test]
fn a_power_cut_may_lose_keep_tear_and_reorder_what_was_not_synced() {
    let mut found = BTreeSet::new();
    for seed in 0..300 {
        let image = crash_image(seed, true);
        assert_eq!(
            image[BLOCK_BYTES..][..BLOCK_BYTES],
            block(2),
            "seed {seed}: a synced block"
        );
        assert!(
            image[..BLOCK_BYTES]
                .iter()
                .all(|byte| [1, 3].contains(byte)),
            "seed {seed}"
        );
        let first = match &image[..BLOCK_BYTES] {
            part if part == block(1) => "lost",
            part if part == block(3) => "kept",
            part => {
                let sectors = part.chunks(512);
                let whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
                assert!(sectors.clone().all(whole), "seed {seed}: a sector is torn");
                "torn"
            }
        };
        let third = match image.get(2 * BLOCK_BYTES..) {
            None | Some([]) => "lost",
            Some(part) if part == block(4) => "kept",
            Some(part) if part == block(0) => "zeros",
            Some(part) => {
                assert!(part.iter().all(|byte| [0, 4].contains(byte)), "seed {seed}");
                "torn"
            }
        };
        found.insert((first, third));
    }
    for pair in [
        ("lost", "lost"),
        ("kept", "kept"),
        ("kept", "lost"),
        ("lost", "kept"),
    ] {
        assert!(found.contains(&pair), "never {pair:?} in {found:?}");
    }
    for fate in ["torn", "zeros"] {
        assert!(
            found.iter().any(|&(_, third)| third == fate),
            "never {fate}"
        );
    }
    assert!(
        found.iter().any(|&(first, _)| first == "torn"),
        "an overwrite is never torn"
    );
}

#[test]
fn without_tearing_a_write_is_all_there_or_not_at_all() {
    for seed in 0..100 {
        let image = crash_image(seed, false);
        let first = &image[..BLOCK_BYTES];
        assert!(first == block(1) || first == block(3), "seed {seed}: torn");
        assert!(image.len() == 2 * BLOCK_BYTES || image[2 * BLOCK_BYTES..] == block(4));
    }
}

#[test]
fn a_sync_covers_what_had_completed_when_it_began_and_no_more() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = calm(seed);
        world
            .disk(NODE)
            .change_faults(|faults| faults.sync_us = (10_000, 10_000));
        world.run_on(NODE, async {
            let file = std::rc::Rc::new(create(path()).await);
            rt::sync_dir(dir()).await.unwrap();
            write(&file, 0, 1).await.unwrap();
            let syncer = std::rc::Rc::clone(&file);
            let sync = rt::spawn(async move { syncer.sync().await });
            rt::sleep(Duration::from_millis(1)).await;
            write(&file, 1, 2).await.unwrap();
            sync.await.unwrap();
        });
        world.crash_node(NODE);
        let image = world.disk(NODE).read(path()).expect("its name was synced");
        assert_eq!(
            image[..BLOCK_BYTES],
            block(1),
            "seed {seed}: synced and lost"
        );
        lost += usize::from(image.get(BLOCK_BYTES..) != Some(&block(2)));
    }
    assert!(
        lost > 20,
        "a write after the sync began is as good as synced ({lost} lost)"
    );
}

#[test]
fn a_write_that_nobody_waits_for_any_more_happens_all_the_same() {
    let world = calm(1);
    let seen = world.run_on(NODE, async {
        let file = create(path()).await;
        let ready = async { Ok(()) };
        futures_lite::future::or(write(&file, 0, 7), ready)
            .await
            .unwrap();
        assert_eq!(file.len().await.unwrap(), 0, "it takes time");
        rt::sleep(Duration::from_secs(1)).await;
        file.read_at(0, BLOCK_BYTES).await.unwrap().to_vec()
    });
    assert_eq!(seen, block(7), "its write was cancelled");
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    let world = calm(2);
    world.run_on(NODE, async {
        let file = create(path()).await;
        write(&file, 0, 1).await.unwrap();
    });
    world.start_node(NODE, 1, |_: rt::Core<()>| std::future::pending::<()>());
    world.kill_node(NODE);
    assert_eq!(world.disk(NODE).read(path()), Some(block(1)));
}

#[test]
fn a_name_is_safe_once_its_directory_is_synced_and_not_before() {
    let (mut created, mut removed) = (0, 0);
    for seed in 0..100 {
        let world = calm(seed);
        world.run_on(NODE, async {
            for name in ["data/safe", "data/old"] {
                let file = create(Path::new(name)).await;
                write(&file, 0, 1).await.unwrap();
                file.sync().await.unwrap();
            }
            rt::sync_dir(dir()).await.unwrap();
            let file = create(path()).await;
            write(&file, 0, 2).await.unwrap();
            file.sync().await.unwrap();
            rt::remove_file(Path::new("data/old")).await.unwrap();
            let names = rt::list_dir(dir()).await.unwrap();
            assert_eq!(names, ["file", "safe"], "changes of names are seen at once");
        });
        world.crash_node(NODE);
        let disk = world.disk(NODE);
        assert_eq!(
            disk.read(Path::new("data/safe")),
            Some(block(1)),
            "seed {seed}"
        );
        match disk.read(path()) {
            Some(bytes) => assert_eq!(bytes, block(2), "seed {seed}: its bytes were synced"),
            None => created += 1,
        }
        removed += usize::from(disk.read(Path::new("data/old")).is_some());
    }
    assert!(
        (20..80).contains(&created),
        "{created} of 100 creations lost"
    );
    assert!(
        (20..80).contains(&removed),
        "{removed} of 100 removals lost"
    );
}

#[test]
fn a_renamed_file_is_found_under_one_name_and_replaces_another_whole() {
    let (target, source) = (Path::new("data/current"), Path::new("data/current.new"));
    let mut found = BTreeSet::new();
    for seed in 0..200 {
        let world = calm(seed);
        world.run_on(NODE, async move {
            for (name, byte) in [(target, 1), (source, 2)] {
                let file = create(name).await;
                write(&file, 0, byte).await.unwrap();
                file.sync().await.unwrap();
                if byte == 1 {
                    rt::sync_dir(dir()).await.unwrap();
                }
            }
            rt::rename(source, target).await.unwrap();
            // The old name is used once more.
            let file = create(source).await;
            write(&file, 0, 3).await.unwrap();
            file.sync().await.unwrap();
        });
        world.crash_node(NODE);
        let disk = world.disk(NODE);
        let byte = |path| {
            disk.read(path).map(|bytes| {
                assert_eq!(bytes, block(bytes[0]), "seed {seed}");
                bytes[0]
            })
        };
        found.insert((byte(target), byte(source)));
    }
    let legal = [(1, None), (1, Some(2)), (2, None), (2, Some(3))];
    let legal = BTreeSet::from(legal.map(|(target, source)| (Some(target), source)));
    assert_eq!(
        found, legal,
        "left: what was found; right: what may be found"
    );
}

#[test]
fn lengths_behave_like_contents() {
    let mut lengths = BTreeSet::new();
    for seed in 0..60 {
        let world = calm(seed);
        world.run_on(NODE, async {
            let file = create(path()).await;
            write(&file, 0, 1).await.unwrap();
            write(&file, 1, 1).await.unwrap();
            file.sync().await.unwrap();
            rt::sync_dir(dir()).await.unwrap();
            file.set_len(100).await.unwrap();
            assert_eq!(file.read_at(0, BLOCK_BYTES).await.unwrap().len(), 100);
            file.set_len(2 * BLOCK).await.unwrap();
            let seen = file.read_at(0, 2 * BLOCK_BYTES).await.unwrap();
            assert!(seen[..100].iter().all(|&byte| byte == 1), "kept bytes");
            assert!(
                seen[100..].iter().all(|&byte| byte == 0),
                "cut bytes came back"
            );
            file.set_len(3 * BLOCK).await.unwrap();
        });
        world.crash_node(NODE);
        let image = world.disk(NODE).read(path()).expect("its name was synced");
        lengths.insert(image.len());
    }
    assert_eq!(
        lengths,
        BTreeSet::from([100, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES])
    );
}

#[test]
fn a_full_disk_refuses_growth_and_nothing_else() {
    let mut partly = 0;
    for seed in 0..40 {
        let world = calm(seed);
        world.disk(NODE).leave_free(3 * BLOCK);
        partly += world.run_on(NODE, async move {
            let file = create(path()).await;
            write(&file, 0, 1).await.unwrap();
            let mut buffer = file.buffer(4 * BLOCK_BYTES);
            buffer.fill(2);
            let refused = file
                .write_at(buffer, BLOCK)
                .await
                .expect_err("it does not fit");
            assert!(refused.is_disk_full(), "{refused}");
            let grown = file.len().await.unwrap();
            assert!(
                grown <= 3 * BLOCK,
                "seed {seed}: {grown} bytes on a disk of three blocks"
            );
            file.set_len(BLOCK).await.unwrap();
            write(&file, 1, 3).await.expect("what the truncation freed");
            write(&file, 2, 3).await.expect("the last block");
            write(&file, 0, 4)
                .await
                .expect("overwriting needs no space");
            let refused = write(&file, 3, 5).await.expect_err("it is full");
            assert_eq!(kind(refused), ErrorKind::StorageFull);
            rt::remove_file(path()).await.unwrap();
            let next = Path::new("data/next");
            let refused = match File::create(next).await {
                Ok(file) => write(&file, 0, 1).await,
                Err(refused) => Err(refused),
            };
            assert!(
                refused.is_err_and(|refused| refused.is_disk_full()),
                "it is still open"
            );
            drop(file);
            let file = match File::open(next).await {
                Ok(file) => file,
                Err(_) => create(next).await,
            };
            write(&file, 2, 1).await.expect("closing it made room");
            usize::from(grown > BLOCK)
        });
        assert_eq!(world.disk(NODE).losses().no_space, 3);
    }
    assert!(
        (1..40).contains(&partly),
        "a refused write is always or never partly done: {partly}"
    );
}

#[test]
fn errors_come_as_often_as_they_are_asked_for() {
    let world = calm(3);
    let disk = world.disk(NODE);
    let counts = world.run_on(NODE, async move {
        let file = create(path()).await;
        write(&file, 0, 1).await.unwrap();
        disk.change_faults(|faults| {
            (faults.eio_read, faults.eio_write, faults.eio_sync) = (0.5, 0.5, 0.5);
        });
        let mut counts = [0, 0, 0];
        for _ in 0..200 {
            counts[0] += usize::from(file.read_at(0, 10).await.is_err());
            counts[1] += usize::from(write(&file, 0, 1).await.is_err());
            counts[2] += usize::from(file.sync().await.is_err());
        }
        counts
    });
    assert!(
        counts.iter().all(|count| (60..140).contains(count)),
        "{counts:?} of 200 each"
    );
    assert_eq!(
        world.disk(NODE).losses().errors,
        counts.iter().sum::<usize>() as u64
    );
}

#[test]
fn a_sync_after_a_failed_one_proves_nothing() {
    let survivors = |forgets: bool| {
        let survives = |seed: &u64| {
            let world = calm(*seed);
            let disk = world.disk(NODE);
            world.run_on(NODE, async move {
                let file = create(path()).await;
                rt::sync_dir(dir()).await.unwrap();
                write(&file, 0, 1).await.unwrap();
                disk.change_faults(|faults| {
                    (faults.eio_sync, faults.sync_error_forgets) = (1.0, forgets);
                });
                file.sync().await.expect_err("it must fail");
                disk.change_faults(|faults| faults.eio_sync = 0.0);
                file.sync().await.expect("the next one succeeds");
                assert_eq!(
                    *file.read_at(0, BLOCK_BYTES).await.unwrap(),
                    block(1),
                    "still seen"
                );
            });
            world.crash_node(NODE);
            world.disk(NODE).read(path()) == Some(block(1))
        };
        (0..50).filter(survives).count()
    };
    assert!(
        survivors(true) < 25,
        "what the failed sync dropped is durable"
    );
    assert_eq!(
        survivors(false),
        50,
        "a disk that does not forget makes up for it"
    );
}

#[test]
fn rot_and_damage_stay() {
    let world = calm(4);
    let disk = world.disk(NODE);
    disk.put(path(), &block(0xFF));
    assert!(disk.flip_bit(path(), 10, 0) && !disk.flip_bit(path(), BLOCK, 0));
    assert_eq!(disk.read(path()).expect("it is there")[10], 0xFE);
    disk.change_faults(|faults| faults.bit_rot = 1.0);
    world.run_on(NODE, async {
        let file = File::open(path()).await.unwrap();
        file.read_at(0, BLOCK_BYTES).await.unwrap();
    });
    world.start_node(NODE, 1, |_: rt::Core<()>| std::future::pending::<()>());
    world.crash_node(NODE);
    let bytes = disk.read(path()).expect("it is there");
    let flipped: u32 = bytes.iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(flipped, 2, "one bit by hand, one by itself, both for good");
    assert_eq!(disk.losses().rotten_bits, 1);

    let other = world.disk(NodeId(2));
    other.copy_from(&disk);
    disk.truncate(path(), 100);
    assert_eq!(other.read(path()), Some(bytes), "a copy is a copy");
    assert_eq!(disk.read(path()).map(|bytes| bytes.len()), Some(100));
    disk.wipe();
    assert!(disk.files().is_empty() && other.files() == [path()]);
}

#[test]
fn paths_and_locks_are_those_of_a_file_system() {
    let world = calm(5);
    world.run_on(NODE, async {
        let absent = File::create(path())
            .await
            .map(drop)
            .expect_err("no directory");
        assert!(absent.is_not_found());
        assert!(
            rt::list_dir(dir())
                .await
                .expect_err("no directory")
                .is_not_found()
        );
        let first = create(path()).await;
        let again = File::create(path()).await.map(drop).expect_err("it exists");
        assert_eq!(kind(again), ErrorKind::AlreadyExists);
        rt::create_dir_all(Path::new("data/deep/er")).await.unwrap();
        assert_eq!(rt::list_dir(dir()).await.unwrap(), ["deep", "file"]);
        assert!(
            File::open(Path::new("data/none"))
                .await
                .is_err_and(|error| error.is_not_found())
        );
        assert!(
            rt::remove_file(Path::new("data/none"))
                .await
                .is_err_and(|e| e.is_not_found())
        );

        write(&first, 0, 9).await.unwrap();
        rt::remove_file(path()).await.unwrap();
        let orphan = first.read_at(BLOCK - 2, 100).await.unwrap();
        assert_eq!(
            *orphan,
            [9, 9],
            "an open file outlives its name, and reads end at its end"
        );

        let lock = rt::lock_file(Path::new("data/LOCK")).await.unwrap();
        let second = rt::lock_file(Path::new("data/LOCK"))
            .await
            .map(drop)
            .expect_err("locked");
        assert_eq!(kind(second), ErrorKind::WouldBlock);
        drop(lock);
        std::mem::forget(rt::lock_file(Path::new("data/LOCK")).await.unwrap());
    });
    world.run_on(NODE, async {
        rt::lock_file(Path::new("data/LOCK"))
            .await
            .map(drop)
            .expect("its holder is dead");
    });
}

#[test]
fn space_that_was_taken_is_there_when_the_disk_is_full_and_reads_as_zeros() {
    let world = calm(1);
    let handle = world.handle();
    world.run_on(NODE, async move {
        let file = create(path()).await;
        let disk = handle.disk(NODE);
        disk.leave_free(5 * BLOCK);
        let refused = file.allocate(6 * BLOCK).await.expect_err("no room for it");
        assert_eq!(kind(refused), ErrorKind::StorageFull);
        file.allocate(5 * BLOCK).await.expect("there is room");
        assert_eq!(file.len().await.expect("a length"), 5 * BLOCK);
        let seen = file.read_at(0, 5 * BLOCK_BYTES).await.expect("readable");
        assert!(seen.iter().all(|&byte| byte == 0));
        disk.leave_free(0);
        write(&file, 4, 7)
            .await
            .expect("its space was taken before");
        write(&file, 5, 7).await.expect_err("that is behind it");
    });
}

#[test]
fn a_linked_file_is_one_file_and_lives_as_long_as_any_of_its_names() {
    let (first, second) = (Path::new("data/file"), Path::new("other/file"));
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..60 {
        let world = World::new(Options::calm(seed));
        let disk = world.disk(NODE);
        world.run_on(NODE, async {
            let file = create(first).await;
            write(&file, 0, 1).await.unwrap();
            file.sync().await.unwrap();
            rt::sync_dir(dir()).await.unwrap();
            rt::create_dir_all(Path::new("other")).await.unwrap();
            rt::link(first, second).await.unwrap();
            let again = rt::link(first, second).await.expect_err("it is taken");
            assert_eq!(kind(again), ErrorKind::AlreadyExists);
            write(&file, 0, 2).await.unwrap();
        });
        assert_eq!(disk.read(first), disk.read(second), "one file");
        assert_eq!(disk.used_bytes(), BLOCK, "its space is taken once");
        world.crash_node(NODE);
        match disk.read(second) {
            Some(bytes) => {
                kept += 1;
                assert_eq!(Some(bytes), disk.read(first), "one file, after a crash too");
            }
            None => lost += 1,
        }
        world.run_on(NODE, async {
            match rt::link(first, second).await {
                Ok(()) => {}
                Err(error) => assert_eq!(kind(error), ErrorKind::AlreadyExists),
            }
            rt::sync_dir(Path::new("other")).await.unwrap();
            rt::remove_file(first).await.unwrap();
            rt::sync_dir(dir()).await.unwrap();
        });
        world.crash_node(NODE);
        assert_eq!(disk.read(first), None);
        assert!(disk.read(second).is_some(), "it has a name, and is gone");
        assert_eq!(disk.used_bytes(), BLOCK);
    }
    assert!(
        kept > 5 && lost > 5,
        "a link is durable by chance: {kept}, {lost}"
    );
}

#[test]
fn a_directory_goes_only_when_it_is_empty_and_nothing_of_it_comes_back() {
    for seed in 0..40 {
        let world = World::new(Options::calm(seed));
        world.run_on(NODE, async {
            let file = create(path()).await;
            file.sync().await.unwrap();
            rt::sync_dir(dir()).await.unwrap();
            let full = rt::remove_dir(dir()).await.expect_err("it is not empty");
            assert_eq!(kind(full), ErrorKind::DirectoryNotEmpty);
            rt::remove_file(path()).await.unwrap();
            rt::remove_dir(dir()).await.unwrap();
            let gone = rt::remove_dir(dir()).await.expect_err("it is gone");
            assert_eq!(kind(gone), ErrorKind::NotFound);
        });
        world.crash_node(NODE);
        assert_eq!(world.disk(NODE).read(path()), None, "seed {seed}");
        assert!(!world.disk(NODE).directories().iter().any(|it| it == dir()));
    }
}
