//! The history of registers, register by register: linearizability is local, so
//! that each must have an order of its own and no more.

use crate::history::{self, Event, Kind, Operation};
use crate::linear::{self, Action, Answer, Call, Linearizable};
use crate::workload::Verdict;
use anyhow::{Context, Result};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// Events of a register that are shown around the one that had no place.
const SHOWN: usize = 12;

/// Judges a history.
///
/// # Errors
/// When it is no history of registers.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let mut registers: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    let mut known = false;
    for operation in &operations {
        let at = operation.invoked;
        let shape = || format!("event {at}: no operation of a register");
        let register = operation.arguments[0].as_str().with_context(shape)?;
        let calls = registers.entry(register).or_default();
        known |= operation.kind == Kind::Ok;
        if let Some(action) = action_of(operation).with_context(shape)? {
            calls.push(Call {
                action,
                invoked: at,
                returned: operation.completed.filter(|_| operation.kind == Kind::Ok),
            });
        }
    }
    let (mut wrong, mut open) = (Vec::new(), Vec::new());
    for (register, calls) in &registers {
        match linear::check(calls) {
            Linearizable::Yes => {}
            Linearizable::No { value, stuck } => {
                let around = around(events, register, stuck);
                wrong.push(format!(
                    "{register} is not linearizable: with {value:?} in it, there is no place for \
                     the operation at event {}\n{around}",
                    stuck.invoked
                ));
            }
            Linearizable::Undecided => open.push(*register),
        }
    }
    Ok(match (wrong.is_empty(), open.is_empty()) {
        (false, _) => Verdict::Violated(wrong),
        (true, false) => Verdict::Undecided(format!("too many possibilities: {}", open.join(", "))),
        (true, true) if !known => Verdict::Undecided("no operation took place".to_owned()),
        (true, true) => Verdict::Holds,
    })
}

/// What is known of an operation: two layers of `None`, for one that makes no
/// sense, and for one that says nothing.
fn action_of(operation: &Operation) -> Option<Option<Action>> {
    if operation.kind == Kind::Fail {
        return Some(None);
    }
    let done = operation.kind == Kind::Ok;
    let value = &operation.result[1];
    Some(match operation.function {
        "read" if !done => None,
        "read" => Some(Action::Read(value_of(value)?)),
        "write" => Some(Action::Write(value_of(value)?)),
        "cas" => {
            let answer = &operation.result[2];
            Some(Action::CompareAndSet {
                expected: value_of(&value[0])?,
                new: value_of(&value[1])?,
                answer: match answer[0].as_str() {
                    _ if !done => Answer::Unknown,
                    Some("set") => Answer::Set,
                    Some("differs") => Answer::Differs,
                    Some("found") => Answer::Found(value_of(&answer[1])?),
                    _ => return None,
                },
            })
        }
        _ => return None,
    })
}

fn value_of(value: &Json) -> Option<linear::Value> {
    match value {
        Json::Null => Some(None),
        number => Some(Some(number.as_i64()?)),
    }
}

/// The events of a register up to the end of the call without a place.
fn around(events: &[Event], register: &str, stuck: Call) -> String {
    let last = stuck.returned.unwrap_or(stuck.invoked);
    let own = |(_, event): &(usize, &Event)| event.value[0] == register;
    let lines = events.iter().enumerate().filter(own);
    let mut lines: Vec<String> = lines
        .take_while(|(index, _)| *index <= last)
        .map(|(index, event)| format!("  {}", event.to_json(index)))
        .collect();
    lines.drain(..lines.len().saturating_sub(SHOWN));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::{Register, Store, result_of};
    use super::*;
    use crate::history::History;
    use serde_json::json;

    /// A history of one register, operation by operation.
    fn verdict(operations: &[(&str, Kind, Json)]) -> Verdict {
        let history = History::new();
        for (n, (function, kind, value)) in operations.iter().enumerate() {
            history.invoke(n as u64, function, value.clone());
            history.complete(n as u64, *kind, function, value.clone(), None);
        }
        check(&history.events().unwrap()).unwrap()
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let register = Register {
            store: Store::Kv,
            number: 3,
        };
        let answers = [
            Answer::Set,
            Answer::Differs,
            Answer::Found(None),
            Answer::Found(Some(4)),
        ];
        let mut actions = vec![
            ("read", Action::Read(None)),
            ("read", Action::Read(Some(1))),
            ("write", Action::Write(None)),
            ("write", Action::Write(Some(2))),
        ];
        actions.extend(answers.map(|answer| {
            let (expected, new) = (Some(1), None);
            let action = Action::CompareAndSet {
                expected,
                new,
                answer,
            };
            ("cas", action)
        }));
        for (function, action) in actions {
            let result = result_of(register, action);
            assert_eq!(result[0], "kv/3");
            let operation = Operation {
                function,
                arguments: &result,
                result: &result,
                kind: Kind::Ok,
                invoked: 0,
                completed: Some(1),
            };
            assert_eq!(action_of(&operation), Some(Some(action)));
        }
    }

    #[test]
    fn each_register_has_an_order_of_its_own() {
        let good = verdict(&[
            ("write", Kind::Ok, json!(["kv/1", 1])),
            ("read", Kind::Ok, json!(["table/1", null])),
            ("read", Kind::Info, json!(["kv/1", null])),
            ("write", Kind::Fail, json!(["kv/1", 2])),
            ("cas", Kind::Ok, json!(["kv/1", [1, 3], ["set"]])),
            ("read", Kind::Ok, json!(["kv/1", 3])),
        ]);
        assert_eq!(good, Verdict::Holds);
    }

    #[test]
    fn a_lost_write_is_shown_with_its_events() {
        let lost = verdict(&[
            ("write", Kind::Ok, json!(["kv/1", 1])),
            ("write", Kind::Ok, json!(["kv/2", 2])),
            ("read", Kind::Ok, json!(["kv/1", null])),
        ]);
        let Verdict::Violated(reasons) = lost else {
            panic!("{lost:?}");
        };
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].starts_with("kv/1 is not linearizable"));
        assert!(reasons[0].contains("event 4"), "{reasons:?}");
        assert_eq!(reasons[0].lines().count(), 5, "{reasons:?}");
    }

    #[test]
    fn a_write_that_failed_must_not_be_read() {
        let failed = verdict(&[
            ("write", Kind::Fail, json!(["kv/1", 1])),
            ("read", Kind::Ok, json!(["kv/1", 1])),
        ]);
        assert!(matches!(failed, Verdict::Violated(_)));
        let unknown = verdict(&[
            ("cas", Kind::Info, json!(["kv/1", [null, 1]])),
            ("read", Kind::Ok, json!(["kv/1", 1])),
        ]);
        assert_eq!(unknown, Verdict::Holds);
        let nothing = verdict(&[("write", Kind::Fail, json!(["kv/1", 1]))]);
        assert!(matches!(nothing, Verdict::Undecided(_)));
    }
}
