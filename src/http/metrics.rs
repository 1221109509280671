//! The node's figures: one table, told to Prometheus in its text format and to people on the page.

use std::fmt::Write;

use crate::cluster::map::Node;
use crate::replication::latency::Latencies;
use crate::rt;
use crate::shard::{Counters, HintReport, LatencyReport, Report, Shard, total};
use crate::storage::Sizes;
use crate::storage::cache::CacheStats;

/// All cores' reports together, and what concerns the process.
pub struct Figures {
    counters: Counters,
    sizes: Sizes,
    clients: u64,
    connections: u64,
    failed: u64,
    disk_full: u64,
    flushes: u64,
    compactions: u64,
    collections: u64,
    table_bytes_written: u64,
    value_bytes_given: u64,
    value_bytes_stored: u64,
    value_bytes_moved: u64,
    expired: u64,
    hints: HintReport,
    latencies: LatencyReport,
    /// Of the cluster's map, and how many nodes it names, and of them may be asked.
    epoch: u64,
    nodes: usize,
    nodes_live: usize,
    cores: u64,
    uptime_s: u64,
}

impl Figures {
    /// What `reports` say together.
    pub fn of(shard: &Shard, reports: &[Report]) -> Figures {
        let (counters, sizes) = total(reports);
        let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
        let view = shard.view();
        let nodes = view.iter().flat_map(|view| view.map.nodes());
        let is_live = |node: &&Node| view.as_ref().is_some_and(|view| view.may_be_asked(node.id));
        Figures {
            counters,
            sizes,
            clients: sum(|report| report.clients.len() as u64),
            connections: sum(|report| report.connections),
            failed: sum(|report| u64::from(report.failed)),
            disk_full: sum(|report| u64::from(report.disk_full)),
            flushes: sum(|report| report.stats.flushes),
            compactions: sum(|report| report.stats.compactions),
            collections: sum(|report| report.stats.collections),
            table_bytes_written: sum(|report| report.stats.table_bytes_written),
            value_bytes_given: sum(|report| report.stats.value_bytes_given),
            value_bytes_stored: sum(|report| report.stats.value_bytes_stored),
            value_bytes_moved: sum(|report| report.stats.value_bytes_moved),
            expired: sum(|report| report.stats.expired),
            hints: HintReport::total(reports.iter().map(|report| &report.hints)),
            latencies: LatencyReport::total(reports.iter().map(|report| &report.latencies)),
            epoch: view.as_ref().map_or(0, |view| view.map.epoch()),
            nodes: nodes.clone().count(),
            nodes_live: nodes.filter(is_live).count(),
            cores: u64::from(shard.cores()),
            uptime_s: shard.uptime_s(),
        }
    }
}

/// How a figure moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up only, until the node is started anew. Its name ends in `_total`.
    Counter,
    /// Up and down.
    Gauge,
}

/// One figure.
pub struct Metric {
    /// Without `quoit_`.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it says, in one line.
    pub help: &'static str,
    /// Its value.
    pub value: fn(&Figures) -> f64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Figures) -> f64) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        help,
        value,
    }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Figures) -> f64) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        help,
        value,
    }
}

fn hit_rate(stats: &CacheStats) -> f64 {
    stats.hits as f64 / (stats.hits + stats.misses).max(1) as f64
}

/// In seconds; 0 if there were none.
fn quantile(latencies: &Latencies, share: f64) -> f64 {
    latencies.quantile(share).unwrap_or_default().as_secs_f64()
}

