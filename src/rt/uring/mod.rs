//! The real side of the seam, on glommio: cores, tasks, timers and clocks.
//!
//! [`run_cores`] starts one executor a core. Each has two task queues, the kicker's eye on it
//! (see `kick`), and every future that runs on it in a [`Member`]: when a core's main future
//! has ended, whatever else still waits there is dropped, so that its sockets, files and
//! mailboxes are closed when `run_cores` returns.

mod files;
mod host;
mod keepalive;
mod mail;
mod net;
mod stop;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_lite::future;
use glommio::{
    ExecutorJoinHandle, GlommioError, Latency, LocalExecutorBuilder, Placement, Shares,
    TaskQueueHandle,
};

use super::kick::{Counted, Kicker, Pulse};
use super::{Core, Mail as SeamMail, MailKind, Queue};
use crate::error::{Error, Result};
use crate::types::{CoreId, UnixMillis};

pub use files::{
    DirLock, Directory, File, ReadBytes, WriteBytes, create_dir_all, file_to_probe, link, list_dir,
    lock_existing, lock_file, remove_dir, remove_file, rename,
};
pub use host::{
    HostReport, check_host, cpu_count, cpu_seconds, open_files, pins_for, resident_bytes,
};
pub use mail::{Inbox, Mail, Outbox};
pub use net::{Listener, Stream, reserve_ports, reserve_rows, resolve};
pub use stop::{request_stop, stopping};

/// Submissions that a ring takes at once; deeper ones gained nothing.
const RING_DEPTH: usize = 128;
/// How long a queue may run before I/O is looked at: what a client waits beside a busy background
/// task is about twice this.
const PREEMPT_AFTER: Duration = Duration::from_millis(1);
const FOREGROUND_SHARES: usize = 1000;
const BACKGROUND_SHARES: usize = 100;
/// A core that has not begun to run in this time is started once more, at most so many times.
const BEGIN_MAX: Duration = Duration::from_millis(300);
const BEGIN_ATTEMPTS_MAX: usize = 50;
/// Time between two looks at whether the cores begin.
const BEGIN_LOOK: Duration = Duration::from_millis(10);
/// Timers of a core that ends: it goes on at the first.
const LAST_TIMERS_MS: [u64; 8] = [1, 2, 3, 5, 8, 13, 21, 34];
/// How long an ending core waits for its siblings to take its last messages.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What the cores of a node run on.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// For each core of the node the CPU that it is pinned to, if it is. See [`pins_for`].
    pub pins: Vec<Option<usize>>,
    /// Memory that each core registers with its rings for I/O buffers.
    pub io_memory_bytes: usize,
    /// The data directory: a file there, made for that, tells whether its device can be polled. Or
    /// a file in it that is not empty, where nothing may be written.
    pub probe_dir: PathBuf,
    /// Takes the cure of `kick` out, for the test that shows that it is needed.
    #[doc(hidden)]
    pub without_kick: bool,
}

/// What a thread that runs a core knows about it.
struct Local {
    pulse: Arc<Pulse>,
    foreground: TaskQueueHandle,
    background: TaskQueueHandle,
    stop: Arc<stop::Stop>,
    /// True once the core's main future has ended: tasks give up what they hold.
    ending: Cell<bool>,
    members: RefCell<Members>,
}

/// Wakers of the tasks that have been polled and are not done.
#[derive(Default)]
struct Members {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

thread_local! {
    static LOCAL: OnceCell<Rc<Local>> = const { OnceCell::new() };
    static OWNED: Cell<bool> = const { Cell::new(false) };
}

fn local() -> Rc<Local> {
    LOCAL
        .with(|local| local.get().map(Rc::clone))
        .expect("called on a core that run_cores started")
}

/// Runs `main` on every core and waits for all of them. Their results come in the order of cores.
pub fn run_cores<M, T, F>(
    options: CoreOptions,
    main: impl Fn(Core<M>) -> F + Send + Clone + 'static,
) -> Result<Vec<T>>
where
    M: Send + 'static,
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let count = u16::try_from(options.pins.len()).expect("a node has fewer than 65536 cores");
    assert!(count > 0, "a node has a core");
    abort_on_panic_of_own_threads();
    host::check_rings()?;
    let stop = stop::register()?;
    let probe = Probe::create(&options.probe_dir)?;
    let (kicker, pulses) = Kicker::start(options.pins.len(), options.without_kick)
        .map_err(|error| Error::Setup(format!("cannot start a thread: {error}")))?;

