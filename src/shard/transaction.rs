//! Commands that need more than one moment or more than one core: atomic and isolated.
//!
//! MULTI/EXEC, commands on keys of several cores, and single commands that must wait for the disk
//! in their middle. The coordinator (the core of the client's connection) plans which core does what;
//! then, if several take part: each core in the order of their numbers reserves the keys' latches;
//! all evaluate their part on an overlay that nobody else sees, those that only read (or watch) before
//! those that write; each of the latter logs its part as prepared and syncs it; then all let it be
//! seen. After a crash it holds if and only if every core that writes had prepared (storage/wal), so
//! none may prepare while one that does not write could still refuse; and where one's log fails with
//! its part, the others' logs say that it never held, before anybody builds on that. Where no log
//! takes that word any more, its keys answer that nobody knows, until a restart. With one core it is
//! one batch of its log.
//!
//! No global lock; no deadlock (see `latches`); a transaction that has begun runs to its end
//! whatever becomes of the connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::Shard;
use super::dispatch::KEY_TOO_LARGE;
use super::execute::{Replying, want_of};
use super::latch_table::Latched;
use super::latches::Wants;
use super::refusal::reply_refusal;
use super::siblings::{Job, Outcome, Said, Verdict};
use crate::error::{Error, Result};
use crate::protocol::command::{
    Command, KeyCommand, KeyOp, KeysCommand, Merge, StoreCommand, parse,
};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::resp::{ArgView, OwnedArgs};
use crate::rt;
use crate::storage::memtable::Memtable;
use crate::storage::record::{KeyRef, Record};
use crate::storage::{Batch, Found, Snapshot, Want};
use crate::types::{CoreId, KeyHash, Lsn, UnixMillis, Version};

/// Names a transaction while it runs: its coordinator and a number.
pub type Token = (CoreId, u64);

/// One core's part of a transaction.
#[derive(Clone)]
pub struct Work {
    /// Its commands, in order.
    pub commands: Vec<OwnedArgs>,
    /// Keys that must not have changed, with what was seen of them.
    pub watches: Vec<(Vec<u8>, WatchState)>,
    /// What it wants to have alone.
    pub wants: Wants,
    /// How to reply.
    pub protocol: Protocol,
}

/// What WATCH remembers of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchState {
    /// It had a value.
    live: bool,
    /// The version of that value. Of an absent key, which may have no record: one that was made
    /// when it was looked at, so that all that happens to the key later is above it.
    version: Version,
}

impl WatchState {
    /// `looked` is a version made before the key was read.
    fn of(found: Option<&Found>, now: UnixMillis, looked: Version) -> WatchState {
        match found.filter(|found| found.record.view().is_live(now)) {
            Some(found) => WatchState {
                live: true,
                version: found.record.meta().version,
            },
            None => WatchState {
                live: false,
                version: looked,
            },
        }
    }

    /// True if nobody has touched the key since. An absent key may have come and gone without a
    /// trace: `forgotten` is the highest version of which there may be none.
    fn is_unchanged(self, found: Option<&Found>, now: UnixMillis, forgotten: Version) -> bool {
        let live = found.is_some_and(|found| found.record.view().is_live(now));
        let version = found.map_or(Version::ZERO, |found| found.record.meta().version);
        match (self.live, live) {
            (true, true) => self.version == version,
            (false, false) => version.max(forgotten) <= self.version,
            _ => false,
        }
    }
}

/// Why a transaction gave no replies.
#[derive(Debug)]
pub enum Refused {
    /// A watched key has changed.
    Watched,
    /// It could not be done; the error says whether it certainly was not.
    Failed(Error),
    /// The replies would be larger than `limits.reply-max`.
    TooLarge,
}

impl Refused {
    /// Tells the client. (A changed watch has a reply of its own, which EXEC gives.)
    pub fn reply(&self, reply: &mut Reply<'_>) {
        match self {
            Refused::Failed(error) => reply_refusal(error, reply),
            Refused::Watched | Refused::TooLarge => reply.error(
                "ERR The reply would be larger than limits.reply-max. Nothing was done; ask for \
                 less, with SCAN for instance.",
            ),
        }
    }
}

/// A participant's state between `Reserve` and `Finish`.
pub struct Reserved {
    latched: Latched,
    prepared: Option<(Version, Lsn, Batch)>,
}

