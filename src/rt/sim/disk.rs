//! The simulated disk of one node: its files, locks, free space, latency and errors.
//!
//! A write is under way by itself: dropping the future that waits for it does not stop it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::crash::CrashPoint;
use super::executor::{Alarm, Bell, Chance, Executor, Sleep};
use super::image::Change;
use super::names::{Inode, NameChange, Names, not_found};
use super::{Context, Inner};
use crate::rt::BLOCK_BYTES;

/// How a disk misbehaves. Probabilities are per operation.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// A read fails with EIO.
    pub eio_read: f64,
    /// A write, creation, renaming or removal fails with EIO; any part of a write is done.
    pub eio_write: f64,
    /// A sync of a file or directory fails with EIO.
    pub eio_sync: f64,
    /// After a failed sync of a file the next one succeeds, and what the first was to make durable
    /// is not (as on Linux). Otherwise the next one makes up for it.
    pub sync_error_forgets: bool,
    /// Writes that need more than this fail with ENOSPC.
    pub capacity_bytes: u64,
    /// Least and most time of a read or write, in microseconds.
    pub latency_us: (u64, u64),
    /// Least and most time of a sync, in microseconds.
    pub sync_us: (u64, u64),
    /// An operation takes a hundred times as long.
    pub spikes: f64,
    /// A read finds a bit flipped, for good.
    pub bit_rot: f64,
    /// A power cut may lose names that were not synced.
    pub lost_dir_entries: bool,
    /// A power cut may leave parts of writes; otherwise each is kept or lost as a whole.
    pub torn: bool,
}

impl DiskFaults {
    /// A sound disk. It still loses and tears what was not synced when the power is cut.
    pub fn none() -> DiskFaults {
        DiskFaults {
            eio_read: 0.0,
            eio_write: 0.0,
            eio_sync: 0.0,
            sync_error_forgets: true,
            capacity_bytes: u64::MAX,
            latency_us: (20, 200),
            sync_us: (50, 2_000),
            spikes: 0.0,
            bit_rot: 0.0,
            lost_dir_entries: true,
            torn: true,
        }
    }

    /// A disk without errors, fast or slow, even or not.
    pub(super) fn random(chance: &mut fastrand::Rng) -> DiskFaults {
        DiskFaults {
            latency_us: [(1, 10), (20, 200), (20, 5_000)][chance.usize(..3)],
            sync_us: [(1, 20), (50, 2_000), (500, 20_000)][chance.usize(..3)],
            spikes: [0.0, 0.0, 0.001, 0.02][chance.usize(..4)],
            lost_dir_entries: chance.u8(..4) > 0,
            torn: chance.u8(..4) > 0,
            ..DiskFaults::none()
        }
    }
}

/// What a disk has done to its node so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLosses {
    /// Operations that failed with EIO.
    pub errors: u64,
    /// Writes that found no space.
    pub no_space: u64,
    /// Bits flipped by themselves.
    pub rotten_bits: u64,
    /// Writes and truncations that a power cut lost or tore.
    pub lost_writes: u64,
    /// Creations, renamings and removals that a power cut undid.
    pub lost_names: u64,
}

/// A disk, as the world holds it.
pub(super) struct Volume {
    pub names: RefCell<Names>,
    pub faults: RefCell<DiskFaults>,
    pub losses: Cell<DiskLosses>,
    /// Reads of files so far.
    pub reads: Cell<u64>,
    /// Counts the lives of its node, so that what an earlier one left open is stale.
    pub life: Cell<u64>,
    /// Bytes of all writes so far.
    pub written_bytes: Cell<u64>,
    /// Is shown the disk before each sync that takes effect.
    pub watcher: RefCell<Option<Watcher>>,
}

/// What a test does with the moments at which a power cut has the most choice.
pub(super) type Watcher = Box<dyn FnMut(CrashPoint)>;

impl Volume {
    pub fn new(faults: DiskFaults) -> Volume {
        Volume {
            names: RefCell::default(),
            faults: RefCell::new(faults),
            losses: Cell::default(),
            reads: Cell::new(0),
            life: Cell::new(0),
            written_bytes: Cell::new(0),
            watcher: RefCell::new(None),
        }
    }

