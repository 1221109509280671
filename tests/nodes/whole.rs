//! Commands about all keys of three nodes: each key is told once, by whomever it is asked; a walk
//! goes on while nodes die; FLUSHALL leaves nothing that a majority had; and the port of a core
//! tells of its own keys, and of copies if it is asked to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use quoit::rt;
use quoit::types::Slot;

use crate::cluster::{Client, Life, Reply, Verdict, request};
use crate::scene::{Scene, THREE, address, address_of_core, words};
use crate::seeds::{Test, number};

/// Keys that are there from the beginning to the end.
const STABLE: u64 = 80;
/// Virtual time in which walks are made while nodes die.
const STORM: Duration = Duration::from_secs(3);

type Keys = BTreeSet<Vec<u8>>;

fn for_each_seed(name: &'static str, seeds: u64, simulate: impl Fn(u64) -> Verdict) {
    let test = Test {
        program: "nodes",
        name,
        seeds,
        twice_every: u64::MAX,
    };
    test.run(simulate);
}

fn stable_keys() -> Keys {
    (0..STABLE)
        .map(|number| format!("stable:{number}").into_bytes())
        .collect()
}

/// Asks until there is an answer that is no refusal: the first write waits for the others.
async fn done(client: &mut Client, line: &str) -> Verdict<Reply> {
    for _ in 0..1_000 {
        let reply = client.must(&[words(line)]).await?.remove(0);
        match reply {
            Reply::Error(_) => rt::sleep(Duration::from_millis(20)).await,
            reply => return Ok(reply),
        }
    }
    Err(format!("{line} is refused for ever"))
}

/// Stores the stable keys, and some that are deleted or expire at once, on all replicas.
async fn fill(life: Rc<Life>) -> Verdict {
    let mut client = Client::of(&life, address(0));
    done(&mut client, "KV.CONSISTENCY READ all WRITE all").await?;
    for key in stable_keys() {
        let key = String::from_utf8_lossy(&key).into_owned();
        done(&mut client, &format!("SET {key} value-of-{key}")).await?;
    }
    for number in 0..30 {
        done(&mut client, &format!("SET gone:{number} 1")).await?;
        done(&mut client, &format!("DEL gone:{number}")).await?;
        done(&mut client, &format!("SET late:{number} 1 PXAT 1")).await?;
    }
    Ok(())
}

fn keys_in(reply: Reply) -> Verdict<Vec<Vec<u8>>> {
    let key = |reply: Reply| reply.value()?.ok_or_else(|| "a key is null".to_owned());
    reply.items()?.into_iter().map(key).collect()
}

