//! What may be asked of the replicated state.
//!
//! A command carries everything that its effect depends on: no member looks at
//! a clock, a random source or its own configuration while it applies one.

use super::ClockRecord;
use bytes::Bytes;
use lineradb_proto::shard::v1::ShardDescriptor;
use std::collections::BTreeMap;
use std::fmt;

/// A change to the state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    /// What to do; absent: a command of a newer version (refused on decoding).
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub body: Option<Body>,
}

/// The kinds of command.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Names the cluster, once.
    #[prost(message, tag = "1")]
    Initialise(Initialise),
    /// A node introduces itself.
    #[prost(message, tag = "2")]
    RegisterNode(RegisterNode),
    /// The first shards; refused when there are any.
    #[prost(message, tag = "3")]
    Bootstrap(Bootstrap),
    /// Takes a block of ids.
    #[prost(message, tag = "4")]
    AllocateIds(AllocateIds),
    /// A line of time, or a higher ceiling.
    #[prost(message, tag = "5")]
    SetClock(SetClock),
    /// Nodes have reported these replicas.
    #[prost(message, tag = "6")]
    ReplicasCreated(ReplicasCreated),
    /// Newer descriptors, as nodes reported them.
    #[prost(message, tag = "7")]
    ReportShards(ReportShards),
    /// A split is to be done: reserves the id.
    #[prost(message, tag = "8")]
    BeginSplit(BeginSplit),
    /// The leader refused the split.
    #[prost(message, tag = "9")]
    CancelSplit(CancelSplit),
    /// A replica has failed: reserves the id of its successor.
    #[prost(message, tag = "10")]
    BeginReplacement(BeginReplacement),
    /// History is to be kept.
    #[prost(message, tag = "11")]
    Protect(Protect),
    /// History need not be kept any more.
    #[prost(message, tag = "12")]
    Unprotect(Unprotect),
}

/// See [`Body::Initialise`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Initialise {
    /// 16 random bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster_id: Bytes,
    /// Replicas per shard.
    #[prost(uint32, tag = "2")]
    pub replication_factor: u32,
}

/// See [`Body::RegisterNode`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterNode {
    /// 16 bytes: the node's data folder.
    #[prost(bytes = "bytes", tag = "1")]
    pub uuid: Bytes,
    /// gRPC.
    #[prost(string, tag = "2")]
    pub address: String,
    /// HTTP.
    #[prost(string, tag = "3")]
    pub http_address: String,
    /// Where it runs.
    #[prost(btree_map = "string, string", tag = "4")]
    pub locality: BTreeMap<String, String>,
}

/// See [`Body::Bootstrap`]. Shard ids count from 1, in order of the ranges.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bootstrap {
    /// Ranges that tile the key space, with their replicas.
    #[prost(message, repeated, tag = "1")]
    pub shards: Vec<ShardDescriptor>,
}

/// See [`Body::AllocateIds`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateIds {
    /// Sequence name.
    #[prost(string, tag = "1")]
    pub sequence: String,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// See [`Body::SetClock`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetClock {
    /// The record as the leader read it; none: there was none.
    #[prost(message, optional, tag = "1")]
    pub expected: Option<ClockRecord>,
    /// What it is to be.
    #[prost(message, optional, tag = "2")]
    pub clock: Option<ClockRecord>,
}

/// See [`Body::ReplicasCreated`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplicasCreated {
    /// The shard.
    #[prost(uint64, tag = "1")]
    pub shard_id: u64,
    /// Its replicas that exist.
    #[prost(uint64, repeated, tag = "2")]
    pub replica_ids: Vec<u64>,
}

/// See [`Body::ReportShards`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportShards {
    /// As reported; what is not newer is ignored.
    #[prost(message, repeated, tag = "1")]
    pub shards: Vec<ShardDescriptor>,
}

/// See [`Body::BeginSplit`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct BeginSplit {
    /// The shard to split.
    #[prost(uint64, tag = "1")]
    pub shard_id: u64,
    /// The version that was looked at; another one refuses the command.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Where; empty: the leader picks the middle.
    #[prost(bytes = "bytes", tag = "3")]
    pub split_key: Bytes,
}

/// See [`Body::CancelSplit`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct CancelSplit {
    /// The shard that is not split.
    #[prost(uint64, tag = "1")]
    pub shard_id: u64,
    /// The split meant.
    #[prost(uint64, tag = "2")]
    pub new_shard_id: u64,
}

/// See [`Body::BeginReplacement`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct BeginReplacement {
    /// The shard.
    #[prost(uint64, tag = "1")]
    pub shard_id: u64,
    /// The failed replica: a member, or the new one of a replacement.
    #[prost(uint64, tag = "2")]
    pub failed_replica_id: u64,
    /// Where its successor goes.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
}

/// See [`Body::Protect`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Protect {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    /// From where on.
    #[prost(fixed64, tag = "2")]
    pub timestamp: u64,
    /// Silence after which it ends.
    #[prost(uint32, tag = "3")]
    pub lease_ms: u32,
}

/// See [`Body::Unprotect`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unprotect {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    /// The record meant: not one that came since.
    #[prost(uint64, tag = "2")]
    pub revision: u64,
}

impl From<Body> for Command {
    fn from(body: Body) -> Self {
        Command { body: Some(body) }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Some(body) => write!(f, "{body:?}"),
            None => f.write_str("none"),
        }
    }
}
