//! Random work while threads flush and compact side by side, compared with a model; then a crash at whatever they
//! were doing.

use crate::support::*;
use lineradb_lsm::{
    Background, CrashLoss, Ingestion, Options, SimVfs, Snapshot, TableWriter, WriteOptions,
};
use rand::Rng;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn options(wal: bool) -> Options {
    Options {
        background: Background::Threads,
        compaction_threads: 3,
        // Never reached, but looked at.
        compaction_bytes_per_second: 1 << 30,
        level0_slowdown_tables: 6,
        level0_stall_tables: 10,
        level_base_bytes: 4 << 10,
        ..tiny(wal)
    }
}

fn run(seed: u64, wal: bool) -> u64 {
    let rng = &mut rng(seed);
    let vfs = SimVfs::new();
    let (db, keyspaces) = open(&vfs, options(wal)).unwrap();
    let mut model = empty_model();
    let mut snapshots: Vec<(Snapshot, Model)> = Vec::new();
    let mut durable = (0, model.clone());
    for step in 0..900 {
        match rng.random_range(0..200) {
            0..2 => {
                let path = PathBuf::from(format!("/data/table-{step}"));
                let disk = Arc::new(vfs.clone());
                let mut writer = TableWriter::create(disk, &path, &options(wal)).unwrap();
                let rows: Map = (0..30)
                    .map(|_| (random_key(rng), random_value(rng)))
                    .collect();
                for (key, value) in &rows {
                    writer.put(key, value).unwrap();
                }
                writer.finish().unwrap();
                let mut ingestion = Ingestion::new(random_batch(rng, keyspaces, &mut model));
                ingestion.table(keyspaces[0], &path);
                model[0].extend(rows);
                durable = (db.ingest(&ingestion).unwrap(), model.clone());
            }
            2 => durable = (db.flush().unwrap(), model.clone()),
            3 => {
                let target = format!("/data/copy-{step}");
                db.checkpoint(Path::new(&target)).unwrap();
                let (copy, of_copy) = open_at(&vfs, Path::new(&target), options(wal)).unwrap();
                assert!(all_contents(&copy, of_copy).unwrap() == model);
            }
            4..8 => snapshots.push((db.snapshot(), model.clone())),
            8..12 if !snapshots.is_empty() => {
                let (snapshot, then) = snapshots.swap_remove(rng.random_range(0..snapshots.len()));
                for (keyspace, then) in keyspaces.into_iter().zip(&then) {
                    assert!(contents(&snapshot, keyspace).unwrap() == *then);
                    walk(rng, &snapshot, keyspace, then);
                }
            }
            12..40 => {
                let (at, key) = (rng.random_range(0..2), random_key(rng));
                let found = db.get(keyspaces[at], &key).unwrap();
                assert_eq!(found.as_deref(), model[at].get(&key).map(Vec::as_slice));
            }
            _ => {
                let batch = random_batch(rng, keyspaces, &mut model);
                let sync = rng.random();
                let written = db.write(batch, WriteOptions { sync }).unwrap();
                if wal && sync {
                    durable = (written, model.clone());
                }
            }
        }
    }
    assert!(db.failure().is_none());
    assert!(all_contents(&db, keyspaces).unwrap() == model);
    let compactions = db.statistics().compactions;
    drop((snapshots, db));
    vfs.crash(CrashLoss::Torn(seed));
    let (db, keyspaces) = open(&vfs, options(wal)).unwrap();
    let found = all_contents(&db, keyspaces).unwrap();
    assert!(db.last_seqno() >= durable.0);
    assert!(db.last_seqno() > durable.0 || found == durable.1);
    compactions
}

#[test]
fn random_work_with_three_compaction_threads() {
    let compactions: u64 = (0..6).map(|seed| run(seed, seed.is_multiple_of(2))).sum();
    assert!(compactions > 100, "{compactions}");
}

/// What writers put into the memtables side by side is what their log says: both have the same order.
#[test]
fn large_batches_of_several_writers_are_in_memory_as_they_are_in_the_log() {
    const WRITERS: u8 = 4;
    let vfs = SimVfs::new();
    let options = Options {
        memtable_bytes: 64 << 20,
        ..options(true)
    };
    let (db, keyspaces) = open(&vfs, options.clone()).unwrap();
    let start = std::sync::Barrier::new(usize::from(WRITERS));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (db, start) = (&db, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..40u8 {
                    // All write the same keys; the last one's values stay.
                    let mut batch = lineradb_lsm::WriteBatch::new();
                    for key in 0..400u16 {
                        let value = [[writer, round]; 20].concat();
                        batch.put(keyspaces[usize::from(key % 2)], &key.to_be_bytes(), &value);
                    }
                    db.write(batch, WriteOptions::NO_SYNC).unwrap();
                }
            });
        }
    });
    let written = all_contents(&db, keyspaces).unwrap();
    let values: std::collections::BTreeSet<_> = written.iter().flat_map(Map::values).collect();
    assert_eq!(values.len(), 1, "a batch is there as a whole");
    assert_eq!(db.last_seqno(), u64::from(WRITERS) * 40 * 400);
    drop(db);
    vfs.crash(CrashLoss::Nothing);
    let (db, keyspaces) = open(&vfs, options).unwrap();
    assert!(all_contents(&db, keyspaces).unwrap() == written);
}
