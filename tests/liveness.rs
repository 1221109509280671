//! That a core never sleeps with work to do, and never works with nothing to do.
//!
//! With `QUOIT_LONG=1` the soaks take ten minutes each, and the one without the cure (see
//! `src/rt/kick.rs`) must hang: otherwise the cure is for nothing, or the soak is no test of it.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
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
        let address = rt::reserve_port(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
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

/// Threads that take as much of one CPU as they get, while this lives.
struct Hogs(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

impl Hogs {
    fn start(count: usize, cpu: usize) -> Hogs {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut set = nix::sched::CpuSet::new();
                set.set(cpu).unwrap();
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
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

#[derive(Debug, Default)]
struct Soak {
    rounds: u32,
    hung: u32,
    requests: u64,
    worst: Duration,
}

/// A reply that takes longer never comes, or might as well not.
const REPLY_MAX: Duration = Duration::from_secs(1);

/// Rounds of 1 to 16 clients that wait for each reply, beside two hogs on the server's CPU.
fn soak(length: Duration, without_kick: bool) -> Soak {
    let cpu = rt::pins_for(1)[0].unwrap();
    let echo = Echo::start(vec![Some(cpu)], without_kick);
    let hogs = Hogs::start(2, cpu);
    let end = Instant::now() + length;
    let mut soak = Soak::default();
    while Instant::now() < end {
        let clients = [1, 8, 2, 16, 4, 8][soak.rounds as usize % 6];
        let address = echo.address;
        let until = Instant::now() + Duration::from_millis(1300);
        let clients: Vec<_> = (0..clients)
            .map(|_| thread::spawn(move || closed_loop(address, until)))
            .collect();
        let results: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        soak.rounds += 1;
        soak.hung += u32::from(results.iter().any(|(_, worst)| *worst >= REPLY_MAX));
        for (requests, worst) in results {
            soak.requests += requests;
            soak.worst = soak.worst.max(worst);
        }
    }
    drop(hogs);
    echo.stop();
    soak
}

/// How many requests were answered until then, and how long the slowest took.
fn closed_loop(address: SocketAddr, until: Instant) -> (u64, Duration) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(REPLY_MAX)).unwrap();
    let (mut requests, mut worst) = (0, Duration::ZERO);
    let mut buffer = [0; 64];
    while Instant::now() < until && worst < REPLY_MAX {
        let asked = Instant::now();
        stream.write_all(&[b'x'; 64]).unwrap();
        if stream.read_exact(&mut buffer).is_ok() {
            requests += 1;
        }
        worst = worst.max(asked.elapsed());
    }
    (requests, worst)
}

#[test]
fn no_reply_is_stranded_beside_busy_neighbours() {
    let _alone = alone();
    let seconds = match std::env::var("QUOIT_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse().unwrap(),
        Err(_) if is_long() => 600,
        Err(_) => 5,
    };
    let length = Duration::from_secs(seconds);
    let kicks = rt::kicks();
    let cured = soak(length, false);
    println!("with the cure: {cured:?}, {} kicks", rt::kicks() - kicks);
    let bare = soak(length, true);
    println!("without it: {bare:?}");
    assert_eq!(cured.hung, 0, "a core slept with runnable tasks: {cured:?}");
    assert!(
        !is_long() || bare.hung > 0,
        "the cure is for nothing: {bare:?}"
    );
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
