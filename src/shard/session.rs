//! What a client has said about itself, and the commands that concern it rather than the data.
//!
//! Those that need only the session are answered within a turn ([`Session::answer_at_once`]); those
//! that need other cores, or must come after all that went before (EXEC, WATCH, INFO, the
//! whole-store commands), run alone between two turns ([`Shard::run_session`]).

use std::rc::Rc;

use super::Shard;
use super::connection::{About, Client};
use super::dispatch::{Fits, Round, reply_refused};
use super::face::mode;
use super::info::Asked;
use super::kv_command::Levels;
use super::plan::{Asker, Plan};
use super::refusal::reply_refusal;
use super::siblings::{Job, Said};
use super::transaction::{Refused, WatchState};
use crate::cluster::face::Port;
use crate::config::{self, CLIENT_NAME_BYTES_MAX};
use crate::error::Error;
use crate::protocol::command::{
    Client as ClientCommand, ClientFilter, ClientInfo, Command, CommandError, Hello, Login,
    Session as SessionCommand, StoreCommand, parse,
};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::{ArgView, Limits, OwnedArgs};
use crate::rt;
use crate::storage::record::KeyRef;
use crate::types::{CoreId, Level};

/// The Redis version that clients are told: they switch commands on it.
pub const REDIS_VERSION: &str = "7.2.0";
/// Inline requests and lines that hold a length, as in Redis.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// One client's state.
pub struct Session {
    /// What others may see of it.
    pub client: Rc<Client>,
    /// How to reply.
    pub protocol: Protocol,
    authenticated: bool,
    limits: Limits,
    multi: Option<Multi>,
    watches: Vec<Watched>,
    /// Of its commands.
    pub levels: Levels,
    /// It has said READONLY: at the port of a core it may read what that core has a copy of.
    pub reads_copies: bool,
}

/// Commands since MULTI.
#[derive(Default)]
struct Multi {
    queued: Vec<OwnedArgs>,
    bytes: usize,
    /// A command could not be queued: EXEC will fail.
    spoiled: bool,
}

struct Watched {
    core: CoreId,
    key: Vec<u8>,
    state: WatchState,
}

/// Whether the conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It does.
    GoOn,
    /// The client is to be hung up on.
    Close,
}

impl Session {
    /// A new client's.
    pub fn new(client: Rc<Client>, config: &config::Config) -> Session {
        let authenticated = config.password.is_empty();
        Session {
            client,
            protocol: Protocol::Resp2,
            authenticated,
            limits: limits(authenticated, &config.limits),
            multi: None,
            watches: Vec::new(),
            levels: Levels::configured(config),
            reads_copies: false,
        }
    }

    /// True once it has logged in, or need not.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// What it may send.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// True between MULTI and EXEC.
    pub fn is_queueing(&self) -> bool {
        self.multi.is_some()
    }

    /// Queues a command, or does what cannot be queued. `Some`: the turn ends with it.
    pub fn queue(
        &mut self,
        args: ArgView<'_>,
        parsed: &Result<Command<'_>, CommandError<'_>>,
        round: &mut Round,
        limits: &config::Limits,
    ) -> Option<super::connection::Stop> {
        use SessionCommand::{Discard, Exec, Quit, Reset, Watch};
        let multi = self.multi.as_mut()?;
        match parsed {
            Ok(Command::Session(Exec | Discard | Quit | Reset)) => {
                return Some(super::connection::Stop::Alone(OwnedArgs::from_view(args)));
            }
            Ok(Command::Session(SessionCommand::Multi)) => {
                round.reply(|reply| reply.error("ERR MULTI calls can not be nested"));
            }
            Ok(Command::Session(Watch(_))) => {
                round.reply(|reply| reply.error("ERR WATCH inside MULTI is not allowed"));
            }
            Ok(Command::Kv(_)) => {
                multi.spoiled = true;
                round.reply(|reply| reply.error("ERR Command not allowed inside a transaction"));
            }
            Err(error) if error.spoils_transaction() => {
                multi.spoiled = true;
                round.reply(|reply| error.reply(reply));
            }
            // EXEC will fail: nothing more is kept.
            Ok(_) | Err(_) if multi.spoiled => round.reply(|reply| reply.simple("QUEUED")),
            Ok(_) | Err(_) => {
                let bytes: usize = args.iter().map(|arg| arg.len() + ARG_BYTES).sum();
                let commands = multi.queued.len() + 1;
                if multi.bytes + bytes > limits.request_max.0 as usize || commands > limits.args_max
                {
                    multi.spoiled = true;
                    round.reply(|reply| reply.error(QUEUE_TOO_LARGE));
                } else {
                    multi.bytes += bytes;
                    multi.queued.push(OwnedArgs::from_view(args));
                    round.reply(|reply| reply.simple("QUEUED"));
                }
            }
        }
        let queued = self.multi.as_ref().map(|multi| multi.queued.len());
        self.client.about.borrow_mut().queued = queued;
        None
    }

