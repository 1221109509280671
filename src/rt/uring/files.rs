//! Files for direct I/O, and the operations on their names.
//!
//! Traps of glommio 0.9 that shape this file: `DmaFile::read_at` may return bytes from behind the
//! end of the file if the position is not aligned, so only its aligned sibling is used. Its
//! `file_size` asks by path, which a rename makes wrong. Its stream writer panics after a full
//! disk. And requests are split at [`REQUEST_BYTES_MAX`]: larger ones may hang on polled devices.
//!
//! A read or write that has begun should be awaited. Dropping it is safe, but thousands dropped
//! at once are too much for the executor.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};

use super::{blocking, host, into_io, join_all};
use crate::rt::{BLOCK_BYTES, FILES_LAST};

/// The most that one request to the device asks for.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How many requests of one large read or write are in flight together.
const REQUESTS_MAX: usize = 4;

const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_BYTES));

/// An open file.
pub struct File {
    file: DmaFile,
    path: PathBuf,
    /// Reads begin and end at multiples of this: what the device says, or a block, once it has
    /// refused less.
    sector: Cell<usize>,
}

impl File {
    /// Creates `path`, which must not exist.
    pub async fn create(path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = File::open_with(path, &options).await?;
        if file.has_last_descriptor() {
            file.close().await;
            remove_file(path).await?;
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(file)
    }

    /// Opens `path`, which must exist.
    pub async fn open(path: &Path) -> io::Result<File> {
        File::open_existing(path, OpenOptions::new().read(true).write(true)).await
    }

    /// Opens `path`, which must exist, and of which nothing will be written.
    pub async fn open_to_read(path: &Path) -> io::Result<File> {
        File::open_existing(path, OpenOptions::new().read(true)).await
    }

    async fn open_existing(path: &Path, options: &OpenOptions) -> io::Result<File> {
        let file = File::open_with(path, options).await?;
        if file.has_last_descriptor() {
            file.close().await;
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(file)
    }

    /// True if it has one of the descriptors that are not for files.
    fn has_last_descriptor(&self) -> bool {
        let (open, most) = host::open_files_by(self.file.as_raw_fd());
        open + FILES_LAST > most
    }

    async fn open_with(path: &Path, options: &OpenOptions) -> io::Result<File> {
        let file = options.dma_open(path).await.map_err(into_io)?;
        let sector = usize::try_from(file.alignment()).unwrap_or(BLOCK_BYTES);
        let is_fine = sector.is_power_of_two() && sector <= BLOCK_BYTES;
        Ok(File {
            file,
            path: path.to_owned(),
            sector: Cell::new(if is_fine { sector } else { BLOCK_BYTES }),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub async fn len(&self) -> io::Result<u64> {
        self.length()
    }

    /// By descriptor and without waiting: the kernel has the inode in memory.
    fn length(&self) -> io::Result<u64> {
        let stat = nix::sys::stat::fstat(self.file.as_raw_fd())?;
        u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// True if it has one name, and not several. (The width of the count depends on the processor.)
    pub fn has_one_name(&self) -> io::Result<bool> {
        let stat = nix::sys::stat::fstat(self.file.as_raw_fd())?;
        Ok(stat.st_nlink == 1)
    }

    /// Reads up to `length` bytes at `position`, fewer only at the end of the file.
    pub async fn read_at(&self, position: u64, length: usize) -> io::Result<ReadBytes> {
        loop {
            let sector = self.sector.get();
            match self.read_by(sector, position, length).await {
                // A file system may want more than the device does.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput && sector < BLOCK_BYTES =>
                {
                    self.sector.set(BLOCK_BYTES);
                }
                read => return read,
            }
        }
    }

    async fn read_by(&self, sector: usize, position: u64, length: usize) -> io::Result<ReadBytes> {
        let start = position - position % sector as u64;
        let skip = (position - start) as usize;
        let wanted = skip + length;
        if wanted <= REQUEST_BYTES_MAX {
            let bytes = self
                .read_request(start, wanted.next_multiple_of(sector))
                .await?;
            if bytes.len() >= wanted {
                return Ok(ReadBytes::slice_of(&bytes, skip, length));
            }
            if start + bytes.len() as u64 >= self.length()? {
                return Ok(ReadBytes::slice_of(
                    &bytes,
                    skip,
                    bytes.len().saturating_sub(skip),
                ));
            }
        }
        let aligned = position - position % BLOCK_BYTES as u64;
        let skip = (position - aligned) as usize;
        let mut bytes = self.read_long(aligned, skip + length).await?;
        bytes.drain(..skip.min(bytes.len()));
        Ok(ReadBytes(ReadKind::Joined(bytes)))
    }

    async fn read_request(&self, start: u64, length: usize) -> io::Result<ReadResult> {
        self.file
            .read_at_aligned(start, length)
            .await
            .map_err(into_io)
    }

    /// Reads in several requests, whatever it takes.
    async fn read_long(&self, start: u64, wanted: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let have = bytes.len();
            let requests = (have..wanted).step_by(REQUEST_BYTES_MAX).take(REQUESTS_MAX);
            let requests = requests.map(|from| async move {
                let length = REQUEST_BYTES_MAX.min(wanted - from);
                let aligned = length.next_multiple_of(BLOCK_BYTES);
                (
                    length,
                    self.read_request(start + from as u64, aligned).await,
                )
            });
            for (length, result) in join_all(requests).await {
                let result = result?;
                bytes.extend_from_slice(&result[..length.min(result.len())]);
                if result.len() < length {
                    break;
                }
            }
            if bytes.len() < wanted {
                if start + bytes.len() as u64 >= self.length()? {
                    break;
                }
                // Short, and not by the end of the file: go on from the last whole block.
                bytes.truncate(bytes.len() / BLOCK_BYTES * BLOCK_BYTES);
                if bytes.len() == have {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(bytes)
    }

    /// An aligned buffer.
    pub fn buffer(&self, length: usize) -> WriteBytes {
        WriteBytes(match length {
            ..=REQUEST_BYTES_MAX => WriteKind::Request(self.file.alloc_dma_buffer(length)),
            _ => WriteKind::Large(vec![0; length]),
        })
    }

    /// Writes the whole buffer. A short write is an error, of which a part may be on disk.
    pub async fn write_at(&self, buffer: WriteBytes, position: u64) -> io::Result<()> {
        let bytes = match buffer.0 {
            WriteKind::Request(buffer) => return self.write_request(buffer, position).await,
            WriteKind::Large(bytes) => bytes,
        };
        // One buffer cannot be in two requests of glommio's, hence the copies.
        let mut from = 0;
        while from < bytes.len() {
            let window = &bytes[from..bytes.len().min(from + REQUESTS_MAX * REQUEST_BYTES_MAX)];
            let requests = window
                .chunks(REQUEST_BYTES_MAX)
                .enumerate()
                .map(|(index, chunk)| {
                    let mut buffer = self.file.alloc_dma_buffer(chunk.len());
                    buffer.as_bytes_mut().copy_from_slice(chunk);
                    let at = position + (from + index * REQUEST_BYTES_MAX) as u64;
                    self.write_request(buffer, at)
                });
            for written in join_all(requests).await {
                written?;
            }
            from += window.len();
        }
        Ok(())
    }

    async fn write_request(&self, buffer: DmaBuffer, position: u64) -> io::Result<()> {
        let length = buffer.len();
        let written = self
            .file
            .write_at(buffer, position)
            .await
            .map_err(into_io)?;
        if written < length {
            let why = format!("only {written} of {length} bytes were written");
            return Err(io::Error::new(io::ErrorKind::WriteZero, why));
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub async fn sync(&self) -> io::Result<()> {
        self.file.fdatasync().await.map_err(into_io)
    }

    /// Sets its length.
    pub async fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length).await.map_err(into_io)
    }

    /// Makes it at least `length` bytes long, with space for all of them.
    pub async fn allocate(&self, length: u64) -> io::Result<()> {
        self.file.pre_allocate(length, false).await.map_err(into_io)
    }

    /// Closes it.
    pub async fn close(self) {
        if let Err(error) = self.file.close().await {
            log::warn!("closing {}: {error}", self.path.display());
        }
    }
}

/// Bytes that were read.
pub struct ReadBytes(ReadKind);

enum ReadKind {
    One(ReadResult),
    Joined(Vec<u8>),
}

impl ReadBytes {
    fn slice_of(bytes: &ReadResult, skip: usize, length: usize) -> ReadBytes {
        let slice = ReadResult::slice(bytes, skip.min(bytes.len()), length);
        ReadBytes(ReadKind::One(slice.unwrap_or_default()))
    }
}

impl std::ops::Deref for ReadBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            ReadKind::One(bytes) => bytes,
            ReadKind::Joined(bytes) => bytes,
        }
    }
}

/// Bytes to be written.
pub struct WriteBytes(WriteKind);

enum WriteKind {
    /// For one request, and aligned as the device wants it.
    Request(DmaBuffer),
    Large(Vec<u8>),
}

impl WriteBytes {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            WriteKind::Request(buffer) => buffer.as_bytes(),
            WriteKind::Large(bytes) => bytes,
        }
    }

    /// Gives up what lies behind the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        match &mut self.0 {
            WriteKind::Request(buffer) => buffer.trim_to_size(length),
            WriteKind::Large(bytes) => bytes.truncate(length),
        }
    }

    /// The bytes.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            WriteKind::Request(buffer) => buffer.as_bytes_mut(),
            WriteKind::Large(bytes) => bytes,
        }
    }
}

