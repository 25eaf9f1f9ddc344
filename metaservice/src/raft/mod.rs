//! Consensus among the members: openraft behind our own codec, log store,
//! state machine and transport.
//!
//! One database of the storage engine, opened *with* its write-ahead log,
//! holds both the Raft log (keyspace `raft`) and the state (keyspace `state`).
//! Log entries and votes are synced before they are acknowledged; applied
//! state is not: the write-ahead log is one sequence, so what survives a crash
//! is a prefix of it, and the Raft log replays what is missing.

pub mod codec;
pub mod log_store;
pub mod machine;
pub mod network;
pub mod rpc;

use crate::state::{Command, Reply};
use openraft::impls::{BasicNode, leader_id_std};

openraft::declare_raft_types!(
    /// The types of the metaservice's group.
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

/// One Raft term has one leader, so a log id is a term and an index.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// Members, as of a log id.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// Members.
pub type Membership = openraft::Membership<u64, BasicNode>;
/// What a snapshot says about itself.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot: its description and the encoded state.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, bytes::Bytes>;
/// The handle of the group on this member.
pub type Raft = openraft::Raft<TypeConfig, machine::Machine>;
