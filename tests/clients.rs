//! Client libraries as they are: what their users do works, in both protocols.
//!
//! The Python and JavaScript ones are installed in the build directory, by the tools of the
//! machine; where these or the network are missing, the test says why it skips.

mod common;

#[path = "clients/cluster.rs"]
mod cluster;
#[path = "clients/several.rs"]
mod several;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use common::{Launch, Node, scratch};
use redis::{Commands, Connection, ErrorKind, RedisResult};

fn start(dir: &Path) -> Node {
    Launch::new(dir).start()
}

fn connect(node: &Node, protocol: u8) -> Connection {
    let url = format!("redis://{}/?protocol=resp{protocol}", node.address);
    let client = redis::Client::open(url).expect("an address");
    client.get_connection().expect("the node takes it")
}

/// Calls `test` in RESP2 and in RESP3, each on an empty node.
fn in_both_protocols(test: impl Fn(&Node, &mut Connection)) {
    for protocol in [2, 3] {
        let dir = scratch();
        let node = start(dir.path());
        test(&node, &mut connect(&node, protocol));
    }
}

/// The everyday commands give the types that a typed client asks for.
#[test]
fn redis_rs_reads_and_writes() {
    in_both_protocols(|_, redis| -> () {
        let _: () = redis.set("a", 1).expect("SET");
        let value: i64 = redis.get("a").expect("GET");
        assert_eq!(value, 1);
        let value: Option<String> = redis.get("absent").expect("GET");
        assert_eq!(value, None);
        let set: bool = redis.set_nx("a", 2).expect("SETNX");
        assert!(!set, "it was there");
        let _: () = redis
            .mset(&[("x", "1"), ("y", "2"), ("z", "3")])
            .expect("MSET");
        let values: Vec<Option<u32>> = redis.mget(&["x", "absent", "z"]).expect("MGET");
        assert_eq!(values, [Some(1), None, Some(3)]);
        let sum: i64 = redis.incr("counter", 5).expect("INCRBY");
        assert_eq!(sum, 5);
        let deleted: usize = redis.del(&["x", "y", "absent"]).expect("DEL");
        assert_eq!(deleted, 2);
        let every_byte: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let _: () = redis.set(&b"\0\r\n\xff"[..], &every_byte).expect("SET");
        let value: Vec<u8> = redis.get(&b"\0\r\n\xff"[..]).expect("GET");
        assert_eq!(value, every_byte);
        let wrong: RedisResult<i64> = redis.incr(&b"\0\r\n\xff"[..], 1);
        let wrong = wrong.expect_err("no number");
        assert!(wrong.to_string().contains("not an integer"), "{wrong}");
    });
}

/// Expiry, as clients set it and ask for it.
#[test]
fn redis_rs_lends_keys_for_a_time() {
    in_both_protocols(|_, redis| {
        let _: () = redis.set_ex("a", "1", 100).expect("SETEX");
        let seconds: i64 = redis.ttl("a").expect("TTL");
        assert!((95..=100).contains(&seconds), "{seconds} s");
        let done: bool = redis.pexpire("a", 50_000).expect("PEXPIRE");
        assert!(done);
        let millis: i64 = redis.pttl("a").expect("PTTL");
        assert!((45_000..=50_000).contains(&millis), "{millis} ms");
        let done: bool = redis.persist("a").expect("PERSIST");
        assert!(done);
        let seconds: i64 = redis.ttl("a").expect("TTL");
        assert_eq!(seconds, -1);
        let seconds: i64 = redis.ttl("absent").expect("TTL");
        assert_eq!(seconds, -2);
        let _: () = redis.pset_ex("b", "1", 60).expect("PSETEX");
        std::thread::sleep(std::time::Duration::from_millis(80));
        let there: bool = redis.exists("b").expect("EXISTS");
        assert!(!there, "it is over");
    });
}

/// Pipelines keep their order, whichever core owns each key; atomic ones are one transaction.
#[test]
fn redis_rs_pipelines() {
    in_both_protocols(|_, redis| {
        let mut pipe = redis::pipe();
        for index in 0..2_000 {
            pipe.set(format!("key:{index}"), index).ignore();
            pipe.get(format!("key:{index}"));
        }
        let values: Vec<usize> = pipe.query(redis).expect("a pipeline");
        assert_eq!(values, (0..2_000).collect::<Vec<_>>());
        let mut pipe = redis::pipe();
        pipe.atomic();
        for index in 0..50 {
            pipe.incr("sum", index).get(format!("key:{index}"));
        }
        let values: Vec<i64> = pipe.query(redis).expect("an atomic pipeline");
        assert_eq!(values.len(), 100);
        assert_eq!(values[98], (0..50).sum::<i64>());
        assert_eq!(values[99], 49);
    });
}

