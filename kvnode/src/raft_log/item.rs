//! What can be asked of the writer, and how it answers.

use super::Location;
use super::cell::Cell;
use super::record::{LogId, Vote};
use bytes::Bytes;
use lineradb_common::ReplicaId;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Called once, when a write is durable or never will be.
pub struct Callback(Box<dyn FnOnce(io::Result<()>) + Send>);

impl Callback {
    /// A function to be called from the writer's thread.
    pub fn new(f: impl FnOnce(io::Result<()>) + Send + 'static) -> Self {
        Callback(Box::new(f))
    }

    pub(crate) fn channel() -> (Self, oneshot::Receiver<io::Result<()>>) {
        let (tx, rx) = oneshot::channel();
        let callback = Callback::new(move |result| {
            // Nobody waits any more: the caller was cancelled.
            let _ = tx.send(result);
        });
        (callback, rx)
    }

    pub(crate) fn call(self, result: io::Result<()>) {
        (self.0)(result);
    }
}

/// Live entries that a purge or truncation took from segments. Counted only
/// once its record is durable: a segment deleted earlier would leave a gap.
#[derive(Debug, Default)]
pub(crate) struct Released(pub BTreeMap<u64, (u64, u64)>);

impl Released {
    pub(crate) fn add(&mut self, location: Location) {
        let entry = self.0.entry(location.segment).or_default();
        entry.0 += 1;
        entry.1 += u64::from(location.length);
    }
}

/// Something to be written.
pub(crate) enum Item {
    Append {
        cell: Arc<Cell>,
        replica: ReplicaId,
        entries: Vec<(u64, LogId, Bytes)>,
        callback: Callback,
        permit: OwnedSemaphorePermit,
    },
    Vote {
        cell: Arc<Cell>,
        replica: ReplicaId,
        vote: Vote,
        callback: Callback,
    },
    Truncate {
        cell: Arc<Cell>,
        replica: ReplicaId,
        after: Option<u64>,
        released: Released,
    },
    Purge {
        cell: Arc<Cell>,
        replica: ReplicaId,
        upto: LogId,
        released: Released,
    },
    Tombstone {
        cell: Arc<Cell>,
        replica: ReplicaId,
        vote: Option<Vote>,
        released: Released,
        callback: Callback,
    },
}

impl Item {
    /// Answers an item that will never be written.
    pub(crate) fn refuse(self, error: io::Error) {
        match self {
            Item::Append { callback, .. }
            | Item::Vote { callback, .. }
            | Item::Tombstone { callback, .. } => callback.call(Err(error)),
            Item::Truncate { .. } | Item::Purge { .. } => {}
        }
    }
}
