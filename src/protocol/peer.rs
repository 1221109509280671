//! What nodes say to each other: frames out of bytes that come in pieces of any size, and back.
//!
//! frame  := length u32 | crc u32 | version u8 | kind u8 | id u64 | deadline u32 | epoch u64 | body
//! length := bytes after the crc; crc := crc32c of them; deadline := milliseconds since the handshake, 0 of an answer
//!
//! Little endian; bodies are drawn in `message`, `walk` and `handshake`. `id` pairs a request with
//! its answer; answers come in any order. `epoch` is that of the sender's cluster map. A connection
//! begins with a handshake, whose frames never change their form; `version` of all others is the
//! one that it agreed on. Both sides count from its last message, who sends that from when it does,
//! so a request that the network holds back for long is known to be too late when it comes,
//! whatever the clocks show. The count begins anew after 2^32.
//!
//! Invariants: nothing is allocated from a declared length; before the handshake is done a frame is
//! at most [`GREETING_BYTES_MAX`] and no more than that is asked for; what is decoded is
//! well-formed to the last byte. Bytes that are no frame end the connection: who has lost count
//! must begin anew.

use std::fmt;
use std::time::Duration;

pub mod handshake;
pub mod message;
mod owned;
pub mod walk;

pub use message::{Answer, Certainty, Held, Message, Mutation, Request, Subject, Want};
pub use owned::{OwnedAnswer, OwnedRequest};
pub use walk::{Walk, Walked};

/// The newest version of the protocol that is spoken here.
pub const VERSION: u8 = 3;
/// The oldest.
pub const VERSION_OLDEST: u8 = 3;
/// Of the frames of the handshake, for ever.
const GREETING_VERSION: u8 = 0;

/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = PREFIX_BYTES + REST_BYTES;
const PREFIX_BYTES: usize = 4 + 4;
const REST_BYTES: usize = 1 + 1 + 8 + 4 + 8;
const _: () = assert!(HEADER_BYTES == 30);
/// Deadline and epoch, which end the header.
const STAMP_BYTES: usize = 4 + 8;

/// Most bytes of a frame before both sides have proved themselves.
pub const GREETING_BYTES_MAX: usize = 4 << 10;
/// What a frame may hold besides a key and a value.
const OVERHEAD_BYTES_MAX: usize = 1 << 10;
/// Gossip, registers and maps need this much, however small values are.
const FRAME_BYTES_MIN: usize = 4 << 20;

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    frame_bytes_max: usize,
    /// `None`: only the handshake is spoken.
    version: Option<u8>,
}

impl Limits {
    /// For a peer that has yet to prove itself.
    pub const fn greeting() -> Limits {
        Limits {
            frame_bytes_max: GREETING_BYTES_MAX,
            version: None,
        }
    }

    /// For one that has, in the version that was agreed on: room for the largest key and value.
    pub fn proven(version: u8, key_bytes_max: usize, value_bytes_max: usize) -> Limits {
        assert!((VERSION_OLDEST..=VERSION).contains(&version));
        let largest = key_bytes_max + value_bytes_max + OVERHEAD_BYTES_MAX;
        Limits {
            frame_bytes_max: largest.max(FRAME_BYTES_MIN).min(u32::MAX as usize),
            version: Some(version),
        }
    }

    /// Most bytes of a frame.
    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }
}

/// One message with what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Of the request, and of its answer.
    pub id: u64,
    /// Until when a request is to be done: see [`deadline_in`].
    pub deadline_ms: u32,
    /// Of the sender's map.
    pub epoch: u64,
    /// What is said.
    pub message: Message<'a>,
}

/// What the input begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A frame.
    Frame {
        /// Bytes of the input that were this frame.
        consumed: usize,
        /// The frame.
        frame: Frame<'a>,
    },
    /// The beginning of a frame.
    Incomplete {
        /// It cannot end before this many more bytes have come. Within the limits.
        needed: usize,
    },
    /// No frame. Hang up.
    Violation(PeerError),
}

/// Why the bytes of a peer are no frame. For the log: the peer is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// Its length is beyond the limit, or below that of a header.
    Length(u32),
    /// The bytes are not those that were sent.
    Checksum,
    /// Of another version than was agreed on.
    Version(u8),
    /// No kind that this version has, or not at this point: before the handshake nothing else, and
    /// nothing of it after.
    Kind(u8),
    /// The body is not one of its kind.
    Body(u8),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerError::Length(length) => write!(f, "a frame of {length} bytes"),
            PeerError::Checksum => write!(f, "a frame whose checksum does not fit"),
            PeerError::Version(version) => write!(f, "a frame of version {version}"),
            PeerError::Kind(kind) => {
                write!(f, "a frame of kind {kind}, which is not one or not now")
            }
            PeerError::Body(kind) => write!(f, "a malformed frame of kind {kind}"),
        }
    }
}

