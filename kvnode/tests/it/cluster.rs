//! Three nodes (or more) in one process, for the tests: in-memory transport,
//! simulated disks that can lose what was not synced.

use bytes::Bytes;
use lineradb_common::{NodeId, ReplicaId, ShardId, encoding};
use lineradb_kvnode::command::{Body, Command, Expect, Op, Replica, Tree, Verdict, value_hash};
use lineradb_kvnode::consensus::{
    AddressBook, Group, Groups, GroupsOptions, Leadership, ProposeError, Retention, Timing,
    storage_options,
};
use lineradb_kvnode::raft_log;
use lineradb_kvnode::transport::memory::MemoryNetwork;
use lineradb_lsm::{CrashLoss, Db, SimVfs};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1::{self as shard, ShardDescriptor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Nodes reach each other by id in process.
pub struct NoAddresses;

impl AddressBook for NoAddresses {
    fn address(&self, _: NodeId) -> Option<String> {
        None
    }
}

pub struct Node {
    pub groups: Groups,
    pub db: Db,
}

/// A cluster whose nodes can be stopped, killed and started again.
pub struct Cluster {
    pub network: MemoryNetwork,
    pub disks: BTreeMap<u64, SimVfs>,
    pub nodes: BTreeMap<u64, Node>,
    pub retention: Retention,
    pub segment_bytes: u64,
    pub timing: Timing,
}

/// Polls until `condition` gives something, for at most half a minute.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = condition().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub fn replica_on(node: u64, incarnation: u16) -> ReplicaId {
    ReplicaId::new(NodeId(node), incarnation)
}

/// Where a key of the shared key space stands in the trees.
pub fn stored(key: &[u8]) -> Bytes {
    let mut out = bytes::BytesMut::from(&[1u8][..]);
    encoding::put_bytes(&mut out, key);
    out.freeze()
}

