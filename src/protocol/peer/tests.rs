//! Frames of every kind there and back, whole, in pieces and damaged; and handshakes, honest and
//! not.

use super::handshake::{Accepting, Connecting, Hello, Peer, Refusal, Side, Welcome};
use super::walk::{Wanted, pack, pack_ranges};
use super::*;
use crate::types::{CoreId, Meta, Position, Version};

const KEY: &[u8] = b"the cluster's key";

fn bytes(chance: &mut fastrand::Rng, most: usize) -> Vec<u8> {
    (0..chance.usize(..=most)).map(|_| chance.u8(..)).collect()
}

fn array<const N: usize>(chance: &mut fastrand::Rng) -> [u8; N] {
    std::array::from_fn(|_| chance.u8(..))
}

fn meta(chance: &mut fastrand::Rng) -> Meta {
    Meta {
        version: Version {
            clock: chance.u64(1..),
            coordinator: chance.u32(..),
        },
        expiry: chance.u64(..),
        tombstone: chance.bool(),
    }
}

fn side(chance: &mut fastrand::Rng) -> Side {
    Side {
        cluster: [7; 16],
        node: chance.u16(..),
        core: CoreId(chance.u16(..)),
        epoch: chance.u64(..),
        nonce: array(chance),
    }
}

/// What a random message borrows from.
struct Text {
    key: Vec<u8>,
    value: Vec<u8>,
    /// Keys, and how many.
    keys: (Vec<u8>, u32),
    ranges: Vec<u8>,
}

impl Text {
    fn random(chance: &mut fastrand::Rng, value_max: usize) -> Text {
        let count = chance.u32(..4);
        let mut keys = Vec::new();
        (0..count).for_each(|_| pack(&mut keys, &bytes(chance, 10)));
        Text {
            key: bytes(chance, 20),
            value: bytes(chance, value_max),
            keys: (keys, count),
            ranges: ranges(chance),
        }
    }
}

/// Some parts of the ring.
fn ranges(chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut ends: Vec<u32> = (0..2 * chance.usize(1..5))
        .map(|_| chance.u32(..))
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let ends: Vec<Position> = ends.into_iter().map(Position).collect();
    pack_ranges(ends.chunks_exact(2).map(|two| (two[0], two[1])))
}

fn walk<'a>(chance: &mut fastrand::Rng, text: &'a Text) -> Walk<'a> {
    Walk {
        want: [Wanted::Keys, Wanted::Count][chance.usize(..2)],
        now: chance.u64(..),
        visits: chance.u32(1..),
        after: chance.bool().then_some(&text.key[..]),
        pattern: chance.bool().then_some(&text.value[..]),
        ranges: &text.ranges,
    }
}

fn walked<'a>(chance: &mut fastrand::Rng, text: &'a Text) -> Walked<'a> {
    let next = Position(chance.u32(..));
    let after = chance.bool().then_some(&text.key[..]);
    let (keys, count) = &text.keys;
    Walked {
        visited: count + chance.u32(..100),
        count: u64::from(*count),
        newest: meta(chance).version,
        next: chance.bool().then_some((next, after)),
        keys,
    }
}

