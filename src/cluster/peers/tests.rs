//! Cores of several nodes that ask each other, in a world in which messages are late, cut off and
//! lost, and nodes crash.

mod connecting;
mod refusals;
mod rogue;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::protocol::peer::Answer;
use crate::rt::sim::{self, Options, Party, World};
use crate::rt::{Bug, Core, Listener};

const KEY: &[u8] = b"the cluster's key";
const CLUSTER: ClusterId = [7; 16];
const PORT: u16 = 7379;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What the scheduler's stalls and the way of a handshake add to a deadline, at most.
const SLACK: Duration = Duration::from_secs(5);

fn limits() -> PeerLimits {
    PeerLimits {
        key_bytes_max: 1000,
        value_bytes_max: 10_000,
        requests_max: 30,
        waiting_bytes_max: 20_000,
        served_max: 40,
        greeting_max: 4,
        greeting_time_max: SECOND * 3,
        pause_min: MS * 20,
        pause_max: SECOND,
        silence_max: SECOND * 2,
    }
}

fn holder(node: u16, core: u16) -> Holder {
    Holder {
        node: NodeId(node),
        core: CoreId(core),
    }
}

/// What became of one request, by the world's clock.
#[derive(Debug)]
struct Fate {
    deadline: Duration,
    outcome: Option<Result<(), Unanswered>>,
    done: u32,
}

/// What all nodes have asked and done; outside of the world.
#[derive(Default)]
struct Ledger {
    fates: RefCell<Vec<Fate>>,
    wrong: RefCell<Option<String>>,
    events: Cell<u64>,
}

impl Ledger {
    fn note(&self, is_right: bool, what: impl FnOnce() -> String) {
        if !is_right {
            self.wrong.borrow_mut().get_or_insert_with(what);
        }
    }

    fn begin(&self, deadline: Duration) -> usize {
        let mut fates = self.fates.borrow_mut();
        fates.push(Fate {
            deadline,
            outcome: None,
            done: 0,
        });
        fates.len() - 1
    }
}

/// A core that answers what it is asked: at once, later, much later or never.
struct Responder {
    /// It answers everything at once.
    is_prompt: bool,
    ledger: Rc<Ledger>,
    world: sim::Handle,
}

impl Serve for Responder {
    fn serve(self: Rc<Self>, asked: Asked<'_>, answering: Answering) {
        let Request::Gossip(bytes) = asked.request else {
            return answering.give(&Answer::NotMine);
        };
        let Some(number) = bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
            return answering.give(&Answer::NotMine);
        };
        let now = self.world.elapsed();
        {
            let mut fates = self.ledger.fates.borrow_mut();
            let Some(fate) = fates.get_mut(number as usize) else {
                return answering.give(&Answer::NotMine); // garbage
            };
            fate.done += 1;
            let (done, deadline) = (fate.done, fate.deadline);
            drop(fates);
            let ledger = &self.ledger;
            ledger.note(done == 1, || format!("{number} was done twice"));
            ledger.note(now <= deadline + SLACK, || {
                format!("{number} was done at {now:?}, after its deadline {deadline:?}")
            });
        }
        let mut answer = number.to_le_bytes().to_vec();
        answer.resize(8 + rt::random() as usize % 3000, 0xA5);
        let manner = match self.is_prompt {
            true => 0,
            false => rt::random() % 8,
        };
        match manner {
            0..3 => answering.give(&Answer::Gossip(&answer)),
            7 => drop(answering),
            late => {
                let pause = MS * (late as u32 - 2) * (rt::random() % 60) as u32;
                rt::spawn(async move {
                    rt::sleep(pause).await;
                    answering.give(&Answer::Gossip(&answer));
                });
            }
        }
    }
}

/// Serves whoever connects to this core.
async fn listen(peers: Rc<Peers>, served: Rc<dyn Serve>, node: u16, core: u16) {
    let address = sim::NodeId(node).address(PORT + core);
    let listener = Listener::bind(address).expect("nobody else is there");
    loop {
        match listener.accept().await {
            Ok(stream) => drop(rt::spawn(
                Rc::clone(&peers).serve(stream, Rc::clone(&served)),
            )),
            Err(_) => rt::sleep(MS * 10).await,
        }
    }
}

fn peers_of(node: u16, core: u16, key: &[u8], told: impl Fn(Event) + 'static) -> Rc<Peers> {
    let peers = Peers::new(CoreId(core), key, limits(), told);
    peers.set_identity(Identity {
        cluster: CLUSTER,
        node: NodeId(node),
    });
    peers
}

