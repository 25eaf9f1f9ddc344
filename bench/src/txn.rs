//! `lineradb-bench txn`: what a transaction takes in a running cluster, and what
//! contention makes of it.
//!
//! | measurement | asks |
//! |---|---|
//! | two keys, one shard or two | whether a commit over several shards takes one round, as one in a shard does |
//! | one row, one client or 32 | whether those who wait for a row lose time to each other |
//! | transfers, some clients or ten times as many | whether overload costs throughput |
//!
//! The first goes through the gRPC KV API, the others through SQL.

use crate::Figure;
use crate::figures::percentile;
use anyhow::{Context, Result, ensure};
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_common::{keys, random, spawn};
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{Operation, PutOperation, TxnRequest, operation};
use lineradb_proto::meta::v1::SplitShardRequest;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tonic::transport::Endpoint;

/// Keys of either shard.
const KEYS: u64 = 10_000;
/// Accounts among which money moves.
const ACCOUNTS: u64 = 10_000;
/// Clients that want one row.
const CROWD: usize = 32;
const INCREMENT: &str = "UPDATE txn_bench_row SET n = n + 1 WHERE id = 1";
/// Clients at the peak, and at ten times as many.
const CLIENTS: [usize; 2] = [16, 160];

/// Where the cluster is.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its metaservice.
    pub metas: Vec<String>,
    /// A kvnode.
    pub kv: String,
    /// A gateway.
    pub url: String,
}

/// Runs everything, each measurement for `length`.
///
/// # Errors
/// When the cluster cannot be reached, or answers an error that a client must not
/// see.
pub async fn run(cluster: &Cluster, length: Duration) -> Result<Vec<Figure>> {
    let mut figures = two_keys(cluster, length).await?;
    figures.extend(one_row(&cluster.url, length).await?);
    figures.extend(overload(&cluster.url, length).await?);
    Ok(figures)
}

/// One client that puts two keys, which lie in one shard or in two.
async fn two_keys(cluster: &Cluster, length: Duration) -> Result<Vec<Figure>> {
    let meta = lineradb_client::MetaClient::new(cluster.metas.clone())?;
    let border = "txn-bench/m";
    let split = SplitShardRequest {
        split_key: keys::kv_key(border.as_bytes()),
        ..SplitShardRequest::default()
    };
    let deadline = deadline_after(Duration::from_secs(10));
    if let Err(error) = meta.split_shard(split, deadline).await {
        // It may have been split there by an earlier run.
        println!("not split at {border}: {error}");
    }
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.kv))?;
    let mut kv = KvClient::new(endpoint.connect().await?);
    let mut latencies = [Vec::new(), Vec::new()];
    let whole = Stopwatch::start();
    // By turns, so that both meet the same moments.
    while whole.elapsed() < length * 2 {
        for (several, latencies) in [false, true].into_iter().zip(&mut latencies) {
            let second = if several { 'n' } else { 'b' };
            let request = TxnRequest {
                success: vec![put('a'), put(second)],
                ..TxnRequest::default()
            };
            let one = Stopwatch::start();
            kv.txn(request).await?;
            latencies.push(one.elapsed_us());
        }
    }
    let [one, several] = &mut latencies;
    let mut figures = Vec::new();
    for percent in [50.0, 99.0] {
        let (one, several) = (percentile(one, percent), percentile(several, percent));
        let name = format!("two keys in two shards, p{percent}");
        let figure = Figure::ours(name, "us", several);
        figures.push(figure.beside("in one shard", one, one / several));
    }
    Ok(figures)
}

fn put(half: char) -> Operation {
    let put = PutOperation {
        key: format!("txn-bench/{half}{:06}", random::below(KEYS)).into(),
        value: vec![b'x'; 100].into(),
    };
    Operation {
        operation: Some(operation::Operation::Put(put)),
    }
}

/// A client of a gateway, and what keeps it going.
async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    spawn::task("bench-connection", async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "the connection to the gateway broke");
        }
    });
    Ok(client)
}

