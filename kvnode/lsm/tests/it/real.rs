//! The real file system and the threads.

use crate::support::*;
use lineradb_lsm::{Background, Db, Error, Options, RealVfs, WriteBatch, WriteOptions};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn threaded(wal: bool) -> Options {
    Options {
        background: Background::Threads,
        memtable_bytes: 64 << 10,
        table_bytes: 32 << 10,
        ..tiny(wal)
    }
}

fn open_real(dir: &Path, options: Options) -> lineradb_lsm::Result<Db> {
    Db::open(Arc::new(RealVfs), dir, options)
}

/// Four writers, a reader that checks atomicity over keyspaces, and background jobs under all of them.
#[test]
fn writers_and_readers_at_once() {
    for wal in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("db");
        let db = open_real(&dir, threaded(wal)).unwrap();
        let [first, second] = KEYSPACES.map(|name| db.keyspace(name).unwrap());
        let flushed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&flushed);
        db.on_flush(move |seqno| seen.store(seqno, Ordering::Relaxed));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u32)
                .map(|writer| {
                    let db = db.clone();
                    scope.spawn(move || {
                        for round in 0..1500u32 {
                            let mut batch = WriteBatch::new();
                            let key = format!("{writer}-{:03}", round % 200);
                            let value = [&round.to_be_bytes()[..], &[7; 90]].concat();
                            batch.put(first, key.as_bytes(), &value);
                            batch.put(second, key.as_bytes(), &value);
                            db.write(
                                batch,
                                WriteOptions {
                                    sync: round % 500 == 0,
                                },
                            )
                            .unwrap();
                            let own = db.get(first, key.as_bytes()).unwrap().unwrap();
                            assert_eq!(own, value, "own write must be visible");
                        }
                    })
                })
                .collect();
            let (db, done) = (db.clone(), &done);
            let reader = scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    let snapshot = db.snapshot();
                    let pair =
                        [first, second].map(|keyspace| contents(&snapshot, keyspace).unwrap());
                    assert!(pair[0] == pair[1], "half a batch is visible");
                    rounds += 1;
                }
                rounds
            });
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
        let flushed_to = db.flush().unwrap();
        assert_eq!(flushed_to, db.last_seqno());
        let statistics = db.statistics();
        assert!(
            statistics.flushes > 2 && statistics.compactions > 0,
            "{statistics:?}"
        );
        assert!(db.approximate_size(first, b"0", b"9") > 0);
        assert_eq!(db.approximate_size(first, b"x", b"y"), 0);
        db.close().unwrap();
        assert!(flushed.load(Ordering::Relaxed) > 0);
        let before = statistics.batches_written;
        assert_eq!(before, 6000);
        drop(db);
        // Without threads, so that no compaction runs while the files are counted.
        let db = open_real(&dir, tiny(wal)).unwrap();
        let snapshot = db.snapshot();
        let map = contents(&snapshot, first).unwrap();
        assert_eq!(map.len(), 800);
        assert!(
            map.values()
                .all(|value| u32::from_be_bytes(value[..4].try_into().unwrap()) >= 1300)
        );
        // Nothing but live files: tables, one manifest, CURRENT, LOCK, at most one log.
        let names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            names.len() as u64 <= db.statistics().tables + 4,
            "{names:?}"
        );
    }
}

#[test]
fn unflushed_writes_without_a_log_go_with_the_handle() {
    let folder = tempfile::tempdir().unwrap();
    let db = open_real(folder.path(), threaded(false)).unwrap();
    let first = db.keyspace("first").unwrap();
    let put = |key: &[u8]| {
        let mut batch = WriteBatch::new();
        batch.put(first, key, b"value");
        db.write(batch, WriteOptions::NO_SYNC).unwrap()
    };
    let kept = put(b"kept");
    assert_eq!(db.flush().unwrap(), kept);
    put(b"lost");
    drop(db);
    let db = open_real(folder.path(), threaded(false)).unwrap();
    assert_eq!(db.last_seqno(), kept);
    assert!(db.get(first, b"kept").unwrap().is_some());
    assert!(db.get(first, b"lost").unwrap().is_none());
}

#[test]
fn the_folder_is_locked_with_the_pid_of_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let db = open_real(folder.path(), threaded(true)).unwrap();
    match open_real(folder.path(), threaded(true)) {
        Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{:?}", other.err()),
    }
    drop(db);
    assert!(open_real(folder.path(), threaded(true)).is_ok());
}

#[test]
fn large_values_and_long_keys() {
    let folder = tempfile::tempdir().unwrap();
    let db = open_real(folder.path(), threaded(true)).unwrap();
    let first = db.keyspace("first").unwrap();
    let (key, value) = (vec![1; 64 << 10], vec![2; 3 << 20]);
    let mut batch = WriteBatch::new();
    batch.put(first, &key, &value);
    batch.put(first, b"", b"");
    db.write(batch, WriteOptions::SYNC).unwrap();
    let mut too_large = WriteBatch::new();
    too_large.put(first, &vec![1; (64 << 10) + 1], b"");
    assert!(matches!(
        db.write(too_large, WriteOptions::SYNC),
        Err(Error::TooLarge { .. })
    ));
    for _ in 0..2 {
        assert_eq!(db.get(first, &key).unwrap().unwrap(), value);
        assert_eq!(db.get(first, b"").unwrap().unwrap().len(), 0);
        let mut iter = db
            .snapshot()
            .iter(first, Bound::Unbounded, Bound::Unbounded);
        iter.seek_to_last().unwrap();
        assert_eq!((iter.key(), iter.value()), (&key[..], &value[..]));
        db.flush().unwrap();
    }
}
