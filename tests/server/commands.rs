//! Who is let in, and what a node says about itself and its keys over the wire.

use std::time::{Duration, Instant};

use super::common::{Launch, PATIENCE, Value, request, scratch};

const PASSWORD: &str = "correct horse";

fn pong() -> Value {
    Value::Simple("PONG".into())
}

/// Without the password nothing is told and nothing is done.
#[test]
fn a_password_keeps_strangers_out() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--password", PASSWORD).start();
    let mut client = node.client();
    for line in [
        "GET a", "SET a 1", "INFO", "PING", "DBSIZE", "MULTI", "NOSUCH",
    ] {
        let reply = client.ask(line);
        assert!(reply.is_error("NOAUTH "), "{line}: {reply:?}");
    }
    let reply = client.ask("HELLO 3");
    assert!(reply.is_error("NOAUTH HELLO must"), "{reply:?}");
    for words in [
        &["AUTH", "wrong"][..],
        &["AUTH", ""],
        &["AUTH", "correct horse "],
        &["AUTH", "nobody", PASSWORD],
        &["HELLO", "3", "AUTH", "default", "wrong"],
    ] {
        let reply = client.ask_words(words);
        assert!(reply.is_error("WRONGPASS "), "{words:?}: {reply:?}");
        assert!(client.ask("GET a").is_error("NOAUTH "), "{words:?}");
    }
    assert_eq!(client.ask_words(&["AUTH", PASSWORD]), Value::ok());
    assert_eq!(client.ask("SET a 1"), Value::ok());
    assert!(client.ask_words(&["AUTH", "wrong"]).is_error("WRONGPASS "));
    assert_eq!(
        client.ask("GET a"),
        Value::bulk("1"),
        "one slip does not log out"
    );
    assert_eq!(client.ask("RESET"), Value::Simple("RESET".into()));
    assert!(client.ask("GET a").is_error("NOAUTH "), "RESET logs out");

    let mut other = node.client();
    let hello = other.ask_words(&["HELLO", "3", "AUTH", "default", PASSWORD, "SETNAME", "me"]);
    assert_eq!(hello.field("proto"), Some(Value::Integer(3)));
    assert_eq!(other.ask("GET a"), Value::bulk("1"));
    assert_eq!(other.ask("CLIENT GETNAME"), Value::bulk("me"));
    assert!(
        !node.said().contains(PASSWORD),
        "the log tells the password"
    );
}

/// What a stranger may send is little: otherwise anybody could fill the memory.
#[test]
fn a_stranger_may_send_little() {
    let dir = scratch();
    let node = Launch::new(dir.path()).with("--password", PASSWORD).start();
    let cases: &[(&[u8], &str)] = &[
        (b"*11\r\n", "unauthenticated multibulk length"),
        (
            b"*2\r\n$4\r\nAUTH\r\n$16385\r\n",
            "unauthenticated bulk length",
        ),
    ];
    for (bytes, text) in cases {
        let mut client = node.client();
        client.send(bytes);
        let reply = client.read();
        assert!(
            reply.is_error(&format!("ERR Protocol error: {text}")),
            "{reply:?}"
        );
        assert_eq!(client.rest().expect("hung up on"), b"");
    }
    let mut client = node.client();
    assert_eq!(client.ask_words(&["AUTH", PASSWORD]), Value::ok());
    let large = vec![b'x'; 1 << 20];
    assert_eq!(client.ask_words(&[b"SET", &b"k"[..], &large]), Value::ok());
}

/// A node without a password that is asked for one says so, as clients configured with one expect.
#[test]
fn a_password_where_there_is_none_is_an_error() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    let reply = client.ask("AUTH something");
    assert!(
        reply.is_error("ERR AUTH <password> called without"),
        "{reply:?}"
    );
    assert_eq!(client.ask("AUTH default anything"), Value::ok());
}

