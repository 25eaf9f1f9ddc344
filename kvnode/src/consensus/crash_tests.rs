//! Histories of C4, D1 and D2 in which the power goes at the worst moment. Each
//! is also seen to go wrong with its rule off.

use super::local;
use super::state_machine::StateMachine;
use super::storage::Storage;
use super::types::{Payload, Proposal, TypeConfig, entry_from, entry_payload, log_id_from};
use crate::command::{Body, Command, Op, Replica, Tree};
use crate::raft_log::{self, LogId, RaftLog, Vote};
use crate::rules::{Rule, Rules};
use crate::snapshot::Spool;
use bytes::Bytes;
use futures::stream;
use lineradb_common::{NodeId, ReplicaId, ShardId, keys};
use lineradb_lsm::{Background, CrashLoss, Db, SimVfs, Vfs};
use lineradb_proto::shard::v1::{ShardDescriptor, Span};
use openraft::RaftSnapshotBuilder;
use openraft::storage::RaftStateMachine;
use std::path::Path;
use std::sync::Arc;

const ME: ReplicaId = ReplicaId::new(NodeId(1), 1);
const SHARD: ShardId = ShardId(1);

fn open(disk: &SimVfs) -> Db {
    let options = lineradb_lsm::Options {
        background: Background::Inline,
        ..super::storage_options()
    };
    Db::open(Arc::new(disk.clone()), Path::new("/db"), options).unwrap()
}

fn spool(disk: &SimVfs) -> Arc<Spool> {
    Spool::open(Arc::new(disk.clone()), Path::new("/snapshots")).unwrap()
}

fn machine(disk: &SimVfs, db: &Db, end: &'static [u8]) -> StateMachine {
    let replica = |node| lineradb_proto::shard::v1::Replica {
        replica_id: ReplicaId::new(NodeId(node), 1).0,
        node_id: node,
        address: String::new(),
    };
    let descriptor = ShardDescriptor {
        shard_id: SHARD.0,
        version: 1,
        span: Some(Span {
            start: Bytes::new(),
            end: Bytes::from_static(end),
        }),
        replicas: vec![replica(1), replica(2), replica(3)],
        ..ShardDescriptor::default()
    };
    StateMachine::detached(db.clone(), spool(disk), ME, descriptor).unwrap()
}

async fn apply(machine: &mut StateMachine, index: u64, body: Body) {
    let command = Command {
        term: 5,
        shard_version: 1,
        body,
    };
    let payload = Payload::Normal(Proposal {
        proposer: ME,
        command: command.encode(),
    });
    let entry = entry_from(LogId { term: 5, index }, entry_payload(&payload)).unwrap();
    let entries = stream::iter([Ok((entry, None))]);
    machine.apply(entries).await.unwrap();
}

fn stored(key: &str) -> Bytes {
    super::bounds::range_start(key.as_bytes())
}

fn write(key: &str, value: &str) -> Body {
    Body::Write {
        ops: vec![Op {
            tree: Tree::Data,
            key: stored(key),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        }],
        expect: vec![],
    }
}

fn split() -> Body {
    Body::Split {
        split_key: Bytes::from_static(b"m"),
        new_shard_id: ShardId(2),
        child_replicas: [1, 2, 3]
            .map(|node| Replica {
                id: ReplicaId::new(NodeId(node), 1),
                address: String::new(),
            })
            .to_vec(),
    }
}

/// C4: the node crashes between the two, and then answers for a range that its
/// parent still owns.
#[tokio::test]
async fn c4_a_child_exists_exactly_if_its_split_does() {
    for rule in [true, false] {
        for flushed_after in [true, false] {
            let disk = SimVfs::new();
            let db = open(&disk);
            let rules = match rule {
                true => Rules::default(),
                false => Rules::without(Rule::SeedInParentsBatch),
            };
            let mut parent = machine(&disk, &db, b"").under(rules);
            apply(&mut parent, 1, write("z", "1")).await;
            db.flush().unwrap();
            apply(&mut parent, 2, split()).await;
            if flushed_after {
                db.flush().unwrap();
            }
            drop((parent, db));
            disk.crash(CrashLoss::Everything);
            let storage = Storage::new(open(&disk)).unwrap();
            let records = local::load_all(&storage).unwrap();
            let owns = |shard: u64| {
                records.get(&ShardId(shard)).is_some_and(|record| {
                    let (start, end) = super::bounds::span(&record.descriptor);
                    keys::in_span(b"z", &start, &end)
                })
            };
            assert!(owns(1) || owns(2), "nobody has the range");
            assert_eq!(owns(1) && owns(2), !rule && !flushed_after);
        }
    }
}

