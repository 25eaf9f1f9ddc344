//! Logs that are full and not synced yet.
//!
//! A log that is full is cut to its records and followed by a new one, but not synced: that would hold up the writer who
//! happens to fill it for as long as the disk needs for a whole memtable. Either the flush makes it superfluous, and its
//! contents seldom reach the disk as a log; or a write asks for a sync before, and then all sealed logs are synced in
//! their order before the active one is. (RocksDB's `SyncWAL` does the same.)
//!
//! **Invariant.** When something of a log is synced, all of every log before it was, or is in tables. And a record
//! that was to be synced, as each after it, says that something of its log was before.
//!
//! So a crash keeps a prefix of the logs taken together. Recovery stops where the first of them has lost its end and
//! gives up those that follow, unless a record of them says so: then the end is not lost but damaged (`open.rs`).

use crate::error::Result;
use crate::log::LogWriter;
use parking_lot::Mutex;

/// The sealed logs whose memtables wait for the flush, oldest first; as many as there are such memtables at most.
#[derive(Default)]
pub(super) struct SealedLogs(Mutex<Vec<LogWriter>>);

impl SealedLogs {
    /// Takes a log that is sealed; one that is durable already is done with.
    pub fn push(&self, log: LogWriter) {
        if !log.is_synced() {
            self.0.lock().push(log);
        }
    }

    /// Makes all of them durable, in their order, and lets go of them; to be called before the active log is synced. Returns
    /// how many it were. After an error the database must take no more writes.
    pub fn sync(&self) -> Result<u64> {
        // Not under the lock: the flush must not wait for the disk here.
        let logs = std::mem::take(&mut *self.0.lock());
        let count = logs.len() as u64;
        for mut log in logs {
            log.sync()?;
        }
        Ok(count)
    }

