//! The gateway's metrics, named by the Prometheus conventions; what each means
//! is in `docs/METRICS.md`.

use lineradb_common::telemetry::register;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, exponential_buckets};
use std::sync::LazyLock;
use std::time::Duration;

static STATEMENTS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let options = Opts::new(
        "lineradb_sql_statements_total",
        "SQL statements by kind and SQLSTATE (00000: success)",
    );
    Some(register(
        IntCounterVec::new(options, &["kind", "code"]).ok()?,
    ))
});

static SECONDS: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
    let options = HistogramOpts::new(
        "lineradb_sql_statement_seconds",
        "Time of a SQL statement, rows sent included",
    )
    .buckets(exponential_buckets(0.000_1, 2.0, 20).ok()?);
    Some(register(HistogramVec::new(options, &["kind"]).ok()?))
});

static CONNECTIONS: LazyLock<Option<IntGauge>> = LazyLock::new(|| {
    let gauge = IntGauge::new(
        "lineradb_pg_connections",
        "Open connections of the PostgreSQL protocol",
    );
    Some(register(gauge.ok()?))
});

static REQUESTS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let options = Opts::new(
        "lineradb_http_requests_total",
        "HTTP requests by route and status",
    );
    Some(register(
        IntCounterVec::new(options, &["route", "status"]).ok()?,
    ))
});

/// Declares every metric, so that they are on `/metrics` before their first
/// event.
pub fn declare() {
    statement_series("select");
    if let Some(gauge) = &*CONNECTIONS {
        gauge.add(0);
    }
    http_series();
}

fn http_series() {
    if let Some(counter) = &*REQUESTS {
        counter.with_label_values(&["/v1/sql", "200"]).inc_by(0);
    }
}

fn statement_series(kind: &'static str) {
    if let Some(counter) = &*STATEMENTS {
        counter.with_label_values(&[kind, "00000"]).inc_by(0);
    }
    if let Some(histogram) = &*SECONDS {
        histogram.with_label_values(&[kind]);
    }
}

/// A statement ended.
pub fn statement(kind: &'static str, code: &str, elapsed: Duration) {
    if let Some(counter) = &*STATEMENTS {
        counter.with_label_values(&[kind, code]).inc();
    }
    if let Some(histogram) = &*SECONDS {
        histogram
            .with_label_values(&[kind])
            .observe(elapsed.as_secs_f64());
    }
}

/// The number of open PostgreSQL connections changed.
pub fn pg_connections(now: usize) {
    if let Some(gauge) = &*CONNECTIONS {
        gauge.set(now as i64);
    }
}

/// An HTTP request ended. `route` is one of a fixed set.
pub fn http_request(route: &'static str, status: u16) {
    if let Some(counter) = &*REQUESTS {
        counter
            .with_label_values(&[route, &status.to_string()])
            .inc();
    }
}

/// The kind of a statement, from the first word of its text or command tag: one
/// of a fixed set, so that clients cannot make series.
pub fn kind_of(text: &str) -> &'static str {
    const KINDS: [&str; 19] = [
        "select",
        "insert",
        "update",
        "delete",
        "copy",
        "begin",
        "commit",
        "rollback",
        "savepoint",
        "set",
        "show",
        "explain",
        "create",
        "drop",
        "alter",
        "truncate",
        "values",
        "with",
        "prepare",
    ];
    let word = text
        .trim_start_matches(|c: char| c.is_whitespace() || c == '(')
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    KINDS
        .into_iter()
        .find(|kind| kind.eq_ignore_ascii_case(word))
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_a_fixed_set() {
        assert_eq!(kind_of(" (SELECT 1)"), "select");
        assert_eq!(kind_of("INSERT 0 1"), "insert");
        assert_eq!(kind_of("frobnicate"), "other");
        assert_eq!(kind_of(""), "other");
    }
}
