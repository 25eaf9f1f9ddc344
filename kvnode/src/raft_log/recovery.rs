//! Reading the log back after a stop, however that came about.
//!
//! Segments are read in order. All but the last were synced before their
//! successor was begun, so every byte of them must be good, and the successor's
//! header says how long they were. In the last one, the first bad batch ends
//! the log, unless a good batch behind it says that this offset had been
//! synced: then it is not a torn tail but damage, and cutting it off would break
//! promises to peers (PROTOCOLS D3).

use super::cell::{Cell, CellState, Slot, Tombstone};
use super::record::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, LogId, Record, SEGMENT_HEADER_BYTES,
    SegmentHeader, Vote, take_record,
};
use super::writer::segment_path;
use super::{Location, Segment};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{GroupId, ReplicaId};
use lineradb_lsm::Vfs;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// Where the log ends.
pub(crate) struct Tail {
    pub last_segment: u64,
    pub last_length: u64,
    pub next_sequence: u64,
}

pub(crate) struct Recovered {
    pub cells: HashMap<GroupId, Arc<Cell>>,
    pub segments: BTreeMap<u64, Segment>,
    pub tail: Tail,
}

/// One group while the log is read.
#[derive(Default)]
struct Building {
    replica: ReplicaId,
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (u64, u32, Location)>,
    tombstone: Option<Tombstone>,
}

impl Building {
    fn apply(&mut self, replica: ReplicaId, record: Record, location: Location) {
        if let Record::Tombstone { vote } = record {
            if self.tombstone.is_none_or(|t| t.replica < replica) {
                self.tombstone = Some(Tombstone { replica, vote });
            }
            if self.replica <= replica {
                self.reset(ReplicaId(0));
            }
            return;
        }
        if self.tombstone.is_some_and(|t| replica <= t.replica) || replica < self.replica {
            return;
        }
        if replica > self.replica {
            self.reset(replica);
        }
        match record {
            Record::Entry { id, payload } => {
                if self.purged.is_none_or(|p| p.index < id.index) {
                    let bytes = payload.len() as u32;
                    self.entries.insert(id.index, (id.term, bytes, location));
                }
            }
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Truncate { after } => {
                let from = after.map_or(0, |index| index + 1);
                self.entries.split_off(&from);
            }
            Record::Purge(upto) => {
                if self.purged.is_none_or(|p| p.index < upto.index) {
                    self.purged = Some(upto);
                    self.entries = self.entries.split_off(&(upto.index + 1));
                }
            }
            Record::Tombstone { .. } => {}
        }
    }

    fn reset(&mut self, replica: ReplicaId) {
        let tombstone = self.tombstone;
        *self = Building {
            replica,
            tombstone,
            ..Building::default()
        };
    }

    fn finish(self, group: GroupId, segments: &mut BTreeMap<u64, Segment>) -> Result<Cell> {
        let first = match (self.entries.keys().next(), self.purged) {
            (Some(first), Some(purged)) if *first != purged.index + 1 => {
                return Err(Error::Corrupt(format!(
                    "raft log: group {group} (replica {}) lacks entries {} to {}",
                    self.replica,
                    purged.index + 1,
                    first - 1
                )));
            }
            (Some(first), _) => *first,
            (None, purged) => purged.map_or(0, |p| p.index + 1),
        };
        let mut slots = VecDeque::with_capacity(self.entries.len());
        let mut total = 0;
        for (serial, (index, (term, bytes, location))) in self.entries.into_iter().enumerate() {
            if index != first + slots.len() as u64 {
                return Err(Error::Corrupt(format!(
                    "raft log: group {group} (replica {}) lacks entry {}",
                    self.replica,
                    first + slots.len() as u64
                )));
            }
            if let Some(segment) = segments.get_mut(&location.segment) {
                segment.live += 1;
                segment.live_bytes += u64::from(location.length);
            }
            total += u64::from(bytes);
            slots.push_back(Slot {
                term,
                serial: serial as u64,
                payload: None,
                bytes,
                location: Some(location),
            });
        }
        let cell = Cell::new(group);
        *cell.state.lock() = CellState {
            replica: self.replica,
            vote: self.vote,
            purged: self.purged,
            first,
            next_serial: slots.len() as u64,
            slots,
            bytes: total,
            tombstone: self.tombstone,
        };
        Ok(cell)
    }
}

