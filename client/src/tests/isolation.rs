//! What each isolation level sees, and what it proves at commit.

use super::fake::Fake;
use super::*;
use crate::{Error, Isolation, LockOptions, TableVersion};
use lineradb_common::clock::wait_past;
use lineradb_common::{TableId, Timestamp};

const WEAK: [Isolation; 2] = [Isolation::RepeatableRead, Isolation::ReadCommitted];

/// What is written from now on is younger than this.
async fn passed(client: &Client, at: Timestamp) {
    wait_past(&**client.clock(), at).await.unwrap();
}

async fn at_level(client: &Client, isolation: Isolation) -> Transaction {
    let options = TransactionOptions {
        isolation,
        ..TransactionOptions::default()
    };
    let txn = client.begin(options).unwrap();
    passed(client, txn.read_timestamp()).await;
    txn
}

async fn statement(client: &Client, txn: &Transaction) -> Transaction {
    let txn = txn.begin_statement().await.unwrap();
    passed(client, txn.read_timestamp()).await;
    txn
}

async fn read(txn: &Transaction, key: &str) -> Option<Bytes> {
    txn.get(key.as_bytes(), None).await.unwrap()
}

async fn lock(txn: &Transaction, key: &str) -> crate::Result<Option<Bytes>> {
    let keys = [b(key)];
    let found = txn.locking_get(&keys, None, LockOptions::default());
    Ok(found.await?.pop().flatten())
}

fn is_conflict<T: std::fmt::Debug>(result: crate::Result<T>, at: &str) {
    match result {
        Err(Error::Conflict { key, .. }) if key == b(at) => {}
        other => panic!("a conflict at {at} was expected: {other:?}"),
    }
}

/// X0: also a blind write carries r, in one shard and in several, and also when
/// a reader pushes the commit above the version that stands in its way.
#[tokio::test]
async fn x0_repeatable_read_writes_no_key_that_changed_since_its_snapshot() {
    for (two_shards, pushed) in [(false, false), (false, true), (true, false), (true, true)] {
        let (fake, client) = Fake::start(&["m"], LONG);
        set(&client, &[("a", "0"), ("b", "0"), ("z", "0")]).await;
        eventually("intents are resolved", || fake.intents() == 0).await;
        let txn = at_level(&client, Isolation::RepeatableRead).await;
        assert_eq!(read(&txn, "a").await, Some(b("0")));
        set(&client, &[("a", "1")]).await;
        assert_eq!(read(&txn, "a").await, Some(b("0")));
        if pushed {
            value(&client, "b").await;
        }
        put(&txn, "a", "2");
        put(&txn, "b", "2");
        if two_shards {
            put(&txn, "z", "2");
        }
        let error = txn.commit().await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
        eventually("intents are resolved", || fake.intents() == 0).await;
        assert_eq!(value(&client, "a").await, Some(b("1")));
        assert_eq!(value(&client, "b").await, Some(b("0")));
    }
}

#[tokio::test]
async fn below_serializable_what_was_read_may_change() {
    for isolation in WEAK {
        let (_fake, client) = Fake::start(&["m"], LONG);
        set(&client, &[("a", "on"), ("z", "on")]).await;
        let (one, two) = (
            at_level(&client, isolation).await,
            at_level(&client, isolation).await,
        );
        for txn in [&one, &two] {
            txn.multi_get(&[b("a"), b("z")], None).await.unwrap();
        }
        put(&one, "a", "off");
        put(&two, "z", "off");
        one.commit().await.unwrap();
        two.commit().await.unwrap();
    }
}

