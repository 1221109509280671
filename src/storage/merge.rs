//! Newest wins: many sorted sources become one sorted stream that holds each key once.
//!
//! The core decides and never waits. Whoever drives it does what [`Merge::step`] says: fetch the
//! next chunk of one source and feed it, or take the next item. Scans and compaction are such
//! loops.
//!
//! Invariants: each source is strictly ascending by (position, key), within and across its chunks;
//! so is what comes out. Of the records of one key the one with the highest version comes out; of
//! two with the same version a tombstone (an expired record that a compaction has already turned
//! into one), else the earlier source's: so sources stand from the newest to the oldest, for a
//! value that was moved is the same version at two places, of which only the newer may still be
//! there.

use std::collections::VecDeque;

use crate::storage::record::{Pointer, Record};
use crate::types::Position;

/// Where a walk over sorted records starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound<'a> {
    /// At the first key of this position, or after it.
    From(Position),
    /// Just after this key.
    After(Position, &'a [u8]),
}

impl Bound<'_> {
    /// Before all keys.
    pub const START: Bound<'static> = Bound::From(Position(0));

    /// True if the walk includes this key.
    pub fn admits(&self, position: Position, key: &[u8]) -> bool {
        match *self {
            Bound::From(first) => position >= first,
            Bound::After(last, last_key) => (position, key) > (last, last_key),
        }
    }

    /// The position that the walk starts in.
    pub fn position(&self) -> Position {
        match *self {
            Bound::From(position) | Bound::After(position, _) => position,
        }
    }
}

/// A record and its place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The position of its key.
    pub position: Position,
    /// The record.
    pub record: Record,
}

impl Item {
    /// What items are ordered by.
    pub fn order(&self) -> (Position, &[u8]) {
        (self.position, self.record.key())
    }

    /// The bound of a walk that goes on behind this item.
    pub fn after(&self) -> Bound<'_> {
        Bound::After(self.position, self.record.key())
    }
}

/// What the driver of a [`Merge`] does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Get this source's next chunk and [`Merge::feed`] it.
    Fetch(usize),
    /// The next key's newest record.
    Emit(Item),
    /// All sources are at their end.
    End,
}

/// The decisions of a k-way merge. Few sources (tens) are expected: heads are compared in turn.
pub struct Merge {
    sources: Vec<Source>,
    emitted: Option<Item>,
    dropped: Vec<Pointer>,
}

#[derive(Default)]
struct Source {
    chunk: VecDeque<Item>,
    last_fed: Option<Item>,
    ended: bool,
}

impl Merge {
    /// A merge of `sources` sources, numbered from 0.
    pub fn new(sources: usize) -> Merge {
        let sources = (0..sources).map(|_| Source::default()).collect();
        Merge {
            sources,
            emitted: None,
            dropped: Vec::new(),
        }
    }

    /// Gives `source` its next chunk, as [`Step::Fetch`] asked. An empty one is its end.
    pub fn feed(&mut self, source: usize, chunk: Vec<Item>) {
        let source = &mut self.sources[source];
        assert!(!source.ended, "fed after its end");
        assert!(
            source.chunk.is_empty(),
            "fed before its last chunk was used"
        );
        let rising = chunk.windows(2).all(|two| two[0].order() < two[1].order());
        assert!(rising, "a chunk is strictly ascending");
        match (&source.last_fed, chunk.first()) {
            (_, None) => source.ended = true,
            (None, Some(_)) => {}
            (Some(last), Some(first)) => {
                assert!(last.order() < first.order(), "chunks follow each other");
            }
        }
        source.last_fed = chunk.last().cloned();
        source.chunk = VecDeque::from(chunk);
    }

    /// Decides what comes next.
    pub fn step(&mut self) -> Step {
        let hungry = |source: &Source| source.chunk.is_empty() && !source.ended;
        if let Some(source) = self.sources.iter().position(hungry) {
            return Step::Fetch(source);
        }
        let Some(newest) = self.newest_of_first_key() else {
            return Step::End;
        };
        let item = self.take_key(newest);
        if let Some(before) = &self.emitted {
            assert!(before.order() < item.order(), "each key once, in order");
        }
        self.emitted = Some(item.clone());
        Step::Emit(item)
    }

