//! The bank: transfers between accounts by many clients at once, while things
//! break. Every transfer moves money within one transaction and writes a line
//! in the ledger, which lies in another shard; so the balances always sum to
//! what was there at the start, and equal what the ledger says (`check`).

mod check;

pub use crate::sql::connect;
pub use check::check;

use crate::harness::Cluster;
use crate::history::{Event, History};
use crate::script::{Script, SqlClient, Unserved};
use crate::sql::{Failure, Session};
use crate::workload::{self, Processes, Workload};
use anyhow::Result;
use lineradb_common::spawn;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tokio_postgres::Row;

/// The money of each account at the start.
pub const OPENING_BALANCE: i64 = 1_000;
/// Accounts of [`Bank::new`].
const ACCOUNTS: i32 = 20;
/// Largest sum that is moved at once.
const AMOUNT_MAX: i64 = 20;
/// One in so many operations looks at all balances, of now or of the past.
const LOOKS: u32 = 10;
/// Begins a look at the past.
const PAST: &str = "BEGIN AS OF SYSTEM TIME follower_read_timestamp()";

/// Creates the tables and opens the accounts.
///
/// # Errors
/// When a statement fails.
pub async fn create(client: &tokio_postgres::Client, accounts: i32) -> Result<()> {
    client
        .batch_execute(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int8 NOT NULL);
             CREATE TABLE ledger (transfer int8 PRIMARY KEY, source int NOT NULL,
                                  target int NOT NULL, amount int8 NOT NULL);",
        )
        .await?;
    let rows: Vec<String> = (0..accounts)
        .map(|id| format!("({id}, {OPENING_BALANCE})"))
        .collect();
    client
        .batch_execute(&format!("INSERT INTO accounts VALUES {}", rows.join(",")))
        .await?;
    Ok(())
}

/// Transfers from `clients` connections until `stop` is set; in the end a look
/// at everything. What happened is then [`check`]ed.
///
/// # Errors
/// When a client reads nonsense, or is not served at the end.
pub async fn run(
    urls: Vec<String>,
    clients: usize,
    accounts: i32,
    stop: Arc<AtomicBool>,
) -> Result<Vec<Event>> {
    let bank = Bank::new(accounts, lineradb_common::random::below(u64::MAX));
    let history = Arc::new(History::new());
    let tasks: Vec<_> = (0..clients)
        .map(|n| {
            let processes = Processes::new(n, clients + 1);
            let client = bank.teller(urls.clone(), n);
            let run = workload::drive(client, processes, history.clone(), stop.clone());
            spawn::task("bank-client", run)
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let mut last = bank.teller(urls, clients);
    let processes = Processes::new(clients, clients + 1);
    workload::close(&mut last, &[Operation::State], processes, &history).await?;
    history.events()
}

/// The workload.
pub struct Bank {
    accounts: i32,
    seed: u64,
    /// The number of the last transfer that anybody has begun.
    transfers: Arc<AtomicI64>,
}

impl Bank {
    /// With so many accounts.
    pub fn new(accounts: i32, seed: u64) -> Self {
        Bank {
            accounts,
            seed,
            transfers: Arc::default(),
        }
    }

    /// With twenty accounts: few enough for clients to meet.
    pub fn small(seed: u64) -> Self {
        Self::new(ACCOUNTS, seed)
    }

    fn teller(&self, urls: Vec<String>, number: usize) -> SqlClient<Teller> {
        let teller = Teller {
            accounts: self.accounts,
            transfers: self.transfers.clone(),
        };
        SqlClient::new(urls, number, self.seed, teller)
    }
}

impl Workload for Bank {
    type Client = SqlClient<Teller>;

    async fn prepare(&self, cluster: &Cluster) -> Result<()> {
        let client = connect(&cluster.pg_url(0)).await?;
        create(&client, self.accounts).await?;
        cluster.split_at(&client, "ledger").await
    }

    fn client(&self, cluster: &Cluster, number: usize) -> SqlClient<Teller> {
        self.teller(cluster.pg_urls(), number)
    }

    fn closing(&self, _: usize) -> Vec<Operation> {
        vec![Operation::Balances, Operation::State]
    }
}

/// Money that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Its number, and no other's.
    pub id: i64,
    /// From this account.
    pub source: i32,
    /// To this account.
    pub target: i32,
    /// So much.
    pub amount: i64,
}

impl Transfer {
    fn to_json(self) -> Value {
        json!([self.id, self.source, self.target, self.amount])
    }
}

/// What a teller does.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Moves money.
    Transfer(Transfer),
    /// All balances, by one statement.
    Balances,
    /// All balances and the whole ledger, in one transaction.
    State,
    /// The same as it was some seconds ago, from whatever replica (L4).
    Past,
}

