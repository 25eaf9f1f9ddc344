//! A queue of jobs in two tables, as many build one on a SQL database: whoever takes a
//! job locks the first row that waits (`FOR UPDATE`, with `SKIP LOCKED` or without),
//! deletes it, and notes in another table, in another shard, who has taken it. Each job
//! is done by one, whatever happens, and none is lost.

use crate::harness::Cluster;
use crate::history::{self, Event, Kind};
use crate::script::{Script, SqlClient, Unserved};
use crate::sql::{Failure, Session, connect};
use crate::workload::{Verdict, Workload};
use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio_postgres::Row;

const CREATE: &str = "CREATE TABLE waiting (job int8 PRIMARY KEY);
                      CREATE TABLE taken (job int8 PRIMARY KEY, claim int8 NOT NULL);";
/// So many contradictions are shown.
const SHOWN: usize = 5;

/// The workload.
pub struct Queue {
    seed: u64,
    /// The number of the last job or claim that anybody has begun.
    numbers: Arc<AtomicI64>,
}

impl Queue {
    /// With clients whose operations follow from a seed.
    pub fn new(seed: u64) -> Self {
        Queue {
            seed,
            numbers: Arc::default(),
        }
    }
}

impl Workload for Queue {
    type Client = SqlClient<Worker>;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        client.batch_execute(CREATE).await?;
        cluster.split_at(&client, "taken").await
    }

    fn client(&self, cluster: &Cluster, number: usize) -> SqlClient<Worker> {
        let worker = Worker {
            numbers: self.numbers.clone(),
        };
        SqlClient::new(cluster.pg_urls(), number, self.seed, worker)
    }

    fn closing(&self, _: usize) -> Vec<Operation> {
        vec![Operation::State]
    }
}

/// What a worker does.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Adds a job.
    Add(i64),
    /// Takes the first job, under a number of its own.
    Take {
        /// That number, and no other's.
        claim: i64,
        /// Passes over those that others are about to take.
        skip: bool,
    },
    /// Looks at both tables, in one transaction.
    State,
}

/// A client.
pub struct Worker {
    numbers: Arc<AtomicI64>,
}

impl Script for Worker {
    type Operation = Operation;

    fn draw(&mut self, chance: &mut StdRng) -> Operation {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        match chance.random() {
            true => Operation::Add(number),
            false => Operation::Take {
                claim: number,
                skip: chance.random(),
            },
        }
    }

    fn invocation(operation: &Operation) -> (&'static str, Value) {
        match *operation {
            Operation::Add(job) => ("add", json!(job)),
            Operation::Take { claim, .. } => ("take", json!([claim, null])),
            Operation::State => ("state", Value::Null),
        }
    }

    async fn run(session: &mut Session, operation: &Operation) -> Result<Value, Unserved> {
        Ok(match *operation {
            Operation::Add(job) => {
                let add = "INSERT INTO waiting VALUES ($1)";
                session.execute(add, &[&job]).await?;
                json!(job)
            }
            Operation::Take { claim, skip } => {
                session.begin().await?;
                let job = take(session, claim, skip).await;
                let job = job.map_err(Failure::before_commit)?;
                session.commit().await?;
                json!([claim, job])
            }
            Operation::State => {
                session.begin().await?;
                let state = state(session).await;
                let state = state.map_err(Failure::before_commit)?;
                session.commit().await?;
                state
            }
        })
    }
}

async fn take(session: &mut Session, claim: i64, skip: bool) -> Result<Option<i64>, Failure> {
    let first = match skip {
        true => "SELECT job FROM waiting ORDER BY job LIMIT 1 FOR UPDATE SKIP LOCKED",
        false => "SELECT job FROM waiting ORDER BY job LIMIT 1 FOR UPDATE",
    };
    let rows = session.query(first, &[]).await?;
    let Some(job) = rows.first().map(|row| row.get::<_, i64>(0)) else {
        return Ok(None);
    };
    let remove = "DELETE FROM waiting WHERE job = $1";
    session.execute(remove, &[&job]).await?;
    let note = "INSERT INTO taken VALUES ($1, $2)";
    session.execute(note, &[&job, &claim]).await?;
    Ok(Some(job))
}

