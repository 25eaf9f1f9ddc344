//! The gateway as a service: both front ends on their sockets, started and
//! stopped as one. Usable in process (`lineradb dev`) and by the binary.

use crate::activity::Activities;
use crate::ddl::builds::TAKEOVER;
use crate::http::{self, HttpState};
use crate::metrics;
use crate::pg_catalog::{Cluster, PgCatalog};
use crate::pgwire::PgServer;
use crate::tls::{self, TlsListener};
use crate::{Gateway, GatewayOptions};
use axum::serve::{Listener, ListenerExt};
use lineradb_client::Client;
use lineradb_common::config::{check_exposure, is_loopback};
use lineradb_common::{Error, ErrorKind, Result, spawn};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Between two attempts to reach the cluster.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// HTTP connections that idle at a shutdown get no longer than this.
const HTTP_LINGER: Duration = Duration::from_millis(500);

/// A socket to listen on, and the flag that changes it.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where.
    pub address: SocketAddr,
    /// Named in errors: `--pg`, `--pg-port`.
    pub flag: String,
}

/// How a gateway serves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The PostgreSQL protocol.
    pub pg: Listen,
    /// HTTP.
    pub http: Listen,
    /// Certificate and key files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Serve beyond this machine without authentication.
    pub insecure: bool,
    /// Clients of the PostgreSQL protocol.
    pub max_connections: usize,
    /// `statement_timeout` of new sessions in milliseconds; 0: none.
    pub statement_timeout_ms: u64,
    /// Longest body of an HTTP request.
    pub http_body_limit: usize,
    /// Time that open transactions get to finish at a shutdown.
    pub drain: Duration,
    /// An index build whose gateway shows no life for so long is taken over.
    pub takeover: Duration,
}

impl ServerOptions {
    /// Defaults for a gateway of this process.
    pub fn new(pg: Listen, http: Listen) -> Self {
        ServerOptions {
            pg,
            http,
            tls: None,
            insecure: false,
            max_connections: 1_000,
            statement_timeout_ms: 0,
            http_body_limit: 16 << 20,
            drain: Duration::from_secs(5),
            takeover: TAKEOVER,
        }
    }
}

/// Where a gateway listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The PostgreSQL protocol.
    pub pg: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

/// A running gateway.
pub struct SqlGateway {
    /// Where it listens (with the ports chosen when 0 was asked for).
    pub addresses: Addresses,
    gateway: Arc<Gateway>,
    drain: CancellationToken,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    drain_time: Duration,
}

impl SqlGateway {
    /// Binds both sockets, then awaits the client and the cluster, and serves.
    /// While it waits, HTTP answers already: `/readyz` with 503.
    ///
    /// # Errors
    /// A socket that is taken (the error names the flag), an exposed address
    /// without `insecure`, or certificates that do not load. That the cluster
    /// does not answer yet is no error: it is waited for.
    pub async fn start(
        options: ServerOptions,
        client: impl Future<Output = Result<Client, lineradb_client::Error>>,
    ) -> Result<SqlGateway> {
        for listen in [&options.pg, &options.http] {
            check_exposure(&listen.flag, &listen.address, options.insecure)?;
        }
        metrics::declare();
        let acceptor = match &options.tls {
            Some((cert, key)) => Some(tls::acceptor(cert, key)?),
            None => None,
        };
        let pg = bind(&options.pg).await?;
        let http = bind(&options.http).await?;
        let addresses = Addresses {
            pg: address_of(&pg)?,
            http: address_of(&http)?,
        };
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        // Dropping a start that is given up must end what it began.
        let guard = stop.clone().drop_guard();
        let state = HttpState::new(options.http_body_limit, is_loopback(&options.http.address));
        // HTTP's open transactions end when no request can come any more.
        let http_over = CancellationToken::new();
        let server = HttpServer {
            state: Arc::clone(&state),
            drain: drain.clone(),
            stop: stop.clone(),
            over: http_over.clone(),
        };
        let mut tasks = vec![
            spawn::task("http-server", server.serve(http, acceptor.clone())?),
            spawn::task("http-transactions", Arc::clone(&state).sweep(http_over)),
        ];
        let client = client
            .await
            .map_err(|error| Error::new(error.kind(), error.to_string()))?;
        let gateway = connect(client, &options).await?;
        state.ready(Arc::clone(&gateway));
        let server = Arc::new(PgServer {
            gateway: Arc::clone(&gateway),
            tls: acceptor,
            max_connections: options.max_connections,
        });
        tasks.push(spawn::task(
            "pg-server",
            server.serve(pg, drain.clone(), stop.clone()),
        ));
        guard.disarm();
        tracing::info!(pg = %addresses.pg, http = %addresses.http, "SQL gateway ready");
        Ok(SqlGateway {
            addresses,
            gateway,
            drain,
            stop,
            tasks,
            drain_time: options.drain,
        })
    }

