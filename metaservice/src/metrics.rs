//! The metaservice's metrics.

use lineradb_common::telemetry::register;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use std::sync::LazyLock;

pub(crate) struct Metrics {
    pub nodes_live: IntGauge,
    pub nodes: IntGauge,
    pub shards: IntGauge,
    pub revision: IntGauge,
    pub leader: IntGauge,
    pub orders_pending: IntGauge,
    pub heartbeats: IntCounter,
    pub commands: IntCounterVec,
    pub forwarded: IntCounter,
    pub watchers: IntGauge,
    pub waits: IntGauge,
    pub deadlocks: IntCounter,
}

#[allow(clippy::expect_used)] // constant names: wrong ones fail at the first start
fn gauge(name: &str, help: &str) -> IntGauge {
    register(IntGauge::new(name, help).expect("a valid metric"))
}

#[allow(clippy::expect_used)]
fn counter(name: &str, help: &str) -> IntCounter {
    register(IntCounter::new(name, help).expect("a valid metric"))
}

#[allow(clippy::expect_used)]
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    nodes_live: gauge(
        "lineradb_meta_nodes_live",
        "KV nodes that sent a heartbeat lately",
    ),
    nodes: gauge("lineradb_meta_nodes", "KV nodes ever registered"),
    shards: gauge("lineradb_meta_shards", "Shards in the map"),
    revision: gauge("lineradb_meta_map_revision", "Revision of the shard map"),
    leader: gauge(
        "lineradb_meta_leader",
        "1 if this member leads the metaservice",
    ),
    orders_pending: gauge(
        "lineradb_meta_orders_pending",
        "Orders given with the last heartbeat of each node and not done yet",
    ),
    heartbeats: counter(
        "lineradb_meta_heartbeats_total",
        "Heartbeats received by this member as leader",
    ),
    commands: register(
        IntCounterVec::new(
            Opts::new(
                "lineradb_meta_commands_total",
                "Commands proposed by this member, by result",
            ),
            &["result"],
        )
        .expect("a valid metric"),
    ),
    forwarded: counter(
        "lineradb_meta_requests_forwarded_total",
        "Requests that this member forwarded to the leader",
    ),
    watchers: gauge("lineradb_meta_watchers", "Open watches of the shard map"),
    waits: gauge(
        "lineradb_meta_waits",
        "Waits of transactions for others in the last reports of the KV nodes, on the leader",
    ),
    deadlocks: counter(
        "lineradb_meta_deadlocks_total",
        "Deadlocks of which this member, as leader, has told the victim's node",
    ),
});
