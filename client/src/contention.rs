//! What to do when intents of other transactions are in the way.
//!
//! Each is asked for at its anchor (a *push*). A decided transaction's intents
//! are resolved on the spot, and the request goes on. A live one is waited
//! for, with growing pauses: it is in the middle of its commit and done within
//! a few round trips; one whose coordinator died is decided by the push itself
//! after five seconds.
//!
//! Two transactions that lay intents may wait for each other. The one with the
//! younger commit attempt gives way after a grace period and is retried, the
//! older one goes on waiting: cycles cannot last (the idea is wait-die, from
//! Rosenkrantz, Stearns and Lewis, 1978).

use crate::backoff::Backoff;
use crate::failure::{Effect, Failure};
use crate::router::{At, Context, Message, Router};
use bytes::Bytes;
use lineradb_common::clock::Stopwatch;
use lineradb_common::{Timestamp, TxnId};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{
    ErrorCode, Lock, Reply, ShardDescriptor, push_reply, reply, request,
};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How long the younger one waits for the older one before it gives way.
const GRACE: Duration = Duration::from_millis(60);

/// How an operation behaves towards foreign intents.
#[derive(Clone, Copy, Debug)]
pub struct Contention {
    /// Set by a transaction that has laid intents: its commit attempt.
    pub holder: Option<(Timestamp, TxnId)>,
    /// `false`: do not wait for a live transaction.
    pub wait: bool,
}

impl Contention {
    /// Of somebody who holds no intents.
    pub const PATIENT: Contention = Contention {
        holder: None,
        wait: true,
    };
}

/// The fate of a pushed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Committed at this timestamp.
    Committed(u64),
    /// Aborted.
    Aborted,
    /// Not decided.
    Pending,
}

/// Fates learnt within one operation, so that a scan over many intents of one
/// transaction asks once.
type Fates = HashMap<Bytes, Fate>;

