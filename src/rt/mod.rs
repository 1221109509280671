//! The seam: files, sockets, tasks, timers, clocks, chance and mailboxes between cores.
//!
//! Everything above this module does its I/O, waiting and guessing through these names. They are
//! either the real thing (`uring`, on glommio) or a simulated world (`sim`: one thread, virtual
//! time, a seeded scheduler, a disk and a network with faults). Which one is decided by the
//! executor that runs the calling task; no code above can tell.
//!
//! Rules for callers: one executor is one core, so nothing here is `Send` but [`Mail`]; sizes and
//! offsets of writes are multiples of [`BLOCK_BYTES`]; dropping a [`Task`] detaches it.

mod bug;
mod kick;
mod ring_flags;
pub mod sim;
pub mod sync;
mod uring;

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::{CoreId, UnixMillis};

pub use bug::Bug;
pub use kick::kicks;
pub use ring_flags::cooperative_rings;
pub use uring::{
    CoreOptions, HostReport, check_host, cpu_count, file_to_probe, pins_for, request_stop,
    reserve_ports, reserve_rows, run_cores,
};

/// Alignment and granularity of every write: offsets, lengths and memory.
pub const BLOCK_BYTES: usize = 4096;

/// How a task competes for its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Clients, the log, messages between cores.
    Foreground,
    /// Flush, compaction, reclaiming: takes what the foreground leaves.
    Background,
}

/// What a core is given when it starts.
pub struct Core<M: Send> {
    /// Which core of the node this is.
    pub id: CoreId,
    /// How many the node has.
    pub count: u16,
    /// Its post box: connect it first of all.
    pub mail: Mail<M>,
}

/// A future that runs by itself. Dropping it lets it run on; awaiting it gives its output.
pub struct Task<T>(TaskKind<T>);

enum TaskKind<T> {
    Real(uring::Task<T>),
    Sim(sim::Task<T>),
}

impl<T: 'static> Future for Task<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            TaskKind::Real(task) => Pin::new(task).poll(context),
            TaskKind::Sim(task) => Pin::new(task).poll(context),
        }
    }
}

/// Starts `future` on this core, in the foreground.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    spawn_in(Queue::Foreground, future)
}

/// Starts `future` on this core, in `queue`.
pub fn spawn_in<T: 'static>(queue: Queue, future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(match sim::current() {
        Some(world) => TaskKind::Sim(world.spawn(future)),
        None => TaskKind::Real(uring::spawn_in(queue, future)),
    })
}

/// Lets other tasks of this core run if it is their turn. Loops that may run for more than 50 us
/// call it.
pub async fn yield_if_needed() {
    match sim::current() {
        Some(world) => world.yield_now().await,
        None => uring::yield_if_needed().await,
    }
}

/// Lets those tasks of this core go first that are ready by now, once each; returns at once if
/// there are none. For work that costs less if it is done for many tasks in a row.
pub async fn after_others() {
    match sim::current() {
        Some(world) => world.yield_now().await,
        None => uring::after_others().await,
    }
}

/// Returns after `duration`.
pub async fn sleep(duration: Duration) {
    match sim::current() {
        Some(world) => world.sleep(duration).await,
        None => uring::sleep(duration).await,
    }
}

/// Time since an arbitrary start; never goes back.
pub fn now() -> Duration {
    match sim::current() {
        Some(world) => world.now(),
        None => uring::now(),
    }
}

/// The wall clock, in Unix milliseconds. It may jump, in either direction.
pub fn wall_ms() -> UnixMillis {
    match sim::current() {
        Some(world) => world.wall_ms(),
        None => uring::wall_ms(),
    }
}

/// A random number: from the seed in a simulated world, from the operating system otherwise.
pub fn random() -> u64 {
    match sim::current() {
        Some(world) => world.random(),
        None => fastrand::u64(..),
    }
}

