//! Flipped bits in every kind of file: found, named, never served, and no panic.

use crate::support::*;
use lineradb_lsm::{CrashLoss, Error, SimVfs, Vfs, WriteOptions};
use std::path::{Path, PathBuf};

/// A database with tables in several levels and a log with synced and unsynced records.
fn build(wal: bool) -> (SimVfs, Model) {
    let vfs = SimVfs::new();
    let (db, keyspaces) = open(&vfs, tiny(wal)).unwrap();
    let mut model = empty_model();
    let rng = &mut rng(11);
    for _ in 0..120 {
        db.write(random_batch(rng, keyspaces, &mut model), WriteOptions::SYNC)
            .unwrap();
    }
    if !wal {
        db.flush().unwrap();
    }
    drop(db);
    (vfs, model)
}

fn files(vfs: &SimVfs) -> Vec<PathBuf> {
    vfs.list(Path::new(DIR))
        .unwrap()
        .into_iter()
        .map(|name| Path::new(DIR).join(name))
        .collect()
}

/// Opens and reads everything. `Ok` means that every byte read was right.
fn read_all(vfs: &SimVfs, wal: bool, model: &Model, states: &[Model]) -> Result<(), Error> {
    let (db, keyspaces) = open(vfs, tiny(wal))?;
    let found = all_contents(&db, keyspaces)?;
    assert!(
        found == *model || states.contains(&found),
        "damaged data were served"
    );
    for (keyspace, map) in keyspaces.iter().zip(&found) {
        for (key, value) in map {
            assert_eq!(db.get(*keyspace, key)?.as_deref(), Some(value.as_slice()));
        }
    }
    Ok(())
}

#[test]
fn tables_compressed_with_zstd() {
    let options = || lineradb_lsm::Options {
        compression_last_level: Some(lineradb_lsm::Compression::Zstd),
        block_bytes: 1024,
        ..tiny(false)
    };
    let vfs = SimVfs::new();
    let (db, [first, _]) = open(&vfs, options()).unwrap();
    for round in 0..40u32 {
        let mut batch = lineradb_lsm::WriteBatch::new();
        for key in 0..20u32 {
            batch.put(first, &(key * 50 + round).to_be_bytes(), &[7; 50]);
        }
        db.write(batch, WriteOptions::NO_SYNC).unwrap();
        db.flush().unwrap();
    }
    assert!(db.statistics().level_bytes[6] < 20_000);
    let all = contents(&db.snapshot(), first).unwrap();
    assert_eq!(all.len(), 800);
    drop(db);
    for path in files(&vfs) {
        let length = vfs.read(&path).unwrap().len() as u64;
        if path.extension().is_none_or(|it| it != "sst") {
            continue;
        }
        for offset in (0..length).step_by(97) {
            let vfs = vfs.fork();
            vfs.corrupt(&path, offset, 2).unwrap();
            // A scan asks no filter.
            let read = open(&vfs, options()).and_then(|(db, _)| {
                contents(&db.snapshot(), first)?;
                (0..1000u32).try_for_each(|key| db.get(first, &key.to_be_bytes()).map(drop))
            });
            let error = read.expect_err("damage is named");
            assert!(error.to_string().contains(&*path.to_string_lossy()));
        }
    }
}

fn flip_everywhere(wal: bool, suffix: &str, step: usize) {
    let (clean, model) = build(wal);
    let mut tried = 0;
    for path in files(&clean)
        .iter()
        .filter(|path| path.to_string_lossy().contains(suffix))
    {
        let length = clean.read(path).unwrap().len();
        let starts = (0..length).step_by(step);
        for offset in starts.chain(length.saturating_sub(60)..length) {
            let vfs = clean.fork();
            vfs.corrupt(path, offset as u64, 1 << (offset % 8)).unwrap();
            tried += 1;
            match read_all(&vfs, wal, &model, &[]) {
                // The empty record after the last edit may be damaged without harm.
                Ok(()) => assert!(
                    suffix == "MANIFEST" && offset + 32 >= length,
                    "{path:?} at {offset} went unseen"
                ),
                Err(error) => {
                    assert!(error.is_corruption(), "{error}");
                    let text = error.to_string();
                    let named = text.contains(&*path.to_string_lossy());
                    assert!(named, "{path:?} at {offset}: {text}");
                }
            }
        }
    }
    assert!(tried > 20, "only {tried} positions of {suffix}");
}

