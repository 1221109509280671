//! Commands about all keys of a cluster: SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHALL, and those about a
//! slot.
//!
//! Each vnode is asked of its first holder that is there, so that a key is told of once, and the
//! next holder goes on where one has died. At the port of a core they are about the vnodes that
//! CLUSTER SLOTS gives to it. What is walked is cut into legs (`cluster/legs`), and each core is
//! asked about all of its legs in one request, a page at a time (`walk`); memory is bounded by
//! that, and by what a reply may hold. A walk that gets no further for `replica-timeout-ms` is
//! given up.
//!
//! What a holder lacks because it was away is not told, as of reads at ONE. FLUSHALL asks every
//! holder that is there, and so many of each key as the write's level says: what was acknowledged
//! at QUORUM, a majority of the holders knows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use super::cluster::Came;
use super::keyspace::reply_keys;
use super::kv_command::Levels;
use super::plan::Asker;
use super::refusal::reply_refusal;
use super::replica::CLOCK_MAX;
use crate::cluster::face::Port;
use crate::cluster::faces;
use crate::cluster::legs::{self, Choice, Next};
use crate::cluster::map::Holder;
use crate::cluster::ring::Vnode;
use crate::config::SCAN_COUNT_MAX;
use crate::error::{Error, Result};
use crate::membership::View;
use crate::protocol::command::{Scan, StoreCommand};
use crate::protocol::peer::Walk;
use crate::protocol::peer::walk::{Range, Wanted, pack_ranges};
use crate::protocol::reply::Reply;
use crate::replication::coordinate::Change;
use crate::replication::quorum::Rules;
use crate::rt;
use crate::types::{Level, Position, Slot, UnixMillis, Version};

/// Cores that are asked at once, each for a page.
const HOLDERS_AT_ONCE: usize = 32;
/// Legs that a page of SCAN begins with; where nothing is found it looks further, so far at a time.
const LEGS_AT_FIRST: usize = 2;
const LEGS_AT_ONCE: usize = 1024;
/// Keys that FLUSHALL deletes at once.
const DELETES_AT_ONCE: usize = 64;
/// A page of SCAN ends with so many bytes of keys.
const SCAN_BYTES_MAX: usize = 1 << 20;
/// Keys that RANDOMKEY chooses among.
const RANDOM_SAMPLE: u32 = 16;
/// What a key costs in a reply, besides its bytes.
const BULK_BYTES: usize = 16;
/// Whoever was busy, or had another map, is asked again after this.
const AGAIN_PAUSE: Duration = Duration::from_millis(10);

/// What is asked of each holder.
struct Question {
    want: Wanted,
    now: UnixMillis,
    visits: u32,
    pattern: Option<Vec<u8>>,
}

/// A part of the ring that is still to be walked.
#[derive(Clone, Debug)]
struct Piece {
    first: Position,
    /// At the first position only keys behind this one.
    after: Option<Vec<u8>>,
    last: Position,
}

/// What a core is asked about at a time.
#[derive(Clone, Debug, Default)]
struct Share {
    ranges: Vec<Range>,
    /// At the first position only keys behind this one.
    after: Option<Vec<u8>>,
}

/// What a holder has told.
#[derive(Default)]
pub(super) struct Told {
    visited: u32,
    count: u64,
    newest: Version,
    keys: Vec<Vec<u8>>,
    next: Option<(Position, Option<Vec<u8>>)>,
}

/// Whom a walk asks.
#[derive(Clone, Copy, Debug)]
enum Whom {
    /// Of each vnode the first holder that is there.
    First,
    /// Of each vnode the holder at this place, unless it is lost.
    At(usize),
}

/// A walk over the ring, and how far it is.
struct Tour<'s> {
    shard: &'s Rc<Shard>,
    /// Only the vnodes that belong to this core, as clients are told.
    only: Option<Holder>,
    whom: Whom,
    /// Cores that did not answer, and are not asked again.
    lost: BTreeSet<Holder>,
    /// What is left, in the order of the ring; what comes first stands last.
    left: Vec<Piece>,
    /// When it last got further.
    moved: Duration,
}

impl Piece {
    fn new(first: Position, last: Position) -> Piece {
        let after = None;
        Piece { first, after, last }
    }

    fn whole() -> Piece {
        Piece::new(Position(0), Position(u32::MAX))
    }

    fn of(slot: Slot) -> Piece {
        Piece::new(Position::first_of(slot), Position::last_of(slot))
    }

