//! [`Reader`] over a snapshot of the storage engine.

use super::{Cursor, Reader, Result, Store, keys};
use crate::command::Tree;
use bytes::Bytes;
use lineradb_common::Timestamp;
use lineradb_lsm::{Db, Iter, KeyspaceId, Snapshot};
use std::ops::Bound;

/// Deleted keys that a patient cursor passes by in one move.
const DELETED_KEYS_AT_ONCE: usize = 32;

/// The node's storage engine with the keyspaces of all trees.
#[derive(Clone)]
pub struct LsmStore {
    db: Db,
    keyspaces: [KeyspaceId; 4],
}

impl LsmStore {
    /// Finds the trees in an open engine.
    ///
    /// # Errors
    /// When a keyspace is missing.
    pub fn new(db: Db) -> crate::Result<Self> {
        let [a, b, c, d] = Tree::ALL.map(|tree| db.keyspace(tree.name()));
        Ok(LsmStore {
            keyspaces: [a?, b?, c?, d?],
            db,
        })
    }
}

impl Store for LsmStore {
    type Snapshot = LsmReader;

    fn snapshot(&self) -> LsmReader {
        LsmReader {
            snapshot: self.db.snapshot(),
            keyspaces: self.keyspaces,
        }
    }

    fn approximate_size(&self, tree: Tree, start: &[u8], end: &[u8]) -> u64 {
        let keyspace = self.keyspaces[usize::from(tree.number())];
        self.db.approximate_size(keyspace, start, end)
    }
}

/// One snapshot of the engine.
#[derive(Clone)]
pub struct LsmReader {
    snapshot: Snapshot,
    keyspaces: [KeyspaceId; 4],
}

impl LsmReader {
    fn keyspace(&self, tree: Tree) -> KeyspaceId {
        self.keyspaces[usize::from(tree.number())]
    }
}

impl Reader for LsmReader {
    type Cursor = LsmCursor;

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.snapshot.get(self.keyspace(tree), key)?;
        Ok(value.map(Bytes::from))
    }

    fn cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> LsmCursor {
        LsmCursor(self.snapshot.iter(
            self.keyspace(tree),
            Bound::Included(lower),
            Bound::Excluded(upper),
        ))
    }

    fn patient_cursor(&self, tree: Tree, lower: &[u8], upper: &[u8]) -> LsmCursor {
        let mut cursor = self.cursor(tree, lower, upper);
        cursor.0.set_patience(DELETED_KEYS_AT_ONCE);
        cursor
    }

    fn versions(&self, addressable: &[u8], at: Timestamp) -> LsmCursor {
        let keyspace = self.keyspace(Tree::Data);
        let first = keys::version_key(addressable, at);
        let versions = self
            .snapshot
            .iter_versions(keyspace, &first, keys::TIMESTAMP_BYTES);
        LsmCursor(versions)
    }

    fn written_between(
        &self,
        lower: &[u8],
        upper: &[u8],
        after: Timestamp,
        to: Timestamp,
    ) -> LsmCursor {
        let bounds = (Bound::Included(lower), Bound::Excluded(upper));
        let (first, last) = (keys::version(to), keys::version(after));
        let keyspace = self.keyspace(Tree::Data);
        LsmCursor(
            self.snapshot
                .iter_between_versions(keyspace, bounds, &first, &last),
        )
    }
}

/// An iterator of the engine.
pub struct LsmCursor(Iter);

