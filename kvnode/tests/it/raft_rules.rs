//! The histories of PROTOCOLS section 2 and D1/D2 as scenarios, each also seen
//! to fail with its rule off.

use crate::cluster::{Cluster, descriptor, eventually, expecting, get, put, replica_on};
use bytes::Bytes;
use futures::stream;
use lineradb_common::ShardId;
use lineradb_kvnode::command::{Body, Command, Expect, Op, Rejection, Replica, Verdict};
use lineradb_kvnode::consensus::types::{Payload, Proposal, entry_from, entry_payload};
use lineradb_kvnode::consensus::{Retention, StateMachine, Timing, storage_options};
use lineradb_kvnode::raft_log::{LogId, Options, RaftLog, Vote};
use lineradb_kvnode::snapshot::Spool;
use lineradb_kvnode::transport::hearing::Hearing;
use lineradb_lsm::{Background, CrashLoss, Db, SimVfs};
use lineradb_proto::shard::v1::ShardDescriptor;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::storage::RaftStateMachine;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn open_db(disk: &SimVfs) -> Db {
    let options = lineradb_lsm::Options {
        background: Background::Inline,
        ..storage_options()
    };
    Db::open(Arc::new(disk.clone()), Path::new("/db"), options).unwrap()
}

fn machine(db: &Db) -> StateMachine {
    let shard = descriptor(1, b"", b"", &[1, 2, 3]);
    detached(db, 1, shard)
}

fn detached(db: &Db, incarnation: u16, shard: ShardDescriptor) -> StateMachine {
    let spool = Spool::open(Arc::new(SimVfs::new()), Path::new("/snapshots")).unwrap();
    StateMachine::detached(db.clone(), spool, replica_on(1, incarnation), shard).unwrap()
}

fn write(term: u64, ops: Vec<Op>, expect: Vec<Expect>) -> Command {
    Command {
        term,
        shard_version: 1,
        body: Body::Write { ops, expect },
    }
}

/// Applies a command as the entry of a term, as replay does.
async fn apply(machine: &mut StateMachine, term: u64, index: u64, command: &Command) {
    let payload = Payload::Normal(Proposal {
        proposer: replica_on(1, 1),
        command: command.encode(),
    });
    let entry = entry_from(LogId { term, index }, entry_payload(&payload)).unwrap();
    machine
        .apply(stream::iter([Ok((entry, None))]))
        .await
        .unwrap();
}

/// C2: a write evaluated in term 5 was appended in term 7, under a write that
/// the leader of term 6 acknowledged.
#[tokio::test]
async fn c2_a_command_of_term_five_never_applies_in_term_seven() {
    for rule in [true, false] {
        let db = open_db(&SimVfs::new());
        let mut machine = machine(&db);
        apply(&mut machine, 5, 1, &write(5, vec![put(b"x", b"0")], vec![])).await;
        // The leader of term 5 reads x = 0 and evaluates x := x + 1; the leader
        // of term 6 acknowledges x := 10.
        let mut late = write(5, vec![put(b"x", b"1")], vec![]);
        apply(
            &mut machine,
            6,
            2,
            &write(6, vec![put(b"x", b"10")], vec![]),
        )
        .await;
        if !rule {
            // Without the rule a command does not say in which term it counts.
            late.term = 7;
        }
        apply(&mut machine, 7, 3, &late).await;
        let survived = get(&db, b"x").as_deref() == Some(&b"10"[..]);
        assert_eq!(
            survived, rule,
            "an acknowledged write was lost: {}",
            !survived
        );
    }
}

/// X3: the compare-and-set at apply, also on what an entry of the same batch
/// wrote.
#[tokio::test]
async fn expectations_see_earlier_entries_of_the_same_batch() {
    let db = open_db(&SimVfs::new());
    let mut machine = machine(&db);
    let entries = [
        write(1, vec![put(b"x", b"1")], vec![]),
        write(1, vec![put(b"x", b"2")], vec![expecting(b"x", Some(b"1"))]),
        write(1, vec![put(b"x", b"3")], vec![expecting(b"x", Some(b"1"))]),
    ];
    let batch: Vec<_> = entries
        .iter()
        .zip(1..)
        .map(|(command, index)| {
            let payload = Payload::Normal(Proposal {
                proposer: replica_on(1, 1),
                command: command.encode(),
            });
            let entry = entry_from(LogId { term: 1, index }, entry_payload(&payload)).unwrap();
            Ok((entry, None))
        })
        .collect();
    machine.apply(stream::iter(batch)).await.unwrap();
    assert_eq!(get(&db, b"x").as_deref(), Some(&b"2"[..]));
}

