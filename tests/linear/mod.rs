//! Is there one order of the operations on a key that explains everything that its clients were
//! told?
//!
//! A history is a list of operations, each with the moments at which it was asked for and answered,
//! and what the client knows of its outcome: it was done; it FAILED, so that it must never be seen;
//! or it is UNKNOWN, so that it may have been done at any time since, or not at all. The key is a
//! register: read, write, delete, compare-and-set.
//!
//! Method: Wing and Gong (1993) with Lowe's (2017) laziness and memory. The history is swept by
//! time; what is kept is the set of all that may be the case: the register's value, and which of
//! the operations under way have been done. An operation is ordered only when another's answer asks
//! for it. An UNKNOWN write that nobody saw is left out, which explains no less, and one that
//! somebody saw was done by then, if nobody else wrote that value. So the effort grows with the
//! length of a history times what is under way at once, as long as written values differ.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// When something happened: any number that rises.
pub type Moment = u64;
/// What a key holds; `None`: nothing.
pub type Value = Option<u64>;

/// Operations under way at once on a key, those that are UNKNOWN and unseen not counted.
const UNDER_WAY_MAX: usize = 128;
/// More cases than this are not told apart: the history is too tangled to be judged.
const CASES_MAX: usize = 1_000_000;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Got this.
    Read(Value),
    /// Wrote this; `None`: deleted.
    Write(Value),
    /// Wrote `new` as there was `old`.
    Swap {
        /// What had to be there.
        old: Value,
        /// What is there now.
        new: Value,
    },
    /// Did not, because there was not `old`.
    Differs {
        /// What was not there.
        old: Value,
    },
}

/// What the client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not done, and never will be.
    Failed,
    /// It may be done, or not, at any time. Of a read: nothing.
    Unknown,
}

/// An operation of a client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What.
    pub action: Action,
    /// When it was asked for.
    pub asked: Moment,
    /// When the answer came. Without a meaning if it is unknown.
    pub answered: Moment,
    /// What the answer was.
    pub outcome: Outcome,
}

/// Judges the history of one key that held `initial`. The error tells what cannot be explained.
pub fn check(initial: Value, history: &[Operation]) -> Result<(), String> {
    let prepared = prepare(initial, history);
    let mut sweep = Sweep::new(initial, prepared.optional.len());
    for event in events(&prepared) {
        match event {
            Event::Asked(operation) => sweep.ask(&prepared.certain[operation], operation)?,
            Event::Offered(class) => sweep.offered[class] += 1,
            Event::Answered(operation) => {
                let before = sweep.values();
                sweep.answer(operation, &prepared.optional)?;
                if sweep.cases.is_empty() {
                    return Err(explain(&prepared.certain[operation], &before, history));
                }
            }
        }
    }
    Ok(())
}

/// Judges many keys, each for itself: linearizability is local (Herlihy and Wing, 1990).
pub fn check_keys(keys: &BTreeMap<u64, Vec<Operation>>) -> Result<(), String> {
    for (key, history) in keys {
        check(None, history).map_err(|why| format!("key {key}: {why}"))?;
    }
    Ok(())
}

/// Judges a history of which no order is promised, with values that differ: whatever was read,
/// somebody wrote, and not in vain.
pub fn check_origins(history: &[Operation]) -> Result<(), String> {
    let mut written: HashMap<Value, Operation> = HashMap::new();
    for operation in history {
        if let Action::Write(value) | Action::Swap { new: value, .. } = operation.action {
            written.insert(value, *operation);
        }
    }
    for read in history {
        let Action::Read(Some(value)) = read.action else {
            continue;
        };
        let is_sound =
            |write: &Operation| write.outcome != Outcome::Failed && write.asked < read.answered;
        let write = written.get(&Some(value));
        if read.outcome == Outcome::Done && !write.is_some_and(is_sound) {
            return Err(format!("{read:?} of {write:?}"));
        }
    }
    Ok(())
}

/// A history without what says nothing.
struct Prepared {
    /// What has been done, sometime between the two moments.
    certain: Vec<Operation>,
    /// What may have been done, sometime after these moments; the same action may have been asked
    /// for often.
    optional: Vec<(Action, Vec<Moment>)>,
}

