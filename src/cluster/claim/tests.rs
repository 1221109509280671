//! The claim's promises, over many clusters and random histories of them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cluster::map::tests::plain;
use crate::cluster::map::{State, Uuid};
use crate::cluster::ring::Vnodes;

fn node(number: u16, rack: u16, weight: u32, cores: u16) -> Node {
    Node {
        rack: format!("r{rack}"),
        weight,
        cores,
        ..plain(number)
    }
}

fn first(vnodes: u32, replicas: u8, node: Node) -> ClusterMap {
    let vnodes = Vnodes::new(vnodes).expect("a power of two");
    ClusterMap::first(Uuid(1), vnodes, replicas, node).expect("a sound node")
}

/// A cluster that `nodes` joined one after the other.
fn grown(vnodes: u32, nodes: impl IntoIterator<Item = Node>) -> ClusterMap {
    let mut nodes = nodes.into_iter();
    let mut map = first(vnodes, 3, nodes.next().expect("a first node"));
    for node in nodes {
        map = change(&map, &[Change::Put(node)]).expect("it may join");
        check(&map);
    }
    map
}

/// Chance, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// What each core holds, and of how much of it it is the first.
fn loads(map: &ClusterMap) -> BTreeMap<Holder, (u32, u32)> {
    let mut loads: BTreeMap<Holder, (u32, u32)> = BTreeMap::new();
    for vnode in map.vnodes().all() {
        for (place, holder) in map.holders(vnode).iter().enumerate() {
            let load = loads.entry(*holder).or_default();
            *load = (load.0 + 1, load.1 + u32::from(place == 0));
        }
    }
    loads
}

fn cores_of(map: &ClusterMap, node: NodeId) -> Vec<(u32, u32)> {
    let loads = loads(map);
    let cores = map.node(node).expect("it is in the map").cores;
    let load = |core| {
        let core = CoreId(core);
        loads
            .get(&Holder { node, core })
            .copied()
            .unwrap_or_default()
    };
    (0..cores).map(load).collect()
}

/// What must hold of every map that a claim makes: replicas on as many racks as there can be, every
/// node at its fair share rounded up or down (or one below that), its cores within one vnode of
/// each other.
fn check(map: &ClusterMap) {
    let sharing: Vec<&Node> = map.nodes().iter().filter(|node| node.has_share()).collect();
    let racks: BTreeSet<&str> = sharing.iter().map(|node| node.rack.as_str()).collect();
    assert_eq!(map.copies(), sharing.len().min(usize::from(map.replicas())));
    for vnode in map.vnodes().all() {
        let holders = map
            .holders(vnode)
            .iter()
            .map(|at| map.node(at.node).expect("known"));
        let holders: Vec<&Node> = holders.collect();
        assert!(holders.iter().all(|node| node.has_share()), "{vnode:?}");
        let used: BTreeSet<&str> = holders.iter().map(|node| node.rack.as_str()).collect();
        assert_eq!(
            used.len(),
            racks.len().min(map.copies()),
            "racks of {vnode:?}"
        );
    }
    let loads = loads(map);
    for (id, fair) in fair_shares(map) {
        let cores = map.node(id).expect("known").cores;
        let of = |core| {
            loads
                .get(&Holder {
                    node: id,
                    core: CoreId(core),
                })
                .map_or(0, |load| load.0)
        };
        let cores: Vec<u32> = (0..cores).map(of).collect();
        let held = f64::from(cores.iter().sum::<u32>());
        let is_fair = held < fair + 1.0 && held > fair - 2.0;
        assert!(is_fair, "{id:?} holds {held}, not {fair}");
        let spread = cores.iter().max().zip(cores.iter().min());
        assert!(
            spread.is_some_and(|(most, least)| most - least <= 1),
            "{id:?}: {cores:?}"
        );
    }
}

