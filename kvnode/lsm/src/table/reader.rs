//! An open table: memory map, index, filter, and the way to a block.
//!
//! A block stored as it is gets its checksum verified at its first use (a bit per block remembers) and is then
//! read in place. A compressed block is verified and decompressed into the block cache.
//!
//! The file of a table that the manifest has dropped is removed when the last reader lets go of the [`Table`].

use super::block::{Block, BlockView, Malformed};
use super::format::{
    FORMAT_PLAIN, FORMAT_RANGES, Footer, HEADER_BYTES, HEADER_MAGIC, Handle, PART_TRAILER_BYTES,
    PartKind, footer_bytes, part_crc,
};
use super::{TableMeta, bloom, properties, without_version};
use crate::cache::{BlockCache, Slots};
use crate::coding::u32_at;
use crate::error::{Error, Result};
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::statistics::Counters;
use crate::types::Trailer;
use crate::vfs::Vfs;
use bytes::Bytes;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Largest block a table may claim to decompress to: a key, a value and the rest of a block, with room.
const BLOCK_BYTES_MAX: usize = 256 << 20;

/// What all tables of a database share.
pub(crate) struct TableContext {
    pub vfs: Arc<dyn Vfs>,
    pub cache: BlockCache,
    pub counters: Arc<Counters>,
    /// False once the database is closed: another process may own the folder by then.
    pub removals_allowed: AtomicBool,
}

/// An open table file.
pub(crate) struct Table {
    pub meta: TableMeta,
    path: PathBuf,
    map: Bytes,
    index: Block,
    index_offset: u64,
    /// Range deletes.
    pub ranges: Arc<RangeSet>,
    filter: Range<usize>,
    /// Bytes at the end of each key that the filter leaves out.
    version_bytes: usize,
    /// One bit per data block: its checksum was found right.
    verified: Vec<AtomicU64>,
    /// Where the block cache keeps the blocks of this table; made with the first compressed one.
    slots: OnceLock<Arc<Slots>>,
    context: Arc<TableContext>,
    obsolete: AtomicBool,
}

