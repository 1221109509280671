//! Everything that is refused: with which status, and whether the connection goes on.

use std::time::{Duration, Instant};

use crate::common::{Launch, PATIENCE, scratch};
use crate::web::Web;
use crate::{SMALL, start};

/// A request with this line, and a host.
fn with_line(line: &str) -> String {
    format!("{line}\r\nHost: h\r\n\r\n")
}

/// A PUT with these further lines, and what follows them.
fn put(lines: &str, body: &str) -> String {
    format!("PUT /kv/a HTTP/1.1\r\nHost: h\r\n{lines}\r\n{body}")
}

/// Clients act on the status: each fault must have its own.
#[test]
fn each_fault_has_its_status() {
    let dir = scratch();
    let node = start(dir.path());
    let long_key = "k".repeat((64 << 10) + 1);
    let long_line = "k".repeat(256 << 10);
    let long_field = "x".repeat(32 << 10);
    let stays = [
        (with_line("GET /kv/absent HTTP/1.1"), 404),
        (with_line("GET /nowhere HTTP/1.1"), 404),
        (with_line("GET /kv HTTP/1.1"), 404),
        (with_line("GET /kv/ HTTP/1.1"), 400),
        (with_line("GET /kv/%zz HTTP/1.1"), 400),
        (with_line("GET /kv/%4 HTTP/1.1"), 400),
        (with_line(&format!("GET /kv/{long_key} HTTP/1.1")), 400),
        (with_line("GET /kv/a?consistency=two HTTP/1.1"), 400),
        (with_line("GET /kv/a?consistency= HTTP/1.1"), 400),
        (with_line("GET /kv/a?consistency HTTP/1.1"), 400),
        (
            with_line("GET /kv/a?consistency=one&consistency=one HTTP/1.1"),
            400,
        ),
        (with_line("GET /kv/a?ttl=1 HTTP/1.1"), 400),
        (with_line("GET /kv/a?x=1 HTTP/1.1"), 400),
        (with_line("GET /kv/a?& HTTP/1.1"), 400),
        (with_line("GET /metrics?x HTTP/1.1"), 400),
        (with_line("GET /health?x HTTP/1.1"), 400),
        (with_line("POST /kv/a HTTP/1.1"), 405),
        (with_line("PATCH /kv/a HTTP/1.1"), 405),
        (with_line("OPTIONS /kv/a HTTP/1.1"), 405),
        (with_line("PUT /health HTTP/1.1"), 405),
        (with_line("DELETE /metrics HTTP/1.1"), 405),
        (with_line("POST / HTTP/1.1"), 405),
        (put("Content-Length: 1\r\nIf-Match: \"x\"\r\n", "v"), 412),
    ];
    for (request, status) in stays {
        let mut web = Web::connect(&node);
        let answer = web.ask(&request);
        let start = &request[..request.len().min(80)];
        assert_eq!(answer.status, status, "{start:?}: {answer:?}");
        assert_eq!(answer.field("allow").is_some(), status == 405, "{start:?}");
        assert_eq!(web.get("/health").status, 200, "it goes on after {start:?}");
    }
    let ends = [
        (put("", ""), 411),
        (put("Content-Length: 262145\r\n", ""), 413),
        (put("Content-Length: 99999999999999999\r\n", ""), 413),
        (put("Transfer-Encoding: chunked\r\n", "40001\r\n"), 413),
        (with_line(&format!("GET /kv/{long_line} HTTP/1.1")), 414),
        (put("Expect: tea\r\nContent-Length: 1\r\n", "v"), 417),
        (
            format!("GET /kv/a HTTP/1.1\r\nHost: h\r\nX: {long_field}\r\n\r\n"),
            431,
        ),
        (
            format!(
                "GET /kv/a HTTP/1.1\r\nHost: h\r\n{}\r\n",
                "X: y\r\n".repeat(70)
            ),
            431,
        ),
        (with_line("BREW /kv/a HTTP/1.1"), 501),
        (
            put("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            501,
        ),
        (
            put(
                "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n",
                "",
            ),
            501,
        ),
        (with_line("GET /kv/a HTTP/2.0"), 505),
        (with_line("GET /kv/a#b HTTP/1.1"), 400),
        ("*1\r\n$4\r\nPING\r\n".to_owned(), 400),
        (put("Content-Length: 1\r\nIf-Match: x\r\n", "v"), 400),
        (
            "DELETE /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx".to_owned(),
            400,
        ),
        (put("Transfer-Encoding: chunked\r\n", "zz\r\n"), 400),
    ];
    for (request, status) in ends {
        let mut web = Web::connect(&node);
        let answer = web.ask(&request);
        let start = &request[..request.len().min(80)];
        assert_eq!(answer.status, status, "{start:?}: {answer:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{start:?}");
        assert!(web.is_closed(), "{start:?}");
    }
    for path in ["/kv/a", "/kv/absent"] {
        assert_eq!(
            Web::connect(&node).get(path).status,
            404,
            "nothing was stored"
        );
    }
    let errors = node.info("http_errors");
    assert!(errors > 40, "{errors} are counted");
}

/// Where a proxy before the node and the node disagree about the end of a request, the second
/// request in its body is somebody else's. None of these may let it in.
#[test]
fn no_form_of_smuggling_lets_a_second_request_in() {
    let dir = scratch();
    let node = start(dir.path());
    let inner = "PUT /kv/smuggled HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
    let chunked = format!("0\r\n\r\n{inner}");
    let (all, none) = (chunked.len(), 0);
    for lines in [
        format!("Content-Length: {all}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {all}\r\n"),
        format!("Content-Length: {none}\r\nContent-Length: {all}\r\n"),
        format!("Content-Length: {all}\r\nContent-Length: {all}\r\n"),
        format!("Content-Length: {none}, {all}\r\n"),
        format!("Content-Length: +{none}\r\n"),
        format!("Content-Length: -{none}\r\n"),
        "Content-Length: 0x0\r\n".to_owned(),
        "Content-Length: 0 0\r\n".to_owned(),
        "Content-Length: 18446744073709551616\r\n".to_owned(),
        format!("Content-Length : {none}\r\n"),
        format!(" Content-Length: {none}\r\n"),
        format!("X: y\r\n Content-Length: {none}\r\n"),
        format!("X: y\nContent-Length: {none}\r\n"),
        format!("X: y\rContent-Length: {none}\r\n"),
        format!("X: y\0\r\nContent-Length: {none}\r\n"),
        "Transfer-Encoding: xchunked\r\n".to_owned(),
        "Transfer-Encoding: chunked, identity\r\n".to_owned(),
        "Transfer-Encoding: chunked, chunked\r\n".to_owned(),
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        "Transfer-Encoding : chunked\r\n".to_owned(),
        "Transfer-Encoding:\r\n chunked\r\n".to_owned(),
        "Transfer-Encoding: \x0bchunked\r\n".to_owned(),
        format!("Host: h\r\nContent-Length: {none}\r\n"),
    ] {
        let mut web = Web::connect(&node);
        let answer = web.ask(&put(&lines, &chunked));
        assert_eq!(answer.status, 400, "{lines:?}: {answer:?}");
        assert!(web.is_closed(), "nothing behind it is looked at: {lines:?}");
    }
    for request in [
        format!("PUT /kv/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        format!("PUT /kv/a HTTP/1.1\r\nContent-Length: 0\r\n\r\n{inner}"),
        put("Transfer-Encoding: chunked\r\n", &format!("0\n\n{inner}")),
        put(
            "Transfer-Encoding: chunked\r\n",
            &format!("1\r\nab\r\n{inner}"),
        ),
        put(
            "Transfer-Encoding: chunked\r\n",
            &format!("1;\nx\r\n0\r\n\r\n{inner}"),
        ),
        put(
            "Transfer-Encoding: chunked\r\n",
            &format!("+0\r\n\r\n{inner}"),
        ),
        put(
            "Transfer-Encoding: chunked\r\n",
            &format!("0\r\nX: y\n\r\n{inner}"),
        ),
    ] {
        let mut web = Web::connect(&node);
        let answer = web.ask(&request);
        assert_eq!(answer.status, 400, "{request:?}: {answer:?}");
        assert!(web.is_closed(), "{request:?}");
    }
    let mut web = Web::connect(&node);
    assert_eq!(
        web.get("/kv/smuggled").status,
        404,
        "a second request was let in"
    );
    assert_eq!(web.get("/kv/a").status, 404);
}

/// A request that does not come must not hold a connection for ever.
#[test]
fn a_request_that_does_not_arrive_in_time_is_given_up() {
    let dir = scratch();
    let config = "[limits]\nhttp-request-timeout-s = 1\n";
    let node = Launch::new(dir.path()).config(config).start();
    for beginning in [
        "G",
        "GET /kv/a HTTP/1.1\r\nHost: h\r\n",
        "PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
        "PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ] {
        let mut web = Web::connect(&node);
        // Also behind a request that was answered, and however long that is ago.
        assert_eq!(web.get("/health").status, 200);
        web.send(beginning.as_bytes());
        let answer = web.read();
        assert_eq!(
            (answer.status, answer.text("error")),
            (408, "timeout".into()),
            "{beginning:?}"
        );
        assert!(web.is_closed(), "{beginning:?}");
    }
    // One that drips is not slow byte by byte, and yet too slow.
    let mut web = Web::connect(&node);
    web.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    while !web.has_answer(Duration::from_millis(50)) {
        web.send(b"x");
    }
    let answer = web.read();
    assert_eq!(answer.status, 408);
    assert_eq!(
        Web::connect(&node).get("/kv/a").status,
        404,
        "half a value is none"
    );
}

/// Whoever is one too many must be told so, and the others must be served.
#[test]
fn one_client_too_many_is_told_so() {
    let dir = scratch();
    let config = format!("{SMALL}clients-max = 2\n");
    let node = Launch::new(dir.path()).config(&config).start();
    let mut first = Web::connect(&node);
    assert_eq!(first.get("/health").status, 200);
    let mut redis = node.client();
    assert_eq!(redis.ask("PING").text(), "PONG");
    let mut third = Web::connect(&node);
    let answer = third.get("/kv/x");
    assert_eq!(
        (answer.status, answer.field("connection")),
        (503, Some("close"))
    );
    assert!(third.is_closed());
    // Else whoever watches over the node would take it for dead, and end it.
    for path in ["/health", "/metrics"] {
        let mut watcher = Web::connect(&node);
        let answer = watcher.get(path);
        assert_eq!(
            (answer.status, answer.field("connection")),
            (200, Some("close")),
            "{path}"
        );
    }
    assert!(
        redis.ask("CLIENT LIST").text().contains("cmd=http"),
        "clients of both kinds are listed"
    );
    assert_eq!(first.get("/health").status, 200);
}

/// Else a few connections that say nothing would keep out whoever watches over the node, for good.
#[test]
fn who_is_let_in_beyond_the_limit_must_ask_in_time() {
    let dir = scratch();
    let config = "[limits]\nclients-max = 1\nhttp-request-timeout-s = 2\n";
    let node = Launch::new(dir.path()).config(config).start();
    let mut redis = node.client();
    let mut watchers = || redis.ask("CLIENT LIST").text().matches("cmd=http").count();
    assert_eq!(watchers(), 0, "and all cores know that there is one client");
    let silent: Vec<Web> = (0..16).map(|_| Web::connect(&node)).collect();
    let check = || Web::connect(&node).get("/health").status;
    let until = Instant::now() + PATIENCE;
    // The cores tell each other a moment later how many they have let in.
    while watchers() < silent.len() || check() != 503 {
        assert!(Instant::now() < until, "they never take all places");
    }
    for mut web in silent {
        assert_eq!(web.read().status, 408);
        assert!(web.is_closed());
    }
    let until = Instant::now() + PATIENCE;
    while check() != 200 {
        assert!(Instant::now() < until, "their places are not free again");
    }
}

/// Else a client could have a node make six times as much of a value as may be stored.
#[test]
fn a_value_that_is_too_large_as_json_can_still_be_had_as_bytes() {
    let dir = scratch();
    let config = "[limits]\nvalue-max = \"64KiB\"\nreply-max = \"64KiB\"\n";
    let node = Launch::new(dir.path()).config(config).start();
    let mut web = Web::connect(&node);
    let value = vec![1; 20_000]; // \u0001 for each
    assert_eq!(web.put("/kv/a", &value).status, 200);
    let told = web.ask("GET /kv/a HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n");
    assert_eq!(told.status, 406, "{told:?}");
    let got = web.get("/kv/a");
    assert_eq!((got.status, got.body), (200, value));
}
