//! An open table: index, filter, and from them the way to a block of its file.

use super::blob::{BlobFile, BlobPointer, Value};
use super::block::{Block, BlockView, Malformed};
use super::block_file::{BlockFile, TableContext};
use super::filter::Filter;
use super::format::{
    FOOTER_BYTES, FORMAT_VERSION, Footer, HEADER_BYTES, HEADER_MAGIC, Handle, PartKind,
    check_header, part_range, verify_part,
};
use super::index::{Index, Wrong};
use super::point::PointRead;
use super::properties::{BlobSteps, Properties, Sizes, Versions};
use super::{TableMeta, properties};
use crate::error::{Error, Result};
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::types::Trailer;
use crate::vfs::Vfs;
use bytes::Bytes;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// An open table file.
pub(crate) struct Table {
    pub meta: TableMeta,
    file: BlockFile,
    index: Index,
    /// Range deletes.
    pub ranges: Arc<RangeSet>,
    filter: Filter,
    /// Bytes at the end of each key that the filter leaves out.
    version_bytes: usize,
    /// Of the whole table.
    pub sizes: Sizes,
    blob_steps: BlobSteps,
    versions: Versions,
    /// The blob files that its entries point to, by number: those of `meta.blobs`.
    pub blobs: Vec<Arc<BlobFile>>,
}

impl Table {
    /// Maps the file and verifies what is small: all but data blocks, filter and partitions of the index. `blobs` are
    /// the blob files that the meta names, in its order.
    pub fn open(
        context: &Arc<TableContext>,
        path: &Path,
        meta: TableMeta,
        blobs: Vec<Arc<BlobFile>>,
    ) -> Result<Self> {
        debug_assert!(
            meta.blobs
                .iter()
                .map(|blob| blob.file)
                .eq(blobs.iter().map(|blob| blob.number))
        );
        let map = BlockFile::map(&*context.vfs, path)?;
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
            blob_steps,
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
        Ok(Self {
            meta,
            file: BlockFile::new(context, path, map, "data block", block_count),
            index,
            ranges: Arc::new(ranges),
            filter,
            version_bytes,
            sizes,
            blob_steps,
            versions,
            blobs,
        })
    }

    /// The file may go when the last reader has gone. To be called after the edit that drops it is durable.
    pub fn mark_obsolete(&self) {
        self.file.mark_obsolete();
    }

    /// False only if no key is there that is the sought one and so many bytes after it.
    pub fn may_hold_versions(&self, read: &mut PointRead<'_>, version_bytes: usize) -> bool {
        // Of a damaged filter the table itself is asked.
        self.version_bytes != version_bytes || self.passes_filter(read, 0).unwrap_or(true)
    }

    /// False only if no key is there whose last bytes lie between these two, which are as long as a version.
    pub fn may_hold_between(&self, first: &[u8], last: &[u8]) -> bool {
        let may = self.version_bytes != first.len() || self.versions.may_meet(first, last);
        self.file
            .context
            .counters
            .versions_useful
            .add(u64::from(!may));
        may
    }

    /// False only if no key is there that equals the sought one but for its last bytes.
    #[inline]
    fn passes_filter(&self, read: &mut PointRead<'_>, version_bytes: usize) -> Result<bool> {
        if !self.filter.exists() {
            return Ok(true);
        }
        let hash = read.hash(version_bytes);
        let passes = self.filter.may_contain(&self.file.map, hash);
        let passes = passes.map_err(|wrong| named(&self.file.path, "filter", wrong))?;
        read.note(passes);
        Ok(passes)
    }

