//! A connection that this core makes to a core of another node, for all its requests to it.
//!
//! A request waits in the queue until it is handed to the connection, and then for its answer; it
//! leaves both at its deadline. When the connection breaks, what was handed to it is lost, and all
//! else was certainly not done. Nothing is kept for the next connection.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future;

use super::queue::Turn;
use super::wire::{Broken, Outside, Talk, Wire, within};
use super::{Answered, Event, Identity, PeerAddress, Peers, Unanswered};
use crate::cluster::map::Holder;
use crate::protocol::peer::{
    DEADLINE_MS_MAX, Frame, Limits, Message, OwnedAnswer, Request, VERSION, VERSION_OLDEST,
};
use crate::rt::sync::{Answer as AnswerSlot, Answerer, Signal, answer_slot};
use crate::rt::{self, Bug, Stream};
use crate::types::CoreId;

/// A request may wait before a version is agreed on.
const _: () = assert!(VERSION == VERSION_OLDEST);
/// An attempt to connect that is older is given up for another one where the other side is said to
/// be back: the system asks again after this, and then after longer and longer, while nobody
/// answers.
const CONNECTING_OLD: Duration = Duration::from_secs(1);
/// How much a new latency counts, in so many parts.
const LATENCY_PARTS: u32 = 8;

/// All requests of this core to one other core.
pub(super) struct Link {
    /// Whom it leads to.
    to: Holder,
    pub outside: Outside,
    stage: Cell<Stage>,
    open: RefCell<BTreeMap<u64, Open>>,
    id_next: Cell<u64>,
    /// There will be no other connection.
    is_shut: Cell<bool>,
    /// Of all that is open.
    deadlines: RefCell<BTreeSet<(Duration, u64)>>,
    /// When the deadlines are looked at next; `None`: nobody looks.
    look_at: Cell<Option<Duration>>,
    sooner: Signal,
    /// When something last came.
    heard: Cell<Duration>,
    latency: Cell<Option<Duration>>,
    /// No attempt to connect before this.
    retry_at: Cell<Duration>,
    pause: Cell<Duration>,
    /// Since when it connects, while it has not come through.
    connects: Cell<Option<Duration>>,
    /// It is to connect anew.
    is_hurried: Cell<bool>,
    hurried: Signal,
    /// The address that was tried last.
    tried: RefCell<(String, u16)>,
    /// What was said of it in the log.
    complaint: RefCell<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Connecting,
    Up,
}

/// A request without an answer.
struct Open {
    answerer: Answerer<Result<Answered, Unanswered>>,
    deadline: Duration,
    /// When it was handed to the connection.
    sent: Option<Duration>,
}

/// A request that has been taken on: its answer is to be waited for. If it is dropped, nobody
/// waits, and what has not been sent yet is not.
pub struct Asking {
    link: Rc<Link>,
    id: u64,
    answer: Option<AnswerSlot<Result<Answered, Unanswered>>>,
}

impl Asking {
    /// Returns by the deadline.
    pub async fn wait(mut self) -> Result<Answered, Unanswered> {
        match self.answer.take() {
            Some(answer) => answer.wait().await.unwrap_or(Err(Unanswered::Lost)),
            None => Err(Unanswered::Lost),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let forgotten = self.link.remove(self.id);
        drop(forgotten);
    }
}

impl Link {
    /// Nothing is asked over it yet.
    pub fn new(to: Holder) -> Rc<Link> {
        Rc::new(Link {
            to,
            outside: Outside::default(),
            stage: Cell::new(Stage::Idle),
            open: RefCell::default(),
            id_next: Cell::new(1),
            is_shut: Cell::new(false),
            deadlines: RefCell::default(),
            look_at: Cell::new(None),
            sooner: Signal::default(),
            heard: Cell::new(Duration::ZERO),
            latency: Cell::new(None),
            retry_at: Cell::new(Duration::ZERO),
            pause: Cell::new(Duration::ZERO),
            connects: Cell::new(None),
            is_hurried: Cell::new(false),
            hurried: Signal::default(),
            tried: RefCell::default(),
            complaint: RefCell::default(),
        })
    }

