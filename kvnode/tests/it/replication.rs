//! Replicas as a cluster: writes, lost leaders, restarts, snapshots, splits,
//! many groups over one log.

use crate::cluster::{Cluster, descriptor, eventually, expecting, get, put, replica_on};
use bytes::Bytes;
use lineradb_common::{NodeId, ShardId};
use lineradb_kvnode::Error;
use lineradb_kvnode::command::{Body, Command, Op, Rejection, Tree, Verdict};
use lineradb_kvnode::consensus::{
    GroupObserver, Leadership, ProposeError, ReadError, SplitApplied,
};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1 as shard;
use parking_lot::Mutex;
use std::sync::Arc;

fn key(n: u64) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_survive_a_lost_leader_and_the_loss_of_all_power() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    for n in 0..20 {
        let verdict = cluster.write(1, vec![put(&key(n), b"one")], vec![]).await;
        assert_eq!(verdict, Verdict::Applied);
    }
    let (lost, _) = cluster.leader(1).await;
    cluster.kill(lost).await;
    for n in 20..40 {
        cluster.write(1, vec![put(&key(n), b"two")], vec![]).await;
    }
    cluster.start(lost).await;
    cluster.holds(lost, &key(39), b"two").await;
    for node in [1, 2, 3] {
        cluster.kill(node).await;
    }
    for node in [1, 2, 3] {
        cluster.start(node).await;
    }
    cluster.write(1, vec![put(b"last", b"x")], vec![]).await;
    for node in [1, 2, 3] {
        cluster.holds(node, b"last", b"x").await;
        for n in 0..40 {
            let value: &[u8] = if n < 20 { b"one" } else { b"two" };
            assert_eq!(
                get(&cluster.nodes[&node].db, &key(n)).as_deref(),
                Some(value)
            );
        }
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_a_compare_and_set_and_knows_its_shard() {
    let cluster = Cluster::new(&[1]).await;
    cluster.found(1, b"b", b"d", &[1]).await;
    let rejected = |why| Verdict::Rejected(why);
    let write = async |ops, expect| cluster.write(1, ops, expect).await;
    assert_eq!(
        write(vec![put(b"c", b"1")], vec![expecting(b"c", None)]).await,
        Verdict::Applied
    );
    assert_eq!(
        write(vec![put(b"c", b"2")], vec![expecting(b"c", None)]).await,
        rejected(Rejection::ExpectFailed)
    );
    assert_eq!(
        write(vec![put(b"c", b"2")], vec![expecting(b"c", Some(b"1"))]).await,
        Verdict::Applied
    );
    assert_eq!(
        write(vec![put(b"d", b"1")], vec![]).await,
        rejected(Rejection::ShardChanged)
    );
    assert_eq!(get(&cluster.nodes[&1].db, b"c").as_deref(), Some(&b"2"[..]));
    assert_eq!(get(&cluster.nodes[&1].db, b"d"), None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_confirms_no_read_and_proposes_in_no_other_term() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    let (old, term) = cluster.leader(1).await;
    let group = cluster.group(old, 1);
    group.read_index(term).await.unwrap();
    assert!(matches!(
        group.read_index(term + 1).await,
        Err(ReadError::NotLeader { .. })
    ));
    for other in [1, 2, 3] {
        cluster.network.cut(NodeId(old), NodeId(other));
    }
    let read = tokio::time::timeout(
        std::time::Duration::from_millis(1500),
        group.read_index(term),
    );
    assert!(!matches!(read.await, Ok(Ok(()))), "read without a quorum");
    let (new, newer) = eventually("another leads", async || {
        cluster
            .nodes
            .iter()
            .find_map(|(node, on)| match on.groups.get(ShardId(1))?.leadership() {
                Leadership::Leader { term: now } if now > term => Some((*node, now)),
                _ => None,
            })
    })
    .await;
    assert_ne!(new, old);
    assert!(newer > term);
    cluster.network.heal_all();
    eventually("the old one follows", async || {
        matches!(group.leadership(), Leadership::Follower { .. }).then_some(())
    })
    .await;
    let stale = Command {
        term,
        shard_version: 1,
        body: Body::Write {
            ops: vec![put(b"a", b"stale")],
            expect: vec![],
        },
    };
    // C2: not even at the replica that leads now.
    for node in [old, new] {
        let refused = cluster.group(node, 1).propose(stale.clone()).await;
        assert!(
            matches!(refused, Err(ProposeError::NotLeader { .. })),
            "{refused:?}"
        );
    }
    cluster.stop_all().await;
}

/// Its followers hear its heartbeats, and would follow it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_is_replaced() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    cluster.write(1, vec![put(b"a", b"before")], vec![]).await;
    let (deaf, term) = cluster.leader(1).await;
    for other in [1, 2, 3] {
        cluster.network.cut_one_way(NodeId(other), NodeId(deaf));
    }
    let newer = eventually("another leads", async || {
        let mut nodes = cluster.nodes.iter();
        nodes.find_map(|(_, on)| match on.groups.get(ShardId(1))?.leadership() {
            Leadership::Leader { term: now } if now > term => Some((on, now)),
            _ => None,
        })
    });
    let (on, newer) = newer.await;
    let command = Command {
        term: newer,
        shard_version: 1,
        body: Body::Write {
            ops: vec![put(b"a", b"after")],
            expect: vec![],
        },
    };
    let group = on.groups.get(ShardId(1)).unwrap();
    assert_eq!(group.propose(command).await.unwrap(), Verdict::Applied);
    // What it says meanwhile disturbs nobody, and it follows when it hears again.
    cluster.network.heal_all();
    cluster.holds(deaf, b"a", b"after").await;
    cluster.stop_all().await;
}

/// It has an entry that the other voter lacks, so that nobody else can lead: it must ask
/// again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_that_alone_can_lead_is_heard_again() {
    let cluster = Cluster::new(&[1, 2]).await;
    cluster.found(1, b"", b"", &[1, 2]).await;
    cluster.write(1, vec![put(b"a", b"before")], vec![]).await;
    let (leader, term) = cluster.leader(1).await;
    cluster.network.cut(NodeId(1), NodeId(2));
    let command = Command {
        term,
        shard_version: 1,
        body: Body::Write {
            ops: vec![put(b"a", b"after")],
            expect: vec![],
        },
    };
    let group = cluster.group(leader, 1);
    let mut proposed = std::pin::pin!(group.propose(command));
    // Longer than its patience: it has fallen silent then.
    let cut = tokio::time::timeout(cluster.timing.election_max * 3, proposed.as_mut()).await;
    assert!(cut.is_err(), "committed without a quorum: {cut:?}");
    cluster.network.heal_all();
    let healed = tokio::time::timeout(std::time::Duration::from_secs(30), proposed).await;
    assert_eq!(healed.expect("it speaks again").unwrap(), Verdict::Applied);
    assert_eq!(cluster.leader(1).await, (leader, term));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_replica_is_rebuilt_by_a_snapshot_and_replaces_another() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    for n in 0..50 {
        cluster
            .write(1, vec![put(&key(n), &[7; 5000])], vec![])
            .await;
    }
    let local = Op {
        tree: Tree::Data,
        key: Bytes::from_static(b"\0\0\0\0\0\0\0\0\x01v\0\0\0\0\0\0\0\x05versions"),
        value: Some(Bytes::from_static(b"schema")),
    };
    assert_eq!(
        cluster.write(1, vec![local.clone()], vec![]).await,
        Verdict::Applied
    );
    let (leader, _) = cluster.leader(1).await;
    let old = if leader == 3 { 2 } else { 3 };
    let new = replica_on(4, 1);
    let learner = meta::CreateReplica {
        shard: Some(descriptor(1, b"", b"", &[1, 2, 3])),
        replica_id: new.0,
        founding: false,
    };
    cluster.nodes[&4]
        .groups
        .create_replica(learner)
        .await
        .unwrap();
    let order = meta::ReplaceReplica {
        shard_id: 1,
        old_replica_id: replica_on(old, 1).0,
        new: Some(shard::Replica {
            replica_id: new.0,
            node_id: 4,
            address: String::new(),
        }),
    };
    eventually("the replica is replaced", async || {
        let (leader, _) = cluster.leader(1).await;
        let done = cluster.nodes[&leader]
            .groups
            .replace_replica(order.clone())
            .await;
        done.ok()
    })
    .await;
    let destroy = meta::DestroyReplica {
        shard_id: 1,
        replica_id: replica_on(old, 1).0,
    };
    let there = &cluster.nodes[&old].groups;
    there.destroy_replica(destroy).await.unwrap();
    there.destroy_replica(destroy).await.unwrap();
    assert!(there.get(ShardId(1)).is_none());
    assert_eq!(get(&cluster.nodes[&old].db, &key(0)), None);
    // C3: it never comes back, not after a restart either.
    cluster.stop(old).await;
    cluster.start(old).await;
    let again = meta::CreateReplica {
        shard: Some(descriptor(1, b"", b"", &[1, 2, 3])),
        replica_id: replica_on(old, 1).0,
        founding: false,
    };
    let refused = cluster.nodes[&old].groups.create_replica(again).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    cluster.write(1, vec![put(b"after", b"x")], vec![]).await;
    cluster.holds(4, b"after", b"x").await;
    cluster.holds(4, &key(49), &[7; 5000]).await;
    let data = cluster.nodes[&4].db.keyspace("data").unwrap();
    let copied = cluster.nodes[&4].db.get(data, &local.key).unwrap();
    assert_eq!(copied.unwrap().to_vec(), b"schema");
    let replicas = cluster.group(4, 1).descriptor().replicas.clone();
    assert!(replicas.iter().all(|r| r.node_id != old));
    assert!(replicas.iter().any(|r| r.replica_id == new.0));
    // What the snapshot brought is durable.
    cluster.kill(4).await;
    cluster.start(4).await;
    cluster.holds(4, &key(0), &[7; 5000]).await;
    cluster.stop_all().await;
}