    /// Where the values lie that were given up since this was called last, and are not counted yet:
    /// those of older records of the keys that came out, other than the very places of these.
    pub fn take_dropped(&mut self) -> Vec<Pointer> {
        std::mem::take(&mut self.dropped)
    }

    /// The source whose head is the newest record of the lowest key.
    fn newest_of_first_key(&self) -> Option<usize> {
        let mut best: Option<(usize, &Item)> = None;
        for (index, source) in self.sources.iter().enumerate() {
            let Some(head) = source.chunk.front() else {
                continue;
            };
            let better = match best {
                None => true,
                Some((_, chosen)) => match head.order().cmp(&chosen.order()) {
                    std::cmp::Ordering::Less => true,
                    std::cmp::Ordering::Equal => supersedes(&head.record, &chosen.record),
                    std::cmp::Ordering::Greater => false,
                },
            };
            if better {
                best = Some((index, head));
            }
        }
        best.map(|(index, _)| index)
    }

    /// Takes the head of source `newest`, and drops the other sources' records of its key. What
    /// comes out hides what the oldest of them did, and says of it what that one said.
    fn take_key(&mut self, newest: usize) -> Item {
        let item = self.sources[newest].chunk.pop_front();
        let item = item.expect("the chosen source has a head");
        let mut is_counted = item.record.is_counted();
        for source in &mut self.sources {
            let same = |head: &Item| head.order() == item.order();
            if source.chunk.front().is_some_and(same)
                && let Some(older) = source.chunk.pop_front()
            {
                let place = older.record.pointer().filter(|_| !is_counted);
                let place = place.filter(|place| item.record.pointer() != Some(*place));
                self.dropped.extend(place);
                is_counted = older.record.is_counted();
            }
        }
        let record = item.record.counted(is_counted);
        Item { record, ..item }
    }
}

