//! Ingestion of tables, checkpoints, and several reads at one moment.

use crate::support::*;
use lineradb_lsm::{
    CrashLoss, Db, Error, Ingestion, KeyspaceId, Options, SimVfs, TableWriter, Vfs, WriteBatch,
    WriteOptions,
};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn write_table(vfs: &SimVfs, name: &str, rows: &[(&str, &str)]) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/data/{name}"));
    let mut writer = TableWriter::create(Arc::new(vfs.clone()), &path, &Options::default())?;
    for (key, value) in rows {
        writer.put(key.as_bytes(), value.as_bytes())?;
    }
    writer.finish()?;
    Ok(path)
}

fn put(db: &Db, keyspace: KeyspaceId, key: &str, value: &str) {
    let mut batch = WriteBatch::new();
    batch.put(keyspace, key.as_bytes(), value.as_bytes());
    db.write(batch, WriteOptions::NO_SYNC).unwrap();
}

fn get(db: &Db, keyspace: KeyspaceId, key: &str) -> Option<String> {
    let value = db.get(keyspace, key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// A shard is replaced: range delete, rows and bookkeeping of all trees at once, with everything written before.
#[test]
fn d1_an_ingestion_is_one_edit_with_all_batches_below() {
    for wal in [true, false] {
        let vfs = SimVfs::new();
        let (db, [first, second]) = open(&vfs, tiny(wal)).unwrap();
        let flushed = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&flushed);
        db.on_flush(move |seqno| noted.store(seqno, Ordering::Relaxed));
        put(&db, first, "b", "old");
        put(&db, first, "z", "outside");
        put(&db, second, "applied", "10");
        let before = db.snapshot();
        let mut batch = WriteBatch::new();
        batch.delete_range(first, b"a", b"m");
        batch.put(second, b"applied", b"20");
        let mut ingestion = Ingestion::new(batch);
        let rows = [("a", "new"), ("c", "one")];
        ingestion.table(first, &write_table(&vfs, "one", &rows).unwrap());
        ingestion.table(first, &write_table(&vfs, "two", &[("c", "two")]).unwrap());
        let last = db.ingest(&ingestion).unwrap();
        assert_eq!((last, db.last_seqno(), db.flushed_seqno()), (7, 7, 7));
        assert_eq!(flushed.load(Ordering::Relaxed), 7);
        let check = |db: &Db| {
            assert_eq!(get(db, first, "a").unwrap(), "new");
            assert_eq!(get(db, first, "b"), None);
            assert_eq!(get(db, first, "c").unwrap(), "two");
            assert_eq!(get(db, first, "z").unwrap(), "outside");
            assert_eq!(get(db, second, "applied").unwrap(), "20");
        };
        check(&db);
        // A snapshot from before sees nothing of it, in either direction.
        assert!(before.get(first, b"a").unwrap().is_none());
        assert_eq!(before.get(second, b"applied").unwrap().unwrap(), b"10");
        let mut iter = before.iter(first, Bound::Unbounded, Bound::Unbounded);
        iter.seek_to_last().unwrap();
        iter.prev().unwrap();
        assert_eq!((iter.key(), iter.value()), (&b"b"[..], &b"old"[..]));
        iter.prev().unwrap();
        assert!(!iter.valid());
        // Later writes are newer than the tables.
        put(&db, first, "c", "three");
        assert_eq!(get(&db, first, "c").unwrap(), "three");
        drop(before);
        drop(db);
        vfs.crash(CrashLoss::Everything);
        let (db, _) = open(&vfs, tiny(wal)).unwrap();
        assert_eq!(db.last_seqno(), 7);
        check(&db);
    }
}

#[test]
fn tables_that_overlap_nothing_go_deep_and_live_on() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, tiny(false)).unwrap();
    for (name, rows) in [
        ("one", [("a", "1"), ("b", "1")]),
        ("two", [("c", "2"), ("d", "2")]),
        ("three", [("b", "3"), ("c", "3")]),
    ] {
        let path = write_table(&vfs, name, &rows).unwrap();
        let mut ingestion = Ingestion::default();
        ingestion.table(first, &path);
        db.ingest(&ingestion).unwrap();
        vfs.remove(&path).unwrap();
    }
    // The third lay above the other two and was merged with them.
    let statistics = db.statistics();
    assert_eq!((statistics.tables, statistics.level_tables[6]), (1, 1));
    assert_eq!((statistics.flushes, statistics.compactions), (0, 1));
    // Compaction merges them like any others.
    for round in 0..30 {
        put(&db, first, &format!("b{round}"), "new");
        db.flush().unwrap();
    }
    assert_eq!(db.statistics().ingestions, 3);
    assert!(db.statistics().compactions > 0);
    for (key, value) in [("a", "1"), ("b", "3"), ("c", "3"), ("d", "2")] {
        assert_eq!(get(&db, first, key).unwrap(), value);
    }
    assert_eq!(contents(&db.snapshot(), first).unwrap().len(), 34);
}

