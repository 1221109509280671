//! Clients that mean ill, or do not care: none of them costs the others anything.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::common::{Client, Launch, Node, PATIENCE, Value, is_long, request, scratch};

/// What a large value of these tests is.
const LARGE_BYTES: usize = 1 << 20;

fn pong() -> Value {
    Value::Simple("PONG".into())
}

/// What is declared is not allocated, and what cannot be is refused by a word and a hang-up.
#[test]
fn impossible_lengths_are_refused_at_once() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let before = node.resident_bytes();
    let cases: &[(&[u8], &str)] = &[
        (b"*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n",
            "bulk length",
        ),
        (b"*2147483647\r\n", "multibulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*1\r\n+OK\r\n", "expected '$', got '+'"),
        (b"*1\r\n$4\r\nPINGxx", "expected CRLF"),
        (b"set \"a\r\n", "unbalanced quotes"),
    ];
    for (bytes, text) in cases {
        let shown = bytes.escape_ascii();
        let mut client = node.client();
        client.send(b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(client.read(), pong());
        client.send(bytes);
        let reply = client.read();
        let told = matches!(&reply, Value::Error(said) if said.contains(text));
        assert!(told, "{shown}: {reply:?}, not `{text}`");
        assert_eq!(client.rest().expect("hung up on"), b"", "{shown}");
    }
    // The largest that may be: 64 MiB are declared, and a few bytes sent.
    let mut waiting: Vec<Client> = (0..50).map(|_| node.client()).collect();
    for client in &mut waiting {
        client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$67108864\r\nabc");
    }
    assert_eq!(node.client().ask("PING"), pong());
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < 96 << 20, "{grown} bytes for what was only declared");
}

/// A browser that was tricked into talking to us must not run commands.
#[test]
fn http_is_hung_up_on_without_a_word() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    for start in ["POST / HTTP/1.1\r\n", "Host: localhost:6379\r\n"] {
        let mut client = node.client();
        client.send(format!("{start}\r\nSET hacked 1\r\n").as_bytes());
        assert_eq!(client.rest().expect("hung up on"), b"", "{start}");
    }
    assert_eq!(node.client().ask("GET hacked"), Value::Null);
}

/// A client as slow as one byte in 50 ms is served, and alone waits.
#[test]
fn a_client_that_sends_byte_by_byte_is_served_and_delays_nobody() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut slow = node.client();
    let mut fast = node.client();
    let mut worst = Duration::ZERO;
    for byte in request(&["SET", "slow", "1"]) {
        slow.send(&[byte]);
        let begun = Instant::now();
        assert_eq!(fast.ask("SET fast 1"), Value::ok());
        worst = worst.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(50).saturating_sub(begun.elapsed()));
    }
    assert_eq!(slow.read(), Value::ok());
    assert_eq!(fast.ask("GET slow"), Value::bulk("1"));
    assert!(worst < Duration::from_secs(1), "another waited {worst:?}");
}

/// Sends as much of `bytes` as the node takes within a second.
fn stuff(socket: &TcpStream, bytes: &[u8]) -> usize {
    let timeout = Some(Duration::from_secs(1));
    socket.set_write_timeout(timeout).expect("it is not zero");
    let (mut socket, mut sent) = (socket, 0);
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("the node takes what it can: {error}"),
        }
    }
    sent
}

