//! One phase of load: what its workers do, and what is noted of each operation.
//!
//! A [`Phase`] is shared by all workers of all threads. Each has a [`Worker`], which says what
//! comes next, and each thread a [`Recorder`]. Latencies of an open loop are counted from when an
//! operation was to begin, so that a stall counts for all that had to wait for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::content::{Content, Ledger, Ticket};
use crate::stream::{Chance, Choice, Kind, Spread, Zipf};

/// Latencies are counted in microseconds up to this; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Significant digits of latencies.
const DIGITS: u8 = 3;
/// Complaints that are written out.
const COMPLAINTS_MAX: u64 = 10;

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// For the report.
    pub name: String,
    /// Which records.
    pub choice: Choice,
    /// Of so many operations ..
    pub of: u32,
    /// .. so many are writes, by chance.
    pub puts: u32,
    /// Tasks or threads.
    pub workers: usize,
    /// It ends after so many operations,
    pub operations_max: u64,
    /// or after this time.
    pub seconds_max: f64,
    /// Operations a second, each begun when it is due. None: each worker begins its next one at
    /// once.
    pub rate: Option<Rate>,
    /// False: writes need not be synced (where an engine allows for that), and nothing is reported.
    pub measured: bool,
    /// After it, wait for so long at most until the engine writes nothing more.
    pub settle_seconds: f64,
}

/// How often operations begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rate {
    /// So many a second.
    Fixed(f64),
    /// This share of what an earlier phase reached.
    ShareOf { phase: String, share: f64 },
}

/// A phase under way.
pub struct Phase {
    /// What is to be done.
    pub spec: Spec,
    /// How many records there are.
    pub records: u64,
    /// Makes values and checks them.
    pub content: Arc<Content>,
    /// What readers may see.
    pub ledger: Arc<Ledger>,
    /// Operations a second, of all workers together.
    rate: Option<f64>,
    seed: u64,
    zipf: Option<Zipf>,
    spread: Spread,
    window: Duration,
    started: Instant,
    /// The next turn, for each lane: engines of several cores take theirs from all.
    turns: Vec<AtomicU64>,
    begun: AtomicU64,
    done: AtomicU64,
    stopped: AtomicBool,
    /// Microseconds from the start to when the last operation ended.
    last_us: AtomicU64,
    stall_us: AtomicU64,
    windows: Mutex<BTreeMap<u64, Window>>,
    /// Answers that were wrong, records that were lost, operations that failed.
    pub wrong: AtomicU64,
    pub lost: AtomicU64,
    pub failed: AtomicU64,
    puts: AtomicU64,
    gets: AtomicU64,
    /// What each worker is at, for [`Phase::low_water`].
    at: Vec<AtomicU64>,
}

/// What happened in a window of time.
#[derive(Default)]
pub struct Window {
    /// Latencies of writes.
    pub puts: Option<Histogram<u32>>,
    /// And of reads.
    pub gets: Option<Histogram<u32>>,
    /// The longest time without an operation that ended.
    pub stall_us: u64,
}

impl Window {
    fn histogram(&mut self, kind: Kind) -> &mut Option<Histogram<u32>> {
        match kind {
            Kind::Put => &mut self.puts,
            Kind::Get => &mut self.gets,
        }
    }

    /// Adds what another thread saw.
    pub fn add(&mut self, other: Window) {
        for (own, other) in [(&mut self.puts, other.puts), (&mut self.gets, other.gets)] {
            match (own.as_mut(), other) {
                (Some(own), Some(other)) => own.add(&other).expect("they have the same bounds"),
                (None, other) => *own = other,
                (_, None) => {}
            }
        }
        self.stall_us = self.stall_us.max(other.stall_us);
    }
}

/// Latencies of no operation at all.
pub fn no_latencies() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("the bounds are sound")
}

