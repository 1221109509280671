//! Reading the log back: every batch from the manifest's floor on, in order, up to the torn tail.
//!
//! What ends the log: a batch that is missing or broken, with no later batch that knew it to be
//! durable. If a later one did, then acknowledged writes are gone: that is damage, and the core
//! does not open. (A segment is begun only when all before it is synced, so a gap before its first
//! batch always has such a witness.) A later segment that begins at or before the gap was begun by
//! an earlier recovery, which had cut the tail there.
//!
//! The one batch whose damage cannot be told from a torn write is the very last one of the log.
//!
//! What was read is made durable before it is shown to anybody: after a mere process crash it may not
//! have been. It is written once more for that, the same bytes in their place: had a sync failed in
//! the life before, then the system may take for clean what never came to the disk, and another sync
//! alone would prove nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, Entry, Life, SegmentHeader, SegmentId, batch_is_intact,
    decode_batch_header, decode_life, decode_segment_bytes, decode_segment_header, padded,
    take_entry,
};
use super::segment::Segment;
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File, ReadBuffer};

const READ_BYTES: usize = 1 << 20;

/// Where the log begins: what the manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The oldest segment that is needed.
    pub segment: SegmentId,
    /// The number of its first batch.
    pub sequence: u64,
}

/// What was found.
pub struct Found {
    /// Segments that hold something, oldest first, each with the number of its first batch.
    pub segments: Vec<(Segment, u64)>,
    /// Segment files that hold nothing of use.
    pub blank: Vec<PathBuf>,
    /// The number of the next batch.
    pub sequence_next: u64,
    /// The number of the next segment.
    pub segment_next: SegmentId,
}

impl Found {
    /// The files of all segments.
    pub fn paths(&self) -> Vec<PathBuf> {
        let used = self
            .segments
            .iter()
            .map(|(segment, _)| segment.file.path().to_owned());
        used.chain(self.blank.iter().cloned()).collect()
    }
}

