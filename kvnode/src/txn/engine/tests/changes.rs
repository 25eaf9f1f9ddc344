//! What has changed, page by page and round by round: nothing is missing, nothing
//! comes twice, whatever happens meanwhile.

use super::harness::*;
use super::random::{self, Chance, World};
use super::serving::{body, settle, shard, store};
use crate::command::Tree;
use crate::mvcc::{Cursor, Reader, Store, Version, keys};
use crate::rules::{Rule, Rules};
use bytes::Bytes;
use futures::FutureExt;
use lineradb_common::limits::HISTORY_MIN;
use lineradb_common::{Timestamp, spawn};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MINUTE: u64 = 60_000_000;

fn place(timestamp: Timestamp) -> proto::ChangePosition {
    proto::ChangePosition {
        timestamp: timestamp.raw(),
        key: None,
    }
}

/// Everything after a place, up to a timestamp.
fn changes(after: proto::ChangePosition, to: Timestamp) -> proto::Changes {
    proto::Changes {
        span: Some(proto::Span::default()),
        after: Some(after),
        to_ts: to.raw(),
        ..Default::default()
    }
}

fn told(reply: proto::Reply) -> proto::ChangesReply {
    match reply.body {
        Some(reply::Body::Changes(reply)) => reply,
        other => panic!("not changes: {other:?}"),
    }
}

/// Key and timestamp of each change.
fn rows(reply: &proto::ChangesReply) -> Vec<(Bytes, u64)> {
    let row = |change: &proto::Change| (change.key.clone(), change.timestamp);
    reply.changes.iter().map(row).collect()
}

#[tokio::test]
async fn changes_come_in_pages_oldest_first() {
    let shard = shard();
    let start = shard.now();
    let first = store(&shard, "b", "1").await.raw();
    let second = store(&shard, "a", "2").await.raw();
    let third = store(&shard, "b", "3").await.raw();
    let to = shard.now();
    let mut request = changes(place(start), to);
    let all = told(shard.call(request::Body::Changes(request.clone())).await);
    let row = |key: &'static str, at| (Bytes::from(key), at);
    let expected = [row("b", first), row("a", second), row("b", third)];
    assert_eq!(rows(&all), expected);
    assert_eq!(all.until, Some(place(to)));
    request.bytes_max = 1;
    for change in expected {
        let page = told(shard.call(request::Body::Changes(request.clone())).await);
        assert_eq!(rows(&page), [change]);
        request.after = page.until;
    }
    assert_eq!(request.after, Some(place(to)));
    // There is nothing to ask for any more.
    let nothing = shard.call(request::Body::Changes(request)).await;
    assert_eq!(code(&nothing), Some(ErrorCode::InvalidArgument));
    let outside = proto::Changes {
        span: Some(point("a")),
        ..changes(place(start), to)
    };
    let found = told(shard.call(request::Body::Changes(outside)).await);
    assert_eq!(rows(&found), [row("a", second)]);
}

#[tokio::test]
async fn changes_wait_for_writes_in_flight() {
    let shard = shard();
    let start = shard.now();
    let at = shard.now();
    Shard::pause(&shard.shared.proposals);
    let engine = shard.engine.clone();
    let write = spawn::task("write", async move {
        call(&engine, body(commit(id(1), at, vec![put("x", "1")])), &[]).await
    });
    settle().await;
    let below = shard
        .call(request::Body::Changes(changes(place(start), at.previous())))
        .await;
    assert_eq!(rows(&told(below)), []);
    let engine = shard.engine.clone();
    let mut read = spawn::task("read", async move {
        call(
            &engine,
            request::Body::Changes(changes(place(start), at)),
            &[],
        )
        .await
    });
    settle().await;
    assert!((&mut read).now_or_never().is_none());
    resume(&shard.shared.proposals);
    assert_eq!(committed(&write.await.unwrap()), at);
    let x = (Bytes::from("x"), at.raw());
    assert_eq!(rows(&told(read.await.unwrap())), [x]);
}

/// L3: what was told is complete up to its end. A write that began before comes
/// after it, also under the next leader.
async fn a_late_write(rules: Rules) -> bool {
    let shard = Shard::new(rules);
    let start = shard.now();
    shard.clock.advance(1_000);
    let to = shard.now();
    told(
        shard
            .call(request::Body::Changes(changes(place(start), to)))
            .await,
    );
    let leader = shard.elect();
    let at = committed(
        &call(
            &leader,
            body(commit(id(1), start, vec![put("x", "1")])),
            &[],
        )
        .await,
    );
    at > to
}

