//! A node as a replica: another one sends it records and asks what it holds, while it loses its
//! power again and again.
//!
//! The other node is this test: it sends records, tombstones and what has expired, with versions in
//! any order, some of them twice, and remembers what it was told. Both are one cluster: the node
//! may not forget what is deleted or has expired. `SEED=n` runs that seed, `QUOIT_SEEDS=n` so many;
//! a failure prints the line that repeats it.

#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/peer.rs"]
mod peer;
#[path = "common/seeds.rs"]
mod seeds;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use cluster::{End, NODE, Node, Verdict, config, launch, peer_address_of};
use quoit::cluster::map::{ClusterMap, NodeId};
use quoit::cluster::peers::{Peers, Unanswered};
use quoit::protocol::peer::{Answer, Certainty, Mutation, OwnedAnswer, Request, Want};
use quoit::rt::sim::{self, Options, World};
use quoit::rt::{self, Bug, Core};
use quoit::types::{CoreId, Meta, Position, Version};
use seeds::Test;

/// The node that this test plays.
const OTHER: sim::NodeId = sim::NodeId(9);
/// Its number in the cluster.
const OTHER_NUMBER: NodeId = NodeId(2);
const KEYS: u64 = 12;
const SEEDS: u64 = 25;
/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 200;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The moment of all reads.
const NOW: u64 = 1000;

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
    done: Cell<u64>,
    read: Cell<u64>,
    /// Reads that told of a tombstone, or of what has expired.
    dead: Cell<u64>,
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
    let (tombstone, expiry) =
        [(true, 0), (false, 1), (false, 0), (false, u64::MAX)][[0, 1, 2, 2, 3][chance.usize(..5)]];
    let meta = Meta {
        version,
        expiry,
        tombstone,
    };
    let length = [10, 100, 3000][chance.usize(..3)];
    let value = (0..length).map(|_| chance.u8(..)).collect();
    match tombstone {
        true => (meta, Vec::new()),
        false => (meta, value),
    }
}

/// True if `held` is the record `meta`: what has expired may be there as a deletion of the same
/// version.
fn is_record(held: Meta, meta: Meta) -> bool {
    let deletion = Meta {
        expiry: 0,
        tombstone: true,
        ..meta
    };
    held == meta || (!meta.is_live(NOW) && held == deletion)
}

/// This test, as a node.
struct Coordinator {
    peers: Rc<Peers>,
    map: ClusterMap,
    ledger: Rc<Ledger>,
}

impl Coordinator {
    /// As the other node of the cluster of [`NODE`].
    async fn new(ledger: Rc<Ledger>) -> Coordinator {
        let first = (NodeId(NODE.0), peer_address_of(NODE));
        let peers = peer::pose_as(OTHER_NUMBER, first.1).await;
        let map = peer::map_of(&peers, first).await.expect("a map");
        Coordinator { peers, map, ledger }
    }

    fn cores(&self) -> u16 {
        self.map.node(NodeId(NODE.0)).expect("it is there").cores
    }

    fn core_of(&self, key: &[u8]) -> CoreId {
        let mut holders = self.map.holders_of(Position::of(key)).iter();
        let own = holders.find(|holder| holder.node.0 == NODE.0);
        own.expect("it holds all keys").core
    }

    async fn ask(
        &self,
        core: CoreId,
        request: &Request<'_>,
        patience: Duration,
    ) -> Result<OwnedAnswer, Unanswered> {
        let first = (NodeId(NODE.0), peer_address_of(NODE));
        let answer = peer::ask(&self.peers, first, core, request, patience).await?;
        if let Answer::StaleEpoch { epoch } = answer.view() {
            self.peers.set_epoch(epoch);
        }
        Ok(answer)
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
            now: NOW,
        };
        let asked = self.ask(self.core_of(&key), &request, SECOND * 10).await;
        let held = match asked.as_ref().map(OwnedAnswer::view) {
            Ok(Answer::Holds(held)) => held,
            Ok(Answer::Failed { .. } | Answer::Busy | Answer::StaleEpoch { .. }) | Err(_) => return,
            Ok(other) => return self.ledger.wrong(format!("{other:?} to a read")),
        };
        let count = |counter: &Cell<u64>| counter.set(counter.get() + 1);
        count(&self.ledger.read);
        let version = held.meta.version;
        if version < floor {
            let what = format!("key {number} has {version:?}, though {floor:?} was there");
            return self.ledger.wrong(what);
        }
        let known = self.known(number);
        if version != Version::ZERO {
            if !known.possible.contains_key(&version) && version != known.floor {
                return self
                    .ledger
                    .wrong(format!("key {number} has {version:?}, which nobody wrote"));
            }
            let (meta, value) = record_of(number, version);
            let wanted = (want == Want::Value && meta.is_live(NOW)).then_some(&value[..]);
            if !is_record(held.meta, meta) || held.value != wanted {
                let what = format!("key {number} has {:?} instead of {meta:?}", held.meta);
                return self.ledger.wrong(what);
            }
            if !meta.is_live(NOW) {
                count(&self.ledger.dead);
            }
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
                7 => {
                    self.clock(CoreId((chance >> 16) as u16 % self.cores()))
                        .await
                }
                _ => self.read(number, Want::Value).await,
            }
            rt::sleep(MS * ((chance >> 32) % 5) as u32).await;
        }
    }
}

/// What happened, and the world's trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ran {
    done: u64,
    read: u64,
    dead: u64,
    trace: u64,
}

