//! RESP2 and RESP3: commands to bytes, and bytes to replies. Pure.
//!
//! The parser takes bytes in whatever pieces they come and keeps none of them but the beginning of
//! an unfinished line: payloads are handed on as they arrive. So its memory is bounded whatever
//! lengths a server claims. Another protocol (HTTP) would be a file beside this one with the same
//! two things, a writer of requests and a `Parser` that gives `Event`s: nothing else in the crate
//! knows how bytes look.

/// Bytes of a reply's line: an error message, or the length of what follows.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Aggregates within aggregates.
const DEPTH_MAX: usize = 16;
/// Bytes that are kept of an error message.
pub const ERROR_BYTES_MAX: usize = 200;

/// Appends a command to `out`: its words, each with its length.
pub fn write_command(words: &[&[u8]], out: &mut Vec<u8>) {
    write_head(words.len(), out);
    for word in words {
        write_word(word, out);
    }
}

/// Appends the beginning of a command of `words` words.
pub fn write_head(words: usize, out: &mut Vec<u8>) {
    out.push(b'*');
    write_number(words as u64, out);
    out.extend_from_slice(b"\r\n");
}

pub fn write_word(word: &[u8], out: &mut Vec<u8>) {
    write_word_with(word.len(), out, |out| out.extend_from_slice(word));
}

/// Appends a word of `length` bytes that `write` appends.
pub fn write_word_with(length: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'$');
    write_number(length as u64, out);
    out.extend_from_slice(b"\r\n");
    let start = out.len();
    write(out);
    assert!(out.len() == start + length, "a word is as long as it says");
    out.extend_from_slice(b"\r\n");
}

