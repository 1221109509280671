//! What clients have asked for and seen, and whether one store can have done all of it.
//!
//! Moments are counted: every intent, answer and reading gets the next number. A write takes effect
//! between its intent and the moment at which it was first known: acknowledged, or read. A write
//! that nobody knows of may take effect at any time, until the node goes down: what a restarted
//! node says is then all there is, and what it does not show is dead for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::cluster::Verdict;

/// Counts moments.
pub type Moment = u64;
/// What a key holds.
pub type Value = Option<Rc<Vec<u8>>>;

/// A write that was never known to have happened.
const UNKNOWN: Moment = Moment::MAX;

/// Keys that several clients write, read and delete; written values are unique.
#[derive(Default)]
pub struct Register {
    writes: Vec<Write>,
    /// Writes of this life, before which the others are dead.
    base: usize,
}

struct Write {
    value: Value,
    intent: Moment,
    known: Moment,
    refused: bool,
}

/// Names a write of a register.
#[derive(Clone, Copy, Debug)]
pub struct WriteId(usize);

impl Register {
    /// A key that holds nothing.
    pub fn new() -> Register {
        let mut register = Register::default();
        let id = register.intend(None, 0);
        register.acknowledge(id, 0);
        register
    }

    /// Somebody sends a write of `value`.
    pub fn intend(&mut self, value: Value, now: Moment) -> WriteId {
        self.writes.push(Write {
            value,
            intent: now,
            known: UNKNOWN,
            refused: false,
        });
        WriteId(self.writes.len() - 1)
    }

    /// It was acknowledged.
    pub fn acknowledge(&mut self, id: WriteId, now: Moment) {
        let write = &mut self.writes[id.0];
        write.known = write.known.min(now);
    }

    /// It was refused, and the refusal says that it changed nothing.
    pub fn refuse(&mut self, id: WriteId) {
        self.writes[id.0].refused = true;
    }

    /// `value` was read, between `start` and `now`.
    pub fn read(&mut self, value: &Value, start: Moment, now: Moment) -> Verdict {
        let writes = &self.writes[self.base..];
        let wrote_it = |write: &&Write| write.value == *value;
        let mut candidates = writes
            .iter()
            .filter(wrote_it)
            .filter(|write| !write.refused);
        if candidates.clone().next().is_none() {
            return Err(self.why_not(value));
        }
        // Known before the reading began, so that whatever it replaced is gone.
        let gone = |old: &Write| {
            let replaced = |write: &&Write| write.intent > old.known && write.known < start;
            writes.iter().find(replaced)
        };
        if candidates.clone().all(|write| gone(write).is_some()) {
            let newer = candidates
                .find_map(gone)
                .map(|write| describe(&write.value));
            return Err(format!(
                "{} was read, but {} had replaced it before",
                describe(value),
                newer.unwrap_or_default()
            ));
        }
        if candidates.clone().count() == 1 {
            let is_it = |write: &&mut Write| write.value == *value && !write.refused;
            let write = self.writes[self.base..].iter_mut().find(is_it);
            let write = write.expect("it was just counted");
            write.known = write.known.min(now);
        }
        Ok(())
    }

    fn why_not(&self, value: &Value) -> String {
        let text = describe(value);
        match self.writes.iter().find(|write| write.value == *value) {
            Some(write) if write.refused => format!("{text} was read, which was refused"),
            Some(_) => format!("{text} was read, which was gone after an earlier restart"),
            None => format!("{text} was read, which was never written"),
        }
    }

    /// A node that was just started says `value`: this is what has survived.
    pub fn settle(&mut self, value: &Value, start: Moment, now: Moment) -> Verdict {
        self.read(value, start, now)?;
        self.base = self.writes.len();
        let id = self.intend(value.clone(), start);
        self.acknowledge(id, now);
        Ok(())
    }
}

/// A value, short: what it says of itself, its length, and its checksum.
pub fn describe(value: &Value) -> String {
    let Some(bytes) = value else {
        return "no value".to_owned();
    };
    let words = String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned();
    format!(
        "{words:?} ({} bytes, crc {:08x})",
        bytes.len(),
        crc32c::crc32c(bytes)
    )
}

/// A number that clients only ever raise by one.
#[derive(Default)]
pub struct Counter {
    /// What the node said when it was started.
    base: i64,
    /// Raises that were sent since, and not refused.
    sent: i64,
    /// Raises that were acknowledged since.
    acknowledged: i64,
    /// All numbers that were given as answers.
    given: BTreeSet<i64>,
    /// When a number was known, and the highest one known then.
    known: Vec<(Moment, i64)>,
}

impl Counter {
    /// Somebody sends an INCR.
    pub fn intend(&mut self) {
        self.sent += 1;
    }

    /// It was refused, and the refusal says that it changed nothing.
    pub fn refuse(&mut self) {
        self.sent -= 1;
    }

    /// An INCR that was sent at `start` was answered with `number`.
    pub fn acknowledge(&mut self, number: i64, start: Moment, now: Moment) -> Verdict {
        self.acknowledged += 1;
        if !self.given.insert(number) {
            return Err(format!("INCR gave {number} twice"));
        }
        let before = self.known_before(start);
        if number <= before {
            return Err(format!("INCR gave {number}, but {before} was known before"));
        }
        self.note(number, now)
    }

    /// A GET that was sent at `start` gave `number`.
    pub fn read(&mut self, number: i64, start: Moment, now: Moment) -> Verdict {
        let before = self.known_before(start);
        if number < before {
            return Err(format!("{number} was read, but {before} was known before"));
        }
        self.note(number, now)
    }

