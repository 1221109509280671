//! Nodes of a cluster in one world: how they form it, end and come back, and what must hold of them
//! in the end. What goes wrong meanwhile is in `storm`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytesize::ByteSize;
use quoit::config::{Config, Metadata, VNODES_MIN};
use quoit::rt::Bug;
use quoit::rt::sim::{DiskFaults, NodeId, Options, Task, World};
use quoit::types::Level;

use crate::cluster::{
    self, CORE_PORT, Client, Life, PEER_PORT, Started, Verdict, config, launch_beside, request,
};
use crate::etcd;
use crate::holders;
use crate::seeds;
use crate::storm::{Trouble, Weather};
use crate::workload::{self, Ledger};

/// Virtual time within which a node must be up, and a cluster formed.
const START_MAX: Duration = Duration::from_secs(600);
/// Virtual time within which clients must have gone home: none waits so long for anything.
const LEAVE_MAX: Duration = Duration::from_secs(60);
/// Virtual time in which all that is under way comes to its end.
const CALM: Duration = Duration::from_secs(2);

/// How large a scene is, and how long.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: u16,
    /// Cores of each node: at least and at most.
    pub cores: (u16, u16),
    /// An odd number: so that of reads at ONE in turn each key's has its turn to be followed by a
    /// repair.
    pub keys: u64,
    pub clients: (u64, u64),
    /// A client waits so long at most between two requests.
    pub thinks_us: u64,
    pub weather: Weather,
    /// So often something goes wrong, and so long it takes until the next does.
    pub steps: (u32, u32),
    pub step_us: (u64, u64),
    /// Clients work on for so long when the storm is over.
    pub afterwards: Duration,
}

/// Three nodes of one core or two, and long runs of few faults.
pub const THREE: Shape = Shape {
    nodes: 3,
    cores: (1, 2),
    keys: workload::KEYS,
    clients: (2, 5),
    thinks_us: 10_000,
    weather: Weather::Fair,
    steps: (10, 39),
    step_us: (1_000, 400_000),
    afterwards: Duration::from_secs(10),
};

/// Five nodes of two cores, and short runs of all faults that there are.
pub const FIVE: Shape = Shape {
    nodes: 5,
    cores: (2, 2),
    keys: 5,
    clients: (3, 8),
    thinks_us: 3_000,
    weather: Weather::Foul,
    steps: (10, 40),
    step_us: (1_000, 100_000),
    afterwards: Duration::from_millis(200),
};

/// A machine, and the node on it.
#[derive(Default)]
pub struct Seat {
    /// While the node is up, as far as is known.
    pub started: Option<Started>,
    /// What its disk does wrong.
    pub trouble: Option<Trouble>,
    /// Its disk has done something wrong in this life of the node: it may end by itself.
    pub is_excused: bool,
    /// When its lives were ended.
    pub ends: Vec<Duration>,
    /// How far from its first one its peer port is.
    pub moved: u16,
}

/// What happened, to see that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub crashes: u64,
    pub cuts: u64,
    pub pauses: u64,
    pub jumps: u64,
    pub troubles: u64,
    /// Nodes that ended by themselves, for their disks.
    pub ended: u64,
    /// Keys whose replicas held different records when the storm was over and hints were handed on.
    pub apart: u64,
}

impl Tally {
    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: Tally) {
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.pauses += other.pauses;
        self.jumps += other.jumps;
        self.troubles += other.troubles;
        self.ended += other.ended;
        self.apart += other.apart;
    }
}

/// The world and the nodes in it.
pub struct Scene {
    pub world: World,
    pub shape: Shape,
    pub tally: Tally,
    pub chance: fastrand::Rng,
    pub seats: Vec<Seat>,
    pub life: Rc<Life>,
    /// What a disk does that does nothing wrong.
    pub sound: DiskFaults,
    config: Config,
    clients: Vec<Task<()>>,
    /// What etcd has, if the map is there, and which of its members are up.
    etcd: Option<(etcd::Shared, [bool; 3])>,
}

/// The machine of node `number`, counted from 0.
pub fn machine(number: u16) -> NodeId {
    NodeId(number + 1)
}

/// Where core `core` of node `number` alone listens.
pub fn address_of_core(number: u16, core: u16) -> std::net::SocketAddr {
    machine(number).address(CORE_PORT + core)
}

