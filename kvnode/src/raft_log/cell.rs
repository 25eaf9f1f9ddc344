//! What one group has in the log, in memory.
//!
//! An entry is readable by everybody as soon as it was handed in (replication
//! ships it while the local sync is under way); its location is filled in when
//! the writer has written it, and its payload leaves memory when the tail of
//! all groups grows beyond its budget. A *serial* tells two entries of the same
//! index apart when one was truncated and another took its place before the
//! writer came to either.

use super::item::{Callback, Item, Released};
use super::record::{LogId, Vote};
use super::writer::Writer;
use super::{Location, Shared};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{GroupId, ReplicaId};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One entry of the log.
pub(crate) struct Slot {
    pub term: u64,
    pub serial: u64,
    /// Absent: read it from its location.
    pub payload: Option<Bytes>,
    pub bytes: u32,
    /// Absent: not written yet.
    pub location: Option<Location>,
}

/// A replica that was destroyed here and must not come back (C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The last incarnation destroyed.
    pub replica: ReplicaId,
    /// For whom it voted last.
    pub vote: Option<Vote>,
}

#[derive(Default)]
pub(crate) struct CellState {
    /// Which incarnation the rest is about; 0: none.
    pub replica: ReplicaId,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// Index of the first slot.
    pub first: u64,
    pub slots: VecDeque<Slot>,
    pub bytes: u64,
    pub tombstone: Option<Tombstone>,
    pub next_serial: u64,
}

impl CellState {
    pub(crate) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(LogId {
                term: slot.term,
                index: self.first + self.slots.len() as u64 - 1,
            }),
            None => self.purged,
        }
    }

    pub(crate) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get_mut(at as usize)
    }

    fn forget(&mut self, slot: &Slot, shared: &Shared, released: &mut Released) {
        self.bytes -= u64::from(slot.bytes);
        if let Some(payload) = &slot.payload {
            shared.cached.fetch_sub(payload.len(), Ordering::Relaxed);
        }
        if let Some(location) = slot.location {
            released.add(location);
        }
    }
}

/// One group's place in the log.
pub(crate) struct Cell {
    pub group: GroupId,
    pub state: Mutex<CellState>,
}

impl Cell {
    pub(crate) fn new(group: GroupId) -> Self {
        Cell {
            group,
            state: Mutex::default(),
        }
    }
}

/// How much of a group's log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Entries kept.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Index of the last entry (or of the last one purged).
    pub last_index: u64,
    /// Index of the last purged entry.
    pub purged_index: u64,
}

/// The log of one group. Cheap to clone.
#[derive(Clone)]
pub struct GroupLog {
    pub(crate) cell: Arc<Cell>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Arc<Writer>,
}

impl GroupLog {
    /// The group.
    pub fn group(&self) -> GroupId {
        self.cell.group
    }

    /// Starts the life of a replica in memory. `seed` is what the storage engine
    /// says that its log starts with; records of the same incarnation override
    /// it (C4).
    ///
    /// # Errors
    /// [`Error::Refused`] for an incarnation that was destroyed, or that is
    /// older than the one in the log (C3).
    pub fn begin(&self, replica: ReplicaId, seed: Option<(LogId, Option<Vote>)>) -> Result<()> {
        let mut state = self.cell.state.lock();
        admit(state.replica, state.tombstone, replica).map_err(Error::Refused)?;
        if state.replica != replica {
            // What an older incarnation left behind keeps no segment alive.
            let mut released = Released::default();
            while let Some(slot) = state.slots.pop_back() {
                state.forget(&slot, &self.shared, &mut released);
            }
            if state.replica.0 != 0 {
                self.writer.submit(Item::Truncate {
                    cell: Arc::clone(&self.cell),
                    replica: state.replica,
                    after: None,
                    released,
                });
            }
            let (tombstone, next_serial) = (state.tombstone, state.next_serial);
            *state = CellState {
                replica,
                tombstone,
                next_serial,
                ..CellState::default()
            };
        }
        if let Some((base, vote)) = seed {
            if state.vote.is_none() {
                state.vote = vote;
            }
            if state.purged.is_none() {
                state.purged = Some(base);
                if state.slots.is_empty() {
                    state.first = base.index + 1;
                }
            }
        }
        Ok(())
    }

    /// The incarnation in the log, `None` when there is none.
    pub fn replica(&self) -> Option<ReplicaId> {
        Some(self.cell.state.lock().replica).filter(|r| r.0 != 0)
    }

    /// The incarnation that must not come back.
    pub fn tombstone(&self) -> Option<Tombstone> {
        self.cell.state.lock().tombstone
    }

    /// The vote handed in last.
    pub fn vote(&self) -> Option<Vote> {
        self.cell.state.lock().vote
    }

    /// The last entry purged.
    pub fn purged(&self) -> Option<LogId> {
        self.cell.state.lock().purged
    }

    /// The last entry, or the last purged one when there is none.
    pub fn last(&self) -> Option<LogId> {
        self.cell.state.lock().last()
    }

    /// How much is kept.
    pub fn stats(&self) -> GroupStats {
        let state = self.cell.state.lock();
        GroupStats {
            entries: state.slots.len() as u64,
            bytes: state.bytes,
            last_index: state.last().map_or(0, |l| l.index),
            purged_index: state.purged.map_or(0, |l| l.index),
        }
    }

    /// How many of the newest entries fit into `bytes`, as the index of the
    /// first of them.
    pub fn first_index_within(&self, bytes: u64) -> u64 {
        let state = self.cell.state.lock();
        let mut sum = 0;
        let mut index = state.first + state.slots.len() as u64;
        for slot in state.slots.iter().rev() {
            sum += u64::from(slot.bytes);
            if sum > bytes {
                break;
            }
            index -= 1;
        }
        index
    }

