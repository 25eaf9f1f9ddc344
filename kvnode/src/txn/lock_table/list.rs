//! A lock table as people see it.

use super::{Holder, LockTable};
use bytes::Bytes;
use lineradb_common::TxnId;
use lineradb_common::clock::Stopwatch;
use lineradb_proto::shard::v1 as proto;

/// Locks that one answer shows.
pub const LISTED_MAX: usize = 10_000;

impl LockTable {
    /// The locks of keys of a kind, and who waits for them, in line; not more than
    /// [`LISTED_MAX`] and the waiters of one key.
    pub fn list(&self, wanted: impl Fn(&Bytes) -> bool) -> Vec<proto::LockState> {
        let mut listed = Vec::new();
        let state = self.state.lock();
        for (key, lock) in state.locks.iter().filter(|(key, _)| wanted(key)) {
            let holders = lock.holders.iter().map(|holder| show(key, holder, None));
            listed.extend(holders);
            let queue = lock.queue.iter();
            let waiting = queue.filter(|waiter| !waiter.granted.is_closed());
            listed.extend(waiting.map(|waiter| show(key, &waiter.wants, Some(&waiter.since))));
            if listed.len() >= LISTED_MAX {
                break;
            }
        }
        listed
    }
}

fn show(key: &Bytes, holder: &Holder, since: Option<&Stopwatch>) -> proto::LockState {
    let TxnId(id) = holder.txn;
    proto::LockState {
        key: key.clone(),
        txn_id: Bytes::copy_from_slice(&id),
        exclusive: holder.exclusive,
        intent: false,
        waits: since.is_some(),
        waited_us: since.map_or(0, |since| u64::from(since.elapsed_us())),
    }
}
