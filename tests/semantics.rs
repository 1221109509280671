//! The same commands to a Redis server and to the parser and evaluator in this process: every
//! reply must be the same, byte for byte.
//!
//! Needs `redis-server` 7.0 on the PATH, and says so if there is none: other versions describe
//! some commands otherwise. `SEED=…` repeats one run; a failure names its seed and the command.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quoit::protocol::command::{self, Command, CommandError, KeyCommand, Session, StoreCommand};
use quoit::protocol::{OwnedArgs, Protocol, Reply, glob};
use quoit::shard::evaluate::{Current, Effect, evaluate};

const COMMANDS_A_PROTOCOL: usize = 10_000;
/// Redis's own limit, proto-max-bulk-len.
const VALUE_BYTES_MAX: usize = 512 << 20;
/// How far two answers that are times may lie apart, in milliseconds: the slowest test machine.
const CLOCK_SLACK_MS: i64 = 20_000;

type Request = Vec<Vec<u8>>;

#[test]
fn every_reply_is_the_one_that_redis_gives() {
    let Some(server) = Server::start() else {
        return println!("skipped: there is no redis-server 7.0 on the PATH");
    };
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(20_240);
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let mut redis = server.connect(protocol);
        let mut quoit = Node::new(protocol);
        let faults: Vec<String> = fixed_requests()
            .iter()
            .filter_map(|request| difference(&mut redis, &mut quoit, request))
            .collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        let mut chance = fastrand::Rng::with_seed(seed);
        for index in 0..COMMANDS_A_PROTOCOL {
            let request = random_request(&mut chance);
            if let Some(fault) = difference(&mut redis, &mut quoit, &request) {
                panic!("SEED={seed}, command {index}: {fault}");
            }
        }
    }
}

/// Sends `request` to both, and tells how the replies differ, if they do.
fn difference(redis: &mut Redis, quoit: &mut Node, request: &Request) -> Option<String> {
    let (theirs, ours) = (redis.ask(request), quoit.answer(request));
    let name = request[0].to_ascii_lowercase();
    let same = match &name[..] {
        b"ttl" | b"pttl" | b"expiretime" | b"pexpiretime" => about_equal(&theirs, &ours),
        b"scan" | b"keys" => sorted(&theirs) == sorted(&ours),
        b"randomkey" => (theirs.len() <= 5) == (ours.len() <= 5),
        b"memory" => theirs == ours || (theirs[0] == b':' && ours[0] == b':'),
        _ => theirs == ours,
    };
    // Redis counts a key that was set into the past until somebody looks at it.
    for key in KEYS {
        redis.ask(&vec![b"EXISTS".to_vec(), key.to_vec()]);
    }
    let shown: Vec<_> = request
        .iter()
        .map(|word| word.escape_ascii().to_string())
        .collect();
    (!same).then(|| {
        let (theirs, ours) = (theirs.escape_ascii(), ours.escape_ascii());
        format!(
            "{shown:?}, {:?}\n  Redis: {theirs}\n  Quoit: {ours}",
            quoit.protocol
        )
    })
}

/// Equal, or integers that differ as two clocks might.
fn about_equal(theirs: &[u8], ours: &[u8]) -> bool {
    let integer = |reply: &[u8]| {
        let text = std::str::from_utf8(reply.strip_prefix(b":")?).ok()?;
        text.trim_end().parse::<i64>().ok()
    };
    match (integer(theirs), integer(ours)) {
        (Some(a @ 0..), Some(b @ 0..)) => a.abs_diff(b) < CLOCK_SLACK_MS as u64,
        _ => theirs == ours,
    }
}

