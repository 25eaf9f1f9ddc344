//! What was acknowledged survives whatever is killed.

use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, ClusterOptions};
use lineradb_chaos::workload::Verdict;
use lineradb_common::spawn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn options(root: &std::path::Path) -> ClusterOptions {
    ClusterOptions {
        root: root.to_owned(),
        kvnodes: 3,
        gateways: 2,
        well_known_ports: false,
        split_bytes: None,
        proxied: false,
        measured_clocks: false,
    }
}

/// `kill -9` of every process at once during load; after the restart every
/// acknowledged row is there.
#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_row_survives_the_death_of_all_processes() {
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    client
        .batch_execute("CREATE TABLE t (id int8 PRIMARY KEY, v text)")
        .await
        .unwrap();
    let acknowledged = Arc::new(parking_list::List::default());
    let writer = {
        let acknowledged = acknowledged.clone();
        spawn::task("writer", async move {
            for id in 0i64.. {
                let text = format!("value {id}");
                if client
                    .execute("INSERT INTO t VALUES ($1, $2)", &[&id, &text])
                    .await
                    .is_err()
                {
                    return;
                }
                acknowledged.push(id);
            }
        })
    };
    acknowledged.wait_for(100).await;
    cluster.kill_all().unwrap();
    writer.await.unwrap();
    cluster.start_all().unwrap();
    cluster.ready().await.unwrap();
    let client = bank::connect(&cluster.pg_url(1)).await.unwrap();
    let rows = client
        .query("SELECT id, v FROM t ORDER BY id", &[])
        .await
        .unwrap();
    let found: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let acknowledged = acknowledged.all();
    for id in &acknowledged {
        assert!(found.contains(id), "row {id} was acknowledged and is lost");
    }
    // At most the one row whose reply was lost may be there too.
    assert!(found.len() <= acknowledged.len() + 1);
    for row in rows {
        let (id, text): (i64, &str) = (row.get(0), row.get(1));
        assert_eq!(text, format!("value {id}"));
    }
}

/// Transfers between accounts while one kvnode after the other is killed and
/// restarted.
#[tokio::test(flavor = "multi_thread")]
async fn no_money_is_made_or_lost_while_kvnodes_die() {
    const ACCOUNTS: i32 = 20;
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    bank::create(&client, ACCOUNTS).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let urls = cluster.pg_urls();
    let run = spawn::task("bank", bank::run(urls, 4, ACCOUNTS, stop.clone()));
    for victim in 0..cluster.kvnodes.len() {
        // Each phase lasts until money has moved in it: progress, not time.
        wait_for_ledger_to_grow(&client).await;
        cluster.kvnodes[victim].kill().unwrap();
        wait_for_ledger_to_grow(&client).await;
        cluster.kvnodes[victim].start().unwrap();
        cluster.kvnodes[victim].ready().await.unwrap();
    }
    stop.store(true, Ordering::Release);
    let events = run.await.unwrap().unwrap();
    assert_eq!(bank::check(&events).unwrap(), Verdict::Holds);
}

/// Returns when more transfers are in the ledger than there were.
pub async fn wait_for_ledger_to_grow(client: &tokio_postgres::Client) {
    let size = async || -> Option<i64> {
        let row = client
            .query_one("SELECT count(*) FROM ledger", &[])
            .await
            .ok()?;
        Some(row.get(0))
    };
    let mut before = None;
    for _ in 0..600 {
        match (before, size().await) {
            (None, now) => before = now,
            (Some(then), Some(now)) if now > then + 10 => return,
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no transfer committed within a minute");
}

/// A list that one task fills and another waits on.
mod parking_list {
    use std::sync::Mutex;
    use tokio::sync::Notify;

    #[derive(Default)]
    pub struct List {
        items: Mutex<Vec<i64>>,
        grown: Notify,
    }

    impl List {
        pub fn push(&self, item: i64) {
            self.items.lock().unwrap().push(item);
            self.grown.notify_one();
        }

        pub async fn wait_for(&self, len: usize) {
            while self.items.lock().unwrap().len() < len {
                self.grown.notified().await;
            }
        }

        pub fn all(&self) -> Vec<i64> {
            self.items.lock().unwrap().clone()
        }
    }
}
