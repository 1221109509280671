//! Reading a log back: every batch from the manifest's floor on, in order, up to the torn tail.
//!
//! What ends the log: a batch that is missing or broken, with no later batch that knew it to be
//! durable. If a later one did, then acknowledged writes are gone: that is damage, and the core
//! does not open. (A segment is begun only when all before it is synced, so a gap before its first
//! batch always has such a witness.) A later segment that begins at or before the gap was begun by
//! an earlier recovery, which had cut the tail there.
//!
//! A batch's damage that no later batch of its log tells from a torn write may still be told by
//! another log, which says what of all writes was durable ([`Found::durable`]): who reads all logs
//! of a core judges that.
//!
//! What was read is made durable before it is shown to anybody: after a mere process crash it may
//! not have been. It is written once more for that, the same bytes in their place: had a sync
//! failed in the life before, then the system may take for clean what never came to the disk, and
//! another sync alone would prove nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, ENTRY_HEADER_BYTES, Entry, Life, SegmentHeader, SegmentId,
    Stream, batch_is_intact, decode_batch_header, decode_life, decode_segment_bytes,
    decode_segment_header, padded, take_numbered,
};
use super::segment::Segment;
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File, ReadBuffer};
use crate::types::{CoreId, Lsn};

/// A segment is read in pieces of this size, and what may not be durable of it written again in
/// such pieces; a batch that is larger in one. It is memory for as long as a segment is read.
const READ_BYTES: usize = 4 << 20;
/// Where a segment's number says whose it is.
const CORE_SHIFT: u32 = 48;
const STREAM_SHIFT: u32 = 44;

/// Where the log begins: what the manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The oldest segment that is needed.
    pub segment: SegmentId,
    /// The number of its first batch.
    pub sequence: u64,
}

impl Floor {
    /// The floor of a log of `core` that nothing was written to. No two logs have a segment of the
    /// same number, so that neither a file nor a batch that strays from one into another is taken
    /// for its own.
    pub fn start(core: CoreId, stream: Stream) -> Floor {
        let log = u64::from(core.0) << CORE_SHIFT | u64::from(stream.number()) << STREAM_SHIFT;
        Floor {
            segment: SegmentId(log | 1),
            sequence: 1,
        }
    }

    /// True if this segment is one of this log, and not of the same stream of another core: such
    /// ones lie beside a core's own after a re-sharding, to be read by pointers only.
    pub fn is_own(&self, id: SegmentId) -> bool {
        id.0 >> STREAM_SHIFT == self.segment.0 >> STREAM_SHIFT
    }

    /// True if a log that begins here has this segment.
    pub fn covers(&self, id: SegmentId) -> bool {
        self.is_own(id) && id >= self.segment
    }
}

/// A segment that holds something.
pub struct FoundSegment {
    /// The segment.
    pub segment: Rc<Segment>,
    /// The number of its first batch.
    pub first: u64,
    /// Its last entry's place in the order of all writes.
    pub last: Lsn,
}

/// An entry that was read.
pub struct Read<'a> {
    /// Its place in the order of all writes.
    pub lsn: Lsn,
    /// The segment that it is in.
    pub segment: SegmentId,
    /// Its body's first byte in the segment's file.
    pub offset: u64,
    /// What it says.
    pub entry: Entry<'a>,
}

/// What was found.
pub struct Found {
    /// Segments that hold something, oldest first.
    pub segments: Vec<FoundSegment>,
    /// Segment files that hold nothing of use.
    pub blank: Vec<PathBuf>,
    /// The number of the next batch.
    pub sequence_next: u64,
    /// The number of the next segment.
    pub segment_next: SegmentId,
    /// Every write up to here, in whichever log, was durable: so says a batch.
    pub durable: Lsn,
    /// Where it could not be read on: in the last segment that holds something, or in those behind
    /// it.
    pub ends: Vec<End>,
}

/// A place where a log may end.
#[derive(Clone)]
pub struct End {
    /// A segment.
    pub file: PathBuf,
    /// The first byte that no batch of it covers.
    pub offset: u64,
    /// Something is there that is no batch, nor from an earlier life of the file.
    pub is_torn: bool,
}

impl Found {
    /// A log of which nothing is read: it goes on behind `floor`, and behind those of the segments
    /// `ids` that are its own.
    pub fn nothing(floor: Floor, ids: impl Iterator<Item = SegmentId>) -> Found {
        let own = ids.filter(|id| floor.is_own(*id));
        let next = own.map(|id| SegmentId(id.0 + 1)).max();
        Found {
            segments: Vec::new(),
            blank: Vec::new(),
            sequence_next: floor.sequence,
            segment_next: next.map_or(floor.segment, |next| next.max(floor.segment)),
            durable: Lsn(0),
            ends: Vec::new(),
        }
    }

    /// The place of the last entry that was found.
    pub fn last(&self) -> Lsn {
        let last = self.segments.iter().map(|found| found.last).max();
        last.unwrap_or(Lsn(0))
    }

