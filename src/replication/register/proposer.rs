//! Whoever wants to change the register, or to read it: one operation from its first request to its
//! outcome.
//!
//! A read asks a majority what they have accepted; if all say the same, that is decided and the
//! newest, in one trip and without a sync. Everything else is a round. A round that is overtaken is
//! begun again with a higher ballot, after a pause that the caller chooses.
//!
//! A change is applied once, though several rounds may propose it: a later round of the same
//! operation finds its own value again, and confirms it; or finds what the value was made from, so
//! that the earlier proposal can never be decided apart from this one, and makes the same again; or
//! finds another's value, which may have been built on ours. If that value does not tell
//! ([`Change::is_in`]), the outcome is in doubt, and said to be.

use smallvec::SmallVec;

use super::{Answer, Ballot, HOLDERS_MAX, HolderId, Holders, Mistake, Request};

/// What an operation does to the value. Pure: it may be applied more than once, and counts once.
pub trait Change {
    /// What the register holds. No two changes ever make the same.
    type Value: Clone + PartialEq;

    /// The new value; `None`: it is to stay as it is (a read, or a condition that does not hold).
    fn apply(&self, current: Option<&Self::Value>) -> Option<Self::Value>;

    /// The holders that a value names, if it does.
    fn holders(value: &Self::Value) -> Option<Holders>;

    /// True if `value` has come of this change, whatever came after it; `None` if the value does
    /// not tell. One that remembers its last changes leaves nobody in doubt.
    fn is_in(&self, value: &Self::Value) -> Option<bool> {
        let _ = value;
        None
    }
}

/// An operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer<C: Change> {
    change: C,
    holders: Holders,
    /// Of the round under way; of the last one, between two.
    ballot: Ballot,
    /// The highest ballot that was heard of.
    seen: Ballot,
    phase: Phase<C::Value>,
    /// What earlier rounds of this operation, or this one, may have made holders accept.
    sent: Option<Sent<C::Value>>,
    mistake: Option<Mistake>,
    /// What the first round was built on without asking, for the mistake of doing so again.
    sticky: Option<Option<C::Value>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent<V> {
    /// What the change was applied to.
    base: Option<V>,
    value: V,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase<V> {
    Reading {
        answers: Told<V>,
    },
    Preparing {
        promises: Told<V>,
        refused: Few,
    },
    Accepting {
        value: Option<V>,
        /// The operation's own value, or what was there.
        is_own: bool,
        accepted: Few,
        next_promised: Few,
        refused: Few,
    },
    /// Overtaken, and waiting for the caller.
    Paused,
    Done {
        /// What the next round can be built on, if it was decided so.
        decided: Option<V>,
        next_promised: Few,
    },
    /// Nothing more comes of it here.
    Over,
}

/// What holders said that they have accepted; sorted.
type Told<V> = SmallVec<[(HolderId, Ballot, Option<V>); HOLDERS_MAX]>;
/// Some of the holders; sorted.
type Few = SmallVec<[HolderId; HOLDERS_MAX]>;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step<V> {
    /// Nothing yet, or nothing more. If nothing comes: send the request again to those who have not
    /// answered, or begin a new round, or give up.
    Wait,
    /// Send this to every holder.
    Send(Request<V>),
    /// Another's round has come first. After a pause, of which the length is chance, begin a new
    /// one.
    Overtaken,
    /// Decided: the value is what the change has made.
    Changed(V),
    /// Decided: the value is this, to which the change does nothing.
    Kept(Option<V>),
    /// Decided: the value is this, and names a newer set of holders. Nothing was changed; go on
    /// there.
    Moved(V),
    /// There is a newer set of holders, with at least this number. Learn of it, and go on there.
    Outdated(u64),
    /// The change may have been made, or not; somebody has written this since.
    InDoubt(Option<V>),
}

/// What a decided round leaves to the next one of the same proposer, which then takes one trip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sticky<V> {
    set: u64,
    ballot: Ballot,
    value: Option<V>,
}

impl<C: Change> Proposer<C> {
    /// Reads, or changes after having read: for what will likely change nothing.
    pub fn read(change: C, holders: Holders, last: Ballot) -> (Self, Request<C::Value>) {
        let phase = Phase::Reading {
            answers: Told::new(),
        };
        let proposer = Proposer::new(change, holders, last, phase);
        let request = proposer.request().expect("it is reading");
        (proposer, request)
    }

