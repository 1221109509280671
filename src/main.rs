//! The `quoit` program: reads the configuration, checks the host, starts one shard per core. Or
//! verifies a data directory (`quoit check`), or tells how a cluster is (`quoit status`).

#[path = "main/status.rs"]
mod status;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use quoit::cluster::ring::Map;
use quoit::config::{CORES_MAX, Config, DurabilityName, MEMORY_CORE_MIN, Metadata};
use quoit::error::{Error, Result};
use quoit::http;
use quoit::membership;
use quoit::rt::{self, CoreOptions};
use quoit::shard::{self, NodeFacts};
use quoit::storage::check::{self, Place, Summary, Told};
use quoit::types::CoreId;

/// Memory that each core registers with its rings for I/O.
const IO_MEMORY_BYTES: usize = 4 << 20;
/// How often a check says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// What `quoit check` says of a directory that is damaged, and of one that it could not check.
const EXIT_DAMAGED: u8 = 1;
const EXIT_UNCHECKED: u8 = 2;

/// A durable key-value store for Redis clients.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a node (what happens without a subcommand, too).
    Serve(Box<Serve>),
    /// Verify all files of a data directory whose node is down, changing nothing. Each damaged
    /// place is a line on standard output. Exit code 0: sound; 1: damaged; 2: could not be checked.
    Check {
        /// The data directory.
        dir: PathBuf,
    },
    /// Tell how the cluster of a running node is: its nodes, who of them is alive, and what they
    /// hold.
    Status(status::Status),
}

/// What the command line and the environment may override.
#[derive(Args)]
struct Serve {
    /// Configuration file. Every key is explained in the config.toml that comes with Quoit.
    #[arg(long, value_name = "FILE", env = "QUOIT_CONFIG")]
    config: Option<PathBuf>,
    /// Directory of all data.
    #[arg(long, env = "QUOIT_DIR")]
    dir: Option<PathBuf>,
    /// Address that clients connect to.
    #[arg(long, value_name = "ADDR", env = "QUOIT_BIND")]
    bind: Option<IpAddr>,
    /// Port that clients connect to; 0: any free one.
    #[arg(long, value_name = "N", env = "QUOIT_PORT")]
    port: Option<u16>,
    /// Port of core 0 alone; each further core has the next one. 0: any free ones.
    #[arg(long, value_name = "N", env = "QUOIT_CORE_PORT")]
    core_port: Option<u16>,
    /// Port for HTTP. 0: any free one.
    #[arg(long, value_name = "N", env = "QUOIT_HTTP_PORT")]
    http_port: Option<u16>,
    /// Port by which other nodes reach core 0; each further core has the next one. 0: any free
    /// ones.
    #[arg(long, value_name = "N", env = "QUOIT_PEER_PORT")]
    peer_port: Option<u16>,
    /// What the nodes of the cluster must know. (Better in the environment or a file: the command
    /// line of a process is seen by every user of the machine.)
    #[arg(
        long,
        value_name = "KEY",
        env = "QUOIT_CLUSTER_KEY",
        hide_env_values = true
    )]
    cluster_key: Option<String>,
    /// File that it is read from instead.
    #[arg(long, value_name = "FILE", env = "QUOIT_CLUSTER_KEY_FILE")]
    cluster_key_file: Option<PathBuf>,
    /// Host by which cluster clients are told to reach the node; empty: the one that they came to.
    #[arg(long, value_name = "HOST", env = "QUOIT_ANNOUNCE_HOST")]
    announce_host: Option<String>,
    /// Port by which they are told to reach core 0; 0: the one that it listens on.
    #[arg(long, value_name = "N", env = "QUOIT_ANNOUNCE_CORE_PORT")]
    announce_core_port: Option<u16>,
    /// CPU cores to use; 0: all.
    #[arg(long, value_name = "N", env = "QUOIT_CORES", value_parser = clap::value_parser!(u16).range(..=i64::from(CORES_MAX)))]
    cores: Option<u16>,
    /// When a write is acknowledged.
    #[arg(long, env = "QUOIT_DURABILITY")]
    durability: Option<DurabilityName>,
    /// Memory for data, of all cores together, such as 4GiB; 0B: half of what the machine has.
    #[arg(long, value_name = "SIZE", env = "QUOIT_MEMORY")]
    memory: Option<ByteSize>,
    /// The number of a node that founds a cluster.
    #[arg(long, value_name = "ID", env = "QUOIT_NODE_ID")]
    node_id: Option<u16>,
    /// A node of the cluster to join; may be given several times, or as a list.
    #[arg(
        long,
        value_name = "HOST:PEER-PORT",
        env = "QUOIT_JOIN",
        value_delimiter = ','
    )]
    join: Option<Vec<String>>,
    /// Where the cluster's map is kept: by its nodes, or in etcd.
    #[arg(long, env = "QUOIT_METADATA")]
    metadata: Option<Metadata>,
    /// A member of etcd; may be given several times, or as a list.
    #[arg(
        long,
        value_name = "http://HOST:PORT",
        env = "QUOIT_ETCD",
        value_delimiter = ','
    )]
    etcd: Option<Vec<String>>,
    /// What this cluster's keys in etcd begin with.
    #[arg(long, value_name = "TEXT", env = "QUOIT_ETCD_PREFIX")]
    etcd_prefix: Option<String>,
    /// The user of etcd.
    #[arg(long, value_name = "NAME", env = "QUOIT_ETCD_USER")]
    etcd_user: Option<String>,
    /// Its password. (Better in the environment or the file: the command line of a process is seen
    /// by every user of the machine.)
    #[arg(
        long,
        value_name = "PASSWORD",
        env = "QUOIT_ETCD_PASSWORD",
        hide_env_values = true
    )]
    etcd_password: Option<String>,
    /// What fails together with this node.
    #[arg(long, value_name = "NAME", env = "QUOIT_RACK")]
    rack: Option<String>,
    /// This node's share of the data, in proportion to the others'.
    #[arg(long, value_name = "N", env = "QUOIT_WEIGHT")]
    weight: Option<u32>,
    /// Replicas of each key, in a cluster that this node founds.
    #[arg(long, value_name = "N", env = "QUOIT_REPLICAS")]
    replicas: Option<u8>,
    /// What clients must say with AUTH. (Better in the environment or the file: the command line
    /// of a process is seen by every user of the machine.)
    #[arg(long, env = "QUOIT_PASSWORD", hide_env_values = true)]
    password: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,glommio=off"))
        .init();
    let serve = match cli.command {
        Some(Verb::Serve(serve)) => *serve,
        Some(Verb::Check { dir }) => return check_dir(dir),
        Some(Verb::Status(status)) => return tell(status::run(status, IO_MEMORY_BYTES)),
        None => cli.serve,
    };
    tell(configure(serve).and_then(run))
}

