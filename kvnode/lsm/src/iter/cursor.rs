//! [`Iter`]: the keys of a keyspace at one sequence number, within bounds, in both directions.
//!
//! Walking forward, the merge stands *on* the entry shown: the newest visible version of its key comes first.
//! Walking back, versions arrive oldest first, so the merge must have left a key before its newest visible version
//! is known: it stands *before* all versions of the key shown, whose key and value are kept aside. (The scheme of
//! LevelDB's `DBIter`.)

use super::{InternalIterator, MergeIter};
use crate::error::Result;
use crate::ranges::RangeSet;
use crate::slice::Slice;
use crate::table::blob::{Keep, Value};
use crate::types::{SeqNo, Trailer};
use std::ops::Bound;
use std::sync::Arc;

/// After so many steps over versions that are not to be shown, seek instead.
const STEPS_BEFORE_SEEK: usize = 8;

/// A position among the keys of a snapshot. Starts invalid: seek first. Holds everything it needs (memtables,
/// tables) and may outlive the snapshot and the database handle. After an error it is invalid until the next seek.
pub struct Iter {
    merge: MergeIter,
    /// Range deletes of the sources.
    ranges: Vec<Arc<RangeSet>>,
    seqno: SeqNo,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    forward: bool,
    valid: bool,
    /// How many entries that are not shown one move may pass by.
    patience: usize,
    /// A move has ended for that reason, and stands before what it has not looked at.
    paused: bool,
    /// Walking forward: other versions of `key` are not to be shown.
    skipping: bool,
    /// Walking back: the key shown. Walking forward: scratch for the key whose other versions are skipped.
    key: Vec<u8>,
    /// The value shown, where it is not what the merge stands on: walking back, or if it lies in a blob file.
    value: Slice,
    /// Walking forward: the value shown lies in a blob file.
    in_blob: bool,
}

fn owned(bound: Bound<&[u8]>) -> Bound<Vec<u8>> {
    bound.map(<[u8]>::to_vec)
}

impl Iter {
    pub(crate) fn new(
        merge: MergeIter,
        ranges: Vec<Arc<RangeSet>>,
        seqno: SeqNo,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Self {
        let (lower, upper) = (owned(lower), owned(upper));
        let (key, value) = (Vec::new(), Slice::default());
        Self {
            merge,
            ranges,
            seqno,
            lower,
            upper,
            forward: true,
            valid: false,
            patience: usize::MAX,
            paused: false,
            skipping: false,
            key,
            value,
            in_blob: false,
        }
    }

    /// From now on no move passes by more than about so many entries that are not shown (deleted ones, old versions;
    /// walking back, so many keys with all their versions): it pauses there. For those who walk something else beside it, and may never need to know what comes.
    pub fn set_patience(&mut self, entries: usize) {
        self.patience = entries;
    }

    /// Where a move has paused: it has found no key before this one (after this one, walking back), and
    /// [`Iter::resume`] goes on. While it is paused the iterator is not valid.
    pub fn paused_at(&self) -> Option<&[u8]> {
        self.paused.then(|| self.merge.user_key())
    }

    /// Goes on with a move that has paused.
    pub fn resume(&mut self) -> Result<()> {
        match (self.paused, self.forward) {
            (false, _) => Ok(()),
            (true, true) => self.settle_forward(),
            (true, false) => self.settle_backward(),
        }
    }

    /// True if the iterator stands on a key.
    pub fn valid(&self) -> bool {
        self.valid
    }

    /// The key under the iterator; empty if not valid.
    pub fn key(&self) -> &[u8] {
        match (self.valid, self.forward) {
            (false, _) => &[],
            (true, true) => self.merge.user_key(),
            (true, false) => &self.key,
        }
    }

    /// The value under the iterator; empty if not valid.
    pub fn value(&self) -> &[u8] {
        match (self.valid, self.forward && !self.in_blob) {
            (false, _) => &[],
            (true, true) => self.merge.value(),
            (true, false) => &self.value,
        }
    }

    /// The value under the iterator as an owned [`Slice`], without a copy.
    pub fn value_slice(&self) -> Slice {
        match (self.valid, self.forward && !self.in_blob) {
            (false, _) => Slice::default(),
            (true, true) => match self.merge.pinned_value() {
                Ok(Value::Here(value)) => value,
                // There is no pointer: `in_blob` would say so.
                _ => Slice::default(),
            },
            (true, false) => self.value.clone(),
        }
    }

    /// To the first key.
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.begin(true);
        match &self.lower {
            Bound::Included(key) => self.merge.seek(key, Trailer::at(self.seqno))?,
            Bound::Excluded(key) => self.merge.seek(key, Trailer::OLDEST)?,
            Bound::Unbounded => self.merge.seek_to_first()?,
        }
        self.settle_forward()
    }

    /// To the last key.
    pub fn seek_to_last(&mut self) -> Result<()> {
        self.begin(false);
        match &self.upper {
            Bound::Included(key) => self.merge.seek_for_prev(key, Trailer::OLDEST)?,
            Bound::Excluded(key) => self.merge.seek_for_prev(key, Trailer::NEWEST)?,
            Bound::Unbounded => self.merge.seek_to_last()?,
        }
        self.settle_backward()
    }

