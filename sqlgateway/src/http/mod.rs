//! HTTP/JSON: `/v1/sql`, `/v1/transactions`, the console, the OpenAPI document,
//! health and metrics.
//!
//! Every answer but the console and `/metrics` is JSON, errors too. Bodies are
//! bounded, unknown fields are refused, requests of foreign web pages as well.

mod error;
mod params;
mod request;
mod run;
mod sql;
mod stream;
mod transactions;

use crate::Gateway;
use crate::metrics;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use error::HttpError;
use lineradb_common::telemetry;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use transactions::Transactions;

/// How often idle transactions are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// `/readyz` answers within this time.
const READY_WITHIN: Duration = Duration::from_secs(3);

const CONSOLE: &str = include_str!("console.html");
const OPENAPI: &str = include_str!("openapi.json");
const CONSOLE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; \
     form-action 'none'";

/// What the handlers share.
pub struct HttpState {
    gateway: OnceLock<Arc<Gateway>>,
    /// Longest request body.
    pub body_limit: usize,
    /// Only this machine can connect.
    pub loopback: bool,
    transactions: Transactions,
}

impl HttpState {
    /// The state of a server.
    pub fn new(body_limit: usize, loopback: bool) -> Arc<Self> {
        Arc::new(HttpState {
            gateway: OnceLock::new(),
            body_limit,
            loopback,
            transactions: Transactions::default(),
        })
    }

    /// The cluster is reached: statements run from now on.
    pub fn ready(&self, gateway: Arc<Gateway>) {
        // Set once, by the start.
        let _ = self.gateway.set(gateway);
    }

    /// What runs the statements.
    ///
    /// # Errors
    /// 503 before the cluster is reached.
    fn gateway(&self) -> Result<&Arc<Gateway>, HttpError> {
        self.gateway.get().ok_or_else(|| {
            let message = "the database system is starting up: the cluster is not reached yet";
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "57P03", message)
        })
    }

    /// Rolls idle transactions back, until `stop` is cancelled; then all.
    pub async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(SWEEP_EVERY) => false,
            };
            let max = if stopped {
                Duration::ZERO
            } else {
                transactions::IDLE_MAX
            };
            for session in self.transactions.expire(max) {
                session.close().await;
            }
            if stopped {
                return;
            }
        }
    }
}

/// The routes.
pub fn router(state: Arc<HttpState>) -> Router {
    Router::new()
        .route("/v1/sql", post(sql_route))
        .route("/v1/transactions", post(begin_route))
        .route("/v1/transactions/{id}/commit", post(commit_route))
        .route("/v1/transactions/{id}/rollback", post(rollback_route))
        .route("/", get(console))
        .route("/openapi.json", get(openapi))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(state)
}

async fn sql_route(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    posted("/v1/sql", state, request, sql::sql).await
}

async fn begin_route(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    posted("/v1/transactions", state, request, sql::begin).await
}

async fn commit_route(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let handler = |state, _, body| sql::end(state, id, body, true);
    posted("/v1/transactions/{id}/commit", state, request, handler).await
}

async fn rollback_route(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let handler = |state, _, body| sql::end(state, id, body, false);
    posted("/v1/transactions/{id}/rollback", state, request, handler).await
}

/// What every POST goes through: origin, body limit, metrics.
async fn posted<F, Fut>(
    route: &'static str,
    state: Arc<HttpState>,
    request: Request,
    handler: F,
) -> Response
where
    F: FnOnce(Arc<HttpState>, HeaderMap, Vec<u8>) -> Fut,
    Fut: Future<Output = Result<Response, HttpError>>,
{
    let answered = async {
        let (parts, body) = request.into_parts();
        request::check_origin(&parts.headers, state.loopback)?;
        let body = read(body, state.body_limit).await?;
        handler(state, parts.headers, body).await
    };
    let response = answered.await.unwrap_or_else(IntoResponse::into_response);
    metrics::http_request(route, response.status().as_u16());
    response
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, HttpError> {
    to_bytes(body, limit).await.map(Vec::from).map_err(|error| {
        let text = error.to_string();
        if std::error::Error::source(&error).is_some_and(|e| e.to_string().contains("limit")) {
            HttpError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "54000",
                format!("the request body is larger than {limit} bytes"),
            )
        } else {
            HttpError::bad_request("08P01", format!("request body: {text}"))
        }
    })
}

async fn console() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, CONSOLE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, CONSOLE).into_response()
}

async fn openapi() -> Response {
    let document = OPENAPI.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(state): State<Arc<HttpState>>) -> Response {
    let ready = async {
        match state.gateway() {
            Ok(gateway) => gateway.ready().await,
            Err(_) => false,
        }
    };
    match tokio::time::timeout(READY_WITHIN, ready).await {
        Ok(true) => "ready\n".into_response(),
        _ => HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "57P03",
            "the cluster does not answer: a statement would fail now",
        )
        .into_response(),
    }
}

async fn metrics_text() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, telemetry::render_metrics()).into_response()
}

async fn not_found(uri: Uri) -> HttpError {
    let message = format!("there is nothing at {}", uri.path());
    HttpError::new(StatusCode::NOT_FOUND, "42704", message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> HttpError {
    let message = format!("{} does not answer {method}", uri.path());
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "0A000", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn document() -> Value {
        serde_json::from_str(&OPENAPI.replace("@VERSION@", "0.0.0")).unwrap()
    }

    #[test]
    fn the_openapi_document_names_every_route() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, method) in [
            ("/v1/sql", "post"),
            ("/v1/transactions", "post"),
            ("/v1/transactions/{id}/commit", "post"),
            ("/v1/transactions/{id}/rollback", "post"),
            ("/", "get"),
            ("/openapi.json", "get"),
            ("/healthz", "get"),
            ("/readyz", "get"),
            ("/metrics", "get"),
        ] {
            let operation = &document["paths"][path][method];
            assert!(operation["operationId"].is_string(), "{method} {path}");
            assert!(operation["responses"].is_object(), "{method} {path}");
        }
        assert_eq!(document["paths"].as_object().unwrap().len(), 9);
    }

    #[test]
    fn every_reference_of_the_openapi_document_resolves() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| walk(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut references = Vec::new();
        walk(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn the_console_loads_nothing_from_elsewhere() {
        for foreign in ["http://", "https://", "//cdn", "@import"] {
            assert!(!CONSOLE.contains(foreign), "{foreign}");
        }
        assert!(CONSOLE.contains("/v1/sql"));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_413() {
        let error = read(Body::from(vec![b' '; 11]), 10).await.unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(read(Body::from(vec![b' '; 10]), 10).await.is_ok());
    }
}