/// The lines of a reply without their order.
fn sorted(reply: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = reply.split(|&byte| byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

/// The parser and the evaluator over a map: the least that can answer.
struct Node {
    protocol: Protocol,
    keys: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
}

impl Node {
    fn new(protocol: Protocol) -> Node {
        Node {
            protocol,
            keys: BTreeMap::new(),
        }
    }

    fn answer(&mut self, request: &Request) -> Vec<u8> {
        let mut args = OwnedArgs::new();
        request.iter().for_each(|word| args.push(word));
        let mut out = Vec::new();
        if let Err(error) = self.run(command::parse(args.view()), &mut out) {
            error.reply(&mut Reply::new(&mut out, self.protocol));
        }
        out
    }

    fn run<'a>(
        &mut self,
        command: Result<Command<'a>, CommandError<'a>>,
        out: &mut Vec<u8>,
    ) -> Result<(), CommandError<'a>> {
        let protocol = self.protocol;
        match command? {
            Command::Key(command) => self.run_key(&command, out),
            Command::Keys(command) => {
                let replies: Vec<Vec<u8>> = command
                    .parts()
                    .map(|part| {
                        let mut out = Vec::new();
                        self.run_key(&part, &mut out);
                        out
                    })
                    .collect();
                command
                    .merge()
                    .join(replies.iter().map(Vec::as_slice), protocol, out);
            }
            Command::Store(command) => self.run_store(command, out),
            Command::Kv(_) => unreachable!("Redis has no such commands to compare with"),
            Command::Session(command) => run_session(command, &mut Reply::new(out, protocol)),
        }
        Ok(())
    }

    fn run_key(&mut self, command: &KeyCommand<'_>, out: &mut Vec<u8>) {
        let now = now();
        self.keys
            .retain(|_, (_, expiry)| *expiry == 0 || *expiry > now);
        let held = self.keys.get(command.key).cloned();
        let current = held
            .as_ref()
            .filter(|_| command.op.needs_current())
            .map(|(held, expiry)| {
                let value = if command.op.needs_value() {
                    &held[..]
                } else {
                    &[]
                };
                Current {
                    value,
                    length: held.len() as u32,
                    expiry: *expiry,
                }
            });
        let mut reply = Reply::new(out, self.protocol);
        let effect = evaluate(&command.op, current, now, VALUE_BYTES_MAX, &mut reply);
        assert!(
            effect == Effect::None || command.op.is_write(),
            "{command:?} is no write"
        );
        match effect {
            Effect::None => {}
            Effect::Put { value, expiry } => {
                self.keys
                    .insert(command.key.to_vec(), (value.into_owned(), expiry));
            }
            Effect::Delete => {
                self.keys.remove(command.key);
            }
        }
    }

    fn run_store(&mut self, command: StoreCommand<'_>, out: &mut Vec<u8>) {
        let mut reply = Reply::new(out, self.protocol);
        let matching = |pattern: &[u8]| -> Vec<&[u8]> {
            let keys = self.keys.keys().map(Vec::as_slice);
            keys.filter(|key| glob::matches(pattern, key)).collect()
        };
        match command {
            StoreCommand::Scan(scan) => {
                let keys = match scan.strings {
                    true => matching(scan.pattern.unwrap_or(b"*")),
                    false => Vec::new(),
                };
                reply.array(2);
                reply.bulk(b"0");
                reply.array(keys.len());
                keys.iter().for_each(|key| reply.bulk(key));
            }
            StoreCommand::Keys { pattern } => {
                let keys = matching(pattern);
                reply.array(keys.len());
                keys.iter().for_each(|key| reply.bulk(key));
            }
            StoreCommand::Size => reply.integer(self.keys.len() as i64),
            StoreCommand::RandomKey => match self.keys.keys().next() {
                Some(key) => reply.bulk(key),
                None => reply.null(),
            },
            StoreCommand::Flush => {
                self.keys.clear();
                reply.ok();
            }
            StoreCommand::CountInSlot(_) | StoreCommand::KeysInSlot { .. } => {
                panic!("{command:?} is not among the requests of this test")
            }
        }
    }
}

