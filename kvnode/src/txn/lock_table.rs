//! Memory locks: what lets contended transactions wait in line instead of
//! aborting each other.
//!
//! They live in the leader's memory alone and vanish with it; correctness never
//! rests on them but on intents, on `replaces` checks and on the timestamp
//! cache (PROTOCOLS X4). First in, first out per key; a holder that asks for
//! more (shared, then exclusive) goes to the front. A lock expires five seconds
//! after its transaction was last heard of, and whoever was not heard of for so long
//! does not get one: else each waiter of a dead gateway would hold up the others
//! for another five seconds, one after the other.
//!
//! Whoever waits enters the node's [`WaitGraph`], and is woken when it has to give
//! way to end a deadlock. A wait that no deadlock explains ends by its bound.

mod list;
mod state;

use super::wait_graph::{Contender, Deadlock, GiveUp, LOCK_WAIT_LASTS, WaitGraph, Waiting};
use bytes::Bytes;
use lineradb_common::TxnId;
use lineradb_common::clock::{Stopwatch, deadline_after};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use list::LISTED_MAX;
use state::{Holder, State, Waiter};

/// How long a lock lives without a heartbeat of its transaction.
const EXPIRY: Duration = Duration::from_secs(5);
/// How often a waiter looks whether a holder has expired, and who is ahead of it.
const RECHECK: Duration = Duration::from_millis(250);

/// Why a lock was not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockError {
    /// It is taken, and the caller would not wait; by whom.
    Taken(TxnId),
    /// Not free before the deadline, or before its transaction was over.
    TimedOut,
    /// Its transaction was not heard of for too long.
    Silent,
    /// It waits in a circle and gives way.
    Deadlock(Deadlock),
}

impl From<GiveUp> for LockError {
    fn from(why: GiveUp) -> Self {
        match why {
            GiveUp::Deadlock(deadlock) => LockError::Deadlock(deadlock),
            GiveUp::Over => LockError::TimedOut,
        }
    }
}

/// Whether and how long to wait for a lock.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until then.
    Until(Instant),
}

/// The memory locks of one shard's leader.
pub struct LockTable {
    state: Mutex<State>,
    /// Keys locked: nearly always none, and then nobody looks further.
    locked: AtomicUsize,
    graph: Arc<WaitGraph>,
}

impl LockTable {
    /// An empty table whose waiters enter the node's graph.
    pub fn new(graph: Arc<WaitGraph>) -> Self {
        LockTable {
            state: Mutex::new(State::new()),
            locked: AtomicUsize::new(0),
            graph,
        }
    }

