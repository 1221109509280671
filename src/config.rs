//! The configuration: config.toml into [`Config`], checked once, before anything starts.
//!
//! config.toml at the top of the repository is the manual: every key with its unit, default and
//! consequence. A test holds it to [`Config::default`]. Every other limit has its name in `fixed`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::types::Level;

mod cluster;
mod fixed;

use cluster::host_and_port;
pub use cluster::{Cluster, ETCD_PREFIX_BYTES_MAX, Metadata, etcd_endpoint};
pub use fixed::*;

/// The manual, as shipped.
pub const MANUAL: &str = include_str!("../config.toml");

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on disk.
    Sync,
    /// At once; what was written is synced once in this interval.
    Periodic(Duration),
    /// At once; there is no log, and only flushed memtables survive.
    None,
}

/// `durability` as it is written in config.toml and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityName {
    /// Every acknowledged write is on disk.
    Sync,
    /// Up to one interval of acknowledged writes may be lost in a power cut.
    Periodic,
    /// Everything since the last flush may be lost in any crash.
    None,
}

impl DurabilityName {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            DurabilityName::Sync => "sync",
            DurabilityName::Periodic => "periodic",
            DurabilityName::None => "none",
        }
    }
}

/// `storage.compaction` as it is written in config.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompactionName {
    /// Levels of growing size.
    Leveled,
    /// Runs of similar size.
    SizeTiered,
}

/// How bytes are compressed on disk, as it is written in config.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    None,
    /// With LZ4, where that saves an eighth at least.
    Lz4,
}

/// All of the configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Where the data is.
    pub dir: PathBuf,
    /// The address that clients connect to.
    pub bind: IpAddr,
    /// The port that clients connect to; 0: any free one.
    pub port: u16,
    /// The port of core 0 alone; the other cores' follow it. 0: any free ones.
    pub core_port: u16,
    /// The port for HTTP; 0: any free one.
    pub http_port: u16,
    /// The port by which other nodes reach core 0; the other cores' follow it. 0: any free ones.
    pub peer_port: u16,
    /// What the nodes of the cluster prove to each other that they know; empty: nothing.
    pub cluster_key: String,
    /// The file that it is read from instead; empty: none.
    pub cluster_key_file: PathBuf,
    /// The host by which cluster clients are told to reach the node; empty: the one that they came
    /// to.
    pub announce_host: String,
    /// The port by which they are told to reach core 0; 0: the one that it listens on.
    pub announce_core_port: u16,
    /// How many cores the node uses; 0: as many as the machine has.
    pub cores: u16,
    /// CPUs that the cores are pinned to, in order; empty: the kernel places them.
    pub pin: Vec<usize>,
    /// The number of a node that founds a cluster, part of every version that it makes.
    pub node_id: u16,
    /// Nodes of the cluster that a new node is to join.
    pub join: Vec<String>,
    /// What fails together with this node.
    pub rack: String,
    /// This node's share of the data, in proportion to the others'.
    pub weight: u32,
    /// How many replicas each key of a cluster has that this node founds.
    pub replicas: u8,
    /// Arcs of the ring of a cluster that this node founds. No key of the file: simulations have
    /// many clusters, and small rings.
    #[serde(skip)]
    pub vnodes: u32,
    /// Milliseconds between two rounds of gossip.
    pub gossip_interval_ms: u64,
    /// Milliseconds of silence after which a node is suspect.
    pub suspect_after_ms: u64,
    /// Milliseconds of silence after which a node is dead.
    pub dead_after_ms: u64,
    /// When a write is acknowledged.
    pub durability: DurabilityName,
    /// Milliseconds between two syncs, with `durability = "periodic"`.
    pub durability_interval_ms: u64,
    /// What clients must say with AUTH; empty: nothing.
    pub password: String,
    /// Memory for data, of all cores together; 0: half of what the machine has.
    pub memory: ByteSize,
    /// Where the cluster's map is kept.
    pub cluster: Cluster,
    /// Sizes of each core's storage.
    pub storage: Storage,
    /// At which level is read, where nothing else is said.
    pub read_consistency: Level,
    /// At which level is written, where nothing else is said.
    pub write_consistency: Level,
    /// Milliseconds that a request waits for the replicas of its key.
    pub replica_timeout_ms: u64,
    /// Bytes of all hints that the node keeps for replicas that are away; 0: it keeps none.
    pub hint_max_bytes: ByteSize,
    /// Seconds after which a hint is dropped.
    pub hint_max_age_s: u64,
    /// How large values are kept.
    pub value_log: ValueLog,
    /// What a client may ask for.
    pub limits: Limits,
}

