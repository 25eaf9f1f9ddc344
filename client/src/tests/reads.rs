//! Reads merged with own writes, locking reads, fragments.

use super::fake::{Fake, Fault};
use super::*;
use crate::{Error, FragmentRequest, LockOptions, ScanOptions};
use arrow::array::AsArray;
use futures::TryStreamExt;
use lineradb_common::clock::{Clock, Interval, LoneClock};
use lineradb_proto::shard::v1::ErrorCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

async fn filled() -> (Fake, Client) {
    let (fake, client) = Fake::start(&["d", "k"], LONG);
    let letters: Vec<String> = ('a'..='o').map(String::from).collect();
    let pairs: Vec<(&str, &str)> = letters.iter().map(|l| (l.as_str(), l.as_str())).collect();
    set(&client, &pairs).await;
    eventually("intents are resolved", || fake.intents() == 0).await;
    (fake, client)
}

fn with_writes(client: &Client) -> Transaction {
    let txn = begin(client);
    put(&txn, "bb", "new");
    put(&txn, "e", "E");
    txn.delete(b("f"), WriteOptions::default()).unwrap();
    txn.delete(b("o"), WriteOptions::default()).unwrap();
    put(&txn, "p", "P");
    txn
}

fn expected() -> Vec<(Bytes, Bytes)> {
    "a b bb=new c d e=E g h i j k l m n p=P"
        .split(' ')
        .map(|pair| pair.split_once('=').unwrap_or((pair, pair)))
        .map(|(k, v)| (b(k), b(v)))
        .collect()
}

#[tokio::test]
async fn scans_merge_own_writes_over_shards_and_pages() {
    let (_fake, client) = filled().await;
    let txn = with_writes(&client);
    let forward = txn.scan(all(), ScanOptions::default(), None).await.unwrap();
    assert_eq!(forward, expected());
    for limit in 1..=16 {
        for reverse in [false, true] {
            let options = ScanOptions { reverse, limit };
            let got = txn.scan(all(), options, None).await.unwrap();
            let mut want = expected();
            if reverse {
                want.reverse();
            }
            want.truncate(limit as usize);
            assert_eq!(got, want, "limit {limit}, reverse {reverse}");
        }
    }
    let part = txn
        .scan(Span::new("c", "h"), ScanOptions::default(), None)
        .await
        .unwrap();
    assert_eq!(part, expected()[3..7].to_vec());
    txn.commit().await.unwrap();
    let after = begin(&client);
    let after = after
        .scan(all(), ScanOptions::default(), None)
        .await
        .unwrap();
    assert_eq!(after, expected());
}

#[tokio::test]
async fn a_limited_scan_reads_no_further_than_it_went() {
    let (_fake, client) = filled().await;
    let txn = begin(&client);
    let options = ScanOptions {
        reverse: false,
        limit: 2,
    };
    txn.scan(all(), options, None).await.unwrap();
    // "c" was not read: a later write of it is no conflict.
    set(&client, &[("c", "changed")]).await;
    value(&client, "zz").await;
    put(&txn, "zz", "1");
    txn.commit().await.unwrap();
}

#[tokio::test]
async fn savepoints_undo_writes() {
    let (_fake, client) = filled().await;
    let txn = begin(&client);
    put(&txn, "a", "1");
    let mark = txn.savepoint();
    put(&txn, "a", "2");
    put(&txn, "b", "2");
    txn.rollback_to(&mark);
    assert_eq!(txn.get(b"a", None).await.unwrap(), Some(b("1")));
    assert_eq!(txn.get(b"b", None).await.unwrap(), Some(b("b")));
    assert!(txn.has_writes());
}

fn rows(batches: &[arrow::record_batch::RecordBatch]) -> Vec<(Bytes, Bytes)> {
    let mut out = Vec::new();
    for batch in batches {
        let keys = batch.column(0).as_binary::<i32>();
        let values = batch.column(1).as_binary::<i32>();
        for i in 0..batch.num_rows() {
            out.push((
                Bytes::copy_from_slice(keys.value(i)),
                Bytes::copy_from_slice(values.value(i)),
            ));
        }
    }
    out
}

async fn run_fragment(txn: &Transaction, limit: u64, split: Option<&Fake>) -> Vec<(Bytes, Bytes)> {
    let parts = txn.fragment(FragmentRequest {
        span: all(),
        limit,
        ..FragmentRequest::default()
    });
    if let Some(fake) = split {
        fake.0.lock().split(b"f");
    }
    let mut out = Vec::new();
    for part in parts {
        let batches: Vec<_> = part.stream().try_collect().await.unwrap();
        let rows = rows(&batches);
        assert!(limit == 0 || rows.len() as u64 <= limit);
        out.extend(rows);
    }
    out
}

#[tokio::test]
async fn fragments_see_own_writes_and_survive_a_split() {
    let (fake, client) = filled().await;
    let txn = with_writes(&client);
    assert_eq!(txn.fragment(FragmentRequest::default()).len(), 3);
    assert_eq!(run_fragment(&txn, 0, None).await, expected());
    assert_eq!(run_fragment(&txn, 0, Some(&fake)).await, expected());
    let limited = run_fragment(&txn, 2, None).await;
    assert_eq!(limited[..2], expected()[..2]);
    fake.plant("fragment", 1, Fault::Refuse(ErrorCode::Execution));
    let parts = txn.fragment(FragmentRequest::default());
    let failed: crate::Result<Vec<_>> = parts[0].stream().try_collect().await;
    assert!(matches!(failed, Err(crate::Error::Execution { .. })));
}

