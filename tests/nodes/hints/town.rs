//! Some nodes that keep hints for each other: how they go down, at any moment of a handing on, and come back.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use quoit::config::Config;
use quoit::http;
use quoit::rt;
use quoit::rt::Bug;
use quoit::rt::sim::{NodeId, Options, Party, Task, World};
use quoit::shard::{self, NodeFacts};

use crate::cluster::{Client, Life, Reply, Verdict, config, request};
use crate::scene::{address, words};
use crate::workload;

const CORE_PORT: u16 = 16379;
const HTTP_PORT: u16 = 8379;
const PEER_PORT: u16 = 7379;
/// Virtual time within which a node must be up, a cluster formed, and all hints handed on.
const PATIENCE: Duration = Duration::from_secs(600);
/// Virtual time after which what a coordinator has begun is done, and what it is to keep is kept.
pub const GRACE: Duration = Duration::from_secs(5);

type Main = Task<quoit::error::Result<()>>;

/// The world and the nodes in it, which are counted from 0.
pub struct Town {
    pub world: World,
    pub config: Config,
    pub chance: fastrand::Rng,
    pub life: Rc<Life>,
    nodes: u16,
    /// By node: its cores' mains, while it is up.
    up: Vec<Option<Vec<Main>>>,
    /// By node: when its lives ended.
    pub ends: Vec<Vec<Duration>>,
}

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    Kill,
    PowerCut,
}

impl Town {
    /// So many nodes that know each other, in a cluster that holds data.
    pub fn new(seed: u64, nodes: u16, planted: &[Bug]) -> Verdict<Town> {
        let mut options = Options::calm(seed);
        options.planted = planted.to_vec();
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x4149_4E54);
        options.net.delay_us = [(20, 200), (100, 3_000)][chance.usize(..2)];
        let cores = chance.u16(1..3);
        let mut config = config(cores, &mut chance);
        config.replica_timeout_ms = 1_000;
        config.gossip_interval_ms = 100;
        config.suspect_after_ms = 600;
        config.dead_after_ms = 2_000;
        config.hint_max_bytes = bytesize::ByteSize::mib(16);
        let mut town = Town {
            world: World::new(options),
            config,
            chance,
            life: Rc::default(),
            nodes,
            up: (0..nodes).map(|_| None).collect(),
            ends: vec![Vec::new(); usize::from(nodes)],
        };
        for number in 0..nodes {
            let skew = town.chance.i64(-600_000..600_000);
            town.world.jump_clock(NodeId(number + 1), skew);
            town.start(number)?;
        }
        town.wait_for(nodes)?;
        town.ask(0, |mut client| async move {
            let first = words("KV.PUT first 1 CONSISTENCY all");
            while !matches!(client.must(&[first.clone()]).await?[0], Reply::Array(_)) {
                rt::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        })?;
        Ok(town)
    }

    /// All nodes.
    pub fn all(&self) -> std::ops::Range<u16> {
        0..self.nodes
    }

    pub fn is_up(&self, number: u16) -> bool {
        self.up[usize::from(number)].is_some()
    }

