use super::super::memory::{MemoryReader, MemoryStore};
use super::super::{IntentWrite, Status, Store, TxnRecord};
use super::*;
use crate::command::Op;
use lineradb_common::TxnId;
use proptest::collection::vec;
use proptest::prelude::*;

fn ts(n: u64) -> Timestamp {
    Timestamp::from_raw(n)
}

fn version_op(key: &[u8], at: u64, value: Option<Bytes>) -> Op {
    Op {
        tree: Tree::Data,
        key: keys::version_key(&keys::addressable(key), ts(at)),
        value: Some(Version { value, txn: None }.encode()),
    }
}

fn intent_op(key: &[u8], txn: TxnId, at: u64, value: Option<Bytes>) -> Op {
    let intent = Intent {
        txn,
        anchor: Bytes::from_static(b"anchor"),
        attempt_ts: ts(1),
        timestamp: ts(at),
        replaced: Timestamp::ZERO,
        write: value.map_or(IntentWrite::Delete, IntentWrite::Put),
    };
    Op {
        tree: Tree::Intent,
        key: keys::addressable(key),
        value: Some(intent.encode()),
    }
}

fn record_op(txn: TxnId, status: Status) -> Op {
    let record = TxnRecord {
        status,
        ..TxnRecord::aborted(ts(1))
    };
    Op {
        tree: Tree::Txn,
        key: keys::record_key(b"anchor", txn),
        value: Some(record.encode()),
    }
}

fn all(after: u64, to: u64) -> Wanted {
    Wanted {
        start: Bytes::new(),
        end: Bytes::new(),
        after: Position::whole(ts(after)),
        to: ts(to),
        bytes_max: 1 << 20,
        previous: false,
    }
}

/// Key, timestamp, value; `None` for a delete.
type Row = (Vec<u8>, u64, Option<Bytes>);

fn rows(changes: &[Change]) -> Vec<Row> {
    let row = |c: &Change| (c.key.to_vec(), c.timestamp.raw(), c.value.clone());
    changes.iter().map(row).collect()
}

fn walked(reader: &MemoryReader, wanted: &Wanted) -> Vec<Row> {
    rows(&walk(reader, wanted).unwrap().0.changes)
}

#[test]
fn every_version_is_a_change_and_a_delete_of_nothing_is_none() {
    let store = MemoryStore::default();
    let value = |v: &'static str| Some(Bytes::from(v));
    store.apply(&[
        version_op(b"a", 5, value("1")),
        version_op(b"a", 7, value("2")),
        version_op(b"a", 9, None),
        version_op(b"a", 10, None),
        version_op(b"b", 4, None),
        version_op(b"b", 7, value("3")),
        version_op(b"c", 12, value("later")),
    ]);
    let reader = store.snapshot();
    let a = |at, v: Option<&'static str>| (b"a".to_vec(), at, v.map(Bytes::from));
    let b = (b"b".to_vec(), 7, value("3"));
    let expected = [a(5, Some("1")), a(7, Some("2")), b.clone(), a(9, None)];
    assert_eq!(walked(&reader, &all(0, 11)), expected);
    assert_eq!(walked(&reader, &all(5, 7)), expected[1..3]);
    assert_eq!(walked(&reader, &all(7, 7)), []);
    let (_, later) = walk(&reader, &all(5, 7)).unwrap();
    let place = |key: &[u8], at| keys::version_key(&keys::addressable(key), ts(at));
    let above = [place(b"a", 10), place(b"a", 9), place(b"c", 12)];
    assert_eq!(later.unwrap(), above);

    let wanted = Wanted {
        previous: true,
        ..all(5, 11)
    };
    let found = walk(&reader, &wanted).unwrap().0;
    let before = |c: &Change| {
        let before = c.previous.as_ref()?;
        Some((
            before.timestamp.raw(),
            before.version.value.clone().unwrap(),
        ))
    };
    let before: Vec<_> = found.changes.iter().map(before).collect();
    assert_eq!(before, [Some((5, "1".into())), None, Some((7, "2".into()))]);
}

#[test]
fn undecided_intents_stop_a_read_and_decided_ones_are_changes() {
    let store = MemoryStore::default();
    let (live, done, gone) = (TxnId([1; 16]), TxnId([2; 16]), TxnId([3; 16]));
    store.apply(&[
        intent_op(b"a", live, 20, Some("live".into())),
        intent_op(b"b", live, 20, Some("live".into())),
        intent_op(b"c", done, 8, Some("done".into())),
        intent_op(b"d", gone, 8, Some("gone".into())),
        record_op(done, Status::Committed(ts(12))),
        record_op(gone, Status::Aborted),
    ]);
    let reader = store.snapshot();
    assert_eq!(walked(&reader, &all(0, 11)), []);
    let done_row = (b"c".to_vec(), 12, Some("done".into()));
    assert_eq!(
        walked(&reader, &all(0, 19)),
        std::slice::from_ref(&done_row)
    );
    assert_eq!(walked(&reader, &all(12, 19)), []);
    match walk(&reader, &all(12, 20)) {
        Err(Error::Locked(locks)) => {
            let names: Vec<_> = locks.iter().map(|lock| lock.key.clone()).collect();
            assert_eq!(names, ["a", "b"]);
        }
        other => panic!("{other:?}"),
    }
    // Staged, it may be committed: not to be seen here.
    store.apply(&[record_op(live, Status::Staging(ts(20)))]);
    assert!(walk(&store.snapshot(), &all(0, 20)).is_err());
    // In the middle of being resolved: one change, not two.
    store.apply(&[version_op(b"c", 12, Some("done".into()))]);
    assert_eq!(walked(&store.snapshot(), &all(0, 19)), [done_row]);
}