/// Creates `path` and its parents, syncing each directory in which one was made.
pub async fn create_dir_all(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || create_dirs(&path)).await
}

pub(super) fn create_dirs(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dirs(parent)?;
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    std::fs::File::open(parent)?.sync_all()
}

/// The names in a directory, sorted.
pub async fn list_dir(path: &Path) -> io::Result<Vec<String>> {
    let path = path.to_owned();
    blocking(move || {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    })
    .await
}

/// Gives `from` the name `to`.
pub async fn rename(from: &Path, to: &Path) -> io::Result<()> {
    glommio::io::rename(from, to).await.map_err(into_io)
}

/// Gives `from` the name `to` as well.
pub async fn link(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || std::fs::hard_link(from, to)).await
}

/// Removes an empty directory, and syncs its parent.
pub async fn remove_dir(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || {
        std::fs::remove_dir(&path)?;
        std::fs::File::open(parent_of(&path))?.sync_all()
    })
    .await
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a file.
pub async fn remove_file(path: &Path) -> io::Result<()> {
    glommio::io::remove(path).await.map_err(into_io)
}

/// An open directory.
pub struct Directory(glommio::io::Directory);

impl Directory {
    /// Opens a directory.
    pub async fn open(path: &Path) -> io::Result<Directory> {
        let opened = glommio::io::Directory::open(path).await;
        opened.map(Directory).map_err(into_io)
    }