/// Increments of one row by implicit transactions.
async fn one_row(url: &str, length: Duration) -> Result<Vec<Figure>> {
    let admin = connect(url).await?;
    admin
        .batch_execute(
            "DROP TABLE IF EXISTS txn_bench_row;
             CREATE TABLE txn_bench_row (id int PRIMARY KEY, n bigint NOT NULL);
             INSERT INTO txn_bench_row VALUES (1, 0)",
        )
        .await?;
    let mut rates = Vec::new();
    let mut total = 0;
    for clients in [1, CROWD] {
        let (done, seconds) = crowd(url, clients, length, |client| async move {
            client.batch_execute(INCREMENT).await?;
            Ok((client, true))
        })
        .await
        .context("an implicit transaction failed: the gateway repeats these itself")?;
        total += done;
        rates.push(done as f64 / seconds);
    }
    let counted = admin.query_one("SELECT n FROM txn_bench_row", &[]).await?;
    let counted: i64 = counted.try_get(0)?;
    ensure!(counted as u64 == total, "{total} increments made {counted}");
    let figure = Figure::ours(format!("one row, {CROWD} clients"), "tps", rates[1]);
    Ok(vec![figure.beside(
        "one client",
        rates[0],
        rates[1] / rates[0],
    )])
}

/// Transfers between accounts, in explicit transactions that a conflict may end.
async fn overload(url: &str, length: Duration) -> Result<Vec<Figure>> {
    let admin = connect(url).await?;
    admin
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS txn_bench_accounts;
             CREATE TABLE txn_bench_accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO txn_bench_accounts
                 SELECT g, 1000 FROM generate_series(0, {}) AS g",
            ACCOUNTS - 1
        ))
        .await?;
    let mut rates = Vec::new();
    let mut figures = Vec::new();
    for clients in CLIENTS {
        let (done, seconds) = crowd(url, clients, length, transfer).await?;
        rates.push(done as f64 / seconds);
    }
    let sum = admin
        .query_one("SELECT sum(balance)::bigint FROM txn_bench_accounts", &[])
        .await?;
    let sum: i64 = sum.try_get(0)?;
    ensure!(sum as u64 == ACCOUNTS * 1000, "the accounts hold {sum}");
    let [few, many] = CLIENTS;
    let figure = Figure::ours(format!("transfers, {many} clients"), "tps", rates[1]);
    let peer = format!("{few} clients");
    figures.push(figure.beside(&peer, rates[0], rates[1] / rates[0]));
    Ok(figures)
}

async fn transfer(mut client: tokio_postgres::Client) -> Result<(tokio_postgres::Client, bool)> {
    let (from, to) = (
        random::below(ACCOUNTS) as i64,
        random::below(ACCOUNTS) as i64,
    );
    let amount = 1 + random::below(10) as i64;
    let moved = async {
        let txn = client.transaction().await?;
        let change = "UPDATE txn_bench_accounts SET balance = balance + $1 WHERE id = $2";
        txn.execute(change, &[&-amount, &from]).await?;
        txn.execute(change, &[&amount, &to]).await?;
        txn.commit().await
    };
    match moved.await {
        Ok(()) => Ok((client, true)),
        Err(error) => match error.code() {
            Some(&SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED) => {
                Ok((client, false))
            }
            _ => Err(error.into()),
        },
    }
}

/// So many clients that do `work` one after another; how often it succeeded, and
/// in how many seconds.
async fn crowd<F, Fut>(url: &str, clients: usize, length: Duration, work: F) -> Result<(u64, f64)>
where
    F: Fn(tokio_postgres::Client) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Result<(tokio_postgres::Client, bool)>> + Send,
{
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(connect(url).await?);
    }
    let stopwatch = Stopwatch::start();
    let tasks = connections.into_iter().map(|mut client| {
        spawn::task("bench-client", async move {
            let mut done = 0;
            while stopwatch.elapsed() < length {
                let (same, succeeded) = work(client).await?;
                client = same;
                done += u64::from(succeeded);
            }
            anyhow::Ok(done)
        })
    });
    let mut all = 0;
    for task in tasks.collect::<Vec<_>>() {
        all += task.await??;
    }
    Ok((all, stopwatch.elapsed().as_secs_f64()))
}