    /// Begins with a round whose ballot is above `last`, the last one of this proposer; that needs
    /// only the proposer's number.
    pub fn change(change: C, holders: Holders, last: Ballot) -> (Self, Request<C::Value>) {
        let mut proposer = Proposer::new(change, holders, last, Phase::Paused);
        let request = proposer.prepare();
        (proposer, request)
    }

    /// Begins with what an earlier operation of this proposer has left; an ordinary round if that
    /// was in another set.
    pub fn stick(
        change: C,
        holders: Holders,
        sticky: Sticky<C::Value>,
    ) -> (Self, Request<C::Value>) {
        let mut proposer = Proposer::new(change, holders, sticky.ballot, Phase::Paused);
        if sticky.set != proposer.holders.number() {
            let request = proposer.prepare();
            return (proposer, request);
        }
        proposer.sticky = Some(sticky.value.clone());
        match proposer.choose(sticky.value) {
            Step::Send(request) => (proposer, request),
            _ => unreachable!("it has sent nothing yet that could be in doubt"),
        }
    }

    fn new(change: C, holders: Holders, last: Ballot, phase: Phase<C::Value>) -> Self {
        Proposer {
            change,
            holders,
            ballot: last,
            seen: last,
            phase,
            sent: None,
            mistake: None,
            sticky: None,
        }
    }

    /// For tests.
    pub fn with_mistake(mut self, mistake: Option<Mistake>) -> Self {
        self.mistake = mistake;
        self
    }

    /// The set of holders that it asks.
    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Of the round under way.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// What the next operation of this proposer goes on from, so that nobody has promised its
    /// ballot yet.
    pub fn last(&self) -> Ballot {
        Ballot {
            round: self.ballot.round.max(self.seen.round),
            ..self.ballot
        }
    }

    /// True if it may have made some holder accept a change of its own: if it is given up now, it
    /// is UNKNOWN whether the change will be made. If not, it FAILED.
    pub fn is_in_doubt(&self) -> bool {
        self.sent.is_some()
    }

    /// What to send again to those who have not answered; a promise is not given twice, so there a
    /// new round is due.
    pub fn request(&self) -> Option<Request<C::Value>> {
        let set = self.holders.number();
        match &self.phase {
            Phase::Reading { .. } => Some(Request::Read { set }),
            Phase::Accepting { value, .. } => Some(Request::Accept {
                set,
                ballot: self.ballot,
                value: value.clone(),
                next: self.next_ballot(),
            }),
            _ => None,
        }
    }

    /// What this operation leaves to the next, once it is decided and a majority has promised.
    pub fn sticky(&self) -> Option<Sticky<C::Value>> {
        let Phase::Done {
            decided,
            next_promised,
        } = &self.phase
        else {
            return None;
        };
        let is_here = |holders: Holders| holders == self.holders;
        let stays = decided.as_ref().and_then(C::holders).is_none_or(is_here);
        let may_stick = stays && next_promised.len() >= self.majority();
        may_stick.then(|| Sticky {
            set: self.holders.number(),
            ballot: self.next_ballot(),
            value: decided.clone(),
        })
    }

    /// Begins a new round, if the operation is not at its end: it was overtaken, or answers do not
    /// come.
    pub fn retry(&mut self) -> Step<C::Value> {
        if matches!(self.phase, Phase::Done { .. } | Phase::Over) {
            return Step::Wait;
        }
        if self.mistake == Some(Mistake::StickyWithoutPrepare)
            && let Some(value) = self.sticky.clone()
        {
            self.raise_ballot();
            return self.choose(value);
        }
        Step::Send(self.prepare())
    }

