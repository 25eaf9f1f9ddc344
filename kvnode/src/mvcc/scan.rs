//! Ordered scans at a timestamp, forward and in reverse.
//!
//! A scan merges two cursors: versions and intents. Of each key it finds the
//! newest version at or below the read timestamp; newer and older ones are
//! passed by a few single steps, then by a seek, so that neither a hot key nor
//! a plain table is slow.

use super::point::{Foreign, judge};
use super::{Cursor, Error, Intent, Reader, Result, Version, keys};
use crate::command::Tree;
use bytes::Bytes;
use lineradb_common::{Timestamp, TxnId};
use std::cmp::Ordering;

/// Single steps past versions of one key before a seek.
const STEPS_BEFORE_SEEK: usize = 4;

/// Rows that are visible to one transaction, in the order of their keys (or
/// the reverse): what a piece of a SQL plan runs over.
pub trait RowSource: Send {
    /// The next key and value; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Locked`] when another transaction's provisional write is in
    /// the way: the whole request waits and starts again. Else when the store
    /// fails.
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>>;
}

/// A visible row with the version that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Commit timestamp; 0 for the reader's own provisional write.
    pub version_ts: Timestamp,
}

/// What a scan reads.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// First key.
    pub start: Bytes,
    /// First key that is not read; empty: the end of the key space.
    pub end: Bytes,
    /// From the last key to the first.
    pub reverse: bool,
    /// The read timestamp.
    pub at: Timestamp,
    /// The reader's own transaction.
    pub own: Option<TxnId>,
}

struct Stored {
    addressable: Bytes,
    timestamp: Timestamp,
    version: Version,
}

/// The next intent on the way.
enum NextIntent {
    /// There is none.
    None,
    /// This one.
    At(Bytes, Intent),
    /// None before this key (after it, in reverse); beyond nobody has looked yet.
    /// Where many intents were resolved, looking takes long.
    NotBefore(Bytes),
}

/// A scan of the rows visible at a timestamp.
pub struct VersionScan<R: Reader> {
    reader: R,
    options: ScanOptions,
    data: R::Cursor,
    intents: R::Cursor,
    started: bool,
    /// It has answered an error and goes no further: an intent could be missed.
    failed: bool,
    stored: Option<Stored>,
    intent: NextIntent,
    observed: Timestamp,
    examined: u64,
}

fn bounds(options: &ScanOptions) -> (Bytes, Bytes) {
    let lower = keys::addressable(&options.start);
    (lower, keys::addressable_end(&options.end))
}

impl<R: Reader> VersionScan<R> {
    /// A scan; nothing is read before the first row is asked for.
    pub fn new(reader: R, options: ScanOptions) -> Self {
        let (lower, upper) = bounds(&options);
        let data = reader.cursor(Tree::Data, &lower, &upper);
        Self::over(reader, options, data)
    }

    /// A scan for who asks what has changed: keys that have no version above `since` may be left out. What was read
    /// as of `since` was examined then.
    pub fn since(reader: R, options: ScanOptions, since: Timestamp) -> Self {
        let (lower, upper) = bounds(&options);
        let data = reader.written_between(&lower, &upper, since, options.at);
        Self::over(reader, options, data)
    }

    fn over(reader: R, options: ScanOptions, data: R::Cursor) -> Self {
        let (lower, upper) = bounds(&options);
        VersionScan {
            data,
            intents: reader.patient_cursor(Tree::Intent, &lower, &upper),
            reader,
            options,
            started: false,
            failed: false,
            stored: None,
            intent: NextIntent::None,
            observed: Timestamp::ZERO,
            examined: 0,
        }
    }

    /// The largest commit timestamp at or below the read timestamp that was
    /// examined, tombstones included (PROTOCOLS T5).
    pub fn observed(&self) -> Timestamp {
        self.observed
    }

    /// Keys examined so far, deleted ones included.
    pub fn examined(&self) -> u64 {
        self.examined
    }

