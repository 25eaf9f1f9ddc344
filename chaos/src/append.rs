//! List-append, Elle's workload: transactions append unique numbers to lists
//! and read whole lists. Each read shows the order of all appends before it, so
//! that a history tells what depended on what ([`crate::elle`]).
//!
//! A list is a row of one of three tables, each in a shard of its own: most
//! transactions commit over several. Few lists are in use at once, and each
//! makes way for a new one when it has grown: clients meet, and lists stay
//! short. Reads take the ways that there are: by key, by key under a lock, and
//! by a scan of a range, in which absent lists are seen to be absent.

use crate::harness::Cluster;
use crate::script::{Script, SqlClient, Unserved};
use crate::sql::{Failure, Session, connect};
use crate::workload::Workload;
use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio_postgres::Row;

/// Tables, and shards, over which the lists lie.
const TABLES: i64 = 3;
/// Lists in use at once.
const LISTS: i64 = 6;
/// Appends to a list, on average, before it makes way.
const APPENDS: i64 = 32;
/// Longest transaction.
const STEPS_MAX: usize = 5;
/// One in so many operations is a scan.
const SCANS: u32 = 10;
/// One in so many reads by key takes a lock.
const LOCKS: u32 = 6;
/// One in so many clients only reads, without locks: it goes on where writes hang.
const READERS: usize = 4;

/// The workload.
pub struct Append {
    seed: u64,
    /// The last number that anybody was to append.
    appended: Arc<AtomicI64>,
}

impl Append {
    /// With clients whose operations follow from a seed.
    pub fn new(seed: u64) -> Self {
        Append {
            seed,
            appended: Arc::default(),
        }
    }
}

/// The lists in use after so many appends.
fn in_use(appended: i64) -> std::ops::Range<i64> {
    let first = appended / APPENDS;
    first..first + LISTS
}

impl Workload for Append {
    type Client = SqlClient<Appender>;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        for table in 0..TABLES {
            let create = format!("CREATE TABLE lists{table} (k int8 PRIMARY KEY, v text NOT NULL)");
            client.batch_execute(&create).await?;
        }
        for table in 1..TABLES {
            cluster.split_at(&client, &format!("lists{table}")).await?;
        }
        Ok(())
    }

    fn client(&self, cluster: &Cluster, number: usize) -> SqlClient<Appender> {
        let appender = Appender {
            only_reads: number % READERS == READERS / 2,
            appended: self.appended.clone(),
        };
        SqlClient::new(cluster.pg_urls(), number, self.seed, appender)
    }

    /// Every list that there ever was: an append that was lost is missed here.
    fn closing(&self, _: usize) -> Vec<Operation> {
        let lists = 0..in_use(self.appended.load(Ordering::Relaxed)).end;
        (0..TABLES)
            .map(|table| Operation::scan(table, lists.clone()))
            .collect()
    }
}

/// A part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Appends to a list.
    Append {
        /// The list.
        list: i64,
        /// A number that is appended once, here.
        number: i64,
    },
    /// Reads a list.
    Read {
        /// The list.
        list: i64,
        /// Under a lock.
        locking: bool,
    },
}

/// A transaction.
#[derive(Clone, Debug)]
pub struct Operation {
    steps: Vec<Step>,
    /// The steps are reads of one table, and done by one scan of it.
    scan: Option<i64>,
}

impl Operation {
    fn scan(table: i64, lists: std::ops::Range<i64>) -> Self {
        let lists = lists.filter(|list| list % TABLES == table);
        let read = |list| Step::Read {
            list,
            locking: false,
        };
        Operation {
            steps: lists.map(read).collect(),
            scan: Some(table),
        }
    }

    /// With what its steps have read.
    fn to_json(&self, reads: &[Read]) -> Result<Value> {
        let numbers = |read: &Read| read.as_deref().map_or_else(|| Ok(Vec::new()), numbers_of);
        let step = |(step, read): (&Step, &Read)| match *step {
            Step::Append { list, number } => Ok(json!(["append", list, number])),
            Step::Read { list, .. } => Ok(json!(["r", list, numbers(read)?])),
        };
        self.steps.iter().zip(reads).map(step).collect()
    }
}

/// A client.
pub struct Appender {
    only_reads: bool,
    appended: Arc<AtomicI64>,
}

impl Appender {
    fn draw_step(&self, chance: &mut StdRng) -> Step {
        let lists = in_use(self.appended.load(Ordering::Relaxed));
        let list = chance.random_range(lists);
        if !self.only_reads && chance.random() {
            let number = self.appended.fetch_add(1, Ordering::Relaxed) + 1;
            return Step::Append { list, number };
        }
        Step::Read {
            list,
            locking: !self.only_reads && chance.random_ratio(1, LOCKS),
        }
    }
}

