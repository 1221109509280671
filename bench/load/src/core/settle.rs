//! What an answer means: for its operation, for the books, and for what its client sends next.
//! Pure.

use super::{Core, SHUN_NANOS};
use crate::content::Check;
use crate::history::Span;
use crate::ledger::{Outcome, Seen, Verdict, Write};
use crate::request::{Request, Step, class_of, is_of_one_server, outcome_of};
use crate::resp::Reply;
use crate::workload::{Family, Kind};

/// How often one request follows redirections.
const REDIRECTS_MAX: u8 = 5;

impl Core {
    /// `request` is answered with `reply`, whose payload `check` has seen.
    pub(super) fn settle(&mut self, request: Request, reply: Reply, check: &mut Check, now: u64) {
        if request.step == Step::Greeting {
            if let Reply::Error(message) = &reply {
                self.tally.note(class_of(message), message, 1);
            }
            return;
        }
        match reply {
            Reply::Error(message) => self.on_error(request, &message),
            reply if request.step == Step::Read => self.on_read(request, reply, check, now),
            reply if request.waits(&self.plan) => self.on_waited(request, reply, now),
            reply => match request.kind {
                Kind::Get => self.on_read(request, reply, check, now),
                Kind::Increment => self.on_increment(request, reply, now),
                Kind::Lock => self.on_lock(request, reply, now),
                Kind::Unlock => self.on_unlock(request, reply, now),
                Kind::Delete if matches!(reply, Reply::Integer(_)) => self.on_written(request, now),
                Kind::Delete => self.on_nonsense(request),
                _ if reply == Reply::Status => self.on_written(request, now),
                _ => self.on_nonsense(request),
            },
        }
    }

    pub(super) fn on_error(&mut self, request: Request, message: &str) {
        let may_follow = self.plan.is_cluster && request.redirects < REDIRECTS_MAX;
        let node = if may_follow {
            self.slots.learn(message)
        } else {
            None
        };
        match node {
            Some(node) => {
                self.tally.redirects += 1;
                let redirects = request.redirects + 1;
                self.send(
                    Request {
                        redirects,
                        ..request
                    },
                    node,
                );
            }
            None => self.fail(request, outcome_of(message), (class_of(message), message)),
        }
    }

    fn on_read(&mut self, request: Request, reply: Reply, check: &mut Check, now: u64) {
        if !matches!(reply, Reply::Bulk | Reply::Null) {
            return self.on_nonsense(request);
        }
        let is_there = reply == Reply::Bulk;
        if request.kind.spec().family == Family::Counters {
            if let Some(counters) = &mut self.counters {
                let verdict = match is_there.then(|| check.finish_number()) {
                    Some(None) => Verdict::Corrupt,
                    Some(number) => counters.judge(request.record, number),
                    None => counters.judge(request.record, None),
                };
                self.tally.verdicts.add(verdict);
            }
        } else if self.plan.verify {
            let seen = match is_there.then(|| check.finish()) {
                None => Seen::Absent,
                Some(None) => Seen::Damaged,
                Some(Some(stamp)) => Seen::Value(stamp),
            };
            self.judge(&request, seen, now);
        }
        if !is_there {
            self.tally.missed(request.kind);
        }
        if request.kind == Kind::ReadModifyWrite {
            let (step, tried) = (Step::Whole, 0);
            let request = Request {
                step,
                tried,
                ..request
            };
            let node = self.node_of(&request);
            return self.send(request, node);
        }
        self.finish(request, now);
    }

    /// A value was read, or found missing.
    fn judge(&mut self, request: &Request, seen: Seen, now: u64) {
        let number = self.share.number(request.record);
        if let Some(ledger) = &self.ledger {
            let verdict = ledger.judge(request.record, number, request.floor, seen);
            self.tally.verdicts.add(verdict);
        } else if let Some(history) = &mut self.history {
            let stamp = match seen {
                Seen::Absent => None,
                Seen::Value(stamp) if (stamp.record, stamp.run) == (number, self.plan.run) => {
                    Some(stamp)
                }
                Seen::Value(_) | Seen::Damaged => {
                    return self.tally.verdicts.add(Verdict::Corrupt);
                }
            };
            self.tally.verdicts.add(Verdict::Sound);
            history.read(number, stamp, span(request, now));
        }
    }

    /// The write that `request` makes has ended.
    fn note_end(&mut self, request: &Request, outcome: Outcome, now: u64) {
        let Some(write) = request.write() else {
            return;
        };
        self.tally.writes.add(outcome);
        if let Some(ledger) = &mut self.ledger {
            ledger.end(request.record, outcome);
        } else if let Some(history) = &mut self.history
            && request.step == Step::Whole
        {
            let seq = (write != Write::Delete).then_some(request.seq);
            let number = self.share.number(request.record);
            history.wrote(number, seq, outcome, span(request, now));
        }
    }

    fn on_written(&mut self, request: Request, now: u64) {
        self.note_end(&request, Outcome::Done, now);
        self.finish(request, now);
    }

    /// So many replicas have a write.
    fn on_waited(&mut self, request: Request, reply: Reply, now: u64) {
        match reply {
            Reply::Integer(replicas) if replicas >= i64::from(self.plan.wait) => {
                self.on_written(request, now)
            }
            Reply::Integer(_) => {
                let why = ("WAIT", "too few replicas have it in time");
                self.fail(request, Outcome::Unknown, why);
            }
            _ => self.on_nonsense(request),
        }
    }