    /// How many requests are open, and how many bytes wait.
    #[cfg(test)]
    pub fn load(&self) -> (usize, usize) {
        (self.open.borrow().len(), self.outside.waiting_bytes())
    }

    /// What was said of it in the log.
    #[cfg(test)]
    pub fn complaint(&self) -> String {
        self.complaint.borrow().clone()
    }

    /// How long an answer usually takes.
    pub fn latency(&self) -> Option<Duration> {
        self.latency.get()
    }

    /// Takes on a request, and sees to it that there is a connection, or will be.
    pub fn begin(
        self: &Rc<Self>,
        peers: &Rc<Peers>,
        address: PeerAddress<'_>,
        request: &Request<'_>,
        deadline: Duration,
    ) -> Result<Asking, Unanswered> {
        let now = rt::now();
        if now >= deadline {
            return Err(Unanswered::TooLate);
        }
        let furthest = now + Duration::from_millis(u64::from(DEADLINE_MS_MAX / 2));
        let deadline = deadline.min(furthest);
        if self.is_shut.get() || !self.may_try(address, now) {
            return Err(Unanswered::Unreachable);
        }
        let limits = &peers.limits;
        let is_full = self.open.borrow().len() >= limits.requests_max
            || self.outside.waiting_bytes() >= limits.waiting_bytes_max;
        if is_full {
            return Err(Unanswered::Busy);
        }
        let id = self.id_next.get();
        self.id_next.set(id + 1);
        let message = Message::Request(*request);
        let mut queue = self.outside.queue.borrow_mut();
        queue.push(id, &message, VERSION, Some(deadline));
        drop(queue);
        let (answerer, answer) = answer_slot();
        let open = Open {
            answerer,
            deadline,
            sent: None,
        };
        self.open.borrow_mut().insert(id, open);
        self.deadlines.borrow_mut().insert((deadline, id));
        self.watch(peers, deadline);
        match self.stage.get() {
            Stage::Idle => {
                self.stage.set(Stage::Connecting);
                *self.tried.borrow_mut() = (address.host.to_owned(), address.port);
                rt::spawn(Rc::clone(self).run(Rc::clone(peers)));
            }
            Stage::Connecting => {
                self.redirect(address);
                self.outside.ring();
            }
            Stage::Up => self.outside.ring(),
        }
        Ok(Asking {
            link: Rc::clone(self),
            id,
            answer: Some(answer),
        })
    }

    /// Ends it for good.
    pub fn shut(&self, why: &'static str) {
        self.is_shut.set(true);
        self.reset(why);
    }

    /// Ends the connection, if there is one.
    pub fn reset(&self, why: &'static str) {
        if self.stage.get() != Stage::Idle {
            self.outside.close(why);
        }
    }

    /// The other side may be back: this pause is over. (If it is not, the next one is as long as it
    /// would have been.)
    pub fn expect(&self) {
        self.retry_at.set(Duration::ZERO);
        let is_old = |since: Duration| rt::now() >= since + CONNECTING_OLD;
        if self.connects.get().is_some_and(is_old) {
            self.is_hurried.set(true);
            self.hurried.wake_all();
        }
    }

    /// While it still connects to another address than this one, it connects to this one instead:
    /// where nobody answers, not even with a refusal, there is nothing to wait for.
    fn redirect(&self, address: PeerAddress<'_>) {
        let mut tried = self.tried.borrow_mut();
        let is_same = tried.0 == address.host && tried.1 == address.port;
        if !is_same && self.connects.get().is_some() && !rt::planted(Bug::OldAddressKept) {
            *tried = (address.host.to_owned(), address.port);
            self.is_hurried.set(true);
            self.hurried.wake_all();
        }
    }

    /// False during the pause after an attempt that failed, unless there is another address now.
    fn may_try(&self, address: PeerAddress<'_>, now: Duration) -> bool {
        let tried = self.tried.borrow();
        let is_same = tried.0 == address.host && tried.1 == address.port;
        self.stage.get() != Stage::Idle || now >= self.retry_at.get() || !is_same
    }

    fn remove(&self, id: u64) -> Option<Open> {
        let open = self.open.borrow_mut().remove(&id)?;
        self.deadlines.borrow_mut().remove(&(open.deadline, id));
        Some(open)
    }

