//! The socket loop of one load thread: pinned, on epoll, with a clock. It decides nothing: `core`
//! says what to send and judges what comes.
//!
//! Readiness is edge-triggered. A read that fills less than the buffer has emptied the socket, so
//! each event costs one read. What is due next wakes the thread by a timerfd: epoll's own timeout
//! counts milliseconds.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::Pid;

use crate::control::{Greeting, PATIENCE, resolve};
use crate::core::{Core, Phase};
use crate::history::Entry;
use crate::tally::Tally;

const READ_BYTES: usize = 256 << 10;
/// Reads of one connection before others get their turn.
const READS_MAX: usize = 16;
const EVENTS_MAX: usize = 1024;
/// How often timeouts, lost connections and the end are looked at; more often where timeouts are
/// short.
const TICK: Duration = Duration::from_millis(50);
const TICKS_PER_TIMEOUT: u32 = 10;
/// How long opening a connection may take at least.
const CONNECT_NANOS: u64 = 1_000_000_000;
/// A server that says nothing for so long, and three timeouts, ends the reading back.
const SILENCE_NANOS: u64 = 3_000_000_000;
/// Before a lost connection is opened again.
const RETRY_NANOS: u64 = 100_000_000;
/// A gap that is not worth a timer.
const SPIN_NANOS: u64 = 5_000;
const INTERVAL_NANOS: u64 = 1_000_000_000;
const TIMER: Token = Token(usize::MAX);

/// What a load thread tells.
pub enum Report {
    /// What happened from one time to another, in nanoseconds of the phase.
    Interval {
        thread: usize,
        from: u64,
        to: u64,
        tally: Box<Tally>,
    },
    /// A phase is over: when, how much CPU it took, and what clients were told, if that is kept.
    Done {
        to: u64,
        cpu: Duration,
        history: Vec<Entry>,
    },
    /// It cannot go on.
    Failed(String),
}

/// What all load threads have in common.
pub struct Common {
    pub phases: Vec<Phase>,
    /// Where clients connect to in turn, without a slot map.
    pub servers: Vec<String>,
    pub greeting: Greeting,
    /// What they say before they read back, and how long nothing is asked before that.
    pub reading_back: Option<Greeting>,
    pub settle: Duration,
    pub enough: Arc<AtomicBool>,
    /// Phases begin together.
    pub barrier: Barrier,
    pub stop: AtomicBool,
    /// Of the phase that is measured: until then nothing counts.
    pub warmup: u64,
    pub timeout: u64,
    /// Threads never sleep. A server pays for waking those who do.
    pub spins: bool,
}

/// One load thread.
pub struct Thread {
    pub number: usize,
    pub core: Core,
    pub cpu: Option<usize>,
    pub reports: SyncSender<Report>,
    /// Tallies to be used again.
    pub empties: Receiver<Box<Tally>>,
}

enum Socket {
    Closed { retry_at: u64 },
    Connecting { stream: TcpStream, since: u64 },
    Up(TcpStream),
}

struct Driver {
    common: Arc<Common>,
    thread: Thread,
    poll: Poll,
    timer: TimerFd,
    /// When the timer wakes us; 0 for never.
    armed: u64,
    sockets: Vec<Socket>,
    /// Connections with more to read than their share.
    again: Vec<u32>,
    buffer: Box<[u8]>,
    greeting: Greeting,
    origin: Instant,
    /// Beginning of the interval, next look at timeouts, last bytes from the server.
    cut: u64,
    tick: u64,
    heard: u64,
}

/// Runs all phases; what happens goes to the reports.
pub fn run(common: Arc<Common>, thread: Thread) {
    let reports = thread.reports.clone();
    let failed = |why: String| {
        common.stop.store(true, Ordering::Relaxed);
        // The receiver waits for every thread; if it has gone, nobody wants to know.
        let _ = reports.send(Report::Failed(why));
    };
    let mut driver = match Driver::new(Arc::clone(&common), thread) {
        Ok(driver) => Some(driver),
        Err(why) => {
            failed(why);
            None
        }
    };
    for phase in &common.phases {
        common.barrier.wait(); // also those that failed: the others count on them
        if let Some(Err(why)) = driver.as_mut().map(|driver| driver.run_phase(*phase)) {
            failed(why);
            driver = None;
        }
    }
}

