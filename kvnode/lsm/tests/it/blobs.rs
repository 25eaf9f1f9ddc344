//! Large values in blob files: compactions leave them where they are, and their space comes back.

use crate::support::*;
use lineradb_lsm::{
    Compression, CrashLoss, Db, KeyspaceId, Options, SimVfs, Vfs, WriteBatch, WriteOptions,
};
use rand::RngCore;
use std::ops::Bound;
use std::path::Path;

fn options(blob_value_bytes_min: usize) -> Options {
    Options {
        memtable_bytes: 64 << 10,
        table_bytes: 32 << 10,
        level_base_bytes: 64 << 10,
        blob_value_bytes_min,
        ..tiny(false)
    }
}

/// Cannot be compressed, and says which key and round it is of.
fn value(key: u32, round: u32) -> Vec<u8> {
    let mut value = vec![0; 4 << 10];
    rng(u64::from(key) << 32 | u64::from(round)).fill_bytes(&mut value);
    value
}

fn put(db: &Db, keyspace: KeyspaceId, key: u32, round: u32) {
    let mut batch = WriteBatch::new();
    batch.put(keyspace, &key.to_be_bytes(), &value(key, round));
    db.write(batch, WriteOptions::NO_SYNC).unwrap();
}

/// In an order in which each memtable has keys from everywhere.
fn fill(db: &Db, keyspace: KeyspaceId, keys: u32, round: u32) {
    for at in 0..keys {
        put(db, keyspace, at * 37 % keys, round);
    }
    db.flush().unwrap();
}

fn check(db: &Db, keyspace: KeyspaceId, keys: u32, round: u32) {
    let found = contents(&db.snapshot(), keyspace).unwrap();
    assert_eq!(found.len(), keys as usize);
    for (key, number) in found.iter().zip(0..) {
        assert!(*key.1 == value(number, round), "{number}");
        assert!(*db.get(keyspace, key.0).unwrap().unwrap() == **key.1);
    }
}

#[test]
fn compactions_write_pointers_and_not_values() {
    let written = |blob_value_bytes_min| {
        let (db, [first, _]) = open(&SimVfs::new(), options(blob_value_bytes_min)).unwrap();
        fill(&db, first, 300, 0);
        check(&db, first, 300, 0);
        let statistics = db.statistics();
        assert!(statistics.compactions > 3, "{statistics:?}");
        let blobs = statistics.blob_bytes > 300 * (4 << 10) && statistics.table_bytes < 64 << 10;
        assert_eq!(blobs, blob_value_bytes_min > 0, "{statistics:?}");
        statistics.write_amplification().unwrap()
    };
    let (apart, together) = (written(1 << 10), written(0));
    assert!((1.0..1.1).contains(&apart), "{apart}");
    assert!(together > 2.0, "{together}");
}

#[test]
fn the_space_of_what_was_overwritten_or_deleted_comes_back() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, options(1 << 10)).unwrap();
    for round in 0..8 {
        fill(&db, first, 100, round);
    }
    check(&db, first, 100, 7);
    let statistics = db.statistics();
    let alive = 100 * (4 << 10);
    // Some garbage is left alone, and what level 0 hides is not known to be.
    assert!(statistics.blob_bytes < 4 * alive, "{statistics:?}");
    assert!(
        statistics.write_amplification().unwrap() < 2.5,
        "{statistics:?}"
    );
    let on_disk = vfs.list(Path::new(DIR)).unwrap();
    let on_disk = on_disk.iter().filter(|name| name.ends_with(".blob"));
    assert_eq!(on_disk.count() as u64, statistics.blob_files);
    for key in 0..100u32 {
        let mut batch = WriteBatch::new();
        batch.delete(first, &key.to_be_bytes());
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        if key % 10 == 9 {
            db.flush().unwrap();
        }
    }
    assert!(contents(&db.snapshot(), first).unwrap().is_empty());
    let statistics = db.statistics();
    assert_eq!((statistics.blob_files, statistics.blob_bytes), (0, 0));
    assert!(vfs.used() < 64 << 10, "{} bytes", vfs.used());
}

/// A file that is mostly garbage goes even if nothing is written any more where its pointers are.
#[test]
fn garbage_is_collected_where_no_compaction_is_due() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, options(1 << 10)).unwrap();
    fill(&db, first, 60, 0);
    let before = db.statistics();
    // Two thirds of each file go; the compaction that finds out does not know it before.
    for third in [1, 2] {
        for key in (third..60u32).step_by(3) {
            let mut batch = WriteBatch::new();
            batch.delete(first, &key.to_be_bytes());
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        }
        db.flush().unwrap();
    }
    let after = db.statistics();
    assert!(after.blob_bytes_moved > before.blob_bytes_moved);
    assert!(
        after.blob_bytes < before.blob_bytes / 2,
        "{before:?}, {after:?}"
    );
    let found = contents(&db.snapshot(), first).unwrap();
    assert_eq!(found.len(), 20);
    assert!(
        found
            .values()
            .zip((0..).step_by(3))
            .all(|(found, key)| *found == value(key, 0))
    );
}

#[test]
fn snapshots_and_walks_keep_the_files_that_they_need() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, options(1 << 10)).unwrap();
    fill(&db, first, 50, 0);
    let then = db.snapshot();
    let mut walk = then.iter(first, Bound::Unbounded, Bound::Unbounded);
    walk.seek_to_last().unwrap();
    let held = then.get(first, &7u32.to_be_bytes()).unwrap().unwrap();
    for round in 1..5 {
        fill(&db, first, 50, round);
    }
    let old = contents(&then, first).unwrap();
    assert!(
        old.values()
            .zip(0..)
            .all(|(found, key)| *found == value(key, 0))
    );
    drop(then);
    for round in 5..9 {
        fill(&db, first, 50, round);
    }
    assert!(held == value(7, 0));
    for key in (0..50).rev() {
        assert!(walk.value() == value(key, 0), "{key}");
        assert!(walk.value_slice() == value(key, 0));
        walk.prev().unwrap();
    }
    check(&db, first, 50, 8);
}

