//! The last bytes of a table's file: where everything is.
//!
//! footer := magic 8 bytes | format u32 | crc u32 | table u64 | file bytes u64
//!           | offset u64 of partitions, top, properties, zeros                (little endian)
//!
//! Its crc32c covers table id, its own offset and all of it, the crc taken for zero. All formats
//! have had the same footer: a table of another one is told from a damaged one, and refused by
//! name.

use std::path::Path;

use super::{CRC_BYTES, TableId, corrupt};
use crate::error::{Error, Result};
use crate::rt::BLOCK_BYTES;
use crate::storage::block::Identity;
use crate::storage::codec::Reader;

/// The format that this program writes, and the only one that it reads.
pub(super) const FORMAT: u32 = 5;
pub(super) const MAGIC: [u8; 8] = *b"QUOITTAB";
pub(super) const FOOTER_BYTES: usize = 64;
pub(super) const FOOTER_CRC_AT: usize = 12;
const _: () = assert!(FOOTER_BYTES == 8 + 4 + 4 + 6 * 8);
const _: () = assert!(FOOTER_BYTES < BLOCK_BYTES);

/// The last bytes of the file: where everything is.
pub(super) struct Footer {
    pub(super) table: u64,
    pub(super) file_bytes: u64,
    /// Of the partitions, the top, the properties, and of the zeros behind them.
    pub(super) offsets: [u64; 4],
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        bytes.extend_from_slice(&self.table.to_le_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_le_bytes());
        self.offsets
            .iter()
            .for_each(|offset| bytes.extend_from_slice(&offset.to_le_bytes()));
        let crc = self.checksum(&bytes);
        bytes[FOOTER_CRC_AT..][..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes.len(), FOOTER_BYTES);
        bytes
    }

    /// The checksum of a footer in which it is not yet set.
    fn checksum(&self, bytes: &[u8]) -> u32 {
        let offset = self.file_bytes - FOOTER_BYTES as u64;
        Identity {
            table: self.table,
            offset,
        }
        .checksum(bytes)
    }

    /// Checks the footer of the file `path`, which should be table `id` and so long.
    pub(super) fn decode(path: &Path, bytes: &[u8], id: TableId, length: u64) -> Result<Footer> {
        let at = length - FOOTER_BYTES as u64;
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len()) != Some(&MAGIC) {
            return Err(corrupt(path, at, "this is not the end of a table"));
        }
        let format = reader.u32().unwrap_or(0);
        if format > FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has table format {format}; this version of quoit reads up to {FORMAT}"
            )));
        }
        // Older formats had the same footer: its checksum tells an old table from a flipped bit.
        let mut parse = || {
            let crc = reader.u32()?;
            let (table, file_bytes) = (reader.u64()?, reader.u64()?);
            let offsets = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
            Some((
                crc,
                Footer {
                    table,
                    file_bytes,
                    offsets,
                },
            ))
        };
        let (crc, footer) = parse().ok_or_else(|| corrupt(path, at, "the footer is cut short"))?;
        if (footer.table, footer.file_bytes) != (id.0, length) {
            return Err(corrupt(path, at, "the footer is not this table's"));
        }
        let mut blank = bytes.to_vec();
        blank[FOOTER_CRC_AT..][..CRC_BYTES].fill(0);
        if crc != footer.checksum(&blank) {
            return Err(corrupt(path, at, "the footer's checksum does not match"));
        }
        if format != FORMAT {
            let file = path.display();
            return Err(Error::Setup(format!(
                "{file} has table format {format}, of an older version of quoit; this one reads {FORMAT}"
            )));
        }
        let ends = [&footer.offsets[..], &[at]].concat();
        if !ends.is_sorted() {
            return Err(corrupt(path, at, "the footer's offsets are out of order"));
        }
        Ok(footer)
    }
}
