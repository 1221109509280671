//! Reading hints: what files from before the start hold, the oldest that are to be handed on, and
//! what is too old.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::format::{self, Batch, Header};
use super::{HintFile, Hints};
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, File};
use crate::storage::record::Record;
use crate::types::UnixMillis;

/// So many bytes are read at a time in search of the next batch behind a damaged one.
const SEARCH_BYTES: usize = 1 << 20;
/// Hints that are handed on together, and bytes of their batches, unless one batch has more.
const PORTION_HINTS: usize = 64;
const PORTION_BYTES: u64 = 256 << 10;
/// A file that the disk does not read is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What stands at a place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Hints.
    Batch(Batch),
    /// No batch, but there is one behind it, at this place: damage.
    Damage(u64),
    /// Nothing, or a batch that a crash has torn: nothing comes behind it.
    End,
}

/// Hints that are to be handed on together.
pub struct Portion {
    /// The mutations, the oldest first.
    pub records: Vec<Record>,
    file: Rc<HintFile>,
    end: u64,
}

/// What stands at `offset` of `file`, which has `length` bytes and this nonce.
pub async fn step(file: &File, nonce: u64, offset: u64, length: u64) -> Result<Step> {
    if let Some(batch) = batch_at(file, nonce, offset, length).await? {
        return Ok(Step::Batch(batch));
    }
    let mut at = offset + BLOCK_BYTES as u64;
    while at < length {
        let piece = file.read_at(at, SEARCH_BYTES).await?;
        for (index, block) in piece.chunks(BLOCK_BYTES).enumerate() {
            let place = at + (index * BLOCK_BYTES) as u64;
            let may_be = format::claimed_bytes(block).is_some();
            if may_be && batch_at(file, nonce, place, length).await?.is_some() {
                return Ok(Step::Damage(place));
            }
        }
        at += SEARCH_BYTES as u64;
        rt::yield_if_needed().await;
    }
    Ok(Step::End)
}

async fn batch_at(file: &File, nonce: u64, offset: u64, length: u64) -> Result<Option<Batch>> {
    if offset >= length {
        return Ok(None);
    }
    let first = file.read_at(offset, BLOCK_BYTES).await?;
    let bytes = match format::claimed_bytes(&first) {
        Some(bytes) if bytes as u64 <= length - offset => bytes,
        _ => return Ok(None),
    };
    if bytes <= BLOCK_BYTES {
        return Ok(format::decode(&first, (nonce, offset)));
    }
    let whole = file.read_at(offset, bytes).await?;
    Ok(format::decode(&whole, (nonce, offset)))
}

impl Hints {
    /// Finds out what files from before the start hold.
    pub(super) async fn look_through(self: Rc<Self>) {
        loop {
            let unknown: Vec<Rc<HintFile>> = {
                let state = self.state.borrow();
                let files = state.targets.values().flat_map(|target| &target.files);
                let unknown = files.filter(|file| !file.is_known.get());
                unknown.cloned().collect()
            };
            if unknown.is_empty() {
                return;
            }
            for file in unknown {
                if self.is_stopping() {
                    return;
                }
                self.look_into(&file).await;
                self.changed.wake_all();
            }
            rt::sleep(RETRY_PAUSE).await;
        }
    }

    async fn look_into(&self, file: &Rc<HintFile>) {
        match self.survey(file).await {
            Ok(true) => {
                self.state.borrow_mut().bytes += file.allocated.get();
                file.is_known.set(true);
            }
            Ok(false) => self.remove(file).await, // there is nothing in it
            Err(error) if error.is_not_found() => self.forget(file),
            Err(error @ Error::Io { .. }) => self.warn(format_args!("{error}; it is tried again")),
            Err(error) => {
                // It stays where it is, for `quoit check` and its reader to see.
                log::error!("{error}: the hints in it are lost, until the keys are read");
                self.state.borrow_mut().stats.damaged += 1;
                self.forget(file);
            }
        }
    }

