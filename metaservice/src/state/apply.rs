//! The one function that changes the state.

use super::command::{
    AllocateIds, BeginReplacement, BeginSplit, Body, Bootstrap, CancelSplit, Command, Initialise,
    Protect, RegisterNode, ReplicasCreated, ReportShards, SetClock, Unprotect,
};
use super::shards::{complete_split, merge_newer, span_of, tile};
use super::{
    Changed, NODE_SEQUENCE, NodeRecord, PROTECTION_SEQUENCE, PendingSplit, ProtectionRecord,
    Replacement, SHARD_SEQUENCE, ShardRecord, State,
};
use lineradb_common::limits::{HISTORY_MIN, PROTECTIONS_MAX};
use lineradb_common::{NodeId, ReplicaId, Timestamp};
use lineradb_proto::shard::v1::{Replica, ShardDescriptor};
use std::collections::BTreeMap;
use std::fmt;

/// What a command answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reply {
    /// Done, or nothing to do.
    #[default]
    Done,
    /// The node as it is registered now.
    Node(NodeRecord),
    /// The first id of the block.
    Ids(u64),
    /// The id of the split's right-hand side.
    Split(u64),
    /// The replica that takes the place of the failed one.
    Replacement(Replica),
    /// Protected, under this revision.
    Protected(u64),
    /// Nothing was changed: history before this time may be collected already.
    TooOld(u64),
    /// Nothing was changed, for this reason.
    Refused(String),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A reply, and which records have to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// For the proposer.
    pub reply: Reply,
    /// For the store.
    pub changed: Changed,
}

