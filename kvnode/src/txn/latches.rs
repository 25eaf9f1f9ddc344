//! Latches: who is writing which key right now.
//!
//! A write holds the latches of its keys from before it looks at the timestamp
//! cache until its log entry is applied or can no longer be (PROTOCOLS L3).
//! First in, first out per key; several keys are taken in sorted order, so that
//! two writers never wait for each other.
//!
//! Reads hold nothing. A read first enters the timestamp cache, then waits for
//! the writes that were in flight at that moment at or below its timestamp; a
//! write that came later has seen the read in the cache and goes above it.
//! [`Latches::instant`] is that moment: writers are numbered as they get their
//! latches, and only smaller numbers are waited for.

use bytes::Bytes;
use lineradb_common::Timestamp;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::oneshot;

const STRIPES: usize = 16;

/// The latches of one shard's leader.
#[derive(Default)]
pub struct Latches {
    stripes: [Mutex<BTreeMap<Bytes, Entry>>; STRIPES],
    /// Numbers the holders in the order in which they got a latch.
    numbers: AtomicU64,
    /// Names the guards.
    owners: AtomicU64,
    held: AtomicUsize,
}

struct Entry {
    number: u64,
    owner: u64,
    /// `ZERO` until the holder has chosen its timestamp.
    timestamp: Timestamp,
    queue: VecDeque<Waiter>,
    readers: Vec<oneshot::Sender<()>>,
}

struct Waiter {
    owner: u64,
    granted: oneshot::Sender<()>,
}

/// Latches held; dropping releases them.
pub struct LatchGuard {
    latches: Arc<Latches>,
    owner: u64,
    keys: Vec<Bytes>,
}

/// A place in the queue of one latch; dropping it leaves the queue, or gives
/// back a latch that was granted in the same moment.
struct Place<'a> {
    latches: &'a Latches,
    key: &'a Bytes,
    granted: oneshot::Receiver<()>,
    done: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.granted.close();
            if self.granted.try_recv().is_ok() {
                self.latches.release(self.key);
            }
        }
    }
}

impl Latches {
    fn stripe(&self, key: &[u8]) -> &Mutex<BTreeMap<Bytes, Entry>> {
        let hash = xxhash_rust::xxh3::xxh3_64(key);
        &self.stripes[hash as usize % STRIPES]
    }

    /// Waits for the latches of `keys` (addressable). `timestamp` is `ZERO`
    /// when it is chosen later; until then every read waits.
    pub async fn acquire(
        self: &Arc<Self>,
        mut keys: Vec<Bytes>,
        timestamp: Timestamp,
    ) -> LatchGuard {
        if keys.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        let owner = self.owners.fetch_add(1, Ordering::Relaxed);
        let mut guard = LatchGuard {
            latches: self.clone(),
            owner,
            keys: Vec::with_capacity(keys.len()),
        };
        for key in keys {
            if let Some(granted) = self.take_or_queue(&key, owner, timestamp) {
                let mut place = Place {
                    latches: self,
                    key: &key,
                    granted,
                    done: false,
                };
                // The sender is dropped without a grant only with the table.
                let granted = (&mut place.granted).await.is_ok();
                place.done = granted;
                drop(place);
                if !timestamp.is_zero() {
                    self.set_timestamp(&key, timestamp);
                }
            }
            guard.keys.push(key);
        }
        guard
    }

    fn take_or_queue(
        &self,
        key: &Bytes,
        owner: u64,
        timestamp: Timestamp,
    ) -> Option<oneshot::Receiver<()>> {
        let mut stripe = self.stripe(key).lock();
        if let Some(entry) = stripe.get_mut(key) {
            let (granted, receiver) = oneshot::channel();
            entry.queue.push_back(Waiter { owner, granted });
            return Some(receiver);
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        stripe.insert(
            key.clone(),
            Entry {
                number: self.numbers.fetch_add(1, Ordering::SeqCst),
                owner,
                timestamp,
                queue: VecDeque::new(),
                readers: Vec::new(),
            },
        );
        None
    }

    fn set_timestamp(&self, key: &Bytes, timestamp: Timestamp) {
        if let Some(entry) = self.stripe(key).lock().get_mut(key) {
            entry.timestamp = timestamp;
            wake(&mut entry.readers);
        }
    }

    fn release(&self, key: &Bytes) {
        let mut stripe = self.stripe(key).lock();
        let Some(entry) = stripe.get_mut(key) else {
            return;
        };
        wake(&mut entry.readers);
        while let Some(next) = entry.queue.pop_front() {
            entry.number = self.numbers.fetch_add(1, Ordering::SeqCst);
            entry.owner = next.owner;
            entry.timestamp = Timestamp::ZERO;
            if next.granted.send(()).is_ok() {
                return;
            }
        }
        stripe.remove(key);
        self.held.fetch_sub(1, Ordering::SeqCst);
    }

    /// Now, in the order of the holders. Taken after entering the timestamp
    /// cache.
    pub fn instant(&self) -> u64 {
        self.numbers.load(Ordering::SeqCst)
    }

    /// Waits until no write that was in flight at `instant` can still land on
    /// `key` at or below `at`.
    pub async fn wait_point(&self, key: &[u8], at: Timestamp, instant: u64) {
        while let Some(changed) = self.point_blocker(key, at, instant, None) {
            let _ = changed.await;
        }
    }

    /// The same for all keys in `[lower, upper)`.
    pub async fn wait_span(&self, lower: &[u8], upper: &[u8], at: Timestamp, instant: u64) {
        while let Some(changed) = self.span_blocker(lower, upper, at, instant, None) {
            let _ = changed.await;
        }
    }

    /// Something that changes when a write in the way of a read has moved on;
    /// `None`: nothing is in the way. `own` is the guard whose latches do not
    /// count.
    pub fn point_blocker(
        &self,
        key: &[u8],
        at: Timestamp,
        instant: u64,
        own: Option<&LatchGuard>,
    ) -> Option<oneshot::Receiver<()>> {
        if self.held.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut stripe = self.stripe(key).lock();
        let entry = stripe.get_mut(key)?;
        let own = own.map(|guard| guard.owner);
        entry.blocks(at, instant, own).then(|| entry.watch())
    }

    /// The same for a span.
    pub fn span_blocker(
        &self,
        lower: &[u8],
        upper: &[u8],
        at: Timestamp,
        instant: u64,
        own: Option<&LatchGuard>,
    ) -> Option<oneshot::Receiver<()>> {
        if self.held.load(Ordering::SeqCst) == 0 || lower >= upper {
            return None;
        }
        let own = own.map(|guard| guard.owner);
        let bounds = (Bound::Included(lower), Bound::Excluded(upper));
        self.stripes.iter().find_map(|stripe| {
            let mut stripe = stripe.lock();
            let mut entries = stripe.range_mut::<[u8], _>(bounds);
            let (_, entry) = entries.find(|(_, entry)| entry.blocks(at, instant, own))?;
            Some(entry.watch())
        })
    }
}

impl Entry {
    fn blocks(&self, at: Timestamp, instant: u64, own: Option<u64>) -> bool {
        self.number < instant
            && own != Some(self.owner)
            && (self.timestamp.is_zero() || self.timestamp <= at)
    }