/// L5: an error that rows have caused is a read of these rows. A transaction
/// that goes on after it, from a savepoint, rests on it.
#[tokio::test]
async fn what_a_failed_fragment_has_seen_was_read() {
    let (fake, client) = filled().await;
    let txn = begin(&client);
    fake.plant("fragment", 1, Fault::Refuse(ErrorCode::Execution));
    let parts = txn.fragment(FragmentRequest {
        span: all(),
        ..FragmentRequest::default()
    });
    let failed: crate::Result<Vec<_>> = parts[0].stream().try_collect().await;
    assert!(matches!(failed, Err(crate::Error::Execution { .. })));
    set(&client, &[("c", "changed")]).await;
    // Somebody reads what it writes, so that its commit moves over the change.
    value(&client, "zz").await;
    put(&txn, "zz", "1");
    let error = txn.commit().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

/// X0: a locking read answers the newest version and moves the read timestamp;
/// what was read before must still hold.
#[tokio::test]
async fn locking_reads_move_the_read_timestamp() {
    let (fake, client) = filled().await;
    let (moves, stays) = (begin(&client), begin(&client));
    for txn in [&moves, &stays] {
        txn.get(b"a", None).await.unwrap();
    }
    let before = moves.read_timestamp();
    set(&client, &[("m", "younger")]).await;
    let lock = |txn: Transaction| async move {
        txn.locking_get(&[b("m"), b("b")], None, LockOptions::default())
            .await
    };
    let values = lock(moves.clone()).await.unwrap();
    assert_eq!(values, vec![Some(b("younger")), Some(b("b"))]);
    assert!(moves.read_timestamp() > before);
    // Again: already locked, answered from the same state.
    assert_eq!(lock(moves.clone()).await.unwrap(), values);
    put(&moves, "m", "mine");
    let own = lock(moves.clone()).await.unwrap();
    assert_eq!(own[0], Some(b("mine")));
    moves.commit().await.unwrap();
    eventually("locks are released", || fake.locks() == 0).await;

    set(&client, &[("a", "changed")]).await;
    set(&client, &[("m", "younger still")]).await;
    let error = lock(stays.clone()).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

/// L4: once the leader has closed a timestamp the nearest replica answers, as long as
/// what is read lies below; the leader may be gone.
#[tokio::test]
async fn the_past_is_read_from_the_nearest_replica() {
    let (fake, client) = filled().await;
    let past = client.clock().now().unwrap().earliest;
    let read = async |at| {
        let options = TransactionOptions {
            read_only: true,
            read_at: Some(at),
            ..TransactionOptions::default()
        };
        let txn = client.begin(options).unwrap();
        let pairs = txn.scan(all(), ScanOptions::default(), None).await.unwrap();
        pairs.len()
    };
    // Nothing is known yet: the leaders answer, and are asked to close a timestamp.
    assert_eq!(read(past).await, 15);
    assert!(fake.count("scan") > 0);
    let shards = 3;
    eventually("all shards are closed", || fake.count("close") >= shards).await;
    let deadline = lineradb_common::clock::deadline_after(LONG);
    let mut pause = crate::backoff::Backoff::routing();
    let asked = loop {
        let asked = fake.count("scan");
        assert_eq!(read(past).await, 15);
        if fake.count("scan") == asked {
            break asked;
        }
        assert!(pause.pause(deadline).await, "the leaders go on to be asked");
    };
    // Node 3 is in the client's zone. From here on nobody needs a leader.
    fake.plant("scan", usize::MAX, Fault::Hang);
    assert_eq!(read(past).await, 15);
    assert!(fake.0.lock().closed_reads.iter().all(|node| *node == 3));
    // What is not closed yet is the leader's.
    fake.heal();
    fake.plant("close", usize::MAX, Fault::Hang);
    read(client.clock().now().unwrap().earliest).await;
    assert!(fake.count("scan") > asked);
}

/// A clock that can be found wrong.
#[derive(Debug)]
struct Doubtful(Arc<LoneClock>, AtomicU64);

impl Clock for Doubtful {
    fn now(&self) -> lineradb_common::Result<Interval> {
        self.0.now()
    }

    fn generation(&self) -> u64 {
        self.1.load(Ordering::Acquire)
    }
}

/// T1: a clock that was behind has let it read what was overwritten before it began.
#[tokio::test]
async fn what_was_read_by_a_wrong_clock_is_not_committed() {
    let (fake, _) = filled().await;
    let clock = Arc::new(Doubtful(LoneClock::start(), AtomicU64::new(0)));
    let client = fake.client_by(clock.clone(), LONG);
    let reader = begin(&client);
    let writer = begin(&client);
    assert_eq!(reader.get(b"a", None).await.unwrap(), Some(b("a")));
    let locked = [b("a")];
    let options = LockOptions::default();
    writer.locking_get(&locked, None, options).await.unwrap();
    put(&writer, "a", "A");
    let sound = begin(&client);
    sound.commit().await.unwrap();
    clock.1.fetch_add(1, Ordering::AcqRel);
    for transaction in [reader, writer] {
        let refused = transaction.commit().await.unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    }
    eventually("locks go back", || fake.locks() == 0).await;
    let again = begin(&client);
    assert_eq!(again.get(b"a", None).await.unwrap(), Some(b("a")));
    again.commit().await.unwrap();
}
