//! The whole node under power cuts, full and failing disks, and many clients, in a simulated world.
//!
//! Each test is a function of a seed. `SEED=n` runs that one, `QUOIT_SEEDS=n` that many; a failure
//! prints the line that repeats it. Some seeds are run twice and must do exactly the same.

#[path = "sim/checkers.rs"]
mod checkers;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/router.rs"]
mod router;
#[path = "sim/scene.rs"]
mod scene;
#[path = "sim/transactions.rs"]
mod transactions;
#[path = "sim/web.rs"]
mod web;
#[path = "sim/workload.rs"]
mod workload;

use std::time::Duration;

use cluster::{Client, End, NODE, Node, Reply, Verdict, request};
use quoit::config::Compression;
use quoit::rt::Bug;
use quoit::rt::sim::{Options, World};
use scene::{Outcome, Scene, for_seeds, survive};
use transactions::Book;
use workload::{Ledger, Refusals};

/// Seeds within which each planted bug must be found.
const FINDING_SEEDS: u64 = 300;
/// Virtual time within which replies come to their clients.
const REPLIES_COME_MAX: Duration = Duration::from_secs(5);
/// Virtual time within which a node sees that its disk has space again.
const SPACE_SEEN_MAX: Duration = Duration::from_secs(60);

/// Several lives of a node, most of them ended by a power cut.
fn power_cuts(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 1..4);
    let clients = scene.chance.usize(2..6);
    let ledger = Ledger::new(clients, scene.may_pipeline);
    // Some lives are long enough for what is deleted to be merged twice.
    let steps = [150, 150, 150, 800][scene.chance.usize(..4)];
    for _ in 0..scene.chance.u64(3..7) {
        let node = scene.start(|client| workload::verify(ledger.clone(), client))?;
        let tasks = scene.spawn(&node, clients, |number, client, chance| {
            workload::work(ledger.clone(), client, number, chance)
        });
        let target = ledger.borrow().answered + scene.chance.u64(..steps);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        scene.end(node, &tasks)?;
    }
    scene.start(|client| workload::verify(ledger.clone(), client))?;
    Ok(scene.outcome(&ledger))
}

/// A disk without space, and then with space again: one life, in which nothing is lost.
fn full_disk(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 1..4);
    let ledger = Ledger::new(4, scene.may_pipeline);
    ledger.borrow_mut().is_careful = true;
    let node = scene.start(|client| workload::verify(ledger.clone(), client))?;
    let tasks = scene.spawn(&node, 4, |number, client, chance| {
        workload::work(ledger.clone(), client, number, chance)
    });
    let disk = scene.world.disk(NODE);
    for _ in 0..scene.chance.u64(1..4) {
        let target = ledger.borrow().answered + scene.chance.u64(..150);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        ledger.borrow_mut().refusals = Refusals::Full;
        let refused = ledger.borrow().refused;
        let is_refused = || ledger.borrow().refused > refused + 3;
        disk.leave_free([0, 4096, 50_000, 200_000][scene.chance.usize(..4)]);
        // What is merged away may make room for all that comes: then there is less room.
        for _ in 0..20 {
            let target = ledger.borrow().answered + 100;
            scene.run_until(&node, || is_refused() || ledger.borrow().answered >= target)?;
            if is_refused() {
                break;
            }
            disk.leave_free(0);
        }
        let readings = ledger.borrow().readings;
        scene.run_until(&node, || ledger.borrow().readings > readings + 20)?;
        disk.change_faults(|faults| faults.capacity_bytes = u64::MAX);
        ledger.borrow_mut().is_pausing = true;
        scene.world.run_for(SPACE_SEEN_MAX);
        ledger.borrow_mut().is_pausing = false;
        ledger.borrow_mut().refusals = Refusals::Wrong;
        let written = ledger.borrow().written;
        scene.run_until(&node, || ledger.borrow().written > written + 50)?;
    }
    scene.end(node, &tasks)?;
    scene.start(|client| workload::verify(ledger.clone(), client))?;
    Ok(scene.outcome(&ledger))
}

