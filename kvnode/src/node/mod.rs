//! A kvnode as a process: opens the engine, makes itself known to the
//! metaservice, hosts replicas and serves.
//!
//! Start order: folder (locked by the engine) -> identity -> registration and
//! clock -> raft log and replicas -> gRPC and HTTP -> heartbeats. A node that
//! has been registered once starts without the metaservice: identity, address
//! book and time base are on its disk.

mod addresses;
pub mod config;
mod engine;
mod heartbeat;
mod http;
mod identity;
mod registration;
mod storage_metrics;

pub use config::{Flags, HISTORY, NodeConfig};

use crate::consensus::{Group, Groups, GroupsOptions, Leadership, Timing};
use crate::kv_service;
use crate::service::{ShardGrpc, ShardNode, ShardNodeOptions};
use crate::{Error, Result};
use addresses::Addresses;
use engine::Engine;
use identity::Identity;
use lineradb_client::meta::MetaClient;
use lineradb_client::{Client, ClientOptions, LocalNodes};
use lineradb_common::clock::{ClusterClock, deadline_after};
use lineradb_common::{NodeId, ReplicaId, spawn};
use lineradb_lsm::{Db, Vfs};
use lineradb_proto::kv::v1::kv_server::KvServer;
use lineradb_proto::meta::v1::RegisterNodeRequest;
use lineradb_proto::shard::v1::shard_server::ShardServer;
use registration::Registration;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest gRPC message: a proposal's worth of writes and some framing.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How often a silent connection is asked whether it lives, and how long it has
/// to answer.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long a stop waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a stop waits for other replicas to lead.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How often the engine is asked whether it has failed.
const FAILURE_POLL: Duration = Duration::from_millis(200);
/// How long the start of a node waits for the time.
const CLOCK_WAIT: Duration = Duration::from_secs(5);

/// What [`KvNode::start`] needs.
#[derive(Clone, Debug)]
pub struct KvNodeOptions {
    /// Data folder.
    pub data: PathBuf,
    /// Where engine, raft log and snapshots are kept.
    pub vfs: Arc<dyn Vfs>,
    /// gRPC address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// HTTP address; port 0 takes a free one.
    pub http: SocketAddr,
    /// Where others reach this node; the bound gRPC address unless given.
    pub advertise: Option<String>,
    /// Metaservice members.
    pub metas: Vec<String>,
    /// e.g. cloud=aws, region=us-east-1, zone=a
    pub locality: HashMap<String, String>,
    /// Budget of the block cache, in bytes.
    pub block_cache_bytes: u64,
    /// How long old versions can be read; at least ten minutes.
    pub history: Duration,
    /// How often leaders say that they are there.
    pub heartbeat: Duration,
    /// The clock of the process; shared by everything in it.
    pub clock: Arc<ClusterClock>,
    /// Nodes of this process, reached by a function call.
    pub local: LocalNodes,
    /// Name of the flag that changes `listen`, for errors.
    pub listen_flag: &'static str,
}