/// Appends `number` in decimal digits.
pub fn write_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A reply at the top level. Payloads of it came before.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+OK` and the like.
    Status,
    Integer(i64),
    Null,
    /// A string, whose bytes were events of their own.
    Bulk,
    /// Anything that has elements.
    Aggregate,
    /// A number with a fraction, a truth value, and what else RESP3 has.
    Other,
    /// The message, cut to a length that can be kept.
    Error(Box<str>),
}

/// What the next bytes are.
#[derive(Debug, PartialEq)]
pub enum Event<'b> {
    /// A piece of a string.
    Payload(&'b [u8]),
    Reply(Reply),
}

/// What is no RESP. The connection cannot be used any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// What an aggregate is to those who wait for replies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Frame {
    /// A reply, or an element of one.
    Reply,
    /// RESP3's push and attribute: they answer nothing.
    Aside,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Line,
    /// Bytes left of a string; then its line end. `error` where the string is an error message.
    Payload {
        left: u64,
        is_error: bool,
    },
    End {
        left: u8,
        is_error: bool,
    },
}

/// Reads one connection's replies.
#[derive(Debug, Default)]
pub struct Parser {
    /// The beginning of a line; the beginning of an error message that comes as a string.
    line: Vec<u8>,
    state: State,
    /// Elements left of each aggregate that is open, the outermost first.
    open: Vec<(u64, Frame)>,
}

impl Parser {
    /// The next event of `bytes`, which are advanced; `None` when they are used up.
    pub fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<Event<'b>>, Broken> {
        while !bytes.is_empty() {
            let event = match self.state {
                State::Line => match self.take_line(bytes)? {
                    true => self.on_line()?,
                    false => None,
                },
                State::Payload { left, is_error } => {
                    let payload = self.on_payload(bytes, left, is_error);
                    payload.map(Event::Payload)
                }
                State::End { left, is_error } => self.on_end(bytes, left, is_error)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Moves bytes up to a line's end into `self.line`; true when it is whole.
    fn take_line(&mut self, bytes: &mut &[u8]) -> Result<bool, Broken> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if self.line.len() + taken > LINE_BYTES_MAX {
            return Err(Broken);
        }
        self.line.extend_from_slice(&bytes[..taken]);
        *bytes = &bytes[taken..];
        if end.is_none() {
            return Ok(false);
        }
        let Some(line) = self.line.strip_suffix(b"\r\n") else {
            return Err(Broken);
        };
        let length = line.len();
        self.line.truncate(length);
        Ok(true)
    }

    fn on_line(&mut self) -> Result<Option<Event<'static>>, Broken> {
        let (kind, rest) = self.line.split_first().ok_or(Broken)?;
        let reply = match kind {
            b'+' => Reply::Status,
            b'-' => Reply::Error(shortened(rest)),
            b':' => Reply::Integer(number(rest)?),
            b'_' => Reply::Null,
            b',' | b'#' | b'(' => Reply::Other,
            b'$' | b'=' | b'!' => match number(rest)? {
                -1 => Reply::Null,
                length => {
                    let left = u64::try_from(length).map_err(|_| Broken)?;
                    let is_error = *kind == b'!';
                    self.line.clear();
                    self.state = match left {
                        0 => State::End { left: 2, is_error },
                        _ => State::Payload { left, is_error },
                    };
                    return Ok(None);
                }
            },
            b'*' | b'~' | b'%' | b'>' | b'|' => match number(rest)? {
                -1 => Reply::Null,
                length => {
                    let kind = *kind;
                    self.line.clear();
                    let elements = u64::try_from(length).map_err(|_| Broken)?;
                    return self.on_aggregate(kind, elements);
                }
            },
            _ => return Err(Broken),
        };
        self.line.clear();
        Ok(self.on_element(reply))
    }

    fn on_aggregate(&mut self, kind: u8, length: u64) -> Result<Option<Event<'static>>, Broken> {
        let elements = match kind {
            b'%' | b'|' => length.checked_mul(2).ok_or(Broken)?,
            _ => length,
        };
        let frame = match kind {
            b'>' | b'|' => Frame::Aside,
            _ => Frame::Reply,
        };
        match (elements, frame) {
            (0, Frame::Aside) => Ok(None),
            (0, Frame::Reply) => Ok(self.on_element(Reply::Aggregate)),
            _ if self.open.len() == DEPTH_MAX => Err(Broken),
            _ => {
                self.open.push((elements, frame));
                Ok(None)
            }
        }
    }

    fn on_payload<'b>(
        &mut self,
        bytes: &mut &'b [u8],
        left: u64,
        is_error: bool,
    ) -> Option<&'b [u8]> {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (payload, rest) = bytes.split_at(taken);
        *bytes = rest;
        self.state = match left - taken as u64 {
            0 => State::End { left: 2, is_error },
            left => State::Payload { left, is_error },
        };
        if !is_error {
            return Some(payload);
        }
        let room = ERROR_BYTES_MAX - self.line.len().min(ERROR_BYTES_MAX);
        self.line.extend_from_slice(&payload[..taken.min(room)]);
        None
    }

    fn on_end(
        &mut self,
        bytes: &mut &[u8],
        left: u8,
        is_error: bool,
    ) -> Result<Option<Event<'static>>, Broken> {
        let expected = if left == 2 { b'\r' } else { b'\n' };
        if bytes[0] != expected {
            return Err(Broken);
        }
        *bytes = &bytes[1..];
        if left == 2 {
            self.state = State::End { left: 1, is_error };
            return Ok(None);
        }
        self.state = State::Line;
        let reply = match is_error {
            true => Reply::Error(shortened(&self.line)),
            false => Reply::Bulk,
        };
        self.line.clear();
        Ok(self.on_element(reply))
    }

    /// Something is complete: that may complete what it is an element of.
    fn on_element(&mut self, reply: Reply) -> Option<Event<'static>> {
        let mut reply = reply;
        while let Some((left, frame)) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return None;
            }
            let frame = *frame;
            self.open.pop();
            if frame == Frame::Aside {
                return None; // it counts for nobody
            }
            reply = Reply::Aggregate;
        }
        Some(Event::Reply(reply))
    }
}

fn number(digits: &[u8]) -> Result<i64, Broken> {
    let digits = std::str::from_utf8(digits).map_err(|_| Broken)?;
    digits.parse().map_err(|_| Broken)
}

fn shortened(message: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&message[..message.len().min(ERROR_BYTES_MAX)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    /// All replies of `bytes`, fed in pieces, each with the payload before it.
    fn replies(bytes: &[u8], piece: usize) -> Result<Vec<(Vec<u8>, Reply)>, Broken> {
        let (mut parser, mut found, mut payload) = (Parser::default(), Vec::new(), Vec::new());
        for mut piece in bytes.chunks(piece) {
            while let Some(event) = parser.next(&mut piece)? {
                match event {
                    Event::Payload(bytes) => payload.extend_from_slice(bytes),
                    Event::Reply(reply) => found.push((std::mem::take(&mut payload), reply)),
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn commands_are_written_as_redis_reads_them() {
        let mut out = Vec::new();
        write_command(&[b"SET", b"k", b"\r\n", b""], &mut out);
        assert_eq!(
            out,
            b"*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n$0\r\n\r\n"
        );
        out.clear();
        write_number(u64::MAX, &mut out);
        assert_eq!(out, b"18446744073709551615");
    }

    /// A reply that is matched with the wrong request makes every later latency and value wrong.
    #[test]
    fn every_kind_of_reply_is_one_reply_in_whatever_pieces_it_comes() {
        let cases: &[(&[u8], &[u8], Reply)] = &[
            (b"+OK\r\n", b"", Reply::Status),
            (b"-ERR no\r\n", b"", Reply::Error("ERR no".into())),
            (b":-42\r\n", b"", Reply::Integer(-42)),
            (b"$-1\r\n", b"", Reply::Null),
            (b"*-1\r\n", b"", Reply::Null),
            (b"_\r\n", b"", Reply::Null),
            (b"$0\r\n\r\n", b"", Reply::Bulk),
            (b"$5\r\na\r\nbc\r\n", b"a\r\nbc", Reply::Bulk),
            (b"=5\r\ntxt:x\r\n", b"txt:x", Reply::Bulk),
            (b"!7\r\nERR bad\r\n", b"", Reply::Error("ERR bad".into())),
            (b"#t\r\n", b"", Reply::Other),
            (b",1.5\r\n", b"", Reply::Other),
            (b"*0\r\n", b"", Reply::Aggregate),
            (
                b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n*0\r\n",
                b"a",
                Reply::Aggregate,
            ),
            (b"%1\r\n+k\r\n~1\r\n_\r\n", b"", Reply::Aggregate),
            (b">2\r\n+message\r\n:1\r\n+OK\r\n", b"", Reply::Status),
            (b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n", b"v", Reply::Bulk),
            (
                b"*2\r\n|1\r\n+a\r\n:1\r\n:2\r\n:3\r\n",
                b"",
                Reply::Aggregate,
            ),
        ];
        let all: Vec<u8> = cases
            .iter()
            .flat_map(|(bytes, ..)| bytes.iter().copied())
            .collect();
        let expected: Vec<_> = cases
            .iter()
            .map(|(_, payload, reply)| (payload.to_vec(), reply.clone()))
            .collect();
        for piece in [1, 2, 3, 5, 64, 4096] {
            assert_eq!(
                replies(&all, piece).as_ref(),
                Ok(&expected),
                "pieces of {piece}"
            );
        }
    }

    #[test]
    fn what_is_no_reply_breaks_the_connection() {
        for wrong in [
            &b"hello\r\n"[..],
            b"\r\n",
            b"+OK\n",
            b":x\r\n",
            b"$-2\r\n",
            b"$1\r\nabc\r\n",
            b"*-5\r\n",
            b"%9223372036854775807\r\n:1\r\n",
        ] {
            let found = replies(wrong, 64);
            let is_refused = found.is_err() || found == Ok(Vec::new());
            assert!(
                is_refused,
                "{:?}: {found:?}",
                String::from_utf8_lossy(wrong)
            );
        }
        assert_eq!(replies(&b"*1\r\n".repeat(DEPTH_MAX + 1), 64), Err(Broken));
        assert_eq!(replies(&vec![b'+'; LINE_BYTES_MAX + 1], 4096), Err(Broken));
    }

    /// A server may claim any length: the parser must neither keep nor allocate for it.
    #[test]
    fn memory_stays_bounded_whatever_lengths_are_claimed() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        let mut head = &b"*1000000000\r\n$9223372036854775807\r\n"[..];
        assert_eq!(parser.next(&mut head), Ok(None));
        for _ in 0..100 {
            let mut bytes = &chunk[..];
            assert!(matches!(
                parser.next(&mut bytes),
                Ok(Some(Event::Payload(_)))
            ));
            assert!(bytes.is_empty());
        }
        let mut bulk_error = Parser::default();
        let mut head = &b"!1000000000\r\n"[..];
        assert_eq!(bulk_error.next(&mut head), Ok(None));
        for _ in 0..100 {
            assert_eq!(bulk_error.next(&mut &chunk[..]), Ok(None));
        }
        for parser in [parser, bulk_error] {
            assert!(
                parser.line.capacity() <= LINE_BYTES_MAX && parser.open.capacity() <= 2 * DEPTH_MAX
            );
        }
    }

    /// No bytes from outside may end the program.
    #[test]
    fn random_bytes_never_panic() {
        let mut chance = Chance::new(11);
        for _ in 0..20_000 {
            let alphabet = b"+-:$*%>|!=_#,~(\r\n\r\n0123456789-x";
            let bytes: Vec<u8> = (0..chance.below(60))
                .map(|_| alphabet[chance.below(alphabet.len() as u64) as usize])
                .collect();
            let _ = replies(&bytes, 1 + chance.below(8) as usize);
        }
    }
}
