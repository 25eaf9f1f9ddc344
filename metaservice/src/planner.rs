//! What is to be done next: pure functions of the agreed state and the
//! leader's view.
//!
//! [`decide`] says which commands the leader proposes; [`orders`] says what a
//! node is asked to do. Both look at the whole state each time and remember
//! nothing, so a new leader goes on where the old one stopped, and an order is
//! repeated until a status shows that it is done.

use crate::placement::{Candidate, place};
use crate::state::command::{
    BeginReplacement, BeginSplit, Body, Bootstrap, CancelSplit, ReplicasCreated, ReportShards,
};
use crate::state::{ShardRecord, State};
use crate::view::{Unsplittable, View};
use lineradb_common::{NodeId, ReplicaId, keys};
use lineradb_proto::meta::v1::{
    CreateReplica, DestroyReplica, Order, ReplaceReplica, SplitReplica, order,
};
use lineradb_proto::shard::v1::{Replica, ShardDescriptor, Span};
use std::time::Duration;

/// A replica that its live node has not reported for this long is lost. A
/// replica born by a split may come late: when its parent's replica has to
/// catch up first.
const MISSING: Duration = Duration::from_secs(30);

/// For how long a shard is left alone after its leader could not split it.
const UNSPLITTABLE: Duration = Duration::from_secs(60);

/// What the operator has set.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A shard larger than this is split.
    pub split_bytes: u64,
}

/// The commands that the leader should propose now.
pub fn decide(state: &State, view: &mut View, policy: &Policy, now: Duration) -> Vec<Body> {
    let mut out = Vec::new();
    if state.header.cluster_id.is_empty() {
        return out;
    }
    let protections = &state.header.protections;
    let ended = view.leases.end_silent(protections, view.since, now);
    out.extend(ended.into_iter().map(Body::Unprotect));
    if state.shards.is_empty() {
        out.extend(bootstrap(state, view, now));
        return out;
    }
    out.extend(newer_descriptors(state, view));
    for failure in std::mem::take(&mut view.refused) {
        let unsplittable = Unsplittable {
            until: now + UNSPLITTABLE,
            new_shard_id: failure.new_shard_id,
            reason: failure.message,
        };
        view.unsplittable.insert(failure.shard_id, unsplittable);
        out.push(Body::CancelSplit(CancelSplit {
            shard_id: failure.shard_id,
            new_shard_id: failure.new_shard_id,
        }));
    }
    for (shard_id, shard) in &state.shards {
        out.extend(created(*shard_id, shard, view));
        if let Some(replacement) = failed_replica(state, *shard_id, shard, view, now) {
            out.push(replacement);
        } else if too_large(*shard_id, shard, view, policy, now) {
            out.push(Body::BeginSplit(BeginSplit {
                shard_id: *shard_id,
                version: shard.descriptor.version,
                split_key: bytes::Bytes::new(),
            }));
        }
    }
    view.forget(state, now);
    out
}

/// The first shards, as soon as there are enough live nodes.
fn bootstrap(state: &State, view: &View, now: Duration) -> Option<Body> {
    let candidates = candidates(state, view, now);
    let replicas = state.header.replication_factor as usize;
    if candidates.len() < replicas {
        return None;
    }
    let shards = keys::bootstrap_ranges().into_iter().zip(1u64..);
    let shards = shards.map(|((start, end), shard_id)| {
        let nodes = place(shard_id, &candidates, replicas, &[]);
        ShardDescriptor {
            shard_id,
            span: Some(Span { start, end }),
            version: 1,
            configuration_version: 1,
            replicas: nodes
                .into_iter()
                .map(|node| founding_replica(state, node))
                .collect(),
            leader_node_id: 0,
        }
    });
    Some(Body::Bootstrap(Bootstrap {
        shards: shards.collect(),
    }))
}

fn founding_replica(state: &State, node_id: u64) -> Replica {
    Replica {
        replica_id: ReplicaId::new(NodeId(node_id), 1).0,
        node_id,
        address: state
            .nodes
            .get(&node_id)
            .map(|n| n.address.clone())
            .unwrap_or_default(),
    }
}

/// Live nodes, as the placement sees them.
fn candidates(state: &State, view: &View, now: Duration) -> Vec<Candidate> {
    let live = { state.nodes.values() }.filter(|n| view.is_live(n.node_id, now));
    live.map(|n| Candidate {
        node_id: n.node_id,
        locality: n.locality.clone(),
        weight: 1,
    })
    .collect()
}

