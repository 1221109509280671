//! The bytes of a file of hints, and which of them count after a crash. Pure.
//!
//! file   := header | batch*                                             each in whole blocks of 4 KiB, zeros behind it
//! header := magic "QUOITHNT" | format u32 | crc u32 | number u64 | nonce u64 | node u16 | core u16
//! batch  := magic u32 | crc u32 | hints u32 | length u32 | kept u64 | hint*    hint := record length u32 | record
//!
//! Little endian. The crc32c of the header is over the format and what follows the crc; that of a
//! batch is over the file's nonce, the batch's place in the file and all that follows the crc: what
//! lies at another place, or what a client's value makes look like a batch, is none. `length` is
//! that of the hints, `kept` when they were written, in Unix milliseconds by this node's clock.
//! `node` is whose replica lacks the mutations, `core` who keeps them. A record is as in `record`:
//! neither a pointer nor packed.
//!
//! One batch is written at a time and synced before the next one. So the last one alone may be
//! torn, and is not there then; what is no batch in front of one is damage.

use std::path::Path;

use crate::error::{Error, Result};
use crate::rt::BLOCK_BYTES;
use crate::storage::codec::Reader;
use crate::storage::record::{Record, View};
use crate::types::{CoreId, UnixMillis};

const MAGIC: &[u8; 8] = b"QUOITHNT";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 36;
const _: () = assert!(HEADER_BYTES == 8 + 4 + 4 + 8 + 8 + 2 + 2);
/// Where the first batch begins.
pub const FIRST_BATCH: u64 = BLOCK_BYTES as u64;

const BATCH_MAGIC: u32 = 0x746e_6968; // "hint"
const BATCH_HEAD_BYTES: usize = 24;
const _: () = assert!(BATCH_HEAD_BYTES == 4 + 4 + 4 + 4 + 8);
/// Bytes of a hint besides the record.
pub const HINT_HEAD_BYTES: usize = 4;

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// Whose replica lacks what is in it.
    pub node: u16,
    /// Which core of this node has written it.
    pub core: CoreId,
    /// Rises from file to file of this core.
    pub number: u64,
}

impl FileId {
    /// What it is called.
    pub fn name(self) -> String {
        let FileId { node, core, number } = self;
        format!("node-{node:05}.core-{:03}.{number:08}", core.0)
    }

    /// The file of this name.
    pub fn parse(name: &str) -> Option<FileId> {
        let mut parts = name.strip_prefix("node-")?.splitn(3, '.');
        let id = FileId {
            node: parts.next()?.parse().ok()?,
            core: CoreId(parts.next()?.strip_prefix("core-")?.parse().ok()?),
            number: parts.next()?.parse().ok()?,
        };
        (id.name() == name).then_some(id)
    }
}

/// The first block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which file it is.
    pub id: FileId,
    /// By chance: no other file has it.
    pub nonce: u64,
}

impl Header {
    /// Fills `block`.
    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        block[0..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        block[16..24].copy_from_slice(&self.id.number.to_le_bytes());
        block[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        block[32..34].copy_from_slice(&self.id.node.to_le_bytes());
        block[34..36].copy_from_slice(&self.id.core.0.to_le_bytes());
        let crc = header_checksum(block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// What the file `id` says of itself in its first block.
    pub fn decode(block: &[u8], id: FileId, path: &Path) -> Result<Header> {
        let damaged = |why: &str| Error::Corrupt {
            file: path.to_owned(),
            offset: 0,
            why: why.to_owned(),
        };
        if block.len() != BLOCK_BYTES || &block[0..8] != MAGIC {
            return Err(damaged("it is not the file of hints that its name says"));
        }
        let mut words = Reader::new(&block[8..HEADER_BYTES]);
        let (Some(format), Some(crc)) = (words.u32(), words.u32()) else {
            return Err(damaged("its header is cut off"));
        };
        if header_checksum(block) != crc {
            return Err(damaged("the checksum of its header does not match"));
        }
        if format != FORMAT {
            return Err(Error::Setup(format!(
                "{} was written by another version of Quoit (format {format}, not {FORMAT}): it is left as it is",
                path.display()
            )));
        }
        if block[HEADER_BYTES..].iter().any(|&byte| byte != 0) {
            return Err(damaged("there is something behind its header"));
        }
        let (Some(number), Some(nonce), Some(node), Some(core)) =
            (words.u64(), words.u64(), words.u16(), words.u16())
        else {
            return Err(damaged("its header is cut off"));
        };
        let found = FileId {
            node,
            core: CoreId(core),
            number,
        };
        match found == id {
            true => Ok(Header { id, nonce }),
            false => Err(damaged("it is another file than its name says")),
        }
    }
}

fn header_checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[8..12]), &block[16..HEADER_BYTES])
}

/// Hints that were written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When.
    pub kept: UnixMillis,
    /// The mutations.
    pub records: Vec<Record>,
    /// Bytes that the batch takes in its file.
    pub bytes: u64,
}

/// Bytes of a hint's record and its length.
pub fn hint_bytes(record: &Record) -> usize {
    HINT_HEAD_BYTES + record.bytes().len()
}

/// Bytes that a batch of `records` takes in its file.
pub fn batch_bytes(records: &[Record]) -> usize {
    whole_blocks(records.iter().map(hint_bytes).sum())
}

fn whole_blocks(length: usize) -> usize {
    (BATCH_HEAD_BYTES + length).next_multiple_of(BLOCK_BYTES)
}

