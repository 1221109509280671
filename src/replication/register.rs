//! One value held by several nodes and changed by consensus: a register, without a log and without
//! a leader.
//!
//! Source: Rystsov, "CASPaxos: Replicated State Machines without logs" (2018), which makes a
//! rewritable register of Lamport's single-decree Paxos. Whoever wants to change the value runs a
//! round with a ballot of its own: a majority of the holders *promise* to take nothing of a lower
//! ballot and tell what they have accepted; the change is applied to the newest of that; a majority
//! *accept* the result, and it is decided. A round that changes nothing confirms what is there. A
//! proposer that was not disturbed gets the promise for its next round with the acceptance of this
//! one and saves the first trip.
//!
//! All of it is pure. The caller sends requests, as often as it likes, and tells the answers, in
//! any order. What it owes:
//! - An answer leaves a holder only after the state that it was made from is durable. A holder that has lost its
//!   state does not answer under its old name any more.
//! - Two proposers never bear the same number. One that restarts may begin its rounds anew.
//! - Written values are unique, so that a proposer knows its own again: a map has its epoch and its author.
//!
//! **Who holds it.** The value may name its holders, numbered. Every request says in which set its round is run, and
//! - a round is run in one set only; one in set k + 1 only after a value that names that set was *decided* in set k;
//! - a set differs from the one before in one holder, so that a majority of either has a holder in common with any
//!   majority of the other;
//! - a holder that has heard of set k refuses all that is said in the sets below;
//! - a round in set k that finds a value which names set k + 1 finishes that one, and changes nothing.
//!
//! So when set k + 2 is decided, in k + 1, a majority of k + 1 refuses set k, which then has no
//! majority left: rounds that can succeed at all are in neighbouring sets, and any two of those
//! have a holder in common.

use smallvec::SmallVec;

pub mod format;
pub mod proposer;

pub use proposer::Proposer;

/// Most holders of a register.
pub const HOLDERS_MAX: usize = 5;

/// Orders rounds; the higher one wins. No two rounds have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Counts the rounds that a proposer has heard of.
    pub round: u64,
    /// Who runs it.
    pub proposer: u32,
}

impl Ballot {
    /// Below every ballot of a round: nothing was promised, or accepted.
    pub const ZERO: Ballot = Ballot {
        round: 0,
        proposer: 0,
    };
}

/// A node that holds the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u16);

/// Who holds the register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holders {
    number: u64,
    /// Sorted.
    members: SmallVec<[HolderId; HOLDERS_MAX]>,
}

impl Holders {
    /// The holders of set `number`; `None` if there are none, too many, or one is named twice.
    pub fn new(number: u64, members: &[HolderId]) -> Option<Holders> {
        let mut members: SmallVec<[HolderId; HOLDERS_MAX]> = members.iter().copied().collect();
        members.sort_unstable();
        let is_twice = members.windows(2).any(|pair| pair[0] == pair[1]);
        let is_sane = (1..=HOLDERS_MAX).contains(&members.len()) && !is_twice;
        is_sane.then_some(Holders { number, members })
    }

    /// Counts the changes of the set.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Each of them.
    pub fn members(&self) -> &[HolderId] {
        &self.members
    }

    /// The next set, with `holder` in it; `None` if it is in it, or there is no room.
    pub fn with(&self, holder: HolderId) -> Option<Holders> {
        let mut members = self.members.clone();
        members.push(holder);
        Holders::new(self.number + 1, &members)
    }

    /// The next set, without `holder`; `None` if it is not in it, or is the last.
    pub fn without(&self, holder: HolderId) -> Option<Holders> {
        let mut members = self.members.clone();
        members.remove(self.place(holder)?);
        Holders::new(self.number + 1, &members)
    }

    /// True if a value that names this set may be decided by those of `earlier`: it is the same, or
    /// the next, which differs in one holder.
    pub fn may_follow(&self, earlier: &Holders) -> bool {
        let of_both = self
            .members
            .iter()
            .filter(|holder| earlier.place(**holder).is_some());
        let in_common = of_both.count();
        let differ = self.members.len() + earlier.members.len() - 2 * in_common;
        self == earlier || (self.number == earlier.number + 1 && differ == 1)
    }

    fn place(&self, holder: HolderId) -> Option<usize> {
        self.members.iter().position(|member| *member == holder)
    }

    fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

/// What a proposer asks of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request<V> {
    /// To tell what it has accepted.
    Read {
        /// The set that the proposer believes in.
        set: u64,
    },
    /// To take nothing of a lower ballot any more.
    Prepare {
        /// The set in which the round is run.
        set: u64,
        /// The round's.
        ballot: Ballot,
    },
    /// To accept a value, and to promise the proposer's next ballot with it.
    Accept {
        /// The set in which the round is run.
        set: u64,
        /// The round's.
        ballot: Ballot,
        /// `None`: the register stays empty.
        value: Option<V>,
        /// Of the same proposer, and higher.
        next: Ballot,
    },
}

