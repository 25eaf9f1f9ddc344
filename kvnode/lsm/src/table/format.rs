//! The fixed parts of a table file: header, part trailer, footer. See the parent module for the layout.

use crate::coding::{put_varint, take_varint, u32_at, u64_at};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// Version of the format.
pub(super) const FORMAT_VERSION: u32 = 3;
pub(super) const HEADER_MAGIC: &[u8; 8] = b"LNDBSST\n";
pub(super) const FOOTER_MAGIC: &[u8; 8] = b"\x8fLNDBend";
pub(super) const HEADER_BYTES: usize = 16;
/// Five handles of 12 bytes, the number of data blocks, a checksum, the magic bytes.
pub(super) const FOOTER_BYTES: usize = 76;
/// Kind and checksum behind each part.
pub(super) const PART_TRAILER_BYTES: usize = 5;

/// How the bytes of a part are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    Raw = 0,
    Lz4 = 1,
    Zstd = 2,
}

impl PartKind {
    pub fn decode(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Where a part is: offset and length without its trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Handle {
    pub offset: u64,
    pub length: u32,
}

impl Handle {
    pub fn encode(self, bytes: &mut Vec<u8>) {
        put_varint(bytes, self.offset);
        put_varint(bytes, u64::from(self.length));
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let offset = take_varint(&mut bytes)?;
        let length = u32::try_from(take_varint(&mut bytes)?).ok()?;
        bytes.is_empty().then_some(Self { offset, length })
    }
}

pub(super) fn part_crc(bytes: &[u8], kind: u8, offset: u64) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(bytes), &[kind]);
    crc32c::crc32c_append(crc, &offset.to_le_bytes())
}

pub(super) fn encode_header(magic: &[u8; 8], version: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Refuses a file that does not begin as it should.
pub(super) fn check_header(map: &[u8], path: &Path, magic: &[u8; 8], version: u32) -> Result<()> {
    let body = map.get(..12).filter(|body| body.starts_with(magic));
    if body.is_none_or(|body| u32_at(map, 12) != Some(crc32c::crc32c(body))) {
        let what = "magic bytes or checksum do not match";
        return Err(Error::corruption(path, "header", 0, what));
    }
    match u32_at(map, 8).unwrap_or(0) {
        found if found == version => Ok(()),
        found => Err(Error::UnsupportedFormat {
            file: path.to_owned(),
            found,
            supported: version,
        }),
    }
}

/// Where a part lies, if it and the trailer behind it lie within the file.
pub(super) fn part_range(map: &[u8], handle: Handle) -> Option<Range<usize>> {
    let start = usize::try_from(handle.offset).ok()?;
    let end = start.checked_add(handle.length as usize)?;
    (end.checked_add(PART_TRAILER_BYTES)? <= map.len()).then_some(start..end)
}

/// Where a part lies, and its kind, if it is what its checksum says.
pub(super) fn verify_part(
    map: &[u8],
    handle: Handle,
) -> Result<(Range<usize>, PartKind), &'static str> {
    let range = part_range(map, handle).ok_or("handle points outside of the file")?;
    let kind = map[range.end];
    if u32_at(map, range.end + 1) != Some(part_crc(&map[range.clone()], kind, handle.offset)) {
        return Err("contents do not match their checksum");
    }
    Ok((range, PartKind::decode(kind).ok_or("unknown kind of part")?))
}

/// The last bytes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub filter: Handle,
    /// Checksums of the filter's pages.
    pub checks: Handle,
    pub properties: Handle,
    pub ranges: Handle,
    /// The top of the index.
    pub index: Handle,
    pub block_count: u32,
}

impl Footer {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        let handles = [
            self.filter,
            self.checks,
            self.properties,
            self.ranges,
            self.index,
        ];
        for handle in handles {
            bytes.extend_from_slice(&handle.offset.to_le_bytes());
            bytes.extend_from_slice(&handle.length.to_le_bytes());
        }
        bytes.extend_from_slice(&self.block_count.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(FOOTER_MAGIC);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() != FOOTER_BYTES || !bytes.ends_with(FOOTER_MAGIC) {
            return Err("the footer's magic bytes are not there");
        }
        let body = bytes.len() - 12;
        if u32_at(bytes, body) != Some(crc32c::crc32c(&bytes[..body])) {
            return Err("the footer does not match its checksum");
        }
        let handle = |at: usize| {
            Some(Handle {
                offset: u64_at(bytes, 12 * at)?,
                length: u32_at(bytes, 12 * at + 8)?,
            })
        };
        let decoded = || {
            Some(Self {
                filter: handle(0)?,
                checks: handle(1)?,
                properties: handle(2)?,
                ranges: handle(3)?,
                index: handle(4)?,
                block_count: u32_at(bytes, body - 4)?,
            })
        };
        decoded().ok_or("the footer is too short")
    }
}
