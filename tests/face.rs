//! The cluster face of a node: the ports of its cores, and what it tells cluster clients of them.
//!
//! All of it against the real program. `beside_redis` sends the same to two Redis servers that form
//! a cluster; the clients themselves are driven in `clients`.

mod common;

#[path = "face/beside_redis.rs"]
mod beside_redis;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use common::{Client, Launch, Node, Value, free_ports, scratch};

const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";

fn start(dir: &Path, cores: u16) -> Node {
    Launch::new(dir).with("--cores", cores).start()
}

/// The slot of a key, as the node says.
fn slot_of(client: &mut Client, key: &str) -> u16 {
    match client.ask(&format!("CLUSTER KEYSLOT {key}")) {
        Value::Integer(slot) => slot as u16,
        other => panic!("{key}: {other:?}"),
    }
}

/// A range of slots and who has it, of CLUSTER SLOTS.
#[derive(Clone, Debug, PartialEq)]
struct Range {
    slots: (i64, i64),
    host: String,
    port: u16,
    name: String,
}

impl Range {
    fn address(&self) -> SocketAddr {
        let ip: IpAddr = self.host.parse().expect("an address");
        SocketAddr::new(ip, self.port)
    }
}

fn ranges(client: &mut Client) -> Vec<Range> {
    let integer = |value: &Value| match value {
        Value::Integer(number) => *number,
        other => panic!("{other:?} is no number"),
    };
    let range = |range: &Value| {
        let [first, last, node] = range.list() else {
            panic!("{range:?}: a range has two ends and one node");
        };
        let node = node.list();
        assert_eq!(node.len(), 4, "host, port, name and what else is known");
        Range {
            slots: (integer(first), integer(last)),
            host: node[0].text(),
            port: integer(&node[1]) as u16,
            name: node[2].text(),
        }
    };
    client
        .ask("CLUSTER SLOTS")
        .list()
        .iter()
        .map(range)
        .collect()
}

/// Who owns `slot`, by its index among the cores.
fn owner(ranges: &[Range], slot: u16) -> usize {
    let has = |range: &Range| (range.slots.0..=range.slots.1).contains(&i64::from(slot));
    ranges
        .iter()
        .position(has)
        .expect("every slot has an owner")
}

/// The port of a core serves exactly that core's keys, and names the owner of the others, by an
/// address at which they are served; the shared port serves them all and never sends anybody away.
#[test]
fn a_key_is_served_by_the_port_of_its_core_and_by_the_shared_one() {
    let dir = scratch();
    let node = start(dir.path(), 3);
    let mut shared = node.client();
    let mut cores: Vec<Client> = node.cores.iter().map(|at| Client::connect(*at)).collect();
    let ranges = ranges(&mut shared);
    let mut served = [0; 3];
    for number in 0..300 {
        let key = format!("key:{number}");
        let slot = slot_of(&mut shared, &key);
        let home = owner(&ranges, slot);
        served[home] += 1;
        let moved = format!("MOVED {slot} {}", node.cores[home]);
        for (core, client) in cores.iter_mut().enumerate() {
            let reply = client.ask(&format!("SET {key} {core}"));
            match core == home {
                true => assert_eq!(reply, Value::ok(), "{key} at its home"),
                false => assert_eq!(reply, Value::Error(moved.clone()), "{key} at core {core}"),
            }
        }
        let value = shared.ask(&format!("GET {key}"));
        assert_eq!(value, Value::bulk(&home.to_string()));
    }
    assert!(served.iter().all(|keys| *keys > 50), "{served:?}");
}