    /// A command could not be queued, if any are: EXEC will fail.
    pub fn spoil(&mut self) {
        if let Some(multi) = &mut self.multi {
            multi.spoiled = true;
        }
    }

    /// For whom its commands are run.
    pub fn asker(&self) -> Asker {
        Asker {
            protocol: self.protocol,
            port: self.client.port,
        }
    }

    /// Forgets what is queued and what is watched.
    pub fn discard(&mut self) {
        self.multi = None;
        self.watches.clear();
        self.client.about.borrow_mut().queued = None;
    }

    /// Answers what needs only the session; false if `command` does not.
    pub fn answer_at_once(&mut self, command: &SessionCommand<'_>, round: &mut Round) -> bool {
        match command {
            SessionCommand::Multi => {
                self.multi = Some(Multi::default());
                round.reply(|reply| reply.ok());
            }
            SessionCommand::Unwatch => {
                self.watches.clear();
                round.reply(|reply| reply.ok());
            }
            SessionCommand::ReadCopies(reads) => {
                self.reads_copies = *reads;
                round.reply(|reply| reply.ok());
            }
            SessionCommand::Exec => {
                round.reply(|reply| reply.error("ERR EXEC without MULTI"));
            }
            SessionCommand::Discard => {
                round.reply(|reply| reply.error("ERR DISCARD without MULTI"));
            }
            _ => {
                let mut answered = false;
                if is_simple(command) {
                    round.reply(|reply| answered = self.answer_simply(command, reply));
                    assert!(answered, "is_simple() names what answer_simply() answers");
                }
                return answered;
            }
        }
        true
    }

    /// Answers PING and the like; false if `command` is not like that.
    fn answer_simply(&self, command: &SessionCommand<'_>, reply: &mut Reply<'_>) -> bool {
        match command {
            SessionCommand::Ping(None) => reply.simple("PONG"),
            SessionCommand::Ping(Some(message)) | SessionCommand::Echo(message) => {
                reply.bulk(message);
            }
            SessionCommand::Accepted | SessionCommand::Select(0) => reply.ok(),
            SessionCommand::Select(_) => reply.error("ERR DB index is out of range"),
            SessionCommand::Describe(question) => question.answer(reply),
            SessionCommand::Time => {
                let now = rt::wall_ms();
                reply.array(2);
                reply.bulk((now / 1000).to_string().as_bytes());
                reply.bulk((now % 1000 * 1000).to_string().as_bytes());
            }
            SessionCommand::Client(ClientCommand::Id) => reply.integer(self.client.id as i64),
            SessionCommand::Client(ClientCommand::NoEvict | ClientCommand::NoTouch) => reply.ok(),
            SessionCommand::Client(ClientCommand::GetName) => {
                let about = self.client.about.borrow();
                match about.name.is_empty() {
                    true => reply.null(),
                    false => reply.bulk(about.name.as_bytes()),
                }
            }
            SessionCommand::Client(ClientCommand::SetName(name)) => {
                self.set(name, reply, |about| &mut about.name);
            }
            SessionCommand::Client(ClientCommand::SetInfo(ClientInfo::LibName, name)) => {
                self.set(name, reply, |about| &mut about.lib_name);
            }
            SessionCommand::Client(ClientCommand::SetInfo(ClientInfo::LibVer, version)) => {
                self.set(version, reply, |about| &mut about.lib_version);
            }
            _ => return false,
        }
        true
    }

