//! Snapshots: a consistent cut of one shard, for a replica that is too far
//! behind or has just been made.
//!
//! The sender reads a snapshot of the storage engine taken at an applied
//! position: the shard's range and its local keys in the replicated trees. The
//! rows travel in checksummed chunks on a stream of their own (C8). The
//! receiver puts them into a file ([`spool`]) and installs them from there
//! ([`install`]): memory holds a chunk or a batch of it at any time.

mod chunks;
mod install;
mod receive;
mod spool;

pub use chunks::{CHUNK_BYTES, chunks};
pub(crate) use install::{install, resume};
pub use receive::Assembly;
pub use spool::Spool;

use crate::Result;
use crate::command::Tree;
use crate::consensus::bounds::Bounds;
use crate::consensus::storage::Storage;
use bytes::Bytes;
use lineradb_proto::shard::v1::ShardDescriptor;
use spool::Spooled;
use std::sync::Arc;

/// One row of a tree.
pub(crate) struct Row {
    pub tree: Tree,
    pub key: Bytes,
    pub value: Bytes,
}

/// The rows of a shard at one position.
pub struct ShardCut(Source);

enum Source {
    /// Read from the engine as it was when the cut was made.
    Outgoing {
        storage: Storage,
        snapshot: lineradb_lsm::Snapshot,
        descriptor: Box<ShardDescriptor>,
    },
    /// Received in full.
    Incoming {
        rows: Spooled,
        descriptor: Box<ShardDescriptor>,
    },
}

impl std::fmt::Debug for ShardCut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cut of shard {}", self.descriptor().shard_id)
    }
}

impl ShardCut {
    pub(crate) fn outgoing(storage: Storage, descriptor: ShardDescriptor) -> Self {
        ShardCut(Source::Outgoing {
            snapshot: storage.db.snapshot(),
            storage,
            descriptor: Box::new(descriptor),
        })
    }

    pub(crate) fn incoming(rows: Spooled, descriptor: ShardDescriptor) -> Self {
        ShardCut(Source::Incoming {
            rows,
            descriptor: Box::new(descriptor),
        })
    }

    /// The shard as it was.
    pub fn descriptor(&self) -> &ShardDescriptor {
        match &self.0 {
            Source::Outgoing { descriptor, .. } | Source::Incoming { descriptor, .. } => descriptor,
        }
    }

    /// The rows in a file: as they were received, or, for a cut of this very
    /// process, written there now.
    pub(crate) fn into_spooled(self, spool: &Arc<Spool>) -> Result<Spooled> {
        match self.0 {
            Source::Incoming { rows, .. } => Ok(rows),
            outgoing => {
                let mut writer = spool.create()?;
                let mut gathered = chunks::Gathered::default();
                ShardCut(outgoing).for_each(|row| match gathered.add(row) {
                    Some(full) => writer.put(&full),
                    None => Ok(()),
                })?;
                if let Some(rest) = gathered.rest() {
                    writer.put(&rest)?;
                }
                writer.seal()
            }
        }
    }

    /// Visits every row in order.
    pub(crate) fn for_each(self, mut visit: impl FnMut(Row) -> Result<()>) -> Result<()> {
        match self.0 {
            Source::Incoming { rows, .. } => rows.for_each(visit),
            Source::Outgoing {
                storage,
                snapshot,
                descriptor,
            } => {
                let bounds = Bounds::of(&descriptor);
                for tree in Tree::REPLICATED {
                    for (lower, upper) in bounds.ranges() {
                        let mut iter = snapshot.iter(
                            storage.keyspace(tree),
                            std::ops::Bound::Included(&lower),
                            std::ops::Bound::Excluded(&upper),
                        );
                        iter.seek_to_first()?;
                        while iter.valid() {
                            visit(Row {
                                tree,
                                key: Bytes::copy_from_slice(iter.key()),
                                value: Bytes::copy_from_slice(iter.value()),
                            })?;
                            iter.next()?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}
