//! Writing a blob file.

use super::super::block::BlockBuilder;
use super::super::compression::compress;
use super::super::format::{Handle, PartKind};
use super::super::part_writer::PartWriter;
use super::{BlobFile, BlobPointer, encode_footer, header};
use crate::error::Result;
use crate::options::Compression;
use crate::types::Trailer;
use crate::vfs::Vfs;
use std::path::Path;

/// Writes one blob file.
pub(crate) struct BlobWriter {
    number: u64,
    parts: PartWriter,
    compression: Compression,
    records: u32,
    block: BlockBuilder,
    compressed: Vec<u8>,
}

impl BlobWriter {
    /// Creates the file.
    pub fn create(
        vfs: &dyn Vfs,
        path: &Path,
        number: u64,
        compression: Compression,
    ) -> Result<Self> {
        Ok(Self {
            number,
            parts: PartWriter::create(vfs, path, &header())?,
            compression,
            records: 0,
            block: BlockBuilder::new(1),
            compressed: Vec::new(),
        })
    }

    /// Length of the file so far.
    pub fn bytes(&self) -> u64 {
        self.parts.offset()
    }

    /// Writes the value of an entry.
    pub fn add(&mut self, user_key: &[u8], trailer: Trailer, value: &[u8]) -> Result<BlobPointer> {
        self.block.clear();
        self.block.add(user_key, trailer, value);
        let raw = self.block.finish();
        let (kind, length) = compress(self.compression, raw, &mut self.compressed);
        let handle = match kind {
            PartKind::Raw => self.parts.write_part(raw, kind)?,
            _ => self.parts.write_part(&self.compressed[..length], kind)?,
        };
        // The engine refuses values that do not fit 32 bits.
        Ok(self.pointer(handle, value.len() as u32))
    }

    /// Copies a record from another file, as it is.
    pub fn copy(&mut self, from: &BlobFile, pointer: BlobPointer) -> Result<BlobPointer> {
        let (bytes, kind) = from.record(pointer)?;
        let handle = self.parts.write_part(bytes, kind)?;
        Ok(self.pointer(handle, pointer.value_bytes))
    }

    fn pointer(&mut self, handle: Handle, value_bytes: u32) -> BlobPointer {
        self.records += 1;
        BlobPointer {
            file: self.number,
            ordinal: self.records - 1,
            handle,
            value_bytes,
        }
    }

    /// Writes the rest and syncs the file. Its name is durable only after a sync of the folder. Returns its length.
    pub fn finish(self) -> Result<u64> {
        let file_bytes = self.parts.offset() + super::FOOTER_BYTES as u64;
        self.parts.finish(&encode_footer(self.records, file_bytes))
    }
}
