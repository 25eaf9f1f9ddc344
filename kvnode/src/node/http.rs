//! HTTP of a kvnode: health, readiness, metrics, status.

use crate::consensus::{Groups, Leadership};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use lineradb_common::{NodeId, telemetry};
use lineradb_lsm::Db;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the pages show.
pub(super) struct Status {
    pub(super) node_id: NodeId,
    pub(super) address: String,
    pub(super) groups: Groups,
    pub(super) db: Db,
}

pub(super) async fn serve(status: Arc<Status>, listener: TcpListener, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(show))
        .with_state(status);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP server stopped");
    }
}

/// Ready: every replica here knows who leads. A node without replicas is ready
/// to be given some.
async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    let leaderless = status
        .groups
        .list()
        .iter()
        .any(|group| group.leadership() == Leadership::Follower { leader: None });
    if leaderless {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "a replica knows no leader\n",
        )
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, telemetry::render_metrics())
}

async fn show(State(status): State<Arc<Status>>) -> Json<serde_json::Value> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let replicas: Vec<_> = status
        .groups
        .status()
        .into_iter()
        .map(|replica| {
            let shard = replica.shard.unwrap_or_default();
            let span = shard.span.unwrap_or_default();
            serde_json::json!({
                "shard": shard.shard_id,
                "version": shard.version,
                "configuration_version": shard.configuration_version,
                "start": hex(&span.start),
                "end": hex(&span.end),
                "replica": replica.replica_id,
                "leader": replica.leader,
                "term": replica.term,
                "applied_index": replica.applied_index,
                "size_bytes": replica.size_bytes,
                "failed": replica.failed,
            })
        })
        .collect();
    Json(serde_json::json!({
        "node": status.node_id.0,
        "address": status.address,
        "replicas": replicas,
        "flushed_seqno": status.db.flushed_seqno(),
        "last_seqno": status.db.last_seqno(),
    }))
}
