//! Power cuts at every flush of the device: what had not been flushed is gone.
//!
//! Every write and flush that reaches the device is logged (by qemu's `blklogwrites`, in the format
//! of dm-log-writes). From the log a device is made as it would have been found after a power cut
//! at some flush: with all that was written before it and nothing, or any part, of what was written
//! after it. Writers stop now and then; what they know then must be on every device from that
//! moment on.
//!
//! log   := super | entry*                                       (little endian, sectors of 512 bytes)
//! super := magic u64 | version u64 | entries u64 | sector bytes u32         (padded to a sector)
//! entry := sector u64 | sectors u64 | flags u64 | data length u64           (padded) | data of a write

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Launch, scratch};
use crate::disk::{Disk, assert_sound, can, image, run};
use crate::ledger::{Health, Ledger};
use crate::load::{Load, Work, chance, count, times};

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const WRITERS: usize = 3;
const KEYS: usize = 25;
const IMAGE_MIB: u64 = 96;
/// The smallest sizes: a device that logs what it does is slow.
const CONFIG: &str = "[storage]
memtable = \"64KiB\"
wal-segment = \"64KiB\"
wal-max = \"256KiB\"
table-max = \"64KiB\"
level-base = \"128KiB\"
level-ratio = 4
[value-log]
segment = \"128KiB\"
replay-max = \"256KiB\"
garbage-max-percent = 20
";

fn launch(dir: &Path, disk: &Disk) -> Launch {
    let launch = Launch::new(dir).config(CONFIG);
    launch.with("--dir", disk.data().display())
}

/// What the device was asked to do.
struct Entry {
    at: u64,
    bytes: u64,
    flags: u64,
    /// Where in the log the bytes are.
    data: u64,
}

struct BlockLog {
    file: File,
}

impl BlockLog {
    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.file
            .read_exact_at(&mut word, at)
            .expect("the log is there");
        u64::from_le_bytes(word)
    }

    /// How many entries are complete.
    fn len(&self) -> usize {
        assert_eq!(self.word(0), MAGIC, "it is no log of writes");
        self.word(16) as usize
    }

    fn entries(&self, count: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut place = SECTOR;
        for _ in 0..count {
            let entry = Entry {
                at: self.word(place) * SECTOR,
                bytes: self.word(place + 8) * SECTOR,
                flags: self.word(place + 16),
                data: place + SECTOR,
            };
            place += SECTOR;
            if entry.flags & DISCARD == 0 {
                place += entry.bytes;
            }
            entries.push(entry);
        }
        entries
    }

    fn apply(&self, entry: &Entry, device: &File) {
        if entry.bytes == 0 {
            return;
        }
        let mut bytes = vec![0; entry.bytes as usize];
        if entry.flags & DISCARD == 0 {
            let read = self.file.read_exact_at(&mut bytes, entry.data);
            read.expect("the log is there");
        }
        device.write_all_at(&bytes, entry.at).expect("a plain file");
    }
}

/// The writers' knowledge at a moment when none was under way.
struct Pause {
    /// Entries of the log by then, or a few more.
    entries: usize,
    ledgers: Vec<Ledger>,
}

/// A disk whose writes are logged to `log`; the base they apply to is copied to `base`.
fn logged_disk(dir: &Path, base: &Path, log: &Path) -> Disk {
    let image = image(dir, IMAGE_MIB);
    copy(&image, base);
    let file = File::create(log).expect("the test's directory is writable");
    file.set_len(8 << 30).expect("a sparse file");
    let export = dir.join("export");
    File::create(&export).expect("the test's directory is writable");
    let mut server = Command::new("qemu-storage-daemon");
    for node in [
        format!("driver=file,node-name=f,filename={}", image.display()),
        format!("driver=file,node-name=l,filename={}", log.display()),
        "driver=blklogwrites,node-name=w,file=f,log=l,log-super-update-interval=1".to_owned(),
        "driver=raw,node-name=r,file=w".to_owned(),
    ] {
        server.arg("--blockdev").arg(node);
    }
    let point = export.display();
    server.arg("--export").arg(format!(
        "type=fuse,id=e,node-name=r,mountpoint={point},writable=on"
    ));
    Disk::exported(dir, &export, server)
}

fn copy(from: &Path, to: &Path) {
    let names = [from, to].map(|path| path.to_str().expect("a test's paths are text"));
    let copied = run(&[
        "cp",
        "--sparse=always",
        "--reflink=auto",
        names[0],
        names[1],
    ]);
    copied.unwrap_or_else(|error| panic!("{error}"));
}

