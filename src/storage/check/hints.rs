//! The check of what is kept for other nodes' replicas: every file of hints, every batch in it.

use std::path::Path;

use super::{Checker, length_of};
use crate::error::{Error, Result};
use crate::rt::{self, BLOCK_BYTES, File};
use crate::storage::hints::format::{self, FileId, Header};
use crate::storage::hints::{FOLDER, Step, is_empty_behind_header, step};

/// Bytes of all files of hints in the data directory `dir`.
pub(super) async fn measure(dir: &Path, names: &[String]) -> Result<u64> {
    let mut total = 0;
    if names.iter().any(|name| name == FOLDER) {
        let folder = dir.join(FOLDER);
        for name in rt::list_dir(&folder).await? {
            total += length_of(&folder.join(name)).await?;
        }
    }
    Ok(total)
}

impl Checker<'_> {
    /// Verifies all hints in the data directory `dir`, if it has some.
    pub(super) async fn check_hints(&mut self, dir: &Path, names: &[String]) {
        if !names.iter().any(|name| name == FOLDER) {
            return;
        }
        let folder = dir.join(FOLDER);
        let names = match rt::list_dir(&folder).await {
            Ok(names) => names,
            Err(error) => return self.failed(&folder, error),
        };
        for name in names {
            let path = folder.join(&name);
            let Some(id) = FileId::parse(&name) else {
                self.note(&path, 0, "this is no file of Quoit's");
                continue;
            };
            match self.check_hint_file(&path, id).await {
                // Another program's format is no damage.
                Err(Error::Setup(why)) => self.unchecked(&path, &why),
                Err(error) => self.failed(&path, error),
                Ok(()) => {}
            }
        }
    }

    async fn check_hint_file(&mut self, path: &Path, id: FileId) -> Result<()> {
        let file = File::open_to_read(path).await?;
        let checked = async {
            let length = file.len().await?;
            self.seen(length);
            let block = file.read_at(0, BLOCK_BYTES).await?;
            let header = match Header::decode(&block, id, path) {
                Ok(header) => header,
                Err(Error::Corrupt { .. }) if is_empty_behind_header(&file, length).await? => {
                    self.note(path, 0, "it was not begun: the next start removes it");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let mut at = format::FIRST_BATCH;
            loop {
                match step(&file, header.nonce, at, length).await? {
                    Step::Batch(batch) => {
                        self.summary.hints += batch.records.len() as u64;
                        at += batch.bytes;
                    }
                    Step::Damage(next) => {
                        let what = "hints that were synced cannot be read here";
                        self.damage(path, at, what);
                        at = next;
                    }
                    Step::End => return Ok(()),
                }
                rt::yield_if_needed().await;
            }
        }
        .await;
        file.close().await;
        checked
    }
}
