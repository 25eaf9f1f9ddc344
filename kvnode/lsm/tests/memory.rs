//! A point read of what is in memory allocates nothing, and a database takes no more memory than it may.
//!
//! In a binary of its own, as it counts what the allocator does.
#![allow(clippy::unwrap_used)]

use lineradb_lsm::{Background, Compression, Db, Options, RealVfs, WriteBatch, WriteOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

struct Counting;

/// Bytes allocated now, and the most there were.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it is; the counters are a plain cell of the thread, which
// needs no allocation and no destructor, and atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_point_read_of_what_is_in_memory_allocates_nothing() {
    let _alone = ALONE.lock();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            background: Background::Inline,
            compression,
            compression_level_min: 0,
            level0_compaction_tables: 2,
            ..Options::default()
        };
        let db = Db::open(Arc::new(RealVfs), folder.path(), options).unwrap();
        let data = db.keyspace("default").unwrap();
        let write = |from: u64, to: u64| {
            let mut batch = WriteBatch::new();
            for number in from..to {
                batch.put(data, &number.to_be_bytes(), &[number as u8; 100]);
            }
            batch.delete_range(data, &(to + 10).to_be_bytes(), &(to + 20).to_be_bytes());
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
        };
        // A deep level, level 0 and the memtable.
        for from in [0, 500, 1000] {
            write(from, from + 1000);
            db.flush().unwrap();
        }
        write(2500, 3000);
        let snapshot = db.snapshot();
        let read = || {
            let mut found = 0;
            for number in 0..3100u64 {
                let key = number.to_be_bytes();
                let value = db.get(data, &key).unwrap();
                assert_eq!(value, snapshot.get(data, &key).unwrap());
                found += usize::from(value.is_some());
            }
            found
        };
        // Fills the cache, and registers the thread with what wants to know its readers.
        assert_eq!(read(), 2500);
        let before = ALLOCATIONS.with(Cell::get);
        let found = read();
        let after = ALLOCATIONS.with(Cell::get);
        assert_eq!((found, after - before), (2500, 0), "{compression:?}");
        let statistics = db.statistics();
        let compressed = compression != Compression::None;
        assert_eq!(statistics.cache_hits > 2000, compressed, "{statistics:?}");
    }
}

/// What is configured: the memtables, those that wait for their flush included, and the block cache. A fifth more is
/// for everything else: what is open, and what flush and compactions have in hand.
#[test]
fn a_database_keeps_to_its_budget() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        memtable_bytes: 16 << 20,
        immutable_memtables_max: 2,
        block_cache_bytes: 16 << 20,
        table_bytes: 16 << 20,
        level_base_bytes: 32 << 20,
        compression_level_min: 0,
        ..Options::default()
    };
    let budget = 3 * options.memtable_bytes + options.block_cache_bytes as usize;
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let db = Db::open(Arc::new(RealVfs), folder.path(), options).unwrap();
    let data = db.keyspace("default").unwrap();
    let mut written = 0;
    for round in 0..3u64 {
        for number in 0..12_000u64 {
            // One in a hundred lies in a blob file.
            let length = if number % 100 == 7 {
                100 << 10
            } else {
                4 << 10
            };
            let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            let mut batch = WriteBatch::new();
            batch.put(data, &key, &vec![(number + round) as u8; length]);
            db.write(batch, WriteOptions::NO_SYNC).unwrap();
            written += length;
        }
        for number in 0..12_000u64 {
            let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            assert!(db.get(data, &key).unwrap().is_some());
        }
    }
    // Large values have memory of their own: what small ones left makes way for it.
    let spare = db.statistics().memtable_spare_bytes;
    assert!(spare > 0, "memory goes round");
    for number in 0..2_000u64 {
        let mut batch = WriteBatch::new();
        batch.put(data, &number.to_be_bytes(), &vec![number as u8; 200 << 10]);
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        let number = number / 2;
        let value = db.get(data, &number.to_be_bytes()).unwrap().unwrap();
        assert!(value.iter().all(|byte| *byte == number as u8));
    }
    assert!(db.statistics().memtable_spare_bytes < spare);
    let statistics = db.statistics();
    let took = PEAK.load(Relaxed) - before;
    assert!(written > 2 * budget && statistics.flushes > 5 && statistics.compactions > 0);
    assert!(statistics.cache_bytes > 12 << 20, "{statistics:?}");
    assert!(took > budget / 3, "{took} of {budget}: nothing was tried");
    assert!(
        took <= budget + budget / 5,
        "{took}, the budget is {budget}"
    );
}
