//! kill -9 at any moment, again and again: every write that was acknowledged is there afterwards.
//!
//! The ledger is in this process, which does not die. A writer notes what it is about to write,
//! sends it, and notes the acknowledgement; after each restart every key must hold the last
//! acknowledged value or one that was sent later (which may or may not have arrived), and of a
//! transaction over several cores all or nothing. Values say whose they are and carry a checksum.
//! What was seen after a restart counts as acknowledged: it stays.
//!
//! `QUOIT_LONG=1` makes it 300 cycles; `SEED=…` repeats the choices (not the moments: those are the
//! machine's).

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, Launch, Value, is_long, request, scratch};

const WRITERS: usize = 6;
/// Keys of one writer: few, so that they are overwritten again and again.
const KEYS: usize = 40;
/// Writes that a writer has under way at once.
const PIPELINE: usize = 8;
/// Small sizes, so that every cycle flushes, merges and recycles the log several times.
const CONFIG: &str = "[storage]\nmemtable = \"256KiB\"\nwal-segment = \"128KiB\"\n\
                      wal-max = \"1MiB\"\ntable-max = \"1MiB\"\n";

/// A key that may be lost is a database that nobody wants.
#[test]
fn no_acknowledged_write_is_lost_however_often_the_node_is_killed() {
    let (cycles, delays_ms) = match is_long() {
        true => (300, 20..=700),
        false => (6, 50..=400),
    };
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut chance = fastrand::Rng::with_seed(seed);
    let dir = scratch();
    let begun = Instant::now();
    let mut ledgers: Vec<Ledger> = (0..WRITERS)
        .map(|writer| Ledger::new(writer, chance.fork()))
        .collect();
    let (mut slowest, mut faults) = (Duration::ZERO, Vec::new());
    for cycle in 0..=cycles {
        if chance.u32(..4) == 0 {
            // Also in the middle of what a crash makes a node do.
            let delay = Duration::from_millis(chance.u64(..60));
            launch(dir.path()).start_and_kill(delay);
        }
        let node = launch(dir.path()).start();
        slowest = slowest.max(node.ready_after);
        for ledger in &mut ledgers {
            ledger.check(&mut node.client(), &mut faults);
        }
        if !faults.is_empty() || cycle == cycles {
            break;
        }
        let address = node.address;
        let writers: Vec<_> = ledgers
            .drain(..)
            .map(|ledger| thread::spawn(move || ledger.write_until_it_dies(address)))
            .collect();
        thread::sleep(Duration::from_millis(chance.u64(delays_ms.clone())));
        node.kill();
        let back = writers.into_iter().map(|writer| writer.join());
        ledgers.extend(back.map(|ledger| ledger.expect("a writer does not panic")));
    }
    let sum = |field: fn(&Ledger) -> u64| ledgers.iter().map(field).sum::<u64>();
    let (acknowledged, refused) = (sum(|ledger| ledger.acknowledged), sum(|l| l.refused));
    println!(
        "SEED={seed}: {cycles} cycles in {:.0?}, {acknowledged} acknowledged writes, {} lost; \
         slowest restart {slowest:.0?}",
        begun.elapsed(),
        faults.len()
    );
    if !faults.is_empty() {
        let kept = dir.keep();
        panic!(
            "SEED={seed}, data in {}:\n{}",
            kept.display(),
            faults.join("\n")
        );
    }
    assert_eq!(refused, 0, "writes were refused while nothing was wrong");
    let least = 20 * cycles as u64;
    assert!(acknowledged > least, "hardly anything was written: no test");
}

fn launch(dir: &Path) -> Launch {
    Launch::new(dir).config(CONFIG)
}

/// What one writer knows of its keys: nobody else writes to them.
struct Ledger {
    writer: usize,
    chance: fastrand::Rng,
    /// Rises with every write, over all cycles.
    sequence: u64,
    keys: Vec<Entry>,
    /// Transactions that were sent and not acknowledged: their number and keys.
    open: Vec<(u64, Vec<usize>)>,
    acknowledged: u64,
    refused: u64,
}

