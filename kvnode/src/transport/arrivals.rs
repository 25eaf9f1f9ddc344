//! Keeps the order of arrival while a replica is being born.
//!
//! What comes for a replica that is here is handed to it at once, in the order of
//! arrival. What comes a moment too early (a child reached by its leader before its
//! node has applied the split, or has replayed it after a restart) waits; so does what
//! comes after it, until all that came before has been handed over. Appends are sent many
//! at a time, each on the strength of the one before: handed over in another order the later
//! one is a conflict, and the leader takes it that a log has lost what it had
//! acknowledged.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// Shard and replica.
type Key = (u64, u64);

/// Those who wait, by replica; empty nearly always.
#[derive(Default)]
pub(crate) struct Arrivals(Mutex<HashMap<Key, Arc<Queue<()>>>>);

/// A place in the order of arrival; dropping it lets the next one pass.
pub(crate) struct Place {
    arrivals: Arc<Arrivals>,
    key: Key,
    /// `None`: nobody waits.
    queue: Option<Arc<Queue<()>>>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Arrivals {
    /// Somebody comes for a replica; `here` tells whether it is there.
    pub fn enter(self: &Arc<Self>, key: Key, here: impl FnOnce() -> bool) -> Place {
        let mut waiting = self.0.lock();
        let queue = match waiting.get(&key) {
            Some(queue) => Some(queue.clone()),
            None if here() => None,
            None => Some(waiting.entry(key).or_default().clone()),
        };
        Place {
            arrivals: self.clone(),
            key,
            queue,
            turn: None,
        }
    }
}

impl Place {
    /// Waits for those who came before. Places are taken by the first poll.
    pub async fn turn(&mut self) {
        if let Some(queue) = &self.queue {
            self.turn = Some(queue.clone().lock_owned().await);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.turn.take());
        let Some(queue) = self.queue.take() else {
            return;
        };
        let mut waiting = self.arrivals.0.lock();
        drop(queue);
        // Places are made and given up under the lock: the map's is the last one.
        if waiting
            .get(&self.key)
            .is_some_and(|q| Arc::strong_count(q) == 1)
        {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Notify;

    /// A replica that is born in the middle.
    #[derive(Default)]
    struct Replica {
        here: AtomicBool,
        born: Notify,
        handed_over: Mutex<Vec<u32>>,
    }

    async fn arrive(arrivals: Arc<Arrivals>, replica: Arc<Replica>, number: u32) {
        let mut place = arrivals.enter((1, 2), || replica.here.load(Ordering::SeqCst));
        place.turn().await;
        while !replica.here.load(Ordering::SeqCst) {
            replica.born.notified().await;
        }
        replica.handed_over.lock().push(number);
    }

    #[test]
    fn nobody_overtakes_those_who_wait() {
        let (arrivals, replica) = (Arc::<Arrivals>::default(), Arc::<Replica>::default());
        let come = |number| arrive(arrivals.clone(), replica.clone(), number).boxed();
        let (mut first, mut second) = (come(1), come(2));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        replica.here.store(true, Ordering::SeqCst);
        replica.born.notify_waiters();
        // The last one comes when the replica is there, and is looked at first.
        let mut third = come(3);
        assert!(third.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(first.now_or_never().is_some());
        assert!(second.now_or_never().is_some());
        assert!(third.now_or_never().is_some());
        assert_eq!(*replica.handed_over.lock(), [1, 2, 3]);
        // From here on nobody waits.
        assert!(arrivals.0.lock().is_empty());
        assert!(come(4).now_or_never().is_some());
    }
}
