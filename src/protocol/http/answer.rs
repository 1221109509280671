//! The head of a response, as a client reads it. Where its body ends must be said, by a length or
//! by chunks: an end of the connection cannot be told from a connection that broke.

use super::head::{FIELDS_MAX, Fields, Framing};
use super::{Refusal, Status};

/// A response without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// How it went.
    pub status: Status,
    /// Where the body ends.
    pub framing: Framing,
}

/// The head at the start of `input`, of at most `bytes_max` bytes, and its length; `None` while it
/// is not all there. An error says why it is not understood.
pub fn read_answer(
    input: &[u8],
    bytes_max: usize,
) -> Result<Option<(AnswerHead, usize)>, &'static str> {
    const BAD: &str = "The head of the answer is not well-formed.";
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(input) {
        Ok(httparse::Status::Complete(length)) if length <= bytes_max => length,
        Ok(httparse::Status::Partial) if input.len() < bytes_max => return Ok(None),
        Ok(_) => return Err("The head of the answer is too long."),
        Err(_) => return Err(BAD),
    };
    let (Some(version), Some(code)) = (response.version, response.code) else {
        return Err(BAD);
    };
    let framing = Fields(response.headers).framing(version == 1);
    match framing.map_err(|Refusal { why, .. }| why)? {
        Framing::None => Err("The answer does not say where it ends."),
        framing => Ok(Some((
            AnswerHead {
                status: Status(code),
                framing,
            },
            length,
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(u16, Framing, usize)>, &'static str> {
        let read = read_answer(text.as_bytes(), 100)?;
        Ok(read.map(|(head, length)| (head.status.0, head.framing, length)))
    }

    /// Else a node would wait for ever, take half an answer for a whole one, or the next bytes for
    /// a part of it.
    #[test]
    fn an_answer_says_how_it_went_and_where_it_ends() {
        let counted = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n";
        let chunked = "HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n";
        let ends = counted.len();
        assert_eq!(read(counted), Ok(Some((200, Framing::Length(12), ends))));
        let more = format!("{counted}HTTP");
        assert_eq!(read(&more), Ok(Some((200, Framing::Length(12), ends))));
        let ends = chunked.len();
        assert_eq!(read(chunked), Ok(Some((503, Framing::Chunked, ends))));
        for cut in 0..counted.len() {
            assert_eq!(read(&counted[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(100));
        let cases = [
            "HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "* OK IMAP4rev1\r\n",
            "\u{15}\u{3}\u{1}",
            &long,
        ];
        for text in cases {
            assert!(read(text).is_err(), "{text:?} is taken");
        }
    }
}
