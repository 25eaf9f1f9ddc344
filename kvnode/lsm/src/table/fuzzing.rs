//! The decoders of table parts, behind their checksums.

use super::block::{Block, Malformed};
use super::block_iter::BlockIter;
use super::compression::decompress;
use super::filter::Filter;
use super::format::{FOOTER_MAGIC, Footer, Handle, PartKind};
use super::index::Index;
use super::reader::{Table, external_meta};
use super::{PointRead, RunIter, TableContext, blob, bloom, properties};
use crate::cache::BlockCache;
use crate::iter::InternalIterator;
use crate::statistics::{Counters, ReadStripe};
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

/// Asks a filter: the bytes are its lines, the last one the number of probes.
pub(crate) fn filter(bytes: &[u8]) {
    let Some((probes, lines)) = bytes.split_last() else {
        return;
    };
    let lines = &lines[..lines.len() - lines.len() % 64];
    let (checks, end) = (super::filter::checks(lines, *probes, 0), lines.len());
    let map = [lines, &checks].concat();
    let Ok(filter) = Filter::new(&map, 0..end, end..map.len()) else {
        return;
    };
    for hash in [0, 1, u64::MAX, bloom::hash(bytes)] {
        if filter.exists() {
            assert!(
                filter.may_contain(&map, hash).is_ok(),
                "its checksums are right"
            );
        }
    }
}

/// Decompresses: the first byte says how.
pub(crate) fn compressed(bytes: &[u8]) {
    if let Some((kind, stored)) = bytes.split_first()
        && let Some(kind) = PartKind::decode(kind % 3)
        // A longer one is refused only after its memory was taken.
        && crate::coding::u32_at(stored, 0).is_some_and(|length| length < 1 << 20)
    {
        let _ = decompress(stored, kind);
    }
}

/// Searches an index whose top these bytes are, in a file that they are too.
pub(crate) fn index(bytes: &[u8]) {
    let Ok(top) = Block::new(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    for block_count in [1, 2, 1000] {
        let Ok(index) = Index::new(top.clone(), Handle::default(), block_count) else {
            continue;
        };
        let _ = index.find(bytes, &bytes[..bytes.len().min(4)], Trailer::NEWEST);
        let _ = index.handle(bytes, 0);
        let _ = index.handle(bytes, block_count - 1);
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
    let Ok(table) = Table::open(&context(vfs), path, meta, Vec::new()) else {
        return;
    };
    let counters = ReadStripe::default();
    let _ = table.get(&mut PointRead::new(bytes, Trailer::NEWEST, &counters));
    let mut iter = RunIter::new(Arc::new(vec![Arc::new(table)]));
    let mut going = iter.seek_to_first();
    while going.is_ok() && iter.valid() {
        let _ = (iter.user_key(), iter.value());
        going = iter.next();
    }
}

fn context(vfs: SimVfs) -> Arc<TableContext> {
    Arc::new(TableContext {
        vfs: Arc::new(vfs),
        cache: BlockCache::new(1 << 20),
        counters: Arc::new(Counters::default()),
        removals_allowed: AtomicBool::new(false),
    })
}

/// Decodes a pointer to a blob, a record, or a whole blob file.
pub(crate) fn blob(bytes: &[u8]) {
    blob::fuzzing::decode(bytes);
    let vfs = SimVfs::new();
    let path = Path::new("/blob");
    if write(&vfs, path, bytes).is_ok() {
        blob::fuzzing::file(&context(vfs), path, bytes.len() as u64);
    }
}

fn write(vfs: &SimVfs, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    vfs.create_dir_all(Path::new("/"))?;
    let mut file = vfs.create(path)?;
    file.append(bytes)?;
    file.sync()
}

/// The first data block of a table file that is compressed, its kind before it.
#[cfg(test)]
pub(crate) fn compressed_block(file: &[u8]) -> Option<Vec<u8>> {
    use super::format::{FOOTER_BYTES, part_range};
    let footer = Footer::decode(&file[file.len().checked_sub(FOOTER_BYTES)?..]).ok()?;
    let top = Block::new(Bytes::copy_from_slice(
        &file[part_range(file, footer.index)?],
    ))
    .ok()?;
    let index = Index::new(top, footer.index, footer.block_count as usize).ok()?;
    let block = part_range(file, index.handle(file, 0).ok()?)?;
    Some([&file[block.end..=block.end], &file[block]].concat())
}

/// The bytes of the record in a blob file that has one.
#[cfg(test)]
pub(crate) fn only_record(file: &[u8]) -> Option<Vec<u8>> {
    use super::format::{HEADER_BYTES, PART_TRAILER_BYTES};
    let end = file.len().checked_sub(24 + PART_TRAILER_BYTES)?;
    Some(file.get(HEADER_BYTES..end)?.to_vec())
}

/// The parts of a table file that is not compressed, each with the target that decodes it.
#[cfg(test)]
pub(crate) fn parts(file: &[u8]) -> Option<Vec<(crate::fuzzing::Target, Vec<u8>)>> {
    use super::format::{FOOTER_BYTES, part_range};
    use crate::fuzzing::Target;
    let part = |handle: Handle| Some(file[part_range(file, handle)?].to_vec());
    let footer_at = file.len().checked_sub(FOOTER_BYTES)?;
    let footer = Footer::decode(&file[footer_at..]).ok()?;
    let top = part(footer.index)?;
    let block = Block::new(Bytes::from(top.clone())).ok()?;
    let index = Index::new(block.clone(), footer.index, footer.block_count as usize).ok()?;
    let view = block.view();
    let (_, entry) = view.restart_entry(0).ok()?;
    let mut value = &view.bytes[entry.value];
    let partition = Handle {
        offset: crate::coding::take_varint(&mut value)?,
        length: u32::try_from(crate::coding::take_varint(&mut value)?).ok()?,
    };
    let probes = &part(footer.checks)?[..1];
    Some(vec![
        (Target::Block, part(index.handle(file, 0).ok()?)?),
        (Target::Block, part(partition)?),
        (Target::Index, top.clone()),
        (Target::Filter, [&part(footer.filter)?[..], probes].concat()),
        (Target::FixedParts, file[footer_at..].to_vec()),
        (Target::FixedParts, part(footer.properties)?),
        (Target::RangeDeletes, part(footer.ranges)?),
    ])
}
