//! Locking reads: the memory lock first, in line, then the newest version.

use super::read::GET_BYTES;
use super::wait::Patience;
use super::{Answer, Call, Engine, SchemaCheck};
use crate::command::Tree;
use crate::mvcc::{self, Cursor, Intent, Reader, Store, keys};
use crate::txn::lock_table::{LISTED_MAX, LockError, Wait};
use crate::txn::metrics;
use crate::txn::placement::{Writer, check_key, in_shard};
use crate::txn::refusal::Refusal;
use crate::txn::seam::Consensus;
use crate::txn::wait_graph::Deadlock;
use bytes::Bytes;
use lineradb_common::Timestamp;
use lineradb_common::clock::{Stopwatch, deadline_after};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply};
use std::time::Duration;

/// The longest wait in lock queues when the request names none: a deadlock is
/// assumed then that nobody has found (the metaservice may be away).
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

impl<C: Consensus, S: Store> Engine<C, S> {
    pub(super) async fn locking_read(&self, call: &mut Call, read: &proto::LockingRead) -> Answer {
        let writer = Writer::from_meta(read.txn.as_ref())?;
        for key in &read.keys {
            check_key(&call.descriptor, key)?;
        }
        let requested = match read.read_ts {
            0 => self.clock.now()?.latest,
            at => Timestamp::from_raw(at),
        };
        self.check_ahead(requested)?;
        self.take_locks(call, read, &writer).await?;
        let mut patience = Patience::new();
        loop {
            let leading = call.leading.clone();
            let places = read.keys.iter().map(|key| keys::addressable(key)).collect();
            // It writes nothing: reads need not wait for it. Writes do, so that
            // the newest version stays the newest until it is in the cache.
            let latched = leading.latches.acquire(places, Timestamp::MAX);
            let guard = self.until(call, latched).await?;
            let snapshot = self.store.snapshot();
            self.check_age(call, requested)?;
            let (values, at) = match newest(&snapshot, read, &writer, requested) {
                Ok(newest) => newest,
                Err(mvcc::Error::Locked(locks)) => {
                    drop(guard);
                    let locked = Refusal::locked(locks);
                    self.wait_for_intents(call, &mut patience, Some(writer.contender()), locked)
                        .await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if at > self.clock.now()?.earliest.plus_micros(super::READ_LEAD_US) {
                drop(guard);
                self.wait_readable(call, at).await?;
                continue;
            }
            for key in &read.keys {
                leading.cache.read_point(key, at, Some(writer.id));
            }
            self.still(call)?;
            let schema = self.check_schema(call, at, Some(writer.id), Some(&guard), &[])?;
            drop(guard);
            match schema {
                SchemaCheck::Same => self.confirm(call).await?,
                SchemaCheck::InFlight(changed) => {
                    let _ = self.until(call, changed).await?;
                    continue;
                }
                SchemaCheck::Refused(refusal) if refusal.code() == ErrorCode::Locked => {
                    self.wait_for_intents(call, &mut patience, Some(writer.contender()), refusal)
                        .await?;
                    continue;
                }
                SchemaCheck::Refused(refusal) => {
                    self.confirm(call).await?;
                    return Err(refusal);
                }
            }
            let observed = values.iter().map(|v| v.version_ts).max().unwrap_or(0);
            let reply = proto::LockingReadReply {
                values,
                read_ts: at.raw(),
            };
            return Ok((
                reply::Body::LockingRead(reply),
                Timestamp::from_raw(observed),
            ));
        }
    }

    /// What a span's locks and intents look like now. It decides nothing, so it
    /// needs no confirmed leader.
    pub(super) fn list_locks(&self, call: &Call, list: &proto::ListLocks) -> Answer {
        let span = list.span.clone().unwrap_or_default();
        let inside = |key: &Bytes| *key >= span.start && (span.end.is_empty() || *key < span.end);
        call.leading.locks.expire();
        let mut locks = call
            .leading
            .locks
            .list(|key| inside(key) && in_shard(&call.descriptor, key));
        let lower = keys::addressable(&span.start);
        let upper = keys::addressable_end(&span.end);
        let shard = call.descriptor.span.clone().unwrap_or_default();
        let lower = lower.max(keys::addressable(&shard.start));
        let upper = upper.min(keys::addressable_end(&shard.end));
        let snapshot = self.store.snapshot();
        let mut intents = snapshot.cursor(Tree::Intent, &lower, &upper);
        if lower < upper {
            intents.seek_to_first()?;
        }
        while intents.valid() && locks.len() < LISTED_MAX {
            let intent = Intent::decode(intents.value())?;
            locks.push(proto::LockState {
                key: keys::user_key(intents.key())?,
                txn_id: Bytes::copy_from_slice(&intent.txn.0),
                exclusive: true,
                intent: true,
                waits: false,
                waited_us: 0,
            });
            intents.next()?;
        }
        let reply = proto::ListLocksReply { locks };
        Ok((reply::Body::ListLocks(reply), Timestamp::ZERO))
    }

    async fn take_locks(
        &self,
        call: &mut Call,
        read: &proto::LockingRead,
        writer: &Writer,
    ) -> Result<(), Refusal> {
        let bound = match read.lock_timeout_ms {
            0 => LOCK_WAIT_MAX,
            ms => Duration::from_millis(ms.into()),
        };
        let until = deadline_after(bound);
        let wait = if read.wait {
            Wait::Until(until.min(call.deadline))
        } else {
            Wait::No
        };
        let watch = Stopwatch::start();
        let leading = call.leading.clone();
        let taken = leading
            .locks
            .acquire(&read.keys, writer.contender(), !read.shared, wait);
        let taken = self.until(call, taken).await?;
        let assumed = read.lock_timeout_ms == 0 && watch.elapsed() >= LOCK_WAIT_MAX;
        match taken {
            Err(LockError::TimedOut) if assumed => Err(Refusal::new(
                ErrorCode::Deadlock,
                "a lock was not free for so long that a deadlock is assumed",
            )),
            taken => taken.map_err(lock_refusal),
        }
    }
}

/// The newest committed version of each key (of the first ones, when their
/// values are large), and the timestamp at which all of them hold.
fn newest(
    snapshot: &impl mvcc::Reader,
    read: &proto::LockingRead,
    writer: &Writer,
    requested: Timestamp,
) -> mvcc::Result<(Vec<proto::VersionedValue>, Timestamp)> {
    let mut at = requested;
    let mut values = Vec::with_capacity(read.keys.len());
    let mut bytes = 0;
    for key in &read.keys {
        if bytes >= GET_BYTES {
            break;
        }
        let place = keys::addressable(key);
        let found = mvcc::read_point(snapshot, key, &place, Timestamp::MAX, Some(writer.id))?;
        at = at.max(found.observed);
        bytes += found.value.as_ref().map_or(0, Bytes::len) + 16;
        values.push(proto::VersionedValue {
            present: found.value.is_some(),
            value: found.value.unwrap_or_default(),
            version_ts: found.version_ts.raw(),
        });
    }
    Ok((values, at))
}

/// A lock that was not given, as an error.
pub(super) fn lock_refusal(error: LockError) -> Refusal {
    match error {
        LockError::TimedOut => Refusal::new(
            ErrorCode::LockTimeout,
            "waiting for a lock took longer than allowed",
        ),
        LockError::Silent => Refusal::new(
            ErrorCode::WriteConflict,
            "the transaction was not heard of for five seconds; others came before it",
        ),
        LockError::Deadlock(deadlock) => gives_way(deadlock),
        LockError::Taken(holder) => Refusal::locked(vec![proto::Lock {
            txn_id: Bytes::copy_from_slice(&holder.0),
            ..Default::default()
        }]),
    }
}

/// The error of a transaction that ends a deadlock.
pub(super) fn gives_way(deadlock: Deadlock) -> Refusal {
    metrics::DEADLOCKS.inc();
    tracing::debug!(%deadlock, "a transaction gives way");
    Refusal::deadlock(&deadlock)
}
