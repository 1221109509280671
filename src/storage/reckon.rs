//! What a flush hides: the values that become garbage by it are counted at once, and not only when
//! a merge meets both records of a key.
//!
//! A flush walks its memtable in the order of keys; beside it a walk over all tables of that moment
//! finds the record that each one hides. Where that points to a value of another version, its place
//! is garbage from the moment on at which the manifest names the new table. The new record then
//! says that what it hides is counted ([`Record::is_counted`]); a merge that meets both does not
//! count it again, and gives what comes out the word of the record that it drops, which holds for
//! what that one hid.
//!
//! The walk reads all tables, so it is made only where that costs little beside the values that the
//! flush may hide ([`is_worth_a_walk`]). If filters say that few keys are in tables at all, these
//! are looked up one by one instead; and so are all, if they are few beside what the tables hold,
//! as long as caches know the answers. Where neither will do, merges count, in their time. Records
//! whose values lie in tables take part: a tombstone hides values too.

use std::rc::Rc;

use super::cache::Caches;
use super::levels::{Levels, RunCursor};
use super::merge::{Bound, Item, Merge, Step};
use super::record::{KeyRef, Record};
use super::vlog::Garbage;
use crate::error::Result;

/// Tables are read in pieces of this size.
const READ_BYTES: usize = 256 << 10;
/// A walk is worth it if so many times the bytes of the tables may become garbage.
const WORTH: u64 = 2;
/// With fewer than one key in so many that tables may have, they are looked up one by one...
const FEW: usize = 8;
/// ...and with fewer than one key for so many records of tables, too...
const SPARSE: u64 = 16;
/// ...unless, after so many, one in so many had to be read from disk.
const TRIED: u32 = 64;
const READ_SHARE: u32 = 8;

/// True if `hiding` records, each of which may hide a value, are reason enough to read
/// `table_bytes` of tables: they have `records` that point to `value_bytes` in all.
pub fn is_worth_a_walk(hiding: u64, table_bytes: u64, records: u64, value_bytes: u64) -> bool {
    let hidden = u128::from(hiding.min(records)) * u128::from(value_bytes);
    hidden > 0 && hidden >= u128::from(WORTH) * u128::from(table_bytes) * u128::from(records)
}

/// Finds what the records of a flush hide.
pub struct Reckoner {
    search: Search,
    may_walk: bool,
}

enum Search {
    /// No more: it would cost too much, or tables cannot be read.
    Over,
    /// Beside the walk over the memtable.
    Walk(Box<Walk>),
    /// Key by key.
    Lookups(Lookups),
}

struct Lookups {
    levels: Levels,
    caches: Rc<Caches>,
    /// So many keys were looked up...
    tried: u32,
    /// ...and for so many of them something was read from disk.
    read: u32,
    /// They are given up if they cost much.
    are_bounded: bool,
}

struct Walk {
    cursors: Vec<RunCursor>,
    merge: Merge,
    /// The newest record of the next key.
    head: Option<Item>,
    has_ended: bool,
}

