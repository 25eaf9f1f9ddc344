//! Counters: rows that many clients increment, by single statements and two at a time.
//! An increment answers what it has made of the counter (`UPDATE ... RETURNING`), so
//! that the increments of a counter are numbered: none twice, and none out of order.

use crate::harness::Cluster;
use crate::history::{self, Event, Kind};
use crate::script::{Script, SqlClient, Unserved};
use crate::sql::{Failure, Session, connect};
use crate::workload::{Verdict, Workload};
use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Tables, and shards, over which the counters lie: a counter's is its remainder.
const TABLES: i64 = 2;
/// Few enough for clients to meet.
const COUNTERS: i64 = 4;
/// So many contradictions are shown.
const SHOWN: usize = 5;

/// The workload.
pub struct Counters {
    seed: u64,
}

impl Counters {
    /// With clients whose operations follow from a seed.
    pub fn new(seed: u64) -> Self {
        Counters { seed }
    }
}

impl Workload for Counters {
    type Client = SqlClient<CounterClient>;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        for table in 0..TABLES {
            let create = format!("CREATE TABLE counters{table} (k int8 PRIMARY KEY, v int8)");
            client.batch_execute(&create).await?;
        }
        for counter in 0..COUNTERS {
            let table = counter % TABLES;
            let begin = format!("INSERT INTO counters{table} VALUES ({counter}, 0)");
            client.batch_execute(&begin).await?;
        }
        cluster.split_at(&client, "counters1").await
    }

    fn client(&self, cluster: &Cluster, number: usize) -> SqlClient<CounterClient> {
        SqlClient::new(cluster.pg_urls(), number, self.seed, CounterClient)
    }

    fn closing(&self, _: usize) -> Vec<Operation> {
        (0..COUNTERS).map(Operation::Read).collect()
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Reads a counter.
    Read(i64),
    /// Increments one.
    Increment(i64),
    /// Increments two in one transaction.
    Both(i64, i64),
}

/// A client.
pub struct CounterClient;

impl Script for CounterClient {
    type Operation = Operation;

    fn draw(&mut self, chance: &mut StdRng) -> Operation {
        let counter = chance.random_range(0..COUNTERS);
        match chance.random_range(0..4) {
            0 => Operation::Read(counter),
            1 => {
                let distance = chance.random_range(1..COUNTERS);
                Operation::Both(counter, (counter + distance) % COUNTERS)
            }
            _ => Operation::Increment(counter),
        }
    }

    fn invocation(operation: &Operation) -> (&'static str, Value) {
        match *operation {
            Operation::Read(counter) => ("read", json!([[counter, null]])),
            Operation::Increment(counter) => ("increment", json!([[counter, null]])),
            Operation::Both(a, b) => ("increment", json!([[a, null], [b, null]])),
        }
    }

    async fn run(session: &mut Session, operation: &Operation) -> Result<Value, Unserved> {
        let values = match *operation {
            Operation::Read(counter) => vec![read(session, counter).await?],
            Operation::Increment(counter) => vec![increment(session, counter).await?],
            Operation::Both(a, b) => {
                session.begin().await?;
                let first = increment(session, a).await;
                let first = first.map_err(Failure::before_commit)?;
                let second = increment(session, b).await;
                let second = second.map_err(Failure::before_commit)?;
                session.commit().await?;
                vec![first, second]
            }
        };
        // A counter that is not there is one that was lost.
        let missing = || format!("{operation:?}: there is no such counter");
        let value = |(counter, value): (i64, Option<i64>)| {
            let value = value.with_context(missing)?;
            anyhow::Ok(json!([counter, value]))
        };
        Ok(values.into_iter().map(value).collect::<Result<Value>>()?)
    }
}

type Found = (i64, Option<i64>);

async fn read(session: &mut Session, counter: i64) -> Result<Found, Failure> {
    let read = format!("SELECT v FROM counters{} WHERE k = $1", counter % TABLES);
    let rows = session.query(&read, &[&counter]).await?;
    Ok((counter, rows.first().map(|row| row.get(0))))
}

async fn increment(session: &mut Session, counter: i64) -> Result<Found, Failure> {
    let table = counter % TABLES;
    let increment = format!("UPDATE counters{table} SET v = v + 1 WHERE k = $1 RETURNING v");
    let rows = session.query(&increment, &[&counter]).await?;
    Ok((counter, rows.first().map(|row| row.get(0))))
}

/// What is known of a counter at some moment.
#[derive(Debug, Default)]
struct Known {
    /// Increments that have begun, but for those that will have failed.
    begun: i64,
    /// The highest number that was answered.
    answered: i64,
    /// The numbers of increments.
    numbers: HashSet<i64>,
}

