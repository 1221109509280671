//! The cure for an executor that sleeps with runnable tasks.
//!
//! glommio 0.9 takes "preempted before anything ran" for "nothing to run" (its `run_task_queues`
//! answers false to both) and parks. A completion in its latency ring at the wrong moment does
//! it: the preemption timer, a message from another core, a new connection. It then sleeps, with
//! its tasks waiting, until some other event comes along: perhaps never.
//!
//! The cure has two halves. Every future of a core is wrapped ([`Counted`]), so that the core's
//! [`Pulse`] counts its tasks that were woken and not polled since. And one thread a node
//! ([`Kicker`]) looks at the pulses every millisecond while there are such tasks: a core that has
//! some and polled none since the last look is kicked, by waking a task of it that does nothing.
//! A wake-up from another thread is what ends a park; a timer inside the executor would be
//! stranded with the rest.
//!
//! Invariant: the count rises before the executor hears of the wake-up, so there is no way from
//! idle into the stranded state that the count does not show. A stall lasts about two looks. What
//! the count cannot show (a notification lost between cores) ends with the next safety kick,
//! which all cores get. While nothing is runnable the thread sleeps between those.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Time between two looks at the cores.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the thread goes on looking after the last runnable task: waking it costs a core more
/// than a few vain looks cost the thread.
const LINGER: Duration = Duration::from_millis(50);
/// Time between two kicks of all cores, whatever their pulse.
const SAFETY_EVERY: Duration = Duration::from_millis(100);
/// A core that answers none of so many kicks is not parked, but busy with one long poll: it is
/// kicked at every 64th look from then on.
const UNANSWERED_FAST_MAX: u32 = 1_000;
/// And not at all from here: each unanswered kick holds a reference to the heartbeat's task, and
/// glommio panics at 32,767 of them.
const UNANSWERED_MAX: u32 = 20_000;

static KICKS: AtomicU64 = AtomicU64::new(0);

/// How often a core of this process was found with runnable tasks that it did not run.
pub fn kicks() -> u64 {
    KICKS.load(Ordering::Relaxed)
}

/// What the outside can see of one core.
pub(super) struct Pulse {
    /// Tasks that were woken and not polled since.
    runnable: AtomicUsize,
    /// Rises with every poll.
    polls: AtomicU64,
    /// Kicks since the heartbeat was last polled.
    unanswered: AtomicU32,
    /// Wakes the heartbeat. It stays here: a waker that is taken out to be used would be missing
    /// when the heartbeat itself is among the stranded tasks.
    heartbeat: Mutex<Option<Waker>>,
    alarm: Arc<Alarm>,
}

