//! The register of several holders, explored: every order of small cases to the last, and long
//! cases by chance.
//!
//! Whatever is lost, repeated, late, or forgotten by who restarts: a ballot has one value, what is
//! decided is never lost, an operation counts once, what failed is never seen, and nobody is told
//! something older than what was decided before it asked; also while the set of holders changes.
//! Mistakes are planted in turn, and must be found.

#[path = "register/model.rs"]
mod model;

use model::{Case, Fault, Found, Op, Part, explore, walk};
use quoit::replication::register::Mistake;

/// Seeds of the short form.
const SEEDS: u64 = 1_500;
/// States of a case in the short form.
const STATES_MAX: usize = 75_000;

/// Small cases of three holders, at first: what each proposer does, one after the other.
fn cases() -> Vec<(&'static str, Case)> {
    let append = || Part::of(&[Op::Append]);
    let first = || Part::of(&[Op::First]);
    let twice = || Part::of(&[Op::Append, Op::Append]);
    let moving = || Part::of(&[Op::Join(3), Op::Leave(0), Op::Append]);
    vec![
        ("two that change it", Case::of(vec![append(), append()])),
        (
            "one is a round ahead",
            Case::of(vec![append(), append().ahead(1)]),
        ),
        (
            "one does not give up",
            Case::of(vec![append().rounds(2), append()]).losses(0),
        ),
        (
            "three that want the same epoch",
            Case::of(vec![first(), first(), first()]).losses(0),
        ),
        (
            "one that goes on without asking",
            Case::of(vec![twice(), append()]),
        ),
        (
            "one that goes on without asking and does not give up",
            Case::of(vec![twice().rounds(2), append().ahead(2)]).losses(0),
        ),
        (
            "one that changes it, and one that reads",
            Case::of(vec![append(), Part::of(&[Op::Read, Op::Read])]),
        ),
        (
            "one that restarts and has forgotten its rounds",
            Case::of(vec![twice(), Part::of(&[Op::Read])])
                .crashes(1)
                .losses(0),
        ),
        (
            "a holder joins",
            Case::of(vec![Part::of(&[Op::Join(3)]), append()]),
        ),
        (
            "two sets at once",
            Case::of(vec![
                Part::of(&[Op::Join(3)]),
                Part::of(&[Op::Leave(0)]).ahead(1),
            ]),
        ),
        (
            "somebody has not heard of two new sets",
            Case::of(vec![moving(), append().ahead(6)]).losses(0),
        ),
    ]
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn is_long() -> bool {
    std::env::var_os("QUOIT_LONG").is_some()
}

/// Else two halves of a partition could both change the map, or a change could be lost. The larger
/// cases go to their end only in the long form.
#[test]
fn no_order_of_events_breaks_the_register_in_small_cases() {
    let states_max = if is_long() { 10_000_000 } else { STATES_MAX };
    let mut complete = 0;
    for (name, case) in cases() {
        let (states, found) = explore(&case, None, states_max);
        println!("{name}: {states} states, {found:?}");
        match found {
            Found::Sound => complete += 1,
            Found::TooMuch => {}
            Found::Broken(why) => panic!("{name}: {why}"),
        }
        assert!(states > 1_000, "{name}: nothing much happened");
    }
    assert!(
        complete >= 5,
        "only {complete} cases were explored to their end"
    );
}

#[test]
fn chance_breaks_the_register_of_three_or_five_holders_nowhere() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUOIT_SEEDS").unwrap_or(SEEDS),
    };
    let runs = seeds.end - seeds.start;
    let (mut decided, mut sets) = (0, 0);
    for seed in seeds {
        let walked = walk(seed, None);
        let walked = walked.unwrap_or_else(|why| {
            panic!("SEED={seed} cargo test --test register chance_breaks: {why}")
        });
        decided += walked.decided;
        sets += walked.sets;
    }
    println!("{decided} changes, {sets} sets of holders");
    let is_much = decided > 10 && sets > 0;
    assert!(is_much || runs < SEEDS, "nothing was decided");
}

/// Both by trying everything, in this case, and by chance.
fn finds(fault: Fault, case: &str) {
    let cases = cases();
    let mut named = cases.iter().filter(|(name, _)| *name == case);
    let (name, case) = named.next().expect("a case");
    let (states, found) = explore(case, Some(fault), 1_000_000);
    let Found::Broken(why) = found else {
        panic!("{fault:?} was not found in `{name}`: {found:?} after {states} states");
    };
    println!(
        "{fault:?} is found in `{name}` after {states} states: {}",
        first_line(&why)
    );
    finds_by_chance(fault);
}

fn first_line(why: &str) -> &str {
    why.lines().next().unwrap_or_default()
}

fn finds_by_chance(fault: Fault) {
    let walked = (0..SEEDS).find_map(|seed| Some((seed, walk(seed, Some(fault)).err()?)));
    let (seed, why) = walked.unwrap_or_else(|| panic!("{fault:?} was not found by chance"));
    println!("{fault:?} is found by seed {seed}: {}", first_line(&why));
}

#[test]
fn a_majority_that_is_one_too_small_is_found() {
    finds(
        Fault::Proposer(Mistake::SmallMajority),
        "two that change it",
    );
}

#[test]
fn a_change_of_something_that_is_not_the_newest_is_found() {
    finds(
        Fault::Proposer(Mistake::NotTheNewest),
        "one is a round ahead",
    );
}

#[test]
fn a_proposer_that_goes_on_without_asking_after_another_is_found() {
    let fault = Fault::Proposer(Mistake::StickyWithoutPrepare);
    match is_long() {
        // It takes 800,000 states.
        true => finds(
            fault,
            "one that goes on without asking and does not give up",
        ),
        false => finds_by_chance(fault),
    }
}

#[test]
fn a_holder_that_forgets_its_promise_is_found() {
    finds(Fault::PromiseForgotten, "one is a round ahead");
}

#[test]
fn a_holder_that_listens_to_an_old_set_is_found() {
    finds(Fault::OldSetHeard, "somebody has not heard of two new sets");
}
