//! The life of a process: how a node starts, stops, dies, comes back, and refuses to start; what
//! clients it lets in (`commands`) and how it stands those that mean ill (`abuse`).
//!
//! All of it against the real program. `QUOIT_LONG=1` opens 10,000 connections instead of 1,000.

mod common;

#[path = "server/abuse.rs"]
mod abuse;
#[path = "server/commands.rs"]
mod commands;
#[path = "server/strangers.rs"]
mod strangers;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Client, Launch, QUOIT, Value, scratch};

const KEYS: usize = 400;

/// Writes what [`check`] looks for: plain values, one that is deleted again, one with an expiry,
/// a counter, a large one, and many by one command over all cores.
fn fill(client: &mut Client) {
    for index in 0..KEYS {
        let reply = client.ask(&format!("SET key:{index} value:{index}"));
        assert_eq!(reply, Value::ok(), "SET key:{index}");
    }
    let mut many = vec![b"MSET".to_vec()];
    for index in 0..KEYS {
        many.push(format!("many:{index}").into_bytes());
        many.push(format!("{index}").into_bytes());
    }
    assert_eq!(client.ask_words(&many), Value::ok(), "MSET");
    assert_eq!(client.ask("SET gone 1"), Value::ok());
    assert_eq!(client.ask("DEL gone"), Value::Integer(1));
    assert_eq!(client.ask("SET lent 1 EX 10000"), Value::ok());
    for count in 1..=10 {
        assert_eq!(client.ask("INCR counter"), Value::Integer(count));
    }
    let large = vec![b'x'; 3 << 20];
    assert_eq!(
        client.ask_words(&[b"SET", &b"large"[..], &large]),
        Value::ok()
    );
}

/// Finds everything that [`fill`] wrote, and nothing else.
fn check(client: &mut Client, after: &str) {
    for index in 0..KEYS {
        let value = client.ask(&format!("GET key:{index}"));
        let expected = Value::bulk(&format!("value:{index}"));
        assert_eq!(value, expected, "{after}: key:{index}");
        let value = client.ask(&format!("GET many:{index}"));
        assert_eq!(
            value,
            Value::bulk(&index.to_string()),
            "{after}: many:{index}"
        );
    }
    assert_eq!(
        client.ask("GET gone"),
        Value::Null,
        "{after}: a deleted key"
    );
    assert_eq!(client.ask("GET counter"), Value::bulk("10"), "{after}");
    let Value::Integer(seconds) = client.ask("TTL lent") else {
        panic!("TTL gives a number");
    };
    assert!((9_900..=10_000).contains(&seconds), "{after}: {seconds} s");
    let large = client.ask("GET large");
    assert_eq!(large, Value::Bulk(vec![b'x'; 3 << 20]), "{after}: large");
    let keys = 2 * KEYS as i64 + 3;
    assert_eq!(client.ask("DBSIZE"), Value::Integer(keys), "{after}");
}

/// A node that takes long to start makes every restart an outage.
#[test]
fn a_node_is_ready_well_within_a_second_on_an_empty_directory() {
    let best = (0..3).map(|_| {
        let dir = scratch();
        Launch::new(dir.path()).start().ready_after
    });
    let best = best.min().expect("three starts");
    assert!(best < Duration::from_millis(700), "ready after {best:?}");
    println!("ready {best:?} after the start, at best of three");
}

/// An orderly stop loses nothing, whatever the durability, and says so by its exit code.
#[test]
fn what_was_written_before_sigterm_or_sigint_is_there_after_a_restart() {
    for durability in ["sync", "periodic", "none"] {
        let dir = scratch();
        let launch = || Launch::new(dir.path()).with("--durability", durability);
        let mut node = launch().start();
        fill(&mut node.client());
        for signal in ["TERM", "INT"] {
            let after = format!("durability {durability}, after {signal}");
            assert_eq!(node.stop(signal), Some(0), "{after}");
            node = launch().start();
            check(&mut node.client(), &after);
        }
    }
}