/// What a transaction has written and nobody else sees yet.
struct Overlay {
    memtable: Rc<RefCell<Memtable>>,
    /// It has deleted everything: nothing below the memtable is seen.
    cleared: Option<Version>,
}

/// A core's part, evaluated.
struct Evaluated {
    replies: Vec<Vec<u8>>,
    batch: Batch,
    /// The last record that was read or written: it must be acknowledged before the replies are.
    lsn: Lsn,
}

impl Shard {
    /// Runs a transaction of which every part is this core's. It takes its place in line now.
    pub fn start_alone(self: &Rc<Self>, work: Work) -> rt::Task<Result<Vec<Vec<u8>>, Refused>> {
        let latched = self.latches.request(work.wants.clone());
        let shard = Rc::clone(self);
        rt::spawn(async move {
            latched.granted().await;
            let evaluated = shard.evaluate_work(&work, rt::wall_ms()).await?;
            let mut lsn = evaluated.lsn;
            if !evaluated.batch.is_empty() {
                shard.wait_admitted(&evaluated.batch).await?;
                lsn = shard.store.write_batch(evaluated.batch);
            }
            drop(latched);
            shard
                .store
                .wait_acknowledged(lsn)
                .await
                .map_err(Refused::Failed)?;
            Ok(evaluated.replies)
        })
    }

    async fn wait_admitted(&self, batch: &Batch) -> Result<(), Refused> {
        self.store
            .wait_admitted(batch)
            .await
            .map_err(Refused::Failed)
    }

    /// `Job::Reserve`.
    pub async fn reserve(self: &Rc<Self>, token: Token, wants: Wants) {
        let latched = self.latches.request(wants);
        latched.granted().await;
        let before = self.reserved.borrow_mut().insert(
            token,
            Reserved {
                latched,
                prepared: None,
            },
        );
        assert!(before.is_none(), "a transaction reserves once on each core");
    }

    /// `Job::Run`, after `Job::Reserve`.
    pub async fn run_reserved(
        self: &Rc<Self>,
        token: Token,
        work: &Work,
        now: UnixMillis,
        outcome: Outcome,
    ) -> Result<Vec<Vec<u8>>, Refused> {
        let Evaluated {
            replies,
            batch,
            lsn,
        } = self.evaluate_work(work, now).await?;
        let waited = match outcome {
            Outcome::ReadOnly => {
                assert!(batch.is_empty(), "the plan knows who writes");
                self.store.wait_acknowledged(lsn).await
            }
            Outcome::Prepare(transaction, cores) => {
                let admitted = self.store.wait_part_admitted(&batch).await;
                admitted.map_err(Refused::Failed)?;
                let lsn = self.store.prepare(transaction, &cores, &batch);
                {
                    let mut reserved = self.reserved.borrow_mut();
                    let reserved = reserved
                        .get_mut(&token)
                        .expect("Run comes between Reserve and Finish");
                    reserved.prepared = Some((transaction, lsn, batch));
                }
                // Whatever the durability setting: else a power cut could leave one core's part.
                self.store.wait_durable(lsn).await
            }
        };
        waited.map_err(Refused::Failed)?;
        Ok(replies)
    }

    /// `Job::Finish`.
    pub async fn finish(&self, token: Token, verdict: Verdict) {
        let reserved = self.reserved.borrow_mut().remove(&token);
        let Reserved { latched, prepared } = reserved.expect("Finish comes after Reserve");
        match (prepared, verdict) {
            (Some((transaction, lsn, batch)), Verdict::Commit) => {
                self.store.commit(transaction, lsn, batch);
            }
            (Some((transaction, ..)), Verdict::Abort) => self.store.abort(transaction),
            (Some((transaction, _, batch)), Verdict::Revoke) => {
                self.store.revoke(transaction, batch).await;
            }
            (None, _) => {}
        }
        drop(latched);
    }

    /// `Job::Watch`: what these keys of this core are now.
    pub async fn watch_states(&self, keys: &[Vec<u8>]) -> Result<Vec<WatchState>, Refused> {
        let now = rt::wall_ms();
        let mut states = Vec::with_capacity(keys.len());
        for key in keys {
            let looked = self.next_version(now);
            let found = self
                .store
                .get(&KeyRef::of(key), Want::Meta)
                .await
                .map_err(Refused::Failed)?;
            states.push(WatchState::of(found.as_ref(), now, looked));
        }
        Ok(states)
    }

