//! What evaluation needs of consensus: implemented by a replica's Raft group,
//! and by the group of the tests, which delays and loses at will.

use crate::command::{Command, Verdict};
use crate::consensus::{Group, Leadership, ProposeError, ReadError, Tail};
use lineradb_proto::shard::v1::ShardDescriptor;
use std::future::Future;
use std::sync::Arc;

/// One replica's view of its group; see [`Group`] for the meaning of each.
pub trait Consensus: Clone + Send + Sync + 'static {
    /// Range, version and replicas as applied here.
    fn descriptor(&self) -> Arc<ShardDescriptor>;

    /// Who leads.
    fn leadership(&self) -> Leadership;

    /// Has a command decided and applied here.
    fn propose(
        &self,
        command: Command,
    ) -> impl Future<Output = Result<Verdict, ProposeError>> + Send;

    /// Index of the last entry applied here.
    fn applied_index(&self) -> u64;

    /// What `take` sees once an entry is applied here, led or not.
    fn as_of<T>(&self, index: u64, take: impl FnOnce() -> T) -> Option<T>;

    /// What was written here lately.
    fn tail(&self) -> &Tail;

    /// Confirms the leadership by a round begun after the call.
    fn read_index(&self, term: u64) -> impl Future<Output = Result<(), ReadError>> + Send;
}

impl Consensus for Group {
    fn descriptor(&self) -> Arc<ShardDescriptor> {
        Group::descriptor(self)
    }

    fn leadership(&self) -> Leadership {
        Group::leadership(self)
    }

    fn applied_index(&self) -> u64 {
        Group::applied_index(self)
    }

    fn as_of<T>(&self, index: u64, take: impl FnOnce() -> T) -> Option<T> {
        Group::as_of(self, index, take)
    }

    fn tail(&self) -> &Tail {
        Group::tail(self)
    }

    async fn propose(&self, command: Command) -> Result<Verdict, ProposeError> {
        Group::propose(self, command).await
    }

    async fn read_index(&self, term: u64) -> Result<(), ReadError> {
        Group::read_index(self, term).await
    }
}
