//! Links to where nobody answers, not even with a refusal.

use super::*;

/// It swallows whatever comes from node 1.
const SILENT: u16 = 3;

/// A world in which node 2 answers, and the machine where it was is still there, but cut off.
fn world_of_moved_node(planted: &[Bug]) -> World {
    let mut options = Options::calm(4);
    options.planted = planted.to_vec();
    let world = World::new(options);
    for machine in [2, SILENT] {
        let (ledger, handle) = (Rc::new(Ledger::default()), world.handle());
        world.start_node(sim::NodeId(machine), 1, move |_: Core<()>| {
            let (ledger, world) = (Rc::clone(&ledger), handle.clone());
            async move {
                let served = Rc::new(Responder {
                    is_prompt: true,
                    ledger,
                    world,
                });
                listen(peers_of(machine, 0, KEY, |_| {}), served, machine, 0).await;
            }
        });
    }
    world.run_for(MS * 10); // they listen
    let party = |node| Party::Node(sim::NodeId(node));
    world.cut(party(1), party(SILENT));
    world
}

/// What becomes of a question to node 2, which is said to be on `machine`, and after how long.
async fn ask_at(
    peers: &Rc<Peers>,
    machine: u16,
    patience: Duration,
) -> (Result<(), Unanswered>, Duration) {
    let host = sim::NodeId(machine).address(PORT).ip().to_string();
    let address = PeerAddress {
        host: &host,
        port: PORT,
    };
    let began = rt::now();
    let request = Request::Gossip(b"are you there");
    let asked = peers.ask(holder(2, 0), address, &request, began + patience);
    (asked.await.map(drop), rt::now() - began)
}

/// Gossip asks for node 2 again and again, as it may be back.
async fn hurry(peers: Rc<Peers>) {
    loop {
        rt::sleep(SECOND).await;
        peers.expect(NodeId(2));
    }
}

/// What becomes of a question to where node 2 is, while the link to it still connects to where it
/// was.
fn ask_where_it_is(planted: &[Bug]) -> (Result<(), Unanswered>, Duration) {
    let world = world_of_moved_node(planted);
    world.run_on(sim::NodeId(1), async {
        let peers = peers_of(1, 0, KEY, |_| {});
        rt::spawn(hurry(Rc::clone(&peers)));
        let asking = Rc::clone(&peers);
        rt::spawn(async move { ask_at(&asking, SILENT, SECOND * 2).await });
        rt::sleep(MS * 1_500).await;
        ask_at(&peers, 2, SECOND).await
    })
}

/// Else a node that has moved would be asked where it was until that machine answers, or for as
/// long as an attempt may take.
#[test]
fn a_link_goes_at_once_to_where_its_node_is_said_to_be() {
    let (outcome, took) = ask_where_it_is(&[]);
    assert_eq!(outcome, Ok(()), "after {took:?}");
    assert!(took < MS * 100, "answered after {took:?}");
}

#[test]
fn a_link_that_stays_with_the_old_address_is_found() {
    let (outcome, took) = ask_where_it_is(&[Bug::OldAddressKept]);
    println!("{outcome:?} after {took:?}");
    assert_eq!(outcome, Err(Unanswered::TooLate));
}

/// Else nobody would be told that a machine is gone which leaves no word, and whoever asks it would
/// always wait until its deadline.
#[test]
fn an_attempt_to_connect_ends_in_time_however_often_it_begins_anew() {
    let limit = limits().greeting_time_max;
    let world = world_of_moved_node(&[]);
    let heard = Rc::new(RefCell::new(Vec::new()));
    let note = Rc::clone(&heard);
    let (outcome, took) = world.run_on(sim::NodeId(1), async move {
        let peers = peers_of(1, 0, KEY, move |event| note.borrow_mut().push(event));
        rt::spawn(hurry(Rc::clone(&peers)));
        ask_at(&peers, SILENT, limit * 3).await
    });
    assert_eq!(outcome, Err(Unanswered::Unreachable), "after {took:?}");
    assert!(
        took >= limit && took < limit + MS * 100,
        "it was given up after {took:?}"
    );
    assert_eq!(*heard.borrow(), [Event::Down(NodeId(2))]);
}
