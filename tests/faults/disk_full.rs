//! A full disk: refusals in plain words, reads that go on, and writes as soon as there is space
//! again.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Launch, PATIENCE, scratch};
use crate::disk::{Disk, assert_sound, can};
use crate::ledger::Health;
use crate::load::{Load, Progress, Work, chance, count, times};

/// Small sizes, so that the disk is filled by many files of each kind.
const CONFIG: &str = "memory = \"64MiB\"
[storage]
memtable = \"1MiB\"
wal-segment = \"512KiB\"
wal-max = \"4MiB\"
table-max = \"2MiB\"
level-base = \"4MiB\"
[value-log]
segment = \"2MiB\"
replay-max = \"8MiB\"
";
const WRITERS: usize = 4;
/// After space has come back writes have so long to go on.
const RESUME_MAX: Duration = Duration::from_secs(5);
/// A refusal is no hang: no reply may take longer, be the machine ever so busy.
const REPLY_MAX: Duration = Duration::from_secs(10);
/// After deletes, and without any further write, space has come back by then.
const REST_MAX: Duration = Duration::from_secs(60);
/// The disk counts as full when nothing was acknowledged for so long.
const QUIET: Duration = Duration::from_millis(1200);

fn launch(dir: &Path, disk: &Disk) -> Launch {
    launch_with(dir, disk, CONFIG)
}

fn launch_with(dir: &Path, disk: &Disk, config: &str) -> Launch {
    let launch = Launch::new(dir).config(config);
    launch.with("--dir", disk.data().display())
}

/// Waits until writes are refused and none is acknowledged any more.
fn wait_until_full(progress: &Progress) {
    let deadline = Instant::now() + 6 * PATIENCE;
    let (mut acknowledged, mut since) = (count(&progress.acknowledged), Instant::now());
    let refused = count(&progress.refused);
    while since.elapsed() < QUIET || count(&progress.refused) == refused {
        assert!(Instant::now() < deadline, "the disk does not get full");
        thread::sleep(Duration::from_millis(20));
        let now = count(&progress.acknowledged);
        if now != acknowledged {
            (acknowledged, since) = (now, Instant::now());
        }
    }
}

/// Refusals say that the disk is full, and nothing else went wrong; how many there were.
fn only_full(load: &mut Load, when: &str) -> u64 {
    let errors = load.take_errors();
    let mut other = errors
        .keys()
        .filter(|text| !text.starts_with("MISCONF The disk is full"));
    assert!(other.next().is_none(), "{when}: {errors:#?}");
    let slowest = load.slowest();
    assert!(slowest < REPLY_MAX, "{when}: a reply took {slowest:.1?}");
    errors.values().sum()
}

/// Else a full disk would lose data, or need a restart.
#[test]
fn a_full_disk_loses_nothing_and_writes_go_on_when_there_is_space() {
    const NAME: &str = "a_full_disk_loses_nothing_and_writes_go_on_when_there_is_space";
    if !can(NAME, &["fallocate", "python3"]) {
        return;
    }
    let mut chance = chance(NAME);
    let rounds = times(3, 24);
    let dir = scratch();
    let mut disk = Disk::new(dir.path(), 48 + 12 * u64::from(rounds));
    for round in 0..rounds {
        assert!(disk.ballast(&format!("ballast-{round}"), 12 << 20));
        assert!(disk.ballast(&format!("reserve-{round}"), 64 << 10));
    }
    let mut load = Load::new(WRITERS, &mut chance);
    let mut node = launch(dir.path(), &disk).start();
    let (mut slowest, mut refused, mut helped) = (Duration::ZERO, 0, 0);
    for round in 0..rounds {
        load.start(&node, Work::Fill);
        wait_until_full(&load.progress);
        load.stop();
        refused += only_full(&mut load, "filling");
        load.check(&node, Health::Sound, "while the disk is full");
        // Now what is there is overwritten and deleted, as far as that goes.
        load.start(&node, Work::Churn(load.keys() / WRITERS));
        thread::sleep(Duration::from_millis(500));
        load.stop();
        refused += only_full(&mut load, "overwriting");
        disk.give_back(&format!("ballast-{round}"));
        let resumed = load.insist(&node, RESUME_MAX).unwrap_or_else(|error| {
            panic!("writes do not go on: {error}; {}", node.said());
        });
        slowest = slowest.max(resumed);
        load.check(&node, Health::Sound, "after space came back");
        load.start(&node, Work::Fill);
        wait_until_full(&load.progress);
        // A restart on the full disk: in the middle of refusals it is killed, or power fails, or it
        // is asked to stop.
        match round % 3 {
            0 => {
                node.kill();
                load.join();
            }
            1 => {
                load.doubt();
                disk.cut_power();
                node.kill();
                load.join();
                load.take_errors();
                disk.remount();
                assert_sound(&disk.data());
            }
            _ => {
                load.stop();
                let code = node.stop("TERM");
                println!("an orderly stop on a full disk ends with {code:?}");
                assert_sound(&disk.data());
            }
        }
        refused += only_full(&mut load, "filling again");
        let started = launch(dir.path(), &disk).try_start();
        node = started.unwrap_or_else(|(code, said)| {
            // A start makes a small file, and some recoveries must note what they found before they
            // may go on.
            assert!(said.contains(".tmp: No space left"), "{code:?}: {said}");
            helped += 1;
            disk.give_back(&format!("reserve-{round}"));
            launch(dir.path(), &disk).start()
        });
        load.check(&node, Health::Sound, "after a restart on the full disk");
    }
    node.kill();
    assert_sound(&disk.data());
    println!(
        "{rounds} rounds: {} keys, {} acknowledged writes, {refused} refused; writes went on after \
         {slowest:.2?} at most, {helped} restarts needed 64 KiB, the slowest reply took {:.2?}",
        load.keys(),
        count(&load.progress.acknowledged),
        load.slowest()
    );
}

