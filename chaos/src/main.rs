//! `lineradb-chaos`: clusters of real processes on this machine.
//!
//! `cluster` starts one and keeps it until Ctrl-C; `bank` runs transfers while
//! kvnodes are killed and restarted, and checks the sum.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lineradb_chaos::bank;
use lineradb_chaos::harness::{Cluster, ClusterOptions};
use lineradb_common::spawn;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Parser)]
#[command(
    version,
    about = "Clusters of real LineraDB processes, and faults done to them"
)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start 1 metaservice, 3 kvnodes and 2 gateways; Ctrl-C stops them all.
    Cluster {
        /// Where data and logs go.
        #[arg(long, default_value = "lineradb-data/cluster")]
        data: PathBuf,
        /// Number of kvnodes.
        #[arg(long, default_value_t = 3)]
        kvnodes: usize,
        /// Number of SQL gateways.
        #[arg(long, default_value_t = 2)]
        gateways: usize,
    },
    /// Transfer money while one kvnode at a time is killed and restarted.
    Bank {
        /// Where data and logs go; must be empty or absent.
        #[arg(long, default_value = "lineradb-data/bank")]
        data: PathBuf,
        /// Kills, one kvnode after the other.
        #[arg(long, default_value_t = 3)]
        kills: usize,
        /// Seconds between kill and restart, and between restart and next kill.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Concurrent clients.
        #[arg(long, default_value_t = 8)]
        clients: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Action::Cluster {
            data,
            kvnodes,
            gateways,
        } => run_cluster(data, kvnodes, gateways).await,
        Action::Bank {
            data,
            kills,
            seconds,
            clients,
        } => run_bank(data, kills, seconds, clients).await,
    }
}

async fn run_cluster(root: PathBuf, kvnodes: usize, gateways: usize) -> Result<()> {
    let options = ClusterOptions {
        root,
        kvnodes,
        gateways,
        well_known_ports: true,
        split_bytes: None,
        proxied: false,
        measured_clocks: false,
    };
    let mut cluster = Cluster::start(&options).await?;
    println!(
        "metaservice  grpc {}   http://{}",
        cluster.meta_address, cluster.metaservice.http
    );
    for (service, address) in cluster.kvnodes.iter().zip(&cluster.kv_addresses) {
        println!(
            "{:<12} grpc {address}   http://{}",
            service.name, service.http
        );
    }
    for (service, address) in cluster.gateways.iter().zip(&cluster.pg_addresses) {
        println!(
            "{:<12} postgres://lineradb@{address}/lineradb   http://{}",
            service.name, service.http
        );
    }
    println!(
        "data and logs in {}; Ctrl-C stops everything",
        options.root.display()
    );
    tokio::signal::ctrl_c().await?;
    println!("stopping");
    for service in cluster.gateways.iter_mut().chain(&mut cluster.kvnodes) {
        if service.is_running() {
            service.terminate()?;
        }
    }
    if cluster.metaservice.is_running() {
        cluster.metaservice.terminate()?;
    }
    Ok(())
}

async fn run_bank(root: PathBuf, kills: usize, seconds: u64, clients: usize) -> Result<()> {
    const ACCOUNTS: i32 = 100;
    let options = ClusterOptions {
        root,
        kvnodes: 3,
        gateways: 2,
        well_known_ports: false,
        split_bytes: None,
        proxied: false,
        measured_clocks: false,
    };
    let mut cluster = Cluster::start(&options).await?;
    let client = bank::connect(&cluster.pg_url(0)).await?;
    bank::create(&client, ACCOUNTS).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let urls = vec![cluster.pg_url(0), cluster.pg_url(1)];
    let run = spawn::task("bank", bank::run(urls, clients, ACCOUNTS, stop.clone()));
    let pause = Duration::from_secs(seconds);
    for kill in 0..kills {
        tokio::time::sleep(pause).await;
        let victim = kill % cluster.kvnodes.len();
        println!("kill -9 {}", cluster.kvnodes[victim].name);
        cluster.kvnodes[victim].kill()?;
        tokio::time::sleep(pause).await;
        println!("restart {}", cluster.kvnodes[victim].name);
        cluster.kvnodes[victim].start()?;
        cluster.kvnodes[victim].ready().await?;
    }
    tokio::time::sleep(pause).await;
    stop.store(true, Ordering::Release);
    let report = run.await??;
    let client = bank::connect(&cluster.pg_url(1)).await?;
    bank::check(&client, ACCOUNTS, &report).await?;
    println!(
        "{} committed, {} aborted, {} unknown; longest pause {:.2} s; no money was made or lost",
        report.committed.len(),
        report.aborted.len(),
        report.unknown.len(),
        report.longest_gap.as_secs_f64()
    );
    for error in report.errors {
        println!("  {error}");
    }
    Ok(())
}
