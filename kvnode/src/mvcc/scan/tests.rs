use super::super::memory::MemoryStore;
use super::super::{IntentWrite, Store};
use super::*;
use crate::command::Op;
use proptest::prelude::*;
use std::collections::BTreeMap;

const ME: TxnId = TxnId([1; 16]);
const OTHER: TxnId = TxnId([2; 16]);

fn ts(n: u64) -> Timestamp {
    Timestamp::from_raw(n)
}

fn options(start: &[u8], end: &[u8], reverse: bool, at: u64) -> ScanOptions {
    ScanOptions {
        start: Bytes::copy_from_slice(start),
        end: Bytes::copy_from_slice(end),
        reverse,
        at: ts(at),
        own: Some(ME),
    }
}

fn collect(store: &MemoryStore, options: ScanOptions) -> Result<(Vec<Row>, Timestamp)> {
    let mut scan = VersionScan::new(store.snapshot(), options);
    let mut rows = Vec::new();
    while let Some(row) = scan.next_row()? {
        rows.push(row);
    }
    Ok((rows, scan.observed()))
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

#[test]
fn a_foreign_intent_below_the_read_stops_the_scan_at_its_key() {
    let store = MemoryStore::default();
    store.apply(&[
        version_op(b"a", 5, Some("1".into())),
        intent_op(b"b", OTHER, 8, Some("2".into())),
    ]);
    assert_eq!(
        collect(&store, options(b"", b"", false, 7))
            .unwrap()
            .0
            .len(),
        1
    );
    let mut scan = VersionScan::new(store.snapshot(), options(b"", b"", false, 8));
    assert_eq!(scan.next_row().unwrap().unwrap().key, "a");
    assert!(matches!(scan.next_row(), Err(Error::Locked(locks)) if locks[0].key == "b"));
}

proptest! {
    /// Both directions, any mix of versions, tombstones and own intents, give
    /// what a plain model gives.
    #[test]
    fn scans_agree_with_a_model(
        versions in proptest::collection::vec(
            (proptest::collection::vec(0u8..3, 0..3), 1u64..24, any::<bool>()), 0..120),
        own in proptest::collection::vec(
            (proptest::collection::vec(0u8..3, 0..3), any::<bool>()), 0..4),
        at in 0u64..26,
        start in proptest::collection::vec(0u8..3, 0..3),
        end in proptest::collection::vec(0u8..3, 0..3),
        reverse: bool,
    ) {
        let store = MemoryStore::default();
        let mut model: BTreeMap<Vec<u8>, BTreeMap<u64, Option<Bytes>>> = BTreeMap::new();
        for (key, t, dead) in &versions {
            let value = (!dead).then(|| Bytes::from(format!("{key:?}@{t}")));
            store.apply(&[version_op(key, *t, value.clone())]);
            model.entry(key.clone()).or_default().insert(*t, value);
        }
        let mut mine = BTreeMap::new();
        for (key, dead) in &own {
            let value = (!dead).then(|| Bytes::from_static(b"own"));
            store.apply(&[intent_op(key, ME, 25, value.clone())]);
            mine.insert(key.clone(), value);
        }
        let inside = |key: &[u8]| lineradb_common::keys::in_span(key, &start, &end);
        let mut expected: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
        let mut observed = 0;
        for (key, history) in model.iter().filter(|(k, _)| inside(k)) {
            if let Some((t, value)) = history.range(..=at).next_back() {
                observed = observed.max(*t);
                if let Some(value) = value {
                    expected.insert(key.clone(), value.clone());
                }
            }
        }
        for (key, value) in mine.iter().filter(|(k, _)| inside(k)) {
            match value {
                Some(value) => expected.insert(key.clone(), value.clone()),
                None => expected.remove(key),
            };
        }
        let (rows, seen) = collect(&store, options(&start, &end, reverse, at)).unwrap();
        let mut got: Vec<_> = rows.into_iter().map(|r| (r.key.to_vec(), r.value)).collect();
        if reverse {
            got.reverse();
        }
        prop_assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(seen, ts(observed));
    }
}
