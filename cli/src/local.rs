//! A cluster in one process: metaservice, kvnodes and gateway, each the real
//! service on its own port. Nodes of the process reach each other's shards by a
//! function call instead of a connection; consensus messages go through the
//! loopback as they do between processes.

use anyhow::{Context, Result};
use lineradb_client::{Client, ClientOptions, LocalNodes};
use lineradb_common::clock::ClusterClock;
use lineradb_kvnode::node::{KvNode, KvNodeOptions};
use lineradb_metaservice::{MetaConfig, MetaService};
use lineradb_sqlgateway::server::{Listen, ServerOptions, SqlGateway};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the metaservice listens unless told otherwise.
const META_PORT: u16 = 9190;

/// What [`LocalCluster::start`] needs. Port 0 takes a free one.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Everything lives under this folder.
    pub data: PathBuf,
    /// Number of kvnodes: 1 or 3.
    pub kvnodes: usize,
    /// Port of the PostgreSQL protocol.
    pub pg_port: u16,
    /// Port of HTTP/JSON.
    pub http_port: u16,
    /// Port of the KV API on the first kvnode.
    pub kv_port: u16,
    /// Port of the metaservice; `None`: the documented one, or any when that is
    /// taken.
    pub meta_port: Option<u16>,
    /// Shards above this size are split.
    pub split_bytes: u64,
}

/// A running cluster.
pub struct LocalCluster {
    /// Where the metaservice listens.
    pub meta: SocketAddr,
    /// Where the kvnodes serve the KV API.
    pub kv: Vec<SocketAddr>,
    /// Where the gateway speaks PostgreSQL.
    pub pg: SocketAddr,
    /// Where the gateway speaks HTTP.
    pub http: SocketAddr,
    gateway: SqlGateway,
    kvnodes: Vec<KvNode>,
    metaservice: MetaService,
}

impl LocalCluster {
    /// Starts everything; returns when a statement would succeed.
    ///
    /// # Errors
    /// When a port is taken (the error names the flag that changes it), the
    /// folder is in use or damaged.
    pub async fn start(options: &LocalOptions) -> Result<LocalCluster> {
        lineradb_lsm::exit_on_map_faults();
        let data = |name: &str| -> Result<PathBuf> {
            let folder = options.data.join(name);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("creating {}", folder.display()))?;
            Ok(folder)
        };
        let meta_port = match options.meta_port {
            Some(port) => {
                free(port, "--meta-port")?;
                port
            }
            None if free(META_PORT, "--meta-port").is_ok() => META_PORT,
            None => 0,
        };
        free(options.kv_port, "--kv-port")?;
        free(options.pg_port, "--pg-port")?;
        free(options.http_port, "--http-port")?;
        let metaservice = MetaService::start(MetaConfig {
            data: data("metaservice")?,
            listen: at(meta_port).to_string(),
            http: at(0).to_string(),
            replicas: options.kvnodes as u32,
            split_bytes: options.split_bytes,
            ..MetaConfig::default()
        })
        .await
        .context("metaservice")?;
        let meta = metaservice.address();
        let metas = vec![meta.to_string()];

        let clock = ClusterClock::unsynchronised();
        let local = LocalNodes::new();
        let mut kvnodes = Vec::new();
        for n in 1..=options.kvnodes {
            let zone = char::from(b'a' + (n - 1) as u8).to_string();
            let node = KvNode::start(KvNodeOptions {
                data: data(&format!("kvnode-{n}"))?,
                vfs: Arc::new(lineradb_lsm::RealVfs),
                listen: at(if n == 1 { options.kv_port } else { 0 }),
                http: at(0),
                advertise: None,
                metas: metas.clone(),
                locality: HashMap::from([("zone".to_owned(), zone)]),
                block_cache_bytes: 256 << 20,
                history: lineradb_kvnode::node::HISTORY,
                heartbeat: lineradb_kvnode::consensus::HEARTBEAT,
                clock: clock.clone(),
                local: local.clone(),
                listen_flag: "--kv-port",
            });
            kvnodes.push(node.await.with_context(|| format!("kvnode {n}"))?);
        }
        let listen = |port, flag: &str| Listen {
            address: at(port),
            flag: flag.to_owned(),
        };
        let server = ServerOptions::new(
            listen(options.pg_port, "--pg-port"),
            listen(options.http_port, "--http-port"),
        );
        let client = Client::connect(ClientOptions {
            clock: clock.clone(),
            synchronise: Some(clock),
            local: Some(local),
            ..ClientOptions::new(metas)
        });
        let gateway = SqlGateway::start(server, client)
            .await
            .context("SQL gateway")?;
        Ok(LocalCluster {
            meta,
            kv: kvnodes.iter().map(|node| node.address).collect(),
            pg: gateway.addresses.pg,
            http: gateway.addresses.http,
            gateway,
            kvnodes,
            metaservice,
        })
    }

    /// Connection string of the gateway.
    pub fn url(&self) -> String {
        format!("postgres://lineradb@{}/lineradb", self.pg)
    }

    /// Stops everything in order; what was acknowledged stays.
    pub async fn shutdown(self) {
        self.gateway.shutdown().await;
        for node in self.kvnodes {
            node.shutdown().await;
        }
        self.metaservice.shutdown().await;
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Says which flag chooses another port when this one is taken.
fn free(port: u16, flag: &str) -> Result<()> {
    std::net::TcpListener::bind(at(port))
        .map(drop)
        .with_context(|| format!("port {port} is busy; {flag} chooses another one"))
}
