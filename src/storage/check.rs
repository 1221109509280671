//! Verifies a data directory of which no node runs: everything in it, without changing anything.
//!
//! For each core: its manifest, every table that the manifest names (sections, blocks, keys,
//! counts), every segment of its logs from the floors on, every live one of the value log, that
//! each pointer leads to the record that was meant (check/follow.rs), and that each key is the
//! core's. For the node: every file of hints (check/hints.rs). What no manifest names is named too,
//! as a note: the next start removes it. Damage does not end the check: all of it is named, by file
//! and byte. What a crash may leave is no damage: a torn end of a log, what came after it in the
//! order of all writes (`recover`), a half-written file.
//!
//! Without its manifest a core's tables are taken at their own word, and its logs cannot be judged.

mod follow;
mod hints;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::hints::FOLDER;
use super::identity::{self, Folder, Identity};
use super::manifest::{MANIFEST, MANIFEST_TMP, Manifest};
use super::merge::Item;
use super::record::{KeyRef, Record};
use super::recover;
use super::sealed;
use super::sstable::{TableId, verify as table};
use super::wal::format::{Entry, SegmentId, Stream};
use super::wal::verify as log;
use crate::config::CORES_MAX;
use crate::error::{Error, Result};
use crate::rt::{self, File};
use crate::types::{CoreId, Lsn, Position};
use follow::Follower;

const LOCK: &str = "LOCK";

/// Says which core has a position.
pub type Owner = Box<dyn Fn(Position) -> CoreId>;

/// What is told while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Something is not what was written.
    Damage(Place),
    /// This could not be checked.
    Unchecked(Place),
    /// No damage, but worth knowing.
    Note(Place),
    /// So many bytes of so many have been read.
    Progress {
        /// Read so far.
        done: u64,
        /// To be read in all.
        total: u64,
    },
}

/// A place in a file, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file or directory.
    pub file: PathBuf,
    /// Byte offset in it.
    pub offset: u64,
    /// What is the matter there.
    pub what: String,
}

/// What was checked, and how much of what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cores.
    pub cores: u64,
    /// Tables.
    pub tables: u64,
    /// Records in tables.
    pub table_records: u64,
    /// Segments of all logs, spare ones too.
    pub segments: u64,
    /// Records in the logs: those to be replayed, and those in the value log.
    pub log_records: u64,
    /// Pointers from tables into the value log.
    pub pointers: u64,
    /// Mutations that are kept for other nodes' replicas.
    pub hints: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Places that are damaged.
    pub damaged: u64,
    /// Files that could not be checked.
    pub unchecked: u64,
    /// Notes.
    pub notes: u64,
}

/// Verifies the data directory `dir`. `ring` says which of so many cores has a position; `tell` is
/// told what is found, as it is found. An error: nothing could be checked.
pub async fn check(
    dir: &Path,
    ring: &dyn Fn(u16) -> Owner,
    tell: &mut dyn FnMut(Told),
) -> Result<Summary> {
    let names = rt::list_dir(dir).await?;
    let _lock = lock(dir, &names).await?;
    let folders = names.iter().filter_map(|name| Folder::parse(name));
    let folders: BTreeSet<Folder> = folders.collect();
    let is_nothing = folders.is_empty() && !names.iter().any(|name| name == identity::NAME);
    if is_nothing {
        return Err(Error::Setup(format!(
            "{} is no data directory of Quoit: there is neither {} nor a core's directory",
            dir.display(),
            identity::NAME
        )));
    }
    let mut checker = Checker {
        ring,
        tell,
        summary: Summary::default(),
        bytes_total: 0,
    };
    if !names.iter().any(|name| name == LOCK) {
        checker.note(
            &dir.join(LOCK),
            0,
            "it is not there, so that nothing keeps a node from starting",
        );
    }
    let identity = checker.read_identity(dir).await;
    checker.check_sealed(dir).await;
    checker.name_strangers(dir, &names);
    let is_left_over =
        |folder: &Folder| identity.is_some_and(|identity| identity.is_left_over(*folder));
    for folder in folders.iter().filter(|folder| is_left_over(folder)) {
        let what = "a re-sharding has left it: the next start removes it";
        checker.note(&dir.join(folder.name()), 0, what);
    }
    let expected = identity.map_or(Vec::new(), |identity| {
        let cores = (0..identity.cores).map(CoreId);
        cores.map(|core| identity.folder(core)).collect()
    });
    let there = folders.iter().filter(|folder| !is_left_over(folder));
    let all: BTreeSet<Folder> = there.copied().chain(expected.iter().copied()).collect();
    checker.bytes_total = measure(dir, all.intersection(&folders)).await?;
    checker.bytes_total += hints::measure(dir, &names).await?;
    checker.check_hints(dir, &names).await;
    let mut missing = Vec::new();
    for folder in all {
        let path = dir.join(folder.name());
        if identity.is_some() && !expected.contains(&folder) {
            let what = "the node has no such core: nobody reads what is here";
            checker.damage(&path, 0, what);
        }
        let is_begun =
            folders.contains(&folder) && checker.check_core(&path, folder.core, identity).await;
        if !is_begun {
            missing.push(path);
        }
    }
    // A node serves nobody before all cores have begun.
    let records = checker.summary.table_records + checker.summary.log_records;
    let is_used = records > 0 || identity.is_some_and(|identity| identity.is_opened);
    for folder in missing {
        match is_used {
            true => checker.damage(
                &folder,
                0,
                "this core's data is missing; other cores have theirs",
            ),
            false => checker.note(&folder, 0, "this core has not begun yet"),
        }
    }
    Ok(checker.summary)
}

