//! Reading a log to see whether it is what was written, and naming all that is not.
//!
//! This judges by the rule of `format` and `replay` (what cannot be read while a later batch says
//! that it was synced is damage, the rest is the torn end of a crash), but by code of its own: it
//! lists the batches of every segment first and looks at the list, and it goes on behind what it
//! finds. Nothing is written.
//!
//! What is replayed is one chain of batches over all segments from the floor on. A segment of the
//! value log that is not replayed any more stands for itself: no batch of another one is needed to
//! read it.

use std::path::Path;

use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, ENTRY_HEADER_BYTES, Entry, SegmentHeader, SegmentId, Stream,
    batch_is_intact, decode_batch_header, decode_life, decode_segment_bytes, decode_segment_header,
    padded, take_entry, take_numbered,
};
pub use super::replay::{End, suspects};
use super::replay::{Floor, holds_something, log_segments_of};
use crate::error::Result;
use crate::rt::{self, BLOCK_BYTES, File, ReadBuffer};
use crate::types::Lsn;

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where those who verify a log say what they see.
pub trait Witness {
    /// At this byte of the file something does not hold.
    fn damage(&mut self, file: &Path, offset: u64, what: String);
    /// What is no damage, but worth knowing.
    fn note(&mut self, file: &Path, offset: u64, what: String);
    /// A program of another version wrote this file.
    fn foreign(&mut self, file: &Path, format: u32);
    /// What a batch of this stream says. What is wrong with it, if the caller knows of something.
    fn entry(&mut self, stream: Stream, entry: &Entry<'_>) -> Option<String>;
    /// Replay takes in entries with these numbers, which do not fall, of a batch that says that all
    /// writes up to `durable` were so.
    fn replayed(&mut self, numbers: &[Lsn], durable: Lsn);
    /// So many more bytes have been seen.
    fn seen(&mut self, bytes: u64);
}

/// Verifies what replay reads of the log `stream` in `dir`: from `floor` on. Says where it may end.
pub async fn verify(
    dir: &Path,
    stream: Stream,
    floor: Floor,
    witness: &mut impl Witness,
) -> Result<Vec<End>> {
    let ids = log_segments_of(stream, floor, &rt::list_dir(dir).await?);
    let last = ids.last().copied();
    let mut chain = Chain {
        expected: floor.sequence,
        ends: Vec::new(),
    };
    for id in ids {
        // Files of the write-ahead log are used again: one of below the floor may hold what is
        // needed.
        if id < floor.segment && stream != Stream::Records {
            continue;
        }
        let path = dir.join(id.file_name(stream));
        let file = File::open_to_read(&path).await?;
        let segment = read_segment(&file, (stream, id), Some(floor), &mut *witness).await;
        file.close().await;
        let segment = segment?;
        let is_last = Some(id) == last;
        if segment.is_usable(&path, floor, is_last, witness) && id >= floor.segment {
            chain.take(&path, &segment, witness);
        }
    }
    Ok(chain.ends)
}

/// A segment of the value log that is not replayed, as the manifest has it.
pub struct Kept {
    /// Its stream.
    pub stream: Stream,
    /// Its number.
    pub id: SegmentId,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes of the records in it.
    pub written: u64,
}

/// Verifies a segment of the value log in `dir` by itself.
pub async fn verify_kept(dir: &Path, kept: &Kept, witness: &mut impl Witness) -> Result<()> {
    let path = dir.join(kept.id.file_name(kept.stream));
    let file = match File::open_to_read(&path).await {
        Ok(file) => file,
        Err(error) if error.is_not_found() => {
            let what = "the manifest lists it, and it is missing".to_owned();
            witness.damage(&path, 0, what);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let segment = read_segment(&file, (kept.stream, kept.id), None, &mut *witness).await;
    file.close().await;
    let segment = segment?;
    match segment.header {
        SegmentHeader::Other(format) => {
            witness.foreign(&path, format);
            return Ok(());
        }
        SegmentHeader::Valid(stream, id) if (stream, id) == (kept.stream, kept.id) => {}
        SegmentHeader::Valid(stream, id) => {
            witness.damage(&path, 0, format!("it holds {}", id.file_name(stream)));
        }
        SegmentHeader::Unreadable => {
            let what = "its header is broken, but it is in use".to_owned();
            witness.damage(&path, 0, what);
        }
    }
    if segment.bytes != kept.bytes {
        let (bytes, wanted) = (segment.bytes, kept.bytes);
        let what = format!("it is {bytes} bytes long and should be {wanted}");
        witness.damage(&path, bytes.min(wanted), what);
    }
    segment.judge_kept(&path, kept, witness);
    Ok(())
}

/// A batch that is whole.
struct Batch {
    at: u64,
    end: u64,
    header: BatchHeader,
    said: Said,
}

/// What a batch says.
#[derive(Default)]
struct Said {
    /// The places of its entries in the order of all writes.
    numbers: Vec<Lsn>,
    /// Bytes of its records, as the manifest counts them.
    record_bytes: u64,
    /// What is wrong with it.
    objection: Option<String>,
}

/// What a segment's file holds.
struct Segment {
    stream: Stream,
    id: SegmentId,
    bytes: u64,
    header: SegmentHeader,
    /// How long it should be, by its header.
    bytes_wanted: Option<u64>,
    /// Of the life that its header names; if that cannot be read, all that are not of before the
    /// floor.
    batches: Vec<Batch>,
    /// The blocks that hold something and belong to no whole batch of this segment, and to none
    /// that the file held in an earlier life.
    others: Vec<u64>,
}

/// A file, and a piece of it in memory.
struct Window<'a> {
    file: &'a File,
    start: u64,
    bytes: ReadBuffer,
}

impl Window<'_> {
    /// `length` bytes from `position` on, which the file has.
    async fn at(&mut self, position: u64, length: usize) -> Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if position < self.start || position + length as u64 > end {
            let wanted = length.max(READ_BYTES);
            self.bytes = self.file.read_at(position, wanted).await?;
            self.start = position;
            rt::yield_if_needed().await;
        }
        let from = (position - self.start) as usize;
        Ok(&self.bytes[from..(from + length).min(self.bytes.len())])
    }
}

