//! Verification: what each record may be read as. Pure, and of one load thread alone.
//!
//! A record has one write under way at most, so its writes have an order, and the answers a read
//! may give follow from two numbers: it may not be older than what was acknowledged before the read
//! was sent, nor newer than what was sent before its answer came. A write whose outcome is not
//! known (the connection broke, the server said so) may show from then on, at any time, or never;
//! so may one that was tried a second time and then acknowledged, as its first try may still be on
//! its way.
//!
//! Three kinds of wrong, counted apart: **lost**, nothing is there although a write was
//! acknowledged;
//! **stale**, an older value than was acknowledged; **corrupt**, what nobody wrote there.

use std::collections::BTreeSet;

use crate::content::Stamp;

/// Writes in doubt that are told from others. What comes on top makes all later writes of its
/// record doubtful.
const DOUBTS_MAX: usize = 1 << 20;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Certainly not.
    Refused,
    Unknown,
}

/// Which write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Value,
    /// A value that goes away by itself.
    Expiring,
    Delete,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Absent,
    Value(Stamp),
    /// What is no value of ours, or is damaged.
    Damaged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Sound,
    Lost,
    Stale,
    Corrupt,
}

/// Sequence numbers of one record; 0 for none.
#[derive(Clone, Copy, Default)]
struct Cell {
    sent: u32,
    acknowledged: u32,
    /// The first write in doubt that there was no room for in the ledger.
    doubtful: u32,
    /// The last delete that was not refused.
    deleted: u32,
    under_way: Option<Write>,
    may_expire: bool,
    /// A delete is in doubt.
    may_vanish: bool,
}

const _: () = assert!(size_of::<Cell>() <= 24);

/// What one load thread wrote to its records.
pub struct Ledger {
    run: u32,
    cells: Vec<Cell>,
    /// Records and their writes whose outcome is not known.
    doubts: BTreeSet<(u64, u32)>,
}

impl Ledger {
    pub fn new(records: u64, run: u32) -> Ledger {
        let records = usize::try_from(records).expect("records fit into memory");
        Ledger {
            run,
            cells: vec![Cell::default(); records],
            doubts: BTreeSet::new(),
        }
    }

    /// Begins a write: its number; `None` while another one of this record is under way.
    pub fn begin(&mut self, record: u64, write: Write) -> Option<u32> {
        let cell = &mut self.cells[record as usize];
        if cell.under_way.is_some() {
            return None;
        }
        cell.under_way = Some(write);
        cell.may_expire |= write == Write::Expiring;
        cell.sent += 1;
        Some(cell.sent)
    }

    /// The write that is under way may have been made, or be made later, whatever is known of it in
    /// the end.
    pub fn doubt(&mut self, record: u64) {
        let cell = &mut self.cells[record as usize];
        cell.may_vanish |= cell.under_way == Some(Write::Delete);
        if self.doubts.len() < DOUBTS_MAX {
            self.doubts.insert((record, cell.sent));
        } else if cell.doubtful == 0 {
            cell.doubtful = cell.sent;
        }
    }

    /// Ends the write that is under way.
    pub fn end(&mut self, record: u64, outcome: Outcome) {
        if outcome == Outcome::Unknown {
            self.doubt(record);
        }
        let cell = &mut self.cells[record as usize];
        let write = cell.under_way.take().expect("a write that ends was begun");
        if outcome == Outcome::Done {
            cell.acknowledged = cell.sent;
        }
        if write == Write::Delete && outcome != Outcome::Refused {
            cell.deleted = cell.sent;
        }
    }

    /// What a read that is sent now may not fall behind.
    pub fn floor(&self, record: u64) -> u32 {
        self.cells[record as usize].acknowledged
    }