/// WATCH: of clients that change one key at once each sees what the others did.
#[test]
fn redis_rs_counts_by_optimistic_transactions() {
    in_both_protocols(|node, redis| {
        let _: () = redis.set("count", 0).expect("SET");
        let count = |mut redis: Connection| {
            for _ in 0..25 {
                let keys = ["count"];
                let counted: (i64,) = redis::transaction(&mut redis, &keys, |redis, pipe| {
                    let value: i64 = redis.get("count")?;
                    pipe.set("count", value + 1)
                        .ignore()
                        .get("count")
                        .query(redis)
                })
                .expect("a transaction");
                assert!(counted.0 > 0);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let redis = connect(node, 2);
                scope.spawn(move || count(redis));
            }
        });
        let value: i64 = redis.get("count").expect("GET");
        assert_eq!(value, 100, "a count was lost");
    });
}

/// SCAN returns every key, in pages of any size, over all cores.
#[test]
fn redis_rs_scans_a_thousand_keys() {
    in_both_protocols(|_, redis| {
        let mut pipe = redis::pipe();
        (0..1_000).for_each(|index| {
            pipe.set(format!("scan:{index}"), index).ignore();
        });
        pipe.set("other", 1).ignore();
        let _: () = pipe.query(redis).expect("a pipeline");
        let keys: Vec<String> = redis
            .scan_match("scan:*")
            .expect("SCAN")
            .collect::<RedisResult<_>>()
            .expect("keys");
        let distinct: HashSet<&String> = keys.iter().collect();
        assert_eq!((keys.len(), distinct.len()), (1_000, 1_000));
        let all: Vec<String> = redis
            .scan()
            .expect("SCAN")
            .collect::<RedisResult<_>>()
            .expect("keys");
        assert_eq!(all.len(), 1_001);
    });
}

/// A password is given as the library gives it, and a wrong one is the error that it knows.
#[test]
fn redis_rs_logs_in() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--password", "secret").start();
    for protocol in [2, 3] {
        let open = |password: &str| {
            let address = node.address;
            let url = format!("redis://:{password}@{address}/?protocol=resp{protocol}");
            redis::Client::open(url)
                .expect("an address")
                .get_connection()
        };
        let pong: String = redis::cmd("PING")
            .query(&mut open("secret").expect("the right password"))
            .expect("PING");
        assert_eq!(pong, "PONG");
        let refused = open("wrong").map(drop).expect_err("a wrong password");
        // AUTH is told apart by the library, HELLO's error is handed on.
        let known = refused.kind() == ErrorKind::AuthenticationFailed;
        assert!(known || refused.code() == Some("WRONGPASS"), "{refused:?}");
    }
}

/// Runs a command; `None`, with the reason printed, if it cannot be had or fails.
fn try_run(what: &str, command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) if output.status.success() => Some(output),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("skipped: {what}: {said}");
            None
        }
        Err(error) => {
            println!("skipped: {what}: {error}");
            None
        }
    }
}

/// Has `command` run a script, which is told of the node at `entry`, and of `more`.
fn with_script<'c>(
    command: &'c mut Command,
    (script, more): (&str, &[&Path]),
    entry: SocketAddr,
) -> &'c mut Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    command
        .arg(script)
        .args([entry.ip().to_string(), entry.port().to_string()])
        .args(more)
}

/// Runs a script of a client library against a fresh node; it says `ok` at its end.
fn drive(command: &mut Command, script: &str, more: &[&Path]) {
    let dir = scratch();
    let node = start(dir.path());
    let output = with_script(command, (script, more), node.address)
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{wrong}\n{}", node.said());
    assert!(said.starts_with("ok "), "{said}\n{wrong}");
    print!("{said}");
}

