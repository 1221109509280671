//! `quoit status`: asks a running node how its cluster is, and tells people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_lite::future;
use quoit::error::{Error, Result};
use quoit::rt::{self, CoreOptions, Stream};

use super::read_config;

/// With `--watch` it asks so often.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// A node that takes longer to answer is not there.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What is said of whatever does not speak RESP.
const NOT_RESP: &str = "nothing that a Redis client understands: --port is that of the clients, neither of HTTP nor of other nodes";
/// A longer answer is none.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Which node is asked, and how.
#[derive(Args, Clone)]
pub struct Status {
    /// The node's configuration file, which says where it is. Without it, and what follows: on this
    /// machine, at 6379.
    #[arg(long, value_name = "FILE", env = "QUOIT_CONFIG")]
    config: Option<PathBuf>,
    /// Where the node is.
    #[arg(long, value_name = "ADDR", env = "QUOIT_BIND")]
    host: Option<IpAddr>,
    /// The port of its clients.
    #[arg(long, value_name = "N", env = "QUOIT_PORT")]
    port: Option<u16>,
    /// Its password.
    #[arg(long, env = "QUOIT_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Ask again each second, until the node goes or you do.
    #[arg(long)]
    watch: bool,
}

/// Whom to ask.
#[derive(Clone)]
struct Whom {
    address: SocketAddr,
    password: Option<String>,
}

impl Whom {
    fn of(status: &Status) -> Result<Whom> {
        let config = read_config(status.config.as_deref())?;
        let host = match status.host.unwrap_or(config.bind) {
            any if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host,
        };
        let own = Some(config.password).filter(|password| !password.is_empty());
        Ok(Whom {
            address: SocketAddr::new(host, status.port.unwrap_or(config.port)),
            password: status.password.clone().or(own),
        })
    }
}

/// Asks, and writes down what the node says.
pub fn run(status: Status, io_memory_bytes: usize) -> Result<()> {
    let (whom, is_watching) = (Whom::of(&status)?, status.watch);
    let program = std::env::current_exe();
    let options = CoreOptions {
        pins: vec![None],
        io_memory_bytes,
        probe_dir: program.map_err(|error| Error::io("find", "this program".as_ref(), error))?,
        without_kick: false,
    };
    let mut results = rt::run_cores(options, move |_: rt::Core<()>| {
        let whom = whom.clone();
        async move {
            loop {
                let text = describe(&ask(&whom).await?);
                let clear = if is_watching { "\x1b[H\x1b[2J" } else { "" };
                let mut out = std::io::stdout();
                let written = write!(out, "{clear}{text}").and_then(|()| out.flush());
                if !is_watching || written.is_err() {
                    return Ok(());
                }
                let stopped = async {
                    rt::stopping().await;
                    true
                };
                let waited = async {
                    rt::sleep(WATCH_EVERY).await;
                    false
                };
                if future::or(stopped, waited).await {
                    return Ok(());
                }
            }
        }
    })?;
    results.pop().expect("there is one core")
}

async fn ask(whom: &Whom) -> Result<String> {
    let address = whom.address;
    let late = async {
        rt::sleep(ANSWER_MAX).await;
        Err(Error::Setup(format!("{address} does not answer")))
    };
    future::or(ask_at(address, whom.password.as_deref()), late).await
}

async fn ask_at(address: SocketAddr, password: Option<&str>) -> Result<String> {
    let mut stream = Stream::connect(address).await?;
    let failed = |error| Error::io("ask", address.to_string().as_ref(), error);
    let mut request = String::new();
    for words in [
        password.map(|password| vec!["AUTH", password]),
        Some(vec!["INFO", "cluster"]),
    ] {
        for words in words.iter() {
            let _ = write!(request, "*{}\r\n", words.len());
            for word in words {
                let _ = write!(request, "${}\r\n{word}\r\n", word.len());
            }
        }
    }
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut input = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.map_err(failed)?;
        input.extend_from_slice(&piece[..count]);
        let refused = |text: &str| Error::Setup(format!("{address} says: {}", text.trim_end()));
        let text = String::from_utf8_lossy(&input).into_owned();
        match answer(&text) {
            Answer::Info(info) => return Ok(info.to_owned()),
            Answer::Refused(why) => return Err(refused(why)),
            Answer::Incomplete if count == 0 || input.len() > ANSWER_BYTES_MAX => {
                return Err(refused(NOT_RESP));
            }
            Answer::Incomplete => {}
        }
    }
}

