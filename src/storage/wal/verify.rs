//! Reading a log to see whether it is what was written, and naming all that is not.
//!
//! This judges by the rule of `format` and `replay` (what cannot be read while a later batch says that
//! it was synced is damage, the rest is the torn end of a crash), but by code of its own: it lists
//! the batches of every segment first and looks at the list, and it goes on behind what it finds.
//! Nothing is written.

use std::path::{Path, PathBuf};

use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, Entry, Life, SegmentHeader, SegmentId, batch_is_intact,
    decode_batch_header, decode_life, decode_segment_bytes, decode_segment_header, padded,
    take_entry,
};
use super::replay::Floor;
use crate::error::Result;
use crate::rt::{self, BLOCK_BYTES, File};

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where those who verify a log say what they see.
pub trait Witness {
    /// At this byte of the file something does not hold.
    fn damage(&mut self, file: &Path, offset: u64, what: String);
    /// What is no damage, but worth knowing.
    fn note(&mut self, file: &Path, offset: u64, what: String);
    /// A newer program wrote this file.
    fn newer(&mut self, file: &Path, format: u32);
    /// What a batch in this file says. What is wrong with it, if the caller knows of something.
    fn entry(&mut self, entry: &Entry<'_>) -> Option<String>;
    /// So many more bytes have been seen.
    fn seen(&mut self, bytes: u64);
}

/// Verifies the log in `dir` from `floor` on.
pub async fn verify(dir: &Path, floor: Floor, witness: &mut impl Witness) -> Result<()> {
    let names = rt::list_dir(dir).await?;
    let ids = names
        .iter()
        .filter_map(|name| SegmentId::from_file_name(name));
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    let last = ids.last().copied();
    let mut chain = Chain {
        expected: floor.sequence,
        end: None,
    };
    for id in ids {
        let path = dir.join(id.file_name());
        let file = File::open_to_read(&path).await?;
        let segment = read_segment(&file, id, floor, &mut *witness).await;
        file.close().await;
        let segment = segment?;
        let is_last = Some(id) == last;
        if segment.is_usable(&path, floor, is_last, witness) && id >= floor.segment {
            chain.take(&path, &segment, witness);
        }
    }
    Ok(())
}

/// A batch that is whole.
struct Batch {
    at: u64,
    end: u64,
    header: BatchHeader,
    /// What is wrong with what it says.
    objection: Option<String>,
}

/// What a segment's file holds.
struct Segment {
    id: SegmentId,
    bytes: u64,
    header: SegmentHeader,
    /// How long it should be, by its header.
    bytes_wanted: Option<u64>,
    /// Of the life that its header names; if that cannot be read, all that are not of before the floor.
    batches: Vec<Batch>,
    /// The blocks that hold something and belong to no whole batch of this segment, and to none that
    /// the file held in an earlier life.
    others: Vec<u64>,
}

async fn read_segment(
    file: &File,
    name: SegmentId,
    floor: Floor,
    witness: &mut impl Witness,
) -> Result<Segment> {
    let bytes = file.len().await?;
    let first = file.read_at(0, BLOCK_BYTES).await?;
    let header = decode_segment_header(&first);
    let life = decode_life(&first);
    let mut segment = Segment {
        id: name,
        bytes,
        header,
        bytes_wanted: decode_segment_bytes(&first),
        batches: Vec::new(),
        others: Vec::new(),
    };
    witness.seen(BLOCK.min(bytes));
    let mut position = BLOCK;
    let mut window = (0, file.read_at(0, READ_BYTES).await?);
    while position + BLOCK <= bytes {
        let is_inside = |length: usize, window: &(u64, rt::ReadBuffer)| {
            let end = window.0 + window.1.len() as u64;
            window.0 <= position && position + length as u64 <= end
        };
        if !is_inside(BLOCK_BYTES, &window) {
            window = (position, file.read_at(position, READ_BYTES).await?);
            rt::yield_if_needed().await;
        }
        let block = &window.1[(position - window.0) as usize..];
        let mut next = position + BLOCK;
        let mut is_whole = false;
        let counts = |header: &BatchHeader| life.is_some() || header.sequence >= floor.sequence;
        if let Some(header) = decode_batch_header(block, life).filter(counts) {
            let length = padded(BATCH_HEADER_BYTES + header.length as usize);
            if position + length as u64 <= bytes {
                if !is_inside(length, &window) {
                    window = (
                        position,
                        file.read_at(position, length.max(READ_BYTES)).await?,
                    );
                }
                let batch = &window.1[(position - window.0) as usize..][..length];
                if batch_is_intact(header, batch) {
                    is_whole = true;
                    next = position + length as u64;
                    segment.batches.push(Batch {
                        at: position,
                        end: next,
                        header,
                        objection: objection(header, batch, witness),
                    });
                }
            }
        }
        let block = &window.1[(position - window.0) as usize..][..BLOCK_BYTES];
        if !is_whole && !is_older(block, life) && block.iter().any(|&byte| byte != 0) {
            segment.others.push(position);
        }
        witness.seen(next - position);
        position = next;
    }
    Ok(segment)
}

/// True if a batch of an earlier life of the file begins here.
fn is_older(block: &[u8], life: Option<Life>) -> bool {
    decode_batch_header(block, None).is_some_and(|header| Some(header.life) != life)
}

/// What is wrong with what a whole batch says: a program error, or a forgery.
fn objection(header: BatchHeader, batch: &[u8], witness: &mut impl Witness) -> Option<String> {
    let mut entries = &batch[BATCH_HEADER_BYTES..][..header.length as usize];
    let mut count = 0;
    let mut objection = None;
    while !entries.is_empty() {
        let Some(entry) = take_entry(&mut entries) else {
            return Some("an entry is malformed".to_owned());
        };
        count += 1;
        if let Entry::Prepare { mut parts, .. } = entry {
            while !parts.is_empty() {
                match take_entry(&mut parts) {
                    Some(part @ (Entry::Record(_) | Entry::Clear(_))) => {
                        objection = objection.or_else(|| witness.entry(&part));
                    }
                    _ => return Some("a prepared part is malformed".to_owned()),
                }
            }
        }
        objection = objection.or_else(|| witness.entry(&entry));
    }
    let counted = (count != header.entries)
        .then(|| format!("it has {count} entries and says {}", header.entries));
    objection.or(counted)
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
            SegmentHeader::Newer(format) => {
                witness.newer(path, format);
                return false;
            }
            // A crash may leave a recycled file with its new header and its old name; but then nothing
            // has been written to it.
            SegmentHeader::Valid(named)
                if named != self.id
                    && (is_needed || (named >= floor.segment && !self.batches.is_empty())) =>
            {
                let what = format!("it holds segment {}", named.file_name());
                witness.damage(path, 0, what);
            }
            SegmentHeader::Valid(_) => {}
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
}

/// The log as far as it has been read.
struct Chain {
    /// The number of the next batch.
    expected: u64,
    /// Where it could not be read on.
    end: Option<(PathBuf, u64)>,
}

impl Chain {
    fn take(&mut self, path: &Path, segment: &Segment, witness: &mut impl Witness) {
        let Some(first) = segment.batches.first() else {
            // If something follows, then what is missing was here.
            self.end = Some((path.to_owned(), BLOCK));
            return;
        };
        let mut position = BLOCK;
        if first.header.sequence > self.expected {
            // Either the last segment lacks its end or this one its beginning.
            let here = (path.to_owned(), BLOCK);
            let before = self.end.clone().filter(|_| first.at == BLOCK);
            let place = before.unwrap_or(here);
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
            if let Some(what) = &batch.objection {
                witness.damage(path, batch.at, what.clone());
            }
            self.expected = batch.header.sequence + 1;
            position = batch.end;
        }
        self.end = Some((path.to_owned(), position));
        if segment.others.contains(&position) {
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
