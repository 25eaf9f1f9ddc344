//! Keeping the raft log short, without purging what a crash would still need.
//!
//! An entry may go when its effect is durable in the storage engine (D1) and
//! no follower is likely to ask for it: a stretch of each group's log is kept
//! for followers that lag, unless the log as a whole has grown too large. Then
//! the engine is flushed, so that more of it may go, and laggards get
//! snapshots.

use super::api::Retention;
use super::group::Group;
use super::groups::GroupsCore;
use crate::raft_log::GroupStats;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Weak;
use tokio::sync::watch;

/// A purge is worth its record when it frees at least this many entries.
const PURGE_ENTRIES_MIN: u64 = 256;

/// Up to where a group's log may be purged; `None`: not worth it.
///
/// `tail_start` is the index at which the stretch that is kept for laggards
/// begins by size.
fn purge_target(
    stats: GroupStats,
    durable_index: u64,
    tail_start: u64,
    retention: &Retention,
    log_bytes: u64,
) -> Option<u64> {
    let keep_from = if log_bytes > retention.log_bytes {
        u64::MAX
    } else {
        let by_count = (stats.last_index + 1).saturating_sub(retention.group_entries);
        by_count.max(tail_start)
    };
    // D1: never above what is durable, however large the log has grown.
    let target = durable_index.min(keep_from.saturating_sub(1));
    (target >= stats.purged_index + PURGE_ENTRIES_MIN).then_some(target)
}

/// Runs until the node stops.
pub(super) async fn run(
    core: Weak<GroupsCore>,
    retention: Retention,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(retention.interval) => {}
            _ = stopping.changed() => return,
        }
        let Some(core) = core.upgrade() else { return };
        keep(&core, &retention).await;
    }
}

async fn keep(core: &GroupsCore, retention: &Retention) {
    let log_bytes = core.log.bytes();
    let db = &core.storage.db;
    if log_bytes > retention.log_bytes
        && db.flushed_seqno() < db.last_seqno()
        && let Err(error) = core.storage.flush().await
    {
        tracing::warn!(%error, "the storage engine was not flushed");
    }
    for group in core.list() {
        keep_group(&group, retention, log_bytes).await;
    }
}

async fn keep_group(group: &Group, retention: &Retention, log_bytes: u64) {
    let Some(durable) = group.state().durable_applied() else {
        return;
    };
    let log = group.log();
    let tail_start = log.first_index_within(retention.group_bytes);
    let Some(target) = purge_target(log.stats(), durable.index, tail_start, retention, log_bytes)
    else {
        return;
    };
    let raft = group.raft();
    let snapshot = {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        now.snapshot.map_or(0, |id| id.index)
    };
    // openraft purges only below what it calls a snapshot: first it learns how
    // far the state is durable, then, the next time round, it purges.
    let asked = match snapshot < target {
        true => raft.trigger().snapshot().await,
        false => Ok(()),
    };
    let asked = match asked {
        Ok(()) if snapshot > 0 => raft.trigger().purge_log(target.min(snapshot)).await,
        other => other,
    };
    if let Err(error) = asked {
        tracing::debug!(shard = %group.shard_id(), %error, "a stopped replica keeps its log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_above_the_durable_position_is_purged() {
        let stats = |last| GroupStats {
            entries: last,
            bytes: 0,
            last_index: last,
            purged_index: 0,
        };
        let keep = Retention {
            group_entries: 1000,
            ..Retention::default()
        };
        let small = 0;
        let large = keep.log_bytes + 1;
        assert_eq!(purge_target(stats(500), 500, 0, &keep, small), None);
        assert_eq!(purge_target(stats(5000), 5000, 0, &keep, small), Some(4000));
        assert_eq!(purge_target(stats(5000), 3000, 0, &keep, small), Some(3000));
        assert_eq!(purge_target(stats(5000), 100, 0, &keep, large), None);
        assert_eq!(purge_target(stats(5000), 4900, 0, &keep, large), Some(4900));
        assert_eq!(
            purge_target(stats(5000), 5000, 4500, &keep, small),
            Some(4499)
        );
    }
}
