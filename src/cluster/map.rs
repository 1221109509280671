//! The cluster's map: who the nodes are, and which of their cores hold each vnode. Pure.
//!
//! It is kept and sent as JSON, of at most `MAP_BYTES_MAX` bytes:
//!
//! ```text
//! {"format":1,"cluster":"<32 hex digits>","epoch":7,"author":"<16 hex digits>","open":true,"replicas":3,"retired":[4],
//!  "keepers":{"set":3,"nodes":[1,2,3]},
//!  "nodes":[{"id":1,"uuid":"<32 hex digits>","host":"10.0.0.1","port":6379,"core_port":16379,"peer_port":7379,
//!            "http_port":8379,"rack":"a","weight":100,"cores":8,"state":"alive"}],
//!  "placement":[[1,0,2,3,3,1]]}      for each vnode: node, core, node, core, ...; the first is its primary
//! ```
//!
//! Invariants, of every map that there is ([`Stored::check`]): nodes are in the order of their
//! numbers; no two have the same number, identity or address; no number is also a retired one.
//! Every vnode has equally many holders, on different nodes that the map knows, on cores that those
//! nodes have. Keepers are nodes of the map.
//!
//! The map is itself the value of a register (`replication/register`), whose holders are its
//! *keepers*; so that no two changes ever make the same value, each bears its `author`, a number by
//! chance. A map is *open* when its cluster holds data: until then nodes may join freely, as there
//! is nothing that they would lack. A map that is kept in etcd has no keepers. (Texts from before
//! there were these fields are open, and have none either.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ring::{Map, Vnode, Vnodes};
use crate::config::{
    CORES_MAX, KEEPERS_MAX, MAP_BYTES_MAX, NODES_MAX, PLACEMENT_MAX, RACK_BYTES_MAX, REPLICAS_MAX,
    RETIRED_MAX, WEIGHT_MAX, is_host,
};
use crate::types::{CoreId, Position};

/// The version of the text that this code writes and reads.
const FORMAT: u32 = 1;

/// A node's number: part of every version that it makes. Never 0, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u16);

/// What a cluster, or a node with its data directory, is recognised by: made by chance, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub u128);

/// Whether a node has its share of the vnodes, as the map has it. Who answers at the moment is
/// gossip's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is known and gets its share when it has the data.
    Joining,
    /// It has its share.
    Alive,
    /// It gives its share away.
    Leaving,
    /// It has its share, and an operator has said that it is gone.
    Dead,
}

/// One node, as all others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// What its data directory is recognised by.
    pub uuid: Uuid,
    /// Where it is: a name or an address.
    pub host: String,
    /// The port of all cores.
    pub port: u16,
    /// The port of core 0 alone; the others' follow it.
    pub core_port: u16,
    /// The port by which other nodes reach core 0; the others' follow it.
    pub peer_port: u16,
    /// The port of the HTTP interface.
    pub http_port: u16,
    /// What fails together with it; replicas of a vnode are on different racks.
    pub rack: String,
    /// Its share, in proportion to the others'.
    pub weight: u32,
    /// How many cores it has.
    pub cores: u16,
    /// Whether it has its share.
    pub state: State,
}

/// A core of some node that holds a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its core.
    pub core: CoreId,
}

/// The nodes that hold the map as a register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keepers {
    /// Counts the changes of the set.
    pub set: u64,
    /// Sorted.
    pub nodes: Vec<NodeId>,
}

/// Why a map is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

/// The map of one epoch. Immutable: a change makes another ([`super::claim::change`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    cluster: Uuid,
    epoch: u64,
    author: u64,
    is_open: bool,
    keepers: Keepers,
    vnodes: Vnodes,
    replicas: u8,
    /// In the order of their numbers.
    nodes: Vec<Node>,
    /// Numbers of nodes that were removed, in that order.
    retired: Vec<NodeId>,
    /// How many holders each vnode has.
    width: usize,
    /// The holders of all vnodes, `width` of each.
    holders: Vec<Holder>,
}

/// What makes a map, before it is checked.
pub(super) struct Parts {
    pub cluster: Uuid,
    pub epoch: u64,
    pub author: u64,
    pub is_open: bool,
    pub keepers: Keepers,
    pub replicas: u8,
    pub nodes: Vec<Node>,
    pub retired: Vec<NodeId>,
    pub placement: Vec<Vec<Holder>>,
}

