//! What a load thread sends next, and on which connection. Pure.

use super::{Connection, Core, NO_LINK, Phase};
use crate::history::History;
use crate::request::{Request, Step};
use crate::workload::{Family, Kind, Order};

/// How long, after the end, requests are still sent that were due before it.
const OVERTIME: u64 = 2_000_000_000;

impl Core {
    /// Hands what is due at `now` to clients that have room.
    pub fn issue(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(&client) = self.free.front() {
            if !self.may_issue(now) {
                return;
            }
            let Some(due) = self.schedule.take(now) else {
                return;
            };
            self.free.pop_front();
            self.issue_one(client, due, now);
            let room = self.plan.pipeline - self.clients[client as usize].in_flight;
            match self.schedule.next_due() {
                Some(_) if room > 0 => self.free.push_back(client),
                Some(_) => {}
                None => (0..room).for_each(|_| {
                    if self.may_issue(now) {
                        self.issue_one(client, now, now);
                    }
                }),
            }
        }
    }

    fn may_issue(&mut self, now: u64) -> bool {
        if self.is_ended {
            return false;
        }
        let is_late = match self.schedule.next_due() {
            Some(due) => due >= self.end || now >= self.end.saturating_add(OVERTIME),
            None => now >= self.end,
        };
        let is_full = self.history.as_ref().is_some_and(History::is_full);
        let is_over = is_late || is_full || self.issued >= self.issued_max;
        if is_over {
            self.is_ended = true;
            self.fail_unsent();
        }
        !is_over
    }

    /// What was due before the end and could not be sent has failed.
    fn fail_unsent(&mut self) {
        if self.schedule.next_due().is_none() || self.end == u64::MAX {
            return;
        }
        while self.issued < self.issued_max
            && self.schedule.take(self.end.saturating_sub(1)).is_some()
        {
            let kind = self.plan.mix.draw(&mut self.chance);
            let why = ("never sent", "the server was too slow for the rate");
            self.tally.failed(kind, why.0, why.1);
            self.tally.failed_at_first(why.0, why.1);
            self.issued += 1;
        }
    }

    fn issue_one(&mut self, client: u32, due: u64, now: u64) {
        let Some(request) = self.next_request(client, due, now) else {
            self.is_ended = true;
            return;
        };
        self.issued += 1;
        self.in_flight += 1;
        self.clients[client as usize].in_flight += 1;
        if let Some(gaps) = &mut self.gaps {
            gaps.asked(request.record, request.write().is_none(), due);
        }
        let node = self.node_of(&request);
        self.send(request, node);
    }

    pub(super) fn node_of(&self, request: &Request) -> u16 {
        if self.plan.fails_over {
            return self.server_for(request);
        }
        if self.slots.nodes().len() == 1 {
            return 0;
        }
        let mut key = Vec::with_capacity(64);
        request.write_key(&self.plan, self.share, &mut key);
        self.slots.node_of(&key)
    }

    /// The server to ask on behalf of a client that fails over: its own, or the next that has not
    /// failed it lately, or any that is there, or one to wait for.
    fn server_for(&self, request: &Request) -> u16 {
        let count = self.slots.nodes().len() as u64;
        let home = self.share.number(u64::from(request.client)) % count;
        let untried = (home..home + count)
            .map(|server| (server % count) as u16)
            .filter(|server| request.tried & 1 << server == 0);
        let link = |server: u16| {
            let links = &self.clients[request.client as usize].links;
            &self.connections[links[usize::from(server)] as usize]
        };
        let is_there = |server: &u16| link(*server).is_up && link(*server).greetings == 0;
        let is_trusted = |server: &u16| is_there(server) && link(*server).shunned_until <= self.now;
        let mut choice = untried.clone().find(is_trusted);
        choice = choice.or_else(|| untried.clone().find(is_there));
        choice
            .or_else(|| untried.clone().next())
            .unwrap_or(home as u16)
    }