/// What is known of a key.
#[derive(Default)]
struct Entry {
    /// What it held at least: the value of this write, or nothing.
    holds: Option<u64>,
    /// What was sent since, and may or may not have arrived.
    sent: Vec<Write>,
}

#[derive(Clone, Copy)]
struct Write {
    sequence: u64,
    deletes: bool,
}

/// Something to be sent in one piece.
struct Piece {
    sequence: u64,
    bytes: Vec<u8>,
    /// How many replies it has; the last one tells.
    replies: usize,
    keys: Vec<usize>,
    deletes: bool,
}

impl Ledger {
    fn new(writer: usize, chance: fastrand::Rng) -> Ledger {
        Ledger {
            writer,
            chance,
            sequence: 0,
            keys: (0..KEYS).map(|_| Entry::default()).collect(),
            open: Vec::new(),
            acknowledged: 0,
            refused: 0,
        }
    }

    fn key(&self, key: usize) -> String {
        format!("writer:{}:key:{key}", self.writer)
    }

    /// Writes as fast as it goes, until the connection breaks.
    fn write_until_it_dies(mut self, address: SocketAddr) -> Ledger {
        let Ok(mut client) = Client::try_connect(address) else {
            return self;
        };
        loop {
            let pieces: Vec<Piece> = (0..self.chance.usize(1..=PIPELINE))
                .map(|_| self.intend())
                .collect();
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.bytes.clone())
                .collect();
            if client.try_send(&bytes).is_err() {
                return self;
            }
            for piece in pieces {
                let replies = (0..piece.replies).map(|_| client.try_read());
                match replies.last() {
                    Some(Ok(Value::Error(_) | Value::Null)) => self.refused += 1,
                    Some(Ok(_)) => self.acknowledge(&piece),
                    Some(Err(_)) | None => return self,
                }
            }
        }
    }

    /// Chooses a write and notes that it will be sent.
    fn intend(&mut self) -> Piece {
        self.sequence += 1;
        let sequence = self.sequence;
        let first = self.chance.usize(..KEYS);
        let all: Vec<usize> = (0..3).map(|index| (first + index * 7) % KEYS).collect();
        let set = |ledger: &mut Ledger, key: usize| {
            let (name, value) = (ledger.key(key), ledger.value(key, sequence));
            (name.into_bytes(), value)
        };
        let (mut bytes, mut replies, mut keys, mut deletes) = (Vec::new(), 1, vec![first], false);
        match self.chance.u32(..20) {
            0..=1 => {
                deletes = true;
                bytes = request(&["DEL", &self.key(first)]);
            }
            2..=4 => {
                keys = all;
                let mut words = vec![b"MSET".to_vec()];
                for key in &keys {
                    let (name, value) = set(self, *key);
                    words.extend([name, value]);
                }
                bytes.extend(request(&words));
            }
            5..=7 => {
                keys = all;
                bytes.extend(request(&["MULTI"]));
                for key in &keys {
                    let (name, value) = set(self, *key);
                    bytes.extend(request(&[b"SET".to_vec(), name, value]));
                }
                bytes.extend(request(&["EXEC"]));
                replies = keys.len() + 2;
            }
            _ => {
                let (name, value) = set(self, first);
                bytes.extend(request(&[b"SET".to_vec(), name, value]));
            }
        }
        for key in &keys {
            self.keys[*key].sent.push(Write { sequence, deletes });
        }
        if keys.len() > 1 {
            self.open.push((sequence, keys.clone()));
        }
        Piece {
            sequence,
            bytes,
            replies,
            keys,
            deletes,
        }
    }

    fn acknowledge(&mut self, piece: &Piece) {
        self.acknowledged += 1;
        self.open
            .retain(|(sequence, _)| *sequence != piece.sequence);
        for key in &piece.keys {
            let entry = &mut self.keys[*key];
            entry.holds = (!piece.deletes).then_some(piece.sequence);
            entry.sent.retain(|write| write.sequence > piece.sequence);
        }
    }

    /// Who wrote it, where, when, and a checksum; then filling of any size.
    fn value(&mut self, key: usize, sequence: u64) -> Vec<u8> {
        let length = match self.chance.u32(..50) {
            0 => self.chance.usize(..100_000),
            _ => self.chance.usize(..1_000),
        };
        let mut value = format!("{key} {sequence} {} ", self.writer).into_bytes();
        value.resize(value.len() + length, b'a' + (sequence % 26) as u8);
        let crc = crc32c::crc32c(&value);
        value.extend_from_slice(&crc.to_le_bytes());
        value
    }

    /// The number of the write that `value` came with, if it is whole and `key`'s.
    fn sequence_of(&self, key: usize, value: &[u8]) -> Option<u64> {
        let (body, crc) = value.split_last_chunk::<4>()?;
        if crc32c::crc32c(body).to_le_bytes() != *crc {
            return None;
        }
        let text = std::str::from_utf8(body).ok()?;
        let mut words = text.split(' ');
        let mut next = || words.next()?.parse::<u64>().ok();
        let (of, sequence, writer) = (next()?, next()?, next()?);
        (of == key as u64 && writer == self.writer as u64).then_some(sequence)
    }

    /// Compares what is there with what must be, and takes it over.
    fn check(&mut self, client: &mut Client, faults: &mut Vec<String>) {
        let asked: Vec<u8> = (0..KEYS)
            .flat_map(|key| request(&["GET", &self.key(key)]))
            .collect();
        client.send(&asked);
        let mut found = Vec::new();
        for key in 0..KEYS {
            let entry = &self.keys[key];
            let (holds, sent) = (entry.holds, &entry.sent);
            let expected = || {
                let sent: Vec<_> = sent
                    .iter()
                    .map(|write| (write.sequence, write.deletes))
                    .collect();
                format!("{holds:?}, or of (write, deletes) {sent:?}")
            };
            let now = match client.read() {
                Value::Null => None,
                Value::Bulk(value) => match self.sequence_of(key, &value) {
                    Some(sequence) => Some(sequence),
                    None => {
                        let (name, bytes) = (self.key(key), value.len());
                        faults.push(format!("{name}: {bytes} bytes that nobody wrote there"));
                        None
                    }
                },
                other => panic!("{other:?} is no value"),
            };
            let fits = now == holds
                || sent.iter().any(|write| match now {
                    Some(sequence) => !write.deletes && write.sequence == sequence,
                    None => write.deletes,
                });
            if !fits {
                let name = self.key(key);
                faults.push(format!("{name}: holds {now:?}, not {}", expected()));
            }
            found.push(now);
        }
        self.check_transactions(&found, faults);
        for (entry, now) in self.keys.iter_mut().zip(found) {
            entry.holds = now;
            entry.sent.clear();
        }
        self.open.clear();
    }

    /// If one key has what a transaction wrote, every key of it has, or something later.
    fn check_transactions(&self, found: &[Option<u64>], faults: &mut Vec<String>) {
        for (sequence, keys) in &self.open {
            if !keys.iter().any(|key| found[*key] == Some(*sequence)) {
                continue;
            }
            for key in keys {
                let later = self.keys[*key]
                    .sent
                    .iter()
                    .any(|write| write.deletes && write.sequence > *sequence);
                let has = match found[*key] {
                    Some(now) => now >= *sequence,
                    None => later,
                };
                if !has {
                    let name = self.key(*key);
                    faults.push(format!(
                        "{name}: holds {:?}; other keys have transaction {sequence}",
                        found[*key]
                    ));
                }
            }
        }
    }
}
