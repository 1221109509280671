//! What is kept for replicas that are away: nothing that was acknowledged is lost, and replicas
//! become equal though nobody reads, whichever nodes go down and come back, whenever.

#[path = "hints/talks.rs"]
pub mod talks;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quoit::rt;
use quoit::rt::Bug;
use quoit::rt::sim::Handle;

use crate::cluster::{Client, Life, Reply, Verdict};
use crate::scene::{Scene, address, machine, words};
use crate::seeds::{self, Test};
use talks::{GRACE, field, get, put};

/// Seeds of the short form.
const SEEDS: u64 = 10;
/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 100;
/// Keys that are worked on under a storm: few enough that reading all of them repairs nothing by
/// the way.
const KEYS: u64 = 12;

fn for_seeds(name: &'static str, simulate: impl Fn(u64) -> Verdict<u64>) {
    let test = Test {
        program: "nodes",
        name,
        seeds: SEEDS,
        twice_every: SEEDS,
    };
    let (done, _) = test.run(simulate);
    let (count, sum) = (done.len() as u64, done.iter().sum::<u64>());
    println!("{name}, {count} seeds: {sum}");
    assert!(sum > count, "next to nothing was done");
}

fn finds(bug: Bug, simulate: impl Fn(u64, &[Bug]) -> Verdict<u64>) {
    seeds::finds(bug, 0..FINDING_SEEDS, |seed| simulate(seed, &[bug]));
}

/// All of `replies` say that something was stored; by how many replicas, at least and at most.
fn all_stored(replies: &[Reply]) -> Verdict<(u64, u64)> {
    let mut counts = Vec::new();
    for reply in replies {
        let count = field(reply, "replicas_written").and_then(|text| text.parse().ok());
        counts.push(count.ok_or_else(|| format!("a write was told: {reply:?}"))?);
    }
    let (least, most) = (counts.iter().min(), counts.iter().max());
    Ok((*least.ok_or("nothing was written")?, *most.unwrap_or(&0)))
}

/// Every node tells `value` of all of `keys`.
fn all_tell(scene: &Scene, keys: std::ops::Range<u64>, value: &str) -> Verdict {
    for node in scene.all() {
        let told = scene.talk_to(node, |client| get(client, keys.clone()))?;
        for (key, told) in keys.clone().zip(told) {
            if told.as_ref().is_none_or(|(_, told)| told != value) {
                return Err(format!(
                    "node {node} tells {told:?} of key {key}, not {value}"
                ));
            }
        }
    }
    Ok(())
}

/// One node is away while others write, and goes down again, as they do, while it is told what it
/// has missed.
fn interrupted(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    const MANY: std::ops::Range<u64> = 0..120;
    let mut scene = Scene::holding_data(seed, 3, planted)?;
    let away = scene.chance.u16(..3);
    scene.crash(away);
    scene.wait_for_those_up()?;
    let size = [1, 300, 6_000][scene.chance.usize(..3)];
    let value = "v".repeat(size);
    for (index, node) in scene
        .all()
        .into_iter()
        .filter(|node| *node != away)
        .enumerate()
    {
        let half = MANY.end / 2 * index as u64..MANY.end / 2 * (index as u64 + 1);
        let written = value.clone();
        let replies = scene.talk_to(node, |client| put(client, half, written, "one"))?;
        all_stored(&replies)?;
    }
    scene.world.run_for(GRACE);
    let kept: u64 = scene
        .all()
        .into_iter()
        .filter(|node| *node != away)
        .map(|node| scene.info(node, "hints"))
        .sum::<Verdict<u64>>()?;
    if kept < MANY.end {
        return Err(format!("{kept} hints are kept for {} keys", MANY.end));
    }
    for _ in 0..5 {
        scene.start_missing()?;
        let pause = Duration::from_micros(scene.chance.u64(..1_500_000));
        scene.world.run_for(pause);
        let next = scene.chance.u16(..3);
        match scene.chance.u8(..4) {
            0 => scene.cut(next, (next + 1) % 3),
            1 => scene
                .world
                .pause_node(machine(next), Duration::from_millis(700)),
            2 => scene.crash(next),
            _ => scene.crash(away),
        }
        if scene.chance.bool() {
            scene.world.heal_all();
        }
    }
    scene.hand_all_on()?;
    // One in 64 of these reads is followed by a repair: far too few to make up for what was not
    // handed on.
    all_tell(&scene, MANY, &value)?;
    Ok(MANY.end)
}

