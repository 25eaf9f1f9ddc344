//! What clients may send: bodies and headers, checked before anything runs.

use super::error::HttpError;
use super::params::{self, Param};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::net::IpAddr;

/// Longest idempotency key.
const KEY_MAX: usize = 255;

/// Body of `POST /v1/sql`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlRequest {
    /// One statement or several.
    pub sql: String,
    /// Values of `$1`, `$2`, ...; see [`SqlRequest::read`].
    #[serde(default)]
    params: Option<Vec<IgnoredAny>>,
    /// Id of an open transaction.
    #[serde(default)]
    pub transaction: Option<String>,
    /// Milliseconds until the request is cancelled (57014).
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

impl SqlRequest {
    /// Reads a body: the request, and its parameters as they were written.
    ///
    /// # Errors
    /// 400, as [`body`].
    pub fn read(bytes: &[u8]) -> Result<(Self, Option<Vec<Param>>), HttpError> {
        let request: SqlRequest = body(bytes)?;
        let params = match (&request.params, std::str::from_utf8(bytes)) {
            (Some(_), Ok(text)) => params::of_body(text),
            _ => None,
        };
        Ok((request, params))
    }
}

/// Body of `POST /v1/transactions`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginRequest {
    /// `serializable` (the default), `repeatable read` or `read committed`.
    #[serde(default)]
    pub isolation: Option<String>,
    /// No writes.
    #[serde(default)]
    pub read_only: Option<bool>,
}

/// Body of commit and rollback: nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndRequest {}

impl BeginRequest {
    /// The BEGIN statement.
    ///
    /// # Errors
    /// 400 for an unknown isolation level.
    pub fn sql(&self) -> Result<String, HttpError> {
        let level = match &self.isolation {
            None => "SERIALIZABLE",
            Some(text) => match text.to_ascii_lowercase().replace(['_', '-'], " ").as_str() {
                "serializable" => "SERIALIZABLE",
                "repeatable read" => "REPEATABLE READ",
                "read committed" => "READ COMMITTED",
                _ => {
                    return Err(HttpError::bad_request(
                        "22023",
                        format!("unknown isolation level {text:?}"),
                    ));
                }
            },
        };
        let access = if self.read_only == Some(true) {
            "READ ONLY"
        } else {
            "READ WRITE"
        };
        Ok(format!("BEGIN ISOLATION LEVEL {level} {access}"))
    }
}

/// Decodes a JSON body; an empty one is `{}`.
///
/// # Errors
/// 400 with code 22P02 for what is not JSON, 08P01 for another shape.
pub fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HttpError> {
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) {
        b"{}"
    } else {
        bytes
    };
    serde_json::from_slice(bytes).map_err(|error| {
        let code = if error.is_data() { "08P01" } else { "22P02" };
        HttpError::bad_request(code, format!("request body: {error}"))
    })
}

/// The `Idempotency-Key` header.
///
/// # Errors
/// 400 for an empty or overlong key.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, HttpError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_MAX => Ok(Some(key.to_owned())),
        _ => Err(HttpError::bad_request(
            "22023",
            format!("Idempotency-Key must have 1 to {KEY_MAX} visible ASCII characters"),
        )),
    }
}

/// What the client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One JSON document.
    Json,
    /// A JSON object per row.
    NdJson,
    /// An Arrow IPC stream.
    Arrow,
}

/// Reads `Accept`.
pub fn answer(headers: &HeaderMap) -> Answer {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    accept
        .split(',')
        .find_map(|part| match part.split(';').next()?.trim() {
            "application/x-ndjson" => Some(Answer::NdJson),
            "application/vnd.apache.arrow.stream" => Some(Answer::Arrow),
            "application/json" => Some(Answer::Json),
            _ => None,
        })
        .unwrap_or(Answer::Json)
}

/// Refuses requests that a web page of another origin sends through a user's
/// browser: on loopback everybody is trusted, but not every page the user looks
/// at. Programs send no `Origin` and pass.
///
/// # Errors
/// 403 for a foreign origin.
pub fn check_origin(headers: &HeaderMap, loopback: bool) -> Result<(), HttpError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else {
        return Ok(());
    };
    let host = text(header::HOST).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, o)| o == host);
    // A name that an attacker's DNS points at 127.0.0.1 is still not ours.
    if same && (!loopback || is_local_name(host)) {
        return Ok(());
    }
    Err(HttpError::new(
        StatusCode::FORBIDDEN,
        "42501",
        format!("requests from the origin {origin} are refused"),
    ))
}

fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn unknown_fields_and_wrong_shapes_are_400() {
        for (text, code) in [
            ("{\"sql\": \"select 1\", \"parms\": []}", "08P01"),
            ("{\"sql\": 1}", "08P01"),
            ("{}", "08P01"),
            ("[]", "08P01"),
            ("{\"sql\": ", "22P02"),
            ("select 1", "22P02"),
        ] {
            let error = body::<SqlRequest>(text.as_bytes()).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert_eq!(error.error.sqlstate, code, "{text}");
        }
        assert!(body::<BeginRequest>(b"").is_ok());
    }

    #[test]
    fn begin_statements() {
        let request = BeginRequest {
            isolation: Some("Repeatable_Read".into()),
            read_only: Some(true),
        };
        assert_eq!(
            request.sql().unwrap(),
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        );
        let request = BeginRequest {
            isolation: Some("chaos".into()),
            read_only: None,
        };
        assert!(request.sql().is_err());
    }

    #[test]
    fn accept_chooses_the_answer() {
        assert_eq!(answer(&headers(&[])), Answer::Json);
        assert_eq!(
            answer(&headers(&[(
                "accept",
                "text/html, application/x-ndjson;q=0.9"
            )])),
            Answer::NdJson
        );
        assert_eq!(
            answer(&headers(&[(
                "accept",
                "application/vnd.apache.arrow.stream"
            )])),
            Answer::Arrow
        );
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let check = |list: &[(&'static str, &str)]| check_origin(&headers(list), true).is_ok();
        assert!(check(&[("host", "127.0.0.1:8080")]));
        assert!(check(&[
            ("host", "localhost:8080"),
            ("origin", "http://localhost:8080")
        ]));
        assert!(!check(&[
            ("host", "127.0.0.1:8080"),
            ("origin", "https://evil.example")
        ]));
        assert!(!check(&[
            ("host", "evil.example:8080"),
            ("origin", "http://evil.example:8080")
        ]));
        assert!(!check(&[("host", "127.0.0.1:8080"), ("origin", "null")]));
    }
}
