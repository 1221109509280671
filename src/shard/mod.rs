//! The world of one core: its store, its latches, its clients, its siblings.
//!
//! A core starts by opening its store and settling with the others which transactions hold
//! ([`run`]); then it listens. Client bytes become commands in `connection`; `dispatch` runs what
//! is this core's and sends on what is not; `transaction` does what needs several cores or moments.
//! `face` tells cluster clients which core to ask.

mod ahead;
mod cluster;
mod connection;
mod directory;
mod dispatch;
pub mod evaluate;
mod execute;
mod face;
mod files;
mod hints;
mod info;
mod keyspace;
pub mod kv;
mod kv_command;
mod latch_table;
pub mod latches;
mod latencies;
mod links;
mod outside;
mod place;
mod plan;
mod refusal;
mod replica;
mod replicated;
mod report;
mod session;
mod settings;
mod siblings;
mod start;
mod transaction;
mod walk;
mod whole;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use crate::cluster::face::Port;
use crate::cluster::ring::Map;
use crate::config::Config;
use crate::error::Error;
use crate::protocol::command::{Command, parse};
use crate::protocol::reply::Reply;
use crate::protocol::resp::OwnedArgs;
use crate::replication::clock::Clock;
use crate::rt;
use crate::rt::sync::Signal;
use crate::storage::Store;
use crate::storage::hints::Hints;
use crate::types::{CoreId, UnixMillis, Version};
use cluster::Cluster;
use connection::Clients;
use execute::Replying;
use hints::HandOffs;
use latch_table::LatchTable;
use place::Place;
use siblings::{Job, Message, Said, Siblings};
use transaction::{Refused, Reserved, Token};
use walk::Walks;

pub use connection::{Buffer, Client};
pub use directory::open_store;
pub use hints::HintReport;
pub use latencies::LatencyReport;
pub use refusal::Told;
pub use report::{Counters, Report, total};
pub use siblings::Message as CoreMessage;
pub use start::{HttpFace, NodeFacts, run};

/// One core. Shared within it by `Rc`.
pub struct Shard {
    id: CoreId,
    map: Map,
    /// Of the map: it rises with every re-sharding.
    epoch: u64,
    config: Rc<Config>,
    facts: NodeFacts,
    store: Rc<Store>,
    clock: RefCell<Clock>,
    latches: Rc<LatchTable>,
    siblings: Siblings,
    cluster: Cluster,
    walks: Walks,
    place: Place,
    /// What is kept for replicas that are away.
    hints: Rc<Hints>,
    hand_offs: HandOffs,
    /// Transactions for which latches are reserved here.
    reserved: RefCell<BTreeMap<Token, Reserved>>,
    token_next: Cell<u64>,
    /// Transactions that this core had prepared before it started.
    prepared_before: BTreeSet<Version>,
    clients: Clients,
    counters: RefCell<Counters>,
    stage: Cell<Stage>,
    /// The stage changed, or a client is to be closed.
    staged: Signal,
    started: Duration,
}

/// How far a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It does not know yet which transactions hold.
    Opening,
    /// It knows; siblings may send it commands.
    Open,
    /// Clients can connect.
    Listening,
    /// No more clients; those that are there are sent home.
    Stopping,
}

impl Shard {
    fn next_version(&self, now: UnixMillis) -> Version {
        self.clock.borrow_mut().next(now)
    }

    fn next_token(&self) -> Token {
        let number = self.token_next.get();
        self.token_next.set(number + 1);
        (self.id, number)
    }

    fn is_stopping(&self) -> bool {
        self.stage.get() == Stage::Stopping
    }

    fn advance(&self, stage: Stage) {
        if stage > self.stage.get() {
            self.stage.set(stage);
            self.staged.wake_all();
        }
    }

    async fn reached(&self, stage: Stage) {
        self.staged
            .wait_for(|| (self.stage.get() >= stage).then_some(()))
            .await;
    }

    fn other_cores(&self) -> impl Iterator<Item = CoreId> + use<> {
        let own = self.id;
        (0..self.map.cores())
            .map(CoreId)
            .filter(move |core| *core != own)
    }

