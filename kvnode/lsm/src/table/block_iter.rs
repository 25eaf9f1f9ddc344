//! Walking a block in both directions.
//!
//! Forward is one decode per step. A step back starts over at the restart point before, as entries know only
//! their predecessor's key; that is why restart intervals are short.

use super::block::{Block, Malformed};
use crate::types::{Trailer, compare};
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Range;

/// A position in a block. Keeps the block alive.
pub(super) struct BlockIter {
    block: Block,
    /// Offset of the current entry; the end of the entries if there is none.
    offset: usize,
    /// Offset of the entry after the current one.
    next_offset: usize,
    key: Vec<u8>,
    trailer: Trailer,
    value: Range<usize>,
}

impl BlockIter {
    pub fn new(block: Block) -> Self {
        let end = block.view().entries_end();
        Self {
            block,
            offset: end,
            next_offset: end,
            key: Vec::new(),
            trailer: Trailer::OLDEST,
            value: 0..0,
        }
    }

    /// Goes over to another block, keeping the key buffer; the position is invalid until a seek.
    pub fn reset(&mut self, block: Block) {
        self.block = block;
        self.invalidate();
    }

    pub fn valid(&self) -> bool {
        self.offset < self.block.view().entries_end()
    }

    pub fn user_key(&self) -> &[u8] {
        &self.key
    }

    pub fn trailer(&self) -> Trailer {
        self.trailer
    }

    pub fn value(&self) -> &[u8] {
        &self.block.view().bytes[self.value.clone()]
    }

    pub fn value_bytes(&self) -> Bytes {
        self.block.slice(self.value.clone())
    }

    fn invalidate(&mut self) {
        self.offset = self.block.view().entries_end();
        self.next_offset = self.offset;
        self.value = 0..0;
    }

    /// Decodes the entry at `next_offset` and makes it the current one.
    #[inline]
    fn advance(&mut self) -> Result<(), Malformed> {
        let view = self.block.view();
        if self.next_offset >= view.entries_end() {
            self.invalidate();
            return Ok(());
        }
        let entry = view.entry(self.next_offset)?;
        if entry.shared > self.key.len() {
            return Err(Malformed("entry shares more than the key before it has"));
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(&view.bytes[entry.suffix]);
        self.trailer = entry.trailer;
        self.offset = self.next_offset;
        self.next_offset = entry.value.end;
        self.value = entry.value;
        Ok(())
    }

    fn go_to_restart(&mut self, index: usize) -> Result<(), Malformed> {
        self.key.clear();
        self.next_offset = self.block.view().restart(index)?;
        self.advance()
    }

    /// Walks on to the last entry that begins before `end`.
    fn run_to_last_before(&mut self, end: usize) -> Result<(), Malformed> {
        while self.next_offset < end {
            self.advance()?;
        }
        Ok(())
    }

    pub fn seek_to_first(&mut self) -> Result<(), Malformed> {
        self.go_to_restart(0)
    }

    pub fn seek_to_last(&mut self) -> Result<(), Malformed> {
        self.go_to_restart(self.block.view().restart_count - 1)?;
        self.run_to_last_before(self.block.view().entries_end())
    }

    fn compare_to(&self, user_key: &[u8], trailer: Trailer) -> Ordering {
        compare((&self.key, self.trailer), (user_key, trailer))
    }

    /// To the first entry at or after the target.
    pub fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<(), Malformed> {
        let restart = self.block.view().lower_bound_restart(user_key, trailer)?;
        self.go_to_restart(restart.saturating_sub(1))?;
        while self.valid() && self.compare_to(user_key, trailer) == Ordering::Less {
            self.advance()?;
        }
        Ok(())
    }

    /// To the last entry at or before the target.
    pub fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<(), Malformed> {
        self.seek(user_key, trailer)?;
        if !self.valid() {
            self.seek_to_last()
        } else if self.compare_to(user_key, trailer) == Ordering::Greater {
            self.prev()
        } else {
            Ok(())
        }
    }

    pub fn next(&mut self) -> Result<(), Malformed> {
        self.advance()
    }

    pub fn prev(&mut self) -> Result<(), Malformed> {
        let view = self.block.view();
        let current = self.offset;
        if !self.valid() {
            return Ok(());
        }
        let (mut low, mut high) = (0, view.restart_count);
        while low < high {
            let middle = low + (high - low) / 2;
            if view.restart(middle)? < current {
                low = middle + 1
            } else {
                high = middle
            }
        }
        if low == 0 {
            self.invalidate();
            return Ok(());
        }
        self.go_to_restart(low - 1)?;
        self.run_to_last_before(current)
    }
}
