//! A response as bytes.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::Status;
use crate::types::UnixMillis;

/// "Go on, send the body."
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// How it went.
    pub status: Status,
    /// The media type of the body.
    pub media: &'static str,
    /// Fields besides those that every response has.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// For HEAD: how long the body would be.
    pub length: Option<u64>,
}

impl Response {
    /// A response with this body.
    pub fn new(status: u16, media: &'static str, body: Vec<u8>) -> Response {
        Response {
            status: Status(status),
            media,
            fields: Vec::new(),
            body,
            length: None,
        }
    }

    /// With this field. Its value is ours: it has no line ends.
    pub fn with(mut self, name: &'static str, value: String) -> Response {
        assert!(value.bytes().all(|byte| byte != b'\r' && byte != b'\n'));
        self.fields.push((name, value));
        self
    }

    /// With the length of the body, and no body: what HEAD is told.
    pub fn without_body(mut self) -> Response {
        let length = self.length.unwrap_or(self.body.len() as u64);
        self.length = Some(length);
        self.body = Vec::new();
        self
    }

    /// Everything before the body. `stays`: the connection does.
    pub fn head(&self, now: UnixMillis, stays: bool) -> Vec<u8> {
        let mut head = String::with_capacity(256);
        let Status(code) = self.status;
        // Writing to a String cannot fail.
        let _ = write!(head, "HTTP/1.1 {code} {}\r\n", self.status.reason());
        let _ = write!(head, "Date: {}\r\n", http_date(now));
        if code != 304 {
            let length = self.length.unwrap_or(self.body.len() as u64);
            let _ = write!(
                head,
                "Content-Type: {}\r\nContent-Length: {length}\r\n",
                self.media
            );
        }
        for (name, value) in &self.fields {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let connection = if stays { "keep-alive" } else { "close" };
        let _ = write!(head, "Connection: {connection}\r\n\r\n");
        head.into_bytes()
    }
}

/// A moment as HTTP writes it. Those that it has no form for are the last that it has.
pub fn http_date(moment: UnixMillis) -> String {
    /// The end of the year 9999.
    const LAST: UnixMillis = 253_402_300_799_000;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(moment.min(LAST)))
}
