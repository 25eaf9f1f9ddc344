//! A cluster of real processes on this machine.
//!
//! Every process has a folder and a log file under one root. Ports are either
//! the well-known ones (`make cluster`) or free ones (tests). With `proxied`,
//! services reach each other through [`crate::proxy`] alone: each listens on a
//! port of its own and advertises that of the proxy in front of it, so that
//! every link between two of them can be cut. Clients speak to the services
//! themselves: nothing keeps a client from a node that the others have lost.
//! Dropping a [`Cluster`] kills what still runs.

mod http;
mod ports;
mod service;

pub use http::{http_get, http_status};
pub use service::Service;

use crate::proxy::{Network, Peer, Processes};
use anyhow::{Context, Result};
use bytes::Bytes;
use lineradb_client::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_common::{TableId, keys};
use lineradb_proto::meta::v1::SplitShardRequest;
use ports::Ports;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;

/// How long a split may take.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Everything lives under this folder.
    pub root: PathBuf,
    /// Number of kvnodes; as many replicas of each shard, at most three.
    pub kvnodes: usize,
    /// Number of SQL gateways.
    pub gateways: usize,
    /// Use the documented ports instead of free ones.
    pub well_known_ports: bool,
    /// Split shards above this size.
    pub split_bytes: Option<u64>,
    /// Put a proxy on every link between services, and have them break their own disks
    /// and clocks when they are told to.
    pub proxied: bool,
    /// Let processes measure the time, as those of several machines do, instead
    /// of reading this machine's counter, which all have in common. A metaservice
    /// that starts again then begins the time anew, after a minute of silence.
    pub measured_clocks: bool,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The one metaservice.
    pub metaservice: Service,
    /// The kvnodes, in order.
    pub kvnodes: Vec<Service>,
    /// The gateways, in order.
    pub gateways: Vec<Service>,
    /// gRPC address of the metaservice.
    pub meta_address: SocketAddr,
    /// gRPC addresses of the kvnodes.
    pub kv_addresses: Vec<SocketAddr>,
    /// PostgreSQL addresses of the gateways.
    pub pg_addresses: Vec<SocketAddr>,
    /// HTTP addresses of the gateways.
    pub http_addresses: Vec<SocketAddr>,
    /// The links between the services; nothing passes here unless `proxied`.
    pub network: Network,
    _lock: File,
}

impl Cluster {
    /// Starts everything and waits until every process is ready.
    ///
    /// # Errors
    /// When a binary is missing, a port is taken, or a process does not become
    /// ready.
    pub async fn start(options: &ClusterOptions) -> Result<Cluster> {
        let mut cluster = Self::prepare(options)?;
        cluster.metaservice.start()?;
        for service in cluster.kvnodes.iter_mut().chain(&mut cluster.gateways) {
            service.start()?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// When one ends or takes more than a minute.
    pub async fn ready(&mut self) -> Result<()> {
        self.metaservice.ready().await?;
        for service in self.kvnodes.iter_mut().chain(&mut self.gateways) {
            service.ready().await?;
        }
        Ok(())
    }

    /// `kill -9` of every process at once.
    ///
    /// # Errors
    /// When one was not running.
    pub fn kill_all(&mut self) -> Result<()> {
        for service in self.services() {
            service.kill()?;
        }
        Ok(())
    }

    /// Starts every process that does not run.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_all(&mut self) -> Result<()> {
        for service in self.services() {
            if !service.is_running() {
                service.start()?;
            }
        }
        Ok(())
    }

    /// All processes.
    pub fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        std::iter::once(&mut self.metaservice)
            .chain(&mut self.kvnodes)
            .chain(&mut self.gateways)
    }

    /// One process; `None` for a client.
    pub fn service(&mut self, peer: Peer) -> Option<&mut Service> {
        self.services().find(|service| service.peer == peer)
    }

    /// Connection string of a gateway.
    pub fn pg_url(&self, gateway: usize) -> String {
        let address = self.pg_addresses[gateway];
        format!(
            "host={} port={} user=lineradb dbname=lineradb",
            address.ip(),
            address.port()
        )
    }

    /// Connection strings of all gateways.
    pub fn pg_urls(&self) -> Vec<String> {
        (0..self.gateways.len()).map(|n| self.pg_url(n)).collect()
    }

    /// Gives a table, and what comes after it, a shard of its own.
    ///
    /// # Errors
    /// When there is no such table, or the metaservice does not split.
    pub async fn split_at(&self, client: &Client, table: &str) -> Result<()> {
        let query = "SELECT oid FROM pg_class WHERE relname = $1";
        let oid: u32 = client.query_one(query, &[&table]).await?.get(0);
        let key = keys::table_prefix(TableId(u64::from(oid)));
        let split = self.split(key).await;
        split.with_context(|| format!("splitting at {table}"))
    }

