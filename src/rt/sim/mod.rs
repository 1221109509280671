//! The simulated side of the seam: a world of nodes, disks, networks and clocks from one seed.
//!
//! A test makes a [`World`], starts nodes and clients in it, and runs it. Everything in it happens
//! on the test's own thread in virtual time; whatever is left to chance is drawn from the seed, so
//! the same seed gives the same run: [`Handle::trace_hash`] says whether it did. A panic of any
//! task comes out of `run_*` with the seed in its message.
//!
//! A node ends in four ways: its mains return; [`Handle::stop_node`] asks them to;
//! [`Handle::kill_node`] is `kill -9` (what was written stays written); [`Handle::crash_node`] is a
//! power cut (what was not synced may be lost, torn or reordered). Then it may be started again.

mod crash;
mod damage;
mod disk;
mod executor;
mod image;
mod link;
mod mail;
mod names;
mod net;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Bug, Core};
use crate::types::{CoreId, UnixMillis};

pub use crash::{CrashPoint, Decisions};
pub use damage::Disk;
pub use disk::{DirLock, DiskFaults, DiskLosses, File};
pub use executor::{Schedule, Task};
pub use mail::{Inbox, Mail, Outbox};
pub use net::{Listener, NetFaults, Party, Stream};

use disk::Volume;
use executor::{Executor, NO_NODE, Place, Sleep, Step};
use net::Net;

/// Virtual time within which [`Handle::block_on`] must come to an end.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Polls of one run after which a task is taken to spin.
const POLLS_MAX: u64 = 200_000_000;
/// The wall clock when a world begins: late in 2023.
const WALL_START_MS: UnixMillis = 1_700_000_000_000;

/// A simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u16);

impl NodeId {
    /// An address of this node. Others may be bound too: this is only a convention for tests.
    pub fn address(self, port: u16) -> SocketAddr {
        let [high, low] = self.0.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), port)
    }
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// The bugs that [`planted`](super::planted) answers for.
    pub planted: Vec<Bug>,
    /// How tasks take turns.
    pub schedule: Schedule,
    /// What every disk does at first.
    pub disk: DiskFaults,
    /// What the network does at first.
    pub net: NetFaults,
}

impl Options {
    /// A world in which nothing fails by itself: crashes still lose what was not synced.
    pub fn calm(seed: u64) -> Options {
        Options {
            seed,
            planted: Vec::new(),
            schedule: Schedule {
                random_picks: 0.2,
                poll_ns_max: 2_000,
                stalls: 0.0,
                stall_us_max: 5_000,
            },
            disk: DiskFaults::none(),
            net: NetFaults::none(),
        }
    }

    /// A random part of what may go wrong, another for each seed, so that faults are seen alone,
    /// together and not at all. No fault that a node cannot be expected to survive: errors of
    /// reads, writes and syncs, full disks and rot are for the test to switch on.
    pub fn random(seed: u64) -> Options {
        let mut options = Options::calm(seed);
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x5357_4152_4D00_0001);
        options.schedule.random_picks = [0.0, 0.05, 0.5, 1.0][chance.usize(..4)];
        options.schedule.poll_ns_max = [200, 2_000, 50_000][chance.usize(..3)];
        options.schedule.stalls = [0.0, 0.0, 0.001, 0.01][chance.usize(..4)];
        options.disk = DiskFaults::random(&mut chance);
        options.net = NetFaults::random(&mut chance);
        options
    }
}

struct Node {
    /// Counts its starts.
    life: u32,
    /// True from its start to its end.
    is_up: bool,
    /// Which of its cores still run.
    running: Vec<bool>,
    is_stopping: bool,
    stop_waiters: Vec<Waker>,
    /// What its monotonic clock showed when the world began.
    clock_base: Duration,
    /// How far its wall clock is off, in milliseconds.
    wall_offset: i64,
    /// By sending core: its channels to its siblings.
    channels: Vec<Vec<Rc<dyn mail::Close>>>,
    volume: Rc<Volume>,
}

struct Inner {
    options: Options,
    executor: Executor,
    nodes: RefCell<BTreeMap<u16, Node>>,
    net: Net,
}