/// Returns when the node was asked to stop (SIGINT, SIGTERM, or the simulated world's word).
pub async fn stopping() {
    match sim::current() {
        Some(world) => world.stopping().await,
        None => uring::stopping().await,
    }
}

/// Files and connections that this process has open, and how many it may have.
pub fn open_files() -> (u64, u64) {
    match sim::current() {
        Some(_) => (0, u64::MAX),
        None => uring::open_files(),
    }
}

/// The last of the file descriptors that a process may have are not for files, which are refused
/// with EMFILE before: a few connections need them, and what is open for a moment, such as a
/// directory that is synced.
pub const FILES_LAST: u64 = 48;

/// Bytes of this process that are resident in memory.
pub fn resident_bytes() -> u64 {
    match sim::current() {
        Some(_) => 0,
        None => uring::resident_bytes(),
    }
}

/// Seconds of CPU that this process has used: in user mode, and in the kernel.
pub fn cpu_seconds() -> (f64, f64) {
    match sim::current() {
        Some(_) => (0.0, 0.0),
        None => uring::cpu_seconds(),
    }
}

/// True in a simulated world that has `bug` planted.
pub fn planted(bug: Bug) -> bool {
    sim::current().is_some_and(|world| world.planted(bug))
}

/// An open file for direct I/O.
pub struct File(FileKind);

enum FileKind {
    Real(uring::File),
    Sim(sim::File),
}

impl File {
    /// Creates `path` for reading and writing. Fails with `AlreadyExists` if it exists.
    /// Its name is durable only after [`sync_dir`] of its directory.
    pub async fn create(path: &Path) -> Result<File> {
        let kind = match sim::current() {
            Some(world) => world.create_file(path).await.map(FileKind::Sim),
            None => uring::File::create(path).await.map(FileKind::Real),
        };
        kind.map(File)
            .map_err(|source| Error::io("create", path, source))
    }

    /// Opens an existing file for reading and writing.
    pub async fn open(path: &Path) -> Result<File> {
        let kind = match sim::current() {
            Some(world) => world.open_file(path).await.map(FileKind::Sim),
            None => uring::File::open(path).await.map(FileKind::Real),
        };
        kind.map(File)
            .map_err(|source| Error::io("open", path, source))
    }

    /// Opens an existing file for reading only, where nothing may be written.
    pub async fn open_to_read(path: &Path) -> Result<File> {
        let kind = match sim::current() {
            Some(world) => world.open_file(path).await.map(FileKind::Sim),
            None => uring::File::open_to_read(path).await.map(FileKind::Real),
        };
        kind.map(File)
            .map_err(|source| Error::io("open", path, source))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        match &self.0 {
            FileKind::Real(file) => file.path(),
            FileKind::Sim(file) => file.path(),
        }
    }

    /// Its length in bytes.
    pub async fn len(&self) -> Result<u64> {
        let length = match &self.0 {
            FileKind::Real(file) => file.len().await,
            FileKind::Sim(file) => file.len(),
        };
        length.map_err(|source| Error::io("measure", self.path(), source))
    }

    /// True if it has one name (hard link) at this moment, and not several.
    pub fn has_one_name(&self) -> Result<bool> {
        let has_one = match &self.0 {
            FileKind::Real(file) => file.has_one_name(),
            FileKind::Sim(file) => file.has_one_name(),
        };
        has_one.map_err(|source| Error::io("count the names of", self.path(), source))
    }

    /// Reads up to `length` bytes at `position`, any alignment. Fewer come back only at the end
    /// of the file.
    pub async fn read_at(&self, position: u64, length: usize) -> Result<ReadBuffer> {
        let bytes = match &self.0 {
            FileKind::Real(file) => file.read_at(position, length).await.map(ReadBuffer::Real),
            FileKind::Sim(file) => file.read_at(position, length).await.map(ReadBuffer::Sim),
        };
        bytes.map_err(|source| Error::io("read", self.path(), source))
    }

