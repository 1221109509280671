//! That a core never sleeps with work to do, and never works with nothing to do.
//!
//! With `QUOIT_LONG=1` the soaks take ten minutes each, and the one without the cure (see
//! `src/rt/kick.rs`) must hang: otherwise the cure is for nothing, or the soak is no test of it.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use quoit::rt::sync::Signal;
use quoit::rt::{self, BLOCK_BYTES, Core, CoreOptions, File, Listener};
use quoit::types::CoreId;

/// One test at a time: they measure it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the build directory: the system's temporary one may be in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn is_long() -> bool {
    std::env::var_os("QUOIT_LONG").is_some()
}

/// An echo server on `run_cores`, in a thread, without any timer: a timer would wake a core up.
struct Echo {
    address: SocketAddr,
    thread: thread::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Echo {
    fn start(pins: Vec<Option<usize>>, without_kick: bool) -> Echo {
        let dir = scratch();
        let address = rt::reserve_ports(&[SocketAddr::from(([127, 0, 0, 1], 0))]).unwrap()[0];
        let options = CoreOptions {
            pins,
            io_memory_bytes: 1 << 20,
            probe_dir: dir.path().to_owned(),
            without_kick,
        };
        let (up, is_up) = mpsc::channel();
        let cores = options.pins.len();
        let thread = thread::spawn(move || {
            let done = rt::run_cores(options, move |core: Core<()>| {
                let up = up.clone();
                async move {
                    let (outbox, mut inboxes) = core.mail.connect().await;
                    let quit = Rc::new((Signal::default(), Cell::new(false)));
                    for mut inbox in inboxes.drain(..) {
                        let quit = Rc::clone(&quit);
                        drop(rt::spawn(async move {
                            if inbox.recv().await.is_some() {
                                quit.1.set(true);
                                quit.0.wake_all();
                            }
                        }));
                    }
                    drop(rt::spawn(accept(
                        Listener::bind(address).unwrap(),
                        Rc::clone(&quit),
                    )));
                    up.send(()).unwrap();
                    quit.0.wait_for(|| quit.1.get().then_some(())).await;
                    for other in (0..core.count).filter(|other| *other != core.id.0) {
                        outbox.send(CoreId(other), ());
                    }
                }
            });
            done.unwrap();
        });
        (0..cores).for_each(|_| is_up.recv().unwrap());
        Echo {
            address,
            thread,
            _dir: dir,
        }
    }

    fn stop(self) {
        while !self.thread.is_finished() {
            if let Ok(mut stream) = TcpStream::connect(self.address) {
                let _ = stream.write_all(b"q");
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.thread.join().unwrap();
    }
}

async fn accept(listener: Listener, quit: Rc<(Signal, Cell<bool>)>) {
    loop {
        let mut stream = listener.accept().await.unwrap();
        let quit = Rc::clone(&quit);
        drop(rt::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok(count) = stream.read(&mut buffer).await {
                if count == 0 || stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                if buffer[0] == b'q' {
                    quit.1.set(true);
                    quit.0.wake_all();
                }
            }
        }));
    }
}

/// Keeps this thread, and those it starts, on one CPU.
fn stay_on(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

/// Threads that take as much of one CPU as they get, while this lives.
struct Hogs(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

impl Hogs {
    fn start(count: usize, cpu: usize) -> Hogs {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                stay_on(cpu);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(start).collect();
        Hogs(stop, threads)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// What clients saw of a server.
#[derive(Default)]
struct Soak {
    rounds: u32,
    /// Rounds in which a reply did not come at all.
    hung: u32,
    requests: u64,
    /// Replies that took longer than [`LATE`].
    slow: Vec<Duration>,
    worst: Duration,
}

/// A reply that takes longer never comes, or might as well not.
const REPLY_MAX: Duration = Duration::from_secs(1);
/// A reply that takes so much longer than the hogs alone account for is late.
const LATE: Duration = Duration::from_millis(20);
/// The length of a round.
const ROUND: Duration = Duration::from_millis(1300);
/// Clients in a round, in turn.
const CLIENTS: [usize; 6] = [1, 8, 2, 50, 4, 16];
/// One round in so many is the peer's.
const PEER_ONE_IN: u32 = 5;

impl Soak {
    /// A round of clients that wait for each reply.
    fn round(&mut self, address: SocketAddr, clients: usize) {
        let until = Instant::now() + ROUND;
        let clients: Vec<_> = (0..clients)
            .map(|_| thread::spawn(move || closed_loop(address, until)))
            .collect();
        let mut worst = Duration::ZERO;
        for client in clients {
            let (requests, slowest, slow) = client.join().unwrap();
            self.requests += requests;
            worst = worst.max(slowest);
            self.slow.extend(slow);
        }
        self.rounds += 1;
        self.hung += u32::from(worst >= REPLY_MAX);
        self.worst = self.worst.max(worst);
    }

    fn report(&self, who: &str, late_from: Duration) -> usize {
        let late = self.slow.iter().filter(|took| **took > late_from).count();
        println!(
            "{who}: {} rounds, {} hung; {} requests, {} took longer than {LATE:?}, {late} longer \
             than {late_from:?}; the slowest {:?}",
            self.rounds,
            self.hung,
            self.requests,
            self.slow.len(),
            self.worst
        );
        late
    }
}

/// A plain echo server on `cpu`, a thread for each connection: it waits as long as the hogs, and
/// the kernel, make anybody wait. Its threads end with the process.
fn start_peer(cpu: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        stay_on(cpu); // and so do the threads that it starts
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok(count) = stream.read(&mut buffer)
                    && count > 0
                    && stream.write_all(&buffer[..count]).is_ok()
                {}
            });
        }
    });
    address
}

