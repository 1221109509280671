//! The bytes of a log: segments, batches, entries. Pure: no I/O.
//!
//! segment := header block | batch*      (file `{stream}-{id:016x}.log`, blocks of 4 KiB)
//! header  := magic "QUOITLOG" | format u32 | crc u32 | segment u64 | bytes u64 | life u64 | stream u64
//! batch   := magic u32 | crc u32 | life u64 | sequence u64 | synced u64 | durable u64 | first u64 |
//!            length u32 | entries u32 | entry* | zeros to the next block
//! entry   := kind u8 | length u32 | number u32 | body
//!   1 record:  a record (storage/record.rs)
//!   2 clear:   version            every record at or below it is dead
//!   3 prepare: version (of the transaction) | cores u16 | core u16 * | entry*  (records, clear)
//!   4 commit:  version (of the transaction)
//!   5 abort:   version (of the transaction)   what was prepared before must never hold
//! version := clock u64 | coordinator u32
//!
//! An entry's place in the order of all of its core's writes (its LSN) is the batch's `first` plus
//! its `number`. (Within a prepare the number is 0: all of it has one place.) The three streams of
//! a core are `wal` (small records, batches, what transactions say), `values` (large records, each
//! alone) and `moved` (large records that were moved from elsewhere; its numbers are its own).
//!
//! Little endian. A crc (crc32c) covers what follows it, up to the end of the header or the last
//! entry. A batch never changes (a recovery may write the same bytes again). It bears its segment's
//! `life`, a number that chance gave when the file got this name: so what a recycled file still
//! holds of an earlier life is never taken for its own, nor is a value in which a client forged a
//! batch: he cannot know the life of a file that his value will lie in. `sequence` rises by one
//! from batch to batch, across segments; `synced` is the highest sequence known to be durable when
//! the batch was written.
//!
//! Invariant: a batch that cannot be read, while some later one says that it was synced, is damage.
//! Without such a witness it is the torn end of a crash: it was never acknowledged as durable.

use std::ops::DerefMut;

use crate::rt::BLOCK_BYTES;
use crate::storage::record::View;
use crate::types::{CoreId, Lsn, Version};

/// Newest format this program writes, and the only one that it reads.
pub const FORMAT: u32 = 3;

const SEGMENT_MAGIC: &[u8; 8] = b"QUOITLOG";
const BATCH_MAGIC: u32 = 0x4842_5451;
/// Bytes of a batch before its entries.
pub const BATCH_HEADER_BYTES: usize = 56;
/// Bytes of an entry before its body.
pub const ENTRY_HEADER_BYTES: usize = 9;
const SEGMENT_HEADER_BYTES: usize = 48;
const VERSION_BYTES: usize = 12;
const _: () = assert!(BATCH_HEADER_BYTES == 4 + 4 + 8 + 8 + 8 + 8 + 8 + 4 + 4);
const _: () = assert!(SEGMENT_HEADER_BYTES == 8 + 4 + 4 + 8 + 8 + 8 + 8);
const _: () = assert!(SEGMENT_HEADER_BYTES <= BLOCK_BYTES && BATCH_HEADER_BYTES <= BLOCK_BYTES);

const KIND_RECORD: u8 = 1;
const KIND_CLEAR: u8 = 2;
const KIND_PREPARE: u8 = 3;
const KIND_COMMIT: u8 = 4;
const KIND_ABORT: u8 = 5;

/// Rounds up to whole blocks.
pub fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// One of the logs of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// The write-ahead log.
    Records,
    /// The value log, as it is written.
    Values,
    /// What was moved into the value log from elsewhere.
    Moved,
}

impl Stream {
    const NAMES: [(Stream, &'static str); 3] = [
        (Stream::Records, "wal"),
        (Stream::Values, "values"),
        (Stream::Moved, "moved"),
    ];

    /// What it is called in file names.
    pub fn name(self) -> &'static str {
        Stream::NAMES[usize::from(self.number())].1
    }

    /// Its number in files.
    pub fn number(self) -> u8 {
        match self {
            Stream::Records => 0,
            Stream::Values => 1,
            Stream::Moved => 2,
        }
    }

    /// The stream with this number.
    pub fn from_number(number: u8) -> Option<Stream> {
        Stream::NAMES
            .get(usize::from(number))
            .map(|(stream, _)| *stream)
    }
}