    let (started, starts) = channel();
    let mut places = Vec::new();
    let mut gates = Vec::new();
    let mailboxes = mail::mail(count);
    for ((id, pulse), mail) in (0..count).zip(pulses).zip(mailboxes) {
        let (gate, gate_keeper) = channel();
        gates.push(gate);
        let seat = Seat {
            id: CoreId(id),
            count,
            mail,
            pulse,
            stop: Arc::clone(&stop),
            probe: probe.path.clone(),
            started: started.clone(),
            gate: gate_keeper,
        };
        places.push(Arc::new(Place::new(seat)));
    }
    drop(started);
    let start = |place: &Arc<Place<M>>| start_core(&options, place, main.clone());
    let mut threads: Vec<Vec<_>> = places.iter().map(|place| vec![start(place)]).collect();

    let up = see_them_begin(&starts, &places, &mut threads, start);
    drop(probe);
    if up == threads.len() {
        for gate in &gates {
            // A core that is up waits for this.
            let _ = gate.send(());
        }
    }
    drop(gates);
    let results = threads.into_iter().zip(&places).enumerate();
    let results: Vec<Result<Option<T>>> = results
        .map(|(core, (mut attempts, place))| {
            if !place.is_settled() {
                let why = "it does not begin to run";
                return Err(Error::Setup(format!("core {core} cannot start: {why}")));
            }
            join_core(core, attempts.swap_remove(place.taken_by()))
        })
        .collect();
    drop(kicker);
    // The core that could not start says why; the others only that one did not.
    let results: Vec<Option<T>> = results.into_iter().collect::<Result<_>>()?;
    let all: Option<Vec<T>> = results.into_iter().collect();
    all.ok_or_else(|| Error::Setup("a core did not start".to_owned()))
}

/// Waits until every core has said whether it is up; how many are. One that does not begin is
/// started once more (see [`Place`]).
fn see_them_begin<M: Send, T: Send>(
    starts: &Receiver<io::Result<()>>,
    places: &[Arc<Place<M>>],
    threads: &mut [Vec<CoreThread<T>>],
    start: impl Fn(&Arc<Place<M>>) -> CoreThread<T>,
) -> usize {
    let mut up = 0;
    let mut attempted = Instant::now();
    loop {
        match starts.recv_timeout(BEGIN_LOOK) {
            Ok(told) => up += usize::from(told.is_ok()),
            Err(RecvTimeoutError::Disconnected) => return up,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let late = attempted.elapsed() >= BEGIN_MAX;
        if late {
            attempted = Instant::now();
        }
        for (place, attempts) in places.iter().zip(&mut *threads) {
            if place.is_free() && (place.is_settled() || attempts.len() == BEGIN_ATTEMPTS_MAX) {
                place.clear();
            } else if place.is_free() && late {
                log::debug!("a core does not begin to run: it is started once more");
                attempts.push(start(place));
            }
        }
    }
}

/// A core's seat, for the first thread that gets to run.
///
/// glommio may park a core before it has polled anything (see `kick`), and what was never polled
/// cannot be kicked. Such a thread is left to itself: it holds nothing, and another one sits down.
struct Place<M: Send> {
    seat: Mutex<Option<Seat<M>>>,
    attempts: AtomicUsize,
    taken_by: OnceLock<usize>,
    /// Attempts that may still take the seat.
    open: Arc<()>,
}

impl<M: Send> Place<M> {
    fn new(seat: Seat<M>) -> Place<M> {
        Place {
            seat: Mutex::new(Some(seat)),
            attempts: AtomicUsize::new(0),
            taken_by: OnceLock::new(),
            open: Arc::new(()),
        }
    }

    fn seat(&self) -> MutexGuard<'_, Option<Seat<M>>> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_free(&self) -> bool {
        self.seat().is_some()
    }

    fn clear(&self) {
        self.seat().take();
    }

    /// The seat, if nobody has taken it.
    fn take(&self, attempt: usize) -> Option<Seat<M>> {
        let seat = self.seat().take()?;
        self.taken_by.get_or_init(|| attempt);
        Some(seat)
    }

    /// True if some thread has taken it, or all have failed: there is one to be joined.
    fn is_settled(&self) -> bool {
        self.taken_by.get().is_some() || Arc::strong_count(&self.open) == 1
    }

    fn taken_by(&self) -> usize {
        self.taken_by.get().copied().unwrap_or(0)
    }
}

/// What a core's thread is given.
struct Seat<M: Send> {
    id: CoreId,
    count: u16,
    mail: Mail<M>,
    pulse: Arc<Pulse>,
    stop: Arc<stop::Stop>,
    probe: PathBuf,
    /// Tells that the core is up; dropped without a word if it cannot come up.
    started: Sender<io::Result<()>>,
    /// Says a word when all are up; is closed if one is not.
    gate: Receiver<()>,
}

type CoreThread<T> = Result<ExecutorJoinHandle<io::Result<Option<T>>>, GlommioError<()>>;

