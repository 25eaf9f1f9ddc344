//! Splits a live shard.

use super::{Answer, Call, Engine};
use crate::command::{Body, Command, Rejection, Replica, Tree, Verdict};
use crate::consensus::ProposeError;
use crate::mvcc::{self, Cursor, Reader, Store, keys};
use crate::txn::placement::in_shard;
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use bytes::Bytes;
use lineradb_common::clock::Stopwatch;
use lineradb_common::{NodeId, ReplicaId, ShardId, Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, reply};
use std::sync::Arc;
use std::time::Duration;

/// Keys looked at to find the middle of a shard whose size is not known.
const SAMPLED_KEYS_MAX: usize = 200_000;
/// Halvings of the range of possible split keys.
const HALVINGS: usize = 48;
/// How long to wait before asking again whether a version write is over.
const SCHEMA_RETRY: Duration = Duration::from_millis(20);

impl<C: Consensus, S: Store> Engine<C, S> {
    pub(super) async fn split(self: &Arc<Self>, call: &mut Call, request: &proto::Split) -> Answer {
        let split_key = if request.split_key.is_empty() {
            let span = call.descriptor.span.clone().unwrap_or_default();
            let engine = self.clone();
            // Reads a lot: off the I/O workers.
            let middle = spawn::blocking(move || engine.middle(&span)).await;
            let middle = middle.map_err(|_| Refusal::unavailable("the node is stopping"))?;
            middle?.ok_or_else(|| Refusal::invalid("the shard holds too little to be split"))?
        } else {
            request.split_key.clone()
        };
        let start = call.descriptor.span.as_ref().map(|span| span.start.clone());
        if !in_shard(&call.descriptor, &split_key) || start.as_ref() == Some(&split_key) {
            return Err(Refusal::shard_changed());
        }
        let child_replicas = call.descriptor.replicas.iter().map(|replica| Replica {
            id: ReplicaId::new(NodeId(replica.node_id), 1),
            address: replica.address.clone(),
        });
        let command = Command {
            term: call.leading.term,
            shard_version: call.descriptor.version,
            body: Body::Split {
                split_key: split_key.clone(),
                new_shard_id: ShardId(request.new_shard_id),
                child_replicas: child_replicas.collect(),
            },
        };
        let watch = Stopwatch::start();
        while !self.propose_split(call, command.clone()).await? {
            // S2: a schema version is being written.
            self.until(call, tokio::time::sleep(SCHEMA_RETRY)).await?;
        }
        call.timing.consensus_us += watch.elapsed_us();
        let reply = proto::SplitReply { split_key };
        Ok((reply::Body::Split(reply), Timestamp::ZERO))
    }

    async fn propose_split(&self, call: &Call, command: Command) -> Result<bool, Refusal> {
        let consensus = self.consensus.clone();
        let proposal = spawn::task("split", async move { consensus.propose(command).await });
        let verdict = tokio::time::timeout_at(call.deadline, proposal)
            .await
            .map_err(|_| Refusal::unknown("no verdict within the request's time"))?
            .map_err(|_| Refusal::unknown("the node is stopping"))?;
        match verdict {
            Ok(Verdict::Applied) => Ok(true),
            Ok(Verdict::Rejected(Rejection::SchemaIntent)) => Ok(false),
            Ok(Verdict::Rejected(Rejection::StaleTerm)) => Err(Refusal::not_leader(None)),
            Ok(Verdict::Rejected(_)) => Err(Refusal::shard_changed()),
            Err(ProposeError::NotLeader { leader }) => Err(Refusal::not_leader(leader)),
            Err(ProposeError::Unavailable(why)) => Err(Refusal::unavailable(why)),
            Err(ProposeError::Unknown(why)) => Err(Refusal::unknown(why)),
        }
    }

    /// A key with about half of the shard's bytes before it.
    fn middle(&self, span: &proto::Span) -> Result<Option<Bytes>, Refusal> {
        let lower = keys::addressable(&span.start);
        let upper = keys::addressable_end(&span.end);
        let snapshot = self.store.snapshot();
        let total = self.store.approximate_size(Tree::Data, &lower, &upper);
        let by_size = if total > 0 {
            self.middle_by_size(&snapshot, &lower, &upper, total)?
        } else {
            None
        };
        let found = match by_size {
            Some(key) => Some(key),
            None => middle_by_count(&snapshot, &lower, &upper)?,
        };
        Ok(found.filter(|key| *key > span.start))
    }

    fn middle_by_size(
        &self,
        snapshot: &S::Snapshot,
        lower: &[u8],
        upper: &[u8],
        total: u64,
    ) -> Result<Option<Bytes>, Refusal> {
        let mut cursor = snapshot.cursor(Tree::Data, lower, upper);
        cursor.seek_to_first()?;
        if !cursor.valid() {
            return Ok(None);
        }
        let first = Bytes::copy_from_slice(cursor.key());
        cursor.seek_to_last()?;
        let last = Bytes::copy_from_slice(cursor.key());
        // Keys as numbers, from the first byte in which they differ.
        let common = first
            .iter()
            .zip(last.iter())
            .take_while(|(a, b)| a == b)
            .count();
        let (mut low, mut high) = (number_at(&first, common), number_at(&last, common));
        for _ in 0..HALVINGS {
            if high - low < 2 {
                break;
            }
            let middle = low + (high - low) / 2;
            let key = [&first[..common], &middle.to_be_bytes()].concat();
            if self.store.approximate_size(Tree::Data, lower, &key) < total / 2 {
                low = middle;
            } else {
                high = middle;
            }
        }
        let key = [&first[..common], &high.to_be_bytes()].concat();
        cursor.seek(&key)?;
        if !cursor.valid() {
            return Ok(None);
        }
        let (addressable, _) = keys::split_version_key(cursor.key())?;
        let found = keys::user_key(addressable)?;
        let (start, _) = keys::split_version_key(&first)?;
        Ok((keys::user_key(start)? != found).then_some(found))
    }
}

fn number_at(key: &[u8], from: usize) -> u128 {
    let mut bytes = [0; 16];
    for (to, byte) in bytes.iter_mut().zip(key.iter().skip(from)) {
        *to = *byte;
    }
    u128::from_be_bytes(bytes)
}

/// The middle one of the keys, as far as they are looked at.
fn middle_by_count(
    snapshot: &impl Reader,
    lower: &[u8],
    upper: &[u8],
) -> mvcc::Result<Option<Bytes>> {
    let mut cursor = snapshot.cursor(Tree::Data, lower, upper);
    cursor.seek_to_first()?;
    let mut distinct: Vec<Bytes> = Vec::new();
    for _ in 0..SAMPLED_KEYS_MAX {
        if !cursor.valid() {
            break;
        }
        let (addressable, _) = keys::split_version_key(cursor.key())?;
        if distinct.last().is_none_or(|last| last != addressable) {
            distinct.push(Bytes::copy_from_slice(addressable));
        }
        cursor.next()?;
    }
    if distinct.len() < 2 {
        return Ok(None);
    }
    keys::user_key(&distinct[distinct.len() / 2]).map(Some)
}
