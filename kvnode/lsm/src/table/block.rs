//! A block: sorted entries with prefix-compressed keys and restart points.
//!
//! ```text
//! block := entry* | restart offset u32 * n | n u32
//! entry := shared varint | unshared varint | value length varint | trailer varint | key suffix | value
//! ```
//!
//! `shared` bytes of the key are those of the entry before; at a restart point `shared` is 0. The trailer
//! (sequence number and kind) is not part of the shared bytes: that makes two versions of one key cost no key
//! bytes, and lets [`Block::find`] compare a key without ever putting it together.

use crate::coding::{put_varint, take_varint, u32_at};
use crate::prefetch::{LINE_BYTES, prefetch};
use crate::types::Trailer;
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Range;

/// Entries between restart points of a data block.
pub(super) const RESTART_INTERVAL: usize = 16;

/// How far ahead of a scan within a block its lines are asked for.
const PREFETCH_BYTES: usize = 512;

/// Of longer entries most lines are their values, which a search passes over.
const SMALL_ENTRY_BYTES: usize = 128;

/// The bytes are not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub &'static str);

/// An entry before its key is put together; positions are offsets in the block.
#[derive(Debug, Clone)]
pub(super) struct RawEntry {
    pub shared: usize,
    pub suffix: Range<usize>,
    pub value: Range<usize>,
    pub trailer: Trailer,
}

/// The same before its trailer is decoded: offsets of trailer, key suffix, value, and the end.
#[derive(Debug, Clone, Copy)]
struct Layout {
    shared: usize,
    trailer: usize,
    suffix: usize,
    value: usize,
    end: usize,
}

/// A block in memory: a part of the memory map, or decompressed bytes.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    bytes: Bytes,
    /// Where the restart array begins, which is where the entries end.
    restarts_at: u32,
    restart_count: u32,
}

/// The same, borrowed: a point read takes no reference count.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockView<'a> {
    pub bytes: &'a [u8],
    restarts_at: usize,
    pub restart_count: usize,
}

impl Block {
    pub(super) fn new(bytes: Bytes) -> Result<Self, Malformed> {
        let view = BlockView::new(&bytes)?;
        // Both are less than the length of a block, which the format limits to 32 bits.
        let (restarts_at, restart_count) = (view.restarts_at as u32, view.restart_count as u32);
        Ok(Self {
            bytes,
            restarts_at,
            restart_count,
        })
    }

    /// The smallest block there is: one empty entry, one restart point.
    #[cfg(test)]
    pub(crate) fn smallest() -> Self {
        let bytes = Bytes::from_static(&[0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]);
        Self {
            bytes,
            restarts_at: 4,
            restart_count: 1,
        }
    }

