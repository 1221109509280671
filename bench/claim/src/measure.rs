//! What is measured of one map, and of the step from one to the next.

use std::collections::{BTreeMap, BTreeSet};

use quoit::cluster::claim::{fair_shares, moves};
use quoit::cluster::map::{ClusterMap, Holder, NodeId};

/// How far the most loaded are above what they should have; 1 is even.
#[derive(Default)]
pub struct Evenness {
    /// Vnodes of a node, over its weight's part of all.
    pub by_weight: f64,
    /// Vnodes of a node, over its weight's part as far as racks and counting allow.
    pub node: f64,
    /// Vnodes of a core, over its part of that.
    pub core: f64,
    /// The best that whole vnodes allow for a core.
    pub core_best: f64,
    /// Vnodes that a node is the first of, over its weight's part.
    pub first_node: f64,
    /// The same for a core.
    pub first_core: f64,
    /// Vnodes on fewer racks than there could be.
    pub racks_broken: usize,
}

/// What each core holds, and how much of it it is the first of.
pub fn loads(map: &ClusterMap) -> BTreeMap<Holder, (f64, f64)> {
    let mut loads: BTreeMap<Holder, (f64, f64)> = BTreeMap::new();
    for vnode in map.vnodes().all() {
        for (place, holder) in map.holders(vnode).iter().enumerate() {
            let load = loads.entry(*holder).or_default();
            load.0 += 1.0;
            load.1 += if place == 0 { 1.0 } else { 0.0 };
        }
    }
    loads
}

pub fn evenness(map: &ClusterMap) -> Evenness {
    let loads = loads(map);
    let vnodes = f64::from(map.vnodes().count());
    let weights: f64 = map.nodes().iter().map(|node| f64::from(node.weight)).sum();
    let mut most = Evenness {
        racks_broken: racks_broken(map),
        ..Evenness::default()
    };
    for (id, fair) in fair_shares(map) {
        let node = map.node(id).expect("it has a share");
        let cores = f64::from(node.cores);
        let part = vnodes * f64::from(node.weight) / weights;
        let own: Vec<(f64, f64)> = (loads.iter())
            .filter(|(holder, _)| holder.node == id)
            .map(|(_, load)| *load)
            .collect();
        let (held, first) = own
            .iter()
            .fold((0.0, 0.0), |sum, load| (sum.0 + load.0, sum.1 + load.1));
        raise(&mut most.by_weight, held / (part * map.copies() as f64));
        raise(&mut most.node, held / fair);
        raise(&mut most.first_node, first / part);
        raise(
            &mut most.core_best,
            (fair / cores - 1e-6).ceil() / (fair / cores),
        );
        for (held, first) in own {
            raise(&mut most.core, held / (fair / cores));
            raise(&mut most.first_core, first / (part / cores));
        }
    }
    most
}

fn raise(most: &mut f64, value: f64) {
    *most = most.max(value);
}

fn racks_broken(map: &ClusterMap) -> usize {
    let rack = |id| map.node(id).map(|node| node.rack.as_str());
    let all: BTreeSet<_> = map.nodes().iter().map(|node| rack(node.id)).collect();
    let wanted = all.len().min(map.copies());
    let is_broken = |vnode: &_| {
        let holders = map.holders(*vnode).iter();
        let used: BTreeSet<_> = holders.map(|holder| rack(holder.node)).collect();
        used.len() < wanted
    };
    map.vnodes().all().filter(is_broken).count()
}

/// What a step from one map to the next moves.
pub struct Step {
    /// Vnodes that a node gets that did not hold them.
    pub copied: usize,
    /// The least that any claim copies: what nodes should have more than before.
    pub least: f64,
    /// Vnodes that change the core within a node.
    pub reseated: usize,
}

pub fn step(old: &ClusterMap, new: &ClusterMap) -> Step {
    let before: BTreeMap<NodeId, f64> = fair_shares(old).into_iter().collect();
    let gain = |(id, fair): (NodeId, f64)| (fair - before.get(&id).unwrap_or(&0.0)).max(0.0);
    let moves = moves(old, new);
    Step {
        copied: moves.copied.len(),
        least: fair_shares(new).into_iter().map(gain).sum(),
        reseated: moves.reseated.len(),
    }
}

/// Where the load of a dead node falls.
pub struct Fall {
    /// Nodes that hold something that it held.
    pub others: usize,
    /// The most that one of them gets, over its own load: half of what they have in common, for N =
    /// 3.
    pub most: f64,
    /// What each would get if all got equally much.
    pub even: f64,
}

pub fn fall(map: &ClusterMap, dead: NodeId) -> Fall {
    let mut common: BTreeMap<NodeId, f64> = BTreeMap::new();
    let mut held: BTreeMap<NodeId, f64> = BTreeMap::new();
    for vnode in map.vnodes().all() {
        let holders = map.holders(vnode);
        let has_it = holders.iter().any(|holder| holder.node == dead);
        for holder in holders {
            *held.entry(holder.node).or_default() += 1.0;
            if has_it && holder.node != dead {
                *common.entry(holder.node).or_default() += 1.0 / (holders.len() - 1) as f64;
            }
        }
    }
    let lost = held.remove(&dead).unwrap_or_default();
    let most = common.iter().map(|(id, extra)| extra / held[id]);
    Fall {
        others: common.len(),
        most: most.fold(0.0, f64::max),
        even: lost / held.values().sum::<f64>(),
    }
}
