//! The simulated network: TCP-like streams with delay, chunks, back-pressure, cuts and resets.
//!
//! A stream is two pipes. Bytes arrive in order, after a delay, and are read in any pieces. A pipe
//! holds a bounded number of bytes that were sent and not yet read: then its writer waits. A cut
//! holds back what has not arrived, in one direction, until it heals; so does a dead machine, for
//! ever, but that whoever writes to it learns of it some time later (a half-open connection).
//!

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context as PollContext, Poll, Waker};

use super::executor::{Chance, NO_NODE, Place, Sleep};
use super::link::{Link, LinkState, Pipe};
use super::{Context, Handle, Inner, NodeId};

/// Connections that wait to be accepted; more are refused.
const BACKLOG_MAX: usize = 1024;
/// How long a connection attempt goes on when nothing comes back.
const CONNECT_NS_MAX: u64 = 60_000_000_000;
/// When the writer to a dead machine learns of it, at the least and at the most.
const SILENCE_NS: (u64, u64) = (200_000_000, 60_000_000_000);

/// How the network behaves. Probabilities are per operation.
#[derive(Clone, Debug)]
pub struct NetFaults {
    /// Least and most time that bytes are under way, in microseconds.
    pub delay_us: (u64, u64),
    /// Bytes take a hundred times as long.
    pub spikes: f64,
    /// A write is sent, or a read gets its bytes, in pieces.
    pub pieces: f64,
    /// Bytes that a stream holds, in each direction, before its writer waits.
    pub window_bytes: usize,
    /// A write resets its connection.
    pub resets: f64,
    /// A power cut leaves the other side of a connection without word, and those without an
    /// answer who try to connect before the node is up again.
    pub half_open: f64,
}

impl NetFaults {
    /// A good network.
    pub fn none() -> NetFaults {
        NetFaults {
            delay_us: (20, 200),
            spikes: 0.0,
            pieces: 0.05,
            window_bytes: 256 * 1024,
            resets: 0.0,
            half_open: 0.0,
        }
    }

    /// A network of any temper.
    pub(super) fn random(chance: &mut fastrand::Rng) -> NetFaults {
        NetFaults {
            delay_us: [(1, 5), (20, 200), (100, 20_000)][chance.usize(..3)],
            spikes: [0.0, 0.0, 0.001, 0.02][chance.usize(..4)],
            pieces: [0.0, 0.05, 0.5, 1.0][chance.usize(..4)],
            window_bytes: [512, 8 * 1024, 64 * 1024, 1024 * 1024][chance.usize(..4)],
            resets: [0.0, 0.0, 0.0, 0.001][chance.usize(..4)],
            half_open: [0.0, 0.3, 1.0][chance.usize(..3)],
        }
    }
}

/// Who is at one end of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// One node.
    Node(NodeId),
    /// All that live on no node.
    Clients,
}

fn party(place: Place) -> Party {
    match place.node {
        NO_NODE => Party::Clients,
        number => Party::Node(NodeId(number)),
    }
}

pub(super) struct Net {
    faults: RefCell<NetFaults>,
    listeners: RefCell<BTreeMap<SocketAddr, Vec<Rc<Bound>>>>,
    links: RefCell<Vec<Weak<Link>>>,
    /// How many links there may be before the dead ones are looked for.
    links_max: Cell<usize>,
    /// From whom nothing gets to whom.
    cuts: RefCell<BTreeSet<(Party, Party)>>,
    ports: Cell<u16>,
    /// Who has ever listened where.
    homes: RefCell<BTreeMap<SocketAddr, u16>>,
    /// Machines without power, of which nobody was told: whoever asks for them gets no answer.
    dark: RefCell<BTreeSet<u16>>,
}

/// A listening core.
struct Bound {
    place: Place,
    backlog: RefCell<VecDeque<Stream>>,
    acceptor: RefCell<Option<Waker>>,
}

impl Net {
    pub fn new(faults: NetFaults) -> Net {
        Net {
            faults: RefCell::new(faults),
            listeners: RefCell::default(),
            links: RefCell::default(),
            links_max: Cell::new(64),
            cuts: RefCell::default(),
            ports: Cell::new(0),
            homes: RefCell::default(),
            dark: RefCell::default(),
        }
    }

    pub fn delay(&self, chance: &Chance) -> u64 {
        let faults = self.faults.borrow();
        let scale = if chance.hits(faults.spikes) { 100 } else { 1 };
        chance.between(faults.delay_us) * scale * 1_000 + chance.below(1_000) as u64
    }

