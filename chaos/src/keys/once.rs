//! What must be true of transactions over keys that are written once.
//!
//! Whoever has seen a key comes after its writer, whoever has looked and not seen it
//! before it, and what was over before another began precedes it. There is nothing
//! else: a key has two versions, absent and written, so that no order of versions has
//! to be guessed. The history is strictly serializable exactly when these
//! dependencies have no cycle (Adya's DSG with real-time edges), and a cycle is the
//! proof that it is not.
//!
//! A write of unknown outcome took place if somebody has seen it, and is left out
//! otherwise: it may come at the very end.

use crate::history::{self, Event, Kind, Operation};
use crate::workload::Verdict;
use anyhow::{Context, Result, bail};
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;
use std::collections::{HashMap, HashSet, VecDeque};

/// So many contradictions are shown.
const SHOWN: usize = 3;

/// A transaction of the history.
struct Transaction<'a> {
    operation: Operation<'a>,
    /// Keys with what was seen there.
    read: Vec<(i64, Option<i64>)>,
    /// Keys with what was written there.
    written: Vec<(i64, i64)>,
}

/// What stands in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    /// The transaction of this place.
    Transaction(usize),
    /// The moment in which one ended. Moments are a chain, so that real-time order
    /// takes as many edges as there are transactions, not their square.
    Moment,
}

/// Why one node precedes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// It wrote the key that the other has seen.
    Seen(i64),
    /// It did not see the key that the other wrote.
    Missed(i64),
    /// It had ended before.
    Time,
}

/// Judges a history.
///
/// # Errors
/// When it is none of transactions over keys that are written once.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let transactions = operations.iter().map(Transaction::of);
    let transactions: Vec<Transaction> = transactions.collect::<Result<_>>()?;
    let mut writers = HashMap::new();
    for (place, transaction) in transactions.iter().enumerate() {
        for (key, _) in &transaction.written {
            if writers.insert(*key, place).is_some() {
                bail!("key {key} is written twice: this is no history of single writes");
            }
        }
    }
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for transaction in &transactions {
        for (key, value) in &transaction.read {
            let Some(value) = value else { continue };
            let at = transaction.operation.invoked;
            let writer = writers.get(key).map(|writer| &transactions[*writer]);
            match writer.filter(|writer| writer.written.contains(&(*key, *value))) {
                None => wrong.push(format!(
                    "event {at} has seen {value} in key {key}, which nobody wrote"
                )),
                Some(writer) if writer.operation.kind == Kind::Fail => {
                    wrong.push(format!("event {at} has seen key {key}, which was refused"));
                }
                Some(_) => {
                    seen.insert(*key);
                }
            }
        }
    }
    wrong.truncate(SHOWN);
    if transactions.iter().all(|t| t.read.is_empty()) {
        return Ok(Verdict::Undecided("nobody has read anything".to_owned()));
    }
    let graph = graph(events, &transactions, &writers, &seen);
    let mut knots = kosaraju_scc(&graph);
    knots.retain(|knot| knot.len() > 1);
    for knot in knots.iter().take(SHOWN) {
        let cycle = shortest_cycle(&graph, knot);
        wrong.push(explain(&graph, &transactions, &cycle));
    }
    if knots.len() > SHOWN {
        wrong.push(format!("{} more contradictions", knots.len() - SHOWN));
    }
    Ok(match wrong.is_empty() {
        true => Verdict::Holds,
        false => Verdict::Violated(wrong),
    })
}

impl<'a> Transaction<'a> {
    fn of(operation: &Operation<'a>) -> Result<Self> {
        let mut transaction = Transaction {
            operation: *operation,
            read: Vec::new(),
            written: Vec::new(),
        };
        let shape = || format!("event {}: no transaction over keys", operation.invoked);
        for step in operation.result.as_array().with_context(shape)? {
            let key = step[1].as_i64().with_context(shape)?;
            match step[0].as_str() {
                Some("w") => {
                    let value = step[2].as_i64().with_context(shape)?;
                    transaction.written.push((key, value));
                }
                Some("r") if operation.kind == Kind::Ok => {
                    let value = match &step[2] {
                        Value::Null => None,
                        number => Some(number.as_i64().with_context(shape)?),
                    };
                    transaction.read.push((key, value));
                }
                // What it would have read, had it taken place.
                Some("r") => {}
                _ => bail!(shape()),
            }
        }
        Ok(transaction)
    }

