//! [`LogReader`]: the records of a file in their order, and where they end.

use super::record_header_crc;
use super::{COVERED_AT, FORMAT_VERSION, HEADER_BYTES, LZ4, LogKind, MARK, RAW};
use crate::coding::{take_bytes, take_length, take_varint, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::table::{PartKind, decompress};
use crate::vfs::Vfs;
use bytes::Bytes;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a record says of itself.
struct RecordHeader {
    is_compressed: bool,
    payload_crc: u32,
    payload_length: usize,
    payload_at: usize,
    /// Up to here the file was synced when the record was written.
    synced: u64,
    tag_step: u64,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub offset: u64,
    pub tag: u64,
    pub payload: &'a [u8],
}

/// Reads the records of one log file in order.
pub(crate) struct LogReader {
    path: PathBuf,
    bytes: Bytes,
    number: u64,
    offset: usize,
    /// Of the last record.
    tag: u64,
    /// The payload of the last record, if it is compressed in the file.
    payload: Vec<u8>,
    torn: bool,
}

impl LogReader {
    /// Opens a log. A file that ends inside its header, or whose header is damaged while nothing in it was ever
    /// synced, is an empty log with a torn tail.
    pub fn open(vfs: &dyn Vfs, path: &Path, kind: LogKind, number: u64) -> Result<Self> {
        let bytes = vfs
            .map(path)
            .map_err(|error| Error::io("read", path, error))?;
        let mut reader = Self {
            path: path.to_owned(),
            bytes,
            number,
            offset: 0,
            tag: 0,
            payload: Vec::new(),
            torn: false,
        };
        let header = reader.bytes.get(..HEADER_BYTES).unwrap_or_default();
        let body = header.get(..HEADER_BYTES - 4).unwrap_or_default();
        if u32_at(header, HEADER_BYTES - 4) != Some(crc32c::crc32c(body)) {
            reader.end_torn("the file header does not match its checksum")?;
            return Ok(reader);
        }
        if !header.starts_with(kind.magic()) || u64_at(header, 12) != Some(number) {
            return Err(Error::corruption(
                path,
                "log header",
                0,
                "magic bytes or file number do not match",
            ));
        }
        match u32_at(header, 8) {
            Some(FORMAT_VERSION) => {}
            found => {
                let found = found.unwrap_or(0);
                return Err(Error::UnsupportedFormat {
                    file: reader.path,
                    found,
                    supported: FORMAT_VERSION,
                });
            }
        }
        reader.offset = HEADER_BYTES;
        Ok(reader)
    }

    /// The next record, or `None` at the end. Damage below a synced offset is an error.
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        if self.torn || self.offset == self.bytes.len() {
            return Ok(None);
        }
        let offset = self.offset;
        let (header, payload) = match self.record_at(offset) {
            Ok(record) => record,
            Err(what) => {
                self.end_torn(what)?;
                return Ok(None);
            }
        };
        self.offset = payload.end;
        self.tag = self.tag.wrapping_add(header.tag_step);
        let mut payload = self.bytes.get(payload).unwrap_or_default();
        if header.is_compressed {
            // Its checksum held, so that no crash has torn it.
            self.payload = decompress(payload, PartKind::Lz4)
                .map_err(|what| Error::corruption(&self.path, "log record", offset as u64, what))?;
            payload = &self.payload;
        }
        let (offset, tag) = (offset as u64, self.tag);
        Ok(Some(Record {
            offset,
            tag,
            payload,
        }))
    }

    /// True once the end was reached and bytes after it had to be given up.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Where the next record is, or the log ends.
    pub fn offset(&self) -> u64 {
        self.offset as u64
    }

    fn record_at(&self, offset: usize) -> Result<(RecordHeader, Range<usize>), &'static str> {
        let header = self.header_at(offset).ok_or("no record header")?;
        let start = header.payload_at;
        let end = start
            .checked_add(header.payload_length)
            .ok_or("record length overflows")?;
        let payload = self
            .bytes
            .get(start..end)
            .ok_or("record ends after the file")?;
        if crc32c::crc32c(payload) != header.payload_crc {
            return Err("record payload does not match its checksum");
        }
        Ok((header, start..end))
    }

    /// The record header at `offset`, if its checksum holds.
    fn header_at(&self, offset: usize) -> Option<RecordHeader> {
        let bytes = self.bytes.get(offset..)?;
        let mut rest = bytes;
        let kind = match take_bytes(&mut rest, 2)? {
            [MARK, kind @ (RAW | LZ4)] => *kind,
            _ => return None,
        };
        let header_crc = u32_at(take_bytes(&mut rest, 4)?, 0)?;
        let payload_crc = u32_at(take_bytes(&mut rest, 4)?, 0)?;
        let payload_length = take_length(&mut rest)?;
        let unsynced = take_varint(&mut rest)?;
        let tag_step = take_varint(&mut rest)?;
        let header_bytes = bytes.len() - rest.len();
        let covered = &bytes[COVERED_AT..header_bytes];
        if record_header_crc(kind, covered, self.number, offset as u64) != header_crc {
            return None;
        }
        Some(RecordHeader {
            is_compressed: kind == LZ4,
            payload_crc,
            payload_length,
            payload_at: offset + header_bytes,
            synced: (offset as u64).checked_sub(unsynced)?,
            tag_step,
        })
    }

    /// Ends the log at the present offset, unless a later record proves that this offset had been synced.
    fn end_torn(&mut self, what: &'static str) -> Result<()> {
        if let Some(synced) = self.synced_past(self.offset as u64) {
            let what = format!("{what}, though the file had been synced up to {synced}");
            return Err(Error::corruption(
                &self.path,
                "log record",
                self.offset as u64,
                what,
            ));
        }
        self.torn = true;
        Ok(())
    }

    /// The offset behind `offset` up to which the file had been synced by the word of a record that follows, if one does.
    pub fn synced_past(&self, offset: u64) -> Option<u64> {
        let from = usize::try_from(offset).ok()?.checked_add(1)?;
        let rest = self.bytes.get(from..)?;
        memchr::memchr_iter(MARK, rest)
            .filter_map(|found| self.header_at(from + found))
            .map(|header| header.synced)
            .find(|synced| *synced > offset)
    }
}
