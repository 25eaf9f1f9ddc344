//! Who waits for whom on this node, and who gives way when transactions wait for
//! each other in a circle.
//!
//! ```text
//!  T1 holds x, waits for y       lock table of one shard      T1 -> T2
//!  T2 holds y, waits for x       of the same or another       T2 -> T1
//! ```
//!
//! Two kinds of waits enter. A *lock wait* is a request in the queue of a memory
//! lock. An *intent wait* is a transaction that met an undecided write and asks
//! again and again until that is decided: the write's owner may be waiting for a
//! lock itself, in the middle of its commit. Two transactions that lay intents
//! settle it among themselves (the client's `contention.rs`), so that intent waits
//! count only when they have outlived that.
//!
//! A circle inside the node is seen by whoever closes it, one over several nodes
//! by the metaservice, to which waits that last are reported (`service/waits.rs`).
//! Either way its **youngest** transaction gives way: it has done the least so far.
//! Its wait is woken, looks whether it still waits for the one that it is said to
//! wait for, and ends with the circle as its error; if not, it goes on waiting.
//! Whether the others still wait as they did is not looked at again: at worst
//! somebody gives way for nothing and is tried again.
//!
//! Waits know the nearest ones ahead only, and look every quarter of a second who
//! that is by now: a circle may be seen that much later than it is closed.
//!
//! Nothing here waits while it holds the mutex. Where a lock table's mutex is held,
//! too, it was taken first.

mod deadlock;
mod waits;

pub use deadlock::{Contender, Deadlock};
pub use waits::LOCK_WAIT_LASTS;

use lineradb_common::{ShardId, TxnId};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;
use waits::{At, Wait, Waits};

/// Waits that one report names at most: those that have lasted longest.
const REPORTED_MAX: usize = 4096;
/// Transactions that one of them names at most, and that a wait for intents knows.
const HOLDERS_MAX: usize = 64;

/// Why a wait ends without what it waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// It gives way.
    Deadlock(Deadlock),
    /// Its transaction is over.
    Over,
}

/// A wait as it is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingWait {
    /// Who waits.
    pub waiter: Contender,
    /// For whom.
    pub holders: Vec<TxnId>,
}

/// Who waits for whom on this node.
#[derive(Default)]
pub struct WaitGraph {
    waits: Mutex<Waits>,
    /// A wait begins to last.
    lasts: Notify,
}

impl WaitGraph {
    /// A request joins the queue of a lock, behind these.
    ///
    /// # Errors
    /// It would close a circle as its youngest: it must not join.
    pub fn enter(&self, who: Contender, holders: Vec<TxnId>) -> Result<Waiting<'_>, Deadlock> {
        let wake = Arc::new(Notify::new());
        let mut waits = self.waits.lock();
        let ticket = waits.next_ticket();
        let at = At::Queue(ticket);
        waits.join(who, Wait::new(at, holders, Some(wake.clone())));
        if let Err(deadlock) = waits.settle(who.id) {
            waits.leave(who.id, at);
            return Err(deadlock);
        }
        Ok(Waiting {
            graph: self,
            who: who.id,
            ticket,
            wake,
        })
    }

    /// A transaction has met intents of these in a shard. It is taken to wait
    /// until it passes, or does not ask again.
    ///
    /// # Errors
    /// It has to give way.
    pub fn meet(
        &self,
        who: Contender,
        shard: ShardId,
        mut owners: Vec<TxnId>,
    ) -> Result<(), Deadlock> {
        owners.retain(|owner| *owner != who.id);
        owners.sort_unstable();
        owners.dedup();
        owners.truncate(HOLDERS_MAX);
        let at = At::Intents(shard);
        let mut waits = self.waits.lock();
        waits.forget_lapsed(who.id);
        if !waits.contains(who.id, at) {
            waits.sweep_when_many();
            waits.join(who, Wait::new(at, owners.clone(), None));
        }
        match waits.look(who.id, at, owners) {
            Ok(begins) => {
                drop(waits);
                self.tell(begins);
                Ok(())
            }
            Err(GiveUp::Deadlock(deadlock)) => {
                waits.leave(who.id, at);
                Err(deadlock)
            }
            // What comes of the request is nobody's concern any more.
            Err(GiveUp::Over) => Ok(()),
        }
    }

    /// It met none any more.
    pub fn pass(&self, txn: TxnId, shard: ShardId) {
        self.waits.lock().leave(txn, At::Intents(shard));
    }

    /// A transaction is over: what still waits for it waits in vain.
    pub fn end(&self, txn: TxnId) {
        self.waits.lock().end(txn);
    }

    /// Somebody else has seen a circle. Its victim is told, if it waits here for
    /// its blocker; answers whether it does.
    pub fn condemn(&self, deadlock: Deadlock) -> bool {
        self.waits.lock().condemn(deadlock)
    }

    /// Returns when a wait begins to last, or has since this was asked last.
    pub async fn lasts(&self) {
        self.lasts.notified().await;
    }

    /// The waits that last, without those of transactions that give way.
    pub fn lasting(&self) -> Vec<LastingWait> {
        let mut lasting = self.waits.lock().lasting();
        if lasting.len() > REPORTED_MAX {
            lasting.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
            lasting.truncate(REPORTED_MAX);
        }
        lasting.into_iter().map(|(_, wait)| wait).collect()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waits.lock().is_empty()
    }

    fn tell(&self, begins: bool) {
        if begins {
            self.lasts.notify_one();
        }
    }
}

/// A request in the queue of a lock; dropped when it is not any more.
pub struct Waiting<'a> {
    graph: &'a WaitGraph,
    who: TxnId,
    ticket: u64,
    wake: Arc<Notify>,
}

impl Waiting<'_> {
    /// Tells this wait from all others.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Returns when it has to look before its time.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Looks who is ahead by now.
    ///
    /// # Errors
    /// It must not wait any more.
    pub fn look(&self, holders: Vec<TxnId>) -> Result<(), GiveUp> {
        let at = At::Queue(self.ticket);
        let begins = self.graph.waits.lock().look(self.who, at, holders)?;
        self.graph.tell(begins);
        Ok(())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let at = At::Queue(self.ticket);
        self.graph.waits.lock().leave(self.who, at);
    }
}

#[cfg(test)]
mod tests;
