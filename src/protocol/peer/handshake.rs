//! Two nodes prove to each other that they belong to one cluster.
//!
//! hello   := oldest u8 | newest u8 | side                      who connects
//! welcome := version u8 | side | proof                         who was connected to
//! proof   := 32 bytes                                          who connects
//! side    := cluster id 16 bytes | node u16 | core u16 | epoch u64 | nonce 32 bytes
//!
//! A proof is HMAC-SHA-256, under the cluster's key, of the role of who proves, and of all that
//! both have said but the proofs. The key itself is never sent; an old proof proves nothing, as
//! each side adds a nonce; and one side's cannot be sent back as the other's. Both versions that
//! were offered are under it, so nobody in between can talk the two into an older one. Without a
//! key anybody can prove this; what keeps others away is then the network.
//!
//! Who is no node of any cluster yet connects with a side of zeros but for the nonce
//! ([`Side::newcomer`]), knows the key all the same, and may ask for nothing but to be let in.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Reader, VERSION, VERSION_OLDEST};
use crate::types::CoreId;

/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Bytes of chance that each side adds.
pub const NONCE_BYTES: usize = 32;
const CLUSTER_BYTES: usize = 16;

/// Names a cluster; chosen by chance when it is made.
pub type ClusterId = [u8; CLUSTER_BYTES];

/// What one side says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// The node, by its number in the map.
    pub node: u16,
    /// The core at this end of the connection.
    pub core: CoreId,
    /// Of its map.
    pub epoch: u64,
    /// Chosen by chance for this connection.
    pub nonce: [u8; NONCE_BYTES],
}

/// The first message, of who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version of the protocol that it speaks.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
    /// Itself.
    pub side: Side,
}

/// The second message, of who was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken from now on.
    pub version: u8,
    /// Itself.
    pub side: Side,
    /// That it knows the key.
    pub proof: [u8; PROOF_BYTES],
}

/// Why two nodes do not talk. For the log of each: both know what the other has said, then the
/// other side is hung up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It belongs to another cluster.
    Cluster,
    /// It speaks only older, or only newer versions.
    Version {
        /// Its oldest.
        oldest: u8,
        /// Its newest.
        newest: u8,
    },
    /// It bears this node's own number.
    SameNode(u16),
    /// It is not the node that was to be reached.
    OtherNode(u16),
    /// It is that node, but not the core that was to be reached.
    OtherCore(CoreId),
    /// It does not know the key.
    Proof,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Cluster => write!(
                f,
                "it belongs to another cluster (a node that starts with an empty directory and without `join` founds one)"
            ),
            Refusal::Version { oldest, newest } => {
                write!(
                    f,
                    "it speaks versions {oldest} to {newest} of the protocol of nodes"
                )
            }
            Refusal::SameNode(node) => write!(
                f,
                "it is node {node}, as this one is: one's data directory is a copy of the other's, and each needs its own"
            ),
            Refusal::OtherNode(node) => write!(f, "it is node {node}, and not the one expected"),
            Refusal::OtherCore(core) => {
                write!(f, "it is core {}, and not the one expected", core.0)
            }
            Refusal::Proof => write!(f, "the two have different keys (`cluster-key`)"),
        }
    }
}

/// The other side, proven, and the version to speak with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it said of itself.
    pub side: Side,
    /// Agreed on.
    pub version: u8,
}

/// Who connects, until it is welcome.
#[derive(Clone, Debug)]
pub struct Connecting {
    hello: Hello,
    /// The node and core that are to be reached, if it is known which these are.
    wanted: Option<(u16, CoreId)>,
}

impl Connecting {
    /// Send the message. `wanted` are the node and the core at that address, if the map says so.
    pub fn start(side: Side, wanted: Option<(u16, CoreId)>) -> (Connecting, Hello) {
        let hello = Hello {
            oldest: VERSION_OLDEST,
            newest: VERSION,
            side,
        };
        (Connecting { hello, wanted }, hello)
    }

    /// The other side is who it says to be: send the proof, and talk. Else hang up.
    pub fn on_welcome(
        self,
        welcome: &Welcome,
        key: &[u8],
    ) -> Result<(Peer, [u8; PROOF_BYTES]), Refusal> {
        let Welcome { version, side, .. } = *welcome;
        meet(&self.hello.side, &side)?;
        if !(self.hello.oldest..=self.hello.newest).contains(&version) {
            let (oldest, newest) = (version, version);
            return Err(Refusal::Version { oldest, newest });
        }
        match self.wanted {
            Some((node, _)) if node != side.node => return Err(Refusal::OtherNode(side.node)),
            Some((_, core)) if core != side.core => return Err(Refusal::OtherCore(side.core)),
            _ => {}
        }
        verify(key, Role::Accepting, (&self.hello, welcome), &welcome.proof)?;
        let proof = prove(key, Role::Connecting, (&self.hello, welcome));
        Ok((Peer { side, version }, proof))
    }
}