/// Where clients of node `number` connect.
pub fn address(number: u16) -> std::net::SocketAddr {
    cluster::address_of(machine(number))
}

impl Scene {
    /// Three nodes that know each other.
    pub fn new(seed: u64, planted: &[Bug]) -> Verdict<Scene> {
        Scene::formed(THREE, seed, planted)
    }

    /// Three nodes with something in their configuration.
    pub fn configured(seed: u64, configure: impl FnOnce(&mut Config)) -> Verdict<Scene> {
        let mut scene = Scene::empty(THREE, seed, &[]);
        configure(&mut scene.config);
        scene.form()?;
        Ok(scene)
    }

    /// Three nodes whose map is in etcd.
    pub fn in_etcd(seed: u64) -> Verdict<Scene> {
        let mut scene = Scene::empty(THREE, seed, &[]);
        let url = |member: &u16| format!("http://{}", NodeId(*member).address(etcd::PORT));
        scene.config.cluster.metadata = Metadata::Etcd;
        scene.config.cluster.etcd = etcd::MEMBERS.iter().map(url).collect();
        scene.etcd = Some(Default::default());
        scene.start_etcd();
        scene.form()?;
        Ok(scene)
    }

    /// Nodes that know each other.
    pub fn formed(shape: Shape, seed: u64, planted: &[Bug]) -> Verdict<Scene> {
        let mut scene = Scene::empty(shape, seed, planted);
        scene.form()?;
        Ok(scene)
    }

    /// Starts all nodes; returns when they know each other.
    pub fn form(&mut self) -> Verdict {
        let all = self.all();
        all.iter().try_for_each(|number| self.start(*number))?;
        self.wait_for_cluster(&all)
    }

    /// Starts the members of etcd that are down.
    pub fn start_etcd(&mut self) {
        let Some((store, up)) = &mut self.etcd else {
            return;
        };
        for (member, up) in etcd::MEMBERS.into_iter().zip(up) {
            if !std::mem::replace(up, true) {
                let store = Rc::clone(store);
                let main = move |_: quoit::rt::Core<()>| etcd::serve(member, Rc::clone(&store));
                drop(self.world.start_node(NodeId(member), 1, main));
            }
        }
    }

    /// Ends all members of etcd.
    pub fn end_etcd(&mut self) {
        let Some((_, up)) = &mut self.etcd else {
            return;
        };
        for (member, up) in etcd::MEMBERS.into_iter().zip(up) {
            if std::mem::take(up) {
                self.world.crash_node(NodeId(member));
            }
        }
    }

    /// How many cores each node has.
    pub fn cores(&self) -> u16 {
        self.config.cores
    }

