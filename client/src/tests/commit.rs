//! One round, two rounds, and every way in which they end.

use super::fake::{Fake, Fault, Record};
use super::*;
use crate::{Condition, Error, IdempotencyRequest, LockOptions, Ran, TableVersion, WriteOptions};
use lineradb_common::clock::deadline_after;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1::{ErrorCode, commit_record_reply, reply};

#[tokio::test]
async fn the_record_of_a_commit_over_several_shards_comes_and_goes() {
    let (fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("a", "1"), ("b", "2")]).await;
    assert_eq!((fake.count("1pc"), fake.count("prewrite")), (1, 0));
    set(&client, &[("a", "3"), ("z", "4")]).await;
    assert_eq!(fake.count("prewrite"), 2);
    assert_eq!(value(&client, "a").await, Some(b("3")));
    assert_eq!(value(&client, "z").await, Some(b("4")));
    eventually("intents are resolved", || fake.intents() == 0).await;
    eventually("the record is forgotten", || {
        fake.0.lock().records.is_empty()
    })
    .await;
    assert_eq!(fake.count("record"), 1);
}

#[tokio::test]
async fn nothing_written_sends_nothing() {
    let (fake, client) = Fake::start(&[], LONG);
    let txn = begin(&client);
    let commit = txn.commit().await.unwrap();
    assert_eq!(commit.timestamp, txn.read_timestamp());
    assert!(fake.0.lock().log.is_empty());
    assert!(matches!(txn.commit().await, Err(Error::Invalid { .. })));
    assert!(txn.get(b"a", None).await.is_err());
}

