//! Partitions on disk and in memory: the same answers, a known number of reads, little memory, and
//! no damage unnoticed.

use super::*;

/// A world in which each read takes a millisecond.
fn slow_world() -> World {
    let mut options = Options::calm(1);
    options.disk.latency_us = (1000, 1000);
    let world = World::new(options);
    on(&world, async {
        rt::create_dir_all(&dir()).await.expect("a sound disk");
    });
    world
}

/// What `work` gives, and how many reads it took.
async fn counted<T>(work: impl Future<Output = T>) -> (T, u128) {
    let before = rt::now();
    let done = work.await;
    (done, (rt::now() - before).as_micros() / 1000)
}

fn many_items(count: u32) -> Vec<Item> {
    let items = (0..count).map(|key| item(&key.to_le_bytes(), &[1; 30], meta(1)));
    sorted(items.collect())
}

fn place(item: &Item) -> KeyRef<'_> {
    KeyRef {
        position: item.position,
        ..key_ref(item)
    }
}

/// The numbers of those items that are the first or the last of a partition.
fn borders(table: &Table, items: &[Item]) -> Vec<usize> {
    let part = |at: usize| {
        let item: &Item = &items[at];
        table.parts.top.find(item.position, item.record.key())
    };
    let is_border = |at: &usize| part(*at) != part(at - 1);
    let firsts = (1..items.len()).filter(is_border);
    firsts.flat_map(|at| [at - 1, at]).collect()
}

#[test]
fn a_lookup_by_need_costs_one_read_more_unless_the_cache_has_the_partition() {
    on(&slow_world(), async {
        let items = many_items(40_000);
        let info = write(1, &items).await.expect("a sound disk");
        let table = open(&info, Mode::ByNeed).await.expect("undamaged");
        assert!(table.parts.top.partitions() > 3, "nothing is tested");
        for item in items.iter().step_by(997) {
            let key = key_ref(item);
            assert!(table.may_contain(&key), "memory cannot know");
            let (found, reads) = counted(table.get(&key, &uncached())).await;
            assert_eq!(found.expect("undamaged").as_ref(), Some(&item.record));
            assert_eq!(reads, 2, "the partition and the block");
        }
        let blocks = Caches::new(64 << 20).blocks;
        let (mut all, mut blocks_read) = (0, 0);
        let strangers = (50_000..60_000u32).map(u32::to_le_bytes);
        for stranger in strangers.filter(|key| table.may_contain(&KeyRef::of(key))) {
            let (found, reads) = counted(table.get(&KeyRef::of(&stranger), &blocks)).await;
            assert_eq!(found.expect("undamaged"), None);
            all += 1;
            blocks_read += reads;
        }
        let stats = blocks.partition_stats();
        let partitions = table.parts.top.partitions() as u64;
        assert_eq!(stats.reads, partitions, "each is read once");
        assert_eq!(stats.hits + stats.reads, all);
        let passed = (blocks_read as u64 - partitions) as f64 / all as f64;
        println!("{:.2}% of {all} strangers cost a block", passed * 100.0);
        assert!(passed < 0.013, "{passed} of strangers pass the filters");
        assert!(all > 9_000);
    });
}

