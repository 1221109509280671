//! The wish to stop: SIGINT or SIGTERM, or a test's word. A second signal ends the process at once,
//! unless it comes right behind the first: some who stop a process signal its group as well.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// Signals that come so soon after the first say the same.
const SAME_WISH: Duration = Duration::from_secs(1);

/// One node's wish to stop.
#[derive(Default)]
pub(super) struct Stop(Mutex<State>);

#[derive(Default)]
struct State {
    requested: bool,
    waiting: Vec<Option<Waker>>,
}

/// The nodes of this process that run.
static NODES: Mutex<Vec<Weak<Stop>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new node's. The first call takes the signals over from their default, which is to kill.
pub(super) fn register() -> Result<Arc<Stop>> {
    static LISTENING: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let listening = LISTENING.get_or_init(|| listen().map_err(|error| error.to_string()));
    if let Err(error) = listening {
        return Err(Error::Setup(format!("cannot listen to signals: {error}")));
    }
    let stop = Arc::new(Stop::default());
    let mut nodes = lock(&NODES);
    nodes.retain(|node| node.strong_count() > 0);
    nodes.push(Arc::downgrade(&stop));
    Ok(stop)
}

fn listen() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let thread = std::thread::Builder::new().name("quoit-signals".into());
    thread.spawn(move || {
        super::own_this_thread();
        let mut signals = signals.forever();
        if signals.next().is_none() {
            return;
        }
        let first = Instant::now();
        request_stop();
        for _ in signals {
            if first.elapsed() >= SAME_WISH {
                log::error!("a second signal: ending at once, whatever is not yet on disk");
                signal_hook::low_level::exit(1);
            }
        }
    })?;
    Ok(())
}

/// Asks all nodes that run in this process to stop, as a signal does.
pub fn request_stop() {
    let nodes: Vec<_> = lock(&NODES).iter().filter_map(Weak::upgrade).collect();
    for node in nodes {
        let woken = {
            let mut state = lock(&node.0);
            state.requested = true;
            std::mem::take(&mut state.waiting)
        };
        woken.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Returns when this node was asked to stop.
pub async fn stopping() {
    Stopping {
        stop: Arc::clone(&super::local().stop),
        place: None,
    }
    .await;
}

struct Stopping {
    stop: Arc<Stop>,
    place: Option<usize>,
}

impl Future for Stopping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = lock(&this.stop.0);
        if state.requested {
            return Poll::Ready(());
        }
        let place = *this.place.get_or_insert_with(|| {
            let free = state.waiting.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                state.waiting.push(None);
                state.waiting.len() - 1
            })
        });
        state.waiting[place] = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        let mut state = lock(&self.stop.0);
        // After the request the list is gone.
        if let Some(place) = self.place
            && !state.requested
        {
            state.waiting[place] = None;
        }
    }
}
