//! `quoit check`, the real program on real directories: exit codes, what it says and where, and
//! that it leaves everything as it was.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use quoit::storage::wal::format::{SegmentId, Stream, decode_batch_header, decode_life};

use common::{Launch, PATIENCE, QUOIT, Value, request, scratch};

/// Small sizes, so that little data fills several files of each kind.
const CONFIG: &str = "[storage]
memtable = \"64KiB\"
wal-segment = \"64KiB\"
wal-max = \"128KiB\"
[value-log]
threshold = \"2KiB\"
segment = \"64KiB\"
replay-max = \"128KiB\"
garbage-max-percent = 20
";

/// A user who owns nothing.
const NOBODY: u32 = 65534;

/// What a check said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn has(&self, code: i32, words: &[&str]) {
        let all = format!("{}{}", self.out, self.err);
        let missing: Vec<_> = words.iter().filter(|word| !all.contains(**word)).collect();
        assert!(
            self.code == Some(code) && missing.is_empty(),
            "not {code} and {missing:?}: {self:?}"
        );
    }
}

fn check(dir: &Path) -> Said {
    run(Command::new(QUOIT).arg("check").arg(dir))
}

fn run(command: &mut Command) -> Said {
    command.env_remove("RUST_LOG");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is there");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child of ours").is_none() {
        if Instant::now() > deadline {
            // What it said until then is shown.
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("it has ended");
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Every file below `dir`: its bytes, and when it was last changed.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(tree(&path));
            continue;
        }
        let changed = fs::metadata(&path).and_then(|about| about.modified());
        let bytes = fs::read(&path).expect("a file");
        found.insert(path, (bytes, changed.expect("a time")));
    }
    found
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    tree(dir).into_keys().filter(is_one).collect()
}

/// A directory with data, of which no node runs.
fn made(dir: &Path) -> PathBuf {
    made_with(dir, CONFIG)
}

fn made_with(dir: &Path, config: &str) -> PathBuf {
    let node = Launch::new(dir).config(config).start();
    let mut client = node.client();
    for number in 0..400 {
        let (key, value) = (format!("key:{number}"), format!("{number:01000}"));
        client.send(&request(&["SET", &key, &value]));
        assert_eq!(client.read(), Value::ok());
    }
    // Large ones, over and over, so that some of them move.
    for number in 0..200 {
        let (key, value) = (format!("large:{}", number % 60), format!("{number:03000}"));
        client.send(&request(&["SET", &key, &value]));
        assert_eq!(client.read(), Value::ok());
    }
    thread::sleep(Duration::from_millis(300)); // flushes and merges
    node.kill();
    dir.join("data")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[at] ^= 4;
    fs::write(path, bytes).expect("it is ours");
}

/// An operator who is told nothing, or the wrong place, throws the wrong disk away.
#[test]
fn a_check_tells_sound_from_damaged_and_names_all_that_is() {
    let scratch = scratch();
    let dir = made(scratch.path());
    let before = tree(&dir);
    check(&dir).has(0, &["sound: 2 cores", " tables with ", "100%"]);
    assert_eq!(
        tree(&dir),
        before,
        "a check changes nothing, not even times"
    );

    let mut tables = files(&dir, "table");
    // The last one is the largest: it has more than one block.
    tables.sort_by_key(|path| fs::metadata(path).expect("a file").len());
    let logs: Vec<PathBuf> = files(&dir, "log");
    // Its first batch is its own, and not from an earlier life of the file.
    let is_used = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| SegmentId::from_file_name(Stream::Records, name));
        let bytes = fs::read(path).expect("a file");
        id.is_some() && decode_batch_header(&bytes[4096..], decode_life(&bytes)).is_some()
    };
    let log = logs.iter().rfind(is_used).expect("a log that is in use");
    flip(&tables[0], 100);
    flip(&tables[tables.len() - 1], 5_000);
    flip(log, 20);
    let said = check(&dir);
    let damaged = |path: &Path, at: u64| format!("damaged {} at byte {at}: ", path.display());
    said.has(
        1,
        &[
            &damaged(&tables[0], 0),
            &damaged(log, 0),
            "3 places are damaged",
        ],
    );
    said.has(
        1,
        &[&format!(
            "damaged {} at byte ",
            tables[tables.len() - 1].display()
        )],
    );

    fs::remove_file(dir.join("core-001/MANIFEST")).expect("it is there");
    check(&dir).has(
        1,
        &[
            &damaged(&dir.join("core-001/MANIFEST"), 0),
            "could not be checked",
        ],
    );
}

/// A value that rots is lost: an operator must learn which table misses it, and where it was.
#[test]
fn a_value_that_a_table_points_to_is_looked_at_where_it_lies() {
    let scratch = scratch();
    let dir = made(scratch.path());
    check(&dir).has(0, &["sound: 2 cores"]);
    let logs = files(&dir, "log");
    for stream in [Stream::Values, Stream::Moved] {
        let is_one = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| SegmentId::from_file_name(stream, name));
            id.is_some()
        };
        let mut damages = logs.iter().filter(is_one).map(|path| {
            let before = fs::read(path).expect("a file");
            for at in (4096 + 1000..before.len()).step_by(2048) {
                flip(path, at);
            }
            let said = check(&dir);
            fs::write(path, before).expect("it is ours");
            let names_both = |line: &str| {
                line.starts_with(&format!("damaged {} at byte ", path.display()))
                    && line.contains(".table points to a record here: the checksum")
            };
            said.code == Some(1) && said.out.lines().any(names_both)
        });
        assert!(damages.any(|is_named| is_named), "{stream:?}");
    }
    check(&dir).has(0, &["sound: 2 cores"]);
}

