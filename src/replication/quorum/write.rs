//! A write over the replicas of its key. Its version is chosen before this begins, and never again.
//!
//! It goes to every replica that is there, at once. Three things can be said in the end: it was
//! done (as many have synced it as the level asks for); it FAILED, which is said only if no replica
//! and no stand-in can have it; or it is UNKNOWN, which is everything else: it may still appear,
//! and once seen it stays.
//!
//! A hint is the same mutation, synced on a stand-in for a replica that has not stored it. It
//! counts at ONE only, where it is made at once, and there when no replica may store the write any
//! more: what a replica has can be read, a hint cannot. Above ONE it is made when the verdict is
//! given, so that a write can still be said to have failed.

use super::{Level, Ranking, Replica, ReplicaSet, Rules, StandIns, Unavailable};

/// Counts who has stored a write.
#[derive(Clone, Debug)]
pub struct WriteQuorum {
    need: usize,
    all: ReplicaSet,
    /// What came of the replicas themselves.
    direct: Tally,
    /// What came of hints, by the replicas that they are for.
    hints: Tally,
    /// Hints may count.
    does_hint_count: bool,
    /// And do at once, though replicas may still store it.
    does_hint_count_at_once: bool,
    verdict: WriteVerdict,
}

/// What a replica, or a stand-in, has done with a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It is synced there, or something newer is.
    Stored,
    /// It is certainly not there, and no other copy of the request is on its way.
    Refused,
    /// Nobody knows.
    Lost,
}

/// What may be said of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteVerdict {
    /// Nothing yet, or nothing more.
    Wait,
    /// OK: as many have synced it as the level asks for.
    Met,
    /// FAILED: it was certainly not applied, and never will be.
    Failed,
    /// It may or may not appear.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    Left,
    Over,
}

/// What a set of requests has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    asked: ReplicaSet,
    stored: ReplicaSet,
    refused: ReplicaSet,
    /// Not known to be stored, nor to be refused, and not waited for.
    lost: ReplicaSet,
}

impl Tally {
    fn note(&mut self, replica: Replica, ack: Ack) {
        assert!(self.asked.contains(replica), "an answer of one not asked");
        match ack {
            Ack::Stored => {
                self.lost.remove(replica);
                self.stored.insert(replica);
            }
            // What is in doubt stays in doubt: a refusal of what was sent again says nothing of the
            // first.
            Ack::Refused if self.waiting().contains(replica) => self.refused.insert(replica),
            Ack::Lost if self.waiting().contains(replica) => self.lost.insert(replica),
            Ack::Refused | Ack::Lost => {}
        }
    }

    fn waiting(self) -> ReplicaSet {
        let known = self.stored.and(self.refused).and(self.lost);
        self.asked.without(known)
    }

    /// Those that have it or may have it.
    fn traces(self) -> ReplicaSet {
        self.asked.without(self.refused).and(self.stored)
    }
}

impl WriteQuorum {
    /// A write, and the replicas to send it to. If there are too few, nothing is to be sent, and it
    /// has failed.
    pub fn start(
        level: Level,
        ranking: &Ranking,
        rules: Rules,
    ) -> Result<(WriteQuorum, ReplicaSet), Unavailable> {
        let does_hint_count_at_once = rules.stand_ins == StandIns::Always;
        let does_hint_count = level == Level::One || does_hint_count_at_once;
        let need = level.need(ranking.replicas(), rules);
        if !does_hint_count {
            ranking.require(need)?;
        }
        let direct = Tally {
            asked: ranking.live_set(),
            ..Tally::default()
        };
        let write = WriteQuorum {
            need,
            all: ReplicaSet::first(ranking.replicas()),
            direct,
            hints: Tally::default(),
            does_hint_count,
            does_hint_count_at_once,
            verdict: WriteVerdict::Wait,
        };
        Ok((write, direct.asked))
    }

    /// `replica` has answered, or will not.
    pub fn on_ack(&mut self, replica: Replica, ack: Ack) -> WriteVerdict {
        self.direct.note(replica, ack);
        self.settle(Time::Left)
    }

    /// The stand-in that was to keep a hint for `replica` has answered, or will not.
    pub fn on_hint(&mut self, replica: Replica, ack: Ack) -> WriteVerdict {
        self.hints.note(replica, ack);
        self.settle(Time::Left)
    }

    /// It has taken too long: nobody waits for an answer any more.
    pub fn on_deadline(&mut self) -> WriteVerdict {
        for tally in [&mut self.direct, &mut self.hints] {
            tally.lost = tally.lost.and(tally.waiting());
        }
        self.settle(Time::Over)
    }

