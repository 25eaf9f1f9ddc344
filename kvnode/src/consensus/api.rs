//! What the layers above see of consensus.

use super::Group;
use crate::command::Tree;
use crate::mvcc::keys;
use crate::raft_log;
use crate::transport::Transport;
use lineradb_common::{NodeId, ShardId};
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

/// A group came or went.
#[derive(Clone)]
pub enum GroupEvent {
    /// Founded, restarted, split off or being caught up.
    Added(Group),
    /// Destroyed or stopped.
    Removed(ShardId),
}

/// How often the leaders of a cluster say that they are there, unless it is told
/// otherwise.
pub const HEARTBEAT: Duration = Duration::from_millis(300);

/// How groups run: a dead leader is replaced within about two of the longest election
/// timeouts.
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
        Timing::every(HEARTBEAT)
    }
}

impl Timing {
    /// With a heartbeat so often: longer than a round trip between any two nodes, since a
    /// leader gives its followers that long to answer one, and leads nobody who has not.
    /// Followers hear of it all the same, and replace it only after it has fallen silent
    /// (`transport::hearing`): so few heartbeats to an election, and long ones.
    pub fn every(heartbeat: Duration) -> Self {
        Timing {
            heartbeat,
            election_min: heartbeat * 5 / 2,
            election_max: heartbeat * 10 / 3,
        }
    }
}

/// How much log is kept for followers that lag; below it only what is durable
/// in the storage engine is purged (D1).
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes kept per group.
    pub group_bytes: u64,
    /// Entries kept per group.
    pub group_entries: u64,
    /// Size of the whole log above which nothing is kept for laggards and the
    /// storage engine is flushed; a follower beyond it gets a snapshot.
    pub log_bytes: u64,
    /// How often all this is looked at.
    pub interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            group_bytes: 64 << 20,
            group_entries: 100_000,
            log_bytes: 512 << 20,
            interval: Duration::from_millis(500),
        }
    }
}

/// What [`super::Groups::open`] needs.
pub struct GroupsOptions {
    /// Holds the raft log in `raft/`.
    pub data_dir: PathBuf,
    /// Opened with [`storage_options`].
    pub db: lineradb_lsm::Db,
    /// This node.
    pub node_id: NodeId,
    /// Finds the others.
    pub resolve: Arc<dyn AddressBook>,
    /// Timeouts.
    pub timing: Timing,
    /// How much log is kept.
    pub retention: Retention,
    /// The raft log.
    pub log: raft_log::Options,
    /// Files of the raft log.
    pub vfs: Arc<dyn lineradb_lsm::Vfs>,
    /// How messages travel; `None`: gRPC to the addresses of `resolve`.
    pub transport: Option<Arc<dyn Transport>>,
}

impl GroupsOptions {
    /// The defaults, on the real file system and over gRPC.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        db: lineradb_lsm::Db,
        node_id: NodeId,
        resolve: Arc<dyn AddressBook>,
    ) -> Self {
        GroupsOptions {
            data_dir: data_dir.into(),
            db,
            node_id,
            resolve,
            timing: Timing::default(),
            retention: Retention::default(),
            log: raft_log::Options::default(),
            vfs: Arc::new(lineradb_lsm::RealVfs),
            transport: None,
        }
    }
}

/// How a node opens its storage engine: the four trees, and no log of the
/// engine's own, for the raft log is the node's log (D1).
pub fn storage_options() -> lineradb_lsm::Options {
    lineradb_lsm::Options {
        wal: false,
        version_bytes: vec![(Tree::Data.name().to_owned(), keys::TIMESTAMP_BYTES)],
        ..lineradb_lsm::Options::with_keyspaces(Tree::ALL.map(Tree::name))
    }
}
