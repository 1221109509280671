//! The cluster face of several nodes: every core of each is a node of the Redis Cluster that
//! clients see. Pure.
//!
//! A slot's owner, to clients, is the first of its holders that is there. Its core's port serves
//! the slot. What other holders have are copies, in clients' words; these are read at the shared
//! ports of their nodes, where every key is served from the node's own copy, if it has one and the
//! level asks for no more. At the port of its core, too, a holder serves reads of clients that have
//! said READONLY. Whom two nodes take for the owner may differ for a moment; but whoever is sent on
//! comes to an earlier holder each time, and the first of those that are there serves.

use std::collections::BTreeMap;

use super::face::{Picture, Range, Redirect, Scope, Seat, name, name_of_copies};
use super::map::{ClusterMap, Holder, Node, NodeId};
use crate::types::{CoreId, Position, Slot};

/// What the port of core `own` says to a command on keys in these slots; `None`: it is served.
pub fn judge(
    map: &ClusterMap,
    (own, scope): (Holder, Scope),
    is_there: impl Fn(NodeId) -> bool,
    mut slots: impl Iterator<Item = Slot>,
) -> Option<Redirect> {
    let slot = slots.next()?;
    if slots.any(|other| other != slot) {
        return Some(Redirect::CrossSlot);
    }
    let holders = map.holders_of(Position::first_of(slot));
    if scope == Scope::Held && holders.contains(&own) {
        return None;
    }
    let owner = owner(holders, is_there)?; // nobody is there: who asks here is told so
    (owner != own).then_some(Redirect::Elsewhere(slot, owner))
}

/// Where clients find the nodes.
pub struct Addresses<H, P, S> {
    /// The host of a node.
    pub host: H,
    /// The port of its core 0 alone.
    pub first_port: P,
    /// The port of all of its cores.
    pub shared_port: S,
}

/// All cores of all nodes, and who has copies of what.
pub fn picture<H, P, S>(
    map: &ClusterMap,
    is_there: impl Fn(NodeId) -> bool,
    addresses: &Addresses<H, P, S>,
) -> Picture
where
    H: Fn(&Node) -> String,
    P: Fn(&Node) -> u16,
    S: Fn(&Node) -> u16,
{
    let mut picture = Picture::default();
    let mut places: BTreeMap<Holder, usize> = BTreeMap::new();
    for node in map.nodes() {
        for core in (0..node.cores).map(CoreId) {
            places.insert(
                Holder {
                    node: node.id,
                    core,
                },
                picture.seats.len(),
            );
            picture.seats.push(Seat {
                name: name(node.id.0, core),
                host: (addresses.host)(node),
                port: (addresses.first_port)(node).saturating_add(core.0),
                is_there: is_there(node.id),
                copies: None,
            });
        }
    }
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (node, owner) in most_copied(map, &is_there) {
        let node = map.node(node).expect("holders are of nodes of the map");
        copies.insert(node.id, picture.seats.len());
        picture.seats.push(Seat {
            name: name_of_copies(node.id.0),
            host: (addresses.host)(node),
            port: (addresses.shared_port)(node),
            is_there: is_there(node.id),
            copies: Some(places[&owner]),
        });
    }
    for (first, last, holders) in map.runs() {
        let Some(owner) = owner(holders, &is_there) else {
            continue; // CLUSTER INFO says how many slots nobody serves
        };
        let others = holders.iter().filter(|holder| **holder != owner);
        let there = others.filter(|holder| is_there(holder.node));
        let mut replicas: Vec<usize> = there.map(|holder| copies[&holder.node]).collect();
        replicas.sort_unstable();
        picture.push(Range {
            slots: (first.slot(), last.slot()),
            owner: places[&owner],
            replicas,
        });
    }
    picture
}

