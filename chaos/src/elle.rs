//! Elle's method, by the crate `adya`: from what transactions have read follow
//! the order of the versions of each key, and from that which transaction
//! depends on which. A cycle of dependencies is a contradiction.
//!
//! The crate knows the real-time order, too: what was over before another began
//! (by their places in the history) precedes it. So the model asked for is strict
//! serializability, and a stale read is a cycle like any other. It is also how
//! an acknowledged write is missed that no later read shows.
//!
//! Lists show the order of their versions; of registers, which hide it, it is taken to
//! be that in which they were written and read, since each key is promised to be
//! linearizable.
//!
//! One thing the crate does not ask: whether anybody wrote what was read at all.

use crate::history::{self, Event, Kind, Operation};
use crate::workload::Verdict;
use adya::{History, Opts, Valid, Workload};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// For each knot of transactions: beyond it some cycle is shown, not the worst.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Who reads more than so many keys looks at everything.
const LOOK: usize = 10;
/// So many contradictions of a kind are shown.
const SHOWN: usize = 3;
/// Transactions over registers that are looked at together. What the crate does to find the
/// order of their versions grows with the square of the history; most of what contradicts
/// itself is close together, and each window overlaps the next by half. To leave
/// transactions out never makes a contradiction.
const WINDOW: usize = 400;

/// Judges a history.
///
/// # Errors
/// When it is no history of transactions over lists or registers.
pub fn check(events: &[Event], workload: Workload) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let invented = inventions(&operations, workload)?;
    if !invented.is_empty() {
        return Ok(Verdict::Violated(invented));
    }
    if workload == Workload::ListAppend {
        return analyse(events, &operations, workload);
    }
    // Whoever looks at everything, in the end, misses what was lost at any time.
    let steps = |operation: &Operation| operation.arguments.as_array().map_or(0, Vec::len);
    let (looks, operations): (Vec<Operation>, Vec<Operation>) = operations
        .into_iter()
        .partition(|operation| steps(operation) > LOOK);
    let mut verdict = Verdict::Undecided("nothing took place".to_owned());
    for first in (0..operations.len()).step_by(WINDOW / 2) {
        let last = operations.len().min(first + WINDOW);
        let window = [&operations[first..last], &looks].concat();
        if window.iter().all(|operation| operation.kind != Kind::Ok) {
            continue;
        }
        verdict = analyse(events, &window, workload)?;
        if verdict != Verdict::Holds {
            break;
        }
    }
    Ok(verdict)
}

/// What the crate says.
fn analyse(events: &[Event], operations: &[Operation], workload: Workload) -> Result<Verdict> {
    let mut places: Vec<usize> = operations
        .iter()
        .flat_map(|operation| [Some(operation.invoked), operation.completed])
        .flatten()
        .collect();
    places.sort_unstable();
    let line = |index: usize| events[index].to_json(index).to_string();
    let lines: Vec<String> = places.into_iter().map(line).collect();
    let history = History::from_json(&lines.join("\n")).map_err(|e| anyhow!("{e}"))?;
    let options = Opts {
        models: vec!["strict-serializable".to_owned()],
        timeout: SEARCH_TIMEOUT,
        linearizable_keys: true,
        wfr_keys: true,
        ..Opts::default()
    };
    let report = adya::check(&history, workload, &options);
    let mut wrong = Vec::new();
    for (kind, found) in &report.anomalies {
        for anomaly in found.iter().take(SHOWN) {
            wrong.push(format!("{kind}: {}", anomaly.explanation.trim_end()));
        }
        if found.len() > SHOWN {
            wrong.push(format!("{kind}: {} more", found.len() - SHOWN));
        }
    }
    Ok(match report.valid {
        Valid::True if wrong.is_empty() => Verdict::Holds,
        Valid::Unknown => Verdict::Undecided(wrong.join("\n")),
        Valid::True | Valid::False => Verdict::Violated(wrong),
    })
}

