//! The cluster that Quoit is designed for: 30 nodes, 1 billion keys of 10 KB, 100,000 reads and
//! 10,000 writes a second.
//!
//! Keys are not made one by one: how many fall into a vnode is drawn from the normal distribution
//! that a billion throws approach (seeded), and every key is asked for equally often. Reads are at
//! level ONE, from the first holder, as cluster clients send them; every replica takes every write.

use std::collections::BTreeMap;

use quoit::cluster::claim::moves;
use quoit::cluster::map::{ClusterMap, Holder, NodeId};
use quoit::cluster::ring::Vnode;

use crate::made::{Kind, without};

const NODES: u16 = 30;
const RACKS: u16 = 5;
/// Who leaves, or dies.
const LEAVING: NodeId = NodeId(7);
const KEYS: f64 = 1e9;
const KEY_BYTES: f64 = 10_240.0;
const READS: f64 = 100_000.0;
const WRITES: f64 = 10_000.0;
/// What one node sends, or takes: a throttle that leaves the clients their p99.
const STREAM_BYTES: f64 = 50e6;

/// The load of a core or a node.
#[derive(Clone, Copy, Default)]
struct Load {
    /// Keys that it holds.
    keys: f64,
    /// Keys that it is the first of.
    first: f64,
}

/// What is read off a load.
type Figure = (&'static str, fn(&Load) -> f64);

const FIGURES: [Figure; 5] = [
    ("keys, millions", |load| load.keys / 1e6),
    ("bytes, GB", |load| load.keys * KEY_BYTES / 1e9),
    ("reads/s", |load| load.first / KEYS * READS),
    ("writes/s", |load| load.keys / KEYS * WRITES),
    ("MB/s in and out", |load| {
        (load.first * READS + load.keys * WRITES) / KEYS * KEY_BYTES / 1e6
    }),
];

pub fn print(vnodes: u32, replicas: u8, cores: u16) {
    let kind = Kind {
        vnodes,
        replicas,
        racks: RACKS,
        cores,
        is_unequal: false,
    };
    let map = kind.grown(NODES);
    let keys = keys_of(&map);
    println!(
        "\n{NODES} nodes of {cores} cores on {RACKS} racks, {vnodes} vnodes, {replicas} replicas: 1 billion keys of 10 KB, \
         {READS} reads/s, {WRITES} writes/s"
    );
    let of_cores = loads(&map, &keys, |holder| *holder);
    let of_nodes = loads(&map, &keys, |holder| holder.node);
    println!(
        "{:18} | a node: least, mean, most (most/mean) | a core: least, mean, most (most/mean)",
        ""
    );
    for (name, figure) in FIGURES {
        let nodes = spread(of_nodes.values().map(figure).collect());
        let cores = spread(of_cores.values().map(figure).collect());
        println!("{name:18} | {nodes} | {cores}");
    }
    step(
        "a node joins",
        (&map, &kind.joined(&map, NODES + 1)),
        None,
        &keys,
    );
    let after = without(&map, LEAVING);
    step("a node leaves", (&map, &after), None, &keys);
    step(
        "a dead node is given up",
        (&map, &after),
        Some(LEAVING),
        &keys,
    );
    death(&map, LEAVING, &keys);
}

/// How many keys each vnode has.
fn keys_of(map: &ClusterMap) -> Vec<f64> {
    let count = f64::from(map.vnodes().count());
    let (mean, deviation) = (KEYS / count, (KEYS / count * (1.0 - 1.0 / count)).sqrt());
    let mut state = 42u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // Twelve throws add up to a normal deviate.
    let mut normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
    map.vnodes()
        .all()
        .map(|_| mean + deviation * normal())
        .collect()
}

fn at(keys: &[f64], vnode: Vnode) -> f64 {
    keys[usize::from(vnode.0)]
}

fn loads<T: Ord>(map: &ClusterMap, keys: &[f64], who: impl Fn(&Holder) -> T) -> BTreeMap<T, Load> {
    let mut loads: BTreeMap<T, Load> = BTreeMap::new();
    for vnode in map.vnodes().all() {
        for (place, holder) in map.holders(vnode).iter().enumerate() {
            let load = loads.entry(who(holder)).or_default();
            load.keys += at(keys, vnode);
            load.first += if place == 0 { at(keys, vnode) } else { 0.0 };
        }
    }
    loads
}

fn spread(values: Vec<f64>) -> String {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:10.2} {mean:10.2} {most:10.2} ({:.3})", most / mean)
}

/// What moves, and how long that takes if the old holders, all but `gone`, share the sending.
fn step(name: &str, (old, new): (&ClusterMap, &ClusterMap), gone: Option<NodeId>, keys: &[f64]) {
    let moves = moves(old, new);
    let (mut sent, mut received): (BTreeMap<NodeId, f64>, BTreeMap<NodeId, f64>) =
        Default::default();
    for (vnode, to) in &moves.copied {
        let bytes = at(keys, *vnode) * KEY_BYTES;
        *received.entry(to.node).or_default() += bytes;
        let senders = old.holders(*vnode).iter().map(|holder| holder.node);
        let senders = senders.filter(|node| Some(*node) != gone);
        let load = |node: &NodeId| sent.get(node).copied().unwrap_or_default();
        let least = senders.min_by(|one, other| load(one).total_cmp(&load(other)));
        let Some(sender) = least else {
            continue; // there was one replica
        };
        *sent.entry(sender).or_default() += bytes;
    }
    let total: f64 = received.values().sum();
    let most = |bytes: &BTreeMap<NodeId, f64>| bytes.values().copied().fold(0.0, f64::max);
    let keys_moved: f64 = moves.copied.iter().map(|(vnode, _)| at(keys, *vnode)).sum();
    println!(
        "{name}: {} vnodes, {:.1} million keys, {:.0} GB ({:.2}% of all) from {} nodes (most {:.0} GB) to {} (most {:.0} GB); \
         {:.0} minutes if nobody sends or takes more than {:.0} MB/s; {} vnodes change the core",
        moves.copied.len(),
        keys_moved / 1e6,
        total / 1e9,
        total / (KEYS * KEY_BYTES * new.copies() as f64) * 100.0,
        sent.len(),
        most(&sent) / 1e9,
        received.len(),
        most(&received) / 1e9,
        most(&sent).max(most(&received)) / STREAM_BYTES / 60.0,
        STREAM_BYTES / 1e6,
        moves.reseated.len(),
    );
}

/// Who answers for a dead node before anything has moved.
fn death(map: &ClusterMap, dead: NodeId, keys: &[f64]) {
    let before = loads(map, keys, |holder| holder.node);
    let mut more: BTreeMap<NodeId, f64> = BTreeMap::new();
    for vnode in map.vnodes().all() {
        let holders = map.holders(vnode);
        if holders[0].node == dead && holders.len() > 1 {
            *more.entry(holders[1].node).or_default() += at(keys, vnode) / KEYS * READS;
        }
    }
    let total: f64 = more.values().sum();
    let own = |node: &NodeId| before[node].first / KEYS * READS;
    let most = more.iter().max_by(|one, other| one.1.total_cmp(other.1));
    if let Some((node, most)) = most {
        println!(
            "a node dies: its {total:.0} reads/s go to the second holders, {} nodes; the most that one gets is {most:.0} \
             beside its own {:.0} ({:+.1}%; {:+.1}% if all got equally much)",
            more.len(),
            own(node),
            most / own(node) * 100.0,
            100.0 / f64::from(NODES - 1),
        );
    }
}