    /// An aligned buffer of `length` bytes (a multiple of [`BLOCK_BYTES`]) for [`File::write_at`].
    /// Its contents are unspecified.
    pub fn buffer(&self, length: usize) -> WriteBuffer {
        assert!(length > 0 && length.is_multiple_of(BLOCK_BYTES));
        match &self.0 {
            FileKind::Real(file) => WriteBuffer::Real(file.buffer(length)),
            FileKind::Sim(_) => WriteBuffer::Sim(vec![0xAA; length]),
        }
    }

    /// Writes the whole buffer at `position` (a multiple of [`BLOCK_BYTES`]); durable after
    /// [`File::sync`]. A short write is an error.
    pub async fn write_at(&self, buffer: WriteBuffer, position: u64) -> Result<()> {
        assert!(position.is_multiple_of(BLOCK_BYTES as u64));
        let written = match (&self.0, buffer) {
            (FileKind::Real(file), WriteBuffer::Real(buffer)) => {
                file.write_at(buffer, position).await
            }
            (FileKind::Sim(file), WriteBuffer::Sim(bytes)) => file.write_at(bytes, position).await,
            _ => unreachable!("a buffer comes from the file it is written to"),
        };
        written.map_err(|source| Error::io("write", self.path(), source))
    }

    /// Makes everything written so far durable. After an error nothing is known about any of it,
    /// and another call proves nothing.
    pub async fn sync(&self) -> Result<()> {
        let synced = match &self.0 {
            FileKind::Real(file) => file.sync().await,
            FileKind::Sim(file) => file.sync().await,
        };
        synced.map_err(|source| Error::io("sync", self.path(), source))
    }

    /// Sets its length; durable after [`File::sync`].
    pub async fn set_len(&self, length: u64) -> Result<()> {
        let set = match &self.0 {
            FileKind::Real(file) => file.set_len(length).await,
            FileKind::Sim(file) => file.set_len(length).await,
        };
        set.map_err(|source| Error::io("resize", self.path(), source))
    }

    /// Makes it at least `length` bytes long and takes the space for them, so that writing there
    /// fails for no want of space. They read as zeros. Durable after [`File::sync`].
    pub async fn allocate(&self, length: u64) -> Result<()> {
        let allocated = match &self.0 {
            FileKind::Real(file) => file.allocate(length).await,
            FileKind::Sim(file) => file.allocate(length).await,
        };
        allocated.map_err(|source| Error::io("allocate", self.path(), source))
    }

    /// Closes it. Dropping a file closes it too, some time later.
    pub async fn close(self) {
        match self.0 {
            FileKind::Real(file) => file.close().await,
            FileKind::Sim(_) => {}
        }
    }
}

/// Bytes that were read.
pub enum ReadBuffer {
    /// From a real file.
    Real(uring::ReadBytes),
    /// From a simulated one.
    Sim(Vec<u8>),
}

impl std::ops::Deref for ReadBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            ReadBuffer::Real(bytes) => bytes,
            ReadBuffer::Sim(bytes) => bytes,
        }
    }
}

/// Aligned bytes to be written.
pub enum WriteBuffer {
    /// For a real file.
    Real(uring::WriteBytes),
    /// For a simulated one.
    Sim(Vec<u8>),
}

impl WriteBuffer {
    /// Gives up what lies behind the first `length` bytes (a multiple of [`BLOCK_BYTES`]).
    pub fn truncate(&mut self, length: usize) {
        assert!(length <= self.len() && length.is_multiple_of(BLOCK_BYTES));
        match self {
            WriteBuffer::Real(bytes) => bytes.truncate(length),
            WriteBuffer::Sim(bytes) => bytes.truncate(length),
        }
    }
}

impl std::ops::Deref for WriteBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            WriteBuffer::Real(bytes) => bytes.as_bytes(),
            WriteBuffer::Sim(bytes) => bytes,
        }
    }
}

