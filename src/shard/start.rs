//! A core from its start to its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::cluster::Cluster;
use super::connection::Clients;
use super::hints::{self, HandOffs};
use super::links::Way;
use super::place::{self, Beginning, Claim, Place};
use super::report::Counters;
use super::siblings::{Job, Message, Said, Siblings};
use super::walk::Walks;
use super::{Shard, Stage, directory};
use crate::cluster::face::Port;
use crate::cluster::ring::Map;
use crate::config::Config;
use crate::error::Result;
use crate::membership::{Begun, Boxed};
use crate::replication::clock::Clock;
use crate::rt::{self, Core, Inbox, Listener, Queue, Stream};
use crate::storage::hints::Hints;
use crate::storage::identity::Identity;
use crate::storage::{Opened, Store, Undecided};
use crate::types::{CoreId, Version};

/// Stopping clients get this long to take their last replies.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Core 0 keeps the data directory locked until the others have ended, but not for longer than
/// this.
const LAST_CORE_MAX: Duration = Duration::from_secs(60);
/// Pause after a failed accept: out of file descriptors, say.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// Failed accepts are logged so often at most.
const ACCEPT_WARN_EVERY: Duration = Duration::from_secs(10);

/// What a node knows of itself besides its configuration.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Where it listens: the port is a concrete one.
    pub address: SocketAddr,
    /// The port of each core alone, on the same address.
    pub core_ports: Vec<u16>,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// The port by which other nodes reach each core, on the same address.
    pub peer_ports: Vec<u16>,
    /// Where the nodes are that it is to join.
    pub join: Vec<SocketAddr>,
    /// What nodes of its cluster prove to each other that they know.
    pub cluster_key: Vec<u8>,
    /// 40 hexadecimal digits that no other start has.
    pub run_id: String,
    /// The process, for INFO.
    pub process_id: u32,
    /// The operating system, for INFO.
    pub os: String,
}

/// Serves one client that speaks HTTP.
pub type HttpFace = fn(Rc<Shard>, Stream) -> rt::Task<()>;

/// What is called once on core 0, when all cores listen.
pub type Ready = Box<dyn FnOnce()>;

/// Runs one core until the node stops. In boxes, and without parameters, so that the compiler makes
/// a node's code once, and not anew for each program that runs one.
pub fn run(
    core: Core<Message>,
    config: Rc<Config>,
    facts: NodeFacts,
    http: HttpFace,
    ready: Ready,
) -> Boxed<'static, Result<()>> {
    Box::pin(run_core(core, config, facts, http, ready))
}

async fn run_core(
    core: Core<Message>,
    config: Rc<Config>,
    facts: NodeFacts,
    http: HttpFace,
    ready: Ready,
) -> Result<()> {
    let id = core.id;
    let (outbox, mut inboxes) = core.mail.connect().await;
    let siblings = Siblings::new(outbox);
    let others: Vec<CoreId> = inboxes.iter().map(rt::Inbox::from).collect();
    let tell_all = |message: &dyn Fn() -> Message| {
        others
            .iter()
            .for_each(|other| siblings.tell(*other, message()));
    };
    let begun = match id {
        CoreId(0) => place::begin(&config, &facts, core.count).await,
        _ => Ok(told_to_begin(&mut inboxes).await),
    };
    let Ok(Some(Claim {
        lock,
        beginning,
        begun,
    })) = begun
    else {
        if id == CoreId(0) {
            tell_all(&|| Message::Leave);
        }
        return begun.map(|_| ()); // of the others' ends core 0 says why
    };
    if id == CoreId(0) {
        tell_all(&|| Message::Begin(beginning));
    }
    let folders = beginning.identity;
    let dir = config.dir.join(folders.folder(id).name());
    let options = directory::store_options(id, core.count, &config);
    let limits = hints::limits(&config, core.count);
    let opened = async {
        let hints = Hints::open(&config.dir, (id, core.count), limits).await?;
        Ok((Store::open(&dir, options).await?, hints))
    };
    let (opened, hints) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            tell_all(&|| Message::Leave);
            return Err(error);
        }
    };
    let (shard, undecided) = make(
        (id, core.count),
        (config, facts),
        siblings,
        (beginning, opened, hints),
    );
    let receivers: Vec<_> = inboxes
        .into_iter()
        .map(|inbox| rt::spawn(Rc::clone(&shard).receive(inbox)))
        .collect();
    let begun = begun.map(|begun| (begun, folders));
    let served = serve(&shard, (undecided, begun), http, ready).await;
    let stopped = shard.stop().await;
    if lock.is_some() {
        // Each receives until its core has ended: nobody else may open the data before that.
        future::or(all_done(receivers), rt::sleep(LAST_CORE_MAX)).await;
    }
    drop(lock);
    served.and(stopped)
}