impl Driver {
    fn new(common: Arc<Common>, thread: Thread) -> Result<Driver, String> {
        let said = |why: std::io::Error| why.to_string();
        if let Some(cpu) = thread.cpu {
            let mut set = CpuSet::new();
            let pinned = set
                .set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
            pinned.map_err(|why| format!("CPU {cpu}: {why}"))?;
        }
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        let timer = timer.map_err(|why| why.to_string())?;
        let poll = Poll::new().map_err(said)?;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&timer));
        let registry = poll.registry();
        registry
            .register(&mut SourceFd(&descriptor), TIMER, Interest::READABLE)
            .map_err(said)?;
        let mut driver = Driver {
            greeting: common.greeting.clone(),
            common,
            thread,
            poll,
            timer,
            armed: 0,
            sockets: Vec::new(),
            again: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            origin: Instant::now(),
            cut: 0,
            tick: 0,
            heard: 0,
        };
        driver.connect_all()?;
        Ok(driver)
    }

    fn run_phase(&mut self, phase: Phase) -> Result<(), String> {
        if phase == Phase::ReadBack && !self.common.stop.load(Ordering::Relaxed) {
            std::thread::sleep(self.common.settle);
        }
        let cpu = thread_cpu();
        self.origin = Instant::now();
        (self.cut, self.tick, self.heard, self.armed) = (0, 0, 0, 0);
        for socket in &mut self.sockets {
            if let Socket::Closed { retry_at } = socket {
                *retry_at = 0; // times begin anew
            }
        }
        self.thread.core.begin(phase);
        if phase == Phase::ReadBack {
            self.greet_again();
        }
        let warmup = if phase == Phase::Work {
            self.common.warmup
        } else {
            0
        };
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut next_cut = if warmup > 0 { warmup } else { INTERVAL_NANOS };
        loop {
            let now = self.now();
            self.thread.core.issue(now);
            self.flush();
            if self.thread.core.is_done() {
                break;
            }
            // The last interval takes what comes after the end.
            if now >= next_cut && !self.thread.core.is_ended() {
                self.cut(now);
                next_cut = now - now.saturating_sub(warmup) % INTERVAL_NANOS + INTERVAL_NANOS;
            }
            if now >= self.tick {
                self.tick = now + self.tick().as_nanos() as u64;
                self.look_around(phase, now)?;
            }
            self.wait(&mut events)?;
            for event in &events {
                if event.token() != TIMER {
                    self.on_event(
                        event.token().0 as u32,
                        event.is_readable() || event.is_read_closed(),
                    );
                }
            }
            for connection in std::mem::take(&mut self.again) {
                self.on_event(connection, true);
            }
        }
        let now = self.now();
        let history = self.thread.core.end_phase(now);
        let empty = Box::new(self.thread.core.plan().empty_tally());
        self.send_interval(empty, now);
        self.tell(Report::Done {
            to: now,
            cpu: thread_cpu().saturating_sub(cpu),
            history,
        });
        Ok(())
    }

    /// Reads the acknowledged writes back by another greeting, if there is one for it.
    fn greet_again(&mut self) {
        let Some(greeting) = self.common.reading_back.clone() else {
            return;
        };
        for (connection, socket) in self.sockets.iter().enumerate() {
            if let Socket::Up(_) = socket {
                let commands = greeting.commands.len();
                let core = &mut self.thread.core;
                core.greet(connection as u32, &greeting.bytes(), commands);
            }
        }
        self.greeting = greeting;
    }

    /// Until we look around again.
    fn tick(&self) -> Duration {
        let timeout = Duration::from_nanos(self.common.timeout);
        TICK.min(timeout / TICKS_PER_TIMEOUT)
            .max(Duration::from_millis(1))
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Until a socket is ready, something is due, or it is time to look around.
    fn wait(&mut self, events: &mut Events) -> Result<(), String> {
        let core = &self.thread.core;
        let timeout = match core.next_due().filter(|_| core.has_room()) {
            _ if self.common.spins || core.has_dirty() || !self.again.is_empty() => Duration::ZERO,
            None if core.has_room() => Duration::ZERO,
            None => self.tick(),
            Some(due) => {
                let now = self.now();
                if due <= now + SPIN_NANOS {
                    Duration::ZERO
                } else {
                    self.arm(due, now)?;
                    self.tick()
                }
            }
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(why) if why.kind() != ErrorKind::Interrupted => Err(why.to_string()),
            _ => Ok(()),
        }
    }

    fn arm(&mut self, due: u64, now: u64) -> Result<(), String> {
        if self.armed == due {
            return Ok(());
        }
        self.armed = due;
        let after = nix::sys::time::TimeSpec::nanoseconds((due - now) as i64);
        let set = self
            .timer
            .set(Expiration::OneShot(after), TimerSetTimeFlags::empty());
        set.map_err(|why| why.to_string())
    }

    fn on_event(&mut self, connection: u32, is_readable: bool) {
        if let Socket::Connecting { .. } = &self.sockets[connection as usize] {
            self.finish_connecting(connection);
        }
        self.write(connection);
        if is_readable {
            self.read(connection);
        }
        // A closed loop goes on at once, before other connections are looked at.
        let now = self.now();
        self.thread.core.issue(now);
        self.flush();
    }

    fn read(&mut self, connection: u32) {
        for _ in 0..READS_MAX {
            let Socket::Up(stream) = &mut self.sockets[connection as usize] else {
                return;
            };
            let length = match stream.read(&mut self.buffer) {
                Ok(0) => {
                    return self.lose(
                        connection,
                        "disconnected",
                        "the server closed the connection",
                    );
                }
                Ok(length) => length,
                Err(why) if why.kind() == ErrorKind::WouldBlock => return,
                Err(why) if why.kind() == ErrorKind::Interrupted => continue,
                Err(why) => return self.lose(connection, "disconnected", &why.to_string()),
            };
            let now = self.origin.elapsed().as_nanos() as u64;
            self.heard = now;
            let core = &mut self.thread.core;
            if core
                .on_bytes(connection, &self.buffer[..length], now)
                .is_err()
            {
                return self.lose(connection, "protocol", "the server's answer is no RESP");
            }
            if length < self.buffer.len() {
                return;
            }
        }
        self.again.push(connection);
    }

    fn flush(&mut self) {
        while let Some(connection) = self.thread.core.take_dirty() {
            self.write(connection);
        }
    }

    fn write(&mut self, connection: u32) {
        loop {
            let bytes = self.thread.core.outgoing(connection);
            let Socket::Up(stream) = &mut self.sockets[connection as usize] else {
                return;
            };
            if bytes.is_empty() {
                return;
            }
            match stream.write(bytes) {
                Ok(length) => self.thread.core.wrote(connection, length),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return, // an event will come
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return self.lose(connection, "disconnected", &why.to_string()),
            }
        }
    }

    // --- Connections ---

    /// All that the core wants, before anything is measured. One that fails ends the run.
    fn connect_all(&mut self) -> Result<(), String> {
        for connection in self.thread.core.take_wanted() {
            let address = self.address(connection);
            let connect = || -> std::io::Result<TcpStream> {
                let to = resolve(&address).map_err(std::io::Error::other)?;
                let stream = std::net::TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(TcpStream::from_std(stream))
            };
            let stream = connect().map_err(|why| format!("{address}: {why}"))?;
            assert!(connection as usize == self.sockets.len());
            self.sockets.push(Socket::Closed { retry_at: u64::MAX });
            self.register(connection, stream)?;
            self.finish_connecting(connection);
        }
        Ok(())
    }

    fn address(&self, connection: u32) -> String {
        match self.common.servers.as_slice() {
            [] => self.thread.core.address(connection).to_owned(),
            servers => servers[connection as usize % servers.len()].clone(),
        }
    }

    fn register(&mut self, connection: u32, mut stream: TcpStream) -> Result<(), String> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered =
            self.poll
                .registry()
                .register(&mut stream, Token(connection as usize), interest);
        registered.map_err(|why| why.to_string())?;
        let since = self.now();
        self.sockets[connection as usize] = Socket::Connecting { stream, since };
        Ok(())
    }

    fn finish_connecting(&mut self, connection: u32) {
        let retry_at = self.now() + RETRY_NANOS;
        let socket = &mut self.sockets[connection as usize];
        let closed = Socket::Closed { retry_at };
        let Socket::Connecting { stream, since } = std::mem::replace(socket, closed) else {
            return;
        };
        match (stream.take_error(), stream.peer_addr()) {
            (Ok(None), Ok(_)) => {
                *socket = Socket::Up(stream);
                let (bytes, commands) = (self.greeting.bytes(), self.greeting.commands.len());
                self.thread.core.on_up(connection, &bytes, commands);
            }
            (Ok(None), Err(why)) if why.kind() == ErrorKind::NotConnected => {
                *socket = Socket::Connecting { stream, since }
            }
            _ => {} // closed, and tried again
        }
    }

    /// Opens a connection without waiting for it; what does not work is tried again.
    fn open(&mut self, connection: u32) {
        let retry_at = self.now() + RETRY_NANOS;
        self.sockets[connection as usize] = Socket::Closed { retry_at };
        let Ok(to) = resolve(&self.address(connection)) else {
            return;
        };
        let Ok(stream) = TcpStream::connect(to) else {
            return;
        };
        // Small requests wait for nobody; where that cannot be said the connection still works.
        let _ = stream.set_nodelay(true);
        let _ = self.register(connection, stream);
    }

    fn lose(&mut self, connection: u32, class: &str, why: &str) {
        let retry_at = self.now() + RETRY_NANOS;
        self.sockets[connection as usize] = Socket::Closed { retry_at };
        self.thread.core.on_lost(connection, class, why);
    }

    // --- Now and then ---

    fn look_around(&mut self, phase: Phase, now: u64) -> Result<(), String> {
        let is_enough = phase == Phase::Work && self.common.enough.load(Ordering::Relaxed);
        if is_enough || self.common.stop.load(Ordering::Relaxed) {
            self.thread.core.stop();
        }
        for connection in self.thread.core.overdue(now) {
            self.lose(connection, "timeout", "no answer in time");
        }
        for connection in self.thread.core.take_wanted() {
            assert!(connection as usize == self.sockets.len());
            self.sockets.push(Socket::Closed { retry_at: 0 });
        }
        let patience = self.common.timeout.max(CONNECT_NANOS);
        for connection in 0..self.sockets.len() as u32 {
            match &self.sockets[connection as usize] {
                Socket::Closed { retry_at } if *retry_at <= now => self.open(connection),
                // What was sent to a host that was not there is sent again more and more seldom.
                Socket::Connecting { since, .. } if now.saturating_sub(*since) > patience => {
                    self.open(connection)
                }
                _ => {}
            }
        }
        let silence_max = self.common.timeout.saturating_mul(3);
        let silence_max = match phase {
            Phase::ReadBack => silence_max.max(SILENCE_NANOS), // servers may be on their way back
            Phase::Fill | Phase::Work => silence_max,
        };
        let is_silent = now.saturating_sub(self.heard) > silence_max;
        match is_silent && phase != Phase::Work {
            true => Err("the server has not answered for too long".into()),
            false => Ok(()),
        }
    }

    /// Sends what was measured. Where nobody has taken the last yet, the interval goes on.
    fn cut(&mut self, now: u64) {
        if let Ok(empty) = self.thread.empties.try_recv() {
            self.send_interval(empty, now);
        }
    }

    fn send_interval(&mut self, empty: Box<Tally>, now: u64) {
        let tally = self.thread.core.swap_tally(empty);
        let (thread, from) = (self.thread.number, self.cut);
        self.cut = now;
        self.tell(Report::Interval {
            thread,
            from,
            to: now,
            tally,
        });
    }

    fn tell(&self, report: Report) {
        // If nobody listens any more the run was given up: `stop` says so.
        let _ = self.thread.reports.send(report);
    }
}

/// CPU that this thread has used, user and system.
fn thread_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
        return Duration::ZERO;
    };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.max(0) as u64)
}
