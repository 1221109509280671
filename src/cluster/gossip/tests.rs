//! Clusters of gossipers in virtual time, with loss, delay, partitions, pauses and crashes, from a
//! seed.
//!
//! `cargo test gossip -- --nocapture` prints what was measured.

mod twins;

use std::collections::{BTreeMap, BTreeSet};

use super::message::MESSAGE_BYTES_MAX;
use super::*;
use crate::cluster::claim::{Change, change};
use crate::cluster::map::Node;
use crate::cluster::map::tests::plain;
use crate::cluster::member::Why;
use crate::cluster::ring::Vnodes;
use crate::config::NODES_MAX;

const TIMING: Timing = Timing {
    interval: Duration::from_secs(1),
    suspect: Duration::from_secs(10),
    dead: Duration::from_secs(30),
};
const SIZES: [usize; 4] = [3, 5, 30, 100];

fn node(number: usize) -> Node {
    Node {
        cores: 1,
        ..plain(number as u16)
    }
}

/// Nodes 1 to `count`.
fn map(count: usize) -> ClusterMap {
    let vnodes = Vnodes::new(64).expect("a power of two");
    let first = ClusterMap::first(Uuid(7), vnodes, 3, node(1)).expect("a sound node");
    let others: Vec<Change> = (2..=count)
        .map(|number| Change::Put(node(number)))
        .collect();
    change(&first, &others).expect("sound nodes")
}

/// Milliseconds of virtual time.
type Millis = u64;

fn at(now: Millis) -> Duration {
    Duration::from_millis(now)
}

#[derive(Clone)]
enum Event {
    Tick(usize),
    Message(usize, Vec<u8>),
}

struct Peer {
    gossip: Gossip,
    map: ClusterMap,
    is_up: bool,
    paused_until: Millis,
}

struct World {
    now: Millis,
    state: u64,
    timing: Timing,
    peers: Vec<Peer>,
    events: BTreeMap<(Millis, u64), Event>,
    count: u64,
    loss_percent: u64,
    delay_max: Millis,
    /// Ticks are late by up to this.
    lateness_max: Millis,
    /// Messages from the first to the second are lost.
    cut: BTreeSet<(usize, usize)>,
    /// When and at which node each turn was seen.
    turns: Vec<(Millis, usize, Turn)>,
    renumbered: Vec<(usize, u64)>,
    /// Other processes that run as the same node: what is sent to one may come to the other.
    twins: BTreeMap<usize, usize>,
    /// Who was ended, when, and by which generation.
    fenced: Vec<(Millis, usize, u64)>,
}

impl World {
    fn new(seed: u64, count: usize, timing: Timing) -> World {
        let map = map(count);
        let peer = |number: usize| Peer {
            gossip: Gossip::new(
                NodeId(number as u16 + 1),
                1000,
                timing,
                &map,
                Duration::ZERO,
            ),
            map: map.clone(),
            is_up: true,
            paused_until: 0,
        };
        let mut world = World {
            now: 0,
            state: seed,
            timing,
            peers: (0..count).map(peer).collect(),
            events: BTreeMap::new(),
            count: 0,
            loss_percent: 0,
            delay_max: 20,
            lateness_max: 5,
            cut: BTreeSet::new(),
            turns: Vec::new(),
            renumbered: Vec::new(),
            twins: BTreeMap::new(),
            fenced: Vec::new(),
        };
        for peer in 0..count {
            let at = world.below(timing.interval.as_millis() as u64);
            world.plan(at, Event::Tick(peer));
        }
        world
    }

    fn chance(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance() % bound
    }

