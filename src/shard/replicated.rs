//! Commands on keys whose replicas are on several nodes: what each becomes, and the order of one
//! connection's.
//!
//! Reads read the key's record at the read's level and are evaluated here; plain writes are made
//! here and go to the replicas at the write's level: the last one wins. What reads before it writes
//! is refused: it would need one order of all replicas' writes. A connection's commands on one key
//! are carried out one after the other ([`Turns`]), on different keys at the same time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use super::evaluate::{Current, Effect, evaluate};
use super::execute::Replying;
use super::kv::{Condition, Deed, Entry, Operation, Outcome, Part, Written};
use super::kv_command::Levels;
use super::plan::single_part;
use super::refusal::reply_refusal;
use super::replica::CLOCK_MAX;
use crate::error::{Error, Result};
use crate::membership::View;
use crate::protocol::command::{Command, KeyCommand, KeyOp, NewExpiry, StoreCommand, parse};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::resp::OwnedArgs;
use crate::replication::coordinate::{Change, Held};
use crate::rt::sync::Signal;
use crate::rt::{self, Bug};
use crate::types::{KeyHash, Level, Position, UnixMillis};

/// Parts of one command that are under way at once.
const PARTS_AT_ONCE: usize = 64;

/// What an operation on a replicated key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It looks.
    Read,
    /// It writes without looking.
    Write,
    /// It writes, and its answer says what was there.
    Delete,
    /// What it writes depends on what was there.
    NeedsOrder,
}

impl Kind {
    /// The kind of `op`.
    pub fn of(op: &KeyOp<'_>) -> Kind {
        match op {
            KeyOp::GetExpire(Ok(NewExpiry::Keep)) => Kind::Read, // of a GETEX that changes nothing
            KeyOp::Delete => Kind::Delete,
            op if !op.is_write() => Kind::Read,
            op if !op.needs_current() => Kind::Write,
            _ => Kind::NeedsOrder,
        }
    }
}

/// True if `command` may be part of a transaction here: those are of reads only.
pub fn is_read(command: &Command<'_>) -> bool {
    match command {
        Command::Key(command) => Kind::of(&command.op) == Kind::Read,
        Command::Keys(command) => !command.is_write(),
        Command::Store(command) => !matches!(command, StoreCommand::Flush),
        Command::Session(_) => true,
        Command::Kv(_) => false,
    }
}

/// Who of a connection's commands is next, key by key.
#[derive(Default)]
pub struct Turns(BTreeMap<KeyHash, Rc<Done>>);

/// Whether a command is done.
#[derive(Default)]
struct Done {
    is_done: Cell<bool>,
    signal: Signal,
}

/// A command's turn on its key; when it is dropped the next one's comes.
pub struct Turn {
    before: Option<Rc<Done>>,
    own: Rc<Done>,
}

impl Turns {
    /// The turn after all that were taken on this key.
    pub fn next(&mut self, key: KeyHash) -> Turn {
        let own: Rc<Done> = Rc::default();
        let before = self.0.insert(key, Rc::clone(&own));
        Turn { before, own }
    }

    /// True if no turn on this key was taken.
    pub fn is_free(&self, key: KeyHash) -> bool {
        !self.0.contains_key(&key)
    }
}

impl Turn {
    /// Returns when it has come.
    pub async fn come(&self) {
        if let Some(before) = &self.before {
            let is_done = || before.is_done.get().then_some(());
            before.signal.wait_for(is_done).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.own.is_done.set(true);
        self.own.signal.wake_all();
    }
}

/// A command of a connection, and how it is to be carried out.
pub struct Asked {
    /// The request.
    pub args: OwnedArgs,
    /// How to reply.
    pub protocol: Protocol,
    /// At which levels.
    pub levels: Levels,
}

impl Shard {
    /// The reply to `asked`, a command on one key, in its turn.
    pub async fn run_replicated(self: Rc<Self>, asked: Asked, turn: Turn) -> Vec<u8> {
        turn.come().await;
        let Asked {
            args,
            protocol,
            levels,
        } = asked;
        match parse(args.view()) {
            Ok(Command::Key(command)) => self.reply_to_part(&command, levels, protocol).await,
            Ok(Command::Keys(command)) => {
                let mut out = Vec::new();
                for part in command.parts().take(1) {
                    let reply = self.reply_to_part(&part, levels, protocol).await;
                    command
                        .merge()
                        .join([&reply[..]].into_iter(), protocol, &mut out);
                }
                out
            }
            _ => unreachable!("only commands on keys have replicas"),
        }
    }

