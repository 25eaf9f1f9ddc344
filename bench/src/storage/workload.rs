//! The workloads, by db_bench's names, on one open engine.

use super::Scale;
use super::engine::{Cursor, Engine};
use crate::figures::percentile;
use anyhow::{Result, bail, ensure};
use lineradb_common::clock::Stopwatch;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A cache that holds everything.
const LARGE_CACHE_BYTES: u64 = 1 << 30;
/// A cache that holds next to nothing.
const SMALL_CACHE_BYTES: u64 = 4 << 20;

/// One result of one engine.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub name: &'static str,
    /// Of `value`.
    pub unit: &'static str,
    /// In that unit.
    pub value: f64,
    /// Whether more is better or less.
    pub better: Better,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    More,
    /// Latencies, amplification.
    Less,
}

/// Runs everything on one engine in fresh folders under `dir`, with values of one
/// size.
///
/// # Errors
/// When the engine answers an error, or a wrong value.
pub fn suite<E: Engine>(dir: &Path, scale: Scale, value_bytes: usize) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut add = |better, name, unit, value| {
        measured.push(Measured {
            name,
            unit,
            value,
            better,
        });
    };
    let open = |name: &str| Bench::<E>::open(dir.join(name), scale, value_bytes, LARGE_CACHE_BYTES);

    let mut bench = open("fillseq")?;
    add(
        Better::More,
        "fillseq",
        "ops/s",
        bench.fill(0..scale.entries, false)?,
    );
    bench.remove()?;

    let mut bench = open("fillsync")?;
    let keys = bench.random_keys(scale.synced);
    add(Better::More, "fillsync", "ops/s", bench.fill(keys, true)?);
    bench.remove()?;

    let mut bench = open("fillrandom")?;
    let written = bytes_written();
    let keys = bench.random_keys(scale.entries);
    add(
        Better::More,
        "fillrandom",
        "ops/s",
        bench.fill(keys, false)?,
    );
    bench.engine.flush()?;
    if let (Some(before), Some(after)) = (written, bytes_written()) {
        let user = scale.entries * (16 + value_bytes as u64);
        let amplification = (after - before) as f64 / user as f64;
        add(
            Better::Less,
            "fillrandom, bytes written per byte",
            "x",
            amplification,
        );
    }
    add(
        Better::More,
        "readrandom (36 % absent)",
        "ops/s",
        bench.read_random(scale.entries)?,
    );
    add(Better::More, "readmissing", "ops/s", bench.read_missing()?);
    add(
        Better::More,
        "seekrandom + 10 next",
        "ops/s",
        bench.seek_random()?,
    );
    add(Better::More, "scan forward", "rows/s", bench.scan(false)?);
    add(Better::More, "scan reverse", "rows/s", bench.scan(true)?);
    add(
        Better::More,
        "readwhilewriting",
        "ops/s",
        bench.read_while_writing()?,
    );
    let keys = bench.random_keys(scale.entries);
    let (rate, slowest) = bench.fill_timed(keys)?;
    add(Better::More, "overwrite", "ops/s", rate);
    add(Better::Less, "overwrite, p99.9 of a put", "us", slowest);
    bench = bench.reopen(SMALL_CACHE_BYTES)?;
    add(
        Better::More,
        "readrandom, small cache",
        "ops/s",
        bench.read_random(scale.cold_reads)?,
    );
    add(
        Better::More,
        "deleterandom",
        "ops/s",
        bench.delete_random()?,
    );
    bench.remove()?;
    Ok(measured)
}

/// An open engine and what a workload needs beside it.
struct Bench<E> {
    dir: PathBuf,
    engine: E,
    scale: Scale,
    value: Vec<u8>,
    rng: StdRng,
}

/// Bytes that this process has handed to `write` so far; `None` where the system does not count them.
fn bytes_written() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = counters
        .lines()
        .find_map(|line| line.strip_prefix("wchar:"));
    line?.trim().parse().ok()
}

