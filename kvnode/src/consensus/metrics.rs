//! What consensus counts.

use lineradb_common::telemetry::register;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, exponential_buckets};
use std::sync::LazyLock;

/// All series of this module, for the whole process.
pub(crate) struct Metrics {
    pub log_fsync_seconds: Histogram,
    pub log_bytes_total: IntCounter,
    pub proposals_total: IntCounter,
    pub rejections_total: IntCounter,
    pub apply_batch_entries: Histogram,
    pub groups: IntGauge,
    pub leaders: IntGauge,
    pub snapshots_sent_total: IntCounter,
    pub snapshots_installed_total: IntCounter,
    pub splits_total: IntCounter,
    pub births_asked_total: IntCounter,
    pub messages_sent_total: IntCounter,
    pub silences_total: IntCounter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    log_fsync_seconds: histogram(
        "lineradb_raft_log_fsync_seconds",
        "Time of one sync of the raft log.",
        0.000_05,
        18,
    ),
    log_bytes_total: counter(
        "lineradb_raft_log_bytes_total",
        "Bytes written to the raft log.",
    ),
    proposals_total: counter(
        "lineradb_raft_proposals_total",
        "Commands proposed on this node.",
    ),
    rejections_total: counter(
        "lineradb_raft_rejections_total",
        "Commands that apply rejected on this node's replicas.",
    ),
    apply_batch_entries: histogram(
        "lineradb_raft_apply_batch_entries",
        "Log entries applied in one storage batch.",
        1.0,
        12,
    ),
    groups: gauge("lineradb_raft_groups", "Replicas on this node."),
    leaders: gauge("lineradb_raft_leaders", "Groups that this node leads."),
    snapshots_sent_total: counter(
        "lineradb_raft_snapshots_sent_total",
        "Snapshots of shards sent to other nodes.",
    ),
    snapshots_installed_total: counter(
        "lineradb_raft_snapshots_installed_total",
        "Snapshots of shards installed here.",
    ),
    splits_total: counter(
        "lineradb_raft_splits_total",
        "Splits applied on this node's replicas.",
    ),
    births_asked_total: counter(
        "lineradb_raft_births_asked_total",
        "Replicas that were born by asking after a snapshot of their parent.",
    ),
    messages_sent_total: counter(
        "lineradb_raft_messages_sent_total",
        "Consensus requests sent to other nodes.",
    ),
    silences_total: counter(
        "lineradb_raft_silences_total",
        "Times that a leader on this node fell silent, since no quorum answered it.",
    ),
});

pub(crate) fn get() -> &'static Metrics {
    &METRICS
}

#[allow(clippy::expect_used)] // constant names and buckets: wrong ones fail the first test
fn histogram(name: &str, help: &str, start: f64, count: usize) -> Histogram {
    let buckets = exponential_buckets(start, 2.0, count).expect("constant buckets");
    register(
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
            .expect("constant options"),
    )
}

#[allow(clippy::expect_used)] // see above
fn counter(name: &str, help: &str) -> IntCounter {
    register(IntCounter::new(name, help).expect("constant options"))
}

#[allow(clippy::expect_used)] // see above
fn gauge(name: &str, help: &str) -> IntGauge {
    register(IntGauge::new(name, help).expect("constant options"))
}
