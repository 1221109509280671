//! Reading a whole table to see whether it is what was written, and naming all that is not.
//!
//! A reader stops at the first damage that it meets; this goes on wherever what is left can still
//! be judged by itself: a section by its checksum, a block by its own, a key by the index, the
//! filter and the bounds. Behind a damaged partition its blocks cannot be told apart; all others
//! can. What is known of the table as a whole (how many records, which versions) is compared only
//! if all of it could be read.

use std::path::Path;

use super::footer::{FOOTER_BYTES, Footer};
use super::partition::{Partition, Top};
use super::{READ_BYTES_MAX, TableId, TableInfo, content, read_exactly, read_range};
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, File};
use crate::storage::block::{Block, Identity};
use crate::storage::codec::Reader;
use crate::storage::merge::{Bound, Item};
use crate::storage::record::KeyRef;
use crate::types::Version;

/// Where those who verify a table say what they see.
pub trait Witness {
    /// At this byte of the file something does not hold.
    fn damage(&mut self, offset: u64, what: String);
    /// This record is in the block at `offset`. What is wrong with it, if the caller knows of
    /// something.
    fn record(&mut self, item: &Item) -> Option<String>;
    /// No more records of this block will be shown.
    fn block_ends(&mut self) -> impl Future<Output = ()>;
    /// So many more bytes have been seen.
    fn seen(&mut self, bytes: u64);
}