    fn set(&self, word: &[u8], reply: &mut Reply<'_>, field: fn(&mut About) -> &mut String) {
        match printable(word) {
            Some(text) => {
                *field(&mut self.client.about.borrow_mut()) = text.to_owned();
                reply.ok();
            }
            None => reply
                .error("ERR Client names cannot contain spaces, newlines or special characters."),
        }
    }

    fn log_in(&mut self, login: &Login<'_>, config: &config::Config) -> bool {
        let fits = admits(config, login.user, login.password);
        if fits {
            self.authenticated = true;
            self.limits = limits(true, &config.limits);
        }
        fits
    }

    /// Sets the levels that are given; tells them if none is.
    fn consistency(&mut self, read: Option<Level>, write: Option<Level>, reply: &mut Reply<'_>) {
        if read.is_some() || write.is_some() {
            self.levels.read = read.unwrap_or(self.levels.read);
            self.levels.write = write.unwrap_or(self.levels.write);
            return reply.ok();
        }
        reply.map(2);
        for (name, level) in [("read", self.levels.read), ("write", self.levels.write)] {
            reply.bulk(name.as_bytes());
            reply.bulk(level.name().as_bytes());
        }
    }

    fn reset(&mut self, config: &config::Config) {
        self.protocol = Protocol::Resp2;
        self.authenticated = config.password.is_empty();
        self.limits = limits(self.authenticated, &config.limits);
        self.multi = None;
        self.watches.clear();
        self.levels = Levels::configured(config);
        self.reads_copies = false;
        *self.client.about.borrow_mut() = About {
            protocol: 2,
            ..About::default()
        };
    }
}

/// What a queued argument costs besides its bytes.
const ARG_BYTES: usize = 16;
const QUEUE_TOO_LARGE: &str = "ERR The transaction is larger than limits.request-max";
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// Commands that [`Session::answer_simply`] answers.
fn is_simple(command: &SessionCommand<'_>) -> bool {
    match command {
        SessionCommand::Client(client) => {
            !matches!(client, ClientCommand::Info | ClientCommand::List(_))
        }
        SessionCommand::Ping(_)
        | SessionCommand::Echo(_)
        | SessionCommand::Accepted
        | SessionCommand::Select(_)
        | SessionCommand::Describe(_)
        | SessionCommand::Time => true,
        _ => false,
    }
}

fn limits(authenticated: bool, limits: &config::Limits) -> Limits {
    if !authenticated {
        return Limits::before_auth();
    }
    Limits {
        args_max: limits.args_max,
        bulk_bytes_max: limits.value_max.0.max(limits.key_max.0) as usize,
        request_bytes_max: limits.request_max.0 as usize,
        inline_bytes_max: INLINE_BYTES_MAX,
        authenticated: true,
    }
}

/// Text as Redis allows it in names: printable and without spaces, so that CLIENT LIST can show it.
fn printable(word: &[u8]) -> Option<&str> {
    let fits =
        word.len() <= CLIENT_NAME_BYTES_MAX && word.iter().all(|b| (b'!'..=b'~').contains(b));
    if fits {
        std::str::from_utf8(word).ok()
    } else {
        None
    }
}

/// True if this user may log in with this password; the one user is `default`.
pub fn admits(config: &config::Config, user: Option<&[u8]>, password: &[u8]) -> bool {
    let user_fits = user.is_none_or(|user| user == b"default");
    let fits = config.password.is_empty() || same(password, config.password.as_bytes());
    user_fits && fits
}

/// Compares in a time that does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0 && one.len() == other.len()
}

