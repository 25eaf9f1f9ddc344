//! `lineradb-metaservice`: one member of the metaservice as a process.

use clap::Parser;
use lineradb_common::faults::{self, Fault};
use lineradb_common::telemetry;
use lineradb_lsm::{DiskFaults, FaultyVfs, RealVfs, Vfs};
use lineradb_metaservice::config::Flags;
use lineradb_metaservice::{MetaConfig, MetaService};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let flags = Flags::parse();
    // D4: not an error value, but never silent.
    lineradb_lsm::exit_on_map_faults();
    let config = match MetaConfig::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("lineradb-metaservice: {error}");
            return ExitCode::from(2);
        }
    };
    telemetry::init_logging(config.log_format, &config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve(config, flags.faults)),
        Err(error) => Err(format!("cannot start the runtime: {error}")),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            eprintln!("lineradb-metaservice: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The disk as it is, or as standard input says.
fn vfs(faults: bool) -> Result<Arc<dyn Vfs>, String> {
    if !faults {
        return Ok(Arc::new(RealVfs));
    }
    let disk = Arc::new(DiskFaults::default());
    let vfs = FaultyVfs::new(disk.clone());
    faults::obey_stdin(move |fault| match fault {
        Fault::SyncDelay(delay) => disk.delay_syncs(delay),
        Fault::DiskFull(is_full) => disk.fill(is_full),
        Fault::ClockRate(_) | Fault::ClockJump(_) => {}
    })
    .map_err(|e| format!("cannot obey: {e}"))?;
    Ok(Arc::new(vfs))
}

/// Serves until a signal, or until the group fails (D3).
async fn serve(config: MetaConfig, faults: bool) -> Result<(), String> {
    let signals = |kind| signal(kind).map_err(|e| format!("cannot wait for signals: {e}"));
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let service = MetaService::start_with(config, vfs(faults)?)
        .await
        .map_err(|e| e.to_string())?;
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = service.failed() => Some(reason),
    };
    service.shutdown().await;
    failed.map_or(Ok(()), |reason| {
        Err(format!("the raft group failed: {reason}"))
    })
}