impl Cursor for LsmCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        Ok(self.0.seek_to_first()?)
    }
    fn seek_to_last(&mut self) -> Result<()> {
        Ok(self.0.seek_to_last()?)
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        Ok(self.0.seek(key)?)
    }
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        Ok(self.0.seek_for_prev(key)?)
    }
    fn next(&mut self) -> Result<()> {
        Ok(self.0.next()?)
    }
    fn prev(&mut self) -> Result<()> {
        Ok(self.0.prev()?)
    }
    fn valid(&self) -> bool {
        self.0.valid()
    }
    fn paused_at(&self) -> Option<&[u8]> {
        self.0.paused_at()
    }
    fn resume(&mut self) -> Result<()> {
        Ok(self.0.resume()?)
    }
    fn key(&self) -> &[u8] {
        self.0.key()
    }
    fn value(&self) -> Bytes {
        self.0.value_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::{Wanted, walk};
    use super::super::memory::MemoryStore;
    use super::super::{ScanOptions, Version, VersionScan};
    use super::*;
    use crate::command::Op;
    use crate::consensus::storage_options;
    use lineradb_common::Position;
    use lineradb_lsm::{Background, Options, SimVfs, WriteBatch, WriteOptions};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::Arc;

    fn engine() -> (Db, LsmStore) {
        let options = Options {
            background: Background::Inline,
            memtable_bytes: 1 << 20,
            table_bytes: 512,
            block_bytes: 64,
            level0_compaction_tables: 3,
            level_base_bytes: 1 << 10,
            ..storage_options()
        };
        let db = Db::open(Arc::new(SimVfs::new()), Path::new("/db"), options).unwrap();
        (db.clone(), LsmStore::new(db).unwrap())
    }

    /// The rows that were written after `since`, and the newest time seen that is not before it: what a refresh goes by.
    fn changes<R: Reader>(
        mut scan: VersionScan<R>,
        since: Timestamp,
    ) -> (Vec<(Bytes, Bytes, Timestamp)>, Timestamp) {
        let mut rows = Vec::new();
        while let Some(row) = scan.next_row().unwrap() {
            rows.push((row.key, row.value, row.version_ts));
        }
        rows.retain(|(.., timestamp)| *timestamp > since);
        (rows, scan.observed().max(since))
    }

    /// What became of a version after it was written.
    #[derive(Clone, Copy, Debug)]
    enum Then {
        Stays,
        IsFlushed,
        IsCollected,
    }

    proptest! {
        #[test]
        fn a_walk_of_what_was_written_since_leaves_nothing_of_it_out(
            writes in vec(
                (
                    0u8..12,
                    1u64..40,
                    any::<bool>(),
                    prop_oneof![3 => Just(Then::Stays), 2 => Just(Then::IsFlushed), 1 => Just(Then::IsCollected)],
                ),
                1..60,
            ),
            (since, at) in (0u64..45, 0u64..45),
            (start, end) in (0u8..8, 4u8..14),
            reverse: bool,
        ) {
            let (memory, (db, store)) = (MemoryStore::default(), engine());
            let data = store.keyspaces[usize::from(Tree::Data.number())];
            let apply = |op: Op| {
                let mut batch = WriteBatch::new();
                match &op.value {
                    Some(value) => batch.put(data, &op.key, value),
                    None => batch.delete(data, &op.key),
                }
                db.write(batch, WriteOptions::NO_SYNC).unwrap();
                memory.apply(&[op]);
            };
            for (key, timestamp, is_value, then) in writes {
                let value = is_value.then(|| Bytes::from(vec![key, timestamp as u8]));
                let written = Op {
                    tree: Tree::Data,
                    key: keys::version_key(&keys::addressable(&[key]), Timestamp::from_raw(timestamp)),
                    value: Some(Version { value, txn: None }.encode()),
                };
                apply(written.clone());
                match then {
                    Then::Stays => {}
                    Then::IsFlushed => drop(db.flush().unwrap()),
                    Then::IsCollected => apply(Op { value: None, ..written }),
                }
            }
            let options = ScanOptions {
                start: Bytes::from(vec![start]),
                end: Bytes::from(vec![end]),
                reverse,
                at: Timestamp::from_raw(at),
                own: None,
            };
            let since = Timestamp::from_raw(since);
            let wanted = Wanted {
                start: options.start.clone(),
                end: options.end.clone(),
                after: Position::whole(since),
                to: options.at,
                bytes_max: 1 << 20,
                previous: true,
            };
            // What stands above `at` is named, too.
            prop_assert_eq!(
                walk(&store.snapshot(), &wanted).unwrap(),
                walk(&memory.snapshot(), &wanted).unwrap()
            );
            let found = VersionScan::since(store.snapshot(), options.clone(), since);
            let expected = VersionScan::new(memory.snapshot(), options);
            prop_assert_eq!(changes(found, since), changes(expected, since));
        }
    }
}
