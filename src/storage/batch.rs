//! A batch of writes, and the entries that the log holds of it. Pure.

use super::record::Record;
use super::wal::format;
use crate::types::{Position, Version};

/// Writes that survive a crash all together or not at all, of one core.
#[derive(Clone, Default)]
pub struct Batch {
    /// Every record at or below this version dies, before the others are written.
    pub clear: Option<Version>,
    /// Records, at most one for each key.
    pub records: Vec<(Position, Record)>,
}

impl Batch {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.clear.is_none() && self.records.is_empty()
    }

    /// How many entries of the log it takes.
    pub(super) fn entries(&self) -> usize {
        self.records.len() + usize::from(self.clear.is_some())
    }

    /// Puts its entries, as the log holds them.
    pub(super) fn encode(&self, out: &mut (impl format::Sink + ?Sized)) {
        if let Some(version) = self.clear {
            format::put_clear(version, out);
        }
        for (_, record) in &self.records {
            format::put_record(record.bytes(), out);
        }
    }

    /// Bytes of its entries.
    pub(super) fn encoded_bytes(&self) -> usize {
        let records = self.records.iter();
        let records = records.map(|(_, record)| format::ENTRY_HEADER_BYTES + record.bytes().len());
        records.sum::<usize>() + self.clear.map_or(0, |_| format::MARKER_BYTES)
    }

    /// Bytes of the log that it takes besides entry headers, with room for what wraps it up: the
    /// names of a transaction's cores, and a marker.
    pub(super) fn log_bytes(&self, cores: u16) -> usize {
        let records: usize = self
            .records
            .iter()
            .map(|(_, record)| record.bytes().len())
            .sum();
        let wrapping = format::ENTRY_HEADER_BYTES + format::prepare_bytes(usize::from(cores), 0);
        records + wrapping + 2 * format::MARKER_BYTES
    }
}
