//! The writes that a transaction has made so far: kept here until commit, seen
//! by its own reads, undone by savepoints.
//!
//! The first write of a key carries the condition on what was there before the
//! transaction; later writes of the same key are judged against the buffer at
//! once and keep that first condition.

use crate::types::{Condition, Span};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{TableId, limits};
use std::collections::BTreeMap;

/// What must hold for the newest committed version of a key at commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    None,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Exists,
    /// The newest version is the one read under a lock (X4); 0: none ever seen.
    Replaces(u64),
}

/// One buffered write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `None`: delete.
    pub value: Option<Bytes>,
    /// Checked at commit.
    pub guard: Guard,
    /// Whose row it is.
    pub table: Option<TableId>,
}

/// A buffered schema version (S2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaEntry {
    /// The table's range.
    pub span: Span,
    /// The new version.
    pub version: u64,
    /// The version in force until then; 0: none.
    pub replaces: u64,
}

/// What the transaction learnt about a key by locking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockedVersion {
    /// Commit timestamp of the newest version, tombstones too; 0: none.
    pub version: u64,
    /// The key exists.
    pub present: bool,
}

#[derive(Debug)]
enum Undo {
    Key(Bytes, Option<Entry>),
    Schema(TableId, Option<SchemaEntry>),
}

impl Undo {
    /// What it keeps in memory beside what is buffered: the value that was there,
    /// and the record itself.
    fn weight(&self) -> usize {
        match self {
            Undo::Key(key, previous) => undo_weight(key, previous.as_ref()),
            Undo::Schema(..) => 16,
        }
    }
}

fn undo_weight(key: &Bytes, previous: Option<&Entry>) -> usize {
    previous.map_or(key.len() + 16, |previous| weight(key, previous))
}

/// Buffered writes in key order.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    entries: BTreeMap<Bytes, Entry>,
    schemas: BTreeMap<TableId, SchemaEntry>,
    bytes: usize,
    undo: Vec<Undo>,
    /// Bytes held by `undo`; they count against the transaction's limit.
    undo_bytes: usize,
    /// Undo is kept from the first savepoint on.
    tracking: bool,
}

fn weight(key: &Bytes, entry: &Entry) -> usize {
    key.len() + entry.value.as_ref().map_or(0, Bytes::len) + 16
}

impl WriteBuffer {
    /// Buffers a write; `value` `None` deletes.
    ///
    /// # Errors
    /// `ConditionFailed` when the transaction already knows better; `Limit`
    /// when the transaction or the value grows too large.
    pub fn write(
        &mut self,
        key: Bytes,
        value: Option<Bytes>,
        condition: Condition,
        locked: Option<LockedVersion>,
        table: Option<TableId>,
    ) -> Result<()> {
        check_sizes(&key, value.as_ref())?;
        let known = match self.entries.get(&key) {
            Some(entry) => Some(entry.value.is_some()),
            None => locked.map(|l| l.present),
        };
        match (condition, known) {
            (Condition::Absent, Some(true)) | (Condition::Exists, Some(false)) => {
                return Err(Error::ConditionFailed { key });
            }
            _ => {}
        }
        let guard = match (self.entries.get(&key), locked, condition) {
            (Some(first), _, _) => first.guard,
            (None, Some(locked), _) => Guard::Replaces(locked.version),
            (None, None, Condition::None) => Guard::None,
            (None, None, Condition::Absent) => Guard::Absent,
            (None, None, Condition::Exists) => Guard::Exists,
        };
        let entry = Entry {
            value,
            guard,
            table,
        };
        let bytes = self.bytes + weight(&key, &entry);
        // With a savepoint set, what the write replaces is kept as well.
        let undo = match self.tracking {
            true => undo_weight(&key, self.entries.get(&key)),
            false => 0,
        };
        if bytes + self.undo_bytes + undo > limits::TXN_BYTES_MAX
            || self.entries.len() >= limits::TXN_WRITES_MAX
        {
            return Err(Error::Limit {
                message: format!(
                    "a transaction may write at most {} keys and {} bytes, what its savepoints \
                     keep included",
                    limits::TXN_WRITES_MAX,
                    limits::TXN_BYTES_MAX
                ),
            });
        }
        self.bytes = bytes;
        let previous = self.entries.insert(key.clone(), entry);
        if let Some(previous) = &previous {
            self.bytes -= weight(&key, previous);
        }
        if self.tracking {
            self.keep(Undo::Key(key, previous));
        }
        Ok(())
    }

