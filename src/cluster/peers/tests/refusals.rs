//! What both sides say of a connection that comes to nothing: who is to blame, and what is to be
//! done.

use super::*;

/// Node 2 of this cluster and key, which notes how connections to it end.
fn listening(world: &World, cluster: ClusterId, key: &'static [u8]) -> Rc<RefCell<Vec<String>>> {
    let said = Rc::new(RefCell::new(Vec::new()));
    let (note, ledger, handle) = (Rc::clone(&said), Rc::new(Ledger::default()), world.handle());
    world.start_node(sim::NodeId(2), 1, move |_: Core<()>| {
        let (note, ledger, world) = (Rc::clone(&note), Rc::clone(&ledger), handle.clone());
        async move {
            let peers = peers_of(2, 0, key, |_| {});
            peers.set_identity(Identity {
                cluster,
                node: NodeId(2),
            });
            let served: Rc<dyn Serve> = Rc::new(Responder {
                is_prompt: true,
                ledger,
                world,
            });
            let listener = Listener::bind(sim::NodeId(2).address(PORT)).expect("it is free");
            while let Ok(stream) = listener.accept().await {
                if let Err(broken) = peers.greet_and_serve(stream, Rc::clone(&served)).await {
                    assert!(broken.is_violation(), "it would not be told: {broken}");
                    note.borrow_mut().push(broken.to_string());
                }
            }
        }
    });
    said
}

/// What node 1, with the cluster and the key of these tests, says of its link to node 2.
fn said_of_the_link(world: &World) -> String {
    let handle = world.handle();
    let task = world.start_node(sim::NodeId(1), 1, move |_: Core<()>| {
        let world = handle.clone();
        async move {
            let (peers, ledger) = (peers_of(1, 0, KEY, |_| {}), Ledger::default());
            let to = holder(2, 0);
            let asked = ask(&peers, &ledger, &world, (to, SECOND, 0)).await;
            assert_eq!(asked, Err(Unanswered::Unreachable));
            let links = peers.links.borrow();
            links[&to].complaint()
        }
    });
    world.run_for(SECOND * 5);
    task[0].take().expect("it was answered, or not")
}

/// Else a wrong key would leave no line at the member that refuses, and "it" at the newcomer would
/// be anybody.
#[test]
fn a_wrong_key_is_told_on_both_sides() {
    let world = World::new(Options::calm(1));
    let said = listening(&world, CLUSTER, b"another key");
    let of_the_link = said_of_the_link(&world);
    assert!(of_the_link.contains("the two have different keys (`cluster-key`)"));
    let said = said.borrow();
    assert!(said[0].contains("instead of proving who it is"), "{said:?}");
    assert!(said[0].contains("another `cluster-key`"), "{said:?}");
}

/// Else who asks a node that has lost its directory would only learn that it was hung up on.
#[test]
fn another_cluster_is_told_on_both_sides() {
    let world = World::new(Options::calm(2));
    let said = listening(&world, [9; 16], KEY);
    let of_the_link = said_of_the_link(&world);
    for told in [&of_the_link, &said.borrow()[0]] {
        assert!(told.contains("it belongs to another cluster"), "{told}");
    }
}

/// Else a web browser, or redis-cli with a wrong port, would be said to send frames of 168,636,714
/// bytes.
#[test]
fn who_is_no_node_is_said_to_be_none() {
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "*1\r\n$4\r\nPING\r\n"] {
        let world = World::new(Options::calm(3));
        let said = listening(&world, CLUSTER, KEY);
        world.block_on(async move {
            rt::sleep(MS * 50).await;
            let mut stream = rt::Stream::connect(sim::NodeId(2).address(PORT))
                .await
                .expect("it listens");
            stream.write_all(bytes.as_bytes()).await.expect("it reads");
            let _ = stream.read(&mut [0; 100]).await;
        });
        assert_eq!(*said.borrow(), ["it is no Quoit node"]);
    }
}
