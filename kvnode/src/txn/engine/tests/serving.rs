//! What the engine answers, request by request.

use super::harness::*;
use crate::rules::Rules;
use bytes::Bytes;
use futures::FutureExt;
use lineradb_common::{Timestamp, TxnId, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request, write};
use std::sync::atomic::Ordering;

pub(super) fn shard() -> Shard {
    Shard::new(Rules::default())
}

pub(super) fn body(commit: proto::OnePhaseCommit) -> request::Body {
    request::Body::OnePhaseCommit(commit)
}

pub(super) async fn store(shard: &Shard, key: &'static str, value: &'static str) -> Timestamp {
    let commit = commit(
        lineradb_common::random::txn_id(),
        shard.now(),
        vec![put(key, value)],
    );
    committed(&shard.call(body(commit)).await)
}

pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(super) fn bytes(txn: TxnId) -> Bytes {
    Bytes::copy_from_slice(&txn.0)
}

fn lock(txn: TxnId, key: &'static str, at: Timestamp, wait: bool) -> request::Body {
    request::Body::LockingRead(proto::LockingRead {
        txn: meta(txn, key, at),
        keys: vec![key.into()],
        read_ts: at.raw(),
        wait,
        ..Default::default()
    })
}

fn locked_value(reply: &proto::Reply) -> (Bytes, Timestamp) {
    match &reply.body {
        Some(reply::Body::LockingRead(reply)) => (
            reply.values[0].value.clone(),
            Timestamp::from_raw(reply.read_ts),
        ),
        other => panic!("not locked: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_committed_is_read_and_observed() {
    let shard = shard();
    let at = store(&shard, "x", "1").await;
    let reply = shard.call(get(&["x", "y"], shard.now(), None)).await;
    assert_eq!(values(&reply), [Some("1".into()), None]);
    assert_eq!(reply.observed, at.raw());
    let before = shard.call(get(&["x"], at.previous(), None)).await;
    assert_eq!((values(&before), before.observed), (vec![None], 0));
    // A request that this shard answers alone takes the leader's clock.
    let alone = shard.call(get(&["x"], Timestamp::ZERO, None)).await;
    assert_eq!(values(&alone), [Some("1".into())]);
}

#[tokio::test]
async fn scans_come_in_pages_both_ways() {
    let shard = shard();
    for key in ["a", "b", "c"] {
        store(&shard, key, "v").await;
    }
    for (reverse, first, rest, resume) in [(false, "ab", "c", &b"b\0"[..]), (true, "cb", "a", b"b")]
    {
        let at = shard.now();
        let page = async |span, limit| {
            let scan = proto::Scan {
                span: Some(span),
                reverse,
                limit,
                read_ts: at.raw(),
                ..Default::default()
            };
            match shard.call(request::Body::Scan(scan)).await.body {
                Some(reply::Body::Scan(reply)) => reply,
                other => panic!("not a scan: {other:?}"),
            }
        };
        let keys = |reply: &proto::ScanReply| {
            let keys = reply
                .pairs
                .iter()
                .map(|pair| String::from_utf8_lossy(&pair.key));
            keys.collect::<String>()
        };
        let reply = page(proto::Span::default(), 2).await;
        assert_eq!(
            (&keys(&reply)[..], reply.more, &reply.resume[..]),
            (first, true, resume)
        );
        let mut span = proto::Span::default();
        if reverse {
            span.end = reply.resume;
        } else {
            span.start = reply.resume;
        }
        let reply = page(span, 2).await;
        assert_eq!((&keys(&reply)[..], reply.more), (rest, false));
    }
}

#[tokio::test]
async fn a_commit_that_moves_checks_what_it_read() {
    let shard = shard();
    let r = shard.now();
    store(&shard, "x", "new").await;
    let mut moved = commit(id(1), r, vec![put("x", "mine")]);
    moved.reads = vec![point("y")];
    let at = committed(&shard.call(body(moved)).await);
    assert!(at > r);
    let mut stale = commit(id(2), r, vec![put("x", "mine")]);
    stale.reads = vec![proto::Span::default()];
    let reply = shard.call(body(stale)).await;
    assert_eq!(code(&reply), Some(ErrorCode::WriteConflict));
    // Read elsewhere: the client refreshes, with the same id or another.
    let mut elsewhere = commit(id(3), r, vec![put("x", "mine")]);
    elsewhere.reads_elsewhere = true;
    let reply = shard.call(body(elsewhere.clone())).await;
    let Some(reply::Body::OnePhaseCommit(reply)) = reply.body else {
        panic!("{reply:?}");
    };
    assert_eq!(reply.commit_ts, 0);
    elsewhere.read_ts = reply.needs_ts;
    let again = committed(&shard.call(body(elsewhere)).await);
    assert_eq!(again.raw(), reply.needs_ts);
}

#[tokio::test]
async fn failed_conditions_name_the_key_and_are_reads() {
    let shard = shard();
    let r = shard.now();
    let at = store(&shard, "x", "1").await;
    let mut write = put("x", "2");
    write.condition = Some(write::Condition::Absent(true));
    let reply = shard
        .call(body(commit(id(1), r, vec![write.clone()])))
        .await;
    assert_eq!(code(&reply), Some(ErrorCode::ConditionFailed));
    assert_eq!(reply.observed, at.raw());
    write.condition = Some(write::Condition::Exists(true));
    write.target = put("gone", "").target;
    let later = shard.now().plus_micros(1_000);
    let reply = shard.call(body(commit(id(2), later, vec![write]))).await;
    assert_eq!(code(&reply), Some(ErrorCode::ConditionFailed));
    // Nobody makes it exist below the refusal.
    let other = committed(
        &shard
            .call(body(commit(id(3), r, vec![put("gone", "")])))
            .await,
    );
    assert!(other > later);
}

#[tokio::test]
async fn reads_wait_for_writes_in_flight_at_or_below_them() {
    let shard = shard();
    let at = shard.now();
    Shard::pause(&shard.shared.proposals);
    let engine = shard.engine.clone();
    let write = spawn::task("write", async move {
        call(&engine, body(commit(id(1), at, vec![put("x", "1")])), &[]).await
    });
    settle().await;
    assert_eq!(
        values(&shard.call(get(&["x"], at.previous(), None)).await),
        [None]
    );
    let engine = shard.engine.clone();
    let mut read = spawn::task("read", async move {
        call(&engine, get(&["x"], at, None), &[]).await
    });
    settle().await;
    assert!((&mut read).now_or_never().is_none());
    resume(&shard.shared.proposals);
    assert_eq!(committed(&write.await.unwrap()), at);
    assert_eq!(values(&read.await.unwrap()), [Some("1".into())]);
}

#[tokio::test]
async fn latches_outlive_a_client_that_goes_away() {
    let shard = shard();
    Shard::pause(&shard.shared.proposals);
    let r = shard.now();
    {
        let mut gone = Box::pin(shard.call(body(commit(id(1), r, vec![put("x", "1")]))));
        assert!((&mut gone).now_or_never().is_none());
    }
    let engine = shard.engine.clone();
    let at = shard.now();
    let mut read = spawn::task("read", async move {
        call(&engine, get(&["x"], at, None), &[]).await
    });
    settle().await;
    assert!((&mut read).now_or_never().is_none());
    resume(&shard.shared.proposals);
    assert_eq!(values(&read.await.unwrap()), [Some("1".into())]);
}

#[tokio::test]
async fn an_unknown_outcome_keeps_its_latches_for_the_term() {
    let shard = shard();
    shard.shared.lose.store(1, Ordering::SeqCst);
    let reply = shard
        .call(body(commit(id(1), shard.now(), vec![put("x", "1")])))
        .await;
    assert_eq!(code(&reply), Some(ErrorCode::OutcomeUnknown));
    shard.shared.lose.store(0, Ordering::SeqCst);
    let mut read = Box::pin(shard.call(get(&["x"], shard.now(), None)));
    assert!((&mut read).now_or_never().is_none());
    shard.engine.lost_leadership();
    assert_eq!(code(&read.await), Some(ErrorCode::NotLeader));
}

#[tokio::test]
async fn locks_are_passed_on_and_show_the_newest_version() {
    let shard = shard();
    let r = shard.now();
    assert_eq!(
        locked_value(&shard.call(lock(id(1), "x", r, true)).await).1,
        r
    );
    let taken = shard.call(lock(id(2), "x", r, false)).await;
    assert_eq!(code(&taken), Some(ErrorCode::Locked));
    let engine = shard.engine.clone();
    let second = spawn::task("second", async move {
        call(&engine, lock(id(2), "x", r, true), &[]).await
    });
    settle().await;
    let mut first = commit(id(1), r, vec![put("x", "1")]);
    first.reads = vec![point("x")];
    let at = committed(&shard.call(body(first)).await);
    assert_eq!(at, r);
    assert_eq!(locked_value(&second.await.unwrap()), ("1".into(), r));
    // Others that hold no lock wait behind it; a stale `replaces` is a retry.
    let engine = shard.engine.clone();
    let third = spawn::task("third", async move {
        let mut write = put("x", "3");
        write.condition = Some(write::Condition::Replaces(at.raw()));
        call(&engine, body(commit(id(3), r, vec![write])), &[]).await
    });
    settle().await;
    committed(
        &shard
            .call(body(commit(id(2), r, vec![put("x", "2")])))
            .await,
    );
    assert_eq!(code(&third.await.unwrap()), Some(ErrorCode::WriteConflict));
    let release = proto::ReleaseLocks {
        txn_id: bytes(id(2)),
    };
    shard.call(request::Body::ReleaseLocks(release)).await;
    assert_eq!(shard.engine.lead().unwrap().locks.locked(), 0);
}

#[tokio::test]
async fn of_a_circle_the_youngest_hears_of_the_deadlock() {
    // Equally old: the larger id is taken for the younger.
    for (first, last) in [(id(1), id(2)), (id(2), id(1))] {
        let shard = shard();
        let r = shard.now();
        shard.call(lock(first, "x", r, true)).await;
        shard.call(lock(last, "y", r, true)).await;
        let wait_for = |txn, key| {
            let engine = shard.engine.clone();
            spawn::task("waits", async move {
                call(&engine, lock(txn, key, r, true), &[]).await
            })
        };
        let waits = wait_for(first, "y");
        settle().await;
        let closes = wait_for(last, "x");
        let (older, younger) = if first == id(1) {
            (waits, closes)
        } else {
            (closes, waits)
        };
        let reply = younger.await.unwrap();
        assert_eq!(code(&reply), Some(ErrorCode::Deadlock));
        let release = proto::ReleaseLocks {
            txn_id: bytes(id(2)),
        };
        shard.call(request::Body::ReleaseLocks(release)).await;
        assert_eq!(code(&older.await.unwrap()), None);
    }
}

#[tokio::test]
async fn timestamps_from_broken_clocks_are_refused() {
    let shard = shard();
    let far = shard.now().plus_micros(2_000_000);
    let reply = shard.call(get(&["x"], far, None)).await;
    assert_eq!(code(&reply), Some(ErrorCode::TimestampOutOfRange));
    let reply = shard
        .call(body(commit(id(1), far, vec![put("x", "1")])))
        .await;
    assert_eq!(code(&reply), Some(ErrorCode::TimestampOutOfRange));
    let old = commit(id(1), shard.now(), vec![put("x", "1")]);
    shard.clock.advance(601_000_000);
    assert_eq!(
        code(&shard.call(body(old)).await),
        Some(ErrorCode::AttemptTooOld)
    );
}

#[tokio::test]
async fn a_split_takes_the_middle_and_old_routes_are_told() {
    let shard = shard();
    let keys = ["a", "b", "c", "d", "e", "f"];
    for key in keys {
        store(&shard, key, "v").await;
    }
    let split = proto::Split {
        split_key: Bytes::new(),
        new_shard_id: 9,
    };
    let reply = shard.call(request::Body::Split(split)).await;
    let Some(reply::Body::Split(reply)) = reply.body else {
        panic!("not split: {reply:?}");
    };
    assert_eq!(reply.split_key, "d");
    let stale = proto::Request {
        shard_version: 1,
        body: Some(get(&["a"], shard.now(), None)),
        ..Default::default()
    };
    let reply = shard.engine.handle(stale, 0).await;
    assert_eq!(code(&reply), Some(ErrorCode::ShardChanged));
    let outside = shard.call(get(&["e"], shard.now(), None)).await;
    assert_eq!(code(&outside), Some(ErrorCode::ShardChanged));
}