    fn took_place(&self, seen: &HashSet<i64>) -> bool {
        match self.operation.kind {
            Kind::Ok => true,
            Kind::Fail => false,
            Kind::Info | Kind::Invoke => self.written.iter().any(|(key, _)| seen.contains(key)),
        }
    }
}

fn graph(
    events: &[Event],
    transactions: &[Transaction],
    writers: &HashMap<i64, usize>,
    seen: &HashSet<i64>,
) -> DiGraph<Node, Edge> {
    let mut graph = DiGraph::new();
    let nodes: Vec<Option<NodeIndex>> = transactions
        .iter()
        .enumerate()
        .map(|(place, transaction)| {
            let node = Node::Transaction(place);
            transaction.took_place(seen).then(|| graph.add_node(node))
        })
        .collect();
    for (transaction, node) in transactions.iter().zip(&nodes) {
        let Some(reader) = *node else { continue };
        for (key, value) in &transaction.read {
            let writer = writers.get(key).and_then(|writer| nodes[*writer]);
            let Some(writer) = writer.filter(|writer| *writer != reader) else {
                continue;
            };
            match value {
                Some(_) => graph.add_edge(writer, reader, Edge::Seen(*key)),
                None => graph.add_edge(reader, writer, Edge::Missed(*key)),
            };
        }
    }
    let mut begun = HashMap::new();
    let mut ended = HashMap::new();
    for (transaction, node) in transactions.iter().zip(&nodes) {
        let Some(node) = *node else { continue };
        begun.insert(transaction.operation.invoked, node);
        if transaction.operation.kind == Kind::Ok {
            ended.extend(transaction.operation.completed.map(|at| (at, node)));
        }
    }
    let mut last: Option<NodeIndex> = None;
    for index in 0..events.len() {
        if let (Some(node), Some(last)) = (begun.get(&index), last) {
            graph.add_edge(last, *node, Edge::Time);
        }
        if let Some(node) = ended.get(&index) {
            let moment = graph.add_node(Node::Moment);
            graph.add_edge(*node, moment, Edge::Time);
            if let Some(last) = last {
                graph.add_edge(last, moment, Edge::Time);
            }
            last = Some(moment);
        }
    }
    graph
}

/// The shortest way from a node of the knot back to it; moments count as others do.
fn shortest_cycle(graph: &DiGraph<Node, Edge>, knot: &[NodeIndex]) -> Vec<NodeIndex> {
    let members: HashSet<NodeIndex> = knot.iter().copied().collect();
    let back = |start: NodeIndex| {
        let mut from: HashMap<NodeIndex, NodeIndex> = HashMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            for next in graph.neighbors(node).filter(|next| members.contains(next)) {
                if next == start {
                    let mut cycle = vec![node];
                    while let Some(before) = from.get(&cycle[cycle.len() - 1]) {
                        cycle.push(*before);
                    }
                    cycle.reverse();
                    return cycle;
                }
                if let std::collections::hash_map::Entry::Vacant(entry) = from.entry(next) {
                    entry.insert(node);
                    queue.push_back(next);
                }
            }
        }
        // Each node of a knot is on a cycle.
        Vec::new()
    };
    let transactions = knot.iter().filter(|node| graph[**node] != Node::Moment);
    let cycles = transactions.take(200).map(|node| back(*node));
    cycles.min_by_key(Vec::len).unwrap_or_default()
}

