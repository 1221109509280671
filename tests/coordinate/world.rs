//! Nodes that coordinate and replicas behind them, in the simulated world: the replicas, the
//! network between them and their crashes are this file's; the coordinators are the node's own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;
use quoit::cluster::map::{Holder, NodeId};
use quoit::error::Result;
use quoit::replication::clock::Clock;
use quoit::replication::coordinate::{
    Change, Coordinator, Failure, Held, Mutation, Placement, Question, Replicas,
};
use quoit::replication::quorum::read::Want;
use quoit::replication::quorum::write::Ack;
use quoit::replication::quorum::{Level, Reach, Rules};
use quoit::rt::sim::{Handle, NodeId as Machine, Options, World};
use quoit::rt::sync::{Answerer, Signal, answer_slot};
use quoit::rt::{self, Bug};
use quoit::types::{CoreId, Meta, Version};

use crate::linear::{Action, Operation, Outcome};
use crate::quorums::{
    self, DAY_MS, Faults, Levels, Planted, Simulation, Tally, Verdict, are_equal, choose_action,
    choose_size, choose_skew_ms, partition, suspicion,
};

/// How long the faults last, and how long what is still under way may take then.
const STORM: Duration = Duration::from_millis(400);
const CALM: Duration = Duration::from_secs(2);
/// By then a coordinator has said what it knows.
const DEADLINE: Duration = Duration::from_millis(20);
const HINTS_EVERY: Duration = Duration::from_millis(15);
const KEY: &[u8] = b"key";

/// A version of the key. The value is unique to the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    meta: Meta,
    value: Vec<u8>,
}

impl Record {
    fn nothing() -> Record {
        Record {
            meta: Meta::ABSENT,
            value: Vec::new(),
        }
    }

    fn take(&mut self, newer: &Mutation) {
        if newer.meta.rank() > self.meta.rank() {
            self.meta = newer.meta;
            self.value.clone_from(&newer.value);
        }
    }
}

struct Node {
    is_up: bool,
    /// Counts restarts; part of every version, so that no two lives make the same.
    life: u16,
    clock: Clock,
    /// What readers see, and what a crash leaves.
    visible: Record,
    durable: Record,
    /// What this node keeps for others.
    hints: Vec<(usize, Rc<Mutation>)>,
    /// What clients have asked of its coordinator.
    asked: VecDeque<(Asked, Answerer<Said>)>,
    signal: Rc<Signal>,
}

#[derive(Clone, Debug)]
enum Asked {
    Read(Level),
    Write(Level, Option<u64>),
    Repair,
}

enum Said {
    Read(Result<Held, Failure>),
    Written(Result<(), Failure>),
    Repaired,
}

/// Everything but the coordinators.
struct Net {
    handle: Handle,
    chance: RefCell<fastrand::Rng>,
    planted: Option<Planted>,
    levels: Levels,
    rules: Rules,
    replicas: usize,
    nodes: RefCell<Vec<Node>>,
    cut: RefCell<BTreeSet<(usize, usize)>>,
    faults: RefCell<Faults>,
    is_storm: Cell<bool>,
    moment: Cell<u64>,
    value_next: Cell<u64>,
    history: RefCell<Vec<Operation>>,
    tally: RefCell<Tally>,
}

/// The seam as node `node` has it.
struct Way {
    net: Rc<Net>,
    node: usize,
}

fn machine(node: usize) -> Machine {
    Machine(node as u16 + 1)
}

fn holder(node: usize) -> Holder {
    Holder {
        node: NodeId(node as u16 + 1),
        core: CoreId(0),
    }
}

fn number_of(holder: Holder) -> usize {
    usize::from(holder.node.0) - 1
}

/// A world, and what is in it.
pub struct Stage {
    world: World,
    net: Rc<Net>,
}

impl Simulation for Stage {
    fn make(seed: u64, levels: Levels, planted: Option<Planted>) -> Stage {
        let (world, net) = make(seed, levels, planted);
        Stage { world, net }
    }

    fn run(&mut self) -> Verdict<Vec<Operation>> {
        Ok(run(&self.world, &self.net))
    }

    fn converge(&mut self) -> Verdict {
        converge(&self.world, &self.net)
    }

    fn tally(&self) -> (Tally, u64) {
        (self.net.tally.borrow().clone(), self.world.trace_hash())
    }
}

