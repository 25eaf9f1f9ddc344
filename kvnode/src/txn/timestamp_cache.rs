//! The timestamp cache (PROTOCOLS L5): the highest timestamp at which each key
//! was read, and by whom, so that no later write slips under a read.
//!
//! Points are kept by the hash of the key: a collision merges two keys, which
//! only pushes a write that need not be pushed. Spans are kept as a map of
//! disjoint intervals. Both keep two generations; when the younger is full, the
//! older is dropped and the *floor* of the shard rises to the highest timestamp
//! in it. The floor starts at the low-water mark of a new leader (L3).

use crate::rules::{Rule, Rules};
use bytes::Bytes;
use lineradb_common::{Timestamp, TxnId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const STRIPES: usize = 16;
/// Points of one generation of one stripe: at most about 4 MiB for a shard.
const POINTS_PER_STRIPE: usize = 2048;
/// Intervals of one generation.
const SPANS: usize = 4096;

/// Who read, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadAt {
    timestamp: Timestamp,
    /// `None`: nobody in particular, or several transactions.
    owner: Option<TxnId>,
}

impl ReadAt {
    fn merge(self, other: ReadAt, rules: Rules) -> ReadAt {
        match self.timestamp.cmp(&other.timestamp) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            // L5: two transactions that read at the same timestamp must both
            // write above it.
            std::cmp::Ordering::Equal if self.owner == other.owner => self,
            std::cmp::Ordering::Equal if !rules.hold(Rule::EqualReadsEraseOwner) => other,
            std::cmp::Ordering::Equal => ReadAt {
                owner: None,
                ..self
            },
        }
    }

    /// The lowest timestamp at which `writer` may write.
    fn lowest_write(self, writer: TxnId) -> Timestamp {
        if self.owner == Some(writer) {
            self.timestamp
        } else {
            self.timestamp.next()
        }
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, v: u64) {
        self.0 = v;
    }
}

type Points = HashMap<u64, ReadAt, BuildHasherDefault<Identity>>;
type Spans = BTreeMap<Bytes, (Bytes, ReadAt)>;

struct Generations<T> {
    young: T,
    old: T,
    young_max: Timestamp,
    old_max: Timestamp,
}

impl<T: Default> Default for Generations<T> {
    fn default() -> Self {
        Generations {
            young: T::default(),
            old: T::default(),
            young_max: Timestamp::ZERO,
            old_max: Timestamp::ZERO,
        }
    }
}

impl<T: Default> Generations<T> {
    /// Drops the old generation; answers the floor that stands for it.
    fn turn(&mut self) -> Timestamp {
        let floor = self.old_max;
        self.old = std::mem::take(&mut self.young);
        self.old_max = std::mem::replace(&mut self.young_max, Timestamp::ZERO);
        floor
    }
}

/// What was read in one shard, while one replica leads it.
pub struct TimestampCache {
    rules: Rules,
    floor: AtomicU64,
    /// The highest read of all.
    highest: AtomicU64,
    points: [Mutex<Generations<Points>>; STRIPES],
    any_span: AtomicBool,
    spans: Mutex<Generations<Spans>>,
}

impl TimestampCache {
    /// An empty cache above a low-water mark.
    pub fn new(mark: Timestamp, rules: Rules) -> Self {
        TimestampCache {
            rules,
            floor: AtomicU64::new(mark.raw()),
            highest: AtomicU64::new(mark.raw()),
            points: Default::default(),
            any_span: AtomicBool::new(false),
            spans: Mutex::default(),
        }
    }

    /// Records the read of a key, present or absent.
    pub fn read_point(&self, key: &[u8], timestamp: Timestamp, owner: Option<TxnId>) {
        self.highest.fetch_max(timestamp.raw(), Ordering::SeqCst);
        let hash = xxhash_rust::xxh3::xxh3_64(key);
        let read = ReadAt { timestamp, owner };
        let mut stripe = self.stripe(hash).lock();
        if stripe.young.len() >= POINTS_PER_STRIPE {
            let floor = stripe.turn();
            self.floor.fetch_max(floor.raw(), Ordering::SeqCst);
        }
        stripe.young_max = stripe.young_max.max(timestamp);
        let rules = self.rules;
        stripe
            .young
            .entry(hash)
            .and_modify(|old| *old = old.merge(read, rules))
            .or_insert(read);
    }

