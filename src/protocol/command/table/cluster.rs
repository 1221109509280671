//! Rows of the command table: Redis Cluster, as far as its clients ask.
//!
//! Arity, marks and tips are those of Redis 7.0. What changes a cluster by hand (ADDSLOTS, FAILOVER
//! and the like) is not here: no client may do that to the ring.

use super::*;
use crate::protocol::command::{parse_cluster, parse_session};

/// Sorted by name.
pub(super) const ROWS: &[Spec] = &[
    spec("asking", 1, FAST | CONNECTION, parse_cluster::accepted)
        .doc(Group::Cluster, "3.0.0", "O(1)")
        .usage("", "Accepted; no key is ever between two nodes."),
    spec("cluster", -2, NO_MARKS, parse_session::container)
        .doc(Group::Cluster, "3.0.0", "That of the subcommand")
        .usage("", "Questions about which core has which keys.")
        .subcommands(CLUSTER),
    spec(
        "readonly",
        1,
        LOADING | STALE | FAST | CONNECTION,
        parse_cluster::readonly,
    )
    .doc(Group::Cluster, "3.0.0", "O(1)")
    .usage(
        "",
        "Lets this connection read a core's copies of keys of others.",
    ),
    spec(
        "readwrite",
        1,
        LOADING | STALE | FAST | CONNECTION,
        parse_cluster::readwrite,
    )
    .doc(Group::Cluster, "3.0.0", "O(1)")
    .usage("", "Takes READONLY back."),
];

const UNSTEADY: &[&str] = &["nondeterministic_output"];

const CLUSTER: &[Spec] = &[
    spec("cluster|countkeysinslot", 3, STALE, parse_cluster::count)
        .doc(Group::Cluster, "3.0.0", "O(N) over the keys of the slot")
        .usage("slot", "Counts the keys of a slot."),
    spec("cluster|getkeysinslot", 4, STALE, parse_cluster::keys)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "3.0.0", "O(N) over the keys returned")
        .usage("slot count", "Returns keys of a slot."),
    spec("cluster|help", 2, LOADING | STALE, parse_session::help)
        .doc(Group::Cluster, "5.0.0", "O(1)")
        .usage("", "Prints this text."),
    spec("cluster|info", 2, STALE, parse_cluster::info)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "3.0.0", "O(1)")
        .usage("", "Reports on the state of the cluster."),
    spec("cluster|keyslot", 3, STALE, parse_cluster::key_slot)
        .doc(Group::Cluster, "3.0.0", "O(N) over the bytes of the key")
        .usage("key", "Returns the slot of a key."),
    spec("cluster|links", 2, STALE, parse_cluster::links)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "7.0.0", "O(1)")
        .usage("", "Lists links between nodes: there are none."),
    spec("cluster|myid", 2, STALE, parse_cluster::my_id)
        .doc(Group::Cluster, "3.0.0", "O(1)")
        .usage("", "Returns the name of the core that answers."),
    spec("cluster|nodes", 2, STALE, parse_cluster::nodes)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "3.0.0", "O(N) over the cores")
        .usage("", "Describes each core as a node, one in a line."),
    spec(
        "cluster|replicas",
        3,
        ADMIN | STALE,
        parse_cluster::replicas,
    )
    .tips(UNSTEADY)
    .doc(Group::Cluster, "5.0.0", "O(N) over the cores")
    .usage("node-id", "Lists who has copies of what a core owns."),
    spec("cluster|shards", 2, STALE, parse_cluster::shards)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "7.0.0", "O(N) over the cores")
        .usage("", "Lists the cores, each with its slots."),
    spec("cluster|slaves", 3, ADMIN | STALE, parse_cluster::replicas)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "3.0.0", "O(N) over the cores")
        .usage("node-id", "The older name of CLUSTER REPLICAS."),
    spec("cluster|slots", 2, STALE, parse_cluster::slots)
        .tips(UNSTEADY)
        .doc(Group::Cluster, "3.0.0", "O(N) over the cores")
        .usage("", "Lists ranges of slots, each with its core."),
];