/// Sizes of each core's storage.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Storage {
    /// A memtable is flushed at this size.
    pub memtable: ByteSize,
    /// A memtable is flushed when the log reaches this size.
    pub wal_max: ByteSize,
    /// The size of one log segment.
    pub wal_segment: ByteSize,
    /// The most that one batch of the log takes.
    pub wal_batch: ByteSize,
    /// A table is begun anew at this size.
    pub table_max: ByteSize,
    /// How much of a core's memory filters and indexes of tables may take, in hundredths.
    pub index_share_percent: u64,
    /// How blocks of tables are compressed.
    pub compression: Compression,
    /// Which tables are merged with which.
    pub compaction: CompactionName,
    /// What level 1 may hold.
    pub level_base: ByteSize,
    /// How many times as much each further level may hold.
    pub level_ratio: u64,
}

/// How large values are kept.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ValueLog {
    /// A value of this size is kept in the value log.
    pub threshold: ByteSize,
    /// How values are compressed there.
    pub compression: Compression,
    /// The size of one segment of the value log.
    pub segment: ByteSize,
    /// A memtable is flushed when a restart would have to read so much of the value log.
    pub replay_max: ByteSize,
    /// The share of garbage above which the value log is collected, in hundredths.
    pub garbage_max_percent: u64,
}

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections to the node.
    pub clients_max: usize,
    /// Bytes of a key.
    pub key_max: ByteSize,
    /// Bytes of a value.
    pub value_max: ByteSize,
    /// Bytes of one request, and of all that MULTI queues.
    pub request_max: ByteSize,
    /// Arguments of one request.
    pub args_max: usize,
    /// Bytes of one reply of KEYS, MGET and the like.
    pub reply_max: ByteSize,
    /// Seconds after which an idle connection is closed; 0: never.
    pub idle_timeout_s: u64,
    /// Seconds within which a request over HTTP must arrive, and a second more for each
    /// [`HTTP_BYTES_PER_S`].
    pub http_request_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dir: PathBuf::from("data"),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 6379,
            core_port: CORE_PORT,
            http_port: HTTP_PORT,
            peer_port: PEER_PORT,
            cluster_key: String::new(),
            cluster_key_file: PathBuf::new(),
            announce_host: String::new(),
            announce_core_port: 0,
            cores: 0,
            pin: Vec::new(),
            node_id: 1,
            join: Vec::new(),
            rack: String::new(),
            weight: 100,
            replicas: 3,
            vnodes: VNODES,
            gossip_interval_ms: 1000,
            suspect_after_ms: 10_000,
            dead_after_ms: 30_000,
            durability: DurabilityName::Sync,
            durability_interval_ms: 1000,
            password: String::new(),
            memory: ByteSize(0),
            cluster: Cluster::default(),
            storage: Storage::default(),
            read_consistency: Level::One,
            write_consistency: Level::One,
            replica_timeout_ms: 5000,
            hint_max_bytes: ByteSize::gib(4),
            hint_max_age_s: 86_400,
            value_log: ValueLog::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Storage {
    fn default() -> Storage {
        Storage {
            memtable: ByteSize::mib(64),
            wal_max: ByteSize::mib(256),
            wal_segment: ByteSize::mib(16),
            wal_batch: ByteSize::mib(4),
            table_max: ByteSize::mib(64),
            index_share_percent: 40,
            compression: Compression::Lz4,
            compaction: CompactionName::Leveled,
            level_base: ByteSize::mib(256),
            level_ratio: 10,
        }
    }
}