/// True if `record` wins over `other`, a record of the same key that was found earlier.
pub fn supersedes(record: &Record, other: &Record) -> bool {
    record.meta().rank() > other.meta().rank()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::{KeyRef, Meta, RECORD_HEADER_BYTES};
    use crate::storage::wal::format::{SegmentId, Stream};
    use crate::types::Version;
    use std::collections::BTreeMap;

    fn item(key: &[u8], clock: u64, tombstone: bool) -> Item {
        let version = Version {
            clock,
            coordinator: 1,
        };
        let meta = Meta {
            version,
            expiry: 0,
            tombstone,
        };
        let value = if tombstone { &b""[..] } else { b"v" };
        Item {
            position: KeyRef::of(key).position,
            record: Record::new(meta, key, value),
        }
    }

    fn sorted(mut items: Vec<Item>) -> Vec<Item> {
        items.sort_by(|one, two| one.order().cmp(&two.order()));
        items
    }

    /// Drives a merge over `sources`, handing out chunks of random sizes.
    fn merged(sources: &[Vec<Item>], random: &mut fastrand::Rng) -> Vec<Item> {
        let mut merge = Merge::new(sources.len());
        let mut fed = vec![0; sources.len()];
        let mut out = Vec::new();
        loop {
            match merge.step() {
                Step::Fetch(source) => {
                    let left = &sources[source][fed[source]..];
                    let chunk = &left[..left.len().min(random.usize(1..5))];
                    fed[source] += chunk.len();
                    merge.feed(source, chunk.to_vec());
                }
                Step::Emit(item) => out.push(item),
                Step::End => return out,
            }
        }
    }

    #[test]
    fn a_merge_is_what_a_map_of_the_newest_would_be() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut newest: BTreeMap<(Position, Vec<u8>), Item> = BTreeMap::new();
            let mut sources = Vec::new();
            for _ in 0..random.usize(0..6) {
                let mut source = BTreeMap::new();
                for _ in 0..random.usize(0..40) {
                    let key = format!("key {}", random.u8(0..60));
                    let item = item(key.as_bytes(), random.u64(1..1000), random.bool());
                    let order = (item.position, key.into_bytes());
                    source.insert(order.clone(), item);
                }
                for (order, item) in &source {
                    let old = newest.get(order);
                    if old.is_none_or(|old| supersedes(&item.record, &old.record)) {
                        newest.insert(order.clone(), item.clone());
                    }
                }
                sources.push(source.into_values().collect::<Vec<_>>());
            }
            let expected: Vec<Item> = newest.into_values().collect();
            assert_eq!(merged(&sources, &mut random), expected, "seed {seed}");
        }
    }

    #[test]
    fn each_value_that_is_hidden_is_counted_once_in_whatever_order_records_meet() {
        let place = |offset: u32| Pointer {
            stream: Stream::Values,
            segment: SegmentId(1),
            offset,
            length: RECORD_HEADER_BYTES as u32 + 2,
            crc: 0,
            value_length: 1,
        };
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            // From the newest to the oldest; each says whether its flush has counted the next one.
            let depth = random.usize(1..7);
            let mut counts = vec![0; depth];
            let mut layers: Vec<Vec<Item>> = (0..depth)
                .map(|layer| {
                    let whole = item(b"k", (depth - layer) as u64, false);
                    let pointing = Record::pointing(whole.record.view(), place(layer as u32));
                    let is_counted = random.bool();
                    if is_counted && layer + 1 < depth {
                        counts[layer + 1] += 1;
                    }
                    let record = pointing.counted(is_counted);
                    vec![Item { record, ..whole }]
                })
                .collect();
            while layers.len() > 1 {
                let from = random.usize(..layers.len() - 1);
                let to = random.usize(from + 1..layers.len());
                let mut merge = Merge::new(to - from + 1);
                let (mut out, mut fed) = (Vec::new(), vec![false; to - from + 1]);
                loop {
                    match merge.step() {
                        Step::Fetch(source) if fed[source] => merge.feed(source, Vec::new()),
                        Step::Fetch(source) => {
                            fed[source] = true;
                            merge.feed(source, layers[from + source].clone());
                        }
                        Step::Emit(item) => out.push(item),
                        Step::End => break,
                    }
                }
                let dropped = merge.take_dropped().into_iter();
                dropped.for_each(|place| counts[place.offset as usize] += 1);
                layers.splice(from..=to, [out]);
            }
            let expected: Vec<i32> = (0..depth).map(|layer| i32::from(layer > 0)).collect();
            assert_eq!(counts, expected, "seed {seed}");
        }
    }

    #[test]
    fn of_two_records_with_one_version_the_tombstone_wins_in_any_order() {
        let live = vec![item(b"k", 5, false)];
        let dead = vec![item(b"k", 5, true)];
        let mut random = fastrand::Rng::with_seed(1);
        let one = merged(&[live.clone(), dead.clone()], &mut random);
        assert_eq!(one, dead, "an expired record came back");
        assert_eq!(merged(&[dead.clone(), live], &mut random), dead);
    }

    #[test]
    fn a_bound_admits_what_is_at_or_after_it() {
        let items = sorted((0..50u8).map(|key| item(&[key], 1, false)).collect());
        for (index, item) in items.iter().enumerate() {
            let (position, key) = item.order();
            assert!(Bound::START.admits(position, key));
            assert!(Bound::From(position).admits(position, key));
            assert!(
                !item.after().admits(position, key),
                "a walk went on where it had been"
            );
            let rest = items.iter().filter(|other| {
                let (position, key) = other.order();
                item.after().admits(position, key)
            });
            assert_eq!(rest.count(), items.len() - index - 1);
        }
    }

    #[test]
    #[should_panic(expected = "chunks follow each other")]
    fn a_source_that_goes_back_is_a_bug_that_stops_the_merge() {
        let items = sorted(vec![item(b"a", 1, false), item(b"b", 1, false)]);
        let mut merge = Merge::new(1);
        merge.feed(0, items[1..].to_vec());
        assert!(matches!(merge.step(), Step::Emit(_)));
        merge.feed(0, items[..1].to_vec());
    }
}
