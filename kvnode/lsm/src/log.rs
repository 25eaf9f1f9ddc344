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
//! follows each synced edit with an empty record.
//!
//! A log may be made as long as it is going to be when it is created: its end is then zeros, which are no record. A log
//! that is followed by another was cut to its records before; that is durable as soon as a record of the other one
//! says that something of its own file is (`db/sealed.rs`).

use crate::coding::{put_varint, take_bytes, take_length, take_varint, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::options::Compression;
use crate::table::{PartKind, compress, decompress};
use crate::vfs::{Vfs, WritableFile};
use bytes::Bytes;
use std::ops::Range;
use std::path::{Path, PathBuf};

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
/// No longer payload is compressed: a reader must be able to hold it.
const COMPRESSED_BYTES_MAX: usize = 64 << 20;
/// After a payload for which it was not worth while, so many are not tried.
const TRIES_SKIPPED: u32 = 15;
/// A buffer that is larger than this is not kept: one huge batch must not pin its size for ever.
const BUFFER_BYTES_MAX: usize = 4 << 20;

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

/// Appends records to one log file.
pub(crate) struct LogWriter {
    file: Box<dyn WritableFile>,
    path: PathBuf,
    number: u64,
    offset: u64,
    synced: u64,
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
        Ok(())
    }

    /// Ends the log: cuts the file to its records. If it [is synced](Self::is_synced) then, all of that is durable.
    pub fn seal(&mut self, vfs: &dyn Vfs) -> Result<()> {
        if self.reserved > self.offset {
            vfs.truncate(&self.path, self.offset)
                .map_err(|error| Error::io("truncate", &self.path, error))?;
            // Nor is its new length.
            self.synced = 0;
        }
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

    /// True if everything written is known to be durable.
    pub fn is_synced(&self) -> bool {
        self.synced == self.offset
    }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vfs::SimVfs;

    fn write(records: &[(&[u8], bool)]) -> (SimVfs, PathBuf) {
        let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
        let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
        log.compress_from(300);
        for (index, (payload, sync)) in records.iter().enumerate() {
            log.append(index as u64, &[payload]).unwrap();
            if *sync {
                log.sync().unwrap();
            }
        }
        (vfs, path)
    }

    fn read(vfs: &SimVfs, path: &Path) -> Result<(Vec<Vec<u8>>, bool)> {
        let mut reader = LogReader::open(vfs, path, LogKind::Wal, 1)?;
        let mut payloads = Vec::new();
        while let Some(record) = reader.next()? {
            assert_eq!(record.tag, payloads.len() as u64);
            payloads.push(record.payload.to_vec());
        }
        Ok((payloads, reader.is_torn()))
    }

    #[test]
    fn records_come_back() {
        let (vfs, path) = write(&[(b"one", false), (b"", true), (b"three", false)]);
        let expected = vec![b"one".to_vec(), b"".to_vec(), b"three".to_vec()];
        assert_eq!(read(&vfs, &path).unwrap(), (expected, false));
    }

    #[test]
    fn a_log_of_small_writes_is_little_more_than_the_writes() {
        let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
        let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
        // The first tag, the longest step, a step back.
        let tags = [1 << 40, (1 << 40) + 1, u64::MAX, 0, 7];
        let written = tags.map(|tag| log.append(tag, &[&[b'v'; 120]]).unwrap() - 120);
        assert_eq!(written, [18, 14, 23, 14, 14]);
        let mut reader = LogReader::open(&vfs, &path, LogKind::Wal, 1).unwrap();
        let read = tags.map(|_| reader.next().unwrap().unwrap().tag);
        assert_eq!(read, tags);
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn any_flip_is_cut_off_or_named() {
        let records: [(&[u8], bool); 4] = [
            (b"first", true),
            (&[7; 300], true),
            (&[8; 400], false),
            (b"fourth", false),
        ];
        let second_end = write(&records[..2]).0.used();
        assert!(second_end < 300, "it was not compressed");
        let length = write(&records).0.used();
        // The kinds of a record differ in the lowest bit.
        for (offset, mask) in (0..length).flat_map(|offset| [(offset, 0x40), (offset, 1)]) {
            let (vfs, path) = write(&records);
            vfs.corrupt(&path, offset, mask).unwrap();
            let result = read(&vfs, &path);
            if offset < second_end {
                assert!(
                    result.unwrap_err().is_corruption(),
                    "offset {offset} had been synced"
                );
            } else {
                let (payloads, torn) = result.unwrap();
                assert!(
                    torn && (2..4).contains(&payloads.len()),
                    "offset {offset} was never synced"
                );
            }
        }
    }

    #[test]
    fn long_payloads_are_compressed_where_that_makes_them_shorter() {
        let mut random = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        })
        .take(1000)
        .collect();
        let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
        let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
        log.compress_from(500);
        let mut payloads = vec![vec![7; 499], vec![7; 500], noise];
        payloads.resize(payloads.len() + TRIES_SKIPPED as usize + 1, vec![7; 1000]);
        let mut shorter = Vec::new();
        for payload in &payloads {
            // The leader's batch, and a follower's.
            let (leader, follower) = payload.split_at(payload.len() / 3);
            let written = log.append(0, &[leader, follower]).unwrap();
            shorter.push(written < payload.len() as u64);
        }
        let mut expected = vec![false, true, false];
        expected.resize(3 + TRIES_SKIPPED as usize, false);
        expected.push(true);
        assert_eq!(shorter, expected);
        let mut reader = LogReader::open(&vfs, &path, LogKind::Wal, 1).unwrap();
        for payload in &payloads {
            assert_eq!(reader.next().unwrap().unwrap().payload, payload);
        }
        assert!(reader.next().unwrap().is_none() && !reader.is_torn());
    }

    #[test]
    fn a_reserved_log_ends_where_its_records_end() {
        let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
        let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 1000).unwrap();
        log.append(0, &[b"first"]).unwrap();
        log.sync().unwrap();
        assert_eq!(vfs.map(&path).unwrap().len(), 1000);
        assert_eq!(read(&vfs, &path).unwrap(), (vec![b"first".to_vec()], true));
        log.append(1, &[b"second"]).unwrap();
        log.seal(&vfs).unwrap();
        assert!(!log.is_synced());
        log.sync().unwrap();
        assert_eq!(vfs.map(&path).unwrap().len() as u64, log.len());
        let records = vec![b"first".to_vec(), b"second".to_vec()];
        assert_eq!(read(&vfs, &path).unwrap(), (records, false));
    }

    #[test]
    fn the_bytes_of_another_log_in_a_value_prove_nothing() {
        let (other, path) = write(&[(b"one", true), (b"two", true), (b"three", true)]);
        let value = other.read(&path).unwrap();
        let (vfs, path) = write(&[(&[b'v'; 100], true), (&value, false)]);
        vfs.truncate(&path, vfs.used() - 1).unwrap();
        let kept = vec![vec![b'v'; 100]];
        assert_eq!(read(&vfs, &path).unwrap(), (kept, true));
    }

    #[test]
    fn any_truncation_is_a_torn_tail() {
        let (vfs, path) = write(&[(b"first", false), (b"second", false)]);
        for length in (0..vfs.used()).rev() {
            vfs.truncate(&path, length).unwrap();
            assert!(read(&vfs, &path).unwrap().0.len() < 2);
        }
    }
}
