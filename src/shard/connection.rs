//! One client: bytes in, commands, bytes out.
//!
//! Each turn takes what has arrived, runs every whole command in it as one [`Round`], and writes
//! the replies with one call. The next turn begins when they are written: a client that does not
//! read waits, alone, with bounded buffers. An idle connection holds no buffer at all: bytes are
//! read into one that the core lends, and only the beginning of an incomplete request is kept.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_lite::future;
use smallvec::SmallVec;

use super::ahead::{AHEAD_MAX, Ahead};
use super::dispatch::{Fits, Round};
use super::refusal::reply_refusal;
use super::replicated::is_read;
use super::session::{Next, Session};
use super::siblings::Message;
use super::{Shard, Stage, files};
use crate::cluster::face::Port;
use crate::error::Error;
use crate::protocol::command::{Command, CommandError, Spec};
use crate::protocol::resp::{Parsed, Parser};
use crate::protocol::{ArgView, Args};
use crate::rt::{self, Stream};
use crate::storage::memtable::WARM_MAX;
use crate::storage::record::KeyRef;
use crate::types::{CoreId, Position};

/// Bytes of a lent buffer, at least, and about as many are read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Lent buffers that a core keeps, of each kind.
const BUFFERS_KEPT: usize = 16;
/// A buffer that has grown beyond this is not kept.
const BUFFER_KEPT_BYTES: usize = 1 << 20;
/// A large request's buffer grows by as much at a time: what is declared is not trusted.
const GROWTH_BYTES_MAX: usize = 1 << 20;
/// Larger replies are sent at once, while they are in the processor's cache.
const REPLY_BYTES_DEFERRED_MAX: usize = 16 * 1024;
const _: () = assert!(AHEAD_MAX <= WARM_MAX);
/// Clients of HTTP beyond `limits.clients-max` who may ask how the node is.
const WATCHERS_MAX: usize = 16;
/// The log says so often at most that clients are turned away.
const CROWD_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Idle clients are looked for this often.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// The clients of one core.
pub struct Clients {
    core: CoreId,
    cores: u16,
    made: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Client>>>,
    /// How many the other cores have.
    others: RefCell<BTreeMap<CoreId, usize>>,
    /// The log says again that clients are turned away from this moment on.
    crowd_told_from: Cell<Duration>,
    /// For reading: of [`READ_BYTES`] or more, all of them initialized once and for all.
    inputs: RefCell<Vec<Vec<u8>>>,
    /// For replies: empty ones, with room.
    outputs: RefCell<Vec<Vec<u8>>>,
}

/// What is known of a client.
pub struct Client {
    /// Its number, unique on the node.
    pub id: u64,
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// The node's address that it connected to.
    pub local: Option<SocketAddr>,
    /// Whose port that is.
    pub port: Port,
    /// When it connected.
    pub since: Duration,
    /// When it last said something.
    pub active: Cell<Duration>,
    /// What it says of itself, and what it does.
    pub about: RefCell<About>,
    close: Cell<bool>,
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// CLIENT SETNAME.
    pub name: String,
    /// CLIENT SETINFO LIB-NAME.
    pub lib_name: String,
    /// CLIENT SETINFO LIB-VER.
    pub lib_version: String,
    /// The last command.
    pub command: &'static str,
    /// 2 or 3.
    pub protocol: u8,
    /// Commands queued since MULTI, if it has begun one.
    pub queued: Option<usize>,
}

impl Clients {
    /// None yet.
    pub fn new(core: CoreId, cores: u16) -> Clients {
        Clients {
            core,
            cores,
            made: Cell::new(0),
            open: RefCell::default(),
            others: RefCell::default(),
            crowd_told_from: Cell::new(Duration::ZERO),
            inputs: RefCell::default(),
            outputs: RefCell::default(),
        }
    }

    /// How many this core has.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// How many the node has.
    pub fn count_all(&self) -> usize {
        self.count() + self.others.borrow().values().sum::<usize>()
    }

    /// Says in the log that clients are turned away, now and then.
    fn tell_crowd(&self, clients_max: usize) {
        if rt::now() >= self.crowd_told_from.get() {
            log::warn!(
                "clients are turned away: there are {}, `limits.clients-max` allows {clients_max}, as far as there are file \
                 descriptors",
                self.count_all()
            );
            self.crowd_told_from.set(rt::now() + CROWD_TOLD_EVERY);
        }
    }

    /// Another core has `count` clients.
    pub fn note_others(&self, core: CoreId, count: usize) {
        self.others.borrow_mut().insert(core, count);
    }

