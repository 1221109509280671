//! Whether this machine can run a node, and what to do about it if not: in one line each.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use glommio::GlommioError;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::files::create_dirs;
use crate::error::{Error, Result};
use crate::rt::{BLOCK_BYTES, ring_flags};

/// glommio refuses half of this, and was seen to fail at exactly half.
const MEMLOCK_BYTES_MIN: u64 = 1 << 20;
/// Files and connections below which a node makes no sense, and for each core.
const NOFILE_MIN: u64 = 256;
const NOFILE_PER_CORE: u64 = 64;
/// The first kernel that has every operation which glommio uses.
const KERNEL_MIN: (u32, u32) = (5, 8);
/// The first one with IORING_SETUP_COOP_TASKRUN (see `ring_flags`).
const KERNEL_FAST: (u32, u32) = (5, 19);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// How many files and connections this process may have open.
    pub nofile: u64,
    /// How much memory it may lock, in bytes; `u64::MAX` for no limit.
    pub memlock_bytes: u64,
    /// Memory that this process may have: the machine's, or the limit of its control group.
    pub memory_bytes: u64,
    /// The kernel's version.
    pub kernel: String,
    /// False for a kernel that runs a node, at half its speed.
    pub kernel_is_fast: bool,
}

/// Checks that a node with its data in `dir` and so many cores can run here. Raises this
/// process's limits on the way, and creates `dir`.
pub fn check_host(dir: &Path, cores: usize) -> Result<HostReport> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim().to_owned();
    let version = parse_version(&kernel);
    if version.is_some_and(|version| version < KERNEL_MIN) {
        let (major, minor) = KERNEL_MIN;
        return Err(Error::Setup(format!(
            "Linux {kernel} is too old: {major}.{minor} or later is needed"
        )));
    }
    let memlock_bytes = raise(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY);
    if memlock_bytes < MEMLOCK_BYTES_MIN {
        return Err(Error::Setup(format!(
            "only {} KiB of memory may be locked and io_uring needs {} KiB: raise it (`ulimit -l`, \
             LimitMEMLOCK= of the unit, --ulimit memlock=-1 of the container)",
            memlock_bytes >> 10,
            MEMLOCK_BYTES_MIN >> 10
        )));
    }
    let nofile = raise(Resource::RLIMIT_NOFILE, 0);
    let nofile_min = NOFILE_MIN + NOFILE_PER_CORE * cores as u64;
    if nofile < nofile_min {
        return Err(Error::Setup(format!(
            "only {nofile} files may be open and {cores} cores need {nofile_min} without any \
             client: raise it (`ulimit -Hn`, LimitNOFILE= of the unit)"
        )));
    }
    check_rings()?;
    check_dir(dir)?;
    let kernel_is_fast = version.is_none_or(|version| version >= KERNEL_FAST);
    Ok(HostReport {
        nofile,
        memlock_bytes,
        memory_bytes: memory_bytes(),
        kernel,
        kernel_is_fast,
    })
}

fn memory_bytes() -> u64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let machine = parse_total(&read("/proc/meminfo")).unwrap_or(0);
    let group = read("/sys/fs/cgroup/memory.max").trim().parse();
    group.map_or(machine, |group: u64| group.min(machine))
}