impl<V> Request<V> {
    /// The set in which its round is run.
    pub fn set(&self) -> u64 {
        let (Request::Read { set } | Request::Prepare { set, .. } | Request::Accept { set, .. }) =
            self;
        *set
    }
}

/// What a holder says. A round's answers bear its ballot, so that a late one cannot be taken for
/// another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer<V> {
    /// What it has accepted.
    Holds {
        /// In which round; [`Ballot::ZERO`]: in none.
        accepted: Ballot,
        /// The value of that round.
        value: Option<V>,
    },
    /// It will take nothing of a lower ballot.
    Promised {
        /// The round's.
        ballot: Ballot,
        /// In which round it has accepted something.
        accepted: Ballot,
        /// What that was.
        value: Option<V>,
    },
    /// It has accepted the value.
    Accepted {
        /// The round's.
        ballot: Ballot,
        /// It holds to the promise for the proposer's next round.
        is_next_promised: bool,
    },
    /// It has promised more.
    Refused {
        /// The round's.
        ballot: Ballot,
        /// What it has promised.
        promised: Ballot,
    },
    /// It has heard of a newer set.
    Outdated {
        /// That one.
        set: u64,
    },
}

/// What a holder keeps, durably.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<V> {
    /// The newest set that it has heard of.
    pub set: u64,
    /// Nothing of a lower ballot is taken.
    pub promised: Ballot,
    /// In which round the value was accepted.
    pub accepted: Ballot,
    /// The value.
    pub value: Option<V>,
}

impl<V> Default for State<V> {
    /// Of a holder that is new.
    fn default() -> State<V> {
        State {
            set: 0,
            promised: Ballot::ZERO,
            accepted: Ballot::ZERO,
            value: None,
        }
    }
}

/// A holder: one of those that promise and accept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor<V> {
    state: State<V>,
}

/// What a holder does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaction<V> {
    /// To be sent when the state is durable, and all that was before it.
    pub answer: Answer<V>,
    /// The state is another than before.
    pub is_changed: bool,
}

impl<V: Clone> Acceptor<V> {
    /// A holder with the state that was durable when it ended.
    pub fn new(state: State<V>) -> Acceptor<V> {
        assert!(
            state.accepted <= state.promised,
            "what is accepted is promised"
        );
        Acceptor { state }
    }

    /// What has to be durable.
    pub fn state(&self) -> &State<V> {
        &self.state
    }

    /// Somebody asks.
    pub fn on_request(&mut self, request: &Request<V>) -> Reaction<V> {
        if request.set() < self.state.set {
            let set = self.state.set;
            return Reaction {
                answer: Answer::Outdated { set },
                is_changed: false,
            };
        }
        let before = (self.state.set, self.state.promised, self.state.accepted);
        let answer = match request {
            Request::Read { .. } => Answer::Holds {
                accepted: self.state.accepted,
                value: self.state.value.clone(),
            },
            Request::Prepare { set, ballot } => self.prepare(*set, *ballot),
            Request::Accept {
                set,
                ballot,
                value,
                next,
            } => self.accept(*set, *ballot, value, *next),
        };
        assert!(self.state.accepted <= self.state.promised);
        let is_changed = before != (self.state.set, self.state.promised, self.state.accepted);
        Reaction { answer, is_changed }
    }

    /// A ballot is promised once: a proposer that has forgotten a round of its own must not get it
    /// again.
    fn prepare(&mut self, set: u64, ballot: Ballot) -> Answer<V> {
        self.state.set = set;
        if ballot <= self.state.promised {
            return self.refuse(ballot);
        }
        self.state.promised = ballot;
        Answer::Promised {
            ballot,
            accepted: self.state.accepted,
            value: self.state.value.clone(),
        }
    }

    fn accept(&mut self, set: u64, ballot: Ballot, value: &Option<V>, next: Ballot) -> Answer<V> {
        self.state.set = set;
        // The same request once more. A ballot has one value.
        let is_again = ballot == self.state.accepted && ballot != Ballot::ZERO;
        if ballot < self.state.promised && !is_again {
            return self.refuse(ballot);
        }
        if !is_again {
            self.state.accepted = ballot;
            self.state.value = value.clone();
            self.state.promised = next.max(ballot);
        }
        Answer::Accepted {
            ballot,
            is_next_promised: self.state.promised == next,
        }
    }

    fn refuse(&self, ballot: Ballot) -> Answer<V> {
        let promised = self.state.promised;
        Answer::Refused { ballot, promised }
    }
}