/// Commands without a key are nobody's; those with a key that Redis names otherwise are found, too.
#[test]
fn the_key_of_every_kind_of_command_decides() {
    let dir = scratch();
    let node = start(dir.path(), 2);
    let mut client = Client::connect(node.cores[0]); // `foo` is slot 12182, of the second core
    let moved = Value::Error(format!("MOVED 12182 {}", node.cores[1]));
    for line in [
        "GET foo",
        "SET foo 1 BAD",
        "DEL foo",
        "DEL foo {foo}a",
        "MGET {foo}a foo",
        "MSET foo 1 {foo}a 2",
        "EXISTS foo foo",
        "OBJECT ENCODING foo",
        "MEMORY USAGE foo",
        "WATCH foo",
        "EXPIRE foo 10 BAD",
    ] {
        assert_eq!(client.ask(line), moved, "{line}");
    }
    for line in ["MGET foo bar", "DEL bar b", "MSET b 1 bar 1", "WATCH b bar"] {
        let refused = Value::Error(CROSS_SLOT.to_owned());
        assert_eq!(client.ask(line), refused, "{line}");
    }
    for line in ["PING", "TIME", "DBSIZE", "COMMAND COUNT", "CLUSTER MYID"] {
        assert!(!client.ask(line).is_error(""), "{line}");
    }
    for line in ["READONLY", "ASKING", "READWRITE"] {
        assert_eq!(client.ask(line), Value::ok(), "{line}");
        assert_eq!(client.ask("GET foo"), moved, "after {line}");
    }
    assert_eq!(client.ask("MSET {b}x 1 {b}y 2"), Value::ok(), "one slot");
}

/// SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHALL and the questions about slots: at a core's port, of that
/// core.
#[test]
fn all_keys_are_those_of_the_core_at_its_own_port() {
    let dir = scratch();
    let node = start(dir.path(), 3);
    let mut shared = node.client();
    let all: BTreeSet<String> = (0..500).map(|number| format!("key:{number}")).collect();
    for key in &all {
        assert_eq!(shared.ask(&format!("SET {key} 1")), Value::ok());
    }
    let ranges = ranges(&mut shared);
    let mut met = BTreeSet::new();
    for (core, address) in node.cores.iter().enumerate() {
        let mut client = Client::connect(*address);
        let own: BTreeSet<String> = {
            let is_own = |key: &&String| owner(&ranges, slot_of(&mut shared, key)) == core;
            all.iter().filter(is_own).cloned().collect()
        };
        for lines in [&["SCAN %"][..], &["MULTI", "SCAN %", "EXEC"]] {
            assert_eq!(scan(&mut client, lines), own, "{lines:?} at core {core}");
        }
        let keys = client.ask("KEYS *");
        let keys: BTreeSet<String> = keys.list().iter().map(Value::text).collect();
        assert_eq!(keys, own);
        assert_eq!(client.ask("DBSIZE"), Value::Integer(own.len() as i64));
        assert!(own.contains(&client.ask("RANDOMKEY").text()));
        met.extend(own);
    }
    assert_eq!(met, all, "the cores have all keys between them");
    assert_eq!(scan(&mut shared, &["SCAN %"]), all);

    let slot = slot_of(&mut shared, "key:1");
    let home = owner(&ranges, slot);
    let (count, list) = (
        format!("CLUSTER COUNTKEYSINSLOT {slot}"),
        format!("CLUSTER GETKEYSINSLOT {slot} 10"),
    );
    let found = Value::List(vec![Value::bulk("key:1")]);
    for (core, address) in node.cores.iter().enumerate() {
        let mut client = Client::connect(*address);
        let is_home = core == home;
        let counted = client.ask(&count);
        assert_eq!(counted, Value::Integer(i64::from(is_home)), "of its own");
        let listed = client.ask(&list);
        let expected = if is_home {
            found.clone()
        } else {
            Value::List(vec![])
        };
        assert_eq!(listed, expected);
    }
    assert_eq!(shared.ask(&count), Value::Integer(1));
    assert_eq!(shared.ask(&list), found);
    assert_eq!(
        shared.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 0")),
        Value::List(vec![])
    );

    let mut client = Client::connect(node.cores[home]);
    let Value::Integer(own) = client.ask("DBSIZE") else {
        panic!("DBSIZE is a number");
    };
    assert_eq!(client.ask("FLUSHALL"), Value::ok());
    assert_eq!(client.ask("DBSIZE"), Value::Integer(0));
    let rest = all.len() as i64 - own;
    assert_eq!(
        shared.ask("DBSIZE"),
        Value::Integer(rest),
        "others keep theirs"
    );
}