/// All replicas of some keys are away, and the only node that is there loses its power once it has
/// acknowledged the writes.
fn all_away(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    const MANY: std::ops::Range<u64> = 0..40;
    let mut scene = Scene::holding_data(seed, 4, planted)?;
    let left = scene.chance.u16(..4);
    for node in scene.all().into_iter().filter(|node| *node != left) {
        scene.crash(node);
    }
    // Whoever is silent is asked until that is noticed.
    scene.world.run_for(GRACE);
    scene.wait_for_those_up()?;
    let replies = scene.talk_to(left, |client| put(client, MANY, "kept".to_owned(), "one"))?;
    let (least, most) = all_stored(&replies)?;
    if (least, most) != (0, 1) {
        return Err(format!("stored by {least} to {most} replicas"));
    }
    // A hint is not read.
    let hinted: Vec<u64> = MANY
        .zip(&replies)
        .filter(|(_, reply)| field(reply, "replicas_written").is_some_and(|count| count == "0"))
        .map(|(key, _)| key)
        .collect();
    let first = hinted[0];
    let told = scene.talk_to(left, move |mut client| async move {
        let get = words(&format!("KV.GET key:{first} CONSISTENCY one"));
        Ok(client.must(&[get]).await?.remove(0))
    })?;
    if !matches!(&told, Reply::Error(text) if text.starts_with("NOREPLICAS")) {
        return Err(format!("no replica is there, and a read is told {told:?}"));
    }
    scene.world.run_for(GRACE);
    // The last acknowledgement is followed by the end at once: one replica's hint must be there, if
    // not all.
    let last = *hinted.last().unwrap_or(&first);
    let replies = scene.talk_to(left, move |client| {
        put(client, last..last + 1, "last".to_owned(), "one")
    })?;
    scene.crash(left);
    all_stored(&replies)?;
    scene.hand_all_on()?;
    all_tell(&scene, 0..last, "kept")?;
    all_tell(&scene, last + 1..MANY.end, "kept")?;
    let is_last = |told: &Option<(String, String)>| told.as_ref().is_some_and(|it| it.1 == "last");
    for node in scene.all() {
        let told = scene.talk_to(node, move |client| get(client, last..last + 1))?;
        if told.iter().any(is_last) {
            return Ok(MANY.end);
        }
    }
    Err(format!(
        "key {last} was acknowledged at last, and nobody has that"
    ))
}

/// A node has kept what is older than a deletion that it has not heard of.
fn deleted_meanwhile(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    const SOME: std::ops::Range<u64> = 0..10;
    let mut scene = Scene::holding_data(seed, 3, planted)?;
    let (keeper, deleter, away) = (0, 1, 2);
    scene.crash(away);
    scene.wait_for_those_up()?;
    let replies = scene.talk_to(keeper, |client| put(client, SOME, "old".to_owned(), "one"))?;
    all_stored(&replies)?;
    scene.world.run_for(GRACE);
    if scene.info(keeper, "hints")? < SOME.end {
        return Err("too few hints are kept".to_owned());
    }
    scene.crash(keeper);
    scene.start(away)?;
    scene.wait_for_those_up()?;
    scene.talk_to(deleter, |mut client| async move {
        for key in SOME {
            let delete = words(&format!("KV.DEL key:{key} CONSISTENCY quorum"));
            while !matches!(
                client.must(std::slice::from_ref(&delete)).await?[0],
                Reply::Array(_)
            ) {}
        }
        Ok(())
    })?;
    scene.hand_all_on()?;
    for node in scene.all() {
        let told = scene.talk_to(node, |client| get(client, SOME))?;
        if let Some(back) = told.iter().flatten().next() {
            return Err(format!(
                "node {node} tells {back:?} of a key that was deleted"
            ));
        }
    }
    Ok(SOME.end)
}

