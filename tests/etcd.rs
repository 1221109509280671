//! Real nodes whose cluster's map is kept in a real etcd (3.4 or later, `etcd` on the PATH): found,
//! joined, without etcd, and with a user. Without an etcd these tests say so, and pass.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Launch, Node, PATIENCE, QUOIT, free_ports, scratch};
use quoit::cluster::map::ClusterMap;
use quoit::config::{MAP_BYTES_MAX, NODES_MAX};
use quoit::membership::{
    self,
    etcd::{Endpoint, Newer, Swapped},
};
use quoit::rt::{self, CoreOptions};
use serde_json::json;

/// An etcd of one member, with its data in a directory of the test.
struct Etcd {
    process: Child,
    dir: PathBuf,
    port: u16,
}

impl Etcd {
    /// `None`: there is none, which is said.
    fn start(dir: &Path) -> Option<Etcd> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("SKIPPED: no `etcd` on the PATH; Debian's package is etcd-server");
            return None;
        }
        let (dir, port) = (dir.join("etcd"), free_ports(2));
        Some(Etcd {
            process: Etcd::run(&dir, port),
            dir,
            port,
        })
    }

    fn run(dir: &Path, port: u16) -> Child {
        let (clients, peers) = (
            format!("http://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{}", port + 1),
        );
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir)
            .args([
                "--name",
                "one",
                "--initial-cluster",
                &format!("one={peers}"),
            ])
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it has just told its version");
        wait_for("etcd answers", || {
            ask(port, "/v3/kv/range", r#"{"key":"AA=="}"#).is_some_and(|(status, _)| status == 200)
        });
        process
    }

    fn stop(&mut self) {
        // It may have ended by itself, which the test will notice.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn start_again(&mut self) {
        self.process = Etcd::run(&self.dir, self.port);
    }

    /// What it says to a request that must succeed.
    fn must(&self, path: &str, body: &str) -> String {
        let (status, told) = ask(self.port, path, body).expect("it answers");
        assert_eq!(status, 200, "{path}: {told}");
        told
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A request as others would make it: the status and the body, if there is an answer.
fn ask(port: u16, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut told = String::new();
    stream.read_to_string(&mut told).ok()?;
    let status = told.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = told.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

/// Waits until it is so; there is an end to patience.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: this never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How a node is started that keeps its data in `dir/name`: with three lines of configuration
/// besides the ports, which are any.
fn launch(dir: &Path, name: &str, etcd: u16, more: &str) -> Launch {
    let own = dir.join(name);
    std::fs::create_dir_all(&own).expect("the test's directory is writable");
    let times = "gossip-interval-ms = 100\nsuspect-after-ms = 1000\ndead-after-ms = 3000\n";
    let config = format!(
        "bind = \"127.0.0.1\"\ncluster-key = \"what only these nodes know\"\n{times}\
         cluster = {{ metadata = \"etcd\", etcd = [\"http://127.0.0.1:1\", \"http://127.0.0.1:{etcd}\"]{more} }}\n"
    );
    Launch::new(&own).config(&config)
}

fn cluster_info(node: &Node) -> String {
    node.client().ask("INFO cluster").text()
}

fn wait_for_cluster(nodes: &[&Node]) {
    let wanted = format!("cluster_nodes:{}\r\n", nodes.len());
    for node in nodes {
        wait_for("a map of all nodes, which are alive", || {
            let info = cluster_info(node);
            let alive = info.matches("standing=alive").count();
            info.contains(&wanted)
                && info.contains("cluster_map_kept_by:etcd")
                && alive + 1 == nodes.len()
        });
    }
}

/// Else people who run an etcd would need a hand-made map, or lose their cluster with their etcd.
#[test]
fn three_nodes_that_come_at_once_make_one_cluster_that_outlives_its_etcd() {
    let dir = scratch();
    let Some(mut etcd) = Etcd::start(dir.path()) else {
        return;
    };
    let (peers, port) = (free_ports(6), etcd.port);
    let at = |name: &str, place: u16| {
        launch(dir.path(), name, port, "").with("--peer-port", peers + place)
    };
    let launches = [at("a", 0), at("b", 2), at("c", 4)];
    let starts = launches.map(|launch| std::thread::spawn(|| launch.start()));
    let [one, two, three] = starts.map(|start| start.join().expect("it starts"));
    wait_for_cluster(&[&one, &two, &three]);
    let status = Command::new(QUOIT)
        .args(["status", "--port", &two.address.port().to_string()])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(told.contains("which is kept in etcd\n3 nodes"), "{told}");

    // Before the first write: it needs etcd, and is refused without.
    etcd.stop();
    // (In doubt, if the coordinator gives up before it is clear that the map cannot be changed.)
    let refused = one.client().ask("SET key value");
    let is_refused = refused.is_error("MISCONF Before its first write");
    assert!(is_refused || refused.is_error("UNKNOWN"), "{refused:?}");
    assert_eq!(one.info("cluster_holds_data"), 0);
    assert_eq!(one.client().ask("GET key"), common::Value::Null);
    etcd.start_again();
    wait_for("a write, now that etcd is back", || {
        one.client().ask("SET key value").text() == "OK"
    });

    // And then nothing does.
    etcd.stop();
    three.kill();
    let three = at("c", 4).start();
    for node in [&one, &two, &three] {
        let mut client = node.client();
        let level = client.ask("KV.CONSISTENCY READ quorum WRITE quorum");
        assert_eq!(level.text(), "OK");
        for (asked, wanted) in [("GET key", "value"), ("SET other value", "OK")] {
            let mut told = String::new();
            let deadline = Instant::now() + PATIENCE;
            while told != wanted {
                assert!(Instant::now() < deadline, "{asked} without etcd: {told}");
                let answer = client.ask(asked);
                told = match answer {
                    common::Value::Null => String::new(),
                    answer => answer.text(),
                };
            }
        }
    }
    let said = one.said() + &two.said() + &three.said();
    assert!(
        said.contains("etcd, which has the cluster's map, cannot be used"),
        "{said}"
    );

    // One that has taken other ports says so when etcd is back.
    three.kill();
    let three = at("c", 4).with("--peer-port", 0).start();
    etcd.start_again();
    wait_for("all know where it is", || {
        let place = format!("address={}", three.address);
        [&one, &two]
            .iter()
            .all(|node| cluster_info(node).contains(&place))
    });
    let (code, said) = launch(dir.path(), "d", etcd.port, "").refused();
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(
        said.contains("holds data already") && said.contains("/quoit/map"),
        "{said}"
    );
}

/// Else two clusters could have one map, or a directory a map that is not its cluster's.
#[test]
fn a_directory_stays_where_its_map_is() {
    let dir = scratch();
    let Some(etcd) = Etcd::start(dir.path()) else {
        return;
    };
    let in_etcd = |name: &str, more: &str| launch(dir.path(), name, etcd.port, more);
    let one = in_etcd("a", "").start();
    let other = in_etcd("b", ", etcd-prefix = \"/other\"").start();
    let identity = |node: &Node| {
        let info = cluster_info(node);
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("cluster_id:"));
        line.map(str::to_owned)
    };
    assert_ne!(
        identity(&one),
        identity(&other),
        "each prefix has a cluster of its own"
    );
    drop((one, other));

    let refused = |launch: Launch, words: &[&str]| {
        let (code, said) = launch.refused();
        assert!(code.is_some_and(|code| code != 0), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(
        in_etcd("a", ", etcd-prefix = \"/other\""),
        &["/quoit/map", "/other/map"],
    );
    let alone = |name: &str| Launch::new(&dir.path().join(name));
    refused(alone("a"), &["is kept in etcd", "/quoit/map"]);
    std::fs::create_dir_all(dir.path().join("c")).expect("it is writable");
    drop(alone("c").start());
    refused(in_etcd("c", ""), &["is kept by its own nodes"]);

    // A node that has lost its directory is nobody, and does not found another cluster.
    let port = free_ports(1);
    let lost = |name: &str| {
        in_etcd(name, ", etcd-prefix = \"/third\"")
            .with("--peer-port", port)
            .with("--cores", 1)
    };
    drop(lost("e").start());
    refused(lost("f"), &["lost its data directory", "/third/map"]);
}

/// Else an etcd with users could not be used at all.
#[test]
fn etcd_may_ask_for_a_user() {
    let dir = scratch();
    let Some(etcd) = Etcd::start(dir.path()) else {
        return;
    };
    etcd.must(
        "/v3/auth/user/add",
        r#"{"name":"root","password":"secret"}"#,
    );
    etcd.must("/v3/auth/role/add", r#"{"name":"root"}"#);
    etcd.must("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#);
    etcd.must(
        "/v3/auth/user/add",
        r#"{"name":"quoit","password":"also secret"}"#,
    );
    etcd.must("/v3/auth/role/add", r#"{"name":"maps"}"#);
    // READWRITE on all that begins with /quoit/: the end of the range is "/quoit0".
    let permission = r#"{"name":"maps","perm":{"permType":"READWRITE","key":"L3F1b2l0Lw==","range_end":"L3F1b2l0MA=="}}"#;
    etcd.must("/v3/auth/role/grant", permission);
    etcd.must("/v3/auth/user/grant", r#"{"user":"quoit","role":"maps"}"#);
    etcd.must("/v3/auth/enable", "{}");

    let user = |password: &str| format!(", etcd-user = \"quoit\", etcd-password = \"{password}\"");
    let one = launch(dir.path(), "a", etcd.port, &user("also secret")).start();
    let two = launch(dir.path(), "b", etcd.port, &user("also secret")).start();
    wait_for_cluster(&[&one, &two]);
    assert_eq!(two.client().ask("SET key value").text(), "OK");
    let tries = [
        ("c", user("wrong"), "user quoit is not let in"),
        ("d", String::new(), "user name is empty"),
        (
            "e",
            user("also secret") + ", etcd-prefix = \"/elsewhere\"",
            "permission denied",
        ),
    ];
    for (name, more, words) in tries {
        let (code, _, said) =
            launch(dir.path(), name, etcd.port, &more).interrupt(words, Duration::ZERO);
        assert!(code == Some(0) && said.contains(words), "{said}");
    }
}

/// A map as large as the bounds of its parts allow.
fn largest_map() -> ClusterMap {
    let number = |at: usize| u16::MAX as usize - NODES_MAX + 1 + at;
    let node = |at: usize| {
        json!({
            "id": number(at), "uuid": format!("{at:032x}"), "host": format!("{}{at:05}", "h".repeat(248)),
            "port": 60_000, "core_port": 60_000, "peer_port": 60_000, "http_port": 60_000,
            "rack": "r".repeat(64), "weight": 100_000, "cores": 1024, "state": "joining",
        })
    };
    let holders: Vec<usize> = (0..4).flat_map(|at| [number(at), 1023]).collect();
    let text = json!({
        "format": 1, "cluster": "f".repeat(32), "epoch": 1, "author": "f".repeat(16), "open": false,
        "keepers": { "set": 0, "nodes": [] }, "replicas": 4, "retired": [],
        "nodes": (0..NODES_MAX).map(node).collect::<Vec<_>>(), "placement": vec![holders; 16_384],
    });
    ClusterMap::from_json(&text.to_string()).expect("it is within all bounds")
}

/// Else the map of a large cluster could not be kept: it goes in one request, and comes back in
/// many pieces.
#[test]
fn the_largest_map_goes_into_etcd_and_comes_back() {
    let dir = scratch();
    let Some(server) = Etcd::start(dir.path()) else {
        return;
    };
    let options = CoreOptions {
        pins: vec![None],
        io_memory_bytes: 1 << 20,
        probe_dir: dir.path().to_owned(),
        without_kick: false,
    };
    let port = server.port;
    let results = rt::run_cores(options, move |_: rt::Core<()>| async move {
        let place = |port| Endpoint {
            host: "127.0.0.1".to_owned(),
            port,
        };
        let etcd = membership::etcd::Etcd::new(vec![place(1), place(port)], "/quoit/map", None);
        let (map, until) = (largest_map(), rt::now() + PATIENCE);
        let size = map.to_json().len();
        assert!(size > MAP_BYTES_MAX * 2 / 3, "{size} bytes");
        assert!(
            matches!(etcd.read(until).await, Ok(None)),
            "there is none yet"
        );
        assert_eq!(etcd.swap(0, &map, until).await, Swapped::Done);
        assert!(
            matches!(etcd.read_newer(until).await, Ok(Newer::Nothing)),
            "none is newer"
        );
        let kept = etcd
            .read(until)
            .await
            .expect("it answers")
            .expect("it has it");
        assert!(kept.map == map, "it comes back as it went");
        let next = map.opened();
        assert_eq!(
            etcd.swap(0, &next, until).await,
            Swapped::Refused,
            "there is one"
        );
        let other = membership::etcd::Etcd::new(vec![place(port)], "/quoit/map", None);
        assert_eq!(other.swap(kept.revision, &next, until).await, Swapped::Done);
        assert_eq!(
            etcd.swap(kept.revision, &next, until).await,
            Swapped::Refused
        );
        let newer = etcd.read_newer(until).await;
        assert!(
            matches!(newer, Ok(Newer::Kept(kept)) if kept.map == next),
            "one is newer"
        );
    });
    results.expect("it runs");
}