/// Who was connected to, until the other side has proved itself.
#[derive(Clone, Debug)]
pub struct Accepting {
    hello: Hello,
    welcome: Welcome,
}

impl Accepting {
    /// Send the message, whether the two may talk or not: by it the other side sees why they may
    /// not. Then hang up.
    pub fn on_hello(
        side: Side,
        hello: &Hello,
        key: &[u8],
    ) -> (Result<Accepting, Refusal>, Welcome) {
        let Hello { oldest, newest, .. } = *hello;
        let version = VERSION.min(newest).max(VERSION_OLDEST);
        let is_spoken = (oldest..=newest).contains(&version);
        let mut welcome = Welcome {
            version,
            side,
            proof: [0; PROOF_BYTES],
        };
        welcome.proof = prove(key, Role::Accepting, (hello, &welcome));
        let accepting = match meet(&side, &hello.side) {
            Err(refusal) => Err(refusal),
            Ok(()) if !is_spoken => Err(Refusal::Version { oldest, newest }),
            Ok(()) => Ok(Accepting {
                hello: *hello,
                welcome,
            }),
        };
        (accepting, welcome)
    }

    /// The other side is who it says to be. Else hang up.
    pub fn on_proof(self, proof: &[u8; PROOF_BYTES], key: &[u8]) -> Result<Peer, Refusal> {
        verify(key, Role::Connecting, (&self.hello, &self.welcome), proof)?;
        Ok(Peer {
            side: self.hello.side,
            version: self.welcome.version,
        })
    }
}

/// Two nodes of one cluster, or a newcomer and a node. `own` is of who judges.
fn meet(own: &Side, other: &Side) -> Result<(), Refusal> {
    match () {
        () if own.is_newcomer() != other.is_newcomer() => Ok(()),
        () if own.cluster != other.cluster => Err(Refusal::Cluster),
        () if own.node == other.node => Err(Refusal::SameNode(own.node)),
        () => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Connecting,
    Accepting,
}

/// The code over all that was said, for who has this role.
fn code(key: &[u8], role: Role, (hello, welcome): (&Hello, &Welcome)) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key has any length");
    let mut said = match role {
        Role::Connecting => b"quoit peer connecting ".to_vec(),
        Role::Accepting => b"quoit peer accepting ".to_vec(),
    };
    hello.encode(&mut said);
    said.push(welcome.version);
    welcome.side.encode(&mut said);
    mac.update(&said);
    mac
}

fn prove(key: &[u8], role: Role, said: (&Hello, &Welcome)) -> [u8; PROOF_BYTES] {
    code(key, role, said).finalize().into_bytes().into()
}

/// In a time that does not depend on how much of the proof is right.
fn verify(
    key: &[u8],
    role: Role,
    said: (&Hello, &Welcome),
    proof: &[u8; PROOF_BYTES],
) -> Result<(), Refusal> {
    let verdict = code(key, role, said).verify_slice(proof);
    verdict.map_err(|_| Refusal::Proof)
}

impl Side {
    /// Of who belongs to no cluster yet.
    pub fn newcomer(nonce: [u8; NONCE_BYTES]) -> Side {
        Side {
            cluster: [0; CLUSTER_BYTES],
            node: 0,
            core: CoreId(0),
            epoch: 0,
            nonce,
        }
    }

    /// True if it belongs to no cluster yet. (No node of a cluster has the number 0.)
    pub fn is_newcomer(&self) -> bool {
        self.cluster == [0; CLUSTER_BYTES] && self.node == 0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster);
        out.extend_from_slice(&self.node.to_le_bytes());
        out.extend_from_slice(&self.core.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.nonce);
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Side> {
        Some(Side {
            cluster: reader.array()?,
            node: reader.u16()?,
            core: CoreId(reader.u16()?),
            epoch: reader.u64()?,
            nonce: reader.array()?,
        })
    }
}

impl Hello {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.oldest, self.newest]);
        self.side.encode(out);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Hello> {
        let hello = Hello {
            oldest: reader.u8()?,
            newest: reader.u8()?,
            side: Side::decode(reader)?,
        };
        (0 < hello.oldest && hello.oldest <= hello.newest).then_some(hello)
    }
}

impl Welcome {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.version);
        self.side.encode(out);
        out.extend_from_slice(&self.proof);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Welcome> {
        Some(Welcome {
            version: reader.u8()?,
            side: Side::decode(reader)?,
            proof: reader.array()?,
        })
    }
}
