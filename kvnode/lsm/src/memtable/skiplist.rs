//! A skiplist that several writers fill while readers walk it, without a lock (Pugh 1990; the insertion by
//! compare-and-swap is that of LevelDB's and RocksDB's memtables). Nothing is ever removed.
//!
//! A node is one piece of the [`Arena`], so that a step touches one place:
//!
//! ```text
//! ... link 1 | link 0 | order u64 | chunk | shape u32 | value length u32 | key | value
//!                     ^ what a link points to
//! ```
//!
//! `order` is the inverted trailer: entries are sorted by key, and within a key the newest comes first. `shape` is the
//! length of the key and the number of links.
//!
//! Why readers are safe: a node is written whole before a link to it is stored with `Release`, links are loaded with
//! `Acquire`, and but for its links no byte of a node is written again. A node of level 0 is in the list; the levels
//! above are shortcuts that may lag behind.

use super::arena::{Arena, Chunk, Pinned};
use crate::prefetch::prefetch;
use crate::types::Trailer;
use std::cmp::Ordering;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicPtr, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// Levels of the list. With every fourth node on the next level, enough for 4^12 entries.
const LEVELS: usize = 12;

/// A node of a level is on the next one as well with a chance of one in 2 to the power of this.
const LINK_CHANCE_BITS: u32 = 2;

/// The fixed part of a node.
#[repr(C)]
struct Header {
    order: u64,
    chunk: NonNull<Chunk>,
    shape: u32,
    value_length: u32,
}

const HEADER_BYTES: usize = size_of::<Header>();
const LINK_BYTES: usize = size_of::<AtomicPtr<u8>>();

/// A node of a list that lives. Never dangling: nodes live as long as their arena, which the list holds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Node(NonNull<u8>);

impl Node {
    fn header(&self) -> &Header {
        // SAFETY: a node points to a header, aligned as all pieces of the arena are (links and header are multiples of
        // 8 bytes), written before the node was linked and never again.
        unsafe { self.0.cast::<Header>().as_ref() }
    }

    fn key_length(&self) -> usize {
        (self.header().shape >> 4) as usize
    }

    fn key(&self) -> &[u8] {
        // SAFETY: the key follows the header, and is written like it.
        unsafe { std::slice::from_raw_parts(self.0.add(HEADER_BYTES).as_ptr(), self.key_length()) }
    }

    fn value_start(&self) -> NonNull<u8> {
        // SAFETY: the value follows the key in the same piece.
        unsafe { self.0.add(HEADER_BYTES + self.key_length()) }
    }

    fn value(&self) -> &[u8] {
        let length = self.header().value_length as usize;
        // SAFETY: as the key.
        unsafe { std::slice::from_raw_parts(self.value_start().as_ptr(), length) }
    }

    /// A link of a node that has so many.
    fn link(&self, level: usize) -> &AtomicPtr<u8> {
        debug_assert!(level <= (self.header().shape & 15) as usize);
        // SAFETY: the links lie before the header, the lowest last, and are only used as atomics once linked.
        unsafe {
            self.0
                .sub(LINK_BYTES * (level + 1))
                .cast::<AtomicPtr<u8>>()
                .as_ref()
        }
    }

    fn next(&self, level: usize) -> Option<Node> {
        NonNull::new(self.link(level).load(Acquire)).map(Node)
    }

    fn is_before(&self, key: &[u8], order: u64) -> bool {
        match self.key().cmp(key) {
            Ordering::Equal => self.header().order < order,
            unequal => unequal.is_lt(),
        }
    }
}

/// A list of entries.
pub(super) struct SkipList {
    head: Node,
    /// Levels in use.
    height: AtomicUsize,
    arena: Arc<Arena>,
}

// SAFETY: nodes are shared as the module says; the arena may be used anywhere.
unsafe impl Send for SkipList {}
// SAFETY: as above.
unsafe impl Sync for SkipList {}

impl SkipList {
    pub fn new(arena: Arc<Arena>) -> Self {
        let head = new_node(&arena, LEVELS, b"", 0, b"");
        Self {
            head,
            height: AtomicUsize::new(1),
            arena,
        }
    }

