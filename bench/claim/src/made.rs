//! Clusters to measure: nodes of equal or unequal weight on so many racks.

use quoit::cluster::claim::{Change, change};
use quoit::cluster::map::{ClusterMap, Node, NodeId, State, Uuid};
use quoit::cluster::ring::Vnodes;

/// What a cluster is like.
#[derive(Clone, Copy)]
pub struct Kind {
    pub vnodes: u32,
    pub replicas: u8,
    pub racks: u16,
    pub cores: u16,
    pub is_unequal: bool,
}

/// Weights from 1 to 4, in hundredths of the smallest; their mean is 200.
const WEIGHTS: [u32; 5] = [100, 400, 150, 200, 150];

impl Kind {
    /// The node with this number. Its cores are in proportion to its weight.
    pub fn node(&self, number: u16) -> Node {
        // Every rack gets nodes of all weights.
        let weight = match self.is_unequal {
            true => WEIGHTS[usize::from((number - 1) / self.racks) % WEIGHTS.len()],
            false => 200,
        };
        let cores = (u32::from(self.cores) * weight).div_ceil(200) as u16;
        Node {
            id: NodeId(number),
            uuid: Uuid(u128::from(number)),
            host: format!("node-{number}"),
            port: 6379,
            core_port: 16_379,
            peer_port: 7379,
            http_port: 8379,
            rack: format!("rack-{}", number % self.racks),
            weight,
            cores,
            state: State::Alive,
        }
    }

    /// A cluster that `count` nodes joined one after the other.
    pub fn grown(&self, count: u16) -> ClusterMap {
        let vnodes = Vnodes::new(self.vnodes).expect("a power of two, 64 to 16384");
        let first = ClusterMap::first(Uuid(1), vnodes, self.replicas, self.node(1));
        let mut map = first.expect("a sound node");
        for number in 2..=count {
            map = self.joined(&map, number);
        }
        map
    }

    /// The cluster after another node has joined.
    pub fn joined(&self, map: &ClusterMap, number: u16) -> ClusterMap {
        change(map, &[Change::Put(self.node(number))]).expect("it may join")
    }
}

/// The cluster after a node has left, or is dead and given up.
pub fn without(map: &ClusterMap, node: NodeId) -> ClusterMap {
    change(map, &[Change::Remove(node)]).expect("others are left")
}
