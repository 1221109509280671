//! Clients of a cluster: what they ask of any of its nodes, and what they are told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;
use quoit::config::READ_REPAIR_ONE_IN;
use quoit::rt;
use quoit::types::Level;

use crate::cluster::{Client, Life, Reply, Request, Verdict};
use crate::linear::{Action, Operation, Outcome};
use crate::scene::{Shape, address, words};

/// So many keys are worked on, where three nodes are.
pub const KEYS: u64 = 3;
/// A client that hears nothing for so long hangs up: the machine that it talks to may be gone
/// without a word.
const PATIENCE: Duration = Duration::from_secs(5);
/// So often a reading is tried when nothing goes wrong any more: what a slow disk has begun may
/// take ten seconds, one after the other.
const TRIES_MAX: u32 = 400;
/// Requests in one pipeline.
const PIPELINE_MAX: usize = 4;

/// What clients have asked and were told.
pub struct Ledger {
    pub level: Level,
    shape: Shape,
    moment: u64,
    value_next: u64,
    /// True when clients are to go home.
    pub is_over: bool,
    pub histories: BTreeMap<u64, Vec<Operation>>,
    /// By key: what each node told in the end.
    pub told_at_last: BTreeMap<u64, Vec<Option<u64>>>,
}

impl Ledger {
    /// Nothing yet; clients will read and write at `level`.
    pub fn of(shape: Shape, level: Level) -> Rc<RefCell<Ledger>> {
        Rc::new(RefCell::new(Ledger {
            level,
            shape,
            moment: 0,
            value_next: 0,
            is_over: false,
            histories: BTreeMap::new(),
            told_at_last: BTreeMap::new(),
        }))
    }

    /// All keys that are worked on.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        (0..self.shape.keys)
            .map(|key| key_of(key).into_bytes())
            .collect()
    }

    /// How many operations came to this.
    pub fn count(&self, outcome: Outcome) -> u64 {
        let all = self.histories.values().flatten();
        all.filter(|operation| operation.outcome == outcome).count() as u64
    }

    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// What a client asks next.
    fn next(&mut self, chance: &mut fastrand::Rng) -> (u64, Request, Action) {
        let key = chance.u64(..self.shape.keys);
        self.value_next += 1;
        let (name, value) = (key_of(key), self.value_next);
        let (request, action) = match chance.u8(..10) {
            0..5 => (words(&format!("GET {name}")), Action::Read(None)),
            5..9 => (
                // Some values are large enough for memory to be written to tables now and then.
                words(&format!(
                    "SET {name} {value:0>width$}",
                    width = [1, 1, 500, 5_000][chance.usize(..4)]
                )),
                Action::Write(Some(value)),
            ),
            _ => (words(&format!("DEL {name}")), Action::Write(None)),
        };
        (key, request, action)
    }

    fn note(&mut self, key: u64, asked: u64, action: Action, reply: Option<&Reply>) -> Verdict {
        let answered = self.tick();
        let (action, outcome) = judge(action, reply)?;
        self.histories.entry(key).or_default().push(Operation {
            action,
            asked,
            answered,
            outcome,
        });
        Ok(())
    }
}

fn key_of(key: u64) -> String {
    format!("key:{key}")
}

