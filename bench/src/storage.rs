//! `lineradb-bench storage`: the storage engine alone, under the names of
//! db_bench. 16-byte keys, values of 100 bytes and of 1 KiB, one thread (two
//! where the name says so), as in the figures of RocksDB and fjall that
//! `RESULTS.md` quotes.

use crate::Figure;
use anyhow::{Result, ensure};
use lineradb_common::clock::Stopwatch;
use lineradb_lsm::{Db, Iter, KeyspaceId, Options, RealVfs, WriteBatch, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much work.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Entries of the filled database, at 100 bytes; a tenth of it at 1 KiB.
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

/// A cache that holds everything.
const LARGE_CACHE_BYTES: u64 = 1 << 30;
/// A cache that holds next to nothing.
const SMALL_CACHE_BYTES: u64 = 4 << 20;

/// Runs the suite in fresh folders under `dir`.
///
/// # Errors
/// When the engine answers an error, or a wrong value.
pub fn run(dir: &Path, scale: Scale) -> Result<Vec<Figure>> {
    let mut figures = suite(&dir.join("100"), scale, 100, "")?;
    let tenth = Scale {
        entries: scale.entries / 10,
        synced: scale.synced / 10,
        seeks: scale.seeks / 10,
    };
    figures.extend(suite(&dir.join("1024"), tenth, 1024, ", 1 KiB values")?);
    Ok(figures)
}

/// All lines for one size of values; `note` follows their names.
fn suite(dir: &Path, scale: Scale, value_bytes: usize, note: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut note_rate = |name: &str, unit: &'static str, rate: f64| {
        figures.push(Figure::ours(format!("{name}{note}"), unit, rate));
    };
    let open = |name: &str| Bench::open(dir.join(name), scale, value_bytes, LARGE_CACHE_BYTES);

    let mut bench = open("fillseq")?;
    note_rate("fillseq", "ops/s", bench.fill(0..scale.entries, false)?);
    bench.db.close()?;

    let mut bench = open("fillsync")?;
    let keys = bench.random_keys(scale.synced);
    note_rate("fillsync", "ops/s", bench.fill(keys, true)?);
    bench.db.close()?;

    let mut bench = open("fillrandom")?;
    let keys = bench.random_keys(scale.entries);
    note_rate("fillrandom", "ops/s", bench.fill(keys, false)?);
    bench.db.flush()?;
    note_rate("readrandom (36 % absent)", "ops/s", bench.read_random()?);
    note_rate("readmissing", "ops/s", bench.read_missing()?);
    note_rate("seekrandom + 10 next", "ops/s", bench.seek_random()?);
    let forward = bench.scan(Iter::seek_to_first, Iter::next)?;
    note_rate("scan forward", "rows/s", forward);
    let reverse = bench.scan(Iter::seek_to_last, Iter::prev)?;
    note_rate("scan reverse", "rows/s", reverse);
    note_rate("readwhilewriting", "ops/s", bench.read_while_writing()?);
    let keys = bench.random_keys(scale.entries);
    note_rate("overwrite", "ops/s", bench.fill(keys, false)?);
    if let Some(amplification) = bench.db.statistics().write_amplification() {
        note_rate("write amplification", "x", amplification);
    }
    bench = bench.reopen(SMALL_CACHE_BYTES)?;
    let rate = bench.read_random()?;
    note_rate("readrandom, small cache", "ops/s", rate);
    note_rate("deleterandom", "ops/s", bench.delete_random()?);
    bench.db.close()?;
    Ok(figures)
}

/// An open database and what a workload needs beside it.
struct Bench {
    dir: PathBuf,
    db: Db,
    keyspace: KeyspaceId,
    scale: Scale,
    value: Vec<u8>,
    rng: StdRng,
}

