//! How replicas reach each other.
//!
//! [`Transport`] is the seam: [`grpc`] carries the messages of all groups
//! between two nodes on one ordered stream, in frames of whatever has queued,
//! and heartbeats and votes on a connection of their own ([`Lane`]);
//! [`memory`] calls the other node in the same process (one-process mode, and
//! tests that cut links). [`network`] is what openraft sees of either,
//! [`router`] hands what arrives to the replica addressed.
//!
//! Requests are matched with replies by id. `send` queues at once and in the
//! order of the calls, so that openraft may have many appends to a follower
//! under way; what arrives is handed to the group in the order of arrival, also when
//! the group is a moment late ([`arrivals`]). A leader that is not answered
//! falls silent ([`hearing`]).

pub(crate) mod arrivals;
pub(crate) mod codec;
pub mod grpc;
pub mod hearing;
pub mod memory;
pub mod network;
pub(crate) mod router;

use async_trait::async_trait;
use futures::future::BoxFuture;
use lineradb_common::{NodeId, spawn};
use lineradb_proto::raft::v1 as proto;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::{mpsc, oneshot};

/// Why there is no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The message did not get there, or the way back is cut. It may have been
    /// processed.
    #[error("unreachable: {0}")]
    Unreachable(String),
}

impl TransportError {
    pub(crate) fn unreachable(why: impl Into<String>) -> Self {
        TransportError::Unreachable(why.into())
    }
}

/// A reply to come.
pub type Pending = oneshot::Receiver<Result<proto::RaftReply, TransportError>>;

/// Chunks of a snapshot on their way.
pub type Chunks = mpsc::Receiver<crate::Result<proto::SnapshotChunk>>;

/// Which of the two ways to a node a request takes (C8: pings never queue
/// behind data).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Entries, however large, in order.
    Bulk,
    /// Heartbeats and votes: small, and late ones cost an election.
    Urgent,
}

/// Carries messages to other nodes.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Queues a request, in the order of the calls for each node and lane. The
    /// id of the request is the transport's own.
    fn send(&self, to: NodeId, lane: Lane, request: proto::RaftRequest) -> Pending;
    /// Sends a snapshot on a stream of its own.
    async fn install(
        &self,
        to: NodeId,
        chunks: Chunks,
    ) -> Result<proto::SnapshotReply, TransportError>;
    /// Says who answers for this node, to a transport that delivers in process.
    fn serve(&self, handler: Arc<dyn Handler>);
}

/// Answers what arrives.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Requests are handed over in the order of the first polls of their futures.
    fn request(&self, request: proto::RaftRequest) -> BoxFuture<'static, proto::RaftReply>;
    /// Takes a snapshot.
    async fn install(&self, chunks: Chunks) -> Result<proto::SnapshotReply, String>;
}

/// Hands a request over now, and the reply to `reply` when it is there.
pub(crate) fn dispatch(
    handler: &dyn Handler,
    request: proto::RaftRequest,
    reply: impl FnOnce(proto::RaftReply) + Send + 'static,
) {
    let mut answer = handler.request(request);
    // The first poll puts the request into the group's queue, or the queue of those
    // who wait for the group: doing it here,
    // and not in a task, keeps the order of arrival.
    let first = {
        let unconstrained = tokio::task::unconstrained(&mut answer);
        let mut unconstrained = std::pin::pin!(unconstrained);
        unconstrained
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    };
    match first {
        Poll::Ready(answer) => reply(answer),
        Poll::Pending => {
            spawn::task("raft reply", async move { reply(answer.await) });
        }
    }
}