/// One request with its number, and what comes of it.
async fn ask(
    peers: &Rc<Peers>,
    ledger: &Ledger,
    world: &sim::Handle,
    (to, patience, length): (Holder, Duration, usize),
) -> Result<(), Unanswered> {
    let deadline = world.elapsed() + patience;
    let number = ledger.begin(deadline) as u64;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + length, 0x5A);
    let host = sim::NodeId(to.node.0).address(PORT).ip().to_string();
    let address = PeerAddress {
        host: &host,
        port: PORT + to.core.0,
    };
    let request = Request::Gossip(&bytes);
    let until = rt::now() + patience;
    let answered = peers.ask(to, address, &request, until).await;
    let now = world.elapsed();
    ledger.note(now <= deadline + SLACK, || {
        format!("{number} was answered at {now:?}, after its deadline {deadline:?}")
    });
    if let Ok(answered) = &answered {
        let is_its = match answered.answer.view() {
            Answer::Gossip(bytes) => bytes.starts_with(&number.to_le_bytes()),
            answer => answer == Answer::Busy,
        };
        ledger.note(is_its, || format!("{number} has another one's answer"));
    }
    let is_busy = matches!(&answered, Ok(answered) if answered.answer.view() == Answer::Busy);
    let outcome = match answered {
        Ok(_) if is_busy => Ok(()),
        Ok(_) => Ok(()),
        Err(unanswered) => Err(unanswered),
    };
    ledger.fates.borrow_mut()[number as usize].outcome = Some(outcome);
    for link in peers.links.borrow().values() {
        let (open, bytes) = link.load();
        let bounds = limits();
        ledger.note(open <= bounds.requests_max, || {
            format!("{open} requests are open")
        });
        let most = bounds.waiting_bytes_max + 12_000;
        ledger.note(bytes <= most, || format!("{bytes} bytes wait to be sent"));
    }
    outcome
}

/// What one core of a node does all its life: it asks others, until the questions are all asked.
async fn live(core: Core<()>, node: u16, nodes: u16, ledger: Rc<Ledger>, world: sim::Handle) {
    let heard = Rc::clone(&ledger);
    let told = move |_| heard.events.set(heard.events.get() + 1);
    let peers = peers_of(node, core.id.0, KEY, told);
    peers.set_epoch(u64::from(node));
    let served = Rc::new(Responder {
        is_prompt: false,
        ledger: Rc::clone(&ledger),
        world: world.clone(),
    });
    rt::spawn(listen(Rc::clone(&peers), served, node, core.id.0));
    let others: Vec<u16> = (1..=nodes).filter(|other| *other != node).collect();
    for _ in 0..12 {
        let (peers, ledger, world) = (Rc::clone(&peers), Rc::clone(&ledger), world.clone());
        let (others, cores) = (others.clone(), core.count);
        rt::spawn(async move {
            loop {
                let chance = rt::random();
                let other = others[chance as usize % others.len()];
                let to = holder(other, (chance >> 8) as u16 % cores);
                let patience = MS * [5, 50, 500, 3000][(chance >> 16) as usize % 4];
                let length = [0, 100, 9000][(chance >> 24) as usize % 3];
                // A question may be given up at any moment.
                let asking = ask(&peers, &ledger, &world, (to, patience, length));
                match (chance >> 32) % 16 {
                    0 => {
                        let moment = async {
                            rt::sleep(MS * ((chance >> 40) % 20) as u32).await;
                            Ok(())
                        };
                        let _ = futures_lite::future::or(asking, moment).await;
                    }
                    _ => drop(asking.await),
                }
                rt::sleep(MS * ((chance >> 48) % 300) as u32).await;
            }
        });
    }
    std::future::pending().await
}

/// What happened in one world, or what was wrong in it.
struct Told {
    answered: usize,
    lost: usize,
    undone: usize,
    trace: u64,
}

fn run(seed: u64, planted: &[Bug]) -> Result<Told, String> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (nodes, cores) = (chance.u16(2..4), chance.u16(1..3));
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let world = World::new(options);
    let ledger = Rc::new(Ledger::default());
    let start = |node: u16| {
        let (ledger, handle) = (Rc::clone(&ledger), world.handle());
        world.start_node(sim::NodeId(node), cores, move |core: Core<()>| {
            live(core, node, nodes, Rc::clone(&ledger), handle.clone())
        });
    };
    (1..=nodes).for_each(start);
    let party = |node| Party::Node(sim::NodeId(node));
    for _ in 0..chance.usize(5..25) {
        world.run_for(MS * chance.u32(1..1500));
        let (one, other) = (chance.u16(1..=nodes), chance.u16(1..=nodes));
        match chance.u8(..8) {
            0 if one != other => world.cut(party(one), party(other)),
            1 if one != other => world.cut_one_way(party(one), party(other)),
            2 | 3 => world.heal_all(),
            4 => world.reset_connections(party(one), party(other)),
            5 => {
                match chance.bool() {
                    true => world.crash_node(sim::NodeId(one)),
                    false => world.kill_node(sim::NodeId(one)),
                }
                start(one);
            }
            _ => {}
        }
        if ledger.wrong.borrow().is_some() {
            break;
        }
    }
    world.heal_all();
    world.change_net(|net| (net.resets, net.spikes) = (0.0, 0.0));
    world.run_for(SECOND * 8);
    let last = ledger.fates.borrow().len();
    world.run_for(SECOND * 5);
    let wrong = ledger.wrong.take();
    judge(&ledger, last, wrong).map(|told| Told {
        trace: world.trace_hash(),
        ..told
    })
}