    fn plan(&mut self, at: Millis, event: Event) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    fn run(&mut self, duration: Millis) {
        let end = self.now + duration;
        while let Some((&(at, number), _)) = self.events.first_key_value() {
            if at > end {
                break;
            }
            let event = self.events.remove(&(at, number)).expect("it is there");
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        let (Event::Tick(peer) | Event::Message(peer, _)) = event;
        if !self.peers[peer].is_up {
            return;
        }
        if self.peers[peer].paused_until > self.now {
            return self.plan(self.peers[peer].paused_until, event);
        }
        let now = Duration::from_millis(self.now);
        let chance = self.chance();
        let effects = match event {
            Event::Tick(_) => {
                let effects = self.peers[peer].gossip.tick(now, chance);
                let due = self.peers[peer].gossip.due().as_millis() as u64;
                let late = self.below(self.lateness_max + 1);
                assert!(due > self.now, "the caller would never wait");
                self.plan(due + late, Event::Tick(peer));
                effects
            }
            Event::Message(_, bytes) => {
                let message = Message::decode(&bytes).expect("it was sent so");
                self.peers[peer].gossip.received(now, &message)
            }
        };
        for effect in effects {
            self.do_effect(peer, effect);
        }
    }

    fn do_effect(&mut self, peer: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                let to = usize::from(to.0) - 1;
                let to = match self.twins.get(&to).copied() {
                    Some(twin) if self.below(2) == 0 => twin,
                    _ => to,
                };
                let is_lost = self.below(100) < self.loss_percent || self.cut.contains(&(peer, to));
                let at = self.now + 1 + self.below(self.delay_max);
                let bytes = message.encode();
                assert!(bytes.len() <= MESSAGE_BYTES_MAX);
                if !is_lost {
                    self.plan(at, Event::Message(to, bytes));
                }
            }
            Effect::Turned(turn) => self.turns.push((self.now, peer, turn)),
            Effect::FetchMap { from, epoch } => {
                let from = usize::from(from.0) - 1;
                let map = self.peers[from].map.clone();
                assert!(map.epoch() >= epoch || !self.peers[from].is_up);
                self.give(peer, map);
            }
            Effect::Renumbered(generation) => self.renumbered.push((peer, generation)),
            Effect::Fenced(generation) => {
                assert!(!self.twins.is_empty(), "a healthy node ends: {peer}");
                self.fenced.push((self.now, peer, generation));
                self.peers[peer].is_up = false;
            }
        }
    }

    fn give(&mut self, peer: usize, map: ClusterMap) {
        self.peers[peer].gossip.map_changed(&map);
        self.peers[peer].map = map;
    }

    /// The node starts again, with this generation.
    fn restart(&mut self, peer: usize, generation: u64) {
        let now = Duration::from_millis(self.now);
        let map = self.peers[peer].map.clone();
        let own = NodeId(peer as u16 + 1);
        self.peers[peer].gossip = Gossip::new(own, generation, self.timing, &map, now);
        if !std::mem::replace(&mut self.peers[peer].is_up, true) {
            self.plan(self.now, Event::Tick(peer));
        }
    }

    fn cut_between(&mut self, these: &[usize], those: &[usize]) {
        for this in these {
            self.cut.extend(
                those
                    .iter()
                    .flat_map(|that| [(*this, *that), (*that, *this)]),
            );
        }
    }

    /// What each node that is up thinks of each other.
    fn standings(&self) -> impl Iterator<Item = (usize, usize, Standing)> {
        let up = (0..self.peers.len()).filter(|peer| self.peers[*peer].is_up);
        up.flat_map(move |peer| {
            let all = self.peers[peer].gossip.members().all();
            all.map(move |(node, standing, ..)| (peer, usize::from(node.0) - 1, standing))
        })
    }

    fn all_alive(&self) -> bool {
        self.standings()
            .all(|(_, of, standing)| !self.peers[of].is_up || standing == Standing::Alive)
    }

    /// Runs until all that are up think all that are up alive; how long that took.
    fn heal(&mut self, limit: Millis) -> Millis {
        let start = self.now;
        while !self.all_alive() {
            assert!(self.now < start + limit, "not healed after {limit} ms");
            self.run(50);
        }
        self.now - start
    }

    fn turns_to(&self, to: Standing, since: Millis) -> Vec<(Millis, usize, Turn)> {
        let is_such = |turn: &&(Millis, usize, Turn)| turn.0 >= since && turn.2.to == to;
        self.turns.iter().filter(is_such).copied().collect()
    }
}

/// Least, middle and most, in seconds.
fn spread(mut times: Vec<Millis>) -> String {
    times.sort();
    let seconds = |at: usize| times[at] as f64 / 1000.0;
    let last = times.len() - 1;
    format!(
        "{:.2} / {:.2} / {:.2} s",
        seconds(0),
        seconds(last / 2),
        seconds(last)
    )
}

