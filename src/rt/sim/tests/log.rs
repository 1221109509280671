//! A small log: appends, syncs, acknowledges; crashes and recovers. The world finds what is wrong
//! with it if something is, and gives the same run for the same seed.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::super::{NodeId, Options, World};
use crate::rt::{self, BLOCK_BYTES, Bug, File};

const NODE: NodeId = NodeId(1);
const LOG: &str = "data/log";

/// Record `index` fills one block: its number and a checksum.
fn record(index: u64) -> Vec<u8> {
    let mut bytes = vec![index as u8; BLOCK_BYTES];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..BLOCK_BYTES - 4]);
    bytes[BLOCK_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

async fn open_log() -> File {
    let path = Path::new(LOG);
    if let Ok(file) = File::open(path).await {
        return file;
    }
    rt::create_dir_all(Path::new("data")).await.unwrap();
    let file = File::create(path).await.unwrap();
    if !rt::planted(Bug::NoDirectorySync) {
        rt::sync_dir(Path::new("data")).await.unwrap();
    }
    file
}

/// Counts the records that are there, and appends until it is stopped.
async fn serve(acknowledged: Rc<Cell<u64>>, recovered: Rc<Cell<u64>>) {
    let file = open_log().await;
    let mut count = 0;
    while *file
        .read_at(count * BLOCK_BYTES as u64, BLOCK_BYTES)
        .await
        .unwrap()
        == record(count)
    {
        count += 1;
    }
    recovered.set(count);
    loop {
        let mut buffer = file.buffer(BLOCK_BYTES);
        buffer.copy_from_slice(&record(count));
        file.write_at(buffer, count * BLOCK_BYTES as u64)
            .await
            .unwrap();
        if !rt::planted(Bug::NoSync) {
            file.sync().await.unwrap();
        }
        count += 1;
        acknowledged.set(count);
    }
}

/// Three lives of one log. `Err` if an acknowledged record is gone.
fn simulate(seed: u64, planted: Vec<Bug>) -> Result<u64, String> {
    let mut options = Options::random(seed);
    options.planted = planted;
    let world = World::new(options);
    let acknowledged = Rc::new(Cell::new(0));
    for life in 0..3 {
        let recovered = Rc::new(Cell::new(u64::MAX));
        let (cell, other) = (Rc::clone(&acknowledged), Rc::clone(&recovered));
        world.start_node(NODE, 1, move |_: rt::Core<()>| {
            serve(Rc::clone(&cell), Rc::clone(&other))
        });
        let goal = acknowledged.get() + 5;
        let is_recovered = || recovered.get() != u64::MAX;
        assert!(
            world.run_until(is_recovered, Duration::from_secs(60)),
            "seed {seed}: stuck"
        );
        if recovered.get() < acknowledged.get() {
            return Err(format!(
                "life {life}: {} of {}",
                recovered.get(),
                acknowledged.get()
            ));
        }
        assert!(world.run_until(|| acknowledged.get() >= goal, Duration::from_secs(60)));
        world.run_for(Duration::from_micros(seed % 1000));
        world.crash_node(NODE);
    }
    Ok(world.trace_hash())
}

#[test]
fn two_thousand_seeds_lose_no_acknowledged_record_and_repeat_themselves() {
    let start = Instant::now();
    for seed in 0..2_000 {
        let first = simulate(seed, Vec::new()).unwrap_or_else(|lost| panic!("seed {seed}: {lost}"));
        assert_eq!(
            simulate(seed, Vec::new()),
            Ok(first),
            "seed {seed} did not repeat"
        );
    }
    println!("4,000 runs in {:?}", start.elapsed());
}

#[test]
fn a_log_with_a_bug_is_found_out_within_few_seeds() {
    for bug in [Bug::NoSync, Bug::NoDirectorySync] {
        let found = (0..100)
            .filter(|&seed| simulate(seed, vec![bug]).is_err())
            .count();
        assert!(found > 20, "{bug:?} shows in {found} of 100 seeds");
    }
}