/// A disk whose syncs fail: a log that has failed takes nothing more, and nothing is lost.
fn failing_syncs(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 1..4);
    let ledger = Ledger::new(4, scene.may_pipeline);
    ledger.borrow_mut().is_careful = true;
    for _ in 0..3 {
        let node = scene.start(|client| workload::verify(ledger.clone(), client))?;
        let tasks = scene.spawn(&node, 4, |number, client, chance| {
            workload::work(ledger.clone(), client, number, chance)
        });
        let target = ledger.borrow().answered + scene.chance.u64(..150);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        ledger.borrow_mut().refusals = Refusals::Broken;
        let forgets = scene.chance.bool();
        let often = [0.05, 0.5, 1.0][scene.chance.usize(..3)];
        let disk = scene.world.disk(NODE);
        disk.change_faults(|faults| {
            faults.eio_sync = often;
            faults.sync_error_forgets = forgets;
        });
        let (refused, failed) = (ledger.borrow().refused, ledger.borrow().failed);
        scene.run_until(&node, || ledger.borrow().refused > refused + 5)?;
        disk.change_faults(|faults| faults.eio_sync = 0.0);
        // Some that were acknowledged before are still on their way.
        ledger.borrow_mut().is_pausing = true;
        scene.world.run_for(REPLIES_COME_MAX);
        ledger.borrow_mut().is_pausing = false;
        let (written, readings) = (ledger.borrow().written, ledger.borrow().readings);
        scene.run_until(&node, || ledger.borrow().readings > readings + 50)?;
        // With one core there is one log: if it failed it takes no write, however well the disk is.
        let has_failed = ledger.borrow().failed > failed;
        if has_failed && scene.config.cores == 1 && ledger.borrow().written > written {
            return Err("a log that had failed took a write".to_owned());
        }
        scene.end_badly(node, &tasks)?;
        ledger.borrow_mut().refusals = Refusals::Wrong;
    }
    scene.start(|client| workload::verify(ledger.clone(), client))?;
    Ok(scene.outcome(&ledger))
}

/// Clients with transactions on a node that stays up: all of them come to their end.
fn transactions_in_peace(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 2..5);
    let book = transactions::Shared::default();
    let node = scene.start(transactions::open_accounts)?;
    let turns = scene.chance.u64(5..40);
    let tasks = scene.spawn(&node, 6, |_, client, chance| {
        transactions::work(book.clone(), client, turns, chance)
    });
    scene.run_until(&node, || tasks.iter().all(|task| task.is_done()))?;
    node.ask(&scene.world, |client| {
        transactions::verify(book.clone(), client)
    })?;
    scene.end(node, &tasks)?;
    scene.start(|client| transactions::verify(book.clone(), client))?;
    Ok(scene.outcome_of(&book.borrow()))
}

/// Clients with transactions on a node that goes down again and again.
fn transactions_and_power_cuts(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 2..5);
    let book = transactions::Shared::default();
    let node = scene.start(transactions::open_accounts)?;
    scene.end(node, &[])?;
    for _ in 0..scene.chance.u64(2..6) {
        let node = scene.start(|client| transactions::verify(book.clone(), client))?;
        let tasks = scene.spawn(&node, 5, |_, client, chance| {
            transactions::work(book.clone(), client, u64::MAX, chance)
        });
        let target = book.borrow().done + scene.chance.u64(..80);
        scene.run_until(&node, || book.borrow().done >= target)?;
        scene.end(node, &tasks)?;
    }
    scene.start(|client| transactions::verify(book.clone(), client))?;
    Ok(scene.outcome_of(&book.borrow()))
}

