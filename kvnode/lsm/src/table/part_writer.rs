//! [`PartWriter`]: appends parts to a new file, table or blob file, and knows where each lies.

use super::format::{Handle, PART_TRAILER_BYTES, PartKind, part_crc};
use crate::error::{Error, Result};
use crate::vfs::{Vfs, WritableFile};
use std::path::{Path, PathBuf};

/// Bytes collected before they are handed to the file system.
const WRITE_BYTES: usize = 256 << 10;

/// After so many bytes the system is asked to begin writing them (RocksDB: `bytes_per_sync`).
const WRITEBACK_BYTES: u64 = 4 << 20;

/// A file being written from its beginning to its end. Nothing is durable before [`Self::finish`].
pub(super) struct PartWriter {
    file: Box<dyn WritableFile>,
    path: PathBuf,
    buffer: Vec<u8>,
    offset: u64,
    /// The system was asked to write what is before.
    begun: u64,
}

impl PartWriter {
    /// Creates the file; `header` are its first bytes.
    pub fn create(vfs: &dyn Vfs, path: &Path, header: &[u8]) -> Result<Self> {
        let file = vfs
            .create(path)
            .map_err(|error| Error::io("create", path, error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            buffer: header.to_vec(),
            offset: header.len() as u64,
            begun: 0,
        })
    }

    /// Length of the file so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes a part: the bytes, their kind, their checksum.
    pub fn write_part(&mut self, bytes: &[u8], kind: PartKind) -> Result<Handle> {
        let crc = part_crc(bytes, kind as u8, self.offset).to_le_bytes();
        let handle = self.write_unchecked(bytes)?;
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(&crc);
        self.offset += PART_TRAILER_BYTES as u64;
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out()?;
            if self.offset - self.begun >= WRITEBACK_BYTES {
                self.begun = self.offset;
                let asked = self.file.begin_writeback();
                asked.map_err(|error| Error::io("write", &self.path, error))?;
            }
        }
        Ok(handle)
    }

    /// Writes bytes whose checksums lie elsewhere.
    pub fn write_unchecked(&mut self, bytes: &[u8]) -> Result<Handle> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge {
            what: "table part",
            bytes: bytes.len() as u64,
            bytes_max: u64::from(u32::MAX),
        })?;
        let handle = Handle {
            offset: self.offset,
            length,
        };
        self.buffer.extend_from_slice(bytes);
        self.offset += bytes.len() as u64;
        Ok(handle)
    }

    fn write_out(&mut self) -> Result<()> {
        self.file
            .append(&self.buffer)
            .map_err(|error| Error::io("write", &self.path, error))?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest and the footer, and syncs the file; its name is durable only after a sync of the folder.
    /// Returns the length of the file.
    pub fn finish(mut self, footer: &[u8]) -> Result<u64> {
        self.write_unchecked(footer)?;
        self.write_out()?;
        self.file
            .sync()
            .map_err(|error| Error::io("sync", &self.path, error))?;
        Ok(self.offset)
    }
}
