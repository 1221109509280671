//! Verifies a data directory of which no node runs: everything in it, without changing anything.
//!
//! For each core: its manifest, every table that the manifest names (sections, blocks, keys, counts),
//! every log segment from the floor on, and that each key is the core's. What no manifest names is
//! named too, as a note: the next start removes it. Damage does not end the check: all of it is named,
//! by file and byte. What a crash may leave is no damage: a torn end of the log, a half-written file.
//!
//! Without its manifest a core's tables are taken at their own word, and its log cannot be judged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::identity::{self, Identity};
use super::manifest::{MANIFEST, MANIFEST_TMP, Manifest};
use super::merge::Item;
use super::record::KeyRef;
use super::sstable::{TableId, verify as table};
use super::wal::format::{Entry, SegmentId};
use super::wal::verify as log;
use crate::config::CORES_MAX;
use crate::error::{Error, Result};
use crate::rt::{self, File};
use crate::types::{CoreId, Position};

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
    /// Log segments, spare ones too.
    pub segments: u64,
    /// Records in the log.
    pub log_records: u64,
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
    let folders: BTreeSet<CoreId> = names.iter().filter_map(|name| core_of(name)).collect();
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
        bytes_total: measure(dir, &folders).await?,
    };
    if !names.iter().any(|name| name == LOCK) {
        checker.note(
            &dir.join(LOCK),
            0,
            "it is not there, so that nothing keeps a node from starting",
        );
    }
    let identity = checker.read_identity(dir).await;
    checker.name_strangers(dir, &names);
    let mut missing = Vec::new();
    let expected = 0..identity.map_or(0, |identity| identity.cores);
    let cores: BTreeSet<CoreId> = expected
        .map(CoreId)
        .chain(folders.iter().copied())
        .collect();
    for core in cores {
        let folder = dir.join(folder_name(core));
        if identity.is_some_and(|identity| core.0 >= identity.cores) {
            checker.damage(
                &folder,
                0,
                "the node has no such core: nobody reads what is here",
            );
        }
        let is_begun = folders.contains(&core) && checker.check_core(&folder, core, identity).await;
        if !is_begun {
            missing.push(folder);
        }
    }
    // A node serves nobody before all cores have begun.
    let is_used = checker.summary.table_records + checker.summary.log_records > 0;
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

/// Bytes of all tables and log segments.
async fn measure(dir: &Path, folders: &BTreeSet<CoreId>) -> Result<u64> {
    let mut total = 0;
    for core in folders {
        let folder = dir.join(folder_name(*core));
        for name in rt::list_dir(&folder).await? {
            if TableId::parse(&name).is_some() || SegmentId::from_file_name(&name).is_some() {
                let file = File::open_to_read(&folder.join(name)).await?;
                total += file.len().await?;
                file.close().await;
            }
        }
    }
    Ok(total)
}

fn folder_name(core: CoreId) -> String {
    format!("core-{:03}", core.0)
}

fn core_of(name: &str) -> Option<CoreId> {
    let core = CoreId(name.strip_prefix("core-")?.parse().ok()?);
    (folder_name(core) == name).then_some(core)
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

    /// Names what is neither a core's directory nor a file that a node makes.
    fn name_strangers(&mut self, dir: &Path, names: &[String]) {
        let is_known =
            |name: &str| name == identity::NAME || name == LOCK || core_of(name).is_some();
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
    TableId::parse(name).is_some() || SegmentId::from_file_name(name).is_some()
}

/// The check of one core's directory.
struct Part<'a, 'b> {
    checker: &'a mut Checker<'b>,
    /// The table that is looked at.
    path: PathBuf,
    core: CoreId,
    /// Whose a position is, if that is known.
    owner: Option<Owner>,
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
        for name in names {
            let path = dir.join(name);
            match TableId::parse(name) {
                Some(id) if !live.contains(&id) => {
                    self.checker.note(
                        &path,
                        0,
                        "the manifest does not name it: the next start removes it",
                    );
                }
                None if name == MANIFEST_TMP => {
                    self.checker
                        .note(&path, 0, "half written: the next start removes it");
                }
                None if name != MANIFEST && !is_data(name) => {
                    self.checker.note(&path, 0, "this is no file of Quoit's");
                }
                _ => {}
            }
        }
        for id in live {
            let info = manifest.and_then(|it| it.tables.iter().find(|info| info.id == id));
            self.path = dir.join(id.file_name());
            self.checker.summary.tables += 1;
            let verified = table::verify(dir, id, info, &mut self).await;
            if let Err(error) = verified {
                let path = self.path.clone();
                self.checker.failed(&path, error);
            }
        }
        let segments = names
            .iter()
            .filter(|name| SegmentId::from_file_name(name).is_some());
        self.checker.summary.segments += segments.count() as u64;
        let Some(manifest) = manifest else {
            self.checker
                .unchecked(dir, "its log can only be judged by its manifest");
            return;
        };
        if let Err(error) = log::verify(dir, manifest.floor, &mut self).await {
            self.checker.failed(dir, error);
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
        self.misplaced(item.position)
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

    fn newer(&mut self, file: &Path, format: u32) {
        let what =
            format!("a newer Quoit wrote it (log format {format}): check it with that version");
        self.checker.unchecked(file, &what);
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Option<String> {
        match entry {
            Entry::Record(view) => {
                self.checker.summary.log_records += 1;
                self.misplaced(KeyRef::of(view.key()).position)
            }
            Entry::Prepare { cores, .. } if !cores.contains(&self.core) => {
                Some("a transaction is prepared here in which this core takes no part".to_owned())
            }
            _ => None,
        }
    }

    fn seen(&mut self, bytes: u64) {
        self.checker.seen(bytes);
    }
}