thread_local! {
    /// Apart from `RUNNING`, so that asking costs least where there is no world.
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
    static RUNNING: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

/// The simulated world and the place in it of the task that asks; `None` outside of one.
#[inline]
pub fn current() -> Option<Context> {
    if !IS_RUNNING.get() {
        return None;
    }
    current_in_world()
}

#[cold]
fn current_in_world() -> Option<Context> {
    let world = RUNNING.with_borrow(|running| running.clone())?;
    let place = world.executor.place();
    Some(Context { world, place })
}

/// Makes a world the current one of this thread while it lives.
struct Entered;

impl Entered {
    fn new(world: &Rc<Inner>) -> Entered {
        assert!(
            !IS_RUNNING.get(),
            "a world cannot be run from within a world"
        );
        RUNNING.set(Some(Rc::clone(world)));
        IS_RUNNING.set(true);
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        IS_RUNNING.set(false);
        let left = RUNNING.take();
        drop(left);
    }
}

/// What a task sees of its world.
pub struct Context {
    world: Rc<Inner>,
    place: Place,
}

impl Context {
    /// Starts a task where the current one runs.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.world.spawn(self.place, future)
    }

    /// Lets other tasks go first, or not.
    pub async fn yield_now(&self) {
        let mut yields = self.world.executor.chance.coin();
        poll_fn(|context| {
            if !yields {
                return Poll::Ready(());
            }
            yields = false;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Returns after `duration` of virtual time.
    pub async fn sleep(&self, duration: Duration) {
        Sleep::during(&self.world.executor, duration).await;
    }

    /// This node's monotonic clock. Asking takes a little time, so that a task which waits for
    /// it without ever yielding comes to an end.
    pub fn now(&self) -> Duration {
        self.world.executor.pass(20);
        let base = self
            .world
            .with_node(self.place.node, |node| node.clock_base);
        base + Duration::from_nanos(self.world.executor.now())
    }

    /// This node's wall clock.
    pub fn wall_ms(&self) -> UnixMillis {
        let offset = self
            .world
            .with_node(self.place.node, |node| node.wall_offset);
        let right = WALL_START_MS + self.world.executor.now() / 1_000_000;
        right.saturating_add_signed(offset)
    }

    /// A number from the world's seed.
    pub fn random(&self) -> u64 {
        self.world.executor.chance.next()
    }

    /// Returns when the test asked this node to stop.
    pub async fn stopping(&self) {
        let number = self.place.node;
        poll_fn(|context| {
            self.world.with_node(number, |node| {
                if node.is_stopping {
                    return Poll::Ready(());
                }
                let waiters = &mut node.stop_waiters;
                if !waiters
                    .iter()
                    .any(|waiter| waiter.will_wake(context.waker()))
                {
                    waiters.push(context.waker().clone());
                }
                Poll::Pending
            })
        })
        .await;
    }

    /// True if the test planted `bug`.
    pub fn planted(&self, bug: Bug) -> bool {
        self.world.options.planted.contains(&bug)
    }
}

impl Inner {
    fn with_node<T>(&self, number: u16, look: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.entry(number).or_insert_with(|| Node {
            life: 0,
            // Clients have a disk and clocks like a node that never ends.
            is_up: number == NO_NODE,
            running: vec![number == NO_NODE],
            is_stopping: false,
            stop_waiters: Vec::new(),
            clock_base: Duration::from_micros(self.executor.chance.between((0, 1 << 40))),
            wall_offset: 0,
            channels: Vec::new(),
            volume: Rc::new(Volume::new(self.options.disk.clone())),
        });
        look(node)
    }

    fn volume(&self, number: u16) -> Rc<Volume> {
        self.with_node(number, |node| Rc::clone(&node.volume))
    }

    fn is_alive(&self, place: Place) -> bool {
        self.with_node(place.node, |node| {
            let runs = node.running.get(usize::from(place.core));
            node.is_up && node.life == place.life && runs == Some(&true)
        })
    }

    /// Starts a task. If its core has ended (only what is dropped at its end asks for that), the
    /// task is dropped too.
    fn spawn<T: 'static>(
        &self,
        place: Place,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        let (task, join) = Task::new();
        if self.is_alive(place) {
            self.executor
                .spawn(place, async move { join.give(future.await) });
        }
        task
    }

    /// The main of a core has returned: what is left of it goes, as with a real executor.
    fn end_core(&self, place: Place) {
        let (channels, was_last) = self.with_node(place.node, |node| {
            assert!(node.is_up && node.life == place.life);
            node.running[usize::from(place.core)] = false;
            let was_last = !node.running.contains(&true);
            node.is_up = !was_last;
            (
                std::mem::take(&mut node.channels[usize::from(place.core)]),
                was_last,
            )
        });
        self.executor
            .note(0xE0D ^ u64::from(place.node) << 16 ^ u64::from(place.core) << 32);
        self.executor.kill(|other| other == place);
        self.net.close_all(self, |other| other == place);
        channels.iter().for_each(|channel| channel.close());
        if was_last {
            self.volume(place.node).unlock_all();
        }
    }

    /// Ends a node from outside. Its tasks are dropped and cannot do any more harm.
    fn end_node(&self, number: u16, is_power_cut: bool) {
        let (life, channels) = self.with_node(number, |node| {
            node.is_up = false;
            node.running.fill(false);
            (node.life, std::mem::take(&mut node.channels))
        });
        self.executor
            .note(0xC8A5 ^ u64::from(number) << 16 ^ u64::from(is_power_cut));
        let is_there = |place: Place| place.node == number && place.life == life;
        if is_power_cut {
            self.net.crash(self, number);
        }
        self.executor.kill(is_there);
        self.net.close_all(self, is_there);
        channels
            .iter()
            .flatten()
            .for_each(|channel| channel.close());
        self.volume(number).end_life(&self.executor, is_power_cut);
    }
}

/// A simulated world, and the owner of all that lives in it.
pub struct World(Handle);

/// What tests, and clients that play nemesis, do to a world.
#[derive(Clone)]
pub struct Handle(Rc<Inner>);

impl Deref for World {
    type Target = Handle;
    fn deref(&self) -> &Handle {
        &self.0
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let world = &self.0.0;
        if std::thread::panicking() {
            // Dropping half-finished tasks could panic again; the test has failed anyway.
            return std::mem::forget(Rc::clone(world));
        }
        let _entered = Entered::new(world);
        world.with_node(NO_NODE, |clients| clients.is_up = false);
        let numbers: Vec<u16> = world.nodes.borrow().keys().copied().collect();
        for number in numbers {
            world.end_node(number, false);
        }
        world.executor.clear();
        world.net.clear();
    }
}

impl World {
    /// An empty world.
    pub fn new(options: Options) -> World {
        let executor = Executor::new(options.seed, options.schedule.clone());
        let net = Net::new(options.net.clone());
        let nodes = RefCell::default();
        World(Handle(Rc::new(Inner {
            options,
            executor,
            nodes,
            net,
        })))
    }

    /// Runs until `done`, which is asked before each step, for at most `limit` of virtual time.
    /// False if it did not come to that: time is up, or nothing will ever happen again.
    pub fn run_until(&self, mut done: impl FnMut() -> bool, limit: Duration) -> bool {
        let executor = &self.0.0.executor;
        let horizon = executor.after(limit);
        let polls_max = executor.polls() + POLLS_MAX;
        self.running(|| {
            loop {
                if done() {
                    return true;
                }
                assert!(executor.polls() < polls_max, "tasks spin");
                if executor.now() >= horizon || executor.step(horizon) != Step::Ran {
                    return done();
                }
            }
        })
    }

    /// Runs for `duration` of virtual time.
    pub fn run_for(&self, duration: Duration) {
        let executor = &self.0.0.executor;
        let end = executor.after(duration);
        self.run_until(|| false, duration);
        executor.pass(end.saturating_sub(executor.now()));
    }

    /// Runs until nothing is left to do and nothing is waited for but messages that never come;
    /// false if that takes longer than `limit`.
    pub fn run_to_quiet(&self, limit: Duration) -> bool {
        let executor = &self.0.0.executor;
        let horizon = executor.after(limit);
        self.running(|| {
            loop {
                match executor.step(horizon) {
                    Step::Quiet => return true,
                    Step::Ran if executor.now() < horizon => {}
                    _ => return false,
                }
            }
        })
    }

    /// Runs a client to its end.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let task = self.spawn_client(future);
        self.finish(&task, "a client")
    }

    /// Starts a node of one core whose main is `main`, and runs it to its end.
    pub fn run_on<T: 'static>(&self, node: NodeId, main: impl Future<Output = T> + 'static) -> T {
        let place = self.0.0.begin_life(node, 1);
        let task = self.0.0.spawn_main(place, main);
        self.finish(&task, "a node")
    }

    fn finish<T>(&self, task: &Task<T>, who: &str) -> T {
        self.run_until(|| task.is_done(), PATIENCE);
        task.take().unwrap_or_else(|| {
            panic!(
                "seed {}: {who} waits for something that never comes",
                self.seed()
            )
        })
    }

    fn running<T>(&self, run: impl FnOnce() -> T) -> T {
        let world = &self.0.0;
        let ran = {
            let _entered = Entered::new(world);
            catch_unwind(AssertUnwindSafe(run))
        };
        ran.unwrap_or_else(|payload| {
            let place = world.executor.place();
            let who = match place.node {
                NO_NODE => "a client".to_owned(),
                node => format!("node {node}, core {}", place.core),
            };
            let seconds = Duration::from_nanos(world.executor.now());
            panic!(
                "seed {}: {who}, at {seconds:?}: {}",
                self.seed(),
                said(&*payload)
            )
        })
    }
}