    fn on_increment(&mut self, request: Request, reply: Reply, now: u64) {
        let Reply::Integer(value) = reply else {
            return self.on_nonsense(request);
        };
        if let Some(counters) = &mut self.counters {
            let verdict = counters.added(request.record, value);
            self.tally.verdicts.add(verdict);
        }
        self.finish(request, now);
    }

    /// A lock that was got is released at once.
    fn on_lock(&mut self, request: Request, reply: Reply, now: u64) {
        match reply {
            Reply::Status => {
                self.tally
                    .answered(Kind::Lock, now.saturating_sub(request.due));
                let unlock = Request {
                    kind: Kind::Unlock,
                    due: now,
                    sent: now,
                    locked: request.sent,
                    redirects: 0,
                    ..request
                };
                let node = self.node_of(&unlock);
                self.send(unlock, node);
            }
            Reply::Null => {
                self.tally.missed(Kind::Lock);
                self.finish(request, now);
            }
            _ => self.on_nonsense(request),
        }
    }

    /// Whoever holds a lock finds it there until it expires; else two held it, or it was lost.
    fn on_unlock(&mut self, request: Request, reply: Reply, now: u64) {
        let Reply::Integer(released) = reply else {
            return self.on_nonsense(request);
        };
        let is_expired = now >= request.locked.saturating_add(self.plan.ttl_ms * 1_000_000);
        if released == 0 {
            self.tally.missed(Kind::Unlock);
        }
        if self.plan.verify {
            self.tally.verdicts.add(match released == 1 || is_expired {
                true => Verdict::Sound,
                false => Verdict::Lost,
            });
        }
        self.finish(request, now);
    }

    fn on_nonsense(&mut self, request: Request) {
        self.fail(
            request,
            Outcome::Unknown,
            ("nonsense", "a reply of another kind than the command has"),
        );
    }

    fn finish(&mut self, request: Request, now: u64) {
        self.tally
            .answered(request.kind, now.saturating_sub(request.due));
        if let Some(gaps) = &mut self.gaps {
            let is_read = request.write().is_none();
            gaps.answered(request.record, is_read, now, &mut self.tally.longest);
        }
        if self.schedule.next_due().is_some() {
            self.tally
                .lag
                .saturating_record(request.sent.saturating_sub(request.due));
            self.tally
                .service
                .saturating_record(now.saturating_sub(request.sent));
        }
        self.make_room(request.client);
    }

    /// An operation failed; `why` is the class of the failure and what was said.
    pub(super) fn fail(&mut self, request: Request, outcome: Outcome, why: (&str, &str)) {
        // What was only read has not been written.
        let outcome = if request.step == Step::Read {
            Outcome::Refused
        } else {
            outcome
        };
        if !request.is_again {
            self.tally.failed_at_first(why.0, why.1);
        }
        if self.may_try_again(&request, outcome, why.0) {
            return self.try_again(request, outcome);
        }
        // A server that was asked before may still do it.
        let outcome = match request.is_doubtful {
            true => Outcome::Unknown,
            false => outcome,
        };
        self.note_end(&request, outcome, self.now);
        if let Some(gaps) = &mut self.gaps {
            gaps.failed(request.record, request.write().is_none());
        }
        if let (Some(counters), Kind::Increment, Step::Whole) =
            (&mut self.counters, request.kind, request.step)
        {
            counters.failed(request.record, outcome);
        }
        self.tally.failed(request.kind, why.0, why.1);
        self.make_room(request.client);
    }

    /// Whether another server is to be asked. In a history each write is tried once, for then it
    /// has one outcome.
    fn may_try_again(&self, request: &Request, outcome: Outcome, class: &str) -> bool {
        if !self.plan.fails_over || !is_of_one_server(class) {
            return false;
        }
        let is_harmless = outcome == Outcome::Refused || request.is_idempotent();
        let is_once = self.plan.is_linear && request.write().is_some();
        let tried = request.tried | 1 << request.server;
        is_harmless && !is_once && (tried.count_ones() as usize) < self.slots.nodes().len()
    }

    fn try_again(&mut self, request: Request, outcome: Outcome) {
        let link = self.link(request.client, request.server);
        self.connections[link as usize].shunned_until = self.now + SHUN_NANOS;
        let is_in_doubt = outcome == Outcome::Unknown && request.write().is_some();
        if let (Some(ledger), true) = (&mut self.ledger, is_in_doubt) {
            ledger.doubt(request.record);
        }
        self.tally.tried_again += 1;
        let request = Request {
            tried: request.tried | 1 << request.server,
            is_again: true,
            is_doubtful: request.is_doubtful || is_in_doubt,
            sent: self.now,
            ..request
        };
        let node = self.node_of(&request);
        self.send(request, node);
    }

    fn make_room(&mut self, client: u32) {
        let of = &mut self.clients[client as usize];
        assert!(of.in_flight > 0 && self.in_flight > 0);
        let was_full = of.in_flight == self.plan.pipeline;
        of.in_flight -= 1;
        self.in_flight -= 1;
        let has_room = match self.schedule.next_due() {
            Some(_) => was_full,
            None => of.in_flight == 0, // a closed loop sends when all is answered
        };
        if has_room {
            self.free.push_back(client);
        }
    }
}

/// From when it was sent until it was answered.
fn span(request: &Request, now: u64) -> Span {
    Span {
        asked: request.sent,
        answered: now,
    }
}
