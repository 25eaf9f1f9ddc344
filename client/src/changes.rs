//! Reading what has changed: every version of a span between two timestamps, from
//! all of its shards.
//!
//! A *stretch* is a part of the span and how far its changes are known. A call
//! takes some stretches a page further each, side by side; it cuts them where
//! shards begin, so that there may be more of them afterwards. Each page is a read
//! at the upper timestamp at the leader of its shard (`shard.proto`, `Changes`), so
//! a change that is not in it will not turn up below it, whatever becomes of
//! leaders and shards; putting the pages in order is the caller's part.

use crate::client::Client;
use crate::contention::Contention;
use crate::failure::{Effect, Failure};
use crate::receipt::Receipt;
use crate::router::{At, Context, Routed, to_proto};
use crate::types::Span;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::clock::{deadline_after, wait_past};
use lineradb_common::{Position, Timestamp};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::time::Duration;
use tokio::time::Instant;

/// A part of a span and how far its changes are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// The keys.
    pub span: Span,
    /// Everything at or before is known.
    pub after: Position,
    /// What the leader has said for the next time.
    pub recent: Option<pb::RecentWrites>,
}

/// A committed change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// The commit timestamp.
    pub timestamp: Timestamp,
    /// `None`: it was deleted.
    pub value: Option<Bytes>,
    /// What stood there before and since when, if that was asked for and there was
    /// something.
    pub previous: Option<(Bytes, Timestamp)>,
}

/// What is read of each stretch.
#[derive(Clone, Copy, Debug)]
pub struct ChangesOptions {
    /// Up to here; not above what the clock has passed.
    pub to: Timestamp,
    /// Also what stood there before.
    pub previous: bool,
    /// Bytes of a page, one change more or less.
    pub page_bytes: usize,
}

/// The next changes of a stretch, in order.
#[derive(Clone, Debug)]
pub struct ChangesPage {
    /// The stretch as it is now.
    pub stretch: Stretch,
    /// By timestamp, then by key.
    pub changes: Vec<Change>,
    /// Something above the upper timestamp is there already.
    pub later: bool,
}

impl Routed for Stretch {
    fn start(&self) -> &Bytes {
        &self.span.start
    }
    fn cut(self, end: &Bytes) -> (Self, Option<Self>) {
        let (head, tail) = self.span.cut(end);
        let part = |span| Stretch {
            span,
            after: self.after.clone(),
            recent: self.recent,
        };
        (part(head), tail.map(part))
    }
    /// Each is a message of its own.
    fn weight(&self) -> usize {
        1
    }
}

impl Client {
    /// The next page of each of these stretches.
    ///
    /// # Errors
    /// [`Error::HistoryGone`] when a stretch begins before what is kept;
    /// `Unavailable` when a shard does not answer in time, `LockTimeout` when a
    /// commit in the way stays undecided.
    pub async fn changes(
        &self,
        stretches: Vec<Stretch>,
        options: ChangesOptions,
        deadline: Instant,
    ) -> Result<Vec<ChangesPage>> {
        let receipt = Receipt::default();
        let context = Context {
            deadline,
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let make = |_: &ShardDescriptor, stretches: &[Stretch]| {
            let stretch = stretches.first();
            let changes = pb::Changes {
                span: stretch.map(|stretch| to_proto(&stretch.span)),
                after: stretch.map(|stretch| pb::ChangePosition {
                    timestamp: stretch.after.timestamp.raw(),
                    key: stretch.after.key.clone(),
                }),
                to_ts: options.to.raw(),
                bytes_max: options.page_bytes as u64,
                previous: options.previous,
                recent: stretch.and_then(|stretch| stretch.recent),
            };
            (request::Body::Changes(changes), Vec::new())
        };
        let replies = self
            .0
            .router
            .scatter(stretches, make, Effect::Repeatable, 0, &context)
            .await
            .map_err(failure)?;
        let mut pages = Vec::with_capacity(replies.len());
        for (asked, reply) in replies {
            let (Some(reply::Body::Changes(reply)), Some(asked)) =
                (reply.body, asked.into_iter().next())
            else {
                return Err(Error::internal("Changes was answered with something else"));
            };
            pages.push(page(asked, reply)?);
        }
        // T5: whoever hears of a change may act on it at once.
        wait_past(&*self.0.clock, receipt.observed()).await?;
        Ok(pages)
    }

    /// Waits until something was written into a stretch since its last page, or it
    /// is better to look; `false`: for so long nothing was, as far as is known.
    pub async fn await_write(&self, stretch: &Stretch, wait: Duration) -> bool {
        let receipt = Receipt::default();
        let context = Context {
            deadline: deadline_after(wait * 2),
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let router = &self.0.router;
        let at = At::Key(stretch.span.start.clone());
        let Ok(shard) = router.locate(&at, context.deadline).await else {
            return false;
        };
        let wait = pb::AwaitWrite {
            span: Some(to_proto(&stretch.span)),
            recent: stretch.recent,
            wait_ms: wait.as_millis().min(u128::from(u32::MAX)) as u32,
        };
        let message = (request::Body::AwaitWrite(wait), Vec::new());
        let answer = router.call_shard(&shard, &message, Effect::Repeatable, &context);
        match answer.await {
            Ok(reply) => match reply.body {
                Some(reply::Body::AwaitWrite(reply)) => reply.written,
                _ => false,
            },
            Err(failure) => matches!(failure, Failure::Moved(_)),
        }
    }
}

fn page(asked: Stretch, reply: pb::ChangesReply) -> Result<ChangesPage> {
    let until = reply.until.unwrap_or_default();
    let after = Position {
        timestamp: Timestamp::from_raw(until.timestamp),
        key: until.key,
    };
    if after <= asked.after {
        return Err(Error::internal("a page of changes leads nowhere"));
    }
    let change = |change: pb::Change| Change {
        key: change.key,
        timestamp: Timestamp::from_raw(change.timestamp),
        value: change.value,
        previous: change
            .previous
            .map(|before| (before.value, Timestamp::from_raw(before.version_ts))),
    };
    Ok(ChangesPage {
        stretch: Stretch {
            span: asked.span,
            after,
            recent: reply.recent,
        },
        changes: reply.changes.into_iter().map(change).collect(),
        later: reply.later,
    })
}

fn failure(failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) if error.oldest_ts != 0 => Error::HistoryGone {
            oldest: Timestamp::from_raw(error.oldest_ts),
            message: format!(
                "the changes from there on are not kept any more: history begins at {}; read \
                 anew, and go on from that",
                error.oldest_ts
            ),
        },
        other => other.into_error(),
    }
}
