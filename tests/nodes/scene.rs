//! Three nodes in one world: how they form a cluster, go down, are cut off from each other, and come back.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use quoit::config::Config;
use quoit::http;
use quoit::rt::Bug;
use quoit::rt::sim::{NodeId, Options, Party, Task, World};
use quoit::shard::{self, NodeFacts};
use quoit::types::Level;

use crate::cluster::{Client, Life, Verdict, config, request};
use crate::workload::{self, KEYS, Ledger};

/// Where each node listens.
const PORT: u16 = 6379;
const CORE_PORT: u16 = 16379;
const HTTP_PORT: u16 = 8379;
const PEER_PORT: u16 = 7379;
const NODES: u16 = 3;
/// Virtual time within which a node must be up, and a cluster formed.
const START_MAX: Duration = Duration::from_secs(600);
/// Virtual time for what is under way to come to its end.
const CALM: Duration = Duration::from_secs(10);

type Main = Task<quoit::error::Result<()>>;

/// The world and the nodes in it.
pub struct Scene {
    pub world: World,
    pub crashes: u64,
    config: Config,
    chance: fastrand::Rng,
    life: Rc<Life>,
    /// By node: its cores' mains, while it is up.
    up: Vec<Option<Vec<Main>>>,
}

/// Where clients of node `number` connect.
pub fn address(number: u16) -> std::net::SocketAddr {
    NodeId(number + 1).address(PORT)
}

