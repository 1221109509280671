//! A whole node in a simulated world, and clients that speak RESP to it.
//!
//! A node's cores run `shard::run`, as they do for real; nothing in it knows that it is simulated.
//! A client here is a user's program: it sends requests, takes replies, and finds its connection
//! broken when the node goes down. What it was not told is unknown to it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytesize::ByteSize;
use futures_lite::future;
use quoit::config::{CompactionName, Compression, Config};
use quoit::error::Error;
use quoit::http;
use quoit::rt::sim::{NodeId, Task, World};
use quoit::rt::sync::Signal;
use quoit::rt::{self, Stream};
use quoit::shard::{self, NodeFacts};

/// What a check has found to be wrong.
pub type Verdict<T = ()> = Result<T, String>;

/// The one node of these tests.
pub const NODE: NodeId = NodeId(1);
const PORT: u16 = 6379;
pub const CORE_PORT: u16 = 16379;
const HTTP_PORT: u16 = 8379;
/// Where core 0 listens for other nodes; the other cores' ports follow.
pub const PEER_PORT: u16 = 7379;
/// What nodes of its cluster must know.
pub const CLUSTER_KEY: &[u8] = b"the cluster's key";
/// Virtual time within which a node must be up, or gone.
const START_MAX: Duration = Duration::from_secs(3600);
/// Virtual time after which a reply that has not come never will.
const REPLY_MAX: Duration = Duration::from_secs(1200);
/// Virtual time for a client to try again to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Small sizes, chosen by chance, so that a short run flushes, merges and recycles.
pub fn config(cores: u16, chance: &mut fastrand::Rng) -> Config {
    let mut config = Config {
        dir: PathBuf::from("/data"),
        bind: NODE.address(PORT).ip(),
        port: PORT,
        cores,
        ..Config::default()
    };
    config.memory = ByteSize::mib(u64::from(cores) * [1, 2, 8][chance.usize(..3)]);
    let storage = &mut config.storage;
    storage.memtable = ByteSize::kib([64, 64, 128, 256][chance.usize(..4)]);
    storage.wal_segment = ByteSize::kib([64, 64, 96, 128][chance.usize(..4)]);
    storage.wal_max = ByteSize(storage.wal_segment.0 * chance.u64(2..5));
    storage.wal_batch = ByteSize::kib([4, 16, 64, 256][chance.usize(..4)]);
    storage.table_max = ByteSize::kib([64, 128, 1024][chance.usize(..3)]);
    storage.compaction = [CompactionName::Leveled, CompactionName::SizeTiered][chance.usize(..2)];
    storage.level_base = ByteSize::kib([64, 128, 512][chance.usize(..3)]);
    storage.level_ratio = chance.u64(2..5);
    let values = &mut config.value_log;
    values.threshold = ByteSize::b([16, 100, 1024, 1 << 20][chance.usize(..4)]);
    values.segment = ByteSize::kib([64, 64, 96, 256][chance.usize(..4)]);
    values.replay_max = ByteSize(values.segment.0 * chance.u64(2..6));
    values.garbage_max_percent = chance.u64(5..40);
    values.compression = [Compression::Lz4, Compression::None][chance.usize(..2)];
    config.storage.compression = [Compression::Lz4, Compression::None][chance.usize(..2)];
    config.storage.index_share_percent = [0, 1, 40][chance.usize(..3)];
    // A network here may be slower than any for which a request is late.
    config.limits.http_request_timeout_s = 3600;
    config.check().expect("these sizes are allowed");
    config
}

/// One start of a node.
pub struct Started {
    machine: NodeId,
    /// Its cores' mains.
    tasks: Vec<Task<quoit::error::Result<()>>>,
    is_ready: Rc<Cell<bool>>,
}

impl Started {
    /// True once it accepts clients.
    pub fn is_ready(&self) -> bool {
        self.is_ready.get()
    }

    /// Returns when it accepts clients, has ended, or `time` is over.
    pub fn settle(&self, world: &World, time: Duration) {
        world.run_until(|| self.is_ready() || world.node_ended(self.machine), time);
    }

    /// Why it has ended. Told once.
    pub fn failure(&self) -> Option<Error> {
        self.tasks
            .iter()
            .find_map(|task| task.take().and_then(Result::err))
    }
}