impl std::ops::DerefMut for WriteBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            WriteBuffer::Real(bytes) => bytes.as_bytes_mut(),
            WriteBuffer::Sim(bytes) => bytes,
        }
    }
}

/// Creates `path` and its parents, and syncs the directory that each was made in.
pub async fn create_dir_all(path: &Path) -> Result<()> {
    let done = match sim::current() {
        Some(world) => world.create_dir_all(path).await,
        None => uring::create_dir_all(path).await,
    };
    done.map_err(|source| Error::io("create directory", path, source))
}

/// The names in a directory, sorted.
pub async fn list_dir(path: &Path) -> Result<Vec<String>> {
    let names = match sim::current() {
        Some(world) => world.list_dir(path),
        None => uring::list_dir(path).await,
    };
    names.map_err(|source| Error::io("list", path, source))
}

/// Gives `from` the name `to`, replacing what had it; durable after [`sync_dir`].
pub async fn rename(from: &Path, to: &Path) -> Result<()> {
    let done = match sim::current() {
        Some(world) => world.rename(from, to).await,
        None => uring::rename(from, to).await,
    };
    done.map_err(|source| Error::io("rename", from, source))
}

/// Gives the file `from` the name `to` as well, which must be free, on the same file system;
/// durable after [`sync_dir`]. Both names are of one file, which lives as long as any of them.
pub async fn link(from: &Path, to: &Path) -> Result<()> {
    let done = match sim::current() {
        Some(world) => world.link(from, to).await,
        None => uring::link(from, to).await,
    };
    done.map_err(|source| Error::io("link", from, source))
}

/// Removes an empty directory, and syncs the one that it was in.
pub async fn remove_dir(path: &Path) -> Result<()> {
    let done = match sim::current() {
        Some(world) => world.remove_dir(path).await,
        None => uring::remove_dir(path).await,
    };
    done.map_err(|source| Error::io("remove directory", path, source))
}

/// Removes a file; durable after [`sync_dir`].
pub async fn remove_file(path: &Path) -> Result<()> {
    let done = match sim::current() {
        Some(world) => world.remove_file(path).await,
        None => uring::remove_file(path).await,
    };
    done.map_err(|source| Error::io("remove", path, source))
}

/// Makes the names in `path` durable: files created, renamed or removed there.
pub async fn sync_dir(path: &Path) -> Result<()> {
    let directory = Directory::open(path).await?;
    let synced = directory.sync().await;
    directory.close().await;
    synced
}

/// An open directory. Where a name changes that cannot be taken back, it is opened before, so that
/// the change need not stay undurable for want of a file descriptor.
pub struct Directory {
    kind: DirectoryKind,
    path: PathBuf,
}

enum DirectoryKind {
    Real(uring::Directory),
    Sim,
}

impl Directory {
    /// Opens a directory.
    pub async fn open(path: &Path) -> Result<Directory> {
        let kind = match sim::current() {
            Some(world) => world.open_dir(path).map(|()| DirectoryKind::Sim),
            None => uring::Directory::open(path).await.map(DirectoryKind::Real),
        };
        kind.map(|kind| Directory {
            kind,
            path: path.to_owned(),
        })
        .map_err(|source| Error::io("open directory", path, source))
    }

    /// Makes the names in it durable.
    pub async fn sync(&self) -> Result<()> {
        let done = match (&self.kind, sim::current()) {
            (DirectoryKind::Real(directory), _) => directory.sync().await,
            (DirectoryKind::Sim, Some(world)) => world.sync_dir(&self.path).await,
            (DirectoryKind::Sim, None) => unreachable!("it lives in a simulated world"),
        };
        done.map_err(|source| Error::io("sync directory", &self.path, source))
    }

    /// Closes it.
    pub async fn close(self) {
        if let DirectoryKind::Real(directory) = self.kind {
            directory.close().await;
        }
    }
}