impl Shard {
    /// Runs a command that stands alone between two turns.
    pub(super) async fn run_session(
        self: &Rc<Self>,
        session: &mut Session,
        args: &OwnedArgs,
        out: &mut Vec<u8>,
    ) -> Next {
        let command = match parse(args.view()) {
            Ok(Command::Session(command)) => command,
            Ok(Command::Store(command)) => {
                let reply = self.run_store(args, &command, session).await;
                out.extend_from_slice(&reply);
                return Next::GoOn;
            }
            _ => {
                match self.run_alone(args.clone(), session.asker()).await {
                    Ok(reply) => out.extend_from_slice(&reply),
                    Err(refused) => {
                        out.extend_from_slice(&reply_refused(&refused, session.protocol));
                    }
                }
                return Next::GoOn;
            }
        };
        match command {
            SessionCommand::Quit => {
                Reply::new(out, session.protocol).ok();
                return Next::Close;
            }
            SessionCommand::Consistency { read, write } => {
                session.consistency(read, write, &mut Reply::new(out, session.protocol));
            }
            SessionCommand::Reset => {
                session.reset(&self.config);
                Reply::new(out, session.protocol).simple("RESET");
            }
            SessionCommand::Auth(login) => self.auth(session, &login, out),
            SessionCommand::Hello(hello) => self.hello(session, &hello, out),
            SessionCommand::Exec => self.exec(session, out).await,
            SessionCommand::Discard => {
                session.discard();
                Reply::new(out, session.protocol).ok();
            }
            SessionCommand::Watch(_) if self.is_clustered() => {
                reply_refusal(&Error::NeedsOrder, &mut Reply::new(out, session.protocol));
            }
            SessionCommand::Watch(keys) => self.watch(session, keys, out).await,
            SessionCommand::Cluster(question) => {
                let mut reply = Reply::new(out, session.protocol);
                self.describe_cluster(&question, &session.client, &mut reply);
            }
            other => self.answer_from_all(session, &other, out).await,
        }
        Next::GoOn
    }

    fn auth(&self, session: &mut Session, login: &Login<'_>, out: &mut Vec<u8>) {
        let mut reply = Reply::new(out, session.protocol);
        if self.config.password.is_empty() && login.user.is_none() {
            reply.error(
                "ERR AUTH <password> called without any password configured for the default \
                 user. Are you sure your configuration is correct?",
            );
        } else if session.log_in(login, &self.config) {
            reply.ok();
        } else {
            reply.error(WRONG_PASSWORD);
        }
    }