impl State {
    /// Applies a command. Pure: the same state and command give the same
    /// outcome on every member. A refused command changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let mut changed = Changed::default();
        let reply = match &command.body {
            None => Reply::Refused("an empty command".to_owned()),
            Some(Body::Initialise(c)) => self.initialise(c, &mut changed),
            Some(Body::RegisterNode(c)) => self.register_node(c, &mut changed),
            Some(Body::Bootstrap(c)) => self.bootstrap(c, &mut changed),
            Some(Body::AllocateIds(c)) => self.allocate_ids(c, &mut changed),
            Some(Body::SetClock(c)) => self.set_clock(c, &mut changed),
            Some(Body::ReplicasCreated(c)) => self.replicas_created(c, &mut changed),
            Some(Body::ReportShards(c)) => self.report_shards(c, &mut changed),
            Some(Body::BeginSplit(c)) => self.begin_split(c, &mut changed),
            Some(Body::CancelSplit(c)) => self.cancel_split(c, &mut changed),
            Some(Body::BeginReplacement(c)) => self.begin_replacement(c, &mut changed),
            Some(Body::Protect(c)) => self.protect(c, &mut changed),
            Some(Body::Unprotect(c)) => self.unprotect(c, &mut changed),
        };
        Outcome { reply, changed }
    }

    fn initialise(&mut self, c: &Initialise, changed: &mut Changed) -> Reply {
        if self.header.cluster_id.is_empty() {
            self.header.cluster_id = c.cluster_id.clone();
            self.header.replication_factor = c.replication_factor.max(1);
            changed.header = true;
        }
        Reply::Done
    }

    fn register_node(&mut self, c: &RegisterNode, changed: &mut Changed) -> Reply {
        let node_id = match self.node_by_uuid(&c.uuid) {
            Some(node) => node.node_id,
            None => self.take_ids(NODE_SEQUENCE, 1, changed),
        };
        let node = self.nodes.entry(node_id).or_insert_with(|| NodeRecord {
            node_id,
            uuid: c.uuid.clone(),
            ..NodeRecord::default()
        });
        let moved = node.address != c.address;
        node.address.clone_from(&c.address);
        node.http_address.clone_from(&c.http_address);
        node.locality.clone_from(&c.locality);
        node.incarnation += 1;
        changed.nodes.insert(node_id);
        let node = node.clone();
        if moved {
            self.refresh_addresses(&node, changed);
        }
        Reply::Node(node)
    }

    /// Descriptors carry addresses for the convenience of clients.
    fn refresh_addresses(&mut self, node: &NodeRecord, changed: &mut Changed) {
        for (id, shard) in &mut self.shards {
            let pending = shard.replacement.iter_mut().map(|r| &mut r.new);
            for replica in shard.descriptor.replicas.iter_mut().chain(pending) {
                if replica.node_id == node.node_id && replica.address != node.address {
                    replica.address.clone_from(&node.address);
                    changed.shards.insert(*id);
                }
            }
        }
    }

    fn bootstrap(&mut self, c: &Bootstrap, changed: &mut Changed) -> Reply {
        if !self.shards.is_empty() {
            return Reply::Done;
        }
        let spans: Vec<_> = c.shards.iter().map(span_of).collect();
        if !tile(&spans, (&[], &[])) {
            return Reply::Refused("the first shards do not tile the key space".to_owned());
        }
        let replicas = c.shards.iter().flat_map(|d| &d.replicas);
        if let Some(unknown) = { replicas }.find(|r| !self.nodes.contains_key(&r.node_id)) {
            return Reply::Refused(format!("node {} is not registered", unknown.node_id));
        }
        let first = self.take_ids(SHARD_SEQUENCE, c.shards.len() as u64, changed);
        for (shard_id, descriptor) in (first..).zip(&c.shards) {
            let mut descriptor = descriptor.clone();
            descriptor.shard_id = shard_id;
            descriptor.leader_node_id = 0;
            self.insert_shard(descriptor, true, changed);
        }
        Reply::Done
    }

    fn insert_shard(&mut self, descriptor: ShardDescriptor, founded: bool, changed: &mut Changed) {
        let mut incarnations = BTreeMap::new();
        for replica in &descriptor.replicas {
            note_incarnation(&mut incarnations, replica.replica_id);
        }
        changed.shards.insert(descriptor.shard_id);
        self.shards.insert(
            descriptor.shard_id,
            ShardRecord {
                descriptor,
                founded,
                incarnations,
                ..ShardRecord::default()
            },
        );
    }

    fn take_ids(&mut self, sequence: &str, count: u64, changed: &mut Changed) -> u64 {
        let last = self
            .header
            .sequences
            .entry(sequence.to_owned())
            .or_default();
        let first = *last + 1;
        *last += count;
        changed.header = true;
        first
    }

    fn allocate_ids(&mut self, c: &AllocateIds, changed: &mut Changed) -> Reply {
        if self.sequence(&c.sequence).checked_add(c.count).is_none() {
            return Reply::Refused(format!("sequence {} is exhausted", c.sequence));
        }
        Reply::Ids(self.take_ids(&c.sequence, c.count, changed))
    }

    /// T3: the record changes only as the leader that read it meant it; the
    /// ceiling and the epoch never fall, and a line of another counter begins
    /// no earlier than its ceiling says.
    fn set_clock(&mut self, c: &SetClock, changed: &mut Changed) -> Reply {
        let Some(clock) = &c.clock else {
            return Reply::Refused("the command has no record".to_owned());
        };
        if self.header.clock != c.expected {
            return Reply::Refused("the clock's record has changed since it was read".to_owned());
        }
        let before = c.expected.clone().unwrap_or_default();
        if clock.ceiling_us < before.ceiling_us || clock.epoch < before.epoch.max(1) {
            return Reply::Refused("neither ceiling nor epoch of the clock may fall".to_owned());
        }
        if self.header.clock.as_ref() != Some(clock) {
            self.header.clock = Some(clock.clone());
            changed.header = true;
        }
        Reply::Done
    }

    /// X5: a shard may have been told, as of the ceiling at the latest, that nothing is
    /// protected, and then keeps [`HISTORY_MIN`] before that. Older is what another
    /// record holds already.
    fn protect(&mut self, c: &Protect, changed: &mut Changed) -> Reply {
        let protections = &self.header.protections;
        let held = self.protection(&c.id).map(|record| record.timestamp);
        if held.is_none() && protections.len() >= PROTECTIONS_MAX {
            return Reply::Refused(format!(
                "{PROTECTIONS_MAX} timestamps are protected already"
            ));
        }
        let told = self.header.clock.as_ref().map_or(0, |c| c.ceiling_us);
        let oldest = told.saturating_sub(HISTORY_MIN.as_micros() as u64);
        let kept = Timestamp::from_raw(c.timestamp) >= Timestamp::from_micros(oldest);
        if !kept && held.is_none_or(|held| c.timestamp < held) {
            return Reply::TooOld(oldest);
        }
        let revision = self.take_ids(PROTECTION_SEQUENCE, 1, changed);
        let protections = &mut self.header.protections;
        protections.retain(|p| p.id != c.id);
        protections.push(ProtectionRecord {
            id: c.id.clone(),
            timestamp: c.timestamp,
            lease_ms: c.lease_ms,
            revision,
        });
        Reply::Protected(revision)
    }

    fn unprotect(&mut self, c: &Unprotect, changed: &mut Changed) -> Reply {
        let meant = |p: &ProtectionRecord| p.id == c.id && p.revision == c.revision;
        let before = self.header.protections.len();
        self.header.protections.retain(|p| !meant(p));
        changed.header |= self.header.protections.len() != before;
        Reply::Done
    }

    fn replicas_created(&mut self, c: &ReplicasCreated, changed: &mut Changed) -> Reply {
        if let Some(shard) = self.shards.get_mut(&c.shard_id) {
            for id in &c.replica_ids {
                if shard.wants(*id) && !shard.created.contains(id) {
                    shard.created.push(*id);
                    changed.shards.insert(c.shard_id);
                }
            }
        }
        Reply::Done
    }

    fn report_shards(&mut self, c: &ReportShards, changed: &mut Changed) -> Reply {
        let given_out = self.sequence(SHARD_SEQUENCE);
        let mut reported: BTreeMap<u64, ShardDescriptor> = BTreeMap::new();
        for descriptor in &c.shards {
            let known = descriptor
                .replicas
                .iter()
                .all(|r| self.nodes.contains_key(&r.node_id));
            if descriptor.shard_id == 0 || descriptor.shard_id > given_out || !known {
                continue;
            }
            let mut descriptor = descriptor.clone();
            descriptor.leader_node_id = 0;
            self.set_addresses(&mut descriptor);
            match reported.get_mut(&descriptor.shard_id) {
                Some(held) => {
                    merge_newer(held, &descriptor);
                }
                None => {
                    reported.insert(descriptor.shard_id, descriptor);
                }
            }
        }
        let known: Vec<u64> = self.shards.keys().copied().collect();
        for shard_id in &known {
            self.take_over_split(*shard_id, &reported, changed);
        }
        for (shard_id, descriptor) in &reported {
            self.take_over_configuration(*shard_id, descriptor, changed);
        }
        self.drop_stale_splits(changed);
        Reply::Done
    }

    fn set_addresses(&self, descriptor: &mut ShardDescriptor) {
        for replica in &mut descriptor.replicas {
            if let Some(node) = self.nodes.get(&replica.node_id) {
                replica.address.clone_from(&node.address);
            }
        }
    }

    fn take_over_split(
        &mut self,
        shard_id: u64,
        reported: &BTreeMap<u64, ShardDescriptor>,
        changed: &mut Changed,
    ) {
        let Some(shard) = self.shards.get(&shard_id) else {
            return;
        };
        let parts = complete_split(&shard.descriptor, reported, |id| {
            self.shards.contains_key(&id)
        });
        for part in parts.unwrap_or_default() {
            if part.shard_id != shard_id {
                self.insert_shard(part, false, changed);
            } else if let Some(shard) = self.shards.get_mut(&shard_id) {
                shard.descriptor.version = part.version;
                shard.descriptor.span = part.span;
                changed.shards.insert(shard_id);
            }
        }
    }

    fn take_over_configuration(
        &mut self,
        shard_id: u64,
        reported: &ShardDescriptor,
        changed: &mut Changed,
    ) {
        let Some(shard) = self.shards.get_mut(&shard_id) else {
            return;
        };
        let held = &mut shard.descriptor;
        if reported.configuration_version <= held.configuration_version
            || reported.replicas.is_empty()
        {
            return;
        }
        let before = std::mem::replace(&mut held.replicas, reported.replicas.clone());
        held.configuration_version = reported.configuration_version;
        for replica in &reported.replicas {
            note_incarnation(&mut shard.incarnations, replica.replica_id);
        }
        let is_member = |id: u64| reported.replicas.iter().any(|r| r.replica_id == id);
        let done = |r: &Replacement| is_member(r.new.replica_id) && !is_member(r.old_replica_id);
        if shard.replacement.as_ref().is_some_and(done) {
            shard.replacement = None;
        }
        for gone in before.iter().filter(|r| !is_member(r.replica_id)) {
            if !shard.retired.contains(&gone.replica_id) {
                shard.retired.push(gone.replica_id);
            }
        }
        // A member cannot be a tombstone: ids are never reused.
        shard.retired.retain(|id| !is_member(*id));
        changed.shards.insert(shard_id);
    }

    /// A pending split is over when its child is in the map, or when the shard
    /// has been split otherwise since.
    fn drop_stale_splits(&mut self, changed: &mut Changed) {
        let ids: Vec<u64> = self.shards.keys().copied().collect();
        for (id, shard) in &mut self.shards {
            let version = shard.descriptor.version;
            let over = |s: &PendingSplit| {
                ids.binary_search(&s.new_shard_id).is_ok() || version != s.version
            };
            if shard.split.as_ref().is_some_and(over) {
                shard.split = None;
                changed.shards.insert(*id);
            }
        }
    }

    fn begin_split(&mut self, c: &BeginSplit, changed: &mut Changed) -> Reply {
        let Some(shard) = self.shards.get(&c.shard_id) else {
            return Reply::Refused(format!("there is no shard {}", c.shard_id));
        };
        if shard.descriptor.version != c.version {
            return Reply::Refused(format!("shard {} has changed meanwhile", c.shard_id));
        }
        if let Some(pending) = &shard.split {
            return if pending.split_key == c.split_key {
                Reply::Split(pending.new_shard_id)
            } else {
                Reply::Refused(format!("shard {} is being split already", c.shard_id))
            };
        }
        let (start, end) = shard.span();
        let key: &[u8] = &c.split_key;
        let inside = key > start && (end.is_empty() || key < end);
        if !key.is_empty() && !inside {
            return Reply::Refused(format!(
                "the split key does not lie inside shard {}",
                c.shard_id
            ));
        }
        let new_shard_id = self.take_ids(SHARD_SEQUENCE, 1, changed);
        if let Some(shard) = self.shards.get_mut(&c.shard_id) {
            shard.split = Some(PendingSplit {
                new_shard_id,
                split_key: c.split_key.clone(),
                version: c.version,
            });
            changed.shards.insert(c.shard_id);
        }
        Reply::Split(new_shard_id)
    }

    fn cancel_split(&mut self, c: &CancelSplit, changed: &mut Changed) -> Reply {
        if let Some(shard) = self.shards.get_mut(&c.shard_id) {
            let meant = |s: &PendingSplit| s.new_shard_id == c.new_shard_id;
            if shard.split.as_ref().is_some_and(meant) {
                shard.split = None;
                changed.shards.insert(c.shard_id);
            }
        }
        Reply::Done
    }

    /// C3: the successor gets an incarnation that its node never had in this
    /// group.
    fn begin_replacement(&mut self, c: &BeginReplacement, changed: &mut Changed) -> Reply {
        let Some(node) = self.nodes.get(&c.node_id) else {
            return Reply::Refused(format!("node {} is not registered", c.node_id));
        };
        let Some(shard) = self.shards.get_mut(&c.shard_id) else {
            return Reply::Refused(format!("there is no shard {}", c.shard_id));
        };
        let is_member = |id: u64| {
            let replicas = &shard.descriptor.replicas;
            replicas.iter().any(|r| r.replica_id == id)
        };
        let old_replica_id = match &shard.replacement {
            Some(r) if r.new.replica_id == c.failed_replica_id => {
                if is_member(r.new.replica_id) {
                    // It joined before it failed: finish that change first.
                    return Reply::Replacement(r.new.clone());
                }
                r.old_replica_id
            }
            Some(r) => return Reply::Replacement(r.new.clone()),
            None if is_member(c.failed_replica_id) => c.failed_replica_id,
            None => {
                return Reply::Refused(format!(
                    "replica {} does not belong to shard {}",
                    c.failed_replica_id, c.shard_id
                ));
            }
        };
        let elsewhere = |r: &Replica| r.node_id == c.node_id && r.replica_id != old_replica_id;
        if shard.descriptor.replicas.iter().any(elsewhere) {
            return Reply::Refused(format!(
                "node {} has a replica of shard {} already",
                c.node_id, c.shard_id
            ));
        }
        let last = shard.incarnations.get(&c.node_id).copied().unwrap_or(0);
        let Ok(incarnation) = u16::try_from(last + 1) else {
            return Reply::Refused(format!(
                "shard {} has been placed on node {} too often",
                c.shard_id, c.node_id
            ));
        };
        shard.incarnations.insert(c.node_id, u32::from(incarnation));
        if let Some(abandoned) = &shard.replacement {
            shard.retired.push(abandoned.new.replica_id);
        }
        let new = Replica {
            replica_id: ReplicaId::new(NodeId(c.node_id), incarnation).0,
            node_id: c.node_id,
            address: node.address.clone(),
        };
        shard.replacement = Some(Replacement {
            old_replica_id,
            new: new.clone(),
        });
        changed.shards.insert(c.shard_id);
        Reply::Replacement(new)
    }
}

fn note_incarnation(incarnations: &mut BTreeMap<u64, u32>, replica_id: u64) {
    let replica = ReplicaId(replica_id);
    let highest = incarnations.entry(replica.node().0).or_default();
    *highest = (*highest).max(u32::from(replica.incarnation()));
}