    /// The next visible row.
    ///
    /// # Errors
    /// As [`RowSource::next`].
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        if self.failed {
            return Err(Error::corrupt("a scan was carried on after an error"));
        }
        let row = self.find_row();
        self.failed = row.is_err();
        row
    }

    fn find_row(&mut self) -> Result<Option<Row>> {
        if !self.started {
            self.start()?;
        }
        loop {
            let order = match (&self.stored, &self.intent) {
                (None, NextIntent::None) => return Ok(None),
                (Some(_), NextIntent::None) => Ordering::Less,
                (None, NextIntent::At(..)) => Ordering::Greater,
                (Some(stored), NextIntent::At(key, _)) => self.order(&stored.addressable, key),
                (Some(stored), NextIntent::NotBefore(key))
                    if self.order(&stored.addressable, key).is_lt() =>
                {
                    Ordering::Less
                }
                (_, NextIntent::NotBefore(_)) => {
                    self.intents.resume()?;
                    self.load_intent()?;
                    continue;
                }
            };
            self.examined += 1;
            let mut row = None;
            let mut addressable = Bytes::new();
            if order.is_le()
                && let Some(stored) = self.stored.take()
            {
                self.observed = self.observed.max(stored.timestamp);
                row = stored.version.value.map(|value| (value, stored.timestamp));
                addressable = stored.addressable;
                self.advance_data()?;
            }
            if order.is_ge()
                && let NextIntent::At(key, intent) =
                    std::mem::replace(&mut self.intent, NextIntent::None)
            {
                if self.options.own == Some(intent.txn) {
                    row = intent.value().map(|value| (value, Timestamp::ZERO));
                } else {
                    match judge(&self.reader, &intent, self.options.at)? {
                        Foreign::Skip => {}
                        Foreign::Committed(s) => {
                            self.observed = self.observed.max(s);
                            row = intent.value().map(|value| (value, s));
                        }
                        Foreign::Undecided => {
                            let lock = intent.to_lock(keys::user_key(&key)?, 0);
                            return Err(Error::Locked(vec![lock]));
                        }
                    }
                }
                addressable = key;
                self.advance_intents()?;
            }
            if let Some((value, version_ts)) = row {
                return Ok(Some(Row {
                    key: keys::user_key(&addressable)?,
                    value,
                    version_ts,
                }));
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        if self.options.reverse {
            self.data.seek_to_last()?;
            self.intents.seek_to_last()?;
        } else {
            self.data.seek_to_first()?;
            self.intents.seek_to_first()?;
        }
        self.advance_data()?;
        self.load_intent()
    }

    fn load_intent(&mut self) -> Result<()> {
        self.intent = if self.intents.valid() {
            let key = Bytes::copy_from_slice(self.intents.key());
            NextIntent::At(key, Intent::decode(self.intents.value())?)
        } else if let Some(key) = self.intents.paused_at() {
            NextIntent::NotBefore(Bytes::copy_from_slice(key))
        } else {
            NextIntent::None
        };
        Ok(())
    }

    /// Which of two keys comes first on this way.
    fn order(&self, left: &Bytes, right: &Bytes) -> Ordering {
        match self.options.reverse {
            true => right.cmp(left),
            false => left.cmp(right),
        }
    }

    fn advance_intents(&mut self) -> Result<()> {
        if self.intents.valid() {
            if self.options.reverse {
                self.intents.prev()?;
            } else {
                self.intents.next()?;
            }
        }
        self.load_intent()
    }

    fn advance_data(&mut self) -> Result<()> {
        self.stored = if self.options.reverse {
            self.previous_stored()?
        } else {
            self.next_stored()?
        };
        Ok(())
    }

    /// The cursor stands on the first unread version of some key; leaves it on
    /// the first version of the key after the one found.
    fn next_stored(&mut self) -> Result<Option<Stored>> {
        let at = self.options.at;
        let mut newer = 0;
        while self.data.valid() {
            let (addressable, timestamp) = keys::split_version_key(self.data.key())?;
            if timestamp <= at {
                let found = Stored {
                    addressable: Bytes::copy_from_slice(addressable),
                    timestamp,
                    version: Version::decode(self.data.value())?,
                };
                self.pass_forward(&found.addressable)?;
                return Ok(Some(found));
            }
            newer += 1;
            if newer > STEPS_BEFORE_SEEK {
                newer = 0;
                let target = keys::version_key(addressable, at);
                self.data.seek(&target)?;
            } else {
                self.data.next()?;
            }
        }
        Ok(None)
    }

    fn pass_forward(&mut self, addressable: &[u8]) -> Result<()> {
        for _ in 0..STEPS_BEFORE_SEEK {
            self.data.next()?;
            if !self.data.valid() || keys::split_version_key(self.data.key())?.0 != addressable {
                return Ok(());
            }
        }
        self.data.seek(&keys::versions_end(addressable))
    }

    /// The cursor stands on the oldest version of some key; leaves it on the
    /// oldest version of the key before the one found.
    fn previous_stored(&mut self) -> Result<Option<Stored>> {
        let at = self.options.at;
        while self.data.valid() {
            let (addressable, timestamp) = keys::split_version_key(self.data.key())?;
            let addressable = Bytes::copy_from_slice(addressable);
            if timestamp > at {
                // Even the oldest is too new.
                self.pass_backward(&addressable)?;
                continue;
            }
            let mut best = (timestamp, self.data.value());
            let mut steps = 0;
            loop {
                self.data.prev()?;
                if !self.data.valid() {
                    break;
                }
                let (here, timestamp) = keys::split_version_key(self.data.key())?;
                if here != addressable {
                    break;
                }
                if timestamp > at {
                    self.pass_backward(&addressable)?;
                    break;
                }
                best = (timestamp, self.data.value());
                steps += 1;
                if steps == STEPS_BEFORE_SEEK {
                    self.data.seek(&keys::version_key(&addressable, at))?;
                    let (_, timestamp) = keys::split_version_key(self.data.key())?;
                    best = (timestamp, self.data.value());
                    self.pass_backward(&addressable)?;
                    break;
                }
            }
            return Ok(Some(Stored {
                addressable,
                timestamp: best.0,
                version: Version::decode(best.1)?,
            }));
        }
        Ok(None)
    }

    fn pass_backward(&mut self, addressable: &[u8]) -> Result<()> {
        for _ in 0..STEPS_BEFORE_SEEK {
            self.data.prev()?;
            if !self.data.valid() || keys::split_version_key(self.data.key())?.0 != addressable {
                return Ok(());
            }
        }
        // The bare key sorts below all of its versions.
        self.data.seek_for_prev(addressable)
    }
}

impl<R: Reader> RowSource for VersionScan<R> {
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        Ok(self.next_row()?.map(|row| (row.key, row.value)))
    }
}

#[cfg(test)]
mod tests;
