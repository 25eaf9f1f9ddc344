//! The leader's own view of the cluster: who is alive, who leads, how large.
//!
//! Volatile on purpose: heartbeats tell a new leader all of it within a
//! second, so none of it goes through consensus. Plain data; the time is
//! handed in as a duration since the view began.

use crate::deadlock::Detector;
use crate::protection::Leases;
use crate::state::State;
use lineradb_proto::meta::v1::{HeartbeatRequest, OrderFailure};
use lineradb_proto::shard::v1::ShardDescriptor;
use std::collections::BTreeMap;
use std::time::Duration;

/// What heartbeats have said since this member became leader.
#[derive(Debug, Default)]
pub struct View {
    /// The term for which the view holds.
    pub term: u64,
    /// When it began.
    pub since: Duration,
    /// Nodes by id.
    pub nodes: BTreeMap<u64, NodeView>,
    /// Shards by id.
    pub shards: BTreeMap<u64, ShardView>,
    /// Splits that a leader refused, to be taken off the state.
    pub refused: Vec<OrderFailure>,
    /// Shards whose leader refused to split them.
    pub unsplittable: BTreeMap<u64, Unsplittable>,
    /// Who waits for whom.
    pub deadlocks: Detector,
    /// Who still wants history to be kept.
    pub leases: Leases,
}

/// One node's last words.
#[derive(Debug, Default)]
pub struct NodeView {
    /// When it first reported in this view.
    pub first: Duration,
    /// When it last did.
    pub last: Duration,
    /// What its last heartbeat said, by shard.
    pub replicas: BTreeMap<u64, ReplicaView>,
    /// When a replica was last reported, by shard and replica.
    pub seen: BTreeMap<(u64, u64), Duration>,
}

/// A replica in a heartbeat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaView {
    /// Which.
    pub replica_id: u64,
    /// Why it stopped; empty: it is well.
    pub failed: String,
}

/// What is known of a shard from all heartbeats.
#[derive(Debug, Default)]
pub struct ShardView {
    /// The newest descriptor that anybody reported.
    pub descriptor: ShardDescriptor,
    /// The leader of the highest term seen: (term, node).
    pub leader: Option<(u64, u64)>,
    /// Its size, as the leader says.
    pub size_bytes: u64,
    /// When it was first heard of.
    pub since: Duration,
}

/// A shard that its leader could not split.
#[derive(Debug)]
pub struct Unsplittable {
    /// Until when its size is overlooked.
    pub until: Duration,
    /// The child that was not born.
    pub new_shard_id: u64,
    /// What the leader said.
    pub reason: String,
}

/// A node that has been silent for longer than this is taken for dead.
pub const LIVENESS: Duration = Duration::from_secs(3);

impl View {
    /// Starts again: another term, another leader.
    pub fn reset(&mut self, term: u64, now: Duration) {
        *self = View {
            term,
            since: now,
            ..View::default()
        };
    }

    /// Takes a heartbeat in. Says whether a leader hint or liveness changed.
    pub fn record(&mut self, now: Duration, heartbeat: &HeartbeatRequest) -> bool {
        let node_id = heartbeat.node_id;
        let was_live = self.is_live(node_id, now);
        let node = self.nodes.entry(node_id).or_insert_with(|| NodeView {
            first: now,
            ..NodeView::default()
        });
        node.last = now;
        node.replicas.clear();
        let mut changed = !was_live;
        for status in &heartbeat.replicas {
            let Some(reported) = &status.shard else {
                continue;
            };
            let shard_id = reported.shard_id;
            node.seen.insert((shard_id, status.replica_id), now);
            node.replicas.insert(
                shard_id,
                ReplicaView {
                    replica_id: status.replica_id,
                    failed: status.failed.clone(),
                },
            );
            if !status.failed.is_empty() {
                continue;
            }
            let shard = self.shards.entry(shard_id).or_insert_with(|| ShardView {
                since: now,
                ..ShardView::default()
            });
            merge_reported(&mut shard.descriptor, reported);
            let holds = shard.leader.is_some_and(|(_, node)| node == node_id);
            if status.leader {
                let newer = shard.leader.is_none_or(|(term, _)| status.term >= term);
                if newer {
                    changed |= !holds;
                    shard.leader = Some((status.term, node_id));
                    shard.size_bytes = status.size_bytes;
                }
            } else if holds {
                shard.leader = None;
                changed = true;
            }
        }
        // What a node no longer reports it no longer leads.
        let listed = &node.replicas;
        for (shard_id, shard) in &mut self.shards {
            let lost = shard.leader.is_some_and(|(_, node)| node == node_id)
                && listed.get(shard_id).is_none_or(|r| !r.failed.is_empty());
            if lost {
                shard.leader = None;
                changed = true;
            }
        }
        node.seen
            .retain(|_, at| now.saturating_sub(*at) < Duration::from_secs(3600));
        self.refused.extend(heartbeat.failures.iter().cloned());
        changed
    }

