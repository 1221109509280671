//! The supply of log segments. Those of the write-ahead log are filled with zeros once; those of
//! the value log, which are kept for long, only have their space taken. Both are used again and
//! again.
//!
//! A segment gets its number (file name and header) and is synced, with its directory, before it
//! is offered as the spare; so a batch in it never depends on metadata that is not yet durable.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::Admission;
use super::format::{Life, SegmentId, Stream, encode_segment_header};
use super::replay::Found;
use crate::error::{Error, Result};
use crate::rt::sync::Signal;
use crate::rt::{self, BLOCK_BYTES, Bug, File, WriteBuffer};

/// Old segments kept for reuse; more are removed.
const POOL_SEGMENTS_MAX: usize = 4;
/// The same for the value log, whose segments are larger.
const POOL_VALUES_MAX: usize = 1;
/// How long after a refusal the disk is asked again, unless space is seen to come back.
const RETRY: Duration = Duration::from_millis(500);
const FILL_BYTES: usize = 1 << 20;

/// An open segment.
pub struct Segment {
    /// Its number.
    pub id: SegmentId,
    /// What its batches bear.
    pub life: Life,
    /// Its file.
    pub file: File,
    /// Its size.
    pub bytes: u64,
}

/// Makes spare segments.
pub struct Supply {
    dir: PathBuf,
    stream: Stream,
    segment_bytes: u64,
    state: RefCell<State>,
    signal: Signal,
}

struct State {
    id_next: SegmentId,
    spare: Option<Segment>,
    /// Files of `segment_bytes` whose contents nobody needs.
    pool: Vec<PathBuf>,
    /// Files to be removed.
    surplus: Vec<PathBuf>,
    /// The largest batch that somebody waits to write.
    room_wanted: u64,
    /// There was to be no segment that takes a batch of so many bytes, and why.
    refused: Option<(u64, Admission)>,
    stopping: bool,
}

impl State {
    /// A segment of `bytes` cannot be made.
    fn refuse(&mut self, bytes: u64, error: &Error) {
        self.refused = Some((bytes - BLOCK_BYTES as u64, Admission::after(error)));
        // Whoever wanted so much is refused; an ordinary segment does for all the others.
        self.room_wanted = 0;
    }
}

impl Supply {
    /// A supply of segments for a log in `dir`, behind what was `found` there.
    pub fn new(dir: PathBuf, stream: Stream, segment_bytes: u64, found: &Found) -> Supply {
        let state = State {
            id_next: found.segment_next,
            spare: None,
            pool: Vec::new(),
            surplus: found.blank.clone(),
            room_wanted: 0,
            refused: None,
            stopping: false,
        };
        Supply {
            dir,
            stream,
            segment_bytes,
            state: RefCell::new(state),
            signal: Signal::default(),
        }
    }

    /// True if there is a spare, or the disk has refused one.
    pub fn is_decided(&self) -> bool {
        let state = self.state.borrow();
        state.spare.is_some() || state.refused.is_some()
    }

    /// True while there is no spare, for the disk refuses it.
    pub fn is_refused(&self) -> bool {
        let state = self.state.borrow();
        state.spare.is_none() && state.refused.is_some()
    }

    /// What those are told who want to write a batch of `bytes`, while there is to be no segment
    /// for it.
    pub fn refusal(&self, bytes: u64) -> Option<Admission> {
        let state = self.state.borrow();
        let (refused, admission) = state.refused?;
        (bytes >= refused || state.spare.is_none()).then_some(admission)
    }

    /// The largest batch that the spare takes; 0 without a spare.
    pub fn spare_room(&self) -> u64 {
        self.state
            .borrow()
            .spare
            .as_ref()
            .map_or(0, |spare| spare.bytes - BLOCK_BYTES as u64)
    }

    /// The number that the next segment will get.
    pub fn id_next(&self) -> SegmentId {
        let state = self.state.borrow();
        state.spare.as_ref().map_or(state.id_next, |spare| spare.id)
    }

    /// An aligned buffer, while there is no current segment.
    pub fn buffer(&self, bytes: usize) -> WriteBuffer {
        let state = self.state.borrow();
        state
            .spare
            .as_ref()
            .expect("admitted batches fit the spare")
            .file
            .buffer(bytes)
    }

    /// Notes that a batch of `bytes` waits for room.
    pub fn ask_for(&self, bytes: u64) {
        let mut state = self.state.borrow_mut();
        if bytes > state.room_wanted {
            state.room_wanted = bytes;
            drop(state);
            self.signal.wake_all();
        }
    }

    /// Hands out the spare.
    pub fn take_spare(&self) -> Option<Segment> {
        let spare = self.state.borrow_mut().spare.take();
        self.signal.wake_all();
        spare
    }

    /// Takes back a segment that this log does not need. Those of the value log have other users.
    pub fn recycle(&self, segment: Rc<Segment>) {
        if self.stream != Stream::Records {
            return;
        }
        let mut state = self.state.borrow_mut();
        let path = segment.file.path().to_owned();
        if segment.bytes == self.segment_bytes && state.pool.len() < POOL_SEGMENTS_MAX {
            state.pool.push(path);
        } else {
            state.surplus.push(path);
        }
        drop(state);
        self.signal.wake_all();
    }