/// Reads the frame that `input` begins with. The input always begins with the first byte not yet
/// consumed; while the frame is incomplete only its length is looked at.
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Parsed<'a> {
    let Some((length, rest)) = input.split_first_chunk() else {
        return Parsed::Incomplete {
            needed: PREFIX_BYTES - input.len(),
        };
    };
    let declared = u32::from_le_bytes(*length);
    let length = declared as usize;
    if length < REST_BYTES || length > limits.frame_bytes_max - PREFIX_BYTES {
        return Parsed::Violation(PeerError::Length(declared));
    }
    let consumed = PREFIX_BYTES + length;
    let Some((crc, rest)) = rest.split_first_chunk().filter(|_| input.len() >= consumed) else {
        return Parsed::Incomplete {
            needed: consumed - input.len(),
        };
    };
    let content = &rest[..length];
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return Parsed::Violation(PeerError::Checksum);
    }
    match decode(content, limits) {
        Ok(frame) => Parsed::Frame { consumed, frame },
        Err(error) => Parsed::Violation(error),
    }
}

fn decode<'a>(content: &'a [u8], limits: &Limits) -> Result<Frame<'a>, PeerError> {
    let mut reader = Reader(content);
    let malformed = PeerError::Length(content.len() as u32); // within the limit
    let (Some(version), Some(kind)) = (reader.u8(), reader.u8()) else {
        return Err(malformed);
    };
    let expected = limits.version.unwrap_or(GREETING_VERSION);
    if version != expected {
        return Err(PeerError::Version(version));
    }
    let (Some(id), Some(deadline_ms), Some(epoch)) = (reader.u64(), reader.u32(), reader.u64())
    else {
        return Err(malformed);
    };
    if message::is_greeting(kind) != limits.version.is_none() || !message::is_known(kind) {
        return Err(PeerError::Kind(kind));
    }
    let message = Message::decode(kind, &mut reader).filter(|_| reader.0.is_empty());
    Ok(Frame {
        id,
        deadline_ms,
        epoch,
        message: message.ok_or(PeerError::Body(kind))?,
    })
}

/// Appends the bytes of `frame`, in the version that was agreed on, to `out`. Those of the
/// handshake need none.
pub fn encode(frame: &Frame<'_>, version: u8, out: &mut Vec<u8>) {
    let start = out.len();
    encode_unstamped(frame.id, &frame.message, version, out);
    stamp(&mut out[start..], frame.deadline_ms, frame.epoch);
}

/// The same, but what is not known before it is sent: no frame until it is stamped.
pub fn encode_unstamped(id: u64, message: &Message<'_>, version: u8, out: &mut Vec<u8>) {
    let start = out.len();
    let kind = message.kind();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.push(match message::is_greeting(kind) {
        true => GREETING_VERSION,
        false => version,
    });
    out.push(kind);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&[0; STAMP_BYTES]);
    assert!(out.len() - start == HEADER_BYTES);
    message.encode(out);
    let length = u32::try_from(out.len() - start - PREFIX_BYTES)
        .expect("keys and values are limited where they enter");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Milliseconds that are left of a request with this deadline, so long after the handshake. 0: it
/// is not to be done any more.
pub fn deadline_in(deadline_ms: u32, since_handshake: Duration) -> u32 {
    let left = deadline_ms.wrapping_sub(since_handshake.as_millis() as u32); // as far as it counts
    match left <= DEADLINE_MS_MAX {
        true => left,
        false => 0,
    }
}

/// The furthest deadline that can be told: twelve days.
pub const DEADLINE_MS_MAX: u32 = 1 << 30;

/// Makes what [`encode_unstamped`] has appended a frame.
pub fn stamp(frame: &mut [u8], deadline_ms: u32, epoch: u64) {
    let stamp = &mut frame[HEADER_BYTES - STAMP_BYTES..HEADER_BYTES];
    stamp[..4].copy_from_slice(&deadline_ms.to_le_bytes());
    stamp[4..].copy_from_slice(&epoch.to_le_bytes());
    let crc = crc32c::crc32c(&frame[PREFIX_BYTES..]);
    frame[4..PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// What is left to be decoded.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Bytes behind their length.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests;
