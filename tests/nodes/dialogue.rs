//! What commands answer where a key has replicas on three nodes.

use crate::cluster::{Client, Reply, Verdict};
use crate::scene::words;

/// Requests, which go in one pipeline, and what is answered; an error is told by its beginning.
const PIPELINES: &[&[(&str, &str)]] = &[
    // Commands on one key keep their order, whatever is under way on others.
    &[
        ("SET a 1", "OK"),
        ("SET b 1", "OK"),
        ("GET a", "1"),
        ("SET a 2", "OK"),
        ("GET a", "2"),
        ("DEL a", "1"),
        ("GET a", "nil"),
        ("GET b", "1"),
        ("DEL a", "0"),
    ],
    &[
        ("MSET a 1 b 22 c 333", "OK"),
        ("MGET a b none c a", "[1 22 nil 333 1]"),
        ("EXISTS a b none a", "3"),
        ("TOUCH a none", "1"),
        ("TOUCH a b c none", "3"),
        ("STRLEN c", "3"),
        ("GETRANGE c 0 1", "33"),
        ("TYPE a", "string"),
        ("TTL a", "-1"),
        ("TTL none", "-2"),
        ("OBJECT ENCODING a", "int"),
        ("GETEX a", "1"),
        ("DEL a b none", "2"),
        ("UNLINK c", "1"),
        ("MGET a b c", "[nil nil nil]"),
        ("MSET a 1 b 22 c 333", "OK"),
        ("UNLINK a none c", "2"),
        ("MGET a b c", "[nil 22 nil]"),
        ("UNLINK b", "1"),
    ],
    &[
        ("SETEX e 100 v", "OK"),
        ("TTL e", "100"),
        ("SET e v PX 100000", "OK"),
        ("TTL e", "100"),
        ("SET e v", "OK"),
        ("TTL e", "-1"),
        ("SET e v PXAT 1", "OK"),
        ("GET e", "nil"),
    ],
    // What reads before it writes.
    &[
        ("SET n 1", "OK"),
        ("INCR n", "ERR This reads before it writes"),
        ("APPEND n 1", "ERR This reads"),
        ("SETNX n 2", "ERR This reads"),
        ("SET n 2 NX", "ERR This reads"),
        ("SET n 2 GET", "ERR This reads"),
        ("SET n 2 KEEPTTL", "ERR This reads"),
        ("GETSET n 2", "ERR This reads"),
        ("GETDEL n", "ERR This reads"),
        ("GETEX n PERSIST", "ERR This reads"),
        ("EXPIRE n 10", "ERR This reads"),
        ("PERSIST n", "ERR This reads"),
        ("SETRANGE n 0 2", "ERR This reads"),
        ("INCRBYFLOAT n 1", "ERR This reads"),
        ("GET n", "1"),
        ("WATCH n", "ERR This reads"),
        ("INCR", "ERR wrong number"),
    ],
    &[
        ("MULTI", "OK"),
        ("GET n", "QUEUED"),
        ("PING", "QUEUED"),
        ("MGET n none", "QUEUED"),
        ("EXEC", "[1 PONG [1 nil]]"),
        ("MULTI", "OK"),
        ("GET n", "QUEUED"),
        ("SET n 2", "ERR This reads"),
        ("FLUSHALL", "ERR This reads"),
        ("EXEC", "EXECABORT"),
        ("GET n", "1"),
    ],
    &[
        ("KV.CONSISTENCY READ quorum WRITE all", "OK"),
        ("SET q 1", "OK"),
        ("GET q", "1"),
        ("DEL q", "1"),
        ("GET q", "nil"),
        ("KV.GET q", "nil"),
        ("KV.DEL q", "[status not_found]"),
        (
            "KV.PUT q 1 IFMATCH 01930a0b0c0d0001-00010002",
            "ERR This reads",
        ),
    ],
];

/// Has all of it said to one node.
pub async fn hold(mut client: Client) -> Verdict {
    // Once every node takes writes a node sees at once what it writes itself.
    let warm = [
        words("KV.CONSISTENCY READ one WRITE all"),
        words("SET warm 1"),
    ];
    while client.must(&warm).await?[1] != Reply::Simple("OK".to_owned()) {}
    client
        .must(&[words("KV.CONSISTENCY READ one WRITE one")])
        .await?;
    for pipeline in PIPELINES {
        let requests: Vec<_> = pipeline.iter().map(|(request, _)| words(request)).collect();
        let replies = client.must(&requests).await?;
        for ((request, wanted), reply) in pipeline.iter().zip(&replies) {
            let told = text(reply);
            let is_it = match reply {
                Reply::Error(_) => told.starts_with(wanted),
                _ => told == *wanted,
            };
            if !is_it {
                return Err(format!("{request} answers {told}, not {wanted}"));
            }
        }
    }
    Ok(())
}

/// The first write of a cluster whose map cannot be changed: refused, or in doubt, if the
/// coordinator gives up before that is clear. What was never written can be read.
pub async fn first_write_is_refused(mut client: Client) -> Verdict {
    let replies = client
        .must(&[words("SET first 1"), words("GET first")])
        .await?;
    let told: Vec<String> = replies.iter().map(text).collect();
    let is_refused = told[0].starts_with("MISCONF Before its first write");
    match (is_refused || told[0].starts_with("UNKNOWN")) && told[1] == "nil" {
        true => Ok(()),
        false => Err(format!("the first write is told {told:?}")),
    }
}

/// The same when it can be, at the latest after some tries.
pub async fn write_at_last(mut client: Client) -> Verdict {
    let mut told = String::new();
    for _ in 0..20 {
        told = text(&client.must(&[words("SET first 1")]).await?[0]);
        if told == "OK" {
            return Ok(());
        }
    }
    Err(format!("the first write is told {told}"))
}

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Simple(text) | Reply::Error(text) => text.clone(),
        Reply::Integer(number) => number.to_string(),
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Nil => "nil".to_owned(),
        Reply::Array(replies) => {
            let texts: Vec<String> = replies.iter().map(text).collect();
            format!("[{}]", texts.join(" "))
        }
    }
}
