//! Carrying out what [`compaction::plan`] says, at the pace that `compaction/pace.rs` gives.
//!
//! One merge at a time: what it reads stays as it is until the edit that replaces it is installed,
//! or until a clear takes all of it. While merges fail (a full disk, a damaged table), or none is
//! to be made, nobody is slowed for their sake: it would not help, and a full disk refuses writers
//! by itself. The same goes for the collector of the value log.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::compaction::job::{self, Job, Merged, Rules};
use super::compaction::pace::{self, Gate, Load, Meter};
use super::compaction::{self, Plan};
use super::maintain::{Edit, RETRY};
use super::sstable::{TableId, TableInfo};
use super::{State, Store};
use crate::error::Result;
use crate::rt;

/// What has expired in tables is looked for at least so often; when nobody has written for so long,
/// what deletes and overwrites hide is looked for, too.
const REST: Duration = Duration::from_secs(10);
/// The same on a full disk.
const REST_FULL: Duration = Duration::from_secs(2);
/// After failing again and again a merge is tried so often.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// What a table takes besides records, at most, if it has the records of one memtable.
const YOUNG_SLACK_BYTES: u64 = 16 << 10;

/// What paces merges and writers.
#[derive(Default)]
pub(super) struct Pace {
    gate: RefCell<Gate>,
    /// For the bytes of large values.
    value_gate: RefCell<Gate>,
    /// How many thousandths of what the collector may collect are garbage; 0 while it can do
    /// nothing about it.
    pub(super) garbage: Cell<u64>,
    /// What the collector did last has failed.
    pub(super) is_collector_helpless: Cell<bool>,
    meter: RefCell<Meter>,
    /// The last merge failed, or there is none to be made: it helps nobody to wait for one.
    is_helpless: Cell<bool>,
}

impl Pace {
    /// Counts a read, or a write of so many bytes.
    pub(super) fn count(&self, written: usize) {
        self.meter.borrow_mut().count(written);
    }

    fn load(&self) -> Load {
        self.meter.borrow_mut().load(rt::now())
    }
}

impl State {
    /// Runs that no merge has taken up, and those that memory will yet become.
    fn runs_unmerged(&self, memtable_bytes: u64) -> f64 {
        let active = self.active.memtable.borrow().bytes() as f64 / memtable_bytes as f64;
        let young = self.tables.young_runs(memtable_bytes + YOUNG_SLACK_BYTES);
        let whole = young + self.frozen.len();
        whole as f64 + active.min(1.0)
    }
}

impl Store {
    fn runs_unmerged(&self) -> f64 {
        self.state
            .borrow()
            .runs_unmerged(self.options.memtable_bytes)
    }

    /// True if writers wait until something is merged.
    pub(super) fn is_stopped_by_merges(&self) -> bool {
        !self.pace.is_helpless.get() && pace::is_stopped(self.runs_unmerged())
    }

    /// How fast writers may go.
    fn write_rate(&self) -> Option<f64> {
        match self.pace.is_helpless.get() {
            true => None,
            false => pace::write_rate(self.runs_unmerged()),
        }
    }

    /// How fast large values may come.
    fn value_rate(&self) -> Option<f64> {
        pace::value_rate(self.pace.garbage.get(), self.garbage_permille_max())
    }

    /// True if a write of `bytes`, with large values of `value_bytes`, may go on at once: it has
    /// had its turn then.
    pub(super) fn pass_gate(&self, bytes: usize, value_bytes: usize) -> bool {
        let (rate, value_rate) = (self.write_rate(), self.value_rate());
        if rate.is_none() && (value_rate.is_none() || value_bytes == 0) {
            return true;
        }
        let (mut gate, mut value_gate) = (
            self.pace.gate.borrow_mut(),
            self.pace.value_gate.borrow_mut(),
        );
        let now = rt::now();
        let is_shut = |gate: &Gate, rate: Option<f64>| rate.is_some() && !gate.is_open(now);
        if is_shut(&gate, rate) || (value_bytes > 0 && is_shut(&value_gate, value_rate)) {
            return false;
        }
        rate.map(|rate| gate.enter(bytes, rate, now));
        value_rate.map(|rate| value_gate.enter(value_bytes, rate, now));
        true
    }