    fn note(&mut self, number: i64, now: Moment) -> Verdict {
        let most = self.base + self.sent;
        if number > most {
            return Err(format!(
                "{number} is more than the {most} that were ever sent"
            ));
        }
        let highest = self.known.last().map_or(self.base, |known| known.1);
        self.known.push((now, highest.max(number)));
        Ok(())
    }

    fn known_before(&self, start: Moment) -> i64 {
        let count = self.known.partition_point(|known| known.0 < start);
        count
            .checked_sub(1)
            .map_or(self.base, |last| self.known[last].1)
    }

    /// A node that was just started says `number`: this is what has survived.
    pub fn settle(&mut self, number: i64, start: Moment, now: Moment) -> Verdict {
        let least = self.base + self.acknowledged;
        if number < least {
            return Err(format!(
                "{number} has survived, but {least} were acknowledged"
            ));
        }
        self.read(number, start, now)?;
        (self.base, self.sent, self.acknowledged) = (number, 0, 0);
        self.known = vec![(now, number)];
        Ok(())
    }
}

/// Transactions, and which of them must come before which: some order must fit.
#[derive(Default)]
pub struct Order {
    after: Vec<Vec<usize>>,
}

impl Order {
    /// Room for `count` of them, numbered.
    pub fn new(count: usize) -> Order {
        Order {
            after: vec![Vec::new(); count],
        }
    }

    /// `first` comes before `then`.
    pub fn add(&mut self, first: usize, then: usize) {
        self.after[first].push(then);
    }

    /// What ended before something else began comes before it.
    pub fn add_times(&mut self, times: &[(usize, Moment, Moment)]) {
        // A chain of moments: an end leads into it, and it leads to the beginnings behind it.
        let ends: BTreeMap<Moment, usize> = times.iter().map(|time| (time.2, time.0)).collect();
        let chain = self.after.len();
        for (index, transaction) in ends.values().enumerate() {
            self.after.push(Vec::new());
            self.add(*transaction, chain + index);
            if index > 0 {
                self.add(chain + index - 1, chain + index);
            }
        }
        for (transaction, start, _) in times {
            let before = ends.range(..start).count();
            if before > 0 {
                self.add(chain + before - 1, *transaction);
            }
        }
    }

    /// Says which of them go round in a circle, if some do.
    pub fn check(&self) -> Verdict {
        let mut missing = vec![0usize; self.after.len()];
        self.after
            .iter()
            .flatten()
            .for_each(|then| missing[*then] += 1);
        let mut ready: Vec<usize> = (0..missing.len())
            .filter(|one| missing[*one] == 0)
            .collect();
        let mut done = 0;
        while let Some(one) = ready.pop() {
            done += 1;
            for then in &self.after[one] {
                missing[*then] -= 1;
                if missing[*then] == 0 {
                    ready.push(*then);
                }
            }
        }
        if done == missing.len() {
            return Ok(());
        }
        let circle: Vec<usize> = (0..missing.len()).filter(|one| missing[*one] > 0).collect();
        Err(format!("no order fits transactions {circle:?}"))
    }
}

#[test]
fn a_register_tells_lost_stale_and_foreign_values_from_good_ones() {
    let value = |text: &str| Some(Rc::new(text.as_bytes().to_vec()));
    let mut register = Register::new();
    let a = register.intend(value("a"), 1);
    register.acknowledge(a, 2);
    let b = register.intend(value("b"), 3);
    assert!(register.read(&value("a"), 4, 5).is_ok(), "b may be late");
    assert!(register.read(&None, 4, 5).is_err(), "a was acknowledged");
    assert!(register.read(&value("c"), 4, 5).is_err(), "nobody wrote it");
    assert!(register.read(&value("b"), 6, 7).is_ok());
    assert!(
        register.read(&value("a"), 8, 9).is_err(),
        "b was read before"
    );
    register.acknowledge(b, 10);
    let c = register.intend(value("c"), 11);
    assert!(
        register.settle(&value("b"), 12, 13).is_ok(),
        "c was never known"
    );
    assert!(register.read(&value("c"), 14, 15).is_err(), "c is dead");
    register.refuse(c);
    assert!(register.settle(&None, 16, 17).is_err(), "b was there");
}

#[test]
fn a_counter_tells_lost_repeated_and_invented_raises() {
    let mut counter = Counter::default();
    counter.intend();
    counter.intend();
    assert!(counter.acknowledge(1, 1, 2).is_ok());
    assert!(counter.read(0, 3, 4).is_err(), "1 was acknowledged");
    assert!(counter.read(3, 3, 4).is_err(), "two were sent");
    assert!(counter.settle(0, 5, 6).is_err(), "1 was acknowledged");
    assert!(
        counter.settle(2, 5, 6).is_ok(),
        "the other one may have survived"
    );
    counter.intend();
    assert!(counter.acknowledge(2, 7, 8).is_err(), "2 was known before");
    assert!(counter.acknowledge(1, 7, 8).is_err(), "1 was given before");
}

#[test]
fn an_order_is_found_unless_there_is_a_circle() {
    let mut order = Order::new(3);
    order.add(0, 1);
    order.add(1, 2);
    order.add_times(&[(0, 1, 5), (1, 2, 6), (2, 3, 7)]);
    assert!(order.check().is_ok(), "they overlap");
    let mut order = Order::new(2);
    order.add(0, 1);
    order.add_times(&[(0, 5, 6), (1, 1, 4)]);
    assert!(order.check().is_err(), "1 had ended before 0 began");
    let mut order = Order::new(2);
    order.add(0, 1);
    order.add(1, 0);
    assert!(order.check().is_err());
}