    /// Takes the locks of `keys` for a transaction, in sorted order. On an
    /// error those already taken stay: the transaction releases all it has.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn acquire(
        &self,
        keys: &[Bytes],
        who: Contender,
        exclusive: bool,
        wait: Wait,
    ) -> Result<(), LockError> {
        let mut sorted: Vec<&Bytes> = keys.iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        for key in sorted {
            self.acquire_one(key, who, exclusive, wait, true).await?;
        }
        Ok(())
    }

    /// Waits behind the locks of others on `keys`, as a write without locks of
    /// its own does. It takes the locks on which it had to wait, so that it
    /// comes in its turn, and gives them back when the answer is dropped.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn pass<'a>(
        &self,
        keys: impl Iterator<Item = &'a Bytes>,
        who: Contender,
        wait: Wait,
    ) -> Result<Turn<'_>, LockError> {
        let mut turn = Turn {
            table: self,
            txn: who.id,
            keys: Vec::new(),
        };
        if self.locked.load(Ordering::Acquire) == 0 {
            return Ok(turn);
        }
        let wants = Holder {
            txn: who.id,
            exclusive: true,
        };
        let mut taken: Vec<&Bytes> = {
            let state = self.state.lock();
            let conflicts =
                |key: &&Bytes| state.locks.get(*key).is_some_and(|l| l.conflicts(wants));
            keys.filter(conflicts).collect()
        };
        taken.sort_unstable();
        for key in taken {
            self.acquire_one(key, who, true, wait, false).await?;
            turn.keys.push(key.clone());
        }
        Ok(turn)
    }

    async fn acquire_one(
        &self,
        key: &Bytes,
        who: Contender,
        exclusive: bool,
        wait: Wait,
        beats: bool,
    ) -> Result<(), LockError> {
        let wants = Holder {
            txn: who.id,
            exclusive,
        };
        let (mut granted, waiting, deadline) = {
            let mut state = self.state.lock();
            state.expire_holders(key, &self.locked);
            let lock = state.lock_of(key, &self.locked);
            let holds = lock.holders.iter().find(|h| h.txn == wants.txn).copied();
            let enough = holds.is_some_and(|h| h.exclusive || !wants.exclusive);
            let place = if holds.is_some() { 0 } else { lock.queue.len() };
            let ahead = lock.ahead_of(wants, place);
            if enough || ahead.is_empty() {
                state.grant(key, wants, Stopwatch::start());
                state.hear(who.id);
                return Ok(());
            }
            let Wait::Until(deadline) = wait else {
                return Err(LockError::Taken(ahead[0]));
            };
            let waiting = self.graph.enter(who, ahead);
            let waiting = waiting.map_err(LockError::Deadlock)?;
            let (granted, receiver) = oneshot::channel();
            let waiter = Waiter {
                wants,
                beats,
                since: Stopwatch::start(),
                ticket: waiting.ticket(),
                granted,
            };
            lock.queue.insert(place, waiter);
            if beats {
                state.begin_wait(who.id);
            }
            (receiver, waiting, deadline)
        };
        let place = Place {
            table: self,
            key,
            ticket: waiting.ticket(),
        };
        let mut recheck = LOCK_WAIT_LASTS;
        loop {
            let until = deadline_after(recheck).min(deadline);
            tokio::select! {
                biased;
                outcome = &mut granted => {
                    if outcome.is_ok() {
                        std::mem::forget(place);
                    }
                    return outcome.map_err(|_| LockError::Silent);
                }
                () = waiting.woken() => {}
                () = tokio::time::sleep_until(until) => {
                    if until == deadline {
                        return Err(LockError::TimedOut);
                    }
                    recheck = RECHECK;
                }
            }
            self.look(key, wants, &waiting)?;
        }
    }

    /// A waiter looks who is ahead of it by now.
    fn look(&self, key: &Bytes, wants: Holder, waiting: &Waiting<'_>) -> Result<(), LockError> {
        let mut state = self.state.lock();
        state.expire_holders(key, &self.locked);
        let ahead = state.locks.get(key).and_then(|lock| {
            let ticket = waiting.ticket();
            let place = lock.queue.iter().position(|w| w.ticket == ticket)?;
            Some(lock.ahead_of(wants, place))
        });
        match ahead {
            Some(ahead) => waiting.look(ahead).map_err(LockError::from),
            // Granted in this moment.
            None => Ok(()),
        }
    }

    /// Releases everything that a transaction holds: it is over, and what still
    /// waits for it is told.
    pub fn release(&self, txn: TxnId) {
        if self.locked.load(Ordering::Acquire) > 0 {
            self.state.lock().release(txn, &self.locked);
            self.graph.end(txn);
        }
    }

    /// Hears of a live coordinator.
    pub fn heartbeat(&self, txn: TxnId) {
        self.state.lock().hear(txn);
    }

    /// Releases what transactions hold that have not been heard of for too long. Who
    /// waits for such a lock looks for himself; this is for those that nobody wants.
    pub fn expire(&self) {
        self.release_silent(EXPIRY);
    }

    fn release_silent(&self, silence: Duration) {
        let mut state = self.state.lock();
        let silent = state
            .owners
            .iter()
            .filter(|(_, owner)| owner.heard.elapsed() > silence);
        let gone: Vec<TxnId> = silent.map(|(txn, _)| *txn).collect();
        for txn in &gone {
            state.release(*txn, &self.locked);
        }
        drop(state);
        gone.into_iter().for_each(|txn| self.graph.end(txn));
    }

    /// How many keys are locked.
    pub fn locked(&self) -> usize {
        self.locked.load(Ordering::Relaxed)
    }
}

/// Locks taken only to come in turn; dropping gives them back.
pub struct Turn<'a> {
    table: &'a LockTable,
    txn: TxnId,
    keys: Vec<Bytes>,
}

impl Turn<'_> {
    /// The locks stay until the transaction releases all it has.
    pub fn keep(mut self) {
        self.keys.clear();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut state = self.table.state.lock();
        for key in &self.keys {
            state.release_one(key, self.txn, &self.table.locked);
        }
    }
}

/// A waiter that goes away, or whose lock was granted in the very moment: then
/// it holds it until its transaction releases all it has.
struct Place<'a> {
    table: &'a LockTable,
    key: &'a Bytes,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.table.state.lock();
        if let Some(lock) = state.locks.get_mut(self.key)
            && let Some(at) = lock.queue.iter().position(|w| w.ticket == self.ticket)
            && let Some(waiter) = lock.queue.remove(at)
        {
            state.end_wait(&waiter);
        }
        state.hand_over(self.key, &self.table.locked);
    }
}

#[cfg(test)]
mod tests;
