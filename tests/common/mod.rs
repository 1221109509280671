//! A node of a test's own: the real program, on a directory of its own, and a plain client for it.
//!
//! Every wait here has an end: a node that hangs fails its test, it does not hang it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The program under test.
pub const QUOIT: &str = env!("CARGO_BIN_EXE_quoit");
/// How long anything may take that takes well under a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that goes away with the test. In the build directory: the system's temporary one
/// may be in memory, where there is no direct I/O.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory is writable")
}

/// True if the tests are to take their time.
pub fn is_long() -> bool {
    std::env::var_os("QUOIT_LONG").is_some()
}

/// So many ports in a row, the first of which is returned, that are free at this moment.
pub fn free_ports(count: u16) -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut tries = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    tries
        .find(|first| (*first..first + count).all(is_free))
        .expect("there are thousands")
}

/// How a node is to be started.
pub struct Launch {
    dir: PathBuf,
    options: Vec<(&'static str, String)>,
    /// What runs the program instead of this process: its arguments follow.
    through: Vec<String>,
    stderr: PathBuf,
}

impl Launch {
    /// Two cores on any free port, with its data in `dir/data`.
    pub fn new(dir: &Path) -> Launch {
        let data = dir.join("data");
        Launch {
            options: vec![
                ("--dir", data.display().to_string()),
                ("--port", "0".into()),
                ("--core-port", "0".into()),
                ("--http-port", "0".into()),
                ("--peer-port", "0".into()),
                ("--cores", "2".into()),
            ],
            through: Vec::new(),
            stderr: dir.join("stderr"),
            dir: dir.to_owned(),
        }
    }

    /// With this option instead of what it was.
    pub fn with(mut self, option: &'static str, value: impl ToString) -> Launch {
        self.options.retain(|(name, _)| *name != option);
        self.options.push((option, value.to_string()));
        self
    }

    /// Without this option: its default holds, or what the configuration file says.
    pub fn without(mut self, option: &'static str) -> Launch {
        self.options.retain(|(name, _)| *name != option);
        self
    }

    /// With a configuration file that says `text`.
    pub fn config(self, text: &str) -> Launch {
        let path = self.dir.join("config.toml");
        std::fs::write(&path, text).expect("the test's directory is writable");
        self.with("--config", path.display())
    }

    /// By way of another program, which is given the command line.
    pub fn through(mut self, words: &[&str]) -> Launch {
        self.through = words.iter().map(ToString::to_string).collect();
        self
    }

    fn spawn(&self) -> Child {
        let program = self.through.first().map_or(QUOIT, String::as_str);
        let mut command = Command::new(program);
        if let Some(rest) = self.through.get(1..) {
            command.args(rest).arg(QUOIT);
        }
        for (name, value) in &self.options {
            command.arg(name).arg(value);
        }
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&self.stderr)
            .expect("the test's directory is writable");
        command
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
    }

    fn said(&self) -> String {
        last_lines(&self.stderr)
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Node {
        self.try_start().unwrap_or_else(|(code, said)| {
            panic!("the node is not ready (exit code {code:?}), and says:\n{said}")
        })
    }

    /// Starts it and waits until it is ready, or says no: with what code it has ended, if it has,
    /// and what it said on stderr.
    pub fn try_start(self) -> Result<Node, (Option<i32>, String)> {
        let begun = Instant::now();
        let mut process = self.spawn();
        let stdout = process.stdout.take().expect("it is piped");
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout).lines();
            while let Some(Ok(said)) = stdout.next() {
                let _ = line.send(said);
            }
        });
        let mut node = Node {
            process,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            cores: Vec::new(),
            http: SocketAddr::from(([0, 0, 0, 0], 0)),
            peers: Vec::new(),
            ready_after: Duration::ZERO,
            stderr: self.stderr.clone(),
        };
        let said = lines.recv_timeout(PATIENCE);
        node.ready_after = begun.elapsed();
        let addresses = said.as_ref().ok().and_then(|said| {
            let (shared, rest) = said.strip_prefix("ready redis=")?.split_once(" cores=")?;
            let (cores, rest) = rest.split_once(" http=")?;
            let (http, peers) = rest.split_once(" peers=")?;
            let cores: Option<Vec<_>> = cores.split(',').map(|word| word.parse().ok()).collect();
            let peers: Option<Vec<_>> = peers.split(',').map(|word| word.parse().ok()).collect();
            Some((shared.parse().ok()?, cores?, http.parse().ok()?, peers?))
        });
        let Some((address, cores, http, peers)) = addresses else {
            let ended = wait(&mut node.process, Duration::from_secs(1));
            return Err((ended.and_then(|status| status.code()), self.said()));
        };
        (node.address, node.cores, node.http, node.peers) = (address, cores, http, peers);
        Ok(node)
    }

    /// Starts it and kills it so much later, wherever it is then.
    pub fn start_and_kill(self, delay: Duration) {
        let mut process = self.spawn();
        thread::sleep(delay);
        // It may have ended by itself, which the next start will tell.
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Starts it, waits until it has said `words` on stderr and so much longer, and asks it to
    /// stop: its exit code, how long it took to end, and what it said.
    pub fn interrupt(self, words: &str, delay: Duration) -> (Option<i32>, Duration, String) {
        let _ = std::fs::remove_file(&self.stderr);
        let mut process = self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(words) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(delay);
        let began = Instant::now();
        send_signal(process.id(), "TERM");
        let ended = wait(&mut process, PATIENCE);
        let _ = process.kill();
        let _ = process.wait();
        let said = self.said();
        match ended {
            Some(status) => (status.code(), began.elapsed(), said),
            None => panic!("it goes on after TERM:\n{said}"),
        }
    }

    /// Starts it and waits until it has ended by itself: its exit code and what it said on stderr.
    pub fn refused(self) -> (Option<i32>, String) {
        // What earlier nodes said there is not this one's.
        let _ = std::fs::remove_file(&self.stderr);
        let mut process = self.spawn();
        let ended = wait(&mut process, PATIENCE);
        let _ = process.kill();
        let _ = process.wait();
        let said = self.said();
        let Some(status) = ended else {
            panic!("the node runs where it should have refused to:\n{said}");
        };
        (status.code(), said)
    }
}

