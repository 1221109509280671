//! One load thread, without its sockets: what to send on which connection, and what the answers mean.
//! Pure; times are nanoseconds since the phase began.
//!
//! A **client** is what a user of a server has: one connection to each node, and at most `pipeline` requests
//! in flight. In a closed loop it sends so many at once, and again when all are answered; in an open loop it
//! takes what is due while it has room. The driver reads and writes sockets, and calls [`Core::on_bytes`],
//! [`Core::issue`] and [`Core::outgoing`] in turn.
//!
//! Memory: requests in flight are bounded by clients and pipeline, payloads are judged as they pass, and
//! what is overdue waits in the schedule, not in a queue.

mod issue;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chance::{Chance, mix};
use crate::content::Check;
use crate::keys::{Chooser, Spread};
use crate::ledger::{Counters, Ledger, Outcome};
use crate::plan::{Plan, Share};
use crate::request::{Request, Step};
use crate::resp::{Broken, Event, Parser};
use crate::schedule::{Pace, Schedule};
use crate::slots::SlotMap;
use crate::tally::Tally;
use crate::workload::{Family, Kind, Order};

/// Bytes that a connection's buffer keeps when it is empty.
const OUT_KEPT_MAX: usize = 1 << 20;
const NO_LINK: u32 = u32::MAX;

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
    tally: Box<Tally>,
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
            ledger: verifies(Family::Values).then(|| Ledger::new(capacity, plan.run)),
            counters: verifies(Family::Counters).then(|| Counters::new(capacity)),
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
        let request = Request {
            kind: Kind::Get,
            step: Step::Greeting,
            client: link.client,
            record: 0,
            seq: 0,
            floor: 0,
            due: 0,
            sent: 0,
            locked: 0,
            redirects: 0,
        };
        (0..commands).for_each(|_| link.waiting.push_front(request));
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
        let link = &mut self.connections[connection as usize];
        let mut parser = std::mem::take(&mut link.parser);
        let mut check = std::mem::take(&mut link.check);
        while let Some(event) = parser.next(&mut bytes)? {
            match event {
                Event::Payload(piece) if self.plan.verify => check.feed(piece),
                Event::Payload(_) => {}
                Event::Reply(reply) => {
                    let waiting = &mut self.connections[connection as usize].waiting;
                    let request = waiting.pop_front().ok_or(Broken)?;
                    self.settle(request, reply, &mut check, now);
                    check = Check::default();
                }
            }
        }
        let link = &mut self.connections[connection as usize];
        link.parser = parser;
        link.check = check;
        Ok(())
    }

    /// A connection is gone, or could not be opened; `class` and `message` say why. What waited has failed.
    pub fn on_lost(&mut self, connection: u32, class: &str, message: &str) {
        let link = &mut self.connections[connection as usize];
        let waiting = std::mem::take(&mut link.waiting);
        self.tally.reconnects += u64::from(link.is_up);
        link.is_up = false;
        link.out = Vec::new();
        link.written = 0;
        link.parser = Parser::default();
        link.check = Check::default();
        for request in waiting {
            if request.step != Step::Greeting {
                self.fail(request, Outcome::Unknown, (class, message));
            }
        }
    }

    /// Connections on which a request has waited for too long.
    pub fn overdue(&self, now: u64) -> Vec<u32> {
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
