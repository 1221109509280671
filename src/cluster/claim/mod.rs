//! The claim: which cores hold which vnodes after the nodes have changed. Pure.
//!
//! [`change`] makes the map of the next epoch. In this order:
//! 1. [`shares`]: how many vnodes each node should hold.
//! 2. [`placing`]: on which nodes each vnode is. Of the holders that it has as many stay as the shares and the
//!    racks allow; those that come are chosen so that any two nodes have about equally many vnodes in common.
//! 3. [`seating`]: on which core of its nodes it is.
//! 4. [`order`]: in which order they stand.
//!
//! The same map and the same changes always give the same next map.

pub mod order;
pub mod placing;
pub mod seating;
pub mod shares;

use std::collections::BTreeMap;
use std::fmt;

use self::placing::{Placing, Seat, Site};
use self::shares::{Candidate, Demand};
use super::map::{
    ClusterMap, Holder, Invalid, Keepers, Node, NodeId, Parts, check_nodes, check_replicas,
};
use super::ring::Vnode;
use crate::config::RETIRED_MAX;
use crate::types::CoreId;

/// What an operator, or a node, asks of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The node is added, or what was known of it is replaced. It gets its share if its state is
    /// ALIVE or DEAD, and gives away what it has if it is LEAVING.
    Put(Node),
    /// The node is gone for good: others get its share, nobody its number.
    Remove(NodeId),
    /// So many replicas of each vnode are wanted.
    Replicas(u8),
}

/// Why there is no next map. The caller may ask for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The number is another node's, or was.
    Taken(NodeId),
    /// There is no such node.
    Unknown(NodeId),
    /// No node would have a share, or keep the map.
    Nobody,
    /// Only one keeper of the map may go at a time.
    Keepers,
    /// The map would be none.
    Invalid(Invalid),
}

/// How two maps differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Vnodes that came to a node that did not hold them: who, and from where nobody or somebody
    /// left.
    pub copied: Vec<(Vnode, Holder)>,
    /// Holders that went.
    pub dropped: Vec<(Vnode, Holder)>,
    /// Vnodes that changed the core within their node: from, to.
    pub reseated: Vec<(Vnode, Holder, Holder)>,
}

/// The map after `changes`, made together. What moves depends on all of them, not on their order.
pub fn change(map: &ClusterMap, changes: &[Change]) -> Result<ClusterMap, Refused> {
    let mut roll = Roll::of(map);
    for change in changes {
        roll.apply(change)?;
    }
    let nodes: Vec<Node> = roll.nodes.into_values().collect();
    let sharing: Vec<&Node> = nodes.iter().filter(|node| node.has_share()).collect();
    if sharing.is_empty() {
        return Err(Refused::Nobody);
    }
    if roll.keepers.set > map.keepers().set + 1 {
        return Err(Refused::Keepers);
    }
    check_nodes(&nodes, &roll.retired)?;
    check_replicas(roll.replicas, map.vnodes())?;
    let demand = Demand {
        vnodes: map.vnodes().count(),
        copies: u32::from(roll.replicas).min(sharing.len() as u32),
    };
    Ok(ClusterMap::build(Parts {
        cluster: map.cluster(),
        epoch: map.epoch() + 1,
        author: 0,
        is_open: map.is_open(),
        keepers: roll.keepers,
        replicas: roll.replicas,
        placement: place(map, &sharing, demand),
        nodes,
        retired: roll.retired,
    })?)
}

/// What differs between `old` and `new`, which are maps of one cluster.
pub fn moves(old: &ClusterMap, new: &ClusterMap) -> Moves {
    assert_eq!(old.vnodes(), new.vnodes(), "a cluster keeps its ring");
    let mut moves = Moves::default();
    for vnode in new.vnodes().all() {
        let (before, after) = (old.holders(vnode), new.holders(vnode));
        for holder in after {
            match before.iter().find(|was| was.node == holder.node) {
                Some(was) if was == holder => {}
                Some(was) => moves.reseated.push((vnode, *was, *holder)),
                None => moves.copied.push((vnode, *holder)),
            }
        }
        let is_gone = |was: &&Holder| after.iter().all(|holder| holder.node != was.node);
        let gone = before.iter().filter(is_gone);
        moves.dropped.extend(gone.map(|was| (vnode, *was)));
    }
    moves
}