/// A world from a seed, and what is in it.
fn make(seed: u64, levels: Levels, planted: Option<Planted>) -> (World, Rc<Net>) {
    let mut options = Options::calm(seed);
    options.planted = match planted {
        Some(Planted::NoBarrier) => vec![Bug::NoBarrier],
        Some(Planted::Restamp) => vec![Bug::Restamped],
        _ => Vec::new(),
    };
    let world = World::new(options);
    let mut chance = fastrand::Rng::with_seed(seed);
    let (replicas, nodes) = choose_size(&mut chance);
    let rules = quorums::rules(planted);
    let faults = Faults::choose(&mut chance);
    let node = |number| Node {
        is_up: false,
        life: 0,
        clock: Clock::new(number as u16, 0, Version::ZERO),
        visible: Record::nothing(),
        durable: Record::nothing(),
        hints: Vec::new(),
        asked: VecDeque::new(),
        signal: Rc::default(),
    };
    let skew_ms = choose_skew_ms(&mut chance);
    let net = Rc::new(Net {
        handle: world.handle(),
        planted,
        levels,
        rules,
        replicas,
        nodes: RefCell::new((0..nodes).map(node).collect()),
        cut: RefCell::default(),
        faults: RefCell::new(faults),
        is_storm: Cell::new(true),
        moment: Cell::new(0),
        value_next: Cell::new(0),
        history: RefCell::default(),
        tally: RefCell::default(),
        chance: RefCell::new(chance),
    });
    for number in 0..nodes {
        net.start(number);
        let skew = net.chance.borrow_mut().i64(-skew_ms..=skew_ms);
        world.jump_clock(machine(number), skew);
    }
    (world, net)
}

/// The storm, and the calm after it.
fn run(world: &World, net: &Rc<Net>) -> Vec<Operation> {
    let clients = net.chance.borrow_mut().usize(1..6);
    for _ in 0..clients {
        world.spawn_client(Rc::clone(net).client());
    }
    world.spawn_client(Rc::clone(net).nemesis());
    world.spawn_client(Rc::clone(net).postman());
    world.run_for(STORM);
    net.is_storm.set(false);
    *net.faults.borrow_mut() = Faults::none();
    net.cut.borrow_mut().clear();
    world.run_for(CALM);
    net.history.borrow().clone()
}

/// One reading of all replicas makes them equal, now that all are there.
fn converge(world: &World, net: &Rc<Net>) -> Verdict {
    let asker = Rc::clone(net);
    world.block_on(async move { asker.ask(0, Asked::Repair).await });
    world.run_for(CALM);
    let nodes = net.nodes.borrow();
    let replicas = nodes[..net.replicas].iter();
    let held: Vec<&Record> = replicas.map(|node| &node.durable).collect();
    are_equal(&held, nodes.iter().map(|node| node.hints.len()).sum())
}

