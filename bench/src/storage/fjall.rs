//! fjall, with its own defaults but for the sizes of its memory.

use super::engine::{Cursor, Engine};
use anyhow::Result;
use fjall::{Database, Iter, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use std::path::Path;

/// An open database. `APART`: large values lie in blob files of their own.
#[derive(Clone)]
pub struct Fjall<const APART: bool> {
    db: Database,
    keyspace: Keyspace,
}

impl<const APART: bool> Engine for Fjall<APART> {
    const NAME: &'static str = match APART {
        false => "fjall",
        true => "fjall, blob files",
    };
    type Cursor<'a> = FjallCursor;

    fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let db = Database::builder(dir)
            .cache_size(cache_bytes)
            .worker_threads(2)
            .open()?;
        let options = || {
            let apart = APART.then(KvSeparationOptions::default);
            let options = KeyspaceCreateOptions::default().max_memtable_size(64 << 20);
            options.with_kv_separation(apart)
        };
        Ok(Fjall {
            keyspace: db.keyspace("default", options)?,
            db,
        })
    }

    fn put(&self, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        self.keyspace.insert(key, value)?;
        if sync {
            self.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.keyspace.remove(key)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
    }

    fn cursor(&self) -> Result<FjallCursor> {
        Ok(FjallCursor {
            keyspace: self.keyspace.clone(),
            iter: self.keyspace.iter(),
            pair: None,
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(self.keyspace.rotate_memtable_and_wait()?)
    }

    fn close(self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}

/// Its iterators cannot seek: each seek is a new one.
pub struct FjallCursor {
    keyspace: Keyspace,
    iter: Iter,
    pair: Option<usize>,
}

impl FjallCursor {
    fn take(&mut self, guard: Option<fjall::Guard>) -> Result<()> {
        self.pair = match guard {
            Some(guard) => {
                let (key, value) = guard.into_inner()?;
                Some(key.len() + value.len())
            }
            None => None,
        };
        Ok(())
    }
}

impl Cursor for FjallCursor {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.iter = self.keyspace.range(key..);
        Cursor::next(self)
    }
    fn first(&mut self) -> Result<()> {
        self.iter = self.keyspace.iter();
        Cursor::next(self)
    }
    fn last(&mut self) -> Result<()> {
        self.iter = self.keyspace.iter();
        self.prev()
    }
    fn next(&mut self) -> Result<()> {
        let guard = self.iter.next();
        self.take(guard)
    }
    fn prev(&mut self) -> Result<()> {
        let guard = self.iter.next_back();
        self.take(guard)
    }
    fn pair(&self) -> Option<usize> {
        self.pair
    }
}