    /// The files of all segments.
    pub fn paths(&self) -> Vec<PathBuf> {
        let used = self
            .segments
            .iter()
            .map(|found| found.segment.file.path().to_owned());
        used.chain(self.blank.iter().cloned()).collect()
    }
}

/// The segments of `stream` among the names in a directory, in order.
pub fn segments_of(stream: Stream, names: &[String]) -> Vec<SegmentId> {
    let id = |name: &String| SegmentId::from_file_name(stream, name);
    let mut ids: Vec<_> = names.iter().filter_map(id).collect();
    ids.sort();
    ids
}

/// The segments of `stream` among the names in a directory that those see who read its log from
/// `floor` on, in order.
pub fn log_segments_of(stream: Stream, floor: Floor, names: &[String]) -> Vec<SegmentId> {
    let mut ids = segments_of(stream, names);
    // Nobody else's write-ahead log is ever here: a stranger among them is looked at.
    ids.retain(|id| stream == Stream::Records || floor.is_own(*id));
    ids
}

/// Reads the log `stream` in `dir` from `floor` on and gives every entry to `each`, in order.
/// Segments below the floor are not touched.
pub async fn replay(
    dir: &Path,
    stream: Stream,
    floor: Floor,
    mut each: impl FnMut(Read<'_>) -> Result<()>,
) -> Result<Found> {
    let ids = log_segments_of(stream, floor, &rt::list_dir(dir).await?);
    let last = ids.last().copied();
    let mut found = Found::nothing(floor, ids.iter().copied());
    for id in ids {
        let is_needed = id >= floor.segment;
        if !is_needed && stream != Stream::Records {
            continue; // the value log's: read by others
        }
        let path = dir.join(id.file_name(stream));
        let mut reader = SegmentReader::open(&path, stream, id).await?;
        let holds_needed = reader
            .misnamed()
            .is_some_and(|(other, named)| other != stream || named >= floor.segment);
        let first = match is_needed || holds_needed {
            true => reader.first(floor).await?,
            false => None,
        };
        reader.check_file(floor, first.is_some(), Some(id) == last)?;
        if !is_needed {
            found.blank.push(path);
            continue;
        }
        let first = match first {
            Some((first, _)) if first <= found.sequence_next => first,
            Some((_, at)) => {
                // Either the last segment lacks its end or this one its beginning.
                let here = (path.clone(), BLOCK_BYTES as u64);
                let end = found.ends.last().filter(|_| at == here.1);
                let place = end.map_or(here, |end| (end.file.clone(), end.offset));
                reader.check_gap(found.sequence_next, place).await?;
                found.blank.push(path);
                continue;
            }
            None => {
                // If something follows, then what is missing was here.
                found.ends.push(reader.end().await?);
                found.blank.push(path);
                continue;
            }
        };
        found.sequence_next = reader.deliver(first, &mut each).await?;
        reader.check_tail(found.sequence_next).await?;
        found.ends = vec![reader.end().await?];
        found.durable = found.durable.max(reader.durable);
        reader.make_durable().await?;
        found.segments.push(FoundSegment {
            segment: reader.segment,
            first,
            last: reader.last,
        });
    }
    Ok(found)
}

/// Reads one segment, block by block.
pub struct SegmentReader {
    segment: Rc<Segment>,
    /// The log that it belongs to, by its name.
    stream: Stream,
    header: SegmentHeader,
    /// What its batches bear; unknown if its header is broken.
    life: Option<Life>,
    /// How long the file was made, by its header.
    bytes_wanted: Option<u64>,
    /// The place of the last entry that was read.
    last: Lsn,
    /// The highest of what its batches say to be durable.
    durable: Lsn,
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
    /// Reads `segment` from its first batch on.
    pub async fn of(stream: Stream, segment: Rc<Segment>) -> Result<SegmentReader> {
        let window = Window {
            start: 0,
            bytes: segment.file.read_at(0, READ_BYTES).await?,
        };
        Ok(SegmentReader {
            stream,
            header: decode_segment_header(&window.bytes),
            life: decode_life(&window.bytes),
            bytes_wanted: decode_segment_bytes(&window.bytes),
            segment,
            last: Lsn(0),
            durable: Lsn(0),
            position: BLOCK_BYTES as u64,
            unproven: VecDeque::new(),
            window,
        })
    }

    async fn open(path: &Path, stream: Stream, id: SegmentId) -> Result<SegmentReader> {
        let file = File::open(path).await?;
        let bytes = file.len().await?;
        let first = file.read_at(0, BLOCK_BYTES).await?;
        let segment = Segment {
            id,
            life: decode_life(&first).unwrap_or(Life(0)),
            file,
            bytes,
        };
        SegmentReader::of(stream, Rc::new(segment)).await
    }

    /// Sees whether this file can be what its name says: whole, and no other segment.
    fn check_file(&self, floor: Floor, is_used: bool, is_last: bool) -> Result<()> {
        let (id, bytes) = (self.segment.id, self.segment.bytes);
        match self.header {
            SegmentHeader::Other(format) => {
                return Err(other_format(self.segment.file.path(), format));
            }
            // Recycling gives a file of below the floor a new header, and then a new name. A crash
            // may leave the former without the latter, but then nothing has been written to it.
            SegmentHeader::Valid(..) => {
                if let Some((stream, named)) = self.misnamed()
                    && (is_used || id >= floor.segment)
                {
                    let why = format!("it holds {}", named.file_name(stream));
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
    fn misnamed(&self) -> Option<(Stream, SegmentId)> {
        match self.header {
            SegmentHeader::Valid(stream, named) => {
                ((stream, named) != (self.stream, self.segment.id)).then_some((stream, named))
            }
            SegmentHeader::Other(_) | SegmentHeader::Unreadable => None,
        }
    }

    /// The number and the place of the first batch that can be read, if there is any. If nothing
    /// says which life this is, then those do not count that are of before the floor.
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
        each: &mut impl FnMut(Read<'_>) -> Result<()>,
    ) -> Result<u64> {
        let mut expected = first;
        while let Some(header) = self.header_at(self.position).await? {
            if header.sequence != expected || !self.deliver_batch(header, each).await? {
                break;
            }
            while self
                .unproven
                .front()
                .is_some_and(|(sequence, _)| *sequence <= header.synced)
            {
                self.unproven.pop_front();
            }
            self.unproven.push_back((expected, self.position));
            self.durable = self.durable.max(header.durable);
            expected += 1;
            self.position += padded(BATCH_HEADER_BYTES + header.length as usize) as u64;
            rt::yield_if_needed().await;
        }
        Ok(expected)
    }

    /// Gives out the next batch, if there is one that is whole.
    pub async fn next_batch(
        &mut self,
        each: &mut impl FnMut(Read<'_>) -> Result<()>,
    ) -> Result<bool> {
        let Some(header) = self.header_at(self.position).await? else {
            return Ok(false);
        };
        let is_whole = self.deliver_batch(header, each).await?;
        self.position += padded(BATCH_HEADER_BYTES + header.length as usize) as u64;
        Ok(is_whole)
    }

    /// Gives out the entries of the batch at `position`; false if it is not whole.
    async fn deliver_batch(
        &mut self,
        header: BatchHeader,
        each: &mut impl FnMut(Read<'_>) -> Result<()>,
    ) -> Result<bool> {
        let (position, segment, mut last) = (self.position, self.segment.id, self.last);
        let end = BATCH_HEADER_BYTES + header.length as usize;
        let batch = match self.batch_at(position, header).await? {
            Some(batch) => batch,
            None => return Ok(false),
        };
        let intact = batch_is_intact(header, batch);
        if !intact && !rt::planted(Bug::ReplayPastTornTail) {
            return Ok(false);
        }
        let mut entries = &batch[BATCH_HEADER_BYTES..end];
        while !entries.is_empty() {
            let at = position + (end - entries.len()) as u64;
            let Some((number, entry)) = take_numbered(&mut entries) else {
                if !intact {
                    break;
                }
                return Err(damage(&self.segment, position, "an entry is malformed"));
            };
            last = Lsn(header.first.0.saturating_add(u64::from(number)));
            each(Read {
                lsn: last,
                segment,
                offset: at + ENTRY_HEADER_BYTES as u64,
                entry,
            })?;
        }
        self.last = self.last.max(last);
        Ok(true)
    }

    /// Where nothing more could be read.
    async fn end(&mut self) -> Result<End> {
        let (offset, life) = (self.position, self.life);
        let is_torn = match self.bytes_at(offset, BLOCK_BYTES).await? {
            Some(block) => holds_something(block, life),
            None => false,
        };
        Ok(End {
            file: self.segment.file.path().to_owned(),
            offset,
            is_torn,
        })
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

    /// An error about this segment.
    pub fn damaged(&self, offset: u64, why: &str) -> Error {
        damage(&self.segment, offset, why)
    }
}

/// Of the places where logs may end, those where something that was durable may have been: where
/// the end is torn, or, if it has left no trace, all.
pub fn suspects(mut ends: Vec<End>) -> Vec<End> {
    if ends.iter().any(|end| end.is_torn) {
        ends.retain(|end| end.is_torn);
    }
    ends
}

/// True if this block holds what is neither blank nor from an earlier life of the file.
pub fn holds_something(block: &[u8], life: Option<Life>) -> bool {
    let header = decode_batch_header(block, None);
    let is_older = header.is_some_and(|header| Some(header.life) != life);
    !is_older && block.iter().any(|&byte| byte != 0)
}

fn damage(segment: &Segment, offset: u64, why: &str) -> Error {
    Error::Corrupt {
        file: segment.file.path().to_owned(),
        offset,
        why: why.to_owned(),
    }
}

fn other_format(path: &Path, format: u32) -> Error {
    Error::Setup(format!(
        "{} was written by another version of Quoit (log format {format}); start that version",
        path.display()
    ))
}
