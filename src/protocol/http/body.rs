//! The body of a request: so many bytes, or chunks.
//!
//! A chunk is `size in hexadecimal digits [;extension] CRLF bytes CRLF`; one of no bytes is the
//! last, and trailer lines up to an empty one follow. Extensions and trailers are bounded, and
//! ignored. Everything may come in any pieces.

use super::{Framing, Refusal};

/// Bytes of the extension of a chunk.
const EXTENSION_BYTES_MAX: usize = 256;
/// Bytes of all trailers.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Digits of a chunk's size: more would not be a size that anybody could take.
const SIZE_DIGITS_MAX: usize = 15;
/// So much is taken into memory ahead of the bytes themselves.
const AHEAD_BYTES_MAX: usize = 1 << 20;

/// A body that is being read.
#[derive(Debug)]
pub struct Body {
    state: State,
    /// Bytes of the value that may still come.
    room: usize,
}

#[derive(Debug)]
enum State {
    /// So many bytes of a body whose length is known.
    Counted {
        left: u64,
    },
    /// In the line of a size.
    Size {
        size: u64,
        digits: usize,
    },
    /// Behind its `;`.
    Extension {
        size: u64,
        bytes: usize,
    },
    /// Behind its CR.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// In a trailer line that has so many bytes, of so many altogether.
    Trailer {
        line: usize,
        bytes: usize,
    },
    /// Behind its CR.
    TrailerEnd {
        line: usize,
        bytes: usize,
    },
    Done,
}

/// What became of some input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// So much of it belonged to the body.
    pub consumed: usize,
    /// The body is complete.
    pub done: bool,
}

const TOO_LARGE: Refusal = Refusal::new(413, "The value is larger than limits.value-max.");

impl Body {
    /// A body that is framed like this and may have `bytes_max` bytes.
    pub fn new(framing: Framing, bytes_max: usize) -> Result<Body, Refusal> {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) if length > bytes_max as u64 => return Err(TOO_LARGE),
            Framing::Length(left) => State::Counted { left },
            Framing::Chunked => State::size(),
        };
        Ok(Body {
            state,
            room: bytes_max,
        })
    }

    /// True if nothing more is to come.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes what belongs to the body from the start of `input`, and adds its content to `out`.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Fed, Refusal> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            at += match self.state {
                State::Counted { left } => {
                    let (taken, left) = self.content(left, &input[at..], out)?;
                    self.state = match left {
                        0 => State::Done,
                        left => State::Counted { left },
                    };
                    taken
                }
                State::Data { left } => {
                    let (taken, left) = self.content(left, &input[at..], out)?;
                    self.state = match left {
                        0 => State::DataCr,
                        left => State::Data { left },
                    };
                    taken
                }
                _ => {
                    self.state = self.state.step(input[at], self.room)?;
                    1
                }
            };
        }
        Ok(Fed {
            consumed: at,
            done: self.is_done(),
        })
    }

    /// Takes up to `left` bytes of content: how many, and how many are left.
    fn content(
        &mut self,
        left: u64,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, u64), Refusal> {
        let taken = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.room = self.room.checked_sub(taken).ok_or(TOO_LARGE)?;
        if out.capacity() - out.len() < taken {
            let expected = usize::try_from(left).unwrap_or(usize::MAX);
            out.reserve(expected.min(AHEAD_BYTES_MAX).max(taken));
        }
        out.extend_from_slice(&input[..taken]);
        Ok((taken, left - taken as u64))
    }
}

impl State {
    fn size() -> State {
        State::Size { size: 0, digits: 0 }
    }

    /// One byte of what is around the content, of which `room` bytes may still come.
    fn step(&self, byte: u8, room: usize) -> Result<State, Refusal> {
        const BAD_SIZE: Refusal =
            Refusal::bad("The size of a chunk is no plain hexadecimal number.");
        const BAD_END: Refusal = Refusal::bad("A line or chunk does not end with CR LF.");
        const LONG: Refusal =
            Refusal::bad("The line of a chunk's size, or a trailer, is too long.");
        Ok(match *self {
            State::Size { size, digits } => match byte {
                b'\r' if digits > 0 => State::SizeEnd { size },
                b';' if digits > 0 => State::Extension { size, bytes: 0 },
                _ => {
                    let digit = char::from(byte).to_digit(16).ok_or(BAD_SIZE)?;
                    if digits == SIZE_DIGITS_MAX {
                        return Err(BAD_SIZE);
                    }
                    State::Size {
                        size: size << 4 | u64::from(digit),
                        digits: digits + 1,
                    }
                }
            },
            State::Extension { bytes, .. } if bytes >= EXTENSION_BYTES_MAX => return Err(LONG),
            State::Extension { size, bytes } => match byte {
                b'\r' => State::SizeEnd { size },
                b'\t' | b' '..=b'~' | 0x80.. => State::Extension {
                    size,
                    bytes: bytes + 1,
                },
                _ => return Err(BAD_END),
            },
            State::SizeEnd { .. } if byte != b'\n' => return Err(BAD_END),
            State::SizeEnd { size: 0 } => State::Trailer { line: 0, bytes: 0 },
            State::SizeEnd { size } if size > room as u64 => return Err(TOO_LARGE),
            State::SizeEnd { size } => State::Data { left: size },
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::size(),
            State::DataCr | State::DataLf => return Err(BAD_END),
            State::Trailer { bytes, .. } if bytes >= TRAILER_BYTES_MAX => return Err(LONG),
            State::Trailer { line, bytes } => match byte {
                b'\r' => State::TrailerEnd {
                    line,
                    bytes: bytes + 1,
                },
                b'\t' | b' '..=b'~' | 0x80.. => State::Trailer {
                    line: line + 1,
                    bytes: bytes + 1,
                },
                _ => return Err(BAD_END),
            },
            State::TrailerEnd { .. } if byte != b'\n' => return Err(BAD_END),
            State::TrailerEnd { line: 0, .. } => State::Done,
            State::TrailerEnd { bytes, .. } => State::Trailer {
                line: 0,
                bytes: bytes + 1,
            },
            State::Counted { .. } | State::Data { .. } | State::Done => {
                unreachable!("content is taken in pieces, and nothing behind the end")
            }
        })
    }
}
