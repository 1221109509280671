//! Limits so small that a store does within a second what takes a node hours.

use quoit::config::{Compression, Durability};
use quoit::storage::StoreOptions;
use quoit::storage::compaction::{Shape, Style};
use quoit::storage::wal::WalLimits;
use quoit::types::CoreId;

/// Of a core alone: memtables of some values, segments of tens of values, a collector that has
/// always something to do.
pub fn small() -> StoreOptions {
    StoreOptions {
        core: CoreId(0),
        cores: 1,
        durability: Durability::Sync,
        memtable_bytes: 20_000,
        memory_bytes: 1 << 20,
        index_bytes_max: 1 << 19,
        wal_bytes_max: 1 << 20,
        wal: WalLimits {
            segment_bytes: 64 << 10,
            batch_bytes_max: 64 << 10,
        },
        compaction: Shape {
            style: Style::Leveled,
            table_bytes: 64 << 10,
            base_bytes: 64 << 10,
            ratio: 4,
        },
        compression: Compression::None,
        value_bytes_min: 1_000,
        value_compression: Compression::None,
        value_segment_bytes: 64 << 10,
        value_replay_bytes_max: 1 << 20,
        value_garbage_percent_max: 10,
    }
}
