//! What of the history nobody can read any more (PROTOCOLS X5).
//!
//! Plain code: finds the garbage of a range as deletions, a bounded piece at a
//! time. Below the threshold nothing is read, so of each key only the newest
//! version at or below it is needed, and not even that one when it is a delete
//! marker. A marker goes with the last of the versions that it hides or after
//! them, never before: else the value below it would come back.

use super::{Cursor, Reader, Result, Status, TxnRecord, Version, keys};
use crate::command::{Op, Tree};
use crate::rules::{Rule, Rules};
use bytes::Bytes;
use lineradb_common::Timestamp;

/// Up to where what goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Nothing is read below.
    pub threshold: Timestamp,
    /// ABORTED records of attempts below go: such an attempt is refused (X3).
    pub attempts: Timestamp,
    /// Outcomes of idempotency keys committed below go (X2).
    pub outcomes: Timestamp,
}

/// How much is looked at, and how much found, before a pause.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Versions or records looked at.
    pub examined: usize,
    /// Deletions.
    pub found: usize,
}

/// The garbage of a piece.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Deletions, to be carried out together.
    pub ops: Vec<Op>,
    /// Where the next piece begins; `None`: this was the last one.
    pub resume: Option<Bytes>,
    /// Something here may become garbage without another write.
    pub pending: bool,
}

fn delete(tree: Tree, key: &[u8]) -> Op {
    Op {
        tree,
        key: Bytes::copy_from_slice(key),
        value: None,
    }
}

/// Versions in `[lower, upper)` of the tree of versions. `lower` is an
/// addressable key.
///
/// # Errors
/// When the store fails.
pub fn versions(
    reader: &impl Reader,
    lower: &[u8],
    upper: &[u8],
    horizon: &Horizon,
    budget: Budget,
    rules: Rules,
) -> Result<Found> {
    let mut found = Found::default();
    let mut cursor = reader.cursor(Tree::Data, lower, upper);
    cursor.seek_to_first()?;
    let mut examined = 0;
    while cursor.valid() {
        let (addressable, timestamp) = keys::split_version_key(cursor.key())?;
        let addressable = Bytes::copy_from_slice(addressable);
        if examined >= budget.examined || found.ops.len() >= budget.found {
            found.resume = Some(addressable);
            break;
        }
        examined += 1;
        let newer = timestamp > horizon.threshold;
        if newer {
            found.pending = true;
            cursor.seek(&keys::version_key(&addressable, horizon.threshold))?;
            if !stands_on(&cursor, &addressable)? {
                continue;
            }
        }
        // The newest one that is still read.
        let base = Bytes::copy_from_slice(cursor.key());
        let (_, since) = keys::split_version_key(&base)?;
        let marker = Version::decode(cursor.value())?.value.is_none();
        if marker && !rules.hold(Rule::MarkersLast) {
            found.ops.push(delete(Tree::Data, &base));
        }
        cursor.next()?;
        let mut whole = true;
        while stands_on(&cursor, &addressable)? {
            if found.ops.len() >= budget.found {
                whole = false;
                break;
            }
            found.ops.push(delete(Tree::Data, cursor.key()));
            examined += 1;
            cursor.next()?;
        }
        if !whole {
            found.resume = Some(addressable);
            break;
        }
        let outcome = keys::is_outcome(&addressable);
        found.pending |= outcome;
        let expired = outcome && !newer && since < horizon.outcomes;
        if expired || (marker && rules.hold(Rule::MarkersLast)) {
            found.ops.push(delete(Tree::Data, &base));
        }
    }
    Ok(found)
}

fn stands_on(cursor: &impl Cursor, addressable: &[u8]) -> Result<bool> {
    Ok(cursor.valid() && keys::split_version_key(cursor.key())?.0 == addressable)
}

