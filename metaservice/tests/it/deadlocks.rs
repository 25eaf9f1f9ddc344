//! Reports of waits, and who is told to give way.

use crate::cluster::{FakeNodes, Metas, eventually};
use lineradb_proto::meta::v1 as meta;

const OLDER: u8 = 1;
const YOUNGER: u8 = 2;

fn id(txn: u8) -> bytes::Bytes {
    vec![txn; 16].into()
}

/// A transaction that waits for another one on a node.
fn report(node_id: u64, waiter: u8, holder: u8) -> meta::ReportWaitsRequest {
    meta::ReportWaitsRequest {
        node_id,
        waits: vec![meta::LockWait {
            txn_id: id(waiter),
            start_ts: waiter.into(),
            holders: vec![id(holder)],
        }],
    }
}

/// Two nodes of which each sees one half of a circle report to the leader until
/// one of them is told; the younger one's.
async fn circle_is_seen(metas: &Metas, nodes: &FakeNodes) {
    let [older_at, younger_at] = [nodes.nodes[0].id, nodes.nodes[1].id];
    let told = eventually("a victim is told", || async move {
        let mut client = metas.client(metas.leader().await);
        let older = client.report_waits(report(older_at, OLDER, YOUNGER)).await;
        if let Ok(reply) = older {
            assert!(reply.into_inner().deadlocks.is_empty());
        }
        let younger = client.report_waits(report(younger_at, YOUNGER, OLDER));
        let reply = younger.await.ok()?.into_inner();
        (!reply.deadlocks.is_empty()).then_some(reply)
    })
    .await;
    let circle = vec![id(YOUNGER), id(OLDER)];
    assert_eq!(told.deadlocks, [meta::Deadlock { txn_ids: circle }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_sees_deadlocks_from_the_next_reports() {
    let mut metas = Metas::start(3, 1).await;
    let nodes = FakeNodes::register(&metas, 1..=2).await;
    circle_is_seen(&metas, &nodes).await;
    let leader = metas.leader().await;
    // Another member does not answer in its place, and names it.
    let other = (1..=3).find(|member| *member != leader).unwrap();
    let refused = { metas.client(other) }
        .report_waits(report(nodes.nodes[0].id, OLDER, YOUNGER))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let named = refused.metadata().get("lineradb-leader").unwrap();
    assert_eq!(named.to_str().unwrap(), metas.config(leader).listen);
    metas.kill(leader).await;
    circle_is_seen(&metas, &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused() {
    let metas = Metas::start(1, 1).await;
    let nodes = FakeNodes::register(&metas, 1..=1).await;
    let node = nodes.nodes[0].id;
    let mut client = metas.client(metas.leader().await);
    let stranger = client.report_waits(report(77, OLDER, YOUNGER)).await;
    assert_eq!(stranger.unwrap_err().code(), tonic::Code::NotFound);
    let mut short = report(node, OLDER, YOUNGER);
    short.waits[0].holders = vec!["short".into()];
    let refused = client.report_waits(short).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}
