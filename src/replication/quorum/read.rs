//! A read over the replicas of its key, at one moment `now` that the coordinator has chosen for all
//! of them.
//!
//! As many are asked as the level needs, the nearest first: the nearest for the value, the others
//! only for what they hold (version, expiry, kind). Who does not answer is replaced by the next;
//! who is slow is raced by it.
//!
//! Above ONE the newest that was found is returned only when as many replicas as the level needs
//! hold it, or something newer: if the answers do not agree it is written back to those that are
//! behind. Else a later read, which asks others, might find something older. Answers that agree
//! cost one round trip. At ONE the first answer is returned, and those that are found to be behind
//! are repaired in the background.

use smallvec::SmallVec;

use super::{Level, Mistake, REPLICAS_USUAL, Ranking, Replica, ReplicaSet, Rules, Unavailable};
use crate::types::{Meta, UnixMillis};

/// Compares what replicas hold.
#[derive(Clone, Debug)]
pub struct ReadQuorum {
    level: Level,
    need: usize,
    now: UnixMillis,
    ranking: Ranking,
    does_write_back: bool,
    /// Of the ranking's live replicas, how many were asked or passed over.
    next: usize,
    /// Those that are to answer, whatever they were asked for.
    waiting: ReplicaSet,
    /// Those of them that were asked for the value.
    value_waiting: ReplicaSet,
    answers: SmallVec<[Answer; REPLICAS_USUAL]>,
    /// Those that did not answer, or did not take what was written back.
    failed: ReplicaSet,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    replica: Replica,
    meta: Meta,
    has_value: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It takes the place of one that failed, or is one of the first.
    Needed,
    /// Somebody is slow.
    Race,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Collect,
    WriteBack {
        found: Found,
        /// Those that hold it, or something newer.
        holders: ReplicaSet,
        waiting: ReplicaSet,
    },
    Done {
        found: Option<Found>,
    },
}

/// What to ask a replica for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The record with its value, if it is live at the read's `now`.
    Value,
    /// Only what it holds.
    Digest,
}

/// A question to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub replica: Replica,
    /// What for.
    pub want: Want,
}

/// What a read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The newest record's; [`Meta::ABSENT`] if there is none.
    pub meta: Meta,
    /// Whose answer had its value; `None` if a reader at `now` sees none.
    pub value_of: Option<Replica>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// Nothing yet, or nothing more.
    Wait,
    /// Ask one more.
    Ask(Ask),
    /// Write the record that was found to these, under its own version, and tell who has stored it.
    WriteBack {
        /// The record.
        found: Found,
        /// Those that are behind, or another in the place of one that failed.
        to: ReplicaSet,
    },
    /// This may be returned. Afterwards there may be something to repair.
    Met(Found),
    /// Too few answered. A read changes nothing, so it has FAILED.
    Failed,
}

/// Work for the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The newest record that was heard of.
    pub meta: Meta,
    /// Who has it.
    pub from: Replica,
    /// Who is behind.
    pub to: ReplicaSet,
}

impl ReadQuorum {
    /// A read at `now`, and whom to ask.
    pub fn start(
        level: Level,
        ranking: Ranking,
        now: UnixMillis,
        rules: Rules,
    ) -> Result<(ReadQuorum, SmallVec<[Ask; REPLICAS_USUAL]>), Unavailable> {
        let need = level.need(ranking.replicas(), rules);
        ranking.require(need)?;
        let mut read = ReadQuorum {
            level,
            need,
            now,
            ranking,
            does_write_back: rules.mistake != Some(Mistake::NoWriteBack),
            next: 0,
            waiting: ReplicaSet::NONE,
            value_waiting: ReplicaSet::NONE,
            answers: SmallVec::new(),
            failed: ReplicaSet::NONE,
            phase: Phase::Collect,
        };
        let asks = (0..need)
            .filter_map(|_| read.ask_next(Why::Needed))
            .collect();
        Ok((read, asks))
    }

