//! Leveled plans: each level is one sorted run, ten times as large as the one above it. Pure.
//!
//! The level that is fullest for its size gives something to the next: level 0 its oldest runs,
//! another level the table that overlaps least of the next for its own size, so that few bytes are
//! rewritten for each one that goes down; tombstones count as a reason to go. What overlaps nothing
//! there is moved, not rewritten, unless a rewrite would be rid of its tombstones.
//!
//! Runs of level 0 that are small beside level 1 are merged with each other first, in the way of
//! `tiered`: were they merged into it, most of what is written would be what was there before.
//!
//! What size-tiered compaction has left stands in level 0. Its oldest run, if level 1 has none of
//! its keys, is moved down at once to the level that is large enough for it; the others follow in
//! turn.

use std::cmp::Reverse;

use super::tiered::similar_neighbours;
use super::{
    LEVEL_MAX, MERGE_RUNS_MAX, Plan, Run, Shape, Span, bytes_of, ids_of, is_worth_merging,
    pointed_by, records_of, runs_of,
};
use crate::storage::sstable::TableInfo;

/// So many runs of level 0 are merged into level 1, if they have this share of its bytes...
const MERGE_RUNS_MIN: usize = 4;
const YOUNG_SHARE: u64 = 2;
/// ...or else so many with each other.
const MERGE_RUNS_SMALL: usize = 8;
/// Level 0 is merged earlier if one in so many bytes of the value log may be garbage because of
/// it...
const HIDDEN_SHARE: u64 = 20;
/// ...and that is so many times as much as the merge reads.
const HIDDEN_WORTH: u64 = 4;
/// The score of a level that has just what it may have.
const FULL: u64 = 1000;
const _: () = assert!(MERGE_RUNS_MIN <= MERGE_RUNS_SMALL && MERGE_RUNS_SMALL <= MERGE_RUNS_MAX);

pub(super) fn plan(tables: &[TableInfo], shape: &Shape) -> Option<Plan> {
    let tree = Tree::of(tables);
    let scores = (0..LEVEL_MAX).map(|level| (tree.score(level, shape), Reverse(level)));
    let (score, Reverse(level)) = scores.max()?;
    if score < FULL {
        return tree.lower_hiding(tables, shape);
    }
    Some(match level {
        0 => tree.merge_young().unwrap_or_else(|| tree.lower_runs(shape)),
        _ => tree.lower_table(level),
    })
}

/// At rest: level 0 goes down, and then what has tombstones, until they have met all that they
/// hide.
pub(super) fn plan_at_rest(tables: &[TableInfo], shape: &Shape) -> Option<Plan> {
    let tree = Tree::of(tables);
    let young = tree.young.iter().flat_map(|run| run.tables);
    if let Some(span) = Span::of(young.clone()) {
        let below = tree.overlapping(1, span);
        if is_worth_merging(records_of(young), records_of(below)) {
            return Some(tree.lower_runs(shape));
        }
    }
    let is_due = |table: &&TableInfo| is_worth_merging(table.tombstones, table.records);
    (1..LEVEL_MAX).find_map(|level| {
        let table = tree.level(level).iter().find(is_due)?;
        Some(tree.lower(table, level))
    })
}

/// Tables by their levels.
struct Tree<'a> {
    /// Of level 0, the oldest first.
    young: Vec<Run<'a>>,
    /// Level `n` at `n - 1`; none for an empty one.
    levels: [&'a [TableInfo]; LEVEL_MAX as usize],
}

impl<'a> Tree<'a> {
    fn of(tables: &'a [TableInfo]) -> Tree<'a> {
        let mut tree = Tree {
            young: Vec::new(),
            levels: [&[]; LEVEL_MAX as usize],
        };
        for run in runs_of(tables) {
            match run.level() {
                0 => tree.young.push(run),
                level => tree.levels[usize::from(level) - 1] = run.tables,
            }
        }
        tree
    }

    fn level(&self, level: u8) -> &'a [TableInfo] {
        self.levels[usize::from(level) - 1]
    }

    /// How full a level is, in thousandths.
    fn score(&self, level: u8, shape: &Shape) -> u64 {
        match level {
            0 => {
                let runs = match self.is_young_small() {
                    true => MERGE_RUNS_SMALL,
                    false => MERGE_RUNS_MIN,
                };
                self.young.len() as u64 * FULL / runs as u64
            }
            _ => {
                let bytes = bytes_of(self.level(level));
                let share = u128::from(bytes) * u128::from(FULL);
                let score = share / u128::from(shape.level_bytes(level).max(1));
                u64::try_from(score).unwrap_or(u64::MAX)
            }
        }
    }