/// By node that holds what another one owns: the owner of most of that.
fn most_copied(map: &ClusterMap, is_there: impl Fn(NodeId) -> bool) -> BTreeMap<NodeId, Holder> {
    let mut counts: BTreeMap<(NodeId, Holder), u32> = BTreeMap::new();
    for (first, last, holders) in map.runs() {
        let Some(owner) = owner(holders, &is_there) else {
            continue;
        };
        let slots = u32::from(last.slot().0) - u32::from(first.slot().0) + 1;
        for holder in holders.iter().filter(|holder| **holder != owner) {
            *counts.entry((holder.node, owner)).or_default() += slots;
        }
    }
    let mut most: BTreeMap<NodeId, (u32, Holder)> = BTreeMap::new();
    for ((node, owner), count) in counts {
        let known = most.entry(node).or_insert((count, owner));
        if count > known.0 {
            *known = (count, owner);
        }
    }
    let most = most.into_iter();
    most.map(|(node, (_, owner))| (node, owner)).collect()
}

/// Whom clients are told to ask.
pub fn owner(holders: &[Holder], is_there: impl Fn(NodeId) -> bool) -> Option<Holder> {
    holders.iter().find(|holder| is_there(holder.node)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::cluster::claim::{Change, change};
    use crate::cluster::face::{Slots, info, nodes, replicas};
    use crate::cluster::map::Uuid;
    use crate::cluster::map::tests::plain;
    use crate::cluster::ring::Vnodes;
    use crate::types::SLOTS;

    fn node(number: u16) -> Node {
        Node {
            host: format!("10.0.0.{number}"),
            ..plain(number)
        }
    }

    fn five_nodes() -> ClusterMap {
        let vnodes = Vnodes::new(64).expect("a power of two");
        let first = ClusterMap::first(Uuid(1), vnodes, 3, node(1)).expect("a sound node");
        let others: Vec<Change> = (2..=5).map(|id| Change::Put(node(id))).collect();
        change(&first, &others).expect("they may join")
    }

    fn picture_without(dead: &[u16]) -> Picture {
        let addresses = Addresses {
            host: |node: &Node| node.host.clone(),
            first_port: |node: &Node| node.core_port,
            shared_port: |node: &Node| node.port,
        };
        let is_there = |node: NodeId| !dead.contains(&node.0);
        picture(&five_nodes(), is_there, &addresses)
    }

    /// Else a client would ask nobody for some keys, or would be told two owners of others.
    #[test]
    fn every_slot_has_one_owner_that_is_there_while_a_holder_is() {
        for dead in [&[][..], &[2], &[1, 4]] {
            let picture = picture_without(dead);
            let of_cores = picture.seats.iter().filter(|seat| seat.copies.is_none());
            assert_eq!(of_cores.count(), 10, "every core is told of");
            let seats = 0..picture.seats.len();
            let mut owned: Vec<Slots> = seats.flat_map(|seat| picture.owned_by(seat)).collect();
            owned.sort();
            let mut next = 0;
            for (first, last) in owned {
                assert_eq!(u32::from(first.0), next, "a hole or an overlap");
                next = u32::from(last.0) + 1;
            }
            assert_eq!(next, SLOTS);
            for (place, seat) in picture.seats.iter().enumerate() {
                let is_dead = dead
                    .iter()
                    .any(|node| seat.host == format!("10.0.0.{node}"));
                assert_eq!(seat.is_there, !is_dead);
                assert!(seat.is_there || picture.owned_by(place).is_empty());
            }
        }
        let none = picture_without(&[1, 2, 3, 4, 5]);
        assert!(none.ranges.is_empty());
        assert!(info(&none, 1).contains("cluster_slots_fail:16384"));
    }

    /// Else a client that reads copies would ask who has none, or one seat would be an owner and a
    /// copy at once, of which clients keep the one that they meet first.
    #[test]
    fn copies_are_told_of_at_the_shared_ports_of_those_that_hold_them() {
        let map = five_nodes();
        for dead in [&[][..], &[3]] {
            let picture = picture_without(dead);
            for range in &picture.ranges {
                let holders = map.holders_of(Position::first_of(range.slots.0));
                let hosts: BTreeSet<String> = holders
                    .iter()
                    .filter(|holder| !dead.contains(&holder.node.0))
                    .map(|holder| format!("10.0.0.{}", holder.node.0))
                    .collect();
                let told = [&[range.owner], &range.replicas[..]].concat();
                let told: BTreeSet<String> = told
                    .iter()
                    .map(|seat| picture.seats[*seat].host.clone())
                    .collect();
                assert_eq!(told, hosts, "{range:?}");
                for seat in range.replicas.iter().map(|seat| &picture.seats[*seat]) {
                    assert!(seat.copies.is_some() && seat.port == 6379, "{seat:?}");
                }
                assert_eq!(picture.seats[range.owner].copies, None);
            }
            let grouped: usize = picture.groups().iter().map(|(_, slots)| slots.len()).sum();
            assert!(grouped <= picture.ranges.len() && grouped > 0);
            let names: BTreeSet<&str> = picture.seats.iter().map(|seat| &seat.name[..]).collect();
            assert_eq!(names.len(), picture.seats.len(), "two seats of one name");
        }
    }

    #[test]
    fn lines_of_copies_name_whose_they_are() {
        let picture = picture_without(&[3]);
        let own = name_of_copies(1);
        let text = nodes(&picture, &own, 7, 99);
        let is_own = |line: &&str| line.starts_with(&own);
        let line = text.lines().find(is_own).expect("it is listed");
        let owner = picture.seats[picture.find(&own).expect("it is there")].copies;
        let owner = owner.expect("it has copies");
        let of = &picture.seats[owner].name;
        let wanted = format!("{own} 10.0.0.1:6379@0 myself,slave {of} 0 0 7 connected");
        assert_eq!(line, wanted);
        assert!(text.contains(" slave,fail ") && text.contains(" master,fail - "));
        let lines = replicas(&picture, owner, (&own, 7, 99));
        assert!(lines.contains(&line.to_owned()), "{lines:?}");
        assert_eq!(lines.len(), picture.replicas_of(owner).len());
        for line in lines {
            assert!(line.contains(&format!("slave {of} ")), "{line}");
        }
    }

    /// Else clients would be sent around in circles, or away from who can serve them.
    #[test]
    fn whoever_is_sent_on_is_served_there() {
        let map = five_nodes();
        let own = |node, core| Holder {
            node: NodeId(node),
            core: CoreId(core),
        };
        for slot in (0..SLOTS as u16).step_by(37).map(Slot) {
            for dead in [None, Some(NodeId(3))] {
                let is_there = |node| Some(node) != dead;
                for at in (1..=5).flat_map(|node| [own(node, 0), own(node, 1)]) {
                    let says =
                        |at, scope| judge(&map, (at, scope), is_there, [slot, slot].into_iter());
                    let is_held = map.holders_of(Position::first_of(slot)).contains(&at);
                    assert_eq!(says(at, Scope::Held).is_none(), is_held, "READONLY");
                    match says(at, Scope::Owned) {
                        Some(Redirect::Elsewhere(of, to)) => {
                            assert!(of == slot && to != at && is_there(to.node));
                            assert_eq!(says(to, Scope::Owned), None);
                        }
                        said => assert!(said.is_none() && is_held, "{said:?}"),
                    }
                }
            }
        }
        let apart = [Slot(1), Slot(2)].into_iter();
        let said = judge(&map, (own(1, 0), Scope::Held), |_| true, apart);
        assert_eq!(said, Some(Redirect::CrossSlot));
    }

    /// Else two nodes that see their cluster differently could send a client to each other for
    /// ever.
    #[test]
    fn nobody_is_sent_in_circles_by_nodes_that_disagree() {
        let map = five_nodes();
        for seed in 0..2_000 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let slot = Slot(chance.u16(..SLOTS as u16));
            let views: Vec<Vec<bool>> = (0..5)
                .map(|_| (0..5).map(|_| chance.bool()).collect())
                .collect();
            let mut at = own_of(chance.u16(1..6));
            let mut hops = 0;
            loop {
                let view = &views[usize::from(at.node.0) - 1];
                let is_there = |node: NodeId| node == at.node || view[usize::from(node.0) - 1];
                let said = judge(&map, (at, Scope::Owned), is_there, [slot].into_iter());
                let Some(Redirect::Elsewhere(_, to)) = said else {
                    break;
                };
                at = to;
                hops += 1;
                assert!(hops <= 3, "seed {seed}: in circles");
            }
        }
    }

    fn own_of(node: u16) -> Holder {
        Holder {
            node: NodeId(node),
            core: CoreId(0),
        }
    }
}