    fn show_watcher(&self) {
        if let Some(watcher) = &mut *self.watcher.borrow_mut() {
            watcher(CrashPoint::of(&self.names.borrow()));
        }
    }

    pub fn unlock_all(&self) {
        self.names.borrow_mut().locks.clear();
    }

    /// The node ends: what is open is stale, what was under way is decided.
    pub fn end_life(&self, executor: &Executor, is_power_cut: bool) {
        self.life.set(self.life.get() + 1);
        let chance = &executor.chance;
        let mut names = self.names.borrow_mut();
        names.locks.clear();
        names.orphans.clear();
        if !is_power_cut {
            for inode in names.visible.values() {
                inode.contents.borrow_mut().finish_in_flight(chance);
            }
            return;
        }
        let (is_torn, may_lose) = {
            let faults = self.faults.borrow();
            (faults.torn, faults.lost_dir_entries)
        };
        let lost_names = names.crash(may_lose, chance);
        let mut lost_writes = 0;
        for inode in names.visible.values() {
            lost_writes += inode.contents.borrow_mut().crash(is_torn, chance) as u64;
        }
        executor.note(lost_names << 32 ^ lost_writes);
        self.lose(|losses| {
            losses.lost_names += lost_names;
            losses.lost_writes += lost_writes;
        });
    }

    fn lose(&self, count: impl FnOnce(&mut DiskLosses)) {
        let mut losses = self.losses.get();
        count(&mut losses);
        self.losses.set(losses);
    }

    fn delay(&self, chance: &Chance, range: impl FnOnce(&DiskFaults) -> (u64, u64)) -> u64 {
        let faults = self.faults.borrow();
        let micros = chance.between(range(&faults));
        let scale = if chance.hits(faults.spikes) { 100 } else { 1 };
        // Below the microsecond, so that two operations hardly ever end at the same time.
        micros * scale * 1_000 + chance.below(1_000) as u64
    }

    /// Fails with EIO with the probability that `which` names.
    fn fail(&self, chance: &Chance, which: impl FnOnce(&DiskFaults) -> f64) -> io::Result<()> {
        if chance.hits(which(&self.faults.borrow())) {
            self.lose(|losses| losses.errors += 1);
            return Err(error(libc::EIO));
        }
        Ok(())
    }

