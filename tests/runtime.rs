//! The real side of the seam, on real rings, sockets and files.
//!
//! The tests drive `run_cores` in threads of this process, one at a time: some are about time.

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use quoit::error::Error;
use quoit::rt::{self, BLOCK_BYTES, Core, CoreOptions, File, Listener, Queue, Stream};
use quoit::types::CoreId;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the build directory: a direct file is wanted, and the system's temporary directory may be
/// in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn options(dir: &Path, cores: usize) -> CoreOptions {
    CoreOptions {
        pins: vec![None; cores],
        io_memory_bytes: 1 << 20,
        probe_dir: dir.to_owned(),
        without_kick: false,
    }
}

/// Runs `main` on one core.
fn on_one_core<T, F>(dir: &Path, main: impl Fn() -> F + Send + Clone + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let results = rt::run_cores(options(dir, 1), move |_: Core<()>| main());
    results.unwrap().pop().unwrap()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn free_port() -> SocketAddr {
    rt::reserve_ports(&[local(0)]).unwrap()[0]
}

#[test]
fn rings_are_set_up_with_the_flag() {
    let _alone = alone();
    let dir = scratch();
    // The first executor of a process may set up a ring more.
    on_one_core(dir.path(), || async {});
    let before = rt::cooperative_rings();
    on_one_core(dir.path(), || rt::sleep(Duration::from_millis(1)));
    let rings = rt::cooperative_rings() - before;
    assert_eq!(
        rings, 2,
        "main and latency ring of one core; the third is polled"
    );
}

#[test]
fn results_come_in_the_order_of_cores() {
    let _alone = alone();
    let dir = scratch();
    let ids = rt::run_cores(options(dir.path(), 3), |core: Core<()>| async move {
        let task = rt::spawn_in(Queue::Background, async move { core.id.0 });
        rt::sleep(Duration::from_millis(u64::from(3 - core.id.0))).await;
        task.await
    });
    assert_eq!(ids.unwrap(), [0, 1, 2]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "the probe file is left over: {left:?}");
}

#[test]
fn a_core_that_cannot_start_stops_all_with_one_line() {
    let _alone = alone();
    let dir = scratch();
    let mut options = options(dir.path(), 2);
    options.pins = vec![None, Some(100_000)];
    let ran = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ran);
    let result = rt::run_cores(options, move |_: Core<()>| {
        seen.store(true, Ordering::SeqCst);
        async {}
    });
    let Err(Error::Setup(line)) = result else {
        panic!("started on a CPU that is not there")
    };
    assert!(line.starts_with("core ") && !line.contains('\n'), "{line}");
    assert!(
        !ran.load(Ordering::SeqCst),
        "a core ran without its sibling"
    );
}

/// Bytes that tell their place in the file.
fn pattern(position: u64, length: usize) -> Vec<u8> {
    (position..position + length as u64)
        .map(|at| (at / 7 % 251) as u8)
        .collect()
}

async fn write_pattern(file: &File, position: u64, length: usize) {
    let mut buffer = file.buffer(length);
    buffer.copy_from_slice(&pattern(position, length));
    file.write_at(buffer, position).await.unwrap();
}

