//! What a client is told when something could not be done: one sentence for each kind of error.

use std::borrow::Cow;

use crate::error::Error;
use crate::protocol::reply::Reply;

/// An error, for people and for programs.
pub struct Told {
    /// What happened, in the words of Redis's clients.
    pub code: &'static str,
    /// The same in a sentence. It says whether the command was certainly not carried out.
    pub text: Cow<'static, str>,
}

impl Told {
    /// What is told of `error`.
    pub fn of(error: &Error) -> Told {
        let (code, text) = match error {
            Error::DiskFull => (
                "MISCONF",
                "The disk is full: this write was refused and changed nothing. Reads go on; \
                 writes go on when there is space again.",
            ),
            Error::TooManyFiles => (
                "MISCONF",
                "Too many files are open: this write was refused and changed nothing. Reads go on; \
                 writes go on when the node may open files again (raise its limit, or close connections).",
            ),
            Error::DiskFails => (
                "MISCONF",
                "The disk fails, so that memory cannot be written to it: this write was refused \
                 and changed nothing. Reads go on; it is tried again.",
            ),
            Error::LogFailed => (
                "MISCONF",
                "The log could not be written: this write was refused and changed nothing. \
                 Reads go on; restart the node once the disk is well.",
            ),
            Error::Uncertain => (
                "UNKNOWN",
                "The log failed while this write was on its way to disk: it may or may not \
                 survive. Restart the node once the disk is well.",
            ),
            Error::Unopened => (
                "MISCONF",
                "Before its first write a cluster has to agree that it holds data, and too few of the nodes that keep \
                 its map, or not the etcd that does, have answered: this write was refused and changed nothing. The next one tries again.",
            ),
            Error::Busy => ("BUSY", "Too much work is queued. Nothing was done."),
            Error::Unavailable { need, live } => {
                let text = format!(
                    "Too few replicas of this key are there: {live}, and this level needs {need}. \
                     Nothing was done."
                );
                return Told {
                    code: "NOREPLICAS",
                    text: text.into(),
                };
            }
            Error::Unanswered => (
                "NOREPLICAS",
                "Too few replicas of this key have answered in time. Nothing was done.",
            ),
            Error::InDoubt => (
                "UNKNOWN",
                "Too few replicas have acknowledged this write in time: it may or may not \
                 appear, and once seen it stays.",
            ),
            Error::NeedsOrder => (
                "ERR",
                "This reads before it writes, or writes in a transaction, which needs one order of all \
                 replicas' writes, and this cluster does not have that yet. Nothing was done.",
            ),
            Error::Io { .. } | Error::Corrupt { .. } | Error::Setup(_) => {
                let text = format!("The stored data could not be read: {error}");
                return Told {
                    code: "IOERR",
                    text: text.into(),
                };
            }
        };
        Told {
            code,
            text: text.into(),
        }
    }
}

/// Writes the reply that tells of `error`.
pub fn reply_refusal(error: &Error, reply: &mut Reply<'_>) {
    let Told { code, text } = Told::of(error);
    reply.error(&format!("{code} {text}"));
}
