//! Links to the cores of other nodes: requests go out, answers come back, each within its deadline.
//!
//! Every core has one [`Peers`]. A link is a connection that this core has made to one core of
//! another node: made when it is needed, proven by the handshake, kept, and shared by all requests
//! to that core. Answers come in any order. A connection that another core has made to this one
//! only takes its requests ([`Peers::serve`]).
//!
//! What [`Peers::ask`] promises: it returns by its deadline; it never waits for room; what it says
//! was not sent is certainly not done; nothing is ever sent twice. A request whose deadline has
//! passed is not executed.
//!
//! Bounds: requests and bytes of each link, answers and requests under way of each connection
//! ([`PeerLimits`]). Beyond them there is `Busy`, and whoever does not read his answers is not read
//! from.

mod accepted;
mod input;
mod link;
mod queue;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::cluster::map::{Holder, Node, NodeId};
use crate::protocol::peer::handshake::{ClusterId, NONCE_BYTES, Side};
use crate::protocol::peer::{Certainty, Limits, OwnedAnswer, Request};
use crate::rt::{self, Stream};
use crate::types::CoreId;
use accepted::{Accepted, Answerer};
use input::Buffers;
use link::Link;
use wire::{Broken, Wire, within};

pub use accepted::Answering;
pub use link::Asking;

/// Where a core listens for other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress<'a> {
    /// A name or an address.
    pub host: &'a str,
    /// That core's own port.
    pub port: u16,
}

impl<'a> PeerAddress<'a> {
    /// Of core `core` of `node`.
    pub fn of(node: &'a Node, core: CoreId) -> PeerAddress<'a> {
        PeerAddress {
            host: &node.host,
            port: node.peer_port.saturating_add(core.0),
        }
    }
}

/// Who this node is for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster; all zeros while it is in none.
    pub cluster: ClusterId,
    /// Its number; 0 while it has none.
    pub node: NodeId,
}

/// The number of a node that is in no cluster.
const NO_NODE: NodeId = NodeId(0);

impl Identity {
    /// Of a node that is in no cluster yet, and asks to be let in.
    pub const STRANGER: Identity = Identity {
        cluster: [0; 16],
        node: NO_NODE,
    };
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Too much is on its way to that core. Certainly not done.
    Busy,
    /// There is no connection. Certainly not done.
    Unreachable,
    /// The deadline has come before it was sent. Certainly not done.
    TooLate,
    /// It was sent, and the link broke or the deadline came. It may have been done, or may be yet.
    Lost,
}

impl Unanswered {
    /// Whether anything can have been done.
    pub fn certainty(self) -> Certainty {
        match self {
            Unanswered::Busy | Unanswered::Unreachable | Unanswered::TooLate => Certainty::NotDone,
            Unanswered::Lost => Certainty::Unknown,
        }
    }
}

/// An answer, and by which map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The epoch of its map.
    pub epoch: u64,
    /// What it said.
    pub answer: OwnedAnswer,
}

/// What is heard of other nodes, for gossip and the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link to it is there: it has proved who it is.
    Up(NodeId),
    /// A link to it was refused or has broken, or a request has passed its deadline with nothing
    /// heard since it was sent.
    Down(NodeId),
    /// It has made a connection to us, and proved who it is.
    Met(NodeId),
    /// It has a map of this epoch, which is later than ours.
    Newer(NodeId, u64),
}

/// What there may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Bytes of a key.
    pub key_bytes_max: usize,
    /// Bytes of a value.
    pub value_bytes_max: usize,
    /// Requests of one link that are not answered yet.
    pub requests_max: usize,
    /// Bytes of requests that wait to be sent over one link, or of answers over one connection; one
    /// frame more than that may be there, however large it is.
    pub waiting_bytes_max: usize,
    /// Requests of one connection that are under way here.
    pub served_max: usize,
    /// Connections of others that have not proved themselves yet.
    pub greeting_max: usize,
    /// How long it may take to connect, and as long again until both sides have proved themselves.
    pub greeting_time_max: Duration,
    /// Pause after a failed attempt to connect, at first; it doubles each time.
    pub pause_min: Duration,
    /// And at most.
    pub pause_max: Duration,
    /// A link on which nothing came for so long, though an answer was due, is broken.
    pub silence_max: Duration,
}

