//! The seam to one node: a shard reached in process is a function call, one
//! behind the network a frame on a shared stream. Tests put an in-memory node
//! here.

use lineradb_proto::shard::v1::{Reply, Request};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// Why a node gave no answer at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request never left: safe to send again.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request left and the answer is lost: it may have taken effect.
    #[error("answer lost: {0}")]
    Lost(String),
}

/// One node that answers shard requests.
#[async_trait::async_trait]
pub trait ShardService: Send + Sync + 'static {
    /// Answers one request. `Request.id` is the transport's own; the caller
    /// leaves it 0. Waits at most about `Request.timeout_ms`.
    async fn call(&self, request: Request) -> Result<Reply, TransportError>;
}

/// The nodes that live in this process, by address; looked up before dialling.
#[derive(Clone, Default)]
pub struct LocalNodes(Arc<RwLock<HashMap<String, Arc<dyn ShardService>>>>);

impl LocalNodes {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the node that listens on `address` reachable without a network.
    pub fn register(&self, address: impl Into<String>, node: Arc<dyn ShardService>) {
        self.0.write().insert(address.into(), node);
    }

    /// Forgets a node that stops.
    pub fn remove(&self, address: &str) {
        self.0.write().remove(address);
    }

    /// The node at `address`, when it lives here.
    pub fn get(&self, address: &str) -> Option<Arc<dyn ShardService>> {
        self.0.read().get(address).cloned()
    }
}

impl std::fmt::Debug for LocalNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.read().keys()).finish()
    }
}