/// How many vnodes any claim must copy: nodes reach their new shares; and one more for each vnode
/// that a rack (a node, where racks do not matter) cannot get where somebody goes, because it is
/// there already.
fn least_copied(old: &ClusterMap, new: &ClusterMap) -> f64 {
    let before: BTreeMap<NodeId, f64> = fair_shares(old).into_iter().collect();
    let after: BTreeMap<NodeId, f64> = fair_shares(new).into_iter().collect();
    let is_going = |node| {
        after
            .get(&node)
            .is_none_or(|fair| fair + 1.0 < before[&node])
    };
    let mut groups: BTreeMap<&str, BTreeSet<NodeId>> = BTreeMap::new();
    for id in after.keys() {
        let rack = new.node(*id).map_or("", |node| &node.rack);
        groups.entry(rack).or_default().insert(*id);
    }
    let groups: Vec<BTreeSet<NodeId>> = match groups.len() >= new.copies() {
        true => groups.into_values().collect(),
        false => after.keys().map(|id| BTreeSet::from([*id])).collect(),
    };
    let mut sum = 0.0;
    for group in &groups {
        let can_come = |vnode: &Vnode| {
            let holders = old.holders(*vnode);
            let inside = holders.iter().filter(|at| group.contains(&at.node)).count();
            let goes = holders
                .iter()
                .any(|at| is_going(at.node) && inside == usize::from(group.contains(&at.node)));
            goes || (holders.len() < new.copies() && inside == 0)
        };
        let room = new.vnodes().all().filter(can_come).count() as f64;
        let gain = gain(group, &before, &after);
        sum += gain + (gain - room).max(0.0);
    }
    sum
}

/// What these nodes get beyond what they have.
fn gain(
    nodes: &BTreeSet<NodeId>,
    before: &BTreeMap<NodeId, f64>,
    after: &BTreeMap<NodeId, f64>,
) -> f64 {
    let had = |node| before.get(node).unwrap_or(&0.0);
    nodes
        .iter()
        .map(|node| (after[node] - had(node)).max(0.0))
        .sum()
}

/// Weights that differ by four, with cores to match, in racks that are no multiple of it.
fn mixed(number: u16, racks: u16) -> Node {
    let weight = [100, 200, 100, 400, 150][usize::from(number * 7 % 5)];
    node(number, number % racks, weight, (weight / 50) as u16)
}

/// The bar: shares within 1.05 of the mean for nodes, 1.15 for cores, and at most 1.1 of what has
/// to be copied, wherever whole vnodes and the racks allow it ([`check`] holds every map to what
/// they do allow).
#[test]
fn clusters_of_all_sizes_are_even_and_move_little() {
    for (size, racks) in [
        (3, 1),
        (3, 3),
        (5, 1),
        (5, 4),
        (30, 1),
        (30, 3),
        (30, 5),
        (100, 5),
    ] {
        for is_mixed in [false, true] {
            let made = |number| match is_mixed {
                true => mixed(number, racks),
                false => node(number, number % racks, 100, 4),
            };
            let map = grown(1024, (1..=size).map(made));
            for (id, fair) in fair_shares(&map) {
                let cores = cores_of(&map, id);
                let held: u32 = cores.iter().map(|core| core.0).sum();
                assert!(
                    f64::from(held) <= fair * 1.05,
                    "{id:?} of {size}: {held}, not {fair}"
                );
                let most = cores.iter().map(|core| core.0).max().unwrap_or(0);
                let even = fair / cores.len() as f64;
                let bar = (even * 1.15).max(even.ceil() + 1e-6);
                assert!(
                    f64::from(most) <= bar,
                    "{id:?} of {size}: {most}, not {even}"
                );
            }
            let after = change(&map, &[Change::Put(made(size + 1))]).expect("it may join");
            check(&after);
            let copied = moves(&map, &after).copied.len() as f64;
            let least = least_copied(&map, &after);
            assert!(
                copied <= least * 1.1 + 1.0,
                "{size} and one: {copied}, not {least}"
            );
            // Whoever goes, somebody keeps the map.
            let map = map.kept_by(NodeId(2)).expect("there is a second node");
            for gone in (1..=size).step_by(usize::from(size) / 3) {
                let after = change(&map, &[Change::Remove(NodeId(gone))]).expect("others are left");
                check(&after);
                let copied = moves(&map, &after).copied.len() as f64;
                let least = least_copied(&map, &after);
                assert!(
                    copied <= least * 1.1 + 1.0,
                    "{size} without {gone}: {copied}, not {least}"
                );
            }
        }
    }
}

