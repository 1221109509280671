//! What a node knows of its cluster and of its own place in it, as it is kept in the file CLUSTER. Pure.
//!
//! payload := uuid u128 | node u16 | generation u64 | state length u32 | state | map length u32 | map
//!
//! Little endian; the file around it is `storage/sealed`. `state` is what the node has promised and accepted as a keeper
//! of the map (`replication/register/format`), `map` the newest map that it knows to be decided, as JSON. Node 0, without
//! a map: it has asked to be let in, and does not know whether it was.

use std::sync::Arc;

use bytes::Bytes;

use crate::cluster::map::{ClusterMap, NodeId, Uuid};
use crate::replication::register::{Acceptor, Ballot, State, format};
use crate::storage::sealed::PAYLOAD_BYTES_MAX;

const FIXED_BYTES: usize = 16 + 2 + 8;
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
    /// As a keeper of the map.
    pub state: State<Bytes>,
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
    pub fn newcomer(uuid: Uuid) -> Record {
        Record {
            uuid,
            place: None,
            generation: 0,
            state: State::default(),
        }
    }

    /// Of the only node of a new cluster. Its map is decided: it is the only keeper, and has accepted it.
    pub fn founder(uuid: Uuid, node: NodeId, map: ClusterMap) -> Record {
        let ballot = Ballot {
            round: 1,
            proposer: u32::from(node.0),
        };
        Record {
            uuid,
            generation: 0,
            state: State {
                set: map.keepers().set,
                promised: ballot,
                accepted: ballot,
                value: Some(map.to_json().into()),
            },
            place: Some(Place {
                node,
                map: Arc::new(map),
            }),
        }
    }

    /// The keeper that it describes.
    pub fn acceptor(&self) -> Acceptor<Bytes> {
        Acceptor::new(self.state.clone())
    }

    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let map = self.place.as_ref().map(|place| place.map.to_json());
        let map = map.unwrap_or_default();
        let state = format::encode_state(&self.state);
        let node = self.place.as_ref().map_or(0, |place| place.node.0);
        let mut out = Vec::with_capacity(FIXED_BYTES + 8 + state.len() + map.len());
        out.extend_from_slice(&self.uuid.0.to_le_bytes());
        out.extend_from_slice(&node.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        for part in [&state[..], map.as_bytes()] {
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
        let (state, rest) = part(rest).ok_or_else(short)?;
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
            state: format::decode_state(state).ok_or("what it has promised is damaged")?,
        })
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

    #[test]
    fn a_record_comes_back_and_nothing_shorter_longer_or_mixed_passes_for_one() {
        let map = ClusterMap::first(Uuid(5), Vnodes::DEFAULT, 3, node(7)).expect("sound");
        let newcomer = Record::newcomer(Uuid(9));
        let mut founder = Record::founder(Uuid(u128::MAX), NodeId(7), map);
        founder.generation = 1 << 40;
        for record in [newcomer, founder] {
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
        let mut mixed = Record::newcomer(Uuid(9)).encode();
        mixed[16] = 3;
        assert!(Record::decode(&mixed).is_err(), "a number without a map");
    }
}
