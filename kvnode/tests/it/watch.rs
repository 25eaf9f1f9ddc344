//! Watch through whole nodes: every change once and in order, while shards are
//! split and nodes go and come back.

use crate::cluster::eventually;
use crate::node::Cluster;
use bytes::Bytes;
use lineradb_common::spawn;
use lineradb_proto::kv::v1::change::Kind;
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{self as kv, operation};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// Timestamp, key, value; `None` for a delete.
type Row = (u64, String, Option<String>);

fn row(change: &kv::Change) -> Row {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let value = (change.kind() == Kind::Put).then(|| text(&change.value));
    (change.version, text(&change.key), value)
}

fn put(key: &str, value: &str) -> kv::Operation {
    let put = kv::PutOperation {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
    };
    kv::Operation {
        operation: Some(operation::Operation::Put(put)),
    }
}

fn all_from(from_timestamp: u64) -> kv::WatchRequest {
    kv::WatchRequest {
        from_timestamp,
        ..kv::WatchRequest::default()
    }
}

/// Begins a watch; where it begins.
async fn begin(
    mut client: KvClient<Channel>,
    request: kv::WatchRequest,
) -> (Streaming<kv::WatchResponse>, u64) {
    let mut stream = client.watch(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(first.started && first.changes.is_empty());
    (stream, first.resolved)
}

/// What is told from the beginning of a watch up to a timestamp.
async fn told(stream: Streaming<kv::WatchResponse>, until: u64) -> Vec<kv::Change> {
    told_until(stream, Arc::new(AtomicU64::new(until))).await
}

/// The same, with an end that is known later.
async fn told_until(
    mut stream: Streaming<kv::WatchResponse>,
    until: Arc<AtomicU64>,
) -> Vec<kv::Change> {
    let mut all = Vec::new();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        assert!(!message.started);
        assert_eq!(message.header.unwrap().timestamp, message.resolved);
        all.extend(message.changes);
        if message.resolved >= until.load(Ordering::SeqCst) {
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_puts_and_deletes_with_what_was_before() {
    let cluster = Cluster::start(1).await;
    cluster.put(1, "a", "before").await;
    let mut client = cluster.kv(1);
    let request = |key: &str, prefix: &str| kv::WatchRequest {
        key: key.to_owned().into(),
        prefix: prefix.to_owned().into(),
        previous_values: true,
        ..kv::WatchRequest::default()
    };
    let (key, start) = begin(client.clone(), request("a", "")).await;
    let (prefix, _) = begin(client.clone(), request("", "a")).await;
    cluster.put(1, "b", "0").await;
    cluster.put(1, "a", "1").await;
    cluster.put(1, "ab", "2").await;
    let mut end = 0;
    for _ in 0..2 {
        let delete = kv::DeleteRequest {
            key: "a".into(),
            ..kv::DeleteRequest::default()
        };
        let reply = client.delete(delete).await.unwrap().into_inner();
        end = reply.header.unwrap().timestamp;
    }
    let key = told(key, end).await;
    let brief: Vec<_> = { key.iter() }
        .map(|c| (row(c).2, c.previous_value.clone()))
        .collect();
    let text = |text: &'static str| Some(text.to_owned());
    // The second delete changed nothing.
    assert_eq!(
        brief,
        [(text("1"), Some("before".into())), (None, Some("1".into()))]
    );
    assert!(key[0].version > start && key[0].previous_version <= start);
    assert_eq!(key[1].previous_version, key[0].version);
    let prefix: Vec<_> = told(prefix, end).await.iter().map(row).collect();
    let names: Vec<_> = prefix
        .iter()
        .map(|(_, key, value)| (&key[..], value.clone()))
        .collect();
    assert_eq!(names, [("a", text("1")), ("ab", text("2")), ("a", None)]);

    // From a timestamp on: only what came after.
    let (again, from) = begin(client.clone(), all_from(prefix[0].0)).await;
    assert_eq!(from, prefix[0].0);
    let again: Vec<_> = told(again, end).await.iter().map(row).collect();
    assert_eq!(again, prefix[1..]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_watch_says_that_it_goes_on() {
    let cluster = Cluster::start(1).await;
    let (mut stream, start) = begin(cluster.kv(1), all_from(0)).await;
    let mut resolved = start;
    for _ in 0..2 {
        let message = stream.message().await.unwrap().unwrap();
        assert!(message.changes.is_empty() && message.resolved > resolved);
        resolved = message.resolved;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_refused() {
    let mut cluster = Cluster::start(1).await;
    cluster.put(1, "a", "1").await;
    let refused = async |cluster: &Cluster, request: kv::WatchRequest| {
        let mut client = cluster.kv(1);
        client.watch(request).await.err()
    };
    let future = refused(&cluster, all_from(u64::MAX)).await.unwrap();
    assert_eq!(future.code(), Code::InvalidArgument);
    let both = kv::WatchRequest {
        key: "a".into(),
        prefix: "a".into(),
        ..kv::WatchRequest::default()
    };
    let both = refused(&cluster, both).await.unwrap();
    assert_eq!(both.code(), Code::InvalidArgument);
    // The replicas of a node that starts know how much history is kept.
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    cluster.healthy().await;
    let gone = eventually("what is long gone is refused", async || {
        let refused = refused(&cluster, all_from(1)).await?;
        (refused.code() != Code::Unavailable).then_some(refused)
    })
    .await;
    assert_eq!(gone.code(), Code::OutOfRange, "{gone:?}");
    let oldest = gone.metadata().get("lineradb-oldest-timestamp").unwrap();
    let oldest: u64 = oldest.to_str().unwrap().parse().unwrap();
    let (_, from) = begin(cluster.kv(1), all_from(oldest + (60_000_000 << 12))).await;
    assert!(from > oldest);
    cluster.stop().await;
}

/// Writers that know what they have written.
struct Writers {
    client: KvClient<Channel>,
    stop: AtomicBool,
    written: Mutex<Vec<Row>>,
    done: AtomicU64,
}

impl Writers {
    /// Sends a request until it is answered; its idempotency key makes it take
    /// effect once.
    async fn send<T, F, Fut>(&self, request: F) -> T
    where
        F: Fn(KvClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            if let Ok(reply) = request(self.client.clone()).await {
                return reply.into_inner();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Puts, deletes what is there, and writes two keys at once that lie in two
    /// shards after the split.
    async fn work(self: Arc<Self>, writer: usize) {
        let (left, right) = (format!("a{writer}"), format!("z{writer}"));
        let mut n = 0;
        while !self.stop.load(Ordering::SeqCst) {
            n += 1;
            let idempotency_key = format!("{writer}-{n}");
            let value = format!("{n}");
            let mut rows = Vec::new();
            match n % 3 {
                0 => {
                    let request = kv::DeleteRequest {
                        key: left.clone().into(),
                        idempotency_key,
                    };
                    let reply = self.send(|mut client| {
                        let request = request.clone();
                        async move { client.delete(request).await }
                    });
                    let at = reply.await.header.unwrap().timestamp;
                    rows.push((at, left.clone(), None));
                }
                1 => {
                    let request = kv::PutRequest {
                        key: right.clone().into(),
                        value: value.clone().into(),
                        idempotency_key,
                    };
                    let reply = self.send(|mut client| {
                        let request = request.clone();
                        async move { client.put(request).await }
                    });
                    let at = reply.await.header.unwrap().timestamp;
                    rows.push((at, right.clone(), Some(value)));
                }
                _ => {
                    let request = kv::BatchWriteRequest {
                        operations: vec![put(&left, &value), put(&right, &value)],
                        idempotency_key,
                    };
                    let reply = self.send(|mut client| {
                        let request = request.clone();
                        async move { client.batch_write(request).await }
                    });
                    let at = reply.await.header.unwrap().timestamp;
                    rows.push((at, left.clone(), Some(value.clone())));
                    rows.push((at, right.clone(), Some(value)));
                }
            }
            self.written.lock().extend(rows);
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn progress(&self) {
        let target = self.done.load(Ordering::SeqCst) + 20;
        eventually("writes go on", async || {
            (self.done.load(Ordering::SeqCst) >= target).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_once_while_shards_split_and_nodes_restart() {
    let mut cluster = Cluster::start(3).await;
    cluster.put(3, "first", "1").await;
    // One reads along, the other one when all is over.
    let (live, start) = begin(cluster.kv(3), all_from(0)).await;
    let (lazy, _) = begin(cluster.kv(3), all_from(start)).await;
    let until = Arc::new(AtomicU64::new(u64::MAX));
    let live = spawn::task("live", told_until(live, until.clone()));
    let writers = Arc::new(Writers {
        client: cluster.kv(3),
        stop: AtomicBool::new(false),
        written: Mutex::default(),
        done: AtomicU64::new(0),
    });
    let tasks: Vec<_> = (0..4)
        .map(|writer| spawn::task("writer", writers.clone().work(writer)))
        .collect();
    writers.progress().await;
    // Somebody who looks from within: he is to be told all of it, too.
    let middle = writers.written.lock()[0].0;
    cluster.split_at(b"m").await;
    writers.progress().await;
    for n in [1, 2] {
        cluster.stop_node(n).await;
        writers.progress().await;
        cluster.start_node(n).await;
        cluster.healthy().await;
        writers.progress().await;
    }
    cluster.split_at(b"z2").await;
    writers.progress().await;
    // Without idempotency keys, over two shards, commits take one round.
    let mut client = cluster.kv(3);
    let mut parallel = Vec::new();
    for n in 0..10 {
        let request = kv::BatchWriteRequest {
            operations: vec![put("parallel", "left"), put(&format!("y{n}"), "right")],
            ..kv::BatchWriteRequest::default()
        };
        let reply = client.batch_write(request).await.unwrap().into_inner();
        let at = reply.header.unwrap().timestamp;
        parallel.push((at, "parallel".to_owned(), Some("left".to_owned())));
        parallel.push((at, format!("y{n}"), Some("right".to_owned())));
    }
    writers.stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    let mut expected: BTreeSet<Row> = writers.written.lock().drain(..).collect();
    expected.extend(parallel);
    let end = expected.last().unwrap().0;
    until.store(end, Ordering::SeqCst);

    let sorted: Vec<Row> = expected.into_iter().collect();
    for changes in [live.await.unwrap(), told(lazy, end).await] {
        let changes: Vec<Row> = changes.iter().map(row).collect();
        assert!(changes[0].0 > start);
        assert_eq!(changes, sorted);
    }
    // From any timestamp on, at any node, the rest is the same.
    let rest: Vec<Row> = sorted.into_iter().filter(|(at, ..)| *at > middle).collect();
    for n in 1..=3 {
        let (again, _) = begin(cluster.kv(n), all_from(middle)).await;
        let again: Vec<Row> = told(again, end).await.iter().map(row).collect();
        assert_eq!(again, rest, "node {n}");
    }
    cluster.stop().await;
}
