//! Real nodes that keep for each other what one of them has missed, and tell it when it is back.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Launch, Node, PATIENCE, QUOIT, Value, free_ports, scratch};

/// Cores of each node.
const CORES: u16 = 2;
/// Keys that are written while a node is away.
const KEYS: usize = 600;

/// How node `number` of a cluster of three is started whose peers' ports begin at `peers`.
fn launch(dir: &Path, number: u16, peers: u16) -> Launch {
    let own = dir.join(format!("node-{number}"));
    fs::create_dir_all(&own).expect("the test's directory is writable");
    let join = match number {
        1 => String::new(),
        _ => format!("join = [\"127.0.0.1:{peers}\"]\n"),
    };
    let port = peers + (number - 1) * CORES;
    let times = "gossip-interval-ms = 100\nsuspect-after-ms = 1000\ndead-after-ms = 3000\nreplica-timeout-ms = 2000\n";
    Launch::new(&own)
        .config(&format!("{join}peer-port = {port}\n{times}"))
        .without("--peer-port")
}

/// Waits until it is so; there is an end to patience.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: this never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Three nodes that see each other, in a cluster that holds data.
fn three_nodes(dir: &Path, peers: u16) -> [Node; 3] {
    let nodes = [1, 2, 3].map(|number| launch(dir, number, peers).start());
    for node in &nodes {
        wait_for("they see each other", || {
            let info = node.client().ask("INFO cluster").text();
            info.contains("cluster_nodes:3") && info.matches("standing=alive").count() == 2
        });
    }
    wait_for("a first write", || {
        let told = nodes[0].client().ask("KV.PUT first 1 CONSISTENCY all");
        matches!(told, Value::List(_))
    });
    nodes
}

fn value_of(key: usize) -> String {
    format!("{key}:{}", "v".repeat([1, 100, 5_000][key % 3]))
}

/// Writes all keys at ONE to these nodes in turn; what is kept for node 3 in the end.
fn write_all(nodes: &[&Node]) {
    for (index, node) in nodes.iter().enumerate() {
        let mut client = node.client();
        for key in (index..KEYS).step_by(nodes.len()) {
            let words = ["SET", &format!("key:{key}"), &value_of(key)];
            assert_eq!(
                client.ask_words(&words).text(),
                "OK",
                "one replica is enough"
            );
        }
    }
    wait_for("a hint for every key", || {
        let kept: u64 = nodes.iter().map(|node| node.info("hints")).sum();
        kept >= KEYS as u64
    });
}

/// Else a node that comes back would lack what nobody reads, and nobody would see that.
#[test]
fn a_node_that_was_killed_is_told_what_it_has_missed() {
    let dir = scratch();
    let peers = free_ports(3 * CORES);
    let [one, two, three] = three_nodes(dir.path(), peers);
    three.kill();
    write_all(&[&one, &two]);
    let status = Command::new(QUOIT)
        .args(["status", "--port", &one.address.port().to_string()])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    let kept = one.info("hints").to_string();
    let is_row =
        |line: &&str| line.starts_with("3 ") && line.split_whitespace().any(|word| word == kept);
    assert!(told.lines().any(|line| is_row(&line)), "{kept} in {told}");

    let three = launch(dir.path(), 3, peers).start();
    for node in [&one, &two] {
        wait_for("all was handed on", || node.info("hint_bytes") == 0);
        assert_eq!(node.info("hints"), 0);
        assert_eq!(node.info("hints_refused") + node.info("hints_damaged"), 0);
    }
    let said = format!("{}{}", one.said(), two.said());
    assert!(
        said.contains("node 3 is back") && said.contains("node 3 has all"),
        "{said}"
    );
    one.kill();
    two.kill();
    let mut client = three.client();
    for key in 0..KEYS {
        let told = client.ask_words(&["GET", &format!("key:{key}")]);
        assert_eq!(told, Value::bulk(&value_of(key)), "key {key}");
    }
}

fn check(dir: &Path) -> (Option<i32>, String) {
    let checked = Command::new(QUOIT).arg("check").arg(dir).output();
    let checked = checked.expect("it runs");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    (checked.status.code(), said)
}

fn hint_files(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("hints")).expect("there are hints");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
}

/// Else hints would be lost with a restart, shown to readers, or rot unseen.
#[test]
fn hints_outlive_their_keeper_and_are_checked_and_never_read() {
    let dir = scratch();
    let peers = free_ports(3 * CORES);
    let [one, two, three] = three_nodes(dir.path(), peers);
    three.kill();
    write_all(&[&one]);
    let (mut client, all) = (one.client(), KEYS + 1);
    assert_eq!(client.ask("DBSIZE").text(), all.to_string());
    assert_eq!(client.ask("KEYS *").list().len(), all);
    let kept = one.info("hints");
    assert_eq!(one.stop("TERM"), Some(0));
    let data = dir.path().join("node-1").join("data");
    let (code, said) = check(&data);
    assert!(
        code == Some(0) && said.contains(&format!("{kept} hints for other nodes")),
        "{code:?}: {said}"
    );
    let path = hint_files(&data).remove(0);
    let whole = fs::read(&path).expect("it is there");
    let mut damaged = whole.clone();
    damaged[4096 + 50] ^= 1;
    fs::write(&path, &damaged).expect("it is ours");
    let (code, said) = check(&data);
    assert!(
        code == Some(1) && said.contains("hints") && said.contains("at byte 4096"),
        "{code:?}: {said}"
    );
    fs::write(&path, &whole).expect("it is ours");

    let one = launch(dir.path(), 1, peers).start();
    wait_for("they are known again", || one.info("hints") == kept);
    let _three = launch(dir.path(), 3, peers).start();
    wait_for("all was handed on", || one.info("hint_bytes") == 0);
    assert_eq!(one.info("hints_handed_on"), kept);
    drop(two);
}
