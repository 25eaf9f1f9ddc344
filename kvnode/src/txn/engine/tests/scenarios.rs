//! The histories that PROTOCOLS forbids. Each runs twice: with all rules it
//! ends well, without its rule it goes wrong in the way that the rule's text
//! tells.

use super::harness::*;
use super::serving::settle;
use crate::mvcc::memory::MemoryStore;
use crate::rules::{Rule, Rules};
use crate::txn::Inheritance;
use lineradb_common::{Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, push_reply, reply, request};
use std::sync::atomic::Ordering;

fn body(commit: proto::OnePhaseCommit) -> request::Body {
    request::Body::OnePhaseCommit(commit)
}

/// X1: a commit of x=1 whose reply is lost, x=2 by another, and the client of
/// the first asks what became of it before it tries again. Answers what x is.
async fn x1(rules: Rules) -> Option<bytes::Bytes> {
    let shard = Shard::new(rules);
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
    let second = commit(id(2), shard.now(), vec![put("x", "2")]);
    committed(&call(&leader, body(second), &[]).await);
    let fate = call(&leader, push(id(1), "x", lost, true), &[]).await;
    if pushed(&fate) == push_reply::Status::Aborted(true) {
        let again = commit(id(3), shard.now(), vec![put("x", "1")]);
        committed(&call(&leader, body(again), &[]).await);
    }
    values(&call(&leader, get(&["x"], shard.now(), None), &[]).await)[0].clone()
}

#[tokio::test]
async fn x1_a_lost_commit_is_found_by_its_id() {
    assert_eq!(x1(Rules::default()).await.unwrap(), "2");
    let wrong = x1(Rules::without(Rule::VersionCarriesId)).await;
    assert_eq!(wrong.unwrap(), "1", "the hidden retry overwrites x=2");
}

/// X1: a commit in one round that writes nothing at its anchor, and a push that
/// decides it at the same time.
#[tokio::test]
async fn x1_a_push_and_a_commit_meet_at_the_anchor() {
    let shard = Shard::new(Rules::default());
    let attempt = shard.now();
    let mut commit = commit(id(1), attempt, vec![put("b", "1")]);
    commit.txn = meta(id(1), "a", attempt);
    Shard::pause(&shard.shared.proposals);
    let engine = shard.engine.clone();
    let fate = spawn::task("push", async move {
        call(&engine, push(id(1), "a", attempt, true), &[]).await
    });
    settle().await;
    let engine = shard.engine.clone();
    let written = spawn::task(
        "commit",
        async move { call(&engine, body(commit), &[]).await },
    );
    settle().await;
    resume(&shard.shared.proposals);
    assert_eq!(
        pushed(&fate.await.unwrap()),
        push_reply::Status::Aborted(true)
    );
    let refused = written.await.unwrap();
    assert_eq!(code(&refused), Some(ErrorCode::TxnAborted));
}

/// L3: x is read and y written at a timestamp that lies far above the clock,
/// because y has a version from there; then the leader changes and x is
/// written. Answers whether that write is above what was read.
async fn effects(rules: Rules) -> bool {
    let shard = Shard::new(rules);
    let start = shard.now();
    let far = start.plus_micros(60_000);
    shard.shared.store.apply(&[crate::command::Op {
        tree: crate::command::Tree::Data,
        key: crate::mvcc::keys::version_key(&crate::mvcc::keys::addressable(b"y"), far),
        value: Some(
            crate::mvcc::Version {
                value: Some("0".into()),
                txn: None,
            }
            .encode(),
        ),
    }]);
    let mut reads_x = commit(id(1), start, vec![put("y", "1")]);
    reads_x.reads = vec![point("x")];
    let engine = shard.engine.clone();
    let written = spawn::task(
        "commit",
        async move { call(&engine, body(reads_x), &[]).await },
    );
    settle().await;
    if rules.hold(Rule::EffectsReadable) {
        assert!(!written.is_finished(), "it waits for the clock");
        shard.clock.advance(20_000);
    }
    let read_at = committed(&written.await.unwrap());
    assert!(read_at > far);
    let next = shard.elect();
    let writes_x = commit(id(2), shard.now(), vec![put("x", "1")]);
    committed(&call(&next, body(writes_x), &[]).await) > read_at
}