    /// Records the read of `[start, end)`; an empty end is the end of the key
    /// space.
    pub fn read_span(&self, start: &[u8], end: &[u8], timestamp: Timestamp, owner: Option<TxnId>) {
        self.highest.fetch_max(timestamp.raw(), Ordering::SeqCst);
        let read = ReadAt { timestamp, owner };
        let mut spans = self.spans.lock();
        if spans.young.len() >= SPANS {
            let floor = spans.turn();
            self.floor.fetch_max(floor.raw(), Ordering::SeqCst);
        }
        spans.young_max = spans.young_max.max(timestamp);
        insert_span(&mut spans.young, start, end, read, self.rules);
        self.any_span.store(true, Ordering::SeqCst);
    }

    /// The lowest timestamp at which `writer` may write `key`.
    pub fn lowest_write(&self, key: &[u8], writer: TxnId) -> Timestamp {
        let hash = xxhash_rust::xxh3::xxh3_64(key);
        let mut read: Option<ReadAt> = None;
        let mut merge = |other: Option<&ReadAt>| {
            if let Some(other) = other {
                read = Some(read.map_or(*other, |read| read.merge(*other, self.rules)));
            }
        };
        {
            let stripe = self.stripe(hash).lock();
            merge(stripe.young.get(&hash));
            merge(stripe.old.get(&hash));
        }
        // The mutexes order this against the reader's entry; a span that is
        // recorded from here on finds the writer's latch instead.
        if self.any_span.load(Ordering::SeqCst) {
            let spans = self.spans.lock();
            merge(span_at(&spans.young, key));
            merge(span_at(&spans.old, key));
        }
        // After the look-ups: an entry that was dropped meanwhile is in it.
        let floor = Timestamp::from_raw(self.floor.load(Ordering::SeqCst));
        read.map_or(Timestamp::ZERO, |read| read.lowest_write(writer))
            .max(floor.next())
    }

    /// No write may stand at or below this.
    pub fn floor(&self) -> Timestamp {
        Timestamp::from_raw(self.floor.load(Ordering::SeqCst))
    }

    /// No write of any key may stand at or below this from now on (L4).
    pub fn raise_floor(&self, to: Timestamp) {
        self.highest.fetch_max(to.raw(), Ordering::SeqCst);
        self.floor.fetch_max(to.raw(), Ordering::SeqCst);
    }

    /// The highest timestamp that was read at, the mark included: the floor of
    /// whoever inherits from this leader (C5).
    pub fn highest(&self) -> Timestamp {
        Timestamp::from_raw(self.highest.load(Ordering::SeqCst))
    }

    /// Counts a read that is recorded elsewhere (schema versions).
    pub fn raise_highest(&self, timestamp: Timestamp) {
        self.highest.fetch_max(timestamp.raw(), Ordering::SeqCst);
    }

    fn stripe(&self, hash: u64) -> &Mutex<Generations<Points>> {
        // The map uses the low bits.
        &self.points[(hash >> 60) as usize % STRIPES]
    }
}

fn below(key: &[u8], end: &[u8]) -> bool {
    end.is_empty() || key < end
}

fn span_at<'a>(spans: &'a Spans, key: &[u8]) -> Option<&'a ReadAt> {
    let bounds = (Bound::Unbounded, Bound::Included(key));
    let (_, (end, read)) = spans.range::<[u8], _>(bounds).next_back()?;
    below(key, end).then_some(read)
}

/// Lays an interval over disjoint ones: where it overlaps, the higher read
/// stands; they stay disjoint.
fn insert_span(spans: &mut Spans, start: &[u8], end: &[u8], read: ReadAt, rules: Rules) {
    if !below(start, end) {
        return;
    }
    let first = span_start_covering(spans, start).unwrap_or(Bytes::copy_from_slice(start));
    let touched: Vec<Bytes> = spans
        .range::<[u8], _>((Bound::Included(&first[..]), Bound::Unbounded))
        .map(|(from, _)| from.clone())
        .take_while(|from| below(from, end))
        .collect();
    let mut pieces: Vec<(Bytes, Bytes, ReadAt)> = Vec::with_capacity(touched.len() * 2 + 1);
    let mut at = Bytes::copy_from_slice(start);
    let end = Bytes::copy_from_slice(end);
    for from in touched {
        let Some((to, old)) = spans.remove(&from) else {
            continue;
        };
        if from < at {
            pieces.push((from, at.clone(), old));
        } else if at < from {
            pieces.push((at, from.clone(), read));
            at = from;
        }
        // The overlap ends where the first of the two ends.
        let inner = to.is_empty() && end.is_empty() || (!to.is_empty() && below(&to, &end));
        let overlap_end = if inner { to.clone() } else { end.clone() };
        pieces.push((at, overlap_end.clone(), old.merge(read, rules)));
        if !inner {
            pieces.push((end.clone(), to, old));
        }
        at = overlap_end;
        if at.is_empty() {
            break;
        }
    }
    if !at.is_empty() && below(&at, &end) || pieces.is_empty() {
        pieces.push((at, end, read));
    }
    // Neighbours with the same read become one again.
    let mut joined: Vec<(Bytes, Bytes, ReadAt)> = Vec::with_capacity(pieces.len());
    for (from, to, read) in pieces {
        if from == to && !from.is_empty() {
            continue;
        }
        match joined.last_mut() {
            Some(last) if last.1 == from && last.2 == read => last.1 = to,
            _ => joined.push((from, to, read)),
        }
    }
    for (from, to, read) in joined {
        spans.insert(from, (to, read));
    }
}

