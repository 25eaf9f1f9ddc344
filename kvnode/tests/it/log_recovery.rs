//! The raft log after crashes: nothing durable is lost, nothing is invented,
//! damage is named.

use bytes::Bytes;
use lineradb_common::{NodeId, ReplicaId, ShardId, random};
use lineradb_kvnode::Error;
use lineradb_kvnode::raft_log::{Callback, GroupLog, LogId, Options, RaftLog, Vote};
use lineradb_lsm::{CrashLoss, DirLock, LockError, ReadableFile, SimVfs, Vfs, WritableFile};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DIR: &str = "/raft";

fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        tail_bytes: 2000,
        compact_above_bytes: 8 * segment_bytes,
        fatal: Arc::new(|_| {}),
    }
}

fn open(vfs: &SimVfs, segment_bytes: u64) -> Result<RaftLog, Error> {
    RaftLog::open(
        Arc::new(vfs.clone()),
        Path::new(DIR),
        options(segment_bytes),
    )
}

fn replica(incarnation: u16) -> ReplicaId {
    ReplicaId::new(NodeId(1), incarnation)
}

fn payload(term: u64, index: u64) -> Bytes {
    let mut bytes = format!("entry {index} of term {term}").into_bytes();
    bytes.resize(bytes.len() + (index as usize * 37) % 200, b'.');
    Bytes::from(bytes)
}

/// Appends without waiting; `durable` rises to `index` when it is synced.
async fn append(log: &GroupLog, term: u64, index: u64, durable: &Arc<AtomicU64>) {
    let durable = Arc::clone(durable);
    let callback = Callback::new(move |result| {
        if result.is_ok() {
            durable.fetch_max(index, Ordering::SeqCst);
        }
    });
    let id = LogId { term, index };
    // A log whose disk is gone refuses: the caller learns nothing then.
    let _ = log.append(vec![(id, payload(term, index))], callback).await;
}

async fn append_durably(log: &GroupLog, term: u64, from: u64, to: u64) {
    for index in from..to {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let callback = Callback::new(move |result| {
            let _ = tx.send(result);
        });
        let id = LogId { term, index };
        log.append(vec![(id, payload(term, index))], callback)
            .await
            .unwrap();
        rx.await.unwrap().unwrap();
    }
}

