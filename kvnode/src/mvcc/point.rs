//! Reads of one key, and of one key's history.

use super::keys;
use super::{Cursor, Error, Intent, Reader, Result, Status, TxnRecord, Version};
use crate::command::Tree;
use bytes::Bytes;
use lineradb_common::{Timestamp, TxnId};

/// A committed version and when it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// The commit timestamp.
    pub timestamp: Timestamp,
    /// What was written.
    pub version: Version,
}

/// What a reader at a timestamp sees of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PointRead {
    /// The value; `None`: the key does not exist.
    pub value: Option<Bytes>,
    /// The version that decided, a tombstone's as well; 0: none, or the
    /// reader's own provisional write.
    pub version_ts: Timestamp,
    /// The largest commit timestamp examined at or below the read timestamp
    /// (PROTOCOLS T5).
    pub observed: Timestamp,
}

/// The provisional write on a key.
///
/// # Errors
/// When the store fails; the others alike.
pub fn read_intent(reader: &impl Reader, addressable: &[u8]) -> Result<Option<Intent>> {
    match reader.get(Tree::Intent, addressable)? {
        Some(bytes) => Intent::decode(bytes).map(Some),
        None => Ok(None),
    }
}

/// The newest version at or below a timestamp, tombstones included.
///
/// # Errors
/// When the store fails.
pub fn newest_version(
    reader: &impl Reader,
    addressable: &[u8],
    at: Timestamp,
) -> Result<Option<Visible>> {
    let mut cursor = reader.versions(addressable, at);
    cursor.seek_to_first()?;
    if !cursor.valid() {
        return Ok(None);
    }
    let (_, timestamp) = keys::split_version_key(cursor.key())?;
    Ok(Some(Visible {
        timestamp,
        version: Version::decode(cursor.value())?,
    }))
}

/// What a foreign intent means to a reader at `at`.
pub(super) enum Foreign {
    /// Nothing: it lies above, or its transaction was aborted.
    Skip,
    /// It is committed, at this timestamp at or below `at`.
    Committed(Timestamp),
    /// Its fate is not known here.
    Undecided,
}

/// A record of the intent's transaction that stands in this node's store, and is
/// not STAGING, is final, whoever leads the anchor: then nobody needs to wait for the intent to
/// be resolved.
pub(super) fn judge(reader: &impl Reader, intent: &Intent, at: Timestamp) -> Result<Foreign> {
    if intent.timestamp > at {
        return Ok(Foreign::Skip);
    }
    let key = keys::record_key(&intent.anchor, intent.txn);
    let Some(bytes) = reader.get(Tree::Txn, &key)? else {
        return Ok(Foreign::Undecided);
    };
    Ok(match TxnRecord::decode_status(bytes)? {
        // Laid again by a late message after the commit point: a stray, never a
        // version.
        Status::Committed(s) if s < intent.timestamp => Foreign::Skip,
        Status::Committed(s) if s <= at => Foreign::Committed(s),
        Status::Committed(_) | Status::Aborted => Foreign::Skip,
        Status::Staging(_) => Foreign::Undecided,
    })
}

/// Reads a key at a timestamp. The reader's own provisional write is visible.
///
/// # Errors
/// [`Error::Locked`] when another transaction's provisional write at or below
/// the timestamp is in the way; else when the store fails.
pub fn read_point(
    reader: &impl Reader,
    user_key: &Bytes,
    addressable: &[u8],
    at: Timestamp,
    own: Option<TxnId>,
) -> Result<PointRead> {
    let mut overriding = None;
    if let Some(intent) = read_intent(reader, addressable)? {
        if own == Some(intent.txn) {
            overriding = Some((intent.value(), Timestamp::ZERO));
        } else {
            match judge(reader, &intent, at)? {
                Foreign::Skip => {}
                Foreign::Committed(s) => overriding = Some((intent.value(), s)),
                Foreign::Undecided => {
                    return Err(Error::Locked(vec![intent.to_lock(user_key.clone(), 0)]));
                }
            }
        }
    }
    let stored = newest_version(reader, addressable, at)?;
    let stored_ts = stored.as_ref().map_or(Timestamp::ZERO, |v| v.timestamp);
    Ok(match overriding {
        Some((value, version_ts)) => PointRead {
            value,
            version_ts,
            observed: stored_ts.max(version_ts),
        },
        None => PointRead {
            value: stored.and_then(|v| v.version.value),
            version_ts: stored_ts,
            observed: stored_ts,
        },
    })
}

/// The version of a key that carries a transaction's id (PROTOCOLS X1), newest
/// first.
///
/// # Errors
/// When the store fails.
pub fn find_version_of(
    reader: &impl Reader,
    addressable: &[u8],
    id: TxnId,
) -> Result<Option<Timestamp>> {
    let mut found = None;
    walk_versions(reader, addressable, Timestamp::MAX, |timestamp, version| {
        if version.txn == Some(id) {
            found = Some(timestamp);
        }
        found.is_none()
    })?;
    Ok(found)
}

/// The versions of a key at or below a timestamp, newest first.
///
/// # Errors
/// When the store fails.
pub fn versions_of(
    reader: &impl Reader,
    addressable: &[u8],
    at: Timestamp,
) -> Result<Vec<Visible>> {
    let mut out = Vec::new();
    walk_versions(reader, addressable, at, |timestamp, version| {
        out.push(Visible { timestamp, version });
        true
    })?;
    Ok(out)
}

fn walk_versions(
    reader: &impl Reader,
    addressable: &[u8],
    at: Timestamp,
    mut visit: impl FnMut(Timestamp, Version) -> bool,
) -> Result<()> {
    let mut cursor = reader.versions(addressable, at);
    cursor.seek_to_first()?;
    while cursor.valid() {
        let (_, timestamp) = keys::split_version_key(cursor.key())?;
        if !visit(timestamp, Version::decode(cursor.value())?) {
            break;
        }
        cursor.next()?;
    }
    Ok(())
}

