//! Clients of a cluster: what they ask of any of its nodes, and what they are told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quoit::config::READ_REPAIR_ONE_IN;
use quoit::rt;
use quoit::types::Level;

use crate::cluster::{Client, Life, Reply, Request, Verdict};
use crate::linear::{Action, Operation, Outcome};
use crate::scene::{address, words};

/// So many keys are worked on.
pub const KEYS: u64 = 3;
const NODES: u16 = 3;

/// What clients have asked and were told.
pub struct Ledger {
    level: Level,
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
    pub fn new(level: Level) -> Rc<RefCell<Ledger>> {
        Rc::new(RefCell::new(Ledger {
            level,
            moment: 0,
            value_next: 0,
            is_over: false,
            histories: BTreeMap::new(),
            told_at_last: BTreeMap::new(),
        }))
    }

    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
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
            let codes = ["NOREPLICAS", "MISCONF", "BUSY"];
            match codes.iter().any(|code| text.starts_with(code)) {
                true => Outcome::Failed,
                false => return Err(format!("{action:?} was told: {text}")),
            }
        }
        (action, Some(reply)) => return Err(format!("{action:?} was told: {reply:?}")),
    };
    Ok((action, outcome))
}

/// A client that goes from node to node.
pub async fn work(ledger: Rc<RefCell<Ledger>>, life: Rc<Life>, _: u64, mut chance: fastrand::Rng) {
    let level = ledger.borrow().level.name();
    while !ledger.borrow().is_over {
        let mut client = Client::of(&life, address(chance.u16(..NODES)));
        let pause = Duration::from_micros(chance.u64(100..20_000));
        rt::sleep(pause).await;
        if !client.try_connect().await {
            continue;
        }
        let levels = words(&format!("KV.CONSISTENCY READ {level} WRITE {level}"));
        let said = client.call(&[levels]).await;
        if !matches!(said.as_deref(), Ok([Reply::Simple(_)])) {
            continue;
        }
        for _ in 0..chance.u32(1..30) {
            if ledger.borrow().is_over || !operate(&ledger, &life, &mut client, &mut chance).await {
                break;
            }
        }
    }
}

/// One operation; false if the connection broke.
async fn operate(
    ledger: &RefCell<Ledger>,
    life: &Life,
    client: &mut Client,
    chance: &mut fastrand::Rng,
) -> bool {
    let key = chance.u64(..KEYS);
    let (asked, value) = {
        let mut ledger = ledger.borrow_mut();
        ledger.value_next += 1;
        (ledger.tick(), ledger.value_next)
    };
    let (request, action) = match chance.u8(..10) {
        0..5 => (words(&format!("GET key:{key}")), Action::Read(None)),
        5..9 => (
            // Some values are large enough for memory to be written to tables now and then.
            words(&format!(
                "SET key:{key} {value:0>width$}",
                width = [1, 1, 500, 5_000][chance.usize(..4)]
            )),
            Action::Write(Some(value)),
        ),
        _ => (words(&format!("DEL key:{key}")), Action::Write(None)),
    };
    let replies = match client.call(&[request]).await {
        Ok(replies) => replies,
        Err(why) => {
            life.note(Err(why));
            return false;
        }
    };
    let noted = ledger
        .borrow_mut()
        .note(key, asked, action, replies.first());
    life.note(noted);
    rt::sleep(Duration::from_micros(chance.u64(1..10_000))).await;
    !replies.is_empty()
}

/// Returns when the node knows of so many cores, all of which may be asked.
pub async fn knows_all(mut client: Client, cores: usize) -> Verdict {
    loop {
        if client.connect().await {
            let replies = client.call(&[words("CLUSTER NODES")]).await?;
            if let Some(Reply::Bulk(text)) = replies.into_iter().next() {
                let text = String::from_utf8_lossy(&text).into_owned();
                let there = text.lines().filter(|line| !line.contains("fail")).count();
                if there == cores {
                    return Ok(());
                }
            }
        }
        rt::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads each key so often at ONE that all of them are compared behind the answers, and brought to the same.
pub async fn repair_at_one(mut client: Client) -> Verdict {
    let gets: Vec<Request> = (0..KEYS)
        .map(|key| words(&format!("GET key:{key}")))
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
    for key in 0..KEYS {
        for level in levels {
            let requests = [
                words(&format!("KV.CONSISTENCY READ {level}")),
                words(&format!("GET key:{key}")),
            ];
            let asked = ledger.borrow_mut().tick();
            let mut replies = client.must(&requests).await?;
            let reply = replies.remove(1);
            let mut ledger = ledger.borrow_mut();
            let (action, outcome) = judge(Action::Read(None), Some(&reply))?;
            if outcome != Outcome::Done {
                return Err(format!("in the end key {key} is not told: {reply:?}"));
            }
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
