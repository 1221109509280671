//! Several real nodes on one machine: three lines of configuration make a cluster, and it notices
//! who goes and comes back.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Launch, Node, PATIENCE, QUOIT, Value, free_ports, scratch};

/// Cores of each node.
const CORES: u16 = 2;

/// How node `number` of a cluster is started whose peers' ports begin at `peers`.
fn launch(dir: &Path, number: u16, peers: u16) -> Launch {
    let join = (number > 1).then_some(peers);
    launch_at(dir, number, peers + (number - 1) * CORES, join)
}

/// How a node is started at peer port `port` that is to join the one at `join`.
fn launch_at(dir: &Path, number: u16, port: u16, join: Option<u16>) -> Launch {
    let own = dir.join(format!("node-{number}"));
    std::fs::create_dir_all(&own).expect("the test's directory is writable");
    let join = join.map_or_else(String::new, |join| {
        format!("join = [\"127.0.0.1:{join}\"]\n")
    });
    let times = "gossip-interval-ms = 100\nsuspect-after-ms = 1000\ndead-after-ms = 3000\n";
    Launch::new(&own)
        .config(&format!(
            "{join}peer-port = {port}\nrack = \"r{number}\"\n{times}"
        ))
        .without("--peer-port")
}

/// One field of one node, as `node` tells it in INFO.
fn field(node: &Node, number: u16, name: &str) -> String {
    let info = node.client().ask("INFO cluster").text();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("node{number}:")));
    let parts = line.unwrap_or_default().split(',');
    let value = parts
        .filter_map(|part| part.split_once('='))
        .find(|(key, _)| *key == name);
    value.map_or_else(String::new, |(_, value)| value.to_owned())
}

/// Waits until it is so; there is an end to patience.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: this never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sees(node: &Node, number: u16, standing: &str) -> bool {
    field(node, number, "standing") == standing
}

/// Else people would need a hand-made map, or a hand to bring a node back, or ask nodes that are
/// gone.
#[test]
fn three_nodes_form_a_cluster_that_notices_who_goes_and_comes_back() {
    let dir = scratch();
    let peers = free_ports(3 * CORES);
    let one = launch(dir.path(), 1, peers).start();
    let two = launch(dir.path(), 2, peers).start();
    let three = launch(dir.path(), 3, peers).start();
    for node in [&one, &two, &three] {
        wait_for("a map of three, kept by three", || {
            let info = node.client().ask("INFO cluster").text();
            info.contains("cluster_nodes:3") && info.contains("cluster_map_kept_by:1 2 3")
        });
    }
    for (node, others) in [(&one, [2, 3]), (&two, [1, 3]), (&three, [1, 2])] {
        for other in others {
            wait_for("they see each other", || sees(node, other, "alive"));
        }
    }
    assert_eq!(field(&one, 3, "rack"), "r3");
    assert_eq!(field(&two, 2, "standing"), "self");
    let status = Command::new(QUOIT)
        .args(["status", "--port", &two.address.port().to_string()])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.status.success() && told.contains("3 nodes"),
        "{told}"
    );
    assert!(
        told.contains("3 of 3 replicas") && told.contains("alive"),
        "{told}"
    );

    three.kill();
    wait_for("it is missed", || {
        !sees(&one, 3, "alive") && !sees(&two, 3, "alive")
    });
    wait_for("it is dead", || {
        sees(&one, 3, "dead") && sees(&two, 3, "dead")
    });
    let three = launch(dir.path(), 3, peers).start();
    for node in [&one, &two] {
        wait_for("it is back", || sees(node, 3, "alive"));
    }
    wait_for("it knows the others", || {
        sees(&three, 1, "alive") && sees(&three, 2, "alive")
    });
    let said = one.said();
    assert!(
        said.contains("node 3 is dead") && said.contains("node 3 is alive"),
        "{said}"
    );
}

/// A figure of the page for monitors.
fn figure(node: &Node, name: &str) -> f64 {
    let mut stream = TcpStream::connect(node.http).expect("it listens");
    let request = b"GET /metrics HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("it is open");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("it answers");
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {page}"))
}

