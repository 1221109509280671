//! A disk that fails: writes or reads end with EIO, when the test says so.
//!
//! Nothing is acknowledged that is not on disk, nothing that is there is called absent, and when
//! the disk is well again a restart brings back all that was acknowledged.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::common::{Launch, Node, Value, scratch};
use crate::disk::{Disk, Faulty, assert_sound, can, wait_until};
use crate::ledger::Health;
use crate::load::{Load, Work, chance, count, times};
use crate::power_cuts;

const TOOLS: &[&str] = &["nbdkit", "nbdfuse", "e2fsck"];
const WRITERS: usize = 4;
const KEYS: usize = 100;

fn launch(dir: &Path, disk: &Disk) -> Launch {
    power_cuts::launch(dir, disk)
}

/// Else a write that the disk has refused would be lost, or the node would go on as if nothing
/// were.
#[test]
fn failed_writes_are_never_acknowledged_and_nothing_older_is_lost() {
    const NAME: &str = "failed_writes_are_never_acknowledged_and_nothing_older_is_lost";
    if !can(NAME, TOOLS) {
        return;
    }
    let mut chance = chance(NAME);
    for round in 0..times(2, 20) {
        let percent = [100, 5][round as usize % 2];
        let dir = scratch();
        let faulty = Faulty::new(dir.path(), 0, percent);
        let mut disk = Disk::faulty(dir.path(), 256, &faulty);
        let mut load = Load::new(WRITERS, &mut chance);
        let mut node = launch(dir.path(), &disk).start();
        load.start(&node, Work::Churn(KEYS));
        thread::sleep(Duration::from_millis(chance.u64(500..1500)));
        let before = count(&load.progress.acknowledged);
        faulty.fail_writes();
        wait_until("a log fails", Duration::from_secs(20), || {
            node.info("log_failed_cores") > 0
        });
        // Both cores' at last, or one only: each writes to files of its own.
        thread::sleep(Duration::from_millis([500, 0][round as usize % 2]));
        load.stop();
        let errors = load.take_errors();
        let is_clear = |text: &String| text.starts_with("MISCONF") || text.starts_with("UNKNOWN");
        assert!(errors.keys().all(is_clear), "{errors:#?}");
        assert!(node.is_running(), "it has ended: {}", node.said());
        load.check(&node, Health::Sick, "while writes fail");
        let failed = node.info("log_failed_cores");
        // A failed log stays failed, whatever the disk says now.
        faulty.heal();
        load.start(&node, Work::Churn(KEYS));
        thread::sleep(Duration::from_millis(300));
        load.stop();
        assert!(
            node.info("log_failed_cores") >= failed,
            "it has healed itself"
        );
        load.check(&node, Health::Sick, "after the disk was healed");
        match round % 4 {
            0..=1 => node.kill(),
            _ => println!("an orderly stop ends with {:?}", node.stop("TERM")),
        }
        let mended = disk.remount_or_repair();
        assert!(disk.is_served(), "the device is gone: no test");
        assert_sound(&disk.data());
        let node = launch(dir.path(), &disk).start();
        load.check(&node, Health::Sound, "after a restart on a sound disk");
        load.insist(&node, Duration::from_secs(5))
            .expect("all is well again");
        let reads = load.take_read_errors();
        println!(
            "{percent}% of writes fail (file system mended: {mended}): {before} acknowledged before, {} in all, {failed} cores \
             failed, reads {reads:?}, refusals {errors:?}",
            count(&load.progress.acknowledged)
        );
    }
}

/// Else a client would take a key for absent, and act on it.
#[test]
fn a_failed_read_is_an_error_and_never_an_absent_key() {
    const NAME: &str = "a_failed_read_is_an_error_and_never_an_absent_key";
    if !can(NAME, TOOLS) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let faulty = Faulty::new(dir.path(), 100, 0);
    let mut disk = Disk::faulty(dir.path(), 256, &faulty);
    let mut load = Load::new(WRITERS, &mut chance);
    let node = launch(dir.path(), &disk).start();
    fill(&mut load, &node);
    // Nothing is to be cached: neither by the node nor on the way to where errors are made.
    assert_eq!(node.stop("TERM"), Some(0), "an orderly stop");
    disk.remount();
    let node = launch(dir.path(), &disk).start();
    faulty.fail_reads();
    load.check(&node, Health::Sick, "while reads fail");
    let errors = load.take_read_errors();
    let failed: u64 = errors.values().sum();
    assert!(failed > 0, "no read has failed: no test");
    let is_clear = |text: &String| text.starts_with("IOERR");
    assert!(errors.keys().all(is_clear), "{errors:#?}");
    let mut client = node.client();
    let mut kinds = std::collections::BTreeMap::new();
    for name in (0..50).flat_map(|key| load.names(key)) {
        for command in ["GET", "STRLEN", "EXISTS", "TTL", "TYPE"] {
            let answer = client.ask_words(&[command, &name]);
            let absent = match command {
                "GET" => answer == Value::Null,
                "TTL" => answer == Value::Integer(-2),
                "TYPE" => answer == Value::Simple("none".into()),
                _ => answer == Value::Integer(0),
            };
            assert!(!absent, "{command} {name}: {answer:?}");
            if answer.is_error("") {
                *kinds.entry(command).or_insert(0) += 1;
            }
        }
        // What depends on what is there may not be done as if nothing were.
        let answer = client.ask_words(&["SET", &name, "never", "NX"]);
        let done = answer == Value::ok();
        assert!(!done, "SET NX of a key that is there: {answer:?}");
    }
    let absent = client.ask_words(&["MGET", &load.names(1)[0], &load.names(2)[0]]);
    let has_null = matches!(&absent, Value::List(values) if values.contains(&Value::Null));
    assert!(!has_null, "MGET: {absent:?}");
    println!(
        "{failed} of {} reads failed; by command {kinds:?}",
        load.keys()
    );
    faulty.heal();
    load.check(&node, Health::Sound, "after the disk was healed");
    let insisted = load.insist(&node, Duration::from_secs(5));
    // Where the file system could not read what it needed to give the log room, the log has failed
    // with the write, and that core takes none before a restart.
    if node.info("log_failed_cores") == 0 {
        insisted.expect("all is well again");
        return;
    }
    println!("a log has failed, too");
    node.kill();
    let node = launch(dir.path(), &disk).start();
    load.check(&node, Health::Sound, "after a restart on a sound disk");
    load.insist(&node, Duration::from_secs(5))
        .expect("all is well again");
}

