//! Writers under way: threads that write as their ledgers say, and what became of it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::{Client, Node, Value, is_long, request};
use crate::ledger::{Gives, Health, Ledger, Write, wall_ms};

/// Bytes of a value that lies with its record, and of one that lies in the value log.
const SMALL: usize = 100;
const LARGE: usize = 10_000;
/// Writes that a writer has under way at once.
const PIPELINE: usize = 8;
/// After refusals a writer waits a little: it is no test of how fast a node can refuse.
const AFTER_REFUSALS: Duration = Duration::from_millis(2);

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// New keys, again and again.
    Fill,
    /// So many keys, again and again, with deletes, ends of life and several keys at once.
    Churn(usize),
}

/// Counts that can be watched while writers are under way.
#[derive(Default)]
pub struct Progress {
    stop: AtomicBool,
    /// Acknowledgements do not count any more: see [`Load::doubt`].
    doubted: AtomicBool,
    /// Acknowledged writes of small values.
    pub small: AtomicU64,
    /// Acknowledged writes of large values.
    pub large: AtomicU64,
    /// All acknowledged writes.
    pub acknowledged: AtomicU64,
    /// Writes that were answered by an error.
    pub refused: AtomicU64,
}

/// Reads a count.
pub fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A writer between two loads.
pub struct Writer {
    /// What it knows.
    pub ledger: Ledger,
    chance: fastrand::Rng,
    next_key: usize,
    /// Replies that were errors, by their text.
    pub errors: BTreeMap<String, u64>,
    /// The longest that a reply took.
    pub slowest: Duration,
    /// What ended its connection.
    pub broken: Option<io::Error>,
}

/// Something to be sent in one piece.
struct Piece {
    write: Write,
    keys: Vec<usize>,
    bytes: Vec<u8>,
    /// Bytes of each value; 0: it deletes.
    length: usize,
}

impl Writer {
    fn new(number: usize, chance: fastrand::Rng) -> Writer {
        Writer {
            ledger: Ledger::new(number),
            chance,
            next_key: 0,
            errors: BTreeMap::new(),
            slowest: Duration::ZERO,
            broken: None,
        }
    }

    fn choose(&mut self, work: Work) -> Piece {
        let length = match self.chance.bool() {
            true => LARGE,
            false => SMALL,
        };
        let keys = match work {
            Work::Fill => {
                self.next_key += 1;
                return self.set(&[self.next_key - 1], length, Gives::Value);
            }
            Work::Churn(keys) => keys,
        };
        let first = self.chance.usize(..keys);
        match self.chance.u32(..20) {
            0..=2 => self.delete(first),
            3..=5 => {
                let end = wall_ms() + self.chance.u64(1..1500);
                self.set(&[first], length, Gives::Until(end))
            }
            6..=7 => {
                let three: Vec<usize> = (0..3).map(|index| (first + index * 7) % keys).collect();
                self.set(&three, length, Gives::Value)
            }
            _ => self.set(&[first], length, Gives::Value),
        }
    }

    fn delete(&mut self, key: usize) -> Piece {
        let gives = Gives::Nothing;
        let sequence = self.ledger.intend(&[key], gives);
        Piece {
            write: Write { sequence, gives },
            bytes: request(&["DEL", &self.ledger.name(key)]),
            keys: vec![key],
            length: 0,
        }
    }

    fn set(&mut self, keys: &[usize], length: usize, gives: Gives) -> Piece {
        let sequence = self.ledger.intend(keys, gives);
        let mut words = vec![match keys.len() {
            1 => b"SET".to_vec(),
            _ => b"MSET".to_vec(),
        }];
        for key in keys {
            words.push(self.ledger.name(*key).into_bytes());
            words.push(self.ledger.value(*key, sequence, length));
        }
        if let Gives::Until(end) = gives {
            words.extend([b"PXAT".to_vec(), end.to_string().into_bytes()]);
        }
        Piece {
            write: Write { sequence, gives },
            bytes: request(&words),
            keys: keys.to_vec(),
            length,
        }
    }

