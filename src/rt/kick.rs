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
        std::future::poll_fn(|context| {
            self.unanswered.store(0, Ordering::Relaxed);
            let mut heartbeat = self
                .heartbeat
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            heartbeat.get_or_insert_with(|| context.waker().clone());
            Poll::<()>::Pending
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