/// One request of a proven peer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Who asks. [`Identity::STRANGER`]'s node if it is in no cluster: then it asks neither for
    /// data nor to write any.
    pub from: Holder,
    /// The epoch of its map.
    pub epoch: u64,
    /// Until when the answer is of use to it; past it nothing is to be done any more. By
    /// [`rt::now`].
    pub deadline: Duration,
    /// What it asks.
    pub request: Request<'a>,
}

impl Asked<'_> {
    /// True if nobody waits for the answer any more.
    pub fn is_too_late(&self) -> bool {
        rt::now() >= self.deadline
    }
}

/// Does what other nodes ask of a core.
pub trait Serve {
    /// Does it, now or in a task of its own, and gives the answer. Must not block.
    fn serve(self: Rc<Self>, asked: Asked<'_>, answering: Answering);
}

/// Whether a node is in the map.
type IsMember = Box<dyn Fn(NodeId) -> bool>;

/// One core's links to other nodes.
pub struct Peers {
    core: CoreId,
    key: Box<[u8]>,
    limits: PeerLimits,
    told: Box<dyn Fn(Event)>,
    identity: Cell<Identity>,
    epoch: Cell<u64>,
    /// The highest epoch of others that was told of, and when that may be told again.
    epoch_heard: Cell<u64>,
    tell_epoch_at: Cell<Duration>,
    links: RefCell<BTreeMap<Holder, Rc<Link>>>,
    accepted: RefCell<Vec<Rc<Accepted>>>,
    /// Whether a node is in the map; `None`: there is no map yet.
    members: RefCell<Option<IsMember>>,
    /// Connections that have not proved themselves.
    greeting: Cell<usize>,
    buffers: Buffers,
    complaints: Complaints,
    is_closed: Cell<bool>,
}

impl Peers {
    /// None yet. `key` is the cluster's; if it is empty, only connections within the machine are
    /// taken. `told` hears all events, and must not call back.
    pub fn new(
        core: CoreId,
        key: &[u8],
        limits: PeerLimits,
        told: impl Fn(Event) + 'static,
    ) -> Rc<Peers> {
        Rc::new(Peers {
            core,
            key: key.into(),
            limits,
            told: Box::new(told),
            identity: Cell::new(Identity::STRANGER),
            epoch: Cell::new(0),
            epoch_heard: Cell::new(0),
            tell_epoch_at: Cell::new(Duration::ZERO),
            links: RefCell::default(),
            accepted: RefCell::default(),
            members: RefCell::default(),
            greeting: Cell::new(0),
            buffers: Buffers::default(),
            complaints: Complaints::default(),
            is_closed: Cell::new(false),
        })
    }

    /// From now on this is who we are. Connections in which we were somebody else are closed.
    pub fn set_identity(&self, identity: Identity) {
        if self.identity.replace(identity) != identity {
            self.end_connections(|_| true, "this node is another one now");
        }
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.identity.get()
    }

    /// The epoch of the map that this core has from now on.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.set(epoch);
    }

    /// From now on these are the nodes of the map. Ends what there is with others: they know the
    /// key, but are asked for nothing, and may ask for nothing but what brings a newer map.
    pub fn keep_only(&self, is_member: impl Fn(NodeId) -> bool + 'static) {
        let is_gone = |node: NodeId| node != NO_NODE && !is_member(node);
        self.end_connections(is_gone, "that node has left the cluster");
        let mut links = self.links.borrow_mut();
        links.retain(|to, _| is_member(to.node));
        self.members.replace(Some(Box::new(is_member)));
    }