/// The pending lock to which a holder gives way: one of an older attempt.
fn older<'a>(pending: &'a [&'a Lock], holder: Option<(Timestamp, TxnId)>) -> Option<&'a Lock> {
    let (attempt, id) = holder?;
    pending
        .iter()
        .copied()
        .find(|lock| (lock.attempt_ts, lock.txn_id.as_ref()) < (attempt.raw(), id.0.as_slice()))
}

impl Router {
    /// [`Router::call_shard`], and whatever intents are in the way.
    pub(crate) async fn call_contended(
        &self,
        shard: &ShardDescriptor,
        message: &Message,
        effect: Effect,
        context: &Context<'_>,
    ) -> Result<Reply, Failure> {
        let mut fates = Fates::new();
        let mut backoff = Backoff::contention();
        let mut waited: Option<Stopwatch> = None;
        loop {
            let error = match self.call_shard(shard, message, effect, context).await {
                Err(Failure::Refused(e)) if e.code == ErrorCode::Locked as i32 => e,
                answer => {
                    note_wait(context, waited);
                    return answer;
                }
            };
            let since = *waited.get_or_insert_with(Stopwatch::start);
            let pending = self.clear(&error.locks, &mut fates, context).await?;
            if pending.is_empty() && !error.locks.is_empty() {
                continue;
            }
            let gives_way = older(&pending, context.contention.holder);
            if let Some(lock) = gives_way.filter(|_| since.elapsed() >= GRACE) {
                let key = lock.key.clone();
                note_wait(context, waited);
                return Err(Failure::GaveWay(key));
            }
            if !context.contention.wait || !backoff.pause(context.deadline).await {
                note_wait(context, waited);
                return Err(Failure::Refused(error));
            }
        }
    }

    /// Pushes the owners of some intents and resolves those that are decided.
    /// Returns the locks of the others.
    async fn clear<'a>(
        &self,
        locks: &'a [Lock],
        fates: &mut Fates,
        context: &Context<'_>,
    ) -> Result<Vec<&'a Lock>, Failure> {
        let mut pending = Vec::new();
        let mut decided: HashMap<&Bytes, (Fate, Vec<&'a Lock>)> = HashMap::new();
        for lock in locks {
            // A lock in memory has no anchor: it can only be waited for.
            if lock.anchor.is_empty() {
                pending.push(lock);
                continue;
            }
            let fate = match fates.get(&lock.txn_id) {
                Some(fate) if *fate != Fate::Pending => *fate,
                _ => {
                    let already = pending.iter().any(|p| p.txn_id == lock.txn_id);
                    if already {
                        pending.push(lock);
                        continue;
                    }
                    let push = pb::Push {
                        txn_id: lock.txn_id.clone(),
                        anchor: lock.anchor.clone(),
                        attempt_ts: lock.attempt_ts,
                        force: false,
                    };
                    let fate = self.push(push, context).await?;
                    fates.insert(lock.txn_id.clone(), fate);
                    fate
                }
            };
            if fate == Fate::Pending {
                pending.push(lock);
            } else {
                decided
                    .entry(&lock.txn_id)
                    .or_insert((fate, Vec::new()))
                    .1
                    .push(lock);
            }
        }
        for (txn_id, (fate, locks)) in decided {
            let commit_ts = match fate {
                Fate::Committed(ts) => ts,
                Fate::Aborted | Fate::Pending => 0,
            };
            self.resolve_locks(txn_id, commit_ts, &locks, context)
                .await?;
        }
        Ok(pending)
    }

    /// Asks for the fate of a transaction at its anchor. Idempotent.
    pub(crate) fn push<'a>(
        &'a self,
        push: pb::Push,
        context: &'a Context<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<Fate, Failure>> + Send + 'a>> {
        // Boxed: a push is itself a request that finds its way by `call_at`.
        Box::pin(async move {
            let at = At::Key(push.anchor.clone());
            let make = |_: &ShardDescriptor| (request::Body::Push(push.clone()), Vec::new());
            let (_, reply) = self.call_at(at, make, Effect::Repeatable, context).await?;
            let status = match reply.body {
                Some(reply::Body::Push(reply)) => reply.status,
                _ => None,
            };
            Ok(match status {
                Some(push_reply::Status::Committed(ts)) => Fate::Committed(ts),
                Some(push_reply::Status::Aborted(_)) => Fate::Aborted,
                Some(push_reply::Status::Pending(_)) | None => Fate::Pending,
            })
        })
    }

    /// Resolves locks that one refusal named: they lie in one shard, or did.
    fn resolve_locks<'a>(
        &'a self,
        txn_id: &'a Bytes,
        commit_ts: u64,
        locks: &'a [&'a Lock],
        context: &'a Context<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        let keys = locks.iter().filter(|l| l.schema_table == 0);
        let keys: Vec<Bytes> = keys.map(|l| l.key.clone()).collect();
        let tables = locks.iter().filter(|l| l.schema_table != 0);
        let tables: Vec<u64> = tables.map(|l| l.schema_table).collect();
        Box::pin(async move {
            let make = |_: &ShardDescriptor, keys: &[Bytes]| {
                let resolve = pb::Resolve {
                    txn_id: txn_id.clone(),
                    keys: keys.to_vec(),
                    schema_tables: Vec::new(),
                    commit_ts,
                };
                (request::Body::Resolve(resolve), Vec::new())
            };
            self.scatter(keys, make, Effect::Repeatable, usize::MAX, context)
                .await?;
            for table in tables {
                let prefix = lineradb_common::keys::table_prefix(lineradb_common::TableId(table));
                let span = crate::Span::prefix(&prefix);
                let make = |_: &ShardDescriptor, _: &[crate::Span]| {
                    let resolve = pb::Resolve {
                        txn_id: txn_id.clone(),
                        keys: Vec::new(),
                        schema_tables: vec![table],
                        commit_ts,
                    };
                    (request::Body::Resolve(resolve), Vec::new())
                };
                self.scatter(vec![span], make, Effect::Repeatable, usize::MAX, context)
                    .await?;
            }
            Ok(())
        })
    }
}

impl crate::router::Routed for crate::Span {
    fn start(&self) -> &Bytes {
        &self.start
    }
    fn cut(self, end: &Bytes) -> (Self, Option<Self>) {
        if !self.end.is_empty() && self.end <= *end {
            return (self, None);
        }
        let rest = crate::Span::new(end.clone(), self.end);
        (crate::Span::new(self.start, end.clone()), Some(rest))
    }
    fn weight(&self) -> usize {
        self.start.len() + self.end.len() + 8
    }
}

fn note_wait(context: &Context<'_>, waited: Option<Stopwatch>) {
    if let Some(waited) = waited {
        context
            .receipt
            .add(|t| t.lock_wait_us += u64::from(waited.elapsed_us()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_younger_attempt_gives_way() {
        let lock = |attempt_ts, id: u8| Lock {
            txn_id: Bytes::from(vec![id; 16]),
            attempt_ts,
            ..Lock::default()
        };
        let me = Some((Timestamp::from_raw(10), TxnId([5; 16])));
        let first = lock(9, 9);
        assert!(older(&[&first], me).is_some());
        let later = lock(11, 1);
        assert!(older(&[&later], me).is_none());
        let smaller_id = lock(10, 4);
        assert!(older(&[&later, &smaller_id], me).is_some());
        assert!(older(&[&first], None).is_none());
    }
}
