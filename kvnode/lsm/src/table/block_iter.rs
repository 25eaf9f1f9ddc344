//! Walking a block in both directions.
//!
//! Forward is one decode per step. Entries know only their predecessor's key, so a step back starts over at the
//! restart point before; the entries decoded on the way are kept, and the steps back that follow take them one by one
//! (as RocksDB's data block iterator does). Either way a walk from one end decodes each entry once.

use super::block::{Block, Malformed};
use crate::types::{KEY_BYTES_MAX, Trailer, compare};
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Range;

/// No more keys than this are kept on the way to an entry: sixteen of the longest. A forged block may have any number of
/// entries behind one restart point.
const BEHIND_BYTES_MAX: usize = 16 * KEY_BYTES_MAX;

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
    /// Walking back: the entries between a restart point and the current one, the last of them the one before it.
    behind: Vec<Passed>,
    /// The keys of these, one after the other.
    behind_keys: Vec<u8>,
}

/// An entry on the way to the current one.
struct Passed {
    offset: usize,
    /// Where its key begins among the keys.
    key_start: usize,
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
            behind: Vec::new(),
            behind_keys: Vec::new(),
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
        self.forget_behind();
    }

    fn forget_behind(&mut self) {
        self.behind.clear();
        self.behind_keys.clear();
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
        self.forget_behind();
        self.key.clear();
        self.next_offset = self.block.view().restart(index)?;
        self.advance()
    }

    /// Walks on to the last entry that begins before `end`, and keeps those on the way.
    fn run_to_last_before(&mut self, end: usize) -> Result<(), Malformed> {
        while self.next_offset < end {
            // More than a block of honest keys has: what is kept must be what comes right before.
            if self.behind_keys.len() > BEHIND_BYTES_MAX {
                self.forget_behind();
            }
            self.behind.push(Passed {
                offset: self.offset,
                key_start: self.behind_keys.len(),
                trailer: self.trailer,
                value: self.value.clone(),
            });
            self.behind_keys.extend_from_slice(&self.key);
            if let Err(error) = self.advance() {
                self.forget_behind();
                return Err(error);
            }
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
        self.block.view().prefetch_restarts();
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
        self.forget_behind();
        self.advance()
    }

    pub fn prev(&mut self) -> Result<(), Malformed> {
        if let Some(passed) = self.behind.pop() {
            self.key.clear();
            self.key
                .extend_from_slice(&self.behind_keys[passed.key_start..]);
            self.behind_keys.truncate(passed.key_start);
            self.offset = passed.offset;
            self.next_offset = passed.value.end;
            self.trailer = passed.trailer;
            self.value = passed.value;
            return Ok(());
        }
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