    /// Splits the key space of the KV API at a key.
    ///
    /// # Errors
    /// When it cannot be split there.
    pub async fn split_at_key(&self, key: &[u8]) -> Result<()> {
        let split = self.split([&[keys::KV], key].concat().into()).await;
        split.with_context(|| format!("splitting at {}", key.escape_ascii()))
    }

    async fn split(&self, split_key: Bytes) -> Result<()> {
        let meta = MetaClient::new(vec![self.meta_address.to_string()])?;
        let request = SplitShardRequest {
            split_key,
            ..SplitShardRequest::default()
        };
        meta.split_shard(request, deadline_after(SPLIT_TIMEOUT))
            .await?;
        Ok(())
    }

    fn prepare(options: &ClusterOptions) -> Result<Cluster> {
        std::fs::create_dir_all(&options.root)?;
        let lock = File::create(options.root.join("cluster.lock"))?;
        let processes = Arc::new(Processes::default());
        let network = Network::new(processes.clone());
        let mut ports = Ports::new(options.well_known_ports);
        // Where the others reach a service that listens on `address`.
        let reached = |peer: Peer, address: SocketAddr| match options.proxied {
            true => network.front(peer, address).context("starting a proxy"),
            false => Ok(address),
        };
        let start = |peer: Peer, binary: &str, flags: Vec<String>, http: SocketAddr| {
            let processes = processes.clone();
            let obeys = options.proxied;
            Service::new(&options.root, peer, binary, flags, obeys, http, processes)
        };

        let (meta_address, meta_http) = (ports.next(9190)?, ports.next(9191)?);
        let meta = reached(Peer::Metaservice, meta_address)?.to_string();
        let mut meta_flags = flags(&[
            ("--id", "1"),
            ("--listen", &meta_address.to_string()),
            ("--http", &meta_http.to_string()),
            ("--peers", &format!("1={meta}")),
            ("--replicas", &options.kvnodes.min(3).to_string()),
        ]);
        if options.measured_clocks {
            meta_flags.extend(flags(&[("--shared-counter", "false")]));
        }
        if let Some(bytes) = options.split_bytes {
            meta_flags.extend(flags(&[("--split-bytes", &bytes.to_string())]));
        }
        let metaservice = start(
            Peer::Metaservice,
            "lineradb-metaservice",
            meta_flags,
            meta_http,
        )?;

        let (mut kvnodes, mut kv_addresses) = (Vec::new(), Vec::new());
        for n in 0..options.kvnodes {
            let base = 9090 + 2 * n as u16;
            let (listen, http) = (ports.next(base)?, ports.next(base + 1)?);
            let flags = flags(&[
                ("--listen", &listen.to_string()),
                ("--http", &http.to_string()),
                (
                    "--advertise",
                    &reached(Peer::KvNode(n), listen)?.to_string(),
                ),
                ("--meta", &meta),
                ("--locality", &locality(n)),
            ]);
            kv_addresses.push(listen);
            kvnodes.push(start(Peer::KvNode(n), "lineradb-kvnode", flags, http)?);
        }

        let mut gateways = Vec::new();
        let (mut pg_addresses, mut http_addresses) = (Vec::new(), Vec::new());
        for n in 0..options.gateways {
            let (pg, http) = (ports.next(5432 + n as u16)?, ports.next(8080 + n as u16)?);
            let flags = flags(&[
                ("--pg", &pg.to_string()),
                ("--http", &http.to_string()),
                ("--meta", &meta),
                ("--locality", &locality(n)),
            ]);
            pg_addresses.push(pg);
            http_addresses.push(http);
            let peer = Peer::Gateway(n);
            gateways.push(start(peer, "lineradb-sqlgateway", flags, http)?);
        }
        Ok(Cluster {
            metaservice,
            kvnodes,
            gateways,
            meta_address,
            kv_addresses,
            pg_addresses,
            http_addresses,
            network,
            _lock: lock,
        })
    }
}

/// Each kvnode has a zone of its own; the gateway of its number lives there, too.
fn locality(number: usize) -> String {
    let zone = char::from(b'a' + (number % 26) as u8);
    format!("cloud=local,region=local,zone={zone}")
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    let both = pairs.iter().flat_map(|(flag, value)| [*flag, *value]);
    both.map(str::to_owned).collect()
}
