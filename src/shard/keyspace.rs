//! Commands about the whole store, on one core's part of it: SCAN, KEYS, DBSIZE, RANDOMKEY. (Of a
//! node that is alone; `whole` is about all nodes of a cluster.)
//!
//! A SCAN cursor is the position to go on at, so it needs no state here and outlives restarts: a
//! page ends between two positions. Each page is one core's; the caller asks the core that owns the
//! cursor. A key that is there throughout is returned; nothing is returned that was never there.
//! At a core's own port the walk goes over that core's runs only.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::Shard;
use super::execute::Replying;
use crate::cluster::face::Port;
use crate::config::SCAN_COUNT_MAX;
use crate::error::Result;
use crate::protocol::command::{Scan, StoreCommand};
use crate::protocol::glob;
use crate::protocol::reply::Reply;
use crate::rt;
use crate::storage::Snapshot;
use crate::types::{Lsn, Position, Slot, UnixMillis};

/// Keys that RANDOMKEY chooses among, from a random position on.
const RANDOM_SAMPLE: usize = 16;

/// The position that a cursor stands for. A cursor from elsewhere is as good as the end.
pub fn position_of(cursor: u64) -> Position {
    Position(u32::try_from(cursor).unwrap_or(u32::MAX))
}

impl Shard {
    /// Runs `command` on `snapshot`, which is this core's part.
    pub async fn read_store(
        self: &Shard,
        snapshot: &Snapshot,
        command: &StoreCommand<'_>,
        port: Port,
        to: &mut Replying<'_>,
    ) -> Result<Lsn> {
        let lsn = self.store.lsn_last();
        match command {
            StoreCommand::Scan(scan) => self.scan_page(snapshot, scan, port, to).await?,
            StoreCommand::Keys { pattern } => {
                let wanted = |key: &[u8]| glob::matches(pattern, key);
                let keys = self
                    .keys_in(snapshot, WHOLE, u64::MAX, wanted, to.now)
                    .await?;
                reply_keys(keys.as_deref(), &mut Reply::new(to.out, to.protocol));
            }
            StoreCommand::KeysInSlot { slot, count } => {
                let range = within(*slot);
                let keys = self
                    .keys_in(snapshot, range, *count, |_| true, to.now)
                    .await?;
                reply_keys(keys.as_deref(), &mut Reply::new(to.out, to.protocol));
            }
            StoreCommand::Size => count_in(snapshot, WHOLE, to).await?,
            StoreCommand::CountInSlot(slot) => count_in(snapshot, within(*slot), to).await?,
            StoreCommand::RandomKey => {
                let key = random_key(snapshot, to.now).await?;
                let mut reply = Reply::new(to.out, to.protocol);
                match key {
                    Some(key) => reply.bulk(&key),
                    None => reply.null(),
                }
            }
            StoreCommand::Flush => unreachable!("a write, and so a transaction"),
        }
        Ok(lsn)
    }

