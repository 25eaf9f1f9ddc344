//! A point read of what is in memory allocates nothing.
//!
//! In a binary of its own, as it counts what the allocator does.
#![allow(clippy::unwrap_used)]

use lineradb_lsm::{Background, Compression, Db, Options, RealVfs, WriteBatch, WriteOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it is; the counter is a plain cell of the thread, which
// needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_point_read_of_what_is_in_memory_allocates_nothing() {
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
