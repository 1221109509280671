//! A small file in the data directory that is always written anew, as a whole, under a checksum.
//!
//! file := magic 8 | format u32 | crc u32 | length u32 | payload, zeros to a multiple of 4 KiB
//!
//! Little endian; crc32c over the format, the length and the payload. It is written to `NAME.tmp`,
//! synced, renamed, and the directory is synced: after a crash the old file is there or the new
//! one, whole. What the payload says is for its owner to draw. A file that is damaged, or of a
//! newer format, is refused and never taken for an absent one.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, Bug, File};

const HEADER_BYTES: usize = 20;
const _: () = assert!(HEADER_BYTES == 8 + 4 + 4 + 4);
/// Most bytes of a payload: two cluster maps, and some more.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;

/// A kind of such files: there is one of each in a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The file's name.
    pub name: &'static str,
    magic: &'static [u8; 8],
    /// The newest format that this program reads, and the one that it writes.
    format: u32,
}

/// What the node knows of its cluster (`membership/record`).
pub const CLUSTER: Kind = Kind {
    name: "CLUSTER",
    magic: b"QUOITCLU",
    format: 1,
};
/// Below what the versions of replicated writes stay (`membership/ceiling`).
pub const CLOCK: Kind = Kind {
    name: "CLOCK",
    magic: b"QUOITCLK",
    format: 1,
};
/// All that there are.
pub const KINDS: [Kind; 2] = [CLUSTER, CLOCK];

/// Why a file was not written.
#[derive(Debug)]
pub enum Unwritten {
    /// The old one is still there, and in force: it may be tried again.
    Unchanged(Error),
    /// The old one is there or the new one: only the next start tells.
    Uncertain(Error),
}

impl Kind {
    /// Where it is.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.name)
    }

    fn temporary(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.tmp", self.name))
    }

    fn encode(&self, payload: &[u8], block: &mut [u8]) {
        block.fill(0);
        block[0..8].copy_from_slice(self.magic);
        block[8..12].copy_from_slice(&self.format.to_le_bytes());
        block[16..20].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        block[HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
        let crc = checksum(block, payload.len());
        block[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    fn decode(&self, bytes: &[u8], path: &Path) -> Result<Vec<u8>> {
        let damaged = |why: &str| Error::Corrupt {
            file: path.to_owned(),
            offset: 0,
            why: why.to_owned(),
        };
        if bytes.len() < HEADER_BYTES || &bytes[0..8] != self.magic {
            return Err(damaged("it is not the file of Quoit that its name says"));
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (format, crc, length) = (word(8), word(12), word(16) as usize);
        if length > PAYLOAD_BYTES_MAX || bytes.len() != whole_blocks(length) {
            return Err(damaged("its length is not what it says"));
        }
        if checksum(bytes, length) != crc {
            return Err(damaged("its checksum does not match"));
        }
        if bytes[HEADER_BYTES + length..].iter().any(|&byte| byte != 0) {
            return Err(damaged("there is something behind its end"));
        }
        if format != self.format {
            return Err(Error::Setup(format!(
                "{} was written by another version of Quoit (format {format}, not {}); start that one",
                path.display(),
                self.format
            )));
        }
        Ok(bytes[HEADER_BYTES..][..length].to_vec())
    }
}

fn whole_blocks(length: usize) -> usize {
    (HEADER_BYTES + length).next_multiple_of(BLOCK_BYTES)
}

fn checksum(block: &[u8], length: usize) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&block[8..12]),
        &block[16..HEADER_BYTES + length],
    )
}

/// What the file of this kind in `dir` says; `None` if there is none. Changes nothing.
pub async fn read(dir: &Path, kind: Kind) -> Result<Option<Vec<u8>>> {
    let path = kind.path(dir);
    let file = match File::open_to_read(&path).await {
        Err(error) if error.is_not_found() => return Ok(None),
        file => file?,
    };
    // More than there can be, so that a longer file is seen to be one.
    let bytes = file.read_at(0, whole_blocks(PAYLOAD_BYTES_MAX) + 1).await;
    file.close().await;
    kind.decode(&bytes?, &path).map(Some)
}

/// The same, and durable when this returns: what is done next must not outlive it. (A process that
/// was killed may have left a name that is seen and not on disk.)
pub async fn settle(dir: &Path, kind: Kind) -> Result<Option<Vec<u8>>> {
    rt::sync_dir(dir).await?;
    read(dir, kind).await
}

/// Makes `payload` what the file of this kind in `dir` says, durably. One write at a time.
pub async fn write(dir: &Path, kind: Kind, payload: &[u8]) -> Result<(), Unwritten> {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "its owner bounds it");
    let temporary = kind.temporary(dir);
    write_aside(&temporary, kind, payload)
        .await
        .map_err(Unwritten::Unchanged)?;
    // Opened before: a name that has changed must not stay undurable for want of a descriptor.
    let directory = rt::Directory::open(dir)
        .await
        .map_err(Unwritten::Unchanged)?;
    let renamed = rt::rename(&temporary, &kind.path(dir)).await;
    let done = match renamed {
        Ok(()) if rt::planted(Bug::NoDirectorySync) => Ok(()),
        Ok(()) => directory.sync().await,
        Err(error) => Err(error),
    };
    directory.close().await;
    done.map_err(Unwritten::Uncertain)
}

