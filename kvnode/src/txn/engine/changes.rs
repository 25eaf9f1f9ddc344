//! What has changed in a span: the read on which `Watch` rests.
//!
//! It is a read of the whole span at `to` (L3), with all that belongs to one:
//! into the timestamp cache, behind the writes in flight, past no undecided intent,
//! confirmed. So nothing commits in the span at or below `to` after it, under
//! whatever leader, and whoever asks again from where it ended misses nothing.
//! Whoever reads far behind the clock pushes no live writer by it.
//!
//! Where the replica has a list of what it wrote lately (`consensus::Tail`), the
//! answer says from which place in it the next question can be answered; the
//! argument stands there. Lists are a short cut: without one the span is walked.

use super::read::{Work, span_here};
use super::{Answer, Call, Engine};
use crate::consensus::{Mark, Tail};
use crate::mvcc::changes::{Change, Found, Wanted, among, walk};
use crate::mvcc::{self, Store, keys};
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use bytes::Bytes;
use lineradb_common::clock::deadline_after;
use lineradb_common::{Position, Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, reply};
use std::collections::HashMap;
use std::time::Duration;

/// Bytes of an answer whose size nobody names, and of one that somebody does, at
/// most.
const BYTES: usize = 1 << 20;
const BYTES_MAX: usize = 8 << 20;

/// A question for changes.
pub(super) struct Changes {
    pub span: proto::Span,
    wanted: Wanted,
    recent: Option<proto::RecentWrites>,
}

/// Versions that a replica has put lately, with their places in its list.
type Written = Vec<(u64, Bytes)>;

impl Changes {
    fn new(span: proto::Span, request: proto::Changes) -> Result<Self, Refusal> {
        let after = request.after.unwrap_or_default();
        let after = Position {
            timestamp: Timestamp::from_raw(after.timestamp),
            key: after.key,
        };
        let to = Timestamp::from_raw(request.to_ts);
        if after >= Position::whole(to) {
            return Err(Refusal::invalid(
                "changes are asked for up to a timestamp above what is known",
            ));
        }
        let bytes_max = match request.bytes_max {
            0 => BYTES,
            bytes => usize::try_from(bytes).unwrap_or(BYTES_MAX).min(BYTES_MAX),
        };
        Ok(Changes {
            wanted: Wanted {
                start: span.start.clone(),
                end: span.end.clone(),
                after,
                to,
                bytes_max,
                previous: request.previous,
            },
            recent: request.recent,
            span,
        })
    }

    pub fn oldest(&self) -> Timestamp {
        self.wanted.oldest()
    }

    /// Answers it on a snapshot that was taken after `mark`.
    pub fn evaluate(
        &self,
        snapshot: &impl mvcc::Reader,
        tail: &Tail,
        mark: Option<Mark>,
    ) -> mvcc::Result<proto::ChangesReply> {
        let to = self.wanted.to;
        let (lower, upper) = self.wanted.bounds();
        let listed = self.recent.as_ref().and_then(|recent| {
            let from = recent.from.filter(|_| mark.is_some())?;
            tail.since(recent.epoch, from, &lower, &upper)
        });
        let (found, later) = match listed {
            Some(written) => {
                let found = among(snapshot, &self.wanted, written.iter().map(|(_, key)| key))?;
                (found, Later::listed(&written, to)?)
            }
            None => {
                let (found, later) = spawn::stalling(|| walk(snapshot, &self.wanted))?;
                let list = || {
                    let mark = mark?;
                    tail.since(mark.epoch, mark.first, &lower, &upper)
                };
                (found, Later::walked(later, list))
            }
        };
        let whole = found.until == Position::whole(to);
        Ok(proto::ChangesReply {
            later: match mark {
                Some(mark) => later.any && later.from.is_none_or(|from| from < mark.settled),
                None => later.any,
            },
            recent: mark.map(|mark| proto::RecentWrites {
                epoch: mark.epoch,
                // Of an answer that ends early, what follows `until` stands anywhere.
                from: later.from.filter(|_| whole).map(|at| at.min(mark.settled)),
                seen: mark.settled,
            }),
            ..to_reply(found)
        })
    }
}

/// Versions above the end of an answer.
struct Later {
    /// There are some, perhaps not visible yet.
    any: bool,
    /// The place of the first one in the list, or one behind all; `None`: one of
    /// them, or all, are not in the list.
    from: Option<u64>,
}

impl Later {
    /// Among those in the list, which has all.
    fn listed(written: &Written, to: Timestamp) -> mvcc::Result<Later> {
        for (place, key) in written {
            if keys::split_version_key(key)?.1 > to {
                return Ok(Later {
                    any: true,
                    from: Some(*place),
                });
            }
        }
        Ok(Later {
            any: false,
            from: Some(u64::MAX),
        })
    }

    /// Those that a walk has met, looked up in the list as it is after the walk.
    fn walked(met: Option<Vec<Bytes>>, list: impl FnOnce() -> Option<Written>) -> Later {
        let places = |met: Vec<Bytes>| {
            if met.is_empty() {
                return Some(u64::MAX);
            }
            let list = list()?;
            let mut places = HashMap::with_capacity(list.len());
            for (place, key) in &list {
                places.entry(&key[..]).or_insert(*place);
            }
            let mut found = met.iter().map(|key| places.get(&key[..]).copied());
            found.try_fold(u64::MAX, |first, place| Some(first.min(place?)))
        };
        Later {
            any: met.as_ref().is_none_or(|met| !met.is_empty()),
            from: met.and_then(places),
        }
    }
}

fn to_reply(found: Found) -> proto::ChangesReply {
    let change = |change: Change| proto::Change {
        key: change.key,
        timestamp: change.timestamp.raw(),
        value: change.value,
        previous: change.previous.map(|before| proto::VersionedValue {
            present: true,
            value: before.version.value.unwrap_or_default(),
            version_ts: before.timestamp.raw(),
        }),
    };
    proto::ChangesReply {
        changes: found.changes.into_iter().map(change).collect(),
        until: Some(proto::ChangePosition {
            timestamp: found.until.timestamp.raw(),
            key: found.until.key,
        }),
        ..Default::default()
    }
}

impl<C: Consensus, S: Store> Engine<C, S> {
    pub(super) async fn changes(&self, call: &mut Call, request: proto::Changes) -> Answer {
        let span = span_here(&call.descriptor, request.span.as_ref())?;
        let to = request.to_ts;
        let changes = Changes::new(span, request)?;
        self.read(call, to, None, Work::Changes(&changes)).await
    }

    /// A hint: neither confirmed, nor a read.
    pub(super) async fn await_write(&self, call: &mut Call, wait: &proto::AwaitWrite) -> Answer {
        let span = span_here(&call.descriptor, wait.span.as_ref())?;
        let lower = keys::addressable(&span.start);
        let upper = keys::addressable_end(&span.end);
        let recent = wait.recent.unwrap_or_default();
        let wait = deadline_after(Duration::from_millis(wait.wait_ms.into()));
        let lost = call.leading.lost();
        let tail = self.consensus.tail();
        let written = tokio::select! {
            biased;
            () = lost.cancelled() => return Err(Refusal::not_leader(None)),
            () = tail.written(recent.epoch, recent.seen, &lower, &upper) => true,
            () = tokio::time::sleep_until(wait.min(call.deadline)) => false,
        };
        let reply = proto::AwaitWriteReply { written };
        Ok((reply::Body::AwaitWrite(reply), Timestamp::ZERO))
    }
}
