//! The process that holds the engine: it takes a [`Job`] as a line on standard input, does its
//! steps, and tells each result as a line on standard output. It ends when its parent does.
//!
//! A process of its own, so that memory, I/O and a control group are one engine's alone, so that it
//! can be killed, and so that its parent lives on to remove the data.

use std::io::{BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::content::{Content, Ledger};
use crate::engine::{self, Engine, Facts, Setup};
use crate::failure::{Failure, Outcome};
use crate::machine::{self, Meter};
use crate::phase::{Phase, Rate, Spec};
use crate::result::{PhaseResult, Sample, Sampler};

/// How often an engine that settles is looked at, and how many quiet looks make it settled.
const SETTLE_LOOK: Duration = Duration::from_millis(500);
const QUIET_LOOKS: u32 = 4;
/// Less than this written between two looks is quiet.
const QUIET_BYTES: u64 = 1 << 20;
/// How often a phase that may be killed says how far it is.
const TELL_EVERY: Duration = Duration::from_millis(20);

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The engine.
    pub setup: Setup,
    /// Records, and bytes of the value of each.
    pub records: u64,
    pub value_bytes: usize,
    /// What is known of the records when it begins.
    pub known: Known,
    /// Seconds of a window of the report.
    pub window_seconds: f64,
    /// A control group to join before all else.
    pub control_group: Option<PathBuf>,
    /// In this order.
    pub steps: Vec<Step>,
}

/// What is known of the records when a job begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Known {
    /// There is none yet.
    Empty,
    /// There is none yet, and each is written once.
    WriteOnce,
    /// They are there, each in one of the generations up to the last: those below a number at least
    /// in the generation beside it.
    Filled { floors: Vec<(u64, u64)>, last: u64 },
}

/// One thing to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// A phase of load.
    Load(Spec),
    /// The same, and say again and again up to where all is acknowledged.
    LoadUntilKilled(Spec),
    /// Close it, drop the page cache, open it again.
    Reopen,
}

/// What a child tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    /// It is open, so many seconds after the process began; the opening itself took so long.
    Opened {
        process_seconds: f64,
        open_seconds: f64,
        facts: Facts,
    },
    /// A phase was done.
    Done(Box<PhaseResult>),
    /// Writes of all records below this one are acknowledged.
    Acknowledged { below: u64 },
    /// All was done, and the engine is closed; that took so long.
    Closed { seconds: f64 },
    /// It could not go on.
    Failed(String),
}

/// Does the job that standard input names.
pub fn main() -> Outcome<()> {
    let born = Instant::now();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    std::thread::spawn(|| {
        // Nothing more comes: this is the end of the parent.
        let _ = std::io::stdin().lock().read(&mut [0]);
        std::process::exit(3);
    });
    let done = Child::start(job, born).and_then(Child::run);
    if let Err(failure) = &done {
        tell(&Told::Failed(failure.to_string()))?;
    }
    done
}