/// Where clients of `machine` connect.
pub fn address_of(machine: NodeId) -> SocketAddr {
    machine.address(PORT)
}

/// Where core 0 of `machine` listens for other nodes.
pub fn peer_address_of(machine: NodeId) -> SocketAddr {
    machine.address(PEER_PORT)
}

/// Starts a node on `machine`, which asks the machines of `join` to let it in if it is in no
/// cluster yet.
pub fn launch(world: &World, machine: NodeId, config: &Config, join: &[NodeId]) -> Started {
    let join = join.iter().map(|other| peer_address_of(*other)).collect();
    launch_beside(world, machine, config, join)
}

/// The same, where the others listen at these addresses.
pub fn launch_beside(
    world: &World,
    machine: NodeId,
    config: &Config,
    join: Vec<SocketAddr>,
) -> Started {
    let cores = config.cores;
    let config = Rc::new(Config {
        bind: address_of(machine).ip(),
        join: join.iter().map(ToString::to_string).collect(),
        ..config.clone()
    });
    let facts = NodeFacts {
        address: address_of(machine),
        core_ports: (0..cores).map(|core| CORE_PORT + core).collect(),
        http: machine.address(HTTP_PORT),
        peer_ports: (0..cores).map(|core| config.peer_port + core).collect(),
        join,
        cluster_key: CLUSTER_KEY.to_vec(),
        run_id: "0".repeat(40),
        process_id: 1,
        os: "a simulated one".to_owned(),
    };
    let is_ready = Rc::new(Cell::new(false));
    let tasks = world.start_node(machine, cores, |core| {
        let is_ready = Rc::clone(&is_ready);
        let ready = Box::new(move || is_ready.set(true));
        shard::run(core, Rc::clone(&config), facts.clone(), http::serve, ready)
    });
    Started {
        machine,
        tasks,
        is_ready,
    }
}

/// A node that is up.
pub struct Node {
    started: Started,
    /// What its clients share.
    pub life: Rc<Life>,
}

/// One life of a node, as its clients see it.
#[derive(Default)]
pub struct Life {
    stopping: Cell<bool>,
    over: Cell<bool>,
    ended: Signal,
    /// What some client has found to be wrong.
    wrong: RefCell<Option<String>>,
}

impl Life {
    /// True when clients are to go home.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Notes what is wrong, if it is the first.
    pub fn note(&self, verdict: Verdict) {
        if let Err(why) = verdict {
            self.wrong.borrow_mut().get_or_insert(why);
        }
    }

