//! Post boxes between the cores of a node: one bounded channel for each ordered pair.
//!
//! A sender never waits: what does not fit into the channel is kept on the sender's side and
//! pumped on, in order, by a task that lives while there is any. So a core that drains its
//! inboxes never depends on another core draining its own.
//!
//! An inbox has one reader that does nothing else. glommio's `recv` leaves a waker behind each
//! time that it is dropped unfinished, so it must not take part in a race.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use futures_lite::future::zip;
use glommio::channels::shared_channel::{
    ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender, new_bounded,
};
use glommio::{GlommioError, ResourceType};

use super::{Queue, join_all, spawn_in};
use crate::types::CoreId;

/// Messages in one channel; more are kept by the sender.
const CHANNEL_MESSAGES: usize = 1024;

thread_local! {
    /// Peers of this core that have a backlog.
    static PUMPING: Cell<usize> = const { Cell::new(0) };
}

/// How many siblings this core still has messages for that their channels did not take.
pub(super) fn unsent() -> usize {
    PUMPING.get()
}

/// One core's ends of all its channels.
pub struct Mail<M: Send> {
    id: CoreId,
    cores: u16,
    senders: Vec<(CoreId, SharedSender<M>)>,
    receivers: Vec<(CoreId, SharedReceiver<M>)>,
}

/// The post boxes of a node with so many cores.
pub(super) fn mail<M: Send>(cores: u16) -> Vec<Mail<M>> {
    let mut boxes: Vec<_> = (0..cores)
        .map(|id| Mail {
            id: CoreId(id),
            cores,
            senders: Vec::new(),
            receivers: Vec::new(),
        })
        .collect();
    for from in 0..cores {
        for to in (0..cores).filter(|to| *to != from) {
            let (sender, receiver) = new_bounded(CHANNEL_MESSAGES);
            boxes[usize::from(from)].senders.push((CoreId(to), sender));
            boxes[usize::from(to)]
                .receivers
                .push((CoreId(from), receiver));
        }
    }
    boxes
}

impl<M: Send + 'static> Mail<M> {
    /// Connects to all siblings. Each channel waits for its other end, so all are tried at once:
    /// one after the other, two cores would wait for each other.
    pub async fn connect(self) -> (Outbox<M>, Vec<Inbox<M>>) {
        let senders = self.senders.into_iter().map(|(to, sender)| async move {
            let sender = sender.connect().await;
            (
                to,
                Rc::new(Peer {
                    sender,
                    backlog: RefCell::default(),
                    pumping: Cell::new(false),
                }),
            )
        });
        let receivers = self
            .receivers
            .into_iter()
            .map(|(from, receiver)| async move {
                Inbox {
                    from,
                    receiver: receiver.connect().await,
                }
            });
        let (senders, inboxes) = zip(join_all(senders), join_all(receivers)).await;
        let mut peers: Vec<_> = (0..self.cores).map(|_| None).collect();
        for (to, peer) in senders {
            peers[usize::from(to.0)] = Some(peer);
        }
        assert!(
            peers[usize::from(self.id.0)].is_none(),
            "no core writes to itself"
        );
        (Outbox { peers }, inboxes)
    }
}

/// Where a core posts to its siblings.
pub struct Outbox<M: Send> {
    /// By core; none for this one.
    peers: Vec<Option<Rc<Peer<M>>>>,
}

struct Peer<M: Send> {
    sender: ConnectedSender<M>,
    backlog: RefCell<VecDeque<M>>,
    /// True while a task empties the backlog. It may hold the message that is next, so nothing
    /// goes past it even if the backlog is empty.
    pumping: Cell<bool>,
}

impl<M: Send + 'static> Outbox<M> {
    /// Posts `message`, never waiting. It is dropped if that core has ended.
    pub fn send(&self, to: CoreId, message: M) {
        let peer = self.peers[usize::from(to.0)]
            .as_ref()
            .expect("posted to another core");
        if peer.pumping.get() {
            peer.backlog.borrow_mut().push_back(message);
            return;
        }
        match peer.sender.try_send(message) {
            Ok(()) => {}
            Err(GlommioError::WouldBlock(ResourceType::Channel(message))) => {
                peer.backlog.borrow_mut().push_back(message);
                let pumping = Pumping::start(Rc::clone(peer));
                drop(spawn_in(Queue::Foreground, pump(pumping)));
            }
            Err(_) => log::debug!("core {} has ended: a message to it is dropped", to.0),
        }
    }
}

/// A peer whose backlog is being emptied.
struct Pumping<M: Send>(Rc<Peer<M>>);

impl<M: Send> Pumping<M> {
    fn start(peer: Rc<Peer<M>>) -> Pumping<M> {
        peer.pumping.set(true);
        PUMPING.set(PUMPING.get() + 1);
        Pumping(peer)
    }
}

impl<M: Send> Drop for Pumping<M> {
    fn drop(&mut self) {
        self.0.pumping.set(false);
        PUMPING.set(PUMPING.get() - 1);
    }
}

async fn pump<M: Send + 'static>(pumping: Pumping<M>) {
    let peer = &pumping.0;
    loop {
        let Some(message) = peer.backlog.borrow_mut().pop_front() else {
            return;
        };
        if peer.sender.send(message).await.is_err() {
            peer.backlog.borrow_mut().clear();
            return;
        }
    }
}

/// What one sibling sends.
pub struct Inbox<M: Send> {
    from: CoreId,
    receiver: ConnectedReceiver<M>,
}

impl<M: Send> Inbox<M> {
    /// Which core it comes from.
    pub fn from(&self) -> CoreId {
        self.from
    }

    /// The next message; `None` when that core has ended.
    pub async fn recv(&mut self) -> Option<M> {
        self.receiver.recv().await
    }
}
