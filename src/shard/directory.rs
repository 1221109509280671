//! The data directory before any core opens its part: whose it is, and for how many cores.
//!
//! Core 0 does all of this while it holds the lock and the other cores wait: it removes what a
//! crash has left of a re-sharding, and re-shards if the node is to have another number of cores
//! than the data is laid out for.

use std::cell::Cell;
use std::time::Duration;

use futures_lite::future;

use crate::cluster::ring::{Map, Run};
use crate::config::{CompactionName, Config, MEMTABLE_SHARE, VNODES};
use crate::error::{Error, Result};
use crate::rt;
use crate::storage::compaction::{Shape, Style};
use crate::storage::identity::{self, Folder, Identity};
use crate::storage::reshard::{Reshard, Share};
use crate::storage::wal::WalLimits;
use crate::storage::{Opened, Store, StoreOptions};
use crate::types::CoreId;

/// A re-sharding says so often how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How the store of core `id` of `cores` is to be.
pub fn store_options(id: CoreId, cores: u16, config: &Config) -> StoreOptions {
    let (storage, values) = (&config.storage, &config.value_log);
    let memory_bytes = config.memory.0 / u64::from(cores);
    StoreOptions {
        core: id,
        cores,
        durability: config.durability(),
        memtable_bytes: storage.memtable.0.min(memory_bytes / MEMTABLE_SHARE),
        memory_bytes,
        index_bytes_max: memory_bytes / 100 * storage.index_share_percent,
        wal_bytes_max: storage.wal_max.0,
        wal: WalLimits {
            segment_bytes: storage.wal_segment.0,
            batch_bytes_max: storage.wal_batch.0 as usize,
        },
        compaction: Shape {
            style: match storage.compaction {
                CompactionName::Leveled => Style::Leveled,
                CompactionName::SizeTiered => Style::SizeTiered,
            },
            table_bytes: storage.table_max.0,
            base_bytes: storage.level_base.0,
            ratio: storage.level_ratio,
        },
        compression: storage.compression,
        value_bytes_min: values.threshold.0 as usize,
        value_compression: values.compression,
        value_segment_bytes: values.segment.0,
        value_replay_bytes_max: values.replay_max.0,
        value_garbage_percent_max: values.garbage_max_percent,
    }
}

/// Opens the store of core `id` of `cores` in a directory that was never re-sharded, as `config`
/// says. (`bench/engines` drives it without the rest of a node.)
pub async fn open_store(id: CoreId, cores: u16, config: &Config) -> Result<Opened> {
    let identity = Identity {
        node: config.node_id,
        cores,
        vnodes: VNODES,
        generation: 0,
        is_opened: false,
    };
    let dir = config.dir.join(identity.folder(id).name());
    Store::open(&dir, store_options(id, cores, config)).await
}

/// Creates the data directory, if need be, and keeps all others out of it.
pub async fn lock(config: &Config) -> Result<rt::DirLock> {
    rt::create_dir_all(&config.dir).await?;
    rt::lock_file(&config.dir.join("LOCK"))
        .await
        .map_err(|error| match &error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock => {
                Error::Setup(format!(
                    "the data directory {} is in use by another process: stop that node, or start \
                 this one with another --dir",
                    config.dir.display()
                ))
            }
            _ => error,
        })
}

/// Makes the data directory, which is locked, that of `node`, for `cores` cores, or sees that it
/// is, whatever that takes. `None`: the node was asked to stop before that was done.
pub async fn claim(config: &Config, cores: u16, node: u16) -> Result<Option<Identity>> {
    let wanted = Identity {
        node,
        cores,
        vnodes: VNODES,
        generation: 0,
        is_opened: false,
    };
    let found = identity::claim(&config.dir, wanted).await?;
    identity::see_folders(&config.dir, &found).await?;
    let folders = identity::left_over(&config.dir, &found).await?;
    let removed = match identity::confirm(&config.dir, &found, &folders).await {
        Ok(()) => remove_all(config, &folders).await,
        Err(error) if error.is_disk_full() => Err(error),
        Err(error) => return Err(error),
    };
    if let Err(error) = removed {
        // They would be in the way of a re-sharding, and of nothing else.
        if found.cores != cores {
            return Err(error);
        }
        log::warn!("{error}; the next start removes what a re-sharding has left");
    }
    if found.cores == cores {
        return Ok(Some(found));
    }
    let resharded = async { reshard(config, found, cores).await.map(Some) };
    let stopped = async {
        rt::stopping().await;
        log::info!("stopped before the data was laid out for {cores} cores: it is as it was");
        Ok(None)
    };
    future::or(resharded, stopped).await
}

/// All cores have opened their folders, and nothing was written to any of them in this start.
pub async fn note_opened(config: &Config, identity: Identity) -> Result<()> {
    match identity::note_opened(&config.dir, identity).await {
        Err(error) if error.is_disk_full() => {
            log::warn!("{error}; the next start tries again");
            Ok(())
        }
        noted => noted,
    }
}

/// Removes `folders`, which certainly do not count.
async fn remove_all(config: &Config, folders: &[Folder]) -> Result<()> {
    for folder in folders {
        identity::remove(&config.dir.join(folder.name())).await?;
    }
    Ok(())
}

/// Lays the data out for `cores` cores; the identity that is in force then.
async fn reshard(config: &Config, from: Identity, cores: u16) -> Result<Identity> {
    let generation = from.generation.checked_add(1).ok_or_else(|| {
        let dir = config.dir.display();
        Error::Setup(format!("{dir} was re-sharded too often"))
    })?;
    let to = Identity {
        cores,
        generation,
        is_opened: true, // it counts when all of its folders are there
        ..from
    };
    let (dir, old) = (config.dir.display(), from.cores);
    log::info!("the data in {dir} is laid out for {old} cores: re-sharding it for {cores}");
    let reshard = Reshard {
        dir: &config.dir,
        from,
        to,
        shares_from: shares(old),
        shares_to: shares(cores),
        options: &|core, cores| store_options(core, cores, config),
    };
    let began = rt::now();
    let told_at = Cell::new(began);
    let tell = |percent: u64| {
        if rt::now() - told_at.get() >= PROGRESS_EVERY {
            told_at.set(rt::now());
            log::info!("re-sharding: {percent}%");
        }
    };
    let done = reshard.run(tell).await.map_err(|error| match error {
        Error::Uncertain => Error::Setup(format!(
            "the re-sharding of {dir} from {old} to {cores} cores could not be completed, or it may \
             have been: nothing is lost, start the node again"
        )),
        other => Error::Setup(format!(
            "{dir} cannot be re-sharded from {old} to {cores} cores: {other}. Its data is as it was, \
             and opens with --cores {old}"
        )),
    })?;
    log::info!(
        "re-sharded from {old} to {cores} cores in {:.1?}: {} records, {} bytes of tables; {} segments \
         of large values are linked, not copied",
        rt::now() - began,
        done.records,
        done.table_bytes,
        done.segments
    );
    let removed = match identity::left_over(&config.dir, &to).await {
        Ok(folders) => remove_all(config, &folders).await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        log::warn!("{error}; the next start removes what is left of the old layout");
    }
    Ok(to)
}

/// Which of so many cores has which positions.
fn shares(cores: u16) -> Vec<Share> {
    let share = |run: Run| Share {
        core: run.core,
        first: run.first,
        last: run.last,
    };
    Map::one_node(cores).runs().map(share).collect()
}
