//! The command line, checked once, and turned into a plan.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};

use crate::content::{Content, HEADER_BYTES};
use crate::control::{Control, Manners};
use crate::core::SERVERS_MAX;
use crate::keys::{Distribution, KEY_BYTES_MAX, KEY_BYTES_MIN, RECORDS_MAX};
use crate::plan::{KeysOf, Plan, Release};
use crate::run::Setup;
use crate::schedule::Pace;
use crate::sizes::Sizes;
use crate::slots::SlotMap;
use crate::target::Target;
use crate::workload::{Family, Kind, Mix, Order, WORKLOADS, Workload};

const THREADS_MAX: usize = 256;
const CLIENTS_MAX: u32 = 100_000;
const PIPELINE_MAX: u32 = 100_000;
/// Records of which the ledger is kept: 24 bytes each.
const VERIFIED_MAX: u64 = 1_000_000_000;
const PREFIX_BYTES_MAX: usize = 256;
/// A day and more; nanoseconds of it fit into everything.
const DURATION_MAX: Duration = Duration::from_secs(100 * 24 * 3600);

/// Loads a Redis-protocol server and tells the truth about its latency, measured from when each
/// request was due. Exit code 0: every target was met; 1: one was missed; 2: it could not be
/// measured, or an answer was wrong.
#[derive(Clone, Debug, Parser)]
#[command(version, about, after_help = workloads_help())]
#[command(group(ArgGroup::new("pace").args(["rate", "closed", "ramp"])))]
pub struct Options {
    /// What to do; the list stands below
    #[arg(default_value = "mission")]
    pub workload: String,

    /// Address of a server; several are dealt to the clients in turn
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6379")]
    pub server: Vec<String>,
    /// Ask for the slot map and send each key to its owner, over a connection to each node
    #[arg(long)]
    pub cluster: bool,
    /// Connect each client to every --server, and ask the next where one fails: what may be done
    /// twice also if it may have been done. The --timeout is that of each try
    #[arg(long, conflicts_with = "cluster")]
    pub failover: bool,
    /// Version of the protocol
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub resp: u8,
    #[arg(long)]
    pub user: Option<String>,
    #[arg(long)]
    pub password: Option<String>,
    /// Consistency of reads, of servers that have it
    #[arg(long, value_enum, requires = "write_level")]
    pub read_level: Option<Level>,
    #[arg(long, value_enum, requires = "read_level")]
    pub write_level: Option<Level>,
    /// Consistency of the reading back at the end
    #[arg(long, value_enum, requires = "verify")]
    pub read_back_level: Option<Level>,

    /// Load threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// CPUs that they are pinned to, one for each
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Never sleep: where load threads have CPUs to themselves, the server need not wake them
    #[arg(long)]
    pub spin: bool,
    /// Clients, of all threads together: a connection each (with --cluster: to each node)
    #[arg(long, short = 'c', default_value_t = 50)]
    pub clients: u32,
    /// Requests of one client that are on their way at the same time
    #[arg(long, short = 'P', default_value_t = 1)]
    pub pipeline: u32,

