//! Frames that wait to be sent over one connection, in one piece of memory, so that all of them
//! leave at once. Pure.
//!
//! A frame is stamped when it leaves. A request that is too late by then does not leave.

use std::collections::VecDeque;
use std::time::Duration;

use crate::protocol::peer::{self, Message};

/// Frames in the order in which they leave.
#[derive(Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    frames: VecDeque<Waiting>,
}

struct Waiting {
    id: u64,
    length: usize,
    /// `None` for an answer.
    deadline: Option<Duration>,
}

/// When frames leave, and what they are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub now: Duration,
    /// When the handshake was done.
    pub greeted: Duration,
    /// Of this node's map.
    pub epoch: u64,
}

/// What becomes of a request whose turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It leaves.
    Leaves,
    /// It is too late for it, or nobody waits for it any more.
    Dropped,
}

impl Queue {
    /// Bytes of all frames.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame behind the others.
    pub fn push(
        &mut self,
        id: u64,
        message: &Message<'_>,
        version: u8,
        deadline: Option<Duration>,
    ) {
        let start = self.bytes.len();
        peer::encode_unstamped(id, message, version, &mut self.bytes);
        let length = self.bytes.len() - start;
        self.frames.push_back(Waiting {
            id,
            length,
            deadline,
        });
    }

    /// Moves all frames to `out`, which is empty, but those requests that are too late, and those
    /// of which `judge` says so. `judge` is called for each request that there is time for.
    pub fn take(&mut self, out: &mut Vec<u8>, moment: Moment, mut judge: impl FnMut(u64) -> Turn) {
        assert!(out.is_empty());
        let (mut from, mut to) = (0, 0);
        for frame in self.frames.drain(..) {
            let leaves = match frame.deadline {
                None => true,
                Some(deadline) => deadline > moment.now && judge(frame.id) == Turn::Leaves,
            };
            if leaves {
                self.bytes.copy_within(from..from + frame.length, to);
                let bytes = &mut self.bytes[to..to + frame.length];
                let deadline_ms = frame.deadline.map_or(0, |deadline| moment.count(deadline));
                peer::stamp(bytes, deadline_ms, moment.epoch);
                to += frame.length;
            }
            from += frame.length;
        }
        assert!(from == self.bytes.len());
        self.bytes.truncate(to);
        std::mem::swap(&mut self.bytes, out);
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        *self = Queue::default();
    }
}

impl Moment {
    /// Whole milliseconds from the handshake to `deadline`: not more than there are. Beyond 2^32
    /// they begin anew.
    fn count(&self, deadline: Duration) -> u32 {
        deadline.saturating_sub(self.greeted).as_millis() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::peer::{Answer, Limits, Parsed, Request, VERSION, parse};

    const MS: Duration = Duration::from_millis(1);

    fn ids(bytes: &[u8]) -> Vec<(u64, u32, u64)> {
        let (mut rest, mut ids) = (bytes, Vec::new());
        while !rest.is_empty() {
            match parse(rest, &Limits::proven(VERSION, 10, 10)) {
                Parsed::Frame { consumed, frame } => {
                    ids.push((frame.id, frame.deadline_ms, frame.epoch));
                    rest = &rest[consumed..];
                }
                verdict => panic!("{verdict:?}"),
            }
        }
        ids
    }

    /// Else a replica would be asked for what nobody waits for, or be told a deadline that is not
    /// the asker's.
    #[test]
    fn a_frame_leaves_with_the_time_that_is_left_for_it_or_not_at_all() {
        let mut queue = Queue::default();
        let long = [7; 50];
        let request = Message::Request(Request::Gossip(&long));
        for (id, deadline) in [(1, 100), (2, 5), (3, 100), (4, 6), (5, 100)] {
            queue.push(id, &request, VERSION, Some(MS * deadline));
        }
        queue.push(9, &Message::Answer(Answer::Done), VERSION, None);
        let mut out = Vec::new();
        let judge = |id| match id {
            3 => Turn::Dropped,
            _ => Turn::Leaves,
        };
        let moment = Moment {
            now: MS * 5 + MS / 2,
            greeted: MS * 2,
            epoch: 77,
        };
        queue.take(&mut out, moment, judge);
        assert!(queue.is_empty() && queue.bytes() == 0);
        assert_eq!(
            ids(&out),
            [(1, 98, 77), (4, 4, 77), (5, 98, 77), (9, 0, 77)]
        );
    }
}
