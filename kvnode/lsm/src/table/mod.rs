//! Table files: sorted, immutable, checksummed.
//!
//! ```text
//! table  := header block* filter checks properties ranges partition* index footer
//! header := magic 8 | format version u32 | crc32c u32 of the 12 bytes before
//! part   := bytes | kind u8 | crc32c u32    (all but header, footer and filter, whose checksums are the checks)
//! footer := offset u64, length u32 of filter, checks, properties, ranges and index
//!         | number of data blocks u32 | crc32c u32 of the bytes before | magic 8
//! ```
//!
//! The checksum of a part covers bytes, kind and the part's offset, so a part that sits in the wrong place is
//! found too. A table is written once from beginning to end, synced, and read through a memory map; [`index`] and
//! [`filter`] stay in the map, and are verified piece by piece as they are used, like data blocks: opening a table
//! reads a few pages of it, however large it is.
//!
//! The ideas are those of LevelDB's and RocksDB's block-based tables, and of Bigtable's (OSDI 2006, section 5.3).

pub(crate) mod blob;
mod block;
mod block_file;
mod block_iter;
mod bloom;
mod builder;
mod compression;
mod filter;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod iter;
mod marks;
mod part_writer;
mod point;
mod properties;
mod reader;
mod writer;

pub(crate) use block::Block;
pub(crate) use block_file::TableContext;
pub(crate) use builder::{TableBuilder, TableOptions};
pub(crate) use compression::{compress, decompress};
pub(crate) use format::PartKind;
pub(crate) use iter::RunIter;
pub(crate) use point::PointRead;
pub(crate) use reader::{Table, external_meta};
pub use writer::TableWriter;

use crate::types::{Kind, SeqNo, Trailer};
use blob::BlobUse;

/// The part of a key that the filter of a table holds.
pub(crate) fn without_version(user_key: &[u8], version_bytes: usize) -> &[u8] {
    &user_key[..user_key.len().saturating_sub(version_bytes)]
}

/// What the manifest knows about a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TableMeta {
    /// File number.
    pub number: u64,
    /// File length.
    pub bytes: u64,
    pub smallest_key: Vec<u8>,
    pub largest_key: Vec<u8>,
    pub smallest_seqno: SeqNo,
    pub largest_seqno: SeqNo,
    pub entries: u64,
    pub tombstones: u64,
    /// Range deletes, counted per fragment.
    pub range_deletes: u64,
    /// The table says nothing about `largest_key` itself: a range delete ends there.
    pub largest_exclusive: bool,
    /// Of an ingested table: the sequence number of all its entries, whose own are 0. Else 0.
    pub assigned_seqno: SeqNo,
    /// The blob files that its entries point to, by number.
    pub blobs: Vec<BlobUse>,
}

impl TableMeta {
    /// From what the file says of an entry to what the tree says.
    #[inline]
    pub fn to_tree(&self, trailer: Trailer) -> Trailer {
        match self.assigned_seqno {
            0 => trailer,
            // The kind is kept: what cannot be in such a table is not to be taken for something else.
            seqno => trailer.at_seqno(seqno),
        }
    }

    /// From a place in the tree to the place in the file that parts the entries of a key in the same way.
    #[inline]
    pub fn to_file(&self, trailer: Trailer) -> Trailer {
        match self.assigned_seqno {
            0 => trailer,
            seqno if Trailer::new(seqno, Kind::Put).0 <= trailer.0 => Trailer::NEWEST,
            _ => Trailer::OLDEST,
        }
    }

    /// True if the table may hold keys of the closed range.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.smallest_key.as_slice() <= largest && !self.is_before(smallest)
    }

    /// True if the table may say something about the key.
    pub fn covers(&self, user_key: &[u8]) -> bool {
        self.overlaps(user_key, user_key)
    }

    /// True if everything the table says is about smaller keys.
    pub fn is_before(&self, user_key: &[u8]) -> bool {
        let largest = self.largest_key.as_slice();
        largest < user_key || self.largest_exclusive && largest == user_key
    }
}