/// A segment's number within its log; its file is named by both. Rises, and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

impl SegmentId {
    /// The file name of this segment of `stream`.
    pub fn file_name(self, stream: Stream) -> String {
        format!("{}-{:016x}.log", stream.name(), self.0)
    }

    /// The segment of `stream` that has this file name.
    pub fn from_file_name(stream: Stream, name: &str) -> Option<SegmentId> {
        let rest = name.strip_prefix(stream.name())?.strip_prefix('-')?;
        let digits = rest.strip_suffix(".log")?;
        let number = u64::from_str_radix(digits, 16).ok()?;
        (digits.len() == 16).then_some(SegmentId(number))
    }
}

/// A number that a segment's batches bear, and those of no other segment and of no earlier life of
/// its file. Chosen by chance: nobody can foresee it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(pub u64);

/// Writes a segment's header into the first bytes of `block`, and zeros behind it.
pub fn encode_segment_header(
    stream: Stream,
    segment: SegmentId,
    bytes: u64,
    life: Life,
    block: &mut [u8],
) {
    assert!(block.len() == BLOCK_BYTES);
    block.fill(0);
    block[0..8].copy_from_slice(SEGMENT_MAGIC);
    block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    block[16..24].copy_from_slice(&segment.0.to_le_bytes());
    block[24..32].copy_from_slice(&bytes.to_le_bytes());
    block[32..40].copy_from_slice(&life.0.to_le_bytes());
    block[40] = stream.number();
    let crc = header_crc(block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn header_crc(header: &[u8]) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&header[8..12]),
        &header[16..SEGMENT_HEADER_BYTES],
    )
}

/// What the first block of a segment's file says.
#[derive(Debug, PartialEq, Eq)]
pub enum SegmentHeader {
    /// A segment of this format, with this number, of this log.
    Valid(Stream, SegmentId),
    /// A segment that another version of this program wrote, in this format.
    Other(u32),
    /// Never written, torn, or damaged.
    Unreadable,
}

/// Reads a segment's header.
pub fn decode_segment_header(block: &[u8]) -> SegmentHeader {
    let Some(header) = block.get(..SEGMENT_HEADER_BYTES) else {
        return SegmentHeader::Unreadable;
    };
    if &header[0..8] != SEGMENT_MAGIC {
        return SegmentHeader::Unreadable;
    }
    // Only the words up to here are the same in every format.
    let format = u32_at(header, 8);
    if u32_at(header, 12) != header_crc(header) {
        return match format == FORMAT || !is_old_header(header) {
            true => SegmentHeader::Unreadable,
            false => SegmentHeader::Other(format),
        };
    }
    let stream = Stream::from_number(header[40]);
    match (format, stream) {
        (FORMAT, Some(stream)) => SegmentHeader::Valid(stream, SegmentId(u64_at(header, 16))),
        (FORMAT, None) => SegmentHeader::Unreadable,
        (other, _) => SegmentHeader::Other(other),
    }
}

/// True if this is a whole header of the first format, which had no stream.
fn is_old_header(header: &[u8]) -> bool {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..12]), &header[16..40]);
    u32_at(header, 12) == crc
}

/// How long the file of the segment is whose header this is; it was made so before its first use.
pub fn decode_segment_bytes(block: &[u8]) -> Option<u64> {
    match decode_segment_header(block) {
        SegmentHeader::Valid(..) => Some(u64_at(block, 24)),
        SegmentHeader::Other(_) | SegmentHeader::Unreadable => None,
    }
}

/// The life of the segment whose header this is.
pub fn decode_life(block: &[u8]) -> Option<Life> {
    match decode_segment_header(block) {
        SegmentHeader::Valid(..) => Some(Life(u64_at(block, 32))),
        SegmentHeader::Other(_) | SegmentHeader::Unreadable => None,
    }
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The life of the segment that it was written to.
    pub life: Life,
    /// Its number.
    pub sequence: u64,
    /// The highest batch known to be durable when this one was written.
    pub synced: u64,
    /// Every write up to this place in the order of all writes, in whichever log, was durable when
    /// this batch was written.
    pub durable: Lsn,
    /// The place of its first entry in the order of all writes.
    pub first: Lsn,
    /// Bytes of its entries.
    pub length: u32,
    /// How many entries it has.
    pub entries: u32,
}

