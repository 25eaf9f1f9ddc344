//! Whole nodes with a metaservice, in one process, over real sockets and
//! disks: birth of a cluster, work through the KV API, splits, restarts, and
//! the rebuilding of a node whose storage engine is damaged.

use crate::cluster::eventually;
use bytes::Bytes;
use lineradb_client::{
    Client, ClientOptions, Error, LocalNodes, LockOptions, MetaClient, Transaction,
    TransactionOptions,
};
use lineradb_common::ReplicaId;
use lineradb_common::clock::{ClusterClock, deadline_after};
use lineradb_kvnode::node::{KvNode, KvNodeOptions};
use lineradb_metaservice::{MetaConfig, MetaService};
use lineradb_proto::kv::v1 as kv;
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::meta::v1 as meta;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;

pub struct Cluster {
    folder: TempDir,
    metaservice: Option<MetaService>,
    meta: MetaClient,
    metas: Vec<String>,
    nodes: BTreeMap<u64, KvNode>,
}

impl Cluster {
    pub async fn start(nodes: u64) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let metaservice = MetaService::start(MetaConfig {
            data: folder.path().join("meta"),
            listen: "127.0.0.1:0".to_owned(),
            http: "127.0.0.1:0".to_owned(),
            replicas: nodes as u32,
            ..MetaConfig::default()
        })
        .await
        .unwrap();
        let metas = vec![metaservice.address().to_string()];
        let mut cluster = Cluster {
            folder,
            meta: MetaClient::new(metas.clone()).unwrap(),
            metaservice: Some(metaservice),
            metas,
            nodes: BTreeMap::new(),
        };
        for n in 1..=nodes {
            cluster.start_node(n).await;
        }
        cluster.healthy().await;
        cluster
    }

    fn data(&self, n: u64) -> PathBuf {
        self.folder.path().join(format!("node{n}"))
    }

    pub async fn start_node(&mut self, n: u64) {
        let node = KvNode::start(KvNodeOptions {
            data: self.data(n),
            vfs: Arc::new(lineradb_lsm::RealVfs),
            listen: "127.0.0.1:0".parse().unwrap(),
            http: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            metas: self.metas.clone(),
            locality: [("zone".to_owned(), format!("z{n}"))].into(),
            block_cache_bytes: 8 << 20,
            history: lineradb_kvnode::node::HISTORY,
            heartbeat: lineradb_kvnode::consensus::HEARTBEAT,
            clock: ClusterClock::unsynchronised(),
            local: LocalNodes::new(),
            listen_flag: "--listen",
        })
        .await
        .unwrap();
        self.nodes.insert(n, node);
    }

    pub async fn stop_node(&mut self, n: u64) {
        self.nodes.remove(&n).unwrap().shutdown().await;
    }

    async fn map(&self) -> meta::ClusterMap {
        let deadline = deadline_after(Duration::from_secs(30));
        self.meta.get_map(deadline).await.unwrap()
    }

    /// Every shard has a leader and every node is there.
    pub async fn healthy(&self) -> meta::ClusterMap {
        eventually("all shards are led", async || {
            let map = self.map().await;
            let led = map.shards.iter().all(|s| s.leader_node_id != 0);
            (!map.shards.is_empty() && led && map.nodes.iter().all(|n| n.live)).then_some(map)
        })
        .await
    }

    /// A key in each of two shards that different nodes lead. Where one leads them
    /// all, it is restarted, and hands them over.
    async fn keys_of_two_leaders(&mut self) -> [Bytes; 2] {
        for _ in 0..10 {
            let map = self.healthy().await;
            let first = &map.shards[0];
            let leader = first.leader_node_id;
            let other = map.shards.iter().find(|s| s.leader_node_id != leader);
            if let Some(other) = other {
                return [first, other].map(|shard| {
                    let start = shard.span.clone().unwrap_or_default().start;
                    lineradb_common::keys::key_after(&start)
                });
            }
            let n = { self.nodes.iter() }.find(|(_, node)| node.node_id.0 == leader);
            let n = *n.unwrap().0;
            self.stop_node(n).await;
            self.start_node(n).await;
        }
        panic!("one node leads everything");
    }

    pub fn kv(&self, n: u64) -> KvClient<Channel> {
        let address = format!("http://{}", self.nodes[&n].address);
        KvClient::new(Channel::from_shared(address).unwrap().connect_lazy())
    }

    /// Splits the shard that holds a key of the KV API, at the key.
    pub async fn split_at(&self, key: &[u8]) {
        let split = meta::SplitShardRequest {
            shard_id: 0,
            split_key: lineradb_common::keys::kv_key(key),
        };
        let deadline = deadline_after(Duration::from_secs(30));
        let done = self.meta.split_shard(split, deadline).await.unwrap();
        assert!(done.right.is_some());
    }

    /// A put that is tried again while the cluster is not ready for it.
    pub async fn put(&self, n: u64, key: &str, value: &str) {
        eventually("a put is acknowledged", async || {
            let request = kv::PutRequest {
                key: key.to_owned().into(),
                value: value.to_owned().into(),
                ..kv::PutRequest::default()
            };
            self.kv(n).put(request).await.ok()
        })
        .await;
    }

    async fn get(&self, n: u64, key: &str) -> Option<String> {
        let reply = eventually("a get is answered", async || {
            let request = kv::GetRequest {
                key: key.to_owned().into(),
            };
            self.kv(n).get(request).await.ok()
        })
        .await
        .into_inner();
        reply
            .found
            .then(|| String::from_utf8(reply.value.to_vec()).unwrap())
    }

    pub async fn stop(mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.shutdown().await;
        }
        self.metaservice.take().unwrap().shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_born_work_split_and_survive_restarts() {
    let mut cluster = Cluster::start(3).await;
    for n in 1..=3 {
        cluster
            .put(n, &format!("key{n}"), &format!("value{n}"))
            .await;
    }
    for n in 1..=3 {
        for key in 1..=3 {
            let got = cluster.get(n, &format!("key{key}")).await;
            assert_eq!(got, Some(format!("value{key}")), "node {n}");
        }
    }
    assert_eq!(cluster.get(1, "nothing").await, None);
    cluster.split_at(b"key2").await;
    assert_eq!(cluster.healthy().await.shards.len(), 4);
    for key in 1..=3 {
        let got = cluster.get(2, &format!("key{key}")).await;
        assert_eq!(got, Some(format!("value{key}")));
    }
    for n in 1..=3 {
        cluster.stop_node(n).await;
        // Two of three go on.
        let other = n % 3 + 1;
        cluster.put(other, "key2", &format!("during {n}")).await;
        cluster.start_node(n).await;
        cluster.healthy().await;
        assert_eq!(cluster.get(n, "key2").await, Some(format!("during {n}")));
    }
    cluster.stop().await;
}