    /// True if `key` lies before it.
    fn is_behind(&self, key: &[u8]) -> bool {
        let position = Position::of(key);
        let is_told =
            position == self.first && self.after.as_ref().is_some_and(|after| key <= &after[..]);
        position < self.first || is_told
    }
}

impl Share {
    /// What of it is left from `next` on, or all of it.
    fn rest(self, next: Option<(Position, Option<Vec<u8>>)>) -> Vec<Piece> {
        let start = self.ranges.first().map(|range| range.0);
        let (from, mut after) = match (next, start) {
            (Some(next), _) => next,
            (None, Some(start)) => (start, self.after),
            (None, None) => return Vec::new(),
        };
        let left = self.ranges.into_iter().filter(|(_, last)| *last >= from);
        left.map(|(first, last)| Piece {
            first: first.max(from),
            after: after.take(),
            last,
        })
        .collect()
    }
}

impl Told {
    /// Reads a page.
    pub fn of(page: &crate::protocol::peer::Walked<'_>) -> Told {
        let next = page.next;
        Told {
            visited: page.visited,
            count: page.count,
            newest: page.newest,
            keys: page.each_key().map(<[u8]>::to_vec).collect(),
            next: next.map(|(position, after)| (position, after.map(<[u8]>::to_vec))),
        }
    }
}

/// Who is asked about `vnode`.
fn choose(view: &View, tour: &Tour<'_>, vnode: Vnode) -> Choice {
    let mut holders = view.map.holders(vnode).iter();
    if !concerns(view, tour.only, vnode) {
        return Choice::Pass;
    }
    let is_asked = |holder: &&Holder| !tour.lost.contains(*holder);
    match tour.whom {
        Whom::First => {
            let is_there = |holder: &&Holder| view.may_be_asked(holder.node) && is_asked(holder);
            let first = holders.find(is_there);
            first.map_or(Choice::Nobody, |holder| Choice::Ask(*holder))
        }
        Whom::At(place) => {
            let at_place = holders.nth(place).filter(is_asked);
            at_place.map_or(Choice::Pass, |holder| Choice::Ask(*holder))
        }
    }
}

/// True if a walk that is `only` about one core's vnodes is about this one.
fn concerns(view: &View, only: Option<Holder>, vnode: Vnode) -> bool {
    let is_there = |node| view.may_be_asked(node);
    only.is_none() || faces::owner(view.map.holders(vnode), is_there) == only
}