impl ClusterMap {
    /// The map of a cluster that has one node: the same cores hold the same vnodes as when it was
    /// alone. It holds no data, and is kept by that node.
    pub fn first(
        cluster: Uuid,
        vnodes: Vnodes,
        replicas: u8,
        node: Node,
    ) -> Result<ClusterMap, Invalid> {
        let cores = Map::even(vnodes, node.cores.max(1));
        let holders = |vnode| {
            vec![Holder {
                node: node.id,
                core: cores.core_of(vnodes.first(vnode)),
            }]
        };
        ClusterMap::build(Parts {
            cluster,
            epoch: 1,
            author: 0,
            is_open: false,
            keepers: Keepers {
                set: 1,
                nodes: vec![node.id],
            },
            replicas,
            placement: vnodes.all().map(holders).collect(),
            nodes: vec![node],
            retired: Vec::new(),
        })
    }

    /// The map that `parts` make, if they are consistent.
    pub(super) fn build(parts: Parts) -> Result<ClusterMap, Invalid> {
        check_nodes(&parts.nodes, &parts.retired)?;
        check_keepers(&parts)?;
        let vnodes = check_placement(&parts)?;
        let width = parts.placement[0].len();
        Ok(ClusterMap {
            cluster: parts.cluster,
            epoch: parts.epoch,
            author: parts.author,
            is_open: parts.is_open,
            keepers: parts.keepers,
            vnodes,
            replicas: parts.replicas,
            nodes: parts.nodes,
            retired: parts.retired,
            width,
            holders: parts.placement.concat(),
        })
    }

    /// Which cluster it is.
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// Counts the changes. The map with the highest epoch counts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Which change has made it: no two have the same.
    pub fn author(&self) -> u64 {
        self.author
    }

    /// The same, made by this change.
    pub fn authored(mut self, author: u64) -> ClusterMap {
        self.author = author;
        self
    }

    /// True once the cluster holds data: from then on nobody may join who lacks it.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The map of the next epoch, in which the cluster holds data.
    pub fn opened(&self) -> ClusterMap {
        ClusterMap {
            epoch: self.epoch + 1,
            is_open: true,
            ..self.clone()
        }
    }

    /// Who keeps the map.
    pub fn keepers(&self) -> &Keepers {
        &self.keepers
    }

    /// The same, kept by none of its nodes, but elsewhere.
    pub fn kept_elsewhere(mut self) -> ClusterMap {
        self.keepers = Keepers::default();
        self
    }

    /// The map of the next epoch, kept by `node`, too; `None` if it is no node of it, or keeps it
    /// already.
    pub fn kept_by(&self, node: NodeId) -> Option<ClusterMap> {
        let place = self.keepers.nodes.binary_search(&node).err()?;
        self.node(node)?;
        let mut map = self.clone();
        map.epoch += 1;
        map.keepers.set += 1;
        map.keepers.nodes.insert(place, node);
        (map.keepers.nodes.len() <= KEEPERS_MAX).then_some(map)
    }

    /// The map of the next epoch of a node that is alone and has changed: its cores hold what they
    /// hold without a cluster.
    pub fn alone_again(&self, node: Node) -> Result<ClusterMap, Invalid> {
        let is_alone = self.nodes.len() == 1 && self.nodes[0].id == node.id;
        if !is_alone {
            return invalid("others would have to move".to_owned());
        }
        let first = ClusterMap::first(self.cluster, self.vnodes, self.replicas, node)?;
        Ok(ClusterMap {
            epoch: self.epoch + 1,
            is_open: self.is_open,
            keepers: self.keepers.clone(),
            retired: self.retired.clone(),
            ..first
        })
    }

    /// The map of the next epoch, in which a node is somewhere else, and else as it was.
    pub fn readdressed(&self, node: Node) -> Result<ClusterMap, Invalid> {
        let place = self.nodes.binary_search_by_key(&node.id, |node| node.id);
        let share = |node: &Node| (node.uuid, node.weight, node.cores, node.state);
        let known = place.map(|place| &self.nodes[place]);
        if !known.is_ok_and(|known| share(known) == share(&node) && known.rack == node.rack) {
            return invalid("its share would change".to_owned());
        }
        let mut map = self.clone();
        map.epoch += 1;
        map.nodes[place.expect("it is known")] = node;
        check_nodes(&map.nodes, &map.retired)?;
        Ok(map)
    }

    /// The arcs of the ring.
    pub fn vnodes(&self) -> Vnodes {
        self.vnodes
    }

    /// How many replicas are wanted. There are fewer while there are fewer nodes.
    pub fn replicas(&self) -> u8 {
        self.replicas
    }

    /// How many holders each vnode has.
    pub fn copies(&self) -> usize {
        self.width
    }

