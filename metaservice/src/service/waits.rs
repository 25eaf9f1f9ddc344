//! `ReportWaits`: takes a node's waits in and answers which of them have to end.

use super::MetaApi;
use crate::deadlock::Wait;
use crate::error::{Error, Result};
use crate::metrics::METRICS;
use bytes::Bytes;
use lineradb_common::TxnId;
use lineradb_proto::meta::v1 as meta;
use tonic::Status;

/// Waits in one report, and transactions that one wait is for, at most.
const WAITS_MAX: usize = 16 * 1024;
const HOLDERS_MAX: usize = 1024;

impl MetaApi {
    pub(super) fn report_waits_here(
        &self,
        request: &meta::ReportWaitsRequest,
    ) -> Result<meta::ReportWaitsReply, Status> {
        let node_id = request.node_id;
        if !self.member.shared.state().nodes.contains_key(&node_id) {
            return Err(Status::not_found(format!(
                "node {node_id} is not registered"
            )));
        }
        if request.waits.len() > WAITS_MAX {
            return Err(Status::invalid_argument("too many waits in one report"));
        }
        let waits = request.waits.iter().map(read).collect::<Result<Vec<_>>>()?;
        let (victims, waits) = self.member.with_view(|view, now| {
            let victims = view.deadlocks.report(now, node_id, waits);
            (victims, view.deadlocks.waits(now))
        });
        METRICS.waits.set(waits as i64);
        METRICS.deadlocks.inc_by(victims.len() as u64);
        let deadlocks = victims.into_iter().map(|circle| {
            tracing::info!(
                node = node_id,
                victim = ?circle.first(),
                transactions = circle.len(),
                "a deadlock"
            );
            meta::Deadlock {
                txn_ids: circle.iter().map(|id| to_bytes(*id)).collect(),
            }
        });
        Ok(meta::ReportWaitsReply {
            deadlocks: deadlocks.collect(),
        })
    }
}

fn read(wait: &meta::LockWait) -> Result<Wait> {
    if wait.holders.len() > HOLDERS_MAX {
        return Err(Error::Invalid("a wait is for too many at once".to_owned()));
    }
    let id = |bytes: &Bytes| {
        TxnId::from_slice(bytes)
            .ok_or_else(|| Error::Invalid("a transaction id has 16 bytes".to_owned()))
    };
    Ok(Wait {
        waiter: id(&wait.txn_id)?,
        started: wait.start_ts,
        holders: wait.holders.iter().map(id).collect::<Result<_>>()?,
    })
}

fn to_bytes(id: TxnId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}
