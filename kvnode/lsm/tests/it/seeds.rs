//! The seeded test: random work on a disk that crashes, fails, fills up and flips bits, compared with a model.
//!
//! A seed is a sequence of *lives* of one database. In each life a random workload runs until its trouble comes: a
//! crash at a random changing I/O, an I/O error or a full disk at one, a failed read, a disk too small, or nothing.
//! Then the power goes, what was not synced is lost, torn, reordered or kept, and the next life must find the state
//! after some batch, none older than what was acknowledged as durable. Even seeds have a log, odd ones have none.
//!
//! `LSM_SEEDS=20000 cargo test -p lineradb-lsm --test it seeds` runs more seeds than the default;
//! `LSM_SEED=4711 cargo test -p lineradb-lsm --test it seeds` runs that one, and is what a failure prints.

use crate::support::*;
use lineradb_lsm::{
    Compression, CrashLoss, Db, Error, Fault, Ingestion, KeyspaceId, Options, SeqNo, SimVfs,
    Snapshot, TableWriter, Vfs, WriteOptions,
};
use rand::Rng;
use rand::rngs::StdRng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that run by default, half of them with a log.
const SEEDS: u64 = 1000;

/// What happened so far, as far as a crash may take it back.
struct History {
    /// The state that the present life began with.
    base: (SeqNo, Model),
    /// What was attempted since, by the sequence number of the last operation.
    steps: Vec<(SeqNo, Vec<Operation>)>,
    /// The state after everything acknowledged.
    model: Model,
    acknowledged: SeqNo,
    /// Everything up to here was acknowledged as durable.
    durable: SeqNo,
}

impl History {
    fn new() -> Self {
        Self {
            base: (0, empty_model()),
            steps: Vec::new(),
            model: empty_model(),
            acknowledged: 0,
            durable: 0,
        }
    }

    /// The state after the operation of this number, if that ended a batch.
    fn at(&self, seqno: SeqNo) -> Option<Model> {
        let mut model = self.base.1.clone();
        for (last, operations) in self.steps.iter().take_while(|(last, _)| *last <= seqno) {
            apply(&mut model, operations);
            if *last == seqno {
                return Some(model);
            }
        }
        (seqno == self.base.0).then_some(model)
    }

    fn begin(&mut self, seqno: SeqNo, operations: &[Operation]) {
        self.steps.push((seqno, operations.to_vec()));
    }

    fn acknowledge(&mut self, seqno: SeqNo, operations: &[Operation]) {
        apply(&mut self.model, operations);
        self.acknowledged = seqno;
    }

    /// A new life begins with the state after `seqno`.
    fn restart(&mut self, seqno: SeqNo, model: Model) {
        *self = Self {
            base: (seqno, model.clone()),
            steps: Vec::new(),
            model,
            acknowledged: seqno,
            durable: seqno,
        };
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Crash,
    Fault(Fault),
    ReadFault,
    FullDisk,
}

impl Trouble {
    /// Decides what will go wrong, and when.
    fn arm(rng: &mut StdRng, vfs: &SimVfs) -> Self {
        let at = vfs.operations() + rng.random_range(1..160);
        match rng.random_range(0..8) {
            0..3 => {
                vfs.crash_at(at);
                Self::Crash
            }
            3 | 4 => {
                let fault = [Fault::Io, Fault::NoSpace][rng.random_range(0..2)];
                vfs.fail_at(at, fault);
                Self::Fault(fault)
            }
            5 => {
                vfs.fail_read_at(vfs.reads() + rng.random_range(1..40));
                Self::ReadFault
            }
            6 => {
                vfs.set_capacity(Some(vfs.used() + rng.random_range(0..12_000)));
                Self::FullDisk
            }
            _ => Self::None,
        }
    }