/// Reads the log in `dir` from `floor` on and gives every entry to `each`, in order.
pub async fn replay(
    dir: &Path,
    floor: Floor,
    mut each: impl FnMut(Entry<'_>) -> Result<()>,
) -> Result<Found> {
    let names = rt::list_dir(dir).await?;
    let mut ids: Vec<_> = names
        .iter()
        .filter_map(|name| SegmentId::from_file_name(name))
        .collect();
    ids.sort();
    let after = |id: &SegmentId| SegmentId(id.0 + 1);
    let last = ids.last().copied();
    let mut found = Found {
        segments: Vec::new(),
        blank: Vec::new(),
        sequence_next: floor.sequence,
        segment_next: ids.last().map_or(floor.segment, after).max(floor.segment),
    };
    // Where the log could not be read on, if there was such a place.
    let mut torn: Option<(PathBuf, u64)> = None;
    for id in ids {
        let path = dir.join(id.file_name());
        let mut reader = SegmentReader::open(&path, id).await?;
        let is_needed = id >= floor.segment;
        let holds_needed = reader
            .misnamed()
            .is_some_and(|named| named >= floor.segment);
        let first = match is_needed || holds_needed {
            true => reader.first(floor).await?,
            false => None,
        };
        reader.check_file(floor, first.is_some(), Some(id) == last)?;
        if !is_needed {
            found.blank.push(path);
            reader.segment.file.close().await;
            continue;
        }
        let first = match first {
            Some((first, _)) if first <= found.sequence_next => first,
            Some((_, at)) => {
                // Either the last segment lacks its end or this one its beginning.
                let here = (path.clone(), BLOCK_BYTES as u64);
                let place = torn.clone().filter(|_| at == here.1).unwrap_or(here);
                reader.check_gap(found.sequence_next, place).await?;
                found.blank.push(path);
                reader.segment.file.close().await;
                continue;
            }
            None => {
                // If something follows, then what is missing was here.
                torn = Some((path.clone(), BLOCK_BYTES as u64));
                found.blank.push(path);
                reader.segment.file.close().await;
                continue;
            }
        };
        found.sequence_next = reader.deliver(first, &mut each).await?;
        reader.check_tail(found.sequence_next).await?;
        torn = Some((path, reader.position));
        reader.make_durable().await?;
        found.segments.push((reader.segment, first));
    }
    Ok(found)
}

/// Reads one segment, block by block.
struct SegmentReader {
    segment: Segment,
    header: SegmentHeader,
    /// What its batches bear; unknown if its header is broken.
    life: Option<Life>,
    /// How long the file was made, by its header.
    bytes_wanted: Option<u64>,
    /// Where the next batch is expected.
    position: u64,
    /// Number and place of the batches of which no later one says that they were durable.
    unproven: VecDeque<(u64, u64)>,
    window: Window,
}

/// A piece of the file in memory.
struct Window {
    start: u64,
    bytes: ReadBuffer,
}

impl SegmentReader {
    async fn open(path: &Path, id: SegmentId) -> Result<SegmentReader> {
        let file = File::open(path).await?;
        let bytes = file.len().await?;
        let window = Window {
            start: 0,
            bytes: file.read_at(0, READ_BYTES).await?,
        };
        Ok(SegmentReader {
            header: decode_segment_header(&window.bytes),
            life: decode_life(&window.bytes),
            bytes_wanted: decode_segment_bytes(&window.bytes),
            segment: Segment {
                id,
                life: decode_life(&window.bytes).unwrap_or(Life(0)),
                file,
                bytes,
            },
            position: BLOCK_BYTES as u64,
            unproven: VecDeque::new(),
            window,
        })
    }

    /// Sees whether this file can be what its name says: whole, and no other segment.
    fn check_file(&self, floor: Floor, is_used: bool, is_last: bool) -> Result<()> {
        let (id, bytes) = (self.segment.id, self.segment.bytes);
        match self.header {
            SegmentHeader::Newer(format) => {
                return Err(Error::Setup(format!(
                    "{} was written by a newer Quoit (log format {format}); start that version",
                    self.segment.file.path().display()
                )));
            }
            // Recycling gives a file of below the floor a new header, and then a new name. A crash may
            // leave the former without the latter, but then nothing has been written to it.
            SegmentHeader::Valid(named) => {
                if named != id && (is_used || id >= floor.segment) {
                    let why = format!("it holds {}", named.file_name());
                    return Err(self.damaged(0, &why));
                }
            }
            // A segment is begun only once its header is durable, so a bad one belongs to a
            // segment that was never used, or it is damaged.
            SegmentHeader::Unreadable => {
                if is_used {
                    return Err(self.damaged(0, "its header is broken, but it is in use"));
                }
            }
        }
        // Each is whole and durable before it is used, and before the next one is made.
        let wanted = self.bytes_wanted.unwrap_or(BLOCK_BYTES as u64);
        if id >= floor.segment && bytes < wanted && (is_used || !is_last) {
            let why = format!("it is {bytes} bytes long and should be {wanted}");
            return Err(self.damaged(bytes, &why));
        }
        Ok(())
    }

    /// The segment that this file holds by its header, if that is not what it is called by.
    fn misnamed(&self) -> Option<SegmentId> {
        match self.header {
            SegmentHeader::Valid(named) => (named != self.segment.id).then_some(named),
            SegmentHeader::Newer(_) | SegmentHeader::Unreadable => None,
        }
    }

    /// The number and the place of the first batch that can be read, if there is any. If nothing says
    /// which life this is, then those do not count that are of before the floor.
    async fn first(&mut self, floor: Floor) -> Result<Option<(u64, u64)>> {
        let is_known = self.life.is_some();
        let counts = |header: BatchHeader| is_known || header.sequence >= floor.sequence;
        let found = self.find_from(BLOCK_BYTES as u64, counts).await;
        Ok(found?.map(|(header, at)| (header.sequence, at)))
    }

    /// Gives out all batches from `position` on that follow each other; returns the next number.
    async fn deliver(
        &mut self,
        first: u64,
        each: &mut impl FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<u64> {
        let mut expected = first;
        while let Some(header) = self.header_at(self.position).await? {
            let batch = self.batch_at(self.position, header).await?;
            let intact = batch.is_some_and(|batch| batch_is_intact(header, batch));
            let skip_check = batch.is_some() && rt::planted(Bug::ReplayPastTornTail);
            if header.sequence != expected || !(intact || skip_check) {
                break;
            }
            let batch = batch.unwrap_or_default();
            let mut entries = &batch[BATCH_HEADER_BYTES..][..header.length as usize];
            while !entries.is_empty() {
                let Some(entry) = take_entry(&mut entries) else {
                    if skip_check {
                        break;
                    }
                    return Err(self.damaged(self.position, "an entry is malformed"));
                };
                each(entry)?;
            }
            while self
                .unproven
                .front()
                .is_some_and(|(sequence, _)| *sequence <= header.synced)
            {
                self.unproven.pop_front();
            }
            self.unproven.push_back((expected, self.position));
            expected += 1;
            self.position += padded(BATCH_HEADER_BYTES + header.length as usize) as u64;
            rt::yield_if_needed().await;
        }
        Ok(expected)
    }

    /// Writes and syncs what may not be durable yet.
    async fn make_durable(&mut self) -> Result<()> {
        let mut from = self.unproven.front().map_or(self.position, |(_, at)| *at);
        while from < self.position {
            let length = (self.position - from).min(READ_BYTES as u64) as usize;
            let bytes = self.segment.file.read_at(from, length).await?;
            let mut buffer = self.segment.file.buffer(length);
            buffer.copy_from_slice(&bytes[..length]);
            self.segment.file.write_at(buffer, from).await?;
            from += length as u64;
        }
        self.segment.file.sync().await
    }

    /// Fails if something behind `position` proves that batch `expected` had been durable.
    async fn check_tail(&mut self, expected: u64) -> Result<()> {
        let place = (self.segment.file.path().to_owned(), self.position);
        self.check_gap(expected, place).await
    }

    /// Fails, naming `place`, if something in the rest of this segment proves that batch
    /// `expected`, which is not there, had been durable.
    async fn check_gap(&mut self, expected: u64, place: (PathBuf, u64)) -> Result<()> {
        let proves = |header: BatchHeader| header.synced >= expected && header.sequence > expected;
        let Some((witness, _)) = self.find_from(self.position, proves).await? else {
            return Ok(());
        };
        let (file, offset) = place;
        let why = format!(
            "batch {expected} cannot be read, but batch {} behind it says that it was durable",
            witness.sequence
        );
        Err(Error::Corrupt { file, offset, why })
    }

    /// The first intact batch at or behind `position`, on any block, that `matches`, and its place.
    async fn find_from(
        &mut self,
        position: u64,
        matches: impl Fn(BatchHeader) -> bool,
    ) -> Result<Option<(BatchHeader, u64)>> {
        let mut position = position;
        while position + BLOCK_BYTES as u64 <= self.segment.bytes {
            if let Some(header) = self.header_at(position).await?
                && matches(header)
                && let Some(batch) = self.batch_at(position, header).await?
                && batch_is_intact(header, batch)
            {
                return Ok(Some((header, position)));
            }
            position += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    async fn header_at(&mut self, position: u64) -> Result<Option<BatchHeader>> {
        let life = self.life;
        let bytes = self.bytes_at(position, BLOCK_BYTES).await?;
        Ok(bytes.and_then(|bytes| decode_batch_header(bytes, life)))
    }

    /// The batch's bytes; `None` if it would reach beyond the segment.
    async fn batch_at(&mut self, position: u64, header: BatchHeader) -> Result<Option<&[u8]>> {
        self.bytes_at(
            position,
            padded(BATCH_HEADER_BYTES + header.length as usize),
        )
        .await
    }

    async fn bytes_at(&mut self, position: u64, length: usize) -> Result<Option<&[u8]>> {
        if length as u64 > self.segment.bytes.saturating_sub(position) {
            return Ok(None);
        }
        let end = position + length as u64;
        let window_end = self.window.start + self.window.bytes.len() as u64;
        if position < self.window.start || end > window_end {
            let bytes = self
                .segment
                .file
                .read_at(position, length.max(READ_BYTES))
                .await?;
            self.window = Window {
                start: position,
                bytes,
            };
        }
        let start = (position - self.window.start) as usize;
        Ok(self.window.bytes.get(start..start + length))
    }

    fn damaged(&self, offset: u64, why: &str) -> Error {
        let file = self.segment.file.path().to_owned();
        Error::Corrupt {
            file,
            offset,
            why: why.to_owned(),
        }
    }
}