    /// Has the deadlines looked at by `deadline` at the latest.
    fn watch(self: &Rc<Self>, peers: &Rc<Peers>, deadline: Duration) {
        match self.look_at.get() {
            None => {
                self.look_at.set(Some(deadline));
                rt::spawn(Rc::clone(self).watch_deadlines(Rc::downgrade(peers)));
            }
            Some(next) if deadline < next => self.sooner.wake_all(),
            Some(_) => {}
        }
    }

    /// Ends what is past its deadline, until nothing is open. Wakes only for a deadline that was
    /// the next one when it last looked: most requests are answered long before.
    async fn watch_deadlines(self: Rc<Self>, peers: Weak<Peers>) {
        loop {
            let first = self.deadlines.borrow().first().copied();
            let Some((deadline, id)) = first else {
                self.look_at.set(None);
                return;
            };
            let now = rt::now();
            if now >= deadline {
                self.pass_deadline(&peers, id, now);
                continue;
            }
            self.look_at.set(Some(deadline));
            let sooner = self.sooner.wait_for(|| {
                let first = self.deadlines.borrow().first().copied();
                first.is_some_and(|(next, _)| next < deadline).then_some(())
            });
            future::or(rt::sleep(deadline - now), sooner).await;
        }
    }

    fn pass_deadline(&self, peers: &Weak<Peers>, id: u64, now: Duration) {
        let Some(open) = self.remove(id) else { return };
        let Some(sent) = open.sent else {
            return open.answerer.give(Err(Unanswered::TooLate));
        };
        open.answerer.give(Err(Unanswered::Lost));
        let heard = self.heard.get();
        let Some(peers) = peers.upgrade().filter(|_| heard <= sent) else {
            return;
        };
        peers.tell(Event::Down(self.to.node));
        if now.saturating_sub(heard) >= peers.limits.silence_max {
            self.reset("it is silent");
        }
    }

    /// One connection from its beginning to its end.
    async fn run(self: Rc<Self>, peers: Rc<Peers>) {
        let mut was_up = false;
        let broken = self.connect_and_talk(&peers, &mut was_up).await;
        self.end(&peers, &broken, was_up);
    }

    async fn connect_and_talk(self: &Rc<Self>, peers: &Rc<Peers>, was_up: &mut bool) -> Broken {
        let limit = peers.limits.greeting_time_max;
        let stream = match self.connect(limit).await {
            Ok(stream) => stream,
            Err(broken) => return broken,
        };
        let mut wire = Wire::new(stream, &peers.buffers);
        let wanted = Some((self.to.node.0, self.to.core));
        let side = peers.side();
        let peer = match within(limit, wire.connect(side, wanted, &peers.key)).await {
            Ok(peer) => peer,
            Err(broken) => return broken,
        };
        if peers.identity() != Identity::of(&side) {
            return Broken::Closed("this node is another one now");
        }
        self.heard.set(rt::now());
        self.stage.set(Stage::Up);
        *was_up = true;
        if !self.complaint.take().is_empty() {
            let (node, core) = (self.to.node.0, self.to.core.0);
            let own = peers.core.0;
            log::info!("there is a link from core {own} to core {core} of node {node} again");
        }
        peers.tell(Event::Up(self.to.node));
        peers.hear_epoch(self.to.node, peer.side.epoch);
        let limits = &peers.limits;
        let limits = Limits::proven(peer.version, limits.key_bytes_max, limits.value_bytes_max);
        let asker = Asker { link: self, peers };
        let broken = wire.talk(&limits, &asker).await;
        wire.shutdown().await;
        broken
    }

