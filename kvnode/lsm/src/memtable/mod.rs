//! The memtable: the newest writes, sorted, in memory.
//!
//! One [`MemtableSet`] holds a [`skiplist`] per keyspace and the [`arena`] that their entries lie in. All trees of a
//! database are filled and flushed together, so the set and not the single list is what gets full, becomes immutable
//! and turns into tables under one manifest edit (rule D1).
//!
//! Nothing is ever removed from a list. Range deletes are kept beside it, as a [`RangeSet`] that each new one replaces.
//! Several writers may fill a set at once; readers run at any time.

mod arena;
mod pool;
mod skiplist;

pub(crate) use arena::Pinned;
pub(crate) use pool::ChunkPool;

use crate::batch::Operation;
use crate::error::Result;
use crate::iter::InternalIterator;
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::table::blob::Value;
use crate::types::{Kind, SeqNo, Trailer};
use arc_swap::ArcSwap;
use arena::Arena;
use parking_lot::Mutex;
use skiplist::{Entry, Position, SkipList};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// What a range delete costs beside its keys.
const RANGE_OVERHEAD_BYTES: usize = 80;
/// Range deletes that fill a memtable set: each costs as much as there are before it.
const RANGE_DELETES_MAX: usize = 256;

/// The entries of one keyspace.
pub(crate) struct Memtable {
    entries: SkipList,
    bytes: AtomicUsize,
    has_ranges: AtomicBool,
    ranges: ArcSwap<RangeSet>,
    /// Taken by whoever replaces `ranges`.
    ranges_lock: Mutex<()>,
}

impl Memtable {
    fn new(arena: Arc<Arena>) -> Self {
        Self {
            entries: SkipList::new(arena),
            bytes: AtomicUsize::new(0),
            has_ranges: AtomicBool::new(false),
            ranges: ArcSwap::default(),
            ranges_lock: Mutex::new(()),
        }
    }

    /// Adds an entry; returns what it costs.
    fn insert(&self, user_key: &[u8], trailer: Trailer, value: &[u8]) -> usize {
        let cost = self.entries.insert(user_key, trailer, value);
        self.bytes.fetch_add(cost, Relaxed);
        cost
    }

    /// Adds a range delete; returns what it costs. The set is made anew, so a memtable must not take many of them:
    /// see [`RANGE_DELETES_MAX`].
    fn delete_range(&self, start: &[u8], end: &[u8], seqno: SeqNo) -> usize {
        let lock = self.ranges_lock.lock();
        let ranges = self.ranges.load().with(start, end, seqno);
        self.ranges.store(Arc::new(ranges));
        drop(lock);
        self.has_ranges.store(true, Release);
        let cost = start.len() + end.len() + RANGE_OVERHEAD_BYTES;
        self.bytes.fetch_add(cost, Relaxed);
        cost
    }

    /// The range deletes, if there are any.
    pub fn ranges(&self) -> Option<Arc<RangeSet>> {
        self.has_ranges
            .load(Acquire)
            .then(|| self.ranges.load_full())
    }

    /// The newest range delete that hides older versions of the key from a reader at `seqno`; 0 if there is none.
    #[inline]
    pub fn newest_range_delete(&self, user_key: &[u8], seqno: SeqNo) -> SeqNo {
        match self.has_ranges.load(Acquire) {
            true => self.ranges.load().newest(user_key, seqno),
            false => 0,
        }
    }

    /// The newest entry of a key that a reader starting at `trailer` sees.
    pub fn get(&self, user_key: &[u8], trailer: Trailer) -> Option<(Trailer, Slice)> {
        let entry = self.entries.seek(user_key, trailer)?;
        (entry.key() == user_key).then(|| (entry.trailer(), entry.pinned_value().into()))
    }

    /// True if there are neither entries nor range deletes.
    pub fn is_empty(&self) -> bool {
        self.entries.first().is_none() && !self.has_ranges.load(Acquire)
    }

    /// Estimated bytes of the keys and values in `start..end`.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> u64 {
        // Of sizes that differ much, a sample may promise more than there is.
        let bytes_max = self.bytes.load(Relaxed) as u64;
        self.entries.approximate_bytes(start, end).min(bytes_max)
    }
}

/// The memtables of all keyspaces, filled and flushed together.
pub(crate) struct MemtableSet {
    memtables: Vec<Arc<Memtable>>,
    bytes: AtomicUsize,
    range_deletes: AtomicUsize,
    last_seqno: AtomicU64,
    /// The log that holds these writes; 0 without a log.
    pub wal_number: u64,
}

impl MemtableSet {
    pub fn new(
        keyspace_count: usize,
        wal_number: u64,
        last_seqno: SeqNo,
        pool: &Arc<ChunkPool>,
    ) -> Self {
        let arena = Arc::new(Arena::new(Arc::downgrade(pool)));
        let memtable = |_| Arc::new(Memtable::new(Arc::clone(&arena)));
        let memtables = (0..keyspace_count).map(memtable).collect();
        Self {
            memtables,
            bytes: AtomicUsize::new(0),
            range_deletes: AtomicUsize::new(0),
            last_seqno: AtomicU64::new(last_seqno),
            wal_number,
        }
    }

