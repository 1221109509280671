//! What two simulations of the replicas of one key have in common. In `replicas` the pure parts are
//! under test, in a world of events of its own; in `coordinate` it is a node's coordinator, in the
//! simulated world of the runtime.
//!
//! Both are stormy for a while and then calm, and plant the same mistakes.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use quoit::replication::quorum::{Level, Mistake, Rules, StandIns};

use crate::linear::{self, Action, Operation};
use crate::seeds::{self, Test};

/// What a check has found to be wrong.
pub type Verdict<T = ()> = Result<T, String>;

/// How wrong a clock may be.
pub const DAY_MS: i64 = 86_400_000;
/// Seeds within which each planted mistake must be found.
const FINDING_SEEDS: u64 = 3_000;

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    NoWriteBack,
    NoBarrier,
    HintCounts,
    SmallMajority,
    Restamp,
    AckBeforeSync,
    TimeoutIsFailure,
    SameGeneration,
}

/// The rules by which operations go, with the mistake in them, if it is one of theirs.
pub fn rules(planted: Option<Planted>) -> Rules {
    Rules {
        stand_ins: match planted {
            Some(Planted::HintCounts) => StandIns::Always,
            _ => StandIns::AtOne,
        },
        mistake: match planted {
            Some(Planted::NoWriteBack) => Some(Mistake::NoWriteBack),
            Some(Planted::SmallMajority) => Some(Mistake::SmallMajority),
            _ => None,
        },
    }
}

/// At which levels clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// QUORUM and ALL: linearizable together.
    Strong,
    /// ONE, too: of what is read nothing is promised but that somebody wrote it.
    Any,
}

impl Levels {
    /// That of the next request.
    pub fn choose(self, chance: &mut fastrand::Rng) -> Level {
        match (self, chance.u8(..10)) {
            (_, 0) => Level::All,
            (Levels::Any, 1..8) => Level::One,
            _ => Level::Quorum,
        }
    }
}

/// What a client asks next; `value` was never written.
pub fn choose_action(value: u64, chance: &mut fastrand::Rng) -> Action {
    match chance.u8(..10) {
        0..5 => Action::Read(None),
        5..9 => Action::Write(Some(value)),
        _ => Action::Write(None),
    }
}

/// How many replicas there are, and how many nodes: those that are no replicas coordinate and stand
/// in.
pub fn choose_size(chance: &mut fastrand::Rng) -> (usize, usize) {
    let replicas = [3, 3, 5][chance.usize(..3)];
    (replicas, replicas + chance.usize(..3))
}

/// How wrong clocks are at first.
pub fn choose_skew_ms(chance: &mut fastrand::Rng) -> i64 {
    [0, 600_000, DAY_MS][chance.usize(..3)]
}

/// What goes wrong, and how often. The first four are probabilities.
pub struct Faults {
    pub loss: f64,
    pub repeat: f64,
    pub late: f64,
    pub refuse: f64,
    /// Microseconds between two of them, and how long a node is away after a crash; at most twice
    /// that.
    pub every_us: u64,
    pub away_us: u64,
}

impl Faults {
    /// Of one world.
    pub fn choose(chance: &mut fastrand::Rng) -> Faults {
        Faults {
            loss: [0.0, 0.02, 0.1][chance.usize(..3)],
            repeat: [0.0, 0.1][chance.usize(..2)],
            late: [0.0, 0.05, 0.2][chance.usize(..3)],
            refuse: [0.0, 0.02, 0.2][chance.usize(..3)],
            every_us: [4_000, 20_000, 80_000][chance.usize(..3)],
            away_us: [3_000, 20_000, 80_000][chance.usize(..3)],
        }
    }

    /// When the storm is over; who is away comes back at once.
    pub fn none() -> Faults {
        Faults {
            loss: 0.0,
            repeat: 0.0,
            late: 0.0,
            refuse: 0.0,
            every_us: 1_000_000,
            away_us: 1,
        }
    }

    /// True if a replica refuses what `seed` names: decided once for an operation and a replica, as
    /// no copy of what was refused may be applied.
    pub fn refuses(&self, seed: u64) -> bool {
        fastrand::Rng::with_seed(seed).f64() < self.refuse
    }
}