    /// True if `node` is in the map, as far as it is known.
    fn is_member(&self, node: NodeId) -> bool {
        let members = self.members.borrow();
        members.as_ref().is_none_or(|is_member| is_member(node))
    }

    /// Asks core `to.core` of node `to.node`, which listens at `address`. To be waited for at once
    /// or later; that it is asked does not depend on it.
    pub fn begin(
        self: &Rc<Self>,
        to: Holder,
        address: PeerAddress<'_>,
        request: &Request<'_>,
        deadline: Duration,
    ) -> Result<Asking, Unanswered> {
        if self.is_closed.get() {
            return Err(Unanswered::Unreachable);
        }
        let mut links = self.links.borrow_mut();
        let link = links.entry(to).or_insert_with(|| Link::new(to));
        let link = Rc::clone(link);
        drop(links);
        link.begin(self, address, request, deadline)
    }

    /// The same, and waits for the answer.
    pub async fn ask(
        self: &Rc<Self>,
        to: Holder,
        address: PeerAddress<'_>,
        request: &Request<'_>,
        deadline: Duration,
    ) -> Result<Answered, Unanswered> {
        self.begin(to, address, request, deadline)?.wait().await
    }

    /// How long an answer of that core usually takes; `None`: nothing is known.
    pub fn latency(&self, to: Holder) -> Option<Duration> {
        self.links.borrow().get(&to)?.latency()
    }

    /// `node` may be back: it is tried at once when it is asked next, however often that failed
    /// before.
    pub fn expect(&self, node: NodeId) {
        let links = self.links.borrow();
        let to_it = links.iter().filter(|(to, _)| to.node == node);
        to_it.for_each(|(_, link)| link.expect());
    }

    /// Serves one connection that was accepted, until it ends.
    pub async fn serve(self: Rc<Self>, stream: Stream, served: Rc<dyn Serve>) {
        let from = stream.peer_addr();
        if let Err(broken) = self.greet_and_serve(stream, served).await
            && broken.is_violation()
        {
            self.complaints.say(from, &broken);
        }
    }

    async fn greet_and_serve(&self, stream: Stream, served: Rc<dyn Serve>) -> Result<(), Broken> {
        let is_near = stream
            .peer_addr()
            .is_some_and(|from| from.ip().is_loopback());
        if self.key.is_empty() && !is_near {
            return Err(Broken::OutOfPlace(
                "a greeting from another machine, and no cluster-key is set here",
            ));
        }
        if self.is_closed.get() || self.greeting.get() >= self.limits.greeting_max {
            return Ok(());
        }
        self.greeting.set(self.greeting.get() + 1);
        let side = self.side();
        let mut wire = Wire::new(stream, &self.buffers);
        let limit = self.limits.greeting_time_max;
        let peer = within(limit, wire.accept(side, &self.key)).await;
        self.greeting.set(self.greeting.get() - 1);
        let peer = peer?;
        let is_other = self.identity.get() != Identity::of(&side);
        if is_other || self.is_closed.get() {
            return Ok(());
        }
        let (node, epoch) = (NodeId(peer.side.node), peer.side.epoch);
        if node != NO_NODE && !self.is_member(node) && epoch <= self.epoch.get() {
            return Err(Broken::OutOfPlace(
                "a greeting of a node that is not in the map",
            ));
        }
        let accepted = Accepted::new(peer, self.limits.waiting_bytes_max);
        self.replace(&accepted);
        if node != NO_NODE {
            self.tell(Event::Met(node));
        }
        self.hear_epoch(node, epoch);
        let limits = &self.limits;
        let limits = Limits::proven(peer.version, limits.key_bytes_max, limits.value_bytes_max);
        let answerer = Answerer {
            accepted: Rc::clone(&accepted),
            peers: self,
            served,
        };
        let broken = wire.talk(&limits, &answerer).await;
        accepted.outside.close("it is over");
        let is_other = |other: &Rc<Accepted>| !Rc::ptr_eq(other, &accepted);
        self.accepted.borrow_mut().retain(is_other);
        wire.shutdown().await;
        Err(broken)
    }

