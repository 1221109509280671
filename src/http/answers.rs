//! What a client is told: JSON for all but a value's bytes, the figures and the page.

use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use crate::error::Error;
use crate::protocol::http::{Refusal, Response, Status, http_date};
use crate::shard::Told;
use crate::shard::kv::{Condition, Entry, Outcome, Written};
use crate::types::Version;

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
const HTML: &str = "text/html; charset=utf-8";
/// Of the text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct WrittenBody<'a> {
    status: &'a str,
    version: String,
    replicas_written: u8,
}

#[derive(Serialize)]
struct EntryBody<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'a str>,
    version: String,
    /// Unix milliseconds.
    last_modified: u64,
}

#[derive(Serialize)]
struct StatusBody<'a> {
    status: &'a str,
}

fn json(status: u16, body: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec(body).expect("texts and numbers have a form in JSON");
    body.push(b'\n'); // for people at a terminal
    Response::new(status, JSON, body)
}

fn named_error(status: u16, error: &str, message: &str) -> Response {
    json(status, &ErrorBody { error, message })
}

/// An error that is called as its status is.
pub fn error(status: u16, message: &str) -> Response {
    named_error(status, Status(status).word(), message)
}

/// A request that was not taken.
pub fn refusal(refusal: Refusal) -> Response {
    error(refusal.status.0, refusal.why)
}

/// "Who are you?"
pub fn unauthorized() -> Response {
    let challenge = "Basic realm=\"quoit\", charset=\"UTF-8\"";
    error(401, "A password is needed, for the user `default`.")
        .with("WWW-Authenticate", challenge.to_owned())
}

/// The method is none of this resource's. `is_key`: all that keys have are, else those that only
/// look.
pub fn not_allowed(is_key: bool) -> Response {
    let allowed = match is_key {
        true => "GET, HEAD, PUT, DELETE",
        false => "GET, HEAD",
    };
    error(405, "This method is not allowed here.").with("Allow", allowed.to_owned())
}

/// How the node is.
pub fn health(is_well: bool, status: &str) -> Response {
    json(if is_well { 200 } else { 503 }, &StatusBody { status })
        .with("Cache-Control", "no-store".to_owned())
}

/// Figures for Prometheus.
pub fn metrics(text: String) -> Response {
    Response::new(200, METRICS, text.into_bytes())
}

/// The page for people.
pub fn page(text: String) -> Response {
    Response::new(200, HTML, text.into_bytes())
}

/// What could not be done. `unknown` is the one error after which nobody knows whether it was.
pub fn failure(failed: &Error) -> Response {
    let (status, name) = match failed {
        Error::DiskFull => (503, "disk_full"),
        Error::TooManyFiles => (503, "too_many_files"),
        Error::DiskFails => (503, "disk_fails"),
        Error::LogFailed => (503, "log_failed"),
        Error::Uncertain => (503, "unknown"),
        Error::Unopened => (503, "unopened"),
        Error::Busy => (503, "busy"),
        Error::Unavailable { .. } => (503, "unavailable"),
        Error::Unanswered => (503, "unanswered"),
        Error::InDoubt => (408, "unknown"),
        Error::NeedsOrder => (501, "needs_order"),
        Error::Io { .. } | Error::Corrupt { .. } | Error::Setup(_) => (500, "storage"),
    };
    named_error(status, name, &Told::of(failed).text)
}

/// In which form a value is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Its bytes.
    Bytes,
    /// JSON of up to so many bytes: an escape may take six for one.
    Json(u64),
}

/// What became of an operation; `condition` is what a read was asked under.
pub fn outcome(outcome: Outcome, condition: &Condition, form: Form) -> Response {
    match outcome {
        Outcome::NotFound | Outcome::NothingDeleted => error(404, "There is no such key."),
        Outcome::Stored(written) => done("stored", written),
        Outcome::Deleted(written) => done("deleted", written),
        Outcome::PreconditionFailed(current) => precondition_failed(current),
        Outcome::Found(entry) => found(entry, condition, form),
    }
}

fn done(status: &str, written: Written) -> Response {
    let body = WrittenBody {
        status,
        version: written.version.to_string(),
        replicas_written: written.replicas,
    };
    versioned(json(200, &body), written.version)
}

fn precondition_failed(current: Option<Version>) -> Response {
    let response = error(412, "The key has not the version that was asked for.");
    match current {
        Some(version) => versioned(response, version),
        None => response,
    }
}

fn versioned(response: Response, version: Version) -> Response {
    response
        .with("X-Version", version.to_string())
        .with("ETag", format!("\"{version}\""))
}

fn found(entry: Entry, condition: &Condition, form: Form) -> Response {
    let is_match = Condition {
        if_match: condition.if_match.clone(),
        if_none_match: None,
    };
    if !is_match.holds(Some(entry.version)) {
        return precondition_failed(Some(entry.version));
    }
    let (version, millis) = (entry.version, entry.version.millis());
    let response = match condition.holds(Some(version)) {
        false => Response::new(304, BYTES, Vec::new()),
        true => match form {
            Form::Json(bytes_max) => entry_in_json(&entry, bytes_max),
            Form::Bytes => Response {
                length: Some(entry.length),
                ..Response::new(200, BYTES, entry.value)
            },
        },
    };
    versioned(response, version)
        .with("Last-Modified", http_date(millis))
        .with("Cache-Control", "no-cache".to_owned())
        .with("Vary", "Accept".to_owned())
}

fn entry_in_json(entry: &Entry, bytes_max: u64) -> Response {
    let coded;
    let (value, encoding) = match std::str::from_utf8(&entry.value) {
        Ok(text) => (text, None),
        Err(_) => {
            coded = BASE64_STANDARD.encode(&entry.value);
            (&coded[..], Some("base64"))
        }
    };
    let body = EntryBody {
        value,
        encoding,
        version: entry.version.to_string(),
        last_modified: entry.version.millis(),
    };
    let mut out = Bounded {
        bytes: Vec::new(),
        left: bytes_max,
    };
    match serde_json::to_writer(&mut out, &body) {
        Ok(()) => {
            out.bytes.push(b'\n'); // for people at a terminal
            Response::new(200, JSON, out.bytes)
        }
        Err(_) => error(
            406,
            "As JSON the value is larger than limits.reply-max: ask for its bytes.",
        ),
    }
}

/// Bytes that are being written, up to so many more.
struct Bounded {
    bytes: Vec<u8>,
    left: u64,
}

impl io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(piece.len() as u64);
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
