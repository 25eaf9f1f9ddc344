//! `lineradb-chaos`: clusters of real processes on this machine.
//!
//! `cluster` starts one and keeps it until Ctrl-C; `run` lets clients work on one
//! while it is tormented, and judges what they have seen; `check` judges the
//! history of a run again.
//!
//! Exit codes: 0 the promise was kept, 1 it was not, 2 wrong usage, 3 no verdict.

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use lineradb_chaos::faults;
use lineradb_chaos::harness::{Cluster, ClusterOptions};
use lineradb_chaos::run::{self, HISTORY, Name, Report, RunOptions, TIMELINE};
use lineradb_chaos::workload::Verdict;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const VIOLATED: u8 = 1;
const USAGE: u8 = 2;
const NO_VERDICT: u8 = 3;

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
    /// Let clients work on a cluster while it is tormented, and judge what they saw.
    Run(RunArguments),
    /// Judge the history of a run again.
    Check {
        /// Which workload it is of.
        #[arg(long)]
        workload: Name,
        /// The file.
        history: PathBuf,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    /// What clients do.
    #[arg(long)]
    workload: Name,
    /// What may happen, separated by commas [default: everything].
    #[arg(long, value_delimiter = ',')]
    faults: Vec<faults::Kind>,
    /// How long clients work.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// From which operations and faults follow [default: any].
    #[arg(long)]
    seed: Option<u64>,
    /// Concurrent clients.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Number of kvnodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    kvnodes: u16,
    /// Number of SQL gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    gateways: u16,
    /// Let processes measure the time, as those of several machines do; the
    /// metaservice is then paused where it would be killed.
    #[arg(long)]
    measured_clocks: bool,
    /// Where data, logs and the history go; must be empty or absent
    /// [default: lineradb-data/chaos/WORKLOAD-SEED].
    #[arg(long)]
    data: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Action::Cluster {
            data,
            kvnodes,
            gateways,
        } => run_cluster(data, kvnodes, gateways).await,
        Action::Run(arguments) => run_workload(arguments).await,
        Action::Check { workload, history } => run::check(workload, &history).map(|r| print(&r)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("lineradb-chaos: {error:#}");
        ExitCode::from(NO_VERDICT)
    })
}

async fn run_cluster(root: PathBuf, kvnodes: usize, gateways: usize) -> Result<ExitCode> {
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
    Ok(ExitCode::SUCCESS)
}

async fn run_workload(arguments: RunArguments) -> Result<ExitCode> {
    let mut kinds = arguments.faults;
    if kinds.contains(&faults::Kind::Clock) && !arguments.measured_clocks {
        eprintln!("lineradb-chaos: a wrong clock is one that is measured: add --measured-clocks");
        return Ok(ExitCode::from(USAGE));
    }
    if kinds.is_empty() {
        kinds = faults::Kind::all(arguments.measured_clocks);
    }
    let mut options = RunOptions::new(arguments.workload, &kinds, Path::new(""));
    options.seed = arguments.seed.unwrap_or(options.seed);
    options.length = Duration::from_secs(arguments.seconds);
    options.clients = usize::from(arguments.clients);
    options.kvnodes = usize::from(arguments.kvnodes);
    options.gateways = usize::from(arguments.gateways);
    options.measured_clocks = arguments.measured_clocks;
    let folder = format!("{}-{}", options.workload, options.seed);
    let default = || Path::new("lineradb-data/chaos").join(folder);
    options.root = arguments.data.unwrap_or_else(default);
    if std::fs::read_dir(&options.root).is_ok_and(|mut entries| entries.next().is_some()) {
        let root = options.root.display();
        eprintln!("lineradb-chaos: {root} is not empty: choose another folder with --data");
        return Ok(ExitCode::from(USAGE));
    }
    println!(
        "seed {}; data, logs, {HISTORY} and {TIMELINE} in {}",
        options.seed,
        options.root.display()
    );
    let report = tokio::select! {
        report = run::run(&options) => report?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    Ok(print(&report))
}

fn print(report: &Report) -> ExitCode {
    let counts = &report.counts;
    println!(
        "{} took place, {} did not, {} unknown; {} faults; longest pause {:.2} s",
        counts.ok,
        counts.fail,
        counts.info,
        counts.strikes,
        counts.longest_gap.as_secs_f64()
    );
    for outage in &report.outages {
        println!(
            "{:>7.1} s  {:<40} longest pause {:.2} s",
            outage.at.as_secs_f64(),
            outage.fault,
            outage.longest_pause.as_secs_f64()
        );
    }
    for (count, example) in counts.reasons.values() {
        println!("{count:>8}  {example}");
    }
    match &report.verdict {
        Verdict::Holds => {
            println!("the promise was kept");
            ExitCode::SUCCESS
        }
        Verdict::Violated(reasons) => {
            println!("VIOLATED");
            for reason in reasons {
                println!("{reason}");
            }
            ExitCode::from(VIOLATED)
        }
        Verdict::Undecided(why) => {
            println!("no verdict: {why}");
            ExitCode::from(NO_VERDICT)
        }
    }
}
