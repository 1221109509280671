//! What a writer knows of its own keys, and whether a node still has it.
//!
//! A key holds what was acknowledged last, or something that was sent later and may have arrived.
//! What was refused in words that say that nothing was changed did certainly not arrive. What a
//! value says of itself (key, number of the write, writer, checksum) tells which write it came
//! with.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{Client, Value, request};

/// Keys that are asked for at once.
const ASKED: usize = 32;
/// Answers to so many writes of a key are remembered, and so much of each.
const HISTORY_WRITES: usize = 6;
const HISTORY_CHARS: usize = 24;

/// Milliseconds since 1970: the clock of this machine, which the node has, too.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// What a key has from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// A value.
    Value,
    /// A value, until this time.
    Until(u64),
    /// Nothing: it deletes.
    Nothing,
}

/// A write to one key.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Rises with every write of the writer.
    pub sequence: u64,
    /// What the key has from it.
    pub gives: Gives,
}

impl Write {
    /// True if `found`, asked for and answered between these times, may come from this write.
    fn explains(&self, found: Option<u64>, asked: u64, answered: u64) -> bool {
        match (found, self.gives) {
            (Some(found), Gives::Value) => found == self.sequence,
            (Some(found), Gives::Until(end)) => found == self.sequence && asked < end,
            (None, Gives::Until(end)) => answered >= end,
            (None, Gives::Nothing) => true,
            _ => false,
        }
    }
}

#[derive(Clone)]
struct Entry {
    /// What it held at least: what was acknowledged last, or seen since.
    holds: Write,
    /// The number of the last write that was acknowledged.
    acknowledged: u64,
    /// What became of the last writes, for whoever looks for a fault.
    history: Vec<(Write, String)>,
    /// What was sent since, and may or may not have arrived.
    sent: Vec<Write>,
}

/// In which state the node is that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers everything, and what was not acknowledged is there or will never be.
    Sound,
    /// It may answer errors, and what was not acknowledged may yet come.
    Sick,
    /// As `Sick`, and what is seen may go again: see `Load::doubt`.
    Doubted,
}

/// What one writer knows. Nobody else writes to its keys.
#[derive(Clone)]
pub struct Ledger {
    writer: usize,
    sequence: u64,
    keys: BTreeMap<usize, Entry>,
    /// Writes of several keys at once that were sent and not acknowledged.
    open: Vec<(u64, Vec<usize>)>,
    /// Writes since the last pause.
    recent: Vec<(Vec<usize>, Write)>,
    /// What does not fit.
    pub faults: Vec<String>,
    /// Errors that a sick node answered to reads.
    pub read_errors: BTreeMap<String, u64>,
}

impl Ledger {
    /// Of this writer; nothing was written yet.
    pub fn new(writer: usize) -> Ledger {
        Ledger {
            writer,
            sequence: 0,
            keys: BTreeMap::new(),
            open: Vec::new(),
            recent: Vec::new(),
            faults: Vec::new(),
            read_errors: BTreeMap::new(),
        }
    }

    /// The name of a key.
    pub fn name(&self, key: usize) -> String {
        format!("writer:{}:key:{key}", self.writer)
    }

    /// How many keys were ever written.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The value of `key` that write `sequence` sets, `length` bytes or a few more.
    pub fn value(&self, key: usize, sequence: u64, length: usize) -> Vec<u8> {
        let mut value = format!("{key} {sequence} {} ", self.writer).into_bytes();
        let start = value.len();
        value.resize(length.max(start + 4) - 4, 0);
        // Nothing that could be compressed.
        fastrand::Rng::with_seed(sequence).fill(&mut value[start..]);
        let crc = crc32c::crc32c(&value);
        value.extend_from_slice(&crc.to_le_bytes());
        value
    }

