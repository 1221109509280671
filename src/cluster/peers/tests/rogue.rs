//! Whoever reaches a peer port, and what he may send: garbage, too much, nothing, requests without
//! an end.

use super::*;
use crate::protocol::peer::handshake::Connecting;
use crate::protocol::peer::{Frame, Message, Parsed, VERSION, encode, parse};
use crate::rt::Stream;

/// A world with node 2, which serves, and node 1, which asks it now and then: it must go on being
/// answered.
struct Scene {
    world: World,
    ledger: Rc<Ledger>,
    /// Of node 2.
    served: Rc<RefCell<Option<Rc<Peers>>>>,
}

impl Scene {
    fn new(seed: u64, planted: &[Bug]) -> Scene {
        let mut options = Options::random(seed);
        (options.net.resets, options.net.spikes) = (0.0, 0.0);
        options.planted = planted.to_vec();
        let world = World::new(options);
        let ledger = Rc::new(Ledger::default());
        let served = Rc::new(RefCell::new(None));
        let (note, responding, handle) = (Rc::clone(&served), Rc::clone(&ledger), world.handle());
        world.start_node(sim::NodeId(2), 1, move |_: Core<()>| {
            let (note, ledger, world) = (Rc::clone(&note), Rc::clone(&responding), handle.clone());
            async move {
                let peers = peers_of(2, 0, KEY, |_| {});
                note.replace(Some(Rc::clone(&peers)));
                let served = Rc::new(Responder {
                    is_prompt: true,
                    ledger,
                    world,
                });
                listen(peers, served, 2, 0).await;
            }
        });
        let (asking, handle) = (Rc::clone(&ledger), world.handle());
        world.start_node(sim::NodeId(1), 1, move |_: Core<()>| {
            let (ledger, world) = (Rc::clone(&asking), handle.clone());
            async move {
                let peers = peers_of(1, 0, KEY, |_| {});
                loop {
                    let _ = ask(&peers, &ledger, &world, (holder(2, 0), SECOND * 5, 10)).await;
                    rt::sleep(MS * 200).await;
                }
            }
        });
        world.run_for(MS * 50);
        Scene {
            world,
            ledger,
            served,
        }
    }

    /// Looks whether node 1 is still answered.
    fn end(&self) -> Result<(), String> {
        self.world.run_for(SECOND * 10);
        let first = self.ledger.fates.borrow().len();
        self.world.run_for(SECOND * 30);
        if let Some(wrong) = self.ledger.wrong.take() {
            return Err(wrong);
        }
        let fates = self.ledger.fates.borrow();
        let answered = fates[first..]
            .iter()
            .filter(|fate| fate.outcome == Some(Ok(())));
        match answered.count() > 3 {
            true => Ok(()),
            false => Err(format!(
                "a good node is not answered any more: {:?}",
                &fates[first..]
            )),
        }
    }
}

async fn connect() -> Stream {
    loop {
        match Stream::connect(sim::NodeId(2).address(PORT)).await {
            Ok(stream) => return stream,
            Err(_) => rt::sleep(MS * 10).await,
        }
    }
}

async fn send(stream: &mut Stream, frame: Frame<'_>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    encode(&frame, VERSION, &mut bytes);
    stream.write_all(&bytes).await
}

fn frame(id: u64, message: Message<'_>) -> Frame<'_> {
    Frame {
        id,
        deadline_ms: 1 << 29,
        epoch: 0,
        message,
    }
}

/// A connection that has proved to be of this node, if it could.
async fn greet(node: u16, key: &[u8]) -> Option<Stream> {
    greet_with(node, 0, key).await
}

/// The same, with a map of this epoch.
async fn greet_with(node: u16, epoch: u64, key: &[u8]) -> Option<Stream> {
    let mut stream = connect().await;
    let side = Side {
        cluster: CLUSTER,
        node,
        core: CoreId(0),
        epoch,
        nonce: [3; 32],
    };
    let (connecting, hello) = Connecting::start(side, None);
    send(&mut stream, frame(0, Message::Hello(hello)))
        .await
        .ok()?;
    let mut input = Vec::new();
    let welcome = loop {
        match parse(&input, &Limits::greeting()) {
            Parsed::Frame { frame, .. } => match frame.message {
                Message::Welcome(welcome) => break welcome,
                _ => return None,
            },
            Parsed::Violation(_) => return None,
            Parsed::Incomplete { .. } => {
                let mut piece = [0; 500];
                let count = stream.read(&mut piece).await.ok()?;
                if count == 0 {
                    return None;
                }
                input.extend_from_slice(&piece[..count]);
            }
        }
    };
    let (_, proof) = connecting.on_welcome(&welcome, key).ok()?;
    send(&mut stream, frame(0, Message::Proof(proof)))
        .await
        .ok()?;
    Some(stream)
}

/// Waits until the other side has closed; what it says meanwhile does not matter.
async fn closed(stream: &mut Stream) {
    let mut piece = [0; 4000];
    while matches!(stream.read(&mut piece).await, Ok(count) if count > 0) {}
}

/// Bytes that look a little like frames.
fn garbage(chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..chance.usize(1..3000)).map(|_| chance.u8(..)).collect();
    if chance.bool() {
        let request = frame(chance.u64(..), Message::Request(Request::Gossip(&bytes)));
        let mut good = Vec::new();
        encode(&request, chance.u8(..3), &mut good);
        for _ in 0..chance.usize(..4) {
            let at = chance.usize(..good.len());
            good[at] = chance.u8(..);
        }
        bytes = good;
    }
    bytes
}

