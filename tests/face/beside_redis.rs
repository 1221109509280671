//! Two Redis servers that are a cluster, and a node of two cores with the same slots: the same
//! requests to the first and to the second of each must get the same replies, but for ports and
//! names.
//!
//! Needs `redis-server` 7.0 on the PATH, and says so if there is none. `SEED=…` repeats one run.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{Client, Launch, PATIENCE, Value, is_long, scratch};

/// What both are asked in turn. Keys: `b`, `bar` and `{b}x` are of the first half, `a` and `foo` of
/// the other.
const DIALOGUES: &[&str] = &[
    "SET b 1 | GET b | SET a 1 | GET a | MGET b bar | MGET b {b}x | MSET a 1 {a}b 2 | DEL a b",
    "MULTI | SET b 1 | SET {b}x 2 | EXEC",
    "MULTI | SET b 1 | SET bar 2 | EXEC | EXEC",
    "MULTI | SET b 1 | SET foo 2 | EXEC | GET b",
    "MULTI | SET foo 1 | EXEC",
    "MULTI | WATCH foo | EXEC",
    "MULTI | MGET b bar | EXEC",
    "MULTI | NOSUCH | GET b | EXEC",
    "MULTI | GET b | GET bar | NOSUCH | EXEC",
    "MULTI | GET foo | GET b | GET bar | EXEC",
    "MULTI | GET b | GET bar | DISCARD | EXEC",
    "MULTI | PING | EXEC",
    "MULTI | EXEC",
    "WATCH b | WATCH bar | MULTI | GET b | EXEC",
    "WATCH b bar | WATCH foo | MULTI | INCR b | EXEC",
    "SET a b BAD | SET b 1 BAD | SET a | OBJECT ENCODING a | OBJECT ENCODING b | TYPE b",
    "READONLY | GET foo | READWRITE | GET foo | ASKING | GET foo",
    "ASKING x | READONLY x | CLUSTER | CLUSTER foo | CLUSTER SLOTS x | CLUSTER KEYSLOT",
    "CLUSTER KEYSLOT {b}x | CLUSTER KEYSLOT  | CLUSTER COUNTKEYSINSLOT 16384",
    "CLUSTER COUNTKEYSINSLOT x | CLUSTER GETKEYSINSLOT 1 -1 | CLUSTER GETKEYSINSLOT x 1",
    "SET {b}x 1 | CLUSTER COUNTKEYSINSLOT 3300 | CLUSTER GETKEYSINSLOT 3300 0",
    "FLUSHALL | DBSIZE | SET b 1 | DBSIZE | KEYS * | CLUSTER GETKEYSINSLOT 3300 10 | RANDOMKEY",
    "CLUSTER SLOTS | CLUSTER SHARDS | CLUSTER NODES | CLUSTER MYID",
    "HELLO 3 | CLUSTER SLOTS | CLUSTER SHARDS | CLUSTER NODES | CLUSTER MYID | HELLO 2",
    "COMMAND INFO cluster|slots cluster|nodes cluster|keyslot cluster|getkeysinslot cluster|help",
    "COMMAND INFO asking readonly readwrite cluster|shards cluster|info cluster|links",
    "COMMAND INFO cluster|myid cluster|countkeysinslot",
];

const KEYS: [&str; 7] = ["a", "b", "bar", "foo", "{b}x", "{foo}y", "{a}z"];

#[test]
fn the_ports_of_cores_answer_as_the_nodes_of_a_redis_cluster_do() {
    let dir = scratch();
    let Some(redis) = RedisCluster::start(dir.path()) else {
        return println!("skipped: there is no redis-server 7.0 on the PATH");
    };
    let node = Launch::new(dir.path()).start();
    let mut pairs: Vec<Pair> = (0..2)
        .map(|half| Pair {
            redis: Client::connect(redis.nodes[half].address()),
            quoit: Client::connect(node.cores[half]),
        })
        .collect();
    let ports = node.cores.iter().map(|core| core.port());
    let (theirs, ours) = (redis.nodes.iter().map(|node| node.port), ports);
    let ports: Vec<(u16, u16)> = theirs.zip(ours).collect();
    for dialogue in DIALOGUES {
        for pair in &mut pairs {
            pair.compare(dialogue, &ports);
        }
    }
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    for _ in 0..if is_long() { 50_000 } else { 2_000 } {
        let dialogue = random_dialogue(&mut chance);
        pairs[chance.usize(..2)].compare(&dialogue, &ports);
    }
}

/// A transaction, or a few commands, on keys of one slot or of several, of this half or the other.
fn random_dialogue(chance: &mut fastrand::Rng) -> String {
    let mut lines = Vec::new();
    let mut keys = KEYS;
    chance.shuffle(&mut keys);
    let keys = &keys[..chance.usize(1..4)];
    let mut key = || keys[chance.usize(..keys.len())];
    let (one, two, three) = (key(), key(), key());
    let commands = [
        format!("SET {one} {}", chance.u8(..)),
        format!("GET {two}"),
        format!("MGET {one} {two}"),
        format!("MSET {one} 1 {two} 2"),
        format!("DEL {two} {three}"),
        format!("APPEND {three} x"),
        format!("EXISTS {one} {two} {three}"),
        format!("WATCH {one} {two}"),
        format!("TYPE {one}"),
        "DBSIZE".to_owned(),
        "SET".to_owned(),
    ];
    for _ in 0..chance.usize(1..5) {
        lines.push(commands[chance.usize(..commands.len())].clone());
    }
    if chance.bool() {
        lines.insert(chance.usize(..=lines.len()), "MULTI".to_owned());
        lines.push(["EXEC", "EXEC", "EXEC", "DISCARD"][chance.usize(..4)].to_owned());
    }
    lines.push("UNWATCH".to_owned());
    lines.join(" | ")
}

