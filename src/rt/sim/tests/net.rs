//! Connections: pieces, waiting, cuts, resets and ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use super::super::{NodeId, Options, Party, World};
use super::calm;
use crate::error::Error;
use crate::rt::{self, Listener, Stream};

const NODE: NodeId = NodeId(1);
const SECOND: Duration = Duration::from_secs(1);

fn node() -> Party {
    Party::Node(NODE)
}

/// A node that sends back what it gets, on each of its cores.
fn start_echo(world: &World, cores: u16) {
    world.start_node(NODE, cores, |_: rt::Core<()>| async {
        let listener = Listener::bind(NODE.address(1)).unwrap();
        loop {
            let mut stream = listener.accept().await.unwrap();
            rt::spawn(async move {
                let mut buffer = vec![0; 1000];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(count) if count > 0 => {
                            if stream.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                        }
                        _ => return,
                    }
                }
            });
        }
    });
    world.run_for(Duration::from_millis(1));
}

async fn connect() -> Stream {
    Stream::connect(NODE.address(1)).await.unwrap()
}

async fn read_exact(stream: &mut Stream, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        let count = stream.read(&mut bytes[filled..]).await?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += count;
    }
    Ok(bytes)
}

#[test]
fn bytes_come_whole_and_in_order_but_in_any_pieces() {
    let mut sizes = BTreeSet::new();
    for seed in 0..40 {
        let mut options = Options::random(seed);
        options.net.resets = 0.0;
        let world = World::new(options);
        start_echo(&world, 2);
        let sent: Vec<u8> = (0..20_000_u32).map(|number| (number % 251) as u8).collect();
        let pieces = world.block_on(async move {
            let mut stream = connect().await;
            let mut pieces = Vec::new();
            for part in sent.chunks(500) {
                stream.write_all(part).await.unwrap();
                let mut filled = 0;
                let mut buffer = vec![0; part.len()];
                while filled < part.len() {
                    let count = stream.read(&mut buffer[filled..]).await.unwrap();
                    assert!(count > 0, "seed {seed}: an end where none was sent");
                    pieces.push(count);
                    filled += count;
                }
                assert_eq!(buffer, part, "seed {seed}");
            }
            pieces
        });
        sizes.extend(pieces);
    }
    assert!(sizes.len() > 100, "only {} sizes of pieces", sizes.len());
}

#[test]
fn a_writer_waits_for_a_reader_who_never_reads() {
    let world = calm(1);
    world.change_net(|net| net.window_bytes = 10_000);
    world.start_node(NODE, 1, |_: rt::Core<()>| async {
        let listener = Listener::bind(NODE.address(1)).unwrap();
        let mut stream = listener.accept().await.unwrap();
        rt::sleep(SECOND * 10).await;
        read_exact(&mut stream, 1_000_000).await.unwrap();
    });
    world.run_for(Duration::from_millis(1));
    let written = Rc::new(Cell::new(0));
    let counter = Rc::clone(&written);
    let writer = world.spawn_client(async move {
        let mut stream = connect().await;
        for _ in 0..1_000 {
            stream.write_all(&[1; 1_000]).await.unwrap();
            counter.set(counter.get() + 1);
        }
    });
    world.run_for(SECOND * 5);
    assert_eq!(written.get(), 10, "the window is ten writes");
    assert!(
        world.run_until(|| writer.is_done(), SECOND * 60),
        "it never went on"
    );
}

#[test]
fn the_end_arrives_after_what_was_sent_and_cancelled_reads_lose_nothing() {
    for seed in 0..30 {
        let mut options = Options::random(seed);
        options.net.resets = 0.0;
        let world = World::new(options);
        world.start_node(NODE, 1, |_: rt::Core<()>| async {
            let listener = Listener::bind(NODE.address(1)).unwrap();
            let mut stream = listener.accept().await.unwrap();
            for byte in 0..100 {
                stream.write_all(&[byte]).await.unwrap();
                rt::sleep(Duration::from_micros(30)).await;
            }
            stream.shutdown().await;
            let late = stream
                .write_all(b"late")
                .await
                .expect_err("after its own end");
            assert_eq!(late.kind(), ErrorKind::BrokenPipe);
            std::future::pending::<()>().await;
        });
        world.run_for(Duration::from_millis(1));
        let got = world.block_on(async {
            let mut stream = connect().await;
            let mut got = Vec::new();
            loop {
                let mut buffer = [0; 10];
                let read = async { Some(stream.read(&mut buffer).await.unwrap()) };
                let timeout = async {
                    rt::sleep(Duration::from_micros(20)).await;
                    None
                };
                match futures_lite::future::or(read, timeout).await {
                    None => {}
                    Some(0) => return got,
                    Some(count) => got.extend_from_slice(&buffer[..count]),
                }
            }
        });
        assert_eq!(got, (0..100).collect::<Vec<u8>>(), "seed {seed}");
    }
}

