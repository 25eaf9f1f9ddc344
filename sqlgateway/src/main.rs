//! `lineradb-sqlgateway`: the SQL gateway as a process.

use clap::Parser;
use lineradb_client::{Client, ClientOptions};
use lineradb_common::{Error, ErrorKind, faults, telemetry};
use lineradb_sqlgateway::config::{Flags, GatewayConfig, parse_address};
use lineradb_sqlgateway::server::{Listen, ServerOptions, SqlGateway};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Planning recurses deeply in unoptimised builds.
const STACK_BYTES: usize = 16 << 20;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let run = || {
        let config = GatewayConfig::load(&flags)?;
        telemetry::init_logging(config.log_format, &config.log);
        if flags.faults {
            // It has no disk.
            let obeys = faults::obey_stdin(|_| ());
            obeys.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        }
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(STACK_BYTES)
            .build()
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
            .block_on(serve(config))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lineradb-sqlgateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: GatewayConfig) -> Result<(), Error> {
    let io = |error: std::io::Error| Error::new(ErrorKind::Internal, error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let listen = |flag: &str, value: &str| {
        parse_address(flag, value).map(|address| Listen {
            address,
            flag: flag.to_owned(),
        })
    };
    let options = ServerOptions {
        tls: config.tls_cert.clone().zip(config.tls_key.clone()),
        insecure: config.insecure,
        max_connections: config.max_connections,
        statement_timeout_ms: config.statement_timeout_ms,
        http_body_limit: config.http_body_limit,
        drain: Duration::from_secs(config.drain_seconds),
        ..ServerOptions::new(listen("--pg", &config.pg)?, listen("--http", &config.http)?)
    };
    let client = Client::connect(ClientOptions {
        locality: config.locality()?,
        ..ClientOptions::new(config.metas())
    });
    // A signal ends the waiting for a cluster that is not there, too.
    let gateway = tokio::select! {
        started = SqlGateway::start(options, client) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    println!(
        "LineraDB SQL gateway: postgres://lineradb@{}/lineradb, http://{}",
        gateway.addresses.pg, gateway.addresses.http
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    gateway.shutdown().await;
    Ok(())
}
