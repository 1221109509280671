//! What a core counts, and what it tells about itself when asked.

use std::fmt::Write;

use super::Shard;
use super::connection::Client;
use super::hints::HintReport;
use super::latencies::LatencyReport;
use crate::rt;
use crate::storage::{Sizes, Stats};

/// What a core has counted since the start, or since CONFIG RESETSTAT.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Commands of this core's clients.
    pub commands: u64,
    /// Requests that were no command.
    pub errors: u64,
    /// Connections refused for `limits.clients-max`.
    pub rejected: u64,
    /// Commands of which another core had to do a part.
    pub crossed: u64,
    /// Commands that a port of one core did not serve: the client's map was an old one.
    pub redirected: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Requests over HTTP.
    pub http_requests: u64,
    /// Those that were answered with a status from 400 on.
    pub http_errors: u64,
}

impl Counters {
    /// Counts from zero again.
    pub fn reset(&mut self) {
        *self = Counters::default();
    }

    /// Adds what another core has counted.
    pub fn add(&mut self, other: &Counters) {
        self.commands += other.commands;
        self.errors += other.errors;
        self.rejected += other.rejected;
        self.crossed += other.crossed;
        self.redirected += other.redirected;
        self.bytes_in += other.bytes_in;
        self.http_requests += other.http_requests;
        self.http_errors += other.http_errors;
    }
}

/// What a core tells about itself.
pub struct Report {
    /// What it has counted.
    pub counters: Counters,
    /// What its store holds.
    pub sizes: Sizes,
    /// What its store has done.
    pub stats: Stats,
    /// True if it refuses writes for good.
    pub failed: bool,
    /// True if it refuses writes for want of space.
    pub disk_full: bool,
    /// Its hints.
    pub hints: HintReport,
    /// How long operations over replicas take.
    pub latencies: LatencyReport,
    /// Connections made since the start.
    pub connections: u64,
    /// Its clients: number and CLIENT LIST line.
    pub clients: Vec<(u64, String)>,
}

impl Shard {
    pub(super) fn report(&self) -> Report {
        let mut clients = Vec::with_capacity(self.clients.count());
        self.clients
            .each(|client| clients.push((client.id, describe_client(client))));
        Report {
            counters: *self.counters.borrow(),
            sizes: self.store.sizes(),
            stats: self.store.stats(),
            failed: self.store.has_failed(),
            disk_full: self.store.is_disk_full(),
            hints: self.hint_report(),
            latencies: self.latency_report(),
            connections: self.clients.made(),
            clients,
        }
    }
}

/// What all of `reports` have counted together, and what their stores hold.
pub fn total(reports: &[Report]) -> (Counters, Sizes) {
    let mut counters = Counters::default();
    let mut sizes = Sizes::default();
    for report in reports {
        counters.add(&report.counters);
        sizes.memtable_bytes += report.sizes.memtable_bytes;
        sizes.records += report.sizes.records;
        sizes.tables += report.sizes.tables;
        sizes.table_bytes += report.sizes.table_bytes;
        sizes.table_runs = sizes.table_runs.max(report.sizes.table_runs);
        sizes.wal_bytes += report.sizes.wal_bytes;
        sizes.values.add(&report.sizes.values);
        sizes.index_bytes += report.sizes.index_bytes;
        sizes.rows.add(&report.sizes.rows);
        sizes.pointers.add(&report.sizes.pointers);
        sizes.blocks.add(&report.sizes.blocks);
        sizes.tables_by_need += report.sizes.tables_by_need;
        sizes.partitions.add(&report.sizes.partitions);
    }
    (counters, sizes)
}

/// One line of CLIENT LIST, in Redis's form.
pub fn describe_client(client: &Client) -> String {
    let about = client.about.borrow();
    let address = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    let now = rt::now();
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        line,
        "id={} addr={} laddr={} fd=0 name={} age={} idle={} flags={} db=0 sub=0 psub=0 ssub=0 \
         multi={} watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 \
         omem=0 tot-mem=0 events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
        client.id,
        address(client.peer),
        address(client.local),
        about.name,
        now.saturating_sub(client.since).as_secs(),
        now.saturating_sub(client.active.get()).as_secs(),
        if about.queued.is_some() { "x" } else { "N" },
        about.queued.map_or(-1, |queued| queued as i64),
        if about.command.is_empty() {
            "NULL"
        } else {
            about.command
        },
        about.protocol,
        about.lib_name,
        about.lib_version,
    );
    line
}
