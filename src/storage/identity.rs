//! Whose data directory this is, and which folders in it count: one small file.
//!
//! NODE := magic "QUOITDIR" | format u32 | crc u32 | node u16 | cores u16 | vnodes u32 | generation u32,
//!         zeros to 4 KiB
//!
//! Little endian; crc32c over what follows it in the header and the format. Format 1 ends before
//! the generation, which is 0 then; a directory that was never re-sharded is begun so. Format 3
//! says besides that all cores have opened their folders once: from then on one that is not there
//! has been lost, with what was in it.
//!
//! Each core has a folder, `core-000` and so on; those that a re-sharding made bear its generation,
//! `core-000.1`. The generation that NODE names counts, with as many cores as NODE says; folders of
//! others are what a crash left of a re-sharding, and go. NODE is written anew as a whole (to
//! `NODE.tmp`, synced, renamed, the directory synced): that one step makes another generation
//! count. A directory of another node is refused, never reinterpreted.

use std::path::Path;

use super::manifest::MANIFEST;
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};
use crate::types::CoreId;

const MAGIC: &[u8; 8] = b"QUOITDIR";
/// The newest format that this program reads.
const FORMAT: u32 = FORMAT_OPENED;
/// The format of a directory that all cores have opened.
const FORMAT_OPENED: u32 = 3;
/// The format with a generation.
const FORMAT_RESHARDED: u32 = 2;
/// The format without a generation.
const FORMAT_PLAIN: u32 = 1;
const PLAIN_BYTES: usize = 24;
const IDENTITY_BYTES: usize = PLAIN_BYTES + 4;
const _: () = assert!(PLAIN_BYTES == 8 + 4 + 4 + 2 + 2 + 4);
/// The name of the identity file in its data directory.
pub const NAME: &str = "NODE";
/// The name of the identity file that is being written.
pub const NAME_TMP: &str = "NODE.tmp";

/// What a data directory is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's number.
    pub node: u16,
    /// How many cores share the keys.
    pub cores: u16,
    /// How many arcs the ring has.
    pub vnodes: u32,
    /// How many times the data was re-sharded.
    pub generation: u32,
    /// All cores have opened their folders once: there may be data in all of them.
    pub is_opened: bool,
}

/// A core's folder, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folder {
    /// The re-sharding that made it.
    pub generation: u32,
    /// Whose it is.
    pub core: CoreId,
}

impl Folder {
    /// What it is called.
    pub fn name(self) -> String {
        match self.generation {
            0 => format!("core-{:03}", self.core.0),
            generation => format!("core-{:03}.{generation}", self.core.0),
        }
    }

    /// The folder of this name.
    pub fn parse(name: &str) -> Option<Folder> {
        let rest = name.strip_prefix("core-")?;
        let (core, generation) = rest.split_once('.').unwrap_or((rest, "0"));
        let folder = Folder {
            generation: generation.parse().ok()?,
            core: CoreId(core.parse().ok()?),
        };
        (folder.name() == name).then_some(folder)
    }
}

impl Identity {
    /// The folder of `core`.
    pub fn folder(&self, core: CoreId) -> Folder {
        Folder {
            generation: self.generation,
            core,
        }
    }

    /// True if a re-sharding has left this folder: of a generation before, which does not count any
    /// more, or of the next one, which does not yet.
    pub fn is_left_over(&self, folder: Folder) -> bool {
        folder.generation < self.generation
            || Some(folder.generation) == self.generation.checked_add(1)
    }

