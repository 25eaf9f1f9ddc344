//! Orders of the metaservice: replicas are made, replaced and destroyed. All
//! orders are idempotent: they are repeated until a status shows them done.

use super::api::Leadership;
use super::bounds;
use super::group::Group;
use super::groups::{Groups, GroupsCore};
use super::local::{self, ReplicaRecord, Seed};
use super::split;
use super::storage::Storage;
use crate::raft_log::LogId;
use crate::snapshot::Spool;
use crate::{Error, Result};
use lineradb_common::{ReplicaId, ShardId, keys, spawn};
use lineradb_lsm::WriteBatch;
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1::ShardDescriptor;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What every founder's log starts behind.
const FOUNDING: LogId = LogId { term: 0, index: 0 };

/// One step towards replacing a replica.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The leader is the one to go: another one must lead first.
    HandOver(u64),
    AddLearner,
    /// The voters that are wanted.
    Promote(BTreeSet<u64>),
    Done,
}

/// The next step, from the membership as it is: that is what makes the order
/// resumable, by whoever leads.
fn next_step(me: u64, joint: &[BTreeSet<u64>], nodes: &BTreeSet<u64>, old: u64, new: u64) -> Step {
    let voters: BTreeSet<u64> = joint.iter().flatten().copied().collect();
    let mut wanted = joint.last().cloned().unwrap_or_default();
    wanted.remove(&old);
    wanted.insert(new);
    if joint.len() == 1 && joint[0] == wanted && !nodes.contains(&old) {
        return Step::Done;
    }
    if me == old {
        let heir = voters.iter().find(|id| **id != old && **id != new);
        if let Some(heir) = heir {
            return Step::HandOver(*heir);
        }
    }
    if !nodes.contains(&new) {
        return Step::AddLearner;
    }
    Step::Promote(wanted)
}

impl Groups {
    /// Creates a replica: a founder of a new shard, or an empty one that the
    /// leader will add and send a snapshot to.
    ///
    /// # Errors
    /// [`Error::Refused`] when the replica was destroyed here before (C3);
    /// [`Error::Unavailable`] while another replica holds part of the range.
    pub async fn create_replica(&self, order: meta::CreateReplica) -> Result<()> {
        let core = &self.core;
        let descriptor = order
            .shard
            .ok_or_else(|| Error::Refused("an order without its shard".into()))?;
        let (shard, replica) = (ShardId(descriptor.shard_id), ReplicaId(order.replica_id));
        if replica.node() != core.node {
            return Err(Error::Refused(format!(
                "replica {replica} belongs to node {}, this is {}",
                replica.node(),
                core.node
            )));
        }
        let _life = core.life.lock().await;
        if core.stopping() {
            return Err(Error::Unavailable("the node is stopping".into()));
        }
        if let Some(group) = core.get(shard) {
            return match group.replica_id() == replica {
                true => Ok(()),
                false => Err(Error::Unavailable(format!(
                    "replica {} of shard {shard} is still here",
                    group.replica_id()
                ))),
            };
        }
        if let Some(tombstone) = core.log.group(shard).tombstone()
            && replica <= tombstone.replica
        {
            return Err(Error::Refused(format!(
                "replica {replica} of shard {shard} was destroyed here (C3)"
            )));
        }
        let founding = order.founding;
        let record = birth_record(descriptor, replica, founding)?;
        let leads_first = founding && founder_of(&record.descriptor) == Some(replica);
        let group = core.bring_up(shard, record).await?;
        if leads_first && let Err(error) = group.raft().trigger().elect(false).await {
            return Err(Error::Unavailable(error.to_string()));
        }
        Ok(())
    }