/// Judges a history: an increment's number is higher than all that had been answered
/// when it began, a read's not lower, nobody sees more increments than have begun, and
/// no two get the same number.
///
/// # Errors
/// When it is no history of counters.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let begins: HashMap<usize, usize> = at(operations.iter().map(|o| Some(o.invoked)));
    let ends: HashMap<usize, usize> = at(operations.iter().map(|o| o.completed));
    let mut counters: BTreeMap<i64, Known> = BTreeMap::new();
    // What had been answered when an operation began.
    let mut floors: HashMap<(usize, i64), i64> = HashMap::new();
    let mut wrong = Vec::new();
    let mut answers = 0;
    for index in 0..events.len() {
        if let Some(begun) = begins.get(&index) {
            let operation = &operations[*begun];
            for (counter, _) in steps(operation.arguments, index)? {
                let known = counters.entry(counter).or_default();
                floors.insert((*begun, counter), known.answered);
                let counts = operation.function == "increment" && operation.kind != Kind::Fail;
                known.begun += i64::from(counts);
            }
        }
        let Some(ended) = ends.get(&index) else {
            continue;
        };
        let operation = &operations[*ended];
        if operation.kind != Kind::Ok {
            continue;
        }
        for (counter, value) in steps(operation.result, index)? {
            let known = counters.entry(counter).or_default();
            let Some(value) = value else {
                bail!("event {index}: no value of counter {counter}");
            };
            let floor = floors.get(&(*ended, counter)).copied().unwrap_or_default();
            let increments = operation.function == "increment";
            if value < floor + i64::from(increments) {
                wrong.push(format!(
                    "event {index}: counter {counter} is {value}, and was {floor} before this began"
                ));
            }
            if value > known.begun {
                wrong.push(format!(
                    "event {index}: counter {counter} is {value}, and {} increments have begun",
                    known.begun
                ));
            }
            if increments && !known.numbers.insert(value) {
                wrong.push(format!(
                    "event {index}: counter {counter} was {value} after another increment, too"
                ));
            }
            known.answered = known.answered.max(value);
            answers += 1;
        }
    }
    wrong.truncate(SHOWN);
    Ok(match (wrong.is_empty(), answers) {
        (true, 0) => Verdict::Undecided("nobody was answered".to_owned()),
        (true, _) => Verdict::Holds,
        (false, _) => Verdict::Violated(wrong),
    })
}

/// Which operation a place in the history belongs to.
fn at(places: impl Iterator<Item = Option<usize>>) -> HashMap<usize, usize> {
    let places = places.enumerate();
    places.filter_map(|(n, place)| Some((place?, n))).collect()
}

fn steps(value: &Value, index: usize) -> Result<Vec<(i64, Option<i64>)>> {
    let step = |step: &Value| Some((step[0].as_i64()?, step[1].as_i64()));
    let steps = value.as_array();
    let steps = steps.and_then(|steps| steps.iter().map(step).collect());
    steps.with_context(|| format!("event {index}: no operation on counters"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    /// Operations one after the other, of counters 1 and 2.
    fn verdict(operations: &[(&str, Kind, Value)]) -> Verdict {
        let history = History::new();
        for (n, (function, kind, steps)) in operations.iter().enumerate() {
            let mut begun = steps.clone();
            for step in begun.as_array_mut().unwrap() {
                step[1] = Value::Null;
            }
            history.invoke(n as u64, function, begun);
            history.complete(n as u64, *kind, function, steps.clone(), None);
        }
        check(&history.events().unwrap()).unwrap()
    }

    fn reason(verdict: Verdict) -> String {
        verdict.reasons().remove(0)
    }

    #[test]
    fn increments_are_numbered() {
        let good = verdict(&[
            ("increment", Kind::Ok, json!([[1, 1]])),
            ("increment", Kind::Info, json!([[1, null], [2, null]])),
            ("increment", Kind::Fail, json!([[2, null]])),
            ("increment", Kind::Ok, json!([[1, 3], [2, 2]])),
            ("read", Kind::Ok, json!([[1, 3]])),
        ]);
        assert_eq!(good, Verdict::Holds);
        let nothing = verdict(&[("increment", Kind::Fail, json!([[1, null]]))]);
        assert!(matches!(nothing, Verdict::Undecided(_)));
    }

    #[test]
    fn whatever_is_wrong_is_said() {
        let one = || ("increment", Kind::Ok, json!([[1, 1]]));
        let lost = reason(verdict(&[one(), ("read", Kind::Ok, json!([[1, 0]]))]));
        assert!(
            lost.ends_with("is 0, and was 1 before this began"),
            "{lost}"
        );
        let again = reason(verdict(&[one(), one()]));
        assert!(
            again.ends_with("is 1, and was 1 before this began"),
            "{again}"
        );
        let failed = ("increment", Kind::Fail, json!([[1, null]]));
        let more = reason(verdict(&[
            one(),
            failed,
            ("read", Kind::Ok, json!([[1, 2]])),
        ]));
        assert!(
            more.ends_with("is 2, and 1 increments have begun"),
            "{more}"
        );
    }

    #[test]
    fn two_increments_at_once_do_not_get_one_number() {
        let history = History::new();
        for process in 0..2 {
            history.invoke(process, "increment", json!([[1, null]]));
        }
        for process in 0..2 {
            history.complete(process, Kind::Ok, "increment", json!([[1, 1]]), None);
        }
        let twice = reason(check(&history.events().unwrap()).unwrap());
        assert!(twice.ends_with("after another increment, too"), "{twice}");
    }
}
