//! Logs and metrics, the same on every service: structured logs on standard
//! error (text or JSON), Prometheus text on `/metrics`.

use prometheus::{Encoder, Registry, TextEncoder};
use std::sync::LazyLock;
use tracing_subscriber::EnvFilter;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Where every metric of this process is registered.
pub fn registry() -> &'static Registry {
    &REGISTRY
}

/// Registers a collector that is declared once per process.
///
/// Declaring the same name twice is a bug; it panics at start, not in service.
#[allow(clippy::expect_used)]
pub fn register<C: prometheus::core::Collector + Clone + 'static>(collector: C) -> C {
    REGISTRY
        .register(Box::new(collector.clone()))
        .expect("every metric is declared once");
    collector
}

/// The metrics in Prometheus' text format.
pub fn render_metrics() -> String {
    let mut out = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&REGISTRY.gather(), &mut out) {
        tracing::warn!(%error, "metrics could not be rendered");
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Libraries that log their inner life at the levels of ours. To openraft a peer
/// that is not there yet is worth a warning at every heartbeat.
const QUIET: &str = "openraft=error,h2=warn,hyper=warn,tonic=warn,datafusion=warn";

/// How logs look.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is a level or a list of
/// `target=level`. A second call changes nothing.
pub fn init_logging(format: LogFormat, filter: &str) {
    // Libraries speak up only when something is wrong, unless asked by name.
    let quiet = format!("{QUIET},{filter}");
    let filter = EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Already started (tests, one-process mode): keep the first.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
