//! Limits of the machine: files, memory, a file system that turns read-only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::common::{Client, Launch, Node, PATIENCE, Value, scratch};
use crate::disk::{Disk, assert_sound, can, run, skip, wait_until};
use crate::ledger::Health;
use crate::load::{Load, Work, chance, count, times};
use crate::power_cuts;

const WRITERS: usize = 4;
/// Files that may be open where they are to run out.
const FILES: u32 = 384;
/// Files that are more than enough.
const MANY_FILES: u32 = 4096;
/// When files may be opened again writes have so long to go on.
const RESUME_MAX: Duration = Duration::from_secs(5);
/// Cores of a node here.
const CORES: u64 = 2;
/// What config.toml says that comes on top of `memory` for each core, and what the program and the
/// kernel take for it.
const CONSTANT_BYTES: u64 = CORES * (50 << 20) + (32 << 20);

/// Else a node would start and fail at the first burst, for a reason that nobody could tell.
#[test]
fn too_few_files_are_refused_at_the_start_in_plain_words() {
    let dir = scratch();
    let start = |files: u32| {
        let limit = format!("--nofile={files}:{files}");
        Launch::new(dir.path())
            .through(&["prlimit", &limit])
            .try_start()
    };
    if run(&["prlimit", "--version"]).is_err() {
        skip(
            "too_few_files_are_refused_at_the_start_in_plain_words",
            "no `prlimit`",
        );
        return;
    }
    for files in [16, 64, 200] {
        let Err((code, said)) = start(files) else {
            panic!("it runs with {files} files");
        };
        assert!(code.is_some_and(|code| code != 0), "{files}: {code:?}");
        assert!(said.contains("files may be open"), "{files}: {said}");
        assert!(!said.contains("panicked"), "{files}: {said}");
    }
}

/// A node on `disk` which may have so many files open, and whose value log has small ones.
fn launch_with_files(dir: &Path, disk: &Disk, files: u32) -> Launch {
    let config = power_cuts::CONFIG
        .replace("segment = \"512KiB\"", "segment = \"64KiB\"")
        .replace("replay-max = \"2MiB\"", "replay-max = \"1MiB\"");
    let limit = format!("--nofile={files}:{files}");
    let launch = Launch::new(dir).config(&config);
    let launch = launch.with("--dir", disk.data().display());
    launch.through(&["prlimit", &limit])
}

/// Lets a node that was started with more have so many files open, for a while.
fn allow_files(node: &Node, files: u32) {
    let pid = node.pid().to_string();
    let limit = format!("--nofile={files}:{MANY_FILES}");
    let changed = run(&["prlimit", "--pid", &pid, &limit]);
    changed.unwrap_or_else(|error| panic!("{error}"));
}

/// Connects so many clients: those that are served, and how many were told that there are too many.
fn flood(node: &Node, count: usize) -> (Vec<Client>, usize) {
    let (mut served, mut refused) = (Vec::new(), 0);
    for _ in 0..count {
        let mut client = node.client();
        match client.try_ask(&["PING"]) {
            Ok(Value::Simple(_)) => served.push(client),
            Ok(reply) => {
                let is_clear = reply.is_error("ERR max number of clients");
                assert!(is_clear, "{reply:?}");
                refused += 1;
            }
            // It had hung up before it was asked.
            Err(error) => {
                let is_gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                assert!(is_gone.contains(&error.kind()), "{error}");
                refused += 1;
            }
        }
    }
    (served, refused)
}