/// X5: the right half refuses what its parent has refused.
#[tokio::test]
async fn x5_a_child_inherits_the_threshold() {
    let disk = SimVfs::new();
    let db = open(&disk);
    let mut parent = machine(&disk, &db, b"");
    let threshold = crate::mvcc::keys::threshold_key;
    let raise = Body::Write {
        ops: vec![Op {
            tree: Tree::Txn,
            key: threshold(SHARD),
            value: Some(Bytes::from_static(b"threshold")),
        }],
        expect: vec![],
    };
    apply(&mut parent, 1, raise).await;
    apply(&mut parent, 2, split()).await;
    let txn = Storage::new(db.clone()).unwrap().keyspace(Tree::Txn);
    let found = db.get(txn, &threshold(ShardId(2))).unwrap();
    assert_eq!(found.unwrap().to_vec(), b"threshold");
}

/// What the log has given up must stand in the engine after a crash.
fn has_a_gap(disk: &SimVfs) -> bool {
    disk.crash(CrashLoss::Everything);
    let log = open_log(disk);
    let purged = log.group(SHARD).purged();
    log.close();
    let storage = Storage::new(open(disk)).unwrap();
    let applied = local::load(&storage, SHARD).unwrap().unwrap().applied;
    purged > applied
}

fn open_log(disk: &SimVfs) -> RaftLog {
    let options = raft_log::Options {
        fatal: Arc::new(|_| {}),
        ..raft_log::Options::default()
    };
    RaftLog::open(Arc::new(disk.clone()), Path::new("/raft"), options).unwrap()
}

/// Purges as openraft does, and makes the record durable.
async fn purge(log: &RaftLog, upto: LogId) {
    let group = log.group(SHARD);
    group
        .begin(ME, Some((LogId { term: 0, index: 0 }, None)))
        .unwrap();
    group.purge(upto);
    let vote = Vote {
        term: 5,
        replica: ME,
        committed: true,
    };
    group.save_vote(vote).await.unwrap();
    log.close();
}

type Cut = openraft::alias::SnapshotOf<TypeConfig, crate::snapshot::ShardCut>;

async fn cut_of(machine: &mut StateMachine) -> Cut {
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap()
}

fn rules_for(on: bool) -> Rules {
    match on {
        true => Rules::default(),
        false => Rules::without(Rule::EditBeforePurge),
    }
}

/// D2: the log is gone, the edit not yet synced, the power fails: acknowledged
/// writes are gone from this replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_a_snapshot_is_durable_before_the_log_below_it_goes() {
    for rule in [true, false] {
        let elsewhere = SimVfs::new();
        let mut sender = machine(&elsewhere, &open(&elsewhere), b"");
        for index in 1..=20 {
            apply(&mut sender, index, write(&format!("key {index}"), "new")).await;
        }
        let cut = cut_of(&mut sender).await;
        let disk = SimVfs::new();
        let (db, log) = (open(&disk), open_log(&disk));
        let mut receiver = machine(&disk, &db, b"").under(rules_for(rule));
        db.flush().unwrap();
        let last = cut.meta.last_log_id.as_ref().map(log_id_from).unwrap();
        let installed = receiver.install_snapshot(&cut.meta, cut.snapshot).await;
        installed.unwrap();
        purge(&log, last).await;
        drop((receiver, db));
        assert_eq!(has_a_gap(&disk), !rule);
    }
}