fn message<'a>(chance: &mut fastrand::Rng, text: &'a Text) -> Message<'a> {
    let (key, value) = (&text.key[..], &text.value[..]);
    let meta = meta(chance);
    let mutation = Mutation {
        meta,
        key,
        value: if meta.tombstone { b"" } else { value },
    };
    let held = Held {
        meta,
        value: Some(value).filter(|_| !meta.tombstone),
    };
    let certainty = [Certainty::NotDone, Certainty::Unknown][chance.usize(..2)];
    let messages = [
        Message::Hello(Hello {
            oldest: 1,
            newest: chance.u8(1..),
            side: side(chance),
        }),
        Message::Welcome(Welcome {
            version: chance.u8(..),
            side: side(chance),
            proof: array(chance),
        }),
        Message::Proof(array(chance)),
        Message::Request(Request::Write(mutation)),
        Message::Request(Request::Read {
            key,
            want: [Want::Value, Want::Digest][chance.usize(..2)],
            now: chance.u64(..),
        }),
        Message::Request(Request::Clock),
        Message::Request(Request::Hint {
            node: chance.u16(..),
            core: CoreId(chance.u16(..)),
            mutation,
        }),
        Message::Request(Request::Gossip(value)),
        Message::Request(Request::Register {
            subject: [Subject::Map, Subject::Key(key)][chance.usize(..2)],
            request: value,
        }),
        Message::Request(Request::Map {
            at_least: chance.u64(..),
        }),
        Message::Request(Request::Ping),
        Message::Request(Request::Join(value)),
        Message::Request(Request::TakeMap(value)),
        Message::Request(Request::Walk(walk(chance, text))),
        Message::Answer(Answer::Walked(walked(chance, text))),
        Message::Answer(Answer::Done),
        Message::Answer(Answer::Holds(held)),
        Message::Answer(Answer::Holds(Held {
            meta: Meta::ABSENT,
            value: None,
        })),
        Message::Answer(Answer::Clock(meta.version)),
        Message::Answer(Answer::Gossip(value)),
        Message::Answer(Answer::Register(value)),
        Message::Answer(Answer::Map {
            epoch: chance.u64(..),
            map: value,
        }),
        Message::Answer(Answer::Pong),
        Message::Answer(Answer::Busy),
        Message::Answer(Answer::StaleEpoch {
            epoch: chance.u64(..),
        }),
        Message::Answer(Answer::NotMine),
        Message::Answer(Answer::failed(certainty, "the log failed")),
    ];
    messages[chance.usize(..messages.len())]
}

fn limits(message: &Message<'_>) -> Limits {
    match message {
        Message::Hello(_) | Message::Welcome(_) | Message::Proof(_) => Limits::greeting(),
        Message::Request(_) | Message::Answer(_) => Limits::proven(VERSION, 64 << 10, 1 << 20),
    }
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(frame, VERSION, &mut out);
    out
}

/// Else nodes would misunderstand each other; and the verdict must not depend on how the bytes were
/// cut.
#[test]
fn every_message_comes_back_however_its_bytes_are_cut() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..5_000 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let text = Text::random(&mut chance, 300);
        let frame = Frame {
            id: chance.u64(..),
            deadline_ms: chance.u32(..),
            epoch: chance.u64(..),
            message: message(&mut chance, &text),
        };
        kinds.insert(frame.message.kind());
        let limits = limits(&frame.message);
        let mut input = encoded(&frame);
        let length = input.len();
        input.extend(bytes(&mut chance, 10)); // the beginning of the next frame
        for end in 0..length {
            let Parsed::Incomplete { needed } = parse(&input[..end], &limits) else {
                panic!("seed {seed}: a verdict after {end} of {length} bytes");
            };
            assert!(needed > 0 && end + needed <= length, "seed {seed}");
        }
        let consumed = length;
        assert_eq!(
            parse(&input, &limits),
            Parsed::Frame { consumed, frame },
            "seed {seed}"
        );
    }
    assert_eq!(kinds.len(), 26, "a kind was never made");
}

