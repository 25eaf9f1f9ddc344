//! Elle's method, by the crate `adya`: from what transactions have read follow
//! the order of the versions of each list, and from that which transaction
//! depends on which. A cycle of dependencies is a contradiction.
//!
//! The crate knows the real-time order, too: what was over before another began
//! (by their places in the history) precedes it. So the model asked for is strict
//! serializability, and a stale read is a cycle like any other. It is also how
//! an acknowledged append is missed that no later read shows.
//!
//! One thing it does not ask: whether anybody appended what was read at all.

use crate::history::{self, Event};
use crate::workload::Verdict;
use adya::{History, Opts, Valid};
use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// For each knot of transactions: beyond it some cycle is shown, not the worst.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);
/// So many contradictions of a kind are shown.
const SHOWN: usize = 3;

/// Judges a history.
///
/// # Errors
/// When it is no history of list-append.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let mut wrong = inventions(events)?;
    let report = {
        let lines: Vec<String> = events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.process.is_some())
            .map(|(index, event)| event.to_json(index).to_string())
            .collect();
        let history = History::from_json(&lines.join("\n")).map_err(|e| anyhow!("{e}"))?;
        let options = Opts {
            models: vec!["strict-serializable".to_owned()],
            timeout: SEARCH_TIMEOUT,
            ..Opts::default()
        };
        adya::check(&history, adya::Workload::ListAppend, &options)
    };
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

/// Numbers that were read and that nobody was to append.
fn inventions(events: &[Event]) -> Result<Vec<String>> {
    let operations = history::operations(events)?;
    let mut appended: HashSet<(i64, i64)> = HashSet::new();
    let mut read: Vec<(usize, i64, i64)> = Vec::new();
    for operation in &operations {
        let at = operation.invoked;
        let shape = || format!("event {at}: no operation of list-append");
        for step in operation.result.as_array().with_context(shape)? {
            let list = step[1].as_i64().with_context(shape)?;
            match (step[0].as_str(), &step[2]) {
                (Some("append"), number) => {
                    appended.insert((list, number.as_i64().with_context(shape)?));
                }
                (Some("r"), Value::Array(numbers)) => {
                    for number in numbers {
                        read.push((at, list, number.as_i64().with_context(shape)?));
                    }
                }
                (Some("r"), Value::Null) => {}
                _ => return Err(anyhow!(shape())),
            }
        }
    }
    let invented = read
        .into_iter()
        .filter(|(_, list, number)| !appended.contains(&(*list, *number)));
    let say = |(at, list, number)| {
        format!("event {at} has read {number} in list {list}, which nobody appended")
    };
    Ok(invented.map(say).take(SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Kind;
    use serde_json::json;

    /// A history line by line: process, kind, and the steps.
    fn verdict(lines: &[(u64, Kind, Value)]) -> Verdict {
        let history = crate::history::History::new();
        for (process, kind, steps) in lines {
            match kind {
                Kind::Invoke => history.invoke(*process, "txn", steps.clone()),
                _ => history.complete(*process, *kind, "txn", steps.clone(), None),
            }
        }
        history.fault("kill", json!("kvnode-1"));
        check(&history.events().unwrap()).unwrap()
    }

    /// Transactions one after the other.
    fn in_order(transactions: &[(Kind, Value)]) -> Verdict {
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
        verdict(&lines)
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
        let holds = in_order(&[
            (Kind::Ok, json!([["append", 1, 1], ["r", 2, []]])),
            (Kind::Ok, json!([["append", 2, 2], ["r", 1, [1]]])),
            (Kind::Fail, json!([["append", 2, 3]])),
            (Kind::Info, json!([["append", 2, 4], ["append", 1, 5]])),
            (Kind::Ok, json!([["r", 1, [1, 5]], ["r", 2, [2, 4]]])),
        ]);
        assert_eq!(holds, Verdict::Holds);
        // What nobody knows of may never have been.
        let holds = in_order(&[
            (Kind::Info, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["append", 1, 2]])),
            (Kind::Ok, json!([["r", 1, [2]]])),
        ]);
        assert_eq!(holds, Verdict::Holds);
    }

    #[test]
    fn a_stale_read_breaks_real_time_order_alone() {
        // Serializable: the reader could have come first, but it began later.
        let stale = in_order(&[
            (Kind::Ok, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["r", 1, []]])),
            (Kind::Ok, json!([["r", 1, [1]]])),
        ]);
        violated(stale, "G-single-item-realtime");
        // Side by side it is as well.
        let beside = verdict(&[
            (0, Kind::Invoke, json!([["append", 1, 1]])),
            (1, Kind::Invoke, json!([["r", 1, null]])),
            (0, Kind::Ok, json!([["append", 1, 1]])),
            (1, Kind::Ok, json!([["r", 1, []]])),
            (2, Kind::Invoke, json!([["r", 1, null]])),
            (2, Kind::Ok, json!([["r", 1, [1]]])),
        ]);
        assert_eq!(beside, Verdict::Holds);
    }

    #[test]
    fn an_acknowledged_append_that_is_lost_is_missed() {
        let lost = in_order(&[
            (Kind::Ok, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["append", 1, 2]])),
            (Kind::Ok, json!([["r", 1, [1]]])),
        ]);
        violated(lost, "G-single-item-realtime");
    }

    #[test]
    fn write_skew_is_found() {
        let both = |own: i64| json!([["r", 1, []], ["r", 2, []], ["append", own, own]]);
        let asked = |own: i64| json!([["r", 1, null], ["r", 2, null], ["append", own, own]]);
        let skew = verdict(&[
            (0, Kind::Invoke, asked(1)),
            (1, Kind::Invoke, asked(2)),
            (0, Kind::Ok, both(1)),
            (1, Kind::Ok, both(2)),
        ]);
        violated(skew, "G2-item");
    }

    #[test]
    fn what_was_refused_or_never_asked_for_must_not_be_read() {
        let refused = in_order(&[
            (Kind::Fail, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["r", 1, [1]]])),
        ]);
        violated(refused, "G1a");
        let invented = in_order(&[
            (Kind::Ok, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["r", 1, [1, 9]]])),
        ]);
        violated(invented, "event 2 has read 9 in list 1");
    }

    #[test]
    fn a_transaction_sees_what_it_has_written() {
        let blind = in_order(&[(Kind::Ok, json!([["append", 1, 1], ["r", 1, []]]))]);
        violated(blind, "internal");
        let forked = in_order(&[
            (Kind::Ok, json!([["append", 1, 1]])),
            (Kind::Ok, json!([["append", 1, 2]])),
            (Kind::Ok, json!([["r", 1, [1, 2]]])),
            (Kind::Ok, json!([["r", 1, [2, 1]]])),
        ]);
        violated(forked, "incompatible-order");
    }

    #[test]
    fn a_history_that_says_nothing_is_undecided() {
        let nothing = in_order(&[(Kind::Fail, json!([["append", 1, 1]]))]);
        assert!(matches!(nothing, Verdict::Undecided(_)));
    }
}
