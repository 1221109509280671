//! Limits and defaults that nobody configures, and the bounds of what is configured.

use std::time::Duration;

/// The port of core 0 alone, if nothing else is said.
pub const CORE_PORT: u16 = 16379;
/// The port for HTTP, if nothing else is said.
pub const HTTP_PORT: u16 = 8379;
/// The port by which other nodes reach core 0, if nothing else is said.
pub const PEER_PORT: u16 = 7379;
/// Requests of one core to another node's core that are not answered yet, and those that are under
/// way there.
pub const PEER_REQUESTS_MAX: usize = 4096;
/// So many requests a core may have open to the replicas on its own node.
pub const OWN_REQUESTS_MAX: usize = 4 * PEER_REQUESTS_MAX;
/// Bytes that wait to be sent to another node's core, but for one frame, whatever its size.
pub const PEER_WAITING_BYTES_MAX: usize = 8 << 20;
/// The least pace at which a request over HTTP must arrive after `limits.http-request-timeout-s`.
pub const HTTP_BYTES_PER_S: u64 = 64 << 10;
/// Bytes of all fields in the head of a request over HTTP.
pub const HTTP_FIELDS_BYTES_MAX: usize = 16 << 10;
/// Bytes of the query of a request over HTTP, and of what else its line has besides the key.
pub const HTTP_QUERY_BYTES_MAX: usize = 1 << 10;
/// The longest time to live that a request may name, in seconds: three thousand years.
pub const TTL_SECONDS_MAX: u64 = 100_000_000_000;
/// Most bytes of a host's name, as in the DNS.
pub(super) const HOST_BYTES_MAX: usize = 253;
/// Most bytes of a value, whatever `limits.value-max` says.
pub const VALUE_BYTES_MAX: usize = 512 << 20;
/// Most cores of one node.
pub const CORES_MAX: u16 = 1024;
/// Arcs of the ring (DESIGN: Q). A cluster keeps the number that it was made with.
pub const VNODES: u32 = 1024;
/// Fewest arcs that a ring may have.
pub const VNODES_MIN: u32 = 64;
/// Most arcs: one for each slot.
pub const VNODES_MAX: u32 = 16_384;
/// Most replicas of a vnode.
pub const REPLICAS_MAX: u8 = 7;
/// Most replicas of all vnodes together: what the cluster map has room for.
pub const PLACEMENT_MAX: usize = 1 << 16;
/// A replica that is late is raced by another after this time at the earliest, however fast it
/// usually is.
pub const HEDGE_AFTER_MIN: Duration = Duration::from_millis(1);
/// And after this at the latest.
pub const HEDGE_AFTER_MAX: Duration = Duration::from_millis(500);
/// One in so many reads at ONE has all replicas of its key compared behind the answer: nobody else
/// asks them all where all is read at ONE.
pub const READ_REPAIR_ONE_IN: u32 = 64;
/// So many of these are under way at once on a core; beyond it reads are not followed by one.
pub const READ_REPAIRS_MAX: u32 = 16;
/// Bytes that hints may take at least, if there are to be any.
pub(super) const HINT_BYTES_MIN: u64 = 64 << 10;
/// A file of hints takes no more when it has come to this size; and at most an eighth of what its
/// core may keep.
pub const HINT_FILE_BYTES: u64 = 8 << 20;
/// Bytes of hints that a core writes together, unless one alone is larger.
pub const HINT_BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes of hints that wait to be written on a core, but for one, whatever its size.
pub const HINT_WAITING_BYTES_MAX: usize = 16 << 20;
/// Hints that a core has on their way to a replica at once.
pub const HINTS_AT_ONCE: usize = 32;
/// Bytes of hints that a core hands on in a second: healthy writes come first.
pub const HINT_BYTES_PER_S: u64 = 8 << 20;
/// Most nodes of a cluster.
pub const NODES_MAX: usize = 1000;
/// Nodes that a newcomer may name.
pub(super) const JOIN_MAX: usize = 64;
/// The longest silence of a node that is not yet dead: a day.
pub(super) const DEAD_AFTER_MS_MAX: u64 = 86_400_000;
/// Most nodes that keep the map as a register: as many as a register may have holders.
pub const KEEPERS_MAX: usize = 5;
/// How much a node may weigh.
pub const WEIGHT_MAX: u32 = 100_000;
/// Bytes of a rack's name.
pub const RACK_BYTES_MAX: usize = 64;
/// Numbers of removed nodes that the cluster map remembers, so that nobody gets them again.
pub const RETIRED_MAX: usize = 1000;
/// Bytes of a cluster map as text. What etcd takes in one request is 1.5 MiB.
pub const MAP_BYTES_MAX: usize = 1408 * 1024;
/// Commands of one connection that are under way at once; further ones wait in its buffer.
pub const PIPELINE_COMMANDS_MAX: usize = 1024;
/// A connection with this many bytes of replies sends them before it runs another command.
pub const PIPELINE_REPLY_BYTES: usize = 256 * 1024;
/// Values of one connection that are read from tables at once: how large they are is not known
/// before.
pub const PIPELINE_READS_MAX: usize = 16;
/// Memory that each core needs at least.
pub const MEMORY_CORE_MIN: u64 = 1 << 20;
/// A memtable takes at most this part of its core's memory; there may be three at a time.
pub const MEMTABLE_SHARE: u64 = 8;
/// Filters and indexes take at most so many hundredths of their core's memory: beside three
/// memtables that leaves some for the caches.
pub const INDEX_SHARE_PERCENT_MAX: u64 = 50;
/// Unmerged runs of a core up to which merges take only what clients leave.
pub const RUNS_CALM: usize = 4;
/// Unmerged runs beyond which writers are slowed, and the more the more there are.
pub const RUNS_SOFT: usize = 12;
/// Unmerged runs at which writers wait.
pub const RUNS_HARD: usize = 36;
/// Keys that one core looks at, at most, for one page of SCAN.
pub const SCAN_COUNT_MAX: usize = 100_000;
/// Bytes that a client's name, library name or library version may have.
pub const CLIENT_NAME_BYTES_MAX: usize = 1024;