impl Reckoner {
    /// For a flush of `count` keys, of which `sample` are some, on top of `levels`. `may_walk`: a
    /// walk over all of these is worth it.
    pub fn new<'a>(
        levels: &Levels,
        caches: &Rc<Caches>,
        count: u64,
        sample: impl Iterator<Item = KeyRef<'a>>,
        may_walk: bool,
    ) -> Reckoner {
        let (mut keys, mut found) = (0, 0);
        for key in sample {
            keys += 1;
            found += usize::from(!levels.candidates(&key).is_empty());
        }
        let are_many = found * FEW >= keys;
        let records: u64 = levels.iter().map(|table| table.info().records).sum();
        let are_dense = count.saturating_mul(SPARSE) >= records;
        let search = match are_many && are_dense {
            true if may_walk => Search::Walk(Box::new(Walk::over(levels, Bound::START))),
            true => Search::Over,
            false => Search::Lookups(Lookups {
                levels: levels.clone(),
                caches: Rc::clone(caches),
                tried: 0,
                read: 0,
                are_bounded: are_many || !may_walk,
            }),
        };
        Reckoner { search, may_walk }
    }

    /// Counts in `garbage` what `item` hides, and gives the record that says so. Items come in
    /// order. Tables that cannot be read are named in the log; nothing is counted from there on.
    pub async fn count(&mut self, item: &Item, garbage: &mut Garbage) -> Record {
        let hidden = match &mut self.search {
            Search::Over => return item.record.clone(),
            Search::Walk(walk) => walk.hidden(item).await,
            Search::Lookups(lookups) => lookups.hidden(item).await,
        };
        if let Search::Lookups(lookups) = &self.search
            && lookups.are_dear()
        {
            let after = Bound::After(item.position, item.record.key());
            self.search = match self.may_walk {
                true => Search::Walk(Box::new(Walk::over(&lookups.levels, after))),
                false => Search::Over,
            };
        }
        match hidden {
            Ok(hidden) => {
                // The same version is what the collector has moved, and counted.
                let is_older = |old: &Record| old.meta().version < item.record.meta().version;
                let place = hidden.filter(is_older).and_then(|old| old.pointer());
                place.into_iter().for_each(|place| garbage.add(place));
                item.record.counted(true)
            }
            Err(error) => {
                log::warn!("what a flush makes garbage cannot be counted: {error}");
                self.search = Search::Over;
                item.record.clone()
            }
        }
    }
}

impl Lookups {
    /// The newest record that tables have of the key of `item`.
    async fn hidden(&mut self, item: &Item) -> Result<Option<Record>> {
        let key = KeyRef {
            position: item.position,
            ..KeyRef::of(item.record.key())
        };
        let misses = self.caches.blocks.stats().misses;
        let mut hidden = None;
        for table in self.levels.candidates(&key) {
            hidden = table.get(&key, &self.caches.blocks).await?;
            if hidden.is_some() {
                break;
            }
        }
        self.tried += 1;
        // Others' lookups go on only while this one reads.
        self.read += u32::from(self.caches.blocks.stats().misses > misses);
        Ok(hidden)
    }

    fn are_dear(&self) -> bool {
        self.are_bounded && self.tried >= TRIED && self.read * READ_SHARE >= self.tried
    }
}

impl Walk {
    fn over(levels: &Levels, from: Bound<'_>) -> Walk {
        let cursor = |run| RunCursor::new(Rc::clone(run), from, READ_BYTES);
        Walk {
            cursors: levels.runs().iter().map(cursor).collect(),
            merge: Merge::new(levels.runs().len()),
            head: None,
            has_ended: false,
        }
    }

    /// The newest record that tables have of the key of `item`.
    async fn hidden(&mut self, item: &Item) -> Result<Option<Record>> {
        while !self.has_ended {
            match &self.head {
                Some(head) if head.order() > item.order() => return Ok(None),
                Some(head) if head.order() == item.order() => return Ok(Some(head.record.clone())),
                _ => self.go_on().await?,
            }
        }
        Ok(None)
    }

    async fn go_on(&mut self) -> Result<()> {
        loop {
            match self.merge.step() {
                Step::Fetch(source) => {
                    let chunk = self.cursors[source].next_chunk().await?;
                    self.merge.feed(source, chunk);
                }
                Step::Emit(item) => {
                    self.merge.take_dropped();
                    self.head = Some(item);
                    return Ok(());
                }
                Step::End => {
                    self.has_ended = true;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_worth_it_only_where_much_may_be_hidden_beside_what_is_read() {
        let mib = 1 << 20;
        // 50,000 of 800,000 values of 10 KB, in tables of 60 MB.
        assert!(is_worth_a_walk(50_000, 60 * mib, 800_000, 8_000 * mib));
        // The same many of 200 million values of 1 KB.
        assert!(!is_worth_a_walk(
            50_000,
            13_000 * mib,
            200_000_000,
            200_000 * mib
        ));
        for (hiding, records, values) in [(0, 10, mib), (10, 10, 0), (10, 0, 0)] {
            assert!(
                !is_worth_a_walk(hiding, 100, records, values),
                "nothing is hidden"
            );
        }
        // More cannot be hidden than there is.
        assert!(!is_worth_a_walk(u64::MAX, mib, 100, mib));
    }
}
