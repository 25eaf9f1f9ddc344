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
