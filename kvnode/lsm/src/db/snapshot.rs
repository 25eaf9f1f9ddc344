//! Snapshots: a sequence number that compaction respects as long as somebody holds it.
//!
//! A snapshot pins no memtable and no table: it reads through the present view, at its own sequence number, and the
//! jobs keep what it can see. Taking one is one short lock; the sequence number is read under that lock, and jobs
//! read the list under it, so that a job either knows a snapshot or began with a visible sequence number that is
//! not above it.

use super::Inner;
use super::view::Wanted;
use crate::error::Result;
use crate::iter::Iter;
use crate::slice::Slice;
use crate::table::without_version;
use crate::types::{KeyspaceId, SeqNo, Trailer};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sequence numbers of the snapshots alive, with how many hold each.
#[derive(Debug, Default)]
pub(super) struct SnapshotList {
    held: Mutex<BTreeMap<SeqNo, u32>>,
}

impl SnapshotList {
    fn acquire(&self, visible: &AtomicU64) -> SeqNo {
        let mut held = self.held.lock();
        let seqno = visible.load(Ordering::Acquire);
        *held.entry(seqno).or_default() += 1;
        seqno
    }

    fn release(&self, seqno: SeqNo) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(&seqno) {
            *count -= 1;
            if *count == 0 {
                held.remove(&seqno);
            }
        }
    }

    /// All snapshots, ascending, and the visible sequence number at the end.
    pub fn stripes(&self, visible: &AtomicU64) -> Vec<SeqNo> {
        let held = self.held.lock();
        let mut stripes: Vec<SeqNo> = held.keys().copied().collect();
        let newest = visible.load(Ordering::Acquire);
        if stripes.last() != Some(&newest) {
            stripes.push(newest);
        }
        stripes
    }

    pub fn len(&self) -> u64 {
        self.held
            .lock()
            .values()
            .map(|count| u64::from(*count))
            .sum()
    }
}

struct Held {
    inner: Arc<Inner>,
    seqno: SeqNo,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.inner.snapshots.release(self.seqno);
    }
}

/// The database as it was at one moment. Clones share it. It stays readable after the database was closed.
#[derive(Clone)]
pub struct Snapshot {
    held: Arc<Held>,
}

impl Snapshot {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        let seqno = inner.snapshots.acquire(&inner.visible);
        Self {
            held: Arc::new(Held {
                inner: Arc::clone(inner),
                seqno,
            }),
        }
    }

    /// Everything up to this sequence number is seen, nothing after it.
    pub fn seqno(&self) -> SeqNo {
        self.held.seqno
    }

    /// The value of a key at this moment.
    pub fn get(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Slice>> {
        let inner = &self.held.inner;
        let (view, trailer) = (inner.view.load(), Trailer::at(self.held.seqno));
        view.get(keyspace, key, trailer, &inner.counters.reads)
    }

    /// The values of several keys at this moment, in their order.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: KeyspaceId,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Slice>>> {
        let inner = &self.held.inner;
        let (view, trailer) = (inner.view.load(), Trailer::at(self.held.seqno));
        view.multi_get(keyspace, keys, trailer, &inner.counters.reads)
    }

    /// An iterator over the keys within the bounds at this moment; it starts invalid, so seek first. An unknown
    /// keyspace has no keys.
    pub fn iter(&self, keyspace: KeyspaceId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Iter {
        let (bounds, wanted) = ((lower, upper), Wanted::All);
        let (seqno, inner) = (self.held.seqno, &self.held.inner);
        let view = inner.view.load();
        let (merge, ranges) = view.merge(keyspace, seqno, bounds, wanted, &inner.counters.reads);
        Iter::new(merge, ranges, seqno, bounds)
    }

    /// An iterator over the versions of one key, from `first` on: over all keys that share with `first` everything
    /// but its last `version_bytes` bytes, and are not before it. It starts invalid, so seek first. All keys there must
    /// have the same length. Tables whose filter excludes the key are not looked into, if
    /// [`Options::version_bytes`](crate::Options::version_bytes) says the same of the keyspace.
    pub fn iter_versions(&self, keyspace: KeyspaceId, first: &[u8], version_bytes: usize) -> Iter {
        let key = without_version(first, version_bytes);
        let mut last = Vec::with_capacity(first.len());
        last.extend_from_slice(key);
        last.resize(first.len(), 0xff);
        let bounds = (Bound::Included(first), Bound::Included(&last[..]));
        let wanted = Wanted::VersionsOf {
            key,
            bytes: version_bytes,
        };
        let (seqno, inner) = (self.held.seqno, &self.held.inner);
        let view = inner.view.load();
        let (merge, ranges) = view.merge(keyspace, seqno, bounds, wanted, &inner.counters.reads);
        Iter::new(merge, ranges, seqno, bounds)
    }

    /// An iterator over the keys within the bounds for who wants only those whose version, their last bytes, lies
    /// between `first` and `last`, which are as long as a version. Tables without such a version are not looked into,
    /// if [`Options::version_bytes`](crate::Options::version_bytes) says of the keyspace how long versions are. All
    /// wanted keys come, and some others: even deleted ones, as their deletion may lie in a table that was passed by.
    /// It starts invalid, so seek first.
    pub fn iter_between_versions(
        &self,
        keyspace: KeyspaceId,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        first: &[u8],
        last: &[u8],
    ) -> Iter {
        // Whatever is said about a key, a range delete apart, lies in tables that have its version.
        let wanted = Wanted::Between { first, last };
        let (seqno, inner) = (self.held.seqno, &self.held.inner);
        let view = inner.view.load();
        let (merge, ranges) = view.merge(keyspace, seqno, bounds, wanted, &inner.counters.reads);
        Iter::new(merge, ranges, seqno, bounds)
    }
}