pub fn put(key: &[u8], value: &[u8]) -> Op {
    Op {
        tree: Tree::Data,
        key: stored(key),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

pub fn expecting(key: &[u8], value: Option<&[u8]>) -> Expect {
    Expect {
        tree: Tree::Data,
        key: stored(key),
        hash: value.map(value_hash),
    }
}

pub fn get(db: &Db, key: &[u8]) -> Option<Vec<u8>> {
    let data = db.keyspace("data").unwrap();
    db.get(data, &stored(key)).unwrap().map(|v| v.to_vec())
}

pub fn descriptor(id: u64, start: &[u8], end: &[u8], nodes: &[u64]) -> ShardDescriptor {
    ShardDescriptor {
        shard_id: id,
        span: Some(shard::Span {
            start: Bytes::copy_from_slice(start),
            end: Bytes::copy_from_slice(end),
        }),
        version: 1,
        configuration_version: 1,
        replicas: nodes
            .iter()
            .map(|node| shard::Replica {
                replica_id: replica_on(*node, 1).0,
                node_id: *node,
                address: String::new(),
            })
            .collect(),
        leader_node_id: 0,
    }
}

impl Cluster {
    pub async fn new(nodes: &[u64]) -> Self {
        let mut cluster = Cluster {
            network: MemoryNetwork::new(),
            disks: nodes.iter().map(|node| (*node, SimVfs::new())).collect(),
            nodes: BTreeMap::new(),
            retention: Retention {
                interval: Duration::from_millis(50),
                ..Retention::default()
            },
            segment_bytes: 1 << 20,
            timing: Timing {
                heartbeat: Duration::from_millis(60),
                election_min: Duration::from_millis(300),
                election_max: Duration::from_millis(600),
            },
        };
        for node in nodes {
            cluster.start(*node).await;
        }
        cluster
    }

    /// Opens a node on its disk.
    pub async fn start(&mut self, node: u64) {
        let disk = Arc::new(self.disks[&node].clone());
        let db = Db::open(disk.clone(), Path::new("/db"), storage_options()).unwrap();
        let mut options = GroupsOptions::new("/", db.clone(), NodeId(node), Arc::new(NoAddresses));
        options.vfs = disk;
        options.transport = Some(self.network.join(NodeId(node)));
        options.timing = self.timing.clone();
        options.retention = self.retention;
        options.log = raft_log::Options {
            segment_bytes: self.segment_bytes,
            fatal: Arc::new(|why| tracing::warn!(why, "a node of the test failed")),
            ..raft_log::Options::default()
        };
        let groups = Groups::open(options).await.unwrap();
        self.nodes.insert(node, Node { groups, db });
    }

    /// Stops a node cleanly; its memory is flushed.
    pub async fn stop(&mut self, node: u64) {
        self.network.leave(NodeId(node));
        let stopped = self.nodes.remove(&node).unwrap();
        stopped.groups.shutdown().await;
        stopped.db.close().unwrap();
    }

    /// Takes a node's power away: what was not synced is lost.
    pub async fn kill(&mut self, node: u64) {
        self.network.leave(NodeId(node));
        let disk = self.disks[&node].clone();
        // From the next operation on the disk answers errors only.
        disk.crash_at(disk.operations() + 1);
        let killed = self.nodes.remove(&node).unwrap();
        killed.groups.shutdown().await;
        let _ = killed.db.close();
        drop(killed);
        disk.crash(CrashLoss::Everything);
    }

    pub async fn stop_all(mut self) {
        let nodes: Vec<u64> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.stop(node).await;
        }
    }

    /// Founds a shard on some nodes.
    pub async fn found(&self, id: u64, start: &[u8], end: &[u8], nodes: &[u64]) {
        for node in nodes {
            let order = meta::CreateReplica {
                shard: Some(descriptor(id, start, end, nodes)),
                replica_id: replica_on(*node, 1).0,
                founding: true,
            };
            self.nodes[node].groups.create_replica(order).await.unwrap();
        }
    }

    pub fn group(&self, node: u64, id: u64) -> Group {
        self.nodes[&node].groups.get(ShardId(id)).unwrap()
    }

    /// The node that leads a shard, and its term, once there is one.
    pub async fn leader(&self, id: u64) -> (u64, u64) {
        eventually(&format!("shard {id} has a leader"), async || {
            self.nodes.iter().find_map(|(node, on)| {
                match on.groups.get(ShardId(id))?.leadership() {
                    Leadership::Leader { term } => Some((*node, term)),
                    Leadership::Follower { .. } => None,
                }
            })
        })
        .await
    }

    /// Proposes at whoever leads until there is a verdict.
    pub async fn write(&self, id: u64, ops: Vec<Op>, expect: Vec<Expect>) -> Verdict {
        eventually("a write is decided", async || {
            let (node, term) = self.leader(id).await;
            let group = self.group(node, id);
            let command = Command {
                term,
                shard_version: group.descriptor().version,
                body: Body::Write {
                    ops: ops.clone(),
                    expect: expect.clone(),
                },
            };
            match tokio::time::timeout(Duration::from_secs(2), group.propose(command)).await {
                Ok(Ok(verdict)) => Some(verdict),
                Ok(Err(ProposeError::NotLeader { .. } | ProposeError::Unavailable(_))) => None,
                // Writing the same value again is harmless in these tests.
                Ok(Err(ProposeError::Unknown(_))) | Err(_) => None,
            }
        })
        .await
    }

    pub async fn split(&self, id: u64, key: &[u8], child: u64) -> Verdict {
        let (node, term) = self.leader(id).await;
        let group = self.group(node, id);
        let descriptor = group.descriptor();
        let command = Command {
            term,
            shard_version: descriptor.version,
            body: Body::Split {
                split_key: Bytes::copy_from_slice(key),
                new_shard_id: ShardId(child),
                child_replicas: descriptor
                    .replicas
                    .iter()
                    .map(|r| Replica {
                        id: replica_on(r.node_id, 1),
                        address: String::new(),
                    })
                    .collect(),
            },
        };
        group.propose(command).await.unwrap()
    }

    /// Waits until a node holds a value.
    pub async fn holds(&self, node: u64, key: &[u8], value: &[u8]) {
        eventually("a value arrives", async || {
            (get(&self.nodes[&node].db, key).as_deref() == Some(value)).then_some(())
        })
        .await;
    }
}