/// Else nobody could tell which node is the slow one, or that one is gone.
#[test]
fn how_long_nodes_take_and_how_many_are_there_is_told() {
    let dir = scratch();
    let peers = free_ports(3 * CORES);
    let [one, two, three] = [1, 2, 3].map(|number| launch(dir.path(), number, peers).start());
    for other in [2, 3] {
        wait_for("they see each other", || sees(&one, other, "alive"));
    }
    assert_eq!(field(&one, 2, "reads_p50_ms"), "", "nobody was asked yet");
    let mut client = one.client();
    client.ask("KV.CONSISTENCY READ quorum WRITE quorum");
    for key in 0..300 {
        assert_eq!(client.ask(&format!("SET {key} {key}")), Value::ok());
        assert_eq!(client.ask(&format!("GET {key}")).text(), key.to_string());
    }
    // A majority is asked what it holds, and all are to store.
    for (number, kind) in [(1, "reads"), (1, "writes"), (2, "writes"), (3, "writes")] {
        let of = |name| field(&one, number, &format!("{kind}_{name}_ms"));
        let (p50, p99) = (of("p50").parse::<f64>(), of("p99").parse::<f64>());
        let (p50, p99) = (p50.expect("a number"), p99.expect("a number"));
        assert!(0.0 < p50 && p50 <= p99, "{number}: {p50} {p99}");
    }
    let info = client.ask("INFO cluster").text();
    let status = Command::new(QUOIT)
        .args(["status", "--port", &one.address.port().to_string()])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    for kind in ["reads", "writes"] {
        let of = |name| {
            let line = format!("replicated_{kind}_{name}_ms:");
            let value = info.lines().find_map(|said| said.strip_prefix(&line));
            let value = value.unwrap_or_else(|| panic!("no {line} {info}"));
            value.trim().parse::<f64>().expect("a number")
        };
        let (p50, p99, max) = (of("p50"), of("p99"), of("max"));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{p50} {p99} {max}");
        assert!(
            told.contains(&format!("{kind} of node 1's clients")),
            "{told}"
        );
        let name = format!(
            "quoit_replicated_{}_p99_seconds ",
            kind.trim_end_matches('s')
        );
        assert!(figure(&one, &name) > 0.0);
    }
    let live = || figure(&one, "quoit_cluster_nodes_live ");
    assert_eq!((figure(&one, "quoit_cluster_nodes "), live()), (3.0, 3.0));
    three.kill();
    wait_for("one is missed", || live() == 2.0);
    assert_eq!(
        figure(&one, "quoit_cluster_nodes "),
        3.0,
        "it is a node still"
    );
    drop(two);
}

/// Else a node that comes back with another peer port would stay away for ever; or all of them, if
/// all have moved; and the log would not say what has changed.
#[test]
fn nodes_that_come_back_at_other_ports_are_a_cluster_again() {
    let dir = scratch();
    let peers = free_ports(6 * CORES);
    let start_all = |first: u16| {
        let nodes = [1, 2, 3].map(|number| {
            let port = first + (number - 1) * CORES;
            launch_at(dir.path(), number, port, (number > 1).then_some(first)).start()
        });
        for (place, node) in nodes.iter().enumerate() {
            for other in (1..=3).filter(|other| usize::from(*other) != place + 1) {
                wait_for("they see each other", || sees(node, other, "alive"));
            }
        }
        nodes
    };
    let [one, two, three] = start_all(peers);
    two.kill();
    wait_for("it is missed", || !sees(&one, 2, "alive"));
    let elsewhere = peers + 3 * CORES;
    let two = launch_at(dir.path(), 2, elsewhere, None).start();
    for node in [&one, &three] {
        wait_for("it is found", || sees(node, 2, "alive"));
        let said = node.said();
        let (old, new) = (peers + CORES, elsewhere);
        let moved = format!("node 2 is now at 127.0.0.1:{new} (it was at 127.0.0.1:{old})");
        assert!(said.contains(&moved), "{said}");
    }
    three.kill();
    // All that is chosen by chance is another one, and the peer port is as it was.
    let three = launch_at(dir.path(), 3, peers + 2 * CORES, None).start();
    wait_for("it is back", || sees(&one, 3, "alive"));
    let port = three.address.port();
    let said = format!("node 3 has port {port} (it had ");
    wait_for("what is new of it", || one.said().contains(&said));
    [one, two, three].into_iter().for_each(Node::kill);
    start_all(peers + 3 * CORES);
}

/// Else whoever has made two clusters by mistake would look for a long time for what is wrong.
#[test]
fn who_is_to_join_and_is_in_another_cluster_is_told_so() {
    let dir = scratch();
    let peers = free_ports(2 * CORES);
    let one = launch_at(dir.path(), 1, peers, None).start();
    launch_at(dir.path(), 2, peers + CORES, None).start().kill();
    let two = launch_at(dir.path(), 2, peers + CORES, Some(peers)).start();
    wait_for("it says that there are two clusters", || {
        two.said().contains("belongs to another cluster")
    });
    let said = two.said();
    for node in [&one, &two] {
        let info = node.client().ask("INFO cluster").text();
        let id = info
            .lines()
            .find_map(|line| line.strip_prefix("cluster_id:"));
        let id = id.expect("it is in a cluster");
        assert!(said.contains(&id[..8]), "{id}: {said}");
    }
    assert!(said.contains("empty data directory"), "{said}");
}

/// Else a node would lack what was written before it came.
#[test]
fn who_comes_after_the_first_write_is_told_why_it_cannot_join() {
    let dir = scratch();
    let peers = free_ports(2 * CORES);
    let one = launch(dir.path(), 1, peers).start();
    assert_eq!(one.client().ask("SET key value").text(), "OK");
    let (code, said) = launch(dir.path(), 2, peers).refused();
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("holds data already"), "{said}");
}

