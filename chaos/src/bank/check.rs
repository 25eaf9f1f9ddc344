//! What must be true of a bank, whatever happened to it.

use super::{OPENING_BALANCE, Transfer};
use crate::history::{self, Event, Kind};
use crate::workload::Verdict;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// Judges a history by what was seen of the bank: no look at the balances, at
/// any time, finds money made or lost. The last look finds every transfer that
/// was acknowledged in the ledger, none that was refused, those of unknown
/// outcome whole or not at all, and balances that follow from it.
///
/// # Errors
/// When it is no history of a bank.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let mut wrong = Vec::new();
    let mut transfers: BTreeMap<i64, (Transfer, Kind)> = BTreeMap::new();
    let mut last = None;
    for operation in &operations {
        let shape = || format!("event {}: no operation of a bank", operation.invoked);
        if operation.function == "transfer" {
            let transfer = transfer_of(operation.arguments).with_context(shape)?;
            transfers.insert(transfer.id, (transfer, operation.kind));
            continue;
        }
        if operation.kind != Kind::Ok {
            continue;
        }
        let seen = match operation.function {
            "state" => {
                last = Some(operation.result);
                &operation.result["balances"]
            }
            // One snapshot of both, however old.
            "past" => {
                let (balances, ledger) = state_of(operation.result).with_context(shape)?;
                let at = operation.completed.unwrap_or(operation.invoked);
                let unexplained = unexplained(&ledger, &balances);
                wrong.extend(unexplained.map(|what| format!("event {at}: {what}")));
                &operation.result["balances"]
            }
            _ => operation.result,
        };
        let balances = balances_of(seen).with_context(shape)?;
        let (sum, expected) = (
            balances.values().sum::<i64>(),
            balances.len() as i64 * OPENING_BALANCE,
        );
        if sum != expected {
            let at = operation.completed.unwrap_or(operation.invoked);
            wrong.push(format!(
                "event {at}: the balances sum to {sum}, not to {expected}"
            ));
        }
    }
    let Some(last) = last else {
        return Ok(Verdict::Undecided("nobody looked at the ledger".to_owned()));
    };
    let (balances, ledger) = state_of(last).context("a state has balances and a ledger")?;
    wrong.extend(compare(&transfers, &ledger, &balances));
    Ok(match wrong.is_empty() {
        true => Verdict::Holds,
        false => Verdict::Violated(wrong),
    })
}

fn compare(
    transfers: &BTreeMap<i64, (Transfer, Kind)>,
    ledger: &[Transfer],
    balances: &BTreeMap<i32, i64>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut recorded = BTreeMap::new();
    for line in ledger {
        if recorded.insert(line.id, *line).is_some() {
            wrong.push(format!("transfer {} stands in the ledger twice", line.id));
        }
    }
    for (id, line) in &recorded {
        match transfers.get(id) {
            None => wrong.push(format!("nobody made transfer {id}")),
            Some((made, _)) if made != line => {
                wrong.push(format!(
                    "transfer {made:?} stands in the ledger as {line:?}"
                ));
            }
            Some((_, Kind::Fail)) => {
                wrong.push(format!("transfer {id} was refused and is there"));
            }
            Some(_) => {}
        }
    }
    for (id, (_, kind)) in transfers {
        if *kind == Kind::Ok && !recorded.contains_key(id) {
            wrong.push(format!("transfer {id} was acknowledged and is lost"));
        }
    }
    wrong.extend(unexplained(ledger, balances));
    wrong
}

/// The balances that do not follow from the ledger.
fn unexplained(ledger: &[Transfer], balances: &BTreeMap<i32, i64>) -> impl Iterator<Item = String> {
    let mut expected: BTreeMap<i32, i64> =
        balances.keys().map(|id| (*id, OPENING_BALANCE)).collect();
    for line in ledger {
        *expected.entry(line.source).or_default() -= line.amount;
        *expected.entry(line.target).or_default() += line.amount;
    }
    expected.into_iter().filter_map(|(account, balance)| {
        let found = balances.get(&account);
        (found != Some(&balance))
            .then(|| format!("account {account} has {found:?}, the ledger says {balance}"))
    })
}

fn state_of(seen: &Value) -> Option<(BTreeMap<i32, i64>, Vec<Transfer>)> {
    let ledger = seen["ledger"].as_array()?.iter().map(transfer_of);
    Some((
        balances_of(&seen["balances"])?,
        ledger.collect::<Option<_>>()?,
    ))
}

fn transfer_of(line: &Value) -> Option<Transfer> {
    Some(Transfer {
        id: line[0].as_i64()?,
        source: i32::try_from(line[1].as_i64()?).ok()?,
        target: i32::try_from(line[2].as_i64()?).ok()?,
        amount: line[3].as_i64()?,
    })
}