fn start_core<M, T, F>(
    options: &CoreOptions,
    place: &Arc<Place<M>>,
    main: impl Fn(Core<M>) -> F + Send + 'static,
) -> CoreThread<T>
where
    M: Send + 'static,
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let id = place.seat().as_ref().map(|seat| seat.id);
    let pin = id.and_then(|id| options.pins[usize::from(id.0)]);
    let placement = match pin {
        Some(cpu) => Placement::Fixed(cpu),
        None => Placement::Unbound,
    };
    let attempt = place.attempts.fetch_add(1, Ordering::Relaxed);
    let (place, open) = (Arc::clone(place), Arc::clone(&place.open));
    LocalExecutorBuilder::new(placement)
        .name("quoit-core")
        .io_memory(options.io_memory_bytes)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT_AFTER)
        .spawn(move || async move {
            let Some(seat) = place.take(attempt) else {
                return Ok(None);
            };
            drop(open);
            own_this_thread();
            let pulse = Arc::clone(&seat.pulse);
            pulse.lend_waker().await;
            Counted::new(pulse, Box::pin(run_core(seat, main))).await
        })
}

async fn run_core<M, T, F>(seat: Seat<M>, main: impl Fn(Core<M>) -> F) -> io::Result<Option<T>>
where
    M: Send + 'static,
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let local = Rc::new(Local {
        pulse: Arc::clone(&seat.pulse),
        foreground: glommio::executor().create_task_queue(
            Shares::Static(FOREGROUND_SHARES),
            Latency::Matters(PREEMPT_AFTER),
            "foreground",
        ),
        background: glommio::executor().create_task_queue(
            Shares::Static(BACKGROUND_SHARES),
            Latency::NotImportant,
            "background",
        ),
        stop: seat.stop,
        ending: Cell::new(false),
        members: RefCell::default(),
    });
    LOCAL.with(|place| {
        place
            .set(Rc::clone(&local))
            .unwrap_or_else(|_| unreachable!("once a thread"))
    });
    let heartbeat = Arc::clone(&local.pulse).heartbeat();
    glommio::spawn_local_into(heartbeat, local.background)
        .map_err(into_io)?
        .detach();

    // Whether a device can be polled is found out by the first file that is opened there, and
    // kept: an empty or write-only one gives the wrong answer, and reads that fail.
    let probed = File::open_to_read(&seat.probe).await;
    let up = match probed {
        Ok(file) => {
            file.close().await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    let told = up
        .as_ref()
        .map(|_| ())
        .map_err(|error| io::Error::from(error.kind()));
    let _ = seat.started.send(told);
    drop(seat.started);
    up?;
    // Blocks the thread, which has nothing else to run yet.
    if seat.gate.recv().is_err() {
        return Ok(None);
    }
    let core = Core {
        id: seat.id,
        count: seat.count,
        mail: SeamMail(MailKind::Real(seat.mail)),
    };
    let result = spawn_in(Queue::Foreground, main(core)).await;
    wind_up(&local).await;
    Ok(Some(result))
}

/// Drops what the core's tasks hold: the last messages are sent first, and the closing of files
/// reaches the kernel before the executor ends.
async fn wind_up(local: &Local) {
    let deadline = Instant::now() + FAREWELL_MAX;
    while mail::unsent() > 0 && Instant::now() < deadline {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
    local.ending.set(true);
    for _ in 0..100 {
        let wakers: Vec<_> = local
            .members
            .borrow()
            .wakers
            .iter()
            .flatten()
            .cloned()
            .collect();
        if wakers.is_empty() {
            break;
        }
        wakers.iter().for_each(Waker::wake_by_ref);
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
    local.pulse.stop();
    // From here on nobody kicks this core. Should it park with what the first timer wakes (see
    // `kick`), a later one is another event, which ends that.
    let [first, later @ ..] =
        LAST_TIMERS_MS.map(|ms| glommio::timer::sleep(Duration::from_millis(ms)));
    let later = async {
        join_all(later).await;
    };
    future::or(first, later).await;
}

/// What a core's program returned; `None`: it never ran, for another core did not start.
fn join_core<T: Send>(core: usize, thread: CoreThread<T>) -> Result<Option<T>> {
    let why = match thread.and_then(ExecutorJoinHandle::join) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => format!("its probe file: {error}"),
        Err(error) => host::advice(error),
    };
    Err(Error::Setup(format!("core {core} cannot start: {why}")))
}

/// How long what a killed process held may stay taken, and how often it is tried.
const FREED_MAX: Duration = Duration::from_secs(3);
const FREED_CHECK: Duration = Duration::from_millis(50);

/// Tries again for a little while if something is taken: the kernel gives up what a killed process
/// held only when it has taken its rings down, a second later perhaps. Blocks its thread.
fn when_freed<T, E>(
    is_taken: impl Fn(&E) -> bool,
    attempt: impl Fn() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && began.elapsed() < FREED_MAX => {
                std::thread::sleep(FREED_CHECK);
            }
            decided => return decided,
        }
    }
}

