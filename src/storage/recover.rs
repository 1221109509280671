//! What the logs say when a store opens: their entries, put into one order, up to the first gap.
//! Pure.
//!
//! Every write has a number, counted without gaps over the log and the value log together, so the
//! state after a crash is the one after some write: what stands behind a missing number never was
//! acknowledged, nor seen by anybody, and is left out for good: the manifest notes its numbers as
//! void before anything new is written.
//!
//! Invariant: what is taken in is a whole stretch of the order, from `flushed` to the gap. So if an
//! older record of a key is among it, then the newest is, and hides what the tables have.

use std::collections::{BTreeMap, BTreeSet};

use super::Batch;
use super::memtable::{Inserted, Memtable};
use super::record::{KeyRef, Pointer, Record, View};
use super::vlog::Garbage;
use super::wal::format::{Entry, Stream, take_entry};
use super::wal::replay::{End, Found, Read, suspects};
use super::{RECOVERED, open::Undecided};
use crate::error::{Error, Result};
use crate::types::{CoreId, Lsn, Version};

/// A range of numbers, both ends included.
pub type Void = (Lsn, Lsn);

/// An entry that was heard.
enum Said {
    Record(Record),
    Clear(Version),
    Prepare(Undecided),
    Commit(Version),
    Abort(Version),
}

/// What the logs said.
pub struct Heard {
    /// What comes at or before this is in tables.
    flushed: Lsn,
    said: Vec<(Lsn, Said)>,
    /// Where the records of the value log lie, each with its version.
    pub places: Vec<(Pointer, Version)>,
}

/// What follows from it.
#[derive(Default)]
pub struct Recovered {
    /// The newest records.
    pub memtable: Memtable,
    /// Every record at or below this version is dead.
    pub cleared: Version,
    /// No version is higher.
    pub version_max: Version,
    /// Parts of transactions over several cores, by name.
    pub prepared: BTreeMap<Version, Undecided>,
    /// Transactions that are known to hold.
    pub committed: BTreeSet<Version>,
    /// How many entries were taken in.
    pub entries: u64,
    /// The last number that was found, be it void or not.
    pub last: Lsn,
    /// The first number that was not found.
    pub gap: Lsn,
    /// Numbers that never were, found now.
    pub void: Option<Void>,
    /// Values that nobody needs.
    pub garbage: Garbage,
}

