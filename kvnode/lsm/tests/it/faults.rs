//! Disks that fail or fill up: a failure is final and clear (rule D3), reads go on, and what was acknowledged is
//! there after a reopen.

use crate::support::*;
use lineradb_lsm::{CrashLoss, Db, Error, Fault, KeyspaceId, SimVfs, WriteOptions};

/// Writes until something fails.
fn write_until_failure(db: &Db, keyspaces: [KeyspaceId; 2], model: &mut Model) -> Option<Error> {
    let rng = &mut rng(3);
    for _ in 0..80 {
        let mut next = model.clone();
        let batch = random_batch(rng, keyspaces, &mut next);
        match db.write(batch, WriteOptions::SYNC) {
            Ok(_) => *model = next,
            Err(error) => return Some(error),
        }
    }
    None
}

/// What the operation of this number is.
fn operation_at(number: u64) -> String {
    let vfs = SimVfs::new();
    let (db, keyspaces) = open(&vfs, tiny(true)).unwrap();
    vfs.crash_at(number);
    write_until_failure(&db, keyspaces, &mut empty_model());
    vfs.trace().pop().unwrap()
}

#[test]
fn a_failed_operation_is_final() {
    let clean = SimVfs::new();
    let (db, keyspaces) = open(&clean, tiny(true)).unwrap();
    let opened = clean.operations();
    assert!(write_until_failure(&db, keyspaces, &mut empty_model()).is_none());
    let mut failures = 0;
    for at in opened + 1..=clean.operations() {
        for fault in [Fault::Io, Fault::NoSpace] {
            let vfs = SimVfs::new();
            let (db, keyspaces) = open(&vfs, tiny(true)).unwrap();
            vfs.fail_at(at, fault);
            let mut model = empty_model();
            let Some(error) = write_until_failure(&db, keyspaces, &mut model) else {
                // The failed operation was the removal of a file that nobody needs.
                let operation = operation_at(at);
                assert!(operation.contains("remove"), "{operation}");
                continue;
            };
            failures += 1;
            assert_eq!(error.is_no_space(), fault == Fault::NoSpace, "{error}");
            let operations = vfs.operations();
            let again = db.write(
                random_batch(&mut rng(1), keyspaces, &mut empty_model()),
                WriteOptions::SYNC,
            );
            assert!(matches!(again, Err(Error::Failed { .. })), "{again:?}");
            assert!(matches!(db.flush(), Err(Error::Failed { .. })));
            assert!(db.failure().is_some());
            assert_eq!(
                vfs.operations(),
                operations,
                "a failed database must not touch its files"
            );
            assert_eq!(all_contents(&db, keyspaces).unwrap(), model, "reads go on");
            assert!(db.close().is_err());
            drop(db);
            vfs.crash(CrashLoss::Everything);
            let (db, keyspaces) = open(&vfs, tiny(true)).unwrap();
            let found = all_contents(&db, keyspaces).unwrap();
            assert_eq!(found, model, "operation {at}, {fault:?}");
        }
    }
    assert!(failures > 100);
}

#[test]
fn a_full_disk_says_so_and_heals_by_reopening() {
    for wal in [true, false] {
        let vfs = SimVfs::new();
        let (db, keyspaces) = open(&vfs, tiny(wal)).unwrap();
        vfs.set_capacity(Some(vfs.used() + 9_000));
        let error = write_until_failure(&db, keyspaces, &mut empty_model()).unwrap();
        assert!(
            error.is_no_space() && error.to_string().contains("disk full"),
            "{error}"
        );
        let survivors = db.flushed_seqno();
        drop(db);
        vfs.set_capacity(None);
        let (db, keyspaces) = open(&vfs, tiny(wal)).unwrap();
        assert!(db.last_seqno() >= survivors);
        assert!(write_until_failure(&db, keyspaces, &mut empty_model()).is_none());
    }
}

#[test]
fn a_second_open_is_refused_until_the_first_is_gone() {
    let vfs = SimVfs::new();
    let (db, _) = open(&vfs, tiny(true)).unwrap();
    let Err(error) = open(&vfs, tiny(true)) else {
        panic!("two databases in one folder")
    };
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    let snapshot = db.snapshot();
    drop(db);
    let (db, keyspaces) = open(&vfs, tiny(true)).unwrap();
    assert!(snapshot.get(keyspaces[0], b"x").unwrap().is_none());
    db.close().unwrap();
    assert!(matches!(db.flush(), Err(Error::Closed)));
    assert!(open(&vfs, tiny(true)).is_ok());
}
