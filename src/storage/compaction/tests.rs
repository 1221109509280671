//! Plans, by cases and by their effect on a small model of tables.

use std::collections::BTreeMap;

use super::*;
use crate::types::{Position, Version};

mod merges;

const TIERED: Shape = Shape {
    style: Style::SizeTiered,
    ..LEVELED
};
const LEVELED: Shape = Shape {
    style: Style::Leveled,
    table_bytes: 100,
    base_bytes: 400,
    ratio: 10,
};

/// A table of all keys from `first` to `last`, in a run of its own.
fn table(id: u64, level: u8, keys: [u32; 2], bytes: u64) -> TableInfo {
    let key = |key: u32| KeyBuf {
        position: Position(key),
        key: Vec::new(),
    };
    TableInfo {
        id: TableId(id),
        run: TableId(id),
        level,
        bytes,
        records: 1,
        tombstones: 0,
        first_key: key(keys[0]),
        last_key: key(keys[1]),
        version_max: Version::ZERO,
        half_expired_at: 0,
        pointed: 0,
    }
}

fn info(id: u64, bytes: u64) -> TableInfo {
    table(id, 0, [0, u32::MAX], bytes)
}

fn tables(sizes: &[u64]) -> Vec<TableInfo> {
    sizes
        .iter()
        .zip(1..)
        .map(|(&bytes, id)| info(id, bytes))
        .collect()
}

fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<TableId> {
    ids.into_iter().map(TableId).collect()
}

fn merge_of(inputs: impl IntoIterator<Item = u64>, level: u8) -> Plan {
    Plan::Merge {
        inputs: ids(inputs),
        level,
    }
}

fn move_of(tables: impl IntoIterator<Item = u64>, level: u8) -> Plan {
    Plan::Move {
        tables: ids(tables),
        level,
    }
}

#[test]
fn similar_neighbours_are_merged_once_they_are_many() {
    let plan = |sizes: &[u64]| plan(&tables(sizes), &TIERED, 0);
    assert_eq!(plan(&[]), Plan::Idle);
    assert_eq!(plan(&[9]), Plan::Idle);
    assert_eq!(plan(&[10, 10, 10]), Plan::Idle, "too few");
    assert_eq!(plan(&[10, 11, 9, 10]), merge_of(1..=4, 0));
    assert_eq!(plan(&[99, 10, 11, 9, 10]), merge_of(2..=5, 0));
    let behind = plan(&[10, 11, 9, 10, 99]);
    assert_eq!(behind, merge_of(1..=5, 0), "small ones behind a big one");
    let growing = plan(&[800, 400, 100, 40, 10, 1]);
    assert_eq!(growing, Plan::Idle, "each at least twice the next");
    let older = plan(&[90, 90, 90, 90, 20, 20]);
    assert_eq!(older, merge_of(1..=4, 0), "not only the newest");
}

#[test]
fn tables_of_one_run_count_as_one_and_are_merged_together() {
    let mut tables = tables(&[50, 50, 50, 50, 10, 10, 10]);
    for (table, at) in tables[..4].iter_mut().zip(0..) {
        table.run = TableId(1);
        table.first_key.position = Position(at * 10);
        table.last_key.position = Position(at * 10 + 5);
    }
    let idle = plan(&tables, &TIERED, 0);
    assert_eq!(
        idle,
        Plan::Idle,
        "a run of four tables is merged again and again"
    );
    tables.push(info(8, 150));
    let all = plan(&tables, &TIERED, 0);
    assert_eq!(all, merge_of(1..=8, 0), "a run is taken whole");
}

#[test]
fn what_has_half_expired_is_rewritten_where_it_stands() {
    for shape in [TIERED, LEVELED] {
        let mut live = tables(&[800, 100, 10]);
        live[1].half_expired_at = 1000;
        assert_eq!(plan(&live, &shape, 999), Plan::Idle, "too early");
        assert_eq!(plan(&live, &shape, 1000), merge_of([2], 0));
        live[0].half_expired_at = 500;
        assert_eq!(
            plan(&live, &shape, 1000),
            merge_of([1], 0),
            "the oldest first"
        );
        let mut levels = vec![
            table(1, 2, [0, 10], 100),
            table(2, 2, [20, 30], 100),
            table(3, 1, [0, 50], 100),
        ];
        levels[1].half_expired_at = 1000;
        let alone = plan(&levels, &shape, 1000);
        assert_eq!(alone, merge_of([2], 2), "of a level one table is enough");
    }
}