#[test]
fn tables() {
    flip_everywhere(false, ".sst", 211);
}

#[test]
fn blobs() {
    flip_everywhere(false, ".blob", 97);
}

#[test]
fn manifest() {
    flip_everywhere(false, "MANIFEST", 13);
}

#[test]
fn current() {
    flip_everywhere(false, "CURRENT", 1);
}

/// In the log, damage below the last synced offset is named; the last record may count as torn.
#[test]
fn log() {
    let (clean, model) = build(true);
    let mut states = Vec::new();
    let mut state = empty_model();
    let rng = &mut rng(11);
    let (db, keyspaces) = open(&SimVfs::new(), tiny(true)).unwrap();
    drop(db);
    for _ in 0..120 {
        random_batch(rng, keyspaces, &mut state);
        states.push(state.clone());
    }
    let path = files(&clean)
        .into_iter()
        .rfind(|path| path.extension().is_some_and(|it| it == "wal"))
        .unwrap();
    // What is reserved for records to come is zeros.
    let contents = clean.read(&path).unwrap();
    let length = contents.iter().rposition(|byte| *byte != 0).unwrap();
    let mut cut = 0;
    for offset in (0..length).step_by(29) {
        let vfs = clean.fork();
        vfs.corrupt(&path, offset as u64, 0x10).unwrap();
        match read_all(&vfs, true, &model, &states) {
            Ok(()) => cut += 1,
            Err(error) => assert!(
                error.is_corruption() && error.to_string().contains(".wal"),
                "{error}"
            ),
        }
    }
    assert!(cut < 20, "{cut} positions were taken for a torn tail");
}

#[test]
fn a_missing_file_is_named() {
    for suffix in [".sst", ".blob", "MANIFEST", "CURRENT"] {
        let (vfs, _) = build(false);
        let path = files(&vfs)
            .into_iter()
            .find(|path| path.to_string_lossy().contains(suffix))
            .unwrap();
        vfs.remove(&path).unwrap();
        let Err(error) = open(&vfs, tiny(false)) else {
            panic!("{path:?} was not missed")
        };
        assert!(
            error.to_string().contains(&*path.to_string_lossy()),
            "{error}"
        );
    }
}

#[test]
fn files_of_nobody_are_removed_or_left_alone() {
    let (vfs, model) = build(false);
    for name in [
        "999999.sst",
        "999998.blob",
        "000000.wal",
        "MANIFEST-000000",
        "CURRENT.tmp",
        "readme.txt",
    ] {
        let mut file = vfs.create(&Path::new(DIR).join(name)).unwrap();
        file.append(b"rubbish").unwrap();
    }
    let opened = open(&vfs, tiny(false));
    // A log that the manifest does not know to be flushed cannot be ignored.
    if let Ok((db, keyspaces)) = &opened {
        assert_eq!(all_contents(db, *keyspaces).unwrap(), model);
    }
    drop(opened);
    let names: Vec<String> = vfs.list(Path::new(DIR)).unwrap();
    assert!(
        !["999999.sst", "999998.blob", "CURRENT.tmp"]
            .map(|name| names.iter().any(|it| it == name))
            .contains(&true),
        "{names:?}"
    );
    assert!(names.contains(&"readme.txt".to_owned()));
    vfs.crash(CrashLoss::Everything);
    let (db, keyspaces) = open(&vfs, tiny(false)).unwrap();
    assert_eq!(all_contents(&db, keyspaces).unwrap(), model);
}