    pub(super) fn view(&self) -> BlockView<'_> {
        let (restarts_at, restart_count) = (self.restarts_at as usize, self.restart_count as usize);
        BlockView {
            bytes: &self.bytes,
            restarts_at,
            restart_count,
        }
    }

    pub(super) fn slice(&self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    /// Length in memory.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> BlockView<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let too_short = Malformed("block is too short");
        let count_at = bytes.len().checked_sub(4).ok_or(too_short)?;
        let restart_count = u32_at(bytes, count_at).ok_or(too_short)? as usize;
        let restarts_at = restart_count
            .checked_mul(4)
            .and_then(|length| count_at.checked_sub(length));
        let restarts_at = restarts_at.ok_or(Malformed("restart array does not fit the block"))?;
        if restart_count == 0 || restarts_at == 0 || u32::try_from(bytes.len()).is_err() {
            return Err(Malformed("block without entries"));
        }
        Ok(Self {
            bytes,
            restarts_at,
            restart_count,
        })
    }

    /// Where the entries end.
    pub fn entries_end(&self) -> usize {
        self.restarts_at
    }

    /// Offset of the entry at a restart point.
    pub fn restart(&self, index: usize) -> Result<usize, Malformed> {
        match u32_at(self.bytes, self.restarts_at + 4 * index) {
            Some(offset) if (offset as usize) < self.restarts_at => Ok(offset as usize),
            _ => Err(Malformed("restart point outside of the entries")),
        }
    }

    /// Decodes the entry at `offset`.
    #[inline]
    pub fn entry(&self, offset: usize) -> Result<RawEntry, Malformed> {
        self.try_entry(offset)
            .ok_or(Malformed("entry does not fit the block"))
    }

    #[inline]
    fn try_entry(&self, offset: usize) -> Option<RawEntry> {
        let mut input = self.bytes.get(offset..self.restarts_at)?;
        let shared = usize::try_from(take_varint(&mut input)?).ok()?;
        let unshared = usize::try_from(take_varint(&mut input)?).ok()?;
        let value_length = usize::try_from(take_varint(&mut input)?).ok()?;
        let trailer = Trailer(take_varint(&mut input)?);
        let suffix_start = self.restarts_at - input.len();
        let value_start = suffix_start.checked_add(unshared)?;
        let value_end = value_start.checked_add(value_length)?;
        let fits = value_end <= self.restarts_at && trailer.is_known();
        fits.then_some(RawEntry {
            shared,
            suffix: suffix_start..value_start,
            value: value_start..value_end,
            trailer,
        })
    }

    /// Where the parts of the entry at `offset` are. Reads four varints, or, where the first three are of one byte
    /// as they nearly always are, three bytes and a word; a search decodes the trailer only of the key it looks for.
    #[inline]
    fn layout(&self, offset: usize) -> Option<Layout> {
        /// The bits that tell of a byte of a varint that another follows.
        const MORE: u64 = 0x8080_8080_8080_8080;
        let input = self.bytes.get(offset..self.restarts_at)?;
        if let Some(&[shared, unshared, value_length, ref trailer @ ..]) = input.first_chunk::<11>()
            && (shared | unshared | value_length) < 0x80
        {
            let last = !u64::from_le_bytes(*trailer) & MORE;
            if last != 0 {
                let trailer_length = last.trailing_zeros() as usize / 8 + 1;
                let suffix = offset + 3 + trailer_length;
                let value = suffix + usize::from(unshared);
                let end = value + usize::from(value_length);
                let fits = end <= self.restarts_at;
                return fits.then_some(Layout {
                    shared: usize::from(shared),
                    trailer: offset + 3,
                    suffix,
                    value,
                    end,
                });
            }
        }
        let entry = self.try_entry(offset)?;
        let trailer_length = crate::coding::varint_length(entry.trailer.0);
        Some(Layout {
            shared: entry.shared,
            trailer: entry.suffix.start.checked_sub(trailer_length)?,
            suffix: entry.suffix.start,
            value: entry.value.start,
            end: entry.value.end,
        })
    }

    /// The trailer of an entry.
    fn trailer(&self, layout: &Layout) -> Result<Trailer, Malformed> {
        let input = self.bytes.get(layout.trailer..layout.suffix);
        let trailer = input.and_then(|mut input| take_varint(&mut input).map(Trailer));
        trailer
            .filter(|trailer| trailer.is_known())
            .ok_or(Malformed("entry with an unknown trailer"))
    }

    /// The entry at a restart point with its whole key.
    pub fn restart_entry(&self, index: usize) -> Result<(&'a [u8], RawEntry), Malformed> {
        let entry = self.entry(self.restart(index)?)?;
        if entry.shared != 0 {
            return Err(Malformed("restart point shares a prefix"));
        }
        Ok((&self.bytes[entry.suffix.clone()], entry))
    }

    /// Index of the first restart point that is not before the target; `restart_count` if all are before.
    pub fn lower_bound_restart(
        &self,
        user_key: &[u8],
        trailer: Trailer,
    ) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.restart_count);
        while low < high {
            let middle = low + (high - low) / 2;
            let layout = self
                .layout(self.restart(middle)?)
                .filter(|layout| layout.shared == 0)
                .ok_or(Malformed("restart point without a whole entry"))?;
            let is_before = match self.bytes[layout.suffix..layout.value].cmp(user_key) {
                Ordering::Equal => self.trailer(&layout)?.0 > trailer.0,
                order => order.is_lt(),
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Asks for what is at an offset.
    #[inline]
    fn prefetch(&self, offset: usize) {
        prefetch(self.bytes.as_ptr().wrapping_add(offset));
    }

    /// How far ahead of a scan its lines are to be asked for: waiting for them is most of what a search in a block takes
    /// that is not in the processor's cache.
    #[inline]
    fn prefetch_bytes(&self) -> usize {
        match self.restarts_at <= self.restart_count * RESTART_INTERVAL * SMALL_ENTRY_BYTES {
            true => PREFETCH_BYTES,
            false => 0,
        }
    }

    /// Asks for the entries that a search among the restart points looks at first: it would wait for one after another.
    #[inline]
    pub fn prefetch_restarts(&self) {
        let count = self.restart_count;
        // The first two steps of the search; of four points or fewer all.
        let steps = match count {
            0..=4 => [0, 1, 2, 3],
            _ => [
                count / 2,
                count / 4,
                count / 2 + 1 + (count - count / 2 - 1) / 2,
                count / 2,
            ],
        };
        for at in steps {
            if at < count
                && let Ok(offset) = self.restart(at)
            {
                self.prefetch(offset);
            }
        }
    }

    /// The first entry at or after the target, if it has the target's user key.
    ///
    /// Keys are compared without being put together. While all entries so far were before the target, `matched`
    /// is how many first bytes the entry before has in common with the target. The next entry keeps `shared`
    /// bytes of it and its key is larger, so:
    /// - `shared > matched`: it differs from the target where the one before did; still before the target;
    /// - `shared < matched`: it is larger than the one before at a place where that one equalled the target;
    ///   after the target;
    /// - else its suffix decides.
    ///
    /// At the restart point where the scan may end, the count begins anew, as that entry shares nothing.
    pub fn find(&self, user_key: &[u8], target: Trailer) -> Result<Option<RawEntry>, Malformed> {
        self.prefetch_restarts();
        let restart = self.lower_bound_restart(user_key, target)?;
        let first_not_before = match restart < self.restart_count {
            true => self.restart(restart)?,
            false => self.restarts_at,
        };
        let mut offset = self.restart(restart.saturating_sub(1))?;
        let (mut matched, mut previous_length) = (0, 0);
        let ahead = self.prefetch_bytes();
        let mut asked_for = 0;
        while offset < self.restarts_at {
            // What was passed over is not wanted any more, and behind the entries there is nothing.
            asked_for = asked_for.max(offset + LINE_BYTES);
            while asked_for < (offset + ahead).min(self.restarts_at) {
                self.prefetch(asked_for);
                asked_for += LINE_BYTES;
            }
            if offset == first_not_before {
                (matched, previous_length) = (0, 0);
            }
            let layout = self
                .layout(offset)
                .ok_or(Malformed("entry does not fit the block"))?;
            offset = layout.end;
            if layout.shared > previous_length {
                return Err(Malformed("entry shares more than the key before it has"));
            }
            previous_length = layout.shared + (layout.value - layout.suffix);
            match layout.shared.cmp(&matched) {
                Ordering::Less => return Ok(None),
                Ordering::Greater => continue,
                Ordering::Equal => {}
            }
            let suffix = &self.bytes[layout.suffix..layout.value];
            let rest = &user_key[matched..];
            let common = common_prefix(suffix, rest);
            matched += common;
            match (suffix.get(common), rest.get(common)) {
                (None, None) => {
                    let trailer = self.trailer(&layout)?;
                    if trailer.0 <= target.0 {
                        return Ok(Some(RawEntry {
                            shared: layout.shared,
                            suffix: layout.suffix..layout.value,
                            value: layout.value..layout.end,
                            trailer,
                        }));
                    }
                }
                (None, Some(_)) => {}
                (Some(_), None) => return Ok(None),
                (Some(own), Some(wanted)) if own > wanted => return Ok(None),
                (Some(_), Some(_)) => {}
            }
        }
        Ok(None)
    }
}

/// How many first bytes two keys have in common.
#[inline]
pub(super) fn common_prefix(left: &[u8], right: &[u8]) -> usize {
    let mut common = 0;
    for (left, right) in left.chunks_exact(8).zip(right.chunks_exact(8)) {
        if left != right {
            break;
        }
        common += 8;
    }
    common
        + left[common..]
            .iter()
            .zip(&right[common..])
            .take_while(|(left, right)| left == right)
            .count()
}

/// Puts a block together, entry by entry in the order of the tree.
pub(super) struct BlockBuilder {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    restart_interval: usize,
    since_restart: usize,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    pub fn new(restart_interval: usize) -> Self {
        let (bytes, restarts, last_key) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            bytes,
            restarts,
            restart_interval,
            since_restart: 0,
            last_key,
        }
    }

    pub fn add(&mut self, user_key: &[u8], trailer: Trailer, value: &[u8]) {
        let shared = if self.restarts.is_empty() || self.since_restart == self.restart_interval {
            // The builder's caller ends a block long before 4 GiB: entries are limited and so is the block size.
            self.restarts.push(self.bytes.len() as u32);
            self.since_restart = 0;
            0
        } else {
            common_prefix(&self.last_key, user_key)
        };
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (user_key.len() - shared) as u64);
        put_varint(&mut self.bytes, value.len() as u64);
        put_varint(&mut self.bytes, trailer.0);
        self.bytes.extend_from_slice(&user_key[shared..]);
        self.bytes.extend_from_slice(value);
        self.since_restart += 1;
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&user_key[shared..]);
    }

    pub fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Length of the finished block.
    pub fn len(&self) -> usize {
        self.bytes.len() + 4 * self.restarts.len() + 4
    }

    /// The finished block; the builder is to be cleared before it is used again.
    pub fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.bytes.extend_from_slice(&restart.to_le_bytes());
        }
        self.bytes
            .extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        &self.bytes
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.restarts.clear();
        self.last_key.clear();
        self.since_restart = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::block_iter::BlockIter;
    use super::*;
    use crate::types::{Kind, compare};
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    /// Keys from a small alphabet share long prefixes.
    fn keys() -> impl Strategy<Value = Vec<(Vec<u8>, Trailer)>> {
        let key = vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..12);
        btree_map(key, vec(0u64..50, 1..4), 1..60).prop_map(|keys| {
            let mut entries = Vec::new();
            for (key, mut seqnos) in keys {
                seqnos.sort_unstable();
                seqnos.dedup();
                entries.extend(
                    seqnos
                        .iter()
                        .rev()
                        .map(|seqno| (key.clone(), Trailer::new(*seqno, Kind::Put))),
                );
            }
            entries
        })
    }

    fn build(entries: &[(Vec<u8>, Trailer)], interval: usize) -> Block {
        let mut builder = BlockBuilder::new(interval);
        for (key, trailer) in entries {
            // Values of both sorts of lengths, one byte and more.
            builder.add(key, *trailer, &vec![7; trailer.0 as usize % 150]);
        }
        assert_eq!(builder.len(), builder.finish().len());
        Block::new(Bytes::copy_from_slice(&builder.bytes)).unwrap()
    }

    fn order(entry: &(Vec<u8>, Trailer), key: &[u8], trailer: Trailer) -> Ordering {
        compare((&entry.0, entry.1), (key, trailer))
    }

    proptest! {
        #[test]
        fn search_and_walk_agree_with_the_list(
            entries in keys(),
            interval in 1usize..20,
            probe in vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..12),
            seqno in 0u64..60,
        ) {
            let block = build(&entries, interval);
            let mut iter = BlockIter::new(block.clone());
            iter.seek_to_first().unwrap();
            for (key, trailer) in &entries {
                prop_assert!(iter.valid());
                prop_assert_eq!((iter.user_key(), iter.trailer()), (&key[..], *trailer));
                iter.next().unwrap();
            }
            prop_assert!(!iter.valid());
            iter.seek_to_last().unwrap();
            for (key, trailer) in entries.iter().rev() {
                prop_assert_eq!((iter.user_key(), iter.trailer()), (&key[..], *trailer));
                iter.prev().unwrap();
            }
            prop_assert!(!iter.valid());
            let target = Trailer::at(seqno);
            for key in entries.iter().map(|entry| &entry.0).chain([&probe]) {
                let expected = entries.iter().find(|entry| order(entry, key, target).is_ge());
                let found = block.view().find(key, target).unwrap().map(|entry| entry.trailer);
                prop_assert_eq!(found, expected.filter(|entry| &entry.0 == key).map(|entry| entry.1));
                iter.seek(key, target).unwrap();
                let here = iter.valid().then(|| (iter.user_key().to_vec(), iter.trailer()));
                prop_assert_eq!(here.as_ref(), expected);
                iter.seek_for_prev(key, target).unwrap();
                let expected = entries.iter().rev().find(|entry| order(entry, key, target).is_le());
                let here = iter.valid().then(|| (iter.user_key().to_vec(), iter.trailer()));
                prop_assert_eq!(here.as_ref(), expected);
            }
        }

        #[test]
        fn a_walk_that_turns_round_agrees_with_the_list(
            entries in keys(),
            interval in 1usize..20,
            start: prop::sample::Index,
            turns in vec((any::<bool>(), 1usize..8), 0..20),
        ) {
            let mut iter = BlockIter::new(build(&entries, interval));
            let mut at = start.index(entries.len());
            iter.seek(&entries[at].0, entries[at].1).unwrap();
            for (forward, steps) in turns {
                for _ in 0..steps {
                    match forward {
                        true if at + 1 < entries.len() => (at, _) = (at + 1, iter.next().unwrap()),
                        false if at > 0 => (at, _) = (at - 1, iter.prev().unwrap()),
                        _ => break,
                    }
                    let (key, trailer) = &entries[at];
                    prop_assert!(iter.valid());
                    prop_assert_eq!((iter.user_key(), iter.trailer()), (&key[..], *trailer));
                    prop_assert_eq!(iter.value().len(), trailer.0 as usize % 150);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, count in 0u32..9, key: Vec<u8>) {
            let bytes = [&bytes[..], &count.to_le_bytes()].concat();
            let Ok(block) = Block::new(Bytes::from(bytes)) else { return Ok(()) };
            let _ = block.view().find(&key, Trailer::NEWEST);
            let mut iter = BlockIter::new(block);
            for start in [BlockIter::seek_to_first, BlockIter::seek_to_last] {
                let mut result = start(&mut iter);
                for _ in 0..10 {
                    result = result.and_then(|()| iter.next()).and_then(|()| iter.prev());
                    result = result.and_then(|()| iter.prev());
                }
            }
            let _ = iter.seek(&key, Trailer::NEWEST);
        }
    }
}
