//! What the data path counts.
#![allow(clippy::expect_used)] // the names and labels are constants

use lineradb_common::telemetry::register;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};
use std::sync::LazyLock;

/// Seconds from 20 microseconds to about 20 seconds.
fn buckets() -> Vec<f64> {
    prometheus::exponential_buckets(20e-6, 2.0, 21).expect("constant")
}

/// Requests by kind and error code ("OK" for none).
pub static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new("lineradb_shard_requests_total", "Requests of the data path");
    register(IntCounterVec::new(opts, &["kind", "code"]).expect("constant"))
});

/// How long requests took.
pub static REQUEST_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "lineradb_shard_request_seconds",
        "Time to answer requests of the data path",
    );
    register(HistogramVec::new(opts.buckets(buckets()), &["kind"]).expect("constant"))
});

/// How long requests waited for memory locks, latches and intents.
pub static LOCK_WAIT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "lineradb_lock_wait_seconds",
        "Time that requests waited for other transactions",
    );
    register(Histogram::with_opts(opts.buckets(buckets())).expect("constant"))
});

/// Provisional writes of others that stood in the way.
pub static INTENTS_MET: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_intents_met_total",
            "Provisional writes of other transactions met by requests",
        )
        .expect("constant"),
    )
});

/// Commits whose timestamp moved above their read timestamp.
pub static PUSHED_COMMITS: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_commits_pushed_total",
            "One-round commits that landed above their read timestamp",
        )
        .expect("constant"),
    )
});

/// Deadlocks whose victim waited on this node.
pub static DEADLOCKS: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_deadlocks_total",
            "Waits of transactions that gave way to end a deadlock",
        )
        .expect("constant"),
    )
});

/// Verdicts on transactions that were found in state STAGING.
pub static RECOVERIES: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_transactions_recovered_total",
            "Verdicts on commits that were found staged while their coordinator was silent",
        )
        .expect("constant"),
    )
});

/// Sweeps of a shard for history that is too old to be read.
pub static SWEEPS: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_history_sweeps_total",
            "Sweeps of a shard for history that is too old to be read",
        )
        .expect("constant"),
    )
});

/// What they deleted.
pub static COLLECTED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "lineradb_history_collected_total",
        "Old versions and records deleted, by tree",
    );
    register(IntCounterVec::new(opts, &["tree"]).expect("constant"))
});

/// Declares every series, so that it is on `/metrics` before its first event.
pub fn declare() {
    REQUESTS.with_label_values(&["get", "OK"]);
    REQUEST_SECONDS.with_label_values(&["get"]);
    LazyLock::force(&LOCK_WAIT_SECONDS);
    COLLECTED.with_label_values(&["data"]);
    COLLECTED.with_label_values(&["txn"]);
    for counter in [
        &*INTENTS_MET,
        &*PUSHED_COMMITS,
        &*DEADLOCKS,
        &*RECOVERIES,
        &*SWEEPS,
    ] {
        counter.inc_by(0);
    }
}