impl Phase {
    /// Begins a phase, with this many operations a second if its specification has a rate. `lanes`:
    /// of how many parts, each with records of its own, the engine consists.
    pub fn begin(
        (spec, rate): (Spec, Option<f64>),
        records: u64,
        checked: (Arc<Content>, Arc<Ledger>),
        window: Duration,
        lanes: usize,
    ) -> Phase {
        let zipf = match spec.choice {
            Choice::Zipf { theta } => Some(Zipf::new(records, theta)),
            _ => None,
        };
        let first = match spec.choice {
            Choice::InTurn { from, .. } | Choice::OnceEach { from, .. } => from,
            _ => 0,
        };
        let seed = spec
            .name
            .bytes()
            .fold(1, |seed, byte| crate::content::mix(seed ^ u64::from(byte)));
        let turns = || AtomicU64::new(first);
        let workers = (spec.workers / lanes).max(1) * lanes;
        Phase {
            rate,
            seed,
            zipf,
            spread: Spread::new(records),
            window,
            started: Instant::now(),
            turns: (0..lanes).map(|_| turns()).collect(),
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            last_us: AtomicU64::new(0),
            stall_us: AtomicU64::new(0),
            windows: Mutex::default(),
            wrong: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            at: (0..workers).map(|_| AtomicU64::new(first)).collect(),
            spec,
            records,
            content: checked.0,
            ledger: checked.1,
        }
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Operations that have ended.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Writes and reads that have ended well.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.puts.load(Ordering::Relaxed),
            self.gets.load(Ordering::Relaxed),
        )
    }

    /// Writes of this phase that are known to have ended: those of all records before this one.
    /// Only where records are written in turn.
    pub fn low_water(&self) -> u64 {
        let at = self.at.iter().map(|at| at.load(Ordering::SeqCst));
        at.filter(|at| *at != u64::MAX).min().unwrap_or(0)
    }

    /// Its workers begin nothing more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
            || self.started.elapsed().as_secs_f64() >= self.spec.seconds_max
    }

    /// The windows, and the longest stall: call it when all workers have ended.
    pub fn take_windows(&self) -> (BTreeMap<u64, Window>, u64) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let stall = self.stall_us.load(Ordering::SeqCst);
        (std::mem::take(&mut *windows), stall)
    }

    /// Something is not as it must be; the first few are written out.
    fn complain(&self, counter: &AtomicU64, what: std::fmt::Arguments<'_>) {
        let before = counter.fetch_add(1, Ordering::SeqCst);
        if before < COMPLAINTS_MAX {
            eprintln!("{}: {what}", self.spec.name);
        }
    }

    /// A read of record `number`, which began when its floor was `floor`, gave `value`.
    pub fn check(&self, number: u64, floor: u64, value: Option<&[u8]>) {
        let issued = self.ledger.issued(number);
        match value.map(|value| self.content.generation_of(number, value)) {
            Some(Some(generation)) if (floor.max(1)..=issued).contains(&generation) => {}
            Some(Some(old)) if old < floor => self.complain(
                &self.lost,
                format_args!("record {number} has generation {old} instead of {floor} or later"),
            ),
            Some(Some(never)) => self.complain(
                &self.wrong,
                format_args!("record {number} has generation {never}, but {issued} was the last"),
            ),
            Some(None) => self.complain(
                &self.wrong,
                format_args!("record {number} has bytes that were never written to it"),
            ),
            None if floor > 0 => self.complain(
                &self.lost,
                format_args!("record {number} is not there, generation {floor} was acknowledged"),
            ),
            None => {}
        }
    }

    /// An operation failed.
    pub fn fail(&self, why: &dyn std::fmt::Display) {
        self.complain(&self.failed, format_args!("{why}"));
        self.stop(); // what comes after it measures nothing
    }
}

/// One operation.
pub struct Operation {
    /// Read or write.
    pub kind: Kind,
    /// Of which record.
    pub number: u64,
    /// When it is to begin. None: now.
    pub due: Option<Instant>,
}

/// Which records are a worker's.
pub type Owns<'a> = &'a dyn Fn(u64) -> bool;

/// What one task or thread does, in its order.
pub struct Worker {
    phase: Arc<Phase>,
    lane: usize,
    index: usize,
    chance: Chance,
    due: Instant,
    /// Operations a second of this worker alone.
    rate: Option<f64>,
}

impl Worker {
    /// Worker `index` of `count`, on `lane`.
    pub fn new(phase: &Arc<Phase>, index: usize, count: usize, lane: usize) -> Worker {
        let seed = phase.seed ^ (index as u64).wrapping_mul(0x0001_0001);
        Worker {
            chance: Chance::new(seed),
            due: phase.started,
            rate: phase.rate.map(|rate| rate / count as f64),
            phase: Arc::clone(phase),
            lane,
            index,
        }
    }

