//! What a node knows of its cluster and of its own place in it, as it is kept in the file CLUSTER.
//! Pure.
//!
//! payload := uuid u128 | node u16 | generation u64 | keeping length u32 | keeping | map length u32 | map
//! keeping := state            which begins with 1: the map is kept by the cluster's own nodes
//!          | 2 | key          it is kept in etcd, under this key
//!
//! Little endian; the file around it is `storage/sealed`. `state` is what the node has promised and
//! accepted as a keeper of the map (`replication/register/format`), `map` the newest map that it
//! knows to be decided, as JSON. Node 0, without a map: it has asked to be let in, and does not
//! know whether it was.

use std::sync::Arc;

use bytes::Bytes;

use super::wish;
use crate::cluster::map::{ClusterMap, NodeId, Uuid};
use crate::config::ETCD_PREFIX_BYTES_MAX;
use crate::replication::register::{Acceptor, Ballot, State, format};
use crate::storage::sealed::PAYLOAD_BYTES_MAX;

const FIXED_BYTES: usize = 16 + 2 + 8;
/// What a `keeping` begins with that names a key in etcd.
const IN_ETCD: u8 = 2;
/// Bytes of such a key: the prefix, and what is behind it.
const KEY_BYTES_MAX: usize = ETCD_PREFIX_BYTES_MAX + 16;
const _: () = assert!(
    FIXED_BYTES + 2 * (4 + crate::config::MAP_BYTES_MAX) + 1024 < PAYLOAD_BYTES_MAX,
    "two maps have room"
);

/// The contents of CLUSTER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What this data directory is recognised by; made by chance, once.
    pub uuid: Uuid,
    /// This node's number, and the newest map; `None` until it is let in.
    pub place: Option<Place>,
    /// Of the newest start that others may have heard of.
    pub generation: u64,
    /// Where the map is kept. It stays so.
    pub keeping: Keeping,
}

/// Where a cluster's map is kept, and what a node knows of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// By some of the cluster's nodes: what this one has promised and accepted as one of them.
    Register(State<Bytes>),
    /// In etcd, under this key.
    Etcd(String),
}

/// A node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub node: NodeId,
    /// The newest map that it knows.
    pub map: Arc<ClusterMap>,
}

impl Record {
    /// Of a node that is about to ask to be let in.
    pub fn newcomer(uuid: Uuid, keeping: Keeping) -> Record {
        Record {
            uuid,
            place: None,
            generation: 0,
            keeping,
        }
    }

    /// Of the only node of a new cluster. Its map is decided: it is the only keeper, and has
    /// accepted it.
    pub fn founder(uuid: Uuid, node: NodeId, map: ClusterMap) -> Record {
        let ballot = Ballot {
            round: 1,
            proposer: u32::from(node.0),
        };
        Record {
            uuid,
            generation: 0,
            keeping: Keeping::Register(State {
                set: map.keepers().set,
                promised: ballot,
                accepted: ballot,
                value: Some(map.to_json().into()),
            }),
            place: Some(Place {
                node,
                map: Arc::new(map),
            }),
        }
    }

    /// The keeper that it describes; `None`: the map is not kept by nodes.
    pub fn acceptor(&self) -> Option<Acceptor<Bytes>> {
        match &self.keeping {
            Keeping::Register(state) => Some(Acceptor::new(state.clone())),
            Keeping::Etcd(_) => None,
        }
    }