    /// Adds an entry; no other has this key and trailer. Returns the bytes that it takes.
    pub fn insert(&self, key: &[u8], trailer: Trailer, value: &[u8]) -> usize {
        let order = !trailer.0;
        let links = links_of(order);
        let node = new_node(&self.arena, links, key, order, value);
        let mut height = self.height.load(Relaxed);
        while height < links {
            // Readers that do not know of the new levels yet find everything on those below.
            let raised = self
                .height
                .compare_exchange_weak(height, links, Relaxed, Relaxed);
            height = raised.map_or_else(|height| height, |_| links);
        }
        let mut before = [(self.head, None); LEVELS];
        let (mut previous, mut after) = (self.head, None);
        for level in (0..height).rev() {
            (previous, after) = find(previous, after, level, key, order);
            before[level] = (previous, after);
        }
        for (level, place) in before.iter().enumerate().take(links) {
            let (mut previous, mut after) = *place;
            loop {
                debug_assert!(after.is_none_or(|after| !after.is_before(key, order)));
                let next = after.map_or(null_mut(), |after: Node| after.0.as_ptr());
                node.link(level).store(next, Relaxed);
                let linked =
                    previous
                        .link(level)
                        .compare_exchange(next, node.0.as_ptr(), Release, Relaxed);
                if linked.is_ok() {
                    break;
                }
                // Another writer was here first: what it has put in may lie before or behind.
                (previous, after) = find(previous, None, level, key, order);
            }
        }
        size_of_node(links, key.len(), value.len())
    }

    fn seek_node(&self, key: &[u8], order: u64) -> (Node, Option<Node>) {
        let (mut previous, mut after) = (self.head, None);
        for level in (0..self.height.load(Relaxed)).rev() {
            (previous, after) = find(previous, after, level, key, order);
        }
        (previous, after)
    }

    /// The first entry at or after a place.
    pub fn seek(&self, key: &[u8], trailer: Trailer) -> Option<Entry<'_>> {
        self.entry(self.seek_node(key, !trailer.0).1)
    }

    /// The last entry at or before a place.
    pub fn seek_for_prev(&self, key: &[u8], trailer: Trailer) -> Option<Entry<'_>> {
        let order = !trailer.0;
        let (before, found) = self.seek_node(key, order);
        let exact = found.filter(|node| node.header().order == order && node.key() == key);
        self.entry(exact.or_else(|| self.unless_head(before)))
    }

    pub fn first(&self) -> Option<Entry<'_>> {
        self.entry(self.head.next(0))
    }

    pub fn last(&self) -> Option<Entry<'_>> {
        let mut node = self.head;
        for level in (0..self.height.load(Relaxed)).rev() {
            while let Some(next) = node.next(level) {
                node = next;
            }
        }
        self.entry(self.unless_head(node))
    }

    /// Estimated bytes of the keys and values in `start..end`: exact for ranges of few entries, and for others from
    /// the highest level that has a sample of them, each of which stands for four on the level below.
    pub fn approximate_bytes(&self, start: &[u8], end: &[u8]) -> u64 {
        /// For entries of like sizes, the error is about one part in the square root of it.
        const SAMPLE: usize = 256;
        let mut previous = self.head;
        for level in (0..self.height.load(Relaxed)).rev() {
            let (before, mut next) = find(previous, None, level, start, !Trailer::NEWEST.0);
            let (mut count, mut bytes) = (0, 0);
            while let Some(node) = next.filter(|node| node.key() < end) {
                count += 1;
                bytes += (node.key().len() + node.value().len()) as u64;
                next = node.next(level);
            }
            if count >= SAMPLE || level == 0 {
                return bytes << (LINK_CHANCE_BITS as usize * level);
            }
            previous = before;
        }
        0
    }

    fn unless_head(&self, node: Node) -> Option<Node> {
        (node != self.head).then_some(node)
    }

    fn entry(&self, node: Option<Node>) -> Option<Entry<'_>> {
        Some(Entry {
            list: self,
            node: node?,
        })
    }

    /// The entry of a position of this list.
    pub fn at(&self, position: Position) -> Entry<'_> {
        Entry {
            list: self,
            node: position.0,
        }
    }
}

/// Where an entry is. Of use only with its list, which must live.
#[derive(Clone, Copy)]
pub(super) struct Position(Node);

// SAFETY: no more than a number, until the list is asked for what is there.
unsafe impl Send for Position {}
// SAFETY: as above.
unsafe impl Sync for Position {}

/// An entry of a list.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    list: &'a SkipList,
    node: Node,
}

