//! What remains to be settled when a commit did not go as planned: attempts in
//! doubt are decided (X1), intents are resolved whatever way it ended.

use super::Inner;
use super::items::WriteItem;
use crate::background::Job;
use crate::backoff::Backoff;
use crate::client::Shared;
use crate::contention::Fate;
use crate::failure::{Failure, refusal};
use crate::router::Context;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::clock::deadline_after;
use lineradb_common::{Timestamp, TxnId};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::ErrorCode;
use std::sync::Arc;
use std::time::Duration;

/// An attempt in doubt is given this long to be decided (or the time of one
/// operation, if that is shorter), unless its user has set a deadline: then the
/// doubt is answered when that has come. A default that nobody asked for may be
/// overrun.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(3);

impl Inner {
    /// X1: an attempt in doubt is decided at its anchor: found committed there,
    /// or made impossible.
    pub(super) async fn decide(
        &self,
        meta: &pb::TxnMeta,
        why: &str,
        context: &Context<'_>,
    ) -> Result<Timestamp> {
        let patience = DECIDE_TIMEOUT.min(self.shared.operation_timeout);
        let usual = context.deadline.max(deadline_after(patience));
        let own = {
            let state = self.state.lock();
            state.deadline.filter(|_| !state.default_deadline)
        };
        let deadline = own.map_or(usual, |own| own.min(usual));
        let context = Context {
            deadline,
            ..*context
        };
        let mut backoff = Backoff::routing();
        let unknown = |more: String| Error::Unknown {
            message: format!("{why}; {more}"),
        };
        loop {
            match self.shared.router.push(forced(meta), &context).await {
                Ok(Fate::Committed(at)) => return Ok(Timestamp::from_raw(at)),
                Ok(Fate::Aborted) => {
                    return Err(Error::conflict(
                        "the commit did not get through and was called off",
                        meta.anchor.clone(),
                    ));
                }
                Ok(Fate::Pending) => {}
                Err(failure) => return Err(unknown(failure.into_error().to_string())),
            }
            if !backoff.pause(deadline).await {
                return Err(unknown("it is not decided".into()));
            }
        }
    }
}

/// The push that ends all doubt.
fn forced(meta: &pb::TxnMeta) -> pb::Push {
    pb::Push {
        txn_id: meta.id.clone(),
        anchor: meta.anchor.clone(),
        attempt_ts: meta.attempt_ts,
        force: true,
    }
}

/// What a failure before the commit point means: certainly not committed.
pub(super) fn commit_error(failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) => match ErrorCode::try_from(error.code) {
            // The server's own bound on waiting: take it for a deadlock.
            Ok(ErrorCode::LockTimeout | ErrorCode::Locked) => {
                Error::conflict("a lock was held for too long", error.key)
            }
            _ => refusal(error),
        },
        Failure::Unknown(why) => Error::conflict(
            format!("a part of the commit did not get through: {why}"),
            Bytes::new(),
        ),
        other => other.into_error(),
    }
}

/// The intents that a commit has laid, or may have: whatever way it ends
/// (early return, dropped future), they are taken care of.
pub(super) struct Intents {
    shared: Arc<Shared>,
    txn: TxnId,
    push: pb::Push,
    items: Vec<WriteItem>,
    committed: Option<Timestamp>,
    record: Option<pb::CommitRecord>,
}

impl Intents {
    pub(super) fn new(inner: &Inner, meta: &pb::TxnMeta, items: &[WriteItem]) -> Self {
        let items = items.iter().cloned();
        Intents {
            shared: inner.shared.clone(),
            txn: inner.id,
            push: forced(meta),
            items: items.map(WriteItem::without_value).collect(),
            committed: None,
            record: None,
        }
    }

    /// It is committed. `record`: what is still to be put down to say so.
    pub(super) fn committed(&mut self, at: Timestamp, record: Option<pb::CommitRecord>) {
        self.committed = Some(at);
        self.record = record;
    }
}

impl Drop for Intents {
    fn drop(&mut self) {
        // Not committed: the abort is recorded as well, since a part whose
        // answer was lost may still arrive.
        let resolve = Job::Resolve {
            txn: self.txn,
            items: std::mem::take(&mut self.items),
            committed: self.committed,
            push: std::mem::take(&mut self.push),
        };
        match self.record.take() {
            Some(record) => self.shared.janitor.make_explicit(Box::new(record), resolve),
            None => self.shared.clean(resolve),
        }
    }
}
