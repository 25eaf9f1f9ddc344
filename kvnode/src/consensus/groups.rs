//! All groups of a node: opening them, finding them, keeping their log short.

use super::api::{GroupEvent, GroupsOptions, Retention, Timing};
use super::group::{Group, answered, raft_config, watch};
use super::local::{self, ReplicaRecord};
use super::metrics;
use super::replica::ReplicaState;
use super::split::Birth;
use super::state_machine::{BirthHook, StateMachine};
use super::storage::Storage;
use super::{retention, types};
use crate::raft_log::RaftLog;
use crate::raft_log::store::LogStore;
use crate::snapshot::{self, Spool};
use crate::transport::grpc::{GrpcTransport, MESSAGE_BYTES_MAX, RaftService};
use crate::transport::hearing::Hearing;
use crate::transport::network::Factory;
use crate::transport::{Handler, Transport, router};
use crate::{Error, Result};
use lineradb_common::{NodeId, ReplicaId, ShardId, spawn};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::raft::v1::raft_server::RaftServer;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast, watch as signal};
use tokio::time::Instant;

/// Events kept for a slow subscriber.
const EVENTS: usize = 1024;

/// All groups of a node. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    pub(super) core: Arc<GroupsCore>,
    handler: Arc<dyn Handler>,
}

/// What [`Groups`], the router and the state machines' hooks share.
pub struct GroupsCore {
    pub(super) node: NodeId,
    pub(super) storage: Storage,
    pub(super) log: RaftLog,
    pub(crate) spool: Arc<Spool>,
    pub(super) transport: Arc<dyn Transport>,
    timing: Timing,
    retention: Retention,
    fatal: crate::raft_log::FatalHook,
    groups: RwLock<BTreeMap<ShardId, Group>>,
    events: broadcast::Sender<GroupEvent>,
    /// Counts changes of `groups`.
    changes: signal::Sender<u64>,
    /// Held while a replica is born or dies: one at a time.
    pub(super) life: Mutex<()>,
    snapshots: Arc<Semaphore>,
    stopping: signal::Sender<bool>,
    /// Replicas on record that could not be started, until they are destroyed.
    unstarted: parking_lot::Mutex<BTreeMap<ShardId, meta::ReplicaStatus>>,
    /// Shards whose leader is being asked whether they have a replica here.
    pub(super) asking: parking_lot::Mutex<BTreeSet<ShardId>>,
}

