//! The data path over real groups and the real storage engine: increments from
//! several clients while leaders lose power and the shard is split. Each
//! increment that was acknowledged, or decided after a lost reply, is there
//! exactly once.

use crate::cluster::{Cluster, eventually};
use bytes::Bytes;
use lineradb_common::clock::{self, LoneClock, SharedClock};
use lineradb_common::keys::{in_span, key_after};
use lineradb_common::{ShardId, Timestamp, TxnId, random, spawn};
use lineradb_kvnode::consensus::{Groups, Leadership};
use lineradb_kvnode::service::{ShardNode, ShardNodeOptions};
use lineradb_proto::shard::v1::{self as proto, ErrorCode, push_reply, reply, request, write};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

type Nodes = Arc<Mutex<BTreeMap<u64, (Groups, Arc<ShardNode>)>>>;

const COUNTERS: [&str; 4] = ["a", "h", "p", "z"];

struct Clients {
    nodes: Nodes,
    clock: SharedClock,
    stop: AtomicBool,
    /// No more increments are under way.
    over: AtomicBool,
    done: AtomicU64,
}

fn error_code(reply: &proto::Reply) -> Option<ErrorCode> {
    match &reply.body {
        Some(reply::Body::Error(error)) => Some(error.code()),
        _ => None,
    }
}

