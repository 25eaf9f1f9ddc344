//! Compressing blocks, and getting them back.
//!
//! LZ4 is the C library: where a value repeats itself within a few bytes (padding, zeros) it copies 8 at a time,
//! `lz4_flex` one, which took nine tenths of the time for a block whose half is such.
//!
//! The state that zstd works with takes longer to make than a block to decompress, so each thread that has read or
//! written such a block keeps its own until it ends, beside the budget of the block cache.

use super::format::PartKind;
use crate::coding::u32_at;
use crate::options::Compression;
use std::cell::RefCell;
use std::ffi::c_int;
use zstd::bulk::{Compressor, Decompressor};

/// Largest block a file may claim to decompress to: a key, a value and the rest of a block, with room.
const BLOCK_BYTES_MAX: usize = 256 << 20;

const ZSTD_LEVEL: i32 = 3;

thread_local! {
    static ZSTD_COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static ZSTD_DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses into a buffer; `None` if that fails.
fn compress_lz4(raw: &[u8], buffer: &mut [u8]) -> Option<usize> {
    let (from, to) = (raw.as_ptr().cast(), buffer.as_mut_ptr().cast());
    let (length, room) = (
        c_int::try_from(raw.len()).ok()?,
        c_int::try_from(buffer.len()).ok()?,
    );
    // SAFETY: reads `length` bytes of `raw` and writes at most `room` bytes of `buffer`, which do not overlap, as one is
    // borrowed for writing; nothing is kept.
    let written = unsafe { lz4_sys::LZ4_compress_default(from, to, length, room) };
    usize::try_from(written).ok().filter(|written| *written > 0)
}

/// Decompresses to at most `bytes_max` bytes; `None` if that fails.
fn decompress_lz4(stored: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    // No byte of input makes more than 255 of output: a claim is not believed before memory is taken for it.
    if bytes_max / 255 > stored.len() {
        return None;
    }
    let mut block = Vec::<u8>::with_capacity(bytes_max);
    let (from, to) = (stored.as_ptr().cast(), block.as_mut_ptr().cast());
    let (length, room) = (
        c_int::try_from(stored.len()).ok()?,
        c_int::try_from(bytes_max).ok()?,
    );
    // SAFETY: whatever the input is, this reads at most `length` bytes of `stored` and writes at most `room` bytes, for
    // which `block` has room; it reads of them only what it has written. They do not overlap: `block` is new.
    let written = unsafe { lz4_sys::LZ4_decompress_safe(from, to, length, room) };
    let written = usize::try_from(written).ok()?;
    debug_assert!(written <= bytes_max);
    // SAFETY: so many bytes have been written from the start on, and there is room for them.
    unsafe { block.set_len(written) };
    Some(block)
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
pub(crate) fn compress(
    compression: Compression,
    raw: &[u8],
    buffer: &mut Vec<u8>,
) -> (PartKind, usize) {
    let bound = match compression {
        Compression::None => return (PartKind::Raw, 0),
        // As `LZ4_COMPRESSBOUND` of lz4.h; what does not fit is stored as it is.
        Compression::Lz4 => raw.len() + raw.len() / 255 + 16,
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
            let length = compress_lz4(raw, &mut buffer[4..]);
            (PartKind::Lz4, length)
        }
    };
    match length {
        Some(length) if length + 4 <= raw.len() - raw.len() / 8 => (kind, length + 4),
        _ => (PartKind::Raw, 0),
    }
}

/// The block in a part that is not stored as it is.
pub(crate) fn decompress(stored: &[u8], kind: PartKind) -> Result<Vec<u8>, &'static str> {
    let length = u32_at(stored, 0).ok_or("compressed block is too short")? as usize;
    if length > BLOCK_BYTES_MAX {
        return Err("compressed block claims to be too large");
    }
    let stored = &stored[4..];
    let block = match kind {
        PartKind::Raw => return Err("compression kind changed"),
        PartKind::Zstd => decompress_zstd(stored, length),
        PartKind::Lz4 => decompress_lz4(stored, length),
    };
    match block {
        Some(block) if block.len() == length => Ok(block),
        _ => Err("block does not decompress"),
    }
}
