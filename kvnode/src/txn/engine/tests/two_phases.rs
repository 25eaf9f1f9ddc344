//! Intents, commit records, resolution, refreshes and schema versions.

use super::harness::*;
use super::serving::{body, bytes, settle, shard, store};
use crate::rules::{Rule, Rules};
use lineradb_common::{Timestamp, TxnId, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request};

fn prewrite(txn: TxnId, at: Timestamp, writes: Vec<proto::Write>) -> request::Body {
    request::Body::Prewrite(proto::Prewrite {
        txn: meta(txn, "a", at),
        read_ts: at.raw(),
        writes,
        ..Default::default()
    })
}

fn laid(reply: &proto::Reply) -> Timestamp {
    match &reply.body {
        Some(reply::Body::Prewrite(reply)) => Timestamp::from_raw(reply.timestamp),
        other => panic!("not laid: {other:?}"),
    }
}

fn record(txn: TxnId, attempt: Timestamp, at: Timestamp) -> request::Body {
    request::Body::CommitRecord(proto::CommitRecord {
        txn: meta(txn, "a", attempt),
        commit_ts: at.raw(),
        ..Default::default()
    })
}

fn resolve(txn: TxnId, keys: &[&'static str], at: Timestamp) -> request::Body {
    request::Body::Resolve(proto::Resolve {
        txn_id: bytes(txn),
        keys: keys.iter().map(|key| (*key).into()).collect(),
        commit_ts: at.raw(),
        ..Default::default()
    })
}

fn refresh(span: proto::Span, from: Timestamp, to: Timestamp, txn: TxnId) -> request::Body {
    request::Body::Refresh(proto::Refresh {
        spans: vec![span],
        from_ts: from.raw(),
        to_ts: to.raw(),
        txn_id: bytes(txn),
    })
}

fn refreshed(reply: &proto::Reply) -> bool {
    match &reply.body {
        Some(reply::Body::Refresh(reply)) => reply.ok,
        other => panic!("not a refresh: {other:?}"),
    }
}

#[tokio::test]
async fn two_phases_hide_and_show_everything_together() {
    let shard = shard();
    let r = shard.now();
    let at = laid(
        &shard
            .call(prewrite(id(1), r, vec![put("a", "1"), put("b", "1")]))
            .await,
    );
    // Below the intents all is as before; above, nobody knows.
    assert_eq!(
        values(&shard.call(get(&["a"], at.previous(), None)).await),
        [None]
    );
    let reply = shard.call(get(&["a", "b"], shard.now(), None)).await;
    let Some(reply::Body::Error(error)) = &reply.body else {
        panic!("{reply:?}");
    };
    assert_eq!(error.code(), ErrorCode::Locked);
    assert_eq!(
        (&error.locks[0].key[..], &error.locks[0].anchor[..]),
        (&b"a"[..], &b"a"[..])
    );
    let write = shard
        .call(body(commit(id(2), r, vec![put("b", "2")])))
        .await;
    assert_eq!(code(&write), Some(ErrorCode::Locked));
    // Laid again: nothing changes.
    assert_eq!(
        laid(&shard.call(prewrite(id(1), r, vec![put("a", "1")])).await),
        at
    );
    let young = shard.call(push(id(1), "a", r, false)).await;
    assert_eq!(pushed(&young), proto::push_reply::Status::Pending(true));
    shard.call(record(id(1), r, at)).await;
    // Decided: seen through before anybody resolves.
    let both = [Some("1".into()), Some("1".into())];
    assert_eq!(
        values(&shard.call(get(&["a", "b"], shard.now(), None)).await),
        both
    );
    shard.call(resolve(id(1), &["a", "b"], at)).await;
    assert_eq!(
        values(&shard.call(get(&["a", "b"], shard.now(), None)).await),
        both
    );
    let fate = shard.call(push(id(1), "a", r, true)).await;
    assert_eq!(
        pushed(&fate),
        proto::push_reply::Status::Committed(at.raw())
    );
    committed(
        &shard
            .call(body(commit(id(2), shard.now(), vec![put("b", "2")])))
            .await,
    );
}

/// The part that writes the anchor, `a`, of a transaction that writes `a` and `b`.
fn stage(txn: TxnId, at: Timestamp) -> request::Body {
    request::Body::Prewrite(proto::Prewrite {
        txn: meta(txn, "a", at),
        read_ts: at.raw(),
        min_ts: at.raw(),
        writes: vec![put("a", "1")],
        staged_keys: vec!["a".into(), "b".into()],
    })
}

/// Its other part.
fn other_part(txn: TxnId, at: Timestamp) -> request::Body {
    request::Body::Prewrite(proto::Prewrite {
        txn: meta(txn, "a", at),
        read_ts: at.raw(),
        min_ts: at.raw(),
        writes: vec![put("b", "1")],
        staged_keys: Vec::new(),
    })
}

async fn all_there(shard: &Shard, txn: TxnId, at: Timestamp) -> bool {
    let query = request::Body::QueryIntents(proto::QueryIntents {
        txn_id: bytes(txn),
        commit_ts: at.raw(),
        keys: vec!["a".into(), "b".into()],
    });
    match shard.call(query).await.body {
        Some(reply::Body::QueryIntents(reply)) => reply.all_there,
        other => panic!("not an answer: {other:?}"),
    }
}

async fn verdict(
    shard: &Shard,
    txn: TxnId,
    staged: Timestamp,
    commit: bool,
) -> proto::recover_reply::Status {
    let recover = request::Body::Recover(proto::Recover {
        txn_id: bytes(txn),
        anchor: "a".into(),
        staged_ts: staged.raw(),
        commit,
    });
    match shard.call(recover).await.body {
        Some(reply::Body::Recover(reply)) => reply.status.unwrap(),
        other => panic!("not a verdict: {other:?}"),
    }
}

fn staging(at: Timestamp) -> proto::push_reply::Status {
    proto::push_reply::Status::Staging(proto::Staging {
        commit_ts: at.raw(),
        keys: vec!["a".into(), "b".into()],
    })
}

/// X3: staged, all landed, and then the coordinator dies: the one who meets an
/// intent finds it committed.
#[tokio::test]
async fn x3_what_is_staged_and_has_landed_is_committed() {
    let shard = shard();
    let r = shard.now();
    assert_eq!(laid(&shard.call(stage(id(1), r)).await), r);
    assert_eq!(laid(&shard.call(other_part(id(1), r)).await), r);
    let read = shard.call(get(&["b"], shard.now(), None)).await;
    assert_eq!(code(&read), Some(ErrorCode::Locked));
    // It lives: it will say so itself.
    let pending = proto::push_reply::Status::Pending(true);
    let fate = shard.call(push(id(1), "a", r, false)).await;
    assert_eq!(pushed(&fate), pending);
    shard.clock.advance(5_100_000);
    let fate = shard.call(push(id(1), "a", r, false)).await;
    assert_eq!(pushed(&fate), staging(r));
    assert!(all_there(&shard, id(1), r).await);
    let committed = proto::recover_reply::Status::Committed(r.raw());
    assert_eq!(verdict(&shard, id(1), r, true).await, committed);
    // A slower one comes to the same.
    assert_eq!(verdict(&shard, id(1), r, true).await, committed);
    let both = [Some("1".into()), Some("1".into())];
    assert_eq!(
        values(&shard.call(get(&["a", "b"], shard.now(), None)).await),
        both
    );
    let late = shard.call(record(id(1), r, r)).await;
    assert_eq!(code(&late), None);
}

/// Nobody was told: the coordinator itself gives up what has landed, and asks no
/// other shard for it. Whoever has found that it is committed is late.
#[tokio::test]
async fn a_coordinator_gives_up_what_it_has_staged() {
    let shard = shard();
    let r = shard.now();
    shard.call(stage(id(1), r)).await;
    shard.call(other_part(id(1), r)).await;
    assert!(all_there(&shard, id(1), r).await);
    let fate = shard.call(push(id(1), "a", r, true)).await;
    assert_eq!(pushed(&fate), proto::push_reply::Status::Aborted(true));
    let aborted = proto::recover_reply::Status::Aborted(true);
    assert_eq!(verdict(&shard, id(1), r, true).await, aborted);
    let late = shard.call(other_part(id(2), r)).await;
    assert_eq!(code(&late), Some(ErrorCode::Locked));
}

/// Every write of the part that is staged must be declared, the anchor among them.
#[tokio::test]
async fn what_is_staged_is_declared() {
    let shard = shard();
    let r = shard.now();
    let staged = |writes, keys: &[&'static str]| {
        request::Body::Prewrite(proto::Prewrite {
            txn: meta(id(1), "a", r),
            read_ts: r.raw(),
            min_ts: r.raw(),
            writes,
            staged_keys: keys.iter().map(|key| (*key).into()).collect(),
        })
    };
    for refused in [
        staged(vec![put("b", "1")], &["a", "b"]),
        staged(vec![put("a", "1"), put("b", "1")], &["a", "c"]),
        staged(vec![put("a", "1"), schema_write(7, 1, 0)], &["a"]),
    ] {
        let reply = shard.call(refused).await;
        assert_eq!(code(&reply), Some(ErrorCode::InvalidArgument));
    }
}

/// X3: a write that was pushed is not where it was declared.
#[tokio::test]
async fn x3_a_pushed_write_voids_the_commit() {
    let shard = shard();
    let r = shard.now();
    shard.call(get(&["b"], shard.now(), None)).await;
    shard.call(stage(id(1), r)).await;
    let at = laid(&shard.call(other_part(id(1), r)).await);
    assert!(at > r);
    assert!(!all_there(&shard, id(1), r).await);
    // The anchor pushed: nothing is staged.
    shard.call(get(&["a"], shard.now(), None)).await;
    shard
        .call(resolve(id(1), &["a", "b"], Timestamp::ZERO))
        .await;
    let pushed_stage = shard.call(stage(id(2), r)).await;
    let Some(reply::Body::Prewrite(reply)) = pushed_stage.body else {
        panic!("{pushed_stage:?}");
    };
    assert!(!reply.staged && reply.timestamp > r.raw());
}

/// X3: recovery misses a write and says so; then the write arrives. Without the
/// read it lands where it was declared, and its coordinator acknowledges what
/// recovery aborts.
#[tokio::test]
async fn x3_recovery_keeps_out_what_it_misses() {
    for rule in [true, false] {
        let shard = Shard::new(match rule {
            true => Rules::default(),
            false => Rules::without(Rule::RecoveryReadsMissing),
        });
        let r = shard.now();
        shard.call(stage(id(1), r)).await;
        shard.clock.advance(5_100_000);
        let fate = shard.call(push(id(1), "a", r, false)).await;
        assert_eq!(pushed(&fate), staging(r));
        assert!(!all_there(&shard, id(1), r).await);
        let at = laid(&shard.call(other_part(id(1), r)).await);
        let acknowledged = at == r;
        assert_eq!(acknowledged, !rule);
        let aborted = proto::recover_reply::Status::Aborted(true);
        assert_eq!(verdict(&shard, id(1), r, false).await, aborted);
    }
}

/// X3: recovery looks at what is staged at 100; meanwhile the coordinator, whose
/// write was pushed to 105, commits there. The verdict on 100 is none on that.
#[tokio::test]
async fn x3_a_verdict_is_one_on_what_was_looked_at() {
    for rule in [true, false] {
        let shard = Shard::new(match rule {
            true => Rules::default(),
            false => Rules::without(Rule::VerdictCompares),
        });
        let r = shard.now();
        shard.call(get(&["b"], shard.now(), None)).await;
        shard.call(stage(id(1), r)).await;
        let at = laid(&shard.call(other_part(id(1), r)).await);
        assert!(at > r);
        assert!(!all_there(&shard, id(1), r).await);
        let acknowledged = shard.call(record(id(1), r, at)).await;
        assert_eq!(code(&acknowledged), None);
        let kept = proto::recover_reply::Status::Committed(at.raw());
        assert_eq!(verdict(&shard, id(1), r, false).await == kept, rule);
    }
}

fn forget(txns: &[TxnId]) -> request::Body {
    let at = |txn: &TxnId| proto::RecordAt {
        anchor: "a".into(),
        txn_id: bytes(*txn),
    };
    request::Body::ForgetRecords(proto::ForgetRecords {
        records: txns.iter().map(at).collect(),
    })
}

/// X3: the record of a finished commit is deleted, and then a message of the
/// attempt arrives a second time.
#[tokio::test]
async fn x3_the_first_version_answers_for_a_forgotten_record() {
    let shard = shard();
    let r = shard.now();
    let write = || prewrite(id(1), r, vec![put("a", "1"), put("b", "1")]);
    let at = laid(&shard.call(write()).await);
    shard.call(record(id(1), r, at)).await;
    // Not resolved: the record is all that there is.
    shard.call(forget(&[id(1)])).await;
    let fate = shard.call(push(id(1), "a", r, true)).await;
    let committed = proto::push_reply::Status::Committed(at.raw());
    assert_eq!(pushed(&fate), committed);
    assert_eq!(shard.records(), 1);
    shard.call(resolve(id(1), &["a", "b"], at)).await;
    // An aborted attempt is not forgotten this way: it may still arrive.
    shard.call(push(id(2), "a", r, true)).await;
    shard.call(forget(&[id(1), id(2), id(3)])).await;
    assert_eq!(shard.records(), 1);

    let again = laid(&shard.call(write()).await);
    assert!(again > at);
    let fate = shard.call(push(id(1), "a", r, true)).await;
    assert_eq!(pushed(&fate), committed);
    shard.call(resolve(id(1), &["a", "b"], at)).await;
    let both = [Some("1".into()), Some("1".into())];
    assert_eq!(
        values(&shard.call(get(&["a", "b"], shard.now(), None)).await),
        both
    );
    let later = shard.call(get(&["a"], at, None)).await;
    assert_eq!(values(&later), [Some("1".into())]);
}

/// X3: the intent was laid at the next leader; the one before it, which never had
/// it, is asked to resolve it, and the record would be forgotten.
#[tokio::test]
async fn x3_a_deposed_leader_does_not_say_that_nothing_is_left() {
    for rule in [true, false] {
        let shard = Shard::new(match rule {
            true => Rules::default(),
            false => Rules::without(Rule::NothingLeftConfirmed),
        });
        let at = shard.now();
        shard.depose();
        let reply = shard.call(resolve(id(1), &["a"], at)).await;
        assert_eq!(code(&reply).is_some(), rule, "{reply:?}");
    }
}

#[tokio::test]
async fn a_resolution_wakes_those_who_wait() {
    let shard = shard();
    let r = shard.now();
    shard.call(prewrite(id(1), r, vec![put("a", "1")])).await;
    let engine = shard.engine.clone();
    let at = shard.now();
    let read = spawn::task("read", async move {
        call(&engine, get(&["a"], at, None), &[]).await
    });
    settle().await;
    shard.call(resolve(id(1), &["a"], Timestamp::ZERO)).await;
    assert_eq!(values(&read.await.unwrap()), [None]);
}

#[tokio::test]
async fn silent_coordinators_are_not_waited_for() {
    let shard = shard();
    let r = shard.now();
    shard.call(prewrite(id(1), r, vec![put("a", "1")])).await;
    shard.clock.advance(5_100_000);
    let reply = shard.call(get(&["a"], shard.now(), None)).await;
    assert_eq!(code(&reply), Some(ErrorCode::Locked));
    let fate = shard.call(push(id(1), "a", r, false)).await;
    assert_eq!(pushed(&fate), proto::push_reply::Status::Aborted(true));
    // Late prewrites at the anchor meet the record.
    let late = shard.call(prewrite(id(1), r, vec![put("b", "1")])).await;
    assert_eq!(code(&late), Some(ErrorCode::TxnAborted));
}

#[tokio::test]
async fn a_refresh_tells_whether_anything_changed() {
    let shard = shard();
    let r = shard.now();
    let at = store(&shard, "x", "1").await;
    let to = shard.now();
    let ask = async |span, from, to| refreshed(&shard.call(refresh(span, from, to, id(1))).await);
    assert!(!ask(point("x"), r, to).await);
    assert!(!ask(proto::Span::default(), r, to).await);
    assert!(ask(proto::Span::default(), r, at.previous()).await);
    assert!(ask(point("x"), at, to).await && ask(point("y"), r, to).await);
    // It counts as a read.
    let below = committed(
        &shard
            .call(body(commit(id(2), r, vec![put("y", "1")])))
            .await,
    );
    assert!(below > to);
    // Undecided: rather retried than waited for.
    shard
        .call(prewrite(id(3), shard.now(), vec![put("z", "1")]))
        .await;
    assert!(!ask(point("z"), r, shard.now()).await);
    assert!(refreshed(
        &shard.call(refresh(point("z"), r, shard.now(), id(3))).await
    ));
}

#[tokio::test]
async fn schema_versions_are_checked_and_written() {
    const TABLE: u64 = 7;
    let shard = shard();
    let r = shard.now();
    let planned = async |version, at| {
        let reply = call(&shard.engine, get(&["row"], at, None), &[(TABLE, version)]).await;
        (code(&reply), reply)
    };
    assert_eq!(planned(0, shard.now()).await.0, None);
    let ddl = prewrite(id(1), r, vec![schema_write(TABLE, 1, 0)]);
    let at = laid(&shard.call(ddl).await);
    assert!(at > r, "above the read of the version");
    let (code_above, reply) = planned(0, shard.now()).await;
    assert_eq!(code_above, Some(ErrorCode::Locked));
    let Some(reply::Body::Error(error)) = reply.body else {
        panic!("no error");
    };
    assert_eq!(error.locks[0].schema_table, TABLE);
    assert_eq!(planned(0, at.previous()).await.0, None);
    // Its own requests name the version that it writes.
    let own = call(
        &shard.engine,
        get(&["row"], shard.now(), Some(id(1))),
        &[(TABLE, 1)],
    )
    .await;
    assert_eq!(code(&own), None);
    shard.call(record(id(1), r, at)).await;
    let resolve = proto::Resolve {
        txn_id: bytes(id(1)),
        schema_tables: vec![TABLE],
        commit_ts: at.raw(),
        ..Default::default()
    };
    shard.call(request::Body::Resolve(resolve)).await;
    let (changed, reply) = planned(0, shard.now()).await;
    assert_eq!(changed, Some(ErrorCode::SchemaChanged));
    assert_eq!(reply.observed, at.raw());
    assert_eq!(planned(1, shard.now()).await.0, None);
    assert_eq!(planned(0, at.previous()).await.0, None);
}