fn segments(vfs: &SimVfs) -> Vec<PathBuf> {
    let names = vfs.list(Path::new(DIR)).unwrap();
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_after_a_clean_stop_and_after_losing_power() {
    for loss in [CrashLoss::Nothing, CrashLoss::Everything] {
        let vfs = SimVfs::new();
        let log = open(&vfs, 4000).unwrap();
        let vote = Vote {
            term: 3,
            replica: replica(1),
            committed: true,
        };
        for shard in 1..=30 {
            let group = log.group(ShardId(shard));
            group.begin(replica(1), None).unwrap();
            group.save_vote(vote).await.unwrap();
            append_durably(&group, 2, 1, 20).await;
        }
        let first = log.group(ShardId(1));
        first.truncate_after(Some(10));
        append_durably(&first, 3, 11, 15).await;
        let second = log.group(ShardId(2));
        second.purge(LogId { term: 2, index: 12 });
        append_durably(&second, 2, 20, 22).await;
        log.group(ShardId(3)).destroy(replica(1)).await.unwrap();
        log.close();
        drop(log);
        vfs.crash(loss);

        let log = open(&vfs, 4000).unwrap();
        for shard in 4..=30 {
            let group = log.group(ShardId(shard));
            assert_eq!(group.replica(), Some(replica(1)));
            assert_eq!(group.vote(), Some(vote));
            assert_eq!(group.read(0, 100, u64::MAX).unwrap().len(), 19);
        }
        let entries = log.group(ShardId(1)).read(0, 100, u64::MAX).unwrap();
        let terms: Vec<(u64, u64)> = entries.iter().map(|(id, _)| (id.term, id.index)).collect();
        let expected: Vec<(u64, u64)> = (1..=10)
            .map(|i| (2, i))
            .chain((11..15).map(|i| (3, i)))
            .collect();
        assert_eq!(terms, expected);
        for (id, bytes) in entries {
            assert_eq!(bytes, payload(id.term, id.index));
        }
        let second = log.group(ShardId(2));
        assert_eq!(second.purged(), Some(LogId { term: 2, index: 12 }));
        assert_eq!(second.read(0, 100, u64::MAX).unwrap().len(), 9);
        // C3: the tombstone keeps the last vote, and the incarnation out.
        let third = log.group(ShardId(3));
        assert_eq!(third.tombstone().unwrap().vote, Some(vote));
        assert!(matches!(
            third.begin(replica(1), None),
            Err(Error::Refused(_))
        ));
        third.begin(replica(2), None).unwrap();
        assert_eq!(third.vote(), None);
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_go_when_no_group_needs_them_and_stragglers_are_copied_forward() {
    let vfs = SimVfs::new();
    let log = open(&vfs, 2000).unwrap();
    let quiet = log.group(ShardId(1));
    quiet.begin(replica(1), None).unwrap();
    append_durably(&quiet, 1, 1, 4).await;
    let busy = log.group(ShardId(2));
    busy.begin(replica(1), None).unwrap();
    for round in 0..60 {
        append_durably(&busy, 1, 1 + round * 10, 11 + round * 10).await;
        busy.purge(LogId {
            term: 1,
            index: 5 + round * 10,
        });
    }
    assert!(log.bytes() < 40_000, "the log holds {} bytes", log.bytes());
    assert!(log.cached_bytes() <= 2400, "{}", log.cached_bytes());
    let expected: Vec<Bytes> = (1..4).map(|i| payload(1, i)).collect();
    let read = |group: &GroupLog| -> Vec<Bytes> {
        let entries = group.read(0, 100, u64::MAX).unwrap();
        entries.into_iter().map(|(_, bytes)| bytes).collect()
    };
    assert_eq!(read(&quiet), expected);
    log.close();
    vfs.crash(CrashLoss::Everything);
    let log = open(&vfs, 2000).unwrap();
    assert_eq!(read(&log.group(ShardId(1))), expected);
    assert_eq!(log.group(ShardId(2)).last().unwrap().index, 600);
    log.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_below_what_was_synced_is_named_and_never_cut() {
    let vfs = SimVfs::new();
    let log = open(&vfs, 1 << 20).unwrap();
    let group = log.group(ShardId(77));
    group.begin(replica(1), None).unwrap();
    append_durably(&group, 1, 1, 30).await;
    log.close();
    let path = segments(&vfs).pop().unwrap();
    let length = vfs.map(&path).unwrap().len() as u64;
    vfs.corrupt(&path, length / 2, 1).unwrap();
    let Err(Error::Corrupt(message)) = open(&vfs, 1 << 20) else {
        panic!("a damaged log opened");
    };
    assert!(
        message.contains("raftlog") && message.contains("offset"),
        "{message}"
    );
    assert!(message.contains("77"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_final() {
    let vfs = SimVfs::new();
    let failures = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&failures);
    let options = Options {
        fatal: Arc::new(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        }),
        ..options(1 << 20)
    };
    let log = RaftLog::open(Arc::new(vfs.clone()), Path::new(DIR), options).unwrap();
    let group = log.group(ShardId(1));
    group.begin(replica(1), None).unwrap();
    append_durably(&group, 1, 1, 3).await;
    for ahead in 1..=8 {
        vfs.fail_at(vfs.operations() + ahead, lineradb_lsm::Fault::Io);
    }
    let vote = Vote {
        term: 9,
        replica: replica(1),
        committed: false,
    };
    assert!(group.save_vote(vote).await.is_err());
    crate::cluster::eventually("the process is told to stop", async || {
        (failures.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    assert!(group.save_vote(vote).await.is_err());
    assert_eq!(failures.load(Ordering::SeqCst), 1);
    log.close();
}

/// A disk whose syncs take a while, as real ones do.
#[derive(Debug)]
struct SlowVfs(SimVfs);

struct SlowFile(Box<dyn WritableFile>);

impl WritableFile for SlowFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(4));
        self.0.sync()
    }
}

impl Vfs for SlowVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        Ok(Box::new(SlowFile(self.0.create(path)?)))
    }
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        Ok(Box::new(SlowFile(self.0.open_append(path)?)))
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>> {
        self.0.open_read(path)
    }
    fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.0.map(path)
    }
    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        self.0.truncate(path, length)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        self.0.lock(path)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sync_serves_everything_that_has_queued() {
    let vfs = Arc::new(SlowVfs(SimVfs::new()));
    let log = RaftLog::open(vfs, Path::new(DIR), options(1 << 20)).unwrap();
    let before = log.sync_count();
    let writes = (1..=30).map(|shard| {
        let group = log.group(ShardId(shard));
        group.begin(replica(1), None).unwrap();
        async move {
            for index in 1..=10 {
                append_durably(&group, 1, index, index + 1).await;
            }
        }
    });
    futures::future::join_all(writes).await;
    let syncs = log.sync_count() - before;
    // 300 durable appends; ten rounds of all groups, with two writes in flight.
    assert!((10..150).contains(&syncs), "{syncs} syncs");
    log.close();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Several groups write; the machine stops at any changing operation of the
    /// disk, with any part of the unsynced data surviving. What was reported
    /// durable is there, and what is there was written, in order, without gaps.
    #[test]
    fn a_torn_tail_loses_nothing_durable(stop in 3u64..160, seed: u64, segment in 600u64..6000) {
        let runtime = runtime();
        let vfs = SimVfs::new();
        let durable: BTreeMap<u64, Arc<AtomicU64>> =
            (1..=4).map(|shard| (shard, Arc::default())).collect();
        runtime.block_on(async {
            let log = open(&vfs, segment).unwrap();
            vfs.crash_at(vfs.operations() + stop);
            for index in 1..40 {
                for (shard, durable) in &durable {
                    let group = log.group(ShardId(*shard));
                    group.begin(replica(1), None).unwrap();
                    append(&group, 1, index, durable).await;
                }
                if random::below(3) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            log.close();
        });
        vfs.crash(CrashLoss::Torn(seed));
        let log = open(&vfs, segment).unwrap();
        for (shard, durable) in &durable {
            let entries = log.group(ShardId(*shard)).read(0, 1000, u64::MAX).unwrap();
            prop_assert!(entries.len() as u64 >= durable.load(Ordering::SeqCst));
            for (at, (id, bytes)) in entries.into_iter().enumerate() {
                prop_assert_eq!(id.index, at as u64 + 1);
                prop_assert_eq!(bytes, payload(1, id.index));
            }
        }
        log.close();
    }
}