/// Else a write could be done of which the cluster does not know, so that others could join without
/// it.
#[test]
fn the_first_write_waits_for_most_keepers_of_the_map() {
    let dir = scratch();
    let peers = free_ports(3 * CORES);
    let one = launch(dir.path(), 1, peers).start();
    let two = launch(dir.path(), 2, peers).start();
    let three = launch(dir.path(), 3, peers).start();
    wait_for("a map that is kept by three", || {
        let info = one.client().ask("INFO cluster").text();
        info.contains("cluster_map_kept_by:1 2 3")
    });
    two.kill();
    three.kill();
    let refused = one.client().ask("SET key value").text();
    assert!(refused.starts_with(|first: char| first.is_ascii_uppercase()) && refused != "OK");
    assert_eq!(one.info("cluster_holds_data"), 0, "{refused}");
    let _two = launch(dir.path(), 2, peers).start();
    wait_for("a write, now that two of three are there", || {
        one.client().ask("SET key value").text() == "OK"
    });
    assert_eq!(one.info("cluster_holds_data"), 1);
}

/// True if the request is answered by a list, as what was done or found is.
fn is_answered(node: &Node, line: &str) -> bool {
    matches!(node.client().ask(line), Value::List(_))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the test's directory is writable");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let path = entry.expect("it is there").path();
        let copied = to.join(path.file_name().expect("it has a name"));
        match path.is_dir() {
            true => copy(&path, &copied),
            false => drop(std::fs::copy(&path, &copied).expect("there is room")),
        }
    }
}

/// Else two processes would take writes as one node, and each would answer reads without what the
/// other has.
#[test]
fn of_two_processes_with_copies_of_one_directory_the_older_ends_and_says_why() {
    let dir = scratch();
    let peers = free_ports(4 * CORES);
    let one = launch(dir.path(), 1, peers).start();
    let two = launch(dir.path(), 2, peers).start();
    let three = launch(dir.path(), 3, peers).start();
    wait_for("a write on all", || {
        is_answered(&one, "KV.PUT key value CONSISTENCY all")
    });
    assert_eq!(three.stop("TERM"), Some(0));
    let node = |number| dir.path().join(format!("node-{number}"));
    copy(&node(3), &node(4));
    let three = launch(dir.path(), 3, peers).start();
    for other in [&one, &two] {
        wait_for("it is back", || sees(other, 3, "alive"));
    }
    let mut copied = launch(dir.path(), 4, peers).start();
    let (code, said) = three.ended();
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("another process runs as node 3"), "{said}");
    assert!(
        said.contains("Each node needs a data directory of its own"),
        "{said}"
    );
    for other in [1, 2] {
        wait_for("the other one has its place", || {
            sees(&copied, other, "alive")
        });
    }
    wait_for("it serves", || {
        is_answered(&copied, "KV.GET key CONSISTENCY all")
    });
    assert!(copied.is_running(), "{}", copied.said());
}

/// Else who has mistyped a key, or a port, would find nothing in the log of the node that refuses.
#[test]
fn who_is_refused_is_named_in_the_log_of_who_refuses() {
    let dir = scratch();
    let peers = free_ports(2 * CORES);
    let one = launch(dir.path(), 1, peers)
        .with("--cluster-key", "one key")
        .start();
    let (code, said) = launch(dir.path(), 2, peers)
        .with("--cluster-key", "another")
        .refused();
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("the two have different keys"), "{said}");
    wait_for("a line about the key", || {
        one.said().contains("it has another `cluster-key`")
    });
    wait_for("a line about a client of another kind", || {
        let mut stream = std::net::TcpStream::connect(one.peers[1]).expect("it listens");
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").expect("it reads");
        one.said().contains("it is no Quoit node")
    });
}

/// Else whoever changes what a cluster that holds data cannot follow would think that it did.
#[test]
fn what_the_map_does_not_follow_is_said_at_the_start() {
    let dir = scratch();
    let peers = free_ports(2 * CORES);
    let one = launch(dir.path(), 1, peers).start();
    let two = launch(dir.path(), 2, peers).start();
    wait_for("a write on both", || {
        is_answered(&one, "KV.PUT key value CONSISTENCY all")
    });
    let silent = ["keeps rack", "replicas of each key"];
    assert!(
        silent.iter().all(|words| !two.said().contains(words)),
        "{}",
        two.said()
    );
    assert_eq!(two.stop("TERM"), Some(0));
    let changed = launch(dir.path(), 2, peers)
        .with("--rack", "r9")
        .with("--replicas", 2)
        .start();
    wait_for("a line about the rack, and one about replicas", || {
        let said = changed.said();
        said.contains("the cluster's map keeps rack \"r2\" and weight 100")
            && said.contains("says 2 replicas of each key; this cluster was founded with 3")
    });
    assert_eq!(field(&one, 2, "rack"), "r2");
}

/// Else others would look for its cores where they are not: they are told the first port of each
/// row.
#[test]
fn ports_that_are_left_to_chance_are_rows() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--cores", 4).start();
    for row in [&node.peers, &node.cores] {
        let ports: Vec<u16> = row.iter().map(|address| address.port()).collect();
        assert_eq!(ports.len(), 4);
        assert!(
            ports.windows(2).all(|two| two[0] + 1 == two[1]),
            "{ports:?}"
        );
    }
}
