//! The storage engine on `/metrics`: its own counters, read when somebody asks.
//!
//! A process may run several nodes (`lineradb dev`), hence the label `node`.

use lineradb_common::{NodeId, telemetry};
use lineradb_lsm::{Db, Statistics};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// A series: name, help, how to read it.
type Series = (&'static str, &'static str, fn(&Statistics) -> u64);

/// Totals since the engine was opened.
const TOTALS: &[Series] = &[
    (
        "lineradb_storage_written_bytes_total",
        "Bytes of write batches handed to the storage engine",
        |s| s.user_bytes_written,
    ),
    (
        "lineradb_storage_flushes_total",
        "Flushes of memtables to tables",
        |s| s.flushes,
    ),
    (
        "lineradb_storage_flush_bytes_total",
        "Bytes of tables and blob files written by flushes",
        |s| s.flush_bytes_written,
    ),
    (
        "lineradb_storage_compactions_total",
        "Compactions that rewrote data",
        |s| s.compactions,
    ),
    (
        "lineradb_storage_compaction_read_bytes_total",
        "Bytes of tables read by compactions",
        |s| s.compaction_bytes_read,
    ),
    (
        "lineradb_storage_compaction_written_bytes_total",
        "Bytes of tables and blob files written by compactions",
        |s| s.compaction_bytes_written,
    ),
    (
        "lineradb_storage_blob_moved_bytes_total",
        "Bytes of large values moved out of blob files that were mostly garbage",
        |s| s.blob_bytes_moved,
    ),
    (
        "lineradb_storage_point_reads_total",
        "Point reads of the storage engine",
        |s| s.gets,
    ),
    (
        "lineradb_storage_bloom_skips_total",
        "Tables that a point read skipped thanks to their bloom filter",
        |s| s.bloom_useful,
    ),
    (
        "lineradb_storage_version_skips_total",
        "Tables that a walk skipped because they had no version of the wanted times",
        |s| s.versions_useful,
    ),
    (
        "lineradb_storage_cache_hits_total",
        "Compressed blocks found in the block cache",
        |s| s.cache_hits,
    ),
    (
        "lineradb_storage_cache_misses_total",
        "Compressed blocks that had to be decompressed",
        |s| s.cache_misses,
    ),
    (
        "lineradb_storage_stall_microseconds_total",
        "Time that writers waited for flush or compaction",
        |s| s.stall_micros,
    ),
    (
        "lineradb_storage_slowdown_microseconds_total",
        "The part of the stall time that was slowdown, to keep the rest from being needed",
        |s| s.slowdown_micros,
    ),
];

/// What is there now.
const STATES: &[Series] = &[
    (
        "lineradb_storage_memtable_bytes",
        "Bytes in memtables, those waiting for their flush included",
        |s| s.memtable_bytes,
    ),
    (
        "lineradb_storage_memtable_spare_bytes",
        "Bytes of memory that earlier memtables left, kept for the next ones",
        |s| s.memtable_spare_bytes,
    ),
    (
        "lineradb_storage_cache_bytes",
        "Bytes in the block cache",
        |s| s.cache_bytes,
    ),
    ("lineradb_storage_tables", "Table files", |s| s.tables),
    (
        "lineradb_storage_table_bytes",
        "Bytes of table files",
        |s| s.table_bytes,
    ),
    (
        "lineradb_storage_blob_files",
        "Blob files, which hold large values",
        |s| s.blob_files,
    ),
    ("lineradb_storage_blob_bytes", "Bytes of blob files", |s| {
        s.blob_bytes
    }),
    (
        "lineradb_storage_blob_used_bytes",
        "Bytes of blob files that tables point to",
        |s| s.blob_used_bytes,
    ),
    (
        "lineradb_storage_compaction_debt_bytes",
        "Estimated bytes that compactions have to write until every level has its size",
        |s| s.compaction_debt_bytes,
    ),
    (
        "lineradb_storage_read_amplification",
        "Sorted runs that a point read without bloom filters would look into",
        Statistics::read_amplification,
    ),
    (
        "lineradb_storage_snapshots",
        "Snapshots that readers hold open",
        |s| s.snapshots,
    ),
];

static ENGINES: LazyLock<Engines> = LazyLock::new(|| telemetry::register(Engines::new()));

/// Reads the engines of this process.
#[derive(Clone)]
struct Engines(Arc<Shared>);

struct Shared {
    /// Guards the vectors below as well: they are filled anew at each reading.
    engines: Mutex<BTreeMap<u64, Db>>,
    totals: Vec<IntCounterVec>,
    states: Vec<IntGaugeVec>,
}

impl Engines {
    #[allow(clippy::expect_used)] // constant names: wrong ones fail the first test
    fn new() -> Self {
        let options = |(name, help, _): &Series| Opts::new(*name, *help);
        let total = |s| IntCounterVec::new(options(s), &["node"]).expect("constant options");
        let state = |s| IntGaugeVec::new(options(s), &["node"]).expect("constant options");
        Engines(Arc::new(Shared {
            engines: Mutex::default(),
            totals: TOTALS.iter().map(total).collect(),
            states: STATES.iter().map(state).collect(),
        }))
    }
}

impl Collector for Engines {
    fn desc(&self) -> Vec<&Desc> {
        let totals = self.0.totals.iter().flat_map(Collector::desc);
        let states = self.0.states.iter().flat_map(Collector::desc);
        totals.chain(states).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let engines = self.0.engines.lock();
        let readings: Vec<(String, Statistics)> = engines
            .iter()
            .map(|(node, db)| (node.to_string(), db.statistics()))
            .collect();
        let mut families = Vec::with_capacity(TOTALS.len() + STATES.len());
        for ((_, _, read), total) in TOTALS.iter().zip(&self.0.totals) {
            total.reset();
            for (node, statistics) in &readings {
                { total.with_label_values(&[node]) }.inc_by(read(statistics));
            }
            families.extend(total.collect());
        }
        for ((_, _, read), state) in STATES.iter().zip(&self.0.states) {
            state.reset();
            for (node, statistics) in &readings {
                let now = i64::try_from(read(statistics)).unwrap_or(i64::MAX);
                state.with_label_values(&[node]).set(now);
            }
            families.extend(state.collect());
        }
        families
    }
}

/// Keeps an engine on `/metrics` until dropped.
pub(super) struct Shown(NodeId);

/// Shows an engine.
pub(super) fn show(node: NodeId, db: Db) -> Shown {
    ENGINES.0.engines.lock().insert(node.0, db);
    Shown(node)
}

impl Drop for Shown {
    fn drop(&mut self) {
        ENGINES.0.engines.lock().remove(&self.0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_lsm::{Options, SimVfs};

    #[test]
    fn an_engine_is_shown_while_it_is_open() {
        let vfs = Arc::new(SimVfs::new());
        let db = Db::open(vfs, std::path::Path::new("/db"), Options::default()).unwrap();
        let shown = show(NodeId(7), db);
        let line = "lineradb_storage_tables{node=\"7\"} 0";
        assert!(telemetry::render_metrics().contains(line));
        drop(shown);
        assert!(!telemetry::render_metrics().contains(line));
    }
}
