//! Changes over several shards, page by page, with faults and splits under way.

use super::fake::{Fake, Fault, Record, Store};
use super::*;
use crate::{ChangesOptions, ChangesPage, Error, Stretch};
use lineradb_common::clock::{deadline_after, wait_past};
use lineradb_common::{Position, Timestamp};
use lineradb_proto::shard::v1::{self as pb, ErrorCode};

impl Store {
    /// The next changes of a span, two at most.
    pub fn changes(&self, span: &Span, asked: &pb::Changes) -> pb::ChangesReply {
        let after = asked.after.clone().unwrap_or_default();
        let mut changes: Vec<pb::Change> = { self.data.iter() }
            .filter(|((key, at), _)| {
                let known = at.0 < after.timestamp
                    || at.0 == after.timestamp && after.key.as_ref().is_none_or(|last| key <= last);
                span.contains(key) && !known && at.0 <= asked.to_ts
            })
            .map(|((key, at), version)| pb::Change {
                key: key.clone(),
                timestamp: at.0,
                value: version.value.clone(),
                previous: None,
            })
            .collect();
        changes.sort_by(|a, b| (a.timestamp, &a.key).cmp(&(b.timestamp, &b.key)));
        let mut until = pb::ChangePosition {
            timestamp: asked.to_ts,
            key: None,
        };
        if changes.len() > 2 {
            changes.truncate(2);
            until = pb::ChangePosition {
                timestamp: changes[1].timestamp,
                key: Some(changes[1].key.clone()),
            };
        }
        let later = self
            .data
            .keys()
            .any(|(key, at)| span.contains(key) && at.0 > asked.to_ts);
        pb::ChangesReply {
            changes,
            until: Some(until),
            recent: Some(pb::RecentWrites {
                epoch: 1,
                from: None,
                seen: asked.to_ts,
            }),
            later,
        }
    }
}

fn from(timestamp: Timestamp) -> Vec<Stretch> {
    vec![Stretch {
        span: all(),
        after: Position::whole(timestamp),
        recent: None,
    }]
}

async fn pages(client: &Client, work: Vec<Stretch>, to: Timestamp) -> Vec<ChangesPage> {
    let options = ChangesOptions {
        to,
        previous: false,
        page_bytes: 0,
    };
    client
        .changes(work, options, deadline_after(LONG))
        .await
        .unwrap()
}

/// A timestamp that the clock has passed.
async fn past(client: &Client) -> Timestamp {
    let now = client.clock().now().unwrap().latest;
    wait_past(&**client.clock(), now).await.unwrap();
    now
}

#[tokio::test]
async fn stretches_are_cut_at_shards_and_read_to_the_end() {
    let (fake, client) = Fake::start(&["m"], LONG);
    let start = past(&client).await;
    for key in ["a", "z", "b", "a", "c", "q"] {
        set(&client, &[(key, key)]).await;
    }
    set(&client, &[("d", "both"), ("y", "both")]).await;
    let to = past(&client).await;
    fake.plant("changes", 1, Fault::LoseReply);
    fake.plant("changes", 1, Fault::Refuse(ErrorCode::Unavailable));
    fake.plant("changes", 1, Fault::Before(|store| store.split(b"c")));
    let mut work = from(start);
    let mut told = Vec::new();
    while !work.is_empty() {
        let mut next = Vec::new();
        for page in pages(&client, work, to).await {
            assert!(
                page.changes
                    .iter()
                    .all(|c| page.stretch.span.contains(&c.key))
            );
            told.extend(page.changes);
            next.push(page.stretch);
        }
        next.retain(|stretch| stretch.after < Position::whole(to));
        work = next;
    }
    told.sort_by(|a, b| (a.timestamp, &a.key).cmp(&(b.timestamp, &b.key)));
    let keys: Vec<_> = told.iter().map(|change| change.key.clone()).collect();
    assert_eq!(keys, ["a", "z", "b", "a", "c", "q", "d", "y"].map(b));
    assert_eq!(told[6].timestamp, told[7].timestamp, "one transaction");
    assert_eq!(client.map().shards().count(), 3);
}

#[tokio::test]
async fn undecided_commits_are_decided_first() {
    let (fake, client) = Fake::start(&["m"], LONG);
    let start = past(&client).await;
    let laid = past(&client).await;
    fake.lay_intent("a", "x", 1, laid.raw());
    fake.decide("x", 1, Record::Committed(laid.raw()));
    let told = pages(&client, from(start), past(&client).await).await;
    let told: Vec<_> = told.into_iter().flat_map(|page| page.changes).collect();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].key.clone(), told[0].timestamp), (b("a"), laid));
    assert_eq!(fake.intents(), 0);
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_said() {
    let (fake, client) = Fake::start(&[], LONG);
    let start = past(&client).await;
    let oldest = past(&client).await;
    fake.0.lock().oldest = oldest.raw();
    let options = ChangesOptions {
        to: past(&client).await,
        previous: false,
        page_bytes: 0,
    };
    let refused = client
        .changes(from(start), options, deadline_after(LONG))
        .await;
    assert!(matches!(refused, Err(Error::HistoryGone { oldest: at, .. }) if at == oldest));
}

#[tokio::test]
async fn waiting_for_a_write_ends_with_one_or_with_the_shard() {
    let (fake, client) = Fake::start(&[], LONG);
    let seen = past(&client).await;
    let page = pages(&client, from(seen), past(&client).await)
        .await
        .remove(0);
    let wait = Duration::from_millis(100);
    assert!(!client.await_write(&page.stretch, wait).await);
    set(&client, &[("a", "1")]).await;
    assert!(client.await_write(&page.stretch, wait).await);
    fake.0.lock().split(b"m");
    assert!(client.await_write(&page.stretch, wait).await);
}