/// Fills in the header of a batch whose entries are already in `pieces`, which lie behind each
/// other and of which the first begins with room for the header.
pub fn seal_batch<B: DerefMut<Target = [u8]>>(header: BatchHeader, pieces: &mut [B]) {
    let end = BATCH_HEADER_BYTES + header.length as usize;
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    assert!(length == padded(end), "a batch is whole blocks");
    assert!(
        header.synced < header.sequence,
        "a batch is not durable before it is written"
    );
    let (first, rest) = pieces.split_first_mut().expect("a batch has a header");
    first[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
    first[8..16].copy_from_slice(&header.life.0.to_le_bytes());
    first[16..24].copy_from_slice(&header.sequence.to_le_bytes());
    first[24..32].copy_from_slice(&header.synced.to_le_bytes());
    first[32..40].copy_from_slice(&header.durable.0.to_le_bytes());
    first[40..48].copy_from_slice(&header.first.0.to_le_bytes());
    first[48..52].copy_from_slice(&header.length.to_le_bytes());
    first[52..56].copy_from_slice(&header.entries.to_le_bytes());
    let mut left = end.min(first.len());
    let mut crc = crc32c::crc32c(&first[8..left]);
    first[left..].fill(0);
    left = end - left;
    for piece in rest {
        let covered = left.min(piece.len());
        crc = crc32c::crc32c_append(crc, &piece[..covered]);
        piece[covered..].fill(0);
        left -= covered;
    }
    first[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads a batch's header, not checking its crc: `None` if this cannot be one of `life`; without
/// one, of any segment.
pub fn decode_batch_header(bytes: &[u8], life: Option<Life>) -> Option<BatchHeader> {
    let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
    let header = BatchHeader {
        life: Life(u64_at(bytes, 8)),
        sequence: u64_at(bytes, 16),
        synced: u64_at(bytes, 24),
        durable: Lsn(u64_at(bytes, 32)),
        first: Lsn(u64_at(bytes, 40)),
        length: u32_at(bytes, 48),
        entries: u32_at(bytes, 52),
    };
    let sane = u32_at(bytes, 0) == BATCH_MAGIC
        && life.is_none_or(|life| header.life == life)
        && header.synced < header.sequence;
    sane.then_some(header)
}

/// True if `batch` (header and entries at least) is as it was sealed.
pub fn batch_is_intact(header: BatchHeader, batch: &[u8]) -> bool {
    let end = BATCH_HEADER_BYTES + header.length as usize;
    batch
        .get(8..end)
        .is_some_and(|covered| crc32c::crc32c(covered) == u32_at(batch, 4))
}

/// What one entry of the log says.
pub enum Entry<'a> {
    /// A value or a tombstone.
    Record(View<'a>),
    /// Every record at or below this version is dead.
    Clear(Version),
    /// This core's part of a transaction over several cores; it holds once all of them have theirs.
    Prepare {
        /// Names the transaction.
        transaction: Version,
        /// All cores that take part.
        cores: Vec<CoreId>,
        /// Its entries (records and clears), encoded.
        parts: &'a [u8],
    },
    /// All cores of this transaction have prepared.
    Commit(Version),
    /// This core's part of this transaction, which it prepared, must never hold.
    Abort(Version),
}

/// Where the entries of a batch are put together: the log's buffer.
pub trait Sink {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);
    /// The number of the entries that are appended now.
    fn number(&self) -> u32;
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn number(&self) -> u32 {
        0
    }
}

/// Appends a record entry.
pub fn put_record(record: &[u8], out: &mut (impl Sink + ?Sized)) {
    put_entry_header(KIND_RECORD, record.len(), out);
    out.put(record);
}

/// Appends a clear entry.
pub fn put_clear(version: Version, out: &mut (impl Sink + ?Sized)) {
    put_entry_header(KIND_CLEAR, VERSION_BYTES, out);
    put_version(version, out);
}

/// Appends a prepare entry around `parts`, which are encoded record and clear entries.
pub fn put_prepare(
    transaction: Version,
    cores: &[CoreId],
    parts: &[u8],
    out: &mut (impl Sink + ?Sized),
) {
    put_entry_header(KIND_PREPARE, prepare_bytes(cores.len(), parts.len()), out);
    put_version(transaction, out);
    out.put(&(cores.len() as u16).to_le_bytes());
    for core in cores {
        out.put(&core.0.to_le_bytes());
    }
    out.put(parts);
}

/// Bytes of a prepare entry's body.
pub fn prepare_bytes(cores: usize, parts: usize) -> usize {
    VERSION_BYTES + 2 + 2 * cores + parts
}

/// Appends a commit entry.
pub fn put_commit(transaction: Version, out: &mut (impl Sink + ?Sized)) {
    put_entry_header(KIND_COMMIT, VERSION_BYTES, out);
    put_version(transaction, out);
}

/// Appends an abort entry.
pub fn put_abort(transaction: Version, out: &mut (impl Sink + ?Sized)) {
    put_entry_header(KIND_ABORT, VERSION_BYTES, out);
    put_version(transaction, out);
}

/// Bytes of a clear, commit or abort entry.
pub const MARKER_BYTES: usize = ENTRY_HEADER_BYTES + VERSION_BYTES;

fn put_entry_header(kind: u8, length: usize, out: &mut (impl Sink + ?Sized)) {
    let length = u32::try_from(length).expect("requests are limited to far less than 4 GiB");
    let number = out.number();
    out.put(&[kind]);
    out.put(&length.to_le_bytes());
    out.put(&number.to_le_bytes());
}

fn put_version(version: Version, out: &mut (impl Sink + ?Sized)) {
    out.put(&version.clock.to_le_bytes());
    out.put(&version.coordinator.to_le_bytes());
}

/// Takes the first entry off `bytes`, with its number. `None` if it is malformed; call it only
/// while bytes are left.
pub fn take_numbered<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Entry<'a>)> {
    let number = bytes.get(5..ENTRY_HEADER_BYTES)?;
    let number = u32_at(number, 0);
    take_entry(bytes).map(|entry| (number, entry))
}

/// Takes the first entry off `bytes`. `None` if it is malformed; call it only while bytes are left.
pub fn take_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER_BYTES)?;
    let (body, rest) = rest.split_at_checked(u32_at(header, 1) as usize)?;
    *bytes = rest;
    match header[0] {
        KIND_RECORD => View::decode(body).map(Entry::Record),
        KIND_CLEAR => take_version(body).map(|(version, _)| Entry::Clear(version)),
        KIND_COMMIT => take_version(body).map(|(version, _)| Entry::Commit(version)),
        KIND_ABORT => take_version(body).map(|(version, _)| Entry::Abort(version)),
        KIND_PREPARE => {
            let (transaction, rest) = take_version(body)?;
            let (count, rest) = rest.split_at_checked(2)?;
            let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
            let (cores, parts) = rest.split_at_checked(2 * count)?;
            let core = |pair: &[u8]| CoreId(u16::from_le_bytes([pair[0], pair[1]]));
            let cores = cores.chunks_exact(2).map(core).collect();
            Some(Entry::Prepare {
                transaction,
                cores,
                parts,
            })
        }
        _ => None,
    }
}