    pub fn keyspace(&self, index: usize) -> Option<&Arc<Memtable>> {
        self.memtables.get(index)
    }

    /// Takes one operation of a batch; returns what it costs, or `None` if there is no such keyspace.
    pub fn insert(&self, operation: &Operation<'_>, seqno: SeqNo) -> Option<usize> {
        let memtable = self.keyspace(operation.keyspace)?;
        let (key, value) = (operation.key, operation.value);
        Some(match operation.kind {
            Kind::DeleteRange => {
                self.range_deletes.fetch_add(1, Relaxed);
                memtable.delete_range(key, value, seqno)
            }
            kind => memtable.insert(key, Trailer::new(seqno, kind), value),
        })
    }

    /// True if it is to be put aside: it has `bytes_max`, or many range deletes.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes() >= bytes_max || self.range_deletes.load(Relaxed) >= RANGE_DELETES_MAX
    }

    /// Notes that a batch ending at `last_seqno` and costing `bytes` is in.
    pub fn finish_batch(&self, last_seqno: SeqNo, bytes: usize) {
        self.last_seqno.fetch_max(last_seqno, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// The last sequence number written here (or before, if nothing was written here).
    pub fn last_seqno(&self) -> SeqNo {
        self.last_seqno.load(Relaxed)
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.memtables.iter().all(|memtable| memtable.is_empty())
    }
}

/// Walks a memtable in either direction, and keeps it alive.
pub(crate) struct MemtableIter {
    memtable: Arc<Memtable>,
    /// In the list of `memtable`.
    position: Option<Position>,
}

impl MemtableIter {
    pub fn new(memtable: Arc<Memtable>) -> Self {
        Self {
            memtable,
            position: None,
        }
    }

    fn set(&mut self, find: impl FnOnce(&SkipList) -> Option<Entry<'_>>) {
        self.position = find(&self.memtable.entries).map(|entry| entry.position());
    }

    fn current(&self) -> Option<Entry<'_>> {
        Some(self.memtable.entries.at(self.position?))
    }
}

impl InternalIterator for MemtableIter {
    fn valid(&self) -> bool {
        self.position.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.set(SkipList::first);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.set(SkipList::last);
        Ok(())
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.set(|entries| entries.seek(user_key, trailer));
        Ok(())
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.set(|entries| entries.seek_for_prev(user_key, trailer));
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        let next = self.current().and_then(|entry| entry.next());
        self.position = next.map(|entry| entry.position());
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        let prev = self.current().and_then(|entry| entry.prev());
        self.position = prev.map(|entry| entry.position());
        Ok(())
    }

    fn user_key(&self) -> &[u8] {
        self.current().map(|entry| entry.key()).unwrap_or_default()
    }

    fn trailer(&self) -> Trailer {
        self.current()
            .map_or(Trailer::OLDEST, |entry| entry.trailer())
    }

    fn value(&self) -> &[u8] {
        let value = self.current().map(|entry| entry.value());
        value.unwrap_or_default()
    }

    fn pinned_value(&self) -> Result<Value> {
        let value = self.current().map(|entry| entry.pinned_value().into());
        Ok(Value::Here(value.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Weak;

    #[test]
    fn a_reader_sees_the_newest_entry_not_after_its_seqno() {
        let memtable = Memtable::new(Arc::new(Arena::new(Weak::new())));
        memtable.insert(b"k", Trailer::new(3, Kind::Put), b"three");
        memtable.insert(b"k", Trailer::new(5, Kind::Delete), b"");
        memtable.insert(b"kk", Trailer::new(4, Kind::Put), b"other");
        assert!(memtable.get(b"k", Trailer::at(2)).is_none());
        assert_eq!(memtable.get(b"k", Trailer::at(4)).unwrap().1, b"three");
        assert!(memtable.get(b"k", Trailer::at(9)).unwrap().0.is_delete());
        assert!(memtable.get(b"", Trailer::at(9)).is_none());
    }

    #[test]
    fn an_iterator_outlives_every_other_owner_and_may_cross_threads() {
        fn assert_send<T: Send>(value: T) -> T {
            value
        }
        let memtable = Arc::new(Memtable::new(Arc::new(Arena::new(Weak::new()))));
        let large = vec![7; 100_000];
        for (seqno, key) in [b"b", b"a", b"c"].into_iter().enumerate() {
            memtable.insert(key, Trailer::new(seqno as u64, Kind::Put), &large);
        }
        let mut iter = assert_send(MemtableIter::new(memtable));
        iter.seek_to_first().unwrap();
        let mut keys = Vec::new();
        while iter.valid() {
            assert_eq!(iter.value(), large);
            keys.extend_from_slice(iter.user_key());
            iter.next().unwrap();
        }
        assert_eq!(keys, b"abc");
        iter.seek_for_prev(b"bb", Trailer::NEWEST).unwrap();
        assert_eq!(iter.user_key(), b"b");
        iter.prev().unwrap();
        assert_eq!(iter.user_key(), b"a");
        iter.prev().unwrap();
        assert!(!iter.valid());
    }
}
