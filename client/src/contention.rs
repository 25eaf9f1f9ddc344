//! What to do when intents of other transactions are in the way.
//!
//! Each is asked for at its anchor (a *push*). A decided transaction's intents
//! are resolved on the spot, and the request goes on. A live one is waited
//! for, with growing pauses: it is in the middle of its commit, or about to say
//! that it has committed, and done within a few round trips; one whose
//! coordinator died is decided after five seconds, by the push itself, or, where
//! it has staged its commit, by a look at what it has declared.
//!
//! Two transactions that lay intents may wait for each other. The one with the
//! younger commit attempt gives way after a grace period and is retried, the
//! older one goes on waiting: cycles cannot last (the idea is wait-die, from
//! Rosenkrantz, Stearns and Lewis, 1978).

use crate::backoff::Backoff;
use crate::failure::{Effect, Failure};
use crate::router::{At, Context, Message, Router};
use bytes::Bytes;
use futures::StreamExt;
use lineradb_common::clock::Stopwatch;
use lineradb_common::{Timestamp, TxnId};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{
    ErrorCode, Lock, Reply, ShardDescriptor, push_reply, recover_reply, reply, request,
};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How long the younger one waits for the older one before it gives way.
const GRACE: Duration = Duration::from_millis(60);
/// Shards that a recovery asks at once.
const QUERIES_MAX: usize = 16;

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
            context.receipt.add(|t| t.pushes += 1);
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
                Some(push_reply::Status::Staging(staging)) => {
                    self.recover(&push, staging, context).await?
                }
                Some(push_reply::Status::Pending(_)) | None => Fate::Pending,
            })
        })
    }

    /// X3: decides a transaction in state STAGING whose coordinator is silent: all
    /// that it has declared is there, or is kept from landing where it was declared;
    /// then the verdict.
    async fn recover(
        &self,
        push: &pb::Push,
        staging: pb::Staging,
        context: &Context<'_>,
    ) -> Result<Fate, Failure> {
        let commit = match self
            .all_there(push, staging.keys, staging.commit_ts, context)
            .await
        {
            // Its shard has changed meanwhile: to be asked for again.
            Err(Failure::Moved(_)) => return Ok(Fate::Pending),
            answer => answer?,
        };
        let make = |_: &ShardDescriptor| {
            let verdict = pb::Recover {
                txn_id: push.txn_id.clone(),
                anchor: push.anchor.clone(),
                staged_ts: staging.commit_ts,
                commit,
            };
            (request::Body::Recover(verdict), Vec::new())
        };
        let at = At::Key(push.anchor.clone());
        let (_, reply) = self.call_at(at, make, Effect::Repeatable, context).await?;
        let status = match reply.body {
            Some(reply::Body::Recover(reply)) => reply.status,
            _ => None,
        };
        Ok(match status {
            Some(recover_reply::Status::Committed(ts)) => Fate::Committed(ts),
            Some(recover_reply::Status::Aborted(_)) => Fate::Aborted,
            // Somebody was faster: to be asked for again.
            Some(recover_reply::Status::Changed(_)) | None => Fate::Pending,
        })
    }

    /// Whether all of these keys hold an intent of the transaction at or below its
    /// staged timestamp. One that does not decides, whatever the other shards say,
    /// or whether they are there at all.
    async fn all_there(
        &self,
        push: &pb::Push,
        keys: Vec<Bytes>,
        commit_ts: u64,
        context: &Context<'_>,
    ) -> Result<bool, Failure> {
        let parts = self.group(keys, usize::MAX, context.deadline).await?;
        let queries = parts.into_iter().map(|(shard, keys)| {
            let query = pb::QueryIntents {
                txn_id: push.txn_id.clone(),
                commit_ts,
                keys,
            };
            let message = (request::Body::QueryIntents(query), Vec::new());
            async move {
                let answer = self.call_shard(&shard, &message, Effect::Repeatable, context);
                match answer.await?.body {
                    Some(reply::Body::QueryIntents(reply)) => Ok(reply.all_there),
                    // Nothing is kept from landing by it.
                    _ => Err(Failure::Unavailable("a node sent nonsense".into())),
                }
            }
        });
        let mut answers = futures::stream::iter(queries).buffer_unordered(QUERIES_MAX);
        let mut failure = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(other) => failure = Some(Failure::worse(failure, other)),
            }
        }
        failure.map_or(Ok(true), Err)
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
