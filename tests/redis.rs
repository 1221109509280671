//! A node of two cores and a Redis server side by side: the same pipelines, on three connections
//! each, must get the same replies.
//!
//! `semantics` compares single commands in this process; here they go through the sockets, over
//! the cores, into the log and out of tables, in transactions and with WATCH. Needs `redis-server`
//! 7.0 on the PATH, and says so if there is none. `SEED=…` repeats one run; a failure names its
//! seed and what was sent.

mod common;

use std::collections::BTreeSet;

use common::{Client, Launch, Redis, Value, is_long, request, scratch, words};

const CONNECTIONS: usize = 3;
/// How far two answers that are times may lie apart, in their units: the slowest test machine.
const CLOCK_SLACK: u64 = 20_000;
const KEYS: [&[u8]; 10] = [
    b"a",
    b"b",
    b"c",
    b"key:1",
    b"key:2",
    b"{tag}x",
    b"{tag}y",
    b"\x00\xff",
    b"",
    b"d",
];

type Request = Vec<Vec<u8>>;

/// One connection to each of the two.
struct Pair {
    redis: Client,
    quoit: Client,
    /// Names of the commands that MULTI queues, as the replies say.
    queued: Vec<Vec<u8>>,
}

#[test]
fn a_node_of_two_cores_answers_as_redis_does() {
    let dir = scratch();
    let Some(redis) = Redis::start(dir.path()) else {
        return println!("skipped: there is no redis-server 7.0 on the PATH");
    };
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let pipelines = if is_long() { 50_000 } else { 1_500 };
    for (protocol, durability) in [(2, "sync"), (3, "periodic")] {
        let dir = scratch();
        // Small, so that keys are read from tables as well.
        let node = Launch::new(dir.path())
            .config(
                "[storage]\nmemtable = \"64KiB\"\nwal-segment = \"64KiB\"\nwal-max = \"256KiB\"\n",
            )
            .with("--durability", durability)
            .start();
        let mut pairs: Vec<Pair> = (0..CONNECTIONS)
            .map(|_| Pair {
                redis: Client::connect(redis.address),
                quoit: node.client(),
                queued: Vec::new(),
            })
            .collect();
        let hello = words(&format!("HELLO {protocol}"));
        for pair in &mut pairs {
            pair.redis.ask_words(&hello);
            pair.quoit.ask_words(&hello);
        }
        pairs[0].redis.ask("FLUSHALL");
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut aborted = 0;
        for index in 0..pipelines {
            let pair = &mut pairs[chance.usize(..CONNECTIONS)];
            let pipeline = random_pipeline(&mut chance);
            let faults = pair.compare(&pipeline);
            let in_vain = faults.first().is_some_and(|fault| fault.in_vain);
            aborted += usize::from(in_vain);
            assert!(
                faults.is_empty() || in_vain,
                "SEED={seed}, RESP{protocol}, pipeline {index}:\n{}\nof {}",
                texts(&faults),
                pipeline
                    .iter()
                    .map(|request| shown(request))
                    .collect::<Vec<_>>()
                    .join("\n   ")
            );
            let flushed = pipeline.iter().any(flushes);
            if in_vain || flushed {
                start_afresh(&mut pairs, in_vain);
            }
        }
        assert!(
            aborted <= 1 + pipelines / 5_000,
            "SEED={seed}: EXEC failed in vain {aborted} times"
        );
        assert_eq!(
            all_keys(&mut pairs[0].redis),
            all_keys(&mut pairs[1].quoit),
            "SEED={seed}: by SCAN, page by page"
        );
        let flushes = node.info("flushes");
        println!("RESP{protocol}: {pipelines} pipelines, {flushes} flushes");
        assert!(flushes > 0, "no key was ever read from a table");
    }
}

/// Ends what every connection is in the middle of; `clear`: and deletes everything.
///
/// After FLUSHALL, EXEC may fail though an absent key that was watched before was never touched.
fn start_afresh(pairs: &mut [Pair], clear: bool) {
    for pair in &mut *pairs {
        let faults = pair.compare(&[words("DISCARD"), words("UNWATCH")]);
        assert!(faults.is_empty(), "{}", texts(&faults));
    }
    if clear {
        let faults = pairs[0].compare(&[words("FLUSHALL")]);
        assert!(faults.is_empty(), "{}", texts(&faults));
    }
}

