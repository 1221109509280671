//! One load thread, without its sockets: what to send on which connection, and what the answers
//! mean. Pure; times are nanoseconds since the phase began.
//!
//! A **client** is what a user of a server has: one connection to each node, and at most `pipeline`
//! requests in flight. In a closed loop it sends so many at once, and again when all are answered;
//! in an open loop it takes what is due while it has room. One that fails over has a connection to
//! each server, prefers its own, and asks the next one where that fails. The driver reads and
//! writes sockets, and calls [`Core::on_bytes`], [`Core::issue`] and [`Core::outgoing`] in turn.
//!
//! Memory: requests in flight are bounded by clients and pipeline, payloads are judged as they
//! pass, and what is overdue waits in the schedule, not in a queue.

mod issue;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chance::{Chance, mix};
use crate::content::Check;
use crate::gaps::Gaps;
use crate::history::{Entry, History};
use crate::keys::{Chooser, Spread};
use crate::ledger::{Counters, Ledger, Outcome};
use crate::plan::{Plan, Share};
use crate::request::{Request, Step};
use crate::resp::{Broken, Event, Parser, Reply};
use crate::schedule::{Pace, Schedule};
use crate::slots::SlotMap;
use crate::tally::Tally;
use crate::workload::{Family, Order};

/// Bytes that a connection's buffer keeps when it is empty.
const OUT_KEPT_MAX: usize = 1 << 20;
const NO_LINK: u32 = u32::MAX;
/// Servers between which a client can fail over.
pub const SERVERS_MAX: usize = u32::BITS as usize;
/// A server that has failed a client is asked again after so long, unless there is no other.
const SHUN_NANOS: u64 = 1_000_000_000;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Each record is written once, as fast as it goes.
    Fill,
    /// What was asked for.
    Work,
    /// Everything that was acknowledged is read once.
    ReadBack,
}

struct Client {
    in_flight: u32,
    /// Its connection to each node.
    links: Vec<u32>,
}

/// A connection of one client to one node.
#[derive(Default)]
struct Connection {
    client: u32,
    node: u16,
    is_up: bool,
    is_dirty: bool,
    /// Greetings that are not answered.
    greetings: u32,
    /// What the write before a WAIT was answered with, if it was an error.
    refusal: Option<Box<str>>,
    /// Of a client that fails over: others are preferred up to then.
    shunned_until: u64,
    out: Vec<u8>,
    written: usize,
    waiting: VecDeque<Request>,
    parser: Parser,
    check: Check,
}

/// See the head of the file.
pub struct Core {
    plan: Arc<Plan>,
    share: Share,
    phase: Phase,
    schedule: Schedule,
    chance: Chance,
    chooser: Chooser,
    once_each: Spread,
    slots: SlotMap,
    clients: Vec<Client>,
    /// Clients that have room.
    free: VecDeque<u32>,
    connections: Vec<Connection>,
    /// Connections with bytes to send; connections to be opened.
    dirty: Vec<u32>,
    wanted: Vec<u32>,
    ledger: Option<Ledger>,
    counters: Option<Counters>,
    history: Option<History>,
    gaps: Option<Gaps>,
    tally: Box<Tally>,
    /// The latest time that was heard of.
    now: u64,
    issued: u64,
    /// Of which so many at most; and not later than this.
    issued_max: u64,
    end: u64,
    is_ended: bool,
    seq: u32,
    in_flight: u64,
    read_back: ReadBack,
}

/// The records to read back next.
#[derive(Default)]
struct ReadBack {
    values: u64,
    counters: u64,
}