/// A client of the bank.
pub struct Teller {
    accounts: i32,
    transfers: Arc<AtomicI64>,
}

impl Script for Teller {
    type Operation = Operation;

    fn draw(&mut self, chance: &mut StdRng) -> Operation {
        if chance.random_ratio(1, LOOKS) {
            return match chance.random_bool(0.5) {
                true => Operation::Balances,
                false => Operation::Past,
            };
        }
        let source = chance.random_range(0..self.accounts);
        let distance = chance.random_range(1..self.accounts);
        Operation::Transfer(Transfer {
            id: self.transfers.fetch_add(1, Ordering::Relaxed) + 1,
            source,
            target: (source + distance) % self.accounts,
            amount: chance.random_range(1..=AMOUNT_MAX),
        })
    }

    fn invocation(operation: &Operation) -> (&'static str, Value) {
        match operation {
            Operation::Transfer(transfer) => ("transfer", transfer.to_json()),
            Operation::Balances => ("balances", Value::Null),
            Operation::State => ("state", Value::Null),
            Operation::Past => ("past", Value::Null),
        }
    }

    async fn run(session: &mut Session, operation: &Operation) -> Result<Value, Unserved> {
        Ok(match operation {
            Operation::Balances => balances(session).await?,
            Operation::State => state(session, "BEGIN").await?,
            Operation::Past => state(session, PAST).await?,
            Operation::Transfer(transfer) => carry_out(session, transfer).await?,
        })
    }
}

async fn carry_out(session: &mut Session, transfer: &Transfer) -> Result<Value, Failure> {
    session.begin().await?;
    write(session, transfer)
        .await
        .map_err(Failure::before_commit)?;
    session.commit().await?;
    Ok(transfer.to_json())
}

async fn write(session: &mut Session, transfer: &Transfer) -> Result<(), Failure> {
    let Transfer {
        id,
        source,
        target,
        amount,
    } = transfer;
    let take = "UPDATE accounts SET balance = balance - $1 WHERE id = $2";
    session.execute(take, &[amount, source]).await?;
    let give = "UPDATE accounts SET balance = balance + $1 WHERE id = $2";
    session.execute(give, &[amount, target]).await?;
    let note = "INSERT INTO ledger VALUES ($1, $2, $3, $4)";
    session.execute(note, &[id, source, target, amount]).await?;
    Ok(())
}

async fn balances(session: &mut Session) -> Result<Value, Failure> {
    let rows = session
        .query("SELECT id, balance FROM accounts ORDER BY id", &[])
        .await?;
    let balance = |row: &Row| json!([row.get::<_, i32>(0), row.get::<_, i64>(1)]);
    Ok(rows.iter().map(balance).collect())
}

/// Both from one snapshot: a transfer whose outcome nobody knows may still come.
async fn state(session: &mut Session, begin: &str) -> Result<Value, Failure> {
    session
        .command(begin)
        .await
        .map_err(Failure::before_commit)?;
    let balances = balances(session).await?;
    let rows = session
        .query("SELECT transfer, source, target, amount FROM ledger", &[])
        .await?;
    session.commit().await?;
    let transfer = |row: &Row| {
        let (id, source, target, amount) = (row.get(0), row.get(1), row.get(2), row.get(3));
        Transfer {
            id,
            source,
            target,
            amount,
        }
        .to_json()
    };
    let ledger: Value = rows.iter().map(transfer).collect();
    Ok(json!({ "balances": balances, "ledger": ledger }))
}
