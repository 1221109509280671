//! Simulated mailboxes: one channel for each ordered pair of cores of a node.
//!
//! Messages of one channel arrive in the order they were sent, each after a delay of its own
//! choice; different channels know nothing of each other. What was sent before the sender's core
//! ended still arrives, then `None`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use super::Inner;
use super::executor::{Alarm, Bell};
use crate::types::CoreId;

/// Between cores a message usually takes up to this long, and now and then a hundred times that.
const DELAY_NS_MAX: u64 = 5_000;
const SLOW: f64 = 0.01;

/// What the end of a core does to its channels.
pub(super) trait Close {
    fn close(&self);
}

struct Channel<M> {
    state: RefCell<State<M>>,
    is_closed: Cell<bool>,
}

struct State<M> {
    /// Each with its time of arrival; these never fall.
    messages: VecDeque<(u64, M)>,
    reader: Option<Waker>,
    /// True while an alarm is set for the first message.
    has_alarm: bool,
}

impl<M> Bell for Channel<M> {
    fn ring(&self, _now: u64) {
        let mut state = self.state.borrow_mut();
        state.has_alarm = false;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }
}

impl<M> Close for Channel<M> {
    fn close(&self) {
        self.is_closed.set(true);
        let reader = self.state.borrow_mut().reader.take();
        wake(reader);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One core's post box, ready for use.
pub struct Mail<M> {
    outbox: Outbox<M>,
    inboxes: Vec<Inbox<M>>,
}

/// Where a core posts messages to its siblings.
pub struct Outbox<M> {
    world: Weak<Inner>,
    /// By receiving core; none to itself.
    channels: Vec<Option<Rc<Channel<M>>>>,
}

/// What one sibling sends.
pub struct Inbox<M> {
    world: Weak<Inner>,
    from: CoreId,
    channel: Rc<Channel<M>>,
}

/// By sending core: what closes its channels.
pub(super) type Closers = Vec<Vec<Rc<dyn Close>>>;

/// The post boxes of a node's cores, and what closes the channels of each.
pub(super) fn mesh<M: 'static>(world: &Rc<Inner>, cores: u16) -> (Vec<Mail<M>>, Closers) {
    let channel = || {
        let state = State {
            messages: VecDeque::new(),
            reader: None,
            has_alarm: false,
        };
        Rc::new(Channel {
            state: RefCell::new(state),
            is_closed: Cell::new(false),
        })
    };
    let row = |from| {
        (0..cores)
            .map(move |to| (from != to).then(channel))
            .collect()
    };
    let channels: Vec<Vec<Option<Rc<Channel<M>>>>> = (0..cores).map(row).collect();
    let mail = |core: u16| {
        let inbox = |(from, row): (usize, &Vec<Option<Rc<Channel<M>>>>)| {
            let channel = Rc::clone(row[usize::from(core)].as_ref()?);
            Some(Inbox {
                world: Rc::downgrade(world),
                from: CoreId(from as u16),
                channel,
            })
        };
        let outgoing = channels[usize::from(core)].clone();
        Mail {
            outbox: Outbox {
                world: Rc::downgrade(world),
                channels: outgoing,
            },
            inboxes: channels.iter().enumerate().filter_map(inbox).collect(),
        }
    };
    let mails = (0..cores).map(mail).collect();
    let closers = |row: &Vec<Option<Rc<Channel<M>>>>| {
        row.iter()
            .flatten()
            .map(|channel| Rc::clone(channel) as Rc<dyn Close>)
            .collect()
    };
    (mails, channels.iter().map(closers).collect())
}

impl<M> Mail<M> {
    /// Takes it apart. Nobody needs to wait here.
    pub fn connect(self) -> (Outbox<M>, Vec<Inbox<M>>) {
        (self.outbox, self.inboxes)
    }
}

impl<M: 'static> Outbox<M> {
    /// Posts a message. If this core has ended, nobody gets it.
    pub fn send(&self, to: CoreId, message: M) {
        let channel = self.channels[usize::from(to.0)]
            .as_ref()
            .expect("`to` is another core");
        let Some(world) = self.world.upgrade().filter(|_| !channel.is_closed.get()) else {
            return;
        };
        let executor = &world.executor;
        let scale = if executor.chance.hits(SLOW) { 100 } else { 1 };
        let delay = executor.chance.between((0, DELAY_NS_MAX)) * scale;
        let mut state = channel.state.borrow_mut();
        let last = state.messages.back().map_or(0, |&(arrives, _)| arrives);
        let arrives = last.max(executor.now() + delay);
        executor.note(0x3A11 ^ arrives << 16);
        state.messages.push_back((arrives, message));
        if state.reader.is_some() && !state.has_alarm {
            state.has_alarm = true;
            drop(state);
            executor.set_alarm(arrives, Alarm::Ring(Rc::clone(channel) as Rc<dyn Bell>));
        }
    }
}

impl<M> Drop for Outbox<M> {
    fn drop(&mut self) {
        self.channels
            .iter()
            .flatten()
            .for_each(|channel| channel.close());
    }
}

impl<M: 'static> Inbox<M> {
    /// The core it comes from.
    pub fn from(&self) -> CoreId {
        self.from
    }

    /// The next message; `None` when that core has ended.
    pub async fn recv(&mut self) -> Option<M> {
        poll_fn(|context| {
            let Some(world) = self.world.upgrade() else {
                return Poll::Ready(None);
            };
            let mut state = self.channel.state.borrow_mut();
            match state.messages.front() {
                Some(&(arrives, _)) if arrives <= world.executor.now() => {
                    let (_, message) = state.messages.pop_front().expect("it is there");
                    return Poll::Ready(Some(message));
                }
                Some(&(arrives, _)) if !state.has_alarm => {
                    state.has_alarm = true;
                    let bell = Rc::clone(&self.channel) as Rc<dyn Bell>;
                    world.executor.set_alarm(arrives, Alarm::Ring(bell));
                }
                Some(_) => {}
                None if self.channel.is_closed.get() => return Poll::Ready(None),
                None => {}
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