/// Keeps nodes away, without leaving a file where there was none.
async fn lock(dir: &Path, names: &[String]) -> Result<Option<rt::DirLock>> {
    if !names.iter().any(|name| name == LOCK) {
        return Ok(None);
    }
    match rt::lock_existing(&dir.join(LOCK)).await {
        Ok(lock) => Ok(Some(lock)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Error::Setup(format!(
                "the data directory {} is in use by another process: stop that node first",
                dir.display()
            )))
        }
        Err(error) => Err(error),
    }
}

/// Bytes of all tables and segments.
async fn measure(dir: &Path, folders: impl Iterator<Item = &Folder>) -> Result<u64> {
    let mut total = 0;
    for folder in folders {
        let folder = dir.join(folder.name());
        for name in rt::list_dir(&folder).await? {
            if is_data(&name) {
                total += length_of(&folder.join(name)).await?;
            }
        }
    }
    Ok(total)
}

async fn length_of(path: &Path) -> Result<u64> {
    let file = File::open_to_read(path).await?;
    let length = file.len().await;
    file.close().await;
    length
}

struct Checker<'a> {
    ring: &'a dyn Fn(u16) -> Owner,
    tell: &'a mut dyn FnMut(Told),
    summary: Summary,
    bytes_total: u64,
}