/// Transactions on a node whose logs fail one after the other.
fn transactions_and_failing_syncs(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 2..5);
    let book = transactions::Shared::default();
    let node = scene.start(transactions::open_accounts)?;
    scene.end(node, &[])?;
    for _ in 0..2 {
        let node = scene.start(|client| transactions::verify(book.clone(), client))?;
        book.borrow_mut().may_refuse = true;
        let tasks = scene.spawn(&node, 5, |_, client, chance| {
            transactions::work(book.clone(), client, u64::MAX, chance)
        });
        let target = book.borrow().done + scene.chance.u64(..80);
        scene.run_until(&node, || book.borrow().done >= target)?;
        let disk = scene.world.disk(NODE);
        let often = [0.02, 0.1, 0.5][scene.chance.usize(..3)];
        disk.change_faults(|faults| faults.eio_sync = often);
        let refused = book.borrow().refused;
        scene.run_until(&node, || book.borrow().refused > refused + 1)?;
        disk.change_faults(|faults| faults.eio_sync = 0.0);
        let turns = |book: &Book| book.done + book.refused;
        let before = turns(&book.borrow());
        scene.run_until(&node, || turns(&book.borrow()) > before + 20)?;
        scene.end_badly(node, &tasks)?;
        book.borrow_mut().may_refuse = false;
    }
    scene.start(|client| transactions::verify(book.clone(), client))?;
    Ok(scene.outcome_of(&book.borrow()))
}

/// Several lives of a node, each with another number of cores, that go down at any moment.
fn other_cores(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 1..6);
    let clients = scene.chance.usize(2..6);
    let ledger = Ledger::new(clients, scene.may_pipeline);
    for _ in 0..scene.chance.u64(3..7) {
        let node =
            scene.start_with_other_cores(|client| workload::verify(ledger.clone(), client))?;
        let tasks = scene.spawn(&node, clients, |number, client, chance| {
            workload::work(ledger.clone(), client, number, chance)
        });
        let target = ledger.borrow().answered + scene.chance.u64(..200);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        scene.end(node, &tasks)?;
        scene.check_directory()?;
    }
    scene.start_with_other_cores(|client| workload::verify(ledger.clone(), client))?;
    Ok(scene.outcome(&ledger))
}

/// The same for clients with transactions.
fn transactions_and_other_cores(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 2..6);
    let book = transactions::Shared::default();
    let node = scene.start(transactions::open_accounts)?;
    scene.end(node, &[])?;
    for _ in 0..scene.chance.u64(2..6) {
        let node =
            scene.start_with_other_cores(|client| transactions::verify(book.clone(), client))?;
        let tasks = scene.spawn(&node, 5, |_, client, chance| {
            transactions::work(book.clone(), client, u64::MAX, chance)
        });
        let target = book.borrow().done + scene.chance.u64(..80);
        scene.run_until(&node, || book.borrow().done >= target)?;
        scene.end(node, &tasks)?;
        scene.check_directory()?;
    }
    scene.start_with_other_cores(|client| transactions::verify(book.clone(), client))?;
    Ok(scene.outcome_of(&book.borrow()))
}

/// Cluster clients, which keep the map of one life into the next, where there are other cores.
fn cluster_clients(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 1..6);
    let clients = scene.chance.usize(2..5);
    let sight = router::Sight::new(clients);
    for _ in 0..scene.chance.u64(2..6) {
        let node = scene.start_with_other_cores(|client| router::begin(sight.clone(), client))?;
        let tasks = scene.spawn(&node, clients, |number, client, chance| {
            router::work(sight.clone(), client, number, chance)
        });
        let target = sight.borrow().answered + scene.chance.u64(20..200);
        scene.run_until(&node, || sight.borrow().answered >= target)?;
        node.ask(&scene.world, router::no_command_crossed)?;
        scene.end(node, &tasks)?;
    }
    scene.start_with_other_cores(|client| router::begin(sight.clone(), client))?;
    let sight = sight.borrow();
    Ok(Outcome {
        trace: scene.world.trace_hash(),
        done: sight.answered,
        refused: sight.redirected,
    })
}