/// What tests make wrong, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// Half of the holders are taken for a majority.
    SmallMajority,
    /// The change is applied to something accepted, not to the newest of it.
    NotTheNewest,
    /// A proposer that has been overtaken takes a higher ballot and goes on with what it knew.
    StickyWithoutPrepare,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(members: &[u16]) -> Vec<HolderId> {
        members.iter().copied().map(HolderId).collect()
    }

    fn holders(number: u64, members: &[u16]) -> Holders {
        Holders::new(number, &ids(members)).expect("a sane set")
    }

    fn ballot(round: u64, proposer: u32) -> Ballot {
        Ballot { round, proposer }
    }

    /// Else two majorities of neighbouring sets might have no holder in common.
    #[test]
    fn a_set_of_holders_changes_by_one() {
        let three = holders(1, &[1, 2, 3]);
        assert!(three.may_follow(&three));
        let four = three.with(HolderId(4)).expect("there is room");
        assert!(four.may_follow(&three) && !three.may_follow(&four));
        let other = four.without(HolderId(1)).expect("it is there");
        assert!(other.may_follow(&four));
        assert!(!other.may_follow(&three), "two steps");
        assert!(
            !holders(2, &[2, 3, 4]).may_follow(&three),
            "one out and one in at once"
        );
        assert!(
            !holders(3, &[1, 2, 3, 4]).may_follow(&three),
            "a number is left out"
        );
        assert!(!holders(1, &[1, 2]).may_follow(&three), "the same number");
        assert_eq!(three.with(HolderId(3)), None);
        assert_eq!(three.without(HolderId(9)), None);
        assert_eq!(Holders::new(1, &[]), None);
        assert_eq!(Holders::new(1, &ids(&[1, 2, 3, 4, 5, 6])), None);
        assert_eq!(
            holders(1, &[3]).without(HolderId(3)),
            None,
            "somebody must hold it"
        );
    }

    #[test]
    fn a_holder_keeps_its_promise_and_says_what_it_has_accepted() {
        let mut acceptor = Acceptor::new(State::default());
        let set = 1;
        let prepare = |ballot| Request::<u8>::Prepare { set, ballot };
        let accept = |ballot, value| Request::Accept {
            set,
            ballot,
            value: Some(value),
            next: Ballot {
                round: ballot.round + 1,
                ..ballot
            },
        };
        let promised = |ballot, accepted, value| Answer::Promised {
            ballot,
            accepted,
            value,
        };
        let refused = |ballot, promised| Answer::Refused { ballot, promised };
        let accepted = |ballot, is_next_promised| Answer::Accepted {
            ballot,
            is_next_promised,
        };
        let (low, high) = (ballot(1, 1), ballot(1, 2));
        let steps = [
            (prepare(high), promised(high, Ballot::ZERO, None), true),
            (prepare(high), refused(high, high), false),
            (prepare(low), refused(low, high), false),
            (accept(low, 7), refused(low, high), false),
            (accept(high, 8), accepted(high, true), true),
            (accept(high, 8), accepted(high, true), false),
            (
                prepare(ballot(2, 2)),
                refused(ballot(2, 2), ballot(2, 2)),
                false,
            ),
            (
                prepare(ballot(3, 1)),
                promised(ballot(3, 1), high, Some(8)),
                true,
            ),
            (accept(high, 8), accepted(high, false), false),
            (
                accept(ballot(2, 2), 9),
                refused(ballot(2, 2), ballot(3, 1)),
                false,
            ),
            (
                Request::Read { set },
                Answer::Holds {
                    accepted: high,
                    value: Some(8),
                },
                false,
            ),
        ];
        for (index, (request, answer, is_changed)) in steps.into_iter().enumerate() {
            let expected = Reaction { answer, is_changed };
            assert_eq!(acceptor.on_request(&request), expected, "step {index}");
            acceptor = Acceptor::new(acceptor.state().clone());
        }
    }

    #[test]
    fn a_holder_that_has_heard_of_a_newer_set_refuses_the_old_one() {
        let mut acceptor = Acceptor::<u8>::new(State::default());
        let first = ballot(1, 1);
        acceptor.on_request(&Request::Prepare {
            set: 3,
            ballot: first,
        });
        let old = [
            Request::Read { set: 2 },
            Request::Prepare {
                set: 2,
                ballot: ballot(9, 1),
            },
            Request::Accept {
                set: 2,
                ballot: ballot(9, 1),
                value: Some(1),
                next: ballot(10, 1),
            },
        ];
        for request in old {
            let reaction = acceptor.on_request(&request);
            assert_eq!(reaction.answer, Answer::Outdated { set: 3 });
            assert_eq!(acceptor.state().promised, first);
        }
    }
}
