//! Power cuts: the file system is cut off from its device in the middle of everything.
//!
//! It is not the last word: what a node has written past the page cache without syncing it survives
//! this (block_log.rs is about that).

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Launch, scratch};
use crate::disk::{Disk, assert_sound, can};
use crate::ledger::Health;
use crate::load::{Load, Work, chance, count, times};

/// Small sizes, so that every cycle flushes, merges, collects and recycles the log several times.
pub const CONFIG: &str = "[storage]
memtable = \"256KiB\"
wal-segment = \"128KiB\"
wal-max = \"1MiB\"
table-max = \"512KiB\"
level-base = \"1MiB\"
level-ratio = 4
[value-log]
segment = \"512KiB\"
replay-max = \"2MiB\"
garbage-max-percent = 20
";
const WRITERS: usize = 6;
const KEYS: usize = 60;

/// A node on `disk`, with its other files below `dir`.
pub fn launch(dir: &Path, disk: &Disk) -> Launch {
    let launch = Launch::new(dir).config(CONFIG);
    launch.with("--dir", disk.data().display())
}

/// A key that may be lost is a database that nobody wants.
#[test]
fn no_acknowledged_write_is_lost_when_power_fails() {
    const NAME: &str = "no_acknowledged_write_is_lost_when_power_fails";
    if !can(NAME, &["python3"]) {
        return;
    }
    let mut chance = chance(NAME);
    let cycles = times(5, 200);
    let delays_ms = match cycles {
        5 => 300..=1200,
        _ => 20..=2500,
    };
    let dir = scratch();
    let mut disk = Disk::new(dir.path(), 256);
    let mut load = Load::new(WRITERS, &mut chance);
    let begun = Instant::now();
    let (mut flushes, mut merges, mut collections) = (0, 0, 0);
    for cycle in 0..cycles {
        if cycle % 20 == 10 {
            let acknowledged = count(&load.progress.acknowledged);
            println!("so far {cycle} power cuts, {acknowledged} acknowledged writes, 0 lost");
        }
        let node = launch(dir.path(), &disk).start();
        load.check(&node, Health::Sound, "after a power cut");
        load.start(&node, Work::Churn(KEYS));
        thread::sleep(Duration::from_millis(chance.u64(delays_ms.clone())));
        flushes += node.info("flushes");
        merges += node.info("compactions");
        collections += node.info("value_log_collections");
        if chance.u32(..8) == 0 {
            // Together with the end of the process, or after it.
            node.kill();
            disk.cut_power();
        } else {
            load.doubt();
            disk.cut_power();
            thread::sleep(Duration::from_millis(chance.u64(0..60)));
            node.kill();
        }
        load.join();
        disk.remount();
        assert_sound(&disk.data());
        if chance.u32(..4) == 0 {
            // Also in the middle of what a power cut makes a node do.
            launch(dir.path(), &disk).start_and_kill(Duration::from_millis(chance.u64(..80)));
            disk.cut_power();
            disk.remount();
        }
    }
    let node = launch(dir.path(), &disk).start();
    load.check(&node, Health::Sound, "after the last power cut");
    let acknowledged = count(&load.progress.acknowledged);
    println!(
        "{cycles} power cuts in {:.0?}: {acknowledged} acknowledged writes, 0 lost; {flushes} \
         flushes, {merges} merges, {collections} collected segments",
        begun.elapsed()
    );
    assert!(
        acknowledged > 50 * u64::from(cycles),
        "hardly anything was written"
    );
    assert!(
        flushes > 0 && merges > 0 && collections > 0,
        "too little went on"
    );
}