    /// The reply to `asked`, a command on several keys, each part in its turn.
    pub async fn run_replicated_parts(self: Rc<Self>, asked: Asked, turns: Vec<Turn>) -> Vec<u8> {
        let Asked {
            args,
            protocol,
            levels,
        } = asked;
        let Ok(Command::Keys(command)) = parse(args.view()) else {
            unreachable!("a command on several keys");
        };
        let (mut replies, mut bytes) = (Vec::with_capacity(command.len()), 0);
        let mut parts = command.parts().zip(turns).peekable();
        while parts.peek().is_some() {
            let under_way: Vec<_> = (&mut parts)
                .take(PARTS_AT_ONCE)
                .map(|(part, turn)| {
                    let asked = Asked {
                        args: single_part(args.view(), &part),
                        protocol,
                        levels,
                    };
                    rt::spawn(Rc::clone(&self).run_replicated(asked, turn))
                })
                .collect();
            for task in under_way {
                let reply = task.await;
                bytes += reply.len() as u64;
                replies.push(reply);
            }
            if bytes > self.config.limits.reply_max.0 {
                let too_large = super::transaction::Refused::TooLarge;
                return super::dispatch::reply_refused(&too_large, protocol);
            }
        }
        let mut out = Vec::new();
        let parts = replies.iter().map(Vec::as_slice);
        command.merge().join(parts, protocol, &mut out);
        out
    }

    async fn reply_to_part(
        self: &Rc<Self>,
        command: &KeyCommand<'_>,
        levels: Levels,
        protocol: Protocol,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let mut to = Replying {
            out: &mut out,
            protocol,
            now: rt::wall_ms(),
        };
        if let Err(error) = self.do_replicated(command, levels, &mut to).await {
            out.clear();
            reply_refusal(&error, &mut Reply::new(&mut out, protocol));
        }
        out
    }

    /// Carries out `command`, and writes its reply unless it fails.
    async fn do_replicated(
        self: &Rc<Self>,
        command: &KeyCommand<'_>,
        levels: Levels,
        to: &mut Replying<'_>,
    ) -> Result<()> {
        let value_max = self.config.limits.value_max.0 as usize;
        let reply = &mut Reply::new(to.out, to.protocol);
        let change = match Kind::of(&command.op) {
            Kind::NeedsOrder => return Err(Error::NeedsOrder),
            Kind::Read => {
                let held = self.read_replicas(command.key, levels.read, to.now).await?;
                evaluate(&command.op, current(&held), to.now, value_max, reply);
                return Ok(());
            }
            Kind::Delete => {
                let held = self.read_replicas(command.key, levels.read, to.now).await?;
                evaluate(&command.op, current(&held), to.now, value_max, reply);
                // Also where nothing was found: another replica may hold something.
                (None, 0)
            }
            Kind::Write => match evaluate(&command.op, None, to.now, value_max, reply) {
                Effect::None => return Ok(()), // it was refused, and the reply says why
                Effect::Delete => (None, 0),
                Effect::Put { value, expiry } => (Some(value.into_owned()), expiry),
            },
        };
        let (value, expiry) = change;
        let change = Change {
            key: command.key.to_vec(),
            value,
            expiry,
        };
        self.write_replicas(change, levels.write).await?;
        Ok(())
    }

    /// What `key` holds by `level`.
    async fn read_replicas(
        self: &Rc<Self>,
        key: &[u8],
        level: Level,
        now: UnixMillis,
    ) -> Result<Held> {
        let began = rt::now();
        let held = self.read_where_it_is(key, level, now).await;
        self.note_read(began, &held);
        // What a client writes after it has read wins over what it has read.
        if let Ok(held) = &held
            && held.meta.version.clock < CLOCK_MAX
            && !rt::planted(Bug::ReadUnheard)
        {
            self.clock.borrow_mut().observe(held.meta.version);
        }
        held
    }

