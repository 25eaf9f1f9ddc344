//! What the workloads ask of a storage engine, so that each runs on all of them.

use anyhow::Result;
use std::path::Path;

/// An open key-value store. Clones share it.
pub trait Engine: Clone + Send + Sync + Sized {
    /// Its name in the table.
    const NAME: &'static str;
    /// A position among the keys of a snapshot.
    type Cursor<'a>: Cursor
    where
        Self: 'a;

    /// Opens or creates the store of a folder. Memory: 64 MiB of buffered writes,
    /// and a cache of so many bytes.
    ///
    /// # Errors
    /// As the engine; all others too.
    fn open(dir: &Path, cache_bytes: u64) -> Result<Self>;
    /// Writes a pair; with `sync` it is on stable storage afterwards.
    ///
    /// # Errors
    /// As the engine.
    fn put(&self, key: &[u8], value: &[u8], sync: bool) -> Result<()>;
    /// Deletes a key, without a sync.
    ///
    /// # Errors
    /// As the engine.
    fn delete(&self, key: &[u8]) -> Result<()>;
    /// The length of a key's value, which is read.
    ///
    /// # Errors
    /// As the engine.
    fn get(&self, key: &[u8]) -> Result<Option<usize>>;
    /// A cursor over what is there now.
    ///
    /// # Errors
    /// As the engine.
    fn cursor(&self) -> Result<Self::Cursor<'_>>;
    /// Returns when what was written is in tables.
    ///
    /// # Errors
    /// As the engine.
    fn flush(&self) -> Result<()>;
    /// Ends the use of the folder.
    ///
    /// # Errors
    /// As the engine.
    fn close(self) -> Result<()>;
}

/// A position among keys.
pub trait Cursor {
    /// To the first key that is not before `key`; the others as they say.
    ///
    /// # Errors
    /// As the engine.
    fn seek(&mut self, key: &[u8]) -> Result<()>;
    /// To the first key.
    ///
    /// # Errors
    /// As the engine.
    fn first(&mut self) -> Result<()>;
    /// To the last key.
    ///
    /// # Errors
    /// As the engine.
    fn last(&mut self) -> Result<()>;
    /// Forward by one.
    ///
    /// # Errors
    /// As the engine.
    fn next(&mut self) -> Result<()>;
    /// Back by one.
    ///
    /// # Errors
    /// As the engine.
    fn prev(&mut self) -> Result<()>;
    /// The length of the pair under the cursor; `None` beyond the ends.
    fn pair(&self) -> Option<usize>;
}