impl Default for ValueLog {
    fn default() -> ValueLog {
        ValueLog {
            threshold: ByteSize::kib(2),
            compression: Compression::None,
            segment: ByteSize::mib(32),
            replay_max: ByteSize::mib(256),
            garbage_max_percent: 24,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients_max: 10_000,
            key_max: ByteSize::kib(64),
            value_max: ByteSize::mib(64),
            request_max: ByteSize::mib(128),
            args_max: 1024 * 1024,
            reply_max: ByteSize::mib(128),
            idle_timeout_s: 0,
            http_request_timeout_s: 30,
        }
    }
}

/// True for nothing, an address that somebody can connect to, and what may be a name in the DNS.
pub fn is_host(text: &str) -> bool {
    match text.parse::<IpAddr>() {
        Ok(address) => !address.is_unspecified(),
        Err(_) => {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            text.len() <= HOST_BYTES_MAX && text.bytes().all(fits)
        }
    }
}

fn fits(bytes: ByteSize, low: u64, high: u64) -> bool {
    (low..=high).contains(&bytes.0)
}

impl Storage {
    /// What must hold, and how it is said.
    fn rules(&self) -> [(bool, &'static str); 8] {
        [
            (
                fits(self.memtable, 64 << 10, 64 << 30),
                "`storage.memtable` is 64 KiB to 64 GiB",
            ),
            (
                fits(self.wal_segment, 64 << 10, 4 << 30)
                    && self.wal_segment.0.is_multiple_of(4096),
                "`storage.wal-segment` is 64 KiB to 4 GiB in steps of 4 KiB",
            ),
            (
                self.wal_max.0 >= 2 * self.wal_segment.0,
                "`storage.wal-max` is at least two of `storage.wal-segment`",
            ),
            (
                fits(self.wal_batch, 4 << 10, 64 << 20),
                "`storage.wal-batch` is 4 KiB to 64 MiB",
            ),
            (
                fits(self.table_max, 64 << 10, 1 << 40),
                "`storage.table-max` is 64 KiB to 1 TiB",
            ),
            (
                self.index_share_percent <= INDEX_SHARE_PERCENT_MAX,
                "`storage.index-share-percent` is 0 to 50",
            ),
            (
                fits(self.level_base, 64 << 10, 1 << 40),
                "`storage.level-base` is 64 KiB to 1 TiB",
            ),
            (
                (2..=100).contains(&self.level_ratio),
                "`storage.level-ratio` is 2 to 100",
            ),
        ]
    }
}

impl ValueLog {
    /// What must hold, and how it is said.
    fn rules(&self) -> [(bool, &'static str); 4] {
        [
            (
                fits(self.threshold, 1, 1 << 30),
                "`value-log.threshold` is 1 B to 1 GiB",
            ),
            (
                fits(self.segment, 64 << 10, 2 << 30) && self.segment.0.is_multiple_of(4096),
                "`value-log.segment` is 64 KiB to 2 GiB in steps of 4 KiB",
            ),
            (
                self.replay_max.0 >= 2 * self.segment.0,
                "`value-log.replay-max` is at least two of `value-log.segment`",
            ),
            (
                (5..=90).contains(&self.garbage_max_percent),
                "`value-log.garbage-max-percent` is 5 to 90",
            ),
        ]
    }
}

impl Limits {
    /// What must hold, and how it is said.
    fn rules(&self) -> [(bool, &'static str); 7] {
        [
            (
                (1..=3600).contains(&self.http_request_timeout_s),
                "`limits.http-request-timeout-s` is 1 to 3600",
            ),
            (self.clients_max >= 1, "`limits.clients-max` is at least 1"),
            (
                fits(self.key_max, 1, 64 << 10),
                "`limits.key-max` is 1 B to 64 KiB",
            ),
            (
                fits(self.value_max, 1, VALUE_BYTES_MAX as u64),
                "`limits.value-max` is 1 B to 512 MiB",
            ),
            (
                fits(
                    self.request_max,
                    self.value_max.0 + self.key_max.0 + 1024,
                    2 << 30,
                ),
                "`limits.request-max` is more than `limits.value-max` and `limits.key-max` \
                 together, and at most 2 GiB",
            ),
            (
                (8..=1 << 24).contains(&self.args_max),
                "`limits.args-max` is 8 to 16777216",
            ),
            (
                self.reply_max >= self.value_max,
                "`limits.reply-max` is at least `limits.value-max`",
            ),
        ]
    }
}

impl Config {
    /// Reads a configuration; what it does not name keeps its default.
    pub fn parse(text: &str) -> Result<Config> {
        toml::from_str(text).map_err(|error| Error::Setup(format!("configuration: {error}")))
    }

