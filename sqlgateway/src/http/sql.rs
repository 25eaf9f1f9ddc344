//! `POST /v1/sql` and the transaction requests.
//!
//! A request runs in a task of its own: when the client goes away the statement
//! is cancelled and its session closed in order, instead of being dropped in
//! the middle of a commit.

use super::HttpState;
use super::error::HttpError;
use super::request::{self, Answer, BeginRequest, EndRequest, SqlRequest};
use super::run::{self, timing_json};
use super::stream::{self, json_document};
use super::transactions::Taken;
use crate::error::SqlError;
use crate::session::{CancelHandle, Session, SessionParams, TransactionStatus};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_common::spawn;
use serde_json::json;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Longest timeout that a request may ask for.
const TIMEOUT_MAX_MS: u64 = 24 * 3_600 * 1_000;
/// A request beyond its deadline is cancelled again this often: a cancel
/// between two statements hits nothing.
const CANCEL_EVERY: Duration = Duration::from_millis(20);

type Answered = Result<Response, HttpError>;

/// `POST /v1/sql`
pub async fn sql(state: Arc<HttpState>, headers: HeaderMap, body: Vec<u8>) -> Answered {
    let watch = Stopwatch::start();
    let (request, params) = SqlRequest::read(&body)?;
    let key = request::idempotency_key(&headers)?;
    let answer = request::answer(&headers);
    let timeout = timeout(&request)?;
    let (session, id) = match &request.transaction {
        Some(_) if key.is_some() => {
            return Err(HttpError::bad_request(
                "22023",
                "Idempotency-Key belongs to POST /v1/transactions when a transaction is given",
            ));
        }
        Some(id) => {
            let Taken { id, session } = state.transactions.take(id)?;
            (session, Some(id))
        }
        None => {
            let mut session = state.gateway()?.session(SessionParams {
                application_name: "http".into(),
                peer: "http".into(),
                ..SessionParams::default()
            })?;
            session.set_idempotency_key(key.clone());
            (session, None)
        }
    };
    let cancel = session.cancel_handle();
    let back = {
        let state = Arc::clone(&state);
        move |session: Session| give_back(state, id, session)
    };
    if answer != Answer::Json {
        if key.is_some() {
            back(session).await;
            return Err(HttpError::bad_request(
                "22023",
                "a streamed result cannot carry an Idempotency-Key",
            ));
        }
        let params = params.unwrap_or_default();
        let response = stream::respond(session, request.sql, params, answer, back);
        return within(timeout, cancel, response).await;
    }
    let work = spawn::task("http-sql", async move {
        let mut session = session;
        let ran = run::run(&mut session, &request.sql, params.as_deref()).await;
        let ran = match ran {
            Ok(_) if left_open(&session, request.transaction.is_some()) => Err(SqlError::new(
                "25001",
                "the transaction block was not ended within the request, and is rolled back",
            )
            .with_hint("Open transactions with POST /v1/transactions.")),
            other => other,
        };
        let timing = session.last_timing();
        back(session).await;
        ran.map(|results| (results, timing))
    });
    let (results, timing) = within(timeout, cancel, async {
        work.await.map_err(|_| lost())?.map_err(HttpError::from)
    })
    .await?;
    let elapsed = watch.elapsed().as_secs_f64() * 1e3;
    Ok(json_document(results.document(elapsed, &timing)))
}

/// `POST /v1/transactions`
pub async fn begin(state: Arc<HttpState>, headers: HeaderMap, body: Vec<u8>) -> Answered {
    let request: BeginRequest = request::body(&body)?;
    let sql = request.sql()?;
    let key = request::idempotency_key(&headers)?;
    let mut session = state.gateway()?.session(SessionParams {
        application_name: "http".into(),
        peer: "http".into(),
        ..SessionParams::default()
    })?;
    session.set_idempotency_key(key);
    if let Err(error) = run::run(&mut session, &sql, None).await {
        session.close().await;
        return Err(error.into());
    }
    match state.transactions.open(session) {
        Ok(id) => Ok(json_document(
            json!({ "transaction": id }).to_string().into_bytes(),
        )),
        Err((error, session)) => {
            session.close().await;
            Err(error)
        }
    }
}

/// `POST /v1/transactions/{id}/commit` and `/rollback`
pub async fn end(state: Arc<HttpState>, id: String, body: Vec<u8>, commit: bool) -> Answered {
    let _: EndRequest = request::body(&body)?;
    let Taken { id, mut session } = state.transactions.take(&id)?;
    let cancel = session.cancel_handle();
    let work = spawn::task("http-transaction-end", async move {
        let failed = session.transaction_status() == TransactionStatus::Failed;
        let sql = if commit { "COMMIT" } else { "ROLLBACK" };
        let ran = run::run(&mut session, sql, None).await;
        let timing = session.last_timing();
        state.transactions.end(&id);
        session.close().await;
        let replayed = ran?.is_replayed();
        if commit && failed {
            return Err(HttpError::new(
                StatusCode::CONFLICT,
                "25P02",
                "the transaction had failed and is rolled back",
            ));
        }
        Ok(json!({
            "transaction": id,
            "state": if commit { "committed" } else { "rolled back" },
            "timing": timing_json(&timing),
            "replayed": replayed,
        }))
    });
    let document = within(None, cancel, async { work.await.map_err(|_| lost())? }).await?;
    Ok(json_document(document.to_string().into_bytes()))
}

fn lost() -> HttpError {
    SqlError::internal("the request's task ended early").into()
}

fn timeout(request: &SqlRequest) -> Result<Option<Duration>, HttpError> {
    match request.timeout_ms {
        None => Ok(None),
        Some(ms @ 1..=TIMEOUT_MAX_MS) => Ok(Some(Duration::from_millis(ms))),
        Some(ms) => Err(HttpError::bad_request(
            "22023",
            format!("timeout_ms must be between 1 and {TIMEOUT_MAX_MS}, not {ms}"),
        )),
    }
}

fn left_open(session: &Session, in_transaction: bool) -> bool {
    !in_transaction && session.transaction_status() != TransactionStatus::Idle
}

/// Back to the waiting transactions while it is one, else closed.
async fn give_back(state: Arc<HttpState>, id: Option<String>, session: Session) {
    match id {
        Some(id) if session.transaction_status() != TransactionStatus::Idle => {
            state.transactions.put(&id, session);
        }
        Some(id) => {
            state.transactions.end(&id);
            session.close().await;
        }
        None => session.close().await,
    }
}

/// Awaits `work`; cancels its statement at the deadline, or when the request
/// itself is dropped because the client went away.
async fn within<T>(
    timeout: Option<Duration>,
    cancel: CancelHandle,
    work: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    let mut guard = CancelOnDrop(Some(cancel.clone()));
    let mut work = std::pin::pin!(work);
    let mut late = false;
    let mut deadline = timeout.map(deadline_after);
    let result = loop {
        let Some(at) = deadline else {
            break work.as_mut().await;
        };
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep_until(at) => {
                late = true;
                cancel.cancel();
                deadline = Some(deadline_after(CANCEL_EVERY));
            }
        }
    };
    guard.0 = None;
    result.map_err(|mut error| {
        if late && error.error.sqlstate == "57014" {
            error.error.message = "canceling statement due to statement timeout".to_owned();
        }
        error
    })
}

struct CancelOnDrop(Option<CancelHandle>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.cancel();
        }
    }
}
