//! A damaged replica is never served: it is rebuilt from the others.

use crate::durability::options;
use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, http_get};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Overwrites the middle of every table file of a node.
fn damage_tables(node: &Path) -> usize {
    let tables: Vec<PathBuf> = std::fs::read_dir(node.join("engine"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect();
    for table in &tables {
        let mut bytes = std::fs::read(table).unwrap();
        let middle = bytes.len() / 2;
        for byte in bytes.iter_mut().skip(middle).take(64) {
            *byte ^= 0x5a;
        }
        std::fs::write(table, bytes).unwrap();
    }
    tables.len()
}

/// The ids of the replicas on a node that work.
async fn replicas(cluster: &Cluster, node: usize) -> Vec<u64> {
    let Some((200, body)) = http_get(cluster.kvnodes[node].http, "/v1/status").await else {
        return Vec::new();
    };
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    let replicas = status["replicas"].as_array().unwrap();
    let works = |r: &&serde_json::Value| r["failed"].as_str().is_none_or(str::is_empty);
    let ids = replicas.iter().filter(works);
    ids.filter_map(|r| r["replica"].as_u64()).collect()
}

/// How many replicas are being replaced: until their successors vote.
async fn pending(cluster: &Cluster) -> Option<u64> {
    let (_, body) = http_get(cluster.metaservice.http, "/v1/status").await?;
    let status: serde_json::Value = serde_json::from_str(&body).ok()?;
    status["replacements_pending"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_damaged_tables_is_rebuilt_from_the_others() {
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (id int8 PRIMARY KEY, v text); \
             INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) g(i)",
        )
        .await
        .unwrap();
    let before = replicas(&cluster, 1).await;
    assert!(!before.is_empty());
    // A clean stop writes everything to tables.
    assert!(cluster.kvnodes[1].terminate().unwrap().success());
    assert!(damage_tables(&root.path().join("kvnode-2")) > 0);
    cluster.kvnodes[1].start().unwrap();
    // Every replica there gets a successor under an id of its own (C3).
    let mut rebuilt = false;
    for _ in 0..600 {
        let now = replicas(&cluster, 1).await;
        rebuilt = now.len() == before.len()
            && now.iter().all(|id| !before.contains(id))
            && pending(&cluster).await == Some(0);
        if rebuilt {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(rebuilt, "{}", cluster.kvnodes[1].log_tail());
    // Now the rebuilt one is needed for a quorum, and may lead.
    cluster.kvnodes[0].kill().unwrap();
    let row = client
        .query_one("SELECT count(*), sum(length(v)) FROM t", &[])
        .await
        .unwrap();
    assert_eq!(
        (row.get::<_, i64>(0), row.get::<_, i64>(1)),
        (2000, 200_000)
    );
}