    fn is_cut(&self, from: Party, to: Party) -> bool {
        self.cuts.borrow().contains(&(from, to))
    }

    fn live_links(&self) -> Vec<Rc<Link>> {
        self.links
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Closes what is left of places that have ended: listeners, and connections that leaked.
    pub fn close_all(&self, world: &Inner, is_there: impl Fn(Place) -> bool) {
        let mut closed = Vec::new();
        self.listeners.borrow_mut().retain(|_, bounds| {
            closed.extend(bounds.extract_if(.., |bound| is_there(bound.place)));
            !bounds.is_empty()
        });
        for bound in closed {
            let refused = bound.backlog.take();
            drop(refused);
        }
        for link in self.live_links() {
            for side in (0..2).filter(|&side| is_there(link.places[side])) {
                link.close(world, side);
            }
        }
    }

    /// The machine of these places is gone, with its ends of all connections.
    pub fn crash(&self, world: &Inner, node: u16) {
        let is_there = |place: Place| place.node == node;
        if world.executor.chance.hits(self.faults.borrow().half_open) {
            self.dark.borrow_mut().insert(node);
        }
        for link in self.live_links() {
            for side in (0..2).filter(|&side| is_there(link.places[side])) {
                let half_open = self.faults.borrow().half_open;
                link.crash(world, side, world.executor.chance.hits(half_open));
            }
        }
    }

    /// A machine has power again.
    pub fn light(&self, node: u16) {
        self.dark.borrow_mut().remove(&node);
    }

    /// True if an attempt from `here` to connect to `address` is not even refused.
    fn is_silent(&self, here: Party, address: SocketAddr) -> bool {
        let Some(home) = self.homes.borrow().get(&address).copied() else {
            return false;
        };
        let there = Party::Node(NodeId(home));
        self.dark.borrow().contains(&home) || self.is_cut(here, there) || self.is_cut(there, here)
    }

    /// Drops what listeners hold, at the end of the world.
    pub fn clear(&self) {
        let listeners = self.listeners.take();
        drop(listeners);
    }

    fn link(
        &self,
        world: &Rc<Inner>,
        places: [Place; 2],
        addresses: [SocketAddr; 2],
    ) -> [Stream; 2] {
        let held = |from: usize| {
            let is_held = self.is_cut(party(places[from]), party(places[1 - from]));
            Pipe {
                is_held,
                ..Pipe::default()
            }
        };
        let state = LinkState {
            sides: Default::default(),
            pipes: [held(0), held(1)],
        };
        let link = Rc::new(Link {
            places,
            addresses,
            state: RefCell::new(state),
        });
        let mut links = self.links.borrow_mut();
        if links.len() >= self.links_max.get() {
            links.retain(|link| link.strong_count() > 0);
            self.links_max.set(64.max(2 * links.len()));
        }
        links.push(Rc::downgrade(&link));
        [0, 1].map(|side| Stream {
            world: Rc::clone(world),
            link: Rc::clone(&link),
            side,
        })
    }

    fn set_cut(&self, world: &Inner, from: Party, to: Party, is_cut: bool) {
        let is_new = if is_cut {
            self.cuts.borrow_mut().insert((from, to))
        } else {
            self.cuts.borrow_mut().remove(&(from, to))
        };
        if !is_new {
            return;
        }
        world.executor.note(0xC07 ^ u64::from(is_cut) << 16);
        for link in self.live_links() {
            for side in 0..2 {
                if party(link.places[side]) != from || party(link.places[1 - side]) != to {
                    continue;
                }
                link.hold(world, side, is_cut);
            }
        }
    }
}

/// A listening socket.
pub struct Listener {
    world: Rc<Inner>,
    bound: Rc<Bound>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.world.net.listeners.borrow_mut().retain(|_, bounds| {
            bounds.retain(|bound| !Rc::ptr_eq(bound, &self.bound));
            !bounds.is_empty()
        });
        let refused = self.bound.backlog.take();
        drop(refused);
    }
}

impl Listener {
    /// The next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        poll_fn(
            |context| match self.bound.backlog.borrow_mut().pop_front() {
                Some(stream) => Poll::Ready(Ok(stream)),
                None => {
                    *self.bound.acceptor.borrow_mut() = Some(context.waker().clone());
                    Poll::Pending
                }
            },
        )
        .await
    }
}