/// Two sides that do not hear each other, or now and then one that does not hear the other: from
/// whom nothing comes to whom.
pub fn partition(nodes: usize, chance: &mut fastrand::Rng) -> BTreeSet<(usize, usize)> {
    let sides: Vec<bool> = (0..nodes).map(|_| chance.bool()).collect();
    let is_one_way = chance.u8(..4) == 0;
    let mut cut = BTreeSet::new();
    for from in 0..nodes {
        for to in 0..nodes {
            if sides[from] != sides[to] && (!is_one_way || sides[from]) {
                cut.insert((from, to));
            }
        }
    }
    cut
}

/// With which probability a node has reason to think that it cannot reach another, that is away or
/// not.
pub fn suspicion(is_away: bool, is_storm: bool) -> f64 {
    match (is_away, is_storm) {
        (true, _) => 0.7,
        (false, true) => 0.02,
        (false, false) => 0.0,
    }
}

/// What happened, to see that it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// It happened once more.
    pub fn note(&mut self, what: &'static str) {
        self.note_many(what, 1);
    }

    /// So many times more.
    pub fn note_many(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// How an operation ended.
    pub fn note_outcome(&mut self, outcome: linear::Outcome) {
        self.note(match outcome {
            linear::Outcome::Done => "done",
            linear::Outcome::Failed => "failed",
            linear::Outcome::Unknown => "unknown",
        });
    }
}

/// All that `holds` are the same, and no hint is left.
pub fn are_equal<R: PartialEq + std::fmt::Debug>(holds: &[R], hints: usize) -> Verdict {
    if holds.iter().any(|one| *one != holds[0]) {
        return Err(format!("replicas differ in the end: {holds:?}"));
    }
    match hints {
        0 => Ok(()),
        _ => Err(format!("{hints} hints were never brought home")),
    }
}

/// A world of one of the two.
pub trait Simulation: Sized {
    /// From a seed.
    fn make(seed: u64, levels: Levels, planted: Option<Planted>) -> Self;
    /// The storm, and the calm after it: what clients were told.
    fn run(&mut self) -> Verdict<Vec<Operation>>;
    /// Brings all replicas to the same.
    fn converge(&mut self) -> Verdict;
    /// What happened, and the trace.
    fn tally(&self) -> (Tally, u64);
}

/// At the strong levels all is linearizable, and replicas converge.
pub fn strong<S: Simulation>(seed: u64, planted: Option<Planted>) -> Verdict<(Tally, u64)> {
    let mut simulation = S::make(seed, Levels::Strong, planted);
    let history = simulation.run()?;
    linear::check(None, &history)?;
    simulation.converge()?;
    Ok(simulation.tally())
}

/// With ONE among the levels nothing is seen that FAILED, and replicas converge.
pub fn weak<S: Simulation>(seed: u64) -> Verdict<(Tally, u64)> {
    let mut simulation = S::make(seed, Levels::Any, None);
    let history = simulation.run()?;
    simulation.converge()?;
    linear::check_origins(&history)?;
    Ok(simulation.tally())
}

/// Runs `simulate` for all seeds; each of `all` must have happened often, or a run proves less than
/// it seems to.
pub fn for_seeds(
    test: Test,
    all: &[&'static str],
    simulate: impl Fn(u64) -> Verdict<(Tally, u64)>,
) {
    let (ran, seconds) = test.run(simulate);
    let mut total = Tally::default();
    for (tally, _) in &ran {
        for (what, times) in &tally.0 {
            total.note_many(what, *times);
        }
    }
    let (name, runs) = (test.name, ran.len());
    println!("{name}, {runs} seeds, {seconds:.0} s: {:?}", total.0);
    if test.is_whole(runs) {
        let often = |what: &&str| total.0.get(*what).is_some_and(|times| *times > 10);
        let seldom: Vec<_> = all.iter().filter(|what| !often(what)).collect();
        assert!(seldom.is_empty(), "{seldom:?} hardly happened");
    }
}

/// Sees that a planted mistake is found.
pub fn finds<S: Simulation>(planted: Planted) {
    seeds::finds(planted, 0..FINDING_SEEDS, |seed| {
        strong::<S>(seed, Some(planted))
    });
}
