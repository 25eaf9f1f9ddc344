//! `lineradb-kvnode`: a kvnode as a process.

use clap::Parser;
use lineradb_common::faults::{self, Fault};
use lineradb_common::telemetry;
use lineradb_kvnode::node::{Flags, KvNode, NodeConfig};
use lineradb_kvnode::{Error, Result};
use lineradb_lsm::{DiskFaults, FaultyVfs, RealVfs, Vfs};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Decoding plan fragments recurses.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let flags = Flags::parse();
    // D4: not an error value, but never silent.
    lineradb_lsm::exit_on_map_faults();
    let run = || {
        let config = NodeConfig::load(&flags)?;
        telemetry::init_logging(config.log_format, &config.log);
        let vfs = vfs(flags.faults)?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(STACK_BYTES)
            .build()
            .map_err(|e| Error::io("starting the runtime", e))?
            .block_on(serve(config, vfs))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lineradb-kvnode: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The disk as it is, or as standard input says.
fn vfs(faults: bool) -> Result<Arc<dyn Vfs>> {
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
    .map_err(|e| Error::io("starting to obey", e))?;
    Ok(Arc::new(vfs))
}

async fn serve(config: NodeConfig, vfs: Arc<dyn Vfs>) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listening for signals", e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let node = tokio::select! {
        started = KvNode::start(config.options(vfs)?) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    println!(
        "LineraDB kvnode {}: gRPC {}, http://{}",
        node.node_id, node.address, node.http_address
    );
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = node.failed() => Some(reason),
    };
    if let Some(reason) = failed {
        // D3: no flush, no hand-over: nothing this process says counts now.
        tracing::error!(reason, "stopping at once");
        return Err(Error::Unavailable(reason));
    }
    tracing::info!("draining");
    node.shutdown().await;
    Ok(())
}
