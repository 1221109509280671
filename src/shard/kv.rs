//! One typed operation on one key, as HTTP and the KV commands ask for it, and what they are told.
//!
//! Pure: [`decide`] says what becomes of the key; `run` carries it out on the core that owns the
//! key, and is the one place through which all such operations go.

mod run;

pub use run::Begun;

use crate::types::{Level, UnixMillis, Version};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The key.
    pub key: Vec<u8>,
    /// How many replicas must have heard of it.
    pub level: Level,
    /// What to do.
    pub deed: Deed,
}

/// What is done to a key.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Tell what it holds.
    Get(Part),
    /// Let it hold this.
    Put {
        /// The value.
        value: Vec<u8>,
        /// It expires after so many milliseconds.
        ttl_ms: Option<u64>,
        /// If.
        condition: Condition,
    },
    /// Let it hold nothing.
    Delete(Condition),
}

/// How much of a record is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Value,
    /// All but the value's bytes.
    Meta,
}

/// What must hold of the key, or nothing is done. Nothing must if neither is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It has one of these versions.
    pub if_match: Option<Versions>,
    /// It has none of these versions.
    pub if_none_match: Option<Versions>,
}

/// Versions that a key may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Any: there is a value.
    Any,
    /// One of these.
    These(Vec<Version>),
}

/// What became of an operation that was carried out, or had no reason to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is what the key holds.
    Found(Entry),
    /// It holds nothing.
    NotFound,
    /// It holds what was given.
    Stored(Written),
    /// There was nothing to delete.
    NothingDeleted,
    /// It holds nothing any more.
    Deleted(Written),
    /// It has this version, which the condition does not allow. Nothing was done.
    PreconditionFailed(Option<Version>),
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which write this is. Its clock says when that was.
    pub version: Version,
    /// When it expires, in Unix milliseconds; 0: never.
    pub expiry: UnixMillis,
    /// Bytes of the value.
    pub length: u64,
    /// The value, if it was asked for.
    pub value: Vec<u8>,
}

/// A write that is as durable as it was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its version.
    pub version: Version,
    /// When what it wrote expires, in Unix milliseconds; 0: never.
    pub expiry: UnixMillis,
    /// On how many replicas it is.
    pub replicas: u8,
}

/// What a key holds at some moment, borrowed from where it is.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Which write this is.
    pub version: Version,
    /// When it expires; 0: never.
    pub expiry: UnixMillis,
    /// Bytes of the value.
    pub length: u64,
    /// The value; may be empty if it was not asked for.
    pub value: &'a [u8],
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Nothing: this is the answer.
    Tell(Outcome),
    /// Write this value, which expires then.
    Put(&'a [u8], UnixMillis),
    /// Write a tombstone.
    Delete,
}

impl Operation {
    /// True if it may change the key.
    pub fn is_write(&self) -> bool {
        !matches!(self.deed, Deed::Get(_))
    }

    /// False if it may be carried out without knowing what the key holds: a blind write.
    pub fn needs_current(&self) -> bool {
        match &self.deed {
            Deed::Put { condition, .. } => *condition != Condition::default(),
            Deed::Get(_) | Deed::Delete(_) => true,
        }
    }
}

impl Condition {
    /// True if a key that has this version, or no value, may be written to.
    pub fn holds(&self, current: Option<Version>) -> bool {
        let has = |versions: &Versions| match (versions, current) {
            (_, None) => false,
            (Versions::Any, Some(_)) => true,
            (Versions::These(these), Some(version)) => these.contains(&version),
        };
        self.if_match.as_ref().is_none_or(has) && !self.if_none_match.as_ref().is_some_and(has)
    }
}