    /// Requests a second, whether or not the server has answered others (open loop)
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// How requests arrive
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    pub arrivals: Arrivals,
    /// Each client sends when it has its answers, as fast as it goes (closed loop); stalls then
    /// hide
    #[arg(long)]
    pub closed: bool,
    /// Search the highest rate that keeps the targets
    #[arg(long)]
    pub ramp: bool,
    /// Where the search begins, and how far it may go
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1000.0)]
    pub ramp_from: f64,
    #[arg(long, value_name = "PER_SECOND", default_value_t = 10_000_000.0)]
    pub ramp_to: f64,
    /// Percent that the rates kept and missed may lie apart at its end
    #[arg(long, value_name = "PERCENT", default_value_t = 3.0)]
    pub ramp_precision: f64,

    /// How long (with --ramp: each step)
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub duration: Duration,
    /// Before it, so long the same without being measured
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    pub warmup: Duration,
    /// At most so many requests
    #[arg(long, value_name = "COUNT")]
    pub requests: Option<u64>,
    /// After so long without an answer a request has failed
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub timeout: Duration,

    /// How many records there are
    #[arg(long, short = 'r', value_name = "COUNT", default_value_t = 100_000)]
    pub records: u64,
    /// How many may be inserted besides; then the oldest of these are written again
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    pub inserts_max: u64,
    /// Write every record once, before
    #[arg(long)]
    pub prepare: bool,
    /// Instead of the workload's: get=10,set=1 of get set setex insert del rmw incr lock
    #[arg(long)]
    pub mix: Option<Mix>,
    /// Instead of the workload's: uniform, zipf[:THETA], latest[:THETA],
    /// hotspot[:RECORDS:REQUESTS], sequential
    #[arg(long)]
    pub keys: Option<Distribution>,
    /// Instead of the workload's: 100, 10KiB, uniform:FROM:TO, or file:PATH with lines `BYTES
    /// WEIGHT`
    #[arg(long, short = 'd', value_name = "SIZE")]
    pub value: Option<String>,
    /// The share of a value that compresses to nothing, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub compressible: f64,
    #[arg(long, default_value = "key:")]
    pub key_prefix: String,
    /// Keys are padded to so many bytes
    #[arg(long, value_name = "BYTES", default_value_t = KEY_BYTES_MIN)]
    pub key_bytes: usize,
    /// Of values that expire (half to one and a half of it), and of locks
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub ttl: Duration,
    /// Make the same choices again
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Check every answer, and read all acknowledged writes back at the end
    #[arg(long)]
    pub verify: bool,
    /// Ask nothing for so long before the reading back
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    pub settle: Duration,
    /// Instead of judging each answer: several writes to a record at once, and at the end one order
    /// has to explain all that was told of each record. Records have to be absent at the beginning
    #[arg(long, requires = "verify")]
    pub linear: bool,
    /// Follow each write with WAIT for so many replicas, and take it for done when that many have
    /// it
    #[arg(long, value_name = "REPLICAS", default_value_t = 0)]
    pub wait: u32,
    /// Measure for how long a record was asked for without a success
    #[arg(long)]
    pub gaps: bool,

    /// Targets: each kind of operation has to keep them
    #[arg(long, value_name = "LATENCY", value_parser = humantime::parse_duration)]
    pub p50: Option<Duration>,
    #[arg(long, value_name = "LATENCY", value_parser = humantime::parse_duration)]
    pub p99: Option<Duration>,
    #[arg(long, value_name = "LATENCY", value_parser = humantime::parse_duration)]
    pub p999: Option<Duration>,

    /// Write result.json, report.html and KIND.hgrm there
    #[arg(long, value_name = "DIRECTORY")]
    pub report: Option<PathBuf>,
    /// Write the result there as JSON; `-` for standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// Each independent of the others
    Poisson,
    /// With equal gaps
    Constant,
}

/// How many replicas have to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    One,
    Quorum,
    All,
}

impl Level {
    fn name(self) -> String {
        let name = match self {
            Level::One => "ONE",
            Level::Quorum => "QUORUM",
            Level::All => "ALL",
        };
        name.to_owned()
    }
}

fn workloads_help() -> String {
    let mut help = "Workloads (their mix, keys and value can be said otherwise):\n".to_owned();
    for of in WORKLOADS {
        help += &format!(
            "  {:<10} {:<20} {:<8} {:<6} {}\n",
            of.name, of.mix, of.keys, of.value, of.about
        );
    }
    help + "\nWithout --rate, --closed or --ramp only `fill` and `delete` run, in a closed loop."
}