/// Looks at everything that was asked. From number `last` on the network was good.
fn judge(ledger: &Ledger, last: usize, wrong: Option<String>) -> Result<Told, String> {
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let fates = ledger.fates.borrow();
    let mut told = Told {
        answered: 0,
        lost: 0,
        undone: 0,
        trace: 0,
    };
    let mut answered_last = 0;
    for (number, fate) in fates.iter().enumerate() {
        match fate.outcome {
            Some(Ok(())) => {
                told.answered += 1;
                answered_last += usize::from(number >= last);
            }
            Some(Err(Unanswered::Lost)) => told.lost += 1,
            Some(Err(_)) => {
                told.undone += 1;
                if fate.done > 0 {
                    return Err(format!(
                        "{number} was certainly not done, and was: {fate:?}"
                    ));
                }
            }
            None => {} // given up, or the asker has crashed, or it is under way
        }
    }
    match answered_last > 20 {
        true => Ok(told),
        false => Err(format!(
            "no more than {answered_last} answers in a good network"
        )),
    }
}

fn seeds(most: u64) -> impl Iterator<Item = u64> {
    let asked = std::env::var("QUOIT_SEEDS").ok();
    0..asked.and_then(|seeds| seeds.parse().ok()).unwrap_or(most)
}

/// Else a coordinator could wait for ever, take one replica's answer for another's, or count on a
/// write that is done, or not, when it is told otherwise.
#[test]
fn every_request_ends_by_its_deadline_in_one_way_and_is_done_once_at_most() {
    let (mut answered, mut lost, mut undone) = (0, 0, 0);
    for seed in seeds(12) {
        let told = run(seed, &[]).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        answered += told.answered;
        lost += told.lost;
        undone += told.undone;
        if seed % 8 == 0 {
            let again = run(seed, &[]).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            assert_eq!(told.trace, again.trace, "seed {seed}: not deterministic");
        }
    }
    println!("{answered} answered, {lost} lost, {undone} certainly not done");
    assert!(answered > 1000 && lost > 100 && undone > 100);
}

fn is_found(bug: Bug) -> Option<(u64, String)> {
    seeds(100).find_map(|seed| run(seed, &[bug]).err().map(|wrong| (seed, wrong)))
}

#[test]
fn answers_that_are_paired_by_their_order_are_found() {
    let found = is_found(Bug::AnswersByOrder);
    println!("{found:?}");
    assert!(found.is_some_and(|(_, wrong)| wrong.contains("another one's")));
}

#[test]
fn a_deadline_that_is_ignored_is_found() {
    let found = is_found(Bug::DeadlineIgnored);
    println!("{found:?}");
    assert!(
        found.is_some_and(|(_, wrong)| wrong.contains("deadline") || wrong.contains("not done"))
    );
}

/// Else gossip would not learn who can be reached, nor that there is a newer map.
#[test]
fn links_tell_when_they_come_and_go_and_what_epoch_they_hear() {
    let world = World::new(Options::calm(1));
    let ledger = Rc::new(Ledger::default());
    let start = |node: u16, epoch: u64| {
        let (ledger, handle) = (Rc::clone(&ledger), world.handle());
        world.start_node(sim::NodeId(node), 1, move |_: Core<()>| {
            let (ledger, world) = (Rc::clone(&ledger), handle.clone());
            async move {
                let peers = peers_of(node, 0, KEY, |_| {});
                peers.set_epoch(epoch);
                let served = Rc::new(Responder {
                    is_prompt: true,
                    ledger,
                    world,
                });
                listen(peers, served, node, 0).await;
            }
        });
    };
    start(2, 5);
    let heard = Rc::new(RefCell::new(Vec::new()));
    let note = Rc::clone(&heard);
    let (asking, handle) = (Rc::clone(&ledger), world.handle());
    world.start_node(sim::NodeId(1), 1, move |_: Core<()>| {
        let (note, ledger, world) = (Rc::clone(&note), Rc::clone(&asking), handle.clone());
        async move {
            let noted = Rc::clone(&note);
            let peers = peers_of(1, 0, KEY, move |event| note.borrow_mut().push(event));
            loop {
                let _ = ask(&peers, &ledger, &world, (holder(2, 0), SECOND, 0)).await;
                let is_newer = |event: &&Event| matches!(event, Event::Newer(..));
                if noted.borrow().iter().filter(is_newer).count() == 3 {
                    peers.set_epoch(5);
                }
                rt::sleep(MS * 100).await;
            }
        }
    });
    world.run_for(SECOND * 3);
    let newer = Event::Newer(NodeId(2), 5);
    assert_eq!(
        *heard.borrow(),
        [Event::Up(NodeId(2)), newer, newer, newer],
        "told until it is known, for the first that says so may not be able to give the map"
    );
    world.kill_node(sim::NodeId(2));
    world.run_for(SECOND);
    assert!(heard.borrow().contains(&Event::Down(NodeId(2))));
    heard.borrow_mut().clear();
    start(2, 5);
    world.run_for(SECOND * 10);
    assert_eq!(
        heard.borrow().last(),
        Some(&Event::Up(NodeId(2))),
        "{heard:?}"
    );
    assert_eq!(*ledger.wrong.borrow(), None);
}