    /// Takes entries that follow the last one. They are readable when this
    /// returns; `callback` is called when they are durable.
    ///
    /// # Errors
    /// When the log has failed, or the entries leave a gap.
    pub async fn append(&self, entries: Vec<(LogId, Bytes)>, callback: Callback) -> io::Result<()> {
        let bytes: usize = entries.iter().map(|(_, payload)| payload.len() + 64).sum();
        // Backpressure: a full queue makes this group wait, in order.
        let permit = self.writer.admit(bytes).await?;
        let mut queued = Vec::with_capacity(entries.len());
        let mut cached = 0;
        let replica;
        {
            let mut state = self.cell.state.lock();
            replica = state.replica;
            for (id, payload) in entries {
                match state.last() {
                    Some(last) if id.index != last.index + 1 => {
                        return Err(io::Error::other(format!(
                            "entry {} of group {} does not follow {}",
                            id.index, self.cell.group, last.index
                        )));
                    }
                    Some(_) => {}
                    None => state.first = id.index,
                }
                if state.slots.is_empty() {
                    state.first = id.index;
                }
                let serial = state.next_serial;
                state.next_serial += 1;
                state.bytes += payload.len() as u64;
                cached += payload.len();
                state.slots.push_back(Slot {
                    term: id.term,
                    serial,
                    bytes: payload.len() as u32,
                    payload: Some(payload.clone()),
                    location: None,
                });
                queued.push((serial, id, payload));
            }
        }
        self.shared.cached.fetch_add(cached, Ordering::Relaxed);
        self.writer.submit(Item::Append {
            cell: Arc::clone(&self.cell),
            replica,
            entries: queued,
            callback,
            permit,
        });
        Ok(())
    }

    /// Records a vote; durable when it returns, after everything handed in
    /// before.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        let replica = {
            let mut state = self.cell.state.lock();
            state.vote = Some(vote);
            state.replica
        };
        let (callback, done) = Callback::channel();
        self.writer.submit(Item::Vote {
            cell: Arc::clone(&self.cell),
            replica,
            vote,
            callback,
        });
        done.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Removes every entry above `after` (all of them for `None`).
    pub fn truncate_after(&self, after: Option<u64>) {
        let mut released = Released::default();
        let replica = {
            let mut state = self.cell.state.lock();
            let keep = after.map_or(0, |index| (index + 1).saturating_sub(state.first));
            while state.slots.len() as u64 > keep {
                if let Some(slot) = state.slots.pop_back() {
                    state.forget(&slot, &self.shared, &mut released);
                }
            }
            state.replica
        };
        self.writer.submit(Item::Truncate {
            cell: Arc::clone(&self.cell),
            replica,
            after,
            released,
        });
    }

    /// Removes every entry up to and including `upto`. The caller has made sure
    /// that their effect is durable elsewhere (D1, D2).
    pub fn purge(&self, upto: LogId) {
        let mut released = Released::default();
        let replica = {
            let mut state = self.cell.state.lock();
            if state.purged.is_some_and(|p| p.index >= upto.index) {
                return;
            }
            while state.first <= upto.index {
                let Some(slot) = state.slots.pop_front() else {
                    break;
                };
                state.forget(&slot, &self.shared, &mut released);
                state.first += 1;
            }
            state.purged = Some(upto);
            if state.slots.is_empty() {
                state.first = upto.index + 1;
            }
            state.replica
        };
        self.writer.submit(Item::Purge {
            cell: Arc::clone(&self.cell),
            replica,
            upto,
            released,
        });
    }

    /// Forgets the replica and leaves a tombstone that keeps its last vote
    /// (C3); durable when it returns.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn destroy(&self, replica: ReplicaId) -> io::Result<()> {
        let mut released = Released::default();
        let vote = {
            let mut state = self.cell.state.lock();
            if state.tombstone.is_some_and(|t| t.replica >= replica) {
                None
            } else {
                let vote = state.vote.filter(|_| state.replica == replica);
                if state.replica <= replica {
                    while let Some(slot) = state.slots.pop_back() {
                        state.forget(&slot, &self.shared, &mut released);
                    }
                    let next_serial = state.next_serial;
                    *state = CellState {
                        next_serial,
                        ..CellState::default()
                    };
                }
                state.tombstone = Some(Tombstone { replica, vote });
                vote
            }
        };
        let (callback, done) = Callback::channel();
        self.writer.submit(Item::Tombstone {
            cell: Arc::clone(&self.cell),
            replica,
            vote,
            released,
            callback,
        });
        done.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// Whether an incarnation may live here (C3).
fn admit(
    present: ReplicaId,
    tombstone: Option<Tombstone>,
    replica: ReplicaId,
) -> Result<(), String> {
    if let Some(tombstone) = tombstone
        && replica <= tombstone.replica
    {
        return Err(format!(
            "replica {replica} was destroyed here (tombstone of {}) and never comes back",
            tombstone.replica
        ));
    }
    if replica < present {
        return Err(format!("replica {replica} is older than {present}"));
    }
    Ok(())
}

pub(crate) fn closed() -> io::Error {
    io::Error::other("the raft log is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destroyed_incarnation_is_refused_for_ever() {
        let tombstone = Some(Tombstone {
            replica: ReplicaId(5),
            vote: None,
        });
        assert!(admit(ReplicaId(0), tombstone, ReplicaId(5)).is_err());
        assert!(admit(ReplicaId(0), tombstone, ReplicaId(4)).is_err());
        assert!(admit(ReplicaId(0), tombstone, ReplicaId(6)).is_ok());
        assert!(admit(ReplicaId(7), None, ReplicaId(6)).is_err());
    }
}
