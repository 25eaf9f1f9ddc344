//! The bank: transfers between accounts on different shards, by many clients
//! at once, while nodes die. Every transfer moves money within one transaction
//! and writes a line in the ledger; so the balances always sum to what was
//! there at the start, and equal what the ledger says.
//!
//! A client distinguishes three outcomes. *Committed* transfers must be in the
//! ledger; *aborted* ones must not be; *unknown* ones (the connection broke in
//! mid-commit) may be either, but whole.

use anyhow::{Context, Result, bail};
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_common::{random, spawn};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

/// The money of each account at the start.
pub const OPENING_BALANCE: i64 = 1_000;

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Transfers acknowledged.
    pub committed: Vec<i64>,
    /// Transfers refused with an error that says so.
    pub aborted: Vec<i64>,
    /// Transfers whose fate the client did not learn.
    pub unknown: Vec<i64>,
    /// Longest time without any commit, over all clients.
    pub longest_gap: Duration,
    /// One of each kind of error seen.
    pub errors: Vec<String>,
}

/// Connects, retrying for ten seconds.
///
/// # Errors
/// When nobody answers in that time.
pub async fn connect(url: &str) -> Result<Client> {
    let deadline = deadline_after(Duration::from_secs(10));
    loop {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                spawn::task("bank-connection", async move {
                    // A broken connection shows as an error of the next statement.
                    let _ = connection.await;
                });
                return Ok(client);
            }
            Err(error) if deadline.elapsed() > Duration::ZERO => {
                return Err(error).context(format!("connecting to {url}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Creates the tables and opens the accounts.
///
/// # Errors
/// When a statement fails.
pub async fn create(client: &Client, accounts: i32) -> Result<()> {
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

/// Transfers from `clients` connections until `stop` is set.
///
/// # Errors
/// When a client finds a wrong total while it runs, or cannot reconnect.
pub async fn run(
    urls: Vec<String>,
    clients: usize,
    accounts: i32,
    stop: Arc<AtomicBool>,
) -> Result<Report> {
    let mut tasks = Vec::new();
    for n in 0..clients {
        let url = urls[n % urls.len()].clone();
        let stop = stop.clone();
        tasks.push(spawn::task("bank-client", async move {
            let mut report = Report::default();
            let mut next = (n as i64) << 32;
            let mut client = connect(&url).await?;
            let mut since_commit = Stopwatch::start();
            while !stop.load(Ordering::Acquire) {
                next += 1;
                let outcome = transfer(&mut client, next, accounts).await;
                match &outcome {
                    Ok(()) => {
                        report.longest_gap = report.longest_gap.max(since_commit.elapsed());
                        since_commit = Stopwatch::start();
                        report.committed.push(next);
                    }
                    Err(error) => {
                        let text = describe(error);
                        if !report.errors.contains(&text) {
                            report.errors.push(text);
                        }
                        if is_unknown(error) {
                            &mut report.unknown
                        } else {
                            &mut report.aborted
                        }
                        .push(next);
                    }
                }
                if client.is_closed() {
                    client = connect(&url).await?;
                } else if outcome.is_err() {
                    // Leaves a failed transaction block behind, if there is one.
                    let _ = client.batch_execute("ROLLBACK").await;
                }
            }
            anyhow::Ok(report)
        }));
    }
    let mut total = Report::default();
    for task in tasks {
        let report = task.await??;
        total.committed.extend(report.committed);
        total.aborted.extend(report.aborted);
        total.unknown.extend(report.unknown);
        total.longest_gap = total.longest_gap.max(report.longest_gap);
        for error in report.errors {
            if !total.errors.contains(&error) {
                total.errors.push(error);
            }
        }
    }
    Ok(total)
}

async fn transfer(
    client: &mut Client,
    id: i64,
    accounts: i32,
) -> Result<(), tokio_postgres::Error> {
    let source = random::below(accounts as u64) as i32;
    let target = (source + 1 + random::below(accounts as u64 - 1) as i32) % accounts;
    let amount = 1 + random::below(20) as i64;
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "UPDATE accounts SET balance = balance - $1 WHERE id = $2",
            &[&amount, &source],
        )
        .await?;
    transaction
        .execute(
            "UPDATE accounts SET balance = balance + $1 WHERE id = $2",
            &[&amount, &target],
        )
        .await?;
    transaction
        .execute(
            "INSERT INTO ledger VALUES ($1, $2, $3, $4)",
            &[&id, &source, &target, &amount],
        )
        .await?;
    transaction.commit().await
}

/// True when the outcome is not known: the connection broke, or the server
/// says so (40003, 08007).
fn is_unknown(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => matches!(code.code(), "40003" | "08007" | "57P01" | "57P02"),
        None => true,
    }
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}

/// Checks the end state against the report: nothing created, nothing lost,
/// nothing half done.
///
/// # Errors
/// What is wrong.
pub async fn check(client: &Client, accounts: i32, report: &Report) -> Result<()> {
    let sum: i64 = client
        .query_one(
            "SELECT CAST(sum(balance) AS int8), CAST(count(*) AS int8) FROM accounts",
            &[],
        )
        .await?
        .get(0);
    if sum != i64::from(accounts) * OPENING_BALANCE {
        bail!(
            "the balances sum to {sum}, not to {}",
            i64::from(accounts) * OPENING_BALANCE
        );
    }
    let mut expected = vec![OPENING_BALANCE; accounts as usize];
    let mut recorded = HashSet::new();
    for row in client
        .query("SELECT transfer, source, target, amount FROM ledger", &[])
        .await?
    {
        let (id, source, target, amount): (i64, i32, i32, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        recorded.insert(id);
        expected[source as usize] -= amount;
        expected[target as usize] += amount;
    }
    for row in client
        .query("SELECT id, balance FROM accounts", &[])
        .await?
    {
        let (id, balance): (i32, i64) = (row.get(0), row.get(1));
        if expected[id as usize] != balance {
            bail!(
                "account {id} has {balance}, the ledger says {}",
                expected[id as usize]
            );
        }
    }
    for id in &report.committed {
        if !recorded.contains(id) {
            bail!("transfer {id} was acknowledged and is lost");
        }
    }
    for id in &report.aborted {
        if recorded.contains(id) {
            bail!("transfer {id} was reported as aborted and is there");
        }
    }
    Ok(())
}