/// Descriptors that nodes reported and that would change the map.
fn newer_descriptors(state: &State, view: &View) -> Option<Body> {
    let unknown = |id: &u64| !state.shards.contains_key(id);
    let newer = |d: &ShardDescriptor| match state.shards.get(&d.shard_id) {
        Some(held) => {
            d.version > held.descriptor.version
                || d.configuration_version > held.descriptor.configuration_version
        }
        None => true,
    };
    let reported = view.shards.iter();
    let shards: Vec<ShardDescriptor> = reported
        .map(|(_, shard)| &shard.descriptor)
        .filter(|d| d.shard_id != 0 && newer(d))
        .cloned()
        .collect();
    // A child alone changes nothing before its parent is reported shrunk.
    if shards.iter().all(|d| unknown(&d.shard_id)) {
        return None;
    }
    let command = ReportShards { shards };
    // Not yet complete (a split whose child has not been heard of)? Then do
    // not write a log entry per tick for it.
    let mut trial = state.clone();
    let outcome = trial.apply(&Body::ReportShards(command.clone()).into());
    (outcome.changed != Default::default()).then_some(Body::ReportShards(command))
}

/// Replicas that were ordered, and that their nodes report now.
fn created(shard_id: u64, shard: &ShardRecord, view: &View) -> Option<Body> {
    let pending = shard.replacement.iter().map(|r| &r.new);
    let replica_ids: Vec<u64> = { shard.descriptor.replicas.iter() }
        .chain(pending)
        .filter(|r| !shard.created.contains(&r.replica_id))
        .filter(|r| view.replica(r.node_id, shard_id, r.replica_id).is_some())
        .map(|r| r.replica_id)
        .collect();
    (!replica_ids.is_empty()).then_some(Body::ReplicasCreated(ReplicasCreated {
        shard_id,
        replica_ids,
    }))
}

/// A replica that stopped on a fault or is gone, and where its successor goes.
fn failed_replica(
    state: &State,
    shard_id: u64,
    shard: &ShardRecord,
    view: &View,
    now: Duration,
) -> Option<Body> {
    let lost = |r: &&Replica| {
        let report = view.replica(r.node_id, shard_id, r.replica_id);
        match report {
            Some(report) => !report.failed.is_empty(),
            None => {
                let existed = !shard.founded || shard.created.contains(&r.replica_id);
                let missing = view.missing_for(r.node_id, shard_id, r.replica_id, now);
                existed && missing.is_some_and(|d| d >= MISSING)
            }
        }
    };
    let failed = match &shard.replacement {
        // One at a time; the new one may fail too, once it existed.
        Some(r) => Some(&r.new)
            .filter(|new| shard.created.contains(&new.replica_id))
            .filter(lost)
            .filter(|new| {
                let members = &shard.descriptor.replicas;
                members.iter().all(|m| m.replica_id != new.replica_id)
            }),
        None => shard.descriptor.replicas.iter().find(lost),
    }?;
    Some(Body::BeginReplacement(BeginReplacement {
        shard_id,
        failed_replica_id: failed.replica_id,
        node_id: successor_node(state, shard_id, shard, failed, view, now)?,
    }))
}

/// The same node, whose disk has the room; when it is dead, the node that the
/// ring offers next.
fn successor_node(
    state: &State,
    shard_id: u64,
    shard: &ShardRecord,
    failed: &Replica,
    view: &View,
    now: Duration,
) -> Option<u64> {
    if view.is_live(failed.node_id, now) {
        return Some(failed.node_id);
    }
    let members =
        { shard.descriptor.replicas.iter() }.filter(|r| r.replica_id != failed.replica_id);
    let stay: Vec<u64> = members.map(|r| r.node_id).collect();
    let candidates = candidates(state, view, now);
    place(shard_id, &candidates, stay.len() + 1, &stay)
        .into_iter()
        .find(|id| !stay.contains(id))
}