    fn watch(&mut self) -> oneshot::Receiver<()> {
        self.readers.retain(|reader| !reader.is_closed());
        let (changed, receiver) = oneshot::channel();
        self.readers.push(changed);
        receiver
    }
}

fn wake(readers: &mut Vec<oneshot::Sender<()>>) {
    for reader in readers.drain(..) {
        let _ = reader.send(());
    }
}

impl LatchGuard {
    /// Says at which timestamp the write lands: reads below it need not wait.
    pub fn set_timestamp(&self, timestamp: Timestamp) {
        for key in &self.keys {
            self.latches.set_timestamp(key, timestamp);
        }
    }
}

impl Drop for LatchGuard {
    fn drop(&mut self) {
        for key in &self.keys {
            self.latches.release(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    fn ts(n: u64) -> Timestamp {
        Timestamp::from_raw(n)
    }

    fn table() -> Arc<Latches> {
        Arc::new(Latches::default())
    }

    fn now(latches: &Arc<Latches>, keys: &[&'static str]) -> Option<LatchGuard> {
        let keys = keys.iter().map(|k| key(k)).collect();
        latches.acquire(keys, Timestamp::ZERO).now_or_never()
    }

    #[tokio::test]
    async fn writers_of_a_key_queue_in_order() {
        let latches = table();
        let first = now(&latches, &["a", "b", "a"]).unwrap();
        let mut second = Box::pin(latches.acquire(vec![key("b")], Timestamp::ZERO));
        assert!((&mut second).now_or_never().is_none());
        let mut third = Box::pin(latches.acquire(vec![key("b"), key("c")], Timestamp::ZERO));
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop(third.now_or_never().unwrap());
        assert_eq!(latches.held.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_leaves_the_queue() {
        let latches = table();
        let first = now(&latches, &["a"]).unwrap();
        let mut waiting = Box::pin(latches.acquire(vec![key("a")], Timestamp::ZERO));
        assert!((&mut waiting).now_or_never().is_none());
        // Granted, and dropped before it noticed.
        drop(first);
        drop(waiting);
        let second = now(&latches, &["a"]).unwrap();
        let mut waiting = Box::pin(latches.acquire(vec![key("a")], Timestamp::ZERO));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        drop(second);
        assert_eq!(latches.held.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn reads_wait_for_earlier_writes_at_or_below_them() {
        let latches = table();
        let guard = now(&latches, &["m"]).unwrap();
        let instant = latches.instant();
        let blocked = |at| {
            (
                latches
                    .wait_point(b"m", ts(at), instant)
                    .now_or_never()
                    .is_none(),
                latches
                    .wait_span(b"a", b"z", ts(at), instant)
                    .now_or_never()
                    .is_none(),
            )
        };
        assert_eq!(blocked(5), (true, true), "the timestamp is not chosen yet");
        guard.set_timestamp(ts(10));
        assert_eq!(blocked(9), (false, false));
        assert_eq!(blocked(10), (true, true));
        let beside = latches.wait_span(b"a", b"m", ts(10), instant);
        assert!(beside.now_or_never().is_some());
        assert!(
            latches
                .span_blocker(b"a", b"z", ts(10), instant, Some(&guard))
                .is_none()
        );
        let mut reader = Box::pin(latches.wait_point(b"m", ts(10), instant));
        assert!((&mut reader).now_or_never().is_none());
        drop(guard);
        assert!(reader.now_or_never().is_some());
    }

    #[tokio::test]
    async fn reads_do_not_wait_for_writes_that_came_after_them() {
        let latches = table();
        let instant = latches.instant();
        let _guard = now(&latches, &["m"]).unwrap();
        assert!(
            latches
                .wait_point(b"m", ts(10), instant)
                .now_or_never()
                .is_some()
        );
    }
}
