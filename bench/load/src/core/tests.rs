//! A load thread against a server in memory, in virtual time: every lie has to be found, and no
//! other.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Core, Phase};
use crate::chance::Chance;
use crate::content::Content;
use crate::history::{self, Entry};
use crate::liar::{Liar, Lie};
use crate::plan::{KeysOf, Plan, Release, Share};
use crate::schedule::Pace;
use crate::sizes::Sizes;
use crate::slots::{Range, SlotMap};
use crate::tally::{Tally, Verdicts};
use crate::workload::{Kind, Order};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

fn plan(mix: &str) -> Plan {
    Plan {
        mix: mix.parse().expect("a mix"),
        order: Order::Drawn,
        distribution: "zipf".parse().expect("a distribution"),
        records: 200,
        inserts_max: 50,
        keys: KeysOf::new("key:", 16),
        sizes: Sizes::Uniform { from: 24, to: 300 },
        content: Content::new(0.0),
        ttl_ms: 1000,
        release: Release::Script,
        verify: true,
        run: 7,
        seed: 1,
        pace: Pace::Closed,
        pipeline: 4,
        duration: Some(SECOND),
        requests: Some(20_000),
        timeout: 10 * SECOND,
        is_cluster: false,
        fails_over: false,
        has_gaps: true,
        is_linear: false,
        wait: 0,
    }
}

/// The world of one load thread: the server answers after a while, in pieces.
struct World {
    core: Core,
    liar: Liar,
    now: u64,
    /// What is on its way back, each with when it arrives.
    answers: Vec<(u64, u32, Vec<u8>)>,
    last: HashMap<u32, u64>,
    chance: Chance,
    /// From when to when the server does nothing.
    stall: (u64, u64),
    /// A server that is away in every second stretch of so long.
    away: Option<(&'static str, u64)>,
    /// No server answers.
    is_silent: bool,
    history: Vec<Entry>,
    requests_in_flight_most: usize,
}

impl World {
    fn new(plan: Plan, liar: Liar) -> World {
        let share = Share {
            thread: 0,
            threads: 1,
        };
        World {
            core: Core::new(Arc::new(plan), share, 8, SlotMap::single("server:1".into())),
            liar,
            now: 0,
            answers: Vec::new(),
            last: HashMap::new(),
            chance: Chance::new(99),
            stall: (0, 0),
            away: None,
            is_silent: false,
            history: Vec::new(),
            requests_in_flight_most: 0,
        }
    }

    /// Runs a phase to its end; what was measured.
    fn run(&mut self, phase: Phase) -> Box<Tally> {
        self.now = 0;
        self.last.clear();
        self.core.begin(phase);
        while !self.core.is_done() {
            self.step();
        }
        self.history.extend(self.core.end_phase(self.now));
        let empty = Box::new(self.core.plan.empty_tally());
        self.core.swap_tally(empty)
    }

    /// The same with three servers that are one store.
    fn of_three(plan: Plan, liar: Liar) -> World {
        let mut world = World::new(plan, liar);
        let share = Share {
            thread: 0,
            threads: 1,
        };
        let servers = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        let plan = Arc::clone(&world.core.plan);
        world.core = Core::new(plan, share, 8, SlotMap::alike(servers));
        world
    }

    /// Connections to a server that is away break, and are not opened again before it is back.
    fn take_away(&mut self) {
        let Some((server, stretch)) = self.away else {
            return;
        };
        let is_away = self.now / stretch % 2 == 1;
        for connection in 0..self.core.connections.len() as u32 {
            if self.core.address(connection) != server {
                continue;
            }
            match self.core.connections[connection as usize].is_up {
                true if is_away => {
                    self.answers.retain(|(_, other, _)| *other != connection);
                    self.core.on_lost(connection, "disconnected", "it is away");
                }
                false if !is_away => self.core.on_up(connection, b"*1\r\n$4\r\nPING\r\n", 1),
                _ => {}
            }
        }
    }