/// Else whoever reaches the port could end the process, or keep others from it.
#[test]
fn garbage_before_and_after_the_handshake_harms_nobody() {
    for seed in seeds(30) {
        let scene = Scene::new(seed, &[]);
        for rogue in 0..10 {
            let mut chance = fastrand::Rng::with_seed(seed << 8 | rogue);
            scene.world.spawn_client(async move {
                let is_known = chance.bool();
                let stream = match is_known {
                    true => greet(9, KEY).await,
                    false => Some(connect().await),
                };
                let Some(mut stream) = stream else { return };
                for _ in 0..chance.usize(1..5) {
                    if stream.write_all(&garbage(&mut chance)).await.is_err() {
                        return;
                    }
                }
                if chance.bool() {
                    closed(&mut stream).await;
                }
            });
        }
        scene
            .end()
            .unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let served = scene.served.borrow();
        let peers = served.as_ref().expect("it has begun");
        assert_eq!(
            peers.greeting.get(),
            0,
            "seed {seed}: somebody is still greeted"
        );
        let all = peers.accepted.borrow().len();
        assert!(all <= 2, "seed {seed}: {all} connections, one is in use");
    }
}

/// How long it takes until somebody is hung up on who declares a large frame and does not send it.
fn patience_with_the_unknown(planted: &[Bug]) -> Duration {
    let scene = Scene::new(0, planted);
    let handle = scene.world.handle();
    scene.world.block_on(async move {
        let mut stream = connect().await;
        let begun = handle.elapsed();
        let declared = (1_u32 << 20).to_le_bytes();
        let _ = stream.write_all(&declared).await;
        closed(&mut stream).await;
        handle.elapsed() - begun
    })
}

/// Else anybody could have a node wait for, and keep, what he never proves that he may send.
#[test]
fn who_is_unknown_cannot_announce_a_large_frame() {
    assert!(patience_with_the_unknown(&[]) < SECOND);
    let planted = patience_with_the_unknown(&[Bug::GreetingUncapped]);
    assert!(planted >= SECOND, "the cap is missing, and nobody sees it");
}

/// Else who does not know the key could read and write; or a node that is misconfigured would not
/// be told.
#[test]
fn a_wrong_key_is_refused_on_both_sides() {
    let scene = Scene::new(1, &[]);
    let refused = scene.world.block_on(async {
        let mut stream = connect().await;
        let side = Side {
            cluster: CLUSTER,
            node: 9,
            core: CoreId(0),
            epoch: 0,
            nonce: [1; 32],
        };
        let hello = Connecting::start(side, None).1;
        let _ = send(&mut stream, frame(0, Message::Hello(hello))).await;
        let _ = send(&mut stream, frame(0, Message::Proof([5; 32]))).await;
        let request = Message::Request(Request::Gossip(&[0; 8]));
        let _ = send(&mut stream, frame(1, request)).await;
        closed(&mut stream).await;
        greet(9, b"another").await.is_none()
    });
    assert!(
        refused,
        "the node proves itself under a key that it does not have"
    );
    let (ledger, handle) = (Rc::new(Ledger::default()), scene.world.handle());
    let asking = Rc::clone(&ledger);
    let task = scene
        .world
        .start_node(sim::NodeId(3), 1, move |_: Core<()>| {
            let (ledger, world) = (Rc::clone(&asking), handle.clone());
            async move {
                let peers = peers_of(3, 0, b"another", |_| {});
                ask(&peers, &ledger, &world, (holder(2, 0), SECOND * 2, 0)).await
            }
        });
    scene.world.run_for(SECOND * 5);
    let said = task[0].take();
    assert_eq!(said, Some(Err(Unanswered::Unreachable)));
    scene.end().expect("others are served");
}