#[tokio::test]
async fn l3_nothing_turns_up_below_what_was_told() {
    assert!(a_late_write(Rules::default()).await);
    assert!(
        !a_late_write(Rules::without(Rule::LowWaterMark)).await,
        "a change is missed"
    );
}

#[tokio::test]
async fn x5_changes_that_may_be_gone_are_refused() {
    let shard = shard();
    let start = shard.now();
    store(&shard, "x", "1").await;
    store(&shard, "x", "2").await;
    shard.engine.keep_history(HISTORY_MIN);
    for _ in 0..4 {
        shard.clock.advance(12 * MINUTE);
        shard.collect(None).await.unwrap();
    }
    let refused = shard
        .call(request::Body::Changes(changes(place(start), shard.now())))
        .await;
    let Some(reply::Body::Error(error)) = refused.body else {
        panic!("{refused:?}");
    };
    assert_eq!(error.code(), ErrorCode::TimestampOutOfRange);
    let oldest = Timestamp::from_raw(error.oldest_ts);
    assert!(oldest > start);
    let kept = told(
        shard
            .call(request::Body::Changes(changes(place(oldest), shard.now())))
            .await,
    );
    assert_eq!(rows(&kept), []);
}

#[tokio::test]
async fn a_list_of_what_was_written_leads_to_the_same_changes() {
    let shard = shard();
    let start = shard.now();
    store(&shard, "a", "0").await;
    // Asked for the first time: from now on there is a list.
    let mut known = told(
        shard
            .call(request::Body::Changes(changes(place(start), shard.now())))
            .await,
    );
    for round in 0..5 {
        let recent = known.recent.unwrap();
        assert!(recent.from.is_some() && !known.later, "round {round}");
        let first = store(&shard, "b", "1").await;
        let second = store(&shard, "c", "2").await;
        let to = if round % 2 == 0 { first } else { shard.now() };
        let mut request = changes(known.until.clone().unwrap(), to);
        let walk = told(shard.call(request::Body::Changes(request.clone())).await);
        request.recent = Some(recent);
        let list = told(shard.call(request::Body::Changes(request)).await);
        assert_eq!(list.changes, walk.changes);
        assert_eq!(list.later, to < second);
        // Both know from where on the rest stands in the list.
        assert_eq!(list.recent, walk.recent);
        let rest = proto::Changes {
            recent: list.recent,
            ..changes(list.until.unwrap(), shard.now())
        };
        known = told(shard.call(request::Body::Changes(rest)).await);
        let rest = [(Bytes::from("c"), second.raw())];
        assert_eq!(rows(&known), if to < second { &rest[..] } else { &[] });
    }
    // What stands above the end of an answer, but came before the list, keeps the
    // next question from being answered by it.
    shard.shared.tail.reset();
    let end = shard.now();
    store(&shard, "d", "3").await;
    let walk = told(
        shard
            .call(request::Body::Changes(changes(known.until.unwrap(), end)))
            .await,
    );
    assert_eq!((rows(&walk), walk.later), (vec![], true));
    assert_eq!(walk.recent.unwrap().from, None);
}

#[tokio::test]
async fn whoever_waits_for_writes_hears_of_those_in_his_span() {
    let shard = shard();
    let known = told(
        shard
            .call(request::Body::Changes(changes(
                place(shard.now()),
                shard.now(),
            )))
            .await,
    );
    let wait = |wait_ms| {
        request::Body::AwaitWrite(proto::AwaitWrite {
            span: Some(point("x")),
            recent: known.recent,
            wait_ms,
        })
    };
    let written = |reply: proto::Reply| match reply.body {
        Some(reply::Body::AwaitWrite(reply)) => reply.written,
        other => panic!("{other:?}"),
    };
    assert!(!written(shard.call(wait(1)).await));
    let mut waits = Box::pin(shard.call(wait(60_000)));
    assert!((&mut waits).now_or_never().is_none());
    store(&shard, "y", "1").await;
    assert!((&mut waits).now_or_never().is_none());
    store(&shard, "x", "1").await;
    assert!(written(waits.await));
    // It is there already.
    assert!(written(shard.call(wait(60_000)).await));
    // Nobody knows any more: he had better look.
    shard.shared.tail.reset();
    assert!(written(shard.call(wait(60_000)).await));
}