/// Numbers that were read and that nobody was to write.
///
/// # Errors
/// When it is no history of that workload: the crate would find nothing in it.
fn inventions(operations: &[Operation], workload: Workload) -> Result<Vec<String>> {
    let lists = workload == Workload::ListAppend;
    let mut written: HashSet<(i64, i64)> = HashSet::new();
    let mut read: Vec<(usize, i64, i64)> = Vec::new();
    for operation in operations {
        let at = operation.invoked;
        let shape = || format!("event {at}: no transaction of {workload:?}");
        for step in operation.result.as_array().with_context(shape)? {
            let key = step[1].as_i64().with_context(shape)?;
            match (step[0].as_str(), &step[2]) {
                (Some(write), number) if write == if lists { "append" } else { "w" } => {
                    let number = number.as_i64().with_context(shape)?;
                    if !written.insert((key, number)) {
                        bail!("event {at} writes {number} to key {key}, as another one does");
                    }
                }
                (Some("r"), Value::Array(numbers)) if lists => {
                    for number in numbers {
                        read.push((at, key, number.as_i64().with_context(shape)?));
                    }
                }
                (Some("r"), Value::Null) => {}
                (Some("r"), number) if !lists => {
                    read.push((at, key, number.as_i64().with_context(shape)?));
                }
                _ => bail!(shape()),
            }
        }
    }
    let invented = read
        .into_iter()
        .filter(|(_, key, number)| !written.contains(&(*key, *number)));
    let say = |(at, key, number)| {
        format!("event {at} has read {number} in key {key}, which nobody wrote")
    };
    Ok(invented.map(say).take(SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use adya::Workload::{ListAppend, RwRegister};
    use serde_json::json;

    /// A history line by line: process, kind, and the steps.
    fn verdict(workload: Workload, lines: &[(u64, Kind, Value)]) -> Verdict {
        let history = crate::history::History::new();
        for (process, kind, steps) in lines {
            match kind {
                Kind::Invoke => history.invoke(*process, "txn", steps.clone()),
                _ => history.complete(*process, *kind, "txn", steps.clone(), None),
            }
        }
        history.fault("kill", json!("kvnode-1"));
        check(&history.events().unwrap(), workload).unwrap()
    }

    /// Transactions one after the other.
    fn in_order(workload: Workload, transactions: &[(Kind, Value)]) -> Verdict {
        let mut lines = Vec::new();
        for (n, (kind, steps)) in transactions.iter().enumerate() {
            let mut begun = steps.clone();
            for step in begun.as_array_mut().unwrap() {
                if step[0] == "r" {
                    step[2] = Value::Null;
                }
            }
            lines.push((n as u64, Kind::Invoke, begun));
            lines.push((n as u64, *kind, steps.clone()));
        }
        verdict(workload, &lines)
    }

    fn violated(verdict: Verdict, by: &str) {
        match verdict {
            Verdict::Violated(reasons) => {
                assert!(reasons.iter().any(|r| r.starts_with(by)), "{reasons:?}");
            }
            other => panic!("{other:?} instead of {by}"),
        }
    }

    #[test]
    fn one_after_the_other_holds() {
        let holds = in_order(
            ListAppend,
            &[
                (Kind::Ok, json!([["append", 1, 1], ["r", 2, []]])),
                (Kind::Ok, json!([["append", 2, 2], ["r", 1, [1]]])),
                (Kind::Fail, json!([["append", 2, 3]])),
                (Kind::Info, json!([["append", 2, 4], ["append", 1, 5]])),
                (Kind::Ok, json!([["r", 1, [1, 5]], ["r", 2, [2, 4]]])),
            ],
        );
        assert_eq!(holds, Verdict::Holds);
        // What nobody knows of may never have been.
        let holds = in_order(
            ListAppend,
            &[
                (Kind::Info, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["append", 1, 2]])),
                (Kind::Ok, json!([["r", 1, [2]]])),
            ],
        );
        assert_eq!(holds, Verdict::Holds);
    }

    #[test]
    fn a_stale_read_breaks_real_time_order_alone() {
        // Serializable: the reader could have come first, but it began later.
        let stale = in_order(
            ListAppend,
            &[
                (Kind::Ok, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["r", 1, []]])),
                (Kind::Ok, json!([["r", 1, [1]]])),
            ],
        );
        violated(stale, "G-single-item-realtime");
        // Side by side it is as well.
        let beside = verdict(
            ListAppend,
            &[
                (0, Kind::Invoke, json!([["append", 1, 1]])),
                (1, Kind::Invoke, json!([["r", 1, null]])),
                (0, Kind::Ok, json!([["append", 1, 1]])),
                (1, Kind::Ok, json!([["r", 1, []]])),
                (2, Kind::Invoke, json!([["r", 1, null]])),
                (2, Kind::Ok, json!([["r", 1, [1]]])),
            ],
        );
        assert_eq!(beside, Verdict::Holds);
    }

    #[test]
    fn an_acknowledged_append_that_is_lost_is_missed() {
        let lost = in_order(
            ListAppend,
            &[
                (Kind::Ok, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["append", 1, 2]])),
                (Kind::Ok, json!([["r", 1, [1]]])),
            ],
        );
        violated(lost, "G-single-item-realtime");
    }

    #[test]
    fn write_skew_is_found() {
        let both = |own: i64| json!([["r", 1, []], ["r", 2, []], ["append", own, own]]);
        let asked = |own: i64| json!([["r", 1, null], ["r", 2, null], ["append", own, own]]);
        let skew = verdict(
            ListAppend,
            &[
                (0, Kind::Invoke, asked(1)),
                (1, Kind::Invoke, asked(2)),
                (0, Kind::Ok, both(1)),
                (1, Kind::Ok, both(2)),
            ],
        );
        violated(skew, "G2-item");
    }

    #[test]
    fn what_was_refused_or_never_asked_for_must_not_be_read() {
        let refused = in_order(
            ListAppend,
            &[
                (Kind::Fail, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["r", 1, [1]]])),
            ],
        );
        violated(refused, "G1a");
        let invented = in_order(
            ListAppend,
            &[
                (Kind::Ok, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["r", 1, [1, 9]]])),
            ],
        );
        violated(invented, "event 2 has read 9 in key 1");
    }

    #[test]
    fn a_transaction_sees_what_it_has_written() {
        let blind = in_order(
            ListAppend,
            &[(Kind::Ok, json!([["append", 1, 1], ["r", 1, []]]))],
        );
        violated(blind, "internal");
        let forked = in_order(
            ListAppend,
            &[
                (Kind::Ok, json!([["append", 1, 1]])),
                (Kind::Ok, json!([["append", 1, 2]])),
                (Kind::Ok, json!([["r", 1, [1, 2]]])),
                (Kind::Ok, json!([["r", 1, [2, 1]]])),
            ],
        );
        violated(forked, "incompatible-order");
    }

    #[test]
    fn a_history_that_says_nothing_is_undecided() {
        let nothing = in_order(ListAppend, &[(Kind::Fail, json!([["append", 1, 1]]))]);
        assert!(matches!(nothing, Verdict::Undecided(_)));
    }

    #[test]
    fn registers_that_are_overwritten_in_order_hold() {
        let holds = in_order(
            RwRegister,
            &[
                (Kind::Ok, json!([["w", 1, 1], ["r", 2, null]])),
                (Kind::Ok, json!([["r", 1, 1], ["w", 1, 2]])),
                (Kind::Fail, json!([["w", 1, 3]])),
                (Kind::Info, json!([["w", 1, 4]])),
                (Kind::Ok, json!([["r", 1, 4], ["w", 2, 5]])),
                (Kind::Ok, json!([["r", 2, 5], ["r", 1, 4]])),
            ],
        );
        assert_eq!(holds, Verdict::Holds);
    }

    #[test]
    fn a_stale_read_of_a_register_is_found() {
        let stale = in_order(
            RwRegister,
            &[
                (Kind::Ok, json!([["w", 1, 1]])),
                (Kind::Ok, json!([["w", 1, 2]])),
                (Kind::Ok, json!([["r", 1, 1]])),
            ],
        );
        assert!(matches!(stale, Verdict::Violated(_)), "{stale:?}");
        let invented = in_order(
            RwRegister,
            &[
                (Kind::Ok, json!([["w", 1, 1]])),
                (Kind::Ok, json!([["r", 1, 7]])),
            ],
        );
        violated(invented, "event 2 has read 7 in key 1");
    }

    #[test]
    fn write_skew_over_registers_is_found() {
        let both = |own: i64| json!([["r", 1, null], ["r", 2, null], ["w", own, own]]);
        let skew = verdict(
            RwRegister,
            &[
                (0, Kind::Invoke, both(1)),
                (1, Kind::Invoke, both(2)),
                (0, Kind::Ok, both(1)),
                (1, Kind::Ok, both(2)),
            ],
        );
        assert!(matches!(skew, Verdict::Violated(_)), "{skew:?}");
    }

    #[test]
    fn a_write_that_was_lost_long_ago_is_missed_in_the_end() {
        let mut transactions: Vec<(Kind, Value)> = (0..3 * WINDOW as i64)
            .map(|n| (Kind::Ok, json!([["w", n / 10, n], ["r", n / 10, n]])))
            .collect();
        let last = |key: i64| json!(["r", key, 10 * key + 9]);
        let mut look: Vec<Value> = (0..3 * WINDOW as i64 / 10).map(last).collect();
        transactions.push((Kind::Ok, json!(look)));
        assert_eq!(in_order(RwRegister, &transactions), Verdict::Holds);
        look[5] = json!(["r", 5, 58]);
        transactions.push((Kind::Ok, json!(look)));
        let lost = in_order(RwRegister, &transactions);
        assert!(matches!(lost, Verdict::Violated(_)), "{lost:?}");
    }

    #[test]
    fn a_history_of_another_workload_is_refused() {
        for (workload, steps) in [
            (ListAppend, json!([["w", 1, 1]])),
            (ListAppend, json!([["r", 1, 1]])),
            (RwRegister, json!([["append", 1, 1]])),
            (RwRegister, json!([["r", 1, [1]]])),
        ] {
            let history = crate::history::History::new();
            history.invoke(0, "txn", steps.clone());
            history.complete(0, Kind::Ok, "txn", steps.clone(), None);
            let judged = check(&history.events().unwrap(), workload);
            assert!(judged.is_err(), "{workload:?} {steps}");
        }
    }
}