    /// An error of the engine must be the one that was provoked.
    fn explains(self, error: &Error) -> bool {
        match self {
            Self::None => false,
            Self::Crash => true,
            Self::Fault(Fault::NoSpace) | Self::FullDisk => error.is_no_space(),
            Self::Fault(Fault::Io) | Self::ReadFault => {
                !error.is_no_space() && !error.is_corruption()
            }
        }
    }
}

fn random_loss(rng: &mut StdRng) -> CrashLoss {
    match rng.random_range(0..6) {
        0 => CrashLoss::Everything,
        1 | 2 => CrashLoss::Nothing,
        3 => CrashLoss::Torn(rng.random()),
        _ => CrashLoss::Reordered(rng.random()),
    }
}

fn random_options(rng: &mut StdRng, wal: bool) -> Options {
    Options {
        memtable_bytes: rng.random_range(1..7) << 10,
        block_bytes: [64, 256, 1024][rng.random_range(0..3)],
        table_bytes: rng.random_range(1..5) << 10,
        blob_value_bytes_min: [0, 40, 300][rng.random_range(0..3)],
        log_compression_bytes_min: [0, 40, 300][rng.random_range(0..3)],
        level0_compaction_tables: rng.random_range(1..5),
        level_base_bytes: rng.random_range(2..10) << 10,
        bloom_bits_per_key: [0, 10][rng.random_range(0..2)],
        compression: [Compression::None, Compression::Lz4][rng.random_range(0..2)],
        compression_last_level: [None, Some(Compression::Zstd)][rng.random_range(0..2)],
        ..tiny(wal)
    }
}

/// A checkpoint and what it holds.
type Checkpoint = (PathBuf, Model);

/// Walks the versions of a key, and back.
fn versions(
    rng: &mut StdRng,
    snapshot: &Snapshot,
    keyspace: KeyspaceId,
    model: &Map,
    first: &[u8],
    bytes: usize,
) -> Result<(), Error> {
    let versionless = &first[..first.len() - bytes];
    let expected: Vec<_> = { model.range(first.to_vec()..) }
        .take_while(|(key, _)| key.starts_with(versionless))
        .collect();
    let mut found = snapshot.iter_versions(keyspace, first, bytes);
    let forward = rng.random::<bool>();
    match forward {
        true => found.seek_to_first()?,
        false => found.seek_to_last()?,
    }
    for at in 0..expected.len() {
        let (key, value) = expected[if forward { at } else { expected.len() - 1 - at }];
        assert_eq!((found.key(), found.value()), (&key[..], &value[..]));
        match forward {
            true => found.next()?,
            false => found.prev()?,
        }
    }
    assert!(!found.valid());
    Ok(())
}

/// One life's database and what its workload holds.
struct Life {
    db: Db,
    keyspaces: [KeyspaceId; 2],
    snapshots: Vec<(Snapshot, Model)>,
    checkpoints: Vec<Checkpoint>,
    flushed: Arc<AtomicU64>,
}

impl Life {
    fn begin(vfs: &SimVfs, options: &Options) -> lineradb_lsm::Result<Self> {
        let (db, keyspaces) = open(vfs, options.clone())?;
        let flushed = Arc::new(AtomicU64::new(db.flushed_seqno()));
        let noted = Arc::clone(&flushed);
        db.on_flush(move |seqno| noted.store(seqno, Ordering::Relaxed));
        Ok(Self {
            db,
            keyspaces,
            snapshots: Vec::new(),
            checkpoints: Vec::new(),
            flushed,
        })
    }

    fn write(&self, rng: &mut StdRng, wal: bool, history: &mut History) -> Result<(), Error> {
        let operations = random_operations(rng);
        let batch = to_batch(&operations, self.keyspaces);
        let last = history.acknowledged + batch.len() as u64;
        let sync = rng.random_range(0..4) == 0;
        history.begin(last, &operations);
        assert_eq!(self.db.write(batch, WriteOptions { sync })?, last);
        history.acknowledge(last, &operations);
        if sync && wal {
            history.durable = last;
        }
        Ok(())
    }

    /// Writes a table per keyspace and ingests them with a batch.
    fn ingest(
        &self,
        rng: &mut StdRng,
        vfs: &SimVfs,
        options: &Options,
        history: &mut History,
    ) -> Result<(), Error> {
        let mut operations = random_operations(rng);
        let mut ingestion = Ingestion::new(to_batch(&operations, self.keyspaces));
        let mut last = history.acknowledged + to_batch(&operations, self.keyspaces).len() as u64;
        let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let mut paths = Vec::new();
        for at in 0..rng.random_range(0..4) {
            let path = PathBuf::from(format!("/data/table-{}-{at}", history.acknowledged));
            let at = at % 2;
            let rows = rng.random_range(1..40);
            let rows: Map = (0..rows)
                .map(|_| (random_key(rng), random_value(rng)))
                .collect();
            let mut writer = TableWriter::create(Arc::clone(&vfs), &path, options)?;
            for (key, value) in &rows {
                writer.put(key, value)?;
            }
            writer.finish()?;
            ingestion.table(self.keyspaces[at], &path);
            paths.push(path);
            let puts = rows.into_iter();
            operations.extend(puts.map(|(key, value)| Operation::Put(at, key, value)));
            last += 1;
        }
        history.begin(last, &operations);
        assert_eq!(self.db.ingest(&ingestion)?, last);
        history.acknowledge(last, &operations);
        history.durable = last;
        assert_eq!(self.db.flushed_seqno(), last);
        for path in paths {
            // Should it fail, the file stays: nobody minds.
            let _ = vfs.remove(&path);
        }
        Ok(())
    }