/// Else the only way out of a full disk would be a larger one.
#[test]
fn deletes_give_space_back_once_there_is_a_little() {
    const NAME: &str = "deletes_give_space_back_once_there_is_a_little";
    if !can(NAME, &["fallocate"]) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let disk = Disk::new(dir.path(), 96);
    assert!(disk.ballast("ballast", 20 << 20));
    let config = CONFIG;
    let mut load = Load::new(WRITERS, &mut chance);
    let node = launch_with(dir.path(), &disk, config).start();
    load.start(&node, Work::Fill);
    wait_until_full(&load.progress);
    load.stop();
    let full = node.info("value_log_bytes");
    disk.give_back("ballast");
    load.insist(&node, RESUME_MAX).expect("there is space");
    let deleted = load.delete(&node, 4).expect("there is space for deletes");
    let begun = Instant::now();
    // Nobody writes: what deletes hide is looked for all the same.
    let mut now = full;
    while now > full * 3 / 5 && begun.elapsed() < REST_MAX {
        thread::sleep(Duration::from_millis(50));
        now = node.info("value_log_bytes");
    }
    println!(
        "{deleted} of {} keys deleted: the value log went from {full} to {now} bytes in {:.1?}",
        load.keys(),
        begun.elapsed()
    );
    assert!(
        now <= full * 3 / 5,
        "space does not come back: {now} of {full}"
    );
    load.insist(&node, RESUME_MAX).expect("there is space");
    load.check(&node, Health::Sound, "after deletes");
    node.kill();
    assert_sound(&disk.data());
    let node = launch_with(dir.path(), &disk, config).start();
    load.check(&node, Health::Sound, "after a restart");
}

/// Else a node would crash in a loop, or lie, where there is no space for its first file.
#[test]
fn a_node_that_starts_on_a_full_disk_says_so_or_waits_for_space() {
    const NAME: &str = "a_node_that_starts_on_a_full_disk_says_so_or_waits_for_space";
    if !can(NAME, &["fallocate"]) {
        return;
    }
    let mut chance = chance(NAME);
    let spaces_kib: &[u64] = match times(0, 1) {
        0 => &[0, 600, 6000],
        _ => &[
            0, 4, 64, 200, 600, 1000, 2000, 3000, 5000, 6000, 8000, 10_000, 12_000,
        ],
    };
    for space_kib in spaces_kib {
        let dir = scratch();
        let disk = Disk::new(dir.path(), 64);
        fs::create_dir(disk.data()).expect("there is space yet");
        if *space_kib > 0 {
            assert!(disk.ballast("space", space_kib << 10));
        }
        let taken = disk.take_all("ballast", 64 << 20);
        if *space_kib > 0 {
            disk.give_back("space");
        }
        let mut load = Load::new(WRITERS, &mut chance);
        let started = launch(dir.path(), &disk).try_start();
        let node = match started {
            Ok(node) => {
                load.start(&node, Work::Fill);
                thread::sleep(Duration::from_millis(300));
                load.stop();
                only_full(&mut load, "on a disk that was full from the start");
                load.check(
                    &node,
                    Health::Sound,
                    "on a disk that was full from the start",
                );
                taken.iter().for_each(|name| disk.give_back(name));
                node
            }
            Err((code, said)) => {
                let is_clear = ["is full: free some space", "No space left"];
                let is_clear = is_clear.iter().any(|words| said.contains(words));
                assert!(is_clear, "{space_kib} KiB: {said}");
                assert!(code.is_some_and(|code| code != 0), "{code:?}: {said}");
                taken.iter().for_each(|name| disk.give_back(name));
                launch(dir.path(), &disk).start()
            }
        };
        let resumed = load.insist(&node, RESUME_MAX).expect("there is space");
        println!("{space_kib} KiB free: writes go on after {resumed:.2?}");
        load.check(&node, Health::Sound, "after space came back");
        assert_eq!(node.stop("TERM"), Some(0), "an orderly stop");
        assert_sound(&disk.data());
    }
}
