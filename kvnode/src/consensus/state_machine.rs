//! Apply: what the log decided becomes what the trees hold.
//!
//! Entries are gathered into one storage batch together with the position that
//! they reach, the membership and the descriptor, so that whatever a crash
//! keeps is a state that the log once had (PROTOCOLS D1). A command gets a
//! verdict, the same on every replica; everything else that goes wrong is fatal
//! to this replica alone. There is no third way.

use super::bounds::Bounds;
use super::local;
use super::metrics;
use super::replica::ReplicaState;
use super::split::{self, Birth};
use super::types::{
    Entry, Payload, Proposal, RaftLogId, SnapshotMeta, StoredMembership, TypeConfig, log_id_from,
    raft_log_id,
};
use super::verdict;
use crate::command::{Body, Command, Expect, Op, Rejection, Tree, Verdict, value_hash};
use crate::raft_log::LogId;
use crate::rules::{Rule, Rules};
use crate::snapshot::{self, ShardCut, Spool};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use lineradb_common::spawn;
use lineradb_lsm::WriteBatch;
use lineradb_proto::shard::v1::{Replica, ShardDescriptor};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::Arc;

/// A storage batch is written when it has grown to this size.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A snapshot: what it is about, and where its rows come from.
type Cut = openraft::alias::SnapshotOf<TypeConfig, ShardCut>;

/// Called outside of apply's way with a child that a split has seeded.
pub(crate) type BirthHook = Arc<dyn Fn(Birth) + Send + Sync>;

/// The state machine of one replica.
pub struct StateMachine {
    state: Arc<ReplicaState>,
    births: BirthHook,
    rules: Rules,
    /// As of the end of the batch under construction.
    descriptor: Arc<ShardDescriptor>,
    bounds: Arc<Bounds>,
    membership: StoredMembership,
    applied: Option<LogId>,
    pending: Pending,
}

/// A batch under construction.
#[derive(Default)]
struct Pending {
    batch: WriteBatch,
    /// The versions that it puts.
    written: Vec<Bytes>,
    entries: u64,
    acknowledge: Vec<(ApplyResponder<TypeConfig>, Verdict)>,
    births: Vec<Birth>,
    descriptor_changed: bool,
    membership_changed: bool,
}

impl StateMachine {
    pub(crate) fn new(state: Arc<ReplicaState>, births: BirthHook) -> Self {
        let (descriptor, bounds, membership, applied) = {
            let visible = state.visible.read();
            (
                Arc::clone(&visible.descriptor),
                Arc::clone(&visible.bounds),
                visible.membership.clone(),
                visible.applied,
            )
        };
        StateMachine {
            state,
            births,
            rules: Rules::default(),
            descriptor,
            bounds,
            membership,
            applied,
            pending: Pending::default(),
        }
    }

    /// A state machine that no group drives, for suites and scenarios: its
    /// splits seed children, but nobody starts them.
    ///
    /// # Errors
    /// When the engine lacks a tree.
    pub fn detached(
        db: lineradb_lsm::Db,
        spool: Arc<Spool>,
        replica: lineradb_common::ReplicaId,
        descriptor: ShardDescriptor,
    ) -> crate::Result<Self> {
        let storage = super::storage::Storage::new(db)?;
        let shard = lineradb_common::ShardId(descriptor.shard_id);
        let record = match local::load(&storage, shard)? {
            Some(record) => snapshot::resume(&storage, &spool, record)?,
            None => {
                let record = local::ReplicaRecord {
                    replica,
                    descriptor,
                    ..local::ReplicaRecord::default()
                };
                let mut batch = WriteBatch::new();
                local::put_replica(&mut batch, &storage, &record);
                storage.write(batch)?;
                record
            }
        };
        let state = Arc::new(ReplicaState::new(storage, spool, record));
        Ok(StateMachine::new(state, Arc::new(|_| {})))
    }

    /// The same with other rules.
    #[cfg(test)]
    pub(crate) fn under(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    fn apply_entry(
        &mut self,
        entry: Entry,
        responder: Option<ApplyResponder<TypeConfig>>,
    ) -> crate::Result<()> {
        let id = log_id_from(&entry.log_id);
        let verdict = match entry.payload {
            Payload::Blank => Verdict::Applied,
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.pending.membership_changed = true;
                self.change_descriptor(|descriptor, membership| {
                    descriptor.configuration_version += 1;
                    descriptor.replicas = voters(membership);
                });
                Verdict::Applied
            }
            Payload::Normal(proposal) => self.apply_command(id, &proposal, responder.is_some())?,
        };
        self.applied = Some(id);
        self.pending.entries += 1;
        if verdict != Verdict::Applied {
            metrics::get().rejections_total.inc();
        }
        if let Some(responder) = responder {
            self.pending.acknowledge.push((responder, verdict));
        }
        if !self.pending.births.is_empty() || self.pending.batch.byte_len() > BATCH_BYTES_MAX {
            self.write()?;
        }
        Ok(())
    }