    /// The replicas for which a stand-in should now keep a hint; each is named once. To be asked
    /// after every verdict, and after every failure that comes later. None if the write has failed:
    /// it must not appear.
    pub fn hints(&mut self) -> ReplicaSet {
        let is_time = match self.verdict {
            WriteVerdict::Met | WriteVerdict::Unknown => true,
            WriteVerdict::Wait => self.does_hint_count,
            WriteVerdict::Failed => false,
        };
        if !is_time {
            return ReplicaSet::NONE;
        }
        let has_it_or_may = self.direct.stored.and(self.direct.waiting());
        let now = self.all.without(has_it_or_may).without(self.hints.asked);
        self.hints.asked = self.hints.asked.and(now);
        now
    }

    /// The replicas that have synced it so far.
    pub fn stored(&self) -> ReplicaSet {
        self.direct.stored
    }

    fn settle(&mut self, time: Time) -> WriteVerdict {
        if self.verdict != WriteVerdict::Wait {
            return WriteVerdict::Wait;
        }
        let (mut stored, mut open) = (self.direct.stored, self.direct.waiting());
        if self.does_hint_count {
            if open.is_empty() || self.does_hint_count_at_once {
                stored = stored.and(self.hints.stored);
            }
            let given_up = self.hints.refused.and(self.hints.lost);
            open = open.and(self.all.without(given_up));
        }
        let has_traces = !self.direct.traces().is_empty() || !self.hints.traces().is_empty();
        let is_waiting = !self.direct.waiting().is_empty() || !self.hints.waiting().is_empty();
        self.verdict = match stored.len() {
            enough if enough >= self.need => WriteVerdict::Met,
            _ if time == Time::Left && stored.and(open).len() >= self.need => WriteVerdict::Wait,
            _ if !has_traces => WriteVerdict::Failed,
            // Nobody is known to have it, and those who were asked may all say that they have not.
            0 if is_waiting && self.doubts().is_empty() => WriteVerdict::Wait,
            _ => WriteVerdict::Unknown,
        };
        self.verdict
    }