/// C1: a leader ships an entry before its own sync and dies. Started again in
/// its term it would use the log id once more, for another entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_a_leader_killed_before_its_sync_never_reuses_a_log_id() {
    for rule in [true, false] {
        let disk = SimVfs::new();
        let open = || {
            let options = Options {
                fatal: Arc::new(|_| {}),
                ..Options::default()
            };
            RaftLog::open(Arc::new(disk.clone()), Path::new("/raft"), options).unwrap()
        };
        let me = replica_on(1, 1);
        let elected = Vote {
            term: 4,
            replica: me,
            committed: true,
        };
        let log = open();
        let group = log.group(ShardId(1));
        let base = LogId { term: 3, index: 9 };
        group.begin(me, Some((base, None))).unwrap();
        group.save_vote(elected).await.unwrap();
        // Entry (4, 10) is handed in, shipped, and not synced when the power
        // goes: the disk below never sees it.
        disk.crash_at(disk.operations() + 1);
        let shipped = LogId { term: 4, index: 10 };
        let entry = vec![(shipped, Bytes::from_static(b"\x01\x01first"))];
        let callback = lineradb_kvnode::raft_log::Callback::new(|_| {});
        group.append(entry, callback).await.unwrap();
        log.close();
        disk.crash(CrashLoss::Everything);

        let log = open();
        let group = log.group(ShardId(1));
        group.begin(me, Some((base, None))).unwrap();
        assert_eq!(group.vote(), Some(elected));
        assert_eq!(group.last(), Some(base), "the entry was never synced");
        // What openraft does with this at start, with and without restore.
        let config = openraft::Config {
            enable_leader_restore: Some(!rule),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        };
        let db = open_db(&SimVfs::new());
        let store = lineradb_kvnode::raft_log::store::LogStore::new(group.clone());
        let raft = start_alone(me.0, config, store, seeded_machine(&db, base).await).await;
        let state = eventually("the replica has a role", async || {
            let state = raft.metrics().borrow_watched().state;
            (state != openraft::ServerState::Learner).then_some(state)
        })
        .await;
        let leads = state == openraft::ServerState::Leader;
        if leads {
            // The second entry with the id (4, 10): a follower that has the
            // first takes it for the same, and the replicas differ for ever.
            let proposal = Proposal {
                proposer: me,
                command: write(4, vec![put(b"x", b"other")], vec![]).encode(),
            };
            let sent = raft.write(proposal).with_leader(leader_of(4)).await;
            sent.unwrap();
            eventually("an entry reuses the id", async || {
                (group.last() == Some(shipped)).then_some(())
            })
            .await;
        }
        assert_eq!(leads, !rule);
        raft.shutdown().await.unwrap();
        log.close();
    }
}

fn leader_of(term: u64) -> lineradb_kvnode::consensus::types::CommittedLeaderId {
    lineradb_kvnode::consensus::types::CommittedLeaderId::new(term)
}

/// A state machine that has applied up to `base` with three voters.
async fn seeded_machine(db: &Db, base: LogId) -> StateMachine {
    let mut machine = machine(db);
    let shard = descriptor(1, b"", b"", &[1, 2, 3]);
    let voters = shard.replicas.iter().map(|r| r.replica_id).collect();
    let nodes = shard
        .replicas
        .iter()
        .map(|r| (r.replica_id, openraft::BasicNode::new("")))
        .collect::<std::collections::BTreeMap<_, _>>();
    let membership = openraft::Membership::new(vec![voters], nodes).unwrap();
    let entry = entry_from(base, entry_payload(&Payload::Membership(membership))).unwrap();
    machine
        .apply(stream::iter([Ok((entry, None))]))
        .await
        .unwrap();
    machine
}

type Raft = openraft::Raft<lineradb_kvnode::consensus::types::TypeConfig, StateMachine>;

