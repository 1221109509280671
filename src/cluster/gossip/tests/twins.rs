//! Two processes that run as one node, as from a copied data directory: exactly one goes on. And
//! what may look like that to a healthy node, which goes on.

use super::*;

impl World {
    /// Another process runs as node `of`, too, from now on; its place among the peers.
    fn start_twin(&mut self, of: usize, generation: u64) -> usize {
        let (now, map) = (at(self.now), self.peers[of].map.clone());
        let own = NodeId(of as u16 + 1);
        self.peers.push(Peer {
            gossip: Gossip::new(own, generation, self.timing, &map, now),
            map,
            is_up: true,
            paused_until: 0,
        });
        let twin = self.peers.len() - 1;
        self.twins.insert(of, twin);
        self.plan(self.now, Event::Tick(twin));
        twin
    }
}

/// One of two goes on, and nothing is renumbered any more.
fn one_is_left(world: &mut World, pair: [usize; 2], case: &str) -> usize {
    world.run(60_000);
    let left: Vec<usize> = pair
        .into_iter()
        .filter(|peer| world.peers[*peer].is_up)
        .collect();
    let [left] = left[..] else {
        panic!("{case}: {left:?} of {pair:?} are left");
    };
    let renumbered = world.renumbered.len();
    world.run(60_000);
    assert!(world.peers[left].is_up, "{case}: none is left");
    assert_eq!(
        world.renumbered.len(),
        renumbered,
        "{case}: it goes on and on"
    );
    assert_eq!(world.fenced.len(), 1, "{case}: {:?}", world.fenced);
    left
}

/// Else both would take writes and answer reads, each without what the other has.
#[test]
fn of_two_processes_of_one_identity_the_older_one_ends() {
    for (count, seed) in (0..40).map(|seed| ([3, 5, 30][seed % 3], seed as u64)) {
        for generation in [2000, 1001, 1000, 7] {
            let mut world = World::new(seed, count, TIMING);
            (world.loss_percent, world.delay_max) = ([0, 20][seed as usize % 2], 100);
            world.run(20_000 + seed * 31);
            let twin = world.start_twin(1, generation);
            let case = format!("seed {seed}, {count} nodes, generation {generation}");
            let left = one_is_left(&mut world, [1, twin], &case);
            assert_eq!(left, twin, "{case}: the older one goes on");
        }
    }
}

/// Both start at once: it does not matter which one ends.
#[test]
fn of_two_that_start_at_the_same_moment_one_ends() {
    for seed in 0..60 {
        let mut world = World::new(seed, 5, TIMING);
        world.delay_max = 300;
        world.run(20_000);
        world.peers[1].is_up = false;
        world.run(5_000);
        // Their clocks may be behind, or they were copied before the first start. They differ by
        // chance.
        let generation = [3000, 3, 1000][seed as usize % 3];
        world.restart(1, generation);
        let twin = world.start_twin(1, generation + 1 + seed % 7);
        one_is_left(&mut world, [1, twin], &format!("seed {seed}"));
    }
}

/// Else a node that is started often, is slow or stands still could end itself, with what is told
/// of its earlier lives. (In a world without twins nobody may be fenced: `World` sees to that.)
#[test]
fn restarts_pauses_and_old_news_end_nobody() {
    for seed in 0..30 {
        let mut world = World::new(seed, 5, TIMING);
        (world.loss_percent, world.delay_max) = (20, 4_000);
        world.run(20_000);
        for life in 1..10 {
            let pause = world.below(3_000);
            match world.below(3) {
                0 => world.peers[2].paused_until = world.now + 20 * pause,
                1 => world.restart(2, 1000 + life),
                _ => {
                    world.peers[2].is_up = false;
                    world.run(pause);
                    world.restart(2, 1000 + life);
                }
            }
            world.run(pause);
        }
        world.run(60_000);
        world.loss_percent = 0;
        world.heal(60_000);
    }
}

/// What one node alone knows of an earlier life, and tells late, is no process that lives; but it
/// must be outbid in the end, or nobody would hear this one.
#[test]
fn a_later_start_that_shows_no_life_is_outbid_and_one_that_does_ends_this_one() {
    let own = NodeId(1);
    let mut gossip = Gossip::new(own, 9, TIMING, &map(3), Duration::ZERO);
    let hear = |gossip: &mut Gossip, now, generation, count| {
        let message = Message {
            kind: Kind::Answer,
            from: NodeId(2),
            cluster: Uuid(7),
            epoch: 1,
            beats: vec![(own, Heartbeat { generation, count })],
        };
        gossip.received(at(now), &message)
    };
    let mut now = 0;
    let mut wait = |gossip: &mut Gossip, rounds| {
        let mut effects = Vec::new();
        for _ in 0..rounds {
            now += 1000;
            effects.extend(gossip.tick(at(now), now));
        }
        effects.retain(|effect| matches!(effect, Effect::Renumbered(_) | Effect::Fenced(_)));
        (now, effects)
    };
    let (now, _) = wait(&mut gossip, 1);
    assert_eq!(hear(&mut gossip, now, 9, 1), [], "it was heard");
    assert_eq!(hear(&mut gossip, now, 50, 7), []);
    let (now, told) = wait(&mut gossip, 5);
    assert_eq!(hear(&mut gossip, now, 50, 7), [], "the same again");
    assert_eq!(hear(&mut gossip, now, 50, 6), [], "older news");
    assert_eq!(told, []);
    let (now, told) = wait(&mut gossip, 7);
    assert_eq!(told, [Effect::Renumbered(60)]);
    assert_eq!(hear(&mut gossip, now, 60, 0), [], "it is heard again");
    assert_eq!(hear(&mut gossip, now, 70, 1), []);
    assert_eq!(hear(&mut gossip, now, 70, 2), [Effect::Fenced(70)]);
}
