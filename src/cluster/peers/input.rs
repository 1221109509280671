//! Bytes that have come over a connection and are not understood yet. An idle connection holds no
//! memory for them.

use std::cell::RefCell;

/// Bytes of a lent buffer; about as many are read at a time.
const READ_BYTES: usize = 32 * 1024;
/// Lent buffers that a core keeps.
const BUFFERS_KEPT: usize = 16;
/// A large frame's buffer grows by as much at a time: what is declared is not trusted.
const GROWTH_BYTES_MAX: usize = 1 << 20;

/// Buffers that connections lend while they read.
#[derive(Default)]
pub(super) struct Buffers(RefCell<Vec<Vec<u8>>>);

/// One connection's input.
#[derive(Default)]
pub(super) struct Input {
    /// Lent, or as long as what it holds, or grown.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// What is not understood yet.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes are done with.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Memory to read into: for `needed` more bytes, if those are not too many at a time.
    pub fn room(&mut self, needed: usize, buffers: &Buffers) -> &mut [u8] {
        let rest = self.end - self.start;
        if self.bytes.len() < READ_BYTES {
            let lent = buffers.0.borrow_mut().pop();
            let mut buffer = lent.unwrap_or_else(|| vec![0; READ_BYTES]);
            buffer[..rest].copy_from_slice(self.filled());
            self.bytes = buffer;
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, rest);
        if self.bytes.len() < rest + needed.clamp(1, GROWTH_BYTES_MAX) {
            let more = needed.clamp(READ_BYTES, GROWTH_BYTES_MAX);
            self.bytes.resize(rest + more, 0);
        }
        &mut self.bytes[rest..]
    }

    /// `count` bytes were read into the room.
    pub fn filled_by(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len());
    }

    /// Nothing has come: gives back what was lent.
    pub fn put_aside(&mut self, buffers: &Buffers) {
        let rest = self.end - self.start;
        if self.bytes.len() < READ_BYTES || rest >= READ_BYTES {
            return;
        }
        let kept = self.filled().to_vec();
        let buffer = std::mem::replace(&mut self.bytes, kept);
        (self.start, self.end) = (0, rest);
        let mut buffers = buffers.0.borrow_mut();
        if buffers.len() < BUFFERS_KEPT && buffer.len() == READ_BYTES {
            buffers.push(buffer);
        }
    }
}