/// All keys that a SCAN meets, page by page; `lines` are what is sent for a page, `%` is the
/// cursor.
fn scan(client: &mut Client, lines: &[&str]) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut cursor = "0".to_owned();
    loop {
        let mut reply = Value::Null;
        for line in lines {
            reply = client.ask(&line.replace('%', &format!("{cursor} COUNT 7")));
        }
        if lines.len() > 1 {
            reply = reply.list()[0].clone();
        }
        let [next, page] = reply.list() else {
            panic!("a page is a cursor and keys: {reply:?}");
        };
        for key in page.list() {
            assert!(keys.insert(key.text()), "{key:?} was met twice");
        }
        cursor = next.text();
        if cursor == "0" {
            return keys;
        }
    }
}

/// The four ways in which clients ask for the map tell the same one, without holes, in both
/// protocols.
#[test]
fn all_that_the_cluster_commands_tell_is_one_map() {
    let dir = scratch();
    let node = start(dir.path(), 3);
    for protocol in [2, 3] {
        for address in node.cores.iter().chain([&node.address]) {
            let mut client = Client::connect(*address);
            client.ask(&format!("HELLO {protocol}"));
            let ranges = ranges(&mut client);
            let mut next = 0;
            for (range, core) in ranges.iter().zip(&node.cores) {
                assert_eq!(range.slots.0, next, "a hole or an overlap");
                assert_eq!(range.address(), *core);
                next = range.slots.1 + 1;
            }
            assert_eq!(next, 16_384);
            check_nodes(&mut client, &ranges, *address == node.address);
            check_shards(&mut client, &ranges, protocol);
            let info = client.ask("CLUSTER INFO").text();
            for line in [
                "cluster_state:ok",
                "cluster_slots_ok:16384",
                "cluster_size:3",
            ] {
                assert!(info.contains(line), "{info}");
            }
            assert_eq!(client.ask("CLUSTER LINKS"), Value::List(vec![]));
        }
    }
}

fn check_nodes(client: &mut Client, ranges: &[Range], is_shared: bool) {
    let my_id = client.ask("CLUSTER MYID").text();
    let text = client.ask("CLUSTER NODES").text();
    let mut is_there = false;
    assert_eq!(text.lines().count(), ranges.len());
    for (line, range) in text.split_terminator('\n').zip(ranges) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, address, flags, master, ping, pong, epoch, link, slots] = fields[..] else {
            panic!("a line has nine fields: {line}");
        };
        assert_eq!(name, range.name);
        assert_eq!(address, format!("{}@0", range.address()));
        let is_own = name == my_id;
        assert_eq!(flags, if is_own { "myself,master" } else { "master" });
        is_there |= is_own;
        assert_eq!((master, ping, link), ("-", "0", "connected"));
        assert!(pong.parse::<u64>().is_ok() && epoch.parse::<u64>().is_ok());
        assert_eq!(slots, format!("{}-{}", range.slots.0, range.slots.1));
        if is_own && !is_shared {
            assert_eq!(
                Ok(range.address()),
                client.socket().peer_addr().map_err(drop)
            );
        }
    }
    assert!(is_there, "the core that answers is one of them");
}

fn check_shards(client: &mut Client, ranges: &[Range], protocol: i64) {
    let reply = client.ask("CLUSTER SHARDS");
    assert_eq!(reply.list().len(), ranges.len());
    for (shard, range) in reply.list().iter().zip(ranges) {
        assert_eq!(matches!(shard, Value::Map(_)), protocol == 3);
        let (first, last) = range.slots;
        let slots = Value::List(vec![Value::Integer(first), Value::Integer(last)]);
        assert_eq!(shard.field("slots"), Some(slots));
        let nodes = shard.field("nodes").expect("it has nodes");
        let [seat] = nodes.list() else {
            panic!("one node has it: {nodes:?}");
        };
        for (key, value) in [
            ("id", Value::bulk(&range.name)),
            ("port", Value::Integer(i64::from(range.port))),
            ("ip", Value::bulk(&range.host)),
            ("endpoint", Value::bulk(&range.host)),
            ("role", Value::bulk("master")),
            ("replication-offset", Value::Integer(0)),
            ("health", Value::bulk("online")),
        ] {
            assert_eq!(seat.field(key), Some(value), "{key}");
        }
    }
}

