//! The block cache: decompressed blocks of tables, within a budget of bytes.
//!
//! Only compressed blocks come here; the others are read in place from the memory map, and the operating system's
//! page cache is their cache.
//!
//! Each table has a slot per data block ([`Slots`]), and a slot holds the block or nothing. So a hit is one atomic
//! load where the reader stands anyway: no lock, no hashing, no allocation. The cache itself knows only which slots
//! are filled, in a ring in the order of their filling, and empties the oldest when the budget is spent; a block that
//! was used since the hand came by last gets another round (CLOCK; Corbató 1968). Blocks that are read once, as by a
//! scan, go at the first pass; for large values that is too long (`Keep`). The slots of a table that is gone count until the hand comes by.

use crate::table::Block;
use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// What a cached block costs beside its bytes.
const BLOCK_OVERHEAD_BYTES: u64 = 128;

/// A block in the cache.
pub(crate) struct CachedBlock {
    pub block: Block,
    /// It was used since the hand came by last.
    used: AtomicBool,
}

/// The places of the blocks of one table.
pub(crate) struct Slots(Box<[ArcSwapOption<CachedBlock>]>);

impl Slots {
    pub fn new(blocks: usize) -> Self {
        Self((0..blocks).map(|_| ArcSwapOption::empty()).collect())
    }

    /// The block of this number, if it is in the cache.
    #[inline]
    pub fn get(&self, ordinal: usize) -> Option<Guard<Option<Arc<CachedBlock>>>> {
        let guard = self.0.get(ordinal)?.load();
        let used = &guard.as_ref()?.used;
        // Not written where it is set: readers share the line.
        if !used.load(Relaxed) {
            used.store(true, Relaxed);
        }
        Some(guard)
    }
}

/// A filled slot.
struct Entry {
    slots: Weak<Slots>,
    ordinal: usize,
    bytes: u64,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: u64,
}

/// The cache of one database.
pub(crate) struct BlockCache {
    bytes_max: u64,
    ring: Mutex<Ring>,
}

impl BlockCache {
    pub fn new(bytes_max: u64) -> Self {
        let ring = Mutex::default();
        Self { bytes_max, ring }
    }

    /// Fills a slot, unless it is filled or the block is larger than the cache.
    pub fn insert(&self, slots: &Arc<Slots>, ordinal: usize, block: &Block) {
        let bytes = block.len() as u64 + BLOCK_OVERHEAD_BYTES;
        let Some(slot) = slots.0.get(ordinal).filter(|_| bytes <= self.bytes_max) else {
            return;
        };
        let cached = Arc::new(CachedBlock {
            block: block.clone(),
            used: AtomicBool::new(false),
        });
        let before = slot.compare_and_swap(&None::<Arc<CachedBlock>>, Some(cached));
        if before.is_some() {
            return;
        }
        let mut ring = self.ring.lock();
        ring.bytes += bytes;
        ring.entries.push_back(Entry {
            slots: Arc::downgrade(slots),
            ordinal,
            bytes,
        });
        self.make_room(&mut ring);
    }

    /// True if so many bytes go in without anything else going out.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.ring.lock().bytes + bytes as u64 + BLOCK_OVERHEAD_BYTES <= self.bytes_max
    }

    fn make_room(&self, ring: &mut Ring) {
        // Readers set marks all the time: more than one round is not given.
        let mut chances = ring.entries.len();
        while ring.bytes > self.bytes_max {
            let Some(entry) = ring.entries.pop_front() else {
                return;
            };
            if let Some(slots) = entry.slots.upgrade()
                && let Some(slot) = slots.0.get(entry.ordinal)
            {
                let cached = slot.load();
                let used = cached.as_ref().map(|cached| &cached.used);
                if chances > 0 && used.is_some_and(|used| used.swap(false, Relaxed)) {
                    chances -= 1;
                    ring.entries.push_back(entry);
                    continue;
                }
                slot.store(None);
            }
            ring.bytes -= entry.bytes;
        }
    }

    /// Bytes in the cache now.
    pub fn bytes(&self) -> u64 {
        self.ring.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(slots: &Slots) -> Vec<usize> {
        let filled = |at: &usize| slots.0[*at].load().is_some();
        (0..slots.0.len()).filter(filled).collect()
    }

    #[test]
    fn what_is_used_stays_and_the_budget_is_kept() {
        let cost = Block::smallest().len() as u64 + BLOCK_OVERHEAD_BYTES;
        let cache = BlockCache::new(3 * cost);
        let slots = Arc::new(Slots::new(10));
        for ordinal in 0..3 {
            cache.insert(&slots, ordinal, &Block::smallest());
        }
        // A second fill of a slot changes nothing.
        cache.insert(&slots, 1, &Block::smallest());
        assert_eq!((filled(&slots), cache.bytes()), (vec![0, 1, 2], 3 * cost));
        assert!(slots.get(0).is_some() && slots.get(5).is_none() && slots.get(99).is_none());
        cache.insert(&slots, 3, &Block::smallest());
        assert_eq!(filled(&slots), [0, 2, 3]);
        // Its round is over.
        cache.insert(&slots, 4, &Block::smallest());
        cache.insert(&slots, 5, &Block::smallest());
        assert_eq!((filled(&slots), cache.bytes()), (vec![0, 4, 5], 3 * cost));
        cache.insert(&slots, 6, &Block::smallest());
        assert_eq!(filled(&slots), [4, 5, 6]);
        // A table that is gone makes room.
        drop(slots);
        let slots = Arc::new(Slots::new(10));
        for ordinal in 0..3 {
            cache.insert(&slots, ordinal, &Block::smallest());
        }
        assert_eq!((filled(&slots), cache.bytes()), (vec![0, 1, 2], 3 * cost));
        // All are used: somebody goes all the same.
        (0..3).for_each(|at| drop(slots.get(at)));
        cache.insert(&slots, 3, &Block::smallest());
        assert_eq!(filled(&slots).len(), 3);
        let nothing = BlockCache::new(0);
        nothing.insert(&slots, 9, &Block::smallest());
        assert_eq!(nothing.bytes(), 0);
    }
}