/// Says what becomes of a key that holds `current`: `None` if it does not exist, has been deleted
/// or has expired at `now`.
pub fn decide<'a>(deed: &'a Deed, current: Option<Held<'_>>, now: UnixMillis) -> Decision<'a> {
    if let Some(held) = &current {
        assert!(
            held.expiry == 0 || now < held.expiry,
            "an expired value is no current one"
        );
    }
    let version = current.map(|held| held.version);
    match deed {
        Deed::Get(part) => Decision::Tell(match current {
            None => Outcome::NotFound,
            Some(held) => Outcome::Found(Entry {
                version: held.version,
                expiry: held.expiry,
                length: held.length,
                value: match part {
                    Part::Value => held.value.to_vec(),
                    Part::Meta => Vec::new(),
                },
            }),
        }),
        // As HTTP has it: of what is not there no condition is asked.
        Deed::Delete(_) if current.is_none() => Decision::Tell(Outcome::NothingDeleted),
        Deed::Put { condition, .. } | Deed::Delete(condition) if !condition.holds(version) => {
            Decision::Tell(Outcome::PreconditionFailed(version))
        }
        Deed::Put { value, ttl_ms, .. } => {
            Decision::Put(value, ttl_ms.map_or(0, |ttl| now.saturating_add(ttl)))
        }
        Deed::Delete(_) => Decision::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = 1000;
    const OLD: Version = Version {
        clock: 7,
        coordinator: 1,
    };
    const OTHER: Version = Version {
        clock: 8,
        coordinator: 1,
    };

    fn held() -> Option<Held<'static>> {
        Some(Held {
            version: OLD,
            expiry: NOW + 1,
            length: 3,
            value: b"old",
        })
    }

    fn these(versions: &[Version]) -> Option<Versions> {
        Some(Versions::These(versions.to_vec()))
    }

    fn condition(if_match: Option<Versions>, if_none_match: Option<Versions>) -> Condition {
        Condition {
            if_match,
            if_none_match,
        }
    }

    #[test]
    fn a_condition_holds_by_the_rules_of_http() {
        let any = || Some(Versions::Any);
        let cases = [
            // if match, if none match, with the old version, with no value
            (None, None, true, true),
            (any(), None, true, false),
            (these(&[OLD]), None, true, false),
            (these(&[OTHER, OLD]), None, true, false),
            (these(&[OTHER]), None, false, false),
            (these(&[]), None, false, false),
            (None, any(), false, true),
            (None, these(&[OLD]), false, true),
            (None, these(&[OTHER]), true, true),
            (None, these(&[]), true, true),
            (any(), these(&[OLD]), false, false),
            (these(&[OLD]), these(&[OTHER]), true, false),
        ];
        for (if_match, if_none_match, with_old, with_none) in cases {
            let condition = condition(if_match, if_none_match);
            assert_eq!(condition.holds(Some(OLD)), with_old, "{condition:?}");
            assert_eq!(condition.holds(None), with_none, "{condition:?}");
        }
    }

    #[test]
    fn what_is_decided_follows_from_what_is_there() {
        let put = |condition: Condition| Deed::Put {
            value: b"new".to_vec(),
            ttl_ms: Some(5),
            condition,
        };
        let blind = put(Condition::default());
        assert_eq!(decide(&blind, None, NOW), Decision::Put(b"new", NOW + 5));
        assert_eq!(decide(&blind, held(), NOW), Decision::Put(b"new", NOW + 5));
        let swap = put(condition(these(&[OTHER]), None));
        let failed = |version| Decision::Tell(Outcome::PreconditionFailed(version));
        assert_eq!(decide(&swap, held(), NOW), failed(Some(OLD)));
        assert_eq!(decide(&swap, None, NOW), failed(None));
        let delete = Deed::Delete(Condition::default());
        assert_eq!(decide(&delete, held(), NOW), Decision::Delete);
        let nothing = Decision::Tell(Outcome::NothingDeleted);
        assert_eq!(decide(&delete, None, NOW), nothing);
        let picky = Deed::Delete(condition(these(&[OTHER]), None));
        assert_eq!(decide(&picky, held(), NOW), failed(Some(OLD)));
        assert_eq!(decide(&picky, None, NOW), nothing);
        let entry = |value: &[u8]| {
            Decision::Tell(Outcome::Found(Entry {
                version: OLD,
                expiry: NOW + 1,
                length: 3,
                value: value.to_vec(),
            }))
        };
        assert_eq!(decide(&Deed::Get(Part::Value), held(), NOW), entry(b"old"));
        assert_eq!(decide(&Deed::Get(Part::Meta), held(), NOW), entry(b""));
        assert_eq!(
            decide(&Deed::Get(Part::Meta), None, NOW),
            Decision::Tell(Outcome::NotFound)
        );
    }
}
