//! Nodes that are nothing but members of a cluster, in a simulated world, and what must hold of all
//! that they say.
//!
//! Each is a real `Membership` on a disk that loses what was not synced, reached over a network
//! with faults; one question is one connection here. Everything else of a node is left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;
use quoit::cluster::map::{ClusterMap, Node, NodeId, State, Uuid};
use quoit::cluster::member::{Standing, Timing};
use quoit::cluster::ring::Vnodes;
use quoit::config::VNODES_MIN;
use quoit::error::Error;
use quoit::membership::etcd::begin_in_etcd;
use quoit::membership::record::Record;
use quoit::membership::wish::{self, HOLDS_DATA, Wish};
use quoit::membership::{
    self, Ask, Begun, Boxed, Founding, Knocking, Membership, Outcome, Reach, Said, Setup, Unheard,
    Unreached, View,
};
use quoit::rt::sim::{NodeId as Machine, Options, Party, World};
use quoit::rt::sync::Signal;
use quoit::rt::{self, Bug, Listener, Stream};

use crate::etcd;

/// What a check has found to be wrong.
pub type Verdict<T = ()> = Result<T, String>;

const DIR: &str = "/data";
const PORT: u16 = 7379;
const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    suspect: Duration::from_secs(2),
    dead: Duration::from_secs(6),
};
/// Virtual time within which the nodes must agree once nothing disturbs them any more.
const AGREE_MAX: Duration = Duration::from_secs(600);
/// A question that has not come by then is not answered.
const QUESTION_MAX: Duration = Duration::from_secs(30);
const WISH_MAX: Duration = Duration::from_secs(8);

/// What all nodes have said and were told, over all of their lives.
#[derive(Default)]
pub struct Book {
    /// By epoch: the map. There is one of each.
    maps: BTreeMap<u64, Arc<ClusterMap>>,
    /// The highest epoch that each machine has shown in this life.
    epochs: BTreeMap<u16, u64>,
    /// Machines that were told for good that they cannot join.
    refused: BTreeMap<u16, String>,
    /// The HTTP port under which a machine was last granted to be known, and the highest that it
    /// has asked for.
    granted: BTreeMap<u16, (u16, u16)>,
    /// It was granted that the cluster holds data.
    pub is_open: bool,
    /// The peer ports of machines that have moved, from their next starts on.
    ports: BTreeMap<u16, u16>,
    /// Machines that have no room for what they are to ask others.
    full: BTreeSet<u16>,
    wrong: Option<String>,
}

impl Book {
    fn note_wrong(&mut self, why: String) {
        self.wrong.get_or_insert(why);
    }

    fn port(&self, machine: u16) -> u16 {
        self.ports.get(&machine).copied().unwrap_or(PORT)
    }

    /// Machine `machine` shows `view`.
    fn note(&mut self, machine: u16, view: &View) {
        let epoch = view.map.epoch();
        let known = self
            .maps
            .entry(epoch)
            .or_insert_with(|| Arc::clone(&view.map));
        if *known != view.map {
            let (one, other) = (cut(&known.to_json()), cut(&view.map.to_json()));
            self.note_wrong(format!("two maps of epoch {epoch}: {one} and {other}"));
        }
        let before = self.epochs.insert(machine, epoch).unwrap_or(0);
        if before > epoch {
            self.note_wrong(format!(
                "machine {machine} goes back from {before} to {epoch}"
            ));
        }
        self.check_open();
    }