/// Clients read these at the start of every connection, in both protocols.
#[test]
fn hello_tells_what_clients_look_for() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    for (line, proto) in [("HELLO", 2), ("HELLO 3", 3), ("HELLO", 3), ("HELLO 2", 2)] {
        let hello = client.ask(line);
        let is_map = matches!(hello, Value::Map(_));
        assert_eq!(is_map, proto == 3, "{line}: {hello:?}");
        assert_eq!(hello.field("proto"), Some(Value::Integer(proto)), "{line}");
        assert_eq!(hello.field("server"), Some(Value::bulk("redis")));
        assert_eq!(hello.field("mode"), Some(Value::bulk("standalone")));
        assert_eq!(hello.field("role"), Some(Value::bulk("master")));
        assert_eq!(hello.field("modules"), Some(Value::List(vec![])));
        assert_eq!(hello.field("id"), Some(client.ask("CLIENT ID")), "{line}");
        let version = hello.field("version").expect("clients need it").text();
        let mut numbers = version.split('.').map(str::parse::<u32>);
        assert!(numbers.all(|number| number.is_ok()), "{version}");
    }
    for line in ["HELLO 1", "HELLO 4"] {
        assert!(client.ask(line).is_error("NOPROTO "), "{line}");
    }
    assert!(
        client
            .ask("HELLO x")
            .is_error("ERR Protocol version is not an integer")
    );
    assert_eq!(client.ask("PING"), pong(), "and the conversation goes on");
}

/// Tools and pools find their connections by number and name.
#[test]
fn clients_can_be_told_apart() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    // Enough to be on both cores.
    let mut clients: Vec<_> = (0..12).map(|_| node.client()).collect();
    let mut ids: Vec<i64> = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask("CLIENT GETNAME"), Value::Null);
        let set = client.ask(&format!("CLIENT SETNAME worker-{index}"));
        assert_eq!(set, Value::ok());
        let set = client.ask("CLIENT SETINFO LIB-NAME quoit-test");
        assert_eq!(set, Value::ok());
        let Value::Integer(id) = client.ask("CLIENT ID") else {
            panic!("CLIENT ID gives a number");
        };
        ids.push(id);
    }
    let list = clients[0].ask("CLIENT LIST").text();
    assert_eq!(list.lines().count(), 12, "{list}");
    for (index, id) in ids.iter().enumerate() {
        let of = |line: &&str| line.split(' ').any(|word| word == format!("id={id}"));
        let lines: Vec<_> = list.lines().filter(of).collect();
        assert_eq!(lines.len(), 1, "id={id} is not one client's:\n{list}");
        let local = clients[index].socket().local_addr().expect("it is open");
        for word in [
            format!("name=worker-{index}"),
            format!("addr={local}"),
            format!("laddr={}", node.address),
            "lib-name=quoit-test".to_owned(),
            "resp=2".to_owned(),
        ] {
            assert!(
                lines[0].split(' ').any(|w| w == word),
                "{word}: {}",
                lines[0]
            );
        }
    }
    let one = clients[3].ask(&format!("CLIENT LIST ID {}", ids[7])).text();
    assert!(
        one.contains("name=worker-7 ") && one.lines().count() == 1,
        "{one}"
    );
    let own = clients[5].ask("CLIENT INFO").text();
    assert!(own.contains("name=worker-5 "), "{own}");
    let bad = clients[0].ask_words(&["CLIENT", "SETNAME", "two words"]);
    assert!(bad.is_error("ERR Client names cannot contain"), "{bad:?}");
}

/// Dashboards and clients read these fields; the numbers are those of the whole node.
#[test]
fn info_counts_what_the_whole_node_does() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut clients: Vec<_> = (0..8).map(|_| node.client()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        for key in 0..25 {
            let set = client.ask(&format!("SET key:{index}:{key} {key}"));
            assert_eq!(set, Value::ok());
        }
    }
    let info = clients[0].ask("INFO").text();
    for section in [
        "Server",
        "Clients",
        "Memory",
        "Persistence",
        "Stats",
        "Keyspace",
    ] {
        assert!(
            info.contains(&format!("# {section}\r\n")),
            "{section}:\n{info}"
        );
    }
    for line in [
        "redis_version:7.2.0",
        "loading:0",
        "role:master",
        "cluster_enabled:0",
        "connected_clients:8",
        "total_connections_received:8",
        "total_commands_processed:201",
        "cores:2",
        "db0:keys=200,expires=0,avg_ttl=0",
        &format!("process_id:{}", node.pid()),
        &format!("tcp_port:{}", node.address.port()),
    ] {
        assert!(info.lines().any(|said| said == line), "{line}:\n{info}");
    }
    let one = clients[1].ask("INFO keyspace").text();
    assert!(
        one.starts_with("# Keyspace") && !one.contains("# Server"),
        "{one}"
    );
    assert_eq!(clients[0].ask("CONFIG RESETSTAT"), Value::ok());
    assert!(node.info("total_commands_processed") < 200);
}

