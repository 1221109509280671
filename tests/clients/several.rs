//! Cluster clients as they are against three nodes: they find owners and copies, read from copies
//! when told to, see all keys once, and go on when a node is killed in the middle.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::common::{Launch, Node, PATIENCE, Value, scratch};
use super::{converse, npm_package, python, redis_cli_goes_from_port_to_port, within_two_minutes};

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

/// Runs a script against three nodes; the last one is killed when it says `kill`.
fn drive_three(command: Command, script: &str, more: &[&Path]) {
    let three = RefCell::new(Three::start(3));
    let entry = three.borrow().nodes[0].as_ref().expect("it runs").cores[1];
    let kill = || {
        let last = three.borrow_mut().nodes[2].take();
        last.expect("it runs").kill();
    };
    let said = || three.borrow().said();
    converse(command, (script, more), entry, ("kill", kill), said);
}

/// redis-py takes whoever it meets first as an owner for one for ever, and sends READONLY to all.
#[test]
fn redis_pys_cluster_client_uses_three_nodes() {
    let Some(python) = python() else { return };
    drive_three(within_two_minutes(python), "redis_py_several.py", &[]);
}

/// ioredis says READONLY only to those that are replicas to it.
#[test]
fn ioredis_cluster_client_uses_three_nodes() {
    let Some(dir) = npm_package("ioredis", "ioredis") else {
        return;
    };
    drive_three(within_two_minutes("node"), "ioredis_several.mjs", &[&dir]);
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
    redis_cli_goes_from_port_to_port(&ports, "31 keys in 6 masters");
}
