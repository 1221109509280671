//! One turn of a connection: the commands of a pipeline go to the cores that own their keys, and
//! the replies come back in order.
//!
//! What this core owns is run at once; what siblings own travels in one message for each of them;
//! what has to wait becomes a task. [`Round::finish`] waits for the log once, for all that the
//! turn wrote and read here, and puts the replies together. Commands of one connection on one key keep
//! their order: each core runs them in the order in which it gets them, and whoever waits has its
//! place in line already.

use std::rc::Rc;

use super::Shard;
use super::execute::{Ran, Replying};
use super::latches::Wants;
use super::refusal::reply_refusal;
use super::siblings::{Commands, Job, Replies, Said};
use super::transaction::{Refused, Work};
use crate::error::{Error, Result};
use crate::protocol::command::{Command, KeyCommand, KeysCommand, Merge, parse};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::resp::{ArgView, OwnedArgs};
use crate::rt;
use crate::storage::Lookup;
use crate::storage::record::KeyRef;
use crate::types::{CoreId, KeyHash, Lsn, UnixMillis};

/// The commands of one turn, and where their replies are.
pub struct Round {
    protocol: Protocol,
    now: UnixMillis,
    /// Replies that are there already, in order.
    out: Vec<u8>,
    pieces: Vec<Piece>,
    /// By core: what goes to that sibling.
    batches: Vec<Vec<OwnedArgs>>,
    /// True if all replies are in `out`.
    all_here: bool,
    /// The last record of this core that a reply depends on.
    lsn: Lsn,
}

struct Piece {
    /// Where its reply ends in `out`, if it is there.
    end: usize,
    /// The record that must be acknowledged before the reply may be sent.
    lsn: Lsn,
    source: Source,
}

enum Source {
    Here,
    Later(rt::Task<Vec<u8>>),
    Sibling(CoreId, usize),
}

/// May this command be part of a round, with others before and behind it?
pub enum Fits {
    /// It was taken.
    Taken,
    /// It concerns several cores or the whole store: finish the round, then run it alone.
    Alone,
}

impl Round {
    /// An empty turn, whose replies are appended to `out`.
    pub fn new(protocol: Protocol, out: Vec<u8>) -> Round {
        let lsn = Lsn(0);
        let now = rt::wall_ms();
        Round {
            protocol,
            now,
            out,
            pieces: Vec::new(),
            batches: Vec::new(),
            all_here: true,
            lsn,
        }
    }

    /// How many commands were taken.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of the replies so far.
    pub fn reply_bytes(&self) -> usize {
        self.out.len()
    }

