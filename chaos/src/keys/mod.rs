//! Transactions that read and write keys, in different patterns ([`Pattern`]): each
//! makes one anomaly likely that weaker databases allow.
//!
//! A key is a row of one of three tables, each in a shard of its own: most transactions
//! commit over several. In all patterns but one a key is written once, so that whoever
//! does not see it came before its writer: then all that depends on each other is known
//! ([`once`]). In the last one, rw-register, keys are overwritten ([`crate::elle`]).

pub mod once;
mod patterns;

pub use patterns::Pattern;

use crate::harness::Cluster;
use crate::script::{Script, SqlClient, Unserved};
use crate::sql::{Failure, Session, connect};
use crate::workload::Workload;
use anyhow::Result;
use parking_lot::Mutex;
use patterns::Drawn;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tables, and shards, over which the keys lie: a key's is its remainder.
const TABLES: i64 = 3;
/// Keys of one closing scan.
const CLOSING: i64 = 300;

/// A part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads a key.
    Read(i64),
    /// Writes a number, which nobody else writes to that key.
    Write(i64, i64),
}

/// How the keys of a transaction are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Step by step, by their keys.
    Keys,
    /// All at first, by one scan of each table.
    Scan,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    steps: Vec<Step>,
    access: Access,
    /// Writes only when all that it has read before was absent.
    if_absent: bool,
}

impl Transaction {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Transaction {
            steps: steps.into_iter().collect(),
            access: Access::Keys,
            if_absent: false,
        }
    }

    fn scan(keys: std::ops::Range<i64>) -> Self {
        Transaction {
            access: Access::Scan,
            ..Self::new(keys.map(Step::Read))
        }
    }

    fn if_absent(self) -> Self {
        Transaction {
            if_absent: true,
            ..self
        }
    }

    /// The smallest and the largest of its keys.
    fn span(&self) -> (i64, i64) {
        let key = |step: &Step| match *step {
            Step::Read(key) | Step::Write(key, _) => key,
        };
        let keys = self.steps.iter().map(key);
        (
            keys.clone().min().unwrap_or_default(),
            keys.max().unwrap_or_default(),
        )
    }

    async fn run(&self, session: &mut Session, pattern: Pattern) -> Result<Value, Failure> {
        if let ([step], Access::Keys) = (self.steps.as_slice(), self.access) {
            return Ok(json!([carry_out(session, pattern, *step).await?]));
        }
        session.begin().await?;
        let done = self.body(session, pattern).await;
        let done = done.map_err(Failure::before_commit)?;
        session.commit().await?;
        Ok(Value::Array(done))
    }

    async fn body(&self, session: &mut Session, pattern: Pattern) -> Result<Vec<Value>, Failure> {
        let scanned = match self.access {
            Access::Keys => None,
            Access::Scan => Some(scan(session, self.span()).await?),
        };
        let mut done = Vec::with_capacity(self.steps.len());
        let mut absent = true;
        for step in &self.steps {
            let result = match (*step, &scanned) {
                (Step::Read(key), Some(found)) => json!(["r", key, found.get(&key)]),
                (Step::Write(..), _) if self.if_absent && !absent => continue,
                (step, _) => carry_out(session, pattern, step).await?,
            };
            absent &= result[0] == "w" || result[2].is_null();
            done.push(result);
        }
        Ok(done)
    }
}

/// One step, as it then stands in the history.
async fn carry_out(session: &mut Session, pattern: Pattern, step: Step) -> Result<Value, Failure> {
    match step {
        Step::Read(key) => {
            let read = format!("SELECT v FROM keys{} WHERE k = $1", key % TABLES);
            let rows = session.query(&read, &[&key]).await?;
            let value = rows.first().map(|row| row.get::<_, i64>(0));
            Ok(json!(["r", key, value]))
        }
        Step::Write(key, value) => {
            // A key that is written once must not be there.
            let or_else = match pattern {
                Pattern::RwRegister => " ON CONFLICT (k) DO UPDATE SET v = excluded.v",
                _ => "",
            };
            let table = key % TABLES;
            let write = format!("INSERT INTO keys{table} (k, v) VALUES ($1, $2){or_else}");
            session.execute(&write, &[&key, &value]).await?;
            Ok(json!(["w", key, value]))
        }
    }
}

async fn scan(
    session: &mut Session,
    (first, last): (i64, i64),
) -> Result<BTreeMap<i64, i64>, Failure> {
    let mut found = BTreeMap::new();
    for table in 0..TABLES {
        let scan = format!("SELECT k, v FROM keys{table} WHERE k BETWEEN $1 AND $2");
        let rows = session.query(&scan, &[&first, &last]).await?;
        let row = |row: &tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, i64>(1));
        found.extend(rows.iter().map(row));
    }
    Ok(found)
}

/// The workload of a pattern.
pub struct Keys {
    pattern: Pattern,
    seed: u64,
    drawn: Arc<Mutex<Drawn>>,
}

impl Keys {
    /// With clients whose operations follow from a seed.
    pub fn new(pattern: Pattern, seed: u64) -> Self {
        Keys {
            pattern,
            seed,
            drawn: Arc::default(),
        }
    }
}

impl Workload for Keys {
    type Client = SqlClient<KeysClient>;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        for table in 0..TABLES {
            let create = format!("CREATE TABLE keys{table} (k int8 PRIMARY KEY, v int8 NOT NULL)");
            client.batch_execute(&create).await?;
        }
        for table in 1..TABLES {
            cluster.split_at(&client, &format!("keys{table}")).await?;
        }
        Ok(())
    }

    fn client(&self, cluster: &Cluster, number: usize) -> SqlClient<KeysClient> {
        let client = KeysClient {
            pattern: self.pattern,
            drawn: self.drawn.clone(),
            planned: None,
        };
        SqlClient::new(cluster.pg_urls(), number, self.seed, client)
    }

    /// Every key that there ever was: a write that was lost is missed here.
    fn closing(&self, _: usize) -> Vec<Operation> {
        let end = self.drawn.lock().keys();
        let scan = |first| Transaction::scan(first..end.min(first + CLOSING));
        let scans = (0..end).step_by(CLOSING as usize).map(scan);
        let operation = |transaction| (self.pattern, transaction);
        scans.map(operation).collect()
    }
}

/// A transaction, and the pattern that it is of.
pub type Operation = (Pattern, Transaction);

/// A client.
pub struct KeysClient {
    pattern: Pattern,
    drawn: Arc<Mutex<Drawn>>,
    /// What it does next, before anything else is drawn.
    planned: Option<Transaction>,
}

impl Script for KeysClient {
    type Operation = Operation;

    fn draw(&mut self, chance: &mut StdRng) -> Operation {
        let next = self.planned.take().unwrap_or_else(|| {
            let plan = self.drawn.lock().draw(self.pattern, chance);
            self.planned = plan.then;
            plan.first
        });
        (self.pattern, next)
    }

    fn invocation((_, transaction): &Operation) -> (&'static str, Value) {
        let step = |step: &Step| match *step {
            Step::Read(key) => json!(["r", key, null]),
            Step::Write(key, value) => json!(["w", key, value]),
        };
        ("txn", transaction.steps.iter().map(step).collect())
    }

    async fn run(
        session: &mut Session,
        (pattern, transaction): &Operation,
    ) -> Result<Value, Unserved> {
        Ok(transaction.run(session, *pattern).await?)
    }
}