/// Plain clients at the shared port see a plain server: some would go over to cluster mode by
/// themselves.
#[test]
fn only_the_ports_of_cores_say_that_there_is_a_cluster() {
    let dir = scratch();
    let node = start(dir.path(), 2);
    for (address, mode, enabled, config) in [
        (node.address, "standalone", 0, "no"),
        (node.cores[1], "cluster", 1, "yes"),
    ] {
        let mut client = Client::connect(address);
        assert_eq!(client.ask("HELLO").field("mode"), Some(Value::bulk(mode)));
        let info = client.ask("INFO").text();
        for line in [
            format!("redis_mode:{mode}\r\n"),
            format!("cluster_enabled:{enabled}\r\n"),
            format!("tcp_port:{}\r\n", address.port()),
        ] {
            assert!(info.contains(&line), "{line}: {info}");
        }
        let said = client.ask("CONFIG GET cluster-enabled");
        assert_eq!(said.field("cluster-enabled"), Some(Value::bulk(config)));
    }
}

/// What a cluster client does costs no hop; what a plain client does is counted where it crosses.
#[test]
fn commands_that_cross_cores_are_counted() {
    let dir = scratch();
    let node = start(dir.path(), 2);
    let ranges = ranges(&mut node.client());
    let mut cores: Vec<Client> = node.cores.iter().map(|at| Client::connect(*at)).collect();
    for number in 0..200 {
        let tag = format!("{{{number}}}");
        let client = &mut cores[owner(&ranges, slot_of(&mut node.client(), &tag))];
        for line in [
            format!("SET {tag}a 1"),
            format!("MSET {tag}a 1 {tag}b 2"),
            format!("WATCH {tag}a"),
            "MULTI".to_owned(),
            format!("INCR {tag}a"),
            format!("DEL {tag}a {tag}b"),
            "EXEC".to_owned(),
        ] {
            assert!(!client.ask(&line).is_error(""), "{line}");
        }
    }
    for client in &mut cores {
        for line in [
            "DBSIZE",
            "KEYS *",
            "SCAN 0",
            "RANDOMKEY",
            "INFO",
            "FLUSHALL",
        ] {
            assert!(!client.ask(line).is_error(""), "{line}");
        }
        assert!(client.ask("MGET a b").is_error("CROSSSLOT "));
    }
    let crossed = || node.info("commands_sent_to_other_cores");
    assert_eq!(crossed(), 0, "each was sent to its home");
    assert_eq!(node.info("commands_redirected"), 2);
    let mut plain = node.client();
    for (line, more) in [
        ("MSET foo 1 b 2", 1),
        ("DBSIZE", 1),
        ("KEYS *", 1),
        ("WATCH foo b", 1),
        ("PING", 0),
    ] {
        let before = crossed();
        assert!(!plain.ask(line).is_error(""), "{line}");
        assert_eq!(crossed(), before + more, "{line}");
    }
}

/// A node that listens on all addresses tells each client the one that it came to, or what is
/// configured.
#[test]
fn clients_are_told_an_address_that_they_can_reach() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--bind", "0.0.0.0").start();
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let ip: IpAddr = ip.parse().expect("an address");
        for port in [node.address.port(), node.cores[0].port()] {
            let mut client = Client::connect(SocketAddr::new(ip, port));
            let ranges = ranges(&mut client);
            assert!(
                ranges.iter().all(|range| range.address().ip() == ip),
                "{ranges:?}"
            );
            let first = format!(" {ip}:{}@0 ", node.cores[0].port());
            assert!(client.ask("CLUSTER NODES").text().contains(&first));
        }
        let mut client = Client::connect(SocketAddr::new(ip, node.cores[0].port()));
        let moved = format!("MOVED 12182 {ip}:{}", node.cores[1].port());
        assert_eq!(client.ask("GET foo"), Value::Error(moved));
    }
    drop(node);

    let dir = scratch();
    let first = free_ports(2);
    let node = Launch::new(dir.path())
        .with("--core-port", first)
        .with("--announce-host", "kv.example")
        .with("--announce-core-port", 30_000)
        .start();
    let mut client = Client::connect(node.cores[0]);
    let ranges = ranges(&mut client);
    let told: Vec<_> = ranges
        .iter()
        .map(|at| (at.host.as_str(), at.port))
        .collect();
    assert_eq!(told, [("kv.example", 30_000), ("kv.example", 30_001)]);
    let moved = Value::Error("MOVED 12182 kv.example:30001".into());
    assert_eq!(client.ask("GET foo"), moved);
    let nodes = client.ask("CLUSTER NODES").text();
    assert!(nodes.contains(" kv.example:30001@0,kv.example "), "{nodes}");
    let shards = client.ask("CLUSTER SHARDS");
    let seat = shards.list()[0]
        .field("nodes")
        .expect("it has nodes")
        .list()[0]
        .clone();
    assert_eq!(seat.field("hostname"), Some(Value::bulk("kv.example")));
}