/// Clients that speak HTTP, on a node that goes down again and again.
fn web_clients(seed: u64, planted: &[Bug]) -> Verdict<Outcome> {
    let mut options = Options::random(seed);
    options.planted = planted.to_vec();
    let mut scene = Scene::new(options, 1..4);
    let ledger = web::Ledger::new(scene.may_pipeline);
    let clients = scene.chance.usize(2..6);
    for _ in 0..scene.chance.u64(3..6) {
        let node = scene.start(|client| web::verify(ledger.clone(), client))?;
        let tasks = scene.spawn(&node, clients, |_, client, chance| {
            web::work(ledger.clone(), Client::of_web(client.life()), chance)
        });
        let target = ledger.borrow().answered + scene.chance.u64(..200);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        scene.end(node, &tasks)?;
    }
    scene.start(|client| web::verify(ledger.clone(), client))?;
    Ok(scene.outcome_of_web(&ledger))
}

/// The same on a node whose logs fail: what was not done is told from what nobody knows, and a node
/// with a log that has failed is not ready.
fn web_clients_and_failing_syncs(seed: u64) -> Verdict<Outcome> {
    let mut scene = Scene::new(Options::random(seed), 1..4);
    let ledger = web::Ledger::new(scene.may_pipeline);
    for _ in 0..2 {
        let node = scene.start(|client| web::verify(ledger.clone(), client))?;
        let tasks = scene.spawn(&node, 4, |_, client, chance| {
            web::work(ledger.clone(), Client::of_web(client.life()), chance)
        });
        let target = ledger.borrow().answered + scene.chance.u64(..100);
        scene.run_until(&node, || ledger.borrow().answered >= target)?;
        ledger.borrow_mut().may_fail = true;
        let disk = scene.world.disk(NODE);
        disk.change_faults(|faults| faults.eio_sync = 0.5);
        let (refused, failed) = (ledger.borrow().refused, ledger.borrow().failed);
        scene.run_until(&node, || ledger.borrow().refused > refused + 2)?;
        disk.change_faults(|faults| faults.eio_sync = 0.0);
        let unready = ledger.borrow().unready;
        if ledger.borrow().failed > failed {
            scene.run_until(&node, || ledger.borrow().unready > unready)?;
        }
        let answered = ledger.borrow().answered;
        scene.run_until(&node, || ledger.borrow().answered > answered + 20)?;
        scene.end_badly(node, &tasks)?;
        ledger.borrow_mut().may_fail = false;
    }
    scene.start(|client| web::verify(ledger.clone(), client))?;
    Ok(scene.outcome_of_web(&ledger))
}

impl Scene {
    fn outcome_of_web(&self, ledger: &web::Shared) -> Outcome {
        let ledger = ledger.borrow();
        Outcome {
            trace: self.world.trace_hash(),
            done: ledger.answered,
            refused: ledger.refused,
        }
    }

    fn outcome(&self, ledger: &workload::Shared) -> Outcome {
        let ledger = ledger.borrow();
        Outcome {
            trace: self.world.trace_hash(),
            done: ledger.answered,
            refused: ledger.refused,
        }
    }

    fn outcome_of(&self, book: &Book) -> Outcome {
        Outcome {
            trace: self.world.trace_hash(),
            done: book.done,
            refused: book.refused,
        }
    }
}

/// Plants `bug` and says after how many seeds the test of power cuts finds it.
fn finds(bug: Bug) {
    finds_by(power_cuts, bug);
}

/// Plants `bug` and says after how many seeds `simulate` finds it.
fn finds_by(simulate: impl Fn(u64, &[Bug]) -> Verdict<Outcome>, bug: Bug) {
    let found = (0..FINDING_SEEDS).find_map(|seed| {
        let ran = survive(|| simulate(seed, &[bug]));
        ran.err().map(|why| (seed, why))
    });
    let Some((seed, why)) = found else {
        panic!("{bug:?} is planted, and {FINDING_SEEDS} seeds do not find it");
    };
    println!("{bug:?} is found after {} seeds: {why}", seed + 1);
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    let name = "acknowledged_writes_survive_power_cuts";
    for_seeds(name, 600, |seed| power_cuts(seed, &[]));
}

#[test]
fn a_log_that_never_syncs_is_found() {
    finds(Bug::NoSync);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    finds(Bug::AcknowledgeBeforeSync);
}