/// The end of what nodes said in `path`: some tests start hundreds.
fn last_lines(path: &Path) -> String {
    let said = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn send_signal(pid: u32, name: &str) {
    let pid = pid.to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(sent.is_ok_and(|sent| sent.success()), "kill -s {name}");
}

/// Waits for a process to end, so long.
fn wait(process: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = process.try_wait().expect("it is a child of ours") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A running node. Dropping it kills it.
pub struct Node {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where each core alone listens.
    pub cores: Vec<SocketAddr>,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// Where each core listens for other nodes.
    pub peers: Vec<SocketAddr>,
    /// How long it took to say `ready`.
    pub ready_after: Duration,
    stderr: PathBuf,
}

impl Node {
    /// A new connection.
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`, now.
    pub fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is a child of ours");
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        send_signal(self.pid(), name);
    }

    /// Sends a signal and waits for the end: its exit code.
    pub fn stop(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        match wait(&mut self.process, PATIENCE) {
            Some(status) => status.code(),
            None => panic!("it goes on after {signal}:\n{}", self.said()),
        }
    }

    /// Waits until it has ended by itself: its exit code and what it said on stderr.
    pub fn ended(mut self) -> (Option<i32>, String) {
        match wait(&mut self.process, PATIENCE) {
            Some(status) => (status.code(), self.said()),
            None => panic!("it goes on:\n{}", self.said()),
        }
    }

    /// True if it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// What it has said on stderr.
    pub fn said(&self) -> String {
        last_lines(&self.stderr)
    }

    /// Bytes of it that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()));
        let statm = statm.expect("it runs");
        let pages = statm.split(' ').nth(1).and_then(|word| word.parse().ok());
        pages.map_or(0, |pages: u64| pages * 4096)
    }

    /// How long it has had a CPU, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("it runs");
        let words: Vec<&str> = stat.split(' ').collect();
        let ticks = |word: usize| words[word].parse().unwrap_or(0);
        ticks(13) + ticks(14)
    }

    /// A number in INFO.
    pub fn info(&self, name: &str) -> u64 {
        let info = self.client().ask("INFO").text();
        let line = info.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim().parse().ok())
        });
        line.flatten()
            .unwrap_or_else(|| panic!("INFO has no number {name}:\n{info}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("the node said on stderr:\n{}", self.said());
        }
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+`
    Simple(String),
    /// `-`
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`, and `=` with its kind
    Bulk(Vec<u8>),
    /// `$-1`, `*-1`, `_`
    Null,
    /// `*`, `~` and `>`
    List(Vec<Value>),
    /// `%`
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// OK.
    pub fn ok() -> Value {
        Value::Simple("OK".into())
    }

    /// A bulk string.
    pub fn bulk(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    /// Its text, if it has one.
    pub fn text(&self) -> String {
        match self {
            Value::Simple(text) | Value::Error(text) => text.clone(),
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Integer(number) => number.to_string(),
            other => panic!("{other:?} is no text"),
        }
    }

    /// Its elements, if it is a list.
    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(values) => values,
            other => panic!("{other:?} is no list"),
        }
    }

    /// What a map says of `key`; RESP2 says it by a list of keys and values in turn.
    pub fn field(&self, key: &str) -> Option<Value> {
        let is_key = |value: &Value| *value == Value::bulk(key);
        match self {
            Value::Map(pairs) => pairs
                .iter()
                .find(|(k, _)| is_key(k))
                .map(|(_, v)| v.clone()),
            Value::List(values) => values
                .chunks(2)
                .find(|pair| is_key(&pair[0]))
                .and_then(|pair| pair.get(1).cloned()),
            other => panic!("{other:?} is no map"),
        }
    }

    /// True for an error that begins like this.
    pub fn is_error(&self, start: &str) -> bool {
        matches!(self, Value::Error(text) if text.starts_with(start))
    }
}

/// The words of a line, as a request's arguments.
pub fn words(line: &str) -> Vec<Vec<u8>> {
    line.split(' ').map(|word| word.into()).collect()
}

/// The bytes of a request.
pub fn request(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A connection, without anything between it and the protocol.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects; nothing is said yet.
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("connect {address}: {error}"))
    }

    /// Connects, if somebody listens.
    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let stream = BufReader::new(stream);
        Ok(Client { stream })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the node takes what is sent");
    }

    /// Sends bytes as they are, if the node takes them.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The reply to the words of `line`.
    pub fn ask(&mut self, line: &str) -> Value {
        self.ask_words(&words(line))
    }

    /// The reply to a request.
    pub fn ask_words(&mut self, words: &[impl AsRef<[u8]>]) -> Value {
        self.try_ask(words).expect("the node answers")
    }

    /// The reply to a request, if the node lives.
    pub fn try_ask(&mut self, words: &[impl AsRef<[u8]>]) -> io::Result<Value> {
        self.try_send(&request(words))?;
        self.try_read()
    }

    /// The next reply, and its bytes.
    pub fn read_whole(&mut self) -> (Value, Vec<u8>) {
        let mut raw = Vec::new();
        let value = self.parse(&mut raw).expect("it answers");
        (value, raw)
    }

    /// The next reply.
    pub fn read(&mut self) -> Value {
        self.try_read().expect("the node answers")
    }

    /// The next reply, if the node lives.
    pub fn try_read(&mut self) -> io::Result<Value> {
        self.parse(&mut Vec::new())
    }

    /// What comes until the node hangs up; an error if it does not.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // It had not read all that was sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(rest),
            Err(error) => Err(error),
            Ok(_) => Ok(rest),
        }
    }

    /// Reads one reply, and adds its bytes to `raw`.
    fn parse(&mut self, raw: &mut Vec<u8>) -> io::Result<Value> {
        let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let start = raw.len();
        self.stream.read_until(b'\n', raw)?;
        let (kind, text) = match &raw[start..] {
            [kind, text @ .., b'\r', b'\n'] => (*kind, String::from_utf8_lossy(text).into_owned()),
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(broken("a line without its end")),
        };
        let number = text.parse::<i64>();
        Ok(match kind {
            b'+' | b',' | b'(' | b'#' => Value::Simple(text),
            b'-' => Value::Error(text),
            b'_' => Value::Null,
            b':' => Value::Integer(number.map_err(|_| broken("no number"))?),
            b'$' | b'=' | b'*' | b'~' | b'>' | b'%' => {
                let length = number.map_err(|_| broken("no length"))?;
                let Ok(length) = usize::try_from(length) else {
                    return Ok(Value::Null);
                };
                match kind {
                    b'$' | b'=' => {
                        let body = raw.len();
                        raw.resize(body + length + 2, 0);
                        self.stream.read_exact(&mut raw[body..])?;
                        let skip = if kind == b'=' { 4 } else { 0 };
                        Value::Bulk(raw[body + skip..body + length].to_vec())
                    }
                    b'%' => {
                        let mut pairs = Vec::new();
                        for _ in 0..length {
                            pairs.push((self.parse(raw)?, self.parse(raw)?));
                        }
                        Value::Map(pairs)
                    }
                    _ => {
                        let values = (0..length).map(|_| self.parse(raw));
                        Value::List(values.collect::<io::Result<_>>()?)
                    }
                }
            }
            _ => return Err(broken("no kind of reply")),
        })
    }
}

/// A Redis server of a test's own, to compare with.
pub struct Redis {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Redis {
    /// `None` if there is no Redis 7.0 on the PATH.
    pub fn start(dir: &Path) -> Option<Redis> {
        let version = Command::new("redis-server")
            .arg("--version")
            .output()
            .ok()?;
        if !String::from_utf8_lossy(&version.stdout).contains(" v=7.0.") {
            return None;
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &address.port().to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::null());
        let redis = Redis {
            process: command.spawn().ok()?,
            address,
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return Some(redis);
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("redis-server does not listen on {address}");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