#[test]
fn keys_at_the_borders_of_partitions_are_found_and_walks_pass_over_them() {
    for seed in 0..6 {
        let world = world(seed, &[]);
        on(&world, async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut items = many_items(40_000);
            // In every other table only few positions: partitions end within them.
            if seed % 2 == 1 {
                let few = random.u32(1..4);
                items.iter_mut().for_each(|item| item.position.0 %= few);
                items = sorted(items);
            }
            let info = write(seed, &items).await.expect("a sound disk");
            for mode in MODES {
                let table = Rc::new(open(&info, mode).await.expect("undamaged"));
                let borders = borders(&table, &items);
                assert!(borders.len() > 5, "there are hardly any borders");
                let mut last = LastUsed::default();
                for at in borders {
                    let key = place(&items[at]);
                    let may = table.ask(&key, &mut last).await.expect("undamaged");
                    assert!(may, "seed {seed}, {mode:?}: item {at} is hidden");
                    let found = table.get(&key, &uncached()).await.expect("undamaged");
                    assert_eq!(
                        found.as_ref(),
                        Some(&items[at].record),
                        "seed {seed}, {mode:?}"
                    );
                    let after = Rc::clone(&table);
                    let mut walk = TableCursor::new(after, items[at].after(), 10_000);
                    let chunk = walk.next_chunk().await.expect("undamaged");
                    let expected = &items[at + 1..];
                    assert_eq!(
                        chunk,
                        expected[..chunk.len()],
                        "seed {seed}, {mode:?}: after {at}"
                    );
                    assert_eq!(chunk.is_empty(), expected.is_empty());
                }
                let all = read_all(table, Bound::START).await.expect("undamaged");
                assert_eq!(all, items, "seed {seed}, {mode:?}");
            }
        });
    }
}

#[test]
fn a_filter_says_the_same_from_disk_as_from_memory() {
    on(&world(7, &[]), async {
        let items = many_items(40_000);
        let info = write(1, &items).await.expect("a sound disk");
        let loaded = open(&info, Mode::Loaded).await.expect("undamaged");
        let by_need = open(&info, Mode::ByNeed).await.expect("undamaged");
        let mut last = LastUsed::default();
        let asked = sorted(
            (20_000..80_000)
                .map(|it: u32| item(&it.to_le_bytes(), b"", meta(1)))
                .collect(),
        );
        let mut passed = 0;
        for item in &asked {
            let key = key_ref(item);
            let said = by_need.ask(&key, &mut last).await.expect("undamaged");
            assert_eq!(said, loaded.may_contain(&key));
            assert_eq!(said, loaded.ask(&key, &mut last).await.expect("undamaged"));
            passed += u32::from(said);
        }
        assert!(
            (20_000..21_000).contains(&passed),
            "{passed} of 20,000 and 40,000 strangers"
        );
    });
}

#[test]
fn keys_in_their_order_read_each_partition_once() {
    on(&slow_world(), async {
        let items = many_items(40_000);
        let info = write(1, &items).await.expect("a sound disk");
        let table = open(&info, Mode::ByNeed).await.expect("undamaged");
        let asked = async {
            let mut last = LastUsed::default();
            for item in items.iter().step_by(7) {
                let may = table.ask(&key_ref(item), &mut last).await;
                assert!(may.expect("undamaged"));
            }
        };
        let ((), reads) = counted(asked).await;
        assert_eq!(reads, table.parts.top.partitions() as u128);
    });
}

#[test]
fn a_table_may_be_loaded_and_let_go_while_it_is_walked_over() {
    for seed in 0..20 {
        on(&world(seed, &[]), async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let items = many_items(30_000);
            let info = write(1, &items).await.expect("a sound disk");
            let table = Rc::new(open(&info, Mode::ByNeed).await.expect("undamaged"));
            let other = Rc::clone(&table);
            let task = rt::spawn(async move {
                for turn in 0.. {
                    other.set_resident(turn % 2 == 0);
                    other.load().await.expect("undamaged");
                    rt::sleep(std::time::Duration::from_micros(random.u64(..2000))).await;
                    if Rc::strong_count(&other) == 1 {
                        return turn;
                    }
                }
                unreachable!("it goes on for long");
            });
            let all = read_all(Rc::clone(&table), Bound::START).await;
            assert_eq!(all.expect("undamaged"), items, "seed {seed}");
            for item in items.iter().step_by(501) {
                let found = table.get(&key_ref(item), &uncached()).await;
                assert_eq!(found.expect("undamaged").as_ref(), Some(&item.record));
            }
            drop(table);
            assert!(task.await > 4, "seed {seed}: nothing changed meanwhile");
        });
    }
}

