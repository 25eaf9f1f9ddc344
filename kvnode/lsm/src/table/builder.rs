//! Writing a table from sorted entries.

use super::blob::{BlobPointer, BlobUse};
use super::block::{BlockBuilder, RESTART_INTERVAL, common_prefix};
use super::compression::compress;
use super::format::{
    FORMAT_VERSION, Footer, HEADER_BYTES, HEADER_MAGIC, Handle, PartKind, encode_header,
};
use super::index::IndexBuilder;
use super::part_writer::PartWriter;
use super::properties::{BlobSteps, Properties, Sizes, Versions};
use super::{TableMeta, bloom, filter, properties, without_version};
use crate::error::Result;
use crate::options::Compression;
use crate::ranges::RangeSet;
use crate::types::{Kind, Trailer};
use crate::vfs::Vfs;
use std::path::Path;

/// Of the data blocks of a table that is not compressed, each so many-th is compressed for its size alone.
const SAMPLE_BLOCKS: u64 = 16;

/// A data block that points to so many bytes of blobs is full: estimates of sizes look at whole blocks.
const BLOB_BYTES_PER_BLOCK: u64 = 1 << 20;

/// How a table is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableOptions {
    pub block_bytes: usize,
    pub bloom_bits_per_key: u32,
    /// Bytes at the end of each key that the filter leaves out.
    pub version_bytes: usize,
    pub compression: Compression,
    /// How data blocks are stored on compressed levels; a table that is not compressed tries it on a sample.
    pub compression_later: Compression,
}

/// Writes one table file. Entries come in the order of the tree; nothing is durable before [`Self::finish`].
pub(crate) struct TableBuilder {
    parts: PartWriter,
    options: TableOptions,
    data: BlockBuilder,
    index: IndexBuilder,
    /// The last data block and the last trailer in it; its index entry waits for the next block's first key.
    pending: Option<(Handle, Trailer)>,
    pending_key: Vec<u8>,
    hashes: Vec<u64>,
    compressed: Vec<u8>,
    sizes: DataSizes,
    versions: Versions,
    meta: TableMeta,
    last_trailer: Trailer,
}

/// Bytes of what was added so far.
#[derive(Default)]
struct DataSizes {
    entries: u64,
    /// Of the blob files that entries point to.
    blobs: u64,
    /// The part of `blobs` that finished blocks point to.
    blobs_before: u64,
    /// What the finished blocks point to, every now and then.
    blob_steps: BlobSteps,
    blocks: u64,
    sampled: u64,
    sampled_compressed: u64,
}

impl DataSizes {
    /// Notes that a block is finished.
    fn end_block(&mut self) {
        self.blocks += 1;
        self.blobs_before = self.blobs;
        if self.blobs - self.blob_steps.total() >= BLOB_BYTES_PER_BLOCK {
            self.blob_steps.add(self.blocks, self.blobs);
        }
    }

    fn settled(&self, stored: u64) -> u64 {
        match self.sampled {
            0 => stored,
            sampled => {
                let bytes = u128::from(stored) * u128::from(self.sampled_compressed);
                (bytes / u128::from(sampled)) as u64
            }
        }
    }
}

impl TableBuilder {
    /// Creates the file. Only with `has_ranges` may range deletes be handed to [`Self::finish`].
    pub fn create(vfs: &dyn Vfs, path: &Path, number: u64, options: TableOptions) -> Result<Self> {
        let meta = TableMeta {
            number,
            smallest_seqno: u64::MAX,
            ..TableMeta::default()
        };
        let header = encode_header(HEADER_MAGIC, FORMAT_VERSION);
        Ok(Self {
            parts: PartWriter::create(vfs, path, &header)?,
            options,
            data: BlockBuilder::new(RESTART_INTERVAL),
            index: IndexBuilder::new(),
            pending: None,
            pending_key: Vec::new(),
            hashes: Vec::new(),
            compressed: Vec::new(),
            sizes: DataSizes::default(),
            versions: Versions::default(),
            meta,
            last_trailer: Trailer::NEWEST,
        })
    }

