//! [`View`]: the memtables and tables that readers use at one moment. Immutable, replaced as a whole.
//!
//! Two things change the view, and both go through [`Inner::publish_view`], the only function that stores one: a
//! full memtable makes way for an empty one, and an edit of the manifest replaces the set of tables. A reader loads
//! the view without a lock and keeps what it needs alive by reference counts (RocksDB's "super version").

use super::Inner;
use crate::error::{Error, Result};
use crate::iter::{MergeIter, Source};
use crate::memtable::{MemtableIter, MemtableSet};
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::statistics::ReadCounters;
use crate::table::{PointRead, RunIter, Table};
use crate::types::{KeyspaceId, SeqNo, Trailer};
use crate::version::Version;
use std::cell::RefCell;
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

/// What a walk wants of the keys within its bounds; tables that have none of it are passed by.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    All,
    /// The versions of one key: what follows it are `bytes` bytes, in every key within the bounds.
    VersionsOf {
        key: &'a [u8],
        bytes: usize,
    },
    /// Keys whose version, which is as long as these two, lies between them.
    Between {
        first: &'a [u8],
        last: &'a [u8],
    },
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
    pub fn get(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        trailer: Trailer,
        counters: &ReadCounters,
    ) -> Result<Option<Slice>> {
        let counters = counters.mine();
        counters.gets.add(1);
        let tree = self
            .version
            .trees
            .get(keyspace.index())
            .ok_or_else(|| unknown(keyspace))?;
        let memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        for memtable in memtables {
            let hidden = memtable.newest_range_delete(key, trailer.seqno());
            if let Some((found, value)) = memtable.get(key, trailer) {
                let visible = !found.is_delete() && found.seqno() > hidden;
                return Ok(visible.then_some(value));
            }
            if hidden > 0 {
                // Whatever comes from here on is older.
                return Ok(None);
            }
        }
        tree.get(PointRead::new(key, trailer, counters))
    }

    /// The values of keys, each as [`Self::get`] gives it.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: KeyspaceId,
        keys: impl IntoIterator<Item = K>,
        trailer: Trailer,
        counters: &ReadCounters,
    ) -> Result<Vec<Option<Slice>>> {
        let keys = keys.into_iter();
        keys.map(|key| self.get(keyspace, key.as_ref(), trailer, counters))
            .collect()
    }

    /// Merges all sources of a keyspace that may hold keys within the bounds, and gives the range deletes that hide
    /// some of them; nothing if there is no such keyspace.
    pub fn merge(
        &self,
        keyspace: KeyspaceId,
        seqno: SeqNo,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
        wanted: Wanted<'_>,
        counters: &ReadCounters,
    ) -> (MergeIter, Vec<Arc<RangeSet>>) {
        let Some(tree) = self.version.trees.get(keyspace.index()) else {
            return (MergeIter::new(Vec::new()), Vec::new());
        };
        let is_inside = |table: &&Arc<Table>| {
            let meta = &table.meta;
            let above = match lower {
                Bound::Included(key) | Bound::Excluded(key) => meta.is_before(key),
                Bound::Unbounded => false,
            };
            let below = match upper {
                Bound::Included(key) | Bound::Excluded(key) => meta.smallest_key.as_slice() > key,
                Bound::Unbounded => false,
            };
            !above && !below
        };
        let sought = match wanted {
            Wanted::VersionsOf { key, .. } => key,
            Wanted::All | Wanted::Between { .. } => b"",
        };
        let read = RefCell::new(PointRead::new(sought, Trailer::NEWEST, counters.mine()));
        let may_hold = |table: &&Arc<Table>| match wanted {
            Wanted::All => true,
            Wanted::VersionsOf { bytes, .. } => {
                table.may_hold_versions(&mut read.borrow_mut(), bytes)
            }
            Wanted::Between { first, last } => table.may_hold_between(first, last),
        };
        let memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        let memtables: Vec<_> = memtables.filter(|memtable| !memtable.is_empty()).collect();
        let in_memory = memtables.iter().filter_map(|memtable| memtable.ranges());
        let in_tables = tree.with_ranges.iter().filter(is_inside);
        let in_tables = in_tables.map(|table| Arc::clone(&table.ranges));
        let ranges: Vec<Arc<RangeSet>> = in_memory.chain(in_tables).collect();
        let is_hidden = |table: &Arc<Table>| {
            let (smallest, largest) = (&table.meta.smallest_key, &table.meta.largest_key);
            ranges
                .iter()
                .any(|set| set.newest_over(smallest, largest, seqno) > table.meta.largest_seqno)
        };
        let mut sources: Vec<Source> = memtables
            .into_iter()
            .map(|memtable| Source::Memtable(MemtableIter::new(Arc::clone(memtable))))
            .collect();
        let [level0, deeper @ ..] = &tree.levels;
        let level0 = level0.iter().filter(is_inside).filter(may_hold);
        for table in level0.filter(|table| !is_hidden(table)) {
            sources.push(Source::Run(RunIter::new(Arc::new(vec![Arc::clone(table)]))));
        }
        for level in deeper.iter().filter(|level| !level.is_empty()) {
            let first = match lower {
                Bound::Included(key) | Bound::Excluded(key) => {
                    level.partition_point(|table| table.meta.is_before(key))
                }
                Bound::Unbounded => 0,
            };
            let inside = level[first..].iter().take_while(is_inside);
            // Of one key's versions few tables of a level can have any: none of them, or the level as it is.
            if matches!(wanted, Wanted::VersionsOf { .. })
                && !inside.clone().any(|table| may_hold(&table))
            {
                continue;
            }
            let whole = ranges.is_empty() && !matches!(wanted, Wanted::Between { .. });
            let level = match whole {
                true => Arc::clone(level),
                false => {
                    let inside = inside.filter(|table| !is_hidden(table));
                    Arc::new(inside.filter(may_hold).cloned().collect())
                }
            };
            sources.push(Source::Run(RunIter::new(level)));
        }
        (MergeIter::new(sources), ranges)
    }

    pub fn approximate_size(&self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> u64 {
        let memtables = self
            .memtables()
            .filter_map(|set| set.keyspace(keyspace.index()));
        let in_memory = memtables
            .map(|memtable| memtable.approximate_size(start, end))
            .sum();
        let tree = self.version.trees.get(keyspace.index());
        tree.map_or(0, |tree| tree.approximate_size(start, end, in_memory))
    }
}