impl Context {
    /// Listens on an address, of which cores of the same node may have one listener each.
    pub fn bind(&self, address: SocketAddr) -> io::Result<Listener> {
        let mut listeners = self.world.net.listeners.borrow_mut();
        let bounds = listeners.entry(address).or_default();
        if bounds
            .iter()
            .any(|bound| bound.place.node != self.place.node)
        {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let bound = Rc::new(Bound {
            place: self.place,
            backlog: RefCell::default(),
            acceptor: RefCell::default(),
        });
        bounds.push(Rc::clone(&bound));
        let homes = &self.world.net.homes;
        homes.borrow_mut().insert(address, self.place.node);
        Ok(Listener {
            world: Rc::clone(&self.world),
            bound,
        })
    }

    /// Connects to an address. Goes on trying while the way there or back is cut.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        let (executor, net) = (&self.world.executor, &self.world.net);
        let started = executor.now();
        loop {
            let retry = (200_000_000, 1_000_000_000);
            Sleep::until(executor, executor.now() + net.delay(&executor.chance)).await;
            if !net.is_silent(party(self.place), address) {
                let bound = self.choose_listener(address);
                let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
                return bound
                    .map(|bound| self.connect_to(&bound, address))
                    .ok_or_else(refused);
            }
            if executor.now() - started > CONNECT_NS_MAX {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            let pause = executor.chance.between(retry);
            Sleep::until(executor, executor.now() + pause).await;
        }
    }

    /// One of the cores that listen there, as chance has it.
    fn choose_listener(&self, address: SocketAddr) -> Option<Rc<Bound>> {
        let listeners = self.world.net.listeners.borrow();
        let bounds = listeners.get(&address)?;
        let bound = &bounds[self.world.executor.chance.below(bounds.len())];
        let has_room = bound.backlog.borrow().len() < BACKLOG_MAX;
        has_room.then(|| Rc::clone(bound))
    }

    fn connect_to(&self, bound: &Bound, address: SocketAddr) -> Stream {
        let (executor, net) = (&self.world.executor, &self.world.net);
        net.ports.set(net.ports.get().wrapping_add(1));
        let port = 32_768 + net.ports.get() % 32_768;
        let local = NodeId(self.place.node).address(port);
        executor.note(0xC0_44EC7 ^ u64::from(port) << 32 ^ u64::from(bound.place.core));
        let places = [self.place, bound.place];
        let [near, far] = net.link(&self.world, places, [local, address]);
        bound.backlog.borrow_mut().push_back(far);
        let acceptor = bound.acceptor.take();
        if let Some(waker) = acceptor {
            waker.wake();
        }
        near
    }
}

/// One side of a connection.
pub struct Stream {
    world: Rc<Inner>,
    link: Rc<Link>,
    side: usize,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.close(&self.world, self.side);
    }
}

