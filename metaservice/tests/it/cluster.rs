//! Members in this process, and fake nodes that do what they are ordered.

use lineradb_metaservice::{MetaConfig, MetaService};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::meta::v1::meta_client::MetaClient;
use lineradb_proto::meta::v1::order::Order;
use lineradb_proto::shard::v1::{Replica, ShardDescriptor, Span};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Channel;

/// Polls until `f` answers something; a minute is for ever.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, f: impl FnMut() -> F) -> T {
    let mut f = f;
    let search = async {
        loop {
            if let Some(found) = f().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), search).await {
        Ok(found) => found,
        Err(_) => panic!("never: {what}"),
    }
}

/// Up to three members; each can be stopped and started again on its folder
/// and address.
pub struct Metas {
    folder: TempDir,
    addresses: BTreeMap<u64, String>,
    pub running: BTreeMap<u64, MetaService>,
    pub replicas: u32,
    pub split_bytes: u64,
}

impl Metas {
    pub async fn start(count: u64, replicas: u32) -> Metas {
        Self::start_with(count, replicas, |_| {}).await
    }

    pub async fn start_with(
        count: u64,
        replicas: u32,
        configure: impl Fn(&mut MetaConfig),
    ) -> Metas {
        let mut listeners = BTreeMap::new();
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listeners.insert(id, listener);
        }
        let mut metas = Metas {
            folder: tempfile::tempdir().unwrap(),
            addresses: { listeners.iter() }
                .map(|(id, l)| (*id, l.local_addr().unwrap().to_string()))
                .collect(),
            running: BTreeMap::new(),
            replicas,
            split_bytes: 1000,
        };
        let starts = listeners.into_iter().map(|(id, listener)| {
            let mut config = metas.config(id);
            configure(&mut config);
            start_member(config, id, listener)
        });
        for (id, member) in futures::future::join_all(starts).await {
            metas.running.insert(id, member);
        }
        metas
    }

    pub fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(id.to_string())
    }

    pub fn config(&self, id: u64) -> MetaConfig {
        let peers = self.addresses.iter().map(|(id, a)| format!("{id}={a}"));
        MetaConfig {
            id,
            data: self.data(id),
            listen: self.addresses[&id].clone(),
            http: "127.0.0.1:0".to_owned(),
            peers: peers.collect::<Vec<_>>().join(","),
            replicas: self.replicas,
            split_bytes: self.split_bytes,
            ..MetaConfig::default()
        }
    }

    pub async fn restart(&mut self, id: u64) {
        let address = self.addresses[&id].clone();
        let listener = eventually("the port is free again", || async {
            TcpListener::bind(&address).await.ok()
        })
        .await;
        let (id, member) = start_member(self.config(id), id, listener).await;
        self.running.insert(id, member);
    }

    pub async fn kill(&mut self, id: u64) {
        self.running.remove(&id).unwrap().stop_now().await;
    }

    pub async fn leader(&self) -> u64 {
        eventually("a leader", || async {
            let mut members = self.running.iter();
            members.find(|(_, m)| m.is_leader()).map(|(id, _)| *id)
        })
        .await
    }

    pub fn client(&self, id: u64) -> MetaClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.addresses[&id])).unwrap();
        MetaClient::new(endpoint.connect_lazy())
    }

    /// The map, from whichever member answers.
    pub async fn map(&self) -> meta::ClusterMap {
        eventually("a map", || async {
            let id = *self.running.keys().next().unwrap();
            let reply = self
                .client(id)
                .get_map(meta::GetMapRequest::default())
                .await;
            reply.ok().map(|r| r.into_inner())
        })
        .await
    }
}

async fn start_member(config: MetaConfig, id: u64, grpc: TcpListener) -> (u64, MetaService) {
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let vfs = Arc::new(lineradb_lsm::RealVfs);
    let member = MetaService::start_on(config, grpc, http, vfs)
        .await
        .unwrap();
    (id, member)
}

/// A node without data: it holds what it was ordered to hold, and splits and
/// replaces by editing descriptors.
pub struct FakeNode {
    pub id: u64,
    pub incarnation: u64,
    pub replicas: BTreeMap<u64, meta::ReplicaStatus>,
    pub failures: Vec<meta::OrderFailure>,
    /// Refuses splits.
    pub stubborn: bool,
    pub destroyed: Vec<u64>,
}

impl FakeNode {
    pub async fn register(metas: &Metas, name: u8) -> FakeNode {
        let uuid = [name; 16];
        let reply = eventually("registration", || async {
            let id = *metas.running.keys().next().unwrap();
            let request = meta::RegisterNodeRequest {
                node_uuid: uuid.to_vec().into(),
                address: format!("127.0.0.1:{}", 7000 + u16::from(name)),
                locality: [("zone".to_owned(), format!("z{name}"))].into(),
                ..meta::RegisterNodeRequest::default()
            };
            let reply = metas.client(id).register_node(request).await;
            reply.ok().map(|r| r.into_inner())
        })
        .await;
        assert_eq!(reply.cluster_id.len(), 16);
        FakeNode {
            id: reply.node_id,
            incarnation: reply.incarnation,
            replicas: BTreeMap::new(),
            failures: Vec::new(),
            stubborn: false,
            destroyed: Vec::new(),
        }
    }