impl<'a> Entry<'a> {
    pub fn key(&self) -> &'a [u8] {
        let key: *const [u8] = self.node.key();
        // SAFETY: nodes live as long as the list.
        unsafe { &*key }
    }

    pub fn trailer(&self) -> Trailer {
        Trailer(!self.node.header().order)
    }

    pub fn value(&self) -> &'a [u8] {
        let value: *const [u8] = self.node.value();
        // SAFETY: as the key.
        unsafe { &*value }
    }

    /// The value, which keeps the memory that it lies in.
    pub fn pinned_value(&self) -> Pinned {
        let header = self.node.header();
        let length = header.value_length as usize;
        // SAFETY: the value lies in the chunk that its node names, of the arena that the list holds; it was written
        // before the node was linked, and is not written again.
        unsafe { Pinned::new(self.node.value_start(), length, header.chunk) }
    }

    pub fn next(&self) -> Option<Entry<'a>> {
        self.list.entry(self.node.next(0))
    }

    /// The entry before: a search, as nodes know only what follows them.
    pub fn prev(&self) -> Option<Entry<'a>> {
        let order = self.node.header().order;
        let (before, _) = self.list.seek_node(self.node.key(), order);
        self.list.entry(self.list.unless_head(before))
    }

    pub fn position(&self) -> Position {
        Position(self.node)
    }
}

/// From `previous` on, which is before the place: the last node of a level before the place, and the one after it.
/// `known`: a node that is not before the place, found on the level above.
#[inline]
fn find(
    mut previous: Node,
    known: Option<Node>,
    level: usize,
    key: &[u8],
    order: u64,
) -> (Node, Option<Node>) {
    loop {
        let next = previous.next(level);
        if level > 0 {
            // Where the search goes unless it goes on here: it comes from memory while `next` does.
            prefetch(previous.link(level - 1).load(Relaxed));
        }
        match next {
            Some(node) if next != known && node.is_before(key, order) => previous = node,
            _ => return (previous, next),
        }
    }
}

/// How many links the node of an entry has: one more with a chance of a quarter each, drawn from its trailer, which no
/// other entry of its writer has.
fn links_of(order: u64) -> usize {
    // The mixing step of SplitMix64 (Steele et al. 2014).
    let mut bits = order.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (1 + (bits.trailing_zeros() / LINK_CHANCE_BITS) as usize).min(LEVELS)
}

fn size_of_node(links: usize, key_length: usize, value_length: usize) -> usize {
    LINK_BYTES * links + HEADER_BYTES + key_length + value_length
}