async fn read_segment(
    file: &File,
    (stream, name): (Stream, SegmentId),
    floor: Option<Floor>,
    witness: &mut impl Witness,
) -> Result<Segment> {
    let bytes = file.len().await?;
    let first = file.read_at(0, BLOCK_BYTES).await?;
    let header = decode_segment_header(&first);
    let life = decode_life(&first);
    let counts = |header: &BatchHeader| {
        life.is_some() || floor.is_none_or(|floor| header.sequence >= floor.sequence)
    };
    let mut segment = Segment {
        stream,
        id: name,
        bytes,
        header,
        bytes_wanted: decode_segment_bytes(&first),
        batches: Vec::new(),
        others: Vec::new(),
    };
    witness.seen(BLOCK.min(bytes));
    let mut position = BLOCK;
    let mut window = Window {
        file,
        start: 0,
        bytes: file.read_at(0, READ_BYTES).await?,
    };
    while position + BLOCK <= bytes {
        let block = window.at(position, BLOCK_BYTES).await?;
        let mut next = position + BLOCK;
        let header = decode_batch_header(block, life).filter(counts);
        let length = header.map_or(0, |it| {
            padded(BATCH_HEADER_BYTES + it.length as usize) as u64
        });
        let is_other = holds_something(block, life);
        let mut is_whole = false;
        if let Some(header) = header.filter(|_| length <= bytes - position) {
            let batch = window.at(position, length as usize).await?;
            if batch_is_intact(header, batch) {
                is_whole = true;
                next = position + length;
                segment.batches.push(Batch {
                    at: position,
                    end: next,
                    header,
                    said: hear(stream, header, batch, witness),
                });
            }
        }
        if !is_whole && is_other {
            segment.others.push(position);
        }
        witness.seen(next - position);
        position = next;
    }
    Ok(segment)
}

/// What a whole batch says. What is wrong with it is a program error, or a forgery.
fn hear(stream: Stream, header: BatchHeader, batch: &[u8], witness: &mut impl Witness) -> Said {
    let mut entries = &batch[BATCH_HEADER_BYTES..][..header.length as usize];
    let mut count = 0;
    let mut said = Said::default();
    let object = |what: Option<String>, said: &mut Said| {
        said.objection = said.objection.take().or(what);
    };
    while !entries.is_empty() {
        let Some((number, entry)) = take_numbered(&mut entries) else {
            object(Some("an entry is malformed".to_owned()), &mut said);
            return said;
        };
        count += 1;
        let number = Lsn(header.first.0.saturating_add(u64::from(number)));
        if said.numbers.last() != Some(&number) {
            said.numbers.push(number);
        }
        if let Entry::Record(view) = &entry {
            said.record_bytes += (ENTRY_HEADER_BYTES + view.bytes().len()) as u64;
        }
        if let Entry::Prepare { mut parts, .. } = entry {
            while !parts.is_empty() {
                let Some(part @ (Entry::Record(_) | Entry::Clear(_))) = take_entry(&mut parts)
                else {
                    object(Some("a prepared part is malformed".to_owned()), &mut said);
                    return said;
                };
                object(witness.entry(stream, &part), &mut said);
            }
        }
        object(witness.entry(stream, &entry), &mut said);
    }
    let counted = (count != header.entries)
        .then(|| format!("it has {count} entries and says {}", header.entries));
    object(counted, &mut said);
    said
}