/// Packed values are values: they are looked into, and linked when the node gets other cores.
#[test]
fn packed_values_are_checked_and_come_back_with_other_cores_and_without_the_setting() {
    let scratch = scratch();
    let dir = made_with(scratch.path(), &format!("{CONFIG}compression = \"lz4\"\n"));
    check(&dir).has(0, &["sound: 2 cores"]);
    let launch = Launch::new(scratch.path()).config(CONFIG);
    let node = launch.with("--cores", 3).start();
    let mut client = node.client();
    for number in 140..200 {
        let (key, value) = (format!("large:{}", number % 60), format!("{number:03000}"));
        client.send(&request(&["STRLEN", &key]));
        assert_eq!(client.read(), Value::Integer(3000), "{key}");
        client.send(&request(&["GET", &key]));
        assert_eq!(client.read(), Value::bulk(&value), "{key}");
    }
    node.kill();
    check(&dir).has(0, &["sound: 3 cores"]);
    let is_value = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let has = |word: &str| name.is_some_and(|name| name.starts_with(word));
        has("values") || has("moved")
    };
    let logs = files(&dir, "log");
    for path in logs.iter().filter(is_value) {
        // Each value is the end of a block's zeros, and of some thirty bytes.
        (4096..fs::metadata(path).expect("a file").len() as usize)
            .step_by(4096)
            .for_each(|block| flip(path, block + 120));
    }
    check(&dir).has(1, &["checksum"]);
}

/// Of a directory that changes meanwhile, or that is none, a check has nothing true to say.
#[test]
fn a_check_refuses_what_it_cannot_check() {
    let scratch = scratch();
    let node = Launch::new(scratch.path()).config(CONFIG).start();
    let dir = scratch.path().join("data");
    check(&dir).has(2, &["in use by another process"]);
    assert_eq!(node.stop("TERM"), Some(0));
    check(&dir).has(0, &["sound: 2 cores"]);
    check(&scratch.path().join("nowhere")).has(2, &["nowhere"]);
    let empty = scratch.path().join("empty");
    fs::create_dir(&empty).expect("it is ours");
    check(&empty).has(2, &["no data"]);
    assert!(tree(&empty).is_empty(), "a check leaves nothing behind");
    fs::write(empty.join("letter"), "dear").expect("it is ours");
    check(&empty).has(2, &["no data directory of Quoit"]);
}

/// A copy that one may only read, a backup for one, is checked like any other.
#[test]
fn a_directory_that_one_may_only_read_is_checked_too() {
    let scratch = scratch();
    let dir = made(scratch.path());
    let mode = |path: &Path, mode| {
        let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set.expect("it is ours");
    };
    tree(&dir).keys().for_each(|path| mode(path, 0o444));
    let folders = ["", "core-000", "core-001"].map(|name| dir.join(name));
    folders.iter().for_each(|folder| mode(folder, 0o555));
    mode(scratch.path(), 0o755);
    let mut command = Command::new(QUOIT);
    if fs::metadata(&dir).is_ok_and(|about| about.uid() == 0) {
        command.uid(NOBODY); // root may write anywhere
    }
    run(command.arg("check").arg(&dir)).has(0, &["sound: 2 cores"]);
    folders.iter().for_each(|folder| mode(folder, 0o755));
    fs::remove_file(dir.join("LOCK")).expect("it is ours");
    check(&dir).has(0, &["note ", "LOCK", "sound: 2 cores"]);
    assert!(!dir.join("LOCK").exists(), "a check makes no lock");
}

/// A machine that gets more cores, or fewer, keeps its data: a kill and a start with another
/// number, and back.
#[test]
fn what_was_written_is_there_with_any_number_of_cores_and_the_directory_is_sound() {
    let scratch = scratch();
    let dir = made(scratch.path());
    for cores in [1, 3, 3, 2] {
        let launch = Launch::new(scratch.path()).config(CONFIG);
        let node = launch.with("--cores", cores).start();
        let mut client = node.client();
        for number in 0..400 {
            let (key, value) = (format!("key:{number}"), format!("{number:01000}"));
            client.send(&request(&["GET", &key]));
            assert_eq!(client.read(), Value::bulk(&value), "{cores} cores: {key}");
        }
        for number in 140..200 {
            let (key, value) = (format!("large:{}", number % 60), format!("{number:03000}"));
            client.send(&request(&["GET", &key]));
            assert_eq!(client.read(), Value::bulk(&value), "{cores} cores: {key}");
        }
        client.send(&request(&["DBSIZE"]));
        assert_eq!(client.read(), Value::Integer(460), "{cores} cores");
        node.kill();
        check(&dir).has(0, &[&format!("sound: {cores} cores")]);
        let folders = fs::read_dir(&dir).expect("a directory").filter(|entry| {
            let entry = entry.as_ref().expect("an entry");
            entry.path().is_dir()
        });
        assert_eq!(
            folders.count(),
            cores,
            "a folder for each core, and no other"
        );
    }
}
