//! The locks of one shard as plain data: who holds what, who waits behind whom, and
//! when which transaction was heard of.

use super::EXPIRY;
use bytes::Bytes;
use lineradb_common::TxnId;
use lineradb_common::clock::Stopwatch;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

pub(super) struct State {
    pub(super) locks: HashMap<Bytes, Lock>,
    pub(super) owners: HashMap<TxnId, Owner>,
    /// Transactions with waiters that beat.
    pub(super) waiting: HashMap<TxnId, Waits>,
    /// [`EXPIRY`]
    pub(super) expiry: Duration,
}

pub(super) struct Waits {
    pub(super) count: usize,
    pub(super) heard: Stopwatch,
}

pub(super) struct Owner {
    pub(super) keys: Vec<Bytes>,
    pub(super) heard: Stopwatch,
}

#[derive(Default)]
pub(super) struct Lock {
    pub(super) holders: Vec<Holder>,
    pub(super) queue: VecDeque<Waiter>,
}

#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub(super) txn: TxnId,
    pub(super) exclusive: bool,
}

pub(super) struct Waiter {
    pub(super) wants: Holder,
    /// Its transaction sends heartbeats. A commit that waits for its turn need not: it
    /// gives the lock back when it is done, heard or not.
    pub(super) beats: bool,
    pub(super) since: Stopwatch,
    /// Its number in the graph.
    pub(super) ticket: u64,
    pub(super) granted: oneshot::Sender<()>,
}

impl Lock {
    pub(super) fn conflicts(&self, wants: Holder) -> bool {
        let other = |h: &Holder| h.txn != wants.txn && (h.exclusive || wants.exclusive);
        self.holders.iter().any(other) || self.queue.iter().any(|w| other(&w.wants))
    }

    /// For whom somebody waits who stands at this place of the queue: conflicting
    /// waiters in front of it, back to the nearest one that wants the lock for itself
    /// and so waits for all the others; without such a one, conflicting holders as
    /// well.
    pub(super) fn ahead_of(&self, wants: Holder, place: usize) -> Vec<TxnId> {
        let other = |h: &Holder| h.txn != wants.txn && (h.exclusive || wants.exclusive);
        let mut ahead = Vec::new();
        for waiter in self.queue.range(..place).rev() {
            if waiter.granted.is_closed() || !other(&waiter.wants) {
                continue;
            }
            ahead.push(waiter.wants.txn);
            if waiter.wants.exclusive {
                return ahead;
            }
        }
        let holders = self.holders.iter().filter(|holder| other(holder));
        ahead.extend(holders.map(|holder| holder.txn));
        ahead
    }
}

impl State {
    pub(super) fn new() -> Self {
        State {
            locks: HashMap::new(),
            owners: HashMap::new(),
            waiting: HashMap::new(),
            expiry: EXPIRY,
        }
    }

    pub(super) fn lock_of(&mut self, key: &Bytes, locked: &AtomicUsize) -> &mut Lock {
        // The key is copied: a slice of a request would keep its whole frame.
        if !self.locks.contains_key(key) {
            locked.fetch_add(1, Ordering::AcqRel);
            self.locks
                .insert(Bytes::copy_from_slice(key), Lock::default());
        }
        self.locks.entry(key.clone()).or_default()
    }

    /// Gives a lock to a transaction that was heard of at `heard`, or later if it has
    /// others.
    pub(super) fn grant(&mut self, key: &Bytes, wants: Holder, heard: Stopwatch) {
        let Some(lock) = self.locks.get_mut(key) else {
            return;
        };
        match lock.holders.iter_mut().find(|h| h.txn == wants.txn) {
            Some(holder) => holder.exclusive |= wants.exclusive,
            None => {
                lock.holders.push(wants);
                let owner = self.owners.entry(wants.txn).or_insert_with(|| Owner {
                    keys: Vec::new(),
                    heard,
                });
                owner.keys.push(Bytes::copy_from_slice(key));
            }
        }
    }

    /// A request that waits is a sign of life, too.
    pub(super) fn begin_wait(&mut self, txn: TxnId) {
        let heard = Stopwatch::start();
        let waits = self.waiting.entry(txn);
        waits.or_insert(Waits { count: 0, heard }).count += 1;
        self.hear(txn);
    }

    /// A waiter has left its queue; when its transaction was heard of.
    pub(super) fn end_wait(&mut self, waiter: &Waiter) -> Stopwatch {
        let txn = waiter.wants.txn;
        let waits = self.waiting.get_mut(&txn).filter(|_| waiter.beats);
        let Some(waits) = waits else {
            return Stopwatch::start();
        };
        let heard = waits.heard;
        waits.count -= 1;
        if waits.count == 0 {
            self.waiting.remove(&txn);
        }
        heard
    }

    pub(super) fn hear(&mut self, txn: TxnId) {
        if let Some(owner) = self.owners.get_mut(&txn) {
            owner.heard = Stopwatch::start();
        }
        if let Some(waits) = self.waiting.get_mut(&txn) {
            waits.heard = Stopwatch::start();
        }
    }

    /// Gives the lock to those at the front of its queue.
    pub(super) fn hand_over(&mut self, key: &Bytes, locked: &AtomicUsize) {
        loop {
            let Some(lock) = self.locks.get_mut(key) else {
                return;
            };
            let Some(waiter) = lock.queue.front() else {
                break;
            };
            let wants = waiter.wants;
            let heard = self.waiting.get(&wants.txn).map(|waits| waits.heard);
            let silent = waiter.beats && heard.is_none_or(|h| h.elapsed() > self.expiry);
            let other = |h: &Holder| h.txn != wants.txn && (h.exclusive || wants.exclusive);
            let goes = silent || waiter.granted.is_closed();
            if !goes && lock.holders.iter().any(other) {
                break;
            }
            let Some(waiter) = lock.queue.pop_front() else {
                break;
            };
            let heard = self.end_wait(&waiter);
            if !silent && waiter.granted.send(()).is_ok() {
                self.grant(key, wants, heard);
            }
        }
        if let Some(lock) = self.locks.get(key)
            && lock.holders.is_empty()
            && lock.queue.is_empty()
        {
            self.locks.remove(key);
            locked.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(super) fn release_one(&mut self, key: &Bytes, txn: TxnId, locked: &AtomicUsize) {
        if let Some(owner) = self.owners.get_mut(&txn) {
            owner.keys.retain(|held| held != key);
            if owner.keys.is_empty() {
                self.owners.remove(&txn);
            }
        }
        if let Some(lock) = self.locks.get_mut(key) {
            lock.holders.retain(|h| h.txn != txn);
        }
        self.hand_over(key, locked);
    }

    pub(super) fn release(&mut self, txn: TxnId, locked: &AtomicUsize) {
        let Some(owner) = self.owners.remove(&txn) else {
            return;
        };
        for key in owner.keys {
            if let Some(lock) = self.locks.get_mut(&key) {
                lock.holders.retain(|h| h.txn != txn);
            }
            self.hand_over(&key, locked);
        }
    }

    pub(super) fn expire_holders(&mut self, key: &Bytes, locked: &AtomicUsize) {
        let Some(lock) = self.locks.get(key) else {
            return;
        };
        let expired = |txn: &TxnId| {
            let owner = self.owners.get(txn);
            owner.is_none_or(|owner| owner.heard.elapsed() > self.expiry)
        };
        let gone: Vec<TxnId> = lock.holders.iter().map(|h| h.txn).filter(expired).collect();
        for txn in gone {
            self.release(txn, locked);
        }
    }
}
