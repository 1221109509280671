//! The ring: key -> position -> vnode -> placement. Pure.
//!
//! The ring has `VNODES` equal arcs, each a run of whole slots. The map gives each its placement:
//! for now the one core of the one node that holds it. A node's cores get contiguous runs of
//! vnodes, as equal as they can be, so that what a cluster client is told stays short.

use crate::config::VNODES;
use crate::types::{CoreId, Position, SLOTS};

const VNODE_SHIFT: u32 = 32 - VNODES.trailing_zeros();
const _: () = assert!(VNODES.is_power_of_two() && VNODES <= SLOTS);

/// One of the equal arcs of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vnode(pub u16);

impl Vnode {
    /// The arc that `position` lies in.
    pub fn of(position: Position) -> Vnode {
        Vnode((position.0 >> VNODE_SHIFT) as u16)
    }
}

/// The placement of all vnodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The core of each vnode.
    cores: Vec<CoreId>,
    count: u16,
}

/// A run of positions that one core holds: `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Who holds it.
    pub core: CoreId,
    /// Its first position.
    pub first: Position,
    /// Its last position.
    pub last: Position,
}

impl Map {
    /// The map of a node alone, with `cores` cores.
    pub fn one_node(cores: u16) -> Map {
        assert!(cores > 0 && u32::from(cores) <= VNODES);
        let owner = |vnode: u32| CoreId((vnode * u32::from(cores) / VNODES) as u16);
        Map {
            cores: (0..VNODES).map(owner).collect(),
            count: cores,
        }
    }

    /// How many cores there are.
    pub fn cores(&self) -> u16 {
        self.count
    }

    /// The core that holds `position`.
    pub fn core_of(&self, position: Position) -> CoreId {
        self.cores[usize::from(Vnode::of(position).0)]
    }

    /// The run of positions around `position` that one core holds.
    pub fn run_of(&self, position: Position) -> Run {
        let core = self.core_of(position);
        let at = usize::from(Vnode::of(position).0);
        let before = self.cores[..at]
            .iter()
            .rev()
            .take_while(|other| **other == core)
            .count();
        let after = self.cores[at..]
            .iter()
            .take_while(|other| **other == core)
            .count();
        let first = Position(((at - before) as u32) << VNODE_SHIFT);
        let next = ((at + after) as u64) << VNODE_SHIFT;
        Run {
            core,
            first,
            last: Position((next - 1) as u32),
        }
    }

    /// All runs, in the order of the ring.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let first = self.run_of(Position(0));
        std::iter::successors(Some(first), |run| Some(self.run_of(run.next()?)))
    }

    /// The first run of `core` that does not end before `position`.
    pub fn run_from(&self, core: CoreId, position: Position) -> Option<Run> {
        self.runs()
            .find(|run| run.core == core && run.last >= position)
    }
}

impl Run {
    /// The position behind it.
    pub fn next(&self) -> Option<Position> {
        self.last.0.checked_add(1).map(Position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Slot;

    #[test]
    fn every_core_gets_an_equal_share_and_every_position_an_owner() {
        for cores in [1, 2, 3, 7, 64, 1024] {
            let map = Map::one_node(cores);
            let mut share = vec![0u32; usize::from(cores)];
            for vnode in 0..VNODES {
                share[usize::from(map.core_of(Position(vnode << VNODE_SHIFT)).0)] += 1;
            }
            let (least, most) = (share.iter().min(), share.iter().max());
            assert!(
                most.zip(least)
                    .is_some_and(|(most, least)| most - least <= 1),
                "{share:?}"
            );
        }
    }

    #[test]
    fn runs_cover_the_ring_once() {
        for cores in [1, 2, 5] {
            let map = Map::one_node(cores);
            let mut next = Some(Position(0));
            for run in map.runs() {
                assert_eq!(Some(run.first), next, "a gap or an overlap");
                assert_eq!(map.core_of(run.last), run.core);
                next = run.next();
            }
            assert_eq!(next, None, "the ring has an end without a core");
            assert_eq!(
                map.runs().count(),
                usize::from(cores),
                "a core's vnodes are one run"
            );
        }
    }

    #[test]
    fn a_walk_over_one_cores_runs_meets_all_of_them_and_no_other() {
        // A map as it is after vnodes were moved: cores have several runs.
        let mut map = Map::one_node(3);
        map.cores[5] = CoreId(2);
        map.cores[1000] = CoreId(0);
        for core in [CoreId(0), CoreId(1), CoreId(2)] {
            let mut walked = Vec::new();
            let mut from = Some(Position(0));
            while let Some(run) = from.and_then(|from| map.run_from(core, from)) {
                walked.push(run);
                from = run.next();
            }
            let own: Vec<Run> = map.runs().filter(|run| run.core == core).collect();
            assert_eq!(walked, own);
        }
        let run = map.run_from(CoreId(2), Position::first_of(Slot(0)));
        assert_eq!(
            run.map(|run| run.first),
            Some(Position::first_of(Slot(80))),
            "vnode 5"
        );
    }
}