impl Groups {
    /// Opens the raft log and restarts every replica that is found on disk.
    ///
    /// # Errors
    /// When the log or the engine is damaged; the message names file and
    /// groups.
    pub async fn open(options: GroupsOptions) -> Result<Groups> {
        let storage = Storage::new(options.db)?;
        let fatal = Arc::clone(&options.log.fatal);
        let (vfs, dir, log_options) = (options.vfs, options.data_dir, options.log);
        let open = move || -> Result<(RaftLog, Arc<Spool>)> {
            let spool = Spool::open(Arc::clone(&vfs), &dir.join("snapshots"))?;
            Ok((RaftLog::open(vfs, &dir.join("raft"), log_options)?, spool))
        };
        let (log, spool) = spawn::blocking(open)
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))??;
        let transport = match options.transport {
            Some(transport) => transport,
            None => GrpcTransport::new(options.resolve),
        };
        let core = Arc::new(GroupsCore {
            node: options.node_id,
            storage,
            log,
            spool,
            transport: Arc::clone(&transport),
            timing: options.timing,
            retention: options.retention,
            fatal,
            groups: RwLock::default(),
            events: broadcast::channel(EVENTS).0,
            changes: signal::channel(0).0,
            life: Mutex::default(),
            snapshots: Arc::new(Semaphore::new(1)),
            stopping: signal::channel(false).0,
            unstarted: parking_lot::Mutex::default(),
            asking: parking_lot::Mutex::default(),
        });
        core.restart_all().await?;
        let handler = router::router(Arc::downgrade(&core));
        transport.serve(Arc::clone(&handler));
        spawn::task(
            "raft log keeper",
            retention::run(
                Arc::downgrade(&core),
                core.retention,
                core.stopping.subscribe(),
            ),
        );
        Ok(Groups { core, handler })
    }

    /// The replica of a shard on this node.
    pub fn get(&self, shard: ShardId) -> Option<Group> {
        self.core.get(shard)
    }

    /// All replicas of this node, by shard.
    pub fn list(&self) -> Vec<Group> {
        self.core.list()
    }

    /// Told of every group that comes or goes. A receiver that lags calls
    /// [`Groups::list`] again.
    pub fn subscribe(&self) -> broadcast::Receiver<GroupEvent> {
        self.core.events.subscribe()
    }

    /// What heartbeats report.
    pub fn status(&self) -> Vec<meta::ReplicaStatus> {
        let started = self.list().into_iter().map(|group| group.status());
        let unstarted = self.core.unstarted.lock();
        started.chain(unstarted.values().cloned()).collect()
    }

    /// The service to mount on the node's gRPC server.
    pub fn raft_service(&self) -> RaftServer<RaftService> {
        RaftServer::new(RaftService::new(
            Arc::clone(&self.handler),
            self.core.stopping.subscribe(),
        ))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The raft log, for figures.
    pub fn raft_log(&self) -> &RaftLog {
        &self.core.log
    }

    /// Stops all groups and syncs the log. Whatever was under way has an
    /// unknown outcome.
    pub async fn shutdown(&self) {
        self.core.stopping.send_replace(true);
        let _life = self.core.life.lock().await;
        for group in self.core.list() {
            if let Err(error) = group.raft().shutdown().await {
                tracing::warn!(shard = %group.shard_id(), %error, "a replica did not stop cleanly");
            }
            self.core.remove(group.shard_id());
        }
        let log = self.core.log.clone();
        if let Err(error) = spawn::blocking(move || log.close()).await {
            tracing::warn!(%error, "the raft log was not closed cleanly");
        }
    }
}

impl GroupsCore {
    pub(super) fn get(&self, shard: ShardId) -> Option<Group> {
        self.groups.read().get(&shard).cloned()
    }

    pub(super) fn list(&self) -> Vec<Group> {
        self.groups.read().values().cloned().collect()
    }

    /// The replica of exactly this incarnation.
    pub(crate) fn replica(&self, shard: ShardId, replica: ReplicaId) -> Option<Group> {
        self.get(shard)
            .filter(|group| group.replica_id() == replica)
    }

