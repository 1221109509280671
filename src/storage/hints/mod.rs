//! Hints: mutations that are kept here, synced, for replicas on other nodes that have not stored
//! them.
//!
//! Each core keeps its hints in files of its own, one after the other for each node (`format` draws
//! them), in the folder `hints` of the data directory, apart from all data: no reader of keys ever
//! sees one. A core takes over what it, or a core that there is no more, has left there before the
//! start; so a start with another number of cores moves nothing.
//!
//! [`Hints::keep`] returns when the hint is synced: those that wait for the same node are written
//! together (`writing`). Whoever hands them on asks for the oldest that are left ([`Hints::next`])
//! and says when a replica has synced them ([`Hints::done`]); a file goes when all of it was handed
//! on (`reading`). How far a file was handed on is kept in memory only: after a crash what is in it
//! is handed on again, which changes nothing, as versions decide what a replica stores.
//!
//! Invariants: nothing is said to be kept before it and the name of its file are synced; a file
//! that a write or a sync has failed in takes no more; no file is longer than its core's share of
//! the bytes allows, and no hint is handed on that is older than it may be.

pub mod format;
mod reading;
#[cfg(test)]
mod tests;
mod writing;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::error::Result;
use crate::rt::sync::{Answerer, Signal, answer_slot};
use crate::rt::{self, File, Queue};
use crate::storage::record::Record;
use crate::types::{CoreId, UnixMillis};
use format::FileId;

pub(in crate::storage) use reading::is_empty_behind_header;
pub use reading::{Portion, Step, step};

/// The folder of all hints in the data directory.
pub const FOLDER: &str = "hints";
/// What goes wrong with the disk is logged so often at most.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What one core's hints may take.
#[derive(Clone, Copy, Debug)]
pub struct HintLimits {
    /// Bytes of all files; 0: nothing is kept.
    pub bytes_max: u64,
    /// Milliseconds after which a hint is dropped.
    pub age_max_ms: u64,
    /// A file that has come to this size takes no more.
    pub file_bytes: u64,
    /// Bytes of hints that are written together, unless one alone is larger.
    pub batch_bytes_max: usize,
    /// Bytes of hints that wait to be written, but for one, whatever its size.
    pub waiting_bytes_max: usize,
}

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is synced.
    Synced,
    /// It is certainly not kept.
    Refused,
    /// The disk failed: it may be kept or not.
    Uncertain,
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintStats {
    /// Hints that were synced.
    pub kept: u64,
    /// Hints that a replica has synced since, or something newer.
    pub handed: u64,
    /// Hints for which there was no room, or which the disk did not take.
    pub refused: u64,
    /// Hints that were dropped because they were too old.
    pub expired: u64,
    /// Places in files that were damaged, and files that could not be read at all.
    pub damaged: u64,
}

impl HintStats {
    /// Adds what another core has done.
    pub fn add(&mut self, other: &HintStats) {
        self.kept += other.kept;
        self.handed += other.handed;
        self.refused += other.refused;
        self.expired += other.expired;
        self.damaged += other.damaged;
    }
}

/// What is kept for one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Hints.
    pub hints: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

/// One core's hints. Shared within the core by `Rc`.
pub struct Hints {
    dir: PathBuf,
    core: CoreId,
    limits: HintLimits,
    state: RefCell<State>,
    /// Something was kept, looked through or handed on, or all is to stop.
    changed: Signal,
    warn_from: Cell<Duration>,
}

#[derive(Default)]
struct State {
    /// By node: those for which something is kept or about to be.
    targets: BTreeMap<u16, Target>,
    /// Bytes that all files take on disk, as far as they were looked through.
    bytes: u64,
    /// Bytes of all hints that wait to be written.
    waiting_bytes: usize,
    /// Of the next file.
    number_next: u64,
    has_folder: bool,
    is_stopping: bool,
    stats: HintStats,
}

/// What is kept for one node.
#[derive(Default)]
struct Target {
    /// Oldest first. New hints go to the last one, if that takes more.
    files: VecDeque<Rc<HintFile>>,
    waiting: VecDeque<Waiting>,
    /// Somebody writes, or is about to.
    is_writing: bool,
}

/// A hint that waits to be written.
struct Waiting {
    record: Record,
    answerer: Answerer<Kept>,
}

/// One file.
struct HintFile {
    id: FileId,
    path: PathBuf,
    nonce: Cell<u64>,
    /// Open for writing while it takes more.
    file: RefCell<Option<Rc<File>>>,
    /// Bytes that it takes on disk.
    allocated: Cell<u64>,
    /// What was written up to here is synced.
    end: Cell<u64>,
    /// What was written up to here was handed on.
    handed: Cell<u64>,
    /// Hints between the two.
    hints: Cell<u64>,
    /// When its first and its last hint was kept; 0: there was none.
    kept_first: Cell<UnixMillis>,
    kept_last: Cell<UnixMillis>,
    /// Somebody is writing to it.
    is_busy: Cell<bool>,
    /// It is known what is in it.
    is_known: Cell<bool>,
}

