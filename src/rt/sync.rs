//! Waiting within one core: a signal that wakes tasks to look again, and a slot for one answer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes everybody who waits, to check again what they wait for.
#[derive(Default)]
pub struct Signal {
    waiting: RefCell<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Rises with every wake-up; a place taken in an earlier round is no longer one's own.
    round: u64,
    places: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Signal {
    /// Wakes all that wait now.
    pub fn wake_all(&self) {
        let woken = {
            let mut waiting = self.waiting.borrow_mut();
            waiting.round += 1;
            waiting.free.clear();
            std::mem::take(&mut waiting.places)
        };
        for waker in woken.into_iter().flatten() {
            waker.wake();
        }
    }

    /// Returns the first `Some` of `check`, which is called now and after every
    /// [`Signal::wake_all`]. Cancelling it leaves nothing behind.
    pub async fn wait_for<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        let mut place = Place {
            signal: self,
            taken: None,
        };
        poll_fn(|context| match check() {
            Some(value) => Poll::Ready(value),
            None => {
                place.take(context.waker());
                Poll::Pending
            }
        })
        .await
    }
}

/// A waiter's place in line, given up when it is dropped.
struct Place<'a> {
    signal: &'a Signal,
    taken: Option<(u64, usize)>,
}

impl Place<'_> {
    fn take(&mut self, waker: &Waker) {
        let mut waiting = self.signal.waiting.borrow_mut();
        if let Some((round, index)) = self.taken
            && round == waiting.round
        {
            waiting.places[index] = Some(waker.clone());
            return;
        }
        let index = match waiting.free.pop() {
            Some(index) => index,
            None => {
                waiting.places.push(None);
                waiting.places.len() - 1
            }
        };
        waiting.places[index] = Some(waker.clone());
        self.taken = Some((waiting.round, index));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.signal.waiting.borrow_mut();
        if let Some((round, index)) = self.taken
            && round == waiting.round
        {
            waiting.places[index] = None;
            waiting.free.push(index);
        }
    }
}

/// Counts as one more for as long as it lives.
pub struct Counted<'a>(&'a Cell<usize>);

impl Counted<'_> {
    /// One more in `count`.
    pub fn new(count: &Cell<usize>) -> Counted<'_> {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The receiving end of [`answer_slot`].
pub struct Answer<T>(Rc<Slot<T>>);

/// The sending end of [`answer_slot`].
pub struct Answerer<T>(Rc<Slot<T>>);

struct Slot<T> {
    state: RefCell<SlotState<T>>,
    signal: Signal,
}

enum SlotState<T> {
    Empty,
    Full(T),
    Abandoned,
}

/// A place for one answer: what is given to the [`Answerer`] comes out of the [`Answer`].
pub fn answer_slot<T>() -> (Answerer<T>, Answer<T>) {
    let slot = Rc::new(Slot {
        state: RefCell::new(SlotState::Empty),
        signal: Signal::default(),
    });
    (Answerer(Rc::clone(&slot)), Answer(slot))
}

impl<T> Answerer<T> {
    /// Gives the answer.
    pub fn give(self, value: T) {
        *self.0.state.borrow_mut() = SlotState::Full(value);
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        if matches!(*state, SlotState::Empty) {
            *state = SlotState::Abandoned;
        }
        drop(state);
        self.0.signal.wake_all();
    }
}

impl<T> Answer<T> {
    /// Waits for the answer; `None` if the answerer is gone without giving one.
    pub async fn wait(self) -> Option<T> {
        self.0
            .signal
            .wait_for(|| {
                let mut state = self.0.state.borrow_mut();
                match std::mem::replace(&mut *state, SlotState::Abandoned) {
                    SlotState::Full(value) => Some(Some(value)),
                    SlotState::Abandoned => Some(None),
                    SlotState::Empty => {
                        *state = SlotState::Empty;
                        None
                    }
                }
            })
            .await
    }
}
