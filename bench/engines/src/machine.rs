//! What the system counts: this process's I/O and memory, the block device, space, CPU. And its
//! control groups and caches.
//!
//! `/proc/self/io` counts the bytes that this process caused to be read from and written to block
//! devices; with direct I/O that is exact, except for what the file system's journal writes on its
//! own. `/proc/diskstats` counts requests and sectors of the whole device, other processes' too:
//! the cross-check, and the only one that counts requests (io_uring's are no system calls of the
//! process).

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome};

const SECTOR_BYTES: u64 = 512;
const CONTROL_GROUPS: &str = "/sys/fs/cgroup/memory";
/// Ticks of CPU times in /proc, per second.
const TICKS: f64 = 100.0;

/// Counters that only rise.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes that this process wrote to devices.
    pub written: u64,
    /// Bytes that it read from them.
    pub read: u64,
    /// Bytes written to the device by anybody.
    pub device_written: u64,
    /// Bytes read from it.
    pub device_read: u64,
    /// Requests to read that it completed.
    pub device_reads: u64,
    /// Requests to write that it completed.
    pub device_writes: u64,
    /// Seconds of CPU that this process used.
    pub cpu: f64,
    /// Seconds of CPU that all processes used, and what a hypervisor took.
    pub cpu_all: f64,
}

impl Counters {
    /// What was counted since `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            written: self.written.saturating_sub(before.written),
            read: self.read.saturating_sub(before.read),
            device_written: self.device_written.saturating_sub(before.device_written),
            device_read: self.device_read.saturating_sub(before.device_read),
            device_reads: self.device_reads.saturating_sub(before.device_reads),
            device_writes: self.device_writes.saturating_sub(before.device_writes),
            cpu: self.cpu - before.cpu,
            cpu_all: self.cpu_all - before.cpu_all,
        }
    }
}

/// Reads the counters of this process and of the device that a directory is on.
#[derive(Clone, Debug)]
pub struct Meter {
    device_stat: Option<PathBuf>,
}

impl Meter {
    /// For data in `dir`, which exists.
    pub fn new(dir: &Path) -> Meter {
        let stat = device_dir(dir).map(|dir| dir.join("stat"));
        Meter { device_stat: stat }
    }

    /// The counters now.
    pub fn read(&self) -> Counters {
        let io = read_text("/proc/self/io");
        let device = self.device_stat.as_ref();
        let device = device.and_then(|path| fs::read_to_string(path).ok());
        let fields: Vec<u64> = numbers(&device.unwrap_or_default());
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        let stat = read_text("/proc/self/stat");
        let own = stat.rsplit(')').next().unwrap_or_default();
        let own: Vec<&str> = own.split_whitespace().collect();
        let ticks = |index: usize| own.get(index).and_then(|it| it.parse::<u64>().ok());
        let own_ticks = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
        let all = read_text("/proc/stat");
        let all = numbers(all.lines().next().unwrap_or_default());
        // user, nice, system, (idle, iowait), irq, softirq, steal.
        let busy = [0, 1, 2, 5, 6, 7].map(|index| all.get(index).copied().unwrap_or(0));
        Counters {
            written: named(&io, "write_bytes:"),
            read: named(&io, "read_bytes:"),
            device_reads: field(0),
            device_read: field(2) * SECTOR_BYTES,
            device_writes: field(4),
            device_written: field(6) * SECTOR_BYTES,
            cpu: own_ticks as f64 / TICKS,
            cpu_all: busy.iter().sum::<u64>() as f64 / TICKS,
        }
    }
}

fn read_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The number behind `name` at the start of a line.
fn named(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| numbers(rest).first().copied())
        .unwrap_or(0)
}

/// Bytes of this process that are resident in memory.
pub fn resident_bytes() -> u64 {
    named(&read_text("/proc/self/status"), "VmRSS:") * 1024
}

/// Bytes of blocks that the files in `dir` take.
pub fn space_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0; // it may have gone meanwhile, as may each file
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => space_bytes(&entry.path()),
        Ok(data) => data.st_blocks() * SECTOR_BYTES,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Bytes that the file system of `dir` has free for us.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let out = output("df", &["--output=avail", "-B1", &dir.display().to_string()])?;
    out.lines().last()?.trim().parse().ok()
}