/// X1: the reply of a one-phase commit is lost, another transaction commits on
/// top; the attempt is found committed and not applied a second time.
#[tokio::test]
async fn x1_a_lost_reply_is_decided_and_never_applied_twice() {
    let (fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0")]).await;
    fake.plant("1pc", 1, Fault::LoseReply);
    fake.plant("push", 1, Fault::Before(|store| store.noise = 0));
    let first = async {
        let txn = begin(&client);
        put(&txn, "a", "1");
        txn.commit().await
    };
    let first = first.await.unwrap();
    let other = fake.client(LONG);
    set(&other, &[("a", "2")]).await;
    assert!(first.timestamp > lineradb_common::Timestamp::ZERO);
    assert_eq!(value(&client, "a").await, Some(b("2")));
    assert_eq!(fake.versions("a"), 3);
}

/// X1: the other commit lands between the lost attempt and its decision.
#[tokio::test]
async fn x1_holds_when_another_commits_on_top_before_the_decision() {
    let (fake, client) = Fake::start(&[], LONG);
    set(&client, &[("n", "0")]).await;
    let increment = |client: Client| async move {
        client
            .run(TransactionOptions::default(), |txn| async move {
                let now = txn.get(b"n", None).await?.unwrap_or_default();
                let now: u64 = std::str::from_utf8(&now).unwrap().parse().unwrap();
                txn.put(b("n"), b(&(now + 1).to_string()), WriteOptions::default())
            })
            .await
    };
    // The decision itself has to be asked for three times: time for the other.
    fake.plant("1pc", 1, Fault::LoseReply);
    fake.plant("push", 3, Fault::Refuse(ErrorCode::Unavailable));
    let first = increment(client.clone());
    let second = async {
        eventually("the first is in doubt", || fake.count("push") > 0).await;
        increment(fake.client(LONG)).await
    };
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    second.unwrap();
    assert_eq!(value(&client, "n").await, Some(b("2")));
}

/// X1: the request itself is late. The decision makes it impossible, the retry
/// goes under a new id, and what arrives late is refused.
#[tokio::test]
async fn x1_a_late_commit_is_refused_after_the_decision() {
    let (fake, client) = Fake::start(&[], LONG);
    fake.plant("1pc", 1, Fault::Delay);
    client
        .run(TransactionOptions::default(), |txn| async move {
            txn.put(b("a"), b("once"), WriteOptions::default())
        })
        .await
        .unwrap();
    assert_eq!(fake.versions("a"), 1);
    let late = fake.deliver_late();
    assert!(matches!(
        &late[0].body,
        Some(reply::Body::Error(e)) if e.code == ErrorCode::TxnAborted as i32
    ));
    assert_eq!(fake.versions("a"), 1);
}

#[tokio::test]
async fn an_attempt_that_cannot_be_decided_is_unknown_and_never_aborted() {
    for (kind, fault) in [
        ("1pc", Fault::LoseReply),
        ("1pc", Fault::LoseRequest),
        ("record", Fault::LoseReply),
        ("record", Fault::LoseRequest),
        ("record", Fault::Refuse(ErrorCode::OutcomeUnknown)),
    ] {
        let (fake, client) = Fake::start(&["m"], Duration::from_millis(200));
        fake.plant(kind, 1, fault);
        fake.plant("push", usize::MAX, Fault::Refuse(ErrorCode::Unavailable));
        let txn = begin(&client);
        put(&txn, "a", "1");
        if kind == "record" {
            // A younger reader pushes it: a second round is needed.
            value(&client, "z").await;
            put(&txn, "z", "1");
        }
        let error = txn.commit().await.unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{kind}: {error:?}");
        assert!(!error.is_retryable());
    }
}

/// A deadline that nobody asked for does not turn a lost reply into an unknown
/// outcome; one that the user set does, in time.
#[tokio::test]
async fn a_default_deadline_leaves_time_to_decide() {
    for default_deadline in [true, false] {
        let (fake, client) = Fake::start(&[], LONG);
        fake.plant("1pc", 1, Fault::LoseReply);
        fake.plant("push", usize::MAX, Fault::Refuse(ErrorCode::Unavailable));
        let deadline = deadline_after(Duration::from_millis(500));
        let options = TransactionOptions {
            deadline: Some(deadline),
            default_deadline,
            ..TransactionOptions::default()
        };
        let txn = client.begin(options).unwrap();
        put(&txn, "a", "1");
        // The decision gets through only when the deadline has passed.
        let healed = async {
            tokio::time::sleep_until(deadline).await;
            if default_deadline {
                fake.heal();
            }
        };
        let (committed, ()) = tokio::join!(txn.commit(), healed);
        match default_deadline {
            true => drop(committed.unwrap()),
            false => assert!(matches!(committed, Err(Error::Unknown { .. }))),
        }
    }
}

#[tokio::test]
async fn a_lost_commit_record_is_decided() {
    let (fake, client) = Fake::start(&["m"], LONG);
    fake.plant("record", 1, Fault::LoseReply);
    let txn = begin(&client);
    // Younger readers push it: a second round is needed.
    value(&client, "z").await;
    put(&txn, "a", "1");
    put(&txn, "z", "1");
    txn.commit().await.unwrap();
    assert_eq!(value(&client, "z").await, Some(b("1")));

    fake.plant("record", 1, Fault::Delay);
    let txn = begin(&client);
    value(&client, "z").await;
    put(&txn, "a", "2");
    put(&txn, "z", "2");
    let error = txn.commit().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let late = fake.deliver_late();
    let Some(reply::Body::CommitRecord(late)) = &late[0].body else {
        panic!("{late:?}");
    };
    assert_eq!(
        late.outcome,
        Some(commit_record_reply::Outcome::Aborted(true))
    );
    assert_eq!(value(&client, "a").await, Some(b("1")));
    assert_eq!(value(&client, "z").await, Some(b("1")));
    eventually("intents are removed", || fake.intents() == 0).await;
}

/// Parallel commit: one round, whatever becomes of the record that says so.
#[tokio::test]
async fn a_commit_over_several_shards_takes_one_round() {
    let (fake, client) = Fake::start(&["g", "p"], LONG);
    fake.plant("record", usize::MAX, Fault::Refuse(ErrorCode::Unavailable));
    let txn = begin(&client);
    for key in ["a", "k", "z"] {
        put(&txn, key, "1");
    }
    let commit = txn.commit().await.unwrap();
    assert_eq!(commit.timestamp, txn.read_timestamp());
    assert_eq!(fake.count("prewrite"), 3);
    assert_eq!(fake.count("push"), 0);
    // Nothing is resolved before the record says that it is committed.
    assert_eq!((fake.intents(), fake.count("resolve")), (3, 0));
    fake.heal();
    assert_eq!(value(&client, "z").await, Some(b("1")));
    eventually("intents are resolved", || fake.intents() == 0).await;
    assert_eq!(fake.count("recover"), 0);
}

/// All has landed, but for an answer: its coordinator, which has told nobody,
/// gives it up, and the next attempt commits.
#[tokio::test]
async fn a_lost_answer_is_given_up_and_tried_again() {
    let (fake, client) = Fake::start(&["m"], LONG);
    fake.plant("prewrite", 1, Fault::LoseReply);
    let txn = begin(&client);
    put(&txn, "a", "1");
    put(&txn, "z", "1");
    assert!(txn.commit().await.unwrap_err().is_retryable());
    assert_eq!(fake.count("query"), 0);
    set(&client, &[("a", "2"), ("z", "2")]).await;
    assert_eq!(value(&client, "a").await, Some(b("2")));
    assert_eq!(value(&client, "z").await, Some(b("2")));
    eventually("intents are resolved", || fake.intents() == 0).await;
}

/// X3: a coordinator that is gone has staged its commit, and all of it has
/// landed, or not. Whoever meets an intent finds out which.
#[tokio::test]
async fn x3_who_meets_a_staged_commit_finds_out() {
    for landed in [true, false] {
        let (fake, client) = Fake::start(&["m"], LONG);
        let now = client.clock().now().unwrap().latest;
        let staged = Timestamp::from_micros(now.micros() - 6_000_000);
        fake.stage(["a", "z"], 1, staged.raw());
        if !landed {
            fake.0.lock().intents.remove(&b("z"));
        }
        assert_eq!(value(&client, "a").await.is_some(), landed);
        assert_eq!(value(&client, "z").await.is_some(), landed);
        assert_eq!((fake.count("recover"), fake.intents()), (1, 0));
    }
}

/// A write that is refused ends it: nobody will find it committed.
#[tokio::test]
async fn a_refused_part_aborts_what_is_staged() {
    let (fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("z", "0")]).await;
    let txn = begin(&client);
    put(&txn, "a", "1");
    let absent = WriteOptions {
        condition: Condition::Absent,
        ..WriteOptions::default()
    };
    txn.put(b("z"), b("1"), absent).unwrap();
    let error = txn.commit().await.unwrap_err();
    assert!(matches!(error, Error::ConditionFailed { .. }), "{error:?}");
    eventually("intents are removed", || fake.intents() == 0).await;
    assert_eq!(value(&client, "a").await, None);
    assert_eq!(value(&client, "z").await, Some(b("0")));
}