    /// Takes a reply that the connection gives by itself.
    pub fn reply(&mut self, write: impl FnOnce(&mut Reply<'_>)) {
        write(&mut Reply::new(&mut self.out, self.protocol));
        self.here(Lsn(0));
    }

    /// Takes a command on keys, if it can go with others.
    pub fn take(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, command: &Command<'_>) -> Fits {
        match command {
            Command::Key(command) => {
                self.take_key(shard, args, command);
                Fits::Taken
            }
            Command::Keys(command) => self.take_keys(shard, args, command),
            Command::Store(_) | Command::Session(_) => Fits::Alone,
        }
    }

    fn take_key(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, command: &KeyCommand<'_>) {
        if !shard.key_fits(command) {
            return self.reply(|reply| reply.error(KEY_TOO_LARGE));
        }
        let key = KeyRef::of(command.key);
        let core = shard.map.core_of(key.position);
        if core != shard.id {
            return self.send(shard, core, args);
        }
        let mut to = Replying {
            out: &mut self.out,
            protocol: self.protocol,
            now: self.now,
        };
        match shard.run_key(&key, &command.op, &mut to) {
            Ran::Done(lsn) => self.here(lsn),
            Ran::Cold(lookup) => self.read_cold(shard, args, lookup),
            Ran::Wait => self.wait_in_line(shard, args, Wants::key(key.hash)),
        }
    }

    fn take_keys(
        &mut self,
        shard: &Rc<Shard>,
        args: ArgView<'_>,
        command: &KeysCommand<'_>,
    ) -> Fits {
        if command.parts().any(|part| !shard.key_fits(&part)) {
            self.reply(|reply| reply.error(KEY_TOO_LARGE));
            return Fits::Taken;
        }
        if command.len() == 1
            && let Some(part) = command.parts().next()
            && let Some(core) = shard.single_owner(command)
            && core == shard.id
            && command.merge() == Merge::Sum
        {
            // DEL, EXISTS and the like on one key answer as the part does.
            self.take_key(shard, args, &part);
            return Fits::Taken;
        }
        let Some(core) = shard.single_owner(command) else {
            return Fits::Alone;
        };
        if core != shard.id {
            self.send(shard, core, args);
            return Fits::Taken;
        }
        let mut to = Replying {
            out: &mut self.out,
            protocol: self.protocol,
            now: self.now,
        };
        match shard.run_keys(command, &mut to) {
            Ran::Done(lsn) => self.here(lsn),
            Ran::Cold(_) | Ran::Wait => {
                let hashes = command.parts().map(|part| KeyHash::of(part.key));
                self.wait_in_line(shard, args, Wants::Keys(hashes.collect()));
            }
        }
        Fits::Taken
    }

    fn here(&mut self, lsn: Lsn) {
        self.lsn = self.lsn.max(lsn);
        self.pieces.push(Piece {
            end: self.out.len(),
            lsn,
            source: Source::Here,
        });
    }

    fn elsewhere(&mut self, source: Source) {
        self.all_here = false;
        self.pieces.push(Piece {
            end: self.out.len(),
            lsn: Lsn(0),
            source,
        });
    }

    fn send(&mut self, shard: &Rc<Shard>, core: CoreId, args: ArgView<'_>) {
        shard.counters.borrow_mut().crossed += 1;
        if self.batches.is_empty() {
            self.batches
                .resize_with(usize::from(shard.map.cores()), Vec::new);
        }
        let batch = &mut self.batches[usize::from(core.0)];
        batch.push(OwnedArgs::from_view(args));
        let index = batch.len() - 1;
        self.elsewhere(Source::Sibling(core, index));
    }

    /// The command waits for latches, for the disk or for the log: a transaction of its own.
    fn wait_in_line(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, wants: Wants) {
        let protocol = self.protocol;
        let commands = vec![OwnedArgs::from_view(args)];
        let work = Work {
            commands,
            watches: Vec::new(),
            wants,
            protocol,
        };
        let ran = shard.start_alone(work);
        self.elsewhere(Source::Later(rt::spawn(async move {
            match ran.await {
                Ok(mut replies) => replies.pop().unwrap_or_default(),
                Err(refused) => reply_refused(&refused, protocol),
            }
        })));
    }

    /// The value is on disk, and nobody is writing to the key: read it without a latch.
    fn read_cold(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, lookup: Lookup) {
        let (shard, protocol, now) = (Rc::clone(shard), self.protocol, self.now);
        let args = OwnedArgs::from_view(args);
        self.elsewhere(Source::Later(rt::spawn(async move {
            let mut out = Vec::new();
            let Some(part) = first_part(args.view()) else {
                return out;
            };
            match lookup.read(&KeyRef::of(part.key)).await {
                Ok(found) => {
                    let mut to = Replying {
                        out: &mut out,
                        protocol,
                        now,
                    };
                    shard.evaluate(&part.op, found.as_ref(), &mut to);
                }
                Err(error) => reply_refusal(&error, &mut Reply::new(&mut out, protocol)),
            }
            out
        })));
    }

    /// True if [`Round::finish`] would not have to wait.
    pub fn is_ready(&self, shard: &Shard) -> bool {
        self.all_here && shard.store.is_acknowledged(self.lsn)
    }

    /// Waits for what the replies depend on; gives them in order.
    pub async fn finish(self, shard: &Rc<Shard>) -> Vec<u8> {
        if self.is_ready(shard) {
            return self.out;
        }
        self.finish_slowly(shard).await.bytes
    }

    /// As [`Round::finish`], and says where each reply ends.
    pub async fn finish_apart(self, shard: &Rc<Shard>) -> Replies {
        if self.is_ready(shard) {
            let ends = self.pieces.iter().map(|piece| piece.end).collect();
            return Replies {
                bytes: self.out,
                ends,
            };
        }
        self.finish_slowly(shard).await
    }

    async fn finish_slowly(mut self, shard: &Rc<Shard>) -> Replies {
        let protocol = self.protocol;
        let batches = std::mem::take(&mut self.batches).into_iter().enumerate();
        let asked: Vec<_> = batches
            .map(|(core, requests)| {
                (!requests.is_empty()).then(|| {
                    let job = Job::Commands(Commands { requests, protocol });
                    shard.siblings.ask(CoreId(core as u16), job)
                })
            })
            .collect();
        let acknowledged = shard.store.wait_acknowledged(self.lsn).await;
        if acknowledged.is_ok() && self.all_here {
            let ends = self.pieces.iter().map(|piece| piece.end).collect();
            return Replies {
                bytes: self.out,
                ends,
            };
        }
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            let said = match answer {
                Some(answer) => answer.wait().await,
                None => None,
            };
            answers.push(match said {
                Some(Said::Replies(replies)) => replies,
                _ => Replies::default(),
            });
        }
        let mut replies = Replies::default();
        let mut start = 0;
        for piece in self.pieces {
            match piece.source {
                Source::Here if shard.store.is_acknowledged(piece.lsn) => {
                    replies.bytes.extend_from_slice(&self.out[start..piece.end]);
                }
                Source::Here => {
                    let mut reply = Reply::new(&mut replies.bytes, protocol);
                    reply_refusal(&Error::Uncertain, &mut reply);
                }
                Source::Later(task) => replies.bytes.extend_from_slice(&task.await),
                Source::Sibling(core, index) => {
                    match answers
                        .get(usize::from(core.0))
                        .and_then(|said| said.get(index))
                    {
                        Some(reply) => replies.bytes.extend_from_slice(reply),
                        // That core has ended: the node is stopping.
                        None => reply_refusal(
                            &Error::Uncertain,
                            &mut Reply::new(&mut replies.bytes, protocol),
                        ),
                    }
                }
            }
            start = piece.end;
            replies.ends.push(replies.bytes.len());
        }
        replies
    }
}