/// The directory of `dir`'s device in /sys.
fn device_dir(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.st_dev();
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    );
    let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    path.exists().then_some(path)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).arguments(arguments).ok()?;
    let text = String::from_utf8_lossy(&output).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Runs a program for what it says.
trait Said {
    fn arguments(&mut self, arguments: &[&str]) -> std::io::Result<Vec<u8>>;
}

impl Said for Command {
    fn arguments(&mut self, arguments: &[&str]) -> std::io::Result<Vec<u8>> {
        self.args(arguments).output().map(|output| output.stdout)
    }
}

/// What a result depends on, as pairs of name and value.
pub fn facts(dir: &Path) -> Vec<(String, String)> {
    let first = |path: &str, name: &str| {
        let text = read_text(path);
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split(':').nth(1)).unwrap_or("?");
        value.trim().to_owned()
    };
    let unknown = || "?".to_owned();
    let root = env!("CARGO_MANIFEST_DIR");
    let commit = output("git", &["-C", root, "rev-parse", "--short=12", "HEAD"]);
    let changes = output("git", &["-C", root, "status", "--porcelain"]);
    let commit = commit.unwrap_or_else(unknown);
    let cpus = std::thread::available_parallelism().map_or(0, |count| count.get());
    let file_system = output("stat", &["-f", "-c", "%T", &dir.display().to_string()]);
    let mount = output(
        "findmnt",
        &[
            "-n",
            "-o",
            "SOURCE,OPTIONS",
            "-T",
            &dir.display().to_string(),
        ],
    );
    let scheduler = device_dir(dir).map(|dir| {
        let text = fs::read_to_string(dir.join("queue/scheduler"));
        text.unwrap_or_default().trim().to_owned()
    });
    let load = read_text("/proc/loadavg");
    let pairs = [
        (
            "commit",
            match changes {
                Some(_) => format!("{commit} with uncommitted changes"),
                None => commit,
            },
        ),
        (
            "date",
            output("date", &["-u", "+%Y-%m-%d %H:%M:%S UTC"]).unwrap_or_else(unknown),
        ),
        (
            "processor",
            format!("{}, {cpus} CPUs", first("/proc/cpuinfo", "model name")),
        ),
        ("memory", first("/proc/meminfo", "MemTotal")),
        (
            "kernel",
            read_text("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        (
            "file system",
            format!(
                "{} on {}",
                file_system.unwrap_or_else(unknown),
                mount.unwrap_or_else(unknown)
            ),
        ),
        ("I/O scheduler", scheduler.unwrap_or_else(unknown)),
        (
            "load at start",
            load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        ),
    ];
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Writes back and drops what the page cache holds, of everybody.
pub fn drop_page_cache() -> Outcome<()> {
    output("sync", &[]);
    let path = Path::new("/proc/sys/vm/drop_caches");
    fs::write(path, "3\n").map_err(|error| {
        Failure::new(format!(
            "cannot drop the page cache (are you root?): {error}"
        ))
    })
}

/// A control group that limits memory (version 1). Removed when dropped.
pub struct ControlGroup {
    dir: PathBuf,
}

impl ControlGroup {
    /// Makes one of `limit` bytes of memory, page cache included.
    pub fn create(name: &str, limit: u64) -> Outcome<ControlGroup> {
        let dir = Path::new(CONTROL_GROUPS).join(name);
        let failed = |error: std::io::Error| {
            Failure::new(format!(
                "cannot make the control group {}: {error} (version 1 and root are needed; \
             --no-cgroup does without)",
                dir.display()
            ))
        };
        fs::create_dir(&dir).map_err(failed)?;
        let group = ControlGroup { dir: dir.clone() };
        fs::write(dir.join("memory.limit_in_bytes"), limit.to_string()).map_err(failed)?;
        Ok(group)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The most that it has held.
    pub fn peak_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join("memory.max_usage_in_bytes"));
        text.ok().and_then(|it| it.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A process that has just ended may still be in it for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// This process joins the control group in `dir`.
pub fn join_control_group(dir: &Path) -> Outcome<()> {
    fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
        .map_err(|error| Failure::new(format!("cannot join {}: {error}", dir.display())))
}