/// What a panic said.
fn said(payload: &(dyn Any + Send)) -> &str {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "a panic without words",
    }
}

impl Inner {
    /// Switches a node on. The place is that of its first core.
    fn begin_life(&self, id: NodeId, cores: u16) -> Place {
        assert!(id.0 != NO_NODE && cores > 0);
        let clock_base = Duration::from_micros(self.executor.chance.between((0, 1 << 40)));
        let life = self.with_node(id.0, |node| {
            assert!(!node.is_up, "{id:?} is up already");
            node.life += 1;
            node.is_up = true;
            node.running = vec![true; usize::from(cores)];
            node.is_stopping = false;
            node.stop_waiters.clear();
            // It counts from its boot, which is in the past; no boot looks like the one before.
            node.clock_base = clock_base;
            node.channels = (0..cores).map(|_| Vec::new()).collect();
            node.life
        });
        self.executor
            .note(0x57A7 ^ u64::from(id.0) << 16 ^ u64::from(cores) << 32);
        self.net.light(id.0);
        self.volume(id.0).unlock_all();
        Place {
            node: id.0,
            core: 0,
            life,
        }
    }

    fn spawn_main<T: 'static>(
        self: &Rc<Self>,
        place: Place,
        main: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        let world = Rc::downgrade(self);
        let (task, join) = Task::new();
        self.executor.spawn(place, async move {
            let output = main.await;
            if let Some(world) = world.upgrade() {
                world.end_core(place);
            }
            join.give(output);
        });
        task
    }
}