fn tell(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quoit: {error}");
            if error.is_too_many_files() {
                eprintln!("quoit: let it open more: `ulimit -n`, LimitNOFILE= of the unit");
            }
            ExitCode::FAILURE
        }
    }
}

fn configure(serve: Serve) -> Result<Config> {
    let mut config = read_config(serve.config.as_deref())?;
    set(&mut config.dir, serve.dir);
    set(&mut config.bind, serve.bind);
    set(&mut config.port, serve.port);
    set(&mut config.core_port, serve.core_port);
    set(&mut config.http_port, serve.http_port);
    set(&mut config.peer_port, serve.peer_port);
    set(&mut config.cluster_key, serve.cluster_key);
    set(&mut config.cluster_key_file, serve.cluster_key_file);
    set(&mut config.announce_host, serve.announce_host);
    set(&mut config.announce_core_port, serve.announce_core_port);
    set(&mut config.cores, serve.cores);
    set(&mut config.durability, serve.durability);
    set(&mut config.node_id, serve.node_id);
    set(&mut config.join, serve.join);
    set(&mut config.cluster.metadata, serve.metadata);
    set(&mut config.cluster.etcd, serve.etcd);
    set(&mut config.cluster.etcd_prefix, serve.etcd_prefix);
    set(&mut config.cluster.etcd_user, serve.etcd_user);
    set(&mut config.cluster.etcd_password, serve.etcd_password);
    set(&mut config.rack, serve.rack);
    set(&mut config.weight, serve.weight);
    set(&mut config.replicas, serve.replicas);
    set(&mut config.password, serve.password);
    set(&mut config.memory, serve.memory);
    if config.cores == 0 {
        let cores = if config.pin.is_empty() {
            rt::cpu_count()
        } else {
            config.pin.len()
        };
        config.cores = cores.clamp(1, usize::from(CORES_MAX)) as u16;
    }
    config.check()?;
    // The runtime opens files by absolute paths only.
    config.dir =
        std::path::absolute(&config.dir).map_err(|error| Error::io("find", &config.dir, error))?;
    Ok(config)
}

/// What the file says, or the defaults.
fn read_config(path: Option<&Path>) -> Result<Config> {
    let Some(path) = path else {
        return Ok(Config::default());
    };
    let text = std::fs::read_to_string(path);
    Config::parse(&text.map_err(|error| Error::io("read", path, error))?)
}

fn set<T>(key: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *key = value;
    }
}

