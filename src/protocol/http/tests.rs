//! What is taken as a request, what is refused, and that it makes no difference in which pieces it
//! comes.

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    line_bytes_max: 256,
    fields_bytes_max: 1024,
};
const BODY_BYTES_MAX: usize = 100;

/// All that was understood of some bytes.
#[derive(Debug, PartialEq)]
enum Read {
    Incomplete,
    Refused(Refusal),
    /// A head, its body, and how many bytes both took.
    Request(Box<Head>, Vec<u8>, usize),
}

/// Reads one request that comes in pieces which end at `cuts` and at the end.
fn read_in_pieces(bytes: &[u8], cuts: &[usize]) -> Read {
    let mut parser = HeadParser::default();
    let mut ends = cuts.iter().copied().chain([bytes.len()]);
    let mut end = 0;
    let (head, start) = loop {
        match parser.parse(&bytes[..end], LIMITS) {
            Parsed::Head(head, start) => break (head, start),
            Parsed::Refused(refusal) => return Read::Refused(refusal),
            Parsed::Incomplete => match ends.next() {
                Some(next) => end = next,
                None => return Read::Incomplete,
            },
        }
    };
    let mut body = match Body::new(head.framing, BODY_BYTES_MAX) {
        Ok(body) => body,
        Err(refusal) => return Read::Refused(refusal),
    };
    let (mut value, mut at) = (Vec::new(), start);
    loop {
        match body.feed(&bytes[at..end], &mut value) {
            Err(refusal) => return Read::Refused(refusal),
            Ok(fed) => at += fed.consumed,
        }
        assert!(value.len() <= BODY_BYTES_MAX, "more was kept than may be");
        if body.is_done() {
            return Read::Request(head, value, at);
        }
        match ends.next() {
            Some(next) => end = next,
            None => return Read::Incomplete,
        }
    }
}

fn read(text: &str) -> Read {
    let bytes = text.as_bytes();
    let whole = read_in_pieces(bytes, &[]);
    let each: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(
        read_in_pieces(bytes, &each),
        whole,
        "byte by byte: {text:?}"
    );
    whole
}