    /// The same with the map that this node is certain was decided, where that is newer than the
    /// one it has: if it alone keeps the map, what it has accepted is decided. It may have ended
    /// between the two, when somebody had been let in already.
    pub fn with_decided(mut self) -> Record {
        if let (Some(place), Keeping::Register(state)) = (&mut self.place, &self.keeping)
            && place.map.keepers().nodes == [place.node]
            && let Some(decided) = state.value.as_ref().and_then(wish::read)
            && decided.epoch() == place.map.epoch() + 1
        {
            place.map = Arc::new(decided);
        }
        self
    }

    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let map = self.place.as_ref().map(|place| place.map.to_json());
        let map = map.unwrap_or_default();
        let keeping = self.keeping.encode();
        let node = self.place.as_ref().map_or(0, |place| place.node.0);
        let mut out = Vec::with_capacity(FIXED_BYTES + 8 + keeping.len() + map.len());
        out.extend_from_slice(&self.uuid.0.to_le_bytes());
        out.extend_from_slice(&node.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        for part in [&keeping[..], map.as_bytes()] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// The record that these bytes are; or why they are none.
    pub fn decode(bytes: &[u8]) -> Result<Record, String> {
        let short = || "it ends too early".to_owned();
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>().ok_or_else(short)?;
        let (uuid, rest_of_fixed) = fixed.split_first_chunk().ok_or_else(short)?;
        let (node, generation) = rest_of_fixed.split_first_chunk().ok_or_else(short)?;
        let (generation, _) = generation.split_first_chunk().ok_or_else(short)?;
        let (keeping, rest) = part(rest).ok_or_else(short)?;
        let (map, rest) = part(rest).ok_or_else(short)?;
        if !rest.is_empty() {
            return Err("there is something behind its end".to_owned());
        }
        let node = NodeId(u16::from_le_bytes(*node));
        let place = match (node.0, map.is_empty()) {
            (0, true) => None,
            (0, false) | (_, true) => {
                return Err("a node without a map, or a map without".to_owned());
            }
            _ => {
                let text = std::str::from_utf8(map).map_err(|why| why.to_string())?;
                let map = ClusterMap::from_json(text).map_err(|why| why.to_string())?;
                Some(Place {
                    node,
                    map: Arc::new(map),
                })
            }
        };
        Ok(Record {
            uuid: Uuid(u128::from_le_bytes(*uuid)),
            place,
            generation: u64::from_le_bytes(*generation),
            keeping: Keeping::decode(keeping).ok_or("what it has promised is damaged")?,
        })
    }
}

impl Keeping {
    fn encode(&self) -> Vec<u8> {
        match self {
            Keeping::Register(state) => format::encode_state(state),
            Keeping::Etcd(key) => [&[IN_ETCD], key.as_bytes()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Keeping> {
        let [IN_ETCD, key @ ..] = bytes else {
            return Some(Keeping::Register(format::decode_state(bytes)?));
        };
        let is_sane = (1..=KEY_BYTES_MAX).contains(&key.len());
        let key = std::str::from_utf8(key).ok().filter(|_| is_sane)?;
        Some(Keeping::Etcd(key.to_owned()))
    }
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ring::Vnodes;
    use crate::membership::tests::node;

    /// Else a founder that ended when somebody had just been let in would take itself to be alone,
    /// and could be given another number of cores, which the others never hear of.
    #[test]
    fn what_the_only_keeper_has_accepted_is_the_map() {
        let first = ClusterMap::first(Uuid(5), Vnodes::DEFAULT, 3, node(7)).expect("sound");
        let accepted = |map: &ClusterMap| {
            Keeping::Register(State {
                value: Some(Bytes::from(map.to_json())),
                ..State::default()
            })
        };
        let of = |map: &ClusterMap, keeping| Record {
            keeping,
            ..Record::founder(Uuid(9), NodeId(7), map.clone())
        };
        let epoch = |record: Record| record.with_decided().place.map(|place| place.map.epoch());
        let next = first.opened();
        assert_eq!(epoch(of(&first, accepted(&next))), Some(next.epoch()));
        assert_eq!(epoch(of(&next, accepted(&next))), Some(next.epoch()));
        let later = next.opened();
        assert_eq!(epoch(of(&first, accepted(&later))), Some(first.epoch()));
        let kept_by_others = first.clone().kept_elsewhere();
        let record = of(&kept_by_others, accepted(&next));
        assert_eq!(epoch(record), Some(first.epoch()), "others may not have it");
    }

    #[test]
    fn a_record_comes_back_and_nothing_shorter_longer_or_mixed_passes_for_one() {
        let map = ClusterMap::first(Uuid(5), Vnodes::DEFAULT, 3, node(7)).expect("sound");
        let in_register = Keeping::Register(State::default());
        let in_etcd = Keeping::Etcd("/quoit/map".to_owned());
        let newcomer = Record::newcomer(Uuid(9), in_register.clone());
        let mut founder = Record::founder(Uuid(u128::MAX), NodeId(7), map);
        founder.generation = 1 << 40;
        let member = Record {
            keeping: in_etcd.clone(),
            ..founder.clone()
        };
        let other = Record::newcomer(Uuid(9), in_etcd);
        for record in [newcomer, founder, member, other] {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Ok(record));
            for cut in 0..bytes.len() {
                assert!(Record::decode(&bytes[..cut]).is_err(), "{cut}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Record::decode(&longer).is_err());
            let mut other = bytes.clone();
            other[16] ^= 7; // the number
            assert!(other[16] == 0 || Record::decode(&other).is_err() || bytes[16] != 0);
        }
        let mut mixed = Record::newcomer(Uuid(9), in_register).encode();
        mixed[16] = 3;
        assert!(Record::decode(&mixed).is_err(), "a number without a map");
    }
}
