//! The words that all modules share: slots, positions, versions, cores.
//!
//! Everything here is a plain value: no I/O, no clock, no allocation.

use std::fmt;

use crc::{CRC_16_XMODEM, Crc, Table};
use xxhash_rust::xxh3::xxh3_64;

/// Slots of a Redis Cluster.
pub const SLOTS: u32 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;
const HASH_BITS: u32 = 32 - SLOT_BITS;

const SLOT_CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// One of the 16384 slots of Redis Cluster: CRC16 of the key, or of its `{hash tag}` if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// The slot of a key, by the rule of the Redis Cluster specification ("Hash tags").
    pub fn of(key: &[u8]) -> Slot {
        Slot(SLOT_CRC.checksum(hash_tag(key)) % SLOTS as u16)
    }
}

/// The part of `key` that decides its slot: what stands between the first `{` and the next `}`
/// unless that is empty, else the whole key.
fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else {
        return key;
    };
    let after = &key[open + 1..];
    match after.iter().position(|&b| b == b'}') {
        Some(length) if length > 0 => &after[..length],
        _ => key,
    }
}

/// A key's 64-bit hash (xxh3): the low bits of its position, its filter bits and its latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes `key`.
    pub fn of(key: &[u8]) -> KeyHash {
        KeyHash(xxh3_64(key))
    }
}

/// A key's place on the ring 0..2^32-1: its slot in the top 14 bits, 18 bits of its hash below.
/// Keys are stored in the order of (position, key).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u32);

impl Position {
    /// The position of `key`.
    pub fn of(key: &[u8]) -> Position {
        Position::from_parts(Slot::of(key), KeyHash::of(key))
    }

    /// The position of the key that has this slot and this hash.
    pub fn from_parts(slot: Slot, hash: KeyHash) -> Position {
        Position(u32::from(slot.0) << HASH_BITS | (hash.0 as u32 & ((1 << HASH_BITS) - 1)))
    }

    /// The slot that this position lies in.
    pub fn slot(self) -> Slot {
        Slot((self.0 >> HASH_BITS) as u16)
    }

    /// The first position of `slot`.
    pub fn first_of(slot: Slot) -> Position {
        Position(u32::from(slot.0) << HASH_BITS)
    }

    /// The last position of `slot`.
    pub fn last_of(slot: Slot) -> Position {
        Position(Position::first_of(slot).0 | ((1 << HASH_BITS) - 1))
    }
}

/// A core of this node, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// When and where a mutation was made. No two are equal, all are ordered, the higher one wins.
///
/// `clock` is a hybrid logical clock reading (Kulkarni et al., 2014): Unix milliseconds in the top
/// 48 bits, a counter in the low 16. `coordinator` is the node (high 16 bits) and core that made
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Hybrid logical clock reading.
    pub clock: u64,
    /// Node and core that chose this version.
    pub coordinator: u32,
}

impl Version {
    /// Below every version that is ever chosen: "no record at all".
    pub const ZERO: Version = Version {
        clock: 0,
        coordinator: 0,
    };
}

/// What a record says of its key, besides the value's bytes. Two replicas that hold the same one of
/// a key hold the same record: this is what a reader compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Which write this was.
    pub version: Version,
    /// When it ceases to exist, in Unix milliseconds; 0: never.
    pub expiry: UnixMillis,
    /// True: the key was deleted.
    pub tombstone: bool,
}

impl Meta {
    /// Of a key that has no record at all.
    pub const ABSENT: Meta = Meta {
        version: Version::ZERO,
        expiry: 0,
        tombstone: true,
    };

    /// True if a reader at `now` sees a value: no tombstone, and not expired. An expired record
    /// counts as a tombstone of its own version: expiry makes no new one.
    pub fn is_live(self, now: UnixMillis) -> bool {
        !self.tombstone && (self.expiry == 0 || now < self.expiry)
    }

    /// The one order of the records of a key, on every replica: by version; and though no two
    /// versions are ever equal, a deletion would win over a value, and then the later expiry.
    pub fn rank(self) -> (Version, bool, UnixMillis) {
        (self.version, self.tombstone, self.expiry)
    }
}

/// Bytes of a version as text.
pub const VERSION_TEXT_BYTES: usize = 16 + 1 + 8;

impl Version {
    /// When it was made, by the clock of who made it: Unix milliseconds.
    pub fn millis(self) -> UnixMillis {
        self.clock >> 16
    }