#[tokio::test]
async fn a_lost_prewrite_aborts_for_certain() {
    let (fake, client) = Fake::start(&["m"], LONG);
    fake.plant("prewrite", 1, Fault::Delay);
    let txn = begin(&client);
    put(&txn, "a", "1");
    put(&txn, "z", "1");
    assert!(txn.commit().await.unwrap_err().is_retryable());
    assert_eq!(fake.count("record"), 0);
    eventually("the abort is on record", || {
        let store = fake.0.lock();
        store.records.values().any(|r| *r == Record::Aborted)
    })
    .await;
    fake.deliver_late();
    assert_eq!(value(&client, "a").await, None);
    assert_eq!(value(&client, "z").await, None);
}

fn keyed(key: &str, hash: &str) -> TransactionOptions {
    TransactionOptions {
        idempotency: Some(IdempotencyRequest {
            user: "ann".into(),
            key: key.into(),
            request_hash: b(hash),
        }),
        ..TransactionOptions::default()
    }
}

async fn keyed_put(client: &Client, key: &str, hash: &str, value: &str) -> crate::Result<Ran<()>> {
    client
        .run_keyed(keyed(key, hash), |txn| async move {
            txn.set_result_summary(b(value));
            txn.put(
                b("row"),
                b(value),
                WriteOptions {
                    condition: Condition::Absent,
                    ..WriteOptions::default()
                },
            )
        })
        .await
}

/// X2: a repeat is answered with the first outcome, also when the first answer
/// was lost; another request under the key is refused.
#[tokio::test]
async fn x2_a_keyed_request_takes_effect_once() {
    for lost in [None, Some(Fault::LoseReply), Some(Fault::LoseRequest)] {
        let (fake, client) = Fake::start(&["m"], LONG);
        if let Some(fault) = &lost {
            fake.plant("prewrite", 1, fault.clone());
        }
        let first = keyed_put(&client, "k", "h", "1").await.unwrap();
        let Ran::Committed((), commit) = first else {
            panic!("{first:?}")
        };
        let again = keyed_put(&fake.client(LONG), "k", "h", "1").await.unwrap();
        let Ran::Earlier(earlier) = again else {
            panic!("{again:?}")
        };
        assert_eq!(earlier.timestamp, commit.timestamp);
        assert_eq!(earlier.result_summary, b("1"));
        eventually("intents are resolved", || fake.intents() == 0).await;
        assert_eq!(fake.versions("row"), 1);
        let other = keyed_put(&client, "k", "another", "2").await;
        assert!(matches!(other, Err(Error::IdempotencyMismatch)));
        assert!(
            keyed_put(&client, "k2", "h", "2").await.is_err(),
            "row is there"
        );
    }
}