fn run_session(command: Session<'_>, reply: &mut Reply<'_>) {
    match command {
        Session::Ping(None) => reply.simple("PONG"),
        Session::Ping(Some(message)) | Session::Echo(message) => reply.bulk(message),
        Session::Select(0) => reply.ok(),
        Session::Select(_) => reply.error("ERR DB index is out of range"),
        Session::Watch(_) | Session::Unwatch | Session::Client(_) => reply.ok(),
        Session::Describe(what) => what.answer(reply),
        other => panic!("{other:?} is not among the requests of this test"),
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    since.as_millis() as u64
}

/// A Redis server of this test's own.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// `None` if there is no Redis of the version to compare with.
    fn start() -> Option<Server> {
        let version = Process::new("redis-server")
            .arg("--version")
            .output()
            .ok()?;
        if !String::from_utf8_lossy(&version.stdout).contains(" v=7.0.") {
            return None;
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let mut process = Process::new("redis-server");
        process.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ]);
        process
            .args(["--daemonize", "no", "--dir", "/tmp"])
            .stdout(Stdio::null());
        let server = Server {
            process: process.spawn().ok()?,
            port,
        };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("redis-server does not listen on port {port}");
    }

    fn connect(&self, protocol: Protocol) -> Redis {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("not zero");
        let mut redis = Redis {
            stream,
            unread: Vec::new(),
        };
        let version = if protocol == Protocol::Resp3 {
            "3"
        } else {
            "2"
        };
        redis.ask(&words(&format!("HELLO {version}")));
        redis.ask(&words("FLUSHALL"));
        redis
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection to it.
struct Redis {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Redis {
    /// The bytes of the reply to `request`.
    fn ask(&mut self, request: &Request) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
        for word in request {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&bytes).expect("Redis reads");
        loop {
            if let Some(length) = reply_length(&self.unread) {
                let rest = self.unread.split_off(length);
                return std::mem::replace(&mut self.unread, rest);
            }
            let mut buffer = [0; 65_536];
            let count = self.stream.read(&mut buffer).expect("Redis answers");
            assert!(count > 0, "Redis hung up");
            self.unread.extend_from_slice(&buffer[..count]);
        }
    }
}

/// How long the reply is that `bytes` begin with; `None` if it is not complete.
fn reply_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || {
        std::str::from_utf8(&bytes[1..end - 2])
            .ok()?
            .parse::<i64>()
            .ok()
    };
    let elements = match bytes[0] {
        b'$' | b'=' => {
            let body = number()
                .filter(|length| *length >= 0)
                .map_or(0, |length| length as usize + 2);
            return (bytes.len() >= end + body).then_some(end + body);
        }
        b'*' | b'~' | b'>' => number()?.max(0),
        b'%' => 2 * number()?,
        _ => 0,
    };
    (0..elements).try_fold(end, |at, _| Some(at + reply_length(&bytes[at..])?))
}

fn words(line: &str) -> Request {
    line.split(' ')
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

const KEYS: [&[u8]; 6] = [b"a", b"b", b"key:1", b"{tag}x", b"\x00\xff", b""];

/// Requests whose replies are worth comparing but that chance would hardly make.
fn fixed_requests() -> Vec<Request> {
    let mut requests: Vec<Request> = include_str!("semantics.txt").lines().map(words).collect();
    requests.push(vec![
        b"nosuch".to_vec(),
        vec![b'x'; 100],
        vec![b'y'; 100],
        b"z".to_vec(),
    ]);
    requests.push(vec![
        vec![b'n'; 200],
        vec![b'x'; 127],
        b"y".to_vec(),
        b"z".to_vec(),
    ]);
    requests.push(vec![
        b"no\0such".to_vec(),
        b"a\r\nb".to_vec(),
        b"c\0d".to_vec(),
    ]);
    requests.push(vec![b"".to_vec()]);
    for line in [
        "setrange none 5 ",
        "incrbyfloat none ",
        "client setname a\x01b",
    ] {
        requests.push(words(line)); // The first two end in an empty word.
    }
    requests.push(vec![b"client".to_vec(), vec![b'n'; 200]]);
    for name in plain_commands() {
        requests.push(words(&format!("command info {name}")));
    }
    requests
}

/// Commands that Redis 7.0 describes just as the table does.
fn plain_commands() -> impl Iterator<Item = &'static str> {
    // Redis adds notes to the keys of these two, and has more subcommands than the containers here.
    let differ = ["set", "getex"];
    command::COMMANDS
        .iter()
        .filter(move |spec| spec.subcommands.is_empty() && !differ.contains(&spec.name))
        .filter(|spec| !spec.name.starts_with("kv.")) // these are ours alone
        .map(|spec| spec.name)
}

