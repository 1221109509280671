//! The messages of nodes: what they ask of each other, and what they answer.
//!
//! write    := mutation                              done
//! read     := want u8 (0 value, 1 digest) | now u64 | key                holds := meta | has value u8 | value
//! clock    :=                                                            clock := version
//! hint     := node u16 | core u16 | mutation                             done
//! gossip   := bytes                                                      gossip := bytes
//! register := subject | bytes                                            register := bytes
//! map      := at least u64                                               map := epoch u64 | bytes
//! join     := bytes                                                      map := epoch u64 | bytes
//! take map := bytes                                                      done
//! walk     := drawn in `walk`                                            walked
//! ping     :=                                                            pong :=
//!
//! any request may be answered by: busy | stale epoch := epoch u64 | not mine | failed := is certain u8 | text
//!
//! mutation := meta | key length u32 | key | value;  meta := version | expiry u64 | tombstone u8
//! version  := clock u64 | coordinator u32;          subject := 0 | 1 key length u32 key
//!
//! What stands last goes to the end of the frame.

use super::Reader;
use super::handshake::{Hello, PROOF_BYTES, Welcome};
use super::walk::{Walk, Walked};
use crate::types::{CoreId, Meta, UnixMillis, Version};

/// Longest text of a failure.
pub const TEXT_BYTES_MAX: usize = 512;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Who connects says who it is.
    Hello(Hello),
    /// Who was connected to says so, too, and proves it.
    Welcome(Welcome),
    /// And so does who connects.
    Proof([u8; PROOF_BYTES]),
    /// Something is to be done.
    Request(Request<'a>),
    /// This came of it.
    Answer(Answer<'a>),
}

/// What a node asks of another one's core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// To store this, as a replica, and to answer when it is synced.
    Write(Mutation<'a>),
    /// To say what it holds.
    Read {
        /// Of which key.
        key: &'a [u8],
        /// With the value or without.
        want: Want,
        /// The coordinator's moment, at which what has expired has no value.
        now: UnixMillis,
    },
    /// To tell its clock.
    Clock,
    /// To keep this for a replica that was away, and to answer when it is synced.
    Hint {
        /// That replica's node.
        node: u16,
        /// And core.
        core: CoreId,
        /// What it should have stored.
        mutation: Mutation<'a>,
    },
    /// To take note of who is alive.
    Gossip(&'a [u8]),
    /// To do its part as a holder of a register.
    Register {
        /// Which one.
        subject: Subject<'a>,
        /// The register's own request: to read, to promise, to accept.
        request: &'a [u8],
    },
    /// To send the cluster map, if it has one of this epoch or a later one.
    Map {
        /// The epoch.
        at_least: u64,
    },
    /// To let the sender, who is no node of the cluster yet, in: what it says of itself. The answer
    /// is the map with it.
    Join(&'a [u8]),
    /// To go by this cluster map, if it is newer than its own.
    TakeMap(&'a [u8]),
    /// To tell the keys of a part of the ring that it holds, page by page.
    Walk(Walk<'a>),
    /// To show that it is there.
    Ping,
}

/// What comes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The mutation, or a newer one, is synced.
    Done,
    /// What it holds of a key.
    Holds(Held<'a>),
    /// Its clock: never behind a version that it has stored.
    Clock(Version),
    /// What it knows of who is alive.
    Gossip(&'a [u8]),
    /// A register's own answer.
    Register(&'a [u8]),
    /// The cluster map.
    Map {
        /// Its epoch.
        epoch: u64,
        /// Its bytes.
        map: &'a [u8],
    },
    /// A page of keys.
    Walked(Walked<'a>),
    /// It is there.
    Pong,
    /// Too much is queued. Nothing was done.
    Busy,
    /// The request was made by an older map. Nothing was done.
    StaleEpoch {
        /// Of the map that this node has.
        epoch: u64,
    },
    /// This core does not hold that key. Nothing was done.
    NotMine,
    /// It went wrong.
    Failed {
        /// Whether anything can have been done.
        certainty: Certainty,
        /// Why, for the log.
        text: &'a str,
    },
}

/// What is known of a request that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// Nothing was done.
    NotDone,
    /// It may have been done.
    Unknown,
}

/// With the value or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The record with its value, if it is live.
    Value,
    /// Version, expiry and kind.
    Digest,
}

/// Which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The cluster map's.
    Map,
    /// A key's.
    Key(&'a [u8]),
}

/// One versioned record on its way to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// Version, expiry, kind.
    pub meta: Meta,
    /// Its key.
    pub key: &'a [u8],
    /// Empty for a tombstone.
    pub value: &'a [u8],
}

/// What a replica holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// [`Meta::ABSENT`] if it has no record.
    pub meta: Meta,
    /// `None` if it was not wanted, or the record is not live.
    pub value: Option<&'a [u8]>,
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const PROOF: u8 = 3;

const WRITE: u8 = 16;
const READ: u8 = 17;
const CLOCK: u8 = 18;
const HINT: u8 = 19;
const GOSSIP: u8 = 20;
const REGISTER: u8 = 21;
const MAP: u8 = 22;
const PING: u8 = 23;
const JOIN: u8 = 24;
const WALK: u8 = 25;
const TAKE_MAP: u8 = 26;

const DONE: u8 = 64;
const HOLDS: u8 = 65;
const CLOCK_IS: u8 = 66;
const GOSSIP_BACK: u8 = 67;
const REGISTER_SAYS: u8 = 68;
const MAP_IS: u8 = 69;
const PONG: u8 = 70;
const BUSY: u8 = 71;
const STALE_EPOCH: u8 = 72;
const NOT_MINE: u8 = 73;
const FAILED: u8 = 74;
const WALKED: u8 = 75;

/// True for the kinds of the handshake.
pub(super) fn is_greeting(kind: u8) -> bool {
    (HELLO..=PROOF).contains(&kind)
}

pub(super) fn is_known(kind: u8) -> bool {
    is_greeting(kind) || (WRITE..=TAKE_MAP).contains(&kind) || (DONE..=WALKED).contains(&kind)
}

impl<'a> Message<'a> {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => HELLO,
            Message::Welcome(_) => WELCOME,
            Message::Proof(_) => PROOF,
            Message::Request(request) => request.kind(),
            Message::Answer(answer) => answer.kind(),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::Hello(hello) => hello.encode(out),
            Message::Welcome(welcome) => welcome.encode(out),
            Message::Proof(proof) => out.extend_from_slice(proof),
            Message::Request(request) => request.encode(out),
            Message::Answer(answer) => answer.encode(out),
        }
    }

    /// The message of this kind; `None` if the body is malformed. The caller checks that nothing is
    /// left.
    pub(super) fn decode(kind: u8, reader: &mut Reader<'a>) -> Option<Message<'a>> {
        match kind {
            HELLO => Hello::decode(reader).map(Message::Hello),
            WELCOME => Welcome::decode(reader).map(Message::Welcome),
            PROOF => reader.array().map(Message::Proof),
            WRITE..=TAKE_MAP => Request::decode(kind, reader).map(Message::Request),
            DONE..=WALKED => Answer::decode(kind, reader).map(Message::Answer),
            _ => None,
        }
    }
}

impl<'a> Request<'a> {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Request::Write(_) => WRITE,
            Request::Read { .. } => READ,
            Request::Clock => CLOCK,
            Request::Hint { .. } => HINT,
            Request::Gossip(_) => GOSSIP,
            Request::Register { .. } => REGISTER,
            Request::Map { .. } => MAP,
            Request::Ping => PING,
            Request::Join(_) => JOIN,
            Request::Walk(_) => WALK,
            Request::TakeMap(_) => TAKE_MAP,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Write(mutation) => mutation.encode(out),
            Request::Read { key, want, now } => {
                out.push(match want {
                    Want::Value => 0,
                    Want::Digest => 1,
                });
                out.extend_from_slice(&now.to_le_bytes());
                out.extend_from_slice(key);
            }
            Request::Hint {
                node,
                core,
                mutation,
            } => {
                out.extend_from_slice(&node.to_le_bytes());
                out.extend_from_slice(&core.0.to_le_bytes());
                mutation.encode(out);
            }
            Request::Gossip(bytes) | Request::Join(bytes) | Request::TakeMap(bytes) => {
                out.extend_from_slice(bytes);
            }
            Request::Register { subject, request } => {
                match subject {
                    Subject::Map => out.push(0),
                    Subject::Key(key) => {
                        out.push(1);
                        put_bytes(out, key);
                    }
                }
                out.extend_from_slice(request);
            }
            Request::Map { at_least } => out.extend_from_slice(&at_least.to_le_bytes()),
            Request::Walk(walk) => walk.encode(out),
            Request::Clock | Request::Ping => {}
        }
    }

    pub(super) fn decode(kind: u8, reader: &mut Reader<'a>) -> Option<Request<'a>> {
        Some(match kind {
            WRITE => Request::Write(Mutation::decode(reader)?),
            READ => Request::Read {
                want: match reader.flag()? {
                    false => Want::Value,
                    true => Want::Digest,
                },
                now: reader.u64()?,
                key: reader.rest(),
            },
            CLOCK => Request::Clock,
            HINT => Request::Hint {
                node: reader.u16()?,
                core: CoreId(reader.u16()?),
                mutation: Mutation::decode(reader)?,
            },
            GOSSIP => Request::Gossip(reader.rest()),
            REGISTER => Request::Register {
                subject: match reader.flag()? {
                    false => Subject::Map,
                    true => Subject::Key(reader.bytes()?),
                },
                request: reader.rest(),
            },
            MAP => Request::Map {
                at_least: reader.u64()?,
            },
            PING => Request::Ping,
            JOIN => Request::Join(reader.rest()),
            TAKE_MAP => Request::TakeMap(reader.rest()),
            WALK => Request::Walk(Walk::decode(reader)?),
            _ => return None,
        })
    }
}

impl<'a> Answer<'a> {
    /// A failure, its text cut to what may be sent.
    pub fn failed(certainty: Certainty, text: &'a str) -> Answer<'a> {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        Answer::Failed { certainty, text }
    }

    pub(super) fn kind(&self) -> u8 {
        match self {
            Answer::Done => DONE,
            Answer::Holds(_) => HOLDS,
            Answer::Clock(_) => CLOCK_IS,
            Answer::Gossip(_) => GOSSIP_BACK,
            Answer::Register(_) => REGISTER_SAYS,
            Answer::Map { .. } => MAP_IS,
            Answer::Pong => PONG,
            Answer::Busy => BUSY,
            Answer::StaleEpoch { .. } => STALE_EPOCH,
            Answer::NotMine => NOT_MINE,
            Answer::Failed { .. } => FAILED,
            Answer::Walked(_) => WALKED,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Answer::Holds(held) => {
                put_meta(out, held.meta);
                out.push(u8::from(held.value.is_some()));
                out.extend_from_slice(held.value.unwrap_or_default());
            }
            Answer::Clock(version) => put_version(out, *version),
            Answer::Gossip(bytes) | Answer::Register(bytes) => out.extend_from_slice(bytes),
            Answer::Map { epoch, map } => {
                out.extend_from_slice(&epoch.to_le_bytes());
                out.extend_from_slice(map);
            }
            Answer::StaleEpoch { epoch } => out.extend_from_slice(&epoch.to_le_bytes()),
            Answer::Failed { certainty, text } => {
                assert!(text.len() <= TEXT_BYTES_MAX);
                out.push(u8::from(*certainty == Certainty::NotDone));
                out.extend_from_slice(text.as_bytes());
            }
            Answer::Walked(walked) => walked.encode(out),
            Answer::Done | Answer::Pong | Answer::Busy | Answer::NotMine => {}
        }
    }

    pub(super) fn decode(kind: u8, reader: &mut Reader<'a>) -> Option<Answer<'a>> {
        Some(match kind {
            DONE => Answer::Done,
            HOLDS => Answer::Holds(Held::decode(reader)?),
            CLOCK_IS => Answer::Clock(version(reader)?),
            GOSSIP_BACK => Answer::Gossip(reader.rest()),
            REGISTER_SAYS => Answer::Register(reader.rest()),
            MAP_IS => Answer::Map {
                epoch: reader.u64()?,
                map: reader.rest(),
            },
            PONG => Answer::Pong,
            BUSY => Answer::Busy,
            STALE_EPOCH => Answer::StaleEpoch {
                epoch: reader.u64()?,
            },
            NOT_MINE => Answer::NotMine,
            WALKED => Answer::Walked(Walked::decode(reader)?),
            FAILED => Answer::Failed {
                certainty: match reader.flag()? {
                    true => Certainty::NotDone,
                    false => Certainty::Unknown,
                },
                text: text(reader.rest())?,
            },
            _ => return None,
        })
    }
}

impl<'a> Mutation<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            !self.meta.tombstone || self.value.is_empty(),
            "a tombstone has no value"
        );
        assert!(
            self.meta.version != Version::ZERO,
            "a mutation has a version"
        );
        put_meta(out, self.meta);
        put_bytes(out, self.key);
        out.extend_from_slice(self.value);
    }

    fn decode(reader: &mut Reader<'a>) -> Option<Mutation<'a>> {
        let mutation = Mutation {
            meta: meta(reader)?,
            key: reader.bytes()?,
            value: reader.rest(),
        };
        let is_made = mutation.meta.version != Version::ZERO;
        let is_sane = is_made && (!mutation.meta.tombstone || mutation.value.is_empty());
        is_sane.then_some(mutation)
    }
}

impl<'a> Held<'a> {
    fn decode(reader: &mut Reader<'a>) -> Option<Held<'a>> {
        let (meta, has_value, rest) = (meta(reader)?, reader.flag()?, reader.rest());
        let value = has_value.then_some(rest);
        let is_sane = match has_value {
            true => !meta.tombstone,
            false => rest.is_empty(),
        };
        // Who has no record says it in one way.
        let is_one = meta.version != Version::ZERO || meta == Meta::ABSENT;
        (is_sane && is_one).then_some(Held { meta, value })
    }
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys are limited to 64 KiB where they enter");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn put_version(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(&version.clock.to_le_bytes());
    out.extend_from_slice(&version.coordinator.to_le_bytes());
}

pub(super) fn version(reader: &mut Reader<'_>) -> Option<Version> {
    Some(Version {
        clock: reader.u64()?,
        coordinator: reader.u32()?,
    })
}

fn put_meta(out: &mut Vec<u8>, meta: Meta) {
    put_version(out, meta.version);
    out.extend_from_slice(&meta.expiry.to_le_bytes());
    out.push(u8::from(meta.tombstone));
}

fn meta(reader: &mut Reader<'_>) -> Option<Meta> {
    Some(Meta {
        version: version(reader)?,
        expiry: reader.u64()?,
        tombstone: reader.flag()?,
    })
}

fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}
