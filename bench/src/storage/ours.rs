//! LineraDB's engine.

use super::engine::{Cursor, Engine};
use anyhow::Result;
use lineradb_lsm::{Db, Iter, KeyspaceId, Options, RealVfs, WriteBatch, WriteOptions};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// An open database.
#[derive(Clone)]
pub struct Ours {
    db: Db,
    keyspace: KeyspaceId,
}

impl Engine for Ours {
    const NAME: &'static str = "lineradb-lsm";
    type Cursor<'a> = Iter;

    fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let options = Options {
            keyspaces: vec!["default".into()],
            wal: true,
            block_cache_bytes: cache_bytes,
            ..Options::default()
        };
        let db = Db::open(Arc::new(RealVfs), dir, options)?;
        Ok(Ours {
            keyspace: db.keyspace("default")?,
            db,
        })
    }

    fn put(&self, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.put(self.keyspace, key, value);
        self.db.write(batch, WriteOptions { sync })?;
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.delete(self.keyspace, key);
        self.db.write(batch, WriteOptions::NO_SYNC)?;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.db.get(self.keyspace, key)?.map(|value| value.len()))
    }

    fn cursor(&self) -> Result<Iter> {
        let snapshot = self.db.snapshot();
        Ok(snapshot.iter(self.keyspace, Bound::Unbounded, Bound::Unbounded))
    }

    fn flush(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    fn close(self) -> Result<()> {
        self.db.close()?;
        Ok(())
    }
}

impl Cursor for Iter {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        Ok(Iter::seek(self, key)?)
    }
    fn first(&mut self) -> Result<()> {
        Ok(self.seek_to_first()?)
    }
    fn last(&mut self) -> Result<()> {
        Ok(self.seek_to_last()?)
    }
    fn next(&mut self) -> Result<()> {
        Ok(Iter::next(self)?)
    }
    fn prev(&mut self) -> Result<()> {
        Ok(Iter::prev(self)?)
    }
    fn pair(&self) -> Option<usize> {
        self.valid().then(|| self.key().len() + self.value().len())
    }
}