    /// Calls `describe` with every client, the oldest first.
    pub fn each(&self, mut describe: impl FnMut(&Client)) {
        self.open
            .borrow()
            .values()
            .for_each(|client| describe(client));
    }

    /// How many have connected since the start.
    pub fn made(&self) -> u64 {
        self.made.get()
    }

    fn add(&self, stream: &Stream, port: Port) -> Rc<Client> {
        let number = self.made.get() + 1;
        self.made.set(number);
        let client = Rc::new(Client {
            id: number * u64::from(self.cores) + u64::from(self.core.0),
            peer: stream.peer_addr(),
            local: stream.local_addr(),
            port,
            since: rt::now(),
            active: Cell::new(rt::now()),
            about: RefCell::new(About {
                protocol: 2,
                ..About::default()
            }),
            close: Cell::new(false),
        });
        self.open.borrow_mut().insert(client.id, Rc::clone(&client));
        client
    }

    fn lend_output(&self) -> Vec<u8> {
        self.outputs.borrow_mut().pop().unwrap_or_default()
    }

    fn take_back_output(&self, mut buffer: Vec<u8>) {
        let mut outputs = self.outputs.borrow_mut();
        if outputs.len() < BUFFERS_KEPT && buffer.capacity() <= BUFFER_KEPT_BYTES {
            buffer.clear();
            outputs.push(buffer);
        }
    }

    /// Makes room behind the input, for `needed` more bytes if that is not too many at a time.
    fn make_room(&self, input: &mut Buffer, needed: usize) {
        let rest = input.end - input.start;
        if input.bytes.len() < READ_BYTES {
            let lent = self.inputs.borrow_mut().pop();
            let mut buffer = lent.unwrap_or_else(|| vec![0; READ_BYTES]);
            buffer[..rest].copy_from_slice(&input.bytes[input.start..input.end]);
            input.bytes = buffer;
        } else if input.start > 0 {
            input.bytes.copy_within(input.start..input.end, 0);
        }
        (input.start, input.end) = (0, rest);
        if input.bytes.len() < rest + needed.clamp(1, GROWTH_BYTES_MAX) {
            let more = needed.clamp(READ_BYTES, GROWTH_BYTES_MAX);
            input.bytes.resize(rest + more, 0);
        }
        assert!(input.end < input.bytes.len());
    }

    /// Gives the lent buffer back; what is in it is kept in memory of its own size. What is larger
    /// than a lent buffer stays where it is: copying it again and again would be too much.
    pub fn put_aside(&self, input: &mut Buffer) {
        let rest = input.end - input.start;
        if input.bytes.len() < READ_BYTES || rest >= READ_BYTES {
            return;
        }
        let kept = input.bytes[input.start..input.end].to_vec();
        let buffer = std::mem::replace(&mut input.bytes, kept);
        (input.start, input.end) = (0, rest);
        let mut inputs = self.inputs.borrow_mut();
        if inputs.len() < BUFFERS_KEPT && buffer.len() <= BUFFER_KEPT_BYTES {
            inputs.push(buffer);
        }
    }
}

/// What a client has sent and nobody has understood yet.
#[derive(Default)]
pub struct Buffer {
    /// Lent by the core, or its own if it is shorter than [`READ_BYTES`] or has grown.
    bytes: Vec<u8>,
    /// Where the part that is not done with begins.
    start: usize,
    /// Where what was read ends.
    end: usize,
}

impl Buffer {
    /// What is not done with.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Its first `count` bytes are done with.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
    }
}

/// The same, and how far it is understood.
struct Input {
    buffer: Buffer,
    parser: Parser,
    args: Args,
}

/// What ends a turn's taking of commands.
pub enum Stop {
    /// All whole requests are taken; so many more bytes are needed for the next.
    Incomplete(usize),
    /// Enough for one turn.
    Full,
    /// This command must run alone.
    Alone(crate::protocol::OwnedArgs),
    /// Reply, then hang up.
    Close,
}

impl Shard {
    /// Serves one client until it leaves, misbehaves, or the node stops.
    pub(super) async fn serve_client(self: Rc<Self>, mut stream: Stream, port: Port) {
        if self.is_stopping() {
            return; // the other cores may have stopped already
        }
        let Some(client) = self.admit(&stream, port) else {
            let _ = stream
                .write_all(b"-ERR max number of clients reached\r\n")
                .await;
            return;
        };
        let mut session = Session::new(Rc::clone(&client), &self.config);
        // Whatever ends it, the client finds out by itself.
        let _ = self.converse(&mut stream, &mut session).await;
        self.dismiss(&client);
        stream.shutdown().await;
    }

