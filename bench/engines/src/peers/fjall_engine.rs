//! fjall, with values in its tree or separated from it: every write persisted, nothing compressed.
//!
//! It reads and writes through the page cache, which counts against the same control group.

use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};

use super::{Memory, Peer};
use crate::engine::{Facts, Setup};
use crate::failure::{Failure, Outcome};

/// Values of this size and more are separated.
const SEPARATED_BYTES_MIN: u32 = 1024;

/// An open database with one keyspace.
pub struct Fjall {
    database: Database,
    records: Keyspace,
}

fn failed(error: fjall::Error) -> Failure {
    Failure::new(format!("fjall: {error}"))
}

impl Fjall {
    /// Opens it, or makes it.
    pub fn open(setup: &Setup, memory: Memory, is_separated: bool) -> Outcome<Fjall> {
        let database = Database::builder(&setup.dir)
            .cache_size(memory.cache)
            .worker_threads(usize::from(setup.cores).max(2))
            .journal_compression(CompressionType::None)
            .open()
            .map_err(failed)?;
        let separation = KvSeparationOptions::default()
            .separation_threshold(SEPARATED_BYTES_MIN)
            .compression(CompressionType::None);
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(memory.memtable)
                .manual_journal_persist(true)
                .data_block_compression_policy(CompressionPolicy::disabled())
                .with_kv_separation(is_separated.then_some(separation))
        };
        let records = database.keyspace("records", options).map_err(failed)?;
        Ok(Fjall { database, records })
    }
}

impl Peer for Fjall {
    fn put(&self, key: &[u8], value: &[u8], synced: bool) -> Outcome<()> {
        self.records.insert(key, value).map_err(failed)?;
        match synced {
            true => self.sync(),
            false => Ok(()),
        }
    }

    fn get(&self, key: &[u8], check: &mut dyn FnMut(Option<&[u8]>)) -> Outcome<()> {
        let value = self.records.get(key).map_err(failed)?;
        check(value.as_deref());
        Ok(())
    }

    fn sync(&self) -> Outcome<()> {
        self.database.persist(PersistMode::SyncData).map_err(failed)
    }

    fn facts(&self) -> Facts {
        let disk = self.database.disk_space().unwrap_or(0);
        let facts = [
            ("disk_space", disk),
            ("write_buffer_bytes", self.database.write_buffer_size()),
            ("journals", self.database.journal_count() as u64),
            ("compactions", self.database.compactions_completed() as u64),
            ("cache_bytes", self.database.cache_size()),
        ];
        let facts = facts.into_iter();
        facts
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}
