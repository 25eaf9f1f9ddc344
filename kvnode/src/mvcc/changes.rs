//! What changed in a span of keys during a span of time: every version of it,
//! oldest first, as many as fit into an answer.
//!
//! Unlike a scan, which finds of each key the version that is visible, this finds
//! all that were committed in `(after, to]`, deletions too, from whatever key. Two
//! ways lead to them: a walk over the span, which passes by tables without a
//! version of these times, or, where somebody has kept a list of what was written,
//! a look at each of these. Intents at or below `to` come first: those of which a
//! record says that they are committed are changes like any other, before they are
//! resolved; one whose fate is not known stops the whole, as it stops a read.
//!
//! **Pages.** The answer holds the first changes by timestamp and key, so many that
//! a budget of bytes is met, in memory that is bounded by it, too: what comes after
//! the first one that did not fit is passed by. An answer ends with a whole
//! timestamp unless one alone is larger than the budget.

use super::point::{Foreign, judge, newest_version};
use super::{Cursor, Error, Intent, Reader, Result, Version, Visible, keys};
use crate::command::Tree;
use bytes::Bytes;
use lineradb_common::{Position, Timestamp};
use std::collections::BTreeMap;

/// Intents that one refusal names.
const LOCKS_MAX: usize = 256;
/// Versions above the span of time that a walk names.
const LATER_MAX: usize = 8192;
/// Single steps past versions of one key before a seek.
const STEPS_BEFORE_SEEK: usize = 4;
/// What a change takes beside its key and values.
const CHANGE_BYTES: usize = 48;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// First key.
    pub start: Bytes,
    /// First key that is not looked at; empty: the end of the key space.
    pub end: Bytes,
    /// What is known already.
    pub after: Position,
    /// Up to here.
    pub to: Timestamp,
    /// Bytes of keys and values in the answer, one change more or less.
    pub bytes_max: usize,
    /// Tell what stood there before.
    pub previous: bool,
}

impl Wanted {
    /// The bounds of its keys in the trees.
    pub fn bounds(&self) -> (Bytes, Bytes) {
        let lower = keys::addressable(&self.start);
        (lower, keys::addressable_end(&self.end))
    }

    /// History down to here is needed: what stood before the first change that
    /// may be found included.
    pub fn oldest(&self) -> Timestamp {
        self.after.resolved()
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// The commit timestamp.
    pub timestamp: Timestamp,
    /// `None`: it was deleted.
    pub value: Option<Bytes>,
    /// The value that stood there before, if that was asked for and there was one.
    pub previous: Option<Visible>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In order.
    pub changes: Vec<Change>,
    /// Everything at or before is known now.
    pub until: Position,
}

/// Finds changes by a walk over the span. Beside them it answers where versions
/// above `to` stand; `None`: too many to name.
///
/// # Errors
/// [`Error::Locked`] when undecided intents at or below `to` are in the way; else
/// when the store fails.
pub fn walk(reader: &impl Reader, wanted: &Wanted) -> Result<(Found, Option<Vec<Bytes>>)> {
    let mut page = Page::new(reader, wanted);
    page.add_intents()?;
    let (lower, upper) = wanted.bounds();
    let known = wanted.after.resolved();
    let mut later = Some(Vec::new());
    let mut passed = Vec::new();
    let mut cursor = reader.written_between(&lower, &upper, known, Timestamp::MAX);
    cursor.seek_to_first()?;
    while cursor.valid() {
        let (addressable, timestamp) = keys::split_version_key(cursor.key())?;
        if timestamp <= known {
            // So are all that follow of this key.
            passed.clear();
            passed.extend_from_slice(addressable);
            pass(&mut cursor, &passed)?;
            continue;
        }
        if timestamp > wanted.to {
            if let Some(found) = &mut later {
                found.push(Bytes::copy_from_slice(cursor.key()));
            }
            later = later.filter(|found| found.len() <= LATER_MAX);
        } else {
            passed.clear();
            passed.extend_from_slice(addressable);
            page.add(&passed, timestamp, || value_of(cursor.value()).map(Some))?;
        }
        cursor.next()?;
    }
    Ok((page.finish(), later))
}

/// Finds changes among versions of which the keys are known: all that the span
/// got after `after`, in whatever order, and others of it.
///
/// # Errors
/// As [`walk`].
pub fn among<'a>(
    reader: &impl Reader,
    wanted: &Wanted,
    written: impl IntoIterator<Item = &'a Bytes>,
) -> Result<Found> {
    let mut page = Page::new(reader, wanted);
    page.add_intents()?;
    for key in written {
        let (addressable, timestamp) = keys::split_version_key(key)?;
        page.add(addressable, timestamp, || {
            reader.get(Tree::Data, key)?.map(value_of).transpose()
        })?;
    }
    Ok(page.finish())
}

fn value_of(bytes: Bytes) -> Result<Option<Bytes>> {
    Ok(Version::decode(bytes)?.value)
}

