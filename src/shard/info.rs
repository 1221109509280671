//! INFO: the sections that clients and tools read, with Redis's names, and one of our own.

use std::fmt::Write;

use super::Shard;
use super::face::mode;
use super::hints::HintReport;
use super::latencies::LatencyReport;
use super::report::{Report, total};
use super::session::REDIS_VERSION;
use crate::cluster::face::Port;
use crate::cluster::map::State;
use crate::config::{DurabilityName, Metadata};
use crate::membership::gossiping;
use crate::protocol::ArgView;
use crate::replication::latency::Both;
use crate::rt;
use crate::storage::cache::CacheStats;

/// What a client asks about.
pub struct Asked {
    /// What the cores in question tell.
    pub reports: Vec<Report>,
    /// Where it asks: about the node, or about one core.
    pub port: Port,
}

type Section = fn(&Shard, &Asked, &mut String);

/// All sections, in the order in which they are told.
const SECTIONS: &[(&str, Section)] = &[
    ("server", server),
    ("clients", clients),
    ("memory", memory),
    ("persistence", persistence),
    ("stats", stats),
    ("replication", replication),
    ("cpu", cpu),
    ("modules", |_, _, _| {}),
    ("errorstats", |_, _, _| {}),
    ("cluster", cluster),
    ("keyspace", keyspace),
    ("quoit", quoit),
];

impl Shard {
    /// The sections that were asked for; all of them if none was named.
    pub(super) fn info(&self, asked: &Asked, wanted: ArgView<'_>) -> String {
        let everything = |word: &[u8]| {
            ["all", "default", "everything"]
                .iter()
                .any(|all| word.eq_ignore_ascii_case(all.as_bytes()))
        };
        let all = wanted.is_empty() || wanted.iter().any(everything);
        let mut out = String::new();
        for (name, write) in SECTIONS {
            if !all
                && !wanted
                    .iter()
                    .any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
            {
                continue;
            }
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            let mut title = name.to_string();
            title[..1].make_ascii_uppercase();
            let _ = write!(out, "# {title}\r\n");
            write(self, asked, &mut out);
        }
        out
    }
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(out, "{name}:{value}\r\n");
}

fn server(shard: &Shard, asked: &Asked, out: &mut String) {
    let port = match asked.port {
        Port::Shared => shard.facts.address.port(),
        Port::Core => shard.facts.address_of(shard.id).port(),
    };
    let uptime = rt::now().saturating_sub(shard.started).as_secs();
    line(out, "redis_version", REDIS_VERSION);
    line(out, "quoit_version", env!("CARGO_PKG_VERSION"));
    line(out, "redis_mode", mode(asked.port));
    line(out, "os", &shard.facts.os);
    line(out, "arch_bits", usize::BITS);
    line(out, "multiplexing_api", "io_uring");
    line(out, "process_id", shard.facts.process_id);
    line(out, "run_id", &shard.facts.run_id);
    line(out, "tcp_port", port);
    line(out, "server_time_usec", rt::wall_ms() * 1000);
    line(out, "uptime_in_seconds", uptime);
    line(out, "uptime_in_days", uptime / 86_400);
}

fn clients(shard: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    line(
        out,
        "connected_clients",
        reports
            .iter()
            .map(|report| report.clients.len())
            .sum::<usize>(),
    );
    line(out, "maxclients", shard.config.limits.clients_max);
    line(out, "blocked_clients", 0);
}

fn memory(_: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    let resident = rt::resident_bytes();
    line(out, "used_memory", resident);
    line(out, "used_memory_human", bytesize::ByteSize(resident));
    line(out, "used_memory_rss", resident);
    line(out, "used_memory_dataset", total(reports).1.memtable_bytes);
    line(out, "maxmemory", 0);
    line(out, "maxmemory_policy", "noeviction");
}

fn persistence(shard: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    let refusing = reports
        .iter()
        .any(|report| report.failed || report.disk_full);
    let log = shard.config.durability != DurabilityName::None;
    line(out, "loading", 0);
    line(out, "async_loading", 0);
    line(out, "rdb_changes_since_last_save", 0);
    line(out, "rdb_bgsave_in_progress", 0);
    line(out, "rdb_last_bgsave_status", "ok");
    line(out, "aof_enabled", u8::from(log));
    line(out, "aof_rewrite_in_progress", 0);
    line(
        out,
        "aof_last_write_status",
        if refusing { "err" } else { "ok" },
    );
    line(out, "aof_current_size", total(reports).1.wal_bytes);
}