/// What a reply means. No reply: the connection broke.
fn judge(action: Action, reply: Option<&Reply>) -> Verdict<(Action, Outcome)> {
    let outcome = match (action, reply) {
        (Action::Read(_), Some(Reply::Bulk(bytes))) => {
            let text = std::str::from_utf8(bytes).unwrap_or_default();
            let value = text
                .parse()
                .map_err(|_| format!("{text:?} was never written"))?;
            return Ok((Action::Read(Some(value)), Outcome::Done));
        }
        (Action::Read(_), Some(Reply::Nil)) => return Ok((Action::Read(None), Outcome::Done)),
        (_, Some(Reply::Simple(_) | Reply::Integer(_))) => Outcome::Done,
        (Action::Read(_), None | Some(Reply::Error(_))) => Outcome::Failed,
        (_, None) => Outcome::Unknown,
        (_, Some(Reply::Error(text))) if text.starts_with("UNKNOWN") => Outcome::Unknown,
        (_, Some(Reply::Error(text))) => {
            let codes = ["NOREPLICAS", "MISCONF", "BUSY", "IOERR"];
            match codes.iter().any(|code| text.starts_with(code)) {
                true => Outcome::Failed,
                false => return Err(format!("{action:?} was told: {text}")),
            }
        }
        (action, Some(reply)) => return Err(format!("{action:?} was told: {reply:?}")),
    };
    Ok((action, outcome))
}

/// The levels of a connection, to read and to write: ALL goes with QUORUM.
fn levels(level: Level, chance: &mut fastrand::Rng) -> (Level, Level) {
    match (level, chance.u8(..10)) {
        (Level::Quorum, 0) => (Level::All, Level::Quorum),
        (Level::Quorum, 1) => (Level::Quorum, Level::All),
        _ => (level, level),
    }
}

/// A client that goes from node to node.
pub async fn work(ledger: Rc<RefCell<Ledger>>, life: Rc<Life>, mut chance: fastrand::Rng) {
    let (level, shape) = (ledger.borrow().level, ledger.borrow().shape);
    let pipeline = [1, 1, 1, PIPELINE_MAX][chance.usize(..4)];
    while !ledger.borrow().is_over {
        let mut client = Client::of(&life, address(chance.u16(..shape.nodes)));
        let pause = Duration::from_micros(chance.u64(100..20_000));
        rt::sleep(pause).await;
        if !within(client.try_connect()).await.unwrap_or(false) {
            continue;
        }
        let (read, write) = levels(level, &mut chance);
        let (read, write) = (read.name(), write.name());
        let request = [words(&format!("KV.CONSISTENCY READ {read} WRITE {write}"))];
        let said = call(&mut client, &request).await;
        if !matches!(said.as_deref(), Ok([Reply::Simple(_)])) {
            continue;
        }
        for _ in 0..chance.u32(1..30) {
            let is_over = ledger.borrow().is_over;
            if is_over || !operate(&ledger, &mut client, &mut chance, pipeline).await {
                break;
            }
            rt::sleep(Duration::from_micros(chance.u64(1..shape.thinks_us))).await;
        }
    }
}

/// What comes of it, unless it takes too long.
async fn within<T>(work: impl Future<Output = T>) -> Option<T> {
    let late = async {
        rt::sleep(PATIENCE).await;
        None
    };
    future::or(async { Some(work.await) }, late).await
}

/// The replies that come in time. Who gives up has hung up.
async fn call(client: &mut Client, requests: &[Request]) -> Verdict<Vec<Reply>> {
    match within(client.call(requests)).await {
        Some(replies) => replies,
        None => {
            client.hang_up();
            Ok(Vec::new())
        }
    }
}

/// Some operations in one pipeline; false if the connection broke.
async fn operate(
    ledger: &RefCell<Ledger>,
    client: &mut Client,
    chance: &mut fastrand::Rng,
    most: usize,
) -> bool {
    let count = chance.usize(1..=most);
    let (asked, operations) = {
        let mut ledger = ledger.borrow_mut();
        let operations: Vec<_> = (0..count).map(|_| ledger.next(chance)).collect();
        (ledger.tick(), operations)
    };
    let requests = operations.iter().map(|(_, request, _)| request.clone());
    let requests: Vec<Request> = requests.collect();
    let life = Rc::clone(client.life());
    let replies = match call(client, &requests).await {
        Ok(replies) => replies,
        Err(why) => {
            life.note(Err(why));
            return false;
        }
    };
    for (index, (key, _, action)) in operations.iter().enumerate() {
        let reply = replies.get(index);
        let noted = ledger.borrow_mut().note(*key, asked, *action, reply);
        life.note(noted);
    }
    replies.len() == count
}