/// A data directory that no other process may open while this lives.
pub struct DirLock(#[expect(dead_code, reason = "held for its drop")] LockKind);

enum LockKind {
    Real(#[expect(dead_code, reason = "held for its drop")] uring::DirLock),
    Sim(#[expect(dead_code, reason = "held for its drop")] sim::DirLock),
}

/// Locks the file `path` (created if absent) against other processes, without waiting.
/// `WouldBlock` if another one holds it.
pub async fn lock_file(path: &Path) -> Result<DirLock> {
    let lock = match sim::current() {
        Some(world) => world.lock_file(path).map(LockKind::Sim),
        None => uring::lock_file(path).await.map(LockKind::Real),
    };
    lock.map(DirLock)
        .map_err(|source| Error::io("lock", path, source))
}

/// Locks the file `path` like [`lock_file`], and fails with `NotFound` instead of creating it.
pub async fn lock_existing(path: &Path) -> Result<DirLock> {
    let lock = match sim::current() {
        Some(world) => world.lock_existing(path).map(LockKind::Sim),
        None => uring::lock_existing(path).await.map(LockKind::Real),
    };
    lock.map(DirLock)
        .map_err(|source| Error::io("lock", path, source))
}

/// A listening socket; each core of a node binds the same address.
pub struct Listener(ListenerKind);

enum ListenerKind {
    Real(uring::Listener),
    Sim(sim::Listener),
}

impl Listener {
    /// Listens on `address`. The cores of one node share it; see [`reserve_ports`] for strangers.
    pub fn bind(address: SocketAddr) -> Result<Listener> {
        let kind = match sim::current() {
            Some(world) => world.bind(address).map(ListenerKind::Sim),
            None => uring::Listener::bind(address).map(ListenerKind::Real),
        };
        let what = address.to_string();
        kind.map(Listener)
            .map_err(|source| Error::io("listen on", Path::new(&what), source))
    }

    /// The next connection. After an error (too many open files) wait a little before the next
    /// call.
    pub async fn accept(&self) -> Result<Stream> {
        let stream = match &self.0 {
            ListenerKind::Real(listener) => listener.accept().await.map(StreamKind::Real),
            ListenerKind::Sim(listener) => listener.accept().await.map(StreamKind::Sim),
        };
        stream
            .map(Stream)
            .map_err(|source| Error::io("accept", Path::new("a connection"), source))
    }
}

/// A TCP connection, without Nagle's delay.
pub struct Stream(StreamKind);

enum StreamKind {
    Real(uring::Stream),
    Sim(sim::Stream),
}

impl Stream {
    /// Connects to `address`.
    pub async fn connect(address: SocketAddr) -> Result<Stream> {
        let kind = match sim::current() {
            Some(world) => world.connect(address).await.map(StreamKind::Sim),
            None => uring::Stream::connect(address).await.map(StreamKind::Real),
        };
        let what = address.to_string();
        kind.map(Stream)
            .map_err(|source| Error::io("connect to", Path::new(&what), source))
    }

    /// Reads what is there, waiting for at least one byte; 0 means that the other side is done.
    /// May be cancelled: no byte is lost.
    pub async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        poll_fn(|context| self.poll_read(context, buffer)).await
    }

    /// One attempt to read: the buffer is needed only while this runs, not while one waits.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.0 {
            StreamKind::Real(stream) => stream.poll_read(context, buffer),
            StreamKind::Sim(stream) => stream.poll_read(context, buffer),
        }
    }

    /// One attempt to write: as much as there is room for, at least one byte.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.0 {
            StreamKind::Real(stream) => stream.poll_write(context, bytes),
            StreamKind::Sim(stream) => stream.poll_write(context, bytes),
        }
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.0 {
            StreamKind::Real(stream) => stream.write_all(bytes).await,
            StreamKind::Sim(stream) => stream.write_all(bytes).await,
        }
    }

    /// Like [`open_files`], but costs next to nothing: at least so many are open, as the number of
    /// this connection's descriptor tells.
    pub fn open_files(&self) -> (u64, u64) {
        match &self.0 {
            StreamKind::Real(stream) => stream.open_files(),
            StreamKind::Sim(_) => (0, u64::MAX),
        }
    }

    /// The other side's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            StreamKind::Real(stream) => stream.peer_addr(),
            StreamKind::Sim(stream) => stream.peer_addr(),
        }
    }

    /// This side's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            StreamKind::Real(stream) => stream.local_addr(),
            StreamKind::Sim(stream) => stream.local_addr(),
        }
    }

    /// Sends the end of the stream; what was written before still arrives.
    pub async fn shutdown(&mut self) {
        match &mut self.0 {
            StreamKind::Real(stream) => stream.shutdown().await,
            StreamKind::Sim(stream) => stream.shutdown(),
        }
    }
}