    /// Lets one client's program run to its end.
    pub fn run<F: Future<Output = Verdict> + 'static>(
        &mut self,
        program: impl FnOnce(Rc<Life>) -> F,
    ) -> Verdict {
        let task = self.world.spawn_client(program(Rc::clone(&self.life)));
        match self.world.run_until(|| task.is_done(), START_MAX) {
            true => task.take().expect("it has ended"),
            false => Err("a client waits for ever".to_owned()),
        }
    }

    /// Lets a client's program run beside all else; what goes wrong is found by [`Scene::verdict`].
    pub fn spawn<F: Future<Output = ()> + 'static>(&mut self, program: impl FnOnce(Rc<Life>) -> F) {
        self.world.spawn_client(program(Rc::clone(&self.life)));
    }

    /// What is under way comes to its end; an error: what a client found wrong.
    pub fn verdict(&mut self) -> Verdict {
        self.world.run_for(CALM);
        self.life.verdict()
    }

    /// Machines, and no node yet.
    pub fn empty(shape: Shape, seed: u64, planted: &[Bug]) -> Scene {
        seeds::show_log();
        let mut options = match shape.weather {
            Weather::Fair => Options::calm(seed),
            Weather::Foul => Options::random(seed),
        };
        options.planted = planted.to_vec();
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x0DE5);
        match shape.weather {
            Weather::Fair => {
                options.net.delay_us = [(20, 200), (100, 5_000)][chance.usize(..2)];
            }
            Weather::Foul => {
                // Frames in the smallest pieces are for the tests of the protocol: here they take
                // most of the time.
                options.net.pieces = options.net.pieces.min(0.2);
                options.net.window_bytes = options.net.window_bytes.max(16 << 10);
            }
        }
        let cores = chance.u16(shape.cores.0..=shape.cores.1);
        let mut config = config(cores, &mut chance);
        config.vnodes = VNODES_MIN;
        config.hint_max_bytes = ByteSize::mib(16);
        config.replica_timeout_ms = 1_000;
        config.gossip_interval_ms = 100;
        config.suspect_after_ms = 600;
        config.dead_after_ms = 2_000;
        let sound = options.disk.clone();
        let mut scene = Scene {
            world: World::new(options),
            shape,
            tally: Tally::default(),
            chance,
            seats: (0..shape.nodes).map(|_| Seat::default()).collect(),
            life: Rc::default(),
            sound,
            config,
            clients: Vec::new(),
            etcd: None,
        };
        let skew_ms = shape.weather.skew_ms();
        for number in 0..shape.nodes {
            let skew = scene.chance.i64(-skew_ms..=skew_ms);
            scene.world.jump_clock(machine(number), skew);
        }
        scene
    }

    /// The numbers of all nodes.
    pub fn all(&self) -> Vec<u16> {
        (0..self.shape.nodes).collect()
    }

    /// Nodes are slow to take others for dead.
    pub fn be_patient(&mut self) {
        self.config.suspect_after_ms = 6_000;
        self.config.dead_after_ms = 20_000;
    }

    /// Gossip takes its time, as it does by default.
    pub fn keep_default_times(&mut self) {
        let times = Config::default();
        self.config.gossip_interval_ms = times.gossip_interval_ms;
        self.config.suspect_after_ms = times.suspect_after_ms;
        self.config.dead_after_ms = times.dead_after_ms;
    }

    /// Begins to start a node. Its disk is well again.
    pub fn begin(&mut self, number: u16) {
        self.mend(number);
        let peer_port = |number: u16| PEER_PORT + self.seats[usize::from(number)].moved;
        let join = match number {
            0 => Vec::new(),
            _ if self.etcd.is_some() => Vec::new(),
            _ => vec![machine(0).address(peer_port(0))],
        };
        let config = Config {
            peer_port: peer_port(number),
            ..self.config.clone()
        };
        let started = launch_beside(&self.world, machine(number), &config, join);
        self.seats[usize::from(number)].started = Some(started);
    }

    /// A node that is down is somewhere else at its next start.
    pub fn move_away(&mut self, number: u16) {
        self.seats[usize::from(number)].moved += self.config.cores;
    }

    /// Returns when a node that was started is up.
    pub fn must_be_up(&mut self, number: u16) -> Verdict {
        let Some(started) = &self.seats[usize::from(number)].started else {
            return Err(format!("node {number} was not started"));
        };
        started.settle(&self.world, START_MAX);
        match started.is_ready() {
            true => Ok(()),
            false => {
                let why = started.failure();
                Err(format!("node {number} does not start: {why:?}"))
            }
        }
    }

    /// Starts a node.
    pub fn start(&mut self, number: u16) -> Verdict {
        self.begin(number);
        self.must_be_up(number)
    }

    /// Starts all that are down.
    pub fn start_missing(&mut self) -> Verdict {
        self.take_leave()?;
        for number in self.all() {
            if self.seats[usize::from(number)].started.is_none() {
                self.start(number)?;
            }
        }
        Ok(())
    }

    /// Notes who has ended by itself. Only a disk is a reason to.
    pub fn take_leave(&mut self) -> Verdict {
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            let Some(started) = &seat.started else {
                continue;
            };
            if self.world.node_ended(machine(number as u16)) {
                if !seat.is_excused {
                    let why = started.failure();
                    return Err(format!("node {number} has ended by itself: {why:?}"));
                }
                seat.started = None;
                self.tally.ended += 1;
            }
        }
        Ok(())
    }

    /// Returns when each of `members` knows all of them.
    pub fn wait_for_cluster(&self, members: &[u16]) -> Verdict {
        let cores = members.len() * usize::from(self.config.cores);
        for number in members {
            let knows = |client| workload::knows_all(client, cores);
            let heard = self.talk_to(*number, knows);
            heard.map_err(|why| format!("{why}: of all others"))?;
        }
        Ok(())
    }

    /// Lets a client talk to a node; what it comes back with.
    pub fn talk_to<T: 'static, F: Future<Output = Verdict<T>> + 'static>(
        &self,
        number: u16,
        talk: impl FnOnce(Client) -> F,
    ) -> Verdict<T> {
        let client = Client::of(&self.life, address(number));
        let task = self.world.spawn_client(talk(client));
        if !self.world.run_until(|| task.is_done(), START_MAX) {
            return Err(format!("node {number} does not answer"));
        }
        let said = task.take().expect("it has ended");
        said.map_err(|why| format!("node {number}: {why}"))
    }

    /// True if the node was started and not ended since.
    pub fn is_up(&self, number: u16) -> bool {
        self.seats[usize::from(number)].started.is_some()
    }

    /// Returns when each of `members` has handed on what it kept for others.
    pub fn wait_for_hints(&self, members: &[u16]) -> Verdict {
        members.iter().try_for_each(|number| {
            let handed = self.talk_to(*number, workload::none_left);
            handed.map_err(|why| format!("hints stay: {why}"))
        })
    }

    /// Lets a client talk to each node, one after the other.
    pub fn talk<F: Future<Output = Verdict> + 'static>(
        &mut self,
        talk: impl Fn(Client) -> F,
    ) -> Verdict {
        let all = self.all();
        all.iter()
            .try_for_each(|number| self.talk_to(*number, &talk))
    }

    /// Lets clients work until the ledger says that it is over.
    pub fn spawn_clients(&mut self, ledger: &Rc<RefCell<Ledger>>) {
        let (least, most) = self.shape.clients;
        for _ in 0..self.chance.u64(least..=most) {
            let chance = fastrand::Rng::with_seed(self.chance.u64(..));
            let work = workload::work(Rc::clone(ledger), Rc::clone(&self.life), chance);
            let client = self.world.spawn_client(work);
            self.clients.push(client);
        }
    }

    /// All is well again, and clients still work.
    pub fn calm(&mut self) -> Verdict {
        self.make_peace();
        self.start_missing()?;
        self.world.run_for(self.shape.afterwards);
        self.wait_for_cluster(&self.all())
    }

    /// Clients go home, and what they have under way comes to its end.
    pub fn settle(&mut self, ledger: &Rc<RefCell<Ledger>>) -> Verdict {
        ledger.borrow_mut().is_over = true;
        let have_left = || self.clients.iter().all(Task::is_done);
        if !self.world.run_until(have_left, LEAVE_MAX) {
            return Err("a client does not come home".to_owned());
        }
        self.verdict()
    }

    /// Hints are handed on, and what they have not made equal is counted. Then each key is read
    /// from each node: they must tell the same, after readings at ALL or after many at ONE, and all
    /// holders of a key must hold the same record, byte by byte.
    pub fn converge(&mut self, ledger: &Rc<RefCell<Ledger>>) -> Verdict {
        self.converge_among(&self.all(), ledger)
    }

    /// The same, where only `members` are in the cluster.
    pub fn converge_among(&mut self, members: &[u16], ledger: &Rc<RefCell<Ledger>>) -> Verdict {
        let (level, keys) = (ledger.borrow().level, ledger.borrow().keys());
        self.wait_for_hints(members)?;
        let is_alone = members.len() == 1; // nobody has another replica, and nobody can ask as another node
        let differing = |scene: &Scene| match is_alone {
            true => Ok(Vec::new()),
            false => holders::differing(scene, &keys),
        };
        self.tally.apart = differing(self)?.len() as u64;
        let levels: &[&str] = match level {
            Level::One => {
                let count = keys.len() as u64;
                self.talk_to(0, |client| workload::repair_at_one(client, count))?;
                &["one"]
            }
            _ => &["all", "one"],
        };
        for number in members {
            let read = |client| workload::read_keys(Rc::clone(ledger), client, levels);
            self.talk_to(*number, read)?;
        }
        for (key, told) in &ledger.borrow().told_at_last {
            if told.iter().any(|value| *value != told[0]) {
                return Err(format!(
                    "key {key} is told differently in the end: {told:?}"
                ));
            }
        }
        match differing(self)?.first() {
            None => Ok(()),
            Some(difference) => Err(format!("replicas differ in the end: {difference}")),
        }
    }
}

/// Words of a request.
pub fn words(text: &str) -> crate::cluster::Request {
    request(text.split(' '))
}