/// Else a peer, or whoever takes its place, could end the process, or have one message taken for
/// another.
#[test]
fn no_bytes_end_the_process_and_no_damage_is_believed() {
    let mut believed = 0;
    for seed in 0..30_000 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let text = Text::random(&mut chance, 60);
        let frame = Frame {
            id: 1,
            deadline_ms: 2,
            epoch: 3,
            message: message(&mut chance, &text),
        };
        let limits = limits(&frame.message);
        let mut input = encoded(&frame);
        let is_damaged = chance.bool();
        for _ in 0..chance.usize(1..4) {
            let first = if is_damaged { 0 } else { PREFIX_BYTES };
            let at = chance.usize(first..input.len());
            match chance.u8(..3) {
                0 => input[at] ^= 1 << chance.u8(..8),
                1 => input[at] = chance.u8(..),
                _ => input.truncate(at.max(HEADER_BYTES)),
            }
        }
        if !is_damaged {
            // Well-formed on the outside, as a peer with another notion of the protocol would send
            // it.
            let length = (input.len() - PREFIX_BYTES) as u32;
            let crc = crc32c::crc32c(&input[PREFIX_BYTES..]);
            input[..4].copy_from_slice(&length.to_le_bytes());
            input[4..PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        match parse(&input, &limits) {
            Parsed::Frame { frame, consumed } => {
                believed += 1;
                assert_eq!(
                    encoded(&frame),
                    input[..consumed],
                    "seed {seed}: two forms of one message"
                );
            }
            Parsed::Incomplete { needed } => {
                assert!(
                    input.len() + needed <= limits.frame_bytes_max(),
                    "seed {seed}: beyond the cap"
                );
            }
            Parsed::Violation(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!(believed > 1_000, "nothing got through");
}

#[test]
fn lengths_are_checked_before_anything_is_waited_for() {
    let proven = Limits::proven(VERSION, 64 << 10, 64 << 20);
    for (limits, length, is_fine) in [
        (Limits::greeting(), GREETING_BYTES_MAX - PREFIX_BYTES, true),
        (
            Limits::greeting(),
            GREETING_BYTES_MAX - PREFIX_BYTES + 1,
            false,
        ),
        (Limits::greeting(), REST_BYTES - 1, false),
        (Limits::greeting(), 0, false),
        (proven, (64 << 20) + (64 << 10), true),
        (proven, (64 << 20) + (66 << 10), false),
        (proven, u32::MAX as usize, false),
    ] {
        let declared = (length as u32).to_le_bytes();
        match parse(&declared, &limits) {
            Parsed::Incomplete { needed } => {
                assert!(is_fine, "{length}");
                assert_eq!(needed, length + PREFIX_BYTES - declared.len());
            }
            verdict => {
                assert!(!is_fine, "{length}");
                let length = length as u32;
                assert_eq!(verdict, Parsed::Violation(PeerError::Length(length)));
            }
        }
    }
}

/// Else who has not proved itself could read and write.
#[test]
fn before_the_handshake_nothing_else_is_spoken_and_after_it_nothing_of_it() {
    let mut chance = fastrand::Rng::with_seed(1);
    let frame = |message| Frame {
        id: 1,
        deadline_ms: 0,
        epoch: 0,
        message,
    };
    let ping = encoded(&frame(Message::Request(Request::Ping)));
    let verdict = parse(&ping, &Limits::greeting());
    assert_eq!(verdict, Parsed::Violation(PeerError::Version(VERSION)));
    let hello = Connecting::start(side(&mut chance), None).1;
    let hello = encoded(&frame(Message::Hello(hello)));
    let proven = Limits::proven(VERSION, 1, 1);
    let verdict = parse(&hello, &proven);
    assert_eq!(
        verdict,
        Parsed::Violation(PeerError::Version(GREETING_VERSION))
    );
    // The version alone does not make it so.
    let disguise = |mut bytes: Vec<u8>, version| {
        bytes[PREFIX_BYTES] = version;
        let crc = crc32c::crc32c(&bytes[PREFIX_BYTES..]);
        bytes[4..PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let ping = disguise(ping, GREETING_VERSION);
    assert!(matches!(
        parse(&ping, &Limits::greeting()),
        Parsed::Violation(PeerError::Kind(_))
    ));
    let hello = disguise(hello, VERSION);
    assert!(matches!(
        parse(&hello, &proven),
        Parsed::Violation(PeerError::Kind(_))
    ));
}

#[test]
fn the_text_of_a_failure_is_cut_between_characters() {
    let long = "é".repeat(TEXT_BYTES);
    let Answer::Failed { text, .. } = Answer::failed(Certainty::NotDone, &long) else {
        panic!("a failure");
    };
    assert_eq!(text.len(), TEXT_BYTES);
}
/// Else what was held back in the network would be done late, or nothing any more after seven
/// weeks.
#[test]
fn a_deadline_passes_and_the_count_begins_anew() {
    let ms = |ms: u64| Duration::from_millis(ms);
    assert_eq!(deadline_in(100, ms(40)), 60);
    assert_eq!(deadline_in(100, ms(100)), 0);
    assert_eq!(deadline_in(100, ms(5_000)), 0);
    let late = (1 << 32) - 10;
    assert_eq!(deadline_in(20, ms(late)), 30, "it began anew in between");
    assert_eq!(deadline_in(20, ms(late + 31)), 0);
    assert_eq!(deadline_in(u32::MAX, ms(late + 20)), 0);
}

const TEXT_BYTES: usize = message::TEXT_BYTES_MAX;

/// What comes of a hello where the two may talk, and why they may not.
fn on_hello(side: Side, hello: &Hello, key: &[u8]) -> Result<(Accepting, Welcome), Refusal> {
    let (accepting, welcome) = Accepting::on_hello(side, hello, key);
    accepting.map(|accepting| (accepting, welcome))
}

fn two(chance: &mut fastrand::Rng) -> (Side, Side) {
    let (mut one, mut other) = (side(chance), side(chance));
    (one.node, other.node) = (1, 2);
    (one, other)
}

#[test]
fn two_nodes_with_one_key_prove_themselves_to_each_other() {
    for key in [KEY, b""] {
        let (one, other) = two(&mut fastrand::Rng::with_seed(1));
        let (connecting, hello) = Connecting::start(one, Some((2, other.core)));
        let (accepting, welcome) = on_hello(other, &hello, key).expect("it may");
        let (peer, proof) = connecting.on_welcome(&welcome, key).expect("it is proven");
        let version = VERSION;
        assert_eq!(
            peer,
            Peer {
                side: other,
                version
            }
        );
        assert_eq!(
            accepting.on_proof(&proof, key),
            Ok(Peer { side: one, version })
        );
    }
}

/// Else who does not know the key could join, or read what the nodes say to each other.
#[test]
fn who_does_not_know_the_key_proves_nothing() {
    let (one, other) = two(&mut fastrand::Rng::with_seed(2));
    let (connecting, hello) = Connecting::start(one, None);
    let (_, welcome) = on_hello(other, &hello, b"a guess").expect("it may");
    let refused = connecting.clone().on_welcome(&welcome, KEY).map(|_| ());
    assert_eq!(refused, Err(Refusal::Proof));
    let (accepting, welcome) = on_hello(other, &hello, KEY).expect("it may");
    let (_, proof) = connecting
        .clone()
        .on_welcome(&welcome, KEY)
        .expect("it is proven");
    // What the other side has proved is sent back to it.
    assert_eq!(
        accepting.clone().on_proof(&welcome.proof, KEY),
        Err(Refusal::Proof)
    );
    // A proof of another time.
    let mut later = other;
    later.nonce[0] ^= 1;
    let (anew, _) = on_hello(later, &hello, KEY).expect("it may");
    assert_eq!(anew.on_proof(&proof, KEY), Err(Refusal::Proof));
    // Every bit of it counts.
    for bit in 0..proof.len() * 8 {
        let mut wrong = proof;
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(accepting.clone().on_proof(&wrong, KEY), Err(Refusal::Proof));
    }
}

/// Else somebody in between could change what was said: the version, who it was, which core.
#[test]
fn whatever_was_said_is_under_the_proof() {
    let (one, other) = two(&mut fastrand::Rng::with_seed(3));
    let (connecting, hello) = Connecting::start(one, None);
    for at in 0..4 {
        let mut changed = hello;
        match at {
            0 => changed.newest += 1,
            1 => changed.side.node = 9,
            2 => changed.side.core.0 ^= 1,
            _ => changed.side.epoch ^= 1,
        }
        let (_, welcome) = on_hello(other, &changed, KEY).expect("it may");
        let refused = connecting.clone().on_welcome(&welcome, KEY).map(|_| ());
        assert_eq!(refused, Err(Refusal::Proof), "{at}");
    }
    let (_, welcome) = on_hello(other, &hello, KEY).expect("it may");
    let mut changed = welcome;
    changed.side.epoch ^= 1;
    let refused = connecting.on_welcome(&changed, KEY).map(|_| ());
    assert_eq!(refused, Err(Refusal::Proof));
}

#[test]
fn nodes_that_must_not_talk_say_why() {
    let (one, other) = two(&mut fastrand::Rng::with_seed(4));
    let (connecting, hello) = Connecting::start(one, Some((3, other.core)));
    let accept = |side: Side, hello: Hello| on_hello(side, &hello, KEY).map(|_| ());
    let mut stranger = other;
    stranger.cluster = [8; 16];
    assert_eq!(accept(stranger, hello), Err(Refusal::Cluster));
    let mut twin = other;
    twin.node = 1;
    assert_eq!(accept(twin, hello), Err(Refusal::SameNode(1)));
    let (oldest, newest) = (VERSION + 1, VERSION + 2);
    let future = Hello {
        oldest,
        newest,
        ..hello
    };
    assert_eq!(
        accept(other, future),
        Err(Refusal::Version { oldest, newest })
    );
    let (_, welcome) = on_hello(other, &hello, KEY).expect("it may");
    let refused = connecting.on_welcome(&welcome, KEY).map(|_| ());
    assert_eq!(
        refused,
        Err(Refusal::OtherNode(2)),
        "the address is another's now"
    );
    let wrong_core = CoreId(other.core.0 ^ 1);
    let (connecting, hello) = Connecting::start(one, Some((2, wrong_core)));
    let (_, welcome) = on_hello(other, &hello, KEY).expect("it may");
    let refused = connecting.on_welcome(&welcome, KEY).map(|_| ());
    assert_eq!(refused, Err(Refusal::OtherCore(other.core)));
    let newer = Hello { newest, ..hello };
    let (_, welcome) = on_hello(other, &newer, KEY).expect("it may");
    assert_eq!(welcome.version, VERSION, "the newest that both speak");
}

/// Else the log of a node would say that the other one has hung up, and not that this one's
/// directory, or its program, is to blame.
#[test]
fn who_is_refused_sees_by_the_welcome_why() {
    let (one, other) = two(&mut fastrand::Rng::with_seed(6));
    let (connecting, hello) = Connecting::start(one, Some((2, other.core)));
    let sees = |welcome: Welcome| connecting.clone().on_welcome(&welcome, KEY).map(|_| ());
    let cluster = [8; 16];
    for (side, why) in [
        (Side { cluster, ..other }, Refusal::Cluster),
        (Side { node: 1, ..other }, Refusal::SameNode(1)),
    ] {
        let (refused, welcome) = Accepting::on_hello(side, &hello, KEY);
        assert_eq!(refused.map(|_| ()), Err(why));
        assert_eq!(sees(welcome), Err(why));
    }
    let (oldest, newest) = (VERSION + 1, VERSION + 2);
    let future = Hello {
        oldest,
        newest,
        ..hello
    };
    let (refused, welcome) = Accepting::on_hello(other, &future, KEY);
    assert!(
        refused.is_err() && welcome.version < oldest,
        "it cannot be spoken"
    );
}

/// Else nobody could come into a cluster; or who has no place in it would need no key.
#[test]
fn who_belongs_to_no_cluster_yet_may_talk_to_a_node_that_knows_the_key() {
    let (_, node) = two(&mut fastrand::Rng::with_seed(5));
    let newcomer = Side::newcomer([3; 32]);
    assert!(newcomer.is_newcomer() && !node.is_newcomer());
    let (connecting, hello) = Connecting::start(newcomer, None);
    let (accepting, welcome) = on_hello(node, &hello, KEY).expect("it may");
    let (_, proof) = connecting
        .on_welcome(&welcome, KEY)
        .expect("any cluster is welcome");
    let peer = accepting
        .clone()
        .on_proof(&proof, KEY)
        .expect("it knows the key");
    assert!(peer.side.is_newcomer());
    let (_, welcome) = on_hello(node, &hello, b"another").expect("it may");
    let (connecting, _) = Connecting::start(newcomer, None);
    let refused = connecting.on_welcome(&welcome, KEY).map(|_| ());
    assert_eq!(refused, Err(Refusal::Proof));
    let twin = on_hello(newcomer, &hello, KEY).map(|_| ());
    assert_eq!(twin, Err(Refusal::SameNode(0)), "two that belong nowhere");
    let mut stranger = newcomer;
    stranger.node = 4;
    let hello = Connecting::start(stranger, None).1;
    let refused = on_hello(node, &hello, KEY).map(|_| ());
    assert_eq!(refused, Err(Refusal::Cluster), "a number without a cluster");
}