    async fn evaluate_work(&self, work: &Work, now: UnixMillis) -> Result<Evaluated, Refused> {
        let mut lsn = Lsn(0);
        for (key, before) in &work.watches {
            let found = self
                .store
                .get(&KeyRef::of(key), Want::Meta)
                .await
                .map_err(Refused::Failed)?;
            // Whoever relies on what was watched relies on its being durable.
            lsn = lsn.max(self.depends_on(found.as_ref()));
            let forgotten = self.store.forgotten();
            if !before.is_unchanged(found.as_ref(), now, forgotten) {
                return Err(Refused::Watched);
            }
        }
        let mut overlay = Overlay {
            memtable: Rc::default(),
            cleared: None,
        };
        let mut replies = Vec::with_capacity(work.commands.len());
        let mut bytes = 0;
        for args in &work.commands {
            let mut out = Vec::new();
            let mut to = Replying {
                out: &mut out,
                protocol: work.protocol,
                now,
            };
            let read = self.evaluate_command(args, &mut overlay, &mut to).await;
            lsn = lsn.max(read.map_err(Refused::Failed)?);
            bytes += out.len() as u64;
            if bytes > self.config.limits.reply_max.0 {
                return Err(Refused::TooLarge);
            }
            replies.push(out);
        }
        let memtable = overlay.memtable.borrow();
        let records = memtable
            .iter()
            .map(|entry| (entry.position, entry.record.clone()));
        let batch = Batch {
            clear: overlay.cleared,
            records: records.collect(),
        };
        Ok(Evaluated {
            replies,
            batch,
            lsn,
        })
    }

    async fn evaluate_command(
        &self,
        args: &OwnedArgs,
        overlay: &mut Overlay,
        to: &mut Replying<'_>,
    ) -> Result<Lsn> {
        match parse(args.view()) {
            Ok(Command::Key(command)) => self.evaluate_part(&command, overlay, to).await,
            Ok(Command::Keys(command)) => {
                let mut lsn = Lsn(0);
                let mut parts = Vec::with_capacity(command.len());
                for part in command.parts() {
                    let mut out = Vec::new();
                    let mut part_to = Replying {
                        out: &mut out,
                        protocol: to.protocol,
                        now: to.now,
                    };
                    lsn = lsn.max(self.evaluate_part(&part, overlay, &mut part_to).await?);
                    parts.push(out);
                }
                command
                    .merge()
                    .join(parts.iter().map(Vec::as_slice), to.protocol, to.out);
                Ok(lsn)
            }
            Ok(Command::Store(StoreCommand::Flush)) => {
                overlay.cleared = Some(self.next_version(to.now));
                *overlay.memtable.borrow_mut() = Memtable::new();
                Reply::new(to.out, to.protocol).ok();
                Ok(Lsn(0))
            }
            Ok(Command::Store(command)) => {
                let snapshot = match overlay.cleared {
                    Some(_) => Snapshot::only(Rc::clone(&overlay.memtable)),
                    None => self
                        .store
                        .snapshot()
                        .with_overlay(Rc::clone(&overlay.memtable)),
                };
                let lsn = self.store.lsn_last();
                self.read_store(&snapshot, &command, to).await?;
                Ok(lsn)
            }
            Ok(Command::Session(_)) => unreachable!("the connection answers these itself"),
            Err(error) => {
                error.reply(&mut Reply::new(to.out, to.protocol));
                Ok(Lsn(0))
            }
        }
    }

    async fn evaluate_part(
        &self,
        command: &KeyCommand<'_>,
        overlay: &Overlay,
        to: &mut Replying<'_>,
    ) -> Result<Lsn> {
        if !self.key_fits(command) {
            Reply::new(to.out, to.protocol).error(KEY_TOO_LARGE);
            return Ok(Lsn(0));
        }
        let key = KeyRef::of(command.key);
        let written = overlay
            .memtable
            .borrow()
            .get(&key)
            .map(|entry| entry.record.clone());
        let found = match written {
            Some(record) => Some(Found {
                record,
                lsn: Lsn(0),
            }),
            None if overlay.cleared.is_some() || !command.op.needs_current() => None,
            None => self.store.get(&key, want_of(&command.op)).await?,
        };
        let lsn = self.depends_on(found.as_ref());
        let effect = self.evaluate(&command.op, found.as_ref(), to);
        if let Some((meta, value)) = self.as_record(&effect, to.now) {
            let record = Record::new(meta, key.key, value);
            overlay
                .memtable
                .borrow_mut()
                .insert(record, key.position, Lsn(0));
        }
        Ok(lsn)
    }
}

