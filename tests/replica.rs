//! A node as a replica: another one sends it records and asks what it holds, while it loses its power again and again.
//!
//! The other node is this test: it sends records with versions in any order, some of them twice, and remembers what it was
//! told. `SEED=n` runs that seed, `QUOIT_SEEDS=n` so many; a failure prints the line that repeats it.

#[path = "sim/cluster.rs"]
mod cluster;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use cluster::{CLUSTER_KEY, End, NODE, Node, PEER_PORT, Verdict, config};
use quoit::cluster::map::{Holder, NodeId};
use quoit::cluster::peers::{Event, Identity, PeerAddress, PeerLimits, Peers, Unanswered};
use quoit::cluster::ring::Map;
use quoit::protocol::peer::handshake::{Connecting, Side};
use quoit::protocol::peer::{
    self, Answer, Certainty, Frame, Limits, Message, Mutation, OwnedAnswer, Parsed, Request, Want,
};
use quoit::rt::sim::{self, Options, World};
use quoit::rt::{self, Bug, Core, Stream};
use quoit::types::{CoreId, Meta, Position, Version};

/// The node that this test plays.
const OTHER: sim::NodeId = sim::NodeId(9);
const KEYS: u64 = 12;
const SEEDS: u64 = 25;
/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 200;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What is known of one key: what the node must have, and what it may have.
#[derive(Clone, Debug, Default)]
struct Known {
    /// It was told to be stored, or was read: nothing older may be read any more.
    floor: Version,
    /// Sent, and perhaps stored; with how many are under way or without an answer.
    possible: BTreeMap<Version, u32>,
}

#[derive(Default)]
struct Ledger {
    keys: RefCell<BTreeMap<u64, Known>>,
    wrong: RefCell<Option<String>>,
    done: std::cell::Cell<u64>,
    read: std::cell::Cell<u64>,
}

impl Ledger {
    fn wrong(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }
}

fn key_of(number: u64) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// What is written with a version: that alone decides.
fn record_of(number: u64, version: Version) -> (Meta, Vec<u8>) {
    let mut chance = fastrand::Rng::with_seed(version.clock << 8 ^ number);
    // A node that is alone may drop what is deleted or expired: that is told where there are several.
    let tombstone = false;
    let meta = Meta {
        version,
        expiry: [0, u64::MAX][chance.usize(..2)],
        tombstone,
    };
    let length = [10, 100, 3000][chance.usize(..3)];
    let value = (0..length).map(|_| chance.u8(..)).collect();
    match tombstone {
        true => (Meta { expiry: 0, ..meta }, Vec::new()),
        false => (meta, value),
    }
}

/// Asks the node over a bare connection who it is.
async fn who_is_there() -> Option<Side> {
    let mut stream = Stream::connect(NODE.address(PEER_PORT)).await.ok()?;
    let (_, hello) = Connecting::start(Side::newcomer([1; 32]), None);
    let mut bytes = Vec::new();
    let frame = Frame {
        id: 0,
        deadline_ms: 0,
        epoch: 0,
        message: Message::Hello(hello),
    };
    peer::encode(&frame, peer::VERSION, &mut bytes);
    stream.write_all(&bytes).await.ok()?;
    let mut input = Vec::new();
    loop {
        match peer::parse(&input, &Limits::greeting()) {
            Parsed::Frame { frame, .. } => match frame.message {
                Message::Welcome(welcome) => return Some(welcome.side),
                _ => return None,
            },
            Parsed::Violation(_) => return None,
            Parsed::Incomplete { .. } => {
                let mut piece = [0; 500];
                let count = stream
                    .read(&mut piece)
                    .await
                    .ok()
                    .filter(|count| *count > 0)?;
                input.extend_from_slice(&piece[..count]);
            }
        }
    }
}

/// This test, as a node.
struct Coordinator {
    peers: Rc<Peers>,
    cores: u16,
    host: String,
    ledger: Rc<Ledger>,
}

impl Coordinator {
    async fn new(cores: u16, ledger: Rc<Ledger>) -> Coordinator {
        let side = loop {
            match who_is_there().await {
                Some(side) => break side,
                None => rt::sleep(MS * 20).await,
            }
        };
        let limits = PeerLimits {
            key_bytes_max: 64 << 10,
            value_bytes_max: 1 << 20,
            requests_max: 100,
            waiting_bytes_max: 1 << 20,
            served_max: 1,
            greeting_max: 1,
            greeting_time_max: SECOND * 3,
            pause_min: MS * 10,
            pause_max: MS * 100,
            silence_max: SECOND * 5,
        };
        let peers = Peers::new(CoreId(0), CLUSTER_KEY, limits, |_: Event| {});
        peers.set_identity(Identity {
            cluster: side.cluster,
            node: NodeId(OTHER.0),
        });
        peers.set_epoch(side.epoch);
        Coordinator {
            peers,
            cores,
            host: NODE.address(PEER_PORT).ip().to_string(),
            ledger,
        }
    }