/// A command with arguments that mostly make sense.
fn random_request(chance: &mut fastrand::Rng) -> Request {
    let forms = [
        "get K",
        "set K V",
        "set K V",
        "set K V",
        "set K V O",
        "set K V O O",
        "set K V O O O",
        "setnx K V",
        "setex K E V",
        "psetex K E V",
        "getset K V",
        "getdel K",
        "getex K",
        "getex K O",
        "getex K O O",
        "mget K K K",
        "mset K V K V",
        "mset K V K V K",
        "del K",
        "del K K",
        "unlink K K K",
        "exists K K",
        "touch K K K",
        "type K",
        "strlen K",
        "append K V",
        "getrange K I I",
        "substr K I I",
        "setrange K I V",
        "incr K",
        "decr K",
        "incrby K I",
        "decrby K I",
        "incrbyfloat K F",
        "expire K E",
        "pexpire K E",
        "expireat K T",
        "pexpireat K T",
        "expire K E X",
        "pexpireat K T X",
        "pexpireat K T X X",
        "expireat K T X",
        "expiretime K",
        "pexpiretime K",
        "ttl K",
        "pttl K",
        "persist K",
        "scan 0 count 1000",
        "scan 0 count 1000 match P",
        "keys P",
        "dbsize",
        "randomkey",
        "flushall",
        "ping",
        "echo V",
        "object encoding none",
        "memory usage K",
    ];
    let mut request = Vec::new();
    for part in forms[chance.usize(..forms.len())].split(' ') {
        match part {
            "O" => request.extend(random_option(chance)),
            "X" => request.push(pick(chance, &["NX", "XX", "GT", "LT", "gt", "lt", "xX"])),
            _ => request.push(random_word(chance, part)),
        }
    }
    match chance.u32(..100) {
        0 => request.push(random_word(chance, "V")),
        1 if request.len() > 1 => drop(request.pop()),
        2 => request[0].push(b'x'),
        3 => request[0].make_ascii_uppercase(),
        _ => {}
    }
    request
}

fn random_option(chance: &mut fastrand::Rng) -> Request {
    let option = pick(
        chance,
        &[
            "NX", "XX", "GET", "KEEPTTL", "PERSIST", "EX", "PX", "EXAT", "PXAT", "ex", "exat",
            "gEt",
        ],
    );
    let kind = match &option.to_ascii_uppercase()[..] {
        b"EX" | b"PX" => "E",
        b"EXAT" | b"PXAT" => "T",
        _ => return vec![option],
    };
    vec![option, random_word(chance, kind)]
}

fn pick(chance: &mut fastrand::Rng, choices: &[&str]) -> Vec<u8> {
    choices[chance.usize(..choices.len())].as_bytes().to_vec()
}

/// A word of a kind: K key, V value, I small integer, E time from now, T Unix time, F decimal
/// number, P pattern; anything else is itself.
fn random_word(chance: &mut fastrand::Rng, kind: &str) -> Vec<u8> {
    if ["I", "E", "T", "F"].contains(&kind) && chance.u32(..40) == 0 {
        return pick(
            chance,
            &[
                "",
                "x",
                "1.5",
                " 1",
                "1 ",
                "+1",
                "007",
                "-0",
                "9223372036854775808",
            ],
        );
    }
    let text = match kind {
        "K" => return KEYS[chance.usize(..KEYS.len())].to_vec(),
        "V" => match chance.u32(..6) {
            0 => {
                return pick(
                    chance,
                    &["", "10", "-5", "3.25", "nx", "9223372036854775807"],
                );
            }
            1 => chance.i64(-1000..1000).to_string(),
            2 => "v".repeat(chance.usize(..80)),
            3 => return (0..chance.usize(..20)).map(|_| chance.u8(..)).collect(),
            _ => format!("value-{}", chance.u32(..100)),
        },
        "I" => chance.i64(-30..60).to_string(),
        // Far enough from now, and from one another, that two clocks cannot disagree.
        "E" => match chance.u32(..10) {
            0 => chance.i64(-5..1).to_string(),
            _ => chance.i64(100_000_000..100_000_000_000).to_string(),
        },
        "T" => match chance.u32(..10) {
            0 => chance.i64(-5..1000).to_string(),
            _ => chance.i64(4_000_000_000_000..9_000_000_000_000).to_string(),
        },
        "F" => format!("{}.{}", chance.i32(-50..50), chance.u32(..1000)),
        "P" => {
            return pick(
                chance,
                &[
                    "*", "a", "?", "[ab]", "key:*", "*x", "{*}?", "[^a]*", "\\a", "",
                ],
            );
        }
        _ => kind.to_owned(),
    };
    text.into_bytes()
}
