//! Keeps the history that long transactions read.
//!
//! Shards forget what is older than the kept history (4 hours unless said otherwise,
//! 10 minutes at least). A report or a dump that takes longer still reads at the
//! timestamp at which it began. So a process whose oldest transaction has lasted for
//! [`PROTECT_AFTER`] has that timestamp protected by the metaservice (PROTOCOLS X5),
//! and goes on to renew it: one protection for a process, whatever runs there.
//!
//! What may be protected is young, or protected already ([`wanted`]): a transaction
//! that reads the past (`AS OF SYSTEM TIME`) may have begun too far back, and takes
//! its chances, as does one that lasts for longer than [`PROTECT_MAX`]: somebody has
//! forgotten to end it, and it must not keep the garbage of a cluster for ever. A
//! transaction counts from its beginning, at READ COMMITTED too: a cursor of its first
//! statement may still be open.

use crate::Error;
use crate::client::Shared;
use crate::metrics::PROTECTED_SECONDS;
use bytes::Bytes;
use lineradb_common::clock::deadline_after;
use lineradb_common::limits::PROTECTED_AGE_MAX;
use lineradb_common::{Timestamp, TxnId, random};
use lineradb_proto::meta::v1::ProtectRequest;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Shorter transactions need none: no threshold rises above them.
const PROTECT_AFTER: Duration = Duration::from_secs(2 * 60);
/// Longer ones get none any more.
const PROTECT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked for them.
const ROUND: Duration = Duration::from_secs(30);
/// A process that is gone holds history for so long.
const LEASE: Duration = Duration::from_secs(10 * 60);
/// The last moment at which protection is asked for is not the last at which it is
/// granted: clocks differ, and messages take their time.
const MARGIN: Duration = Duration::from_secs(60);

/// The transactions of a process, with the timestamps at which they began to read.
#[derive(Debug, Default)]
pub(crate) struct OpenTransactions(Mutex<HashMap<TxnId, Timestamp>>);

/// A transaction is open until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    all: Arc<OpenTransactions>,
    id: TxnId,
}

impl OpenTransactions {
    /// A transaction begins.
    pub(crate) fn open(self: &Arc<Self>, id: TxnId, reads_at: Timestamp) -> Open {
        self.0.lock().insert(id, reads_at);
        Open {
            all: self.clone(),
            id,
        }
    }

    fn timestamps(&self) -> Vec<Timestamp> {
        self.0.lock().values().copied().collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.id);
    }
}

/// The timestamp to protect, of transactions that read at these.
fn wanted(
    open: impl IntoIterator<Item = Timestamp>,
    held: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    let before = |age: Duration| {
        let age = age.as_micros() as u64;
        Timestamp::from_micros(now.micros().saturating_sub(age))
    };
    let oldest = held.unwrap_or_else(|| before(PROTECTED_AGE_MAX - MARGIN));
    let oldest = oldest.max(before(PROTECT_MAX));
    let protectable = open.into_iter().filter(|reads_at| *reads_at >= oldest);
    protectable.min().filter(|at| *at <= before(PROTECT_AFTER))
}

/// A protection of this process.
struct Held {
    /// Another one for each protection: a delayed request of an earlier one does
    /// nothing to it.
    id: Bytes,
    timestamp: Timestamp,
    /// The metaservice has said that it holds.
    granted: bool,
}

/// Protects what long transactions read, for as long as somebody holds the client.
pub(crate) async fn keep(shared: Weak<Shared>) {
    let mut held: Option<Held> = None;
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let Ok(now) = shared.clock.now() else {
            continue;
        };
        held = round(&shared, held, now.earliest).await;
        let granted = held.as_ref().filter(|held| held.granted);
        let age = granted.map_or(0, |held| {
            now.latest.micros().saturating_sub(held.timestamp.micros())
        });
        PROTECTED_SECONDS.set((age / 1_000_000) as i64);
    }
}

/// Asks for what is wanted now; answers what is held afterwards. Only when the
/// metaservice says that it is too late is a protection taken for lost: without an
/// answer the record may stand, for the metaservice was away and counts no silence
/// for that time.
async fn round(shared: &Shared, held: Option<Held>, now: Timestamp) -> Option<Held> {
    let before = held.as_ref().map(|held| held.timestamp);
    let wanted = wanted(shared.open.timestamps(), before, now);
    let (mut held, request) = match (wanted, held) {
        (None, None) => return None,
        (None, Some(held)) => {
            let id = held.id.clone();
            (
                held,
                ProtectRequest {
                    id,
                    ..ProtectRequest::default()
                },
            )
        }
        (Some(timestamp), held) => {
            let granted = held.as_ref().is_some_and(|held| held.granted);
            let id = held.map_or_else(|| Bytes::copy_from_slice(&random::bytes::<16>()), |h| h.id);
            let request = ProtectRequest {
                id: id.clone(),
                timestamp: timestamp.raw(),
                lease_ms: LEASE.as_millis() as u32,
            };
            (
                Held {
                    id,
                    timestamp,
                    granted,
                },
                request,
            )
        }
    };
    let answer = shared.router.meta().protect(request, deadline_after(ROUND));
    match answer.await {
        // Given back; if that was lost, it ends with its lease.
        _ if wanted.is_none() => return None,
        Ok(()) => held.granted = true,
        Err(Error::Invalid { message }) => {
            tracing::warn!(
                message,
                "a long read is not protected from the collection any more"
            );
            return None;
        }
        Err(error @ Error::Limit { .. }) => {
            tracing::warn!(%error, "a long read is not protected from the collection");
        }
        Err(error) => {
            tracing::debug!(%error, "a long read is not protected, or not for longer");
        }
    }
    Some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn ago(minutes: u64) -> Timestamp {
        Timestamp::from_micros((NOW - minutes * 60) * 1_000_000)
    }

    fn wanted_of(open: &[u64], held: Option<u64>) -> Option<Timestamp> {
        let open = open.iter().map(|minutes| ago(*minutes));
        wanted(open, held.map(ago), ago(0))
    }

    #[test]
    fn the_oldest_that_can_be_protected_is() {
        assert_eq!(wanted_of(&[], None), None);
        assert_eq!(wanted_of(&[0, 1], None), None, "short ones need none");
        assert_eq!(wanted_of(&[0, 3, 5], None), Some(ago(5)));
        assert_eq!(wanted_of(&[9, 120], None), None, "it is too late for these");
        assert_eq!(wanted_of(&[120, 4], None), Some(ago(4)), "and not for this");
        // What is protected already may be old.
        assert_eq!(wanted_of(&[120, 4], Some(120)), Some(ago(120)));
        assert_eq!(wanted_of(&[120, 119], Some(119)), Some(ago(119)));
        assert_eq!(wanted_of(&[4], Some(120)), Some(ago(4)));
        assert_eq!(wanted_of(&[1], Some(120)), None, "it is given back");
        // Nobody holds a cluster's garbage for ever.
        assert_eq!(wanted_of(&[25 * 60, 4], Some(25 * 60)), Some(ago(4)));
    }

    #[test]
    fn a_transaction_is_open_until_it_is_dropped() {
        let all = Arc::new(OpenTransactions::default());
        let first = all.open(TxnId([1; 16]), ago(2));
        let second = all.open(TxnId([2; 16]), ago(1));
        drop(first);
        assert_eq!(all.timestamps(), [ago(1)]);
        drop(second);
        assert!(all.timestamps().is_empty());
    }
}
