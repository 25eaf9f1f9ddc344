//! The engine alone under the names of RocksDB's `db_bench`: for profiles, and to compare two builds.
//!
//! `cargo run --release -p lineradb-lsm --example db_bench -- [entries] [value bytes] [folder] [names, by commas]`
//! with 1 000 000 entries of 16 + 100 bytes and all names by default. One thread unless the name says otherwise,
//! cache larger than the data, log without syncs.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use lineradb_lsm::{Db, Iter, KeyspaceId, Options, RealVfs, WriteBatch, WriteOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const ALL: &str = "fillseq,fillrandom,overwrite,readrandom,readmissing,multireadrandom,seekrandom,\
                   readseq,readreverse,readwhilewriting,deleterandom,deleterange";

fn key_of(number: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

struct Bench {
    db: Db,
    keyspace: KeyspaceId,
    entries: u64,
    value: Vec<u8>,
    rng: StdRng,
}

impl Bench {
    fn open(dir: &Path, entries: u64, value_bytes: usize) -> Self {
        let options = Options {
            block_cache_bytes: 4 << 30,
            ..Options::default()
        };
        let db = Db::open(Arc::new(RealVfs), dir, options).unwrap();
        Self {
            keyspace: db.keyspace("default").unwrap(),
            db,
            entries,
            value: vec![b'v'; value_bytes],
            rng: StdRng::seed_from_u64(42),
        }
    }

    fn random_key(&mut self) -> [u8; 16] {
        key_of(self.rng.random_range(0..self.entries))
    }

    fn write(&self, fill: impl FnOnce(&mut WriteBatch)) {
        let mut batch = WriteBatch::new();
        fill(&mut batch);
        self.db.write(batch, WriteOptions::NO_SYNC).unwrap();
    }

    fn put(&mut self, key: &[u8]) {
        // Half random, half constant: compresses by about two, as db_bench's values.
        let half = self.value.len() / 2;
        self.rng.fill_bytes(&mut self.value[..half]);
        self.write(|batch| batch.put(self.keyspace, key, &self.value));
    }

    fn iter(&self) -> Iter {
        let snapshot = self.db.snapshot();
        snapshot.iter(self.keyspace, Bound::Unbounded, Bound::Unbounded)
    }

    /// Walks over everything; returns how many keys there are.
    fn walk(
        &self,
        first: fn(&mut Iter) -> lineradb_lsm::Result<()>,
        step: fn(&mut Iter) -> lineradb_lsm::Result<()>,
    ) -> u64 {
        let (mut iter, mut keys) = (self.iter(), 0);
        first(&mut iter).unwrap();
        while iter.valid() {
            keys += 1;
            step(&mut iter).unwrap();
        }
        keys
    }

    fn get_random(&mut self) {
        let key = self.random_key();
        self.db.get(self.keyspace, &key).unwrap();
    }

    /// Reads while another thread overwrites as fast as it may.
    fn read_while_writing(&mut self) -> u64 {
        let done = AtomicBool::new(false);
        let mut writer = Bench {
            db: self.db.clone(),
            rng: StdRng::seed_from_u64(7),
            value: self.value.clone(),
            ..*self
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let key = writer.random_key();
                    writer.put(&key);
                }
            });
            (0..self.entries).for_each(|_| self.get_random());
            done.store(true, Ordering::Relaxed);
        });
        self.entries
    }

    /// Runs one benchmark; returns the number of operations.
    fn run(&mut self, name: &str) -> u64 {
        let entries = self.entries;
        match name {
            "fillseq" => (0..entries).for_each(|number| self.put(&key_of(number))),
            "fillrandom" | "overwrite" => (0..entries).for_each(|_| {
                let key = self.random_key();
                self.put(&key);
            }),
            "readrandom" => (0..entries).for_each(|_| self.get_random()),
            "readmissing" => (0..entries).for_each(|_| {
                let key = [&self.random_key()[..], b"."].concat();
                assert!(self.db.get(self.keyspace, &key).unwrap().is_none());
            }),
            "multireadrandom" => (0..entries / 16).for_each(|_| {
                let keys: [_; 16] = std::array::from_fn(|_| self.random_key());
                self.db.multi_get(self.keyspace, keys).unwrap();
            }),
            "seekrandom" => {
                let mut iter = self.iter();
                for _ in 0..entries / 10 {
                    iter.seek(&self.random_key()).unwrap();
                    (0..10).for_each(|_| iter.next().unwrap());
                }
                return entries / 10;
            }
            "readseq" => return self.walk(Iter::seek_to_first, Iter::next),
            "readreverse" => return self.walk(Iter::seek_to_last, Iter::prev),
            "readwhilewriting" => return self.read_while_writing(),
            "deleterandom" => (0..entries).for_each(|_| {
                let key = self.random_key();
                self.write(|batch| batch.delete(self.keyspace, &key));
            }),
            "deleterange" => {
                let (start, end) = (key_of(0), key_of(entries));
                self.write(|batch| batch.delete_range(self.keyspace, &start, &end));
                assert_eq!(self.walk(Iter::seek_to_first, Iter::next), 0);
                return 1;
            }
            name => panic!("there is no benchmark {name:?}"),
        }
        entries
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |it| it.parse().unwrap());
    let (entries, value_bytes) = (number(1_000_000), number(100) as usize);
    let folder = tempfile::tempdir().unwrap();
    let dir = arguments
        .next()
        .map_or(folder.path().into(), std::path::PathBuf::from);
    let names = arguments.next().unwrap_or(ALL.to_owned());
    let mut bench = Bench::open(&dir.join("db"), entries, value_bytes);
    for name in names.split(',') {
        if name == "fillseq" || name == "fillrandom" {
            bench.db.close().unwrap();
            bench = Bench::open(&dir.join(name), entries, value_bytes);
        }
        let before = bench.db.statistics();
        let start = Instant::now();
        let operations = bench.run(name);
        let seconds = start.elapsed().as_secs_f64();
        let after = bench.db.statistics();
        println!(
            "{name:>18}: {:>10.0} /s {:>9.3} us each, {:.3} s stalled",
            operations as f64 / seconds,
            seconds * 1e6 / operations as f64,
            (after.stall_micros - before.stall_micros) as f64 / 1e6,
        );
        if name.starts_with("fill") || name == "overwrite" {
            bench.db.flush().unwrap();
        }
    }
    let statistics = bench.db.statistics();
    println!(
        "write amplification {:.2}, space amplification {:.2}, {} compactions, {} moves, {} bytes of debt",
        statistics.write_amplification().unwrap_or_default(),
        statistics.space_amplification().unwrap_or_default(),
        statistics.compactions,
        statistics.trivial_moves,
        statistics.compaction_debt_bytes,
    );
    bench.db.close().unwrap();
}
