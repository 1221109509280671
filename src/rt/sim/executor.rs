//! The simulated executor: tasks, alarms, virtual time, chance and the trace, all from one seed.
//!
//! One step polls one runnable task. Which one is the seed's choice, so tasks of one core and of
//! different cores interleave in any order. Time stands still while there is work, but for a small
//! random cost of each poll; when nothing is runnable it jumps to the next alarm.
//!
//! Invariant: no cell here is borrowed while a task is polled, woken or dropped, so those may call
//! back in. Nothing is iterated in an order that a hash or an address decides.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// How the seed shares the processors out.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Chance that the next task is any runnable one and not the one that waits longest.
    pub random_picks: f64,
    /// A poll takes up to this much virtual time.
    pub poll_ns_max: u64,
    /// Chance that a core stands still after a poll, as if its thread had been preempted.
    pub stalls: f64,
    /// How long it then stands still at most.
    pub stall_us_max: u64,
}

/// The node number of test clients, which live on no node.
pub(super) const NO_NODE: u16 = u16::MAX;

/// Where a task runs. `life` tells a restarted node from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub node: u16,
    pub core: u16,
    pub life: u32,
}

impl Place {
    pub const CLIENT: Place = Place {
        node: NO_NODE,
        core: 0,
        life: 0,
    };
}

/// The one source of chance of a world.
pub(super) struct Chance(RefCell<fastrand::Rng>);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(RefCell::new(fastrand::Rng::with_seed(seed)))
    }

    pub fn next(&self) -> u64 {
        self.0.borrow_mut().u64(..)
    }

    /// A number in `0..bound`.
    pub fn below(&self, bound: usize) -> usize {
        assert!(bound > 0);
        self.0.borrow_mut().usize(..bound)
    }

    /// A number between the two, both included.
    pub fn between(&self, (least, most): (u64, u64)) -> u64 {
        self.0.borrow_mut().u64(least..=most)
    }

    /// True with this probability. Certainties cost no draw.
    pub fn hits(&self, probability: f64) -> bool {
        probability > 0.0 && (probability >= 1.0 || self.0.borrow_mut().f64() < probability)
    }

    pub fn coin(&self) -> bool {
        self.0.borrow_mut().bool()
    }
}

/// What an alarm may call instead of waking a task.
pub(super) trait Bell {
    fn ring(&self, now: u64);
}

pub(super) enum Alarm {
    Wake(Waker),
    Ring(Rc<dyn Bell>),
}

/// Names an alarm: when it goes off, and a number that makes it unique.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AlarmId {
    at: u64,
    order: u64,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A task was polled.
    Ran,
    /// Nothing happens before the horizon; the clock stands there.
    Horizon,
    /// Nothing will ever happen again by itself.
    Quiet,
}

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    generation: u32,
    place: Place,
    /// Absent while it is polled, and in a free slot.
    work: Option<Work>,
    /// Absent with `work`.
    waker: Option<Waker>,
    flag: Option<Arc<Woken>>,
}

/// A task's waker. `Wake` asks for `Send`, hence the atomics; nobody contends for them.
struct Woken {
    index: u32,
    generation: u32,
    queued: AtomicBool,
    list: Arc<Mutex<Vec<(u32, u32)>>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.list).push((self.index, self.generation));
        }
    }
}

fn lock(list: &Mutex<Vec<(u32, u32)>>) -> MutexGuard<'_, Vec<(u32, u32)>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
}

pub(super) struct Executor {
    pub chance: Chance,
    schedule: Schedule,
    slots: RefCell<Slots>,
    woken: Arc<Mutex<Vec<(u32, u32)>>>,
    runnable: RefCell<VecDeque<(u32, u32)>>,
    alarms: RefCell<BTreeMap<AlarmId, Alarm>>,
    alarms_set: Cell<u64>,
    /// Cores that stand still, and until when. `None`: all cores of the node.
    stalled: RefCell<Vec<(u16, Option<u16>, u64)>>,
    now: Cell<u64>,
    trace: Cell<u64>,
    place: Cell<Place>,
    polls: Cell<u64>,
}

impl Executor {
    pub fn new(seed: u64, schedule: Schedule) -> Executor {
        Executor {
            chance: Chance::new(seed),
            schedule,
            slots: RefCell::default(),
            woken: Arc::default(),
            runnable: RefCell::default(),
            alarms: RefCell::default(),
            alarms_set: Cell::new(0),
            stalled: RefCell::default(),
            now: Cell::new(0),
            trace: Cell::new(seed),
            place: Cell::new(Place::CLIENT),
            polls: Cell::new(0),
        }
    }

    /// Virtual nanoseconds since the world began.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// The moment that is `duration` away.
    pub fn after(&self, duration: Duration) -> u64 {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.now().saturating_add(nanos)
    }