/// A core whose data is open. Nobody writes to it before the cluster knows that there is data.
fn make(
    (id, count): (CoreId, u16),
    (config, facts): (Rc<Config>, NodeFacts),
    siblings: Siblings,
    (beginning, opened, hints): (Beginning, Opened, Rc<Hints>),
) -> (Rc<Shard>, Vec<Undecided>) {
    let identity = beginning.identity;
    let Opened {
        store,
        undecided,
        prepared,
        version_max,
        ..
    } = opened;
    store.close_for_writes();
    store.keep_deleted(true); // until it is known that nobody else has it
    let mut clock = Clock::new(identity.node, id.0, version_max);
    clock.observe(Version {
        clock: beginning.ceiling << 16,
        ..Version::ZERO
    });
    let shard = Shard {
        id,
        map: Map::one_node(count),
        epoch: u64::from(identity.generation) + 1,
        clock: RefCell::new(clock),
        place: Place::new(id, &config, beginning),
        hints,
        hand_offs: HandOffs::default(),
        facts,
        store,
        latches: Rc::default(),
        siblings,
        cluster: Cluster::default(),
        walks: Walks::default(),
        reserved: RefCell::new(BTreeMap::new()),
        token_next: Cell::new(0),
        prepared_before: prepared,
        clients: Clients::new(id, count),
        counters: RefCell::new(Counters::default()),
        stage: Cell::new(Stage::Opening),
        staged: rt::sync::Signal::default(),
        started: rt::now(),
        config,
    };
    (Rc::new(shard), undecided)
}

async fn all_done(tasks: Vec<rt::Task<()>>) {
    for task in tasks {
        task.await;
    }
}

/// Waits for core 0's word that the data directory is this node's, and which folders in it count.
async fn told_to_begin(inboxes: &mut [Inbox<Message>]) -> Option<Claim> {
    let first = inboxes.iter_mut().find(|inbox| inbox.from() == CoreId(0))?;
    match first.recv().await {
        Some(Message::Begin(beginning)) => Some(Claim {
            lock: None,
            beginning,
            begun: None,
        }),
        _ => None,
    }
}

async fn serve(
    shard: &Rc<Shard>,
    (undecided, begun): (Vec<Undecided>, Option<(Begun, Identity)>),
    http: HttpFace,
    ready: Ready,
) -> Result<()> {
    let leaving = async {
        shard.reached(Stage::Stopping).await;
        false
    };
    if !future::or(shard.decide(undecided), leaving).await {
        return Ok(()); // a core could not start, and says why; the log keeps what is undecided
    }
    shard.store.leave_log().await?;
    shard.advance(Stage::Open);
    for other in shard.other_cores() {
        let opened = async { shard.do_on(other, Job::Opened).await };
        let leaving = async {
            shard.reached(Stage::Stopping).await;
            None
        };
        let Some(Said::Opened(Some(seen))) = future::or(opened, leaving).await else {
            return Ok(()); // that core says why
        };
        // It may have prepared a transaction of ours of which nothing is left here: its name must
        // not be given again, though the wall clock may have been set back.
        shard.clock.borrow_mut().observe(seen);
    }
    shard.store.drop_log().await?;
    let peers = shard.make_links();
    shard.use_links(Rc::clone(&peers));
    if let Some((begun, identity)) = begun {
        directory::note_opened(&shard.config, identity).await?;
        let way = Way {
            peers: Rc::downgrade(&peers),
        };
        shard.take_place(begun, Rc::new(way)).await?;
    }
    future::or(shard.has_place(), shard.reached(Stage::Stopping)).await;
    rt::spawn(Rc::clone(shard).open_when_wanted());
    let shared = Listener::bind(shard.facts.address)?;
    let own = Listener::bind(shard.facts.address_of(shard.id))?;
    let web = Listener::bind(shard.facts.http)?;
    let for_peers = Listener::bind(shard.facts.peer_address_of(shard.id))?;
    rt::spawn(Rc::clone(shard).settle_transactions());
    rt::spawn_in(Queue::Background, Rc::clone(shard).sweep_expired());
    rt::spawn_in(Queue::Background, Rc::clone(shard).hand_off());
    if shard.config.limits.idle_timeout_s > 0 {
        rt::spawn_in(Queue::Background, Rc::clone(shard).close_idle_clients());
    }
    let on = |port: Port| {
        move |shard: Rc<Shard>, stream: Stream| rt::spawn(shard.serve_client(stream, port))
    };
    rt::spawn(Rc::clone(shard).accept(shared, on(Port::Shared)));
    rt::spawn(Rc::clone(shard).accept(own, on(Port::Core)));
    rt::spawn(Rc::clone(shard).accept(web, http));
    let serve_peer = |shard: Rc<Shard>, stream| {
        let peers = shard.links().map(Rc::clone);
        rt::spawn(async move {
            if let Some(peers) = peers {
                peers.serve(stream, shard).await;
            }
        })
    };
    rt::spawn(Rc::clone(shard).accept(for_peers, serve_peer));
    if shard.id == CoreId(0) {
        rt::spawn_in(Queue::Background, Rc::clone(shard).watch_files());
    }
    shard.advance(Stage::Listening);
    until_the_end(shard, ready).await
}

