//! A model of a database (plain sorted maps) and seeded operations for it.

use lineradb_lsm::{Background, Db, Iter, KeyspaceId, Options, SimVfs, Snapshot, WriteBatch};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

pub const DIR: &str = "/data/db";
pub const KEYSPACES: [&str; 2] = ["first", "second"];

pub type Map = BTreeMap<Vec<u8>, Vec<u8>>;
/// One map per keyspace.
pub type Model = Vec<Map>;

/// Options that make everything happen soon.
pub fn tiny(wal: bool) -> Options {
    Options {
        keyspaces: KEYSPACES.iter().map(|name| (*name).to_owned()).collect(),
        wal,
        background: Background::Inline,
        memtable_bytes: 6 << 10,
        block_bytes: 256,
        table_bytes: 2 << 10,
        block_cache_bytes: 4 << 10,
        level0_compaction_tables: 2,
        level_base_bytes: 8 << 10,
        level_growth: 3,
        compression_level_min: 1,
        ..Options::default()
    }
}

pub fn open(vfs: &SimVfs, options: Options) -> lineradb_lsm::Result<(Db, [KeyspaceId; 2])> {
    let db = Db::open(Arc::new(vfs.clone()), Path::new(DIR), options)?;
    let keyspaces = [db.keyspace(KEYSPACES[0])?, db.keyspace(KEYSPACES[1])?];
    Ok((db, keyspaces))
}

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub fn random_key(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..20) {
        0 => Vec::new(),
        1 => vec![255; rng.random_range(1..4)],
        _ => format!("key{:04}", rng.random_range(0..300)).into_bytes(),
    }
}

fn random_value(rng: &mut StdRng) -> Vec<u8> {
    let length = match rng.random_range(0..30) {
        0 => rng.random_range(300..1500),
        1 => 0,
        _ => rng.random_range(1..60),
    };
    let byte = rng.random();
    (0..length)
        .map(|at| if at % 5 == 0 { rng.random() } else { byte })
        .collect()
}

/// Fills a batch and applies it to the model.
pub fn random_batch(rng: &mut StdRng, keyspaces: [KeyspaceId; 2], model: &mut Model) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for _ in 0..rng.random_range(1..8) {
        let (at, key) = (rng.random_range(0..2), random_key(rng));
        if rng.random_range(0..4) == 0 {
            batch.delete(keyspaces[at], &key);
            model[at].remove(&key);
        } else {
            let value = random_value(rng);
            batch.put(keyspaces[at], &key, &value);
            model[at].insert(key, value);
        }
    }
    batch
}

pub fn empty_model() -> Model {
    vec![Map::new(), Map::new()]
}

/// Everything a snapshot sees, read forward.
pub fn contents(snapshot: &Snapshot, keyspace: KeyspaceId) -> lineradb_lsm::Result<Map> {
    let mut iter = snapshot.iter(keyspace, Bound::Unbounded, Bound::Unbounded);
    iter.seek_to_first()?;
    let mut map = Map::new();
    while iter.valid() {
        assert!(
            map.insert(iter.key().to_vec(), iter.value().to_vec())
                .is_none(),
            "a key came twice"
        );
        iter.next()?;
    }
    Ok(map)
}

pub fn all_contents(db: &Db, keyspaces: [KeyspaceId; 2]) -> lineradb_lsm::Result<Model> {
    let snapshot = db.snapshot();
    keyspaces
        .iter()
        .map(|keyspace| contents(&snapshot, *keyspace))
        .collect()
}

/// Compares the position of an iterator with the model's.
pub fn assert_at(iter: &Iter, expected: Option<(&Vec<u8>, &Vec<u8>)>) {
    let here = iter
        .valid()
        .then(|| (iter.key().to_vec(), iter.value().to_vec()));
    assert_eq!(here.as_ref().map(|(key, value)| (key, value)), expected);
    assert_eq!(iter.value_slice().to_vec(), iter.value());
}