fn stats(_: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    let (counters, _) = total(reports);
    line(
        out,
        "total_connections_received",
        reports.iter().map(|r| r.connections).sum::<u64>(),
    );
    line(out, "total_commands_processed", counters.commands);
    line(out, "total_net_input_bytes", counters.bytes_in);
    line(out, "rejected_connections", counters.rejected);
    line(out, "http_requests", counters.http_requests);
    line(out, "http_errors", counters.http_errors);
    line(
        out,
        "expired_keys",
        reports
            .iter()
            .map(|report| report.stats.expired)
            .sum::<u64>(),
    );
    line(out, "evicted_keys", 0);
    line(out, "unexpected_error_replies", counters.errors);
}

fn replication(_: &Shard, _: &Asked, out: &mut String) {
    line(out, "role", "master");
    line(out, "connected_slaves", 0);
    line(out, "master_repl_offset", 0);
}

fn cpu(_: &Shard, _: &Asked, out: &mut String) {
    let (user, system) = rt::cpu_seconds();
    line(out, "used_cpu_sys", format_args!("{system:.6}"));
    line(out, "used_cpu_user", format_args!("{user:.6}"));
}

/// Redis has one line here; the others tell of all nodes, and `quoit status` reads them.
fn cluster(shard: &Shard, asked: &Asked, out: &mut String) {
    line(out, "cluster_enabled", u8::from(asked.port == Port::Core));
    let Some(view) = shard.place.view() else {
        return; // before clients can connect
    };
    let map = &view.map;
    let keepers: Vec<String> = map
        .keepers()
        .nodes
        .iter()
        .map(|id| id.0.to_string())
        .collect();
    line(out, "cluster_id", map.cluster());
    line(out, "cluster_node", view.own.0);
    line(out, "cluster_epoch", map.epoch());
    line(out, "cluster_replicas", map.copies());
    line(out, "cluster_replicas_wanted", map.replicas());
    line(out, "cluster_holds_data", u8::from(map.is_open()));
    let kept_by = match shard.config.cluster.metadata {
        Metadata::Register => keepers.join(" "),
        Metadata::Etcd => "etcd".to_owned(),
    };
    line(out, "cluster_map_kept_by", kept_by);
    let hints = HintReport::total(asked.reports.iter().map(|report| &report.hints));
    let (left, stats) = (hints.left(), hints.stats);
    line(out, "hints", left.hints);
    line(out, "hint_bytes", left.bytes);
    line(out, "hints_kept", stats.kept);
    line(out, "hints_handed_on", stats.handed);
    line(out, "hints_refused", stats.refused);
    line(out, "hints_expired", stats.expired);
    line(out, "hints_damaged", stats.damaged);
    let latencies = LatencyReport::total(asked.reports.iter().map(|report| &report.latencies));
    replicated(&latencies.clients, out);
    line(out, "cluster_nodes", map.nodes().len());
    for node in map.nodes() {
        let standing = match view.standings.get(&node.id) {
            Some(standing) => gossiping::name(*standing),
            None => "self",
        };
        let held = map.held_by(node.id).count() as f64;
        let share = held * 100.0 / f64::from(map.vnodes().count());
        let state = match node.state {
            State::Joining => "joining",
            State::Alive => "member",
            State::Leaving => "leaving",
            State::Dead => "removed",
        };
        let mut text = format!(
            "address={}:{},peers={}:{},state={state},standing={standing},rack={},weight={},cores={},holds_percent={share:.1},\
             hints={}",
            node.host,
            node.port,
            node.host,
            node.peer_port,
            node.rack,
            node.weight,
            node.cores,
            hints.backlog.get(&node.id).map_or(0, |left| left.hints)
        );
        if let Some(answers) = latencies.nodes.get(&node.id) {
            answering(answers, &mut text);
        }
        line(out, &format!("node{}", node.id.0), text);
    }
}