    /// Refuses what cannot work, naming the key.
    pub fn check(&self) -> Result<()> {
        let pinned = self.pin.is_empty() || self.pin.len() == usize::from(self.cores);
        let rules = [
            (pinned, "`pin` names one CPU for each of `cores`, or none"),
            (!self.dir.as_os_str().is_empty(), "`dir` names a directory"),
            (
                self.memory.0 == 0
                    || self.memory.0 / u64::from(self.cores.max(1)) >= MEMORY_CORE_MIN,
                "`memory` is at least 1 MiB for each of `cores`",
            ),
            (self.cores <= CORES_MAX, "`cores` is at most 1024"),
            (
                self.ports_of_cores()
                    .is_none_or(|first| self.has_ports(first)),
                "`core-port` and the ports behind it, one for each of `cores`, are at most 65535, and \
                 none of them is `port`",
            ),
            (
                self.http_port == 0 || !self.is_taken(self.http_port),
                "`http-port` is neither `port` nor that of a core",
            ),
            (
                self.announce_core_port == 0 || self.has_room(self.announce_core_port),
                "`announce-core-port` and the ports behind it, one for each of `cores`, are at most \
                 65535",
            ),
            (
                self.announce_core_port == 0 || self.ports_of_cores().is_some(),
                "`announce-core-port` is for ports that are known: set `core-port`, too",
            ),
            (
                is_host(&self.announce_host),
                "`announce-host` is a host name or an address (not the one that means any)",
            ),
            (
                self.durability_interval_ms > 0,
                "`durability-interval-ms` is at least 1",
            ),
        ];
        let sizes = (self.storage.rules(), self.value_log.rules());
        let (cluster, limits) = (self.cluster_rules(), self.limits.rules());
        let metadata = self.cluster.rules();
        let others = metadata.iter().chain(&cluster).chain(&limits);
        let mut all = sizes.0.iter().chain(&sizes.1).chain(others).chain(&rules);
        match all.find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::Setup(format!("configuration: {rule}"))),
            None => Ok(()),
        }
    }

