//! The log in a simulated world: what it must bring back after crashes, and what it must refuse.
//!
//! Record `n` has the key `n` and a value that follows from `n`, so that a replay can be checked
//! record by record: what comes back is a run of consecutive numbers, each with its own value.

mod files;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_lite::future;

use super::format::{
    BatchHeader, Entry, FORMAT, Life, SegmentId, decode_batch_header, decode_life,
    encode_segment_header, padded as padded_bytes,
};
use super::*;
use crate::rt::sim::{NodeId, Options, World};
use crate::storage::record::{Meta, Record};
use crate::storage::wal::replay::Found;

const NODE: NodeId = NodeId(1);
const BLOCK: u64 = BLOCK_BYTES as u64;
const LIMITS: WalLimits = WalLimits {
    segment_bytes: 8 * BLOCK,
    batch_bytes_max: 3 * BLOCK_BYTES,
};
const START: Floor = Floor {
    segment: SegmentId(1),
    sequence: 1,
};
const PERIODIC: Durability = Durability::Periodic(Duration::from_millis(50));

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn path_of(segment: u64) -> PathBuf {
    dir().join(SegmentId(segment).file_name(Stream::Records))
}

fn record(number: u64, value_bytes: usize) -> Record {
    let version = Version {
        clock: number,
        coordinator: 1,
    };
    let meta = Meta {
        version,
        expiry: 0,
        tombstone: false,
    };
    let value = vec![number as u8 ^ 0x5A; value_bytes];
    Record::new(meta, number.to_string().as_bytes(), &value)
}

/// Reads the log, and checks that every record is one that [`record`] has made.
async fn read_log(floor: Floor) -> Result<(Vec<u64>, Found)> {
    rt::create_dir_all(&dir()).await?;
    let mut numbers = Vec::new();
    let found = replay::replay(&dir(), Stream::Records, floor, |read| {
        let Entry::Record(view) = read.entry else {
            panic!("only records were written");
        };
        let number = view.meta().version.clock;
        let expected = record(number, view.value().len());
        assert_eq!(
            view.bytes(),
            expected.bytes(),
            "record {number} came back changed"
        );
        numbers.push(number);
        Ok(())
    })
    .await?;
    Ok((numbers, found))
}

/// A log and the number of the last record that was appended.
struct Log {
    wal: Wal,
    lsn: Cell<u64>,
}

impl Log {
    async fn open(floor: Floor, durability: Durability) -> Result<(Log, Vec<u64>)> {
        let (numbers, found) = read_log(floor).await?;
        let lsn = Cell::new(found.last().0.max(crate::storage::RECOVERED.0));
        let options = LogOptions {
            dir: dir(),
            stream: Stream::Records,
            durability,
            limits: LIMITS,
            fate: Rc::default(),
        };
        let wal = Wal::start(options, found).await;
        Ok((Log { wal, lsn }, numbers))
    }

    /// Appends record `number` as soon as it is admitted.
    async fn append(&self, number: u64, value_bytes: usize) -> Result<Lsn> {
        let record = record(number, value_bytes);
        self.wal.wait_admitted(record.bytes().len(), 1).await?;
        self.lsn.set(self.lsn.get() + 1);
        let lsn = Lsn(self.lsn.get());
        self.wal.append_record(lsn, record.bytes());
        Ok(lsn)
    }

    /// Appends it and waits for the acknowledgement.
    async fn put(&self, number: u64, value_bytes: usize) -> Result<()> {
        let lsn = self.append(number, value_bytes).await?;
        self.wal.wait_acknowledged(lsn).await
    }
}

/// A world whose node has written and synced records `1..=count`, each in a batch of its own.
fn world_with(seed: u64, count: u64, value_bytes: usize) -> World {
    let world = World::new(Options::calm(seed));
    world.run_on(NODE, async move {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("it is new");
        for number in 1..=count {
            log.put(number, value_bytes).await.expect("a sound disk");
        }
    });
    world
}

fn replayed(world: &World) -> Result<Vec<u64>> {
    world.run_on(NODE, async {
        read_log(START).await.map(|(numbers, _)| numbers)
    })
}