    /// Makes the names in it durable.
    pub async fn sync(&self) -> io::Result<()> {
        self.0.sync().await.map_err(into_io)
    }

    /// Closes it.
    pub async fn close(self) {
        if let Err(error) = self.0.close().await {
            log::warn!("closing a directory: {error}");
        }
    }
}

/// A lock that is held until this is dropped, or the process is gone.
pub struct DirLock {
    _file: std::fs::File,
}

/// Locks the file `path`; `WouldBlock` if somebody else has it, and keeps it.
pub async fn lock_file(path: &Path) -> io::Result<DirLock> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    lock_with(path, options).await
}

/// Locks the file `path`, which must exist, and does not open it for writing.
pub async fn lock_existing(path: &Path) -> io::Result<DirLock> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    lock_with(path, options).await
}

async fn lock_with(path: &Path, options: std::fs::OpenOptions) -> io::Result<DirLock> {
    let path = path.to_owned();
    blocking(move || {
        let file = options.open(path)?;
        let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        super::when_freed(is_taken, || file.try_lock().map_err(io::Error::from))?;
        Ok(DirLock { _file: file })
    })
    .await
}

/// Some file below `dir` that is not empty: what a reader who may not write there begins with.
pub fn file_to_probe(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_file() && about.len() > 0 {
            return Ok(Some(entry.path()));
        }
        if about.is_dir() {
            folders.push(entry.path());
        }
    }
    for folder in folders {
        if let Some(file) = file_to_probe(&folder)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