    /// Waits for one's turn to write `bytes`, with large values of `value_bytes`, unless the reason
    /// to wait goes away before.
    pub(super) async fn wait_at_gate(&self, bytes: usize, value_bytes: usize) {
        let (rate, now) = (self.write_rate(), rt::now());
        let value_rate = self.value_rate().filter(|_| value_bytes > 0);
        if rate.is_none() && value_rate.is_none() {
            return;
        }
        let turn = |gate: &RefCell<Gate>, bytes, rate: Option<f64>| {
            rate.map_or(Duration::ZERO, |rate| {
                gate.borrow_mut().enter(bytes, rate, now)
            })
        };
        let pause = turn(&self.pace.gate, bytes, rate);
        let pause = pause.max(turn(&self.pace.value_gate, value_bytes, value_rate));
        let relieved = self.changed.wait_for(|| {
            let is_over = self.state.borrow().stopping || self.has_failed();
            let is_free = self.write_rate().is_none() && self.value_rate().is_none();
            (is_over || is_free).then_some(())
        });
        future::or(rt::sleep(pause), relieved).await;
    }

    /// Merges and moves tables until the store stops.
    pub(super) async fn merge_tables(self: Rc<Self>) {
        let (mut retry, mut is_failing) = (RETRY, false);
        let mut is_at_rest = false;
        while !self.state.borrow().stopping {
            let infos = self.table_infos();
            let plan = match compaction::plan(&infos, &self.options.compaction, rt::wall_ms()) {
                // What would come of it is that tombstones go.
                Plan::Idle if is_at_rest && !self.keeps_deleted.get() => self.plan_at_rest(&infos),
                plan => plan,
            };
            if is_failing || plan == Plan::Idle {
                self.pace.is_helpless.set(true);
                self.changed.wake_all();
            } else {
                self.pace.is_helpless.set(false);
            }
            let pause = match plan {
                Plan::Idle if self.is_disk_full() => REST_FULL,
                Plan::Idle => REST,
                plan => {
                    assert!(compaction::keeps_order(&infos, &plan), "{plan:?}");
                    let done = self.carry_out(plan).await;
                    is_failing = done.is_err();
                    self.pace.is_helpless.set(is_failing);
                    self.changed.wake_all();
                    let Err(error) = done else {
                        retry = RETRY;
                        rt::yield_if_needed().await;
                        continue;
                    };
                    log::warn!("tables cannot be merged, trying again: {error}");
                    retry = (retry * 2).min(RETRY_MAX);
                    retry
                }
            };
            let is_same = || {
                let state = self.state.borrow();
                let now = state.tables.iter().map(|table| table.info().id);
                now.eq(infos.iter().map(|info| info.id))
            };
            let last = self.lsn_last();
            let changed = self.changed.wait_for(|| {
                let is_over = self.state.borrow().stopping;
                (is_over || (!is_failing && !is_same())).then_some(())
            });
            future::or(changed, rt::sleep(pause)).await;
            // What changed without a write was done for the sake of rest.
            is_at_rest = (is_same() || is_at_rest) && self.lsn_last() == last;
        }
    }

    /// What to do when nobody writes. What memory has that may hide something in tables, or that
    /// segments wait for which could go, is flushed first.
    fn plan_at_rest(&self, infos: &[TableInfo]) -> Plan {
        let must_flush = {
            let state = self.state.borrow();
            let hiding = state.active.hiding.get();
            let records = infos.iter().map(|info| info.records).sum();
            let may = state.frozen.is_empty() && state.undecided.is_empty() && !state.stopping;
            let does_hide = compaction::is_worth_merging(hiding, records) && records > 0;
            let is_waited_for =
                !state.emptied.is_empty() && !state.active.memtable.borrow().is_empty();
            may && (does_hide || is_waited_for)
        };
        if must_flush && !self.has_failed() {
            self.freeze();
        }
        compaction::plan_at_rest(infos, &self.options.compaction)
    }

