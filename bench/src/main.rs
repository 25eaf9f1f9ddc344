//! `lineradb-bench <suite>`: measures LineraDB. `RESULTS.md` keeps the figures
//! and says how each was made.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lineradb_bench::{chart, figures, storage};
#[cfg(feature = "cluster")]
use lineradb_bench::{kv, tpch, txn};
use std::path::PathBuf;
#[cfg(feature = "cluster")]
use std::time::Duration;

#[derive(Parser)]
#[command(version, about = "Benchmarks of LineraDB")]
struct Arguments {
    /// Also write the figures as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Also draw the ratios to the peers, as SVG.
    #[arg(long, global = true)]
    svg: Option<PathBuf>,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The storage engine alone.
    Storage {
        /// Ten million entries, an hour or two with peers: what is done if nothing is said.
        #[arg(long, conflicts_with = "quick")]
        full: bool,
        /// A tenth of the work.
        #[arg(long)]
        quick: bool,
        /// How often everything is measured; the figures are medians.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        runs: u8,
        /// Sizes of values: some of 100, 1024 and 65536 bytes.
        #[arg(long, value_delimiter = ',', default_value = "100,1024,65536")]
        value_bytes: Vec<usize>,
        /// Where the databases go; a temporary folder unless given.
        #[arg(long)]
        data: Option<PathBuf>,
    },
    #[cfg(feature = "cluster")]
    /// The 22 TPC-H queries through a running gateway, checked against and timed
    /// beside DataFusion on the same data in memory.
    Tpch {
        /// The gateway.
        #[arg(long, default_value = "postgres://lineradb@127.0.0.1:5432/lineradb")]
        url: String,
        /// Scale factor.
        #[arg(long, default_value_t = 0.1)]
        scale: f64,
        /// Create and fill the tables first.
        #[arg(long)]
        load: bool,
    },
    #[cfg(feature = "cluster")]
    /// The KV API of a running cluster.
    Kv {
        /// kvnode addresses.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "127.0.0.1:9090,127.0.0.1:9092,127.0.0.1:9094"
        )]
        addresses: Vec<String>,
        /// Numbers of clients.
        #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
        clients: Vec<usize>,
        /// Seconds per measurement.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    #[cfg(feature = "cluster")]
    /// Transactions over one shard and over several, on one row, and too many.
    Txn {
        /// Members of the metaservice.
        #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:9190")]
        meta: Vec<String>,
        /// A kvnode.
        #[arg(long, default_value = "127.0.0.1:9090")]
        kv: String,
        /// A gateway.
        #[arg(long, default_value = "postgres://lineradb@127.0.0.1:5432/lineradb")]
        url: String,
        /// Seconds per measurement.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let results = match arguments.suite {
        Suite::Storage {
            full: _,
            quick,
            runs,
            value_bytes,
            data,
        } => {
            let scale = if quick { storage::QUICK } else { storage::FULL };
            let folder = tempfile::tempdir()?;
            let data = data.as_deref().unwrap_or(folder.path());
            storage::run(data, scale, usize::from(runs), &value_bytes)?
        }
        #[cfg(feature = "cluster")]
        Suite::Tpch { url, scale, load } => tpch::run(&url, scale, load).await?,
        #[cfg(feature = "cluster")]
        Suite::Kv {
            addresses,
            clients,
            seconds,
        } => kv::run(&addresses, &clients, seconds).await?,
        #[cfg(feature = "cluster")]
        Suite::Txn {
            meta,
            kv,
            url,
            seconds,
        } => {
            let cluster = txn::Cluster {
                metas: meta,
                kv,
                url,
            };
            txn::run(&cluster, Duration::from_secs(seconds)).await?
        }
    };
    if let Some(path) = arguments.svg {
        let title = "LineraDB beside its peers (longer to the right: LineraDB is faster)";
        std::fs::write(path, chart::svg(title, &results))?;
    }
    figures::report(&results, arguments.json.as_deref())
}
