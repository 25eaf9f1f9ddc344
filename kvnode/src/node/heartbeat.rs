//! Tells the metaservice twice a second what this node hosts, and carries out
//! what it asks. Orders are idempotent and come again until a status shows that
//! they are done; one that is still being carried out is not started twice.

use super::addresses::Addresses;
use super::registration::Registration;
use crate::consensus::{Groups, Leadership};
use crate::service::ShardNode;
use crate::{Error, Result};
use lineradb_client::meta::MetaClient;
use lineradb_common::clock::{Clock, ClusterClock, deadline_after};
use lineradb_common::{ReplicaId, ShardId, spawn};
use lineradb_proto::meta::v1::order::Order;
use lineradb_proto::meta::v1::{HeartbeatRequest, OrderFailure, ReplicaStatus, SplitReplica};
use lineradb_proto::shard::v1 as shard;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_millis(500);
/// How soon a change of leaders or descriptors is told.
const NEWS: Duration = Duration::from_millis(50);
/// A metaservice that is silent for longer is asked again.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A replacement that takes longer is begun again.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a split may take before it is ordered again.
const SPLIT_TIMEOUT_MS: u32 = 10_000;

/// What the loop needs.
pub(super) struct Heartbeat {
    pub(super) registration: Registration,
    pub(super) addresses: Arc<Addresses>,
    /// Set when the engine was lost: replicas that should be here and are not
    /// are reported as failed for this reason.
    pub(super) lost: Option<String>,
    pub(super) meta: MetaClient,
    pub(super) groups: Groups,
    pub(super) shards: Arc<ShardNode>,
    pub(super) clock: Arc<ClusterClock>,
}

/// Orders under way, and those that were refused for good.
#[derive(Default)]
struct Progress {
    running: Mutex<HashSet<String>>,
    refused: Mutex<Vec<OrderFailure>>,
    /// An order ended: the next heartbeat says so.
    ended: Notify,
}

/// What is told at once when it changes: shard, versions, leading.
type Digest = Vec<(u64, u64, u64, bool)>;

impl Heartbeat {
    /// Beats until the node stops.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let progress = Arc::new(Progress::default());
        while !stop.is_cancelled() {
            // It started without the metaservice: its address may be new.
            if !self.registration.done
                && let Err(error) = self.registration.attempt().await
            {
                tracing::debug!(%error, "not registered yet");
                tokio::time::sleep(INTERVAL).await;
                continue;
            }
            let told = self.digest();
            self.beat(&progress).await;
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.news(&told) => {}
                () = progress.ended.notified() => {}
            }
        }
    }

    fn digest(&self) -> Digest {
        let groups = self.groups.list().into_iter();
        groups
            .map(|group| {
                let descriptor = group.descriptor();
                (
                    descriptor.shard_id,
                    descriptor.version,
                    descriptor.configuration_version,
                    matches!(group.leadership(), Leadership::Leader { .. }),
                )
            })
            .collect()
    }

    async fn news(&self, told: &Digest) {
        loop {
            tokio::time::sleep(NEWS).await;
            if self.digest() != *told {
                return;
            }
        }
    }

    /// Replicas that the map places here and that went with the engine.
    fn lost_replicas(&self) -> Vec<ReplicaStatus> {
        let Some(reason) = &self.lost else {
            return Vec::new();
        };
        let map = self.addresses.map();
        let me = self.registration.identity.node_id().0;
        let here = map.shards.iter().filter_map(|shard| {
            let mine = shard.replicas.iter().find(|r| r.node_id == me)?;
            let (shard_id, replica_id) = (ShardId(shard.shard_id), ReplicaId(mine.replica_id));
            let tombstone = self.groups.raft_log().group(shard_id).tombstone();
            let gone = self.groups.get(shard_id).is_none()
                && tombstone.is_none_or(|t| t.replica < replica_id);
            gone.then(|| ReplicaStatus {
                shard: Some(shard.clone()),
                replica_id: mine.replica_id,
                failed: reason.clone(),
                ..ReplicaStatus::default()
            })
        });
        here.collect()
    }

    async fn beat(&self, progress: &Arc<Progress>) {
        let failures = std::mem::take(&mut *progress.refused.lock());
        let mut replicas = self.groups.status();
        replicas.extend(self.lost_replicas());
        let request = HeartbeatRequest {
            node_id: self.registration.identity.node_id().0,
            incarnation: self.registration.identity.incarnation(),
            sent_at: self.clock.now().map_or(0, |now| now.latest.raw()),
            replicas,
            failures: failures.clone(),
        };
        match self.meta.heartbeat(request, deadline_after(TIMEOUT)).await {
            Ok(reply) => {
                for order in reply.orders.into_iter().filter_map(|o| o.order) {
                    self.start(order, progress);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "heartbeat not delivered");
                progress.refused.lock().extend(failures);
                tokio::time::sleep(NEWS).await;
            }
        }
    }

    fn start(&self, order: Order, progress: &Arc<Progress>) {
        let name = name_of(&order);
        if !progress.running.lock().insert(name.clone()) {
            return;
        }
        let (groups, shards, progress) =
            (self.groups.clone(), self.shards.clone(), progress.clone());
        spawn::task("order", async move {
            let split = match &order {
                Order::Split(split) => Some((split.shard_id, split.new_shard_id)),
                _ => None,
            };
            let outcome = carry_out(order, &groups, &shards).await;
            progress.running.lock().remove(&name);
            match outcome {
                Ok(()) => {
                    tracing::info!(order = name, "order carried out");
                    progress.ended.notify_one();
                }
                // It comes again with the next heartbeat.
                Err(error) => {
                    tracing::warn!(order = name, %error, "order not carried out");
                    if let (Error::Refused(message), Some((shard_id, new_shard_id))) =
                        (error, split)
                    {
                        progress.refused.lock().push(OrderFailure {
                            shard_id,
                            new_shard_id,
                            message,
                        });
                        progress.ended.notify_one();
                    }
                }
            }
        });
    }
}