    /// To the first key that is not before `key`.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        if self.before_lower(key) {
            return self.seek_to_first();
        }
        self.begin(true);
        self.merge.seek(key, Trailer::at(self.seqno))?;
        self.settle_forward()
    }

    /// To the last key that is not after `key`.
    pub fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        if self.after_upper(key) {
            return self.seek_to_last();
        }
        self.begin(false);
        self.merge.seek_for_prev(key, Trailer::OLDEST)?;
        self.settle_backward()
    }

    /// To the next key. Does nothing if not valid.
    // Not `Iterator::next`: keys are borrowed and the walk goes both ways.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<()> {
        if !self.valid {
            return Ok(());
        }
        self.valid = false;
        if self.forward {
            self.key.clear();
            self.key.extend_from_slice(self.merge.user_key());
            self.skipping = true;
            self.merge.next()?;
            self.settle_forward()
        } else {
            self.forward = true;
            self.skipping = true;
            self.merge.seek(&self.key, Trailer::OLDEST)?;
            self.settle_forward()
        }
    }

    /// To the key before. Does nothing if not valid.
    pub fn prev(&mut self) -> Result<()> {
        if !self.valid {
            return Ok(());
        }
        self.valid = false;
        if self.forward {
            self.forward = false;
            self.key.clear();
            self.key.extend_from_slice(self.merge.user_key());
            self.merge.seek_for_prev(&self.key, Trailer::NEWEST)?;
        }
        self.settle_backward()
    }

    fn begin(&mut self, forward: bool) {
        self.forward = forward;
        self.valid = false;
        self.paused = false;
        self.skipping = false;
    }

    fn before_lower(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Included(lower) => key < lower.as_slice(),
            Bound::Excluded(lower) => key <= lower.as_slice(),
            Bound::Unbounded => false,
        }
    }

    fn after_upper(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Included(upper) => key > upper.as_slice(),
            Bound::Excluded(upper) => key >= upper.as_slice(),
            Bound::Unbounded => false,
        }
    }

    /// True if the newest visible version of a key says that it is absent, or if a newer range delete does.
    #[inline]
    fn is_absent(&self, key: &[u8], trailer: Trailer) -> bool {
        let hides = |set: &Arc<RangeSet>| set.newest(key, self.seqno) > trailer.seqno();
        trailer.is_delete() || self.ranges.iter().any(hides)
    }

    /// Moves the merge forward to the first entry to be shown.
    fn settle_forward(&mut self) -> Result<()> {
        self.paused = false;
        let (mut steps, mut passed) = (0, 0);
        while self.merge.valid() {
            let (key, trailer) = (self.merge.user_key(), self.merge.trailer());
            if passed > self.patience && !self.after_upper(key) {
                self.paused = true;
                return Ok(());
            }
            passed += 1;
            if self.skipping && key == self.key {
                steps += 1;
                if steps > STEPS_BEFORE_SEEK {
                    self.merge.seek(&self.key, Trailer::OLDEST)?;
                } else {
                    self.merge.next()?;
                }
                continue;
            }
            if self.after_upper(key) {
                return Ok(());
            }
            if trailer.seqno() > self.seqno {
                steps += 1;
                if steps > STEPS_BEFORE_SEEK {
                    let key = key.to_vec();
                    self.merge.seek(&key, Trailer::at(self.seqno))?;
                    steps = 0;
                } else {
                    self.merge.next()?;
                }
                continue;
            }
            if !self.is_absent(key, trailer) {
                self.in_blob = trailer.is_blob();
                if self.in_blob {
                    self.value = self.merge.pinned_value()?.read(key, Keep::IfRoom)?;
                }
                self.valid = true;
                return Ok(());
            }
            self.key.clear();
            self.key.extend_from_slice(self.merge.user_key());
            self.skipping = true;
            steps = 0;
            self.merge.next()?;
        }
        Ok(())
    }

    /// Moves the merge back over one key after the other until one is to be shown.
    fn settle_backward(&mut self) -> Result<()> {
        self.paused = false;
        let mut passed = 0;
        while self.merge.valid() {
            if self.before_lower(self.merge.user_key()) {
                return Ok(());
            }
            if passed > self.patience {
                self.paused = true;
                return Ok(());
            }
            passed += 1;
            self.key.clear();
            self.key.extend_from_slice(self.merge.user_key());
            let mut newest = None;
            while self.merge.valid() && self.merge.user_key() == self.key {
                let trailer = self.merge.trailer();
                if trailer.seqno() <= self.seqno {
                    let absent = self.is_absent(&self.key, trailer);
                    newest = match absent {
                        true => None,
                        false => Some(self.merge.pinned_value()?),
                    };
                }
                self.merge.prev()?;
            }
            if let Some(value) = newest {
                self.value = value.read(&self.key, Keep::IfRoom)?;
                self.valid = true;
                return Ok(());
            }
        }
        Ok(())
    }
}