impl Core {
    /// With `clients` clients, of all nodes that `slots` names.
    pub fn new(plan: Arc<Plan>, share: Share, clients: u32, slots: SlotMap) -> Core {
        assert!(clients > 0 && share.thread < share.threads);
        let seed = mix(plan.seed ^ mix(share.thread as u64));
        let records = share.part(plan.records);
        let inserts_max = share.part(plan.inserts_max);
        let capacity = records + inserts_max;
        let verifies = |family| plan.verify && plan.mix.has(family);
        let mut core = Core {
            schedule: Schedule::new(Pace::Closed, seed),
            chance: Chance::new(seed),
            chooser: Chooser::new(plan.distribution, records, inserts_max),
            once_each: Spread::new(records),
            tally: Box::new(plan.empty_tally()),
            ledger: (verifies(Family::Values) && !plan.is_linear)
                .then(|| Ledger::new(capacity, plan.run)),
            counters: verifies(Family::Counters).then(|| Counters::new(capacity)),
            history: plan.is_linear.then(History::default),
            gaps: plan.has_gaps.then(|| Gaps::new(capacity)),
            now: 0,
            clients: Vec::new(),
            free: VecDeque::new(),
            connections: Vec::new(),
            dirty: Vec::new(),
            wanted: Vec::new(),
            phase: Phase::Work,
            issued: 0,
            issued_max: 0,
            end: 0,
            is_ended: true,
            seq: 0,
            in_flight: 0,
            read_back: ReadBack::default(),
            slots,
            share,
            plan,
        };
        for client in 0..clients {
            let links = vec![NO_LINK; core.slots.nodes().len()];
            core.clients.push(Client {
                in_flight: 0,
                links,
            });
            (0..core.slots.nodes().len()).for_each(|node| {
                core.link(client, node as u16);
            });
        }
        core
    }

    /// Begins a phase at time 0. Nothing may be in flight.
    pub fn begin(&mut self, phase: Phase) {
        assert!(self.in_flight == 0 && self.is_ended);
        if let Some(history) = &mut self.history {
            history.begin_phase(self.now);
        }
        self.now = 0;
        for link in &mut self.connections {
            link.shunned_until = 0;
        }
        let plan = &self.plan;
        let seed = mix(plan.seed ^ mix(self.share.thread as u64 + phase as u64 * 1_000_003));
        let (pace, end, issued_max) = match phase {
            Phase::Work => {
                let requests = plan.requests.map(|requests| self.share.part(requests));
                let once = (plan.order == Order::OnceEach).then(|| self.share.part(plan.records));
                let max = requests.unwrap_or(u64::MAX).min(once.unwrap_or(u64::MAX));
                (
                    plan.pace.share(self.share.threads),
                    plan.duration.unwrap_or(u64::MAX),
                    max,
                )
            }
            Phase::Fill => (Pace::Closed, u64::MAX, self.share.part(plan.records)),
            Phase::ReadBack => (Pace::Closed, u64::MAX, u64::MAX),
        };
        self.phase = phase;
        self.schedule = Schedule::new(pace, seed);
        self.end = end;
        self.issued_max = issued_max;
        self.issued = 0;
        self.is_ended = false;
        self.tally.clear();
        self.free = (0..self.clients.len() as u32).collect();
    }

    /// A phase is over at `now`, with all that was asked for: what its clients asked for and were
    /// told since the last one.
    pub fn end_phase(&mut self, now: u64) -> Vec<Entry> {
        self.now = self.now.max(now);
        if let Some(gaps) = &mut self.gaps {
            gaps.finish(now, &mut self.tally.longest);
        }
        self.history.as_mut().map_or_else(Vec::new, History::take)
    }

    /// Gives away what was measured, and goes on with `empty`.
    pub fn swap_tally(&mut self, empty: Box<Tally>) -> Box<Tally> {
        std::mem::replace(&mut self.tally, empty)
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn next_due(&self) -> Option<u64> {
        self.schedule.next_due()
    }

    /// Whether the phase is over and everything answered, or given up.
    pub fn is_done(&self) -> bool {
        self.is_ended && self.in_flight == 0
    }

    /// Whether no more requests are sent.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// No more requests, whatever is due.
    pub fn stop(&mut self) {
        self.is_ended = true;
    }

    /// Whether a client waits for nothing but the next request to become due.
    pub fn has_room(&self) -> bool {
        !self.is_ended && !self.free.is_empty()
    }

    // --- Bytes ---

    /// Connections that are to be opened, each to the node of [`Core::address`].
    pub fn take_wanted(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.wanted)
    }

    pub fn address(&self, connection: u32) -> &str {
        &self.slots.nodes()[usize::from(self.connections[connection as usize].node)]
    }