    /// `live`: this process proposed it, in the term that it still led when it
    /// was committed.
    fn apply_command(
        &mut self,
        id: LogId,
        proposal: &Proposal,
        live: bool,
    ) -> crate::Result<Verdict> {
        let command = proposal.decode().map_err(|error| {
            crate::Error::Corrupt(format!(
                "entry {} of shard {}: {error}",
                id.index, self.state.shard
            ))
        })?;
        if let Some(rejection) = verdict::check(&command, id.term, &self.descriptor, &self.bounds) {
            return Ok(Verdict::Rejected(rejection));
        }
        match &command.body {
            Body::Write { ops, expect } => self.apply_write(ops, expect),
            Body::Split { .. } => self.apply_split(id, proposal, &command, live),
        }
    }

    fn apply_write(&mut self, ops: &[Op], expect: &[Expect]) -> crate::Result<Verdict> {
        if !expect.is_empty() {
            // What is expected is looked up in the engine, so everything before
            // this entry must be there.
            self.write()?;
            for expect in expect {
                let found = self
                    .state
                    .storage
                    .db
                    .get(self.state.storage.keyspace(expect.tree), &expect.key)?;
                if found.map(|value| value_hash(&value)) != expect.hash {
                    return Ok(Verdict::Rejected(Rejection::ExpectFailed));
                }
            }
        }
        for op in ops {
            let keyspace = self.state.storage.keyspace(op.tree);
            match &op.value {
                Some(value) => {
                    self.pending.batch.put(keyspace, &op.key, value);
                    if op.tree == Tree::Data {
                        self.pending.written.push(op.key.clone());
                    }
                }
                None => self.pending.batch.delete(keyspace, &op.key),
            }
        }
        Ok(Verdict::Applied)
    }

    fn apply_split(
        &mut self,
        id: LogId,
        proposal: &Proposal,
        command: &Command,
        live: bool,
    ) -> crate::Result<Verdict> {
        self.write()?;
        let storage = &self.state.storage;
        let Some(plan) = split::plan(&self.descriptor, id, proposal.proposer, command) else {
            return Ok(Verdict::Rejected(Rejection::ShardChanged));
        };
        // S2: a split waits for schema versions that are being written.
        let schema = super::bounds::schema_prefix(self.state.shard);
        if !storage.pairs(Tree::Intent, &schema)?.is_empty() {
            return Ok(Verdict::Rejected(Rejection::SchemaIntent));
        }
        for (key, value) in storage.pairs(Tree::Data, &schema)? {
            if let Some(key) = split::inherited_version(&plan, &schema, &key) {
                self.pending
                    .batch
                    .put(storage.keyspace(Tree::Data), &key, &value);
            }
        }
        // X5: what the parent does not serve any more, its child does not either.
        let threshold = |shard| crate::mvcc::keys::threshold_key(shard);
        let (ours, theirs) = (threshold(self.state.shard), threshold(plan.child_shard()));
        let txn = storage.keyspace(Tree::Txn);
        if let Some(kept) = storage.db.get(txn, &ours)? {
            self.pending.batch.put(txn, &theirs, &kept);
        }
        // C4: never over a child that exists; it may have voted since.
        if !local::exists(storage, plan.child_shard())?
            && let Some(record) = plan.child_on(self.state.replica.node())
        {
            local::put_replica(&mut self.pending.batch, storage, &record);
            if !self.rules.hold(Rule::SeedInParentsBatch) {
                // A batch of its own, and a flush may come between the two.
                storage.write(std::mem::take(&mut self.pending.batch))?;
                storage.db.flush()?;
            }
        }
        let right = Arc::new(plan.right.clone());
        self.change_descriptor(|descriptor, _| *descriptor = plan.left.clone());
        self.pending.births.push(Birth {
            shard: plan.child_shard(),
            left: Arc::clone(&self.descriptor),
            right,
            term: id.term,
            lead: live && proposal.proposer == self.state.replica,
        });
        metrics::get().splits_total.inc();
        Ok(Verdict::Applied)
    }

    fn change_descriptor(&mut self, change: impl FnOnce(&mut ShardDescriptor, &StoredMembership)) {
        let mut descriptor = ShardDescriptor::clone(&self.descriptor);
        change(&mut descriptor, &self.membership);
        self.bounds = Arc::new(Bounds::of(&descriptor));
        self.descriptor = Arc::new(descriptor);
        self.pending.descriptor_changed = true;
    }