impl Checker<'_> {
    async fn read_identity(&mut self, dir: &Path) -> Option<Identity> {
        let path = dir.join(identity::NAME);
        match identity::read(dir).await {
            Ok(identity) => return Some(identity),
            Err(error) if error.is_not_found() => {
                self.damage(&path, 0, "it is missing, but there is data");
            }
            Err(error) => self.failed(&path, error),
        }
        None
    }

    /// Verifies the small files of the node's cluster, if it has them.
    async fn check_sealed(&mut self, dir: &Path) {
        for kind in sealed::KINDS {
            if let Err(error) = sealed::read(dir, kind).await {
                self.failed(&kind.path(dir), error);
            }
        }
    }

    /// Names what is neither a core's directory nor a file that a node makes.
    fn name_strangers(&mut self, dir: &Path, names: &[String]) {
        let is_sealed = |name: &str| sealed::KINDS.iter().any(|kind| kind.name == name);
        let is_own = |name: &str| {
            let own = [identity::NAME, LOCK, FOLDER];
            own.contains(&name) || is_sealed(name)
        };
        let is_known = |name: &str| is_own(name) || Folder::parse(name).is_some();
        for name in names.iter().filter(|name| !is_known(name)) {
            let what = match name.ends_with(".tmp") {
                true => "half written: nothing needs it",
                false => "this is no file of Quoit's",
            };
            self.note(&dir.join(name), 0, what);
        }
    }

    /// Verifies one core; false if there is nothing of it yet.
    async fn check_core(&mut self, dir: &Path, core: CoreId, identity: Option<Identity>) -> bool {
        let names = match rt::list_dir(dir).await {
            Ok(names) => names,
            Err(error) => {
                self.failed(dir, error);
                return true;
            }
        };
        self.summary.cores += 1;
        let path = dir.join(MANIFEST);
        let manifest = match Manifest::read(dir).await {
            Ok(Some(manifest)) => Some(manifest),
            Ok(None) if !names.iter().any(|name| is_data(name)) => return false,
            Ok(None) => {
                self.damage(&path, 0, "it is missing, but there is data beside it");
                None
            }
            Err(error) => {
                self.failed(&path, error);
                None
            }
        };
        let cores = identity.map(|identity| identity.cores);
        let cores = cores.or(manifest.as_ref().map(|manifest| manifest.cores));
        if let Some(manifest) = &manifest
            && (Some(manifest.cores) != cores || manifest.core != core)
        {
            let (found, count) = (manifest.core.0, manifest.cores);
            self.damage(&path, 0, &format!("it belongs to core {found} of {count}"));
        }
        let cores = cores.filter(|cores| core.0 < *cores && *cores <= CORES_MAX);
        let part = Part {
            owner: cores.map(self.ring),
            checker: self,
            path: PathBuf::new(),
            core,
            follower: manifest.as_ref().map(|it| Follower::new(dir, it)),
            pointers: Vec::new(),
            flushed: manifest.as_ref().map_or(Lsn(0), |it| it.flushed),
            numbers: Vec::new(),
            durable: Lsn(0),
            is_replaying: false,
        };
        part.check(dir, &names, manifest.as_ref()).await;
        true
    }

    fn damage(&mut self, file: &Path, offset: u64, what: &str) {
        self.summary.damaged += 1;
        (self.tell)(Told::Damage(Place::new(file, offset, what)));
    }

    fn unchecked(&mut self, file: &Path, what: &str) {
        self.summary.unchecked += 1;
        (self.tell)(Told::Unchecked(Place::new(file, 0, what)));
    }

    fn note(&mut self, file: &Path, offset: u64, what: &str) {
        self.summary.notes += 1;
        (self.tell)(Told::Note(Place::new(file, offset, what)));
    }

    fn seen(&mut self, bytes: u64) {
        self.summary.bytes += bytes;
        (self.tell)(Told::Progress {
            done: self.summary.bytes,
            total: self.bytes_total,
        });
    }

    /// `file` could not be read to its end.
    fn failed(&mut self, file: &Path, error: Error) {
        match error {
            Error::Corrupt { file, offset, why } => self.damage(&file, offset, &why),
            other => self.unchecked(file, &other.to_string()),
        }
    }
}

impl Place {
    fn new(file: &Path, offset: u64, what: &str) -> Place {
        Place {
            file: file.to_owned(),
            offset,
            what: what.to_owned(),
        }
    }
}

fn is_data(name: &str) -> bool {
    TableId::parse(name).is_some() || segment_of(name).is_some()
}

/// The segment that has this file name.
fn segment_of(name: &str) -> Option<(Stream, SegmentId)> {
    let streams = [Stream::Records, Stream::Values, Stream::Moved];
    let find = |stream| SegmentId::from_file_name(stream, name).map(|id| (stream, id));
    streams.into_iter().find_map(find)
}

/// True if a start reads this segment of the value log as a log.
fn is_replayed(manifest: &Manifest, stream: Stream, id: SegmentId) -> bool {
    stream == Stream::Values && !manifest.logless && manifest.values_floor.covers(id)
}

/// The check of one core's directory.
struct Part<'a, 'b> {
    checker: &'a mut Checker<'b>,
    /// The table that is looked at.
    path: PathBuf,
    core: CoreId,
    /// Whose a position is, if that is known.
    owner: Option<Owner>,
    /// Where pointers lead, if that is known.
    follower: Option<Follower>,
    /// Those of the block that is looked at.
    pointers: Vec<Record>,
    /// What was written up to here is in tables.
    flushed: Lsn,
    /// The numbers behind it that replay finds.
    numbers: Vec<Lsn>,
    /// All up to here was durable: a batch says so.
    durable: Lsn,
    /// What is looked at is a log that replay reads. (A segment of the value log that is only kept
    /// may hold keys that were this core's, or another one's, before a re-sharding.)
    is_replaying: bool,
}