    /// Buffers a schema version. A second one for the same table keeps what
    /// the first replaces.
    pub fn write_schema(&mut self, table: TableId, mut entry: SchemaEntry) {
        if let Some(first) = self.schemas.get(&table) {
            entry.replaces = first.replaces;
        }
        let previous = self.schemas.insert(table, entry);
        if self.tracking {
            self.keep(Undo::Schema(table, previous));
        }
    }

    fn keep(&mut self, undo: Undo) {
        self.undo_bytes += undo.weight();
        self.undo.push(undo);
    }

    /// The buffered state of a key: `Some(None)` is a buffered delete.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.entries.get(key).map(|entry| entry.value.clone())
    }

    /// Buffered writes inside a span, in key order.
    pub fn range(&self, span: &Span) -> impl DoubleEndedIterator<Item = (&Bytes, &Entry)> {
        let lower = std::ops::Bound::Included(span.start.clone());
        let upper = if span.is_empty() {
            // BTreeMap refuses ranges that run backwards.
            std::ops::Bound::Excluded(span.start.clone())
        } else if span.end.is_empty() {
            std::ops::Bound::Unbounded
        } else {
            std::ops::Bound::Excluded(span.end.clone())
        };
        self.entries.range((lower, upper))
    }

    /// Buffered schema versions.
    pub fn schemas(&self) -> &BTreeMap<TableId, SchemaEntry> {
        &self.schemas
    }

    /// Keys written.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is buffered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.schemas.is_empty()
    }

    /// Bytes buffered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes everything out, for commit.
    pub fn take(&mut self) -> (BTreeMap<Bytes, Entry>, BTreeMap<TableId, SchemaEntry>) {
        self.bytes = 0;
        self.undo.clear();
        self.undo_bytes = 0;
        (
            std::mem::take(&mut self.entries),
            std::mem::take(&mut self.schemas),
        )
    }

    /// Marks the present state.
    pub fn savepoint(&mut self) -> usize {
        self.tracking = true;
        self.undo.len()
    }

    /// Goes back to a mark. Marks taken after it are void.
    pub fn rollback_to(&mut self, mark: usize) {
        while self.undo.len() > mark {
            let undo = self.undo.pop();
            self.undo_bytes -= undo.as_ref().map_or(0, Undo::weight);
            match undo {
                Some(Undo::Key(key, previous)) => {
                    if let Some(current) = self.entries.remove(&key) {
                        self.bytes -= weight(&key, &current);
                    }
                    if let Some(previous) = previous {
                        self.bytes += weight(&key, &previous);
                        self.entries.insert(key, previous);
                    }
                }
                Some(Undo::Schema(table, previous)) => {
                    self.schemas.remove(&table);
                    if let Some(previous) = previous {
                        self.schemas.insert(table, previous);
                    }
                }
                None => return,
            }
        }
    }
}