fn key_of(n: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

impl<E: Engine> Bench<E> {
    fn open(dir: PathBuf, scale: Scale, value_bytes: usize, cache_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Bench {
            engine: E::open(&dir, cache_bytes)?,
            dir,
            scale,
            value: vec![0; value_bytes],
            rng: StdRng::seed_from_u64(42),
        })
    }

    /// The same database with another cache.
    fn reopen(self, cache_bytes: u64) -> Result<Self> {
        self.engine.close()?;
        Self::open(self.dir, self.scale, self.value.len(), cache_bytes)
    }

    fn remove(self) -> Result<()> {
        self.engine.close()?;
        Ok(std::fs::remove_dir_all(&self.dir)?)
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
        self.engine.put(key, &self.value, sync)
    }

    fn get(&self, key: &[u8]) -> Result<bool> {
        let Some(length) = self.engine.get(key)? else {
            return Ok(false);
        };
        ensure!(length == self.value.len(), "a value of {length} bytes");
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

    /// Rate, and the time in microseconds that one put in a thousand takes or exceeds.
    fn fill_timed(&mut self, keys: impl Iterator<Item = u64>) -> Result<(f64, f64)> {
        let mut micros = Vec::new();
        let whole = Stopwatch::start();
        for n in keys {
            let one = Stopwatch::start();
            self.put(&key_of(n), false)?;
            micros.push(u32::try_from(one.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        let rate = micros.len() as f64 / whole.elapsed().as_secs_f64();
        Ok((rate, percentile(&mut micros, 99.9)))
    }

    fn read_random(&mut self, reads: u64) -> Result<f64> {
        let mut found = 0u64;
        let stopwatch = Stopwatch::start();
        for _ in 0..reads {
            let key = self.random_key();
            found += u64::from(self.get(&key)?);
        }
        ensure!(found > 0, "nothing was found");
        Ok(reads as f64 / stopwatch.elapsed().as_secs_f64())
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

    fn seek_random(&mut self) -> Result<f64> {
        let keys = self.random_keys(self.scale.seeks);
        let mut cursor = self.engine.cursor()?;
        let mut bytes = 0;
        let stopwatch = Stopwatch::start();
        for key in keys {
            cursor.seek(&key_of(key))?;
            for _ in 0..10 {
                bytes += cursor.pair().unwrap_or(0);
                cursor.next()?;
            }
        }
        ensure!(bytes > 0, "nothing was found");
        Ok(self.scale.seeks as f64 / stopwatch.elapsed().as_secs_f64())
    }

    fn scan(&self, reverse: bool) -> Result<f64> {
        let mut cursor = self.engine.cursor()?;
        let (mut rows, mut bytes) = (0u64, 0);
        let stopwatch = Stopwatch::start();
        match reverse {
            true => cursor.last()?,
            false => cursor.first()?,
        }
        while let Some(pair) = cursor.pair() {
            rows += 1;
            bytes += pair;
            match reverse {
                true => cursor.prev()?,
                false => cursor.next()?,
            }
        }
        ensure!(
            bytes as u64 == rows * (16 + self.value.len() as u64),
            "bytes are missing"
        );
        Ok(rows as f64 / stopwatch.elapsed().as_secs_f64())
    }

    /// Reads while a second thread overwrites as fast as it may.
    fn read_while_writing(&mut self) -> Result<f64> {
        let mut writer = Bench {
            dir: self.dir.clone(),
            engine: self.engine.clone(),
            value: self.value.clone(),
            rng: StdRng::seed_from_u64(7),
            scale: self.scale,
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
            let rate = self.read_random(self.scale.entries);
            done.store(true, Ordering::Relaxed);
            match writing.join() {
                Ok(written) => written.and(rate),
                Err(_) => bail!("the writing thread panicked"),
            }
        })
    }

    fn delete_random(&mut self) -> Result<f64> {
        let stopwatch = Stopwatch::start();
        for _ in 0..self.scale.entries {
            let key = self.random_key();
            self.engine.delete(&key)?;
        }
        Ok(self.scale.entries as f64 / stopwatch.elapsed().as_secs_f64())
    }
}
