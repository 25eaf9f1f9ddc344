//! Random operations against a `BTreeMap`: writes, reads, snapshots, walks in both directions within bounds,
//! flushes, compactions, reopening. A failing seed prints itself.

use crate::support::*;
use lineradb_lsm::{
    Compression, CrashLoss, Options, SimVfs, Snapshot, Statistics, WriteBatch, WriteOptions,
};
use rand::Rng;
use std::ops::Bound;

/// Runs one seed; adds what the engine did to `done`.
fn run(seed: u64, wal: bool, done: &mut Done) {
    let rng = &mut rng(seed);
    let vfs = SimVfs::new();
    let (mut db, mut keyspaces) = open(&vfs, tiny(wal)).unwrap();
    let mut model = empty_model();
    let mut snapshots: Vec<(Snapshot, Model)> = Vec::new();
    for _ in 0..600 {
        match rng.random_range(0..100) {
            0..60 => {
                let batch = random_batch(rng, keyspaces, &mut model);
                db.write(batch, WriteOptions { sync: rng.random() })
                    .unwrap();
            }
            60..75 => {
                let (at, key) = (rng.random_range(0..2), random_key(rng));
                let found = db.get(keyspaces[at], &key).unwrap();
                assert_eq!(found.as_deref(), model[at].get(&key).map(Vec::as_slice));
            }
            75..80 => snapshots.push((db.snapshot(), model.clone())),
            80..85 if !snapshots.is_empty() => {
                snapshots.swap_remove(rng.random_range(0..snapshots.len()));
            }
            85..95 if !snapshots.is_empty() => {
                let (snapshot, then) = &snapshots[rng.random_range(0..snapshots.len())];
                let (at, key) = (rng.random_range(0..2), random_key(rng));
                let found = snapshot.get(keyspaces[at], &key).unwrap();
                assert_eq!(found.as_deref(), then[at].get(&key).map(Vec::as_slice));
                walk(rng, snapshot, keyspaces[at], &then[at]);
            }
            95..98 => {
                let last = db.last_seqno();
                assert!(db.flush().unwrap() >= last);
            }
            98 => {
                // An iterator outlives its snapshot, the close, and the files.
                let mut iter = db
                    .snapshot()
                    .iter(keyspaces[0], Bound::Unbounded, Bound::Unbounded);
                let last = db.last_seqno();
                done.add(&db.statistics());
                db.close().unwrap();
                (db, keyspaces) = open(&vfs, tiny(wal)).unwrap();
                assert_eq!((db.last_seqno(), db.flushed_seqno()), (last, last));
                snapshots.clear();
                iter.seek_to_first().unwrap();
                assert_at(&iter, model[0].first_key_value());
            }
            _ => {
                let at = rng.random_range(0..2);
                walk(rng, &db.snapshot(), keyspaces[at], &model[at]);
            }
        }
    }
    assert_eq!(all_contents(&db, keyspaces).unwrap(), model);
    done.add(&db.statistics());
    // What was closed is there after a crash.
    drop(snapshots);
    db.close().unwrap();
    drop(db);
    vfs.crash(CrashLoss::Everything);
    let (db, keyspaces) = open(&vfs, tiny(wal)).unwrap();
    assert_eq!(all_contents(&db, keyspaces).unwrap(), model);
}

/// Shows that the runs reached what they are meant to reach.
#[derive(Debug, Default)]
struct Done {
    flushes: u64,
    compactions: u64,
    bloom_useful: u64,
    cache_hits: u64,
}

impl Done {
    fn add(&mut self, statistics: &Statistics) {
        self.flushes += statistics.flushes;
        self.compactions += statistics.compactions;
        self.bloom_useful += statistics.bloom_useful;
        self.cache_hits += statistics.cache_hits;
    }
}

fn run_seeds(seeds: std::ops::Range<u64>, wal: bool) {
    let mut done = Done::default();
    for seed in seeds {
        println!("seed {seed}");
        run(seed, wal, &mut done);
    }
    let least = [
        done.flushes,
        done.compactions,
        done.bloom_useful,
        done.cache_hits,
    ];
    assert!(least.iter().all(|count| *count > 100), "{done:?}");
}

#[test]
fn random_operations_with_a_log() {
    run_seeds(0..30, true);
}

#[test]
fn random_operations_without_a_log() {
    run_seeds(100..130, false);
}

