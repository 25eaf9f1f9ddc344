//! What the leader does besides answering: names the cluster, keeps the clock's
//! ceiling ahead, and proposes what the planner decides.

use super::Member;
use crate::planner::{self, Policy};
use crate::state::command::{Body, ClockTick, Initialise};
use crate::state::{Reply, State};
use lineradb_common::{clock, random};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The loop runs at least this often: silence of nodes is not an event.
const TICK: Duration = Duration::from_millis(250);
/// The ceiling stands this far ahead of the present when it is renewed (T3),
pub(crate) const CEILING_AHEAD: Duration = Duration::from_secs(10);
/// and is renewed when less than this is left.
const CEILING_LEFT: Duration = Duration::from_secs(5);

pub(super) async fn run(member: Arc<Member>, stop: CancellationToken) {
    let policy = Policy {
        split_bytes: member.config.split_bytes,
    };
    let mut warned = false;
    while !stop.is_cancelled() {
        if member.raft.is_leader() {
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
    let routine = matches!(body, Body::ClockTick(_) | Body::ReplicasCreated(_));
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

/// The cluster's name and its clock.
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
    out.extend(clock_tick(state));
    out
}

/// A new base after a reboot of the machine, or a higher ceiling; nothing when
/// the ceiling is far enough ahead.
fn clock_tick(state: &State) -> Option<Body> {
    let tick = ClockTick {
        boot_id: clock::boot_id(),
        raw_us: clock::monotonic_raw_us(),
        wall_us: clock::wall_clock_us(),
        ahead_us: CEILING_AHEAD.as_micros() as u64,
    };
    let due = match &state.header.clock {
        Some(clock) if clock.boot_id == tick.boot_id => {
            let now = (tick.raw_us as i64 + clock.offset_us).max(0) as u64;
            clock.ceiling_us < now + CEILING_LEFT.as_micros() as u64
        }
        _ => true,
    };
    due.then_some(Body::ClockTick(tick))
}