impl Part<'_, '_> {
    async fn check(mut self, dir: &Path, names: &[String], manifest: Option<&Manifest>) {
        let live: BTreeSet<TableId> = match manifest {
            Some(manifest) => manifest.tables.iter().map(|info| info.id).collect(),
            None => names
                .iter()
                .filter_map(|name| TableId::parse(name))
                .collect(),
        };
        self.name_orphans(dir, names, &live, manifest).await;
        for id in live {
            let info = manifest.and_then(|it| it.tables.iter().find(|info| info.id == id));
            self.path = dir.join(id.file_name());
            self.checker.summary.tables += 1;
            if let Some(follower) = &mut self.follower {
                follower.enter(id);
            }
            let verified = table::verify(dir, id, info, &mut self).await;
            if let Err(error) = verified {
                let path = self.path.clone();
                self.checker.failed(&path, error);
            }
        }
        let segments = names.iter().filter(|name| segment_of(name).is_some());
        self.checker.summary.segments += segments.count() as u64;
        let Some(manifest) = manifest else {
            self.checker
                .unchecked(dir, "its logs can only be judged by its manifest");
            return;
        };
        self.check_values(dir, names, manifest).await;
        self.check_logs(dir, manifest).await;
    }

    /// Names the files that nobody needs.
    async fn name_orphans(
        &mut self,
        dir: &Path,
        names: &[String],
        live: &BTreeSet<TableId>,
        manifest: Option<&Manifest>,
    ) {
        let is_known = |(stream, id): (Stream, SegmentId)| {
            let listed = |manifest: &Manifest| {
                let mut segments = manifest.segments.iter();
                segments.any(|info| (info.stream, info.id) == (stream, id))
                    || is_replayed(manifest, stream, id)
            };
            stream == Stream::Records || manifest.is_none_or(listed)
        };
        for name in names {
            let path = dir.join(name);
            let is_orphan = match (TableId::parse(name), segment_of(name)) {
                (Some(id), _) => !live.contains(&id),
                (None, Some(segment)) => !is_known(segment),
                (None, None) => false,
            };
            if is_orphan {
                let what = "the manifest does not name it: the next start removes it";
                self.checker.note(&path, 0, what);
                match length_of(&path).await {
                    Ok(length) => self.checker.seen(length),
                    Err(error) => self.checker.failed(&path, error),
                }
            } else if name == MANIFEST_TMP {
                self.checker
                    .note(&path, 0, "half written: the next start removes it");
            } else if name != MANIFEST && !is_data(name) {
                self.checker.note(&path, 0, "this is no file of Quoit's");
            }
        }
    }

    /// Verifies the live segments of the value log, but for those that are replayed.
    async fn check_values(&mut self, dir: &Path, names: &[String], manifest: &Manifest) {
        for info in &manifest.segments {
            let name = info.id.file_name(info.stream);
            let path = dir.join(&name);
            if is_replayed(manifest, info.stream, info.id) {
                if !names.contains(&name) {
                    let what = "the manifest lists it, and it is missing";
                    self.checker.damage(&path, 0, what);
                }
                continue;
            }
            let kept = log::Kept {
                stream: info.stream,
                id: info.id,
                bytes: info.bytes,
                written: info.written,
            };
            if let Err(error) = log::verify_kept(dir, &kept, self).await {
                self.checker.failed(&path, error);
            }
        }
    }

