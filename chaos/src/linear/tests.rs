//! Histories known to be good and bad, and many by chance against a search that
//! is too simple to be wrong.

use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

fn call(action: Action, invoked: usize, returned: Option<usize>) -> Call {
    Call {
        action,
        invoked,
        returned,
    }
}

/// Calls one after the other; those without an end are of unknown outcome.
fn in_order(actions: &[(Action, bool)]) -> Linearizable {
    let calls: Vec<Call> = actions
        .iter()
        .enumerate()
        .map(|(n, (action, known))| call(*action, 2 * n, known.then_some(2 * n + 1)))
        .collect();
    check(&calls)
}

fn read(value: i64) -> Action {
    Action::Read(Some(value))
}

fn write(value: i64) -> Action {
    Action::Write(Some(value))
}

fn set(expected: Value, new: i64, answer: Answer) -> Action {
    Action::CompareAndSet {
        expected,
        new: Some(new),
        answer,
    }
}

#[test]
fn one_after_the_other_is_in_order() {
    let good = [
        (Action::Read(None), true),
        (write(1), true),
        (read(1), true),
        (set(Some(1), 2, Answer::Set), true),
        (set(Some(1), 3, Answer::Found(Some(2))), true),
        (set(Some(1), 3, Answer::Differs), true),
        (read(2), true),
        (Action::Write(None), true),
        (set(None, 4, Answer::Set), true),
        (read(4), true),
    ];
    assert_eq!(in_order(&good), Linearizable::Yes);
    assert_eq!(check(&[]), Linearizable::Yes);
}

#[test]
fn a_stale_read_has_no_place() {
    let stale = in_order(&[(write(1), true), (write(2), true), (read(1), true)]);
    let stuck = call(read(1), 4, Some(5));
    let value = Some(2);
    assert_eq!(stale, Linearizable::No { value, stuck });
    // Beside the second write it has one.
    let beside = [
        call(write(1), 0, Some(1)),
        call(write(2), 2, Some(5)),
        call(read(1), 3, Some(4)),
    ];
    assert_eq!(check(&beside), Linearizable::Yes);
}

#[test]
fn two_reads_beside_a_write_agree_on_its_place() {
    let reads = |first, second| {
        check(&[
            call(write(1), 0, Some(1)),
            call(write(2), 2, Some(7)),
            call(read(first), 3, Some(4)),
            call(read(second), 5, Some(6)),
        ])
    };
    assert_eq!(reads(1, 2), Linearizable::Yes);
    assert!(matches!(reads(2, 1), Linearizable::No { .. }));
}

#[test]
fn an_unknown_write_takes_effect_late_or_never_but_not_twice() {
    let late = [
        (write(1), false),
        (Action::Read(None), true),
        (read(1), true),
    ];
    assert_eq!(in_order(&late), Linearizable::Yes);
    let never = [(write(1), false), (Action::Read(None), true)];
    assert_eq!(in_order(&never), Linearizable::Yes);
    let gone = [
        (write(1), false),
        (read(1), true),
        (write(2), true),
        (read(1), true),
    ];
    assert!(matches!(in_order(&gone), Linearizable::No { .. }));
    let early = [(read(1), true), (write(1), false)];
    assert!(matches!(in_order(&early), Linearizable::No { .. }));
}

#[test]
fn an_unknown_set_may_have_been_refused() {
    let unknown = |expected| (set(Some(expected), 2, Answer::Unknown), false);
    let done = [(write(1), true), unknown(1), (read(2), true)];
    assert_eq!(in_order(&done), Linearizable::Yes);
    let refused = [(write(1), true), unknown(7), (read(1), true)];
    assert_eq!(in_order(&refused), Linearizable::Yes);
    let impossible = [(write(1), true), unknown(7), (read(2), true)];
    assert!(matches!(in_order(&impossible), Linearizable::No { .. }));
    // Only one of two can have won.
    let both = [
        (write(1), true),
        (set(Some(1), 2, Answer::Set), true),
        (set(Some(1), 3, Answer::Set), true),
    ];
    assert!(matches!(in_order(&both), Linearizable::No { .. }));
}

#[test]
fn a_search_that_takes_too_long_is_given_up() {
    let calls: Vec<Call> = (0..30).map(|n| call(write(n), n as usize, None)).collect();
    let mut stuck = calls.clone();
    stuck.push(call(read(99), 40, Some(41)));
    assert_eq!(check_within(&stuck, 10_000), Linearizable::Undecided);
    assert_eq!(check_within(&calls, 10_000), Linearizable::Yes);
}

/// All orders, one by one: the definition, without any cleverness.
fn is_linearizable(calls: &[Call], placed: &mut Vec<usize>, value: Value) -> bool {
    let open = |c: &usize| !placed.contains(c);
    let missing: Vec<usize> = (0..calls.len()).filter(open).collect();
    if missing.iter().all(|c| calls[*c].returned.is_none()) {
        return true;
    }
    // Nothing can come after what was over before it began.
    let first_end = missing.iter().filter_map(|c| calls[*c].returned).min();
    let may_be_next = |c: &usize| first_end.is_none_or(|end| calls[*c].invoked < end);
    for next in missing.into_iter().filter(may_be_next) {
        if let Some(after) = calls[next].action.apply(value) {
            placed.push(next);
            let found = is_linearizable(calls, placed, after);
            placed.pop();
            if found {
                return true;
            }
        }
    }
    false
}

/// Up to six calls that overlap at random; most answers make sense.
fn by_chance(chance: &mut StdRng) -> Vec<Call> {
    let calls = chance.random_range(1..=6);
    let mut places: Vec<usize> = (0..2 * calls).collect();
    let mut take = |chance: &mut StdRng| {
        let place = *places.choose(chance).unwrap();
        places.retain(|p| *p != place);
        place
    };
    (0..calls)
        .map(|_| {
            let (a, b) = (take(chance), take(chance));
            let known = chance.random_ratio(3, 4);
            let mut value = || match chance.random_range(0..3) {
                0 => None,
                n => Some(n),
            };
            let (expected, new, seen) = (value(), value(), value());
            let action = match (chance.random_range(0..3), known) {
                (0, true) => Action::Read(seen),
                (2, _) => Action::CompareAndSet {
                    expected,
                    new,
                    answer: match (known, seen) {
                        (false, _) => Answer::Unknown,
                        (true, None) => Answer::Differs,
                        (true, Some(1)) => Answer::Found(new),
                        (true, Some(_)) => Answer::Set,
                    },
                },
                _ => Action::Write(new),
            };
            call(action, a.min(b), known.then_some(a.max(b)))
        })
        .collect()
}

#[test]
fn the_search_agrees_with_all_orders_one_by_one() {
    let mut chance = StdRng::seed_from_u64(7);
    let mut both = [0, 0];
    for _ in 0..20_000 {
        let calls = by_chance(&mut chance);
        let expected = is_linearizable(&calls, &mut Vec::new(), None);
        let found = check(&calls) == Linearizable::Yes;
        assert_eq!(found, expected, "{calls:?}");
        both[usize::from(found)] += 1;
    }
    assert!(both[0] > 1_000 && both[1] > 1_000, "{both:?}");
}
