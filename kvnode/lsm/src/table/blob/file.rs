//! Reading a blob file.

use super::super::block::{Block, BlockView, Malformed};
use super::super::block_file::{BlockFile, TableContext};
use super::super::format::{HEADER_BYTES, Handle, PartKind, check_header, verify_part};
use super::super::marks::Marks;
use super::{BlobPointer, FOOTER_BYTES, FORMAT_VERSION, HEADER_MAGIC, Keep, decode_footer};
use crate::error::{Error, Result};
use crate::slice::Slice;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A block of one entry has no more than this beside key and value.
const BLOCK_FRAME_BYTES: usize = 64;

/// An open blob file.
pub(crate) struct BlobFile {
    pub number: u64,
    file: BlockFile,
    /// Records that were read, and not put into the cache.
    read_once: Marks,
}

impl BlobFile {
    /// Maps the file and verifies its ends; records are verified as they are read.
    pub fn open(context: &Arc<TableContext>, path: &Path, number: u64) -> Result<Self> {
        let map = BlockFile::map(&*context.vfs, path)?;
        let corrupt = |part, offset, what: &str| Err(Error::corruption(path, part, offset, what));
        let Some(footer_at) = map.len().checked_sub(FOOTER_BYTES) else {
            return corrupt("file", 0, "too short for a blob file");
        };
        check_header(&map, path, HEADER_MAGIC, FORMAT_VERSION)?;
        let records = match decode_footer(&map[footer_at..], map.len() as u64) {
            Ok(records) => records as usize,
            Err(what) => return corrupt("footer", footer_at as u64, what),
        };
        if records > footer_at {
            return corrupt("footer", footer_at as u64, "more records than bytes");
        }
        Ok(Self {
            number,
            file: BlockFile::new(context, path, map, "blob", records),
            read_once: Marks::new(records),
        })
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.file.map.len() as u64
    }

    /// The part of [`Self::bytes`] that records take.
    pub fn record_bytes(&self) -> u64 {
        self.bytes() - (HEADER_BYTES + FOOTER_BYTES) as u64
    }

    /// The file may go when the last reader has gone. To be called after the edit that drops its last table is
    /// durable.
    pub fn mark_obsolete(&self) {
        self.file.mark_obsolete();
    }

    fn check(&self, pointer: BlobPointer) -> Result<()> {
        match (pointer.ordinal as usize) < self.file.block_count() && pointer.file == self.number {
            true => Ok(()),
            false => Err(self.wrong(pointer.handle, "a pointer leads outside of the file")),
        }
    }

    fn wrong(&self, handle: Handle, what: &'static str) -> Error {
        self.file.error(handle, Malformed(what))
    }

    /// The value of a key that a table points to.
    pub fn get(&self, user_key: &[u8], pointer: BlobPointer, keep: Keep) -> Result<Slice> {
        self.check(pointer)?;
        let (ordinal, handle) = (pointer.ordinal as usize, pointer.handle);
        let find = |bytes: &[u8]| {
            let range = value_range(bytes, user_key);
            range.map_err(|error| self.file.error(handle, error))
        };
        let found_in = |block: &Block| Ok(block.slice(find(block.view().bytes)?).into());
        if let Some(Some(cached)) = self.file.cached(ordinal).as_deref() {
            return found_in(&cached.block);
        }
        if let Some(range) = self.file.raw(ordinal, handle)? {
            let value = find(&self.file.map[range.clone()])?;
            let value = range.start + value.start..range.start + value.end;
            return Ok(self.file.map.slice(value).into());
        }
        let bytes = pointer.value_bytes as usize + user_key.len() + BLOCK_FRAME_BYTES;
        let has_room = || self.file.context.cache.has_room(bytes);
        let keep = match keep {
            Keep::Never => false,
            Keep::IfRoom => has_room(),
            Keep::IfReadTwice => has_room() || self.read_once.every_second(ordinal),
        };
        found_in(&self.file.fetch(ordinal, handle, keep)?)
    }

    /// The bytes of a record as they are stored, verified.
    pub(super) fn record(&self, pointer: BlobPointer) -> Result<(&[u8], PartKind)> {
        self.check(pointer)?;
        let verified = verify_part(&self.file.map, pointer.handle);
        let (range, kind) = verified.map_err(|what| self.wrong(pointer.handle, what))?;
        Ok((&self.file.map[range], kind))
    }
}

/// Where the value is in the block that a record is.
pub(super) fn value_range(block: &[u8], user_key: &[u8]) -> Result<Range<usize>, Malformed> {
    let view = BlockView::new(block)?;
    let entry = view.entry(view.restart(0)?)?;
    match entry.shared == 0 && view.bytes[entry.suffix] == *user_key {
        true => Ok(entry.value),
        false => Err(Malformed("a pointer leads to the value of another key")),
    }
}