/// Says that the node is ready, and returns when it is to end; an error: it must, and this is why.
async fn until_the_end(shard: &Rc<Shard>, ready: Ready) -> Result<()> {
    let announced = async {
        if shard.id == CoreId(0) && shard.all_listen().await {
            ready();
        }
        std::future::pending().await
    };
    let leaving = async {
        future::or(rt::stopping(), shard.reached(Stage::Stopping)).await;
        Ok(())
    };
    let fenced = async { Err(shard.fenced().await) };
    future::or(announced, future::or(fenced, leaving)).await
}

impl NodeFacts {
    /// Where core `core` listens for other nodes.
    pub fn peer_address_of(&self, core: CoreId) -> SocketAddr {
        let port = self.peer_ports[usize::from(core.0)];
        SocketAddr::new(self.address.ip(), port)
    }

    /// Where core `core` alone listens.
    pub fn address_of(&self, core: CoreId) -> SocketAddr {
        let port = self.core_ports[usize::from(core.0)];
        SocketAddr::new(self.address.ip(), port)
    }
}

impl Shard {
    /// Finds out which transactions held that this core had prepared when it went down: those
    /// that all of their cores had. False if a core could not say.
    async fn decide(self: &Rc<Self>, undecided: Vec<Undecided>) -> bool {
        let mut by_core: BTreeMap<CoreId, Vec<Version>> = BTreeMap::new();
        for part in &undecided {
            for core in part.cores.iter().filter(|core| **core != self.id) {
                by_core.entry(*core).or_default().push(part.transaction);
            }
        }
        let mut missing: BTreeSet<Version> = BTreeSet::new();
        for (core, transactions) in by_core {
            let said = self.do_on(core, Job::Prepared(transactions.clone())).await;
            let Some(Said::Prepared(prepared)) = said else {
                return false;
            };
            let absent = transactions
                .iter()
                .zip(prepared)
                .filter(|(_, prepared)| !prepared);
            missing.extend(absent.map(|(transaction, _)| *transaction));
        }
        for part in undecided {
            match missing.contains(&part.transaction) {
                true => self.store.abort(part.transaction),
                false => self.store.recover(part),
            }
        }
        true
    }

    /// True once the other cores listen; false: the node is to end.
    pub(super) async fn all_listen(self: &Rc<Self>) -> bool {
        for other in self.other_cores() {
            let said = self.do_on(other, Job::Listening).await;
            if !matches!(said, Some(Said::Done(true))) {
                return false;
            }
        }
        true
    }

    async fn accept(
        self: Rc<Self>,
        listener: Listener,
        serve: impl Fn(Rc<Shard>, Stream) -> rt::Task<()>,
    ) {
        let mut warn_from = Duration::ZERO;
        while !self.is_stopping() {
            let accepted = async { Some(listener.accept().await) };
            let stopping = async {
                self.reached(Stage::Stopping).await;
                None
            };
            match future::or(accepted, stopping).await {
                Some(Ok(stream)) => {
                    drop(serve(Rc::clone(&self), stream));
                }
                Some(Err(error)) => {
                    if rt::now() >= warn_from {
                        log::warn!("{error}; trying again");
                        warn_from = rt::now() + ACCEPT_WARN_EVERY;
                    }
                    rt::sleep(ACCEPT_RETRY).await;
                }
                None => return,
            }
        }
    }

    /// Sends the clients home, waits for the other cores to do so, and flushes. (Those cores'
    /// clients write here, too: what they were told is written must be there when this flushes.)
    async fn stop(self: &Rc<Self>) -> Result<()> {
        self.advance(Stage::Stopping);
        self.other_cores()
            .for_each(|core| self.siblings.tell(core, Message::Leave));
        let others = self.other_cores().count();
        let deadline = rt::now() + DRAIN_MAX;
        let is_in_use = || self.clients.count_all() > 0 || self.siblings.left() < others;
        while is_in_use() && rt::now() < deadline {
            rt::sleep(Duration::from_millis(5)).await;
        }
        self.hints.stop().await;
        if let Some(peers) = self.links() {
            peers.close();
        }
        self.store.stop().await
    }
}