    /// What must hold of the keys that are about the cluster.
    fn cluster_rules(&self) -> [(bool, &'static str); 13] {
        let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        [
            (self.node_id > 0, "`node-id` is 1 to 65535"),
            (
                self.ports_of_peers()
                    .is_none_or(|first| self.has_peer_ports(first)),
                "`peer-port` and the ports behind it, one for each of `cores`, are at most 65535, and none of them is used \
                 otherwise",
            ),
            (
                self.cluster_key.is_empty() || self.cluster_key_file.as_os_str().is_empty(),
                "the key is `cluster-key` or in `cluster-key-file`, not both",
            ),
            (
                (1..=3_600_000).contains(&self.replica_timeout_ms),
                "`replica-timeout-ms` is 1 to 3600000",
            ),
            (
                self.hint_max_bytes.0 == 0 || fits(self.hint_max_bytes, HINT_BYTES_MIN, 1 << 50),
                "`hint-max-bytes` is 0 or 64 KiB to 1 PiB",
            ),
            (
                (1..=31_536_000).contains(&self.hint_max_age_s),
                "`hint-max-age-s` is 1 to 31536000",
            ),
            (
                self.join.iter().all(|text| host_and_port(text).is_some()),
                "`join` names nodes as \"HOST:PEER-PORT\"",
            ),
            (
                self.join.is_empty() || self.cluster.metadata == Metadata::Register,
                "`join` is for clusters that keep their map themselves: with `cluster.metadata` = \"etcd\" nodes find each \
                 other by the map in etcd",
            ),
            (
                self.join.len() <= JOIN_MAX,
                "`join` names at most 64 nodes; one is enough",
            ),
            (
                self.rack.len() <= RACK_BYTES_MAX && self.rack.bytes().all(is_name),
                "`rack` is at most 64 letters, digits and the like, without quotes and spaces",
            ),
            (
                (1..=WEIGHT_MAX).contains(&self.weight),
                "`weight` is 1 to 100000",
            ),
            (
                (1..=REPLICAS_MAX).contains(&self.replicas),
                "`replicas` is 1 to 7",
            ),
            (
                0 < self.gossip_interval_ms
                    && self.gossip_interval_ms < self.suspect_after_ms
                    && self.suspect_after_ms < self.dead_after_ms
                    && self.dead_after_ms <= DEAD_AFTER_MS_MAX,
                "`gossip-interval-ms` is less than `suspect-after-ms`, that less than `dead-after-ms`, and that at most \
                 a day",
            ),
        ]
    }

    /// The first of the cores' own ports; `None`: they may be any. Whoever leaves `port` to chance
    /// means these, too.
    pub fn ports_of_cores(&self) -> Option<u16> {
        let is_any = self.core_port == 0 || (self.port == 0 && self.core_port == CORE_PORT);
        (!is_any).then_some(self.core_port)
    }

    /// The port for HTTP; 0: it may be any. Whoever leaves `port` to chance means this, too.
    pub fn port_of_http(&self) -> u16 {
        match self.port == 0 && self.http_port == HTTP_PORT {
            true => 0,
            false => self.http_port,
        }
    }

    /// The first of the ports for other nodes; `None`: they may be any. Whoever leaves `port` to
    /// chance means these, too.
    pub fn ports_of_peers(&self) -> Option<u16> {
        let is_any = self.peer_port == 0 || (self.port == 0 && self.peer_port == PEER_PORT);
        (!is_any).then_some(self.peer_port)
    }

    /// True if the ports from `first` on can be those for other nodes.
    fn has_peer_ports(&self, first: u16) -> bool {
        let mut own = (0..self.cores.max(1)).map(|core| first.saturating_add(core));
        self.has_room(first) && own.all(|port| !self.is_taken(port) && port != self.port_of_http())
    }

    /// True if RESP is spoken at this port.
    fn is_taken(&self, port: u16) -> bool {
        let cores = self.ports_of_cores().map(u32::from);
        let is_of_core =
            |first: u32| (first..first + u32::from(self.cores.max(1))).contains(&u32::from(port));
        port == self.port || cores.is_some_and(is_of_core)
    }

    /// True if there is a port for each core from `first` on.
    fn has_room(&self, first: u16) -> bool {
        u32::from(first) + u32::from(self.cores.max(1)) <= 1 << 16
    }

    /// True if the cores can have the ports from `first` on, beside the shared one.
    fn has_ports(&self, first: u16) -> bool {
        let behind = u32::from(first) + u32::from(self.cores.max(1));
        self.has_room(first) && !(u32::from(first)..behind).contains(&u32::from(self.port))
    }

    /// When a write is acknowledged.
    pub fn durability(&self) -> Durability {
        match self.durability {
            DurabilityName::Sync => Durability::Sync,
            DurabilityName::Periodic => {
                Durability::Periodic(Duration::from_millis(self.durability_interval_ms))
            }
            DurabilityName::None => Durability::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_is_the_default() {
        let manual = Config::parse(MANUAL).expect("config.toml parses");
        assert_eq!(
            manual,
            Config::default(),
            "config.toml states other defaults than the code"
        );
        assert_eq!(
            Config::parse("").expect("nothing is required"),
            Config::default()
        );
        Config::default().check().expect("the defaults are allowed");
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_by_name() {
        let unknown = Config::parse("prot = 1").expect_err("a typing error");
        assert!(unknown.to_string().contains("prot"), "{unknown}");
        let cases = [
            ("cores = 2\npin = [0]", "pin"),
            ("dir = \"\"", "dir"),
            ("durability-interval-ms = 0", "durability-interval-ms"),
            ("cores = 4\nmemory = \"3MiB\"", "memory"),
            ("core-port = 65535\ncores = 2", "core-port"),
            ("core-port = 6378\ncores = 2", "core-port"),
            (
                "announce-core-port = 65535\ncores = 2",
                "announce-core-port",
            ),
            (
                "announce-core-port = 1\ncore-port = 0",
                "announce-core-port",
            ),
            ("http-port = 6379", "http-port"),
            ("node-id = 0", "node-id"),
            ("join = [\"10.0.0.1\"]", "join"),
            ("join = [\"10.0.0.1:0\"]", "join"),
            ("join = [\":7379\"]", "join"),
            ("[cluster]\nmetadata = \"etcd\"", "cluster.etcd"),
            ("[cluster]\netcd = [\"http://a:1\"]", "cluster.metadata"),
            (
                "cluster = { metadata = \"etcd\", etcd = [\"https://a:2379\"] }",
                "TLS",
            ),
            (
                "cluster = { metadata = \"etcd\", etcd = [\"http://a\"] }",
                "cluster.etcd",
            ),
            (
                "cluster = { metadata = \"etcd\", etcd = [\"http://a:1/v3\"] }",
                "cluster.etcd",
            ),
            (
                "join = [\"a:1\"]\ncluster = { metadata = \"etcd\", etcd = [\"http://a:1\"] }",
                "join",
            ),
            ("[cluster]\netcd-prefix = \"a/\"", "etcd-prefix"),
            ("[cluster]\netcd-user = \"a\"", "etcd-password"),
            ("rack = \"a b\"", "rack"),
            ("weight = 0", "weight"),
            ("replicas = 8", "replicas"),
            ("hint-max-bytes = \"1KiB\"", "hint-max-bytes"),
            ("hint-max-age-s = 0", "hint-max-age-s"),
            ("suspect-after-ms = 1000", "suspect-after-ms"),
            ("dead-after-ms = 10000", "dead-after-ms"),
            ("http-port = 16380\ncores = 2", "http-port"),
            ("peer-port = 6379", "peer-port"),
            ("peer-port = 8378\ncores = 2", "peer-port"),
            ("peer-port = 65535\ncores = 2", "peer-port"),
            (
                "cluster-key = \"a\"\ncluster-key-file = \"b\"",
                "cluster-key",
            ),
            ("announce-host = \"0.0.0.0\"", "announce-host"),
            ("announce-host = \"::\"", "announce-host"),
            ("announce-host = \"a b\"", "announce-host"),
            ("announce-host = \"host:1\"", "announce-host"),
            ("[storage]\nlevel-ratio = 1", "level-ratio"),
            ("[storage]\nwal-segment = \"5000B\"", "wal-segment"),
            ("[value-log]\nsegment = \"5000B\"", "value-log.segment"),
            ("[value-log]\ngarbage-max-percent = 0", "garbage-max"),
            (
                "[limits]\nhttp-request-timeout-s = 0",
                "http-request-timeout-s",
            ),
            ("[limits]\nkey-max = \"1MiB\"", "key-max"),
            ("[limits]\nvalue-max = \"128MiB\"", "request-max"),
        ];
        for (text, key) in cases {
            let error = Config::parse(text)
                .and_then(|config| config.check())
                .expect_err(text);
            assert!(error.to_string().contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn the_ports_of_cores_are_left_to_chance_with_the_shared_one() {
        let first = |text: &str| {
            let config = Config::parse(text).expect("it parses");
            config.check().expect("it is allowed");
            config.ports_of_cores()
        };
        let http = |text: &str| Config::parse(text).expect("it parses").port_of_http();
        assert_eq!(http(""), HTTP_PORT);
        assert_eq!(http("port = 0"), 0);
        assert_eq!(http("port = 0\nhttp-port = 7001"), 7001);
        assert_eq!(http("http-port = 0"), 0);
        assert_eq!(first(""), Some(CORE_PORT));
        assert_eq!(first("port = 7000"), Some(CORE_PORT));
        assert_eq!(first("port = 0"), None);
        assert_eq!(first("core-port = 0"), None);
        assert_eq!(first("port = 0\ncore-port = 7001"), Some(7001));
        assert_eq!(first("core-port = 65534\ncores = 2"), Some(65_534));
        assert_eq!(
            first("core-port = 6380\nannounce-host = \"kv-1.example\""),
            Some(6380)
        );
    }
}