    fn free_blocks(&self) -> usize {
        let capacity = self.faults.borrow().capacity_bytes;
        if capacity == u64::MAX {
            return usize::MAX;
        }
        let used = self.names.borrow().used_blocks();
        ((capacity / BLOCK_BYTES as u64) as usize).saturating_sub(used)
    }
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// An open file.
pub struct File {
    world: Rc<Inner>,
    volume: Rc<Volume>,
    inode: Rc<Inode>,
    path: PathBuf,
    life: u64,
}

impl Drop for File {
    fn drop(&mut self) {
        self.inode.open.set(self.inode.open.get() - 1);
    }
}

impl File {
    fn new(world: Rc<Inner>, volume: Rc<Volume>, inode: Rc<Inode>, path: &Path) -> File {
        inode.open.set(inode.open.get() + 1);
        let life = volume.life.get();
        File {
            world,
            volume,
            inode,
            path: path.to_owned(),
            life,
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn len(&self) -> io::Result<u64> {
        self.check()?;
        Ok(self.inode.contents.borrow().visible.length())
    }

    /// True if it has one name, and not several.
    pub fn has_one_name(&self) -> io::Result<bool> {
        self.check()?;
        let names = self.volume.names.borrow();
        let named = names.visible.values();
        Ok(named.filter(|inode| Rc::ptr_eq(inode, &self.inode)).count() == 1)
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|length| length == 0)
    }

    /// Only what outlives its node by a leak can find that its file is gone.
    fn check(&self) -> io::Result<()> {
        let is_stale = self.life != self.volume.life.get();
        if is_stale {
            Err(error(libc::EBADF))
        } else {
            Ok(())
        }
    }

    async fn wait(&self, range: impl FnOnce(&DiskFaults) -> (u64, u64)) -> io::Result<()> {
        let executor = &self.world.executor;
        let delay = self.volume.delay(&executor.chance, range);
        Sleep::until(executor, executor.now() + delay).await;
        self.check()
    }

    /// Reads up to `length` bytes.
    pub async fn read_at(&self, position: u64, length: usize) -> io::Result<Vec<u8>> {
        self.wait(|faults| faults.latency_us).await?;
        let chance = &self.world.executor.chance;
        self.volume.fail(chance, |faults| faults.eio_read)?;
        let mut contents = self.inode.contents.borrow_mut();
        if length > 0 && chance.hits(self.volume.faults.borrow().bit_rot) {
            let at = position + chance.below(length) as u64;
            let is_flipped = contents.flip(at, chance.below(8) as u8);
            self.volume
                .lose(|losses| losses.rotten_bits += u64::from(is_flipped));
        }
        let bytes = contents.visible.read(position, length);
        self.volume.reads.set(self.volume.reads.get() + 1);
        self.world
            .executor
            .note(0x4EAD ^ position << 16 ^ (bytes.len() as u64) << 40);
        Ok(bytes)
    }

    /// Writes all of `bytes`.
    pub async fn write_at(&self, bytes: Vec<u8>, position: u64) -> io::Result<()> {
        self.check()?;
        let executor = &self.world.executor;
        let block = BLOCK_BYTES as u64;
        assert!(position.is_multiple_of(block) && bytes.len().is_multiple_of(BLOCK_BYTES));
        executor.note(u64::from(crc32c::crc32c(&bytes)) ^ position << 32);
        let first = (position / block) as usize;
        let written = &self.volume.written_bytes;
        written.set(written.get() + bytes.len() as u64);
        let change = Change::Write {
            first,
            buffer: Rc::new(bytes),
        };
        let number = self.inode.contents.borrow_mut().begin(change);
        let write = Rc::new(Write {
            world: Rc::clone(&self.world),
            volume: Rc::clone(&self.volume),
            inode: Rc::clone(&self.inode),
            number,
            outcome: RefCell::new(None),
            waiting: RefCell::new(None),
        });
        let delay = self
            .volume
            .delay(&executor.chance, |faults| faults.latency_us);
        let bell = Rc::clone(&write) as Rc<dyn Bell>;
        executor.set_alarm(executor.now() + delay, Alarm::Ring(bell));
        poll_fn(|context| match write.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                *write.waiting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Makes durable what had completed when it was called.
    pub async fn sync(&self) -> io::Result<()> {
        self.check()?;
        let mark = self.inode.contents.borrow().mark();
        self.wait(|faults| faults.sync_us).await?;
        let executor = &self.world.executor;
        executor.note(0x51C ^ mark << 16);
        self.volume.show_watcher();
        let failed = self.volume.fail(&executor.chance, |faults| faults.eio_sync);
        let mut contents = self.inode.contents.borrow_mut();
        if failed.is_ok() {
            contents.sync(mark);
        } else if self.volume.faults.borrow().sync_error_forgets {
            contents.forget(mark, &executor.chance);
        }
        failed
    }

    /// Sets its length.
    pub async fn set_len(&self, length: u64) -> io::Result<()> {
        self.check()?;
        self.wait(|faults| faults.latency_us).await?;
        self.volume
            .fail(&self.world.executor.chance, |faults| faults.eio_write)?;
        self.world.executor.note(0x1E4 ^ length << 16);
        self.inode
            .contents
            .borrow_mut()
            .complete(Change::Length(length));
        Ok(())
    }
}

impl File {
    /// Makes it at least `length` bytes long, with space for all of them.
    pub async fn allocate(&self, length: u64) -> io::Result<()> {
        self.check()?;
        self.wait(|faults| faults.latency_us).await?;
        self.volume
            .fail(&self.world.executor.chance, |faults| faults.eio_write)?;
        self.world.executor.note(0xA110 ^ length << 16);
        let free = self.volume.free_blocks();
        let change = Change::Allocate(length);
        let mut contents = self.inode.contents.borrow_mut();
        if contents.visible.growth(&change) > free {
            self.volume.lose(|losses| losses.no_space += 1);
            return Err(error(libc::ENOSPC));
        }
        contents.complete(change);
        Ok(())
    }
}

/// A write under way.
struct Write {
    world: Rc<Inner>,
    volume: Rc<Volume>,
    inode: Rc<Inode>,
    number: u64,
    outcome: RefCell<Option<io::Result<()>>>,
    waiting: RefCell<Option<Waker>>,
}

impl Bell for Write {
    fn ring(&self, _now: u64) {
        let ended = self.inode.contents.borrow_mut().end(self.number);
        if let Some(change) = ended {
            let outcome = self.complete(change);
            self.world
                .executor
                .note(0x3417 ^ self.number << 16 ^ u64::from(outcome.is_ok()));
            *self.outcome.borrow_mut() = Some(outcome);
        }
        let waiting = self.waiting.take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl Write {
    fn complete(&self, change: Change) -> io::Result<()> {
        let chance = &self.world.executor.chance;
        let free = self.volume.free_blocks();
        let mut contents = self.inode.contents.borrow_mut();
        let Change::Write { buffer, .. } = &change else {
            unreachable!("only writes are under way");
        };
        let blocks = buffer.len() / BLOCK_BYTES;
        if let Err(failed) = self.volume.fail(chance, |faults| faults.eio_write) {
            contents.complete_start(change, chance.below(blocks + 1));
            return Err(failed);
        }
        if contents.visible.growth(&change) > free {
            // What fits, or less, or nothing.
            let count = chance.below(free.min(blocks - 1) + 1);
            contents.complete_start(change, count);
            self.volume.lose(|losses| losses.no_space += 1);
            return Err(error(libc::ENOSPC));
        }
        contents.complete(change);
        Ok(())
    }
}

/// A locked file.
pub struct DirLock {
    volume: Rc<Volume>,
    path: PathBuf,
    life: u64,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        if self.life == self.volume.life.get() {
            self.volume.names.borrow_mut().locks.remove(&self.path);
        }
    }
}

impl Context {
    fn volume(&self) -> Rc<Volume> {
        self.world.volume(self.place.node)
    }

    async fn operate(&self, volume: &Volume) -> io::Result<()> {
        let executor = &self.world.executor;
        let life = volume.life.get();
        let delay = volume.delay(&executor.chance, |faults| faults.latency_us);
        Sleep::until(executor, executor.now() + delay).await;
        if life == volume.life.get() {
            Ok(())
        } else {
            Err(error(libc::EIO))
        }
    }

    /// Waits for and then does one change of names.
    async fn change_names<T>(
        &self,
        change: impl FnOnce(&mut Names) -> io::Result<(NameChange, T)>,
    ) -> io::Result<T> {
        let volume = self.volume();
        self.operate(&volume).await?;
        volume.fail(&self.world.executor.chance, |faults| faults.eio_write)?;
        let mut names = volume.names.borrow_mut();
        let (change, output) = change(&mut names)?;
        names.change(change);
        self.world.executor.note(0x4A3E ^ names.numbered << 16);
        Ok(output)
    }

    /// Creates a file.
    pub async fn create_file(&self, path: &Path) -> io::Result<File> {
        let volume = self.volume();
        let chance = &self.world.executor.chance;
        if volume.free_blocks() == 0 && chance.coin() {
            volume.lose(|losses| losses.no_space += 1);
            return Err(error(libc::ENOSPC));
        }
        let create = |names: &mut Names| {
            names.check_parent(path)?;
            if names.visible.contains_key(path) || names.has_directory(path) {
                return Err(error(libc::EEXIST));
            }
            let inode = Rc::new(Inode::default());
            let to = Some((path.to_owned(), Rc::clone(&inode)));
            Ok((NameChange { from: None, to }, inode))
        };
        let inode = self.change_names(create).await?;
        Ok(File::new(Rc::clone(&self.world), volume, inode, path))
    }

    /// Opens a file.
    pub async fn open_file(&self, path: &Path) -> io::Result<File> {
        let volume = self.volume();
        self.operate(&volume).await?;
        volume.fail(&self.world.executor.chance, |faults| faults.eio_read)?;
        let inode = volume.names.borrow().find(path)?;
        Ok(File::new(Rc::clone(&self.world), volume, inode, path))
    }

    /// Creates a directory and its parents, durably, one after the other.
    pub async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let volume = self.volume();
        let mut missing: Vec<&Path> = path.ancestors().collect();
        missing.reverse();
        for directory in missing {
            if volume.names.borrow().has_directory(directory) {
                continue;
            }
            self.operate(&volume).await?;
            volume.fail(&self.world.executor.chance, |faults| faults.eio_write)?;
            let mut names = volume.names.borrow_mut();
            if names.visible.contains_key(directory) {
                return Err(error(libc::ENOTDIR));
            }
            names.directories.insert(directory.to_owned());
        }
        Ok(())
    }

    /// The names in a directory.
    pub fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let volume = self.volume();
        volume.fail(&self.world.executor.chance, |faults| faults.eio_read)?;
        let names = volume.names.borrow();
        if !names.has_directory(path) {
            return Err(not_found());
        }
        let all = names.visible.keys().chain(&names.directories);
        let inside = all.filter(|name| name.parent() == Some(path));
        let mut found: Vec<String> = inside
            .filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned()))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Renames a file.
    pub async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let rename = |names: &mut Names| {
            let inode = names.find(from)?;
            names.check_parent(to)?;
            if names.has_directory(to) {
                return Err(error(libc::EISDIR));
            }
            let change = NameChange {
                from: Some(from.to_owned()),
                to: Some((to.to_owned(), inode)),
            };
            Ok((change, ()))
        };
        self.change_names(rename).await
    }