/// D2: the same for the keeper of the log, which lets go only what is flushed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_the_keeper_of_the_log_counts_what_is_flushed() {
    for rule in [true, false] {
        let disk = SimVfs::new();
        let (db, log) = (open(&disk), open_log(&disk));
        let mut replica = machine(&disk, &db, b"").under(rules_for(rule));
        for index in 1..=20 {
            apply(&mut replica, index, write(&format!("key {index}"), "x")).await;
            if index == 8 {
                db.flush().unwrap();
            }
        }
        let builder = replica.try_create_snapshot_builder(false).await;
        let checkpoint = builder.unwrap().build_snapshot().await.unwrap();
        let upto = checkpoint.meta.last_log_id.as_ref().map(log_id_from);
        let upto = upto.unwrap();
        assert_eq!(upto.index, if rule { 8 } else { 20 });
        purge(&log, upto).await;
        drop((checkpoint, replica, db));
        assert_eq!(has_a_gap(&disk), !rule);
    }
}

/// Every key of the range, as stored.
fn rows(db: &Db) -> Vec<(Bytes, Bytes)> {
    let storage = Storage::new(db.clone()).unwrap();
    storage.pairs(Tree::Data, &[1]).unwrap()
}

/// D1: the power goes at any write or sync while a snapshot is installed in
/// many batches, between which the engine may flush. The replica is what it was
/// or what the snapshot says, never a mixture, and its position says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_snapshot_is_installed_whole_or_not_at_all() {
    let elsewhere = SimVfs::new();
    let mut sender = machine(&elsewhere, &open(&elsewhere), b"m");
    let value = "new".repeat(60);
    for index in 1..=40 {
        let body = write(&format!("key {}", index * 2), &value);
        apply(&mut sender, 100 + index, body).await;
    }
    let before = SimVfs::new();
    {
        let db = open(&before);
        let mut old = machine(&before, &db, b"");
        for index in 1..=40 {
            apply(&mut old, index, write(&format!("key {index}"), "old")).await;
        }
        apply(&mut old, 41, write("z", "old")).await;
        drop(old);
        db.close().unwrap();
    }
    let old_rows = rows(&open(&before.fork()));
    let (mut unchanged, mut resumed, mut done) = (0, 0, 0);
    for at in 1.. {
        let disk = before.fork();
        let options = lineradb_lsm::Options {
            background: Background::Inline,
            // Each batch fills a memtable: what survives may end anywhere.
            memtable_bytes: 2 << 10,
            ..super::storage_options()
        };
        let db = Db::open(Arc::new(disk.clone()), Path::new("/db"), options).unwrap();
        let mut receiver = machine(&disk, &db, b"");
        let cut = cut_of(&mut sender).await;
        disk.crash_at(disk.operations() + at);
        let installed = receiver.install_snapshot(&cut.meta, cut.snapshot).await;
        let finished = installed.is_ok();
        drop((receiver, db));
        disk.crash(CrashLoss::Everything);

        let db = open(&disk);
        let storage = Storage::new(db.clone()).unwrap();
        let record = local::load(&storage, SHARD).unwrap().unwrap();
        let interrupted = record.installing.is_some();
        assert!(!(interrupted && finished), "reported before it was durable");
        let mut receiver = machine(&disk, &db, b"");
        let (applied, _) = receiver.applied_state().await.unwrap();
        let found = rows(&db);
        let record = local::load(&storage, SHARD).unwrap().unwrap();
        assert!(record.installing.is_none());
        match applied.map(|id| id.index) {
            Some(41) => {
                assert!(!finished && !interrupted);
                assert_eq!(found, old_rows, "crash at {at}");
                unchanged += 1;
            }
            Some(140) => {
                let keys: Vec<Bytes> = found.iter().map(|(key, _)| key.clone()).collect();
                let mut wanted: Vec<Bytes> = (1..=40)
                    .map(|n| stored(&format!("key {}", n * 2)))
                    .collect();
                wanted.sort();
                assert_eq!(keys, wanted, "crash at {at}");
                assert!(found.iter().all(|(_, v)| *v == value.as_bytes()));
                assert_eq!(
                    record.shed,
                    [(Bytes::from_static(b"m"), Bytes::new())],
                    "what a child may be born in"
                );
                resumed += u32::from(interrupted);
                done += u32::from(!interrupted);
            }
            other => panic!("crash at {at}: applied {other:?}"),
        }
        if finished {
            break;
        }
    }
    assert!(unchanged > 0 && resumed > 0 && done > 0);
}

