//! Clients that speak HTTP: values, deletions, and numbers that are raised by compare-and-set.
//!
//! What is checked: no acknowledged write is lost, none that was refused is there, every raise
//! counts once, and a value has one version for ever, the one that its writer was told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::checkers::{Counter, Moment, Register, Value, WriteId};
use crate::cluster::{Client, Verdict};

/// Errors, where the disk fails, after which a write was certainly not done.
const NOT_DONE: [&str; 3] = ["log_failed", "disk_fails", "unopened"];
const KEYS: usize = 5;
const COUNTERS: usize = 3;
/// Requests that are sent at once, at most.
const PIPELINE: usize = 8;

/// All that clients asked for and saw.
pub struct Ledger {
    moment: Moment,
    registers: BTreeMap<String, Register>,
    counters: BTreeMap<String, Counter>,
    /// By key and value: the version that was told.
    versions: BTreeMap<(String, Vec<u8>), String>,
    made: u64,
    may_pipeline: bool,
    /// Requests that were answered.
    pub answered: u64,
    /// Writes that were acknowledged.
    pub written: u64,
    /// Writes that were refused.
    pub refused: u64,
    /// Those of them that were refused because a log had failed.
    pub failed: u64,
    /// The node has said that it is not ready.
    pub unready: u64,
    /// The log may have failed.
    pub may_fail: bool,
}

/// A shared ledger.
pub type Shared = Rc<RefCell<Ledger>>;

/// An answer.
struct Answer {
    status: u16,
    version: Option<String>,
    body: Vec<u8>,
}

/// A request, and what its answer means.
struct Step {
    bytes: Vec<u8>,
    start: Moment,
    key: String,
    meaning: Meaning,
}

enum Meaning {
    Read,
    /// The value, or a deletion.
    Write(WriteId, Value),
}

impl Ledger {
    /// Nothing was done yet.
    pub fn new(may_pipeline: bool) -> Shared {
        let key = |key: usize| (format!("web:{key}"), Register::new());
        let counter = |key: usize| (format!("number:{key}"), Counter::default());
        Rc::new(RefCell::new(Ledger {
            moment: 0,
            registers: (0..KEYS).map(key).collect(),
            counters: (0..COUNTERS).map(counter).collect(),
            versions: BTreeMap::new(),
            made: 0,
            may_pipeline,
            answered: 0,
            written: 0,
            refused: 0,
            failed: 0,
            unready: 0,
            may_fail: false,
        }))
    }

