//! [`RangeSet`]: deleted ranges of keys, cut into disjoint fragments.
//!
//! A range delete hides what is older than it in `start..end`. Several may overlap, so they are cut at each other's
//! borders: in a fragment all keys are hidden by the same sequence numbers, and one binary search answers for a key.
//! (The fragmented range tombstones of RocksDB, 2018.) A set never changes; memtables replace theirs, tables have
//! one for life, and a compaction merges those of its inputs.
//!
//! In a table file: `(start | end | count varint | newest seqno varint | distance to the next older varint ...)*`,
//! start and end with their lengths, fragments ascending.

use crate::coding::{put_prefixed, put_varint, take_length, take_prefixed, take_varint};
use crate::types::SeqNo;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Keys of `start..end`, hidden by the same range deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub start: Bytes,
    pub end: Bytes,
    /// Descending, none twice, never empty.
    pub seqnos: Vec<SeqNo>,
}

impl Fragment {
    /// The newest range delete that a reader at `seqno` sees; 0 if there is none.
    fn newest(&self, seqno: SeqNo) -> SeqNo {
        let at = self.seqnos.partition_point(|own| *own > seqno);
        self.seqnos.get(at).copied().unwrap_or(0)
    }
}

/// Range deletes of one memtable, one table or one compaction. Fragments are disjoint and ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    fragments: Vec<Fragment>,
}

impl RangeSet {
    /// Cuts `start..end @ seqno` ranges, in any order, into fragments. Empty ranges count for nothing.
    pub fn build(ranges: impl IntoIterator<Item = (Bytes, Bytes, SeqNo)>) -> Self {
        // What begins and what ends at a border.
        let mut borders: BTreeMap<Bytes, (Vec<SeqNo>, Vec<SeqNo>)> = BTreeMap::new();
        for (start, end, seqno) in ranges {
            if start < end {
                borders.entry(start).or_default().0.push(seqno);
                borders.entry(end).or_default().1.push(seqno);
            }
        }
        let mut open: BTreeMap<SeqNo, usize> = BTreeMap::new();
        let mut from = Bytes::new();
        let mut set = Self::default();
        for (border, (begins, ends)) in borders {
            if !open.is_empty() {
                let seqnos = open.keys().rev().copied().collect();
                set.push(from, border.clone(), seqnos);
            }
            for seqno in begins {
                *open.entry(seqno).or_default() += 1;
            }
            for seqno in ends {
                if let Some(count) = open.get_mut(&seqno) {
                    *count -= 1;
                    if *count == 0 {
                        open.remove(&seqno);
                    }
                }
            }
            from = border;
        }
        set
    }

    /// Adds a fragment after all others, as part of the last one if nothing but the border parts them.
    fn push(&mut self, start: Bytes, end: Bytes, seqnos: Vec<SeqNo>) {
        if seqnos.is_empty() {
            return;
        }
        match self.fragments.last_mut() {
            Some(last) if last.end == start && last.seqnos == seqnos => last.end = end,
            _ => self.fragments.push(Fragment { start, end, seqnos }),
        }
    }