    fn step(&mut self) {
        for connection in self.core.take_wanted() {
            self.core.on_up(connection, b"*1\r\n$5\r\nHELLO\r\n", 1);
        }
        for connection in self.core.overdue(self.now) {
            self.core.on_lost(connection, "timeout", "no answer");
            self.core.on_up(connection, b"", 0);
        }
        self.take_away();
        self.core.issue(self.now);
        self.requests_in_flight_most = self
            .requests_in_flight_most
            .max(self.core.in_flight as usize);
        while let Some(connection) = self.core.take_dirty() {
            let length = self.core.outgoing(connection).len();
            let part = self.chance.below(length as u64 + 1) as usize;
            for bytes in [part, length - part] {
                let piece = self.core.outgoing(connection)[..bytes].to_vec();
                let answer = self.liar.on_bytes(connection, &piece);
                self.core.wrote(connection, bytes);
                if self.is_silent {
                    continue;
                }
                let mut at = self.now + MILLI / 10 + self.chance.below(MILLI / 10);
                if (self.stall.0..self.stall.1).contains(&at) {
                    at = self.stall.1;
                }
                // Nothing overtakes what came before it on its connection.
                let last = self.last.entry(connection).or_default();
                *last = at.max(*last);
                self.answers.push((*last, connection, answer));
            }
        }
        self.deliver();
        let due = self.core.next_due().filter(|_| self.core.has_room());
        let next = self.answers.iter().map(|(at, ..)| *at).chain(due).min();
        self.now = next.unwrap_or(self.now + MILLI).max(self.now + 1000);
    }

    fn deliver(&mut self) {
        let now = self.now;
        let answers = std::mem::take(&mut self.answers);
        let (arrived, rest): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(at, ..)| *at <= now);
        self.answers = rest;
        for (_, connection, answer) in arrived {
            for piece in answer.chunks(1 + self.chance.below(200) as usize) {
                if self.core.on_bytes(connection, piece, now).is_err() {
                    self.answers.retain(|(_, other, _)| *other != connection);
                    self.core.on_lost(connection, "protocol", "no RESP");
                    self.core.on_up(connection, b"", 0);
                    break;
                }
            }
        }
    }
}

/// All verdicts of a run, and of the reading back after it.
fn verdicts(mix: &str, lie: Lie) -> (Box<Tally>, Verdicts, Verdicts) {
    let mut world = World::new(plan(mix), Liar::new(Lie::None, 19));
    let filled = world.run(Phase::Fill);
    assert_eq!((filled.answers(), filled.failures()), (200, 0));
    world.liar.lie = lie;
    let worked = world.run(Phase::Work);
    world.liar.lie = match lie {
        Lie::Forget | Lie::Undelete | Lie::CountNever => Lie::None, // what was done wrong stays wrong
        lie => lie,
    };
    let read = world.run(Phase::ReadBack);
    let (during, after) = (worked.verdicts, read.verdicts);
    (worked, during, after)
}

/// Were a sound server accused, nobody would believe the verdicts on others.
#[test]
fn an_honest_server_is_found_sound_in_every_workload() {
    for mix in [
        "get=10,set=1",
        "set",
        "get=2,set=1,del=1",
        "get=95,insert=5",
        "get=1,rmw=1",
        "setex=1,get=1",
        "incr",
        "lock",
    ] {
        let (worked, during, after) = verdicts(mix, Lie::None);
        assert_eq!(
            (worked.answers() >= 20_000, worked.failures()),
            (true, 0),
            "{mix}: {:?}",
            worked.failures
        );
        assert_eq!(
            (during.wrong(), after.wrong()),
            (0, 0),
            "{mix}: {during:?} {after:?}"
        );
        let judges = mix != "set";
        assert_eq!(during.sound > 0, judges, "{mix}");
        assert_eq!(after.sound > 0, mix != "lock", "{mix}");
    }
}