    fn core_of(&self, key: &[u8]) -> CoreId {
        Map::one_node(self.cores).core_of(Position::of(key))
    }

    async fn ask(
        &self,
        core: CoreId,
        request: &Request<'_>,
        patience: Duration,
    ) -> Result<OwnedAnswer, Unanswered> {
        let to = Holder {
            node: NodeId(NODE.0),
            core,
        };
        let address = PeerAddress {
            host: &self.host,
            port: PEER_PORT + core.0,
        };
        let answered = self
            .peers
            .ask(to, address, request, rt::now() + patience)
            .await?;
        if let Answer::StaleEpoch { epoch } = answered.answer.view() {
            self.peers.set_epoch(epoch);
        }
        Ok(answered.answer)
    }

    async fn write(&self, number: u64, version: Version, patience: Duration) {
        let (key, (meta, value)) = (key_of(number), record_of(number, version));
        {
            let mut keys = self.ledger.keys.borrow_mut();
            let known = keys.entry(number).or_default();
            *known.possible.entry(version).or_default() += 1;
        }
        let request = Request::Write(Mutation {
            meta,
            key: &key,
            value: &value,
        });
        let asked = self.ask(self.core_of(&key), &request, patience).await;
        let mut keys = self.ledger.keys.borrow_mut();
        let known = keys.entry(number).or_default();
        let certainty = match asked.as_ref().map(OwnedAnswer::view) {
            Ok(Answer::Done) => {
                known.floor = known.floor.max(version);
                self.ledger.done.set(self.ledger.done.get() + 1);
                return;
            }
            Ok(Answer::Failed { certainty, .. }) => certainty,
            Ok(Answer::Busy | Answer::StaleEpoch { .. }) => Certainty::NotDone,
            Ok(other) => return self.ledger.wrong(format!("{other:?} to a write")),
            Err(unanswered) => unanswered.certainty(),
        };
        if certainty == Certainty::NotDone {
            let count = known.possible.entry(version).or_default();
            *count -= 1;
            if *count == 0 {
                known.possible.remove(&version);
            }
        }
    }

    async fn read(&self, number: u64, want: Want) {
        let key = key_of(number);
        let floor = self.known(number).floor;
        let request = Request::Read {
            key: &key,
            want,
            now: 1000,
        };
        let asked = self.ask(self.core_of(&key), &request, SECOND * 10).await;
        let held = match asked.as_ref().map(OwnedAnswer::view) {
            Ok(Answer::Holds(held)) => held,
            Ok(Answer::Failed { .. } | Answer::Busy | Answer::StaleEpoch { .. }) | Err(_) => return,
            Ok(other) => return self.ledger.wrong(format!("{other:?} to a read")),
        };
        self.ledger.read.set(self.ledger.read.get() + 1);
        let version = held.meta.version;
        let known = self.known(number);
        if version < floor {
            let what = format!("key {number} has {version:?}, though {floor:?} was there");
            return self.ledger.wrong(what);
        }
        if version == Version::ZERO {
            return;
        }
        if !known.possible.contains_key(&version) && version != known.floor {
            return self
                .ledger
                .wrong(format!("key {number} has {version:?}, which nobody wrote"));
        }
        let (meta, value) = record_of(number, version);
        let wanted = (want == Want::Value && meta.is_live(1000)).then_some(&value[..]);
        if held.meta != meta || held.value != wanted {
            let what = format!("key {number} has {:?} instead of {meta:?}", held.meta);
            return self.ledger.wrong(what);
        }
        let mut keys = self.ledger.keys.borrow_mut();
        let known = keys.entry(number).or_default();
        known.floor = known.floor.max(version);
    }

    /// The clock of a core is not behind anything that it was told to have.
    async fn clock(&self, core: CoreId) {
        let floors = self.ledger.keys.borrow().clone();
        let own = floors
            .iter()
            .filter(|(number, _)| self.core_of(&key_of(**number)) == core);
        let floor = own.map(|(_, known)| known.floor.clock).max().unwrap_or(0);
        let asked = self.ask(core, &Request::Clock, SECOND * 10).await;
        match asked.as_ref().map(OwnedAnswer::view) {
            Ok(Answer::Clock(version)) if version.clock < floor => {
                self.ledger
                    .wrong(format!("a clock at {version:?}, behind {floor}"));
            }
            _ => {}
        }
    }

