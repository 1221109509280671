//! The first write of a store: it waits until the cluster knows that there is data.
//!
//! A store is open unless it was closed before anybody wrote to it. While it is closed, writes wait
//! for their admission, and whoever closed it is told that some do. It is opened once; or those
//! that wait are turned away, and the next ones wait again.

use std::cell::Cell;

use super::Store;
use crate::error::{Error, Result};
use crate::rt::sync::{Counted, Signal};

/// Whether writes may be admitted at all.
#[derive(Default)]
pub(super) struct Opening {
    is_closed: Cell<bool>,
    waiting: Cell<usize>,
    /// Counts how many times those that waited were turned away.
    refusals: Cell<u64>,
    /// Nobody will open it any more.
    is_given_up: Cell<bool>,
    changed: Signal,
}

impl Store {
    /// Has all writes wait until [`Store::open_for_writes`].
    pub fn close_for_writes(&self) {
        self.opening.is_closed.set(true);
    }

    /// From now on writes are admitted.
    pub fn open_for_writes(&self) {
        self.opening.is_closed.set(false);
        self.opening.changed.wake_all();
    }

    /// Refuses the writes that wait: they have changed nothing.
    pub fn turn_writers_away(&self) {
        self.opening.refusals.set(self.opening.refusals.get() + 1);
        self.opening.changed.wake_all();
    }

    /// A store that is closed stays closed: writes are refused from now on.
    pub fn give_up_opening(&self) {
        self.opening.is_given_up.set(true);
        self.opening.changed.wake_all();
    }

    /// Waits until somebody wants to write to a closed store.
    pub async fn is_wanted(&self) {
        let is_wanted = || self.opening.is_closed.get() && self.opening.waiting.get() > 0;
        self.opening
            .changed
            .wait_for(|| is_wanted().then_some(()))
            .await;
    }

    pub(super) fn is_closed_for_writes(&self) -> bool {
        self.opening.is_closed.get()
    }

    /// Waits until the store is open, or one is turned away.
    pub async fn wait_open(&self) -> Result<()> {
        let opening = &self.opening;
        if !opening.is_closed.get() {
            return Ok(());
        }
        let _waiting = Counted::new(&opening.waiting);
        let refusals = opening.refusals.get();
        opening.changed.wake_all();
        opening
            .changed
            .wait_for(|| match opening.is_closed.get() {
                false => Some(Ok(())),
                true if opening.is_given_up.get() => Some(Err(Error::Unopened)),
                true if opening.refusals.get() > refusals => Some(Err(Error::Unopened)),
                true => None,
            })
            .await
    }
}
