//! Whole runs over sockets, against a server in this process that may lie, hang up, or say nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use super::*;
use crate::content::Content;
use crate::liar::{Liar, Lie};
use crate::plan::{KeysOf, Release};
use crate::schedule::Pace;
use crate::sizes::Sizes;
use crate::slots::Range;
use crate::workload::Order;

/// What a server of these tests does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Answers,
    /// Hangs up after so many reads.
    HangsUp(u32),
    Silent,
    /// Sends a payload that never ends.
    Endless,
}

/// Serves until the process ends; its address.
fn serve(lie: Lie, habit: Habit) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let liar = Arc::new(Mutex::new(Liar::new(lie, 19)));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let liar = Arc::clone(&liar);
            std::thread::spawn(move || {
                stream.map(|stream| converse(stream, number as u32, &liar, habit))
            });
        }
    });
    address
}

fn converse(mut stream: TcpStream, number: u32, liar: &Mutex<Liar>, habit: Habit) {
    let (mut buffer, mut reads) = (vec![0; 64 << 10], 0);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        reads += 1;
        let answer = match habit {
            Habit::Silent => continue,
            Habit::HangsUp(after) if reads > after => return,
            Habit::Endless => {
                let head = stream.write_all(b"$9000000000000000000\r\n");
                let zeros = [0; 16 << 10];
                let mut sent = head;
                while sent.is_ok() {
                    sent = stream.write_all(&zeros);
                }
                return;
            }
            _ => liar
                .lock()
                .expect("no test panics in it")
                .on_bytes(number, &buffer[..length]),
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

fn plan(mix: &str) -> Plan {
    Plan {
        mix: mix.parse().expect("a mix"),
        order: Order::Drawn,
        distribution: "zipf".parse().expect("a distribution"),
        records: 500,
        inserts_max: 0,
        keys: KeysOf::new("key:", 16),
        sizes: Sizes::Uniform {
            from: 24,
            to: 20_000,
        },
        content: Content::new(0.0),
        ttl_ms: 1000,
        release: Release::Script,
        verify: true,
        run: 7,
        seed: 1,
        pace: Pace::Closed,
        pipeline: 4,
        duration: None,
        requests: Some(5_000),
        timeout: 60_000_000_000,
        is_cluster: false,
        fails_over: false,
        has_gaps: true,
        is_linear: false,
        wait: 0,
    }
}

fn setup(servers: &[String]) -> Setup {
    Setup {
        threads: 2,
        cpus: Vec::new(),
        clients: 6,
        servers: servers.to_vec(),
        slots: None,
        greeting: Greeting::default(),
        reading_back: None,
        settle: Duration::ZERO,
        enough: Arc::default(),
        warmup: Duration::ZERO,
        fills: true,
        spins: false,
    }
}

#[derive(Default)]
struct Quiet {
    phases: Vec<Phase>,
}

impl Observer for Quiet {
    fn on_phase(&mut self, phase: Phase) {
        self.phases.push(phase);
    }

    fn on_point(&mut self, _: Phase, _: &Point) {}
}

fn run_all(plan: Plan, setup: &Setup) -> Result<Vec<Measured>, String> {
    run(plan, setup, &AtomicBool::new(false), &mut Quiet::default())
}

/// Nothing may get lost between sockets, threads, intervals and the sums.
#[test]
fn a_whole_run_counts_every_request_once_and_finds_all_sound() {
    for spins in [false, true] {
        let setup = Setup {
            spins,
            ..setup(&[serve(Lie::None, Habit::Answers)])
        };
        let mut quiet = Quiet::default();
        let measured = run(
            plan("get=3,set=1,del=1"),
            &setup,
            &AtomicBool::new(false),
            &mut quiet,
        )
        .expect("it runs");
        assert_eq!(quiet.phases, [Phase::Fill, Phase::Work, Phase::ReadBack]);
        let answers: Vec<u64> = measured.iter().map(|of| of.tally.answers()).collect();
        assert_eq!(answers, [500, 5_000, 500]);
        assert_eq!(
            measured.iter().map(|of| of.tally.failures()).sum::<u64>(),
            0
        );
        let work = &measured[1];
        assert_eq!(
            work.points.iter().map(|point| point.answers).sum::<u64>(),
            5_000
        );
        assert_eq!((work.busy.len(), work.tally.verdicts.wrong()), (2, 0));
        assert_eq!(
            (
                measured[2].tally.verdicts.sound,
                measured[2].tally.verdicts.wrong()
            ),
            (500, 0)
        );
    }
}

#[test]
fn an_open_loop_sends_what_is_due_over_all_threads() {
    let mut plan = plan("get=1,set=1");
    (plan.pace, plan.requests) = (Pace::Poisson { rate: 20_000.0 }, Some(4_000));
    let measured = run_all(plan, &setup(&[serve(Lie::None, Habit::Answers)])).expect("it runs");
    let tally = &measured[1].tally;
    assert_eq!(
        (tally.answers() + tally.failures(), tally.verdicts.wrong()),
        (4_000, 0)
    );
    assert_eq!(
        (tally.lag.len(), tally.service.len()),
        (tally.answers(), tally.answers())
    );
}

#[test]
fn lies_are_found_over_sockets_too() {
    let measured = run_all(
        plan("get=1,set=1"),
        &setup(&[serve(Lie::Forget, Habit::Answers)]),
    )
    .expect("it runs");
    let wrong = measured[1].tally.verdicts;
    assert!(wrong.stale > 0 && wrong.corrupt == 0, "{wrong:?}");
    assert!(measured[2].tally.verdicts.wrong() > 0);
}

/// Connections that break are opened again; what was on its way is in doubt, and nothing is wrong.
#[test]
fn a_server_that_hangs_up_is_called_again() {
    let measured = run_all(
        plan("get=1,set=1"),
        &setup(&[serve(Lie::None, Habit::HangsUp(40))]),
    )
    .expect("it runs");
    let tally = &measured[1].tally;
    assert!(tally.reconnects > 0 && tally.failures["disconnected"].count > 0);
    assert_eq!(tally.answers() + tally.failures(), 5_000);
    let wrong = measured[1].tally.verdicts.wrong() + measured[2].tally.verdicts.wrong();
    assert_eq!(wrong, 0);
}

/// Neither silence nor an answer without an end may hang a run.
#[test]
fn silent_and_endless_servers_end_a_run_by_timeouts() {
    for habit in [Habit::Silent, Habit::Endless] {
        let mut plan = plan("get");
        (plan.requests, plan.timeout, plan.verify) = (Some(20), 100_000_000, false);
        let setup = Setup {
            fills: false,
            ..setup(&[serve(Lie::None, habit)])
        };
        let measured = run_all(plan, &setup).expect("it runs");
        let tally = &measured[0].tally;
        assert_eq!((tally.answers(), tally.failures()), (0, 20), "{habit:?}");
        assert_eq!(
            tally.failures["timeout"].count, 20,
            "{habit:?}: {:?}",
            tally.failures
        );
    }
}

#[test]
fn a_fill_that_gets_no_answers_is_given_up() {
    let mut plan = plan("get");
    plan.timeout = 50_000_000;
    let failed = run_all(plan, &setup(&[serve(Lie::None, Habit::Silent)]));
    assert!(failed.err().expect("it fails").contains("not answered"));
}

#[test]
fn a_server_that_is_not_there_fails_the_run() {
    let failed = run_all(plan("get"), &setup(&["127.0.0.1:1".to_owned()]));
    assert!(failed.err().expect("it fails").contains("127.0.0.1:1"));
}

#[test]
fn an_interrupted_run_ends_with_what_it_has() {
    let mut plan = plan("get");
    plan.requests = None;
    let setup = setup(&[serve(Lie::None, Habit::Answers)]);
    let measured =
        run(plan, &setup, &AtomicBool::new(true), &mut Quiet::default()).expect("it runs");
    assert_eq!(measured.len(), 3);
}

/// Who makes faults knows only afterwards how long the load has to last; what was acknowledged is
/// to be read back all the same.
#[test]
fn a_run_that_is_told_that_it_is_enough_reads_back() {
    let mut plan = plan("set");
    plan.requests = None;
    let mut setup = setup(&[serve(Lie::None, Habit::Answers)]);
    setup.settle = Duration::from_millis(20);
    setup.enough.store(true, Ordering::Relaxed);
    let measured = run_all(plan, &setup).expect("it runs");
    let counts: Vec<u64> = measured.iter().map(|of| of.tally.answers()).collect();
    assert_eq!((counts[0], counts[2]), (500, 500), "{counts:?}");
}

/// One of three servers hangs up again and again: its clients go on with the others, and come back.
#[test]
fn clients_fail_over_from_a_server_that_hangs_up() {
    let sound = serve(Lie::None, Habit::Answers);
    let servers = [sound.clone(), serve(Lie::None, Habit::HangsUp(5)), sound];
    let mut plan = plan("get");
    (plan.fails_over, plan.verify, plan.pipeline) = (true, false, 1);
    let setup = Setup {
        slots: Some(SlotMap::alike(servers.to_vec())),
        fills: false,
        ..setup(&servers)
    };
    let measured = run_all(plan, &setup).expect("it runs");
    let tally = &measured[0].tally;
    assert_eq!((tally.answers(), tally.failures()), (5_000, 0));
    assert!(tally.tried_again > 0 && tally.reconnects > 0);
    assert_eq!(
        tally.failures_at_first["disconnected"].count,
        tally.tried_again
    );
}

/// Each key goes to its owner alone: two servers that know only their own half see no redirections.
#[test]
fn a_cluster_client_talks_to_the_owner_of_each_key() {
    let (a, b) = (
        serve(Lie::None, Habit::Answers),
        serve(Lie::Move, Habit::Answers),
    );
    let ranges = [(0, 8191, &a), (8192, 16383, &b)];
    let ranges = ranges.map(|(first, last, address)| Range {
        first,
        last,
        address: address.clone(),
    });
    let slots = SlotMap::from_ranges(&ranges).expect("it is whole");
    let mut plan = plan("get=1,set=1");
    plan.is_cluster = true;
    let setup = Setup {
        slots: Some(slots),
        ..setup(&[a])
    };
    let measured = run_all(plan, &setup).expect("it runs");
    for of in &measured {
        assert_eq!(
            (
                of.tally.redirects,
                of.tally.failures(),
                of.tally.verdicts.wrong()
            ),
            (0, 0, 0)
        );
    }
    assert_eq!(measured[1].tally.answers(), 5_000);
}
