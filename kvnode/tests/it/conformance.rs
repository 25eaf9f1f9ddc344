//! openraft's own suite for storage, on the shared log and the state machine.

use lineradb_common::{NodeId, ReplicaId, ShardId};
use lineradb_kvnode::consensus::{StateMachine, storage_options, types::TypeConfig};
use lineradb_kvnode::raft_log::store::LogStore;
use lineradb_kvnode::raft_log::{Options, RaftLog};
use lineradb_kvnode::snapshot::Spool;
use lineradb_lsm::{Db, SimVfs};
use lineradb_proto::shard::v1::ShardDescriptor;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::path::Path;
use std::sync::Arc;

struct Builder;

/// Stops the log's threads when a test of the suite is over.
struct Guard(RaftLog);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError<TypeConfig>> {
        let vfs = Arc::new(SimVfs::new());
        let log = RaftLog::open(vfs.clone(), Path::new("/raft"), Options::default()).unwrap();
        let group = log.group(ShardId(1));
        let replica = ReplicaId::new(NodeId(1), 1);
        group.begin(replica, None).unwrap();
        let options = lineradb_lsm::Options {
            background: lineradb_lsm::Background::Inline,
            ..storage_options()
        };
        let db = Db::open(vfs.clone(), Path::new("/db"), options).unwrap();
        let descriptor = ShardDescriptor {
            shard_id: 1,
            version: 1,
            ..ShardDescriptor::default()
        };
        let spool = Spool::open(vfs, Path::new("/snapshots")).unwrap();
        let machine = StateMachine::detached(db, spool, replica, descriptor).unwrap();
        Ok((Guard(log), LogStore::new(group), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_openrafts_suite() {
    Suite::test_all(Builder).await.unwrap();
}