/// Two of three nodes are away: a majority is not made of what is kept for them.
fn lonely_quorum(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    const SOME: std::ops::Range<u64> = 0..5;
    let mut scene = Scene::holding_data(seed, 3, planted)?;
    let left = scene.chance.u16(..3);
    for node in scene.all().into_iter().filter(|node| *node != left) {
        scene.crash(node);
    }
    for pause in [0, 3_000] {
        scene.world.run_for(Duration::from_millis(pause));
        for level in ["quorum", "all"] {
            let replies = scene.talk_to(left, |client| put(client, SOME, "x".to_owned(), level))?;
            if let Some(stored) = replies
                .iter()
                .find(|reply| matches!(reply, Reply::Array(_)))
            {
                return Err(format!(
                    "one of three replicas is there, and a write at {level} was told {stored:?}"
                ));
            }
        }
    }
    let replies = scene.talk_to(left, |client| put(client, SOME, "y".to_owned(), "one"))?;
    all_stored(&replies)?;
    scene.world.run_for(GRACE);
    scene.hand_all_on()?;
    all_tell(&scene, SOME, "y")?;
    Ok(SOME.end)
}

/// One node is away, and another one is cut off while writes at QUORUM are under way: those that
/// were acknowledged must be found without their coordinator, and so without what it keeps for
/// others.
fn majority_without_keeper(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    let mut scene = Scene::holding_data(seed, 3, planted)?;
    let (keeper, other, away) = (0, 1, 2);
    scene.crash(away);
    scene.wait_for_those_up()?;
    let acknowledged = Rc::new(Cell::new(0));
    let (noted, life) = (Rc::clone(&acknowledged), Rc::clone(&scene.life));
    scene.world.spawn_client(async move {
        let mut client = Client::of(&life, address(keeper));
        for value in 1.. {
            if !client.try_connect().await {
                return;
            }
            let put = words(&format!("KV.PUT key:0 {value} CONSISTENCY quorum"));
            let replies = client.call(&[put]).await.unwrap_or_default();
            if matches!(replies.first(), Some(Reply::Array(_))) {
                noted.set(value);
            }
        }
    });
    let pause = Duration::from_micros(scene.chance.u64(20_000..200_000));
    scene.world.run_for(pause);
    scene.cut(keeper, other);
    scene.world.run_for(Duration::from_millis(40));
    let acknowledged: u64 = acknowledged.get();
    scene.crash(keeper);
    scene.world.heal_all();
    scene.start(away)?;
    scene.wait_for_those_up()?;
    let told = scene.talk_to(other, |mut client| async move {
        let get = words("KV.GET key:0 CONSISTENCY quorum");
        loop {
            let reply = client.must(std::slice::from_ref(&get)).await?.remove(0);
            if !matches!(reply, Reply::Error(_)) {
                return Ok(field(&reply, "value"));
            }
        }
    })?;
    let found = told.and_then(|text| text.parse().ok()).unwrap_or(0);
    match found >= acknowledged {
        true => Ok(acknowledged),
        false => Err(format!(
            "{acknowledged} was acknowledged at QUORUM, and {found} is read"
        )),
    }
}

/// A write, as its client knows it.
#[derive(Clone, Debug)]
struct Write {
    node: u16,
    /// Its version, if it was acknowledged.
    version: Option<String>,
    is_failed: bool,
    /// It expires soon.
    is_brief: bool,
    answered: Duration,
}

/// By key and value: all writes.
#[derive(Default)]
struct Ledger {
    writes: BTreeMap<(u64, u64), Write>,
    next: u64,
    is_over: bool,
}