/// Each planted fault must be counted as what it is.
#[test]
fn every_lie_is_found_and_counted_as_what_it_is() {
    let (_, during, after) = verdicts("get=1,set=1", Lie::Forget);
    assert!(
        during.stale > 0 && during.lost + during.corrupt == 0,
        "{during:?}"
    );
    assert!(
        after.stale > 0 && after.lost + after.corrupt == 0,
        "{after:?}"
    );

    let (_, during, after) = verdicts("get=2,set=1,del=1", Lie::Undelete);
    assert!(
        during.stale > 0 && during.lost + during.corrupt == 0,
        "{during:?}"
    );
    assert!(after.wrong() == after.stale, "{after:?}");

    let (_, during, after) = verdicts("get=1,set=1", Lie::Absent);
    assert!(
        during.lost > 0 && during.stale + during.corrupt == 0,
        "{during:?}"
    );
    assert!(after.lost > 0, "{after:?}");

    let (_, during, _) = verdicts("get=1,set=1", Lie::Old);
    assert!(
        during.stale > 0 && during.lost + during.corrupt == 0,
        "{during:?}"
    );

    for lie in [Lie::Flip, Lie::Swap] {
        let (_, during, after) = verdicts("get=1,set=1", lie);
        assert!(
            during.corrupt > 0 && during.lost + during.stale == 0,
            "{lie:?}: {during:?}"
        );
        assert!(after.corrupt > 0, "{lie:?}: {after:?}");
    }

    let (_, during, _) = verdicts("incr", Lie::CountTwice);
    assert!(
        during.corrupt > 0 && during.lost + during.stale == 0,
        "{during:?}"
    );
    let (_, during, after) = verdicts("incr", Lie::CountNever);
    assert!(
        during.lost + after.lost > 0 && during.corrupt + after.corrupt == 0,
        "{during:?} {after:?}"
    );

    let (_, during, _) = verdicts("lock", Lie::GiveAway);
    assert!(
        during.lost > 0 && during.stale + during.corrupt == 0,
        "{during:?}"
    );
}

/// A fill that a server forgets is lost, not stale: there was nothing before.
#[test]
fn a_first_write_that_is_forgotten_is_lost() {
    let mut world = World::new(plan("get"), Liar::new(Lie::Forget, 10));
    world.run(Phase::Fill);
    let read = world.run(Phase::ReadBack).verdicts;
    assert_eq!(
        (read.sound, read.lost, read.stale, read.corrupt),
        (180, 20, 0, 0)
    );
}

/// Refusals and broken connections are failures, but no broken promises.
#[test]
fn refused_writes_and_broken_connections_are_no_wrong_answers() {
    let (worked, during, after) = verdicts("get=1,set=1", Lie::Refuse);
    assert!(worked.failures["MISCONF"].count > 50 && worked.failures.len() == 1);
    assert_eq!(
        (during.wrong(), after.wrong()),
        (0, 0),
        "{during:?} {after:?}"
    );

    let (worked, during, after) = verdicts("get=1,set=1", Lie::Babble);
    assert!(worked.failures["protocol"].count > 50 && worked.reconnects > 50);
    assert_eq!(
        (during.wrong(), after.wrong()),
        (0, 0),
        "{during:?} {after:?}"
    );
}

#[test]
fn a_closed_loop_keeps_no_more_in_flight_than_it_was_told() {
    let mut world = World::new(plan("get=1,set=1"), Liar::new(Lie::None, 1));
    let worked = world.run(Phase::Work);
    assert_eq!(worked.answers(), 20_000, "as many as were asked for");
    assert_eq!(world.requests_in_flight_most, 8 * 4);
}

/// Each record once, or some would be missing in all that follows.
#[test]
fn a_fill_writes_each_record_once() {
    let mut plan = plan("set");
    plan.order = Order::OnceEach;
    plan.requests = None;
    plan.duration = None;
    let mut world = World::new(plan, Liar::new(Lie::None, 1));
    assert_eq!(world.run(Phase::Work).answers(), 200);
    assert_eq!(world.run(Phase::ReadBack).verdicts.sound, 200);
}

/// The trap of closed loops: a stall of 300 ms in a second is one slow request there, and a third
/// of all in truth.
#[test]
fn a_stall_is_measured_by_all_that_it_kept_waiting() {
    let measure = |pace| {
        let mut plan = plan("get");
        (plan.pace, plan.requests, plan.pipeline) = (pace, None, 1);
        let mut world = World::new(plan, Liar::new(Lie::None, 1));
        world.stall = (500 * MILLI, 800 * MILLI);
        world.run(Phase::Work)
    };
    let open = measure(Pace::Poisson { rate: 5000.0 });
    let share = |tally: &Tally| {
        let latency = tally.latency();
        1.0 - latency.quantile_below(10 * MILLI) // of those that took longer
    };
    assert!((4800..5200).contains(&open.answers()), "{}", open.answers());
    let (open_share, closed_share) = (share(&open), share(&measure(Pace::Closed)));
    assert!(
        (0.26..0.34).contains(&open_share),
        "{open_share} of the requests in the open loop"
    );
    assert!(closed_share < 0.002, "{closed_share} in the closed one");
    // What such a generator would have told is kept beside it.
    assert!(1.0 - open.service.quantile_below(10 * MILLI) < 0.01);
    assert!(
        open.lag.max() > 250 * MILLI,
        "what waited for a free client waited"
    );
}