    /// `replica` holds `meta`, and has sent what it was asked for: if the record is live and the
    /// value was wanted, that.
    pub fn on_answer(&mut self, replica: Replica, meta: Meta, want: Want) -> ReadVerdict {
        self.waiting.remove(replica);
        if want == Want::Value {
            self.value_waiting.remove(replica);
        }
        let answer = Answer {
            replica,
            meta,
            has_value: want == Want::Value && meta.is_live(self.now),
        };
        match self.answers.iter_mut().find(|old| old.replica == replica) {
            // An answer that was overtaken by a newer one of the same replica.
            Some(old) if meta.rank() < old.meta.rank() => {}
            Some(old) if meta == old.meta => old.has_value |= answer.has_value,
            Some(old) => *old = answer,
            None => self.answers.push(answer),
        }
        match self.phase {
            Phase::Collect => self.decide(),
            Phase::WriteBack { .. } | Phase::Done { .. } => ReadVerdict::Wait,
        }
    }

    /// `replica` has stored what was written back to it, or holds something newer.
    pub fn on_written(&mut self, replica: Replica) -> ReadVerdict {
        if let Phase::WriteBack {
            holders, waiting, ..
        } = &mut self.phase
        {
            waiting.remove(replica);
            holders.insert(replica);
        }
        self.judge_write_back()
    }

    /// `replica` will not answer, or has not stored what was written back to it. What it answered
    /// before counts no more if it owes us the value of that.
    pub fn on_failure(&mut self, replica: Replica) -> ReadVerdict {
        self.failed.insert(replica);
        match &mut self.phase {
            Phase::Collect => {
                if self.waiting.contains(replica) || self.value_waiting.contains(replica) {
                    self.answers.retain(|answer| answer.replica != replica);
                }
                self.waiting.remove(replica);
                self.value_waiting.remove(replica);
                self.decide()
            }
            Phase::WriteBack { waiting, .. } => {
                waiting.remove(replica);
                self.judge_write_back()
            }
            Phase::Done { .. } => ReadVerdict::Wait,
        }
    }

    /// What was asked takes longer than it usually does: the next nearest is put in the race. To be
    /// called once for each replica that may be spent on it.
    pub fn on_slow(&mut self) -> ReadVerdict {
        match self.phase {
            Phase::Collect => match self.ask_next(Why::Race) {
                Some(ask) => ReadVerdict::Ask(ask),
                None => self.race_for_value(),
            },
            Phase::WriteBack { .. } => self.write_back_to_another(),
            Phase::Done { .. } => ReadVerdict::Wait,
        }
    }

    /// It has taken too long.
    pub fn on_deadline(&mut self) -> ReadVerdict {
        match self.phase {
            Phase::Done { .. } => ReadVerdict::Wait,
            Phase::Collect | Phase::WriteBack { .. } => self.fail(),
        }
    }

    /// Which replicas are behind the newest that was heard of, now that the read is done; each is
    /// named once. To be asked after the verdict, and after every answer that comes later.
    pub fn repair(&mut self) -> Option<Repair> {
        let Phase::Done { found: Some(found) } = self.phase else {
            return None;
        };
        let newest = self.newest()?;
        let is_behind = |answer: &&Answer| answer.meta.rank() < newest.meta.rank();
        let behind = self.answers.iter().filter(is_behind);
        let to: ReplicaSet = behind.map(|answer| answer.replica).collect();
        if to.is_empty() || newest.meta.rank() < found.meta.rank() {
            return None;
        }
        self.answers.retain(|answer| !to.contains(answer.replica));
        Some(Repair {
            meta: newest.meta,
            from: newest.replica,
            to,
        })
    }

    fn ask_next(&mut self, why: Why) -> Option<Ask> {
        let replica = *self.ranking.live().get(self.next)?;
        self.next += 1;
        self.waiting.insert(replica);
        let has_value = self.answers.iter().any(|answer| answer.has_value);
        let is_coming = !self.value_waiting.is_empty() && why == Why::Needed;
        let want = match has_value || is_coming {
            true => Want::Digest,
            false => Want::Value,
        };
        if want == Want::Value {
            self.value_waiting.insert(replica);
        }
        Some(Ask { replica, want })
    }

    fn newest(&self) -> Option<Answer> {
        let answers = self.answers.iter().copied();
        answers.max_by_key(|answer| (answer.meta.rank(), answer.has_value))
    }