async fn write_on(ledger: Rc<RefCell<Ledger>>, life: Rc<Life>, world: Handle, seed: (u64, u16)) {
    let (seed, nodes) = seed;
    let mut chance = fastrand::Rng::with_seed(seed);
    while !ledger.borrow().is_over {
        let node = chance.u16(..nodes);
        let mut client = Client::of(&life, address(node));
        rt::sleep(Duration::from_micros(chance.u64(100..20_000))).await;
        if !client.try_connect().await {
            continue;
        }
        for _ in 0..chance.u32(1..30) {
            if ledger.borrow().is_over {
                return;
            }
            let key = chance.u64(..KEYS);
            let value = {
                let mut ledger = ledger.borrow_mut();
                ledger.next += 1;
                ledger.next
            };
            let is_brief = chance.u8(..6) == 0;
            let ttl = if is_brief { " TTL 1" } else { "" };
            let level = ["one", "one", "one", "quorum"][chance.usize(..4)];
            let width = [1, 1, 500, 5_000][chance.usize(..4)];
            let text = format!("KV.PUT key:{key} {value:0>width$}{ttl} CONSISTENCY {level}");
            let replies = client.call(&[words(&text)]).await.unwrap_or_default();
            let codes = ["NOREPLICAS", "MISCONF", "BUSY"];
            let is_failed = matches!(replies.first(), Some(Reply::Error(text))
                if codes.iter().any(|code| text.starts_with(code)));
            let version = replies.first().and_then(|reply| field(reply, "version"));
            let write = Write {
                node,
                version,
                is_failed,
                is_brief,
                answered: world.elapsed(),
            };
            ledger.borrow_mut().writes.insert((key, value), write);
            if replies.is_empty() {
                break;
            }
            rt::sleep(Duration::from_micros(chance.u64(1..10_000))).await;
        }
    }
}

/// What a disk does under a storm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disks {
    Sound,
    FullNowAndThen,
}

/// Crashes, partitions and pauses while clients write and nobody reads.
fn storm(seed: u64, planted: &[Bug], disks: Disks) -> Verdict<u64> {
    let nodes = [3, 3, 4][(seed % 3) as usize];
    let mut scene = Scene::holding_data(seed, nodes, planted)?;
    let ledger: Rc<RefCell<Ledger>> = Rc::default();
    for _ in 0..scene.chance.u8(2..5) {
        let seed = (scene.chance.u64(..), nodes);
        let (ledger, life) = (Rc::clone(&ledger), Rc::clone(&scene.life));
        let work = write_on(ledger, life, scene.world.handle(), seed);
        scene.world.spawn_client(work);
    }
    for _ in 0..scene.chance.u32(8..25) {
        let pause = Duration::from_micros(scene.chance.u64(1_000..800_000));
        scene.world.run_for(pause);
        let node = scene.chance.u16(..nodes);
        match scene.chance.u8(..12) {
            0..4 => scene.crash(node),
            4..8 => scene.start_missing()?,
            8 => scene.cut(node, (node + 1) % nodes),
            9 => scene.world.heal_all(),
            10 => {
                let pause = Duration::from_millis(scene.chance.u64(1..900));
                scene.world.pause_node(machine(node), pause);
            }
            _ if disks == Disks::FullNowAndThen && scene.is_up(node) => {
                let free = scene.chance.u64(..100_000);
                scene.world.disk(machine(node)).leave_free(free);
                scene.world.run_for(Duration::from_millis(200));
                let disk = scene.world.disk(machine(node));
                disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
            }
            _ => {}
        }
    }
    ledger.borrow_mut().is_over = true;
    scene.world.heal_all();
    scene.start_missing()?;
    scene.world.run_for(GRACE * 2);
    scene.hand_all_on()?;
    let mut told = Vec::new();
    for node in scene.all() {
        told.push(scene.talk_to(node, |client| get(client, 0..KEYS))?);
    }
    let ledger = ledger.borrow();
    for key in 0..KEYS {
        judge(&ledger, key, &told, |write| {
            let ends = &scene.seats[usize::from(write.node)].ends;
            let ended = ends
                .iter()
                .any(|end| *end >= write.answered && *end < write.answered + GRACE);
            disks == Disks::Sound && !ended
        })
        .map_err(|why| format!("key {key}: {why}"))?;
    }
    let acknowledged = ledger
        .writes
        .values()
        .filter(|write| write.version.is_some());
    Ok(acknowledged.count() as u64)
}