/// A replica whose peers never answer.
async fn start_alone(
    id: u64,
    config: openraft::Config,
    store: lineradb_kvnode::raft_log::store::LogStore,
    machine: StateMachine,
) -> Raft {
    let network = lineradb_kvnode::transport::memory::MemoryNetwork::new();
    let transport = network.join(lineradb_common::NodeId(1));
    let factory = lineradb_kvnode::transport::network::Factory {
        transport,
        group: ShardId(1),
        replica: lineradb_common::ReplicaId(id),
        append_timeout: Duration::from_secs(1),
        hearing: Arc::new(Hearing::new(ShardId(1), &Timing::default())),
    };
    Raft::new(
        id,
        Arc::new(config.validate().unwrap()),
        factory,
        store,
        machine,
    )
    .await
    .unwrap()
}

fn split(term: u64) -> Command {
    Command {
        term,
        shard_version: 1,
        body: Body::Split {
            split_key: Bytes::from_static(b"m"),
            new_shard_id: ShardId(2),
            child_replicas: [1, 2, 3]
                .map(|node| Replica {
                    id: replica_on(node, 1),
                    address: String::new(),
                })
                .to_vec(),
        },
    }
}

/// C4: the seed is in the parent's batch, a child found in the log without it
/// stays closed until the replay makes it again, it then starts as a follower,
/// and a vote that the child has given since its birth is never overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_a_childs_seed_comes_back_by_replay_and_its_vote_stays() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    cluster
        .write(1, vec![put(b"a", b"1"), put(b"z", b"1")], vec![])
        .await;
    assert_eq!(cluster.split(1, b"m", 2).await, Verdict::Applied);
    cluster.write(2, vec![put(b"z", b"2")], vec![]).await;
    let (_, term) = cluster.leader(2).await;
    for node in [1, 2, 3] {
        eventually("the child is everywhere", async || {
            cluster.nodes[&node].groups.get(ShardId(2)).map(|_| ())
        })
        .await;
        cluster.holds(node, b"z", b"2").await;
        // A vote is durable when it is saved, and so is all that came before.
        let log = cluster.nodes[&node].groups.raft_log().group(ShardId(2));
        log.save_vote(log.vote().unwrap()).await.unwrap();
    }
    // Nothing was flushed since the shard was founded: all seeds are lost with
    // the engines' memory, the children's votes and entries are not.
    for node in [1, 2, 3] {
        cluster.kill(node).await;
    }
    // One node alone: its parent's log is not known to be committed, so nothing
    // is replayed and the child stays closed.
    cluster.start(1).await;
    let log = cluster.nodes[&1].groups.raft_log().group(ShardId(2));
    assert!(log.last().is_some(), "the child has entries in the log");
    let vote = log.vote();
    assert!(cluster.nodes[&1].groups.get(ShardId(2)).is_none());
    cluster.start(2).await;
    cluster.start(3).await;
    let (_, later) = cluster.leader(2).await;
    assert!(later > term, "a seed made by replay led at once");
    let now = log.vote().map(|v| v.term);
    assert!(now >= vote.map(|v| v.term), "the child forgot a vote");
    cluster.write(2, vec![put(b"y", b"3")], vec![]).await;
    for node in [1, 2, 3] {
        cluster.holds(node, b"z", b"2").await;
        cluster.holds(node, b"y", b"3").await;
    }
    cluster.stop_all().await;
}