    /// Hands on what sibling `from` sends, for as long as it sends.
    async fn receive(self: Rc<Self>, mut inbox: rt::Inbox<Message>) {
        let from = inbox.from();
        while let Some(message) = inbox.recv().await {
            match message {
                Message::Answer(id, said) => self.siblings.answered(id, said),
                Message::Clients(count) => self.clients.note_others(from, count),
                Message::Begin(_) => {} // it was waited for before there was a shard
                Message::View(view) => self.take_view(view),
                Message::Heard(event) => self.hear_of_here(event),
                Message::Leave => {
                    self.siblings.has_left(from);
                    self.advance(Stage::Stopping);
                }
                Message::Ask(id, job) => {
                    let shard = Rc::clone(&self);
                    // A task for each: a receiver never waits for anything but the next message.
                    rt::spawn(async move {
                        let said = shard.serve(job).await;
                        shard.siblings.answer(from, id, said);
                    });
                }
            }
        }
        self.siblings.has_ended(from);
    }

    /// Does what a core (this one too) asks for.
    async fn serve(self: &Rc<Self>, job: Job) -> Said {
        match job {
            Job::Commands(commands) => Said::Replies(self.run_commands(commands).await),
            Job::Reserve(token, wants) => {
                self.reserve(token, wants).await;
                Said::Done(true)
            }
            Job::Run(token, work, now, outcome) => {
                Said::Ran(self.run_reserved(token, &work, now, outcome).await)
            }
            Job::Finish(token, verdict) => {
                self.finish(token, verdict).await;
                Said::Done(true)
            }
            Job::Kv(operation) => Said::Kv(self.kv_here(*operation).await),
            Job::Replica(request, deadline) => {
                Said::Replica(self.replica_answer(&request.view(), deadline).await)
            }
            Job::Alone(work) => Said::Ran(self.start_alone(*work).await),
            Job::Watch(keys) => Said::Watched(self.watch_states(&keys).await),
            Job::Read(args, asker) => {
                let mut out = Vec::new();
                let mut to = Replying {
                    out: &mut out,
                    protocol: asker.protocol,
                    now: rt::wall_ms(),
                };
                if let Err(error) = self.read(&args, asker.port, &mut to).await {
                    out.clear();
                    Refused::Failed(error).reply(&mut Reply::new(&mut out, asker.protocol));
                }
                Said::Bytes(out)
            }
            Job::NoteCommits(transactions) => {
                Said::Done(self.store.note_commits(&transactions).await.is_ok())
            }
            Job::Prepared(transactions) => {
                let known = |transaction| self.prepared_before.contains(transaction);
                Said::Prepared(transactions.iter().map(known).collect())
            }
            Job::Opened => {
                self.reached(Stage::Open).await;
                let seen = self.clock.borrow().last();
                Said::Opened((!self.is_stopping()).then_some(seen))
            }
            Job::Listening => {
                self.reached(Stage::Listening).await;
                Said::Done(!self.is_stopping())
            }
            Job::Ready => Said::Done(self.is_ready_here()),
            Job::Report => Said::Report(Box::new(self.report())),
            Job::OpenCluster => Said::Done(self.open_cluster().await),
            Job::RaiseCeiling(needed) => Said::Ceiling(self.raise_ceiling_here(needed).await),
            Job::ResetStatistics => {
                self.counters.borrow_mut().reset();
                Said::Done(true)
            }
        }
    }

    async fn read(&self, args: &OwnedArgs, port: Port, to: &mut Replying<'_>) -> Result<(), Error> {
        match parse(args.view()) {
            Ok(Command::Store(command)) => {
                let snapshot = self.store.snapshot();
                let lsn = self.read_store(&snapshot, &command, port, to).await?;
                self.store.wait_acknowledged(lsn).await
            }
            Ok(_) => unreachable!("only commands about the whole store are read in this way"),
            Err(error) => {
                error.reply(&mut Reply::new(to.out, to.protocol));
                Ok(())
            }
        }
    }

    /// Settles with the other cores which transactions hold, whenever the log wants to forget some.
    async fn settle_transactions(self: Rc<Self>) {
        while let Some(unsettled) = self.store.unsettled().await {
            let mut by_core: BTreeMap<CoreId, Vec<Version>> = BTreeMap::new();
            for (transaction, cores) in &unsettled {
                for core in cores.iter().filter(|core| **core != self.id) {
                    by_core.entry(*core).or_default().push(*transaction);
                }
            }
            let mut all = true;
            for (core, transactions) in by_core {
                let noted = self.do_on(core, Job::NoteCommits(transactions)).await;
                all &= matches!(noted, Some(Said::Done(true)));
            }
            if all {
                let settled: Vec<Version> = unsettled.iter().map(|(name, _)| *name).collect();
                self.store.settled(&settled);
            } else {
                rt::sleep(SETTLE_RETRY).await;
            }
        }
    }
}

/// After a sibling could not note a commit it is asked again so often.
const SETTLE_RETRY: Duration = Duration::from_millis(200);
