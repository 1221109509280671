//! A batch of a log while it is put together. Pure but for the buffers, which the log hands in.

use crate::rt::WriteBuffer;
use crate::storage::record::Record;
use crate::types::{Lsn, Position};

use super::format::{BATCH_HEADER_BYTES, ENTRY_HEADER_BYTES, Sink, padded};
use super::{BUFFER_BYTES_MAX, Pending};

/// A record whose place somebody wants to know.
pub struct Value {
    /// The record.
    pub record: Record,
    /// The position of its key.
    pub position: Position,
    /// Which write it was.
    pub lsn: Lsn,
    /// Its first byte, as stored, counted from the batch's.
    pub offset: usize,
    /// Its bytes as stored.
    pub length: u32,
    /// Their crc32c.
    pub crc: u32,
}

impl Pending {
    /// A batch whose first entry will be `lsn`.
    pub fn new(lsn: Lsn, buffer: WriteBuffer) -> Pending {
        Pending {
            buffers: vec![buffer],
            filled: BATCH_HEADER_BYTES,
            entries: 0,
            first: lsn,
            last: lsn,
            values: Vec::new(),
        }
    }

    /// Makes room for `bytes` in all, in buffers that `buffer` makes.
    pub fn make_room(&mut self, bytes: usize, buffer: impl Fn(usize) -> WriteBuffer) {
        let first = self.buffers[0].len();
        if first < bytes.min(BUFFER_BYTES_MAX) {
            let mut larger = buffer(padded(bytes.max(2 * first)).min(BUFFER_BYTES_MAX));
            larger[..self.filled].copy_from_slice(&self.buffers[0][..self.filled]);
            self.buffers[0] = larger;
        }
        while bytes > self.buffers.len() * BUFFER_BYTES_MAX {
            self.buffers.push(buffer(BUFFER_BYTES_MAX));
        }
    }

    /// Gives up room that is not needed.
    pub fn trim(&mut self) {
        let bytes = padded(self.filled);
        self.buffers.truncate(bytes.div_ceil(BUFFER_BYTES_MAX));
        let before = (self.buffers.len() - 1) * BUFFER_BYTES_MAX;
        let last = self.buffers.last_mut().expect("there is a header");
        last.truncate(bytes - before);
    }

    /// Notes that the entry just put holds `record`, whose place is wanted, as `stored` says.
    pub fn note_value(&mut self, record: &Record, stored: &[u8], position: Position, lsn: Lsn) {
        let offset = self.filled - stored.len();
        assert!(offset >= BATCH_HEADER_BYTES + ENTRY_HEADER_BYTES);
        self.values.push(Value {
            record: record.clone(),
            position,
            lsn,
            offset,
            length: u32::try_from(stored.len()).expect("values are limited to 512 MiB"),
            crc: crc32c::crc32c(stored),
        });
    }
}

impl Sink for Pending {
    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let buffer = &mut self.buffers[self.filled / BUFFER_BYTES_MAX];
            let free = &mut buffer[self.filled % BUFFER_BYTES_MAX..];
            let (now, later) = rest.split_at(rest.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            rest = later;
        }
    }

    fn number(&self) -> u32 {
        u32::try_from(self.last.0 - self.first.0).expect("a batch is a moment")
    }
}
