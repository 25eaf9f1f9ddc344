//! A crash at every single write and sync of a mixed workload: what was acknowledged is there afterwards, and what
//! is there is the state after some batch, never a part of one.

use crate::support::*;
use lineradb_lsm::{CrashLoss, Db, KeyspaceId, SeqNo, SimVfs, WriteOptions};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BATCHES: usize = 110;

/// What a run of the workload has seen.
struct Run {
    /// State after each batch that was begun, by the sequence number of its last operation.
    states: BTreeMap<SeqNo, Model>,
    /// Everything up to here was acknowledged as durable.
    durable: SeqNo,
    /// The last batch that was acknowledged at all.
    acknowledged: SeqNo,
}

/// Runs the workload until its end or the first error.
fn workload(vfs: &SimVfs, wal: bool) -> Run {
    let mut run = Run {
        states: BTreeMap::from([(0, empty_model())]),
        durable: 0,
        acknowledged: 0,
    };
    let flushed = Arc::new(AtomicU64::new(0));
    let rng = &mut rng(7);
    let mut model = empty_model();
    let mut attempt = || -> lineradb_lsm::Result<()> {
        let mut opened: Option<(Db, [KeyspaceId; 2])> = None;
        for number in 0..BATCHES {
            let (db, keyspaces) = match opened.take() {
                Some(opened) => opened,
                None => {
                    let (db, keyspaces) = open(vfs, tiny(wal))?;
                    let flushed = Arc::clone(&flushed);
                    db.on_flush(move |seqno| flushed.store(seqno, Ordering::Relaxed));
                    (db, keyspaces)
                }
            };
            let batch = random_batch(rng, keyspaces, &mut model);
            let last = db.last_seqno() + batch.len() as u64;
            let sync = rng.random_range(0..3) == 0;
            run.states.insert(last, model.clone());
            assert_eq!(db.write(batch, WriteOptions { sync })?, last);
            run.acknowledged = last;
            if sync && wal {
                run.durable = last;
            }
            if rng.random_range(0..30) == 0 {
                run.durable = db.flush()?;
                assert_eq!(run.durable, last);
            }
            if number == BATCHES / 2 {
                db.close()?;
                run.durable = last;
            } else {
                opened = Some((db, keyspaces));
            }
        }
        Ok(())
    };
    // An error is where the crash was; the caller knows whether there was to be one.
    let _ = attempt();
    run.durable = run.durable.max(flushed.load(Ordering::Relaxed));
    run
}

fn check_after_crash(vfs: &SimVfs, wal: bool, run: &Run, what: &str) {
    let (db, keyspaces) = open(vfs, tiny(wal)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let last = db.last_seqno();
    assert_eq!(last, db.flushed_seqno(), "{what}: recovery flushes");
    assert!(
        last >= run.durable,
        "{what}: {last} is back, {} was durable",
        run.durable
    );
    let expected = run
        .states
        .get(&last)
        .unwrap_or_else(|| panic!("{what}: {last} is in the middle of a batch"));
    let found = all_contents(&db, keyspaces).unwrap();
    assert!(
        found == *expected,
        "{what}: the state differs from the one after batch {last}"
    );
    // It works on.
    let mut model = found;
    let batch = random_batch(&mut rng(last), keyspaces, &mut model);
    db.write(batch, WriteOptions::SYNC).unwrap();
    db.close().unwrap();
    drop(db);
    let (db, keyspaces) = open(vfs, tiny(wal)).unwrap();
    assert!(
        all_contents(&db, keyspaces).unwrap() == model,
        "{what}: the write after the crash is gone"
    );
}

fn crash_everywhere(wal: bool) {
    let vfs = SimVfs::new();
    let whole = workload(&vfs, wal);
    assert_eq!(
        whole.states.keys().next_back(),
        Some(&whole.acknowledged),
        "the workload runs to its end"
    );
    let operations = vfs.operations();
    assert!(
        operations > 150,
        "{operations} operations are a small workload"
    );
    for crash_at in 1..=operations {
        let other = match crash_at % 3 {
            0 => CrashLoss::Nothing,
            1 => CrashLoss::Everything,
            _ => CrashLoss::Torn(!crash_at),
        };
        let losses = [CrashLoss::Torn(crash_at), other];
        for loss in losses {
            let vfs = SimVfs::new();
            vfs.crash_at(crash_at);
            let run = workload(&vfs, wal);
            let what = format!("wal {wal}, {loss:?}, crash at {:?}", vfs.trace().last());
            vfs.crash(loss);
            check_after_crash(&vfs, wal, &run, &what);
        }
    }
}

#[test]
fn every_crash_point_with_a_log() {
    crash_everywhere(true);
}

#[test]
fn every_crash_point_without_a_log() {
    crash_everywhere(false);
}

/// The recovery itself is interrupted at each of its operations, several times in a row.
#[test]
fn crashes_during_recovery() {
    for wal in [true, false] {
        let vfs = SimVfs::new();
        vfs.crash_at(200);
        let run = workload(&vfs, wal);
        vfs.crash(CrashLoss::Torn(1));
        let mut step = 0;
        loop {
            step += 1;
            assert!(step < 500, "recovery never succeeds");
            vfs.crash_at(vfs.operations() + step);
            match open(&vfs, tiny(wal)) {
                Ok(_) => break,
                Err(_) => vfs.crash(CrashLoss::Torn(step)),
            }
        }
        assert!(step > 10);
        vfs.crash(CrashLoss::Everything);
        check_after_crash(&vfs, wal, &run, "after many interrupted recoveries");
    }
}
