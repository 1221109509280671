//! The latches of a core, with those who wait for them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::latches::{Latches, Ticket, Wants};
use crate::rt::sync::{Answerer, answer_slot};
use crate::types::KeyHash;

/// [`Latches`] that can be waited for.
#[derive(Default)]
pub struct LatchTable {
    latches: RefCell<Latches>,
    waiting: RefCell<BTreeMap<Ticket, Answerer<()>>>,
}

/// A place in line, or the latches themselves; given up when it is dropped.
pub struct Latched {
    table: Rc<LatchTable>,
    ticket: Ticket,
}

impl LatchTable {
    /// True if nobody has or wants `key`.
    pub fn is_free(&self, key: KeyHash) -> bool {
        self.latches.borrow().is_free(key)
    }

    /// Takes a place in line now; wait for one's turn with [`Latched::granted`].
    pub fn request(self: &Rc<Self>, wants: Wants) -> Latched {
        let ticket = self.latches.borrow_mut().request(wants);
        Latched {
            table: Rc::clone(self),
            ticket,
        }
    }
}

impl Latched {
    /// Returns when all that was wanted is granted.
    pub async fn granted(&self) {
        let answer = {
            if self.table.latches.borrow().is_granted(self.ticket) {
                return;
            }
            let (answerer, answer) = answer_slot();
            self.table
                .waiting
                .borrow_mut()
                .insert(self.ticket, answerer);
            answer
        };
        answer.wait().await;
    }
}

impl Drop for Latched {
    fn drop(&mut self) {
        self.table.waiting.borrow_mut().remove(&self.ticket);
        let granted = self.table.latches.borrow_mut().release(self.ticket);
        for ticket in granted {
            // Whoever has not begun to wait yet will find it granted.
            if let Some(answerer) = self.table.waiting.borrow_mut().remove(&ticket) {
                answerer.give(());
            }
        }
    }
}