fn run(mut config: Config) -> Result<()> {
    let cores = usize::from(config.cores);
    let host = rt::check_host(&config.dir, cores)?;
    let ports = reserve_ports(&config)?;
    let Ports {
        address,
        core_ports,
        peer_ports,
        http,
    } = ports;
    let cluster_key = cluster_key(&config)?;
    if config.memory.0 == 0 {
        let least = MEMORY_CORE_MIN * cores as u64;
        config.memory = ByteSize((host.memory_bytes / 2).max(least));
    }
    config.port = address.port(); // CONFIG GET tells the port that clients can use
    if !config.bind.is_loopback() && config.password.is_empty() {
        log::warn!(
            "{} is reached from other machines, and no password is set",
            config.bind
        );
    }
    if !host.kernel_is_fast {
        log::warn!(
            "Linux {} runs a node, at half its speed: 5.19 or later is better",
            host.kernel
        );
    }
    let facts = NodeFacts {
        address,
        core_ports,
        http,
        peer_ports,
        join: resolve(&config.join)?,
        cluster_key,
        run_id: run_id(),
        process_id: std::process::id(),
        os: format!("Linux {}", host.kernel),
    };
    let pins = match config.pin.is_empty() {
        true => vec![None; cores],
        false => config.pin.iter().copied().map(Some).collect(),
    };
    let options = CoreOptions {
        pins,
        io_memory_bytes: IO_MEMORY_BYTES,
        probe_dir: config.dir.clone(),
        without_kick: false,
    };
    log::info!(
        "data in {}, {cores} cores, {} of memory, durability {}",
        config.dir.display(),
        config.memory,
        config.durability.name()
    );
    let results = rt::run_cores(options, move |core| {
        let (config, facts) = (Rc::new(config.clone()), facts.clone());
        let announced = facts.clone();
        let ready = Box::new(move || announce(&announced));
        shard::run(core, config, facts, http::serve, ready)
    })?;
    results.into_iter().collect::<Result<Vec<()>>>()?;
    log::info!("stopped; everything is on disk");
    Ok(())
}

/// What a node listens on. None is taken, and all are concrete.
struct Ports {
    /// Of all cores.
    address: SocketAddr,
    /// Of each core alone.
    core_ports: Vec<u16>,
    /// Of each core, for other nodes.
    peer_ports: Vec<u16>,
    http: SocketAddr,
}

fn reserve_ports(config: &Config) -> Result<Ports> {
    let at = |port| SocketAddr::new(config.bind, port);
    let cores = usize::from(config.cores);
    let row = |first: Option<u16>| (at(first.unwrap_or(0)), config.cores);
    let wanted = [
        (at(config.port), 1),
        (at(config.port_of_http()), 1),
        row(config.ports_of_cores()),
        row(config.ports_of_peers()),
    ];
    let reserved = rt::reserve_rows(&wanted).map_err(|error| in_use(error, &wanted))?;
    let [address, http, rows @ ..] = &reserved[..] else {
        unreachable!("as many are reserved as were wanted")
    };
    let mut rows = rows
        .chunks(cores)
        .map(|row| row.iter().map(SocketAddr::port).collect());
    Ok(Ports {
        address: *address,
        core_ports: rows.next().unwrap_or_default(),
        peer_ports: rows.next().unwrap_or_default(),
        http: *http,
    })
}

/// What the nodes of the cluster must know.
fn cluster_key(config: &Config) -> Result<Vec<u8>> {
    let path = &config.cluster_key_file;
    if path.as_os_str().is_empty() {
        return Ok(config.cluster_key.clone().into_bytes());
    }
    let key = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    match key.trim_ascii() {
        [] => Err(Error::Setup(format!("no key is in {}", path.display()))),
        key => Ok(key.to_vec()),
    }
}

/// `wanted` are the shared port, that for HTTP, the row of the cores alone, and the row for other
/// nodes.
fn in_use(error: Error, wanted: &[(SocketAddr, u16)]) -> Error {
    let Error::Io { source, what, .. } = &error else {
        return error;
    };
    if source.kind() != std::io::ErrorKind::AddrInUse {
        return error;
    }
    let taken = what.display().to_string();
    let place = wanted.iter().position(|(first, length)| {
        let mut ports = (first.port()..=u16::MAX).take(usize::from(*length));
        ports.any(|port| SocketAddr::new(first.ip(), port).to_string() == taken)
    });
    let (whose, option) = match place {
        Some(0) => ("", "--port"),
        Some(1) => (" (for HTTP)", "--http-port"),
        Some(2) => (" (of a single core)", "--core-port"),
        Some(_) => (" (for other nodes)", "--peer-port"),
        None => return error,
    };
    Error::Setup(format!(
        "port {taken}{whose} is in use: stop what listens there, or choose another with {option}"
    ))
}