/// Writes enough for several files of each kind.
fn fill(load: &mut Load, node: &Node) {
    load.start(node, Work::Fill);
    let enough = count(&load.progress.acknowledged) + u64::from(times(3_000, 20_000));
    wait_until("enough is written", Duration::from_secs(60), || {
        count(&load.progress.acknowledged) > enough
    });
    load.stop();
    let errors = load.take_errors();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// Else a merge, or the collector, would take what it cannot read for what is not there.
#[test]
fn reads_that_fail_for_a_while_cost_nothing_though_much_is_merged_meanwhile() {
    const NAME: &str = "reads_that_fail_for_a_while_cost_nothing_though_much_is_merged_meanwhile";
    if !can(NAME, TOOLS) {
        return;
    }
    let mut chance = chance(NAME);
    for round in 0..times(1, 20) {
        let dir = scratch();
        let faulty = Faulty::new(dir.path(), [30, 3, 100][round as usize % 3], 0);
        let mut disk = Disk::faulty(dir.path(), 256, &faulty);
        let mut load = Load::new(WRITERS, &mut chance);
        let mut node = launch(dir.path(), &disk).start();
        fill(&mut load, &node);
        let work = Work::Churn(load.keys() / WRITERS / 2);
        for _ in 0..3 {
            load.start(&node, work);
            thread::sleep(Duration::from_millis(300));
            faulty.fail_reads();
            thread::sleep(Duration::from_millis(500));
            faulty.heal();
            load.stop();
            let errors = load.take_errors();
            // A flush reads, too: while it cannot, memory is full at last.
            let is_clear = |text: &String| {
                let clear = ["IOERR", "MISCONF", "UNKNOWN"];
                clear.iter().any(|word| text.starts_with(word))
            };
            assert!(errors.keys().all(is_clear), "{errors:#?}");
            // To write, the file system has to read where a file lies: so a log may fail, and with
            // it ends what this test is about.
            if errors.keys().any(|text| text.contains("estart the node")) {
                println!("a log has failed: {errors:#?}");
                break;
            }
            let failed: u64 = errors.values().sum();
            println!(
                "{failed} commands failed; so far {} merges, {} segments collected",
                node.info("compactions"),
                node.info("value_log_collections")
            );
            load.check(&node, Health::Sound, "after the disk was healed");
        }
        assert!(node.is_running(), "it has ended: {}", node.said());
        node.kill();
        disk.remount();
        assert_sound(&disk.data());
        let node = launch(dir.path(), &disk).start();
        load.check(&node, Health::Sound, "after a restart");
    }
}

/// Else what cannot be read at a start would be taken for the torn end of a log, and cut off.
#[test]
fn a_start_that_meets_a_failing_disk_says_so_and_loses_nothing() {
    const NAME: &str = "a_start_that_meets_a_failing_disk_says_so_and_loses_nothing";
    if !can(NAME, TOOLS) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let faulty = Faulty::new(dir.path(), 10, 10);
    let mut disk = Disk::faulty(dir.path(), 256, &faulty);
    let mut load = Load::new(WRITERS, &mut chance);
    let (mut refused, mut served, mut mended) = (0, 0, 0);
    for round in 0..times(6, 100) {
        let node = launch(dir.path(), &disk).start();
        load.check(&node, Health::Sound, "after a start on a sound disk");
        load.start(&node, Work::Churn(KEYS));
        thread::sleep(Duration::from_millis(chance.u64(100..500)));
        node.kill();
        load.join();
        load.take_errors();
        disk.remount();
        match round % 2 {
            0 => faulty.fail_reads(),
            _ => faulty.fail_writes(),
        }
        match launch(dir.path(), &disk).try_start() {
            Ok(node) => {
                served += 1;
                load.check(&node, Health::Sick, "on the failing disk");
                node.kill();
            }
            Err((code, said)) => {
                refused += 1;
                assert!(code.is_some_and(|code| code != 0), "{code:?}: {said}");
                let is_clear = ["os error", "mounted read-only"];
                assert!(is_clear.iter().any(|words| said.contains(words)), "{said}");
                assert!(!said.contains("panicked"), "{said}");
            }
        }
        faulty.heal();
        mended += u32::from(disk.remount_or_repair());
        assert_sound(&disk.data());
    }
    let node = launch(dir.path(), &disk).start();
    load.check(&node, Health::Sound, "after the last start");
    println!("{refused} starts refused, {served} served, file system mended {mended} times");
    assert!(refused > 0, "no start has met an error: no test");
}
