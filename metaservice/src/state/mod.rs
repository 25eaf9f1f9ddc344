//! What the metaservice knows for sure: the replicated state.
//!
//! The state is plain data, changed by nothing but [`State::apply`]: a pure,
//! synchronous function of the state and a [`Command`]. Every member applies
//! the same commands in the same order and so holds the same state. Liveness,
//! leaders and sizes are not here: they are the leader's own view
//! ([`crate::view`]) and are gathered anew by the next one.
//!
//! Invariant (checked by `check`, and by property tests): once there are
//! shards, **their ranges tile the key space**: no gap, no overlap. A split is
//! therefore taken over only when all parts of the old range are known.
//!
//! On disk each node, each shard and the rest (`Header`) is one record; the
//! encoding is a format byte and a Protobuf message, so that fields can be
//! added ([`codec`]).

mod apply;
pub mod codec;
pub mod command;
mod shards;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1::{Replica, ShardDescriptor};
use std::collections::{BTreeMap, BTreeSet};

pub use apply::{Outcome, Reply};
pub use command::Command;
pub use shards::merge_newer;

/// The sequence that shard ids come from.
pub const SHARD_SEQUENCE: &str = "shard";
/// The sequence that revisions of protections come from.
pub const PROTECTION_SEQUENCE: &str = "protection";
/// The sequence that node ids come from.
pub const NODE_SEQUENCE: &str = "node";

/// Everything the metaservice has agreed on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Cluster id, sequences, clock.
    pub header: Header,
    /// Nodes by id. A node is never forgotten: its id must not be reused.
    pub nodes: BTreeMap<u64, NodeRecord>,
    /// Shards by id.
    pub shards: BTreeMap<u64, ShardRecord>,
}

/// What there is once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    /// Random, chosen at the first start; empty before.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster_id: Bytes,
    /// Replicas per shard.
    #[prost(uint32, tag = "2")]
    pub replication_factor: u32,
    /// The highest id given out, by sequence.
    #[prost(btree_map = "string, uint64", tag = "3")]
    pub sequences: BTreeMap<String, u64>,
    /// The cluster's time base.
    #[prost(message, optional, tag = "4")]
    pub clock: Option<ClockRecord>,
    /// History that is kept, each under an id of its own.
    #[prost(message, repeated, tag = "5")]
    pub protections: Vec<ProtectionRecord>,
}

/// History that no shard may collect (PROTOCOLS X5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProtectionRecord {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    /// From where on.
    #[prost(fixed64, tag = "2")]
    pub timestamp: u64,
    /// Silence after which it ends.
    #[prost(uint32, tag = "3")]
    pub lease_ms: u32,
    /// Another one each time that the record is written.
    #[prost(uint64, tag = "4")]
    pub revision: u64,
}

/// The cluster's time: `T = offset_us + raw counter`, of one counter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClockRecord {
    /// Which counter.
    #[prost(string, tag = "1")]
    pub counter: String,
    /// Added to it.
    #[prost(sint64, tag = "2")]
    pub offset_us: i64,
    /// No time above this was told to anybody (PROTOCOLS T3).
    #[prost(uint64, tag = "3")]
    pub ceiling_us: u64,
    /// Counts the times that the clock began anew.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
}

/// A kvnode that has registered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeRecord {
    /// Given out here.
    #[prost(uint64, tag = "1")]
    pub node_id: u64,
    /// The node's own name for its data folder.
    #[prost(bytes = "bytes", tag = "2")]
    pub uuid: Bytes,
    /// gRPC.
    #[prost(string, tag = "3")]
    pub address: String,
    /// HTTP.
    #[prost(string, tag = "4")]
    pub http_address: String,
    /// e.g. cloud, region, zone.
    #[prost(btree_map = "string, string", tag = "5")]
    pub locality: BTreeMap<String, String>,
    /// Raised by each registration.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
}

/// A shard and what is under way with it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardRecord {
    /// Range, versions, replicas.
    #[prost(message, required, tag = "1")]
    pub descriptor: ShardDescriptor,
    /// Born by the metaservice's order, not by a split: its replicas are
    /// created by founding orders.
    #[prost(bool, tag = "2")]
    pub founded: bool,
    /// Replicas that a node has reported at least once. A create order is
    /// never given for these again: a replica that vanished is replaced under
    /// a new id (C3).
    #[prost(uint64, repeated, tag = "3")]
    pub created: Vec<u64>,
    /// The highest incarnation used, by node (C3).
    #[prost(btree_map = "uint64, uint32", tag = "4")]
    pub incarnations: BTreeMap<u64, u32>,
    /// A split ordered and not seen yet.
    #[prost(message, optional, tag = "5")]
    pub split: Option<PendingSplit>,
    /// A replica being replaced.
    #[prost(message, optional, tag = "6")]
    pub replacement: Option<Replacement>,
    /// Replicas that were removed (tombstones, C3).
    #[prost(uint64, repeated, tag = "7")]
    pub retired: Vec<u64>,
}