    fn encode(self, block: &mut [u8]) {
        let format = match self.generation {
            _ if self.is_opened => FORMAT_OPENED,
            0 => FORMAT_PLAIN,
            _ => FORMAT_RESHARDED,
        };
        block.fill(0);
        block[0..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&format.to_le_bytes());
        block[16..18].copy_from_slice(&self.node.to_le_bytes());
        block[18..20].copy_from_slice(&self.cores.to_le_bytes());
        block[20..24].copy_from_slice(&self.vnodes.to_le_bytes());
        block[24..28].copy_from_slice(&self.generation.to_le_bytes());
        let crc = checksum(block, format);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    fn decode(block: &[u8], path: &Path) -> Result<Identity> {
        let damaged = |why: &str| Error::Corrupt {
            file: path.to_owned(),
            offset: 0,
            why: why.to_owned(),
        };
        if block.len() < IDENTITY_BYTES || &block[0..8] != MAGIC {
            return Err(damaged("this is no identity file of Quoit"));
        }
        let format = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
        if block[12..16] != checksum(block, format).to_le_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        let end = length_of(format);
        if block.len() != BLOCK_BYTES || block[end..].iter().any(|&byte| byte != 0) {
            return Err(damaged("there is more than an identity, or less"));
        }
        if format > FORMAT {
            return Err(Error::Setup(format!(
                "{} was written by a newer Quoit (format {format}); start that version",
                path.display()
            )));
        }
        let identity = Identity {
            node: u16::from_le_bytes([block[16], block[17]]),
            cores: u16::from_le_bytes([block[18], block[19]]),
            vnodes: u32::from_le_bytes([block[20], block[21], block[22], block[23]]),
            generation: u32::from_le_bytes([block[24], block[25], block[26], block[27]]),
            is_opened: format == FORMAT_OPENED,
        };
        match identity.cores {
            0 => Err(damaged("it names no core")),
            _ => Ok(identity),
        }
    }
}

fn length_of(format: u32) -> usize {
    match format {
        FORMAT_PLAIN => PLAIN_BYTES,
        _ => IDENTITY_BYTES,
    }
}

fn checksum(block: &[u8], format: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[8..12]), &block[16..length_of(format)])
}

/// Makes the data directory `dir` that of `wanted`, if it is new, or sees that it is that node's.
/// The identity that is in force may name another number of cores: a re-sharding changes that. It
/// is durable when this returns: what is done next must not outlive it.
pub async fn claim(dir: &Path, wanted: Identity) -> Result<Identity> {
    // A process that was killed may have left a name that is seen and not durable.
    sync_dir(dir).await?;
    let found = match read(dir).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return create(dir, wanted).await,
        Err(error) => return Err(error),
    };
    let why = if found.node != wanted.node {
        format!(
            "it belongs to node {}, this is node {}",
            found.node, wanted.node
        )
    } else if found.vnodes != wanted.vnodes {
        format!(
            "its ring has {} vnodes, not {}",
            found.vnodes, wanted.vnodes
        )
    } else {
        return Ok(found);
    };
    Err(Error::Setup(format!(
        "cannot use the data directory {}: {why}",
        dir.display()
    )))
}

/// Whose data directory `dir` is; changes nothing.
pub async fn read(dir: &Path) -> Result<Identity> {
    let path = dir.join(NAME);
    let file = File::open_to_read(&path).await?;
    // One byte more than there should be.
    let bytes = file.read_at(0, BLOCK_BYTES + 1).await;
    file.close().await;
    Identity::decode(&bytes?, &path)
}

async fn create(dir: &Path, identity: Identity) -> Result<Identity> {
    let strangers = rt::list_dir(dir).await?;
    if strangers.iter().any(|name| name.starts_with("core-")) {
        return Err(Error::Corrupt {
            file: dir.join(NAME),
            offset: 0,
            why: "it is missing, but there is data".to_owned(),
        });
    }
    write(dir, identity).await?;
    Ok(identity)
}