    /// Starts a node, if it is not up.
    pub fn start(&mut self, number: u16) -> Verdict {
        if self.is_up(number) {
            return Ok(());
        }
        let machine = NodeId(number + 1);
        let mut config = self.config.clone();
        config.bind = address(number).ip();
        config.dir = PathBuf::from("/data");
        let join = match number {
            0 => Vec::new(),
            _ => vec![NodeId(1).address(PEER_PORT)],
        };
        config.join = join.iter().map(ToString::to_string).collect();
        let cores = config.cores;
        let config = Rc::new(config);
        let facts = NodeFacts {
            address: address(number),
            core_ports: (0..cores).map(|core| CORE_PORT + core).collect(),
            http: machine.address(HTTP_PORT),
            peer_ports: (0..cores).map(|core| PEER_PORT + core).collect(),
            join,
            cluster_key: b"a key that all nodes share".to_vec(),
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
        if !self.world.run_until(done, PATIENCE) || !is_ready.get() {
            let why = tasks.iter().find_map(|task| task.take()?.err());
            return Err(format!("node {number} does not start: {why:?}"));
        }
        self.up[usize::from(number)] = Some(tasks);
        Ok(())
    }

    /// Starts all that are not up.
    pub fn start_all(&mut self) -> Verdict {
        self.all().try_for_each(|number| self.start(number))
    }

    /// Ends a node, if it is up.
    pub fn bring_down(&mut self, number: u16, fall: Fall) {
        if self.up[usize::from(number)].take().is_some() {
            self.ends[usize::from(number)].push(self.world.elapsed());
            match fall {
                Fall::Kill => self.world.kill_node(NodeId(number + 1)),
                Fall::PowerCut => self.world.crash_node(NodeId(number + 1)),
            }
        }
    }

    /// Ends a node in some way.
    pub fn bring_down_somehow(&mut self, number: u16) {
        let fall = [Fall::Kill, Fall::PowerCut][self.chance.usize(..2)];
        self.bring_down(number, fall);
    }

    /// Cuts two nodes off from each other.
    pub fn cut(&self, one: u16, other: u16) {
        let party = |number| Party::Node(NodeId(number + 1));
        self.world.cut(party(one), party(other));
    }

    /// Returns when each node that is up may ask so many nodes.
    pub fn wait_for(&mut self, there: u16) -> Verdict {
        let cores = usize::from(there * self.config.cores);
        for number in self.all().filter(|number| self.is_up(*number)) {
            self.ask(number, move |client| workload::knows_all(client, cores))
                .map_err(|why| format!("node {number} does not see {there} nodes: {why}"))?;
        }
        Ok(())
    }

    /// Lets a client talk to a node.
    pub fn ask<T: 'static, F: Future<Output = Verdict<T>> + 'static>(
        &self,
        number: u16,
        talk: impl FnOnce(Client) -> F,
    ) -> Verdict<T> {
        let client = Client::of(&self.life, address(number));
        let task = self.world.spawn_client(talk(client));
        if !self.world.run_until(|| task.is_done(), PATIENCE) {
            return Err(format!("node {number} does not answer"));
        }
        task.take().expect("it has ended")
    }

    /// What INFO says of hints under this name.
    pub fn info(&self, number: u16, name: &'static str) -> Verdict<u64> {
        self.ask(number, move |mut client| async move {
            info(&mut client, name).await
        })
    }

    /// All is well, and nodes have what was kept for them.
    pub fn mend(&mut self) -> Verdict {
        self.world.heal_all();
        self.start_all()?;
        self.world.run_for(GRACE);
        self.wait_for(self.nodes)?;
        for number in self.all() {
            self.ask(number, none_left)
                .map_err(|why| format!("hints of node {number} stay: {why}"))?;
        }
        self.life.verdict()
    }
}

async fn info(client: &mut Client, name: &str) -> Verdict<u64> {
    let replies = client.must(&[words("INFO cluster")]).await?;
    let Some(Reply::Bulk(text)) = replies.into_iter().next() else {
        return Err("INFO is no text".to_owned());
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(found, _)| *found == name);
    let value = value.ok_or_else(|| format!("INFO does not tell {name}"))?;
    value
        .1
        .parse()
        .map_err(|_| format!("{value:?} is no number"))
}

/// Returns when the node keeps no hint any more.
async fn none_left(mut client: Client) -> Verdict {
    let mut quiet = 0;
    while quiet < 3 {
        match info(&mut client, "hint_bytes").await? {
            0 => quiet += 1,
            _ => quiet = 0,
        }
        rt::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Puts `value` under each of these keys at `level`; what each was told.
pub async fn put(
    mut client: Client,
    keys: std::ops::Range<u64>,
    value: String,
    level: &'static str,
) -> Verdict<Vec<Reply>> {
    let put = |key: u64| {
        let words = [
            "KV.PUT",
            &format!("key:{key}"),
            &value,
            "CONSISTENCY",
            level,
        ];
        request(words)
    };
    let requests: Vec<_> = keys.map(put).collect();
    let mut replies = Vec::new();
    for some in requests.chunks(20) {
        replies.extend(client.must(some).await?);
    }
    Ok(replies)
}

/// What a node tells at ONE of each of these keys: its version and its value.
pub async fn get(
    mut client: Client,
    keys: std::ops::Range<u64>,
) -> Verdict<Vec<Option<(String, String)>>> {
    let mut told = Vec::new();
    for key in keys {
        let get = words(&format!("KV.GET key:{key} CONSISTENCY one"));
        let reply = client.must(&[get]).await?.remove(0);
        told.push(entry(&reply)?);
    }
    Ok(told)
}

fn entry(reply: &Reply) -> Verdict<Option<(String, String)>> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::Array(_) => {
            let of = |name| field(reply, name).ok_or_else(|| format!("no {name} in {reply:?}"));
            Ok(Some((of("version")?, of("value")?)))
        }
        other => Err(format!("a key is told as {other:?}")),
    }
}

/// The field of this name in a map that was told.
pub fn field(reply: &Reply, name: &str) -> Option<String> {
    let Reply::Array(items) = reply else {
        return None;
    };
    let text = |reply: &Reply| match reply {
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    let mut pairs = items.chunks(2).filter(|pair| pair.len() == 2);
    let pair = pairs.find(|pair| text(&pair[0]) == name)?;
    Some(text(&pair[1]))
}