#[test]
fn level_0_goes_into_level_1_with_all_that_it_overlaps() {
    let mut live = vec![
        table(1, 1, [0, 9], 50),
        table(2, 1, [10, 19], 50),
        table(3, 1, [30, 39], 50),
        table(4, 1, [60, 69], 50),
        table(5, 0, [12, 13], 50),
        table(6, 0, [35, 50], 50),
        table(7, 0, [12, 50], 50),
    ];
    assert_eq!(
        plan(&live, &LEVELED, 0),
        Plan::Idle,
        "too few to be worth it"
    );
    live.push(table(8, 0, [12, 50], 50));
    assert_eq!(plan(&live, &LEVELED, 0), merge_of([2, 3, 5, 6, 7, 8], 1));
    // Between its tables a run may have keys of outputs that span them.
    live[6].first_key.position = Position(5);
    assert_eq!(plan(&live, &LEVELED, 0), merge_of([1, 2, 3, 5, 6, 7, 8], 1));
}

#[test]
fn runs_that_are_small_beside_level_1_are_merged_with_each_other_first() {
    let mut live = vec![table(1, 1, [0, 99], 4000)];
    let shape = Shape {
        base_bytes: 10_000,
        ..LEVELED
    };
    live.extend((2..9).map(|id| info(id, 50)));
    assert_eq!(plan(&live, &shape, 0), Plan::Idle, "too few");
    live.push(info(9, 50));
    assert_eq!(plan(&live, &shape, 0), merge_of(2..=9, 0));
    live.truncate(1);
    live.extend((2..6).map(|id| info(id, 500)));
    let together = merge_of(1..=5, 1);
    assert_eq!(plan(&live, &shape, 0), together, "half of it is enough");
}

/// Each flush has one in eighty of the bytes that there are: were it merged with all of them, it
/// would cost ten times as much as it does here.
#[test]
fn small_flushes_are_merged_for_a_few_times_their_size() {
    let (mut live, mut written) = (vec![table(1, 1, [0, 99], 4000)], 0);
    let shape = Shape {
        base_bytes: 10_000,
        ..LEVELED
    };
    let flushes = 400;
    for next in 2..2 + flushes {
        live.push(info(next, 50));
        while let Plan::Merge { inputs, level } = plan(&live, &shape, 0) {
            let merged = live.iter().filter(|table| inputs.contains(&table.id));
            let bytes = match level {
                0 => merged.map(|table| table.bytes).sum(),
                // What is overwritten goes.
                _ => 4000,
            };
            written += bytes;
            let output = TableInfo {
                bytes,
                ..table(1000 * next, level, [0, 99], bytes)
            };
            apply(&mut live, &inputs, vec![output]);
        }
        assert!(live.len() <= 1 + MERGE_RUNS_MAX);
    }
    assert!(written <= 5 * flushes * 50, "{written} bytes written");
}

#[test]
fn a_level_that_is_too_full_gives_up_the_table_that_is_cheapest_to_take() {
    let mut live = vec![
        table(1, 2, [0, 100], 300),
        table(2, 2, [101, 200], 100),
        table(3, 2, [201, 300], 300),
        table(4, 1, [50, 60], 150),
        table(5, 1, [150, 160], 150),
        table(6, 1, [250, 260], 150),
    ];
    assert_eq!(plan(&live, &LEVELED, 0), merge_of([2, 5], 2));
    live[5].tombstones = 1; // of one record: it counts twice
    assert_eq!(plan(&live, &LEVELED, 0), merge_of([2, 5], 2));
    live[1].bytes = 200;
    assert_eq!(
        plan(&live, &LEVELED, 0),
        merge_of([3, 6], 2),
        "for its tombstones"
    );
    live[5].bytes = 60;
    assert_eq!(plan(&live, &LEVELED, 0), Plan::Idle, "there is room again");
}

#[test]
fn what_overlaps_nothing_is_moved_unless_its_tombstones_can_go() {
    let mut live = vec![
        table(1, 3, [50, 60], 10),
        table(2, 2, [0, 40], 100),
        table(3, 1, [50, 60], 500),
    ];
    assert_eq!(plan(&live, &LEVELED, 0), move_of([3], 2));
    live[2].tombstones = 1;
    assert_eq!(
        plan(&live, &LEVELED, 0),
        move_of([3], 2),
        "they may hide something"
    );
    let bottom = plan(&live[1..], &LEVELED, 0);
    assert_eq!(
        bottom,
        merge_of([3], 2),
        "tombstones that hide nothing are kept"
    );
}

