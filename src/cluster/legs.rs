//! A walk over the whole ring, leg by leg: who is asked about which part of it. Pure.
//!
//! Each vnode is asked of one core that holds it; a leg is a run of vnodes that the same one is
//! asked about. Where a walk stands is a position, never a core: whoever holds what comes next can
//! go on with it.

use super::map::Holder;
use super::ring::{Vnode, Vnodes};
use crate::types::Position;

/// Who is asked about a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This core.
    Ask(Holder),
    /// Nobody: the walk does not concern it.
    Pass,
    /// Nobody who holds it is there.
    Nobody,
}

/// A part of the ring, and who is asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Its first position.
    pub first: Position,
    /// Its last position.
    pub last: Position,
    /// Who is asked.
    pub holder: Holder,
}

/// What comes next of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Leg(Leg),
    /// What is at this position nobody can tell of.
    Nobody(Position),
    /// Nothing more.
    End,
}

/// The first leg that does not end before `from`.
pub fn next(vnodes: Vnodes, from: Position, choose: impl Fn(Vnode) -> Choice) -> Next {
    let start = vnodes.of(from);
    let mut leg: Option<Leg> = None;
    for vnode in vnodes.all().skip(usize::from(start.0)) {
        let choice = choose(vnode);
        let (first, last) = (vnodes.first(vnode), vnodes.last(vnode));
        match (&mut leg, choice) {
            (Some(leg), Choice::Ask(holder)) if holder == leg.holder => leg.last = last,
            (Some(leg), _) => return Next::Leg(*leg),
            (None, Choice::Ask(holder)) => {
                let first = first.max(from);
                leg = Some(Leg {
                    first,
                    last,
                    holder,
                });
            }
            (None, Choice::Nobody) => return Next::Nobody(first.max(from)),
            (None, Choice::Pass) => {}
        }
    }
    leg.map_or(Next::End, Next::Leg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::map::NodeId;
    use crate::types::CoreId;

    fn of(number: u16) -> Holder {
        Holder {
            node: NodeId(number),
            core: CoreId(0),
        }
    }

    /// All legs from `from` on, up to where nobody is there.
    fn legs(from: u32, choose: impl Fn(Vnode) -> Choice) -> (Vec<Leg>, Next) {
        let vnodes = Vnodes::new(64).expect("a power of two");
        let (mut legs, mut from) = (Vec::new(), Some(Position(from)));
        loop {
            let next = from.map_or(Next::End, |from| next(vnodes, from, &choose));
            match next {
                Next::Leg(leg) => {
                    from = leg.last.0.checked_add(1).map(Position);
                    legs.push(leg);
                }
                end => return (legs, end),
            }
        }
    }

    /// Else a key would be met twice, or by nobody.
    #[test]
    fn the_legs_of_a_walk_cover_the_ring_once_and_ask_whom_they_should() {
        let vnodes = Vnodes::new(64).expect("a power of two");
        for seed in 0..200 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let holders: Vec<u16> = (0..64).map(|_| chance.u16(1..4)).collect();
            let choose = |vnode: Vnode| Choice::Ask(of(holders[usize::from(vnode.0)]));
            let start = chance.u32(..);
            let (legs, end) = legs(start, choose);
            assert_eq!(end, Next::End, "seed {seed}");
            let mut next = Some(start);
            for leg in &legs {
                assert_eq!(Some(leg.first.0), next, "seed {seed}: a gap or an overlap");
                let (first, last) = (vnodes.of(leg.first).0, vnodes.of(leg.last).0);
                for vnode in first..=last {
                    assert_eq!(choose(Vnode(vnode)), Choice::Ask(leg.holder));
                }
                next = leg.last.0.checked_add(1);
            }
            assert_eq!(next, None, "seed {seed}: the end of the ring is left out");
            let is_cut = |two: &[Leg]| two[0].holder == two[1].holder;
            assert!(!legs.windows(2).any(is_cut), "seed {seed}: needlessly many");
        }
    }

    #[test]
    fn what_does_not_concern_a_walk_is_passed_and_a_hole_ends_it() {
        let choose = |vnode: Vnode| match vnode.0 {
            3..5 | 60 => Choice::Ask(of(1)),
            _ => Choice::Pass,
        };
        let (found, end) = legs(0, choose);
        let vnodes = Vnodes::new(64).expect("a power of two");
        let firsts: Vec<Position> = found.iter().map(|leg| leg.first).collect();
        assert_eq!(
            firsts,
            [vnodes.first(Vnode(3)), vnodes.first(Vnode(60))],
            "only its own"
        );
        assert_eq!((found[0].last, end), (vnodes.last(Vnode(4)), Next::End));

        let choose = |vnode: Vnode| match vnode.0 {
            7 => Choice::Nobody,
            _ => Choice::Ask(of(2)),
        };
        let (found, end) = legs(5, choose);
        assert_eq!((found.len(), found[0].first), (1, Position(5)));
        assert_eq!(end, Next::Nobody(vnodes.first(Vnode(7))));
    }
}
