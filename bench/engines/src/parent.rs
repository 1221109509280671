//! The process that was started by hand: it makes a directory for data, runs children, and removes
//! the data whatever happens.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytesize::ByteSize;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::child::{Job, Told};
use crate::engine::{EngineName, Setup};
use crate::failure::{Failure, Outcome};
use crate::machine;
use crate::result::PhaseResult;

/// The word on the command line that makes a child.
pub const CHILD: &str = "child";
/// Exit code of a run that was interrupted.
const INTERRUPTED: i32 = 130;

/// What all experiments have in common.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Directory for data, on the file system to be measured. What is made there is removed at the
    /// end.
    #[arg(long, default_value = "engines-data")]
    pub dir: PathBuf,
    /// Memory for memtables, filters, indexes and caches.
    #[arg(long)]
    pub memory: Option<ByteSize>,
    /// Bytes of all keys and values.
    #[arg(long)]
    pub data: Option<ByteSize>,
    /// Bytes of a value.
    #[arg(long)]
    pub value_bytes: Option<usize>,
    /// Cores that Quoit runs on, and background threads of the others; 0: all that there are.
    #[arg(long, default_value_t = 0)]
    pub cores: u16,
    /// Quoit's configuration, where it is not to be the default. `memory`, `cores` and `dir` in it
    /// do not count.
    #[arg(long, value_name = "FILE")]
    pub quoit_config: Option<PathBuf>,
    /// Seconds of a window of the report.
    #[arg(long, default_value_t = 10.0)]
    pub window: f64,
    /// Write the result to this file, too, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Sizes of an experiment.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub memory: u64,
    pub data: u64,
    pub value_bytes: usize,
}

impl Sizes {
    /// Records of which the data consist.
    pub fn records(&self) -> u64 {
        self.data / (crate::content::KEY_BYTES + self.value_bytes) as u64
    }
}

impl Common {
    /// The sizes asked for, or else those of the experiment.
    pub fn sizes(&self, default: Sizes) -> Sizes {
        Sizes {
            memory: self.memory.map_or(default.memory, |size| size.0),
            data: self.data.map_or(default.data, |size| size.0),
            value_bytes: self.value_bytes.unwrap_or(default.value_bytes),
        }
    }

    /// Cores to be used.
    pub fn core_count(&self) -> u16 {
        match self.cores {
            0 => quoit::rt::cpu_count() as u16,
            cores => cores,
        }
    }
}

/// What is removed at the end: by `Drop`, or when a signal comes.
#[derive(Default)]
struct Belongings {
    dir: Option<PathBuf>,
    child: Option<Child>,
}

impl Belongings {
    fn give_up(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(dir) = self.dir.take()
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            eprintln!("cannot remove {}: {error}", dir.display());
        }
    }
}

/// Runs children in a directory of its own.
pub struct Parent {
    belongings: Arc<Mutex<Belongings>>,
    dir: PathBuf,
    quoit_config: Option<String>,
    cores: u16,
    window: f64,
}

impl Drop for Parent {
    fn drop(&mut self) {
        lock(&self.belongings).give_up();
    }
}

fn lock(belongings: &Mutex<Belongings>) -> MutexGuard<'_, Belongings> {
    belongings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do after a child has told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Listen on.
    Listen,
    /// Kill it: that is the end of its job.
    Kill,
}

impl Parent {
    /// Makes a directory for data within the one that was named, with room for `space` bytes.
    pub fn new(common: &Common, space: u64) -> Outcome<Parent> {
        let quoit_config = common.quoit_config.as_ref();
        let quoit_config = quoit_config.map(std::fs::read_to_string).transpose()?;
        std::fs::create_dir_all(&common.dir)?;
        let root = std::path::absolute(&common.dir)?;
        if let Some(free) = machine::free_bytes(&root)
            && free < space
        {
            let (space, free) = (ByteSize(space), ByteSize(free));
            return Err(Failure::new(format!(
                "this needs about {space} in {}, and {free} is free: name another --dir, or less --data",
                root.display()
            )));
        }
        let dir = root.join(format!("engines-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        let belongings = Arc::new(Mutex::new(Belongings {
            dir: Some(dir.clone()),
            child: None,
        }));
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::spawn({
            let belongings = Arc::clone(&belongings);
            move || {
                if signals.forever().next().is_some() {
                    lock(&belongings).give_up();
                    std::process::exit(INTERRUPTED);
                }
            }
        });
        Ok(Parent {
            belongings,
            dir,
            quoit_config,
            cores: common.core_count(),
            window: common.window,
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A job without steps, on data in `name`.
    pub fn job(&self, engine: EngineName, name: &str, sizes: Sizes) -> Job {
        Job {
            setup: Setup {
                engine,
                dir: self.dir.join(name),
                memory: sizes.memory,
                cores: self.cores,
                quoit_config: self.quoit_config.clone(),
            },
            records: sizes.records(),
            value_bytes: sizes.value_bytes,
            known: crate::child::Known::Empty,
            window_seconds: self.window,
            control_group: None,
            steps: Vec::new(),
        }
    }

    /// Removes the data of a job.
    pub fn remove(&self, name: &str) -> Outcome<()> {
        let path = self.dir.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Has a child do `job`, and gives all that it tells with the seconds since it was started to
    /// `listen`.
    pub fn run(&self, job: &Job, mut listen: impl FnMut(f64, Told) -> Then) -> Outcome<()> {
        let began = Instant::now();
        let lines = self.start(job)?;
        let mut failure = None;
        let mut is_killed = false;
        for line in BufReader::new(lines).lines() {
            let line = line?;
            let told: Told = match serde_json::from_str(&line) {
                Err(_) if is_killed => continue, // cut short in its middle
                told => told?,
            };
            if let Told::Failed(why) = told {
                failure = Some(why);
                continue;
            }
            if !is_killed && listen(began.elapsed().as_secs_f64(), told) == Then::Kill {
                is_killed = true;
                if let Some(child) = &mut lock(&self.belongings).child {
                    child.kill()?; // SIGKILL; its last lines may still come
                }
            }
        }
        let child = lock(&self.belongings).child.take();
        let mut child = child.ok_or_else(|| Failure::new("the child was taken"))?;
        let status = child.wait()?;
        match (failure, is_killed) {
            (_, true) => Ok(()),
            (Some(why), _) => Err(Failure::new(format!("{}: {why}", job.setup.engine.name()))),
            (None, _) if status.success() => Ok(()),
            (None, _) => Err(Failure::new(format!(
                "{} ended: {status}",
                job.setup.engine.name()
            ))),
        }
    }

    fn start(&self, job: &Job) -> Outcome<ChildStdout> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let gone = || Failure::new("a child has no standard streams");
        let lines = child.stdout.take().ok_or_else(gone)?;
        let mut input = child.stdin.take().ok_or_else(gone)?;
        let text = serde_json::to_string(job)?;
        writeln!(input, "{text}")?;
        input.flush()?;
        child.stdin = Some(input); // it lives as long as this stays open
        lock(&self.belongings).child = Some(child);
        Ok(lines)
    }

    /// The results of a job.
    pub fn results(&self, job: &Job) -> Outcome<Vec<PhaseResult>> {
        let mut results = Vec::new();
        self.run(job, |_, told| {
            if let Told::Done(result) = told {
                results.push(*result);
            }
            Then::Listen
        })?;
        Ok(results)
    }
}