    /// All nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One of them.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        let at = self.nodes.binary_search_by_key(&id, |node| node.id).ok()?;
        Some(&self.nodes[at])
    }

    /// Numbers of nodes that were removed.
    pub fn retired(&self) -> &[NodeId] {
        &self.retired
    }

    /// Who holds `vnode`; the first is its primary.
    pub fn holders(&self, vnode: Vnode) -> &[Holder] {
        let at = usize::from(vnode.0) * self.width;
        &self.holders[at..at + self.width]
    }

    /// Who holds the keys at `position`; the first is their primary.
    pub fn holders_of(&self, position: Position) -> &[Holder] {
        self.holders(self.vnodes.of(position))
    }

    /// What `node` holds, with the core for each.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = (Vnode, CoreId)> {
        self.vnodes.all().filter_map(move |vnode| {
            let holder = self.holders(vnode).iter().find(|at| at.node == node)?;
            Some((vnode, holder.core))
        })
    }

    /// The ring in runs of positions that the same holders have in the same order: the first and
    /// the last position, both included, and the holders.
    pub fn runs(&self) -> Vec<(Position, Position, &[Holder])> {
        let mut runs: Vec<(Position, Position, &[Holder])> = Vec::new();
        for vnode in self.vnodes.all() {
            let (first, last) = (self.vnodes.first(vnode), self.vnodes.last(vnode));
            let holders = self.holders(vnode);
            match runs.last_mut() {
                Some(run) if run.2 == holders => run.1 = last,
                _ => runs.push((first, last, holders)),
            }
        }
        runs
    }

    /// The map as text.
    pub fn to_json(&self) -> String {
        let pairs = |holders: &[Holder]| {
            let pair = |at: &Holder| [at.node.0, at.core.0];
            holders.iter().flat_map(pair).collect()
        };
        let stored = Stored {
            format: FORMAT,
            cluster: self.cluster,
            epoch: self.epoch,
            author: Author(self.author),
            open: self.is_open,
            keepers: self.keepers.clone(),
            replicas: self.replicas,
            retired: self.retired.clone(),
            nodes: self.nodes.clone(),
            placement: self.holders.chunks(self.width).map(pairs).collect(),
        };
        let text = serde_json::to_string(&stored).expect("names are text, and nothing is a float");
        assert!(text.len() <= MAP_BYTES_MAX, "the bounds of its parts");
        text
    }

    /// Reads what [`ClusterMap::to_json`] wrote, and checks all of it.
    pub fn from_json(text: &str) -> Result<ClusterMap, Invalid> {
        if text.len() > MAP_BYTES_MAX {
            return invalid(format!("{} bytes are too many", text.len()));
        }
        // What is older or newer than this code may have other fields: its format is told apart
        // first.
        let format: Format = serde_json::from_str(text).map_err(|why| Invalid(why.to_string()))?;
        if format.format != FORMAT {
            return invalid(format!("format {}, not {FORMAT}", format.format));
        }
        let stored: Stored = serde_json::from_str(text).map_err(|why| Invalid(why.to_string()))?;
        let holder = |pair: &[u16]| Holder {
            node: NodeId(pair[0]),
            core: CoreId(pair[1]),
        };
        if stored.placement.iter().any(|pairs| pairs.len() % 2 == 1) {
            return invalid("a node without a core in the placement".to_owned());
        }
        let holders = |pairs: &Vec<u16>| pairs.chunks(2).map(holder).collect();
        ClusterMap::build(Parts {
            cluster: stored.cluster,
            epoch: stored.epoch,
            author: stored.author.0,
            is_open: stored.open,
            keepers: stored.keepers,
            replicas: stored.replicas,
            placement: stored.placement.iter().map(holders).collect(),
            nodes: stored.nodes,
            retired: stored.retired,
        })
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The text, field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    cluster: Uuid,
    epoch: u64,
    #[serde(default)]
    author: Author,
    #[serde(default = "is_open_by_default")]
    open: bool,
    #[serde(default)]
    keepers: Keepers,
    replicas: u8,
    retired: Vec<NodeId>,
    nodes: Vec<Node>,
    placement: Vec<Vec<u16>>,
}

fn is_open_by_default() -> bool {
    true
}

/// As text, for numbers in JSON may have 53 bits only.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Author(u64);

impl Node {
    /// True if it is to have a share of the vnodes.
    pub fn has_share(&self) -> bool {
        matches!(self.state, State::Alive | State::Dead)
    }

    /// What is wrong with it, if something is.
    fn fault(&self) -> Option<&'static str> {
        let has_room =
            |first: u16| first > 0 && u32::from(first) + u32::from(self.cores) <= 1 << 16;
        let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        let rules = [
            (self.id.0 > 0, "number 0"),
            (!self.host.is_empty() && is_host(&self.host), "no host"),
            ((1..=CORES_MAX).contains(&self.cores), "no number of cores"),
            ((1..=WEIGHT_MAX).contains(&self.weight), "no weight"),
            (self.port > 0 && self.http_port > 0, "port 0"),
            (has_room(self.core_port), "no ports for its cores"),
            (has_room(self.peer_port), "no ports for its peers"),
            (self.rack.len() <= RACK_BYTES_MAX, "a long rack"),
            (self.rack.bytes().all(is_name), "no name of a rack"),
        ];
        let broken = rules.iter().find(|(holds, _)| !holds);
        broken.map(|(_, fault)| *fault)
    }
}

