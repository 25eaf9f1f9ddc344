//! Schema versions at the leader (PROTOCOLS S1-S6).
//!
//! The version of a table is a versioned key inside each shard. Every request
//! names the version that it was planned with; it is compared at the timestamp
//! at which the request takes effect, and that comparison is a read: a later
//! version write must stand above it. There is no cache entry per request, only
//! the highest such timestamp per table (S6), and the few versions of a table
//! are kept decoded.

use crate::mvcc::{self, Intent, IntentWrite, Reader, keys};
use lineradb_common::{ShardId, TableId, Timestamp, TxnId};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The stored versions of one table in one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableVersions {
    /// Newest first; a version of 0 says that the table is gone.
    pub versions: Vec<(Timestamp, u64)>,
    /// A version that is being written.
    pub intent: Option<Intent>,
}

/// What a request finds that was planned with some version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The very version; since when.
    Same(Timestamp),
    /// Another one, since then.
    Changed {
        /// The version that is visible.
        current: u64,
        /// Since when.
        since: Timestamp,
    },
    /// Not known: another version is being written.
    Undecided(Intent),
}

impl TableVersions {
    /// Reads them.
    ///
    /// # Errors
    /// When the store fails or holds what is not a version.
    pub fn load(reader: &impl Reader, shard: ShardId, table: TableId) -> mvcc::Result<Self> {
        let key = keys::schema_key(shard, table);
        let mut versions = Vec::new();
        for stored in mvcc::versions_of(reader, &key, Timestamp::MAX)? {
            let version = stored.version.value.as_deref().map_or(Ok(0), decode)?;
            versions.push((stored.timestamp, version));
        }
        Ok(TableVersions {
            versions,
            intent: mvcc::read_intent(reader, &key)?,
        })
    }

    /// The version visible at a timestamp, and since when.
    pub fn at(&self, at: Timestamp) -> (Timestamp, u64) {
        let mut visible = self.versions.iter().filter(|(since, _)| *since <= at);
        visible.next().copied().unwrap_or_default()
    }

    /// Compares the version of a request that takes effect at `at`. The
    /// writer of a new version may name the old and the new one.
    pub fn check(&self, at: Timestamp, planned: u64, own: Option<TxnId>) -> Verdict {
        let (since, current) = self.at(at);
        if let Some(intent) = &self.intent {
            if own == Some(intent.txn) {
                if intent_version(intent) == Some(planned) {
                    return Verdict::Same(since);
                }
            } else if intent.timestamp <= at {
                return Verdict::Undecided(intent.clone());
            }
        }
        if current == planned {
            Verdict::Same(since)
        } else {
            Verdict::Changed { current, since }
        }
    }
}

/// The stored form of a version.
pub fn encode(version: u64) -> [u8; 8] {
    version.to_be_bytes()
}

/// Reads a stored version.
///
/// # Errors
/// When the bytes are not a version.
pub fn decode(value: &[u8]) -> mvcc::Result<u64> {
    let bytes = value
        .try_into()
        .map_err(|_| mvcc::Error::Node(crate::Error::Corrupt("a schema version".into())))?;
    Ok(u64::from_be_bytes(bytes))
}

fn intent_version(intent: &Intent) -> Option<u64> {
    match &intent.write {
        IntentWrite::Put(value) => decode(value).ok(),
        IntentWrite::Delete => Some(0),
    }
}

#[derive(Default)]
struct Table {
    highest_read: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Raised by every write: what was loaded before is not kept after it.
    generation: u64,
    versions: Option<Arc<TableVersions>>,
}

/// The tables of one shard's leader.
#[derive(Default)]
pub struct SchemaTable {
    tables: RwLock<HashMap<TableId, Arc<Table>>>,
}

impl SchemaTable {
    fn table(&self, table: TableId) -> Arc<Table> {
        if let Some(found) = self.tables.read().get(&table) {
            return found.clone();
        }
        self.tables.write().entry(table).or_default().clone()
    }

    /// Records that the version was compared at `at`. Comes before the look at
    /// writes in flight and before [`SchemaTable::versions`].
    pub fn record_read(&self, table: TableId, at: Timestamp) {
        let table = self.table(table);
        table.highest_read.fetch_max(at.raw(), Ordering::SeqCst);
    }

    /// The lowest timestamp at which a new version may stand.
    pub fn lowest_write(&self, table: TableId) -> Timestamp {
        let highest = self.table(table).highest_read.load(Ordering::SeqCst);
        Timestamp::from_raw(highest).next()
    }

    /// The versions of a table, from memory where they are known.
    ///
    /// # Errors
    /// When loading fails.
    pub fn versions<R: Reader>(
        &self,
        table: TableId,
        shard: ShardId,
        snapshot: impl FnOnce() -> R,
    ) -> mvcc::Result<Arc<TableVersions>> {
        let entry = self.table(table);
        let generation = {
            let kept = entry.kept.lock();
            if let Some(versions) = &kept.versions {
                return Ok(versions.clone());
            }
            kept.generation
        };
        let loaded = Arc::new(TableVersions::load(&snapshot(), shard, table)?);
        let mut kept = entry.kept.lock();
        if kept.generation == generation {
            kept.versions = Some(loaded.clone());
        }
        Ok(loaded)
    }

    /// Forgets the versions of a table that was written. Comes before the
    /// latch of the write is released.
    pub fn forget(&self, table: TableId) {
        let entry = self.table(table);
        let mut kept = entry.kept.lock();
        kept.generation += 1;
        kept.versions = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn ts(n: u64) -> Timestamp {
        Timestamp::from_raw(n)
    }

    fn versions() -> TableVersions {
        TableVersions {
            versions: vec![(ts(20), 2), (ts(10), 1)],
            intent: Some(Intent {
                txn: TxnId([1; 16]),
                anchor: Bytes::new(),
                attempt_ts: ts(1),
                timestamp: ts(30),
                replaced: ts(20),
                write: IntentWrite::Put(Bytes::copy_from_slice(&encode(3))),
            }),
        }
    }

    #[test]
    fn the_version_is_the_one_visible_at_the_timestamp() {
        let v = versions();
        assert_eq!(v.check(ts(9), 0, None), Verdict::Same(ts(0)));
        assert_eq!(v.check(ts(19), 1, None), Verdict::Same(ts(10)));
        let changed = Verdict::Changed {
            current: 2,
            since: ts(20),
        };
        assert_eq!(v.check(ts(20), 1, None), changed);
        assert_eq!(v.check(ts(29), 2, None), Verdict::Same(ts(20)));
        assert!(matches!(v.check(ts(30), 2, None), Verdict::Undecided(_)));
    }

    #[test]
    fn the_writer_of_a_version_may_name_both() {
        let v = versions();
        let own = Some(TxnId([1; 16]));
        assert_eq!(v.check(ts(40), 2, own), Verdict::Same(ts(20)));
        assert_eq!(v.check(ts(40), 3, own), Verdict::Same(ts(20)));
        assert!(matches!(v.check(ts(40), 1, own), Verdict::Changed { .. }));
    }

    #[test]
    fn what_was_loaded_before_a_write_is_not_kept_after_it() {
        use crate::mvcc::{Store, memory::MemoryStore};
        let table = SchemaTable::default();
        let store = MemoryStore::default();
        let old = store.snapshot();
        table
            .versions(TableId(7), ShardId(1), || {
                table.forget(TableId(7));
                old
            })
            .unwrap();
        assert!(table.table(TableId(7)).kept.lock().versions.is_none());
        table.record_read(TableId(7), ts(9));
        assert_eq!(table.lowest_write(TableId(7)), ts(10));
    }
}
