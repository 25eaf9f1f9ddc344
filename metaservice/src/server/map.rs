//! Publishes the shard map: the agreed state, with leaders and liveness added
//! as hints, whenever either changes.
//!
//! Revisions grow across leaders: the upper bits are the index of the last
//! applied entry, and a new leader has applied one of its own term before it
//! publishes.

use super::Member;
use super::member::Role;
use crate::metrics::METRICS;
use crate::state::State;
use crate::view::View;
use lineradb_proto::meta::v1::ClusterMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Changes that come together are published together.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Liveness changes by silence, and a leader may have lost its quorum.
const TICK: Duration = Duration::from_secs(1);

pub(super) async fn run(member: Arc<Member>, stop: CancellationToken) {
    let mut applied = member.shared.applied();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = member.map_changed.notified() => {}
            changed = applied.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(TICK) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
        // A leader that a quorum does not confirm publishes nothing: its
        // watchers go to another member.
        match member.role().await {
            Ok(Role::Leader(state)) => {
                publish(&member, &state);
            }
            _ => withdraw(&member),
        }
    }
    withdraw(&member);
}

fn withdraw(member: &Member) {
    METRICS.leader.set(0);
    member.map.send_if_modified(|map| map.take().is_some());
}

/// The map as it is now, published if it is news.
pub(crate) fn publish(member: &Member, state: &State) -> Arc<ClusterMap> {
    let mut map = member.with_view(|view, now| build(state, view, now));
    // Zero until the first entry is applied; then it only grows.
    let floor = (*member.shared.applied().borrow()) << 20;
    let mut current = None;
    member.map.send_if_modified(|held| {
        if let Some(held) = held
            && same(held, &map)
        {
            current = Some(held.clone());
            return false;
        }
        let last = held.as_ref().map_or(0, |m| m.revision);
        map.revision = floor.max(last + 1);
        let published = Arc::new(std::mem::take(&mut map));
        current = Some(published.clone());
        *held = Some(published);
        true
    });
    let current = current.unwrap_or_default();
    METRICS.leader.set(1);
    METRICS.shards.set(current.shards.len() as i64);
    METRICS.nodes.set(current.nodes.len() as i64);
    METRICS.revision.set(current.revision as i64);
    let live = current.nodes.iter().filter(|n| n.live).count();
    METRICS.nodes_live.set(live as i64);
    current
}

fn build(state: &State, view: &View, now: Duration) -> ClusterMap {
    let shards = state.shards.iter().map(|(id, shard)| {
        let mut descriptor = shard.descriptor.clone();
        descriptor.leader_node_id = view.leader(*id, now);
        descriptor
    });
    let nodes = state.nodes.values().map(|record| {
        let mut node = record.to_proto();
        node.live = view.is_live(record.node_id, now);
        let last = view.nodes.get(&record.node_id).map(|n| n.last);
        node.last_heartbeat_ms_ago =
            last.map_or(u64::MAX, |at| now.saturating_sub(at).as_millis() as u64);
        node
    });
    ClusterMap {
        revision: 0,
        shards: shards.collect(),
        nodes: nodes.collect(),
        cluster_id: state.header.cluster_id.clone(),
    }
}

/// Equal but for what changes all the time.
fn same(a: &ClusterMap, b: &ClusterMap) -> bool {
    let quiet = |map: &ClusterMap| {
        let mut nodes = map.nodes.clone();
        nodes.iter_mut().for_each(|n| n.last_heartbeat_ms_ago = 0);
        nodes
    };
    a.shards == b.shards && a.cluster_id == b.cluster_id && quiet(a) == quiet(b)
}