/// Most bytes that wait for somebody who asks and asks and never reads.
fn pile_for_the_deaf(planted: &[Bug]) -> usize {
    let scene = Scene::new(2, planted);
    scene.world.change_net(|net| net.window_bytes = 4096);
    let number = scene.ledger.begin(SECOND * 100_000) as u64;
    scene.world.spawn_client(async move {
        let Some(mut stream) = greet(9, KEY).await else {
            return;
        };
        for id in 1..20_000 {
            // Not to be answered by what is counted: a key that nobody has.
            let read = Request::Read {
                key: &number.to_le_bytes(),
                want: crate::protocol::peer::Want::Value,
                now: 0,
            };
            if send(&mut stream, frame(id, Message::Request(read)))
                .await
                .is_err()
            {
                return;
            }
        }
        std::future::pending::<()>().await;
        drop(stream);
    });
    let mut most = 0;
    for _ in 0..500 {
        scene.world.run_for(MS * 100);
        let served = scene.served.borrow();
        let peers = served.as_ref().expect("it has begun");
        let waiting = peers.accepted.borrow();
        let waiting = waiting.iter().map(|one| one.outside.waiting_bytes());
        most = most.max(waiting.max().unwrap_or(0));
    }
    most
}

/// Else one connection could take all of the memory.
#[test]
fn who_does_not_read_his_answers_is_not_read_from() {
    let bounds = limits();
    let most = bounds.waiting_bytes_max + 40_000;
    let pile = pile_for_the_deaf(&[]);
    assert!(pile <= most, "{pile} bytes of answers wait");
    let planted = pile_for_the_deaf(&[Bug::AnswersPileUp]);
    assert!(
        planted > most,
        "{planted} bytes: nobody sees that answers pile up"
    );
}

/// Else a node could be asked to do the same twice.
#[test]
fn a_number_that_comes_twice_ends_the_connection() {
    let scene = Scene::new(3, &[]);
    scene.world.block_on(async {
        let mut stream = greet(9, KEY).await.expect("it knows the key");
        for id in [4, 4] {
            let _ = send(&mut stream, frame(id, Message::Request(Request::Ping))).await;
        }
        closed(&mut stream).await;
    });
    scene.end().expect("others are served");
}

/// Else a node that nobody let in could read and write.
#[test]
fn who_is_in_no_cluster_may_only_ask_to_be_let_in() {
    let stranger = NO_NODE;
    for (request, may) in [
        (Request::Ping, true),
        (Request::Join(b"me"), true),
        (Request::Clock, false),
        (Request::Gossip(b""), false),
        (Request::TakeMap(b""), false),
    ] {
        assert_eq!(
            accepted::may_ask_stranger(&request),
            may,
            "{request:?} of {stranger:?}"
        );
    }
}

/// Takes note of what it is asked.
struct Noting(Rc<RefCell<Vec<String>>>);

impl Serve for Noting {
    fn serve(self: Rc<Self>, asked: Asked<'_>, answering: Answering) {
        let what = format!("{:?} of {}", asked.request, asked.from.node.0);
        self.0.borrow_mut().push(what);
        answering.give(&Answer::Done);
    }
}

/// Else a node that has left the cluster, or was never in it, could read and write, for it knows
/// the key; or one that has just come in could not say that there is a newer map.
#[test]
fn who_knows_the_key_and_is_not_in_the_map_is_asked_for_a_newer_map_at_most() {
    let world = World::new(Options::calm(4));
    let asked = Rc::new(RefCell::new(Vec::new()));
    let note = Rc::clone(&asked);
    world.start_node(sim::NodeId(2), 1, move |_: Core<()>| {
        let note = Rc::clone(&note);
        async move {
            let peers = peers_of(2, 0, KEY, |_| {});
            peers.set_epoch(5);
            peers.keep_only(|node| node.0 <= 3);
            listen(peers, Rc::new(Noting(note)), 2, 0).await;
        }
    });
    world.block_on(async {
        for (node, epoch) in [(3, 4), (9, 5), (9, 6)] {
            let mut stream = greet_with(node, epoch, KEY)
                .await
                .expect("the key is known");
            let read = Request::Read {
                key: b"key",
                want: crate::protocol::peer::Want::Value,
                now: 0,
            };
            for (id, request) in [
                (1, Request::Clock),
                (2, read),
                (3, Request::Gossip(b"news")),
            ] {
                let _ = send(&mut stream, frame(id, Message::Request(request))).await;
            }
            let mut piece = [0; 4000];
            let came = stream.read(&mut piece).await.unwrap_or(0);
            assert_eq!(came > 0, (node, epoch) != (9, 5), "hung up on, or not");
            rt::sleep(SECOND).await;
        }
    });
    let of_three = asked
        .borrow()
        .iter()
        .filter(|what| what.ends_with("of 3"))
        .count();
    assert_eq!(of_three, 3, "a node of the map is served: {asked:?}");
    let of_nine: Vec<String> = asked
        .borrow()
        .iter()
        .filter(|what| what.ends_with("of 9"))
        .cloned()
        .collect();
    assert_eq!(of_nine.len(), 1, "{of_nine:?}");
    assert!(of_nine[0].starts_with("Gossip"), "{of_nine:?}");
}
