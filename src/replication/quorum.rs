//! One operation over the replicas of its key: who is asked, what counts, and what may be said in
//! the end.
//!
//! A QUORUM write first hears the clocks of a majority ([`Barrier`]), takes a version above them
//! all, and counts who has stored it ([`WriteQuorum`]). A QUORUM read compares what a majority
//! holds, and brings a majority to what it returns before it returns it ([`ReadQuorum`]). The two
//! together are the multi-writer register of Attiya, Bar-Noy and Dolev (1995), in Lynch and
//! Shvartsman's form (1997): linearizable per key, however wrong the wall clocks are. At ONE
//! nothing of this is promised.
//!
//! All of it is pure: the caller sends, waits, tells what came of it and does what the verdict
//! says. Whatever may come twice, too late or never is counted once, is ignored, or is waited for
//! until the deadline.
//!
//! What the caller owes: a version is chosen once for an operation, by a clock that has observed
//! what the barrier heard, in a barrier that began after the operation did; whatever is sent again
//! bears the same version. Nor is a version ever chosen again: a coordinator that restarts may hear
//! of nobody who has stored its last one, and its wall clock may be late, so something in the
//! version must differ from one of its lives to the next. A replica says that it has stored
//! something after the sync, and never tells a clock behind a version that it has stored.

use smallvec::SmallVec;

pub mod barrier;
pub mod read;
pub mod write;

pub use barrier::Barrier;
pub use read::ReadQuorum;
pub use write::WriteQuorum;

pub use crate::types::Level;

/// Most replicas of a key.
pub const REPLICAS_MAX: usize = 16;
/// As many as this are kept without an allocation: more are unusual.
const REPLICAS_USUAL: usize = 5;

impl Level {
    /// How many of `replicas` it waits for.
    pub fn need(self, replicas: usize, rules: Rules) -> usize {
        match self {
            Level::One => 1,
            Level::Quorum => majority(replicas, rules),
            Level::All => replicas,
        }
    }
}

/// The fewest of `replicas` of which any two choices have one in common.
fn majority(replicas: usize, rules: Rules) -> usize {
    assert!((1..=REPLICAS_MAX).contains(&replicas));
    match rules.mistake {
        Some(Mistake::SmallMajority) => (replicas / 2).max(1),
        _ => replicas / 2 + 1,
    }
}

/// What is the same for all operations of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// When a hint on a stand-in counts as if the replica had stored the write.
    pub stand_ins: StandIns,
    /// For tests.
    pub mistake: Option<Mistake>,
}

/// When a hint counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StandIns {
    /// At ONE only.
    #[default]
    AtOne,
    /// Always. This gives up that reads see acknowledged writes, at every level: a majority that
    /// has stand-ins in it need not have a replica in common with the next one.
    Always,
}

/// What tests make wrong, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Half of the replicas are taken for a majority.
    SmallMajority,
    /// A read returns what it found without bringing a majority to it.
    NoWriteBack,
}

/// A replica of a key, by its place in the placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica(pub u8);

/// Some of a key's replicas.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ReplicaSet(u16);

const _: () = assert!(REPLICAS_MAX == u16::BITS as usize);

impl ReplicaSet {
    /// None.
    pub const NONE: ReplicaSet = ReplicaSet(0);

    /// The first `count` of a placement.
    pub fn first(count: usize) -> ReplicaSet {
        (0..count).map(|place| Replica(place as u8)).collect() // checked where it is inserted
    }

    /// Adds `replica`.
    pub fn insert(&mut self, replica: Replica) {
        self.0 |= Self::bit(replica);
    }

    /// Takes `replica` out.
    pub fn remove(&mut self, replica: Replica) {
        self.0 &= !Self::bit(replica);
    }

    /// True if `replica` is in it.
    pub fn contains(self, replica: Replica) -> bool {
        self.0 & Self::bit(replica) != 0
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True if there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and those.
    pub fn and(self, those: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 | those.0)
    }