    /// True if merging level 0 into level 1 would write much for the little that comes of it.
    fn is_young_small(&self) -> bool {
        let young: u64 = self.young.iter().map(|run| run.bytes).sum();
        young.saturating_mul(YOUNG_SHARE) < bytes_of(self.level(1))
    }

    /// Merges runs of level 0 with each other while they are small. `None`: they are not, or of too
    /// different sizes.
    fn merge_young(&self) -> Option<Plan> {
        let similar = similar_neighbours(&self.young).filter(|_| self.is_young_small())?;
        Some(Plan::Merge {
            inputs: ids_of(similar.iter().flat_map(|run| run.tables)),
            level: 0,
        })
    }

    /// The tables of `level` that may have keys within `span`. They are neighbours.
    fn overlapping(&self, level: u8, span: Span<'_>) -> &'a [TableInfo] {
        let tables = self.level(level);
        let start = tables.partition_point(|table| table.last_key < *span.first);
        let end = tables.partition_point(|table| table.first_key <= *span.last);
        &tables[start..end.max(start)]
    }

    fn is_free(&self, level: u8, span: Span<'_>) -> bool {
        self.overlapping(level, span).is_empty()
    }

    /// True if going down to `level` unchanged would leave tombstones that hide nothing.
    fn would_keep_graves(&self, tables: &[TableInfo], level: u8, span: Span<'_>) -> bool {
        tables.iter().any(|table| table.tombstones > 0)
            && (level + 1..=LEVEL_MAX).all(|below| self.is_free(below, span))
    }

    /// Takes the oldest runs of level 0 down.
    fn lower_runs(&self, shape: &Shape) -> Plan {
        let oldest = self.young[0];
        let span = Span::of(oldest.tables).expect("a run has tables");
        if self.is_free(1, span) {
            let level = self.level_for(&oldest, span, shape);
            if !self.would_keep_graves(oldest.tables, level, span) {
                return Plan::Move {
                    tables: ids_of(oldest.tables),
                    level,
                };
            }
        }
        let count = self.young.len().min(MERGE_RUNS_MAX);
        let young = self.young[..count].iter().flat_map(|run| run.tables);
        let span = Span::of(young.clone()).expect("a run has tables");
        let below = self.overlapping(1, span);
        Plan::Merge {
            inputs: ids_of(below.iter().chain(young)),
            level: 1,
        }
    }

    /// Takes level 0 down early if it may hide many large values, as long as that costs little
    /// beside them: only a merge that meets both pointers of a key finds out that a value is
    /// garbage.
    fn lower_hiding(&self, tables: &[TableInfo], shape: &Shape) -> Option<Plan> {
        let young = self.young.iter().flat_map(|run| run.tables);
        let below = self.overlapping(1, Span::of(young.clone())?);
        let hidden = pointed_by(young.clone()).min(pointed_by(below));
        let cost = bytes_of(young) + bytes_of(below);
        let is_much = hidden.saturating_mul(HIDDEN_SHARE) >= pointed_by(tables);
        (hidden > 0 && is_much && hidden / HIDDEN_WORTH >= cost).then(|| self.lower_runs(shape))
    }

    /// The first level that is large enough for `run`, or the deepest that it can be moved to.
    fn level_for(&self, run: &Run<'_>, span: Span<'_>, shape: &Shape) -> u8 {
        let mut level = 1;
        while level < LEVEL_MAX
            && run.bytes > shape.level_bytes(level)
            && self.is_free(level + 1, span)
        {
            level += 1;
        }
        level
    }

    /// Takes the table of `level` down that is cheapest to take.
    fn lower_table(&self, level: u8) -> Plan {
        let cost = |table: &&TableInfo| {
            let span = Span::of([*table]).expect("it is one");
            let rewritten = u128::from(bytes_of(self.overlapping(level + 1, span)));
            let gain = u128::from(table.bytes) * u128::from(table.records + table.tombstones);
            rewritten * u128::from(table.records) * 1_000_000 / gain.max(1)
        };
        let table = self.level(level).iter().min_by_key(cost);
        self.lower(table.expect("a level that is too full has tables"), level)
    }

    /// Takes `table` of `level` down.
    fn lower(&self, table: &TableInfo, level: u8) -> Plan {
        let span = Span::of([table]).expect("it is one");
        let below = self.overlapping(level + 1, span);
        let alone = std::slice::from_ref(table);
        if below.is_empty() && !self.would_keep_graves(alone, level + 1, span) {
            return Plan::Move {
                tables: ids_of(alone),
                level: level + 1,
            };
        }
        Plan::Merge {
            inputs: ids_of(below.iter().chain(alone)),
            level: level + 1,
        }
    }
}