    /// Keeps the file of a segment of the value log for reuse, and says whether it does. A file
    /// with two names is somebody else's, too.
    pub fn keep(&self, segment: &Segment) -> bool {
        let mut state = self.state.borrow_mut();
        let is_wanted = segment.bytes == self.segment_bytes && state.pool.len() < POOL_VALUES_MAX;
        let is_kept = is_wanted && segment.file.has_one_name().is_ok_and(|has_one| has_one);
        if is_kept {
            state.pool.push(segment.file.path().to_owned());
        }
        is_kept
    }

    /// Ends [`Supply::wanted`].
    pub fn stop(&self) {
        self.state.borrow_mut().stopping = true;
        self.signal.wake_all();
    }

    /// Waits until there is something to do; false: stop.
    pub async fn wanted(&self) -> bool {
        self.signal
            .wait_for(|| {
                let state = self.state.borrow();
                if state.stopping {
                    return Some(false);
                }
                let too_small = match &state.spare {
                    None => true,
                    Some(spare) => spare.bytes - (BLOCK_BYTES as u64) < state.room_wanted,
                };
                (too_small || !state.surplus.is_empty()).then_some(true)
            })
            .await
    }

    /// Waits a little before the disk is asked again.
    pub async fn pause(&self) {
        rt::sleep(RETRY).await;
        let mut state = self.state.borrow_mut();
        if state.spare.is_some() {
            // Only something larger was refused. Whoever still wants it asks again.
            state.refused = None;
        }
    }

    /// Removes what is surplus and makes a spare if there is none that suffices.
    pub async fn prepare(&self) -> Result<()> {
        let removed = self.remove_surplus().await;
        let (bytes, id) = {
            let mut state = self.state.borrow_mut();
            let wanted = state.room_wanted + BLOCK_BYTES as u64;
            if state
                .spare
                .as_ref()
                .is_some_and(|spare| spare.bytes >= wanted)
            {
                state.refused = None;
                return removed;
            }
            let bytes = self.segment_bytes.max(wanted);
            if let Err(error) = removed {
                state.refuse(bytes, &error); // nothing is made beside what must go
                return Err(error);
            }
            let id = state.id_next;
            state.id_next = SegmentId(id.0 + 1);
            (bytes, id)
        };
        let path = self.dir.join(id.file_name(self.stream));
        match self.make(&path, id, bytes).await {
            Ok(segment) => {
                let mut state = self.state.borrow_mut();
                if bytes >= state.room_wanted + BLOCK_BYTES as u64 {
                    state.room_wanted = 0;
                }
                state.refused = None;
                if let Some(small) = state.spare.replace(segment) {
                    state.surplus.push(small.file.path().to_owned());
                }
                Ok(())
            }
            Err(error) => {
                // It may not even exist. That it is gone is made sure of before the next one is
                // made.
                let _ = rt::remove_file(&path).await;
                let mut state = self.state.borrow_mut();
                state.surplus.push(path);
                state.refuse(bytes, &error);
                Err(error)
            }
        }
    }

    /// Removes, durably, what must not be found beside a segment that is made later: a file that
    /// was never finished is told from one that was cut short by being the last.
    async fn remove_surplus(&self) -> Result<()> {
        let mut is_changed = false;
        loop {
            let Some(path) = self.state.borrow().surplus.last().cloned() else {
                break;
            };
            match rt::remove_file(&path).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => is_changed = true,
            }
            self.state
                .borrow_mut()
                .surplus
                .retain(|other| *other != path);
        }
        if is_changed && !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        Ok(())
    }

    async fn make(&self, path: &Path, id: SegmentId, bytes: u64) -> Result<Segment> {
        let used = (bytes == self.segment_bytes)
            .then(|| self.state.borrow_mut().pool.pop())
            .flatten();
        let life = Life(rt::random());
        let file = match used {
            // The header first: a file whose name says that it is needed never has an old one.
            Some(old) => {
                let mut begun = self.begin_again(&old, id, bytes, life).await;
                if begun.is_ok() {
                    begun = rt::rename(&old, path).await;
                }
                if let Err(error) = begun {
                    self.state.borrow_mut().surplus.push(old);
                    return Err(error);
                }
                File::open(path).await?
            }
            None => {
                let file = File::create(path).await?;
                match self.stream {
                    Stream::Records => fill(&file, bytes).await?,
                    Stream::Values | Stream::Moved => file.allocate(bytes).await?,
                }
                self.begin(&file, id, bytes, life).await?;
                file
            }
        };
        if !rt::planted(Bug::NoDirectorySync) {
            rt::sync_dir(&self.dir).await?;
        }
        Ok(Segment {
            id,
            life,
            file,
            bytes,
        })
    }

    /// Gives a file that was used before its header, durably.
    async fn begin_again(&self, old: &Path, id: SegmentId, bytes: u64, life: Life) -> Result<()> {
        let file = File::open(old).await?;
        let begun = self.begin(&file, id, bytes, life).await;
        file.close().await;
        begun
    }

    /// Gives a file its header, durably.
    async fn begin(&self, file: &File, id: SegmentId, bytes: u64, life: Life) -> Result<()> {
        let mut block = file.buffer(BLOCK_BYTES);
        encode_segment_header(self.stream, id, bytes, life, &mut block);
        file.write_at(block, 0).await?;
        file.sync().await
    }
}

async fn fill(file: &File, bytes: u64) -> Result<()> {
    let mut position = 0;
    while position < bytes {
        let length = (bytes - position).min(FILL_BYTES as u64) as usize;
        let mut zeros = file.buffer(length);
        zeros.fill(0);
        file.write_at(zeros, position).await?;
        position += length as u64;
        rt::yield_if_needed().await;
    }
    Ok(())
}