    /// Writes what has gathered, makes it visible, and then says so.
    fn write(&mut self) -> crate::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        if pending.entries == 0 && pending.acknowledge.is_empty() && pending.births.is_empty() {
            // Nothing but, at most, operations of an entry under evaluation.
            self.pending = pending;
            return Ok(());
        }
        let storage = &self.state.storage;
        if pending.descriptor_changed {
            local::put_descriptor(&mut pending.batch, storage, &self.descriptor);
        }
        if pending.membership_changed {
            local::put_membership(
                &mut pending.batch,
                storage,
                self.state.shard,
                &self.membership,
            );
        }
        if let Some(applied) = self.applied {
            local::put_applied(&mut pending.batch, storage, self.state.shard, applied);
            // The engine may make writers wait for its flushes: the threads that
            // carry heartbeats must not be among them.
            let state = &self.state;
            state.tail.begin(&pending.written);
            let seqno = spawn::stalling(|| state.write(pending.batch))?;
            state.tail.end();
            self.state.note_written(seqno, applied);
        }
        metrics::get()
            .apply_batch_entries
            .observe(pending.entries as f64);
        {
            let mut visible = self.state.visible.write();
            visible.applied = self.applied;
            if pending.descriptor_changed {
                visible.descriptor = Arc::clone(&self.descriptor);
                visible.bounds = Arc::clone(&self.bounds);
            }
            if pending.membership_changed {
                visible.membership = self.membership.clone();
            }
        }
        if pending.descriptor_changed {
            // What is written into a right half is not written here any more.
            self.state.tail.reset();
        }
        for birth in pending.births {
            self.state.leadership.split(&birth.applied());
            (self.births)(birth);
        }
        for (responder, verdict) in pending.acknowledge {
            responder.send(verdict);
        }
        Ok(())
    }

    fn cut(&self) -> Cut {
        Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.applied.map(raft_log_id),
                last_membership: self.membership.clone(),
            },
            snapshot: ShardCut::outgoing(
                self.state.storage.clone(),
                ShardDescriptor::clone(&self.descriptor),
            ),
        }
    }
}

/// The voters of a membership, as descriptors list them.
pub(crate) fn voters(membership: &StoredMembership) -> Vec<Replica> {
    membership
        .voter_ids()
        .map(|id| Replica {
            replica_id: id,
            node_id: lineradb_common::ReplicaId(id).node().0,
            address: membership
                .get_node(&id)
                .map_or_else(String::new, |node| node.addr.clone()),
        })
        .collect()
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ShardCut;
    type SnapshotBuilder = Checkpoint;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        Ok((self.applied.map(raft_log_id), self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.apply_entry(entry, responder)?;
        }
        self.write()?;
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        // Asked for by the keeper of the log, to let it purge: whatever is
        // durable already will do, nothing is flushed for it (D1).
        let durable = match self.rules.hold(Rule::EditBeforePurge) {
            true => self.state.durable_applied()?,
            false => self.applied?,
        };
        let known = self.membership.log_id().as_ref().map(log_id_from);
        if known.is_some_and(|id| id.index > durable.index) {
            return None;
        }
        let mut cut = self.cut();
        cut.meta.last_log_id = Some(raft_log_id(durable));
        Some(Checkpoint {
            cut: Some(cut),
            flush: None,
        })
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Checkpoint {
            cut: Some(self.cut()),
            flush: Some(Arc::clone(&self.state)),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: ShardCut,
    ) -> Result<(), io::Error> {
        self.state.tail.reset();
        self.state.replace_content();
        let installed = snapshot::install(&self.state, meta, snapshot, self.rules).await?;
        self.descriptor = Arc::new(installed.descriptor);
        self.bounds = Arc::new(Bounds::of(&self.descriptor));
        self.membership = meta.last_membership.clone();
        self.applied = Some(installed.applied);
        let mut visible = self.state.visible.write();
        visible.applied = self.applied;
        visible.descriptor = Arc::clone(&self.descriptor);
        visible.bounds = Arc::clone(&self.bounds);
        visible.membership = self.membership.clone();
        visible.shed = installed.shed;
        drop(visible);
        self.state.content_replaced();
        metrics::get().snapshots_installed_total.inc();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Cut>, io::Error> {
        Ok(self.applied.map(|_| self.cut()))
    }
}

/// What openraft calls building a snapshot: here, learning how far the state
/// is durable. Rows are read only when a snapshot is sent.
pub struct Checkpoint {
    cut: Option<Cut>,
    flush: Option<Arc<ReplicaState>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpoint {
    type SnapshotData = ShardCut;

    async fn build_snapshot(&mut self) -> Result<Cut, io::Error> {
        if let Some(state) = self.flush.take() {
            state.storage.flush().await?;
        }
        self.cut
            .take()
            .ok_or_else(|| io::Error::other("this checkpoint was taken already"))
    }
}
