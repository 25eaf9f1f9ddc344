//! `docs/METRICS.md` lists what the services show, neither less nor more.

use crate::durability::options;
use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, http_get};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_lists_every_series() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&options(root.path())).await.unwrap();
    let client = bank::connect(&cluster.pg_url(0)).await.unwrap();
    client
        .batch_execute("CREATE TABLE t (id int8 PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let services = [&cluster.metaservice]
        .into_iter()
        .chain(&cluster.kvnodes)
        .chain(&cluster.gateways);
    let mut shown = BTreeSet::new();
    for service in services {
        let (status, body) = http_get(service.http, "/metrics").await.unwrap();
        assert_eq!(status, 200);
        let types = body.lines().filter_map(|l| l.strip_prefix("# TYPE "));
        shown.extend(types.filter_map(|l| Some(l.split(' ').next()?.to_owned())));
    }
    let reference = include_str!("../../../docs/METRICS.md");
    let listed: BTreeSet<String> = reference
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|name| name.starts_with("lineradb_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(shown, listed);
}