    /// One set of many.
    pub fn merge<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::build(sets.into_iter().flat_map(Self::ranges))
    }

    /// This set and one more range.
    pub fn with(&self, start: &[u8], end: &[u8], seqno: SeqNo) -> Self {
        let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        Self::build(self.ranges().chain([(start, end, seqno)]))
    }

    fn ranges(&self) -> impl Iterator<Item = (Bytes, Bytes, SeqNo)> + '_ {
        self.fragments.iter().flat_map(|fragment| {
            let (start, end) = (&fragment.start, &fragment.end);
            let seqnos = fragment.seqnos.iter();
            seqnos.map(move |seqno| (start.clone(), end.clone(), *seqno))
        })
    }

    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// Number of range deletes, counted in each fragment anew.
    pub fn count(&self) -> u64 {
        let seqnos = self.fragments.iter();
        seqnos.map(|fragment| fragment.seqnos.len() as u64).sum()
    }

    /// The newest range delete that hides older versions of the key from a reader at `seqno`; 0 if there is none.
    #[inline]
    pub fn newest(&self, user_key: &[u8], seqno: SeqNo) -> SeqNo {
        if self.fragments.is_empty() {
            return 0;
        }
        let at = self
            .fragments
            .partition_point(|fragment| &fragment.end[..] <= user_key);
        match self.fragments.get(at) {
            Some(fragment) if &fragment.start[..] <= user_key => fragment.newest(seqno),
            _ => 0,
        }
    }

    /// A sequence number below which a reader at `seqno` sees nothing of the keys from `smallest` to `largest`, both
    /// included; 0 if there is none.
    pub fn newest_over(&self, smallest: &[u8], largest: &[u8], seqno: SeqNo) -> SeqNo {
        let at = self
            .fragments
            .partition_point(|fragment| &fragment.end[..] <= smallest);
        let (mut covered, mut least) = (smallest, SeqNo::MAX);
        for fragment in &self.fragments[at..] {
            if &fragment.start[..] > covered {
                return 0;
            }
            least = least.min(fragment.newest(seqno));
            if &fragment.end[..] > largest {
                return least;
            }
            covered = &fragment.end;
        }
        0
    }

    /// Drops sequence numbers that `keep`, asked for a fragment and its numbers from the newest on, does not want.
    pub fn retain(self, mut keep: impl FnMut(&Fragment, SeqNo) -> bool) -> Self {
        let mut kept = Self::default();
        for fragment in self.fragments {
            let seqnos = fragment.seqnos.iter().copied();
            let seqnos = seqnos.filter(|seqno| keep(&fragment, *seqno)).collect();
            kept.push(fragment.start, fragment.end, seqnos);
        }
        kept
    }

    /// Takes everything before `key` out of the set; a fragment with `key` inside is cut there.
    pub fn take_before(&mut self, key: &[u8]) -> Self {
        let at = self
            .fragments
            .partition_point(|fragment| &fragment.start[..] < key);
        let rest = self.fragments.split_off(at);
        let mut taken = std::mem::replace(&mut self.fragments, rest);
        if let Some(last) = taken.last_mut()
            && &last.end[..] > key
        {
            let cut = Bytes::copy_from_slice(key);
            let (end, seqnos) = (last.end.clone(), last.seqnos.clone());
            let start = cut.clone();
            self.fragments.insert(0, Fragment { start, end, seqnos });
            last.end = cut;
        }
        Self { fragments: taken }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for fragment in &self.fragments {
            put_prefixed(&mut bytes, &fragment.start);
            put_prefixed(&mut bytes, &fragment.end);
            put_varint(&mut bytes, fragment.seqnos.len() as u64);
            let mut before = 0;
            for seqno in &fragment.seqnos {
                // The first as it is, the others by their distance.
                let number = if before == 0 { *seqno } else { before - seqno };
                put_varint(&mut bytes, number);
                before = *seqno;
            }
        }
        bytes
    }

    /// Reads what [`Self::encode`] wrote; `None` if the bytes are anything else.
    pub fn decode(mut input: &[u8]) -> Option<Self> {
        let input = &mut input;
        let mut fragments: Vec<Fragment> = Vec::new();
        while !input.is_empty() {
            let start = Bytes::copy_from_slice(take_prefixed(input)?);
            let end = Bytes::copy_from_slice(take_prefixed(input)?);
            let ordered = fragments.last().is_none_or(|last| last.end <= start);
            let count = take_length(input)?;
            if start >= end || !ordered || count == 0 {
                return None;
            }
            let mut seqnos = vec![take_varint(input).filter(|seqno| *seqno > 0)?];
            for _ in 1..count {
                let distance = take_varint(input).filter(|distance| *distance > 0)?;
                let seqno = seqnos.last()?.checked_sub(distance)?;
                seqnos.push(Some(seqno).filter(|seqno| *seqno > 0)?);
            }
            fragments.push(Fragment { start, end, seqnos });
        }
        Some(Self { fragments })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    type Range = (u8, u8, SeqNo);

    fn set(ranges: &[Range]) -> RangeSet {
        let bytes = |key: u8| Bytes::copy_from_slice(&[key]);
        RangeSet::build(
            ranges
                .iter()
                .map(|(start, end, seqno)| (bytes(*start), bytes(*end), *seqno)),
        )
    }

    fn newest(ranges: &[Range], key: u8, at: SeqNo) -> SeqNo {
        let hides = ranges
            .iter()
            .filter(|(start, end, seqno)| *start <= key && key < *end && *seqno <= at);
        hides.map(|range| range.2).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn a_set_answers_as_the_list_of_its_ranges(
            ranges in vec((0u8..20, 0u8..20, 1u64..30), 0..12),
            at in 0u64..35,
            cut in 0u8..20,
        ) {
            let whole = set(&ranges);
            prop_assert_eq!(RangeSet::decode(&whole.encode()), Some(whole.clone()));
            let mut one_by_one = RangeSet::default();
            for (start, end, seqno) in &ranges {
                one_by_one = one_by_one.with(&[*start], &[*end], *seqno);
            }
            prop_assert_eq!(&one_by_one, &whole);
            let mut right = whole.clone();
            let left = right.take_before(&[cut]);
            for key in 0..20 {
                let expected = newest(&ranges, key, at);
                prop_assert_eq!(whole.newest(&[key], at), expected);
                let (here, there) = if key < cut { (&left, &right) } else { (&right, &left) };
                prop_assert_eq!((here.newest(&[key], at), there.newest(&[key], at)), (expected, 0));
                let over = whole.newest_over(&[key.min(cut)], &[key.max(cut)], at);
                let least = (key.min(cut)..=key.max(cut)).map(|key| newest(&ranges, key, at)).min();
                prop_assert_eq!(over, least.unwrap());
            }
            prop_assert_eq!(RangeSet::merge([&left, &right]), whole);
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>, at in 0usize..40, mask: u8) {
            let _ = RangeSet::decode(&bytes);
            let mut damaged = set(&[(1, 9, 7), (4, 12, 9), (4, 12, 3)]).encode();
            let at = at % damaged.len();
            damaged[at] ^= mask;
            let _ = RangeSet::decode(&damaged);
        }
    }

    #[test]
    fn retain_drops_numbers_and_empty_fragments() {
        let kept = set(&[(1, 9, 7), (4, 12, 9)]).retain(|_, seqno| seqno > 7);
        assert_eq!(kept, set(&[(4, 12, 9)]));
    }
}
