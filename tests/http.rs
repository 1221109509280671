//! The node over HTTP, by raw sockets: what it stores and tells, what it refuses and how, and that
//! it keeps what it acknowledged. `statuses` goes through everything that is refused; `figures`
//! through what is told of the node; `readme` runs the README's examples; `kv` is the same over
//! RESP.

mod common;

#[path = "http/figures.rs"]
mod figures;
#[path = "http/kv.rs"]
mod kv;
#[path = "http/readme.rs"]
mod readme;
#[path = "http/statuses.rs"]
mod statuses;
#[path = "http/web.rs"]
mod web;

use std::thread;

use common::{Launch, Node, Value, scratch};
use web::{Web, escaped};

/// Values may be this large where a test says so.
const SMALL: &str = "[limits]\nvalue-max = \"256KiB\"\nhttp-request-timeout-s = 30\n";

fn start(dir: &std::path::Path) -> Node {
    Launch::new(dir).config(SMALL).start()
}

/// What is stored must come back as it was, under any key, from any core.
#[test]
fn any_bytes_under_any_key_are_stored_and_read_back() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    let all: Vec<u8> = (0..=255).collect();
    let keys: Vec<Vec<u8>> = (0..40u8).map(|key| [&[key], &all[..]].concat()).collect();
    for key in &keys {
        let value = [key, &all[..]].concat();
        let put = web.put(&format!("/kv/{}", escaped(key)), &value);
        assert_eq!(put.status, 200, "{put:?}");
        let version = put.text("version");
        assert_eq!(put.text("status"), "stored");
        assert_eq!(put.json()["replicas_written"], 1);
        assert_eq!(put.field("etag"), Some(&*format!("\"{version}\"")));
        let got = web.get(&format!("/kv/{}", escaped(key)));
        assert_eq!((got.status, &got.body), (200, &value));
        assert_eq!(
            got.field("x-version"),
            Some(&*version),
            "one write, one version"
        );
        assert_eq!(got.field("etag"), Some(&*format!("\"{version}\"")));
        assert!(
            got.field("last-modified")
                .is_some_and(|date| date.ends_with(" GMT"))
        );
        let reply = node.client().ask_words(&[b"GET", &key[..]]);
        assert_eq!(reply, Value::Bulk(value), "the same store as over RESP");
    }
    for (path, key) in [
        ("/kv/a/b?", &b"a/b"[..]),
        ("/kv/+%2b", b"++"),
        ("/kv//", b"/"),
    ] {
        assert_eq!(web.put(path, b"v").status, 200, "{path}");
        let reply = node.client().ask_words(&[b"GET", key]);
        assert_eq!(reply, Value::bulk("v"), "{path}");
    }
}

/// Programs that want JSON must get every value exactly.
#[test]
fn json_tells_text_as_text_and_other_bytes_in_base64() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    web.put("/kv/text", "a\"\u{e9}\n".as_bytes());
    web.put("/kv/bytes", b"\xff\x00");
    let json = |web: &mut Web, path: &str| {
        let got = web.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n"
        ));
        assert_eq!(got.field("content-type"), Some("application/json"));
        got.json()
    };
    let text = json(&mut web, "/kv/text");
    assert_eq!(text["value"], "a\"\u{e9}\n");
    assert!(text.get("encoding").is_none() && text["version"].is_string());
    let millis = text["last_modified"].as_u64().expect("a number");
    let seconds = node.client().ask("TIME").list()[0].text();
    let now: u64 = seconds.parse().expect("a number");
    assert!(
        millis / 1000 <= now && millis / 1000 + 3600 > now,
        "{millis} at {now}"
    );
    let bytes = json(&mut web, "/kv/bytes");
    assert_eq!(
        (&bytes["value"], &bytes["encoding"]),
        (&"/wA=".into(), &"base64".into())
    );
}

/// HEAD tells what GET would, and the next answer is not taken for its body.
#[test]
fn head_tells_the_length_without_the_value() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    for length in [0, 5, 100_000] {
        let put = web.put("/kv/a", &vec![b'x'; length]);
        let head = web.head("/kv/a");
        assert_eq!(head.status, 200);
        assert_eq!(head.field("content-length"), Some(&*length.to_string()));
        assert_eq!(head.field("x-version"), Some(&*put.text("version")));
        assert_eq!(web.get("/kv/a").body.len(), length);
    }
    assert_eq!(web.head("/kv/absent").status, 404);
    assert_eq!(web.get("/kv/absent").status, 404);
}

