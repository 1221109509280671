//! What a client is told when something could not be done: one line for each kind of error.

use crate::error::Error;
use crate::protocol::reply::Reply;

/// Writes the reply. It says whether the command was certainly not carried out.
pub fn reply_refusal(error: &Error, reply: &mut Reply<'_>) {
    match error {
        Error::DiskFull => reply.error(
            "MISCONF The disk is full: this write was refused and changed nothing. Reads go on; \
             writes go on when there is space again.",
        ),
        Error::TooManyFiles => reply.error(
            "MISCONF Too many files are open: this write was refused and changed nothing. Reads go on; \
             writes go on when the node may open files again (raise its limit, or close connections).",
        ),
        Error::DiskFails => reply.error(
            "MISCONF The disk fails, so that memory cannot be written to it: this write was refused \
             and changed nothing. Reads go on; it is tried again.",
        ),
        Error::LogFailed => reply.error(
            "MISCONF The log could not be written: this write was refused and changed nothing. \
             Reads go on; restart the node once the disk is well.",
        ),
        Error::Uncertain => reply.error(
            "UNKNOWN The log failed while this write was on its way to disk: it may or may not \
             survive. Restart the node once the disk is well.",
        ),
        Error::Busy => reply.error("BUSY Too much work is queued. Nothing was done."),
        Error::Io { .. } | Error::Corrupt { .. } | Error::Setup(_) => {
            reply.error(&format!("IOERR The stored data could not be read: {error}"));
        }
    }
}