    /// What was found to be wrong so far.
    pub fn verdict(&self) -> Verdict {
        match self.wrong.borrow().clone() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// True once something is wrong.
    pub fn is_wrong(&self) -> bool {
        self.wrong.borrow().is_some()
    }

    /// Sends the clients home.
    pub fn end(&self) {
        self.over.set(true);
        self.ended.wake_all();
    }

    async fn over(&self) {
        self.ended.wait_for(|| self.is_over().then_some(())).await;
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The power is cut.
    PowerCut,
    /// The process is killed; the machine stays up.
    Kill,
    /// The process is asked to end, and does.
    Stop,
}

impl Node {
    /// Starts the node; returns when it accepts clients.
    pub fn start(world: &World, config: &Config) -> Verdict<Node> {
        match Node::start_within(world, config, START_MAX)? {
            Some(node) => Ok(node),
            None => Err("the node neither starts nor says why it does not".to_owned()),
        }
    }

    /// Starts the node, and ends it at some moment of its start, or later.
    pub fn start_in_vain(world: &World, config: &Config, moment: Duration, end: End) -> Verdict {
        match Node::start_within(world, config, moment)? {
            Some(node) => node.end(world, end),
            None if end == End::PowerCut => {
                world.crash_node(NODE);
                Ok(())
            }
            None => {
                world.kill_node(NODE);
                Ok(())
            }
        }
    }

    /// Starts the node; `None` if it does not accept clients within `time`, and has not ended.
    fn start_within(world: &World, config: &Config, time: Duration) -> Verdict<Option<Node>> {
        let started = launch(world, NODE, config, &[]);
        started.settle(world, time);
        match started.is_ready() {
            true => Ok(Some(Node {
                started,
                life: Rc::default(),
            })),
            false if !world.node_ended(NODE) => Ok(None),
            false => Err(match started.failure() {
                Some(error) => format!("the node does not start: {error:?}"),
                None => "the node does not start, and says nothing".to_owned(),
            }),
        }
    }

    /// Ends this life, and says what was found to be wrong in it.
    pub fn end(self, world: &World, end: End) -> Verdict {
        match end {
            End::PowerCut => world.crash_node(NODE),
            End::Kill => world.kill_node(NODE),
            End::Stop => {
                self.life.stopping.set(true);
                world.stop_node(NODE);
                if !world.run_until(|| world.node_ended(NODE), START_MAX) {
                    return Err("the node was asked to stop and does not".to_owned());
                }
                if let Some(error) = self.started.failure() {
                    return Err(format!("the node did not stop well: {error}"));
                }
            }
        }
        self.life.end();
        self.life.verdict()
    }

    /// Runs one client of this life to its end.
    pub fn ask<T: 'static, F: Future<Output = Verdict<T>> + 'static>(
        &self,
        world: &World,
        work: impl FnOnce(Client) -> F,
    ) -> Verdict<T> {
        let task = world.spawn_client(work(Client::new(&self.life)));
        if !world.run_until(|| task.is_done(), START_MAX) {
            return Err("a client waits for a reply that never comes".to_owned());
        }
        task.take().expect("it has ended")
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Simple(String),
    /// An error, as it was said.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string.
    Bulk(Vec<u8>),
    /// No value.
    Nil,
    /// Several replies.
    Array(Vec<Reply>),
}

impl Reply {
    fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// A string, or `None` for no value.
    pub fn value(self) -> Verdict<Option<Vec<u8>>> {
        match self {
            Reply::Bulk(bytes) => Ok(Some(bytes)),
            Reply::Nil => Ok(None),
            other => Err(format!("{other:?} is no value")),
        }
    }

    /// A number, also one that is told as a string; no value is 0.
    pub fn number(&self) -> Verdict<i64> {
        let text = match self {
            Reply::Integer(number) => return Ok(*number),
            Reply::Nil => return Ok(0),
            Reply::Bulk(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            _ => "",
        };
        text.parse().map_err(|_| format!("{self:?} is no number"))
    }

    /// The replies in an array.
    pub fn items(self) -> Verdict<Vec<Reply>> {
        match self {
            Reply::Array(items) => Ok(items),
            other => Err(format!("{other:?} is no array")),
        }
    }
}

/// A request: its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request(Vec<Vec<u8>>);

/// Makes a request of words.
pub fn request<W: AsRef<[u8]>>(words: impl IntoIterator<Item = W>) -> Request {
    Request(
        words
            .into_iter()
            .map(|word| word.as_ref().to_vec())
            .collect(),
    )
}

impl Request {
    /// Adds a word.
    pub fn with(mut self, word: impl AsRef<[u8]>) -> Request {
        self.0.push(word.as_ref().to_vec());
        self
    }

    /// Its words, each cut short.
    pub fn describe(&self) -> String {
        let start = |word: &Vec<u8>| {
            let start = word.iter().take(24).copied();
            String::from_utf8_lossy(&start.collect::<Vec<u8>>()).into_owned()
        };
        self.0.iter().map(start).collect::<Vec<_>>().join(" ")
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("*{}\r\n", self.0.len()).as_bytes());
        for word in &self.0 {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// A user's program with one connection, made anew when it breaks.
pub struct Client {
    life: Rc<Life>,
    address: SocketAddr,
    stream: Option<Stream>,
    input: Vec<u8>,
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(life: &Rc<Life>) -> Client {
        Client::of(life, NODE.address(PORT))
    }

    /// One that will speak HTTP.
    pub fn of_web(life: &Rc<Life>) -> Client {
        Client::of(life, NODE.address(HTTP_PORT))
    }

    /// One that will connect to this address.
    pub fn of(life: &Rc<Life>, address: SocketAddr) -> Client {
        Client {
            life: Rc::clone(life),
            address,
            stream: None,
            input: Vec::new(),
        }
    }

    /// The life that it lives in.
    pub fn life(&self) -> &Rc<Life> {
        &self.life
    }

    /// Drops the connection, if there is one.
    pub fn hang_up(&mut self) {
        self.stream = None;
        self.input.clear();
    }

    /// True if it is connected; false only if the life is over.
    pub async fn connect(&mut self) -> bool {
        while !self.try_connect().await && !self.life.is_over() {
            rt::sleep(CONNECT_PAUSE).await;
        }
        self.stream.is_some() && !self.life.is_over()
    }

    /// Tries once; true if it is connected.
    pub async fn try_connect(&mut self) -> bool {
        if self.stream.is_none() {
            let connected = async { Stream::connect(self.address).await.ok() };
            let over = async {
                self.life.over().await;
                None
            };
            self.stream = future::or(connected, over).await;
            self.input.clear();
        }
        self.stream.is_some()
    }

    /// Sends `requests` in one go. The replies that came before the connection broke or the life
    /// was over: all of them, if nothing happened.
    pub async fn call(&mut self, requests: &[Request]) -> Verdict<Vec<Reply>> {
        let mut bytes = Vec::new();
        requests
            .iter()
            .for_each(|request| request.encode(&mut bytes));
        let replies = self.exchange(&bytes, requests.len(), parse, Reply::is_error);
        replies.await.map_err(|count| {
            let request = requests.get(count).map(Request::describe);
            format!("no reply to {request:?}")
        })
    }

    /// Sends `bytes`, which are so many requests, and reads replies with `parse`. An error: so many
    /// came, and no more in all the time that there is.
    pub async fn exchange<T>(
        &mut self,
        bytes: &[u8],
        requests: usize,
        parse: impl Fn(&[u8]) -> Option<(T, usize)>,
        is_error: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, usize> {
        let mut replies = Vec::with_capacity(requests);
        let Some(mut stream) = self.stream.take() else {
            return Ok(replies);
        };
        let input = &mut self.input;
        let talk = async {
            stream.write_all(bytes).await.ok()?;
            while replies.len() < requests {
                match parse(input) {
                    Some((reply, consumed)) => {
                        input.drain(..consumed);
                        if self.life.stopping.get() && is_error(&reply) {
                            return None; // who comes too late is sent home as well
                        }
                        replies.push(reply);
                    }
                    None => {
                        let mut piece = [0; 4096];
                        let count = stream.read(&mut piece).await.ok()?;
                        if count == 0 {
                            return None;
                        }
                        input.extend_from_slice(&piece[..count]);
                    }
                }
            }
            Some(true)
        };
        let over = async {
            self.life.over().await;
            None
        };
        let late = async {
            rt::sleep(REPLY_MAX).await;
            Some(false)
        };
        match future::or(talk, future::or(over, late)).await {
            Some(true) => self.stream = Some(stream),
            Some(false) => return Err(replies.len()),
            None => {}
        }
        Ok(replies)
    }

    /// Sends `requests` and must get all replies: nothing is meant to break meanwhile.
    pub async fn must(&mut self, requests: &[Request]) -> Verdict<Vec<Reply>> {
        for _ in 0..100 {
            self.connect().await;
            let replies = self.call(requests).await?;
            if replies.len() == requests.len() {
                return Ok(replies);
            }
        }
        Err("the connection breaks again and again".to_owned())
    }
}

/// The first reply in `input`, and its length; `None`: it is not all there yet.
fn parse(input: &[u8]) -> Option<(Reply, usize)> {
    let end = input.windows(2).position(|two| two == b"\r\n")?;
    let line = std::str::from_utf8(&input[1..end]).expect("lines are text");
    let after = end + 2;
    let number = || line.parse::<i64>().expect("a length or a number");
    let reply = match input[0] {
        b'+' => Reply::Simple(line.to_owned()),
        b'-' => Reply::Error(line.to_owned()),
        b':' => Reply::Integer(number()),
        b'$' if number() < 0 => Reply::Nil,
        b'$' => {
            let length = number() as usize;
            let bytes = input.get(after..after + length)?.to_vec();
            input.get(after + length..after + length + 2)?;
            return Some((Reply::Bulk(bytes), after + length + 2));
        }
        b'*' if number() < 0 => Reply::Nil,
        b'*' => {
            let mut items = Vec::new();
            let mut at = after;
            for _ in 0..number() {
                let (item, length) = parse(&input[at..])?;
                items.push(item);
                at += length;
            }
            return Some((Reply::Array(items), at));
        }
        other => panic!("a reply of an unknown kind: {other}"),
    };
    Some((reply, after))
}