    fn doubts(&self) -> ReplicaSet {
        self.direct.lost.and(self.hints.lost).and(self.hints.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reach;
    use super::*;

    const LIVE: Reach = Reach::Live { latency_us: 100 };

    fn start(level: Level, reach: &[Reach]) -> Result<WriteQuorum, Unavailable> {
        let ranking = Ranking::new(reach);
        let (write, sent) = WriteQuorum::start(level, &ranking, Rules::default())?;
        assert_eq!(sent.len(), ranking.live().len(), "it goes to all at once");
        Ok(write)
    }

    fn set(places: &[u8]) -> ReplicaSet {
        places.iter().copied().map(Replica).collect()
    }

    /// Else an acknowledged write might be on fewer replicas than its level names.
    #[test]
    fn each_level_waits_for_its_count_and_counts_a_replica_once() {
        for (level, need) in [(Level::One, 1), (Level::Quorum, 2), (Level::All, 3)] {
            let mut write = start(level, &[Reach::Own, LIVE, LIVE]).expect("all live");
            for place in 0..need {
                let again = (0..place).map(|place| write.on_ack(Replica(place), Ack::Stored));
                assert!(
                    again
                        .collect::<Vec<_>>()
                        .iter()
                        .all(|verdict| *verdict == WriteVerdict::Wait)
                );
                let verdict = write.on_ack(Replica(place), Ack::Stored);
                let is_last = place + 1 == need;
                assert_eq!(
                    verdict == WriteVerdict::Met,
                    is_last,
                    "{level:?} after {place}"
                );
            }
            assert_eq!(
                write.on_deadline(),
                WriteVerdict::Wait,
                "the verdict is given once"
            );
        }
    }

    /// Else a client would be told that a write failed, and would see it later.
    #[test]
    fn a_write_has_failed_only_if_everyone_who_was_asked_has_refused() {
        let reach = [Reach::Own, LIVE, LIVE];
        let mut write = start(Level::Quorum, &reach).expect("all live");
        assert_eq!(write.on_ack(Replica(0), Ack::Refused), WriteVerdict::Wait);
        assert_eq!(
            write.on_ack(Replica(1), Ack::Refused),
            WriteVerdict::Wait,
            "the third may have it"
        );
        assert_eq!(write.on_ack(Replica(2), Ack::Refused), WriteVerdict::Failed);
        assert_eq!(
            write.hints(),
            ReplicaSet::NONE,
            "a hint would make it appear"
        );

        let mut write = start(Level::Quorum, &reach).expect("all live");
        write.on_ack(Replica(0), Ack::Refused);
        write.on_ack(Replica(1), Ack::Refused);
        assert_eq!(write.on_ack(Replica(2), Ack::Stored), WriteVerdict::Unknown);

        let mut write = start(Level::Quorum, &reach).expect("all live");
        write.on_ack(Replica(0), Ack::Lost);
        assert_eq!(write.on_ack(Replica(0), Ack::Refused), WriteVerdict::Wait);
        let verdict = write.on_ack(Replica(1), Ack::Refused);
        assert_eq!(
            verdict,
            WriteVerdict::Unknown,
            "the first copy of the request is in doubt"
        );
    }

    #[test]
    fn a_write_that_runs_out_of_time_is_unknown() {
        let mut write = start(Level::Quorum, &[Reach::Own, LIVE, LIVE]).expect("all live");
        write.on_ack(Replica(0), Ack::Stored);
        assert_eq!(write.on_deadline(), WriteVerdict::Unknown);
        assert_eq!(write.hints(), set(&[1, 2]), "it may as well be everywhere");
        assert_eq!(write.on_ack(Replica(1), Ack::Stored), WriteVerdict::Wait);
        assert_eq!(write.stored(), set(&[0, 1]), "what comes late is counted");
    }

    #[test]
    fn too_few_live_replicas_fail_a_write_before_anything_is_sent() {
        let reach = [Reach::Own, Reach::Absent, Reach::Absent];
        let unavailable = |need| Unavailable { need, live: 1 };
        assert_eq!(
            start(Level::Quorum, &reach).map(|_| ()),
            Err(unavailable(2))
        );
        assert_eq!(start(Level::All, &reach).map(|_| ()), Err(unavailable(3)));
        assert!(start(Level::One, &reach).is_ok());
    }

    /// Else QUORUM reads would miss an acknowledged write whose majority was made of stand-ins.
    #[test]
    fn a_hint_counts_at_one_only() {
        let absent = [Reach::Absent; 3];
        let mut write = start(Level::One, &absent).expect("a stand-in will do");
        assert_eq!(write.hints(), set(&[0, 1, 2]));
        assert_eq!(write.hints(), ReplicaSet::NONE, "each is named once");
        assert_eq!(write.on_hint(Replica(1), Ack::Refused), WriteVerdict::Wait);
        assert_eq!(write.on_hint(Replica(2), Ack::Stored), WriteVerdict::Met);

        let mut write = start(Level::Quorum, &[LIVE, LIVE, Reach::Absent]).expect("two are live");
        assert_eq!(write.hints(), ReplicaSet::NONE, "it may still fail");
        write.on_ack(Replica(0), Ack::Stored);
        assert_eq!(write.on_ack(Replica(1), Ack::Lost), WriteVerdict::Unknown);
        assert_eq!(write.hints(), set(&[1, 2]));
        assert_eq!(write.on_hint(Replica(1), Ack::Stored), WriteVerdict::Wait);
    }

    /// Else who writes at ONE could find nothing at ONE, though a replica is there.
    #[test]
    fn a_hint_counts_when_no_replica_may_store_the_write_any_more() {
        let one_of_three = [LIVE, Reach::Absent, Reach::Absent];
        for ack in [Ack::Stored, Ack::Refused, Ack::Lost] {
            let mut write = start(Level::One, &one_of_three).expect("one is live");
            assert_eq!(write.hints(), set(&[1, 2]));
            assert_eq!(write.on_hint(Replica(1), Ack::Stored), WriteVerdict::Wait);
            assert_eq!(write.on_ack(Replica(0), ack), WriteVerdict::Met, "{ack:?}");
        }
        let mut write = start(Level::One, &one_of_three).expect("one is live");
        assert_eq!(write.hints(), set(&[1, 2]));
        assert_eq!(write.on_hint(Replica(1), Ack::Stored), WriteVerdict::Wait);
        assert_eq!(write.on_deadline(), WriteVerdict::Met, "the hint is synced");
    }

    #[test]
    fn hints_that_are_all_refused_fail_a_write_that_no_replica_took() {
        let mut write = start(Level::One, &[LIVE, Reach::Absent]).expect("one is live");
        assert_eq!(write.hints(), set(&[1]));
        assert_eq!(write.on_hint(Replica(1), Ack::Refused), WriteVerdict::Wait);
        assert_eq!(write.on_ack(Replica(0), Ack::Refused), WriteVerdict::Wait);
        assert_eq!(
            write.hints(),
            set(&[0]),
            "what a live replica refuses is kept for it, too"
        );
        assert_eq!(
            write.on_hint(Replica(0), Ack::Refused),
            WriteVerdict::Failed
        );
    }

    #[test]
    fn a_replica_that_fails_after_the_verdict_gets_its_hint() {
        let mut write = start(Level::Quorum, &[Reach::Own, LIVE, LIVE]).expect("all live");
        write.on_ack(Replica(0), Ack::Stored);
        assert_eq!(write.on_ack(Replica(1), Ack::Stored), WriteVerdict::Met);
        assert_eq!(
            write.hints(),
            ReplicaSet::NONE,
            "the third may be about to answer"
        );
        assert_eq!(write.on_ack(Replica(2), Ack::Lost), WriteVerdict::Wait);
        assert_eq!(write.hints(), set(&[2]));
    }
}
