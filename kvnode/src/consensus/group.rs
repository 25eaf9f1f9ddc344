//! One replica's Raft group: the handle that the layers above hold.

use super::api::{GroupObserver, Leadership, ProposeError, ReadError, Timing};
use super::metrics;
use super::replica::ReplicaState;
use super::state_machine::StateMachine;
use super::tail::Tail;
use super::types::{CommittedLeaderId, Proposal, TypeConfig};
use crate::command::{Command, Verdict};
use crate::raft_log::GroupLog;
use crate::transport::hearing::Answered;
use crate::{Error, Result};
use lineradb_common::{NodeId, ReplicaId, ShardId};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1::ShardDescriptor;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::{Config, ReadPolicy, ServerState, SnapshotPolicy, StepDownPolicy};
use std::collections::BTreeSet;
use std::sync::Arc;

/// openraft's handle.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// One replica of a shard on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    state: Arc<ReplicaState>,
    log: GroupLog,
}

/// The settings of a group. `restore` lets it take up the leadership that its
/// vote says it had: only for the child of a split that this process proposed
/// and applied live (C1).
pub(crate) fn raft_config(timing: &Timing, restore: bool) -> Result<Arc<Config>> {
    let config = Config {
        cluster_name: "lineradb".to_owned(),
        heartbeat_interval: timing.heartbeat.as_millis() as u64,
        election_timeout_min: timing.election_min.as_millis() as u64,
        election_timeout_max: timing.election_max.as_millis() as u64,
        install_snapshot_timeout: 600_000,
        max_payload_entries: 1024,
        // Never on its own: the keeper of the log purges what is durable.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        removed_leader_step_down: StepDownPolicy::Never,
        quorum_loss_probe_interval: None,
        enable_leader_restore: Some(restore),
        ..Config::default()
    };
    let config = config
        .validate()
        .map_err(|error| Error::Refused(format!("raft timing: {error}")))?;
    Ok(Arc::new(config))
}

fn node_of(forward: &ForwardToLeader<TypeConfig>) -> Option<NodeId> {
    forward.leader_id.map(|id| ReplicaId(id).node())
}

impl Group {
    pub(crate) fn new(raft: Raft, state: Arc<ReplicaState>, log: GroupLog) -> Self {
        let inner = Arc::new(Inner { raft, state, log });
        Group { inner }
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    pub(crate) fn state(&self) -> &Arc<ReplicaState> {
        &self.inner.state
    }

    pub(crate) fn log(&self) -> &GroupLog {
        &self.inner.log
    }

    /// The shard.
    pub fn shard_id(&self) -> ShardId {
        self.inner.state.shard
    }

    /// This replica.
    pub fn replica_id(&self) -> ReplicaId {
        self.inner.state.replica
    }

    /// Range, version and replicas as applied here. The hint at the leader is
    /// this replica's.
    pub fn descriptor(&self) -> Arc<ShardDescriptor> {
        self.inner.state.descriptor()
    }

    /// Who leads. Cheap and synchronous: a hint that [`Group::propose`] and
    /// [`Group::read_index`] check.
    pub fn leadership(&self) -> Leadership {
        let leadership = &self.inner.state.leadership;
        match leadership.term() {
            Some(term) if self.inner.raft.is_leader() => Leadership::Leader { term },
            _ => Leadership::Follower {
                leader: leadership.leader_node(),
            },
        }
    }

    /// Whom this replica takes for the leader (itself before it has applied the
    /// first entry of its term, too), and in which term; `None` from a replica that
    /// has stopped.
    pub fn opinion(&self) -> Option<(NodeId, u64)> {
        if self.inner.state.failed.lock().is_some() {
            return None;
        }
        let metrics = self.inner.raft.server_metrics();
        let now = metrics.borrow_watched();
        let leader = now.current_leader?;
        Some((ReplicaId(leader).node(), now.vote.leader_id.term))
    }

    /// Index of the last entry applied here.
    pub fn applied_index(&self) -> u64 {
        self.inner.state.applied().map_or(0, |id| id.index)
    }

    /// What `take` sees of this replica once it has applied an entry; `None`: it has
    /// not, or what it holds is being replaced. Led or not.
    pub fn as_of<T>(&self, index: u64, take: impl FnOnce() -> T) -> Option<T> {
        self.inner.state.as_of(index, take)
    }

    /// What was written here lately.
    pub fn tail(&self) -> &Tail {
        &self.inner.state.tail
    }

    /// Has a command decided, and waits until it is applied here. It never
    /// lands in another term than `command.term` (C2). Without a quorum it
    /// waits: whoever has a deadline drops the future, and then does not know
    /// the outcome.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<Verdict, ProposeError> {
        let proposal = Proposal {
            proposer: self.replica_id(),
            command: command.encode(),
        };
        match self.propose_once(proposal.clone(), command.term).await {
            // A leader that has heard from no quorum lately (a split's child in
            // its first moment) appends nothing: one round, and again.
            Err(Refused::LeaseExpired) => match self.read_index(command.term).await {
                Ok(()) => match self.propose_once(proposal, command.term).await {
                    Err(Refused::LeaseExpired) => Err(ProposeError::Unavailable(
                        "no quorum has answered lately".to_owned(),
                    )),
                    Err(Refused::Other(error)) => Err(error),
                    Ok(verdict) => Ok(verdict),
                },
                Err(ReadError::NotLeader { leader }) => Err(ProposeError::NotLeader { leader }),
                Err(ReadError::Unavailable(why)) => Err(ProposeError::Unavailable(why)),
            },
            Err(Refused::Other(error)) => Err(error),
            Ok(verdict) => Ok(verdict),
        }
    }

