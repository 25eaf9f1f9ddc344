//! [`LogWriter`]: appends records, and knows what of them is durable.

use super::record_header_crc;
use super::{COVERED_AT, FORMAT_VERSION, HEADER_BYTES, LZ4, LogKind, MARK, RAW};
use crate::coding::put_varint;
use crate::error::{Error, Result};
use crate::options::Compression;
use crate::table::{PartKind, compress};
use crate::vfs::{Vfs, WritableFile};
use std::path::{Path, PathBuf};

/// No longer payload is compressed: a reader must be able to hold it.
const COMPRESSED_BYTES_MAX: usize = 64 << 20;
/// After a payload for which it was not worth while, so many are not tried.
pub(super) const TRIES_SKIPPED: u32 = 15;
/// A buffer that is larger than this is not kept: one huge batch must not pin its size for ever.
const BUFFER_BYTES_MAX: usize = 4 << 20;
/// Of a log that is synced now and then, the system is asked to write so many bytes at a time between the syncs.
const WRITEBACK_BYTES: u64 = 4 << 20;

/// Appends records to one log file.
pub(crate) struct LogWriter {
    file: Box<dyn WritableFile>,
    path: PathBuf,
    number: u64,
    offset: u64,
    synced: u64,
    /// A sync is to be expected, so what is before this is being written meanwhile.
    written_back: Option<u64>,
    reserved: u64,
    /// Of the last record.
    tag: u64,
    buffer: Vec<u8>,
    /// Payloads of this length and more are compressed.
    compressed_from: usize,
    compressed: Vec<u8>,
    /// How many of these are not even tried now.
    skipped: u32,
}

impl LogWriter {
    /// Creates the file, `reserved` bytes long if that is more than it needs, and writes its header. Neither the header
    /// nor the name is durable yet.
    pub fn create(
        vfs: &dyn Vfs,
        path: &Path,
        kind: LogKind,
        number: u64,
        reserved: u64,
    ) -> Result<Self> {
        let mut file = vfs
            .create(path)
            .map_err(|error| Error::io("create", path, error))?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(kind.magic());
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        header.extend_from_slice(&number.to_le_bytes());
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        file.append(&header)
            .map_err(|error| Error::io("write", path, error))?;
        file.reserve(reserved);
        let (path, offset) = (path.to_owned(), HEADER_BYTES as u64);
        Ok(Self {
            file,
            path,
            number,
            offset,
            synced: 0,
            written_back: None,
            reserved,
            tag: 0,
            buffer: Vec::new(),
            compressed_from: usize::MAX,
            compressed: Vec::new(),
            skipped: 0,
        })
    }

    /// From now on payloads of so many bytes and more are compressed, if that saves an eighth.
    pub fn compress_from(&mut self, bytes: usize) {
        self.compressed_from = bytes;
    }

    /// A sync is to be expected; from now on the system begins to write what is appended before it comes.
    pub fn expect_sync(&mut self) {
        self.written_back.get_or_insert(0);
    }

    /// Appends one record made of `parts`, in one write. Returns the bytes written.
    pub fn append(&mut self, tag: u64, parts: &[&[u8]]) -> Result<u64> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length < self.compressed_from || length > COMPRESSED_BYTES_MAX {
            return self.append_record(RAW, tag, parts);
        }
        if let Some(skipped) = self.skipped.checked_sub(1) {
            self.skipped = skipped;
            return self.append_record(RAW, tag, parts);
        }
        let (joined, mut compressed);
        let raw = match parts {
            [part] => part,
            _ => {
                joined = parts.concat();
                joined.as_slice()
            }
        };
        compressed = std::mem::take(&mut self.compressed);
        let written = match compress(Compression::Lz4, raw, &mut compressed) {
            (PartKind::Lz4, length) => self.append_record(LZ4, tag, &[&compressed[..length]]),
            _ => {
                self.skipped = TRIES_SKIPPED;
                self.append_record(RAW, tag, &[raw])
            }
        };
        if compressed.capacity() <= BUFFER_BYTES_MAX {
            self.compressed = compressed;
        }
        written
    }

    fn append_record(&mut self, kind: u8, tag: u64, parts: &[&[u8]]) -> Result<u64> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let payload_length = u32::try_from(length).map_err(|_| Error::TooLarge {
            what: "log record",
            bytes: length as u64,
            bytes_max: u64::from(u32::MAX),
        })?;
        let payload_crc = parts
            .iter()
            .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&[MARK, kind]);
        // For the crc of what follows.
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&payload_crc.to_le_bytes());
        put_varint(buffer, u64::from(payload_length));
        put_varint(buffer, self.offset - self.synced);
        put_varint(buffer, tag.wrapping_sub(self.tag));
        let header_crc = record_header_crc(kind, &buffer[COVERED_AT..], self.number, self.offset);
        buffer[2..COVERED_AT].copy_from_slice(&header_crc.to_le_bytes());
        self.tag = tag;
        for part in parts {
            buffer.extend_from_slice(part);
        }
        self.file
            .append(buffer)
            .map_err(|error| Error::io("write", &self.path, error))?;
        let written = buffer.len() as u64;
        self.offset += written;
        if let Some(begun) = &mut self.written_back
            && self.offset - *begun >= WRITEBACK_BYTES
        {
            *begun = self.offset;
            let asked = self.file.begin_writeback();
            asked.map_err(|error| Error::io("write", &self.path, error))?;
        }
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(written)
    }

    /// Makes all records durable.
    pub fn sync(&mut self) -> Result<()> {
        self.file
            .sync()
            .map_err(|error| Error::io("sync", &self.path, error))?;
        self.synced = self.offset;
        self.written_back = Some(self.offset);
        Ok(())
    }

    /// Ends the log: cuts the file to its records, which a sync makes durable.
    pub fn seal(&mut self, vfs: &dyn Vfs) -> Result<()> {
        if self.reserved > self.offset {
            vfs.truncate(&self.path, self.offset)
                .map_err(|error| Error::io("truncate", &self.path, error))?;
        }
        (self.buffer, self.compressed) = (Vec::new(), Vec::new());
        Ok(())
    }

    /// The number of the file.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of header and records.
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// True if anything of the file, if only its header, is known to be durable. All records from then on say so.
    pub fn was_synced(&self) -> bool {
        self.synced > 0
    }

    /// So many bytes of the file are known to be durable.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// True if everything written is known to be durable.
    pub fn is_synced(&self) -> bool {
        self.synced == self.offset
    }
}