    /// Connects, and begins anew whenever that takes long and the other side is said to be back, or
    /// to be somewhere else. All that takes no longer than `limit`: then it has failed, and whoever
    /// waits for it is told.
    async fn connect(&self, limit: Duration) -> Result<Stream, Broken> {
        let end = rt::now() + limit;
        loop {
            let (host, port) = self.tried.borrow().clone();
            let connecting = async {
                let address = rt::resolve(&host, port).await.map_err(Broken::Io)?;
                let stream = Stream::connect(address).await;
                stream.map_err(Broken::Unreachable)
            };
            let left = end.saturating_sub(rt::now());
            self.connects.set(Some(rt::now()));
            let connected = async { Some(within(left, connecting).await) };
            let is_hurried = || self.is_hurried.take().then_some(None);
            let ended = future::or(connected, self.hurried.wait_for(is_hurried)).await;
            self.connects.set(None);
            if let Some(ended) = ended {
                self.is_hurried.set(false);
                return ended;
            }
        }
    }

    /// The connection is over, or there was none.
    fn end(&self, peers: &Peers, broken: &Broken, was_up: bool) {
        self.stage.set(Stage::Idle);
        self.outside.end();
        self.deadlines.borrow_mut().clear();
        let open = self.open.take();
        for (_, open) in open {
            let unanswered = match open.sent {
                Some(_) => Unanswered::Lost,
                None => Unanswered::Unreachable,
            };
            open.answerer.give(Err(unanswered));
        }
        let limits = &peers.limits;
        let pause = match was_up && !broken.is_violation() {
            true => limits.pause_min,
            false => (self.pause.get() * 2).clamp(limits.pause_min, limits.pause_max),
        };
        self.pause.set(pause);
        // Not all at one time: between one half and all of it.
        let parts = 500 + (rt::random() % 501) as u32;
        self.retry_at.set(rt::now() + pause * parts / 1000);
        peers.tell(Event::Down(self.to.node));
        self.complain(peers.core, broken);
    }

    /// Says once why there is no connection.
    fn complain(&self, CoreId(own): CoreId, broken: &Broken) {
        let complaint = broken.to_string();
        let mut last = self.complaint.borrow_mut();
        if *last != complaint {
            let (host, port) = &*self.tried.borrow();
            let (node, core) = (self.to.node.0, self.to.core.0);
            log::warn!(
                "no link from core {own} to core {core} of node {node} at {host}:{port}: {complaint}"
            );
            *last = complaint;
        }
    }
}

/// A link's side of the conversation.
struct Asker<'l> {
    link: &'l Link,
    peers: &'l Peers,
}

impl Talk for Asker<'_> {
    fn outside(&self) -> &Outside {
        &self.link.outside
    }

    fn take(&self, frame: &Frame<'_>, _: Duration) -> Result<(), Broken> {
        let Message::Answer(answer) = &frame.message else {
            return Err(Broken::OutOfPlace("a request where answers are expected"));
        };
        let link = self.link;
        if frame.id == 0 || frame.id >= link.id_next.get() {
            return Err(Broken::OutOfPlace("an answer to what was not asked"));
        }
        let now = rt::now();
        link.heard.set(now);
        self.peers.hear_epoch(link.to.node, frame.epoch);
        let id = match rt::planted(Bug::AnswersByOrder) {
            true => link
                .open
                .borrow()
                .keys()
                .next()
                .copied()
                .unwrap_or(frame.id),
            false => frame.id,
        };
        let is_waiting = link.open.borrow().get(&id).map(|open| open.sent);
        let sent = match is_waiting {
            None => return Ok(()), // nobody waits for it any more
            Some(None) => return Err(Broken::OutOfPlace("an answer to what was not sent")),
            Some(Some(sent)) => sent,
        };
        let took = now.saturating_sub(sent);
        let latency = link.latency.get().map_or(took, |usual| {
            (usual * (LATENCY_PARTS - 1) + took) / LATENCY_PARTS
        });
        link.latency.set(Some(latency));
        if let Some(open) = link.remove(id) {
            open.answerer.give(Ok(Answered {
                epoch: frame.epoch,
                answer: OwnedAnswer::new(answer),
            }));
        }
        Ok(())
    }

    fn judge(&self, id: u64, now: Duration) -> Turn {
        match self.link.open.borrow_mut().get_mut(&id) {
            Some(open) => {
                open.sent = Some(now);
                Turn::Leaves
            }
            None => Turn::Dropped,
        }
    }

    fn epoch(&self) -> u64 {
        self.peers.epoch.get()
    }

    fn is_reading(&self) -> bool {
        true
    }
}