fn id_bytes(id: TxnId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

impl Clients {
    fn serve(&self, cluster: &Cluster, node: u64) {
        let on = &cluster.nodes[&node];
        let options = ShardNodeOptions {
            groups: on.groups.clone(),
            db: on.db.clone(),
            clock: self.clock.clone(),
        };
        let service = ShardNode::new(options).unwrap();
        self.nodes.lock().insert(node, (on.groups.clone(), service));
    }

    fn now(&self) -> Timestamp {
        self.clock.now().unwrap().latest
    }

    /// The leader of a key: node, shard, version.
    fn route(&self, key: &str) -> Option<(Arc<ShardNode>, u64, u64)> {
        let nodes = self.nodes.lock();
        nodes.values().find_map(|(groups, service)| {
            let mut led = groups.list().into_iter();
            let group = led.find(|group| {
                let descriptor = group.descriptor();
                let span = descriptor.span.clone().unwrap_or_default();
                in_span(key.as_bytes(), &span.start, &span.end)
                    && matches!(group.leadership(), Leadership::Leader { .. })
            })?;
            Some((
                service.clone(),
                group.shard_id().0,
                group.descriptor().version,
            ))
        })
    }

    /// Asks the leader of a key; `None`: nobody leads, or nothing was done.
    async fn ask(&self, key: &str, body: request::Body) -> Option<proto::Reply> {
        let Some((service, shard_id, shard_version)) = self.route(key) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            return None;
        };
        let request = proto::Request {
            shard_id,
            shard_version,
            timeout_ms: 3_000,
            body: Some(body),
            ..Default::default()
        };
        let reply = service.handle(request).await;
        match error_code(&reply) {
            Some(
                ErrorCode::NotLeader
                | ErrorCode::ShardChanged
                | ErrorCode::ShardNotFound
                | ErrorCode::Unavailable
                | ErrorCode::Locked,
            ) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
                None
            }
            _ => Some(reply),
        }
    }

    async fn decide(&self, key: &'static str, id: TxnId, attempt: Timestamp) -> bool {
        for _ in 0..3000 {
            let push = proto::Push {
                txn_id: id_bytes(id),
                anchor: key.into(),
                attempt_ts: attempt.raw(),
                force: true,
            };
            let reply = self.ask(key, request::Body::Push(push)).await;
            if let Some(reply::Body::Push(reply)) = reply.and_then(|reply| reply.body) {
                return match reply.status {
                    Some(push_reply::Status::Committed(at)) => self.wait_past(at).await,
                    _ => false,
                };
            }
        }
        panic!("an attempt was never decided");
    }

    /// T5: a new leader writes above its clock. Before its own clock has passed
    /// the commit, a client does not say that it is there.
    async fn wait_past(&self, commit_ts: u64) -> bool {
        let at = Timestamp::from_raw(commit_ts);
        clock::wait_past(&*self.clock, at).await.is_ok()
    }

    async fn read(&self, key: &'static str, id: TxnId, at: Timestamp) -> Option<u64> {
        let get = proto::Get {
            keys: vec![key.into()],
            read_ts: at.raw(),
            txn_id: id_bytes(id),
        };
        match self.ask(key, request::Body::Get(get)).await?.body? {
            reply::Body::Get(reply) => Some(match &reply.values[0].value[..] {
                [] => 0,
                value => u64::from_be_bytes(value.try_into().unwrap()),
            }),
            _ => None,
        }
    }

    /// One attempt at one increment; true when it is there.
    async fn increment(&self, key: &'static str) -> bool {
        let (id, at) = (random::txn_id(), self.now());
        let Some(value) = self.read(key, id, at).await else {
            return false;
        };
        let commit = proto::OnePhaseCommit {
            txn: Some(proto::TxnMeta {
                id: id_bytes(id),
                anchor: key.into(),
                attempt_ts: at.raw(),
                ..Default::default()
            }),
            read_ts: at.raw(),
            writes: vec![proto::Write {
                target: Some(write::Target::Key(key.into())),
                value: Some(Bytes::copy_from_slice(&(value + 1).to_be_bytes())),
                condition: None,
            }],
            reads: vec![proto::Span {
                start: key.into(),
                end: key_after(key.as_bytes()),
            }],
            reads_elsewhere: false,
        };
        match self.ask(key, request::Body::OnePhaseCommit(commit)).await {
            Some(reply) => match error_code(&reply) {
                // Without a commit timestamp nothing was written: its read has to
                // be proven at a later one first.
                None => match reply.body {
                    Some(reply::Body::OnePhaseCommit(commit)) if commit.commit_ts != 0 => {
                        self.wait_past(commit.commit_ts).await
                    }
                    _ => false,
                },
                Some(ErrorCode::OutcomeUnknown) => self.decide(key, id, at).await,
                Some(_) => false,
            },
            None => false,
        }
    }

    async fn work(self: Arc<Self>, client: usize) {
        let mut turn = client;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            if self.increment(COUNTERS[turn % COUNTERS.len()]).await {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Follows a counter: tells every value that it had, in order, for as long as
    /// increments go on, and then up to the end.
    async fn follow(self: Arc<Self>, key: &'static str) -> Vec<u64> {
        let mut known = proto::ChangePosition::default();
        let mut recent = None;
        let mut told = Vec::new();
        loop {
            let last = self.over.load(Ordering::SeqCst);
            let to = Timestamp::from_micros(self.now().micros() - 1_000 * u64::from(!last));
            while known.timestamp < to.raw() || known.key.is_some() {
                let changes = proto::Changes {
                    span: Some(proto::Span {
                        start: key.into(),
                        end: key_after(key.as_bytes()),
                    }),
                    after: Some(known.clone()),
                    to_ts: to.raw(),
                    bytes_max: 100,
                    previous: false,
                    recent,
                };
                let reply = self.ask(key, request::Body::Changes(changes)).await;
                match reply.and_then(|reply| reply.body) {
                    Some(reply::Body::Changes(reply)) => {
                        let values = reply.changes.iter().flat_map(|change| &change.value);
                        let values = values.map(|v| u64::from_be_bytes(v[..].try_into().unwrap()));
                        told.extend(values);
                        known = reply.until.unwrap();
                        recent = reply.recent;
                    }
                    // The disk of a node that is being killed.
                    Some(reply::Body::Error(error)) if error.code() == ErrorCode::Internal => {}
                    Some(other) => panic!("not changes: {other:?}"),
                    None => {}
                }
            }
            if last {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn progress(&self) {
        let target = self.done.load(Ordering::Relaxed) + 20;
        eventually("increments go on", async || {
            (self.done.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_are_there_exactly_once() {
    let clock = LoneClock::start();
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    let clients = Arc::new(Clients {
        nodes: Nodes::default(),
        clock,
        stop: AtomicBool::new(false),
        over: AtomicBool::new(false),
        done: AtomicU64::new(0),
    });
    for node in [1, 2, 3] {
        clients.serve(&cluster, node);
    }
    let workers: Vec<_> = (0..4)
        .map(|client| spawn::task("worker", clients.clone().work(client)))
        .collect();
    let followers = COUNTERS.map(|key| spawn::task("follower", clients.clone().follow(key)));
    clients.progress().await;
    for round in 0..2 {
        let (leader, _) = cluster.leader(1).await;
        clients.nodes.lock().remove(&leader);
        cluster.kill(leader).await;
        clients.progress().await;
        cluster.start(leader).await;
        clients.serve(&cluster, leader);
        if round == 0 {
            eventually("the shard is split", async || {
                let split = proto::Split {
                    split_key: "m".into(),
                    new_shard_id: 2,
                };
                let body = request::Body::Split(split);
                let reply = clients.ask("a", body).await?;
                error_code(&reply).is_none().then_some(())
            })
            .await;
            assert_eq!(clients.route("z").map_or(2, |(_, shard, _)| shard), 2);
        }
        clients.progress().await;
    }
    clients.stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    clients.over.store(true, Ordering::SeqCst);
    let mut sum = 0;
    for (counter, follower) in COUNTERS.into_iter().zip(followers) {
        let count = eventually("a counter is read", async || {
            clients.read(counter, random::txn_id(), clients.now()).await
        })
        .await;
        let told = follower.await.unwrap();
        assert_eq!(
            told,
            (1..=count).collect::<Vec<_>>(),
            "changes of {counter}"
        );
        sum += count;
    }
    assert_eq!(sum, clients.done.load(Ordering::Relaxed));
    assert!(cluster.group(1, 2).shard_id() == ShardId(2));
    clients.nodes.lock().clear();
    cluster.stop_all().await;
}
