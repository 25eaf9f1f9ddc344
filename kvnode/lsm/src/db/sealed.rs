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
//! gives up those that follow, unless a record of them says so: then the end is not lost but damaged (`replay.rs`).

use crate::error::Result;
use crate::log::LogWriter;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// The sealed logs whose memtables wait for the flush, oldest first. The last of all locks, and none does I/O under it.
#[derive(Default)]
pub(super) struct SealedLogs(Mutex<VecDeque<LogWriter>>);

impl SealedLogs {
    /// Takes a log that is sealed, before its memtable waits for the flush.
    pub fn push(&self, log: LogWriter) {
        self.0.lock().push_back(log);
    }

    /// Makes all of them durable, in their order, and lets go of them; to be called before the active log is synced. Returns
    /// how many it were. After an error the database must take no more writes.
    pub fn sync(&self) -> Result<u64> {
        let mut count = 0;
        // One at a time: the flush may get ahead of the next.
        while let Some(mut log) = self.take_first() {
            log.sync()?;
            count += 1;
        }
        Ok(count)
    }

    fn take_first(&self) -> Option<LogWriter> {
        self.0.lock().pop_front()
    }

    /// Closes the logs with a number below this, all of whose contents are in tables, durably.
    pub fn drop_below(&self, number: u64) {
        let flushed: Vec<LogWriter> = {
            let mut logs = self.0.lock();
            let kept = logs.iter().position(|log| log.number() >= number);
            let end = kept.unwrap_or(logs.len());
            logs.drain(..end).collect()
        };
        drop(flushed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::batch::WriteBatch;
    use crate::options::{Background, Options, WriteOptions};
    use crate::types::KeyspaceId;
    use crate::vfs::{CrashLoss, Fault, SimVfs, Vfs};
    use crate::{Db, Error};
    use std::ops::Bound;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    const KEYS: KeyspaceId = KeyspaceId(0);

    fn open_with(vfs: &SimVfs, memtable_bytes: usize) -> Result<Db, Error> {
        let options = Options {
            background: Background::Inline,
            wal: true,
            memtable_bytes,
            ..Options::default()
        };
        Db::open(Arc::new(vfs.clone()), Path::new("/db"), options)
    }

    fn open(vfs: &SimVfs) -> Result<Db, Error> {
        open_with(vfs, 64 << 10)
    }

    /// The key `n`, with a value that says who has written it.
    fn batch(n: u64, by: u8) -> WriteBatch {
        let mut batch = WriteBatch::new();
        batch.put(KEYS, &n.to_be_bytes(), &[by; 100]);
        batch
    }

    /// Writes it, without the flush that follows where no thread does it.
    fn try_write(db: &Db, batch: &WriteBatch, sync: bool) -> Result<(), Error> {
        let inner = db.inner();
        let mut commit = inner.commit.lock();
        inner.commit_group(&mut commit, batch, sync, &[]).map(drop)
    }

    fn write(db: &Db, n: u64, sync: bool) {
        try_write(db, &batch(n, 7), sync).unwrap();
    }

    fn rotate(db: &Db) {
        let inner = db.inner();
        inner.rotate(&mut inner.commit.lock()).unwrap();
    }

    /// Who has written the keys from 0 on; there are no others.
    fn writers(db: &Db) -> Vec<u8> {
        let mut found = db.snapshot().iter(KEYS, Bound::Unbounded, Bound::Unbounded);
        found.seek_to_first().unwrap();
        let mut writers = Vec::new();
        while found.valid() {
            let n = writers.len() as u64;
            assert_eq!(found.key(), n.to_be_bytes(), "a hole");
            writers.push(found.value()[0]);
            found.next().unwrap();
        }
        writers
    }

    fn kept(db: &Db) -> usize {
        writers(db).len()
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

    /// A sync may come at any moment of a flush, and needs the log as long as the tables do not count.
    #[test]
    fn a_log_is_kept_until_its_flush_is_durable() {
        let mut failed = 0;
        for failing in 1.. {
            let vfs = SimVfs::new();
            let db = open(&vfs).unwrap();
            write(&db, 0, false);
            rotate(&db);
            vfs.fail_at(vfs.operations() + failing, Fault::Io);
            let flushed = db.inner().flush_next();
            let kept = db.inner().sealed.0.lock().len();
            if flushed.is_ok() {
                assert_eq!(kept, 0);
                break;
            }
            assert_eq!(kept, 1, "operation {failing} of a flush");
            failed += 1;
        }
        assert!(failed > 4, "{failed}");
    }

    /// D3, of each sync of a write that has two logs before its own.
    #[test]
    fn a_failed_sync_of_a_log_before_is_final() {
        for failing in 1..=5 {
            let vfs = SimVfs::new();
            let db = open(&vfs).unwrap();
            for n in 0..2 {
                write(&db, n, false);
                rotate(&db);
            }
            vfs.fail_at(vfs.operations() + failing, Fault::Io);
            try_write(&db, &batch(2, 0), true).unwrap_err();
            assert!(db.failure().is_some(), "operation {failing}");
            let operations = vfs.operations();
            db.write(batch(2, 0), WriteOptions::SYNC).unwrap_err();
            db.flush().unwrap_err();
            assert_eq!(vfs.operations(), operations, "nothing is touched any more");
            drop(db);
            vfs.crash(CrashLoss::Everything);
            let synced = kept(&open(&vfs).unwrap());
            assert!(
                synced >= (failing as usize - 1).min(2),
                "{failing}: {synced}"
            );
        }
    }

    /// Histories of writes with and without a sync, of full memtables and of flushes, and what a crash may do at any
    /// operation to what was not synced: what is kept is a prefix, as it was written last, with all in it that was
    /// acknowledged as durable. Over several lives, as a crash comes upon what recovery from the one before has left, and may
    /// come in the middle of it, or after a process that was only killed.
    #[test]
    fn a_crash_keeps_a_prefix_of_all_logs() {
        use rand::{Rng, SeedableRng};
        let mut lost = 0;
        for seed in 0..600 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let memtable_bytes = [512, 4 << 10, 64 << 10][random.random_range(0..3)];
            let vfs = SimVfs::new();
            let (mut written, mut durable) = (Vec::new(), 0);
            for life in 0..4 {
                let db = open_with(&vfs, memtable_bytes).unwrap();
                let found = writers(&db);
                assert!(
                    written.starts_with(&found) && durable <= found.len(),
                    "seed {seed}, life {life}: {durable} are durable of {written:?}, found {found:?}"
                );
                lost += written.len() - found.len();
                durable = found.len();
                written = found;
                for _step in 0..random.random_range(1..30) {
                    if random.random_ratio(1, 40) {
                        vfs.crash_at(vfs.operations() + random.random_range(1..8));
                    }
                    let inner = db.inner();
                    let done = match random.random_range(0..16) {
                        0 => inner.flush_next().map(drop),
                        1..4 => inner.rotate_if_used(&mut inner.commit.lock()),
                        step => {
                            let (n, sync) = (written.len() as u64, step == 4);
                            written.push(life);
                            let done = try_write(&db, &batch(n, life), sync);
                            if sync && done.is_ok() {
                                durable = written.len();
                            }
                            done
                        }
                    };
                    if done.is_err() {
                        break;
                    }
                    let after = inner.visible_seqno() - inner.flushed_seqno();
                    durable = durable.max(written.len() - after as usize);
                }
                drop(db);
                if random.random() {
                    vfs.crash_at(vfs.operations() + random.random_range(1..20));
                    // After a kill, in the middle of the next start.
                    let _ = open_with(&vfs, memtable_bytes);
                }
                vfs.crash(match random.random_range(0..5) {
                    0 => CrashLoss::Everything,
                    1 => CrashLoss::Nothing,
                    2 => CrashLoss::Torn(random.random()),
                    _ => CrashLoss::Reordered(random.random()),
                });
                if random.random() {
                    // The machine fails once more, during the recovery.
                    vfs.crash_at(vfs.operations() + random.random_range(1..20));
                    let _ = open_with(&vfs, memtable_bytes);
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
        // Synced only when it is sealed: there is no proof in it.
        write(&db, 3, false);
        rotate(&db);
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
            assert_named(&damaged, &log);
        }
        // The same for a log that was cut off between two records.
        let header = crate::log::HEADER_BYTES as u64;
        let cut_at = header + (length - header) / 3;
        let cut = unsynced.fork();
        cut.truncate(&log, cut_at).unwrap();
        assert_eq!(kept(&open(&cut).unwrap()), 1);
        let cut = vfs.fork();
        cut.truncate(&log, cut_at).unwrap();
        assert_named(&cut, &log);
    }

    /// A write of nothing, synced, is proof.
    #[test]
    fn a_sync_of_nothing_proves_what_is_before() {
        let vfs = SimVfs::new();
        let db = open(&vfs).unwrap();
        write(&db, 0, false);
        rotate(&db);
        try_write(&db, &WriteBatch::new(), true).unwrap();
        let log = logs(&vfs).remove(0);
        let disk = vfs.fork();
        let first = crate::log::HEADER_BYTES as u64;
        disk.corrupt(&log, first + 20, 0x40).unwrap();
        assert_named(&disk, &log);
        drop(db);
        vfs.crash(CrashLoss::Everything);
        assert_eq!(kept(&open(&vfs).unwrap()), 1);
    }

    /// Of a log that was synced up to somewhere before it was full, whatever became of it after that.
    #[test]
    fn the_next_log_knows_how_far_one_was_synced() {
        for after in [false, true] {
            let vfs = SimVfs::new();
            let db = open(&vfs).unwrap();
            for n in 0..10 {
                write(&db, n, true);
            }
            let log = logs(&vfs).remove(0);
            let synced = db.inner().commit.lock().wal.as_ref().unwrap().synced();
            write(&db, 10, false);
            let length = db.inner().commit.lock().wal.as_ref().unwrap().len();
            rotate(&db);
            if after {
                write(&db, 11, false);
            }
            for cut_at in 0..length {
                let cut = vfs.fork();
                cut.truncate(&log, cut_at).unwrap();
                match cut_at < synced {
                    true => assert_named(&cut, &log),
                    false => assert_eq!(kept(&open(&cut).unwrap()), 10),
                }
                let zeroed = vfs.fork();
                zero(&zeroed, &log, cut_at, 512);
                match cut_at < synced {
                    true => assert_named(&zeroed, &log),
                    false => assert!(kept(&open(&zeroed).unwrap()) >= 10),
                }
            }
            drop(db);
            vfs.crash(CrashLoss::Nothing);
            assert_eq!(kept(&open(&vfs).unwrap()), 11 + usize::from(after));
        }
    }

    fn zero(vfs: &SimVfs, path: &Path, from: u64, bytes: u64) {
        let contents = vfs.read(path).unwrap();
        let end = (from + bytes).min(contents.len() as u64);
        for offset in from..end {
            let present = contents[offset as usize];
            vfs.corrupt(path, offset, present).unwrap();
        }
    }

    fn assert_named(vfs: &SimVfs, log: &Path) {
        let error = open(vfs).map(drop).unwrap_err();
        let named = error.to_string().contains(&log.display().to_string());
        assert!(error.is_corruption() && named, "{error}");
    }
}