    /// A connection is open: it greets with `greeting`, of so many commands, before all that waits.
    pub fn on_up(&mut self, connection: u32, greeting: &[u8], commands: usize) {
        let link = &mut self.connections[connection as usize];
        assert!(!link.is_up && link.written == 0);
        link.is_up = true;
        link.out.splice(0..0, greeting.iter().copied());
        let request = Request::greeting(link.client);
        (0..commands).for_each(|_| link.waiting.push_front(request));
        link.greetings = commands as u32;
        self.soil(connection);
    }

    /// Has a connection that is open greet again, after all that waits.
    pub fn greet(&mut self, connection: u32, greeting: &[u8], commands: usize) {
        let link = &mut self.connections[connection as usize];
        assert!(link.is_up);
        link.out.extend_from_slice(greeting);
        let request = Request::greeting(link.client);
        (0..commands).for_each(|_| link.waiting.push_back(request));
        link.greetings += commands as u32;
        self.soil(connection);
    }

    /// A connection that may have bytes to send.
    pub fn take_dirty(&mut self) -> Option<u32> {
        let connection = self.dirty.pop()?;
        self.connections[connection as usize].is_dirty = false;
        Some(connection)
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What it has to send.
    pub fn outgoing(&self, connection: u32) -> &[u8] {
        let connection = &self.connections[connection as usize];
        &connection.out[connection.written..]
    }

    /// So much of it went out.
    pub fn wrote(&mut self, connection: u32, bytes: usize) {
        let connection = &mut self.connections[connection as usize];
        connection.written += bytes;
        assert!(connection.written <= connection.out.len());
        if connection.written == connection.out.len() && bytes > 0 {
            connection.written = 0;
            connection.out.clear();
            connection.out.shrink_to(OUT_KEPT_MAX);
        }
    }

    /// Bytes came in at `now`.
    pub fn on_bytes(&mut self, connection: u32, mut bytes: &[u8], now: u64) -> Result<(), Broken> {
        self.now = self.now.max(now);
        let link = &mut self.connections[connection as usize];
        let mut parser = std::mem::take(&mut link.parser);
        let mut check = std::mem::take(&mut link.check);
        while let Some(event) = parser.next(&mut bytes)? {
            match event {
                Event::Payload(piece) if self.plan.verify => check.feed(piece),
                Event::Payload(_) => {}
                Event::Reply(reply) => {
                    let link = &mut self.connections[connection as usize];
                    let request = link.waiting.pop_front().ok_or(Broken)?;
                    link.greetings -= u32::from(request.step == Step::Greeting);
                    match (request.step, reply, link.refusal.take()) {
                        (Step::Ahead, Reply::Error(message), _) => link.refusal = Some(message),
                        (Step::Ahead, _, _) => {}
                        (_, _, Some(message)) => self.on_error(request, &message),
                        (_, reply, None) => self.settle(request, reply, &mut check, now),
                    }
                    check = Check::default();
                }
            }
        }
        let link = &mut self.connections[connection as usize];
        link.parser = parser;
        link.check = check;
        Ok(())
    }

    /// A connection is gone, or could not be opened; `class` and `message` say why. What waited has
    /// failed.
    pub fn on_lost(&mut self, connection: u32, class: &str, message: &str) {
        let link = &mut self.connections[connection as usize];
        let waiting = std::mem::take(&mut link.waiting);
        self.tally.reconnects += u64::from(link.is_up);
        link.is_up = false;
        link.greetings = 0;
        link.refusal = None;
        link.out = Vec::new();
        link.written = 0;
        link.parser = Parser::default();
        link.check = Check::default();
        for request in waiting {
            if !matches!(request.step, Step::Greeting | Step::Ahead) {
                self.fail(request, Outcome::Unknown, (class, message));
            }
        }
    }

    /// Connections on which a request has waited for too long.
    pub fn overdue(&mut self, now: u64) -> Vec<u32> {
        self.now = self.now.max(now);
        let is_overdue = |connection: &Connection| {
            let mut waiting = connection.waiting.iter();
            let oldest = waiting.find(|request| request.step != Step::Greeting);
            oldest.is_some_and(|request| now.saturating_sub(request.sent) > self.plan.timeout)
        };
        let all = self.connections.iter().enumerate();
        let overdue = all.filter(|(_, connection)| is_overdue(connection));
        overdue.map(|(number, _)| number as u32).collect()
    }
}
