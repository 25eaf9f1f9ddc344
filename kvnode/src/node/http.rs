//! HTTP of a kvnode: health, readiness, metrics, status.

use crate::consensus::{Groups, Leadership};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use lineradb_client::Client;
use lineradb_common::{NodeId, telemetry};
use lineradb_lsm::Db;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the pages show.
pub(super) struct Status {
    pub(super) node_id: NodeId,
    pub(super) address: String,
    pub(super) groups: Groups,
    pub(super) db: Db,
    /// With which the KV API serves; it comes with the shard map.
    pub(super) kv: Arc<OnceLock<Client>>,
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

/// Ready: a request would be served here.
async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    let groups = status.groups.list();
    let leaderships = groups.iter().map(|group| group.leadership());
    match lacks(leaderships, status.kv.get().is_some()) {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        None => (StatusCode::OK, "ready\n"),
    }
}

/// What is missing for a request to be served: leaders of the replicas here, or the
/// shard map, by which the KV API finds the others. A node without replicas is
/// ready to be given some: the first shards wait for such nodes.
fn lacks(leaderships: impl Iterator<Item = Leadership>, has_map: bool) -> Option<&'static str> {
    let mut leaderships = leaderships.peekable();
    if !has_map && leaderships.peek().is_some() {
        return Some("the shard map has not come yet\n");
    }
    leaderships
        .any(|it| it == Leadership::Follower { leader: None })
        .then_some("a replica knows no leader\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_a_request_would_be_served() {
        let led = Leadership::Leader { term: 3 };
        let leader = Some(NodeId(2));
        let follows = Leadership::Follower { leader };
        let alone = Leadership::Follower { leader: None };
        let of = |all: &[Leadership], map| lacks(all.iter().copied(), map);
        assert_eq!(of(&[], false), None);
        assert_eq!(of(&[led, follows], true), None);
        assert!(of(&[led, follows], false).is_some());
        assert!(of(&[led, alone], true).is_some());
    }
}
