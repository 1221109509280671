//! Nodes that are back are used at once: the virtual time from when one is ready, goes on or is
//! heard again until every node serves every key at ALL, at every core that a client may come to,
//! with the times of gossip as they are by default.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use quoit::rt;
use quoit::rt::Bug;
use quoit::rt::sim::Handle;

use crate::cluster::{Client, Life, Reply, Verdict};
use crate::scene::{FIVE, Scene, Shape, address, machine, words};
use crate::seeds::{self, Test};
use crate::storm::Weather;

/// Keys of which every node holds some, and every core coordinates some.
const KEYS: u64 = 30;
/// Clients of each node.
const CLIENTS: u16 = 3;
/// A node that says that it is ready is used after this, at the latest: some round trips.
const STARTED_MAX: Duration = Duration::from_millis(200);
/// One that says nothing, as it does not know that it was away: the same after the next round of
/// gossip.
const HEARD_MAX: Duration = Duration::from_millis(1_500);
/// Longer than anybody would wait for.
const NEVER: Duration = Duration::from_secs(60);

const SHAPE: Shape = Shape {
    weather: Weather::Fair,
    ..FIVE
};

/// How a node is away.
#[derive(Clone, Copy, Debug)]
enum Away {
    /// It is killed, or its machine is, and started again after so long.
    Down(Duration),
    /// It is stopped for so long.
    Stopped(Duration),
    /// Nobody reaches it for so long.
    CutOff(Duration),
}

const AWAY: [Away; 6] = [
    Away::Down(Duration::from_secs(3)),
    Away::Down(Duration::from_millis(200)),
    Away::Down(Duration::from_secs(45)),
    Away::Stopped(Duration::from_secs(4)),
    Away::Stopped(Duration::from_secs(12)),
    Away::CutOff(Duration::from_secs(8)),
];

/// Tries again and again to write at QUORUM, so that links fail, and the pauses between attempts
/// grow.
async fn keep_asking(life: Rc<Life>, number: u16) {
    let mut client = Client::of(&life, address(number));
    for turn in 0_u64.. {
        if !client.connect().await {
            return;
        }
        let key = turn % KEYS;
        let put = words(&format!("KV.PUT key:{key} {turn} CONSISTENCY quorum"));
        let _ = client.call(&[put]).await;
        rt::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns when all keys, at once, were read at ALL by one client without a refusal.
async fn read_all(mut client: Client) -> Verdict {
    let get = |key| words(&format!("KV.GET key:{key} CONSISTENCY all"));
    let get: Vec<_> = (0..KEYS).map(get).collect();
    let is_error = |reply: &Reply| matches!(reply, Reply::Error(_));
    while client.must(&get).await?.iter().any(is_error) {
        rt::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The virtual time until all nodes serve all keys at ALL.
fn time_until_used(scene: &mut Scene, handle: &Handle) -> Duration {
    let began = handle.elapsed();
    let served = Rc::new(Cell::new(0));
    for number in scene.all() {
        for _ in 0..CLIENTS {
            let served = Rc::clone(&served);
            scene.spawn(move |life| async move {
                let read = read_all(Client::of(&life, address(number))).await;
                life.note(read);
                served.set(served.get() + 1);
            });
        }
    }
    let all = SHAPE.nodes * CLIENTS;
    scene.world.run_until(|| served.get() == all, NEVER);
    handle.elapsed() - began
}

/// How long it takes until a node that was away is used; `Err`: longer than it may.
fn come_back(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::empty(SHAPE, seed, planted);
    scene.keep_default_times();
    scene.form()?;
    let handle = scene.world.handle();
    time_until_used(&mut scene, &handle);
    for number in scene.all() {
        scene.spawn(move |life| keep_asking(life, number));
    }
    scene.world.run_for(Duration::from_secs(2));
    let away = AWAY[(seed % AWAY.len() as u64) as usize];
    let number = scene.chance.u16(..SHAPE.nodes);
    let most = match away {
        Away::Down(time) => {
            scene.crash(number);
            scene.world.run_for(time);
            scene.start(number)?;
            STARTED_MAX
        }
        Away::Stopped(time) => {
            scene.world.pause_node(machine(number), time);
            scene.world.run_for(time);
            HEARD_MAX
        }
        Away::CutOff(time) => {
            let others = scene.all().into_iter().filter(|other| *other != number);
            others.for_each(|other| scene.cut(number, other));
            scene.world.run_for(time);
            scene.world.heal_all();
            HEARD_MAX
        }
    };
    let took = time_until_used(&mut scene, &handle);
    let usual = time_until_used(&mut scene, &handle);
    println!(
        "seed {seed}, {away:?}: used everywhere after {took:?}; reading takes {usual:?} of it"
    );
    scene.life.verdict()?;
    match took <= most {
        true => Ok(took.as_micros() as u64),
        false => Err(format!("{away:?}: it is used after {took:?}, not {most:?}")),
    }
}

/// Else writes and reads at QUORUM and ALL would be refused for seconds after each restart, though
/// all nodes are there.
#[test]
fn a_node_that_is_back_is_used_at_once() {
    let test = Test {
        program: "nodes",
        name: "a_node_that_is_back_is_used_at_once",
        seeds: 18,
        twice_every: 9,
    };
    test.run(|seed| come_back(seed, &[]));
}

/// Nodes are started anew one after the other, each two seconds after the one before was ready: all
/// is served at ALL between.
#[test]
fn a_restart_of_one_node_after_the_other_is_over_in_no_time() {
    for seed in 0..3 {
        let mut scene = Scene::empty(SHAPE, seed, &[]);
        scene.keep_default_times();
        scene.form().expect("a cluster");
        let handle = scene.world.handle();
        time_until_used(&mut scene, &handle);
        for number in scene.all() {
            scene.spawn(move |life| keep_asking(life, number));
        }
        for number in scene.all() {
            scene.crash(number);
            scene.world.run_for(Duration::from_millis(200));
            scene.start(number).expect("it comes back");
            let took = time_until_used(&mut scene, &handle);
            assert!(took <= STARTED_MAX, "seed {seed}, node {number}: {took:?}");
            scene.world.run_for(Duration::from_secs(2));
        }
    }
}

#[test]
fn a_return_that_nobody_notices_is_found() {
    let bug = Bug::ReturnUnnoticed;
    seeds::finds(bug, 0..20, |seed| come_back(seed, &[bug]));
}
