//! How long operations over replicas take: those of this core's clients, and what it asks of nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Shard;
use crate::cluster::map::NodeId;
use crate::error::{Error, Result};
use crate::replication::coordinate::Answers;
use crate::replication::latency::{Latencies, Recent};
use crate::rt;

/// Operations of a core's clients over the replicas of their keys, from the first request to the
/// answer.
#[derive(Default)]
pub(super) struct ClientLatencies {
    reads: Recent,
    writes: Recent,
}

/// What a core tells about latencies.
#[derive(Clone, Debug, Default)]
pub struct LatencyReport {
    /// Reads over replicas that ended within the last minute or two.
    pub reads: Latencies,
    /// Such writes.
    pub writes: Latencies,
    /// How long nodes take to answer, with this one among them.
    pub answers: BTreeMap<NodeId, Answers>,
}

impl LatencyReport {
    /// What all of `reports` tell together: of a node's answers those to the core that waits for
    /// them longest.
    pub fn total<'r>(reports: impl Iterator<Item = &'r LatencyReport>) -> LatencyReport {
        let mut total = LatencyReport::default();
        for report in reports {
            total.reads.add(&report.reads);
            total.writes.add(&report.writes);
            for (node, answers) in &report.answers {
                let so_far = total.answers.entry(*node);
                so_far
                    .and_modify(|worst| *worst = worst.worst(*answers))
                    .or_insert(*answers);
            }
        }
        total
    }
}

impl Shard {
    /// A read over replicas that began at `began` has ended.
    pub(super) fn note_read<T>(&self, began: Duration, result: &Result<T>) {
        if was_tried(result) {
            let now = rt::now();
            let mut latencies = self.cluster.latencies.borrow_mut();
            latencies.reads.note(now.saturating_sub(began), now);
        }
    }

    /// A write over replicas that began at `began` has ended.
    pub(super) fn note_write<T>(&self, began: Duration, result: &Result<T>) {
        if was_tried(result) {
            let now = rt::now();
            let mut latencies = self.cluster.latencies.borrow_mut();
            latencies.writes.note(now.saturating_sub(began), now);
        }
    }

    /// What this core tells about latencies.
    pub(super) fn latency_report(&self) -> LatencyReport {
        let mut latencies = self.cluster.latencies.borrow_mut();
        LatencyReport {
            reads: latencies.reads.told(rt::now()),
            writes: latencies.writes.told(rt::now()),
            answers: self.answers(),
        }
    }
}

/// False if it was refused at once: that took no time, whatever the replicas take.
fn was_tried<T>(result: &Result<T>) -> bool {
    !matches!(result, Err(Error::Unavailable { .. }))
}
