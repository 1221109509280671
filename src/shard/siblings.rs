//! What the cores of a node say to each other: questions, and their answers.
//!
//! A core never waits to send; how much it has outstanding is bounded by its connections, each of
//! which has at most one question per sibling under way.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::kv::{Operation, Outcome as KvOutcome};
use super::place::Beginning;
use super::plan::Asker;
use super::report::Report;
use super::transaction::{Refused, Token, WatchState, Work};
use crate::cluster::peers::Event;
use crate::error::Error;
use crate::membership::View;
use crate::protocol::peer::{OwnedAnswer, OwnedRequest};
use crate::protocol::reply::Protocol;
use crate::protocol::resp::OwnedArgs;
use crate::rt::Outbox;
use crate::rt::sync::{Answer as AnswerSlot, Answerer, answer_slot};
use crate::shard::latches::Wants;
use crate::types::{CoreId, UnixMillis, Version};

/// What travels between cores.
pub enum Message {
    /// Do this, and answer under this number.
    Ask(u64, Job),
    /// The answer to one's question of this number.
    Answer(u64, Said),
    /// The sender has this many clients now.
    Clients(usize),
    /// From core 0: the data directory is this node's, and this in force; open your part.
    Begin(Beginning),
    /// From core 0: the cluster is seen like this now.
    View(Arc<View>),
    /// To core 0: this was heard of another node.
    Heard(Event),
    /// The sender takes no more clients: the node is to end.
    Leave,
}

/// What one core asks of another.
pub enum Job {
    /// Run these commands, each on one key or on several keys of this core.
    Commands(Commands),
    /// Take these latches for a transaction, waiting for one's turn.
    Reserve(Token, Wants),
    /// Evaluate a transaction's work under the latches reserved for it, and log it.
    Run(Token, Box<Work>, UnixMillis, Outcome),
    /// End the transaction: let it be seen, or forget it.
    Finish(Token, Verdict),
    /// Carry out this operation on a key of yours.
    Kv(Box<Operation>),
    /// Answer this as a replica, until this moment.
    Replica(OwnedRequest, Duration),
    /// Reserve, run and finish: the whole transaction is this core's.
    Alone(Box<Work>),
    /// The state of these keys, for WATCH.
    Watch(Vec<Vec<u8>>),
    /// Run one command about the whole store on this core's part, without latches.
    Read(OwnedArgs, Asker),
    /// Note durably that these transactions hold.
    NoteCommits(Vec<Version>),
    /// Which of these transactions had this core prepared when it started?
    Prepared(Vec<Version>),
    /// Answer when all that was prepared before the start is decided.
    Opened,
    /// Answer when clients can connect.
    Listening,
    /// Do clients find you at work, with a log that takes writes?
    Ready,
    /// Describe yourself.
    Report,
    /// Of core 0: have the cluster know that it holds data.
    OpenCluster,
    /// Of core 0: let versions up to this time be made for replicated writes.
    RaiseCeiling(UnixMillis),
    /// Count from zero again.
    ResetStatistics,
}

/// What becomes of the writes of [`Job::Run`].
#[derive(Clone)]
pub enum Outcome {
    /// There are none.
    ReadOnly,
    /// Prepare them under this name; these cores write.
    Prepare(Version, Vec<CoreId>),
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Commit,
    /// It never was: some core has certainly not prepared it.
    Abort,
    /// It never was, but some core may have prepared it: the others must remember.
    Revoke,
}

/// What a core answers.
pub enum Said {
    /// The replies to `Commands`.
    Replies(Replies),
    /// The work's replies, or why there are none.
    Ran(Result<Vec<Vec<u8>>, Refused>),
    /// What became of the operation.
    Kv(Result<KvOutcome, Error>),
    /// As a replica.
    Replica(OwnedAnswer),
    /// The states of the keys.
    Watched(Result<Vec<WatchState>, Refused>),
    /// A reply's bytes.
    Bytes(Vec<u8>),
    /// For each transaction whether it was prepared.
    Prepared(Vec<bool>),
    /// The report.
    Report(Box<Report>),
    /// Versions below this time may be made; `None`: no more than before.
    Ceiling(Option<UnixMillis>),
    /// All that was prepared is decided, and no version that is stored here is above this one;
    /// `None`: this core is to end.
    Opened(Option<Version>),
    /// Done, or not.
    Done(bool),
}

/// Commands on their way to the core that owns their keys, in one piece.
pub struct Commands {
    /// Each a whole request.
    pub requests: Vec<OwnedArgs>,
    /// How to reply.
    pub protocol: Protocol,
}

/// Replies in the order of the commands, in one piece.
#[derive(Default)]
pub struct Replies {
    /// All of them, one behind the other.
    pub bytes: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<usize>,
    /// The last commands, which were not run: those before them have said enough for one time.
    pub rest: Vec<OwnedArgs>,
}

impl Replies {
    /// The reply number `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(index)?)
    }
}

/// The way to the other cores, and the questions that wait for an answer.
pub struct Siblings {
    outbox: Outbox<Message>,
    id_next: Cell<u64>,
    /// By number: who was asked, and who waits for the answer.
    open: RefCell<BTreeMap<u64, (CoreId, Answerer<Said>)>>,
    /// Cores that take no more clients.
    left: RefCell<BTreeSet<CoreId>>,
    /// Cores that have ended: they answer nothing.
    ended: RefCell<BTreeSet<CoreId>>,
}

impl Siblings {
    /// None of the questions is open yet.
    pub fn new(outbox: Outbox<Message>) -> Siblings {
        Siblings {
            outbox,
            id_next: Cell::new(0),
            open: RefCell::default(),
            left: RefCell::default(),
            ended: RefCell::default(),
        }
    }

    /// Asks core `to`; the answer comes out of the slot, or the news that there will be none.
    pub fn ask(&self, to: CoreId, job: Job) -> AnswerSlot<Said> {
        let id = self.id_next.get();
        self.id_next.set(id + 1);
        let (answerer, answer) = answer_slot();
        if self.ended.borrow().contains(&to) {
            return answer;
        }
        self.open.borrow_mut().insert(id, (to, answerer));
        self.outbox.send(to, Message::Ask(id, job));
        answer
    }

    /// Answers question `id` of core `to`.
    pub fn answer(&self, to: CoreId, id: u64, said: Said) {
        self.outbox.send(to, Message::Answer(id, said));
    }

    /// Takes the answer to question `id`.
    pub fn answered(&self, id: u64, said: Said) {
        let asked = self.open.borrow_mut().remove(&id);
        if let Some((_, answerer)) = asked {
            answerer.give(said);
        }
    }

    /// Core `who` takes no more clients.
    pub fn has_left(&self, who: CoreId) {
        self.left.borrow_mut().insert(who);
    }

    /// Core `who` has ended: what it was asked stays without an answer.
    pub fn has_ended(&self, who: CoreId) {
        self.has_left(who);
        self.ended.borrow_mut().insert(who);
        let open = std::mem::take(&mut *self.open.borrow_mut());
        let (unanswered, rest): (BTreeMap<_, _>, _) =
            open.into_iter().partition(|(_, (to, _))| *to == who);
        *self.open.borrow_mut() = rest;
        drop(unanswered);
    }

    /// How many take no more clients.
    pub fn left(&self) -> usize {
        self.left.borrow().len()
    }

    /// Says something that needs no answer.
    pub fn tell(&self, to: CoreId, message: Message) {
        self.outbox.send(to, message);
    }
}
