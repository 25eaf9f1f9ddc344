//! Writing a sorted stream of entries into new tables: the body of a flush and of a compaction.
//!
//! A table ends where it has reached its size, but never between two versions of one key: a level keeps all it has
//! of a key in one table. Range deletes are cut where tables end, so that tables stay disjoint. Large values go into
//! blob files, or stay in those where they are.

use super::blobs::Blobs;
use super::retain::Retention;
use crate::error::Result;
use crate::files::FileName;
use crate::iter::InternalIterator;
use crate::ranges::RangeSet;
use crate::table::blob::{BlobFile, Keep};
use crate::table::{TableBuilder, TableMeta, TableOptions};
use crate::vfs::Vfs;
use std::path::Path;

/// Where and how the new tables are written.
pub(crate) struct Output<'a> {
    pub vfs: &'a dyn Vfs,
    pub dir: &'a Path,
    pub options: TableOptions,
    /// A table of this size is full, and a blob file.
    pub table_bytes: u64,
    /// Values of this length and more go into blob files; 0: none does.
    pub blob_value_bytes_min: usize,
    /// Draws file numbers.
    pub allocate: &'a dyn Fn() -> u64,
    /// Told now and then how many bytes were written since: may wait, and an error stops the work.
    pub progress: &'a dyn Fn(u64) -> Result<()>,
    /// The blob file of this number if its values are to be copied, so that it can go. After
    /// [`BLOB_TABLES_MOVED`] times `table_bytes` the rest is left to the next time.
    pub stale_blob: &'a dyn Fn(u64) -> Option<&'a BlobFile>,
}

/// What was written.
#[derive(Default)]
pub(crate) struct Written {
    pub tables: Vec<TableMeta>,
    /// Length of the blob files.
    blob_bytes: u64,
    /// The part of it that was copied from other blob files.
    pub blob_bytes_moved: u64,
}

impl Written {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let tables: u64 = self.tables.iter().map(|table| table.bytes).sum();
        tables + self.blob_bytes
    }
}

/// Entries between two calls of `progress`.
const ENTRIES_PER_CALL: u64 = 1024;
/// Bytes of blobs between two calls of `progress`.
const BLOB_BYTES_PER_CALL: u64 = 1 << 20;
/// A table may point to so many times as many bytes of blobs as it may have itself: what garbage collection moves at
/// once.
const BLOBS_PER_TABLE: u64 = 16;

/// A job copies about so many times `table_bytes` out of blob files.
pub(crate) const BLOB_TABLES_MOVED: u64 = 4;

/// Writes the entries of `input` that `retention` keeps, and `ranges`. The files are synced, their names are not. After
/// an error the files written so far are removed as far as possible.
pub(crate) fn rewrite(
    output: &Output<'_>,
    input: &mut impl InternalIterator,
    retention: &mut Retention,
    ranges: RangeSet,
    is_below: impl Fn(&[u8]) -> bool,
) -> Result<Written> {
    let (mut numbers, mut blobs) = (Vec::new(), Blobs::new(output));
    let tables = write_tables(
        output,
        input,
        retention,
        ranges,
        is_below,
        &mut numbers,
        &mut blobs,
    );
    let written = tables.and_then(|tables| {
        Ok(Written {
            tables,
            blob_bytes: blobs.finish()?,
            blob_bytes_moved: blobs.bytes_moved,
        })
    });
    if written.is_err() {
        let tables = numbers.into_iter().map(FileName::Table);
        let blobs = blobs.numbers.into_iter().map(FileName::Blob);
        for file in tables.chain(blobs) {
            let _ = output.vfs.remove(&file.path(output.dir));
        }
    }
    written
}

fn write_tables(
    output: &Output<'_>,
    input: &mut impl InternalIterator,
    retention: &mut Retention,
    mut ranges: RangeSet,
    is_below: impl Fn(&[u8]) -> bool,
    numbers: &mut Vec<u64>,
    blobs: &mut Blobs<'_, '_>,
) -> Result<Vec<TableMeta>> {
    let mut tables = Vec::new();
    let mut builder: Option<TableBuilder> = None;
    let mut last_key: Option<Vec<u8>> = None;
    let (mut entries, mut blob_bytes_reported, mut reported) = (0, 0, 0);
    let mut create = || {
        let number = (output.allocate)();
        numbers.push(number);
        let path = FileName::Table(number).path(output.dir);
        TableBuilder::create(output.vfs, &path, number, output.options)
    };
    let is_full = |builder: &mut TableBuilder| {
        builder.bytes() + builder.blob_bytes() / BLOBS_PER_TABLE >= output.table_bytes
    };
    input.seek_to_first()?;
    while input.valid() {
        let (key, trailer) = (input.user_key(), input.trailer());
        let new_key = last_key.as_deref() != Some(key);
        if new_key {
            let last_key = last_key.get_or_insert_default();
            last_key.clear();
            last_key.extend_from_slice(key);
            if let Some(full) = builder.take_if(is_full) {
                tables.push(full.finish(&ranges.take_before(key))?);
            }
        }
        let value = input.value();
        let read = || input.pinned_value()?.read(key, Keep::Never);
        let kept = retention.keep(new_key, key, trailer, read, || is_below(key))?;
        if let Some(trailer) = kept {
            let builder = match &mut builder {
                Some(builder) => builder,
                None => builder.insert(create()?),
            };
            if trailer.is_delete() {
                builder.add(key, trailer, b"")?;
            } else if trailer.is_blob() {
                builder.add_blob(key, trailer, blobs.follow(value)?)?;
            } else if blobs.takes(value) {
                builder.add_blob(key, trailer, blobs.add(key, trailer, value)?)?;
            } else {
                builder.add(key, trailer, value)?;
            }
        }
        entries += 1;
        let blob_bytes = blobs.bytes();
        if entries % ENTRIES_PER_CALL == 0
            || blob_bytes - blob_bytes_reported >= BLOB_BYTES_PER_CALL
        {
            let finished: u64 = tables.iter().map(|table: &TableMeta| table.bytes).sum();
            let unfinished = builder.as_ref().map_or(0, TableBuilder::bytes);
            let written = finished + unfinished + blob_bytes;
            (output.progress)(written - reported)?;
            (reported, blob_bytes_reported) = (written, blob_bytes);
        }
        input.next()?;
    }
    if builder.is_none() && !ranges.is_empty() {
        builder = Some(create()?);
    }
    if let Some(last) = builder {
        tables.push(last.finish(&ranges)?);
    }
    Ok(tables)
}