#[tokio::test]
async fn x2_two_at_once_commit_once() {
    let (fake, client) = Fake::start(&["m"], LONG);
    // Both looked before either committed.
    let one = client.begin(keyed("k", "h")).unwrap();
    let two = client.begin(keyed("k", "h")).unwrap();
    assert_eq!(one.earlier_outcome().await.unwrap(), None);
    assert_eq!(two.earlier_outcome().await.unwrap(), None);
    put(&one, "z", "1");
    put(&two, "z", "2");
    let first = one.commit().await.unwrap();
    let second = two.commit().await;
    match second {
        Ok(commit) => assert_eq!(commit.earlier.unwrap().timestamp, first.timestamp),
        Err(error) => assert!(error.is_retryable(), "{error:?}"),
    }
    assert_eq!(value(&client, "z").await, Some(b("1")));
    eventually("intents are gone", || fake.intents() == 0).await;
    // One that never looked is answered by its own commit.
    let blind = client.begin(keyed("k", "h")).unwrap();
    put(&blind, "z", "3");
    let commit = blind.commit().await.unwrap();
    assert_eq!(commit.earlier.unwrap().timestamp, first.timestamp);
    let other = client.begin(keyed("k", "other")).unwrap();
    put(&other, "z", "4");
    assert!(matches!(
        other.commit().await,
        Err(Error::IdempotencyMismatch)
    ));
    assert_eq!(value(&client, "z").await, Some(b("1")));
}

/// X0: a push above r forces a refresh; it fails when something read changed.
#[tokio::test]
async fn a_pushed_commit_refreshes_what_was_read() {
    for (change, two_shards) in [(false, false), (true, false), (false, true), (true, true)] {
        let (fake, client) = Fake::start(&["g", "p"], LONG);
        set(&client, &[("a", "0"), ("k", "0"), ("z", "0")]).await;
        eventually("intents are resolved", || fake.intents() == 0).await;
        let txn = begin(&client);
        txn.get(b"a", None).await.unwrap();
        if change {
            set(&client, &[("a", "1")]).await;
        }
        // A younger reader of what is to be written pushes it up.
        value(&client, "z").await;
        put(&txn, "z", "9");
        if two_shards {
            put(&txn, "k", "9");
        }
        fake.log_clear();
        let result = txn.commit().await;
        assert_eq!(fake.count("refresh"), 1);
        match result {
            Ok(commit) => {
                assert!(!change);
                assert!(commit.timestamp > txn.read_timestamp());
            }
            Err(error) => assert!(change && error.is_retryable(), "{error:?}"),
        }
    }
}

/// Write skew: two transactions read both keys and each writes one; the second
/// must not commit.
#[tokio::test]
async fn write_skew_is_refused() {
    let (_fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("a", "on"), ("z", "on")]).await;
    let (one, two) = (begin(&client), begin(&client));
    for txn in [&one, &two] {
        txn.multi_get(&[b("a"), b("z")], None).await.unwrap();
    }
    put(&one, "a", "off");
    put(&two, "z", "off");
    let results = [one.commit().await, two.commit().await];
    let committed = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(committed, 1, "{results:?}");
}

#[tokio::test]
async fn conditions_and_locked_versions_are_checked_at_commit() {
    let (fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("a", "1"), ("z", "1")]).await;
    eventually("intents are resolved", || fake.intents() == 0).await;
    let txn = begin(&client);
    let absent = WriteOptions {
        condition: Condition::Absent,
        ..WriteOptions::default()
    };
    txn.put(b("a"), b("2"), absent).unwrap();
    let error = txn.commit().await.unwrap_err();
    assert!(matches!(error, Error::ConditionFailed { key } if key == b("a")));

    // X4: the lock is gone (its leader restarted), another writes: conflict.
    let txn = begin(&client);
    let values = txn
        .locking_get(&[b("a"), b("z")], None, LockOptions::default())
        .await
        .unwrap();
    assert_eq!(values, vec![Some(b("1")), Some(b("1"))]);
    assert!(txn.put(b("a"), b("2"), absent).is_err(), "known at once");
    set(&fake.client(LONG), &[("z", "7")]).await;
    put(&txn, "z", "2");
    assert!(txn.commit().await.unwrap_err().is_retryable());
    assert_eq!(value(&client, "z").await, Some(b("7")));
    eventually("locks are released", || fake.locks() == 0).await;
}