impl Stream {
    /// Writes all of `bytes`, waiting for room.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = poll_fn(|context| self.poll_write(context, rest)).await?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// The other side's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        Some(self.link.addresses[1 - self.side])
    }

    /// This side's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.link.addresses[self.side])
    }

    /// Sends the end.
    pub fn shutdown(&mut self) {
        let executor = &self.world.executor;
        let arrives = executor.now() + self.world.net.delay(&executor.chance);
        let mut state = self.link.state.borrow_mut();
        let pipe = &mut state.pipes[self.side];
        if pipe.end_at.is_none() && !pipe.is_void {
            let end_at = arrives.max(pipe.last_arrival);
            pipe.end_at = Some(end_at);
            self.link.wake_at(executor, pipe, end_at);
        }
    }

    fn check(&self, state: &LinkState) -> io::Result<()> {
        let side = &state.sides[self.side];
        if side.is_closed {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        if side
            .broken_at
            .is_some_and(|at| at <= self.world.executor.now())
        {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        Ok(())
    }

    /// Reads some of what has arrived.
    pub fn poll_read(
        &self,
        context: &mut PollContext<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let executor = &self.world.executor;
        let now = executor.now();
        let mut state = self.link.state.borrow_mut();
        self.check(&state)?;
        let broken_at = state.sides[self.side].broken_at;
        let pipe = &mut state.pipes[1 - self.side];
        pipe.advance(now);
        if pipe.arrived > 0 || buffer.is_empty() {
            let mut count = pipe.arrived.min(buffer.len());
            if count > 1 && executor.chance.hits(self.world.net.faults.borrow().pieces) {
                count = 1 + executor.chance.below(count);
            }
            pipe.take(&mut buffer[..count]);
            executor.note(0x2EAD ^ (count as u64) << 16);
            let writer = pipe.writer.take();
            drop(state);
            if let Some(waker) = writer {
                waker.wake();
            }
            return Poll::Ready(Ok(count));
        }
        if pipe.marks.is_empty() && !pipe.is_held && pipe.end_at.is_some_and(|at| at <= now) {
            return Poll::Ready(Ok(0));
        }
        pipe.reader = Some(context.waker().clone());
        if let Some(at) = pipe.next_at().into_iter().chain(broken_at).min() {
            self.link.wake_at(executor, pipe, at);
        }
        Poll::Pending
    }

    /// Writes some of `bytes`.
    pub fn poll_write(
        &self,
        context: &mut PollContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let executor = &self.world.executor;
        let (chance, now) = (&executor.chance, executor.now());
        let faults = self.world.net.faults.borrow();
        let mut state = self.link.state.borrow_mut();
        self.check(&state)?;
        let broken_at = state.sides[self.side].broken_at;
        let pipe = &mut state.pipes[self.side];
        if pipe.end_at.is_some() || pipe.reader_gone_at.is_some_and(|at| at <= now) {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::EPIPE)));
        }
        if pipe.reader_gone_at.is_some() {
            return Poll::Ready(Ok(bytes.len())); // On its way to somebody who has left.
        }
        let room = faults.window_bytes.saturating_sub(pipe.bytes.len());
        let mut count = room.min(bytes.len());
        if count > 1 && chance.hits(faults.pieces) {
            count = 1 + chance.below(count);
        }
        let arrives = (now + self.world.net.delay(chance)).max(pipe.last_arrival);
        if count == 0 {
            pipe.writer = Some(context.waker().clone());
            if let Some(at) = broken_at {
                self.link.wake_at(executor, pipe, at);
            }
        } else {
            executor.note(u64::from(crc32c::crc32c(&bytes[..count])) ^ arrives << 24);
            pipe.bytes.extend(&bytes[..count]);
            pipe.marks.push_back((arrives, count));
            pipe.last_arrival = arrives;
            if pipe.reader.is_some() && !pipe.is_held {
                self.link.wake_at(executor, pipe, arrives);
            }
        }
        let is_void = pipe.is_void;
        drop(state);
        if is_void || (count > 0 && chance.hits(faults.resets)) {
            self.lose(is_void);
        }
        if count == 0 {
            Poll::Pending
        } else {
            Poll::Ready(Ok(count))
        }
    }

    /// The connection breaks: on both sides, or on this one whose other side is long gone.
    fn lose(&self, is_void: bool) {
        let executor = &self.world.executor;
        if is_void {
            let at = executor.now() + executor.chance.between(SILENCE_NS);
            if self.link.state.borrow().sides[self.side]
                .broken_at
                .is_none()
            {
                self.link.break_side(executor, self.side, at);
            }
            return;
        }
        for side in 0..2 {
            let at = executor.now() + self.world.net.delay(&executor.chance);
            self.link.break_side(executor, side, at);
        }
    }
}

impl Handle {
    /// Changes how the network behaves from now on.
    pub fn change_net(&self, change: impl FnOnce(&mut NetFaults)) {
        change(&mut self.0.net.faults.borrow_mut());
    }

    /// Lets nothing more through between two parties, in either direction.
    pub fn cut(&self, one: Party, other: Party) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Lets nothing more through from one party to another.
    pub fn cut_one_way(&self, from: Party, to: Party) {
        self.0.net.set_cut(&self.0, from, to, true);
    }

    /// Ends cuts between two parties: what was held back arrives.
    pub fn heal(&self, one: Party, other: Party) {
        self.0.net.set_cut(&self.0, one, other, false);
        self.0.net.set_cut(&self.0, other, one, false);
    }

    /// Ends all cuts.
    pub fn heal_all(&self) {
        let cuts: Vec<(Party, Party)> = self.0.net.cuts.borrow().iter().copied().collect();
        for (from, to) in cuts {
            self.0.net.set_cut(&self.0, from, to, false);
        }
    }

    /// Resets all connections between two parties.
    pub fn reset_connections(&self, one: Party, other: Party) {
        for link in self.0.net.live_links() {
            let ends = link.places.map(party);
            if ends == [one, other] || ends == [other, one] {
                for side in 0..2 {
                    link.break_side(&self.0.executor, side, self.0.executor.now());
                }
            }
        }
    }

    /// How many connections have a side that is not closed.
    pub fn open_connections(&self) -> usize {
        let is_open =
            |link: &Rc<Link>| link.state.borrow().sides.iter().any(|side| !side.is_closed);
        self.0
            .net
            .live_links()
            .iter()
            .filter(|link| is_open(link))
            .count()
    }
}
