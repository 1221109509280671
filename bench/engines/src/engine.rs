//! What the measurements need of an engine, whichever it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::failure::Outcome;
use crate::phase::Phase;

/// An engine and how it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// Ours, in this process.
    Quoit,
    /// With integrated BlobDB.
    Rocksdb,
    /// Values in the tree.
    Fjall,
    /// Values separated from the tree.
    FjallSeparated,
}

impl EngineName {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            EngineName::Quoit => "quoit",
            EngineName::Rocksdb => "rocksdb",
            EngineName::Fjall => "fjall",
            EngineName::FjallSeparated => "fjall-separated",
        }
    }
}

/// How an engine is opened: the same for all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Which one.
    pub engine: EngineName,
    /// Where its data are.
    pub dir: PathBuf,
    /// Memory for memtables, filters, indexes and caches.
    pub memory: u64,
    /// Cores that it may use: those that Quoit runs on, background threads of the others.
    pub cores: u16,
    /// Quoit's configuration, where it is not the default.
    pub quoit_config: Option<String>,
}

/// Numbers that an engine tells of itself.
pub type Facts = BTreeMap<String, u64>;

/// An engine that is open.
pub trait Engine {
    /// Of how many parts it consists, each with records of its own.
    fn lanes(&self) -> usize;

    /// Does all of `phase`; returns when all of its workers have ended.
    fn run(&mut self, phase: &Arc<Phase>) -> Outcome<()>;

    /// What it tells of itself now.
    fn facts(&mut self) -> Outcome<Facts>;

    /// Closes it in an orderly way.
    fn close(self: Box<Self>) -> Outcome<()>;
}

/// Opens an engine, and makes its directory where there is none.
pub fn open(setup: &Setup) -> Outcome<Box<dyn Engine>> {
    match setup.engine {
        EngineName::Quoit => crate::quoit_engine::open(setup),
        #[cfg(feature = "peers")]
        peer => crate::peers::open(setup, peer),
        #[cfg(not(feature = "peers"))]
        peer => Err(crate::failure::Failure::new(format!(
            "{} is not built in: add --features peers",
            peer.name()
        ))),
    }
}
