//! X5: what the collection of old versions must not break. Where a rule stands
//! behind it, the history is also seen to go wrong without.

use super::harness::*;
use crate::mvcc::{self, Store, keys};
use crate::rules::{Rule, Rules};
use crate::txn::Protected;
use lineradb_common::Timestamp;
use lineradb_common::limits::HISTORY_MIN;
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request};
use std::sync::atomic::Ordering;

const MINUTE: u64 = 60_000_000;

fn body(commit: proto::OnePhaseCommit) -> request::Body {
    request::Body::OnePhaseCommit(commit)
}

/// Raises the threshold above everything there is, and sweeps below it.
async fn collect(shard: &Shard, engine: &TestEngine) {
    collect_but(shard, engine, None).await;
}

/// As far as this timestamp allows.
async fn collect_but(shard: &Shard, engine: &TestEngine, oldest: Option<Timestamp>) {
    engine.keep_history(HISTORY_MIN);
    for _ in 0..4 {
        shard.clock.advance(12 * MINUTE);
        let as_of = shard.now();
        let protected = Some(Protected { as_of, oldest });
        engine.collect(protected).await.unwrap();
    }
}

fn refresh(from: Timestamp, to: Timestamp) -> request::Body {
    request::Body::Refresh(proto::Refresh {
        spans: vec![point("x")],
        from_ts: from.raw(),
        to_ts: to.raw(),
        ..Default::default()
    })
}

/// A transaction reads again what it has read at the start, long after.
async fn x5(rules: Rules) -> Result<Option<bytes::Bytes>, ErrorCode> {
    let shard = Shard::new(rules);
    let write = async |txn, value| {
        let commit = commit(id(txn), shard.now(), vec![put("x", value)]);
        committed(&shard.call(body(commit)).await);
    };
    write(1, "1").await;
    let start = shard.now();
    write(2, "2").await;
    collect(&shard, &shard.engine).await;
    let now = shard.call(get(&["x"], shard.now(), None)).await;
    assert_eq!(values(&now)[0].as_deref(), Some(&b"2"[..]));
    if rules.hold(Rule::ThresholdRefuses) {
        let mut late = commit(id(3), start, vec![put("y", "late")]);
        late.txn = meta(id(3), "y", shard.now());
        for request in [body(late), refresh(start, shard.now())] {
            let refused = shard.call(request).await;
            assert_eq!(code(&refused), Some(ErrorCode::TimestampOutOfRange));
            let Some(reply::Body::Error(error)) = refused.body else {
                unreachable!()
            };
            assert_eq!(error.sqlstate, "72000");
        }
        // A new leader knows before it has collected anything itself.
        let next = shard.elect();
        let refused = call(&next, get(&["x"], start, None), &[]).await;
        assert_eq!(code(&refused), Some(ErrorCode::TimestampOutOfRange));
        shard.undo_election();
    }
    let again = shard.call(get(&["x"], start, None)).await;
    match code(&again) {
        Some(code) => Err(code),
        None => Ok(values(&again)[0].clone()),
    }
}

#[tokio::test]
async fn x5_nothing_is_read_below_the_threshold() {
    let refused = x5(Rules::default()).await;
    assert_eq!(refused, Err(ErrorCode::TimestampOutOfRange));
    let wrong = x5(Rules::without(Rule::ThresholdRefuses)).await;
    assert_eq!(wrong, Ok(None), "a row that was there is missing");
}

/// A long read goes on reading where it began, until it is over; whoever has not been
/// told what is protected collects nothing new.
#[tokio::test]
async fn x5_what_is_protected_is_kept() {
    let shard = Shard::new(Rules::default());
    let write = async |txn, value| {
        let commit = commit(id(txn), shard.now(), vec![put("x", value)]);
        committed(&shard.call(body(commit)).await);
    };
    write(1, "1").await;
    write(2, "2").await;
    let start = shard.now();
    write(3, "3").await;
    let read = || shard.call(get(&["x"], start, None));
    collect_but(&shard, &shard.engine, Some(start)).await;
    let threshold = shard.engine.lead().unwrap().threshold();
    assert_eq!(threshold, start, "what is older may go");
    assert_eq!(values(&read().await)[0].as_deref(), Some(&b"2"[..]));
    // Nothing comes of another sweep before it is time for one.
    let swept = || shard.engine.lead().unwrap().collection().swept;
    let last = swept();
    for _ in 0..10 {
        shard.clock.advance(MINUTE);
        shard.collect(Some(start)).await.unwrap();
    }
    assert_eq!(swept(), last);
    // Hours later, with an answer of before it was protected.
    let as_of = start.plus_micros(HISTORY_MIN.as_micros() as u64);
    for protected in [
        None,
        Some(Protected {
            as_of,
            oldest: None,
        }),
    ] {
        for _ in 0..40 {
            shard.clock.advance(12 * MINUTE);
            shard.engine.collect(protected).await.unwrap();
        }
        assert_eq!(values(&read().await)[0].as_deref(), Some(&b"2"[..]));
    }
    // X2: it may read that far back, not write.
    let mut late = commit(id(4), start, vec![put("y", "late")]);
    late.txn = meta(id(4), "y", shard.now());
    let refused = shard.call(body(late)).await;
    assert_eq!(code(&refused), Some(ErrorCode::TimestampOutOfRange));
    collect(&shard, &shard.engine).await;
    assert_eq!(code(&read().await), Some(ErrorCode::TimestampOutOfRange));
}