    /// Writes until it is told to stop, or the connection breaks.
    fn run(mut self, address: SocketAddr, work: Work, progress: &Progress) -> Writer {
        self.broken = match Client::try_connect(address) {
            Ok(mut client) => self.write(&mut client, work, progress).err(),
            Err(error) => Some(error),
        };
        self
    }

    fn write(&mut self, client: &mut Client, work: Work, progress: &Progress) -> io::Result<()> {
        while !progress.stop.load(Ordering::Relaxed) {
            let count = self.chance.usize(1..=PIPELINE);
            let pieces: Vec<Piece> = (0..count).map(|_| self.choose(work)).collect();
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.bytes.clone())
                .collect();
            let begun = Instant::now();
            client.try_send(&bytes)?;
            let mut refused = false;
            for piece in &pieces {
                let reply = client.try_read()?;
                self.slowest = self.slowest.max(begun.elapsed());
                refused |= !self.note(piece, reply, progress);
            }
            if refused {
                thread::sleep(AFTER_REFUSALS);
            }
        }
        Ok(())
    }

    /// Notes what became of a write; false if it was no acknowledgement.
    fn note(&mut self, piece: &Piece, reply: Value, progress: &Progress) -> bool {
        let said = format!("{reply:?}");
        self.ledger.remember(&piece.keys, piece.write, &said);
        let Value::Error(text) = &reply else {
            if progress.doubted.load(Ordering::SeqCst) {
                return true; // it may have come or not
            }
            let is_open = self.ledger.is_open(&piece.keys, piece.write.sequence);
            if reply == Value::Integer(0) && is_open {
                return true; // nothing was there to delete: what is in doubt may come later
            }
            self.ledger.acknowledge(&piece.keys, piece.write);
            progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            match piece.length {
                SMALL => progress.small.fetch_add(1, Ordering::Relaxed),
                LARGE => progress.large.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
            return true;
        };
        if text.contains("changed nothing") || text.contains("Nothing was done") {
            self.ledger.refuse(&piece.keys, piece.write.sequence);
        }
        *self.errors.entry(text.clone()).or_default() += 1;
        progress.refused.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// Writers, under way or not.
pub struct Load {
    writers: Vec<Writer>,
    running: Vec<JoinHandle<Writer>>,
    /// What they do.
    pub progress: Arc<Progress>,
}

impl Load {
    /// So many writers, none under way.
    pub fn new(writers: usize, chance: &mut fastrand::Rng) -> Load {
        let writer = |number| Writer::new(number, chance.fork());
        Load {
            writers: (0..writers).map(writer).collect(),
            running: Vec::new(),
            progress: Arc::default(),
        }
    }

    /// Lets them write.
    pub fn start(&mut self, node: &Node, work: Work) {
        assert!(self.running.is_empty(), "they are under way");
        self.progress.stop.store(false, Ordering::Relaxed);
        self.progress.doubted.store(false, Ordering::SeqCst);
        let address = node.address;
        for writer in self.writers.drain(..) {
            let progress = Arc::clone(&self.progress);
            let write = move || writer.run(address, work, &progress);
            self.running.push(thread::spawn(write));
        }
    }

    /// What is acknowledged from here on, until the next start, may be there or not. For ext4
    /// itself may report a sync as done whose transaction its aborted journal has dropped (seen on
    /// Linux 6.18: two files that are synced at the moment of the abort suffice, without any node).
    /// In a real power cut nobody would hear of it.
    pub fn doubt(&self) {
        self.progress.doubted.store(true, Ordering::SeqCst);
    }

    /// Waits for them, whose connections are cut, or which are told to stop.
    pub fn join(&mut self) {
        for writer in self.running.drain(..) {
            self.writers
                .push(writer.join().expect("a writer does not panic"));
        }
    }

    /// Makes them stop. No connection may have broken, and no reply may have failed to come.
    pub fn stop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.join();
        for writer in &self.writers {
            let broken = &writer.broken;
            assert!(broken.is_none(), "a connection ended: {broken:?}");
        }
    }

    /// Every key holds what it must, by every writer. Panics with what does not fit.
    pub fn check(&mut self, node: &Node, health: Health, when: &str) {
        assert!(self.running.is_empty(), "they are under way");
        let mut faults = Vec::new();
        for writer in &mut self.writers {
            writer.ledger.check(&mut node.client(), health);
            faults.append(&mut writer.ledger.faults);
        }
        assert!(
            faults.is_empty(),
            "{when}: {} of {} keys are wrong:\n{}",
            faults.len(),
            self.keys(),
            faults[..faults.len().min(20)].join("\n")
        );
    }

    /// Keys that were ever written.
    pub fn keys(&self) -> usize {
        self.writers.iter().map(|writer| writer.ledger.keys()).sum()
    }

    /// Errors that a sick node answered to reads, by their text; from here on they are counted
    /// anew.
    pub fn take_read_errors(&mut self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for writer in &mut self.writers {
            for (text, count) in std::mem::take(&mut writer.ledger.read_errors) {
                *all.entry(text).or_default() += count;
            }
        }
        all
    }

    /// What each writer knows, when none is under way.
    pub fn ledgers(&mut self) -> Vec<Ledger> {
        assert!(self.running.is_empty(), "they are under way");
        let writers = self.writers.iter_mut();
        writers.map(|writer| writer.ledger.pause()).collect()
    }

    /// The longest that a reply to a write took.
    pub fn slowest(&self) -> Duration {
        let slowest = self.writers.iter().map(|writer| writer.slowest);
        slowest.max().unwrap_or_default()
    }

    /// Replies that were errors, by their text; from here on they are counted anew.
    pub fn take_errors(&mut self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for writer in &mut self.writers {
            for (text, count) in std::mem::take(&mut writer.errors) {
                *all.entry(text).or_default() += count;
            }
        }
        all
    }

    /// The writers' names for key `key`.
    pub fn names(&self, key: usize) -> Vec<String> {
        let name = |writer: &Writer| writer.ledger.name(key);
        self.writers.iter().map(name).collect()
    }

    /// Deletes a share of the keys: of every `step` keys one stays. How many went.
    pub fn delete(&mut self, node: &Node, step: usize) -> Result<u64, String> {
        let mut deleted = 0;
        for writer in &mut self.writers {
            let mut client = node.client();
            let keys = (0..writer.next_key).filter(|key| key % step != 0);
            for some in keys.collect::<Vec<_>>().chunks(64) {
                let pieces: Vec<Piece> = some.iter().map(|key| writer.delete(*key)).collect();
                let bytes: Vec<u8> = pieces
                    .iter()
                    .flat_map(|piece| piece.bytes.clone())
                    .collect();
                client.send(&bytes);
                for piece in pieces {
                    let reply = client.read();
                    if !writer.note(&piece, reply.clone(), &self.progress) {
                        return Err(format!("{reply:?}"));
                    }
                    deleted += 1;
                }
            }
        }
        Ok(deleted)
    }

    /// Writes new keys of both sizes, enough for every core to have some, until each is
    /// acknowledged: how long that took.
    pub fn insist(&mut self, node: &Node, patience: Duration) -> Result<Duration, String> {
        let begun = Instant::now();
        let writer = &mut self.writers[0];
        let mut client = node.client();
        for length in [SMALL, LARGE].repeat(16) {
            let key = writer.next_key;
            writer.next_key += 1;
            loop {
                let piece = writer.set(&[key], length, Gives::Value);
                let reply = client
                    .try_send(&piece.bytes)
                    .and_then(|()| client.try_read());
                let reply = reply.map_err(|error| error.to_string())?;
                if writer.note(&piece, reply.clone(), &self.progress) {
                    break;
                }
                if begun.elapsed() > patience {
                    return Err(format!("{reply:?} after {:.1?}", begun.elapsed()));
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(begun.elapsed())
    }
}

/// The test's choices: from `SEED`, or new ones. It is printed.
pub fn chance(test: &str) -> fastrand::Rng {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// How often something is done.
pub fn times(short: u32, long: u32) -> u32 {
    match is_long() {
        true => long,
        false => short,
    }
}
