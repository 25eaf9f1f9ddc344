//! Walking tables: a [`RunIter`] goes through a sorted run of tables (a level, or one table of level 0) as if it
//! were one list. What walks forward from block to block asks for what comes next before it gets there
//! ([`ReadAhead`]).

use super::blob::Value;
use super::block_iter::BlockIter;
use super::format::Handle;
use super::reader::Table;
use crate::error::Result;
use crate::iter::InternalIterator;
use crate::slice::Slice;
use crate::types::Trailer;
use std::ops::Range;
use std::sync::Arc;

/// Which part of a file to ask for while it is walked through, ever more the longer that goes on.
#[derive(Debug)]
struct ReadAhead {
    /// Blocks entered one after the other.
    in_order: u32,
    /// Bytes to ask for next.
    window: u64,
    /// Up to where was asked.
    asked: u64,
}

impl ReadAhead {
    /// Walks of fewer blocks ask for nothing.
    const BLOCKS_MIN: u32 = 2;
    const WINDOW_MIN: u64 = 64 << 10;
    const WINDOW_MAX: u64 = 2 << 20;

    /// `all`: the whole table is going to be read.
    fn new(all: bool) -> Self {
        let (in_order, window) = match all {
            true => (Self::BLOCKS_MIN, Self::WINDOW_MAX),
            false => (0, Self::WINDOW_MIN),
        };
        Self {
            in_order,
            window,
            asked: 0,
        }
    }

    /// Notes the next block; what to ask for now, half a window before it is needed.
    fn enter(&mut self, follows: bool, handle: Handle) -> Option<Range<u64>> {
        if !follows {
            *self = Self::new(false);
            return None;
        }
        self.in_order = self.in_order.saturating_add(1);
        let end = handle.offset + u64::from(handle.length);
        if self.in_order < Self::BLOCKS_MIN || end + self.window / 2 < self.asked {
            return None;
        }
        let start = self.asked.max(handle.offset);
        self.asked = start + self.window;
        self.window = Self::WINDOW_MAX.min(2 * self.window);
        Some(start..self.asked)
    }
}

/// A position in one table.
struct TableIter {
    table: Arc<Table>,
    ordinal: usize,
    handle: Handle,
    /// The current block; `None` before the first seek.
    block: Option<BlockIter>,
    /// Blocks go into the cache.
    keep: bool,
    read_ahead: ReadAhead,
}

impl TableIter {
    fn new(table: Arc<Table>, keep: bool) -> Self {
        Self {
            table,
            keep,
            read_ahead: ReadAhead::new(!keep),
            ordinal: 0,
            handle: Handle::default(),
            block: None,
        }
    }

    fn valid(&self) -> bool {
        self.block.as_ref().is_some_and(BlockIter::valid)
    }

    fn block_count(&self) -> usize {
        self.table.block_count()
    }

    /// Loads a block unless it is the current one; its position is to be set by `seek`.
    fn enter(
        &mut self,
        ordinal: usize,
        seek: impl FnOnce(&mut BlockIter) -> Result<(), super::block::Malformed>,
    ) -> Result<()> {
        if self.block.is_none() || self.ordinal != ordinal {
            let (block, handle) = self.table.block(ordinal, self.keep)?;
            let follows = match self.block {
                Some(_) => ordinal == self.ordinal + 1,
                None => !self.keep,
            };
            if let Some(range) = self.read_ahead.enter(follows, handle) {
                self.table.will_need(range);
            }
            match &mut self.block {
                Some(iter) => iter.reset(block),
                None => self.block = Some(BlockIter::new(block)),
            }
            (self.ordinal, self.handle) = (ordinal, handle);
        }
        match &mut self.block {
            Some(iter) => seek(iter).map_err(|error| self.table.block_error(self.handle, error)),
            None => Ok(()),
        }
    }

    fn first_block_at(&self, user_key: &[u8], trailer: Trailer) -> Result<usize> {
        let found = self.table.find_block(user_key, trailer)?;
        Ok(found.map_or(self.block_count(), |(ordinal, _)| ordinal))
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.enter(0, BlockIter::seek_to_first)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.enter(self.block_count() - 1, BlockIter::seek_to_last)
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        let trailer = self.table.meta.to_file(trailer);
        let ordinal = self.first_block_at(user_key, trailer)?;
        if ordinal == self.block_count() {
            self.block = None;
            return Ok(());
        }
        self.enter(ordinal, |block| block.seek(user_key, trailer))?;
        self.skip_forward()
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        let trailer = self.table.meta.to_file(trailer);
        let ordinal = self
            .first_block_at(user_key, trailer)?
            .min(self.block_count() - 1);
        self.enter(ordinal, |block| block.seek_for_prev(user_key, trailer))?;
        self.skip_backward()
    }

    fn next(&mut self) -> Result<()> {
        let ordinal = self.ordinal;
        self.enter(ordinal, BlockIter::next)?;
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        let ordinal = self.ordinal;
        self.enter(ordinal, BlockIter::prev)?;
        self.skip_backward()
    }

    fn skip_forward(&mut self) -> Result<()> {
        if !self.valid() && self.ordinal + 1 < self.block_count() {
            self.enter(self.ordinal + 1, BlockIter::seek_to_first)?;
        }
        Ok(())
    }

