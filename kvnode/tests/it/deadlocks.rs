//! Deadlocks over two nodes, of which each sees one half: the metaservice finds
//! them. The bounds on waiting are an hour away.

use crate::cluster::Cluster;
use bytes::Bytes;
use lineradb_client::MetaClient;
use lineradb_common::clock::{LoneClock, SharedClock, deadline_after};
use lineradb_common::{NodeId, Timestamp, TxnId, spawn};
use lineradb_kvnode::service::{ShardNode, ShardNodeOptions};
use lineradb_metaservice::{MetaConfig, MetaService};
use lineradb_proto::meta::v1::RegisterNodeRequest;
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request, write};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const HOUR_MS: u32 = 3_600_000;
/// More than anything here takes.
const MINUTE: Duration = Duration::from_secs(60);
const OLDER: TxnId = TxnId([1; 16]);
const YOUNGER: TxnId = TxnId([2; 16]);

/// Two nodes with one shard each: `a` is on the first one, `z` on the second one.
struct Nodes {
    cluster: Cluster,
    services: BTreeMap<u64, Arc<ShardNode>>,
    clock: SharedClock,
    metaservice: MetaService,
    _data: TempDir,
}

impl Nodes {
    /// Runs a scenario whose transactions live.
    async fn run<F: Future<Output = ()>>(scenario: impl FnOnce(Arc<Nodes>) -> F) {
        let nodes = Arc::new(Nodes::start().await);
        let meta = MetaClient::new(vec![nodes.metaservice.address().to_string()]).unwrap();
        let mut reporters = Vec::new();
        for (node, service) in &nodes.services {
            let request = RegisterNodeRequest {
                node_uuid: vec![*node as u8; 16].into(),
                address: format!("node-{node}"),
                ..RegisterNodeRequest::default()
            };
            let registered = meta.register_node(request, deadline_after(MINUTE)).await;
            let id = NodeId(registered.unwrap().node_id);
            let report = service.clone().report_waits(meta.clone(), id);
            reporters.push(spawn::task("report-waits", report));
        }
        tokio::select! {
            () = scenario(nodes.clone()) => {}
            () = nodes.heartbeats() => {}
            () = tokio::time::sleep(MINUTE) => panic!("nobody gave way"),
        }
        for reporter in reporters {
            reporter.abort();
            let _ = reporter.await;
        }
        let nodes = Arc::into_inner(nodes).unwrap();
        drop(nodes.services);
        nodes.cluster.stop_all().await;
        nodes.metaservice.shutdown().await;
    }

    async fn start() -> Nodes {
        let data = tempfile::tempdir().unwrap();
        let config = MetaConfig {
            data: data.path().join("meta"),
            listen: "127.0.0.1:0".to_owned(),
            http: "127.0.0.1:0".to_owned(),
            ..MetaConfig::default()
        };
        let metaservice = MetaService::start(config).await.unwrap();
        let clock: SharedClock = LoneClock::start();
        let cluster = Cluster::new(&[1, 2]).await;
        cluster.found(1, b"", b"m", &[1]).await;
        cluster.found(2, b"m", b"", &[2]).await;
        let mut services = BTreeMap::new();
        for node in [1, 2] {
            assert_eq!(cluster.leader(node).await.0, node);
            let on = &cluster.nodes[&node];
            let options = ShardNodeOptions {
                groups: on.groups.clone(),
                db: on.db.clone(),
                clock: clock.clone(),
            };
            services.insert(node, ShardNode::new(options).unwrap());
        }
        Nodes {
            cluster,
            services,
            clock,
            metaservice,
            _data: data,
        }
    }