/// The machine's memory by the first line of /proc/meminfo.
fn parse_total(meminfo: &str) -> Option<u64> {
    let total = meminfo.strip_prefix("MemTotal:")?;
    let kilobytes: u64 = total.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn parse_version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Raises a limit as far as this process may: the soft one to the hard one, and both to `wish`
/// with the privilege to do so. Returns what is in force.
fn raise(resource: Resource, wish: u64) -> u64 {
    if let Ok((_, hard)) = getrlimit(resource) {
        let more = wish.max(hard);
        if setrlimit(resource, more, more).is_err() {
            // Without the privilege the soft limit still follows the hard one. If even that is
            // refused, what is in force below is judged.
            let _ = setrlimit(resource, hard, hard);
        }
    }
    getrlimit(resource).map_or(0, |(soft, _)| soft)
}

const NO_RINGS: &str = "io_uring is not to be had: allow it (the container's seccomp profile, \
                        `sysctl kernel.io_uring_disabled=0`)";

/// Why an executor did not start, and what to do about it.
pub(super) fn advice(error: GlommioError<()>) -> String {
    match error.raw_os_error() {
        Some(errno) => advice_on(errno).unwrap_or_else(|| error.to_string()),
        None => error.to_string(),
    }
}

fn advice_on(errno: i32) -> Option<String> {
    match errno {
        libc::ENOSYS | libc::EPERM | libc::EACCES => Some(NO_RINGS.into()),
        libc::ENOMEM => {
            Some("no memory for io_uring: raise `ulimit -l` or the memory limit".into())
        }
        libc::EMFILE | libc::ENFILE => Some("too many open files: raise `ulimit -n`".into()),
        _ => None,
    }
}

/// Whether a ring is to be had. Asked of the kernel directly: glommio panics if it is refused.
pub(super) fn check_rings() -> Result<()> {
    ring_flags::check().map_err(|error| {
        let advice = error.raw_os_error().and_then(advice_on);
        Error::Setup(advice.unwrap_or_else(|| format!("io_uring is not to be had: {error}")))
    })
}

/// A block that can be written with O_DIRECT.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

fn check_dir(dir: &Path) -> Result<()> {
    create_dirs(dir).map_err(|error| refuse(dir, "cannot be created", &error))?;
    let path = dir.join(format!("check-{}.tmp", std::process::id()));
    let checked = check_direct(&path);
    // If it cannot be removed it could not be written either, and that was told.
    let _ = std::fs::remove_file(&path);
    match checked {
        // What is there can be read all the same. Where nothing is, making it will fail.
        Err(error) if is_full(&error) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Error::Setup(format!(
            "the file system of {} has no direct I/O (O_DIRECT): use ext4 or XFS",
            dir.display()
        ))),
        checked => checked.map_err(|error| refuse(dir, "cannot be written to", &error)),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn check_direct(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.open(path)?;
    options.custom_flags(libc::O_DIRECT);
    let block = Box::new(Block([0; BLOCK_BYTES]));
    let mut file = options.open(path)?;
    file.write_all(&block.0)?;
    file.sync_data()
}

fn refuse(dir: &Path, what: &str, error: &io::Error) -> Error {
    let dir = dir.display();
    Error::Setup(match error.kind() {
        _ if is_full(error) => {
            format!("the disk of the data directory {dir} is full: free some space")
        }
        io::ErrorKind::PermissionDenied => {
            let user = nix::unistd::geteuid();
            format!("the data directory {dir} {what} by user {user}: change its owner or mode")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("the data directory {dir} {what}: its file system is mounted read-only")
        }
        _ => format!("the data directory {dir} {what}: {error}"),
    })
}

/// The CPUs that this process may run on.
fn cpus() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return vec![0];
    };
    (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect()
}

/// Seconds of CPU that this process has used: in user mode, and in the kernel.
pub fn cpu_seconds() -> (f64, f64) {
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    match nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
        Ok(usage) => (seconds(usage.user_time()), seconds(usage.system_time())),
        Err(_) => (0.0, 0.0),
    }
}

/// How many CPUs this process may run on.
pub fn cpu_count() -> usize {
    cpus().len()
}

/// Which CPU to pin each of so many cores to: none if they are more than there are CPUs.
pub fn pins_for(cores: usize) -> Vec<Option<usize>> {
    let cpus = cpus();
    (0..cores)
        .map(|core| {
            if cores <= cpus.len() {
                Some(cpus[core])
            } else {
                None
            }
        })
        .collect()
}

/// Files and connections that this process has open, and how many it may have.
pub fn open_files() -> (u64, u64) {
    const OPEN: &str = "/proc/self/fd";
    // Since Linux 6.2 the size of that directory is the count.
    let told = std::fs::metadata(OPEN).map_or(0, |about| about.len());
    let open = match told {
        0 => std::fs::read_dir(OPEN).map_or(0, |entries| entries.count() as u64),
        told => told,
    };
    (open, files_max())
}

/// How many files and connections this process may have open. It may be changed from outside.
fn files_max() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// The same by the number of a descriptor that was just made: there are as many open at least.
pub(super) fn open_files_by(descriptor: RawFd) -> (u64, u64) {
    // The kernel gives the lowest number that is free, so all below it are taken.
    let below = u64::try_from(descriptor).unwrap_or(0);
    (below + 1, files_max())
}

/// Bytes of this process in memory; 0 if the kernel does not say.
pub fn resident_bytes() -> u64 {
    let page = match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => bytes as u64,
        _ => 4096,
    };
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_number() {
        assert_eq!(parse_version("5.8.0-63-generic"), Some((5, 8)));
        assert_eq!(parse_version("6.18"), Some((6, 18)));
        assert!(
            parse_version("5.10.1") > Some(KERNEL_MIN),
            "10 is more than 8"
        );
        assert_eq!(parse_version("unknown"), None, "and is then not refused");
    }

    #[test]
    fn a_refused_ring_comes_with_advice() {
        for errno in [libc::ENOSYS, libc::EPERM] {
            let error = GlommioError::IoError(io::Error::from_raw_os_error(errno));
            assert!(advice(error).contains("seccomp"), "errno {errno}");
        }
        assert!(check_rings().is_ok(), "these tests run on rings");
    }

    #[test]
    fn this_process_is_in_memory() {
        let bytes = resident_bytes();
        assert!(
            (1 << 20..1 << 40).contains(&bytes),
            "{bytes} bytes: not pages, not kilobytes"
        );
    }
}