impl<'s> Tour<'s> {
    fn new(shard: &'s Rc<Shard>, port: Port, left: Vec<Piece>) -> Tour<'s> {
        Tour {
            shard,
            only: (port == Port::Core).then(|| shard.holder()).flatten(),
            whom: Whom::First,
            lost: BTreeSet::new(),
            left,
            moved: rt::now(),
        }
    }

    /// The next legs, at most so many, by who is asked.
    fn take(&mut self, legs_max: usize) -> Result<BTreeMap<Holder, Share>> {
        let mut shares: BTreeMap<Holder, Share> = BTreeMap::new();
        let (mut legs, mut later) = (0, Vec::new());
        let view = self.shard.view().ok_or(Error::Busy)?;
        while legs < legs_max
            && let Some(piece) = self.left.pop()
        {
            let leg = match legs::next(view.map.vnodes(), piece.first, |vnode| {
                choose(&view, self, vnode)
            }) {
                Next::Leg(leg) if leg.first <= piece.last => leg,
                Next::Nobody(position) if position <= piece.last => {
                    self.left.push(piece);
                    match (legs, self.lost.is_empty()) {
                        (0, true) => return Err(Error::Unavailable { need: 1, live: 0 }),
                        (0, false) => return Err(Error::Unanswered),
                        _ => break, // what comes before it can be told
                    }
                }
                Next::Leg(_) | Next::Nobody(_) | Next::End => continue, // nothing more of this piece
            };
            let is_new = !shares.contains_key(&leg.holder);
            if is_new && shares.len() >= HOLDERS_AT_ONCE {
                self.left.push(piece);
                break;
            }
            let last = leg.last.min(piece.last);
            if let Some(next) = last.0.checked_add(1).map(Position)
                && next <= piece.last
            {
                self.left.push(Piece::new(next, piece.last));
            }
            let first = leg.first;
            let after = piece.after.filter(|_| first == piece.first);
            let share = shares.entry(leg.holder).or_default();
            if after.is_some() && !is_new {
                later.push(Piece { first, after, last }); // there is room for one such place
                continue;
            }
            share.after = share.after.take().or(after);
            share.ranges.push((first, last));
            legs += 1;
        }
        self.put_back(later);
        Ok(shares)
    }

    fn put_back(&mut self, pieces: Vec<Piece>) {
        if !pieces.is_empty() {
            self.left.extend(pieces);
            self.left.sort_by_key(|piece| Reverse(piece.first));
        }
    }

    /// Asks whoever has the next legs, at most so many, for a page each. By position: what is told
    /// has no gap in it.
    async fn step(
        &mut self,
        legs_max: usize,
        order: Order,
        question: &Rc<Question>,
    ) -> Result<Vec<Told>> {
        let patience = Duration::from_millis(self.shard.config.replica_timeout_ms);
        let given_up = self.moved + patience;
        if rt::now() >= given_up {
            return Err(Error::Unanswered);
        }
        let start = self.left.last().cloned();
        let shares = self.take(legs_max)?;
        let ends = shares.values().filter_map(|share| share.ranges.last());
        let end = ends.map(|range| range.1).max();
        let deadline = given_up.min(rt::now() + patience / 2);
        let asked: Vec<_> = shares
            .into_iter()
            .map(|(holder, share)| {
                let (shard, question) = (Rc::clone(self.shard), Rc::clone(question));
                let asked = share.clone();
                let page = async move { shard.ask_page(holder, &asked, &question, deadline).await };
                (holder, share, rt::spawn(page))
            })
            .collect();
        let (mut told, mut rest, mut is_busy) = (Vec::new(), Vec::new(), false);
        for (holder, share, page) in asked {
            match page.await {
                Came::Told(mut page) => {
                    if let Some(next) = page.next.take() {
                        rest.extend(share.rest(Some(next)));
                    }
                    told.push(page);
                }
                Came::Again => {
                    is_busy = true;
                    rest.extend(share.rest(None));
                }
                Came::Lost => {
                    self.lost.insert(holder);
                    rest.extend(share.rest(None));
                }
            }
        }
        if order == Order::ByPosition
            && let Some(cut) = rest.iter().min_by_key(|piece| piece.first).cloned()
            && let Some(last) = end
        {
            // What lies behind it is asked for again.
            let pages = told.iter_mut();
            pages.for_each(|page: &mut Told| page.keys.retain(|key| cut.is_behind(key)));
            rest = vec![Piece { last, ..cut }];
        }
        self.put_back(rest);
        let has_moved = match order {
            Order::Any => !told.is_empty(),
            Order::ByPosition => !is_same_place(start.as_ref(), self.left.last()),
        };
        if has_moved {
            self.moved = rt::now();
        }
        if is_busy {
            rt::sleep(AGAIN_PAUSE).await;
        }
        Ok(told)
    }

    /// Where it stands, if that is between two positions.
    fn stands_at(&self) -> Option<Position> {
        let next = self.left.last().filter(|piece| piece.after.is_none());
        next.map(|piece| piece.first)
    }
}

fn is_same_place(one: Option<&Piece>, other: Option<&Piece>) -> bool {
    let place = |piece: &Piece| (piece.first, piece.after.clone());
    one.map(place) == other.map(place)
}

/// Whether a walk may tell of one part before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ByPosition,
    Any,
}

impl Shard {
    /// The reply to a command about all keys of the cluster, or, at the port of a core, about those
    /// that are that core's.
    pub(super) async fn run_whole(
        self: &Rc<Self>,
        command: &StoreCommand<'_>,
        levels: Levels,
        asker: Asker,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reply = Reply::new(&mut out, asker.protocol);
        let now = rt::wall_ms();
        let done = match command {
            StoreCommand::Scan(scan) => self.scan_whole(scan, now, asker.port, &mut reply).await,
            StoreCommand::Keys { pattern } => {
                let question = ask_for(Wanted::Keys, u32::MAX, now, Some(*pattern));
                let tour = Tour::new(self, asker.port, vec![Piece::whole()]);
                let keys = self.keys_on(tour, question, u64::MAX).await;
                keys.map(|keys| reply_keys(keys.as_deref(), &mut reply))
            }
            StoreCommand::KeysInSlot { slot, count } => {
                let visits = u32::try_from(*count).unwrap_or(u32::MAX).max(1);
                let question = ask_for(Wanted::Keys, visits, now, None);
                let tour = Tour::new(self, asker.port, vec![Piece::of(*slot)]);
                let keys = self.keys_on(tour, question, *count).await;
                keys.map(|keys| reply_keys(keys.as_deref(), &mut reply))
            }
            StoreCommand::Size => {
                self.count_on(Piece::whole(), asker.port, now, &mut reply)
                    .await
            }
            StoreCommand::CountInSlot(slot) => {
                self.count_on(Piece::of(*slot), asker.port, now, &mut reply)
                    .await
            }
            StoreCommand::RandomKey => match self.random_of_all(asker.port, now).await {
                Ok(Some(key)) => {
                    reply.bulk(&key);
                    Ok(())
                }
                Ok(None) => {
                    reply.null();
                    Ok(())
                }
                Err(error) => Err(error),
            },
            StoreCommand::Flush => {
                let flushed = self.flush_whole(levels.write, asker.port).await;
                flushed.map(|()| reply.ok())
            }
        };
        if let Err(error) = done {
            out.clear();
            reply_refusal(&error, &mut Reply::new(&mut out, asker.protocol));
        }
        out
    }

