//! One turn of a connection: the commands of a pipeline go to the cores that own their keys, and
//! the replies come back in order.
//!
//! What this core owns is run at once; what siblings own travels in one message for each of them;
//! what has to wait becomes a task. [`Round::finish`] waits for the log once, for all that the turn
//! wrote and read here, and puts the replies together. Commands of one connection on one key keep
//! their order: each core runs them in the order in which it gets them, and whoever waits has its
//! place in line already.
//!
//! Replies are bounded in bytes: a turn ends when it has enough of them ([`Round::is_full`]), and a
//! sibling that has sends back the commands that it did not come to. They are asked again when the
//! replies before them are written: a client that does not read holds a few replies of each core.

use std::rc::Rc;

use super::Shard;
use super::execute::{Ran, Replying};
use super::kv::{Begun, Outcome};
use super::kv_command::{self, Levels};
use super::latches::Wants;
use super::plan::{Asker, Plan};
use super::refusal::reply_refusal;
use super::replicated::{Asked, Kind, Turn, Turns};
use super::siblings::{self, Commands, Job, Replies};
use super::transaction::{Refused, Work};
use crate::cluster::face::Port;
use crate::config::{PIPELINE_COMMANDS_MAX, PIPELINE_READS_MAX, PIPELINE_REPLY_BYTES};
use crate::error::{Error, Result};
use crate::protocol::command::{
    Command, KeyCommand, KeyOp, KeysCommand, KvCommand, KvOp, Merge, SetAnswer, parse,
};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::resp::{ArgView, OwnedArgs};
use crate::rt;
use crate::rt::sync::Answer;
use crate::storage::Lookup;
use crate::storage::record::KeyRef;
use crate::types::{CoreId, KeyHash, Level, Lsn, UnixMillis};

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
    /// Values that will come from tables or out of a line, of a size not known yet.
    values_to_come: usize,
    /// The last record of this core that a reply depends on.
    lsn: Lsn,
    /// Of commands that name none.
    levels: Levels,
    /// Of commands on replicated keys.
    turns: Turns,
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
            values_to_come: 0,
            lsn,
            levels: Levels::default(),
            turns: Turns::default(),
        }
    }

    /// The same, with these levels for commands that name none.
    pub fn at_levels(mut self, levels: Levels) -> Round {
        self.levels = levels;
        self
    }

    /// True if it has enough to say for one time.
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= PIPELINE_COMMANDS_MAX
            || self.out.len() >= PIPELINE_REPLY_BYTES
            || self.values_to_come >= PIPELINE_READS_MAX
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
            Command::Kv(command) => {
                self.take_kv(shard, command);
                Fits::Taken
            }
            Command::Store(_) | Command::Session(_) => Fits::Alone,
        }
    }

    fn take_key(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, command: &KeyCommand<'_>) {
        if !shard.key_fits(command) {
            return self.reply(|reply| reply.error(KEY_TOO_LARGE));
        }
        let key = KeyRef::of(command.key);
        if shard.is_clustered() {
            if self.needs_replicas(shard, command, &key) {
                return self.ask_replicas(shard, args, command, key.hash);
            }
            shard.repair_now_and_then(command.key);
        } else {
            let core = shard.map.core_of(key.position);
            if core != shard.id {
                return self.send(shard, core, args);
            }
        }
        let mut to = Replying {
            out: &mut self.out,
            protocol: self.protocol,
            now: self.now,
        };
        match shard.run_key(&key, &command.op, &mut to) {
            Ran::Done(lsn) => self.here(lsn),
            Ran::Cold(lookup) => {
                self.values_to_come += usize::from(answers_with_value(&command.op));
                self.read_cold(shard, args, lookup);
            }
            Ran::Wait => {
                self.values_to_come += usize::from(answers_with_value(&command.op));
                self.wait_in_line(shard, args, Wants::key(key.hash));
            }
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
        if shard.is_clustered() {
            self.ask_replicas_of_all(shard, args, command);
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
                if command.merge() == Merge::Array {
                    self.values_to_come += command.len();
                }
                let hashes = command.parts().map(|part| KeyHash::of(part.key));
                self.wait_in_line(shard, args, Wants::Keys(hashes.collect()));
            }
        }
        Fits::Taken
    }

    fn take_kv(&mut self, shard: &Rc<Shard>, command: &KvCommand<'_>) {
        let level = self.levels.of(command);
        if let Some(refusal) = shard.refuse_kv(command) {
            return self.reply(|reply| reply.error(refusal));
        }
        if shard.is_clustered() {
            return self.ask_replicas_by_kv(shard, command, level);
        }
        let core = shard.map.core_of(KeyRef::of(command.key).position);
        if core != shard.id {
            // Behind what goes to that core already: commands on one key keep their order.
            return self.send(shard, core, kv_command::request(command, level).view());
        }
        self.values_to_come += usize::from(matches!(command.op, KvOp::Get));
        let protocol = self.protocol;
        match shard.begin_kv(kv_command::operation(command, level)) {
            Begun::Done(outcome, lsn) => {
                kv_command::reply(&outcome, &mut Reply::new(&mut self.out, protocol));
                self.here(lsn);
            }
            Begun::Refused(error) => self.reply(|reply| reply_refusal(&error, reply)),
            Begun::Later(task) => self.elsewhere(Source::Later(rt::spawn(async move {
                reply_kv(task.await, protocol)
            }))),
        }
    }

    /// False of a read at ONE that this core can answer by itself, as if it were the only replica.
    fn needs_replicas(&self, shard: &Shard, command: &KeyCommand<'_>, key: &KeyRef<'_>) -> bool {
        let is_own = Kind::of(&command.op) == Kind::Read
            && self.levels.read == Level::One
            && self.turns.is_free(key.hash);
        !(is_own && shard.holds(key.position))
    }

    fn ask_replicas(
        &mut self,
        shard: &Rc<Shard>,
        args: ArgView<'_>,
        command: &KeyCommand<'_>,
        key: KeyHash,
    ) {
        if Kind::of(&command.op) == Kind::NeedsOrder {
            return self.reply(|reply| reply_refusal(&Error::NeedsOrder, reply));
        }
        self.values_to_come += usize::from(answers_with_value(&command.op));
        let (asked, turn) = (self.asked(args), self.turns.next(key));
        let replying = Rc::clone(shard).run_replicated(asked, turn);
        self.elsewhere(Source::Later(rt::spawn(replying)));
    }

    fn ask_replicas_of_all(
        &mut self,
        shard: &Rc<Shard>,
        args: ArgView<'_>,
        command: &KeysCommand<'_>,
    ) {
        if command.merge() == Merge::Array {
            self.values_to_come += command.len();
        }
        let turn = |part: KeyCommand<'_>| self.turns.next(KeyHash::of(part.key));
        let turns: Vec<Turn> = command.parts().map(turn).collect();
        let replying = Rc::clone(shard).run_replicated_parts(self.asked(args), turns);
        self.elsewhere(Source::Later(rt::spawn(replying)));
    }

    fn ask_replicas_by_kv(&mut self, shard: &Rc<Shard>, command: &KvCommand<'_>, level: Level) {
        self.values_to_come += usize::from(matches!(command.op, KvOp::Get));
        let turn = self.turns.next(KeyHash::of(command.key));
        let operation = kv_command::operation(command, level);
        let (shard, protocol) = (Rc::clone(shard), self.protocol);
        self.elsewhere(Source::Later(rt::spawn(async move {
            turn.come().await;
            reply_kv(shard.kv_replicated(operation).await, protocol)
        })));
    }

    fn asked(&self, args: ArgView<'_>) -> Asked {
        Asked {
            args: OwnedArgs::from_view(args),
            protocol: self.protocol,
            levels: self.levels,
        }
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
        let cores = usize::from(shard.map.cores());
        self.send_again(core, OwnedArgs::from_view(args), cores);
    }

    /// What one of so many cores is to be asked, though it may have been before.
    fn send_again(&mut self, core: CoreId, args: OwnedArgs, cores: usize) {
        if self.batches.is_empty() {
            self.batches.resize_with(cores, Vec::new);
        }
        let batch = &mut self.batches[usize::from(core.0)];
        batch.push(args);
        let index = batch.len() - 1;
        self.elsewhere(Source::Sibling(core, index));
    }

    /// The command waits for latches, for the disk or for the log: a transaction of its own.
    fn wait_in_line(&mut self, shard: &Rc<Shard>, args: ArgView<'_>, wants: Wants) {
        let protocol = self.protocol;
        let commands = vec![OwnedArgs::from_view(args)];
        let port = Port::Shared; // a command on keys is the same at any port
        let work = Work {
            commands,
            watches: Vec::new(),
            wants,
            asker: Asker { protocol, port },
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
            let found = match lookup.read(&KeyRef::of(part.key)).await {
                // It may be the value of a write that others are still waiting for.
                Ok(found) => {
                    let lsn = shard.depends_on(found.as_ref());
                    shard.store.wait_acknowledged(lsn).await.map(|()| found)
                }
                Err(error) => Err(error),
            };
            match found {
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

    /// Waits for what the replies depend on; gives them in order, as far as they go at one time.
    pub async fn finish(self, shard: &Rc<Shard>) -> Said {
        if self.is_ready(shard) {
            return Said::all(self.out);
        }
        let (replies, rest) = self.finish_slowly(shard).await;
        let bytes = replies.bytes;
        Said { bytes, rest }
    }

    /// As [`Round::finish`] of a turn whose keys are all this core's; says where each reply ends.
    pub async fn finish_apart(self, shard: &Rc<Shard>) -> Replies {
        if self.is_ready(shard) {
            return self.out_apart();
        }
        let (replies, rest) = self.finish_slowly(shard).await;
        assert!(rest.is_none(), "no sibling was asked");
        replies
    }

    fn out_apart(self) -> Replies {
        Replies {
            bytes: self.out,
            ends: self.pieces.iter().map(|piece| piece.end).collect(),
            rest: Vec::new(),
        }
    }

    async fn finish_slowly(mut self, shard: &Rc<Shard>) -> (Replies, Option<Round>) {
        let asked = self.ask_siblings(shard);
        let acknowledged = shard.store.wait_acknowledged(self.lsn).await;
        if acknowledged.is_ok() && self.all_here {
            return (self.out_apart(), None);
        }
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            let said = match answer {
                Some(answer) => answer.wait().await,
                None => None,
            };
            answers.push(match said {
                Some(siblings::Said::Replies(replies)) => replies,
                _ => Replies::default(),
            });
        }
        self.put_together(shard, answers).await
    }

    /// By core: the answer that will come, if there is something to ask.
    fn ask_siblings(&mut self, shard: &Rc<Shard>) -> Vec<Option<Answer<siblings::Said>>> {
        let protocol = self.protocol;
        let batches = std::mem::take(&mut self.batches).into_iter().enumerate();
        let ask = |(core, requests): (usize, Vec<OwnedArgs>)| {
            (!requests.is_empty()).then(|| {
                let job = Job::Commands(Commands { requests, protocol });
                shard.siblings.ask(CoreId(core as u16), job)
            })
        };
        batches.map(ask).collect()
    }

    /// The replies up to the first that a sibling owes; and a round of that one and all behind it.
    async fn put_together(
        self,
        shard: &Shard,
        mut answers: Vec<Replies>,
    ) -> (Replies, Option<Round>) {
        let protocol = self.protocol;
        let mut replies = Replies::default();
        let mut rest = Round::new(protocol, Vec::new());
        let mut owing = false;
        let mut start = 0;
        for piece in self.pieces {
            let here = start..piece.end;
            start = piece.end;
            let to = match owing {
                true => &mut rest.out,
                false => &mut replies.bytes,
            };
            match piece.source {
                Source::Here if shard.store.is_acknowledged(piece.lsn) => {
                    to.extend_from_slice(&self.out[here]);
                }
                Source::Here => say_uncertain(to, protocol),
                Source::Later(task) if owing => {
                    rest.elsewhere(Source::Later(task));
                    continue;
                }
                Source::Later(task) => to.extend_from_slice(&task.await),
                Source::Sibling(core, index) => {
                    let answer = answers.get_mut(usize::from(core.0));
                    let answer = answer.expect("whoever was asked has a place here");
                    if let Some(reply) = answer.get(index) {
                        to.extend_from_slice(reply);
                    } else if index < answer.ends.len() + answer.rest.len() {
                        let owed = index - answer.ends.len();
                        let args = std::mem::take(&mut answer.rest[owed]);
                        rest.send_again(core, args, answers.len());
                        owing = true;
                        continue;
                    } else {
                        say_uncertain(to, protocol); // that core has ended: the node is stopping
                    }
                }
            }
            match owing {
                true => rest.here(Lsn(0)),
                false => replies.ends.push(replies.bytes.len()),
            }
        }
        (replies, owing.then_some(rest))
    }
}

/// The replies of a turn, as far as they go at one time.
pub struct Said {
    /// Replies, in order.
    pub bytes: Vec<u8>,
    /// What is to be finished when they are written.
    pub rest: Option<Round>,
}

impl Said {
    fn all(bytes: Vec<u8>) -> Said {
        Said { bytes, rest: None }
    }
}

fn reply_kv(done: Result<Outcome>, protocol: Protocol) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reply = Reply::new(&mut out, protocol);
    match done {
        Ok(outcome) => kv_command::reply(&outcome, &mut reply),
        Err(error) => reply_refusal(&error, &mut reply),
    }
    out
}

