//! Nodes over real sockets and real files: the stream carries all groups,
//! breaks, comes back; a snapshot has a stream of its own.

use crate::cluster::{descriptor, eventually, get, put, replica_on};
use lineradb_common::{NodeId, ShardId, spawn};
use lineradb_kvnode::command::{Body, Command, Verdict};
use lineradb_kvnode::consensus::{
    AddressBook, Groups, GroupsOptions, Leadership, Timing, storage_options,
};
use lineradb_lsm::{Db, RealVfs};
use lineradb_proto::meta::v1 as meta;
use lineradb_proto::shard::v1 as shard;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

#[derive(Default)]
struct Book(Mutex<BTreeMap<NodeId, String>>);

impl AddressBook for Book {
    fn address(&self, node: NodeId) -> Option<String> {
        self.0.lock().get(&node).cloned()
    }
}

struct Server {
    groups: Groups,
    db: Db,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(node: u64, dir: &Path, book: &Arc<Book>) -> Server {
        let db = Db::open(Arc::new(RealVfs), &dir.join("db"), storage_options()).unwrap();
        let mut options = GroupsOptions::new(dir, db.clone(), NodeId(node), book.clone());
        options.timing = Timing {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
        };
        let groups = Groups::open(options).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        book.0.lock().insert(NodeId(node), address);
        let service = groups.raft_service();
        let task = spawn::task("server", async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Server { groups, db, task }
    }

    async fn stop(self) {
        self.task.abort();
        self.groups.shutdown().await;
        self.db.close().unwrap();
    }
}

async fn write(servers: &BTreeMap<u64, Server>, shard: u64, key: &[u8], value: &[u8]) {
    eventually("a write is applied", async || {
        for server in servers.values() {
            let Some(group) = server.groups.get(ShardId(shard)) else {
                continue;
            };
            let Leadership::Leader { term } = group.leadership() else {
                continue;
            };
            let command = Command {
                term,
                shard_version: group.descriptor().version,
                body: Body::Write {
                    ops: vec![put(key, value)],
                    expect: vec![],
                },
            };
            let proposed = tokio::time::timeout(Duration::from_secs(2), group.propose(command));
            if let Ok(Ok(Verdict::Applied)) = proposed.await {
                group.read_index(term).await.ok()?;
                return Some(());
            }
        }
        None
    })
    .await;
}

async fn holds(server: &Server, key: &[u8], value: &[u8]) {
    eventually("a value arrives", async || {
        (get(&server.db, key).as_deref() == Some(value)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_replicate_restart_and_send_snapshots_over_grpc() {
    let dirs: BTreeMap<u64, tempfile::TempDir> = (1..=4)
        .map(|node| (node, tempfile::tempdir().unwrap()))
        .collect();
    let book = Arc::new(Book::default());
    let mut servers = BTreeMap::new();
    for (node, dir) in &dirs {
        servers.insert(*node, Server::start(*node, dir.path(), &book).await);
    }
    for (id, start, end) in [(1, &b""[..], &b"m"[..]), (2, b"m", b"")] {
        for node in [1, 2, 3] {
            let order = meta::CreateReplica {
                shard: Some(descriptor(id, start, end, &[1, 2, 3])),
                replica_id: replica_on(node, 1).0,
                founding: true,
            };
            servers[&node].groups.create_replica(order).await.unwrap();
        }
    }
    for n in 0..20u8 {
        write(&servers, 1, &[b'a', n], &[1; 100_000]).await;
        write(&servers, 2, &[b'z', n], b"2").await;
    }
    // A node goes and comes back at another address, with its files.
    let gone = servers.remove(&2).unwrap();
    gone.stop().await;
    write(&servers, 1, b"alone", b"3").await;
    servers.insert(2, Server::start(2, dirs[&2].path(), &book).await);
    holds(&servers[&2], b"alone", b"3").await;
    // A new replica gets two megabytes by snapshot.
    let learner = meta::CreateReplica {
        shard: Some(descriptor(1, b"", b"m", &[1, 2, 3])),
        replica_id: replica_on(4, 1).0,
        founding: false,
    };
    servers[&4].groups.create_replica(learner).await.unwrap();
    let order = meta::ReplaceReplica {
        shard_id: 1,
        old_replica_id: replica_on(3, 1).0,
        new: Some(shard::Replica {
            replica_id: replica_on(4, 1).0,
            node_id: 4,
            address: String::new(),
        }),
    };
    eventually("the replica is replaced", async || {
        for server in servers.values() {
            if server.groups.replace_replica(order.clone()).await.is_ok() {
                return Some(());
            }
        }
        None
    })
    .await;
    write(&servers, 1, b"after", b"4").await;
    holds(&servers[&4], b"after", b"4").await;
    holds(&servers[&4], &[b'a', 19], &[1; 100_000]).await;
    let status = servers[&4].groups.status();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].replica_id, replica_on(4, 1).0);
    assert!(status[0].failed.is_empty());
    for (_, server) in servers {
        server.stop().await;
    }
}
