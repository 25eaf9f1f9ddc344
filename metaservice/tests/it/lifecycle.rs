//! The life of shards, as fake nodes report it.

use crate::cluster::{FakeNodes, Metas};
use lineradb_common::ReplicaId;
use lineradb_proto::meta::v1 as meta;
use std::collections::BTreeSet;
use tokio_stream::StreamExt;

async fn bootstrapped(metas: &Metas, nodes: &mut FakeNodes) -> meta::ClusterMap {
    loop {
        nodes.round(metas).await;
        let map = metas.map().await;
        if !map.shards.is_empty() && map.shards.iter().all(|s| s.leader_node_id != 0) {
            return map;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_shards_appear_when_enough_nodes_are_there() {
    let metas = Metas::start(1, 3).await;
    let mut two = FakeNodes::register(&metas, 1..=2).await;
    for _ in 0..10 {
        two.round(&metas).await;
    }
    assert!(metas.map().await.shards.is_empty());
    let mut third = FakeNodes::register(&metas, 3..=3).await;
    two.nodes.append(&mut third.nodes);
    let map = bootstrapped(&metas, &mut two).await;
    assert_eq!(map.shards.len(), 3);
    for shard in &map.shards {
        let nodes: BTreeSet<_> = shard.replicas.iter().map(|r| r.node_id).collect();
        assert_eq!(nodes.len(), 3);
        for node in &two.nodes {
            let held = &node.replicas[&shard.shard_id];
            let founded = held.shard.as_ref().unwrap();
            assert_eq!(founded.replicas, shard.replicas, "identical membership");
        }
    }
    assert!(map.nodes.iter().all(|n| n.live));
}

#[tokio::test(flavor = "multi_thread")]
async fn c3_a_replica_that_existed_is_never_founded_again() {
    let metas = Metas::start(1, 1).await;
    let mut nodes = FakeNodes::register(&metas, 1..=1).await;
    bootstrapped(&metas, &mut nodes).await;
    for _ in 0..5 {
        nodes.round(&metas).await;
    }
    nodes.nodes[0].replicas.clear();
    for _ in 0..5 {
        nodes.round(&metas).await;
    }
    assert!(nodes.nodes[0].replicas.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_shard_is_split_once_and_appears_in_the_watch() {
    let metas = Metas::start(1, 3).await;
    let mut nodes = FakeNodes::register(&metas, 1..=3).await;
    let before = bootstrapped(&metas, &mut nodes).await;
    let mut watch = { metas.client(1) }
        .watch_map(meta::GetMapRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!(first.shards.len(), before.shards.len());
    let shard_id = before.shards[2].shard_id;
    for node in &mut nodes.nodes {
        node.replicas.get_mut(&shard_id).unwrap().size_bytes = 1500;
    }
    while metas.map().await.shards.len() < 4 {
        nodes.round(&metas).await;
    }
    for _ in 0..5 {
        nodes.round(&metas).await;
    }
    let after = metas.map().await;
    assert_eq!(after.shards.len(), 4);
    let mut revision = first.revision;
    loop {
        let map = watch.next().await.unwrap().unwrap();
        assert!(map.revision > revision);
        revision = map.revision;
        if map.shards.len() == 4 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_by_key_waits_for_the_map_and_is_idempotent() {
    let metas = Metas::start(1, 3).await;
    let mut nodes = FakeNodes::register(&metas, 1..=3).await;
    bootstrapped(&metas, &mut nodes).await;
    let request = meta::SplitShardRequest {
        shard_id: 0,
        split_key: bytes::Bytes::from_static(b"t5"),
    };
    for _ in 0..2 {
        let mut client = metas.client(1);
        let split = client.split_shard(request.clone());
        tokio::pin!(split);
        let reply = loop {
            tokio::select! {
                reply = &mut split => break reply.unwrap().into_inner(),
                () = nodes.round(&metas) => {}
            }
        };
        assert_eq!(reply.left.unwrap().span.unwrap().end, "t5");
        assert_eq!(reply.right.unwrap().span.unwrap().start, "t5");
        assert_eq!(metas.map().await.shards.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_split_is_said_so() {
    let metas = Metas::start(1, 1).await;
    let mut nodes = FakeNodes::register(&metas, 1..=1).await;
    bootstrapped(&metas, &mut nodes).await;
    nodes.nodes[0].stubborn = true;
    let mut client = metas.client(1);
    let split = client.split_shard(meta::SplitShardRequest {
        shard_id: 1,
        split_key: bytes::Bytes::new(),
    });
    tokio::pin!(split);
    let status = loop {
        tokio::select! {
            reply = &mut split => break reply.unwrap_err(),
            () = nodes.round(&metas) => {}
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(status.message().contains("no middle"), "{status}");
    for (shard_id, split_key, code) in [
        (0, "", tonic::Code::InvalidArgument),
        (99, "", tonic::Code::NotFound),
        (1, "zzz", tonic::Code::InvalidArgument),
    ] {
        let request = meta::SplitShardRequest {
            shard_id,
            split_key: bytes::Bytes::from_static(split_key.as_bytes()),
        };
        let status = metas.client(1).split_shard(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_replica_is_replaced_under_a_new_id() {
    let metas = Metas::start(1, 3).await;
    let mut nodes = FakeNodes::register(&metas, 1..=3).await;
    let map = bootstrapped(&metas, &mut nodes).await;
    let shard = &map.shards[0];
    // Not the leader.
    let victim = shard
        .replicas
        .iter()
        .find(|r| r.node_id != shard.leader_node_id);
    let victim = victim.unwrap().clone();
    let index = { nodes.nodes.iter() }
        .position(|n| n.id == victim.node_id)
        .unwrap();
    let status = nodes.nodes[index]
        .replicas
        .get_mut(&shard.shard_id)
        .unwrap();
    status.failed = "table 000007.sst is corrupt".to_owned();
    let after = loop {
        nodes.round(&metas).await;
        let map = metas.map().await;
        if map.shards[0].configuration_version > shard.configuration_version {
            break map;
        }
    };
    let replicas = &after.shards[0].replicas;
    assert_eq!(replicas.len(), 3);
    let new = replicas
        .iter()
        .find(|r| r.node_id == victim.node_id)
        .unwrap();
    assert_eq!(ReplicaId(new.replica_id).incarnation(), 2);
    let node = &nodes.nodes[index];
    assert_eq!(node.destroyed, vec![victim.replica_id]);
    assert_eq!(node.replicas[&shard.shard_id].replica_id, new.replica_id);
    // And nothing more happens.
    for _ in 0..5 {
        nodes.round(&metas).await;
    }
    assert_eq!(metas.map().await.shards[0], after.shards[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_of_an_older_process_is_refused() {
    let metas = Metas::start(1, 1).await;
    let mut old = FakeNodes::register(&metas, 1..=1).await.nodes.remove(0);
    FakeNodes::register(&metas, 1..=1).await;
    let status = old.beat(&mut metas.client(1)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    old.id = 77;
    let status = old.beat(&mut metas.client(1)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
}