fn say_uncertain(out: &mut Vec<u8>, protocol: Protocol) {
    reply_refusal(&Error::Uncertain, &mut Reply::new(out, protocol));
}

/// True if the reply is as large as what the key holds.
fn answers_with_value(op: &KeyOp<'_>) -> bool {
    match op {
        KeyOp::Get | KeyOp::GetRange { .. } | KeyOp::GetDelete | KeyOp::GetExpire(_) => true,
        KeyOp::Set(set) => set.answer == SetAnswer::Former,
        _ => false,
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
        let mut requests = commands.requests;
        let mut run = 0;
        for args in &requests {
            if round.is_full() {
                break;
            }
            run += 1;
            match parse(args.view()) {
                Ok(command) => {
                    let fits = round.take(self, args.view(), &command);
                    assert!(matches!(fits, Fits::Taken), "siblings send what is ours");
                }
                Err(error) => round.reply(|reply| error.reply(reply)),
            }
        }
        let rest = requests.split_off(run);
        Replies {
            rest,
            ..round.finish_apart(self).await
        }
    }

    /// A transaction of one command, or of one on several cores.
    pub async fn run_alone(
        self: &Rc<Self>,
        args: OwnedArgs,
        asker: Asker,
    ) -> Result<Vec<u8>, Refused> {
        let plan = Plan::of(&self.map, self.id, vec![args], asker);
        let mut replies = self.transact(plan).await?;
        Ok(replies.pop().unwrap_or_default())
    }
}
