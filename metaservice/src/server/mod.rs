//! One member of the metaservice as a running thing: its database, its Raft
//! group, its servers and the leader's loop.

mod leader;
pub(crate) mod map;
mod member;
mod time;

use crate::config::{MetaConfig, parse_address};
use crate::error::{Error, Result};
use crate::raft::Raft;
use crate::raft::log_store::{self, LogStore};
use crate::raft::machine::{self, Machine};
use crate::raft::network::{Factory, MESSAGE_BYTES_MAX, Peers};
use crate::raft::rpc::RaftService;
use crate::service::MetaApi;
use lineradb_common::spawn;
use lineradb_lsm::{Db, Options, RealVfs, Vfs};
use lineradb_proto::meta::v1::meta_raft_server::MetaRaftServer;
use lineradb_proto::meta::v1::meta_server::MetaServer;
use openraft::impls::BasicNode;
use openraft::{Config, SnapshotPolicy};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

pub(crate) use member::{Member, Role};
pub(crate) use time::TimeKeeper;

/// A running member.
pub struct MetaService {
    member: Arc<Member>,
    grpc: SocketAddr,
    http: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl MetaService {
    /// Starts a member: opens its data folder, joins its group and serves.
    ///
    /// # Errors
    /// When an address is in use (the message names the flag), the data folder
    /// is in use (the message names the process) or damaged.
    pub async fn start(config: MetaConfig) -> Result<MetaService> {
        Self::start_with(config, Arc::new(RealVfs)).await
    }

    /// Like [`MetaService::start`], on files that are given.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn start_with(config: MetaConfig, vfs: Arc<dyn Vfs>) -> Result<MetaService> {
        let grpc = bind("--listen", &config.listen).await?;
        let http = bind("--http", &config.http).await?;
        Self::start_on(config, grpc, http, vfs).await
    }

    /// Like [`MetaService::start`], on listeners and files that are given.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn start_on(
        mut config: MetaConfig,
        grpc_listener: TcpListener,
        http_listener: TcpListener,
        vfs: Arc<dyn Vfs>,
    ) -> Result<MetaService> {
        let grpc = address_of(&grpc_listener)?;
        let http = address_of(&http_listener)?;
        config.listen = grpc.to_string();
        let members = config.members()?;
        let data = config.data.clone();
        let db = spawn::blocking(move || open_database(vfs, &data))
            .await
            .map_err(|e| Error::Internal(e.to_string()))??;
        let peers = Peers::new(members.clone());
        let machine = Machine::open(db.clone())?;
        let shared = machine.shared();
        let raft = Raft::new(
            config.id,
            Arc::new(raft_config()?),
            Factory {
                peers: peers.clone(),
            },
            LogStore::open(db.clone())?,
            machine,
        )
        .await
        .map_err(|e| Error::Internal(format!("the raft group does not start: {e}")))?;
        let stop = CancellationToken::new();
        let member = Member::new(config, raft.clone(), shared, peers, db);
        let mut tasks = vec![
            spawn::task("meta-grpc", {
                let (member, stop) = (member.clone(), stop.clone());
                async move { serve_grpc(member, grpc_listener, stop).await }
            }),
            spawn::task("meta-http", {
                let (member, stop) = (member.clone(), stop.clone());
                async move { crate::http::serve(member, http_listener, stop).await }
            }),
        ];
        join_group(&raft, &members).await?;
        tasks.push(spawn::task("meta-leader", {
            let (member, stop) = (member.clone(), stop.clone());
            async move { leader::run(member, stop).await }
        }));
        tasks.push(spawn::task("meta-time", {
            let (member, stop) = (member.clone(), stop.clone());
            async move { time::run(member, stop).await }
        }));
        tasks.push(spawn::task("meta-map", {
            let (member, stop) = (member.clone(), stop.clone());
            async move { map::run(member, stop).await }
        }));
        tracing::info!(%grpc, %http, id = member.config.id, "metaservice started");
        Ok(MetaService {
            member,
            grpc,
            http,
            stop,
            tasks,
        })
    }

    /// Where gRPC is served.
    pub fn address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where HTTP is served.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// True on the member that leads.
    pub fn is_leader(&self) -> bool {
        self.member.raft.is_leader()
    }

    /// True while this member knows the time well enough to take it over.
    pub fn has_time(&self) -> bool {
        self.member.time.is_known()
    }

    /// Returns when the group has stopped on a fatal error, with the reason.
    pub async fn failed(&self) -> String {
        self.member.failed().await
    }

    /// Hands leadership over if it can, finishes what is under way and closes
    /// the database.
    pub async fn shutdown(self) {
        self.member.hand_over().await;
        self.stop_now().await;
    }

    /// Stops without handing over: what a kill would do, for tests.
    pub async fn stop_now(self) {
        self.stop.cancel();
        for task in self.tasks {
            let stopped = tokio::time::timeout(Duration::from_secs(10), task).await;
            if stopped.is_err() {
                tracing::warn!("a task of the metaservice did not stop in time");
            }
        }
        self.member.close().await;
        tracing::info!(id = self.member.config.id, "metaservice stopped");
    }
}