    /// One heartbeat, and what it was told to do.
    pub async fn beat(&mut self, client: &mut MetaClient<Channel>) -> Result<Vec<Order>, Status> {
        let request = meta::HeartbeatRequest {
            node_id: self.id,
            incarnation: self.incarnation,
            sent_at: 0,
            replicas: self.replicas.values().cloned().collect(),
            failures: std::mem::take(&mut self.failures),
        };
        let reply = client.heartbeat(request).await?.into_inner();
        let orders: Vec<Order> = reply.orders.into_iter().filter_map(|o| o.order).collect();
        Ok(orders)
    }

    pub fn leads(&self, shard_id: u64) -> bool {
        self.replicas.get(&shard_id).is_some_and(|r| r.leader)
    }
}

/// Nodes that act together: consensus between them is instant.
pub struct FakeNodes {
    pub nodes: Vec<FakeNode>,
}

impl FakeNodes {
    pub async fn register(metas: &Metas, names: std::ops::RangeInclusive<u8>) -> FakeNodes {
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(FakeNode::register(metas, name).await);
        }
        FakeNodes { nodes }
    }

    /// Every node beats once and does what it is told. The first node of a
    /// shard's list leads it.
    pub async fn round(&mut self, metas: &Metas) {
        let member = *metas.running.keys().next().unwrap();
        let client = metas.client(member);
        for index in 0..self.nodes.len() {
            let orders = eventually("a heartbeat is answered", || {
                let node = &mut self.nodes[index];
                let mut client = client.clone();
                // One attempt a turn; a failed one is repeated.
                let request = meta::HeartbeatRequest {
                    node_id: node.id,
                    incarnation: node.incarnation,
                    sent_at: 0,
                    replicas: node.replicas.values().cloned().collect(),
                    failures: std::mem::take(&mut node.failures),
                };
                async move { client.heartbeat(request).await.ok() }
            })
            .await;
            for order in orders
                .into_inner()
                .orders
                .into_iter()
                .filter_map(|o| o.order)
            {
                self.obey(index, order);
            }
        }
    }

    fn obey(&mut self, index: usize, order: Order) {
        match order {
            Order::CreateReplica(create) => {
                let shard = create.shard.unwrap();
                let node = &mut self.nodes[index];
                let first = shard.replicas.first().map(|r| r.node_id);
                let leader = create.founding && first == Some(node.id);
                let status = meta::ReplicaStatus {
                    replica_id: create.replica_id,
                    leader,
                    term: 1,
                    shard: Some(shard.clone()),
                    ..meta::ReplicaStatus::default()
                };
                let held = node.replicas.get(&shard.shard_id);
                assert!(held.is_none_or(|r| r.replica_id == create.replica_id));
                node.replicas.insert(shard.shard_id, status);
            }
            Order::Split(split) => self.split(index, &split),
            Order::ReplaceReplica(replace) => {
                let new = replace.new.unwrap();
                self.edit(replace.shard_id, |d| {
                    if d.replicas.iter().any(|r| r.replica_id == new.replica_id) {
                        return;
                    }
                    d.configuration_version += 1;
                    d.replicas
                        .retain(|r| r.replica_id != replace.old_replica_id);
                    d.replicas.push(new.clone());
                });
            }
            Order::DestroyReplica(destroy) => {
                let node = &mut self.nodes[index];
                node.destroyed.push(destroy.replica_id);
                node.replicas
                    .retain(|_, r| r.replica_id != destroy.replica_id);
            }
        }
    }

    /// Changes a shard's descriptor on every node that holds it.
    pub fn edit(&mut self, shard_id: u64, f: impl Fn(&mut ShardDescriptor)) {
        for node in &mut self.nodes {
            if let Some(status) = node.replicas.get_mut(&shard_id) {
                f(status.shard.as_mut().unwrap());
            }
        }
    }

    fn split(&mut self, index: usize, order: &meta::SplitReplica) {
        let leader = &mut self.nodes[index];
        assert!(leader.leads(order.shard_id));
        if leader.stubborn {
            leader.failures.push(meta::OrderFailure {
                shard_id: order.shard_id,
                new_shard_id: order.new_shard_id,
                message: "no middle".to_owned(),
            });
            return;
        }
        let parent = leader.replicas[&order.shard_id].shard.clone().unwrap();
        if parent.version != order.shard_version {
            return;
        }
        let span = parent.span.clone().unwrap();
        let key = if order.split_key.is_empty() {
            bytes::Bytes::from([&span.start[..], b"0"].concat())
        } else {
            order.split_key.clone()
        };
        for node in &mut self.nodes {
            let Some(status) = node.replicas.get_mut(&order.shard_id) else {
                continue;
            };
            let descriptor = status.shard.as_mut().unwrap();
            descriptor.version += 1;
            descriptor.span = Some(Span {
                start: span.start.clone(),
                end: key.clone(),
            });
            status.size_bytes /= 2;
            let mut child = status.clone();
            let descriptor = child.shard.as_mut().unwrap();
            descriptor.shard_id = order.new_shard_id;
            descriptor.configuration_version = 1;
            descriptor.span = Some(Span {
                start: key.clone(),
                end: span.end.clone(),
            });
            for replica in &mut descriptor.replicas {
                *replica = first_replica(replica);
            }
            child.replica_id = node.id << 16 | 1;
            node.replicas.insert(order.new_shard_id, child);
        }
    }
}

fn first_replica(of: &Replica) -> Replica {
    Replica {
        replica_id: of.node_id << 16 | 1,
        ..of.clone()
    }
}