/// A value must expire when it was said to, and live on when nothing was said.
#[test]
fn a_time_to_live_is_kept_and_a_delete_deletes() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    let mut redis = node.client();
    for key in ["a", "b", "c", "d"] {
        let path = format!("/kv/{key}");
        assert_eq!(
            web.put(&format!("{path}?ttl=1000&consistency=ALL"), b"1")
                .status,
            200
        );
        let Value::Integer(left) = redis.ask(&format!("TTL {key}")) else {
            panic!("no time to live");
        };
        assert!((900..=1000).contains(&left), "{left}");
        assert_eq!(web.put(&path, b"2").status, 200);
        assert_eq!(redis.ask(&format!("TTL {key}")), Value::Integer(-1));
        let deleted = web.delete(&path);
        assert_eq!(
            (deleted.status, deleted.text("status")),
            (200, "deleted".into())
        );
        assert_eq!(web.delete(&path).status, 404);
        assert_eq!(web.get(&path).status, 404);
        assert_eq!(redis.ask(&format!("EXISTS {key}")), Value::Integer(0));
    }
}

/// Requests in one piece, and requests in many, mean the same; answers come in order.
#[test]
fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let dir = scratch();
    let node = start(dir.path());
    let mut bytes = Vec::new();
    for index in 0..50 {
        let body = format!("value {index}");
        let framed = match index % 2 {
            0 => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            _ => format!(
                "Transfer-Encoding: chunked\r\n\r\n3;x\r\nval\r\n{:x}\r\n{}\r\n0\r\nX: y\r\n\r\n",
                body.len() - 3,
                &body[3..]
            ),
        };
        bytes.extend_from_slice(
            format!("PUT /kv/k{index} HTTP/1.1\r\nHost: h\r\n{framed}").as_bytes(),
        );
        bytes.extend_from_slice(format!("GET /kv/k{index} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
    }
    for piece in [bytes.len(), 1000, 7, 1] {
        let mut web = Web::connect(&node);
        let mut other = web.second();
        let (sender, bytes) = (piece, bytes.clone());
        let sending =
            thread::spawn(move || bytes.chunks(sender).for_each(|piece| other.send(piece)));
        for index in 0..50 {
            assert_eq!(web.read().status, 200, "PUT {index} in pieces of {piece}");
            let got = web.read();
            assert_eq!(
                got.body,
                format!("value {index}").into_bytes(),
                "in pieces of {piece}"
            );
        }
        sending.join().expect("everything was sent");
    }
}

/// The largest value must go in, however it is cut, and not a byte more.
#[test]
fn the_largest_value_goes_in_by_tiny_chunks() {
    let dir = scratch();
    let node = start(dir.path());
    let most = 256 << 10;
    let mut chunks =
        b"PUT /kv/large HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for index in 0..most {
        chunks.extend_from_slice(&[b'1', b'\r', b'\n', b'a' + (index % 23) as u8, b'\r', b'\n']);
    }
    let mut web = Web::connect(&node);
    web.send(&chunks);
    web.send(b"0\r\n\r\n");
    assert_eq!(web.read().status, 200);
    let got = web.get("/kv/large").body;
    assert_eq!(got.len(), most);
    assert!(
        got.iter()
            .enumerate()
            .all(|(index, byte)| *byte == b'a' + (index % 23) as u8)
    );
    let mut web = Web::connect(&node);
    web.send(&chunks);
    web.send(b"1\r\nx\r\n0\r\n\r\n");
    assert_eq!(web.read().status, 413);
    assert_eq!(
        web.get_on_new("/kv/large").body.len(),
        most,
        "the old value stays"
    );
}