/// One command of a transaction, as the client sent it.
pub struct Plan {
    /// What each core does.
    pub works: BTreeMap<CoreId, Work>,
    /// Cores that may write.
    pub writers: Vec<CoreId>,
    /// How each command's reply is made, in order.
    pub steps: Vec<Step>,
}

/// How one command's reply is made of those of its parts.
pub struct Step {
    /// The core of each part, and the part's number in that core's work.
    parts: Vec<(CoreId, usize)>,
    join: Join,
}

enum Join {
    One,
    Merge(Merge),
    /// Arrays become one array.
    Concat,
    /// The first reply that is no null.
    First,
}

impl Shard {
    /// Says which core does what of `commands`.
    pub fn plan(&self, commands: Vec<OwnedArgs>, protocol: Protocol) -> Plan {
        let mut plan = Plan {
            works: BTreeMap::new(),
            writers: Vec::new(),
            steps: Vec::new(),
        };
        for args in commands {
            let step = match parse(args.view()) {
                Ok(Command::Key(command)) => {
                    let key = KeyRef::of(command.key);
                    let core = self.map.core_of(key.position);
                    let write = command.op.is_write();
                    let part = plan.add(core, protocol, args.clone(), Wants::key(key.hash), write);
                    Step {
                        parts: vec![part],
                        join: Join::One,
                    }
                }
                Ok(Command::Keys(command)) => {
                    self.plan_keys(&mut plan, args.view(), &command, protocol)
                }
                Ok(Command::Store(command)) => {
                    self.plan_store(&mut plan, &args, &command, protocol)
                }
                Ok(Command::Session(_)) => unreachable!("the connection answers these itself"),
                // Its reply is the error, which whoever evaluates it will find again.
                Err(_) => {
                    let nothing = Wants::Keys(SmallVec::new());
                    let part = plan.add(self.id, protocol, args.clone(), nothing, false);
                    Step {
                        parts: vec![part],
                        join: Join::One,
                    }
                }
            };
            plan.steps.push(step);
        }
        plan
    }

    fn plan_keys(
        &self,
        plan: &mut Plan,
        args: ArgView<'_>,
        command: &KeysCommand<'_>,
        protocol: Protocol,
    ) -> Step {
        let mut parts = Vec::with_capacity(command.len());
        for part in command.parts() {
            let key = KeyRef::of(part.key);
            let core = self.map.core_of(key.position);
            let single = single_part(args, &part);
            parts.push(plan.add(
                core,
                protocol,
                single,
                Wants::key(key.hash),
                command.is_write(),
            ));
        }
        Step {
            parts,
            join: Join::Merge(command.merge()),
        }
    }

    fn plan_store(
        &self,
        plan: &mut Plan,
        args: &OwnedArgs,
        command: &StoreCommand<'_>,
        protocol: Protocol,
    ) -> Step {
        let write = matches!(command, StoreCommand::Flush);
        if let StoreCommand::Scan(scan) = command {
            let core = self.map.core_of(super::keyspace::position_of(scan.cursor));
            let part = plan.add(core, protocol, args.clone(), Wants::Everything, false);
            return Step {
                parts: vec![part],
                join: Join::One,
            };
        }
        let cores = (0..self.map.cores()).map(CoreId);
        let mut add = |core| plan.add(core, protocol, args.clone(), Wants::Everything, write);
        let parts = cores.map(&mut add).collect();
        Step {
            parts,
            join: Join::of(command),
        }
    }

    /// Carries out `plan`: the replies to its commands, in order.
    pub async fn transact(self: &Rc<Self>, mut plan: Plan) -> Result<Vec<Vec<u8>>, Refused> {
        let works = std::mem::take(&mut plan.works);
        let protocol = works
            .values()
            .next()
            .map_or(Protocol::Resp2, |work| work.protocol);
        let mut replies = BTreeMap::new();
        if works.len() == 1 {
            for (core, work) in works {
                replies.insert(core, self.run_on(core, work).await?);
            }
        } else {
            let shard = Rc::clone(self);
            let writers = std::mem::take(&mut plan.writers);
            // A task of its own: it goes on though the connection may end.
            replies = rt::spawn(async move { shard.coordinate(works, writers).await }).await?;
        }
        Ok(plan
            .steps
            .iter()
            .map(|step| step.reply(&replies, protocol))
            .collect())
    }

