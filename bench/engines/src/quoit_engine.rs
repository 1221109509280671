//! Quoit's storage, driven as the node drives it, without sockets and protocol.
//!
//! One store on each core, opened by the node's own code and configuration. A write is admitted,
//! put into its log and the memtable at once, and ends when it is acknowledged (`shard/execute`,
//! `shard/transaction`); a read asks memory first and then the disk, and ends when what it found is
//! acknowledged. Workers are tasks of the core that owns their records: what the node adds for a
//! client on another core is not in here. (The node's sweep for expired records is not, either.)

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use quoit::cluster::ring::Map;
use quoit::config::Config;
use quoit::error::{Error, Result};
use quoit::replication::clock::Clock;
use quoit::rt::{self, Core, CoreOptions};
use quoit::shard;
use quoit::storage::record::{KeyRef, Meta, Record};
use quoit::storage::wal::Admission;
use quoit::storage::{Batch, Opened, Sizes, Stats, Store, Want};
use quoit::types::{CoreId, Lsn, Position};

use crate::content::{Ticket, key};
use crate::engine::{Engine, Facts, Setup};
use crate::failure::{Failure, Outcome};
use crate::phase::{Phase, Recorder, Worker, prepare_put};
use crate::stream::Kind;

/// As in the node's `main`: memory that each core registers with its rings.
const IO_MEMORY_BYTES: usize = 4 << 20;
/// A core looks so often whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What cores and driver tell each other.
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Rises with each order.
    number: u64,
    order: Option<Order>,
    /// Cores that have done it.
    done: usize,
    reports: Vec<Report>,
    /// Cores that are open, and what they had to replay.
    opened: usize,
    replayed: u64,
    /// Some core has ended, well or not.
    ended: bool,
}

#[derive(Clone)]
enum Order {
    Run(Arc<Phase>),
    Report,
    Stop,
}

/// What one core's store says.
#[derive(Clone, Copy)]
struct Report {
    stats: Stats,
    sizes: Sizes,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The order after the `seen`-th, if it was given.
    fn order_after(&self, seen: u64) -> Option<(u64, Order)> {
        let state = self.lock();
        let order = (state.number > seen).then(|| state.order.clone());
        order.flatten().map(|order| (state.number, order))
    }

    fn note_open(&self, replayed: u64) {
        let mut state = self.lock();
        state.opened += 1;
        state.replayed += replayed;
        self.changed.notify_all();
    }

    /// Waits until all of `cores` are open; false if one has ended instead.
    fn wait_open(&self, cores: usize) -> bool {
        let waits = |state: &mut State| state.opened < cores && !state.ended;
        let state = self.changed.wait_while(self.lock(), waits);
        !state.unwrap_or_else(PoisonError::into_inner).ended
    }

    fn note_done(&self, report: Report) {
        let mut state = self.lock();
        state.done += 1;
        state.reports.push(report);
        self.changed.notify_all();
    }
}