    /// Moves the clock on, past alarms too: those are then late.
    pub fn pass(&self, nanos: u64) {
        self.now.set(self.now.get() + nanos);
    }

    /// Where the task that is being polled runs.
    pub fn place(&self) -> Place {
        self.place.get()
    }

    /// How many times a task was polled.
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Adds a decision to the trace.
    pub fn note(&self, word: u64) {
        let mixed = (self.trace.get() ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.trace.set(mixed.rotate_left(27));
    }

    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    pub fn spawn(&self, place: Place, work: impl Future<Output = ()> + 'static) {
        let mut slots = self.slots.borrow_mut();
        let index = slots.free.pop().unwrap_or(slots.all.len() as u32);
        if index as usize == slots.all.len() {
            slots.all.push(Slot {
                generation: 0,
                place,
                work: None,
                waker: None,
                flag: None,
            });
        }
        let slot = &mut slots.all[index as usize];
        assert!(slot.work.is_none() && slot.flag.is_none());
        let flag = Arc::new(Woken {
            index,
            generation: slot.generation,
            queued: AtomicBool::new(false),
            list: Arc::clone(&self.woken),
        });
        slot.place = place;
        slot.work = Some(Box::pin(work));
        slot.waker = Some(Waker::from(Arc::clone(&flag)));
        flag.wake_by_ref();
        slot.flag = Some(flag);
    }

    /// Drops the tasks whose place `dies`; the one being polled ends with its poll.
    pub fn kill(&self, dies: impl Fn(Place) -> bool) {
        let mut dropped = Vec::new();
        let mut slots = self.slots.borrow_mut();
        let Slots { all, free } = &mut *slots;
        for (index, slot) in all.iter_mut().enumerate() {
            if slot.flag.is_some() && dies(slot.place) {
                dropped.push((slot.place, slot.work.take()));
                retire(slot, index as u32, free);
            }
        }
        drop(slots);
        for (place, work) in dropped {
            // Whatever its drop asks for is asked for from there.
            let asking = self.place.replace(place);
            drop(work);
            self.place.set(asking);
        }
    }

    /// Drops all tasks and alarms, at the end of the world. Its tasks own it, so this breaks a
    /// ring.
    pub fn clear(&self) {
        // What is dropped may spawn and set alarms: once more takes those.
        for _ in 0..2 {
            self.kill(|_| true);
            let alarms = self.alarms.take();
            drop(alarms);
        }
    }

    /// Lets tasks of these cores wait until `until`.
    pub fn stall(&self, node: u16, core: Option<u16>, until: u64) {
        self.stalled.borrow_mut().push((node, core, until));
    }

    pub fn set_alarm(&self, at: u64, alarm: Alarm) -> AlarmId {
        let order = self.alarms_set.get();
        self.alarms_set.set(order + 1);
        let id = AlarmId { at, order };
        self.alarms.borrow_mut().insert(id, alarm);
        id
    }

    pub fn cancel_alarm(&self, id: AlarmId) {
        let alarm = self.alarms.borrow_mut().remove(&id);
        drop(alarm);
    }

    fn change_waker(&self, id: AlarmId, waker: &Waker) {
        if let Some(Alarm::Wake(old)) = self.alarms.borrow_mut().get_mut(&id) {
            old.clone_from(waker);
        }
    }

    /// Polls one task, moving the clock up to `horizon` if that takes it.
    pub fn step(&self, horizon: u64) -> Step {
        loop {
            self.ring_due();
            self.runnable
                .borrow_mut()
                .extend(lock(&self.woken).drain(..));
            while let Some((index, generation)) = self.pick() {
                if self.poll(index, generation) {
                    return Step::Ran;
                }
            }
            let next = self.alarms.borrow().first_key_value().map(|(id, _)| id.at);
            match next {
                None if lock(&self.woken).is_empty() => return Step::Quiet,
                None => {}
                Some(at) if at > horizon => {
                    self.now.set(self.now().max(horizon));
                    return Step::Horizon;
                }
                Some(at) => self.now.set(self.now().max(at)),
            }
        }
    }

    fn ring_due(&self) {
        let now = self.now();
        loop {
            let mut alarms = self.alarms.borrow_mut();
            match alarms.first_entry() {
                Some(first) if first.key().at <= now => {
                    let alarm = first.remove();
                    drop(alarms);
                    match alarm {
                        Alarm::Wake(waker) => waker.wake(),
                        Alarm::Ring(bell) => bell.ring(now),
                    }
                }
                _ => return,
            }
        }
    }

    fn pick(&self) -> Option<(u32, u32)> {
        let mut runnable = self.runnable.borrow_mut();
        if runnable.len() > 1 && self.chance.hits(self.schedule.random_picks) {
            let index = self.chance.below(runnable.len());
            return runnable.swap_remove_front(index);
        }
        runnable.pop_front()
    }

    /// Polls the task unless it has ended or its core stands still; true if it did.
    fn poll(&self, index: u32, generation: u32) -> bool {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.all[index as usize];
        if slot.generation != generation {
            return false;
        }
        let flag = slot.flag.as_ref().expect("a live task has its flag");
        flag.queued.store(false, Ordering::Relaxed);
        let place = slot.place;
        if let Some(until) = self.stalled_until(place) {
            let waker = slot.waker.clone().expect("it is not being polled");
            drop(slots);
            self.set_alarm(until, Alarm::Wake(waker));
            return false;
        }
        let mut work = slot.work.take().expect("it is not being polled");
        let waker = slot.waker.take().expect("it is not being polled");
        drop(slots);

        self.note(u64::from(index) << 32 ^ self.now());
        self.polls.set(self.polls.get() + 1);
        self.place.set(place);
        let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
        self.settle(
            index,
            generation,
            polled.is_pending().then_some((work, waker)),
        );
        self.place.set(Place::CLIENT);
        self.pass(self.chance.between((0, self.schedule.poll_ns_max)));
        if place.node != NO_NODE && self.chance.hits(self.schedule.stalls) {
            let stall = self.chance.between((1, self.schedule.stall_us_max)) * 1000;
            self.stall(place.node, Some(place.core), self.now() + stall);
        }
        true
    }

    /// Puts a polled task back, or drops it if it is done or was killed meanwhile.
    fn settle(&self, index: u32, generation: u32, left: Option<(Work, Waker)>) {
        let mut slots = self.slots.borrow_mut();
        let Slots { all, free } = &mut *slots;
        let slot = &mut all[index as usize];
        let is_alive = slot.generation == generation;
        match left {
            Some((work, waker)) if is_alive => {
                slot.work = Some(work);
                slot.waker = Some(waker);
            }
            killed => {
                if is_alive {
                    retire(slot, index, free);
                }
                drop(slots);
                drop(killed);
            }
        }
    }

    fn stalled_until(&self, place: Place) -> Option<u64> {
        let mut stalled = self.stalled.borrow_mut();
        if stalled.is_empty() {
            return None;
        }
        stalled.retain(|&(_, _, until)| until > self.now());
        let mine = |&&(node, core, _): &&(u16, Option<u16>, u64)| {
            node == place.node && core.is_none_or(|core| core == place.core)
        };
        stalled
            .iter()
            .filter(mine)
            .map(|&(_, _, until)| until)
            .max()
    }
}

fn retire(slot: &mut Slot, index: u32, free: &mut Vec<u32>) {
    slot.generation += 1;
    slot.waker = None;
    slot.flag = None;
    free.push(index);
}

/// Waits until a moment. Dropping it cancels its alarm.
pub(super) struct Sleep<'a> {
    executor: &'a Executor,
    at: u64,
    alarm: Option<AlarmId>,
}

