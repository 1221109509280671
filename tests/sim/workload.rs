//! Clients that read and write a few keys, and the ledger of all that they asked for and saw.
//!
//! Three kinds of keys: a client's own, which it alone writes and of which it knows exactly what
//! they must hold; shared ones, which all write; and counters. Everybody reads everything. Values
//! say which write they are of and are filled with bytes that follow from that, so that a mixture
//! of two, or a part of one, is nobody's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::checkers::{Counter, Moment, Register, Value, WriteId, describe};
use crate::cluster::{Client, Reply, Request, Verdict, request};
use quoit::rt;
use std::time::Duration;

const OWN_KEYS: usize = 4;
const SHARED_KEYS: usize = 5;
const COUNTERS: usize = 3;
/// An own value that has grown beyond this is set anew.
const APPENDED_BYTES_MAX: usize = 10_000;
/// A time to live that no run outlasts, whatever its clocks do.
const FAR_SECONDS: &str = "10000000";

/// All that clients asked for and saw.
pub struct Ledger {
    moment: Moment,
    registers: BTreeMap<String, Register>,
    counters: BTreeMap<String, Counter>,
    own: BTreeMap<String, Own>,
    /// Makes values unique.
    made: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Readings that were answered.
    pub readings: u64,
    /// Writes that were acknowledged.
    pub written: u64,
    /// Writes that were refused.
    pub refused: u64,
    /// Those of them that were refused because a log had failed.
    pub failed: u64,
    /// True if an own key is in a turn once only, so that a refusal leaves no doubt of it.
    pub is_careful: bool,
    /// True while clients are to do nothing.
    pub is_pausing: bool,
    may_pipeline: bool,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// How refusals are taken.
    pub refusals: Refusals,
}

/// How refusals are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// There must be none.
    Wrong,
    /// The disk may be full: nothing is unknown.
    Full,
    /// The log may have failed.
    Broken,
}

/// A key that one client alone writes.
#[derive(Default)]
struct Own {
    /// What it may hold: what was last acknowledged, and what was sent since.
    possible: Vec<Kept>,
    /// Something is unknown: left alone until the node is started anew.
    uncertain: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kept {
    value: Value,
    expires: bool,
}

/// A shared ledger.
pub type Shared = Rc<RefCell<Ledger>>;

impl Ledger {
    /// An empty ledger for `clients` clients.
    pub fn new(clients: usize, may_pipeline: bool) -> Shared {
        let own =
            (0..clients).flat_map(|client| (0..OWN_KEYS).map(move |key| own_key(client, key)));
        let own: Vec<String> = own.collect();
        let shared = (0..SHARED_KEYS).map(|key| format!("shared:{key}"));
        let all = own.iter().cloned().chain(shared);
        let empty = || Own {
            possible: vec![Kept::default()],
            uncertain: false,
        };
        Rc::new(RefCell::new(Ledger {
            moment: 0,
            registers: all.map(|key| (key, Register::new())).collect(),
            counters: (0..COUNTERS)
                .map(|key| (format!("count:{key}"), Counter::default()))
                .collect(),
            own: own.into_iter().map(|key| (key, empty())).collect(),
            made: 0,
            answered: 0,
            readings: 0,
            written: 0,
            refused: 0,
            failed: 0,
            is_careful: false,
            is_pausing: false,
            may_pipeline,
            unknown: 0,
            refusals: Refusals::Wrong,
        }))
    }