/// A cycle in words.
fn explain(
    graph: &DiGraph<Node, Edge>,
    transactions: &[Transaction],
    cycle: &[NodeIndex],
) -> String {
    // Begins with a transaction; moments between two of them are one line.
    let name = |place: usize| {
        let operation = &transactions[place].operation;
        let end = operation
            .completed
            .map_or_else(|| "?".to_owned(), |at| at.to_string());
        format!("T({}..{end})", operation.invoked)
    };
    let mut lines = Vec::new();
    let mut before: Option<(usize, Edge)> = None;
    let around = cycle.iter().chain(cycle.first());
    let around: Vec<NodeIndex> = around.copied().collect();
    for pair in around.windows(2) {
        let edge = graph.find_edge(pair[0], pair[1]).map(|edge| graph[edge]);
        if let Node::Transaction(place) = graph[pair[0]] {
            before = Some((place, edge.unwrap_or(Edge::Time)));
        }
        let (Some((place, why)), Node::Transaction(next)) = (before, graph[pair[1]]) else {
            continue;
        };
        let (name, next) = (name(place), name(next));
        lines.push(match why {
            Edge::Seen(key) => format!("  {name} wrote {key}, which {next} has seen"),
            Edge::Missed(key) => format!("  {name} has not seen {key}, which {next} wrote"),
            Edge::Time => format!("  {name} had ended when {next} began"),
        });
    }
    format!(
        "a cycle of {} transactions (by the events of their begin and end):\n{}",
        lines.len(),
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use serde_json::json;

    const INVOKE: Kind = Kind::Invoke;

    /// A history line by line: process, kind, and the steps.
    fn verdict(lines: &[(u64, Kind, Value)]) -> Verdict {
        let history = History::new();
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
        let lines: Vec<_> = transactions
            .iter()
            .enumerate()
            .flat_map(|(n, (kind, steps))| {
                let begun = (n as u64, INVOKE, steps.clone());
                [begun, (n as u64, *kind, steps.clone())]
            })
            .collect();
        verdict(&lines)
    }

    #[test]
    fn one_after_the_other_holds() {
        let holds = in_order(&[
            (Kind::Ok, json!([["w", 1, 1], ["r", 2, null]])),
            (Kind::Ok, json!([["w", 2, 2], ["r", 1, 1]])),
            (Kind::Fail, json!([["w", 3, 3]])),
            (Kind::Info, json!([["w", 4, 4], ["w", 5, 5]])),
            (Kind::Info, json!([["w", 6, 6]])),
            (
                Kind::Ok,
                json!([
                    ["r", 1, 1],
                    ["r", 3, null],
                    ["r", 4, 4],
                    ["r", 5, 5],
                    ["r", 6, null]
                ]),
            ),
        ]);
        assert_eq!(holds, Verdict::Holds);
        let blind = in_order(&[(Kind::Ok, json!([["w", 1, 1]]))]);
        assert!(matches!(blind, Verdict::Undecided(_)));
    }

    #[test]
    fn a_write_that_is_lost_or_stale_is_missed() {
        let lost = Verdict::reasons(in_order(&[
            (Kind::Ok, json!([["w", 1, 1]])),
            (Kind::Ok, json!([["r", 1, null]])),
        ]));
        assert_eq!(lost.len(), 1);
        let lines: Vec<&str> = lost[0].lines().collect();
        assert!(
            lines.contains(&"  T(0..1) had ended when T(2..3) began"),
            "{lines:?}"
        );
        let missed = "  T(2..3) has not seen 1, which T(0..1) wrote";
        assert!(lines.contains(&missed), "{lines:?}");
        // Side by side it is as well.
        let beside = verdict(&[
            (0, INVOKE, json!([["w", 1, 1]])),
            (1, INVOKE, json!([["r", 1, null]])),
            (0, Kind::Ok, json!([["w", 1, 1]])),
            (1, Kind::Ok, json!([["r", 1, null]])),
        ]);
        assert_eq!(beside, Verdict::Holds);
        // What was seen by one must be seen by who comes later, whatever its writer knows.
        let again = Verdict::reasons(verdict(&[
            (0, INVOKE, json!([["w", 1, 1]])),
            (1, INVOKE, json!([["r", 1, null]])),
            (1, Kind::Ok, json!([["r", 1, 1]])),
            (2, INVOKE, json!([["r", 1, null]])),
            (2, Kind::Ok, json!([["r", 1, null]])),
            (0, Kind::Info, json!([["w", 1, 1]])),
        ]));
        assert!(
            again[0].contains("T(1..2) had ended when T(3..4) began"),
            "{again:?}"
        );
    }

    #[test]
    fn what_was_refused_or_never_written_must_not_be_seen() {
        let refused = Verdict::reasons(in_order(&[
            (Kind::Fail, json!([["w", 1, 1]])),
            (Kind::Ok, json!([["r", 1, 1]])),
        ]));
        assert_eq!(refused, ["event 2 has seen key 1, which was refused"]);
        let invented = Verdict::reasons(in_order(&[(Kind::Ok, json!([["r", 7, 7]]))]));
        assert_eq!(
            invented,
            ["event 0 has seen 7 in key 7, which nobody wrote"]
        );
        let other = Verdict::reasons(in_order(&[
            (Kind::Ok, json!([["w", 1, 1]])),
            (Kind::Ok, json!([["r", 1, 9]])),
        ]));
        assert_eq!(other, ["event 2 has seen 9 in key 1, which nobody wrote"]);
        let early = Verdict::reasons(in_order(&[
            (Kind::Ok, json!([["r", 1, 1]])),
            (Kind::Ok, json!([["w", 1, 1]])),
        ]));
        assert!(
            early[0].contains("wrote 1, which T(0..1) has seen"),
            "{early:?}"
        );
    }

    #[test]
    fn two_readers_must_agree_on_the_order() {
        let forked = Verdict::reasons(verdict(&[
            (0, INVOKE, json!([["w", 1, 1]])),
            (1, INVOKE, json!([["w", 2, 2]])),
            (2, INVOKE, json!([])),
            (3, INVOKE, json!([])),
            (2, Kind::Ok, json!([["r", 1, 1], ["r", 2, null]])),
            (3, Kind::Ok, json!([["r", 2, 2], ["r", 1, null]])),
            (0, Kind::Ok, json!([["w", 1, 1]])),
            (1, Kind::Ok, json!([["w", 2, 2]])),
        ]));
        assert!(
            forked[0].starts_with("a cycle of 4 transactions"),
            "{forked:?}"
        );
    }

    #[test]
    fn a_later_write_is_not_seen_without_the_earlier_one() {
        // Serializable: the first writer could be the last.
        let reverse = |ended: Kind| {
            verdict(&[
                (2, INVOKE, json!([])),
                (0, INVOKE, json!([["w", 1, 1]])),
                (0, ended, json!([["w", 1, 1]])),
                (1, INVOKE, json!([["w", 2, 2]])),
                (1, Kind::Ok, json!([["w", 2, 2]])),
                (2, Kind::Ok, json!([["r", 2, 2], ["r", 1, null]])),
            ])
        };
        assert!(Verdict::reasons(reverse(Kind::Ok))[0].starts_with("a cycle of 3"));
        assert_eq!(reverse(Kind::Info), Verdict::Holds);
    }

    #[test]
    fn write_skew_is_found() {
        let skew = Verdict::reasons(verdict(&[
            (0, INVOKE, json!([["w", 1, 1]])),
            (1, INVOKE, json!([["w", 2, 2]])),
            (
                0,
                Kind::Ok,
                json!([["r", 1, null], ["r", 2, null], ["w", 1, 1]]),
            ),
            (
                1,
                Kind::Ok,
                json!([["r", 1, null], ["r", 2, null], ["w", 2, 2]]),
            ),
        ]));
        assert!(skew[0].starts_with("a cycle of 2 transactions"), "{skew:?}");
    }

    #[test]
    fn a_transaction_is_seen_whole() {
        let torn = Verdict::reasons(verdict(&[
            (0, INVOKE, json!([["w", 1, 1], ["w", 2, 2]])),
            (1, INVOKE, json!([])),
            (1, Kind::Ok, json!([["r", 1, 1], ["r", 2, null]])),
            (0, Kind::Info, json!([["w", 1, 1], ["w", 2, 2]])),
        ]));
        assert!(torn[0].starts_with("a cycle of 2 transactions"), "{torn:?}");
    }

    #[test]
    fn a_history_of_overwrites_is_none_of_these() {
        let history = History::new();
        for process in 0..2 {
            history.invoke(process, "txn", json!([["w", 1, 1]]));
        }
        assert!(check(&history.events().unwrap()).is_err());
    }
}