/// Else growing data would lose some of it, end the node or keep it busy, and want a restart.
#[test]
fn a_node_that_runs_out_of_files_refuses_writes_until_it_may_have_more() {
    const NAME: &str = "a_node_that_runs_out_of_files_refuses_writes_until_it_may_have_more";
    if !can(NAME, &["prlimit"]) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let disk = Disk::new(dir.path(), 256);
    let mut load = Load::new(WRITERS, &mut chance);
    let mut node = launch_with_files(dir.path(), &disk, MANY_FILES).start();
    allow_files(&node, FILES);
    load.start(&node, Work::Fill);
    wait_until("writes are refused", 3 * PATIENCE, || {
        count(&load.progress.refused) > 50
    });
    wait_until("the log says why", PATIENCE, || {
        node.said().contains("files and connections are open, of")
    });
    load.stop();
    let errors = load.take_errors();
    let is_clear = |text: &String| text.starts_with("MISCONF Too many files are open");
    assert!(errors.keys().all(is_clear), "{errors:#?}");
    load.check(&node, Health::Sound, "without files");
    let (open, most) = (node.info("open_files"), node.info("open_files_limit"));
    println!("{} keys, {open} of {most} files, {errors:?}", load.keys());
    assert_eq!(most, u64::from(FILES), "what it was given");
    assert!(open <= most && open > most * 4 / 5, "{open} of {most}");
    let (served, refused) = flood(&node, 64);
    assert!(!served.is_empty(), "nobody can ask it what is the matter");
    assert!(refused > 0, "connections take the last files");
    drop(served);
    let busy = node.cpu_ticks();
    thread::sleep(Duration::from_secs(2));
    let busy = node.cpu_ticks() - busy;
    println!("{busy} ticks of CPU in two seconds without work");
    assert!(busy < 100, "it is busy with having no files");
    assert_eq!(node.info("log_failed_cores"), 0, "it wants a restart");
    allow_files(&node, MANY_FILES);
    let resumed = load.insist(&node, RESUME_MAX);
    println!("writes go on after {resumed:.2?}");
    resumed.expect("there are files again");
    load.check(&node, Health::Sound, "with files again");
    assert!(node.is_running(), "it has ended: {}", node.said());
    node.kill();
    assert_sound(&disk.data());
    match launch_with_files(dir.path(), &disk, FILES).try_start() {
        Ok(node) => load.check(&node, Health::Sound, "after a restart without files"),
        Err((code, said)) => {
            println!("with {FILES} files it does not start again, {code:?}: {said}");
            assert!(said.contains("Too many open files"), "{said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    let node = launch_with_files(dir.path(), &disk, MANY_FILES).start();
    load.check(&node, Health::Sound, "after a restart with files");
    load.insist(&node, PATIENCE).expect("there are files");
}

/// Else a burst of clients would take the files that writes need.
#[test]
fn clients_that_take_all_descriptors_do_not_stop_writes() {
    const NAME: &str = "clients_that_take_all_descriptors_do_not_stop_writes";
    if !can(NAME, &["prlimit"]) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let disk = Disk::new(dir.path(), 256);
    let mut load = Load::new(WRITERS, &mut chance);
    let limit = format!("--nofile={FILES}:{FILES}");
    let launch = power_cuts::launch(dir.path(), &disk).through(&["prlimit", &limit]);
    let node = launch.start();
    load.start(&node, Work::Churn(60));
    let (served, refused) = flood(&node, FILES as usize);
    let (open, before) = (served.len(), count(&load.progress.acknowledged));
    wait_until("much more is written", 3 * PATIENCE, || {
        count(&load.progress.acknowledged) > before + 3000
    });
    load.stop();
    let errors = load.take_errors();
    println!("{open} clients served, {refused} refused, errors {errors:?}");
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(open > 100, "hardly anybody is served");
    assert!(refused > 0, "nobody is refused: no test");
    drop(served);
    wait_until("they have left", PATIENCE, || flood(&node, 20).1 == 0);
    load.check(&node, Health::Sound, "after a burst of clients");
}

/// Lets directories take and give no files any more, though those that are open can be written to;
/// on drop they do again.
struct Frozen(Vec<PathBuf>);

impl Frozen {
    fn new(dirs: Vec<PathBuf>) -> Frozen {
        let frozen = Frozen(dirs);
        frozen.change("+i");
        frozen
    }

    fn change(&self, how: &str) {
        for dir in &self.0 {
            let dir = dir.to_str().expect("a test's paths are text");
            run(&["chattr", how, dir]).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.change("-i");
    }
}

/// Else whoever writes would wait for ever for a file that is never made.
#[test]
fn where_no_file_can_be_made_or_removed_writes_are_refused_and_nobody_hangs() {
    const NAME: &str = "where_no_file_can_be_made_or_removed_writes_are_refused_and_nobody_hangs";
    if !can(NAME, &["chattr"]) {
        return;
    }
    let mut chance = chance(NAME);
    let dir = scratch();
    let disk = Disk::new(dir.path(), 256);
    let mut load = Load::new(WRITERS, &mut chance);
    let mut node = power_cuts::launch(dir.path(), &disk).start();
    for _ in 0..times(2, 30) {
        load.start(&node, Work::Churn(100));
        thread::sleep(Duration::from_millis(chance.u64(200..700)));
        let cores = (0..CORES).map(|core| disk.data().join(format!("core-{core:03}")));
        let frozen = Frozen::new(cores.collect());
        let before = count(&load.progress.refused);
        wait_until("writes are refused", PATIENCE / 2, || {
            count(&load.progress.refused) > before + 50
        });
        thread::sleep(Duration::from_secs(1));
        // Everybody is answered, whatever he has asked for.
        load.stop();
        let errors = load.take_errors();
        // A manifest that was being renamed leaves its core refusing writes until a restart.
        let failed = node.info("log_failed_cores") > 0;
        let is_clear = |text: &String| {
            text.starts_with("MISCONF The disk fails")
                || (failed && (text.starts_with("MISCONF") || text.starts_with("UNKNOWN")))
        };
        assert!(errors.keys().all(is_clear), "{errors:#?}");
        let health = match failed {
            true => Health::Sick,
            false => Health::Sound,
        };
        load.check(&node, health, "while no file can be made");
        drop(frozen);
        if failed {
            println!("a core has failed: {errors:?}");
            node.kill();
            node = power_cuts::launch(dir.path(), &disk).start();
        }
        let resumed = load.insist(&node, Duration::from_secs(5));
        println!("refused {errors:?}; writes go on after {resumed:.2?}");
        resumed.expect("files can be made again");
    }
    assert!(node.is_running(), "it has ended: {}", node.said());
    node.kill();
    assert_sound(&disk.data());
    let node = power_cuts::launch(dir.path(), &disk).start();
    load.check(&node, Health::Sound, "after a restart");
}

/// Else a kernel that protects a damaged disk would make a node lose what it has acknowledged.
#[test]
fn a_file_system_that_turns_read_only_loses_no_acknowledged_write() {
    const NAME: &str = "a_file_system_that_turns_read_only_loses_no_acknowledged_write";
    if !can(NAME, &["e2fsck"]) {
        return;
    }
    let mut chance = chance(NAME);
    for _ in 0..times(1, 20) {
        let dir = scratch();
        let mut disk = Disk::new(dir.path(), 256);
        let mut load = Load::new(WRITERS, &mut chance);
        let mut node = power_cuts::launch(dir.path(), &disk).start();
        load.start(&node, Work::Churn(100));
        thread::sleep(Duration::from_millis(chance.u64(300..1200)));
        load.doubt();
        disk.report_error();
        wait_until("writes are refused", PATIENCE, || {
            count(&load.progress.refused) > 20
        });
        load.stop();
        let errors = load.take_errors();
        let is_clear = |text: &String| text.starts_with("MISCONF") || text.starts_with("UNKNOWN");
        assert!(errors.keys().all(is_clear), "{errors:#?}");
        assert!(node.is_running(), "it has ended: {}", node.said());
        load.check(&node, Health::Doubted, "while nothing can be written");
        // What is there can be read; of what was on its way to the disk nobody knows.
        let reads = load.take_read_errors();
        let is_clear = |text: &String| text.starts_with("UNKNOWN");
        assert!(reads.keys().all(is_clear), "{reads:#?}");
        let code = node.stop("TERM");
        println!("refused: {errors:?}; reads {reads:?}; an orderly stop ends with {code:?}");
        disk.repair();
        assert_sound(&disk.data());
        let node = power_cuts::launch(dir.path(), &disk).start();
        load.check(
            &node,
            Health::Sound,
            "after a restart on a repaired file system",
        );
        load.insist(&node, Duration::from_secs(5))
            .expect("all is well again");
    }
}

/// A control group (version 1) that limits memory. It goes away with this.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Option<MemoryGroup> {
        let name = format!("quoit-test-{}", std::process::id());
        let group = Path::new("/sys/fs/cgroup/memory").join(name);
        fs::create_dir(&group).ok()?;
        let group = MemoryGroup(group);
        fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(group)
    }

    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// How often the kernel has killed for want of memory.
    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.oom_control")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel may take a moment to see the last process go.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} cannot be removed", self.0.display());
    }
}

