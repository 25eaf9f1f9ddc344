//! Merging sorted sources into one.
//!
//! A binary heap of the valid sources, by their current entries; smallest on top while walking forward, largest
//! while walking back. Turning round re-seeks every other source to the far side of the current entry. No entry
//! exists twice, as each has a sequence number of its own.

use super::InternalIterator;
use crate::error::Result;
use crate::memtable::MemtableIter;
use crate::slice::Slice;
use crate::table::RunIter;
use crate::table::blob::Value;
use crate::types::{Trailer, compare};

/// One input of a merge. An enum and not a trait object: the step is on the hot path of every scan.
// A merge has a handful of sources: the room that a memtable's leaves is less than what a pointer to follow would cost
// each step.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Source {
    Memtable(MemtableIter),
    Run(RunIter),
}

/// Calls a method of whichever source it is.
macro_rules! each {
    ($source:expr, $iter:ident => $call:expr) => {
        match $source {
            Source::Memtable($iter) => $call,
            Source::Run($iter) => $call,
        }
    };
}

impl Source {
    fn valid(&self) -> bool {
        each!(self, iter => iter.valid())
    }

    fn entry(&self) -> (&[u8], Trailer) {
        each!(self, iter => (iter.user_key(), iter.trailer()))
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        each!(self, iter => iter.seek(user_key, trailer))
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        each!(self, iter => iter.seek_for_prev(user_key, trailer))
    }

    fn next(&mut self) -> Result<()> {
        each!(self, iter => iter.next())
    }

    fn prev(&mut self) -> Result<()> {
        each!(self, iter => iter.prev())
    }
}

/// All entries of its sources, in order.
pub(crate) struct MergeIter {
    sources: Vec<Source>,
    /// Indexes of the valid sources, as a heap.
    heap: Vec<usize>,
    forward: bool,
}

impl MergeIter {
    pub fn new(sources: Vec<Source>) -> Self {
        let heap = Vec::with_capacity(sources.len());
        Self {
            sources,
            heap,
            forward: true,
        }
    }

    fn top(&self) -> Option<&Source> {
        self.sources.get(*self.heap.first()?)
    }

    /// True if source `left` belongs above source `right` in the heap.
    fn above(&self, left: usize, right: usize) -> bool {
        let order = compare(self.sources[left].entry(), self.sources[right].entry());
        if self.forward {
            order.is_lt()
        } else {
            order.is_gt()
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut best = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.above(self.heap[child], self.heap[best]) {
                    best = child;
                }
            }
            if best == at {
                return;
            }
            self.heap.swap(at, best);
            at = best;
        }
    }

    /// Positions every source and makes the heap anew.
    fn rebuild(
        &mut self,
        forward: bool,
        mut position: impl FnMut(usize, &mut Source) -> Result<()>,
    ) -> Result<()> {
        self.forward = forward;
        self.heap.clear();
        for (index, source) in self.sources.iter_mut().enumerate() {
            position(index, source)?;
            if source.valid() {
                self.heap.push(index);
            }
        }
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
        Ok(())
    }

    /// Moves the top source with `step` and restores the heap.
    fn step_top(&mut self, step: fn(&mut Source) -> Result<()>) -> Result<()> {
        let Some(&top) = self.heap.first() else {
            return Ok(());
        };
        if let Err(error) = step(&mut self.sources[top]) {
            self.heap.clear();
            return Err(error);
        }
        if !self.sources[top].valid() {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    /// Turns round: the other sources go beyond the current entry, then the current source makes its step.
    fn turn(&mut self, forward: bool) -> Result<()> {
        let Some(&top) = self.heap.first() else {
            return Ok(());
        };
        let (key, trailer) = self.sources[top].entry();
        let key = key.to_vec();
        self.rebuild(forward, |index, source| match (index == top, forward) {
            (true, true) => source.next(),
            (true, false) => source.prev(),
            (false, true) => source.seek(&key, trailer),
            (false, false) => source.seek_for_prev(&key, trailer),
        })
    }
}

impl InternalIterator for MergeIter {
    fn valid(&self) -> bool {
        !self.heap.is_empty()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.rebuild(
            true,
            |_, source| each!(source, iter => iter.seek_to_first()),
        )
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.rebuild(
            false,
            |_, source| each!(source, iter => iter.seek_to_last()),
        )
    }

    fn seek(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.rebuild(true, |_, source| source.seek(user_key, trailer))
    }

    fn seek_for_prev(&mut self, user_key: &[u8], trailer: Trailer) -> Result<()> {
        self.rebuild(false, |_, source| source.seek_for_prev(user_key, trailer))
    }

    fn next(&mut self) -> Result<()> {
        if self.forward {
            self.step_top(Source::next)
        } else {
            self.turn(true)
        }
    }

    fn prev(&mut self) -> Result<()> {
        if self.forward {
            self.turn(false)
        } else {
            self.step_top(Source::prev)
        }
    }

    fn user_key(&self) -> &[u8] {
        self.top()
            .map(|source| source.entry().0)
            .unwrap_or_default()
    }

    fn trailer(&self) -> Trailer {
        self.top()
            .map_or(Trailer::OLDEST, |source| source.entry().1)
    }

    fn value(&self) -> &[u8] {
        self.top()
            .map(|source| each!(source, iter => iter.value()))
            .unwrap_or_default()
    }

    fn pinned_value(&self) -> Result<Value> {
        match self.top() {
            Some(source) => each!(source, iter => iter.pinned_value()),
            None => Ok(Value::Here(Slice::default())),
        }
    }
}