    /// The newest entry of a key that a reader may see.
    pub fn get(&self, read: &mut PointRead<'_>) -> Result<Option<(Trailer, Value)>> {
        if !self.passes_filter(read, self.version_bytes)? {
            return Ok(None);
        }
        let user_key = read.user_key;
        let trailer = self.meta.to_file(read.trailer);
        let Some((ordinal, handle)) = self.find_block(user_key, trailer)? else {
            return Ok(None);
        };
        let shown = |trailer, value| {
            let value = self.value(trailer, value)?;
            Ok(Some((self.meta.to_tree(trailer), value)))
        };
        let find = |block: &Block| {
            let found = block.view().find(user_key, trailer);
            match found.map_err(|error| self.block_error(handle, error))? {
                Some(entry) => shown(entry.trailer, block.slice(entry.value).into()),
                None => Ok(None),
            }
        };
        if let Some(Some(cached)) = self.file.cached(ordinal).as_deref() {
            return find(&cached.block);
        }
        if let Some(range) = self.file.raw(ordinal, handle)? {
            let block = BlockView::new(&self.file.map[range.clone()]);
            let found = block.and_then(|block| block.find(user_key, trailer));
            let Some(entry) = found.map_err(|error| self.block_error(handle, error))? else {
                return Ok(None);
            };
            let value = range.start + entry.value.start..range.start + entry.value.end;
            return shown(entry.trailer, self.file.map.slice(value).into());
        }
        find(&self.file.fetch(ordinal, handle, true)?)
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
        let found = self.index.find(&self.file.map, user_key, trailer);
        found.map_err(|wrong| self.index_error(wrong))
    }

    /// Handle of a data block, from the index.
    fn handle(&self, ordinal: usize) -> Result<Handle> {
        let handle = self.index.handle(&self.file.map, ordinal);
        handle.map_err(|wrong| self.index_error(wrong))
    }

    /// A data block, verified, decompressed and ready for use. With `keep` it goes into the cache.
    pub(super) fn block(&self, ordinal: usize, keep: bool) -> Result<(Block, Handle)> {
        let handle = self.handle(ordinal)?;
        Ok((self.file.block(ordinal, handle, keep)?, handle))
    }

    /// Asks for bytes of the file that will be read soon.
    pub(super) fn will_need(&self, range: Range<u64>) {
        self.file.will_need(range);
    }

    /// The value of an entry: what stands in its place in the block, or the blob that this points to.
    pub(super) fn value(&self, trailer: Trailer, found: Slice) -> Result<Value> {
        if !trailer.is_blob() {
            return Ok(Value::Here(found));
        }
        let lost = |what| self.file.error(Handle::default(), Malformed(what));
        let pointer = BlobPointer::decode(&found).ok_or_else(|| lost("malformed blob pointer"))?;
        let at = { &self.blobs }.binary_search_by_key(&pointer.file, |blob| blob.number);
        let at = at.map_err(|_| lost("pointer to a blob file that the table does not use"))?;
        Ok(Value::Blob(Arc::clone(&self.blobs[at]), pointer))
    }

    fn index_error(&self, wrong: Wrong) -> Error {
        named(&self.file.path, "index block", wrong)
    }

    pub(super) fn block_error(&self, handle: Handle, Malformed(what): Malformed) -> Error {
        self.file.error(handle, Malformed(what))
    }

    /// Estimated bytes of the blocks with keys in `start..end`, as a compressed level would store them, and of the blobs
    /// that they point to.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> u64 {
        self.size_before(end)
            .saturating_sub(self.size_before(start))
    }

    /// About how many of these bytes lie before a key.
    fn size_before(&self, key: &[u8]) -> u64 {
        if key <= self.meta.smallest_key.as_slice() {
            return 0;
        }
        match self.find_block(key, Trailer::NEWEST) {
            Ok(Some((ordinal, handle))) => {
                let part = handle.offset as f64 / self.meta.bytes as f64;
                let blocks = self.sizes.settled.saturating_sub(self.blob_steps.total());
                (part * blocks as f64) as u64 + self.blob_steps.before(ordinal)
            }
            _ => self.sizes.settled,
        }
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
        check_header(map, path, HEADER_MAGIC, FORMAT_VERSION)?;
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
