//! The `quoit` program: reads the configuration, checks the host, starts one shard per core.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Args, Parser, Subcommand};
use quoit::config::{CORES_MAX, Config, DurabilityName};
use quoit::error::{Error, Result};
use quoit::rt::{self, CoreOptions};
use quoit::shard::{self, NodeFacts};

/// Memory that each core registers with its rings for I/O.
const IO_MEMORY_BYTES: usize = 4 << 20;

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
    Serve(Serve),
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
    /// CPU cores to use; 0: all.
    #[arg(long, value_name = "N", env = "QUOIT_CORES", value_parser = clap::value_parser!(u16).range(..=i64::from(CORES_MAX)))]
    cores: Option<u16>,
    /// When a write is acknowledged.
    #[arg(long, env = "QUOIT_DURABILITY")]
    durability: Option<DurabilityName>,
    /// This node's number.
    #[arg(long, value_name = "ID", env = "QUOIT_NODE_ID")]
    node_id: Option<u16>,
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
        Some(Verb::Serve(serve)) => serve,
        None => cli.serve,
    };
    match configure(serve).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quoit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn configure(serve: Serve) -> Result<Config> {
    let mut config = match &serve.config {
        None => Config::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Config::parse(&text.map_err(|error| Error::io("read", path, error))?)?
        }
    };
    set(&mut config.dir, serve.dir);
    set(&mut config.bind, serve.bind);
    set(&mut config.port, serve.port);
    set(&mut config.cores, serve.cores);
    set(&mut config.durability, serve.durability);
    set(&mut config.node_id, serve.node_id);
    set(&mut config.password, serve.password);
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

fn set<T>(key: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *key = value;
    }
}

fn run(mut config: Config) -> Result<()> {
    let cores = usize::from(config.cores);
    let host = rt::check_host(&config.dir, cores)?;
    let address = rt::reserve_port(SocketAddr::new(config.bind, config.port)).map_err(in_use)?;
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
        "data in {}, {cores} cores, durability {}",
        config.dir.display(),
        config.durability.name()
    );
    let results = rt::run_cores(options, move |core| {
        let (config, facts) = (Rc::new(config.clone()), facts.clone());
        let ready = move || announce(address);
        async move { shard::run(core, config, facts, ready).await }
    })?;
    results.into_iter().collect::<Result<Vec<()>>>()?;
    log::info!("stopped; everything is on disk");
    Ok(())
}

/// The line that scripts wait for.
fn announce(address: SocketAddr) {
    let mut out = std::io::stdout();
    // Whoever started the node may have closed its output; it serves all the same.
    let _ = writeln!(out, "ready redis={address}").and_then(|()| out.flush());
}

fn in_use(error: Error) -> Error {
    match &error {
        Error::Io { source, what, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Error::Setup(format!(
                "port {} is in use: stop what listens there, or choose another with --port",
                what.display()
            ))
        }
        _ => error,
    }
}

fn run_id() -> String {
    (0..40)
        .map(|_| char::from_digit((rt::random() % 16) as u32, 16).unwrap_or('0'))
        .collect()
}
