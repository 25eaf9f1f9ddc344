//! Commits over several shards whose coordinator dies in the middle.

use crate::durability::{options, wait_for_ledger_to_grow};
use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, http_get};
use lineradb_chaos::workload::Verdict;
use lineradb_common::spawn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many commits of a gateway took one round over several shards.
async fn parallel_commits(cluster: &Cluster, gateway: usize) -> u64 {
    let http = cluster.gateways[gateway].http;
    let (_, body) = http_get(http, "/metrics").await.unwrap();
    let series = "lineradb_commits_total{way=\"parallel\"} ";
    let line = body.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap().trim().parse().unwrap()
}

/// Transfers whose accounts and ledger lie in two shards, through a gateway that
/// is killed again and again. What it has acknowledged is there, what it left half
/// done is decided by who meets it (X3), and nobody ever sees a half.
#[tokio::test(flavor = "multi_thread")]
async fn no_money_is_made_or_lost_while_gateways_die() {
    const ACCOUNTS: i32 = 20;
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(1)).await.unwrap();
    bank::create(&client, ACCOUNTS).await.unwrap();
    cluster.split_at(&client, "ledger").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let urls = vec![cluster.pg_url(0)];
    let run = spawn::task("bank", bank::run(urls, 8, ACCOUNTS, stop.clone()));
    for _ in 0..3 {
        wait_for_ledger_to_grow(&client).await;
        cluster.gateways[0].kill().unwrap();
        let sum = "SELECT CAST(sum(balance) AS int8) FROM accounts";
        let sum: i64 = client.query_one(sum, &[]).await.unwrap().get(0);
        assert_eq!(sum, i64::from(ACCOUNTS) * bank::OPENING_BALANCE);
        cluster.gateways[0].start().unwrap();
        cluster.gateways[0].ready().await.unwrap();
    }
    wait_for_ledger_to_grow(&client).await;
    assert!(parallel_commits(&cluster, 0).await > 0);
    stop.store(true, Ordering::Release);
    let events = run.await.unwrap().unwrap();
    assert_eq!(bank::check(&events).unwrap(), Verdict::Holds);
}