fn too_large(
    shard_id: u64,
    shard: &ShardRecord,
    view: &View,
    policy: &Policy,
    now: Duration,
) -> bool {
    let idle = shard.split.is_none() && shard.replacement.is_none();
    let left_alone = view.unsplittable.contains_key(&shard_id);
    let large = view.shards.get(&shard_id).is_some_and(|s| {
        // The size is of the range that the leader has; not of an older one.
        s.size_bytes > policy.split_bytes && s.descriptor.version == shard.descriptor.version
    });
    policy.split_bytes > 0 && idle && !left_alone && large && view.leader(shard_id, now) != 0
}

/// What `node_id` is asked to do.
pub fn orders(state: &State, view: &View, node_id: u64, now: Duration) -> Vec<Order> {
    let mut out = Vec::new();
    for (shard_id, shard) in &state.shards {
        let here = { view.nodes.get(&node_id) }.and_then(|n| n.replicas.get(shard_id));
        let here = here.map(|r| r.replica_id);
        out.extend(founding_order(node_id, shard, here));
        out.extend(replacement_order(node_id, shard, here));
        out.extend(destroy_order(node_id, *shard_id, shard, view, here));
        if view.leader(*shard_id, now) == node_id {
            out.extend(leader_orders(*shard_id, shard, view));
        }
    }
    out.into_iter()
        .map(|order| Order { order: Some(order) })
        .collect()
}

/// Founding members get the identical membership (C4), until each was seen
/// once. One that comes when the shard is another already (split, or with other
/// replicas) starts empty and gets a snapshot: played over the descriptor of
/// today, the log from its beginning would be judged differently there.
fn founding_order(node_id: u64, shard: &ShardRecord, here: Option<u64>) -> Option<order::Order> {
    let replicas = shard.descriptor.replicas.iter();
    let mine = { replicas }
        .filter(|_| shard.founded && here.is_none())
        .find(|r| r.node_id == node_id && !shard.created.contains(&r.replica_id))?;
    if ReplicaId(mine.replica_id).incarnation() != 1 {
        return None;
    }
    let now = &shard.descriptor;
    let as_founded = now.version == 1 && now.configuration_version == 1;
    Some(order::Order::CreateReplica(CreateReplica {
        shard: Some(shard.descriptor.clone()),
        replica_id: mine.replica_id,
        founding: as_founded,
    }))
}

/// The successor of a failed replica is born as a learner, after what was
/// there before on the same node is gone.
fn replacement_order(node_id: u64, shard: &ShardRecord, here: Option<u64>) -> Option<order::Order> {
    let new = &shard.replacement.as_ref()?.new;
    if new.node_id != node_id || here.is_some() || shard.created.contains(&new.replica_id) {
        return None;
    }
    Some(order::Order::CreateReplica(CreateReplica {
        shard: Some(shard.descriptor.clone()),
        replica_id: new.replica_id,
        founding: false,
    }))
}

/// A replica that does not belong to the shard any more, or that makes room
/// for its successor.
fn destroy_order(
    node_id: u64,
    shard_id: u64,
    shard: &ShardRecord,
    view: &View,
    here: Option<u64>,
) -> Option<order::Order> {
    let replica_id = here?;
    let makes_room = shard
        .replacement
        .as_ref()
        .is_some_and(|r| r.old_replica_id == replica_id && r.new.node_id == node_id);
    // The map may lag behind a membership that nodes have reported already.
    let newest = view.shards.get(&shard_id).map(|s| &s.descriptor);
    let reported_member =
        newest.is_some_and(|d| d.replicas.iter().any(|r| r.replica_id == replica_id));
    let unwanted = !shard.wants(replica_id) && !reported_member;
    (makes_room || unwanted).then_some(order::Order::DestroyReplica(DestroyReplica {
        shard_id,
        replica_id,
    }))
}

fn leader_orders(shard_id: u64, shard: &ShardRecord, view: &View) -> Vec<order::Order> {
    let mut out = Vec::new();
    if let Some(split) = &shard.split {
        out.push(order::Order::Split(SplitReplica {
            shard_id,
            shard_version: split.version,
            split_key: split.split_key.clone(),
            new_shard_id: split.new_shard_id,
        }));
    }
    if let Some(replacement) = &shard.replacement {
        let new = &replacement.new;
        let well = view
            .replica(new.node_id, shard_id, new.replica_id)
            .is_some_and(|r| r.failed.is_empty());
        if well {
            out.push(order::Order::ReplaceReplica(ReplaceReplica {
                shard_id,
                old_replica_id: replacement.old_replica_id,
                new: Some(new.clone()),
            }));
        }
    }
    out
}