    /// Whoever is in an open map was in the first one.
    fn check_open(&mut self) {
        let open: Vec<&Arc<ClusterMap>> = self.maps.values().filter(|map| map.is_open()).collect();
        let count = |map: &ClusterMap| map.nodes().len();
        let joined = open.windows(2).find(|pair| count(pair[1]) > count(pair[0]));
        if let Some(pair) = joined {
            let epoch = pair[1].epoch();
            self.note_wrong(format!(
                "in epoch {epoch} a node joins a cluster that holds data"
            ));
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(700).collect()
}

pub type Shared = Rc<RefCell<Book>>;

/// One question to one node: connect, ask, read the answer.
async fn exchange(address: SocketAddr, ask: &Ask) -> Option<Said> {
    let mut stream = Stream::connect(address).await.ok()?;
    let (kind, body) = match ask {
        Ask::Gossip(bytes) => (0, bytes.clone()),
        Ask::Register(bytes) => (1, bytes.clone()),
        Ask::Map(epoch) => (2, epoch.to_le_bytes().to_vec()),
        Ask::Join(bytes) => (3, bytes.clone()),
        Ask::TakeMap(map) => (4, map.to_vec()),
    };
    send(&mut stream, kind, &body).await?;
    let (kind, body) = receive(&mut stream).await?;
    Some(match kind {
        0 => Said::Gossip(body),
        1 => Said::Register(body),
        2 => Said::Map(Bytes::from(body)),
        3 => Said::Busy,
        5 => Said::Done,
        _ => Said::Refused(String::from_utf8(body).ok()?),
    })
}

async fn send(stream: &mut Stream, kind: u8, body: &[u8]) -> Option<()> {
    let mut out = vec![kind];
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    stream.write_all(&out).await.ok()
}

async fn receive(stream: &mut Stream) -> Option<(u8, Vec<u8>)> {
    let mut input = Vec::new();
    loop {
        if let Some((head, rest)) = input.split_first_chunk::<5>() {
            let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if rest.len() >= length {
                return Some((head[0], rest[..length].to_vec()));
            }
        }
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok()?;
        if count == 0 {
            return None;
        }
        input.extend_from_slice(&piece[..count]);
    }
}

async fn answer(mut stream: Stream, membership: Rc<Membership>) {
    let Some((kind, body)) = receive(&mut stream).await else {
        return;
    };
    let ask = match kind {
        0 => Ask::Gossip(body),
        1 => Ask::Register(body),
        2 => Ask::Map(u64::from_le_bytes(body.try_into().expect("eight bytes"))),
        3 => Ask::Join(body),
        _ => Ask::TakeMap(Bytes::from(body)),
    };
    let (kind, body) = match membership.serve(ask).await {
        Said::Gossip(bytes) => (0, bytes),
        Said::Register(bytes) => (1, bytes),
        Said::Map(bytes) => (2, bytes.to_vec()),
        Said::Busy => (3, Vec::new()),
        Said::Refused(why) => (4, why.into_bytes()),
        Said::Done => (5, Vec::new()),
    };
    send(&mut stream, kind, &body).await;
}

/// The way to other nodes.
struct Wire;

impl Reach for Wire {
    fn ask(&self, node: &Node, ask: Ask, patience: Duration) -> Boxed<'_, Result<Said, Unreached>> {
        let address = format!("{}:{}", node.host, node.peer_port);
        Box::pin(async move {
            let address = address.parse().expect("an address");
            let late = async {
                rt::sleep(patience).await;
                None
            };
            future::or(exchange(address, &ask), late)
                .await
                .ok_or(Unreached::Silent)
        })
    }
}

/// The way of a machine that may have no room for what it is to ask.
struct Narrow {
    machine: u16,
    book: Shared,
}

impl Reach for Narrow {
    fn ask(&self, node: &Node, ask: Ask, patience: Duration) -> Boxed<'_, Result<Said, Unreached>> {
        match self.book.borrow().full.contains(&self.machine) {
            true => Box::pin(future::ready(Err(Unreached::Unasked))),
            false => Wire.ask(node, ask, patience),
        }
    }
}

impl Knocking for Wire {
    fn knock(
        &self,
        address: SocketAddr,
        newcomer: Node,
        cluster: Option<Uuid>,
    ) -> Boxed<'_, Result<Said, Unheard>> {
        Box::pin(async move {
            let text = serde_json::to_vec(&newcomer).expect("it is text");
            let late = async {
                rt::sleep(QUESTION_MAX).await;
                None
            };
            let asked = async {
                if let Some(own) = cluster {
                    // A handshake would tell.
                    let Said::Map(map) = exchange(address, &Ask::Map(0)).await? else {
                        return None;
                    };
                    let found = wish::read(&map)?.cluster();
                    if found != own {
                        return Some(Err(Unheard::Elsewhere(found)));
                    }
                }
                exchange(address, &Ask::Join(text)).await.map(Ok)
            };
            let said = future::or(asked, late).await;
            said.unwrap_or_else(|| Err(Unheard::Unreached("no answer".to_owned())))
        })
    }
}

