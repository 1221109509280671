//! How long operations over replicas take: those of this core's clients, and what it asks of nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Shard;
use crate::cluster::map::NodeId;
use crate::error::{Error, Result};
use crate::replication::latency::Both;
use crate::rt;

/// What a core tells about latencies, of the last minute or two.
#[derive(Clone, Debug, Default)]
pub struct LatencyReport {
    /// Of its clients' operations over the replicas of their keys, from the first request to the
    /// answer.
    pub clients: Both,
    /// Of the answers of nodes, with this one among them.
    pub nodes: BTreeMap<NodeId, Both>,
}

impl LatencyReport {
    /// What all of `reports` tell together.
    pub fn total<'r>(reports: impl Iterator<Item = &'r LatencyReport>) -> LatencyReport {
        let mut total = LatencyReport::default();
        for report in reports {
            total.clients.add(&report.clients);
            for (node, answers) in &report.nodes {
                total.nodes.entry(*node).or_default().add(answers);
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
        LatencyReport {
            clients: self.cluster.latencies.borrow_mut().told(rt::now()),
            nodes: self.node_latencies(),
        }
    }
}

/// False if it was refused at once: that took no time, whatever the replicas take.
fn was_tried<T>(result: &Result<T>) -> bool {
    !matches!(result, Err(Error::Unavailable { .. }))
}