/// A stop drains: clients get the replies to what they have sent, then the end of the stream; an
/// idle or half-finished client does not hold it up.
#[test]
fn a_stop_answers_busy_clients_and_hangs_up_on_idle_ones() {
    let dir = scratch();
    let launch = || Launch::new(dir.path()).with("--durability", "none");
    let node = launch().start();
    let mut idle = node.client();
    assert_eq!(idle.ask("PING"), Value::Simple("PONG".into()));
    let mut half = node.client();
    half.send(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100\r\nonly a part of");
    let mut busy: Vec<Client> = (0..8).map(|_| node.client()).collect();
    let writers: Vec<_> = busy
        .drain(..)
        .enumerate()
        .map(|(writer, mut client)| {
            std::thread::spawn(move || {
                let mut acknowledged = 0;
                let set = |index| format!("SET w{writer}:{index} {index}");
                while client
                    .try_ask(&common::words(&set(acknowledged)))
                    .is_ok_and(|reply| reply == Value::ok())
                {
                    acknowledged += 1;
                }
                acknowledged
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    assert_eq!(node.stop("TERM"), Some(0), "a stop among busy clients");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "the stop took {took:?}");
    assert_eq!(idle.rest().expect("hung up on"), b"", "the idle client");
    assert_eq!(half.rest().expect("hung up on"), b"", "the half request");
    let node = launch().start();
    let mut client = node.client();
    for (writer, thread) in writers.into_iter().enumerate() {
        let acknowledged = thread.join().expect("the writer does not panic");
        assert!(acknowledged > 0, "writer {writer} was never answered");
        for index in 0..acknowledged {
            let value = client.ask(&format!("GET w{writer}:{index}"));
            assert_eq!(value, Value::bulk(&index.to_string()), "w{writer}:{index}");
        }
    }
    assert_eq!(
        client.ask("GET half"),
        Value::Null,
        "half a request is none"
    );
}

/// What was acknowledged is on disk: the process may die at any moment.
#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    fill(&mut node.client());
    node.kill();
    for round in 1..=2 {
        let node = Launch::new(dir.path()).start();
        check(&mut node.client(), &format!("kill -9, {round}"));
        node.kill();
    }
}

/// The line that tells the operator why; everything else on stderr must be lines of the log.
fn told((code, said): (Option<i32>, String)) -> String {
    assert!(code.is_some_and(|code| code != 0), "exit {code:?}:\n{said}");
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with('[')).collect();
    assert_eq!(lines.len(), 1, "more, or less, than one line:\n{said}");
    assert!(lines[0].starts_with("quoit: "), "{said}");
    lines[0].to_owned()
}

fn assert_told(refused: (Option<i32>, String), words: &[&str]) {
    let line = told(refused);
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

/// Two nodes on one port would share its clients, as the cores of one do: each has half the data.
#[test]
fn a_port_in_use_is_refused() {
    let (dir, other) = (scratch(), scratch());
    let node = Launch::new(dir.path()).start();
    let port = node.address.port();
    let refused = || Launch::new(other.path()).with("--port", port).refused();
    assert_told(refused(), &["port", &port.to_string(), "in use"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let refused = Launch::new(other.path()).with("--port", port).refused();
    assert_told(refused, &["port", &port.to_string(), "in use"]);
}

/// A port that was in use a moment ago can be used at once: a restart does not wait for TIME_WAIT.
#[test]
fn a_node_can_be_restarted_on_its_port_at_once() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let port = node.address.port();
    let mut clients: Vec<Client> = (0..20).map(|_| node.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("PING"), Value::Simple("PONG".into()));
    }
    assert_eq!(node.stop("TERM"), Some(0));
    let node = Launch::new(dir.path()).with("--port", port).start();
    assert_eq!(node.address.port(), port);
    assert_eq!(node.client().ask("PING"), Value::Simple("PONG".into()));
}

/// The kernel closes the sockets of a killed process when it has taken its rings down: a supervisor
/// that starts a node anew at once must not be told that the port is in use.
#[test]
fn a_killed_node_can_be_restarted_on_its_port_at_once() {
    let dir = scratch();
    let mut node = Launch::new(dir.path()).start();
    let port = node.address.port();
    for _ in 0..6 {
        let mut clients: Vec<Client> = (0..20).map(|_| node.client()).collect();
        for client in &mut clients {
            assert_eq!(client.ask("SET key value"), Value::Simple("OK".into()));
        }
        node.kill();
        node = Launch::new(dir.path()).with("--port", port).start();
    }
    assert_eq!(node.client().ask("GET key"), Value::Bulk(b"value".to_vec()));
}

/// Some who stop a process signal its group as well: the second signal says the same as the first.
#[test]
fn two_signals_at_once_stop_a_node_in_order() {
    for _ in 0..5 {
        let dir = scratch();
        let node = Launch::new(dir.path()).start();
        fill(&mut node.client());
        node.signal("TERM");
        assert_eq!(node.stop("INT"), Some(0), "it did not stop in order");
        check(&mut Launch::new(dir.path()).start().client(), "two signals");
    }
}

/// Two nodes that write to one directory destroy it.
#[test]
fn a_directory_of_a_running_node_is_refused() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    fill(&mut node.client());
    let refused = Launch::new(dir.path()).refused();
    assert_told(refused, &["in use", "--dir"]);
    check(&mut node.client(), "another start");
    node.kill();
    // The lock dies with its process.
    let node = Launch::new(dir.path()).start();
    check(&mut node.client(), "kill -9 of the owner");
}

/// A directory is never reinterpreted: half the keys would be gone.
#[test]
fn a_directory_of_another_node_is_refused() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    fill(&mut node.client());
    assert_eq!(node.stop("TERM"), Some(0));
    let other_node = Launch::new(dir.path()).with("--node-id", 7).refused();
    assert_told(other_node, &["node 1", "node 7"]);
    let node = Launch::new(dir.path()).start();
    check(&mut node.client(), "a refusal");
}

/// A core that begins anew where it had data says of all its keys that they are not there, and as a
/// replica it outvotes those who know better.
#[test]
fn a_directory_that_lacks_a_core_is_refused() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    fill(&mut node.client());
    assert_eq!(node.stop("TERM"), Some(0));
    let (folder, aside) = (dir.path().join("data/core-001"), dir.path().join("aside"));
    fs::rename(&folder, &aside).expect("it is ours");
    for another in [2, 3] {
        let refused = Launch::new(dir.path()).with("--cores", another).refused();
        assert_told(refused, &["core-001", "core 1", "removed"]);
    }
    // A disk that is not mounted leaves an empty folder.
    fs::create_dir(&folder).expect("it is ours");
    let refused = Launch::new(dir.path()).refused();
    assert_told(refused, &["core-001", "core 1", "removed", "mounted"]);
    fs::remove_dir(&folder).expect("it is empty");
    fs::rename(&aside, &folder).expect("it is ours");
    check(&mut Launch::new(dir.path()).start().client(), "a refusal");
}

