//! Each workload for a few seconds, while things break. Longer runs are those of
//! `lineradb-chaos run`.

use lineradb_chaos::faults::Kind;
use lineradb_chaos::harness::Cluster;
use lineradb_chaos::proxy::{Link, Peer, Rules};
use lineradb_chaos::run::{self, HISTORY, Name, RunOptions};
use lineradb_chaos::sql;
use lineradb_chaos::workload::Verdict;
use std::time::Duration;

/// Faults follow from the seed, so that each workload meets others.
async fn holds(workload: Name, seed: u64) {
    let faults = [Kind::Kill, Kind::Pause, Kind::Partition, Kind::OneWay];
    holds_for(workload, seed, 12, &faults).await;
}

async fn holds_for(workload: Name, seed: u64, seconds: u64, faults: &[Kind]) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = RunOptions::new(workload, faults, folder.path());
    options.seed = seed;
    options.length = Duration::from_secs(seconds);
    options.clients = 6;
    options.measured_clocks = workload == Name::Append;
    let report = run::run(&options).await.unwrap();
    if report.verdict != Verdict::Holds {
        let kept = folder.keep();
        panic!("{report:#?}\nthe history is in {}", kept.display());
    }
    assert!(report.counts.ok > 0 && report.counts.strikes > 0);
    // Whoever judges the kept history comes to the same end.
    let again = run::check(workload, &folder.path().join(HISTORY)).unwrap();
    assert_eq!(again.verdict, Verdict::Holds);
    assert_eq!(again.counts, report.counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_money_is_made_or_lost_whatever_happens() {
    holds(Name::Bank, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_over_lists_are_strictly_serializable_whatever_happens() {
    holds(Name::Append, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registers_are_linearizable_whatever_happens() {
    holds(Name::Register, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_anomaly_is_seen_that_weaker_databases_allow() {
    let faults = [Kind::Kill, Kind::Bridge, Kind::Loss, Kind::Slow];
    for (workload, seed) in [
        (Name::RwRegister, 4),
        (Name::Set, 5),
        (Name::LongFork, 6),
        (Name::Sequential, 7),
        (Name::CausalReverse, 8),
        (Name::WriteSkew, 9),
    ] {
        holds_for(workload, seed, 6, &faults).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_jobs_and_timestamps_are_right_whatever_happens() {
    let faults = [Kind::Kill, Kind::Pause, Kind::Restart, Kind::Delay];
    for (workload, seed) in [
        (Name::Counter, 10),
        (Name::Queue, 11),
        (Name::Timestamps, 12),
    ] {
        holds_for(workload, seed, 8, &faults).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_full_disks_cost_time_and_nothing_else() {
    holds_for(Name::Append, 13, 10, &[Kind::SlowDisk]).await;
    holds_for(Name::Append, 14, 10, &[Kind::FullDisk]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clocks_cost_time_and_nothing_else() {
    holds_for(Name::Append, 15, 12, &[Kind::Clock]).await;
}

/// The proxies know who speaks to whom: a gateway that is cut off from all
/// kvnodes serves nobody, the other one everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_concerns_those_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = crate::durability::options(folder.path());
    options.proxied = true;
    let cluster = Cluster::start(&options).await.unwrap();
    let client = sql::connect(&cluster.pg_url(1)).await.unwrap();
    let create = "CREATE TABLE t (id int8 PRIMARY KEY); INSERT INTO t VALUES (1)";
    client.batch_execute(create).await.unwrap();

    let cut = (0..3).map(|n| Link::new(Peer::Gateway(0), Peer::KvNode(n)));
    cluster.network.apply(Rules::hold(cut));
    let read = async |gateway: usize| -> Option<i64> {
        let client = sql::connect(&cluster.pg_url(gateway)).await.ok()?;
        let query = client.query_one("SELECT id FROM t", &[]);
        let row = tokio::time::timeout(Duration::from_secs(3), query).await;
        Some(row.ok()?.ok()?.get(0))
    };
    assert_eq!(read(0).await, None);
    assert_eq!(read(1).await, Some(1));
    cluster.network.heal();
    // Its connections to the nodes have to be made anew.
    let mut healed = None;
    for _ in 0..20 {
        healed = read(0).await;
        if healed.is_some() {
            break;
        }
    }
    assert_eq!(healed, Some(1));
}
