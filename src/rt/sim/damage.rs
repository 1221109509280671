//! A test's hand on the disk of a simulated node: to look at files, and to damage them.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Inner;
use super::crash::CrashPoint;
use super::disk::{DiskFaults, DiskLosses, Volume};
use super::image::{Change, Contents, Image};
use super::names::{Inode, Names};
use crate::rt::BLOCK_BYTES;

/// A test's hand on a node's disk.
pub struct Disk {
    world: Rc<Inner>,
    volume: Rc<Volume>,
}

impl Disk {
    pub(super) fn new(world: Rc<Inner>, volume: Rc<Volume>) -> Disk {
        Disk { world, volume }
    }

    /// Changes how it misbehaves from now on.
    pub fn change_faults(&self, change: impl FnOnce(&mut DiskFaults)) {
        change(&mut self.volume.faults.borrow_mut());
    }

    /// What it has done so far.
    pub fn losses(&self) -> DiskLosses {
        self.volume.losses.get()
    }

    /// How often a file was read from it so far.
    pub fn reads(&self) -> u64 {
        self.volume.reads.get()
    }

    /// Shows `watcher` the disk before each sync of a file or directory that takes effect: what a
    /// power cut may leave then includes all that it may have left since the sync before.
    pub fn watch(&self, watcher: impl FnMut(CrashPoint) + 'static) {
        *self.volume.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    /// What a power cut may leave now.
    pub fn crash_point(&self) -> CrashPoint {
        CrashPoint::of(&self.volume.names.borrow())
    }

    /// All directories, sorted.
    pub fn directories(&self) -> Vec<PathBuf> {
        let names = self.volume.names.borrow();
        names.directories.iter().cloned().collect()
    }

    /// All files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.volume.names.borrow().visible.keys().cloned().collect()
    }

    /// What a reader finds in a file.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.volume.names.borrow().find(path).ok()?;
        let contents = inode.contents.borrow();
        Some(contents.visible.read(0, contents.visible.length() as usize))
    }

    /// How many changes of a file are not durable yet.
    pub fn unsynced(&self, path: &Path) -> Option<usize> {
        let inode = self.volume.names.borrow().find(path).ok()?;
        let contents = inode.contents.borrow();
        Some(contents.unsynced())
    }

    /// Puts a file there, durably, in place of what was there. Its directory is made if need be.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let contents = RefCell::new(Contents::durable(Image::from_bytes(bytes)));
        let inode = Rc::new(Inode {
            contents,
            open: Cell::new(0),
        });
        let mut names = self.volume.names.borrow_mut();
        let parents = path.ancestors().skip(1).map(Path::to_owned);
        names.directories.extend(parents);
        names
            .unsynced
            .retain(|(_, change)| !change.names().any(|name| name == path));
        names.visible.insert(path.to_owned(), Rc::clone(&inode));
        names.durable.insert(path.to_owned(), inode);
    }

    /// Removes a file, durably.
    pub fn remove(&self, path: &Path) {
        let mut names = self.volume.names.borrow_mut();
        names
            .unsynced
            .retain(|(_, change)| !change.names().any(|name| name == path));
        names.visible.remove(path);
        names.durable.remove(path);
    }

    /// Flips a bit of a file where it is stored; false if the file has no such byte, or a hole
    /// there.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8) -> bool {
        let inode = self.volume.names.borrow().find(path);
        inode.is_ok_and(|inode| inode.contents.borrow_mut().flip(position, bit))
    }

    /// Sets the length of a file, durably.
    pub fn truncate(&self, path: &Path, length: u64) {
        if let Ok(inode) = self.volume.names.borrow().find(path) {
            let mut contents = inode.contents.borrow_mut();
            contents.complete(Change::Length(length));
            let mark = contents.mark();
            contents.sync(mark);
        }
    }

    /// Bytes that were written to it, by all writes so far.
    pub fn written_bytes(&self) -> u64 {
        self.volume.written_bytes.get()
    }

    /// Bytes that files take.
    pub fn used_bytes(&self) -> u64 {
        (self.volume.names.borrow().used_blocks() * BLOCK_BYTES) as u64
    }

    /// Leaves room for `bytes` more and nothing behind them.
    pub fn leave_free(&self, bytes: u64) {
        let capacity = self.used_bytes() + bytes;
        self.change_faults(|faults| faults.capacity_bytes = capacity);
    }

    /// Empties the disk, as when it is replaced by a new one. The node must be down.
    pub fn wipe(&self) {
        self.volume.life.set(self.volume.life.get() + 1);
        *self.volume.names.borrow_mut() = Names::default();
    }

    /// Takes over what readers find on another disk, durably: a backup, an old disk returned.
    pub fn copy_from(&self, other: &Disk) {
        self.wipe();
        let directories = other.volume.names.borrow().directories.clone();
        self.volume.names.borrow_mut().directories = directories;
        for path in other.files() {
            let bytes = other.read(&path).expect("it was listed");
            self.put(&path, &bytes);
        }
        self.world.executor.note(0xC0B1 ^ self.used_bytes());
    }
}