/// A taken port is an error that says which, and what to do; nothing is served on the others.
#[test]
fn a_taken_port_of_a_core_is_an_error_at_start() {
    let dir = scratch();
    let first = free_ports(2);
    let taken = TcpListener::bind(("127.0.0.1", first + 1)).expect("it was free");
    let (code, said) = Launch::new(dir.path()).with("--core-port", first).refused();
    assert_eq!(code, Some(1), "{said}");
    let port = format!("port 127.0.0.1:{} ", first + 1);
    assert!(
        said.contains(&port) && said.contains("--core-port"),
        "{said}"
    );
    drop(taken);
    let node = Launch::new(dir.path()).with("--core-port", first).start();
    let ports: Vec<u16> = node.cores.iter().map(SocketAddr::port).collect();
    assert_eq!(ports, [first, first + 1]);
    let other = scratch();
    let (code, said) = Launch::new(other.path())
        .with("--core-port", first)
        .refused();
    assert_eq!(code, Some(1), "another node of the same user: {said}");

    let shared = Launch::new(other.path())
        .with("--port", first)
        .with("--core-port", first - 1);
    let (code, said) = shared.refused();
    assert!(code == Some(1) && said.contains("`core-port`"), "{said}");
}

/// The map follows the number of cores; who holds on to the old one is sent where the keys are now.
#[test]
fn a_start_with_another_number_of_cores_tells_another_map() {
    let dir = scratch();
    let first = free_ports(4);
    let mut names = Vec::new();
    let mut epoch = 0;
    for cores in [2, 4, 3, 1] {
        let node = Launch::new(dir.path())
            .with("--cores", cores)
            .with("--core-port", first)
            .start();
        let mut client = Client::connect(node.cores[0]);
        let ranges = ranges(&mut client);
        assert_eq!(ranges.len(), cores);
        for (range, name) in ranges.iter().zip(&names) {
            assert_eq!(&range.name, name, "a core keeps its name");
        }
        names = ranges.iter().map(|range| range.name.clone()).collect();
        let info = client.ask("CLUSTER INFO").text();
        let now = info
            .lines()
            .find_map(|line| line.strip_prefix("cluster_current_epoch:"));
        let now: u64 = now
            .and_then(|text| text.parse().ok())
            .expect("it has an epoch");
        assert!(now > epoch, "a new map has a higher epoch");
        epoch = now;
        for number in 0..100 {
            let key = format!("key:{number}");
            let home = owner(&ranges, slot_of(&mut client, &key));
            let mut client = Client::connect(ranges[home].address());
            let count = client.ask(&format!("INCR {key}"));
            assert!(!count.is_error(""), "{key}: {count:?}");
        }
        assert_eq!(node.info("commands_redirected"), 0);
        assert_eq!(node.stop("TERM"), Some(0));
    }
    let node = start(dir.path(), 1);
    for number in 0..100 {
        let value = node.client().ask(&format!("GET key:{number}"));
        assert_eq!(
            value,
            Value::bulk("4"),
            "each core counted on what another had"
        );
    }
}

/// A password is asked for at the ports of cores as well, before anything is told.
#[test]
fn a_stranger_learns_nothing_at_the_port_of_a_core() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--password", "secret").start();
    let mut client = Client::connect(node.cores[0]);
    for line in [
        "GET foo",
        "CLUSTER SLOTS",
        "CLUSTER NODES",
        "READONLY",
        "DBSIZE",
    ] {
        assert!(client.ask(line).is_error("NOAUTH "), "{line}");
    }
    assert_eq!(client.ask("AUTH secret"), Value::ok());
    assert!(client.ask("GET foo").is_error("MOVED "));
    assert_eq!(ranges(&mut client).len(), 2);
}
