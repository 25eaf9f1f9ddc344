//! L4: closed timestamps, and the reads by any replica that rest on them. Each history
//! runs twice: with all rules, and without the one that keeps it from going wrong.

use super::harness::*;
use super::serving::{body, settle, shard, store};
use crate::mvcc::memory::MemoryStore;
use crate::rules::{Rule, Rules};
use crate::txn::Consensus;
use bytes::Bytes;
use lineradb_common::{Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request};

/// More than timestamps are closed behind the clock.
const LONG_US: u64 = 4_000_000;

async fn close(engine: &TestEngine) -> Result<proto::Closed, proto::Reply> {
    let reply = call(engine, request::Body::Close(proto::Close {}), &[]).await;
    match reply.body {
        Some(reply::Body::Close(proto::CloseReply {
            closed: Some(closed),
        })) => Ok(closed),
        _ => Err(reply),
    }
}

/// A read by a replica that was told what is closed.
async fn read(
    engine: &TestEngine,
    body: request::Body,
    schema: &[(u64, u64)],
    closed: proto::Closed,
) -> proto::Reply {
    let request = proto::Request {
        shard_id: SHARD.0,
        shard_version: engine.consensus().descriptor().version,
        timeout_ms: 60_000,
        schema: { schema.iter() }
            .map(|(table_id, version)| proto::SchemaVersion {
                table_id: *table_id,
                version: *version,
            })
            .collect(),
        closed: Some(closed),
        body: Some(body),
        ..Default::default()
    };
    engine.handle(request, 0).await
}

async fn value(engine: &TestEngine, key: &'static str, closed: proto::Closed) -> Option<Bytes> {
    let at = Timestamp::from_raw(closed.timestamp);
    let reply = read(engine, get(&[key], at, None), &[], closed).await;
    values(&reply).remove(0)
}

/// A transaction that began seconds ago commits after a timestamp was closed. Answers
/// whether it lands where replicas may have read already.
async fn late_commit(rules: Rules) -> bool {
    let shard = Shard::new(rules);
    let began = shard.now();
    shard.clock.advance(LONG_US);
    let closed = close(&shard.engine).await.unwrap();
    assert!(began.raw() < closed.timestamp);
    let late = commit(id(1), began, vec![put("x", "1")]);
    committed(&shard.call(body(late)).await).raw() <= closed.timestamp
}

#[tokio::test]
async fn l4_nothing_lands_below_what_is_closed() {
    assert!(!late_commit(Rules::default()).await);
    assert!(late_commit(Rules::without(Rule::ClosedIsFloor)).await);
}

/// A commit is under way while a timestamp above it is closed. Answers what two reads at
/// that timestamp see, one as soon as it is closed and one after the commit has landed.
async fn commit_under_way(rules: Rules) -> [Option<Bytes>; 2] {
    let shard = Shard::new(rules);
    let began = shard.now();
    shard.clock.advance(LONG_US);
    Shard::pause(&shard.shared.proposals);
    let engine = shard.engine.clone();
    let under_way = commit(id(1), began, vec![put("x", "1")]);
    let landed = spawn::task("commit", async move {
        call(&engine, body(under_way), &[]).await
    });
    settle().await;
    let engine = shard.engine.clone();
    let closing = spawn::task("close", async move { close(&engine).await });
    settle().await;
    if rules.hold(Rule::ClosedAwaitsWrites) {
        assert!(!closing.is_finished(), "it waits for what is in flight");
        resume(&shard.shared.proposals);
    }
    let closed = closing.await.unwrap().unwrap();
    let first = value(&shard.engine, "x", closed).await;
    resume(&shard.shared.proposals);
    assert!(committed(&landed.await.unwrap()).raw() <= closed.timestamp);
    [first, value(&shard.engine, "x", closed).await]
}

#[tokio::test]
async fn l4_writes_in_flight_land_before_their_time_is_closed() {
    let [first, second] = commit_under_way(Rules::default()).await;
    assert_eq!(
        (first.as_deref(), second.as_deref()),
        (Some(&b"1"[..]), Some(&b"1"[..]))
    );
    let [first, second] = commit_under_way(Rules::without(Rule::ClosedAwaitsWrites)).await;
    assert_eq!(first, None, "the past changes after it was read");
    assert_eq!(second.unwrap(), "1");
}