/// How many vnodes each node that has a share should hold, as near to its weight as racks and
/// counting allow; a fraction. What is held is this, rounded up or down.
pub fn fair_shares(map: &ClusterMap) -> Vec<(NodeId, f64)> {
    let sharing: Vec<&Node> = map.nodes().iter().filter(|node| node.has_share()).collect();
    let candidate = |site: Site| Candidate {
        weight: site.weight,
        rack: site.rack,
        has: 0,
    };
    let candidates: Vec<Candidate> = sites(&sharing).into_iter().map(candidate).collect();
    let demand = Demand {
        vnodes: map.vnodes().count(),
        copies: map.copies() as u32,
    };
    let shares = shares::fair(&candidates, demand);
    sharing.iter().map(|node| node.id).zip(shares).collect()
}

/// What of the map is not its placement.
struct Roll {
    nodes: BTreeMap<NodeId, Node>,
    retired: Vec<NodeId>,
    replicas: u8,
    keepers: Keepers,
}

impl Roll {
    fn of(map: &ClusterMap) -> Roll {
        let entry = |node: &Node| (node.id, node.clone());
        Roll {
            nodes: map.nodes().iter().map(entry).collect(),
            retired: map.retired().to_vec(),
            replicas: map.replicas(),
            keepers: map.keepers().clone(),
        }
    }

    fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Put(node) => {
                let known = self.nodes.get(&node.id);
                let is_other = known.is_some_and(|known| known.uuid != node.uuid);
                if is_other || self.retired.contains(&node.id) {
                    return Err(Refused::Taken(node.id));
                }
                self.nodes.insert(node.id, node.clone());
            }
            Change::Remove(id) => {
                self.nodes.remove(id).ok_or(Refused::Unknown(*id))?;
                self.keepers.dismiss(*id)?;
                if self.retired.len() == RETIRED_MAX {
                    self.retired.remove(0);
                }
                self.retired.push(*id);
            }
            Change::Replicas(count) => self.replicas = *count,
        }
        Ok(())
    }
}

impl Keepers {
    /// Without `node`, if it is one of them. The caller sees to it that the set changes by one.
    fn dismiss(&mut self, node: NodeId) -> Result<(), Refused> {
        let Ok(place) = self.nodes.binary_search(&node) else {
            return Ok(());
        };
        if self.nodes.len() == 1 {
            return Err(Refused::Nobody);
        }
        self.nodes.remove(place);
        self.set += 1;
        Ok(())
    }
}

/// Who holds each vnode, in order.
fn place(map: &ClusterMap, sharing: &[&Node], demand: Demand) -> Vec<Vec<Holder>> {
    let index: BTreeMap<NodeId, usize> = sharing
        .iter()
        .enumerate()
        .map(|(index, node)| (node.id, index))
        .collect();
    let kept = |vnode: Vnode| -> Vec<Seat> {
        let holders = map.holders(vnode).iter();
        let seats = holders.filter_map(|at| Some((*index.get(&at.node)?, at.core.0)));
        seats.collect()
    };
    let sites = sites(sharing);
    let weights: Vec<u32> = sharing.iter().map(|node| node.weight).collect();
    let cores: Vec<u16> = sharing.iter().map(|node| node.cores).collect();
    let old: Vec<Vec<Seat>> = map.vnodes().all().map(kept).collect();
    let holders = Placing::new(&sites, demand, &old).run();
    let mut seats = seating::sit(&cores, &holders, &old);
    order::order(&weights, &cores, &mut seats);
    let holder = |(node, core): Seat| Holder {
        node: sharing[node].id,
        core: CoreId(core),
    };
    let named = |seats: Vec<Seat>| seats.into_iter().map(holder).collect();
    seats.into_iter().map(named).collect()
}

/// Racks counted from 0.
fn sites(sharing: &[&Node]) -> Vec<Site> {
    let mut racks: BTreeMap<&str, usize> = BTreeMap::new();
    for node in sharing {
        let next = racks.len();
        racks.entry(&node.rack).or_insert(next);
    }
    let site = |node: &&Node| Site {
        weight: node.weight,
        rack: racks[node.rack.as_str()],
    };
    sharing.iter().map(site).collect()
}

impl From<Invalid> for Refused {
    fn from(invalid: Invalid) -> Refused {
        Refused::Invalid(invalid)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Taken(NodeId(id)) => write!(f, "the number {id} is another node's, or was"),
            Refused::Unknown(NodeId(id)) => write!(f, "there is no node {id}"),
            Refused::Nobody => write!(f, "no node would be left to hold the data"),
            Refused::Keepers => write!(f, "one keeper of the map goes at a time"),
            Refused::Invalid(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests;