/// Makes `identity` the one that is in force, durably. After an error the old one or the new one
/// is: the next start tells, and until then nothing may be removed that either of them names.
pub async fn write(dir: &Path, identity: Identity) -> Result<()> {
    let temporary = dir.join(NAME_TMP);
    match rt::remove_file(&temporary).await {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let file = File::create(&temporary).await?;
    let mut block = file.buffer(BLOCK_BYTES);
    identity.encode(&mut block);
    let mut written = file.write_at(block, 0).await;
    if written.is_ok() {
        written = file.sync().await;
    }
    file.close().await;
    written?;
    rt::rename(&temporary, &dir.join(NAME)).await?;
    let is_skipped = identity.generation > 0 && rt::planted(Bug::OldFoldersFirst);
    match is_skipped {
        true => Ok(()),
        false => sync_dir(dir).await,
    }
}

async fn sync_dir(dir: &Path) -> Result<()> {
    match rt::planted(Bug::NoDirectorySync) {
        true => Ok(()),
        false => rt::sync_dir(dir).await,
    }
}

/// The folders that a re-sharding has left in `dir`, where `identity` is in force.
pub async fn left_over(dir: &Path, identity: &Identity) -> Result<Vec<Folder>> {
    let names = rt::list_dir(dir).await?;
    let folders = names.iter().filter_map(|name| Folder::parse(name));
    Ok(folders
        .filter(|folder| identity.is_left_over(*folder))
        .collect())
}

/// Sees that no core's folder is missing, or empty, that there has been. A core would begin anew in
/// it, and nobody would notice what it has lost.
pub async fn see_folders(dir: &Path, identity: &Identity) -> Result<()> {
    if !identity.is_opened {
        return Ok(());
    }
    for core in (0..identity.cores).map(CoreId) {
        let folder = dir.join(identity.folder(core).name());
        let names = match rt::list_dir(&folder).await {
            Err(error) if error.is_not_found() => Vec::new(),
            names => names?,
        };
        if !names.iter().any(|name| name == MANIFEST) {
            return Err(Error::Setup(format!(
                "cannot use the data directory {}: core {} has had data, and {} is not there: was \
                 its folder removed, or is its disk not mounted? Put it back",
                dir.display(),
                core.0,
                folder.join(MANIFEST).display()
            )));
        }
    }
    Ok(())
}

/// Notes that all cores have opened their folders.
pub async fn note_opened(dir: &Path, identity: Identity) -> Result<()> {
    let noted = Identity {
        is_opened: true,
        ..identity
    };
    match noted == identity {
        true => Ok(()),
        false => write(dir, noted).await,
    }
}

/// Makes certain that the folders of `identity`, which was read in `dir`, are those that count,
/// before any of `folders` goes: had a sync failed in the life before, then what was read need not
/// be what is on the disk. (What is unfinished may go at once: nobody could read an older identity
/// after a newer one was there to be read.)
pub async fn confirm(dir: &Path, identity: &Identity, folders: &[Folder]) -> Result<()> {
    let is_older = |folder: &Folder| folder.generation < identity.generation;
    match folders.iter().any(is_older) {
        true => write(dir, *identity).await,
        false => Ok(()),
    }
}

/// Removes a folder and all files in it, which may be gone in part or altogether.
pub async fn remove(folder: &Path) -> Result<()> {
    let names = match rt::list_dir(folder).await {
        Err(error) if error.is_not_found() => return Ok(()),
        names => names?,
    };
    for path in names.iter().map(|name| folder.join(name)) {
        rt::remove_file(&path).await?;
    }
    rt::remove_dir(folder).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_newer_format_is_refused() {
        for generation in [0, 1, 77] {
            refuses_all_but(generation, false);
            refuses_all_but(generation, true);
        }
    }

    fn refuses_all_but(generation: u32, is_opened: bool) {
        let identity = Identity {
            node: 3,
            cores: 2,
            vnodes: 1024,
            generation,
            is_opened,
        };
        let mut block = vec![0xEE; BLOCK_BYTES];
        identity.encode(&mut block);
        let path = Path::new("NODE");
        assert_eq!(Identity::decode(&block, path).expect("intact"), identity);
        for bit in 0..IDENTITY_BYTES * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&damaged, path).is_err(), "bit {bit}");
        }
        block[8] = 4;
        let crc = checksum(&block, 4);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        let error = Identity::decode(&block, path).expect_err("a newer format");
        assert!(error.to_string().contains("newer"), "{error}");
    }

    #[test]
    fn what_was_never_re_sharded_is_written_and_read_as_ever() {
        let identity = Identity {
            node: 1,
            cores: 2,
            vnodes: 1024,
            generation: 0,
            is_opened: false,
        };
        let mut block = vec![0; BLOCK_BYTES];
        identity.encode(&mut block);
        assert_eq!(block[8], 1, "an older Quoit could not open it");
        assert_eq!(identity.folder(CoreId(7)).name(), "core-007");
    }

    #[test]
    fn a_folder_is_known_by_its_one_name_only() {
        for (generation, core) in [(0, 0), (0, 1023), (1, 5), (4_000_000_000, 999)] {
            let core = CoreId(core);
            let folder = Folder { generation, core };
            assert_eq!(Folder::parse(&folder.name()), Some(folder));
        }
        for name in [
            "core-0",
            "core-000.0",
            "core-000.01",
            "core-000.",
            "core-",
            "core-000.1.2",
        ] {
            assert_eq!(Folder::parse(name), None, "{name}");
        }
    }
}