/// Two transactions lock two keys in opposite order, on two nodes. The bounds on
/// waiting are an hour away.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_over_two_nodes_ends() {
    let hour = Duration::from_secs(3600);
    let mut cluster = Cluster::start(3).await;
    let [first, second] = cluster.keys_of_two_leaders().await.map(|key| [key]);
    let client = Client::connect(ClientOptions {
        operation_timeout: hour,
        ..ClientOptions::new(cluster.metas.clone())
    })
    .await
    .unwrap();
    let begin = || {
        let options = TransactionOptions {
            lock_timeout: Some(hour),
            ..TransactionOptions::default()
        };
        client.begin(options).unwrap()
    };
    let (left, right) = (begin(), begin());
    let left_is_younger = {
        let age = |txn: &Transaction| (txn.read_timestamp(), txn.id());
        age(&left) > age(&right)
    };
    let options = LockOptions::default();
    left.locking_get(&first, None, options).await.unwrap();
    right.locking_get(&second, None, options).await.unwrap();
    let lock = async |txn: &Transaction, keys: &[Bytes]| {
        let outcome = txn.locking_get(keys, None, options).await;
        if outcome.is_err() {
            txn.rollback().await;
        }
        outcome
    };
    let both = async { tokio::join!(lock(&left, &second), lock(&right, &first)) };
    let outcomes = tokio::time::timeout(Duration::from_secs(60), both).await;
    let (left_got, right_got) = outcomes.expect("one of them gives way");
    let (younger, older) = if left_is_younger {
        (left_got, right_got)
    } else {
        (right_got, left_got)
    };
    assert!(
        matches!(younger, Err(Error::Deadlock { .. })),
        "{younger:?}"
    );
    older.unwrap();
    drop((left, right, client));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_on_without_its_metaservice() {
    let mut cluster = Cluster::start(3).await;
    cluster.put(1, "a", "1").await;
    for n in 1..=3 {
        assert_eq!(cluster.get(n, "a").await.as_deref(), Some("1"));
    }
    cluster.metaservice.take().unwrap().shutdown().await;
    cluster.put(2, "a", "2").await;
    assert_eq!(cluster.get(3, "a").await.as_deref(), Some("2"));
    for (_, node) in std::mem::take(&mut cluster.nodes) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_damaged_engine_is_rebuilt_from_the_others() {
    let mut cluster = Cluster::start(3).await;
    for i in 0..50 {
        cluster
            .put(1, &format!("key{i}"), &format!("value{i}"))
            .await;
    }
    let victim = cluster.nodes[&3].node_id;
    cluster.stop_node(3).await;
    let engine = cluster.data(3).join("engine");
    let mut damaged = 0;
    for file in std::fs::read_dir(&engine).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            let length = std::fs::metadata(&path).unwrap().len() as usize;
            std::fs::write(&path, vec![0xa5; length]).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "there was a table to damage");
    cluster.start_node(3).await;
    assert_eq!(cluster.nodes[&3].node_id, victim, "it is the same node");
    assert!(cluster.data(3).join("engine.damaged-1").exists());
    eventually("its replicas are replaced", async || {
        let map = cluster.map().await;
        let renewed = map.shards.iter().all(|s| {
            s.replicas.len() == 3 && { s.replicas.iter() }
                .any(|r| r.node_id == victim.0 && ReplicaId(r.replica_id).incarnation() == 2)
        });
        renewed.then_some(())
    })
    .await;
    // The rebuilt replicas count: one of the others may go.
    cluster.stop_node(1).await;
    cluster.put(3, "key7", "new").await;
    assert_eq!(cluster.get(3, "key7").await.as_deref(), Some("new"));
    assert_eq!(cluster.get(3, "key8").await.as_deref(), Some("value8"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_does_not_give_its_only_copy_up() {
    let mut cluster = Cluster::start(1).await;
    cluster.put(1, "a", "1").await;
    cluster.stop_node(1).await;
    let engine = cluster.data(1).join("engine");
    for file in std::fs::read_dir(&engine).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            std::fs::write(&path, b"damaged").unwrap();
        }
    }
    let started = KvNode::start(KvNodeOptions {
        data: cluster.data(1),
        vfs: Arc::new(lineradb_lsm::RealVfs),
        listen: "127.0.0.1:0".parse().unwrap(),
        http: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        metas: cluster.metas.clone(),
        locality: Default::default(),
        block_cache_bytes: 8 << 20,
        history: lineradb_kvnode::node::HISTORY,
        heartbeat: lineradb_kvnode::consensus::HEARTBEAT,
        clock: ClusterClock::unsynchronised(),
        local: LocalNodes::new(),
        listen_flag: "--listen",
    })
    .await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains(".sst"), "{error}");
    assert!(engine.exists());
    cluster.metaservice.take().unwrap().shutdown().await;
}
