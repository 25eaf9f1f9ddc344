//! Timestamps of the KV API (Jepsen's monotonic): every answer says at which timestamp
//! its operation took place, and every version when it was written. They must tell one
//! story: a write is later than all writes that were over when it began, whatever node
//! has taken it (T5: commit wait), and a read sees of each key the last version at its
//! own timestamp.

use crate::harness::Cluster;
use crate::history::{self, Event, Kind, Operation};
use crate::kv::{Connections, in_time};
use crate::workload::{Client, Outcome, Verdict, Workload};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lineradb_proto::kv::v1::operation::Operation as Call;
use lineradb_proto::kv::v1::{GetOperation, Operation as KvOperation, PutOperation, TxnRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Few enough for clients to meet.
const KEYS: u64 = 6;
/// Longest transaction.
const STEPS_MAX: usize = 3;
/// So many contradictions are shown.
const SHOWN: usize = 5;

/// The workload.
pub struct Timestamps {
    seed: u64,
    /// The last number that anybody was to write.
    written: Arc<AtomicI64>,
}

impl Timestamps {
    /// With clients whose operations follow from a seed.
    pub fn new(seed: u64) -> Self {
        Timestamps {
            seed,
            written: Arc::default(),
        }
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("times/{number}"))
}

impl Workload for Timestamps {
    type Client = TimestampClient;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        cluster.split_at_key(&key(KEYS / 2)).await
    }

    fn client(&self, cluster: &Cluster, number: usize) -> TimestampClient {
        TimestampClient {
            connections: Connections::new(cluster.kv_addresses.clone(), number),
            chance: StdRng::seed_from_u64(self.seed.wrapping_add(number as u64)),
            written: self.written.clone(),
        }
    }

    fn closing(&self, _: usize) -> Vec<Vec<Step>> {
        vec![(0..KEYS).map(Step::Read).collect()]
    }
}

/// A part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads a key.
    Read(u64),
    /// Writes a number, which is written nowhere else.
    Write(u64, i64),
}

/// A client of the KV API.
pub struct TimestampClient {
    connections: Connections,
    chance: StdRng,
    written: Arc<AtomicI64>,
}

impl Client for TimestampClient {
    type Operation = Vec<Step>;

    async fn ready(&mut self) -> bool {
        self.connections.ready().await
    }

    /// Each key at most once.
    fn draw(&mut self) -> Vec<Step> {
        let steps = self.chance.random_range(1..=STEPS_MAX);
        let keys = rand::seq::index::sample(&mut self.chance, KEYS as usize, steps);
        let step = |key| match self.chance.random() {
            true => Step::Read(key as u64),
            false => Step::Write(key as u64, self.written.fetch_add(1, Ordering::Relaxed) + 1),
        };
        keys.into_iter().map(step).collect()
    }

    fn invocation(steps: &Vec<Step>) -> (&'static str, Value) {
        let step = |step: &Step| match *step {
            Step::Read(key) => json!(["r", key, null]),
            Step::Write(key, number) => json!(["w", key, number]),
        };
        let steps: Value = steps.iter().map(step).collect();
        ("txn", json!({ "steps": steps }))
    }

    async fn run(&mut self, steps: &Vec<Step>) -> Result<Outcome> {
        let call = |step: &Step| match *step {
            Step::Read(number) => Call::Get(GetOperation { key: key(number) }),
            Step::Write(number, value) => Call::Put(PutOperation {
                key: key(number),
                value: Bytes::from(value.to_string()),
            }),
        };
        let operation = |step| KvOperation {
            operation: Some(call(step)),
        };
        let request = TxnRequest {
            success: steps.iter().map(operation).collect(),
            ..TxnRequest::default()
        };
        let txn = self.connections.request(async move |mut client| {
            let answer = client.txn(in_time(request)).await?;
            Ok(answer.into_inner())
        });
        let answer = match txn.await? {
            Ok(answer) => answer,
            Err(failure) => return Ok(failure.into()),
        };
        let header = answer.header.context("a response has a header")?;
        if answer.results.len() != steps.len() {
            bail!("{steps:?} was answered by {} results", answer.results.len());
        }
        let mut done = Vec::with_capacity(steps.len());
        for (step, result) in steps.iter().zip(answer.results) {
            done.push(match *step {
                Step::Write(key, number) => json!(["w", key, number]),
                Step::Read(key) if !result.found => json!(["r", key, null]),
                Step::Read(key) => {
                    let text = std::str::from_utf8(&result.value).context("never written")?;
                    let number: i64 = text.parse().context("never written")?;
                    json!(["r", key, number, result.version])
                }
            });
        }
        Ok(Outcome::Ok(
            json!({ "ts": header.timestamp, "steps": done }),
        ))
    }
}

/// A transaction of the history.
struct Transaction<'a> {
    operation: Operation<'a>,
    /// When it took place: its own answer says so, or whoever has read what it wrote.
    timestamp: Option<u64>,
    /// Keys and numbers.
    writes: Vec<(u64, i64)>,
    /// Keys with the number found there, and when that was written.
    reads: Vec<(u64, Option<(i64, u64)>)>,
}