/// Keys written in order never overlap: their tables change level without being rewritten, but for the one time that
/// they get compressed.
#[test]
fn sequential_writes_move_tables() {
    let fill = |compression| {
        let vfs = SimVfs::new();
        let options = Options {
            compression,
            ..tiny(false)
        };
        let (db, [first, second]) = open(&vfs, options).unwrap();
        for key in 0..2000u32 {
            let mut batch = WriteBatch::new();
            batch.put(first, &key.to_be_bytes(), &[key as u8; 50]);
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        }
        (db, [first, second])
    };
    let (db, _) = fill(Compression::Lz4);
    let compressed = db.statistics();
    assert!(compressed.compactions > 5, "{compressed:?}");
    let (db, [first, _]) = fill(Compression::None);
    let statistics = db.statistics();
    assert!(
        statistics.trivial_moves > 5 && statistics.compactions == 0,
        "{statistics:?}"
    );
    assert!(compressed.table_bytes < statistics.table_bytes / 2);
    let written = compressed.flush_bytes_written + compressed.compaction_bytes_written;
    assert!(
        written < statistics.flush_bytes_written * 3 / 2,
        "compressed once"
    );
    assert_eq!(contents(&db.snapshot(), first).unwrap().len(), 2000);
    let (all, half) = (
        db.approximate_size(first, b"", &[255; 5]),
        db.approximate_size(first, b"", &1000u32.to_be_bytes()),
    );
    assert!(
        (all * 4 / 10..all * 6 / 10).contains(&half),
        "{half} of {all}"
    );
}

/// Deleted data leave the disk once compaction has carried the tombstones down.
#[test]
fn deletes_free_space() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, tiny(false)).unwrap();
    for round in 0..30u32 {
        let mut batch = WriteBatch::new();
        for key in 0..100u32 {
            match round % 2 {
                0 => batch.put(first, &key.to_be_bytes(), &[round as u8; 100]),
                _ => batch.delete(first, &key.to_be_bytes()),
            }
        }
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        db.flush().unwrap();
    }
    assert!(contents(&db.snapshot(), first).unwrap().is_empty());
    assert!(
        db.statistics().table_bytes < 8 << 10,
        "{:?}",
        db.statistics()
    );
    assert!(vfs.used() < 64 << 10, "{} bytes on the disk", vfs.used());
}

/// A range delete hides what is older, keeps what a snapshot sees, and in the end frees the space without reading it.
#[test]
fn range_deletes_free_space() {
    let vfs = SimVfs::new();
    let (db, [first, second]) = open(&vfs, tiny(false)).unwrap();
    let key = |number: u32| number.to_be_bytes();
    let fill = || {
        for number in 0..500u32 {
            let mut batch = WriteBatch::new();
            batch.put(first, &key(number), &[number as u8; 100]);
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        }
    };
    let delete = |start: u32, end: u32| {
        let mut batch = WriteBatch::new();
        batch.delete_range(first, &key(start), &key(end));
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    };
    let len = || contents(&db.snapshot(), first).unwrap().len();
    fill();
    let before = db.snapshot();
    delete(100, 400);
    assert_eq!(len(), 200);
    assert!(db.get(first, &key(100)).unwrap().is_none());
    assert!(db.get(first, &key(400)).unwrap().is_some());
    // A later write is not hidden, nor is another keyspace.
    let mut batch = WriteBatch::new();
    batch.delete_range(first, &key(200), &key(201));
    batch.put(first, &key(200), b"again");
    batch.put(second, &key(200), b"other");
    db.write(batch, WriteOptions::NO_SYNC).unwrap();
    db.flush().unwrap();
    assert_eq!(db.get(first, &key(200)).unwrap().unwrap(), b"again");
    assert_eq!(db.get(second, &key(200)).unwrap().unwrap(), b"other");
    assert_eq!(len(), 201);
    assert_eq!(contents(&before, first).unwrap().len(), 500);
    assert_eq!(before.get(first, &key(200)).unwrap().unwrap(), [200; 100]);
    drop(before);
    delete(0, 1000);
    assert_eq!(len(), 0);
    // Further writes carry the range delete down.
    for _ in 0..20 {
        fill();
        delete(0, 1000);
        db.flush().unwrap();
    }
    assert_eq!(len(), 0);
    let statistics = db.statistics();
    assert!(statistics.tables_pruned > 0, "{statistics:?}");
    assert!(statistics.table_bytes < 8 << 10, "{statistics:?}");
}

