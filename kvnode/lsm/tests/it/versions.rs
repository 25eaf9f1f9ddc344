//! Walks over the versions of one key look only into tables that may have one.

use crate::support::*;
use lineradb_lsm::{Options, SimVfs, WriteBatch, WriteOptions};
use rand::Rng;
use std::ops::Bound;

#[test]
fn tables_without_a_version_of_the_key_are_passed_by() {
    let options = Options {
        version_bytes: vec![(KEYSPACES[0].to_owned(), 2)],
        level0_compaction_tables: 100,
        level0_slowdown_tables: 100,
        level0_stall_tables: 100,
        ..tiny(true)
    };
    let (db, keyspaces) = open(&SimVfs::new(), options).unwrap();
    // Twenty tables over the same range, each with the versions of two keys of its own.
    for table in b'a'..b'u' {
        let mut batch = WriteBatch::new();
        for key in [[b'0', table], [b'9', table]] {
            for version in [b"v1", b"v2"] {
                let key = [&key[..], version].concat();
                batch.put(keyspaces[0], &key, b"value");
            }
        }
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        db.flush().unwrap();
    }
    let before = db.statistics().bloom_useful;
    let snapshot = db.snapshot();
    let mut found = snapshot.iter_versions(keyspaces[0], b"0tv2", 2);
    found.seek_to_first().unwrap();
    assert_eq!(found.key(), b"0tv2");
    found.next().unwrap();
    assert!(!found.valid());
    // All twenty cover the key by their ranges; of nineteen the filters say no (one may err).
    let passed_by = db.statistics().bloom_useful - before;
    assert!(passed_by >= 17, "{passed_by} of 19 tables");
}

#[test]
fn tables_without_a_wanted_version_are_passed_by() {
    let rng = &mut rng(1);
    let vfs = SimVfs::new();
    let options = Options {
        version_bytes: vec![(KEYSPACES[0].to_owned(), 2)],
        ..tiny(true)
    };
    let (db, [first, _]) = open(&vfs, options).unwrap();
    let mut model = Map::new();
    // Versions grow with time, as timestamps do; some go again.
    for version in 0..600u16 {
        let mut batch = WriteBatch::new();
        for _ in 0..4 {
            let mut key = random_key(rng);
            key.extend_from_slice(&version.to_be_bytes());
            let value = random_value(rng);
            batch.put(first, &key, &value);
            model.insert(key, value);
        }
        if version % 3 == 0 {
            let old = model.keys().nth(rng.random_range(0..model.len()));
            let old = old.unwrap().clone();
            batch.delete(first, &old);
            model.remove(&old);
        }
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }
    let statistics = db.statistics();
    assert!(statistics.tables > 10, "{statistics:?}");
    for from in (0..600u16).step_by(50) {
        let (from, to) = (from.to_be_bytes(), (from + 9).to_be_bytes());
        let wanted = |key: &[u8]| (from..=to).contains(&[key[key.len() - 2], key[key.len() - 1]]);
        let bounds = (Bound::Included(&b"key"[..]), Bound::Excluded(&b"key02"[..]));
        let mut iter = (db.snapshot()).iter_between_versions(first, bounds, &from, &to);
        let mut found = Vec::new();
        iter.seek_to_first().unwrap();
        while iter.valid() {
            if wanted(iter.key()) {
                assert_eq!(model.get(iter.key()).map(Vec::as_slice), Some(iter.value()));
                found.push(iter.key().to_vec());
            }
            iter.next().unwrap();
        }
        let inside = model.range::<[u8], _>(bounds).map(|(key, _)| key);
        let expected: Vec<_> = inside.filter(|key| wanted(key)).cloned().collect();
        assert_eq!(found, expected);
    }
    let passed_by = db.statistics().versions_useful;
    assert!(passed_by > 20, "{passed_by} tables");
}
