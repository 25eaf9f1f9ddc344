//! [`Version`]: which tables make up the database at one moment. Immutable; an edit makes the next one.
//!
//! Per keyspace a [`Tree`] of [`LEVELS`] levels. Invariants, checked by [`Version::apply`] on each edit:
//!
//! - level 0 holds what flushes wrote, newest first; its tables may overlap;
//! - each deeper level is sorted and its tables are disjoint in user keys, so all versions of one key that a level
//!   holds are in one table;
//! - whatever a table of a level says about a key is newer than what any deeper level says.

mod edit;

pub(crate) use edit::VersionEdit;

use crate::error::Result;
use crate::slice::Slice;
use crate::table::blob::{BlobFile, Keep};
use crate::table::{PointRead, Table, TableMeta};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Number of levels.
pub(crate) const LEVELS: usize = 7;

/// The tables of one level.
pub(crate) type Level = Arc<Vec<Arc<Table>>>;

/// The tables of one keyspace.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    pub levels: [Level; LEVELS],
    /// The tables of all levels that have range deletes.
    pub with_ranges: Level,
}

/// The table of a level below level 0 that may say something about a key.
fn table_at<'a>(level: &'a Level, user_key: &[u8]) -> Option<&'a Arc<Table>> {
    let at = level.partition_point(|table| table.meta.is_before(user_key));
    level
        .get(at)
        .filter(|table| table.meta.smallest_key.as_slice() <= user_key)
}