    /// Judges a read that was sent when the record's floor was `floor`.
    pub fn judge(&self, record: u64, number: u64, floor: u32, seen: Seen) -> Verdict {
        let cell = &self.cells[record as usize];
        assert!(floor <= cell.acknowledged && cell.acknowledged <= cell.sent);
        // A late write may still come to light.
        let is_doubtful = |seq: u32| {
            let is_beyond = cell.doubtful != 0 && seq >= cell.doubtful;
            is_beyond || self.doubts.contains(&(record, seq))
        };
        match seen {
            Seen::Damaged => Verdict::Corrupt,
            Seen::Absent => {
                let is_deleted = cell.deleted >= floor || cell.may_vanish;
                let is_being_deleted = cell.under_way == Some(Write::Delete);
                match floor == 0 || is_deleted || is_being_deleted || cell.may_expire {
                    true => Verdict::Sound,
                    false => Verdict::Lost,
                }
            }
            Seen::Value(stamp) if stamp.record != number => Verdict::Corrupt,
            // Of another run of the load generator.
            Seen::Value(stamp) if stamp.run != self.run => match floor == 0 {
                true => Verdict::Sound,
                false => Verdict::Stale,
            },
            Seen::Value(stamp) if stamp.seq > cell.sent || stamp.seq == 0 => Verdict::Corrupt,
            Seen::Value(stamp) => match stamp.seq >= floor || is_doubtful(stamp.seq) {
                true => Verdict::Sound,
                false => Verdict::Stale,
            },
        }
    }

    /// The next record, from `from` on, with a write that was acknowledged.
    pub fn next_acknowledged(&self, from: u64) -> Option<u64> {
        let rest = self.cells.get(from as usize..)?;
        let found = rest.iter().position(|cell| cell.acknowledged > 0)?;
        Some(from + found as u64)
    }
}

/// What one load thread added to its counters, each by one.
pub struct Counters {
    cells: Vec<Counter>,
}

#[derive(Clone, Copy, Default)]
struct Counter {
    /// None until the first answer: what it began with is not ours to know.
    value: Option<i64>,
    /// Additions whose outcome is not known and that have not shown.
    doubtful: u32,
    is_under_way: bool,
}

impl Counters {
    pub fn new(records: u64) -> Counters {
        let records = usize::try_from(records).expect("records fit into memory");
        Counters {
            cells: vec![Counter::default(); records],
        }
    }

    /// Begins an addition; false while another one to this counter is under way.
    pub fn begin(&mut self, record: u64) -> bool {
        let was = std::mem::replace(&mut self.cells[record as usize].is_under_way, true);
        !was
    }

    /// An addition was answered with the counter's new value.
    pub fn added(&mut self, record: u64, value: i64) -> Verdict {
        let cell = &mut self.cells[record as usize];
        assert!(
            std::mem::replace(&mut cell.is_under_way, false),
            "it was begun"
        );
        let expected = cell.value.map(|before| before.saturating_add(1));
        cell.advance(expected, value)
    }

    /// An addition was not answered with a value.
    pub fn failed(&mut self, record: u64, outcome: Outcome) {
        assert!(outcome != Outcome::Done);
        let cell = &mut self.cells[record as usize];
        assert!(
            std::mem::replace(&mut cell.is_under_way, false),
            "it was begun"
        );
        cell.doubtful += u32::from(outcome == Outcome::Unknown);
    }

    /// Judges a value that is read while nothing is under way.
    pub fn judge(&mut self, record: u64, value: Option<i64>) -> Verdict {
        let cell = &mut self.cells[record as usize];
        match value {
            None if cell.value.is_some() => Verdict::Lost,
            None => Verdict::Sound,
            Some(value) => cell.advance(cell.value, value),
        }
    }

    /// The next counter, from `from` on, with an addition that was acknowledged.
    pub fn next_acknowledged(&self, from: u64) -> Option<u64> {
        let rest = self.cells.get(from as usize..)?;
        let found = rest.iter().position(|cell| cell.value.is_some())?;
        Some(from + found as u64)
    }
}