    /// Notes that `keys` will be written, in one piece: the number of the write.
    pub fn intend(&mut self, keys: &[usize], gives: Gives) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        for key in keys {
            let entry = self.keys.entry(*key).or_insert(Entry {
                holds: Write {
                    sequence: 0,
                    gives: Gives::Nothing,
                },
                acknowledged: 0,
                history: Vec::new(),
                sent: Vec::new(),
            });
            entry.sent.push(Write { sequence, gives });
        }
        if keys.len() > 1 {
            self.open.push((sequence, keys.to_vec()));
        }
        self.recent.push((keys.to_vec(), Write { sequence, gives }));
        sequence
    }

    /// What is known now, when nothing is under way. What is written from here on is recent.
    pub fn pause(&mut self) -> Ledger {
        let now = self.clone();
        self.recent.clear();
        now
    }

    /// What is recent to `later`, this writer's next pause, may be there or not.
    pub fn may_have(&mut self, later: &Ledger) {
        for (keys, write) in &later.recent {
            self.sequence = write.sequence - 1;
            self.intend(keys, write.gives);
        }
    }

    /// The write is acknowledged.
    pub fn acknowledge(&mut self, keys: &[usize], write: Write) {
        self.open
            .retain(|(sequence, _)| *sequence != write.sequence);
        for key in keys {
            let entry = self.keys.get_mut(key).expect("it was intended");
            entry.acknowledged = entry.acknowledged.max(write.sequence);
            if entry.holds.sequence <= write.sequence {
                entry.holds = write;
            }
            entry.sent.retain(|other| other.sequence > write.sequence);
        }
    }

    /// True if something that was sent to one of `keys` before may yet come to be.
    pub fn is_open(&self, keys: &[usize], sequence: u64) -> bool {
        let earlier = |write: &Write| write.sequence < sequence;
        keys.iter()
            .any(|key| self.keys[key].sent.iter().any(earlier))
    }

    /// The write is refused, and has certainly changed nothing.
    pub fn refuse(&mut self, keys: &[usize], sequence: u64) {
        self.open.retain(|(open, _)| *open != sequence);
        for key in keys {
            let entry = self.keys.get_mut(key).expect("it was intended");
            entry.sent.retain(|other| other.sequence != sequence);
        }
    }

    /// Notes what was answered to a write.
    pub fn remember(&mut self, keys: &[usize], write: Write, answer: &str) {
        for key in keys {
            let entry = self.keys.get_mut(key).expect("it was intended");
            entry
                .history
                .push((write, answer.chars().take(HISTORY_CHARS).collect()));
            let surplus = entry.history.len().saturating_sub(HISTORY_WRITES);
            entry.history.drain(..surplus);
        }
    }

    /// The number of the write that `value` came with, if it is whole and `key`'s.
    fn sequence_of(&self, key: usize, value: &[u8]) -> Option<u64> {
        let (body, crc) = value.split_last_chunk::<4>()?;
        if crc32c::crc32c(body).to_le_bytes() != *crc {
            return None;
        }
        let mut words = body.splitn(4, |byte| *byte == b' ');
        let mut next = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let (of, sequence, writer) = (next()?, next()?, next()?);
        (of == key as u64 && writer == self.writer as u64).then_some(sequence)
    }

    /// Asks for every key and compares. What was found is known from then on.
    pub fn check(&mut self, client: &mut Client, health: Health) {
        let keys: Vec<usize> = self.keys.keys().copied().collect();
        let mut found = BTreeMap::new();
        for some in keys.chunks(ASKED) {
            let ask = |key: &usize| request(&["GET", &self.name(*key)]);
            let asked: Vec<u8> = some.iter().flat_map(ask).collect();
            let before = wall_ms();
            client.send(&asked);
            for key in some {
                let value = match client.try_read() {
                    Ok(value) => value,
                    Err(error) => {
                        let name = self.name(*key);
                        self.faults.push(format!("{name}: no answer: {error}"));
                        return;
                    }
                };
                if let Some(now) = self.judge(*key, value, (before, wall_ms()), health) {
                    found.insert(*key, now);
                }
            }
        }
        if health == Health::Sound {
            self.check_open(&found);
            self.open.clear();
        }
    }

    /// What `key` holds, by the answer; `None` if that cannot be told.
    fn judge(
        &mut self,
        key: usize,
        answer: Value,
        (asked, answered): (u64, u64),
        health: Health,
    ) -> Option<Option<u64>> {
        let name = self.name(key);
        let now = match answer {
            Value::Null => None,
            Value::Bulk(value) => match self.sequence_of(key, &value) {
                Some(sequence) => Some(sequence),
                None => {
                    let bytes = value.len();
                    self.faults
                        .push(format!("{name}: {bytes} bytes that nobody wrote there"));
                    return None;
                }
            },
            Value::Error(text) if health != Health::Sound => {
                *self.read_errors.entry(text).or_default() += 1;
                return None;
            }
            other => {
                self.faults.push(format!("{name}: {other:?}"));
                return None;
            }
        };
        let entry = self.keys.get_mut(&key).expect("it is one of the keys");
        let candidates = || entry.sent.iter().rev().chain([&entry.holds]);
        let reason = candidates()
            .find(|write| write.explains(now, asked, answered))
            .copied();
        let Some(reason) = reason else {
            let (holds, sent, last) = (entry.holds, &entry.sent, entry.acknowledged);
            self.faults.push(format!(
                "{name}: holds {now:?}, not {holds:?} or of {sent:?}; {last} was acknowledged last; {:?}", entry.history
            ));
            return Some(now);
        };
        match health {
            Health::Sound => {
                entry.holds = reason;
                entry.sent.clear();
            }
            // It was seen, so it stays. Why nothing was there may have several reasons.
            Health::Sick if now.is_some() => {
                entry.holds = reason;
                entry.sent.retain(|write| write.sequence > reason.sequence);
            }
            Health::Sick | Health::Doubted => {}
        }
        Some(now)
    }

    /// If one key has what a write of several wrote, every key of it has, or something later.
    fn check_open(&mut self, found: &BTreeMap<usize, Option<u64>>) {
        for (sequence, keys) in &self.open {
            let has_it = |key: &usize| found.get(key) == Some(&Some(*sequence));
            if !keys.iter().any(has_it) {
                continue;
            }
            for key in keys {
                let holds = self.keys[key].holds.sequence;
                if holds < *sequence {
                    let name = self.name(*key);
                    self.faults.push(format!(
                        "{name}: holds {:?}; others of write {sequence} have it",
                        found.get(key)
                    ));
                }
            }
        }
    }
}
