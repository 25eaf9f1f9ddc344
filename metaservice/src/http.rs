//! HTTP of the metaservice: health, readiness, metrics, status.

use crate::server::Member;
use crate::service::status_of;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use lineradb_common::telemetry;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) async fn serve(member: Arc<Member>, listener: TcpListener, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .with_state(member);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP server stopped");
    }
}

/// Ready: there is a leader, and the cluster has a name and a clock.
async fn ready(State(member): State<Arc<Member>>) -> (StatusCode, &'static str) {
    let state = member.shared.state();
    if member.leader().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "no leader\n")
    } else if state.header.cluster_id.is_empty() || state.header.clock.is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, telemetry::render_metrics())
}

async fn status(State(member): State<Arc<Member>>) -> Json<serde_json::Value> {
    let status = status_of(&member);
    let state = member.shared.state();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let nodes = member.with_view(|view, now| {
        let nodes = state.nodes.values().map(|n| {
            serde_json::json!({
                "id": n.node_id,
                "address": n.address,
                "http_address": n.http_address,
                "locality": n.locality,
                "incarnation": n.incarnation,
                "live": view.is_live(n.node_id, now),
            })
        });
        nodes.collect::<Vec<_>>()
    });
    Json(serde_json::json!({
        "member": status.member_id,
        "leader": status.leader_id,
        "term": status.term,
        "cluster": hex(&status.cluster_id),
        "revision": status.revision,
        "replicas": status.replication_factor,
        "shards": state.shards.len(),
        "splits_pending": state.shards.values().filter(|s| s.split.is_some()).count(),
        "replacements_pending": state.shards.values().filter(|s| s.replacement.is_some()).count(),
        "clock_epoch": state.header.clock.as_ref().map(|c| c.epoch),
        "nodes": nodes,
        "members": status.members.iter().map(|m| serde_json::json!({
            "id": m.id, "address": m.address,
        })).collect::<Vec<_>>(),
    }))
}