    fn hello(&self, session: &mut Session, hello: &Hello<'_>, out: &mut Vec<u8>) {
        let refuse = |text: &str, out: &mut Vec<u8>| Reply::new(out, session.protocol).error(text);
        let name = match hello.name.map(printable) {
            Some(None) => {
                return refuse(
                    "ERR Client names cannot contain spaces, newlines or special characters.",
                    out,
                );
            }
            Some(name) => name,
            None => None,
        };
        if let Some(login) = &hello.login
            && !session.log_in(login, &self.config)
        {
            return Reply::new(out, session.protocol).error(WRONG_PASSWORD);
        }
        if !session.authenticated {
            return Reply::new(out, session.protocol).error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise \
                 the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the \
                 client and select the RESP protocol version at the same time",
            );
        }
        if let Some(protocol) = hello.protocol {
            session.protocol = protocol;
        }
        let number = if session.protocol == Protocol::Resp3 {
            3
        } else {
            2
        };
        let mut about = session.client.about.borrow_mut();
        about.protocol = number as u8;
        if let Some(name) = name {
            about.name = name.to_owned();
        }
        let mut reply = Reply::new(out, session.protocol);
        reply.map(7);
        for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        }
        for (key, value) in [("proto", number), ("id", session.client.id as i64)] {
            reply.bulk(key.as_bytes());
            reply.integer(value);
        }
        for (key, value) in [("mode", mode(session.client.port)), ("role", "master")] {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"modules");
        reply.array(0);
    }

    async fn watch(self: &Rc<Self>, session: &mut Session, keys: ArgView<'_>, out: &mut Vec<u8>) {
        let mut reply_error = |refused: &Refused, session: &Session| {
            out.extend_from_slice(&reply_refused(refused, session.protocol));
        };
        let mut crosses = false;
        for key in keys.iter() {
            if session.watches.iter().any(|watched| watched.key == key) {
                continue; // the first look counts
            }
            if session.watches.len() >= self.config.limits.args_max {
                return reply_error(&Refused::TooLarge, session);
            }
            let core = self.map.core_of(KeyRef::of(key).position);
            crosses |= core != self.id;
            match self.do_on(core, Job::Watch(vec![key.to_vec()])).await {
                Some(Said::Watched(Ok(states))) => {
                    let watched = |state| Watched {
                        core,
                        key: key.to_vec(),
                        state,
                    };
                    session.watches.extend(states.into_iter().map(watched));
                }
                Some(Said::Watched(Err(refused))) => return reply_error(&refused, session),
                _ => return reply_error(&Refused::Failed(crate::error::Error::Busy), session),
            }
        }
        self.counters.borrow_mut().crossed += u64::from(crosses);
        Reply::new(out, session.protocol).ok();
    }

    async fn exec(self: &Rc<Self>, session: &mut Session, out: &mut Vec<u8>) {
        let multi = session.multi.take().unwrap_or_default();
        let watches = std::mem::take(&mut session.watches);
        session.client.about.borrow_mut().queued = None;
        let protocol = session.protocol;
        let queued = multi.queued.iter().map(OwnedArgs::view);
        if let Some(redirect) = self.redirect_all(session, queued) {
            let text = self.tell_redirect(redirect, &session.client);
            return Reply::new(out, protocol).error(&text);
        }
        if multi.spoiled {
            return Reply::new(out, protocol)
                .error("EXECABORT Transaction discarded because of previous errors.");
        }
        if self.is_clustered() {
            return Box::pin(self.read_in_turn(session, &multi.queued, out)).await;
        }
        let is_own = |args: &OwnedArgs| matches!(parse(args.view()), Ok(Command::Session(_)));
        let own: Vec<bool> = multi.queued.iter().map(is_own).collect();
        let (mine, theirs): (Vec<_>, Vec<_>) =
            multi.queued.into_iter().partition(|args| is_own(args));
        let mut plan = Plan::of(&self.map, self.id, theirs, session.asker());
        for Watched { core, key, state } in watches {
            plan.watch(core, key, state);
        }
        let mut theirs = match self.transact(plan).await {
            Ok(replies) => replies.into_iter(),
            Err(Refused::Watched) => return Reply::new(out, protocol).null_array(),
            Err(refused) => {
                return out.extend_from_slice(&reply_refused(&refused, protocol));
            }
        };
        Reply::new(out, protocol).array(own.len());
        let mut mine = mine.into_iter();
        for is_own in own {
            match is_own {
                true => {
                    let args = mine.next().expect("as many as were counted");
                    self.answer_queued(session, &args, out).await;
                }
                false => {
                    let reply = theirs
                        .next()
                        .expect("the plan gives a reply for each command");
                    out.extend_from_slice(&reply);
                }
            }
        }
    }

    /// EXEC where keys have replicas on other nodes: reads, one after the other.
    async fn read_in_turn(
        self: &Rc<Self>,
        session: &mut Session,
        queued: &[OwnedArgs],
        out: &mut Vec<u8>,
    ) {
        Reply::new(out, session.protocol).array(queued.len());
        for args in queued {
            let command = match parse(args.view()) {
                Ok(command) => command,
                Err(error) => {
                    error.reply(&mut Reply::new(out, session.protocol));
                    continue;
                }
            };
            match &command {
                Command::Session(_) => self.answer_queued(session, args, out).await,
                Command::Store(command) => {
                    out.extend_from_slice(&self.run_store(args, command, session).await);
                }
                command => {
                    let round = Round::new(session.protocol, Vec::new());
                    let mut round = round.at_levels(session.levels);
                    let fits = round.take(self, args.view(), command);
                    assert!(matches!(fits, Fits::Taken), "it is on keys");
                    let mut said = round.finish(self).await;
                    out.extend_from_slice(&said.bytes);
                    while let Some(rest) = said.rest {
                        said = rest.finish(self).await;
                        out.extend_from_slice(&said.bytes);
                    }
                }
            }
        }
    }

    /// A command about the session, within EXEC.
    async fn answer_queued(
        self: &Rc<Self>,
        session: &mut Session,
        args: &OwnedArgs,
        out: &mut Vec<u8>,
    ) {
        let Ok(Command::Session(command)) = parse(args.view()) else {
            return;
        };
        if session.answer_simply(&command, &mut Reply::new(out, session.protocol)) {
            return;
        }
        match command {
            SessionCommand::Unwatch => Reply::new(out, session.protocol).ok(),
            SessionCommand::ReadCopies(reads) => {
                session.reads_copies = reads;
                Reply::new(out, session.protocol).ok();
            }
            SessionCommand::Consistency { read, write } => {
                session.consistency(read, write, &mut Reply::new(out, session.protocol));
            }
            SessionCommand::Auth(login) => self.auth(session, &login, out),
            SessionCommand::Hello(hello) => self.hello(session, &hello, out),
            SessionCommand::Cluster(question) => {
                let mut reply = Reply::new(out, session.protocol);
                self.describe_cluster(&question, &session.client, &mut reply);
            }
            other => self.answer_from_all(session, &other, out).await,
        }
    }

    /// INFO, CONFIG, CLIENT LIST: what all cores know together, or, at a core's own port, that
    /// core.
    async fn answer_from_all(
        self: &Rc<Self>,
        session: &Session,
        command: &SessionCommand<'_>,
        out: &mut Vec<u8>,
    ) {
        let port = session.client.port;
        let reports = self.reports(port).await;
        let mut reply = Reply::new(out, session.protocol);
        match command {
            SessionCommand::Info(sections) => {
                reply.verbatim("txt", &self.info(&Asked { reports, port }, *sections));
            }
            SessionCommand::Config(config) => {
                if self.configure(config, port, &mut reply) {
                    self.counters.borrow_mut().reset();
                    for core in self.cores_beside(port) {
                        drop(self.siblings.ask(core, Job::ResetStatistics));
                    }
                }
            }
            SessionCommand::Client(ClientCommand::Info) => {
                reply.verbatim("txt", &super::report::describe_client(&session.client));
            }
            SessionCommand::Client(ClientCommand::List(filter)) => {
                let wanted = |id: u64| match filter {
                    ClientFilter::All => true,
                    ClientFilter::Nobody => false,
                    ClientFilter::Ids(ids) => {
                        ids.iter().any(|word| word == id.to_string().as_bytes())
                    }
                };
                let clients = reports.iter().flat_map(|report| &report.clients);
                let lines = clients
                    .filter(|(id, _)| wanted(*id))
                    .map(|(_, line)| line.as_str());
                reply.verbatim("txt", &lines.collect::<String>());
            }
            _ => reply.error("ERR this command cannot be used here"),
        }
    }

    /// The cores that, beside this one, a client at this port asks.
    fn cores_beside(&self, port: Port) -> impl Iterator<Item = CoreId> + use<> {
        self.other_cores().filter(move |_| port == Port::Shared)
    }

    /// What the cores tell that a client at this port asks about: all of the node, or this one.
    pub async fn reports(self: &Rc<Self>, port: Port) -> Vec<super::report::Report> {
        let mut reports = vec![self.report()];
        let asked: Vec<_> = self
            .cores_beside(port)
            .map(|core| self.siblings.ask(core, Job::Report))
            .collect();
        for answer in asked {
            if let Some(Said::Report(report)) = answer.wait().await {
                reports.push(*report);
            }
        }
        reports
    }

    /// A command about the whole store. Reads take no latches: they may see a part of what
    /// is being written meanwhile, as SCAN may.
    async fn run_store(
        self: &Rc<Self>,
        args: &OwnedArgs,
        command: &StoreCommand<'_>,
        session: &Session,
    ) -> Vec<u8> {
        let (levels, asker) = (session.levels, session.asker());
        if self.is_clustered() {
            return self.run_whole(command, levels, asker).await;
        }
        let protocol = asker.protocol;
        if matches!(command, StoreCommand::Flush) {
            return match self.run_alone(args.clone(), asker).await {
                Ok(reply) => reply,
                Err(refused) => reply_refused(&refused, protocol),
            };
        }
        let plan = Plan::of(&self.map, self.id, vec![args.clone()], asker);
        self.counters.borrow_mut().crossed += plan.crossing(self.id);
        let mut replies = std::collections::BTreeMap::new();
        let asked: Vec<_> = plan
            .works
            .keys()
            .map(|core| {
                let (shard, core) = (Rc::clone(self), *core);
                let job = Job::Read(args.clone(), asker);
                (core, rt::spawn(async move { shard.do_on(core, job).await }))
            })
            .collect();
        for (core, answer) in asked {
            match answer.await {
                Some(Said::Bytes(bytes)) => replies.insert(core, vec![bytes]),
                _ => {
                    return reply_refused(&Refused::Failed(crate::error::Error::Busy), protocol);
                }
            };
        }
        plan.steps[0].reply(&replies, protocol)
    }
}