impl Tree {
    /// The newest value of a key that a reader may see.
    pub fn get(&self, mut read: PointRead<'_>) -> Result<Option<Slice>> {
        let user_key = read.user_key;
        let [level0, deeper @ ..] = &self.levels;
        let level0 = level0.iter().filter(|table| table.meta.covers(user_key));
        let deeper = deeper.iter().filter_map(|level| table_at(level, user_key));
        for table in level0.chain(deeper) {
            let hidden = table.ranges.newest(user_key, read.trailer.seqno());
            if let Some((found, value)) = table.get(&mut read)? {
                let visible = !found.is_delete() && found.seqno() > hidden;
                let value = visible.then(|| value.read(user_key, Keep::IfReadTwice));
                return value.transpose();
            }
            if hidden > 0 {
                // Whatever comes from here on is older.
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// What is known about the tables of each level.
    pub fn metas(&self) -> Vec<Vec<&TableMeta>> {
        let levels = self.levels.iter();
        levels
            .map(|level| level.iter().map(|table| &table.meta).collect())
            .collect()
    }

    /// True if any table may say something about the key.
    pub fn covers(&self, user_key: &[u8]) -> bool {
        let mut level0 = self.levels[0].iter();
        level0.any(|table| table.meta.covers(user_key)) || self.is_below(0, user_key)
    }

    /// True if a level deeper than `level` may hold the key.
    pub fn is_below(&self, level: usize, user_key: &[u8]) -> bool {
        let mut deeper = self.levels.iter().skip(level + 1);
        deeper.any(|tables| table_at(tables, user_key).is_some())
    }

    /// True if a level deeper than `level` may hold keys of `start..end`.
    pub fn is_range_below(&self, level: usize, start: &[u8], end: &[u8]) -> bool {
        self.levels.iter().skip(level + 1).any(|tables| {
            let at = tables.partition_point(|table| table.meta.is_before(start));
            tables
                .get(at)
                .is_some_and(|table| table.meta.smallest_key.as_slice() < end)
        })
    }

    /// Estimated bytes of the keys in `start..end`, as compressed levels store them. `memtables`: how many bytes of
    /// keys and values are in no table yet; they are taken to compress as well as all that is in tables, so that the
    /// sizes of two ranges side by side add up.
    pub fn approximate_size(&self, start: &[u8], end: &[u8], memtables: u64) -> u64 {
        let (mut size, mut entries, mut settled) = (0, 0, 0);
        for table in self.levels.iter().flat_map(|level| level.iter()) {
            if table.meta.overlaps(start, end) {
                size += table.approximate_size(start, end);
            }
            entries += table.sizes.entries;
            settled += table.sizes.settled;
        }
        let compressed = match entries {
            0 => memtables,
            _ => (memtables as f64 * (settled as f64 / entries as f64)) as u64,
        };
        size + compressed.min(memtables)
    }
}

/// The tables of all keyspaces.
#[derive(Clone, Default)]
pub(crate) struct Version {
    pub trees: Vec<Tree>,
    /// The blob files that tables point to, by number.
    pub blobs: BTreeMap<u64, BlobShare>,
}

/// A blob file and how much of it tables point to.
#[derive(Clone)]
pub(crate) struct BlobShare {
    pub file: Arc<BlobFile>,
    /// Bytes of its records that an entry of a table points to.
    pub used_bytes: u64,
}

impl Version {
    pub fn new(keyspace_count: usize) -> Self {
        Self {
            trees: (0..keyspace_count).map(|_| Tree::default()).collect(),
            blobs: BTreeMap::new(),
        }
    }

    /// The next version. `tables` holds the added tables by number. An edit that does not fit says why.
    pub fn apply(
        &self,
        edit: &VersionEdit,
        tables: &BTreeMap<u64, Arc<Table>>,
    ) -> Result<Self, String> {
        let mut next = self.clone();
        for (keyspace, level, number) in &edit.removed {
            let level = next.level_mut(*keyspace, *level)?;
            let at = level.iter().position(|table| table.meta.number == *number);
            let at = at.ok_or_else(|| format!("table {number} is dropped but not there"))?;
            let table = level.remove(at);
            next.forget_blobs(&table);
        }
        for (keyspace, level, meta) in &edit.added {
            let table = tables
                .get(&meta.number)
                .ok_or_else(|| format!("table {} is not open", meta.number))?;
            next.level_mut(*keyspace, *level)?.push(Arc::clone(table));
            next.note_blobs(table);
        }
        for (keyspace, level, _) in &edit.added {
            let tables = next.level_mut(*keyspace, *level)?;
            if *level == 0 {
                tables.sort_by_key(|table| std::cmp::Reverse(table.meta.number));
            } else {
                tables.sort_by(|left, right| left.meta.smallest_key.cmp(&right.meta.smallest_key));
                let metas: Vec<&TableMeta> = tables.iter().map(|table| &table.meta).collect();
                check_disjoint(&metas)?;
            }
        }
        for tree in &mut next.trees {
            let tables = tree.levels.iter().flat_map(|level| level.iter());
            let with_ranges = tables.filter(|table| !table.ranges.is_empty());
            tree.with_ranges = Arc::new(with_ranges.cloned().collect());
        }
        // Each record has one entry that points to it.
        let mut shares = next.blobs.values();
        if let Some(share) = shares.find(|it| it.used_bytes > it.file.record_bytes()) {
            return Err(format!(
                "tables point to more of blob file {} than it has",
                share.file.number
            ));
        }
        debug_assert!(next.shares_are_sums());
        Ok(next)
    }

    /// Adds a table's part to the shares of the blob files that it points to.
    fn note_blobs(&mut self, table: &Table) {
        for (blob, file) in table.meta.blobs.iter().zip(&table.blobs) {
            let share = self.blobs.entry(blob.file).or_insert_with(|| BlobShare {
                file: Arc::clone(file),
                used_bytes: 0,
            });
            share.used_bytes = share.used_bytes.saturating_add(blob.bytes);
        }
    }

    /// Takes it away again. A file without a share is nobody's.
    fn forget_blobs(&mut self, table: &Table) {
        for blob in &table.meta.blobs {
            if let Entry::Occupied(mut share) = self.blobs.entry(blob.file) {
                let used = share.get().used_bytes.saturating_sub(blob.bytes);
                share.get_mut().used_bytes = used;
                if used == 0 {
                    share.remove();
                }
            }
        }
    }

    fn shares_are_sums(&self) -> bool {
        let levels = self.trees.iter().flat_map(|tree| &tree.levels);
        let tables = levels.flat_map(|level| level.iter());
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        for blob in tables.flat_map(|table| &table.meta.blobs) {
            *sums.entry(blob.file).or_default() += blob.bytes;
        }
        let shares = self.blobs.iter();
        sums == shares
            .map(|(file, share)| (*file, share.used_bytes))
            .collect()
    }

    fn level_mut(&mut self, keyspace: u32, level: usize) -> Result<&mut Vec<Arc<Table>>, String> {
        let tree = self
            .trees
            .get_mut(keyspace as usize)
            .ok_or_else(|| format!("no keyspace {keyspace}"))?;
        tree.levels
            .get_mut(level)
            .map(Arc::make_mut)
            .ok_or_else(|| format!("no level {level}"))
    }

    /// The largest number of level-0 tables that a tree has.
    pub fn level0_tables_max(&self) -> usize {
        self.trees
            .iter()
            .map(|tree| tree.levels[0].len())
            .max()
            .unwrap_or(0)
    }
}

/// A level below level 0, in order, must not have two tables with a common key.
fn check_disjoint(tables: &[&TableMeta]) -> Result<(), String> {
    for pair in tables.windows(2) {
        if let [left, right] = pair
            && !left.is_before(&right.smallest_key)
        {
            return Err(format!(
                "tables {} and {} of one level overlap",
                left.number, right.number
            ));
        }
    }
    Ok(())
}
