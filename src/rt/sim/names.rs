//! The names of a simulated disk: directories, files, and which of them a power cut may undo.
//!
//! Names have a visible and a durable state like contents do: creating, renaming and removing is an
//! operation that only [`sync_dir`](super::super::sync_dir) makes sure of. A power cut keeps any
//! subset of the operations that were not synced, except that an operation on a name is lost if an
//! earlier one on that name was: a renamed file has its old name or its new one. A file may have
//! several names (links), each of which comes and goes by itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::executor::Chance;
use super::image::Contents;

/// A file, whatever it is called.
#[derive(Default)]
pub(super) struct Inode {
    pub contents: RefCell<Contents>,
    /// How many hold it open.
    pub open: Cell<u32>,
}

/// A change of names. `from` and `to` are the names it touches.
pub(super) struct NameChange {
    pub from: Option<PathBuf>,
    pub to: Option<(PathBuf, Rc<Inode>)>,
}

impl NameChange {
    pub fn names(&self) -> impl Iterator<Item = &PathBuf> {
        self.from.iter().chain(self.to.iter().map(|(name, _)| name))
    }

    fn touches(&self, directory: &Path) -> bool {
        self.names().any(|name| name.parent() == Some(directory))
    }

    fn is_within_one_directory(&self) -> bool {
        let mut directories = self.names().map(|name| name.parent());
        let first = directories.next();
        directories.all(|other| Some(other) == first)
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Rc<Inode>>) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        if let Some((to, inode)) = &self.to {
            names.insert(to.clone(), Rc::clone(inode));
        }
    }
}

#[derive(Default)]
pub(super) struct Names {
    pub directories: BTreeSet<PathBuf>,
    pub visible: BTreeMap<PathBuf, Rc<Inode>>,
    pub durable: BTreeMap<PathBuf, Rc<Inode>>,
    /// In order, numbered.
    pub unsynced: Vec<(u64, NameChange)>,
    pub numbered: u64,
    pub locks: BTreeSet<PathBuf>,
    /// Removed, but still open.
    pub orphans: Vec<Rc<Inode>>,
}

impl Names {
    pub fn change(&mut self, change: NameChange) {
        let replaced = match (&change.from, &change.to) {
            (_, Some((to, _))) => self.visible.get(to).cloned(),
            (Some(from), None) => self.visible.get(from).cloned(),
            (None, None) => None,
        };
        self.orphans.retain(|inode| inode.open.get() > 0);
        self.orphans
            .extend(replaced.filter(|inode| inode.open.get() > 0));
        change.apply(&mut self.visible);
        self.numbered += 1;
        self.unsynced.push((self.numbered, change));
    }

    pub fn find(&self, path: &Path) -> io::Result<Rc<Inode>> {
        self.visible.get(path).cloned().ok_or_else(not_found)
    }

    pub fn has_directory(&self, path: &Path) -> bool {
        path == Path::new("") || path == Path::new("/") || self.directories.contains(path)
    }

    pub fn check_parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().ok_or_else(not_found)?;
        if self.has_directory(parent) {
            Ok(())
        } else {
            Err(not_found())
        }
    }

    /// Makes the changes up to `mark` that touch `directory` durable, and those they rest on: a
    /// renaming between directories is one with all that came before it.
    pub fn sync(&mut self, directory: &Path, mark: u64) {
        let is_wide = |(number, change): &(u64, NameChange)| {
            *number <= mark && change.touches(directory) && !change.is_within_one_directory()
        };
        let all_to = self
            .unsynced
            .iter()
            .rposition(is_wide)
            .map_or(0, |index| index + 1);
        let mut index = 0;
        let durable = &mut self.durable;
        self.unsynced.retain(|(number, change)| {
            let is_covered = index < all_to || (*number <= mark && change.touches(directory));
            index += 1;
            if is_covered {
                change.apply(durable);
            }
            !is_covered
        });
    }

    /// The power is gone: chooses which changes are found afterwards. Returns how many are not.
    pub fn crash(&mut self, may_lose: bool, chance: &Chance) -> u64 {
        let mut lost: BTreeSet<PathBuf> = BTreeSet::new();
        let mut losses = 0;
        let style = chance.below(4);
        let kept_first = chance.below(self.unsynced.len() + 1);
        for (index, (_, change)) in std::mem::take(&mut self.unsynced).into_iter().enumerate() {
            let is_lost = match style {
                0 => true,
                1 => false,
                2 => index >= kept_first,
                _ => chance.coin(),
            };
            if may_lose && (is_lost || change.names().any(|name| lost.contains(name))) {
                lost.extend(change.names().cloned());
                losses += 1;
            } else {
                change.apply(&mut self.durable);
            }
        }
        self.visible.clone_from(&self.durable);
        losses
    }

    pub fn used_blocks(&self) -> usize {
        let named = self.visible.values();
        let orphans = self.orphans.iter().filter(|inode| inode.open.get() > 0);
        // A file that has several names is there once.
        let inodes: BTreeMap<*const Inode, &Rc<Inode>> = named
            .chain(orphans)
            .map(|inode| (Rc::as_ptr(inode), inode))
            .collect();
        inodes
            .values()
            .map(|inode| inode.contents.borrow().visible.allocated())
            .sum()
    }
}

pub(super) fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}