/// All keys of a walk, in the order in which they came; `None`: a page was not answered.
async fn scan(client: &mut Client, options: &str) -> Verdict<Option<Vec<Vec<u8>>>> {
    let (mut cursor, mut found) = (0, Vec::new());
    loop {
        let page = client
            .must(&[words(&format!("SCAN {cursor}{options}"))])
            .await?;
        let Some(Reply::Array(mut page)) = page.into_iter().next() else {
            return Ok(None);
        };
        found.extend(keys_in(page.remove(1))?);
        cursor = page.remove(0).number()?;
        if cursor == 0 {
            return Ok(Some(found));
        }
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, told: T, wanted: T) -> Verdict {
    match told == wanted {
        true => Ok(()),
        false => Err(format!("{what}: {told:?} instead of {wanted:?}")),
    }
}

/// What is told at the shared port of one node.
async fn tells_all(mut client: Client) -> Verdict {
    let wanted: Vec<Vec<u8>> = stable_keys().into_iter().collect();
    let size = client.must(&[words("DBSIZE")]).await?.remove(0);
    expect("DBSIZE", size, Reply::Integer(STABLE as i64))?;
    let mut keys = keys_in(client.must(&[words("KEYS *")]).await?.remove(0))?;
    keys.sort();
    expect("KEYS", &keys, &wanted)?;
    let some = keys_in(client.must(&[words("KEYS stable:1?")]).await?.remove(0))?;
    expect("KEYS of a pattern", some.len(), 10)?;
    for options in [
        "",
        " COUNT 7",
        " COUNT 1",
        " COUNT 100000",
        " MATCH * COUNT 30",
    ] {
        let found = scan(&mut client, options).await?;
        let mut found = found.ok_or("a page is refused in peace")?;
        found.sort();
        expect(&format!("SCAN{options}"), &found, &wanted)?;
    }
    let some = scan(&mut client, " MATCH stable:1? COUNT 20").await?;
    expect("SCAN of a pattern", some.map(|keys| keys.len()), Some(10))?;
    let none = scan(&mut client, " TYPE hash").await?;
    expect("SCAN of hashes", none, Some(Vec::new()))?;
    for _ in 0..20 {
        let key = client
            .must(&[words("RANDOMKEY")])
            .await?
            .remove(0)
            .value()?;
        if !key.as_ref().is_some_and(|key| stable_keys().contains(key)) {
            return Err(format!("RANDOMKEY is {key:?}"));
        }
    }
    let slot = Slot::of(b"stable:1").0;
    let count = words(&format!("CLUSTER COUNTKEYSINSLOT {slot}"));
    let names = words(&format!("CLUSTER GETKEYSINSLOT {slot} 100"));
    let replies = client.must(&[count, names]).await?;
    let names = keys_in(replies[1].clone())?;
    expect("keys of a slot", replies[0].number()?, names.len() as i64)?;
    match names.contains(&b"stable:1".to_vec()) {
        true => Ok(()),
        false => Err(format!("a slot lacks its key: {names:?}")),
    }
}

/// Slots of each port of a core, as CLUSTER SLOTS tells them: host, port, slots.
async fn owners(client: &mut Client) -> Verdict<Vec<(String, i64, std::ops::RangeInclusive<u16>)>> {
    let ranges = client.must(&[words("CLUSTER SLOTS")]).await?.remove(0);
    let mut owners = Vec::new();
    for range in ranges.items()? {
        let mut range = range.items()?;
        let mut owner = range.remove(2).items()?;
        let host = owner.remove(0).value()?.unwrap_or_default();
        let slots = range[0].number()? as u16..=range[1].number()? as u16;
        let host = String::from_utf8_lossy(&host).into_owned();
        owners.push((host, owner[0].number()?, slots));
    }
    Ok(owners)
}

/// The ports of all cores tell of all keys together, each of its own.
async fn cores_tell_their_own(life: Rc<Life>, cores: u16) -> Verdict {
    let mut all = Vec::new();
    let mut sizes = 0;
    for (node, core) in (0..THREE.nodes).flat_map(|node| (0..cores).map(move |core| (node, core))) {
        let at = address_of_core(node, core);
        let mut client = Client::of(&life, at);
        let owners = owners(&mut client).await?;
        let is_own = |key: &[u8]| {
            let slot = Slot::of(key).0;
            let is_here =
                |host: &str, port| host == at.ip().to_string() && port == i64::from(at.port());
            let owner = owners.iter().find(|(.., slots)| slots.contains(&slot));
            owner.is_some_and(|(host, port, _)| is_here(host, *port))
        };
        let mut keys = keys_in(client.must(&[words("KEYS *")]).await?.remove(0))?;
        if let Some(key) = keys.iter().find(|key| !is_own(key)) {
            return Err(format!(
                "core {core} of node {node} tells of {key:?}, which is not its own"
            ));
        }
        let mut found = scan(&mut client, " COUNT 5")
            .await?
            .ok_or("a page is refused")?;
        found.sort();
        keys.sort();
        expect("SCAN at the port of a core", &found, &keys)?;
        let size = client.must(&[words("DBSIZE")]).await?.remove(0).number()?;
        expect("DBSIZE at the port of a core", size, keys.len() as i64)?;
        for key in stable_keys().iter().take(20) {
            let count = format!("CLUSTER COUNTKEYSINSLOT {}", Slot::of(key).0);
            let count = client.must(&[words(&count)]).await?.remove(0).number()?;
            expect("COUNTKEYSINSLOT", count > 0, is_own(key))?;
        }
        sizes += size;
        all.append(&mut keys);
    }
    all.sort();
    let wanted: Vec<Vec<u8>> = stable_keys().into_iter().collect();
    expect("the keys of all cores", &all, &wanted)?;
    expect("their number", sizes, STABLE as i64)
}

/// Else a key would be counted as often as it has replicas, or not at all where one node does not
/// hold everything.
#[test]
fn every_key_is_told_once_whoever_is_asked() {
    for_each_seed("every_key_is_told_once_whoever_is_asked", 2, |seed| {
        for replicas in 1..=3 {
            let mut scene = Scene::configured(seed, |config| config.replicas = replicas)?;
            scene.run(fill)?;
            scene.talk(tells_all)?;
            let cores = scene.cores();
            scene.run(|life| cores_tell_their_own(life, cores))?;
            // The others tell of all while one is away, as long as it is not the only one that
            // holds something.
            scene.crash(1);
            scene.run(move |life| without_one(life, replicas))?;
        }
        Ok(())
    });
}

/// What nodes tell when node 1 is down.
async fn without_one(life: Rc<Life>, replicas: u8) -> Verdict {
    for node in [0, 2] {
        let mut client = Client::of(&life, address(node));
        match replicas {
            1 => loop {
                let size = client.must(&[words("DBSIZE")]).await?.remove(0);
                match size {
                    Reply::Error(text) if text.starts_with("NOREPLICAS") => break,
                    Reply::Error(_) => {}
                    size => return Err(format!("{size:?} keys, though a node is away")),
                }
            },
            _ => {
                let size = done(&mut client, "DBSIZE").await?;
                expect("DBSIZE without one", size, Reply::Integer(STABLE as i64))?;
                let found = scan(&mut client, " COUNT 20")
                    .await?
                    .ok_or("a page is refused")?;
                expect(
                    "SCAN without one",
                    found.into_iter().collect(),
                    stable_keys(),
                )?;
            }
        }
    }
    Ok(())
}

/// Walks over all keys, going from node to node, until the storm is over.
async fn walk_in_a_storm(life: Rc<Life>, is_over: Rc<Cell<bool>>, walks: Rc<Cell<u64>>, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let stable = stable_keys();
    while !is_over.get() {
        let walked = walk(&life, &is_over, &mut chance).await;
        let verdict = walked.and_then(|found| match found {
            Some(found) => {
                walks.set(walks.get() + 1);
                let missed: Vec<_> = stable.difference(&found).collect();
                match missed.is_empty() {
                    true => Ok(()),
                    false => Err(format!(
                        "a walk missed {missed:?}, which were there all the time"
                    )),
                }
            }
            None => Ok(()),
        });
        life.note(verdict);
    }
}

/// The keys of one walk, each page asked of any node until one answers; `None`: the storm ended
/// first.
async fn walk(
    life: &Rc<Life>,
    is_over: &Cell<bool>,
    chance: &mut fastrand::Rng,
) -> Verdict<Option<Keys>> {
    let (mut cursor, mut found) = (0, Keys::new());
    let count = chance.u32(1..40);
    loop {
        let mut client = Client::of(life, address(chance.u16(..THREE.nodes)));
        rt::sleep(Duration::from_millis(chance.u64(1..60))).await;
        if is_over.get() {
            return Ok(None);
        }
        if !client.try_connect().await {
            continue;
        }
        for _ in 0..chance.u32(1..10) {
            let page = words(&format!("SCAN {cursor} COUNT {count}"));
            let Some(Reply::Array(mut page)) = client.call(&[page]).await?.into_iter().next()
            else {
                break;
            };
            found.extend(keys_in(page.remove(1))?);
            cursor = page.remove(0).number()?;
            if cursor == 0 {
                return Ok(Some(found));
            }
        }
    }
}

/// Counts and lists all keys while nodes die: an answer is whole, or none.
async fn list_in_a_storm(life: Rc<Life>, is_over: Rc<Cell<bool>>, lists: Rc<Cell<u64>>, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let stable = stable_keys();
    while !is_over.get() {
        let mut client = Client::of(&life, address(chance.u16(..THREE.nodes)));
        rt::sleep(Duration::from_millis(chance.u64(1..300))).await;
        if !client.try_connect().await {
            continue;
        }
        let asked = client
            .call(&[words("DBSIZE"), words("KEYS stable:*")])
            .await;
        let verdict = asked.and_then(|replies| {
            if let Some(Reply::Integer(size)) = replies.first()
                && *size < STABLE as i64
            {
                return Err(format!(
                    "DBSIZE is {size}, with {STABLE} keys there all the time"
                ));
            }
            if let Some(Reply::Array(_)) = replies.get(1) {
                lists.set(lists.get() + 1);
                let keys: Keys = keys_in(replies[1].clone())?.into_iter().collect();
                return expect("KEYS in a storm", keys.len(), stable.len());
            }
            Ok(())
        });
        life.note(verdict);
    }
}

/// Else SCAN would break its only promise whenever a node dies in the middle of a walk.
#[test]
fn a_walk_meets_all_that_was_there_though_nodes_die_meanwhile() {
    let name = "a_walk_meets_all_that_was_there_though_nodes_die_meanwhile";
    let total = RefCell::new((0, 0, 0));
    for_each_seed(name, 4, |seed| {
        let replicas = 2 + (seed % 2) as u8;
        let mut scene = Scene::configured(seed, |config| config.replicas = replicas)?;
        scene.run(fill)?;
        let (is_over, walks, lists) = (Rc::default(), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for client in 0..2 {
            let (is_over, walks) = (Rc::clone(&is_over), Rc::clone(&walks));
            scene.spawn(move |life| walk_in_a_storm(life, is_over, walks, seed * 100 + client));
        }
        let (over, listed) = (Rc::clone(&is_over), Rc::clone(&lists));
        scene.spawn(move |life| list_in_a_storm(life, over, listed, seed));
        scene.storm()?;
        scene.world.heal_all();
        scene.start_missing()?;
        scene.world.run_for(STORM);
        is_over.set(true);
        scene.verdict()?;
        let mut total = total.borrow_mut();
        *total = (
            total.0 + walks.get(),
            total.1 + lists.get(),
            total.2 + scene.tally.crashes,
        );
        Ok(())
    });
    let total = total.into_inner();
    println!(
        "{name}: {} walks, {} lists, {} crashes",
        total.0, total.1, total.2
    );
    let is_short = number("SEED").is_some() || number("QUOIT_SEEDS").is_some();
    assert!(is_short || (total.0 > 10 && total.1 > 10 && total.2 > 3));
}

/// Writes at QUORUM while node 2 is away, so that it lacks what the others have.
async fn fill_at_quorum(life: Rc<Life>) -> Verdict {
    let mut client = Client::of(&life, address(0));
    done(&mut client, "KV.CONSISTENCY READ quorum WRITE quorum").await?;
    for key in stable_keys() {
        let key = String::from_utf8_lossy(&key).into_owned();
        done(&mut client, &format!("SET {key} 2")).await?;
    }
    Ok(())
}

async fn flush(life: Rc<Life>, level: &'static str, node: u16) -> Verdict {
    let mut client = Client::of(&life, address(node));
    done(
        &mut client,
        &format!("KV.CONSISTENCY READ {level} WRITE {level}"),
    )
    .await?;
    let said = done(&mut client, "FLUSHALL").await?;
    expect("FLUSHALL", said, Reply::Simple("OK".to_owned()))
}

/// Nothing is read any more at this level, whoever is asked.
async fn finds_nothing(mut client: Client, level: &'static str) -> Verdict {
    done(&mut client, &format!("KV.CONSISTENCY READ {level}")).await?;
    for key in stable_keys() {
        let reply = client
            .must(&[request([&b"GET"[..], &key])])
            .await?
            .remove(0);
        expect("a key that was flushed", reply, Reply::Nil)?;
    }
    Ok(())
}

/// Else a key that a majority had would come back from those that FLUSHALL has not asked, or be
/// said to be gone though too few were there.
#[test]
fn flushall_leaves_nothing_that_its_level_has_seen() {
    for_each_seed(
        "flushall_leaves_nothing_that_its_level_has_seen",
        3,
        |seed| {
            let away = (seed % 3) as u16;
            let mut scene = Scene::new(seed, &[])?;
            scene.run(fill)?;
            scene.run(|life| flush(life, "all", away))?;
            scene.talk(|client| finds_nothing(client, "one"))?;
            // Whoever was away lacks all of it, and may be the first that is asked.
            let there = (away + 1) % THREE.nodes;
            scene.crash(away);
            scene.run(move |life| async move {
                let mut client = Client::of(&life, address(there));
                done(&mut client, "KV.CONSISTENCY READ quorum WRITE quorum").await?;
                for key in stable_keys() {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    done(&mut client, &format!("SET {key} 2")).await?;
                }
                let set = words("KV.CONSISTENCY WRITE all");
                let said = client.must(&[set, words("FLUSHALL")]).await?.remove(1);
                match said {
                    Reply::Error(text) if text.starts_with("NOREPLICAS") => Ok(()),
                    said => Err(format!("FLUSHALL at ALL without one: {said:?}")),
                }
            })?;
            scene.start_missing()?;
            scene.wait_for_cluster(&scene.all())?;
            scene.run(|life| flush(life, "quorum", away))?;
            scene.talk(|client| finds_nothing(client, "quorum"))?;
            // At QUORUM it goes on without one, too.
            scene.run(fill_at_quorum)?;
            scene.crash((seed / 3 % 3) as u16);
            let there = (seed / 3 + 1) % 3;
            scene.run(|life| flush(life, "quorum", there as u16))?;
            scene.start_missing()?;
            scene.wait_for_cluster(&scene.all())?;
            scene.talk(|client| finds_nothing(client, "quorum"))
        },
    );
}

/// Else clients that read from replicas would be sent away by all of them, or old values would be
/// read unasked.
#[test]
fn a_core_serves_reads_of_its_copies_to_those_that_have_said_readonly() {
    let name = "a_core_serves_reads_of_its_copies_to_those_that_have_said_readonly";
    for_each_seed(name, 2, |seed| {
        let mut scene = Scene::new(seed, &[])?;
        scene.run(fill)?;
        let cores = scene.cores();
        scene.run(|life| reads_of_copies(life, cores))
    });
}

async fn reads_of_copies(life: Rc<Life>, cores: u16) -> Verdict {
    let keys: Vec<String> = stable_keys()
        .iter()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    let is_moved = |reply: &Reply| matches!(reply, Reply::Error(text) if text.starts_with("MOVED"));
    for key in keys.iter().take(20) {
        let (mut owners, mut holders) = (0, 0);
        for (node, core) in
            (0..THREE.nodes).flat_map(|node| (0..cores).map(move |core| (node, core)))
        {
            let mut client = Client::of(&life, address_of_core(node, core));
            let (get, set) = (
                words(&format!("GET {key}")),
                words(&format!("SET {key} value-of-{key}")),
            );
            let transaction = [words("MULTI"), get.clone(), words("EXEC")];
            let mut lines = vec![get.clone(), words("READONLY"), get.clone(), set];
            lines.extend(transaction);
            lines.extend([words("READWRITE"), get]);
            let said = client.must(&lines).await?;
            owners += usize::from(!is_moved(&said[0]));
            holders += usize::from(!is_moved(&said[2]));
            expect(
                "READWRITE takes READONLY back",
                is_moved(&said[8]),
                is_moved(&said[0]),
            )?;
            expect(
                "a write goes to the owner",
                is_moved(&said[3]),
                is_moved(&said[0]),
            )?;
            let value = Reply::Bulk(format!("value-of-{key}").into_bytes());
            if !is_moved(&said[2]) {
                expect("a copy", &said[2], &value)?;
                expect("a copy in EXEC", &said[6], &Reply::Array(vec![value]))?;
            }
        }
        expect("owners of a key", owners, 1)?;
        expect("holders of a key", holders, usize::from(THREE.nodes))?;
    }
    Ok(())
}
