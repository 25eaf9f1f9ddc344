//! The third way to be born (PROTOCOLS C4): by asking.
//!
//! A node that was away while a shard was split, and is then rebuilt by a
//! snapshot of the parent, never applies the split: the snapshot shows the
//! parent after it, and nothing seeds the child. The child's replicas elsewhere
//! count this node's replica as a member and address it in vain. So when a
//! message names such a replica, its sender is asked whether that replica is a
//! member, and if so an empty one is put on record and started: the leader
//! finds that it has nothing and sends a snapshot.
//!
//! **Why such a replica may vote.** Raft lets a member come up late, with
//! nothing; it must not come up *again* with less than it had promised. This
//! incarnation has never run here, so it never promised anything:
//!
//! - A span of this node's engine that a snapshot took from a replica is on
//!   record there ([`local::ReplicaRecord::shed`], in the batch of the
//!   snapshot). Only children in such a span are born by asking. A node that
//!   lost its data has no such record, and its replicas are replaced under new
//!   ids instead.
//! - If the split *had* been applied here before a crash took the seed with the
//!   engine's memory, the child may have voted; its votes and entries are in
//!   the raft log, which outlives the engine's memory. So the log must know
//!   nothing of any incarnation of the child: no record, no tombstone (C3).
//!   If it does, the replica stays closed and is replaced.
//! - A seed on record, started or not, is the parent's word and comes first.
//! - It is the child's first incarnation on this node, the one that the split
//!   named; later ones are the reconciler's to make.
//!
//! The seed that it never got carried a vote in the split's term for the
//! child's first leader. Every other replica starts from that seed, so none
//! stands for election in that term or below, and the empty replica is never
//! asked to vote there. It does not stand itself before its leader's snapshot
//! has told it who the members are.
//!
//! **Why the sender's word is enough**, and no quorum is asked: the answer may
//! be older than a change that removed this replica. Then it is a removed member
//! that still runs, which Raft allows, and which the reconciler destroys when
//! it is reported. Asking a quorum would leave the group without one for want
//! of this very replica.

use super::bounds;
use super::groups::GroupsCore;
use super::local::{self, ReplicaRecord};
use super::metrics;
use crate::transport::Lane;
use crate::{Error, Result};
use lineradb_common::{ReplicaId, ShardId, clock, spawn};
use lineradb_proto::raft::v1 as proto;
use lineradb_proto::shard::v1::ShardDescriptor;
use prost::Message;
use proto::raft_reply::Body as Answer;
use std::sync::Arc;
use std::time::Duration;

/// How long the sender has to answer; it sends again soon.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

impl GroupsCore {
    /// A message named a replica that is not here. Returns at once.
    pub(crate) fn addressed(self: &Arc<Self>, shard: ShardId, replica: ReplicaId, by: ReplicaId) {
        if !self.may_ask(shard, replica) || !self.asking.lock().insert(shard) {
            return;
        }
        let core = Arc::clone(self);
        spawn::task("ask for a birth", async move {
            match core.ask(shard, replica, by).await {
                Ok(true) => {
                    tracing::info!(%shard, %replica, "a replica was born by asking");
                    metrics::get().births_asked_total.inc();
                }
                Ok(false) => {}
                // Usual while the parent catches up. The next message asks again.
                Err(error) => tracing::debug!(%shard, %replica, %error, "not born"),
            }
            core.asking.lock().remove(&shard);
        });
    }

    /// What memory knows: most replicas that are addressed in vain were never
    /// to be born here.
    fn may_ask(&self, shard: ShardId, replica: ReplicaId) -> bool {
        let shed = |group: &super::Group| !group.state().visible.read().shed.is_empty();
        replica.node() == self.node
            && replica.incarnation() == 1
            && !self.stopping()
            && self.get(shard).is_none()
            && self.list().iter().any(shed)
    }

    async fn ask(
        self: &Arc<Self>,
        shard: ShardId,
        replica: ReplicaId,
        by: ReplicaId,
    ) -> Result<bool> {
        let question = proto::RaftRequest {
            id: 0,
            group_id: shard.0,
            to_replica: by.0,
            from_replica: replica.0,
            body: Some(proto::raft_request::Body::Birth(proto::BirthQuestion {})),
        };
        let pending = self.transport.send(by.node(), Lane::Bulk, question);
        let unavailable = |why: &str| Error::Unavailable(format!("asking {by}: {why}"));
        let reply = tokio::time::timeout_at(clock::deadline_after(ANSWER_WAIT), pending)
            .await
            .map_err(|_| unavailable("no answer"))?
            .map_err(|_| unavailable("the transport stopped"))?
            .map_err(|error| unavailable(&error.to_string()))?;
        let Some(Answer::Birth(answer)) = reply.body else {
            return Err(unavailable("not answered"));
        };
        if answer.shard_state.is_empty() {
            return Ok(false);
        }
        let descriptor = ShardDescriptor::decode(answer.shard_state)
            .map_err(|error| Error::Corrupt(format!("a descriptor: {error}")))?;
        if descriptor.shard_id != shard.0 {
            return Err(Error::Corrupt("an answer about another shard".into()));
        }
        self.bear(shard, replica, descriptor).await
    }

    async fn bear(
        self: &Arc<Self>,
        shard: ShardId,
        replica: ReplicaId,
        descriptor: ShardDescriptor,
    ) -> Result<bool> {
        let _life = self.life.lock().await;
        if !self.may_ask(shard, replica) {
            return Ok(false);
        }
        // One look at the engine: it shows a split whole or not at all. Either
        // the parent still covers the range, or the seed is on record.
        let records = local::load_all(&self.storage)?;
        if records.contains_key(&shard) {
            return Ok(false);
        }
        let span = bounds::span(&descriptor);
        let shed = { records.values() }
            .flat_map(|record| &record.shed)
            .any(|shed| bounds::lies_in(&span, shed));
        let log = self.log.group(shard);
        // C3: votes and entries of any incarnation, or a tombstone.
        if !shed || log.replica().is_some() || log.tombstone().is_some() {
            return Ok(false);
        }
        let record = ReplicaRecord {
            replica,
            descriptor,
            ..ReplicaRecord::default()
        };
        self.bring_up(shard, record).await?;
        Ok(true)
    }
}