    /// Notes what is in `file`; false if nothing is.
    async fn survey(&self, file: &HintFile) -> Result<bool> {
        let open = File::open_to_read(&file.path).await?;
        let surveyed = async {
            let length = open.len().await?;
            let Some(header) = read_header(&open, file, length).await? else {
                return Ok(false);
            };
            file.nonce.set(header.nonce);
            file.hints.set(0);
            file.allocated.set(length);
            let mut at = format::FIRST_BATCH;
            loop {
                match step(&open, header.nonce, at, length).await? {
                    Step::Batch(batch) => {
                        file.note_kept(batch.records.len() as u64, batch.kept);
                        at += batch.bytes;
                    }
                    Step::Damage(next) => {
                        self.tell_damage(&file.path, at);
                        at = next;
                    }
                    Step::End => break,
                }
                rt::yield_if_needed().await;
            }
            file.end.set(at);
            Ok(file.hints.get() > 0)
        }
        .await;
        open.close().await;
        surveyed
    }

    fn tell_damage(&self, path: &Path, offset: u64) {
        self.state.borrow_mut().stats.damaged += 1;
        log::error!(
            "{} is damaged at byte {offset}: some hints are lost, until the keys are read",
            path.display()
        );
    }

    /// The oldest hints for `node` that are left, some of them; `None`: there are none. One caller
    /// at a time for each node.
    pub async fn next(&self, node: u16) -> Result<Option<Portion>> {
        loop {
            let Some(file) = self.front(node).await else {
                return Ok(None);
            };
            let at = file.handed.get();
            if at >= file.end.get() {
                file.seal();
                self.remove(&file).await;
                continue;
            }
            let open = File::open_to_read(&file.path).await?;
            let portion = self.read_on(&open, &file).await;
            open.close().await;
            if let Some(portion) = portion? {
                return Ok(Some(portion));
            }
        }
    }

    /// The next hints of `file`; `None`: there are none where it was read.
    async fn read_on(&self, open: &File, file: &Rc<HintFile>) -> Result<Option<Portion>> {
        let (nonce, end) = (file.nonce.get(), file.end.get());
        let (mut at, mut records) = (file.handed.get(), Vec::new());
        let first = at;
        while at < end && records.len() < PORTION_HINTS && at - first < PORTION_BYTES {
            let found = step(open, nonce, at, end).await?;
            let is_kept = |batch: &Batch| !self.is_too_old(batch.kept, rt::wall_ms());
            match found {
                Step::Batch(batch) if is_kept(&batch) => {
                    at += batch.bytes;
                    records.extend(batch.records);
                }
                _ if !records.is_empty() => break, // those before it come first
                Step::Batch(batch) => {
                    let hints = batch.records.len() as u64;
                    self.state.borrow_mut().stats.expired += hints;
                    self.advance(file, at + batch.bytes, hints);
                    return Ok(None);
                }
                Step::Damage(next) => {
                    file.handed.set(next); // it was told when the file was looked through
                    return Ok(None);
                }
                Step::End => {
                    self.tell_damage(&file.path, at);
                    file.handed.set(end);
                    return Ok(None);
                }
            }
        }
        let file = Rc::clone(file);
        Ok((!records.is_empty()).then_some(Portion {
            records,
            file,
            end: at,
        }))
    }

    /// The hints of `portion` are where they belong.
    pub fn done(&self, portion: &Portion) {
        let hints = portion.records.len() as u64;
        self.state.borrow_mut().stats.handed += hints;
        self.advance(&portion.file, portion.end, hints);
    }

    fn advance(&self, file: &HintFile, to: u64, hints: u64) {
        assert!(to > file.handed.get() && to <= file.end.get());
        file.handed.set(to);
        file.hints.set(file.hints.get().saturating_sub(hints));
    }