    /// Notes a connection; the one before of the same core ends. Nodes without a number may have
    /// several.
    fn replace(&self, accepted: &Rc<Accepted>) {
        let mut all = self.accepted.borrow_mut();
        let is_stranger = |other: &Accepted| other.from().node == NO_NODE;
        let strangers = all.iter().filter(|other| is_stranger(other)).count();
        let too_many = strangers >= self.limits.greeting_max;
        let old = all.iter().position(|other| match is_stranger(accepted) {
            true => too_many && is_stranger(other),
            false => other.from() == accepted.from(),
        });
        if let Some(old) = old {
            all.remove(old).outside.close("another one has its place");
        }
        all.push(Rc::clone(accepted));
    }

    /// Closes all links and connections, for good.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.end_connections(|_| true, "this node stops");
        let links = std::mem::take(&mut *self.links.borrow_mut());
        links.values().for_each(|link| link.shut("this node stops"));
    }

    fn end_connections(&self, is_meant: impl Fn(NodeId) -> bool, why: &'static str) {
        for (to, link) in &*self.links.borrow() {
            if is_meant(to.node) {
                link.reset(why);
            }
        }
        for accepted in &*self.accepted.borrow() {
            if is_meant(accepted.from().node) {
                accepted.outside.close(why);
            }
        }
    }

    /// What this core says of itself in a handshake.
    fn side(&self) -> Side {
        let identity = self.identity.get();
        let mut nonce = [0; NONCE_BYTES];
        for part in nonce.chunks_mut(8) {
            part.copy_from_slice(&rt::random().to_le_bytes());
        }
        Side {
            cluster: identity.cluster,
            node: identity.node.0,
            core: self.core,
            epoch: self.epoch.get(),
            nonce,
        }
    }

    fn tell(&self, event: Event) {
        (self.told)(event);
    }

    /// A node has a map of this epoch. It is told again and again while we have none as new: the
    /// first that said so may be one from which the map cannot be had, as a node that has just come
    /// back, whose link here is not open yet.
    fn hear_epoch(&self, node: NodeId, epoch: u64) {
        if epoch <= self.epoch.get() || node == NO_NODE {
            return;
        }
        let now = rt::now();
        if epoch > self.epoch_heard.get() || now >= self.tell_epoch_at.get() {
            self.epoch_heard.set(epoch.max(self.epoch_heard.get()));
            self.tell_epoch_at.set(now + TELL_EPOCH_EVERY);
            self.tell(Event::Newer(node, epoch));
        }
    }
}

impl Identity {
    fn of(side: &Side) -> Identity {
        Identity {
            cluster: side.cluster,
            node: NodeId(side.node),
        }
    }
}

/// That others have a newer map is told this often, until it is here.
const TELL_EPOCH_EVERY: Duration = Duration::from_millis(10);

/// What others do wrong is said in the log, but not more often than this: whoever reaches the port
/// could fill it.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Complaints {
    next_at: Cell<Duration>,
    unsaid: Cell<u64>,
}

impl Complaints {
    fn say(&self, from: Option<SocketAddr>, broken: &Broken) {
        let now = rt::now();
        if now < self.next_at.get() {
            return self.unsaid.set(self.unsaid.get() + 1);
        }
        self.next_at.set(now + COMPLAIN_EVERY);
        let from = from.map_or("somebody".to_owned(), |from| from.to_string());
        match self.unsaid.take() {
            0 => log::warn!("closed the connection of {from} to the peer port: {broken}"),
            more => log::warn!(
                "closed the connection of {from} to the peer port: {broken} (and {more} others before)"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
