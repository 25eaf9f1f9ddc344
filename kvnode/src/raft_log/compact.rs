//! Copying entries forward.
//!
//! Segments are deleted oldest first, so the few entries of a quiet group could
//! hold the whole log. When it is large, they are written once more at its end.

use super::batch::Batch;
use super::cell::Cell;
use super::record::LogId;
use super::{Location, Options, Shared, reader};
use lineradb_common::ReplicaId;
use std::io;
use std::sync::Arc;

/// Entries copied forward in one batch, in bytes.
const COPY_BYTES_MAX: u64 = 4 << 20;

/// Copies the live entries of the oldest segment into this batch when they
/// are few and the log is large, so that the segment can be deleted.
pub(crate) fn copy_stragglers(shared: &Shared, batch: &mut Batch) -> io::Result<()> {
    let oldest = {
        let segments = shared.segments.lock();
        let total: u64 = segments.values().map(|s| s.bytes).sum();
        let oldest = segments
            .iter()
            .next()
            .map(|(n, s)| (*n, s.live_bytes, s.bytes));
        match oldest {
            Some((number, live, bytes))
                if number != batch.segment
                    && live > 0
                    && copies(live, bytes, total, &shared.options) =>
            {
                number
            }
            _ => return Ok(()),
        }
    };
    let cells: Vec<Arc<Cell>> = shared.cells.lock().values().cloned().collect();
    let mut copied = 0;
    for cell in cells {
        let stragglers: Vec<(u64, ReplicaId, LogId, Location)> = {
            let state = cell.state.lock();
            let first = state.first;
            let replica = state.replica;
            state
                .slots
                .iter()
                .enumerate()
                .filter_map(|(at, slot)| {
                    let index = first + at as u64;
                    let id = LogId {
                        term: slot.term,
                        index,
                    };
                    slot.location
                        .filter(|l| l.segment == oldest)
                        .map(|l| (slot.serial, replica, id, l))
                })
                .collect()
        };
        for (serial, replica, id, location) in stragglers {
            if copied > COPY_BYTES_MAX {
                break;
            }
            let payload = reader::read_at(shared, &cell, id, location)?;
            copied += payload.len() as u64;
            batch.put_entry(&cell, replica, serial, id, payload, Some(location));
        }
    }
    Ok(())
}

/// Whether the oldest segment is worth copying out of.
fn copies(live: u64, bytes: u64, total: u64, options: &Options) -> bool {
    total > options.compact_above_bytes
        && (live * 4 < bytes || total > 4 * options.compact_above_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_log_copies_and_first_where_little_is_alive() {
        let options = Options {
            compact_above_bytes: 1000,
            ..Options::default()
        };
        assert!(!copies(1, 100, 900, &options));
        assert!(copies(1, 100, 1100, &options));
        assert!(!copies(80, 100, 1100, &options));
        assert!(copies(80, 100, 5000, &options));
    }
}
