//! The fixed parts of a table file: header, part trailer, footer. See the parent module for the layout.

use crate::coding::{take_varint, u32_at, u64_at};

/// Version of a table without range deletes.
pub(super) const FORMAT_PLAIN: u32 = 1;
/// Version of a table with range deletes.
pub(super) const FORMAT_RANGES: u32 = 2;
pub(super) const HEADER_MAGIC: &[u8; 8] = b"LNDBSST\n";
pub(super) const FOOTER_MAGIC: &[u8; 8] = b"\x8fLNDBend";
pub(super) const HEADER_BYTES: usize = 16;
const FOOTER_BYTES: usize = 52;
const HANDLE_BYTES: usize = 12;

/// Length of the footer in a format version.
pub(super) fn footer_bytes(version: u32) -> usize {
    FOOTER_BYTES
        + if version == FORMAT_PLAIN {
            0
        } else {
            HANDLE_BYTES
        }
}
/// Kind and checksum behind each part.
pub(super) const PART_TRAILER_BYTES: usize = 5;

/// How the bytes of a part are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartKind {
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

pub(super) fn encode_header(version: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(HEADER_MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The last bytes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub filter: Handle,
    pub properties: Handle,
    pub index: Handle,
    /// Range deletes, from version 2 on.
    pub ranges: Option<Handle>,
    pub block_count: u32,
}

impl Footer {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES + HANDLE_BYTES);
        let handles = [self.filter, self.properties, self.index];
        for handle in handles.into_iter().chain(self.ranges) {
            bytes.extend_from_slice(&handle.offset.to_le_bytes());
            bytes.extend_from_slice(&handle.length.to_le_bytes());
        }
        bytes.extend_from_slice(&self.block_count.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(FOOTER_MAGIC);
        bytes
    }

    /// Reads a footer whose length tells its version.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < FOOTER_BYTES || !bytes.ends_with(FOOTER_MAGIC) {
            return Err("the footer's magic bytes are not there");
        }
        let body = bytes.len() - 12;
        if u32_at(bytes, body) != Some(crc32c::crc32c(&bytes[..body])) {
            return Err("the footer does not match its checksum");
        }
        let handle = |at| {
            Some(Handle {
                offset: u64_at(bytes, at)?,
                length: u32_at(bytes, at + 8)?,
            })
        };
        let decoded = || {
            let (filter, properties, index) = (handle(0)?, handle(12)?, handle(24)?);
            Some(Self {
                filter,
                properties,
                index,
                ranges: if bytes.len() > FOOTER_BYTES {
                    Some(handle(36)?)
                } else {
                    None
                },
                block_count: u32_at(bytes, body - 4)?,
            })
        };
        decoded().ok_or("the footer is too short")
    }
}