    /// Verifies what the next start replays.
    async fn check_logs(&mut self, dir: &Path, manifest: &Manifest) {
        let damaged = self.checker.summary.damaged;
        let mut logs = vec![(Stream::Records, manifest.floor)];
        if !manifest.logless {
            logs.push((Stream::Values, manifest.values_floor));
        }
        let mut ends = Vec::new();
        self.is_replaying = true;
        for (stream, floor) in logs {
            match log::verify(dir, stream, floor, self).await {
                Ok(found) => ends.extend(found),
                Err(error) => self.checker.failed(dir, error),
            }
        }
        self.numbers.sort();
        let numbers = self.numbers.iter().copied();
        let gap = recover::first_gap(manifest.flushed, numbers, &manifest.voids);
        if gap <= self.durable && damaged == self.checker.summary.damaged {
            self.name_gap(gap, ends);
        }
        if let Some(last) = self.numbers.last().filter(|last| **last >= gap)
            && damaged == self.checker.summary.damaged
        {
            let what = format!(
                "write {} was under way at a crash and is not there: those after it, up to {}, never \
                 were, and the next start leaves them out",
                gap.0, last.0
            );
            self.checker.note(dir, 0, &what);
        }
    }

    /// Write `gap` was durable, and none of the logs, which may end so, has it.
    fn name_gap(&mut self, gap: Lsn, ends: Vec<log::End>) {
        let what = format!(
            "write {} cannot be read, but a batch says that all up to {} were durable",
            gap.0, self.durable.0
        );
        for end in log::suspects(ends) {
            self.checker.damage(&end.file, end.offset, &what);
        }
    }

    /// What is wrong with where a key is.
    fn misplaced(&self, position: Position) -> Option<String> {
        let owner = self.owner.as_ref()?(position);
        (owner != self.core).then(|| format!("a key is here that belongs to core {}", owner.0))
    }
}

impl table::Witness for Part<'_, '_> {
    fn damage(&mut self, offset: u64, what: String) {
        self.checker.damage(&self.path, offset, &what);
    }

    fn record(&mut self, item: &Item) -> Option<String> {
        self.checker.summary.table_records += 1;
        if item.record.pointer().is_some() {
            self.pointers.push(item.record.clone());
        }
        self.misplaced(item.position)
    }

    async fn block_ends(&mut self) {
        let Some(follower) = &mut self.follower else {
            self.pointers.clear();
            return;
        };
        for pointing in self.pointers.drain(..) {
            self.checker.summary.pointers += 1;
            match follower.follow(&pointing).await {
                Ok(None) => {}
                Ok(Some(hole)) => self.checker.damage(&hole.file, hole.offset, &hole.what),
                Err(error) => self.checker.failed(&self.path, error),
            }
            rt::yield_if_needed().await;
        }
    }

    fn seen(&mut self, bytes: u64) {
        self.checker.seen(bytes);
    }
}

impl log::Witness for Part<'_, '_> {
    fn damage(&mut self, file: &Path, offset: u64, what: String) {
        self.checker.damage(file, offset, &what);
    }

    fn note(&mut self, file: &Path, offset: u64, what: String) {
        self.checker.note(file, offset, &what);
    }

    fn foreign(&mut self, file: &Path, format: u32) {
        let what =
            format!("another Quoit wrote it (log format {format}): check it with that version");
        self.checker.unchecked(file, &what);
    }

    fn entry(&mut self, stream: Stream, entry: &Entry<'_>) -> Option<String> {
        let is_value = stream != Stream::Records;
        match entry {
            Entry::Record(view) => {
                self.checker.summary.log_records += 1;
                if view.pointer().is_some() || (is_value && view.meta().tombstone) {
                    return Some("a record has no value where it should have one".to_owned());
                }
                if view.is_packed() && !is_value {
                    return Some("a record of the log is packed".to_owned());
                }
                if view.is_packed()
                    && let Err(damage) = view.unpacked()
                {
                    return Some(damage.0.to_owned());
                }
                match self.is_replaying {
                    true => self.misplaced(KeyRef::of(view.key()).position),
                    false => None,
                }
            }
            _ if is_value => Some("something other than a record is in the value log".to_owned()),
            Entry::Prepare { cores, .. } if !cores.contains(&self.core) => {
                Some("a transaction is prepared here in which this core takes no part".to_owned())
            }
            _ => None,
        }
    }

    fn replayed(&mut self, numbers: &[Lsn], durable: Lsn) {
        self.durable = self.durable.max(durable);
        let new = numbers.iter().filter(|number| **number > self.flushed);
        self.numbers.extend(new);
    }

    fn seen(&mut self, bytes: u64) {
        self.checker.seen(bytes);
    }
}