    pub(super) fn send(&mut self, request: Request, node: u16) {
        let link = self.link(request.client, node);
        let request = Request {
            server: node,
            ..request
        };
        let connection = &mut self.connections[link as usize];
        request.write_to(&self.plan, self.share, &mut connection.out);
        if request.waits(&self.plan) {
            request.write_wait(&self.plan, &mut connection.out);
            let step = Step::Ahead;
            connection.waiting.push_back(Request { step, ..request });
        }
        connection.waiting.push_back(request);
        self.soil(link);
    }

    pub(super) fn soil(&mut self, link: u32) {
        let connection = &mut self.connections[link as usize];
        if connection.is_up && !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(link);
        }
    }

    /// The connection of a client to a node; a new one where there is none.
    pub(super) fn link(&mut self, client: u32, node: u16) -> u32 {
        let links = &mut self.clients[client as usize].links;
        if links.len() <= usize::from(node) {
            links.resize(usize::from(node) + 1, NO_LINK);
        }
        let link = &mut links[usize::from(node)];
        if *link == NO_LINK {
            *link = self.connections.len() as u32;
            self.wanted.push(*link);
            self.connections.push(Connection {
                client,
                node,
                ..Connection::default()
            });
        }
        *link
    }

    fn next_request(&mut self, client: u32, due: u64, now: u64) -> Option<Request> {
        let (kind, record) = match self.phase {
            Phase::Fill => (Kind::Set, self.once_each.of(self.issued)),
            Phase::ReadBack => self.next_to_read_back()?,
            Phase::Work => {
                let kind = self.plan.mix.draw(&mut self.chance);
                let record = match (self.plan.order, kind) {
                    (Order::OnceEach, _) => self.once_each.of(self.issued),
                    (Order::Drawn, Kind::Insert) => self.chooser.insert(),
                    (Order::Drawn, _) => self.chooser.choose(&mut self.chance),
                };
                (kind, record)
            }
        };
        let is_read_first = kind == Kind::ReadModifyWrite || self.phase == Phase::ReadBack;
        let mut request = Request {
            kind,
            step: if is_read_first {
                Step::Read
            } else {
                Step::Whole
            },
            record,
            due,
            sent: now,
            ..Request::greeting(client)
        };
        self.seq = self.seq.wrapping_add(1).max(1);
        request.seq = self.seq;
        self.note_begin(&mut request);
        Some(request)
    }

    /// Enters a request in the books. A write to a record that has one under way goes to the next
    /// record.
    fn note_begin(&mut self, request: &mut Request) {
        if let (Some(counters), Kind::Increment, Step::Whole) =
            (&mut self.counters, request.kind, request.step)
        {
            while !counters.begin(request.record) {
                request.record = (request.record + 1) % self.share.part(self.plan.records);
            }
        }
        let Some(ledger) = &mut self.ledger else {
            return;
        };
        if request.kind.spec().family != Family::Values {
            return;
        }
        if let Some(write) = request.write() {
            request.seq = loop {
                match ledger.begin(request.record, write) {
                    Some(seq) => break seq,
                    None => {
                        request.record = (request.record + 1) % self.share.part(self.plan.records)
                    }
                }
            };
        }
        request.floor = ledger.floor(request.record);
    }

    fn next_to_read_back(&mut self) -> Option<(Kind, u64)> {
        let next = &mut self.read_back;
        if self.history.is_some() {
            let record = next.values;
            next.values += 1;
            let is_there = record < self.share.part(self.plan.records);
            return is_there.then_some((Kind::Get, record));
        }
        if let Some(record) = self
            .ledger
            .as_ref()
            .and_then(|ledger| ledger.next_acknowledged(next.values))
        {
            next.values = record + 1;
            return Some((Kind::Get, record));
        }
        let counters = self.counters.as_ref()?;
        let record = counters.next_acknowledged(next.counters)?;
        next.counters = record + 1;
        Some((Kind::Increment, record))
    }
}