#[test]
fn a_crash_is_seen_by_all_after_the_time_that_was_set() {
    for count in SIZES {
        let (mut suspected, mut convicted) = (Vec::new(), Vec::new());
        for seed in 0..if count > 50 { 2 } else { 6 } {
            let mut world = World::new(seed, count, TIMING);
            world.run(20_000 + seed * 137);
            assert!(world.all_alive(), "seed {seed}: the start");
            let (gone, since) = (seed as usize % count, world.now);
            world.peers[gone].is_up = false;
            world.run(60_000);
            for (to, times) in [
                (Standing::Suspect, &mut suspected),
                (Standing::Dead, &mut convicted),
            ] {
                let turns = world.turns_to(to, since);
                assert_eq!(
                    turns.len(),
                    count - 1,
                    "seed {seed}: {to:?} once by each other node"
                );
                assert!(
                    turns
                        .iter()
                        .all(|(_, _, turn)| usize::from(turn.node.0) - 1 == gone)
                );
                times.extend(turns.iter().map(|(at, ..)| at - since));
            }
        }
        let (first, last) = (convicted.iter().min(), convicted.iter().max());
        assert!(
            first >= Some(&28_900) && last <= Some(&45_000),
            "{first:?} {last:?}"
        );
        let (suspected, convicted) = (spread(suspected), spread(convicted));
        println!("{count:3} nodes, a crash: suspect after {suspected}, dead after {convicted}");
    }
}

#[test]
fn sub_second_timing_works_as_well() {
    let timing = Timing {
        interval: Duration::from_millis(50),
        suspect: Duration::from_millis(500),
        dead: Duration::from_millis(1500),
    };
    for count in [3, 5, 30] {
        let mut world = World::new(3, count, timing);
        world.run(5000);
        assert!(world.turns_to(Standing::Dead, 0).is_empty());
        let since = world.now;
        world.peers[1].is_up = false;
        world.run(4000);
        let turns = world.turns_to(Standing::Dead, since);
        assert_eq!(turns.len(), count - 1);
        let times = spread(turns.iter().map(|(at, ..)| at - since).collect());
        println!("{count:3} nodes, a round in 50 ms, a crash: dead after {times}");
    }
}

#[test]
fn a_node_that_pauses_for_five_seconds_is_not_convicted_and_convicts_nobody() {
    for count in SIZES {
        let mut world = World::new(11, count, TIMING);
        world.run(20_000);
        for round in 0..8 {
            let pausing = round % count;
            world.peers[pausing].paused_until = world.now + 5000;
            world.run(15_000);
        }
        assert_eq!(world.turns_to(Standing::Dead, 0), [], "{count} nodes");
        let suspicions = world.turns_to(Standing::Suspect, 20_000).len();
        println!("{count:3} nodes, 8 pauses of 5 s: 0 convictions, {suspicions} suspicions");
        assert!(world.all_alive());
    }
}

#[test]
fn loss_and_delay_convict_nobody() {
    for count in SIZES {
        let mut world = World::new(5, count, TIMING);
        (world.loss_percent, world.delay_max) = (30, 500);
        let minutes = if count > 50 { 3 } else { 20 };
        world.run(minutes * 60_000);
        assert_eq!(world.turns_to(Standing::Dead, 0), [], "{count} nodes");
        let suspicions = world.turns_to(Standing::Suspect, 0).len();
        println!(
            "{count:3} nodes, 30% loss, up to 500 ms delay, {minutes} min: 0 convictions, {suspicions} suspicions"
        );
    }
}

/// A node that had no CPU for a minute wakes up to a silence that is its own.
#[test]
fn a_node_that_was_stopped_convicts_nobody_when_it_wakes() {
    for count in SIZES {
        let mut world = World::new(23, count, TIMING);
        world.run(20_000);
        let since = world.now;
        world.peers[0].paused_until = since + 60_000;
        world.run(60_000);
        let others = world.turns_to(Standing::Dead, since);
        assert_eq!(
            others.len(),
            count - 1,
            "all others convict it, and nobody else"
        );
        let time = world.heal(20_000);
        assert!(
            world
                .turns
                .iter()
                .all(|(at, peer, turn)| *peer != 0 || *at < since || turn.to != Standing::Dead)
        );
        println!(
            "{count:3} nodes, one stopped for 60 s: alive for all {:.2} s after",
            time as f64 / 1000.0
        );
    }
}

