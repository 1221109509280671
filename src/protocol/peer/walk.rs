//! A page of a walk over keys, as one core asks another for it, and as it comes back.
//!
//! walk   := want u8 (0 keys, 1 count) | now u64 | visits u32 | text (after) | text (pattern) | ranges
//! ranges := (first u32 | last u32) to the end of the frame, at least one, ascending and apart from each other
//! walked := visited u32 | count u64 | newest version | (0 | 1 next u32 | text (after)) | keys, of a walk for keys
//! text   := 0 | 1 length u32 | bytes;  keys := (length u32 | bytes) to the end of the frame

use super::Reader;
use super::message::{put_bytes, put_version, version};
use crate::types::{Position, UnixMillis, Version};

/// Parts of the ring, one page of which is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk<'a> {
    /// What is to be told.
    pub want: Wanted,
    /// The asker's moment: what has expired then is not there.
    pub now: UnixMillis,
    /// So many records are looked at, about.
    pub visits: u32,
    /// At the first position only keys behind this one.
    pub after: Option<&'a [u8]>,
    /// Only keys that match.
    pub pattern: Option<&'a [u8]>,
    /// Where, packed by [`pack_ranges`].
    pub ranges: &'a [u8],
}

/// Positions from the first to the last, both included.
pub type Range = (Position, Position);

const RANGE_BYTES: usize = 8;
/// A ring has no more arcs.
pub const RANGES_MAX: usize = 16_384;

/// Ranges as they are sent.
pub fn pack_ranges(ranges: impl IntoIterator<Item = Range>) -> Vec<u8> {
    let mut packed = Vec::new();
    for (first, last) in ranges {
        packed.extend_from_slice(&first.0.to_le_bytes());
        packed.extend_from_slice(&last.0.to_le_bytes());
    }
    packed
}

/// What is to be told of the keys that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Which they are.
    Keys,
    /// How many.
    Count,
}

/// A page of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked<'a> {
    /// So many records were looked at.
    pub visited: u32,
    /// So many of them are there and match.
    pub count: u64,
    /// The highest version that was met: whoever deletes what was told does it under a higher one.
    pub newest: Version,
    /// Where to go on; `None`: this was the last page.
    pub next: Option<(Position, Option<&'a [u8]>)>,
    /// The keys, packed by [`pack`]; none if they are only counted.
    pub keys: &'a [u8],
}

impl<'a> Walked<'a> {
    /// The keys, each by itself.
    pub fn each_key(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut reader = Reader(self.keys);
        std::iter::from_fn(move || reader.bytes())
    }
}

/// Appends `key` to packed keys.
pub fn pack(keys: &mut Vec<u8>, key: &[u8]) {
    put_bytes(keys, key);
}

impl<'a> Walk<'a> {
    /// The ranges, each by itself.
    pub fn each_range(&self) -> impl Iterator<Item = Range> + use<'a> {
        let (ranges, _) = self.ranges.as_chunks::<RANGE_BYTES>();
        ranges.iter().map(|range| {
            let (first, last) = range.split_at(RANGE_BYTES / 2);
            let position = |bytes: &[u8]| {
                let bytes = bytes.first_chunk().expect("half of a range");
                Position(u32::from_le_bytes(*bytes))
            };
            (position(first), position(last))
        })
    }

    /// True if a page before this one has told of `key`.
    pub fn is_behind(&self, position: Position, key: &[u8]) -> bool {
        let first = self.each_range().next().map(|(first, _)| first);
        first == Some(position) && self.after.is_some_and(|after| key <= after)
    }

    /// True if the walk is one that can be made.
    fn is_sane(&self) -> bool {
        let count = self.ranges.len() / RANGE_BYTES;
        let is_whole = self.ranges.len().is_multiple_of(RANGE_BYTES);
        let mut before = None;
        let are_apart = self.each_range().all(|(first, last)| {
            let before = before.replace(last);
            first <= last && before.is_none_or(|before| before < first)
        });
        self.visits > 0 && is_whole && (1..=RANGES_MAX).contains(&count) && are_apart
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            self.is_sane(),
            "a walk goes forward, and looks at something"
        );
        out.push(match self.want {
            Wanted::Keys => 0,
            Wanted::Count => 1,
        });
        out.extend_from_slice(&self.now.to_le_bytes());
        out.extend_from_slice(&self.visits.to_le_bytes());
        put_text(out, self.after);
        put_text(out, self.pattern);
        out.extend_from_slice(self.ranges);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Option<Walk<'a>> {
        let walk = Walk {
            want: match reader.flag()? {
                false => Wanted::Keys,
                true => Wanted::Count,
            },
            now: reader.u64()?,
            visits: reader.u32()?,
            after: text(reader)?,
            pattern: text(reader)?,
            ranges: reader.rest(),
        };
        walk.is_sane().then_some(walk)
    }
}

impl<'a> Walked<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.visited.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        put_version(out, self.newest);
        match self.next {
            None => out.push(0),
            Some((position, after)) => {
                out.push(1);
                out.extend_from_slice(&position.0.to_le_bytes());
                put_text(out, after);
            }
        }
        out.extend_from_slice(self.keys);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Option<Walked<'a>> {
        let (visited, count, newest) = (reader.u32()?, reader.u64()?, version(reader)?);
        let next = match reader.flag()? {
            false => None,
            true => Some((Position(reader.u32()?), text(reader)?)),
        };
        let keys = reader.rest();
        let mut packed = Reader(keys);
        let mut told = 0;
        while !packed.0.is_empty() {
            packed.bytes()?;
            told += 1;
        }
        // More cannot be there than were looked at; and whoever tells keys tells all that it
        // counts.
        let is_sane = count <= u64::from(visited) && (told == 0 || told == count);
        let walked = Walked {
            visited,
            count,
            newest,
            next,
            keys,
        };
        is_sane.then_some(walked)
    }
}

fn put_text(out: &mut Vec<u8>, text: Option<&[u8]>) {
    out.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_bytes(out, text);
    }
}

fn text<'a>(reader: &mut Reader<'a>) -> Option<Option<&'a [u8]>> {
    Some(match reader.flag()? {
        false => None,
        true => Some(reader.bytes()?),
    })
}