#[test]
fn what_a_table_takes_is_counted_and_given_back() {
    on(&world(8, &[]), async {
        let info = write(1, &many_items(40_000)).await.expect("a sound disk");
        let table = open(&info, Mode::ByNeed).await.expect("undamaged");
        let (top, estimate) = (table.memory_bytes(), table.loaded_bytes());
        assert_eq!(top, table.top_bytes());
        table.load().await.expect("undamaged");
        assert_eq!(table.memory_bytes(), top, "loaded though it is not to be");
        table.set_resident(true);
        table.load().await.expect("undamaged");
        assert_eq!(table.memory_bytes(), top + table.loaded_bytes());
        assert!(table.loaded_bytes() <= estimate, "the estimate was too low");
        assert!(
            table.loaded_bytes() * 10 > estimate * 9,
            "it was much too high"
        );
        assert!(top * 50 < estimate, "the top is not small: {top}");
        table.set_resident(false);
        assert_eq!(table.memory_bytes(), top);
    });
}

#[test]
fn a_damaged_partition_is_named_and_hides_no_other() {
    let world = world(9, &[]);
    let handle = world.handle();
    on(&world, async move {
        let items = many_items(40_000);
        let info = write(1, &items).await.expect("a sound disk");
        let (path, disk) = (info.path(&dir()), handle.disk(NODE));
        let table = Rc::new(open(&info, Mode::ByNeed).await.expect("undamaged"));
        let top = &table.parts.top;
        let at = top.partitions() / 2;
        assert!(disk.flip_bit(&path, top.offset(at) + 77, 3));
        let mut last = LastUsed::default();
        let mut damaged = 0;
        for item in items.iter().step_by(11) {
            let key = key_ref(item);
            let found = table.get(&key, &uncached()).await;
            if top.find(key.position, key.key) != at {
                assert_eq!(found.expect("undamaged").as_ref(), Some(&item.record));
                continue;
            }
            damaged += 1;
            for failure in [found.err(), table.ask(&key, &mut last).await.err()] {
                match failure {
                    Some(Error::Corrupt { file, offset, .. }) => {
                        assert_eq!((&file, offset), (&path, top.offset(at)));
                    }
                    other => panic!("a damaged partition is {other:?}"),
                }
            }
        }
        assert!(damaged > 100);
        let walked = read_all(Rc::clone(&table), Bound::START).await;
        assert!(
            matches!(walked, Err(Error::Corrupt { .. })),
            "a walk has left some out"
        );
        table.set_resident(true);
        let loaded = table.load().await;
        assert!(
            matches!(loaded, Err(Error::Corrupt { .. })),
            "it was loaded"
        );
        assert!(!table.is_loaded());
    });
}

#[test]
fn a_partition_at_a_wrong_place_is_noticed() {
    let world = world(10, &[]);
    let handle = world.handle();
    on(&world, async move {
        let items = many_items(40_000);
        let (info, twin) = (write(1, &items).await, write(3, &items).await);
        let (info, twin) = (info.expect("a sound disk"), twin.expect("a sound disk"));
        let disk = handle.disk(NODE);
        let table = open(&info, Mode::ByNeed).await.expect("undamaged");
        let top = &table.parts.top;
        let range = top.offset(1) as usize..top.end(1) as usize;
        let mut bytes = disk.read(&info.path(&dir())).expect("it was written");
        let others = disk.read(&twin.path(&dir())).expect("it was written");
        assert_eq!(bytes.len(), others.len());
        bytes[range.clone()].copy_from_slice(&others[range]);
        disk.put(&info.path(&dir()), &bytes);
        let is_there = |item: &&Item| top.find(item.position, item.record.key()) == 1;
        let item = items.iter().find(is_there).expect("some key");
        let spoilt = open(&info, Mode::ByNeed)
            .await
            .expect("its top is as it was");
        let found = spoilt.get(&key_ref(item), &uncached()).await;
        assert!(
            matches!(found, Err(Error::Corrupt { .. })),
            "another table's: {found:?}"
        );
    });
}