/// Offered twice what the server can do, the rest is neither forgotten nor queued.
#[test]
fn what_could_not_be_sent_has_failed() {
    let mut plan = plan("get");
    (plan.pace, plan.requests, plan.pipeline) = (Pace::Constant { rate: 20_000.0 }, None, 1);
    plan.duration = Some(5 * SECOND);
    let mut world = World::new(plan, Liar::new(Lie::None, 1));
    world.stall = (0, 4 * SECOND); // then about 50,000/s, for no more than three seconds
    let worked = world.run(Phase::Work);
    assert!((99_990..=100_000).contains(&(worked.answers() + worked.failures())));
    assert!(worked.failures() == 0 || worked.failures["never sent"].count == worked.failures());
    assert!(world.requests_in_flight_most <= 8);
    world.stall = (0, u64::MAX / 2);
    let silent = world.run(Phase::Work);
    assert!(silent.failures["never sent"].count > 90_000 && silent.failures["timeout"].count >= 8);
}

#[test]
fn requests_go_to_the_owner_of_their_slot_and_follow_it_when_it_moves() {
    let mut plan = plan("get=1,set=1");
    plan.is_cluster = true;
    let ranges = [(0, 8191, "a:1"), (8192, 16383, "b:1")];
    let ranges = ranges.map(|(first, last, address)| Range {
        first,
        last,
        address: address.into(),
    });
    let slots = SlotMap::from_ranges(&ranges).expect("whole");
    let mut world = World::new(plan, Liar::new(Lie::None, 1));
    world.core = Core::new(
        Arc::clone(&world.core.plan),
        Share {
            thread: 0,
            threads: 1,
        },
        8,
        slots,
    );
    let honest = world.run(Phase::Work);
    assert_eq!((honest.redirects, honest.failures()), (0, 0));
    assert_eq!(world.core.connections.len(), 2 * 8);
    // This server answers MOVED wherever it is asked: a request must not follow for ever.
    world.liar.lie = Lie::Move;
    let moved = world.run(Phase::Work);
    assert!(moved.redirects > 0 && moved.failures["MOVED"].count > 0);
    assert_eq!(
        world.core.connections.len(),
        3 * 8,
        "each client has connected to the new node"
    );
    assert_eq!(moved.failures().saturating_mul(5), moved.redirects);
}

/// A plain client must hear of redirections: it was started without `--cluster`.
#[test]
fn without_cluster_a_redirection_is_a_failure() {
    let mut world = World::new(plan("get"), Liar::new(Lie::Move, 1));
    let worked = world.run(Phase::Work);
    assert_eq!(worked.redirects, 0);
    assert!(worked.failures["MOVED"].count > 1000);
}

#[test]
fn a_read_modify_write_and_a_lock_are_two_requests_each() {
    for mix in ["rmw", "lock"] {
        let mut plan = plan(mix);
        (plan.requests, plan.distribution) =
            (Some(1000), "sequential".parse().expect("a distribution"));
        plan.records = 1000;
        let mut world = World::new(plan, Liar::new(Lie::None, 1));
        let worked = world.run(Phase::Work);
        assert_eq!(
            world.liar.commands,
            2000 + 8,
            "{mix}, and a greeting of each client"
        );
        let kinds: Vec<_> = worked
            .kinds()
            .map(|(kind, of)| (kind, of.latency.len()))
            .filter(|(_, answers)| *answers > 0)
            .collect();
        match mix {
            "rmw" => assert_eq!(kinds, [(Kind::ReadModifyWrite, 1000)]),
            _ => assert_eq!(kinds, [(Kind::Lock, 1000), (Kind::Unlock, 1000)]),
        }
    }
}