fn prepare(initial: Value, history: &[Operation]) -> Prepared {
    let is_told = |operation: &&Operation| operation.outcome == Outcome::Done;
    let written = |action: Action| match action {
        Action::Write(value) | Action::Swap { new: value, .. } => Some(value),
        Action::Read(_) | Action::Differs { .. } => None,
    };
    let seen = |action: Action| match action {
        Action::Read(value) | Action::Swap { old: value, .. } => Some(value),
        Action::Write(_) | Action::Differs { .. } => None,
    };
    let mut first_seen: HashMap<Value, Moment> = HashMap::new();
    for operation in history.iter().filter(is_told) {
        if let Some(value) = seen(operation.action) {
            let first = first_seen.entry(value).or_insert(operation.answered);
            *first = (*first).min(operation.answered);
        }
    }
    let mut writers: HashMap<Value, usize> = HashMap::from([(initial, 1), (None, 1)]);
    for operation in history
        .iter()
        .filter(|operation| operation.outcome != Outcome::Failed)
    {
        if let Some(value) = written(operation.action) {
            *writers.entry(value).or_default() += 1;
        }
    }
    // Whoever was told that something was not there may have been told so because of a write that
    // nobody saw. And whoever may have swapped may have seen.
    let is_blind = |operation: &Operation| match operation.action {
        Action::Differs { .. } => operation.outcome == Outcome::Done,
        Action::Swap { .. } => operation.outcome == Outcome::Unknown,
        Action::Read(_) | Action::Write(_) => false,
    };
    let may_leave_out = !history.iter().any(is_blind);
    let mut certain: Vec<Operation> = history.iter().filter(is_told).copied().collect();
    let mut optional: BTreeMap<Action, Vec<Moment>> = BTreeMap::new();
    for operation in history
        .iter()
        .filter(|operation| operation.outcome == Outcome::Unknown)
    {
        let Some(value) = written(operation.action) else {
            continue;
        };
        match first_seen.get(&value) {
            Some(&answered) if writers[&value] == 1 => certain.push(Operation {
                answered: answered.max(operation.asked),
                ..*operation
            }),
            None if may_leave_out => {}
            _ => optional
                .entry(operation.action)
                .or_default()
                .push(operation.asked),
        }
    }
    Prepared {
        certain,
        optional: optional.into_iter().collect(),
    }
}

enum Event {
    Asked(usize),
    /// One more of this class may be done from now on.
    Offered(usize),
    Answered(usize),
}

/// In the order of time. What is asked for at the moment of an answer was under way at the same
/// time.
fn events(prepared: &Prepared) -> Vec<Event> {
    let mut events = Vec::new();
    for (index, operation) in prepared.certain.iter().enumerate() {
        events.push((operation.asked, 0, Event::Asked(index)));
        events.push((operation.answered, 1, Event::Answered(index)));
    }
    for (class, (_, moments)) in prepared.optional.iter().enumerate() {
        for &moment in moments {
            events.push((moment, 0, Event::Offered(class)));
        }
    }
    events.sort_by_key(|(moment, order, _)| (*moment, *order));
    events.into_iter().map(|(_, _, event)| event).collect()
}

/// What may be the case.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Case {
    value: Value,
    /// Which of the operations under way have been done, by slot.
    done: u128,
}

/// How many of each class of optional operations a case has used.
type Used = Vec<u32>;

struct Sweep {
    /// Each case with the least that it takes: who has used no more of any class can do no less.
    cases: HashMap<Case, Vec<Used>>,
    /// The operations under way, by slot.
    under_way: Vec<Option<(usize, Action)>>,
    offered: Used,
}

impl Sweep {
    fn new(initial: Value, classes: usize) -> Sweep {
        let case = Case {
            value: initial,
            done: 0,
        };
        Sweep {
            cases: HashMap::from([(case, vec![vec![0; classes]])]),
            under_way: Vec::new(),
            offered: vec![0; classes],
        }
    }