/// A client that waits for leave to send must get it, or a final answer.
#[test]
fn a_client_that_asks_first_is_told_to_go_on_or_why_not() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    web.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(web.read().status, 100);
    web.send(b"abc");
    assert_eq!(web.read().status, 200);
    web.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(web.read().status, 100);
    web.send(b"3\r\ndef\r\n0\r\n\r\n");
    assert_eq!(web.read().status, 200);
    web.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(web.read().status, 200, "nothing is to come");
    web.send(
        b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(web.read().status, 413, "a final answer, and no leave");
    assert!(web.is_closed());
    let mut web = Web::connect(&node);
    web.send(
        b"PUT /kv/a?ttl=0 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(web.read().status, 400);
    assert!(web.is_closed());
}

/// A connection stays if, and only if, both sides can rely on that.
#[test]
fn connections_stay_by_the_rules_of_their_version() {
    let dir = scratch();
    let node = start(dir.path());
    for (head, stays) in [
        ("GET /health HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("GET /kv/absent HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("POST /kv/a HTTP/1.1\r\nHost: h\r\n\r\n", true),
        (
            "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            false,
        ),
        ("GET /health HTTP/1.0\r\n\r\n", false),
        (
            "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            true,
        ),
        (
            "POST /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            false,
        ),
        (
            "GET /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
            false,
        ),
    ] {
        let mut web = Web::connect(&node);
        let answer = web.ask(head);
        let connection = if stays { "keep-alive" } else { "close" };
        assert_eq!(answer.field("connection"), Some(connection), "{head}");
        match stays {
            true => assert_eq!(web.get("/health/live").status, 200, "{head}"),
            false => assert!(web.is_closed(), "{head}"),
        }
    }
    let node = Launch::new(dir.path())
        .with("--dir", dir.path().join("idle").display())
        .config("[limits]\nidle-timeout-s = 1\n")
        .start();
    let mut web = Web::connect(&node);
    assert_eq!(web.get("/health").status, 200);
    assert!(web.is_closed(), "it has said nothing for a second");
}

/// Two writers that saw one version must not both be told that they replaced it.
#[test]
fn of_writers_that_saw_one_version_one_alone_replaces_it() {
    const WRITERS: usize = 4;
    const RAISES: usize = 40;
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    // A value of this size goes to the value log: its number is at its start.
    let value = |number: usize| format!("{number:05}{}", "x".repeat(3000)).into_bytes();
    for key in ["a", "b"] {
        let path = format!("/kv/{key}");
        let first = "If-None-Match: *\r\n";
        assert_eq!(web.put_if(&path, first, &value(0)).status, 200);
        assert_eq!(
            web.put_if(&path, first, &value(9)).status,
            412,
            "it is there"
        );
        let raise = |mut web: Web| {
            let mut done = 0;
            while done < RAISES {
                let seen = web.get(&path);
                let number: usize = String::from_utf8_lossy(&seen.body[..5])
                    .parse()
                    .expect("a number");
                let tag = seen.field("etag").expect("a tag").to_owned();
                let put = web.put_if(&path, &format!("If-Match: {tag}\r\n"), &value(number + 1));
                match put.status {
                    200 => done += 1,
                    412 => assert_ne!(put.field("etag"), Some(&*tag), "the tag that it has now"),
                    other => panic!("{other}: {put:?}"),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                let web = Web::connect(&node);
                scope.spawn(|| raise(web));
            }
        });
        assert_eq!(
            web.get(&path).body,
            value(WRITERS * RAISES),
            "every raise counts once"
        );
        let tag = web.head(&path).field("etag").expect("a tag").to_owned();
        let none = web.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nIf-None-Match: W/{tag}\r\n\r\n"
        ));
        assert_eq!((none.status, none.field("etag")), (304, Some(&*tag)));
        let wrong = web.ask(&format!(
            "DELETE {path} HTTP/1.1\r\nHost: h\r\nIf-Match: \"x\"\r\n\r\n"
        ));
        assert_eq!(wrong.status, 412);
        let weak = web.ask(&format!(
            "DELETE {path} HTTP/1.1\r\nHost: h\r\nIf-Match: W/{tag}\r\n\r\n"
        ));
        assert_eq!(weak.status, 412, "a weak tag is like no other");
        let right = web.ask(&format!(
            "DELETE {path} HTTP/1.1\r\nHost: h\r\nIf-Match: \"x\", {tag}\r\n\r\n"
        ));
        assert_eq!(right.status, 200);
        assert_eq!(
            web.put_if(&path, "If-Match: *\r\n", b"").status,
            412,
            "nothing is there"
        );
    }
}

