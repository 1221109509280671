//! What an answer means: for its operation, for the books, and for what its client sends next. Pure.

use super::Core;
use crate::content::Check;
use crate::ledger::{Outcome, Seen, Verdict};
use crate::request::{Request, Step, class_of, outcome_of};
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

    fn on_error(&mut self, request: Request, message: &str) {
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
        } else if let Some(ledger) = &self.ledger {
            let seen = match is_there.then(|| check.finish()) {
                None => Seen::Absent,
                Some(None) => Seen::Damaged,
                Some(Some(stamp)) => Seen::Value(stamp),
            };
            let number = self.share.number(request.record);
            let verdict = ledger.judge(request.record, number, request.floor, seen);
            self.tally.verdicts.add(verdict);
        }
        if !is_there {
            self.tally.missed(request.kind);
        }
        if request.kind == Kind::ReadModifyWrite {
            let step = Step::Whole;
            let node = self.node_of(&request);
            return self.send(Request { step, ..request }, node);
        }
        self.finish(request, now);
    }

    fn on_written(&mut self, request: Request, now: u64) {
        if let Some(ledger) = &mut self.ledger {
            ledger.end(request.record, Outcome::Done);
        }
        self.finish(request, now);
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
        if let (Some(ledger), Some(_)) = (&mut self.ledger, request.write()) {
            ledger.end(request.record, outcome);
        }
        if let (Some(counters), Kind::Increment, Step::Whole) =
            (&mut self.counters, request.kind, request.step)
        {
            counters.failed(request.record, outcome);
        }
        self.tally.failed(request.kind, why.0, why.1);
        self.make_room(request.client);
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