impl Net {
    fn flip(&self, share: f64) -> bool {
        self.chance.borrow_mut().f64() < share
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.chance.borrow_mut().u64(from..to))
    }

    fn start(self: &Rc<Net>, number: usize) {
        let signal = {
            let mut nodes = self.nodes.borrow_mut();
            let node = &mut nodes[number];
            node.is_up = true;
            node.life += 1;
            node.visible = node.durable.clone();
            node.clock = Clock::new(
                number as u16 * 1000 + node.life,
                0,
                node.durable.meta.version,
            );
            node.signal = Rc::default();
            Rc::clone(&node.signal)
        };
        let net = Rc::clone(self);
        self.handle
            .start_node(machine(number), 1, move |_: rt::Core<()>| {
                Rc::clone(&net).coordinate(number, Rc::clone(&signal))
            });
    }

    /// The node's main: does what clients ask of its coordinator.
    async fn coordinate(self: Rc<Net>, number: usize, signal: Rc<Signal>) {
        let way = Way {
            net: Rc::clone(&self),
            node: number,
        };
        let coordinator = Coordinator::new(Rc::new(way), self.rules);
        loop {
            let next = || self.nodes.borrow_mut()[number].asked.pop_front();
            let (asked, answerer) = signal.wait_for(next).await;
            let (coordinator, net) = (Rc::clone(&coordinator), Rc::clone(&self));
            rt::spawn(async move { answerer.give(net.operate(number, &coordinator, asked).await) });
        }
    }

    async fn operate(
        &self,
        number: usize,
        coordinator: &Rc<Coordinator<Way>>,
        asked: Asked,
    ) -> Said {
        let (placement, deadline) = (self.placement(number), rt::now() + DEADLINE);
        match asked {
            Asked::Read(level) => {
                let key = KEY.to_vec();
                let read = coordinator.read(placement, level, key, rt::wall_ms(), deadline);
                Said::Read(read.await)
            }
            Asked::Write(level, value) => {
                let change = Change {
                    key: KEY.to_vec(),
                    value: value.map(|value| value.to_le_bytes().to_vec()),
                    expiry: 0,
                };
                let written = coordinator.write(placement, level, change, deadline).await;
                Said::Written(written.map(|_| ()))
            }
            Asked::Repair => {
                let key = KEY.to_vec();
                coordinator
                    .repair(placement, key, rt::wall_ms(), deadline)
                    .await;
                Said::Repaired
            }
        }
    }

    fn placement(&self, from: usize) -> Placement {
        let reach = |to| match () {
            () if to == from => Reach::Own,
            () if self.is_suspect(from, to) => Reach::Absent,
            () => Reach::Live { latency_us: 0 },
        };
        (0..self.replicas)
            .map(|to| (holder(to), reach(to)))
            .collect()
    }

    /// True if `from` has reason to think that it cannot reach `to`; now and then without one.
    fn is_suspect(&self, from: usize, to: usize) -> bool {
        let cut = self.cut.borrow();
        let is_cut = cut.contains(&(from, to)) || cut.contains(&(to, from));
        let is_away = is_cut || !self.nodes.borrow()[to].is_up;
        self.flip(suspicion(is_away, self.is_storm.get()))
    }

    async fn ask(&self, node: usize, asked: Asked) -> Option<Said> {
        let (answerer, answer) = answer_slot();
        let signal = {
            let mut nodes = self.nodes.borrow_mut();
            nodes[node].asked.push_back((asked, answerer));
            Rc::clone(&nodes[node].signal)
        };
        signal.wake_all();
        answer.wait().await
    }

    fn tick(&self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    async fn client(self: Rc<Net>) {
        while self.is_storm.get() {
            rt::sleep(self.between(1, 4_000)).await;
            let node = self.chance.borrow_mut().usize(..self.nodes.borrow().len());
            if !self.nodes.borrow()[node].is_up {
                continue;
            }
            self.value_next.set(self.value_next.get() + 1);
            let (level, action) = {
                let chance = &mut *self.chance.borrow_mut();
                let level = self.levels.choose(chance);
                (level, choose_action(self.value_next.get(), chance))
            };
            let asked = match action {
                Action::Write(value) => Asked::Write(level, value),
                _ => Asked::Read(level),
            };
            let moment = self.tick();
            let said = self.ask(node, asked).await;
            self.note(moment, action, said);
        }
    }

    fn note(&self, asked: u64, action: Action, said: Option<Said>) {
        let (action, outcome) = match said {
            Some(Said::Read(Ok(held))) => {
                let bytes = held.value.map(|value| value.try_into().expect("a number"));
                (Action::Read(bytes.map(u64::from_le_bytes)), Outcome::Done)
            }
            Some(Said::Read(Err(_))) => (action, Outcome::Failed),
            Some(Said::Written(Ok(()))) => (action, Outcome::Done),
            Some(Said::Written(Err(Failure::Unknown))) => (action, Outcome::Unknown),
            Some(Said::Written(Err(_))) => (action, Outcome::Failed),
            Some(Said::Repaired) => unreachable!("no client asks for it"),
            None => match action {
                Action::Read(_) => (action, Outcome::Failed),
                _ => (action, Outcome::Unknown),
            },
        };
        self.tally.borrow_mut().note_outcome(outcome);
        self.history.borrow_mut().push(Operation {
            action,
            asked,
            answered: self.tick(),
            outcome,
        });
    }

    async fn nemesis(self: Rc<Net>) {
        loop {
            let every = self.faults.borrow().every_us;
            rt::sleep(self.between(1, 2 * every)).await;
            if !self.is_storm.get() {
                return;
            }
            let nodes = self.nodes.borrow().len();
            let node = self.chance.borrow_mut().usize(..nodes);
            let roll = self.chance.borrow_mut().u8(..10);
            match roll {
                0..4 => self.crash(node),
                4 => (0..nodes).for_each(|other| self.crash(other)), // a power cut takes several at once
                5 => *self.cut.borrow_mut() = partition(nodes, &mut self.chance.borrow_mut()),
                6..8 => self.cut.borrow_mut().clear(),
                8 => {
                    let other = (node + 1) % nodes;
                    self.cut.borrow_mut().insert((node, other));
                }
                _ => {
                    let jump = self.chance.borrow_mut().i64(-DAY_MS..=DAY_MS);
                    self.handle.jump_clock(machine(node), jump);
                }
            }
        }
    }

    fn crash(self: &Rc<Net>, number: usize) {
        let unanswered = {
            let mut nodes = self.nodes.borrow_mut();
            let node = &mut nodes[number];
            if !std::mem::replace(&mut node.is_up, false) {
                return;
            }
            std::mem::take(&mut node.asked)
        };
        drop(unanswered);
        self.tally.borrow_mut().note("crashes");
        self.handle.kill_node(machine(number));
        let pause = self.between(1, 2 * self.faults.borrow().away_us);
        let net = Rc::clone(self);
        self.handle.spawn_client(async move {
            rt::sleep(pause).await;
            net.start(number);
        });
    }

    /// Brings hints home.
    async fn postman(self: Rc<Net>) {
        loop {
            rt::sleep(HINTS_EVERY).await;
            let nodes = self.nodes.borrow().len();
            for number in 0..nodes {
                let hints = match self.nodes.borrow()[number].is_up {
                    true => self.nodes.borrow()[number].hints.clone(),
                    false => continue,
                };
                for (home, mutation) in hints {
                    let net = Rc::clone(&self);
                    self.handle.spawn_client(async move {
                        let sender = Rc::clone(&net);
                        let written = sender.deliver_write(number, home, Rc::clone(&mutation));
                        if written.await == Some(Ack::Stored) {
                            let mut nodes = net.nodes.borrow_mut();
                            let kept = &mut nodes[number].hints;
                            let before = kept.len();
                            kept.retain(|hint| *hint != (home, Rc::clone(&mutation)));
                            let home = (before - kept.len()) as u64;
                            net.tally.borrow_mut().note_many("hints brought home", home);
                        }
                    });
                }
            }
        }
    }

    /// The way there. `None`: nothing has come of it, and nobody will say so.
    async fn travel(&self, from: usize, to: usize) -> Option<()> {
        let (loss, late) = {
            let faults = self.faults.borrow();
            (faults.loss, faults.late)
        };
        if from != to && self.flip(loss) {
            self.tally.borrow_mut().note("lost");
            return None;
        }
        let is_late = self.flip(late);
        let delay = match from == to {
            true => self.between(1, 50),
            false if is_late => self.between(1_000, 60_000),
            false => self.between(100, 2_000),
        };
        rt::sleep(delay).await;
        let is_cut = self.cut.borrow().contains(&(from, to));
        (!is_cut && self.nodes.borrow()[to].is_up).then_some(())
    }

    /// Syncs something on `node`; `None` if it crashes before.
    async fn sync(&self, node: usize) -> Option<()> {
        let life = self.nodes.borrow()[node].life;
        let is_long = self.flip(self.faults.borrow().late);
        rt::sleep(match is_long {
            true => self.between(1_000, 30_000),
            false => self.between(50, 500),
        })
        .await;
        let node = &self.nodes.borrow()[node];
        (node.is_up && node.life == life).then_some(())
    }

    fn show(&self, to: usize, mutation: &Mutation) {
        let mut nodes = self.nodes.borrow_mut();
        nodes[to].visible.take(mutation);
        nodes[to].clock.observe(mutation.meta.version);
    }

    async fn deliver_write(
        self: Rc<Net>,
        from: usize,
        to: usize,
        mutation: Rc<Mutation>,
    ) -> Option<Ack> {
        self.travel(from, to).await?;
        self.tally.borrow_mut().note("writes");
        if self.does_refuse(&mutation, to) {
            self.travel(to, from).await?;
            return Some(Ack::Refused);
        }
        if self.planted == Some(Planted::AckBeforeSync) {
            self.show(to, &mutation);
            let net = Rc::clone(&self);
            let late = Rc::clone(&mutation);
            self.handle.spawn_client(async move {
                if net.sync(to).await.is_some() {
                    net.nodes.borrow_mut()[to].durable.take(&late);
                }
            });
        } else {
            self.sync(to).await?;
            self.show(to, &mutation);
            self.nodes.borrow_mut()[to].durable.take(&mutation);
        }
        self.travel(to, from).await?;
        Some(Ack::Stored)
    }

    fn does_refuse(&self, mutation: &Mutation, node: usize) -> bool {
        let seed = mutation.meta.version.clock ^ (node as u64) << 48;
        self.faults.borrow().refuses(seed)
    }
}