/// Rounds beside two hogs on the server's CPU; some of them on the `peer`, if there is one.
fn soak(length: Duration, without_kick: bool, peer: Option<(SocketAddr, &mut Soak)>) -> Soak {
    let cpu = rt::pins_for(1)[0].unwrap();
    let echo = Echo::start(vec![Some(cpu)], without_kick);
    let hogs = Hogs::start(2, cpu);
    let mut soak = Soak::default();
    let mut peer = peer;
    while soak.rounds * ROUND < length {
        let clients = CLIENTS[soak.rounds as usize % CLIENTS.len()];
        soak.round(echo.address, clients);
        if let Some((address, of_peer)) = &mut peer
            && soak.rounds.is_multiple_of(PEER_ONE_IN)
        {
            of_peer.round(*address, clients);
        }
    }
    drop(hogs);
    echo.stop();
    soak
}

/// How many requests were answered until then, how long the slowest took, and the times of those
/// that took longer than [`LATE`].
fn closed_loop(address: SocketAddr, until: Instant) -> (u64, Duration, Vec<Duration>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(REPLY_MAX)).unwrap();
    let (mut requests, mut slow) = (0, Vec::new());
    let mut buffer = [0; 64];
    let mut worst = Duration::ZERO;
    while Instant::now() < until && worst < REPLY_MAX {
        let asked = Instant::now();
        stream.write_all(&[b'x'; 64]).unwrap();
        if stream.read_exact(&mut buffer).is_ok() {
            requests += 1;
        }
        let took = asked.elapsed();
        worst = worst.max(took);
        if took > LATE {
            slow.push(took);
        }
    }
    (requests, worst, slow)
}

#[test]
fn no_reply_is_stranded_beside_busy_neighbours() {
    let _alone = alone();
    let seconds = match std::env::var("QUOIT_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse().unwrap(),
        Err(_) if is_long() => 600,
        Err(_) => 7,
    };
    let length = Duration::from_secs(seconds);
    let kicks = rt::kicks();
    let mut plain = Soak::default();
    let address = start_peer(rt::pins_for(1)[0].unwrap());
    let cured = soak(length, false, Some((address, &mut plain)));
    let late_from = LATE + plain.worst;
    plain.report("a plain server", late_from);
    let late = cured.report("with the cure", late_from);
    println!("{late} late replies, {} kicks", rt::kicks() - kicks);
    let bare = soak(length, true, None);
    bare.report("without the cure", late_from);
    assert_eq!(cured.hung, 0, "a core slept with runnable tasks");
    assert!(!is_long() || late == 0, "replies came late");
    assert!(!is_long() || bare.hung > 0, "the cure is for nothing");
}

/// Two cores on one CPU with two hogs, that do nothing but wait: for each other's messages, and
/// for the disk.
#[test]
fn no_message_and_no_write_is_stranded_either() {
    let _alone = alone();
    let dir = scratch();
    let cpu = rt::pins_for(1)[0].unwrap();
    let hogs = Hogs::start(2, cpu);
    let options = CoreOptions {
        pins: vec![Some(cpu); 2],
        io_memory_bytes: 1 << 20,
        probe_dir: dir.path().to_owned(),
        without_kick: false,
    };
    let steps = Arc::new(AtomicU64::new(0));
    let taken = Arc::clone(&steps);
    let length = Duration::from_secs(if is_long() { 600 } else { 3 });
    let end = Instant::now() + length;
    let place = dir.path().to_owned();
    let node = thread::spawn(move || {
        rt::run_cores(options, move |core: Core<bool>| {
            let path = place.join(core.id.0.to_string());
            let taken = Arc::clone(&taken);
            async move {
                let (outbox, mut inboxes) = core.mail.connect().await;
                let file = File::create(&path).await.unwrap();
                let other = CoreId(1 - core.id.0);
                let mut inbox = inboxes.pop().unwrap();
                let first = core.id == CoreId(0);
                if first {
                    outbox.send(other, true);
                }
                while inbox.recv().await == Some(true) {
                    let step = taken.fetch_add(1, Ordering::SeqCst);
                    if step % 16 < 2 {
                        file.write_at(file.buffer(BLOCK_BYTES), 0).await.unwrap();
                        file.sync().await.unwrap();
                    }
                    outbox.send(other, Instant::now() < end);
                }
                outbox.send(other, false);
            }
        })
    });
    let (mut last, mut moved) = (0, Instant::now());
    let mut worst = Duration::ZERO;
    while !node.is_finished() {
        thread::sleep(Duration::from_millis(1));
        let step = steps.load(Ordering::SeqCst);
        if step != last {
            (last, moved) = (step, Instant::now());
        }
        worst = worst.max(moved.elapsed());
        assert!(worst < REPLY_MAX, "nothing moves after {step} steps");
    }
    node.join().unwrap().unwrap();
    drop(hogs);
    println!("{last} steps, the slowest in {worst:?}");
    assert!(last > 100, "only {last} steps in {length:?}");
}

fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn an_idle_node_takes_no_cpu() {
    let _alone = alone();
    let echo = Echo::start(vec![None, None], false);
    let resident = rt::resident_bytes();
    let clients: Vec<_> = (0..50)
        .map(|_| TcpStream::connect(echo.address).unwrap())
        .collect();
    for mut client in &clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let each = (rt::resident_bytes() - resident.min(rt::resident_bytes())) / clients.len() as u64;
    thread::sleep(Duration::from_secs(1));
    let length = Duration::from_secs(4);
    let before = cpu_time();
    thread::sleep(length);
    let used = cpu_time() - before;
    println!("idle: {used:?} of CPU in {length:?}; about {each} bytes a connection");
    assert!(
        used < length / 50,
        "an idle node took {used:?} of {length:?}"
    );
    drop(clients);
    echo.stop();
}
