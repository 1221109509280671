//! Tasks, time, nodes and mail.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use super::super::{NodeId, Options, World};
use super::calm;
use crate::rt::{self, Bug};
use crate::types::CoreId;

const NODE: NodeId = NodeId(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a panic of `run` says.
fn complaint(run: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("it must panic");
    let text = payload
        .downcast_ref::<String>()
        .expect("a message with a seed");
    text.clone()
}

/// The order in which four tasks take ten turns each.
fn turns(seed: u64) -> (Vec<u32>, u64) {
    let world = World::new(Options::random(seed));
    let turns: Rc<RefCell<Vec<u32>>> = Rc::default();
    for task in 0..4 {
        let turns = Rc::clone(&turns);
        world.spawn_client(async move {
            for _ in 0..10 {
                turns.borrow_mut().push(task);
                rt::yield_if_needed().await;
            }
        });
    }
    assert!(world.run_to_quiet(SECOND));
    (turns.take(), world.trace_hash())
}

#[test]
fn a_seed_decides_every_turn_and_another_seed_decides_otherwise() {
    let runs: Vec<_> = (0..50).map(turns).collect();
    for (seed, run) in runs.iter().enumerate() {
        assert_eq!(*run, turns(seed as u64), "seed {seed} did not repeat");
    }
    let traces: std::collections::BTreeSet<u64> = runs.iter().map(|run| run.1).collect();
    assert_eq!(traces.len(), 50, "two seeds went the same way");
    let orders: std::collections::BTreeSet<&Vec<u32>> = runs.iter().map(|run| &run.0).collect();
    assert!(
        orders.len() > 25,
        "tasks hardly interleave: {} orders",
        orders.len()
    );
}

#[test]
fn time_is_virtual_and_sleepers_wake_in_order() {
    let world = calm(1);
    let woken: Rc<RefCell<Vec<u64>>> = Rc::default();
    for hours in [3, 1, 2] {
        let woken = Rc::clone(&woken);
        world.spawn_client(async move {
            let (start, wall) = (rt::now(), rt::wall_ms());
            rt::sleep(Duration::from_secs(hours * 3600)).await;
            let slept = rt::now() - start;
            assert!(slept >= Duration::from_secs(hours * 3600), "woken early");
            assert!(
                slept < Duration::from_secs(hours * 3600) + SECOND,
                "woken late"
            );
            assert!(
                rt::wall_ms() - wall >= hours * 3_600_000,
                "the wall clock stands still"
            );
            woken.borrow_mut().push(hours);
        });
    }
    assert!(
        !world.run_to_quiet(SECOND),
        "sleepers are left after a second"
    );
    assert!(world.run_to_quiet(Duration::from_secs(4 * 3600)));
    assert_eq!(*woken.borrow(), [1, 2, 3]);
}

#[test]
fn runs_end_at_their_limit_when_done_and_when_nothing_is_left() {
    let world = calm(2);
    let ticks = Rc::new(Cell::new(0));
    let counter = Rc::clone(&ticks);
    world.spawn_client(async move {
        loop {
            rt::sleep(SECOND).await;
            counter.set(counter.get() + 1);
        }
    });
    world.run_for(SECOND * 10);
    assert!(
        (9..=10).contains(&ticks.get()),
        "{} ticks in ten seconds",
        ticks.get()
    );
    assert!(
        (10..11).contains(&world.elapsed().as_secs()),
        "ran for {:?}",
        world.elapsed()
    );
    assert!(world.run_until(|| ticks.get() == 20, SECOND * 100));
    assert!(world.elapsed() < SECOND * 21, "it ran on after it was done");
    assert!(
        !world.run_until(|| ticks.get() == 50, SECOND * 10),
        "time is up before that"
    );

    let stuck = calm(3);
    stuck.spawn_client(std::future::pending::<()>());
    assert!(
        stuck.run_to_quiet(SECOND),
        "a task that waits for nothing is no work"
    );
    assert!(
        !stuck.run_until(|| false, SECOND),
        "a deadlock ends the run"
    );
    let said = complaint(|| stuck.block_on(std::future::pending()));
    assert!(said.contains("seed 3"), "{said}");
}

#[test]
fn a_dropped_timer_holds_nobody_up() {
    let world = calm(4);
    world.block_on(async {
        let long = rt::sleep(Duration::from_secs(1_000_000));
        futures_lite::future::or(long, rt::sleep(SECOND)).await;
    });
    assert!(
        world.run_to_quiet(SECOND * 2),
        "the long timer is still set"
    );
    assert!(world.elapsed() < SECOND * 2);
}

#[test]
fn a_task_gives_its_output_and_runs_on_when_it_is_dropped() {
    let world = calm(5);
    let left = Rc::new(Cell::new(false));
    let flag = Rc::clone(&left);
    let output = world.run_on(NODE, async move {
        drop(rt::spawn(async move { flag.set(true) }));
        let inner = rt::spawn(async {
            rt::sleep(SECOND).await;
            rt::spawn(async { 40 }).await + 2
        });
        inner.await
    });
    assert_eq!(output, 42);
    assert!(left.get(), "dropping a task ended it");
}

#[test]
fn a_panic_names_its_seed_its_place_and_its_words() {
    let said = complaint(|| {
        let world = calm(77);
        world.start_node(NODE, 3, |core: rt::Core<()>| async move {
            rt::sleep(SECOND).await;
            assert!(core.id != CoreId(2), "two is too many");
            std::future::pending::<()>().await;
        });
        world.run_for(SECOND * 2);
    });
    for part in ["seed 77", "node 1", "core 2", "two is too many"] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    assert!(
        super::super::current().is_none(),
        "the thread is still in the dead world"
    );
}

#[test]
fn stopping_tells_the_node_that_is_meant_and_its_end_is_seen() {
    let world = calm(6);
    let main = |core: rt::Core<()>| async move {
        rt::stopping().await;
        core.id.0
    };
    let mains = world.start_node(NODE, 2, main);
    world.start_node(NodeId(2), 1, main);
    world.run_for(SECOND);
    assert!(!world.node_ended(NODE), "it stopped by itself");
    world.stop_node(NODE);
    world.run_for(SECOND);
    assert!(world.node_ended(NODE) && !world.node_ended(NodeId(2)));
    let outputs: Vec<_> = mains.iter().map(|main| main.take()).collect();
    assert_eq!(outputs, [Some(0), Some(1)]);

    // The word to stop was for that life only.
    world.start_node(NODE, 1, main);
    world.run_for(SECOND);
    assert!(!world.node_ended(NODE));
}

#[test]
fn the_end_of_a_node_drops_its_tasks_and_nobody_elses() {
    struct Dropped(Rc<RefCell<Vec<u16>>>, u16);
    impl Drop for Dropped {
        fn drop(&mut self) {
            // What a task drops at its end may ask for a task; it gets none.
            drop(rt::spawn(async { panic!("a dead node has run a task") }));
            self.0.borrow_mut().push(self.1);
        }
    }
    for is_power_cut in [false, true] {
        let world = calm(7);
        let dropped: Rc<RefCell<Vec<u16>>> = Rc::default();
        for number in [1, 2] {
            let dropped = Rc::clone(&dropped);
            world.start_node(NodeId(number), 2, move |_: rt::Core<()>| {
                let guard = Dropped(Rc::clone(&dropped), number);
                async move {
                    rt::spawn(async move {
                        let _guard = guard;
                        std::future::pending::<()>().await;
                    });
                    std::future::pending::<()>().await;
                }
            });
        }
        world.run_for(SECOND);
        if is_power_cut {
            world.crash_node(NODE)
        } else {
            world.kill_node(NODE)
        }
        world.run_for(SECOND);
        assert_eq!(
            *dropped.borrow(),
            [1, 1],
            "both tasks of node 1, none of node 2"
        );
        assert!(world.node_ended(NODE) && !world.node_ended(NodeId(2)));
    }
}

#[test]
fn a_task_may_crash_its_own_node() {
    let world = calm(8);
    let handle = world.handle();
    let went_on = Rc::new(Cell::new(false));
    let flag = Rc::clone(&went_on);
    world.start_node(NODE, 1, move |_: rt::Core<()>| {
        let (handle, flag) = (handle.clone(), Rc::clone(&flag));
        async move {
            handle.crash_node(NODE);
            rt::yield_if_needed().await;
            rt::sleep(SECOND).await;
            flag.set(true);
        }
    });
    world.run_for(SECOND * 3);
    assert!(world.node_ended(NODE));
    assert!(!went_on.get(), "it lived on after its crash");
}

#[test]
fn clocks_jump_and_a_restarted_node_counts_anew() {
    let world = calm(9);
    let times = || async { (rt::now(), rt::wall_ms()) };
    let (first, wall) = world.run_on(NODE, times());
    world.jump_clock(NODE, -5_000);
    let (second, earlier) = world.run_on(NODE, times());
    assert!(earlier < wall - 4_000, "the wall clock did not go back");
    assert!(
        second.abs_diff(first) > SECOND,
        "a monotonic clock outlived its machine"
    );
    let (_, others) = world.run_on(NodeId(2), times());
    assert!(others >= wall, "another node's clock jumped too");
}

#[test]
fn a_paused_node_stands_still_while_others_go_on() {
    let world = calm(10);
    let main = |_: rt::Core<()>| async {
        for _ in 0..10 {
            rt::sleep(Duration::from_millis(10)).await;
        }
    };
    world.start_node(NODE, 1, main);
    world.start_node(NodeId(2), 1, main);
    world.pause_node(NODE, SECOND * 5);
    world.run_for(SECOND);
    assert!(world.node_ended(NodeId(2)) && !world.node_ended(NODE));
    world.run_for(SECOND * 5);
    assert!(world.node_ended(NODE), "it never woke up");
}

#[test]
fn a_bug_is_planted_only_where_it_was_asked_for() {
    let mut options = Options::calm(11);
    options.planted = vec![Bug::NoSync];
    let world = World::new(options);
    world.block_on(async {
        assert!(rt::planted(Bug::NoSync) && !rt::planted(Bug::NoDirectorySync));
    });
    assert!(!rt::planted(Bug::NoSync), "planted outside of the world");
}

#[test]
fn messages_of_one_core_arrive_in_order_and_end_with_it() {
    let mut interleavings = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let world = World::new(Options::random(seed));
        let seen: Rc<RefCell<Vec<(u16, u32)>>> = Rc::default();
        let log = Rc::clone(&seen);
        let mains = world.start_node(NODE, 3, move |core: rt::Core<u32>| {
            let seen = Rc::clone(&log);
            async move {
                let (outbox, inboxes) = core.mail.connect().await;
                if core.id != CoreId(0) {
                    for number in 0..20 {
                        outbox.send(CoreId(0), number);
                        rt::yield_if_needed().await;
                    }
                    return 0;
                }
                let readers: Vec<_> = inboxes
                    .into_iter()
                    .map(|mut inbox| {
                        let seen = Rc::clone(&seen);
                        rt::spawn(async move {
                            while let Some(number) = inbox.recv().await {
                                seen.borrow_mut().push((inbox.from().0, number));
                            }
                        })
                    })
                    .collect();
                let count = readers.len();
                for reader in readers {
                    reader.await;
                }
                count
            }
        });
        assert!(
            world.run_until(|| world.node_ended(NODE), SECOND * 10),
            "seed {seed}: an inbox never ends"
        );
        assert_eq!(mains[0].take(), Some(2), "one inbox for each sibling");
        for core in [1, 2] {
            let of_core = |&&(from, _): &&(u16, u32)| from == core;
            let numbers: Vec<u32> = seen
                .borrow()
                .iter()
                .filter(of_core)
                .map(|&(_, number)| number)
                .collect();
            assert_eq!(
                numbers,
                (0..20).collect::<Vec<_>>(),
                "seed {seed}: core {core}"
            );
        }
        interleavings.insert(seen.take());
    }
    assert!(interleavings.len() > 25, "two senders hardly interleave");
}

