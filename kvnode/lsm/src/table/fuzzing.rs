//! The decoders of table parts, behind their checksums.

use super::block::{Block, BlockView, Malformed};
use super::block_iter::BlockIter;
use super::format::{FOOTER_MAGIC, Footer, Handle};
use super::reader::{Table, TableContext, external_meta};
use super::{RunIter, bloom, properties};
use crate::cache::BlockCache;
use crate::iter::InternalIterator;
use crate::statistics::Counters;
use crate::types::Trailer;
use crate::vfs::{SimVfs, Vfs};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Walks a block in both directions and looks for keys in it.
pub(crate) fn block(bytes: &[u8]) {
    let Ok(block) = Block::new(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    // Keys that are there, as far as it can be read, and others.
    let mut keys = vec![Vec::new(), bytes[..bytes.len().min(4)].to_vec()];
    let _ = walk(block.clone(), &mut keys);
    let view = block.view();
    for key in &keys {
        if let Ok(Some(found)) = view.find(key, Trailer::NEWEST) {
            let _ = &bytes[found.value];
        }
        let _ = view.find(key, Trailer::OLDEST);
    }
    let mut iter = BlockIter::new(block);
    for key in &keys {
        let _ = iter.seek(key, Trailer::OLDEST);
        let _ = iter.seek_for_prev(key, Trailer::NEWEST);
    }
}

fn walk(block: Block, keys: &mut Vec<Vec<u8>>) -> Result<(), Malformed> {
    type Move = fn(&mut BlockIter) -> Result<(), Malformed>;
    // Each entry has a byte at least.
    let steps_max = block.len() + 1;
    let mut iter = BlockIter::new(block);
    let ways: [(Move, Move); 2] = [
        (BlockIter::seek_to_first, BlockIter::next),
        (BlockIter::seek_to_last, BlockIter::prev),
    ];
    for (begin, step) in ways {
        begin(&mut iter)?;
        let mut steps = 0;
        while iter.valid() {
            let _ = (iter.trailer(), iter.value());
            if steps < 16 {
                keys.push(iter.user_key().to_vec());
            }
            step(&mut iter)?;
            steps += 1;
            assert!(steps <= steps_max, "a walk does not end");
        }
    }
    Ok(())
}

/// Asks a filter.
pub(crate) fn filter(bytes: &[u8]) {
    for hash in [0, 1, u64::MAX, bloom::hash(bytes)] {
        bloom::may_contain(bytes, hash);
    }
}

/// Decodes a footer, with the checksum that it should have, a handle and properties.
pub(crate) fn fixed_parts(bytes: &[u8]) {
    if let Some(body) = bytes.len().checked_sub(12) {
        let crc = crc32c::crc32c(&bytes[..body]).to_le_bytes();
        let footer = [&bytes[..body], &crc, FOOTER_MAGIC].concat();
        let _ = Footer::decode(&footer);
    }
    let _ = Handle::decode(bytes);
    let _ = properties::decode(bytes);
}

/// Opens a whole file and reads it.
pub(crate) fn file(bytes: &[u8]) {
    let vfs = SimVfs::new();
    let path = Path::new("/table");
    if write(&vfs, path, bytes).is_err() {
        return;
    }
    let Ok(meta) = external_meta(&vfs, path) else {
        return;
    };
    let context = Arc::new(TableContext {
        vfs: Arc::new(vfs),
        cache: BlockCache::new(1 << 20),
        counters: Arc::new(Counters::default()),
        removals_allowed: AtomicBool::new(false),
    });
    let Ok(table) = Table::open(&context, path, meta) else {
        return;
    };
    let _ = table.get(bytes, Trailer::NEWEST);
    let mut iter = RunIter::new(Arc::new(vec![Arc::new(table)]));
    let mut going = iter.seek_to_first();
    while going.is_ok() && iter.valid() {
        let _ = (iter.user_key(), iter.value());
        going = iter.next();
    }
}

fn write(vfs: &SimVfs, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    vfs.create_dir_all(Path::new("/"))?;
    let mut file = vfs.create(path)?;
    file.append(bytes)?;
    file.sync()
}

/// The parts of a table file that is not compressed, each with the target that decodes it.
#[cfg(test)]
pub(crate) fn parts(file: &[u8]) -> Option<Vec<(crate::fuzzing::Target, Vec<u8>)>> {
    use super::format::{FORMAT_RANGES, footer_bytes};
    use crate::fuzzing::Target;
    let part = |handle: Handle| {
        let start = handle.offset as usize;
        file.get(start..start + handle.length as usize)
            .map(<[u8]>::to_vec)
    };
    // A table with range deletes has the longer footer.
    let footer_at = file.len().checked_sub(footer_bytes(FORMAT_RANGES))?;
    let footer = Footer::decode(&file[footer_at..]).ok()?;
    let index = part(footer.index)?;
    let view = BlockView::new(&index).ok()?;
    let (_, first) = view.restart_entry(0).ok()?;
    let first = Handle::decode(&index[first.value])?;
    Some(vec![
        (Target::Block, part(first)?),
        (Target::Block, index.clone()),
        (Target::Filter, part(footer.filter)?),
        (Target::FixedParts, file[footer_at..].to_vec()),
        (Target::FixedParts, part(footer.properties)?),
        (Target::RangeDeletes, part(footer.ranges?)?),
    ])
}
