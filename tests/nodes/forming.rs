//! Clients that write while a cluster forms: by maps that are not the last one.
//!
//! Some nodes know each other. One of them is cut off while others join, so that it knows an old
//! map when it hears of the rest again; clients begin to write at about that moment. Who comes too
//! late, when there is data, stays out.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use quoit::rt::Bug;
use quoit::types::Level;

use crate::cluster::Verdict;
use crate::holders;
use crate::scene::{FIVE, Scene, Shape, machine};
use crate::storm::Weather;
use crate::workload::{self, Ledger};

/// Virtual time within which a node that was started has been let in, or told that it comes too
/// late.
const LET_IN_MAX: Duration = Duration::from_secs(60);

/// A fair network, and disks that are sound: all depends on when who hears what.
const FORMING: Shape = Shape {
    weather: Weather::Fair,
    keys: 9,
    clients: (4, 8),
    thinks_us: 2_000,
    ..FIVE
};

/// The scene, when all is over and the clients have gone home; and what they were told.
pub fn run(seed: u64, planted: &[Bug]) -> Verdict<(Scene, Rc<RefCell<Ledger>>)> {
    let mut scene = Scene::empty(FORMING, seed, planted);
    scene.be_patient();
    let known = scene.chance.u16(1..5);
    for number in 0..known {
        scene.start(number)?;
    }
    scene.wait_for_cluster(&(0..known).collect::<Vec<u16>>())?;
    let deaf = scene.chance.u16(0..known);
    // The first one lets the others in: it may be deaf to its own like, but not to those.
    let cut_off = (0..FORMING.nodes).filter(|other| *other != deaf);
    let cut_off: Vec<u16> = match deaf {
        0 => cut_off.filter(|other| *other < known).collect(),
        _ => cut_off.collect(),
    };
    if scene.chance.u8(..4) > 0 {
        cut_off.iter().for_each(|other| scene.cut(deaf, *other));
    }
    (known..FORMING.nodes).for_each(|number| scene.begin(number));
    let ledger = Ledger::of(FORMING, Level::Quorum);
    let before = scene.some_time_below(&[2_000, 300_000, 3_000_000]);
    scene.world.run_for(before);
    let between = scene.some_time_below(&[200, 20_000]);
    if scene.chance.bool() {
        scene.spawn_clients(&ledger);
        scene.world.run_for(between);
        scene.world.heal_all();
    } else {
        scene.world.heal_all();
        scene.world.run_for(between);
        scene.spawn_clients(&ledger);
    }
    scene.world.run_for(Duration::from_millis(1_500));
    scene.settle(&ledger)?;
    for started in scene.seats.iter().filter_map(|seat| seat.started.as_ref()) {
        started.settle(&scene.world, LET_IN_MAX);
    }
    let members = scene.members();
    scene.wait_for_cluster(&members)?;
    scene.converge_among(&members, &ledger)?;
    Ok((scene, ledger))
}

/// A node that was cut off while others joined is asked to write: by its old map it is refused, and
/// then it goes by the new one. What it has acknowledged is where the new map says.
pub fn write_by_an_old_map(seed: u64) -> Verdict {
    let mut scene = Scene::empty(FORMING, seed, &[]);
    scene.be_patient();
    for number in 0..3 {
        scene.start(number)?;
    }
    scene.wait_for_cluster(&[0, 1, 2])?;
    // The map is kept by one or by three of them when that is over: others can be let in without
    // the third.
    scene.world.run_for(Duration::from_secs(10));
    [0, 1, 3, 4].iter().for_each(|other| scene.cut(2, *other));
    for number in [3, 4] {
        scene.begin(number);
        scene.must_be_up(number)?;
    }
    scene.world.heal_all();
    let ledger = Ledger::of(FORMING, Level::Quorum);
    scene.talk_to(2, |client| {
        workload::write_all(client, "quorum", FORMING.keys)
    })?;
    scene.wait_for_cluster(&scene.all())?;
    let keys = ledger.borrow().keys();
    for (key, held) in holders::records(&scene, &keys)? {
        let have = held
            .iter()
            .filter(|(_, (_, value))| value.as_ref() == Some(&key));
        if 2 * have.count() <= held.len() {
            let key = String::from_utf8_lossy(&key);
            return Err(format!(
                "{key} was acknowledged, and its holders have {held:?}"
            ));
        }
    }
    Ok(())
}

/// Virtual time within which nodes that have come back elsewhere are found.
const FOUND_MAX: Duration = Duration::from_secs(30);

/// Nodes come back at other peer ports: one at a time, the founder, whom nobody has to ask, among
/// them; then all at once. Each time what needs all of them is soon possible at each of them.
pub fn come_back_elsewhere(mut scene: Scene) -> Verdict {
    let all = scene.all();
    let moves = all.iter().map(|number| vec![*number]);
    let moves: Vec<Vec<u16>> = moves.chain([all.clone()]).collect();
    for moved in moves {
        scene.talk(|client| workload::write_all(client, "all", 2))?;
        for number in &moved {
            scene.crash(*number);
            scene.move_away(*number);
        }
        moved.iter().for_each(|number| scene.begin(*number));
        moved
            .iter()
            .try_for_each(|number| scene.must_be_up(*number))?;
        let began = scene.world.elapsed();
        scene.talk(|client| workload::write_all(client, "all", 2))?;
        let took = scene.world.elapsed() - began;
        if took > FOUND_MAX {
            return Err(format!("nodes {moved:?} are found after {took:?}"));
        }
    }
    Ok(())
}

impl Scene {
    /// A time below one of `most`, in microseconds.
    fn some_time_below(&mut self, most: &[u64]) -> Duration {
        let most = most[self.chance.usize(..most.len())];
        Duration::from_micros(self.chance.u64(..most))
    }

    /// The nodes that were let in.
    fn members(&mut self) -> Vec<u16> {
        let is_in = |number: &u16| {
            let started = self.seats[usize::from(*number)].started.as_ref();
            started.is_some_and(|started| started.is_ready())
                && !self.world.node_ended(machine(*number))
        };
        self.all().into_iter().filter(is_in).collect()
    }
}