impl Scene {
    /// Three nodes that know each other.
    pub fn new(seed: u64, planted: &[Bug]) -> Verdict<Scene> {
        let mut options = Options::calm(seed);
        options.planted = planted.to_vec();
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x0DE5);
        options.net.delay_us = [(20, 200), (100, 5_000)][chance.usize(..2)];
        let cores = chance.u16(1..3);
        let mut config = config(cores, &mut chance);
        config.replica_timeout_ms = 1_000;
        config.gossip_interval_ms = 100;
        config.suspect_after_ms = 600;
        config.dead_after_ms = 2_000;
        let mut scene = Scene {
            world: World::new(options),
            crashes: 0,
            config,
            chance,
            life: Rc::default(),
            up: (0..NODES).map(|_| None).collect(),
        };
        for number in 0..NODES {
            let skew = scene.chance.i64(-600_000..600_000);
            scene.world.jump_clock(NodeId(number + 1), skew);
            scene.start(number)?;
        }
        scene.wait_for_cluster()?;
        Ok(scene)
    }

    fn start(&mut self, number: u16) -> Verdict {
        let machine = NodeId(number + 1);
        let mut config = self.config.clone();
        config.bind = machine.address(PORT).ip();
        config.dir = PathBuf::from("/data");
        let join = match number {
            0 => Vec::new(),
            _ => vec![NodeId(1).address(PEER_PORT)],
        };
        config.join = join.iter().map(ToString::to_string).collect();
        let cores = config.cores;
        let config = Rc::new(config);
        let facts = NodeFacts {
            address: machine.address(PORT),
            core_ports: (0..cores).map(|core| CORE_PORT + core).collect(),
            http: machine.address(HTTP_PORT),
            peer_ports: (0..cores).map(|core| PEER_PORT + core).collect(),
            join,
            cluster_key: b"a key that three nodes share".to_vec(),
            run_id: "0".repeat(40),
            process_id: 1,
            os: "a simulated one".to_owned(),
        };
        let is_ready = Rc::new(Cell::new(false));
        let tasks = self.world.start_node(machine, cores, |core| {
            let is_ready = Rc::clone(&is_ready);
            let ready = move || is_ready.set(true);
            shard::run(core, Rc::clone(&config), facts.clone(), http::serve, ready)
        });
        let done = || is_ready.get() || self.world.node_ended(machine);
        let came = self.world.run_until(done, START_MAX);
        if !came || !is_ready.get() {
            let why = tasks.iter().find_map(|task| task.take()?.err());
            return Err(format!("node {number} does not start: {why:?}"));
        }
        self.up[usize::from(number)] = Some(tasks);
        Ok(())
    }

    /// Returns when each node knows all others.
    fn wait_for_cluster(&mut self) -> Verdict {
        for number in 0..NODES {
            let client = Client::of(&self.life, address(number));
            let task = self.world.spawn_client(workload::knows_all(
                client,
                usize::from(NODES * self.config.cores),
            ));
            let done = || task.is_done();
            if !self.world.run_until(done, START_MAX) {
                return Err(format!("node {number} does not hear of all others"));
            }
            task.take().expect("it has ended")?;
        }
        Ok(())
    }

    /// Lets a client talk to each node, one after the other.
    pub fn talk<F: Future<Output = Verdict> + 'static>(
        &mut self,
        talk: impl Fn(Client) -> F,
    ) -> Verdict {
        for number in 0..NODES {
            let client = Client::of(&self.life, address(number));
            let task = self.world.spawn_client(talk(client));
            if !self.world.run_until(|| task.is_done(), START_MAX) {
                return Err(format!("node {number} does not answer"));
            }
            task.take()
                .expect("it has ended")
                .map_err(|why| format!("node {number}: {why}"))?;
        }
        Ok(())
    }

    /// Lets clients work until the ledger says that it is over.
    pub fn spawn_clients(&mut self, ledger: &Rc<RefCell<Ledger>>) {
        for number in 0..self.chance.u64(2..6) {
            let chance = fastrand::Rng::with_seed(self.chance.u64(..));
            let work = workload::work(Rc::clone(ledger), Rc::clone(&self.life), number, chance);
            self.world.spawn_client(work);
        }
    }

    /// Crashes, partitions, pauses and wrong clocks.
    pub fn storm(&mut self) -> Verdict {
        for _ in 0..self.chance.u32(10..40) {
            let pause = self.chance.u64(1_000..400_000);
            self.world.run_for(Duration::from_micros(pause));
            let number = self.chance.u16(..NODES);
            let (one, other) = (NodeId(number + 1), NodeId((number + 1) % NODES + 1));
            match self.chance.u8(..12) {
                0..3 => self.crash(number),
                3..6 => self.start_missing()?,
                6 => self.world.cut(Party::Node(one), Party::Node(other)),
                7 => {
                    for away in (0..NODES)
                        .map(|away| NodeId(away + 1))
                        .filter(|away| *away != one)
                    {
                        self.world.cut(Party::Node(one), Party::Node(away));
                    }
                }
                8..10 => self.world.heal_all(),
                10 => {
                    let pause = Duration::from_millis(self.chance.u64(1..800));
                    self.world.pause_node(one, pause);
                }
                _ => {
                    let jump = self.chance.i64(-60_000..60_000);
                    self.world.jump_clock(one, jump);
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self, number: u16) {
        if self.up[usize::from(number)].take().is_some() {
            self.crashes += 1;
            match self.chance.bool() {
                true => self.world.crash_node(NodeId(number + 1)),
                false => self.world.kill_node(NodeId(number + 1)),
            }
        }
    }

    fn start_missing(&mut self) -> Verdict {
        for number in 0..NODES {
            if self.up[usize::from(number)].is_none() {
                self.start(number)?;
            }
        }
        Ok(())
    }

    /// All is well again, and clients still work.
    pub fn calm(&mut self) -> Verdict {
        self.world.heal_all();
        self.start_missing()?;
        self.world.run_for(CALM);
        self.wait_for_cluster()
    }

    /// What clients have under way comes to its end.
    pub fn settle(&mut self) -> Verdict {
        self.world.run_for(CALM);
        self.life.verdict()
    }

    /// Reads each key from each node: they must tell the same, after readings at ALL or after many at ONE.
    pub fn read_all(&mut self, ledger: &Rc<RefCell<Ledger>>, level: Level) -> Verdict {
        let levels: &[&str] = match level {
            Level::One => {
                self.talk(workload::repair_at_one)?;
                &["one"]
            }
            _ => &["all", "one"],
        };
        self.talk(|client| workload::read_keys(Rc::clone(ledger), client, levels))?;
        let ledger = ledger.borrow();
        for key in 0..KEYS {
            let told = &ledger.told_at_last[&key];
            if told.iter().any(|value| *value != told[0]) {
                return Err(format!(
                    "key {key} is told differently in the end: {told:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Words of a request.
pub fn words(text: &str) -> crate::cluster::Request {
    request(text.split(' '))
}
