//! Index builds whose driver dies in the middle.

use crate::cluster::{Cluster, on_cluster};
use lineradb_sqlgateway::Gateway;
use lineradb_sqlgateway::catalog::IndexState;
use lineradb_sqlgateway::session::{Session, SessionParams};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// The states of the indexes of table `t`, the primary one left out.
fn states(gateway: &Gateway) -> Vec<IndexState> {
    let snapshot = gateway.catalog().snapshot();
    let table = snapshot.tables().find(|t| t.name == "t").unwrap();
    let all = table.pending_primary.iter().chain(&table.indexes);
    all.map(|index| index.state).collect()
}

async fn run(session: &mut Session, sql: &str) {
    let mut query = session.begin_simple(sql).unwrap();
    while let Some(outcome) = session.next_simple(&mut query).await {
        outcome.unwrap();
    }
}

/// Runs a statement that builds an index, and drops it as soon as the index is
/// maintained: what happens when its gateway is killed.
async fn begin_and_die(gateway: &Arc<Gateway>, sql: &str) {
    let mut session = gateway.session(SessionParams::default()).unwrap();
    let mut build = pin!(run(&mut session, sql));
    poll_fn(|context| {
        assert!(
            build.as_mut().poll(context).is_pending(),
            "the build ended before it could be interrupted"
        );
        match states(gateway).contains(&IndexState::WriteOnly) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Waits until no index of the table is under construction.
async fn settled(gateway: &Gateway) -> Vec<IndexState> {
    loop {
        gateway.catalog().refresh().await.unwrap();
        let states = states(gateway);
        if !states.contains(&IndexState::WriteOnly) {
            return states;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn table(cluster: &Cluster) -> tokio_postgres::Client {
    let client = cluster.connect().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int, v int); \
             INSERT INTO t SELECT g, g % 100 FROM generate_series(1, 5000) AS g",
        )
        .await
        .unwrap();
    client
}

#[test]
fn a_build_is_carried_on_when_its_statement_is_gone() {
    on_cluster(|cluster| async move {
        let client = table(&cluster).await;
        let gateway = cluster.gateway.gateway();
        begin_and_die(gateway, "CREATE INDEX i ON t (v)").await;
        client
            .batch_execute("INSERT INTO t VALUES (5001, 7)")
            .await
            .unwrap();
        assert_eq!(settled(gateway).await, [IndexState::Public]);
        let row = client
            .query_one("SELECT count(*) FROM t WHERE v = 7", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), 51);
        // One that cannot succeed is taken back, and its name is free.
        begin_and_die(gateway, "CREATE UNIQUE INDEX u ON t (v)").await;
        assert_eq!(settled(gateway).await, [IndexState::Public]);
        client
            .batch_execute("CREATE UNIQUE INDEX u ON t (id)")
            .await
            .unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_build_of_a_dead_gateway_is_taken_over() {
    on_cluster(|cluster| async move {
        let client = table(&cluster).await;
        let other = cluster.another_gateway(Duration::from_millis(200)).await;
        // It goes down as a whole: nothing of it sees that the build is left.
        other.gateway().stop_background();
        begin_and_die(other.gateway(), "ALTER TABLE t ADD PRIMARY KEY (id)").await;
        other.shutdown().await;
        let gateway = cluster.gateway.gateway();
        gateway.catalog().refresh().await.unwrap();
        assert_eq!(states(gateway), [IndexState::WriteOnly]);
        let third = cluster.another_gateway(Duration::from_millis(200)).await;
        assert_eq!(settled(third.gateway()).await, []);
        let error = client
            .batch_execute("INSERT INTO t VALUES (1, 1)")
            .await
            .unwrap_err();
        assert_eq!(error.code().unwrap().code(), "23505");
        third.shutdown().await;
        cluster.stop().await;
    });
}