/// A client that gives up where a good one would ask another server measures its own clumsiness;
/// one that forgets that the first server may have done it accuses a sound cluster.
#[test]
fn what_one_server_fails_another_does() {
    for lie in [Lie::None, Lie::Forget] {
        let mut plan = plan("get=2,set=2,del=1,rmw=1");
        plan.fails_over = true;
        let mut world = World::of_three(plan, Liar::new(Lie::None, 19));
        world.run(Phase::Fill);
        world.liar.lie = lie;
        world.away = Some(("b:1", 10 * MILLI));
        let worked = world.run(Phase::Work);
        assert_eq!(worked.failures(), 0, "{:?}", worked.failures);
        let at_first = worked.failures_at_first["disconnected"].count;
        assert!(at_first > 0 && worked.tried_again >= at_first);
        world.away = None;
        let read = world.run(Phase::ReadBack);
        let wrong = worked.verdicts.wrong() + read.verdicts.wrong();
        assert_eq!(wrong > 0, lie == Lie::Forget, "{lie:?}");
        assert!(worked.writes.acknowledged > 1000 && worked.writes.unknown == 0);
        assert!(worked.longest.writes.nanos < 100 * MILLI);
    }
}

/// An addition that may have been done must not be done again.
#[test]
fn what_must_not_be_done_twice_is_not_tried_twice() {
    let mut plan = plan("incr");
    plan.fails_over = true;
    let mut world = World::of_three(plan, Liar::new(Lie::None, 19));
    world.away = Some(("b:1", 10 * MILLI));
    let worked = world.run(Phase::Work);
    assert!(worked.failures["disconnected"].count > 0 && worked.tried_again == 0);
    world.away = None;
    let read = world.run(Phase::ReadBack);
    assert_eq!(worked.verdicts.wrong() + read.verdicts.wrong(), 0);
}

/// Else a run without any server would not end, or be told to be one without failures.
#[test]
fn where_no_server_is_left_requests_fail() {
    let mut plan = plan("get=1,set=1");
    plan.fails_over = true;
    (plan.timeout, plan.requests) = (20 * MILLI, Some(100));
    let mut world = World::of_three(plan, Liar::new(Lie::None, 19));
    world.is_silent = true;
    let worked = world.run(Phase::Work);
    assert_eq!((worked.answers(), worked.failures()), (0, 100));
    let first = worked.failures_at_first["timeout"].count;
    assert_eq!((first, worked.tried_again), (100, 200));
    assert!(worked.longest.all.nanos > 60 * MILLI);
}

/// With several writes to a record at once only an order of all of them tells right from wrong.
#[test]
fn histories_are_explained_unless_the_server_lies() {
    for (lie, is_away, is_sound) in [
        (Lie::None, false, true),
        (Lie::None, true, true),
        (Lie::Old, false, false),
        (Lie::Forget, true, false),
    ] {
        let mut plan = plan("get=3,set=2,del=1");
        (plan.records, plan.requests, plan.pipeline) = (6, Some(5_000), 1);
        plan.distribution = "uniform".parse().expect("a distribution");
        (plan.is_linear, plan.fails_over) = (true, true);
        let mut world = World::of_three(plan, Liar::new(lie, 19));
        world.away = is_away.then_some(("b:1", 10 * MILLI));
        let worked = world.run(Phase::Work);
        world.away = None;
        let read = world.run(Phase::ReadBack);
        let told = history::judge(world.history.iter());
        assert_eq!(told.wrong == 0, is_sound, "{lie:?}: {told:?}");
        let answers = worked.answers() + read.answers();
        assert_eq!(told.operations as u64, answers + worked.writes.unknown);
        assert_eq!((told.records, told.unknown > 0), (6, is_away));
    }
}

/// A write is done when enough replicas have it, and an error before the WAIT is not hidden by the
/// WAIT's answer.
#[test]
fn a_write_that_waits_for_replicas_is_done_with_them() {
    for (wait, lie) in [(2, Lie::None), (3, Lie::None), (1, Lie::Refuse)] {
        let mut plan = plan("get=1,set=1");
        (plan.wait, plan.verify, plan.requests) = (wait, false, Some(2_000));
        let mut world = World::new(plan, Liar::new(lie, 7));
        let worked = world.run(Phase::Work);
        let failed = |class: &str| worked.failures.get(class).map_or(0, |of| of.count);
        assert_eq!(worked.answers() + worked.failures(), 2_000);
        assert_eq!(failed("MISCONF") > 0, lie == Lie::Refuse);
        assert_eq!(failed("WAIT") > 500, wait == 3);
        assert_eq!(worked.writes.acknowledged > 500, wait < 3);
    }
}