    /// The oldest file for `node`, when it is known what is in it, and unless all of it was handed
    /// on and somebody is writing to it.
    async fn front(&self, node: u16) -> Option<Rc<HintFile>> {
        let look = || {
            let state = self.state.borrow();
            let target = state.targets.get(&node);
            let Some(file) = target.and_then(|target| target.files.front()) else {
                return Some(None);
            };
            let is_through = file.handed.get() >= file.end.get();
            let is_ready = file.is_known.get() && !(is_through && file.is_busy.get());
            (is_ready || state.is_stopping).then(|| is_ready.then(|| Rc::clone(file)))
        };
        self.changed.wait_for(look).await
    }

    /// Drops what is kept for `node` and is too old at `now`. Nobody hands it on meanwhile.
    pub async fn expire(&self, node: u16, now: UnixMillis) {
        loop {
            let oldest = {
                let state = self.state.borrow();
                let target = state.targets.get(&node);
                target.and_then(|target| target.files.front().cloned())
            };
            // One in which nothing is left, or ever was, must not stand before older ones.
            let is_through =
                |file: &HintFile| file.handed.get() >= file.end.get() && !file.takes_more();
            let is_old = |file: &HintFile| {
                file.hints.get() > 0 && self.is_too_old(file.kept_last.get(), now)
            };
            let is_to_go = |file: &HintFile| {
                let is_quiet = file.is_known.get() && !file.is_busy.get();
                is_quiet && (is_through(file) || is_old(file))
            };
            let Some(file) = oldest.filter(|file| is_to_go(file)) else {
                return;
            };
            let hints = file.hints.get();
            if hints > 0 {
                log::warn!(
                    "{hints} hints for node {node} are older than `hint-max-age-s` allows: it is not told by \
                     them what it has missed"
                );
            }
            self.state.borrow_mut().stats.expired += hints;
            file.seal();
            self.remove(&file).await;
        }
    }

    fn is_too_old(&self, kept: UnixMillis, now: UnixMillis) -> bool {
        now.saturating_sub(kept) >= self.limits.age_max_ms
    }

    /// Removes `file`. If a crash brings it back it is handed on once more.
    async fn remove(&self, file: &Rc<HintFile>) {
        assert!(!file.takes_more() && !file.is_busy.get());
        self.forget(file);
        if file.is_known.get() {
            self.give_back(file.allocated.get());
        }
        match rt::remove_file(&file.path).await {
            Err(error) if !error.is_not_found() => self.warn(error),
            _ => {}
        }
        self.changed.wake_all();
    }

    /// `file` is none of those that are kept any more.
    fn forget(&self, file: &Rc<HintFile>) {
        let mut state = self.state.borrow_mut();
        let node = file.id.node;
        let Some(target) = state.targets.get_mut(&node) else {
            return;
        };
        target.files.retain(|it| !Rc::ptr_eq(it, file));
        if target.files.is_empty() && !target.is_writing {
            state.targets.remove(&node);
        }
    }
}

/// The header of `file`; `None` if a crash has left the file before it was begun: then nothing can
/// be in it.
async fn read_header(open: &File, file: &HintFile, length: u64) -> Result<Option<Header>> {
    let block = open.read_at(0, BLOCK_BYTES).await?;
    let refusal = match Header::decode(&block, file.id, &file.path) {
        Ok(header) => return Ok(Some(header)),
        Err(refusal) => refusal,
    };
    match refusal {
        Error::Corrupt { .. } if is_empty_behind_header(open, length).await? => Ok(None),
        refusal => Err(refusal),
    }
}

/// True if nothing was written behind the first block: hints come when the header is synced.
pub(in crate::storage) async fn is_empty_behind_header(open: &File, length: u64) -> Result<bool> {
    let mut at = format::FIRST_BATCH;
    while at < length {
        let piece = open.read_at(at, SEARCH_BYTES).await?;
        if piece.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at += SEARCH_BYTES as u64;
    }
    Ok(true)
}