/// How two replies differ.
struct Fault {
    text: String,
    /// Redis carried out a transaction, and the node said that a watched key had changed. That may
    /// happen, seldom: when a memtable was flushed since, and what it forgot may have been that
    /// key.
    in_vain: bool,
}

fn texts(faults: &[Fault]) -> String {
    let texts: Vec<&str> = faults.iter().map(|fault| &fault.text[..]).collect();
    texts.join("\n")
}

impl Pair {
    /// Sends `pipeline` to both, and tells how the replies differ.
    fn compare(&mut self, pipeline: &[Request]) -> Vec<Fault> {
        let bytes: Vec<u8> = pipeline.iter().flat_map(|words| request(words)).collect();
        self.redis.send(&bytes);
        self.quoit.send(&bytes);
        let mut faults = Vec::new();
        for request in pipeline {
            let (theirs, ours) = (self.redis.read_whole(), self.quoit.read_whole());
            if !self.is_same(request, &theirs, &ours) {
                let in_vain = request[0].eq_ignore_ascii_case(b"exec")
                    && matches!(theirs.0, Value::List(_))
                    && ours.0 == Value::Null;
                let (theirs, ours) = (shown(&[theirs.1]), shown(&[ours.1]));
                let request = shown(request);
                let text = format!("{request}\n  Redis: {theirs}\n  Quoit: {ours}");
                faults.push(Fault { text, in_vain });
            }
        }
        faults
    }

    fn is_same(
        &mut self,
        request: &Request,
        (theirs, their_bytes): &(Value, Vec<u8>),
        (ours, our_bytes): &(Value, Vec<u8>),
    ) -> bool {
        let name = request[0].to_ascii_lowercase();
        match (&name[..], theirs, ours) {
            (b"exec", Value::List(theirs), Value::List(ours)) => {
                let names = std::mem::take(&mut self.queued);
                theirs.len() == ours.len()
                    && theirs.len() == names.len()
                    && names
                        .iter()
                        .zip(theirs.iter().zip(ours))
                        .all(|(name, (theirs, ours))| is_alike(name, theirs, ours))
            }
            (b"exec" | b"discard" | b"reset", ..) => {
                self.queued.clear();
                their_bytes == our_bytes
            }
            _ if *theirs == Value::Simple("QUEUED".into()) => {
                self.queued.push(name);
                their_bytes == our_bytes
            }
            _ => their_bytes == our_bytes || is_alike(&name, theirs, ours),
        }
    }
}

/// The same, or as much the same as two servers can answer that command.
fn is_alike(name: &[u8], theirs: &Value, ours: &Value) -> bool {
    match (name, theirs, ours) {
        (
            b"ttl" | b"pttl" | b"expiretime" | b"pexpiretime",
            Value::Integer(theirs @ 1..),
            Value::Integer(ours @ 1..),
        ) => theirs.abs_diff(*ours) < CLOCK_SLACK,
        (b"keys", Value::List(theirs), Value::List(ours)) => sorted(theirs) == sorted(ours),
        (b"randomkey", theirs, ours) => (*theirs == Value::Null) == (*ours == Value::Null),
        _ => theirs == ours,
    }
}

fn sorted(keys: &[Value]) -> Vec<String> {
    let mut keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
    keys.sort_unstable();
    keys
}

fn shown(request: &[Vec<u8>]) -> String {
    let short = |word: &Vec<u8>| match word.len() {
        0..100 => word.escape_ascii().to_string(),
        length => format!("({length} bytes)"),
    };
    request.iter().map(short).collect::<Vec<_>>().join(" ")
}

/// What SCAN finds in small pages.
fn all_keys(client: &mut Client) -> BTreeSet<Vec<u8>> {
    client.ask("DISCARD"); // it may be in the middle of one
    let (mut cursor, mut found) = ("0".to_owned(), BTreeSet::new());
    loop {
        let page = client.ask(&format!("SCAN {cursor} COUNT 3"));
        for key in page.list()[1].list() {
            let Value::Bulk(key) = key else {
                panic!("{key:?} is no key");
            };
            found.insert(key.clone());
        }
        cursor = page.list()[0].text();
        if cursor == "0" {
            return found;
        }
    }
}