/// A node with a child that holds a row in `[m, )`, an empty parent of `[, m)`
/// that was made after the split, and a snapshot cut before it, which covers
/// the child as well.
struct BeforeTheSplit {
    disk: SimVfs,
    db: Db,
    parent: StateMachine,
    cut: Cut,
}

async fn before_the_split() -> BeforeTheSplit {
    let elsewhere = SimVfs::new();
    let mut sender = machine(&elsewhere, &open(&elsewhere), b"");
    apply(&mut sender, 1, write("a", "parent")).await;
    let cut = cut_of(&mut sender).await;
    let disk = SimVfs::new();
    let db = open(&disk);
    let child = ShardDescriptor {
        shard_id: 2,
        version: 1,
        span: Some(Span {
            start: Bytes::from_static(b"m"),
            end: Bytes::new(),
        }),
        ..ShardDescriptor::default()
    };
    let mut child = StateMachine::detached(db.clone(), spool(&disk), ME, child).unwrap();
    apply(&mut child, 1, write("z", "acknowledged")).await;
    let parent = machine(&disk, &db, b"m");
    BeforeTheSplit {
        disk,
        db,
        parent,
        cut,
    }
}

fn childs_row() -> (Bytes, Bytes) {
    (stored("z"), Bytes::from_static(b"acknowledged"))
}

fn snapshots(disk: &SimVfs) -> Vec<String> {
    disk.list(Path::new("/snapshots")).unwrap()
}

/// C4: a leader that has not applied the split yet sends what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_a_snapshot_does_not_take_what_another_replica_holds() {
    let mut node = before_the_split().await;
    let installed = node
        .parent
        .install_snapshot(&node.cut.meta, node.cut.snapshot);
    installed.await.unwrap_err();
    assert_eq!(rows(&node.db), [childs_row()]);
    assert!(snapshots(&node.disk).is_empty());
    let storage = Storage::new(node.db).unwrap();
    let record = local::load(&storage, SHARD).unwrap().unwrap();
    assert!(record.installing.is_none());
}

/// C4: nor does an installation that goes on at the next start, or the erasure
/// of the replica that is then replaced. Its file goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_a_replica_is_erased_without_what_another_one_holds() {
    let node = before_the_split().await;
    let storage = Storage::new(node.db.clone()).unwrap();
    let spool = spool(&node.disk);
    let descriptor = node.cut.snapshot.descriptor().clone();
    let spooled = node.cut.snapshot.into_spooled(&spool).unwrap();
    spooled.keep();
    let installing = local::Installing {
        file: spooled.name().to_owned(),
        rows: spooled.rows(),
        applied: LogId { term: 5, index: 1 },
        membership: node.cut.meta.last_membership.clone(),
        descriptor: descriptor.clone(),
    };
    let mut batch = lineradb_lsm::WriteBatch::new();
    local::put_installing(&mut batch, &storage, SHARD, &installing);
    // A part of the snapshot is there already.
    batch.put(storage.keyspace(Tree::Data), &stored("a"), b"parent");
    storage.write(batch).unwrap();
    drop(node.parent);

    let again = StateMachine::detached(node.db.clone(), Arc::clone(&spool), ME, descriptor.clone());
    assert!(again.is_err());
    assert!(rows(&node.db).contains(&childs_row()));
    assert_eq!(snapshots(&node.disk), [installing.file]);

    super::life::erase(&storage, &spool, SHARD, &descriptor).unwrap();
    assert_eq!(rows(&node.db), [childs_row()]);
    assert!(local::load(&storage, SHARD).unwrap().is_none());
    assert!(snapshots(&node.disk).is_empty());
}
