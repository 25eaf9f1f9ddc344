//! Installs a snapshot: the whole content of a replica replaced, in bounded
//! memory, whatever a crash does (PROTOCOLS D1, D2).
//!
//! ```text
//! file synced -> batch: "installing <file>, <position>, ..."
//!             -> batches: everything that the replica holds goes, the rows come
//!             -> batch: descriptor, membership, position; "installing" goes
//!             -> flush -> the file goes, openraft hears of it
//! ```
//!
//! A crash keeps a prefix of these batches (D1: all trees flush together). If
//! it does not hold the first one, the replica is as it was before. If it holds
//! the last one, the snapshot is installed. In between the replica is neither,
//! and the record says so: at the next start, before the replica runs, the
//! installation is done again from the file, which was durable before its name
//! was. Doing it twice changes nothing.
//!
//! **Whose keys go.** A snapshot that was cut before a split covers the child's
//! range as well. An empty replica that was made after the split must not take
//! it: the child may hold acknowledged writes on this node (C4). Whoever
//! receives such a snapshot refuses it, and the sender tries again with a later
//! one; what slips by is met here, before anything is written, and stops the
//! replica.
//!
//! The raft log loses nothing by this. openraft purges what the snapshot covers
//! only after the installation is reported (D2), so until then the log is as it
//! was, and after a repetition the log is only behind the position, which
//! openraft knows from an ordinary crash between installation and purge. That is
//! why an interrupted replica is not emptied to ask for another snapshot: it may
//! have acknowledged entries up to that position, and forgetting them could let
//! a candidate without them win (an acknowledged write would be lost).

use super::ShardCut;
use super::spool::{Spool, Spooled};
use crate::consensus::bounds::{self, Bounds};
use crate::consensus::local::{self, Installing, ReplicaRecord};
use crate::consensus::replica::ReplicaState;
use crate::consensus::storage::Storage;
use crate::consensus::types::{SnapshotMeta, log_id_from};
use crate::raft_log::LogId;
use crate::rules::{Rule, Rules};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{ShardId, spawn};
use lineradb_lsm::WriteBatch;
use lineradb_proto::shard::v1::ShardDescriptor;
use std::sync::Arc;

/// About how many bytes of rows one batch takes; few in tests, so that a small
/// snapshot needs many.
const BATCH_BYTES: usize = if cfg!(test) { 2 << 10 } else { 4 << 20 };

/// What an installed snapshot left.
pub(crate) struct Installed {
    pub descriptor: ShardDescriptor,
    pub applied: LogId,
    /// See [`ReplicaRecord::shed`].
    pub shed: Vec<(Bytes, Bytes)>,
}

/// Replaces everything that the replica holds by the cut, durably.
pub(crate) async fn install(
    state: &Arc<ReplicaState>,
    meta: &SnapshotMeta,
    cut: ShardCut,
    rules: Rules,
) -> Result<Installed> {
    let applied = meta
        .last_log_id
        .as_ref()
        .map(log_id_from)
        .ok_or_else(|| Error::Corrupt("a snapshot of nothing".into()))?;
    let state = Arc::clone(state);
    let membership = meta.last_membership.clone();
    let work = move || -> Result<Installed> {
        let storage = &state.storage;
        let descriptor = cut.descriptor().clone();
        let spooled = cut.into_spooled(&state.spool)?;
        let installing = Installing {
            file: spooled.name().to_owned(),
            rows: spooled.rows(),
            applied,
            membership,
            descriptor,
        };
        let before = local::load(storage, state.shard)?
            .ok_or_else(|| Error::Corrupt(format!("no record of shard {}", state.shard)))?;
        // C4: from the look to the record nobody else claims these keys.
        let room = storage.room.lock();
        local::check_install(storage, &installing.descriptor)?;
        // The name may be durable from the next line on.
        spooled.keep();
        let mut batch = WriteBatch::new();
        local::put_installing(&mut batch, storage, state.shard, &installing);
        state.write(batch)?;
        drop(room);
        let shed = shed(&before, &installing.descriptor);
        let write = |batch| state.write(batch);
        let seqno = replace(storage, &before, &installing, &spooled, &shed, write)?;
        if rules.hold(Rule::EditBeforePurge) {
            storage.db.flush()?;
            state.note_written(seqno, applied);
            spooled.done();
        }
        Ok(Installed {
            descriptor: installing.descriptor,
            applied,
            shed,
        })
    };
    spawn::blocking(work)
        .await
        .map_err(|error| Error::Unavailable(format!("installing a snapshot: {error}")))?
}

/// At start: does again what a crash interrupted. Gives the record as it is
/// then.
///
/// # Errors
/// When the file cannot be read, or covers what another replica holds: the
/// replica does not start, and is replaced under a new id (D3).
pub(crate) fn resume(
    storage: &Storage,
    spool: &Arc<Spool>,
    record: ReplicaRecord,
) -> Result<ReplicaRecord> {
    let Some(installing) = &record.installing else {
        return Ok(record);
    };
    let shard = ShardId(record.descriptor.shard_id);
    tracing::info!(%shard, file = installing.file, "a snapshot's installation goes on");
    local::check_install(storage, &installing.descriptor)?;
    let spooled = spool.find(&installing.file, installing.rows);
    let shed = shed(&record, &installing.descriptor);
    let write = |batch| storage.write(batch);
    replace(storage, &record, installing, &spooled, &shed, write)?;
    storage.db.flush()?;
    spooled.done();
    local::load(storage, shard)?
        .ok_or_else(|| Error::Corrupt(format!("the record of shard {shard} is gone")))
}

fn replace(
    storage: &Storage,
    before: &ReplicaRecord,
    installing: &Installing,
    spooled: &Spooled,
    shed: &[(Bytes, Bytes)],
    write: impl Fn(WriteBatch) -> Result<u64>,
) -> Result<u64> {
    let descriptor = &installing.descriptor;
    let shard = ShardId(descriptor.shard_id);
    let bounds = Bounds::of(descriptor);
    // The old range too: after a split further on, the new one is smaller, and
    // what is left over belongs to the child, which is born here later (C4) and
    // gets its rows from its own leader.
    for descriptor in [&before.descriptor, descriptor] {
        let ranges = local::own_ranges(storage, descriptor)?;
        storage.delete_all(&ranges, &write)?;
    }
    let mut batch = WriteBatch::new();
    spooled.for_each(|row| {
        if !bounds.contains(&row.key) {
            return Err(Error::Corrupt(format!(
                "a snapshot of shard {shard} holds a key of another"
            )));
        }
        batch.put(storage.keyspace(row.tree), &row.key, &row.value);
        if batch.byte_len() >= BATCH_BYTES {
            write(std::mem::take(&mut batch))?;
        }
        Ok(())
    })?;
    local::put_descriptor(&mut batch, storage, descriptor);
    local::put_membership(&mut batch, storage, shard, &installing.membership);
    local::put_applied(&mut batch, storage, shard, installing.applied);
    local::put_shed(&mut batch, storage, shard, shed);
    local::delete_installing(&mut batch, storage, shard);
    write(batch)
}

/// What a replica has given up to children whose split it never applied, this
/// snapshot's part included. A replica that has applied nothing yet has never
/// held its range: it gives up nothing.
fn shed(before: &ReplicaRecord, now: &ShardDescriptor) -> Vec<(Bytes, Bytes)> {
    let mut shed = before.shed.clone();
    if before.applied.is_some() {
        shed.extend(bounds::left_over(
            &bounds::span(&before.descriptor),
            &bounds::span(now),
        ));
    }
    shed
}