impl Counter {
    /// `value` is seen where `expected`, or as many more as are in doubt, should be.
    fn advance(&mut self, expected: Option<i64>, value: i64) -> Verdict {
        self.value = Some(value);
        let Some(expected) = expected else {
            return Verdict::Sound;
        };
        let more = value.saturating_sub(expected);
        if more < 0 {
            return Verdict::Lost;
        }
        match self
            .doubtful
            .checked_sub(u32::try_from(more).unwrap_or(u32::MAX))
        {
            Some(left) => {
                self.doubtful = left;
                Verdict::Sound
            }
            None => Verdict::Corrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u32 = 9;

    fn value(seq: u32) -> Seen {
        Seen::Value(Stamp {
            record: 70,
            run: RUN,
            seq,
        })
    }

    /// A ledger whose record 0, number 70, was written `writes` times.
    fn written(writes: u32) -> Ledger {
        let mut ledger = Ledger::new(1, RUN);
        for _ in 0..writes {
            write(&mut ledger, Write::Value, Outcome::Done);
        }
        ledger
    }

    fn write(ledger: &mut Ledger, write: Write, outcome: Outcome) {
        ledger.begin(0, write).expect("none is under way");
        ledger.end(0, outcome);
    }

    fn judge(ledger: &Ledger, seen: Seen) -> Verdict {
        ledger.judge(0, 70, ledger.floor(0), seen)
    }

    /// The three kinds of wrong: were one taken for another or passed, a server's fault would not
    /// be seen.
    #[test]
    fn lost_stale_and_corrupt_are_told_apart() {
        let ledger = written(3);
        assert_eq!(judge(&ledger, value(3)), Verdict::Sound);
        assert_eq!(judge(&ledger, value(2)), Verdict::Stale);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Lost);
        assert_eq!(judge(&ledger, Seen::Damaged), Verdict::Corrupt);
        assert_eq!(
            judge(&ledger, value(4)),
            Verdict::Corrupt,
            "nobody has written it yet"
        );
        assert_eq!(judge(&ledger, value(0)), Verdict::Corrupt);
        let of_another = Seen::Value(Stamp {
            record: 71,
            run: RUN,
            seq: 3,
        });
        assert_eq!(judge(&ledger, of_another), Verdict::Corrupt);
        let of_another_run = Seen::Value(Stamp {
            record: 70,
            run: RUN + 1,
            seq: 3,
        });
        assert_eq!(judge(&ledger, of_another_run), Verdict::Stale);
        assert_eq!(judge(&written(0), of_another_run), Verdict::Sound);
        assert_eq!(judge(&written(0), Seen::Absent), Verdict::Sound);
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_but_nothing_older() {
        let mut ledger = written(2);
        let floor = ledger.floor(0);
        assert_eq!(ledger.begin(0, Write::Value), Some(3));
        assert_eq!(ledger.begin(0, Write::Value), None, "one at a time");
        ledger.end(0, Outcome::Done);
        for (seq, verdict) in [
            (1, Verdict::Stale),
            (2, Verdict::Sound),
            (3, Verdict::Sound),
            (4, Verdict::Corrupt),
        ] {
            assert_eq!(ledger.judge(0, 70, floor, value(seq)), verdict, "seq {seq}");
        }
        assert_eq!(
            judge(&ledger, value(2)),
            Verdict::Stale,
            "a read sent after the answer"
        );
    }

    #[test]
    fn deletes_are_writes_whose_undoing_is_stale() {
        let mut ledger = written(2);
        let floor = ledger.floor(0);
        ledger.begin(0, Write::Delete);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Sound);
        assert_eq!(judge(&ledger, value(2)), Verdict::Sound);
        ledger.end(0, Outcome::Done);
        assert_eq!(ledger.judge(0, 70, floor, value(2)), Verdict::Sound);
        assert_eq!(judge(&ledger, value(2)), Verdict::Stale, "it came back");
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Sound);
        write(&mut ledger, Write::Value, Outcome::Done);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Lost);
        write(&mut ledger, Write::Delete, Outcome::Refused);
        assert_eq!(
            judge(&ledger, Seen::Absent),
            Verdict::Lost,
            "the delete was refused"
        );
    }

    #[test]
    fn a_write_in_doubt_may_show_at_any_time_or_never() {
        let mut ledger = written(2);
        write(&mut ledger, Write::Value, Outcome::Unknown);
        assert_eq!(judge(&ledger, value(2)), Verdict::Sound);
        assert_eq!(judge(&ledger, value(3)), Verdict::Sound);
        write(&mut ledger, Write::Value, Outcome::Done);
        assert_eq!(judge(&ledger, value(3)), Verdict::Sound, "it came late");
        assert_eq!(judge(&ledger, value(2)), Verdict::Stale);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Lost);
        let mut ledger = written(1);
        write(&mut ledger, Write::Delete, Outcome::Unknown);
        write(&mut ledger, Write::Value, Outcome::Done);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Sound);
    }

    /// Were all that follows a doubtful write excused with it, a cluster that falls back after a
    /// fault would look sound.
    #[test]
    fn a_doubt_excuses_its_own_write_and_no_later_one() {
        let mut ledger = written(2);
        write(&mut ledger, Write::Value, Outcome::Unknown);
        write(&mut ledger, Write::Value, Outcome::Done);
        write(&mut ledger, Write::Value, Outcome::Done);
        assert_eq!(judge(&ledger, value(3)), Verdict::Sound);
        assert_eq!(judge(&ledger, value(4)), Verdict::Stale);
        // One that was tried twice, and acknowledged the second time.
        ledger.begin(0, Write::Value);
        ledger.doubt(0);
        ledger.end(0, Outcome::Done);
        assert_eq!(judge(&ledger, value(5)), Verdict::Stale);
        write(&mut ledger, Write::Value, Outcome::Done);
        assert_eq!(
            judge(&ledger, value(6)),
            Verdict::Sound,
            "its first try came late"
        );
    }

    #[test]
    fn what_expires_may_be_absent() {
        let mut ledger = written(1);
        write(&mut ledger, Write::Expiring, Outcome::Done);
        assert_eq!(judge(&ledger, Seen::Absent), Verdict::Sound);
        assert_eq!(judge(&ledger, value(1)), Verdict::Stale);
    }

    #[test]
    fn the_read_back_goes_over_all_that_was_acknowledged() {
        let mut ledger = Ledger::new(5, RUN);
        for (record, outcome) in [
            (1, Outcome::Done),
            (2, Outcome::Unknown),
            (4, Outcome::Done),
        ] {
            ledger.begin(record, Write::Value);
            ledger.end(record, outcome);
        }
        assert_eq!(ledger.next_acknowledged(0), Some(1));
        assert_eq!(ledger.next_acknowledged(2), Some(4));
        assert_eq!(ledger.next_acknowledged(5), None);
    }

    /// A counter that forgets one addition, or counts a retried one twice, is off by one for ever.
    #[test]
    fn counters_lose_nothing_and_count_nothing_twice() {
        let mut counters = Counters::new(1);
        let add = |counters: &mut Counters, value| {
            assert!(counters.begin(0));
            counters.added(0, value)
        };
        assert_eq!(
            add(&mut counters, 41),
            Verdict::Sound,
            "whatever it began with"
        );
        assert_eq!(add(&mut counters, 42), Verdict::Sound);
        assert_eq!(add(&mut counters, 42), Verdict::Lost);
        assert_eq!(add(&mut counters, 44), Verdict::Corrupt);
        assert!(counters.begin(0) && !counters.begin(0));
        counters.failed(0, Outcome::Unknown);
        assert_eq!(
            add(&mut counters, 46),
            Verdict::Sound,
            "the doubtful one was done"
        );
        assert_eq!(
            add(&mut counters, 48),
            Verdict::Corrupt,
            "it was done twice"
        );
        assert!(counters.begin(0));
        counters.failed(0, Outcome::Refused);
        assert_eq!(counters.judge(0, Some(48)), Verdict::Sound);
        assert_eq!(counters.judge(0, Some(47)), Verdict::Lost);
        assert_eq!(counters.judge(0, None), Verdict::Lost);
    }
}