/// Where the batches of a segment lie: offset and length.
fn batches(world: &World, segment: u64) -> Vec<(u64, usize)> {
    let bytes = world
        .disk(NODE)
        .read(&path_of(segment))
        .expect("the segment is there");
    let mut spans = Vec::new();
    let mut at = BLOCK_BYTES;
    while let Some(header) = decode_batch_header(&bytes[at..], decode_life(&bytes)) {
        let length = BATCH_HEADER_BYTES + header.length as usize;
        spans.push((at as u64, length));
        at += padded_bytes(length);
        if at >= bytes.len() {
            break;
        }
    }
    spans
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn a_torn_last_batch_is_dropped_and_the_log_goes_on() {
    let world = world_with(1, 5, 6000);
    let (last, _) = *batches(&world, 2).last().expect("it has batches");
    let mut bytes = world.disk(NODE).read(&path_of(2)).expect("it is there");
    bytes[last as usize + BLOCK_BYTES..].fill(0);
    world.disk(NODE).put(&path_of(2), &bytes);
    assert_eq!(
        replayed(&world).expect("a crash is no damage"),
        numbers(1..=4)
    );
    world.run_on(NODE, async {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("no damage");
        for number in 5..=9 {
            log.put(number, 6000).await.expect("a sound disk");
        }
    });
    world.crash_node(NODE);
    assert_eq!(
        replayed(&world).expect("the cut tail is no damage later either"),
        numbers(1..=9)
    );
}

#[test]
fn a_damaged_batch_that_was_durable_keeps_the_log_closed() {
    let world = world_with(2, 4, 100);
    let spans = batches(&world, 1);
    for (index, (offset, length)) in spans.iter().enumerate() {
        for at in [*offset, offset + 20, offset + *length as u64 - 1] {
            assert!(world.disk(NODE).flip_bit(&path_of(1), at, 3));
            let read = replayed(&world);
            assert!(world.disk(NODE).flip_bit(&path_of(1), at, 3));
            match read {
                Err(Error::Corrupt {
                    file, offset: told, ..
                }) => {
                    assert_eq!(file, path_of(1), "it names another file");
                    assert_eq!(told, *offset, "it names another place than the damage's");
                }
                Ok(found) => {
                    assert!(index == spans.len() - 1, "batch {index} was lost silently");
                    assert_eq!(found, numbers(1..=3), "only the last may be taken for torn");
                }
                Err(error) => panic!("batch {index}: {error}"),
            }
        }
    }
}

#[test]
fn no_flipped_bit_gives_a_wrong_record_or_loses_an_earlier_one() {
    let world = world_with(3, 12, 5000);
    let mut random = fastrand::Rng::with_seed(3);
    let all = numbers(1..=12);
    let (mut refused, mut torn, mut unhurt) = (0, 0, 0);
    let segments: Vec<u64> = (1..20)
        .filter(|&id| {
            world.disk(NODE).read(&path_of(id)).is_some() && !batches(&world, id).is_empty()
        })
        .collect();
    assert!(segments.len() >= 3, "the log is spread over several files");
    for segment in segments {
        let spans = batches(&world, segment);
        let heads = spans.iter().flat_map(|(at, _)| *at..at + 48);
        let bodies = spans
            .iter()
            .map(|(at, length)| at + random.u64(0..*length as u64));
        let mut places: Vec<u64> = (0..32).chain(heads).chain(bodies).collect();
        places.extend((0..60).map(|_| random.u64(0..LIMITS.segment_bytes)));
        for at in places {
            let bit = random.u8(0..8);
            world.disk(NODE).flip_bit(&path_of(segment), at, bit);
            match replayed(&world) {
                Err(Error::Corrupt { file, .. }) => {
                    assert_eq!(file, path_of(segment), "byte {at}");
                    refused += 1;
                }
                // There is no later batch that could know of the last one.
                Ok(found) if found == numbers(1..=11) => torn += 1,
                Ok(found) => {
                    assert_eq!(found, all, "segment {segment}, byte {at}: silently lost");
                    unhurt += 1;
                }
                Err(error) => panic!("segment {segment}, byte {at}: {error}"),
            }
            world.disk(NODE).flip_bit(&path_of(segment), at, bit);
        }
    }
    assert!(
        refused > 300 && torn > 20 && unhurt > 50,
        "{refused} {torn} {unhurt}"
    );
}

#[test]
fn a_missing_segment_in_the_middle_is_damage() {
    let world = world_with(4, 12, 5000);
    assert!(!batches(&world, 3).is_empty(), "it is in the middle");
    for missing in [1, 2] {
        let whole = world.disk(NODE).read(&path_of(missing)).expect("there");
        world.disk(NODE).remove(&path_of(missing));
        let error = replayed(&world).expect_err("acknowledged records are gone");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        world.disk(NODE).put(&path_of(missing), &whole);
    }
    assert_eq!(replayed(&world).expect("all is back"), numbers(1..=12));
}

#[test]
fn a_segment_of_a_newer_format_is_refused_by_name() {
    let world = world_with(5, 2, 10);
    let mut bytes = world.disk(NODE).read(&path_of(1)).expect("it is there");
    encode_segment_header(
        Stream::Records,
        SegmentId(1),
        8 * BLOCK,
        Life(1),
        &mut bytes[..BLOCK_BYTES],
    );
    bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[8..12]), &bytes[16..40]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    world.disk(NODE).put(&path_of(1), &bytes);
    let error = replayed(&world).expect_err("nobody knows what it says");
    assert!(matches!(error, Error::Setup(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains(&SegmentId(1).file_name(Stream::Records).to_string())
    );
}

/// What a test knows of a log whose records become part of tables now and then.
#[derive(Default)]
struct Progress {
    /// Records up to this one were acknowledged.
    acknowledged: Cell<u64>,
    /// Records up to this one are in a table, so to speak.
    flushed: Cell<u64>,
    /// The last record that was tried.
    tried: Cell<u64>,
    /// Where the log begins.
    floor: Cell<Option<Floor>>,
}

impl Progress {
    fn floor(&self) -> Floor {
        self.floor.get().unwrap_or(START)
    }
}

/// Appends, and lets go of what is flushed, until the power goes.
async fn write_and_flush(progress: Rc<Progress>) {
    let (log, found) = Log::open(progress.floor(), Durability::Sync)
        .await
        .expect("no damage");
    let acknowledged = progress.acknowledged.get();
    let first = found.last().map_or(acknowledged, |last| *last) + 1;
    assert!(first > acknowledged, "acknowledged records are gone");
    for number in first.. {
        progress.tried.set(number);
        log.put(number, 3000).await.expect("a sound disk");
        progress.acknowledged.set(number);
        if number.is_multiple_of(5) {
            // As after a flush: the manifest has the floor, then the log lets go.
            let floor = log.wal.floor(Lsn(log.lsn.get()));
            progress.flushed.set(number);
            progress.floor.set(Some(floor));
            rt::sleep(Duration::from_millis(1)).await;
            log.wal.release(floor);
        }
    }
}

/// Checks that a replay gives what is not in tables, and nothing of an earlier life.
fn check_replay(world: &World, progress: &Progress) -> Result<(), String> {
    let floor = progress.floor();
    let read = world.run_on(NODE, async move { read_log(floor).await });
    let (found, _) = read.map_err(|error| error.to_string())?;
    let flushed = progress.flushed.get();
    let first = found.first().copied().unwrap_or(flushed + 1);
    let last = found.last().copied().unwrap_or(flushed);
    let acknowledged = progress.acknowledged.get();
    let rules = [
        (found.iter().copied().eq(first..=last), "out of order"),
        (first <= flushed + 1, "a hole behind the tables"),
        (last >= acknowledged, "acknowledged and gone"),
        (last <= progress.tried.get(), "an earlier life's"),
    ];
    progress.acknowledged.set(last);
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(format!("{what}: {found:?}")),
        None => Ok(()),
    }
}

#[test]
fn a_recycled_segment_never_brings_back_its_earlier_life() {
    for seed in 0..150 {
        let world = World::new(Options::random(seed));
        let progress = Rc::new(Progress::default());
        for life in 0..4u64 {
            let shared = Rc::clone(&progress);
            world.start_node(NODE, 1, move |_: rt::Core<()>| {
                write_and_flush(Rc::clone(&shared))
            });
            let goal = progress.acknowledged.get() + 40;
            let is_there = || progress.acknowledged.get() >= goal;
            assert!(world.run_until(is_there, Duration::from_secs(600)));
            world.run_for(Duration::from_micros(seed * 37 % 2000));
            world.crash_node(NODE);
            check_replay(&world, &progress)
                .unwrap_or_else(|what| panic!("seed {seed}, life {life}: {what}"));
        }
        let files = world.disk(NODE).files();
        let newest = files
            .iter()
            .filter_map(|path| {
                SegmentId::from_file_name(Stream::Records, path.file_name()?.to_str()?)
            })
            .max();
        assert!(
            newest.is_some_and(|id| id.0 > 2 * files.len() as u64),
            "seed {seed}: nothing was used again: {files:?}"
        );
    }
}

/// Appends until the power goes; says what was durable by its own word.
async fn write_periodically(next: u64, known: Rc<Cell<u64>>, tried: Rc<Cell<u64>>) {
    let (log, _) = Log::open(START, PERIODIC)
        .await
        .expect("a crash is no damage");
    let mut chance = next;
    for number in next.. {
        tried.set(number);
        let lsn = log
            .append(number, (number * 997 % 9000) as usize)
            .await
            .expect("ok");
        assert!(
            log.wal.is_acknowledged(lsn),
            "periodic does not make anybody wait"
        );
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if chance >> 60 == 0 {
            log.wal.wait_durable(lsn).await.expect("a sound disk");
            known.set(number);
        }
        rt::sleep(Duration::from_micros(chance >> 52)).await;
    }
}

#[test]
fn periodic_loses_only_the_unsynced_end_and_a_hole_is_no_damage() {
    let mut lost = 0;
    for seed in 0..400 {
        let world = World::new(Options::random(seed));
        let (known, tried) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for life in 0..4 {
            let (one, other) = (Rc::clone(&known), Rc::clone(&tried));
            let next = known.get() + 1;
            world.start_node(NODE, 1, move |_: rt::Core<()>| {
                write_periodically(next, one.clone(), other.clone())
            });
            world.run_for(Duration::from_micros(20_000 + seed * 7919 % 80_000));
            world.crash_node(NODE);
            let found = replayed(&world)
                .unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
            let last = found.last().copied().unwrap_or(0);
            assert_eq!(
                found,
                numbers(1..=last),
                "seed {seed}, life {life}: not one after the other"
            );
            assert!(
                last >= known.get(),
                "seed {seed}, life {life}: durable and gone"
            );
            lost += tried.get().saturating_sub(last);
            known.set(last);
        }
    }
    assert!(lost > 1000, "a test without losses shows nothing: {lost}");
}

#[test]
fn a_failed_write_or_sync_ends_all_acknowledgements() {
    for (write, sync) in [(1.0, 0.0), (0.0, 1.0)] {
        for durability in [Durability::Sync, PERIODIC] {
            let world = world_with(6, 3, 100);
            let disk = world.disk(NODE);
            world.run_on(NODE, async move {
                let (log, _) = Log::open(START, durability).await.expect("sound so far");
                let before = log.append(4, 10).await.expect("sound so far");
                log.wal.wait_durable(before).await.expect("sound so far");
                disk.change_faults(|faults| {
                    (faults.eio_write, faults.eio_sync) = (write, sync);
                });
                let doomed = log.append(5, 10).await.expect("admitted");
                let answer = log.wal.wait_durable(doomed).await;
                assert!(matches!(answer, Err(Error::Uncertain)), "{answer:?}");
                disk.change_faults(|faults| (faults.eio_write, faults.eio_sync) = (0.0, 0.0));
                rt::sleep(Duration::from_secs(2)).await;
                let answer = log.wal.wait_acknowledged(doomed).await;
                assert!(
                    matches!(answer, Err(Error::Uncertain)),
                    "it was acknowledged after all"
                );
                assert_eq!(log.wal.admit(10, 1), Admission::Failed);
                let refusal = log.append(6, 10).await;
                assert!(matches!(refusal, Err(Error::LogFailed)), "{refusal:?}");
                assert!(log.wal.is_acknowledged(before), "what was durable stays so");
                assert!(log.wal.has_failed());
                assert!(
                    log.wal.stop().await.is_err(),
                    "a stop that says all is well"
                );
            });
            world.crash_node(NODE);
            let found = replayed(&world).expect("a failed disk is no damage");
            assert!(
                found == numbers(1..=4) || found == numbers(1..=5),
                "{found:?}"
            );
        }
    }
}

#[test]
fn who_waits_when_the_log_fails_is_told() {
    let world = world_with(7, 1, 100);
    let disk = world.disk(NODE);
    world.run_on(NODE, async move {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("sound");
        let log = Rc::new(log);
        disk.change_faults(|faults| faults.eio_sync = 1.0);
        // The first goes into a batch at once, the second waits for the next batch.
        let first = log.append(2, 10).await.expect("admitted");
        rt::sleep(Duration::from_micros(5)).await;
        let second = log.append(3, 10).await.expect("admitted");
        let waiting = Rc::clone(&log);
        let third = rt::spawn(async move { waiting.append(4, 3 * BLOCK_BYTES).await });
        for lsn in [first, second] {
            let answer = log.wal.wait_acknowledged(lsn).await;
            assert!(
                matches!(answer, Err(Error::Uncertain)),
                "{lsn:?}: {answer:?}"
            );
        }
        let answer = third.await;
        assert!(
            matches!(answer, Err(Error::LogFailed)),
            "who was not admitted has written nothing"
        );
    });
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space() {
    let world = world_with(8, 1, 100);
    let disk = world.disk(NODE);
    world.run_on(NODE, async move {
        let (log, found) = Log::open(START, Durability::Sync).await.expect("sound");
        disk.leave_free(LIMITS.segment_bytes + 2 * BLOCK);
        let mut next = found.len() as u64 + 1;
        let refusal = loop {
            match log.put(next, 5000).await {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
            assert!(next < 100, "the disk was never full");
        };
        assert!(matches!(refusal, Error::DiskFull), "{refusal}");
        assert!(log.wal.is_refused());
        assert!(!log.wal.has_failed(), "a full disk poisons nothing");
        disk.leave_free(10 * LIMITS.segment_bytes);
        rt::sleep(Duration::from_secs(2)).await;
        for number in next..next + 3 {
            log.put(number, 5000).await.expect("there is space again");
        }
        assert!(!log.wal.is_refused());
    });
    world.crash_node(NODE);
    let found = replayed(&world).expect("no damage");
    assert_eq!(found, numbers(1..=found.len() as u64));
    assert!(found.len() > 4);
}

#[test]
fn a_record_too_large_for_the_disk_does_not_keep_the_others_out() {
    let world = world_with(9, 1, 100);
    let disk = world.disk(NODE);
    world.run_on(NODE, async move {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("sound");
        disk.leave_free(3 * LIMITS.segment_bytes);
        let refusal = log.put(2, 64 * BLOCK_BYTES).await;
        assert!(matches!(refusal, Err(Error::DiskFull)), "{refusal:?}");
        for number in 2..=10 {
            log.put(number, 5000)
                .await
                .expect("there is space for an ordinary segment");
            rt::sleep(Duration::from_millis(600)).await;
        }
    });
}

#[test]
fn records_larger_than_a_segment_or_a_batch_come_back_whole() {
    let world = world_with(10, 1, 100);
    let sizes = [
        3 * BLOCK_BYTES,
        9 * BLOCK_BYTES,
        50 * BLOCK_BYTES,
        10,
        20 * BLOCK_BYTES,
    ];
    world.run_on(NODE, async move {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("sound");
        for (index, bytes) in sizes.into_iter().enumerate() {
            log.put(2 + index as u64, bytes).await.expect("sound");
        }
    });
    world.crash_node(NODE);
    assert_eq!(replayed(&world).expect("sound"), numbers(1..=6));
}

#[test]
fn a_large_record_gets_its_turn_among_many_small_ones() {
    let world = World::new(Options::calm(11));
    let done = world.run_on(NODE, async {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("new");
        let log = Rc::new(log);
        let next = Rc::new(Cell::new(1));
        let busy: Vec<_> = (0..20)
            .map(|_| {
                let (log, next) = (Rc::clone(&log), Rc::clone(&next));
                rt::spawn(async move {
                    loop {
                        let number = next.get();
                        next.set(number + 1);
                        log.put(number, 50).await.expect("sound");
                    }
                })
            })
            .collect();
        rt::sleep(Duration::from_millis(5)).await;
        let large = async { log.put(0, 3 * BLOCK_BYTES).await.is_ok() };
        let patience = async {
            rt::sleep(Duration::from_secs(2)).await;
            false
        };
        let done = future::or(large, patience).await;
        drop(busy);
        done
    });
    assert!(done, "small writes kept a large one out for two seconds");
}

#[test]
fn a_crash_during_recovery_loses_nothing() {
    for seed in 0..200 {
        let world = World::new(Options::random(seed));
        let acknowledged = Rc::new(Cell::new(0));
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..12 {
            let acked = Rc::clone(&acknowledged);
            world.start_node(NODE, 1, move |_: rt::Core<()>| {
                let acked = acked.clone();
                async move {
                    let (log, found) = Log::open(START, Durability::Sync).await.expect("no damage");
                    let last = found.last().copied().unwrap_or(0);
                    assert_eq!(found, numbers(1..=last), "not one after the other");
                    assert!(last >= acked.get(), "acknowledged and gone");
                    for number in last + 1.. {
                        log.put(number, 4500).await.expect("a sound disk");
                        acked.set(number);
                    }
                }
            });
            world.run_for(Duration::from_micros(random.u64(0..40_000)));
            match random.bool() {
                true => world.crash_node(NODE),
                false => world.kill_node(NODE),
            }
        }
        let found = replayed(&world).expect("no damage");
        assert!(found.len() as u64 >= acknowledged.get(), "seed {seed}");
    }
}

#[test]
fn all_entries_of_one_append_survive_together_or_not_at_all() {
    for seed in 0..100 {
        let world = World::new(Options::random(seed));
        let acknowledged = Rc::new(Cell::new(0));
        let acked = Rc::clone(&acknowledged);
        world.start_node(NODE, 1, move |_: rt::Core<()>| {
            let acked = acked.clone();
            async move {
                let (log, _) = Log::open(START, Durability::Sync).await.expect("new");
                for round in 0.. {
                    let mut bytes = Vec::new();
                    for number in round * 5 + 1..=round * 5 + 5 {
                        format::put_record(record(number, 2000).bytes(), &mut bytes);
                    }
                    log.wal.wait_admitted(bytes.len(), 5).await.expect("sound");
                    log.lsn.set(log.lsn.get() + 1);
                    let lsn = Lsn(log.lsn.get());
                    log.wal
                        .append_entries(lsn, 5, bytes.len(), |out| out.put(&bytes));
                    log.wal.wait_acknowledged(lsn).await.expect("sound");
                    acked.set(round * 5 + 5);
                }
            }
        });
        world.run_for(Duration::from_micros(10_000 + seed * 331));
        world.crash_node(NODE);
        let found = replayed(&world).expect("no damage");
        assert_eq!(
            found.len() % 5,
            0,
            "seed {seed}: a part of an append survived"
        );
        assert!(found.len() as u64 >= acknowledged.get(), "seed {seed}");
    }
}

#[test]
fn a_clean_stop_leaves_everything_durable() {
    for durability in [Durability::Sync, PERIODIC] {
        let world = World::new(Options::random(13));
        world.run_on(NODE, async move {
            let (log, _) = Log::open(START, durability).await.expect("new");
            for number in 1..=30 {
                log.append(number, 700).await.expect("sound");
            }
            log.wal.stop().await.expect("sound");
            assert_eq!(log.wal.admit(1, 1), Admission::Failed, "it takes no more");
        });
        world.crash_node(NODE);
        assert_eq!(replayed(&world).expect("no damage"), numbers(1..=30));
    }
}

#[test]
fn batches_hold_more_than_one_record_when_many_wait() {
    let world = World::new(Options::calm(14));
    world.run_on(NODE, async {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("new");
        let log = Rc::new(log);
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (1..=40)
            .map(|number| {
                let (log, order) = (Rc::clone(&log), Rc::clone(&order));
                rt::spawn(async move {
                    log.put(number, 20).await.expect("sound");
                    order.borrow_mut().push(number);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(order.borrow().len(), 40);
        let written = log.wal.0.state.borrow().sequence_written;
        assert!(
            written < 10,
            "{written} batches for 40 writers: no group commit"
        );
    });
}

/// Else there would be two groups of clients for ever, each of which waits for the other's sync.
#[test]
fn clients_that_come_back_together_share_a_batch() {
    const CLIENTS: u64 = 24;
    const WRITES: u64 = 40;
    let mut options = Options::calm(15);
    options.disk.sync_us = (3_000, 5_000);
    let world = World::new(options);
    world.run_on(NODE, async {
        let (log, _) = Log::open(START, Durability::Sync).await.expect("new");
        let log = Rc::new(log);
        let client = |client| {
            let log = Rc::clone(&log);
            rt::spawn(async move {
                for write in 0..WRITES {
                    rt::sleep(Duration::from_micros(50 + 17 * client % 300)).await;
                    log.put(client * WRITES + write, 20).await.expect("sound");
                }
            })
        };
        for task in (0..CLIENTS).map(client).collect::<Vec<_>>() {
            task.await;
        }
        let written = log.wal.0.state.borrow().sequence_written;
        assert!(
            written < WRITES * 3 / 2,
            "{written} batches for {WRITES} writes of each client"
        );
    });
}