    /// The SQL side.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Takes no new work, lets open transactions finish for a while, rolls the
    /// rest back.
    pub async fn shutdown(self) {
        self.drain.cancel();
        self.gateway.stop_background();
        let stop = self.stop.clone();
        let mut tasks = futures::future::join_all(self.tasks);
        let finished = tokio::time::timeout(self.drain_time, &mut tasks).await;
        if finished.is_err() {
            tracing::warn!("transactions still open at the end of the drain are rolled back");
        }
        stop.cancel();
        if finished.is_err() {
            // What does not end now is stuck; the process ends anyway.
            let _ = tokio::time::timeout(Duration::from_secs(2), &mut tasks).await;
        }
        let settled = self.gateway.client().settled();
        let _ = tokio::time::timeout(Duration::from_secs(2), settled).await;
    }
}

async fn bind(listen: &Listen) -> Result<TcpListener> {
    TcpListener::bind(listen.address).await.map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "{} is in use by another process: choose another with {}",
                listen.address, listen.flag
            ),
            _ => format!("{} {}: {error}", listen.flag, listen.address),
        };
        Error::new(ErrorKind::Unavailable, message)
    })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// Starts the SQL side; a cluster that is not there yet is waited for.
async fn connect(client: Client, server: &ServerOptions) -> Result<Arc<Gateway>> {
    let activities = Arc::new(Activities::default());
    let catalog = Arc::new(PgCatalog::of_cluster(Cluster {
        client: client.clone(),
        activities: Arc::clone(&activities),
    }));
    let mut said = false;
    loop {
        let options = GatewayOptions {
            statement_timeout_ms: server.statement_timeout_ms,
            takeover: server.takeover,
            activities: Arc::clone(&activities),
            ..GatewayOptions::new(client.clone(), catalog.clone())
        };
        match Gateway::start(options).await {
            Ok(gateway) => return Ok(gateway),
            Err(error) if error.retryable || error.sqlstate.starts_with("57P") => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "waiting for the cluster");
                }
                tokio::time::sleep(RETRY_EVERY).await;
            }
            Err(error) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{}: {}", error.sqlstate, error.message),
                ));
            }
        }
    }
}

/// The HTTP front end on its socket.
struct HttpServer {
    state: Arc<HttpState>,
    drain: CancellationToken,
    stop: CancellationToken,
    over: CancellationToken,
}

impl HttpServer {
    /// Serves until it is drained or stopped.
    fn serve(
        self,
        listener: TcpListener,
        acceptor: Option<TlsAcceptor>,
    ) -> Result<impl Future<Output = ()>> {
        let tls = match acceptor {
            Some(acceptor) => Ok(TlsListener::new(listener, acceptor)
                .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?),
            None => Err(listener),
        };
        Ok(async move {
            match tls {
                Ok(listener) => self.run(listener).await,
                Err(listener) => {
                    let listener = listener.tap_io(|tcp| {
                        // Else a small answer may wait for the client's next packet.
                        let _ = tcp.set_nodelay(true);
                    });
                    self.run(listener).await;
                }
            }
        })
    }

    async fn run<L>(self, listener: L)
    where
        L: Listener,
        L::Addr: std::fmt::Debug,
    {
        let (drain, stop) = (self.drain, self.stop.clone());
        let serve =
            axum::serve(listener, http::router(self.state)).with_graceful_shutdown(async move {
                tokio::select! {
                    () = drain.cancelled() => {}
                    () = stop.cancelled() => {}
                }
            });
        let linger = async {
            self.stop.cancelled().await;
            tokio::time::sleep(HTTP_LINGER).await;
        };
        tokio::select! {
            served = serve => {
                if let Err(error) = served {
                    tracing::error!(%error, "the HTTP server ended");
                }
            }
            () = linger => {}
        }
        self.over.cancel();
    }
}
