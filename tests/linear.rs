//! The checker of histories is checked: against histories whose verdict is plain, and against
//! trying all orders.

#[path = "linear/mod.rs"]
mod linear;

use linear::{Action, Operation, Outcome, Value, check};

fn operation(action: Action, asked: u64, answered: u64) -> Operation {
    Operation {
        action,
        asked,
        answered,
        outcome: Outcome::Done,
    }
}

fn write(value: u64, asked: u64, answered: u64) -> Operation {
    operation(Action::Write(Some(value)), asked, answered)
}

fn delete(asked: u64, answered: u64) -> Operation {
    operation(Action::Write(None), asked, answered)
}

fn read(value: Value, asked: u64, answered: u64) -> Operation {
    operation(Action::Read(value), asked, answered)
}

fn swap(old: Value, new: u64, asked: u64, answered: u64) -> Operation {
    operation(
        Action::Swap {
            old,
            new: Some(new),
        },
        asked,
        answered,
    )
}

fn differs(old: Value, asked: u64, answered: u64) -> Operation {
    operation(Action::Differs { old }, asked, answered)
}

fn with(operation: Operation, outcome: Outcome) -> Operation {
    Operation {
        outcome,
        ..operation
    }
}

fn unknown(operation: Operation) -> Operation {
    with(operation, Outcome::Unknown)
}

fn failed(operation: Operation) -> Operation {
    with(operation, Outcome::Failed)
}

/// Else tests that use the checker would fail without a reason.
#[test]
fn histories_that_one_order_explains_are_accepted() {
    let good: &[&[Operation]] = &[
        &[],
        &[
            write(1, 0, 1),
            read(Some(1), 2, 3),
            delete(4, 5),
            read(None, 6, 7),
        ],
        // What is under way may have been done or not, in any order.
        &[write(1, 0, 10), read(None, 1, 2), read(Some(1), 3, 4)],
        &[
            write(1, 0, 10),
            write(2, 0, 10),
            read(Some(2), 1, 9),
            read(Some(1), 11, 12),
        ],
        &[
            unknown(write(1, 0, 1)),
            read(None, 2, 3),
            read(Some(1), 4, 5),
        ],
        &[unknown(write(1, 0, 1)), read(None, 2, 3)],
        &[failed(write(1, 0, 1)), read(None, 2, 3)],
        &[
            write(1, 0, 1),
            unknown(delete(2, 3)),
            read(Some(1), 4, 5),
            read(None, 6, 7),
        ],
        &[
            swap(None, 1, 0, 1),
            swap(Some(1), 2, 2, 3),
            read(Some(2), 4, 5),
        ],
        &[swap(None, 1, 0, 1), differs(None, 2, 3)],
        // Of two that want the same one wins; the other is told so.
        &[
            swap(None, 1, 0, 9),
            differs(None, 0, 9),
            read(Some(1), 10, 11),
        ],
        // An unseen write whose fate is unknown explains why something was not there.
        &[unknown(write(1, 0, 1)), differs(None, 2, 3)],
        &[
            unknown(swap(None, 1, 0, 1)),
            unknown(swap(Some(1), 2, 2, 3)),
            read(Some(2), 4, 5),
        ],
        // Two deletions of unknown fate, and both are needed.
        &[
            unknown(delete(0, 1)),
            unknown(delete(0, 1)),
            write(1, 2, 3),
            read(None, 4, 5),
            write(2, 6, 7),
            read(None, 8, 9),
        ],
    ];
    for (index, history) in good.iter().enumerate() {
        assert_eq!(check(None, history), Ok(()), "history {index}");
    }
}

/// Else it would not find what it is for.
#[test]
fn histories_that_no_order_explains_are_refused() {
    let bad: &[&[Operation]] = &[
        &[read(Some(1), 0, 1)],
        // Lost, and stale.
        &[write(1, 0, 1), read(None, 2, 3)],
        &[write(1, 0, 1), write(2, 2, 3), read(Some(1), 4, 5)],
        // New, then old.
        &[
            write(1, 0, 1),
            write(2, 2, 20),
            read(Some(2), 3, 4),
            read(Some(1), 5, 6),
        ],
        &[
            unknown(write(1, 0, 1)),
            read(Some(1), 2, 3),
            read(None, 4, 5),
        ],
        // It was seen before it was asked for, and after it had failed.
        &[read(Some(1), 0, 1), write(1, 2, 3)],
        &[read(Some(1), 0, 1), unknown(write(1, 2, 3))],
        &[failed(write(1, 0, 1)), read(Some(1), 2, 3)],
        // It came back: written once, and seen on both sides of another.
        &[
            unknown(write(1, 0, 1)),
            read(Some(1), 2, 3),
            write(2, 4, 5),
            read(Some(2), 6, 7),
            read(Some(1), 8, 9),
        ],
        // Resurrected.
        &[write(1, 0, 1), delete(2, 3), read(Some(1), 4, 5)],
        // Two winners.
        &[swap(None, 1, 0, 9), swap(None, 2, 0, 9)],
        &[differs(None, 0, 1)],
        &[write(1, 0, 1), differs(Some(1), 2, 3)],
        // One deletion of unknown fate, and two would be needed.
        &[
            unknown(delete(0, 1)),
            write(1, 2, 3),
            read(None, 4, 5),
            write(2, 6, 7),
            read(None, 8, 9),
        ],
    ];
    for (index, history) in bad.iter().enumerate() {
        assert!(check(None, history).is_err(), "history {index}");
    }
}