/// Returns when the node knows of so many cores, all of which may be asked.
pub async fn knows_all(mut client: Client, cores: usize) -> Verdict {
    loop {
        if client.connect().await {
            let replies = client.call(&[words("CLUSTER NODES")]).await?;
            if let Some(Reply::Bulk(text)) = replies.into_iter().next() {
                let text = String::from_utf8_lossy(&text).into_owned();
                let is_there = |line: &&str| line.contains("master ") && !line.contains("fail");
                let there = text.lines().filter(is_there).count();
                if there == cores {
                    return Ok(());
                }
            }
        }
        rt::sleep(Duration::from_millis(50)).await;
    }
}

/// What INFO says of the cluster under this name.
pub async fn info(client: &mut Client, name: &str) -> Verdict<u64> {
    let replies = client.must(&[words("INFO cluster")]).await?;
    let Some(Reply::Bulk(text)) = replies.into_iter().next() else {
        return Err("INFO is no text".to_owned());
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(found, _)| *found == name);
    let value = value.ok_or_else(|| format!("INFO does not tell {name}"))?;
    value
        .1
        .parse()
        .map_err(|_| format!("{value:?} is no number"))
}

/// Returns when the node keeps no hint any more.
pub async fn none_left(mut client: Client) -> Verdict {
    let mut quiet = 0;
    while quiet < 3 {
        match info(&mut client, "hint_bytes").await? {
            0 => quiet += 1,
            _ => quiet = 0,
        }
        rt::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Writes each of so many keys at `level`, its own name into it, until that is acknowledged.
pub async fn write_all(mut client: Client, level: &'static str, keys: u64) -> Verdict {
    for key in (0..keys).map(key_of) {
        let requests = [
            words(&format!("KV.CONSISTENCY READ {level} WRITE {level}")),
            words(&format!("SET {key} {key}")),
        ];
        loop {
            let replies = client.must(&requests).await?;
            let (_, outcome) = judge(Action::Write(None), replies.get(1))?;
            if outcome == Outcome::Done {
                break;
            }
            rt::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

/// Reads each of so many keys so often at ONE that all of them are compared behind the answers, and
/// brought to the same.
pub async fn repair_at_one(mut client: Client, keys: u64) -> Verdict {
    let gets: Vec<Request> = (0..keys)
        .map(|key| words(&format!("GET {}", key_of(key))))
        .collect();
    for _ in 0..READ_REPAIR_ONE_IN {
        client.must(&gets).await?;
    }
    rt::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// Reads all keys at `levels`, and notes what is told at ONE.
pub async fn read_keys(
    ledger: Rc<RefCell<Ledger>>,
    mut client: Client,
    levels: &'static [&'static str],
) -> Verdict {
    let keys = ledger.borrow().shape.keys;
    for key in 0..keys {
        for level in levels {
            let requests = [
                words(&format!("KV.CONSISTENCY READ {level}")),
                words(&format!("GET {}", key_of(key))),
            ];
            let mut tries = 0;
            let (asked, reply, action) = loop {
                let asked = ledger.borrow_mut().tick();
                let reply = client.must(&requests).await?.remove(1);
                let (action, outcome) = judge(Action::Read(None), Some(&reply))?;
                tries += 1;
                match outcome {
                    Outcome::Done => break (asked, reply, action),
                    // Some of these networks and disks are slower than what a request may take.
                    _ if tries < TRIES_MAX => rt::sleep(Duration::from_millis(100)).await,
                    _ => return Err(format!("in the end key {key} is not told: {reply:?}")),
                }
            };
            let mut ledger = ledger.borrow_mut();
            ledger.note(key, asked, Action::Read(None), Some(&reply))?;
            if *level == "one"
                && let Action::Read(value) = action
            {
                ledger.told_at_last.entry(key).or_default().push(value);
            }
        }
    }
    Ok(())
}
