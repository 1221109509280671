//! A message of gossip, as bytes. Pure.
//!
//! ```text
//! message := format u8 | kind u8 | from u16 | cluster u128 | epoch u64 | count u16 | beats
//! beat    := node u16 | generation u64 | heartbeat u64        (all little endian)
//! ```
//!
//! Nothing else belongs to it: a message with more or fewer bytes than its count says is none.

use crate::cluster::map::{NodeId, Uuid};
use crate::cluster::member::Heartbeat;
use crate::config::NODES_MAX;

const FORMAT: u8 = 1;
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const HEAD_BYTES: usize = 1 + 1 + 2 + 16 + 8 + 2;
const BEAT_BYTES: usize = 2 + 8 + 8;
/// Most bytes of a message.
pub const MESSAGE_BYTES_MAX: usize = HEAD_BYTES + NODES_MAX * BEAT_BYTES;
/// Generations and counts are below this, so that another one can always follow. Unix milliseconds
/// reach it in 285,000 years.
pub const COUNT_MAX: u64 = 1 << 53;
const _: () = assert!(NODES_MAX <= u16::MAX as usize);

/// Whether a message wants one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It wants an answer.
    Ask,
    /// It is the answer.
    Answer,
}

/// What a node tells another: how far it knows all nodes to have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whether it wants an answer.
    pub kind: Kind,
    /// Who sends it.
    pub from: NodeId,
    /// The sender's cluster.
    pub cluster: Uuid,
    /// The epoch of the sender's map.
    pub epoch: u64,
    /// Nodes and their heartbeats, the sender's own among them.
    pub beats: Vec<(NodeId, Heartbeat)>,
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.beats.len() <= NODES_MAX, "a map has no more nodes");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.beats.len() * BEAT_BYTES);
        let kind = match self.kind {
            Kind::Ask => ASK,
            Kind::Answer => ANSWER,
        };
        bytes.extend([FORMAT, kind]);
        bytes.extend(self.from.0.to_le_bytes());
        bytes.extend(self.cluster.0.to_le_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend((self.beats.len() as u16).to_le_bytes());
        assert_eq!(bytes.len(), HEAD_BYTES);
        for (node, heartbeat) in &self.beats {
            bytes.extend(node.0.to_le_bytes());
            bytes.extend(heartbeat.generation.to_le_bytes());
            bytes.extend(heartbeat.count.to_le_bytes());
        }
        bytes
    }

    /// The message that these bytes are, if they are one.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let mut rest = bytes;
        let [format, kind] = take(&mut rest)?;
        let kind = match (format, kind) {
            (FORMAT, ASK) => Kind::Ask,
            (FORMAT, ANSWER) => Kind::Answer,
            _ => return None,
        };
        let from = NodeId(u16::from_le_bytes(take(&mut rest)?));
        let cluster = Uuid(u128::from_le_bytes(take(&mut rest)?));
        let epoch = u64::from_le_bytes(take(&mut rest)?);
        let count = usize::from(u16::from_le_bytes(take(&mut rest)?));
        if count > NODES_MAX || rest.len() != count * BEAT_BYTES {
            return None;
        }
        let mut beats = Vec::with_capacity(count);
        for _ in 0..count {
            let node = NodeId(u16::from_le_bytes(take(&mut rest)?));
            let heartbeat = Heartbeat {
                generation: u64::from_le_bytes(take(&mut rest)?),
                count: u64::from_le_bytes(take(&mut rest)?),
            };
            if heartbeat.generation >= COUNT_MAX || heartbeat.count >= COUNT_MAX {
                return None;
            }
            beats.push((node, heartbeat));
        }
        Some(Message {
            kind,
            from,
            cluster,
            epoch,
            beats,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*first)
}
