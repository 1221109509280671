//! The cluster face of several nodes: every core of each is a node of the Redis Cluster that clients see. Pure.
//!
//! A slot's owner, to clients, is the first of its holders that may be asked: it answers reads at ONE by itself, and asks
//! the others for the rest. Any other holder serves the slot just as well, and is not left because two nodes see their
//! cluster differently for a moment; only who does not hold it at all sends clients on.

use super::face::{Redirect, Seat, name};
use super::map::{ClusterMap, Holder, Node, NodeId};
use crate::types::{CoreId, Position, Slot};

/// What the port of core `own` says to a command on keys in these slots; `None`: it is served.
pub fn judge(
    map: &ClusterMap,
    own: Holder,
    is_there: impl Fn(NodeId) -> bool,
    mut slots: impl Iterator<Item = Slot>,
) -> Option<Redirect> {
    let slot = slots.next()?;
    if slots.any(|other| other != slot) {
        return Some(Redirect::CrossSlot);
    }
    let holders = map.holders_of(Position::first_of(slot));
    if holders.contains(&own) {
        return None;
    }
    let owner = owner(holders, is_there)?; // nobody is there: who asks here is told so
    Some(Redirect::Elsewhere(slot, owner))
}

/// All cores of all nodes. `host` is where clients find a node, `port` where they find core 0 of it.
pub fn seats(
    map: &ClusterMap,
    is_there: impl Fn(NodeId) -> bool,
    host: impl Fn(&Node) -> String,
    port: impl Fn(&Node) -> u16,
) -> Vec<Seat> {
    let mut seats: Vec<Seat> = Vec::new();
    for node in map.nodes() {
        let seat = |core| Seat {
            node: node.id.0,
            core: CoreId(core),
            name: name(node.id.0, CoreId(core)),
            host: host(node),
            port: port(node).saturating_add(core),
            slots: Vec::new(),
            is_there: is_there(node.id),
        };
        seats.extend((0..node.cores).map(seat));
    }
    for (first, last, holders) in map.runs() {
        let Some(owner) = owner(holders, &is_there) else {
            continue; // CLUSTER INFO says how many slots nobody serves
        };
        let is_its = |seat: &&mut Seat| seat.node == owner.node.0 && seat.core == owner.core;
        let seat = seats.iter_mut().find(is_its);
        let seat = seat.expect("holders are cores of nodes of the map");
        let (first, last) = (first.slot(), last.slot());
        match seat.slots.last_mut() {
            Some(run) if run.1.0 + 1 == first.0 => run.1 = last,
            _ => seat.slots.push((first, last)),
        }
    }
    seats
}

fn owner(holders: &[Holder], is_there: impl Fn(NodeId) -> bool) -> Option<Holder> {
    holders.iter().find(|holder| is_there(holder.node)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::claim::{Change, change};
    use crate::cluster::map::{State, Uuid};
    use crate::cluster::ring::Vnodes;
    use crate::types::SLOTS;

    fn node(id: u16) -> Node {
        Node {
            id: NodeId(id),
            uuid: Uuid(u128::from(id)),
            host: format!("10.0.0.{id}"),
            port: 6379,
            core_port: 16_379,
            peer_port: 7379,
            http_port: 8379,
            rack: String::new(),
            weight: 100,
            cores: 2,
            state: State::Alive,
        }
    }

    fn five_nodes() -> ClusterMap {
        let vnodes = Vnodes::new(64).expect("a power of two");
        let first = ClusterMap::first(Uuid(1), vnodes, 3, node(1)).expect("a sound node");
        let others: Vec<Change> = (2..=5).map(|id| Change::Put(node(id))).collect();
        change(&first, &others).expect("they may join")
    }

    fn seats_without(dead: &[u16]) -> Vec<Seat> {
        let is_there = |node: NodeId| !dead.contains(&node.0);
        seats(
            &five_nodes(),
            is_there,
            |node| node.host.clone(),
            |node| node.core_port,
        )
    }

    /// Else a client would ask nobody for some keys, or would be told two owners of others.
    #[test]
    fn every_slot_has_one_owner_that_is_there_while_a_holder_is() {
        for dead in [&[][..], &[2], &[1, 4]] {
            let seats = seats_without(dead);
            assert_eq!(seats.len(), 10, "every core is told of");
            let mut owned: Vec<_> = seats.iter().flat_map(|seat| seat.slots.clone()).collect();
            owned.sort();
            let mut next = 0;
            for (first, last) in owned {
                assert_eq!(u32::from(first.0), next, "a hole or an overlap");
                next = u32::from(last.0) + 1;
            }
            assert_eq!(next, SLOTS);
            for seat in &seats {
                assert_eq!(seat.is_there, !dead.contains(&seat.node));
                assert!(seat.is_there || seat.slots.is_empty());
                let run = seat
                    .slots
                    .windows(2)
                    .find(|two| two[0].1.0 + 1 == two[1].0.0);
                assert_eq!(run, None, "runs are as long as they can be");
            }
        }
        let none: Vec<_> = seats_without(&[1, 2, 3, 4, 5]);
        assert!(none.iter().all(|seat| seat.slots.is_empty()));
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
                    let said = judge(&map, at, is_there, [slot, slot].into_iter());
                    let Some(Redirect::Elsewhere(of, to)) = said else {
                        assert_eq!(said, None);
                        assert!(map.holders_of(Position::first_of(slot)).contains(&at));
                        continue;
                    };
                    assert!(of == slot && is_there(to.node));
                    assert_eq!(judge(&map, to, is_there, [slot].into_iter()), None);
                }
            }
        }
        let apart = [Slot(1), Slot(2)].into_iter();
        let said = judge(&map, own(1, 0), |_| true, apart);
        assert_eq!(said, Some(Redirect::CrossSlot));
    }
}