#[test]
fn what_is_no_table_is_refused_and_nothing_has_happened() {
    let vfs = SimVfs::new();
    let unsorted = write_table(&vfs, "unsorted", &[("b", ""), ("a", "")]);
    assert!(matches!(unsorted, Err(Error::InvalidTable { .. })));
    let twice = write_table(&vfs, "twice", &[("b", ""), ("b", "")]);
    assert!(matches!(twice, Err(Error::InvalidTable { .. })));
    let empty = write_table(&vfs, "empty", &[]);
    assert!(matches!(empty, Err(Error::InvalidTable { .. })));
    let (db, [first, _]) = open(&vfs, tiny(false)).unwrap();
    put(&db, first, "a", "here");
    db.flush().unwrap();
    let own = vfs.list(Path::new(DIR)).unwrap();
    let own = own.iter().find(|name| name.ends_with(".sst")).unwrap();
    let damaged = write_table(&vfs, "damaged", &[("a", "gone")]).unwrap();
    let length = vfs.read(&damaged).unwrap().len() as u64;
    for offset in length - 160..length {
        vfs.corrupt(&damaged, offset, 4).unwrap();
        let mut ingestion = Ingestion::default();
        ingestion.table(first, &damaged);
        let error = db.ingest(&ingestion).unwrap_err();
        assert!(error.is_corruption(), "{offset} of {length}: {error}");
        vfs.corrupt(&damaged, offset, 4).unwrap();
    }
    for path in [
        Path::new(DIR).join(own),
        Path::new(DIR).join("CURRENT"),
        PathBuf::from("/data/nowhere"),
    ] {
        let mut batch = WriteBatch::new();
        batch.delete(first, b"a");
        let mut ingestion = Ingestion::new(batch);
        ingestion.table(first, &path);
        let error = db.ingest(&ingestion).unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
    }
    assert!(db.failure().is_none());
    assert_eq!(get(&db, first, "a").unwrap(), "here");
    assert_eq!(db.last_seqno(), 1);
}

#[test]
fn a_checkpoint_is_a_database_of_its_own() {
    let vfs = SimVfs::new();
    let (db, keyspaces) = open(&vfs, tiny(true)).unwrap();
    let mut model = empty_model();
    let rng = &mut rng(5);
    for _ in 0..100 {
        let batch = random_batch(rng, keyspaces, &mut model);
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }
    let (target, then) = (Path::new("/backup/one"), model.clone());
    db.checkpoint(target).unwrap();
    assert!(matches!(
        db.checkpoint(target),
        Err(Error::InvalidOptions { .. })
    ));
    for _ in 0..100 {
        let batch = random_batch(rng, keyspaces, &mut model);
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }
    drop(db);
    vfs.crash(CrashLoss::Everything);
    let (copy, of_copy) = open_at(&vfs, target, tiny(true)).unwrap();
    assert!(all_contents(&copy, of_copy).unwrap() == then);
    let mut changed = then.clone();
    let batch = random_batch(rng, of_copy, &mut changed);
    copy.write(batch, WriteOptions::SYNC).unwrap();
    copy.close().unwrap();
    let (copy, of_copy) = open_at(&vfs, target, tiny(true)).unwrap();
    assert!(all_contents(&copy, of_copy).unwrap() == changed);
    // One that did not get to its end says so.
    drop(copy);
    vfs.remove(&target.join("CURRENT")).unwrap();
    let Err(error) = open_at(&vfs, target, tiny(true)) else {
        panic!("half a checkpoint opens")
    };
    assert!(error.is_corruption() && error.to_string().contains("CURRENT"));
}

#[test]
fn a_checkpoint_on_a_real_disk_shares_the_tables() {
    use lineradb_lsm::RealVfs;
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let (dir, target) = (folder.path().join("db"), folder.path().join("copy"));
    let options = || Options {
        background: lineradb_lsm::Background::Threads,
        ..tiny(true)
    };
    let db = Db::open(Arc::new(RealVfs), &dir, options()).unwrap();
    let first = db.keyspace("first").unwrap();
    for number in 0..300 {
        put(&db, first, &format!("{number:05}"), "some value");
    }
    let table = folder.path().join("table");
    let mut writer = TableWriter::create(Arc::new(RealVfs), &table, &options()).unwrap();
    writer.put(b"00299", b"ingested").unwrap();
    writer.finish().unwrap();
    let mut ingestion = Ingestion::default();
    ingestion.table(first, &table);
    db.ingest(&ingestion).unwrap();
    db.checkpoint(&target).unwrap();
    let copy = Db::open(Arc::new(RealVfs), &target, tiny(true)).unwrap();
    assert_eq!(get(&copy, first, "00299").unwrap(), "ingested");
    assert_eq!(contents(&copy.snapshot(), first).unwrap().len(), 300);
    let tables = std::fs::read_dir(&target).unwrap().map(Result::unwrap);
    let mut tables = tables.filter(|file| file.path().extension().is_some_and(|it| it == "sst"));
    assert!(tables.any(|file| file.metadata().unwrap().nlink() > 1));
}

#[test]
fn several_keys_at_one_moment() {
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, tiny(false)).unwrap();
    put(&db, first, "a", "1");
    db.flush().unwrap();
    put(&db, first, "b", "2");
    let snapshot = db.snapshot();
    put(&db, first, "a", "3");
    let keys = ["b", "x", "a", "b"];
    let now = db.multi_get(first, keys).unwrap();
    let now: Vec<_> = now.iter().map(Option::as_deref).collect();
    assert_eq!(now, [Some(&b"2"[..]), None, Some(b"3"), Some(b"2")]);
    let then = snapshot.multi_get(first, keys).unwrap();
    assert_eq!(then[2].as_deref(), Some(&b"1"[..]));
    assert_eq!(db.statistics().gets, 8);
}
