//! Cluster clients as they are against three nodes: they find owners and copies, read from copies when told to, see all keys
//! once, and go on when a node is killed in the middle.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{Launch, Node, PATIENCE, Value, scratch};
use super::{npm_package, python, try_run};

/// Cores of each node.
const CORES: u16 = 2;

/// Three nodes that know each other, with two replicas of each key or three.
struct Three {
    _dir: tempfile::TempDir,
    nodes: Vec<Option<Node>>,
}

impl Three {
    fn start(replicas: u8) -> Three {
        let dir = scratch();
        let launch = |number: u16, join: &str| {
            let own = dir.path().join(format!("node-{number}"));
            std::fs::create_dir_all(&own).expect("the test's directory is writable");
            let times = "gossip-interval-ms = 100\nsuspect-after-ms = 1000\ndead-after-ms = 3000\n";
            let config = format!("{join}replicas = {replicas}\n{times}");
            Launch::new(&own).config(&config).start()
        };
        let first = launch(0, "");
        // Its ports are left to chance: others know the first of a row.
        let join = format!("join = [\"{}\"]\n", first.peers[0]);
        let (second, third) = (launch(1, &join), launch(2, &join));
        let three = Three {
            nodes: [first, second, third].map(Some).into(),
            _dir: dir,
        };
        let deadline = Instant::now() + PATIENCE;
        let knows_all = |node: &Node| {
            let said = node.client().ask("CLUSTER NODES").text();
            let there = said.lines().filter(|line| !line.contains("fail"));
            let masters = there.filter(|line| line.contains("master ")).count();
            masters == usize::from(3 * CORES)
        };
        while !three.nodes.iter().flatten().all(knows_all) {
            assert!(Instant::now() < deadline, "they do not hear of each other");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The first write waits for the map's keepers; from here on the others take writes, too.
        for node in three.nodes.iter().flatten() {
            while !matches!(node.client().ask("SET first 1"), Value::Simple(_)) {
                assert!(Instant::now() < deadline, "nothing can be written");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        three
    }

    fn said(&self) -> String {
        let nodes = self.nodes.iter().flatten();
        nodes.map(|node| node.said() + "\n---\n").collect()
    }
}

/// Runs a script against three nodes; the last one is killed when it says `kill`. It says `ok` at its end.
fn drive(mut command: Command, script: &str, more: &[&Path]) {
    let mut three = Three::start(3);
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let entry = three.nodes[0].as_ref().expect("it runs").cores[1];
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
        if line == "kill" {
            three.nodes[2].take().expect("it runs").kill();
            stdin
                .write_all(b"go on\n")
                .expect("the script waits for it");
        }
        said.push(line);
    }
    let status = process.wait().expect("it is a child of ours");
    let said = said.join("\n");
    assert!(status.success(), "{said}\n{}", three.said());
    assert!(said.contains("ok "), "{said}");
    println!("{said}");
}

fn within_two_minutes(program: impl Into<PathBuf>) -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(program.into());
    command
}

/// redis-py takes whoever it meets first as an owner for one for ever, and sends READONLY to all.
#[test]
fn redis_pys_cluster_client_uses_three_nodes() {
    let Some(python) = python() else { return };
    drive(within_two_minutes(python), "redis_py_several.py", &[]);
}

/// ioredis says READONLY only to those that are replicas to it.
#[test]
fn ioredis_cluster_client_uses_three_nodes() {
    let Some(dir) = npm_package("ioredis", "ioredis") else {
        return;
    };
    drive(within_two_minutes("node"), "ioredis_several.mjs", &[&dir]);
}

/// `redis-cli -c` follows MOVED from node to node, and its check of a cluster is content.
#[test]
fn redis_cli_follows_from_node_to_node() {
    let three = Three::start(2);
    let ports: Vec<u16> = three
        .nodes
        .iter()
        .flatten()
        .flat_map(|node| node.cores.iter().map(|core| core.port()))
        .collect();
    let run = |port: u16, words: &[&str]| {
        let mut command = within_two_minutes("redis-cli");
        command.args(["-p", &port.to_string(), "-c"]).args(words);
        let output = try_run("no redis-cli", &mut command)?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for index in 0..30 {
        let (key, value) = (format!("key:{index}"), index.to_string());
        let (one, other) = (ports[index % 6], ports[(index + 3) % 6]);
        let Some(said) = run(one, &["SET", &key, &value]) else {
            return;
        };
        assert_eq!(said, "OK");
        assert_eq!(run(other, &["GET", &key]), Some(value));
    }
    let first = format!("127.0.0.1:{}", ports[0]);
    let said = run(ports[5], &["--cluster", "check", &first]).expect("it was there");
    for line in [
        "31 keys in 6 masters",
        "All 16384 slots covered",
        "All nodes agree",
    ] {
        assert!(said.contains(line), "{said}");
    }
}
