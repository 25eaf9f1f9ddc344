//! An open table: memory map, index, filter, and the way to a block.
//!
//! A block stored as it is gets its checksum verified at its first use and is then
//! read in place. A compressed block is verified and decompressed into the block cache.
//!
//! The file of a table that the manifest has dropped is removed when the last reader lets go of the [`Table`].

use super::block::{Block, BlockView, Malformed};
use super::filter::Filter;
use super::format::{
    FOOTER_BYTES, FORMAT_VERSION, Footer, HEADER_BYTES, HEADER_MAGIC, Handle, PartKind, part_range,
    verify_part,
};
use super::index::{Index, Wrong};
use super::properties::{Properties, Sizes, Versions};
use super::verified::Verified;
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
use std::sync::atomic::{AtomicBool, Ordering};
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
    index: Index,
    /// Range deletes.
    pub ranges: Arc<RangeSet>,
    filter: Filter,
    /// Bytes at the end of each key that the filter leaves out.
    version_bytes: usize,
    /// Of the whole table.
    pub sizes: Sizes,
    versions: Versions,
    /// Data blocks stored as they are.
    verified: Verified,
    /// Where the block cache keeps the blocks of this table; made with the first compressed one.
    slots: OnceLock<Arc<Slots>>,
    context: Arc<TableContext>,
    obsolete: AtomicBool,
}