async fn state(session: &mut Session) -> Result<Value, Failure> {
    let waiting = session.query("SELECT job FROM waiting", &[]).await?;
    let taken = session.query("SELECT job, claim FROM taken", &[]).await?;
    let waiting: Vec<i64> = waiting.iter().map(|row| row.get(0)).collect();
    let pair = |row: &Row| (row.get::<_, i64>(0), row.get::<_, i64>(1));
    let taken: Vec<(i64, i64)> = taken.iter().map(pair).collect();
    Ok(json!({ "waiting": waiting, "taken": taken }))
}

/// Judges a history by the last look at the queue: every job that was added waits or
/// was taken, once, and everybody who has taken one has taken that one.
///
/// # Errors
/// When it is no history of a queue.
pub fn check(events: &[Event]) -> Result<Verdict> {
    let operations = history::operations(events)?;
    let mut added = BTreeMap::new();
    let mut claims = BTreeMap::new();
    let mut last = None;
    for operation in &operations {
        let shape = || format!("event {}: no operation on a queue", operation.invoked);
        match operation.function {
            "add" => {
                let job = operation.arguments.as_i64().with_context(shape)?;
                added.insert(job, operation.kind);
            }
            "take" => {
                let claim = operation.arguments[0].as_i64().with_context(shape)?;
                claims.insert(claim, (operation.kind, operation.result[1].as_i64()));
            }
            _ if operation.kind == Kind::Ok => {
                last = Some(State::of(operation.result).with_context(shape)?);
            }
            _ => {}
        }
    }
    let Some(last) = last else {
        return Ok(Verdict::Undecided("nobody looked at the queue".to_owned()));
    };
    let jobs = claims.values().filter(|(_, job)| job.is_some()).count();
    let mut wrong = last.compare(&added, &claims);
    wrong.truncate(SHOWN);
    Ok(match (wrong.is_empty(), jobs) {
        (true, 0) => Verdict::Undecided("nobody has got a job".to_owned()),
        (true, _) => Verdict::Holds,
        (false, _) => Verdict::Violated(wrong),
    })
}

/// The queue as it was seen.
struct State {
    waiting: Vec<i64>,
    /// Jobs with their claims.
    taken: Vec<(i64, i64)>,
}

impl State {
    fn of(seen: &Value) -> Option<State> {
        let pair = |pair: &Value| Some((pair[0].as_i64()?, pair[1].as_i64()?));
        Some(State {
            waiting: (seen["waiting"].as_array()?.iter())
                .map(Value::as_i64)
                .collect::<Option<_>>()?,
            taken: (seen["taken"].as_array()?.iter())
                .map(pair)
                .collect::<Option<_>>()?,
        })
    }

