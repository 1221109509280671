//! What a map promises to whoever reads it, and what it refuses.

use super::*;
use crate::cluster::claim::{Change, change};
use serde_json::{Value, json};

/// A node like any other: what tests of whatever has to do with maps begin with.
pub(crate) fn plain(number: u16) -> Node {
    Node {
        id: NodeId(number),
        uuid: Uuid(u128::from(number) << 64 | 7),
        host: format!("10.0.{}.{}", number / 250, number % 250 + 1),
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

fn node(number: u16) -> Node {
    Node {
        rack: format!("rack-{}", number % 3),
        ..plain(number)
    }
}

fn three() -> ClusterMap {
    let first = ClusterMap::first(Uuid(9), Vnodes::DEFAULT, 3, node(1)).expect("a sound node");
    change(&first, &[Change::Put(node(2)), Change::Put(node(3))]).expect("sound nodes")
}

#[test]
fn a_cluster_of_one_node_has_its_data_where_the_node_alone_had_it() {
    for cores in [1, 2, 3, 7, 64] {
        let alone = Node { cores, ..node(5) };
        let map = ClusterMap::first(Uuid(1), Vnodes::DEFAULT, 3, alone).expect("a sound node");
        assert_eq!(Map::of_node(&map, NodeId(5)), Some(Map::one_node(cores)));
        assert_eq!(Map::of_node(&map, NodeId(6)), None, "nobody");
    }
}

#[test]
fn every_node_finds_the_core_that_the_map_names() {
    let map = three();
    for node in map.nodes() {
        let own = Map::of_node(&map, node.id).expect("it is in the map");
        let mut held = 0;
        for (vnode, core) in map.held_by(node.id) {
            held += 1;
            let (first, last) = (map.vnodes().first(vnode), map.vnodes().last(vnode));
            assert_eq!((own.core_of(first), own.core_of(last)), (core, core));
            let holder = Holder {
                node: node.id,
                core,
            };
            assert!(map.holders_of(first).contains(&holder));
        }
        assert_eq!(held, 1024, "three nodes hold three replicas");
    }
}

#[test]
fn runs_tell_the_holders_of_every_position_once() {
    let map = three();
    let mut next = Some(0);
    for (first, last, holders) in map.runs() {
        assert_eq!(Some(first.0), next, "a gap or an overlap");
        assert_eq!(map.holders_of(first), holders);
        assert_eq!(map.holders_of(last), holders);
        next = last.0.checked_add(1);
    }
    assert_eq!(next, None, "the ring has an end without holders");
}

#[test]
fn a_map_is_read_as_it_was_written() {
    let first = ClusterMap::first(Uuid(u128::MAX), Vnodes::DEFAULT, 1, node(7)).expect("sound");
    let grown = three();
    let shrunk = change(&grown, &[Change::Remove(NodeId(2))]).expect("two are left");
    for map in [first, grown, shrunk] {
        let text = map.to_json();
        assert_eq!(ClusterMap::from_json(&text), Ok(map));
    }
}

/// The largest map that the bounds allow is one that can be stored.
#[test]
fn the_bounds_of_its_parts_keep_a_map_within_its_own() {
    let wide = |number: u16| Node {
        id: NodeId(number),
        uuid: Uuid(u128::MAX - u128::from(number)),
        host: format!("{}{number}", "h".repeat(248)),
        rack: "r".repeat(RACK_BYTES_MAX),
        port: 60_000,
        core_port: 60_000,
        peer_port: 60_000,
        http_port: 60_000,
        weight: WEIGHT_MAX,
        cores: CORES_MAX,
        state: State::Joining,
    };
    let numbers = u16::MAX - NODES_MAX as u16 + 1..=u16::MAX;
    let nodes: Vec<Node> = numbers.clone().map(wide).collect();
    let retired = (u16::MAX - 2 * NODES_MAX as u16..u16::MAX - NODES_MAX as u16).map(NodeId);
    let holder = |at: u16| Holder {
        node: NodeId(u16::MAX - at),
        core: CoreId(CORES_MAX - 1),
    };
    let map = ClusterMap::build(Parts {
        cluster: Uuid(u128::MAX),
        epoch: u64::MAX,
        author: u64::MAX,
        is_open: true,
        keepers: Keepers {
            set: u64::MAX,
            nodes: numbers.take(KEEPERS_MAX).map(NodeId).collect(),
        },
        replicas: 4,
        retired: retired.collect(),
        placement: vec![(0..4).map(holder).collect(); 16_384],
        nodes,
    });
    let map = map.expect("it is within all bounds");
    let text = map.to_json();
    assert!(text.len() > MAP_BYTES_MAX / 2, "{} bytes", text.len());
    assert_eq!(ClusterMap::from_json(&text), Ok(map));
}

/// Each of these would have a node index behind an array, count a replica twice, or mistake one
/// cluster's node for another's.
#[test]
fn a_map_that_contradicts_itself_is_refused() {
    let text = three().to_json();
    let faults: &[(&str, Value)] = &[
        ("/format", json!(2)),
        ("/cluster", json!("1234")),
        ("/cluster", json!("+0000000000000000000000000000001")),
        ("/epoch", json!(-1)),
        ("/replicas", json!(0)),
        ("/replicas", json!(2)),
        ("/replicas", json!(8)),
        ("/retired", json!([2])),
        ("/nodes", json!([])),
        ("/nodes/0/id", json!(0)),
        ("/nodes/0/id", json!(2)),
        ("/nodes/0/id", json!(9)),
        ("/nodes/0/uuid", json!(Uuid(2 << 64 | 7).to_string())),
        ("/nodes/0/host", json!("")),
        ("/nodes/0/host", json!("0.0.0.0")),
        ("/nodes/0/host", json!("a b")),
        ("/nodes/0/host", json!("10.0.0.3")),
        ("/nodes/0/port", json!(0)),
        ("/nodes/0/core_port", json!(65_535)),
        ("/nodes/0/peer_port", json!(0)),
        ("/nodes/0/rack", json!("a\"b")),
        ("/nodes/0/rack", json!("r".repeat(65))),
        ("/nodes/0/weight", json!(0)),
        ("/nodes/0/weight", json!(1_000_000)),
        ("/nodes/0/cores", json!(0)),
        ("/nodes/0/cores", json!(1)),
        ("/nodes/0/cores", json!(2000)),
        ("/nodes/0/state", json!("gone")),
        ("/placement", json!([])),
        ("/placement/0", json!([])),
        ("/placement/0", json!([1, 0, 2, 0])),
        ("/placement/0", json!([1, 0, 2, 0, 3])),
        ("/placement/0", json!([1, 0, 2, 0, 2, 1])),
        ("/placement/0", json!([1, 0, 2, 0, 4, 0])),
        ("/placement/0", json!([1, 0, 2, 0, 3, 2])),
        ("/placement/0", json!([1, 0, 2, 0, 3, 70_000])),
    ];
    for (place, fault) in faults {
        let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
        *value.pointer_mut(place).expect("it has such a field") = fault.clone();
        let read = ClusterMap::from_json(&value.to_string());
        assert!(read.is_err(), "{place} = {fault}");
    }
    let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
    value["colour"] = json!("red");
    assert!(
        ClusterMap::from_json(&value.to_string()).is_err(),
        "an unknown field"
    );
    let long = format!("{text}{}", " ".repeat(MAP_BYTES_MAX));
    assert!(ClusterMap::from_json(&long).is_err(), "too long");
}

/// Whatever bytes come, reading them gives a sound map or an error, and never a panic.
#[test]
fn a_map_that_was_garbled_is_refused_or_sound() {
    let small = ClusterMap::first(Uuid(9), Vnodes::new(64).expect("allowed"), 2, node(1));
    let small = change(&small.expect("sound"), &[Change::Put(node(2))]).expect("sound");
    let text = small.to_json();
    let mut state = 1u64;
    let mut chance = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for _ in 0..3000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=chance(3) {
            let at = chance(bytes.len());
            match chance(3) {
                0 => bytes[at] = b"0123456789[]{},:\"-eabc"[chance(22)],
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(4)), // something is left to garble
            }
        }
        let Ok(garbled) = String::from_utf8(bytes) else {
            continue;
        };
        match ClusterMap::from_json(&garbled) {
            Ok(map) => assert_eq!(ClusterMap::from_json(&map.to_json()), Ok(map)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000, "only {refused} were refused");
}

/// Else a cluster that holds data would be taken for an empty one, and be joined by who lacks it.
#[test]
fn a_text_without_the_newer_fields_is_open_and_has_no_keepers() {
    let mut text: Value = serde_json::from_str(&three().to_json()).expect("it is JSON");
    for field in ["open", "author", "keepers"] {
        let fields = text.as_object_mut().expect("an object");
        assert!(fields.remove(field).is_some(), "{field}");
    }
    let map = ClusterMap::from_json(&text.to_string()).expect("an older map");
    assert!(map.is_open() && map.keepers() == &Keepers::default() && map.author() == 0);
}

/// Else two neighbouring sets of keepers might have no majority in common, or nobody in it would
/// exist.
#[test]
fn keepers_are_nodes_of_the_map_and_change_by_one() {
    let map = three();
    assert!(!map.is_open(), "it is new");
    assert_eq!(map.keepers().nodes, [NodeId(1)]);
    let two = map.kept_by(NodeId(3)).expect("it is a node");
    assert_eq!((two.epoch(), two.keepers().set), (map.epoch() + 1, 2));
    assert_eq!(two.kept_by(NodeId(3)), None, "it is one already");
    assert_eq!(two.kept_by(NodeId(9)), None, "nobody knows it");
    let without = change(&two, &[Change::Remove(NodeId(1))]).expect("two are left");
    assert_eq!(without.keepers().nodes, [NodeId(3)]);
    assert_eq!(without.keepers().set, 3);
    let both = [Change::Remove(NodeId(1)), Change::Remove(NodeId(3))];
    assert!(change(&two, &both).is_err(), "nobody would keep the map");
    let last = change(&map, &[Change::Remove(NodeId(1))]);
    assert!(last.is_err(), "nobody would keep the map");
    let open = two.opened().authored(77);
    assert!(open.is_open() && open.author() == 77 && open.epoch() == two.epoch() + 1);
    assert_eq!(ClusterMap::from_json(&open.to_json()), Ok(open.clone()));
    let next = change(&open, &[Change::Replicas(2)]).expect("it may");
    assert!(
        next.is_open() && next.author() == 0,
        "what follows stays open"
    );
    let text = open.to_json().replace("\"nodes\":[1,3]", "\"nodes\":[1,4]");
    assert!(
        ClusterMap::from_json(&text).is_err(),
        "a keeper nobody knows"
    );
}