/// X1: the reply of a commit is lost, its version is overwritten and collected.
/// Whoever asks then is not told that it was aborted.
#[tokio::test]
async fn x1_a_collected_commit_is_not_called_aborted() {
    let shard = Shard::new(Rules::default());
    let lost = shard.now();
    shard.shared.lose.store(1, Ordering::SeqCst);
    let reply = shard
        .call(body(commit(id(1), lost, vec![put("x", "1")])))
        .await;
    assert_eq!(code(&reply), Some(ErrorCode::OutcomeUnknown));
    shard.shared.lose.store(0, Ordering::SeqCst);
    let leader = shard.elect();
    let _ = leader.lead();
    shard.clock.advance(60_000);
    let found = call(&leader, push(id(1), "x", lost, true), &[]).await;
    assert!(matches!(
        pushed(&found),
        proto::push_reply::Status::Committed(_)
    ));
    let second = commit(id(2), shard.now(), vec![put("x", "2")]);
    committed(&call(&leader, body(second), &[]).await);
    collect(&shard, &leader).await;
    let asked = call(&leader, push(id(1), "x", lost, true), &[]).await;
    assert_eq!(code(&asked), Some(ErrorCode::AttemptTooOld));
    // And it cannot arrive once more.
    let late = call(&leader, body(commit(id(1), lost, vec![put("x", "1")])), &[]).await;
    assert_eq!(code(&late), Some(ErrorCode::AttemptTooOld));
}

/// The sweep comes eleven minutes after the raise at the earliest: until then a
/// push of any attempt that may have written below still finds it.
#[tokio::test]
async fn a_threshold_is_in_force_before_it_is_swept() {
    let shard = Shard::new(Rules::default());
    for n in 0..5 {
        let commit = commit(id(n), shard.now(), vec![put("x", "value")]);
        committed(&shard.call(body(commit)).await);
    }
    let versions = || {
        let place = crate::mvcc::keys::addressable(b"x");
        let snapshot = crate::mvcc::Store::snapshot(&shard.shared.store);
        crate::mvcc::versions_of(&snapshot, &place, Timestamp::MAX)
            .unwrap()
            .len()
    };
    shard.engine.keep_history(HISTORY_MIN);
    shard.clock.advance(60 * MINUTE);
    shard.collect(None).await.unwrap();
    for _ in 0..10 {
        shard.clock.advance(MINUTE);
        shard.collect(None).await.unwrap();
    }
    assert!(shard.engine.lead().unwrap().threshold().is_zero());
    shard.clock.advance(2 * MINUTE);
    shard.collect(None).await.unwrap();
    let raised = shard.engine.lead().unwrap().threshold();
    assert!(!raised.is_zero());
    for _ in 0..10 {
        shard.clock.advance(MINUTE);
        shard.collect(None).await.unwrap();
        assert_eq!(versions(), 5);
    }
    shard.clock.advance(2 * MINUTE);
    shard.collect(None).await.unwrap();
    assert_eq!(versions(), 1);
    // Nothing is left to do for a shard that nobody writes to.
    shard.clock.advance(12 * MINUTE);
    shard.collect(None).await.unwrap();
    let idle = shard.engine.lead().unwrap().threshold();
    for _ in 0..5 {
        shard.clock.advance(12 * MINUTE);
        shard.collect(None).await.unwrap();
    }
    assert_eq!(shard.engine.lead().unwrap().threshold(), idle);
}

/// A write lands behind the sweep while the sweep is under way: what it
/// overwrote is collected later, without another write.
#[tokio::test]
async fn x5_a_write_during_the_sweep_begins_it_anew() {
    let shard = Shard::new(Rules::default());
    let write = |txn, value| {
        let commit = commit(id(txn), shard.now(), vec![put("x", value)]);
        shard.call(body(commit))
    };
    committed(&write(1, "1").await);
    committed(&write(2, "2").await);
    shard.engine.keep_history(HISTORY_MIN);
    for _ in 0..2 {
        shard.clock.advance(12 * MINUTE);
        shard.collect(None).await.unwrap();
    }
    shard.clock.advance(12 * MINUTE);
    // The sweep has looked at the key and proposes; then comes the write.
    let (swept, written) = tokio::join!(shard.collect(None), write(3, "3"));
    swept.unwrap();
    committed(&written);
    let versions = || {
        let key = keys::addressable(b"x");
        mvcc::versions_of(&shard.shared.store.snapshot(), &key, Timestamp::MAX).unwrap()
    };
    assert_eq!(versions().len(), 2, "the oldest is gone");
    collect(&shard, &shard.engine).await;
    assert_eq!(versions().len(), 1);
}
