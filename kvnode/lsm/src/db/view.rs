//! [`View`]: the memtables and tables that readers use at one moment. Immutable, replaced as a whole.
//!
//! Two things change the view, and both go through [`Inner::publish_view`], the only function that stores one: a
//! full memtable makes way for an empty one, and an edit of the manifest replaces the set of tables. A reader loads
//! the view without a lock and keeps what it needs alive by reference counts (RocksDB's "super version").

use super::Inner;
use crate::error::{Error, Result};
use crate::iter::{MergeIter, Source};
use crate::memtable::{MemtableIter, MemtableSet};
use crate::slice::Slice;
use crate::table::RunIter;
use crate::types::{KeyspaceId, Trailer};
use crate::version::Version;
use std::ops::Bound;
use std::sync::Arc;

/// What readers see.
#[derive(Clone)]
pub(super) struct View {
    /// Being written.
    pub active: Arc<MemtableSet>,
    /// Full, waiting for the flush; newest first.
    pub immutable: Vec<Arc<MemtableSet>>,
    pub version: Arc<Version>,
    /// The largest number of level-0 tables that a tree has: looked at by every write.
    pub level0_tables_max: usize,
}

impl Inner {
    /// Replaces the view by what `change` makes of the present one.
    pub(super) fn publish_view(&self, change: impl FnOnce(&View) -> View) {
        let guard = self.publish.lock();
        let next = change(&self.view.load());
        self.view.store(Arc::new(next));
        drop(guard);
        self.signal.notify();
    }
}

fn unknown(keyspace: KeyspaceId) -> Error {
    Error::UnknownKeyspace {
        name: format!("#{}", keyspace.index()),
    }
}

impl View {
    pub fn new(
        active: Arc<MemtableSet>,
        immutable: Vec<Arc<MemtableSet>>,
        version: Arc<Version>,
    ) -> Self {
        let level0_tables_max = version.level0_tables_max();
        Self {
            active,
            immutable,
            version,
            level0_tables_max,
        }
    }

    /// All memtables, newest first.
    fn memtables(&self) -> impl Iterator<Item = &Arc<MemtableSet>> {
        std::iter::once(&self.active).chain(&self.immutable)
    }

    pub fn memtable_bytes(&self) -> u64 {
        self.memtables().map(|set| set.bytes() as u64).sum()
    }

    /// The value of a key that a reader starting at `trailer` sees.
    pub fn get(&self, keyspace: KeyspaceId, key: &[u8], trailer: Trailer) -> Result<Option<Slice>> {
        let tree = self
            .version
            .trees
            .get(keyspace.index())
            .ok_or_else(|| unknown(keyspace))?;
        let mut memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        let found = match memtables.find_map(|memtable| memtable.get(key, trailer)) {
            Some(found) => Some(found),
            None => tree.get(key, trailer)?,
        };
        Ok(found
            .filter(|(trailer, _)| !trailer.is_delete())
            .map(|(_, value)| value))
    }

    /// Merges all sources of a keyspace that may hold keys within the bounds; none if there is no such keyspace.
    pub fn merge(
        &self,
        keyspace: KeyspaceId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> MergeIter {
        let Some(tree) = self.version.trees.get(keyspace.index()) else {
            return MergeIter::new(Vec::new());
        };
        let memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        let mut sources: Vec<Source> = memtables
            .filter(|memtable| !memtable.is_empty())
            .map(|memtable| Source::Memtable(MemtableIter::new(Arc::clone(memtable))))
            .collect();
        let [level0, deeper @ ..] = &tree.levels;
        for table in level0.iter() {
            let meta = &table.meta;
            let above = match lower {
                Bound::Included(key) | Bound::Excluded(key) => meta.largest_key.as_slice() < key,
                Bound::Unbounded => false,
            };
            let below = match upper {
                Bound::Included(key) | Bound::Excluded(key) => meta.smallest_key.as_slice() > key,
                Bound::Unbounded => false,
            };
            if !above && !below {
                sources.push(Source::Run(RunIter::new(Arc::new(vec![Arc::clone(table)]))));
            }
        }
        let levels = deeper.iter().filter(|level| !level.is_empty());
        sources.extend(levels.map(|level| Source::Run(RunIter::new(Arc::clone(level)))));
        MergeIter::new(sources)
    }

    pub fn approximate_size(&self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> u64 {
        let memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        let in_memory: u64 = memtables
            .map(|memtable| memtable.approximate_size(start, end))
            .sum();
        let tree = self.version.trees.get(keyspace.index());
        in_memory + tree.map_or(0, |tree| tree.approximate_size(start, end))
    }
}
