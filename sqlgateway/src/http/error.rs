//! Errors as HTTP answers: a status for programs that look no further, and the
//! SQLSTATE for those that do.

use crate::error::SqlError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lineradb_client::Error as ClientError;
use serde_json::{Value, json};

/// An answer that is an error.
#[derive(Debug)]
pub struct HttpError {
    /// The status.
    pub status: StatusCode,
    /// What it says.
    pub error: SqlError,
}

impl HttpError {
    /// An error with a status of its own.
    pub fn new(status: StatusCode, sqlstate: &str, message: impl Into<String>) -> Self {
        HttpError {
            status,
            error: SqlError::new(sqlstate, message),
        }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(sqlstate: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sqlstate, message)
    }
}

impl From<SqlError> for HttpError {
    fn from(error: SqlError) -> Self {
        HttpError {
            status: status_of(&error),
            error,
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status, error_json(&self.error).to_string()).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::SERVICE_UNAVAILABLE
        {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// `{"error": {...}}`
pub fn error_json(error: &SqlError) -> Value {
    json!({"error": {
        "code": error.sqlstate,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
        "position": error.position,
        "retryable": error.retryable,
    }})
}

/// The status that goes with a SQLSTATE.
pub fn status_of(error: &SqlError) -> StatusCode {
    if matches!(
        error.cause.as_deref(),
        Some(ClientError::IdempotencyMismatch)
    ) {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    let code = error.sqlstate.as_str();
    let class = code.get(..2).unwrap_or_default();
    match code {
        // What the client sent breaks the protocol.
        "08P01" => StatusCode::BAD_REQUEST,
        "42501" => StatusCode::FORBIDDEN,
        "57014" => StatusCode::REQUEST_TIMEOUT,
        "53300" => StatusCode::TOO_MANY_REQUESTS,
        // Retry the transaction, or something else holds what it needs.
        "40001" | "40P01" | "55P03" | "55006" => StatusCode::CONFLICT,
        // What is already there.
        "23505" | "23503" | "23P01" => StatusCode::CONFLICT,
        // The outcome is unknown: ask again with the idempotency key.
        "40003" => StatusCode::SERVICE_UNAVAILABLE,
        _ => match class {
            "28" => StatusCode::UNAUTHORIZED,
            "08" | "53" | "57" => StatusCode::SERVICE_UNAVAILABLE,
            "54" => StatusCode::PAYLOAD_TOO_LARGE,
            "58" | "F0" | "XX" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        for (code, status) in [
            ("42601", 400),
            ("22P02", 400),
            ("28P01", 401),
            ("42501", 403),
            ("57014", 408),
            ("23505", 409),
            ("40001", 409),
            ("54000", 413),
            ("53300", 429),
            ("XX000", 500),
            ("57P03", 503),
        ] {
            assert_eq!(
                status_of(&SqlError::new(code, "")).as_u16(),
                status,
                "{code}"
            );
        }
        let reused = SqlError::from(ClientError::IdempotencyMismatch);
        assert_eq!(status_of(&reused).as_u16(), 422);
        assert_eq!(reused.sqlstate, "22023");
    }

    #[test]
    fn the_error_object_has_every_field() {
        let error = error_json(&SqlError::new("42601", "no").at(Some(3)));
        assert_eq!(
            error.to_string(),
            r#"{"error":{"code":"42601","message":"no","detail":null,"hint":null,"position":3,"retryable":false}}"#
        );
    }
}