fn tell(told: &Told) -> Outcome<()> {
    let line = serde_json::to_string(told)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

struct Child {
    job: Job,
    content: Arc<Content>,
    ledger: Arc<Ledger>,
    meter: Meter,
    engine: Box<dyn Engine>,
    /// Records that were written where each is written once.
    written_once: u64,
    /// Phases that were done, and their operations a second.
    reached: Vec<(String, f64)>,
    /// Bytes that were resident before the engine was opened.
    resident_before: u64,
}

impl Child {
    fn start(job: Job, born: Instant) -> Outcome<Child> {
        if let Some(group) = &job.control_group {
            machine::join_control_group(group)?;
        }
        std::fs::create_dir_all(&job.setup.dir)?;
        let meter = Meter::new(&job.setup.dir);
        let content = Content::new(job.value_bytes);
        let ledger = match job.known {
            Known::Empty => Ledger::new(job.records),
            Known::WriteOnce => Ledger::write_once(),
            Known::Filled { ref floors, last } => {
                let ledger = Ledger::filled(job.records, last);
                for (below, generation) in floors {
                    (0..*below).for_each(|number| ledger.note_floor(number, *generation));
                }
                ledger
            }
        };
        let resident_before = machine::resident_bytes();
        let (engine, open_seconds, facts) = open(&job.setup)?;
        tell(&Told::Opened {
            process_seconds: born.elapsed().as_secs_f64(),
            open_seconds,
            facts,
        })?;
        Ok(Child {
            content: Arc::new(content),
            ledger: Arc::new(ledger),
            meter,
            engine,
            written_once: 0,
            reached: Vec::new(),
            resident_before,
            job,
        })
    }

    fn run(mut self) -> Outcome<()> {
        for step in self.job.steps.clone() {
            match step {
                Step::Load(spec) => {
                    let result = self.load(spec, false)?;
                    let errors = result.errors();
                    tell(&Told::Done(Box::new(result)))?;
                    if errors > 0 {
                        return Err(Failure::new(format!("{errors} errors: see above")));
                    }
                }
                Step::LoadUntilKilled(spec) => {
                    self.load(spec, true)?;
                    return Err(Failure::new("it was to be killed by now"));
                }
                Step::Reopen => self = self.reopen()?,
            }
        }
        let closing = Instant::now();
        self.engine.close()?;
        tell(&Told::Closed {
            seconds: closing.elapsed().as_secs_f64(),
        })
    }

    fn reopen(self) -> Outcome<Child> {
        self.engine.close()?;
        machine::drop_page_cache()?;
        let began = Instant::now();
        let (engine, open_seconds, facts) = open(&self.job.setup)?;
        tell(&Told::Opened {
            process_seconds: began.elapsed().as_secs_f64(),
            open_seconds,
            facts,
        })?;
        Ok(Child { engine, ..self })
    }

    fn load(&mut self, spec: Spec, tells: bool) -> Outcome<PhaseResult> {
        let settle = Duration::from_secs_f64(spec.settle_seconds);
        let window = Duration::from_secs_f64(self.job.window_seconds);
        let checked = (Arc::clone(&self.content), Arc::clone(&self.ledger));
        let lanes = self.engine.lanes();
        let facts_before = self.engine.facts()?;
        let before = self.meter.read();
        let rate = self.rate_of(&spec)?;
        let phase = Phase::begin((spec, rate), self.job.records, checked, window, lanes);
        let phase = Arc::new(phase);
        let sampler = Sampler::start(&phase, &self.meter, &self.job.setup.dir, window);
        let ran = match tells {
            true => self.run_and_tell(&phase),
            false => self.engine.run(&phase),
        };
        let seconds = phase.started().elapsed().as_secs_f64();
        let end = Sample::take(&self.meter, &self.job.setup.dir);
        ran?;
        let live = self.live_bytes(&phase);
        let settled = self.settle(settle);
        let samples = sampler.stop(end);
        let settled = match settled {
            true => Some(Sample::take(&self.meter, &self.job.setup.dir)),
            false => None,
        };
        let facts = self.engine.facts()?;
        let mut result = PhaseResult::of(&phase, seconds, samples);
        result.count(before, end.counters, settled, self.job.value_bytes);
        result.measure_space(live, end.space_bytes, settled);
        result.facts = facts;
        result.rate = rate;
        result.resident_before = self.resident_before;
        result.facts_before = facts_before;
        let reached = (result.name.clone(), result.operations_per_second);
        self.reached.push(reached);
        Ok(result)
    }

    /// Operations a second that `spec` asks for.
    fn rate_of(&self, spec: &Spec) -> Outcome<Option<f64>> {
        match &spec.rate {
            None => Ok(None),
            Some(Rate::Fixed(rate)) => Ok(Some(*rate)),
            Some(Rate::ShareOf { phase, share }) => {
                let known = self.reached.iter().find(|(name, _)| name == phase);
                let missing = || Failure::new(format!("there was no phase `{phase}`"));
                known
                    .map(|(_, reached)| Some(reached * share))
                    .ok_or_else(missing)
            }
        }
    }

    /// Waits until the engine writes nothing more; false if nobody asked for that.
    fn settle(&self, most: Duration) -> bool {
        let began = Instant::now();
        let mut written = self.meter.read().written;
        let mut quiet = 0;
        while began.elapsed() < most && quiet < QUIET_LOOKS {
            std::thread::sleep(SETTLE_LOOK);
            let now = self.meter.read().written;
            quiet = if now - written < QUIET_BYTES {
                quiet + 1
            } else {
                0
            };
            written = now;
        }
        !most.is_zero()
    }

    /// Bytes of all keys and values that are there, after `phase`.
    fn live_bytes(&mut self, phase: &Phase) -> u64 {
        let is_there = |number: &u64| self.ledger.issued(*number) > 0;
        let count = match self.job.known {
            Known::WriteOnce => {
                self.written_once += phase.counts().0;
                self.written_once
            }
            _ => (0..self.job.records).filter(is_there).count() as u64,
        };
        count * (crate::content::KEY_BYTES + self.job.value_bytes) as u64
    }

    fn run_and_tell(&mut self, phase: &Arc<Phase>) -> Outcome<()> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let teller = scope.spawn(|| -> Outcome<()> {
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(TELL_EVERY);
                    let below = phase.low_water();
                    tell(&Told::Acknowledged { below })?;
                }
                Ok(())
            });
            let ran = self.engine.run(phase);
            over.store(true, Ordering::SeqCst);
            let told = teller.join();
            ran.and(told.unwrap_or_else(|_| Err(Failure::new("the teller panicked"))))
        })
    }
}

fn open(setup: &Setup) -> Outcome<(Box<dyn Engine>, f64, Facts)> {
    let began = Instant::now();
    let mut engine = engine::open(setup)?;
    let seconds = began.elapsed().as_secs_f64();
    let facts = engine.facts()?;
    Ok((engine, seconds, facts))
}