pub(crate) fn recover(vfs: &dyn Vfs, dir: &Path) -> Result<Recovered> {
    let mut numbers = Vec::new();
    let names = vfs
        .list(dir)
        .map_err(|e| Error::io(format!("list {}", dir.display()), e))?;
    for name in names {
        if let Some(number) = name.strip_suffix(".raftlog") {
            let number: u64 = number.parse().map_err(|_| {
                Error::Corrupt(format!(
                    "{}: not the name of a segment",
                    dir.join(&name).display()
                ))
            })?;
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    let mut groups: HashMap<GroupId, Building> = HashMap::new();
    let mut segments = BTreeMap::new();
    let mut tail = Tail {
        last_segment: 0,
        last_length: 0,
        next_sequence: 0,
    };
    for (at, number) in numbers.iter().copied().enumerate() {
        let path = segment_path(dir, number);
        let last = at + 1 == numbers.len();
        let bytes = vfs
            .map(&path)
            .map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) => header,
            // The successor's header is synced with its first batch before
            // anything else is written to it.
            Err(_) if last && read_first_batch(&bytes).is_none() => {
                drop(bytes);
                vfs.remove(&path)
                    .and_then(|()| vfs.sync_dir(dir))
                    .map_err(|e| Error::io(format!("remove {}", path.display()), e))?;
                break;
            }
            Err(error) => return Err(corrupt(&path, 0, error.0, &groups)),
        };
        if header.number != number || (at > 0 && tail.last_segment + 1 != number) {
            return Err(corrupt(
                &path,
                0,
                "a segment before this one is missing",
                &groups,
            ));
        }
        if at > 0 && header.previous_length != tail.last_length {
            let previous = segment_path(dir, tail.last_segment);
            return Err(corrupt(
                &previous,
                tail.last_length,
                "the segment is shorter or longer than it was when it was closed",
                &groups,
            ));
        }
        let length = read_segment(number, &path, &bytes, !last, &mut groups, &mut tail)?;
        let whole = bytes.len() as u64;
        drop(bytes);
        if length < whole {
            tracing::warn!(
                file = %path.display(), from = length, bytes = whole - length,
                "raft log: cut a torn tail that was never synced"
            );
            cut(vfs, &path, length)?;
        }
        tail.last_segment = number;
        tail.last_length = length;
        segments.insert(
            number,
            Segment {
                path,
                bytes: length,
                live: 0,
                live_bytes: 0,
                reader: None,
            },
        );
    }
    let mut cells = HashMap::new();
    for (group, building) in groups {
        let cell = building.finish(group, &mut segments)?;
        cells.insert(group, Arc::new(cell));
    }
    Ok(Recovered {
        cells,
        segments,
        tail,
    })
}

fn read_first_batch(bytes: &Bytes) -> Option<()> {
    let mut cursor = SEGMENT_HEADER_BYTES;
    read_batch(bytes, &mut cursor).ok().map(|_| ())
}

/// Records of a batch with their offsets in the segment.
type Records = Vec<(GroupId, ReplicaId, Record, u64, u32)>;

fn read_batch(bytes: &Bytes, cursor: &mut usize) -> Result<(BatchHeader, Records), &'static str> {
    let rest = bytes.slice((*cursor).min(bytes.len())..);
    let header = BatchHeader::decode(&rest).map_err(|e| e.0)?;
    let end = BATCH_HEADER_BYTES + header.bytes as usize;
    if rest.len() < end {
        return Err("the file ends inside a batch");
    }
    let mut input = rest.slice(BATCH_HEADER_BYTES..end);
    let mut records = Vec::with_capacity(header.records.min(1 << 20) as usize);
    while !input.is_empty() {
        let offset = (*cursor + end - input.len()) as u64;
        let (group, replica, record, length) = take_record(&mut input).map_err(|e| e.0)?;
        records.push((group, replica, record, offset, length));
    }
    if records.len() != header.records as usize {
        return Err("a batch lacks records");
    }
    *cursor += end;
    Ok((header, records))
}

/// Applies all good batches; returns where they end.
fn read_segment(
    number: u64,
    path: &Path,
    bytes: &Bytes,
    sealed: bool,
    groups: &mut HashMap<GroupId, Building>,
    tail: &mut Tail,
) -> Result<u64> {
    let mut cursor = SEGMENT_HEADER_BYTES;
    while cursor < bytes.len() {
        let at = cursor as u64;
        let (header, records) = match read_batch(bytes, &mut cursor) {
            Ok(read) => read,
            Err(what) if sealed => return Err(corrupt(path, at, what, groups)),
            Err(what) => match synced_beyond(bytes, cursor) {
                Some(_) => return Err(corrupt(path, at, what, groups)),
                None => return Ok(at),
            },
        };
        if tail.next_sequence != 0 && header.sequence != tail.next_sequence {
            return Err(corrupt(path, at, "a batch is missing", groups));
        }
        tail.next_sequence = header.sequence + 1;
        for (group, replica, record, offset, length) in records {
            let location = Location {
                segment: number,
                offset,
                length,
            };
            groups
                .entry(group)
                .or_default()
                .apply(replica, record, location);
        }
    }
    Ok(cursor as u64)
}

/// Looks behind a bad batch for a good one that says that more than `bad` had
/// been synced.
fn synced_beyond(bytes: &Bytes, bad: usize) -> Option<u64> {
    let magic = BATCH_MAGIC.to_le_bytes();
    let mut at = bad + 1;
    while at + BATCH_HEADER_BYTES <= bytes.len() {
        if bytes[at..at + 4] == magic
            && let Ok(header) = BatchHeader::decode(&bytes[at..])
            && header.synced > bad as u64
        {
            return Some(header.synced);
        }
        at += 1;
    }
    None
}

fn cut(vfs: &dyn Vfs, path: &Path, length: u64) -> Result<()> {
    vfs.truncate(path, length)
        .and_then(|()| vfs.open_append(path)?.sync())
        .map_err(|e| Error::io(format!("cut {}", path.display()), e))
}

fn corrupt(path: &Path, offset: u64, what: &str, groups: &HashMap<GroupId, Building>) -> Error {
    let names: BTreeSet<u64> = groups.keys().map(|g| g.0).collect();
    Error::Corrupt(format!(
        "{} at offset {offset}: {what}; below what was synced, so the replicas of this node must be \
         replaced, not cut (groups seen so far: {names:?})",
        path.display()
    ))
}