proptest! {
    /// Whatever the budget, the pages put together are what a plain model says, in
    /// order; they go on from each other, and a list of what was written leads to
    /// the same ones.
    #[test]
    fn pages_agree_with_a_model(
        versions in vec((vec(0u8..3, 0..3), 1u64..12, any::<bool>(), 0usize..40), 0..80),
        committed in vec((vec(0u8..3, 0..3), 1u64..12, 0u64..4, any::<bool>()), 0..4),
        (after, to) in (0u64..10, 1u64..14),
        start in vec(0u8..3, 0..2),
        end in vec(0u8..3, 0..2),
        bytes_max in 1usize..600,
        previous: bool,
    ) {
        prop_assume!(after < to);
        let store = MemoryStore::default();
        let mut model: BTreeMap<(Vec<u8>, u64), Option<Bytes>> = BTreeMap::new();
        for (key, at, dead, size) in versions {
            let value = (!dead).then(|| Bytes::from(vec![at as u8; size]));
            store.apply(&[version_op(&key, at, value.clone())]);
            model.insert((key, at), value);
        }
        for (n, (key, at, above, dead)) in committed.into_iter().enumerate() {
            // Above every version of its key, as intents are.
            let newest = model.range((key.clone(), 0)..(key.clone(), u64::MAX)).next_back();
            let at = newest.map_or(at, |((_, newest), _)| at.max(newest + 1));
            let txn = TxnId([n as u8 + 1; 16]);
            let value = (!dead).then(|| Bytes::from_static(b"intent"));
            let intent = intent_op(&key, txn, at, value.clone());
            let record = record_op(txn, Status::Committed(ts(at + above)));
            if store.snapshot().get(Tree::Intent, &intent.key).unwrap().is_none() {
                store.apply(&[intent, record]);
                model.insert((key, at + above), value);
            }
        }
        let inside = |key: &[u8]| lineradb_common::keys::in_span(key, &start, &end);
        let before = |key: &Vec<u8>, at: u64| {
            let older = model.range((key.clone(), 0)..(key.clone(), at)).next_back();
            older.and_then(|((_, at), value)| Some((*at, value.clone()?)))
        };
        let mut expected = Vec::new();
        for ((key, at), value) in &model {
            let before = before(key, *at);
            if inside(key) && *at > after && *at <= to && (value.is_some() || before.is_some()) {
                expected.push((*at, key.clone(), value.clone(), before.filter(|_| previous)));
            }
        }
        expected.sort();
        let written: Vec<Bytes> = { model.keys() }
            .filter(|(key, _)| inside(key))
            .map(|(key, at)| keys::version_key(&keys::addressable(key), ts(*at)))
            .collect();

        let reader = store.snapshot();
        let mut wanted = Wanted {
            start: start.clone().into(),
            end: end.clone().into(),
            after: Position::whole(ts(after)),
            to: ts(to),
            bytes_max,
            previous,
        };
        let mut told = Vec::new();
        while wanted.after < Position::whole(ts(to)) {
            let (found, _) = walk(&reader, &wanted).unwrap();
            prop_assert_eq!(&among(&reader, &wanted, &written).unwrap(), &found);
            prop_assert!(found.until > wanted.after, "it leads nowhere");
            let weight: usize = { found.changes.iter() }
                .map(|c| {
                    let before = c.previous.as_ref().and_then(|v| v.version.value.clone());
                    let values = [c.value.clone(), before].into_iter().flatten();
                    c.key.len() + values.map(|v| v.len()).sum::<usize>() + CHANGE_BYTES
                })
                .sum();
            prop_assert!(weight <= bytes_max || found.changes.len() == 1);
            for c in &found.changes {
                prop_assert!(found.until.covers(c.timestamp, &c.key));
                let before = c.previous.as_ref().map(|v| {
                    (v.timestamp.raw(), v.version.value.clone().unwrap())
                });
                told.push((c.timestamp.raw(), c.key.to_vec(), c.value.clone(), before));
            }
            wanted.after = found.until;
        }
        prop_assert_eq!(told, expected);
    }
}