#[test]
fn filter_and_index_take_less_than_two_bytes_for_each_small_record() {
    const RECORDS: u32 = 20_000;
    let world = world(1, &[]);
    on(&world, async {
        let key = |number: u32| format!("user:{number:010}");
        let items = (0..RECORDS).map(|number| item(key(number).as_bytes(), &[7; 84], meta(1)));
        let info = write(1, &sorted(items.collect())).await;
        let info = info.expect("a sound disk");
        let table = open(&info, Mode::Loaded).await.expect("undamaged");
        let each = table.memory_bytes() as f64 / f64::from(RECORDS);
        let strangers = (RECORDS..RECORDS + 100_000).map(key);
        let passed = strangers.filter(|key| {
            let key = KeyRef::of(key.as_bytes());
            table.may_contain(&key)
        });
        let passed = passed.count() as f64 / 100_000.0;
        println!(
            "{each:.2} bytes of memory a record; {:.2}% of strangers pass",
            passed * 100.0
        );
        assert!(each < 2.0, "{each} bytes a record");
        assert!(passed < 0.012, "{passed} of strangers cost a read");
    });
}

#[test]
fn a_block_that_is_cached_is_read_once_and_says_the_same() {
    (0..4).for_each(check_cached_blocks);
}

fn check_cached_blocks(seed: u64) {
    let world = world(seed, &[]);
    let handle = world.handle();
    on(&world, async move {
        let mut random = fastrand::Rng::with_seed(seed);
        let items = sorted(random_items(&mut random, 300));
        let info = write(1, &items).await.expect("a sound disk");
        let mode = MODES[random.usize(..2)];
        let table = open(&info, mode).await.expect("undamaged");
        let blocks = Caches::new(64 << 20).blocks;
        for item in &items {
            let key = KeyRef {
                position: item.position,
                ..key_ref(item)
            };
            let first = table.get(&key, &blocks).await.expect("undamaged");
            assert_eq!(first.as_ref(), Some(&item.record));
        }
        // Whatever becomes of the file: what was verified is in memory.
        handle
            .disk(NODE)
            .change_faults(|faults| faults.eio_read = 1.0);
        let small = items.iter().filter(|item| item.record.bytes().len() < 1000);
        let mut cached = 0;
        for item in small.clone() {
            let key = KeyRef {
                position: item.position,
                ..key_ref(item)
            };
            if let Ok(found) = table.get(&key, &blocks).await {
                assert_eq!(found.as_ref(), Some(&item.record));
                cached += 1;
            }
        }
        let count = small.count();
        assert!(
            cached > count * 9 / 10,
            "{cached} of {count} did not ask the disk"
        );
    });
}

#[test]
fn neither_filter_nor_index_hides_a_key_that_the_blocks_have() {
    let world = world(31, &[]);
    let mut random = fastrand::Rng::with_seed(31);
    let stored = |number: u32| number.wrapping_mul(0x9E37_79B9).to_le_bytes();
    let items: Vec<Item> = (0..20_000)
        .map(|number| item(&stored(number), &vec![7; random.usize(..60)], meta(1)))
        .collect();
    let items = sorted(items);
    on(&world, async move {
        let info = write(1, &items).await.expect("a sound disk");
        for mode in MODES {
            let table = Rc::new(open(&info, mode).await.expect("it was just written"));
            // What the blocks have, read in order: neither filter nor index is asked.
            let blocks = read_all(Rc::clone(&table), Bound::START).await;
            let blocks = blocks.expect("a sound disk");
            assert_eq!(blocks.len(), items.len());
            let mut last = LastUsed::default();
            for item in &blocks {
                let key = key_ref(item);
                let may = table.ask(&key, &mut last).await.expect("a sound disk");
                assert!(may, "the filter hides {:?}", key.key);
                let found = table.get(&key, &uncached()).await.expect("a sound disk");
                assert_eq!(found.as_ref(), Some(&item.record), "the index hides it");
            }
            for number in 20_000..25_000 {
                let bytes = stored(number);
                let found = table.get(&KeyRef::of(&bytes), &uncached()).await;
                assert_eq!(found.expect("a sound disk"), None);
            }
        }
    });
}