/// Else a node that dies would bring one other down with its load.
#[test]
fn what_a_dead_node_served_falls_on_many() {
    let map = grown(
        4096,
        (1..=30).map(|number| node(number, number % 5, 100, 8)),
    );
    for dead in map.nodes() {
        let (mut common, mut seconds): (BTreeMap<NodeId, u32>, BTreeMap<NodeId, u32>) =
            Default::default();
        for (vnode, _) in map.held_by(dead.id) {
            let holders = map.holders(vnode);
            for other in holders.iter().filter(|at| at.node != dead.id) {
                *common.entry(other.node).or_default() += 1;
            }
            if holders[0].node == dead.id {
                *seconds.entry(holders[1].node).or_default() += 1;
            }
        }
        // 410 vnodes, two others each, over 24 nodes on other racks; 137 of them it led.
        assert_eq!(common.len(), 24, "{:?}", dead.id);
        let (most, least) = (common.values().max(), common.values().min());
        assert!(most < Some(&50) && least > Some(&20), "{common:?}");
        assert!(
            seconds.len() >= 20 && seconds.values().max() < Some(&12),
            "{seconds:?}"
        );
    }
}

/// Cluster clients send everything to the first: by their order the nodes and cores are equally
/// busy.
#[test]
fn nodes_and_cores_lead_in_proportion() {
    let even = grown(
        4096,
        (1..=30).map(|number| node(number, number % 4, 100, 8)),
    );
    for at in even.nodes() {
        let leads: Vec<u32> = cores_of(&even, at.id).iter().map(|core| core.1).collect();
        let sum: u32 = leads.iter().sum();
        assert!((136..=138).contains(&sum), "{:?} leads {sum}", at.id);
        assert!(
            leads.iter().all(|lead| (16..=19).contains(lead)),
            "{leads:?}"
        );
    }
    // Where a core leads one vnode or two, its node leads as many as any other.
    let coarse = grown(
        1024,
        (1..=60).map(|number| node(number, number % 4, 100, 8)),
    );
    for at in coarse.nodes() {
        let leads: Vec<u32> = cores_of(&coarse, at.id).iter().map(|core| core.1).collect();
        let sum: u32 = leads.iter().sum();
        assert!((17..=18).contains(&sum), "{:?} leads {sum}", at.id);
        assert!(leads.iter().all(|lead| *lead <= 3), "{leads:?}");
    }
    // Three nodes hold everything, so their weights tell only who is first.
    let heavy = grown(
        1024,
        [(1, 100), (2, 100), (3, 200)].map(|(id, weight)| node(id, id, weight, 4)),
    );
    let leads = |id| {
        cores_of(&heavy, NodeId(id))
            .iter()
            .map(|core| core.1)
            .sum::<u32>()
    };
    assert_eq!([leads(1), leads(2), leads(3)], [256, 256, 512]);
    for (node, share) in [(1, 64), (2, 64), (3, 128)] {
        let cores = cores_of(&heavy, NodeId(node));
        let is_even = |core: &(u32, u32)| core.1.abs_diff(share) <= share / 16;
        assert!(cores.iter().all(is_even), "{cores:?}");
    }
}

