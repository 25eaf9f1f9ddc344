//! RocksDB, set up as our engine is: 64 MiB write buffers, two threads that
//! compact, bloom filters of 10 bits, LZ4 from level 2 on, dynamic levels.

use super::engine::{Cursor, Engine};
use anyhow::Result;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, Options, WriteOptions,
};
use std::path::Path;
use std::sync::Arc;

/// An open database. `APART`: values of 32 KiB and more lie in blob files of their own.
#[derive(Clone)]
pub struct Rocks<const APART: bool>(Arc<DB>);

impl<const APART: bool> Engine for Rocks<APART> {
    const NAME: &'static str = match APART {
        false => "RocksDB",
        true => "RocksDB, blob files",
    };
    type Cursor<'a> = DBRawIterator<'a>;

    fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(usize::try_from(cache_bytes)?));
        blocks.set_bloom_filter(10.0, false);
        blocks.set_block_size(4 << 10);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(64 << 20);
        options.set_max_write_buffer_number(3);
        options.set_max_background_jobs(3);
        options.set_level_compaction_dynamic_level_bytes(true);
        if APART {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(32 << 10);
            options.set_blob_compression_type(DBCompressionType::Lz4);
            options.set_enable_blob_gc(true);
        }
        let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
        options.set_compression_per_level(&[none, none, lz4, lz4, lz4, lz4, lz4]);
        Ok(Rocks(Arc::new(DB::open(&options, dir)?)))
    }

    fn put(&self, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.0.put_opt(key, value, &options)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.0.delete(key)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.0.get_pinned(key)?.map(|value| value.len()))
    }

    fn cursor(&self) -> Result<DBRawIterator<'_>> {
        Ok(self.0.raw_iterator())
    }

    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }

    fn close(self) -> Result<()> {
        self.0.cancel_all_background_work(true);
        Ok(())
    }
}

impl Cursor for DBRawIterator<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        DBRawIterator::seek(self, key);
        Ok(self.status()?)
    }
    fn first(&mut self) -> Result<()> {
        self.seek_to_first();
        Ok(self.status()?)
    }
    fn last(&mut self) -> Result<()> {
        self.seek_to_last();
        Ok(self.status()?)
    }
    fn next(&mut self) -> Result<()> {
        if self.valid() {
            DBRawIterator::next(self);
        }
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        if self.valid() {
            DBRawIterator::prev(self);
        }
        Ok(())
    }
    fn pair(&self) -> Option<usize> {
        Some(self.key()?.len() + self.value()?.len())
    }
}