    /// `holder` has answered.
    pub fn on_answer(&mut self, holder: HolderId, answer: Answer<C::Value>) -> Step<C::Value> {
        if self.holders.place(holder).is_none() {
            return Step::Wait;
        }
        match answer {
            Answer::Outdated { set } => self.on_outdated(set),
            Answer::Holds { accepted, value } => self.on_holds((holder, accepted, value)),
            Answer::Promised {
                ballot,
                accepted,
                value,
            } if ballot == self.ballot => self.on_promise((holder, accepted, value)),
            Answer::Accepted {
                ballot,
                is_next_promised,
            } if ballot == self.ballot => self.on_accepted(holder, is_next_promised),
            Answer::Refused { ballot, promised } if ballot == self.ballot => {
                self.on_refused(holder, promised)
            }
            Answer::Promised { .. } | Answer::Accepted { .. } | Answer::Refused { .. } => {
                Step::Wait
            }
        }
    }

    fn on_outdated(&mut self, set: u64) -> Step<C::Value> {
        let is_over = matches!(self.phase, Phase::Done { .. } | Phase::Over);
        if is_over || set <= self.holders.number() {
            return Step::Wait;
        }
        self.phase = Phase::Over;
        Step::Outdated(set)
    }

    fn on_holds(&mut self, told: (HolderId, Ballot, Option<C::Value>)) -> Step<C::Value> {
        let need = self.majority();
        let Phase::Reading { answers } = &mut self.phase else {
            return Step::Wait;
        };
        self.seen = self.seen.max(told.1);
        note(answers, told);
        if answers.len() < need {
            return Step::Wait;
        }
        let (_, accepted, value) = answers[0].clone();
        let is_decided = answers.iter().all(|(_, other, _)| *other == accepted);
        if is_decided && self.change.apply(value.as_ref()).is_none() {
            self.phase = Phase::Over;
            return Step::Kept(value);
        }
        Step::Send(self.prepare())
    }

    fn on_promise(&mut self, told: (HolderId, Ballot, Option<C::Value>)) -> Step<C::Value> {
        let need = self.majority();
        let Phase::Preparing { promises, .. } = &mut self.phase else {
            return Step::Wait;
        };
        note(promises, told);
        if promises.len() < need {
            return Step::Wait;
        }
        let newest = match self.mistake {
            Some(Mistake::NotTheNewest) => promises.first(),
            _ => promises.iter().max_by_key(|(_, accepted, _)| *accepted),
        };
        let (_, _, value) = newest.expect("a majority is at least one").clone();
        self.choose(value)
    }

    fn on_accepted(&mut self, holder: HolderId, is_next_promised: bool) -> Step<C::Value> {
        let need = self.majority();
        if let Phase::Done { next_promised, .. } = &mut self.phase {
            if is_next_promised {
                count(next_promised, holder);
            }
            return Step::Wait;
        }
        let Phase::Accepting {
            value,
            is_own,
            accepted,
            next_promised,
            ..
        } = &mut self.phase
        else {
            return Step::Wait;
        };
        count(accepted, holder);
        if is_next_promised {
            count(next_promised, holder);
        }
        if accepted.len() < need {
            return Step::Wait;
        }
        let (value, is_own, next_promised) = (value.take(), *is_own, std::mem::take(next_promised));
        self.phase = Phase::Done {
            decided: value.clone(),
            next_promised,
        };
        if !is_own {
            self.sent = None; // what an earlier round has sent can never be decided any more
        }
        self.conclude(value, is_own)
    }

    fn conclude(&self, value: Option<C::Value>, is_own: bool) -> Step<C::Value> {
        match value {
            Some(value) if is_own => Step::Changed(value),
            Some(value) if self.moves(&value) && self.change.apply(Some(&value)).is_some() => {
                Step::Moved(value)
            }
            value => Step::Kept(value),
        }
    }

    fn on_refused(&mut self, holder: HolderId, promised: Ballot) -> Step<C::Value> {
        self.seen = self.seen.max(promised);
        let (members, need) = (self.holders.members().len(), self.majority());
        let refused = match &mut self.phase {
            // A copy of what it has promised; else a round of this ballot that the proposer has
            // forgotten.
            Phase::Preparing { promises, .. }
                if promises.iter().any(|(other, ..)| *other == holder) =>
            {
                return Step::Wait;
            }
            // A copy of what came before the value: what it has promised is this very round.
            Phase::Accepting { .. } if promised == self.ballot => return Step::Wait,
            Phase::Accepting { accepted, .. } if accepted.contains(&holder) => return Step::Wait,
            Phase::Preparing { refused, .. } | Phase::Accepting { refused, .. } => refused,
            _ => return Step::Wait,
        };
        count(refused, holder);
        if members - refused.len() >= need {
            return Step::Wait;
        }
        self.phase = Phase::Paused;
        Step::Overtaken
    }