impl<'a> Transaction<'a> {
    fn of(operation: &Operation<'a>) -> Result<Self> {
        let mut transaction = Transaction {
            operation: *operation,
            timestamp: operation.result["ts"].as_u64(),
            writes: Vec::new(),
            reads: Vec::new(),
        };
        let shape = || format!("event {}: none of this workload", operation.invoked);
        for step in operation.result["steps"].as_array().with_context(shape)? {
            let key = step[1].as_u64().with_context(shape)?;
            match step[0].as_str() {
                Some("w") => {
                    let number = step[2].as_i64().with_context(shape)?;
                    transaction.writes.push((key, number));
                }
                Some("r") if operation.kind == Kind::Ok => {
                    let found = step[2].as_i64().zip(step[3].as_u64());
                    transaction.reads.push((key, found));
                }
                Some("r") => {}
                _ => bail!(shape()),
            }
        }
        Ok(transaction)
    }
}

/// Judges a history.
///
/// # Errors
/// When it is none of this workload.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let transactions = operations.iter().map(Transaction::of);
    let mut transactions: Vec<Transaction> = transactions.collect::<Result<_>>()?;
    if transactions.iter().all(|t| t.reads.is_empty()) {
        return Ok(Verdict::Undecided("nobody has read anything".to_owned()));
    }
    let mut wrong = out_of_order(events.len(), &transactions);
    wrong.extend(misdated(&mut transactions));
    wrong.extend(missed(&transactions));
    wrong.truncate(SHOWN);
    Ok(match wrong.is_empty() {
        true => Verdict::Holds,
        false => Verdict::Violated(wrong),
    })
}

/// Operations at timestamps that are not above those of the writes that were over, or had
/// been seen, before them. A read may be at the timestamp of a write, another write may not.
fn out_of_order(events: usize, transactions: &[Transaction]) -> Vec<String> {
    let mut begun: HashMap<usize, &Transaction> = HashMap::new();
    let mut ended: HashMap<usize, u64> = HashMap::new();
    for transaction in transactions {
        let operation = &transaction.operation;
        let (Some(timestamp), Some(end)) = (transaction.timestamp, operation.completed) else {
            continue;
        };
        begun.insert(operation.invoked, transaction);
        let seen = transaction.reads.iter().filter_map(|(_, found)| *found);
        let own = (!transaction.writes.is_empty()).then_some(timestamp);
        let known = seen.map(|(_, version)| version).chain(own).max();
        ended.extend(known.map(|known| (end, known)));
    }
    let mut wrong = Vec::new();
    let mut floor = 0;
    for index in 0..events {
        if let Some(transaction) = begun.get(&index)
            && let Some(timestamp) = transaction.timestamp
            && (timestamp < floor || (!transaction.writes.is_empty() && timestamp == floor))
        {
            wrong.push(format!(
                "event {index} took place at {timestamp}, but a write that was known before at {floor}"
            ));
        }
        if let Some(known) = ended.get(&index) {
            floor = floor.max(*known);
        }
    }
    wrong
}

/// Reads of what nobody wrote, or not then. From them the timestamps of writes are learnt
/// whose own clients do not know them.
fn misdated(transactions: &mut [Transaction]) -> Vec<String> {
    let mut writers: HashMap<(u64, i64), usize> = HashMap::new();
    let mut reads = Vec::new();
    for (place, transaction) in transactions.iter().enumerate() {
        writers.extend(transaction.writes.iter().map(|write| (*write, place)));
        let event = transaction.operation.invoked;
        let found = transaction.reads.iter();
        let found = found.filter_map(|(key, found)| Some((event, *key, (*found)?)));
        reads.extend(found);
    }
    let mut wrong = Vec::new();
    for (event, key, (number, version)) in reads {
        let Some(writer) = writers.get(&(key, number)) else {
            wrong.push(format!(
                "event {event} has read {number} in key {key}, which nobody wrote"
            ));
            continue;
        };
        let writer = &mut transactions[*writer];
        if writer.operation.kind == Kind::Fail {
            wrong.push(format!(
                "event {event} has read {number}, which was refused"
            ));
        }
        let written = *writer.timestamp.get_or_insert(version);
        if written != version {
            wrong.push(format!(
                "event {event} has read {number} as of {version}, and it was written at {written}"
            ));
        }
    }
    wrong
}