/// True for FLUSHALL and FLUSHDB.
fn flushes(request: &Request) -> bool {
    request[0].starts_with(b"flush")
}

/// A few commands; often a whole transaction, sometimes one that is never ended.
fn random_pipeline(chance: &mut fastrand::Rng) -> Vec<Request> {
    let mut pipeline = Vec::new();
    match chance.u32(..10) {
        0..=1 => {
            let watches = chance.usize(..3);
            pipeline.extend((0..watches).map(|_| filled(chance, "watch K K")));
            let between = (0..chance.usize(..3)).map(|_| random_request(chance));
            pipeline.extend(between.filter(|request| !flushes(request)));
            pipeline.push(words("MULTI"));
            pipeline.extend((0..chance.usize(..8)).map(|_| random_request(chance)));
            pipeline.push(words(
                ["EXEC", "EXEC", "EXEC", "DISCARD"][chance.usize(..4)],
            ));
        }
        2 => {
            let forms = [
                "multi",
                "exec",
                "discard",
                "watch K K",
                "watch K",
                "unwatch",
                "watch",
                "exec now",
                "multi multi",
            ];
            let form = forms[chance.usize(..forms.len())];
            pipeline.push(filled(chance, form));
            pipeline.extend((0..chance.usize(..2)).map(|_| random_request(chance)));
        }
        _ => pipeline.extend((0..chance.usize(1..12)).map(|_| random_request(chance))),
    }
    pipeline
}

/// A command with arguments that mostly make sense.
fn random_request(chance: &mut fastrand::Rng) -> Request {
    const FORMS: &[&str] = &[
        "get K",
        "get K",
        "get K",
        "set K V",
        "set K V",
        "set K V",
        "set K V NX",
        "set K V XX GET",
        "set K V EX E",
        "set K V PX E KEEPTTL",
        "set K V KEEPTTL",
        "set K V GET",
        "setnx K V",
        "setex K E V",
        "psetex K E V",
        "getset K V",
        "getdel K",
        "getex K",
        "getex K EX E",
        "getex K PERSIST",
        "mget K K K",
        "mget K K K K K K",
        "mset K V K V",
        "mset K V K V K V K V",
        "mset K V K",
        "del K",
        "del K K K",
        "unlink K K",
        "exists K K K K",
        "touch K K K",
        "type K",
        "strlen K",
        "append K V",
        "getrange K I I",
        "setrange K 5 V",
        "setrange K I V",
        "incr K",
        "decr K",
        "incrby K I",
        "decrby K I",
        "incrbyfloat K 1.5",
        "expire K E",
        "pexpire K E",
        "expire K -1",
        "expire K E NX",
        "pexpire K E GT",
        "expireat K 9000000000",
        "expiretime K",
        "pexpiretime K",
        "ttl K",
        "pttl K",
        "persist K",
        "keys *",
        "keys key:*",
        "dbsize",
        "randomkey",
        "flushall",
        "flushdb",
        "ping",
        "ping V",
        "echo V",
        "select 0",
        "nosuch K",
        "get",
        "set K",
    ];
    let form = FORMS[chance.usize(..FORMS.len())];
    // Mostly there should be something.
    let form = match form {
        "flushall" | "flushdb" if chance.u32(..5) > 0 => "dbsize",
        form => form,
    };
    filled(chance, form)
}

/// The words of `form`: K key, V value, I small integer, E time from now; anything else is itself.
fn filled(chance: &mut fastrand::Rng, form: &str) -> Request {
    let word = |kind: &str| match kind {
        "K" => KEYS[chance.usize(..KEYS.len())].to_vec(),
        "V" => match chance.u32(..8) {
            0 => Vec::new(),
            1 => vec![b'v'; chance.usize(..4_000)],
            2 => (0..chance.usize(..20)).map(|_| chance.u8(..)).collect(),
            3..=5 => chance.i64(-1000..1000).to_string().into_bytes(),
            _ => format!("value-{}", chance.u32(..100)).into_bytes(),
        },
        "I" => chance.i64(-30..60).to_string().into_bytes(),
        // Far enough from now that no key expires while both are asked.
        "E" => chance
            .i64(100_000_000..100_000_000_000)
            .to_string()
            .into_bytes(),
        other => other.as_bytes().to_vec(),
    };
    form.split(' ').map(word).collect()
}