enum Answer<'a> {
    Info(&'a str),
    Refused(&'a str),
    Incomplete,
}

/// What the replies so far say: perhaps one to AUTH, and then a string.
fn answer(text: &str) -> Answer<'_> {
    let Some((line, rest)) = text.split_once("\r\n") else {
        return Answer::Incomplete;
    };
    match line.split_at_checked(1) {
        Some(("-", why)) => Answer::Refused(why),
        Some(("+", _)) => answer(rest),
        Some(("$", length)) => match length.parse().ok().and_then(|end| rest.get(..end)) {
            Some(info) => Answer::Info(info),
            None => Answer::Incomplete,
        },
        _ => Answer::Refused(NOT_RESP),
    }
}

/// The section of INFO, for people.
fn describe(info: &str) -> String {
    let lines: Lines = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let mut out = about_cluster(&lines);
    out.push('\n');
    about_nodes(&lines, &mut out);
    out
}

/// Name and value.
type Lines<'a> = BTreeMap<&'a str, &'a str>;

/// What does not depend on a node, but the latencies, which are of the one that was asked.
fn about_cluster(lines: &Lines<'_>) -> String {
    let get = |name: &str| lines.get(name).copied().unwrap_or("?");
    let data = match get("cluster_holds_data") {
        "0" => "no data yet: nodes can join",
        _ => "it holds data: no more nodes can join",
    };
    let kept = match get("cluster_map_kept_by") {
        "etcd" => "in etcd".to_owned(),
        nodes => format!("by node {}", nodes.replace(' ', ", ")),
    };
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "cluster {}, epoch {} of its map, which is kept {kept}\n{} nodes; {} of {} replicas of each key; {data}",
        get("cluster_id"),
        get("cluster_epoch"),
        get("cluster_nodes"),
        get("cluster_replicas"),
        get("cluster_replicas_wanted"),
    );
    for kind in ["reads", "writes"] {
        let of = |name: &str| lines.get(format!("replicated_{kind}_{name}_ms").as_str());
        if let (Some(p50), Some(p99), Some(max)) = (of("p50"), of("p99"), of("max")) {
            let _ = writeln!(
                out,
                "{kind} of node {}'s clients in the last minute or two: p50 {p50}, p99 {p99}, at most {max} ms",
                get("cluster_node")
            );
        }
    }
    out
}

/// What a column is headed, and the fields of a node that it tells.
const COLUMNS: [(&str, &[&str]); 11] = [
    ("address", &["address"]),
    ("peers", &["peers"]),
    ("is", &["standing"]),
    ("state", &["state"]),
    ("rack", &["rack"]),
    ("weight", &["weight"]),
    ("cores", &["cores"]),
    ("holds %", &["holds_percent"]),
    ("hints", &["hints"]),
    ("reads p50/p99 ms", &["reads_p50_ms", "reads_p99_ms"]),
    ("writes p50/p99 ms", &["writes_p50_ms", "writes_p99_ms"]),
];

/// A row for each node; of what is not known it says so.
fn about_nodes(lines: &Lines<'_>, out: &mut String) {
    let mut nodes: Vec<(u16, &str)> = lines
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("node")?.parse().ok()?, *value)))
        .collect();
    nodes.sort_unstable();
    let heads = COLUMNS.iter().map(|(head, _)| (*head).to_owned());
    let mut rows = vec![["node".to_owned()].into_iter().chain(heads).collect()];
    rows.extend(nodes.iter().map(|(number, value)| {
        let parts: Lines = value
            .split(',')
            .filter_map(|part| part.split_once('='))
            .collect();
        let cell = |names: &[&str]| {
            let known = names.iter().map(|name| parts.get(name).copied());
            let known: Option<Vec<&str>> = known.collect();
            known.map_or("-".to_owned(), |values| values.join("/"))
        };
        let cells = COLUMNS.iter().map(|(_, names)| cell(names));
        [number.to_string()].into_iter().chain(cells).collect()
    }));
    let widths: Vec<usize> = (0..=COLUMNS.len())
        .map(|column| {
            rows.iter()
                .map(|row: &Vec<String>| row[column].len())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
}