/// On a machine with too little CPU every node is late, and no node is dead.
#[test]
fn nodes_that_are_always_late_convict_nobody() {
    for count in [3, 5, 30] {
        let mut world = World::new(31, count, TIMING);
        world.lateness_max = 8000;
        world.run(600_000);
        assert_eq!(world.turns_to(Standing::Dead, 0), [], "{count} nodes");
    }
}

#[test]
fn a_partition_is_seen_by_both_sides_and_heals_by_itself() {
    for count in SIZES {
        let mut world = World::new(41, count, TIMING);
        world.run(20_000);
        let all: Vec<usize> = (0..count).collect();
        let (these, those) = all.split_at(count / 2);
        world.cut_between(these, those);
        world.run(60_000);
        for (peer, of, standing) in world.standings() {
            let is_across = these.contains(&peer) != these.contains(&of);
            let right = if is_across {
                Standing::Dead
            } else {
                Standing::Alive
            };
            assert_eq!(standing, right, "{peer} of {of}");
        }
        world.cut.clear();
        let time = world.heal(30_000);
        println!(
            "{count:3} nodes, halves apart for 60 s: all alive {:.2} s after",
            time as f64 / 1000.0
        );
    }
}

/// The other side of a partition knows later heartbeats of a node that died there than this side:
/// when the sides meet, these are old news and no life.
#[test]
fn what_died_behind_a_partition_does_not_flicker_when_it_heals() {
    for seed in 0..20 {
        let mut world = World::new(seed, 9, TIMING);
        world.run(20_000);
        world.cut_between(&[0, 1, 2, 3], &[4, 5, 6, 7, 8]);
        world.run(25_000);
        world.peers[8].is_up = false;
        world.run(40_000);
        world.cut.clear();
        let since = world.now;
        world.heal(30_000);
        world.run(60_000);
        let revived = world.turns_to(Standing::Alive, since);
        let of_the_dead = revived.iter().filter(|(_, _, turn)| turn.node == NodeId(9));
        assert_eq!(of_the_dead.count(), 0, "seed {seed}");
    }
}

#[test]
fn a_node_that_comes_back_needs_no_hand() {
    for (generation, is_renumbered) in [(2000, false), (1000, true), (3, true)] {
        for count in SIZES {
            let mut world = World::new(51, count, TIMING);
            world.run(20_000);
            world.peers[2].is_up = false;
            world.run(50_000);
            assert_eq!(world.turns_to(Standing::Dead, 20_000).len(), count - 1);
            world.restart(2, generation);
            let time = world.heal(30_000);
            // A generation that went back is found out by what others remember.
            let numbers: Vec<u64> = world.renumbered.iter().map(|(_, number)| *number).collect();
            assert_eq!(!numbers.is_empty(), is_renumbered, "{count} nodes");
            assert!(numbers.iter().all(|number| *number > 1000));
            if generation == 2000 {
                println!(
                    "{count:3} nodes, one comes back: alive for all {:.2} s after",
                    time as f64 / 1000.0
                );
            }
        }
    }
}