async fn write_aside(temporary: &Path, kind: Kind, payload: &[u8]) -> Result<()> {
    match rt::remove_file(temporary).await {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let file = File::create(temporary).await?;
    let mut block = file.buffer(whole_blocks(payload.len()));
    kind.encode(payload, &mut block);
    let mut written = file.write_at(block, 0).await;
    if written.is_ok() && !rt::planted(Bug::RenamedUnsynced) {
        written = file.sync().await;
    }
    file.close().await;
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::sim::{NodeId, Options, World};

    const NODE: NodeId = NodeId(1);
    const DIR: &str = "/data";

    /// Else damage could be taken for a state that never was, or for none.
    #[test]
    fn any_flipped_bit_any_other_length_and_any_newer_format_is_refused() {
        let path = Path::new("CLUSTER");
        for length in [0, 1, 40, BLOCK_BYTES - HEADER_BYTES, BLOCK_BYTES] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut block = vec![0xEE; whole_blocks(length)];
            CLUSTER.encode(&payload, &mut block);
            assert_eq!(CLUSTER.decode(&block, path).expect("intact"), payload);
            for bit in 0..block.len() * 8 {
                let mut damaged = block.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(CLUSTER.decode(&damaged, path).is_err(), "bit {bit}");
            }
            for cut in [0, 8, 20, block.len() - 1] {
                assert!(CLUSTER.decode(&block[..cut], path).is_err(), "{cut}");
            }
            assert!(CLOCK.decode(&block, path).is_err(), "it is another's");
            block.push(0);
            assert!(CLUSTER.decode(&block, path).is_err(), "a byte too many");
        }
        let newer = Kind {
            format: 2,
            ..CLUSTER
        };
        let mut block = vec![0; BLOCK_BYTES];
        newer.encode(b"what is to come", &mut block);
        let error = CLUSTER.decode(&block, path).expect_err("a newer format");
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    /// Writes until the power is cut, at any moment; the last payload that was durable must be
    /// there, or the next.
    fn cut(seed: u64, planted: &[Bug]) -> Result<(), String> {
        let mut options = Options::random(seed);
        options.planted = planted.to_vec();
        let world = World::new(options);
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut durable = 0u64;
        for _ in 0..8 {
            let written = std::rc::Rc::new(std::cell::Cell::new(durable));
            let seen = std::rc::Rc::clone(&written);
            let main = move |_: rt::Core<()>| {
                let seen = std::rc::Rc::clone(&seen);
                async move {
                    let dir = Path::new(DIR);
                    rt::create_dir_all(dir).await.expect("a sound disk");
                    let found = settle(dir, CLOCK).await.expect("never damaged");
                    let found = found.map_or(0, |bytes| number(&bytes));
                    assert!(found >= seen.get(), "{found} after {}", seen.get());
                    seen.set(found);
                    loop {
                        let next = seen.get() + 1;
                        let mut payload = next.to_le_bytes().to_vec();
                        payload.resize([8, 5_000, 40_000][next as usize % 3], 7);
                        write(dir, CLOCK, &payload).await.expect("a sound disk");
                        seen.set(next);
                    }
                }
            };
            let _mains = world.start_node(NODE, 1, main);
            world.run_for(std::time::Duration::from_micros(chance.u64(..60_000)));
            match chance.u8(..3) {
                0 => world.kill_node(NODE),
                _ => world.crash_node(NODE),
            }
            durable = written.get();
        }
        let found = world.run_on(NODE, async {
            match read(Path::new(DIR), CLOCK).await {
                Ok(found) => Ok(found.map_or(0, |bytes| number(&bytes))),
                Err(error) => Err(error.to_string()),
            }
        })?;
        match found >= durable {
            true => Ok(()),
            false => Err(format!("{found} after {durable}")),
        }
    }

    fn number(payload: &[u8]) -> u64 {
        u64::from_le_bytes(*payload.first_chunk().expect("eight bytes at least"))
    }

    /// Else a node could vote twice in one round, or make a version twice, after a power cut.
    #[test]
    fn what_was_written_survives_a_power_cut_at_any_moment() {
        for seed in 0..150 {
            cut(seed, &[]).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        for bug in [Bug::NoDirectorySync, Bug::RenamedUnsynced] {
            let is_found = |seed: u64| {
                let run = || cut(seed, &[bug]);
                let run = std::panic::AssertUnwindSafe(run);
                !matches!(std::panic::catch_unwind(run), Ok(Ok(())))
            };
            assert!((0..150).any(is_found), "{bug:?} is not found");
        }
    }
}
