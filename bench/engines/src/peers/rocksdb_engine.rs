//! RocksDB with integrated BlobDB: direct I/O, every write synced, nothing compressed.

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBufferManager, WriteOptions,
};

use super::{MEMTABLES_MAX, Memory, Peer};
use crate::engine::{Facts, Setup};
use crate::failure::{Failure, Outcome};

/// Values of this size and more go to blob files.
const BLOB_BYTES_MIN: u64 = 1024;
/// Bits of the filter for each key, as in Quoit.
const FILTER_BITS: f64 = 10.0;
/// Blob files are collected from this part of garbage on (the default, 1, hardly ever does so).
const COLLECT_FROM: f64 = 0.25;
/// Blobs of the oldest half of the files may be moved.
const COLLECT_OLDEST: f64 = 0.5;
/// Log files that are used again, which spares syncs the file system's journal.
const LOGS_RECYCLED: usize = 4;

/// An open database.
pub struct Rocks {
    db: DB,
    synced: WriteOptions,
    unsynced: WriteOptions,
}

fn failed(error: rocksdb::Error) -> Failure {
    Failure::new(format!("rocksdb: {error}"))
}

impl Rocks {
    /// Opens it, or makes it.
    pub fn open(setup: &Setup, memory: Memory) -> Outcome<Rocks> {
        let cache = Cache::new_lru_cache(setup.memory as usize);
        let memtables = MEMTABLES_MAX * memory.memtable;
        // Memtables count against the cache: one budget for all.
        let manager = WriteBufferManager::new_write_buffer_manager_with_cache(
            memtables as usize,
            false,
            cache.clone(),
        );
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_bloom_filter(FILTER_BITS, false);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_manager(&manager);
        options.set_write_buffer_size(memory.memtable as usize);
        options.set_max_write_buffer_number(MEMTABLES_MAX as i32);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_blob_file_size(64 << 20);
        options.set_blob_cache(&cache);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(COLLECT_OLDEST);
        options.set_blob_gc_force_threshold(COLLECT_FROM);
        options.set_compression_type(DBCompressionType::None);
        options.set_use_direct_reads(true);
        options.set_use_direct_io_for_flush_and_compaction(true);
        options.set_recycle_log_file_num(LOGS_RECYCLED);
        options.set_max_background_jobs(i32::from(setup.cores).max(2));
        options.set_stats_dump_period_sec(0);
        let db = DB::open(&options, &setup.dir).map_err(failed)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        Ok(Rocks {
            db,
            synced,
            unsynced: WriteOptions::default(),
        })
    }
}

impl Peer for Rocks {
    fn put(&self, key: &[u8], value: &[u8], synced: bool) -> Outcome<()> {
        let options = if synced { &self.synced } else { &self.unsynced };
        self.db.put_opt(key, value, options).map_err(failed)
    }

    fn get(&self, key: &[u8], check: &mut dyn FnMut(Option<&[u8]>)) -> Outcome<()> {
        let value = self.db.get_pinned(key).map_err(failed)?;
        check(value.as_deref());
        Ok(())
    }

    fn sync(&self) -> Outcome<()> {
        self.db.flush_wal(true).map_err(failed)
    }

    fn facts(&self) -> Facts {
        let names = [
            "rocksdb.estimate-num-keys",
            "rocksdb.total-sst-files-size",
            "rocksdb.total-blob-file-size",
            "rocksdb.live-blob-file-garbage-size",
            "rocksdb.estimate-table-readers-mem",
            "rocksdb.cur-size-all-mem-tables",
            "rocksdb.block-cache-usage",
            "rocksdb.num-running-compactions",
            "rocksdb.estimate-pending-compaction-bytes",
        ];
        let value = |name: &&str| self.db.property_int_value(*name).ok().flatten();
        let facts = names
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), value(name)?)));
        facts.collect()
    }
}