/// Verifies the table `id` in `dir`, which should be what the manifest says of it; without a
/// manifest it is taken at its own word. An error: it could not be read.
pub async fn verify(
    dir: &Path,
    id: TableId,
    expected: Option<&TableInfo>,
    witness: &mut impl Witness,
) -> Result<()> {
    let file = match File::open_to_read(&dir.join(id.file_name())).await {
        Ok(file) => file,
        Err(error) if error.is_not_found() => {
            witness.damage(0, "the manifest names it, and it is not there".to_owned());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let verified = verify_file(&file, id, expected, witness).await;
    file.close().await;
    match verified {
        Err(Error::Corrupt { offset, why, .. }) => {
            witness.damage(offset, why);
            Ok(())
        }
        other => other,
    }
}

/// [`Error::Corrupt`] is damage behind which nothing else can be judged.
async fn verify_file(
    file: &File,
    id: TableId,
    expected: Option<&TableInfo>,
    witness: &mut impl Witness,
) -> Result<()> {
    let length = file.len().await?;
    let wanted = expected.map_or(length, |info| info.bytes);
    if length != wanted || length < BLOCK_BYTES as u64 {
        let what = format!("it is {length} bytes long and should be {wanted}");
        witness.damage(length.min(wanted), what);
        return Ok(());
    }
    let footer_at = length - FOOTER_BYTES as u64;
    let bytes = read_exactly(file, footer_at, FOOTER_BYTES).await?;
    let footer = Footer::decode(file.path(), &bytes, id, length)?;
    let parts = read_sections(file, &footer, footer_at, witness).await?;
    let info = match (expected, &parts.info) {
        (Some(expected), Some(own)) => {
            // A table may be moved to another level without being written again.
            let level = own.level;
            if *own
                != (TableInfo {
                    level,
                    ..expected.clone()
                })
            {
                let what = "this is not the table of the manifest".to_owned();
                witness.damage(footer.offsets[2], what);
            }
            expected
        }
        (Some(expected), None) => expected,
        (None, Some(own)) => own,
        (None, None) => return Ok(()),
    };
    let Some(top) = &parts.top else {
        return Ok(()); // where partitions and blocks begin, only the top says
    };
    let mut walk = Walk {
        id,
        info,
        top,
        seen: Seen::default(),
    };
    let mut is_whole = true;
    for at in 0..top.partitions() {
        witness.seen(top.length(at) as u64);
        let Some(partition) = read_partition(file, id, top, at, witness).await? else {
            is_whole = false;
            continue;
        };
        for block in 0..partition.blocks() {
            is_whole &= walk
                .verify_block(file, (at, &partition), block, witness)
                .await?;
            witness.block_ends().await;
            rt::yield_if_needed().await;
        }
    }
    if is_whole && let Some(what) = walk.contradiction() {
        witness.damage(footer.offsets[2], what);
    }
    Ok(())
}

/// What stands behind the partitions, as far as it is sound.
struct Sections {
    top: Option<Top>,
    info: Option<TableInfo>,
}

async fn read_sections(
    file: &File,
    footer: &Footer,
    footer_at: u64,
    witness: &mut impl Witness,
) -> Result<Sections> {
    let [partitions_at, top_at, properties_at, zeros_at] = footer.offsets;
    let tail = read_range(file, top_at, footer_at).await?;
    witness.seen(footer_at - top_at + FOOTER_BYTES as u64);
    let part = |from: u64, to: u64| &tail[(from - top_at) as usize..(to - top_at) as usize];
    let mut content = |from: u64, to: u64, name: &str| {
        let sound = content(part(from, to), TableId(footer.table), from);
        if sound.is_none() {
            witness.damage(from, format!("the checksum of its {name} does not match"));
        }
        sound
    };
    let top = content(top_at, properties_at, "top");
    let properties = content(properties_at, zeros_at, "properties");
    let mut malformed =
        |at: u64, name: &str| witness.damage(at, format!("its {name} is malformed"));
    let decoded = Sections {
        top: top.and_then(|bytes| Top::decode(bytes, partitions_at, top_at)),
        info: properties.and_then(|bytes| {
            let mut reader = Reader::new(bytes);
            TableInfo::decode(&mut reader).filter(|_| reader.is_empty())
        }),
    };
    if top.is_some() && decoded.top.is_none() {
        malformed(top_at, "top");
    }
    if properties.is_some() && decoded.info.is_none() {
        malformed(properties_at, "properties");
    }
    if part(zeros_at, footer_at).iter().any(|&byte| byte != 0) {
        witness.damage(zeros_at, "the padding is not zero".to_owned());
    }
    Ok(decoded)
}

/// Partition `at` of table `id`, if it is sound.
async fn read_partition(
    file: &File,
    id: TableId,
    top: &Top,
    at: usize,
    witness: &mut impl Witness,
) -> Result<Option<Partition>> {
    let offset = top.offset(at);
    let bytes = read_exactly(file, offset, top.length(at)).await?;
    let Some(content) = content(&bytes, id, offset) else {
        let what = "the checksum of a partition of its index does not match";
        witness.damage(offset, what.to_owned());
        return Ok(None);
    };
    let partition = top.decode_partition(at, content);
    if partition.is_none() {
        let what = "a partition of its index is malformed";
        witness.damage(offset, what.to_owned());
    }
    Ok(partition)
}

async fn read_block(file: &File, offset: u64, length: usize) -> Result<Vec<u8>> {
    match length {
        ..=READ_BYTES_MAX => Ok(read_exactly(file, offset, length).await?.to_vec()),
        _ => read_range(file, offset, offset + length as u64).await,
    }
}

/// A table that is asked for keys. Of its partitions it keeps the last one: those who ask go from
/// key to key in order.
pub struct Probe {
    file: File,
    info: TableInfo,
    top: Top,
    last: Option<(usize, Partition)>,
}

/// Nobody listens.
struct Deaf;

impl Witness for Deaf {
    fn damage(&mut self, _: u64, _: String) {}

    fn record(&mut self, _: &Item) -> Option<String> {
        None
    }

    async fn block_ends(&mut self) {}

    fn seen(&mut self, _: u64) {}
}

impl Probe {
    /// Opens the table that the manifest calls `info`. `None`: what is needed of it is damaged.
    pub async fn open(dir: &Path, info: &TableInfo) -> Result<Option<Probe>> {
        let file = match File::open_to_read(&info.path(dir)).await {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let footer_at = info.bytes.saturating_sub(FOOTER_BYTES as u64);
        if file.len().await? != info.bytes || info.bytes < BLOCK_BYTES as u64 {
            return Ok(None);
        }
        let bytes = read_exactly(&file, footer_at, FOOTER_BYTES).await?;
        let Ok(footer) = Footer::decode(file.path(), &bytes, info.id, info.bytes) else {
            return Ok(None);
        };
        let sections = read_sections(&file, &footer, footer_at, &mut Deaf).await?;
        Ok(sections.top.map(|top| Probe {
            file,
            info: info.clone(),
            top,
            last: None,
        }))
    }

    /// True if it has a record of `key`. `None`: the block that could have it, or what says where
    /// that is, is damaged.
    pub async fn has(&mut self, key: &KeyRef<'_>) -> Result<Option<bool>> {
        let at = self.top.find(key.position, key.key);
        if !self.info.covers(key.position, key.key) || at == self.top.partitions() {
            return Ok(Some(false));
        }
        let partition = match self.last.take() {
            Some((last, partition)) if last == at => Some(partition),
            _ => read_partition(&self.file, self.info.id, &self.top, at, &mut Deaf).await?,
        };
        let Some(partition) = partition else {
            return Ok(None);
        };
        let block = partition.find(key.position, key.key);
        let place = (block < partition.blocks() && partition.may_contain(key.hash))
            .then(|| (partition.offset(block), partition.length(block)));
        self.last = Some((at, partition));
        let Some((offset, length)) = place else {
            return Ok(Some(false));
        };
        let bytes = read_block(&self.file, offset, length).await?;
        let at = Identity {
            table: self.info.id.0,
            offset,
        };
        let found = Block::decode(&bytes[..], at).and_then(|block| block.get(key));
        Ok(found.ok().map(|found| found.is_some()))
    }
}

/// What was counted so far.
#[derive(Default)]
struct Seen {
    records: u64,
    tombstones: u64,
    version_max: Version,
    first: Option<Item>,
    last: Option<Item>,
}

/// A walk over the blocks.
struct Walk<'a> {
    id: TableId,
    info: &'a TableInfo,
    top: &'a Top,
    seen: Seen,
}

impl Walk<'_> {
    /// Verifies a block and all that is in it; false if not all could be read. Of what does not
    /// hold the first thing is said.
    async fn verify_block(
        &mut self,
        file: &File,
        (at, partition): (usize, &Partition),
        block: usize,
        witness: &mut impl Witness,
    ) -> Result<bool> {
        let (offset, length) = (partition.offset(block), partition.length(block));
        let bytes = read_block(file, offset, length).await?;
        witness.seen(length as u64);
        let identity = Identity {
            table: self.id.0,
            offset,
        };
        let decoded = match Block::decode(&bytes[..], identity) {
            Ok(decoded) => decoded,
            Err(damage) => {
                witness.damage(offset, damage.0.to_owned());
                return Ok(false);
            }
        };
        let mut wrong = None;
        for item in decoded.iter_from(Bound::START) {
            let item = match item {
                Ok(item) => item,
                Err(damage) => {
                    witness.damage(offset, damage.0.to_owned());
                    return Ok(false);
                }
            };
            let key = KeyRef::of(item.record.key());
            let found = decoded.get(&key);
            let is_found = found.is_ok_and(|found| found.as_ref() == Some(&item.record));
            let own = self.objection(&item, &key);
            let leads_here = self.top.find(item.position, key.key) == at
                && partition.find(item.position, key.key) == block;
            let own = own
                .or_else(|| (!leads_here).then_some("the index looks for a key in another block"));
            let passes = partition.may_contain(key.hash);
            let own = own.or_else(|| (!passes).then_some("the filter does not know a key"));
            let own = own.or_else(|| (!is_found).then_some("a lookup in its block misses a key"));
            wrong = wrong
                .or_else(|| own.map(str::to_owned))
                .or_else(|| witness.record(&item));
            self.count(item);
        }
        if let Some(what) = wrong {
            witness.damage(offset, what);
        }
        Ok(true)
    }

    /// What does not hold of a record.
    fn objection(&self, item: &Item, key: &KeyRef<'_>) -> Option<&'static str> {
        let last = self.seen.last.as_ref();
        if item.position != key.position {
            Some("a key stands at a position that is not its own")
        } else if last.is_some_and(|last| last.order() >= item.order()) {
            Some("its keys do not ascend")
        } else if !self.info.covers(item.position, key.key) {
            Some("a key lies outside of the table's bounds")
        } else if item.record.meta().version > self.info.version_max {
            Some("a version is higher than the table's highest")
        } else {
            None
        }
    }

    fn count(&mut self, item: Item) {
        let meta = item.record.meta();
        self.seen.records += 1;
        self.seen.tombstones += u64::from(meta.tombstone);
        self.seen.version_max = self.seen.version_max.max(meta.version);
        self.seen.first.get_or_insert_with(|| item.clone());
        self.seen.last = Some(item);
    }

    /// Where what was counted in the blocks and what the properties say differ.
    fn contradiction(&self) -> Option<String> {
        let (seen, info) = (&self.seen, self.info);
        let same_key = |item: &Option<Item>, key: &super::KeyBuf| {
            item.as_ref()
                .is_some_and(|item| item.order() == key.order())
        };
        let (what, found, said) = if seen.records != info.records {
            ("records", seen.records, info.records)
        } else if seen.tombstones != info.tombstones {
            ("tombstones", seen.tombstones, info.tombstones)
        } else if seen.version_max != info.version_max {
            let (found, said) = (seen.version_max.clock, info.version_max.clock);
            ("as their highest version", found, said)
        } else if !same_key(&seen.first, &info.first_key) || !same_key(&seen.last, &info.last_key) {
            return Some("its first or last key is not the one that it is said to have".to_owned());
        } else {
            return None;
        };
        Some(format!(
            "its blocks have {found} {what}, its properties say {said}"
        ))
    }
}
