//! Every state that a power cut may leave of a disk, one by one, instead of one by chance.
//!
//! A [`CrashPoint`] is the disk at one moment: what is durable, and what is not yet. An image of it
//! is made by decisions: each change of a file that was not synced is lost, kept or torn between
//! sectors; each change of names that was not synced is lost or kept (by the rule of `names`).
//! [`Decisions`] is an odometer over them: all images in turn, or some by chance.
//!
//! Of a torn write not every one of its 2^sectors forms is made, but all of those that lack an end
//! or a beginning if it is small, and some with holes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use super::image::{Change, Image};
use super::names::{Inode, Names};

/// Cuts of a write are tried at every sector if it has at most so many.
const SECTORS_SMALL: usize = 16;

/// A disk at one moment.
pub struct CrashPoint {
    /// Durable names, and which file each is.
    names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    files: Vec<(Image, Vec<Change>)>,
}

struct NameChange {
    from: Option<PathBuf>,
    to: Option<(PathBuf, usize)>,
}

impl CrashPoint {
    pub(super) fn of(names: &Names) -> CrashPoint {
        let mut known: Vec<Rc<Inode>> = Vec::new();
        let mut number = |inode: &Rc<Inode>| {
            let found = known.iter().position(|other| Rc::ptr_eq(other, inode));
            found.unwrap_or_else(|| {
                known.push(Rc::clone(inode));
                known.len() - 1
            })
        };
        let durable = names.durable.iter();
        let durable = durable.map(|(name, inode)| (name.clone(), number(inode)));
        let durable = durable.collect();
        let changes = names.unsynced.iter().map(|(_, change)| NameChange {
            from: change.from.clone(),
            to: change
                .to
                .as_ref()
                .map(|(to, inode)| (to.clone(), number(inode))),
        });
        let changes = changes.collect();
        CrashPoint {
            names: durable,
            changes,
            files: known
                .iter()
                .map(|inode| inode.contents.borrow().choices())
                .collect(),
        }
    }

    /// How many changes are not durable.
    pub fn pending(&self) -> usize {
        self.changes.len()
            + self
                .files
                .iter()
                .map(|(_, changes)| changes.len())
                .sum::<usize>()
    }

    /// The files that are found if the cut goes by these decisions.
    pub fn image(&self, decisions: &mut Decisions) -> Vec<(PathBuf, Vec<u8>)> {
        let mut names = self.names.clone();
        let mut lost: BTreeSet<&PathBuf> = BTreeSet::new();
        for change in &self.changes {
            let touched = || change.from.iter().chain(change.to.iter().map(|(to, _)| to));
            if touched().any(|name| lost.contains(name)) || decisions.decide(2) == 1 {
                lost.extend(touched());
                continue;
            }
            if let Some(from) = &change.from {
                names.remove(from);
            }
            if let Some((to, file)) = &change.to {
                names.insert(to.clone(), *file);
            }
        }
        // A file that has several names is found the same under each.
        let mut found: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut read = |file: usize| {
            let (durable, changes) = &self.files[file];
            let mut image = durable.clone();
            changes
                .iter()
                .for_each(|change| apply(&mut image, change, decisions));
            image.read(0, image.length() as usize)
        };
        names
            .into_iter()
            .map(|(name, file)| {
                let bytes = found.entry(file).or_insert_with(|| read(file));
                (name, bytes.clone())
            })
            .collect()
    }
}

/// Applies as much of a change as is decided: 0 is all, 1 nothing, more a torn form.
fn apply(image: &mut Image, change: &Change, decisions: &mut Decisions) {
    let sectors = Image::sectors(change);
    let cuts: Vec<usize> = match sectors {
        0 => Vec::new(),
        1..=SECTORS_SMALL => (1..sectors).collect(),
        _ => vec![1, 8, sectors / 2, sectors - 8, sectors - 1],
    };
    let torn = if sectors > 0 { 2 * cuts.len() + 3 } else { 0 };
    let form = match decisions.decide(2 + torn) {
        0 => return image.apply(change),
        1 => return,
        form => form - 2,
    };
    let grows = image.growth(change) == 0 || decisions.decide(2) == 0;
    match (form, form.checked_sub(cuts.len())) {
        (form, None) => image.apply_sectors(change, |sector| sector < cuts[form], grows),
        (_, Some(form)) if form < cuts.len() => {
            image.apply_sectors(change, |sector| sector >= cuts[form], grows);
        }
        (_, Some(form)) => match form - cuts.len() {
            0 => image.apply_sectors(change, |sector| sector % 2 == 0, grows),
            1 => image.apply_sectors(change, |sector| sector % 2 == 1, grows),
            // Nothing but the new length, if there is one.
            _ => image.apply_sectors(change, |_| false, grows),
        },
    }
}

/// A sequence of decisions: the first time all are 0; then each [`Decisions::advance`] is another
/// one.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// What is decided, and of how many.
    made: Vec<(usize, usize)>,
    at: usize,
    /// What is decided first wherever there is no chance.
    first: usize,
    chance: Option<fastrand::Rng>,
}

impl Decisions {
    /// All of them in turn, from the first on.
    pub fn all() -> Decisions {
        Decisions::default()
    }

    /// Nothing that was not synced is found.
    pub fn all_lost() -> Decisions {
        Decisions {
            first: 1,
            ..Decisions::default()
        }
    }

    /// One by chance; [`Decisions::advance`] is another one.
    pub fn random(seed: u64) -> Decisions {
        Decisions {
            chance: Some(fastrand::Rng::with_seed(seed)),
            ..Decisions::default()
        }
    }

    fn decide(&mut self, options: usize) -> usize {
        if self.at == self.made.len() {
            let first = self.first;
            let choice = self
                .chance
                .as_mut()
                .map_or(first, |chance| match chance.u8(..4) {
                    0 => chance.usize(..options.min(2)), // all or nothing, as it mostly is
                    _ => chance.usize(..options),
                });
            self.made.push((choice, options));
        }
        let (choice, of) = self.made[self.at];
        assert!(
            of == options,
            "the same decisions lead to the same questions"
        );
        self.at += 1;
        choice
    }

    /// Goes on to the next sequence; false if there is none.
    pub fn advance(&mut self) -> bool {
        self.at = 0;
        if self.chance.is_some() {
            self.made.clear();
            return true;
        }
        while let Some((choice, options)) = self.made.pop() {
            if choice + 1 < options {
                self.made.push((choice + 1, options));
                return true;
            }
        }
        false
    }

    /// How many sequences there are if the options of each decision do not depend on those before:
    /// asked after one image was made.
    pub fn count(&self) -> f64 {
        self.made
            .iter()
            .map(|(_, options)| *options as f64)
            .product()
    }
}