    /// True for a node that has reported lately. Right after a change of
    /// leader nobody has, so nobody is declared dead at once either: see
    /// [`View::is_dead`].
    pub fn is_live(&self, node_id: u64, now: Duration) -> bool {
        self.nodes
            .get(&node_id)
            .is_some_and(|n| now.saturating_sub(n.last) < LIVENESS)
    }

    /// True for a node that had the time to report and did not.
    pub fn is_dead(&self, node_id: u64, now: Duration) -> bool {
        !self.is_live(node_id, now) && now.saturating_sub(self.since) >= LIVENESS
    }

    /// Who leads a shard; 0: unknown. A dead node leads nothing.
    pub fn leader(&self, shard_id: u64, now: Duration) -> u64 {
        self.shards
            .get(&shard_id)
            .and_then(|s| s.leader)
            .map(|(_, node)| node)
            .filter(|node| self.is_live(*node, now))
            .unwrap_or(0)
    }

    /// The last word of a node on a replica.
    pub fn replica(&self, node_id: u64, shard_id: u64, replica_id: u64) -> Option<&ReplicaView> {
        let reported = self.nodes.get(&node_id)?.replicas.get(&shard_id)?;
        (reported.replica_id == replica_id).then_some(reported)
    }

    /// For how long a live node has not reported a replica that it should have,
    /// though the shard is known: the child of a split is reported by its leader
    /// before the other nodes have applied the split.
    pub fn missing_for(
        &self,
        node_id: u64,
        shard_id: u64,
        replica_id: u64,
        now: Duration,
    ) -> Option<Duration> {
        let node = self.nodes.get(&node_id)?;
        if !self.is_live(node_id, now) {
            return None;
        }
        let known = self.shards.get(&shard_id)?.since;
        let seen = node.seen.get(&(shard_id, replica_id)).copied();
        Some(now.saturating_sub(seen.unwrap_or(node.first.max(known))))
    }

    /// Forgets shards that are gone from the state for good, so that the view
    /// does not grow for ever. Unknown ones may be children of a split.
    pub fn forget(&mut self, state: &State, now: Duration) {
        let nodes = &self.nodes;
        self.shards.retain(|id, _| {
            state.shards.contains_key(id)
                || nodes.values().any(|n| {
                    n.replicas.contains_key(id) && now.saturating_sub(n.last) < LIVENESS * 10
                })
        });
        self.unsplittable.retain(|_, u| u.until > now);
    }
}

/// Keeps the newest range and the newest replicas, whoever reported which.
fn merge_reported(held: &mut ShardDescriptor, reported: &ShardDescriptor) {
    if held.shard_id == 0 {
        *held = reported.clone();
        return;
    }
    crate::state::merge_newer(held, reported);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_proto::meta::v1::ReplicaStatus;

    fn heartbeat(node_id: u64, shards: &[u64]) -> HeartbeatRequest {
        let status = |shard_id: &u64| ReplicaStatus {
            shard: Some(ShardDescriptor {
                shard_id: *shard_id,
                ..ShardDescriptor::default()
            }),
            replica_id: node_id << 16 | 1,
            ..ReplicaStatus::default()
        };
        HeartbeatRequest {
            node_id,
            replicas: shards.iter().map(status).collect(),
            ..HeartbeatRequest::default()
        }
    }

    /// The child of a split is born on the leader first. Taken for missing on
    /// the other nodes at once, each split would throw healthy replicas away.
    #[test]
    fn a_shard_just_born_is_missing_nowhere() {
        let at = Duration::from_secs;
        let mut view = View::default();
        view.reset(1, at(0));
        for second in 0..100 {
            view.record(at(second), &heartbeat(1, &[3]));
            view.record(at(second), &heartbeat(2, &[3]));
        }
        view.record(at(100), &heartbeat(1, &[3, 4]));
        view.record(at(100), &heartbeat(2, &[3]));
        let missing = |view: &View, now| view.missing_for(2, 4, 2 << 16 | 1, now);
        assert_eq!(missing(&view, at(100)), Some(at(0)));
        view.record(at(131), &heartbeat(2, &[3]));
        assert_eq!(missing(&view, at(131)), Some(at(31)));
        // Nobody has spoken of it: nobody misses it.
        assert_eq!(view.missing_for(2, 5, 2 << 16 | 1, at(131)), None);
    }
}