#[test]
fn reopening_checkpoints_and_another_threshold_change_nothing_about_what_is_there() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, options(1 << 10)).unwrap();
    fill(&db, first, 80, 0);
    let copy = Path::new("/data/copy");
    db.checkpoint(copy).unwrap();
    drop(db);
    vfs.crash(CrashLoss::Everything);
    for (blob_value_bytes_min, compression) in [(0, Compression::Zstd), (100, Compression::None)] {
        let options = Options {
            compression,
            ..options(blob_value_bytes_min)
        };
        let (db, [first, _]) = open(&vfs, options).unwrap();
        check(&db, first, 80, 0);
        for key in (0..80).step_by(9) {
            put(&db, first, key, 0);
        }
        db.flush().unwrap();
        check(&db, first, 80, 0);
        db.close().unwrap();
    }
    let (db, [first, _]) = open_at(&vfs, copy, options(1 << 10)).unwrap();
    check(&db, first, 80, 0);
}

/// Files with next to nothing in them are merged by the compactions that meet them.
#[test]
fn few_large_values_among_many_small_ones_do_not_make_ever_more_files() {
    let options = Options {
        table_bytes: 256 << 10,
        ..options(1 << 10)
    };
    let (db, [first, _]) = open(&SimVfs::new(), options).unwrap();
    for round in 0..40 {
        put(&db, first, round, 0);
        for key in 1..200 {
            let mut batch = WriteBatch::new();
            batch.put(first, &(key * 40 + round).to_be_bytes(), b"small");
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        }
        db.flush().unwrap();
    }
    let statistics = db.statistics();
    assert!(statistics.blob_files < 12, "{statistics:?}");
    for key in 0..40u32 {
        let found = db.get(first, &key.to_be_bytes()).unwrap();
        assert!(found.unwrap() == value(key, 0));
    }
}

#[test]
fn the_size_of_a_range_counts_its_blobs() {
    let options = Options {
        memtable_bytes: 64 << 20,
        table_bytes: 64 << 20,
        compression: Compression::None,
        ..options(1 << 10)
    };
    let (db, [first, _]) = open(&SimVfs::new(), options).unwrap();
    // Large values in the middle, small ones before and behind.
    for key in 0..9_000u32 {
        let mut batch = WriteBatch::new();
        let length = if key / 3_000 == 1 { 4 << 10 } else { 8 };
        batch.put(first, &key.to_be_bytes(), &vec![7; length]);
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }
    let size = |from: u32, to: u32| {
        db.approximate_size(first, &from.to_be_bytes(), &to.to_be_bytes()) >> 20
    };
    db.flush().unwrap();
    assert!(db.statistics().blob_bytes > 12_000_000);
    assert_eq!((size(0, 2_990), size(6_300, 9_000)), (0, 0));
    assert!((10..=12).contains(&size(0, 9_000)), "{}", size(0, 9_000));
    assert!(
        (4..=7).contains(&size(3_000, 4_500)),
        "{}",
        size(3_000, 4_500)
    );
    assert!(
        (4..=7).contains(&size(4_500, 6_000)),
        "{}",
        size(4_500, 6_000)
    );
}

/// Forty values that can be compressed, in tables.
fn compressible(block_cache_bytes: u64) -> (Db, impl Fn(u32) -> u64) {
    let options = Options {
        block_cache_bytes,
        ..options(1 << 10)
    };
    let (db, [first, _]) = open(&SimVfs::new(), options).unwrap();
    for key in 0..40u32 {
        let mut batch = WriteBatch::new();
        batch.put(first, &key.to_be_bytes(), &[key as u8; 8 << 10]);
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }
    db.flush().unwrap();
    let reader = db.clone();
    // Reads one of them, and says how many blocks it did not find in the cache.
    let read = move |key: u32| {
        let before = reader.statistics().cache_misses;
        let found = reader.get(first, &key.to_be_bytes()).unwrap().unwrap();
        assert!(found == [key as u8; 8 << 10]);
        reader.statistics().cache_misses - before
    };
    (db, read)
}

/// What can be compressed is, and is read from the cache.
#[test]
fn values_are_compressed() {
    let (db, read) = compressible(1 << 20);
    assert!((0..40).map(&read).sum::<u64>() >= 40);
    assert_eq!((0..40).map(&read).sum::<u64>(), 0);
    assert!(db.statistics().blob_bytes < 40 << 10);
}

/// What is read once does not take the place of others, nor does what is walked over, however often.
#[test]
fn a_full_cache_takes_a_value_in_at_its_second_read() {
    let (db, read) = compressible(100 << 10);
    assert!((0..40).map(&read).sum::<u64>() >= 40);
    let bytes = db.statistics().cache_bytes;
    assert!((80 << 10..=100 << 10).contains(&bytes), "{bytes}");
    assert_eq!(read(0), 0, "it was there first");
    assert_eq!([read(39), read(39)], [1, 0]);
    for _ in 0..3 {
        let first = db.keyspace(KEYSPACES[0]).unwrap();
        assert_eq!(contents(&db.snapshot(), first).unwrap().len(), 40);
    }
    assert_eq!([read(0), read(39), read(38)], [0, 0, 1]);
}
