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
        blob_value_bytes_min: 200,
        log_compression_bytes_min: 300,
        block_cache_bytes: 4 << 10,
        level0_compaction_tables: 2,
        level_base_bytes: 8 << 10,
        level_growth: 3,
        compression_level_min: 1,
        ..Options::default()
    }
}

pub fn open(vfs: &SimVfs, options: Options) -> lineradb_lsm::Result<(Db, [KeyspaceId; 2])> {
    open_at(vfs, Path::new(DIR), options)
}

pub fn open_at(
    vfs: &SimVfs,
    dir: &Path,
    options: Options,
) -> lineradb_lsm::Result<(Db, [KeyspaceId; 2])> {
    let db = Db::open(Arc::new(vfs.clone()), dir, options)?;
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

pub fn random_value(rng: &mut StdRng) -> Vec<u8> {
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

/// One operation on one of the two keyspaces.
#[derive(Debug, Clone)]
pub enum Operation {
    Put(usize, Vec<u8>, Vec<u8>),
    Delete(usize, Vec<u8>),
    /// From the first key to the second, which stays.
    DeleteRange(usize, Vec<u8>, Vec<u8>),
}

pub fn random_operations(rng: &mut StdRng) -> Vec<Operation> {
    let mut operations = Vec::new();
    for _ in 0..rng.random_range(1..8) {
        let (at, key) = (rng.random_range(0..2), random_key(rng));
        operations.push(match rng.random_range(0..16) {
            0..4 => Operation::Delete(at, key),
            4 if rng.random_range(0..4) == 0 => {
                let other = random_key(rng);
                Operation::DeleteRange(at, key.clone().min(other.clone()), key.max(other))
            }
            4 => {
                let mut end = key.clone();
                end.push(b'0');
                Operation::DeleteRange(at, key, end)
            }
            _ => Operation::Put(at, key, random_value(rng)),
        });
    }
    operations
}

pub fn to_batch(operations: &[Operation], keyspaces: [KeyspaceId; 2]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for operation in operations {
        match operation {
            Operation::Put(at, key, value) => batch.put(keyspaces[*at], key, value),
            Operation::Delete(at, key) => batch.delete(keyspaces[*at], key),
            Operation::DeleteRange(at, start, end) => {
                batch.delete_range(keyspaces[*at], start, end);
            }
        }
    }
    batch
}

pub fn apply(model: &mut Model, operations: &[Operation]) {
    for operation in operations {
        match operation {
            Operation::Put(at, key, value) => {
                model[*at].insert(key.clone(), value.clone());
            }
            Operation::Delete(at, key) => {
                model[*at].remove(key);
            }
            Operation::DeleteRange(at, start, end) => {
                model[*at].retain(|key, _| key < start || key >= end);
            }
        }
    }
}

/// Fills a batch and applies it to the model.
pub fn random_batch(rng: &mut StdRng, keyspaces: [KeyspaceId; 2], model: &mut Model) -> WriteBatch {
    let operations = random_operations(rng);
    apply(model, &operations);
    to_batch(&operations, keyspaces)
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

fn random_bound(rng: &mut StdRng) -> Bound<Vec<u8>> {
    match rng.random_range(0..3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(random_key(rng)),
        _ => Bound::Excluded(random_key(rng)),
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// A random walk with a random iterator; every position is compared.
pub fn walk(rng: &mut StdRng, snapshot: &Snapshot, keyspace: KeyspaceId, map: &Map) {
    let (lower, upper) = (random_bound(rng), random_bound(rng));
    let inside = |key: &Vec<u8>| {
        let above = match &lower {
            Bound::Included(bound) => key >= bound,
            Bound::Excluded(bound) => key > bound,
            Bound::Unbounded => true,
        };
        above
            && match &upper {
                Bound::Included(bound) => key <= bound,
                Bound::Excluded(bound) => key < bound,
                Bound::Unbounded => true,
            }
    };
    let visible: Vec<_> = map.iter().filter(|(key, _)| inside(key)).collect();
    let mut iter = snapshot.iter(keyspace, as_slice(&lower), as_slice(&upper));
    assert!(!iter.valid());
    iter.set_patience([usize::MAX, 0, 1, 5][rng.random_range(0..4)]);
    let mut position: Option<usize> = None;
    for _ in 0..40 {
        let step = rng.random_range(0..12);
        let forward = matches!(step, 0 | 2 | 4..8);
        match step {
            0 => {
                iter.seek_to_first().unwrap();
                position = (!visible.is_empty()).then_some(0);
            }
            1 => {
                iter.seek_to_last().unwrap();
                position = visible.len().checked_sub(1);
            }
            2 => {
                let key = random_key(rng);
                iter.seek(&key).unwrap();
                position = visible.iter().position(|entry| *entry.0 >= key);
            }
            3 => {
                let key = random_key(rng);
                iter.seek_for_prev(&key).unwrap();
                position = visible.iter().rposition(|entry| *entry.0 <= key);
            }
            4..8 => {
                iter.next().unwrap();
                position = position.map(|at| at + 1).filter(|at| *at < visible.len());
            }
            _ => {
                iter.prev().unwrap();
                position = position.and_then(|at| at.checked_sub(1));
            }
        }
        while let Some(at) = iter.paused_at().map(<[u8]>::to_vec) {
            // What is found lies beyond, on either way.
            let found = position.map(|at| visible[at].0);
            assert!(found.is_none_or(|found| forward == (*found >= at) || *found == at));
            iter.resume().unwrap();
        }
        assert_at(&iter, position.map(|at| visible[at]));
    }
}