/// Tries every order of every choice of what is unknown.
fn is_explained(history: &[Operation], value: Value, done: u32) -> bool {
    let is_left = |index: usize| done & 1 << index == 0;
    let left = (0..history.len()).filter(|&index| is_left(index));
    let must = left
        .clone()
        .filter(|&index| history[index].outcome == Outcome::Done);
    if must.clone().next().is_none() {
        return true;
    }
    let first_answer = must.map(|index| history[index].answered).min();
    let first_answer = first_answer.expect("one is left");
    for index in left {
        let operation = history[index];
        if operation.outcome == Outcome::Failed || operation.asked > first_answer {
            continue;
        }
        let after = match operation.action {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Write(new) => Some(new),
            Action::Swap { old, new } => (old == value).then_some(new),
            Action::Differs { old } => (old != value).then_some(value),
        };
        let explains = |after| is_explained(history, after, done | 1 << index);
        if after.is_some_and(explains) {
            return true;
        }
    }
    false
}

/// Else a shortcut of the checker might be none: values repeat here, and outcomes are of all kinds.
#[test]
fn its_verdict_is_that_of_trying_all_orders() {
    let mut accepted = 0;
    const HISTORIES: u64 = 20_000;
    for seed in 0..HISTORIES {
        let mut chance = fastrand::Rng::with_seed(seed);
        let values = chance.u64(2..6);
        let value =
            |chance: &mut fastrand::Rng| Some(chance.u64(0..values)).filter(|value| *value > 0);
        let length = chance.usize(1..8);
        let random = |_| {
            let action = match chance.u8(..8) {
                0..3 => Action::Read(value(&mut chance)),
                3..6 => Action::Write(value(&mut chance)),
                6 => Action::Swap {
                    old: value(&mut chance),
                    new: value(&mut chance),
                },
                _ => Action::Differs {
                    old: value(&mut chance),
                },
            };
            let asked = chance.u64(..20);
            let outcome = match chance.u8(..8) {
                0 => Outcome::Failed,
                1..3 => Outcome::Unknown,
                _ => Outcome::Done,
            };
            with(operation(action, asked, asked + chance.u64(1..10)), outcome)
        };
        let history: Vec<Operation> = (0..length).map(random).collect();
        let expected = is_explained(&history, None, 0);
        let verdict = check(None, &history);
        assert_eq!(
            verdict.is_ok(),
            expected,
            "seed {seed}: {verdict:?}\n{history:?}"
        );
        accepted += u64::from(expected);
    }
    let share = accepted * 100 / HISTORIES;
    assert!(
        (10..90).contains(&share),
        "{share}% were accepted: is one kind missing?"
    );
}

/// Else long histories could not be judged: here ten clients are never at rest, one in eight does
/// not know its outcome.
#[test]
fn a_long_history_is_judged_in_time_that_grows_with_its_length() {
    let mut chance = fastrand::Rng::with_seed(1);
    let mut held = None;
    let mut history = Vec::new();
    let mut now = 100;
    for number in 1..=30_000 {
        now += 10;
        let (asked, answered) = (now - chance.u64(..50), now + chance.u64(1..50));
        let action = match chance.u8(..4) {
            0 => Action::Write(Some(number)),
            1 => Action::Swap {
                old: held,
                new: Some(number),
            },
            _ => Action::Read(held),
        };
        if let Action::Write(new) | Action::Swap { new, .. } = action {
            held = new;
        }
        let is_known = !matches!(action, Action::Write(_)) || chance.u8(..8) > 0;
        let operation = operation(action, asked, answered);
        history.push(if is_known {
            operation
        } else {
            unknown(operation)
        });
    }
    assert_eq!(check(None, &history), Ok(()));
    history.push(read(Some(5), now + 100, now + 101));
    assert!(
        check(None, &history).is_err(),
        "what the last one saw was long gone"
    );
}
