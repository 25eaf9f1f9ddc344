//! Where large values go while tables are written.

use super::rewrite::{BLOB_TABLES_MOVED, Output};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::table::blob::{BlobPointer, BlobWriter};
use crate::types::Trailer;

/// Writes blob files, one after the other. A file may serve several tables of one job.
pub(super) struct Blobs<'a, 'o> {
    output: &'a Output<'o>,
    current: Option<BlobWriter>,
    finished_bytes: u64,
    /// Bytes of records that were copied from other blob files.
    pub bytes_moved: u64,
    /// Of the files written.
    pub numbers: Vec<u64>,
}

impl<'a, 'o> Blobs<'a, 'o> {
    pub fn new(output: &'a Output<'o>) -> Self {
        Self {
            output,
            current: None,
            finished_bytes: 0,
            bytes_moved: 0,
            numbers: Vec::new(),
        }
    }

    /// True if a value of this length is to lie apart.
    pub fn takes(&self, value: &[u8]) -> bool {
        let min = self.output.blob_value_bytes_min;
        min > 0 && value.len() >= min
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.finished_bytes + self.current.as_ref().map_or(0, BlobWriter::bytes)
    }

    /// The file to write to: a new one if the current one is full.
    fn writer(&mut self) -> Result<&mut BlobWriter> {
        let output = self.output;
        let writer = match self.current.take() {
            Some(writer) if writer.bytes() < output.table_bytes => writer,
            full => {
                if let Some(full) = full {
                    self.finished_bytes += full.finish()?;
                }
                let number = (output.allocate)();
                self.numbers.push(number);
                let path = FileName::Blob(number).path(output.dir);
                let compression = output.options.compression_later;
                BlobWriter::create(output.vfs, &path, number, compression)?
            }
        };
        Ok(self.current.insert(writer))
    }

    /// Writes a value.
    pub fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<BlobPointer> {
        self.writer()?.add(key, trailer, value)
    }

    /// What an entry is to point to that points to a blob now: the same, or its copy, if its file is to go.
    pub fn follow(&mut self, pointer: &[u8]) -> Result<BlobPointer> {
        let Some(pointer) = BlobPointer::decode(pointer) else {
            let what = "an entry has a malformed pointer to a blob";
            return Err(Error::corruption(self.output.dir, "table", 0, what));
        };
        let Some(file) = (self.output.stale_blob)(pointer.file) else {
            return Ok(pointer);
        };
        if self.bytes_moved >= BLOB_TABLES_MOVED.saturating_mul(self.output.table_bytes) {
            return Ok(pointer);
        }
        self.bytes_moved += pointer.stored_bytes();
        self.writer()?.copy(file, pointer)
    }

    /// Ends the last file. Returns the bytes of all of them.
    pub fn finish(&mut self) -> Result<u64> {
        if let Some(last) = self.current.take() {
            self.finished_bytes += last.finish()?;
        }
        Ok(self.finished_bytes)
    }
}
