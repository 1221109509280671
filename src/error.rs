//! What went wrong, by what the caller can still do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in Quoit that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing that some caller does about it.
#[derive(Debug)]
pub enum Error {
    /// An operation on a file, directory or socket failed. `NotFound`, ENOSPC and address-in-use
    /// are told apart by `source`'s kind.
    Io {
        /// What was tried, as a verb: "open", "write", "sync".
        action: &'static str,
        /// The file, directory or address.
        what: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Bytes on disk are not what was written there. Never served, never skipped: the shard
    /// does not open.
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// What does not hold.
        why: String,
    },
    /// The disk is full: this write was refused and changed nothing; reads go on.
    DiskFull,
    /// No more files may be open: this write was refused and changed nothing; reads go on, and it
    /// is tried again.
    TooManyFiles,
    /// The disk fails what memory must be written to: this write was refused and changed nothing;
    /// reads go on, and the disk is asked again.
    DiskFails,
    /// The log failed. Writes are refused until the node is restarted; this write changed nothing.
    LogFailed,
    /// The log failed while this write was on its way to disk: it may or may not survive.
    Uncertain,
    /// This would have been the cluster's first write, and not enough of those that keep its map
    /// have answered: it changed nothing.
    Unopened,
    /// A queue is full. Nothing was done.
    Busy,
    /// Fewer replicas are there than the level asks for. Nothing was done.
    Unavailable {
        /// How many the level asks for.
        need: usize,
        /// How many are there.
        live: usize,
    },
    /// Too few replicas answered in time. Nothing was done, and nothing will be.
    Unanswered,
    /// Too few replicas acknowledged this write in time: it may appear or not, and once seen it
    /// stays.
    InDoubt,
    /// What reads before it writes needs one order of the writes on all replicas. Nothing was done.
    NeedsOrder,
    /// The node cannot run as it is configured, or where it is. For the operator; ends the process.
    Setup(String),
}

impl Error {
    /// An I/O error with its context.
    pub fn io(action: &'static str, what: &Path, source: io::Error) -> Error {
        Error::Io {
            action,
            what: what.to_owned(),
            source,
        }
    }

    /// True if the file system or quota is out of space.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Error::DiskFull => true,
            Error::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }

    /// True if the process, or the system, may open no more files.
    pub fn is_too_many_files(&self) -> bool {
        match self {
            Error::TooManyFiles => true,
            Error::Io { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
            }
            _ => false,
        }
    }

    /// True if the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io {
                action,
                what,
                source,
            } => {
                write!(f, "cannot {action} {}: {source}", what.display())
            }
            Error::Corrupt { file, offset, why } => {
                write!(f, "{} is damaged at byte {offset}: {why}", file.display())
            }
            Error::DiskFull => write!(f, "no space left on device"),
            Error::TooManyFiles => write!(f, "too many open files; it is tried again"),
            Error::DiskFails => write!(f, "the disk fails writes; they are tried again"),
            Error::LogFailed => write!(f, "the log failed; writes are refused until a restart"),
            Error::Uncertain => write!(f, "the log failed; this write may or may not survive"),
            Error::Unopened => write!(
                f,
                "the first write needs the cluster's map changed, and too few have answered that keep it"
            ),
            Error::Busy => write!(f, "too much work is queued"),
            Error::Unavailable { need, live } => {
                write!(f, "{need} replicas are needed, and {live} are there")
            }
            Error::Unanswered => write!(f, "too few replicas answered in time"),
            Error::InDoubt => write!(f, "too few replicas acknowledged this write in time"),
            Error::NeedsOrder => write!(f, "this needs one order of all replicas' writes"),
            Error::Setup(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for Error {}