/// Else the kernel would kill a node whose data does not fit into memory.
#[test]
fn data_many_times_the_memory_budget_never_gets_the_node_killed() {
    const NAME: &str = "data_many_times_the_memory_budget_never_gets_the_node_killed";
    const BUDGET: u64 = 32 << 20;
    if !can(NAME, &["sh"]) {
        return;
    }
    let Some(group) = MemoryGroup::new(BUDGET + CONSTANT_BYTES) else {
        skip(NAME, "there are no control groups (version 1) for memory");
        return;
    };
    let mut chance = chance(NAME);
    let dir = scratch();
    let times_budget = u64::from(times(4, 40));
    let disk = Disk::new(dir.path(), 160 + 2 * times_budget * (BUDGET >> 20));
    let enter = format!("echo $$ > {}/tasks; exec \"$0\" \"$@\"", group.0.display());
    let config = "memory = \"32MiB\"\n[storage]\nmemtable = \"2MiB\"\nwal-max = \"16MiB\"\n\
                  wal-segment = \"4MiB\"\n[value-log]\nsegment = \"8MiB\"\nreplay-max = \"32MiB\"\n";
    let launch = || {
        let launch = Launch::new(dir.path()).config(config);
        let launch = launch.with("--dir", disk.data().display());
        launch.through(&["sh", "-c", &enter])
    };
    let mut load = Load::new(WRITERS, &mut chance);
    let mut node = launch().start();
    load.start(&node, Work::Fill);
    let large = times_budget * BUDGET / 10_000;
    wait_until("enough is written", 10 * PATIENCE, || {
        count(&load.progress.large) > large
    });
    load.stop();
    let errors = load.take_errors();
    assert!(errors.is_empty(), "{errors:#?}");
    load.check(&node, Health::Sound, "with more data than memory");
    let resident = node.resident_bytes();
    assert!(node.is_running(), "it has ended: {}", node.said());
    // A restart reads logs, and has the same bound.
    node.kill();
    let mut node = launch().start();
    load.check(&node, Health::Sound, "after a restart");
    let most = group.number("memory.max_usage_in_bytes");
    println!(
        "{} keys, {times_budget} times the budget: resident {} MiB then, {} MiB after a restart; \
         the group had {} MiB at most (limit {}), met its limit {} times",
        load.keys(),
        resident >> 20,
        node.resident_bytes() >> 20,
        most >> 20,
        (BUDGET + CONSTANT_BYTES) >> 20,
        group.number("memory.failcnt")
    );
    assert!(node.is_running(), "it has ended: {}", node.said());
    assert_eq!(group.kills(), 0, "the kernel has killed for want of memory");
    assert!(
        most > BUDGET / 4,
        "hardly any memory was used: was it in the group?"
    );
    assert!(
        resident < BUDGET + CONSTANT_BYTES,
        "{resident} bytes are resident"
    );
    node.kill();
}