    async fn propose_once(&self, proposal: Proposal, term: u64) -> Result<Verdict, Refused> {
        metrics::get().proposals_total.inc();
        let (responder, decided) = ProgressResponder::complete_only();
        let sent = self
            .inner
            .raft
            .write(proposal)
            .with_leader(CommittedLeaderId::new(term))
            .responder(responder)
            .await;
        if let Err(error) = sent {
            return Err(Refused::Other(ProposeError::Unavailable(error.to_string())));
        }
        match decided.await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => match forward.reason {
                ForwardReason::LeaseExpired => Err(Refused::LeaseExpired),
                _ => Err(Refused::Other(ProposeError::NotLeader {
                    leader: node_of(&forward),
                })),
            },
            Ok(Err(error)) => Err(Refused::Other(ProposeError::Unknown(error.to_string()))),
            Err(_) => Err(Refused::Other(ProposeError::Unknown(
                "the replica stopped".to_owned(),
            ))),
        }
    }

    /// Confirms, by a quorum round begun after the call, that this replica
    /// still leads `term`, and waits until everything committed before the
    /// round is applied. Concurrent calls share a round.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_index(&self, term: u64) -> Result<(), ReadError> {
        match self
            .inner
            .raft
            .ensure_linearizable(ReadPolicy::ReadIndex)
            .await
        {
            // The read position belongs to the leadership that the round
            // confirmed: lost and won again is another term.
            Ok(read) if read.committed_leader_id().term == term => Ok(()),
            Ok(_) => Err(ReadError::NotLeader {
                leader: self.inner.state.leadership.leader_node(),
            }),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader {
                    leader: node_of(&forward),
                })
            }
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// Sets the one observer. Told of leadership at once when this replica
    /// already leads.
    pub fn set_observer(&self, observer: Arc<dyn GroupObserver>) {
        self.inner.state.leadership.observe(observer);
    }

    /// Asks a replica to take over the leadership. Returns at once.
    ///
    /// # Errors
    /// When the replica here has stopped.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<()> {
        self.inner
            .raft
            .trigger()
            .transfer_leader(to.0)
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// The shard as applied here, when `replica` is a member of it as far as is
    /// known here (C4).
    pub(crate) fn member_here(&self, replica: ReplicaId) -> Option<ShardDescriptor> {
        let visible = self.inner.state.visible.read();
        visible.applied?;
        visible.membership.membership().get_node(&replica.0)?;
        Some(ShardDescriptor::clone(&visible.descriptor))
    }

    pub(crate) fn status(&self) -> meta::ReplicaStatus {
        let state = &self.inner.state;
        let mut shard = ShardDescriptor::clone(&state.descriptor());
        let leads = matches!(self.leadership(), Leadership::Leader { .. });
        shard.leader_node_id = match leads {
            true => self.replica_id().node().0,
            false => state.leadership.leader_node().map_or(0, |node| node.0),
        };
        meta::ReplicaStatus {
            shard: Some(shard),
            replica_id: self.replica_id().0,
            leader: leads,
            term: self.inner.log.vote().map_or(0, |vote| vote.term),
            size_bytes: state.size(),
            applied_index: self.applied_index(),
            failed: state.failed.lock().clone().unwrap_or_default(),
        }
    }
}

