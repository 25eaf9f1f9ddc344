//! Does to a cluster what a plan says, one fault after the other, and undoes it.

use crate::faults::{Fault, Plan};
use crate::harness::{Cluster, Service};
use crate::history::History;
use crate::proxy::Peer;
use anyhow::{Context, Result};
use lineradb_common::clock::deadline_after;
use lineradb_common::faults::Fault as Broken;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Strikes until the time is over, then heals everything. Answers which
/// processes ended by themselves: none may, and the first one ends the torment.
///
/// # Errors
/// When a process cannot be started again, or is not ready a minute after
/// everything was healed.
pub async fn torment(
    cluster: &mut Cluster,
    plan: Plan,
    length: Duration,
    history: &History,
) -> Result<Vec<String>> {
    let end = deadline_after(length);
    let (mut died, mut filled) = (Vec::new(), BTreeSet::new());
    for strike in plan {
        wait(strike.quiet, end).await;
        if end.elapsed() > Duration::ZERO {
            break;
        }
        let what = json!(strike.fault.to_string());
        history.fault("strike", what.clone());
        inflict(cluster, &strike.fault)?;
        if let Fault::Inside(peer, Broken::DiskFull(true)) = strike.fault {
            filled.insert(peer);
        }
        wait(strike.lasts, end).await;
        died = dead(cluster, &filled);
        undo(cluster, &strike.fault)?;
        revive(cluster, &filled)?;
        history.fault("heal", what);
        if !died.is_empty() {
            break;
        }
    }
    if died.is_empty() {
        // A plan without faults lets the clients work undisturbed.
        tokio::time::sleep_until(end).await;
        died = dead(cluster, &filled);
    }
    cluster.network.heal();
    cluster.start_all()?;
    let ready = cluster.ready().await;
    ready.context("everything was healed")?;
    Ok(died)
}

/// Waits for so long, but not beyond the end.
async fn wait(length: Duration, end: Instant) {
    tokio::time::sleep_until(end.min(deadline_after(length))).await;
}

fn inflict(cluster: &mut Cluster, fault: &Fault) -> Result<()> {
    match fault {
        Fault::Kill(peer) => alive(cluster, *peer).map_or(Ok(()), Service::kill),
        Fault::Pause(peer) => alive(cluster, *peer).map_or(Ok(()), Service::pause),
        Fault::KillAll(peers) => {
            // None sees another one die.
            for action in [Service::pause, Service::kill] {
                for peer in peers {
                    alive(cluster, *peer).map_or(Ok(()), action)?;
                }
            }
            Ok(())
        }
        Fault::Inside(peer, broken) => match alive(cluster, *peer) {
            Some(service) => service.tell(*broken),
            None => Ok(()),
        },
        Fault::Network { rules, .. } => {
            cluster.network.apply(rules.clone());
            Ok(())
        }
    }
}

fn undo(cluster: &mut Cluster, fault: &Fault) -> Result<()> {
    match fault {
        Fault::Kill(peer) => match cluster.service(*peer) {
            Some(service) if service.pid().is_none() => service.start(),
            _ => Ok(()),
        },
        Fault::Inside(peer, broken) => match (alive(cluster, *peer), broken.end()) {
            (Some(service), Some(end)) => service.tell(end),
            (Some(_), None) | (None, _) => Ok(()),
        },
        Fault::Pause(peer) => alive(cluster, *peer).map_or(Ok(()), Service::resume),
        Fault::KillAll(_) => cluster.start_all(),
        Fault::Network { .. } => {
            cluster.network.heal();
            Ok(())
        }
    }
}

/// A service, unless it has ended by itself.
fn alive(cluster: &mut Cluster, peer: Peer) -> Option<&mut Service> {
    let service = cluster.service(peer)?;
    service.is_running().then_some(service)
}

/// Those that have ended by themselves, with the ends of their logs; but not who was filled and
/// has ended of that (D3).
fn dead(cluster: &mut Cluster, filled: &BTreeSet<Peer>) -> Vec<String> {
    let dead = cluster.services().filter_map(|service| {
        let status = service.ended()?;
        if filled.contains(&service.peer) && said_full(service) {
            return None;
        }
        let (name, log) = (&service.name, service.log_tail());
        Some(format!("{name} ended by itself, {status}:\n{log}"))
    });
    dead.collect()
}

/// Starts those again that have ended as their disk was full.
fn revive(cluster: &mut Cluster, filled: &BTreeSet<Peer>) -> Result<()> {
    for service in cluster.services() {
        if filled.contains(&service.peer) && service.ended().is_some() && said_full(service) {
            service.start()?;
        }
    }
    Ok(())
}

fn said_full(service: &Service) -> bool {
    service.log_since_start().contains("disk full")
}
