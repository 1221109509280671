//! Writing hints: what waits for one node goes into its last file together, is synced, and is
//! answered.

use std::rc::Rc;

use super::format::{self, FileId, Header};
use super::{HintFile, Hints, Kept, Waiting};
use crate::error::Result;
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::storage::record::Record;

/// Space is taken in steps of so many bytes, so that not every sync has to note a file's new
/// length.
const STEP_BYTES: u64 = 256 << 10;
/// A file takes no more once its first hint has come to this part of the age at which hints are
/// dropped: all of a file goes at once.
const AGE_PARTS: u64 = 8;

impl Hints {
    /// Writes what waits for `node`, until nothing does.
    pub(super) async fn write(self: Rc<Self>, node: u16) {
        while let Some(group) = self.take_waiting(node) {
            let records: Vec<Record> = group.iter().map(|it| it.record.clone()).collect();
            let kept = self.write_together(node, &records).await;
            let count = records.len() as u64;
            {
                let stats = &mut self.state.borrow_mut().stats;
                match kept {
                    Kept::Synced => stats.kept += count,
                    Kept::Refused | Kept::Uncertain => stats.refused += count,
                }
            }
            for waiting in group {
                waiting.answerer.give(kept);
            }
            self.changed.wake_all();
        }
        self.changed.wake_all();
    }

    /// What is to be written next for `node`; `None`: nothing waits, and nobody writes any more.
    fn take_waiting(&self, node: u16) -> Option<Vec<Waiting>> {
        let mut state = self.state.borrow_mut();
        let target = state.targets.get_mut(&node)?;
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(next) = target.waiting.front() {
            let more = format::hint_bytes(&next.record);
            if !group.is_empty() && bytes + more > self.limits.batch_bytes_max {
                break;
            }
            bytes += more;
            group.extend(target.waiting.pop_front());
        }
        if group.is_empty() {
            target.is_writing = false;
            if target.files.is_empty() {
                state.targets.remove(&node);
            }
            return None;
        }
        state.waiting_bytes -= bytes;
        Some(group)
    }

    async fn write_together(&self, node: u16, records: &[Record]) -> Kept {
        let bytes = format::batch_bytes(records) as u64;
        let file = match self.file_for(node, bytes).await {
            Ok(Some(file)) => file,
            Ok(None) => {
                self.warn(format_args!(
                    "hints have come to `hint-max-bytes`: node {node} is not told by them what it misses from now on"
                ));
                return Kept::Refused;
            }
            Err(error) => {
                self.warn(format_args!("{error}: no hint is kept for node {node}"));
                return Kept::Refused;
            }
        };
        let kept = self.append(&file, records, bytes).await;
        file.is_busy.set(false);
        kept
    }

    /// A file for `node` that takes `bytes` more, and is the caller's to write to; `None`: there
    /// may be none.
    async fn file_for(&self, node: u16, bytes: u64) -> Result<Option<Rc<HintFile>>> {
        let last = {
            let state = self.state.borrow();
            let target = state.targets.get(&node);
            target.and_then(|target| target.files.back().cloned())
        };
        if let Some(last) = last.filter(|last| last.takes_more()) {
            let is_first = last.end.get() == format::FIRST_BATCH;
            let age = rt::wall_ms().saturating_sub(last.kept_first.get());
            let is_young = age < self.limits.age_max_ms / AGE_PARTS;
            let has_room = last.end.get() + bytes <= self.limits.file_bytes;
            if is_first || (is_young && has_room) {
                last.is_busy.set(true);
                return Ok(Some(last));
            }
            last.seal();
        }
        self.create(node, bytes).await
    }