impl Segment {
    /// Judges the file as such. False: what is in it is not the log's.
    fn is_usable(
        &self,
        path: &Path,
        floor: Floor,
        is_last: bool,
        witness: &mut impl Witness,
    ) -> bool {
        let is_needed = self.id >= floor.segment;
        match self.header {
            SegmentHeader::Other(format) => {
                witness.foreign(path, format);
                return false;
            }
            // A crash may leave a recycled file with its new header and its old name; but then
            // nothing has been written to it.
            SegmentHeader::Valid(stream, named)
                if (stream, named) != (self.stream, self.id)
                    && (is_needed
                        || ((stream != self.stream || named >= floor.segment)
                            && !self.batches.is_empty())) =>
            {
                let what = format!("it holds {}", named.file_name(stream));
                witness.damage(path, 0, what);
            }
            SegmentHeader::Valid(..) => {}
            SegmentHeader::Unreadable if is_needed && !self.batches.is_empty() => {
                witness.damage(path, 0, "its header is broken, but it is in use".to_owned());
            }
            _ => {}
        }
        let wanted = self.bytes_wanted.unwrap_or(BLOCK);
        let is_short = self.bytes < wanted;
        // Each is made whole before the next one is begun, and before it is used.
        if is_needed && is_short && (!is_last || !self.batches.is_empty()) {
            let what = format!("it is {} bytes long and should be {wanted}", self.bytes);
            witness.damage(path, self.bytes, what);
        }
        true
    }

    /// The end of a log that ends here.
    fn end(&self, path: &Path, offset: u64) -> End {
        End {
            file: path.to_owned(),
            offset,
            is_torn: self.others.contains(&offset),
        }
    }

    /// Judges the batches of a segment that is not replayed.
    fn judge_kept(&self, path: &Path, kept: &Kept, witness: &mut impl Witness) {
        let mut position = BLOCK;
        let mut expected = None;
        let mut found = 0;
        for (index, batch) in self.batches.iter().enumerate() {
            // Which was the first, only that one itself says; the one before this was here, too.
            let wanted = expected.unwrap_or(batch.header.sequence - u64::from(batch.at != BLOCK));
            if batch.at != position || batch.header.sequence != wanted {
                let Some(proof) = proof(&self.batches[index..], wanted) else {
                    break;
                };
                witness.damage(path, position, missing(wanted, proof));
            }
            if let Some(what) = &batch.said.objection {
                witness.damage(path, batch.at, what.clone());
            }
            found += batch.said.record_bytes;
            expected = Some(batch.header.sequence + 1);
            position = batch.end;
        }
        // What a table points to is looked at from there. Of what was only being moved at a crash
        // the manifest may count what never came to the disk.
        if found < kept.written {
            let what = format!(
                "{} bytes of the records that the manifest counts cannot be read",
                kept.written - found
            );
            witness.note(path, position, what);
        }
    }
}

/// The log as far as it has been read.
struct Chain {
    /// The number of the next batch.
    expected: u64,
    /// Where it could not be read on: in the last segment that holds something, or in those behind
    /// it.
    ends: Vec<End>,
}

impl Chain {
    fn take(&mut self, path: &Path, segment: &Segment, witness: &mut impl Witness) {
        let Some(first) = segment.batches.first() else {
            // If something follows, then what is missing was here.
            self.ends.push(segment.end(path, BLOCK));
            return;
        };
        let mut position = BLOCK;
        if first.header.sequence > self.expected {
            // Either the last segment lacks its end or this one its beginning.
            let here = (path.to_owned(), BLOCK);
            let before = self.ends.last().filter(|_| first.at == BLOCK);
            let place = before.map_or(here, |end| (end.file.clone(), end.offset));
            let Some(proof) = proof(&segment.batches, self.expected) else {
                let what = "nothing says that it was synced, and its beginning is torn".to_owned();
                witness.note(path, BLOCK, what);
                return;
            };
            witness.damage(&place.0, place.1, missing(self.expected, proof));
            position = first.at;
        }
        self.expected = first.header.sequence;
        for (index, batch) in segment.batches.iter().enumerate() {
            if batch.at != position || batch.header.sequence != self.expected {
                let Some(proof) = proof(&segment.batches[index..], self.expected) else {
                    break;
                };
                witness.damage(path, position, missing(self.expected, proof));
            }
            if let Some(what) = &batch.said.objection {
                witness.damage(path, batch.at, what.clone());
            }
            witness.replayed(&batch.said.numbers, batch.header.durable);
            self.expected = batch.header.sequence + 1;
            position = batch.end;
        }
        let end = segment.end(path, position);
        let is_torn = end.is_torn;
        self.ends = vec![end];
        if is_torn {
            let what = "the log ends here; what follows is the torn end of a crash, or from an \
                        earlier life of the file";
            witness.note(path, position, what.to_owned());
        }
    }
}

/// A batch that says that batch `expected`, which is not there, was synced.
fn proof(batches: &[Batch], expected: u64) -> Option<u64> {
    let proves =
        |batch: &&Batch| batch.header.synced >= expected && batch.header.sequence > expected;
    batches
        .iter()
        .find(proves)
        .map(|batch| batch.header.sequence)
}

fn missing(expected: u64, proof: u64) -> String {
    format!("batch {expected} cannot be read, but batch {proof} behind it says that it was durable")
}