    /// What comes next, among the records that are its own; None: nothing more.
    pub fn next(&mut self, owns: Owns<'_>) -> Option<Operation> {
        let phase = &self.phase;
        if phase.is_over() {
            return None;
        }
        let number = match phase.spec.choice {
            Choice::InTurn { to, .. } => self.in_turn(to, owns, |turn| turn)?,
            Choice::OnceEach { to, .. } => {
                let spread = phase.spread;
                self.in_turn(to, owns, |turn| spread.of(turn))?
            }
            Choice::Missing => self.in_turn(
                phase.records,
                &|number| owns(number) && phase.ledger.issued(number) == 0,
                |turn| turn,
            )?,
            Choice::Uniform => self.draw(owns, |phase, chance| chance.below(phase.records)),
            Choice::Zipf { .. } => self.draw(owns, |phase, chance| {
                let zipf = phase.zipf.as_ref().expect("made for this choice");
                phase.spread.of(zipf.rank(chance))
            }),
        };
        let phase = &self.phase;
        if phase.begun.fetch_add(1, Ordering::Relaxed) >= phase.spec.operations_max {
            return None;
        }
        let is_put = self.chance.below(u64::from(phase.spec.of)) < u64::from(phase.spec.puts);
        let due = self.rate.map(|rate| {
            self.due += self.chance.gap(rate);
            self.due
        });
        Some(Operation {
            kind: if is_put { Kind::Put } else { Kind::Get },
            number,
            due,
        })
    }

    fn draw(&mut self, owns: Owns<'_>, one: impl Fn(&Phase, &mut Chance) -> u64) -> u64 {
        loop {
            let number = one(&self.phase, &mut self.chance);
            if owns(number) {
                return number;
            }
        }
    }

    fn in_turn(&self, to: u64, owns: Owns<'_>, number: impl Fn(u64) -> u64) -> Option<u64> {
        loop {
            let turn = self.phase.turns[self.lane].fetch_add(1, Ordering::SeqCst);
            if turn >= to {
                self.phase.at[self.index].store(u64::MAX, Ordering::SeqCst);
                return None;
            }
            let number = number(turn);
            if owns(number) {
                self.phase.at[self.index].store(turn, Ordering::SeqCst);
                return Some(number);
            }
        }
    }
}

/// Notes what one thread has done.
pub struct Recorder {
    phase: Arc<Phase>,
    window: u64,
    current: Window,
}

impl Recorder {
    /// For a thread that takes part in `phase`.
    pub fn new(phase: &Arc<Phase>) -> Recorder {
        Recorder {
            phase: Arc::clone(phase),
            window: 0,
            current: Window::default(),
        }
    }

    /// An operation that was to begin at `begun` has ended now.
    pub fn note(&mut self, kind: Kind, begun: Instant) {
        let now = Instant::now();
        let phase = &self.phase;
        let since = now.duration_since(phase.started);
        let now_us = since.as_micros() as u64;
        let last_us = phase.last_us.fetch_max(now_us, Ordering::Relaxed);
        let gap_us = now_us.saturating_sub(last_us);
        phase.stall_us.fetch_max(gap_us, Ordering::Relaxed);
        phase.done.fetch_add(1, Ordering::Relaxed);
        match kind {
            Kind::Put => phase.puts.fetch_add(1, Ordering::Relaxed),
            Kind::Get => phase.gets.fetch_add(1, Ordering::Relaxed),
        };
        // What ends shortly after the end of the phase belongs to its last window.
        let last = (phase.spec.seconds_max / phase.window.as_secs_f64()).ceil() as u64;
        let window = (since.as_nanos() / phase.window.as_nanos()) as u64;
        let window = window.min(last.saturating_sub(1));
        if window != self.window {
            self.flush();
            self.window = window;
        }
        self.current.stall_us = self.current.stall_us.max(gap_us);
        let latency_us = now.saturating_duration_since(begun).as_micros() as u64;
        let place = self.current.histogram(kind);
        let latencies = place.get_or_insert_with(no_latencies);
        latencies.saturating_record(latency_us.max(1));
    }

    fn flush(&mut self) {
        let window = std::mem::take(&mut self.current);
        let windows = self.phase.windows.lock();
        let mut windows = windows.unwrap_or_else(PoisonError::into_inner);
        windows.entry(self.window).or_default().add(window);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A write that has its generation, and the bytes of its value.
pub fn prepare_put(phase: &Phase, number: u64, value: &mut Vec<u8>) -> Ticket {
    let ticket = phase.ledger.begin(number);
    phase.content.write(number, ticket.generation, value);
    ticket
}