/// All figures.
pub const METRICS: &[Metric] = &[
    gauge("up_seconds", "Seconds since the node was started.", |f| {
        f.uptime_s as f64
    }),
    gauge("cores", "Cores of the node.", |f| f.cores as f64),
    gauge(
        "log_failed_cores",
        "Cores whose log has failed: they refuse writes until a restart.",
        |f| f.failed as f64,
    ),
    gauge(
        "disk_full_cores",
        "Cores that refuse writes for want of space.",
        |f| f.disk_full as f64,
    ),
    gauge("clients", "Clients that are connected.", |f| {
        f.clients as f64
    }),
    counter("connections_total", "Connections that were made.", |f| {
        f.connections as f64
    }),
    counter(
        "connections_refused_total",
        "Connections that were one too many.",
        |f| f.counters.rejected as f64,
    ),
    counter("commands_total", "Commands over RESP.", |f| {
        f.counters.commands as f64
    }),
    counter(
        "command_errors_total",
        "Requests over RESP that were no command.",
        |f| f.counters.errors as f64,
    ),
    counter("http_requests_total", "Requests over HTTP.", |f| {
        f.counters.http_requests as f64
    }),
    counter(
        "http_errors_total",
        "Requests over HTTP that were answered with a status from 400 on.",
        |f| f.counters.http_errors as f64,
    ),
    counter(
        "commands_crossed_total",
        "Commands of which another core had to do a part.",
        |f| f.counters.crossed as f64,
    ),
    counter(
        "commands_redirected_total",
        "Commands that came to the port of the wrong core.",
        |f| f.counters.redirected as f64,
    ),
    counter(
        "received_bytes_total",
        "Bytes received from clients.",
        |f| f.counters.bytes_in as f64,
    ),
    gauge(
        "records",
        "Records that are stored, superseded ones included.",
        |f| f.sizes.records as f64,
    ),
    gauge("memtable_bytes", "Bytes of all memtables.", |f| {
        f.sizes.memtable_bytes as f64
    }),
    gauge("tables", "Tables.", |f| f.sizes.tables as f64),
    gauge("table_bytes", "Bytes of all tables.", |f| {
        f.sizes.table_bytes as f64
    }),
    gauge(
        "table_runs",
        "Tables that one lookup asks at most, of the core with most of them.",
        |f| f.sizes.table_runs as f64,
    ),
    gauge("log_bytes", "Bytes of all logs.", |f| {
        f.sizes.wal_bytes as f64
    }),
    gauge("value_log_bytes", "Bytes of the value log.", |f| {
        f.sizes.values.bytes as f64
    }),
    gauge(
        "value_log_live_bytes",
        "Those of them that are alive.",
        |f| f.sizes.values.live as f64,
    ),
    gauge(
        "value_log_garbage_bytes",
        "Those of them that are garbage.",
        |f| f.sizes.values.garbage as f64,
    ),
    gauge(
        "index_bytes",
        "Memory that filters and indexes of tables take.",
        |f| f.sizes.index_bytes as f64,
    ),
    gauge("row_cache_bytes", "Memory that the row cache takes.", |f| {
        f.sizes.rows.bytes as f64
    }),
    gauge(
        "row_cache_hit_ratio",
        "Lookups that the row cache has answered.",
        |f| hit_rate(&f.sizes.rows),
    ),
    gauge("key_cache_bytes", "Memory that the key cache takes.", |f| {
        f.sizes.pointers.bytes as f64
    }),
    gauge(
        "key_cache_hit_ratio",
        "Lookups that the key cache has answered.",
        |f| hit_rate(&f.sizes.pointers),
    ),
    gauge(
        "block_cache_bytes",
        "Memory that the block cache takes.",
        |f| f.sizes.blocks.bytes as f64,
    ),
    gauge(
        "block_cache_hit_ratio",
        "Blocks that were there when they were needed.",
        |f| hit_rate(&f.sizes.blocks),
    ),
    counter(
        "flushes_total",
        "Memtables that were written to tables.",
        |f| f.flushes as f64,
    ),
    counter("compactions_total", "Merges of tables.", |f| {
        f.compactions as f64
    }),
    counter(
        "collections_total",
        "Segments of the value log that were collected.",
        |f| f.collections as f64,
    ),
    counter(
        "table_written_bytes_total",
        "Bytes that were written to tables.",
        |f| f.table_bytes_written as f64,
    ),
    counter(
        "value_given_bytes_total",
        "Bytes of values that came to the value log.",
        |f| f.value_bytes_given as f64,
    ),
    counter(
        "value_stored_bytes_total",
        "Bytes that they took there.",
        |f| f.value_bytes_stored as f64,
    ),
    counter(
        "value_moved_bytes_total",
        "Bytes that were moved within the value log.",
        |f| f.value_bytes_moved as f64,
    ),
    counter(
        "expired_total",
        "Expired records that were taken out of memory.",
        |f| f.expired as f64,
    ),
    gauge("cluster_epoch", "Epoch of the cluster's map.", |f| {
        f.epoch as f64
    }),
    gauge("cluster_nodes", "Nodes of the cluster.", |f| f.nodes as f64),
    gauge(
        "cluster_nodes_live",
        "Nodes that may be asked, with this one.",
        |f| f.nodes_live as f64,
    ),
    gauge(
        "replicated_read_p50_seconds",
        "Half of the reads over replicas in the last minute or two took longer.",
        |f| quantile(&f.latencies.clients.reads, 0.5),
    ),
    gauge(
        "replicated_read_p99_seconds",
        "One in a hundred of them took longer.",
        |f| quantile(&f.latencies.clients.reads, 0.99),
    ),
    gauge(
        "replicated_write_p50_seconds",
        "Half of the writes to replicas in the last minute or two took longer.",
        |f| quantile(&f.latencies.clients.writes, 0.5),
    ),
    gauge(
        "replicated_write_p99_seconds",
        "One in a hundred of them took longer.",
        |f| quantile(&f.latencies.clients.writes, 0.99),
    ),
    gauge(
        "hints",
        "Hints that are kept for replicas on other nodes.",
        |f| f.hints.left().hints as f64,
    ),
    gauge("hint_bytes", "Bytes that their files take.", |f| {
        f.hints.left().bytes as f64
    }),
    counter("hints_kept_total", "Hints that were kept.", |f| {
        f.hints.stats.kept as f64
    }),
    counter(
        "hints_handed_on_total",
        "Hints that their replicas have synced.",
        |f| f.hints.stats.handed as f64,
    ),
    counter(
        "hints_refused_total",
        "Hints for which there was no room, or which the disk did not take.",
        |f| f.hints.stats.refused as f64,
    ),
    counter(
        "hints_expired_total",
        "Hints that were dropped because they were too old.",
        |f| f.hints.stats.expired as f64,
    ),
    counter(
        "hints_damaged_total",
        "Places in files of hints that were damaged.",
        |f| f.hints.stats.damaged as f64,
    ),
    gauge("resident_bytes", "Memory of the process.", |_| {
        rt::resident_bytes() as f64
    }),
    gauge("open_files", "Files and connections that are open.", |_| {
        rt::open_files().0 as f64
    }),
    counter(
        "cpu_seconds_total",
        "Seconds of CPU that the process has used.",
        |_| {
            let (user, system) = rt::cpu_seconds();
            user + system
        },
    ),
];

/// All figures in the text format of Prometheus.
pub fn exposition(figures: &Figures) -> String {
    let mut out = String::new();
    for metric in METRICS {
        let (name, help) = (metric.name, metric.help);
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let value = (metric.value)(figures);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP quoit_{name} {help}\n# TYPE quoit_{name} {kind}\nquoit_{name} {value}\n"
        );
    }
    out
}
