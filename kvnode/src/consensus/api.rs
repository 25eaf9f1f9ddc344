//! What the layers above see of consensus.

use crate::command::{Command, Verdict};
use crate::{Error, Result};
use lineradb_common::{NodeId, ReplicaId, ShardId};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1::ShardDescriptor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where nodes listen for gRPC.
pub trait AddressBook: Send + Sync + 'static {
    /// The address of a node, `None` while unknown.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// Who leads a group, as this replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This replica, in this term, and it has applied the first entry of the
    /// term (L3): it may evaluate.
    Leader {
        /// The term to name in commands.
        term: u64,
    },
    /// Another replica, or nobody yet.
    Follower {
        /// The node that leads, when known.
        leader: Option<NodeId>,
    },
}

/// Why a proposal has no verdict.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: this replica does not lead the command's term.
    #[error("not the leader")]
    NotLeader {
        /// The node that leads, when known.
        leader: Option<NodeId>,
    },
    /// It may be applied yet, or never.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Not proposed: the replica is stopped or stopping.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Why a read could not be confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// This replica no longer leads that term.
    #[error("not the leader")]
    NotLeader {
        /// The node that leads, when known.
        leader: Option<NodeId>,
    },
    /// No quorum answered, or the replica is stopping.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// What the transaction layer must hear, in order and before anybody else acts
/// on it. Calls are made under a lock of the group: be quick, and do not call
/// [`Group::set_observer`] from inside.
pub trait GroupObserver: Send + Sync + 'static {
    /// This replica begins to lead `term`: start with an empty timestamp cache
    /// above the low-water mark and without locks (C1, L3).
    /// [`Group::leadership`] says so only after this returned.
    fn on_leader(&self, term: u64);
    /// It no longer leads. [`Group::leadership`] has already said so.
    fn on_lost_leadership(&self);
    /// The shard was split: called inside apply, once the new descriptor of
    /// this shard is visible and before the proposer hears of it.
    fn on_split(&self, split: &SplitApplied);
}

/// A split, as the left half's replica saw it applied.
#[derive(Clone, Debug)]
pub struct SplitApplied {
    /// The left half from now on.
    pub left: Arc<ShardDescriptor>,
    /// The right half.
    pub right: Arc<ShardDescriptor>,
    /// The term in which the split was proposed; a leader of that very term
    /// hands its timestamp cache and locks over (C5).
    pub term: u64,
}

/// One replica of a shard on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group;

impl Group {
    /// The shard.
    pub fn shard_id(&self) -> ShardId {
        ShardId(0)
    }

    /// This replica.
    pub fn replica_id(&self) -> ReplicaId {
        ReplicaId(0)
    }

    /// Range, version and replicas as applied here.
    pub fn descriptor(&self) -> Arc<ShardDescriptor> {
        Arc::new(ShardDescriptor::default())
    }

    /// Who leads. Cheap and synchronous: a hint that [`Group::propose`] and
    /// [`Group::read_index`] check.
    pub fn leadership(&self) -> Leadership {
        Leadership::Follower { leader: None }
    }

    /// Has a command decided, and waits until it is applied here. It never
    /// lands in another term than `command.term` (C2).
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<Verdict, ProposeError> {
        let _ = command;
        Err(ProposeError::Unavailable("not built yet".into()))
    }

    /// Confirms, by a quorum round begun after the call, that this replica
    /// still leads `term`, and waits until everything committed before the
    /// round is applied. Concurrent calls share a round.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_index(&self, term: u64) -> Result<(), ReadError> {
        let _ = term;
        Err(ReadError::Unavailable("not built yet".into()))
    }

    /// Sets the one observer. Told of leadership at once when this replica
    /// already leads.
    pub fn set_observer(&self, observer: Arc<dyn GroupObserver>) {
        let _ = observer;
    }
}

/// A group came or went.
#[derive(Clone)]
pub enum GroupEvent {
    /// Founded, restarted, split off or being caught up.
    Added(Group),
    /// Destroyed or stopped.
    Removed(ShardId),
}

/// How groups run. `Default` suits a local network.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How often leaders say that they are there.
    pub heartbeat: Duration,
    /// How long followers wait, at least.
    pub election_min: Duration,
    /// How long followers wait, at most.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1000),
        }
    }
}

/// What [`Groups::open`] needs.
pub struct GroupsOptions {
    /// Holds the raft log in `raft/`.
    pub data_dir: PathBuf,
    /// Opened without a log of its own, with the keyspaces of
    /// [`crate::command::Tree::ALL`].
    pub db: lineradb_lsm::Db,
    /// This node.
    pub node_id: NodeId,
    /// Finds the others.
    pub resolve: Arc<dyn AddressBook>,
    /// Timeouts.
    pub timing: Timing,
}

/// All groups of a node. Cheap to clone.
#[derive(Clone)]
pub struct Groups;

impl Groups {
    /// Opens the raft log and restarts every replica that is found on disk.
    ///
    /// # Errors
    /// When the log or the engine is damaged; the message names file and groups.
    pub async fn open(options: GroupsOptions) -> Result<Groups> {
        let _ = options;
        Err(Error::Unavailable("not built yet".into()))
    }

    /// The replica of a shard on this node.
    pub fn get(&self, shard: ShardId) -> Option<Group> {
        let _ = shard;
        None
    }

    /// All replicas of this node.
    pub fn list(&self) -> Vec<Group> {
        Vec::new()
    }

    /// Told of every group that comes or goes. A receiver that lags calls
    /// [`Groups::list`] again.
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<GroupEvent> {
        tokio::sync::broadcast::channel(1).1
    }

    /// Creates a replica. Idempotent.
    ///
    /// # Errors
    /// [`Error::Refused`] when the replica was destroyed here before (C3).
    pub async fn create_replica(&self, order: meta::CreateReplica) -> Result<()> {
        let _ = order;
        Err(Error::Unavailable("not built yet".into()))
    }

    /// Destroys a replica and leaves a tombstone (C3). Idempotent.
    ///
    /// # Errors
    /// When the engine or the log fails.
    pub async fn destroy_replica(&self, order: meta::DestroyReplica) -> Result<()> {
        let _ = order;
        Err(Error::Unavailable("not built yet".into()))
    }

    /// As leader: adds `new`, waits until it has caught up, promotes it and
    /// removes `old`. May be repeated until the descriptor shows it done.
    ///
    /// # Errors
    /// When this replica does not lead or there is no quorum.
    pub async fn replace_replica(&self, order: meta::ReplaceReplica) -> Result<()> {
        let _ = order;
        Err(Error::Unavailable("not built yet".into()))
    }

    /// What heartbeats report.
    pub fn status(&self) -> Vec<meta::ReplicaStatus> {
        Vec::new()
    }

    /// Stops all groups and syncs the log.
    pub async fn shutdown(&self) {}
}
