//! Versions of replicated writes never repeat over a restart, whatever the wall clock does: the
//! file CLOCK has a ceiling that they stay below. It is raised ahead of use, and a start begins
//! above it.
//!
//! payload := ceiling u64       Unix milliseconds; the file around it is `storage/sealed`
//!
//! A replica may have a version of which this node has lost all trace, for it need not be a replica
//! of that key itself. So what it stores does not tell how far it was. Who makes no such versions
//! writes nothing.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::turn::Turns;
use crate::error::{Error, Result};
use crate::rt;
use crate::storage::sealed::{self, Unwritten};
use crate::types::UnixMillis;

/// So far ahead of the clock the ceiling is raised. A start begins as far ahead of its clock, and
/// until that has come up writes at ONE through other nodes may lose to older ones of this: so it
/// is little, and CLOCK is written once a second.
const AHEAD: Duration = Duration::from_secs(4);
/// Asked for when less than this is left: for so long a disk may hang, and nobody has to wait.
pub const AHEAD_MIN: Duration = Duration::from_secs(3);
/// A ceiling beyond this is none: versions have 48 bits of milliseconds.
const CEILING_MAX: UnixMillis = 1 << 48;

/// The ceiling of a node, on core 0.
pub struct Ceiling {
    dir: PathBuf,
    /// On disk.
    durable: Cell<UnixMillis>,
    raising: Turns,
    /// It is not known what CLOCK says: the ceiling stays.
    is_broken: Cell<bool>,
}

/// The ceiling that was in force when the node ended; 0 if it never had one.
pub async fn read_ceiling(dir: &Path) -> Result<UnixMillis> {
    let Some(payload) = sealed::settle(dir, sealed::CLOCK).await? else {
        return Ok(0);
    };
    let damaged = || Error::Corrupt {
        file: sealed::CLOCK.path(dir),
        offset: 0,
        why: "it is no time".to_owned(),
    };
    let bytes: [u8; 8] = payload[..].try_into().map_err(|_| damaged())?;
    let ceiling = UnixMillis::from_le_bytes(bytes);
    match ceiling < CEILING_MAX {
        true => Ok(ceiling),
        false => Err(damaged()),
    }
}

impl Ceiling {
    /// Goes on from what CLOCK says.
    pub fn new(dir: PathBuf, durable: UnixMillis) -> Ceiling {
        Ceiling {
            dir,
            durable: Cell::new(durable),
            raising: Turns::default(),
            is_broken: Cell::new(false),
        }
    }

    /// Raises it so that versions up to `needed` may be made for a while; the ceiling that is
    /// durable then. Below it, all versions may be made. An error: none may be made above the old
    /// one.
    pub async fn raise(&self, needed: UnixMillis) -> Result<UnixMillis> {
        let is_enough = || self.durable.get() > needed.saturating_add(millis(AHEAD_MIN));
        if is_enough() {
            return Ok(self.durable.get());
        }
        let _turn = self.raising.take().await;
        if is_enough() {
            return Ok(self.durable.get());
        }
        let wanted = needed.max(rt::wall_ms()).saturating_add(millis(AHEAD));
        if wanted >= CEILING_MAX {
            return Err(Error::Setup("the clock is beyond all bounds".to_owned()));
        }
        if self.is_broken.get() {
            return Err(Error::LogFailed);
        }
        let written = sealed::write(&self.dir, sealed::CLOCK, &wanted.to_le_bytes()).await;
        match written {
            Ok(()) => {
                self.durable.set(wanted.max(self.durable.get()));
                Ok(self.durable.get())
            }
            Err(Unwritten::Unchanged(error)) => Err(error),
            Err(Unwritten::Uncertain(error)) => {
                log::error!(
                    "{error}: no replicated write is made before this node is started again"
                );
                self.is_broken.set(true);
                Err(error)
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::rt::Bug;
    use crate::rt::sim::{NodeId, Options, World};

    const NODE: NodeId = NodeId(1);
    const DIR: &str = "/data";

    /// Makes versions, as far as the ceiling lets it, in several lives that end at any moment, on a
    /// clock that jumps. The ceiling that a life begins with must be above all versions that were
    /// made before.
    fn live(seed: u64, planted: &[Bug]) -> Result<(), String> {
        let mut options = Options::random(seed);
        options.planted = planted.to_vec();
        let world = World::new(options);
        let mut chance = fastrand::Rng::with_seed(seed);
        let made = Rc::new(Cell::new(0));
        let wrong = Rc::new(Cell::new(None));
        for _ in 0..8 {
            let (made, wrong) = (Rc::clone(&made), Rc::clone(&wrong));
            let _mains = world.start_node(NODE, 1, move |_: rt::Core<()>| {
                let (made, wrong) = (Rc::clone(&made), Rc::clone(&wrong));
                async move {
                    let dir = Path::new(DIR);
                    rt::create_dir_all(dir).await.expect("a sound disk");
                    let found = read_ceiling(dir).await.expect("never damaged");
                    if found < made.get() {
                        wrong.set(Some((found, made.get())));
                    }
                    let ceiling = Ceiling::new(dir.to_owned(), found);
                    let mut next = found.max(rt::wall_ms());
                    loop {
                        let most = ceiling.raise(next).await.expect("a sound disk");
                        assert!(most > next, "nothing may be made");
                        next = next.max(rt::wall_ms()) + rt::random() % 4_000;
                        made.set(made.get().max(next.min(most - 1)));
                        rt::sleep(Duration::from_millis(1)).await;
                    }
                }
            });
            world.run_for(Duration::from_micros(chance.u64(..80_000)));
            match chance.u8(..3) {
                0 => world.kill_node(NODE),
                _ => world.crash_node(NODE),
            }
            world.jump_clock(NODE, chance.i64(-60_000..60_000));
        }
        match wrong.get() {
            None => Ok(()),
            Some((found, made)) => Err(format!("{found} is below {made}, which was made")),
        }
    }

    /// Else two writes could have one version, and replicas would keep what they have of the first
    /// for ever.
    #[test]
    fn no_start_makes_a_version_that_an_earlier_one_has_made() {
        for seed in 0..100 {
            live(seed, &[]).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        for bug in [Bug::NoDirectorySync, Bug::RenamedUnsynced] {
            let is_found = |seed: u64| {
                let run = std::panic::AssertUnwindSafe(|| live(seed, &[bug]));
                !matches!(std::panic::catch_unwind(run), Ok(Ok(())))
            };
            assert!((0..100).any(is_found), "{bug:?} is not found");
        }
    }
}
