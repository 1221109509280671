//! One simulated connection: two pipes of bytes that are under way, and how it ends.
//!
//! Invariant: `bytes` of a pipe are those that have `arrived` and then those of its `marks`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

use super::Inner;
use super::executor::{Alarm, Bell, Executor, Place};

/// A connection. Side 0 made it, side 1 accepted it.
pub(super) struct Link {
    pub places: [Place; 2],
    pub addresses: [SocketAddr; 2],
    pub state: RefCell<LinkState>,
}

pub(super) struct LinkState {
    pub sides: [Side; 2],
    /// The pipe that each side writes to.
    pub pipes: [Pipe; 2],
}

#[derive(Default)]
pub(super) struct Side {
    pub is_closed: bool,
    /// From when on reading and writing fail.
    pub broken_at: Option<u64>,
}

#[derive(Default)]
pub(super) struct Pipe {
    pub bytes: VecDeque<u8>,
    /// How many bytes have arrived.
    pub arrived: usize,
    /// When the others will, and how many each time.
    pub marks: VecDeque<(u64, usize)>,
    pub last_arrival: u64,
    /// When its end arrives.
    pub end_at: Option<u64>,
    /// A cut holds back what has not arrived.
    pub is_held: bool,
    /// Nobody is there any more, and the writer does not know.
    pub is_void: bool,
    /// When the writer learns that the reader is gone.
    pub reader_gone_at: Option<u64>,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    pub alarm_at: Option<u64>,
}

impl Pipe {
    pub fn advance(&mut self, now: u64) {
        while !self.is_held && self.marks.front().is_some_and(|&(at, _)| at <= now) {
            let (_, count) = self.marks.pop_front().expect("just seen");
            self.arrived += count;
        }
    }

    /// When the reader will next find something.
    pub fn next_at(&self) -> Option<u64> {
        let first = self.marks.front().map(|&(at, _)| at).or(self.end_at);
        first.filter(|_| !self.is_held)
    }

    /// Moves bytes that have arrived into `buffer`.
    pub fn take(&mut self, buffer: &mut [u8]) {
        let (front, back) = self.bytes.as_slices();
        let split = front.len().min(buffer.len());
        buffer[..split].copy_from_slice(&front[..split]);
        let rest = buffer.len() - split;
        buffer[split..].copy_from_slice(&back[..rest]);
        self.bytes.drain(..buffer.len());
        self.arrived -= buffer.len();
    }

    pub fn wake(&mut self, woken: &mut Vec<Waker>) {
        woken.extend(self.reader.take());
        woken.extend(self.writer.take());
    }
}

impl Bell for Link {
    fn ring(&self, now: u64) {
        let mut woken = Vec::new();
        let mut state = self.state.borrow_mut();
        for pipe in &mut state.pipes {
            if pipe.alarm_at.is_some_and(|at| at <= now) {
                pipe.alarm_at = None;
                pipe.wake(&mut woken);
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Link {
    /// Has those who wait at a pipe look again at `at`, or earlier: whoever waits says each time
    /// when it wants to be woken next.
    pub fn wake_at(self: &Rc<Self>, executor: &Executor, pipe: &mut Pipe, at: u64) {
        if pipe.alarm_at.is_none_or(|earlier| at < earlier) {
            pipe.alarm_at = Some(at);
            executor.set_alarm(at, Alarm::Ring(Rc::clone(self) as Rc<dyn Bell>));
        }
    }

    /// From `at` on, `side` gets errors.
    pub fn break_side(self: &Rc<Self>, executor: &Executor, side: usize, at: u64) {
        let mut state = self.state.borrow_mut();
        let broken_at = &mut state.sides[side].broken_at;
        *broken_at = Some(broken_at.map_or(at, |earlier| earlier.min(at)));
        for pipe in &mut state.pipes {
            self.wake_at(executor, pipe, at);
        }
    }

    /// `side` is closed: the other one reads what was sent and then the end; if something sent to
    /// `side` was never read, it gets an error instead, as TCP has it.
    pub fn close(self: &Rc<Self>, world: &Inner, side: usize) {
        let other = 1 - side;
        let executor = &world.executor;
        let arrives = executor.now() + world.net.delay(&executor.chance);
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.sides[side].is_closed, true) {
            return;
        }
        executor.note(0xC105E ^ arrives << 20);
        let is_held = state.pipes[side].is_held;
        let incoming = &mut state.pipes[other];
        incoming.advance(executor.now());
        // Nobody will read what has arrived or is still under way: that is answered by a reset.
        let unread_at = match incoming.marks.back() {
            Some(&(last, _)) => Some(last.max(arrives)),
            None => (incoming.arrived > 0).then_some(arrives),
        };
        if !is_held {
            incoming.reader_gone_at = Some(arrives);
            self.wake_at(executor, incoming, arrives);
        }
        let outgoing = &mut state.pipes[side];
        let end_at = *outgoing
            .end_at
            .get_or_insert(arrives.max(outgoing.last_arrival));
        self.wake_at(executor, outgoing, end_at);
        drop(state);
        if let Some(at) = unread_at.filter(|_| !is_held) {
            self.break_side(executor, other, at);
        }
    }

    /// What `side` sends is held back from now on, or no longer.
    pub fn hold(self: &Rc<Self>, world: &Inner, side: usize, is_held: bool) {
        let executor = &world.executor;
        let mut state = self.state.borrow_mut();
        let is_closed = state.sides[side].is_closed;
        let pipe = &mut state.pipes[side];
        pipe.advance(executor.now());
        pipe.is_held = is_held;
        if is_held {
            return;
        }
        let soon = executor.now() + world.net.delay(&executor.chance);
        pipe.marks
            .iter_mut()
            .for_each(|(at, _)| *at = soon.max(*at));
        pipe.end_at = pipe.end_at.map(|at| soon.max(at));
        pipe.last_arrival = soon.max(pipe.last_arrival);
        self.wake_at(executor, pipe, soon);
        let back = &mut state.pipes[1 - side];
        if is_closed && !back.is_void {
            back.reader_gone_at.get_or_insert(soon);
            self.wake_at(executor, back, soon);
        }
    }

    /// The machine of `side` is gone. The other one is told, or finds out when it writes.
    pub fn crash(self: &Rc<Self>, world: &Inner, side: usize, is_half_open: bool) {
        let executor = &world.executor;
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.sides[side].is_closed, true) {
            return;
        }
        executor.note(0xC8A54 ^ u64::from(is_half_open));
        let outgoing = &mut state.pipes[side];
        outgoing.advance(executor.now());
        let is_silent = is_half_open || outgoing.is_held;
        let sent = outgoing.arrived;
        outgoing.bytes.truncate(sent);
        outgoing.marks.clear();
        outgoing.end_at = None;
        state.pipes[1 - side].is_void = true;
        drop(state);
        if !is_silent {
            let arrives = executor.now() + world.net.delay(&executor.chance);
            self.break_side(executor, 1 - side, arrives);
        }
    }
}