/// Whether a key got a version in `(from, to]`.
///
/// # Errors
/// When the store fails.
pub fn changed_in(
    reader: &impl Reader,
    addressable: &[u8],
    from: Timestamp,
    to: Timestamp,
) -> Result<bool> {
    let newest = newest_version(reader, addressable, to)?;
    Ok(newest.is_some_and(|v| v.timestamp > from))
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::super::{IntentWrite, Store};
    use super::*;
    use crate::command::Op;

    const ME: TxnId = TxnId([1; 16]);
    const OTHER: TxnId = TxnId([2; 16]);

    fn ts(n: u64) -> Timestamp {
        Timestamp::from_raw(n)
    }

    fn put(
        store: &MemoryStore,
        key: &[u8],
        at: u64,
        value: Option<&'static str>,
        id: Option<TxnId>,
    ) {
        let version = Version {
            value: value.map(Bytes::from),
            txn: id,
        };
        store.apply(&[Op {
            tree: Tree::Data,
            key: keys::version_key(&keys::addressable(key), ts(at)),
            value: Some(version.encode()),
        }]);
    }

    fn lay(store: &MemoryStore, key: &[u8], txn: TxnId, at: u64) {
        let intent = Intent {
            txn,
            anchor: Bytes::from_static(b"anchor"),
            attempt_ts: ts(1),
            timestamp: ts(at),
            replaced: Timestamp::ZERO,
            write: IntentWrite::Put(Bytes::from_static(b"provisional")),
        };
        store.apply(&[Op {
            tree: Tree::Intent,
            key: keys::addressable(key),
            value: Some(intent.encode()),
        }]);
    }

    fn decide(store: &MemoryStore, txn: TxnId, status: Status) {
        let record = TxnRecord {
            status,
            ..TxnRecord::aborted(ts(1))
        };
        store.apply(&[Op {
            tree: Tree::Txn,
            key: keys::record_key(b"anchor", txn),
            value: Some(record.encode()),
        }]);
    }

    fn read(store: &MemoryStore, key: &'static [u8], at: u64) -> Result<PointRead> {
        read_point(
            &store.snapshot(),
            &Bytes::from_static(key),
            &keys::addressable(key),
            ts(at),
            Some(ME),
        )
    }

    #[test]
    fn a_reader_sees_the_newest_version_at_or_below() {
        let store = MemoryStore::default();
        put(&store, b"a", 10, Some("one"), None);
        put(&store, b"a", 20, None, None);
        put(&store, b"a", 30, Some("three"), Some(OTHER));
        put(&store, b"a\0", 15, Some("neighbour"), None);
        assert_eq!(read(&store, b"a", 9).unwrap(), PointRead::default());
        assert_eq!(read(&store, b"a", 10).unwrap().value.unwrap(), "one");
        let deleted = read(&store, b"a", 29).unwrap();
        assert_eq!((deleted.value, deleted.observed), (None, ts(20)));
        assert_eq!(read(&store, b"a", 99).unwrap().version_ts, ts(30));
        let reader = store.snapshot();
        let a = keys::addressable(b"a");
        assert_eq!(find_version_of(&reader, &a, OTHER).unwrap(), Some(ts(30)));
        assert_eq!(find_version_of(&reader, &a, ME).unwrap(), None);
        assert!(changed_in(&reader, &a, ts(29), ts(30)).unwrap());
        assert!(!changed_in(&reader, &a, ts(20), ts(29)).unwrap());
        assert_eq!(versions_of(&reader, &a, ts(25)).unwrap().len(), 2);
    }

    #[test]
    fn foreign_intents_stop_readers_at_or_above_them_only() {
        let store = MemoryStore::default();
        put(&store, b"a", 10, Some("one"), None);
        lay(&store, b"a", OTHER, 20);
        assert_eq!(read(&store, b"a", 19).unwrap().value.unwrap(), "one");
        assert!(matches!(read(&store, b"a", 20), Err(Error::Locked(l)) if l[0].key == "a"));
    }

    #[test]
    fn decided_intents_are_seen_through() {
        let store = MemoryStore::default();
        put(&store, b"a", 10, Some("one"), None);
        lay(&store, b"a", OTHER, 20);
        decide(&store, OTHER, Status::Committed(ts(25)));
        assert_eq!(read(&store, b"a", 24).unwrap().value.unwrap(), "one");
        let read_above = read(&store, b"a", 25).unwrap();
        assert_eq!(read_above.value.unwrap(), "provisional");
        assert_eq!(
            (read_above.version_ts, read_above.observed),
            (ts(25), ts(25))
        );
        // Whether all has landed is not to be seen here.
        decide(&store, OTHER, Status::Staging(ts(25)));
        assert!(matches!(read(&store, b"a", 99), Err(Error::Locked(_))));
        decide(&store, OTHER, Status::Aborted);
        assert_eq!(read(&store, b"a", 99).unwrap().value.unwrap(), "one");
        // A commit lies at or above all of its intents: this one came late.
        decide(&store, OTHER, Status::Committed(ts(19)));
        assert_eq!(read(&store, b"a", 99).unwrap().value.unwrap(), "one");
    }

    #[test]
    fn own_intents_are_visible_at_any_timestamp() {
        let store = MemoryStore::default();
        put(&store, b"a", 10, Some("one"), None);
        lay(&store, b"a", ME, 50);
        let own = read(&store, b"a", 20).unwrap();
        assert_eq!(own.value.unwrap(), "provisional");
        assert_eq!((own.version_ts, own.observed), (Timestamp::ZERO, ts(10)));
    }
}