/// What was acknowledged is there after a kill, with the version that was told.
#[test]
fn acknowledged_values_survive_a_kill() {
    let dir = scratch();
    let mut told: Vec<(String, Vec<u8>, String)> = Vec::new();
    for life in 0..3 {
        let node = start(dir.path());
        let mut web = Web::connect(&node);
        for (path, value, version) in &told {
            let got = web.get(path);
            assert_eq!(
                (got.status, &got.body),
                (200, value),
                "{path} in life {life}"
            );
            assert_eq!(
                got.field("x-version"),
                Some(&**version),
                "{path} in life {life}"
            );
        }
        for index in 0..60usize {
            let path = format!("/kv/{life}:{index}");
            let value = vec![index as u8; index * index * 5];
            let put = web.put(&path, &value);
            assert_eq!(put.status, 200);
            told.push((path, value, put.text("version")));
        }
        node.kill();
    }
}

/// Whoever does not read must not make the node hold more than one answer.
#[test]
fn a_client_that_does_not_read_holds_one_answer() {
    let dir = scratch();
    let node = Launch::new(dir.path()).start();
    let mut web = Web::connect(&node);
    assert_eq!(web.put("/kv/a", &vec![b'x'; 4 << 20]).status, 200);
    assert_eq!(web.get("/kv/a").body.len(), 4 << 20);
    let before = node.resident_bytes();
    let mut waiting: Vec<Web> = (0..4).map(|_| Web::connect(&node)).collect();
    for web in &mut waiting {
        web.send(
            "GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n"
                .repeat(50)
                .as_bytes(),
        );
    }
    // Each has got the beginning of its first answer, so each is served.
    for web in &mut waiting {
        assert_eq!(web.peek_status(), 200);
    }
    assert_eq!(
        Web::connect(&node).get("/health").status,
        200,
        "others are served"
    );
    let more = node.resident_bytes().saturating_sub(before);
    assert!(
        more < 4 * (3 * (4 << 20)),
        "{more} bytes for four clients that do not read"
    );
    for web in &mut waiting {
        for _ in 0..50 {
            assert_eq!(web.read().body.len(), 4 << 20);
        }
    }
}

/// Where there is a password, it is asked for; but not of whoever looks after the node.
#[test]
fn a_password_is_asked_for_except_by_health() {
    let dir = scratch();
    let node = Launch::new(dir.path())
        .config("password = \"open: sesame\"\n")
        .start();
    let mut web = Web::connect(&node);
    assert_eq!(web.get("/health").status, 200);
    assert_eq!(web.get("/health/live").status, 200);
    for path in ["/kv/a", "/metrics", "/", "/nowhere"] {
        let answer = web.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(
            answer
                .field("www-authenticate")
                .is_some_and(|field| field.starts_with("Basic "))
        );
    }
    let mut with = |token: &str| {
        let lines = format!("GET /kv/a HTTP/1.1\r\nHost: h\r\nAuthorization: {token}\r\n\r\n");
        web.ask(&lines).status
    };
    assert_eq!(
        with("Basic ZGVmYXVsdDpvcGVuOiBzZXNhbWU="),
        404,
        "default:open: sesame"
    );
    assert_eq!(with("basic ZGVmYXVsdDpvcGVuOiBzZXNhbWU="), 404);
    for wrong in [
        "Basic ZGVmYXVsdDpvcGVu",         // default:open
        "Basic b3RoZXI6b3Blbjogc2VzYW1l", // other:open: sesame
        "Basic b3Blbjogc2VzYW1l",         // open: sesame
        "Basic ZGVmYXVsdA==",             // default
        "Basic !",
        "Basic ",
        "Bearer ZGVmYXVsdDpvcGVuOiBzZXNhbWU=",
        "",
    ] {
        assert_eq!(with(wrong), 401, "{wrong}");
    }
    assert_eq!(web.put("/kv/a", b"1").status, 401);
    assert!(web.is_closed(), "a value is not taken from strangers");
}
