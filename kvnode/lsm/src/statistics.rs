//! Counters of one database: bumped with relaxed atomics by the engine, read as a [`Statistics`] by whoever
//! exports metrics. Totals count since the open.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A reading of the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Encoded bytes of the batches written.
    pub user_bytes_written: u64,
    /// Batches written.
    pub batches_written: u64,
    /// Commit groups: how often the log was appended to (with a log), or how often a leader ran (without).
    pub commit_groups: u64,
    /// Bytes appended to the log.
    pub wal_bytes_written: u64,
    /// Syncs of the log.
    pub wal_syncs: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Bytes of tables and blob files written by flushes.
    pub flush_bytes_written: u64,
    /// Compactions done that rewrote data.
    pub compactions: u64,
    /// Compactions done by moving tables to another level.
    pub trivial_moves: u64,
    /// Values that the compaction filter has dropped.
    pub values_filtered: u64,
    /// Ingestions done.
    pub ingestions: u64,
    /// Bytes of tables taken in by ingestions.
    pub ingested_bytes: u64,
    /// Tables dropped without being read, as range deletes hide all of them.
    pub tables_pruned: u64,
    /// Bytes of large values that compactions have moved out of blob files that were mostly garbage.
    pub blob_bytes_moved: u64,
    /// Bytes of tables read by compactions.
    pub compaction_bytes_read: u64,
    /// Bytes of tables and blob files written by compactions.
    pub compaction_bytes_written: u64,
    /// Point reads.
    pub gets: u64,
    /// Compressed blocks found in the block cache.
    pub cache_hits: u64,
    /// Compressed blocks that had to be decompressed.
    pub cache_misses: u64,
    /// Bytes in the block cache now.
    pub cache_bytes: u64,
    /// Blocks read in place, from the memory map.
    pub blocks_mapped: u64,
    /// Point reads of a table that the bloom filter made unnecessary.
    pub bloom_useful: u64,
    /// Tables that a walk passed by because they had none of the versions that it wanted.
    pub versions_useful: u64,
    /// Point reads of a table that the bloom filter let through.
    pub bloom_passed: u64,
    /// Time writers spent waiting for flush or compaction, slowdowns included, in microseconds.
    pub stall_micros: u64,
    /// The part of it that was slowdown, which keeps the rest from being needed.
    pub slowdown_micros: u64,
    /// Times a writer had to wait.
    pub stalls: u64,
    /// Time that compactions paused to keep to their rate, in microseconds.
    pub rate_limit_micros: u64,
    /// Estimated bytes that compactions have to write until every level has its size.
    pub compaction_debt_bytes: u64,
    /// Bytes in the memtables now, waiting ones included.
    pub memtable_bytes: u64,
    /// Bytes of memory that earlier memtables left, kept for the next ones.
    pub memtable_spare_bytes: u64,
    /// Full memtables waiting for their flush now.
    pub immutable_memtables: u64,
    /// Bytes of the tables of each level now, over all keyspaces.
    pub level_bytes: Vec<u64>,
    /// Number of the tables of each level now, over all keyspaces.
    pub level_tables: Vec<u64>,
    /// Number of all tables now.
    pub tables: u64,
    /// Bytes of all tables now.
    pub table_bytes: u64,
    /// Number of blob files now.
    pub blob_files: u64,
    /// Bytes of all blob files now.
    pub blob_bytes: u64,
    /// Bytes of them that tables point to; the rest is garbage.
    pub blob_used_bytes: u64,
    /// Snapshots alive now.
    pub snapshots: u64,
}