/// Why a command was not proposed.
enum Refused {
    LeaseExpired,
    Other(ProposeError),
}

/// What its metrics say of the answers to a leader.
pub(super) fn answered(now: &openraft::RaftMetrics<TypeConfig>) -> Answered {
    let voters = now.membership_config.membership().get_joint_config();
    let me = |voters: &BTreeSet<u64>| voters.len() == 1 && voters.contains(&now.id);
    match voters.iter().all(me) {
        true => Answered::Alone,
        false => Answered::Last(
            now.vote.leader_id.term,
            now.last_quorum_acked.map(|acked| acked.into_inner()),
        ),
    }
}

/// Follows one replica until it stops: begins and ends its leadership, in
/// order, and notes a fault.
pub(crate) async fn watch(raft: Raft, state: Arc<ReplicaState>, fatal: crate::raft_log::FatalHook) {
    let mut server = raft.server_metrics();
    let mut all = raft.metrics();
    loop {
        let (leads, leader) = {
            let now = server.borrow_watched();
            let elected = now.state == ServerState::Leader
                && now.vote.committed
                && now.vote.leader_id.voted_for == now.id;
            (
                elected.then_some(now.vote.leader_id.term),
                now.current_leader,
            )
        };
        state.leadership.set_leader(leader);
        match (state.leadership.term(), leads) {
            (Some(term), Some(now)) if term == now => {}
            (Some(_), _) => {
                state.leadership.end();
                metrics::get().leaders.dec();
                continue;
            }
            (None, Some(term)) => {
                // L3: nothing is evaluated before the first entry of the own
                // term is applied.
                if state.applied().is_some_and(|id| id.term == term) {
                    state.leadership.begin(term);
                    metrics::get().leaders.inc();
                    continue;
                }
                let go_on = tokio::select! {
                    changed = server.changed() => changed.is_ok(),
                    changed = all.changed() => changed.is_ok(),
                };
                if go_on {
                    continue;
                }
                break;
            }
            (None, None) => {}
        }
        if server.changed().await.is_err() {
            break;
        }
    }
    if state.leadership.term().is_some() {
        state.leadership.end();
        metrics::get().leaders.dec();
    }
    let cause = match raft.metrics().borrow_watched().running_state.clone() {
        Err(openraft::errors::Fatal::Stopped) => None,
        Err(error) => Some(error.to_string()),
        // Whoever stops in order says so.
        Ok(()) => Some("its task ended without a word: a panic".to_owned()),
    };
    if let Some(cause) = cause {
        tracing::error!(shard = %state.shard, replica = %state.replica, cause, "a replica stopped");
        *state.failed.lock() = Some(cause);
        // D3: a storage engine that cannot write takes the process with it.
        if let Some(cause) = state.storage.db.failure() {
            fatal(&format!("the storage engine failed: {cause}"));
        }
    }
}