/// Tells the driver that a core has ended, however it ends.
struct Ending(Arc<Board>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

struct Quoit {
    cores: usize,
    board: Arc<Board>,
    thread: JoinHandle<Result<()>>,
}

/// Opens a store on each core.
pub fn open(setup: &Setup) -> Outcome<Box<dyn Engine>> {
    let text = setup.quoit_config.as_deref().unwrap_or("");
    let mut config = Config::parse(text)?;
    config.dir = std::path::absolute(&setup.dir)?;
    config.cores = setup.cores;
    config.memory = ByteSize(setup.memory);
    config.check()?;
    std::fs::create_dir_all(&config.dir)?;
    let cores = usize::from(setup.cores);
    rt::check_host(&config.dir, cores)?;
    let board = Arc::new(Board {
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let thread = std::thread::spawn({
        let board = Arc::clone(&board);
        move || {
            let _ending = Ending(Arc::clone(&board));
            run_cores(config, board)
        }
    });
    let engine = Quoit {
        cores,
        board,
        thread,
    };
    if !engine.board.wait_open(cores) {
        return Err(engine.why());
    }
    Ok(Box::new(engine))
}

fn run_cores(config: Config, board: Arc<Board>) -> Result<()> {
    let options = CoreOptions {
        pins: vec![None; usize::from(config.cores)],
        io_memory_bytes: IO_MEMORY_BYTES,
        probe_dir: config.dir.clone(),
        without_kick: false,
    };
    let results = rt::run_cores(options, move |core: Core<()>| {
        let (config, board) = (config.clone(), Arc::clone(&board));
        async move { run_core(core, &config, board).await }
    })?;
    results.into_iter().collect()
}

async fn run_core(core: Core<()>, config: &Config, board: Arc<Board>) -> Result<()> {
    let _ending = Ending(Arc::clone(&board));
    let (id, count) = (core.id, core.count);
    let _mail = core.mail.connect().await;
    let Opened {
        store,
        undecided,
        version_max,
        replayed,
        ..
    } = shard::open_store(id, count, config).await?;
    assert!(undecided.is_empty(), "nobody makes transactions here");
    store.leave_log().await?;
    store.drop_log().await?;
    let map = Map::one_node(count);
    let driver = Rc::new(Driver {
        id,
        count,
        store: Rc::clone(&store),
        clock: RefCell::new(Clock::new(config.node_id, id.0, version_max)),
        owns: Box::new(move |number| count == 1 || map.core_of(Position::of(&key(number))) == id),
        value: RefCell::default(),
    });
    board.note_open(replayed);
    let mut seen = 0;
    loop {
        let Some((number, order)) = board.order_after(seen) else {
            rt::sleep(LOOK_EVERY).await;
            continue;
        };
        seen = number;
        match order {
            Order::Run(phase) => driver.run(&phase).await,
            Order::Report => {}
            Order::Stop => break,
        }
        board.note_done(driver.report());
    }
    store.stop().await
}

/// One core's part of the load.
struct Driver {
    id: CoreId,
    count: u16,
    store: Rc<Store>,
    clock: RefCell<Clock>,
    owns: Box<dyn Fn(u64) -> bool>,
    /// Where values are made: one at a time, and never across a wait.
    value: RefCell<Vec<u8>>,
}

impl Driver {
    fn report(&self) -> Report {
        Report {
            stats: self.store.stats(),
            sizes: self.store.sizes(),
        }
    }

    async fn run(self: &Rc<Self>, phase: &Arc<Phase>) {
        let (lane, lanes) = (usize::from(self.id.0), usize::from(self.count));
        let workers = (phase.spec.workers / lanes).max(1);
        let recorder = Rc::new(RefCell::new(Recorder::new(phase)));
        let tasks: Vec<_> = (0..workers)
            .map(|index| {
                let worker = Worker::new(phase, lane * workers + index, workers * lanes, lane);
                let (driver, phase) = (Rc::clone(self), Arc::clone(phase));
                rt::spawn(driver.work(phase, worker, Rc::clone(&recorder)))
            })
            .collect();
        for task in tasks {
            task.await;
        }
    }

    async fn work(
        self: Rc<Self>,
        phase: Arc<Phase>,
        mut worker: Worker,
        recorder: Rc<RefCell<Recorder>>,
    ) {
        while let Some(operation) = worker.next(&*self.owns) {
            let begun = match operation.due {
                Some(due) => {
                    let wait = due.saturating_duration_since(Instant::now());
                    if !wait.is_zero() {
                        rt::sleep(wait).await;
                    }
                    due
                }
                None => Instant::now(),
            };
            let done = match operation.kind {
                Kind::Put => self.put(&phase, operation.number).await,
                Kind::Get => self.get(&phase, operation.number).await,
            };
            match done {
                Ok(()) => recorder.borrow_mut().note(operation.kind, begun),
                Err(error) => phase.fail(&error),
            }
            rt::yield_if_needed().await;
        }
    }

    async fn put(&self, phase: &Phase, number: u64) -> Result<()> {
        let key = key(number);
        let key = KeyRef::of(&key);
        let admission = self.store.admit(key.key.len(), phase.content.value_bytes());
        let (ticket, lsn) = match admission {
            Admission::Ready => {
                let (ticket, record) = self.record(phase, number, &key);
                (ticket, self.store.write(key.position, record))
            }
            Admission::Wait => self.put_patiently(phase, number, &key).await?,
            Admission::DiskFull => return Err(Error::DiskFull),
            Admission::DiskFails => return Err(Error::DiskFails),
            Admission::Failed => return Err(Error::LogFailed),
            Admission::TooManyFiles => return Err(Error::TooManyFiles),
        };
        self.store.wait_acknowledged(lsn).await?;
        phase.ledger.acknowledged(number, ticket, true);
        Ok(())
    }

    /// As a command that becomes a transaction of its own because it has to wait.
    async fn put_patiently(
        &self,
        phase: &Phase,
        number: u64,
        key: &KeyRef<'_>,
    ) -> Result<(Ticket, Lsn)> {
        // Others may write the key meanwhile: what this one writes gets its version after the wait.
        let blank = vec![0; phase.content.value_bytes()];
        let mut batch = Batch::default();
        let record = Record::new(self.meta(), key.key, &blank);
        batch.records.push((key.position, record));
        self.store.wait_admitted(&batch).await?;
        let (ticket, record) = self.record(phase, number, key);
        batch.records[0].1 = record;
        Ok((ticket, self.store.write_batch(batch)))
    }

    /// The record to be written now: nothing may be waited for between this and the write.
    fn record(&self, phase: &Phase, number: u64, key: &KeyRef<'_>) -> (Ticket, Record) {
        let mut value = self.value.borrow_mut();
        let ticket = prepare_put(phase, number, &mut value);
        (ticket, Record::new(self.meta(), key.key, &value))
    }

    fn meta(&self) -> Meta {
        Meta {
            version: self.clock.borrow_mut().next(rt::wall_ms()),
            expiry: 0,
            tombstone: false,
        }
    }

    async fn get(&self, phase: &Phase, number: u64) -> Result<()> {
        let key = key(number);
        let floor = phase.ledger.floor(number);
        let found = self.store.get(&KeyRef::of(&key), Want::Value).await?;
        if let Some(found) = &found {
            self.store.wait_acknowledged(found.lsn).await?;
        }
        let view = found.as_ref().map(|found| found.record.view());
        let value = view.filter(|view| view.is_live(rt::wall_ms()));
        phase.check(number, floor, value.map(|view| view.value()));
        Ok(())
    }
}

impl Quoit {
    fn order(&self, order: Order) -> Outcome<Vec<Report>> {
        let mut state = self.board.lock();
        state.number += 1;
        state.order = Some(order);
        state.done = 0;
        state.reports.clear();
        while state.done < self.cores {
            if state.ended {
                return Err(Failure::new("a core of Quoit has ended"));
            }
            let waited = self.board.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.reports.clone())
    }

    /// Why it ended.
    fn why(self) -> Failure {
        {
            let mut state = self.board.lock();
            state.number += 1;
            state.order = Some(Order::Stop);
        }
        match self.thread.join() {
            Ok(Ok(())) => Failure::new("quoit ended"),
            Ok(Err(error)) => error.into(),
            Err(_) => Failure::new("quoit panicked"),
        }
    }
}

impl Engine for Quoit {
    fn lanes(&self) -> usize {
        self.cores
    }

    fn run(&mut self, phase: &Arc<Phase>) -> Outcome<()> {
        self.order(Order::Run(Arc::clone(phase))).map(|_| ())
    }

    fn facts(&mut self) -> Outcome<Facts> {
        let reports = self.order(Order::Report)?;
        let mut facts = Facts::new();
        facts.insert("entries_replayed".to_owned(), self.board.lock().replayed);
        facts.insert("kicks".to_owned(), rt::kicks());
        for report in &reports {
            for (name, value) in named(report) {
                *facts.entry(name.to_owned()).or_default() += value;
            }
        }
        Ok(facts)
    }

    fn close(self: Box<Self>) -> Outcome<()> {
        {
            let mut state = self.board.lock();
            state.number += 1;
            state.order = Some(Order::Stop);
        }
        match self.thread.join() {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Failure::new("quoit panicked")),
        }
    }
}

/// What INFO shows of a core, by INFO's names.
fn named(report: &Report) -> [(&'static str, u64); 27] {
    let (stats, sizes) = (&report.stats, &report.sizes);
    [
        ("records_estimate", sizes.records),
        ("memtable_bytes", sizes.memtable_bytes),
        ("tables", sizes.tables),
        ("table_bytes", sizes.table_bytes),
        ("table_runs", sizes.table_runs),
        ("log_bytes", sizes.wal_bytes),
        ("value_log_segments", sizes.values.segments),
        ("value_log_bytes", sizes.values.bytes),
        ("value_log_live_bytes", sizes.values.live),
        ("value_log_garbage_bytes", sizes.values.garbage),
        ("value_log_collections", stats.collections),
        ("value_log_bytes_moved", stats.value_bytes_moved),
        ("flushes", stats.flushes),
        ("compactions", stats.compactions),
        ("tables_moved", stats.tables_moved),
        ("table_bytes_written", stats.table_bytes_written),
        ("table_bytes_read_by_merges", stats.table_bytes_read),
        ("filter_and_index_bytes", sizes.index_bytes),
        ("tables_by_need", sizes.tables_by_need),
        ("partition_hits", sizes.partitions.hits),
        ("partition_reads", sizes.partitions.reads),
        ("row_cache_hits", sizes.rows.hits),
        ("row_cache_bytes", sizes.rows.bytes),
        ("row_cache_budget", sizes.rows.budget),
        ("block_cache_hits", sizes.blocks.hits),
        ("block_cache_misses", sizes.blocks.misses),
        ("block_cache_bytes", sizes.blocks.bytes),
    ]
}