#[test]
fn what_size_tiered_compaction_has_left_goes_down_to_a_level_of_its_size() {
    let mut live = tables(&[30_000, 3_000, 200, 100]);
    let first = plan(&live, &LEVELED, 0);
    assert_eq!(first, move_of([1], 3), "not rewritten");
    live[0].level = 3;
    live.push(info(5, 90));
    let second = plan(&live, &LEVELED, 0);
    assert_eq!(second, move_of([2], 2), "above what overlaps it");
}

#[test]
fn what_leveled_compaction_has_left_is_merged_like_runs() {
    let live = vec![
        table(1, 3, [0, 10], 900),
        table(2, 3, [11, 20], 900),
        table(3, 2, [0, 20], 120),
        table(4, 1, [0, 5], 60),
        table(5, 1, [6, 10], 60),
        info(6, 100),
        info(7, 100),
    ];
    assert_eq!(
        plan(&live, &TIERED, 0),
        merge_of(3..=7, 0),
        "newer runs stay on top"
    );
    let deep = [&live[..3], &[table(8, 1, [0, 20], 100)]].concat();
    assert_eq!(plan(&deep, &TIERED, 0), Plan::Idle);
}

#[test]
fn runs_stay_few_and_bytes_are_written_a_few_times_only() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut live, mut next) = (Vec::<TableInfo>::new(), 1);
        let (mut flushed, mut merged) = (0u64, 0u64);
        for _ in 0..2000 {
            let bytes = if seed == 0 { 64 } else { random.u64(1..200) };
            live.push(info(next, bytes));
            (flushed, next) = (flushed + bytes, next + 1);
            while let Plan::Merge { inputs, level } = plan(&live, &TIERED, 0) {
                // Overwritten records go: anything from a tenth to all of it lives on.
                let is_input = |table: &&TableInfo| inputs.contains(&table.id);
                let total: u64 = live.iter().filter(is_input).map(|table| table.bytes).sum();
                let kept = if seed < 10 {
                    total
                } else {
                    (total * random.u64(1..=10) / 10).max(1)
                };
                merged += kept;
                let output = TableInfo {
                    level,
                    ..info(next, kept)
                };
                apply(&mut live, &inputs, vec![output]);
                next += 1;
            }
            let total: u64 = live.iter().map(|table| table.bytes).sum();
            let runs_max = 3 * (total.ilog2() as usize + 2);
            let runs = live.len();
            assert!(runs <= runs_max, "seed {seed}: {runs} runs of {total}");
        }
        let amplification = merged as f64 / flushed as f64;
        assert!(
            amplification < 8.0,
            "seed {seed}: written {amplification} times"
        );
    }
}

/// A record of the model: its version, and whether it is a tombstone.
type Mark = (u64, bool);

/// A table of the model.
#[derive(Clone)]
struct Toy {
    info: TableInfo,
    records: BTreeMap<u32, Mark>,
}

/// A store of the model: numbers for keys, plans carried out naively.
struct Toys {
    /// In the order of the list.
    tables: Vec<Toy>,
    next: u64,
    clock: u64,
    truth: BTreeMap<u32, Mark>,
    flushed: u64,
    written: u64,
}

impl Toys {
    fn make(&mut self, records: BTreeMap<u32, Mark>, run: Option<u64>, level: u8) -> Toy {
        let id = self.next;
        self.next += 1;
        let ends = records.first_key_value().zip(records.last_key_value());
        let ((&first, _), (&last, _)) = ends.expect("a table has records");
        let mut info = table(id, level, [first, last], records.len() as u64 * 10);
        info.run = TableId(run.unwrap_or(id));
        info.records = records.len() as u64;
        info.tombstones = records.values().filter(|mark| mark.1).count() as u64;
        Toy { info, records }
    }

    fn infos(&self) -> Vec<TableInfo> {
        self.tables.iter().map(|toy| toy.info.clone()).collect()
    }

    fn flush(&mut self, random: &mut fastrand::Rng, keys: u32) {
        let mut records = BTreeMap::new();
        for _ in 0..random.usize(1..30) {
            self.clock += 1;
            records.insert(random.u32(..keys), (self.clock, random.u8(..4) == 0));
        }
        self.truth.extend(records.clone());
        self.flushed += records.len() as u64;
        let toy = self.make(records, None, 0);
        self.tables.push(toy);
    }

    /// True if a table below `at` that is none of the inputs has `key`.
    fn is_hiding(&self, inputs: &[TableId], at: usize, key: u32) -> bool {
        let below = self.tables[..at].iter();
        let mut below = below.filter(|toy| !inputs.contains(&toy.info.id));
        below.any(|toy| toy.records.contains_key(&key))
    }

