//! How long each record was asked for in vain. Pure, and of one load thread alone.
//!
//! A gap begins when a request is due that no success has followed yet, and ends with the next
//! success with the same record: of a request that came later, or was tried again elsewhere, or the
//! same one if it was only slow. So it does not depend on how often a record happens to be asked
//! for. Reads and writes are told apart; besides, all records together are one.

/// Nobody has asked since the last success.
const NEVER: u64 = u64::MAX;

/// A stretch of time without a success. Times are nanoseconds of the phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    pub nanos: u64,
    pub from: u64,
    /// As its thread counts it.
    pub record: u64,
}

impl Gap {
    fn longer(self, other: Gap) -> Gap {
        if other.nanos > self.nanos {
            other
        } else {
            self
        }
    }
}

/// The longest gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Longest {
    /// Of any one record.
    pub reads: Gap,
    pub writes: Gap,
    /// Of all records together, reads or writes.
    pub all: Gap,
}

impl Longest {
    pub fn merge(&mut self, other: Longest) {
        self.reads = self.reads.longer(other.reads);
        self.writes = self.writes.longer(other.writes);
        self.all = self.all.longer(other.all);
    }
}

#[derive(Clone, Copy)]
struct Cell {
    since: u64,
    waiting: u32,
}

impl Cell {
    const NEW: Cell = Cell {
        since: NEVER,
        waiting: 0,
    };

    fn ask(&mut self, due: u64) {
        self.waiting += 1;
        self.since = self.since.min(due);
    }

    fn end(&mut self) {
        assert!(self.waiting > 0, "what ends was asked for");
        self.waiting -= 1;
    }

    /// A success at `now`.
    fn succeed(&mut self, record: u64, now: u64) -> Gap {
        self.end();
        let gap = self.up_to(record, now);
        // Those that still wait have waited in vain only since this success.
        self.since = if self.waiting > 0 { now } else { NEVER };
        gap
    }

    fn up_to(&self, record: u64, now: u64) -> Gap {
        let since = self.since.min(now);
        Gap {
            nanos: now - since,
            from: since,
            record,
        }
    }
}

/// See the head of the file.
pub struct Gaps {
    reads: Vec<Cell>,
    writes: Vec<Cell>,
    all: Cell,
}

impl Gaps {
    pub fn new(records: u64) -> Gaps {
        let records = usize::try_from(records).expect("records fit into memory");
        Gaps {
            reads: vec![Cell::NEW; records],
            writes: vec![Cell::NEW; records],
            all: Cell::NEW,
        }
    }

    fn cell(&mut self, record: u64, is_read: bool) -> &mut Cell {
        match is_read {
            true => &mut self.reads[record as usize],
            false => &mut self.writes[record as usize],
        }
    }

    /// A request was due.
    pub fn asked(&mut self, record: u64, is_read: bool, due: u64) {
        self.cell(record, is_read).ask(due);
        self.all.ask(due);
    }

    /// It was answered, not with an error.
    pub fn answered(&mut self, record: u64, is_read: bool, now: u64, longest: &mut Longest) {
        let gap = self.cell(record, is_read).succeed(record, now);
        let all = self.all.succeed(record, now);
        let (reads, writes) = match is_read {
            true => (gap, Gap::default()),
            false => (Gap::default(), gap),
        };
        longest.merge(Longest { reads, writes, all });
    }

    /// It has failed for good.
    pub fn failed(&mut self, record: u64, is_read: bool) {
        self.cell(record, is_read).end();
        self.all.end();
    }

    /// Nothing more is asked for: gaps that have not ended end now.
    pub fn finish(&mut self, now: u64, longest: &mut Longest) {
        for (cells, is_read) in [(&mut self.reads, true), (&mut self.writes, false)] {
            for (record, cell) in cells.iter_mut().enumerate() {
                let gap = cell.up_to(record as u64, now);
                let seen = match is_read {
                    true => &mut longest.reads,
                    false => &mut longest.writes,
                };
                *seen = seen.longer(gap);
                *cell = Cell::NEW;
            }
        }
        longest.all = longest.all.longer(self.all.up_to(0, now));
        self.all = Cell::NEW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gap that is measured between successes would tell how seldom a record is asked for.
    #[test]
    fn a_gap_is_the_time_in_which_somebody_asked_in_vain() {
        let (mut gaps, mut longest) = (Gaps::new(2), Longest::default());
        gaps.asked(0, true, 100);
        gaps.answered(0, true, 110, &mut longest);
        gaps.asked(0, true, 10_000);
        gaps.answered(0, true, 10_020, &mut longest);
        assert_eq!(longest.reads.nanos, 20);
        // One fails, the next succeeds: from when the first was due.
        gaps.asked(0, true, 20_000);
        gaps.failed(0, true);
        gaps.asked(0, true, 20_100);
        gaps.answered(0, true, 20_150, &mut longest);
        let gap = Gap {
            nanos: 150,
            from: 20_000,
            record: 0,
        };
        assert_eq!((longest.reads, longest.all), (gap, gap));
        assert_eq!(longest.writes, Gap::default());
    }

    #[test]
    fn a_success_of_another_record_or_kind_ends_no_gap_but_that_of_all() {
        let (mut gaps, mut longest) = (Gaps::new(2), Longest::default());
        gaps.asked(0, true, 0);
        gaps.failed(0, true);
        for (record, is_read) in [(1, true), (0, false)] {
            gaps.asked(record, is_read, 40);
            gaps.answered(record, is_read, 50, &mut longest);
        }
        gaps.asked(0, true, 60);
        gaps.answered(0, true, 70, &mut longest);
        assert_eq!((longest.reads.nanos, longest.all.nanos), (70, 50));
    }

    #[test]
    fn what_waits_beside_a_success_has_waited_since_it() {
        let (mut gaps, mut longest) = (Gaps::new(1), Longest::default());
        gaps.asked(0, false, 0);
        gaps.asked(0, false, 10);
        gaps.answered(0, false, 30, &mut longest);
        gaps.answered(0, false, 50, &mut longest);
        assert_eq!(longest.writes.nanos, 30);
    }

    /// Else a record that never comes back would have no gap at all.
    #[test]
    fn a_gap_without_an_end_lasts_to_the_end_of_the_run() {
        let (mut gaps, mut longest) = (Gaps::new(3), Longest::default());
        gaps.asked(2, false, 500);
        gaps.failed(2, false);
        gaps.finish(2_000, &mut longest);
        assert_eq!((longest.writes.nanos, longest.writes.record), (1_500, 2));
        assert_eq!((longest.all.nanos, longest.reads.nanos), (1_500, 0));
        gaps.finish(9_000, &mut longest);
        assert_eq!(longest.writes.nanos, 1_500, "it begins anew");
    }
}