fn check_sizes(key: &Bytes, value: Option<&Bytes>) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("a key has at least one byte"));
    }
    if key.len() > limits::ENCODED_KEY_BYTES_MAX {
        return Err(Error::Limit {
            message: format!(
                "a key may have at most {} bytes, this one has {}",
                limits::ENCODED_KEY_BYTES_MAX,
                key.len()
            ),
        });
    }
    let length = value.map_or(0, Bytes::len);
    if length > limits::VALUE_BYTES_MAX {
        return Err(Error::Limit {
            message: format!(
                "a value may have at most {} bytes, this one has {length}",
                limits::VALUE_BYTES_MAX
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn b(s: &str) -> Bytes {
        Bytes::copy_from_slice(s.as_bytes())
    }

    fn put(buffer: &mut WriteBuffer, key: &str, value: &str, condition: Condition) -> Result<()> {
        buffer.write(b(key), Some(b(value)), condition, None, None)
    }

    #[test]
    fn the_first_condition_stays_and_later_ones_are_judged_at_once() {
        let mut buffer = WriteBuffer::default();
        put(&mut buffer, "a", "1", Condition::Absent).unwrap();
        assert!(matches!(
            put(&mut buffer, "a", "2", Condition::Absent),
            Err(Error::ConditionFailed { .. })
        ));
        put(&mut buffer, "a", "2", Condition::Exists).unwrap();
        buffer
            .write(b("a"), None, Condition::None, None, None)
            .unwrap();
        put(&mut buffer, "a", "3", Condition::Absent).unwrap();
        assert_eq!(buffer.entries[&b("a")].guard, Guard::Absent);
        assert_eq!(buffer.get(b"a"), Some(Some(b("3"))));
    }

    #[test]
    fn a_locked_key_answers_conditions_and_guards_by_its_version() {
        let mut buffer = WriteBuffer::default();
        let gone = LockedVersion {
            version: 7,
            present: false,
        };
        let there = LockedVersion {
            version: 9,
            present: true,
        };
        buffer
            .write(b("a"), Some(b("x")), Condition::Absent, Some(gone), None)
            .unwrap();
        assert_eq!(buffer.entries[&b("a")].guard, Guard::Replaces(7));
        assert!(
            buffer
                .write(b("b"), Some(b("x")), Condition::Absent, Some(there), None)
                .is_err()
        );
        assert!(
            buffer
                .write(b("c"), None, Condition::Exists, Some(gone), None)
                .is_err()
        );
    }

    #[test]
    fn sizes_are_limited() {
        let mut buffer = WriteBuffer::default();
        let long = Bytes::from(vec![0; limits::VALUE_BYTES_MAX + 1]);
        assert!(matches!(
            buffer.write(b("a"), Some(long), Condition::None, None, None),
            Err(Error::Limit { .. })
        ));
        assert!(
            buffer
                .write(Bytes::new(), None, Condition::None, None, None)
                .is_err()
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_savepoints_keep_counts_against_the_limit() {
        let value = Bytes::from(vec![7; limits::VALUE_BYTES_MAX]);
        let write = |buffer: &mut WriteBuffer| {
            buffer.write(b("a"), Some(value.clone()), Condition::None, None, None)
        };
        let enough = limits::TXN_BYTES_MAX / limits::VALUE_BYTES_MAX + 1;
        let mut buffer = WriteBuffer::default();
        for _ in 0..enough {
            write(&mut buffer).unwrap();
        }
        let mark = buffer.savepoint();
        let refused = (0..enough).find_map(|_| write(&mut buffer).err());
        assert!(matches!(refused, Some(Error::Limit { .. })));
        buffer.rollback_to(mark);
        write(&mut buffer).unwrap();
    }

    proptest! {
        #[test]
        fn rolling_back_restores_what_was_marked(
            before in prop::collection::vec((0..8u8, prop::option::of(any::<u8>())), 0..20),
            after in prop::collection::vec((0..8u8, prop::option::of(any::<u8>())), 0..20),
        ) {
            let apply = |buffer: &mut WriteBuffer, writes: &[(u8, Option<u8>)]| {
                for (key, value) in writes {
                    let value = value.map(|v| Bytes::from(vec![v; usize::from(v)]));
                    buffer
                        .write(Bytes::from(vec![*key]), value, Condition::None, None, None)
                        .unwrap();
                }
            };
            let mut buffer = WriteBuffer::default();
            apply(&mut buffer, &before);
            let entries = buffer.entries.clone();
            let bytes = buffer.bytes();
            let mark = buffer.savepoint();
            apply(&mut buffer, &after);
            buffer.write_schema(TableId(1), SchemaEntry { span: Span::default(), version: 2, replaces: 1 });
            buffer.rollback_to(mark);
            prop_assert_eq!(&buffer.entries, &entries);
            prop_assert_eq!(buffer.bytes(), bytes);
            prop_assert!(buffer.schemas().is_empty());
            let sum: usize = entries.iter().map(|(k, e)| weight(k, e)).sum();
            prop_assert_eq!(bytes, sum);
            prop_assert_eq!(buffer.undo_bytes, 0);
        }
    }
}