fn span_start_covering(spans: &Spans, key: &[u8]) -> Option<Bytes> {
    let bounds = (Bound::Unbounded, Bound::Included(key));
    let (from, (end, _)) = spans.range::<[u8], _>(bounds).next_back()?;
    below(key, end).then(|| from.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: TxnId = TxnId([1; 16]);
    const B: TxnId = TxnId([2; 16]);

    fn ts(n: u64) -> Timestamp {
        Timestamp::from_raw(n)
    }

    fn cache() -> TimestampCache {
        TimestampCache::new(ts(10), Rules::default())
    }

    #[test]
    fn writes_go_above_the_mark_and_above_others_reads() {
        let cache = cache();
        assert_eq!(cache.lowest_write(b"k", A), ts(11));
        cache.read_point(b"k", ts(20), Some(A));
        assert_eq!(cache.lowest_write(b"k", A), ts(20));
        assert_eq!(cache.lowest_write(b"k", B), ts(21));
        cache.read_span(b"a", b"", ts(30), Some(B));
        assert_eq!(cache.lowest_write(b"k", B), ts(30));
        assert_eq!(cache.lowest_write(b"k", A), ts(31));
        assert_eq!(cache.highest(), ts(30));
    }

    #[test]
    fn equal_timestamps_of_two_transactions_push_both() {
        for span in [false, true] {
            let cache = cache();
            cache.read_point(b"k", ts(20), Some(A));
            if span {
                cache.read_span(b"a", b"z", ts(20), Some(B));
            } else {
                cache.read_point(b"k", ts(20), Some(B));
            }
            assert_eq!(cache.lowest_write(b"k", A), ts(21));
            assert_eq!(cache.lowest_write(b"k", B), ts(21));
        }
    }

    #[test]
    fn what_is_forgotten_raises_the_floor() {
        let cache = cache();
        for n in 0..(STRIPES * POINTS_PER_STRIPE * 4) as u64 {
            cache.read_point(&n.to_be_bytes(), ts(100 + n), Some(A));
        }
        assert!(cache.floor() > ts(100));
        for n in 0..(STRIPES * POINTS_PER_STRIPE * 4) as u64 {
            assert!(cache.lowest_write(&n.to_be_bytes(), B) > ts(100 + n));
        }
    }

    proptest! {
        /// Whatever was recorded, in any order, is what a plain model says.
        #[test]
        fn spans_agree_with_a_model(
            reads in proptest::collection::vec((0u8..9, 0u8..10, 11u64..16, 0u8..3), 0..40)
        ) {
            let cache = cache();
            let owner = |n: u8| (n > 0).then_some(TxnId([n; 16]));
            let mut model: BTreeMap<u8, ReadAt> = BTreeMap::new();
            for (start, end, at, who) in reads {
                let to: &[u8] = if end == 9 { &[] } else { &[end] };
                cache.read_span(&[start], to, ts(at), owner(who));
                for key in start..end.min(9) {
                    let read = ReadAt { timestamp: ts(at), owner: owner(who) };
                    let old = model.get(&key).copied();
                    model.insert(key, old.map_or(read, |o| o.merge(read, Rules::default())));
                }
            }
            for key in 0..9u8 {
                for writer in [A, B] {
                    let expected = model.get(&key).map_or(ts(11), |r| r.lowest_write(writer));
                    prop_assert_eq!(cache.lowest_write(&[key], writer), expected.max(ts(11)));
                }
            }
        }
    }
}
