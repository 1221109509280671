//! The clock barrier: a majority tells its clocks before a QUORUM or ALL write takes its version.
//!
//! Whoever acknowledged an earlier write is in that majority, and its clock is not behind what it
//! stored. So a version above all that was heard is above every write that was acknowledged before
//! the barrier began. One barrier serves every write that was waiting when it began, and none that
//! came later.

use super::{Level, Ranking, Replica, ReplicaSet, Rules, Unavailable};
use crate::types::Version;

/// Hears the clocks of a majority.
#[derive(Clone, Debug)]
pub struct Barrier {
    need: usize,
    waiting: ReplicaSet,
    heard: ReplicaSet,
    highest: Version,
    is_settled: bool,
}

/// What comes of a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierVerdict {
    /// Nothing yet, or nothing more.
    Wait,
    /// The clock that makes the versions must have observed `highest`, and then makes them.
    Met {
        /// The highest clock that was told.
        highest: Version,
    },
    /// Too few told their clocks. No version was taken and nothing written: the writes have FAILED.
    Failed,
}

impl Barrier {
    /// A barrier for a placement, and the replicas to ask for their clocks: all that are there, as
    /// it is a few bytes.
    pub fn start(ranking: &Ranking, rules: Rules) -> Result<(Barrier, ReplicaSet), Unavailable> {
        let need = Level::Quorum.need(ranking.replicas(), rules);
        ranking.require(need)?;
        let barrier = Barrier {
            need,
            waiting: ranking.live_set(),
            heard: ReplicaSet::NONE,
            highest: Version::ZERO,
            is_settled: false,
        };
        Ok((barrier, ranking.live_set()))
    }

    /// `replica` has told its clock.
    pub fn on_clock(&mut self, replica: Replica, clock: Version) -> BarrierVerdict {
        if self.waiting.contains(replica) {
            self.waiting.remove(replica);
            self.heard.insert(replica);
            self.highest = self.highest.max(clock);
        }
        self.settle()
    }

    /// `replica` will not tell it.
    pub fn on_failure(&mut self, replica: Replica) -> BarrierVerdict {
        self.waiting.remove(replica);
        self.settle()
    }

    /// It has taken too long.
    pub fn on_deadline(&mut self) -> BarrierVerdict {
        self.waiting = ReplicaSet::NONE;
        self.settle()
    }

    fn settle(&mut self) -> BarrierVerdict {
        let verdict = match self.heard.len() {
            _ if self.is_settled => return BarrierVerdict::Wait,
            heard if heard >= self.need => BarrierVerdict::Met {
                highest: self.highest,
            },
            heard if heard + self.waiting.len() < self.need => BarrierVerdict::Failed,
            _ => return BarrierVerdict::Wait,
        };
        self.is_settled = true;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reach;
    use super::*;

    fn clock(clock: u64) -> Version {
        Version {
            clock,
            coordinator: 0,
        }
    }

    /// Else a version might be below one that was acknowledged before.
    #[test]
    fn a_barrier_is_met_by_a_majority_and_tells_its_highest_clock() {
        let live = Reach::Live { latency_us: 1 };
        let ranking = Ranking::new(&[live, Reach::Own, live]);
        let (mut barrier, asked) = Barrier::start(&ranking, Rules::default()).expect("all live");
        assert_eq!(asked, ReplicaSet::first(3));
        assert_eq!(barrier.on_clock(Replica(1), clock(7)), BarrierVerdict::Wait);
        let again = barrier.on_clock(Replica(1), clock(9));
        assert_eq!(again, BarrierVerdict::Wait, "one replica counts once");
        let met = BarrierVerdict::Met { highest: clock(7) };
        assert_eq!(barrier.on_clock(Replica(0), clock(3)), met);
        assert_eq!(barrier.on_clock(Replica(2), clock(8)), BarrierVerdict::Wait);
        assert_eq!(barrier.on_deadline(), BarrierVerdict::Wait, "it was met");
    }

    #[test]
    fn a_barrier_fails_when_a_majority_cannot_be_heard_any_more() {
        let live = Reach::Live { latency_us: 1 };
        let ranking = Ranking::new(&[live, Reach::Own, live]);
        let (mut barrier, _) = Barrier::start(&ranking, Rules::default()).expect("all live");
        assert_eq!(barrier.on_failure(Replica(0)), BarrierVerdict::Wait);
        assert_eq!(barrier.on_failure(Replica(2)), BarrierVerdict::Failed);
        let alone = Ranking::new(&[Reach::Own, Reach::Absent, Reach::Absent]);
        let refused = Barrier::start(&alone, Rules::default()).map(|_| ());
        assert_eq!(refused, Err(Unavailable { need: 2, live: 1 }), "at once");
    }
}
