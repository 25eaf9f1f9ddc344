//! The hook by which the user of the engine drops values that have become worthless, such as versions that
//! multi-version readers are too late for, on the occasion of a compaction that reads them anyway.

use crate::types::KeyspaceId;
use std::fmt::Debug;

/// Makes the filters of a database; see [`Options::compaction_filter`](crate::Options::compaction_filter).
pub trait CompactionFilterFactory: Debug + Send + Sync {
    /// Called at the beginning of each compaction that rewrites tables of a keyspace; `None` keeps everything.
    fn begin(&self, keyspace: KeyspaceId) -> Option<Box<dyn CompactionFilter>>;
}

/// Decides during one compaction what is kept.
///
/// A compaction sees a part of the keys, and of these what its tables hold, which may not be the newest: so a filter
/// must drop only what is worthless whatever else there is. What it drops vanishes for all readers at some moment,
/// for snapshots as well; nobody may still need it. It never brings back an older value of the same key. It is asked
/// neither by flushes nor when tables change their level without being rewritten.
pub trait CompactionFilter: Send {
    /// Whether to keep a value. Keys come ascending; several versions of one key the newest first.
    fn keep(&mut self, key: &[u8], value: &[u8]) -> bool;
}