impl Heard {
    /// Nothing yet; what comes at or before `flushed` will be left out.
    pub fn new(flushed: Lsn) -> Heard {
        Heard {
            flushed,
            said: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Takes in an entry of `stream`.
    pub fn take(&mut self, stream: Stream, read: Read<'_>) -> Result<()> {
        let said = match read.entry {
            Entry::Record(view) => {
                let mut record = Record::decode(view.bytes()).expect("a view is a record");
                if stream == Stream::Values {
                    let place = place_of(stream, &read, view);
                    self.places.push((place, record.meta().version));
                    if record.pointer().is_some() || record.meta().tombstone {
                        return Err(malformed("a record of the value log has no value"));
                    }
                    record = Record::pointing(record.view(), place);
                } else if view.is_packed() {
                    return Err(malformed("a record of the log is packed"));
                }
                Said::Record(record)
            }
            Entry::Clear(version) => Said::Clear(version),
            Entry::Prepare {
                transaction,
                cores,
                parts,
            } => Said::Prepare(undecided(transaction, cores, read.lsn, parts)?),
            Entry::Commit(transaction) => Said::Commit(transaction),
            Entry::Abort(transaction) => Said::Abort(transaction),
        };
        if read.lsn > self.flushed {
            self.said.push((read.lsn, said));
        }
        Ok(())
    }

    /// Puts all together. `voids` are known from earlier recoveries; `cleared` from the manifest.
    pub fn finish(mut self, cleared: Version, voids: &[Void]) -> Recovered {
        self.said.sort_by_key(|(lsn, _)| *lsn);
        let is_void = |lsn: Lsn| voids.iter().any(|void| (void.0..=void.1).contains(&lsn));
        let gap = first_gap(self.flushed, self.said.iter().map(|(lsn, _)| *lsn), voids);
        let mut recovered = Recovered {
            cleared,
            gap,
            last: self.flushed,
            ..Recovered::default()
        };
        for (_, last) in voids {
            recovered.last = recovered.last.max(*last);
        }
        for (lsn, said) in self.said {
            recovered.last = recovered.last.max(lsn);
            if lsn < gap && !is_void(lsn) {
                recovered.take(said);
            } else if let Said::Record(record) = said {
                // It never was, but its version must not be given again, and its value is garbage.
                recovered.note(&record);
                recovered.drop_value(&record);
            }
        }
        if recovered.last >= gap {
            recovered.void = Some((gap, recovered.last));
        }
        recovered
    }
}

/// Fails if write `gap`, which neither of `logs` has, is one that they say was durable.
pub fn check_gap(gap: Lsn, logs: [&Found; 2]) -> Result<()> {
    let durable = logs.iter().map(|found| found.durable).max();
    if durable < Some(gap) {
        return Ok(());
    }
    let ends = logs.iter().flat_map(|found| found.ends.iter().cloned());
    let suspects = suspects(ends.collect());
    let place = |end: &End| format!("{} at byte {}", end.file.display(), end.offset);
    let places: Vec<String> = suspects.iter().map(place).collect();
    let Some(end) = suspects.into_iter().next() else {
        unreachable!("a batch was read, so its log has an end");
    };
    Err(Error::Corrupt {
        file: end.file,
        offset: end.offset,
        why: format!(
            "write {} is missing, but a batch says that all up to {} were durable; it was in {}",
            gap.0,
            durable.unwrap_or_default().0,
            places.join(" or in ")
        ),
    })
}

/// The first number behind `flushed` that is neither among `lsns`, which rise, nor void.
pub fn first_gap(flushed: Lsn, lsns: impl Iterator<Item = Lsn>, voids: &[Void]) -> Lsn {
    let over_voids = |next: u64| {
        voids.iter().fold(next, |next, (first, last)| {
            match (first.0..=last.0).contains(&next) {
                true => last.0 + 1,
                false => next,
            }
        })
    };
    let mut next = over_voids(flushed.0 + 1);
    for lsn in lsns {
        if lsn.0 > next {
            break;
        }
        if lsn.0 == next {
            next = over_voids(next + 1);
        }
    }
    Lsn(next)
}

fn place_of(stream: Stream, read: &Read<'_>, record: View<'_>) -> Pointer {
    Pointer {
        stream,
        segment: read.segment,
        offset: read.offset as u32,
        length: record.bytes().len() as u32,
        crc: crc32c::crc32c(record.bytes()),
        value_length: record.value_length(),
    }
}

/// Under an intact checksum: a program error, not the disk's.
fn malformed(why: &str) -> Error {
    Error::Setup(why.to_owned())
}

fn undecided(
    transaction: Version,
    cores: Vec<CoreId>,
    lsn: Lsn,
    mut parts: &[u8],
) -> Result<Undecided> {
    let mut batch = Batch::default();
    while !parts.is_empty() {
        match take_entry(&mut parts) {
            Some(Entry::Record(view)) if !view.is_packed() => {
                let record = Record::decode(view.bytes()).expect("a view is a record");
                let position = KeyRef::of(record.key()).position;
                batch.records.push((position, record));
            }
            Some(Entry::Clear(version)) => batch.clear = Some(version),
            _ => return Err(malformed("a prepared part is malformed")),
        }
    }
    Ok(Undecided {
        transaction,
        cores,
        lsn,
        batch,
    })
}

impl Recovered {
    fn take(&mut self, said: Said) {
        self.entries += 1;
        match said {
            Said::Record(record) => self.insert(record),
            Said::Clear(version) => {
                self.cleared = self.cleared.max(version);
                self.version_max = self.version_max.max(version);
                self.memtable = without_cleared(&self.memtable, self.cleared);
            }
            Said::Prepare(part) => {
                let versions = part.batch.records.iter();
                let versions = versions.map(|(_, record)| record.meta().version);
                let versions = versions.chain(part.batch.clear).chain([part.transaction]);
                self.version_max = versions.fold(self.version_max, Version::max);
                self.prepared.insert(part.transaction, part);
            }
            Said::Commit(transaction) => {
                self.committed.insert(transaction);
            }
            Said::Abort(transaction) => {
                self.prepared.remove(&transaction);
            }
        }
    }

    fn note(&mut self, record: &Record) {
        self.version_max = self.version_max.max(record.meta().version);
    }

    fn drop_value(&mut self, record: &Record) {
        if let Some(place) = record.pointer() {
            self.garbage.add(place);
        }
    }

    fn insert(&mut self, record: Record) {
        self.note(&record);
        if record.meta().version <= self.cleared {
            return self.drop_value(&record);
        }
        let position = KeyRef::of(record.key()).position;
        match self.memtable.insert(record.clone(), position, RECOVERED) {
            Inserted::Added => {}
            Inserted::Replaced(old) => self.drop_value(&old.record),
            Inserted::Stale => self.drop_value(&record),
        }
    }
}

/// The records of `memtable` that a clear leaves.
pub fn without_cleared(memtable: &Memtable, cleared: Version) -> Memtable {
    let mut kept = Memtable::new();
    for entry in memtable
        .iter()
        .filter(|entry| entry.record.meta().version > cleared)
    {
        let _ = kept.insert(entry.record.clone(), entry.position, entry.lsn);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::wal::replay::Floor;

    fn gap(flushed: u64, lsns: &[u64], voids: &[(u64, u64)]) -> u64 {
        let voids: Vec<Void> = voids.iter().map(|(a, b)| (Lsn(*a), Lsn(*b))).collect();
        first_gap(Lsn(flushed), lsns.iter().map(|lsn| Lsn(*lsn)), &voids).0
    }

    #[test]
    fn the_first_missing_number_ends_what_is_taken_in() {
        assert_eq!(gap(5, &[], &[]), 6);
        assert_eq!(gap(5, &[6, 7, 7, 8], &[]), 9, "a batch has one number");
        assert_eq!(gap(5, &[7, 8], &[]), 6);
        assert_eq!(gap(5, &[6, 8, 9], &[]), 7);
    }

    #[test]
    fn what_never_was_is_no_gap_later() {
        assert_eq!(gap(5, &[6, 7, 8, 9, 10, 11], &[(7, 10)]), 12);
        assert_eq!(gap(5, &[6, 11, 12], &[(7, 10)]), 13);
        assert_eq!(gap(5, &[11], &[(6, 8), (9, 10)]), 12);
        assert_eq!(gap(5, &[6, 12], &[(7, 10)]), 11, "but a gap behind it is");
        assert_eq!(gap(8, &[9, 11], &[(7, 10)]), 12, "flushed within it");
    }

    fn record(clock: u64, key: &[u8], value: &[u8]) -> Record {
        let meta = crate::storage::record::Meta {
            version: Version {
                clock,
                coordinator: 1,
            },
            expiry: 0,
            tombstone: false,
        };
        Record::new(meta, key, value)
    }

    #[test]
    fn a_write_that_another_log_calls_durable_is_missed() {
        let found = |durable: u64, is_torn: bool, name: &str| Found {
            durable: Lsn(durable),
            ends: vec![End {
                file: name.into(),
                offset: 4096,
                is_torn,
            }],
            ..Found::nothing(Floor::start(CoreId(0), Stream::Records), [].into_iter())
        };
        let check = |gap, torn: bool| {
            check_gap(Lsn(gap), [&found(7, torn, "one"), &found(9, !torn, "two")])
        };
        assert!(check(10, true).is_ok(), "nobody says that it was durable");
        for (gap, is_torn, name) in [(9, true, "one"), (8, false, "two")] {
            let Err(Error::Corrupt { file, .. }) = check(gap, is_torn) else {
                panic!("{gap} was durable, and is not missed");
            };
            assert_eq!(file.to_str(), Some(name), "the torn end is named");
        }
    }

    #[test]
    fn what_stands_behind_a_gap_is_left_out_and_its_numbers_are_void() {
        let mut heard = Heard::new(Lsn(1));
        let mut hear = |stream, lsn, record: &Record| {
            let view = record.view();
            let read = Read {
                lsn: Lsn(lsn),
                segment: crate::storage::wal::format::SegmentId(1),
                offset: lsn * 4096,
                entry: Entry::Record(view),
            };
            heard.take(stream, read).expect("well-formed");
        };
        hear(Stream::Records, 1, &record(1, b"in a table", b"x"));
        hear(Stream::Records, 2, &record(2, b"a", b"x"));
        hear(Stream::Records, 5, &record(5, b"b", b"x"));
        hear(Stream::Values, 3, &record(3, b"c", &[1; 99]));
        hear(Stream::Values, 6, &record(6, b"c", &[2; 99]));
        let recovered = heard.finish(Version::ZERO, &[]);
        let keys: Vec<&[u8]> = recovered.memtable.iter().map(|e| e.record.key()).collect();
        assert_eq!(keys.len(), 2, "number 4 is missing: {keys:?}");
        let held = recovered.memtable.get(&KeyRef::of(b"c")).expect("number 3");
        let place = held
            .record
            .pointer()
            .expect("its value is in the value log");
        assert_eq!(place.offset, 3 * 4096);
        assert_eq!(recovered.void, Some((Lsn(4), Lsn(6))));
        assert_eq!(recovered.version_max.clock, 6, "no version is given twice");
    }
}
