//! Table files: sorted, immutable, checksummed.
//!
//! ```text
//! table  := header block* filter properties index footer
//! header := magic 8 | format version u32 | crc32c u32 of the 12 bytes before
//! part   := bytes | kind u8 | crc32c u32          (block, filter, properties and index alike)
//! footer := filter offset u64, length u32 | properties offset u64, length u32 | index offset u64, length u32
//!         | number of data blocks u32 | crc32c u32 of the 40 bytes before | magic 8
//! ```
//!
//! The checksum of a part covers bytes, kind and the part's offset, so a part that sits in the wrong place is
//! found too. A table is written once from beginning to end, synced, and read through a memory map; index and
//! filter stay in the map. The index has one entry per data block and is a block itself ([`block`] has the
//! layout), with a restart point at every entry, so a search in it is a plain binary search.
//!
//! The ideas are those of LevelDB's and RocksDB's block-based tables, and of Bigtable's (OSDI 2006, section 5.3).

mod block;
mod block_iter;
mod bloom;
mod builder;
mod format;
mod iter;
mod reader;

pub(crate) use block::Block;
pub(crate) use builder::{TableBuilder, TableOptions};
pub(crate) use iter::RunIter;
pub(crate) use reader::{Table, TableContext};

use crate::types::SeqNo;

/// What the manifest knows about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl TableMeta {
    /// True if the table may hold keys of the closed range.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.smallest_key.as_slice() <= largest && self.largest_key.as_slice() >= smallest
    }
}