impl Way {
    /// Has `work` done elsewhere, whatever becomes of this node; `None` if nothing is heard of it
    /// by `deadline`.
    async fn have<T: 'static>(
        &self,
        to: usize,
        deadline: Duration,
        work: impl Future<Output = Option<T>> + 'static,
    ) -> Option<T> {
        let (answerer, answer) = answer_slot();
        let is_told = self.net.flip(0.5);
        self.net.handle.spawn_client(async move {
            match work.await {
                Some(said) => answerer.give(said),
                // A broken connection is seen at once, a silent one never.
                None if is_told => drop(answerer),
                None => {
                    rt::sleep(CALM).await;
                    drop(answerer);
                }
            }
        });
        let late = async {
            rt::sleep(deadline.saturating_sub(rt::now())).await;
            None
        };
        let said = future::or(answer.wait(), late).await;
        let is_cut = self.net.cut.borrow().contains(&(to, self.node));
        said.filter(|_| !is_cut)
    }
}

impl Replicas for Way {
    async fn write(self: Rc<Self>, to: Holder, mutation: Rc<Mutation>, deadline: Duration) -> Ack {
        let to = number_of(to);
        let work = Rc::clone(&self.net).deliver_write(self.node, to, mutation);
        self.have(to, deadline, work).await.unwrap_or(Ack::Lost)
    }