fn balances_of(seen: &Value) -> Option<BTreeMap<i32, i64>> {
    let balance = |line: &Value| {
        let account = i32::try_from(line[0].as_i64()?).ok()?;
        Some((account, line[1].as_i64()?))
    };
    seen.as_array()?.iter().map(balance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use serde_json::json;

    /// A bank of two accounts: transfers with their outcomes, and the last look.
    fn verdict(transfers: &[(Value, Kind)], balances: Value, ledger: Value) -> Verdict {
        let history = History::new();
        for (n, (transfer, kind)) in transfers.iter().enumerate() {
            let n = n as u64;
            history.invoke(n, "transfer", transfer.clone());
            history.complete(n, *kind, "transfer", transfer.clone(), None);
        }
        history.invoke(99, "state", Value::Null);
        let state = json!({ "balances": balances, "ledger": ledger });
        history.complete(99, Kind::Ok, "state", state, None);
        check(&history.events().unwrap()).unwrap()
    }

    #[test]
    fn money_that_moved_as_the_ledger_says_is_well() {
        let done = || vec![(json!([1, 0, 1, 10]), Kind::Ok)];
        let after = json!([[0, 990], [1, 1010]]);
        let good = verdict(&done(), after.clone(), json!([[1, 0, 1, 10]]));
        assert_eq!(good, Verdict::Holds);
        // A transfer of unknown outcome may be there or not.
        let mut unknown = done();
        unknown.push((json!([2, 1, 0, 3]), Kind::Info));
        let absent = verdict(&unknown, after, json!([[1, 0, 1, 10]]));
        assert_eq!(absent, Verdict::Holds);
        let present = verdict(
            &unknown,
            json!([[0, 993], [1, 1007]]),
            json!([[2, 1, 0, 3], [1, 0, 1, 10]]),
        );
        assert_eq!(present, Verdict::Holds);
    }

    #[test]
    fn whatever_is_wrong_is_said() {
        let one = [(json!([1, 0, 1, 10]), Kind::Ok)];
        let still = json!([[0, 1000], [1, 1000]]);
        let lost = Verdict::reasons(verdict(&one, still.clone(), json!([])));
        assert!(lost[0].contains("acknowledged and is lost"), "{lost:?}");
        let made = json!([[0, 1000], [1, 1010]]);
        let made = Verdict::reasons(verdict(&one, made, json!([[1, 0, 1, 10]])));
        assert!(made[0].contains("sum to 2010"), "{made:?}");
        assert!(made[1].contains("account 0"), "{made:?}");
        let other = json!([[0, 980], [1, 1020]]);
        let other = Verdict::reasons(verdict(&one, other, json!([[1, 0, 1, 20]])));
        assert!(other[0].contains("stands in the ledger as"), "{other:?}");

        let refused = [(json!([1, 0, 1, 10]), Kind::Fail)];
        let there = json!([[0, 990], [1, 1010]]);
        let there = Verdict::reasons(verdict(&refused, there, json!([[1, 0, 1, 10]])));
        assert!(there[0].contains("was refused and is there"), "{there:?}");
        let nobody = json!([[0, 990], [1, 1010]]);
        let nobody = Verdict::reasons(verdict(&[], nobody, json!([[7, 0, 1, 10]])));
        assert!(nobody[0].contains("nobody made transfer 7"), "{nobody:?}");
        let half = [(json!([1, 0, 1, 10]), Kind::Info)];
        let half = Verdict::reasons(verdict(&half, still, json!([[1, 0, 1, 10]])));
        assert!(half[0].contains("account 0"), "{half:?}");
    }

    #[test]
    fn a_look_in_between_counts_and_a_history_without_an_end_says_nothing() {
        let history = History::new();
        history.invoke(0, "balances", Value::Null);
        history.complete(0, Kind::Ok, "balances", json!([[0, 999], [1, 1000]]), None);
        let events = history.events().unwrap();
        assert!(matches!(check(&events).unwrap(), Verdict::Undecided(_)));
        history.invoke(0, "state", Value::Null);
        let state = json!({ "balances": [[0, 1000], [1, 1000]], "ledger": [] });
        history.complete(0, Kind::Ok, "state", state, None);
        let seen = Verdict::reasons(check(&history.events().unwrap()).unwrap());
        assert!(
            seen[0].contains("event 1: the balances sum to 1999"),
            "{seen:?}"
        );
    }

    #[test]
    fn the_past_was_as_whole_as_now() {
        let past = |balances: Value, ledger: Value| {
            let history = History::new();
            history.invoke(0, "past", Value::Null);
            let seen = json!({ "balances": balances, "ledger": ledger });
            history.complete(0, Kind::Ok, "past", seen, None);
            history.invoke(0, "state", Value::Null);
            let state = json!({ "balances": [[0, 1000], [1, 1000]], "ledger": [] });
            history.complete(0, Kind::Ok, "state", state, None);
            check(&history.events().unwrap()).unwrap()
        };
        // Whatever it was: here of a transfer that is judged elsewhere.
        let moved = json!([[0, 990], [1, 1010]]);
        assert_eq!(past(moved.clone(), json!([[1, 0, 1, 10]])), Verdict::Holds);
        let torn = Verdict::reasons(past(moved, json!([])));
        assert!(torn[0].contains("event 1: account 0 has"), "{torn:?}");
    }
}