/// A word that is not understood is not a setting that is ignored.
#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let dir = scratch();
    let refused = Launch::new(dir.path())
        .config("no-such-key = 1\n")
        .refused();
    assert!(refused.1.contains("no-such-key"), "{}", refused.1);
    assert!(refused.0.is_some_and(|code| code != 0));
    let refused = Launch::new(dir.path()).config("[limits]\nkey-max = \"1MiB\"\n");
    assert_told(refused.refused(), &["limits.key-max"]);
    let absent = dir.path().join("absent.toml");
    let refused = Launch::new(dir.path()).with("--config", absent.display());
    assert_told(refused.refused(), &["absent.toml"]);
}

/// Where data cannot be written the node says so before it serves anybody.
#[test]
fn a_directory_that_cannot_be_written_to_is_refused() {
    let dir = scratch();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").expect("the test's directory is writable");
    let refused = Launch::new(dir.path()).with("--dir", file.display());
    assert_told(refused.refused(), &["data directory", "file"]);
    let within = file.join("data");
    let refused = Launch::new(dir.path()).with("--dir", within.display());
    assert_told(refused.refused(), &["data directory", "file"]);

    let Some(through) = unprivileged("true", dir.path()) else {
        return;
    };
    let refused = Launch::new(dir.path()).through(&words(&through)).refused();
    assert_told(refused, &["data directory", "owner or mode"]);
}

/// io_uring needs locked memory; without it the runtime fails in words that help nobody.
#[test]
fn too_little_lockable_memory_is_refused() {
    let dir = scratch();
    let Some(through) = unprivileged("ulimit -l 64", dir.path()) else {
        return;
    };
    let refused = Launch::new(dir.path()).through(&words(&through)).refused();
    assert_told(refused, &["64 KiB", "locked", "ulimit -l"]);
}

fn words(through: &[String]) -> Vec<&str> {
    through.iter().map(String::as_str).collect()
}

/// What runs a program, after a line of shell, as a user who may not raise limits nor write to
/// `dir`. `None`, with the reason printed, if that cannot be had here.
fn unprivileged(line: &str, dir: &Path) -> Option<Vec<String>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o555);
    std::fs::set_permissions(dir, mode).expect("the directory is ours");
    // The log of the node is opened before: by this process.
    std::fs::File::create(dir.join("stderr")).ok();
    let mut through: Vec<String> = Vec::new();
    if nix::unistd::geteuid().is_root() {
        let nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        through.extend(nobody.map(String::from));
    }
    let script = format!("{line} && exec \"$0\" \"$@\"");
    through.extend(["sh".to_owned(), "-c".to_owned(), script]);
    let mut probe = Command::new(&through[0]);
    probe.args(&through[1..]).arg(QUOIT).arg("--version");
    match probe.output() {
        Ok(output) if output.status.success() => Some(through),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("skipped: no unprivileged process to be had: {said}");
            None
        }
        Err(error) => {
            println!("skipped: no unprivileged process to be had: {error}");
            None
        }
    }
}

/// Without direct I/O nothing that the runtime promises holds.
#[test]
fn a_file_system_without_direct_io_is_refused() {
    let dir = scratch();
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).expect("the test's directory is writable");
    // In a mount namespace of its own: it goes away with the process. A ramfs never takes direct
    // I/O; a tmpfs does since Linux 6.6.
    let script = format!(
        "mount -t ramfs ramfs '{}' || exit 99; exec \"$0\" \"$@\"",
        mount.display()
    );
    let through = ["unshare", "-rm", "sh", "-c", &script];
    let mut probe = Command::new(through[0]);
    probe.args(&through[1..]).arg("true");
    match probe.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return println!("skipped: no ramfs can be mounted: {said}");
        }
        Err(error) => return println!("skipped: no ramfs can be mounted: {error}"),
    }
    let data = mount.join("data");
    let launch = Launch::new(dir.path()).with("--dir", data.display());
    assert_told(launch.through(&through).refused(), &["O_DIRECT", "ext4"]);
}
