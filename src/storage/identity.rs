//! Whose data directory this is: one small file that is written once.
//!
//! NODE := magic "QUOITDIR" | format u32 | crc u32 | node u16 | cores u16 | vnodes u32, zeros to 4 KiB
//!
//! Little endian; crc32c over what follows it in the header and the format. A directory of another
//! node, or one that was made with another number of cores, is refused, never reinterpreted.

use std::path::Path;

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};

const MAGIC: &[u8; 8] = b"QUOITDIR";
const FORMAT: u32 = 1;
const IDENTITY_BYTES: usize = 24;
const _: () = assert!(IDENTITY_BYTES == 8 + 4 + 4 + 2 + 2 + 4);
/// The name of the identity file in its data directory.
pub const NAME: &str = "NODE";

/// What a data directory is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's number.
    pub node: u16,
    /// How many cores share the keys.
    pub cores: u16,
    /// How many arcs the ring has.
    pub vnodes: u32,
}

impl Identity {
    fn encode(self, block: &mut [u8]) {
        block.fill(0);
        block[0..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        block[16..18].copy_from_slice(&self.node.to_le_bytes());
        block[18..20].copy_from_slice(&self.cores.to_le_bytes());
        block[20..24].copy_from_slice(&self.vnodes.to_le_bytes());
        let crc = checksum(block);
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
        if block[12..16] != checksum(block).to_le_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        if block.len() != BLOCK_BYTES || block[IDENTITY_BYTES..].iter().any(|&byte| byte != 0) {
            return Err(damaged("there is more than an identity, or less"));
        }
        let format = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
        if format != FORMAT {
            return Err(Error::Setup(format!(
                "{} was written by a newer Quoit (format {format}); start that version",
                path.display()
            )));
        }
        Ok(Identity {
            node: u16::from_le_bytes([block[16], block[17]]),
            cores: u16::from_le_bytes([block[18], block[19]]),
            vnodes: u32::from_le_bytes([block[20], block[21], block[22], block[23]]),
        })
    }
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[8..12]), &block[16..IDENTITY_BYTES])
}

/// Makes the data directory `dir` that of `wanted`, or sees that it is.
pub async fn claim(dir: &Path, wanted: Identity) -> Result<()> {
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
    } else if found.cores != wanted.cores {
        format!(
            "it was made with {} cores: start with --cores {} (changing the number is not \
             possible yet)",
            found.cores, found.cores
        )
    } else if found.vnodes != wanted.vnodes {
        format!(
            "its ring has {} vnodes, not {}",
            found.vnodes, wanted.vnodes
        )
    } else {
        return Ok(());
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

async fn create(dir: &Path, identity: Identity) -> Result<()> {
    let strangers = rt::list_dir(dir).await?;
    if strangers.iter().any(|name| name.starts_with("core-")) {
        return Err(Error::Corrupt {
            file: dir.join(NAME),
            offset: 0,
            why: "it is missing, but there is data".to_owned(),
        });
    }
    let temporary = dir.join("NODE.tmp");
    if strangers.iter().any(|name| name == "NODE.tmp") {
        rt::remove_file(&temporary).await?;
    }
    let file = File::create(&temporary).await?;
    let mut block = file.buffer(BLOCK_BYTES);
    identity.encode(&mut block);
    file.write_at(block, 0).await?;
    file.sync().await?;
    file.close().await;
    rt::rename(&temporary, &dir.join(NAME)).await?;
    if !rt::planted(Bug::NoDirectorySync) {
        rt::sync_dir(dir).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_newer_format_is_refused() {
        let identity = Identity {
            node: 3,
            cores: 2,
            vnodes: 1024,
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
        block[8] = 2;
        let crc = checksum(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        let error = Identity::decode(&block, path).expect_err("a newer format");
        assert!(error.to_string().contains("newer"), "{error}");
    }
}