/// Replies that nobody reads do not pile up: the client waits, and its memory has a bound.
/// `prepare` may move the values out of memory.
fn ask_without_reading(node: &Node, ask: &str, prepare: impl FnOnce(&Node)) {
    let value = vec![b'v'; LARGE_BYTES];
    let mut other = node.client();
    // Each client asks for one key: for some of them it is the other core's.
    for key in 0..8 {
        let key = format!("large:{key}");
        let set = other.ask_words(&[b"SET", key.as_bytes(), &value]);
        assert_eq!(set, Value::ok());
    }
    prepare(node);
    let before = node.resident_bytes();
    let deaf: Vec<Client> = (0..8).map(|_| node.client()).collect();
    for (key, client) in deaf.iter().enumerate() {
        let line = ask.replace('#', &key.to_string());
        let one = request(&super::common::words(&line));
        stuff(client.socket(), &one.repeat(1000));
    }
    let (mut worst, mut most) = (Duration::ZERO, 0);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let begun = Instant::now();
        assert_eq!(other.ask("SET small 1"), Value::ok());
        assert_eq!(other.ask("GET small"), Value::bulk("1"));
        worst = worst.max(begun.elapsed());
        most = most.max(node.resident_bytes().saturating_sub(before));
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "{ask}: {} MiB more, another client waited {worst:?}",
        most >> 20
    );
    // Sixteen values for each client at most, and two copies of them on their way.
    assert!(
        most < 512 << 20,
        "{ask}: {} MiB for eight clients",
        most >> 20
    );
    assert!(worst < Duration::from_secs(1), "another waited {worst:?}");
    // Whoever reads after all gets all of it, in order.
    let mut client = deaf.into_iter().next().expect("there are eight");
    for index in 0..20 {
        let reply = client.read();
        let whole = matches!(&reply, Value::Bulk(bytes) if bytes.len() == LARGE_BYTES);
        assert!(whole || ask.starts_with("MGET"), "reply {index} of {ask}");
    }
}

#[test]
fn a_client_that_never_reads_takes_no_memory_beyond_its_bound() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    ask_without_reading(&node, "GET large:#", |_| {});
}

/// As above, with values that must be read from the disk: they are too large for a small cache.
#[test]
fn a_client_that_never_reads_cold_values_takes_no_memory_beyond_its_bound() {
    let dir = scratch();
    let node = Launch::new(dir.path())
        .config("memory = \"16MiB\"\n")
        .start();
    ask_without_reading(&node, "GET large:#", |node| {
        let until = Instant::now() + PATIENCE;
        while node.info("value_log_live_bytes") < 8 * LARGE_BYTES as u64 {
            assert!(Instant::now() < until, "the values stay in memory");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            node.info("row_cache_bytes") < LARGE_BYTES as u64,
            "the values are in the cache"
        );
    });
}

/// As above, with commands that need both cores.
#[test]
fn a_client_that_never_reads_replies_of_two_cores_takes_no_memory_beyond_its_bound() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    ask_without_reading(&node, "MGET large:0 large:1 large:2 large:#", |_| {});
}

/// An idle connection costs next to nothing, and thousands of them do not slow down the others.
#[test]
fn thousands_of_idle_connections_are_cheap() {
    let count = if is_long() { 10_000 } else { 1_000 };
    let dir = scratch();
    let node = Launch::new(dir.path())
        .config("[limits]\nclients-max = 20000\n")
        .start();
    let mut warm: Vec<Client> = (0..100).map(|_| node.client()).collect();
    for client in &mut warm {
        assert_eq!(client.ask("PING"), pong());
    }
    let before = node.resident_bytes();
    let mut idle = Vec::with_capacity(count);
    for index in 0..count {
        let mut client = match Client::try_connect(node.address) {
            Ok(client) => client,
            Err(error) if index >= 900 && error.kind() != ErrorKind::ConnectionRefused => {
                println!("only {index} connections: {error}");
                break;
            }
            Err(error) => panic!("connection {index}: {error}"),
        };
        assert_eq!(client.ask(&format!("SET idle:{index} 1")), Value::ok());
        idle.push(client);
    }
    let each = node.resident_bytes().saturating_sub(before) / idle.len() as u64;
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(warm[0].ask("SET key 1"), Value::ok());
    }
    let took = begun.elapsed() / 100;
    println!(
        "{} idle connections: {each} bytes each; SET in {took:?}",
        idle.len()
    );
    assert!(
        each < 8 << 10,
        "{each} resident bytes for an idle connection"
    );
    assert!(took < Duration::from_millis(200), "a SET takes {took:?}");
    assert_eq!(node.info("connected_clients"), idle.len() as u64 + 101);
    for client in idle.iter_mut().rev().take(50) {
        assert_eq!(client.ask("PING"), pong(), "an idle client comes back");
    }
    drop(idle);
    let until = Instant::now() + PATIENCE;
    while node.info("connected_clients") > 101 {
        assert!(Instant::now() < until, "clients that are gone are counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        node.stop("TERM"),
        Some(0),
        "a stop after thousands of clients"
    );
}