#[test]
fn a_removed_node_is_gone_whatever_it_says() {
    let mut world = World::new(61, 5, TIMING);
    world.run(20_000);
    let without = change(&map(5), &[Change::Remove(NodeId(5))]).expect("four are left");
    // One node learns of it; the others and the removed one by gossip.
    world.give(0, without.clone());
    world.run(20_000);
    for peer in 0..5 {
        assert_eq!(
            world.peers[peer].map.epoch(),
            without.epoch(),
            "node {peer}"
        );
        assert_eq!(world.peers[peer].gossip.standing(NodeId(5)), None);
    }
    world.peers[0].gossip.map_changed(&map(5));
    let standing = world.peers[0].gossip.standing(NodeId(5));
    assert_eq!(standing, None, "an older map is no news");
    // It starts again with its old map, and a newer generation than any; others tell of it, too.
    world.peers[4].map = map(5);
    world.restart(4, 5000);
    let message = Message {
        kind: Kind::Ask,
        from: NodeId(2),
        cluster: Uuid(7),
        epoch: without.epoch() - 1,
        beats: vec![(
            NodeId(5),
            Heartbeat {
                generation: 9000,
                count: 1,
            },
        )],
    };
    let now = Duration::from_millis(world.now);
    let effects = world.peers[0].gossip.received(now, &message);
    assert!(
        matches!(effects[..], [Effect::Send { to: NodeId(2), .. }]),
        "{effects:?}"
    );
    world.run(40_000);
    for peer in 0..4 {
        assert_eq!(
            world.peers[peer].gossip.standing(NodeId(5)),
            None,
            "node {peer}"
        );
    }
    assert_eq!(
        world.peers[4].map.epoch(),
        without.epoch(),
        "it has learned that it is out"
    );
    assert!(!world.peers[4].gossip.is_member, "and is silent");
}

#[test]
fn the_newest_epoch_reaches_everybody() {
    for count in SIZES {
        let mut times = Vec::new();
        for seed in 0..if count > 50 { 3 } else { 10 } {
            let mut world = World::new(seed, count, TIMING);
            world.loss_percent = 10;
            world.run(20_000 + seed * 97);
            let newer = change(&map(count), &[Change::Replicas(2)]).expect("a map");
            let since = world.now;
            world.give(seed as usize % count, newer.clone());
            while world
                .peers
                .iter()
                .any(|peer| peer.map.epoch() < newer.epoch())
            {
                assert!(world.now < since + 30_000, "seed {seed}: not after 30 s");
                world.run(50);
            }
            times.push(world.now - since);
        }
        println!(
            "{count:3} nodes, 10% loss: a new map is everywhere after {}",
            spread(times)
        );
    }
}

/// Requests must fail over at once, whatever gossip still believes; and come back as soon as it
/// answers.
#[test]
fn a_broken_link_counts_at_once_and_heals_by_an_answer() {
    let mut world = World::new(71, 3, TIMING);
    world.run(20_000);
    let (two, since) = (NodeId(2), world.now);
    // Node 1 reaches nobody, and is reached.
    world.cut.extend([(0, 1), (0, 2)]);
    let told = world.peers[0].gossip.link_down(two, at(world.now));
    let turn = Turn {
        node: two,
        from: Standing::Alive,
        to: Standing::Unreachable,
        why: Why::LinkDown,
        is_new: false,
    };
    assert_eq!(told.first(), Some(&Effect::Turned(turn)));
    assert!(
        matches!(told[1..], [Effect::Send { to: NodeId(2), .. }]),
        "it may be there all the same: {told:?}"
    );
    assert!(!Standing::Unreachable.may_be_asked());
    assert_eq!(
        world.peers[0].gossip.link_down(two, at(world.now)),
        [],
        "told once"
    );
    world.run(60_000);
    let standing = |world: &World, node| world.peers[0].gossip.standing(node);
    assert_eq!(
        standing(&world, two),
        Some(Standing::Unreachable),
        "it lives, but a question is no answer"
    );
    assert_eq!(standing(&world, NodeId(3)), Some(Standing::Alive));
    let convicted = world.turns_to(Standing::Dead, since);
    assert!(
        convicted
            .iter()
            .all(|(_, peer, turn)| *peer != 0 && turn.node == NodeId(1)),
        "{convicted:?}"
    );
    world.cut.clear();
    world.heal(10_000);
    // The same by any answer, for a node that is dead.
    world.peers[1].is_up = false;
    world.run(50_000);
    assert_eq!(standing(&world, two), Some(Standing::Dead));
    assert!(world.peers[0].gossip.link_up(two).is_some());
    assert_eq!(standing(&world, two), Some(Standing::Alive));
    assert_eq!(world.peers[0].gossip.link_up(NodeId(9)), None, "nobody");
}