    /// All that readers see, the oldest first.
    fn table_infos(&self) -> Vec<TableInfo> {
        let state = self.state.borrow();
        let tables = state.tables.iter();
        tables.map(|table| table.info().clone()).collect()
    }

    async fn carry_out(&self, plan: Plan) -> Result<()> {
        match plan {
            Plan::Idle => Ok(()),
            Plan::Move { tables, level } => self.move_tables(tables, level).await,
            Plan::Merge { inputs, level } => self.merge(inputs, level).await,
        }
    }

    /// The same tables come on another level: no file changes.
    async fn move_tables(&self, ids: Vec<TableId>, level: u8) -> Result<()> {
        let moved = self.state.borrow().tables.only(&ids);
        let at_level = moved.iter().map(|table| Rc::new(table.at_level(level)));
        let edit = Edit::replace(ids, at_level.collect());
        self.install(edit).await?;
        self.state.borrow_mut().stats.tables_moved += moved.iter().count() as u64;
        Ok(())
    }

    async fn merge(&self, inputs: Vec<TableId>, level: u8) -> Result<()> {
        let job = {
            let state = self.state.borrow();
            Job {
                dir: self.dir.clone(),
                inputs: state.tables.only(&inputs),
                below: state.tables.below(&inputs, level),
                level,
                rules: Rules {
                    cleared: state.cleared,
                    now: rt::wall_ms(),
                    keeps_deleted: self.keeps_deleted.get(),
                },
                table_bytes_max: self.options.compaction.table_bytes,
                compression: self.options.compression,
                caches: Rc::clone(&self.caches),
            }
        };
        if job.inputs.iter().count() < inputs.len() {
            return Ok(()); // a clear was faster
        }
        let next_id = || self.take_table_id();
        let merged = job::run(&job, next_id, |bytes| self.pause(bytes)).await?;
        let Merged {
            tables, forgotten, ..
        } = merged;
        self.forget(forgotten);
        for table in job.inputs.iter() {
            table.forget_blocks(&self.caches.blocks);
            rt::yield_if_needed().await;
        }
        let edit = Edit::merged(inputs, merged.garbage);
        self.install_written(&tables, edit).await?;
        let mut state = self.state.borrow_mut();
        let bytes = |tables: &mut dyn Iterator<Item = u64>| tables.sum::<u64>();
        let read = bytes(&mut job.inputs.iter().map(|table| table.info().bytes));
        let written = bytes(&mut tables.iter().map(|info| info.bytes));
        state.stats.compactions += 1;
        state.stats.table_bytes_read += read;
        state.stats.table_bytes_written += written;
        Ok(())
    }