/// Fills `out`, of [`batch_bytes`], with the batch that is to stand at `offset` of the file with
/// this nonce.
pub fn encode(records: &[Record], kept: UnixMillis, (nonce, offset): (u64, u64), out: &mut [u8]) {
    assert!(!records.is_empty() && out.len() == batch_bytes(records));
    let mut at = BATCH_HEAD_BYTES;
    for record in records {
        let view = record.view();
        assert!(
            view.pointer().is_none() && !view.is_packed(),
            "a hint is whole"
        );
        let bytes = record.bytes();
        out[at..at + HINT_HEAD_BYTES].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        at += HINT_HEAD_BYTES;
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    out[at..].fill(0);
    let length = u32::try_from(at - BATCH_HEAD_BYTES).expect("batches are bounded");
    out[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&(records.len() as u32).to_le_bytes());
    out[12..16].copy_from_slice(&length.to_le_bytes());
    out[16..24].copy_from_slice(&kept.to_le_bytes());
    let crc = batch_checksum(&out[8..at], (nonce, offset));
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn batch_checksum(bytes: &[u8], (nonce, offset): (u64, u64)) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&nonce.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(place, bytes)
}

/// How many bytes the batch takes that begins with `block`, if one does.
pub fn claimed_bytes(block: &[u8]) -> Option<usize> {
    let mut words = Reader::new(block);
    if words.u32()? != BATCH_MAGIC {
        return None;
    }
    let (_crc, _hints) = (words.u32()?, words.u32()?);
    Some(whole_blocks(words.u32()? as usize))
}

/// The batch that `bytes` are, at `offset` of the file with this nonce; `None` if they are none.
pub fn decode(bytes: &[u8], place: (u64, u64)) -> Option<Batch> {
    let mut words = Reader::new(bytes);
    if words.u32()? != BATCH_MAGIC {
        return None;
    }
    let (crc, count, length) = (words.u32()?, words.u32()?, words.u32()? as usize);
    let end = BATCH_HEAD_BYTES.checked_add(length)?;
    if bytes.len() != whole_blocks(length) || batch_checksum(&bytes[8..end], place) != crc {
        return None;
    }
    if bytes[end..].iter().any(|&byte| byte != 0) {
        return None;
    }
    let kept = words.u64()?;
    let mut hints = Reader::new(&bytes[BATCH_HEAD_BYTES..end]);
    let mut records = Vec::new();
    while !hints.is_empty() {
        let length = hints.u32()? as usize;
        let view = View::decode(hints.take(length)?)?;
        if view.pointer().is_some() || view.is_packed() {
            return None;
        }
        records.push(Record::decode(view.bytes())?);
    }
    let is_whole = !records.is_empty() && records.len() == count as usize;
    is_whole.then_some(Batch {
        kept,
        records,
        bytes: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Meta, Version};

    const ID: FileId = FileId {
        node: 3,
        core: CoreId(1),
        number: 17,
    };

    fn record(number: u64, length: usize) -> Record {
        let meta = Meta {
            version: Version {
                clock: number,
                coordinator: 1,
            },
            expiry: number % 2,
            tombstone: length == 0,
        };
        Record::new(meta, format!("key {number}").as_bytes(), &vec![7; length])
    }

    /// Else a file could be taken for another node's, and mutations go where they do not belong.
    #[test]
    fn a_file_is_known_by_its_one_name_only_and_says_it_itself() {
        for (node, core, number) in [(1, 0, 1), (65_535, 1023, u64::MAX), (7, 2, 123_456_789)] {
            let core = CoreId(core);
            let id = FileId { node, core, number };
            assert_eq!(FileId::parse(&id.name()), Some(id));
        }
        for name in [
            "node-1.core-000.00000001",
            "node-00001.core-0.00000001",
            "node-00001.core-000.1",
            "node-00001.core-000",
            "node-00001.core-000.00000001.tmp",
            "core-000",
        ] {
            assert_eq!(FileId::parse(name), None, "{name}");
        }
        let path = Path::new("hints");
        let header = Header { id: ID, nonce: 99 };
        let mut block = vec![0xEE; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(Header::decode(&block, ID, path).expect("intact"), header);
        let other = FileId { number: 18, ..ID };
        assert!(Header::decode(&block, other, path).is_err());
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&damaged, ID, path).is_err(), "bit {bit}");
        }
        block[8] = 2;
        let crc = header_checksum(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        let error = Header::decode(&block, ID, path).expect_err("a newer format");
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    /// Else a mutation that nobody made could be handed to a replica.
    #[test]
    fn a_batch_is_whole_and_in_its_place_or_it_is_none() {
        let records = [record(1, 100), record(2, 0), record(3, 5_000)];
        let (place, kept) = ((99, 8_192), 1_000);
        let mut bytes = vec![0xEE; batch_bytes(&records)];
        encode(&records, kept, place, &mut bytes);
        assert_eq!(bytes.len(), 2 * BLOCK_BYTES);
        assert_eq!(claimed_bytes(&bytes[..BLOCK_BYTES]), Some(bytes.len()));
        let batch = decode(&bytes, place).expect("intact");
        assert_eq!((batch.kept, batch.bytes), (kept, 8_192));
        assert_eq!(batch.records, records);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, place), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes, (98, 8_192)), None, "of another file");
        assert_eq!(decode(&bytes, (99, 4_096)), None, "at another place");
        assert_eq!(decode(&bytes[..BLOCK_BYTES], place), None, "cut off");
        assert_eq!(decode(&[], place), None);
        assert_eq!(claimed_bytes(&[0; BLOCK_BYTES]), None);
    }
}