/// Records in `[lower, upper)` of the tree of records. COMMITTED and STAGING ones
/// stay: an intent of theirs that nobody has met yet would be taken for an
/// abandoned one.
///
/// # Errors
/// When the store fails.
pub fn records(
    reader: &impl Reader,
    lower: &[u8],
    upper: &[u8],
    horizon: &Horizon,
    budget: Budget,
) -> Result<Found> {
    let mut found = Found::default();
    let mut cursor = reader.cursor(Tree::Txn, lower, upper);
    cursor.seek_to_first()?;
    let mut examined = 0;
    while cursor.valid() {
        if examined >= budget.examined || found.ops.len() >= budget.found {
            found.resume = Some(Bytes::copy_from_slice(cursor.key()));
            break;
        }
        examined += 1;
        if keys::is_record(cursor.key()) {
            let record = TxnRecord::decode(cursor.value())?;
            if record.status == Status::Aborted {
                if record.attempt_ts < horizon.attempts {
                    found.ops.push(delete(Tree::Txn, cursor.key()));
                } else {
                    found.pending = true;
                }
            }
        }
        cursor.next()?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::super::{ScanOptions, Store, VersionScan, read_point};
    use super::*;
    use lineradb_common::TxnId;
    use proptest::prelude::*;

    const ALL: Budget = Budget {
        examined: usize::MAX,
        found: usize::MAX,
    };

    fn ts(n: u64) -> Timestamp {
        Timestamp::from_raw(n)
    }

    fn horizon(threshold: u64) -> Horizon {
        Horizon {
            threshold: ts(threshold),
            attempts: ts(threshold),
            outcomes: ts(threshold / 2),
        }
    }

    fn put(store: &MemoryStore, key: &[u8], at: u64, value: Option<&str>) {
        let version = Version {
            value: value.map(|v| Bytes::copy_from_slice(v.as_bytes())),
            txn: None,
        };
        store.apply(&[Op {
            tree: Tree::Data,
            key: keys::version_key(&keys::addressable(key), ts(at)),
            value: Some(version.encode()),
        }]);
    }

    fn sweep(store: &MemoryStore, horizon: &Horizon, budget: Budget, rules: Rules) -> bool {
        let mut from = keys::addressable(b"");
        let end = keys::addressable_end(b"");
        let mut pending = false;
        loop {
            let found = versions(&store.snapshot(), &from, &end, horizon, budget, rules).unwrap();
            store.apply(&found.ops);
            pending |= found.pending;
            match found.resume {
                Some(next) => from = next,
                None => return pending,
            }
        }
    }

    fn count(store: &MemoryStore) -> usize {
        let end = keys::addressable_end(b"");
        let mut cursor = store.snapshot().cursor(Tree::Data, &[0], &end);
        cursor.seek_to_first().unwrap();
        let mut count = 0;
        while cursor.valid() {
            count += 1;
            cursor.next().unwrap();
        }
        count
    }

    fn scan(store: &MemoryStore, at: u64) -> Vec<(Bytes, Bytes)> {
        let options = ScanOptions {
            start: Bytes::new(),
            end: Bytes::new(),
            reverse: false,
            at: ts(at),
            own: None,
        };
        let mut rows = VersionScan::new(store.snapshot(), options);
        std::iter::from_fn(|| rows.next_row().unwrap().map(|r| (r.key, r.value))).collect()
    }

    #[test]
    fn what_is_read_at_or_above_the_threshold_stays() {
        let store = MemoryStore::default();
        for at in [10, 20, 30, 40] {
            put(&store, b"a", at, Some("value"));
        }
        put(&store, b"gone", 10, Some("value"));
        put(&store, b"gone", 20, None);
        put(&store, b"kept", 5, Some("value"));
        put(&store, b"i\0hash", 14, Some("outcome"));
        put(&store, b"i\0later", 16, Some("outcome"));
        assert!(sweep(&store, &horizon(31), ALL, Rules::default()));
        // a at 30 and 40, kept, and the outcome that is not old enough.
        assert_eq!(count(&store), 4);
        assert_eq!(scan(&store, 31).len(), 3);
        sweep(&store, &horizon(50), ALL, Rules::default());
        assert_eq!(count(&store), 2);
    }

    #[test]
    fn aborted_records_of_late_attempts_committed_and_staged_ones_stay() {
        let store = MemoryStore::default();
        let record = |n: u8, record: TxnRecord| Op {
            tree: Tree::Txn,
            key: keys::record_key(b"anchor", TxnId([n; 16])),
            value: Some(record.encode()),
        };
        store.apply(&[
            record(1, TxnRecord::aborted(ts(10))),
            record(2, TxnRecord::aborted(ts(90))),
            record(
                3,
                TxnRecord {
                    status: Status::Committed(ts(10)),
                    ..TxnRecord::aborted(ts(10))
                },
            ),
            record(
                4,
                TxnRecord {
                    status: Status::Staging(ts(10)),
                    ..TxnRecord::aborted(ts(10))
                },
            ),
        ]);
        let end = keys::addressable_end(b"");
        let all = records(&store.snapshot(), &[1], &end, &horizon(50), ALL).unwrap();
        let keys: Vec<Bytes> = all.ops.iter().map(|op| op.key.clone()).collect();
        assert_eq!(keys, [keys::record_key(b"anchor", TxnId([1; 16]))]);
        assert!(all.pending);
    }

    /// X5: the history of a deleted key goes in two pieces, and a reader comes
    /// in between.
    #[test]
    fn x5_a_delete_marker_goes_last() {
        for rule in [true, false] {
            let store = MemoryStore::default();
            put(&store, b"a", 10, Some("one"));
            put(&store, b"a", 20, Some("two"));
            put(&store, b"a", 30, None);
            let rules = match rule {
                true => Rules::default(),
                false => Rules::without(Rule::MarkersLast),
            };
            let few = Budget {
                examined: usize::MAX,
                found: 1,
            };
            let end = keys::addressable_end(b"");
            let from = keys::addressable(b"");
            let piece = versions(&store.snapshot(), &from, &end, &horizon(40), few, rules);
            store.apply(&piece.unwrap().ops);
            let a = keys::addressable(b"a");
            let read = read_point(&store.snapshot(), &"a".into(), &a, ts(40), None).unwrap();
            assert_eq!(read.value.is_none(), rule, "a deleted row came back");
        }
    }

    proptest! {
        #[test]
        fn no_reader_notices(
            writes in proptest::collection::vec((0u8..5, 1u64..100, any::<bool>()), 0..60),
            threshold in 1u64..100,
            examined in 1usize..6,
            found in 1usize..6,
        ) {
            let store = MemoryStore::default();
            for (key, at, live) in &writes {
                let value = format!("{key} {at}");
                put(&store, &[b'k', *key], *at, live.then_some(&value[..]));
            }
            let seen: Vec<_> = (threshold..101).map(|at| scan(&store, at)).collect();
            let budget = Budget { examined, found };
            sweep(&store, &horizon(threshold), budget, Rules::default());
            for (at, before) in (threshold..101).zip(seen) {
                prop_assert_eq!(scan(&store, at), before);
            }
            // Nothing is left over: one version at or below the threshold for
            // each key, and no marker.
            let above = { writes.iter() }
                .filter(|(_, at, _)| *at > threshold)
                .map(|(key, at, _)| (*key, *at))
                .collect::<std::collections::BTreeSet<_>>();
            prop_assert_eq!(count(&store), above.len() + scan(&store, threshold).len());
        }
    }
}