/// A node that comes back under another address, or a number of replicas that cannot be had, moves
/// no data and tells clients nothing new.
#[test]
fn what_does_not_change_shares_changes_no_placement() {
    let map = grown(1024, (1..=6).map(|number| node(number, number % 3, 100, 4)));
    let mut moved = node(4, 1, 100, 4);
    moved.host = "elsewhere".to_owned();
    moved.peer_port = 9000;
    let mut dead = node(2, 2, 100, 4);
    dead.state = State::Dead;
    let mut joining = node(7, 1, 100, 4);
    joining.state = State::Joining;
    for put in [moved, dead, joining] {
        let after = change(&map, &[Change::Put(put.clone())]).expect("it may be put");
        assert_eq!(after.epoch(), map.epoch() + 1);
        assert_eq!(after.node(put.id), Some(&put));
        for vnode in map.vnodes().all() {
            assert_eq!(after.holders(vnode), map.holders(vnode), "{put:?}");
        }
    }
}

#[test]
fn a_node_that_leaves_holds_nothing_and_one_that_joined_its_share() {
    let map = grown(1024, (1..=6).map(|number| node(number, number % 3, 100, 4)));
    let mut leaving = node(2, 2, 100, 4);
    leaving.state = State::Leaving;
    let without = change(&map, &[Change::Put(leaving)]).expect("others are left");
    check(&without);
    assert!(without.node(NodeId(2)).is_some(), "it is still known");
    assert_eq!(without.held_by(NodeId(2)).count(), 0);
    let back = change(&without, &[Change::Put(node(2, 2, 100, 4))]).expect("it may stay after all");
    check(&back);
    assert_eq!(back.held_by(NodeId(2)).count(), 512);
}

#[test]
fn vnodes_keep_their_core_while_cores_are_even() {
    let map = grown(
        1024,
        (1..=12).map(|number| node(number, number % 3, 100, 8)),
    );
    let joined = change(&map, &[Change::Put(node(13, 1, 100, 8))]).expect("it may join");
    let moves = moves(&map, &joined);
    let reseated = moves.reseated.len();
    assert!(
        reseated * 50 < moves.copied.len(),
        "{reseated} of {}",
        moves.copied.len()
    );

    // Two cores more: a fifth of the node's vnodes go to them, and nothing moves between nodes.
    let wider = change(&map, &[Change::Put(node(4, 1, 100, 10))]).expect("it may have more cores");
    check(&wider);
    let moves = super::moves(&map, &wider);
    assert!(moves.copied.is_empty() && moves.dropped.is_empty());
    assert!(
        (50..=54).contains(&moves.reseated.len()),
        "{}",
        moves.reseated.len()
    );
    assert!(
        moves
            .reseated
            .iter()
            .all(|(_, was, is)| was.core.0 < 8 && is.core.0 >= 8)
    );
    // And back: those of the cores that are gone, spread over the others.
    let back = change(&wider, &[Change::Put(node(4, 1, 100, 8))]).expect("it may have fewer");
    check(&back);
    let moves = super::moves(&wider, &back);
    assert!(moves.copied.is_empty() && moves.reseated.iter().all(|(_, was, _)| was.core.0 >= 8));
}

#[test]
fn the_number_of_a_removed_node_is_never_given_again() {
    let map = grown(64, (1..=3).map(|number| node(number, 0, 100, 1)));
    let mut other = node(2, 0, 100, 1);
    other.uuid = Uuid(77);
    let taken = Err(Refused::Taken(NodeId(2)));
    assert_eq!(
        change(&map, &[Change::Put(other.clone())]),
        taken,
        "another's"
    );
    let without = change(&map, &[Change::Remove(NodeId(2))]).expect("two are left");
    assert_eq!(
        change(&without, &[Change::Put(other)]),
        taken,
        "it was another's"
    );
    let back = change(&without, &[Change::Put(node(2, 0, 100, 1))]);
    assert_eq!(back, taken, "who was removed comes as somebody new");
    let gone = change(&without, &[Change::Remove(NodeId(2))]);
    assert_eq!(gone, Err(Refused::Unknown(NodeId(2))));
}