async fn bind(flag: &'static str, address: &str) -> Result<TcpListener> {
    let parsed = parse_address(flag, address)?;
    TcpListener::bind(parsed)
        .await
        .map_err(|source| Error::Listen {
            address: address.to_owned(),
            flag,
            source,
        })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|e| Error::Internal(format!("a listener without an address: {e}")))
}

fn open_database(vfs: Arc<dyn Vfs>, data: &std::path::Path) -> Result<Db> {
    let options = Options {
        memtable_bytes: 8 << 20,
        block_cache_bytes: 8 << 20,
        ..Options::with_keyspaces([log_store::KEYSPACE, machine::KEYSPACE])
    };
    Ok(Db::open(vfs, data, options)?)
}

/// Timeouts: members are few and their disks may be slow, so a leader is given
/// a second before another member tries.
fn raft_config() -> Result<Config> {
    let config = Config {
        cluster_name: "meta".to_owned(),
        // A round trip between two members must be shorter.
        heartbeat_interval: 300,
        election_timeout_min: 750,
        election_timeout_max: 1200,
        max_payload_entries: 1000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
        max_in_snapshot_log_to_keep: 1000,
        install_snapshot_timeout: 30_000,
        enable_pre_vote: Some(true),
        // C1: a restarted leader never resumes its old term.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config
        .validate()
        .map_err(|e| Error::Internal(format!("raft configuration: {e}")))
}

/// Every member of a new group starts with the same membership; a member that
/// has data goes on with what it has.
async fn join_group(raft: &Raft, members: &BTreeMap<u64, String>) -> Result<()> {
    let stopped = |e: String| Error::Internal(format!("the raft group does not start: {e}"));
    if !raft
        .is_initialized()
        .await
        .map_err(|e| stopped(e.to_string()))?
    {
        let nodes: BTreeMap<u64, BasicNode> = { members.iter() }
            .map(|(id, address)| (*id, BasicNode::new(address)))
            .collect();
        if let Err(e) = raft.initialize(nodes).await {
            // Another member was faster, and its log has arrived here.
            if !raft.is_initialized().await.unwrap_or(false) {
                return Err(stopped(e.to_string()));
            }
        }
    } else if members.len() == 1 {
        // Nobody to wait for: do not sit out an election timeout.
        { raft.trigger() }
            .elect(false)
            .await
            .map_err(|e| stopped(e.to_string()))?;
    }
    Ok(())
}

async fn serve_grpc(member: Arc<Member>, listener: TcpListener, stop: CancellationToken) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MetaServer<MetaApi>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(lineradb_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(service) => service,
        Err(error) => {
            tracing::error!(%error, "the reflection service cannot be built");
            return;
        }
    };
    let raft = RaftService {
        raft: member.raft.clone(),
    };
    let api = MetaApi::new(member, stop.clone());
    let served = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(MetaServer::new(api).max_decoding_message_size(64 << 20))
        .add_service(
            MetaRaftServer::new(raft)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC server stopped");
    }
}
