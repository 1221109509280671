//! Cluster clients as they are, given one port of a node: each command goes to the core that owns its key,
//! none crosses cores, and a node that comes back with other cores is found again.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::common::{Launch, Node, free_ports, scratch};
use super::{npm_package, python, try_run};

/// A node whose ports stay the same when it is started again.
struct Place {
    dir: tempfile::TempDir,
    core_port: u16,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: scratch(),
            core_port: free_ports(4),
        }
    }

    fn start(&self, cores: u16) -> Node {
        Launch::new(self.dir.path())
            .with("--core-port", self.core_port)
            .with("--cores", cores)
            .start()
    }
}

/// Runs a script of a client library against a node that is started again, with another core, when
/// the script says `again`; it says `ok` at its end.
fn drive_on(mut command: Command, script: &str, more: &[&Path]) {
    let place = Place::new();
    let mut node = place.start(2);
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let entry = node.cores[1];
    command
        .arg(script)
        .args([entry.ip().to_string(), entry.port().to_string()])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = command.spawn().expect("it ran before");
    let mut stdin = process.stdin.take().expect("it is piped");
    let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut said = Vec::new();
    for line in stdout.lines().map_while(Result::ok) {
        if line == "again" {
            assert_eq!(node.info("commands_sent_to_other_cores"), 0);
            assert_eq!(node.stop("TERM"), Some(0));
            node = place.start(3);
            stdin
                .write_all(b"go on\n")
                .expect("the script waits for it");
        }
        said.push(line);
    }
    let status = process.wait().expect("it is a child of ours");
    let said = said.join("\n");
    assert!(status.success(), "{said}\n{}", node.said());
    assert!(said.contains("ok "), "{said}");
    println!("{said}");
}

fn within_a_minute(program: impl Into<PathBuf>) -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program.into());
    command
}

/// redis-py asks CLUSTER SLOTS, in RESP3 unless told otherwise.
#[test]
fn redis_pys_cluster_client_goes_straight_to_the_owner() {
    let Some(python) = python() else { return };
    drive_on(within_a_minute(python), "redis_py_cluster.py", &[]);
}

/// ioredis asks CLUSTER SLOTS and CLUSTER INFO, and goes by INFO of each.
#[test]
fn ioredis_cluster_client_goes_straight_to_the_owner() {
    let Some(dir) = npm_package("ioredis", "ioredis") else {
        return;
    };
    drive_on(within_a_minute("node"), "ioredis_cluster.mjs", &[&dir]);
}

/// `redis-cli -c` follows MOVED from whichever port it was given.
#[test]
fn redis_cli_follows_to_the_owner() {
    let place = Place::new();
    let node = place.start(3);
    let run = |port: u16, words: &[&str]| {
        let mut command = within_a_minute("redis-cli");
        command.args(["-p", &port.to_string(), "-c"]).args(words);
        let output = try_run("no redis-cli", &mut command)?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for index in 0..30 {
        let (key, value) = (format!("key:{index}"), index.to_string());
        let (one, other) = (
            node.cores[index % 3].port(),
            node.cores[(index + 1) % 3].port(),
        );
        let Some(said) = run(one, &["SET", &key, &value]) else {
            return;
        };
        assert_eq!(said, "OK");
        assert_eq!(run(other, &["GET", &key]), Some(value));
    }
    let first = node.cores[0].to_string();
    let said = run(node.cores[2].port(), &["--cluster", "check", &first]);
    let said = said.expect("it was there");
    for line in [
        "30 keys in 3 masters",
        "All 16384 slots covered",
        "All nodes agree",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert_eq!(node.info("commands_sent_to_other_cores"), 0);
}

/// `redis-benchmark --cluster` loads every core at its own port.
#[test]
fn redis_benchmark_loads_the_owners() {
    let place = Place::new();
    let node = place.start(2);
    let load = |at: SocketAddr| {
        let mut command = within_a_minute("redis-benchmark");
        command.args(["--cluster", "-p", &at.port().to_string(), "--csv"]);
        command.args(["-t", "set,get,incr,mset", "-n", "20000", "-r", "5000"]);
        command.args(["-c", "8", "-P", "4", "--threads", "2"]);
        let output = try_run("no redis-benchmark", &mut command)?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(said) = load(node.cores[0]) else {
        return;
    };
    for name in ["SET", "GET", "INCR", "MSET (10 keys)"] {
        assert!(said.contains(&format!("\n\"{name}\",")), "{said}");
    }
    assert!(node.info("total_commands_processed") >= 80_000);
    assert_eq!(node.info("commands_sent_to_other_cores"), 0);
    assert_eq!(node.info("commands_redirected"), 0);
}
