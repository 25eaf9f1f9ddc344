//! C4: replicas born by asking. A node that was away while a shard was split
//! gets a snapshot of the parent as it is now, and so never applies the split.

use crate::cluster::{Cluster, descriptor, eventually, get, put, replica_on};
use lineradb_common::{NodeId, ShardId};
use lineradb_kvnode::command::Verdict;
use lineradb_kvnode::consensus::Retention;
use lineradb_kvnode::consensus::types::{
    Membership, StoredMembership, encode_membership, raft_log_id,
};
use lineradb_kvnode::raft_log::LogId;
use lineradb_kvnode::transport::Lane;
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::raft::v1::{self as proto, raft_request::Body, snapshot_chunk::Part};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn key(n: u64) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

/// Three nodes that keep no log for laggards.
async fn forgetful() -> Cluster {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.retention = Retention {
        group_bytes: 0,
        group_entries: 0,
        log_bytes: 1 << 30,
        interval: Duration::from_millis(10),
    };
    for node in [1, 2, 3] {
        cluster.stop(node).await;
        cluster.start(node).await;
    }
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    cluster
}

async fn follower(cluster: &Cluster) -> u64 {
    let (leader, _) = cluster.leader(1).await;
    [1, 2, 3].into_iter().find(|node| *node != leader).unwrap()
}