#[test]
fn a_box_whose_sender_keeps_it_ends_with_the_senders_core_all_the_same() {
    let world = calm(12);
    let leaked: Rc<RefCell<Vec<rt::Outbox<u8>>>> = Rc::default();
    let keep = Rc::clone(&leaked);
    world.start_node(NODE, 2, move |core: rt::Core<u8>| {
        let keep = Rc::clone(&keep);
        async move {
            let (outbox, mut inboxes) = core.mail.connect().await;
            if core.id == CoreId(1) {
                keep.borrow_mut().push(outbox);
                return;
            }
            assert_eq!(inboxes[0].recv().await, None);
        }
    });
    assert!(
        world.run_until(|| world.node_ended(NODE), SECOND),
        "core 0 waits for a dead core"
    );
    assert_eq!(leaked.borrow().len(), 1);
}

#[test]
fn nothing_is_left_of_a_world_that_was_dropped_in_full_swing() {
    let world = World::new(Options::random(13));
    let inside = Rc::downgrade(&world.0.0);
    world.start_node(NODE, 2, |core: rt::Core<u8>| async move {
        let (_outbox, mut inboxes) = core.mail.connect().await;
        let listener = rt::Listener::bind(NODE.address(1)).unwrap();
        rt::spawn(async move { inboxes[0].recv().await });
        let path = std::path::PathBuf::from(format!("file-{}", core.id.0));
        let file = rt::File::create(&path).await.unwrap();
        let _stream = listener.accept().await.unwrap();
        loop {
            file.write_at(file.buffer(rt::BLOCK_BYTES), 0)
                .await
                .unwrap();
        }
    });
    let handle = world.handle();
    world.spawn_client(async move {
        rt::sleep(SECOND / 2).await;
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(rt::Stream::connect(NODE.address(1)).await.unwrap());
        }
        rt::stopping().await;
        drop(handle);
    });
    world.run_for(SECOND);
    assert!(world.open_connections() >= 10, "it is not in full swing");
    drop(world);
    assert!(
        inside.upgrade().is_none(),
        "a ring of references keeps the world alive"
    );
}