#[tokio::test]
async fn l3_what_a_write_reads_is_respected_by_the_next_leader() {
    assert!(effects(Rules::default()).await);
    assert!(!effects(Rules::without(Rule::EffectsReadable)).await);
}

/// X3: an attempt that is still on its way is declared dead and retried under
/// another id; then it arrives. Answers how often the increment took effect.
async fn x3(rules: Rules) -> u32 {
    let shard = Shard::new(rules);
    let attempt = shard.now();
    let late = commit(id(1), attempt, vec![put("first", "+1")]);
    let fate = shard.call(push(id(1), "first", attempt, true)).await;
    assert_eq!(pushed(&fate), push_reply::Status::Aborted(true));
    committed(
        &shard
            .call(body(commit(id(2), shard.now(), vec![put("retry", "+1")])))
            .await,
    );
    let reply = shard.call(body(late)).await;
    1 + u32::from(code(&reply) != Some(ErrorCode::TxnAborted))
}

#[tokio::test]
async fn x3_a_late_commit_meets_the_aborted_record() {
    assert_eq!(x3(Rules::default()).await, 1);
    assert_eq!(x3(Rules::without(Rule::AbortedRecordMet)).await, 2);
}

/// X3 on two phases: the intents of an aborted transaction are gone when its
/// commit record arrives. Answers whether it claims to be committed.
async fn x3_record(rules: Rules) -> bool {
    let shard = Shard::new(rules);
    let attempt = shard.now();
    let prewrite = request::Body::Prewrite(proto::Prewrite {
        txn: meta(id(1), "x", attempt),
        read_ts: attempt.raw(),
        writes: vec![put("x", "1")],
        ..Default::default()
    });
    assert_eq!(code(&shard.call(prewrite).await), None);
    shard.call(push(id(1), "x", attempt, true)).await;
    let resolve = request::Body::Resolve(proto::Resolve {
        txn_id: bytes::Bytes::copy_from_slice(&id(1).0),
        keys: vec!["x".into()],
        ..Default::default()
    });
    shard.call(resolve).await;
    let record = request::Body::CommitRecord(proto::CommitRecord {
        txn: meta(id(1), "x", attempt),
        commit_ts: attempt.raw(),
        ..Default::default()
    });
    let reply = shard.call(record).await;
    let Some(reply::Body::CommitRecord(reply)) = reply.body else {
        panic!("not a commit record: {reply:?}");
    };
    matches!(
        reply.outcome,
        Some(proto::commit_record_reply::Outcome::Committed(_))
    )
}

#[tokio::test]
async fn x3_a_late_commit_record_is_refused() {
    assert!(!x3_record(Rules::default()).await);
    assert!(x3_record(Rules::without(Rule::AbortedRecordMet)).await);
}

/// Reads x at `at` twice with `between` in between.
async fn reads_twice(
    first: &TestEngine,
    second: &TestEngine,
    at: Timestamp,
    between: impl AsyncFnOnce(),
) -> (Option<bytes::Bytes>, Option<bytes::Bytes>) {
    let read = async |engine: &TestEngine| {
        values(&call(engine, get(&["x"], at, None), &[]).await)[0].clone()
    };
    let before = read(first).await;
    between().await;
    (before, read(second).await)
}

/// L3: a read ahead of the clock is served, another replica takes over, a write
/// that began before the read commits there. Answers both reads at the same
/// timestamp.
async fn l3_mark(rules: Rules) -> (Option<bytes::Bytes>, Option<bytes::Bytes>) {
    let shard = Shard::new(rules);
    let writes_at = shard.now();
    let read_at = writes_at.plus_micros(40_000);
    let leader = shard.elect_later();
    reads_twice(&shard.engine, &leader, read_at, async || {
        shard.depose();
        let write = commit(id(1), writes_at, vec![put("x", "1")]);
        committed(&call(&leader, body(write), &[]).await);
    })
    .await
}