    /// The newest value that may have been decided is known, and no other can be in a lower round:
    /// on with it.
    fn choose(&mut self, current: Option<C::Value>) -> Step<C::Value> {
        let (value, is_own) = match (self.is_made(current.as_ref()), &current) {
            (None, _) => {
                self.phase = Phase::Over;
                return Step::InDoubt(current);
            }
            (Some(true), _) => (current, true),
            (Some(false), Some(value)) if self.moves(value) => (current, false),
            (Some(false), _) => self.apply(current),
        };
        // Some will promise the next ballot with this, and will not do so again.
        self.seen = self.seen.max(self.next_ballot());
        self.phase = Phase::Accepting {
            value,
            is_own,
            accepted: Few::new(),
            next_promised: Few::new(),
            refused: Few::new(),
        };
        Step::Send(self.request().expect("it is accepting"))
    }

    /// True if the change has been made in `current`; if not, it can only be made anew, or be found
    /// again before anything else is decided. `None` if nobody can tell.
    fn is_made(&self, current: Option<&C::Value>) -> Option<bool> {
        match (&self.sent, current) {
            (None, _) => Some(false),
            (Some(sent), Some(value)) if sent.value == *value => Some(true),
            (Some(sent), _) if sent.base.as_ref() == current => Some(false),
            (Some(_), Some(value)) => self.change.is_in(value),
            (Some(_), None) => None,
        }
    }

    /// What the change makes of `current`, and whether it makes anything of it.
    fn apply(&mut self, current: Option<C::Value>) -> (Option<C::Value>, bool) {
        let Some(value) = self.change.apply(current.as_ref()) else {
            return (current, false);
        };
        assert!(self.may_decide(&value), "a set of holders changes by one");
        assert!(current.as_ref() != Some(&value), "values are unique");
        let base = current;
        let sent = value.clone();
        self.sent = Some(Sent { base, value: sent });
        (Some(value), true)
    }

    /// True if `value` names other holders than those that are asked.
    fn moves(&self, value: &C::Value) -> bool {
        C::holders(value).is_some_and(|holders| holders.number() > self.holders.number())
    }

    fn may_decide(&self, value: &C::Value) -> bool {
        C::holders(value).is_none_or(|holders| holders.may_follow(&self.holders))
    }

    fn prepare(&mut self) -> Request<C::Value> {
        self.raise_ballot();
        self.phase = Phase::Preparing {
            promises: Told::new(),
            refused: Few::new(),
        };
        Request::Prepare {
            set: self.holders.number(),
            ballot: self.ballot,
        }
    }

    fn raise_ballot(&mut self) {
        self.ballot.round = self.last().round + 1;
    }

    fn next_ballot(&self) -> Ballot {
        Ballot {
            round: self.ballot.round + 1,
            ..self.ballot
        }
    }

    fn majority(&self) -> usize {
        match self.mistake {
            Some(Mistake::SmallMajority) => (self.holders.members().len() / 2).max(1),
            _ => self.holders.majority(),
        }
    }
}

/// Notes what a holder has said, once: what it says later in the same round is not what it said
/// when it promised.
fn note<V>(told: &mut Told<V>, new: (HolderId, Ballot, Option<V>)) {
    if let Err(place) = told.binary_search_by_key(&new.0, |(holder, ..)| *holder) {
        told.insert(place, new);
    }
}