    fn merge(&mut self, inputs: &[TableId], level: u8, table_records: usize) -> Vec<Toy> {
        let is_input = |toy: &&Toy| inputs.contains(&toy.info.id);
        let newest = self.tables.iter().rposition(|toy| is_input(&toy));
        let newest = newest.expect("inputs are live");
        let mut records = BTreeMap::new();
        for toy in self.tables.iter().filter(is_input) {
            records.extend(toy.records.clone());
        }
        records.retain(|key, mark| !mark.1 || self.is_hiding(inputs, newest, *key));
        self.written += records.len() as u64;
        let records: Vec<_> = records.into_iter().collect();
        let run = self.next;
        let chunks = records.chunks(table_records);
        chunks
            .map(|chunk| self.make(chunk.iter().copied().collect(), Some(run), level))
            .collect()
    }

    fn carry_out(&mut self, plan: &Plan, table_records: usize) {
        let (ids, outputs) = match plan {
            Plan::Idle => return,
            Plan::Merge { inputs, level } => (inputs, self.merge(inputs, *level, table_records)),
            Plan::Move { tables, level } => {
                let moved = self
                    .tables
                    .iter()
                    .filter(|toy| tables.contains(&toy.info.id));
                let mut moved: Vec<Toy> = moved.cloned().collect();
                moved.iter_mut().for_each(|toy| toy.info.level = *level);
                (tables, moved)
            }
        };
        let mut infos = self.infos();
        let mut all: BTreeMap<TableId, Toy> = self
            .tables
            .drain(..)
            .map(|toy| (toy.info.id, toy))
            .collect();
        apply(
            &mut infos,
            ids,
            outputs.iter().map(|toy| toy.info.clone()).collect(),
        );
        all.extend(outputs.into_iter().map(|toy| (toy.info.id, toy)));
        let take = |info: &TableInfo| all.remove(&info.id).expect("listed once");
        self.tables = infos.iter().map(take).collect();
    }

    /// What readers find: the last in the list that has a key, and no tombstone.
    fn check(&self, seed: u64) {
        let infos = self.infos();
        assert!(is_in_order(&infos), "seed {seed}: {infos:?}");
        for (key, mark) in &self.truth {
            let found = self
                .tables
                .iter()
                .rev()
                .find_map(|toy| toy.records.get(key));
            let is_right = match found {
                Some(found) => found == mark,
                None => mark.1,
            };
            assert!(
                is_right,
                "seed {seed}, key {key}: {found:?} is not {mark:?}"
            );
        }
    }
}

/// Random writes, flushes and plans, with a style that changes in the middle, against a map.
#[test]
fn whatever_is_planned_readers_find_the_newest_and_it_comes_to_rest() {
    let mut moves = 0;
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let keys = [40, 400, 4000][random.usize(..3)];
        let mut shape = Shape {
            style: [Style::Leveled, Style::SizeTiered][random.usize(..2)],
            table_bytes: 0,
            base_bytes: random.u64(50..600),
            ratio: random.u64(2..11),
        };
        let table_records = random.usize(1..30);
        let mut toys = Toys {
            tables: Vec::new(),
            next: 1,
            clock: 0,
            truth: BTreeMap::new(),
            flushed: 0,
            written: 0,
        };
        let mut idle = false;
        for _ in 0..random.usize(20..200) {
            if random.u8(..50) == 0 {
                shape.style = match shape.style {
                    Style::Leveled => Style::SizeTiered,
                    Style::SizeTiered => Style::Leveled,
                };
            }
            if idle || random.bool() {
                toys.flush(&mut random, keys);
            }
            // A flush may come while a merge runs: on top of what the plan was made for.
            let infos = toys.infos();
            let plan = plan(&infos, &shape, 0);
            assert!(
                keeps_order(&infos, &plan),
                "seed {seed}: {plan:?} of {infos:?}"
            );
            if random.u8(..4) == 0 {
                toys.flush(&mut random, keys);
            }
            idle = plan == Plan::Idle;
            moves += u32::from(matches!(plan, Plan::Move { .. }));
            toys.carry_out(&plan, table_records);
            toys.check(seed);
        }
        // Left alone it comes to rest.
        for step in 0.. {
            assert!(step < 10_000, "seed {seed}: it never comes to rest");
            let plan = plan(&toys.infos(), &shape, 0);
            if plan == Plan::Idle {
                break;
            }
            toys.carry_out(&plan, table_records);
        }
        toys.check(seed);
        let infos = toys.infos();
        let young = runs_of(&infos)
            .iter()
            .filter(|run| run.level() == 0)
            .count();
        if shape.style == Style::Leveled {
            assert!(young < 8, "seed {seed}: {young} runs in level 0");
        }
        rest(&mut toys, &shape, table_records, seed);
    }
    assert!(moves > 100, "hardly ever is anything moved: {moves}");
}