#[tokio::test]
async fn l3_a_new_leader_writes_above_what_its_predecessor_served() {
    let (before, after) = l3_mark(Rules::default()).await;
    assert_eq!(before, after);
    let (before, after) = l3_mark(Rules::without(Rule::LowWaterMark)).await;
    assert_ne!(before, after, "the write slipped under a served read");
}

/// L3: a write commits while the read's round is under way. Answers the read,
/// and a second one at the same timestamp.
async fn l3_order(rules: Rules) -> (Option<bytes::Bytes>, Option<bytes::Bytes>) {
    let shard = Shard::new(rules);
    let writes_at = shard.now();
    let read_at = writes_at.plus_micros(10_000);
    Shard::pause(&shard.shared.rounds);
    let engine = shard.engine.clone();
    let reading = lineradb_common::spawn::task("read", async move {
        values(&call(&engine, get(&["x"], read_at, None), &[]).await)[0].clone()
    });
    // The read has its snapshot and waits for its round.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    committed(
        &shard
            .call(body(commit(id(1), writes_at, vec![put("x", "1")])))
            .await,
    );
    resume(&shard.shared.rounds);
    let first = reading.await.unwrap();
    let second = values(&shard.call(get(&["x"], read_at, None)).await)[0].clone();
    (first, second)
}

#[tokio::test]
async fn l3_a_read_is_in_the_cache_before_its_snapshot() {
    let (first, second) = l3_order(Rules::default()).await;
    assert_eq!(first, second);
    let (first, second) = l3_order(Rules::without(Rule::CacheBeforeSnapshot)).await;
    assert_ne!(first, second, "the write slipped under the read");
}

/// L3: a deposed leader that knows nothing of it is asked. Answers whether it
/// serves.
async fn l3_confirmed(rules: Rules) -> bool {
    let shard = Shard::new(rules);
    let leader = shard.elect();
    let _ = leader.lead();
    shard.clock.advance(60_000);
    committed(
        &call(
            &leader,
            body(commit(id(1), shard.now(), vec![put("x", "2")])),
            &[],
        )
        .await,
    );
    let reply = shard.call(get(&["x"], shard.now(), None)).await;
    code(&reply) != Some(ErrorCode::NotLeader)
}

#[tokio::test]
async fn l3_a_deposed_leader_serves_nothing() {
    assert!(!l3_confirmed(Rules::default()).await);
    assert!(l3_confirmed(Rules::without(Rule::ConfirmedReads)).await);
}