    fn checkpoint(&mut self, vfs: &SimVfs, history: &History) -> Result<(), Error> {
        // A name that is never used twice.
        let path = PathBuf::from(format!("/data/checkpoint-{}", vfs.operations()));
        self.db.checkpoint(&path)?;
        self.checkpoints.push((path, history.model.clone()));
        Ok(())
    }

    fn read(&mut self, rng: &mut StdRng, history: &History) -> Result<(), Error> {
        let at = rng.random_range(0..2);
        let key = random_key(rng);
        match rng.random_range(0..6) {
            5 if key.starts_with(b"key") => {
                let bytes = [1, 1, 1, 2][rng.random_range(0..4)];
                match rng.random::<bool>() && !self.snapshots.is_empty() {
                    true => {
                        let (snapshot, then) = &self.snapshots[0];
                        versions(rng, snapshot, self.keyspaces[at], &then[at], &key, bytes)?;
                    }
                    false => {
                        let (now, model) = (self.db.snapshot(), &history.model[at]);
                        versions(rng, &now, self.keyspaces[at], model, &key, bytes)?;
                    }
                }
            }
            4 => {
                let keys: Vec<_> = (0..6).map(|_| random_key(rng)).collect();
                let found = self.db.multi_get(self.keyspaces[at], &keys)?;
                let expected = keys.iter().map(|key| history.model[at].get(key));
                let found = found.iter().map(Option::as_deref);
                assert!(found.eq(expected.map(|value| value.map(Vec::as_slice))));
            }
            0 => self
                .snapshots
                .push((self.db.snapshot(), history.model.clone())),
            1 if self.snapshots.len() > 2 => drop(self.snapshots.swap_remove(0)),
            1 | 2 if !self.snapshots.is_empty() => {
                let (snapshot, then) = &self.snapshots[rng.random_range(0..self.snapshots.len())];
                let found = snapshot.get(self.keyspaces[at], &key)?;
                assert_eq!(found.as_deref(), then[at].get(&key).map(Vec::as_slice));
                walk(rng, snapshot, self.keyspaces[at], &then[at]);
            }
            _ => {
                let found = self.db.get(self.keyspaces[at], &key)?;
                let expected = history.model[at].get(&key).map(Vec::as_slice);
                assert_eq!(found.as_deref(), expected);
            }
        }
        Ok(())
    }

    /// One random step. An error is the end of the life.
    fn step(
        &mut self,
        rng: &mut StdRng,
        vfs: &SimVfs,
        options: &Options,
        history: &mut History,
    ) -> Result<(), Error> {
        match rng.random_range(0..100) {
            0..68 => self.write(rng, options.wal, history)?,
            68..88 => self.read(rng, history)?,
            88..91 => self.ingest(rng, vfs, options, history)?,
            91 => self.checkpoint(vfs, history)?,
            _ => assert_eq!(self.db.flush()?, history.acknowledged),
        }
        let flushed = self.flushed.load(Ordering::Relaxed);
        history.durable = history.durable.max(flushed);
        Ok(())
    }