/// A replica that has not applied an acknowledged write is asked for it.
async fn lagging_replica(rules: Rules) -> proto::Reply {
    let shard = Shard::new(rules);
    store(&shard, "x", "1").await;
    shard.clock.advance(LONG_US);
    let closed = close(&shard.engine).await.unwrap();
    let lags = Shard::unled(rules, shard.clock.clone(), MemoryStore::default(), 5);
    let at = Timestamp::from_raw(closed.timestamp);
    read(&lags.engine, get(&["x"], at, None), &[], closed).await
}

#[tokio::test]
async fn l4_a_replica_that_lags_serves_nothing() {
    let refused = lagging_replica(Rules::default()).await;
    assert_eq!(code(&refused), Some(ErrorCode::Unavailable));
    let stale = lagging_replica(Rules::without(Rule::AppliedBeforeServed)).await;
    assert_eq!(values(&stale), [None], "an acknowledged write is missing");
}

#[tokio::test]
async fn l4_only_a_leader_closes() {
    let shard = shard();
    shard.depose();
    let refused = close(&shard.engine).await.unwrap_err();
    assert_eq!(code(&refused), Some(ErrorCode::NotLeader));
}

#[tokio::test]
async fn what_is_closed_stays_as_it_is_under_every_leader() {
    let shard = shard();
    let written = store(&shard, "x", "1").await;
    shard.clock.advance(LONG_US);
    let closed = close(&shard.engine).await.unwrap();
    assert!(written.raw() <= closed.timestamp);
    let next = shard.elect();
    let _ = next.lead();
    shard.clock.advance(60_000);
    let overwrite = commit(id(2), shard.now(), vec![put("x", "2")]);
    committed(&call(&next, body(overwrite), &[]).await);
    // The deposed leader is a replica like any other.
    for engine in [&shard.engine, &next] {
        assert_eq!(value(engine, "x", closed).await.unwrap(), "1");
    }
    let scan = request::Body::Scan(proto::Scan {
        span: Some(proto::Span::default()),
        read_ts: closed.timestamp,
        ..Default::default()
    });
    match read(&shard.engine, scan, &[], closed).await.body {
        Some(reply::Body::Scan(page)) => assert_eq!(page.pairs.len(), 1),
        other => panic!("not a scan: {other:?}"),
    }
}

/// Whatever is not a plain answer is the leader's business.
#[tokio::test]
async fn a_replica_refuses_what_it_cannot_know() {
    let shard = shard();
    store(&shard, "x", "1").await;
    let began = shard.now();
    let laid = shard
        .call(request::Body::Prewrite(proto::Prewrite {
            txn: meta(id(1), "y", began),
            read_ts: began.raw(),
            writes: vec![put("y", "1")],
            ..Default::default()
        }))
        .await;
    assert_eq!(code(&laid), None);
    shard.clock.advance(LONG_US);
    let closed = close(&shard.engine).await.unwrap();
    let at = Timestamp::from_raw(closed.timestamp);
    let codes = [
        (get(&["x"], at, None), 0, None),
        // It may have been decided since.
        (get(&["y"], at, None), 0, Some(ErrorCode::Locked)),
        (
            get(&["x"], at.next(), None),
            0,
            Some(ErrorCode::InvalidArgument),
        ),
        (
            get(&["x"], Timestamp::ZERO, None),
            0,
            Some(ErrorCode::InvalidArgument),
        ),
        // A schema version that this shard did not have then.
        (get(&["x"], at, None), 7, Some(ErrorCode::Unavailable)),
        (
            push(id(1), "y", began, false),
            0,
            Some(ErrorCode::InvalidArgument),
        ),
    ];
    for (body, version, expected) in codes {
        let what = format!("{body:?}");
        let reply = read(&shard.engine, body, &[(9, version)], closed).await;
        assert_eq!(code(&reply), expected, "{what}");
    }
}
