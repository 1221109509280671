//! What a run is to do, settled before it begins and the same for all of its threads. Pure.

use crate::content::Content;
use crate::keys::{Distribution, Keys};
use crate::schedule::Pace;
use crate::sizes::Sizes;
use crate::tally::Tally;
use crate::workload::{Family, Kind, Mix, Order};

/// How a lock that is still ours is released: by what the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// `EVAL`: a script compares and deletes.
    Script,
    /// Redis 8.4: `DELEX key IFEQ token`.
    DelexIfeq,
    /// Valkey 9: `DELIFEQ key token`.
    Delifeq,
    /// None of them: `DEL`, without comparing.
    Delete,
}

/// Times are nanoseconds.
pub struct Plan {
    pub mix: Mix,
    pub order: Order,
    pub distribution: Distribution,
    /// Records that there are when it begins, of all threads together, and how many more may be
    /// inserted.
    pub records: u64,
    pub inserts_max: u64,
    pub keys: KeysOf,
    pub sizes: Sizes,
    pub content: Content,
    pub ttl_ms: u64,
    pub release: Release,
    pub verify: bool,
    /// Tells the values of this run from those of others.
    pub run: u32,
    pub seed: u64,
    /// Of all threads together.
    pub pace: Pace,
    /// Requests of one client that are on their way at the same time.
    pub pipeline: u32,
    /// How long requests are sent; with none, until each record was written or `requests` were
    /// sent.
    pub duration: Option<u64>,
    pub requests: Option<u64>,
    /// After so long without an answer a request has failed, and its connection is given up.
    pub timeout: u64,
    /// Whether redirections are followed.
    pub is_cluster: bool,
    /// Whether what one server fails is asked of the next.
    pub fails_over: bool,
    /// Whether gaps are measured.
    pub has_gaps: bool,
    /// Whether all operations are remembered, to be explained by one order; there may be several
    /// writes to a record at once.
    pub is_linear: bool,
    /// How many replicas have to have a write before it is done, by WAIT; 0: none, and nobody is
    /// asked.
    pub wait: u32,
}

impl Plan {
    /// Of all kinds that any phase has.
    pub fn empty_tally(&self) -> Tally {
        let follow = [
            (Family::Locks, Kind::Unlock),
            (Family::Counters, Kind::Increment),
        ];
        let follow = follow
            .into_iter()
            .filter(|(family, _)| self.mix.has(*family));
        let always = [Kind::Get, Kind::Set].into_iter();
        Tally::new(
            self.mix
                .kinds()
                .chain(always)
                .chain(follow.map(|(_, kind)| kind)),
        )
    }
}

/// The keys of each family.
pub struct KeysOf {
    values: Keys,
    counters: Keys,
    locks: Keys,
}

impl KeysOf {
    /// Of `key_bytes` each, beginning with `prefix` and a letter that tells the families apart.
    pub fn new(prefix: &str, key_bytes: usize) -> KeysOf {
        KeysOf {
            values: Keys::new(prefix, key_bytes),
            counters: Keys::new(&format!("{prefix}c:"), key_bytes),
            locks: Keys::new(&format!("{prefix}l:"), key_bytes),
        }
    }

    pub fn of(&self, family: Family) -> &Keys {
        match family {
            Family::Values => &self.values,
            Family::Counters => &self.counters,
            Family::Locks => &self.locks,
        }
    }
}

/// Which of all load threads one is, and so which records are its own.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub thread: usize,
    pub threads: usize,
}

impl Share {
    /// Its part of `count` things.
    pub fn part(&self, count: u64) -> u64 {
        let (thread, threads) = (self.thread as u64, self.threads as u64);
        count / threads + u64::from(thread < count % threads)
    }

    /// The number, among all records, of the one that it counts as `own`.
    pub fn number(&self, own: u64) -> u64 {
        own * self.threads as u64 + self.thread as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A record of two threads would be judged by half of its writes; one of none would not be
    /// filled.
    #[test]
    fn every_record_is_of_exactly_one_thread() {
        for (threads, records) in [(1, 10), (3, 10), (4, 4), (7, 100)] {
            let mut seen = BTreeSet::new();
            for thread in 0..threads {
                let share = Share { thread, threads };
                for own in 0..share.part(records) {
                    assert!(
                        seen.insert(share.number(own)),
                        "two threads have one record"
                    );
                }
            }
            assert_eq!(seen, (0..records).collect());
        }
    }
}
