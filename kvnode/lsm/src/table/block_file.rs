//! [`BlockFile`]: a mapped file of numbered blocks, table or blob file, and the way to each of them.
//!
//! A block stored as it is gets its checksum verified at its first use and is then read in place. A compressed block
//! is verified and decompressed into the block cache.
//!
//! A file that the manifest has dropped is removed when the last reader lets go of it.

use super::block::{Block, Malformed};
use super::compression::decompress;
use super::format::{Handle, PartKind, part_range, verify_part};
use super::marks::Marks;
use crate::cache::{BlockCache, CachedBlock, Slots};
use crate::error::{Error, Result};
use crate::statistics::Counters;
use crate::vfs::Vfs;
use arc_swap::Guard;
use bytes::Bytes;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What all files of a database share.
pub(crate) struct TableContext {
    pub vfs: Arc<dyn Vfs>,
    pub cache: BlockCache,
    pub counters: Arc<Counters>,
    /// False once the database is closed: another process may own the folder by then.
    pub removals_allowed: AtomicBool,
}

/// An open file.
pub(super) struct BlockFile {
    pub path: PathBuf,
    pub map: Bytes,
    pub context: Arc<TableContext>,
    /// What errors call a block.
    part: &'static str,
    block_count: usize,
    /// Blocks stored as they are.
    verified: Marks,
    /// Where the block cache keeps the blocks of this file; made with the first that goes there.
    slots: OnceLock<Arc<Slots>>,
    obsolete: AtomicBool,
}

impl BlockFile {
    /// Maps a file.
    pub fn map(vfs: &dyn Vfs, path: &Path) -> Result<Bytes> {
        vfs.map(path).map_err(|error| Error::io("map", path, error))
    }

    pub fn new(
        context: &Arc<TableContext>,
        path: &Path,
        map: Bytes,
        part: &'static str,
        block_count: usize,
    ) -> Self {
        Self {
            path: path.to_owned(),
            map,
            context: Arc::clone(context),
            part,
            block_count,
            verified: Marks::new(block_count),
            slots: OnceLock::new(),
            obsolete: AtomicBool::new(false),
        }
    }

    /// The file may go when the last reader has gone. To be called after the edit that drops it is durable.
    pub fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    pub fn block_count(&self) -> usize {
        self.block_count
    }

    fn slots(&self) -> &Arc<Slots> {
        let make = || Arc::new(Slots::new(self.block_count));
        self.slots.get_or_init(make)
    }

    /// Where a block lies in the map, if it is stored as it is; `None` if it is compressed.
    pub fn raw(&self, ordinal: usize, handle: Handle) -> Result<Option<Range<usize>>> {
        let range = part_range(&self.map, handle).ok_or_else(|| {
            self.error(handle, Malformed("block handle points outside of the file"))
        })?;
        if self.map[range.end] != PartKind::Raw as u8 {
            return Ok(None);
        }
        self.verified.once(ordinal, || {
            let verified = verify_part(&self.map, handle).map(drop);
            verified.map_err(|what| self.error(handle, Malformed(what)))
        })?;
        self.context.counters.reads.mine().blocks_mapped.add(1);
        Ok(Some(range))
    }

    /// A compressed block, if it is in the cache. To be asked first: what is here needs no look at the file, whose
    /// compressed page may have left memory.
    pub fn cached(&self, ordinal: usize) -> Option<Guard<Option<Arc<CachedBlock>>>> {
        let cached = self.slots.get()?.get(ordinal)?;
        self.context.counters.reads.mine().cache_hits.add(1);
        Some(cached)
    }

    /// Decompresses a block that is not in the cache. With `keep` it goes there.
    pub fn fetch(&self, ordinal: usize, handle: Handle, keep: bool) -> Result<Block> {
        self.context.counters.cache_misses.add(1);
        let block = { verify_part(&self.map, handle) }
            .and_then(|(range, kind)| decompress(&self.map[range], kind))
            .map_err(|what| self.error(handle, Malformed(what)))?;
        // With an owner, so that taking a slice never allocates.
        let block = Block::new(Bytes::from_owner(block));
        let block = block.map_err(|error| self.error(handle, error))?;
        if keep {
            self.context.cache.insert(self.slots(), ordinal, &block);
        }
        Ok(block)
    }

    /// A block, verified, decompressed and ready for use. With `keep` it goes into the cache.
    pub fn block(&self, ordinal: usize, handle: Handle, keep: bool) -> Result<Block> {
        if let Some(Some(cached)) = self.cached(ordinal).as_deref() {
            return Ok(cached.block.clone());
        }
        if let Some(range) = self.raw(ordinal, handle)? {
            let block = Block::new(self.map.slice(range));
            return block.map_err(|error| self.error(handle, error));
        }
        self.fetch(ordinal, handle, keep)
    }

    /// Asks for bytes of the file that will be read soon.
    pub fn will_need(&self, range: Range<u64>) {
        let end = range.end.min(self.map.len() as u64) as usize;
        if let Some(part) = self.map.get(range.start as usize..end) {
            self.context.vfs.will_need(part);
        }
    }

    /// An error that names file, part and place.
    pub fn error(&self, handle: Handle, Malformed(what): Malformed) -> Error {
        Error::corruption(&self.path, self.part, handle.offset, what)
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        let context = &self.context;
        if self.obsolete.load(Ordering::Acquire) && context.removals_allowed.load(Ordering::Acquire)
        {
            // What cannot be removed now is an orphan that the next open removes.
            if let Err(error) = context.vfs.remove(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove an obsolete file");
            }
        }
    }
}
