//! What coordinators count: see `docs/METRICS.md`.
#![allow(clippy::expect_used)] // the names and labels are constants

use lineradb_common::telemetry::register;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts};
use std::sync::LazyLock;

/// Commits with writes, by the way they took.
pub static COMMITS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "lineradb_commits_total",
        "Commits with writes, by the way they took",
    );
    register(IntCounterVec::new(opts, &["way"]).expect("constant"))
});

/// How long answers waited for the clock (T5).
pub static COMMIT_WAIT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "lineradb_commit_wait_seconds",
        "Time that the ends of transactions waited for the clock to pass what they wrote and saw",
    );
    // From 20 microseconds to about half a second.
    let buckets = prometheus::exponential_buckets(20e-6, 2.0, 15).expect("constant");
    register(Histogram::with_opts(opts.buckets(buckets)).expect("constant"))
});

/// Age of the oldest timestamp that this process has protected (X5).
pub static PROTECTED_SECONDS: LazyLock<IntGauge> = LazyLock::new(|| {
    let opts = Opts::new(
        "lineradb_history_protected_seconds",
        "Age of the oldest timestamp that this process keeps from collection, for a long read; 0: none",
    );
    register(IntGauge::with_opts(opts).expect("constant"))
});

/// Reads of the past, by who answered: any replica, or the leader (L4).
pub static PAST_READS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "lineradb_past_reads_total",
        "Requests that read the past, by who answered",
    );
    register(IntCounterVec::new(opts, &["by"]).expect("constant"))
});

/// The way of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All writes in one shard, by one round of consensus.
    OneShard,
    /// Over several shards by one round: parallel commit.
    Parallel,
    /// Over several shards, with a second round for the record.
    TwoRounds,
}

impl Way {
    /// Its label.
    fn label(self) -> &'static str {
        match self {
            Way::OneShard => "one_shard",
            Way::Parallel => "parallel",
            Way::TwoRounds => "two_rounds",
        }
    }

    /// Counts a commit that took it.
    pub fn count(self) {
        COMMITS.with_label_values(&[self.label()]).inc();
    }
}

/// Declares every series, so that it is on `/metrics` before its first event.
pub fn declare() {
    for way in [Way::OneShard, Way::Parallel, Way::TwoRounds] {
        COMMITS.with_label_values(&[way.label()]);
    }
    for by in ["any_replica", "leader"] {
        PAST_READS.with_label_values(&[by]);
    }
    LazyLock::force(&COMMIT_WAIT_SECONDS);
    LazyLock::force(&PROTECTED_SECONDS);
}