/// Many overlapping ranges fill a memtable however few bytes they have.
#[test]
fn many_range_deletes() {
    for wal in [true, false] {
        let vfs = SimVfs::new();
        let options = || lineradb_lsm::Options {
            memtable_bytes: 1 << 20,
            ..tiny(wal)
        };
        let (db, [first, _]) = open(&vfs, options()).unwrap();
        let mut model = Map::new();
        for number in 0..700u32 {
            let (start, end) = (number * 7 % 501, number * 11 % 509);
            let mut batch = WriteBatch::new();
            batch.put(first, &end.to_be_bytes(), b"value");
            model.insert(end.to_be_bytes().to_vec(), b"value".to_vec());
            batch.delete_range(first, &start.to_be_bytes(), &end.to_be_bytes());
            model.retain(|key, _| {
                key[..] < start.to_be_bytes()[..] || key[..] >= end.to_be_bytes()[..]
            });
            db.write(batch, WriteOptions::SYNC).unwrap();
        }
        assert!(contents(&db.snapshot(), first).unwrap() == model);
        assert!(db.statistics().flushes > 0);
        db.close().unwrap();
        let (db, [first, _]) = open(&vfs, options()).unwrap();
        assert!(contents(&db.snapshot(), first).unwrap() == model);
    }
}

/// Drops values of one byte, and counts the compactions that asked.
#[derive(Debug, Default)]
struct DropShort(std::sync::atomic::AtomicU64);

struct KeepLong;

impl lineradb_lsm::CompactionFilterFactory for DropShort {
    fn begin(
        &self,
        keyspace: lineradb_lsm::KeyspaceId,
    ) -> Option<Box<dyn lineradb_lsm::CompactionFilter>> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (keyspace.index() == 0).then(|| Box::new(KeepLong) as _)
    }
}

impl lineradb_lsm::CompactionFilter for KeepLong {
    fn keep(&mut self, _: &[u8], value: &[u8]) -> bool {
        value.len() > 1
    }
}

#[test]
fn a_filter_drops_values_during_compactions() {
    let vfs = SimVfs::new();
    let factory = std::sync::Arc::new(DropShort::default());
    let options = lineradb_lsm::Options {
        compaction_filter: Some(factory.clone()),
        ..tiny(false)
    };
    let (db, [first, second]) = open(&vfs, options).unwrap();
    let write = |value: &[u8]| {
        let mut batch = WriteBatch::new();
        for key in 0..50u32 {
            batch.put(first, &key.to_be_bytes(), value);
            batch.put(second, &key.to_be_bytes(), value);
        }
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        db.flush().unwrap();
    };
    for _ in 0..3 {
        write(b"long");
    }
    assert_eq!(contents(&db.snapshot(), first).unwrap().len(), 50);
    // What is dropped does not bring back the older value. With the eighth flush nothing is left at level 0.
    for _ in 0..5 {
        write(b"s");
    }
    assert!(contents(&db.snapshot(), first).unwrap().is_empty());
    assert_eq!(contents(&db.snapshot(), second).unwrap().len(), 50);
    assert!(db.statistics().values_filtered >= 50);
    assert!(factory.0.load(std::sync::atomic::Ordering::Relaxed) > 1);
}

#[test]
fn the_size_of_a_range_is_what_compressed_tables_would_take() {
    let vfs = SimVfs::new();
    let options = Options {
        compression_level_min: 2,
        level0_compaction_tables: 3,
        memtable_bytes: 256 << 10,
        table_bytes: 256 << 10,
        block_bytes: 4 << 10,
        ..tiny(false)
    };
    let (db, [first, second]) = open(&vfs, options).unwrap();
    // Each round's keys lie between those of the others, so that no table is moved as it is.
    let fill = |round: u32| {
        for key in (round..3000).step_by(3) {
            let mut batch = WriteBatch::new();
            let value = [&key.wrapping_mul(0x9e37_79b9).to_le_bytes()[..], &[32; 96]].concat();
            batch.put(first, &key.to_be_bytes(), &value);
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        }
    };
    let size =
        |from: u32, to: u32| db.approximate_size(first, &from.to_be_bytes(), &to.to_be_bytes());
    let close = |found: u64, to: u64| {
        assert!(
            (to * 3 / 4..to * 5 / 4).contains(&found),
            "{found}, not {to}"
        );
    };
    fill(0);
    assert_eq!(db.statistics().tables, 0);
    assert_eq!(
        size(0, 3000),
        104 * 1000,
        "it is not known how it compresses"
    );
    db.flush().unwrap();
    assert_eq!(db.statistics().level_tables[0], 1);
    let settled = size(0, 3000);
    assert!(
        (1000 * 10..1000 * 50).contains(&settled),
        "{settled} of 104,000 bytes"
    );
    fill(1);
    close(size(0, 3000), 2 * settled);
    close(size(750, 2250), settled);
    db.flush().unwrap();
    close(size(0, 3000), 2 * settled);
    fill(2);
    db.flush().unwrap();
    assert_eq!(db.statistics().level_tables[0], 0, "compacted");
    close(size(0, 3000), 3 * settled);
    close(db.statistics().table_bytes, 3 * settled);
    assert_eq!(db.approximate_size(second, b"", &[255; 5]), 0);
}
