//! A whole cluster in one process: a metaservice, a node, a gateway.

use lineradb_client::{Client, ClientOptions, LocalNodes};
use lineradb_common::clock::ClusterClock;
use lineradb_common::spawn;
use lineradb_kvnode::node::{KvNode, KvNodeOptions};
use lineradb_metaservice::config::MetaConfig;
use lineradb_metaservice::server::MetaService;
use lineradb_sqlgateway::ddl::builds::TAKEOVER;
use lineradb_sqlgateway::server::{Listen, ServerOptions, SqlGateway};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::NoTls;

/// A running cluster; its data go with it.
pub struct Cluster {
    /// The gateway.
    pub gateway: SqlGateway,
    client: ClientOptions,
    node: KvNode,
    meta: MetaService,
    _data: TempDir,
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn start_gateway(client: ClientOptions, takeover: Duration) -> SqlGateway {
    let listen = |flag: &str| Listen {
        address: any_port(),
        flag: flag.to_owned(),
    };
    let options = ServerOptions {
        takeover,
        ..ServerOptions::new(listen("--pg"), listen("--http"))
    };
    SqlGateway::start(options, Client::connect(client))
        .await
        .unwrap()
}

impl Cluster {
    /// Microseconds since 1970 on the cluster's clock: all that was acknowledged is
    /// before.
    pub fn now_micros(&self) -> u64 {
        self.client.clock.now().unwrap().earliest.micros()
    }

    /// Starts one.
    pub async fn start() -> Cluster {
        let data = tempfile::tempdir().unwrap();
        let meta = MetaService::start(MetaConfig {
            data: data.path().join("meta"),
            listen: any_port().to_string(),
            http: any_port().to_string(),
            replicas: 1,
            ..MetaConfig::default()
        })
        .await
        .unwrap();
        let metas = vec![meta.address().to_string()];
        let clock = ClusterClock::unsynchronised();
        let local = LocalNodes::default();
        let node = KvNode::start(KvNodeOptions {
            data: data.path().join("node"),
            vfs: Arc::new(lineradb_lsm::RealVfs),
            listen: any_port(),
            http: any_port(),
            advertise: None,
            metas: metas.clone(),
            locality: HashMap::new(),
            block_cache_bytes: 32 << 20,
            history: lineradb_kvnode::node::HISTORY,
            heartbeat: lineradb_kvnode::consensus::HEARTBEAT,
            clock: clock.clone(),
            local: local.clone(),
            listen_flag: "--listen",
        })
        .await
        .unwrap();
        let client = ClientOptions {
            clock: clock.clone(),
            synchronise: Some(clock),
            local: Some(local),
            ..ClientOptions::new(metas)
        };
        let gateway = start_gateway(client.clone(), TAKEOVER).await;
        Cluster {
            gateway,
            client,
            node,
            meta,
            _data: data,
        }
    }

    /// One more gateway of the same cluster; `takeover`: when it thinks that the
    /// driver of an index build is dead.
    pub async fn another_gateway(&self, takeover: Duration) -> SqlGateway {
        start_gateway(self.client.clone(), takeover).await
    }

    /// A client of the PostgreSQL protocol.
    pub async fn connect(&self) -> tokio_postgres::Client {
        let url = format!("postgres://lineradb@{}/lineradb", self.gateway.addresses.pg);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        spawn::task("test-connection", async move {
            // The server may end it first.
            let _ = connection.await;
        });
        client
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        self.gateway.shutdown().await;
        self.node.shutdown().await;
        self.meta.shutdown().await;
    }
}

/// Runs a test on a cluster of its own. Planning recurses deeply in unoptimised
/// builds, hence the stack.
pub fn on_cluster<F>(test: impl FnOnce(Cluster) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            // On a worker thread: the stack of this one is the harness's.
            spawn::task("test", async move { test(Cluster::start().await).await })
                .await
                .unwrap();
        });
}