/// What has to hold, and what is said where it does not.
type Rule = (bool, &'static str);

/// A run, ready to begin; its plan is made anew for each step of a ramp.
pub struct Prepared {
    pub options: Options,
    workload: &'static Workload,
    mix: Mix,
    distribution: Distribution,
    sizes: Sizes,
    release: Release,
    pub setup: Setup,
}

impl Options {
    /// Checks everything, and asks the server what has to be known.
    pub fn prepare(self) -> Result<Prepared, String> {
        let workload = Workload::named(&self.workload).ok_or_else(|| match self.workload.as_str() {
            "ycsb-e" => "YCSB E scans ranges of keys, which servers that order keys by their hash do not have".to_owned(),
            other => format!("`{other}` is no workload: --help lists them"),
        })?;
        let mix: Mix = match &self.mix {
            Some(mix) => mix.clone(),
            None => workload.mix.parse()?,
        };
        let distribution = match self.keys {
            Some(distribution) => distribution,
            None => workload.keys.parse()?,
        };
        let sizes = self.sizes(workload)?;
        self.check(workload, &mix, &sizes)?;
        let manners = self.manners();
        let mut control = Control::connect(&self.server[0], &manners.greeting())?;
        let slots: Option<SlotMap> = match (self.cluster, self.failover) {
            (true, _) => Some(control.slot_map()?),
            (false, true) => Some(SlotMap::alike(self.server.clone())),
            (false, false) => None,
        };
        let release = match mix.has(Family::Locks) {
            true => control.release()?,
            false => Release::Delete,
        };
        let setup = Setup {
            threads: self.threads,
            cpus: self.cpus.clone(),
            clients: self.clients,
            servers: self.server.clone(),
            slots,
            reading_back: self.read_back_level.map(|level| {
                let levels = Some((level.name(), level.name()));
                let manners = Manners {
                    levels,
                    ..manners.clone()
                };
                manners.greeting()
            }),
            settle: self.settle,
            enough: Arc::default(),
            greeting: manners.greeting(),
            warmup: if workload.order == Order::OnceEach {
                Duration::ZERO
            } else {
                self.warmup
            },
            fills: self.prepare,
            spins: self.spin,
        };
        Ok(Prepared {
            options: self,
            workload,
            mix,
            distribution,
            sizes,
            release,
            setup,
        })
    }

    fn manners(&self) -> Manners {
        Manners {
            is_resp3: self.resp == 3,
            user: self.user.clone(),
            password: self.password.clone(),
            levels: self
                .read_level
                .map(Level::name)
                .zip(self.write_level.map(Level::name)),
            pings: self.failover,
        }
    }

    fn sizes(&self, workload: &Workload) -> Result<Sizes, String> {
        let text = self.value.as_deref().unwrap_or(workload.value);
        match text.strip_prefix("file:") {
            None => text.parse(),
            Some(path) => {
                let lines =
                    std::fs::read_to_string(path).map_err(|why| format!("{path}: {why}"))?;
                Sizes::from_histogram(&lines).map_err(|why| format!("{path}: {why}"))
            }
        }
    }

    fn check(&self, workload: &Workload, mix: &Mix, sizes: &Sizes) -> Result<(), String> {
        let all = [
            self.pace_rules(workload),
            self.load_rules(),
            self.data_rules(mix, sizes),
        ]
        .concat();
        let broken = all.iter().find(|(is_kept, _)| !is_kept);
        broken.map_or(Ok(()), |(_, rule)| Err((*rule).to_owned()))
    }

    fn pace_rules(&self, workload: &Workload) -> Vec<Rule> {
        let has_pace = self.rate.is_some() || self.closed || self.ramp;
        let is_once = workload.order == Order::OnceEach;
        let is_rate = |rate: f64| rate.is_finite() && rate >= 0.001;
        let is_range =
            is_rate(self.ramp_from) && self.ramp_to >= self.ramp_from && self.ramp_to.is_finite();
        vec![
            (has_pace || is_once, "say --rate, --closed or --ramp"),
            (
                !(self.ramp && is_once),
                "--ramp needs a workload that does not end by itself",
            ),
            (
                !self.ramp || !self.targets().is_empty(),
                "--ramp needs --p50, --p99 or --p999",
            ),
            (
                !self.ramp || self.requests.is_none(),
                "--ramp and --requests do not go together",
            ),
            (self.rate.is_none_or(is_rate), "--rate is a number above 0"),
            (
                is_range,
                "--ramp-from is above 0, and --ramp-to not below it",
            ),
            (
                self.ramp_precision >= 0.1,
                "--ramp-precision is at least 0.1",
            ),
        ]
    }

    fn load_rules(&self) -> Vec<Rule> {
        let durations = [
            self.duration,
            self.warmup,
            self.timeout,
            self.ttl,
            self.settle,
        ];
        let is_pinned = self.cpus.is_empty() || self.cpus.len() == self.threads;
        let is_shared = self.clients as usize >= self.threads && self.clients <= CLIENTS_MAX;
        let is_short = durations.iter().all(|duration| *duration <= DURATION_MAX);
        let is_patient = !self.timeout.is_zero() && self.ttl >= Duration::from_millis(1);
        vec![
            (
                (1..=THREADS_MAX).contains(&self.threads),
                "--threads: 1 to 256",
            ),
            (is_pinned, "--cpus: one for each of --threads"),
            (
                is_shared,
                "--clients: at least one for each thread, at most 100000",
            ),
            (
                (1..=PIPELINE_MAX).contains(&self.pipeline),
                "--pipeline: 1 to 100000",
            ),
            (is_short, "times are at most 100 days"),
            (
                !self.failover || self.server.len() <= SERVERS_MAX,
                "--failover: at most 32 servers",
            ),
            (is_patient, "--timeout and --ttl are above 0"),
        ]
    }

    fn data_rules(&self, mix: &Mix, sizes: &Sizes) -> Vec<Rule> {
        let all = self.records.saturating_add(self.inserts_max);
        let in_flight = u64::from(self.clients) * u64::from(self.pipeline);
        let smallest_share = self.records / self.threads.max(1) as u64;
        let is_key = self.key_prefix.len() <= PREFIX_BYTES_MAX && self.key_bytes <= KEY_BYTES_MAX;
        let is_plain = |kind: Kind| matches!(kind, Kind::Get | Kind::Set | Kind::Delete);
        let has_header = sizes.smallest() as usize >= HEADER_BYTES || !mix.has(Family::Values);
        vec![
            (
                self.records >= self.threads as u64,
                "--records: at least one for each thread",
            ),
            (
                all <= RECORDS_MAX,
                "--records: at most as many as keys have numbers",
            ),
            (
                (0.0..=1.0).contains(&self.compressible),
                "--compressible: 0 to 1",
            ),
            (is_key, "keys have at most 1024 bytes"),
            (
                !self.verify || all <= VERIFIED_MAX,
                "--verify remembers at most a billion --records",
            ),
            (
                !self.verify || self.linear || smallest_share > in_flight,
                "--verify needs more --records than requests in flight",
            ),
            (
                !self.verify || has_header,
                "--verify needs values of 24 bytes or more",
            ),
            (
                !self.linear || mix.kinds().all(is_plain),
                "--linear knows get, set and del",
            ),
        ]
    }

    pub fn targets(&self) -> Vec<Target> {
        let all = [(0.5, self.p50), (0.99, self.p99), (0.999, self.p999)];
        let asked = all.into_iter().filter_map(|(quantile, limit)| {
            Some(Target {
                quantile,
                limit: limit?,
            })
        });
        asked.collect()
    }
}

impl Prepared {
    /// Requests a second to begin with; `None` in a closed loop.
    pub fn rate(&self) -> Option<f64> {
        match self.options.ramp {
            true => Some(self.options.ramp_from),
            false => self.options.rate,
        }
    }

    /// What a lock's release will be, if it is worth a word.
    pub fn warning(&self) -> Option<&'static str> {
        let compares = self.release != Release::Delete || !self.mix.has(Family::Locks);
        (!compares).then_some(
            "the server has no EVAL, DELEX or DELIFEQ: locks are released without comparing",
        )
    }

    pub fn plan(&self, rate: Option<f64>, run: u32) -> Plan {
        let options = &self.options;
        let pace = match (rate, options.arrivals) {
            (None, _) => Pace::Closed,
            (Some(rate), Arrivals::Poisson) => Pace::Poisson { rate },
            (Some(rate), Arrivals::Constant) => Pace::Constant { rate },
        };
        let has_inserts = self.mix.kinds().any(|kind| kind == Kind::Insert);
        let is_once = self.workload.order == Order::OnceEach;
        let whole = options.duration + self.setup.warmup;
        Plan {
            mix: self.mix.clone(),
            order: self.workload.order,
            distribution: self.distribution,
            records: options.records,
            inserts_max: if has_inserts { options.inserts_max } else { 0 },
            keys: KeysOf::new(&options.key_prefix, options.key_bytes),
            sizes: self.sizes.clone(),
            content: Content::new(options.compressible),
            ttl_ms: options.ttl.as_millis() as u64,
            release: self.release,
            verify: options.verify,
            run,
            seed: options.seed,
            pace,
            pipeline: options.pipeline,
            duration: (!is_once).then_some(whole.as_nanos() as u64),
            requests: options.requests,
            timeout: options.timeout.as_nanos() as u64,
            is_cluster: options.cluster,
            fails_over: options.failover,
            has_gaps: options.gaps,
            is_linear: options.linear,
            wait: options.wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Why these options are refused.
    fn refusal(words: &str) -> String {
        // Nobody listens on this port: what is wrong with the options is said before it is tried.
        let all = ["quoit-bench", "--server", "127.0.0.1:1"]
            .into_iter()
            .chain(words.split_whitespace());
        let options = Options::try_parse_from(all).unwrap_or_else(|why| panic!("{words}: {why}"));
        match options.prepare() {
            Err(why) => why,
            Ok(_) => panic!("{words} was taken"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
        assert!(Options::try_parse_from(["quoit-bench", "--rate", "5", "--closed"]).is_err());
        assert!(
            Options::try_parse_from(["quoit-bench", "--closed", "--read-level", "one"]).is_err()
        );
    }

    /// What cannot be done is said before anything is measured, not by a panic in the middle.
    #[test]
    fn impossible_runs_are_refused_with_a_reason() {
        for (words, reason) in [
            ("mission", "--rate"),
            ("nonsense --closed", "no workload"),
            ("ycsb-e --closed", "scans"),
            ("get --ramp", "--p99"),
            ("fill --ramp --p99 10ms", "end by itself"),
            ("get --rate 0", "--rate"),
            ("get --rate NaN", "--rate"),
            ("get --closed --threads 0", "--threads"),
            ("get --closed --threads 2 --cpus 1", "--cpus"),
            ("get --closed --threads 4 --clients 3", "--clients"),
            ("get --closed --pipeline 0", "--pipeline"),
            ("get --closed --records 0", "--records"),
            ("get --closed --records 9999999999999", "--records"),
            ("get --closed --records 18446744073709551615", "--records"),
            ("get --closed --verify --records 9999999999", "a billion"),
            ("get --closed --compressible 2", "--compressible"),
            ("get --closed --key-bytes 5000", "keys"),
            ("get --closed --timeout 0s", "--timeout"),
            ("get --closed --duration 9999days", "days"),
            ("set --closed --verify --records 50", "--verify"),
            ("set --closed --verify --value 10", "24 bytes"),
            (
                "set --closed --value file:/does/not/exist",
                "/does/not/exist",
            ),
            ("set --closed --value 99TiB", "at most"),
            ("counters --closed --verify --linear", "--linear"),
        ] {
            let why = refusal(words);
            assert!(why.contains(reason), "{words}: {why}");
        }
    }

    /// A server that is not there is an error in a moment, not a run without answers.
    #[test]
    fn a_server_that_is_not_there_is_named() {
        assert!(refusal("get --closed").contains("127.0.0.1:1"));
    }
}