/// When nobody writes, deletes meet what they hide; and that has an end.
fn rest(toys: &mut Toys, shape: &Shape, table_records: usize, seed: u64) {
    for step in 0.. {
        assert!(step < 10_000, "seed {seed}: rest has no end");
        let infos = toys.infos();
        let next = match plan(&infos, shape, 0) {
            Plan::Idle => plan_at_rest(&infos, shape),
            plan => plan,
        };
        if next == Plan::Idle {
            break;
        }
        assert!(
            keeps_order(&infos, &next),
            "seed {seed}: {next:?} of {infos:?}"
        );
        toys.carry_out(&next, table_records);
        toys.check(seed);
    }
    let infos = toys.infos();
    let is_due = |tables: &[TableInfo]| {
        is_worth_merging(tombstones_of(tables), records_of(tables)) && tables[0].level < LEVEL_MAX
    };
    match shape.style {
        Style::Leveled => {
            let mut lowered = infos.iter().filter(|table| table.level > 0);
            let due = lowered.find(|table| is_due(std::slice::from_ref(*table)));
            assert!(due.is_none(), "seed {seed}: {due:?} still hides something");
        }
        Style::SizeTiered => {
            let due = runs_of(&infos).into_iter().find(|run| is_due(run.tables));
            assert!(due.is_none(), "seed {seed}: a run still hides something");
        }
    }
}

/// Uniform overwrites of a set that fills three levels.
#[test]
fn leveled_compaction_keeps_space_and_rewrites_within_bounds() {
    let mut random = fastrand::Rng::with_seed(7);
    let shape = Shape {
        base_bytes: 4_000,
        ..LEVELED
    };
    let mut toys = Toys {
        tables: Vec::new(),
        next: 1,
        clock: 0,
        truth: BTreeMap::new(),
        flushed: 0,
        written: 0,
    };
    for _ in 0..4000 {
        toys.flush(&mut random, 20_000);
        while let plan @ (Plan::Merge { .. } | Plan::Move { .. }) = plan(&toys.infos(), &shape, 0) {
            toys.carry_out(&plan, 30);
        }
    }
    toys.check(7);
    let records: usize = toys.tables.iter().map(|toy| toy.records.len()).sum();
    let alive = toys.truth.values().filter(|mark| !mark.1).count();
    let space = records as f64 / alive as f64;
    let rewritten = toys.written as f64 / toys.flushed as f64;
    println!("leveled: {space:.2} records for each that lives, each written {rewritten:.1} times");
    assert!(space < 1.6, "{space} records for each that lives");
    assert!(
        rewritten < 25.0,
        "each record is rewritten {rewritten} times"
    );
}

#[test]
fn a_plan_that_would_put_old_over_new_is_told_from_one_that_does_not() {
    let live = vec![
        table(1, 2, [0, 9], 10),
        table(2, 1, [0, 4], 10),
        table(3, 1, [5, 9], 10),
        table(4, 0, [3, 6], 10),
        table(5, 0, [0, 2], 10),
        table(6, 0, [2, 9], 10),
    ];
    let sound = [
        merge_of([1, 2], 2),
        merge_of([2, 3, 4], 1),
        merge_of([2, 5], 1),
        merge_of([4, 5], 0),
        merge_of([5, 6], 0),
        merge_of([3], 1),
    ];
    let unsound = [
        (
            merge_of([2, 6], 1),
            "over 4 and under 5, which it was above",
        ),
        (merge_of([2], 2), "among tables that have its keys"),
        (merge_of([4], 1), "among tables that have its keys"),
        (merge_of([2, 3, 4, 6], 1), "under 5"),
        (merge_of([2, 5], 0), "over 4"),
        (merge_of([4, 2], 1), "out of order"),
        (merge_of([9], 1), "not there"),
    ];
    for plan in sound {
        assert!(keeps_order(&live, &plan), "{plan:?}");
    }
    for (plan, why) in unsound {
        assert!(!keeps_order(&live, &plan), "{plan:?}: {why}");
    }
}

#[test]
fn what_comes_as_one_run_gets_the_first_level_that_holds_it() {
    let shape = Shape {
        base_bytes: 100,
        ratio: 10,
        ..LEVELED
    };
    for (bytes, level) in [
        (0, 1),
        (100, 1),
        (101, 2),
        (10_000, 3),
        (u64::MAX, LEVEL_MAX),
    ] {
        assert_eq!(shape.level_for(bytes), level, "{bytes} bytes");
    }
}
