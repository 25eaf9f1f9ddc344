//! A batch under construction: the bytes of one write, and what is to be done
//! once they are durable.

use super::Location;
use super::cell::Cell;
use super::item::{Callback, Item, Released};
use super::record::{BATCH_HEADER_BYTES, LogId, Record, put_record};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::ReplicaId;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What is left to do when a batch is durable.
pub(crate) struct Written {
    pub ticket: u64,
    pub segment: u64,
    pub end: u64,
    pub callbacks: Vec<Callback>,
    pub released: Vec<Released>,
    pub permits: Vec<OwnedSemaphorePermit>,
}

/// An entry that this batch holds.
pub(crate) struct Located {
    pub cell: Arc<Cell>,
    pub index: u64,
    pub serial: u64,
    pub location: Location,
    /// Where the entry lay before, if this is a copy of it.
    pub copied_from: Option<Location>,
}

/// A batch under construction.
pub(crate) struct Batch {
    pub segment: u64,
    pub offset: u64,
    pub bytes: BytesMut,
    pub records: u32,
    pub located: Vec<Located>,
}

impl Batch {
    pub(crate) fn new(segment: u64, offset: u64) -> Self {
        let mut bytes = BytesMut::with_capacity(4096);
        bytes.put_bytes(0, BATCH_HEADER_BYTES);
        Batch {
            segment,
            offset,
            bytes,
            records: 0,
            located: Vec::new(),
        }
    }

    pub(crate) fn put_entry(
        &mut self,
        cell: &Arc<Cell>,
        replica: ReplicaId,
        serial: u64,
        id: LogId,
        payload: Bytes,
        copied_from: Option<Location>,
    ) {
        let offset = self.offset + self.bytes.len() as u64;
        let record = Record::Entry { id, payload };
        let length = put_record(&mut self.bytes, cell.group, replica, &record);
        self.records += 1;
        self.located.push(Located {
            cell: Arc::clone(cell),
            index: id.index,
            serial,
            location: Location {
                segment: self.segment,
                offset,
                length,
            },
            copied_from,
        });
    }

    fn put_record(&mut self, cell: &Cell, replica: ReplicaId, record: &Record) {
        put_record(&mut self.bytes, cell.group, replica, record);
        self.records += 1;
    }

    /// Everything of a group but its entries.
    pub(crate) fn put_state(&mut self, cell: &Cell) {
        let (replica, vote, purged, tombstone) = {
            let state = cell.state.lock();
            (state.replica, state.vote, state.purged, state.tombstone)
        };
        if let Some(tombstone) = tombstone {
            let vote = tombstone.vote;
            self.put_record(cell, tombstone.replica, &Record::Tombstone { vote });
        }
        if let Some(vote) = vote {
            self.put_record(cell, replica, &Record::Vote(vote));
        }
        if let Some(purged) = purged {
            self.put_record(cell, replica, &Record::Purge(purged));
        }
    }

    pub(crate) fn put(&mut self, item: Item, written: &mut Written) {
        match item {
            Item::Append {
                cell,
                replica,
                entries,
                callback,
                permit,
            } => {
                for (serial, id, payload) in entries {
                    self.put_entry(&cell, replica, serial, id, payload, None);
                }
                written.callbacks.push(callback);
                written.permits.push(permit);
            }
            Item::Vote {
                cell,
                replica,
                vote,
                callback,
            } => {
                self.put_record(&cell, replica, &Record::Vote(vote));
                written.callbacks.push(callback);
            }
            Item::Truncate {
                cell,
                replica,
                after,
                released,
            } => {
                self.put_record(&cell, replica, &Record::Truncate { after });
                written.released.push(released);
            }
            Item::Purge {
                cell,
                replica,
                upto,
                released,
            } => {
                self.put_record(&cell, replica, &Record::Purge(upto));
                written.released.push(released);
            }
            Item::Tombstone {
                cell,
                replica,
                vote,
                released,
                callback,
            } => {
                self.put_record(&cell, replica, &Record::Tombstone { vote });
                written.released.push(released);
                written.callbacks.push(callback);
            }
        }
    }
}