fn key_of(n: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

impl Bench {
    fn open(dir: PathBuf, scale: Scale, value_bytes: usize, cache_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let options = Options {
            keyspaces: vec!["default".into()],
            wal: true,
            block_cache_bytes: cache_bytes,
            ..Options::default()
        };
        let db = Db::open(Arc::new(RealVfs), &dir, options)?;
        Ok(Bench {
            keyspace: db.keyspace("default")?,
            dir,
            db,
            scale,
            value: vec![0; value_bytes],
            rng: StdRng::seed_from_u64(42),
        })
    }

    /// The same database with another cache.
    fn reopen(self, cache_bytes: u64) -> Result<Self> {
        self.db.close()?;
        Self::open(self.dir, self.scale, self.value.len(), cache_bytes)
    }

    fn random_key(&mut self) -> [u8; 16] {
        key_of(self.rng.random_range(0..self.scale.entries))
    }

    fn random_keys(&mut self, count: u64) -> std::vec::IntoIter<u64> {
        let keys = (0..count).map(|_| self.rng.random_range(0..self.scale.entries));
        keys.collect::<Vec<_>>().into_iter()
    }

    fn put(&mut self, key: &[u8], sync: bool) -> Result<()> {
        // Half random, half constant: compresses by about two, as db_bench's values.
        let half = self.value.len() / 2;
        self.rng.fill_bytes(&mut self.value[..half]);
        let mut batch = WriteBatch::new();
        batch.put(self.keyspace, key, &self.value);
        self.db.write(batch, WriteOptions { sync })?;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<bool> {
        let Some(value) = self.db.get(self.keyspace, key)? else {
            return Ok(false);
        };
        ensure!(
            value.len() == self.value.len(),
            "a value of {} bytes",
            value.len()
        );
        Ok(true)
    }

    fn fill(&mut self, keys: impl Iterator<Item = u64>, sync: bool) -> Result<f64> {
        let mut count = 0u64;
        let stopwatch = Stopwatch::start();
        for n in keys {
            self.put(&key_of(n), sync)?;
            count += 1;
        }
        Ok(count as f64 / stopwatch.elapsed().as_secs_f64())
    }

    fn read_random(&mut self) -> Result<f64> {
        let mut found = 0u64;
        let stopwatch = Stopwatch::start();
        for _ in 0..self.scale.entries {
            let key = self.random_key();
            found += u64::from(self.get(&key)?);
        }
        ensure!(found > 0, "nothing was found");
        Ok(self.scale.entries as f64 / stopwatch.elapsed().as_secs_f64())
    }

    /// Keys between those that are there.
    fn read_missing(&mut self) -> Result<f64> {
        let mut key = [b'.'; 17];
        let stopwatch = Stopwatch::start();
        for _ in 0..self.scale.entries {
            key[..16].copy_from_slice(&self.random_key());
            ensure!(!self.get(&key)?, "a key that is not there was found");
        }
        Ok(self.scale.entries as f64 / stopwatch.elapsed().as_secs_f64())
    }

    fn iter(&self) -> Iter {
        let snapshot = self.db.snapshot();
        snapshot.iter(self.keyspace, Bound::Unbounded, Bound::Unbounded)
    }

    fn seek_random(&mut self) -> Result<f64> {
        let mut iter = self.iter();
        let stopwatch = Stopwatch::start();
        for _ in 0..self.scale.seeks {
            iter.seek(&self.random_key())?;
            for _ in 0..10 {
                iter.next()?;
            }
        }
        Ok(self.scale.seeks as f64 / stopwatch.elapsed().as_secs_f64())
    }

    fn scan(
        &self,
        start: fn(&mut Iter) -> lineradb_lsm::Result<()>,
        step: fn(&mut Iter) -> lineradb_lsm::Result<()>,
    ) -> Result<f64> {
        let (mut iter, mut rows) = (self.iter(), 0u64);
        let stopwatch = Stopwatch::start();
        start(&mut iter)?;
        while iter.valid() {
            rows += 1;
            step(&mut iter)?;
        }
        Ok(rows as f64 / stopwatch.elapsed().as_secs_f64())
    }

    /// Reads while a second thread overwrites as fast as it may.
    fn read_while_writing(&mut self) -> Result<f64> {
        let mut writer = Bench {
            dir: self.dir.clone(),
            db: self.db.clone(),
            value: self.value.clone(),
            rng: StdRng::seed_from_u64(7),
            ..*self
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| -> Result<()> {
                while !done.load(Ordering::Relaxed) {
                    let key = writer.random_key();
                    writer.put(&key, false)?;
                }
                Ok(())
            });
            let rate = self.read_random();
            done.store(true, Ordering::Relaxed);
            match writing.join() {
                Ok(written) => written.and(rate),
                Err(_) => anyhow::bail!("the writing thread panicked"),
            }
        })
    }

    fn delete_random(&mut self) -> Result<f64> {
        let stopwatch = Stopwatch::start();
        for _ in 0..self.scale.entries {
            let key = self.random_key();
            let mut batch = WriteBatch::new();
            batch.delete(self.keyspace, &key);
            self.db.write(batch, WriteOptions::NO_SYNC)?;
        }
        Ok(self.scale.entries as f64 / stopwatch.elapsed().as_secs_f64())
    }
}
