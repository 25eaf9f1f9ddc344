//! Reading entries: from memory, or by one `pread` from the segment.
//!
//! A `pread` and not a map: a read error of the disk then is an error, not a
//! signal, and nothing that keeps leases alive can fault on a page (D4).

use super::cell::{Cell, GroupLog};
use super::record::{LogId, Record, take_record};
use super::{Location, Shared};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

impl GroupLog {
    /// Entries of `[start, end)` that exist, at most about `bytes_max` bytes of
    /// them but at least one.
    ///
    /// # Errors
    /// When a segment cannot be read or an entry in it is damaged.
    pub fn read(&self, start: u64, end: u64, bytes_max: u64) -> io::Result<Vec<(LogId, Bytes)>> {
        let mut found: Vec<(LogId, Result<Bytes, Location>)> = Vec::new();
        {
            let state = self.cell.state.lock();
            let first = start.max(state.first);
            let end = end.min(state.first + state.slots.len() as u64);
            let mut bytes = 0;
            for index in first..end {
                let Some(slot) = state.slots.get((index - state.first) as usize) else {
                    break;
                };
                bytes += u64::from(slot.bytes);
                if bytes > bytes_max && !found.is_empty() {
                    break;
                }
                let id = LogId {
                    term: slot.term,
                    index,
                };
                match (&slot.payload, slot.location) {
                    (Some(payload), _) => found.push((id, Ok(payload.clone()))),
                    (None, Some(location)) => found.push((id, Err(location))),
                    (None, None) => {
                        return Err(io::Error::other(format!(
                            "entry {index} of group {} is neither in memory nor written",
                            self.cell.group
                        )));
                    }
                }
            }
        }
        found
            .into_iter()
            .map(|(id, source)| {
                let payload = match source {
                    Ok(payload) => payload,
                    Err(location) => read_entry(&self.shared, &self.cell, id, location)?,
                };
                Ok((id, payload))
            })
            .collect()
    }
}

/// Reads the payload of one entry from its segment.
fn read_entry(shared: &Shared, cell: &Cell, id: LogId, location: Location) -> io::Result<Bytes> {
    match read_at(shared, cell, id, location) {
        Ok(payload) => Ok(payload),
        // The entry may have been copied forward and its old segment deleted
        // since its location was looked up.
        Err(error) => {
            let now = {
                let mut state = cell.state.lock();
                state.slot_mut(id.index).and_then(|slot| slot.location)
            };
            match now {
                Some(moved) if moved != location => read_at(shared, cell, id, moved),
                _ => Err(error),
            }
        }
    }
}

pub(crate) fn read_at(
    shared: &Shared,
    cell: &Cell,
    id: LogId,
    location: Location,
) -> io::Result<Bytes> {
    let (reader, path) = {
        let mut segments = shared.segments.lock();
        let segment = segments.get_mut(&location.segment).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("segment {} is gone", location.segment),
            )
        })?;
        let path = segment.path.clone();
        let reader = match &segment.reader {
            Some(reader) => Arc::clone(reader),
            None => {
                let reader = shared.vfs.open_read(&path)?;
                segment.reader = Some(Arc::clone(&reader));
                reader
            }
        };
        (reader, path)
    };
    let mut buffer = vec![0; location.length as usize];
    reader.read_exact_at(&mut buffer, location.offset)?;
    let damaged = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} at offset {}: {what} (entry {} of group {})",
                path.display(),
                location.offset,
                id.index,
                cell.group
            ),
        )
    };
    match take_record(&mut Bytes::from(buffer)) {
        Ok((group, _, Record::Entry { id: found, payload }, _))
            if group == cell.group && found == id =>
        {
            Ok(payload)
        }
        Ok(_) => Err(damaged("another record stands there")),
        Err(error) => Err(damaged(error.0)),
    }
}