fn take_version(bytes: &[u8]) -> Option<(Version, &[u8])> {
    let (version, rest) = bytes.split_at_checked(VERSION_BYTES)?;
    Some((
        Version {
            clock: u64_at(version, 0),
            coordinator: u32_at(version, 8),
        },
        rest,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::{Meta, Record};

    fn version(clock: u64) -> Version {
        Version {
            clock,
            coordinator: 7,
        }
    }

    fn sealed() -> (BatchHeader, Vec<u8>) {
        let meta = Meta {
            version: version(5),
            expiry: 0,
            tombstone: false,
        };
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        put_record(Record::new(meta, b"k", b"v").bytes(), &mut batch);
        put_clear(version(6), &mut batch);
        let mut parts = Vec::new();
        put_clear(version(8), &mut parts);
        put_prepare(version(9), &[CoreId(0), CoreId(3)], &parts, &mut batch);
        put_commit(version(9), &mut batch);
        put_abort(version(10), &mut batch);
        let length = (batch.len() - BATCH_HEADER_BYTES) as u32;
        let header = BatchHeader {
            life: Life(2),
            sequence: 11,
            synced: 10,
            durable: Lsn(7),
            first: Lsn(1),
            length,
            entries: 5,
        };
        batch.resize(padded(batch.len()), 0xEE);
        seal_batch(header, std::slice::from_mut(&mut batch));
        (header, batch)
    }

    #[test]
    fn entries_come_back_as_they_were_put() {
        let (header, batch) = sealed();
        assert_eq!(decode_batch_header(&batch, Some(Life(2))), Some(header));
        assert!(batch_is_intact(header, &batch));
        let mut rest = &batch[BATCH_HEADER_BYTES..][..header.length as usize];
        let Some(Entry::Record(view)) = take_entry(&mut rest) else {
            panic!("a record")
        };
        assert_eq!((view.key(), view.value()), (&b"k"[..], &b"v"[..]));
        assert!(matches!(take_entry(&mut rest), Some(Entry::Clear(v)) if v == version(6)));
        let Some(Entry::Prepare {
            transaction,
            cores,
            mut parts,
        }) = take_entry(&mut rest)
        else {
            panic!("a prepare")
        };
        assert_eq!(
            (transaction, cores),
            (version(9), vec![CoreId(0), CoreId(3)])
        );
        assert!(matches!(take_entry(&mut parts), Some(Entry::Clear(v)) if v == version(8)));
        assert!(matches!(take_entry(&mut rest), Some(Entry::Commit(v)) if v == version(9)));
        assert!(matches!(take_entry(&mut rest), Some(Entry::Abort(v)) if v == version(10)));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_flipped_bit_is_never_an_intact_batch() {
        let (header, batch) = sealed();
        let end = BATCH_HEADER_BYTES + header.length as usize;
        for bit in 0..end * 8 {
            let mut damaged = batch.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = decode_batch_header(&damaged, Some(Life(2)));
            let intact = found.is_some_and(|header| batch_is_intact(header, &damaged));
            assert!(!intact, "bit {bit} was flipped unnoticed");
        }
    }

    #[test]
    fn a_batch_of_another_segment_is_not_ours() {
        let (_, batch) = sealed();
        assert_eq!(
            decode_batch_header(&batch, Some(Life(3))),
            None,
            "a recycled file's past"
        );
    }

    #[test]
    fn segment_headers_tell_valid_other_and_unreadable_apart() {
        let mut block = vec![0xEE; BLOCK_BYTES];
        encode_segment_header(Stream::Values, SegmentId(4), 1 << 20, Life(77), &mut block);
        assert_eq!(decode_life(&block), Some(Life(77)));
        assert_eq!(
            decode_segment_header(&block),
            SegmentHeader::Valid(Stream::Values, SegmentId(4))
        );
        for byte in [20, 36, 40] {
            let mut torn = block.clone();
            torn[byte] ^= 1;
            assert_eq!(decode_segment_header(&torn), SegmentHeader::Unreadable);
        }
        let mut newer = block.clone();
        for other in [FORMAT + 1, FORMAT - 1] {
            newer[8..12].copy_from_slice(&other.to_le_bytes());
            let crc = header_crc(&newer);
            newer[12..16].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(decode_segment_header(&newer), SegmentHeader::Other(other));
        }
        let mut older = block;
        older[8..12].copy_from_slice(&1u32.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&older[8..12]), &older[16..40]);
        older[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_segment_header(&older), SegmentHeader::Other(1));
    }

    #[test]
    fn a_segment_is_named_by_its_log_and_its_number() {
        for (stream, _) in Stream::NAMES {
            let name = SegmentId(77).file_name(stream);
            for (other, _) in Stream::NAMES {
                let found = SegmentId::from_file_name(other, &name);
                assert_eq!(found, (other == stream).then_some(SegmentId(77)), "{name}");
            }
        }
    }

    #[test]
    fn malformed_entries_are_refused() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
            if let Some(first) = bytes.first_mut() {
                *first %= 7;
            }
            if bytes.len() >= ENTRY_HEADER_BYTES {
                bytes[2..5].fill(0);
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let before = rest.len();
                if take_entry(&mut rest).is_none() {
                    break;
                }
                assert!(rest.len() < before, "an entry takes at least its header");
            }
        }
    }
}