/// A node that is not linked yet.
fn new_node(arena: &Arena, links: usize, key: &[u8], order: u64, value: &[u8]) -> Node {
    debug_assert!((1..=LEVELS).contains(&links));
    let (piece, chunk) = arena.allocate(size_of_node(links, key.len(), value.len()));
    // Keys are at most 64 KiB long and values 64 MiB: batches are validated before they come here.
    let header = Header {
        order,
        chunk,
        shape: (key.len() as u32) << 4 | (links as u32 - 1),
        value_length: value.len() as u32,
    };
    // SAFETY: the piece is as long as these parts together, aligned to 8, and nobody else's; links and header are
    // multiples of 8 bytes.
    unsafe {
        for link in 0..links {
            let link = piece.add(LINK_BYTES * link).cast::<AtomicPtr<u8>>();
            link.write(AtomicPtr::new(null_mut()));
        }
        let node = piece.add(LINK_BYTES * links);
        node.cast::<Header>().write(header);
        let key_start = node.add(HEADER_BYTES).as_ptr();
        key_start.copy_from_nonoverlapping(key.as_ptr(), key.len());
        key_start
            .add(key.len())
            .copy_from_nonoverlapping(value.as_ptr(), value.len());
        Node(node)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{Kind, compare};
    use proptest::prelude::*;
    use std::sync::Weak;

    type Plain = (Vec<u8>, u64);

    fn trailer(seqno: u64) -> Trailer {
        Trailer::new(seqno, Kind::Put)
    }

    fn value(seqno: u64) -> Vec<u8> {
        vec![seqno as u8; seqno as usize % 40]
    }

    fn plain(entry: Entry<'_>) -> Plain {
        let seqno = entry.trailer().seqno();
        assert_eq!(entry.value(), value(seqno));
        assert_eq!(entry.pinned_value().as_ref(), value(seqno));
        (entry.key().to_vec(), seqno)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
        #[test]
        fn search_and_walk_agree_with_a_sorted_list(
            keys in prop::collection::vec(prop::collection::vec(0u8..3, 0..5), 1..80),
            probe in prop::collection::vec(0u8..3, 0..5),
            at in 0u64..90,
        ) {
            let list = SkipList::new(Arc::new(Arena::new(Weak::new())));
            let mut sorted: Vec<Plain> = Vec::new();
            for (seqno, key) in keys.into_iter().enumerate() {
                list.insert(&key, trailer(seqno as u64), &value(seqno as u64));
                sorted.push((key, seqno as u64));
            }
            sorted.sort_by(|a, b| compare((&a.0, trailer(a.1)), (&b.0, trailer(b.1))));
            let order = |entry: &&Plain| compare((&entry.0, trailer(entry.1)), (&probe, trailer(at)));
            let found = list.seek(&probe, trailer(at)).map(plain);
            prop_assert_eq!(found.as_ref(), sorted.iter().find(|e| order(e).is_ge()));
            let found = list.seek_for_prev(&probe, trailer(at)).map(plain);
            prop_assert_eq!(found.as_ref(), sorted.iter().rev().find(|e| order(e).is_le()));
            let mut forward = Vec::new();
            let mut entry = list.first();
            while let Some(here) = entry {
                forward.push(plain(list.at(here.position())));
                entry = here.next();
            }
            prop_assert_eq!(&forward, &sorted);
            let mut backward = Vec::new();
            let mut entry = list.last();
            while let Some(here) = entry {
                backward.push(plain(here));
                entry = here.prev();
            }
            sorted.reverse();
            prop_assert_eq!(backward, sorted);
        }
    }

    #[test]
    fn the_size_of_a_range_is_exact_if_small_and_close_if_large() {
        let list = SkipList::new(Arc::new(Arena::new(Weak::new())));
        let entries = if cfg!(miri) { 2_000 } else { 100_000u64 };
        for number in 0..entries {
            list.insert(&number.to_be_bytes(), trailer(number), &[7; 92]);
        }
        let size =
            |from: u64, to: u64| list.approximate_bytes(&from.to_be_bytes(), &to.to_be_bytes());
        assert_eq!(size(500, 700), 200 * 100);
        assert_eq!(size(entries - 3, u64::MAX), 3 * 100);
        assert_eq!((size(5, 5), size(entries, u64::MAX)), (0, 0));
        for (from, to) in [(0, entries), (entries / 4, entries / 2), (700, entries)] {
            let exact = (to - from) * 100;
            let found = size(from, to);
            assert!(
                (exact * 3 / 4..exact * 5 / 4).contains(&found),
                "{found} of {exact}"
            );
        }
    }

    #[test]
    fn an_empty_list_has_no_entries() {
        let list = SkipList::new(Arc::new(Arena::new(Weak::new())));
        assert!(list.first().is_none() && list.last().is_none());
        assert!(list.seek(b"", Trailer::NEWEST).is_none());
        assert!(list.seek_for_prev(b"x", Trailer::OLDEST).is_none());
        assert_eq!(list.approximate_bytes(b"", b"x"), 0);
    }

    #[test]
    fn writers_fill_a_list_at_once_while_readers_see_it_in_order() {
        const WRITERS: u64 = 4;
        let each: u64 = if cfg!(miri) { 40 } else { 20_000 };
        let list = SkipList::new(Arc::new(Arena::new(Weak::new())));
        let key = |number: u64| (number.wrapping_mul(0x9e37_79b9) % 5000).to_be_bytes();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let list = &list;
                    scope.spawn(move || {
                        for number in (0..each).map(|n| n * WRITERS + writer) {
                            list.insert(&key(number), trailer(number), &value(number));
                            let found = list.seek(&key(number), trailer(number)).map(plain);
                            assert_eq!(found, Some((key(number).to_vec(), number)));
                        }
                    })
                })
                .collect();
            while !writers.iter().all(|writer| writer.is_finished()) {
                let mut last: Option<Plain> = None;
                let mut entry = list.first();
                while let Some(here) = entry {
                    let (now, before) = (plain(here), last.take());
                    assert!(before.is_none_or(|before| {
                        compare((&before.0, trailer(before.1)), (&now.0, trailer(now.1))).is_lt()
                    }));
                    last = Some(now);
                    entry = here.next();
                }
            }
        });
        let entries = std::iter::successors(list.first(), Entry::next);
        assert_eq!(entries.count() as u64, WRITERS * each);
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn every_fourth_node_is_on_the_next_level() {
        let mut on_level = [0; LEVELS];
        for seqno in 0..100_000 {
            (0..links_of(!trailer(seqno).0)).for_each(|level| on_level[level] += 1);
        }
        for pair in on_level[..6].windows(2) {
            let share = f64::from(pair[1]) / f64::from(pair[0]);
            assert!((0.2..0.3).contains(&share), "{on_level:?}");
        }
    }
}