impl Handle {
    /// The seed it was made from.
    pub fn seed(&self) -> u64 {
        self.0.options.seed
    }

    /// A handle to keep, for a client that does things to the world.
    pub fn handle(&self) -> Handle {
        self.clone()
    }

    /// Virtual time since the world began. The nodes' own clocks began elsewhere.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.0.executor.now())
    }

    /// All decisions, completions, faults and times so far, hashed. Two runs of one seed agree.
    pub fn trace_hash(&self) -> u64 {
        self.0.executor.trace()
    }

    /// How many times a task was polled so far.
    pub fn polls(&self) -> u64 {
        self.0.executor.polls()
    }

    /// Starts a node: `main` is called for each of its cores. What they return can be taken from
    /// the tasks. Its disk is as it was left; its address book is empty.
    pub fn start_node<M, T, F>(
        &self,
        node: NodeId,
        cores: u16,
        main: impl Fn(Core<M>) -> F,
    ) -> Vec<Task<T>>
    where
        M: Send + 'static,
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let first = self.0.begin_life(node, cores);
        let (mails, channels) = mail::mesh(&self.0, cores);
        self.0.with_node(node.0, |node| node.channels = channels);
        let start = |(number, mail)| {
            let core = number as u16;
            let mail = super::Mail(super::MailKind::Sim(mail));
            let future = main(Core {
                id: CoreId(core),
                count: cores,
                mail,
            });
            self.0.spawn_main(Place { core, ..first }, future)
        };
        mails.into_iter().enumerate().map(start).collect()
    }

    /// Starts a future that lives on no node, like a user's program.
    pub fn spawn_client<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.0.with_node(NO_NODE, |_| ());
        self.0.spawn(Place::CLIENT, future)
    }

    /// Asks a node to stop: its `stopping()` returns.
    pub fn stop_node(&self, node: NodeId) {
        let waiters = self.0.with_node(node.0, |node| {
            node.is_stopping = true;
            std::mem::take(&mut node.stop_waiters)
        });
        waiters.into_iter().for_each(Waker::wake);
    }

    /// True if all mains of the node have returned, or it was killed, or it never began.
    pub fn node_ended(&self, node: NodeId) -> bool {
        self.0.with_node(node.0, |node| !node.is_up)
    }

    /// Ends a node's process: its files keep all that was written, synced or not, and its
    /// connections are closed.
    pub fn kill_node(&self, node: NodeId) {
        self.end(node, false);
    }

    /// Cuts a node's power. Its disk becomes one of the images that may be found then, its
    /// connections are reset, at once or (half-open) when the other side next writes.
    pub fn crash_node(&self, node: NodeId) {
        self.end(node, true);
    }

    /// Lets a node stand still for a while, as a stopped process or a paused machine does.
    pub fn pause_node(&self, node: NodeId, duration: Duration) {
        let until = self.0.executor.after(duration);
        self.0.executor.stall(node.0, None, until);
    }

    /// Moves a node's wall clock, on or back.
    pub fn jump_clock(&self, node: NodeId, milliseconds: i64) {
        self.0
            .with_node(node.0, |node| node.wall_offset += milliseconds);
    }

    /// A node's disk, to look at and to damage.
    pub fn disk(&self, node: NodeId) -> Disk {
        Disk::new(Rc::clone(&self.0), self.0.volume(node.0))
    }

    /// The disk of files that clients use.
    pub fn client_disk(&self) -> Disk {
        self.disk(NodeId(NO_NODE))
    }

    /// What is dropped at the end of a node may call back into its world.
    fn end(&self, node: NodeId, is_power_cut: bool) {
        let _entered = (!IS_RUNNING.get()).then(|| Entered::new(&self.0));
        self.0.end_node(node.0, is_power_cut);
    }
}
