//! Commands that need more than one moment or more than one core: atomic and isolated.
//!
//! MULTI/EXEC, commands on keys of several cores, and single commands that must wait for the disk
//! in their middle. The coordinator (the core of the client's connection) plans which core does
//! what (`plan`); then, if several take part: each core in the order of their numbers reserves the
//! keys' latches; all evaluate their part on an overlay that nobody else sees, those that only read
//! (or watch) before those that write; each of the latter logs its part as prepared and syncs it;
//! then all let it be seen. After a crash it holds if and only if every core that writes had
//! prepared (storage/wal), so none may prepare while one that does not write could still refuse;
//! and where one's log fails with its part, the others' logs say that it never held, before anybody
//! builds on that. Where no log takes that word any more, its keys answer that nobody knows, until
//! a restart. With one core it is one batch of its log.
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
use super::plan::{Asker, Plan};
use super::refusal::reply_refusal;
use super::siblings::{Job, Outcome, Said, Verdict};
use crate::cluster::face::Port;
use crate::error::{Error, Result};
use crate::protocol::command::{Command, KeyCommand, StoreCommand, parse};
use crate::protocol::reply::Reply;
use crate::protocol::resp::OwnedArgs;
use crate::rt;
use crate::storage::memtable::Memtable;
use crate::storage::record::{KeyRef, Record};
use crate::storage::{Batch, Found, Snapshot, Want};
use crate::types::{CoreId, Lsn, UnixMillis, Version};

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
    /// For whom it is.
    pub asker: Asker,
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
        let admitted = self.store.wait_admitted(batch).await;
        let may_be_made = admitted.and_then(|()| self.refuse_if_widened());
        may_be_made.map_err(Refused::Failed)
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
                let may_be_made = admitted.and_then(|()| self.refuse_if_widened());
                may_be_made.map_err(Refused::Failed)?;
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
                protocol: work.asker.protocol,
                now,
            };
            let port = work.asker.port;
            let read = self.evaluate_command(args, &mut overlay, port, &mut to);
            let read = read.await;
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
        port: Port,
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
                self.read_store(&snapshot, &command, port, to).await?;
                Ok(lsn)
            }
            Ok(Command::Session(_) | Command::Kv(_)) => {
                unreachable!("these are no part of a transaction")
            }
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

impl Shard {
    /// Carries out `plan`: the replies to its commands, in order.
    pub async fn transact(self: &Rc<Self>, mut plan: Plan) -> Result<Vec<Vec<u8>>, Refused> {
        let works = std::mem::take(&mut plan.works);
        let protocol = plan.asker.protocol;
        self.counters.borrow_mut().crossed += plan.crossing(self.id);
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
        // Waited for: whoever is told of the outcome must see it, though KEYS, SCAN and WATCH take
        // no latches, and may ask a core that this one's word has not reached yet.
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

impl Work {
    /// Nothing to do yet.
    pub fn new(asker: Asker) -> Work {
        let wants = Wants::Keys(SmallVec::new());
        Work {
            commands: Vec::new(),
            watches: Vec::new(),
            wants,
            asker,
        }
    }
}