    async fn read(
        self: Rc<Self>,
        to: Holder,
        question: Rc<Question>,
        want: Want,
        deadline: Duration,
    ) -> Option<Held> {
        let (net, from, to) = (Rc::clone(&self.net), self.node, number_of(to));
        assert_eq!(question.key, KEY);
        let work = async move {
            net.travel(from, to).await?;
            let record = net.nodes.borrow()[to].visible.clone();
            let is_live = record.meta.is_live(question.now);
            net.tally.borrow_mut().note(match want {
                Want::Value => "values",
                Want::Digest => "digests",
            });
            net.travel(to, from).await?;
            Some(Held {
                meta: record.meta,
                value: (want == Want::Value && is_live).then_some(record.value),
            })
        };
        self.have(to, deadline, work).await
    }

    async fn clock(self: Rc<Self>, to: Holder, deadline: Duration) -> Option<Version> {
        let (net, from, to) = (Rc::clone(&self.net), self.node, number_of(to));
        let work = async move {
            net.travel(from, to).await?;
            net.tally.borrow_mut().note("clocks asked");
            let clock = net.nodes.borrow()[to].clock.last();
            net.travel(to, from).await?;
            Some(clock)
        };
        self.have(to, deadline, work).await
    }

    async fn hint(self: Rc<Self>, home: Holder, mutation: Rc<Mutation>, deadline: Duration) -> Ack {
        let (net, node, home) = (Rc::clone(&self.net), self.node, number_of(home));
        let work = async move {
            net.sync(node).await?;
            let mut nodes = net.nodes.borrow_mut();
            nodes[node].hints.push((home, mutation));
            net.tally.borrow_mut().note("hints");
            Some(Ack::Stored)
        };
        self.have(node, deadline.max(rt::now() + DEADLINE), work)
            .await
            .unwrap_or(Ack::Lost)
    }

    async fn version(self: Rc<Self>, heard: Version) -> Result<Version> {
        let now = rt::wall_ms();
        let mut nodes = self.net.nodes.borrow_mut();
        let clock = &mut nodes[self.node].clock;
        clock.observe(heard);
        Ok(clock.next(now))
    }
}
