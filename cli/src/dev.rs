//! `lineradb dev` and `lineradb demo`: a cluster in this process.

use crate::local::{LocalCluster, LocalOptions};
use crate::sample;
use crate::sql_shell::{self, SqlArgs};
use anyhow::{Context, Result};
use lineradb_common::clock::Stopwatch;
use lineradb_common::spawn;
use lineradb_common::telemetry::{self, LogFormat};
use serde_json::json;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Ports that both commands take.
#[derive(Clone, Debug, clap::Args)]
pub struct Ports {
    /// PostgreSQL protocol.
    #[arg(long, default_value_t = 5432)]
    pg_port: u16,
    /// HTTP/JSON.
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// KV API (gRPC) of the first kvnode.
    #[arg(long, default_value_t = 9090)]
    kv_port: u16,
    /// Metaservice (gRPC). Without this flag: 9190, or a free one when that is
    /// taken, so that several clusters run side by side.
    #[arg(long)]
    meta_port: Option<u16>,
    /// Number of kvnodes: 1 or 3.
    #[arg(long, default_value_t = 3, value_parser = one_or_three)]
    kvnodes: usize,
    /// Log level.
    #[arg(long, default_value = "warn")]
    log: String,
    /// Print one JSON object when ready, and nothing else on standard output.
    #[arg(long)]
    json: bool,
}

/// Flags of `lineradb dev`.
#[derive(Clone, Debug, clap::Args)]
pub struct DevArgs {
    /// Where the data are kept between runs.
    #[arg(long, default_value = "lineradb-data")]
    data: PathBuf,
    #[command(flatten)]
    ports: Ports,
}

/// Flags of `lineradb demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Scale factor of the TPC-H sample data.
    #[arg(long, default_value_t = 0.01)]
    scale: f64,
    #[command(flatten)]
    ports: Ports,
}

fn one_or_three(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ (1 | 3)) => Ok(n),
        _ => Err("must be 1 or 3".into()),
    }
}

impl Ports {
    fn options(&self, data: PathBuf) -> LocalOptions {
        LocalOptions {
            data,
            kvnodes: self.kvnodes,
            pg_port: self.pg_port,
            http_port: self.http_port,
            kv_port: self.kv_port,
            meta_port: self.meta_port,
            split_bytes: 128 << 20,
        }
    }
}

impl DevArgs {
    /// Errors are for a program.
    pub fn json(&self) -> bool {
        self.ports.json
    }
}

impl DemoArgs {
    /// Errors are for a program.
    pub fn json(&self) -> bool {
        self.ports.json
    }
}

/// Runs a cluster until Ctrl-C.
///
/// # Errors
/// When it does not start.
pub async fn run_dev(args: DevArgs) -> Result<ExitCode> {
    telemetry::init_logging(LogFormat::Text, &args.ports.log);
    let stopwatch = Stopwatch::start();
    let cluster = LocalCluster::start(&args.ports.options(args.data.clone())).await?;
    let seconds = stopwatch.elapsed().as_secs_f64();
    if args.ports.json {
        print_ready(&cluster, &args.data, seconds);
    } else {
        print_addresses(&cluster);
        println!(
            "Data in {}; ready after {seconds:.1} s. Ctrl-C stops.",
            args.data.display(),
        );
    }
    wait_for_signal().await?;
    eprintln!("\nstopping");
    cluster.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// Runs a cluster on a temporary folder with sample data, and a shell on the
/// terminal if there is one.
///
/// # Errors
/// When it does not start or the data do not load.
pub async fn run_demo(args: DemoArgs) -> Result<ExitCode> {
    telemetry::init_logging(LogFormat::Text, &args.ports.log);
    let folder = TemporaryFolder::create()?;
    let stopwatch = Stopwatch::start();
    let cluster = LocalCluster::start(&args.ports.options(folder.0.clone())).await?;
    eprintln!(
        "Ready after {:.1} s. Loading sample data.",
        stopwatch.elapsed().as_secs_f64()
    );
    let url = cluster.url();
    load(&url, args.scale).await?;
    if args.ports.json {
        print_ready(&cluster, &folder.0, stopwatch.elapsed().as_secs_f64());
    } else {
        print_addresses(&cluster);
        println!("Tables: bank, and TPC-H at scale factor {}.", args.scale);
    }
    let code = if std::io::stdin().is_terminal() && !args.ports.json {
        let shell = SqlArgs {
            url,
            commands: Vec::new(),
            files: Vec::new(),
            json: false,
            expanded: false,
        };
        tokio::select! {
            code = sql_shell::run(shell) => code?,
            stopped = terminated() => { stopped?; ExitCode::SUCCESS }
        }
    } else {
        eprintln!("Ctrl-C stops.");
        wait_for_signal().await?;
        ExitCode::SUCCESS
    };
    cluster.shutdown().await;
    Ok(code)
}

async fn load(url: &str, scale: f64) -> Result<()> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let connection = spawn::task("sample-connection", connection);
    sample::load_bank(&client)
        .await
        .context("loading the bank table")?;
    sample::load_tpch(&client, scale)
        .await
        .context("loading the TPC-H tables")?;
    drop(client);
    connection.await??;
    Ok(())
}

fn print_addresses(cluster: &LocalCluster) {
    println!("PostgreSQL  {}", cluster.url());
    println!(
        "HTTP        http://{}   (console, POST /v1/sql)",
        cluster.http
    );
    for address in &cluster.kv {
        println!("KV (gRPC)   {address}");
    }
    println!("metaservice {}", cluster.meta);
}

/// The same for programs: one line.
fn print_ready(cluster: &LocalCluster, data: &Path, seconds: f64) {
    let kv: Vec<String> = cluster.kv.iter().map(SocketAddr::to_string).collect();
    println!(
        "{}",
        json!({
            "ready": true,
            "pg": cluster.url(),
            "http": format!("http://{}", cluster.http),
            "kv": kv,
            "meta": cluster.meta.to_string(),
            "data": data,
            "seconds": (seconds * 1e3).round() / 1e3,
        })
    );
}

async fn wait_for_signal() -> Result<()> {
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        terminated = terminated() => terminated,
    }
}

async fn terminated() -> Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

/// A folder of this process alone, removed in the end.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("lineradb-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(TemporaryFolder(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "the demo's folder stays");
        }
    }
}