    /// Gives a file another name.
    pub async fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let link = |names: &mut Names| {
            let inode = names.find(from)?;
            names.check_parent(to)?;
            if names.visible.contains_key(to) || names.has_directory(to) {
                return Err(error(libc::EEXIST));
            }
            let to = Some((to.to_owned(), inode));
            Ok((NameChange { from: None, to }, ()))
        };
        self.change_names(link).await
    }

    /// Removes an empty directory, durably.
    pub async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let volume = self.volume();
        self.operate(&volume).await?;
        volume.fail(&self.world.executor.chance, |faults| faults.eio_write)?;
        let mut names = volume.names.borrow_mut();
        if !names.directories.contains(path) {
            return Err(not_found());
        }
        let all = names.visible.keys().chain(&names.directories);
        if all.into_iter().any(|name| name.parent() == Some(path)) {
            return Err(error(libc::ENOTEMPTY));
        }
        // A directory never goes before what was in it.
        let mark = names.numbered;
        names.sync(path, mark);
        names.directories.remove(path);
        self.world.executor.note(0xD1E ^ mark << 16);
        Ok(())
    }

    /// Removes a file.
    pub async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let remove = |names: &mut Names| {
            names.find(path)?;
            Ok((
                NameChange {
                    from: Some(path.to_owned()),
                    to: None,
                },
                (),
            ))
        };
        self.change_names(remove).await
    }

    /// Opens a directory, which is there.
    pub fn open_dir(&self, path: &Path) -> io::Result<()> {
        match self.volume().names.borrow().has_directory(path) {
            true => Ok(()),
            false => Err(not_found()),
        }
    }

    /// Makes the names in a directory durable.
    pub async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let volume = self.volume();
        if !volume.names.borrow().has_directory(path) {
            return Err(not_found());
        }
        let executor = &self.world.executor;
        let (mark, life) = (volume.names.borrow().numbered, volume.life.get());
        let delay = volume.delay(&executor.chance, |faults| faults.sync_us);
        Sleep::until(executor, executor.now() + delay).await;
        if life != volume.life.get() {
            return Err(error(libc::EIO));
        }
        executor.note(0xD14 ^ mark << 16);
        volume.show_watcher();
        volume.fail(&executor.chance, |faults| faults.eio_sync)?;
        volume.names.borrow_mut().sync(path, mark);
        Ok(())
    }

    /// Locks a file that exists.
    pub fn lock_existing(&self, path: &Path) -> io::Result<DirLock> {
        self.volume().names.borrow().find(path)?;
        self.lock_file(path)
    }

    /// Locks a file.
    pub fn lock_file(&self, path: &Path) -> io::Result<DirLock> {
        let volume = self.volume();
        let mut names = volume.names.borrow_mut();
        names.check_parent(path)?;
        if !names.locks.insert(path.to_owned()) {
            return Err(error(libc::EWOULDBLOCK));
        }
        if !names.visible.contains_key(path) {
            let inode = Rc::new(Inode::default());
            names.change(NameChange {
                from: None,
                to: Some((path.to_owned(), inode)),
            });
        }
        drop(names);
        let life = volume.life.get();
        Ok(DirLock {
            volume,
            path: path.to_owned(),
            life,
        })
    }
}
