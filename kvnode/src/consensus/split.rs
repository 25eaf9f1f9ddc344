//! A split, decided: who holds what afterwards, and with what the child's log
//! starts (PROTOCOLS C4, C5, S2).
//!
//! Every replica of the parent applies the split at the same place of the same
//! log and seeds the child on its own node with the same bytes: a purged base
//! id, the membership, and a vote in which the parent's proposer has already
//! been elected. So the child has a leader from the start and nobody campaigns.
//! Only the process that proposed the split, while it applies it live, restores
//! that leadership; a seed made by replay starts as a follower (C1).

use super::api::SplitApplied;
use super::local::{ReplicaRecord, Seed};
use super::types::{Membership, StoredMembership, raft_log_id};
use crate::command::{Body, Command};
use crate::raft_log::{LogId, Vote};
use bytes::{Bytes, BytesMut};
use lineradb_common::{NodeId, ReplicaId, ShardId, keys};
use lineradb_proto::shard::v1::{Replica, ShardDescriptor, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Index of a child's base: its log begins behind it. It must be a purged id
/// and not an entry, or a new learner would replay an empty log and miss the
/// rows that the child was born with.
const BASE_INDEX: u64 = 10;

/// A child whose seed is written.
pub(crate) struct Birth {
    pub shard: ShardId,
    pub left: Arc<ShardDescriptor>,
    pub right: Arc<ShardDescriptor>,
    pub term: u64,
    /// This process proposed the split and applied it live: the child's replica
    /// here takes up its leadership.
    pub lead: bool,
}

impl Birth {
    pub(crate) fn applied(&self) -> SplitApplied {
        SplitApplied {
            left: Arc::clone(&self.left),
            right: Arc::clone(&self.right),
            term: self.term,
        }
    }
}

/// What a split comes to.
pub(crate) struct Plan {
    pub left: ShardDescriptor,
    pub right: ShardDescriptor,
    base: LogId,
    vote: Vote,
}

/// Decides a split that passed the checks of `verdict`; `None` when the child's
/// replicas do not stand on the nodes of the parent's.
pub(crate) fn plan(
    parent: &ShardDescriptor,
    id: LogId,
    proposer: ReplicaId,
    command: &Command,
) -> Option<Plan> {
    let Body::Split {
        split_key,
        new_shard_id,
        child_replicas,
    } = &command.body
    else {
        return None;
    };
    let parents: BTreeSet<u64> = parent.replicas.iter().map(|r| r.node_id).collect();
    let children: BTreeSet<u64> = child_replicas.iter().map(|r| r.node().0).collect();
    if parents != children || children.len() != child_replicas.len() {
        return None;
    }
    let leader = child_replicas
        .iter()
        .find(|r| r.node() == proposer.node())?;
    let (start, end) = super::bounds::span(parent);
    let version = parent.version + 1;
    let left = ShardDescriptor {
        span: Some(Span {
            start,
            end: split_key.clone(),
        }),
        version,
        ..parent.clone()
    };
    let right = ShardDescriptor {
        shard_id: new_shard_id.0,
        span: Some(Span {
            start: split_key.clone(),
            end,
        }),
        version,
        configuration_version: 1,
        replicas: child_replicas
            .iter()
            .map(|r| Replica {
                replica_id: r.id.0,
                node_id: r.node().0,
                address: r.address.clone(),
            })
            .collect(),
        leader_node_id: proposer.node().0,
    };
    Some(Plan {
        left,
        right,
        base: LogId {
            term: id.term,
            index: BASE_INDEX,
        },
        vote: Vote {
            term: id.term,
            replica: leader.id,
            committed: true,
        },
    })
}

impl Plan {
    pub(crate) fn child_shard(&self) -> ShardId {
        ShardId(self.right.shard_id)
    }

    /// The child's replica on a node.
    pub(crate) fn child_on(&self, node: NodeId) -> Option<ReplicaRecord> {
        let replica = self.right.replicas.iter().find(|r| r.node_id == node.0)?;
        Some(ReplicaRecord {
            replica: ReplicaId(replica.replica_id),
            descriptor: self.right.clone(),
            applied: Some(self.base),
            membership: membership_at(&self.right, self.base)?,
            seed: Some(Seed {
                base: self.base,
                vote: Some(self.vote),
            }),
            ..ReplicaRecord::default()
        })
    }
}

/// The membership that a descriptor lists, as of a log id.
pub(crate) fn membership_at(descriptor: &ShardDescriptor, at: LogId) -> Option<StoredMembership> {
    let voters: BTreeSet<u64> = descriptor.replicas.iter().map(|r| r.replica_id).collect();
    let nodes: BTreeMap<u64, openraft::BasicNode> = descriptor
        .replicas
        .iter()
        .map(|r| (r.replica_id, openraft::BasicNode::new(&r.address)))
        .collect();
    let membership = Membership::new(vec![voters], nodes).ok()?;
    Some(StoredMembership::new(Some(raft_log_id(at)), membership))
}

/// The child's copy of a schema version's key, when the table has rows in the
/// child's range (S2).
pub(crate) fn inherited_version(plan: &Plan, parent_prefix: &[u8], key: &[u8]) -> Option<Bytes> {
    let rest = key.strip_prefix(parent_prefix)?;
    let table = super::bounds::schema_table(rest)?;
    let (start, end) = super::bounds::span(&plan.right);
    let prefix = keys::table_prefix(table);
    if !keys::spans_overlap(&prefix, &keys::prefix_end(&prefix), &start, &end) {
        return None;
    }
    let mut copy = BytesMut::with_capacity(key.len());
    copy.extend_from_slice(&super::bounds::schema_prefix(plan.child_shard()));
    copy.extend_from_slice(rest);
    Some(copy.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    fn parent() -> ShardDescriptor {
        let replica = |node| Replica {
            replica_id: ReplicaId::new(NodeId(node), 1).0,
            node_id: node,
            address: format!("host:{node}"),
        };
        ShardDescriptor {
            shard_id: 1,
            version: 4,
            configuration_version: 2,
            span: Some(Span::default()),
            replicas: vec![replica(1), replica(2), replica(3)],
            leader_node_id: 0,
        }
    }

    fn command(nodes: &[u64]) -> Command {
        Command {
            term: 7,
            shard_version: 4,
            body: Body::Split {
                split_key: keys::table_prefix(lineradb_common::TableId(5)),
                new_shard_id: ShardId(9),
                child_replicas: nodes
                    .iter()
                    .map(|node| command::Replica {
                        id: ReplicaId::new(NodeId(*node), 1),
                        address: String::new(),
                    })
                    .collect(),
            },
        }
    }

    #[test]
    fn the_child_is_born_with_a_leader_and_a_purged_base() {
        let at = LogId { term: 7, index: 88 };
        let proposer = ReplicaId::new(NodeId(2), 1);
        let plan = plan(&parent(), at, proposer, &command(&[1, 2, 3])).unwrap();
        let child = plan.child_on(NodeId(3)).unwrap();
        let seed = child.seed.unwrap();
        assert_eq!(child.applied, Some(seed.base));
        assert_eq!(seed.base.term, 7);
        let vote = seed.vote.unwrap();
        assert_eq!(
            (vote.term, vote.replica, vote.committed),
            (7, ReplicaId::new(NodeId(2), 1), true)
        );
        assert_eq!(plan.left.version, 5);
        assert_eq!(
            plan.left.span.as_ref().unwrap().end,
            plan.right.span.as_ref().unwrap().start
        );
        assert!(plan.child_on(NodeId(4)).is_none());
    }

    #[test]
    fn children_stand_on_the_parents_nodes() {
        let at = LogId { term: 7, index: 88 };
        let proposer = ReplicaId::new(NodeId(2), 1);
        for nodes in [&[1, 2][..], &[1, 2, 4], &[1, 2, 3, 3]] {
            assert!(plan(&parent(), at, proposer, &command(nodes)).is_none());
        }
    }

    #[test]
    fn versions_of_tables_in_the_childs_range_are_inherited() {
        let at = LogId { term: 7, index: 88 };
        let proposer = ReplicaId::new(NodeId(2), 1);
        let plan = plan(&parent(), at, proposer, &command(&[1, 2, 3])).unwrap();
        let prefix = super::super::bounds::schema_prefix(ShardId(1));
        let key = |table: u64| {
            let mut key = prefix.to_vec();
            key.extend(table.to_be_bytes());
            key.extend([0xab; 8]);
            key
        };
        assert!(inherited_version(&plan, &prefix, &key(4)).is_none());
        let copy = inherited_version(&plan, &prefix, &key(5)).unwrap();
        assert!(copy.starts_with(&super::super::bounds::schema_prefix(ShardId(9))));
        assert!(copy.ends_with(&[0xab; 8]));
    }
}
