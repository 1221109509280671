//! One at a time: a place in line that is given up when it is dropped.

use std::cell::Cell;

use crate::rt::sync::{Counted, Signal};

/// Something that one task does at a time.
#[derive(Default)]
pub struct Turns {
    is_taken: Cell<bool>,
    waiting: Cell<usize>,
    given_up: Signal,
}

/// It is one's turn while this lives.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for one's turn.
    pub async fn take(&self) -> Turn<'_> {
        let _waiting = Counted::new(&self.waiting);
        self.given_up
            .wait_for(|| (!self.is_taken.replace(true)).then_some(()))
            .await;
        Turn(self)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.is_taken.set(false);
        self.0.given_up.wake_all();
    }
}