/// A non-empty file in the data directory, there while the cores start.
struct Probe {
    path: PathBuf,
    /// It was there before, and stays.
    is_kept: bool,
}

impl Probe {
    fn create(dir: &Path) -> Result<Probe> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        if dir.is_file() {
            return Ok(Probe {
                path: dir.to_owned(),
                is_kept: true,
            });
        }
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.join(format!("probe-{}-{number}.tmp", std::process::id()));
        let written = std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&path, [0; super::BLOCK_BYTES]));
        let probe = Probe {
            path,
            is_kept: false,
        };
        match written {
            Ok(()) => Ok(probe),
            Err(error) => Err(Error::io("write", &probe.path, error)),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.is_kept {
            // If it cannot be removed, a small file is left over.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Marks the calling thread as one whose panic ends the process.
pub(super) fn own_this_thread() {
    OWNED.set(true);
}

/// What a helper thread of glommio says when the core that it worked for is no more.
const CORE_IS_GONE: &str = "failed to send response";

/// glommio would go on without the core that panicked, or wait forever for the answer of a helper
/// thread that did. A shard that silently is not there is worse than a node that is down.
fn abort_on_panic_of_own_threads() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !OWNED.get() {
                return before(panic);
            }
            // A helper thread whose core has ended in the meantime: nobody waits for what it has to
            // say.
            if panic.payload().downcast_ref() == Some(&CORE_IS_GONE) {
                return;
            }
            use io::Write;
            let trace = std::backtrace::Backtrace::capture();
            // Straight to the descriptor: what a test harness captures would die with us.
            let _ = writeln!(
                io::stderr(),
                "{panic}\n{trace}\naborting: a core has panicked"
            );
            std::process::abort();
        }));
    });
}

/// A future that runs by itself; dropping this lets it run on.
pub struct Task<T>(glommio::task::JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let output = Pin::new(&mut self.0).poll(context);
        output.map(|output| output.expect("nobody cancels a task, and a panic ends the process"))
    }
}

/// Starts `future` on this core, in `queue`. It first runs when its queue's turn comes.
pub fn spawn_in<T: 'static>(queue: Queue, future: impl Future<Output = T> + 'static) -> Task<T> {
    let local = local();
    let handle = match queue {
        Queue::Foreground => local.foreground,
        Queue::Background => local.background,
    };
    let pulse = Arc::clone(&local.pulse);
    let member = Member {
        future: Some(Box::pin(future)),
        local,
        place: None,
    };
    let task = glommio::spawn_local_into(Counted::new(pulse, member), handle);
    Task(task.expect("a core keeps its queues").detach())
}

/// A task's future, which gives up when its core ends.
struct Member<F> {
    future: Option<Pin<Box<F>>>,
    local: Rc<Local>,
    place: Option<usize>,
}

impl<F: Future> Future for Member<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.local.ending.get() {
            self.leave();
            self.future = None;
        }
        if self.place.is_none() && self.future.is_some() {
            let place = self.local.members.borrow_mut().enter(context.waker());
            self.place = Some(place);
        }
        match &mut self.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Member<F> {
    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            // The waker may be the last of its task, so it is dropped outside of the borrow.
            let waker = self.local.members.borrow_mut().leave(place);
            drop(waker);
        }
    }
}

impl<F> Drop for Member<F> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Members {
    fn enter(&mut self, waker: &Waker) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        });
        self.wakers[place] = Some(waker.clone());
        place
    }

    fn leave(&mut self, place: usize) -> Option<Waker> {
        self.free.push(place);
        self.wakers[place].take()
    }
}

/// Runs `work`, which blocks, on the core's helper thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor()
        .spawn_blocking(move || {
            own_this_thread();
            work()
        })
        .await
}

/// Lets others run if it is their turn.
pub async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// Lets the tasks that are ready by now run first, if there are any.
pub async fn after_others() {
    if local().pulse.has_runnable() {
        glommio::executor().yield_now().await;
    }
}

/// Returns after `duration`.
pub async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// Time since the process first asked.
pub fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The wall clock; 0 for a clock that is set before 1970.
pub fn wall_ms() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for all of a few futures at once.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|context| {
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                *output = Some(value);
            }
        }
        match waiting.iter().all(|(_, output)| output.is_some()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    waiting
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

/// The operating system's error inside of one of glommio's, errno and all.
fn into_io<T>(error: GlommioError<T>) -> io::Error {
    match error {
        GlommioError::IoError(source) => source,
        GlommioError::EnhancedIoError { source, .. } => source,
        GlommioError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
        GlommioError::WouldBlock(_) => io::ErrorKind::WouldBlock.into(),
        GlommioError::TimedOut(_) => io::ErrorKind::TimedOut.into(),
        other => io::Error::other(other.to_string()),
    }
}