    async fn run_on(self: &Rc<Self>, core: CoreId, work: Work) -> Result<Vec<Vec<u8>>, Refused> {
        if core == self.id {
            return self.start_alone(work).await;
        }
        match self
            .siblings
            .ask(core, Job::Alone(Box::new(work)))
            .wait()
            .await
        {
            Some(Said::Ran(ran)) => ran,
            _ => Err(Refused::Failed(Error::Uncertain)),
        }
    }

    async fn coordinate(
        self: Rc<Self>,
        works: BTreeMap<CoreId, Work>,
        writers: Vec<CoreId>,
    ) -> Result<BTreeMap<CoreId, Vec<Vec<u8>>>, Refused> {
        let token = self.next_token();
        for (core, work) in &works {
            self.do_on(*core, Job::Reserve(token, work.wants.clone()))
                .await;
        }
        let cores: Vec<CoreId> = works.keys().copied().collect();
        let now = rt::wall_ms();
        let transaction = self.next_version(now);
        let (writing, reading): (BTreeMap<_, _>, _) = works
            .into_iter()
            .partition(|(core, _)| writers.contains(core));
        // Who only reads or watches has its say first: once all that write have prepared, the
        // transaction holds after a crash, and nobody can be against it any more.
        let outcome = Outcome::ReadOnly;
        let (mut replies, mut refused) = self.run_parts(token, reading, now, outcome).await;
        if refused.is_none() {
            let outcome = Outcome::Prepare(transaction, writers);
            let (more, why) = self.run_parts(token, writing, now, outcome).await;
            replies.extend(more);
            refused = why;
        }
        let verdict = match &refused {
            None => Verdict::Commit,
            // A prepared part that could not be synced may be there after a crash all the same.
            Some(Refused::Failed(Error::Uncertain)) => Verdict::Revoke,
            Some(_) => Verdict::Abort,
        };
        // Waited for: whoever is told of the outcome must see it, though KEYS, SCAN and WATCH take no
        // latches, and may ask a core that this one's word has not reached yet.
        let finished: Vec<_> = cores
            .into_iter()
            .map(|core| {
                let shard = Rc::clone(&self);
                rt::spawn(async move { shard.do_on(core, Job::Finish(token, verdict)).await })
            })
            .collect();
        for core in finished {
            let _ = core.await; // a core that has ended shows nothing to anybody
        }
        refused.map_or(Ok(replies), Err)
    }

    /// Runs parts of a transaction side by side: the replies of those that went well, and why
    /// others did not.
    async fn run_parts(
        self: &Rc<Self>,
        token: Token,
        works: BTreeMap<CoreId, Work>,
        now: UnixMillis,
        outcome: Outcome,
    ) -> (BTreeMap<CoreId, Vec<Vec<u8>>>, Option<Refused>) {
        let run = |(core, work)| {
            let shard = Rc::clone(self);
            let job = Job::Run(token, Box::new(work), now, outcome.clone());
            (core, rt::spawn(async move { shard.do_on(core, job).await }))
        };
        let answers: Vec<_> = works.into_iter().map(run).collect();
        let mut replies = BTreeMap::new();
        let mut refused = None;
        for (core, answer) in answers {
            match answer.await {
                Some(Said::Ran(Ok(ran))) => {
                    replies.insert(core, ran);
                }
                Some(Said::Ran(Err(why))) => refused = Some(worse(refused, why)),
                _ => refused = Some(worse(refused, Refused::Failed(Error::Uncertain))),
            }
        }
        (replies, refused)
    }

    /// Has `core` do something: this very core too.
    pub async fn do_on(self: &Rc<Self>, core: CoreId, job: Job) -> Option<Said> {
        if core == self.id {
            return Some(self.serve(job).await);
        }
        self.siblings.ask(core, job).wait().await
    }
}