    fn decide(&mut self) -> ReadVerdict {
        if self.answers.len() < self.need {
            let may_come = self.heard().and(self.waiting).len();
            return match may_come < self.need {
                false => ReadVerdict::Wait,
                true => match self.ask_next(Why::Needed) {
                    Some(ask) => ReadVerdict::Ask(ask),
                    None => self.fail(),
                },
            };
        }
        let newest = self.newest().expect("a level needs at least one answer");
        let found = Found {
            meta: newest.meta,
            value_of: newest.has_value.then_some(newest.replica),
        };
        if newest.meta.is_live(self.now) && !newest.has_value {
            return self.ask_value(newest.meta);
        }
        let holders = self.holders(found.meta);
        if self.level == Level::One || holders.len() >= self.need || !self.does_write_back {
            return self.finish(found);
        }
        let to = self.heard().without(holders);
        self.phase = Phase::WriteBack {
            found,
            holders,
            waiting: to,
        };
        ReadVerdict::WriteBack { found, to }
    }

    fn heard(&self) -> ReplicaSet {
        self.answers.iter().map(|answer| answer.replica).collect()
    }

    /// Asks the nearest of those that hold `meta` for its value, unless one of them has been asked.
    fn ask_value(&mut self, meta: Meta) -> ReadVerdict {
        let holders = self.holders(meta);
        if holders
            .iter()
            .any(|replica| self.value_waiting.contains(replica))
        {
            return ReadVerdict::Wait;
        }
        self.ask_value_of(holders)
    }

    /// If only the value is missing: asks one more of those that hold it.
    fn race_for_value(&mut self) -> ReadVerdict {
        let Some(newest) = self.newest().filter(|_| self.answers.len() >= self.need) else {
            return ReadVerdict::Wait;
        };
        self.ask_value_of(self.holders(newest.meta).without(self.value_waiting))
    }

    fn ask_value_of(&mut self, holders: ReplicaSet) -> ReadVerdict {
        let mut nearest = self.ranking.live().iter().copied();
        let Some(replica) = nearest.find(|replica| holders.contains(*replica)) else {
            return ReadVerdict::Wait;
        };
        self.value_waiting.insert(replica);
        ReadVerdict::Ask(Ask {
            replica,
            want: Want::Value,
        })
    }

    /// Those that answered that they hold `meta`.
    fn holders(&self, meta: Meta) -> ReplicaSet {
        let holds = self.answers.iter().filter(|answer| answer.meta == meta);
        holds.map(|answer| answer.replica).collect()
    }

    fn judge_write_back(&mut self) -> ReadVerdict {
        let Phase::WriteBack {
            found,
            holders,
            waiting,
        } = self.phase
        else {
            return ReadVerdict::Wait;
        };
        if holders.len() >= self.need {
            return self.finish(found);
        }
        if holders.and(waiting).len() >= self.need {
            return ReadVerdict::Wait;
        }
        match self.write_back_to_another() {
            ReadVerdict::Wait => self.fail(),
            verdict => verdict,
        }
    }

    /// Writes back to the nearest that neither holds what was found nor was asked to take it.
    fn write_back_to_another(&mut self) -> ReadVerdict {
        let Phase::WriteBack {
            found,
            holders,
            waiting,
        } = &mut self.phase
        else {
            return ReadVerdict::Wait;
        };
        let busy = holders.and(*waiting).and(self.failed);
        let mut spare = self.ranking.live().iter().copied();
        let Some(replica) = spare.find(|replica| !busy.contains(*replica)) else {
            return ReadVerdict::Wait;
        };
        waiting.insert(replica);
        ReadVerdict::WriteBack {
            found: *found,
            to: [replica].into_iter().collect(),
        }
    }

    fn finish(&mut self, found: Found) -> ReadVerdict {
        if let Phase::WriteBack { holders, .. } = self.phase {
            // Whoever took what was written back is behind no more.
            let behind = |answer: &Answer| answer.meta.rank() < found.meta.rank();
            self.answers
                .retain(|answer| !(holders.contains(answer.replica) && behind(answer)));
        }
        self.phase = Phase::Done { found: Some(found) };
        ReadVerdict::Met(found)
    }