    /// Reads what `Display` writes, and nothing else: there is one text for each version.
    pub fn parse(text: &[u8]) -> Option<Version> {
        if text.len() != VERSION_TEXT_BYTES || text[16] != b'-' {
            return None;
        }
        let number = |digits: &[u8]| {
            digits.iter().try_fold(0u64, |sum, byte| {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return None,
                };
                Some(sum << 4 | u64::from(digit))
            })
        };
        Some(Version {
            clock: number(&text[..16])?,
            coordinator: number(&text[17..])? as u32,
        })
    }
}

/// As clients see it: the clock and the coordinator in hexadecimal digits. Texts are in the order
/// of the versions.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.clock, self.coordinator)
    }
}

/// How many replicas a request must have heard of. With one replica all of them mean the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Any one.
    #[default]
    One,
    /// More than half of them.
    Quorum,
    /// Every one.
    All,
}

impl Level {
    /// Reads a level's name, in any case.
    pub fn parse(word: &[u8]) -> Option<Level> {
        let all = [Level::One, Level::Quorum, Level::All];
        let is_it = |level: &Level| word.eq_ignore_ascii_case(level.name().as_bytes());
        all.into_iter().find(is_it)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::One => "one",
            Level::Quorum => "quorum",
            Level::All => "all",
        }
    }
}

/// A record's place in its core's log: counts mutations, from 1. 0 is "before everything".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Unix time in milliseconds.
pub type UnixMillis = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        // Values of `CLUSTER KEYSLOT` in Redis 7.0.
        assert_eq!(Slot::of(b"foo"), Slot(12182));
        assert_eq!(Slot::of(b"somekey"), Slot(11058));
        assert_eq!(Slot::of(b"foo{hash_tag}"), Slot(2515));
        assert_eq!(Slot::of(b""), Slot(0));
        assert_eq!(
            Slot::of(b"{user1000}.following"),
            Slot::of(b"{user1000}.followers")
        );
        assert_eq!(
            Slot::of(b"foo{}{bar}"),
            Slot(8363),
            "an empty tag is no tag"
        );
    }

    #[test]
    fn a_position_keeps_its_slot_on_top() {
        for key in [&b"a"[..], b"b", b"{x}1", b"{x}2"] {
            assert_eq!(Position::of(key).slot(), Slot::of(key));
        }
        assert_ne!(
            Position::of(b"{x}1"),
            Position::of(b"{x}2"),
            "below the slot, the key decides"
        );
        for hash in [KeyHash(0), KeyHash(u64::MAX)] {
            let position = Position::from_parts(Slot(5), hash);
            assert!(Position::first_of(Slot(5)) <= position);
            assert!(position <= Position::last_of(Slot(5)));
        }
        let next = Position::first_of(Slot(6)).0;
        assert_eq!(Position::last_of(Slot(5)).0 + 1, next);
    }

    #[test]
    fn versions_order_by_clock_then_coordinator() {
        let old = Version {
            clock: 1,
            coordinator: 9,
        };
        let new = Version {
            clock: 2,
            coordinator: 0,
        };
        let rival = Version {
            clock: 2,
            coordinator: 1,
        };
        assert!(Version::ZERO < old && old < new && new < rival);
    }

    #[test]
    fn a_version_has_one_text_and_a_text_one_version() {
        let version = Version {
            clock: 0x0193_0a0b_0c0d_0001,
            coordinator: 0x0001_0002,
        };
        let text = version.to_string();
        assert_eq!(text, "01930a0b0c0d0001-00010002");
        assert_eq!(text.len(), VERSION_TEXT_BYTES);
        assert_eq!(Version::parse(text.as_bytes()), Some(version));
        assert_eq!(version.millis(), 0x0193_0a0b_0c0d);
        for wrong in [
            "",
            "01930A0B0C0D0001-00010002",
            "01930a0b0c0d0001_00010002",
            "1930a0b0c0d0001-00010002",
            " 1930a0b0c0d0001-00010002",
            "+1930a0b0c0d0001-00010002",
            "01930a0b0c0d0001-000100020",
            "01930a0b0c0d0001-0001000g",
        ] {
            assert_eq!(Version::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
        let later = Version {
            clock: version.clock + 1,
            coordinator: 0,
        };
        assert!(later > version && later.to_string() > text);
    }

    #[test]
    fn a_level_is_read_in_any_case_and_nothing_else_is() {
        for level in [Level::One, Level::Quorum, Level::All] {
            assert_eq!(Level::parse(level.name().as_bytes()), Some(level));
        }
        assert_eq!(Level::parse(b"QuOrUm"), Some(Level::Quorum));
        for wrong in [&b""[..], b"two", b"one ", b"quorum\0"] {
            assert_eq!(Level::parse(wrong), None);
        }
    }
}