/// One client more than there may be is told so, and costs none of the others its place.
#[test]
fn more_clients_than_the_limit_are_told_and_closed() {
    let dir = scratch();
    let node = Launch::new(dir.path())
        .config("[limits]\nclients-max = 10\n")
        .start();
    let mut clients: Vec<Client> = Vec::new();
    for index in 0..10 {
        let mut client = node.client();
        assert_eq!(client.ask("PING"), pong(), "client {index}");
        clients.push(client);
    }
    for _ in 0..5 {
        let mut more = node.client();
        let told = more.rest().expect("hung up on");
        let told = String::from_utf8_lossy(&told).into_owned();
        assert_eq!(told, "-ERR max number of clients reached\r\n");
    }
    // Whoever watches over the node must not take it for dead.
    for (path, status) in [
        ("/health/live", "200"),
        ("/metrics", "200"),
        ("/kv/x", "503"),
    ] {
        let mut watcher = Client::connect(node.http);
        watcher.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let told = watcher.rest().expect("hung up on");
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(
            told.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {told}"
        );
    }
    assert!(node.said().contains("clients-max"), "the log says why");
    for client in &mut clients {
        assert_eq!(client.ask("PING"), pong(), "a client that was there before");
    }
    let info = clients[0].ask("INFO stats").text();
    assert!(info.contains("rejected_connections:5"), "{info}");
    // A place becomes free at once.
    clients.pop();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut again = node.client();
        match again.try_ask(&["PING"]) {
            Ok(reply) if reply == pong() => break,
            _ => assert!(Instant::now() < until, "no place becomes free"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Clients that come, ask for much and vanish leave nothing behind.
#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut stays = node.client();
    let value = vec![b'v'; LARGE_BYTES];
    for key in 0..4 {
        let key = format!("large:{key}");
        assert_eq!(
            stays.ask_words(&[b"SET", key.as_bytes(), &value]),
            Value::ok()
        );
    }
    let storm = |round: usize| {
        for index in 0..50 {
            let mut client = node.client();
            let key = format!("large:{}", (round + index) % 4);
            client.send(&request(&["MULTI"]));
            client.send(&request(&["GET", &key]));
            client.send(&request(&["SET", &format!("vanished:{index}"), "1"]));
            client.send(&request(&["EXEC"]));
            client.send(&request(&["GET", &key]));
            client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$900000\r\nabc");
            drop(client); // with replies unread: a reset
        }
    };
    storm(0);
    assert_eq!(stays.ask("PING"), pong());
    let before = node.resident_bytes();
    (1..8).for_each(storm);
    let until = Instant::now() + PATIENCE;
    while node.info("connected_clients") > 2 {
        assert!(Instant::now() < until, "clients that are gone are counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{} MiB after clients that are gone",
        grown >> 20
    );
    // No key stays latched.
    for index in 0..50 {
        let reply = stays.ask(&format!("SET vanished:{index} 2"));
        assert_eq!(reply, Value::ok());
    }
}

/// The kernel's timer of the connection that a node at `node` has with a client at `client`: which
/// one runs, and in how many hundredths of a second it ends.
fn timer(node: SocketAddr, client: SocketAddr) -> Option<(u8, u64)> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux has it");
    let ends = [node, client].map(|end| format!(":{:04X}", end.port()));
    let mut lines = table.lines().map(|line| line.split_whitespace().collect());
    let line: Vec<&str> = lines.find(|line: &Vec<&str>| {
        let is_end = |(place, end): (usize, &String)| line[place].ends_with(end);
        is_end((1, &ends[0])) && is_end((2, &ends[1]))
    })?;
    let (timer, left) = line[5].split_once(':')?;
    let left = u64::from_str_radix(left, 16).ok()?;
    Some((timer.parse().ok()?, left))
}

/// Else a client whose machine has lost power would have its place for ever.
#[test]
fn clients_that_say_nothing_are_asked_whether_they_are_there() {
    const KEEPALIVE: u8 = 2;
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    for address in [node.address, node.http] {
        let client = Client::connect(address);
        let own = client.socket().local_addr().expect("it is connected");
        let until = Instant::now() + PATIENCE;
        let is_asked = || {
            timer(address, own).is_some_and(|(timer, left)| timer == KEEPALIVE && left <= 30_000)
        };
        while !is_asked() {
            let found = timer(address, own);
            assert!(Instant::now() < until, "{address}: {found:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