    /// Bytes written so far, without the block being filled.
    pub fn bytes(&self) -> u64 {
        self.parts.offset()
    }

    /// Bytes of blob files that its entries point to so far.
    pub fn blob_bytes(&self) -> u64 {
        self.sizes.blobs
    }

    /// Adds the next entry, whose value lies in a blob file.
    pub fn add_blob(&mut self, user_key: &[u8], trailer: Trailer, blob: BlobPointer) -> Result<()> {
        let bytes = blob.stored_bytes();
        let uses = &mut self.meta.blobs;
        match uses.binary_search_by_key(&blob.file, |blob| blob.file) {
            Ok(at) => uses[at].bytes += bytes,
            Err(at) => uses.insert(
                at,
                BlobUse {
                    file: blob.file,
                    bytes,
                },
            ),
        }
        self.sizes.blobs += bytes;
        self.sizes.entries += u64::from(blob.value_bytes);
        let mut pointer = Vec::new();
        blob.encode(&mut pointer);
        self.add(user_key, trailer.of_kind(Kind::Blob), &pointer)
    }

    /// Adds the next entry.
    pub fn add(&mut self, user_key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        if self.data.is_empty() {
            self.index_pending(Some(user_key));
        }
        if self.meta.entries == 0 {
            self.meta.smallest_key = user_key.to_vec();
        }
        let versionless = without_version(user_key, self.options.version_bytes);
        if self.options.version_bytes > 0 {
            self.versions.add(&user_key[versionless.len()..]);
        }
        if self.options.bloom_bits_per_key > 0 {
            // Versions of one key come one after the other.
            let hash = bloom::hash(versionless);
            if self.hashes.last() != Some(&hash) {
                self.hashes.push(hash);
            }
        }
        self.meta.entries += 1;
        self.sizes.entries += (user_key.len() + value.len()) as u64;
        self.meta.tombstones += u64::from(trailer.is_delete());
        self.meta.smallest_seqno = self.meta.smallest_seqno.min(trailer.seqno());
        self.meta.largest_seqno = self.meta.largest_seqno.max(trailer.seqno());
        self.data.add(user_key, trailer, value);
        self.last_trailer = trailer;
        let blobs = self.sizes.blobs - self.sizes.blobs_before;
        if self.data.len() >= self.options.block_bytes || blobs >= BLOB_BYTES_PER_BLOCK {
            self.finish_block()?;
        }
        Ok(())
    }