impl Table {
    /// Maps the file and verifies what is small: all but data blocks, filter and partitions of the index.
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
            index,
        } = Parts::verify(&map, path)?;
        let Some(Properties {
            version_bytes,
            sizes,
            versions,
            ..
        }) = properties::decode(&map[properties])
        else {
            let offset = footer.properties.offset;
            return Err(Error::corruption(path, "properties", offset, "malformed"));
        };
        if ranges.count() != meta.range_deletes {
            let offset = footer.ranges.offset;
            let what = "not as many as the manifest says";
            return Err(Error::corruption(path, "range deletes", offset, what));
        }
        let corrupt =
            |Malformed(what)| Error::corruption(path, "index block", footer.index.offset, what);
        let block_count = footer.block_count as usize;
        let top = Block::new(map.slice(index)).map_err(corrupt)?;
        let index = Index::new(top, footer.index, block_count).map_err(corrupt)?;
        let (context, obsolete) = (Arc::clone(context), AtomicBool::new(false));
        Ok(Self {
            meta,
            path: path.to_owned(),
            map,
            index,
            ranges: Arc::new(ranges),
            filter,
            version_bytes,
            sizes,
            versions,
            verified: Verified::new(block_count),
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
        // Of a damaged filter the table itself is asked.
        self.version_bytes != version_bytes || self.passes_filter(versionless).unwrap_or(true)
    }

    /// False only if no key is there whose last bytes lie between these two, which are as long as a version.
    pub fn may_hold_between(&self, first: &[u8], last: &[u8]) -> bool {
        let may = self.version_bytes != first.len() || self.versions.may_meet(first, last);
        self.context.counters.versions_useful.add(u64::from(!may));
        may
    }

    fn passes_filter(&self, versionless: &[u8]) -> Result<bool> {
        if !self.filter.exists() {
            return Ok(true);
        }
        let passes = self.filter.may_contain(&self.map, bloom::hash(versionless));
        let passes = passes.map_err(|wrong| named(&self.path, "filter", wrong))?;
        let counters = &self.context.counters;
        match passes {
            true => counters.bloom_passed.add(1),
            false => counters.bloom_useful.add(1),
        }
        Ok(passes)
    }

    /// The newest entry of a key that a reader starting at `trailer` sees.
    pub fn get(&self, user_key: &[u8], trailer: Trailer) -> Result<Option<(Trailer, Slice)>> {
        let counters = &self.context.counters;
        if !self.passes_filter(without_version(user_key, self.version_bytes))? {
            return Ok(None);
        }
        let trailer = self.meta.to_file(trailer);
        let Some((ordinal, handle)) = self.find_block(user_key, trailer)? else {
            return Ok(None);
        };
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
        let make = || Arc::new(Slots::new(self.block_count()));
        self.slots.get_or_init(make)
    }

    /// Number of data blocks.
    pub(super) fn block_count(&self) -> usize {
        self.index.block_count()
    }

    /// The first data block that may hold something at or after a place of the file, and where it is.
    pub(super) fn find_block(
        &self,
        user_key: &[u8],
        trailer: Trailer,
    ) -> Result<Option<(usize, Handle)>> {
        let found = self.index.find(&self.map, user_key, trailer);
        found.map_err(|wrong| self.index_error(wrong))
    }

    /// Handle of a data block, from the index.
    fn handle(&self, ordinal: usize) -> Result<Handle> {
        let handle = self.index.handle(&self.map, ordinal);
        handle.map_err(|wrong| self.index_error(wrong))
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

    /// Asks for bytes of the file that will be read soon.
    pub(super) fn will_need(&self, range: Range<u64>) {
        let end = range.end.min(self.map.len() as u64) as usize;
        if let Some(part) = self.map.get(range.start as usize..end) {
            self.context.vfs.will_need(part);
        }
    }

    /// Where a block lies in the map, if it is stored as it is; `None` if it is compressed.
    fn raw_block(&self, ordinal: usize, handle: Handle) -> Result<Option<Range<usize>>> {
        let range = part_range(&self.map, handle).ok_or_else(|| {
            self.block_error(handle, Malformed("block handle points outside of the file"))
        })?;
        if self.map[range.end] != PartKind::Raw as u8 {
            return Ok(None);
        }
        self.verified.once(ordinal, || {
            let verified = verify_part(&self.map, handle).map(drop);
            verified.map_err(|what| self.block_error(handle, Malformed(what)))
        })?;
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
        decompress(&self.map[range], kind)
    }

    fn index_error(&self, wrong: Wrong) -> Error {
        named(&self.path, "index block", wrong)
    }

    pub(super) fn block_error(&self, handle: Handle, Malformed(what): Malformed) -> Error {
        Error::corruption(&self.path, "data block", handle.offset, what)
    }

    /// Estimated bytes of the blocks with keys in `start..end`, as a compressed level would store them.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> u64 {
        let part = self.part_before(end) - self.part_before(start);
        (part.max(0.0) * self.sizes.settled as f64) as u64
    }

    /// About which part of the table lies before a key: 0 to 1.
    fn part_before(&self, key: &[u8]) -> f64 {
        if key <= self.meta.smallest_key.as_slice() {
            return 0.0;
        }
        match self.find_block(key, Trailer::NEWEST) {
            Ok(Some((_, handle))) => handle.offset as f64 / self.meta.bytes as f64,
            _ => 1.0,
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

/// The block in a part that is not stored as it is.
pub(super) fn decompress(stored: &[u8], kind: PartKind) -> Result<Vec<u8>, &'static str> {
    let length = u32_at(stored, 0).ok_or("compressed block is too short")? as usize;
    if length > BLOCK_BYTES_MAX {
        return Err("compressed block claims to be too large");
    }
    let stored = &stored[4..];
    let decompress: fn(&[u8], &mut [u8]) -> Option<usize> = match kind {
        PartKind::Raw => return Err("compression kind changed"),
        PartKind::Zstd => |from, to| zstd::bulk::decompress_to_buffer(from, to).ok(),
        PartKind::Lz4 => |from, to| lz4_flex::block::decompress_into(from, to).ok(),
    };
    let mut block = vec![0; length];
    match decompress(stored, &mut block) {
        Some(written) if written == length => Ok(block),
        _ => Err("block does not decompress"),
    }
}

/// What a table file consists of beside its data blocks. All but filter and partitions of the index is verified.
struct Parts {
    footer: Footer,
    filter: Filter,
    properties: Range<usize>,
    ranges: RangeSet,
    /// The top of the index.
    index: Range<usize>,
}

impl Parts {
    fn verify(map: &[u8], path: &Path) -> Result<Self> {
        let corruption =
            |part, offset: usize, what: &str| Error::corruption(path, part, offset as u64, what);
        let corrupt = |part, offset, what: &str| Err(corruption(part, offset, what));
        if map.len() < HEADER_BYTES + FOOTER_BYTES {
            return corrupt("file", 0, "too short for a table");
        }
        if !map.starts_with(HEADER_MAGIC) || u32_at(map, 12) != Some(crc32c::crc32c(&map[..12])) {
            return corrupt("header", 0, "magic bytes or checksum do not match");
        }
        let found = u32_at(map, 8).unwrap_or(0);
        if found != FORMAT_VERSION {
            return Err(Error::UnsupportedFormat {
                file: path.to_owned(),
                found,
                supported: FORMAT_VERSION,
            });
        }
        let footer_at = map.len() - FOOTER_BYTES;
        let footer = match Footer::decode(&map[footer_at..]) {
            Ok(footer) => footer,
            Err(what) => return corrupt("footer", footer_at, what),
        };
        let part = |handle: Handle, part: &'static str| {
            let wrong = |what| corruption(part, handle.offset as usize, what);
            match verify_part(map, handle) {
                Ok((range, PartKind::Raw)) => Ok(range),
                Ok(_) => Err(wrong("unexpected compression")),
                Err(what) => Err(wrong(what)),
            }
        };
        let checks = part(footer.checks, "filter checks")?;
        let properties = part(footer.properties, "properties")?;
        let index = part(footer.index, "index block")?;
        let ranges = match RangeSet::decode(&map[part(footer.ranges, "range deletes")?]) {
            Some(ranges) => ranges,
            None => return corrupt("range deletes", footer.ranges.offset as usize, "malformed"),
        };
        let filter_at = footer.filter.offset as usize;
        let Some(lines) = part_range(map, footer.filter) else {
            return corrupt("filter", filter_at, "handle points outside of the file");
        };
        let filter = Filter::new(map, lines, checks)
            .map_err(|Malformed(what)| corruption("filter", filter_at, what))?;
        Ok(Self {
            footer,
            filter,
            properties,
            ranges,
            index,
        })
    }
}

/// An error that names file, part and place.
fn named(path: &Path, part: &'static str, (handle, Malformed(what)): Wrong) -> Error {
    Error::corruption(path, part, handle.offset, what)
}

fn open_index(map: &Bytes, path: &Path, footer: &Footer, top: Range<usize>) -> Result<Index> {
    let index = Block::new(map.slice(top))
        .and_then(|top| Index::new(top, footer.index, footer.block_count as usize));
    index.map_err(|error| named(path, "index block", (footer.index, error)))
}

/// What a table from outside says about itself. Refuses tables that are not made to be ingested, and those whose filter
/// or index is damaged.
pub(crate) fn external_meta(vfs: &dyn Vfs, path: &Path) -> Result<TableMeta> {
    let map = vfs
        .map(path)
        .map_err(|error| Error::io("map", path, error))?;
    let Parts {
        footer,
        filter,
        properties,
        index,
        ..
    } = Parts::verify(&map, path)?;
    let checked = filter.verify_whole(&map);
    checked.map_err(|wrong| named(path, "filter", wrong))?;
    let checked = open_index(&map, path, &footer, index)?.verify_whole(&map);
    checked.map_err(|wrong| named(path, "index block", wrong))?;
    let Some(Properties { mut meta, .. }) = properties::decode(&map[properties]) else {
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
