//! Nodes of one process: requests are handed over without bytes in between.
//!
//! Used by one-process mode, where a socket would only cost time, and by tests,
//! which cut links one way or both.

use super::{Chunks, Handler, Lane, Pending, Transport, TransportError, dispatch};
use async_trait::async_trait;
use lineradb_common::NodeId;
use lineradb_proto::raft::v1 as proto;
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use tokio::sync::oneshot;

#[derive(Default)]
struct State {
    nodes: HashMap<NodeId, Weak<dyn Handler>>,
    cut: HashSet<(NodeId, NodeId)>,
}

/// The nodes of this process and the links between them.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<RwLock<State>>,
}

impl MemoryNetwork {
    /// Nobody there yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of a node.
    pub fn join(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport {
            network: self.clone(),
            node,
        })
    }

    /// Takes a node off the network.
    pub fn leave(&self, node: NodeId) {
        self.state.write().nodes.remove(&node);
    }

    /// Cuts both ways between two nodes.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        let mut state = self.state.write();
        state.cut.insert((a, b));
        state.cut.insert((b, a));
    }

    /// Cuts one way: nothing that the one sends arrives at the other.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.state.write().cut.insert((from, to));
    }

    /// Repairs both ways.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        let mut state = self.state.write();
        state.cut.remove(&(a, b));
        state.cut.remove(&(b, a));
    }

    /// Repairs everything.
    pub fn heal_all(&self) {
        self.state.write().cut.clear();
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Result<Arc<dyn Handler>, TransportError> {
        let state = self.state.read();
        if state.cut.contains(&(from, to)) {
            return Err(TransportError::unreachable("the link is cut"));
        }
        state
            .nodes
            .get(&to)
            .and_then(Weak::upgrade)
            .ok_or_else(|| TransportError::unreachable(format!("node {to} is not there")))
    }
}

struct MemoryTransport {
    network: MemoryNetwork,
    node: NodeId,
}

#[async_trait]
impl Transport for MemoryTransport {
    fn send(&self, to: NodeId, _lane: Lane, request: proto::RaftRequest) -> Pending {
        let (tx, rx) = oneshot::channel();
        match self.network.reach(self.node, to) {
            Err(error) => {
                let _ = tx.send(Err(error));
            }
            Ok(handler) => {
                let (network, node) = (self.network.clone(), self.node);
                dispatch(handler.as_ref(), request, move |reply| {
                    // The way back may have been cut meanwhile.
                    let reply = network.reach(to, node).map(|_| reply);
                    let _ = tx.send(reply);
                });
            }
        }
        rx
    }

    async fn install(
        &self,
        to: NodeId,
        chunks: Chunks,
    ) -> Result<proto::SnapshotReply, TransportError> {
        let handler = self.network.reach(self.node, to)?;
        let reply = handler
            .install(chunks)
            .await
            .map_err(TransportError::Unreachable)?;
        self.network.reach(to, self.node)?;
        Ok(reply)
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.network
            .state
            .write()
            .nodes
            .insert(self.node, Arc::downgrade(&handler));
    }
}
