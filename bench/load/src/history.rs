//! What all clients of one load thread asked for and were told, for the judgement whether one order
//! explains it. Pure.
//!
//! It is kept in memory, and bounded: a run ends when it is full.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::content::Stamp;
use crate::ledger::Outcome;
use crate::linear::{self, Action, Operation};

/// Operations of one load thread, of 48 bytes each.
const OPERATIONS_MAX: usize = 10_000_000;
/// Between the phases of a run.
const PAUSE_NANOS: u64 = 1_000_000_000;
/// Faults that are told in full.
const TOLD_MAX: usize = 3;

/// An operation on a record.
pub type Entry = (u64, Operation);

/// See the head of the file.
#[derive(Default)]
pub struct History {
    entries: Vec<Entry>,
    /// When the phase began; in each of them time begins anew.
    base: u64,
}

/// From when to when an operation was under way, by the time of its phase.
#[derive(Clone, Copy)]
pub struct Span {
    pub asked: u64,
    pub answered: u64,
}

impl History {
    /// The last phase ended at `end`, by its own time.
    pub fn begin_phase(&mut self, end: u64) {
        self.base += end + PAUSE_NANOS;
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= OPERATIONS_MAX
    }

    /// A read found this.
    pub fn read(&mut self, record: u64, seen: Option<Stamp>, span: Span) {
        let action = Action::Read(seen.map(|stamp| u64::from(stamp.seq)));
        self.note(record, action, (linear::Outcome::Done, span));
    }

    /// A write of the number `seq`, or a delete, has ended so.
    pub fn wrote(&mut self, record: u64, seq: Option<u32>, outcome: Outcome, span: Span) {
        let outcome = match outcome {
            Outcome::Done => linear::Outcome::Done,
            Outcome::Refused => linear::Outcome::Failed,
            Outcome::Unknown => linear::Outcome::Unknown,
        };
        self.note(record, Action::Write(seq.map(u64::from)), (outcome, span));
    }

    fn note(&mut self, record: u64, action: Action, (outcome, span): (linear::Outcome, Span)) {
        let operation = Operation {
            action,
            asked: self.base + span.asked,
            answered: self.base + span.answered,
            outcome,
        };
        self.entries.push((record, operation));
    }

    /// What has been noted since this was called the last time.
    pub fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }
}

/// The judgement on a history.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Linear {
    pub records: usize,
    pub operations: usize,
    /// Writes of which nobody knows whether they were done.
    pub unknown: usize,
    /// Records whose history no order explains.
    pub wrong: usize,
    /// The first of them, in full.
    pub faults: Vec<String>,
}

/// Judges what all phases and threads have noted. Records are empty before.
pub fn judge<'a>(entries: impl Iterator<Item = &'a Entry>) -> Linear {
    let mut of_record: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for (record, operation) in entries {
        of_record.entry(*record).or_default().push(*operation);
    }
    let mut told = Linear {
        records: of_record.len(),
        ..Linear::default()
    };
    for (record, history) in of_record {
        let unknown = |operation: &&Operation| operation.outcome == linear::Outcome::Unknown;
        told.operations += history.len();
        told.unknown += history.iter().filter(unknown).count();
        if let Err(why) = linear::check(None, &history) {
            told.wrong += 1;
            if told.faults.len() < TOLD_MAX {
                told.faults.push(format!("record {record}: {why}"));
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(asked: u64, answered: u64) -> Span {
        Span { asked, answered }
    }

    fn stamp(seq: u32) -> Option<Stamp> {
        Some(Stamp {
            record: 0,
            run: 1,
            seq,
        })
    }

    /// Phases have clocks that begin anew: were they not put one behind the other, what was written
    /// before would be stale.
    #[test]
    fn a_history_goes_on_from_one_phase_to_the_next() {
        let mut history = History::default();
        history.wrote(0, Some(1), Outcome::Done, span(10, 20));
        history.wrote(0, Some(2), Outcome::Unknown, span(30, 40));
        history.begin_phase(50);
        history.read(0, stamp(1), span(0, 5));
        history.read(0, stamp(2), span(6, 7));
        let entries = history.take();
        let told = judge(entries.iter());
        assert_eq!((told.records, told.operations, told.unknown), (1, 4, 1));
        assert_eq!(told.wrong, 0, "{told:?}");
        history.read(0, stamp(1), span(8, 9));
        let all: Vec<Entry> = entries.into_iter().chain(history.take()).collect();
        let told = judge(all.iter());
        assert_eq!(
            (told.wrong, told.faults.len()),
            (1, 1),
            "it was seen and is gone"
        );
    }

    /// A refusal is a promise, too.
    #[test]
    fn what_was_refused_must_not_be_seen() {
        let mut history = History::default();
        history.wrote(3, Some(1), Outcome::Refused, span(0, 1));
        history.read(3, None, span(2, 3));
        assert_eq!(judge(history.take().iter()).wrong, 0);
        history.wrote(3, Some(1), Outcome::Refused, span(0, 1));
        history.read(3, stamp(1), span(2, 3));
        assert_eq!(judge(history.take().iter()).wrong, 1);
    }
}