/// Where a library is installed once, for every run of the tests.
fn installed_in(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A Python with redis-py; `None`, with the reason printed, if it cannot be had.
fn python() -> Option<PathBuf> {
    let _alone = INSTALLING.lock();
    let dir = installed_in("redis-py");
    let python = dir.join("bin/python");
    let is_there = |python: &Path| {
        let mut command = Command::new("timeout");
        command.arg("30").arg(python).args(["-c", "import redis"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !is_there(&python) {
        let mut venv = Command::new("timeout");
        venv.args(["60", "python3", "-m", "venv"]).arg(&dir);
        try_run("no Python environment", &mut venv)?;
        let mut pip = Command::new("timeout");
        pip.arg("60").arg(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--retries", "0", "redis"]);
        try_run("redis-py cannot be installed", &mut pip)?;
    }
    Some(python)
}

/// `program`, which is ended if it takes longer.
fn within_two_minutes(program: impl Into<PathBuf>) -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(program.into());
    command
}

/// Has a script of a client library talk to the node at `entry`. When it says `cue`, `act` is done,
/// and it is told a line. It says `ok` at its end; `said` tells what nodes say if it does not.
fn converse(
    mut command: Command,
    (script, more): (&str, &[&Path]),
    entry: SocketAddr,
    (cue, mut act): (&str, impl FnMut()),
    said: impl FnOnce() -> String,
) {
    with_script(&mut command, (script, more), entry)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = command.spawn().expect("it ran before");
    let mut stdin = process.stdin.take().expect("it is piped");
    let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut told = Vec::new();
    for line in stdout.lines().map_while(Result::ok) {
        if line == cue {
            act();
            stdin
                .write_all(b"go on\n")
                .expect("the script waits for it");
        }
        told.push(line);
    }
    let status = process.wait().expect("it is a child of ours");
    let told = told.join("\n");
    assert!(
        status.success() && told.contains("ok "),
        "{told}\n{}",
        said()
    );
    println!("{told}");
}

/// `redis-cli -c` writes at one of these ports and reads at another, and finds `whole` right when
/// it checks the cluster; without redis-cli it is said that nothing is.
fn redis_cli_goes_from_port_to_port(ports: &[u16], whole: &str) {
    let run = |port: u16, words: &[&str]| {
        let mut command = within_two_minutes("redis-cli");
        command.args(["-p", &port.to_string(), "-c"]).args(words);
        let output = try_run("no redis-cli", &mut command)?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for index in 0..30 {
        let (key, value) = (format!("key:{index}"), index.to_string());
        let other = (index + ports.len() / 2) % ports.len();
        let Some(said) = run(ports[index % ports.len()], &["SET", &key, &value]) else {
            return;
        };
        assert_eq!(said, "OK");
        assert_eq!(run(ports[other], &["GET", &key]), Some(value));
    }
    let first = format!("127.0.0.1:{}", ports[0]);
    let last = ports[ports.len() - 1];
    let said = run(last, &["--cluster", "check", &first]).expect("it was there");
    for line in [whole, "All 16384 slots covered", "All nodes agree"] {
        assert!(said.contains(line), "{said}");
    }
}

/// A directory with a package of npm in it; `None`, with the reason printed, if it cannot be had.
fn npm_package(directory: &str, package: &str) -> Option<PathBuf> {
    let _alone = INSTALLING.lock();
    let dir = installed_in(directory);
    let there = format!("node_modules/{package}/package.json");
    if !dir.join(there).exists() {
        let node = Command::new("node").arg("--version").output();
        if !node.is_ok_and(|output| output.status.success()) {
            println!("skipped: there is no node on the PATH");
            return None;
        }
        std::fs::create_dir_all(&dir).expect("the build directory is writable");
        let mut npm = Command::new("timeout");
        npm.args(["60", "npm", "install", "--no-audit", "--no-fund"]);
        npm.arg("--prefix").arg(&dir).arg(package);
        try_run(&format!("{package} cannot be installed"), &mut npm)?;
    }
    Some(dir)
}

/// Two tests may want the same library at the same time.
static INSTALLING: Mutex<()> = Mutex::new(());

/// redis-py speaks RESP3 unless told otherwise, and makes every pipeline a transaction.
#[test]
fn redis_py_works() {
    let Some(python) = python() else { return };
    let mut timeout = Command::new("timeout");
    drive(timeout.arg("60").arg(&python), "redis_py.py", &[]);
}

/// node-redis, with its automatic pipelines.
#[test]
fn node_redis_works() {
    let Some(dir) = npm_package("node-redis", "redis") else {
        return;
    };
    let mut timeout = Command::new("timeout");
    drive(timeout.args(["60", "node"]), "node_redis.mjs", &[&dir]);
}