    async fn create(&self, node: u16, bytes: u64) -> Result<Option<Rc<HintFile>>> {
        let length = self.step_to(format::FIRST_BATCH + bytes, 0);
        let Some(length) = length else {
            return Ok(None);
        };
        let id = {
            let mut state = self.state.borrow_mut();
            let number = state.number_next;
            state.number_next += 1;
            FileId {
                node,
                core: self.core,
                number,
            }
        };
        let file = Rc::new(HintFile::new(&self.dir, id));
        file.nonce.set(rt::random());
        let begun = self.begin(&file, length).await;
        let open = match begun {
            Ok(open) => open,
            Err(error) => {
                self.give_back(length);
                match rt::remove_file(&file.path).await {
                    Err(error) if !error.is_not_found() => {
                        log::warn!("{error}; the next start removes it");
                    }
                    _ => {}
                }
                return Err(error);
            }
        };
        file.file.replace(Some(Rc::new(open)));
        file.allocated.set(length);
        file.is_known.set(true);
        file.is_busy.set(true);
        let mut state = self.state.borrow_mut();
        let target = state.targets.entry(node).or_default();
        target.files.push_back(Rc::clone(&file));
        Ok(Some(file))
    }

    /// Makes the file, empty but for its header, and durable with its name.
    async fn begin(&self, file: &HintFile, length: u64) -> Result<File> {
        if !self.state.borrow().has_folder {
            rt::create_dir_all(&self.dir).await?;
            self.state.borrow_mut().has_folder = true;
        }
        let open = File::create(&file.path).await?;
        open.allocate(length).await?;
        let mut block = open.buffer(BLOCK_BYTES);
        let header = Header {
            id: file.id,
            nonce: file.nonce.get(),
        };
        header.encode(&mut block);
        open.write_at(block, 0).await?;
        open.sync().await?;
        if !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        Ok(open)
    }

    async fn append(&self, file: &HintFile, records: &[Record], bytes: u64) -> Kept {
        let Some(open) = file.file.borrow().clone() else {
            unreachable!("a file that was chosen takes more");
        };
        let offset = file.end.get();
        if let Err(kept) = self.take_space(file, &open, offset + bytes).await {
            return kept;
        }
        let now = rt::wall_ms();
        let mut block = open.buffer(bytes as usize);
        format::encode(records, now, (file.nonce.get(), offset), &mut block);
        let mut written = open.write_at(block, offset).await;
        if written.is_ok() && !rt::planted(Bug::HintUnsynced) {
            written = open.sync().await;
        }
        match written {
            Ok(()) => {
                file.end.set(offset + bytes);
                file.note_kept(records.len() as u64, now);
                Kept::Synced
            }
            Err(error) => {
                // What a sync that failed has left undurable no later one makes durable.
                drop(open);
                file.seal();
                self.warn(format_args!("{error}: some hints may not be kept"));
                Kept::Uncertain
            }
        }
    }

    /// Sees to it that what is written to `file` up to `end` finds space; or nothing is written.
    async fn take_space(&self, file: &HintFile, open: &File, end: u64) -> Result<(), Kept> {
        let allocated = file.allocated.get();
        if end <= allocated {
            return Ok(());
        }
        let Some(length) = self.step_to(end, allocated) else {
            self.warn("hints have come to `hint-max-bytes`: what comes now is not kept");
            return Err(Kept::Refused);
        };
        if let Err(error) = open.allocate(length).await {
            self.give_back(length - allocated);
            self.warn(format_args!("{error}: hints are not kept"));
            return Err(Kept::Refused);
        }
        file.allocated.set(length);
        Ok(())
    }

    /// How long a file of `allocated` bytes becomes that is to have `needed`: the difference is
    /// taken from what all files may have. `None`: there is not so much left.
    fn step_to(&self, needed: u64, allocated: u64) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        let left = self.limits.bytes_max.saturating_sub(state.bytes);
        let step = needed.next_multiple_of(STEP_BYTES.min(self.limits.file_bytes));
        let length = match step - allocated <= left {
            true => step,
            false => needed,
        };
        let more = length - allocated;
        if more > left {
            return None;
        }
        state.bytes += more;
        Some(length)
    }

    pub(super) fn give_back(&self, bytes: u64) {
        let mut state = self.state.borrow_mut();
        state.bytes = state.bytes.saturating_sub(bytes);
    }
}
