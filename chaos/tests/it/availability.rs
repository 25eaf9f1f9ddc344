//! Who is served while nodes are there and say nothing, or are gone.

use crate::durability::options;
use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, http_get};
use lineradb_chaos::proxy::{Link, Peer, Rules};
use lineradb_common::clock::{deadline_after, wall_clock_us};
use std::time::Duration;

/// A leader that has lost its peers, while the gateway still reaches it: nobody confirms it,
/// so it can serve nothing. Each node is cut off in turn, the leader of the row among them, and a
/// statement that has the patience for an election is carried out at the first try. (A leader that
/// does not answer at all: `client/src/tests/routing.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_its_peers_is_routed_around() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    options.proxied = true;
    let mut cluster = Cluster::start(&options).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    let create = "CREATE TABLE t (id int8 PRIMARY KEY, v int8);
                  INSERT INTO t VALUES (1, 0);
                  SET statement_timeout = '9s'";
    client.batch_execute(create).await.unwrap();
    let nodes = cluster.kvnodes.len();
    for victim in 0..nodes {
        let peers = (0..nodes).filter(|peer| *peer != victim);
        let links = peers.flat_map(|peer| {
            let link = Link::new(Peer::KvNode(victim), Peer::KvNode(peer));
            [link, link.back()]
        });
        cluster.network.apply(Rules::hold(links));
        let update = "UPDATE t SET v = v + 1 WHERE id = 1";
        let served = client.execute(update, &[]).await;
        cluster.network.heal();
        assert_eq!(served.unwrap(), 1, "while node {victim} was cut off");
        cluster.kvnodes[victim].ready().await.unwrap();
    }
}

/// How many reads of the past a gateway had answered by replicas that need not lead.
async fn read_by_any_replica(cluster: &Cluster) -> u64 {
    let (_, body) = http_get(cluster.gateways[0].http, "/metrics")
        .await
        .unwrap();
    let series = "lineradb_past_reads_total{by=\"any_replica\"} ";
    let line = body.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap().trim().parse().unwrap()
}

/// What a gateway knows to be closed it reads from the replica in its zone, whatever happens:
/// two of three nodes die, so that nobody leads and nothing can be written, and the past
/// is still there (L4).
#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_read_without_a_quorum() {
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    let create = "CREATE TABLE t (id int8 PRIMARY KEY, v text);
                  INSERT INTO t VALUES (1, 'kept'), (2, 'kept');
                  SET statement_timeout = '10s'";
    client.batch_execute(create).await.unwrap();
    let past = wall_clock_us() + 500_000;
    let query = format!("SELECT count(*) FROM t AS OF SYSTEM TIME {past} WHERE v = 'kept'");
    let count = async || -> Result<i64, tokio_postgres::Error> {
        Ok(client.query_one(&query, &[]).await?.get(0))
    };
    // First it lies in the future, then the leader answers, then any replica does.
    let deadline = deadline_after(Duration::from_secs(60));
    let mut before = u64::MAX;
    while read_by_any_replica(&cluster).await <= before {
        before = read_by_any_replica(&cluster).await;
        match count().await {
            Ok(rows) => assert_eq!(rows, 2),
            Err(error) => assert_eq!(error.code().map(|c| c.code()), Some("22023")),
        }
        let pause = tokio::time::sleep(Duration::from_millis(50));
        let waited = tokio::time::timeout_at(deadline, pause).await;
        assert!(waited.is_ok(), "only leaders answer");
    }
    client.execute("DELETE FROM t", &[]).await.unwrap();
    assert_eq!(count().await.unwrap(), 2);
    for victim in [1, 2] {
        cluster.kvnodes[victim].kill().unwrap();
    }
    assert_eq!(count().await.unwrap(), 2);
    let write = client.execute("INSERT INTO t VALUES (3, 'new')", &[]).await;
    assert!(write.is_err(), "without a quorum nothing is written");
}
