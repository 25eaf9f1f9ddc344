//! Walks over the versions of one key look only into tables that may have one.

use crate::support::*;
use lineradb_lsm::{Options, SimVfs, WriteBatch, WriteOptions};

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