fn name_of(order: &Order) -> String {
    match order {
        Order::CreateReplica(o) => {
            let shard = o.shard.as_ref().map_or(0, |shard| shard.shard_id);
            format!("create replica {} of {shard}", o.replica_id)
        }
        Order::Split(o) => format!("split {} into {}", o.shard_id, o.new_shard_id),
        Order::ReplaceReplica(o) => {
            let new = o.new.as_ref().map_or(0, |new| new.replica_id);
            format!(
                "replace replica {} of {} by {new}",
                o.old_replica_id, o.shard_id
            )
        }
        Order::DestroyReplica(o) => format!("destroy replica {} of {}", o.replica_id, o.shard_id),
    }
}

async fn carry_out(order: Order, groups: &Groups, shards: &ShardNode) -> Result<()> {
    match order {
        Order::CreateReplica(order) => groups.create_replica(order).await,
        Order::DestroyReplica(order) => groups.destroy_replica(order).await,
        // It waits for another node; begun again, it goes on where it was.
        Order::ReplaceReplica(order) => {
            { tokio::time::timeout(REPLACE_TIMEOUT, groups.replace_replica(order)) }
                .await
                .unwrap_or_else(|_| Err(Error::Unavailable("not done within its time".into())))
        }
        Order::Split(order) => split(order, groups, shards).await,
    }
}

async fn split(order: SplitReplica, groups: &Groups, shards: &ShardNode) -> Result<()> {
    if groups.get(ShardId(order.new_shard_id)).is_some() {
        return Ok(());
    }
    let request = shard::Request {
        shard_id: order.shard_id,
        shard_version: order.shard_version,
        timeout_ms: SPLIT_TIMEOUT_MS,
        body: Some(shard::request::Body::Split(shard::Split {
            split_key: order.split_key,
            new_shard_id: order.new_shard_id,
        })),
        ..Default::default()
    };
    match shards.handle(request).await.body {
        Some(shard::reply::Body::Split(_)) => Ok(()),
        Some(shard::reply::Body::Error(error))
            if error.code() == shard::ErrorCode::InvalidArgument =>
        {
            Err(Error::Refused(error.message))
        }
        Some(shard::reply::Body::Error(error)) => Err(Error::Unavailable(error.message)),
        _ => Err(Error::Corrupt(
            "a split was answered with something else".into(),
        )),
    }
}