impl Statistics {
    /// Bytes written to files for each byte that was written to the database, since the open; `None` before the
    /// first write.
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.wal_bytes_written + self.flush_bytes_written;
        let written = written + self.compaction_bytes_written;
        let user = self.user_bytes_written;
        (user > 0).then(|| written as f64 / user as f64)
    }

    /// Bytes of all tables and blob files for each byte of the deepest level in use, whose data are about what is
    /// alive, and of blobs that tables point to; `None` without tables.
    pub fn space_amplification(&self) -> Option<f64> {
        let mut levels = self.level_bytes.iter().rev();
        let last = levels.find(|bytes| **bytes > 0)?;
        let (all, alive) = (
            self.table_bytes + self.blob_bytes,
            last + self.blob_used_bytes,
        );
        Some(all as f64 / alive as f64)
    }

    /// Sorted runs that a point read without bloom filters would look into: level-0 tables, and levels in use.
    pub fn read_amplification(&self) -> u64 {
        let [level0, deeper @ ..] = &self.level_tables[..] else {
            return 0;
        };
        level0 + deeper.iter().filter(|tables| **tables > 0).count() as u64
    }
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub user_bytes_written: Counter,
    pub batches_written: Counter,
    pub commit_groups: Counter,
    pub wal_bytes_written: Counter,
    pub wal_syncs: Counter,
    pub flushes: Counter,
    pub flush_bytes_written: Counter,
    pub compactions: Counter,
    pub trivial_moves: Counter,
    pub tables_pruned: Counter,
    pub values_filtered: Counter,
    pub ingestions: Counter,
    pub ingested_bytes: Counter,
    pub blob_bytes_moved: Counter,
    pub compaction_bytes_read: Counter,
    pub compaction_bytes_written: Counter,
    pub reads: ReadCounters,
    pub cache_misses: Counter,
    pub versions_useful: Counter,
    pub stall_micros: Counter,
    pub slowdown_micros: Counter,
    pub stalls: Counter,
    pub rate_limit_micros: Counter,
}

/// Number of places among which readers spread.
const STRIPES: usize = 8;

/// Totals that every read bumps: kept in a few places, each a cache line of its own, so that readers do not fight for
/// one and a read of what is in memory touches no more than one.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters([ReadStripe; STRIPES]);

/// One place; the fields are those of [`Statistics`].
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct ReadStripe {
    pub gets: Counter,
    pub cache_hits: Counter,
    pub blocks_mapped: Counter,
    pub bloom_useful: Counter,
    pub bloom_passed: Counter,
}

/// Hands out the places.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The place of this thread.
    static PLACE: usize = THREADS.fetch_add(1, Relaxed) % STRIPES;
}

impl ReadCounters {
    /// The place of this thread.
    #[inline]
    pub fn mine(&self) -> &ReadStripe {
        &self.0[PLACE.with(|place| *place)]
    }

    fn total(&self, counter: impl Fn(&ReadStripe) -> &Counter) -> u64 {
        self.0.iter().map(|stripe| counter(stripe).get()).sum()
    }
}

/// One total.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Counters {
    /// The totals; what describes the present state is left for the caller to fill in.
    pub fn read(&self) -> Statistics {
        Statistics {
            user_bytes_written: self.user_bytes_written.get(),
            batches_written: self.batches_written.get(),
            commit_groups: self.commit_groups.get(),
            wal_bytes_written: self.wal_bytes_written.get(),
            wal_syncs: self.wal_syncs.get(),
            flushes: self.flushes.get(),
            flush_bytes_written: self.flush_bytes_written.get(),
            compactions: self.compactions.get(),
            trivial_moves: self.trivial_moves.get(),
            tables_pruned: self.tables_pruned.get(),
            values_filtered: self.values_filtered.get(),
            ingestions: self.ingestions.get(),
            ingested_bytes: self.ingested_bytes.get(),
            blob_bytes_moved: self.blob_bytes_moved.get(),
            compaction_bytes_read: self.compaction_bytes_read.get(),
            compaction_bytes_written: self.compaction_bytes_written.get(),
            gets: self.reads.total(|place| &place.gets),
            cache_hits: self.reads.total(|place| &place.cache_hits),
            cache_misses: self.cache_misses.get(),
            blocks_mapped: self.reads.total(|place| &place.blocks_mapped),
            bloom_useful: self.reads.total(|place| &place.bloom_useful),
            versions_useful: self.versions_useful.get(),
            bloom_passed: self.reads.total(|place| &place.bloom_passed),
            stall_micros: self.stall_micros.get(),
            slowdown_micros: self.slowdown_micros.get(),
            stalls: self.stalls.get(),
            rate_limit_micros: self.rate_limit_micros.get(),
            ..Statistics::default()
        }
    }
}
