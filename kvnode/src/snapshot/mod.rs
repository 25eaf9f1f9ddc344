//! Snapshots: a consistent cut of one shard, for a replica that is too far
//! behind or has just been made.
//!
//! The sender reads a snapshot of the storage engine taken at an applied
//! position: the shard's range and its local keys in the replicated trees. The
//! rows travel in checksummed chunks on a stream of their own (C8). The
//! receiver installs them as one batch that first deletes what the range holds,
//! together with position, membership and descriptor, and flushes before it
//! reports the snapshot as installed: the log below it is purged next (D2).

mod chunks;
mod receive;

pub use chunks::{CHUNK_BYTES, chunks};
pub use receive::Assembly;

use crate::command::Tree;
use crate::consensus::bounds::Bounds;
use crate::consensus::local;
use crate::consensus::replica::ReplicaState;
use crate::consensus::storage::Storage;
use crate::consensus::types::{SnapshotMeta, log_id_from};
use crate::raft_log::LogId;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::spawn;
use lineradb_lsm::WriteBatch;
use lineradb_proto::shard::v1::ShardDescriptor;
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
        rows: Vec<Row>,
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

    pub(crate) fn incoming(rows: Vec<Row>, descriptor: ShardDescriptor) -> Self {
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

    /// Visits every row in order.
    pub(crate) fn for_each(self, mut visit: impl FnMut(Row) -> Result<()>) -> Result<()> {
        match self.0 {
            Source::Incoming { rows, .. } => rows.into_iter().try_for_each(visit),
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

/// What an installed snapshot left.
pub(crate) struct Installed {
    pub descriptor: ShardDescriptor,
    pub applied: LogId,
}

/// Replaces everything that the replica holds by the cut, atomically and
/// durably.
pub(crate) async fn install(
    state: &Arc<ReplicaState>,
    present: &Arc<Bounds>,
    meta: &SnapshotMeta,
    cut: ShardCut,
) -> Result<Installed> {
    let applied = meta
        .last_log_id
        .as_ref()
        .map(log_id_from)
        .ok_or_else(|| Error::Corrupt("a snapshot of nothing".into()))?;
    let (state, present) = (Arc::clone(state), Arc::clone(present));
    let membership = meta.last_membership.clone();
    let work = move || -> Result<Installed> {
        let storage = &state.storage;
        let descriptor = cut.descriptor().clone();
        let bounds = Bounds::of(&descriptor);
        let mut batch = WriteBatch::new();
        // The old range too: after a split further on, the new one is smaller,
        // and what is left over belongs to the child, which is born here later
        // (C4) and brings its own rows.
        storage.delete_into(&mut batch, &present)?;
        storage.delete_into(&mut batch, &bounds)?;
        cut.for_each(|row| {
            if !bounds.contains(&row.key) {
                return Err(Error::Corrupt(format!(
                    "a snapshot of shard {} holds a key of another",
                    descriptor.shard_id
                )));
            }
            batch.put(storage.keyspace(row.tree), &row.key, &row.value);
            Ok(())
        })?;
        local::put_descriptor(&mut batch, storage, &descriptor);
        local::put_membership(&mut batch, storage, state.shard, &membership);
        local::put_applied(&mut batch, storage, state.shard, applied);
        let seqno = state.write(batch)?;
        storage.db.flush()?;
        state.note_written(seqno, applied);
        Ok(Installed {
            descriptor,
            applied,
        })
    };
    spawn::blocking(work)
        .await
        .map_err(|error| Error::Unavailable(format!("installing a snapshot: {error}")))?
}