    fn known(&self, number: u64) -> Known {
        self.ledger
            .keys
            .borrow()
            .get(&number)
            .cloned()
            .unwrap_or_default()
    }

    async fn work(&self) {
        loop {
            let chance = rt::random();
            let number = chance % KEYS;
            match (chance >> 8) % 10 {
                0..6 => {
                    // Around the newest one: older, newer, and some of them again.
                    let base = self.known(number).floor.clock.max(1 << 20);
                    let version = Version {
                        clock: base + (chance >> 16) % 8 - 3,
                        coordinator: u32::from(OTHER.0) << 16,
                    };
                    let patience = [MS, MS * 10, SECOND * 10][(chance >> 24) as usize % 3];
                    self.write(number, version, patience).await;
                }
                6 => self.read(number, Want::Digest).await,
                7 => self.clock(CoreId((chance >> 16) as u16 % self.cores)).await,
                _ => self.read(number, Want::Value).await,
            }
            rt::sleep(MS * ((chance >> 32) % 5) as u32).await;
        }
    }
}

/// What happened: writes done, reads answered, and the world's trace.
fn run(seed: u64, planted: &[Bug]) -> Verdict<(u64, u64, u64)> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    let cores = chance.u16(1..3);
    let config = config(cores, &mut chance);
    let ledger = Rc::new(Ledger::default());
    let mut node = Node::start(&world, &config)?;
    let asking = Rc::clone(&ledger);
    world.start_node(OTHER, 1, move |_: Core<()>| {
        let ledger = Rc::clone(&asking);
        async move {
            let coordinator = Rc::new(Coordinator::new(cores, ledger).await);
            for _ in 0..6 {
                let coordinator = Rc::clone(&coordinator);
                rt::spawn(async move { coordinator.work().await });
            }
            std::future::pending::<()>().await
        }
    });
    for _ in 0..chance.usize(2..6) {
        world.run_for(MS * chance.u32(50..3000));
        let end = [End::PowerCut, End::PowerCut, End::Kill][chance.usize(..3)];
        node.end(&world, end)?;
        node = Node::start(&world, &config)?;
    }
    world.run_for(SECOND * 5);
    node.end(&world, End::Kill)?;
    match ledger.wrong.take() {
        Some(wrong) => Err(wrong),
        None => Ok((ledger.done.get(), ledger.read.get(), world.trace_hash())),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Else a coordinator would count on what a power cut takes away, or an older record would take the place of a newer one.
#[test]
fn what_a_replica_has_said_holds_and_the_highest_version_wins() {
    let name = "what_a_replica_has_said_holds_and_the_highest_version_wins";
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUOIT_SEEDS").unwrap_or(SEEDS),
    };
    let runs = seeds.end - seeds.start;
    let (mut done, mut read) = (0, 0);
    for seed in seeds {
        let repeat = format!("SEED={seed} cargo test --test replica {name}");
        let ran = run(seed, &[]).unwrap_or_else(|why| panic!("{repeat}: {why}"));
        if seed % 8 == 0 {
            assert_eq!(Ok(ran), run(seed, &[]), "{repeat}: not the same twice");
        }
        (done, read) = (done + ran.0, read + ran.1);
    }
    println!("{name}, {runs} seeds: {done} writes done, {read} reads");
    assert!(
        done > 20 * runs && read > 20 * runs,
        "next to nothing was done"
    );
}

/// The bug may also end the node: a store takes no older record in.
fn finds(bug: Bug) {
    let found = (0..FINDING_SEEDS).find_map(|seed| {
        let ran = std::panic::catch_unwind(|| run(seed, &[bug]));
        match ran {
            Ok(Ok(_)) => None,
            Ok(Err(why)) => Some((seed, why)),
            Err(_) => Some((seed, "a panic".to_owned())),
        }
    });
    let (seed, why) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("{bug:?} is found by seed {seed}: {why}");
}

#[test]
fn a_replica_that_answers_before_the_sync_is_found() {
    finds(Bug::ReplicaUnsynced);
}

#[test]
fn an_older_record_that_takes_a_newer_ones_place_is_found() {
    finds(Bug::OlderOverwrites);
}