    /// Closes the logs with a number below this, all of whose contents are in tables.
    pub fn drop_below(&self, number: u64) {
        let flushed: Vec<LogWriter> = {
            let mut logs = self.0.lock();
            let kept = logs.iter().position(|log| log.number() >= number);
            let end = kept.unwrap_or(logs.len());
            logs.drain(..end).collect()
        };
        // Closed without the lock: the kernel may free a file here.
        drop(flushed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::batch::WriteBatch;
    use crate::options::{Background, Options};
    use crate::types::KeyspaceId;
    use crate::vfs::{CrashLoss, SimVfs, Vfs};
    use crate::{Db, Error};
    use std::ops::Bound;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    const KEYS: KeyspaceId = KeyspaceId(0);

    fn open(vfs: &SimVfs) -> Result<Db, Error> {
        let options = Options {
            background: Background::Inline,
            wal: true,
            memtable_bytes: 64 << 10,
            ..Options::default()
        };
        Db::open(Arc::new(vfs.clone()), Path::new("/db"), options)
    }

    /// Writes the key `n`, without the flush that follows where no thread does it.
    fn write(db: &Db, n: u64, sync: bool) {
        let mut batch = WriteBatch::new();
        batch.put(KEYS, &n.to_be_bytes(), &[n as u8; 100]);
        let inner = db.inner();
        let mut commit = inner.commit.lock();
        inner.commit_group(&mut commit, &batch, sync, &[]).unwrap();
    }

    fn rotate(db: &Db) {
        let inner = db.inner();
        inner.rotate(&mut inner.commit.lock()).unwrap();
    }

    /// How many keys there are from 0 on; there are no others.
    fn kept(db: &Db) -> u64 {
        let mut found = db.snapshot().iter(KEYS, Bound::Unbounded, Bound::Unbounded);
        found.seek_to_first().unwrap();
        let mut count = 0;
        while found.valid() {
            assert_eq!(found.key(), u64::to_be_bytes(count), "a hole");
            count += 1;
            found.next().unwrap();
        }
        count
    }

    fn logs(vfs: &SimVfs) -> Vec<PathBuf> {
        let dir = Path::new("/db");
        let mut names = vfs.list(dir).unwrap();
        names.retain(|name| name.ends_with(".wal"));
        names.iter().map(|name| dir.join(name)).collect()
    }

    fn wal_syncs(db: &Db) -> u64 {
        db.statistics().wal_syncs
    }

    #[test]
    fn a_sync_covers_the_logs_before() {
        let vfs = SimVfs::new();
        let db = open(&vfs).unwrap();
        for n in 0..3 {
            write(&db, n, false);
            rotate(&db);
        }
        assert_eq!((logs(&vfs).len(), wal_syncs(&db)), (4, 0));
        write(&db, 3, true);
        // Three are sealed; the active one is synced before its record and after it.
        assert_eq!(wal_syncs(&db), 5);
        write(&db, 4, true);
        assert_eq!(wal_syncs(&db), 6);
        drop(db);
        vfs.crash(CrashLoss::Everything);
        assert_eq!(kept(&open(&vfs).unwrap()), 5);
    }

    #[test]
    fn a_log_whose_memtable_is_flushed_is_never_synced() {
        let vfs = SimVfs::new();
        let db = open(&vfs).unwrap();
        write(&db, 0, false);
        rotate(&db);
        write(&db, 1, false);
        rotate(&db);
        assert!(db.inner().flush_next().unwrap());
        assert_eq!(db.inner().sealed.0.lock().len(), 1);
        write(&db, 2, true);
        assert_eq!(wal_syncs(&db), 3);
    }

    /// Every history of writes with and without a sync, of full memtables and of flushes, and every way in which a crash
    /// deals with what was not synced: what is kept is a prefix, with all in it that was acknowledged as durable. Twice, as
    /// the second crash comes upon what the recovery from the first one has left.
    #[test]
    fn a_crash_keeps_a_prefix_of_all_logs() {
        use rand::{Rng, SeedableRng};
        let mut lost = 0;
        for seed in 0..400 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let vfs = SimVfs::new();
            let (mut written, mut durable) = (0, 0);
            for _life in 0..3 {
                let db = open(&vfs).unwrap();
                let found = kept(&db);
                assert!(
                    (durable..=written).contains(&found),
                    "seed {seed}: {durable} to {written}, found {found}"
                );
                lost += written - found;
                (written, durable) = (found, found);
                for _step in 0..random.random_range(1..30) {
                    match random.random_range(0..16) {
                        0 if db.inner().flush_next().unwrap() => {
                            let flushed = db.inner().flushed_seqno();
                            let after = db.inner().visible_seqno() - flushed;
                            durable = durable.max(written - after);
                        }
                        1..4 => {
                            let inner = db.inner();
                            inner.rotate_if_used(&mut inner.commit.lock()).unwrap();
                        }
                        4 => {
                            write(&db, written, true);
                            written += 1;
                            durable = written;
                        }
                        _ => {
                            write(&db, written, false);
                            written += 1;
                        }
                    }
                }
                drop(db);
                let loss = match random.random_range(0..5) {
                    0 => CrashLoss::Everything,
                    1 => CrashLoss::Nothing,
                    2 => CrashLoss::Torn(random.random()),
                    _ => CrashLoss::Reordered(random.random()),
                };
                if loss == CrashLoss::Nothing {
                    durable = written;
                }
                vfs.crash(loss);
                if random.random() {
                    // The machine fails once more, during the recovery.
                    vfs.crash_at(vfs.operations() + random.random_range(1..20));
                    let _ = open(&vfs);
                    vfs.crash(CrashLoss::Reordered(random.random()));
                }
            }
        }
        assert!(lost > 1000, "{lost} writes were lost: hardly a crash");
    }

    #[test]
    fn damage_to_a_log_that_a_later_one_proves_synced_is_named() {
        let vfs = SimVfs::new();
        let db = open(&vfs).unwrap();
        for n in 0..3 {
            write(&db, n, false);
        }
        rotate(&db);
        write(&db, 3, false);
        let unsynced = vfs.fork();
        write(&db, 4, true);
        let log = logs(&vfs).remove(0);
        let length = vfs.read(&log).unwrap().len() as u64;
        for offset in 0..length {
            // Nothing is synced: the damage may be a tear.
            let cut = unsynced.fork();
            cut.corrupt(&log, offset, 0x40).unwrap();
            let kept = kept(&open(&cut).unwrap());
            assert!(kept < 3, "offset {offset}: {kept} are kept");
            let damaged = vfs.fork();
            damaged.corrupt(&log, offset, 0x40).unwrap();
            let error = open(&damaged).map(drop).unwrap_err();
            assert!(error.is_corruption(), "offset {offset}: {error}");
            assert!(error.to_string().contains("000"), "{error}");
        }
        // The same for a log that was cut off between two records.
        let header = crate::log::HEADER_BYTES as u64;
        let cut_at = header + (length - header) / 3;
        for (vfs, is_damage) in [(&unsynced, false), (&vfs, true)] {
            let cut = vfs.fork();
            cut.truncate(&log, cut_at).unwrap();
            match open(&cut) {
                Ok(db) => assert!(!is_damage && kept(&db) == 1),
                Err(error) => assert!(is_damage && error.is_corruption(), "{error}"),
            }
        }
    }
}