impl Table {
    /// Maps the file and verifies everything but the data blocks.
    pub fn open(context: &Arc<TableContext>, path: &Path, meta: TableMeta) -> Result<Self> {
        let map = context
            .vfs
            .map(path)
            .map_err(|error| Error::io("map", path, error))?;
        if map.len() as u64 != meta.bytes {
            let what = format!(
                "the file has {} bytes, the manifest says {}",
                map.len(),
                meta.bytes
            );
            return Err(Error::corruption(path, "file", 0, what));
        }
        let Parts {
            footer,
            filter,
            properties,
            ranges,
        } = Parts::verify(&map, path)?;
        let Some((_, version_bytes)) = properties::decode(&map[properties]) else {
            let offset = footer.properties.offset;
            return Err(Error::corruption(path, "properties", offset, "malformed"));
        };
        if ranges.count() != meta.range_deletes {
            let offset = footer.ranges.unwrap_or_default().offset;
            let what = "not as many as the manifest says";
            return Err(Error::corruption(path, "range deletes", offset, what));
        }
        let offset = footer.index.offset;
        let corrupt = |what: &str| Error::corruption(path, "index block", offset, what);
        let index = part_range(&map, footer.index).unwrap_or_default();
        let index = Block::new(map.slice(index)).map_err(|Malformed(what)| corrupt(what))?;
        if index.view().restart_count != footer.block_count as usize {
            return Err(corrupt("wrong number of entries"));
        }
        let verified = (0..footer.block_count.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        let (context, obsolete) = (Arc::clone(context), AtomicBool::new(false));
        Ok(Self {
            meta,
            path: path.to_owned(),
            map,
            index,
            index_offset: footer.index.offset,
            ranges: Arc::new(ranges),
            filter,
            version_bytes,
            verified,
            slots: OnceLock::new(),
            context,
            obsolete,
        })
    }

    /// The file may go when the last reader has gone. To be called after the edit that drops it is durable.
    pub fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// False only if no key is there that is `versionless` and so many bytes after it.
    pub fn may_hold_versions(&self, versionless: &[u8], version_bytes: usize) -> bool {
        self.version_bytes != version_bytes || self.passes_filter(versionless)
    }

    fn passes_filter(&self, versionless: &[u8]) -> bool {
        if self.filter.is_empty() {
            return true;
        }
        let filter = &self.map[self.filter.clone()];
        let passes = bloom::may_contain(filter, bloom::hash(versionless));
        let counters = &self.context.counters;
        match passes {
            true => counters.bloom_passed.add(1),
            false => counters.bloom_useful.add(1),
        }
        passes
    }

    /// The newest entry of a key that a reader starting at `trailer` sees.
    pub fn get(&self, user_key: &[u8], trailer: Trailer) -> Result<Option<(Trailer, Slice)>> {
        let counters = &self.context.counters;
        if !self.passes_filter(without_version(user_key, self.version_bytes)) {
            return Ok(None);
        }
        let index = self.index.view();
        let trailer = self.meta.to_file(trailer);
        let ordinal = index
            .lower_bound_restart(user_key, trailer)
            .map_err(|error| self.index_error(error))?;
        if ordinal == index.restart_count {
            return Ok(None);
        }
        let handle = self.handle(ordinal)?;
        if let Some(range) = self.raw_block(ordinal, handle)? {
            let block = BlockView::new(&self.map[range.clone()]);
            let found = block.and_then(|block| block.find(user_key, trailer));
            let found = found.map_err(|error| self.block_error(handle, error))?;
            return Ok(found.map(|entry| {
                let value = range.start + entry.value.start..range.start + entry.value.end;
                (
                    self.meta.to_tree(entry.trailer),
                    self.map.slice(value).into(),
                )
            }));
        }
        let find = |block: &Block| {
            let found = block.view().find(user_key, trailer);
            let found = found.map_err(|error| self.block_error(handle, error))?;
            let to_tree = |trailer| self.meta.to_tree(trailer);
            Ok(found.map(|entry| (to_tree(entry.trailer), block.slice(entry.value).into())))
        };
        if let Some(cached) = self.slots().get(ordinal)
            && let Some(cached) = cached.as_ref()
        {
            counters.cache_hits.add(1);
            return find(&cached.block);
        }
        find(&self.fetch(ordinal, handle, true)?)
    }

    fn slots(&self) -> &Arc<Slots> {
        let make = || Arc::new(Slots::new(self.index.view().restart_count));
        self.slots.get_or_init(make)
    }

    pub(super) fn index(&self) -> &Block {
        &self.index
    }

    /// Handle of a data block, from the index.
    pub(super) fn handle(&self, ordinal: usize) -> Result<Handle> {
        let index = self.index.view();
        let (_, entry) = index
            .restart_entry(ordinal)
            .map_err(|error| self.index_error(error))?;
        Handle::decode(&index.bytes[entry.value])
            .ok_or_else(|| self.index_error(Malformed("entry is not a block handle")))
    }

    /// A data block, verified, decompressed and ready for use. With `keep` it goes into the cache.
    pub(super) fn block(&self, ordinal: usize, keep: bool) -> Result<(Block, Handle)> {
        let handle = self.handle(ordinal)?;
        let block = match self.raw_block(ordinal, handle)? {
            Some(range) => Block::new(self.map.slice(range))
                .map_err(|error| self.block_error(handle, error))?,
            None => match self.slots().get(ordinal).as_deref() {
                Some(Some(cached)) => {
                    self.context.counters.cache_hits.add(1);
                    cached.block.clone()
                }
                _ => self.fetch(ordinal, handle, keep)?,
            },
        };
        Ok((block, handle))
    }

    /// Where a block lies in the map, if it is stored as it is; `None` if it is compressed.
    fn raw_block(&self, ordinal: usize, handle: Handle) -> Result<Option<Range<usize>>> {
        let (word, bit) = (self.verified.get(ordinal / 64), 1 << (ordinal % 64));
        let range = part_range(&self.map, handle).ok_or_else(|| {
            self.block_error(handle, Malformed("block handle points outside of the file"))
        })?;
        if self.map[range.end] != PartKind::Raw as u8 {
            return Ok(None);
        }
        if word.is_none_or(|word| word.load(Ordering::Relaxed) & bit == 0) {
            verify_part(&self.map, handle)
                .map_err(|what| self.block_error(handle, Malformed(what)))?;
            if let Some(word) = word {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        self.context.counters.blocks_mapped.add(1);
        Ok(Some(range))
    }

    /// Decompresses a block that is not in the cache.
    fn fetch(&self, ordinal: usize, handle: Handle, keep: bool) -> Result<Block> {
        self.context.counters.cache_misses.add(1);
        let block = self
            .decompress(handle)
            .map_err(|what| self.block_error(handle, Malformed(what)))?;
        // With an owner, so that taking a slice never allocates.
        let block = Block::new(Bytes::from_owner(block))
            .map_err(|error| self.block_error(handle, error))?;
        if keep {
            self.context.cache.insert(self.slots(), ordinal, &block);
        }
        Ok(block)
    }

    fn decompress(&self, handle: Handle) -> Result<Vec<u8>, &'static str> {
        let (range, kind) = verify_part(&self.map, handle)?;
        if kind == PartKind::Raw {
            return Err("compression kind changed");
        }
        let stored = &self.map[range];
        let length = u32_at(stored, 0).ok_or("compressed block is too short")? as usize;
        if length > BLOCK_BYTES_MAX {
            return Err("compressed block claims to be too large");
        }
        let mut block = vec![0; length];
        let written = match kind {
            PartKind::Zstd => zstd::bulk::decompress_to_buffer(&stored[4..], &mut block).ok(),
            _ => lz4_flex::block::decompress_into(&stored[4..], &mut block).ok(),
        };
        match written {
            Some(written) if written == length => Ok(block),
            _ => Err("block does not decompress"),
        }
    }

    pub(super) fn index_error(&self, Malformed(what): Malformed) -> Error {
        Error::corruption(&self.path, "index block", self.index_offset, what)
    }

    pub(super) fn block_error(&self, handle: Handle, Malformed(what): Malformed) -> Error {
        Error::corruption(&self.path, "data block", handle.offset, what)
    }

    /// Estimated bytes of the blocks with keys in `start..end`.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> u64 {
        self.approximate_offset(end)
            .saturating_sub(self.approximate_offset(start))
    }

    fn approximate_offset(&self, key: &[u8]) -> u64 {
        if key <= self.meta.smallest_key.as_slice() {
            return 0;
        }
        let ordinal = self.index.view().lower_bound_restart(key, Trailer::NEWEST);
        match ordinal.map(|ordinal| self.handle(ordinal)) {
            Ok(Ok(handle)) => handle.offset,
            _ => self.meta.bytes,
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let context = &self.context;
        if self.obsolete.load(Ordering::Acquire) && context.removals_allowed.load(Ordering::Acquire)
        {
            // What cannot be removed now is an orphan that the next open removes.
            if let Err(error) = context.vfs.remove(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove an obsolete table");
            }
        }
    }
}

/// What a table file consists of beside its data blocks, verified.
struct Parts {
    footer: Footer,
    filter: Range<usize>,
    properties: Range<usize>,
    ranges: RangeSet,
}

impl Parts {
    fn verify(map: &[u8], path: &Path) -> Result<Self> {
        let corruption =
            |part, offset: usize, what: &str| Error::corruption(path, part, offset as u64, what);
        let corrupt = |part, offset, what: &str| Err(corruption(part, offset, what));
        if map.len() < HEADER_BYTES + footer_bytes(FORMAT_RANGES) {
            return corrupt("file", 0, "too short for a table");
        }
        if !map.starts_with(HEADER_MAGIC) || u32_at(map, 12) != Some(crc32c::crc32c(&map[..12])) {
            return corrupt("header", 0, "magic bytes or checksum do not match");
        }
        let found = u32_at(map, 8).unwrap_or(0);
        if !(FORMAT_PLAIN..=FORMAT_RANGES).contains(&found) {
            return Err(Error::UnsupportedFormat {
                file: path.to_owned(),
                found,
                supported: FORMAT_RANGES,
            });
        }
        let footer_at = map.len() - footer_bytes(found);
        let footer = match Footer::decode(&map[footer_at..]) {
            Ok(footer) => footer,
            Err(what) => return corrupt("footer", footer_at, what),
        };
        let part = |handle: Handle, part: &'static str| match verify_part(map, handle) {
            Ok((range, PartKind::Raw)) => Ok(range),
            Ok(_) => Err(corruption(
                part,
                handle.offset as usize,
                "unexpected compression",
            )),
            Err(what) => Err(corruption(part, handle.offset as usize, what)),
        };
        let filter = part(footer.filter, "filter")?;
        let properties = part(footer.properties, "properties")?;
        part(footer.index, "index block")?;
        let ranges = match footer.ranges {
            Some(handle) => match RangeSet::decode(&map[part(handle, "range deletes")?]) {
                Some(ranges) => ranges,
                None => return corrupt("range deletes", handle.offset as usize, "malformed"),
            },
            None => RangeSet::default(),
        };
        Ok(Self {
            footer,
            filter,
            properties,
            ranges,
        })
    }
}

/// What a table from outside says about itself. Refuses tables that are not made to be ingested.
pub(crate) fn external_meta(vfs: &dyn Vfs, path: &Path) -> Result<TableMeta> {
    let map = vfs
        .map(path)
        .map_err(|error| Error::io("map", path, error))?;
    let Parts {
        footer, properties, ..
    } = Parts::verify(&map, path)?;
    let Some((mut meta, _)) = properties::decode(&map[properties]) else {
        let offset = footer.properties.offset;
        return Err(Error::corruption(path, "properties", offset, "malformed"));
    };
    meta.bytes = map.len() as u64;
    let plain = meta.largest_seqno == 0 && meta.tombstones == 0 && meta.range_deletes == 0;
    if !plain || meta.entries == 0 || meta.smallest_key > meta.largest_key {
        return Err(Error::InvalidTable {
            path: path.to_owned(),
            what: "it was not written by a TableWriter".to_owned(),
        });
    }
    Ok(meta)
}

/// The bytes of a part, if they and the trailer behind them lie within the file.
fn part_range(map: &[u8], handle: Handle) -> Option<Range<usize>> {
    let start = usize::try_from(handle.offset).ok()?;
    let end = start.checked_add(handle.length as usize)?;
    (end.checked_add(PART_TRAILER_BYTES)? <= map.len()).then_some(start..end)
}

fn verify_part(map: &[u8], handle: Handle) -> Result<(Range<usize>, PartKind), &'static str> {
    let range = part_range(map, handle).ok_or("handle points outside of the file")?;
    let kind = map[range.end];
    if u32_at(map, range.end + 1) != Some(part_crc(&map[range.clone()], kind, handle.offset)) {
        return Err("contents do not match their checksum");
    }
    Ok((range, PartKind::decode(kind).ok_or("unknown kind of part")?))
}
