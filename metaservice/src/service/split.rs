//! `SplitShard`: reserves the split, sees to it that the leader is told, and
//! waits until it is in the map.

use super::MetaApi;
use crate::state::command::{BeginSplit, Body};
use crate::state::{Reply, ShardRecord, State};
use bytes::Bytes;
use lineradb_proto::meta::v1 as meta;
use tonic::Status;

impl MetaApi {
    /// Reserves the split, then waits until its right-hand side is in the map.
    pub(super) async fn split_here(
        &self,
        request: &meta::SplitShardRequest,
    ) -> Result<meta::SplitShardReply, Status> {
        let mut applied = self.member.shared.applied();
        let key = &request.split_key;
        loop {
            let state = self.member.shared.state();
            if let Some(done) = split_at_already(&state, key) {
                return Ok(done);
            }
            let shard = shard_to_split(&state, request)?;
            let shard_id = shard.descriptor.shard_id;
            let other = shard.split.as_ref().filter(|s| s.split_key != *key);
            if other.is_some() {
                // Another split of this shard is under way: after that one.
                next_change(&mut applied).await?;
                continue;
            }
            let begin = Body::BeginSplit(BeginSplit {
                shard_id,
                version: shard.descriptor.version,
                split_key: key.clone(),
            });
            let new_shard_id = match self.member.propose(begin).await? {
                Reply::Split(id) => id,
                // Changed between the look and the command: look again.
                Reply::Refused(_) => continue,
                other => return Err(Status::internal(format!("split answered {other}"))),
            };
            self.member.work.notify_one();
            return self.await_split(&mut applied, shard_id, new_shard_id).await;
        }
    }

    async fn await_split(
        &self,
        applied: &mut tokio::sync::watch::Receiver<u64>,
        shard_id: u64,
        new_shard_id: u64,
    ) -> Result<meta::SplitShardReply, Status> {
        loop {
            let state = self.member.shared.state();
            let right = state.shards.get(&new_shard_id);
            let left = state.shards.get(&shard_id);
            if let (Some(left), Some(right)) = (left, right) {
                return Ok(meta::SplitShardReply {
                    left: Some(left.descriptor.clone()),
                    right: Some(right.descriptor.clone()),
                });
            }
            let wanted = left
                .and_then(|l| l.split.as_ref())
                .is_some_and(|s| s.new_shard_id == new_shard_id);
            if !wanted {
                return Err(self.not_split(shard_id, new_shard_id));
            }
            next_change(applied).await?;
        }
    }

    /// Why a split that was ordered is not wanted any more.
    fn not_split(&self, shard_id: u64, new_shard_id: u64) -> Status {
        let refusal = self.member.with_view(|view, _| {
            let said = view.unsplittable.get(&shard_id);
            said.filter(|u| u.new_shard_id == new_shard_id)
                .map(|u| u.reason.clone())
        });
        match refusal {
            Some(reason) => Status::invalid_argument(format!(
                "the leader of shard {shard_id} refused to split it: {reason}"
            )),
            None => Status::aborted(format!("shard {shard_id} changed meanwhile: try again")),
        }
    }
}

async fn next_change(applied: &mut tokio::sync::watch::Receiver<u64>) -> Result<(), Status> {
    applied
        .changed()
        .await
        .map_err(|_| Status::unavailable("this member is stopping"))
}

/// The two neighbours, when `key` is a boundary already.
fn split_at_already(state: &State, key: &Bytes) -> Option<meta::SplitShardReply> {
    if key.is_empty() {
        return None;
    }
    let find = |f: &dyn Fn(&ShardRecord) -> bool| {
        let mut shards = state.shards.values();
        shards.find(|s| f(s)).map(|s| s.descriptor.clone())
    };
    let right = find(&|s| s.span().0 == key)?;
    let left = find(&|s| s.span().1 == key)?;
    Some(meta::SplitShardReply {
        left: Some(left),
        right: Some(right),
    })
}

fn shard_to_split<'a>(
    state: &'a State,
    request: &meta::SplitShardRequest,
) -> Result<&'a ShardRecord, Status> {
    let key = &request.split_key;
    let by_key = || state.shard_at(key);
    let shard = match (request.shard_id, key.is_empty()) {
        (0, true) => {
            return Err(Status::invalid_argument(
                "name a shard or a key to split at",
            ));
        }
        (0, false) => by_key(),
        (id, _) => state.shards.get(&id),
    };
    let shard = shard.ok_or_else(|| match request.shard_id {
        0 => Status::unavailable("the cluster has no shards yet"),
        id => Status::not_found(format!("there is no shard {id}")),
    })?;
    let (start, end) = shard.span();
    let inside = &key[..] > start && (end.is_empty() || &key[..] < end);
    if !key.is_empty() && !inside {
        return Err(Status::invalid_argument(format!(
            "the key does not lie inside shard {}",
            shard.descriptor.shard_id
        )));
    }
    Ok(shard)
}