impl Script for Appender {
    type Operation = Operation;

    fn draw(&mut self, chance: &mut StdRng) -> Operation {
        if chance.random_ratio(1, SCANS) {
            let table = chance.random_range(0..TABLES);
            return Operation::scan(table, in_use(self.appended.load(Ordering::Relaxed)));
        }
        let steps = chance.random_range(1..=STEPS_MAX);
        Operation {
            steps: (0..steps).map(|_| self.draw_step(chance)).collect(),
            scan: None,
        }
    }

    fn invocation(operation: &Operation) -> (&'static str, Value) {
        let step = |step: &Step| match *step {
            Step::Append { list, number } => json!(["append", list, number]),
            Step::Read { list, .. } => json!(["r", list, null]),
        };
        ("txn", operation.steps.iter().map(step).collect())
    }

    async fn run(session: &mut Session, operation: &Operation) -> Result<Value, Unserved> {
        let reads = match (operation.scan, operation.steps.as_slice()) {
            (Some(table), steps) => scan(session, table, steps).await?,
            (None, [step]) => vec![carry_out(session, *step).await?],
            (None, steps) => transaction(session, steps).await?,
        };
        Ok(operation.to_json(&reads)?)
    }
}

/// What a step has read, as it lies in the table; `None`: no such list, or
/// nothing read.
type Read = Option<String>;

async fn transaction(session: &mut Session, steps: &[Step]) -> Result<Vec<Read>, Failure> {
    session.begin().await?;
    let mut reads = Vec::with_capacity(steps.len());
    for step in steps {
        let read = carry_out(session, *step).await;
        reads.push(read.map_err(Failure::before_commit)?);
    }
    session.commit().await?;
    Ok(reads)
}

async fn carry_out(session: &mut Session, step: Step) -> Result<Read, Failure> {
    match step {
        Step::Append { list, number } => {
            let table = list % TABLES;
            let append = format!(
                "INSERT INTO lists{table} (k, v) VALUES ($1, $2) \
                 ON CONFLICT (k) DO UPDATE SET v = lists{table}.v || ',' || excluded.v"
            );
            let number = number.to_string();
            session.execute(&append, &[&list, &number]).await?;
            Ok(None)
        }
        Step::Read { list, locking } => {
            let lock = if locking { " FOR UPDATE" } else { "" };
            let read = format!("SELECT v FROM lists{} WHERE k = $1{lock}", list % TABLES);
            let rows = session.query(&read, &[&list]).await?;
            Ok(rows.first().map(|row: &Row| row.get(0)))
        }
    }
}

async fn scan(session: &mut Session, table: i64, steps: &[Step]) -> Result<Vec<Read>, Failure> {
    let list = |step: &Step| match *step {
        Step::Append { list, .. } | Step::Read { list, .. } => list,
    };
    let (first, last) = (steps.first().map(list), steps.last().map(list));
    let scan = format!("SELECT k, v FROM lists{table} WHERE k BETWEEN $1 AND $2");
    let rows = session.query(&scan, &[&first, &last]).await?;
    let mut found: HashMap<i64, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(steps.iter().map(|step| found.remove(&list(step))).collect())
}

/// The numbers of a list, as they lie in the table.
fn numbers_of(text: &str) -> Result<Vec<i64>> {
    let number = |n: &str| n.parse().with_context(|| format!("{text:?} is no list"));
    text.split(',').map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_stands_in_the_history_as_elle_writes_it() {
        let read = |list| Step::Read {
            list,
            locking: true,
        };
        let append = Step::Append { list: 7, number: 3 };
        let operation = Operation {
            steps: vec![read(7), append, read(8)],
            scan: None,
        };
        let (function, begun) = Appender::invocation(&operation);
        assert_eq!(function, "txn");
        let unread = json!([["r", 7, null], ["append", 7, 3], ["r", 8, null]]);
        assert_eq!(begun, unread);
        let ended = operation
            .to_json(&[Some("1,2".to_owned()), None, None])
            .unwrap();
        let read = json!([["r", 7, [1, 2]], ["append", 7, 3], ["r", 8, []]]);
        assert_eq!(ended, read);
        let torn = operation.to_json(&[Some("1,".to_owned()), None, None]);
        assert!(torn.unwrap_err().to_string().contains("is no list"));
    }

    #[test]
    fn a_scan_asks_for_the_lists_of_one_table() {
        let operation = Operation::scan(1, in_use(APPENDS));
        let (_, value) = Appender::invocation(&operation);
        assert_eq!(value, json!([["r", 1, null], ["r", 4, null]]));
    }
}