#[test]
fn a_replay_that_goes_on_behind_a_torn_tail_is_found() {
    finds(Bug::ReplayPastTornTail);
}

#[test]
fn a_manifest_that_names_an_unsynced_table_is_found() {
    finds(Bug::ManifestBeforeTable);
}

#[test]
fn a_directory_that_is_not_synced_is_found() {
    finds(Bug::NoDirectorySync);
}

#[test]
fn a_move_within_the_value_log_that_is_not_synced_is_found() {
    finds(Bug::MovedUnsynced);
}

#[test]
fn a_segment_of_the_value_log_that_goes_too_early_is_found() {
    finds(Bug::SegmentBeforeManifest);
}

#[test]
fn a_tombstone_that_goes_while_it_hides_something_is_found() {
    finds(Bug::TombstoneTooEarly);
}

#[test]
fn a_stale_row_of_the_cache_is_found() {
    finds(Bug::StaleRow);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space() {
    let name = "a_full_disk_refuses_writes_until_there_is_space";
    let total = for_seeds(name, 150, full_disk);
    assert!(total.refused > 0, "the disk was never full");
}

#[test]
fn a_log_that_failed_takes_nothing_more_and_loses_nothing() {
    let name = "a_log_that_failed_takes_nothing_more_and_loses_nothing";
    let total = for_seeds(name, 200, failing_syncs);
    assert!(total.refused > 0, "no log ever failed");
}

#[test]
fn transactions_have_an_order_and_an_end() {
    let name = "transactions_have_an_order_and_an_end";
    for_seeds(name, 100, transactions_in_peace);
}

#[test]
fn transactions_survive_power_cuts_whole_or_not_at_all() {
    let name = "transactions_survive_power_cuts_whole_or_not_at_all";
    for_seeds(name, 150, transactions_and_power_cuts);
}

#[test]
fn transactions_are_whole_though_a_log_fails() {
    let name = "transactions_are_whole_though_a_log_fails";
    for_seeds(name, 200, |seed| transactions_and_failing_syncs(seed, &[]));
}

#[test]
fn a_reader_who_is_told_that_a_doubtful_transaction_never_was_is_found() {
    finds_by(transactions_and_failing_syncs, Bug::DoubtForgotten);
}

#[test]
fn nothing_is_lost_when_a_node_is_started_with_another_number_of_cores() {
    let name = "nothing_is_lost_when_a_node_is_started_with_another_number_of_cores";
    for_seeds(name, 200, |seed| other_cores(seed, &[]));
}

#[test]
fn transactions_are_whole_when_a_node_is_started_with_another_number_of_cores() {
    let name = "transactions_are_whole_when_a_node_is_started_with_another_number_of_cores";
    for_seeds(name, 100, |seed| transactions_and_other_cores(seed, &[]));
}

#[test]
fn folders_that_count_before_they_are_whole_are_found() {
    finds_by(other_cores, Bug::SwitchTooEarly);
}

#[test]
fn old_folders_that_go_too_early_are_found() {
    finds_by(other_cores, Bug::OldFoldersFirst);
}

#[test]
fn numbers_of_segments_that_come_again_are_found() {
    finds_by(other_cores, Bug::NumbersAgain);
}

#[test]
fn a_re_sharding_that_forgets_what_was_prepared_is_found() {
    finds_by(transactions_and_other_cores, Bug::UndecidedDropped);
}

#[test]
fn cluster_clients_find_the_owner_though_the_cores_are_others() {
    let name = "cluster_clients_find_the_owner_though_the_cores_are_others";
    let total = for_seeds(name, 200, cluster_clients);
    assert!(total.refused > 0, "no map was ever an old one");
}

/// Whoever speaks HTTP is promised what Redis clients are.
#[test]
fn what_is_acknowledged_over_http_survives_power_cuts() {
    let name = "what_is_acknowledged_over_http_survives_power_cuts";
    for_seeds(name, 150, |seed| web_clients(seed, &[]));
}

#[test]
fn an_answer_over_http_before_the_sync_is_found() {
    finds_by(web_clients, Bug::AnsweredUnsynced);
}

#[test]
fn a_condition_that_is_judged_without_the_latch_is_found() {
    finds_by(web_clients, Bug::ConditionUnlatched);
}

/// A client that is told 503 must know whether its write can still appear.
#[test]
fn a_failed_log_is_told_over_http_and_loses_nothing() {
    let name = "a_failed_log_is_told_over_http_and_loses_nothing";
    let total = for_seeds(name, 100, web_clients_and_failing_syncs);
    assert!(total.refused > 0, "no log ever failed");
}

/// Else STRLEN of a cold value of 64 MiB would read 64 MiB, and TTL, too.
#[test]
fn a_question_about_a_cold_value_is_answered_without_reading_it() {
    const KEYS: usize = 8;
    fn key(number: usize) -> String {
        format!("key:{number}")
    }
    fn length(number: usize) -> usize {
        5_000 + number
    }
    // A quarter of it can be compressed.
    fn value(number: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(number as u64);
        let noise = (0..length(number) * 3 / 4).map(|_| random.u8(..));
        let mut value: Vec<u8> = noise.collect();
        value.resize(length(number), b'v');
        value
    }
    for compression in [Compression::None, Compression::Lz4] {
        let world = World::new(Options::calm(1));
        let mut config = cluster::config(1, &mut fastrand::Rng::with_seed(1));
        config.memory = bytesize::ByteSize::mib(8);
        config.value_log.threshold = bytesize::ByteSize::kib(1);
        config.value_log.compression = compression;
        config.value_log.garbage_max_percent = 90; // the collector, which reads, has nothing to do
        let node = Node::start(&world, &config).expect("an empty disk");
        let written = node.ask(&world, |mut client| async move {
            let set = |number: usize| {
                let set = request([&b"SET"[..], key(number).as_bytes(), &value(number)]);
                set.with("EX").with("1000000")
            };
            let sets: Vec<_> = (0..KEYS).map(set).collect();
            client.must(&sets).await
        });
        written.expect("a sound node");
        // An orderly stop flushes: after it memory knows of nothing.
        node.end(&world, End::Stop).expect("a sound node");
        let node = Node::start(&world, &config).expect("a sound disk");
        let asked = |question: &'static [&'static str]| {
            let before = world.disk(NODE).reads();
            let replies = node.ask(&world, move |mut client| async move {
                let words = |number| {
                    let words = question.iter().map(|word| word.to_string());
                    request(words.chain([key(number)]))
                };
                let questions: Vec<_> = (0..KEYS).map(words).collect();
                client.must(&questions).await
            });
            let reads = world.disk(NODE).reads() - before;
            (replies.expect("a sound node"), reads as usize)
        };
        let (lengths, reads) = asked(&["STRLEN"]);
        let right = (0..KEYS).map(|number| Reply::Integer(length(number) as i64));
        assert_eq!(lengths, right.collect::<Vec<_>>(), "{compression:?}");
        // All pointers are in one block, which the first ones may read side by side.
        assert!((1..=KEYS).contains(&reads), "{reads} reads of one block");
        for question in [
            &["STRLEN"][..],
            &["EXISTS"],
            &["TTL"],
            &["PEXPIRETIME"],
            &["TYPE"],
            &["MEMORY", "USAGE"],
        ] {
            let (replies, reads) = asked(question);
            let is_error = |reply: &Reply| matches!(reply, Reply::Error(_));
            assert!(!replies.iter().any(is_error), "{replies:?}");
            assert_eq!(reads, 0, "{question:?} reads the value of a cold key");
        }
        let (values, reads) = asked(&["GET"]);
        let right = (0..KEYS).map(|number| Reply::Bulk(value(number)));
        assert_eq!(values, right.collect::<Vec<_>>(), "{compression:?}");
        assert_eq!(reads, KEYS, "a value is one read");
        node.end(&world, End::Stop).expect("a sound node");
    }
}
