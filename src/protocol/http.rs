//! HTTP/1.1 to and from bytes: heads of requests, bodies, responses; and those of others, where a
//! node is the client itself (`answer`). Pure, and resumable at every byte.
//!
//! Where two readers of the same bytes could disagree about where a request ends, the request is
//! refused and the connection is to be closed ([`Refusal`]): both lengths and chunks, several
//! lengths, lengths that are no plain number, encodings other than exactly `chunked`, folded lines,
//! lines that do not end with CR LF, a blank before a colon, no host or two. What is declared is
//! not trusted: memory grows with what has come, up to a bound.

mod answer;
mod body;
mod head;
mod response;

pub use answer::{AnswerHead, read_answer};
pub use body::{Body, Fed};
pub use head::{Expected, Framing, Head, HeadLimits, HeadParser, Method, Parsed, Tags};
pub use response::{CONTINUE, Response, http_date};

/// A status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

/// Why a request is not taken, and neither is anything behind it: where it ends is not known, or
/// not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client is told.
    pub status: Status,
    /// Why.
    pub why: &'static str,
}

impl Refusal {
    /// A refusal.
    pub const fn new(status: u16, why: &'static str) -> Refusal {
        Refusal {
            status: Status(status),
            why,
        }
    }

    const fn bad(why: &'static str) -> Refusal {
        Refusal::new(400, why)
    }
}

/// A status, its reason, and the word by which errors name it.
const STATUSES: &[(u16, &str, &str)] = &[
    (200, "OK", "ok"),
    (304, "Not Modified", "not_modified"),
    (400, "Bad Request", "bad_request"),
    (401, "Unauthorized", "unauthorized"),
    (404, "Not Found", "not_found"),
    (405, "Method Not Allowed", "method_not_allowed"),
    (406, "Not Acceptable", "not_acceptable"),
    (408, "Request Timeout", "timeout"),
    (411, "Length Required", "length_required"),
    (412, "Precondition Failed", "precondition_failed"),
    (413, "Content Too Large", "too_large"),
    (414, "URI Too Long", "uri_too_long"),
    (417, "Expectation Failed", "expectation_failed"),
    (431, "Request Header Fields Too Large", "head_too_large"),
    (500, "Internal Server Error", "internal"),
    (501, "Not Implemented", "not_implemented"),
    (503, "Service Unavailable", "unavailable"),
    (505, "HTTP Version Not Supported", "version_not_supported"),
];

impl Status {
    fn row(self) -> (&'static str, &'static str) {
        let row = STATUSES.iter().find(|(code, ..)| *code == self.0);
        row.map_or(("Unknown", "unknown_status"), |(_, reason, word)| {
            (reason, word)
        })
    }

    /// What stands behind the code.
    pub fn reason(self) -> &'static str {
        self.row().0
    }

    /// As an error names it, if it has no better name.
    pub fn word(self) -> &'static str {
        self.row().1
    }
}

#[cfg(test)]
mod tests;