/// Some node tells of `key` what is not older than any acknowledged write; all do, of those writes
/// whose coordinator has lived on; and nobody tells what has failed, or another version of a write
/// than its own.
fn judge(
    ledger: &Ledger,
    key: u64,
    told: &[Vec<Option<(String, String)>>],
    is_certain: impl Fn(&Write) -> bool,
) -> Verdict {
    let of_key = || ledger.writes.range((key, 0)..(key + 1, 0));
    let newest = |is_wanted: &dyn Fn(&Write) -> bool| {
        let wanted = of_key().filter(|(_, write)| is_wanted(write));
        wanted.filter_map(|(_, write)| write.version.clone()).max()
    };
    let (any, certain) = (newest(&|_| true), newest(&is_certain));
    // Whoever tells nothing may hold anything that has expired, also what nobody knows the version
    // of.
    let brief = of_key().filter(|(_, write)| write.is_brief && !write.is_failed);
    let newest_brief = brief
        .map(|(_, write)| write.version.clone().unwrap_or("f".repeat(25)))
        .max();
    let mut versions = Vec::new();
    for (node, told) in told.iter().enumerate() {
        let version = match &told[key as usize] {
            None => newest_brief.clone(),
            Some((version, value)) => {
                let value: u64 = value
                    .parse()
                    .map_err(|_| format!("{value:?} was never written"))?;
                let write = ledger.writes.get(&(key, value));
                let write = write.ok_or_else(|| format!("{value} was never written here"))?;
                let is_own = write.version.as_ref().is_none_or(|own| own == version);
                if write.is_failed || !is_own {
                    return Err(format!(
                        "node {node} tells {value} as version {version}: {write:?}"
                    ));
                }
                Some(version.clone())
            }
        };
        if version < certain {
            return Err(format!(
                "node {node} tells {:?}, which is older than {certain:?}",
                told[key as usize]
            ));
        }
        versions.push(version);
    }
    match versions.iter().max() >= Some(&any) {
        true => Ok(()),
        false => Err(format!(
            "{any:?} was acknowledged, and is nowhere: {versions:?}"
        )),
    }
}

/// Else a replica that was away would lack for ever what nobody reads.
#[test]
fn a_node_that_was_away_is_told_all_whatever_interrupts_it() {
    let name = "a_node_that_was_away_is_told_all_whatever_interrupts_it";
    for_seeds(name, |seed| interrupted(seed, &[]));
}

/// Else what a stand-in has acknowledged would be lost with its power.
#[test]
fn what_only_a_stand_in_has_is_acknowledged_at_one_and_never_lost() {
    let name = "what_only_a_stand_in_has_is_acknowledged_at_one_and_never_lost";
    for_seeds(name, |seed| all_away(seed, &[]));
}

/// Else a hint would bring back what was deleted while its keeper was away itself.
#[test]
fn a_hint_that_is_older_than_a_deletion_brings_nothing_back() {
    let name = "a_hint_that_is_older_than_a_deletion_brings_nothing_back";
    for_seeds(name, |seed| deleted_meanwhile(seed, &[]));
}

/// Else a read at QUORUM could miss what was acknowledged at QUORUM.
#[test]
fn hints_make_no_majority() {
    for_seeds("hints_make_no_majority", |seed| {
        Ok(lonely_quorum(seed, &[])? + majority_without_keeper(seed, &[])?)
    });
}

/// Else some replica would stay behind, or tell what never was.
#[test]
fn replicas_become_equal_though_nobody_reads() {
    let name = "replicas_become_equal_though_nobody_reads";
    for_seeds(name, |seed| storm(seed, &[], Disks::Sound));
}

/// Else a full disk would lose what was acknowledged as a hint.
#[test]
fn disks_that_fill_under_hints_lose_nothing() {
    let name = "disks_that_fill_under_hints_lose_nothing";
    for_seeds(name, |seed| storm(seed, &[], Disks::FullNowAndThen));
}

#[test]
fn a_hint_that_is_acknowledged_before_its_sync_is_found() {
    finds(Bug::HintUnsynced, all_away);
}

#[test]
fn a_hint_that_is_dropped_before_the_replica_has_it_is_found() {
    finds(Bug::HintForgotten, interrupted);
}

#[test]
fn a_hint_that_counts_towards_a_majority_is_found() {
    finds(Bug::HintCounted, majority_without_keeper);
}

#[test]
fn a_hint_under_another_version_is_found() {
    finds(Bug::HintRestamped, deleted_meanwhile);
}
