//! Writing a sorted stream of entries into new tables: the body of a flush and of a compaction.
//!
//! A table ends where it has reached its size, but never between two versions of one key: a level keeps all it has
//! of a key in one table. Range deletes are cut where tables end, so that tables stay disjoint.

use super::retain::Retention;
use crate::error::Result;
use crate::files::FileName;
use crate::iter::InternalIterator;
use crate::ranges::RangeSet;
use crate::table::{TableBuilder, TableMeta, TableOptions};
use crate::vfs::Vfs;
use std::path::Path;

/// Where and how the new tables are written.
pub(crate) struct Output<'a> {
    pub vfs: &'a dyn Vfs,
    pub dir: &'a Path,
    pub options: TableOptions,
    /// A table of this size is full.
    pub table_bytes: u64,
    /// Draws file numbers.
    pub allocate: &'a dyn Fn() -> u64,
    /// Told now and then how many bytes were written since: may wait, and an error stops the work.
    pub progress: &'a dyn Fn(u64) -> Result<()>,
}

/// Entries between two calls of `progress`.
const ENTRIES_PER_CALL: u64 = 1024;

/// Writes the entries of `input` that `retention` keeps, and `ranges`. The tables are synced, their names are not. After an error
/// the files written so far are removed as far as possible.
pub(crate) fn rewrite(
    output: &Output<'_>,
    input: &mut impl InternalIterator,
    retention: &mut Retention,
    ranges: RangeSet,
    is_below: impl Fn(&[u8]) -> bool,
) -> Result<Vec<TableMeta>> {
    let mut numbers = Vec::new();
    let result = write_tables(output, input, retention, ranges, is_below, &mut numbers);
    if result.is_err() {
        for number in numbers {
            let _ = output.vfs.remove(&FileName::Table(number).path(output.dir));
        }
    }
    result
}

fn write_tables(
    output: &Output<'_>,
    input: &mut impl InternalIterator,
    retention: &mut Retention,
    mut ranges: RangeSet,
    is_below: impl Fn(&[u8]) -> bool,
    numbers: &mut Vec<u64>,
) -> Result<Vec<TableMeta>> {
    let mut tables = Vec::new();
    let mut builder: Option<TableBuilder> = None;
    let mut last_key: Option<Vec<u8>> = None;
    let (mut entries, mut reported) = (0, 0);
    let mut create = || {
        let number = (output.allocate)();
        numbers.push(number);
        let path = FileName::Table(number).path(output.dir);
        TableBuilder::create(output.vfs, &path, number, output.options)
    };
    input.seek_to_first()?;
    while input.valid() {
        let (key, trailer) = (input.user_key(), input.trailer());
        let new_key = last_key.as_deref() != Some(key);
        if new_key {
            let last_key = last_key.get_or_insert_default();
            last_key.clear();
            last_key.extend_from_slice(key);
            if let Some(full) = builder.take_if(|builder| builder.bytes() >= output.table_bytes) {
                tables.push(full.finish(&ranges.take_before(key))?);
            }
        }
        let value = input.value();
        let kept = retention.keep(new_key, key, trailer, value, || is_below(key));
        if let Some(trailer) = kept {
            let builder = match &mut builder {
                Some(builder) => builder,
                None => builder.insert(create()?),
            };
            builder.add(key, trailer, if trailer.is_delete() { b"" } else { value })?;
        }
        entries += 1;
        if entries % ENTRIES_PER_CALL == 0 {
            let finished: u64 = tables.iter().map(|table: &TableMeta| table.bytes).sum();
            let written = finished + builder.as_ref().map_or(0, TableBuilder::bytes);
            (output.progress)(written - reported)?;
            reported = written;
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