/// Writes to the left half until nobody has the log of the split any more.
async fn purge_the_split(cluster: &Cluster) {
    let split_at = { cluster.nodes.keys() }
        .map(|node| cluster.group(*node, 1).applied_index())
        .max()
        .unwrap();
    for n in 0..300 {
        cluster.write(1, vec![put(&key(n), b"left")], vec![]).await;
    }
    for (node, on) in &cluster.nodes {
        cluster.holds(*node, &key(299), b"left").await;
        on.db.flush().unwrap();
        let log = on.groups.raft_log().group(ShardId(1));
        eventually("the split leaves the log", async || {
            (log.stats().purged_index > split_at).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_over_a_split_gets_both_halves() {
    let mut cluster = forgetful().await;
    cluster.write(1, vec![put(b"z", b"before")], vec![]).await;
    let away = follower(&cluster).await;
    cluster.holds(away, b"z", b"before").await;
    cluster.stop(away).await;
    // The right half is split once more: two children that it never heard of.
    assert_eq!(cluster.split(1, b"m", 2).await, Verdict::Applied);
    cluster.write(2, vec![put(b"z", b"after")], vec![]).await;
    assert_eq!(cluster.split(2, b"y", 3).await, Verdict::Applied);
    cluster.write(2, vec![put(b"n", b"after")], vec![]).await;
    cluster.write(3, vec![put(b"z", b"later")], vec![]).await;
    purge_the_split(&cluster).await;

    cluster.start(away).await;
    for (id, key, value) in [
        (1, &key(299)[..], &b"left"[..]),
        (2, b"n", b"after"),
        (3, b"z", b"later"),
    ] {
        eventually("a replica is there", async || {
            cluster.nodes[&away].groups.get(ShardId(id))
        })
        .await;
        cluster.holds(away, key, value).await;
        assert_eq!(cluster.group(away, id).replica_id(), replica_on(away, 1));
    }
    // What the snapshots brought is durable.
    cluster.kill(away).await;
    cluster.start(away).await;
    // And it counts: with another node gone, every shard still has a majority.
    let gone = [1, 2, 3].into_iter().find(|node| *node != away).unwrap();
    cluster.kill(gone).await;
    for (id, key) in [(1, &b"a"[..]), (2, b"o"), (3, b"zz")] {
        cluster.write(id, vec![put(key, b"two left")], vec![]).await;
        cluster.holds(away, key, b"two left").await;
    }
    cluster.stop_all().await;
}

/// A child that applied its split, voted, and lost its seed with the engine's
/// memory must not come up again as if it had promised nothing (C3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_has_voted_is_not_born_again() {
    let mut cluster = forgetful().await;
    let away = follower(&cluster).await;
    assert_eq!(cluster.split(1, b"m", 2).await, Verdict::Applied);
    cluster.write(2, vec![put(b"z", b"1")], vec![]).await;
    cluster.holds(away, b"z", b"1").await;
    let log = cluster.nodes[&away].groups.raft_log().group(ShardId(2));
    log.save_vote(log.vote().unwrap()).await.unwrap();
    cluster.kill(away).await;
    purge_the_split(&cluster).await;
    // A leader that knew how far that log goes would tell it that the split is
    // committed, and the replay would make the seed.
    for node in [1, 2, 3].into_iter().filter(|node| *node != away) {
        cluster.stop(node).await;
        cluster.start(node).await;
    }

    cluster.start(away).await;
    // The parent is rebuilt as its left half alone ...
    cluster.holds(away, &key(299), b"left").await;
    let log = cluster.nodes[&away].groups.raft_log().group(ShardId(2));
    assert!(log.vote().is_some() && log.replica() == Some(replica_on(away, 1)));
    // Addressed again and again, it stays closed: each message waits a moment
    // for a birth.
    let (leader, _) = cluster.leader(2).await;
    let itself = cluster.network.join(NodeId(away));
    for _ in 0..10 {
        let request = proto::RaftRequest {
            group_id: 2,
            to_replica: replica_on(away, 1).0,
            from_replica: cluster.group(leader, 2).replica_id().0,
            body: Some(Body::PreVote(proto::VoteRequest::default())),
            ..Default::default()
        };
        let reply = itself.send(NodeId(away), Lane::Bulk, request).await;
        reply.unwrap().unwrap();
    }
    assert!(cluster.nodes[&away].groups.get(ShardId(2)).is_none());
    // ... and the child is made anew under another id, which nothing holds up.
    let child = cluster.leader(2).await.0;
    let descriptor = cluster.group(child, 2).descriptor();
    let new = replica_on(away, 2);
    let create = meta::CreateReplica {
        shard: Some((*descriptor).clone()),
        replica_id: new.0,
        founding: false,
    };
    let there = &cluster.nodes[&away].groups;
    eventually("the parent makes room", async || {
        there.create_replica(create.clone()).await.ok()
    })
    .await;
    let replace = meta::ReplaceReplica {
        shard_id: 2,
        old_replica_id: replica_on(away, 1).0,
        new: Some(lineradb_proto::shard::v1::Replica {
            replica_id: new.0,
            node_id: away,
            address: String::new(),
        }),
    };
    eventually("the replica is replaced", async || {
        let (leader, _) = cluster.leader(2).await;
        let leader = &cluster.nodes[&leader].groups;
        leader.replace_replica(replace.clone()).await.ok()
    })
    .await;
    cluster.write(2, vec![put(b"z", b"2")], vec![]).await;
    cluster.holds(away, b"z", b"2").await;
    assert_eq!(cluster.group(away, 2).replica_id(), new);
    cluster.stop_all().await;
}

/// An empty snapshot of shard 1 from node 3 for its new replica on node 2.
fn snapshot(end: &[u8]) -> Vec<Part> {
    let leader = replica_on(3, 1).0;
    let nodes = BTreeMap::from([(leader, openraft::BasicNode::new(""))]);
    let voters = vec![BTreeSet::from([leader])];
    let at = LogId { term: 1, index: 7 };
    let membership = StoredMembership::new(
        Some(raft_log_id(at)),
        Membership::new(voters, nodes).unwrap(),
    );
    let meta = [&[1, 1, 7][..], &encode_membership(&membership)].concat();
    let header = proto::SnapshotHeader {
        group_id: 1,
        to_replica: replica_on(2, 1).0,
        from_replica: leader,
        vote: Some(proto::Vote {
            term: 1,
            replica_id: leader,
            committed: true,
        }),
        meta: meta.into(),
        shard_state: descriptor(1, b"", end, &[3]).encode_to_vec().into(),
    };
    vec![
        Part::Header(header),
        Part::End(proto::SnapshotEnd { rows: 0 }),
    ]
}

/// The parent moves to a node that holds its child already, and its leader has
/// not applied the split yet: what it sends covers the child's rows too. It is
/// refused, and the one that comes after the split is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_cut_before_a_split_is_refused_where_the_child_lives() {
    let cluster = Cluster::new(&[2, 3]).await;
    cluster.found(2, b"m", b"", &[2]).await;
    cluster.write(2, vec![put(b"z", b"kept")], vec![]).await;
    let there = &cluster.nodes[&2].groups;
    let create = meta::CreateReplica {
        shard: Some(descriptor(1, b"", b"m", &[3])),
        replica_id: replica_on(2, 1).0,
        founding: false,
    };
    there.create_replica(create).await.unwrap();
    let leader = cluster.network.join(NodeId(3));
    let send = async |end: &[u8]| {
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        for part in snapshot(end) {
            let chunk = proto::SnapshotChunk { part: Some(part) };
            tx.send(Ok(chunk)).await.unwrap();
        }
        drop(tx);
        leader.install(NodeId(2), rx).await
    };
    let refused = send(b"").await.unwrap_err();
    assert!(refused.to_string().contains("overlaps"), "{refused}");
    assert_eq!(cluster.group(2, 1).applied_index(), 0);
    send(b"m").await.unwrap();
    assert_eq!(cluster.group(2, 1).applied_index(), 7);
    let kept = get(&cluster.nodes[&2].db, b"z");
    assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
    cluster.stop_all().await;
}