    /// How long a merge waits after so many bytes of input.
    fn pause(&self, bytes: usize) -> Duration {
        let depth = self.state.borrow().tables.depth();
        let rate = pace::merge_rate(self.runs_unmerged(), depth, self.pace.load());
        match self.state.borrow().stopping {
            true => Duration::ZERO,
            false => pace::merge_pause(bytes, rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compression, Durability, RUNS_HARD, RUNS_SOFT};
    use crate::rt::sim::{NodeId, Options, World};
    use crate::storage::compaction::{Shape, Style};
    use crate::storage::record::{KeyRef, Meta, Record};
    use crate::storage::wal::{Admission, WalLimits};
    use crate::storage::{Batch, StoreOptions, Want};
    use crate::types::{CoreId, Version};
    use std::path::Path;

    const OPTIONS: StoreOptions = StoreOptions {
        core: CoreId(0),
        cores: 1,
        durability: Durability::None,
        memtable_bytes: 2 << 20,
        wal_bytes_max: 1 << 30,
        wal: WalLimits {
            segment_bytes: 1 << 20,
            batch_bytes_max: 1 << 20,
        },
        memory_bytes: 8 << 20,
        index_bytes_max: 4 << 20,
        compaction: Shape {
            style: Style::Leveled,
            table_bytes: 4 << 20,
            base_bytes: 1 << 30,
            ratio: 10,
        },
        compression: Compression::None,
        value_bytes_min: usize::MAX,
        value_compression: Compression::None,
        value_segment_bytes: 1 << 20,
        value_replay_bytes_max: 1 << 30,
        value_garbage_percent_max: 25,
    };

    async fn open(options: StoreOptions) -> Rc<Store> {
        let opened = Store::open(Path::new("/data/core-000"), options).await;
        opened.expect("a sound disk").store
    }

    fn batch(clock: u64, bytes: usize) -> Batch {
        let version = Version {
            clock,
            coordinator: 1,
        };
        let meta = Meta {
            version,
            expiry: 0,
            tombstone: false,
        };
        let key = clock.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let record = Record::new(meta, &key, &vec![7; bytes]);
        Batch {
            clear: None,
            records: vec![(KeyRef::of(&key).position, record)],
        }
    }

    /// Else each merge would have lookups read a small tree anew.
    #[test]
    fn what_a_merge_has_written_is_looked_up_in_memory() {
        let world = World::new(Options::calm(5));
        world.run_on(NodeId(1), async {
            let store = open(StoreOptions {
                memtable_bytes: 64 << 10,
                ..OPTIONS
            })
            .await;
            let last = 4_000;
            for clock in 1..=last {
                let batch = batch(clock, 100);
                store.wait_admitted(&batch).await.expect("a sound disk");
                store.write_batch(batch);
            }
            rt::sleep(Duration::from_secs(5)).await;
            let merges = store.state.borrow().stats.compactions;
            assert!(merges > 0, "nothing was merged: nothing is tested");
            let kept = store.caches.blocks.stats();
            let tables: u64 = store.table_infos().iter().map(|info| info.bytes).sum();
            assert!(
                kept.bytes < 2 * tables,
                "what merges have replaced stays: {} beside tables of {tables}",
                kept.bytes
            );
            for clock in 1..=last {
                let key = clock.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
                let found = store.get(&KeyRef::of(&key), Want::Value).await;
                assert!(found.expect("a sound disk").is_some(), "key {clock}");
            }
            assert_eq!(store.caches.blocks.stats().misses, kept.misses);
            store.stop().await.expect("a sound disk");
        });
    }

    /// A merge reads all of a large level 1 each time, and writers are much faster than that.
    #[test]
    fn writers_that_are_too_fast_are_slowed_and_never_stopped() {
        let world = World::new(Options::calm(3));
        world.run_on(NodeId(1), async {
            let store = open(OPTIONS).await;
            for clock in 1..=16_000 {
                let batch = batch(clock, 2_000);
                store.wait_admitted(&batch).await.expect("a sound disk");
                store.write_batch(batch);
            }
            store.stop().await.expect("a sound disk");
            let store = open(StoreOptions {
                memtable_bytes: 64 << 10,
                ..OPTIONS
            })
            .await;
            let (mut slowed, mut longest, mut most) = (0, Duration::ZERO, 0.0f64);
            for clock in 16_001..86_000 {
                let (batch, start) = (batch(clock, 100), rt::now());
                if store.admit_batch(&batch) != Admission::Ready {
                    store.wait_admitted(&batch).await.expect("a sound disk");
                    slowed += 1;
                }
                longest = longest.max(rt::now() - start);
                store.write_batch(batch);
                most = most.max(store.runs_unmerged());
            }
            println!("{slowed} of 70000 slowed, for {longest:?} at most, with {most} runs at most");
            assert!(
                most > RUNS_SOFT as f64,
                "merges keep up: nothing was tested"
            );
            assert!(most < RUNS_HARD as f64, "writers came to the hard limit");
            assert!(slowed > 100, "writers were hardly slowed: {slowed}");
            assert!(
                longest < Duration::from_millis(100),
                "a stall of {longest:?}"
            );
            rt::sleep(Duration::from_secs(20)).await;
            let left = store.runs_unmerged();
            assert!(left < 5.0, "{left} runs are left when nobody writes");
            assert!(store.write_rate().is_none());
            store.stop().await.expect("a sound disk");
        });
    }
}