/// The address of `host`, a name or an address, and `port`.
pub async fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    match sim::current() {
        Some(_) => Err(std::io::ErrorKind::NotFound.into()), // there are no names in simulated worlds
        None => uring::resolve(host, port).await,
    }
}

/// One core's post box before it is connected; made before the cores start.
pub struct Mail<M: Send>(MailKind<M>);

enum MailKind<M: Send> {
    Real(uring::Mail<M>),
    Sim(sim::Mail<M>),
}

impl<M: Send + 'static> Mail<M> {
    /// Connects to every other core of the node; all of them must call it.
    pub async fn connect(self) -> (Outbox<M>, Vec<Inbox<M>>) {
        match self.0 {
            MailKind::Real(mail) => {
                let (outbox, inboxes) = mail.connect().await;
                let inboxes = inboxes
                    .into_iter()
                    .map(|inbox| Inbox(InboxKind::Real(inbox)));
                (Outbox(OutboxKind::Real(outbox)), inboxes.collect())
            }
            MailKind::Sim(mail) => {
                let (outbox, inboxes) = mail.connect();
                let inboxes = inboxes
                    .into_iter()
                    .map(|inbox| Inbox(InboxKind::Sim(inbox)));
                (Outbox(OutboxKind::Sim(outbox)), inboxes.collect())
            }
        }
    }
}

/// Where a core posts messages to its siblings: delivered once each, in the order they were sent.
pub struct Outbox<M: Send>(OutboxKind<M>);

enum OutboxKind<M: Send> {
    Real(uring::Outbox<M>),
    Sim(sim::Outbox<M>),
}

impl<M: Send + 'static> Outbox<M> {
    /// Posts `message`, never waiting. The queue is as long as what callers have outstanding,
    /// so callers bound that. `to` must be another core.
    pub fn send(&self, to: CoreId, message: M) {
        match &self.0 {
            OutboxKind::Real(outbox) => outbox.send(to, message),
            OutboxKind::Sim(outbox) => outbox.send(to, message),
        }
    }
}

/// What one sibling sends. Serve it by one task that does nothing but receive and hand on.
pub struct Inbox<M: Send>(InboxKind<M>);

enum InboxKind<M: Send> {
    Real(uring::Inbox<M>),
    Sim(sim::Inbox<M>),
}

impl<M: Send + 'static> Inbox<M> {
    /// Which core it comes from.
    pub fn from(&self) -> CoreId {
        match &self.0 {
            InboxKind::Real(inbox) => inbox.from(),
            InboxKind::Sim(inbox) => inbox.from(),
        }
    }

    /// The next message; `None` when that core has ended. Never race this against another future.
    pub async fn recv(&mut self) -> Option<M> {
        match &mut self.0 {
            InboxKind::Real(inbox) => inbox.recv().await,
            InboxKind::Sim(inbox) => inbox.recv().await,
        }
    }
}