#[tokio::test]
async fn each_statement_of_read_committed_has_a_snapshot_of_its_own() {
    let (_fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0"), ("b", "0")]).await;
    let txn = at_level(&client, Isolation::ReadCommitted).await;
    let first = statement(&client, &txn).await;
    assert_eq!(read(&first, "a").await, Some(b("0")));
    set(&client, &[("a", "1"), ("b", "1")]).await;
    assert_eq!(read(&first, "b").await, Some(b("0")));
    let second = statement(&client, &txn).await;
    assert!(second.read_timestamp() > first.read_timestamp());
    assert_eq!(read(&second, "a").await, Some(b("1")));
    // A cursor of the first goes on where it began.
    let pairs = first.scan(all(), Default::default(), None).await.unwrap();
    assert!(pairs.iter().all(|(_, value)| value == "0"), "{pairs:?}");
    // At the other levels nothing moves.
    let txn = at_level(&client, Isolation::RepeatableRead).await;
    let before = txn.read_timestamp();
    let second = statement(&client, &txn).await;
    assert_eq!(second.read_timestamp(), before);
}

#[tokio::test]
async fn a_locking_read_that_finds_a_younger_version_is_a_conflict() {
    let (fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0")]).await;
    let (snapshot, statements) = (
        at_level(&client, Isolation::RepeatableRead).await,
        at_level(&client, Isolation::ReadCommitted).await,
    );
    set(&client, &[("a", "1")]).await;
    is_conflict(lock(&snapshot, "a").await, "a");
    snapshot.rollback().await;
    eventually("locks are released", || fake.locks() == 0).await;
    is_conflict(lock(&statements, "a").await, "a");
    // The statement is run again: the lock is there already, the row in sight.
    let again = statement(&client, &statements).await;
    assert_eq!(lock(&again, "a").await.unwrap(), Some(b("1")));
    put(&again, "a", "2");
    again.commit().await.unwrap();
    assert_eq!(value(&client, "a").await, Some(b("2")));
}

/// X4: locks are memory. When they are lost, a key that was only locked, and has
/// changed since, is noticed at commit, wherever it lies and whatever was read
/// after it.
#[tokio::test]
async fn x4_a_key_that_was_only_locked_has_not_changed_at_commit() {
    for isolation in WEAK {
        for (written, statements, change) in [
            ("b", 0, true),
            ("b", 0, false),
            ("b", 2, true),
            ("b", 2, false),
            ("z", 0, true),
            ("z", 2, true),
            ("z", 2, false),
        ] {
            let (fake, client) = Fake::start(&["m"], LONG);
            set(&client, &[("a", "0")]).await;
            let txn = at_level(&client, isolation).await;
            assert_eq!(lock(&txn, "a").await.unwrap(), Some(b("0")));
            fake.0.lock().locks.clear();
            if change {
                set(&client, &[("a", "1")]).await;
            }
            for _ in 0..statements {
                statement(&client, &txn).await;
            }
            // A younger reader pushes the write, so that it has to look.
            value(&client, written).await;
            put(&txn, written, "9");
            match change {
                true => is_conflict(txn.commit().await, "a"),
                false => drop(txn.commit().await.unwrap()),
            }
        }
    }
}

/// S1, in every isolation level: a table that was read only, in another shard
/// and by an earlier statement.
#[tokio::test]
async fn s1_the_schema_of_what_was_only_read_holds_at_commit() {
    for isolation in WEAK {
        for statements in [0, 1] {
            let (fake, client) = Fake::start(&["m"], LONG);
            fake.0.lock().schemas.insert(7, vec![(1, 1)]);
            let table = Some(TableVersion {
                table: TableId(7),
                version: 1,
            });
            let txn = at_level(&client, isolation).await;
            txn.get(b"a", table).await.unwrap();
            let now = client.clock().now().unwrap().latest.raw();
            fake.0.lock().schemas.insert(7, vec![(1, 1), (now, 2)]);
            for _ in 0..statements {
                statement(&client, &txn).await;
            }
            value(&client, "z").await;
            put(&txn, "z", "1");
            let error = txn.commit().await.unwrap_err();
            assert!(
                matches!(error, Error::SchemaChanged { current: 2, .. }),
                "{isolation:?}: {error:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_follows_a_change_of_the_schema_is_serializable() {
    let (_fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("a", "0"), ("b", "0")]).await;
    let txn = at_level(&client, Isolation::ReadCommitted).await;
    read(&txn, "a").await;
    let txn = statement(&client, &txn).await.serialize().await;
    read(&txn, "b").await;
    set(&client, &[("a", "1")]).await;
    value(&client, "z").await;
    put(&txn, "z", "1");
    // What was read before may change.
    txn.commit().await.unwrap();

    let txn = at_level(&client, Isolation::ReadCommitted).await;
    let txn = statement(&client, &txn).await.serialize().await;
    let before = txn.read_timestamp();
    read(&txn, "b").await;
    set(&client, &[("b", "1")]).await;
    let txn = statement(&client, &txn).await;
    assert_eq!(txn.read_timestamp(), before);
    value(&client, "z").await;
    put(&txn, "z", "2");
    is_conflict(txn.commit().await, "b");
}

#[tokio::test]
async fn the_past_is_read_and_nothing_ahead_of_it() {
    let (_fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0")]).await;
    let then = client.clock().now().unwrap().earliest;
    passed(&client, then).await;
    set(&client, &[("a", "1")]).await;
    let options = |at, read_only| TransactionOptions {
        read_at: Some(at),
        read_only,
        ..TransactionOptions::default()
    };
    let txn = client.begin(options(then, true)).unwrap();
    assert_eq!(read(&txn, "a").await, Some(b("0")));
    txn.commit().await.unwrap();
    let ahead = client.clock().now().unwrap().latest.plus_micros(60_000_000);
    for wrong in [options(ahead, true), options(then, false)] {
        assert!(matches!(client.begin(wrong), Err(Error::Invalid { .. })));
    }
}

/// X4: the lock was lost between two reads of the key, and the second one found what
/// another had made of it.
#[tokio::test]
async fn x4_a_second_lock_does_not_hide_the_loss_of_the_first() {
    let (fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0")]).await;
    let txn = at_level(&client, Isolation::ReadCommitted).await;
    let shared = LockOptions {
        shared: true,
        ..LockOptions::default()
    };
    txn.locking_get(&[b("a")], None, shared).await.unwrap();
    fake.0.lock().locks.clear();
    set(&client, &[("a", "1")]).await;
    let txn = statement(&client, &txn).await;
    assert_eq!(lock(&txn, "a").await.unwrap(), Some(b("1")));
    put(&txn, "a", "2");
    is_conflict(txn.commit().await, "a");
}

/// X4: what was read under locks by several statements held together, also when
/// nothing is written.
#[tokio::test]
async fn x4_locks_are_proven_when_nothing_is_written() {
    for change in [false, true] {
        let (fake, client) = Fake::start(&[], LONG);
        set(&client, &[("a", "100"), ("b", "100")]).await;
        let txn = at_level(&client, Isolation::ReadCommitted).await;
        lock(&txn, "a").await.unwrap();
        fake.0.lock().locks.clear();
        if change {
            set(&client, &[("a", "50"), ("b", "150")]).await;
        }
        let txn = statement(&client, &txn).await;
        lock(&txn, "b").await.unwrap();
        match change {
            true => is_conflict(txn.commit().await, "a"),
            false => drop(txn.commit().await.unwrap()),
        }
    }
}

#[tokio::test]
async fn the_snapshot_of_repeatable_read_stays_behind_a_change_of_the_schema() {
    for read_first in [true, false] {
        let (_fake, client) = Fake::start(&[], LONG);
        set(&client, &[("a", "5"), ("catalog", "1")]).await;
        let txn = at_level(&client, Isolation::RepeatableRead).await;
        match read_first {
            true => drop(read(&txn, "a").await),
            false => put(&txn, "a", "6"),
        }
        set(&client, &[("a", "7")]).await;
        set(&client, &[("catalog", "2")]).await;
        let txn = txn.serialize().await;
        // Moves r above both, over what was read and written before.
        is_conflict(lock(&txn, "catalog").await, "a");
    }
}

/// X4: a lock whose read counts for nothing is asked for again before anything
/// is built on it.
#[tokio::test]
async fn a_key_that_was_passed_over_is_locked_anew() {
    for isolation in WEAK {
        let (fake, client) = Fake::start(&[], LONG);
        set(&client, &[("a", "0")]).await;
        let txn = at_level(&client, isolation).await;
        lock(&txn, "a").await.unwrap();
        assert!(txn.holds(b"a"));
        txn.disregard(b"a");
        assert!(!txn.holds(b"a"));
        let asked = fake.count("lock");
        assert_eq!(lock(&txn, "a").await.unwrap(), Some(b("0")));
        assert_eq!(fake.count("lock"), asked + 1);
        // From here on it counts: the lock is lost, another one writes.
        fake.0.lock().locks.clear();
        set(&client, &[("a", "1")]).await;
        put(&txn, "a", "2");
        is_conflict(txn.commit().await, "a");
    }
}