    /// The same, again until the key is where it was looked for.
    async fn read_where_it_is(
        self: &Rc<Self>,
        key: &[u8],
        level: Level,
        now: UnixMillis,
    ) -> Result<Held> {
        let position = Position::of(key);
        let deadline = self.replica_deadline();
        let coordinator = self.coordinator();
        if level == Level::One {
            self.repair_now_and_then(key);
        }
        loop {
            let (view, placement) = (self.view(), self.placement(position));
            let read = coordinator.read(placement, level, key.to_vec(), now, deadline);
            let held = read.await?;
            if self.is_as_asked(view, level, position) {
                return Ok(held);
            }
            if rt::now() >= deadline {
                return Err(Error::Unanswered);
            }
        }
    }

    /// True if an operation at `level` that began by `view` has asked those who hold what is at
    /// `position` now. Else it may have heard some by an older map and some by a newer one, and
    /// what two majorities of these have in common is nothing.
    fn is_as_asked(&self, view: Option<Arc<View>>, level: Level, position: Position) -> bool {
        level == Level::One
            || rt::planted(Bug::StaleMapTaken)
            || view.is_some_and(|view| self.is_placed_as_by(&view, position))
    }

    /// Makes `change` at `level`.
    pub(super) async fn write_replicas(
        self: &Rc<Self>,
        change: Change,
        level: Level,
    ) -> Result<Written> {
        let position = Position::of(&change.key);
        let (view, placement) = (self.view(), self.placement(position));
        let (expiry, deadline) = (change.expiry, self.replica_deadline());
        let coordinator = self.coordinator();
        let began = rt::now();
        let written = coordinator.write(placement, level, change, deadline).await;
        let written = written.map_err(Error::from);
        self.note_write(began, &written);
        let written = written?;
        if !self.is_as_asked(view, level, position) {
            return Err(Error::InDoubt);
        }
        Ok(Written {
            version: written.version,
            expiry,
            replicas: written.replicas,
        })
    }

    /// Carries out `operation` on the replicas of its key. Its sizes were checked.
    pub async fn kv_replicated(self: &Rc<Self>, operation: Operation) -> Result<Outcome> {
        let Operation { key, level, deed } = operation;
        let now = rt::wall_ms();
        match deed {
            Deed::Put { condition, .. } | Deed::Delete(condition)
                if condition != Condition::default() =>
            {
                Err(Error::NeedsOrder)
            }
            Deed::Get(part) => {
                let held = self.read_replicas(&key, level, now).await?;
                Ok(found(held, part))
            }
            Deed::Put { value, ttl_ms, .. } => {
                let change = Change {
                    key,
                    value: Some(value),
                    expiry: ttl_ms.map_or(0, |ttl| now.saturating_add(ttl)),
                };
                let written = self.write_replicas(change, level).await?;
                Ok(Outcome::Stored(written))
            }
            Deed::Delete(_) => {
                let held = self.read_replicas(&key, level, now).await?;
                let change = Change {
                    key,
                    value: None,
                    expiry: 0,
                };
                // Also where nothing was found: another replica may hold something.
                let written = self.write_replicas(change, level).await?;
                Ok(match held.value {
                    Some(_) => Outcome::Deleted(written),
                    None => Outcome::NothingDeleted,
                })
            }
        }
    }
}

fn current(held: &Held) -> Option<Current<'_>> {
    held.value.as_ref().map(|value| Current {
        value,
        length: value.len() as u32, // of a value that a record has
        expiry: held.meta.expiry,
    })
}

fn found(held: Held, part: Part) -> Outcome {
    let Some(value) = held.value else {
        return Outcome::NotFound;
    };
    Outcome::Found(Entry {
        version: held.meta.version,
        expiry: held.meta.expiry,
        length: value.len() as u64,
        value: match part {
            Part::Value => value,
            Part::Meta => Vec::new(),
        },
    })
}