#[test]
fn a_change_that_makes_no_map_is_refused() {
    let map = first(64, 3, node(1, 0, 100, 1));
    let refused = |changes: &[Change]| change(&map, changes).expect_err("no such map");
    assert_eq!(refused(&[Change::Remove(NodeId(1))]), Refused::Nobody);
    let mut leaving = node(1, 0, 100, 1);
    leaving.state = State::Leaving;
    assert_eq!(refused(&[Change::Put(leaving)]), Refused::Nobody);
    for (weight, cores) in [(0, 1), (100, 0), (u32::MAX, 1), (100, u16::MAX)] {
        let why = refused(&[Change::Put(node(2, 0, weight, cores))]);
        assert!(matches!(why, Refused::Invalid(_)), "{why}");
    }
    for replicas in [0, 8, 255] {
        let why = refused(&[Change::Replicas(replicas)]);
        assert!(matches!(why, Refused::Invalid(_)), "{why}");
    }
}

/// A random thing that may happen to a cluster; `None` where it makes no sense.
fn happens(map: &ClusterMap, next: u16, chance: &mut Chance) -> Option<Vec<Change>> {
    let weights = [50, 100, 100, 100, 150, 400];
    let any = |chance: &mut Chance| {
        let at = chance.below(map.nodes().len());
        map.nodes()[at].clone()
    };
    let made = |number: u16, chance: &mut Chance| {
        let (rack, weight) = (chance.below(5) as u16, weights[chance.below(6)]);
        node(number, rack, weight, 1 + chance.below(9) as u16)
    };
    let mut known = any(chance);
    Some(match chance.below(10) {
        0..=2 if map.nodes().len() < 40 => vec![Change::Put(made(next, chance))],
        3 => vec![
            Change::Put(made(next, chance)),
            Change::Put(made(next + 1, chance)),
        ],
        4..=5 if map.nodes().len() > 1 => vec![Change::Remove(known.id)],
        6 => {
            known.weight = weights[chance.below(6)];
            vec![Change::Put(known)]
        }
        7 => {
            let other = made(known.id.0, chance);
            (known.cores, known.rack) = (other.cores, other.rack);
            vec![Change::Put(known)]
        }
        8 => {
            let states = [State::Alive, State::Leaving, State::Joining, State::Dead];
            known.state = states[chance.below(4)];
            vec![Change::Put(known)]
        }
        9 => vec![Change::Replicas(1 + chance.below(5) as u8)],
        _ => return None,
    })
}

#[test]
fn random_histories_keep_all_rules_and_move_no_more_than_they_must() {
    let (mut copied, mut least) = (0.0, 0.0);
    for seed in 0..12 {
        let mut chance = Chance(seed * 7919 + 1);
        let vnodes = [64, 256, 1024][seed as usize % 3];
        let mut map = first(vnodes, 3, node(1, 0, 100, 2));
        let mut next = 2;
        for _ in 0..40 {
            let Some(changes) = happens(&map, next, &mut chance) else {
                continue;
            };
            next += 2;
            let after = match change(&map, &changes) {
                Ok(after) => after,
                Err(Refused::Nobody) => continue,
                Err(why) => panic!("seed {seed}: {changes:?}: {why}"),
            };
            check(&after);
            assert_eq!(
                change(&map, &changes),
                Ok(after.clone()),
                "seed {seed}: by chance"
            );
            assert_eq!(ClusterMap::from_json(&after.to_json()), Ok(after.clone()));
            copied += moves(&map, &after).copied.len() as f64;
            least += least_copied(&map, &after);
            map = after;
        }
    }
    assert!(
        copied <= least * 1.1,
        "{copied} were copied, {least} would have to be"
    );
}