    /// Takes in a client that has come to this port, if there is room for one more.
    pub fn admit(&self, stream: &Stream, port: Port) -> Option<Rc<Client>> {
        self.admit_beside(stream, port, 0)
    }

    /// Takes in a client of HTTP: there is room for a few more, who may only ask how the node is.
    pub fn admit_watcher(&self, stream: &Stream) -> Option<Rc<Client>> {
        self.admit_beside(stream, Port::Shared, WATCHERS_MAX)
    }

    /// True if there are as many clients as there may be.
    pub fn is_crowded(&self) -> bool {
        self.clients.count_all() >= self.config.limits.clients_max
    }

    fn admit_beside(&self, stream: &Stream, port: Port, more: usize) -> Option<Rc<Client>> {
        let (clients, (open, most)) = (self.clients.count_all(), stream.open_files());
        let clients_max = self.config.limits.clients_max;
        if clients >= clients_max + more || !files::has_room(clients, open, most) {
            self.counters.borrow_mut().rejected += 1;
            self.clients.tell_crowd(clients_max);
            return None;
        }
        let client = self.clients.add(stream, port);
        self.tell_client_count();
        Some(client)
    }

    /// A client that was admitted leaves.
    pub fn dismiss(&self, client: &Client) {
        self.clients.open.borrow_mut().remove(&client.id);
        self.tell_client_count();
    }

    fn tell_client_count(&self) {
        let count = self.clients.count();
        self.other_cores()
            .for_each(|core| self.siblings.tell(core, Message::Clients(count)));
    }