pub(super) fn check_nodes(nodes: &[Node], retired: &[NodeId]) -> Result<(), Invalid> {
    if nodes.is_empty() || nodes.len() > NODES_MAX || retired.len() > RETIRED_MAX {
        return invalid(format!("{} nodes", nodes.len()));
    }
    let retired: BTreeSet<NodeId> = retired.iter().copied().collect();
    let (mut uuids, mut places) = (BTreeMap::new(), BTreeMap::new());
    for node in nodes {
        let NodeId(number) = node.id;
        if let Some(fault) = node.fault() {
            return invalid(format!("node {number} has {fault}"));
        }
        if retired.contains(&node.id) {
            return invalid(format!("node {number} has the number of a removed one"));
        }
        if let Some(other) = uuids.insert(node.uuid, number) {
            return invalid(format!(
                "nodes {other} and {number} have one identity: is one's data directory a copy of the other's? Each node needs \
                 its own"
            ));
        }
        if let Some(other) = places.insert((&node.host, node.peer_port), number) {
            return invalid(format!(
                "nodes {other} and {number} would both be at {}:{}: each needs a host or a `peer-port` of its own",
                node.host, node.peer_port
            ));
        }
    }
    match nodes.is_sorted_by(|one, next| one.id < next.id) {
        true => Ok(()),
        false => invalid("nodes are out of order".to_owned()),
    }
}

fn check_keepers(parts: &Parts) -> Result<(), Invalid> {
    let Keepers { set, nodes } = &parts.keepers;
    let is_known = |id: &NodeId| parts.nodes.iter().any(|node| node.id == *id);
    let is_sorted = nodes.is_sorted_by(|one, next| one < next);
    let is_some = *set > 0 && (1..=KEEPERS_MAX).contains(&nodes.len());
    let is_none = *set == 0 && nodes.is_empty();
    match is_none || (is_some && is_sorted && nodes.iter().all(is_known)) {
        true => Ok(()),
        false => invalid("no set of keepers".to_owned()),
    }
}

pub(super) fn check_replicas(replicas: u8, vnodes: Vnodes) -> Result<(), Invalid> {
    let places = usize::from(replicas) * vnodes.count() as usize;
    match (1..=REPLICAS_MAX).contains(&replicas) && places <= PLACEMENT_MAX {
        true => Ok(()),
        false => invalid(format!("{replicas} replicas")),
    }
}

fn check_placement(parts: &Parts) -> Result<Vnodes, Invalid> {
    let Some(vnodes) = Vnodes::new(parts.placement.len() as u32) else {
        return invalid(format!("{} vnodes", parts.placement.len()));
    };
    let width = parts.placement[0].len();
    let replicas = usize::from(parts.replicas);
    check_replicas(parts.replicas, vnodes)?;
    if width == 0 || width > replicas {
        return invalid(format!("{width} holders of a vnode"));
    }
    for (vnode, holders) in parts.placement.iter().enumerate() {
        let nodes: BTreeSet<NodeId> = holders.iter().map(|at| at.node).collect();
        if holders.len() != width || nodes.len() != width {
            return invalid(format!("vnode {vnode} has not {width} holders"));
        }
        for holder in holders {
            let at = parts
                .nodes
                .binary_search_by_key(&holder.node, |node| node.id);
            let has_core = at.is_ok_and(|at| holder.core.0 < parts.nodes[at].cores);
            if !has_core {
                return invalid(format!("vnode {vnode} is where no core is"));
            }
        }
    }
    Ok(vnodes)
}

fn invalid<T>(why: String) -> Result<T, Invalid> {
    Err(Invalid(why))
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no cluster map: {}", self.0)
    }
}

impl std::error::Error for Invalid {}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Author> for String {
    fn from(author: Author) -> String {
        format!("{:016x}", author.0)
    }
}

impl TryFrom<String> for Author {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Author, Invalid> {
        let is_digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(&text, 16) {
            Ok(number) if is_digits => Ok(Author(number)),
            _ => invalid("an author is 16 hexadecimal digits".to_owned()),
        }
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.to_string()
    }
}

impl TryFrom<String> for Uuid {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Uuid, Invalid> {
        let is_digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16);
        match number {
            Ok(number) if is_digits => Ok(Uuid(number)),
            _ => invalid("an identity is 32 hexadecimal digits".to_owned()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