    fn now(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    fn value(&mut self, key: &str, client: usize, bytes: usize) -> Vec<u8> {
        self.made += 1;
        let mut value = format!("{key}|{client}|{}|", self.made).into_bytes();
        let mut filling = fastrand::Rng::with_seed(self.made);
        // Half of them can be compressed.
        let is_noise = filling.bool();
        let mut word = filling.u64(..);
        while value.len() < bytes {
            value.extend_from_slice(&word.to_le_bytes());
            if is_noise {
                word = filling.u64(..);
            }
        }
        value
    }

    fn register(&mut self, key: &str) -> &mut Register {
        self.registers.get_mut(key).expect("registers are known")
    }

    fn intend(&mut self, key: &str, value: Value) -> WriteId {
        let now = self.now();
        self.register(key).intend(value, now)
    }

    fn read(&mut self, key: &str, value: &Value, start: Moment) -> Verdict {
        let now = self.now();
        let read = self.register(key).read(value, start, now);
        read.map_err(|why| format!("{key}: {why}"))
    }
}

fn own_key(client: usize, key: usize) -> String {
    format!("own:{client}:{key}")
}

/// A request, and what its reply means.
struct Step {
    request: Request,
    start: Moment,
    meaning: Meaning,
}

enum Meaning {
    /// Values of these keys.
    Read(Vec<String>),
    /// The number in this counter.
    Count(String),
    /// An INCR of this counter.
    Raise(String),
    /// Writes of these keys.
    Write(Vec<(String, WriteId)>),
    /// A change of an own key, to this; the reply must be this one.
    Own {
        key: String,
        write: Option<WriteId>,
        then: Kept,
        reply: Reply,
    },
}

/// A client that goes on until its node goes down.
pub async fn work(ledger: Shared, mut client: Client, number: usize, mut chance: fastrand::Rng) {
    while client.connect().await && !client.life().is_wrong() {
        if ledger.borrow().is_pausing {
            rt::sleep(Duration::from_millis(500)).await;
            continue;
        }
        let steps = plan(&mut ledger.borrow_mut(), number, &mut chance);
        let requests: Vec<Request> = steps.iter().map(|step| step.request.clone()).collect();
        let verdict = match client.call(&requests).await {
            Ok(replies) => ledger.borrow_mut().take_all(steps, replies),
            Err(why) => Err(why),
        };
        client.life().note(verdict);
        match chance.u8(..100) {
            0..10 => rt::sleep(Duration::from_micros(chance.u64(..20_000))).await,
            10..12 => client.hang_up(),
            _ => {}
        }
    }
}

/// Most turns are one request; some are many at once.
fn plan(ledger: &mut Ledger, client: usize, chance: &mut fastrand::Rng) -> Vec<Step> {
    let count = match chance.u8(..4) {
        0..2 if ledger.may_pipeline => chance.usize(1..12),
        _ => 1,
    };
    let mut changed: Vec<String> = Vec::new();
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let own = own_key(client, chance.usize(..OWN_KEYS));
        let is_free = !ledger.is_careful || !changed.contains(&own);
        steps.push(plan_one(ledger, client, is_free.then_some(&own), chance));
        changed.push(own);
    }
    steps
}

fn plan_one(
    ledger: &mut Ledger,
    client: usize,
    own: Option<&String>,
    chance: &mut fastrand::Rng,
) -> Step {
    let own = own.filter(|own| !ledger.own[*own].uncertain);
    match (chance.u8(..100), own) {
        (0..35, Some(own)) => plan_own(ledger, own.clone(), client, chance),
        (0..55, _) => plan_shared(ledger, client, chance),
        (55..70, _) => {
            let key = format!("count:{}", chance.usize(..COUNTERS));
            let counter = ledger.counters.get_mut(&key).expect("counters are known");
            counter.intend();
            let start = ledger.now();
            Step {
                request: request(["INCR", &key]),
                start,
                meaning: Meaning::Raise(key),
            }
        }
        (70..75, _) => {
            let key = format!("count:{}", chance.usize(..COUNTERS));
            let start = ledger.now();
            Step {
                request: request(["GET", &key]),
                start,
                meaning: Meaning::Count(key),
            }
        }
        _ => {
            let all: Vec<&String> = ledger.registers.keys().collect();
            let count = [1, 1, 1, 2, 4][chance.usize(..5)];
            let keys: Vec<String> = (0..count)
                .map(|_| all[chance.usize(..all.len())].clone())
                .collect();
            let verb = if count == 1 { "GET" } else { "MGET" };
            let start = ledger.now();
            Step {
                request: keys.iter().fold(request([verb]), Request::with),
                start,
                meaning: Meaning::Read(keys),
            }
        }
    }
}

/// Mostly small, some of several blocks, few larger than a segment of the log.
fn size(chance: &mut fastrand::Rng) -> usize {
    match chance.u8(..100) {
        0..60 => chance.usize(20..200),
        60..85 => chance.usize(200..5_000),
        85..98 => chance.usize(5_000..25_000),
        _ => chance.usize(25_000..150_000),
    }
}

fn plan_shared(ledger: &mut Ledger, client: usize, chance: &mut fastrand::Rng) -> Step {
    let start = ledger.now();
    let mut keys: Vec<usize> = (0..SHARED_KEYS).collect();
    chance.shuffle(&mut keys);
    keys.truncate([1, 1, 2, 3][chance.usize(..4)]);
    let is_removal = chance.u8(..5) == 0;
    let verb = match (is_removal, keys.len()) {
        (true, _) => "DEL",
        (false, 1) => "SET",
        (false, _) => "MSET",
    };
    let mut asked = request([verb]);
    let mut writes = Vec::new();
    for key in keys {
        let key = format!("shared:{key}");
        asked = asked.with(&key);
        let value = (!is_removal).then(|| ledger.value(&key, client, size(chance)));
        if let Some(value) = &value {
            asked = asked.with(value);
        }
        let id = ledger.intend(&key, value.map(Rc::new));
        writes.push((key, id));
    }
    Step {
        request: asked,
        start,
        meaning: Meaning::Write(writes),
    }
}

fn plan_own(ledger: &mut Ledger, key: String, client: usize, chance: &mut fastrand::Rng) -> Step {
    let before = ledger.own[&key]
        .possible
        .last()
        .expect("one at least")
        .clone();
    let length = before.value.as_ref().map_or(0, |value| value.len());
    let (asked, then, reply) = match chance.u8(..100) {
        0..15 => {
            let there = i64::from(before.value.is_some());
            (
                request(["DEL", &key]),
                Kept::default(),
                Reply::Integer(there),
            )
        }
        15..40 if length < APPENDED_BYTES_MAX => {
            let more = ledger.value(&key, client, size(chance).min(3_000));
            let value = [before.value.as_ref().map_or(&[][..], |value| value), &more].concat();
            let reply = Reply::Integer(value.len() as i64);
            let then = Kept {
                value: Some(Rc::new(value)),
                ..before
            };
            (request(["APPEND", &key]).with(more), then, reply)
        }
        40..55 => {
            let there = before.value.is_some();
            let then = Kept {
                expires: there,
                ..before.clone()
            };
            let asked = request(["EXPIRE", &key, FAR_SECONDS]);
            (asked, then, Reply::Integer(i64::from(there)))
        }
        other => {
            let expires = other < 65;
            let value = ledger.value(&key, client, size(chance));
            let mut asked = request(["SET", &key]).with(&value);
            if expires {
                asked = asked.with("EX").with(FAR_SECONDS);
            }
            let then = Kept {
                value: Some(Rc::new(value)),
                expires,
            };
            (asked, then, Reply::Simple("OK".to_owned()))
        }
    };
    let changes = then.value != before.value;
    let write = changes.then(|| ledger.intend(&key, then.value.clone()));
    let own = ledger.own.get_mut(&key).expect("own keys are known");
    own.possible.push(then.clone());
    let start = ledger.now();
    Step {
        request: asked,
        start,
        meaning: Meaning::Own {
            key,
            write,
            then,
            reply,
        },
    }
}

impl Ledger {
    fn take_all(&mut self, steps: Vec<Step>, replies: Vec<Reply>) -> Verdict {
        let mut replies = replies.into_iter();
        for step in steps {
            match replies.next() {
                Some(Reply::Error(text)) => self.take_error(step, &text)?,
                Some(reply) => {
                    self.answered += 1;
                    self.take(step, reply)?;
                }
                None => self.take_silence(step),
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step, reply: Reply) -> Verdict {
        let now = self.now();
        match &step.meaning {
            Meaning::Read(_) | Meaning::Count(_) => self.readings += 1,
            // What changes nothing, the removal of nothing for one, asks nothing of a log.
            _ => self.written += u64::from(reply != Reply::Integer(0)),
        }
        match step.meaning {
            Meaning::Read(keys) => {
                let values = match reply {
                    Reply::Array(items) => items,
                    one => vec![one],
                };
                assert_eq!(values.len(), keys.len(), "a value for each key");
                for (key, value) in keys.iter().zip(values) {
                    self.read(key, &value.value()?.map(Rc::new), step.start)?;
                }
            }
            Meaning::Count(key) => {
                let counter = self.counters.get_mut(&key).expect("counters are known");
                let read = counter.read(reply.number()?, step.start, now);
                read.map_err(|why| format!("{key}: {why}"))?;
            }
            Meaning::Raise(key) => {
                let counter = self.counters.get_mut(&key).expect("counters are known");
                let raised = counter.acknowledge(reply.number()?, step.start, now);
                raised.map_err(|why| format!("{key}: {why}"))?;
            }
            Meaning::Write(writes) => {
                for (key, id) in writes {
                    self.register(&key).acknowledge(id, now);
                }
            }
            Meaning::Own {
                key,
                write,
                then,
                reply: expected,
            } => {
                if reply != expected {
                    return Err(format!("{key}: {reply:?} instead of {expected:?}"));
                }
                if let Some(id) = write {
                    self.register(&key).acknowledge(id, now);
                }
                let own = self.own.get_mut(&key).expect("own keys are known");
                let at = own.possible.iter().position(|kept| *kept == then);
                own.possible.drain(..at.expect("it was sent"));
            }
        }
        Ok(())
    }

    fn take_silence(&mut self, step: Step) {
        self.unknown += 1;
        if let Meaning::Own { key, .. } = step.meaning {
            self.own
                .get_mut(&key)
                .expect("own keys are known")
                .uncertain = true;
        }
    }

    fn take_error(&mut self, step: Step, text: &str) -> Verdict {
        if self.refusals == Refusals::Wrong {
            return Err(format!("{}: {text}", step.request.describe()));
        }
        if text.starts_with("UNKNOWN") && self.refusals == Refusals::Broken {
            self.take_silence(step);
            return Ok(());
        }
        if !text.starts_with("MISCONF") {
            return Err(format!("an error of another kind: {text}"));
        }
        self.refused += 1;
        self.failed += u64::from(text.contains("log"));
        match step.meaning {
            Meaning::Read(_) | Meaning::Count(_) => {
                return Err(format!("a reading was refused: {text}"));
            }
            Meaning::Raise(key) => {
                let counter = self.counters.get_mut(&key).expect("counters are known");
                counter.refuse();
            }
            Meaning::Write(writes) => {
                for (key, id) in writes {
                    self.register(&key).refuse(id);
                }
            }
            Meaning::Own {
                key, write, then, ..
            } => {
                if let Some(id) = write {
                    self.register(&key).refuse(id);
                }
                let own = self.own.get_mut(&key).expect("own keys are known");
                assert_eq!(own.possible.pop(), Some(then), "nothing was sent behind it");
            }
        }
        Ok(())
    }
}

/// Reads everything from a node that was just started: this is what has survived.
pub async fn verify(ledger: Shared, mut client: Client) -> Verdict {
    let (registers, counters): (Vec<String>, Vec<String>) = {
        let ledger = ledger.borrow();
        let counters = ledger.counters.keys().cloned().collect();
        (ledger.registers.keys().cloned().collect(), counters)
    };
    for key in registers {
        let start = ledger.borrow_mut().now();
        let asked = [request(["GET", &key]), request(["TTL", &key])];
        let mut replies = client.must(&asked).await?;
        let expires = replies.pop().expect("two replies").number()? > 0;
        let value = replies.pop().expect("two replies").value()?.map(Rc::new);
        let kept = Kept { value, expires };
        let settled = ledger.borrow_mut().settle(&key, kept, start);
        settled.map_err(|why| format!("{key}: {why}"))?;
    }
    for key in counters {
        let start = ledger.borrow_mut().now();
        let replies = client.must(&[request(["GET", &key])]).await?;
        let number = replies[0].number()?;
        let mut ledger = ledger.borrow_mut();
        let now = ledger.now();
        let counter = ledger.counters.get_mut(&key).expect("counters are known");
        let settled = counter.settle(number, start, now);
        settled.map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}

impl Ledger {
    fn settle(&mut self, key: &str, kept: Kept, start: Moment) -> Verdict {
        let now = self.now();
        self.register(key).settle(&kept.value, start, now)?;
        let Some(own) = self.own.get_mut(key) else {
            return Ok(());
        };
        if !own.possible.contains(&kept) {
            let possible: Vec<String> = own.possible.iter().map(Kept::describe).collect();
            return Err(format!(
                "{} has survived, of: {}",
                kept.describe(),
                possible.join("; ")
            ));
        }
        own.possible = vec![kept];
        own.uncertain = false;
        Ok(())
    }
}

impl Kept {
    fn describe(&self) -> String {
        let expires = if self.expires { ", to expire" } else { "" };
        format!("{}{expires}", describe(&self.value))
    }
}