    fn fail(&mut self) -> ReadVerdict {
        self.phase = Phase::Done { found: None };
        ReadVerdict::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reach;
    use super::*;
    use crate::types::Version;

    const NOW: UnixMillis = 1_000;

    fn meta(clock: u64) -> Meta {
        Meta {
            version: Version {
                clock,
                coordinator: 1,
            },
            expiry: 0,
            tombstone: false,
        }
    }

    fn set(places: &[u8]) -> ReplicaSet {
        places.iter().copied().map(Replica).collect()
    }

    fn ask(place: u8, want: Want) -> ReadVerdict {
        ReadVerdict::Ask(Ask {
            replica: Replica(place),
            want,
        })
    }

    fn met(meta: Meta, value_of: Option<u8>) -> ReadVerdict {
        let value_of = value_of.map(Replica);
        ReadVerdict::Met(Found { meta, value_of })
    }

    /// Of three replicas, of which 0 is the coordinator's own and 1 is nearer than 2.
    fn start(level: Level) -> ReadQuorum {
        let reach = [
            Reach::Own,
            Reach::Live { latency_us: 10 },
            Reach::Live { latency_us: 20 },
        ];
        let ranking = Ranking::new(&reach);
        let (read, asks) =
            ReadQuorum::start(level, ranking, NOW, Rules::default()).expect("all are live");
        let asked = asks
            .iter()
            .map(|ask| (ask.replica.0, ask.want == Want::Value));
        let expected = [(0, true), (1, false), (2, false)];
        let need = level.need(3, Rules::default());
        assert_eq!(
            asked.collect::<Vec<_>>(),
            expected[..need],
            "the value comes from the nearest"
        );
        read
    }

    #[test]
    fn answers_that_agree_cost_one_round_trip() {
        let mut read = start(Level::Quorum);
        assert_eq!(
            read.on_answer(Replica(1), meta(5), Want::Digest),
            ReadVerdict::Wait
        );
        assert_eq!(
            read.on_answer(Replica(0), meta(5), Want::Value),
            met(meta(5), Some(0))
        );
        assert_eq!(read.repair(), None);
        assert_eq!(
            read.on_deadline(),
            ReadVerdict::Wait,
            "the verdict is given once"
        );
        let mut read = start(Level::Quorum);
        read.on_answer(Replica(1), Meta::ABSENT, Want::Digest);
        let verdict = read.on_answer(Replica(0), Meta::ABSENT, Want::Value);
        assert_eq!(verdict, met(Meta::ABSENT, None));
        let mut read = start(Level::One);
        assert_eq!(
            read.on_answer(Replica(0), meta(5), Want::Value),
            met(meta(5), Some(0))
        );
    }

    /// Else the next reader, who asks others, might find something older.
    #[test]
    fn answers_that_differ_are_written_back_before_anything_is_returned() {
        let mut read = start(Level::Quorum);
        read.on_answer(Replica(0), meta(5), Want::Value);
        assert_eq!(
            read.on_answer(Replica(1), meta(7), Want::Digest),
            ask(1, Want::Value)
        );
        let found = Found {
            meta: meta(7),
            value_of: Some(Replica(1)),
        };
        let to = set(&[0]);
        let write_back = ReadVerdict::WriteBack { found, to };
        assert_eq!(read.on_answer(Replica(1), meta(7), Want::Value), write_back);
        assert_eq!(
            read.on_answer(Replica(1), meta(7), Want::Value),
            ReadVerdict::Wait,
            "again"
        );
        // Who does not take it is replaced by another, and then by nobody.
        let to = set(&[2]);
        assert_eq!(
            read.on_failure(Replica(0)),
            ReadVerdict::WriteBack { found, to }
        );
        assert_eq!(read.on_written(Replica(2)), ReadVerdict::Met(found));
        let repair = Repair {
            meta: meta(7),
            from: Replica(1),
            to: set(&[0]),
        };
        assert_eq!(read.repair(), Some(repair), "it is still behind");
        assert_eq!(read.repair(), None, "each is named once");
    }

    #[test]
    fn a_write_back_that_nobody_takes_fails_the_read() {
        let mut read = start(Level::Quorum);
        read.on_answer(Replica(0), meta(7), Want::Value);
        assert!(matches!(
            read.on_answer(Replica(1), meta(5), Want::Digest),
            ReadVerdict::WriteBack { .. }
        ));
        assert!(matches!(
            read.on_failure(Replica(1)),
            ReadVerdict::WriteBack { .. }
        ));
        assert_eq!(read.on_failure(Replica(2)), ReadVerdict::Failed);
        assert_eq!(read.on_written(Replica(1)), ReadVerdict::Wait, "too late");
        assert_eq!(read.repair(), None);
    }

    #[test]
    fn who_fails_is_replaced_and_who_is_slow_is_raced() {
        let mut read = start(Level::Quorum);
        assert_eq!(
            read.on_failure(Replica(0)),
            ask(2, Want::Value),
            "it owed the value"
        );
        assert_eq!(
            read.on_answer(Replica(1), meta(5), Want::Digest),
            ReadVerdict::Wait
        );
        assert_eq!(
            read.on_answer(Replica(2), meta(5), Want::Value),
            met(meta(5), Some(2))
        );

        let mut read = start(Level::Quorum);
        read.on_answer(Replica(0), meta(5), Want::Value);
        assert_eq!(read.on_slow(), ask(2, Want::Digest), "the value is there");
        assert_eq!(
            read.on_answer(Replica(2), meta(5), Want::Digest),
            met(meta(5), Some(0))
        );
        assert_eq!(
            read.on_answer(Replica(1), meta(4), Want::Digest),
            ReadVerdict::Wait
        );
        let repair = read.repair().expect("the slow one is behind");
        assert_eq!((repair.from, repair.to), (Replica(0), set(&[1])));

        let mut read = start(Level::One);
        assert_eq!(read.on_slow(), ask(1, Want::Value));
        assert_eq!(
            read.on_answer(Replica(1), meta(4), Want::Value),
            met(meta(4), Some(1))
        );
        assert_eq!(
            read.on_answer(Replica(0), meta(5), Want::Value),
            ReadVerdict::Wait
        );
        let repair = read.repair().expect("what was returned was not the newest");
        assert_eq!((repair.from, repair.to), (Replica(0), set(&[1])));
    }

    #[test]
    fn a_value_that_only_a_slow_replica_owes_is_asked_of_another() {
        let mut read = start(Level::Quorum);
        read.on_answer(Replica(1), meta(5), Want::Digest);
        assert_eq!(read.on_slow(), ask(2, Want::Value));
        assert_eq!(
            read.on_answer(Replica(2), meta(4), Want::Value),
            ask(1, Want::Value)
        );
        assert_eq!(read.on_slow(), ReadVerdict::Wait, "nobody else has it");
        // It has lost it meanwhile: what it said counts no more, and the others must be heard.
        assert_eq!(read.on_failure(Replica(1)), ReadVerdict::Wait);
        let verdict = read.on_answer(Replica(0), meta(4), Want::Value);
        assert_eq!(verdict, met(meta(4), Some(0)));
    }

    #[test]
    fn a_read_of_which_too_few_answer_fails() {
        let mut read = start(Level::All);
        assert_eq!(read.on_failure(Replica(2)), ReadVerdict::Failed);
        let mut read = start(Level::Quorum);
        assert_eq!(read.on_deadline(), ReadVerdict::Failed);
        let alone = Ranking::new(&[Reach::Own, Reach::Absent, Reach::Absent]);
        let refused = ReadQuorum::start(Level::Quorum, alone, NOW, Rules::default()).map(|_| ());
        assert_eq!(refused, Err(Unavailable { need: 2, live: 1 }), "at once");
    }

    /// Else two replicas with equal values, of which one has its expiry moved, would pass for
    /// equal.
    #[test]
    fn answers_that_differ_in_expiry_or_kind_differ() {
        let expiring = Meta {
            expiry: NOW + 1,
            ..meta(5)
        };
        let deleted = Meta {
            tombstone: true,
            ..meta(5)
        };
        for (other, winner) in [(expiring, expiring), (deleted, deleted)] {
            let mut read = start(Level::Quorum);
            read.on_answer(Replica(1), other, Want::Digest);
            let mut verdict = read.on_answer(Replica(0), meta(5), Want::Value);
            if verdict == ask(1, Want::Value) {
                verdict = read.on_answer(Replica(1), other, Want::Value);
            }
            let ReadVerdict::WriteBack { found, to } = verdict else {
                panic!("{verdict:?}");
            };
            assert_eq!((found.meta, to), (winner, set(&[0])));
        }
    }

    /// Else one replica might take a record for expired and another not, and the value would come
    /// and go.
    #[test]
    fn what_is_expired_at_the_one_moment_of_a_read_is_a_deletion_of_that_version() {
        let expired = Meta {
            expiry: NOW,
            ..meta(7)
        };
        let mut read = start(Level::Quorum);
        read.on_answer(Replica(0), meta(5), Want::Value);
        let verdict = read.on_answer(Replica(1), expired, Want::Digest);
        let found = Found {
            meta: expired,
            value_of: None,
        };
        let to = set(&[0]);
        assert_eq!(
            verdict,
            ReadVerdict::WriteBack { found, to },
            "it hides the older value"
        );
        assert_eq!(read.on_written(Replica(0)), ReadVerdict::Met(found));
    }
}