fn count(few: &mut Few, holder: HolderId) {
    if let Err(place) = few.binary_search(&holder) {
        few.insert(place, holder);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Acceptor, State};
    use super::*;

    /// Adds a number to the end of a list; the list may name the set of its holders first.
    #[derive(Clone, Debug)]
    struct Add(Option<u8>);

    impl Change for Add {
        type Value = Vec<u8>;

        fn apply(&self, current: Option<&Vec<u8>>) -> Option<Vec<u8>> {
            let mut value = current.cloned().unwrap_or_default();
            value.push(self.0?);
            Some(value)
        }

        /// It tells of numbers above 3.
        fn is_in(&self, value: &Vec<u8>) -> Option<bool> {
            let number = self.0.filter(|number| *number > 3)?;
            Some(value.contains(&number))
        }

        /// Four holders once 100 was added.
        fn holders(value: &Vec<u8>) -> Option<Holders> {
            let has_moved = value.contains(&100);
            Some(if has_moved { set(2, 4) } else { set(1, 3) })
        }
    }

    fn set(number: u64, count: u16) -> Holders {
        let members: Vec<HolderId> = (0..count).map(HolderId).collect();
        Holders::new(number, &members).expect("a sane set")
    }

    fn last(proposer: u32) -> Ballot {
        Ballot { round: 0, proposer }
    }

    fn three() -> Vec<Acceptor<Vec<u8>>> {
        (0..3).map(|_| Acceptor::new(State::default())).collect()
    }

    /// Sends `request` to these holders, and tells what they answer.
    fn send(
        proposer: &mut Proposer<Add>,
        acceptors: &mut [Acceptor<Vec<u8>>],
        request: &Request<Vec<u8>>,
        to: &[u16],
    ) -> Step<Vec<u8>> {
        let mut steps = Vec::new();
        for &holder in to {
            let reaction = acceptors[usize::from(holder)].on_request(request);
            steps.push(proposer.on_answer(HolderId(holder), reaction.answer));
        }
        let step = steps.into_iter().find(|step| *step != Step::Wait);
        step.unwrap_or(Step::Wait)
    }

    /// A change from its first request to its end, with the holders `to`; how many trips it took,
    /// besides.
    fn run(
        (mut proposer, mut request): (Proposer<Add>, Request<Vec<u8>>),
        acceptors: &mut [Acceptor<Vec<u8>>],
        to: &[u16],
    ) -> (Proposer<Add>, Step<Vec<u8>>, usize) {
        for trips in 1..10 {
            match send(&mut proposer, acceptors, &request, to) {
                Step::Send(next) => request = next,
                step => return (proposer, step, trips),
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn an_undisturbed_proposer_takes_two_trips_and_then_one() {
        let mut acceptors = three();
        let begun = Proposer::change(Add(Some(1)), set(1, 3), last(1));
        let (proposer, step, trips) = run(begun, &mut acceptors, &[0, 1]);
        assert_eq!((step, trips), (Step::Changed(vec![1]), 2));
        let sticky = proposer.sticky().expect("a majority has promised");
        let begun = Proposer::stick(Add(Some(2)), set(1, 3), sticky);
        let (proposer, step, trips) = run(begun, &mut acceptors, &[1, 0]);
        assert_eq!((step, trips), (Step::Changed(vec![1, 2]), 1));
        let begun = Proposer::stick(Add(None), set(1, 3), proposer.sticky().expect("again"));
        let (proposer, step, trips) = run(begun, &mut acceptors, &[0, 1]);
        assert_eq!((step, trips), (Step::Kept(Some(vec![1, 2])), 1));
        // Another one comes in between.
        let sticky = proposer.sticky().expect("again");
        let begun = Proposer::change(
            Add(Some(3)),
            set(1, 3),
            Ballot {
                round: 9,
                proposer: 2,
            },
        );
        let (_, step, _) = run(begun, &mut acceptors, &[1, 2]);
        assert_eq!(step, Step::Changed(vec![1, 2, 3]));
        let begun = Proposer::stick(Add(Some(4)), set(1, 3), sticky);
        let (mut proposer, step, _) = run(begun, &mut acceptors, &[1, 2]);
        assert_eq!(step, Step::Overtaken);
        let Step::Send(request) = proposer.retry() else {
            panic!("a new round");
        };
        let (_, step, trips) = run((proposer, request), &mut acceptors, &[1, 2]);
        assert_eq!((step, trips), (Step::Changed(vec![1, 2, 3, 4]), 2));
    }

    #[test]
    fn a_read_that_finds_agreement_takes_one_trip_and_changes_nothing() {
        let mut acceptors = three();
        let begun = Proposer::read(Add(None), set(1, 3), last(2));
        let (_, step, trips) = run(begun, &mut acceptors, &[1, 2]);
        assert_eq!(
            (step, trips),
            (Step::Kept(None), 1),
            "nobody has written anything"
        );
        run(
            Proposer::change(Add(Some(1)), set(1, 3), last(1)),
            &mut acceptors,
            &[0, 1],
        );
        let before = acceptors.clone();
        let (_, step, trips) = run(
            Proposer::read(Add(None), set(1, 3), last(2)),
            &mut acceptors,
            &[0, 1],
        );
        assert_eq!((step, trips), (Step::Kept(Some(vec![1])), 1));
        assert_eq!(acceptors, before);
        // One of those asked has not heard of it: it is confirmed before it is told.
        let begun = Proposer::read(
            Add(None),
            set(1, 3),
            Ballot {
                round: 5,
                proposer: 2,
            },
        );
        let (_, step, trips) = run(begun, &mut acceptors, &[1, 2]);
        assert_eq!((step, trips), (Step::Kept(Some(vec![1])), 3));
        assert_eq!(acceptors[2].state().value, Some(vec![1]));
    }

    /// Else an operation that was tried again would count twice, or one that was made would be said
    /// to have failed.
    #[test]
    fn a_change_that_is_tried_again_counts_once_or_is_in_doubt() {
        for (own, other) in [
            (1, None),
            (1, Some(Add(None))),
            (1, Some(Add(Some(7)))),
            (9, Some(Add(Some(7)))),
        ] {
            let mut acceptors = three();
            let (mut proposer, request) = Proposer::change(Add(Some(own)), set(1, 3), last(1));
            let Step::Send(accept) = send(&mut proposer, &mut acceptors, &request, &[0, 1]) else {
                panic!("it may propose");
            };
            assert!(proposer.is_in_doubt());
            // One holder accepts it, and its answer is lost.
            acceptors[0].on_request(&accept);
            let expected = match other {
                // Who only wanted to read has found it, and has finished it.
                None | Some(Add(None)) => Step::Changed(vec![own]),
                Some(Add(Some(_))) if own == 9 => Step::Changed(vec![9, 7]),
                Some(Add(Some(_))) => Step::InDoubt(Some(vec![1, 7])),
            };
            if let Some(change) = other {
                let begun = Proposer::change(
                    change,
                    set(1, 3),
                    Ballot {
                        round: 5,
                        proposer: 2,
                    },
                );
                run(begun, &mut acceptors, &[0, 2]);
            }
            let mut step = proposer.retry();
            for _ in 0..6 {
                step = match step {
                    Step::Send(request) => {
                        send(&mut proposer, &mut acceptors, &request, &[0, 1, 2])
                    }
                    Step::Overtaken => proposer.retry(),
                    step => step,
                };
            }
            assert_eq!(step, expected);
        }
    }

    #[test]
    fn whoever_finds_a_newer_set_finishes_it_and_changes_nothing_here() {
        let mut acceptors = three();
        acceptors.push(Acceptor::new(State::default()));
        // It was accepted by one holder, and may or may not have been decided.
        let (mut proposer, request) = Proposer::change(Add(Some(100)), set(1, 3), last(1));
        let Step::Send(accept) = send(&mut proposer, &mut acceptors, &request, &[0, 1]) else {
            panic!("it may propose");
        };
        acceptors[0].on_request(&accept);
        let begun = Proposer::change(
            Add(Some(2)),
            set(1, 3),
            Ballot {
                round: 5,
                proposer: 2,
            },
        );
        let (proposer, step, _) = run(begun, &mut acceptors, &[0, 2]);
        assert_eq!(step, Step::Moved(vec![100]));
        assert!(
            !proposer.is_in_doubt(),
            "it has failed, and can go on in the new set"
        );
        assert_eq!(proposer.sticky(), None);
        let begun = Proposer::change(Add(Some(2)), set(2, 4), proposer.last());
        let (_, step, _) = run(begun, &mut acceptors, &[1, 2, 3]);
        assert_eq!(step, Step::Changed(vec![100, 2]));
        // Whoever has heard of nothing finds no majority in the old one.
        let begun = Proposer::change(
            Add(Some(3)),
            set(1, 3),
            Ballot {
                round: 9,
                proposer: 3,
            },
        );
        let (_, step, _) = run(begun, &mut acceptors, &[0, 1]);
        assert_eq!(step, Step::Outdated(2));
    }
}
