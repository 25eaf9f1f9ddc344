//! Writing a table from sorted entries.

use super::block::{BlockBuilder, RESTART_INTERVAL, common_prefix};
use super::format::{Footer, HEADER_BYTES, Handle, PartKind, encode_header, part_crc};
use super::index::IndexBuilder;
use super::properties::{Properties, Sizes, Versions};
use super::{TableMeta, bloom, filter, properties, without_version};
use crate::error::{Error, Result};
use crate::options::Compression;
use crate::ranges::RangeSet;
use crate::types::{Kind, Trailer};
use crate::vfs::{Vfs, WritableFile};
use std::path::{Path, PathBuf};

/// Bytes collected before they are handed to the file system.
const WRITE_BYTES: usize = 1 << 20;

/// Of the data blocks of a table that is not compressed, each so many-th is compressed for its size alone.
const SAMPLE_BLOCKS: u64 = 16;

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
    file: Box<dyn WritableFile>,
    path: PathBuf,
    options: TableOptions,
    buffer: Vec<u8>,
    offset: u64,
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
    blocks: u64,
    sampled: u64,
    sampled_compressed: u64,
}

impl DataSizes {
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
        let file = vfs
            .create(path)
            .map_err(|error| Error::io("create", path, error))?;
        let meta = TableMeta {
            number,
            bytes: 0,
            smallest_key: Vec::new(),
            largest_key: Vec::new(),
            smallest_seqno: u64::MAX,
            largest_seqno: 0,
            entries: 0,
            tombstones: 0,
            range_deletes: 0,
            largest_exclusive: false,
            assigned_seqno: 0,
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            options,
            buffer: encode_header().to_vec(),
            offset: HEADER_BYTES as u64,
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
        self.offset
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
        if self.data.len() >= self.options.block_bytes {
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
        self.sizes.blocks += 1;
        let (kind, length) = compress(self.options.compression, raw, &mut compressed);
        let handle = match kind {
            PartKind::Raw => self.write_part(raw, kind)?,
            _ => self.write_part(&compressed[..length], kind)?,
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

    /// Writes a part: the bytes, their kind, their checksum.
    fn write_part(&mut self, bytes: &[u8], kind: PartKind) -> Result<Handle> {
        let crc = part_crc(bytes, kind as u8, self.offset).to_le_bytes();
        let handle = self.write_unchecked(bytes)?;
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(&crc);
        self.offset += super::format::PART_TRAILER_BYTES as u64;
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(handle)
    }

    fn write_unchecked(&mut self, bytes: &[u8]) -> Result<Handle> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge {
            what: "table part",
            bytes: bytes.len() as u64,
            bytes_max: u64::from(u32::MAX),
        })?;
        let handle = Handle {
            offset: self.offset,
            length,
        };
        self.buffer.extend_from_slice(bytes);
        self.offset += bytes.len() as u64;
        Ok(handle)
    }

    fn write_out(&mut self) -> Result<()> {
        self.file
            .append(&self.buffer)
            .map_err(|error| Error::io("write", &self.path, error))?;
        self.buffer.clear();
        Ok(())
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
        let data_bytes = self.offset - HEADER_BYTES as u64;
        let (lines, probes) = bloom::build(&self.hashes, self.options.bloom_bits_per_key);
        let filter = self.write_unchecked(&lines)?;
        let checks = filter::checks(&lines, probes, filter.offset);
        let checks = self.write_part(&checks, PartKind::Raw)?;
        let properties = properties::encode(&Properties {
            meta: self.meta.clone(),
            version_bytes: self.options.version_bytes,
            sizes: Sizes {
                entries: self.sizes.entries,
                settled: self.sizes.settled(data_bytes),
            },
            versions: std::mem::take(&mut self.versions),
        });
        let properties = self.write_part(&properties, PartKind::Raw)?;
        let ranges = self.write_part(&ranges.encode(), PartKind::Raw)?;
        let index = std::mem::replace(&mut self.index, IndexBuilder::new());
        let (top, block_count) = index.finish(|bytes| self.write_part(bytes, PartKind::Raw))?;
        let index = self.write_part(&top, PartKind::Raw)?;
        let footer = Footer {
            filter,
            checks,
            properties,
            ranges,
            index,
            block_count,
        }
        .encode();
        self.buffer.extend_from_slice(&footer);
        self.offset += footer.len() as u64;
        self.write_out()?;
        self.file
            .sync()
            .map_err(|error| Error::io("sync", &self.path, error))?;
        self.meta.bytes = self.offset;
        Ok(self.meta)
    }
}

/// Puts the compressed form of a block, its length before it, into `buffer`, and says how many bytes it has there;
/// `Raw` if it does not save an eighth.
fn compress(compression: Compression, raw: &[u8], buffer: &mut Vec<u8>) -> (PartKind, usize) {
    const ZSTD_LEVEL: i32 = 3;
    let bound = match compression {
        Compression::None => return (PartKind::Raw, 0),
        Compression::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
        Compression::Zstd => zstd::zstd_safe::compress_bound(raw.len()),
    };
    buffer.resize(4 + bound, 0);
    buffer[..4].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    let (kind, length) = match compression {
        Compression::Zstd => {
            let length = zstd::bulk::compress_to_buffer(raw, &mut buffer[4..], ZSTD_LEVEL);
            (PartKind::Zstd, length.ok())
        }
        _ => {
            let length = lz4_flex::block::compress_into(raw, &mut buffer[4..]);
            (PartKind::Lz4, length.ok())
        }
    };
    match length {
        Some(length) if length + 4 <= raw.len() - raw.len() / 8 => (kind, length + 4),
        _ => (PartKind::Raw, 0),
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
