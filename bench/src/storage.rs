//! `lineradb-bench storage`: the storage engine alone, under the names of
//! db_bench. 16-byte keys, 100-byte values, one thread, as in the figures of
//! RocksDB and fjall that `RESULTS.md` quotes.

use crate::Figure;
use anyhow::Result;
use lineradb_common::clock::Stopwatch;
use lineradb_lsm::{Db, KeyspaceId, Options, RealVfs, WriteBatch, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// How much work.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Entries of the filled database.
    pub entries: u64,
    /// Synced writes.
    pub synced: u64,
    /// Seeks.
    pub seeks: u64,
}

/// Minutes.
pub const FULL: Scale = Scale {
    entries: 1_000_000,
    synced: 10_000,
    seeks: 100_000,
};
/// Seconds.
pub const QUICK: Scale = Scale {
    entries: 200_000,
    synced: 2_000,
    seeks: 20_000,
};

const VALUE_BYTES: usize = 100;

/// Runs the suite in fresh folders under `dir`.
///
/// # Errors
/// When the engine answers an error, or a wrong value.
pub fn run(dir: &Path, scale: Scale) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut rng = StdRng::seed_from_u64(42);
    {
        let (db, ks) = open(&dir.join("fillseq"))?;
        let rate = fill(&db, ks, 0..scale.entries, &mut rng, false)?;
        figures.push(Figure::ours("fillseq", "ops/s", rate));
        db.close()?;
    }
    {
        let (db, ks) = open(&dir.join("fillsync"))?;
        let keys: Vec<u64> = (0..scale.synced)
            .map(|_| rng.random_range(0..scale.entries))
            .collect();
        let rate = fill(&db, ks, keys.into_iter(), &mut rng, true)?;
        figures.push(Figure::ours("fillsync", "ops/s", rate));
        db.close()?;
    }
    let (db, ks) = open(&dir.join("fillrandom"))?;
    let keys: Vec<u64> = (0..scale.entries)
        .map(|_| rng.random_range(0..scale.entries))
        .collect();
    let rate = fill(&db, ks, keys.iter().copied(), &mut rng, false)?;
    figures.push(Figure::ours("fillrandom", "ops/s", rate));
    db.flush()?;
    figures.push(Figure::ours(
        "readrandom (36 % absent)",
        "ops/s",
        read_random(&db, ks, scale, &mut rng)?,
    ));
    figures.push(Figure::ours(
        "seekrandom + 10 next",
        "ops/s",
        seek_random(&db, ks, scale, &mut rng)?,
    ));
    figures.push(Figure::ours(
        "scan forward",
        "rows/s",
        scan(&db, ks, false)?,
    ));
    figures.push(Figure::ours("scan reverse", "rows/s", scan(&db, ks, true)?));
    db.close()?;
    Ok(figures)
}

fn open(dir: &Path) -> Result<(Db, KeyspaceId)> {
    std::fs::create_dir_all(dir)?;
    let options = Options {
        keyspaces: vec!["default".into()],
        wal: true,
        block_cache_bytes: 1 << 30,
        ..Options::default()
    };
    let db = Db::open(Arc::new(RealVfs), dir, options)?;
    let ks = db.keyspace("default")?;
    Ok((db, ks))
}

fn key_of(n: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

fn fill(
    db: &Db,
    ks: KeyspaceId,
    keys: impl Iterator<Item = u64>,
    rng: &mut StdRng,
    sync: bool,
) -> Result<f64> {
    let mut count = 0u64;
    let mut value = [0u8; VALUE_BYTES];
    let stopwatch = Stopwatch::start();
    for n in keys {
        // Half random, half constant: compresses by about two, as db_bench's values.
        rng.fill_bytes(&mut value[..VALUE_BYTES / 2]);
        let mut batch = WriteBatch::new();
        batch.put(ks, &key_of(n), &value);
        db.write(batch, WriteOptions { sync })?;
        count += 1;
    }
    Ok(count as f64 / stopwatch.elapsed().as_secs_f64())
}

fn read_random(db: &Db, ks: KeyspaceId, scale: Scale, rng: &mut StdRng) -> Result<f64> {
    let mut found = 0u64;
    let stopwatch = Stopwatch::start();
    for _ in 0..scale.entries {
        if let Some(value) = db.get(ks, &key_of(rng.random_range(0..scale.entries)))? {
            anyhow::ensure!(
                value.len() == VALUE_BYTES,
                "a value of {} bytes",
                value.len()
            );
            found += 1;
        }
    }
    anyhow::ensure!(found > 0, "nothing was found");
    Ok(scale.entries as f64 / stopwatch.elapsed().as_secs_f64())
}

fn seek_random(db: &Db, ks: KeyspaceId, scale: Scale, rng: &mut StdRng) -> Result<f64> {
    let snapshot = db.snapshot();
    let mut iter = snapshot.iter(ks, Bound::Unbounded, Bound::Unbounded);
    let stopwatch = Stopwatch::start();
    for _ in 0..scale.seeks {
        iter.seek(&key_of(rng.random_range(0..scale.entries)))?;
        for _ in 0..10 {
            if !iter.valid() {
                break;
            }
            iter.next()?;
        }
    }
    Ok(scale.seeks as f64 / stopwatch.elapsed().as_secs_f64())
}

fn scan(db: &Db, ks: KeyspaceId, reverse: bool) -> Result<f64> {
    let snapshot = db.snapshot();
    let mut iter = snapshot.iter(ks, Bound::Unbounded, Bound::Unbounded);
    let mut rows = 0u64;
    let stopwatch = Stopwatch::start();
    if reverse {
        iter.seek_to_last()?
    } else {
        iter.seek_to_first()?
    }
    while iter.valid() {
        rows += 1;
        if reverse { iter.prev()? } else { iter.next()? }
    }
    Ok(rows as f64 / stopwatch.elapsed().as_secs_f64())
}
