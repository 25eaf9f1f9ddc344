//! Compressing blocks, and getting them back.
//!
//! The state that zstd works with takes longer to make than a block to decompress, so each thread that has read or
//! written such a block keeps its own until it ends, beside the budget of the block cache.

use super::format::PartKind;
use crate::coding::u32_at;
use crate::options::Compression;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// Largest block a file may claim to decompress to: a key, a value and the rest of a block, with room.
const BLOCK_BYTES_MAX: usize = 256 << 20;

const ZSTD_LEVEL: i32 = 3;

thread_local! {
    static ZSTD_COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static ZSTD_DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses into a buffer; `None` if that fails.
fn compress_zstd(raw: &[u8], buffer: &mut [u8]) -> Option<usize> {
    ZSTD_COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(ZSTD_LEVEL).ok()?),
        };
        compressor.compress_to_buffer(raw, buffer).ok()
    })
}

/// Decompresses to at most `bytes_max` bytes; `None` if that fails.
fn decompress_zstd(stored: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    ZSTD_DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new().ok()?),
        };
        decompressor.decompress(stored, bytes_max).ok()
    })
}

/// Puts the compressed form of a block, its length before it, into `buffer`, and says how many bytes it has there;
/// `Raw` if it does not save an eighth.
pub(super) fn compress(
    compression: Compression,
    raw: &[u8],
    buffer: &mut Vec<u8>,
) -> (PartKind, usize) {
    let bound = match compression {
        Compression::None => return (PartKind::Raw, 0),
        Compression::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
        Compression::Zstd => zstd::zstd_safe::compress_bound(raw.len()),
    };
    buffer.resize(4 + bound, 0);
    buffer[..4].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    let (kind, length) = match compression {
        Compression::Zstd => {
            let length = compress_zstd(raw, &mut buffer[4..]);
            (PartKind::Zstd, length)
        }
        _ => {
            let length = lz4_flex::block::compress_into(raw, &mut buffer[4..]);
            (PartKind::Lz4, length.ok())
        }
    };
    match length {
        Some(length) if length + 4 <= raw.len() - raw.len() / 8 => (kind, length + 4),
        _ => (PartKind::Raw, 0),
    }
}

/// The block in a part that is not stored as it is.
pub(super) fn decompress(stored: &[u8], kind: PartKind) -> Result<Vec<u8>, &'static str> {
    let length = u32_at(stored, 0).ok_or("compressed block is too short")? as usize;
    if length > BLOCK_BYTES_MAX {
        return Err("compressed block claims to be too large");
    }
    let stored = &stored[4..];
    let block = match kind {
        PartKind::Raw => return Err("compression kind changed"),
        PartKind::Zstd => decompress_zstd(stored, length),
        PartKind::Lz4 => lz4_flex::block::decompress(stored, length).ok(),
    };
    match block {
        Some(block) if block.len() == length => Ok(block),
        _ => Err("block does not decompress"),
    }
}