fn status(text: &str) -> u16 {
    match read(text) {
        Read::Refused(refusal) => refusal.status.0,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn head(text: &str) -> Head {
    match read(text) {
        Read::Request(head, ..) => *head,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn value(text: &str) -> (String, usize) {
    match read(text) {
        Read::Request(_, body, length) => (String::from_utf8(body).expect("text was sent"), length),
        other => panic!("{text:?}: {other:?}"),
    }
}

/// A PUT with these further lines.
fn put(lines: &str, body: &str) -> String {
    format!("PUT /kv/a HTTP/1.1\r\nHost: h\r\n{lines}\r\n{body}")
}

#[test]
fn a_request_is_taken_apart() {
    let text = "PUT /kv/a%20b?ttl=5 HTTP/1.1\r\nhost: h:1\r\nContent-Length: 3\r\nAccept: text/*, \
                application/json;q=0.5\r\nIF-MATCH: \"x\" ,W/\"y\"\r\nIf-None-Match: *\r\nExpect: \
                100-Continue\r\nAuthorization: Basic abc\r\n\r\nabcGET";
    let whole = head(text);
    let tags = vec![(false, "x".to_owned()), (true, "y".to_owned())];
    let expected = Head {
        method: Method::Put,
        path: "/kv/a%20b".to_owned(),
        query: Some("ttl=5".to_owned()),
        is_1_1: true,
        framing: Framing::Length(3),
        keep_alive: true,
        expected: Expected::Continue,
        wants_json: true,
        if_match: Some(Tags::These(tags)),
        if_none_match: Some(Tags::Any),
        authorization: Some("Basic abc".to_owned()),
    };
    assert_eq!(whole, expected);
    assert_eq!(
        value(text),
        ("abc".to_owned(), text.len() - 3),
        "what follows is the next request's"
    );
}

#[test]
fn an_address_and_an_empty_line_before_a_request_are_taken() {
    let path = |text: &str| {
        let head = head(text);
        (head.path, head.query)
    };
    let some = |query: &str| Some(query.to_owned());
    assert_eq!(path("GET / HTTP/1.0\r\n\r\n"), ("/".to_owned(), None));
    assert_eq!(
        path("GET /a? HTTP/1.0\r\n\r\n"),
        ("/a".to_owned(), some(""))
    );
    let address = "GET HTTP://h:1/a?b HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(path(address), ("/a".to_owned(), some("b")));
    let bare = "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(path(bare), ("/".to_owned(), None));
    assert_eq!(path("\r\nGET / HTTP/1.0\r\n\r\n"), ("/".to_owned(), None));
    assert_eq!(status("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), 400);
    assert_eq!(status("GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n"), 400);
}

#[test]
fn a_connection_stays_by_the_rules_of_its_version() {
    let stays = |version: &str, lines: &str| {
        head(&format!("GET / HTTP/{version}\r\nHost: h\r\n{lines}\r\n")).keep_alive
    };
    assert!(stays("1.1", ""));
    assert!(!stays("1.1", "Connection: foo, Close\r\n"));
    assert!(!stays("1.0", ""));
    assert!(stays("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!stays(
        "1.0",
        "Connection: keep-alive\r\nConnection: close\r\n"
    ));
}

#[test]
fn forms_by_which_requests_are_smuggled_are_refused() {
    for lines in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\ncontent-length: 4\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: -3\r\n",
        "Content-Length: 3 3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: 3.0\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked;a=b\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked\r\n foo\r\n",
        "Transfer-Encoding\r\n : chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length : 3\r\n",
        "Content-Length\t: 3\r\n",
        " Content-Length: 3\r\n",
        "X: a\nContent-Length: 3\r\n",
        "X: a\rContent-Length: 3\r\n",
        "X: a\r\rContent-Length: 3\r\n",
        "X: a\0\r\n",
        "Content_Length\x01: 3\r\n",
        ": 3\r\n",
        "no colon\r\n",
        "Host: h\r\n",
        "host: other\r\n",
        "Content-Range: bytes 0-2/3\r\nContent-Length: 3\r\n",
        "If-Match: a\r\n",
        "If-Match: \"a\r\n",
        "If-Match: \"a\",\r\n",
        "If-Match: *, \"a\"\r\n",
        "If-Match:\r\n",
        "Authorization: a\r\nAuthorization: b\r\n",
    ] {
        assert_eq!(
            status(&put(lines, "3\r\nabc\r\n0\r\n\r\n")),
            400,
            "{lines:?}"
        );
    }
    let old = "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(status(old), 400, "HTTP/1.0 has no chunks");
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400, "no host");
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400);
    assert_eq!(
        status("GET / HTTP/1.1\nHost: a\n\n"),
        400,
        "bare line feeds"
    );
    assert_eq!(
        status(&put("Transfer-Encoding: gzip, chunked\r\n", "")),
        501
    );
}

#[test]
fn what_is_no_request_is_refused_at_its_first_line() {
    for (line, code) in [
        ("*1\r\n", 400),
        ("\x16\x03\x01", 400),
        ("GET /\r\n", 400),
        ("GET / \r\n", 400),
        ("GET  / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1 \r\n", 400),
        ("GET / http/1.1\r\n", 400),
        ("GET / HTTP/1.10\r\n", 400),
        ("GET / FTP/1.1\r\n", 400),
        ("GET /a b HTTP/1.1\r\n", 400),
        (" GET / HTTP/1.1\r\n", 400),
        ("GET\t/ HTTP/1.1\r\n", 400),
        ("GET / HTTP/2.0\r\n", 505),
        ("GET / HTTP/0.9\r\n", 505),
        ("GET / HTTP/1.2\r\n", 505),
    ] {
        assert_eq!(status(line), code, "{line:?}");
    }
    for (text, code) in [
        ("get / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", 417),
    ] {
        assert_eq!(status(text), code, "{text:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let long = "a".repeat(LIMITS.line_bytes_max);
    assert_eq!(
        status(&format!("GET /{long}")),
        414,
        "before the line has come"
    );
    let long = "a".repeat(LIMITS.fields_bytes_max);
    assert_eq!(
        status(&format!("GET / HTTP/1.1\r\nHost: h\r\nX: {long}")),
        431
    );
    let many = "X: a\r\n".repeat(100);
    assert_eq!(
        status(&format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")),
        431
    );
    let tags = vec!["\"a\""; 65].join(",");
    assert_eq!(status(&put(&format!("If-Match: {tags}\r\n"), "")), 431);
}

#[test]
fn chunks_make_one_body() {
    let chunked = |body: &str| put("Transfer-Encoding: Chunked\r\n", body);
    for (body, content) in [
        ("0\r\n\r\n", ""),
        ("3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("1\r\na\r\n02\r\nbc\r\n000\r\n\r\n", "abc"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("A;x=\"y\";z\r\n0123456789\r\n0;x\r\n\r\n", "0123456789"),
        ("1\r\n\n\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n", "\n"),
    ] {
        let text = chunked(body);
        assert_eq!(value(&text), (content.to_owned(), text.len()), "{body:?}");
        let cut = &text[..text.len() - 1];
        assert_eq!(read(cut), Read::Incomplete, "{cut:?}");
    }
    for body in [
        "\r\n",
        ";x\r\n",
        "g\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        "1 \r\na\r\n",
        " 1\r\na\r\n",
        "1\na\n",
        "1\ra",
        "1\r\nab",
        "1\r\na\n",
        "1\r\na\rb",
        "1;\n\r\na",
        "1;\0\r\na",
        "0\r\n\n",
        "0\r\nX\n",
        "0\r\n\rX",
        "1000000000000000\r\n",
        "ffffffffffffffffffff\r\n",
    ] {
        assert_eq!(status(&chunked(body)), 400, "{body:?}");
    }
    let long = "x".repeat(10_000);
    assert_eq!(status(&chunked(&format!("1;{long}"))), 400);
    assert_eq!(status(&chunked(&format!("0\r\n{long}"))), 400);
    assert_eq!(
        status(&chunked(&format!("0\r\n{}", "X: y\r\n".repeat(2_000)))),
        400
    );
}

#[test]
fn bodies_are_bounded_before_they_come() {
    let most = "x".repeat(BODY_BYTES_MAX);
    let text = put(&format!("Content-Length: {BODY_BYTES_MAX}\r\n"), &most);
    assert_eq!(value(&text).0, most);
    assert_eq!(status(&put("Content-Length: 101\r\n", "")), 413);
    assert_eq!(
        status(&put("Content-Length: 18446744073709551615\r\n", "")),
        413
    );
    let chunked = |body: &str| put("Transfer-Encoding: chunked\r\n", body);
    assert_eq!(
        value(&chunked(&format!("64\r\n{most}\r\n0\r\n\r\n"))).0,
        most
    );
    assert_eq!(status(&chunked("65\r\n")), 413);
    assert_eq!(status(&chunked("fffffffffffffff\r\n")), 413);
    assert_eq!(
        status(&chunked(&format!("63\r\n{}\r\n2\r\n", &most[1..]))),
        413
    );
}

/// What an accepted head must look like to any other reader of it.
fn check_accepted(head: &Head, bytes: &[u8]) {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let whole = text
        .strip_suffix("\r\n\r\n")
        .expect("it ends with an empty line");
    assert!(
        !whole.contains("\r\n\r\n"),
        "it ends at the first empty line: {text:?}"
    );
    let lines: Vec<&str> = whole.split("\r\n").collect();
    let mut values = std::collections::BTreeMap::<String, Vec<&str>>::new();
    for line in &lines {
        assert!(
            !line.contains(['\r', '\n', '\0']),
            "a bare control: {line:?}"
        );
    }
    for line in &lines[1..] {
        assert!(!line.starts_with([' ', '\t']), "folded: {line:?}");
        let (name, value) = line.split_once(':').expect("a field has a colon");
        let is_token =
            |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
        assert!(
            !name.is_empty() && name.bytes().all(is_token),
            "a name: {line:?}"
        );
        let value = value.trim_matches([' ', '\t']);
        values
            .entry(name.to_ascii_lowercase())
            .or_default()
            .push(value);
    }
    let of = |name: &str| values.get(name).cloned().unwrap_or_default();
    let (lengths, codings, hosts) = (of("content-length"), of("transfer-encoding"), of("host"));
    assert!(lengths.len() + codings.len() <= 1, "framed twice: {text:?}");
    assert!(
        hosts.len() == 1 || (hosts.is_empty() && !head.is_1_1),
        "hosts: {text:?}"
    );
    match head.framing {
        Framing::None => assert!(lengths.is_empty() && codings.is_empty(), "{text:?}"),
        Framing::Chunked => assert!(codings[0].eq_ignore_ascii_case("chunked"), "{text:?}"),
        Framing::Length(length) => {
            assert!(
                lengths[0].bytes().all(|byte| byte.is_ascii_digit()),
                "{text:?}"
            );
            assert_eq!(
                lengths[0].trim_start_matches('0'),
                match length {
                    0 => String::new(),
                    length => length.to_string(),
                }
            );
        }
    }
}

/// Pieces of requests, sound and unsound.
const PIECES: &[&str] = &[
    "GET ",
    "PUT ",
    "DELETE ",
    "/kv/a",
    "/kv/%00?ttl=1",
    " HTTP/1.1",
    " HTTP/1.0",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    "Host: h\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "X: y\r\n",
    " ",
    "\t",
    ":",
    ",",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "abc",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "If-Match: \"a\"\r\n",
    "\0",
    "\u{ff}",
    ";x=y",
    "1",
];

/// Changes `bytes` in up to four places.
fn damage(bytes: &mut Vec<u8>, chance: &mut fastrand::Rng) {
    for _ in 0..chance.usize(0..5) {
        let at = chance.usize(..=bytes.len());
        let end = (at + chance.usize(..8)).min(bytes.len());
        match chance.u8(..4) {
            0 => drop(bytes.drain(at..end)),
            1 if at < end => bytes[at] = chance.u8(..),
            2 => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            _ => {
                let piece = PIECES[chance.usize(..PIECES.len())].bytes();
                drop(bytes.splice(at..at, piece));
            }
        }
    }
}

/// A seeded request, damaged: what is taken of it is well-formed for every reader, and does not
/// depend on the pieces that it comes in.
#[test]
fn mutations_are_refused_or_mean_one_thing_only() {
    let start = [
        put("Content-Length: 3\r\n", "abc"),
        put(
            "Transfer-Encoding: chunked\r\nConnection: close\r\n",
            "3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        ),
        "GET /kv/a HTTP/1.0\r\nIf-None-Match: \"a\", W/\"b\"\r\n\r\n".to_owned(),
        "\r\nGET http://h/kv/a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YQ==\r\n\r\n".to_owned(),
    ];
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut bytes = start[chance.usize(..start.len())].clone().into_bytes();
        damage(&mut bytes, &mut chance);
        let whole = read_in_pieces(&bytes, &[]);
        let mut cuts: Vec<usize> = (0..chance.usize(..8))
            .map(|_| chance.usize(..=bytes.len()))
            .collect();
        cuts.sort_unstable();
        assert_eq!(
            read_in_pieces(&bytes, &cuts),
            whole,
            "seed {seed}, cut at {cuts:?}"
        );
        match &whole {
            Read::Request(head, ..) => {
                let mut parser = HeadParser::default();
                let Parsed::Head(again, length) = parser.parse(&bytes, LIMITS) else {
                    panic!("seed {seed}: read once, and not again");
                };
                assert_eq!(*again, **head);
                check_accepted(head, &bytes[..length]);
                taken += 1;
            }
            Read::Refused(_) => refused += 1,
            Read::Incomplete => {}
        }
    }
    assert!(
        taken > 2_000 && refused > 2_000,
        "{taken} taken, {refused} refused: a blind test"
    );
}

#[test]
fn a_response_says_its_length_and_whether_the_connection_stays() {
    let response =
        Response::new(200, "text/plain", b"abc".to_vec()).with("ETag", "\"a\"".to_owned());
    let head = String::from_utf8(response.head(784_111_777_000, true)).expect("it is text");
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\nContent-Length: \
         3\r\nETag: \"a\"\r\nConnection: keep-alive\r\n\r\n"
    );
    let bodiless = response.without_body();
    let head = String::from_utf8(bodiless.head(u64::MAX, false)).expect("it is text");
    assert!(
        bodiless.body.is_empty() && head.contains("Content-Length: 3\r\n"),
        "{head}"
    );
    assert!(
        head.contains("Date: Fri, 31 Dec 9999") && head.contains("Connection: close\r\n"),
        "{head}"
    );
    let unchanged = Response::new(304, "text/plain", Vec::new()).head(0, true);
    assert!(
        !String::from_utf8_lossy(&unchanged).contains("Content-"),
        "304 has no body"
    );
}

#[test]
fn every_status_that_is_used_has_its_words() {
    for code in [
        200, 304, 400, 401, 404, 405, 408, 411, 412, 413, 414, 417, 431, 500, 501, 503, 505,
    ] {
        assert_ne!(Status(code).reason(), "Unknown", "{code}");
        assert!(!Status(code).word().contains(' '), "{code}");
    }
}
