//! What watches count: see `docs/METRICS.md`.
#![allow(clippy::expect_used)] // the names are constants

use lineradb_common::telemetry::register;
use prometheus::{IntCounter, IntGauge};
use std::sync::LazyLock;
use tokio::sync::OwnedSemaphorePermit;

static OPEN: LazyLock<IntGauge> = LazyLock::new(|| {
    register(IntGauge::new("lineradb_watches", "Open watches of the KV API").expect("constant"))
});

/// Changes told.
pub static CHANGES: LazyLock<IntCounter> = LazyLock::new(|| {
    register(
        IntCounter::new(
            "lineradb_watch_changes_total",
            "Changes told to watches of the KV API",
        )
        .expect("constant"),
    )
});

/// A watch that is counted, and has its place, as long as it lives.
pub struct OpenWatch {
    _place: OwnedSemaphorePermit,
}

impl OpenWatch {
    /// It begins.
    pub fn new(place: OwnedSemaphorePermit) -> Self {
        OPEN.inc();
        OpenWatch { _place: place }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        OPEN.dec();
    }
}

/// Declares every series, so that it is on `/metrics` before its first event.
pub fn declare() {
    LazyLock::force(&OPEN);
    LazyLock::force(&CHANGES);
}
