//! `lineradb`: the command-line tool.
//!
//! `dev` and `demo` run a whole cluster in one process; `sql` is a shell; `kv`
//! and `cluster` talk to a running cluster.

use clap::{Parser, Subcommand};
use lineradb_cli::{cluster, dev, kv, sql_shell};
use serde_json::json;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "lineradb",
    version,
    about = "A globally distributed, strictly serializable SQL database"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster in this process; its data stay between runs.
    Dev(dev::DevArgs),
    /// Run a cluster in this process with sample data and a SQL shell.
    Demo(dev::DemoArgs),
    /// SQL shell, or one statement with -c.
    Sql(sql_shell::SqlArgs),
    /// Read and write keys of the KV API.
    Kv(kv::KvArgs),
    /// Look at a cluster and change it.
    Cluster(cluster::ClusterArgs),
}

impl Command {
    /// `--json` was given: errors are for a program, too.
    fn json(&self) -> bool {
        match self {
            Command::Dev(args) => args.json(),
            Command::Demo(args) => args.json(),
            Command::Sql(args) => args.json,
            Command::Kv(args) => args.json,
            Command::Cluster(args) => args.json,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Planning recurses deeply in unoptimised builds.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(16 << 20)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lineradb: the asynchronous runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let as_json = arguments.command.json();
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Dev(args) => dev::run_dev(args).await,
            Command::Demo(args) => dev::run_demo(args).await,
            Command::Sql(args) => sql_shell::run(args).await,
            Command::Kv(args) => kv::run(args).await,
            Command::Cluster(args) => cluster::run(args).await,
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            match as_json {
                true => eprintln!("{}", json!({"error": {"message": format!("{error:#}")}})),
                false => eprintln!("lineradb: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}
