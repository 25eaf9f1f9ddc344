//! Blob files: large values, apart from the tree.
//!
//! A compaction rewrites what it merges. For a value of 64 KiB that is the whole cost, and its key, which is all that
//! merging needs, a thousandth of it. So the flush puts such a value into a blob file, and into the table a
//! [`BlobPointer`] to it; compactions then move pointers (WiscKey, FAST 2016; RocksDB's BlobDB).
//!
//! ```text
//! blob file := header record* footer
//! header    := magic 8 | format version u32 | crc32c u32 of the 12 bytes before
//! record    := part                    (of a table: bytes | kind u8 | crc32c u32)
//! footer    := number of records u32 | length of the file u64 | crc32c u32 of the bytes before | magic 8
//! ```
//!
//! A record is a block with one entry, the value under its key: compressed and verified as any block is, cached with
//! more restraint ([`Keep`]), and whoever follows a pointer sees whether it leads to the right key.
//!
//! **Garbage.** The manifest says of each table how many bytes of which blob files it points to ([`BlobUse`]); each
//! record has at most one pointer in the tables of a version. So what is alive of a file is a sum over the tables that
//! are there, and nothing is counted that could be miscounted. A file that no table points to any more is removed
//! with the last table that did. From files that are mostly garbage compactions copy what they meet, so that these can
//! go; `compaction::garbage` says which, and when one is made for the purpose. What lies in small files they copy, too,
//! or there would be ever more of them.

mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod writer;

pub(crate) use file::BlobFile;
pub(crate) use writer::BlobWriter;

use super::format::{Handle, PART_TRAILER_BYTES, encode_header};
use crate::coding::{put_varint, take_varint, u32_at, u64_at};
use crate::error::Result;
use crate::slice::Slice;
use std::sync::Arc;

const FORMAT_VERSION: u32 = 1;
const HEADER_MAGIC: &[u8; 8] = b"LNDBBLB\n";
const FOOTER_MAGIC: &[u8; 8] = b"\x8fLNDBblb";
const FOOTER_BYTES: usize = 24;

/// Where a large value is. The value of an entry of kind [`Kind::Blob`](crate::types::Kind::Blob).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobPointer {
    /// Number of the blob file.
    pub file: u64,
    /// Number of the record in it.
    ordinal: u32,
    handle: Handle,
    /// Length of the value.
    pub value_bytes: u32,
}

impl BlobPointer {
    /// Five varints: file, record, offset, length of the record's bytes, length of the value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        put_varint(bytes, self.file);
        put_varint(bytes, u64::from(self.ordinal));
        put_varint(bytes, self.handle.offset);
        put_varint(bytes, u64::from(self.handle.length));
        put_varint(bytes, u64::from(self.value_bytes));
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        let pointer = Self {
            file: take_varint(input)?,
            ordinal: u32::try_from(take_varint(input)?).ok()?,
            handle: Handle {
                offset: take_varint(input)?,
                length: u32::try_from(take_varint(input)?).ok()?,
            },
            value_bytes: u32::try_from(take_varint(input)?).ok()?,
        };
        bytes.is_empty().then_some(pointer)
    }

    /// Bytes of the file that the record takes.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.handle.length) + PART_TRAILER_BYTES as u64
    }
}

/// How many bytes of a blob file a table points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobUse {
    /// Number of the file.
    pub file: u64,
    pub bytes: u64,
}

/// When a value that had to be decompressed goes into the block cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// A compaction looks at everything once.
    Never,
    /// If nothing has to go for it: a walk must not take the place of what is used again.
    IfRoom,
    /// If nothing has to go for it, or if it was read like this before. To put one there that is not used again costs
    /// more than to decompress it once more. (A doorkeeper, as TinyLFU's: ACM ToS 13(4), 2017.)
    IfReadTwice,
}

/// The value of an entry: in its place, or in a blob file.
pub(crate) enum Value {
    Here(Slice),
    Blob(Arc<BlobFile>, BlobPointer),
}

impl Value {
    /// The bytes.
    pub fn read(self, user_key: &[u8], keep: Keep) -> Result<Slice> {
        match self {
            Self::Here(slice) => Ok(slice),
            Self::Blob(file, pointer) => file.get(user_key, pointer, keep),
        }
    }
}

fn header() -> [u8; super::format::HEADER_BYTES] {
    encode_header(HEADER_MAGIC, FORMAT_VERSION)
}

fn encode_footer(records: u32, file_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FOOTER_BYTES);
    bytes.extend_from_slice(&records.to_le_bytes());
    bytes.extend_from_slice(&file_bytes.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes.extend_from_slice(FOOTER_MAGIC);
    bytes
}

/// Number of records, of a file of this length whose last bytes these are.
fn decode_footer(bytes: &[u8], file_bytes: u64) -> Result<u32, &'static str> {
    if bytes.len() != FOOTER_BYTES || !bytes.ends_with(FOOTER_MAGIC) {
        return Err("the footer's magic bytes are not there");
    }
    if u32_at(bytes, 12) != Some(crc32c::crc32c(&bytes[..12])) {
        return Err("the footer does not match its checksum");
    }
    if u64_at(bytes, 4) != Some(file_bytes) {
        return Err("the file does not have the length that the footer says");
    }
    u32_at(bytes, 0).ok_or("the footer is too short")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pointers_come_back_and_any_bytes_are_read_without_a_panic(
            file: u64, ordinal: u32, offset: u64, length: u32, value_bytes: u32, mut bytes: Vec<u8>,
        ) {
            let pointer = BlobPointer { file, ordinal, handle: Handle { offset, length }, value_bytes };
            let mut encoded = Vec::new();
            pointer.encode(&mut encoded);
            prop_assert_eq!(BlobPointer::decode(&encoded), Some(pointer));
            encoded.push(0);
            prop_assert_eq!(BlobPointer::decode(&encoded), None);
            let _ = BlobPointer::decode(&bytes);
            let length = bytes.len() as u64;
            bytes.extend_from_slice(&encode_footer(ordinal, length));
            prop_assert_eq!(decode_footer(&bytes[length as usize..], length), Ok(ordinal));
            prop_assert!(decode_footer(&bytes[length as usize..], length + 1).is_err());
        }
    }
}