fn describe(machine: u16, peer_port: u16) -> Node {
    Node {
        id: NodeId(machine),
        uuid: Uuid(0),
        host: Machine(machine).address(PORT).ip().to_string(),
        port: 6379,
        core_port: 16_379,
        peer_port,
        http_port: 8379,
        rack: String::new(),
        weight: 100,
        cores: 1,
        state: State::Alive,
    }
}

/// How a machine comes into the cluster.
#[derive(Clone)]
enum Door {
    /// By one of these nodes; without any it founds it.
    Join(Vec<SocketAddr>),
    /// By the map in etcd, which knows a user or not.
    Etcd { has_user: bool },
}

/// One life of a machine.
async fn live(machine: u16, door: Door, (book, slot): (Shared, Slot), orders: Rc<Orders>) {
    let dir = Path::new(DIR);
    rt::create_dir_all(dir).await.expect("a sound disk");
    let peer_port = book.borrow().port(machine);
    let mut node = describe(machine, peer_port);
    let how = Founding {
        vnodes: Vnodes::new(VNODES_MIN).expect("a power of two"),
        replicas: 3,
        is_open: false,
    };
    let join = match &door {
        Door::Join(join) => join.clone(),
        Door::Etcd { .. } => Vec::new(),
    };
    let (begun, etcd) = match door {
        Door::Join(join) => (membership::begin(dir, &join, &node, &Wire).await, None),
        Door::Etcd { has_user } => {
            let etcd = etcd::client(has_user);
            let begun = begin_in_etcd(dir, &etcd, how, &node, &Wire).await;
            (begun, Some(etcd))
        }
    };
    let begun = match begun {
        Ok(begun) => begun.expect("nobody asks it to stop"),
        Err(Error::Setup(why)) => {
            book.borrow_mut().refused.insert(machine, why);
            return;
        }
        Err(error) => panic!("machine {machine}: {error}"),
    };
    let record: Record = match begun {
        Begun::Member(record) => *record,
        Begun::Founder(uuid) => {
            node.uuid = uuid;
            let founded = membership::found(dir, uuid, node.clone(), how).await;
            founded.expect("a sound disk")
        }
    };
    node.uuid = record.uuid;
    node.id = record.place.as_ref().expect("it was let in").node;
    if let Some((granted, asked)) = book.borrow().granted.get(&machine) {
        node.http_port = *granted.max(asked);
    }
    let reach = Narrow {
        machine,
        book: Rc::clone(&book),
    };
    let told = Rc::clone(&book);
    let setup = Setup {
        dir: PathBuf::from(DIR),
        node,
        timing: TIMING,
        etcd,
        reach: Rc::new(reach),
        join,
        door: Rc::new(Wire),
        tell: Box::new(move |view: &Arc<View>| told.borrow_mut().note(machine, view)),
    };
    let membership = Membership::new(setup, record);
    slot.borrow_mut()
        .insert(machine, Rc::downgrade(&membership));
    let listener = Listener::bind(Machine(machine).address(peer_port)).expect("it is free");
    rt::spawn(Rc::clone(&membership).run());
    rt::spawn(orders.carry_out());
    loop {
        if let Ok(stream) = listener.accept().await {
            let answered = answer(stream, Rc::clone(&membership));
            let late = rt::sleep(QUESTION_MAX);
            drop(rt::spawn(async move { future::or(answered, late).await }));
        }
    }
}

/// What a machine is to do besides.
#[derive(Default)]
struct Orders {
    queue: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>,
    came: Signal,
}

impl Orders {
    async fn carry_out(self: Rc<Self>) {
        loop {
            let next = self.came.wait_for(|| self.queue.borrow_mut().pop());
            drop(rt::spawn(next.await));
        }
    }
}

type Slot = Rc<RefCell<BTreeMap<u16, Weak<Membership>>>>;