    /// Locks live on for as long as their transactions do.
    async fn heartbeats(&self) {
        loop {
            for node in [1, 2] {
                for txn in [OLDER, YOUNGER] {
                    let beat = proto::HeartbeatLocks { txn_id: bytes(txn) };
                    self.ask(node, request::Body::HeartbeatLocks(beat)).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn ask(&self, node: u64, body: request::Body) -> proto::Reply {
        let request = proto::Request {
            shard_id: node,
            shard_version: 1,
            timeout_ms: HOUR_MS,
            body: Some(body),
            ..Default::default()
        };
        self.services[&node].handle(request).await
    }

    fn meta(&self, txn: TxnId, anchor: &'static str) -> Option<proto::TxnMeta> {
        let started = if txn == OLDER { 1 } else { 2 };
        Some(proto::TxnMeta {
            id: bytes(txn),
            anchor: anchor.into(),
            attempt_ts: self.now(),
            start_ts: Timestamp::from_micros(started).raw(),
            ..Default::default()
        })
    }

    fn now(&self) -> u64 {
        self.clock.now().unwrap().latest.raw()
    }

    async fn lock(&self, node: u64, key: &'static str, txn: TxnId) -> proto::Reply {
        let read = proto::LockingRead {
            txn: self.meta(txn, key),
            keys: vec![key.into()],
            wait: true,
            lock_timeout_ms: HOUR_MS,
            ..Default::default()
        };
        self.ask(node, request::Body::LockingRead(read)).await
    }

    /// As a client does it: asks again while intents are in the way.
    async fn lock_patiently(&self, node: u64, key: &'static str, txn: TxnId) -> proto::Reply {
        loop {
            let reply = self.lock(node, key, txn).await;
            if code(&reply) != Some(ErrorCode::Locked) {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// One part of a commit that is anchored at `a`.
    async fn prewrite(&self, node: u64, key: &'static str, txn: TxnId) -> proto::Reply {
        let now = self.now();
        let prewrite = proto::Prewrite {
            txn: self.meta(txn, "a"),
            read_ts: now,
            min_ts: now,
            writes: vec![proto::Write {
                target: Some(write::Target::Key(key.into())),
                value: Some("v".into()),
                condition: None,
            }],
            staged_keys: Vec::new(),
        };
        self.ask(node, request::Body::Prewrite(prewrite)).await
    }

    /// What a coordinator does whose transaction has to end: its locks and the
    /// intent on `a` go.
    async fn give_up(&self, txn: TxnId) {
        let push = proto::Push {
            txn_id: bytes(txn),
            anchor: "a".into(),
            attempt_ts: self.now(),
            force: true,
        };
        self.ask(1, request::Body::Push(push)).await;
        let resolve = proto::Resolve {
            txn_id: bytes(txn),
            keys: vec!["a".into()],
            ..Default::default()
        };
        self.ask(1, request::Body::Resolve(resolve)).await;
        for node in [1, 2] {
            let release = proto::ReleaseLocks { txn_id: bytes(txn) };
            self.ask(node, request::Body::ReleaseLocks(release)).await;
        }
    }
}

fn bytes(txn: TxnId) -> Bytes {
    Bytes::copy_from_slice(&txn.0)
}

fn code(reply: &proto::Reply) -> Option<ErrorCode> {
    match &reply.body {
        Some(reply::Body::Error(error)) => Some(error.code()),
        _ => None,
    }
}

/// The younger one is told, and who waits for whom.
fn assert_gives_way(reply: &proto::Reply) {
    let Some(reply::Body::Error(error)) = &reply.body else {
        panic!("no deadlock: {reply:?}");
    };
    assert_eq!(error.code(), ErrorCode::Deadlock, "{error:?}");
    let circle = format!(
        "Transaction {YOUNGER} waits for transaction {OLDER}.\n\
         Transaction {OLDER} waits for transaction {YOUNGER}."
    );
    assert_eq!(error.message, circle);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_lock_in_opposite_order_the_younger_gives_way() {
    Nodes::run(|nodes| async move {
        assert_eq!(code(&nodes.lock(1, "a", OLDER).await), None);
        assert_eq!(code(&nodes.lock(2, "z", YOUNGER).await), None);
        let older = nodes.lock(2, "z", OLDER);
        let younger = async {
            let reply = nodes.lock(1, "a", YOUNGER).await;
            nodes.give_up(YOUNGER).await;
            reply
        };
        let (older, younger) = tokio::join!(older, younger);
        assert_gives_way(&younger);
        assert_eq!(code(&older), None);
    })
    .await;
}

/// One is in the middle of its commit: its intent is in the way of the other one, on
/// whose lock it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_and_a_lock_wait_for_each_other() {
    for (commits, locks) in [(OLDER, YOUNGER), (YOUNGER, OLDER)] {
        Nodes::run(|nodes| async move {
            assert_eq!(code(&nodes.lock(2, "z", locks).await), None);
            assert_eq!(code(&nodes.prewrite(1, "a", commits).await), None);
            let commit = async {
                let reply = nodes.prewrite(2, "z", commits).await;
                if code(&reply).is_some() {
                    nodes.give_up(commits).await;
                }
                reply
            };
            let lock = async {
                let reply = nodes.lock_patiently(1, "a", locks).await;
                if code(&reply).is_some() {
                    nodes.give_up(locks).await;
                }
                reply
            };
            let (commit, lock) = tokio::join!(commit, lock);
            let (winner, loser) = if commits == YOUNGER {
                (lock, commit)
            } else {
                (commit, lock)
            };
            assert_gives_way(&loser);
            assert_eq!(code(&winner), None, "{winner:?}");
        })
        .await;
    }
}