/// A world with the node in it, in a cluster of two.
fn begin(seed: u64, planted: &[Bug]) -> Verdict<(World, Node, quoit::config::Config)> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    let cores = chance.u16(1..3);
    let config = config(cores, &mut chance);
    let node = Node::start(&world, &config)?;
    // The other one joins as a node does; then this test takes its place.
    let joined = launch(&world, OTHER, &config, &[NODE]);
    joined.settle(&world, SECOND * 600);
    if !joined.is_ready() {
        return Err(format!(
            "the other node is not let in: {:?}",
            joined.failure()
        ));
    }
    world.kill_node(OTHER);
    Ok((world, node, config))
}

fn run(seed: u64, planted: &[Bug]) -> Verdict<Ran> {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x4EA1);
    let (world, mut node, config) = begin(seed, planted)?;
    let ledger = Rc::new(Ledger::default());
    let asking = Rc::clone(&ledger);
    world.start_node(OTHER, 1, move |_: Core<()>| {
        let ledger = Rc::clone(&asking);
        async move {
            let coordinator = Rc::new(Coordinator::new(ledger).await);
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
        None => Ok(Ran {
            done: ledger.done.get(),
            read: ledger.read.get(),
            dead: ledger.dead.get(),
            trace: world.trace_hash(),
        }),
    }
}

/// Else a coordinator would count on what a power cut takes away, an older record would take the
/// place of a newer one, or what is deleted would be forgotten while others have what it deleted.
#[test]
fn what_a_replica_has_said_holds_and_the_highest_version_wins() {
    let test = Test {
        program: "replica",
        name: "what_a_replica_has_said_holds_and_the_highest_version_wins",
        seeds: SEEDS,
        twice_every: 8,
    };
    let (ran, _) = test.run(|seed| run(seed, &[]));
    let sum = |of: fn(&Ran) -> u64| ran.iter().map(of).sum::<u64>();
    let (done, read) = (sum(|ran| ran.done), sum(|ran| ran.read));
    let dead = sum(|ran| ran.dead);
    let runs = ran.len() as u64;
    println!(
        "{runs} seeds: {done} writes done, {read} reads, {dead} of what is deleted or has expired"
    );
    assert!(
        done > 20 * runs && read > 20 * runs,
        "next to nothing was done"
    );
    if test.is_whole(ran.len()) {
        assert!(dead > runs, "too little was deleted");
    }
}

/// What a node answers that goes by an old map, and a core that does not hold the key; nothing may
/// be done for either.
async fn be_refused(coordinator: Rc<Coordinator>) -> Verdict {
    let key = key_of(1);
    let (home, version) = (
        coordinator.core_of(&key),
        Version {
            clock: 1 << 40,
            coordinator: 2 << 16,
        },
    );
    let (meta, value) = record_of(1, version);
    let write = Request::Write(Mutation {
        meta,
        key: &key,
        value: &value,
    });
    let read = Request::Read {
        key: &key,
        want: Want::Digest,
        now: NOW,
    };
    let epoch = coordinator.map.epoch();
    for request in [&write, &read, &Request::Clock] {
        coordinator.peers.set_epoch(epoch - 1);
        let said = coordinator.ask(home, request, SECOND * 10).await;
        let said = said.map_err(|why| format!("{why:?} to {request:?}"))?;
        if said.view() != (Answer::StaleEpoch { epoch }) {
            return Err(format!("{:?} to {request:?} by an old map", said.view()));
        }
    }
    let elsewhere = CoreId(1 - home.0);
    for request in [&write, &read] {
        let said = coordinator.ask(elsewhere, request, SECOND * 10).await;
        let said = said.map_err(|why| format!("{why:?} to {request:?}"))?;
        if said.view() != Answer::NotMine {
            return Err(format!("{:?} of a core that does not hold it", said.view()));
        }
    }
    let said = coordinator.ask(home, &read, SECOND * 10).await;
    let said = said.map_err(|why| format!("{why:?} to a read"))?;
    match said.view() {
        Answer::Holds(held) if held.meta == Meta::ABSENT => Ok(()),
        other => Err(format!("{other:?}, though all writes were refused")),
    }
}

/// Else what is written by an old map could be acknowledged by cores that nobody asks any more, and
/// a coordinator that goes by one could hear the clocks of none of those who have stored the newest
/// write.
#[test]
fn who_goes_by_an_old_map_or_asks_the_wrong_core_is_refused() {
    for seed in 0..4 {
        let refused: Rc<RefCell<Option<Verdict>>> = Rc::default();
        let saying = Rc::clone(&refused);
        let mut chance = fastrand::Rng::with_seed(seed);
        let world = World::new(Options::calm(seed));
        let config = config(2, &mut chance);
        let _node = Node::start(&world, &config).expect("a node");
        let joined = launch(&world, OTHER, &config, &[NODE]);
        joined.settle(&world, SECOND * 600);
        assert!(joined.is_ready(), "seed {seed}: it is not let in");
        world.kill_node(OTHER);
        world.start_node(OTHER, 1, move |_: Core<()>| {
            let saying = Rc::clone(&saying);
            async move {
                let ledger = Rc::new(Ledger::default());
                let coordinator = Rc::new(Coordinator::new(ledger).await);
                let said = be_refused(coordinator).await;
                *saying.borrow_mut() = Some(said);
            }
        });
        world.run_until(|| refused.borrow().is_some(), SECOND * 600);
        let said = refused.take().expect("the node answers");
        said.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// The bug may also end the node: a store takes no older record in.
fn finds(bug: Bug) {
    seeds::finds(bug, 0..FINDING_SEEDS, |seed| run(seed, &[bug]));
}

#[test]
fn a_replica_that_answers_before_the_sync_is_found() {
    finds(Bug::ReplicaUnsynced);
}

#[test]
fn an_older_record_that_takes_a_newer_ones_place_is_found() {
    finds(Bug::OlderOverwrites);
}

#[test]
fn a_replica_that_forgets_what_is_deleted_though_there_are_others_is_found() {
    finds(Bug::TombstoneForgotten);
}