    fn now(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    fn register(&mut self, key: &str) -> &mut Register {
        self.registers.get_mut(key).expect("registers are known")
    }

    fn counter(&mut self, key: &str) -> &mut Counter {
        self.counters.get_mut(key).expect("counters are known")
    }

    /// This version was told of this value.
    fn note_version(&mut self, key: &str, value: &[u8], answer: &Answer) -> Verdict {
        let version = answer.version.clone().ok_or("a value without a version")?;
        let place = (key.to_owned(), value.to_vec());
        let before = self
            .versions
            .entry(place)
            .or_insert_with(|| version.clone());
        match *before == version {
            true => Ok(()),
            false => Err(format!("{key} has version {version}, which was {before}")),
        }
    }

    fn plan(&mut self, chance: &mut fastrand::Rng) -> Step {
        let key = format!("web:{}", chance.usize(..KEYS));
        let start = self.now();
        match chance.u8(..10) {
            0..4 => Step {
                bytes: get(&key),
                start,
                key,
                meaning: Meaning::Read,
            },
            4 => {
                let id = self.register(&key).intend(None, start);
                Step {
                    bytes: format!("DELETE /kv/{key} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes(),
                    start,
                    key,
                    meaning: Meaning::Write(id, None),
                }
            }
            _ => {
                self.made += 1;
                let size = [50, 1000, 20_000, 150_000][chance.usize(..4)];
                let mut value = format!("{key}|{}|", self.made).into_bytes();
                value.resize(value.len() + chance.usize(..size), self.made as u8);
                let kept = Some(Rc::new(value.clone()));
                let id = self.register(&key).intend(kept.clone(), start);
                Step {
                    bytes: put(&key, "", &value, chance),
                    start,
                    key,
                    meaning: Meaning::Write(id, kept),
                }
            }
        }
    }

    fn take(&mut self, step: Step, answer: &Answer) -> Verdict {
        self.answered += 1;
        let now = self.now();
        if answer.status == 503 {
            return self.take_refusal(step, answer);
        }
        match (step.meaning, answer.status) {
            (Meaning::Read, 200 | 404) => self.take_value(&step.key, step.start, answer),
            (Meaning::Write(id, Some(value)), 200) => {
                self.written += 1;
                self.register(&step.key).acknowledge(id, now);
                self.note_version(&step.key, &value, answer)
            }
            (Meaning::Write(id, None), 200) => {
                self.written += 1;
                self.register(&step.key).acknowledge(id, now);
                Ok(())
            }
            (Meaning::Write(id, None), 404) => {
                // Nothing was there to delete: a reading, and no write.
                self.register(&step.key).refuse(id);
                self.read(&step.key, &None, step.start)
            }
            (_, status) => Err(format!("{}: {status}", step.key)),
        }
    }

    fn read(&mut self, key: &str, value: &Value, start: Moment) -> Verdict {
        let now = self.now();
        let read = self.register(key).read(value, start, now);
        read.map_err(|why| format!("{key}: {why}"))
    }

    fn take_value(&mut self, key: &str, start: Moment, answer: &Answer) -> Verdict {
        let value = (answer.status == 200).then(|| answer.body.clone());
        if let Some(value) = &value {
            self.note_version(key, value, answer)?;
        }
        self.read(key, &value.map(Rc::new), start)
    }

    fn take_refusal(&mut self, step: Step, answer: &Answer) -> Verdict {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let is = |name: &str| text.contains(&format!("\"error\":\"{name}\""));
        match step.meaning {
            _ if !self.may_fail => Err(format!("{}: {text}", step.key)),
            _ if is("unknown") => Ok(()),
            Meaning::Write(id, _) if NOT_DONE.into_iter().any(is) => {
                self.refused += 1;
                self.failed += u64::from(is("log_failed"));
                self.register(&step.key).refuse(id);
                Ok(())
            }
            _ => Err(format!("{}: an error of another kind: {text}", step.key)),
        }
    }
}

fn get(key: &str) -> Vec<u8> {
    format!("GET /kv/{key} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()
}

/// A PUT, with its value in one piece or in chunks.
fn put(key: &str, lines: &str, value: &[u8], chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = format!("PUT /kv/{key} HTTP/1.1\r\nHost: h\r\n{lines}").into_bytes();
    if chance.bool() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", value.len()).as_bytes());
        bytes.extend_from_slice(value);
        return bytes;
    }
    bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    let size = chance.usize(1..=value.len().max(1));
    for chunk in value.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// The first answer in `input`, and its length; `None`: it is not all there yet.
fn parse(input: &[u8]) -> Option<(Answer, usize)> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&input[..end]).expect("heads are text");
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let length: usize = field("Content-Length: ")
        .and_then(|text| text.parse().ok())
        .expect("a length");
    let answer = Answer {
        status: head[9..12].parse().expect("a status"),
        version: field("X-Version: ").map(str::to_owned),
        body: input.get(end..end + length)?.to_vec(),
    };
    Some((answer, end + length))
}

/// Sends requests in one go: the answers that came.
async fn ask(client: &mut Client, bytes: &[u8], requests: usize) -> Verdict<Vec<Answer>> {
    let is_error = |answer: &Answer| answer.status >= 500;
    let answers = client.exchange(bytes, requests, parse, is_error).await;
    answers.map_err(|count| format!("{count} answers to {requests} requests over HTTP"))
}

/// A client that goes on until its node goes down.
pub async fn work(ledger: Shared, mut client: Client, mut chance: fastrand::Rng) {
    while client.connect().await && !client.life().is_wrong() {
        let verdict = match chance.u8(..10) {
            0..3 => raise(&ledger, &mut client, &mut chance).await,
            3 => look(&ledger, &mut client).await,
            _ => turn(&ledger, &mut client, &mut chance).await,
        };
        client.life().note(verdict);
        if chance.u8(..20) == 0 {
            client.hang_up();
        }
    }
}

async fn turn(ledger: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let count = match ledger.borrow().may_pipeline && chance.bool() {
        true => chance.usize(1..=PIPELINE),
        false => 1,
    };
    let steps: Vec<Step> = (0..count)
        .map(|_| ledger.borrow_mut().plan(chance))
        .collect();
    let bytes: Vec<u8> = steps
        .iter()
        .flat_map(|step| step.bytes.iter().copied())
        .collect();
    let answers = ask(client, &bytes, count).await?;
    let mut ledger = ledger.borrow_mut();
    for (step, answer) in steps.into_iter().zip(&answers) {
        ledger.take(step, answer)?;
    }
    Ok(())
}

/// Is the node ready? It may say no only where a log has failed.
async fn look(ledger: &Shared, client: &mut Client) -> Verdict {
    let bytes = b"GET /health?ready HTTP/1.1\r\nHost: h\r\n\r\n";
    let Some(answer) = ask(client, bytes, 1).await?.pop() else {
        return Ok(());
    };
    let mut ledger = ledger.borrow_mut();
    match answer.status {
        200 => Ok(()),
        503 if ledger.may_fail => {
            ledger.unready += 1;
            Ok(())
        }
        status => Err(format!("/health says {status}")),
    }
}

/// Reads a number and raises it by one, if it is still the same.
async fn raise(ledger: &Shared, client: &mut Client, chance: &mut fastrand::Rng) -> Verdict {
    let key = format!("number:{}", chance.usize(..COUNTERS));
    let start = ledger.borrow_mut().now();
    let Some(seen) = ask(client, &get(&key), 1).await?.pop() else {
        return Ok(());
    };
    if seen.status == 503 && ledger.borrow().may_fail {
        return Ok(());
    }
    let number = number_of(&seen)?;
    {
        let mut ledger = ledger.borrow_mut();
        ledger.answered += 1;
        let now = ledger.now();
        let read = ledger.counter(&key).read(number, start, now);
        read.map_err(|why| format!("{key}: {why}"))?;
        ledger.counter(&key).intend();
    }
    let condition = match &seen.version {
        Some(version) => format!("If-Match: \"{version}\"\r\n"),
        None => "If-None-Match: *\r\n".to_owned(),
    };
    let start = ledger.borrow_mut().now();
    let next = (number + 1).to_string();
    let bytes = put(&key, &condition, next.as_bytes(), chance);
    let Some(answer) = ask(client, &bytes, 1).await?.pop() else {
        return Ok(());
    };
    let mut ledger = ledger.borrow_mut();
    ledger.answered += 1;
    let now = ledger.now();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status {
        200 if answer.version <= seen.version => {
            Err(format!("{key}: a later write has a lower version"))
        }
        200 => {
            ledger.written += 1;
            let raised = ledger.counter(&key).acknowledge(number + 1, start, now);
            raised.map_err(|why| format!("{key}: {why}"))
        }
        412 => {
            ledger.counter(&key).refuse();
            Ok(())
        }
        503 if ledger.may_fail && NOT_DONE.iter().any(|name| text.contains(name)) => {
            ledger.refused += 1;
            ledger.counter(&key).refuse();
            Ok(())
        }
        503 if ledger.may_fail && text.contains("\"unknown\"") => Ok(()),
        status => Err(format!("{key}: {status} {text}")),
    }
}

fn number_of(answer: &Answer) -> Verdict<i64> {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status {
        404 => Ok(0),
        200 => text.parse().map_err(|_| format!("{text:?} is no number")),
        status => Err(format!("{status}: {text}")),
    }
}

/// Reads a key; the connection may break, but not each time.
async fn must_get(client: &mut Client, key: &str) -> Verdict<Answer> {
    for _ in 0..100 {
        client.connect().await;
        if let Some(answer) = ask(client, &get(key), 1).await?.pop() {
            return Ok(answer);
        }
    }
    Err("the connection breaks again and again".to_owned())
}

/// Reads everything from a node that was just started: this is what has survived.
pub async fn verify(ledger: Shared, client: Client) -> Verdict {
    let mut client = Client::of_web(client.life());
    let keys: Vec<String> = ledger.borrow().registers.keys().cloned().collect();
    let counters: Vec<String> = ledger.borrow().counters.keys().cloned().collect();
    for key in keys.iter().chain(&counters) {
        let start = ledger.borrow_mut().now();
        let answer = must_get(&mut client, key).await?;
        let mut ledger = ledger.borrow_mut();
        let settled = if counters.contains(key) {
            let (number, now) = (number_of(&answer)?, ledger.now());
            ledger.counter(key).settle(number, start, now)
        } else {
            let value = (answer.status == 200).then(|| answer.body.clone());
            if let Some(value) = &value {
                ledger.note_version(key, value, &answer)?;
            }
            let now = ledger.now();
            ledger.register(key).settle(&value.map(Rc::new), start, now)
        };
        settled.map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}
