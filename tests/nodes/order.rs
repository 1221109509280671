//! At ONE the last write wins, and of two writes the later is the one whose client has seen the
//! other, whatever the clocks of the nodes say.

use quoit::rt::Bug;

use crate::cluster::Verdict;
use crate::hints::talks::{GRACE, field, get, put};
use crate::scene::{Scene, machine, words};
use crate::seeds::{self, Test};

/// Seeds of the short form.
const SEEDS: u64 = 10;
/// Seeds within which the planted bug must be found.
const FINDING_SEEDS: u64 = 40;

/// One node's clock is ahead, and a key is written by it. A client of another node reads that, and
/// writes.
fn written_after_it_was_read(seed: u64, planted: &[Bug]) -> Verdict<u64> {
    const KEY: std::ops::Range<u64> = 0..1;
    let mut scene = Scene::holding_data(seed, 4, planted)?;
    let (ahead, other) = (scene.chance.u16(..2), scene.chance.u16(2..4));
    scene.world.jump_clock(machine(ahead), 3_600_000);
    scene.talk_to(ahead, |client| put(client, KEY, "first".to_owned(), "one"))?;
    scene.world.run_for(GRACE);
    scene.talk_to(other, |mut client| async move {
        // By one connection, and so by one core.
        let read = client
            .must(&[words("KV.GET key:0 CONSISTENCY one")])
            .await?;
        if field(&read[0], "value").as_deref() != Some("first") {
            return Err(format!("{read:?} is read of what was written"));
        }
        let second = words("KV.PUT key:0 second CONSISTENCY one");
        client.must(&[second]).await.map(drop)
    })?;
    scene.world.run_for(GRACE);
    for node in scene.all() {
        let told = scene.talk_to(node, |client| get(client, KEY))?;
        if told[0].as_ref().is_none_or(|(_, value)| value != "second") {
            return Err(format!("node {node} tells {told:?}"));
        }
    }
    Ok(1)
}

/// Else a client that changes what it has read would be told OK, and its change be nowhere.
#[test]
fn what_is_written_after_a_read_wins_over_what_was_read() {
    let test = Test {
        program: "nodes",
        name: "what_is_written_after_a_read_wins_over_what_was_read",
        seeds: SEEDS,
        twice_every: SEEDS,
    };
    test.run(|seed| written_after_it_was_read(seed, &[]));
}

#[test]
fn a_core_that_does_not_learn_from_what_it_reads_is_found() {
    let bug = Bug::ReadUnheard;
    seeds::finds(bug, 0..FINDING_SEEDS, |seed| {
        written_after_it_was_read(seed, &[bug])
    });
}