    /// Destroys a replica and leaves a tombstone that keeps its last vote (C3).
    ///
    /// # Errors
    /// When the engine or the log fails.
    pub async fn destroy_replica(&self, order: meta::DestroyReplica) -> Result<()> {
        let core = &self.core;
        let (shard, replica) = (ShardId(order.shard_id), ReplicaId(order.replica_id));
        let _life = core.life.lock().await;
        let mut descriptor = None;
        if let Some(group) = core.get(shard) {
            if group.replica_id() > replica {
                // A later incarnation lives here: the one named is gone.
                return Ok(());
            }
            if let Err(error) = group.raft().shutdown().await {
                tracing::warn!(%shard, %error, "a replica did not stop cleanly");
            }
            // Its state machine may still be at work: nothing of it lands after
            // this, and the range does not shrink any more.
            group.state().close();
            descriptor = Some(group.descriptor());
            core.remove(shard);
        } else if let Some(record) = local::load(&core.storage, shard)?
            && record.replica <= replica
        {
            descriptor = Some(Arc::new(record.descriptor));
        }
        // The tombstone drops the log, and with it the only way to make the
        // seed of a child again: that must be durable first (C4, D2).
        core.storage.flush().await?;
        core.log
            .group(shard)
            .destroy(replica)
            .await
            .map_err(|error| Error::io("write a tombstone", error))?;
        if let Some(descriptor) = descriptor {
            let core = Arc::clone(core);
            spawn::blocking(move || core.erase(shard, &descriptor))
                .await
                .map_err(|error| Error::Unavailable(error.to_string()))??;
        }
        self.core.forget_unstarted(shard);
        Ok(())
    }

    /// As leader: adds `new`, waits until it has caught up, promotes it and
    /// removes `old`. Whoever finds it half done goes on where it stopped. The
    /// old replica is destroyed by an order to its own node, once the
    /// descriptor no longer lists it.
    ///
    /// # Errors
    /// When this replica does not lead, hands its leadership over first, or
    /// there is no quorum.
    pub async fn replace_replica(&self, order: meta::ReplaceReplica) -> Result<()> {
        let shard = ShardId(order.shard_id);
        let new = order
            .new
            .ok_or_else(|| Error::Refused("an order without the new replica".into()))?;
        let group = self
            .get(shard)
            .ok_or_else(|| Error::Unavailable(format!("no replica of shard {shard} here")))?;
        if !matches!(group.leadership(), Leadership::Leader { .. }) {
            return Err(Error::Unavailable(format!(
                "this node does not lead shard {shard}"
            )));
        }
        let raft = group.raft();
        let failed = |error: String| Error::Unavailable(format!("shard {shard}: {error}"));
        loop {
            let step = {
                let metrics = raft.metrics();
                let now = metrics.borrow_watched();
                let membership = now.membership_config.membership();
                let nodes = membership.nodes().map(|(id, _)| *id).collect();
                next_step(
                    group.replica_id().0,
                    membership.get_joint_config(),
                    &nodes,
                    order.old_replica_id,
                    new.replica_id,
                )
            };
            match step {
                Step::Done => return Ok(()),
                Step::HandOver(heir) => {
                    group.transfer_leader(ReplicaId(heir)).await?;
                    return Err(Error::Unavailable(format!(
                        "shard {shard}: the leader is to be replaced and hands over first"
                    )));
                }
                Step::AddLearner => {
                    let node = openraft::BasicNode::new(&new.address);
                    raft.add_learner(new.replica_id, node, true)
                        .await
                        .map_err(|error| failed(error.to_string()))?;
                }
                Step::Promote(voters) => {
                    raft.change_membership(voters, false)
                        .await
                        .map_err(|error| failed(error.to_string()))?;
                }
            }
        }
    }
}

/// What a replica is born with.
fn birth_record(
    descriptor: ShardDescriptor,
    replica: ReplicaId,
    founding: bool,
) -> Result<ReplicaRecord> {
    if !founding {
        // Knows nothing: its leader sends a snapshot.
        return Ok(ReplicaRecord {
            replica,
            descriptor,
            ..ReplicaRecord::default()
        });
    }
    if !descriptor
        .replicas
        .iter()
        .any(|r| r.replica_id == replica.0)
    {
        return Err(Error::Refused(format!(
            "replica {replica} is not among the founders of shard {}",
            descriptor.shard_id
        )));
    }
    let membership = split::membership_at(&descriptor, FOUNDING)
        .ok_or_else(|| Error::Refused("a shard without founders".into()))?;
    Ok(ReplicaRecord {
        replica,
        descriptor,
        applied: Some(FOUNDING),
        membership,
        seed: Some(Seed {
            base: FOUNDING,
            vote: None,
        }),
        ..ReplicaRecord::default()
    })
}