/// Clients ask for these before they do anything else.
#[test]
fn config_and_command_answer_what_clients_ask() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    let said = client.ask("CONFIG GET databases");
    assert_eq!(said.list(), [Value::bulk("databases"), Value::bulk("1")]);
    let said = client.ask("CONFIG GET appendfsync maxclients");
    assert_eq!(said.field("appendfsync"), Some(Value::bulk("always")));
    assert_eq!(said.field("maxclients"), Some(Value::bulk("10000")));
    assert_eq!(client.ask("CONFIG GET no-such-thing"), Value::List(vec![]));
    let said = client.ask("CONFIG SET maxmemory 1");
    assert!(said.is_error("ERR "), "{said:?}");
    let Value::Integer(count) = client.ask("COMMAND COUNT") else {
        panic!("COMMAND COUNT gives a number");
    };
    let all = client.ask("COMMAND");
    assert_eq!(all.list().len() as i64, count);
    assert!(count > 50, "{count} commands");
    let get = client.ask("COMMAND INFO get");
    assert_eq!(get.list()[0].list()[0], Value::bulk("get"));
    client.ask("HELLO 3");
    let said = client.ask("CONFIG GET port");
    let port = Value::bulk(&node.address.port().to_string());
    assert!(matches!(said, Value::Map(_)), "a map in RESP3");
    assert_eq!(said.field("port"), Some(port), "the port that is in use");
    let said = client.ask("NOSUCH a b");
    assert!(said.is_error("ERR unknown command 'NOSUCH'"), "{said:?}");
    assert_eq!(client.ask("QUIT"), Value::ok());
    assert_eq!(client.rest().expect("hung up on"), b"");
}

/// A key is there until its last millisecond, and never after it.
#[test]
fn expired_keys_vanish_exactly() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    let mut seen_before = 0;
    for round in 0..6 {
        let lifetime = Duration::from_millis(100 + 20 * round);
        let key = format!("lent:{round}");
        let before = Instant::now();
        let set = client.ask(&format!("SET {key} 1 PX {}", lifetime.as_millis()));
        assert_eq!(set, Value::ok());
        let after = Instant::now();
        // The wall clock is read in whole milliseconds: one to each side.
        let (sure, over) = (
            before + lifetime - Duration::from_millis(1),
            after + lifetime + Duration::from_millis(1),
        );
        let (mut seen, mut gone) = (0, 0);
        while gone < 3 {
            let sent = Instant::now();
            let value = client.ask(&format!("GET {key}"));
            let received = Instant::now();
            match value {
                Value::Null => {
                    assert!(received >= sure, "gone {:?} too early", sure - received);
                    gone += 1;
                }
                _ => {
                    assert!(sent <= over, "there {:?} too late", sent - over);
                    assert_eq!(gone, 0, "it came back");
                    seen += 1;
                }
            }
        }
        seen_before += seen;
        assert_eq!(client.ask(&format!("EXISTS {key}")), Value::Integer(0));
        assert_eq!(client.ask(&format!("TTL {key}")), Value::Integer(-2));
    }
    // A slow disk may take longer for a SET than its key lives, but hardly each time.
    assert!(seen_before > 3, "seen {seen_before} times");
    assert_eq!(client.ask("DBSIZE"), Value::Integer(0));
    assert_eq!(client.ask("KEYS *"), Value::List(vec![]));
}