/// Follows all changes of a shard, now and then by walking; tells them in order.
struct Follower {
    known: proto::ChangePosition,
    recent: Option<proto::RecentWrites>,
    told: Vec<(u64, Bytes, Option<Bytes>)>,
    listed: usize,
}

impl Follower {
    /// A round up to `to`, if it succeeds.
    async fn round(&mut self, world: &World, chance: &mut Chance, to: Timestamp) {
        while self.known.timestamp < to.raw() || self.known.key.is_some() {
            let walk = chance.below(5) == 0;
            let request = proto::Changes {
                bytes_max: 1 + chance.below(400),
                recent: self.recent.filter(|_| !walk),
                ..changes(self.known.clone(), to)
            };
            let by_list = request.recent.is_some_and(|recent| recent.from.is_some());
            let Ok(reply) = world.ask(request::Body::Changes(request)).await else {
                return;
            };
            let Some(reply::Body::Changes(reply)) = reply.body else {
                return;
            };
            self.listed += usize::from(by_list);
            self.recent = reply.recent;
            self.known = reply.until.unwrap();
            for change in reply.changes {
                self.told.push((change.timestamp, change.key, change.value));
            }
        }
    }
}

/// Every version in the store.
fn versions(world: &World) -> Vec<(u64, Bytes, Option<Bytes>)> {
    let reader = world.shard.shared.store.snapshot();
    let mut cursor = reader.cursor(
        Tree::Data,
        &keys::addressable(b""),
        &keys::addressable_end(b""),
    );
    cursor.seek_to_first().unwrap();
    let mut out = Vec::new();
    while cursor.valid() {
        let (addressable, at) = keys::split_version_key(cursor.key()).unwrap();
        let key = keys::user_key(addressable).unwrap();
        let value = Version::decode(cursor.value()).unwrap().value;
        out.push((at.raw(), key, value));
        cursor.next().unwrap();
    }
    out.sort();
    out
}

#[tokio::test]
async fn random_histories_are_told_whole_in_order_and_once() {
    let (mut count, mut listed) = (0, 0);
    for seed in 1..=12 {
        let world = random::world(seed, Rules::default());
        let stop = Arc::new(AtomicBool::new(false));
        let start = world.shard.now();
        let (followed, stopped) = (world.clone(), stop.clone());
        let follower = spawn::task("follower", async move {
            let mut chance = Chance(seed * 77 + 1);
            let mut follower = Follower {
                known: place(start),
                recent: None,
                told: Vec::new(),
                listed: 0,
            };
            while !stopped.load(Ordering::SeqCst) {
                // Sometimes in the middle of what happens, sometimes behind it.
                let now = followed.shard.now();
                let behind = Timestamp::from_micros(now.micros() - chance.below(2) * 5_000);
                follower.round(&followed, &mut chance, behind).await;
                tokio::task::yield_now().await;
            }
            follower
        });
        random::work(&world, seed).await;
        stop.store(true, Ordering::SeqCst);
        let mut follower = follower.await.unwrap();
        // Whoever is dead is found dead, and everything is told.
        world.shard.shared.lose.store(0, Ordering::SeqCst);
        world.shard.clock.advance(200_000);
        let mut chance = Chance(seed);
        let end = world.shard.now();
        while follower.known != place(end) {
            world.shard.clock.advance(5_100_000);
            follower.round(&world, &mut chance, end).await;
        }
        // A write resolves what is committed and still an intent.
        for (n, key) in (1..).zip(random::KEYS) {
            let last = commit(id(n), world.shard.now(), vec![put(key, "last")]);
            let reply = world.ask(body(last)).await;
            assert!(reply.is_ok_and(|reply| committed(&reply) > end));
        }
        let mut all = versions(&world);
        all.retain(|(at, ..)| *at <= end.raw());
        assert_eq!(follower.told, all, "seed {seed}");
        count += all.len();
        listed += follower.listed;
    }
    assert!(
        count > 250 && listed > 50,
        "{count} changes, {listed} by list"
    );
}
