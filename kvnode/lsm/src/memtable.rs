//! The memtable: the newest writes, sorted, in memory.
//!
//! One [`MemtableSet`] holds a lock-free skiplist per keyspace (`crossbeam-skiplist`). All trees of a database are
//! filled and flushed together, so the set and not the single list is what gets full, becomes immutable and turns
//! into tables under one manifest edit (rule D1).
//!
//! An entry is one piece of an arena chunk, `user key | inverted trailer, big-endian | value`, so that one
//! allocation serves many entries, comparing touches one place, and a value read is a [`Slice`] of the chunk.
//! Nothing is ever removed from a list. Range deletes are kept beside it, as a [`RangeSet`] that each new one replaces.
//! Writers are serialised by the commit leader; readers run at any time.

use crate::batch::Operation;
use crate::error::Result;
use crate::iter::InternalIterator;
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::types::{Kind, SeqNo, Trailer};
use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// What an entry costs beside its bytes: the list node with its average tower.
const ENTRY_OVERHEAD_BYTES: usize = 80;
/// Size of the chunks from which entries are cut.
const CHUNK_BYTES: usize = 256 << 10;
/// Range deletes that fill a memtable set: each costs as much as there are before it.
const RANGE_DELETES_MAX: usize = 256;
/// Bytes of an encoded trailer.
const TRAILER_BYTES: usize = 8;

/// An encoded internal key, `user key | inverted trailer`, in the order of the tree.
#[repr(transparent)]
struct EncodedKey([u8]);

impl EncodedKey {
    fn new(bytes: &[u8]) -> &Self {
        // SAFETY: `EncodedKey` is `repr(transparent)` over `[u8]`, so the pointer cast keeps address, length and
        // validity, and the lifetime is that of the input.
        unsafe { &*(std::ptr::from_ref(bytes) as *const Self) }
    }

    fn split(&self) -> (&[u8], &[u8]) {
        self.0.split_at(self.0.len() - TRAILER_BYTES)
    }
}

impl PartialEq for EncodedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for EncodedKey {}

impl PartialOrd for EncodedKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EncodedKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.split().cmp(&other.split())
    }
}

/// Calls `then` with the encoded form of a key, without an allocation for keys of usual length.
fn with_encoded<R>(user_key: &[u8], trailer: Trailer, then: impl FnOnce(&EncodedKey) -> R) -> R {
    let inverted = (!trailer.0).to_be_bytes();
    let mut stack = [0; 256];
    let length = user_key.len() + TRAILER_BYTES;
    if length <= stack.len() {
        stack[..user_key.len()].copy_from_slice(user_key);
        stack[user_key.len()..length].copy_from_slice(&inverted);
        then(EncodedKey::new(&stack[..length]))
    } else {
        then(EncodedKey::new(&[user_key, &inverted[..]].concat()))
    }
}

/// One entry: key, trailer and value in one piece of a chunk.
struct MemtableEntry {
    data: Bytes,
    key_length: u32,
}

impl MemtableEntry {
    fn encoded_key(&self) -> &EncodedKey {
        EncodedKey::new(&self.data[..self.key_length as usize])
    }

    fn user_key(&self) -> &[u8] {
        self.encoded_key().split().0
    }

    fn trailer(&self) -> Trailer {
        let (_, encoded) = self.encoded_key().split();
        Trailer(
            !encoded
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        )
    }

    fn value(&self) -> &[u8] {
        &self.data[self.key_length as usize..]
    }

    fn value_slice(&self) -> Slice {
        self.data.slice(self.key_length as usize..).into()
    }
}

impl Borrow<EncodedKey> for MemtableEntry {
    fn borrow(&self) -> &EncodedKey {
        self.encoded_key()
    }
}

impl PartialEq for MemtableEntry {
    fn eq(&self, other: &Self) -> bool {
        self.encoded_key() == other.encoded_key()
    }
}

impl Eq for MemtableEntry {}

impl PartialOrd for MemtableEntry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MemtableEntry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.encoded_key().cmp(other.encoded_key())
    }
}

/// Cuts entries out of large chunks; owned by the one who may write.
#[derive(Default)]
pub(crate) struct Arena {
    chunk: BytesMut,
}

impl Arena {
    fn entry(&mut self, user_key: &[u8], trailer: Trailer, value: &[u8]) -> MemtableEntry {
        let key_length = user_key.len() + TRAILER_BYTES;
        let length = key_length + value.len();
        let mut own;
        let chunk = if length > CHUNK_BYTES / 4 {
            own = BytesMut::with_capacity(length);
            &mut own
        } else {
            if self.chunk.capacity() < length {
                self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
            }
            &mut self.chunk
        };
        chunk.put_slice(user_key);
        chunk.put_u64(!trailer.0);
        chunk.put_slice(value);
        // Keys are at most 64 KiB long, batches are validated before they come here.
        MemtableEntry {
            data: chunk.split().freeze(),
            key_length: key_length as u32,
        }
    }
}

/// The entries of one keyspace.
#[derive(Default)]
pub(crate) struct Memtable {
    entries: SkipMap<MemtableEntry, ()>,
    bytes: AtomicUsize,
    has_ranges: AtomicBool,
    ranges: ArcSwap<RangeSet>,
}

impl Memtable {
    /// Adds an entry; returns what it costs.
    fn insert(&self, arena: &mut Arena, user_key: &[u8], trailer: Trailer, value: &[u8]) -> usize {
        let entry = arena.entry(user_key, trailer, value);
        let cost = entry.data.len() + ENTRY_OVERHEAD_BYTES;
        self.entries.insert(entry, ());
        self.bytes.fetch_add(cost, Relaxed);
        cost
    }