/// The reply to a command whose key is longer than `limits.key-max`.
pub const KEY_TOO_LARGE: &str = "ERR key exceeds maximum allowed size (limits.key-max)";

/// The one key command in `args`.
fn first_part(args: ArgView<'_>) -> Option<KeyCommand<'_>> {
    match parse(args) {
        Ok(Command::Key(command)) => Some(command),
        Ok(Command::Keys(command)) => command.parts().next(),
        _ => None,
    }
}

/// The reply that tells of `refused`.
pub fn reply_refused(refused: &Refused, protocol: Protocol) -> Vec<u8> {
    let mut out = Vec::new();
    refused.reply(&mut Reply::new(&mut out, protocol));
    out
}

impl Shard {
    /// The core that owns all keys of `command`, if one does.
    fn single_owner(&self, command: &KeysCommand<'_>) -> Option<CoreId> {
        if self.map.cores() == 1 {
            return Some(self.id);
        }
        let mut cores = command
            .parts()
            .map(|part| self.map.core_of(KeyRef::of(part.key).position));
        let first = cores.next()?;
        cores.all(|core| core == first).then_some(first)
    }

    /// `Job::Commands`: another core's commands on keys of this one.
    pub async fn run_commands(self: &Rc<Self>, commands: Commands) -> Replies {
        let mut round = Round::new(commands.protocol, Vec::new());
        for args in &commands.requests {
            match parse(args.view()) {
                Ok(command) => {
                    let fits = round.take(self, args.view(), &command);
                    assert!(matches!(fits, Fits::Taken), "siblings send what is ours");
                }
                Err(error) => round.reply(|reply| error.reply(reply)),
            }
        }
        round.finish_apart(self).await
    }

    /// A transaction of one command, or of one on several cores.
    pub async fn run_alone(
        self: &Rc<Self>,
        args: OwnedArgs,
        protocol: Protocol,
    ) -> Result<Vec<u8>, Refused> {
        let plan = self.plan(vec![args], protocol);
        let mut replies = self.transact(plan).await?;
        Ok(replies.pop().unwrap_or_default())
    }
}