/// Some machines of which the first founds a cluster that the others join; or whichever comes
/// first, where the map is kept in etcd.
pub struct Scene {
    pub world: World,
    pub book: Shared,
    pub chance: fastrand::Rng,
    count: u16,
    up: BTreeSet<u16>,
    members: Slot,
    orders: RefCell<BTreeMap<u16, Rc<Orders>>>,
    /// What etcd has, and which of its members are up.
    etcd: Option<(etcd::Shared, BTreeSet<u16>)>,
}

impl Scene {
    pub fn new(seed: u64, planted: &[Bug]) -> Scene {
        let mut options = Options::random(seed);
        options.planted = planted.to_vec();
        // A question is a connection here, and a map takes some time through a narrow window.
        options.net.window_bytes = options.net.window_bytes.max(64 << 10);
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x3E3B);
        Scene {
            world: World::new(options),
            book: Rc::default(),
            count: chance.u16(3..=5),
            chance,
            up: BTreeSet::new(),
            members: Slot::default(),
            orders: RefCell::default(),
            etcd: None,
        }
    }

    /// The same, of so many machines.
    pub fn of(count: u16, seed: u64, planted: &[Bug]) -> Scene {
        Scene {
            count,
            ..Scene::new(seed, planted)
        }
    }

    /// The same, with the map in etcd, which is there.
    pub fn in_etcd(seed: u64, planted: &[Bug]) -> Scene {
        let mut scene = Scene::new(seed, planted);
        let store = etcd::Shared::default();
        store.borrow_mut().has_user = scene.chance.bool();
        scene.etcd = Some((store, BTreeSet::new()));
        scene.start_etcd();
        scene
    }

    /// In a thousand requests to etcd, each of its faults strikes so many.
    pub fn disturb_etcd(&self, faults: u64) {
        if let Some((store, _)) = &self.etcd {
            store.borrow_mut().faults = faults;
        }
    }

    /// Starts all members of etcd that are down.
    pub fn start_etcd(&mut self) {
        let Some((store, up)) = &mut self.etcd else {
            return;
        };
        for member in etcd::MEMBERS {
            if up.insert(member) {
                let store = Rc::clone(store);
                let main = move |_: rt::Core<()>| etcd::serve(member, Rc::clone(&store));
                drop(self.world.start_node(Machine(member), 1, main));
            }
        }
    }

    /// Ends some member of etcd, or all of them.
    pub fn end_etcd(&mut self, all: bool) {
        let chosen = self.chance.choice(etcd::MEMBERS).unwrap_or_default();
        let Some((_, up)) = &mut self.etcd else {
            return;
        };
        for member in etcd::MEMBERS {
            if (all || member == chosen) && up.remove(&member) {
                self.world.crash_node(Machine(member));
            }
        }
    }

    /// Cuts a machine off from some member of etcd, in one direction or both.
    pub fn cut_from_etcd(&mut self, machine: u16) {
        let member = self.chance.choice(etcd::MEMBERS).unwrap_or_default();
        let mut parties = [machine, member].map(|one| Party::Node(Machine(one)));
        self.chance.shuffle(&mut parties);
        match self.chance.bool() {
            true => self.world.cut(parties[0], parties[1]),
            false => self.world.cut_one_way(parties[0], parties[1]),
        }
    }

    /// True if etcd has the map.
    pub fn is_in_etcd(&self) -> bool {
        self.etcd.is_some()
    }

    /// Nothing disturbs the network.
    pub fn calm(&mut self) {
        self.world.heal_all();
        self.world.change_net(|faults| {
            (faults.resets, faults.spikes) = (0.0, 0.0);
        });
    }

    /// True if the map says where all are.
    fn says_places(&self, map: &ClusterMap) -> bool {
        let book = self.book.borrow();
        map.nodes().iter().all(|node| {
            (1..=self.count).any(|machine| {
                let address = Machine(machine).address(book.port(machine));
                node.host == address.ip().to_string() && node.peer_port == address.port()
            })
        })
    }

    /// All see each other alive, where they are, before that time is over.
    pub fn find_all(&self, time: Duration) -> Verdict {
        let finds_all = |machine| {
            let member = self.member(machine);
            member.is_some_and(|member| self.says_places(&member.map())) && self.sees_all(machine)
        };
        let all_find = || (1..=self.count).all(finds_all);
        match self.world.run_until(all_find, time) {
            true => self.verdict(),
            false => Err(format!("they do not find each other: {}", self.describe())),
        }
    }

    /// How many machines there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Starts a machine that is down; it is to join others, unless it is the first.
    pub fn start(&mut self, machine: u16) {
        if !self.up.insert(machine) {
            return;
        }
        self.book.borrow_mut().epochs.remove(&machine);
        let mut join: Vec<SocketAddr> = (1..=self.count)
            .filter(|other| *other != machine && machine != 1)
            .filter(|other| *other == 1 || self.chance.bool())
            .map(|other| Machine(other).address(self.book.borrow().port(other)))
            .collect();
        self.chance.shuffle(&mut join);
        let door = match &self.etcd {
            Some((store, _)) => Door::Etcd {
                has_user: store.borrow().has_user,
            },
            None => Door::Join(join),
        };
        let shared = (Rc::clone(&self.book), Rc::clone(&self.members));
        let orders = Rc::new(Orders::default());
        self.orders.borrow_mut().insert(machine, Rc::clone(&orders));
        let main =
            move |_: rt::Core<()>| live(machine, door.clone(), shared.clone(), Rc::clone(&orders));
        drop(self.world.start_node(Machine(machine), 1, main));
    }

    /// Ends a machine's life, if it has one.
    pub fn end(&mut self, machine: u16) {
        if !self.up.remove(&machine) {
            return;
        }
        match self.chance.u8(..3) {
            0 => self.world.kill_node(Machine(machine)),
            _ => self.world.crash_node(Machine(machine)),
        }
        self.members.borrow_mut().remove(&machine);
        self.orders.borrow_mut().remove(&machine);
    }

    /// Ends a machine's life, if it has one; in the next one it is at another port.
    pub fn move_away(&mut self, machine: u16) {
        self.end(machine);
        let mut book = self.book.borrow_mut();
        let port = book.port(machine) + 1;
        book.ports.insert(machine, port);
    }

    /// Replaces the disk of a machine by a new one; it is down then.
    pub fn replace_disk(&mut self, machine: u16) {
        self.end(machine);
        self.world.disk(Machine(machine)).wipe();
    }

    /// True if a machine is a member, and sees all others of the map alive.
    pub fn sees_all(&self, machine: u16) -> bool {
        let Some(member) = self.member(machine) else {
            return false;
        };
        let view = member.view();
        view.standings
            .values()
            .all(|standing| *standing == Standing::Alive)
            && view.standings.len() + 1 == member.map().nodes().len()
    }

    /// True if `machine` knows that `keeper` is one of those who keep the map.
    pub fn knows_keeper(&self, machine: u16, keeper: u16) -> bool {
        let (Some(member), Some(number)) = (self.member(machine), self.number(keeper)) else {
            return false;
        };
        member.map().keepers().nodes.contains(&number)
    }

    /// True if all that a machine has asked for was granted.
    pub fn has_what_it_wants(&self, machine: u16) -> bool {
        let book = self.book.borrow();
        book.granted
            .get(&machine)
            .is_some_and(|(granted, asked)| granted == asked)
    }

    /// How a node stands, as a machine sees it.
    pub fn standing(&self, machine: u16, node: NodeId) -> Option<Standing> {
        let view = self.member(machine)?.view();
        view.standings.get(&node).copied()
    }

    /// A machine has no room any more for what it is to ask others; it goes on answering them.
    pub fn fill_up(&self, machine: u16) {
        self.book.borrow_mut().full.insert(machine);
    }

    fn member(&self, machine: u16) -> Option<Rc<Membership>> {
        self.members.borrow().get(&machine)?.upgrade()
    }

    /// The number that a machine has in the cluster.
    pub fn number(&self, machine: u16) -> Option<NodeId> {
        self.member(machine).map(|membership| membership.own())
    }

    /// Bytes that a machine has written so far.
    pub fn written_bytes(&self, machine: u16) -> u64 {
        self.world.disk(Machine(machine)).written_bytes()
    }

    /// Has a machine do this, in its present life.
    fn order(&self, machine: u16, work: impl Future<Output = ()> + 'static) {
        if let Some(orders) = self.orders.borrow().get(&machine) {
            orders.queue.borrow_mut().push(Box::pin(work));
            orders.came.wake_all();
        }
    }

    /// Has a machine's membership want something, in a task of its own.
    pub fn want_data(&mut self, machine: u16) {
        let (Some(membership), book) = (self.member(machine), Rc::clone(&self.book)) else {
            return;
        };
        self.order(machine, async move {
            if membership.open().await {
                book.borrow_mut().is_open = true;
            }
        });
    }

    /// A machine wants to be known under another port, and notes whether that was granted.
    pub fn want_port(&mut self, machine: u16) {
        let (Some(membership), book) = (self.member(machine), Rc::clone(&self.book)) else {
            return;
        };
        let map = membership.map();
        let Some(known) = map.node(membership.own()).cloned() else {
            return;
        };
        if map.nodes().len() == 1 {
            return; // what it is at its start is told to the first that joins
        }
        let asked = {
            let mut book = book.borrow_mut();
            let ports = book.granted.entry(machine).or_insert((8379, 8379));
            if known.http_port < ports.1 {
                return; // a node has one port at a time: it may still be asking for this one
            }
            ports.1 += 1;
            ports.1
        };
        let wanted = Node {
            http_port: asked,
            ..known
        };
        self.order(machine, async move {
            let wish = Wish::Renew(Box::new(wanted));
            if let Outcome::Granted(_) = membership.change(wish, WISH_MAX).await {
                let mut book = book.borrow_mut();
                let ports = book.granted.entry(machine).or_insert((asked, asked));
                ports.0 = ports.0.max(asked);
            }
        });
    }

    /// A machine has the map say that another one is where nobody is.
    pub fn mislead(&self, machine: u16, about: u16) {
        let (Some(membership), Some(number)) = (self.member(machine), self.number(about)) else {
            return;
        };
        if let Some(known) = membership.map().node(number).cloned() {
            let wrong = Node {
                peer_port: known.peer_port + 1_000,
                ..known
            };
            self.order(machine, async move {
                let wish = Wish::Move(Box::new(wrong));
                drop(membership.change(wish, WISH_MAX).await);
            });
        }
    }

    pub fn cut(&mut self) {
        let (one, other) = (
            self.chance.u16(1..=self.count),
            self.chance.u16(1..=self.count),
        );
        if one != other {
            let (one, other) = (Party::Node(Machine(one)), Party::Node(Machine(other)));
            match self.chance.bool() {
                true => self.world.cut(one, other),
                false => self.world.cut_one_way(one, other),
            }
        }
    }

    pub fn run(&self, most_ms: u64, chance: u64) -> Verdict {
        self.world
            .run_for(Duration::from_micros(chance % (most_ms * 1000)));
        self.verdict()
    }

    /// The same, for less than one of these times.
    pub fn run_for_some(&mut self, most_ms: [u64; 3]) -> Verdict {
        let most = most_ms[self.chance.usize(..3)];
        let chance = self.chance.u64(..);
        self.run(most, chance)
    }

    /// Every machine is a node of `map`.
    pub fn all_are_in(&self, map: &ClusterMap) -> Verdict {
        match (map.nodes().len(), usize::from(self.count())) {
            (known, all) if known == all => Ok(()),
            (known, all) => Err(format!("{known} of {all} are in")),
        }
    }

    /// What was found to be wrong so far.
    pub fn verdict(&self) -> Verdict {
        let in_etcd = self.etcd.as_ref();
        let in_etcd = in_etcd.and_then(|(store, _)| store.borrow().wrong.clone());
        match self.book.borrow().wrong.clone().or(in_etcd) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Nothing disturbs them any more: all that were let in, but `lost` ones, agree, and see each
    /// other alive.
    pub fn agree(&mut self, lost: &BTreeSet<u16>) -> Verdict<Arc<ClusterMap>> {
        self.calm();
        self.disturb_etcd(0);
        self.start_etcd();
        for machine in (1..=self.count).filter(|machine| !lost.contains(machine)) {
            self.start(machine);
        }
        let came = self.world.run_until(|| self.is_agreed(lost), AGREE_MAX);
        self.verdict()?;
        if !came {
            return Err(format!("they do not agree: {}", self.describe()));
        }
        let first = self.settled(lost).first().copied();
        let first = first.and_then(|machine| self.member(machine));
        let map = first.ok_or("nobody is in")?.map();
        self.check_refusals(lost, &map)?;
        self.check_granted(&map)?;
        Ok(map)
    }

    fn settled(&self, lost: &BTreeSet<u16>) -> Vec<u16> {
        let book = self.book.borrow();
        let is_out = |machine: &u16| lost.contains(machine) || book.refused.contains_key(machine);
        (1..=self.count)
            .filter(|machine| !is_out(machine))
            .collect()
    }

    fn is_agreed(&self, lost: &BTreeSet<u16>) -> bool {
        let machines = self.settled(lost);
        let members: Vec<_> = machines
            .iter()
            .filter_map(|machine| self.member(*machine))
            .collect();
        if members.len() < machines.len() {
            return false;
        }
        let Some(first) = members.first().map(|member| member.map()) else {
            return false;
        };
        let is_in_etcd = |(store, _): &(etcd::Shared, BTreeSet<u16>)| {
            store.borrow().map.as_ref() == Some(&*first)
        };
        if !self.etcd.as_ref().is_none_or(is_in_etcd) {
            return false;
        }
        let living: BTreeSet<NodeId> = members.iter().map(|member| member.own()).collect();
        let keepers = first.keepers().nodes.len();
        // Who is lost cannot become a keeper; but no keeper waits to be one.
        let could_keep = first.nodes().iter().filter(|node| {
            let is_keeper = first.keepers().nodes.contains(&node.id);
            is_keeper || living.contains(&node.id)
        });
        let wanted = [1, 1, 3, 3, 5][could_keep.count().min(5) - 1];
        let is_kept = keepers >= wanted || self.etcd.is_some();
        is_kept
            && members.iter().all(|member| {
                let (map, view) = (member.map(), member.view());
                let sees = |node: &NodeId| {
                    *node == member.own() || view.standings.get(node) == Some(&Standing::Alive)
                };
                *map == *first && member.is_settled() && living.iter().all(sees)
            })
    }

    /// Who was refused was refused for a reason.
    fn check_refusals(&self, lost: &BTreeSet<u16>, map: &ClusterMap) -> Verdict {
        let book = self.book.borrow();
        for (machine, why) in &book.refused {
            let is_late = why.contains(HOLDS_DATA) && map.is_open();
            let is_back = why.contains("lost its data directory") && lost.contains(machine);
            if !is_late && !is_back {
                return Err(format!("machine {machine} was refused: {why}"));
            }
        }
        match book.is_open && !map.is_open() {
            true => Err("it was granted that the cluster holds data, and forgotten".to_owned()),
            false => Ok(()),
        }
    }

    /// What was granted is there, or something newer of the same node.
    fn check_granted(&self, map: &ClusterMap) -> Verdict {
        let book = self.book.borrow();
        for (machine, (granted, asked)) in &book.granted {
            let host = Machine(*machine).address(PORT).ip().to_string();
            let Some(node) = map.nodes().iter().find(|node| node.host == host) else {
                return Err(format!("machine {machine} was in the map, and is gone"));
            };
            if !(*granted..=*asked).contains(&node.http_port) {
                let port = node.http_port;
                return Err(format!(
                    "machine {machine} is known by {port}, and {granted} was granted"
                ));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = format!("refused {:?}", self.book.borrow().refused);
        for machine in 1..=self.count {
            let Some(member) = self.member(machine) else {
                text += &format!("; machine {machine} is nobody");
                continue;
            };
            let (map, view) = (member.map(), member.view());
            let nodes: Vec<u16> = map.nodes().iter().map(|node| node.id.0).collect();
            text += &format!(
                "; machine {machine} is node {} of {nodes:?} in epoch {}, kept by {:?}, and sees {:?}",
                member.own().0,
                map.epoch(),
                map.keepers(),
                view.standings
            );
        }
        text
    }
}
