//! A cluster of real processes on this machine.
//!
//! Every process has a folder and a log file under one root. Ports are either
//! the well-known ones (`make cluster`) or free ones (tests). Dropping a
//! [`Cluster`] kills what still runs.

use anyhow::{Context, Result, anyhow, bail};
use lineradb_common::clock::deadline_after;
use std::fs::{File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a process may take to become ready on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

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
}

/// One service process.
#[derive(Debug)]
pub struct Service {
    /// For people: `kvnode-1`.
    pub name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    /// Where it answers `/readyz`.
    pub http: SocketAddr,
}

impl Service {
    /// Starts the process.
    ///
    /// # Errors
    /// When the binary is missing or its log cannot be opened.
    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`: no warning, no flush.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self
            .child
            .take()
            .ok_or_else(|| anyhow!("{} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the exit code.
    ///
    /// # Errors
    /// When it was not running.
    pub fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        let mut child = self
            .child
            .take()
            .ok_or_else(|| anyhow!("{} does not run", self.name))?;
        // SAFETY: sends a signal to a child that has not been waited for, so the pid is ours.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        Ok(child.wait()?)
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// True while the process has not ended.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the process ends or does not become ready in time; the message
    /// ends with the last lines of its log.
    pub async fn ready(&mut self) -> Result<()> {
        let deadline = deadline_after(READY_TIMEOUT);
        loop {
            if http_status(self.http, "/readyz")
                .await
                .is_some_and(|s| s == 200)
            {
                return Ok(());
            }
            if !self.is_running() {
                bail!(
                    "{} ended before it was ready:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if deadline.elapsed() > Duration::ZERO {
                bail!(
                    "{} is not ready after a minute:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Best effort: it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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

    /// Connection string of a gateway.
    pub fn pg_url(&self, gateway: usize) -> String {
        let address = self.pg_addresses[gateway];
        format!(
            "host={} port={} user=lineradb dbname=lineradb",
            address.ip(),
            address.port()
        )
    }

    fn prepare(options: &ClusterOptions) -> Result<Cluster> {
        std::fs::create_dir_all(&options.root)?;
        let lock = File::create(options.root.join("cluster.lock"))?;
        let mut ports = Ports {
            well_known: options.well_known_ports,
            taken: Vec::new(),
        };
        let meta_address = ports.next(9190)?;
        let meta_http = ports.next(9191)?;
        let replicas = options.kvnodes.min(3).to_string();
        let mut metaservice_flags: Vec<String> = vec![
            "--id".into(),
            "1".into(),
            "--listen".into(),
            meta_address.to_string(),
            "--http".into(),
            meta_http.to_string(),
            "--replicas".into(),
            replicas,
        ];
        if let Some(bytes) = options.split_bytes {
            metaservice_flags.extend(["--split-bytes".into(), bytes.to_string()]);
        }
        let metaservice = service(
            &options.root,
            "metaservice-1",
            "lineradb-metaservice",
            metaservice_flags,
            meta_http,
            true,
        )?;
        let mut kvnodes = Vec::new();
        let mut kv_addresses = Vec::new();
        for n in 0..options.kvnodes {
            let base = 9090 + 2 * n as u16;
            let (listen, http) = (ports.next(base)?, ports.next(base + 1)?);
            let zone = char::from(b'a' + (n % 26) as u8);
            let flags = vec![
                "--listen".into(),
                listen.to_string(),
                "--http".into(),
                http.to_string(),
                "--meta".into(),
                meta_address.to_string(),
                "--locality".into(),
                format!("cloud=local,region=local,zone={zone}"),
            ];
            kv_addresses.push(listen);
            kvnodes.push(service(
                &options.root,
                &format!("kvnode-{}", n + 1),
                "lineradb-kvnode",
                flags,
                http,
                true,
            )?);
        }
        let mut gateways = Vec::new();
        let (mut pg_addresses, mut http_addresses) = (Vec::new(), Vec::new());
        for n in 0..options.gateways {
            let (pg, http) = (ports.next(5432 + n as u16)?, ports.next(8080 + n as u16)?);
            let flags = vec![
                "--pg".into(),
                pg.to_string(),
                "--http".into(),
                http.to_string(),
                "--meta".into(),
                meta_address.to_string(),
            ];
            pg_addresses.push(pg);
            http_addresses.push(http);
            gateways.push(service(
                &options.root,
                &format!("sqlgateway-{}", n + 1),
                "lineradb-sqlgateway",
                flags,
                http,
                false,
            )?);
        }
        Ok(Cluster {
            metaservice,
            kvnodes,
            gateways,
            meta_address,
            kv_addresses,
            pg_addresses,
            http_addresses,
            _lock: lock,
        })
    }
}

fn service(
    root: &Path,
    name: &str,
    binary: &str,
    mut arguments: Vec<String>,
    http: SocketAddr,
    has_data: bool,
) -> Result<Service> {
    if has_data {
        let data = root.join(name);
        std::fs::create_dir_all(&data)?;
        arguments.extend(["--data".into(), data.display().to_string()]);
    }
    Ok(Service {
        name: name.into(),
        binary: binary_path(binary)?,
        arguments,
        log: root.join(format!("{name}.log")),
        child: None,
        http,
    })
}

/// Binaries stand beside the running one (or above it, for a test binary).
/// A test that runs alone builds what is missing.
fn binary_path(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let mut folder = here
        .parent()
        .ok_or_else(|| anyhow!("no folder above {}", here.display()))?;
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    if !path.is_file() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", name, "--bin", name]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().context("running cargo")?;
        if !status.success() || !path.is_file() {
            bail!("{} is missing: run `make build` first", path.display());
        }
    }
    Ok(path)
}

struct Ports {
    well_known: bool,
    taken: Vec<TcpListener>,
}

impl Ports {
    /// The documented port, or a free one. Free ones are held until all are
    /// chosen, so that none is given twice.
    fn next(&mut self, well_known: u16) -> Result<SocketAddr> {
        let port = if self.well_known { well_known } else { 0 };
        let listener = TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("port {port} on 127.0.0.1 is taken"))?;
        let address = listener.local_addr()?;
        self.taken.push(listener);
        Ok(address)
    }
}

/// The status of a GET, or `None` when nobody answers.
pub async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    Some(http_get(address, path).await?.0)
}

/// Status and body of a GET, or `None` when nobody answers.
pub async fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let attempt = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), attempt)
        .await
        .ok()
        .flatten()
}