    /// Waits a moment for a replica to be born; a destroyed one is not waited
    /// for.
    pub(crate) async fn wait_for(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        until: Instant,
    ) -> Option<Group> {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(group) = self.get(shard) {
                return Some(group).filter(|group| group.replica_id() == replica);
            }
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => return None,
            }
        }
    }

    pub(crate) async fn snapshot_permit(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.snapshots)
            .acquire_owned()
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// A replica that never started was destroyed.
    pub(super) fn forget_unstarted(&self, shard: ShardId) {
        self.unstarted.lock().remove(&shard);
    }

    pub(super) fn stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    fn insert(&self, group: Group) {
        self.unstarted.lock().remove(&group.shard_id());
        self.groups.write().insert(group.shard_id(), group.clone());
        metrics::get().groups.inc();
        self.changes.send_modify(|count| *count += 1);
        // Nobody may be listening yet.
        let _ = self.events.send(GroupEvent::Added(group));
    }

    pub(super) fn remove(&self, shard: ShardId) {
        if self.groups.write().remove(&shard).is_some() {
            metrics::get().groups.dec();
            self.changes.send_modify(|count| *count += 1);
            let _ = self.events.send(GroupEvent::Removed(shard));
        }
    }

    /// At start: finishes what a crash interrupted and starts the rest. Groups
    /// that only the raft log knows are children whose seed was lost with the
    /// engine's memory: their parent's replay makes it again, and until then
    /// they stay closed (C4).
    async fn restart_all(self: &Arc<Self>) -> Result<()> {
        let _life = self.life.lock().await;
        let records = local::load_all(&self.storage)?;
        let installing = records.values().filter_map(|r| r.installing.as_ref());
        self.spool
            .sweep(&installing.map(|i| i.file.clone()).collect());
        for (shard, record) in records {
            let tombstone = self.log.group(shard).tombstone();
            if tombstone.is_some_and(|t| t.replica >= record.replica) {
                self.erase(shard, &record.descriptor)?;
                continue;
            }
            // One damaged group is replaced; the others serve.
            let status = meta::ReplicaStatus {
                shard: Some(record.descriptor.clone()),
                replica_id: record.replica.0,
                ..meta::ReplicaStatus::default()
            };
            let started = match self.resume(record).await {
                Ok(record) => self.start(shard, record, false).await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = started {
                tracing::error!(%shard, %error, "a replica does not start");
                let failed = error.to_string();
                let status = meta::ReplicaStatus { failed, ..status };
                self.unstarted.lock().insert(shard, status);
            }
        }
        Ok(())
    }

    /// Ends the installation of a snapshot that a crash interrupted.
    async fn resume(&self, record: ReplicaRecord) -> Result<ReplicaRecord> {
        if record.installing.is_none() {
            return Ok(record);
        }
        let (storage, spool) = (self.storage.clone(), Arc::clone(&self.spool));
        spawn::blocking(move || snapshot::resume(&storage, &spool, record))
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))?
    }

    /// Starts the replica on record. `life` is held.
    pub(super) async fn start(
        self: &Arc<Self>,
        shard: ShardId,
        record: ReplicaRecord,
        restore_leader: bool,
    ) -> Result<Group> {
        let replica = record.replica;
        let log = self.log.group(shard);
        log.begin(replica, record.seed.map(|seed| (seed.base, seed.vote)))?;
        let state = Arc::new(ReplicaState::new(
            self.storage.clone(),
            Arc::clone(&self.spool),
            record,
        ));
        let machine = StateMachine::new(Arc::clone(&state), self.birth_hook());
        let hearing = Arc::new(Hearing::new(shard, &self.timing));
        let network = Factory {
            transport: Arc::clone(&self.transport),
            group: shard,
            replica,
            append_timeout: self.timing.election_max * 2,
            hearing: Arc::clone(&hearing),
        };
        let config = raft_config(&self.timing, restore_leader)?;
        let store = LogStore::new(log.clone());
        let raft = openraft::Raft::<types::TypeConfig, StateMachine>::new(
            replica.0, config, network, store, machine,
        )
        .await
        .map_err(|error| Error::Unavailable(format!("start of shard {shard}: {error}")))?;
        let state_of = raft.metrics();
        hearing.listen(move || answered(&state_of.borrow_watched()));
        spawn::task(
            "raft leadership",
            watch(raft.clone(), Arc::clone(&state), Arc::clone(&self.fatal)),
        );
        let group = Group::new(raft, state, log);
        self.insert(group.clone());
        Ok(group)
    }

    /// Children are born outside of their parent's apply, which never waits
    /// for them.
    fn birth_hook(self: &Arc<Self>) -> BirthHook {
        let core = Arc::downgrade(self);
        Arc::new(move |birth: Birth| {
            let Some(core) = core.upgrade() else { return };
            spawn::task("split child", async move { core.born(birth).await });
        })
    }

    async fn born(self: Arc<Self>, birth: Birth) {
        let _life = self.life.lock().await;
        if self.stopping() || self.get(birth.shard).is_some() {
            return;
        }
        let started = match local::load(&self.storage, birth.shard) {
            Ok(Some(record)) => self
                .start(birth.shard, record, birth.lead)
                .await
                .map(|_| ()),
            // Destroyed already, or the parent has no such child here.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            tracing::error!(shard = %birth.shard, %error, "the child of a split does not start");
        }
    }
}