/// C4: with the rule off, the seed of a replayed split takes the place of a
/// child that has voted since; with it on, the records of the log win.
#[tokio::test]
async fn c4_a_seed_never_overrides_what_the_child_promised() {
    let disk = SimVfs::new();
    let options = Options {
        fatal: Arc::new(|_| {}),
        ..Options::default()
    };
    let log = RaftLog::open(Arc::new(disk), Path::new("/raft"), options).unwrap();
    let me = replica_on(1, 1);
    let seed_vote = Vote {
        term: 5,
        replica: replica_on(2, 1),
        committed: true,
    };
    let base = LogId { term: 5, index: 10 };
    let child = log.group(ShardId(2));
    child.begin(me, Some((base, Some(seed_vote)))).unwrap();
    let promised = Vote {
        term: 8,
        replica: replica_on(3, 1),
        committed: false,
    };
    child.save_vote(promised).await.unwrap();
    // The replay makes the seed once more.
    child.begin(me, Some((base, Some(seed_vote)))).unwrap();
    assert_eq!(child.vote(), Some(promised));
    // Off: a seed that is simply taken over would allow a second vote in
    // term 8, for another candidate.
    child.save_vote(seed_vote).await.unwrap();
    assert!(child.vote().unwrap().term < promised.term);
    log.close();

    // The state machine, too, leaves a child alone that is on record.
    let db = open_db(&SimVfs::new());
    let mut parent = machine(&db);
    let elsewhere = descriptor(2, b"p", b"q", &[1]);
    drop(detached(&db, 7, elsewhere));
    apply(&mut parent, 5, 1, &split(5)).await;
    let mut child = detached(&db, 1, descriptor(2, b"", b"", &[1]));
    assert_eq!(
        child.applied_state().await.unwrap().0,
        None,
        "the child was overwritten"
    );
}

/// D1 and D2: the power goes between the flush of the engine and the purge of
/// the log, at any point. Replay finds everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_the_log_keeps_whatever_the_engine_has_not_flushed() {
    let mut cluster = Cluster::new(&[1]).await;
    cluster.stop(1).await;
    // Purge eagerly: everything durable goes at once.
    cluster.retention = Retention {
        group_bytes: 0,
        group_entries: 0,
        log_bytes: 1 << 30,
        interval: Duration::from_millis(10),
    };
    cluster.segment_bytes = 4096;
    cluster.start(1).await;
    cluster.found(1, b"", b"", &[1]).await;
    let key = |n: u64| format!("key {n:05}").into_bytes();
    for n in 0..400 {
        cluster.write(1, vec![put(&key(n), b"value")], vec![]).await;
        if n == 300 {
            cluster.nodes[&1].db.flush().unwrap();
        }
    }
    let stats = || {
        cluster.nodes[&1]
            .groups
            .raft_log()
            .group(ShardId(1))
            .stats()
    };
    eventually("the log is purged", async || {
        (stats().purged_index > 200).then_some(())
    })
    .await;
    let purged = stats().purged_index;
    assert!(
        purged < 310,
        "purged up to {purged}, above what was flushed"
    );
    cluster.kill(1).await;
    cluster.start(1).await;
    cluster.leader(1).await;
    for n in 0..400 {
        cluster.holds(1, &key(n), b"value").await;
    }
    cluster.stop_all().await;
}

/// D1 off: entries purged above the flushed position are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_off_a_purge_above_the_flushed_position_loses_acknowledged_writes() {
    let mut cluster = Cluster::new(&[1]).await;
    cluster.found(1, b"", b"", &[1]).await;
    for n in 0..20u64 {
        let key = format!("key {n}").into_bytes();
        cluster.write(1, vec![put(&key, b"value")], vec![]).await;
    }
    let log = cluster.nodes[&1].groups.raft_log().group(ShardId(1));
    let last = log.last().unwrap();
    log.purge(last);
    // The purge reaches the disk before the power goes.
    log.save_vote(log.vote().unwrap()).await.unwrap();
    cluster.kill(1).await;
    let disk = Arc::new(cluster.disks[&1].clone());
    let db = Db::open(disk, Path::new("/db"), storage_options()).unwrap();
    assert_eq!(get(&db, b"key 0"), None, "acknowledged, and lost");
    db.close().unwrap();
}

/// A rejected split leaves the parent as it was.
#[tokio::test]
async fn a_split_that_does_not_fit_changes_nothing() {
    let db = open_db(&SimVfs::new());
    let mut parent = machine(&db);
    let mut bad = split(5);
    if let Body::Split { child_replicas, .. } = &mut bad.body {
        child_replicas.pop();
    }
    apply(&mut parent, 5, 1, &bad).await;
    apply(&mut parent, 5, 2, &write(5, vec![put(b"z", b"1")], vec![])).await;
    assert_eq!(get(&db, b"z").as_deref(), Some(&b"1"[..]));
    let verdict = Verdict::Rejected(Rejection::ShardChanged);
    assert_ne!(verdict, Verdict::Applied);
}
