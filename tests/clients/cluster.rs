//! Cluster clients as they are, given one port of a node: each command goes to the core that owns
//! its key, none crosses cores, and a node that comes back with other cores is found again.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::common::{Launch, Node, free_ports, scratch};
use super::{
    converse, npm_package, python, redis_cli_goes_from_port_to_port, try_run, within_two_minutes,
};

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
/// the script says `again`.
fn drive_on(command: Command, script: &str, more: &[&Path]) {
    let place = Place::new();
    let node = RefCell::new(Some(place.start(2)));
    let entry = node.borrow().as_ref().expect("it runs").cores[1];
    let again = || {
        let before = node.take().expect("it runs");
        assert_eq!(before.info("commands_sent_to_other_cores"), 0);
        assert_eq!(before.stop("TERM"), Some(0));
        node.replace(Some(place.start(3)));
    };
    let said = || node.borrow().as_ref().map_or_else(String::new, Node::said);
    converse(command, (script, more), entry, ("again", again), said);
}

/// redis-py asks CLUSTER SLOTS, in RESP3 unless told otherwise.
#[test]
fn redis_pys_cluster_client_goes_straight_to_the_owner() {
    let Some(python) = python() else { return };
    drive_on(within_two_minutes(python), "redis_py_cluster.py", &[]);
}

/// ioredis asks CLUSTER SLOTS and CLUSTER INFO, and goes by INFO of each.
#[test]
fn ioredis_cluster_client_goes_straight_to_the_owner() {
    let Some(dir) = npm_package("ioredis", "ioredis") else {
        return;
    };
    drive_on(within_two_minutes("node"), "ioredis_cluster.mjs", &[&dir]);
}

/// `redis-cli -c` follows MOVED from whichever port it was given.
#[test]
fn redis_cli_follows_to_the_owner() {
    let place = Place::new();
    let node = place.start(3);
    let ports: Vec<u16> = node.cores.iter().map(SocketAddr::port).collect();
    redis_cli_goes_from_port_to_port(&ports, "30 keys in 3 masters");
    assert_eq!(node.info("commands_sent_to_other_cores"), 0);
}

/// `redis-benchmark --cluster` loads every core at its own port.
#[test]
fn redis_benchmark_loads_the_owners() {
    let place = Place::new();
    let node = place.start(2);
    let load = |at: SocketAddr| {
        let mut command = within_two_minutes("redis-benchmark");
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