    fn compare(
        &self,
        added: &BTreeMap<i64, Kind>,
        claims: &BTreeMap<i64, (Kind, Option<i64>)>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut places: BTreeMap<i64, usize> = BTreeMap::new();
        let taken = self.taken.iter().map(|(job, _)| job);
        for job in self.waiting.iter().chain(taken) {
            *places.entry(*job).or_default() += 1;
        }
        for (job, times) in &places {
            match added.get(job) {
                None => wrong.push(format!("nobody added job {job}")),
                Some(Kind::Fail) => wrong.push(format!("job {job} was refused and is there")),
                Some(_) if *times > 1 => wrong.push(format!("job {job} is there {times} times")),
                Some(_) => {}
            }
        }
        for (job, kind) in added {
            if *kind == Kind::Ok && !places.contains_key(job) {
                wrong.push(format!("job {job} was acknowledged and is lost"));
            }
        }
        let mut jobs: BTreeMap<i64, i64> = BTreeMap::new();
        for (job, claim) in &self.taken {
            if let Some(other) = jobs.insert(*claim, *job) {
                wrong.push(format!("claim {claim} has taken jobs {other} and {job}"));
            }
            if !claims.contains_key(claim) {
                wrong.push(format!("job {job} was taken by {claim}, which nobody is"));
            }
        }
        for (claim, (kind, job)) in claims {
            let found = jobs.get(claim).copied();
            match kind {
                Kind::Ok if *job != found => wrong.push(format!(
                    "claim {claim} took job {job:?}; the queue says {found:?}"
                )),
                Kind::Fail if found.is_some() => {
                    wrong.push(format!("claim {claim} was refused and has {found:?}"));
                }
                _ => {}
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    /// Operations one after the other, and the last look.
    fn verdict(operations: &[(&str, Kind, Value)], waiting: Value, taken: Value) -> Verdict {
        let history = History::new();
        let state = json!({ "waiting": waiting, "taken": taken });
        let look = [("state", Kind::Ok, state)];
        for (n, (function, kind, value)) in operations.iter().chain(&look).enumerate() {
            let begun = match *function {
                "take" => json!([value[0], null]),
                "add" => value.clone(),
                _ => Value::Null,
            };
            history.invoke(n as u64, function, begun);
            history.complete(n as u64, *kind, function, value.clone(), None);
        }
        check(&history.events().unwrap()).unwrap()
    }

    fn reason(verdict: Verdict) -> String {
        verdict.reasons().remove(0)
    }

    const ADD: (&str, Kind) = ("add", Kind::Ok);

    #[test]
    fn a_queue_whose_jobs_are_taken_once_holds() {
        let good = verdict(
            &[
                (ADD.0, ADD.1, json!(1)),
                (ADD.0, ADD.1, json!(2)),
                ("add", Kind::Info, json!(3)),
                ("add", Kind::Fail, json!(4)),
                ("take", Kind::Ok, json!([5, 1])),
                ("take", Kind::Info, json!([6, null])),
                ("take", Kind::Fail, json!([7, null])),
                ("take", Kind::Ok, json!([8, null])),
            ],
            json!([3]),
            json!([[1, 5], [2, 6]]),
        );
        assert_eq!(good, Verdict::Holds);
        let idle = verdict(
            &[("take", Kind::Ok, json!([1, null]))],
            json!([]),
            json!([]),
        );
        assert!(matches!(idle, Verdict::Undecided(_)));
        let unseen = History::new();
        unseen.invoke(0, "add", json!(1));
        let verdict = check(&unseen.events().unwrap()).unwrap();
        assert!(matches!(verdict, Verdict::Undecided(_)));
    }

    #[test]
    fn whatever_is_wrong_is_said() {
        let one = [
            ("add", Kind::Ok, json!(1)),
            ("take", Kind::Ok, json!([2, 1])),
        ];
        for (waiting, taken, why) in [
            (json!([1]), json!([[1, 2]]), "job 1 is there 2 times"),
            (json!([]), json!([]), "job 1 was acknowledged and is lost"),
            (
                json!([]),
                json!([[1, 9]]),
                "job 1 was taken by 9, which nobody is",
            ),
            (
                json!([1]),
                json!([]),
                "claim 2 took job Some(1); the queue says None",
            ),
            (json!([7]), json!([[1, 2]]), "nobody added job 7"),
        ] {
            assert_eq!(reason(verdict(&one, waiting, taken)), why);
        }
        let refused = [
            ("add", Kind::Ok, json!(1)),
            ("add", Kind::Fail, json!(3)),
            ("take", Kind::Fail, json!([2, null])),
        ];
        let there = reason(verdict(&refused, json!([1, 3]), json!([])));
        assert_eq!(there, "job 3 was refused and is there");
        let taken = reason(verdict(&refused, json!([]), json!([[1, 2]])));
        assert_eq!(taken, "claim 2 was refused and has Some(1)");
        let both = [
            ("add", Kind::Ok, json!(1)),
            ("add", Kind::Ok, json!(3)),
            ("take", Kind::Ok, json!([2, 1])),
        ];
        let two = reason(verdict(&both, json!([]), json!([[1, 2], [3, 2]])));
        assert_eq!(two, "claim 2 has taken jobs 1 and 3");
    }
}
