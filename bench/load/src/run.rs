//! A run: its threads, and what they report, put together.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::control::Greeting;
use crate::core::{Core, Phase};
use crate::driver::{self, Common, Report, Thread};
use crate::history::Entry;
use crate::plan::{Plan, Share};
use crate::series::{Point, Series};
use crate::slots::SlotMap;
use crate::tally::Tally;

/// Tallies of a thread that wait to be used again: one second's, and one for when we are late.
const EMPTIES: usize = 2;
/// Reports of a thread that wait to be read.
const REPORTS: usize = 8;
/// How often Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a run needs besides its plan.
#[derive(Clone)]
pub struct Setup {
    pub threads: usize,
    /// CPUs of the threads; with none the kernel places them.
    pub cpus: Vec<usize>,
    pub clients: u32,
    pub servers: Vec<String>,
    /// Where the keys are, for a client that knows it; else servers are dealt to clients in turn.
    pub slots: Option<SlotMap>,
    pub greeting: Greeting,
    /// What connections say before they read back, if it is something else, and how long nothing is
    /// asked before that.
    pub reading_back: Option<Greeting>,
    pub settle: Duration,
    /// Ends the work early; what comes after it is done.
    pub enough: Arc<AtomicBool>,
    pub warmup: Duration,
    /// Whether every record is written before.
    pub fills: bool,
    pub spins: bool,
}

/// What came of one phase.
pub struct Measured {
    pub phase: Phase,
    pub tally: Tally,
    /// From the end of the warm-up to the last answer.
    pub seconds: f64,
    pub points: Vec<Point>,
    /// The share of a CPU that each thread used.
    pub busy: Vec<f64>,
    /// Of a run that remembers all operations.
    pub history: Vec<Entry>,
}

/// What a run tells while it goes on.
pub trait Observer {
    fn on_phase(&mut self, phase: Phase);
    fn on_point(&mut self, phase: Phase, point: &Point);
}

/// Runs all phases. `interrupt` ends them early.
pub fn run(
    plan: Plan,
    setup: &Setup,
    interrupt: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Vec<Measured>, String> {
    let phases = [
        setup.fills.then_some(Phase::Fill),
        Some(Phase::Work),
        plan.verify.then_some(Phase::ReadBack),
    ];
    let common = Arc::new(Common {
        phases: phases.into_iter().flatten().collect(),
        servers: if setup.slots.is_none() {
            setup.servers.clone()
        } else {
            Vec::new()
        },
        greeting: setup.greeting.clone(),
        reading_back: setup.reading_back.clone(),
        settle: setup.settle,
        enough: Arc::clone(&setup.enough),
        barrier: Barrier::new(setup.threads),
        stop: AtomicBool::new(false),
        warmup: setup.warmup.as_nanos() as u64,
        timeout: plan.timeout,
        spins: setup.spins,
    });
    let plan = Arc::new(plan);
    let (reports, inbox) = mpsc::sync_channel(REPORTS * setup.threads);
    std::thread::scope(|scope| {
        let mut empties = Vec::new();
        for number in 0..setup.threads {
            let (sender, receiver) = mpsc::sync_channel(EMPTIES + 1);
            for _ in 0..EMPTIES {
                sender
                    .send(Box::new(plan.empty_tally()))
                    .map_err(|_| "no room for a tally")?;
            }
            empties.push(sender);
            let core = new_core(Arc::clone(&plan), setup, number);
            let thread = Thread {
                number,
                core,
                cpu: setup.cpus.get(number).copied(),
                reports: reports.clone(),
                empties: receiver,
            };
            let common = Arc::clone(&common);
            scope.spawn(move || driver::run(common, thread));
        }
        drop(reports);
        let mut collector = Collector {
            common: &common,
            plan: &plan,
            inbox,
            empties,
            interrupt,
        };
        collector.collect(observer)
    })
}

fn new_core(plan: Arc<Plan>, setup: &Setup, thread: usize) -> Core {
    let threads = setup.threads;
    let share = Share { thread, threads };
    let clients = share.part(u64::from(setup.clients)) as u32;
    let slots = setup.slots.clone();
    Core::new(
        plan,
        share,
        clients,
        slots.unwrap_or_else(|| SlotMap::single("any".into())),
    )
}

/// Reads what the threads report until all have ended.
struct Collector<'r> {
    common: &'r Common,
    plan: &'r Plan,
    inbox: Receiver<Report>,
    empties: Vec<SyncSender<Box<Tally>>>,
    interrupt: &'r AtomicBool,
}

impl Collector<'_> {
    fn collect(&mut self, observer: &mut dyn Observer) -> Result<Vec<Measured>, String> {
        let phases = self.common.phases.iter();
        let measured: Result<Vec<Measured>, String> = phases
            .map(|phase| self.collect_phase(*phase, observer))
            .collect();
        if measured.is_err() {
            self.common.stop.store(true, Ordering::Relaxed);
            while self.inbox.recv().is_ok() {} // until all threads have seen it
        }
        measured
    }

    fn collect_phase(&self, phase: Phase, observer: &mut dyn Observer) -> Result<Measured, String> {
        observer.on_phase(phase);
        let threads = self.empties.len();
        let warmup = if phase == Phase::Work {
            self.common.warmup
        } else {
            0
        };
        let mut series = Series::new(threads);
        let mut measured = Measured {
            phase,
            tally: self.plan.empty_tally(),
            seconds: 0.0,
            points: Vec::new(),
            busy: Vec::new(),
            history: Vec::new(),
        };
        while measured.busy.len() < threads {
            match self.next()? {
                Report::Failed(why) => return Err(why),
                Report::Done { to, cpu, history } => {
                    measured.history.extend(history);
                    let seconds = to.saturating_sub(warmup) as f64 / 1e9;
                    measured.seconds = measured.seconds.max(seconds);
                    measured
                        .busy
                        .push(cpu.as_secs_f64() / (to as f64 / 1e9).max(1e-9));
                }
                Report::Interval {
                    thread,
                    from,
                    to,
                    mut tally,
                } => {
                    if from >= warmup {
                        measured.tally.merge(&tally);
                        for point in series.add(from - warmup, to - warmup, &tally) {
                            observer.on_point(phase, &point);
                        }
                    }
                    tally.clear();
                    // Full when the thread has enough of them already.
                    let _ = self.empties[thread].try_send(tally);
                }
            }
        }
        measured.points = series.finish();
        Ok(measured)
    }

    fn next(&self) -> Result<Report, String> {
        loop {
            if self.interrupt.load(Ordering::Relaxed) {
                self.common.stop.store(true, Ordering::Relaxed);
            }
            match self.inbox.recv_timeout(PATIENCE) {
                Ok(report) => return Ok(report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("a load thread ended without a word".into());
                }
            }
        }
    }
}