/// A node that is started must not believe what others remember of one that is long dead.
#[test]
fn a_new_node_takes_nobody_for_alive_that_it_has_not_seen_live() {
    let mut world = World::new(81, 5, TIMING);
    world.run(20_000);
    world.peers[4].is_up = false;
    world.run(60_000);
    world.restart(0, 2000);
    let since = world.now;
    world.run(60_000);
    let of_it: Vec<Turn> = world
        .turns
        .iter()
        .filter(|(at, peer, turn)| *at >= since && *peer == 0 && turn.node == NodeId(5))
        .map(|(_, _, turn)| *turn)
        .collect();
    assert!(
        of_it.iter().all(|turn| turn.to != Standing::Alive),
        "{of_it:?}"
    );
    assert_eq!(of_it.len(), 1, "suspect at first, then dead");
}

#[test]
fn messages_of_another_cluster_are_not_heard() {
    let mut gossip = Gossip::new(NodeId(1), 9, TIMING, &map(3), Duration::ZERO);
    let beats = vec![(
        NodeId(2),
        Heartbeat {
            generation: 1,
            count: 1,
        },
    )];
    let mut message = Message {
        kind: Kind::Ask,
        from: NodeId(2),
        cluster: Uuid(8),
        epoch: 99,
        beats,
    };
    assert_eq!(gossip.received(Duration::ZERO, &message), []);
    assert_eq!(gossip.standing(NodeId(2)), Some(Standing::Suspect));
    message.cluster = Uuid(7);
    let effects = gossip.received(Duration::ZERO, &message);
    assert_eq!(
        effects.len(),
        3,
        "a newer map, a life, an answer: {effects:?}"
    );
    let again = gossip.received(Duration::from_millis(1), &message);
    assert!(
        matches!(again[..], [Effect::Send { .. }]),
        "it is being fetched: {again:?}"
    );
}

/// An answer that was long on its way says nothing of a link that has broken since.
#[test]
fn an_old_answer_heals_no_link() {
    let two = NodeId(2);
    let mut gossip = Gossip::new(NodeId(1), 9, TIMING, &map(3), Duration::ZERO);
    let mut answer = Message {
        kind: Kind::Answer,
        from: two,
        cluster: Uuid(7),
        epoch: 1,
        beats: vec![(
            two,
            Heartbeat {
                generation: 1,
                count: 5,
            },
        )],
    };
    gossip.received(Duration::ZERO, &answer);
    assert_eq!(gossip.standing(two), Some(Standing::Alive));
    gossip.link_down(two, Duration::ZERO);
    gossip.received(Duration::from_millis(1), &answer);
    assert_eq!(gossip.standing(two), Some(Standing::Unreachable));
    answer.beats[0].1.count = 6;
    gossip.received(Duration::from_millis(2), &answer);
    assert_eq!(gossip.standing(two), Some(Standing::Alive));
}

#[test]
fn a_message_is_read_as_it_was_written_and_nothing_else_is_one() {
    let full = (0..NODES_MAX as u16).map(|number| {
        let heartbeat = Heartbeat {
            generation: COUNT_MAX - 1,
            count: COUNT_MAX - 1,
        };
        (NodeId(number), heartbeat)
    });
    for (kind, beats) in [(Kind::Ask, Vec::new()), (Kind::Answer, full.collect())] {
        let message = Message {
            kind,
            from: NodeId(3),
            cluster: Uuid(u128::MAX - 1),
            epoch: u64::MAX,
            beats,
        };
        let bytes = message.encode();
        assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(Message::decode(&bytes), Some(message));
        for cut in (0..bytes.len()).step_by(7) {
            assert_eq!(Message::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(
            Message::decode(&[&bytes[..], &[0]].concat()),
            None,
            "a byte too many"
        );
        for (at, wrong) in [(0, 1), (1, 2), (1, 254), (28, 1), (29, 255)] {
            let mut bytes = bytes.clone();
            bytes[at] = bytes[at].wrapping_add(wrong);
            assert_eq!(Message::decode(&bytes), None, "byte {at}");
        }
    }
    let absurd = Message {
        kind: Kind::Ask,
        from: NodeId(1),
        cluster: Uuid(7),
        epoch: 1,
        beats: vec![(
            NodeId(2),
            Heartbeat {
                generation: COUNT_MAX,
                count: 0,
            },
        )],
    };
    assert_eq!(
        Message::decode(&absurd.encode()),
        None,
        "nothing could follow it"
    );
}