#[test]
fn a_file_gives_back_what_was_written() {
    let _alone = alone();
    let dir = scratch();
    let path = dir.path().join("a/b/file");
    on_one_core(dir.path(), move || {
        let path = path.clone();
        async move {
            let parent = path.parent().unwrap();
            rt::create_dir_all(parent).await.unwrap();
            let file = File::create(&path).await.unwrap();
            rt::sync_dir(parent).await.unwrap();
            write_pattern(&file, 0, BLOCK_BYTES).await;
            // Large ones are split on their way, and the last part is smaller.
            write_pattern(&file, BLOCK_BYTES as u64, 6 * (1 << 20) + BLOCK_BYTES).await;
            file.sync().await.unwrap();
            let length = 6 * (1 << 20) + 2 * BLOCK_BYTES as u64;
            assert_eq!(file.len().await.unwrap(), length);

            let end = length - 1234;
            file.set_len(end).await.unwrap();
            assert_eq!(file.len().await.unwrap(), end);
            let reads = [
                (0, 1),
                (1, 1),
                (4095, 2),
                (100, 8192),
                (0, 1 << 20),
                (1, 1 << 20),
                (5, 5 << 20),
                (0, end as usize),
                (end - 10, 10),
            ];
            for (position, length) in reads {
                let bytes = file.read_at(position, length).await.unwrap();
                assert!(
                    *bytes == pattern(position, length),
                    "read {length} at {position}"
                );
            }
            // The end cuts a read short, aligned or not, small or large; behind it is nothing.
            for (back, length) in [(10, 11), (1000, 8192), (4097, 9000), (3 << 20, 4 << 20)] {
                let bytes = file.read_at(end - back, length).await.unwrap();
                assert!(
                    *bytes == pattern(end - back, back as usize),
                    "read {back} before the end"
                );
            }
            for position in [end, end + 1, end + 5000, end + (1 << 30)] {
                for length in [1, 5000, 3 << 20] {
                    let bytes = file.read_at(position, length).await.unwrap();
                    assert_eq!(
                        bytes.len(),
                        0,
                        "read {length} at {position}, behind the end"
                    );
                }
            }
            assert_eq!(file.read_at(7, 0).await.unwrap().len(), 0);
            file.close().await;
        }
    });
}

#[test]
fn names_are_created_renamed_listed_and_removed() {
    let _alone = alone();
    let dir = scratch();
    let place = dir.path().join("names");
    on_one_core(dir.path(), move || {
        let place = place.clone();
        async move {
            rt::create_dir_all(&place).await.unwrap();
            let (one, two) = (place.join("one"), place.join("two"));
            let missing = File::open(&one).await.err().unwrap();
            assert!(missing.is_not_found(), "{missing}");
            let file = File::create(&one).await.unwrap();
            write_pattern(&file, 0, BLOCK_BYTES).await;
            let Err(Error::Io { source, .. }) = File::create(&one).await else {
                panic!("a file was created twice")
            };
            assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists);

            let other = File::create(&two).await.unwrap();
            assert_eq!(rt::list_dir(&place).await.unwrap(), ["one", "two"]);
            rt::rename(&one, &two).await.unwrap();
            assert_eq!(rt::list_dir(&place).await.unwrap(), ["two"]);
            let lengths = (file.len().await.unwrap(), other.len().await.unwrap());
            assert_eq!(
                lengths,
                (BLOCK_BYTES as u64, 0),
                "a length is its file's, not its name's"
            );
            let again = File::open(&two).await.unwrap();
            assert_eq!(again.read_at(0, 9).await.unwrap()[..], pattern(0, 9));
            rt::remove_file(&two).await.unwrap();
            rt::sync_dir(&place).await.unwrap();
            assert!(rt::list_dir(&place).await.unwrap().is_empty());
            assert!(rt::remove_file(&two).await.unwrap_err().is_not_found());
        }
    });
}

#[test]
fn a_directory_is_locked_against_others() {
    let _alone = alone();
    let dir = scratch();
    let path = dir.path().join("lock");
    on_one_core(dir.path(), move || {
        let path = path.clone();
        async move {
            let lock = rt::lock_file(&path).await.unwrap();
            let Err(Error::Io { source, .. }) = rt::lock_file(&path).await else {
                panic!("locked twice")
            };
            assert_eq!(source.kind(), std::io::ErrorKind::WouldBlock);
            drop(lock);
            rt::lock_file(&path).await.unwrap();
        }
    });
}