    /// Adds a range delete; returns what it costs. The set is made anew, so a memtable must not take many of them:
    /// see [`RANGE_DELETES_MAX`].
    fn delete_range(&self, start: &[u8], end: &[u8], seqno: SeqNo) -> usize {
        let ranges = self.ranges.load().with(start, end, seqno);
        self.ranges.store(Arc::new(ranges));
        self.has_ranges.store(true, Release);
        let cost = start.len() + end.len() + ENTRY_OVERHEAD_BYTES;
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
        let entry = with_encoded(user_key, trailer, |key| {
            self.entries.lower_bound(Bound::Included(key))
        })?;
        let entry = entry.key();
        (entry.user_key() == user_key).then(|| (entry.trailer(), entry.value_slice()))
    }

    /// True if there are neither entries nor range deletes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.has_ranges.load(Acquire)
    }

    /// Estimated bytes of the entries in `start..end`. Exact for ranges of up to 100 000 entries; a larger range
    /// counts as everything.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> u64 {
        const ENTRIES_COUNTED_MAX: usize = 100_000;
        let first = with_encoded(start, Trailer::NEWEST, |key| {
            self.entries.lower_bound(Bound::Included(key))
        });
        let (mut size, mut entry, mut count) = (0, first, 0);
        while let Some(current) = entry.filter(|entry| entry.key().user_key() < end) {
            if count == ENTRIES_COUNTED_MAX {
                return self.bytes.load(Relaxed) as u64;
            }
            size += current.key().data.len() as u64;
            count += 1;
            entry = current.next();
        }
        size
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
    pub fn new(keyspace_count: usize, wal_number: u64, last_seqno: SeqNo) -> Self {
        let memtables = (0..keyspace_count).map(|_| Arc::default()).collect();
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
    pub fn insert(
        &self,
        arena: &mut Arena,
        operation: &Operation<'_>,
        seqno: SeqNo,
    ) -> Option<usize> {
        let memtable = self.keyspace(operation.keyspace)?;
        let (key, value) = (operation.key, operation.value);
        Some(match operation.kind {
            Kind::DeleteRange => {
                self.range_deletes.fetch_add(1, Relaxed);
                memtable.delete_range(key, value, seqno)
            }
            kind => memtable.insert(arena, key, Trailer::new(seqno, kind), value),
        })
    }

    /// True if it is to be put aside: it has `bytes_max`, or many range deletes.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes() >= bytes_max || self.range_deletes.load(Relaxed) >= RANGE_DELETES_MAX
    }

    /// Notes that a batch ending at `last_seqno` and costing `bytes` is in.
    pub fn finish_batch(&self, last_seqno: SeqNo, bytes: usize) {
        self.last_seqno.store(last_seqno, Relaxed);
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
    /// Borrows from `memtable`; declared first, so dropped first.
    entry: Option<Entry<'static, MemtableEntry, ()>>,
    memtable: Arc<Memtable>,
}

impl MemtableIter {
    pub fn new(memtable: Arc<Memtable>) -> Self {
        Self {
            entry: None,
            memtable,
        }
    }

    fn set(
        &mut self,
        find: impl FnOnce(&SkipMap<MemtableEntry, ()>) -> Option<Entry<'_, MemtableEntry, ()>>,
    ) {
        let entry = find(&self.memtable.entries);
        // SAFETY: the entry borrows the skiplist inside `self.memtable`, whose heap address does not change while
        // the `Arc` is held; the `Arc` is never replaced, and the field order drops the entry before it. The
        // 'static entry never leaves this struct.
        self.entry = unsafe {
            std::mem::transmute::<Option<Entry<'_, _, _>>, Option<Entry<'static, _, _>>>(entry)
        };
    }

    fn current(&self) -> Option<&MemtableEntry> {
        self.entry.as_ref().map(|entry| entry.key())
    }
}

impl InternalIterator for MemtableIter {
    fn valid(&self) -> bool {
        self.entry.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.set(SkipMap::front);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.set(SkipMap::back);
        Ok(())
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.set(|entries| {
            with_encoded(user_key, trailer, |key| {
                entries.lower_bound(Bound::Included(key))
            })
        });
        Ok(())
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.set(|entries| {
            with_encoded(user_key, trailer, |key| {
                entries.upper_bound(Bound::Included(key))
            })
        });
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.entry = self.entry.as_ref().and_then(Entry::next);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.entry = self.entry.as_ref().and_then(Entry::prev);
        Ok(())
    }

    fn user_key(&self) -> &[u8] {
        self.current()
            .map(MemtableEntry::user_key)
            .unwrap_or_default()
    }

    fn trailer(&self) -> Trailer {
        self.current()
            .map_or(Trailer::OLDEST, MemtableEntry::trailer)
    }

    fn value(&self) -> &[u8] {
        self.current().map(MemtableEntry::value).unwrap_or_default()
    }

    fn value_slice(&self) -> Slice {
        self.current()
            .map(MemtableEntry::value_slice)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reader_sees_the_newest_entry_not_after_its_seqno() {
        let (memtable, mut arena) = (Memtable::default(), Arena::default());
        memtable.insert(&mut arena, b"k", Trailer::new(3, Kind::Put), b"three");
        memtable.insert(&mut arena, b"k", Trailer::new(5, Kind::Delete), b"");
        memtable.insert(&mut arena, b"kk", Trailer::new(4, Kind::Put), b"other");
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
        let (memtable, mut arena) = (Arc::new(Memtable::default()), Arena::default());
        let large = vec![7; CHUNK_BYTES];
        for (seqno, key) in [b"b", b"a", b"c"].into_iter().enumerate() {
            memtable.insert(
                &mut arena,
                key,
                Trailer::new(seqno as u64, Kind::Put),
                &large,
            );
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