/// The line that scripts wait for.
fn announce(facts: &NodeFacts) {
    let cores = (0..facts.core_ports.len() as u16).map(CoreId);
    let cores: Vec<String> = cores
        .map(|core| facts.address_of(core).to_string())
        .collect();
    let peers = facts.peer_ports.iter();
    let peers: Vec<String> = peers
        .map(|port| SocketAddr::new(facts.address.ip(), *port).to_string())
        .collect();
    let mut out = std::io::stdout();
    // Whoever started the node may have closed its output; it serves all the same.
    let _ = writeln!(
        out,
        "ready redis={} cores={} http={} peers={}",
        facts.address,
        cores.join(","),
        facts.http,
        peers.join(",")
    )
    .and_then(|()| out.flush());
}

/// Where the nodes are that are to be joined.
fn resolve(names: &[String]) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for name in names {
        let found = name.to_socket_addrs();
        addresses.extend(found.map_err(|error| Error::io("find", name.as_ref(), error))?);
    }
    Ok(addresses)
}

fn run_id() -> String {
    (0..40)
        .map(|_| char::from_digit((rt::random() % 16) as u32, 16).unwrap_or('0'))
        .collect()
}

/// `quoit check`: the findings on standard output, how far it is on standard error.
fn check_dir(dir: PathBuf) -> ExitCode {
    match run_check(dir) {
        Ok(summary) if summary.damaged > 0 => ExitCode::from(EXIT_DAMAGED),
        Ok(summary) if summary.unchecked > 0 => ExitCode::from(EXIT_UNCHECKED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quoit: {error}");
            ExitCode::from(EXIT_UNCHECKED)
        }
    }
}

fn run_check(dir: PathBuf) -> Result<Summary> {
    let dir = std::path::absolute(&dir).map_err(|error| Error::io("find", &dir, error))?;
    let probe = rt::file_to_probe(&dir).map_err(|error| Error::io("read", &dir, error))?;
    let nothing = || Error::Setup(format!("{} holds no data", dir.display()));
    let options = CoreOptions {
        pins: vec![None],
        io_memory_bytes: IO_MEMORY_BYTES,
        probe_dir: probe.ok_or_else(nothing)?,
        without_kick: false,
    };
    let mut results = rt::run_cores(options, move |_: rt::Core<()>| {
        let dir = dir.clone();
        async move {
            let known = membership::read_map(&dir).await;
            let ring = |cores: u16| -> check::Owner {
                let known = known.clone().filter(|map| map.cores() == cores);
                let map = known.unwrap_or_else(|| Map::one_node(cores));
                Box::new(move |position| map.core_of(position))
            };
            let mut reporter = Reporter::default();
            let summary = check::check(&dir, &ring, &mut |told| reporter.take(told)).await;
            summary.inspect(|summary| reporter.finish(summary))
        }
    })?;
    results.pop().expect("there is one core")
}

/// Writes down what a check tells.
#[derive(Default)]
struct Reporter {
    progress_at: Duration,
}

impl Reporter {
    fn take(&mut self, told: Told) {
        match told {
            Told::Damage(place) => say("damaged", &place),
            Told::Unchecked(place) => say("unchecked", &place),
            Told::Note(place) => say("note", &place),
            Told::Progress { done, total } => {
                if rt::now() >= self.progress_at || done == total {
                    self.progress_at = rt::now() + PROGRESS_EVERY;
                    let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
                    let (done, total) = (ByteSize(done), ByteSize(total));
                    eprintln!("{percent}%: {done} of {total}");
                }
            }
        }
    }

    fn finish(&self, summary: &Summary) {
        let verdict = match (summary.damaged, summary.unchecked) {
            (0, 0) => "sound".to_owned(),
            (0, unchecked) => format!("{unchecked} files could not be checked"),
            (damaged, 0) => format!("{damaged} places are damaged"),
            (damaged, unchecked) => {
                format!("{damaged} places are damaged, {unchecked} files could not be checked")
            }
        };
        out(&format!(
            "{verdict}: {} cores, {} tables with {} records, {} log segments with {} records, {}",
            summary.cores,
            summary.tables,
            summary.table_records,
            summary.segments,
            summary.log_records,
            ByteSize(summary.bytes)
        ));
        if summary.hints > 0 {
            out(&format!("{} hints for other nodes", summary.hints));
        }
    }
}

/// One line: what it is, the file, the byte, what is the matter.
fn say(kind: &str, place: &Place) {
    let (file, offset) = (place.file.display(), place.offset);
    out(&format!("{kind} {file} at byte {offset}: {}", place.what));
}

/// A line on standard output; whoever reads it may have gone, and the exit code says it all the
/// same.
fn out(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