    fn finish_block(&mut self) -> Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        self.pending_key.clear();
        self.pending_key.extend_from_slice(self.data.last_key());
        let mut data = std::mem::replace(&mut self.data, BlockBuilder::new(RESTART_INTERVAL));
        let raw = data.finish();
        let mut compressed = std::mem::take(&mut self.compressed);
        if self.options.compression == Compression::None
            && self.sizes.blocks.is_multiple_of(SAMPLE_BLOCKS)
        {
            let later = compress(self.options.compression_later, raw, &mut compressed);
            self.sizes.sampled += raw.len() as u64;
            self.sizes.sampled_compressed += match later {
                (PartKind::Raw, _) => raw.len() as u64,
                (_, length) => length as u64,
            };
        }
        self.sizes.end_block();
        let (kind, length) = compress(self.options.compression, raw, &mut compressed);
        let handle = match kind {
            PartKind::Raw => self.parts.write_part(raw, kind)?,
            _ => self.parts.write_part(&compressed[..length], kind)?,
        };
        self.compressed = compressed;
        data.clear();
        self.data = data;
        self.pending = Some((handle, self.last_trailer));
        Ok(())
    }

    /// Adds the index entry of the last finished block: any key from its last one up to, and not including, the
    /// first of the next block will do, so take a short one.
    fn index_pending(&mut self, next_key: Option<&[u8]>) {
        let Some((handle, mut trailer)) = self.pending.take() else {
            return;
        };
        if let Some(next_key) = next_key
            && shorten(&mut self.pending_key, next_key)
        {
            trailer = Trailer::OLDEST;
        }
        self.index.add(&self.pending_key, trailer, handle);
    }

    /// Widens what the manifest knows about the table by its range deletes.
    fn note_ranges(&mut self, ranges: &RangeSet) {
        let meta = &mut self.meta;
        let fragments = ranges.fragments();
        if let (Some(first), Some(last)) = (fragments.first(), fragments.last()) {
            if first.start < meta.smallest_key {
                meta.smallest_key = first.start.to_vec();
            }
            if last.end > meta.largest_key {
                meta.largest_key = last.end.to_vec();
                meta.largest_exclusive = true;
            }
        }
        for seqno in fragments.iter().flat_map(|fragment| &fragment.seqnos) {
            meta.smallest_seqno = meta.smallest_seqno.min(*seqno);
            meta.largest_seqno = meta.largest_seqno.max(*seqno);
        }
        meta.range_deletes = ranges.count();
    }

    /// Writes the rest, with the range deletes of the table, and syncs the file. The name is durable only after a
    /// sync of the folder. A table has at least one entry: if it has none of its own, the first key that its range
    /// deletes hide gets a delete that says the same once more.
    pub fn finish(mut self, ranges: &RangeSet) -> Result<TableMeta> {
        if self.meta.entries == 0
            && let Some(fragment) = ranges.fragments().first()
        {
            let newest = fragment.seqnos.first().copied().unwrap_or(0);
            self.add(&fragment.start, Trailer::new(newest, Kind::Delete), b"")?;
        }
        self.meta.largest_key = match self.data.is_empty() {
            true => self.pending_key.clone(),
            false => self.data.last_key().to_vec(),
        };
        self.finish_block()?;
        self.index_pending(None);
        self.note_ranges(ranges);
        if self.sizes.blobs > self.sizes.blob_steps.total() {
            self.sizes
                .blob_steps
                .add(self.sizes.blocks, self.sizes.blobs);
        }
        let parts = &mut self.parts;
        let data_bytes = parts.offset() - HEADER_BYTES as u64;
        let (lines, probes) = bloom::build(&self.hashes, self.options.bloom_bits_per_key);
        let filter = parts.write_unchecked(&lines)?;
        let checks = filter::checks(&lines, probes, filter.offset);
        let checks = parts.write_part(&checks, PartKind::Raw)?;
        let properties = properties::encode(&Properties {
            meta: self.meta.clone(),
            version_bytes: self.options.version_bytes,
            sizes: Sizes {
                entries: self.sizes.entries,
                settled: self.sizes.settled(data_bytes) + self.sizes.blobs,
            },
            blob_steps: self.sizes.blob_steps,
            versions: self.versions,
        });
        let properties = parts.write_part(&properties, PartKind::Raw)?;
        let ranges = parts.write_part(&ranges.encode(), PartKind::Raw)?;
        let write_index = |bytes: &[u8]| parts.write_part(bytes, PartKind::Raw);
        let (top, block_count) = self.index.finish(write_index)?;
        let index = parts.write_part(&top, PartKind::Raw)?;
        let footer = Footer {
            filter,
            checks,
            properties,
            ranges,
            index,
            block_count,
        };
        self.meta.bytes = self.parts.finish(&footer.encode())?;
        Ok(self.meta)
    }
}

/// Replaces `key` by a shorter key that is larger than it and smaller than `next`, if there is a simple one.
fn shorten(key: &mut Vec<u8>, next: &[u8]) -> bool {
    let common = common_prefix(key, next);
    match (key.get(common), next.get(common)) {
        (Some(own), Some(other)) if own + 1 < *other && common + 1 < key.len() => {
            key[common] += 1;
            key.truncate(common + 1);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shortened_key_separates(mut keys in prop::collection::btree_set(any::<Vec<u8>>(), 2..4)) {
            let (Some(left), Some(right)) = (keys.pop_first(), keys.pop_first()) else { return Ok(()) };
            let mut separator = left.clone();
            if shorten(&mut separator, &right) {
                prop_assert!(left < separator && separator < right && separator.len() < left.len());
            } else {
                prop_assert_eq!(separator, left);
            }
        }
    }
}
