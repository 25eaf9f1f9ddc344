//! What the router hides, and what it must not.

use super::fake::{Fake, Fault, Record};
use super::*;
use crate::{Error, ScanOptions};
use lineradb_common::Timestamp;
use lineradb_proto::shard::v1::ErrorCode;

#[tokio::test]
async fn elections_splits_and_lost_reads_are_hidden() {
    let (fake, client) = Fake::start(&["m"], LONG);
    set(&client, &[("a", "1"), ("z", "1")]).await;
    fake.0.lock().leader = 3;
    assert_eq!(value(&client, "a").await, Some(b("1")));
    fake.plant("get", 2, Fault::LoseReply);
    fake.plant("get", 2, Fault::Refuse(ErrorCode::Unavailable));
    assert_eq!(value(&client, "z").await, Some(b("1")));
    fake.0.lock().split(b"c");
    set(&client, &[("b", "2"), ("d", "2"), ("y", "2")]).await;
    fake.plant("prewrite", 1, Fault::Before(|store| store.split(b"f")));
    set(&client, &[("e", "3"), ("g", "3"), ("z", "3")]).await;
    fake.plant("1pc", 1, Fault::Before(|store| store.split(b"r")));
    set(&client, &[("q", "4"), ("s", "4")]).await;
    let txn = begin(&client);
    let pairs = txn.scan(all(), ScanOptions::default(), None).await.unwrap();
    let keys: Vec<_> = pairs.iter().map(|(k, _)| k.clone()).collect();
    assert_eq!(keys, ["a", "b", "d", "e", "g", "q", "s", "y", "z"].map(b));
    assert_eq!(client.map().shards().count(), 5);
}

#[tokio::test]
async fn nobody_answers_is_unavailable_within_the_deadline() {
    let (fake, client) = Fake::start(&["m"], Duration::from_millis(150));
    for kind in ["get", "1pc", "prewrite"] {
        fake.plant(kind, usize::MAX, Fault::Refuse(ErrorCode::Unavailable));
    }
    let txn = begin(&client);
    let error = txn.get(b"a", None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    put(&txn, "a", "1");
    let error = txn.commit().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let txn = begin(&client);
    put(&txn, "a", "1");
    put(&txn, "z", "1");
    let error = txn.commit().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn foreign_intents_are_resolved_waited_for_or_recovered() {
    let (fake, client) = Fake::start(&["m"], LONG);
    let now = client.clock().now().unwrap().latest;
    let young = now.plus_micros(3_600_000_000).raw();
    let visible = now.previous().raw();

    // Committed, not resolved yet.
    fake.lay_intent("a", "x1", 1, visible);
    fake.decide("x1", 1, Record::Committed(visible));
    assert_eq!(value(&client, "a").await, Some(b("intent")));

    // Aborted.
    fake.lay_intent("b", "x2", 2, visible);
    fake.decide("x2", 2, Record::Aborted);
    assert_eq!(value(&client, "b").await, None);

    // Its coordinator died long ago: the push itself aborts it.
    let dead = Timestamp::from_micros(now.micros() - 60_000_000).raw();
    fake.lay_intent("c", "x3", 3, dead);
    assert_eq!(value(&client, "c").await, None);

    // Alive: waited for.
    fake.lay_intent("d", "x4", 4, visible);
    let read = value(&client, "d");
    let decide = async {
        eventually("it is pushed", || fake.count("push") >= 5).await;
        fake.decide("x4", 4, Record::Committed(visible));
    };
    let (found, ()) = tokio::join!(read, decide);
    assert_eq!(found, Some(b("intent")));

    // A holder of intents waits for a younger one and gives way to an older.
    fake.lay_intent("e", "x5", 5, visible);
    let txn = begin(&client);
    put(&txn, "e", "1");
    put(&txn, "z", "1");
    let error = txn.commit().await.unwrap_err();
    assert!(
        matches!(&error, Error::Conflict { key, .. } if *key == b("e")),
        "{error:?}"
    );
    fake.lay_intent("f", "x6", 6, young);
    let txn = begin(&client);
    put(&txn, "f", "1");
    put(&txn, "z", "1");
    let pushes = fake.count("push");
    let decide = async {
        eventually("it is pushed", || fake.count("push") > pushes + 8).await;
        fake.decide("x6", 6, Record::Aborted);
    };
    let (committed, ()) = tokio::join!(txn.commit(), decide);
    committed.unwrap();
}

#[tokio::test]
async fn the_receipt_adds_up() {
    let (_fake, client) = Fake::start(&["m"], LONG);
    let txn = begin(&client);
    txn.get(b"a", None).await.unwrap();
    let first = txn.timing();
    assert!(first.requests >= 1 && first.shard_us >= 1);
    txn.get(b"z", None).await.unwrap();
    assert!(txn.timing().since(&first).requests >= 1);
}

/// A leader that is paused or cut off takes requests and answers none: the
/// other replicas tell, long before its time is over.
#[tokio::test]
async fn a_silent_leader_is_left_for_the_one_that_was_elected() {
    let (fake, client) = Fake::start(&[], LONG);
    set(&client, &[("a", "0"), ("b", "0")]).await;

    // While the others take it for the leader it is waited for.
    fake.plant("get", 1, Fault::Hang);
    let asked = fake.count("get");
    let (found, ()) = tokio::join!(value(&client, "a"), async {
        eventually("it is asked", || fake.count("get") > asked).await;
        fake.0.lock().leader = 3;
    });
    assert_eq!(found, Some(b("0")));

    // A commit that it may have made is decided first (X1), then it can be
    // tried again.
    fake.plant("1pc", 1, Fault::Hang);
    let asked = fake.count("1pc");
    let txn = begin(&client);
    put(&txn, "a", "1");
    let (error, ()) = tokio::join!(txn.commit(), async {
        eventually("it is asked", || fake.count("1pc") > asked).await;
        fake.0.lock().leader = 1;
    });
    assert!(matches!(error, Err(Error::Conflict { .. })), "{error:?}");
    set(&client, &[("a", "2")]).await;
    assert_eq!(value(&client, "a").await, Some(b("2")));
}