/// How to wake the kicker.
#[derive(Default)]
struct Alarm {
    asleep: AtomicBool,
    stopped: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Alarm {
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Pulse {
    fn task_woken(&self) {
        if self.runnable.fetch_add(1, Ordering::SeqCst) == 0
            && self.alarm.asleep.load(Ordering::SeqCst)
        {
            self.alarm.ring();
        }
    }

    fn task_taken(&self) {
        let before = self.runnable.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "a task is counted before it is taken");
    }

    /// Only the core itself polls, so nothing is lost between load and store.
    fn polled(&self) {
        self.polls
            .store(self.polls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// True if a task waits to be polled: for the core itself to ask.
    pub(super) fn has_runnable(&self) -> bool {
        self.runnable.load(Ordering::Relaxed) > 0
    }

    /// Looks at the core, kicks it if it is stuck, tells whether anything is runnable.
    fn look(&self, polls_seen: &mut u64, looks: u64) -> bool {
        let runnable = self.runnable.load(Ordering::SeqCst) > 0;
        let polls = self.polls.load(Ordering::Relaxed);
        if runnable && polls == *polls_seen && self.kick(looks) {
            KICKS.fetch_add(1, Ordering::Relaxed);
        }
        *polls_seen = polls;
        runnable
    }

    fn kick(&self, looks: u64) -> bool {
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        let now = match unanswered {
            0..UNANSWERED_FAST_MAX => true,
            UNANSWERED_FAST_MAX..UNANSWERED_MAX => looks.is_multiple_of(64),
            UNANSWERED_MAX.. => false,
        };
        let heartbeat = self
            .heartbeat
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*heartbeat {
            Some(waker) if now => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                waker.wake_by_ref();
                true
            }
            _ => false,
        }
    }

    /// The task that is woken to get its core out of a park. It must run uncounted, in a queue
    /// without latency needs: there a wake-up reaches a parked core only, and costs a running one
    /// no system call.
    pub(super) async fn heartbeat(self: Arc<Pulse>) {
        let mut known = false;
        std::future::poll_fn(|context| {
            self.unanswered.store(0, Ordering::Relaxed);
            // Once: the core must not wait for the kicker, which may be off its CPU with the lock.
            if !known {
                known = true;
                let mut heartbeat = self
                    .heartbeat
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *heartbeat = Some(context.waker().clone());
            }
            Poll::<()>::Pending
        })
        .await;
    }

    /// Makes the task that runs this the one to be woken until the heartbeat is: to be awaited by
    /// the core's first task, for before the heartbeat's first poll the core may park, too.
    pub(super) async fn lend_waker(&self) {
        std::future::poll_fn(|context| {
            let mut heartbeat = self
                .heartbeat
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *heartbeat = Some(context.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Takes the core out of the kicker's sight, before its executor ends.
    pub(super) fn stop(&self) {
        self.heartbeat
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// The thread that looks at the cores of one node.
pub(super) struct Kicker {
    alarm: Arc<Alarm>,
    thread: Option<JoinHandle<()>>,
}

impl Kicker {
    /// Starts the thread, and makes the pulses that it looks at. With `disabled` there is no
    /// thread, which only a test of the cure can want.
    pub(super) fn start(
        cores: usize,
        disabled: bool,
    ) -> std::io::Result<(Kicker, Vec<Arc<Pulse>>)> {
        let alarm = Arc::new(Alarm::default());
        let pulses: Vec<_> = (0..cores)
            .map(|_| {
                Arc::new(Pulse {
                    runnable: AtomicUsize::new(0),
                    polls: AtomicU64::new(0),
                    unanswered: AtomicU32::new(0),
                    heartbeat: Mutex::new(None),
                    alarm: Arc::clone(&alarm),
                })
            })
            .collect();
        let mut kicker = Kicker {
            alarm: Arc::clone(&alarm),
            thread: None,
        };
        if !disabled {
            let watched = pulses.clone();
            let thread = thread::Builder::new().name("quoit-kick".into());
            kicker.thread = Some(thread.spawn(move || look_after(&watched, &alarm))?);
        }
        Ok((kicker, pulses))
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.alarm.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot have panicked: a panic in it aborts the process.
            let _ = thread.join();
        }
    }
}

fn look_after(pulses: &[Arc<Pulse>], alarm: &Alarm) {
    super::uring::own_this_thread();
    alarm.thread.get_or_init(thread::current);
    let mut polls_seen = vec![0; pulses.len()];
    let mut busy_at = Instant::now();
    let mut safety_at = Instant::now();
    let mut looks = 0;
    while !alarm.stopped.load(Ordering::SeqCst) {
        looks += 1;
        let mut busy = false;
        for (pulse, polls_seen) in pulses.iter().zip(&mut polls_seen) {
            busy |= pulse.look(polls_seen, looks);
        }
        let now = Instant::now();
        if now - safety_at >= SAFETY_EVERY {
            safety_at = now;
            for pulse in pulses {
                pulse.kick(looks);
            }
        }
        if busy {
            busy_at = now;
        }
        if now - busy_at >= LINGER {
            alarm.asleep.store(true, Ordering::SeqCst);
            // Asked again after the flag is up: a task that is woken from here on rings.
            if pulses
                .iter()
                .all(|pulse| pulse.runnable.load(Ordering::SeqCst) == 0)
            {
                thread::park_timeout(SAFETY_EVERY);
            }
            alarm.asleep.store(false, Ordering::SeqCst);
        }
        thread::sleep(LOOK_EVERY);
    }
}

const IDLE: u8 = 0;
const WOKEN: u8 = 1;
const DONE: u8 = 2;

/// A future that counts in its core's pulse while it is woken and not polled. It must be the
/// outermost future of a task: it keeps the waker of its first poll.
///
/// The waker that it hands on is its own, with a count as wide as memory. That spares us a second
/// trap: glommio panics when a task has 32,767 wakers.
pub(super) struct Counted<F> {
    pulse: Arc<Pulse>,
    /// None before the first poll, when the task counts as woken by its birth.
    waker: Option<(Arc<CountedWaker>, Waker)>,
    future: F,
}

struct CountedWaker {
    state: AtomicU8,
    pulse: Arc<Pulse>,
    inner: Waker,
}

impl<F> Counted<F> {
    /// Wraps `future`, which is about to be spawned.
    pub(super) fn new(pulse: Arc<Pulse>, future: F) -> Counted<F> {
        pulse.task_woken();
        Counted {
            pulse,
            waker: None,
            future,
        }
    }
}

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Counted {
            pulse,
            waker,
            future,
        } = &mut *self;
        pulse.polled();
        match waker {
            Some((counted, _)) => {
                if counted.state.swap(IDLE, Ordering::SeqCst) == WOKEN {
                    pulse.task_taken();
                }
            }
            None => pulse.task_taken(),
        }
        let (_, waker) = waker.get_or_insert_with(|| {
            let counted = Arc::new(CountedWaker {
                state: AtomicU8::new(IDLE),
                pulse: Arc::clone(pulse),
                inner: context.waker().clone(),
            });
            (Arc::clone(&counted), Waker::from(counted))
        });
        Pin::new(future).poll(&mut Context::from_waker(waker))
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        let woken = match &self.waker {
            Some((counted, _)) => counted.state.swap(DONE, Ordering::SeqCst) == WOKEN,
            None => true,
        };
        if woken {
            self.pulse.task_taken();
        }
    }
}

impl Wake for CountedWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.load(Ordering::SeqCst) != IDLE {
            return;
        }
        // Counted first: once the state says so, the core may take it off the count again.
        self.pulse.task_woken();
        match self
            .state
            .compare_exchange(IDLE, WOKEN, Ordering::SeqCst, Ordering::SeqCst)
        {
            Ok(_) => self.inner.wake_by_ref(),
            Err(_) => self.pulse.task_taken(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> Arc<Pulse> {
        let (_kicker, mut pulses) = Kicker::start(1, true).unwrap();
        pulses.pop().unwrap()
    }

    fn runnable(pulse: &Pulse) -> usize {
        pulse.runnable.load(Ordering::SeqCst)
    }

    /// Counts how often the executor is told to run the task.
    #[derive(Default)]
    struct Told(AtomicU32);

    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_task_counts_exactly_while_it_is_woken_and_not_polled() {
        let pulse = pulse();
        let told = Arc::new(Told::default());
        let executor = Waker::from(Arc::clone(&told));
        let context = &mut Context::from_waker(&executor);
        let inner = Mutex::new(None);
        let future = std::future::poll_fn(|context| {
            *inner.lock().unwrap() = Some(context.waker().clone());
            Poll::<()>::Pending
        });
        let mut task = Counted::new(Arc::clone(&pulse), future);
        assert_eq!(runnable(&pulse), 1, "a new task waits for its first poll");
        assert!(Pin::new(&mut task).poll(context).is_pending());
        assert_eq!(runnable(&pulse), 0);

        let waker = inner.lock().unwrap().clone().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(runnable(&pulse), 1, "woken twice is runnable once");
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
        assert!(Pin::new(&mut task).poll(context).is_pending());
        assert_eq!(runnable(&pulse), 0);

        waker.wake_by_ref();
        drop(task);
        assert_eq!(runnable(&pulse), 0, "a task that is gone is not runnable");
        waker.wake();
        assert_eq!(runnable(&pulse), 0, "nor does it become so by an old waker");
        assert_eq!(told.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_task_that_wakes_itself_while_it_is_polled_stays_runnable() {
        let pulse = pulse();
        let executor = Waker::from(Arc::new(Told::default()));
        let context = &mut Context::from_waker(&executor);
        let future = std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        let mut task = Counted::new(Arc::clone(&pulse), future);
        for _ in 0..3 {
            assert!(Pin::new(&mut task).poll(context).is_pending());
            assert_eq!(runnable(&pulse), 1);
        }
        drop(Counted::new(Arc::clone(&pulse), std::future::ready(())));
        assert_eq!(
            runnable(&pulse),
            1,
            "one that was never polled leaves nothing behind"
        );
    }

    #[test]
    fn a_stuck_core_is_kicked_a_running_or_idle_one_is_not() {
        let pulse = pulse();
        let told = Arc::new(Told::default());
        *pulse.heartbeat.lock().unwrap() = Some(Waker::from(Arc::clone(&told)));
        let kicks = || told.0.load(Ordering::SeqCst);
        let mut seen = 0;
        assert!(!pulse.look(&mut seen, 1));
        assert_eq!(kicks(), 0, "idle");
        pulse.task_woken();
        pulse.polled();
        assert!(pulse.look(&mut seen, 2));
        assert_eq!(kicks(), 0, "it polled since the last look");
        assert!(pulse.look(&mut seen, 3));
        assert_eq!(kicks(), 1, "it did not");
        assert!(pulse.look(&mut seen, 4));
        assert_eq!(kicks(), 2, "a kick that is not answered is repeated");
    }

    #[test]
    fn a_core_that_never_answers_does_not_collect_kicks_for_ever() {
        let pulse = pulse();
        let told = Arc::new(Told::default());
        *pulse.heartbeat.lock().unwrap() = Some(Waker::from(Arc::clone(&told)));
        pulse.task_woken();
        let mut seen = 0;
        for look in 0..3_000_000 {
            pulse.look(&mut seen, look);
        }
        assert_eq!(told.0.load(Ordering::SeqCst), UNANSWERED_MAX);
        assert!(
            UNANSWERED_MAX < i16::MAX as u32,
            "glommio's count of a task's wakers"
        );
    }

    #[test]
    fn the_kicker_sleeps_when_nothing_runs_and_wakes_when_something_does() {
        let (kicker, pulses) = Kicker::start(1, false).unwrap();
        let told = Arc::new(Told::default());
        *pulses[0].heartbeat.lock().unwrap() = Some(Waker::from(Arc::clone(&told)));
        let asleep = |wanted| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while kicker.alarm.asleep.load(Ordering::SeqCst) != wanted {
                assert!(Instant::now() < deadline, "asleep is not {wanted}");
                thread::yield_now();
            }
        };
        asleep(true);
        let before = told.0.load(Ordering::SeqCst);
        pulses[0].task_woken();
        asleep(false);
        let deadline = Instant::now() + Duration::from_secs(10);
        while told.0.load(Ordering::SeqCst) < before + 5 {
            assert!(Instant::now() < deadline, "a stuck core is not kicked");
            thread::yield_now();
        }
        pulses[0].task_taken();
        asleep(true);
    }
}