    async fn scan_whole(
        self: &Rc<Self>,
        scan: &Scan<'_>,
        now: UnixMillis,
        port: Port,
        reply: &mut Reply<'_>,
    ) -> Result<()> {
        let start = u32::try_from(scan.cursor).ok().map(Position);
        let pieces = start.map(|start| Piece::new(start, Position(u32::MAX)));
        let mut tour = Tour::new(self, port, pieces.into_iter().collect());
        let count = scan.count.clamp(1, SCAN_COUNT_MAX as u64) as u32;
        let want = match scan.strings {
            true => Wanted::Keys,
            false => Wanted::Count, // of a type that nothing here is of
        };
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let (mut visited, mut legs) = (0u32, LEGS_AT_FIRST);
        let next = loop {
            let has_enough = visited >= count || bytes >= SCAN_BYTES_MAX;
            match tour.stands_at() {
                None if tour.left.is_empty() => break 0,
                Some(next) if has_enough && Some(next) > start => break u64::from(next.0),
                _ => {}
            }
            let visits = count.saturating_sub(visited).max(1);
            let question = ask_for(want, visits, now, scan.pattern);
            let told = tour.step(legs, Order::ByPosition, &question).await?;
            legs = (2 * legs).min(LEGS_AT_ONCE); // not much is here: look further ahead
            for page in told {
                visited = visited.saturating_add(page.visited);
                bytes += page.keys.iter().map(Vec::len).sum::<usize>();
                keys.extend(page.keys);
            }
        };
        reply.array(2);
        reply.bulk(next.to_string().as_bytes());
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    }

