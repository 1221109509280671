//! Size-tiered plans: neighbouring runs of similar size become one. Pure.
//!
//! Four or more neighbouring runs of similar size, the newest such, are merged. A run that is not
//! more than twice as big as the biggest newer one beside it counts as similar, so at most three
//! runs stand between one size and its double, and runs stay few. A level from 1 on, which leveled
//! compaction has left, is a run like any other; what is merged stands where its newest input
//! stood.

use super::{
    MERGE_RUNS_MAX, Plan, Run, ids_of, is_worth_merging, records_of, runs_of, tombstones_of,
};
use crate::storage::sstable::TableInfo;

/// Fewer neighbouring runs of similar size are left alone.
const MERGE_RUNS_MIN: usize = 4;
/// A run is similar to newer ones if it is at most so many times as big as the biggest of them.
const SIMILAR_RATIO: u64 = 2;
const _: () = assert!(MERGE_RUNS_MIN <= MERGE_RUNS_MAX);

pub(super) fn plan(tables: &[TableInfo]) -> Option<Plan> {
    let runs = runs_of(tables);
    let similar = similar_neighbours(&runs)?;
    let newest = similar.last().expect("there are several");
    Some(Plan::Merge {
        inputs: ids_of(similar.iter().flat_map(|run| run.tables)),
        level: newest.level(),
    })
}

/// At rest: a run with many tombstones is merged with the one before it, which they may hide; the
/// oldest is written anew without.
pub(super) fn plan_at_rest(tables: &[TableInfo]) -> Option<Plan> {
    let runs = runs_of(tables);
    let is_due =
        |run: &Run<'_>| is_worth_merging(tombstones_of(run.tables), records_of(run.tables));
    let newest = runs.iter().rposition(is_due)?;
    let merged = &runs[newest.saturating_sub(1)..=newest];
    Some(Plan::Merge {
        inputs: ids_of(merged.iter().flat_map(|run| run.tables)),
        level: runs[newest].level(),
    })
}

/// The newest group of neighbouring runs that are many and similar enough.
pub(super) fn similar_neighbours<'r, 'a>(runs: &'r [Run<'a>]) -> Option<&'r [Run<'a>]> {
    for newest in (0..runs.len()).rev() {
        let mut biggest = runs[newest].bytes;
        let mut oldest = newest;
        while oldest > 0
            && newest - oldest + 1 < MERGE_RUNS_MAX
            && runs[oldest - 1].bytes <= biggest.saturating_mul(SIMILAR_RATIO)
        {
            oldest -= 1;
            biggest = biggest.max(runs[oldest].bytes);
        }
        if newest - oldest + 1 >= MERGE_RUNS_MIN {
            return Some(&runs[oldest..=newest]);
        }
    }
    None
}