    async fn converse(
        self: &Rc<Self>,
        stream: &mut Stream,
        session: &mut Session,
    ) -> std::io::Result<()> {
        let mut input = Input {
            buffer: Buffer::default(),
            parser: Parser::new(),
            args: Args::new(),
        };
        loop {
            let stop = self.turn(stream, session, &mut input).await?;
            match stop {
                Stop::Close => return Ok(()),
                Stop::Full | Stop::Alone(_) => continue,
                Stop::Incomplete(needed) => {
                    let buffer = &mut input.buffer;
                    if !self
                        .read_more(stream, &session.client, buffer, needed)
                        .await?
                    {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes commands as far as they go, runs them, writes the replies.
    async fn turn(
        self: &Rc<Self>,
        stream: &mut Stream,
        session: &mut Session,
        input: &mut Input,
    ) -> std::io::Result<Stop> {
        let out = self.clients.lend_output();
        let mut round = Round::new(session.protocol, out).at_levels(session.levels);
        let mut stop = self.take_commands(session, input, &mut round);
        self.clients.put_aside(&mut input.buffer);
        let mut said = round.finish(self).await;
        while let Some(rest) = said.rest {
            stream.write_all(&said.bytes).await?;
            said = rest.finish(self).await;
        }
        let mut out = said.bytes;
        if let Stop::Alone(args) = &stop
            && Box::pin(self.run_session(session, args, &mut out)).await == Next::Close
        {
            stop = Stop::Close;
        }
        if !out.is_empty() {
            if out.len() <= REPLY_BYTES_DEFERRED_MAX {
                // Sending wakes the client, which is dear if it sleeps. So first whatever else has
                // come is worked off; then the replies leave in a row, to clients that are awake.
                rt::after_others().await;
            }
            stream.write_all(&out).await?;
        }
        self.clients.take_back_output(out);
        Ok(stop)
    }

    fn take_commands(
        self: &Rc<Self>,
        session: &mut Session,
        input: &mut Input,
        round: &mut Round,
    ) -> Stop {
        let mut warm = 0;
        loop {
            if warm == 0 {
                warm = self.warm(input.buffer.filled());
            }
            warm -= 1;
            if round.is_full() {
                return Stop::Full;
            }
            let bytes = &input.buffer.bytes[input.buffer.start..input.buffer.end];
            let parsed = input.parser.parse(bytes, session.limits(), &mut input.args);
            let stop = match parsed {
                Parsed::Incomplete { needed } => return Stop::Incomplete(needed),
                Parsed::Violation(error) => {
                    if let Some(text) = error.text() {
                        round.reply(|reply| reply.error(&text));
                    }
                    return Stop::Close;
                }
                Parsed::Request { consumed } => {
                    input.buffer.start += consumed;
                    let view = input.args.view(bytes);
                    self.take_request(session, view, round)
                }
                Parsed::Inline { consumed, args } => {
                    input.buffer.start += consumed;
                    self.take_request(session, args.view(), round)
                }
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    /// Has the processor fetch what the next requests need; says how many those are, at least one.
    fn warm(&self, input: &[u8]) -> usize {
        let ahead = Ahead::glance(input);
        if ahead.keys().len() > 1 {
            let positions = ahead.keys().iter().map(|key| KeyRef::of(key).position);
            let positions: SmallVec<[Position; WARM_MAX]> = positions
                .filter(|position| self.map.core_of(*position) == self.id)
                .collect();
            self.store.warm(&positions);
        }
        ahead.requests.max(1)
    }

    /// Takes one request into the round, or says why the round ends here.
    fn take_request(
        self: &Rc<Self>,
        session: &mut Session,
        args: ArgView<'_>,
        round: &mut Round,
    ) -> Option<Stop> {
        if args.is_empty() {
            return None;
        }
        self.counters.borrow_mut().commands += 1;
        let spec = Spec::of(args);
        let mut redirect = None;
        if let Ok(spec) = &spec {
            session.client.about.borrow_mut().command = spec.last_name();
            redirect = self.redirect(session, spec, args);
        }
        let parsed = spec.and_then(|spec| spec.parse(args));
        if !session.is_authenticated()
            && !matches!(&parsed, Ok(command) if may_precede_auth(command))
        {
            round.reply(|reply| reply.error("NOAUTH Authentication required."));
            return None;
        }
        if let Some(redirect) = redirect {
            session.spoil();
            let text = self.tell_redirect(redirect, &session.client);
            round.reply(|reply| reply.error(&text));
            return None;
        }
        if let Err(CommandError::Arity("exec")) = parsed {
            session.discard(); // as in Redis: it says EXECABORT
        }
        let needs_order = |command: &Command<'_>| self.is_clustered() && !is_read(command);
        if session.is_queueing() && parsed.as_ref().is_ok_and(needs_order) {
            session.spoil();
            round.reply(|reply| reply_refusal(&Error::NeedsOrder, reply));
            return None;
        }
        if session.is_queueing() {
            return session.queue(args, &parsed, round, &self.config.limits);
        }
        match parsed {
            Err(error) => {
                self.counters.borrow_mut().errors += 1;
                round.reply(|reply| error.reply(reply));
                None
            }
            Ok(Command::Session(command)) => match session.answer_at_once(&command, round) {
                true => None,
                false => Some(Stop::Alone(crate::protocol::OwnedArgs::from_view(args))),
            },
            Ok(command) => match round.take(self, args, &command) {
                Fits::Taken => None,
                Fits::Alone => Some(Stop::Alone(crate::protocol::OwnedArgs::from_view(args))),
            },
        }
    }

    /// Waits for bytes; false: there will be none. While it waits, the lent buffer is with the
    /// core. May be cancelled: no byte is lost.
    pub async fn read_more(
        self: &Rc<Self>,
        stream: &mut Stream,
        client: &Client,
        input: &mut Buffer,
        needed: usize,
    ) -> std::io::Result<bool> {
        let read = poll_fn(|context| {
            self.clients.make_room(input, needed);
            let read = stream.poll_read(context, &mut input.bytes[input.end..]);
            match &read {
                Poll::Ready(Ok(count)) => input.end += count,
                Poll::Ready(Err(_)) => {}
                Poll::Pending => self.clients.put_aside(input),
            }
            read
        });
        let sent_home = self.staged.wait_for(|| {
            let closing = client.close.get() || self.stage.get() == Stage::Stopping;
            closing.then_some(Ok(0))
        });
        let count = future::or(read, sent_home).await?;
        client.active.set(rt::now());
        self.counters.borrow_mut().bytes_in += count as u64;
        Ok(count > 0)
    }

    /// Closes clients that have said nothing for `limits.idle-timeout-s`.
    pub(super) async fn close_idle_clients(self: Rc<Self>) {
        let limit = Duration::from_secs(self.config.limits.idle_timeout_s);
        while !self.is_stopping() {
            rt::sleep(IDLE_CHECK).await;
            let now = rt::now();
            let mut any = false;
            self.clients.each(|client| {
                if now.saturating_sub(client.active.get()) >= limit {
                    client.close.set(true);
                    any = true;
                }
            });
            if any {
                self.staged.wake_all();
            }
        }
    }
}

/// HELLO, AUTH, QUIT, RESET: what a client may say before it has logged in.
fn may_precede_auth(command: &Command<'_>) -> bool {
    use crate::protocol::command::Session;
    matches!(
        command,
        Command::Session(Session::Hello(_) | Session::Auth(_) | Session::Quit | Session::Reset)
    )
}