/// How long operations over replicas took lately, if there were any.
fn replicated(latencies: &Both, out: &mut String) {
    for (kind, of) in [("reads", &latencies.reads), ("writes", &latencies.writes)] {
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            if let Some(took) = of.quantile(share) {
                let name = format!("replicated_{kind}_{name}_ms");
                line(out, &name, format_args!("{:.3}", took.as_secs_f64() * 1e3));
            }
        }
    }
}

/// How long a node took to answer, if it was asked.
fn answering(latencies: &Both, text: &mut String) {
    for (kind, of) in [("reads", &latencies.reads), ("writes", &latencies.writes)] {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(took) = of.quantile(share) {
                // Writing to a String cannot fail.
                let _ = write!(text, ",{kind}_{name}_ms={:.3}", took.as_secs_f64() * 1e3);
            }
        }
    }
}

/// An estimate: records that newer ones supersede are counted until they are merged.
fn keyspace(_: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    let records = total(reports).1.records;
    if records > 0 {
        line(
            out,
            "db0",
            format_args!("keys={records},expires=0,avg_ttl=0"),
        );
    }
}

fn cache(out: &mut String, name: &str, stats: &CacheStats) {
    let rate = stats.hits as f64 / (stats.hits + stats.misses).max(1) as f64;
    line(out, &format!("{name}_bytes"), stats.bytes);
    line(out, &format!("{name}_budget"), stats.budget);
    line(out, &format!("{name}_hits"), stats.hits);
    line(out, &format!("{name}_misses"), stats.misses);
    line(out, &format!("{name}_hit_rate"), format_args!("{rate:.4}"));
}

fn quoit(shard: &Shard, Asked { reports, .. }: &Asked, out: &mut String) {
    let (counters, sizes) = total(reports);
    let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
    line(out, "cores", shard.map.cores());
    line(out, "answering_core", shard.id.0);
    line(out, "durability", shard.config.durability.name());
    line(
        out,
        "log_failed_cores",
        sum(|report| u64::from(report.failed)),
    );
    line(
        out,
        "disk_full_cores",
        sum(|report| u64::from(report.disk_full)),
    );
    line(out, "commands_sent_to_other_cores", counters.crossed);
    line(out, "commands_redirected", counters.redirected);
    line(out, "records_estimate", sizes.records);
    line(out, "memtable_bytes", sizes.memtable_bytes);
    line(out, "tables", sizes.tables);
    line(out, "table_bytes", sizes.table_bytes);
    line(out, "table_runs_max", sizes.table_runs);
    line(out, "log_bytes", sizes.wal_bytes);
    line(out, "value_log_segments", sizes.values.segments);
    line(out, "value_log_emptied_segments", sizes.values.emptied);
    line(out, "value_log_bytes", sizes.values.bytes);
    line(out, "value_log_live_bytes", sizes.values.live);
    line(out, "value_log_garbage_bytes", sizes.values.garbage);
    // Since the start: what was written, before and after packing.
    line(
        out,
        "value_log_bytes_given",
        sum(|report| report.stats.value_bytes_given),
    );
    line(
        out,
        "value_log_bytes_stored",
        sum(|report| report.stats.value_bytes_stored),
    );
    line(
        out,
        "value_log_collections",
        sum(|report| report.stats.collections),
    );
    line(
        out,
        "value_log_bytes_moved",
        sum(|report| report.stats.value_bytes_moved),
    );
    line(out, "flushes", sum(|report| report.stats.flushes));
    line(out, "compactions", sum(|report| report.stats.compactions));
    line(
        out,
        "table_bytes_written",
        sum(|report| report.stats.table_bytes_written),
    );
    line(out, "tables_moved", sum(|report| report.stats.tables_moved));
    line(
        out,
        "table_bytes_read_by_merges",
        sum(|report| report.stats.table_bytes_read),
    );
    let (open, most) = rt::open_files();
    line(out, "open_files", open);
    line(out, "open_files_limit", most);
    line(out, "memory_budget", shard.config.memory.0);
    line(out, "filter_and_index_bytes", sizes.index_bytes);
    line(out, "tables_by_need", sizes.tables_by_need);
    line(out, "partition_hits", sizes.partitions.hits);
    line(out, "partition_reads", sizes.partitions.reads);
    cache(out, "row_cache", &sizes.rows);
    cache(out, "key_cache", &sizes.pointers);
    cache(out, "block_cache", &sizes.blocks);
    line(out, "kicks", rt::kicks());
}