/// A split ordered and not seen yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PendingSplit {
    /// The id of the right-hand side.
    #[prost(uint64, tag = "1")]
    pub new_shard_id: u64,
    /// Where; empty: the leader picks the middle.
    #[prost(bytes = "bytes", tag = "2")]
    pub split_key: Bytes,
    /// The version of the shard that is to be split.
    #[prost(uint64, tag = "3")]
    pub version: u64,
}

/// A replica being replaced.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Replacement {
    /// The replica that has failed.
    #[prost(uint64, tag = "1")]
    pub old_replica_id: u64,
    /// The one that takes its place.
    #[prost(message, required, tag = "2")]
    pub new: Replica,
}

/// Which records a command changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The header.
    pub header: bool,
    /// Nodes by id.
    pub nodes: BTreeSet<u64>,
    /// Shards by id.
    pub shards: BTreeSet<u64>,
}

impl Changed {
    /// Adds what another command changed.
    pub fn merge(&mut self, other: Changed) {
        self.header |= other.header;
        self.nodes.extend(other.nodes);
        self.shards.extend(other.shards);
    }
}

impl State {
    /// The highest id given out from a sequence; 0: none.
    pub fn sequence(&self, name: &str) -> u64 {
        self.header.sequences.get(name).copied().unwrap_or(0)
    }

    /// The node with this data folder.
    pub fn node_by_uuid(&self, uuid: &[u8]) -> Option<&NodeRecord> {
        self.nodes.values().find(|n| n.uuid == uuid)
    }

    /// The protection with this id.
    pub fn protection(&self, id: &[u8]) -> Option<&ProtectionRecord> {
        self.header.protections.iter().find(|p| p.id == id)
    }

    /// The shard that holds `key`.
    pub fn shard_at(&self, key: &[u8]) -> Option<&ShardRecord> {
        self.shards.values().find(|s| {
            let (start, end) = s.span();
            lineradb_common::keys::in_span(key, start, end)
        })
    }

    /// Says what is wrong with the state, if anything: the ranges tile the key
    /// space, ids were given out, replicas live on known nodes.
    pub fn check(&self) -> Result<(), String> {
        let mut spans: Vec<_> = self.shards.values().map(ShardRecord::span).collect();
        spans.sort();
        if !shards::tile(&spans, (&[], &[])) && !spans.is_empty() {
            return Err(format!("the shards do not tile the key space: {spans:?}"));
        }
        for (id, shard) in &self.shards {
            if *id == 0 || *id > self.sequence(SHARD_SEQUENCE) {
                return Err(format!("shard {id} has an id that was never given out"));
            }
            if *id != shard.descriptor.shard_id {
                return Err(format!("shard {id} is stored under another id"));
            }
            for replica in &shard.descriptor.replicas {
                if !self.nodes.contains_key(&replica.node_id) {
                    return Err(format!("shard {id} has a replica on an unknown node"));
                }
                if shard.retired.contains(&replica.replica_id) {
                    return Err(format!("shard {id} has a retired replica"));
                }
            }
        }
        Ok(())
    }
}

impl ShardRecord {
    /// The range; an empty end has no bound.
    pub fn span(&self) -> (&[u8], &[u8]) {
        shards::span_of(&self.descriptor)
    }

    /// True for a replica that belongs to the shard or is about to.
    pub fn wants(&self, replica_id: u64) -> bool {
        self.descriptor
            .replicas
            .iter()
            .any(|r| r.replica_id == replica_id)
            || self
                .replacement
                .as_ref()
                .is_some_and(|r| r.new.replica_id == replica_id)
    }
}

impl NodeRecord {
    /// As others see it; liveness is filled in by the leader.
    pub fn to_proto(&self) -> meta::Node {
        meta::Node {
            node_id: self.node_id,
            node_uuid: self.uuid.clone(),
            address: self.address.clone(),
            http_address: self.http_address.clone(),
            locality: self.locality.clone().into_iter().collect(),
            incarnation: self.incarnation,
            live: false,
            last_heartbeat_ms_ago: 0,
        }
    }
}

impl ClockRecord {
    /// Which counter, and what is added to it.
    pub fn line(&self) -> (String, i64) {
        (self.counter.clone(), self.offset_us)
    }

    /// The time at a reading of the counter, in microseconds.
    pub fn time_at(&self, raw_us: u64) -> u64 {
        raw_us.saturating_add_signed(self.offset_us)
    }
}
