//! The ring: position -> vnode -> the core of one node that answers for it. Pure.
//!
//! The ring has Q equal arcs, each a run of whole slots ([`Vnodes`]). Which nodes hold an arc is in
//! the cluster's map ([`super::map::ClusterMap`]); [`Map`] is what one node makes of it for its own
//! cores. The cores of a node alone get contiguous runs of vnodes, as equal as they can be, so that
//! what a cluster client is told stays short.

use super::map::{ClusterMap, NodeId};
use crate::config::{VNODES, VNODES_MAX, VNODES_MIN};
use crate::types::{CoreId, Position, SLOTS};

const _: () = assert!(VNODES.is_power_of_two() && VNODES <= VNODES_MAX);
const _: () = assert!(VNODES_MIN.is_power_of_two() && VNODES_MAX == SLOTS);

/// One of the equal arcs of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vnode(pub u16);

/// How many arcs the ring has: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vnodes {
    /// A position's bits below those that tell its arc.
    shift: u32,
}

impl Vnodes {
    /// What a cluster gets that asks for nothing else.
    pub const DEFAULT: Vnodes = Vnodes {
        shift: 32 - VNODES.trailing_zeros(),
    };

    /// A ring of `count` arcs, if there may be one.
    pub fn new(count: u32) -> Option<Vnodes> {
        let is_allowed = count.is_power_of_two() && (VNODES_MIN..=VNODES_MAX).contains(&count);
        is_allowed.then(|| Vnodes {
            shift: 32 - count.trailing_zeros(),
        })
    }

    /// How many.
    pub fn count(self) -> u32 {
        1 << (32 - self.shift)
    }

    /// All of them, in the order of the ring.
    pub fn all(self) -> impl DoubleEndedIterator<Item = Vnode> {
        (0..self.count()).map(|number| Vnode(number as u16))
    }

    /// The arc that `position` lies in.
    pub fn of(self, position: Position) -> Vnode {
        Vnode((position.0 >> self.shift) as u16)
    }

    /// The first position of `vnode`.
    pub fn first(self, vnode: Vnode) -> Position {
        Position(u32::from(vnode.0) << self.shift)
    }

    /// The last position of `vnode`.
    pub fn last(self, vnode: Vnode) -> Position {
        Position(self.first(vnode).0 | ((1 << self.shift) - 1))
    }
}

/// Which core of one node answers for each vnode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    vnodes: Vnodes,
    /// The core of each vnode.
    cores: Vec<CoreId>,
    /// How many cores there are.
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
        Map::even(Vnodes::DEFAULT, cores)
    }

    /// The same for any number of vnodes.
    pub fn even(vnodes: Vnodes, cores: u16) -> Map {
        let count = vnodes.count();
        assert!(cores > 0);
        let owner = |vnode: u32| CoreId((vnode * u32::from(cores) / count) as u16);
        Map {
            vnodes,
            cores: (0..count).map(owner).collect(),
            count: cores,
        }
    }

    /// What `node` makes of the cluster's map; `None` if the cluster does not know it.
    ///
    /// A vnode that the node holds is its core's there. For the others a core stands in, to keep
    /// hints and to coordinate: always the same one, whatever the rest of the map says.
    pub fn of_node(cluster: &ClusterMap, node: NodeId) -> Option<Map> {
        let count = cluster.node(node)?.cores;
        let mut map = Map::even(cluster.vnodes(), count);
        for (vnode, core) in cluster.held_by(node) {
            map.cores[usize::from(vnode.0)] = core;
        }
        Some(map)
    }

    /// How many cores there are.
    pub fn cores(&self) -> u16 {
        self.count
    }

    /// The core that answers for `position`.
    pub fn core_of(&self, position: Position) -> CoreId {
        self.cores[usize::from(self.vnodes.of(position).0)]
    }

    /// The run of positions around `position` that one core holds.
    pub fn run_of(&self, position: Position) -> Run {
        let core = self.core_of(position);
        let at = usize::from(self.vnodes.of(position).0);
        let is_its = |other: &&CoreId| **other == core;
        let before = self.cores[..at].iter().rev().take_while(is_its).count();
        let after = self.cores[at..].iter().take_while(is_its).count();
        Run {
            core,
            first: self.vnodes.first(Vnode((at - before) as u16)),
            last: self.vnodes.last(Vnode((at + after - 1) as u16)),
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
            for vnode in Vnodes::DEFAULT.all() {
                share[usize::from(map.core_of(Vnodes::DEFAULT.first(vnode)).0)] += 1;
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
    fn vnodes_cut_the_ring_into_equal_runs_of_whole_slots() {
        for (count, is_allowed) in [(63, false), (32, false), (96, false), (32_768, false)] {
            assert_eq!(Vnodes::new(count).is_some(), is_allowed, "{count}");
        }
        for count in [64, 1024, 16_384] {
            let vnodes = Vnodes::new(count).expect("it is allowed");
            assert_eq!(vnodes.count(), count);
            let mut next = Some(0);
            for vnode in vnodes.all() {
                let (first, last) = (vnodes.first(vnode), vnodes.last(vnode));
                assert_eq!(Some(first.0), next, "a gap or an overlap");
                assert_eq!((vnodes.of(first), vnodes.of(last)), (vnode, vnode));
                assert_eq!(Position::first_of(first.slot()), first, "a slot is cut");
                assert_eq!(Position::last_of(last.slot()), last, "a slot is cut");
                next = last.0.checked_add(1);
            }
            assert_eq!(next, None, "the ring has an end without a vnode");
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