#[test]
fn a_cut_holds_bytes_back_until_it_heals() {
    let world = calm(2);
    start_echo(&world, 1);
    let got = Rc::new(Cell::new(false));
    let flag = Rc::clone(&got);
    let handle = world.handle();
    world.spawn_client(async move {
        let mut stream = connect().await;
        stream.write_all(b"one").await.unwrap();
        assert_eq!(read_exact(&mut stream, 3).await.unwrap(), b"one");
        handle.cut(node(), Party::Clients);
        stream.write_all(b"two").await.unwrap();
        assert_eq!(read_exact(&mut stream, 3).await.unwrap(), b"two");
        flag.set(true);
    });
    world.run_for(SECOND * 100);
    assert!(!got.get(), "bytes came through a cut");
    world.heal(node(), Party::Clients);
    world.run_for(SECOND);
    assert!(got.get(), "bytes were lost in a cut");
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() {
    let world = calm(3);
    let arrived: Rc<RefCell<Vec<u8>>> = Rc::default();
    let log = Rc::clone(&arrived);
    world.start_node(NODE, 1, move |_: rt::Core<()>| {
        let log = Rc::clone(&log);
        async move {
            let listener = Listener::bind(NODE.address(1)).unwrap();
            let mut stream = listener.accept().await.unwrap();
            *log.borrow_mut() = read_exact(&mut stream, 2).await.unwrap();
            stream.write_all(b"no").await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    world.run_for(Duration::from_millis(1));
    let handle = world.handle();
    let client = world.spawn_client(async move {
        let mut stream = connect().await;
        handle.cut_one_way(node(), Party::Clients);
        stream.write_all(b"hi").await.unwrap();
        read_exact(&mut stream, 2).await.unwrap()
    });
    world.run_for(SECOND * 10);
    assert_eq!(*arrived.borrow(), b"hi", "the way to the node is open");
    assert!(!client.is_done(), "the way from the node is cut");
    world.heal_all();
    world.run_for(SECOND);
    assert_eq!(client.take(), Some(b"no".to_vec()));
}

#[test]
fn connecting_through_a_cut_waits_and_then_gives_up() {
    let world = calm(4);
    start_echo(&world, 1);
    world.cut(node(), Party::Clients);
    let patient = world.spawn_client(async { Stream::connect(NODE.address(1)).await.is_ok() });
    world.run_for(SECOND * 10);
    assert!(!patient.is_done());
    world.heal_all();
    world.run_for(SECOND * 2);
    assert_eq!(patient.take(), Some(true), "it was not tried again");
    world.cut_one_way(node(), Party::Clients);
    let error = world.block_on(async { Stream::connect(NODE.address(1)).await.map(drop) });
    assert_eq!(kind(error), ErrorKind::TimedOut);
}

fn kind<T>(outcome: Result<T, Error>) -> ErrorKind {
    match outcome {
        Err(Error::Io { source, .. }) => source.kind(),
        Err(other) => panic!("not an I/O error: {other}"),
        Ok(_) => panic!("it must fail"),
    }
}

#[test]
fn a_reset_fails_both_sides() {
    let world = calm(5);
    start_echo(&world, 1);
    let handle = world.handle();
    world.block_on(async move {
        let mut stream = connect().await;
        stream.write_all(b"x").await.unwrap();
        read_exact(&mut stream, 1).await.unwrap();
        handle.reset_connections(Party::Clients, node());
        let read = read_exact(&mut stream, 1).await.expect_err("reset");
        let write = stream.write_all(b"x").await.expect_err("reset");
        assert_eq!([read.kind(), write.kind()], [ErrorKind::ConnectionReset; 2]);
        drop(stream);
        rt::sleep(SECOND).await;
        assert_eq!(
            handle.open_connections(),
            0,
            "the node's side has not noticed"
        );
        handle.change_net(|net| net.resets = 1.0);
        let mut stream = connect().await;
        stream.write_all(b"x").await.unwrap();
        read_exact(&mut stream, 2)
            .await
            .expect_err("every write resets");
    });
}

#[test]
fn the_crash_of_a_node_is_noticed_at_once_or_when_one_writes() {
    for half_open in [0.0, 1.0] {
        let world = calm(6);
        world.change_net(|net| net.half_open = half_open);
        start_echo(&world, 1);
        let stream = world.block_on(async { connect().await });
        world.crash_node(NODE);
        let stream = Rc::new(RefCell::new(Some(stream)));
        let mut reading = stream.take().expect("just put there");
        let reader = world.spawn_client(async move {
            let waits = rt::sleep(SECOND * 1_000);
            let read = async {
                assert!(
                    reading.read(&mut [0; 10]).await.is_err(),
                    "a dead node says nothing"
                );
            };
            let was_told = futures_lite::future::or(
                async {
                    read.await;
                    true
                },
                async {
                    waits.await;
                    false
                },
            )
            .await;
            if !was_told {
                reading.write_all(b"anybody there?").await.unwrap();
                reading.read(&mut [0; 10]).await.expect_err("nobody");
            }
            was_told
        });
        assert!(
            world.run_until(|| reader.is_done(), SECOND * 2_000),
            "it waits for ever"
        );
        assert_eq!(reader.take(), Some(half_open == 0.0));
        let gone = world.block_on(async { Stream::connect(NODE.address(1)).await.map(drop) });
        let expected = [ErrorKind::ConnectionRefused, ErrorKind::TimedOut];
        assert_eq!(kind(gone), expected[half_open as usize]);
        world.run_on(NODE, async {});
        let gone = world.block_on(async { Stream::connect(NODE.address(1)).await.map(drop) });
        assert_eq!(
            kind(gone),
            ErrorKind::ConnectionRefused,
            "it has power again"
        );
    }
}

#[test]
fn whoever_waits_on_a_connection_that_breaks_is_told() {
    for seed in 0..100 {
        let mut options = Options::random(seed);
        options.net.resets = 1.0;
        let world = World::new(options);
        let told = Rc::new(Cell::new(0));
        let counter = Rc::clone(&told);
        world.start_node(NODE, 1, move |_: rt::Core<()>| {
            let told = Rc::clone(&counter);
            async move {
                let listener = Listener::bind(NODE.address(1)).unwrap();
                loop {
                    let (mut stream, told) = (listener.accept().await.unwrap(), Rc::clone(&told));
                    rt::spawn(async move {
                        while stream.read(&mut [0; 10]).await.is_ok() {}
                        told.set(told.get() + 1);
                    });
                }
            }
        });
        world.run_for(Duration::from_millis(1));
        world.block_on(async {
            // Kept open, so that the break itself is all that the node can learn of.
            let mut kept = Vec::new();
            for _ in 0..10 {
                let mut stream = connect().await;
                rt::sleep(Duration::from_millis(1)).await;
                stream.write_all(b"x").await.unwrap();
                kept.push(stream);
            }
            rt::sleep(SECOND * 10).await;
        });
        assert_eq!(told.get(), 10, "seed {seed}: the node waits for ever");
    }
}

#[test]
fn a_close_behind_a_cut_is_learned_when_it_heals() {
    let world = calm(9);
    world.start_node(NODE, 1, |_: rt::Core<()>| async {
        let listener = Listener::bind(NODE.address(1)).unwrap();
        let stream = listener.accept().await.unwrap();
        rt::sleep(SECOND).await;
        drop(stream);
        std::future::pending::<()>().await;
    });
    world.run_for(Duration::from_millis(1));
    world.change_net(|net| net.window_bytes = 100);
    let writer = world.spawn_client(async {
        let mut stream = connect().await;
        while stream.write_all(&[0; 10]).await.is_ok() {}
    });
    world.run_for(SECOND / 2);
    world.cut(node(), Party::Clients);
    world.run_for(SECOND * 10);
    assert!(!writer.is_done(), "news came through a cut");
    world.heal_all();
    world.run_for(SECOND);
    assert!(writer.is_done(), "it never learns that its reader is gone");
}

#[test]
fn cores_share_an_address_and_nodes_do_not() {
    let world = calm(7);
    let counts: Rc<RefCell<[u32; 3]>> = Rc::default();
    let counter = Rc::clone(&counts);
    world.start_node(NODE, 3, move |core: rt::Core<()>| {
        let counts = Rc::clone(&counter);
        async move {
            let listener = Listener::bind(NODE.address(1)).unwrap();
            loop {
                let stream = listener.accept().await.unwrap();
                assert_eq!(stream.local_addr(), Some(NODE.address(1)));
                counts.borrow_mut()[usize::from(core.id.0)] += 1;
            }
        }
    });
    world.run_for(Duration::from_millis(1));
    let taken = world.run_on(NodeId(2), async {
        Listener::bind(NODE.address(1)).map(drop)
    });
    assert_eq!(kind(taken), ErrorKind::AddrInUse);
    world.block_on(async {
        for _ in 0..60 {
            let stream = connect().await;
            assert_eq!(stream.peer_addr(), Some(NODE.address(1)));
        }
    });
    world.run_for(SECOND);
    assert!(counts.borrow().iter().all(|&count| count > 5), "{counts:?}");
    world.kill_node(NODE);
    world.run_on(NodeId(2), async {
        Listener::bind(NODE.address(1)).map(drop).expect("free")
    });
}

#[test]
fn closing_with_unread_bytes_resets_and_without_ends() {
    for is_unread in [false, true] {
        let world = calm(8);
        world.start_node(NODE, 1, move |_: rt::Core<()>| async move {
            let listener = Listener::bind(NODE.address(1)).unwrap();
            let mut stream = listener.accept().await.unwrap();
            if !is_unread {
                read_exact(&mut stream, 2).await.unwrap();
            }
            rt::sleep(SECOND).await;
            stream.write_all(b"bye").await.unwrap();
            drop(stream);
            std::future::pending::<()>().await;
        });
        world.run_for(Duration::from_millis(1));
        world.block_on(async move {
            let mut stream = connect().await;
            stream.write_all(b"hi").await.unwrap();
            rt::sleep(SECOND * 2).await;
            let read = read_exact(&mut stream, 3).await;
            assert_eq!(read.is_err(), is_unread, "{read:?}");
            if !is_unread {
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "an orderly end");
                stream.write_all(b"?").await.expect_err("nobody reads that");
            }
        });
    }
}