/// Writes down what it is told.
#[derive(Default)]
struct Diary(Mutex<Vec<String>>);

impl GroupObserver for Diary {
    fn on_leader(&self, term: u64) {
        self.0.lock().push(format!("leads {term}"));
    }
    fn on_lost_leadership(&self) {
        self.0.lock().push("lost".into());
    }
    fn on_split(&self, split: &SplitApplied) {
        self.0
            .lock()
            .push(format!("split {}", split.right.shard_id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_under_load_needs_no_election_and_loses_nothing() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    for n in 0..30 {
        cluster
            .write(1, vec![put(&key(n), b"before")], vec![])
            .await;
    }
    let version = |table: u64| {
        let mut key = b"\0\0\0\0\0\0\0\0\x01v".to_vec();
        key.extend(table.to_be_bytes());
        key.extend([0xff; 8]);
        Op {
            tree: Tree::Data,
            key: Bytes::from(key),
            value: Some(Bytes::from_static(b"version")),
        }
    };
    cluster.write(1, vec![version(5)], vec![]).await;
    // S2: not while a schema version is being written.
    let mut intent = version(6);
    intent.tree = Tree::Intent;
    cluster.write(1, vec![intent.clone()], vec![]).await;
    assert_eq!(
        cluster.split(1, b"k", 2).await,
        Verdict::Rejected(Rejection::SchemaIntent)
    );
    intent.value = None;
    cluster.write(1, vec![intent], vec![]).await;

    let (leader, term) = cluster.leader(1).await;
    let diary = Arc::new(Diary::default());
    cluster.group(leader, 1).set_observer(diary.clone());
    let load = async {
        for n in 0..40 {
            let shard = if cluster.nodes[&leader].groups.get(ShardId(2)).is_some() {
                2
            } else {
                1
            };
            let verdict = cluster
                .write(shard, vec![put(&key(n), b"during")], vec![])
                .await;
            if verdict != Verdict::Applied {
                // Routed by the old range: once more, to the child.
                assert_eq!(verdict, Verdict::Rejected(Rejection::ShardChanged));
                let again = cluster
                    .write(2, vec![put(&key(n), b"during")], vec![])
                    .await;
                assert_eq!(again, Verdict::Applied);
            }
        }
    };
    let split = async {
        tokio::task::yield_now().await;
        cluster.split(1, b"k", 2).await
    };
    let (verdict, ()) = tokio::join!(split, load);
    assert_eq!(verdict, Verdict::Applied);
    let (child_leader, child_term) = cluster.leader(2).await;
    assert_eq!(
        (child_leader, child_term),
        (leader, term),
        "an election was held"
    );
    assert_eq!(
        diary.0.lock().clone(),
        [format!("leads {term}"), "split 2".to_owned()]
    );
    for n in 0..40 {
        cluster.holds(1, &key(n), b"during").await;
    }
    let (left, right) = (cluster.group(leader, 1), cluster.group(leader, 2));
    assert_eq!(
        (left.descriptor().version, right.descriptor().version),
        (2, 2)
    );
    // S2: the child inherits the version of a table with rows in its range.
    let data = cluster.nodes[&1].db.keyspace("data").unwrap();
    let mut inherited = version(5).key.to_vec();
    inherited[8] = 2;
    eventually("the version is inherited", async || {
        cluster.nodes[&1].db.get(data, &inherited).unwrap()
    })
    .await;

    // Everybody loses power: seeds come back by replay or from the engine.
    for node in [1, 2, 3] {
        cluster.kill(node).await;
    }
    for node in [1, 2, 3] {
        cluster.start(node).await;
    }
    cluster.write(2, vec![put(b"z", b"after")], vec![]).await;
    let (_, later) = cluster.leader(2).await;
    assert!(
        later > child_term,
        "a leadership was restored after a crash (C1)"
    );
    for node in [1, 2, 3] {
        cluster.holds(node, b"z", b"after").await;
        cluster.holds(node, &key(39), b"during").await;
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_groups_share_one_log() {
    let mut cluster = Cluster::new(&[1]).await;
    for id in 0..30u64 {
        let start = if id == 0 { Vec::new() } else { key(id) };
        let end = if id == 29 { Vec::new() } else { key(id + 1) };
        cluster.found(id + 1, &start, &end, &[1]).await;
    }
    for id in 1..=30 {
        cluster.leader(id).await;
    }
    let log = cluster.nodes[&1].groups.raft_log().clone();
    for round in 0..5 {
        let writes = (0..30u64).map(|id| {
            let cluster = &cluster;
            async move {
                let value = format!("round {round}");
                let verdict = cluster
                    .write(id + 1, vec![put(&key(id), value.as_bytes())], vec![])
                    .await;
                assert_eq!(verdict, Verdict::Applied);
            }
        });
        futures::future::join_all(writes).await;
    }
    // One stream of writes for all of them: one open segment.
    assert_eq!(log.segment_count(), 1);
    assert_eq!(log.groups().len(), 30);
    cluster.kill(1).await;
    cluster.start(1).await;
    for id in 0..30u64 {
        cluster.leader(id + 1).await;
        cluster.holds(1, &key(id), b"round 4").await;
    }
    cluster.stop_all().await;
}