/// Writes, with pauses. What was known at each, and the log.
fn record(dir: &Path, base: &Path, chance: &mut fastrand::Rng) -> (Vec<Pause>, BlockLog, u64) {
    let path = dir.join("writes.log");
    let disk = logged_disk(dir, base, &path);
    let file = File::open(&path).expect("it was just made");
    let log = BlockLog { file };
    let node = launch(dir, &disk).start();
    let mut load = Load::new(WRITERS, chance);
    let mut pauses = Vec::new();
    for _ in 0..times(8, 60) {
        load.start(&node, Work::Churn(KEYS));
        thread::sleep(Duration::from_millis(chance.u64(100..500)));
        load.stop();
        let errors = load.take_errors();
        assert!(errors.is_empty(), "{errors:?}");
        pauses.push(Pause {
            ledgers: load.ledgers(),
            entries: log.len(),
        });
    }
    let (merges, moved) = (node.info("compactions"), node.info("value_log_collections"));
    let flushed = node.info("flushes");
    println!("{flushed} flushes, {merges} merges, {moved} segments collected");
    node.kill();
    drop(disk);
    (pauses, log, count(&load.progress.acknowledged))
}

/// Else a sync is missing somewhere, and a power cut loses what was acknowledged.
#[test]
fn every_flush_of_the_device_leaves_all_that_was_acknowledged_by_then() {
    const NAME: &str = "every_flush_of_the_device_leaves_all_that_was_acknowledged_by_then";
    if !can(NAME, &["qemu-storage-daemon", "cp"]) || !exports_files(NAME) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let device = dir.path().join("replayed.img");
    let (pauses, log, acknowledged) = record(dir.path(), &device, &mut chance);
    let last = pauses.last().expect("there were some").entries;
    let entries = log.entries(last);
    let first = pauses[0].entries;
    let is_flush = |at: &usize| entries[*at].flags & FLUSH != 0;
    let flushes: Vec<usize> = (0..last).filter(is_flush).collect();
    let mut cuts: Vec<usize> = flushes.iter().copied().filter(|at| *at >= first).collect();
    assert!(cuts.len() > 20, "hardly anything was flushed: no test");
    chance.shuffle(&mut cuts);
    cuts.truncate(times(10, 600) as usize);
    cuts.sort_unstable();
    let begun = Instant::now();
    let file = File::options().write(true).open(&device);
    let file = file.expect("it was copied there");
    let mut applied = 0;
    for cut in &cuts {
        entries[applied..=*cut]
            .iter()
            .for_each(|entry| log.apply(entry, &file));
        applied = cut + 1;
        let more = entries[applied..].iter();
        let more = more.take_while(|entry| entry.flags & FLUSH == 0);
        let end = applied + more.clone().count();
        let unflushed: Vec<&Entry> = match chance.bool() {
            true => more.filter(|_| chance.bool()).collect(),
            false => Vec::new(),
        };
        let found = dir.path().join("found.img");
        copy(&device, &found);
        let lost = File::options()
            .write(true)
            .open(&found)
            .expect("just copied");
        unflushed.iter().for_each(|entry| log.apply(entry, &lost));
        drop(lost);
        let when = format!("power cut at entry {cut}, {} more", unflushed.len());
        // The last pause before the cut has what must be there. What was sent later, up to the last
        // of what may have come to the device, may be there, too.
        let known = pauses.partition_point(|pause| pause.entries <= *cut) - 1;
        let mut ledgers: Vec<Ledger> = pauses[known].ledgers.clone();
        let before_end = pauses.partition_point(|pause| pause.entries <= end);
        for pause in pauses[known + 1..].iter().take(before_end - known) {
            for (ledger, later) in ledgers.iter_mut().zip(&pause.ledgers) {
                ledger.may_have(later);
            }
        }
        verify(&found, &mut ledgers, &when);
    }
    println!(
        "{} of {} flushes, {acknowledged} acknowledged writes, {last} entries: 0 lost, in {:.0?}",
        cuts.len(),
        flushes.len(),
        begun.elapsed()
    );
}

/// Starts a node on what was found, and asks it for everything.
fn verify(found: &Path, ledgers: &mut [Ledger], when: &str) {
    let dir = scratch();
    let disk = Disk::of_image(dir.path(), found);
    if disk.data().exists() {
        assert_sound(&disk.data());
    }
    let node = launch(dir.path(), &disk).start();
    for ledger in ledgers {
        ledger.check(&mut node.client(), Health::Sound);
        let faults = &ledger.faults;
        assert!(faults.is_empty(), "{when}: {faults:#?}");
    }
    node.kill();
}

/// True if this qemu can serve a logged device as a file.
fn exports_files(test: &str) -> bool {
    let help = run(&["qemu-storage-daemon", "--help"]).unwrap_or_default();
    let has_fuse = help.contains("type=]fuse");
    if !has_fuse || !fs::exists("/dev/fuse").unwrap_or(false) {
        return crate::disk::skip(test, "`qemu-storage-daemon` cannot export by FUSE here");
    }
    true
}
