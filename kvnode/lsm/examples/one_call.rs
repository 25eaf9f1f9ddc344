//! What one call costs: a fixed number of one kind of call, and nothing else, for `callgrind`; and how long a store takes to open.
//!
//! `cargo build --release -p lineradb-lsm --example one_call`, then
//! `valgrind --tool=callgrind one_call put|get|absent COUNT`: 5,000 keys of 16 + 100 bytes are there before, a get finds its
//! key in a table with its block in the cache. The difference of two runs with other counts, by the calls between them, is the cost of a call.
//!
//! `one_call fill KEYS FOLDER` writes and then waits to be killed; `one_call open FOLDER` says how long the store took to open.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use lineradb_lsm::{Db, KeyspaceId, Options, RealVfs, WriteBatch, WriteOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const KEYS: u64 = 5_000;

/// Keys in an order without a pattern: multiplication by an odd number visits each once.
fn key_of(number: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

fn open(dir: &Path) -> (Db, KeyspaceId) {
    let db = Db::open(Arc::new(RealVfs), dir, Options::default()).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    (db, keyspace)
}

fn put(db: &Db, keyspace: KeyspaceId, number: u64) {
    let mut batch = WriteBatch::new();
    batch.put(keyspace, &key_of(number), &[b'v'; 100]);
    db.write(batch, WriteOptions::NO_SYNC).unwrap();
}

fn calls(kind: &str, count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let (db, keyspace) = open(folder.path());
    (0..KEYS).for_each(|number| put(&db, keyspace, number));
    db.flush().unwrap();
    let get = |number| db.get(keyspace, &key_of(number)).unwrap();
    (0..KEYS).for_each(|number| assert!(get(number).is_some()));
    match kind {
        "put" => (0..count).for_each(|number| put(&db, keyspace, number % KEYS)),
        "get" => (0..count).for_each(|number| assert!(get(number % KEYS).is_some())),
        "absent" => (0..count).for_each(|number| assert!(get(KEYS + number).is_none())),
        kind => panic!("there is no call {kind:?}"),
    }
    db.close().unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", keys, folder] => {
            let (db, keyspace) = open(folder.as_ref());
            (0..keys.parse().unwrap()).for_each(|number| put(&db, keyspace, number));
            println!("filled; kill me");
            std::thread::park();
        }
        ["open", folder] => {
            let start = Instant::now();
            let (db, keyspace) = open(folder.as_ref());
            let found = db.get(keyspace, &key_of(0)).unwrap().is_some();
            println!(
                "{:.3} s, first key there: {found}",
                start.elapsed().as_secs_f64()
            );
        }
        [kind, count] => calls(kind, count.parse().unwrap()),
        _ => panic!("put|get|absent COUNT, fill KEYS FOLDER, or open FOLDER"),
    }
}
