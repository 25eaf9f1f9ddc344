//! The PostgreSQL wire protocol, version 3.0.
//!
//! `pgwire` encodes what the server says; the rest is ours, because the order
//! of things is what matters here: results are streamed with back-pressure
//! (never collected), pipelined messages are answered in one write, an error
//! skips to Sync, portals end with their transaction, a cancel request reaches
//! the running statement.
//!
//! ```text
//!  startup     TLS, GSSAPI, cancel, start-up packet -> Session
//!  link        bytes <-> messages (message: decoding, output: encoding)
//!  connection  main loop, simple protocol, COPY
//!  extended    statements and portals
//!  rows        a result under way
//! ```

mod connection;
mod extended;
mod link;
mod message;
mod output;
mod rows;
mod startup;
mod stream;

use crate::Gateway;
use crate::metrics;
use connection::Connection;
use lineradb_common::spawn;
use startup::Started;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use startup::ALPN;

/// A client that has not sent its start-up packet by then is dropped.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The server of the wire protocol.
pub struct PgServer {
    /// Runs the statements.
    pub gateway: Arc<Gateway>,
    /// TLS, when certificates are configured.
    pub tls: Option<TlsAcceptor>,
    /// More clients get 53300.
    pub max_connections: usize,
}

impl PgServer {
    /// Accepts until `drain` is cancelled, then lets open transactions finish
    /// until `stop` is.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        drain: CancellationToken,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let count = Arc::new(AtomicUsize::new(0));
        loop {
            let tcp = tokio::select! {
                () = drain.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((tcp, _)) => tcp,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a PostgreSQL connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let guard = Counted::new(&count);
            let full = count.load(Ordering::Relaxed) > self.max_connections;
            // Far beyond the limit (cancel requests still pass a little above).
            if count.load(Ordering::Relaxed) > self.max_connections + 64 {
                continue;
            }
            let (server, drain, stop) = (Arc::clone(&self), drain.clone(), stop.clone());
            spawn::task(
                "pg-connection",
                tasks.track_future(async move {
                    let _guard = guard;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = server.connection(tcp, full, &drain) => {}
                    }
                }),
            );
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    async fn connection(&self, tcp: TcpStream, full: bool, drain: &CancellationToken) {
        let started = startup::start(tcp, self.tls.as_ref(), &self.gateway, full);
        match tokio::time::timeout(STARTUP_TIMEOUT, started).await {
            Ok(Ok(Started::Session(session, link))) => {
                Connection::new(*session, link).serve(drain).await;
            }
            Ok(Ok(Started::Over)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection refused"),
            Err(_) => tracing::debug!("connection dropped: no start-up packet in time"),
        }
    }
}

/// One open connection, counted while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        let now = count.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::pg_connections(now);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let now = self.0.fetch_sub(1, Ordering::Relaxed) - 1;
        metrics::pg_connections(now);
    }
}