/// Reads that did not see the last version at their timestamps.
fn missed(transactions: &[Transaction]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut versions: HashMap<u64, BTreeMap<u64, i64>> = HashMap::new();
    for transaction in transactions {
        let Some(timestamp) = transaction.timestamp else {
            continue;
        };
        for (key, number) in &transaction.writes {
            let of_key = versions.entry(*key).or_default();
            if let Some(other) = of_key.insert(timestamp, *number) {
                wrong.push(format!(
                    "{number} and {other} were written to one key at {timestamp}"
                ));
            }
        }
    }
    for transaction in transactions {
        let Some(timestamp) = transaction.timestamp else {
            continue;
        };
        for (key, found) in &transaction.reads {
            // No transaction reads what it writes.
            let of_key = versions.get(key);
            let last = of_key.and_then(|of_key| of_key.range(..=timestamp).next_back());
            let last = last.map(|(_, number)| *number);
            let found = found.map(|(number, _)| number);
            if last != found {
                wrong.push(format!(
                    "event {} has read {found:?} in key {key} at {timestamp}, where {last:?} was the last",
                    transaction.operation.invoked
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    /// Transactions one after the other: when, and what.
    fn verdict(transactions: &[(Kind, u64, Value)]) -> Verdict {
        let history = History::new();
        for (n, (kind, timestamp, steps)) in transactions.iter().enumerate() {
            let n = n as u64;
            history.invoke(n, "txn", json!({ "steps": steps }));
            let value = match kind {
                Kind::Ok => json!({ "ts": timestamp, "steps": steps }),
                _ => json!({ "steps": steps }),
            };
            history.complete(n, *kind, "txn", value, None);
        }
        check(&history.events().unwrap()).unwrap()
    }

    fn reason(verdict: Verdict) -> String {
        verdict.reasons().remove(0)
    }

    #[test]
    fn each_read_sees_the_last_version_at_its_timestamp() {
        let good = verdict(&[
            (Kind::Ok, 10, json!([["w", 1, 1], ["r", 2, null]])),
            (Kind::Ok, 20, json!([["w", 1, 2]])),
            (Kind::Info, 0, json!([["w", 1, 3]])),
            (Kind::Info, 0, json!([["w", 1, 4]])),
            (Kind::Fail, 0, json!([["w", 1, 5]])),
            (Kind::Ok, 20, json!([["r", 1, 2, 20]])),
            (Kind::Ok, 40, json!([["r", 1, 4, 30]])),
        ]);
        assert_eq!(good, Verdict::Holds);
        let blind = verdict(&[(Kind::Ok, 10, json!([["w", 1, 1]]))]);
        assert!(matches!(blind, Verdict::Undecided(_)));
    }

    #[test]
    fn a_write_is_later_than_what_was_over() {
        let read = || (Kind::Ok, 50, json!([["r", 9, null]]));
        let same = [
            (Kind::Ok, 10, json!([["w", 1, 1]])),
            (Kind::Ok, 10, json!([["w", 2, 2]])),
            read(),
        ];
        assert!(reason(verdict(&same)).starts_with("event 2 took place at 10"));
        let early = [
            (Kind::Ok, 10, json!([["w", 1, 1]])),
            (Kind::Ok, 9, json!([["r", 2, null]])),
        ];
        assert!(reason(verdict(&early)).starts_with("event 2 took place at 9"));
        // What was only read promises nothing of later timestamps.
        assert_eq!(
            verdict(&[read(), (Kind::Ok, 10, json!([["w", 1, 1]]))]),
            Verdict::Holds
        );
    }

    #[test]
    fn whatever_is_wrong_is_said() {
        let one = || (Kind::Ok, 10, json!([["w", 1, 1]]));
        for (then, why) in [
            (
                json!([["r", 1, null]]),
                "has read None in key 1 at 20, where Some(1) was the last",
            ),
            (
                json!([["r", 1, 1, 11]]),
                "as of 11, and it was written at 10",
            ),
            (json!([["r", 2, 1, 10]]), "in key 2, which nobody wrote"),
            (
                json!([["r", 1, 7, 10]]),
                "has read 7 in key 1, which nobody wrote",
            ),
        ] {
            let said = reason(verdict(&[one(), (Kind::Ok, 20, then)]));
            assert!(said.contains(why), "{said}");
        }
        let refused = [
            (Kind::Fail, 0, json!([["w", 1, 1]])),
            (Kind::Ok, 20, json!([["r", 1, 1, 15]])),
        ];
        assert!(reason(verdict(&refused)).contains("which was refused"));
        let later = [
            one(),
            (Kind::Info, 0, json!([["w", 1, 2]])),
            (Kind::Ok, 30, json!([["r", 1, 2, 20]])),
            (Kind::Ok, 30, json!([["r", 1, 1, 10]])),
        ];
        assert!(reason(verdict(&later)).contains("where Some(2) was the last"));
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_whole_or_not_at_all() {
        let torn = verdict(&[
            (Kind::Info, 0, json!([["w", 1, 1], ["w", 2, 2]])),
            (Kind::Ok, 40, json!([["r", 1, 1, 30]])),
            (Kind::Ok, 50, json!([["r", 2, null]])),
        ]);
        assert!(reason(torn).contains("where Some(2) was the last"));
    }

    #[test]
    fn nothing_takes_place_before_what_was_seen() {
        let early = verdict(&[
            (Kind::Info, 0, json!([["w", 1, 1]])),
            (Kind::Ok, 40, json!([["r", 1, 1, 30]])),
            (Kind::Ok, 20, json!([["w", 2, 2]])),
        ]);
        assert!(reason(early).starts_with("event 4 took place at 20"));
    }
}