/// L5: both read x and y, one writes x and the other y. Answers how many
/// commit; two are write skew.
async fn skew(shard: Shard, at: [Timestamp; 2], order: [(u8, &'static str); 4]) -> u32 {
    for (who, key) in order {
        let at = at[usize::from(who) - 1];
        values(&shard.call(get(&[key], at, Some(id(who)))).await);
    }
    let mut commits = 0;
    for (who, key) in [(1, "x"), (2, "y")] {
        let mut commit = commit(id(who), at[usize::from(who) - 1], vec![put(key, "taken")]);
        commit.reads = vec![point("x"), point("y")];
        let reply = shard.call(body(commit)).await;
        commits += u32::from(code(&reply).is_none());
    }
    commits
}

#[tokio::test]
async fn l5_equal_timestamps_of_two_transactions_erase_the_owner() {
    let run = async |rules| {
        let shard = Shard::new(rules);
        let at = shard.now();
        // Each becomes the last reader of the key that it writes.
        skew(shard, [at, at], [(2, "x"), (1, "x"), (1, "y"), (2, "y")]).await
    };
    assert_eq!(run(Rules::default()).await, 1);
    assert_eq!(run(Rules::without(Rule::EqualReadsEraseOwner)).await, 2);
}

#[tokio::test]
async fn l5_reads_of_absent_keys_are_recorded() {
    let run = async |rules| {
        let shard = Shard::new(rules);
        let at = shard.now();
        let later = at.plus_micros(10);
        skew(shard, [at, later], [(1, "x"), (1, "y"), (2, "x"), (2, "y")]).await
    };
    assert_eq!(run(Rules::default()).await, 1);
    assert_eq!(run(Rules::without(Rule::AbsentReadsRecorded)).await, 2);
}

/// S1: an insert planned before an index existed is pushed above the DDL by a
/// reader. Answers its error.
async fn s1(rules: Rules) -> Option<ErrorCode> {
    const TABLE: u64 = 7;
    let shard = Shard::new(rules);
    let planned = shard.now();
    let ddl = commit(
        id(1),
        shard.now(),
        vec![put("catalog", "+index"), schema_write(TABLE, 2, 0)],
    );
    committed(&shard.call(body(ddl)).await);
    values(&shard.call(get(&["row"], shard.now(), None)).await);
    let insert = commit(id(2), planned, vec![put("row", "without index entry")]);
    code(&call(&shard.engine, body(insert), &[(TABLE, 0)]).await)
}

#[tokio::test]
async fn s1_the_version_is_compared_where_the_write_lands() {
    assert_eq!(s1(Rules::default()).await, Some(ErrorCode::SchemaChanged));
    let missed = s1(Rules::without(Rule::SchemaAtEffect)).await;
    assert_eq!(missed, None, "the row is missing from the index for ever");
}

/// C5: the left half's leader served a read in the right half, then the shard
/// is split and an older transaction writes there. Answers where it landed,
/// relative to the read.
async fn c5(rules: Rules) -> i64 {
    let parent = Shard::new(rules);
    let writes_at = parent.now();
    let read_at = writes_at.plus_micros(20_000);
    values(&parent.call(get(&["x"], read_at, None)).await);
    let inheritance = parent.engine.split_applied(&split("m", 5));
    let inheritance = inheritance.expect("it leads without a break");
    let child = Shard::heir(rules, &parent, inheritance);
    let write = commit(id(1), writes_at, vec![put("x", "1")]);
    let at = committed(&child.call(body(write)).await);
    at.raw() as i64 - read_at.raw() as i64
}

#[tokio::test]
async fn c5_the_right_half_writes_above_what_the_left_half_served() {
    // Just above: it need not wait for a mark.
    assert_eq!(c5(Rules::default()).await, 1);
    assert!(c5(Rules::without(Rule::SplitInheritance)).await < 0);
}

#[tokio::test]
async fn c5_only_a_leader_without_a_break_hands_over() {
    let shard = Shard::new(Rules::default());
    assert!(shard.engine.split_applied(&split("m", 5)).is_some());
    assert!(shard.engine.split_applied(&split("m", 4)).is_none());
    shard.engine.lost_leadership();
    assert!(shard.engine.split_applied(&split("m", 5)).is_none());
}

/// C2: what a deposed leader evaluated is not applied.
#[tokio::test]
async fn c2_a_deposed_leader_writes_nothing() {
    let shard = Shard::new(Rules::default());
    let leader = shard.elect();
    let _ = leader.lead();
    let reply = shard
        .call(body(commit(id(1), shard.now(), vec![put("x", "1")])))
        .await;
    assert_eq!(code(&reply), Some(ErrorCode::NotLeader));
    shard.clock.advance(60_000);
    assert_eq!(
        values(&call(&leader, get(&["x"], shard.now(), None), &[]).await),
        [None]
    );
}

impl Shard {
    /// A leader of the next term that has looked at nothing yet; the election
    /// itself is [`Shard::depose`].
    fn elect_later(&self) -> TestEngine {
        let leader = self.elect();
        self.undo_election();
        leader
    }

    /// The right half of a split, led in the term of the left half's leader.
    fn heir(rules: Rules, parent: &Shard, inheritance: Inheritance) -> Shard {
        let store: MemoryStore = parent.shared.store.clone();
        let child = Shard::unled(rules, parent.clock.clone(), store, inheritance.term);
        child.engine.inherit(inheritance);
        child
    }
}
