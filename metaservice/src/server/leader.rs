//! What the leader does besides answering: names the cluster, and proposes what
//! the planner decides. (`time.rs` keeps the clock.)

use super::Member;
use crate::metrics::METRICS;
use crate::planner::{self, Policy};
use crate::state::command::{Body, Initialise};
use crate::state::{Reply, State};
use lineradb_common::random;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The loop runs at least this often: silence of nodes is not an event.
const TICK: Duration = Duration::from_millis(250);

pub(super) async fn run(member: Arc<Member>, stop: CancellationToken) {
    let policy = Policy {
        split_bytes: member.config.split_bytes,
    };
    let mut warned = false;
    while !stop.is_cancelled() {
        let leads = member.raft.is_leader();
        let waits = match leads {
            true => member.with_view(|view, now| view.deadlocks.waits(now)),
            false => 0,
        };
        METRICS.waits.set(waits as i64);
        if leads {
            let state = member.shared.state();
            for body in housekeeping(&member, &state, &mut warned) {
                propose(&member, body).await;
            }
            let state = member.shared.state();
            for body in member.with_view(|v, now| planner::decide(&state, v, &policy, now)) {
                propose(&member, body).await;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = member.work.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn propose(member: &Member, body: Body) {
    let routine = matches!(body, Body::ReplicasCreated(_));
    if !routine {
        tracing::info!(command = ?body, "proposing");
    }
    match member.propose(body).await {
        Ok(Reply::Refused(reason)) => tracing::warn!(reason, "refused"),
        Ok(_) => member.map_changed.notify_one(),
        // The next round looks at the state again.
        Err(error) => tracing::debug!(%error, "not applied"),
    }
}

/// The cluster's name.
fn housekeeping(member: &Member, state: &State, warned: &mut bool) -> Vec<Body> {
    let mut out = Vec::new();
    let header = &state.header;
    if header.cluster_id.is_empty() {
        out.push(Body::Initialise(Initialise {
            cluster_id: bytes::Bytes::copy_from_slice(&random::bytes::<16>()),
            replication_factor: member.config.replicas,
        }));
    } else if header.replication_factor != member.config.replicas && !*warned {
        *warned = true;
        tracing::warn!(
            cluster = header.replication_factor,
            flag = member.config.replicas,
            "--replicas differs from what the cluster was born with, which stays in force"
        );
    }
    out
}