/// One half of each.
struct Pair {
    redis: Client,
    quoit: Client,
}

impl Pair {
    fn compare(&mut self, dialogue: &str, ports: &[(u16, u16)]) {
        for line in dialogue.split(" | ") {
            let (theirs, ours) = (self.redis.ask(line), self.quoit.ask(line));
            if line.starts_with("HELLO") {
                continue; // another version, another number of the connection
            }
            let (mut theirs, mut ours) = (plain(theirs, ports), plain(ours, ports));
            if line == "CLUSTER SHARDS" {
                // Redis tells them in the order of their names, which are those of chance.
                for reply in [&mut theirs, &mut ours] {
                    sort(reply);
                }
            }
            assert_eq!(
                theirs, ours,
                "Redis, and Quoit, to {line:?} in {dialogue:?}"
            );
        }
    }
}

/// What a reply says apart from whose it is: ports by number of the node, no names, no times.
fn plain(reply: Value, ports: &[(u16, u16)]) -> Value {
    let text = |text: String| {
        let mut plain = text;
        for (index, (theirs, ours)) in ports.iter().enumerate() {
            for port in [theirs, ours] {
                plain = plain.replace(&format!(":{port}"), &format!(":port{index}"));
            }
        }
        plain
    };
    match reply {
        Value::Error(said) => Value::Error(text(said)),
        Value::Integer(number) => match ports
            .iter()
            .position(|(theirs, ours)| number == i64::from(*theirs) || number == i64::from(*ours))
        {
            Some(index) => Value::Simple(format!("port{index}")),
            None => Value::Integer(number),
        },
        Value::Bulk(bytes) => {
            let said = String::from_utf8_lossy(&bytes).into_owned();
            let is_name = said.len() == 40 && said.bytes().all(|byte| byte.is_ascii_hexdigit());
            match said {
                _ if is_name => Value::Simple("a name".to_owned()),
                said if said.contains(" connected") => Value::Bulk(lines(&text(said)).into()),
                said => Value::Bulk(text(said).into()),
            }
        }
        Value::List(values) => Value::List(
            values
                .into_iter()
                .map(|value| plain(value, ports))
                .collect(),
        ),
        Value::Map(pairs) => {
            let pair = |(key, value)| (plain(key, ports), plain(value, ports));
            Value::Map(pairs.into_iter().map(pair).collect())
        }
        other => other,
    }
}

fn sort(reply: &mut Value) {
    if let Value::List(values) = reply {
        values.sort_by_key(|value| format!("{value:?}"));
    }
}

/// The lines of CLUSTER NODES without names, bus ports, times and epochs, in the order of the
/// slots.
fn lines(text: &str) -> String {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields[0].len(), fields.len()), (40, 9), "{line}");
        let address = fields[1].split('@').next().expect("a bus port");
        format!(
            "{} {address} {} {} {}\n",
            fields[8], fields[2], fields[3], fields[7]
        )
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines.concat()
}

/// Two servers with half of the slots each.
struct RedisCluster {
    nodes: Vec<Server>,
}

struct Server {
    process: Child,
    port: u16,
}

impl RedisCluster {
    /// `None` if there is no Redis 7.0.
    fn start(dir: &Path) -> Option<RedisCluster> {
        let version = Command::new("redis-server")
            .arg("--version")
            .output()
            .ok()?;
        if !String::from_utf8_lossy(&version.stdout).contains(" v=7.0.") {
            return None;
        }
        let held: Vec<TcpListener> = (0..4)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ports = held
            .iter()
            .map(|port| port.local_addr().expect("it is bound").port());
        let ports: Vec<u16> = ports.collect();
        drop(held);
        let nodes = ports
            .chunks(2)
            .map(|ports| Server::start(dir, ports[0], ports[1]))
            .collect();
        let cluster = RedisCluster { nodes };
        let halves = ["0 8191", "8192 16383"];
        for (node, half) in cluster.nodes.iter().zip(halves) {
            let said = node.client().ask(&format!("CLUSTER ADDSLOTSRANGE {half}"));
            assert_eq!(said, Value::ok());
        }
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", ports[2], ports[3]);
        assert_eq!(cluster.nodes[0].client().ask(&meet), Value::ok());
        let deadline = Instant::now() + PATIENCE;
        let is_whole = |node: &Server| {
            let info = node.client().ask("CLUSTER INFO").text();
            let links = node.client().ask("CLUSTER NODES").text();
            info.contains("cluster_state:ok") && links.matches(" connected ").count() == 2
        };
        while !cluster.nodes.iter().all(is_whole) {
            assert!(Instant::now() < deadline, "Redis does not become a cluster");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(cluster)
    }
}

impl Server {
    fn start(dir: &Path, port: u16, bus: u16) -> Server {
        let dir = dir.join(format!("redis-{port}"));
        std::fs::create_dir(&dir).expect("the test's directory is writable");
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string()])
            .args(["--cluster-port", &bus.to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
            .args(["--cluster-enabled", "yes", "--dir"])
            .arg(&dir)
            .stdout(Stdio::null());
        let server = Server {
            process: command.spawn().expect("it said its version"),
            port,
        };
        let deadline = Instant::now() + PATIENCE;
        while Client::try_connect(server.address()).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn address(&self) -> std::net::SocketAddr {
        std::net::SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn client(&self) -> Client {
        Client::connect(self.address())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
