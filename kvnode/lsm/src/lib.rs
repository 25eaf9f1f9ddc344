//! LineraDB's storage engine: a log-structured merge tree, usable on its own.
//!
//! **What.** Ordered keys and values in several trees (keyspaces), atomic batches over them, consistent snapshots,
//! iterators in both directions, and a precise promise about what a crash keeps.
//!
//! **How.** A write goes to the log (if there is one) and into a sorted table in memory; a full one is written out
//! as an immutable table file; tables are merged level by level in the background. A read looks at the memtables
//! and then at the tables from the newest to the oldest, helped by bloom filters. The idea is O'Neil's ("The
//! Log-Structured Merge-Tree", 1996) in the leveled form of LevelDB and RocksDB. `README.md` has the file formats
//! byte by byte and the life of a write and of a read.
//!
//! ```
//! use lineradb_lsm::{Db, Options, SimVfs, WriteBatch, WriteOptions};
//! use std::{ops::Bound, path::Path, sync::Arc};
//!
//! # fn main() -> lineradb_lsm::Result<()> {
//! let db = Db::open(Arc::new(SimVfs::new()), Path::new("/db"), Options::with_keyspaces(["data"]))?;
//! let data = db.keyspace("data")?;
//! let mut batch = WriteBatch::new();
//! batch.put(data, b"a", b"1");
//! batch.put(data, b"b", b"2");
//! db.write(batch, WriteOptions::SYNC)?;
//!
//! let snapshot = db.snapshot();
//! let mut iter = snapshot.iter(data, Bound::Included(b"a"), Bound::Unbounded);
//! iter.seek_to_last()?;
//! assert_eq!((iter.key(), iter.value()), (&b"b"[..], &b"2"[..]));
//! db.close()
//! # }
//! ```
//!
//! **Layers**, each using only those below it: `db` (the running database) | `compaction`, `iter` | `version`,
//! `manifest` | `table`, `memtable`, `log` | `vfs`, `cache`, `batch`, and the small words.
//!
//! **Rules held** (numbers of `PROTOCOLS.md`): D1, without a log a crash keeps exactly the batches up to
//! [`Db::flushed_seqno`]; D3, a failed write or sync is final, and only a tail that was never synced is cut off at
//! recovery. Damaged bytes are named by file, part and offset, and never served.

mod background;
mod batch;
mod cache;
mod clock;
mod coding;
mod compaction;
mod db;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod iter;
mod log;
mod manifest;
mod memtable;
mod options;
mod pace;
mod prefetch;
mod ranges;
mod slice;
mod statistics;
mod table;
mod types;
mod version;
mod vfs;

pub use batch::WriteBatch;
pub use compaction::filter::{CompactionFilter, CompactionFilterFactory};
pub use db::{Db, Ingestion, Snapshot};
pub use error::{Error, Result};
pub use iter::Iter;
pub use options::{Background, Compression, Options, WriteOptions};
pub use slice::Slice;
pub use statistics::Statistics;
pub use table::TableWriter;
pub use types::{BATCH_BYTES_MAX, KEY_BYTES_MAX, KeyspaceId, SeqNo, VALUE_BYTES_MAX};
pub use vfs::{
    CrashLoss, DirLock, DiskFaults, FAULT_EXIT_CODE, Fault, FaultyVfs, LockError, ReadableFile,
    RealVfs, SimVfs, Vfs, WritableFile, exit_on_map_faults,
};