    /// These without those.
    pub fn without(self, those: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & !those.0)
    }

    /// Each of them, in the placement's order.
    pub fn iter(self) -> impl Iterator<Item = Replica> {
        let places = 0..REPLICAS_MAX as u8;
        places
            .map(Replica)
            .filter(move |&replica| self.contains(replica))
    }

    fn bit(replica: Replica) -> u16 {
        assert!(usize::from(replica.0) < REPLICAS_MAX);
        1 << replica.0
    }
}

impl FromIterator<Replica> for ReplicaSet {
    fn from_iter<I: IntoIterator<Item = Replica>>(replicas: I) -> ReplicaSet {
        let mut set = ReplicaSet::NONE;
        replicas.into_iter().for_each(|replica| set.insert(replica));
        set
    }
}

impl std::fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|replica| replica.0))
            .finish()
    }
}

/// How far a replica is from the coordinator. The nearest is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// It is the coordinator's own core, or one beside it.
    Own,
    /// On a node that is alive.
    Live {
        /// How long it usually takes to answer.
        latency_us: u32,
    },
    /// On a node that is dead, or that must not answer for this key.
    Absent,
}

/// The replicas of a key as a coordinator sees them: those that are there, the nearest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    replicas: usize,
    live: SmallVec<[Replica; REPLICAS_USUAL]>,
}

impl Ranking {
    /// Of a placement's replicas, in its order.
    pub fn new(reach: &[Reach]) -> Ranking {
        assert!((1..=REPLICAS_MAX).contains(&reach.len()));
        let is_live = |(_, reach): &(usize, &Reach)| **reach != Reach::Absent;
        let live = reach.iter().enumerate().filter(is_live);
        let mut live: SmallVec<[Replica; REPLICAS_USUAL]> =
            live.map(|(place, _)| Replica(place as u8)).collect();
        live.sort_by_key(|replica| (reach[usize::from(replica.0)], *replica));
        Ranking {
            replicas: reach.len(),
            live,
        }
    }

    /// How many replicas the placement has.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Those that are there, the nearest first.
    pub fn live(&self) -> &[Replica] {
        &self.live
    }

    fn live_set(&self) -> ReplicaSet {
        self.live.iter().copied().collect()
    }

    /// An error unless `need` replicas are there.
    fn require(&self, need: usize) -> Result<(), Unavailable> {
        let live = self.live.len();
        match live >= need {
            true => Ok(()),
            false => Err(Unavailable { need, live }),
        }
    }
}

/// There are too few live replicas for the level. Nothing was sent, so nothing was done: the
/// operation has FAILED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// How many replicas the level asks for.
    pub need: usize,
    /// How many are there.
    pub live: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else two operations might count replicas of which none has seen both.
    #[test]
    fn any_two_majorities_have_a_replica_in_common() {
        for replicas in 1..=REPLICAS_MAX {
            let need = Level::Quorum.need(replicas, Rules::default());
            assert!(2 * need > replicas && 2 * (need - 1) <= replicas);
            let mistake = Some(Mistake::SmallMajority);
            let wrong = Level::Quorum.need(
                replicas,
                Rules {
                    mistake,
                    ..Rules::default()
                },
            );
            assert!(2 * wrong <= replicas.max(2));
        }
    }

    #[test]
    fn the_own_replica_comes_first_and_then_the_fastest() {
        let far = Reach::Live { latency_us: 900 };
        let near = Reach::Live { latency_us: 90 };
        let ranking = Ranking::new(&[far, Reach::Absent, near, Reach::Own]);
        assert_eq!(ranking.live(), [Replica(3), Replica(2), Replica(0)]);
        assert_eq!(ranking.replicas(), 4);
        let unavailable = Unavailable { need: 4, live: 3 };
        assert_eq!(ranking.require(4), Err(unavailable));
        assert_eq!(ranking.require(3), Ok(()));
    }

    #[test]
    fn a_set_counts_each_replica_once() {
        let mut set = ReplicaSet::first(3);
        set.insert(Replica(2));
        assert_eq!(set.len(), 3);
        set.remove(Replica(0));
        assert!(!set.contains(Replica(0)) && set.contains(Replica(1)));
        assert_eq!(
            set.without(ReplicaSet::first(2)).iter().collect::<Vec<_>>(),
            [Replica(2)]
        );
        assert_eq!(set.and(ReplicaSet::first(1)), ReplicaSet::first(3));
    }
}