/// A file system of its own, while this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(place: &Path, options: &[&str]) -> Option<Mounted> {
        std::fs::create_dir_all(place).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(options)
            .arg("none")
            .arg(place)
            .stderr(Stdio::null());
        let done = mount.status().is_ok_and(|status| status.success());
        done.then(|| Mounted(place.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status()
            .unwrap();
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    let _alone = alone();
    let dir = scratch();
    let Some(disk) = Mounted::mount(&dir.path().join("small"), &["-t", "tmpfs", "-o", "size=1m"])
    else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let place = disk.0.clone();
    on_one_core(dir.path(), move || {
        let place = place.clone();
        async move {
            let file = File::create(&place.join("big")).await.unwrap();
            let mut failed = None;
            for block in 0..600 {
                let buffer = file.buffer(BLOCK_BYTES);
                failed = file
                    .write_at(buffer, block * BLOCK_BYTES as u64)
                    .await
                    .err();
                if failed.is_some() {
                    break;
                }
            }
            let failed = failed.expect("a full disk takes no more");
            assert!(failed.is_disk_full(), "{failed}");
            let large = file.write_at(file.buffer(3 << 20), 0).await.unwrap_err();
            assert!(large.is_disk_full(), "{large}");
        }
    });
    // What is there can be read all the same: a node may start.
    let refused = rt::check_host(&disk.0, 1).err();
    assert!(refused.is_none(), "{refused:?}");
}

#[test]
fn a_file_system_without_direct_writes_is_refused() {
    let _alone = alone();
    let dir = scratch();
    let Some(memory) = Mounted::mount(&dir.path().join("memory"), &["-t", "ramfs"]) else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let Err(Error::Setup(line)) = rt::check_host(&memory.0, 1) else {
        panic!("data would be kept in memory")
    };
    assert!(line.contains("O_DIRECT"), "{line}");
    let path = memory.0.join("file");
    on_one_core(dir.path(), move || {
        let path = path.clone();
        async move {
            let Err(Error::Io { source, .. }) = File::create(&path).await else {
                panic!("created without O_DIRECT")
            };
            assert_eq!(source.raw_os_error(), Some(22), "{source}");
        }
    });
}

#[test]
fn the_host_is_checked() {
    let _alone = alone();
    let dir = scratch();
    let data = dir.path().join("new/data");
    let report = rt::check_host(&data, 2).unwrap();
    assert!(
        report.nofile > 0 && report.kernel.contains('.'),
        "{report:?}"
    );
    assert_eq!(
        std::fs::read_dir(&data).unwrap().count(),
        0,
        "the check leaves nothing behind"
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Err(Error::Setup(line)) = rt::check_host(&file.join("data"), 2) else {
        panic!("a directory inside of a file")
    };
    assert!(
        line.contains("cannot be created") && !line.contains('\n'),
        "{line}"
    );
    let Err(Error::Setup(line)) = rt::check_host(&data, 1 << 30) else {
        panic!("no host has files for so many cores")
    };
    assert!(line.contains("files may be open"), "{line}");
    assert!(rt::cpu_count() > 0 && rt::pins_for(100_000).iter().all(Option::is_none));
    assert!(rt::pins_for(1)[0].is_some());
}

#[test]
fn messages_arrive_once_and_in_order() {
    let _alone = alone();
    const MESSAGES: u64 = 100_000;
    let dir = scratch();
    let sums = rt::run_cores(
        options(dir.path(), 2),
        |core: Core<(u64, Vec<u8>)>| async move {
            let (outbox, mut inboxes) = core.mail.connect().await;
            let other = CoreId(1 - core.id.0);
            let mut inbox = inboxes.pop().unwrap();
            assert_eq!(inbox.from(), other);
            // All at once: far more than a channel holds, before the other side reads any.
            for number in 0..MESSAGES {
                outbox.send(other, (number, vec![number as u8; 3]));
                if number % 1000 == 0 {
                    rt::yield_if_needed().await;
                }
            }
            for expected in 0..MESSAGES {
                let (number, bytes) = inbox.recv().await.expect("more messages");
                assert_eq!((number, bytes), (expected, vec![expected as u8; 3]));
            }
            drop(outbox);
            assert!(
                inbox.recv().await.is_none(),
                "nothing comes after the other core's end"
            );
            core.id.0
        },
    );
    assert_eq!(sums.unwrap(), [0, 1]);
}

#[test]
fn a_core_that_ends_sends_what_it_owes_and_drops_what_it_holds() {
    let _alone = alone();
    let dir = scratch();
    let address = free_port();
    let counts = rt::run_cores(options(dir.path(), 2), move |core: Core<u64>| async move {
        let (outbox, mut inboxes) = core.mail.connect().await;
        let mut inbox = inboxes.pop().unwrap();
        if core.id == CoreId(0) {
            for number in 0..5000 {
                outbox.send(CoreId(1), number);
            }
            // A task that never ends holds a socket and both ends of the mail.
            let listener = Listener::bind(address).unwrap();
            drop(rt::spawn(async move {
                let _held = (outbox, inbox);
                loop {
                    let _ = listener.accept().await;
                }
            }));
            rt::sleep(Duration::from_millis(1)).await;
            return 5000;
        }
        rt::sleep(Duration::from_millis(50)).await;
        let mut count = 0;
        while let Some(number) = inbox.recv().await {
            assert_eq!(number, count);
            count += 1;
        }
        count
    });
    assert_eq!(
        counts.unwrap(),
        [5000, 5000],
        "messages were lost with their sender"
    );
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(
        refused.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "still listening"
    );
}

#[test]
fn a_task_may_have_more_than_32767_wakers() {
    let _alone = alone();
    let dir = scratch();
    on_one_core(dir.path(), || {
        rt::spawn(async {
            let mut wakers = Vec::new();
            poll_fn(|context| {
                wakers.extend((0..40_000).map(|_| context.waker().clone()));
                Poll::Ready(())
            })
            .await;
            rt::sleep(Duration::from_millis(1)).await;
            wakers.into_iter().for_each(std::task::Waker::wake);
        })
    });
}

#[test]
fn a_taken_port_is_refused_and_a_left_one_is_not() {
    let _alone = alone();
    let dir = scratch();
    for ip in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
        let any: SocketAddr = (ip.parse::<std::net::IpAddr>().unwrap(), 0).into();
        let Ok(reserved) = rt::reserve_ports(&[any, any]) else {
            println!("skipped: no {ip} here");
            continue;
        };
        let address = reserved[0];
        assert_ne!(address.port(), 0);
        assert_ne!(address, reserved[1], "one free port was given twice");
        on_one_core(dir.path(), move || async move {
            let listener = Listener::bind(address).unwrap();
            let _sibling = Listener::bind(address).expect("cores share a port");
            let Err(Error::Io { source, .. }) = rt::reserve_ports(&[address]) else {
                panic!("{address} was given to two servers")
            };
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
            drop(_sibling);
            let client = thread::spawn(move || {
                let ip = if ip.contains(':') { "::1" } else { "127.0.0.1" };
                let target = SocketAddr::new(ip.parse().unwrap(), address.port());
                let mut client = TcpStream::connect(target).unwrap();
                client.write_all(b"x").unwrap();
                client.read_to_end(&mut Vec::new()).unwrap();
            });
            // This side closes first, so that this side's port is left in TIME_WAIT. The question
            // above may have left a connection that says nothing.
            let mut stream = listener.accept().await.unwrap();
            while stream.read(&mut [0]).await.unwrap() == 0 {
                stream = listener.accept().await.unwrap();
            }
            assert!(stream.peer_addr().is_some() && stream.local_addr().is_some());
            drop((stream, listener));
            rt::sleep(Duration::from_millis(10)).await;
            client.join().unwrap();
        });
        assert_eq!(
            rt::reserve_ports(&[address]).unwrap(),
            [address],
            "{ip}: a restart must not wait"
        );
    }
}

#[test]
fn a_read_that_is_given_up_loses_no_byte() {
    let _alone = alone();
    let dir = scratch();
    on_one_core(dir.path(), || async {
        let address = free_port();
        let listener = Listener::bind(address).unwrap();
        let mut client = Stream::connect(address).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        let mut buffer = [0; 64];
        for number in 0..200_u8 {
            let nothing = async { None };
            let read = async { Some(server.read(&mut buffer).await) };
            // The read is polled first, finds nothing, and is dropped.
            assert!(futures_lite::future::or(read, nothing).await.is_none());
            client.write_all(&[number]).await.unwrap();
            assert_eq!(server.read(&mut buffer).await.unwrap(), 1);
            assert_eq!(buffer[0], number);
        }
        client.shutdown().await;
        assert_eq!(server.read(&mut buffer).await.unwrap(), 0);
        let gone = Stream::connect(local(1)).await.err().unwrap();
        let Error::Io { source, .. } = gone else {
            panic!("{gone}")
        };
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let _alone = alone();
    let dir = scratch();
    on_one_core(dir.path(), || async {
        let address = free_port();
        let listener = Listener::bind(address).unwrap();
        let mut client = Stream::connect(address).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        let writer = rt::spawn(async move {
            server.write_all(&pattern(0, 16 << 20)).await.unwrap();
            server.shutdown().await;
        });
        let mut got = Vec::new();
        let mut buffer = vec![0; 100_000];
        loop {
            let count = client.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&buffer[..count]);
            if got.len() % 64 == 0 {
                rt::sleep(Duration::from_millis(1)).await;
            }
        }
        writer.await;
        assert!(
            got == pattern(0, 16 << 20),
            "{} bytes arrived, or others",
            got.len()
        );
    });
}

#[test]
fn a_node_stops_when_it_is_asked_to() {
    let _alone = alone();
    let dir = scratch();
    let (up, is_up) = mpsc::channel();
    let place = dir.path().to_owned();
    let node = thread::spawn(move || {
        rt::run_cores(options(&place, 2), move |_: Core<()>| {
            let up = up.clone();
            async move {
                up.send(()).unwrap();
                // Given up and asked for again, as loops do.
                for _ in 0..10 {
                    futures_lite::future::or(rt::stopping(), async {}).await;
                }
                rt::stopping().await;
            }
        })
    });
    is_up.recv().unwrap();
    is_up.recv().unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!node.is_finished(), "stopped unasked");
    rt::request_stop();
    node.join().unwrap().unwrap();
}

/// Runs the test `name` of this program in a process of its own, in which it finds itself by
/// [`is_child`].
fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("QUOIT_TEST_CHILD", name);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn is_child(name: &str) -> bool {
    std::env::var("QUOIT_TEST_CHILD").is_ok_and(|child| child == name)
}

#[test]
fn a_panic_on_a_core_ends_the_process() {
    const NAME: &str = "a_panic_on_a_core_ends_the_process";
    let dir = scratch();
    if is_child(NAME) {
        let _ = rt::run_cores(options(dir.path(), 2), |core: Core<()>| async move {
            let task = rt::spawn(async move {
                assert_ne!(core.id, CoreId(1), "planted");
            });
            task.await;
            rt::sleep(Duration::from_secs(60)).await;
        });
        return;
    }
    let _alone = alone();
    let output = child(NAME).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        errors.contains("planted") && errors.contains("aborting"),
        "{errors}"
    );
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(
        output.status.signal(),
        Some(6),
        "not aborted: {}",
        output.status
    );
}

#[test]
fn the_first_signal_stops_and_the_second_ends() {
    const NAME: &str = "the_first_signal_stops_and_the_second_ends";
    let dir = scratch();
    if is_child(NAME) {
        let result = rt::run_cores(options(dir.path(), 1), |_: Core<()>| async move {
            println!("\nup");
            rt::stopping().await;
            println!("\nstopping");
            rt::sleep(Duration::from_secs(60)).await;
        });
        return result.map(drop).unwrap();
    }
    let _alone = alone();
    let mut process = child(NAME).spawn().unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()));
    for expected in ["up", "stopping"] {
        assert!(
            lines.any(|line| line.unwrap() == expected),
            "never {expected}"
        );
        // Two that come together are one wish; the next one is another.
        for _ in 0..2 {
            let pid = process.id().to_string();
            let sent = Command::new("kill").args(["-TERM", &pid]).status();
            assert!(sent.unwrap().success());
        }
        thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(process.wait().unwrap().code(), Some(1));
}
