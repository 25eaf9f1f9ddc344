//! The record log: the file format under the write-ahead log and under the manifest.
//!
//! ```text
//! file   := header record*
//! header := magic 8 | format version u32 | file number u64 | crc32c u32 of the 20 bytes before
//! record := mark u8, kind u8 | header crc32c u32 | payload crc32c u32 | payload length varint | unsynced varint | tag step varint
//!           | payload
//! ```
//!
//! All numbers are little-endian. The record header's crc covers the kind, what follows it up to the payload, the file
//! number and the record's offset, so that a record of another file or place is never taken for one of this, not even where a value
//! consists of the bytes of a log. The kind says whether the payload is compressed: long ones are, as a large value costs
//! the disk twice what compressing it costs (as fjall does). A tag is given as the step from the tag of the
//! record before, the first from 0. Small numbers are what a log of small writes consists of: with these a record of
//! one write has 13 to 18 bytes beside it.
//!
//! **Torn tail or corruption?** A crash may tear what was written after the last sync, and only that. So each record
//! carries `unsynced`: how many bytes before it no sync had covered yet when it was written. When the
//! reader meets bytes at offset `x` that are no record, it looks through the rest of the file for a record header
//! that has more than that between `x` and itself. If there is one, the bytes at `x` had been on stable storage and are
//! damaged: an error that names file and offset. If there is none, it is a torn tail and the log ends at `x` (rule D3).
//! What this cannot see is damage in the last synced stretch when nothing was written after it; the manifest therefore
//! follows each synced edit with an empty record, and a log of writes says first how far the one before was synced.
//!
//! A log may be made as long as it is going to be when it is created: its end is then zeros, which are no record. A log
//! that is followed by another was cut to its records before; that is durable as soon as a record of the other one
//! says that something of its own file is (`db/sealed.rs`).

mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use reader::LogReader;
pub(crate) use writer::LogWriter;

/// Version of the log format.
const FORMAT_VERSION: u32 = 3;
/// Length of the file header.
pub(crate) const HEADER_BYTES: usize = 24;
/// The first byte of each record.
const MARK: u8 = 0xd5;
/// The second byte of a record whose payload is as it is.
const RAW: u8 = 0xec;
/// The second byte of a record whose payload is the length of another (u32), and that one compressed by LZ4.
const LZ4: u8 = 0xed;
/// Length of the mark, and of the header's crc after it, which covers what follows.
const COVERED_AT: usize = 2 + 4;

/// What a log is for; decides the magic bytes of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogKind {
    Wal,
    Manifest,
}

impl LogKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Wal => b"LNDBWAL\n",
            Self::Manifest => b"LNDBMAN\n",
        }
    }
}

fn record_header_crc(kind: u8, header: &[u8], number: u64, offset: u64) -> u32 {
    let mut place = [kind; 17];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8..16].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(header), &place)
}