    /// After a failure (rule D3): nothing is written any more, reads go on.
    fn check_failed(&self, rng: &mut StdRng, vfs: &SimVfs, history: &History) {
        let operations = vfs.operations();
        let again = to_batch(&random_operations(rng), self.keyspaces);
        let again = self.db.write(again, WriteOptions::SYNC);
        assert!(matches!(again, Err(Error::Failed { .. })), "{again:?}");
        assert!(matches!(self.db.flush(), Err(Error::Failed { .. })));
        assert_eq!(vfs.operations(), operations, "a failed database writes");
        let found = all_contents(&self.db, self.keyspaces).unwrap();
        assert!(found == history.model, "reads do not go on as before");
        for (snapshot, then) in &self.snapshots {
            for (keyspace, then) in self.keyspaces.into_iter().zip(then) {
                assert!(contents(snapshot, keyspace).unwrap() == *then);
            }
        }
    }
}

/// Lives until the trouble comes, or for a while. Returns the checkpoints made.
fn live(
    rng: &mut StdRng,
    vfs: &SimVfs,
    options: &Options,
    history: &mut History,
) -> Vec<Checkpoint> {
    let trouble = Trouble::arm(rng, vfs);
    let mut life = match Life::begin(vfs, options) {
        Ok(life) => life,
        Err(error) => {
            assert!(trouble.explains(&error), "{trouble:?}: {error}");
            return Vec::new();
        }
    };
    for _ in 0..rng.random_range(20..160) {
        if let Err(error) = life.step(rng, vfs, options, history) {
            assert!(trouble.explains(&error), "{trouble:?}: {error}");
            if trouble == Trouble::Crash {
                return life.checkpoints;
            }
            if life.db.failure().is_some() {
                life.check_failed(rng, vfs, history);
                return life.checkpoints;
            }
            // What failed were files that are not the database's: it goes on as if nothing had been.
            history
                .steps
                .retain(|(last, _)| *last <= history.acknowledged);
            let found = all_contents(&life.db, life.keyspaces).unwrap();
            assert!(found == history.model, "a refused ingestion left something");
        }
    }
    if rng.random() {
        match life.db.close() {
            Ok(()) => history.durable = history.acknowledged,
            Err(error) => assert!(trouble.explains(&error), "{trouble:?}: {error}"),
        }
    }
    life.checkpoints
}

/// Flips a bit somewhere in a copy of the disk: what is read is right, or the damage is named.
fn check_damage(rng: &mut StdRng, vfs: &SimVfs, options: &Options, history: &History) {
    let vfs = vfs.fork();
    let names = vfs.list(Path::new(DIR)).unwrap();
    if names.is_empty() {
        return;
    }
    let path = Path::new(DIR).join(&names[rng.random_range(0..names.len())]);
    let length = vfs.read(&path).unwrap().len() as u64;
    if length == 0 {
        return;
    }
    let offset = rng.random_range(0..length);
    vfs.corrupt(&path, offset, 1 << rng.random_range(0..8))
        .unwrap();
    let read = open(&vfs, options.clone()).and_then(|(db, keyspaces)| {
        let found = all_contents(&db, keyspaces)?;
        Ok((db.last_seqno(), found))
    });
    match read {
        Ok((last, found)) => {
            let expected = history.at(last).expect("the end of a batch");
            assert!(found == expected, "{path:?} at {offset}: damage is served");
            // The last synced stretch of a log looks like a torn tail if nothing was written after it.
            let is_log = path.extension().is_some_and(|it| it == "wal");
            assert!(is_log || last >= history.durable);
        }
        Err(error) => {
            let named = error.to_string().contains(&*path.to_string_lossy());
            assert!(
                error.is_corruption() && named,
                "{path:?} at {offset}: {error}"
            );
        }
    }
}

/// What survived is the state after a batch, and not older than what was acknowledged as durable.
fn check_recovery(vfs: &SimVfs, options: &Options, history: &mut History) {
    let (db, keyspaces) = open(vfs, options.clone()).unwrap();
    let last = db.last_seqno();
    assert_eq!(last, db.flushed_seqno(), "recovery flushes");
    assert!(
        last >= history.durable,
        "{last} is back, {} was durable",
        history.durable
    );
    let expected = history.at(last).expect("the end of a batch");
    let found = all_contents(&db, keyspaces).unwrap();
    assert!(found == expected, "not the state after batch {last}");
    history.restart(last, found);
}

fn run(seed: u64, vfs: &SimVfs) {
    let rng = &mut rng(seed);
    let mut options = random_options(rng, seed.is_multiple_of(2));
    let mut history = History::new();
    for _ in 0..rng.random_range(2..5) {
        // Tables say themselves what their filters hold: it may change between lives.
        let version_bytes = [0, 1, 1, 1, 2][rng.random_range(0..5)];
        options.version_bytes = vec![(KEYSPACES[0].to_owned(), version_bytes)];
        let checkpoints = live(rng, vfs, &options, &mut history);
        vfs.set_capacity(None);
        let loss = random_loss(rng);
        vfs.crash(loss);
        if loss == CrashLoss::Nothing {
            check_damage(rng, vfs, &options, &history);
        }
        // A recovery that does not get to its end changes nothing about what is there.
        for _ in 0..rng.random_range(0..3) {
            vfs.crash_at(vfs.operations() + rng.random_range(1..20));
            let _ = open(vfs, options.clone());
            vfs.crash(random_loss(rng));
        }
        check_recovery(vfs, &options, &mut history);
        for (path, model) in checkpoints {
            let (db, keyspaces) = open_at(vfs, &path, options.clone()).unwrap();
            assert!(all_contents(&db, keyspaces).unwrap() == model, "{path:?}");
        }
    }
}

fn run_seeds(first: u64) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds: Vec<u64> = match number("LSM_SEED") {
        Some(seed) if seed % 2 == first => vec![seed],
        Some(_) => return,
        None => (first..number("LSM_SEEDS").unwrap_or(SEEDS))
            .step_by(2)
            .collect(),
    };
    for seed in seeds {
        let vfs = SimVfs::new();
        if catch_unwind(AssertUnwindSafe(|| run(seed, &vfs))).is_err() {
            let trace = vfs.trace().join("\n");
            panic!(
                "seed {seed} failed; run it again with\nLSM_SEED={seed} cargo test -p lineradb-lsm --test it seeds\nlatest I/O:\n{trace}"
            );
        }
    }
}

#[test]
fn seeds_with_a_log() {
    run_seeds(0);
}

#[test]
fn seeds_without_a_log() {
    run_seeds(1);
}