/// Expired keys give their memory back although nobody asks for them again.
#[test]
fn expired_keys_are_reclaimed_from_memory() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    let value = vec![b'v'; 1000];
    let mut pipeline = Vec::new();
    for index in 0..5_000 {
        let key = format!("lent:{index}");
        let words = [b"SET", key.as_bytes(), &value, b"PX", b"1500"];
        pipeline.extend(request(&words));
    }
    client.send(&pipeline);
    for _ in 0..5_000 {
        assert_eq!(client.read(), Value::ok());
    }
    assert_eq!(client.ask("SET stays 1"), Value::ok());
    let full = node.info("used_memory_dataset");
    assert!(
        full > 5_000_000,
        "{full} bytes hold 5,000 values of 1,000 bytes"
    );
    let until = Instant::now() + PATIENCE;
    while node.info("expired_keys") < 5_000 {
        let expired = node.info("expired_keys");
        assert!(Instant::now() < until, "only {expired} are reclaimed");
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = node.info("used_memory_dataset");
    assert!(left < full / 20, "{left} of {full} bytes are left");
    assert_eq!(client.ask("GET stays"), Value::bulk("1"));
    assert_eq!(client.ask("DBSIZE"), Value::Integer(1));
    // And it stays so after a crash.
    node.kill();
    let node = Launch::new(dir.path()).start();
    assert_eq!(node.client().ask("DBSIZE"), Value::Integer(1));
}

/// WATCH sees a key that came and went, though nothing of it is left when EXEC looks.
#[test]
fn a_watched_key_that_came_and_went_fails_the_transaction() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let (mut client, mut other) = (node.client(), node.client());
    let mut exec_after = |what: &[&str]| {
        for key in ["one", "two", "three"] {
            assert_eq!(client.ask(&format!("WATCH {key}")), Value::ok());
        }
        let expired = node.info("expired_keys");
        for line in what {
            other.ask(line);
        }
        if what.iter().any(|line| line.contains("PX")) {
            let until = Instant::now() + PATIENCE;
            while node.info("expired_keys") == expired {
                assert!(Instant::now() < until, "nothing expires");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert_eq!(client.ask("MULTI"), Value::ok());
        client.ask("GET one");
        client.ask("EXEC")
    };
    let ran = Value::List(vec![Value::Null]);
    assert_eq!(exec_after(&[]), ran, "nothing happened");
    assert_eq!(exec_after(&["SET four 1"]), ran, "to another key");
    assert_eq!(exec_after(&["DEL two"]), ran, "nothing was deleted");
    let gone = [
        &["SET two 1", "DEL two"][..],
        &["SET three 1", "FLUSHALL"],
        &["MSET one 1 two 2 three 3", "FLUSHALL"],
        &["SET two 1 PX 20"],
    ];
    for what in gone {
        assert_eq!(exec_after(what), Value::Null, "{what:?}");
    }
    assert_eq!(exec_after(&[]), ran, "and all is well again");
}

/// A key too long is refused wherever it comes from: what is stored must fit a table's index.
#[test]
fn a_key_too_long_is_refused_in_a_transaction_too() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut client = node.client();
    let long = "k".repeat(64 * 1024 + 1);
    let fits = "k".repeat(64 * 1024);
    let is_refused = |reply: &Value| reply.is_error("ERR key exceeds maximum allowed size");
    assert!(is_refused(&client.ask_words(&["SET", &long, "1"])));
    assert_eq!(client.ask("MULTI"), Value::ok());
    for words in [
        &["SET", &long, "1"][..],
        &["MSET", &long, "1"],
        &["SET", &fits, "2"],
    ] {
        assert_eq!(client.ask_words(words), Value::Simple("QUEUED".into()));
    }
    let Value::List(replies) = client.ask("EXEC") else {
        panic!("EXEC answers with an array");
    };
    assert!(is_refused(&replies[0]), "{:?}", replies[0]);
    assert!(!matches!(replies[1], Value::Simple(_)), "{:?}", replies[1]);
    assert_eq!(replies[2], Value::ok());
    assert_eq!(client.ask("DBSIZE"), Value::Integer(1));
}
