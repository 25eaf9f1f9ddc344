//! Deadlocks over several nodes: tells the metaservice who waits for whom here, and
//! has those give way whom it names.
//!
//! A node on which nothing waits for long says nothing. While something does, it
//! tells the whole of it ten times a second; the answer names the victims that wait
//! here, from what all nodes have told last. So a deadlock is over a few tenths of
//! a second after it began to last. Off the data path: without the metaservice waits
//! end by their bounds.

use super::ShardNode;
use crate::txn::wait_graph::{Deadlock, LastingWait};
use bytes::Bytes;
use lineradb_client::meta::MetaClient;
use lineradb_common::clock::deadline_after;
use lineradb_common::{NodeId, TxnId};
use lineradb_proto::meta::v1::{LockWait, ReportWaitsRequest};
use std::sync::Arc;
use std::time::Duration;

/// How often waits are told while there are any.
const INTERVAL: Duration = Duration::from_millis(100);
/// A metaservice that is silent for longer is told anew: waits change.
const TIMEOUT: Duration = Duration::from_millis(500);

impl ShardNode {
    /// Reports waits for as long as it is polled.
    pub async fn report_waits(self: Arc<Self>, meta: MetaClient, node: NodeId) {
        loop {
            self.graph.lasts().await;
            let mut told = false;
            loop {
                let waits = self.graph.lasting();
                let none = waits.is_empty();
                if !none || told {
                    self.report(&meta, node, waits).await;
                }
                if none {
                    break;
                }
                told = true;
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    async fn report(&self, meta: &MetaClient, node: NodeId, waits: Vec<LastingWait>) {
        let request = ReportWaitsRequest {
            node_id: node.0,
            waits: waits.into_iter().map(to_proto).collect(),
        };
        match meta.report_waits(request, deadline_after(TIMEOUT)).await {
            Ok(reply) => {
                for deadlock in &reply.deadlocks {
                    // A victim that waits no more, or for others, is none.
                    if let Some(deadlock) = Deadlock::from_ids(&deadlock.txn_ids) {
                        self.graph.condemn(deadlock);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "waits were not reported"),
        }
    }
}

fn to_proto(wait: LastingWait) -> LockWait {
    let bytes = |id: TxnId| Bytes::copy_from_slice(&id.0);
    LockWait {
        txn_id: bytes(wait.waiter.id),
        start_ts: wait.waiter.started.raw(),
        holders: wait.holders.into_iter().map(bytes).collect(),
    }
}