/// From a version of a key to the first version of the next one.
fn pass(cursor: &mut impl Cursor, addressable: &[u8]) -> Result<()> {
    for _ in 0..STEPS_BEFORE_SEEK {
        cursor.next()?;
        if !cursor.valid() || keys::split_version_key(cursor.key())?.0 != addressable {
            return Ok(());
        }
    }
    cursor.seek(&keys::versions_end(addressable))
}

/// The first changes, in order, within a budget.
struct Page<'a, R> {
    reader: &'a R,
    wanted: &'a Wanted,
    kept: BTreeMap<(Timestamp, Bytes), Kept>,
    bytes: usize,
    /// The first that did not fit.
    cut: Option<(Timestamp, Bytes)>,
}

struct Kept {
    value: Option<Bytes>,
    previous: Option<Visible>,
}

impl Kept {
    fn weight(&self, key: &Bytes) -> usize {
        let previous = self
            .previous
            .as_ref()
            .and_then(|v| v.version.value.as_ref());
        let values = [self.value.as_ref(), previous];
        let values: usize = values.into_iter().flatten().map(Bytes::len).sum();
        key.len() + values + CHANGE_BYTES
    }
}

impl<'a, R: Reader> Page<'a, R> {
    fn new(reader: &'a R, wanted: &'a Wanted) -> Self {
        Page {
            reader,
            wanted,
            kept: BTreeMap::new(),
            bytes: 0,
            cut: None,
        }
    }

    fn add_intents(&mut self) -> Result<()> {
        let (lower, upper) = self.wanted.bounds();
        let mut locks = Vec::new();
        let mut cursor = self.reader.cursor(Tree::Intent, &lower, &upper);
        cursor.seek_to_first()?;
        while cursor.valid() && locks.len() < LOCKS_MAX {
            let intent = Intent::decode(cursor.value())?;
            match judge(self.reader, &intent, self.wanted.to)? {
                Foreign::Skip => {}
                Foreign::Committed(at) => {
                    self.add(cursor.key(), at, || Ok(Some(intent.value())))?
                }
                Foreign::Undecided => {
                    locks.push(intent.to_lock(keys::user_key(cursor.key())?, 0));
                }
            }
            cursor.next()?;
        }
        if locks.is_empty() {
            Ok(())
        } else {
            Err(Error::Locked(locks))
        }
    }

    /// Adds a version, if it is wanted and before the cut. `value` reads it; `None`:
    /// it is not there.
    fn add(
        &mut self,
        addressable: &[u8],
        timestamp: Timestamp,
        value: impl FnOnce() -> Result<Option<Option<Bytes>>>,
    ) -> Result<()> {
        let wanted = self.wanted;
        if timestamp > wanted.to || timestamp <= wanted.after.resolved() {
            return Ok(());
        }
        let place = (timestamp, keys::user_key(addressable)?);
        if wanted.after.covers(timestamp, &place.1)
            || self.cut.as_ref().is_some_and(|cut| place >= *cut)
        {
            return Ok(());
        }
        let Some(value) = value()? else {
            return Ok(());
        };
        let mut previous = None;
        if wanted.previous || value.is_none() {
            let before = newest_version(self.reader, addressable, timestamp.previous())?;
            previous = before.filter(|before| before.version.value.is_some());
            if value.is_none() && previous.is_none() {
                // What does not exist is not changed by being deleted.
                return Ok(());
            }
            previous = previous.filter(|_| wanted.previous);
        }
        let kept = Kept { value, previous };
        self.bytes += kept.weight(&place.1);
        // An intent that is committed and its version are one change.
        let key = place.1.clone();
        if let Some(same) = self.kept.insert(place, kept) {
            self.bytes -= same.weight(&key);
        }
        while self.bytes > wanted.bytes_max && self.kept.len() > 1 {
            let Some((last, kept)) = self.kept.pop_last() else {
                break;
            };
            self.bytes -= kept.weight(&last.1);
            self.cut = Some(last);
        }
        Ok(())
    }

    fn finish(mut self) -> Found {
        let until = match self.cut {
            None => Position::whole(self.wanted.to),
            Some((cut, _)) => {
                let first = self.kept.first_key_value().map(|((at, _), _)| *at);
                if first.is_some_and(|first| first < cut) {
                    drop(self.kept.split_off(&(cut, Bytes::new())));
                    Position::whole(cut.previous())
                } else {
                    let last = self.kept.last_key_value();
                    Position {
                        timestamp: cut,
                        key: last.map(|((_, key), _)| key.clone()),
                    }
                }
            }
        };
        let changes = self
            .kept
            .into_iter()
            .map(|((timestamp, key), kept)| Change {
                key,
                timestamp,
                value: kept.value,
                previous: kept.previous,
            });
        Found {
            changes: changes.collect(),
            until,
        }
    }
}

#[cfg(test)]
mod tests;
