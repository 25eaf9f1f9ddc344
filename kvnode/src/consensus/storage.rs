//! The node's storage engine with its four trees looked up.

use super::bounds::Bounds;
use crate::command::Tree;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::spawn;
use lineradb_lsm::{Db, KeyspaceId, WriteBatch, WriteOptions};
use parking_lot::Mutex;
use std::ops::Bound;
use std::sync::Arc;

/// Keys deleted in one batch when a replica is removed, and their bytes.
const DELETE_KEYS_MAX: usize = 20_000;
const DELETE_BYTES_MAX: usize = 4 << 20;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Storage {
    pub db: Db,
    keyspaces: [KeyspaceId; 4],
    /// Held from the look at who holds which keys to the record of a claim.
    pub room: Arc<Mutex<()>>,
}

impl Storage {
    pub(crate) fn new(db: Db) -> Result<Self> {
        let keyspaces = [
            db.keyspace(Tree::Data.name())?,
            db.keyspace(Tree::Intent.name())?,
            db.keyspace(Tree::Txn.name())?,
            db.keyspace(Tree::Local.name())?,
        ];
        Ok(Storage {
            db,
            keyspaces,
            room: Arc::default(),
        })
    }

    pub(crate) fn keyspace(&self, tree: Tree) -> KeyspaceId {
        self.keyspaces[tree.number() as usize]
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<u64> {
        Ok(self.db.write(batch, WriteOptions::NO_SYNC)?)
    }

    /// Makes everything written so far durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        let db = self.db.clone();
        match spawn::blocking(move || db.flush()).await {
            Ok(flushed) => Ok(flushed.map(|_| ())?),
            Err(error) => Err(Error::Unavailable(format!("flush: {error}"))),
        }
    }

    /// Deletes every key in the ranges that exists now, in batches that `write`
    /// writes.
    pub(crate) fn delete_all(
        &self,
        ranges: &[(Bytes, Bytes)],
        write: impl Fn(WriteBatch) -> Result<u64>,
    ) -> Result<()> {
        let mut batch = WriteBatch::new();
        self.keys(ranges, |tree, key| {
            batch.delete(tree, key);
            if batch.len() >= DELETE_KEYS_MAX || batch.byte_len() >= DELETE_BYTES_MAX {
                write(std::mem::take(&mut batch))?;
            }
            Ok(())
        })?;
        if !batch.is_empty() {
            write(batch)?;
        }
        Ok(())
    }

    fn keys(
        &self,
        ranges: &[(Bytes, Bytes)],
        mut visit: impl FnMut(KeyspaceId, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let snapshot = self.db.snapshot();
        for tree in Tree::REPLICATED {
            for (lower, upper) in ranges {
                let mut iter = snapshot.iter(
                    self.keyspace(tree),
                    Bound::Included(lower),
                    Bound::Excluded(upper),
                );
                iter.seek_to_first()?;
                while iter.valid() {
                    visit(self.keyspace(tree), iter.key())?;
                    iter.next()?;
                }
            }
        }
        Ok(())
    }

    /// About how many bytes the versions of a shard take. Intents and records are not counted: they come and go.
    pub(crate) fn size(&self, bounds: &Bounds) -> u64 {
        let keyspace = self.keyspace(Tree::Data);
        self.db
            .approximate_size(keyspace, &bounds.start, &bounds.end)
    }

    /// Every pair under a prefix of a tree.
    pub(crate) fn pairs(&self, tree: Tree, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>> {
        let upper = super::bounds::prefix_end(prefix);
        let snapshot = self.db.snapshot();
        let mut iter = snapshot.iter(
            self.keyspace(tree),
            Bound::Included(prefix),
            Bound::Excluded(&upper),
        );
        let mut pairs = Vec::new();
        iter.seek_to_first()?;
        while iter.valid() {
            pairs.push((
                Bytes::copy_from_slice(iter.key()),
                Bytes::copy_from_slice(iter.value()),
            ));
            iter.next()?;
        }
        Ok(pairs)
    }
}