    fn ask(&mut self, operation: &Operation, index: usize) -> Result<(), String> {
        let free = self.under_way.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.under_way.len());
        if slot == UNDER_WAY_MAX {
            return Err(format!("more than {UNDER_WAY_MAX} operations at once"));
        }
        if slot == self.under_way.len() {
            self.under_way.push(None);
        }
        self.under_way[slot] = Some((index, operation.action));
        Ok(())
    }

    /// Keeps the cases in which `operation` has been done, and those that come of the others by
    /// doing it, after whatever else may have to be done before.
    fn answer(
        &mut self,
        operation: usize,
        optional: &[(Action, Vec<Moment>)],
    ) -> Result<(), String> {
        let is_it =
            |slot: &Option<(usize, Action)>| slot.is_some_and(|(index, _)| index == operation);
        let slot = self.under_way.iter().position(is_it);
        let slot = slot.expect("an answer comes after its question");
        let mut kept: HashMap<Case, Vec<Used>> = HashMap::new();
        let mut seen: HashSet<(Case, Used)> = HashSet::new();
        let mut open: Vec<(Case, Used)> = Vec::new();
        for (case, uses) in std::mem::take(&mut self.cases) {
            open.extend(uses.into_iter().map(|used| (case.clone(), used)));
        }
        while let Some((case, used)) = open.pop() {
            if case.done & 1 << slot != 0 {
                let done = case.done & !(1 << slot);
                keep(&mut kept, Case { done, ..case }, used);
                continue;
            }
            if seen.len() > CASES_MAX {
                return Err("too tangled to be judged".to_owned());
            }
            if seen.insert((case.clone(), used.clone())) {
                self.steps(&case, &used, optional, &mut open);
            }
        }
        self.under_way[slot] = None;
        self.cases = kept;
        Ok(())
    }

    /// All that may be done next.
    fn steps(
        &self,
        case: &Case,
        used: &Used,
        optional: &[(Action, Vec<Moment>)],
        open: &mut Vec<(Case, Used)>,
    ) {
        for (slot, under_way) in self.under_way.iter().enumerate() {
            let Some((_, action)) = under_way.filter(|_| case.done & 1 << slot == 0) else {
                continue;
            };
            if let Some(value) = apply(action, case.value) {
                let done = case.done | 1 << slot;
                open.push((Case { value, done }, used.clone()));
            }
        }
        for (class, (action, _)) in optional.iter().enumerate() {
            if used[class] == self.offered[class] {
                continue;
            }
            if let Some(value) = apply(*action, case.value).filter(|value| *value != case.value) {
                let mut used = used.clone();
                used[class] += 1;
                let done = case.done;
                open.push((Case { value, done }, used));
            }
        }
    }

    fn values(&self) -> BTreeSet<Value> {
        self.cases.keys().map(|case| case.value).collect()
    }
}

/// Notes a case, unless it takes more than one that is there.
fn keep(cases: &mut HashMap<Case, Vec<Used>>, case: Case, used: Used) {
    let no_more = |a: &Used, b: &Used| a.iter().zip(b).all(|(a, b)| a <= b);
    let uses = cases.entry(case).or_default();
    if !uses.iter().any(|there| no_more(there, &used)) {
        uses.retain(|there| !no_more(&used, there));
        uses.push(used);
    }
}

/// The value after `action`; `None` if the value before does not allow it.
fn apply(action: Action, value: Value) -> Option<Value> {
    match action {
        Action::Read(seen) => (seen == value).then_some(value),
        Action::Write(new) => Some(new),
        Action::Swap { old, new } => (old == value).then_some(new),
        Action::Differs { old } => (old != value).then_some(value),
    }
}

fn explain(culprit: &Operation, values: &BTreeSet<Value>, history: &[Operation]) -> String {
    use std::fmt::Write;
    let mut text =
        format!("{culprit:?} cannot be explained; the key may have held {values:?} before");
    let is_near = |operation: &&Operation| {
        operation.asked <= culprit.answered
            && (operation.outcome == Outcome::Unknown || operation.answered + 400 >= culprit.asked)
    };
    for operation in history.iter().filter(is_near) {
        let _ = write!(text, "\n  {operation:?}");
    }
    text
}
