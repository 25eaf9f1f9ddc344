//! The rows of a page: what is stored, with the transaction's own buffered
//! writes merged over it.

use crate::mvcc::{Result, RowSource};
use bytes::Bytes;
use lineradb_proto::shard::v1::BufferedWrite;
use std::cmp::Ordering;

/// Merges buffered writes over stored rows, in the order of the scan.
pub(super) struct Merged<'a> {
    rows: &'a mut dyn RowSource,
    stored: Option<(Bytes, Bytes)>,
    stored_done: bool,
    overlay: &'a [BufferedWrite],
    reverse: bool,
}

impl<'a> Merged<'a> {
    /// `overlay` is sorted by key, ascending.
    pub(super) fn new(
        rows: &'a mut dyn RowSource,
        overlay: &'a [BufferedWrite],
        reverse: bool,
    ) -> Self {
        Self {
            rows,
            stored: None,
            stored_done: false,
            overlay,
            reverse,
        }
    }

    fn next_write(&self) -> Option<&'a BufferedWrite> {
        match self.reverse {
            false => self.overlay.first(),
            true => self.overlay.last(),
        }
    }

    fn pop_write(&mut self) {
        self.overlay = match (self.reverse, self.overlay) {
            (false, [_, rest @ ..]) | (true, [rest @ .., _]) => rest,
            (_, empty) => empty,
        };
    }

    /// The next row. Deleted rows come as `None` values: they were examined.
    pub(super) fn next(&mut self) -> Result<Option<(Bytes, Option<Bytes>)>> {
        if self.stored.is_none() && !self.stored_done {
            self.stored = self.rows.next()?;
            self.stored_done = self.stored.is_none();
        }
        let Some(write) = self.next_write() else {
            return Ok(self.stored.take().map(|(k, v)| (k, Some(v))));
        };
        let order = match &self.stored {
            None => Ordering::Less,
            Some((key, _)) if self.reverse => key.cmp(&write.key),
            Some((key, _)) => write.key.cmp(key),
        };
        if order == Ordering::Greater {
            return Ok(self.stored.take().map(|(k, v)| (k, Some(v))));
        }
        if order == Ordering::Equal {
            self.stored = None;
        }
        self.pop_write();
        Ok(Some((write.key.clone(), write.value.clone())))
    }
}