impl<'a> Sleep<'a> {
    pub fn until(executor: &'a Executor, at: u64) -> Sleep<'a> {
        Sleep {
            executor,
            at,
            alarm: None,
        }
    }

    pub fn during(executor: &'a Executor, duration: Duration) -> Sleep<'a> {
        Sleep::until(executor, executor.after(duration))
    }
}

impl Future for Sleep<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.at {
            return Poll::Ready(());
        }
        match self.alarm {
            Some(alarm) => self.executor.change_waker(alarm, context.waker()),
            None => {
                let alarm = Alarm::Wake(context.waker().clone());
                self.alarm = Some(self.executor.set_alarm(self.at, alarm));
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            self.executor.cancel_alarm(alarm);
        }
    }
}

/// A task's output on its way to whoever awaits it. Dropping it detaches the task.
pub struct Task<T>(Rc<Join<T>>);

/// The other end of a [`Task`].
pub(super) struct Join<T> {
    output: RefCell<Option<T>>,
    waiting: RefCell<Option<Waker>>,
}

impl<T> Task<T> {
    pub(super) fn new() -> (Task<T>, Rc<Join<T>>) {
        let join = Rc::new(Join {
            output: RefCell::new(None),
            waiting: RefCell::new(None),
        });
        (Task(Rc::clone(&join)), join)
    }

    /// Its output, if it has ended and nobody took it yet.
    pub fn take(&self) -> Option<T> {
        self.0.output.take()
    }

    /// True if it has ended and nobody took its output yet.
    pub fn is_done(&self) -> bool {
        self.0.output.borrow().is_some()
    }
}

impl<T> Join<T> {
    pub fn give(&self, output: T) {
        *self.output.borrow_mut() = Some(output);
        let waiting = self.waiting.take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.take() {
            Some(output) => Poll::Ready(output),
            None => {
                *self.0.waiting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