/// The founder that campaigns at once; the others only when it does not.
/// Shards of the same nodes get different ones.
fn founder_of(descriptor: &ShardDescriptor) -> Option<ReplicaId> {
    let mut ids: Vec<u64> = descriptor.replicas.iter().map(|r| r.replica_id).collect();
    ids.sort_unstable();
    let at = descriptor.shard_id.checked_rem(ids.len() as u64)?;
    ids.get(at as usize).copied().map(ReplicaId)
}

impl GroupsCore {
    /// No two replicas of a node hold the same key: what a parent still covers
    /// becomes its child's when the parent's own log says so (C4). Replicas on
    /// record that do not run hold their keys as well.
    fn check_room(&self, descriptor: &ShardDescriptor) -> Result<()> {
        let (start, end) = bounds::span(descriptor);
        for group in self.list() {
            let other = group.descriptor();
            let (a, b) = bounds::span(&other);
            if keys::spans_overlap(&start, &end, &a, &b) {
                return Err(Error::Unavailable(format!(
                    "shard {} overlaps shard {} on this node",
                    descriptor.shard_id, other.shard_id
                )));
            }
        }
        local::check_room(descriptor, local::load_all(&self.storage)?.values())
    }

    /// Before a snapshot is received, and again before it is handed to its
    /// replica.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while it covers what another replica here holds:
    /// its sender has not applied a split yet (C4).
    pub(crate) fn check_install(&self, descriptor: &ShardDescriptor) -> Result<()> {
        local::check_install(&self.storage, descriptor)
    }

    /// Puts a new replica on record and starts it. `life` is held.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while another replica holds part of the range.
    pub(super) async fn bring_up(
        self: &Arc<Self>,
        shard: ShardId,
        record: ReplicaRecord,
    ) -> Result<Group> {
        {
            let _room = self.storage.room.lock();
            self.check_room(&record.descriptor)?;
            let mut batch = WriteBatch::new();
            local::put_replica(&mut batch, &self.storage, &record);
            self.storage.write(batch)?;
        }
        // Durable before the replica votes or stores anything: the raft log
        // alone would not bring it back.
        self.storage.flush().await?;
        self.start(shard, record, false).await
    }

    pub(super) fn erase(&self, shard: ShardId, descriptor: &ShardDescriptor) -> Result<()> {
        erase(&self.storage, &self.spool, shard, descriptor)
    }
}

/// Removes what a destroyed replica held: rows first, then its record, so that a
/// crash in between is finished at the next start. What another replica holds
/// stays, whatever the record says.
pub(super) fn erase(
    storage: &Storage,
    spool: &Arc<Spool>,
    shard: ShardId,
    descriptor: &ShardDescriptor,
) -> Result<()> {
    let write = |batch| storage.write(batch);
    storage.delete_all(&local::own_ranges(storage, descriptor)?, write)?;
    let installing = local::load(storage, shard)?.and_then(|r| r.installing);
    if let Some(installing) = &installing {
        let partial = local::own_ranges(storage, &installing.descriptor)?;
        storage.delete_all(&partial, write)?;
    }
    let mut batch = WriteBatch::new();
    local::delete_replica(&mut batch, storage, shard);
    storage.write(batch)?;
    if let Some(installing) = installing {
        // A crash may bring the record back, not the need for the rows.
        spool.find(&installing.file, installing.rows).done();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn replacing_goes_on_from_wherever_it_stopped() {
        let step =
            |me, joint: &[BTreeSet<u64>], nodes: &[u64]| next_step(me, joint, &set(nodes), 3, 4);
        assert_eq!(step(1, &[set(&[1, 2, 3])], &[1, 2, 3]), Step::AddLearner);
        let promote = Step::Promote(set(&[1, 2, 4]));
        assert_eq!(step(1, &[set(&[1, 2, 3])], &[1, 2, 3, 4]), promote);
        let joint = [set(&[1, 2, 3]), set(&[1, 2, 4])];
        assert_eq!(step(1, &joint, &[1, 2, 3, 4]), promote);
        // Uniform, but the old one is still there as a learner.
        assert_eq!(step(1, &[set(&[1, 2, 4])], &[1, 2, 3, 4]), promote);
        assert_eq!(step(1, &[set(&[1, 2, 4])], &[1, 2, 4]), Step::Done);
        assert_eq!(step(3, &[set(&[1, 2, 3])], &[1, 2, 3]), Step::HandOver(1));
    }
}