    /// So many of the keys on a tour; `None`: they are more than one reply may hold.
    async fn keys_on(
        self: &Rc<Self>,
        mut tour: Tour<'_>,
        question: Rc<Question>,
        count: u64,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let bytes_max = self.config.limits.reply_max.0 as usize;
        while !tour.left.is_empty() && (keys.len() as u64) < count {
            for page in tour.step(usize::MAX, Order::Any, &question).await? {
                let cost = |key: &Vec<u8>| key.len() + BULK_BYTES;
                bytes += page.keys.iter().map(cost).sum::<usize>();
                keys.extend(page.keys);
            }
            if bytes > bytes_max {
                return Ok(None);
            }
        }
        keys.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Some(keys))
    }

    async fn count_on(
        self: &Rc<Self>,
        piece: Piece,
        port: Port,
        now: UnixMillis,
        reply: &mut Reply<'_>,
    ) -> Result<()> {
        let question = ask_for(Wanted::Count, u32::MAX, now, None);
        let mut tour = Tour::new(self, port, vec![piece]);
        let mut count = 0;
        while !tour.left.is_empty() {
            let told = tour.step(usize::MAX, Order::Any, &question).await?;
            count += told.iter().map(|page| page.count).sum::<u64>();
        }
        reply.integer(count as i64);
        Ok(())
    }

    /// A key that is there, from a random position on.
    async fn random_of_all(
        self: &Rc<Self>,
        port: Port,
        now: UnixMillis,
    ) -> Result<Option<Vec<u8>>> {
        let start = Position(rt::random() as u32);
        let before = start.0.checked_sub(1).map(Position);
        let before = before.map(|last| Piece::new(Position(0), last));
        let behind = Piece::new(start, Position(u32::MAX));
        let mut tour = Tour::new(self, port, Vec::new());
        for piece in [Some(behind), before].into_iter().flatten() {
            tour.left.push(piece);
            let (mut visits, mut legs) = (RANDOM_SAMPLE, LEGS_AT_FIRST);
            while !tour.left.is_empty() {
                let question = ask_for(Wanted::Keys, visits, now, None);
                let told = tour.step(legs, Order::ByPosition, &question).await?;
                let mut keys: Vec<Vec<u8>> = told.into_iter().flat_map(|page| page.keys).collect();
                keys.truncate(RANDOM_SAMPLE as usize);
                if !keys.is_empty() {
                    let index = rt::random() as usize % keys.len();
                    return Ok(Some(keys.swap_remove(index)));
                }
                (visits, legs) = (visits.saturating_mul(4), (4 * legs).min(LEGS_AT_ONCE));
            }
        }
        Ok(None)
    }

    /// Deletes each key that is there, at `level`: as many holders of each vnode as that needs are
    /// asked for all of theirs.
    async fn flush_whole(self: &Rc<Self>, level: Level, port: Port) -> Result<()> {
        let view = self.view().ok_or(Error::Busy)?;
        let copies = view.map.copies();
        let need = level.need(copies, Rules::default());
        let mut tour = Tour::new(self, port, Vec::new());
        let all = view
            .map
            .vnodes()
            .all()
            .flat_map(|vnode| view.map.holders(vnode));
        // Who is away now stays so for this command: it would miss the beginning.
        let away = all.filter(|holder| !view.may_be_asked(holder.node));
        tour.lost = away.copied().collect();
        self.check_holders(&tour, need)?;
        let mut is_begun = false;
        for place in 0..copies {
            (tour.whom, tour.moved) = (Whom::At(place), rt::now());
            tour.left.push(Piece::whole());
            while !tour.left.is_empty() {
                let visits = 4 * DELETES_AT_ONCE as u32;
                // All of them, whatever has expired by the clock of this node.
                let question = ask_for(Wanted::Keys, visits, 0, None);
                let told = tour.step(usize::MAX, Order::Any, &question).await;
                let done = match told {
                    Ok(told) if told.is_empty() => Ok(()),
                    Ok(told) => {
                        let deleted = self.delete_all(told, level, &mut is_begun).await;
                        tour.moved = rt::now(); // deletes take their time
                        deleted
                    }
                    Err(error) => Err(error),
                };
                // Whoever was not asked to the end does not count.
                let done = done.and_then(|()| self.check_holders(&tour, need));
                done.map_err(|error| match is_begun {
                    true => Error::InDoubt,
                    false => error,
                })?;
            }
        }
        Ok(())
    }

    /// An error if of some vnode fewer holders than `need` are not lost.
    fn check_holders(&self, tour: &Tour<'_>, need: usize) -> Result<()> {
        let view = self.view().ok_or(Error::Busy)?;
        for (first, _, holders) in view.map.runs() {
            let vnode = view.map.vnodes().of(first);
            let live = holders
                .iter()
                .filter(|holder| !tour.lost.contains(*holder))
                .count();
            if live < need && concerns(&view, tour.only, vnode) {
                return Err(Error::Unavailable { need, live });
            }
        }
        Ok(())
    }

    /// Deletes what was told, whatever clock it was written by.
    async fn delete_all(
        self: &Rc<Self>,
        told: Vec<Told>,
        level: Level,
        is_begun: &mut bool,
    ) -> Result<()> {
        let newest = told.iter().map(|page| page.newest).max();
        if let Some(newest) = newest.filter(|newest| newest.clock < CLOCK_MAX) {
            self.clock.borrow_mut().observe(newest);
        }
        let mut keys = told.into_iter().flat_map(|page| page.keys).peekable();
        while keys.peek().is_some() {
            *is_begun = true;
            let deletes: Vec<_> = (&mut keys)
                .take(DELETES_AT_ONCE)
                .map(|key| {
                    let shard = Rc::clone(self);
                    let change = Change {
                        key,
                        value: None,
                        expiry: 0,
                    };
                    rt::spawn(async move { shard.write_replicas(change, level).await })
                })
                .collect();
            let mut done = Ok(());
            for delete in deletes {
                done = delete.await.map(|_| ()).and(done);
            }
            done?;
        }
        Ok(())
    }

    /// What `holder` tells of `share`.
    async fn ask_page(
        self: &Rc<Self>,
        holder: Holder,
        share: &Share,
        question: &Question,
        deadline: Duration,
    ) -> Came {
        let walk = Walk {
            want: question.want,
            now: question.now,
            visits: question.visits,
            after: share.after.as_deref(),
            pattern: question.pattern.as_deref(),
            ranges: &pack_ranges(share.ranges.iter().copied()),
        };
        self.ask_walk(holder, walk, deadline).await
    }
}

fn ask_for(want: Wanted, visits: u32, now: UnixMillis, pattern: Option<&[u8]>) -> Rc<Question> {
    Rc::new(Question {
        want,
        now,
        visits,
        pattern: pattern.map(<[u8]>::to_vec),
    })
}