/// A running kvnode.
pub struct KvNode {
    /// Its id in the cluster.
    pub node_id: NodeId,
    /// Where it serves gRPC.
    pub address: SocketAddr,
    /// Where it serves HTTP.
    pub http_address: SocketAddr,
    advertised: String,
    groups: Groups,
    db: Db,
    local: LocalNodes,
    shown: storage_metrics::Shown,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl KvNode {
    /// Starts a node and returns once it serves. Waits for the metaservice when
    /// the node was never registered.
    ///
    /// # Errors
    /// When the folder is in use or damaged, or an address is taken.
    pub async fn start(options: KvNodeOptions) -> Result<KvNode> {
        let (listener, http_listener) = (
            bind(options.listen, options.listen_flag).await?,
            bind(options.http, "--http").await?,
        );
        let (address, http_address) = (local_addr(&listener)?, local_addr(&http_listener)?);
        let advertised = options
            .advertise
            .clone()
            .unwrap_or_else(|| address.to_string());

        let meta = MetaClient::new(options.metas.clone())
            .map_err(|e| Error::Refused(format!("--meta: {e}")))?;
        let mut engine = engine::open(&options, &meta).await?;
        let mut registration = Registration {
            identity: Identity::open(&options.data)?,
            meta: meta.clone(),
            request: RegisterNodeRequest {
                address: advertised.clone(),
                http_address: http_address.to_string(),
                locality: options.locality.clone(),
                ..RegisterNodeRequest::default()
            },
            done: false,
        };
        registration.start().await?;
        if registration.done {
            // After a cold start the time master is silent for a minute: the
            // replicas do not wait for it.
            let synchronised = meta.synchronise(&options.clock);
            if tokio::time::timeout(CLOCK_WAIT, synchronised)
                .await
                .is_err()
            {
                tracing::warn!("starting without the time: the time master does not answer yet");
            }
        }
        let node_id = registration.identity.node_id();
        tracing::info!(%node_id, %address, data = %options.data.display(), "kvnode starts");

        crate::txn::metrics::declare();
        kv_service::declare();
        let addresses = Arc::new(Addresses::open(&options.data));
        let open = |db: &Db| {
            let timing = Timing::every(options.heartbeat);
            let vfs = options.vfs.clone();
            let options = GroupsOptions::new(&options.data, db.clone(), node_id, addresses.clone());
            Groups::open(GroupsOptions {
                timing,
                vfs,
                ..options
            })
        };
        let groups = match open(&engine.db).await {
            Err(Error::Corrupt(damage)) => {
                let Engine { db, .. } = engine;
                spawn::blocking(move || db.close())
                    .await
                    .map_err(|e| Error::Unavailable(e.to_string()))??;
                engine = engine::start_over(&options, &meta, &damage, &["engine", "raft"]).await?;
                open(&engine.db).await?
            }
            opened => opened?,
        };
        let db = engine.db;
        let shard_node = ShardNode::new(ShardNodeOptions {
            groups: groups.clone(),
            db: db.clone(),
            clock: options.clock.clone(),
        })?;
        options
            .local
            .register(advertised.clone(), shard_node.clone());

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let node = KvNode {
            node_id,
            address,
            http_address,
            advertised: advertised.clone(),
            groups: groups.clone(),
            db: db.clone(),
            local: options.local.clone(),
            shown: storage_metrics::show(node_id, db.clone()),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let (time, clock) = (meta.clone(), Arc::downgrade(&options.clock));
        node.run("clock", async move { time.keep_synchronised(clock).await });
        let follow = addresses::follow(meta.clone(), addresses.clone());
        node.run("map-watch", follow);
        let beat = heartbeat::Heartbeat {
            registration,
            addresses,
            lost: engine.lost,
            meta: meta.clone(),
            groups: groups.clone(),
            shards: shard_node.clone(),
            clock: options.clock.clone(),
        };
        node.run("heartbeat", beat.run(stop.clone()));
        node.run(
            "collect-history",
            shard_node.clone().collect(meta.clone(), options.history),
        );
        node.run(
            "report-waits",
            shard_node.clone().report_waits(meta, node_id),
        );
        let kv = Arc::new(OnceLock::new());
        node.serve_grpc(listener, shard_node, &options, kv.clone())
            .await?;
        let status = Arc::new(http::Status {
            node_id,
            address: advertised,
            groups,
            db,
            kv,
        });
        node.run(
            "kvnode-http",
            http::serve(status, http_listener, stop.clone()),
        );
        Ok(node)
    }

    /// Returns when the node can serve no more (D3), with the reason: the
    /// process has to end.
    pub async fn failed(&self) -> String {
        loop {
            if let Some(cause) = self.db.failure() {
                return format!("the storage engine failed: {cause}");
            }
            tokio::time::sleep(FAILURE_POLL).await;
        }
    }

    /// Gives leaderships to other replicas, so that nobody waits for an
    /// election.
    async fn hand_over(&self) {
        let leads = |group: &Group| matches!(group.leadership(), Leadership::Leader { .. });
        let mut handed = Vec::new();
        for group in self.groups.list().into_iter().filter(leads) {
            let me = group.replica_id().0;
            let descriptor = group.descriptor();
            let heir = descriptor.replicas.iter().find(|r| r.replica_id != me);
            if let Some(heir) = heir
                && group
                    .transfer_leader(ReplicaId(heir.replica_id))
                    .await
                    .is_ok()
            {
                handed.push(group);
            }
        }
        let deadline = deadline_after(HAND_OVER);
        while handed.iter().any(leads) {
            let pause = tokio::time::sleep(Duration::from_millis(10));
            if tokio::time::timeout_at(deadline, pause).await.is_err() {
                return;
            }
        }
    }

    /// Hands its leaderships over, stops taking requests, lets those in flight end, stops the replicas and
    /// flushes the engine.
    pub async fn shutdown(self) {
        self.hand_over().await;
        self.local.remove(&self.advertised);
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("requests were still running when the drain ended");
        }
        self.groups.shutdown().await;
        drop(self.shown);
        let db = self.db.clone();
        match spawn::blocking(move || db.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the engine did not close cleanly"),
            Err(error) => tracing::error!(%error, "closing the engine panicked"),
        }
    }

    /// Runs a task until it ends or the node stops.
    fn run<F: Future<Output = ()> + Send + 'static>(&self, name: &'static str, task: F) {
        let stop = self.stop.clone();
        let task = self.tasks.track_future(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
        spawn::task(name, task);
    }

    async fn serve_grpc(
        &self,
        listener: TcpListener,
        shards: Arc<ShardNode>,
        options: &KvNodeOptions,
        kv: Arc<OnceLock<Client>>,
    ) -> Result<()> {
        let client = Client::connect(ClientOptions {
            clock: options.clock.clone(),
            synchronise: None,
            local: Some(options.local.clone()),
            locality: options.locality.clone(),
            ..ClientOptions::new(options.metas.clone())
        });
        let (health, health_service) = tonic_health::server::health_reporter();
        // In both versions: many tools know the older one only.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(lineradb_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let malformed = |e| Error::Corrupt(format!("file descriptors: {e}"));
        let reflection_v1 = reflection().build_v1().map_err(malformed)?;
        let reflection_v1alpha = reflection().build_v1alpha().map_err(malformed)?;
        let shard_service = ShardServer::new(ShardGrpc::new(shards, options.clock.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let router = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            // A peer that vanished without a word ends its streams too.
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(shard_service)
            .add_service(self.groups.raft_service())
            .add_service(health_service)
            .add_service(reflection_v1)
            .add_service(reflection_v1alpha);
        let stop = self.stop.clone();
        // Internal services are there at once: other nodes need them to form
        // a quorum. The public KV API follows when the map has been seen,
        // which needs the metaservice.
        let late = kv.clone();
        spawn::task("kv-client", async move {
            match client.await {
                Ok(client) => {
                    late.get_or_init(|| client);
                    { &health }
                        .set_serving::<KvServer<kv_service::KvService>>()
                        .await;
                }
                Err(error) => tracing::error!(%error, "the KV API does not start"),
            }
        });
        let router = router.add_service(kv_service::server(kv, self.stop.clone()));
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let serve = self.tasks.track_future(async move {
            // Open streams end when the process does; new calls are refused now.
            tokio::select! {
                served = router.serve_with_incoming(incoming) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the gRPC server stopped");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        spawn::task("kvnode-grpc", serve);
        Ok(())
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::io(
            format!("cannot listen on {address}; {flag} chooses another address"),
            e,
        )
    })
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|e| Error::io("address of a socket", e))
}
