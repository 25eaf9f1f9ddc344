//! X5 over real groups: old versions go on every replica alike, and whoever
//! leads next knows what may not be read any more.

use crate::cluster::{Cluster, eventually};
use bytes::Bytes;
use lineradb_common::clock::{Clock, Interval};
use lineradb_common::{Timestamp, random};
use lineradb_kvnode::command::Tree;
use lineradb_kvnode::service::{ShardNode, ShardNodeOptions};
use lineradb_kvnode::txn::Protected;
use lineradb_lsm::Db;
use lineradb_proto::shard::v1::{self as proto, ErrorCode, reply, request, write};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MINUTE: u64 = 60_000_000;
const HISTORY: Duration = Duration::from_secs(10 * 60);

/// Moves by a millisecond whenever it is read, and when it is told to.
#[derive(Debug)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> lineradb_common::Result<Interval> {
        let now = Timestamp::from_micros(self.0.fetch_add(1_000, Ordering::SeqCst));
        Ok(Interval {
            earliest: now,
            latest: now,
        })
    }
}

struct Served {
    cluster: Cluster,
    clock: Arc<Hand>,
    nodes: BTreeMap<u64, Arc<ShardNode>>,
}

impl Served {
    fn now(&self) -> Timestamp {
        self.clock.now().unwrap().latest
    }

    fn serve(&mut self, node: u64) {
        let on = &self.cluster.nodes[&node];
        let options = ShardNodeOptions {
            groups: on.groups.clone(),
            db: on.db.clone(),
            clock: self.clock.clone(),
        };
        self.nodes.insert(node, ShardNode::new(options).unwrap());
    }

    async fn ask(&self, body: request::Body) -> proto::Reply {
        eventually("a request is answered", async || {
            let (leader, _) = self.cluster.leader(1).await;
            let group = self.cluster.group(leader, 1);
            let request = proto::Request {
                shard_id: 1,
                shard_version: group.descriptor().version,
                timeout_ms: 3_000,
                body: Some(body.clone()),
                ..Default::default()
            };
            let reply = self.nodes.get(&leader)?.handle(request).await;
            match &reply.body {
                Some(reply::Body::Error(error))
                    if matches!(error.code(), ErrorCode::NotLeader | ErrorCode::Unavailable) =>
                {
                    None
                }
                _ => Some(reply),
            }
        })
        .await
    }

    async fn put(&self, key: &'static str, value: Option<String>) {
        let at = self.now();
        let write = proto::Write {
            target: Some(write::Target::Key(key.into())),
            value: value.map(Bytes::from),
            condition: None,
        };
        let commit = proto::OnePhaseCommit {
            txn: Some(proto::TxnMeta {
                id: Bytes::copy_from_slice(&random::txn_id().0),
                anchor: key.into(),
                attempt_ts: at.raw(),
                isolation: proto::Isolation::Serializable.into(),
                start_ts: 0,
            }),
            read_ts: at.raw(),
            writes: vec![write],
            ..Default::default()
        };
        let reply = self.ask(request::Body::OnePhaseCommit(commit)).await;
        assert!(
            matches!(&reply.body, Some(reply::Body::OnePhaseCommit(r)) if r.commit_ts != 0),
            "{reply:?}"
        );
    }

    async fn get(&self, key: &'static str, at: Timestamp) -> Result<Option<Bytes>, ErrorCode> {
        let get = proto::Get {
            keys: vec![key.into()],
            read_ts: at.raw(),
            txn_id: Bytes::new(),
        };
        match self.ask(request::Body::Get(get)).await.body {
            Some(reply::Body::Get(get)) => {
                let value = get.values.into_iter().next().unwrap();
                Ok(value.present.then_some(value.value))
            }
            Some(reply::Body::Error(error)) => Err(error.code()),
            other => panic!("{other:?}"),
        }
    }

    async fn collect(&self) {
        for _ in 0..4 {
            self.clock.0.fetch_add(12 * MINUTE, Ordering::SeqCst);
            let protected = Protected {
                as_of: Timestamp::from_micros(self.clock.0.load(Ordering::SeqCst)),
                oldest: None,
            };
            for node in self.nodes.values() {
                node.collect_once(HISTORY, Some(protected)).await;
            }
        }
    }
}

/// Everything in the tree of versions.
fn versions(db: &Db) -> Vec<(Bytes, Bytes)> {
    let data = db.keyspace(Tree::Data.name()).unwrap();
    let snapshot = db.snapshot();
    let mut iter = snapshot.iter(data, Bound::Unbounded, Bound::Unbounded);
    iter.seek_to_first().unwrap();
    let mut out = Vec::new();
    while iter.valid() {
        out.push((
            Bytes::copy_from_slice(iter.key()),
            Bytes::copy_from_slice(iter.value()),
        ));
        iter.next().unwrap();
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_go_on_all_replicas() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.found(1, b"", b"", &[1, 2, 3]).await;
    let mut served = Served {
        cluster,
        clock: Arc::new(Hand(AtomicU64::new(1_000_000_000_000))),
        nodes: BTreeMap::new(),
    };
    for node in [1, 2, 3] {
        served.serve(node);
    }
    for n in 0..30 {
        served.put("hot", Some(format!("{n}"))).await;
        served.put("gone", (n < 29).then(|| n.to_string())).await;
    }
    served.put("cold", Some("kept".into())).await;
    let old = served.now();
    served.put("hot", Some("last".into())).await;
    served.collect().await;
    for node in [1, 2, 3] {
        eventually("the history goes", async || {
            (versions(&served.cluster.nodes[&node].db).len() == 2).then_some(())
        })
        .await;
    }
    let all: Vec<_> = { served.cluster.nodes.values() }
        .map(|on| versions(&on.db))
        .collect();
    assert!(all[0] == all[1] && all[1] == all[2], "the replicas differ");
    let too_old = Err(ErrorCode::TimestampOutOfRange);
    assert_eq!(served.get("hot", old).await, too_old);
    assert_eq!(
        served.get("hot", served.now()).await,
        Ok(Some("last".into()))
    );
    assert_eq!(served.get("gone", served.now()).await, Ok(None));
    assert_eq!(
        served.get("cold", served.now()).await,
        Ok(Some("kept".into()))
    );

    // The next leader has collected nothing itself.
    let (leader, _) = served.cluster.leader(1).await;
    served.nodes.remove(&leader);
    served.cluster.kill(leader).await;
    assert_eq!(served.get("hot", old).await, too_old);
    // And neither has what the shard is split into.
    assert_eq!(
        served.cluster.split(1, b"h", 2).await,
        lineradb_kvnode::command::Verdict::Applied
    );
    let (leader, _) = served.cluster.leader(2).await;
    let request = proto::Request {
        shard_id: 2,
        shard_version: served.cluster.group(leader, 2).descriptor().version,
        timeout_ms: 3_000,
        body: Some(request::Body::Get(proto::Get {
            keys: vec!["hot".into()],
            read_ts: old.raw(),
            txn_id: Bytes::new(),
        })),
        ..Default::default()
    };
    let reply = served.nodes[&leader].handle(request).await;
    let Some(reply::Body::Error(error)) = &reply.body else {
        panic!("{reply:?}");
    };
    assert_eq!(error.code(), ErrorCode::TimestampOutOfRange);
    served.nodes.clear();
    served.cluster.stop_all().await;
}