/// Of two reasons, the one that the client must hear: that the outcome is unknown.
fn worse(one: Option<Refused>, other: Refused) -> Refused {
    match one {
        Some(Refused::Failed(Error::Uncertain)) => Refused::Failed(Error::Uncertain),
        Some(first) if !matches!(other, Refused::Failed(Error::Uncertain)) => first,
        _ => other,
    }
}

/// The request that does to one key what `args` does to several.
fn single_part(args: ArgView<'_>, part: &KeyCommand<'_>) -> OwnedArgs {
    let mut single = OwnedArgs::new();
    match &part.op {
        KeyOp::Set(set) => {
            single.push(b"SET");
            single.push(part.key);
            single.push(set.value);
        }
        KeyOp::Get => {
            single.push(b"GET");
            single.push(part.key);
        }
        _ => {
            single.push(args.get(0).unwrap_or_default());
            single.push(part.key);
        }
    }
    single
}

impl Plan {
    fn add(
        &mut self,
        core: CoreId,
        protocol: Protocol,
        args: OwnedArgs,
        wants: Wants,
        write: bool,
    ) -> (CoreId, usize) {
        let work = self
            .works
            .entry(core)
            .or_insert_with(|| Work::new(protocol));
        work.commands.push(args);
        let before = std::mem::replace(&mut work.wants, Wants::Everything);
        work.wants = before.and(wants);
        if write && !self.writers.contains(&core) {
            self.writers.push(core);
        }
        (core, work.commands.len() - 1)
    }

    /// Adds a watched key to its core's work.
    pub fn watch(&mut self, core: CoreId, key: Vec<u8>, state: WatchState, protocol: Protocol) {
        let work = self
            .works
            .entry(core)
            .or_insert_with(|| Work::new(protocol));
        let before = std::mem::replace(&mut work.wants, Wants::Everything);
        work.wants = before.and(Wants::key(KeyHash::of(&key)));
        work.watches.push((key, state));
    }
}

impl Work {
    /// Nothing to do yet.
    pub fn new(protocol: Protocol) -> Work {
        let wants = Wants::Keys(SmallVec::new());
        Work {
            commands: Vec::new(),
            watches: Vec::new(),
            wants,
            protocol,
        }
    }
}

impl Join {
    fn of(command: &StoreCommand<'_>) -> Join {
        match command {
            StoreCommand::Scan(_) => Join::One,
            StoreCommand::Keys { .. } => Join::Concat,
            StoreCommand::Size => Join::Merge(Merge::Sum),
            StoreCommand::RandomKey => Join::First,
            StoreCommand::Flush => Join::Merge(Merge::Ok),
        }
    }
}

impl Step {
    /// The reply to this command, made of those to its parts.
    pub fn reply(&self, replies: &BTreeMap<CoreId, Vec<Vec<u8>>>, protocol: Protocol) -> Vec<u8> {
        let part = |(core, index): &(CoreId, usize)| -> &[u8] { &replies[core][*index] };
        let mut out = Vec::new();
        match &self.join {
            Join::One => out.extend_from_slice(part(&self.parts[0])),
            Join::Merge(merge) => {
                merge.join(self.parts.iter().map(part), protocol, &mut out);
            }
            Join::Concat => concat(self.parts.iter().map(part), protocol, &mut out),
            Join::First => {
                let null = |reply: &&[u8]| reply.starts_with(b"$-1") || reply.starts_with(b"_");
                let first = self.parts.iter().map(part).find(|reply| !null(reply));
                out.extend_from_slice(first.unwrap_or_else(|| part(&self.parts[0])));
            }
        }
        out
    }
}

/// Makes one array of several.
fn concat<'p>(arrays: impl Iterator<Item = &'p [u8]>, protocol: Protocol, out: &mut Vec<u8>) {
    let mut items = 0;
    let mut bytes = Vec::new();
    for array in arrays {
        let Some(end) = array.windows(2).position(|two| two == b"\r\n") else {
            continue;
        };
        let digits = std::str::from_utf8(&array[1..end]).unwrap_or_default();
        if array[0] != b'*' {
            out.extend_from_slice(array); // an error is the answer
            return;
        }
        items += digits.parse::<usize>().unwrap_or(0);
        bytes.extend_from_slice(&array[end + 2..]);
    }
    let mut reply = Reply::new(out, protocol);
    reply.array(items);
    reply.raw(&bytes);
}
