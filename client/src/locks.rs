//! Who holds and who awaits what, all over the cluster: for people.

use crate::client::Client;
use crate::contention::Contention;
use crate::failure::{Effect, Failure};
use crate::receipt::Receipt;
use crate::router::{Context, to_proto};
use crate::types::Span;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::TxnId;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::time::Duration;

/// How a key is held, or to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// With others that share it.
    Shared,
    /// Alone.
    Exclusive,
    /// By an undecided write.
    Intent,
}

/// A lock, or somebody who waits for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// The key.
    pub key: Bytes,
    /// Whose.
    pub txn: TxnId,
    /// How.
    pub mode: LockMode,
    /// Since when it waits; `None`: it holds.
    pub waits: Option<Duration>,
}

impl Client {
    /// The locks of a span as they are found; by key, holders first, and then
    /// those who wait, in line.
    ///
    /// # Errors
    /// `Unavailable` when a shard cannot be reached in time.
    pub async fn locks(&self, span: Span) -> Result<Vec<LockState>> {
        let receipt = Receipt::default();
        let context = Context {
            deadline: self.operation_deadline(),
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let make = |_: &ShardDescriptor, spans: &[Span]| {
            let list = pb::ListLocks {
                span: spans.first().map(to_proto),
            };
            (request::Body::ListLocks(list), Vec::new())
        };
        let router = &self.0.router;
        let answers = router
            .scatter(vec![span], make, Effect::Repeatable, 1, &context)
            .await
            .map_err(Failure::into_error)?;
        let mut locks = Vec::new();
        for (_, reply) in answers {
            let Some(reply::Body::ListLocks(list)) = reply.body else {
                return Err(Error::internal(
                    "a ListLocks was answered with something else",
                ));
            };
            for state in list.locks {
                locks.push(read(state)?);
            }
        }
        // Stable: a leader names those who wait in line.
        locks.sort_by(|a, b| (&a.key, a.waits.is_some()).cmp(&(&b.key, b.waits.is_some())));
        Ok(locks)
    }
}

fn read(state: pb::LockState) -> Result<LockState> {
    let id = <[u8; 16]>::try_from(&state.txn_id[..]);
    Ok(LockState {
        key: state.key,
        txn: TxnId(id.map_err(|_| Error::internal("a lock has no owner"))?),
        mode: match (state.intent, state.exclusive) {
            (true, _) => LockMode::Intent,
            (false, true) => LockMode::Exclusive,
            (false, false) => LockMode::Shared,
        },
        waits: { state.waits }.then(|| Duration::from_micros(state.waited_us)),
    })
}
