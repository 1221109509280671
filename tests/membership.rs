//! Nodes form a cluster, join it, keep its map and watch each other, in a simulated world with
//! faults.
//!
//! Each test is a function of a seed: `SEED=n` runs that one, `QUOIT_SEEDS=n` that many.

#[path = "membership/etcd.rs"]
mod etcd;
#[path = "membership/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use quoit::cluster::member::Standing;
use quoit::rt::Bug;
use world::{Scene, Verdict};

/// Virtual time within which nodes that nothing disturbs form a cluster, or change its map.
const FORMING_MAX: Duration = Duration::from_secs(60);
/// Seeds within which a planted bug must be found.
const FINDING_SEEDS: u64 = 400;

fn for_seeds(test: &str, default: u64, simulate: impl Fn(u64) -> Verdict<u64>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUOIT_SEEDS").unwrap_or(default),
    };
    let _ = env_logger::builder().is_test(false).try_init();
    let (began, count) = (Instant::now(), seeds.end - seeds.start);
    for seed in seeds {
        let repeat = format!("repeat with: SEED={seed} cargo test --test membership {test}");
        let trace = simulate(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}\n{repeat}"));
        if seed % 16 == 0 || count == 1 {
            assert_eq!(
                simulate(seed),
                Ok(trace),
                "seed {seed} is not the same twice"
            );
        }
    }
    println!(
        "{test}: {count} seeds in {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

/// They form and join in any order, while machines go down and come back and the network is cut;
/// nobody writes.
fn forming(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::new(seed, planted);
    let is_calm = scene.chance.u8(..4) == 0;
    for _ in 0..scene.chance.usize(10..60) {
        let machine = scene.chance.u16(1..=scene.count());
        match scene.chance.u8(..10) {
            0..4 => scene.start(machine),
            4 if !is_calm => scene.end(machine),
            5 if !is_calm => scene.cut(),
            6 => scene.world.heal_all(),
            _ => scene.want_port(machine),
        }
        scene.run_for_some([20, 300, 5_000])?;
    }
    let map = scene.agree(&BTreeSet::new())?;
    scene.all_are_in(&map)?;
    Ok(scene.world.trace_hash())
}

/// The same, but that at some moment some nodes want to write: whoever is not in by then stays out.
fn opening(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::new(seed, planted);
    let moment = scene.chance.usize(0..30);
    for step in 0..40 {
        let machine = scene.chance.u16(1..=scene.count());
        if step >= moment && scene.chance.u8(..4) == 0 {
            scene.want_data(machine);
        }
        match scene.chance.u8(..10) {
            0..5 => scene.start(machine),
            5 => scene.end(machine),
            6 => scene.cut(),
            7 => scene.world.heal_all(),
            _ => {}
        }
        scene.run_for_some([20, 300, 3_000])?;
    }
    scene.agree(&BTreeSet::new())?;
    Ok(scene.world.trace_hash())
}

/// All are in; then a minority loses its disks, and the rest must go on with what was decided.
fn amnesia(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::new(seed, planted);
    let map = scene.agree(&BTreeSet::new())?;
    let keepers = map.keepers().nodes.len();
    let mut lost = BTreeSet::new();
    for _ in 0..keepers / 2 {
        // Not the first, which would found another cluster: that one has a test of its own.
        let machine = scene.chance.u16(2..=scene.count());
        if lost.insert(machine) {
            scene.want_port(1);
            let chance = scene.chance.u64(..);
            scene.run(200, chance)?;
            scene.replace_disk(machine);
            scene.start(machine);
        }
        for _ in 0..5 {
            let (one, chance) = (scene.chance.u16(1..=scene.count()), scene.chance.u64(..));
            if !lost.contains(&one) {
                scene.want_port(one);
            }
            scene.run(2_000, chance)?;
        }
    }
    for machine in &lost {
        if let Some(number) = scene.number(*machine) {
            return Err(format!(
                "machine {machine} is node {} without its disk",
                number.0
            ));
        }
    }
    scene.agree(&lost)?;
    Ok(scene.world.trace_hash())
}

/// Three keep the map, and two more are to keep it, too. The first of these asks for the next
/// change as soon as it knows that it is a keeper, and is gone for good: perhaps before another
/// node has heard that it was one.
fn newest_keeper_gone(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::of(5, seed, planted);
    (1..=3).for_each(|machine| scene.start(machine));
    let is_kept_by_three = || (1..=3).all(|machine| scene.knows_keeper(1, machine));
    if !scene.world.run_until(is_kept_by_three, FORMING_MAX) {
        return Err("three do not come to keep the map".to_owned());
    }
    scene.start(4);
    scene.start(5);
    let is_keeper = |machine: &u16| scene.knows_keeper(*machine, *machine);
    let is_there = || [4, 5].iter().any(is_keeper);
    if !scene.world.run_until(is_there, FORMING_MAX) {
        return Err("no other comes to keep the map".to_owned());
    }
    let newest = if is_keeper(&4) { 4 } else { 5 };
    scene.want_port(newest);
    scene.run_for_some([1, 5, 50])?;
    scene.replace_disk(newest);
    let lost = BTreeSet::from([newest]);
    scene.agree(&lost)?;
    scene.want_port(1);
    let is_granted = || scene.has_what_it_wants(1);
    match scene.world.run_until(is_granted, FORMING_MAX) {
        true => Ok(scene.world.trace_hash()),
        false => Err("nobody can change the map any more".to_owned()),
    }
}

/// They found, join and come back by etcd, in any order, while machines and members of etcd go down
/// and come back, the network is cut, and etcd loses requests and answers. `data`: some of them
/// want to write, and whoever comes later stays out.
fn in_etcd(seed: u64, planted: &[Bug], data: bool) -> Verdict<u64> {
    let mut scene = Scene::in_etcd(seed, planted);
    let is_calm = scene.chance.u8(..4) == 0;
    if !is_calm {
        let faults = [0, 20, 100, 180][scene.chance.usize(..4)];
        scene.disturb_etcd(faults);
    }
    let moment = scene.chance.usize(0..30);
    for step in 0..scene.chance.usize(10..50) {
        let machine = scene.chance.u16(1..=scene.count());
        if data && step >= moment && scene.chance.u8(..4) == 0 {
            scene.want_data(machine);
        }
        match scene.chance.u8(..13) {
            0..5 => scene.start(machine),
            5 if !is_calm => scene.end(machine),
            6 if !is_calm => scene.cut(),
            7 if !is_calm => scene.cut_from_etcd(machine),
            8 if !is_calm => {
                let all = scene.chance.u8(..4) == 0;
                scene.end_etcd(all);
            }
            9 => scene.start_etcd(),
            10 => scene.world.heal_all(),
            _ => scene.want_port(machine),
        }
        scene.run_for_some([20, 300, 5_000])?;
    }
    let map = scene.agree(&BTreeSet::new())?;
    if !data {
        scene.all_are_in(&map)?;
    }
    Ok(scene.world.trace_hash())
}

/// All are in; then some lose their disks, whoever they are, and must not come back as somebody
/// else.
fn amnesia_in_etcd(seed: u64) -> Verdict<u64> {
    let mut scene = Scene::in_etcd(seed, &[]);
    scene.agree(&BTreeSet::new())?;
    let mut lost = BTreeSet::new();
    for _ in 1..scene.count() {
        let (machine, chance) = (scene.chance.u16(1..=scene.count()), scene.chance.u64(..));
        if lost.len() + 1 < usize::from(scene.count()) && lost.insert(machine) {
            scene.replace_disk(machine);
            scene.start(machine);
        }
        scene.run(2_000, chance)?;
    }
    let agreed = scene.agree(&lost);
    let back = lost
        .iter()
        .find(|machine| scene.number(**machine).is_some());
    match back {
        Some(machine) => Err(format!("machine {machine} is a node without its disk")),
        None => agreed.map(|_| scene.world.trace_hash()),
    }
}

/// All are in; then they come back somewhere else, one at a time or all at once, while others are
/// down, cut off, or have moved themselves.
fn moving(mut scene: Scene) -> Verdict<u64> {
    scene.agree(&BTreeSet::new())?;
    scene.want_data(1);
    let is_in_etcd = scene.is_in_etcd();
    for _ in 0..scene.chance.usize(1..20) {
        let machine = scene.chance.u16(1..=scene.count());
        match scene.chance.u8(..10) {
            0..4 => {
                scene.move_away(machine);
                scene.start(machine);
            }
            4 => scene.move_away(machine),
            5 => (1..=scene.count()).for_each(|machine| scene.move_away(machine)),
            6 => scene.cut(),
            7 => scene.world.heal_all(),
            8 => scene.want_port(machine),
            _ => (1..=scene.count()).for_each(|machine| scene.start(machine)),
        }
        scene.run_for_some([20, 3_000, 20_000])?;
    }
    if !is_in_etcd {
        // `join` names where others are now: they may have moved since a machine was started.
        for machine in 2..=scene.count() {
            scene.end(machine);
        }
    }
    scene.agree(&BTreeSet::new())?;
    scene.find_all(Duration::from_secs(60))?;
    Ok(scene.world.trace_hash())
}

/// The first machine, which names no other in `join`, comes back elsewhere, while nothing else is
/// wrong.
fn found_soon(mut scene: Scene) -> Verdict<u64> {
    scene.calm();
    scene.agree(&BTreeSet::new())?;
    scene.move_away(1);
    scene.world.run_for(Duration::from_secs(1));
    scene.start(1);
    scene.find_all(Duration::from_secs(5))?;
    Ok(scene.world.trace_hash())
}

fn first_moves(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    found_soon(Scene::new(seed, planted))
}

fn moving_by_join(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    moving(Scene::new(seed, planted))
}

/// Else nodes would have different maps for ever, or two maps would count at once, or one would
/// need a hand.
#[test]
fn nodes_form_one_cluster_whatever_happens_on_the_way() {
    for_seeds("nodes_form_one_cluster", 60, |seed| forming(seed, &[]));
}

/// Else a replica would lack what was written before it came.
#[test]
fn nobody_joins_a_cluster_that_holds_data() {
    for_seeds("nobody_joins", 60, |seed| opening(seed, &[]));
}

/// Else no node could join, move or write for the first time any more, though most keepers of the
/// map are up.
#[test]
fn a_keeper_that_is_gone_at_once_takes_nothing_with_it() {
    let test = "a_keeper_that_is_gone_at_once_takes_nothing_with_it";
    for_seeds(test, 100, |seed| newest_keeper_gone(seed, &[]));
}

/// Else a keeper that has forgotten its promises could make two maps of one epoch.
#[test]
fn who_has_lost_its_disk_is_nobody_in_the_old_cluster() {
    for_seeds("who_has_lost_its_disk", 40, |seed| amnesia(seed, &[]));
}

/// Else a node that has got another address would need a hand, or all of them, or an old map would
/// come back.
#[test]
fn nodes_that_have_moved_find_each_other() {
    for_seeds("nodes_that_have_moved", 60, |seed| {
        moving_by_join(seed, &[])
    });
}

/// The same where etcd has the map: there nodes find each other though all have moved, and nobody
/// names any.
#[test]
fn nodes_that_have_moved_find_each_other_by_etcd() {
    for_seeds(
        "nodes_that_have_moved_find_each_other_by_etcd",
        30,
        |seed| moving(Scene::in_etcd(seed, &[])),
    );
}

/// Else nodes would go on for a long time without the one that has moved, or for ever.
#[test]
fn who_has_moved_is_found_within_seconds() {
    for_seeds("who_has_moved_is_found", 10, |seed| first_moves(seed, &[]));
    for_seeds("who_has_moved_is_found", 10, |seed| {
        found_soon(Scene::in_etcd(seed, &[]))
    });
}

/// Else a node would stay away because of what was true of it before its last start, and came late.
#[test]
fn who_is_said_to_be_elsewhere_has_the_map_say_where_it_is() {
    for_seeds("who_is_said_to_be_elsewhere", 10, |seed| {
        let mut scene = Scene::new(seed, &[]);
        scene.calm();
        let map = scene.agree(&BTreeSet::new())?;
        let about = scene.chance.u16(2..=scene.count());
        scene.mislead(1, about);
        scene.world.run_for(Duration::from_secs(3));
        scene.find_all(Duration::from_secs(30))?;
        match scene.agree(&BTreeSet::new())?.epoch() >= map.epoch() + 2 {
            true => Ok(scene.world.trace_hash()),
            false => Err("nobody was misled".to_owned()),
        }
    });
}

/// Else a node with much to send would take others for gone that answer, or for back that do not.
#[test]
fn what_a_node_has_no_room_to_ask_says_nothing_of_the_others() {
    for_seeds("what_a_node_has_no_room_to_ask", 10, |seed| {
        let mut scene = Scene::new(seed, &[]);
        scene.agree(&BTreeSet::new())?;
        let gone = scene.chance.u16(2..=scene.count());
        scene.fill_up(1);
        let is_amiss = || !scene.sees_all(1);
        if scene.world.run_until(is_amiss, Duration::from_secs(20)) {
            return Err("it takes one for gone to which it has sent nothing".to_owned());
        }
        let number = scene.number(gone).ok_or("it is in")?;
        scene.end(gone);
        let is_alive = || scene.standing(1, number) == Some(Standing::Alive);
        let minute = Duration::from_secs(60);
        if !scene.world.run_until(|| !is_alive(), minute) {
            return Err("it does not see that one has gone".to_owned());
        }
        match scene.world.run_until(is_alive, minute) {
            true => Err("it takes one for back to which it has sent nothing".to_owned()),
            false => Ok(scene.world.trace_hash()),
        }
    });
}

/// Else two that come at once would found two clusters, or what etcd has done without saying so
/// would count as another's.
#[test]
fn nodes_find_one_cluster_in_etcd_whatever_happens_on_the_way() {
    for_seeds("nodes_find_one_cluster", 60, |seed| {
        in_etcd(seed, &[], false)
    });
}

/// Else a replica would lack what was written before it came.
#[test]
fn nobody_comes_by_etcd_into_a_cluster_that_holds_data() {
    for_seeds("nobody_comes_by_etcd", 60, |seed| in_etcd(seed, &[], true));
}

/// Else an empty node would stand in the place of one that had data, or found a second cluster
/// beside the first.
#[test]
fn who_has_lost_its_disk_is_not_let_in_by_etcd() {
    for_seeds("who_has_lost_its_disk_is_not_let_in", 20, amnesia_in_etcd);
}

/// Else nodes would stop, or not start, because of something that only changes of the map need; or
/// write before it is known that there is data.
#[test]
fn while_etcd_is_away_nodes_come_back_and_nothing_is_changed() {
    let minutes = Duration::from_secs(600);
    for seed in 0..10 {
        let mut scene = Scene::in_etcd(seed, &[]);
        let map = scene.agree(&BTreeSet::new()).expect("a cluster");
        scene.end_etcd(true);
        let machine = scene.chance.u16(1..=scene.count());
        scene.end(machine);
        scene.start(machine);
        let is_back = scene.world.run_until(|| scene.sees_all(machine), minutes);
        assert!(is_back, "seed {seed}: it does not come back");
        scene.want_data(machine);
        scene.world.run_for(Duration::from_secs(30));
        assert!(
            !scene.book.borrow().is_open,
            "seed {seed}: nobody has noted it"
        );
        scene.start_etcd();
        scene.world.run_for(Duration::from_secs(30));
        scene.want_data(machine);
        let is_open = scene
            .world
            .run_until(|| scene.book.borrow().is_open, minutes);
        assert!(is_open, "seed {seed}: the first write is never possible");
        let after = scene.agree(&BTreeSet::new()).expect("a cluster");
        assert!(
            after.is_open() && after.nodes() == map.nodes(),
            "seed {seed}"
        );
    }
}

/// Else a node that nobody asks anything would wear its disk out, or keep a core awake.
#[test]
fn a_node_that_is_alone_and_idle_writes_nothing_and_does_nothing() {
    let mut scene = Scene::new(1, &[]);
    scene.start(1);
    scene.world.run_for(Duration::from_secs(60));
    let looked = |scene: &Scene| (scene.written_bytes(1), scene.world.polls());
    let before = looked(&scene);
    assert!(before.0 > 0, "it has founded a cluster");
    scene.world.run_for(Duration::from_secs(3_600));
    assert_eq!(looked(&scene), before);
}

/// A simulation that finds nothing proves nothing: with these bugs it finds something.
#[test]
fn planted_bugs_of_membership_are_found() {
    type Simulate = fn(u64, &[Bug]) -> Verdict<u64>;
    let _ = env_logger::builder().is_test(false).try_init();
    // At first in the seed by which it was found before: some others take minutes until it is clear
    // that nodes never agree.
    let cases: [(Bug, u64, Simulate); 10] = [
        (Bug::SetBeforeMap, 0, newest_keeper_gone),
        (Bug::NewerMapKept, 2, first_moves),
        (Bug::NobodyKnocks, 0, moving_by_join),
        (Bug::PromisedUnwritten, 116, forming),
        (Bug::NoDirectorySync, 3, forming),
        (Bug::HalfOfKeepers, 4, forming),
        (Bug::JoinedLate, 0, opening),
        (Bug::CreatedUnchecked, 14, |seed, planted| {
            in_etcd(seed, planted, false)
        }),
        (Bug::UnknownIsRefused, 0, |seed, planted| {
            in_etcd(seed, planted, false)
        }),
        (Bug::OlderMapTaken, 5, |seed, planted| {
            in_etcd(seed, planted, true)
        }),
    ];
    for (bug, before, simulate) in cases {
        let is_found = |seed: &u64| {
            let run = AssertUnwindSafe(|| simulate(*seed, &[bug]));
            !matches!(catch_unwind(run), Ok(Ok(_)))
        };
        let mut seeds = std::iter::once(before).chain(0..FINDING_SEEDS);
        let found = seeds.find(is_found);
        println!("{bug:?}: found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