    fn skip_backward(&mut self) -> Result<()> {
        if !self.valid() && self.ordinal > 0 {
            self.enter(self.ordinal - 1, BlockIter::seek_to_last)?;
        }
        Ok(())
    }
}

/// Walks disjoint tables in key order. Invalid outside of them.
pub(crate) struct RunIter {
    tables: Arc<Vec<Arc<Table>>>,
    /// Index of the current table.
    position: usize,
    current: Option<TableIter>,
    keep: bool,
}

impl RunIter {
    pub fn new(tables: Arc<Vec<Arc<Table>>>) -> Self {
        Self {
            tables,
            position: 0,
            current: None,
            keep: true,
        }
    }

    /// For a compaction: what it reads is about to go and must not push out what others read.
    pub fn new_uncached(tables: Arc<Vec<Arc<Table>>>) -> Self {
        Self {
            keep: false,
            ..Self::new(tables)
        }
    }

    /// Makes the table at `position` current; there may be none.
    fn enter(&mut self, position: Option<usize>) -> Option<&mut TableIter> {
        let Some((position, table)) = position.and_then(|at| Some((at, self.tables.get(at)?)))
        else {
            self.current = None;
            return None;
        };
        if self.current.is_none() || self.position != position {
            self.current = Some(TableIter::new(Arc::clone(table), self.keep));
            self.position = position;
        }
        self.current.as_mut()
    }

    fn block(&self) -> Option<&BlockIter> {
        self.current.as_ref()?.block.as_ref()
    }

    fn skip_forward(&mut self) -> Result<()> {
        if self.current.as_ref().is_some_and(|table| !table.valid()) {
            match self.enter(Some(self.position + 1)) {
                Some(table) => table.seek_to_first()?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn skip_backward(&mut self) -> Result<()> {
        if self.current.as_ref().is_some_and(|table| !table.valid()) {
            match self.enter(self.position.checked_sub(1)) {
                Some(table) => table.seek_to_last()?,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

impl InternalIterator for RunIter {
    fn valid(&self) -> bool {
        self.block().is_some_and(BlockIter::valid)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        match self.enter(Some(0)) {
            Some(table) => table.seek_to_first(),
            None => Ok(()),
        }
    }

    fn seek_to_last(&mut self) -> Result<()> {
        match self.enter(self.tables.len().checked_sub(1)) {
            Some(table) => table.seek_to_last(),
            None => Ok(()),
        }
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        let position = self
            .tables
            .partition_point(|table| table.meta.is_before(user_key));
        if let Some(table) = self.enter(Some(position)) {
            table.seek(user_key, trailer)?;
        }
        self.skip_forward()
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        let after = self
            .tables
            .partition_point(|table| table.meta.smallest_key.as_slice() <= user_key);
        if let Some(table) = self.enter(after.checked_sub(1)) {
            table.seek_for_prev(user_key, trailer)?;
        }
        self.skip_backward()
    }

    fn next(&mut self) -> Result<()> {
        if let Some(table) = &mut self.current {
            table.next()?;
        }
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(table) = &mut self.current {
            table.prev()?;
        }
        self.skip_backward()
    }

    fn user_key(&self) -> &[u8] {
        self.block().map(BlockIter::user_key).unwrap_or_default()
    }

    fn trailer(&self) -> Trailer {
        let current = self.current.as_ref();
        current.map_or(Trailer::OLDEST, |current| {
            let block = current.block.as_ref();
            let trailer = block.map_or(Trailer::OLDEST, BlockIter::trailer);
            current.table.meta.to_tree(trailer)
        })
    }

    fn value(&self) -> &[u8] {
        self.block().map(BlockIter::value).unwrap_or_default()
    }

    fn pinned_value(&self) -> Result<Value> {
        let current = self.current.as_ref();
        let Some((table, Some(block))) = current.map(|it| (&it.table, &it.block)) else {
            return Ok(Value::Here(Slice::default()));
        };
        table.value(block.trailer(), block.value_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(at: u64) -> Handle {
        Handle {
            offset: at * 4096,
            length: 4096,
        }
    }

    #[test]
    fn a_walk_asks_for_every_byte_once_and_before_it_is_there() {
        let mut ahead = ReadAhead::new(false);
        let mut asked_to = 0;
        assert_eq!(
            ahead.enter(false, block(7)),
            None,
            "a point read asks for nothing"
        );
        assert_eq!(ahead.enter(true, block(8)), None, "nor does a short scan");
        for at in 9..5000 {
            if let Some(range) = ahead.enter(true, block(at)) {
                assert!(
                    asked_to == 0 || range.start == asked_to,
                    "{range:?} after {asked_to}"
                );
                let length = range.end - range.start;
                assert!((ReadAhead::WINDOW_MIN..=ReadAhead::WINDOW_MAX).contains(&length));
                asked_to = range.end;
            }
            assert!(
                at < 10 || block(at + 1).offset < asked_to,
                "block {at}, {asked_to}"
            );
        }
        assert_eq!(ahead.enter(false, block(2)), None);
        assert_eq!(
            ReadAhead::new(true).enter(true, block(0)),
            Some(0..ReadAhead::WINDOW_MAX)
        );
    }
}