/// S1: the schema version is validated at the commit timestamp, also of tables
/// that were only written, blindly.
#[tokio::test]
async fn s1_a_schema_change_before_the_commit_is_noticed() {
    for two_shards in [false, true] {
        let (fake, client) = Fake::start(&["m"], LONG);
        fake.0.lock().schemas.insert(7, vec![(1, 1)]);
        let table = Some(TableVersion {
            table: TableId(7),
            version: 1,
        });
        let txn = begin(&client);
        let options = WriteOptions {
            table,
            ..WriteOptions::default()
        };
        txn.put(b("z"), b("1"), options).unwrap();
        if two_shards {
            txn.put(b("a"), b("1"), options).unwrap();
        }
        // The table changes, and somebody reads above: the blind write is
        // pushed over the change.
        let now = client.clock().now().unwrap().latest.raw();
        fake.0.lock().schemas.insert(7, vec![(1, 1), (now, 2)]);
        value(&client, "z").await;
        let error = txn.commit().await.unwrap_err();
        assert!(
            matches!(error, Error::SchemaChanged { table, current: 2 } if table == TableId(7)),
            "{error:?}"
        );
        assert!(error.is_retryable());
    }
}

#[tokio::test]
async fn dropping_a_transaction_gives_its_locks_back() {
    let (fake, client) = Fake::start(&["m"], LONG);
    let txn = begin(&client);
    let keys = [b("a"), b("z")];
    txn.locking_get(&keys, None, LockOptions::default())
        .await
        .unwrap();
    assert_eq!(fake.locks(), 2);
    let other = begin(&client);
    let options = LockOptions {
        wait: false,
        shared: false,
    };
    let refused = other.locking_get(&keys, None, options).await;
    assert!(matches!(refused, Err(Error::LockTimeout { .. })));
    drop(txn);
    eventually("locks are released", || fake.locks() == 0).await;
}

/// What the rest of its requests wait for may wait for the transaction itself.
#[tokio::test]
async fn a_deadlock_is_answered_while_other_requests_wait() {
    let (fake, client) = Fake::start(&["m"], LONG);
    fake.plant("lock", 1, Fault::Hang);
    fake.plant("lock", 1, Fault::Refuse(ErrorCode::Deadlock));
    let txn = begin(&client);
    let keys = [b("a"), b("z")];
    let locking = txn.locking_get(&keys, None, LockOptions::default());
    let refused = tokio::time::timeout(LONG, locking).await.unwrap();
    assert!(matches!(refused, Err(Error::Deadlock { .. })));
    txn.rollback().await;
    // Both shards are told, also the one that has not answered.
    eventually("locks are released", || fake.count("release") == 2).await;
}

#[tokio::test]
async fn a_commit_that_is_dropped_half_way_leaves_nothing() {
    let (fake, client) = Fake::start(&["m"], LONG);
    let txn = begin(&client);
    // A younger reader pushes it: a second round is needed.
    value(&client, "z").await;
    put(&txn, "a", "1");
    put(&txn, "z", "1");
    fake.plant("record", usize::MAX, Fault::Refuse(ErrorCode::Unavailable));
    {
        let commit = txn.commit();
        tokio::pin!(commit);
        tokio::select! {
            _ = &mut commit => panic!("it cannot commit"),
            () = eventually("the record is tried", || fake.count("record") > 0) => {}
        }
    }
    eventually("intents are removed", || fake.intents() == 0).await;
    fake.heal();
    assert_eq!(value(&client, "a").await, None);
}

#[tokio::test]
async fn a_commit_is_answered_after_the_clock_has_passed_it() {
    let (_fake, client) = Fake::start(&[], LONG);
    let txn = begin(&client);
    put(&txn, "a", "1");
    let commit = txn.commit().await.unwrap();
    let now = client.clock().now().unwrap().earliest;
    assert!(now.micros() > commit.timestamp.micros());
}
