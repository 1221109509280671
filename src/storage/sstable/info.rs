//! What is known of a table without opening it.
//!
//! info := id u64 | run u64 | level u8 | bytes u64 | records u64 | tombstones u64
//!         | version max (clock u64 | coordinator u32) | half expired u64 | pointed u64
//!         | first key | last key
//! key  := position u32 | length u32 | bytes                         (little endian)
//!
//! The same bytes stand in the table's properties and in the manifest, and must agree.

use std::path::{Path, PathBuf};

use crate::rt::BLOCK_BYTES;
use crate::storage::codec::{Reader, put_key};
use crate::storage::merge::Item;
use crate::types::{Position, UnixMillis, Version};

/// A table's number in its core's directory. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u64);

impl TableId {
    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("{:012}.table", self.0)
    }

    /// The table whose file has this name.
    pub fn parse(name: &str) -> Option<TableId> {
        let id = TableId(name.strip_suffix(".table")?.parse().ok()?);
        (id.file_name() == name).then_some(id)
    }
}

/// A key that is kept, with its position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyBuf {
    /// Its place on the ring.
    pub position: Position,
    /// The key.
    pub key: Vec<u8>,
}

impl KeyBuf {
    pub(super) fn order(&self) -> (Position, &[u8]) {
        (self.position, &self.key)
    }

    pub(super) fn of(item: &Item) -> KeyBuf {
        KeyBuf {
            position: item.position,
            key: item.record.key().to_vec(),
        }
    }
}

/// What is known of a table without opening it. The manifest holds one for each live table, and
/// the table itself holds it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its number.
    pub id: TableId,
    /// Tables that one merge wrote are one run: disjoint, and adjacent in the manifest. Named after
    /// its first table.
    pub run: TableId,
    /// Its level. One that was moved has another here than in its file.
    pub level: u8,
    /// Length of the file.
    pub bytes: u64,
    /// Records in it, tombstones too.
    pub records: u64,
    /// Tombstones in it.
    pub tombstones: u64,
    /// Its lowest key.
    pub first_key: KeyBuf,
    /// Its highest key.
    pub last_key: KeyBuf,
    /// The highest version in it.
    pub version_max: Version,
    /// When half of its bytes will have expired (to within a few percent, never too early);
    /// 0: never.
    pub half_expired_at: UnixMillis,
    /// Bytes of the large values to which those of its records point that do not say that what they
    /// hide is counted as garbage.
    pub pointed: u64,
}

impl TableInfo {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.id.0, self.run.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(self.level);
        for word in [
            self.bytes,
            self.records,
            self.tombstones,
            self.version_max.clock,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.version_max.coordinator.to_le_bytes());
        out.extend_from_slice(&self.half_expired_at.to_le_bytes());
        out.extend_from_slice(&self.pointed.to_le_bytes());
        for key in [&self.first_key, &self.last_key] {
            put_key(key.position, &key.key, out);
        }
    }

    /// Reads what [`TableInfo::encode`] wrote. `None` if it cannot be that.
    pub fn decode(reader: &mut Reader<'_>) -> Option<TableInfo> {
        let info = TableInfo {
            id: TableId(reader.u64()?),
            run: TableId(reader.u64()?),
            level: reader.u8()?,
            bytes: reader.u64()?,
            records: reader.u64()?,
            tombstones: reader.u64()?,
            version_max: Version {
                clock: reader.u64()?,
                coordinator: reader.u32()?,
            },
            half_expired_at: reader.u64()?,
            pointed: reader.u64()?,
            first_key: read_key(reader)?,
            last_key: read_key(reader)?,
        };
        let sane = info.first_key <= info.last_key
            && info.records > 0
            && info.tombstones <= info.records
            && info.bytes > 0
            && info.bytes.is_multiple_of(BLOCK_BYTES as u64);
        sane.then_some(info)
    }

    /// True if the table may hold this key, by its range.
    pub fn covers(&self, position: Position, key: &[u8]) -> bool {
        let order = (position, key);
        self.first_key.order() <= order && order <= self.last_key.order()
    }

    /// True if all of its keys are below this one.
    pub fn ends_before(&self, position: Position, key: &[u8]) -> bool {
        self.last_key.order() < (position, key)
    }

    /// True if the table may hold keys from `first` to `last`, both included.
    pub fn overlaps(&self, first: Position, last: Position) -> bool {
        self.first_key.position <= last && first <= self.last_key.position
    }

    /// Where its file is.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.id.file_name())
    }
}

fn read_key(reader: &mut Reader<'_>) -> Option<KeyBuf> {
    let (position, key) = reader.key()?;
    Some(KeyBuf {
        position,
        key: key.to_vec(),
    })
}
