//! The decoders of blob files.

use super::super::format::{HEADER_BYTES, Handle, PART_TRAILER_BYTES};
use super::file::value_range;
use super::{BlobFile, BlobPointer, FOOTER_BYTES, Keep};
use crate::table::TableContext;
use std::path::Path;
use std::sync::Arc;

/// Decodes a pointer, and the value in a record.
pub(crate) fn decode(bytes: &[u8]) {
    if let Some(pointer) = BlobPointer::decode(bytes) {
        let mut again = Vec::new();
        pointer.encode(&mut again);
        assert_eq!(BlobPointer::decode(&again), Some(pointer));
    }
    if let Ok(range) = value_range(bytes, b"key") {
        let _ = &bytes[range];
    }
}

/// Opens a file with these bytes, and follows pointers into it.
pub(crate) fn file(context: &Arc<TableContext>, path: &Path, bytes: u64) {
    let Ok(file) = BlobFile::open(context, path, 1) else {
        return;
    };
    assert_eq!(file.bytes(), bytes);
    let around = HEADER_BYTES + FOOTER_BYTES + PART_TRAILER_BYTES;
    for (ordinal, offset, length) in [
        (0, HEADER_BYTES as u64, bytes.saturating_sub(around as u64)),
        (1, HEADER_BYTES as u64, 10),
        (0, u64::MAX, u64::from(u32::MAX)),
    ] {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let pointer = BlobPointer {
            file: 1,
            ordinal,
            handle: Handle { offset, length },
            value_bytes: length,
        };
        let _ = file.get(b"key", pointer, Keep::IfReadTwice);
        let _ = file.record(pointer);
    }
}