impl HintFile {
    fn new(dir: &Path, id: FileId) -> HintFile {
        HintFile {
            path: dir.join(id.name()),
            id,
            nonce: Cell::new(0),
            file: RefCell::new(None),
            allocated: Cell::new(0),
            end: Cell::new(format::FIRST_BATCH),
            handed: Cell::new(format::FIRST_BATCH),
            hints: Cell::new(0),
            kept_first: Cell::new(0),
            kept_last: Cell::new(0),
            is_busy: Cell::new(false),
            is_known: Cell::new(false),
        }
    }

    fn takes_more(&self) -> bool {
        self.file.borrow().is_some()
    }

    /// It takes no more.
    fn seal(&self) {
        if let Some(Ok(file)) = self.file.take().map(Rc::try_unwrap) {
            rt::spawn(file.close());
        }
    }

    /// `hints` were kept at `now`.
    fn note_kept(&self, hints: u64, now: UnixMillis) {
        self.hints.set(self.hints.get() + hints);
        if self.kept_first.get() == 0 {
            self.kept_first.set(now);
        }
        self.kept_last.set(self.kept_last.get().max(now));
    }
}

impl Hints {
    /// The hints of core `core` of `cores` in the data directory `dir`. What files from before the
    /// start hold is found out in the background.
    pub async fn open(
        dir: &Path,
        (core, cores): (CoreId, u16),
        limits: HintLimits,
    ) -> Result<Rc<Hints>> {
        let dir = dir.join(FOLDER);
        let names = match rt::list_dir(&dir).await {
            Err(error) if error.is_not_found() => Vec::new(),
            names => names?,
        };
        let mut state = State::default();
        let mut files: Vec<FileId> = names
            .iter()
            .filter_map(|name| FileId::parse(name))
            .filter(|id| id.core.0 % cores == core.0)
            .collect();
        files.sort_by_key(|id| (id.node, id.number, id.core));
        for id in files {
            if id.core == core {
                state.number_next = state.number_next.max(id.number.saturating_add(1));
            }
            let file = Rc::new(HintFile::new(&dir, id));
            let target = state.targets.entry(id.node).or_default();
            target.files.push_back(file);
        }
        let has_files = !state.targets.is_empty();
        let hints = Rc::new(Hints {
            dir,
            core,
            limits,
            state: RefCell::new(state),
            changed: Signal::default(),
            warn_from: Cell::new(Duration::ZERO),
        });
        if has_files {
            rt::spawn_in(Queue::Background, Rc::clone(&hints).look_through());
        }
        Ok(hints)
    }

    /// Keeps `record` for a replica on `node`.
    pub async fn keep(self: &Rc<Self>, node: u16, record: Record) -> Kept {
        let bytes = format::hint_bytes(&record);
        let (answerer, answer) = answer_slot();
        let has_writer = {
            let mut state = self.state.borrow_mut();
            let is_full = state.waiting_bytes > 0
                && state.waiting_bytes + bytes > self.limits.waiting_bytes_max;
            if state.is_stopping || is_full || self.limits.bytes_max == 0 {
                state.stats.refused += 1;
                return Kept::Refused;
            }
            state.waiting_bytes += bytes;
            let target = state.targets.entry(node).or_default();
            target.waiting.push_back(Waiting { record, answerer });
            std::mem::replace(&mut target.is_writing, true)
        };
        if !has_writer {
            rt::spawn(Rc::clone(self).write(node));
        }
        answer.wait().await.unwrap_or(Kept::Uncertain)
    }

    /// The nodes for which something is kept.
    pub fn nodes(&self) -> Vec<u16> {
        let state = self.state.borrow();
        let has_files = |(_, target): &(&u16, &Target)| !target.files.is_empty();
        let nodes = state.targets.iter().filter(has_files);
        nodes.map(|(node, _)| *node).collect()
    }

    /// Waits until something is kept for some node.
    pub async fn some(&self) {
        let has_some = || !self.nodes().is_empty();
        self.changed.wait_for(|| has_some().then_some(())).await;
    }

    /// What is kept, by node. What files from before the start hold is counted when it is known.
    pub fn backlog(&self) -> BTreeMap<u16, Backlog> {
        let state = self.state.borrow();
        let of = |target: &Target| Backlog {
            hints: target.files.iter().map(|file| file.hints.get()).sum(),
            bytes: target.files.iter().map(|file| file.allocated.get()).sum(),
        };
        let targets = state.targets.iter();
        targets.map(|(node, target)| (*node, of(target))).collect()
    }

    /// What was done since the start.
    pub fn stats(&self) -> HintStats {
        self.state.borrow().stats
    }

    /// Takes no more, and returns when what is under way is written.
    pub async fn stop(&self) {
        self.state.borrow_mut().is_stopping = true;
        self.changed.wake_all();
        let is_quiet = || {
            let state = self.state.borrow();
            !state.targets.values().any(|target| target.is_writing)
        };
        self.changed.wait_for(|| is_quiet().then_some(())).await;
        let state = self.state.borrow();
        let files = state.targets.values().flat_map(|target| &target.files);
        files.for_each(|file| file.seal());
    }

    fn is_stopping(&self) -> bool {
        self.state.borrow().is_stopping
    }

    fn warn(&self, what: impl std::fmt::Display) {
        if rt::now() >= self.warn_from.get() {
            log::warn!("{what}");
            self.warn_from.set(rt::now() + WARN_EVERY);
        }
    }
}