    async fn scan_page(
        &self,
        snapshot: &Snapshot,
        scan: &Scan<'_>,
        port: Port,
        to: &mut Replying<'_>,
    ) -> Result<()> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut next = 0u64;
        let map = &self.map;
        let run_from = |position| match port {
            Port::Shared => Some(map.run_of(position)),
            Port::Core => map.run_from(self.id, position),
        };
        let from = u32::try_from(scan.cursor).ok().map(Position);
        if let Some(from) = from
            && let Some(run) = run_from(from)
        {
            let count = (scan.count as usize).clamp(1, SCAN_COUNT_MAX);
            let mut seen = 0;
            let mut page_end = None;
            snapshot
                .walk(from.max(run.first), run.last, |item| {
                    // A page ends only where a position does: the cursor cannot name anything else.
                    if seen >= count && page_end != Some(item.position) {
                        next = u64::from(item.position.0);
                        return ControlFlow::Break(());
                    }
                    seen += 1;
                    page_end = Some(item.position);
                    let key = item.record.key();
                    let matches = scan
                        .pattern
                        .is_none_or(|pattern| glob::matches(pattern, key));
                    if scan.strings && matches && item.record.view().is_live(to.now) {
                        keys.push(key.to_vec());
                    }
                    ControlFlow::Continue(())
                })
                .await?;
            if next == 0 {
                let rest = run.next().and_then(run_from);
                next = rest.map_or(0, |run| u64::from(run.first.0));
            }
        }
        let mut reply = Reply::new(to.out, to.protocol);
        reply.array(2);
        reply.bulk(next.to_string().as_bytes());
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    }

    /// So many of the keys in a range that are wanted; `None`: they are more than one reply may
    /// hold.
    async fn keys_in(
        &self,
        snapshot: &Snapshot,
        range: Range,
        count: u64,
        wanted: impl Fn(&[u8]) -> bool,
        now: UnixMillis,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut keys = Vec::new();
        let mut bytes = 0;
        let bytes_max = self.config.limits.reply_max.0;
        visit_live(snapshot, range, now, |_, key| {
            if keys.len() as u64 >= count {
                return ControlFlow::Break(());
            }
            if wanted(key) {
                keys.push(key.to_vec());
                bytes += key.len() as u64 + BULK_BYTES;
            }
            if bytes > bytes_max {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .await?;
        Ok((bytes <= bytes_max).then_some(keys))
    }

    /// Takes expired records out of memory, a few at a time, for as long as the core runs.
    pub async fn sweep_expired(self: Rc<Self>) {
        let mut from = Position(0);
        while !self.is_stopping() {
            rt::sleep(SWEEP_PAUSE).await;
            let swept = self.store.sweep_expired(from, rt::wall_ms(), SWEEP_ENTRIES);
            from = swept.await;
        }
    }
}

/// What a key costs in a reply, besides its bytes.
const BULK_BYTES: u64 = 16;
/// Positions from the first to the last, both included.
type Range = (Position, Position);
const WHOLE: Range = (Position(0), Position(u32::MAX));
/// A memtable of a million records is swept in a minute.
const SWEEP_ENTRIES: usize = 2000;
const SWEEP_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Replies with `keys`; `None`: they are too many.
pub(super) fn reply_keys(keys: Option<&[Vec<u8>]>, reply: &mut Reply<'_>) {
    match keys {
        Some(keys) => {
            reply.array(keys.len());
            keys.iter().for_each(|key| reply.bulk(key));
        }
        None => reply.error(
            "ERR The reply would be larger than limits.reply-max. Use SCAN, which gives the keys \
             page by page.",
        ),
    }
}

/// All positions of a slot.
fn within(slot: Slot) -> Range {
    (Position::first_of(slot), Position::last_of(slot))
}

async fn count_in(snapshot: &Snapshot, range: Range, to: &mut Replying<'_>) -> Result<()> {
    let mut count = 0;
    visit_live(snapshot, range, to.now, |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })
    .await?;
    Reply::new(to.out, to.protocol).integer(count);
    Ok(())
}

async fn visit_live(
    snapshot: &Snapshot,
    (first, last): Range,
    now: UnixMillis,
    mut visit: impl FnMut(Position, &[u8]) -> ControlFlow<()>,
) -> Result<()> {
    let on_item = |item: &crate::storage::merge::Item| match item.record.view().is_live(now) {
        true => visit(item.position, item.record.key()),
        false => ControlFlow::Continue(()),
    };
    snapshot.walk(first, last, on_item).await
}

/// A live key, from a random position on: each has a chance, though not exactly the same.
async fn random_key(snapshot: &Snapshot, now: UnixMillis) -> Result<Option<Vec<u8>>> {
    let start = Position(rt::random() as u32);
    let ranges = [(start, WHOLE.1), WHOLE];
    for range in ranges {
        let mut sample: Vec<Vec<u8>> = Vec::new();
        visit_live(snapshot, range, now, |_, key| {
            sample.push(key.to_vec());
            match sample.len() < RANDOM_SAMPLE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })
        .await?;
        if !sample.is_empty() {
            let index = rt::random() as usize % sample.len();
            return Ok(Some(sample.swap_remove(index)));
        }
    }
    Ok(None)
}
