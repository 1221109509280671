//! Tells other cores which keys are here, page by page: this core's part of a walk over the whole
//! cluster.
//!
//! A page is bounded in records, bytes and time, so that whoever asks can wait for it with a
//! deadline, and ask another replica for it. It ends between two positions if that is possible, as
//! a cursor of SCAN can name nothing else; if one position has too many keys, it ends behind a key.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use super::replica::{Failure, Give, TOO_LATE, before, give_failure};
use crate::error::Result;
use crate::protocol::glob;
use crate::protocol::peer::walk::{Wanted, pack};
use crate::protocol::peer::{Answer, OwnedRequest, Request, Walk, Walked};
use crate::rt;
use crate::rt::sync::Signal;
use crate::storage::merge::Item;
use crate::types::{Position, Version};

/// Pages that a core reads at once.
const WALKS_AT_ONCE: usize = 8;
/// Records that a page looks at, at most.
const VISITS_MAX: u32 = 10_000;
/// With so many bytes of keys a page ends at the next position, with the larger number at the next
/// key.
const BYTES_ENOUGH: usize = 64 << 10;
const BYTES_MAX: usize = 256 << 10;
/// A page is not read for longer.
const PAGE_TIME_MAX: Duration = Duration::from_millis(250);
/// The clock is looked at after so many records.
const VISITS_BETWEEN_LOOKS: u32 = 256;

/// The pages that this core reads for others.
#[derive(Default)]
pub struct Walks {
    open: Cell<usize>,
    freed: Signal,
}

struct Place<'w>(&'w Walks);

impl Walks {
    async fn enter(&self) -> Place<'_> {
        let has_room = || (self.open.get() < WALKS_AT_ONCE).then_some(());
        self.freed.wait_for(has_room).await;
        self.open.set(self.open.get() + 1);
        Place(self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.freed.wake_all();
    }
}

/// A page on its way to its end.
#[derive(Default)]
struct Page {
    visited: u32,
    count: u64,
    keys: Vec<u8>,
    newest: Version,
    /// What was looked at last: its position, and its key.
    last: Option<Position>,
    last_key: Vec<u8>,
    /// It has taken its time.
    is_late: bool,
    next: Option<(Position, Option<Vec<u8>>)>,
}

impl Page {
    fn view(&self) -> Walked<'_> {
        Walked {
            visited: self.visited,
            count: self.count,
            newest: self.newest,
            next: self
                .next
                .as_ref()
                .map(|(position, after)| (*position, after.as_deref())),
            keys: &self.keys,
        }
    }

    /// Looks at a record, or ends before it.
    fn look_at(&mut self, item: &Item, walk: &Walk<'_>, over_at: Duration) -> ControlFlow<()> {
        let (position, key) = (item.position, item.record.key());
        if self.visited == 0 && walk.is_behind(position, key) {
            return ControlFlow::Continue(()); // a page before this one has told of it
        }
        let is_within = self.last == Some(position);
        let has_enough = self.visited >= walk.visits.min(VISITS_MAX)
            || self.keys.len() >= BYTES_ENOUGH
            || self.is_late;
        let has_too_much = self.visited >= 2 * VISITS_MAX || self.keys.len() >= BYTES_MAX;
        if self.visited > 0 && (has_too_much || (has_enough && !is_within)) {
            self.next = Some((position, is_within.then(|| self.last_key.clone())));
            return ControlFlow::Break(());
        }
        self.visited += 1;
        if self.visited.is_multiple_of(VISITS_BETWEEN_LOOKS) {
            self.is_late = rt::now() >= over_at;
        }
        self.newest = self.newest.max(item.record.meta().version);
        self.last = Some(position);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        let matches = |pattern| glob::matches(pattern, key);
        if item.record.view().is_live(walk.now) && walk.pattern.is_none_or(matches) {
            self.count += 1;
            if walk.want == Wanted::Keys {
                pack(&mut self.keys, key);
            }
        }
        ControlFlow::Continue(())
    }
}

impl Shard {
    /// Tells a page of `walk`. Past `deadline` nothing is begun any more.
    pub(super) fn tell_walk(self: &Rc<Self>, walk: Walk<'_>, deadline: Duration, give: impl Give) {
        let is_its = |(first, last)| self.holds_all(first, last);
        if !walk.each_range().all(is_its) {
            return give(&Answer::NotMine);
        }
        let (shard, asked) = (Rc::clone(self), OwnedRequest::new(&Request::Walk(walk)));
        rt::spawn(async move {
            let Request::Walk(walk) = asked.view() else {
                unreachable!("it was made of one");
            };
            let Some(_place) = before(deadline, shard.walks.enter()).await else {
                return give_failure(give, &Failure::not_done(TOO_LATE));
            };
            match shard.page_of(&walk).await {
                Ok(page) => give(&Answer::Walked(page.view())),
                Err(error) => give_failure(give, &Failure::not_done(error)),
            }
        });
    }

    async fn page_of(&self, walk: &Walk<'_>) -> Result<Page> {
        let mut page = Page::default();
        let over_at = rt::now() + PAGE_TIME_MAX;
        let snapshot = self.store.snapshot();
        for (first, last) in walk.each_range() {
            let on_item = |item: &Item| page.look_at(item, walk, over_at);
            snapshot.walk(first, last, on_item).await?;
            if page.next.is_some() {
                break;
            }
        }
        // Nothing is told of that a crash could still take back.
        self.store.wait_acknowledged(self.store.lsn_last()).await?;
        Ok(page)
    }
}
